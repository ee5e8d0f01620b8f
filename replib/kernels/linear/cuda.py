"""Linear attention fused for CUDA devices: feature map, products, state and normaliser, in Triton.

B batch, H heads, N sequence length, C chunk, D query/key size per head, M value size per head.
Lower case letters are rows; S = Σ φ(k_j) v_jᵀ (D, M) and z = Σ φ(k_j) (D) are the sums over all
earlier chunks (Katharopoulos et al. 2020, eq. 18-19), in float32 registers. Forward, for each
chunk:

    den = φ(Q) z + eps + A·1,   A = tril(φ(Q) φ(K)ᵀ),   Y = (φ(Q) S + A V) / den,
    S += φ(K)ᵀ V,   z += φ(K)ᵀ 1.

Backward, with g = -rowsum(dY ∘ Y), first chunk to last (S and z again, from nothing):

    W = tril(dY Vᵀ + g 1ᵀ),   dφ(Q) = (dY Sᵀ + g zᵀ + W φ(K)) / den,

then last chunk to first, with P = φ(Q) / den, and R = Σ p_i dy_iᵀ and r = Σ g_i p_i over all later
chunks:

    dV = φ(K) R + tril(P φ(K)ᵀ)ᵀ dY,   dφ(K) = V Rᵀ + 1 rᵀ + Wᵀ P,   R += Pᵀ dY,   r += Pᵀ g,

and dQ = dφ(Q) ∘ min(φ(Q), 1), as φ' = min(φ, 1); dK likewise. Not causal, A and W are absent and
S, z (R, r) are sums over all keys (queries). The state is kept as Sᵀ (Rᵀ), so that V and dY enter
every product straight from memory, and φ is computed once, not once for each operand's layout.

A program takes a (batch, head). Where these are fewer than the programs that the device runs at
once, N is cut into segments, a program each: a first kernel sums φ(K)ᵀ [V, 1] (backward:
Pᵀ [dY, g]) over each segment, and a program begins with the sum over the segments before (after)
its own. Only y, 1 / den (B, H, N) and the states of segments are kept for the backward pass. No
result depends on the order in which programs run.

In dφ(Q) nearly all of dY Sᵀ and g zᵀ cancels where values have a mean. For bfloat16 and float16, g
is therefore of a float32 Y that is kept beside the rounded one, S enters this product with twice
the digits of an operand, and z sums the keys that S does, rounded.

A value that is not finite would reach earlier rows of its chunk, as 0·NaN is NaN: the product with
the triangle has 0 in its place, and the row sums of A a NaN where it is seen.

Products take bfloat16 operands for bfloat16 inputs; TF32 for float16, which has its digits and the
range that φ(Q) φ(K)ᵀ needs; and for float32 three TF32 products each, exact to some units of
float32's last place and, by the compiled instructions, cheaper than float32's own. The widest dtype
of q, k and v decides. Sums are float32 throughout.

It was tested with Triton's interpreter on a CPU; with a CUDA device, the same tests run there. The
candidate configurations are those of fewest instructions a token and registers spilled in what
Triton 3.7 compiles for an H100 or H200.
"""

import math
import sys
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial, reduce

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import OutOfResources, PTXASError

from replib.kernels.linear.operator import attend
from replib.kernels.numba.rows import empty_like_rows, gradients, rows_together

INTERPRETED = triton.knobs.runtime.interpret

# A multiprocessor holds one program at once whose keys or values are this wide, two of half.
WIDTH_PER_PROCESSOR = 128
MIN_SEGMENT_LEN = 128  # a shorter one costs more in states than it gains in programs
SEGMENT_STEP = 64  # a multiple of every chunk
FEW_STATES = 8  # as many a program adds up itself; of more, a kernel makes prefix sums
PREFIX_ROWS, PREFIX_COLUMNS = 64, 64  # states, and numbers of each, that `_add_up` takes at once
MIN_SIZE = 16  # the least D, M and C of a product

KEEPS_Y = True  # for the backward pass
# For each dtype of the inputs: that of operands, and their precision where it is float32.
OPERANDS = {
    torch.bfloat16: (tl.bfloat16, "tf32"),
    torch.float16: (tl.float32, "tf32"),
    torch.float32: (tl.float32, "tf32x3"),
}
if INTERPRETED:  # numpy has no bfloat16 to multiply
    OPERANDS[torch.bfloat16] = OPERANDS[torch.float16]


