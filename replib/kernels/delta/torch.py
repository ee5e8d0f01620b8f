"""The delta rule in plain torch operations, a chunk of positions at a time.

B batch, H heads, N sequence length, C chunk, G chunks in a block, R feature size, M value size.
Q, K (C, R) and V (C, M) are the rows of a chunk, β its write strengths, and S = Wᵀ (R, M) is the
memory before it. stril is the part below the diagonal, tril includes the diagonal.

Inside a chunk each write sees the earlier ones, v̄_i = (S + Σ_{j<i} β_j k_j e_jᵀ)ᵀ k_i, so that the
errors e_i = v_i - v̄_i solve a triangular system (the UT transform of Yang et al. 2024,
*Parallelizing Linear Transformers with the Delta Rule over Sequence Length*, section 3):

    T = (I + stril(K Kᵀ) β)⁻¹
    E = T (V - K S)
    Y = Q S + tril(Q Kᵀ) β E
    S ← S + Kᵀ β E

Only E and S wait for the chunk before; the rest is done for the chunks of a block at once.

The backward pass is closed-form. It keeps E, and S at the start of each block alone, so that memory
grows as N·(R + M) and never as N·R·M. From the last chunk to the first, with dS the gradient by
the memory after the chunk, U = β E, and T = (I + β stril(K Kᵀ))⁻¹:

    G = Tᵀ (tril(Q Kᵀ)ᵀ dY + K dS)          dV = β G,   dβ = rows of E ⊙ G, summed
    dQ = dY Sᵀ + tril(dY Uᵀ) K
    dK = U dSᵀ - dV Sᵀ + tril(dY Uᵀ)ᵀ Q - (Z + Zᵀ) K,   Z = stril(dV Uᵀ)
    dS ← dS + Qᵀ dY - Kᵀ dV

Where only the last memory is read, S need not be formed: y = p V, where the query passes the
chunks from the last to the first, and each gives its part of p and changes q (`read_weights`):

    T = (I + β stril(K Kᵀ))⁻¹,     x = q Kᵀ T,     p = x β,     q ← q - p K

and its gradient goes back from the first to the last, starting from dq = 0:

    dp ← dp - dq Kᵀ,     dr = dp β Tᵀ,     Z = stril(xᵀ dr),     dq ← dq + dr K
    dβ = Σ_l dp ⊙ x - rows of Z ⊙ K Kᵀ, summed
    dK = drᵀ q - pᵀ dq - (β Z + (β Z)ᵀ) K,   with q before the chunk and dq after it

Only x, q and dp, dq wait for the chunk before; all else is done for all chunks at once.
"""

import math

import torch
from torch import Tensor

from replib import plain
from replib.kernels.library import operator
from replib.plain import all_finite, without_autocast

# Short chunks spend least on (C, C) products, long ones on calls.
CHUNK_LEN = 32
# A block has the chunks that give a call this many matrix products; more would leave the cache.
PRODUCTS_PER_CALL = 64


def delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """y_i = W_i q_i after each write; sums in float32 or wider. No size is 0.

    q, k (B, H, N, R), v (B, H, N, M), beta (B, H, N) -> (B, H, N, M) in the dtype of v.
    """
    return _chunked(q, k, v, beta)


