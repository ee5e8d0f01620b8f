"""Linear attention fused for the CPU: feature map, products, state and normaliser, all in cache.

B batch, H heads, N sequence length, C chunk, D query/key size per head, M value size per head.
Each thread takes one (batch, head) after another and goes through its chunks. Lower case letters
are rows; S = Σ φ(k_j) v_jᵀ (D, M) and z = Σ φ(k_j) (D) are the sums over all earlier chunks
(Katharopoulos et al. 2020, eq. 18-19). Forward, for each chunk:

    A = tril(φ(Q) φ(K)ᵀ),   den = A·1 + φ(Q) z + eps,   Y = (A V + φ(Q) S) / den,
    S += φ(K)ᵀ V,   z += φ(K)ᵀ 1.

Backward, with G = dY / den, first chunk to last (S and z again, from nothing):

    U = tril(G Vᵀ) φ(K) + G Sᵀ,   g = -rowsum(φ(Q) ∘ U) / den,
    dφ(Q) = U + diag(g) (1 zᵀ + tril(1 1ᵀ) φ(K)),

then last chunk to first, with W = tril(G Vᵀ + g 1ᵀ), and R = Σ φ(q_i) G_iᵀ and r = Σ g_i φ(q_i)
over all later chunks:

    dV = Aᵀ G + φ(K) R,   dφ(K) = Wᵀ φ(Q) + V Rᵀ + 1 rᵀ,   R += φ(Q)ᵀ G,   r += φ(Q)ᵀ g,

and dQ = dφ(Q) ∘ min(φ(Q), 1), as φ' = min(φ, 1); dK likewise. Not causal, A and W are absent and
S, z (R, r) are sums over all keys (queries).

g is -rowsum(G ∘ Y) too, but Y may be rounded to bfloat16, and nearly all of dφ(Q) cancels where
values have a mean: what is left would be that rounding. Only den (B, H, N) is kept for the backward
pass, and a thread's scratch memory is a few (C, D) tiles: memory beyond the inputs is that of y,
dq, dk and dv. Arithmetic is float32; inputs and outputs are float32 or bfloat16.

In a product with a triangle a value that is not finite would reach the rows before it, as 0·NaN is
NaN. The forward pass therefore says whether y is finite, the backward pass whether dφ(Q) is, which
nothing leaves finite that is not so itself.
"""

import ctypes

import torch
from numba import njit
from torch import Tensor
from torch.nn.functional import pad

from replib.kernels import CPU_DTYPES
from replib.kernels.linear.operator import attend
from replib.kernels.numba import threads
from replib.kernels.numba import vectors as vec
from replib.kernels.numba.rows import empty_like_rows, gradients, rows_together
from replib.kernels.numba.threads import OWN

C = vec.WIDTH  # chunk: a row of A is one vector; 32 is slower by a tenth, as A has more to it
FLOAT = 4  # bytes

# exp(x) = 2ⁿ exp(r), n whole and |r| <= ln(2) / 2; a polynomial that is 1 at 0, fitted so that the
# largest relative error of exp(r) is least (2e-9; rounding makes it 9e-8).
LOG2_E, LN2 = 1.44269504088896341, 0.693147180559945309
EXP = (1.38436444e-3, 8.37416388e-3, 4.16680016e-2, 0.166664317, 0.49999994, 1.0)
SMALLEST = -80.0  # where exp is 2e-35, which is as good as 0 here; less would leave float32's range
TO_WHOLE = 1.5 * 2.0**23  # x + TO_WHOLE has the whole number nearest to x in its low bits
KEEPS_Y = False  # for the backward pass
PADDED = -1e4  # a query or key whose feature is as good as 0

COMPILE_S = 15  # about, on two cores

# What a call hands its threads: 64-bit words at these places. A tensor takes five of them: its
# address, the strides of batch, head and position in bytes, and whether it is bfloat16.
HEADS, N_QUERIES, N_KEYS, HEAD_DIM, VALUE_DIM, CAUSAL, ELU1, EPS, NOT_FINITE = range(OWN, OWN + 9)
Q, K, V, Y, DEN, DY, G, DQ, DK, DV = range(OWN + 9, OWN + 59, 5)
N_WORDS = OWN + 59


