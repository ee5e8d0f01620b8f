"""What every attention mechanism is.

B batch, H heads, N sequence length, D query/key size per head, M value size per head.
Queries and keys are (B, H, N, D), values and outputs (B, H, N, M).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a mechanism computes, where it can be told to compute one thing or another: sizes and
    switches. A mechanism that has some defines its own `Options` with a default for each."""

    @property
    def label(self) -> str:
        """What charts and controls call them."""
        return ""


def variant_label(options: Options | None, kernel: str | None) -> str | None:
    """What charts call a mechanism with these options by this kernel, besides its name; None where
    neither was asked for."""
    return " ".join(filter(None, (options and options.label, kernel))) or None


class Attention(nn.Module):
    """A mechanism that mixes values by the similarity of queries and keys.

    A new one is a file and a line in `replib.attention.ATTENTION`. It defines `label` and
    `forward`, and `for_model` where its parameters depend on a model's sizes. What it computes is
    its `options`, by which of several ways its `kernel`.
    One with a recurrent form sets `recurrent = True` and defines `init_state` and `step`; `step`
    repeated is then `forward` of a causal sequence. From them it has `step_` and `prefill`, which
    it overrides where it can be faster. `peak_bytes` and `operations` let the pages say what a run
    will cost.

    A state is a NamedTuple, whose tensors have the batch first or are of shape (). It is a value:
    `step` and `prefill` leave the given one as it was, so that several continuations may start from
    one state, and gradients flow through it.

    A buffer that is computed and not learned is filled by `reset_buffers`.
    """

    label: ClassVar[str]
    """What charts and controls call it."""
    Options: ClassVar[type[Options]] = Options
    offered: ClassVar[tuple[Options, ...]] = ()
    """The options that controls offer."""
    kernels: ClassVar[tuple[str, ...]] = ()
    """Ways to compute the same function, where there are several; without a name it is the fastest
    for the tensors. One compiled for a kind of device is named after it ("cpu", "cuda")."""
    recurrent: ClassVar[bool] = False
    VERSION: ClassVar[int] = 1
    """Raised when what it computes changes beyond rounding: its recorded runs are then old."""
    SPEED: ClassVar[Mapping[str | None, int]] = {}
    """Of a kernel (None where there is no choice), 1 where it is not named; raised when it becomes
    faster or slower: its recorded times are then old."""

    def __init__(self, *, options: Options | None = None, kernel: str | None = None):
        super().__init__()
        self.check(options, kernel)
        self.options = self.Options() if options is None else options
        self.kernel = kernel

    @classmethod
    def check(cls, options: Options | None, kernel: str | None) -> None:
        """
        Raises:
            ValueError: the options are another mechanism's, or there is no such kernel.
        """
        if options is not None and type(options) is not cls.Options:
            raise ValueError(f"{options!r} are no options of {cls.label} attention: use its own")
        if kernel is not None and kernel not in cls.kernels:
            known = ", ".join(cls.kernels) or "None"
            raise ValueError(f"{cls.label} attention has no kernel {kernel!r}: use {known}")

    @classmethod
    def choices(cls) -> dict[str, tuple[Options | None, str | None]]:
        """The options and kernels that controls offer, by name: each kernel with the default
        options, and each of the other options offered with the fastest kernel."""
        named: dict[str, tuple[Options | None, str | None]] = {k: (None, k) for k in cls.kernels}
        default = cls.Options() if named else None
        named |= {o.label: (o, None) for o in cls.offered if o != default}
        return named or {"": (None, None)}

    @classmethod
    def unavailable(
        cls,
        kernel: str | None,
        *,
        device_type: str,
        dtype: torch.dtype,
        head_dim: int,
        options: Options | None = None,
    ) -> str | None:
        """Why a kernel cannot take tensors of this kind, with what to do; None where it can."""
        return None

    @classmethod
    def for_model(
        cls,
        *,
        n_heads: int,
        head_dim: int,
        max_len: int,
        options: Options | None = None,
        kernel: str | None = None,
    ) -> "Attention":
        """Build the mechanism for a model's sizes, which those with parameters depend on.

        Args:
            n_heads: those of keys and values.
            max_len: positions of the longest sequence.
        """
        return cls(options=options, kernel=kernel)

    def reset_buffers(self) -> None:
        """Fill the buffers anew, which a model built on the meta device has not filled."""

    def _apply(self, fn, recurse=True):
        unfilled = any(buffer.is_meta for buffer in self.buffers(recurse=False))
        super()._apply(fn, recurse)
        if unfilled and not any(buffer.is_meta for buffer in self.buffers(recurse=False)):
            with torch.no_grad():
                self.reset_buffers()
        return self

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        causal: bool = True,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend over a whole sequence: (B, H, N, D), (B, H, N, D), (B, H, N, M) -> (B, H, N, M).

        Args:
            q: its heads may be a multiple of those of k and v, which queries then share in
                groups (grouped-query attention).
            key_padding_mask: (B, N) bool, True where a key is padding and takes no part, whatever
                it holds. A query that sees no key gets 0.
        """
        raise NotImplementedError

    def init_state(
        self,
        batch_size: int,
        n_heads: int,
        head_dim: int,
        value_dim: int | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        max_len: int | None = None,
    ) -> Any:
        """The state before the first token.

        Args:
            n_heads: those of keys and values.
            max_len: positions that a state which grows has room for from the start.
        """
        raise NotImplementedError(f"{self.label} attention has no recurrent form")

    def step(self, state: Any, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Any]:
        """One causal position: q, k (B, H, D), v (B, H, M) -> y (B, H, M) and the next state.

        The given state stays as it was. Under autocast as exact as `forward`.
        """
        raise NotImplementedError(f"{self.label} attention has no recurrent form")

    def step_(self, state: Any, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Any]:
        """`step` without gradients that may reuse the memory of the given state, which must not be
        used again: what a decoder calls at every token."""
        return self.step(state, q, k, v)

    def prefill(
        self,
        state: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        key_padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """`step` for N positions at once: q, k (B, H, N, D), v (B, H, N, M) -> (B, H, N, M) and the
        state after them. Here it is `step` repeated.

        Args:
            key_padding_mask: (B, N) bool, True at positions that are padding: nothing of them
                enters the state.

        Raises:
            NotImplementedError: there is a mask, and the state is no NamedTuple of tensors (B, ...)
                of fixed shapes: define `prefill`.
        """
        y = [v.new_zeros(*q.shape[:2], 0, v.shape[-1])]
        if key_padding_mask is not None:
            q, k, v = (x.masked_fill(key_padding_mask[:, None, :, None], 0) for x in (q, k, v))
        for i in range(k.shape[2]):
            read, following = self.step(state, q[:, :, i], k[:, :, i], v[:, :, i])
            if key_padding_mask is not None:
                padding = key_padding_mask[:, i]
                following = _kept_at(padding, state, following)
                read = read.masked_fill(padding[:, None, None], 0)
            y.append(read.unsqueeze(2))
            state = following
        return torch.cat(y, dim=2), state

    @classmethod
    def peak_bytes(
        cls,
        *,
        batch_size: int,
        n_heads: int,
        seq_len: int,
        head_dim: int,
        itemsize: int,
        backward: bool,
        options: Options | None = None,
        kernel: str | None = None,
    ) -> int:
        """About the memory that `forward` (and its gradients) adds to the inputs, in bytes."""
        raise NotImplementedError

    @classmethod
    def operations(
        cls,
        *,
        seq_len: int,
        head_dim: int,
        causal: bool,
        options: Options | None = None,
        kernel: str | None = None,
    ) -> float:
        """About the floating-point operations of `forward` a head and sample, divided by the
        share of a matrix product's rate that they reach: what a run's predicted time is made of.
        """
        raise NotImplementedError


def _kept_at(padding: Tensor, before: Any, after: Any) -> Any:
    """A state after a step, but for the rows of padding (B,), which keep that before it."""
    fields = [*zip(before, after, strict=True)]
    if not all(isinstance(y, Tensor) and y.dim() and x.shape == y.shape for x, y in fields):
        raise NotImplementedError(
            f"{type(after).__name__} holds more than tensors (B, ...) of fixed shapes: "
            "define prefill for it"
        )
    return type(after)(
        *(torch.where(padding.view(-1, *[1] * (y.dim() - 1)), x, y) for x, y in fields)
    )


def repeat_heads(x: Tensor, n_heads: int) -> Tensor:
    """Keys or values (B, G, N, D) -> (B, H, N, D), each of G heads for H / G queries' heads."""
    return x if x.shape[1] == n_heads else x.repeat_interleave(n_heads // x.shape[1], dim=1)


def check_qkv(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, key_padding_mask: Tensor | None
) -> None:
    """Refuse shapes that no mechanism can attend over.

    Raises:
        ValueError: a tensor is not (B, H, N, D), sizes disagree, or causal meets queries and keys
            of different lengths.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4:
            raise ValueError(f"{name} has shape {tuple(x.shape)}: use (batch, heads, length, size)")
    if q.shape[0] != k.shape[0] or q.shape[-1] != k.shape[-1]:
        raise ValueError(
            f"q {tuple(q.shape)} and k {tuple(k.shape)} differ in batch or size: give both the same"
        )
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"q has {q.shape[1]} heads and k {k.shape[1]}: give q as many, or a multiple"
        )
    if k.shape[:3] != v.shape[:3]:
        raise ValueError(
            f"k {tuple(k.shape)} and v {tuple(v.shape)} differ in batch, heads or length: "
            "give both the same"
        )
    if causal and q.shape[2] != k.shape[2]:
        raise ValueError(
            f"causal attention of {q.shape[2]} queries over {k.shape[2]} keys is not defined: "
            "use causal=False for cross-attention"
        )
    if key_padding_mask is not None and (
        key_padding_mask.dtype != torch.bool or key_padding_mask.shape != (k.shape[0], k.shape[2])
    ):
        raise ValueError(
            f"key_padding_mask is {key_padding_mask.dtype} {tuple(key_padding_mask.shape)}: "
            f"use bool {(k.shape[0], k.shape[2])}, True where a key is padding"
        )


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
        first, *ends = cu_seqlens.tolist()
        starts = [first, *ends][: len(ends)]
        if first != 0:
            raise ValueError(f"cu_seqlens begins with {first}: use 0")
        if any(end < start for start, end in zip(starts, ends, strict=True)):
            raise ValueError(
                f"cu_seqlens {[first, *ends]} falls: each sequence ends after it begins"
            )
        if (ends or [0])[-1] != total:
            raise ValueError(f"cu_seqlens ends with {(ends or [0])[-1]}: use the {total} positions")
        # Lengths of one group differ by less than a factor of 2, and so at most half is padding.
        groups: dict[int, list[tuple[int, int]]] = {}
        for start, end in zip(starts, ends, strict=True):
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
