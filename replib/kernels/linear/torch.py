"""Linear attention in plain torch operations, where causal a chunk of positions at a time.

B batch, H heads, N sequence length, C chunk, D query/key size per head, M value size per head.
With the sums S = Σ φ(k_j) v_jᵀ and z = Σ φ(k_j) over all earlier chunks (Katharopoulos et al. 2020,
eq. 18-19), and W = tril(φ(Q) φ(K)ᵀ), a chunk is

    y = (W V + φ(Q) S) / (den + eps),        den = W 1 + φ(Q) z.

The backward pass is closed-form and goes through the chunks once, from the last to the first. With
G = dy / den, P = G Vᵀ, h = rows of W ⊙ P and of φ(Q) ⊙ G Sᵀ, summed, / den, A = tril(P - h 1ᵀ), and
R = Σ φ(q_i) G_iᵀ and r = Σ h_i φ(q_i) over all later chunks:

    dφ(Q) = A φ(K) + G Sᵀ - h zᵀ,     dφ(K) = Aᵀ φ(Q) + V Rᵀ - r,     dV = Wᵀ G + φ(K) R

h is that of G ⊙ y too, but y may be rounded to bfloat16, and nearly all of dφ(Q) cancels where
values have a mean: what is left would be that rounding.

S and z are kept at the start of each block of chunks, and found again for the others: what is kept
takes about half of what q does, where one S for each chunk would take N·D·M / C. Where it is not
causal, S and R are those of the whole sequence, and no product with a triangle is left.
"""

import torch
from torch import Tensor

from replib.kernels.linear.operator import attend

# Short chunks spend least on the (C, C) products, long ones on calls. With this many heads or
# more in a batch, a call is long enough for the short chunk.
SHORT_CHUNK_LEN, LONG_CHUNK_LEN = 32, 64
MANY_HEADS = 32
KEEPS_Y = False  # for the backward pass
STATE_BYTES = 4  # of a number of a state, or a denominator


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, eps: float, elu1: bool, causal: bool
) -> Tensor:
    """Normalised linear attention; sums in float32 or wider."""
    return attend(q, k, v, "torch", eps, elu1, causal)


def results(q: Tensor, k: Tensor, v: Tensor, elu1: bool, causal: bool) -> tuple[Tensor, ...]:
    """Room for y, den and what else is kept: causal S and z at the start of each block of chunks,
    else those of the whole sequence, and features that are not q and k themselves."""
    (b, h, n, d), m, options = q.shape, v.shape[-1], _options(q)
    y = torch.empty((b, h, n, m), dtype=v.dtype, device=v.device)
    den = torch.empty((b, h, n, 1), **options)
    rows = -(-n // _block_len(m)) * d if causal else d
    kept_s, kept_z = torch.empty((b, h, rows, m), **options), torch.empty((b, h, rows), **options)
    if causal or not (elu1 or q.dtype != den.dtype or k.dtype != den.dtype):
        return y, den, kept_s, kept_z
    return y, den, kept_s, kept_z, *(torch.empty(x.shape, **options) for x in (q, k))


def gradients(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """Room for dq, dk and dv."""
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))


def forward(q, k, v, *results: Tensor, eps: float, elu1: bool, causal: bool) -> bool:
    """Write the results; whether q, k and v let all of them be finite."""
    return (_causal if causal else _not_causal)(q, k, v, *results, eps=eps, elu1=elu1)


def backward(dy, q, k, v, *kept: Tensor, eps: float, elu1: bool, causal: bool):
    """dq, dk and dv, and whether q, k and v let all of them be finite."""
    return (_causal_backward if causal else _not_causal_backward)(dy, q, k, v, *kept, elu1=elu1)


def _not_causal(q, k, v, y, den, kept_s, kept_z, *features, eps, elu1):
    for x, phi in zip((q, k), features, strict=False):
        if elu1:
            x = x.to(phi.dtype)
            torch.clamp(x, max=0, out=phi).exp_().add_(x.clamp(min=0))
        else:
            phi.copy_(x)
    q, k = features or (q, k)
    s, z = kept_s, kept_z.unsqueeze(2)  # (B, H, R, M), (B, H, 1, R)
    torch.matmul(k.mT, v.to(k.dtype), out=s)
    torch.sum(k, 2, keepdim=True, out=z)
    torch.matmul(q, z.mT, out=den).add_(eps)
    if y.dtype == den.dtype:
        torch.matmul(q, s, out=y).div_(den)
    else:
        y.copy_((q @ s).div_(den))
    return True