@njit
def _elu1(x):
    """φ(x) = exp(min(x, 0)) + max(x, 0); a NaN stays one."""
    zero = vec.splat(0.0)
    low = vec.maximum(vec.minimum(x, zero), vec.splat(SMALLEST))
    n = vec.fma(low, vec.splat(LOG2_E), vec.splat(TO_WHOLE))
    r = vec.fma(vec.subtract(n, vec.splat(TO_WHOLE)), vec.splat(-LN2), low)
    p = vec.splat(EXP[0])
    p = vec.fma(p, r, vec.splat(EXP[1]))
    p = vec.fma(p, r, vec.splat(EXP[2]))
    p = vec.fma(p, r, vec.splat(EXP[3]))
    p = vec.fma(p, r, vec.splat(EXP[4]))
    p = vec.fma(p, r, vec.splat(EXP[5]))
    p = vec.fma(p, r, vec.splat(1.0))
    return vec.add(vec.times_power(p, n), vec.maximum(zero, x))


@njit
def _add_product(c, rows, columns, a, a_row, a_step, b, n):
    """c (rows, columns) += a b, where a[i, p] lies at a + i·a_row + p·a_step; b is (n, columns)."""
    width = columns * FLOAT
    for i in range(0, rows, vec.ROWS):
        for j in range(0, width, vec.WIDTH * FLOAT):
            vec.panel(c + i * width + j, width, a + i * a_row, a_row, a_step, b + j, width, n)


@njit
def _add_lower_product(c, columns, a, b):
    """c (C, columns) += a b, where a (C, C) is lower triangular."""
    width, a_row = columns * FLOAT, C * FLOAT
    for i in range(0, C, vec.ROWS):
        for j in range(0, width, vec.WIDTH * FLOAT):
            vec.panel(
                c + i * width + j, width, a + i * a_row, a_row, FLOAT, b + j, width, i + vec.ROWS
            )


@njit
def _add_upper_product(c, columns, a, b):
    """c (C, columns) += aᵀ b, where a (C, C) is lower triangular."""
    width, a_row = columns * FLOAT, C * FLOAT
    for i in range(0, C, vec.ROWS):
        for j in range(0, width, vec.WIDTH * FLOAT):
            above = a + i * a_row + i * FLOAT
            vec.panel(
                c + i * width + j, width, above, FLOAT, a_row, b + i * width + j, width, C - i
            )


@njit
def _lower_product(c, a, n, b, row_constant):
    """c (C, C) = tril(a b + row_constant 1ᵀ), of a (C, n) and b (n, C)."""
    width = C * FLOAT
    _fill_rows(c, row_constant, C)
    _add_product(c, C, C, a, n * FLOAT, FLOAT, b, n)
    for i in range(C):
        vec.store(c + i * width, vec.first(vec.load(c + i * width), i + 1))


@njit
def _fill(address, n, value):
    for i in range(0, n * FLOAT, vec.WIDTH * FLOAT):
        vec.store(address + i, vec.splat(value))


@njit
def _fill_rows(tile, numbers, n):
    """tile (n, C) = numbers 1ᵀ."""
    for i in range(0, n):
        vec.store(tile + i * C * FLOAT, vec.broadcast(numbers + i * FLOAT))


@njit
def _load(x, i, j):
    """Columns j to j + 16 of row i of a tensor."""
    address, stride, half = x
    at = address + i * stride
    return vec.load_bfloat16(at + 2 * j) if half else vec.load(at + FLOAT * j)


@njit
def _read(tile, x, t, n, size, elu1):
    """The (C, size) tile of rows t to t + n of a tensor, or of their features; the rest is 0."""
    for i in range(n):
        for j in range(0, size, vec.WIDTH):
            row = _load(x, t + i, j)
            vec.store(tile + (i * size + j) * FLOAT, _elu1(row) if elu1 else row)
    _fill(tile + n * size * FLOAT, (C - n) * size, 0.0)


@njit
def _write(x, t, n, size, tile):
    """Rows t to t + n of a tensor, from a tile."""
    address, stride, half = x
    for i in range(n):
        at = address + (t + i) * stride
        for j in range(0, size, vec.WIDTH):
            row = vec.load(tile + (i * size + j) * FLOAT)
            if half:
                vec.store_bfloat16(at + 2 * j, row)
            else:
                vec.store(at + FLOAT * j, row)


