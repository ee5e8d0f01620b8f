"""Sequences of different lengths packed one after the other, without padding between them.

S sequences, T positions in all, L positions of the longest of some, H heads, M value size per head.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class _Group(NamedTuple):
    """Packed sequences of about one length: where their positions stand in the pack (S, L), and
    which of these are padding (None without any)."""

    index: Tensor
    padding: Tensor | None


class Packing:
    """S sequences of T positions in all, one after the other: the first lies at positions
    cu_seqlens[0] to cu_seqlens[1] - 1, and so on (flash-attention's convention).

    Args:
        cu_seqlens: (S + 1,) integers, 0 at first and T at last. A sequence may be empty.
        shape: of a tensor (1, ..., T) whose last size is T.

    Attributes:
        positions: (1, T) of each position in its own sequence.

    Raises:
        ValueError: the boundaries are not those of the tensor, or its batch is not 1.
    """

    def __init__(self, cu_seqlens: Tensor, shape: tuple[int, ...], device: torch.device):
        batch, total = shape[0], shape[-1]
        cu_seqlens = torch.as_tensor(cu_seqlens)
        whole = cu_seqlens.dtype in (torch.int32, torch.int64)
        if not whole or cu_seqlens.dim() != 1 or len(cu_seqlens) == 0:
            raise ValueError(
                f"cu_seqlens is {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}: use integers (S + 1,)"
            )
        if batch != 1:
            raise ValueError(
                f"a batch of {batch} with cu_seqlens: pack all sequences into a batch of 1"
            )
        places = cu_seqlens.tolist()
        if places[0] != 0:
            raise ValueError(f"cu_seqlens begins with {places[0]}: use 0")
        if places != sorted(places):
            raise ValueError(f"cu_seqlens {places} falls: each sequence ends after it begins")
        if places[-1] != total:
            raise ValueError(f"cu_seqlens ends with {places[-1]}: use the {total} positions")
        # Lengths of one group differ by less than a factor of 2, and so at most half is padding.
        groups: dict[int, list[tuple[int, int]]] = {}
        for start, end in pairwise(places):
            if end > start:
                groups.setdefault((end - start - 1).bit_length(), []).append((start, end))
        self.groups = [_group(spans, device) for spans in groups.values()]
        boundaries = cu_seqlens.to(device, torch.int64)
        begins = boundaries[:-1].repeat_interleave(boundaries.diff())
        self.positions = (torch.arange(total, device=device) - begins).unsqueeze(0)

    def attend(self, attention: Callable[..., Tensor], *inputs: Tensor, causal: bool) -> Tensor:
        """`attention` of inputs (1, H, T, ...), such as queries, keys and values, each sequence for
        itself: (1, H, T, M)."""
        if not self.groups:
            return attention(*inputs)
        found, order = [], []
        for index, padding in self.groups:
            options, parts = {}, [x[0, :, index].transpose(0, 1) for x in inputs]  # (S, H, L, ...)
            real = torch.ones_like(index, dtype=torch.bool) if padding is None else ~padding
            if padding is not None:
                # Causal, what follows a sequence reaches none of it.
                options = {} if causal else {"key_padding_mask": padding}
                parts = [_filled(x, padding) for x in parts]
            found.append(attention(*parts, **options).transpose(1, 2)[real])  # (positions, H, M)
            order.append(index[real])
        return torch.cat(found)[torch.cat(order).argsort()].transpose(0, 1).unsqueeze(0)


def _group(spans: list[tuple[int, int]], device: torch.device) -> _Group:
    starts, ends = torch.tensor(spans, device=device).T.unsqueeze(-1)  # (S, 1)
    longest = max(end - start for start, end in spans)
    index = starts + torch.arange(longest, device=device)
    padding = index >= ends
    return _Group(index.minimum(ends - 1), padding if padding.any() else None)


def _filled(x: Tensor, padding: Tensor) -> Tensor:
    """x (S, H, L, ...) with 0 at padding (S, L)."""
    return x.masked_fill(padding.view(len(padding), 1, -1, *[1] * (x.dim() - 3)), 0)


def packed(
    attention: Callable[..., Tensor],
    cu_seqlens: Tensor,
    *inputs: Tensor,
    causal: bool = True,
    padding_mask: Tensor | None = None,
) -> Tensor:
    """`attention` within each of several sequences that are packed one after the other.

    Args:
        attention: of tensors (S, H, L, ...) to (S, H, L, M); not causal it is also given a
            `key_padding_mask` (S, L).
        cu_seqlens: (S + 1,), see `Packing`.
        inputs: (1, H, T, ...).

    Raises:
        ValueError: the boundaries are not those of the tensors, or the batch is not 1, or there is
            a mask of padding besides.
    """
    if padding_mask is not None:
        raise ValueError("packed sequences have no padding: give a mask or cu_seqlens")
    lengths = {x.shape[2] for x in inputs}
    if len(lengths) != 1:
        raise ValueError(f"packed inputs have the lengths {sorted(lengths)}: give all the same")
    packing = Packing(cu_seqlens, inputs[0].shape[:3], inputs[0].device)
    return packing.attend(attention, *inputs, causal=causal)
