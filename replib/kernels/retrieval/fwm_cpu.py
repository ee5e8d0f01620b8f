"""The write rule of `fwm` fused for the CPU: a sequence after another, its errors in
cache.

P sequences, N writes, L queries, R feature size, M value size, B writes in a block. Names are those
of `fwm`, with s_ij = k_i·k_j and D_ij = d_{i-1,j} = 1 / (c_j ... c_{i-1}). Decays
are products of 1 / c: a block that begins with the write b splits the sums

    v̄_i = D_ib Σ_{j<b} s_ij D_bj β_j e_j + Σ_{b<=j<i} s_ij D_ij β_j e_j,

the first of which is a matrix product for the whole block, as D_bj is known when it begins; all
factors are at most 1. Backward, the block ends before the write t, and with F = the gradient of v̄

    λ_i = Σ_{j>i} s_ji D_ji F_j = D_ti Σ_{j>=t} s_ji D_jt F_j + Σ_{i<j<t} s_ji D_ji F_j,

so that ē_i has β_i λ_i of later writes, and β̄_i has e_i·λ_i. Also l̄ needs no row of H̄, as its sums
are those of vectors: Σ_j H_ij H̄_ij = F_i·v̄_i and Σ_j H_ji H̄_ji = β_i e_i·λ_i. At the end the
gradient of s is the lower triangle of F Eᵀ, times decays and β; it is kept with its transpose
added, which is what the gradient of k is multiplied with. Writes whose decay is below SMALLEST
are left out.

Rows are padded to multiples of 16: N' for N and M' for M. Kept for the backward pass are s, q·k,
the errors e (P, N', M'), n² (P, N) and the decays at the end (P, N').
"""

import ctypes
import math

import torch
from numba import njit
from torch import Tensor
from torch.nn.functional import pad

from replib.kernels.library import once
from replib.kernels.linear import cpu
from replib.kernels.linear.cpu import FLOAT
from replib.kernels.numba import threads
from replib.kernels.numba import vectors as vec
from replib.kernels.numba.threads import OWN

B = vec.WIDTH
STEP = vec.WIDTH * FLOAT  # bytes of a vector
SMALLEST = 1e-30  # a decay that is as good as 0; less would leave float32's range

COMPILE_S = 5  # about, on two cores

# What a call hands its threads.
N_WRITES, VALUE_SIZE, N_QUERIES = range(OWN, OWN + 3)
SIMILARITY, V, BETA, ERRORS, SQUARES, AT_END = range(OWN + 3, OWN + 9)
READS, DY, D_END, D_SIMILARITY, DV, D_BETA = range(OWN + 9, OWN + 15)
N_WORDS = OWN + 15