@njit
def _through_feature_map(tile, features, size):
    """tile ∘ min(features, 1), as φ' = min(φ, 1)."""
    for i in range(0, C * size * FLOAT, vec.WIDTH * FLOAT):
        slope = vec.minimum(vec.load(features + i), vec.splat(1.0))
        vec.store(tile + i, vec.multiply(vec.load(tile + i), slope))


@njit
def _transpose(target, source, rows, columns):
    """target (columns, rows) = sourceᵀ."""
    for i in range(0, rows, vec.WIDTH):
        for j in range(0, columns, vec.WIDTH):
            vec.transpose(
                source + i * columns * FLOAT + j * FLOAT,
                columns * FLOAT,
                target + j * rows * FLOAT + i * FLOAT,
                rows * FLOAT,
            )


@njit
def _add_rows(total, tile, size):
    """total (size) += Σ of the C rows of a tile, which are summed first."""
    for j in range(0, size * FLOAT, vec.WIDTH * FLOAT):
        x = vec.splat(0.0)
        for i in range(C):
            x = vec.add(x, vec.load(tile + i * size * FLOAT + j))
        vec.store(total + j, vec.add(vec.load(total + j), x))


@njit
def _add_weighted_rows(total, tile, weights, size):
    """total (size) += Σ weights_i tile_i, which is summed first."""
    for j in range(0, size * FLOAT, vec.WIDTH * FLOAT):
        x = vec.splat(0.0)
        for i in range(C):
            x = vec.fma(
                vec.broadcast(weights + i * FLOAT), vec.load(tile + i * size * FLOAT + j), x
            )
        vec.store(total + j, vec.add(vec.load(total + j), x))


@njit
def _normalise(tile, size, den, n):
    """Divide rows by den_i; returns 0, or NaN where a number is not finite."""
    nothing = vec.splat(0.0)
    for i in range(n):
        factor = vec.divide(vec.splat(1.0), vec.broadcast(den + i * FLOAT))
        for j in range(0, size * FLOAT, vec.WIDTH * FLOAT):
            at = tile + i * size * FLOAT + j
            row = vec.multiply(vec.load(at), factor)
            nothing = vec.fma(row, vec.splat(0.0), nothing)
            vec.store(at, row)
    return vec.total(nothing)


@njit
def _denominators(den, queries, d, z, n, eps):
    """den_i = φ(q_i)·z + eps."""
    for i in range(n):
        x = vec.splat(0.0)
        for j in range(0, d * FLOAT, vec.WIDTH * FLOAT):
            x = vec.fma(vec.load(queries + i * d * FLOAT + j), vec.load(z + j), x)
        vec.store_one(den + i * FLOAT, vec.total(x) + eps)


@njit
def _add_row_sums(den, weights, n):
    """den_i += Σ_j A_ij."""
    for i in range(n):
        at = den + i * FLOAT
        vec.store_one(at, vec.load_one(at) + vec.total(vec.load(weights + i * C * FLOAT)))


@njit
def _gradient_of_sums(grad, dy, den, t, n, size):
    """grad (C, M) = dy / den; rows from n on are 0."""
    for i in range(n):
        factor = vec.divide(vec.splat(1.0), vec.broadcast(den + (t + i) * FLOAT))
        for j in range(0, size, vec.WIDTH):
            vec.store(grad + (i * size + j) * FLOAT, vec.multiply(_load(dy, t + i, j), factor))
    _fill(grad + n * size * FLOAT, (C - n) * size, 0.0)


@njit
def _gradient_of_den(grad_den, d_phi, queries, den, n, size):
    """grad_den_i = -φ(q_i)·u_i / den_i, where d_phi (C, D) is U."""
    for i in range(n):
        dot = vec.splat(0.0)
        for j in range(0, size * FLOAT, vec.WIDTH * FLOAT):
            at = i * size * FLOAT + j
            dot = vec.fma(vec.load(queries + at), vec.load(d_phi + at), dot)
        vec.store_one(grad_den + i * FLOAT, -vec.total(dot) / vec.load_one(den + i * FLOAT))