def retrieve(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """y = W_N q after the last write; sums in float32 or wider. No size is 0.

    q (B, H, L, R), k (B, H, N, R), v (B, H, N, M), beta (B, H, N) -> (B, H, L, M) in v's dtype.
    """
    wide = _wide(q, v)
    with without_autocast(q.device.type):
        if q.shape[2] <= q.shape[3]:
            return (read_weights(q, k, beta, dtype=wide) @ v.to(wide)).to(v.dtype)
        # The unit vectors are fewer, and read Wᵀ.
        units = torch.eye(q.shape[3], dtype=wide, device=q.device).expand(*q.shape[:2], -1, -1)
        return (q.to(wide) @ (read_weights(units, k, beta, dtype=wide) @ v.to(wide))).to(v.dtype)


def read_weights(q: Tensor, k: Tensor, beta: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """How much of each value a query reads after the last write, y = p V.

    q (B, H, L, R), k (B, H, N, R), beta (B, H, N) -> p (B, H, L, N), float32 or wider.
    """
    if 0 in (*q.shape, *k.shape):
        return q @ (k * beta.unsqueeze(-1)).mT
    wide, n, shape = dtype or _wide(q, k), k.shape[2], q.shape[:2]
    # A divisor of N saves a copy of k.
    c = next((c for c in range(CHUNK_LEN, 3 * CHUNK_LEN // 2) if n % c == 0), CHUNK_LEN)
    with without_autocast(q.device.type):
        q, k, beta = (x.to(wide).flatten(0, 1) for x in (q, k, beta))
        if n % c:
            k = torch.nn.functional.pad(k, (0, 0, 0, -n % c))
            beta = torch.nn.functional.pad(beta, (0, -n % c))
        p = _swept(q, k.unflatten(1, (-1, c)), beta.unflatten(1, (-1, c)))
    return p[..., :n].unflatten(0, shape)


def _wide(q: Tensor, v: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(q.dtype, v.dtype), torch.float32)


def operations_per_token(r: int, m: int, *, backward: bool) -> float:
    """Floating-point operations that a position and head take, of one pass, R = r and M = m."""
    c = CHUNK_LEN
    if backward:
        return 14 * r * m + c * (10 * r + 8 * m + c)
    return 6 * r * m + c * (4 * r + 4 * m + c)


def bytes_per_token(r: int, m: int, *, backward: bool) -> float:
    """Bytes of float32 that a position and head move to and from memory, each tensor once, in one
    pass."""
    if backward:  # q, k, dy, beta and the errors in, dq, dk, dv and dbeta out
        return 4 * (4 * r + 3 * m + 2)
    return 4 * (2 * r + 3 * m + 1)  # q, k, v and beta in, y and the errors out


def _sweep(q: Tensor, k: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
    """q (B·H, L, R), k (B·H, G, C, R), beta (B·H, G, C) -> p (B·H, L, G·C), and what is kept."""
    with without_autocast(q.device.type):
        rows = beta.unsqueeze(-1)  # (B·H, G, C, 1)
        similarity = (k @ k.mT).tril_(-1)
        identity = torch.eye(k.shape[2], dtype=k.dtype, device=k.device)
        transforms = torch.linalg.solve_triangular(
            rows * similarity, identity, upper=False, unitriangular=True
        )
        n_chunks, n_queries = k.shape[1], q.shape[1]
        queries = q.new_empty(len(q), n_chunks, n_queries, q.shape[2])
        x = q.new_empty(len(q), n_chunks, n_queries, k.shape[2])
        for c in reversed(range(n_chunks)):
            queries[:, c] = q
            x[:, c] = torch.bmm(torch.bmm(q, k[:, c].mT), transforms[:, c])
            if c:
                q = torch.baddbmm(q, x[:, c] * beta[:, c].unsqueeze(1), k[:, c], alpha=-1)
        p = (x * beta.unsqueeze(2)).transpose(1, 2).flatten(2)
    # `solve_triangular` gives columns that lie together, which `_empty_sweep` could not know.
    return p, queries, x, similarity, transforms.contiguous()


def _sweep_backward(dp, kept, q, k, beta):
    queries, x, similarity, transforms = kept
    with without_autocast(dp.device.type):
        # A copy, as it is changed below: with one query, the transpose needs none.
        dp = dp.unflatten(2, beta.shape[1:]).transpose(1, 2)  # (B·H, G, L, C)
        dp = dp.clone(memory_format=torch.contiguous_format)
        columns, dr = beta.unsqueeze(2), torch.empty_like(dp)
        after, dq = torch.empty_like(queries), torch.zeros_like(queries[:, 0])
        for c in range(k.shape[1]):
            after[:, c] = dq
            dp[:, c].baddbmm_(dq, k[:, c].mT, alpha=-1)
            dr[:, c] = torch.bmm(dp[:, c] * columns[:, c], transforms[:, c].mT)
            dq = torch.baddbmm(dq, dr[:, c], k[:, c])
        z = x.mT @ dr  # its lower part counts, which `similarity` has alone
        d_beta = (dp * x).sum(2) - (z * similarity).sum(-1)
        z = z.tril_(-1).mul_(beta.unsqueeze(-1))
        left = torch.cat([dr, x * columns.neg()], dim=2).mT  # (B·H, G, C, 2L)
        right = torch.cat([queries, after], dim=2)
        d_k = (left @ right).flatten(0, 1)
        d_k.baddbmm_((z + z.mT).flatten(0, 1), k.flatten(0, 1), alpha=-1)
        return dq, d_k.view(k.shape), d_beta


def _plain_sweep(q: Tensor, k: Tensor, beta: Tensor) -> Tensor:
    return plain.delta_read_weights(q, k.flatten(1, 2), beta.flatten(1, 2))


def _empty_sweep(q: Tensor, k: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
    (heads, n_queries, r), (n_chunks, c) = q.shape, k.shape[1:3]
    shapes = (
        (heads, n_queries, n_chunks * c),
        (heads, n_chunks, n_queries, r),
        (heads, n_chunks, n_queries, c),
        (heads, n_chunks, c, c),
        (heads, n_chunks, c, c),
    )
    return tuple(q.new_empty(shape) for shape in shapes)


_swept = operator(
    "delta_read_weights", _sweep, _sweep_backward, plain=_plain_sweep, empty=_empty_sweep
)


class _Blocks:
    """A sequence in blocks of G chunks, and the buffers that hold one block after the other.

    Fresh tensors would page-fault at each block. A buffer is (G·B·H, C, size), and what a short
    last block leaves over is zero: a write of strength zero, which changes nothing.
    """

    def __init__(self, q: Tensor, v: Tensor, n_blocks: int):
        b, h, n, r = q.shape
        m, self.c = v.shape[-1], CHUNK_LEN
        self.g = math.ceil(math.ceil(n / self.c) / n_blocks)
        self.shape = (self.g, b, h, self.c)
        length = self.g * self.c
        self.spans = [slice(i, min(i + length, n)) for i in range(0, n, length)]
        self.options = {"dtype": _wide(q, v), "device": q.device}
        self.identity = torch.eye(self.c, **self.options)
        self.memory_shape = (b * h, r, m)

    @staticmethod
    def count(q: Tensor, v: Tensor) -> int:
        """How many blocks a sequence has."""
        (b, h, n, r), m = q.shape, v.shape[-1]
        # A memory is kept for each block: no more of them than k and v are large.
        for_memory = math.ceil(r * m / ((r + m) * CHUNK_LEN))
        n_chunks = math.ceil(n / CHUNK_LEN)
        return math.ceil(n_chunks / max(1, PRODUCTS_PER_CALL // (b * h), for_memory))

    def new(self, size: int) -> Tensor:
        return torch.zeros(math.prod(self.shape[:3]), self.c, size, **self.options)

    def memories(self, count: int) -> Tensor:
        return torch.zeros(count, *self.memory_shape, **self.options)

    def chunks(self, *buffers: Tensor) -> list[tuple[Tensor, ...]]:
        """The (B·H, C, size) of each chunk, for each buffer."""
        return list(zip(*(x.unflatten(0, (self.g, -1)) for x in buffers), strict=True))

    def load(self, x: Tensor, span: slice, out: Tensor) -> None:
        x, rows = x[:, :, span], self._rows(out)
        if x.shape[2] < self.g * self.c:
            x = torch.nn.functional.pad(x, (0, 0, 0, self.g * self.c - x.shape[2]))
        rows.copy_(x.unflatten(2, (self.g, self.c)))

    def store(self, buffer: Tensor, span: slice, out: Tensor) -> None:
        out, rows = out[:, :, span], self._rows(buffer)
        if out.shape[2] == self.g * self.c:
            out.unflatten(2, (self.g, self.c)).copy_(rows)
        else:
            out.copy_(rows.flatten(2, 3)[:, :, : out.shape[2]])

    def _rows(self, buffer: Tensor) -> Tensor:
        return buffer.view(*self.shape, -1).permute(1, 2, 0, 3, 4)  # (B, H, G, C, size)

    def inverse(self, lower: Tensor) -> Tensor:
        """(I + stril(lower))⁻¹"""
        return torch.linalg.solve_triangular(
            lower, self.identity.expand_as(lower), upper=False, unitriangular=True
        )


def _forward(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
    """y, the errors (B, H, N, M), and the memory at the start of each block."""
    n_blocks = _Blocks.count(q, v)
    # Autocast would turn the float32 products of the memory into bfloat16 ones.
    with without_autocast(q.device.type):
        found = _in_chunks(q, k, v, beta.unsqueeze(-1), n_blocks)
        if all_finite(found[0]):
            return found
        # A product with a triangle of zeros spreads a NaN to earlier positions, the loop does not.
        every = math.ceil(math.ceil(q.shape[2] / CHUNK_LEN) / n_blocks) * CHUNK_LEN
        return plain.delta_writes(q, k, v, beta, every)


def _in_chunks(q, k, v, beta, n_blocks):
    blocks = _Blocks(q, v, n_blocks)
    queries, keys, weighted_keys = (blocks.new(q.shape[-1]) for _ in range(3))
    values, errors, out = (blocks.new(v.shape[-1]) for _ in range(3))
    strengths, lower, reads = blocks.new(1), blocks.new(blocks.c), blocks.new(blocks.c)
    memories = blocks.memories(blocks.g + 1)  # before each chunk, and after the last
    y, all_errors, kept_memories = _empty(q, k, v, beta)
    for span, kept in zip(blocks.spans, kept_memories.unbind(2), strict=True):
        for x, buffer in ((q, queries), (k, keys), (v, values), (beta, strengths)):
            blocks.load(x, span, buffer)
        torch.mul(keys, strengths, out=weighted_keys)  # β K
        torch.bmm(keys, weighted_keys.mT, out=lower)
        torch.bmm(queries, weighted_keys.mT, out=reads).tril_()
        chunks = blocks.chunks(blocks.inverse(lower), keys, weighted_keys, values, errors)
        kept.copy_(memories[0].view(kept.shape))
        for i, (transform, k_c, weighted_c, v_c, e_c) in enumerate(chunks):
            v_c.baddbmm_(k_c, memories[i], alpha=-1)
            torch.bmm(transform, v_c, out=e_c)
            torch.baddbmm(memories[i], weighted_c.mT, e_c, out=memories[i + 1])
        torch.bmm(reads, errors, out=out)
        out.baddbmm_(queries, memories[:-1].flatten(0, 1))
        memories[0].copy_(memories[-1])
        blocks.store(out, span, y)
        blocks.store(errors, span, all_errors)
    return y, all_errors, kept_memories


def _empty(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
    wide, memories = _wide(q, v), (*q.shape[:2], _Blocks.count(q, v), q.shape[-1], v.shape[-1])
    y, errors = v.new_empty(v.shape), v.new_empty(v.shape, dtype=wide)
    return y, errors, v.new_empty(memories, dtype=wide)


def _backward(dy, kept, q, k, v, beta):
    with without_autocast(dy.device.type):
        *found, d_beta = _backward_in_chunks(dy, q, k, v, beta.unsqueeze(-1), *kept)
    return *found, d_beta.squeeze(-1)


def _backward_in_chunks(dy, q, k, v, beta, all_errors, kept_memories):
    blocks = _Blocks(q, v, kept_memories.shape[2])
    queries, keys, weighted_keys, d_queries, d_keys = (blocks.new(q.shape[-1]) for _ in range(5))
    d_out, errors, writes, d_writes, d_errors = (blocks.new(v.shape[-1]) for _ in range(5))
    lower, reads, symmetric = (blocks.new(blocks.c) for _ in range(3))
    strengths, d_strengths = blocks.new(1), blocks.new(1)
    memories = blocks.memories(blocks.g)  # before each chunk
    d_memories = blocks.memories(blocks.g + 1)  # by the memory before each, and after the last
    gradients = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v, beta)]
    for span, kept in reversed([*zip(blocks.spans, kept_memories.unbind(2), strict=True)]):
        loads = ((q, queries), (k, keys), (beta, strengths), (all_errors, errors), (dy, d_out))
        for x, buffer in loads:
            blocks.load(x, span, buffer)
        torch.mul(keys, strengths, out=weighted_keys)
        torch.mul(errors, strengths, out=writes)  # U
        torch.bmm(weighted_keys, keys.mT, out=lower)
        torch.bmm(queries, keys.mT, out=reads).tril_()
        torch.bmm(reads.mT, d_out, out=d_writes)
        transforms = blocks.inverse(lower)

        memories[0].copy_(kept.flatten(0, 1))
        for i, (k_c, u_c) in enumerate(blocks.chunks(keys, writes)[:-1]):
            torch.baddbmm(memories[i], k_c.mT, u_c, out=memories[i + 1])
        chunks = blocks.chunks(transforms, queries, keys, weighted_keys, d_out, d_writes, d_errors)
        for i, (transform, q_c, k_c, weighted_c, dy_c, du_c, g_c) in reversed([*enumerate(chunks)]):
            du_c.baddbmm_(k_c, d_memories[i + 1])
            torch.bmm(transform.mT, du_c, out=g_c)
            torch.baddbmm(d_memories[i + 1], q_c.mT, dy_c, out=d_memories[i])
            d_memories[i].baddbmm_(weighted_c.mT, g_c, alpha=-1)
        before, d_after = memories.flatten(0, 1), d_memories[1:].flatten(0, 1)

        torch.sum(errors.mul_(d_errors), -1, keepdim=True, out=d_strengths)
        d_values = d_errors.mul_(strengths)
        torch.bmm(d_out, writes.mT, out=reads).tril_()
        torch.bmm(d_out, before.mT, out=d_queries).baddbmm_(reads, keys)
        torch.bmm(d_values, writes.mT, out=lower).tril_(-1)
        torch.add(lower, lower.mT, out=symmetric)
        torch.bmm(writes, d_after.mT, out=d_keys).baddbmm_(d_values, before.mT, alpha=-1)
        d_keys.baddbmm_(reads.mT, queries).baddbmm_(symmetric, keys, alpha=-1)
        d_memories[-1].copy_(d_memories[0])
        found = (d_queries, d_keys, d_values, d_strengths)
        for buffer, gradient in zip(found, gradients, strict=True):
            blocks.store(buffer, span, gradient)
    return tuple(gradients)


_chunked = operator("delta_rule", _forward, _backward, plain=plain.delta_rule, empty=_empty)
