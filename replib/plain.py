"""Linear attention and the delta rule in operations of torch, and what they and the kernels need to
be exact.

B batch, H heads, N sequence length, L number of queries, R feature size, M value size. Everything
here has derivatives of any order by autograd alone; `replib.kernels` has the same, faster.
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

CHUNK_LEN = 64


def without_autocast(device_type: str) -> AbstractContextManager:
    """A context without autocast: 20 µs less where there is none."""
    available = torch.amp.is_autocast_available(device_type)  # "meta" has none
    if available and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def all_finite(x: Tensor) -> bool:
    """Whether no number is NaN or infinite: one pass. A sum beyond float32 reads as infinite, and a
    tensor without numbers as finite."""
    if x.is_meta:
        return True
    wide = torch.promote_types(x.dtype, torch.float32)
    return math.isfinite(x.detach().sum(dtype=wide).item())


def without_what_is_not_finite(
    q: Tensor, k: Tensor, v: Tensor, elu1: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k and v with 0 for what is not finite, and what is to be added to the causal y of them.

    In a product with a triangle, NaN and infinities of a value reach rows that do not see it, as
    0·NaN is NaN; what is added reaches those that do. With φ = elu + 1, a key of -∞ is one whose
    feature is 0.
    """
    bad_q, bad_k, bad_v = (~x.isfinite() for x in (q, k, v))
    if elu1:
        bad_q, bad_k = bad_q & (q != -torch.inf), bad_k & (k != -torch.inf)
    finite = v.masked_fill(bad_v, 0)
    nan = torch.full((), torch.nan, dtype=v.dtype, device=v.device)
    seen = (v - finite).masked_fill(bad_k.any(-1, keepdim=True), torch.nan).detach().cumsum(2)
    seen = torch.where(bad_q.any(-1, keepdim=True), nan, seen)
    return q.masked_fill(bad_q, 0), k.masked_fill(bad_k, 0), finite, seen


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, eps: float, elu1: bool, causal: bool
) -> Tensor:
    """Normalised linear attention, causal a chunk of positions at a time: with the sums
    S = Σ φ(k_j) v_jᵀ and z = Σ φ(k_j) over all earlier chunks (Katharopoulos et al. 2020, eq.
    18-19), and W = tril(φ(Q) φ(K)ᵀ), a chunk is y = (W V + φ(Q) S) / (W 1 + φ(Q) z + eps).

    q, k (B, H, N, R), v (B, H, N, M) -> (B, H, N, M); O(N) in memory. `elu1` says whether
    φ = elu + 1 is still to be applied, or q and k are features already.
    """
    dtype, wide = v.dtype, torch.promote_types(q.dtype, torch.float32)
    with without_autocast(q.device.type):
        q, k, v = (x.to(wide) for x in (q, k, v))
        if elu1:
            q, k = (torch.exp(x.clamp(max=0)) + torch.relu(x) for x in (q, k))
        if not causal:
            den = (q * k.sum(2, keepdim=True)).sum(-1, keepdim=True)
            return (q @ (k.mT @ v) / (den + eps)).to(dtype)
        s, z, y = k[:, :, :1].mT @ v[:, :, :1] * 0, k[:, :, :1] * 0, []
        for q_c, k_c, v_c in zip(*(x.split(CHUNK_LEN, 2) for x in (q, k, v)), strict=True):
            weights = (q_c @ k_c.mT).tril()
            den = weights.sum(-1, keepdim=True) + (q_c * z).sum(-1, keepdim=True) + eps
            y.append((weights @ v_c + q_c @ s) / den)
            s, z = s + k_c.mT @ v_c, z + k_c.sum(2, keepdim=True)
        return torch.cat(y, 2).to(dtype)


def delta_write(s: Tensor, key: Tensor, value: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
    """The error of a write and the memory Wᵀ after it: s (B·H, R, M), key (B·H, 1, R), value
    (B·H, 1, M), strength (B·H, 1, 1)."""
    error = torch.baddbmm(value, key, s, alpha=-1)
    return error, torch.baddbmm(s, key.mT, strength * error)


def delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """y_i = W_i q_i after each write, one after the other; no size is 0.

    q, k (B, H, N, R), v (B, H, N, M), beta (B, H, N) -> (B, H, N, M) in the dtype of v.
    """
    return delta_writes(q, k, v, beta)[0]


def delta_writes(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, every: int | None = None
) -> tuple[Tensor, ...]:
    """`delta_rule`, and where `every` is given the errors of the writes (B, H, N, M) and the memory
    before each so many positions (B, H, count, R, M)."""
    wide = torch.promote_types(torch.promote_types(q.dtype, v.dtype), torch.float32)
    heads = q.shape[:2]
    y, errors, memories = [], [], []
    with without_autocast(q.device.type):
        s = torch.zeros(heads.numel(), q.shape[-1], v.shape[-1], dtype=wide, device=q.device)
        # (B·H, 1, size) of each position. A slice at each would cost O(N²) in the backward pass,
        # `unbind` costs it once.
        tensors = (q, k, v, beta.unsqueeze(-1))
        rows = (x.to(wide).flatten(0, 1).unsqueeze(2).unbind(1) for x in tensors)
        for i, (query, key, value, strength) in enumerate(zip(*rows, strict=True)):
            if every and i % every == 0:
                memories.append(s.unflatten(0, heads))
            error, s = delta_write(s, key, value, strength)
            y.append(torch.bmm(query, s))
            if every:
                errors.append(error)
    y = torch.cat(y, dim=1).unflatten(0, heads).to(v.dtype)
    if not every:
        return (y,)
    return y, torch.cat(errors, dim=1).unflatten(0, heads), torch.stack(memories, dim=2)


def delta_read_weights(q: Tensor, k: Tensor, beta: Tensor) -> Tensor:
    """How much of each value a query reads after the last write of the delta rule, y = p V: the
    query passes the writes from the last to the first.

    q (..., L, R), k (..., N, R), beta (..., N) -> p (..., L, N).
    """
    with without_autocast(q.device.type):
        p = [q @ k[..., :0, :].mT]
        for key, rate in zip(k.unbind(-2)[::-1], beta.unbind(-1)[::-1], strict=True):
            weight = q @ key.unsqueeze(-1) * rate[..., None, None]  # (..., L, 1)
            q = q - weight * key.unsqueeze(-2)
            p.append(weight)
        return torch.cat(p[::-1], dim=-1)


def fwm_retrieve(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """What queries read after the last write of a fast weight memory, which is divided by its norm
    where that is above 1, but for the first write, as published.

    q (P, L, R), k (P, N, R), features already, v (P, N, M), beta (P, N) -> (P, L, M).
    """
    with without_autocast(q.device.type):
        s = k[:, :1].mT @ v[:, :1] * 0  # (P, R, M)
        rows = (x.unsqueeze(2).unbind(1) for x in (k, v, beta.unsqueeze(-1)))
        for i, (key, value, strength) in enumerate(zip(*rows, strict=True)):
            _, s = delta_write(s, key, value, strength)
            if i:
                s = s / torch.linalg.vector_norm(s, dim=(1, 2), keepdim=True).clamp(min=1)
        return q @ s