@njit
def _add_through_den(d_phi, grad_den, z, keys, n, size, causal):
    """d_phi_i += grad_den_i (z + Σ φ(k_j) over j <= i of the chunk, where causal).

    Returns 0, or NaN where a number is not finite.
    """
    nothing = vec.splat(0.0)
    for j in range(0, size * FLOAT, vec.WIDTH * FLOAT):
        before, here = vec.load(z + j), vec.splat(0.0)
        for i in range(n):
            at = i * size * FLOAT + j
            if causal:
                here = vec.add(here, vec.load(keys + at))
            weight = vec.broadcast(grad_den + i * FLOAT)
            row = vec.fma(weight, vec.add(before, here), vec.load(d_phi + at))
            nothing = vec.fma(row, vec.splat(0.0), nothing)
            vec.store(d_phi + at, row)
    return vec.total(nothing)


@njit
def _copy_numbers(target, source, n):
    """The first n of C numbers; the rest is 0."""
    for i in range(n):
        vec.store_one(target + i * FLOAT, vec.load_one(source + i * FLOAT))
    for i in range(n, C):
        vec.store_one(target + i * FLOAT, 0.0)


@njit
def _say(words, not_finite):
    if not_finite != 0.0:  # which a NaN is
        vec.fetch_and_add(words + 8 * NOT_FINITE)


@njit
def _head(words, tensor, i):
    """Address, stride and kind of the i-th (batch, head) of a tensor."""
    b, h = i // vec.word(words, HEADS), i % vec.word(words, HEADS)
    offset = b * vec.word(words, tensor + 1) + h * vec.word(words, tensor + 2)
    address = vec.word(words, tensor) + offset
    return address, vec.word(words, tensor + 3), vec.word(words, tensor + 4)


@njit
def _sizes(words):
    """N of queries, N of keys, D, M, and whether φ is to be applied."""
    return (
        vec.word(words, N_QUERIES),
        vec.word(words, N_KEYS),
        vec.word(words, HEAD_DIM),
        vec.word(words, VALUE_DIM),
        vec.word(words, ELU1),
    )


@njit
def _forward(words, i, s):
    """One (batch, head); s is the address of its scratch memory."""
    n_q, n_k, d, m, elu1 = _sizes(words)
    causal, eps = vec.word(words, CAUSAL), vec.number(words, EPS)
    q, k, v = _head(words, Q, i), _head(words, K, i), _head(words, V, i)
    y, (den, _, _) = _head(words, Y, i), _head(words, DEN, i)

    queries, s = s, s + C * d * FLOAT
    keys, s = s, s + C * d * FLOAT
    keys_t, s = s, s + C * d * FLOAT
    values, s = s, s + C * m * FLOAT
    out, s = s, s + C * m * FLOAT
    weights, s = s, s + C * C * FLOAT
    zeros, s = s, s + C * FLOAT
    state, s = s, s + d * m * FLOAT
    z = s
    not_finite = 0.0
    _fill(zeros, C, 0.0)
    _fill(state, d * m, 0.0)
    _fill(z, d, 0.0)

    if not causal:
        for t in range(0, n_k, C):
            _read(keys, k, t, min(C, n_k - t), d, elu1)
            _read(values, v, t, min(C, n_k - t), m, False)
            _add_product(state, d, m, keys, FLOAT, d * FLOAT, values, C)
            _add_rows(z, keys, d)
    for t in range(0, n_q, C):
        n, den_t = min(C, n_q - t), den + t * FLOAT
        _read(queries, q, t, n, d, elu1)
        _fill(out, C * m, 0.0)
        _denominators(den_t, queries, d, z, n, eps)
        if t > 0 or not causal:
            _add_product(out, C, m, queries, d * FLOAT, FLOAT, state, d)
        if causal:
            _read(keys, k, t, n, d, elu1)
            _read(values, v, t, n, m, False)
            _transpose(keys_t, keys, C, d)
            _lower_product(weights, queries, d, keys_t, zeros)
            _add_row_sums(den_t, weights, n)
            _add_lower_product(out, m, weights, values)
            if t + C < n_q:
                _add_product(state, d, m, keys, FLOAT, d * FLOAT, values, C)
                _add_rows(z, keys, d)
        not_finite += _normalise(out, m, den_t, n)
        _write(y, t, n, m, out)
    _say(words, not_finite)


