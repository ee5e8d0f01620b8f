"""The delta rule fused for the CPU: a head's chunks one after the other, all in cache.

B batch, H heads, N sequence length, C chunk, G chunks in a block, R feature size, M value size.
The equations are those of `kernels.delta.torch`, with its triangular systems solved a row at a
time. Forward, the rows of X = K S - V become those of E' = -E, and U = β E is found with them:

    E'_i = X_i + Σ_{j<i} (k_i·k_j) U_j,     U_i = -β_i E'_i,

and backward, from the last row to the first, those of dU become G, and F = -dV with them:

    G_i = dU_i + Σ_{j>i} (k_j·k_i) F_j,     F_i = -β_i G_i.

Each thread takes one (batch, head) after another. E' (B, H, N, M) and Sᵀ at the start of each block
are kept for the backward pass, which finds it again for each chunk of a block, and then goes
through them from the last to the first. Arithmetic is float32; inputs and outputs are float32 or
bfloat16.
"""

import ctypes
import math

import torch
from numba import njit
from torch import Tensor
from torch.nn.functional import pad

from replib import plain
from replib.kernels.library import operator
from replib.kernels.linear import cpu
from replib.kernels.linear.cpu import FLOAT, C
from replib.kernels.numba import threads
from replib.kernels.numba import vectors as vec
from replib.kernels.numba.rows import empty_like_rows, rows_together
from replib.kernels.numba.threads import OWN
from replib.plain import all_finite

# The memories of a block should stay in the second-level cache; the longer it is, the fewer are
# kept for the backward pass.
BLOCK_CHUNKS = 8

COMPILE_S = 15  # about, on two cores

# What a call hands its threads; the first place is that of `cpu`.
N_POSITIONS, FEATURE_SIZE, VALUE_SIZE = range(cpu.HEADS + 1, cpu.HEADS + 4)
Q, K, V, BETA, Y, ERRORS, MEMORIES, DY, DQ, DK, DV, DBETA = range(OWN + 4, OWN + 64, 5)
N_WORDS = OWN + 64


@njit
def _negate(tile, n):
    for i in range(0, n * FLOAT, vec.WIDTH * FLOAT):
        vec.store(tile + i, vec.subtract(vec.splat(0.0), vec.load(tile + i)))


@njit
def _read_strengths(strengths, beta, t, n):
    address, stride, _ = beta
    cpu._fill(strengths, C, 0.0)
    for i in range(n):
        vec.store_one(strengths + i * FLOAT, vec.load_one(address + (t + i) * stride))


@njit
def _copy(target, source, n):
    for i in range(0, n * FLOAT, vec.WIDTH * FLOAT):
        vec.store(target + i, vec.load(source + i))


@njit
def _minus_strength(strengths, i):
    return vec.subtract(vec.splat(0.0), vec.broadcast(strengths + i * FLOAT))


@njit
def _scale(target, tile, strengths, size):
    """target = -β tile, both (C, size)."""
    for i in range(C):
        strength = _minus_strength(strengths, i)
        for at in range(i * size * FLOAT, (i + 1) * size * FLOAT, vec.WIDTH * FLOAT):
            vec.store(target + at, vec.multiply(strength, vec.load(tile + at)))


@njit
def _strictly_lower_product(c, a, n, b, zeros):
    """c (C, C) = stril(a b), of a (C, n) and b (n, C)."""
    cpu._lower_product(c, a, n, b, zeros)
    for i in range(C):
        vec.store_one(c + (i * C + i) * FLOAT, 0.0)


@njit
def _solve(errors, writes, similarity, strengths, m):
    """The rows of X (C, M) become E', and those of writes U, first to last."""
    width = m * FLOAT
    for block in range(0, C, vec.ROWS):
        for p in range(0, width, vec.WIDTH * FLOAT):
            a = similarity + block * C * FLOAT
            to = errors + block * width + p
            vec.panel(to, width, a, C * FLOAT, FLOAT, writes + p, width, block)
        for i in range(block, block + vec.ROWS):
            strength = _minus_strength(strengths, i)
            for p in range(0, width, vec.WIDTH * FLOAT):
                row = vec.load(errors + i * width + p)
                for j in range(block, i):
                    weight = vec.broadcast(similarity + (i * C + j) * FLOAT)
                    row = vec.fma(weight, vec.load(writes + j * width + p), row)
                vec.store(errors + i * width + p, row)
                vec.store(writes + i * width + p, vec.multiply(strength, row))


