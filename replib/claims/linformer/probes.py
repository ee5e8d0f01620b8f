"""What a mechanism sees: of the future, of padding, and how much of a matrix few slots hold.

B batch, H heads, N sequence length, D size, K slots.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from replib.attention.linformer import linformer_attention

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def leak(attend: Attend, n: int, head_dim: int = 8, seed: int = 0) -> Tensor:
    """How much output i depends on value j, the largest derivative, (N, N): what is right of the
    diagonal is of the future."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(1, 1, n, head_dim, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    jacobian = torch.autograd.functional.jacobian(lambda v: attend(q, k, v), v)
    return jacobian.abs().amax((0, 1, 3, 4, 5, 7))


def slots_masked(n: int, k: int, seed: int = 1) -> Attend:
    """Linformer attention with a causal mask over its (N, K) weights."""
    e, f = projections(n, k, seed)
    return lambda *qkv: linformer_attention(*qkv, e, f, mask_slots=True)


def projections(n: int, k: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Random E and F (K, N), as of the paper's proof: normal, of variance 1/K."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(k, n, generator=generator, dtype=torch.float64) / k**0.5 for _ in range(2)
    )


PADDING = ("hidden before E and F", "not hidden", "hidden before a bias")


def padding_change(how: str, n: int, n_padding: int, k: int, seed: int = 0) -> float:
    """How much the outputs of a sentence of n tokens change where padding is put behind it, the
    largest change over the largest output.

    Args:
        how: one of PADDING; with a bias of the keys and values after the mask, padding is no longer
            0 where it meets E and F.

    Raises:
        ValueError: `how` is another.
    """
    if how not in PADDING:
        raise ValueError(f"{how!r}: use {', '.join(PADDING)}")
    generator = torch.Generator().manual_seed(seed)
    whole = n + n_padding
    q, keys, values = (
        torch.randn(1, 1, whole, 8, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    bias = torch.randn(2, 8, generator=generator, dtype=torch.float64)
    e, f = projections(whole, k, seed + 1)
    mask = (torch.arange(whole) >= n)[None]
    q = q[:, :, :n]
    masking = {"key_padding_mask": mask} if how == PADDING[0] else {}
    given = keys, values
    if how == PADDING[2]:
        hidden = mask[:, None, :, None]
        given = keys.masked_fill(hidden, 0) + bias[0], values.masked_fill(hidden, 0) + bias[1]
        keys, values = keys + bias[0], values + bias[1]
    padded = linformer_attention(q, *given, e, f, **masking)
    alone = linformer_attention(q, keys[:, :, :n], values[:, :, :n], e, f)
    return ((padded - alone).abs().max() / alone.abs().max()).item()


def spectrum(weights: Tensor) -> Tensor:
    """The share of the sum of all singular values that the first hold, (min(N', N),), of weights
    (N', N): the paper's figure 1."""
    values = torch.linalg.svdvals(weights.double())
    return values.cumsum(0) / values.sum()


def errors_of_rank(weights: Tensor, v: Tensor, ks: list[int], seed: int = 0) -> list[dict]:
    """The relative error of P V, (N, N) and (N, D), of the best rank k, and of a random projection
    P Rᵀ R V with R (k, N) normal of variance 1/k (the paper's theorem 1), a mean of 8 draws."""
    u, s, vh = torch.linalg.svd(weights.double())
    right, found = weights.double() @ v.double(), []
    generator = torch.Generator().manual_seed(seed)
    for k in ks:
        best = u[:, :k] * s[:k] @ vh[:k] @ v.double()
        drawn = []
        for _ in range(8):
            r = torch.randn(k, len(v), generator=generator, dtype=torch.float64) / k**0.5
            drawn.append((weights.double() @ r.T @ (r @ v.double()) - right).norm())
        for name, error in (
            ("best of rank k", (best - right).norm()),
            ("random projection", torch.stack(drawn).mean()),
        ):
            found.append({"k": k, "how": name, "error": (error / right.norm()).item()})
    return found
