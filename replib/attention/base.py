"""What every attention mechanism is.

B batch, H heads, N sequence length, D query/key size per head, M value size per head.
Queries and keys are (B, H, N, D), values and outputs (B, H, N, M).
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """A mechanism that mixes values by the similarity of queries and keys.

    A subclass defines `forward`; one with a recurrent form sets `recurrent = True` and defines
    `init_state` and `step`, and `forward` of a whole causal sequence then equals `step` repeated.
    A state is a value: `step` and `prefill` leave the given one as it was, so that several
    continuations may start from one state, and gradients flow through it. `step_` may reuse the
    memory of the state it is given.
    A new mechanism is one file and one line in `replib.attention.ATTENTION`.
    """

    label: ClassVar[str]
    """What charts and controls call it."""
    implementations: ClassVar[tuple[str, ...]]
    """Ways to compute the same function; without a name it is the first, or the fastest for the
    tensors. One compiled for a kind of device is named after it ("cpu", "cuda")."""
    recurrent: ClassVar[bool] = False
    sources: ClassVar[tuple[str, ...]] = ()
    """Modules besides its own that compute it: an edit there gives its runs a new identity."""

    def __init__(self, *, implementation: str | None = None):
        super().__init__()
        self.resolve(implementation)
        self.implementation = implementation

    @classmethod
    def resolve(cls, implementation: str | None) -> str:
        """The implementation meant by a name, where None is the default.

        Raises:
            ValueError: the mechanism has no such implementation.
        """
        if implementation is None:
            return cls.implementations[0]
        if implementation not in cls.implementations:
            known = ", ".join(cls.implementations)
            raise ValueError(
                f"{cls.label} attention has no implementation {implementation!r}: use {known}"
            )
        return implementation

    @classmethod
    def unavailable(
        cls, implementation: str | None, *, device_type: str, dtype: torch.dtype, head_dim: int
    ) -> str | None:
        """Why an implementation cannot take tensors of this kind, with what to do; None where it
        can."""
        return None

    @classmethod
    def for_model(
        cls, *, n_heads: int, head_dim: int, max_len: int, implementation: str | None = None
    ) -> "Attention":
        """Build the mechanism for a model's sizes, which those with parameters depend on."""
        return cls(implementation=implementation)

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
        state after them.

        Args:
            key_padding_mask: (B, N) bool, True at positions that are padding: nothing of them
                enters the state.
        """
        raise NotImplementedError(f"{self.label} attention has no recurrent form")

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
        implementation: str | None = None,
    ) -> int:
        """About the memory that `forward` (and its gradients) adds to the inputs, in bytes."""
        raise NotImplementedError

    @classmethod
    def operations(
        cls, *, seq_len: int, head_dim: int, causal: bool, implementation: str | None = None
    ) -> float:
        """About the floating-point operations of `forward` a head and sample, divided by the
        share of a matrix product's rate that they reach: what a run's predicted time is made of.
        """
        raise NotImplementedError


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