@njit
def _backward(words, i, s):
    """One (batch, head): dQ, then dK and dV."""
    n_q, n_k, d, m, elu1 = _sizes(words)
    causal = vec.word(words, CAUSAL)
    q, k, v = _head(words, Q, i), _head(words, K, i), _head(words, V, i)
    (den, _, _), dy, (g, _, _) = _head(words, DEN, i), _head(words, DY, i), _head(words, G, i)
    dq, dk, dv = _head(words, DQ, i), _head(words, DK, i), _head(words, DV, i)

    queries, s = s, s + C * d * FLOAT
    keys, s = s, s + C * d * FLOAT
    keys_t, s = s, s + C * d * FLOAT
    values, s = s, s + C * m * FLOAT
    values_t, s = s, s + C * m * FLOAT
    grad, s = s, s + C * m * FLOAT
    grad_den, s = s, s + C * FLOAT
    zeros, s = s, s + C * FLOAT
    weights, s = s, s + C * C * FLOAT
    out, s = s, s + C * max(d, m) * FLOAT
    out_t, s = s, s + C * d * FLOAT
    state, s = s, s + d * m * FLOAT  # R
    state_t, s = s, s + d * m * FLOAT  # Sᵀ
    z, s = s, s + d * FLOAT
    r = s
    not_finite = 0.0
    _fill(zeros, C, 0.0)
    _fill(state, d * m, 0.0)
    _fill(state_t, d * m, 0.0)
    _fill(z, d, 0.0)
    _fill(r, d, 0.0)

    if not causal:
        for t in range(0, n_k, C):
            _read(keys, k, t, min(C, n_k - t), d, elu1)
            _read(values, v, t, min(C, n_k - t), m, False)
            _add_product(state_t, m, d, values, FLOAT, m * FLOAT, keys, C)
            _add_rows(z, keys, d)
    for t in range(0, n_q, C):
        n = min(C, n_q - t)
        _gradient_of_sums(grad, dy, den, t, n, m)
        _fill(out, C * d, 0.0)
        if t > 0 or not causal:
            _add_product(out, C, d, grad, m * FLOAT, FLOAT, state_t, m)
        if causal:
            _read(keys, k, t, n, d, elu1)
            _read(values, v, t, n, m, False)
            _transpose(values_t, values, C, m)
            _lower_product(weights, grad, m, values_t, zeros)
            _add_lower_product(out, d, weights, keys)
        _read(queries, q, t, n, d, elu1)
        _gradient_of_den(g + t * FLOAT, out, queries, den + t * FLOAT, n, d)
        not_finite += _add_through_den(out, g + t * FLOAT, z, keys, n, d, causal)
        if causal and t + C < n_q:
            _add_product(state_t, m, d, values, FLOAT, m * FLOAT, keys, C)
            _add_rows(z, keys, d)
        if not causal:
            _copy_numbers(grad_den, g + t * FLOAT, n)
            _add_product(state, d, m, queries, FLOAT, d * FLOAT, grad, C)
            _add_weighted_rows(r, queries, grad_den, d)
        if elu1:
            _through_feature_map(out, queries, d)
        _write(dq, t, n, d, out)

    for t in range((n_k - 1) // C * C, -1, -C):
        n = min(C, n_k - t)
        any_later = t + C < n_k or not causal
        _read(keys, k, t, n, d, elu1)
        _read(values, v, t, n, m, False)
        _transpose(keys_t, keys, C, d)
        _transpose(values_t, values, C, m)

        _fill(out, C * m, 0.0)
        if any_later:
            _add_product(out, C, m, keys, d * FLOAT, FLOAT, state, d)
        if causal:
            _read(queries, q, t, n, d, elu1)
            _gradient_of_sums(grad, dy, den, t, n, m)
            _copy_numbers(grad_den, g + t * FLOAT, n)
            _lower_product(weights, queries, d, keys_t, zeros)
            _add_upper_product(out, m, weights, grad)
        _write(dv, t, n, m, out)

        _fill_rows(out_t, r, d)  # V Rᵀ + 1 rᵀ, as the transpose of R Vᵀ + r 1ᵀ
        if any_later:
            _add_product(out_t, d, C, state, m * FLOAT, FLOAT, values_t, m)
        _transpose(out, out_t, d, C)
        if causal:
            _lower_product(weights, grad, m, values_t, grad_den)
            _add_upper_product(out, d, weights, queries)
            if t > 0:
                _add_product(state, d, m, queries, FLOAT, d * FLOAT, grad, C)
                _add_weighted_rows(r, queries, grad_den, d)
        if elu1:
            _through_feature_map(out, keys, d)
        _write(dk, t, n, d, out)
    _say(words, not_finite)


def _scratch_floats(d: int, m: int) -> int:
    """What the larger of the two passes lays out above."""
    return 4 * C * d + 3 * C * m + C * max(d, m) + C * C + 2 * C + 2 * d * m + 2 * d


KERNEL = threads.Kernel("the CPU kernel", COMPILE_S, forward=_forward, backward=_backward)


def _run(key: str, tensors: dict[int, Tensor], eps: float, elu1: bool, causal: bool) -> bool:
    """Fill in the words and let the threads work; whether y, or dφ(Q), is finite."""
    q, v = tensors[Q], tensors[V]
    b, h, n_q, d = q.shape
    n_k, m = v.shape[2:]
    words = (ctypes.c_int64 * N_WORDS)()
    words[HEADS:EPS] = h, n_q, n_k, d, m, causal, elu1
    ctypes.c_double.from_buffer(words, 8 * EPS).value = eps
    _write_places(words, tensors)
    KERNEL.run(key, words, b * h, _scratch_floats(d, m))
    return words[NOT_FINITE] == 0


def _write_places(words, tensors: dict[int, Tensor]) -> None:
    """Say where each tensor lies, at its place in the words.

    Raises:
        ValueError: a tensor has a dtype that would be read as another.
    """
    for place, x in tensors.items():
        if x.dtype not in CPU_DTYPES:
            raise ValueError(f"a tensor of {x.dtype}: use torch.float32 or torch.bfloat16")
        size = x.element_size()
        strides = (size * stride for stride in x.stride()[:3])
        words[place : place + 5] = x.data_ptr(), *strides, x.dtype == torch.bfloat16


def results(q: Tensor, k: Tensor, v: Tensor, elu1: bool, causal: bool) -> tuple[Tensor, Tensor]:
    """Room for y and den."""
    den = q.new_empty(q.shape[:3], dtype=torch.float32)
    if q.shape[2] == v.shape[2]:
        return empty_like_rows(v), den
    return v.new_empty((*q.shape[:3], v.shape[-1])), den


def forward(q, k, v, y, den, *, eps: float, elu1: bool, causal: bool) -> bool:
    """Write y and den; whether y is finite."""
    return _run("forward", {Q: q, K: k, V: v, Y: y, DEN: den}, eps, elu1, causal)


def backward(dy, q, k, v, den, *, eps: float, elu1: bool, causal: bool):
    """dq, dk and dv, and whether dφ(Q) is finite."""
    found = dq, dk, dv = gradients(q, k, v)
    tensors = {Q: q, K: k, V: v, DEN: den, DY: rows_together(dy), G: torch.empty_like(den)}
    tensors |= {DQ: dq, DK: dk, DV: dv}
    return found, _run("backward", tensors, eps, elu1, causal)


def padded(size: int) -> int:
    """A multiple of a vector's size."""
    return size + -size % vec.WIDTH


def _widen(x: Tensor, value: float) -> Tensor:
    """x with its last size padded."""
    missing = padded(x.shape[-1]) - x.shape[-1]
    return pad(x, (0, missing), value=value) if missing else rows_together(x)


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, eps: float, elu1: bool, causal: bool
) -> Tensor:
    """Normalised linear attention of float32 and bfloat16 tensors.

    Sizes per head that are no multiple of 16 are padded, which copies the tensors.
    """
    nothing = PADDED if elu1 else 0.0
    wide = _widen(q, nothing), _widen(k, nothing), _widen(v, 0.0)
    return attend(*wide, "cpu", eps, elu1, causal)[..., : v.shape[-1]]


def operations_per_token(d: int, m: int, c: int, backward: bool) -> float:
    """Floating-point operations that the products take a token and head, causal, of one pass.

    The equations above in order; half of a product with A or W is left out where it is zero, save
    for the tiles on the diagonal. φ takes about 15 operations a number and is not counted.
    """
    triangle = c + vec.ROWS
    if backward:
        return 10 * d * m + 2 * c * (2 * m + d) + triangle * (2 * d + m)
    return 4 * d * m + 2 * c * d + triangle * m


def bytes_per_token(d: int, m: int, itemsize: int, backward: bool) -> float:
    """Bytes that a token and head move to and from memory, each tensor once, in one pass."""
    if backward:  # q, k, v, dy and den in, dq, dk and dv out
        return (4 * d + 3 * m) * itemsize + FLOAT
    return (2 * d + 2 * m) * itemsize + FLOAT  # q, k and v in, y and den out