@triton.jit
def _head(x, head, H):
    """A (batch, head) of x, which is its address and strides: where it begins, and the last."""
    batch = tl.cast(head // H, tl.int64)
    return x[0] + batch * x[1] + tl.cast(head % H, tl.int64) * x[2], x[3]


@triton.jit
def _place(x, start, n, C: tl.constexpr, SIZE: tl.constexpr, P: tl.constexpr):
    """Addresses of rows start .. start + C of x (n, SIZE), as (C, P), and which of them exist."""
    rows = tl.arange(0, C)
    columns = tl.arange(0, P)
    exist = (start + rows < n)[:, None]
    if P != SIZE:
        exist = exist & (columns < SIZE)[None, :]
    first = x[0] + tl.cast(start, tl.int64) * x[1]
    return first + (rows[:, None] * x[1] + columns[None, :]), exist


@triton.jit
def _rows(x, start, n, C: tl.constexpr, SIZE: tl.constexpr, P: tl.constexpr):
    """Rows of x, (C, P) with zeros beyond it."""
    place, exist = _place(x, start, n, C, SIZE, P)
    return tl.load(place, mask=exist, other=0.0)


@triton.jit
def _features(
    x, start, n, C: tl.constexpr, SIZE: tl.constexpr, P: tl.constexpr, ELU1: tl.constexpr,
    ZERO: tl.constexpr,
):  # fmt: skip
    """φ of rows of x, float32 (C, P); with ZERO it is 0 beyond x, as φ(-∞) is."""
    place, exist = _place(x, start, n, C, SIZE, P)
    beyond: tl.constexpr = float("-inf") if ELU1 and ZERO else 0.0
    phi = tl.load(place, mask=exist, other=beyond).to(tl.float32)
    if ELU1:
        phi = tl.exp(tl.minimum(phi, 0.0)) + tl.maximum(phi, 0.0)
    return phi


@triton.jit
def _write(x, values, start, n, C: tl.constexpr, SIZE: tl.constexpr, P: tl.constexpr):
    place, exist = _place(x, start, n, C, SIZE, P)
    tl.store(place, values.to(x[0].dtype.element_ty), mask=exist)


@triton.jit
def _numbers(x, start, n, C: tl.constexpr):
    """Numbers start .. start + C of x (n), with zeros beyond it."""
    i = start + tl.arange(0, C)
    return tl.load(x + i, mask=i < n, other=0.0)


@triton.jit
def _sum_of_states(states, last, n_summed, PD: tl.constexpr, PM: tl.constexpr):
    """Σ over the n_summed states before the last of Sᵀ (PM, PD) and z (PD)."""
    d = tl.arange(0, PD)
    m = tl.arange(0, PM)
    s = tl.zeros((PM, PD), tl.float32)
    z = tl.zeros((PD,), tl.float32)
    for i in range(tl.maximum(last - n_summed, 0), last):
        state = states + tl.cast(i, tl.int64) * (PD * PM + PD)
        s += tl.load(state + m[:, None] * PD + d[None, :])
        z += tl.load(state + PD * PM + d)
    return s, z


@triton.jit
def _times_state(a, s, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """a s with more digits of s than an operand holds."""
    if PRECISION == "tf32x3":  # which takes them itself
        return tl.dot(a, s, input_precision=PRECISION)
    if tl.float32 == DOT:
        return tl.dot(a, s, input_precision="tf32x3")
    high = s.to(DOT)
    low = (s - high.to(tl.float32)).to(DOT)
    return tl.dot(a, high, tl.dot(a, low))


@triton.jit
def _times_vector(a, z, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """a z as a product, since a sum over the rows of an operand would compute φ again."""
    column = tl.arange(0, 16)[None, :]  # the fewest of a product
    high = z.to(DOT).to(tl.float32)
    low = z - high  # the digits that an operand does not hold
    columns = tl.where(column == 0, high[:, None], tl.where(column == 1, low[:, None], 0.0))
    return tl.sum(tl.dot(a, columns.to(DOT), input_precision=PRECISION), 1)


@triton.jit(do_not_specialize=["H", "n", "segment_len", "n_segments"])
def _sum_segments(
    x, w, y, inverse, states, H, n, segment_len, n_segments,
    D: tl.constexpr, M: tl.constexpr, PD: tl.constexpr, PM: tl.constexpr, ELU1: tl.constexpr,
    CAUSAL: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, GRADIENT: tl.constexpr,
    C: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The states of segments: Σ φ(k) vᵀ and Σ φ(k), where x, w are k, v.

    With GRADIENT x, w are q, dy, and they are Σ p dyᵀ and Σ g p, the last segment first.
    """
    head = tl.program_id(0)
    place = tl.program_id(1)
    segment = n_segments - 1 - place if GRADIENT else place
    x = _head(x, head, H)
    w = _head(w, head, H)
    if GRADIENT:
        y = _head(y, head, H)
        inverse += tl.cast(head, tl.int64) * n
    s = tl.zeros((PM, PD), tl.float32)
    z = tl.zeros((PD,), tl.float32)
    last = tl.minimum((segment + 1) * segment_len, n)
    for start in tl.range(segment * segment_len, last, C, num_stages=STAGES):
        phi = _features(x, start, n, C, D, PD, ELU1, not CAUSAL or D != PD)
        weights = _rows(w, start, n, C, M, PM)
        if GRADIENT:
            phi *= _numbers(inverse, start, n, C)[:, None]
            outputs = _rows(y, start, n, C, M, PM).to(tl.float32)
            g = -tl.sum(weights.to(tl.float32) * outputs, 1)
            z += tl.sum(g[:, None] * phi, 0)
        else:
            z += tl.sum(phi.to(DOT).to(tl.float32), 0)
        s = tl.dot(tl.trans(weights.to(DOT)), phi.to(DOT), s, input_precision=PRECISION)
    d = tl.arange(0, PD)
    m = tl.arange(0, PM)
    state = tl.cast(head, tl.int64) * tl.num_programs(1) + place
    states += state * (PD * PM + PD)
    tl.store(states + m[:, None] * PD + d[None, :], s)
    tl.store(states + PD * PM + d, z)


@triton.jit(do_not_specialize=["n_states"])
def _add_up(states, n_states, SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Replace each head's states (n_states, SIZE) by their prefix sums."""
    states += tl.cast(tl.program_id(0), tl.int64) * n_states * SIZE
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for first in range(0, n_states, ROWS):
        rows = first + tl.arange(0, ROWS)
        place = states + rows[:, None] * SIZE + columns[None, :]
        exist = (rows < n_states)[:, None] & (columns < SIZE)[None, :]
        x = tl.load(place, mask=exist, other=0.0)
        tl.store(place, tl.cumsum(x, 0) + total[None, :], mask=exist)
        total += tl.sum(x, 0)


@triton.jit(do_not_specialize=["H", "n_q", "n_k", "segment_len", "n_states", "n_summed"])
def _forward(
    q, k, v, y, y_kept, inverse, states, H, n_q, n_k, segment_len, n_states, n_summed, eps,
    D: tl.constexpr, M: tl.constexpr, PD: tl.constexpr, PM: tl.constexpr, ELU1: tl.constexpr,
    CAUSAL: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, KEEP: tl.constexpr,
    C: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    segment = tl.program_id(1)
    q = _head(q, head, H)
    k = _head(k, head, H)
    v = _head(v, head, H)
    y = _head(y, head, H)
    y_kept = _head(y_kept, head, H)
    inverse += tl.cast(head, tl.int64) * n_q
    states += tl.cast(head, tl.int64) * n_states * (PD * PM + PD)
    s, z = _sum_of_states(states, segment if CAUSAL else n_states, n_summed, PD, PM)
    i = tl.arange(0, C)
    lower = i[:, None] >= i[None, :]
    last = tl.minimum((segment + 1) * segment_len, n_q)
    for start in tl.range(segment * segment_len, last, C, num_stages=STAGES):
        queries = _features(q, start, n_q, C, D, PD, ELU1, False).to(DOT)
        den = _times_vector(queries, z, DOT, PRECISION) + eps
        out = tl.dot(queries, tl.trans(s.to(DOT)), input_precision=PRECISION)
        if CAUSAL:
            phi = _features(k, start, n_k, C, D, PD, ELU1, D != PD)
            keys = phi.to(DOT)
            values = _rows(v, start, n_k, C, M, PM)
            nothing = values.to(tl.float32) * 0.0  # or NaN
            a = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
            a = tl.where(lower, a, 0.0)
            den += tl.sum(tl.where(lower, a + tl.sum(nothing, 1)[None, :], 0.0), 1)
            finite = tl.where(nothing == 0.0, values, 0.0).to(DOT)
            out = tl.dot(a.to(DOT), finite, out, input_precision=PRECISION)
            s = tl.dot(tl.trans(values.to(DOT)), keys, s, input_precision=PRECISION)
            z += tl.sum(keys.to(tl.float32), 0)
        scale = 1.0 / den
        out *= scale[:, None]
        _write(y, out, start, n_q, C, M, PM)
        if KEEP:
            _write(y_kept, out, start, n_q, C, M, PM)
        tl.store(inverse + start + i, scale, mask=start + i < n_q)


@triton.jit(do_not_specialize=["H", "n_q", "n_k", "segment_len", "n_states", "n_summed"])
def _backward(
    q, k, v, y, dy, dq, dk, dv, inverse, g, s_states, r_states,
    H, n_q, n_k, segment_len, n_states, n_summed,
    D: tl.constexpr, M: tl.constexpr, PD: tl.constexpr, PM: tl.constexpr, ELU1: tl.constexpr,
    CAUSAL: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
    C: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    segment = tl.program_id(1)
    q = _head(q, head, H)
    k = _head(k, head, H)
    v = _head(v, head, H)
    y = _head(y, head, H)
    dy = _head(dy, head, H)
    dq = _head(dq, head, H)
    dk = _head(dk, head, H)
    dv = _head(dv, head, H)
    inverse += tl.cast(head, tl.int64) * n_q
    g += tl.cast(head, tl.int64) * n_q
    s_states += tl.cast(head, tl.int64) * n_states * (PD * PM + PD)
    r_states += tl.cast(head, tl.int64) * n_states * (PD * PM + PD)
    first = segment * segment_len
    i = tl.arange(0, C)

    s, z = _sum_of_states(s_states, segment if CAUSAL else n_states, n_summed, PD, PM)
    lower = i[:, None] >= i[None, :]
    for start in tl.range(first, tl.minimum(first + segment_len, n_q), C, num_stages=STAGES):
        grad = _rows(dy, start, n_q, C, M, PM)
        outputs = _rows(y, start, n_q, C, M, PM).to(tl.float32)
        grad_den = -tl.sum(grad.to(tl.float32) * outputs, 1)
        grad = grad.to(DOT)
        d_phi = _times_state(grad, s, DOT, PRECISION)
        d_phi += grad_den[:, None] * z[None, :]
        if CAUSAL:
            tl.store(g + start + i, grad_den, mask=start + i < n_q)
            phi = _features(k, start, n_k, C, D, PD, ELU1, False)
            keys = phi.to(DOT)
            values = _rows(v, start, n_k, C, M, PM).to(DOT)
            w = tl.dot(grad, tl.trans(values), input_precision=PRECISION) + grad_den[:, None]
            w = tl.where(lower, w, 0.0).to(DOT)
            d_phi = tl.dot(w, keys, d_phi, input_precision=PRECISION)
            s = tl.dot(tl.trans(values), keys, s, input_precision=PRECISION)
            z += tl.sum(keys.to(tl.float32), 0)
        d_phi *= _numbers(inverse, start, n_q, C)[:, None]
        if ELU1:
            d_phi *= tl.minimum(_features(q, start, n_q, C, D, PD, ELU1, False), 1.0)
        _write(dq, d_phi, start, n_q, C, D, PD)

    tl.debug_barrier()  # g is read by other threads than those that wrote it
    last = tl.num_programs(1) - 1 - segment if CAUSAL else n_states
    r_t, r = _sum_of_states(r_states, last, n_summed, PD, PM)  # Rᵀ and r
    upper = i[:, None] <= i[None, :]
    n_chunks = tl.cdiv(tl.minimum(first + segment_len, n_k) - first, C)
    for chunk in tl.range(0, n_chunks, num_stages=STAGES):
        start = first + (n_chunks - 1 - chunk) * C
        phi = _features(k, start, n_k, C, D, PD, ELU1, D != PD)
        keys = phi.to(DOT)
        values = _rows(v, start, n_k, C, M, PM).to(DOT)
        state = r_t.to(DOT)
        d_values = tl.dot(keys, tl.trans(state), input_precision=PRECISION)
        d_phi = tl.dot(values, state, input_precision=PRECISION) + r[None, :]
        if CAUSAL:
            p = _features(q, start, n_q, C, D, PD, ELU1, False)
            p *= _numbers(inverse, start, n_q, C)[:, None]
            grad = _rows(dy, start, n_q, C, M, PM).to(DOT)
            grad_den = _numbers(g, start, n_q, C)
            r += tl.sum(grad_den[:, None] * p, 0)
            p = p.to(DOT)
            a = tl.dot(keys, tl.trans(p), input_precision=PRECISION)  # Aᵀ / den
            a = tl.where(upper, a, 0.0).to(DOT)
            d_values = tl.dot(a, grad, d_values, input_precision=PRECISION)
            w = tl.dot(values, tl.trans(grad), input_precision=PRECISION) + grad_den[None, :]
            w = tl.where(upper, w, 0.0).to(DOT)  # Wᵀ
            d_phi = tl.dot(w, p, d_phi, input_precision=PRECISION)
            r_t = tl.dot(tl.trans(grad), p, r_t, input_precision=PRECISION)
        if ELU1:
            d_phi *= tl.minimum(phi, 1.0)
        _write(dk, d_phi, start, n_k, C, D, PD)
        _write(dv, d_values, start, n_k, C, M, PM)


def _candidates(width: int, precise: bool) -> list[dict[str, int]]:
    """What to try for the wider of padded D and M: longer chunks, or more warps, spill registers.

    STAGES is how many chunks are on their way from memory; with at most 168 registers a thread,
    three programs of four warps share a multiprocessor.
    """
    if precise:
        tried = {32: ((32, 2), (16, 2)), 64: ((16, 4), (32, 4)), 128: ((16, 8),)}
        return [{"C": c, "num_warps": w, "STAGES": 2} for c, w in tried[max(width, 32)]]
    if width == 128:
        return [{"C": 64, "num_warps": 8, "STAGES": n} for n in (1, 2)]
    long = {"C": 64, "num_warps": 4, "STAGES": 2}
    if width == 64:
        return [long, long | {"STAGES": 3}, long | {"maxnreg": 168}]
    return [{"C": 32, "num_warps": 2, "STAGES": 2}, {"C": 32, "num_warps": 4, "STAGES": 2}, long]


INTERPRETED_CONFIGURATION = {"C": 32, "STAGES": 1}
LEAST = {"C": 16, "num_warps": 4, "STAGES": 1}  # for devices with little shared memory
_fastest: dict[tuple, dict[str, int]] = {}


@cache
def _announce() -> None:
    print("replib: compiling the CUDA kernels, some seconds for each size; once", file=sys.stderr)


def _tune(kernel, grid, arguments, constants) -> dict[str, int]:
    """The fastest candidate, each run for some milliseconds; all compute the same."""
    if INTERPRETED:
        return INTERPRETED_CONFIGURATION
    _announce()
    width, precise = max(constants["PD"], constants["PM"]), constants["PRECISION"] == "tf32x3"
    best, best_ms = LEAST, math.inf
    for candidate in _candidates(width, precise):
        run = partial(kernel[grid], *arguments, **constants, **candidate)
        try:
            ms = triton.testing.do_bench(run, warmup=3, rep=10, return_mode="median")
        except (OutOfResources, PTXASError):
            continue
        if ms < best_ms:
            best, best_ms = candidate, ms
    return best


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """How a call is cut into programs, and what its kernels are compiled for."""

    n_heads: int  # B·H
    segment_len: int
    n_segments: int
    n_states: int  # that are stored for a head
    n_summed: int  # of them, at most, a program adds up
    keeps_y: bool  # in float32, as it is rounded
    constants: dict
    options: dict = field(default_factory=dict)  # of each kernel: constants, chunk, warps

    def launch(self, kernel, n_programs: int, *arguments, **constants) -> None:
        """Run a kernel as n_programs for each head."""
        grid = (self.n_heads, n_programs)
        name = (kernel.__name__, *constants.values())
        if name not in self.options:
            constants = self.constants | constants
            key = (kernel.__name__, self.segment_len.bit_length(), *constants.values())
            if key not in _fastest:
                _fastest[key] = _tune(kernel, grid, arguments, constants)
            self.options[name] = constants | _fastest[key]
        kernel[grid](*arguments, **self.options[name])

    @property
    def state_size(self) -> int:
        """Numbers of Sᵀ and z (Rᵀ and r)."""
        return self.constants["PD"] * (self.constants["PM"] + 1)

    def fill(self, states, x, w, y, inverse, heads: int, n: int, *, gradient: bool) -> None:
        """Write the states of segments, or their prefix sums, to (B, H, n_states, state_size)."""
        if self.n_states == 0:
            return
        self.launch(
            _sum_segments,
            self.n_states,
            *(x, w, y, inverse, states),
            *(heads, n, self.segment_len, self.n_segments),
            GRADIENT=gradient,
        )
        if self.n_summed < self.n_states:
            grid = (self.n_heads, _ceil_div(self.state_size, PREFIX_COLUMNS))
            _add_up[grid](states, self.n_states, self.state_size, PREFIX_ROWS, PREFIX_COLUMNS)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _padded(size: int) -> int:
    return max(MIN_SIZE, 1 << (size - 1).bit_length())


@cache
def _processors(device: torch.device) -> int:
    if device.type == "cpu":  # the interpreter
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


@lru_cache(maxsize=256)
def _plan(
    n_heads: int,
    n: int,
    d: int,
    m: int,
    dtypes: tuple[torch.dtype, ...],
    processors: int,
    elu1: bool,
    causal: bool,
) -> _Plan:
    """The plan for the longer of queries and keys, n."""
    at_once = processors * WIDTH_PER_PROCESSOR // max(_padded(d), _padded(m))
    segment_len = max(MIN_SEGMENT_LEN, _ceil_div(n, max(1, at_once // n_heads)))
    segment_len = _ceil_div(segment_len, SEGMENT_STEP) * SEGMENT_STEP
    n_segments = _ceil_div(n, segment_len)
    n_states = max(n_segments - 1, 0) if causal else n_segments
    operand, precision = OPERANDS[reduce(torch.promote_types, dtypes)]
    sizes = {"D": d, "M": m, "PD": _padded(d), "PM": _padded(m)}
    return _Plan(
        n_heads=n_heads,
        segment_len=segment_len,
        n_segments=n_segments,
        n_states=n_states,
        n_summed=n_states if n_states <= FEW_STATES else 1,
        keeps_y=dtypes[-1] != torch.float32,
        constants=sizes | {"ELU1": elu1, "CAUSAL": causal, "DOT": operand, "PRECISION": precision},
    )


def _strided(x: Tensor) -> tuple[Tensor, int, int, int]:
    """How a kernel takes a tensor (B, H, N, D): its address and all strides but the last."""
    return x, *x.stride()[:3]


def _plan_of(q: Tensor, k: Tensor, v: Tensor, elu1: bool, causal: bool) -> _Plan:
    n_heads, n = q.shape[0] * q.shape[1], max(q.shape[2], k.shape[2])
    sizes = (int(size) for size in (n_heads, n, q.shape[3], v.shape[3]))  # of a trace, symbols
    dtypes = q.dtype, k.dtype, v.dtype
    return _plan(*sizes, dtypes, _processors(q.device), elu1, causal)


def results(q: Tensor, k: Tensor, v: Tensor, elu1: bool, causal: bool) -> tuple[Tensor, ...]:
    """Room for y, y in float32 where it is not, 1 / den and the states of segments."""
    (batch, heads, n_q, _), m = q.shape, v.shape[3]
    plan = _plan_of(q, k, v, elu1, causal)
    # Where it can, y has v's order of strides: merging the heads then needs no copy.
    y = empty_like_rows(v) if n_q == k.shape[2] else v.new_empty((batch, heads, n_q, m))
    kept = y.new_empty(y.shape if plan.keeps_y else (batch, 0, 0, 0), dtype=torch.float32)
    inverse = q.new_empty(q.shape[:3], dtype=torch.float32)
    states = q.new_empty((batch, heads, plan.n_states, plan.state_size), dtype=torch.float32)
    return y, kept, inverse, states


def forward(q, k, v, y, y_kept, inverse, states, *, eps: float, elu1: bool, causal: bool) -> bool:
    """Write the results. What is not finite is dealt with by the kernel."""
    plan, heads, n_q, n_k = _plan_of(q, k, v, elu1, causal), q.shape[1], q.shape[2], k.shape[2]
    q_, k_, v_, y_, kept_ = (_strided(x) for x in (q, k, v, y, y_kept))
    with torch.cuda.device_of(q):
        plan.fill(states, k_, v_, v_, inverse, heads, n_k, gradient=False)
        plan.launch(
            _forward,
            plan.n_segments,
            *(q_, k_, v_, y_, kept_, inverse, states, heads, n_q, n_k),
            *(plan.segment_len, plan.n_states, plan.n_summed, eps),
            KEEP=plan.keeps_y,
        )
    return True


def backward(dy, q, k, v, y, y_kept, inverse, states, *, eps: float, elu1: bool, causal: bool):
    """dq, dk and dv."""
    plan, heads, n_q, n_k = _plan_of(q, k, v, elu1, causal), q.shape[1], q.shape[2], k.shape[2]
    found, g = gradients(q, k, v), torch.empty_like(inverse)
    tensors = (q, k, v, y_kept if plan.keeps_y else y, rows_together(dy), *found)
    q_, k_, v_, y_, dy_, dq_, dk_, dv_ = (_strided(x) for x in tensors)
    r_states = torch.empty_like(states)
    with torch.cuda.device_of(q):
        plan.fill(r_states, q_, dy_, y_, inverse, heads, n_q, gradient=True)
        plan.launch(
            _backward,
            plan.n_segments,
            *(q_, k_, v_, y_, dy_, dq_, dk_, dv_, inverse, g, states, r_states),
            *(heads, n_q, n_k, plan.segment_len, plan.n_states, plan.n_summed),
        )
    return found, True


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, eps: float, elu1: bool, causal: bool
) -> Tensor:
    """Normalised linear attention of float32, bfloat16 or float16 tensors.

    Raises:
        ValueError: a tensor has another dtype.
    """
    for x in (q, k, v):
        if x.dtype not in OPERANDS:
            raise ValueError(f"a tensor of {x.dtype}: use float32, bfloat16 or float16")
    q, k, v = (rows_together(x) for x in (q, k, v))
    return attend(q, k, v, "cuda", eps, elu1, causal)


def operations_per_token(d: int, m: int, c: int, backward: bool) -> float:
    """Floating-point operations of the products, a token and head, causal, of one pass.

    The equations above in order; c is the chunk of the configuration that was chosen. All of A
    and W is computed. φ takes about 10 operations a number and is not counted, nor is the second
    product with S that bfloat16 takes backward, nor what segments add.
    """
    if backward:
        return 10 * d * m + 6 * c * (d + m)
    return 4 * d * m + 2 * c * (d + m) + 32 * d


def bytes_per_token(d: int, m: int, itemsize: int, backward: bool) -> float:
    """Bytes, a token and head, that one pass moves between the kernels and the device's memory.

    What the second loop of the backward pass reads again, q, k, v and dy, counts again, though a
    short segment is in the L2 cache by then. The states of a segment are 4·D·(M + 1) bytes, moved
    two to four times, and are not counted.
    """
    wider = max(4 - itemsize, 0) * m  # y is read in float32
    if backward:  # q, k, v, y, dy and 1 / den in, dq and g out; q, k, v, dy, both in, dk, dv out
        return 6 * (d + m) * itemsize + 16 + wider
    kept = 4 * m if itemsize < 4 else 0  # y in float32
    return 2 * (d + m) * itemsize + 4 + kept