def _not_causal_backward(dy, q, k, v, den, kept_s, kept_z, *features, elu1):
    phi_q, phi_k = features or (q, k)
    s, z = kept_s, kept_z.unsqueeze(2)
    g = dy.to(den.dtype) / den  # (B, H, N, M)
    d_phi_q = g @ s.mT
    g_z = (phi_q * d_phi_q).sum(-1, keepdim=True).div_(den).neg_()  # (B, H, N, 1)
    ds, dz = phi_q.mT @ g, g_z.mT @ phi_q  # (B, H, R, M), (B, H, 1, R)
    d_phi_q.addcmul_(g_z, z)
    d_phi_k = (v.to(g.dtype) @ ds.mT).add_(dz)
    if elu1:
        d_phi_q.mul_(phi_q.clamp(max=1))  # φ' = min(φ, 1)
        d_phi_k.mul_(phi_k.clamp(max=1))
    dv = phi_k @ ds
    found = zip((d_phi_q, d_phi_k, dv), (q, k, v), strict=True)
    return tuple(dx.to(x.dtype) for dx, x in found), True


class _Buffers:
    """What a chunk of c positions needs, allocated once: fresh tensors would page-fault at each.

    They are (B·H, c, size), and contiguous, which products want of what they write to.
    """

    def __init__(self, q: Tensor, v: Tensor, c: int, *, backward: bool):
        self.shape, (d, m) = q.shape[:2], (q.shape[-1], v.shape[-1])
        heads, options = self.shape.numel(), _options(q)

        def new(size: int) -> Tensor:
            return torch.empty(heads, c, size, **options)

        self.queries, self.keys, self.scratch = new(d), new(d), new(d)
        self.values, self.out = new(m), new(m)
        self.weights, self.column, self.part = new(c), new(1), new(1)
        if backward:
            self.grad, self.d_weights, self.d_phi = new(m), new(c), new(d)
            self.products = new(c)

    def by_head(self, x: Tensor) -> Tensor:
        """(B·H, c, size) as (B, H, c, size)."""
        return x.view(*self.shape, *x.shape[1:])

    def features(self, x: Tensor, out: Tensor, elu1: bool) -> Tensor:
        """φ(x) of a chunk (B, H, c, D), in `out` (B·H, c, D)."""
        by_head = self.by_head(out)
        if not elu1:
            by_head.copy_(x)
            return out
        if x.dtype != out.dtype:
            x = by_head.copy_(x)
        torch.clamp(x, min=0, out=self.by_head(self.scratch))
        torch.clamp(x, max=0, out=by_head)
        return out.exp_().add_(self.scratch)

    def values_of(self, v: Tensor) -> Tensor:
        """A chunk (B, H, c, M) of values as (B·H, c, M), without a copy where they lie so."""
        merges = v.stride(0) == v.shape[1] * v.stride(1) and v.stride(3) == 1
        if v.dtype == self.values.dtype and merges:
            return v.flatten(0, 1)
        self.by_head(self.values).copy_(v)
        return self.values

    def lower_weights(self, queries: Tensor, keys: Tensor) -> Tensor:
        """W (B·H, c, c)."""
        return torch.bmm(queries, keys.mT, out=self.weights).tril_()


def _options(q: Tensor) -> dict:
    return {"dtype": torch.promote_types(q.dtype, torch.float32), "device": q.device}


def _chunk_len(q: Tensor) -> int:
    b, h, n, _ = q.shape
    return min(n, SHORT_CHUNK_LEN if b * h >= MANY_HEADS else LONG_CHUNK_LEN)


def _block_len(m: int) -> int:
    """Positions of a block: its S takes about half of what its q does."""
    return LONG_CHUNK_LEN * max(1, round(2 * m / LONG_CHUNK_LEN))


