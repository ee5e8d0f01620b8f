"""What one query of a sequence reads of its writes, fused for the CPU: features, memory and
gradient of a sequence in cache, a write after the other.

B sequences, N writes, D key size, R feature size. A key x (D) has the features r_i r_{i-j} of
DPFP-ν, r = relu([x, -x]) (2D), j = 1..ν; with ν = 0 it is features already, and with ν = ELU1 its
features are elu(x) + 1, of all keys of a sequence first. The rule "sum" reads
a_n = φ(q)·φ(k_n). The delta rule has features f = φ / Σφ, and the query passes the writes from the
last to the first,

    x_n = q·f_n,     p_n = β_n x_n,     q ← q - p_n f_n,

which takes N·R operations where there is one query. Its gradient goes back from the first write,
with q as it was before each (kept) and dq = 0 at first:

    dp_n ← dp_n - dq·f_n,   dβ_n = dp_n x_n,   df_n = dp_n β_n q - p_n dq,   dq ← dq + dp_n β_n f_n
"""

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from numba import carray, njit, types
from numba.extending import intrinsic
from torch import Tensor

from replib.kernels.library import once
from replib.kernels.linear import cpu
from replib.kernels.numba import threads
from replib.kernels.numba import vectors as vec
from replib.kernels.numba.threads import OWN

COMPILE_S = 10  # about, on two cores

# What a call hands its threads, sizes and then addresses.
N, D, R, NU, HAS_RATES, Q, K, RATES, P, DQ, DK, D_RATES = range(OWN, OWN + 12)
N_WORDS, FLOAT = OWN + 12, 4

SMALLEST = 1e-30  # added to Σφ, which may be 0
ELU1 = -1  # in place of ν; D is then a multiple of a vector's width


def read_weights(q: Tensor, k: Tensor, beta: Tensor | None, nu: int) -> Tensor:
    """How much of each value a query reads: a of the rule "sum", p of the delta rule (with beta).

    q (..., 1, R), features already; k (..., N, D), with nu = 0 features already, with nu = ELU1 a
    multiple of `vec.WIDTH` in size; beta (..., N);
    all float32 -> (..., 1, N), differentiable once: more raises.
    """
    shape = k.shape[:-2]
    q, k = q.reshape(-1, q.shape[-1]), k.reshape(-1, *k.shape[-2:])
    rates = k.new_empty(len(k), 0) if beta is None else beta.reshape(k.shape[:2])
    tensors = (x.contiguous() for x in (q, k, rates))
    return _read_weights(*tensors, nu).unflatten(0, shape).unsqueeze(-2)


def _forward_pass(q: Tensor, k: Tensor, rates: Tensor, nu: int):
    p = torch.empty(k.shape[:2])
    _run("forward", (q, k, rates, p), nu)
    return p, (q, k, rates)


def _backward_pass(_, dp: Tensor, q: Tensor, k: Tensor, rates: Tensor, nu: int):
    gradients = [torch.empty_like(x) for x in (q, k, rates)]
    _run("backward", (q, k, rates, dp.contiguous(), *gradients), nu)
    return gradients


_read_weights = once("The fused memory", _forward_pass, _backward_pass)


# Loops run over slices from 0 on: an index that could be negative is not vectorised.


@njit(fastmath=True, inline="always")
def _times(a, b, out):
    for i in range(len(out)):
        out[i] = a[i] * b[i]


@njit(fastmath=True, inline="always")
def _add_times(a, b, out):
    for i in range(len(out)):
        out[i] += a[i] * b[i]


@njit(fastmath=True, inline="always")
def _add_scaled(a, scale, out):
    for i in range(len(out)):
        out[i] += a[i] * scale


@njit(fastmath=True, inline="always")
def _dot(a, b):
    total = np.float32(0)
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@njit(fastmath=True, inline="always")
def _sum(a):
    total = np.float32(0)
    for i in range(len(a)):
        total += a[i]
    return total


@njit(fastmath=True, inline="always")
def _features(x, nu, r, f):
    """f = φ(x), through r; the sum of f."""
    d = len(x)
    if nu == 0:
        for i in range(d):
            f[i] = x[i]
        return _sum(f)
    positive, negative = r[:d], r[d:]
    for i in range(d):
        positive[i] = x[i] if x[i] > 0 else np.float32(0)
    for i in range(d):
        negative[i] = np.float32(0) if x[i] > 0 else -x[i]
    for j in range(1, nu + 1):
        out = f[(j - 1) * 2 * d : j * 2 * d]
        _times(r[:j], r[2 * d - j :], out[:j])
        _times(r[j:], r[: 2 * d - j], out[j:])
    return _sum(f)


@njit(fastmath=True, inline="always")
def _features_backward(x, nu, r, df, dr, dx):
    """dx from df, through dr; r as `_features` left it."""
    d = len(x)
    if nu == 0:
        for i in range(d):
            dx[i] = df[i]
        return
    for i in range(2 * d):
        dr[i] = 0
    for j in range(1, nu + 1):
        given = df[(j - 1) * 2 * d : j * 2 * d]
        _add_times(given[:j], r[2 * d - j :], dr[:j])
        _add_times(given[:j], r[:j], dr[2 * d - j :])
        _add_times(given[j:], r[: 2 * d - j], dr[j:])
        _add_times(given[j:], r[j:], dr[: 2 * d - j])
    by_positive, by_negative = dr[:d], dr[d:]
    for i in range(d):
        dx[i] = by_positive[i] if x[i] > 0 else -by_negative[i]


