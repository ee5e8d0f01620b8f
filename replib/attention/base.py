"""What every attention mechanism is.

B batch, H heads, N sequence length, D query/key size per head, M value size per head.
Queries and keys are (B, H, N, D), values and outputs (B, H, N, M).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

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
    it overrides where it can be faster.

    A state is a tuple, named or not, of tensors (B, ...) or (), and of numbers. It is a value:
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
    causal: ClassVar[bool] = True
    """Whether it can hide later positions; one that cannot is none for a decoder's tokens."""
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

    def over(
        self, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
    ) -> Callable[[Tensor], Tensor]:
        """`forward`, not causal, to keys and values that stay, (B, H, L, D) -> (B, H, L, M): what
        can be computed of them beforehand is."""
        masking = {} if key_padding_mask is None else {"key_padding_mask": key_padding_mask}
        return partial(self, k=k, v=v, causal=False, **masking)

    def share_with(self, first: "Attention") -> None:
        """Take from the mechanism of a model's first layer what all layers have in common; here
        nothing."""

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


def _kept_at(padding: Tensor, before: Any, after: Any) -> Any:
    """A state after a step, but for the rows of padding (B,), which keep that before it."""
    fields = [*zip(before, after, strict=True)]
    if not all(isinstance(y, Tensor) and y.dim() and x.shape == y.shape for x, y in fields):
        raise NotImplementedError(
            f"{type(after).__name__} holds more than tensors (B, ...) of fixed shapes: "
            "define prefill for it"
        )
    kept = (torch.where(padding.view(-1, *[1] * (y.dim() - 1)), x, y) for x, y in fields)
    return state_with(after, kept)


def state_with(state: Any, fields: Iterable[Any]) -> Any:
    """A state of the kind of another, a NamedTuple or a plain tuple, with other fields."""
    return type(state)(*fields) if hasattr(state, "_fields") else type(state)(fields)


def repeat_heads(x: Tensor, n_heads: int) -> Tensor:
    """Keys or values (B, G, N, D) -> (B, H, N, D), each of G heads for H / G queries' heads."""
    return x if x.shape[1] == n_heads else x.repeat_interleave(n_heads // x.shape[1], dim=1)


def check_qkv(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, key_padding_mask: Tensor | None
) -> None:
    """Refuse tensors that no mechanism can attend over.

    Raises:
        ValueError: a tensor is not (B, H, N, D) or not of floating point numbers, sizes disagree,
            or causal meets queries and keys of different lengths.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4:
            raise ValueError(f"{name} has shape {tuple(x.shape)}: use (batch, heads, length, size)")
        if not x.is_floating_point():
            raise ValueError(f"{name} is {x.dtype}: use floating point numbers, as torch.float32")
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