@njit
def _solve_transposed(d_writes, d_values, similarity, strengths, m):
    """The rows of dU (C, M) become G, and those of d_values F, last to first."""
    width = m * FLOAT
    for block in range(C - vec.ROWS, -1, -vec.ROWS):
        after = block + vec.ROWS
        for p in range(0, width, vec.WIDTH * FLOAT):
            a = similarity + (after * C + block) * FLOAT
            to, rows = d_writes + block * width + p, d_values + after * width + p
            vec.panel(to, width, a, FLOAT, C * FLOAT, rows, width, C - after)
        for i in range(after - 1, block - 1, -1):
            strength = _minus_strength(strengths, i)
            for p in range(0, width, vec.WIDTH * FLOAT):
                row = vec.load(d_writes + i * width + p)
                for j in range(i + 1, after):
                    weight = vec.broadcast(similarity + (j * C + i) * FLOAT)
                    row = vec.fma(weight, vec.load(d_values + j * width + p), row)
                vec.store(d_writes + i * width + p, row)
                vec.store(d_values + i * width + p, vec.multiply(strength, row))


@njit
def _write_strength_gradient(dbeta, t, n, errors, d_writes, m):
    """dβ_i = -E'_i·G_i"""
    address, stride, _ = dbeta
    for i in range(n):
        dot = vec.splat(0.0)
        for at in range(i * m * FLOAT, (i + 1) * m * FLOAT, vec.WIDTH * FLOAT):
            dot = vec.fma(vec.load(errors + at), vec.load(d_writes + at), dot)
        vec.store_one(address + (t + i) * stride, -vec.total(dot))


@njit
def _add_transpose(tile):
    """tile (C, C) += tileᵀ"""
    transposed = tile + C * C * FLOAT
    cpu._transpose(transposed, tile, C, C)
    for at in range(0, C * C * FLOAT, vec.WIDTH * FLOAT):
        vec.store(tile + at, vec.add(vec.load(tile + at), vec.load(transposed + at)))