@njit(fastmath=True)
def _sequence_forward(q, k, rates, p, nu):
    n, d, size = k.shape[0], k.shape[1], len(q)
    r, f, query = np.empty(2 * d, np.float32), np.empty(size, np.float32), q.copy()
    for i in range(n - 1, -1, -1):
        total = _features(k[i], nu, r, f)
        p[i] = _dot(query, f)
        if len(rates):
            scale = np.float32(1) / (total + np.float32(SMALLEST))
            p[i] *= scale * rates[i]
            weight = p[i] * scale
            _add_scaled(f, -weight, query)


@njit(fastmath=True)
def _sequence_backward(q, k, rates, dp, dq, dk, d_rates, nu):
    n, d, size = k.shape[0], k.shape[1], len(q)
    r, dr = np.empty(2 * d, np.float32), np.empty(2 * d, np.float32)
    f, df = np.empty(size, np.float32), np.empty(size, np.float32)
    for c in range(size):
        dq[c] = 0
    if len(rates) == 0:
        for i in range(n):
            _features(k[i], nu, r, f)
            _add_scaled(f, dp[i], dq)
            for c in range(size):
                df[c] = dp[i] * q[c]
            _features_backward(k[i], nu, r, df, dr, dk[i])
        return
    queries, query, reads = np.empty((n, size), np.float32), q.copy(), np.empty(n, np.float32)
    for i in range(n - 1, -1, -1):
        scale = np.float32(1) / (_features(k[i], nu, r, f) + np.float32(SMALLEST))
        reads[i] = _dot(query, f) * scale
        weight = reads[i] * rates[i] * scale
        queries[i] = query
        _add_scaled(f, -weight, query)
    for i in range(n):
        scale = np.float32(1) / (_features(k[i], nu, r, f) + np.float32(SMALLEST))
        d_weight = dp[i] - _dot(dq, f) * scale
        d_rates[i] = d_weight * reads[i]
        d_read, weight = d_weight * rates[i], reads[i] * rates[i]
        before = queries[i]
        for c in range(size):
            df[c] = d_read * before[c] - weight * dq[c]
        _add_scaled(f, d_read * scale, dq)
        mean = _dot(df, f) * scale  # through the division by the sum
        for c in range(size):
            df[c] = (df[c] - mean) * scale
        _features_backward(k[i], nu, r, df, dr, dk[i])


@intrinsic
def _pointer(typingctx, address):
    """The float32 at an address."""

    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(types.int64), codegen


@njit
def _row(words, place, b, length):
    """The numbers of sequence b in the tensor whose address is at a place of the words."""
    address = vec.word(words, place) + b * length * FLOAT
    return carray(_pointer(address), (length,), dtype=np.float32)


@njit
def _arrays(words, b):
    n, d, r = vec.word(words, N), vec.word(words, D), vec.word(words, R)
    n_rates = n * vec.word(words, HAS_RATES)
    q, k = _row(words, Q, b, r), _row(words, K, b, n * d).reshape(n, d)
    return q, k, _row(words, RATES, b, n_rates), _row(words, P, b, n), n_rates


@njit
def _elu1(k):
    """elu(k) + 1 of all keys."""
    f = np.empty(k.shape, np.float32)
    source, target = np.int64(k.ctypes.data), np.int64(f.ctypes.data)
    for at in range(0, k.size * FLOAT, vec.WIDTH * FLOAT):
        vec.store(target + at, cpu._elu1(vec.load(source + at)))
    return f


@njit
def _through_elu1(dk, f):
    """dk ∘ min(f, 1), as φ' = min(φ, 1)."""
    target, source = np.int64(dk.ctypes.data), np.int64(f.ctypes.data)
    for at in range(0, f.size * FLOAT, vec.WIDTH * FLOAT):
        slope = vec.minimum(vec.load(source + at), vec.splat(1.0))
        vec.store(target + at, vec.multiply(vec.load(target + at), slope))


@njit
def _forward(words, b, scratch):
    """One sequence."""
    (q, k, rates, p, _), nu = _arrays(words, b), vec.word(words, NU)
    if nu == ELU1:
        _sequence_forward(q, _elu1(k), rates, p, 0)
    else:
        _sequence_forward(q, k, rates, p, nu)


@njit
def _backward(words, b, scratch):
    (q, k, rates, dp, n_rates), nu = _arrays(words, b), vec.word(words, NU)
    dq, dk = _row(words, DQ, b, len(q)), _row(words, DK, b, k.size).reshape(k.shape)
    d_rates = _row(words, D_RATES, b, n_rates)
    if nu == ELU1:
        f = _elu1(k)
        _sequence_backward(q, f, rates, dp, dq, dk, d_rates, 0)
        _through_elu1(dk, f)
    else:
        _sequence_backward(q, k, rates, dp, dq, dk, d_rates, nu)


KERNEL = threads.Kernel("the memories", COMPILE_S, forward=_forward, backward=_backward)


def _run(key: str, tensors: Sequence[Tensor], nu: int) -> None:
    """Let the threads work; the tensors, contiguous, are those of the places from Q on."""
    q, k, rates = tensors[:3]
    words = (ctypes.c_int64 * N_WORDS)()
    words[N : HAS_RATES + 1] = *k.shape[1:], q.shape[1], nu, rates.shape[1] > 0
    words[Q : Q + len(tensors)] = [x.data_ptr() for x in tensors]
    KERNEL.run(key, words, len(k))