def retrieve(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """What queries read after the last write, differentiable once: more raises. All float32 on the
    CPU.

    q (P, L, R), k (P, N, R), v (P, N, M), beta (P, N) -> (P, L, M); no size is 0.
    """
    return _writes(q, k, v.contiguous(), beta.contiguous())


def _forward_pass(q, k, v, beta):
    p, n, m = v.shape
    wide = cpu.padded(n)
    similarity, reads = k @ k.mT, pad(q @ k.mT, (0, wide - n))
    errors, squares = v.new_empty(p, wide, cpu.padded(m)), v.new_empty(p, n)
    at_end = v.new_empty(p, wide)
    kept = {SIMILARITY: similarity, V: v, BETA: beta}
    kept |= {ERRORS: errors, SQUARES: squares, AT_END: at_end}
    _run("forward", kept, q.shape[1])
    weights = reads[..., :n] * (beta * at_end[:, :n]).unsqueeze(1)  # (P, L, N)
    return weights @ errors[:, :n, :m], (q, k, reads, *kept.values())


def _backward_pass(needed, dy, q, k, reads, *kept):
    kept = dict(zip(range(SIMILARITY, AT_END + 1), kept, strict=True))
    v, beta, errors, at_end = (kept[place] for place in (V, BETA, ERRORS, AT_END))
    (p, n, m), wide = v.shape, reads.shape[-1]
    d_reads = (dy @ errors[:, :n, :m].mT) * (beta * at_end[:, :n]).unsqueeze(1)
    d_end = (d_reads * reads[..., :n]).sum((1, 2))  # by the last l
    d_similarity = v.new_empty(p, wide, wide)
    d_beta, dv = torch.empty_like(beta), None
    given = {READS: reads, DY: cpu._widen(dy, 0.0).contiguous(), D_END: d_end}
    found = {D_SIMILARITY: d_similarity, D_BETA: d_beta}
    if needed[2]:  # values to be learned are rare
        dv = found[DV] = torch.empty_like(v)
    _run("backward", kept | given | found, q.shape[1])
    dk = torch.baddbmm(d_similarity[:, :n, :n] @ k, d_reads.mT, q)
    return d_reads @ k, dk, dv, d_beta


_writes = once("The rule fwm", _forward_pass, _backward_pass)


@njit
def _wide(n):
    return (n + vec.WIDTH - 1) // vec.WIDTH * vec.WIDTH


@njit
def _copy(target, source, n):
    """n numbers, whatever n."""
    whole = n // vec.WIDTH * STEP
    for at in range(0, whole, STEP):
        vec.store(target + at, vec.load(source + at))
    for at in range(whole, n * FLOAT, FLOAT):
        vec.store_one(target + at, vec.load_one(source + at))


@njit
def _read(target, source, n):
    """n numbers, and zeros up to a multiple of 16."""
    vec.store(target + (_wide(n) - vec.WIDTH) * FLOAT, vec.splat(0.0))
    _copy(target, source, n)


@njit
def _scale(numbers, first, last, factor):
    """The numbers from a place to before another, both multiples of 16, times a factor."""
    factor = vec.splat(factor)
    for at in range(first * FLOAT, last * FLOAT, STEP):
        vec.store(numbers + at, vec.multiply(vec.load(numbers + at), factor))


@njit
def _one_over_c(i, square):
    """1 / c of a write (counted from 0); a NaN stays one."""
    return 1.0 if i == 0 or square <= 1 else 1 / math.sqrt(square)


@njit
def _first_kept(decays, first, before):
    """From which block on decays are above SMALLEST; those of blocks left out become 0."""
    while first < before and vec.load_one(decays + (first + B - 1) * FLOAT) < SMALLEST:
        cpu._fill(decays + first * FLOAT, B, 0.0)
        first += B
    return first


@njit
def _next_decays(decays, block, i, factor):
    """D_i+1,j from D_ij of the writes j of a block up to i."""
    vec.store_one(decays + i * FLOAT, 1.0)
    _scale(decays, block, block + B, factor)


@njit
def _of_sequence(words, place, p, n):
    """Where the n numbers of sequence p in the tensor at a place of the words begin."""
    return vec.word(words, place) + p * n * FLOAT


@njit
def _sequence(words, p):
    """N, M, N' and M', and where s, v, β, the errors, n² and the decays at the end begin."""
    n, m = vec.word(words, N_WRITES), vec.word(words, VALUE_SIZE)
    n_wide, m_wide = _wide(n), _wide(m)
    inputs = (
        _of_sequence(words, SIMILARITY, p, n * n),
        _of_sequence(words, V, p, n * m),
        _of_sequence(words, BETA, p, n),
    )
    errors = _of_sequence(words, ERRORS, p, n_wide * m_wide)
    at_end = _of_sequence(words, AT_END, p, n_wide)
    return (n, m, n_wide, m_wide), inputs, errors, _of_sequence(words, SQUARES, p, n), at_end


@njit
def _forward(words, p, s):
    """One sequence; s is the address of its scratch memory."""
    (n, m, n_wide, m_wide), inputs, errors, squares, decays = _sequence(words, p)
    (similarity, values, beta), width = inputs, m_wide * FLOAT

    strengths, s = s, s + n_wide * FLOAT
    weights, s = s, s + B * n_wide * FLOAT
    local, s = s, s + B * FLOAT
    recalled = s
    _read(strengths, beta, n)
    cpu._fill(errors + n * width, (n_wide - n) * m_wide, 0.0)

    norm, first = 0.0, 0
    for block in range(0, n, B):
        after = min(block + B, n)
        cpu._fill(recalled, B * m_wide, 0.0)
        if first < block:
            for i in range(block, after):
                to, row = weights + (i - block) * n_wide * FLOAT, similarity + i * n * FLOAT
                for j in range(first * FLOAT, block * FLOAT, STEP):
                    weight = vec.multiply(vec.load(decays + j), vec.load(strengths + j))
                    vec.store(to + j, vec.multiply(vec.load(row + j), weight))
            n_rows = (after - block + vec.ROWS - 1) // vec.ROWS * vec.ROWS
            a, rows = weights + first * FLOAT, errors + first * width
            cpu._add_product(
                recalled, n_rows, m_wide, a, n_wide * FLOAT, FLOAT, rows, block - first
            )
        scale = 1.0  # D_ib
        for i in range(block, after):
            row, error = similarity + i * n * FLOAT, errors + i * width
            for j in range(block, i):
                weight = vec.load_one(decays + j * FLOAT) * vec.load_one(strengths + j * FLOAT)
                weight *= vec.load_one(row + j * FLOAT)
                vec.store_one(local + (j - block) * FLOAT, weight)
            _read(error, values + i * m * FLOAT, m)
            factor, along, size = vec.splat(scale), vec.splat(0.0), vec.splat(0.0)
            for c in range(0, width, STEP):
                old = vec.multiply(factor, vec.load(recalled + (i - block) * width + c))
                for j in range(block, i):
                    weight = vec.broadcast(local + (j - block) * FLOAT)
                    old = vec.fma(weight, vec.load(errors + j * width + c), old)
                e = vec.subtract(vec.load(error + c), old)
                vec.store(error + c, e)
                along, size = vec.fma(e, old, along), vec.fma(e, e, size)
            b, own = vec.load_one(strengths + i * FLOAT), vec.load_one(row + i * FLOAT)
            square = norm + b * (2.0 * vec.total(along) + b * vec.total(size) * own)
            if square < 0:
                square = 0.0
            vec.store_one(squares + i * FLOAT, square)
            # Past 1 it is 1, and NaN where it has become infinite.
            norm = square if i == 0 or square <= 1 else square / square
            one_over_c = _one_over_c(i, square)
            scale *= one_over_c
            _next_decays(decays, block, i, one_over_c)
        _scale(decays, first, block, scale)
        first = _first_kept(decays, first, block)


@njit
def _backward(words, p, s):
    (n, m, n_wide, m_wide), inputs, errors, squares, at_end = _sequence(words, p)
    (similarity, values, beta), width = inputs, m_wide * FLOAT
    n_queries = vec.word(words, N_QUERIES)
    reads = _of_sequence(words, READS, p, n_queries * n_wide)
    dy = _of_sequence(words, DY, p, n_queries * m_wide)
    d_similarity = _of_sequence(words, D_SIMILARITY, p, n_wide * n_wide)
    d_values, d_beta = _of_sequence(words, DV, p, n * m), _of_sequence(words, D_BETA, p, n)

    strengths, s = s, s + n_wide * FLOAT
    scales, s = s, s + n_wide * FLOAT  # 1 / c
    decays, s = s, s + n_wide * FLOAT
    own, s = s, s + n_wide * FLOAT  # the gradient of s_ii
    weights, s = s, s + B * n_wide * FLOAT
    d_recalled, s = s, s + n_wide * width  # F
    given, s = s, s + B * width  # Σ_l (q_l·k_i) dy_l, then the gradient of e_i
    later, s = s, s + B * width  # λ
    old, s = s, s + width  # v̄_i
    local, s = s, s + B * FLOAT
    _read(strengths, beta, n)
    for i in range(n_wide):
        square = vec.load_one(squares + i * FLOAT) if i < n else 0.0
        vec.store_one(scales + i * FLOAT, _one_over_c(i, square))
    cpu._fill(decays, n_wide, 1.0)
    cpu._fill(d_recalled + n * width, (n_wide - n) * m_wide, 0.0)

    d_log, d_square = vec.load_one(vec.word(words, D_END) + p * FLOAT) * 1.0, 0.0
    end = n  # writes from here on have no weight any more
    for block in range((n - 1) // B * B, -1, -B):
        after = min(block + B, n)
        cpu._fill(given, B * m_wide, 0.0)
        cpu._fill(later, B * m_wide, 0.0)
        a = reads + block * FLOAT
        cpu._add_product(given, B, m_wide, a, FLOAT, n_wide * FLOAT, dy, n_queries)
        if after < end:
            for j in range(after, end):
                row = vec.load(similarity + (j * n + block) * FLOAT)
                weight = vec.broadcast(decays + j * FLOAT)
                vec.store(weights + (j - after) * STEP, vec.multiply(row, weight))
            rows = d_recalled + after * width
            cpu._add_product(later, B, m_wide, weights, FLOAT, STEP, rows, end - after)
        scale = 1.0  # D_ti
        for i in range(after - 1, block - 1, -1):
            one_over_c = vec.load_one(scales + i * FLOAT)
            scale *= one_over_c
            _scale(decays, block, block + B, one_over_c)
            vec.store_one(decays + i * FLOAT, 1.0)
            for j in range(i + 1, after):
                weight = vec.load_one(similarity + (j * n + i) * FLOAT)
                weight *= vec.load_one(decays + j * FLOAT)
                vec.store_one(local + (j - block) * FLOAT, weight)
            error, d_old = errors + i * width, d_recalled + i * width
            d_error, from_later = given + (i - block) * width, later + (i - block) * width
            _read(old, values + i * m * FLOAT, m)
            factor = vec.splat(scale)
            along, size = vec.splat(0.0), vec.splat(0.0)
            read, used = vec.splat(0.0), vec.splat(0.0)
            for c in range(0, width, STEP):
                e = vec.load(error + c)
                x = vec.subtract(vec.load(old + c), e)
                vec.store(old + c, x)
                along, size = vec.fma(e, x, along), vec.fma(e, e, size)
                read = vec.fma(e, vec.load(d_error + c), read)
                x = vec.multiply(factor, vec.load(from_later + c))
                for j in range(i + 1, after):
                    weight = vec.broadcast(local + (j - block) * FLOAT)
                    x = vec.fma(weight, vec.load(d_recalled + j * width + c), x)
                vec.store(from_later + c, x)
                used = vec.fma(e, x, used)
            b = vec.load_one(strengths + i * FLOAT)
            s_ii = vec.load_one(similarity + i * (n + 1) * FLOAT)
            square, decay = vec.load_one(squares + i * FLOAT), vec.load_one(at_end + i * FLOAT)
            by_weight, by_later = vec.total(read), vec.total(used)
            e_old, e_e = vec.total(along), vec.total(size)
            if i > 0 and not square <= 1:
                d_square = -d_log / (2.0 * square)
            d_own = 2.0 * d_square * (e_old + b * e_e * s_ii)
            vec.store_one(d_beta + i * FLOAT, by_weight * decay + by_later + d_own)
            vec.store_one(own + i * FLOAT, d_square * b * b * e_e)

            by_square = 2.0 * d_square * b
            of_old, of_error = vec.splat(by_square), vec.splat(by_square * b * s_ii)
            of_given, of_later = vec.splat(b * decay), vec.splat(b)
            dot = vec.splat(0.0)
            for c in range(0, width, STEP):
                e, x = vec.load(error + c), vec.load(old + c)
                d = vec.multiply(of_given, vec.load(d_error + c))
                d = vec.fma(of_later, vec.load(from_later + c), d)
                d = vec.fma(of_error, e, vec.fma(of_old, x, d))
                vec.store(d_error + c, d)
                d = vec.subtract(vec.multiply(of_old, e), d)
                vec.store(d_old + c, d)
                dot = vec.fma(d, x, dot)
            if vec.word(words, DV):
                _copy(d_values + i * m * FLOAT, d_error, m)
            d_log += vec.total(dot) - b * (by_weight * decay + by_later)
        _scale(decays, block + B, _wide(end), scale)
        while end > after and vec.load_one(decays + (end - 1) // B * B * FLOAT) < SMALLEST:
            end = (end - 1) // B * B

    _similarity_gradient(
        d_similarity, d_recalled, errors, m, n, strengths, scales, own, decays, local, s
    )


@njit
def _similarity_gradient(
    d_similarity, d_recalled, errors, m, n, strengths, scales, own, decays, local, s
):
    """d_similarity (N', N') = the gradient of s, a lower triangle, and its transpose."""
    n_wide, m_wide = _wide(n), _wide(m)
    row_bytes = n_wide * FLOAT
    tile, s = s, s + B * STEP
    transposed, s = s, s + B * STEP
    errors_t = s
    cpu._transpose(errors_t, errors, n_wide, m_wide)
    first = 0
    for block in range(0, n, B):
        down = d_similarity + block * row_bytes  # rows of the block
        right = d_similarity + block * FLOAT  # its columns
        scale = 1.0
        for i in range(B):
            vec.store_one(local + i * FLOAT, scale)
            scale *= vec.load_one(scales + (block + i) * FLOAT)
        for j in range(0, first, B):
            for i in range(B):
                vec.store(down + i * row_bytes + j * FLOAT, vec.splat(0.0))
                vec.store(right + (j + i) * row_bytes, vec.splat(0.0))
        for j in range(first, block, B):
            _products(tile, d_recalled, block, m_wide, errors_t, j, n_wide, m)
            weight = vec.multiply(vec.load(decays + j * FLOAT), vec.load(strengths + j * FLOAT))
            for i in range(B):
                row = vec.multiply(weight, vec.broadcast(local + i * FLOAT))
                row = vec.multiply(row, vec.load(tile + i * STEP))
                vec.store(tile + i * STEP, row)
                vec.store(down + i * row_bytes + j * FLOAT, row)
            vec.transpose(tile, STEP, right + j * row_bytes, row_bytes)
        _products(tile, d_recalled, block, m_wide, errors_t, block, n_wide, m)
        for i in range(B):
            weight = vec.multiply(
                vec.load(decays + block * FLOAT), vec.load(strengths + block * FLOAT)
            )
            row = vec.first(vec.multiply(weight, vec.load(tile + i * STEP)), i)
            vec.store(tile + i * STEP, row)
            vec.store_one(tile + i * (STEP + FLOAT), vec.load_one(own + (block + i) * FLOAT))
            _next_decays(decays, block, block + i, vec.load_one(scales + (block + i) * FLOAT))
        vec.transpose(tile, STEP, transposed, STEP)
        for i in range(B):
            row = vec.add(vec.load(tile + i * STEP), vec.load(transposed + i * STEP))
            vec.store(down + i * row_bytes + block * FLOAT, row)
        _scale(decays, first, block, scale)
        first = _first_kept(decays, first, block)


@njit
def _products(tile, rows, i, row_size, columns, j, column_size, n):
    """tile (B, B) = products of the rows from i on with the columns from j on, of n numbers."""
    cpu._fill(tile, B * B, 0.0)
    for block in range(0, B, vec.ROWS):
        a = rows + (i + block) * row_size * FLOAT
        to, b = tile + block * STEP, columns + j * FLOAT
        vec.panel(to, STEP, a, row_size * FLOAT, FLOAT, b, column_size * FLOAT, n)


def _scratch_floats(n: int, m: int) -> int:
    """What the backward pass, the larger, lays out above."""
    n, m = cpu.padded(n), cpu.padded(m)
    return 4 * n + B * n + 2 * n * m + (2 * B + 1) * m + B + 2 * B * B


KERNEL = threads.Kernel("the rule fwm", COMPILE_S, forward=_forward, backward=_backward)


def _run(key: str, tensors: dict[int, Tensor], n_queries: int) -> None:
    """Fill in the words and let the threads work; all tensors are contiguous."""
    p, n, m = tensors[V].shape
    words = (ctypes.c_int64 * N_WORDS)()
    words[N_WRITES : N_QUERIES + 1] = n, m, n_queries
    for place, x in tensors.items():
        words[place] = x.data_ptr()
    KERNEL.run(key, words, p, _scratch_floats(n, m))