@njit
def _forward(words, head, s):
    """One (batch, head); s is the address of its scratch memory."""
    n_positions = vec.word(words, N_POSITIONS)
    r, m = vec.word(words, FEATURE_SIZE), vec.word(words, VALUE_SIZE)
    q, k, v = cpu._head(words, Q, head), cpu._head(words, K, head), cpu._head(words, V, head)
    beta, y = cpu._head(words, BETA, head), cpu._head(words, Y, head)
    kept_errors, kept_memories = cpu._head(words, ERRORS, head), cpu._head(words, MEMORIES, head)

    queries, s = s, s + C * r * FLOAT
    keys, s = s, s + C * r * FLOAT
    keys_t, s = s, s + C * r * FLOAT
    errors, s = s, s + C * m * FLOAT
    writes, s = s, s + C * m * FLOAT
    out, s = s, s + C * m * FLOAT
    weights, s = s, s + C * C * FLOAT
    strengths, s = s, s + C * FLOAT
    zeros, s = s, s + C * FLOAT
    memory = s
    cpu._fill(zeros, C, 0.0)
    cpu._fill(memory, r * m, 0.0)

    for t in range(0, n_positions, C):
        n = min(C, n_positions - t)
        if t % (BLOCK_CHUNKS * C) == 0:
            address, stride, _ = kept_memories
            cpu._transpose(address + t // (BLOCK_CHUNKS * C) * stride, memory, r, m)
        cpu._read(queries, q, t, n, r, False)
        cpu._read(keys, k, t, n, r, False)
        cpu._transpose(keys_t, keys, C, r)
        _read_strengths(strengths, beta, t, n)
        cpu._read(errors, v, t, n, m, False)
        _negate(errors, C * m)
        cpu._add_product(errors, C, m, keys, r * FLOAT, FLOAT, memory, r)
        _strictly_lower_product(weights, keys, r, keys_t, zeros)
        _solve(errors, writes, weights, strengths, m)

        cpu._fill(out, C * m, 0.0)
        cpu._add_product(out, C, m, queries, r * FLOAT, FLOAT, memory, r)
        cpu._lower_product(weights, queries, r, keys_t, zeros)
        cpu._add_lower_product(out, m, weights, writes)
        cpu._add_product(memory, r, m, keys, FLOAT, r * FLOAT, writes, C)
        cpu._write(y, t, n, m, out)
        cpu._write(kept_errors, t, n, m, errors)


@njit
def _backward(words, head, s):
    n_positions = vec.word(words, N_POSITIONS)
    r, m = vec.word(words, FEATURE_SIZE), vec.word(words, VALUE_SIZE)
    q, k, beta = cpu._head(words, Q, head), cpu._head(words, K, head), cpu._head(words, BETA, head)
    kept_errors, kept_memories = cpu._head(words, ERRORS, head), cpu._head(words, MEMORIES, head)
    dy, dbeta = cpu._head(words, DY, head), cpu._head(words, DBETA, head)
    dq, dk, dv = cpu._head(words, DQ, head), cpu._head(words, DK, head), cpu._head(words, DV, head)

    queries, s = s, s + C * r * FLOAT
    keys, s = s, s + C * r * FLOAT
    keys_t, s = s, s + C * r * FLOAT
    out, s = s, s + C * r * FLOAT
    d_out, s = s, s + C * m * FLOAT
    errors, s = s, s + C * m * FLOAT
    writes, s = s, s + C * m * FLOAT
    writes_t, s = s, s + C * m * FLOAT
    d_writes, s = s, s + C * m * FLOAT
    d_values, s = s, s + C * m * FLOAT
    weights, s = s, s + 2 * C * C * FLOAT
    strengths, s = s, s + C * FLOAT
    zeros, s = s, s + C * FLOAT
    d_memory, s = s, s + r * m * FLOAT
    d_memory_t, s = s, s + r * m * FLOAT
    memories_t = s  # Sᵀ before each chunk of a block
    cpu._fill(zeros, C, 0.0)
    cpu._fill(d_memory, r * m, 0.0)
    cpu._fill(d_memory_t, r * m, 0.0)

    block_len, size = BLOCK_CHUNKS * C, r * m * FLOAT
    for start in range((n_positions - 1) // block_len * block_len, -1, -block_len):
        last = (min(start + block_len, n_positions) - 1) // C * C
        address, stride, _ = kept_memories
        _copy(memories_t, address + start // block_len * stride, r * m)
        for t in range(start, last, C):
            memory_t = memories_t + (t - start) // C * size
            cpu._read(keys, k, t, C, r, False)
            cpu._read(errors, kept_errors, t, C, m, False)
            _read_strengths(strengths, beta, t, C)
            _scale(writes, errors, strengths, m)
            _copy(memory_t + size, memory_t, r * m)
            cpu._add_product(memory_t + size, m, r, writes, FLOAT, m * FLOAT, keys, C)

        for t in range(last, start - 1, -C):
            memory_t, n = memories_t + (t - start) // C * size, min(C, n_positions - t)
            cpu._read(queries, q, t, n, r, False)
            cpu._read(keys, k, t, n, r, False)
            cpu._read(d_out, dy, t, n, m, False)
            cpu._read(errors, kept_errors, t, n, m, False)
            _read_strengths(strengths, beta, t, n)
            _scale(writes, errors, strengths, m)
            cpu._transpose(keys_t, keys, C, r)
            cpu._transpose(writes_t, writes, C, m)

            cpu._fill(d_writes, C * m, 0.0)
            cpu._lower_product(weights, queries, r, keys_t, zeros)
            cpu._add_upper_product(d_writes, m, weights, d_out)
            cpu._add_product(d_writes, C, m, keys, r * FLOAT, FLOAT, d_memory, r)
            _strictly_lower_product(weights, keys, r, keys_t, zeros)
            _solve_transposed(d_writes, d_values, weights, strengths, m)
            _write_strength_gradient(dbeta, t, n, errors, d_writes, m)

            cpu._fill(out, C * r, 0.0)
            cpu._add_product(out, C, r, writes, m * FLOAT, FLOAT, d_memory_t, m)
            cpu._add_product(out, C, r, d_values, m * FLOAT, FLOAT, memory_t, m)
            _strictly_lower_product(weights, d_values, m, writes_t, zeros)
            _add_transpose(weights)
            cpu._add_product(out, C, r, weights, C * FLOAT, FLOAT, keys, C)
            cpu._lower_product(weights, d_out, m, writes_t, zeros)
            cpu._add_upper_product(out, r, weights, queries)
            cpu._write(dk, t, n, r, out)

            cpu._fill(out, C * r, 0.0)
            cpu._add_product(out, C, r, d_out, m * FLOAT, FLOAT, memory_t, m)
            cpu._add_lower_product(out, r, weights, keys)
            cpu._write(dq, t, n, r, out)

            if t > 0:
                cpu._add_product(d_memory, r, m, queries, FLOAT, r * FLOAT, d_out, C)
                cpu._add_product(d_memory, r, m, keys, FLOAT, r * FLOAT, d_values, C)
                cpu._transpose(d_memory_t, d_memory, r, m)
            _negate(d_values, C * m)
            cpu._write(dv, t, n, m, d_values)


def _scratch_floats(r: int, m: int) -> int:
    """What the larger of the two passes lays out above."""
    return 4 * C * r + 6 * C * m + 2 * C * C + 2 * C + (2 + BLOCK_CHUNKS) * r * m


KERNEL = threads.Kernel("the delta rule", COMPILE_S, forward=_forward, backward=_backward)


def _run(key: str, tensors: dict[int, Tensor]) -> None:
    """Fill in the words and let the threads work."""
    b, h, n, r = tensors[K].shape
    m = tensors[ERRORS].shape[-1]
    words = (ctypes.c_int64 * N_WORDS)()
    words[cpu.HEADS : VALUE_SIZE + 1] = h, n, r, m
    cpu._write_places(words, tensors)
    KERNEL.run(key, words, b * h, _scratch_floats(r, m))


def delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """y_i = W_i q_i after each write, of float32 and bfloat16 tensors; no size is 0.

    Sizes per head that are no multiple of 16 are padded, which copies the tensors.

    Raises:
        ValueError: a tensor has another dtype.
    """
    return _fused(q, k, v, beta.float())


def _forward_pass(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
    y, errors, memories = _empty(q, k, v, beta)
    wide = [cpu._widen(x, 0.0) for x in (q, k, v)]
    y_wide = y if y.shape == wide[2].shape else wide[2].new_empty(wide[2].shape)
    tensors = dict(zip((Q, K, V), wide, strict=True))
    tensors |= {BETA: beta, Y: y_wide, ERRORS: errors, MEMORIES: memories}
    _run("forward", tensors)
    if y_wide is not y:
        y.copy_(y_wide[..., : v.shape[-1]])
    if all_finite(y):
        return y, errors, memories
    # A product with a triangle of zeros spreads a NaN to positions before it, the loop does not.
    y, *found = plain.delta_writes(q, k, v, beta, BLOCK_CHUNKS * C)
    r, m = -k.shape[-1] % vec.WIDTH, -v.shape[-1] % vec.WIDTH
    errors.copy_(pad(found[0], (0, m)).neg())
    memories.copy_(pad(found[1], (0, m, 0, r)).mT.flatten(3))
    return y, errors, memories


def _backward_pass(dy, kept, q, k, v, beta) -> tuple[Tensor, ...]:
    errors, memories = kept
    wide = [cpu._widen(x, 0.0) for x in (q, k)]
    found = [empty_like_rows(x) for x in wide]
    dv = torch.empty_like(errors, dtype=v.dtype)
    d_beta = torch.empty_like(beta, memory_format=torch.contiguous_format)
    tensors = {Q: wide[0], K: wide[1], BETA: beta, ERRORS: errors, MEMORIES: memories}
    tensors |= {DY: cpu._widen(dy, 0.0), DQ: found[0], DK: found[1], DV: dv, DBETA: d_beta}
    _run("backward", tensors)
    gradients = (
        x if x.shape == like.shape else x[..., : like.shape[-1]].contiguous()
        for x, like in zip((*found, dv), (q, k, v), strict=True)
    )
    return *gradients, d_beta


def _empty(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
    (b, h, n, r), m = k.shape, v.shape[-1]
    y = empty_like_rows(rows_together(v)) if m == cpu.padded(m) else v.new_empty(v.shape)
    errors = v.new_empty(b, h, n, cpu.padded(m), dtype=torch.float32)
    n_blocks, size = math.ceil(n / (BLOCK_CHUNKS * C)), cpu.padded(r) * cpu.padded(m)
    return y, errors, v.new_empty(b, h, n_blocks, size, dtype=torch.float32)


def _empty_gradients(dy, kept, q, k, v, beta) -> tuple[Tensor, ...]:
    def of(x: Tensor) -> Tensor:
        whole = x.shape[-1] == cpu.padded(x.shape[-1])
        return empty_like_rows(rows_together(x)) if whole else x.new_empty(x.shape)

    return of(q), of(k), v.new_empty(v.shape), beta.new_empty(beta.shape)


_fused = operator(
    "delta_rule_cpu",
    _forward_pass,
    _backward_pass,
    plain=plain.delta_rule,
    empty=_empty,
    empty_gradients=_empty_gradients,
)


def operations_per_token(r: int, m: int, *, backward: bool) -> float:
    """Floating-point operations that the products take a position and head, of one pass.

    The equations above in order, R = r and M = m; half of a product with a triangle is left out
    where it is zero, save for the tiles on the diagonal.
    """
    triangle = C + vec.ROWS
    if backward:
        return 14 * r * m + C * (6 * r + 5 * m) + triangle * (2 * r + m)
    return 6 * r * m + C * (4 * r + m) + triangle * m