def _chunks(c: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return list(zip(*(x.split(c, dim=2) for x in tensors), strict=True))


def _causal(q, k, v, y, denominator, kept_s, kept_z, *, eps, elu1):
    (b, h, _, d), m, c, options = q.shape, v.shape[-1], _chunk_len(q), _options(q)
    buffers = _Buffers(q, v, c, backward=False)
    s, z = torch.zeros(b * h, d, m, **options), torch.zeros(b * h, 1, d, **options)
    by_block = _by_block(kept_s, kept_z, q.shape[-1])
    for i, (q_c, k_c, v_c, y_c, den_c) in enumerate(_chunks(c, q, k, v, y, denominator)):
        if q_c.shape[2] < c:
            buffers = _Buffers(q, v, q_c.shape[2], backward=False)
        if i * c % _block_len(m) == 0:
            for kept, x in zip(by_block[i * c // _block_len(m)], (s, z), strict=True):
                kept.copy_(x)
        queries = buffers.features(q_c, buffers.queries, elu1)
        keys, values = buffers.features(k_c, buffers.keys, elu1), buffers.values_of(v_c)
        weights = buffers.lower_weights(queries, keys)
        sums = torch.bmm(weights, values, out=buffers.out).baddbmm_(queries, s)
        from_z = torch.mul(queries, z, out=buffers.scratch)
        den = torch.sum(weights, -1, keepdim=True, out=buffers.column)
        den.add_(torch.sum(from_z, -1, keepdim=True, out=buffers.part)).add_(eps)
        den_c.copy_(buffers.by_head(den))
        torch.div(buffers.by_head(sums), den_c, out=y_c)
        s.baddbmm_(keys.mT, values)
        z.add_(keys.sum(1, keepdim=True))
    return _finite(s, z, denominator)


def _by_block(kept_s: Tensor, kept_z: Tensor, d: int) -> list[tuple[Tensor, Tensor]]:
    """S (B·H, D, M) and z (B·H, 1, D) at the start of each block."""
    s, z = kept_s.flatten(0, 1).split(d, 1), kept_z.flatten(0, 1).unsqueeze(1).split(d, 2)
    return [*zip(s, z, strict=True)]


def _finite(*sums: Tensor) -> bool:
    total = sum(x.sum() for x in sums)
    return total.is_meta or total.isfinite().item()


def _causal_backward(dy, q, k, v, denominator, kept_s, kept_z, *, elu1):
    c, found = _chunk_len(q), gradients(q, k, v)
    chunks = _chunks(c, dy, q, k, v, denominator, *found)
    block = _block_len(v.shape[-1]) // c
    whole = buffers = _Buffers(q, v, c, backward=True)
    if chunks[-1][0].shape[2] < c:
        buffers = _Buffers(q, v, chunks[-1][0].shape[2], backward=True)
    by_block = _by_block(kept_s, kept_z, q.shape[-1])
    # Of the chunks of a block but the last: S and z after them.
    after_s, after_z = (x.new_empty(block - 1, *x.shape) for x in by_block[0])
    r_s, r_z = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in by_block[0])
    for first in reversed(range(0, len(chunks), block)):
        here = chunks[first : first + block]
        before = [by_block[first // block]]
        for (_, _, k_c, v_c, *_), *after in zip(here[:-1], after_s, after_z, strict=False):
            keys, values = whole.features(k_c, whole.keys, elu1), whole.values_of(v_c)
            torch.baddbmm(before[-1][0], keys.mT, values, out=after[0])
            torch.add(before[-1][1], keys.sum(1, keepdim=True), out=after[1])
            before.append(tuple(after))
        for (s, z), chunk in reversed([*zip(before, here, strict=True)]):
            _chunk_backward(buffers, s, z, r_s, r_z, *chunk, elu1)
            buffers = whole
    return found, _finite(r_s, r_z)


def _chunk_backward(buffers, s, z, r_s, r_z, dy_c, q_c, k_c, v_c, den_c, dq_c, dk_c, dv_c, elu1):
    """The gradients of a chunk; R and r become those that the chunk before needs."""
    by_head = buffers.by_head
    queries = buffers.features(q_c, buffers.queries, elu1)
    keys, values = buffers.features(k_c, buffers.keys, elu1), buffers.values_of(v_c)
    torch.div(dy_c, den_c, out=by_head(buffers.grad))
    g = buffers.grad

    weights = buffers.lower_weights(queries, keys)
    d_values = torch.bmm(weights.mT, g, out=buffers.out).baddbmm_(keys, r_s)
    dv_c.copy_(by_head(d_values))

    a = torch.bmm(g, values.mT, out=buffers.d_weights)
    d_phi = torch.bmm(g, s.mT, out=buffers.d_phi)
    h = torch.sum(torch.mul(weights, a, out=buffers.products), -1, keepdim=True, out=buffers.column)
    from_s = torch.mul(queries, d_phi, out=buffers.scratch)
    h.add_(torch.sum(from_s, -1, keepdim=True, out=buffers.part))
    by_head(h).div_(den_c)
    a.sub_(h).tril_()
    d_phi.baddbmm_(a, keys).addcmul_(h, z, value=-1)
    _through_feature_map(buffers, d_phi, queries, dq_c, elu1)

    torch.bmm(a.mT, queries, out=d_phi).baddbmm_(values, r_s.mT).sub_(r_z)
    _through_feature_map(buffers, d_phi, keys, dk_c, elu1)

    r_s.baddbmm_(queries.mT, g)
    r_z.add_(queries.mul_(h).sum(1, keepdim=True))


def _through_feature_map(buffers, d_phi, phi, out, elu1):
    if elu1:  # φ' = min(φ, 1)
        slopes = torch.clamp(phi, max=1, out=buffers.scratch)
        torch.mul(buffers.by_head(d_phi), buffers.by_head(slopes), out=out)
    else:
        out.copy_(buffers.by_head(d_phi))


def operations_per_token(d: int, m: int, c: int, backward: bool) -> float:
    """Floating-point operations of the products that a token and head take, causal, of one pass:
    the equations above, and S found again for at most all chunks."""
    if backward:
        return 10 * d * m + 6 * c * d + 4 * c * m
    return 4 * d * m + 2 * c * (d + m)


def bytes_per_token(d: int, m: int, itemsize: int, backward: bool) -> float:
    """Bytes that a token and head move to and from memory, each tensor once, in one pass; S and z
    that are kept take about half of what q does, and are counted so."""
    kept = d * STATE_BYTES / 2
    if backward:  # q, k, v, dy and den in, dq, dk and dv out
        return (4 * d + 3 * m) * itemsize + STATE_BYTES + kept
    return (2 * d + 2 * m) * itemsize + STATE_BYTES + kept  # q, k and v in, y and den out
