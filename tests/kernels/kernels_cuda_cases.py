"""The Triton kernels against the plain form in float64, on a CUDA device or interpreted.

B batch, H heads, N sequence length, C chunk, D query/key size, M value size.

Triton decides when it is imported whether it interprets, and torch may import it: without a device
TRITON_INTERPRET=1 has to be set before. `test_kernels_cuda.py` runs this file so.
"""

from itertools import pairwise

import pytest
import torch

from replib.attention import linear_attention
from replib.kernels.linear import cuda

ON_DEVICE = torch.cuda.is_available()
DEVICE = "cuda" if ON_DEVICE else "cpu"
on_device = pytest.mark.skipif(not ON_DEVICE, reason="needs a CUDA device")
pytestmark = pytest.mark.slow  # run by test_kernels_cuda.py, interpreted or on a device
interpreted = pytest.mark.skipif(ON_DEVICE, reason="looks into the interpreter")

C = cuda.INTERPRETED_CONFIGURATION["C"]
SIZES = ((3, 2), (16, 48), (48, 16), (32, 128), (128, 3))
# Roundings of a dtype's last place, times a margin; numpy has no bfloat16, and the interpreter
# cuts digits off instead of rounding.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.float16: 4e-3}


@pytest.fixture
def processors(monkeypatch):
    """Plan for a device of so many multiprocessors, with segments of one step at least."""
    monkeypatch.setattr(cuda, "MIN_SEGMENT_LEN", 1)
    cuda._plan.cache_clear()
    yield lambda n: monkeypatch.setattr(cuda, "_processors", lambda device: n)
    cuda._plan.cache_clear()


def random_inputs(n, d=16, m=16, *, b=1, h=2, n_keys=None, dtype=torch.float32):
    """q, k, v and dy, in float64 but with values that the dtype has."""
    generator = torch.Generator().manual_seed(n + d + m)
    sizes = ((n, d), (n_keys or n, d), (n_keys or n, m), (n, m))
    inputs = [torch.randn(b, h, *size, generator=generator) for size in sizes]
    return [x.to(DEVICE, dtype).double() for x in inputs]


def results(q, k, v, dy, kernel="cuda", **options):
    """y, dq, dk and dv."""
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    y = linear_attention(*inputs, kernel=kernel, **options)
    return [y.detach(), *torch.autograd.grad(y, inputs, dy)]


def largest_error(actual, expected):
    pairs = zip(actual, expected, strict=True)
    return max(((a.double() - e).norm() / e.norm()).item() for a, e in pairs)


def error(inputs, dtype=torch.float32, **options):
    """Against the plain form in float64, relative, of y, dq, dk and dv."""
    actual = results(*(x.to(dtype) for x in inputs), **options)
    assert all(x.dtype == dtype for x in actual)
    return largest_error(actual, results(*inputs, kernel="plain", **options))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n", [5, 2 * C - 1, 2 * C, 2 * C + 1, 4 * C + 2])
def test_output_and_gradients_equal_the_plain_form_at_every_length(n, causal):
    assert error(random_inputs(n), causal=causal) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("d, m", SIZES)
def test_output_and_gradients_equal_the_plain_form_at_every_size(d, m, causal):
    assert error(random_inputs(C + 1, d, m), causal=causal) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_error_is_that_of_the_dtype(dtype):
    assert error(random_inputs(4 * C + 2, 32, 32, dtype=dtype), dtype) < TOLERANCE[dtype]


@pytest.mark.parametrize("few_states", [8, 1])
@pytest.mark.parametrize("causal", [True, False])
def test_segments_add_up_to_the_whole(processors, monkeypatch, causal, few_states):
    """With few_states = 1 a program takes a prefix sum of the states, made by another kernel."""
    monkeypatch.setattr(cuda, "FEW_STATES", few_states)
    processors(100)
    n = 3 * cuda.SEGMENT_STEP + 5
    plan = cuda._plan(2, n, 16, 16, (torch.float32,), 100, True, causal)
    assert plan.n_segments == 4 and plan.n_states == (3 if causal else 4)
    assert plan.n_summed == (1 if few_states == 1 else plan.n_states)
    assert error(random_inputs(n), causal=causal) < TOLERANCE[torch.float32]


def test_prefix_sums_of_states_go_on_where_a_block_ends():
    n_states, size = 2 * cuda.PREFIX_ROWS + 1, cuda.PREFIX_COLUMNS + 16
    states = torch.randn(2, n_states, size, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    expected = states.double().cumsum(1)
    cuda._add_up[(2, 2)](states, n_states, size, cuda.PREFIX_ROWS, cuda.PREFIX_COLUMNS)
    torch.testing.assert_close(states.double(), expected, rtol=1e-5, atol=1e-4)


def test_a_device_is_filled_with_segments_and_a_short_sequence_is_not_cut():
    def n_segments(n_heads, n, d):
        return cuda._plan(n_heads, n, d, d, (torch.bfloat16,), 132, True, True).n_segments

    assert n_segments(64, 4096, 64) == 4  # two programs a multiprocessor
    assert n_segments(64, 4096, 128) == 2  # one
    assert n_segments(1, 65536, 64) == 256
    assert n_segments(1, cuda.MIN_SEGMENT_LEN, 64) == 1
    assert n_segments(264, 65536, 64) == 1
    counts = [n_segments(n_heads, 16384, 64) for n_heads in (1, 8, 64, 512)]
    assert all(a > b for a, b in pairwise(counts))


@pytest.mark.parametrize("n_keys", [1, C, 5 * C])
def test_queries_may_be_more_or_fewer_than_keys(processors, n_keys):
    processors(100)
    inputs = random_inputs(2 * C + 5, n_keys=n_keys)
    if n_keys == 1:  # y is the one value: no gradient but rounding reaches q and k
        q, k, v, _ = (x.float() for x in inputs)
        y = linear_attention(q, k, v, causal=False, kernel="cuda")
        torch.testing.assert_close(y, v.expand_as(y), rtol=1e-5, atol=1e-6)
    else:
        assert error(inputs, causal=False) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("causal", [True, False])
def test_features_that_are_given_are_taken_as_they_are(causal):
    q, k, v, dy = random_inputs(C + 3, 20, 8)
    q, k = q.abs(), k.abs()

    def run(function, dtype):
        inputs = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        y = function(*inputs)
        return [y.detach(), *torch.autograd.grad(y, inputs, dy.to(dtype))]

    def expected(q, k, v):
        weights = q @ k.transpose(-1, -2)
        weights = weights.tril() if causal else weights
        return weights @ v / (weights.sum(-1, keepdim=True) + 1e-6)

    actual = run(lambda q, k, v: cuda.linear_attention(q, k, v, 1e-6, False, causal), torch.float32)
    assert largest_error(actual, run(expected, torch.float64)) < TOLERANCE[torch.float32]


def test_heads_split_from_a_projection_are_taken_without_a_copy():
    n = C + 7
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, n, 3, 2, 16, generator=generator).to(DEVICE).requires_grad_()
    before = x.detach().clone()
    q, k, v = x.permute(2, 0, 3, 1, 4)
    y = linear_attention(q, k, v, kernel="cuda")
    assert y.transpose(1, 2).is_contiguous()  # so that merging the heads needs no copy
    y.sum().backward()  # a gradient without strides
    exact = before.double().requires_grad_()
    expected = linear_attention(*exact.permute(2, 0, 3, 1, 4), kernel="plain")
    expected.sum().backward()
    assert largest_error([y.detach(), x.grad], [expected.detach(), exact.grad]) < 1e-5
    assert torch.equal(x.detach(), before)


def test_rows_that_do_not_lie_together_are_taken():
    inputs = random_inputs(C + 1)
    scattered = [x.float().mT.contiguous().mT for x in inputs]
    assert scattered[0].stride(-1) != 1
    actual = results(*scattered)
    assert largest_error(actual, results(*inputs, kernel="plain")) < TOLERANCE[torch.float32]


def test_rows_that_overlap_are_taken():
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(1, 2, 20, generator=generator).to(DEVICE) for _ in range(3)]
    q, k, v = (x.unfold(2, 16, 1) for x in views)
    exact = [x.double() for x in (q, k, v)]
    dy = torch.ones_like(exact[2]).cumsum(-1)
    actual, expected = results(q, k, v, dy.float()), results(*exact, dy, kernel="plain")
    assert largest_error(actual, expected) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("place", range(3))
def test_a_float64_tensor_is_refused_and_without_a_name_another_kernel_takes_it(place):
    inputs = random_inputs(C + 1)
    tensors = [x.float() for x in inputs]
    tensors[place] = inputs[place]
    with pytest.raises(ValueError, match="not float64: use kernel='torch'"):
        results(*tensors)
    with pytest.raises(ValueError, match="use float32, bfloat16 or float16"):
        cuda.linear_attention(*tensors[:3], 1e-6, True, True)
    actual = results(*tensors, kernel=None)
    assert largest_error(actual, results(*inputs, kernel="plain")) < TOLERANCE[torch.float32]


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # in columns beyond D
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("magnitude", [1e-4, 1e4])
def test_extreme_inputs_give_no_nan_and_the_same_as_in_float64(magnitude, dtype, causal):
    *qkv, dy = random_inputs(C + 8, 4, 16)
    q, k, v = ((x * magnitude).to(dtype) for x in qkv)
    actual = results(q, k, v, dy.to(dtype), causal=causal)
    assert all(x.isfinite().all() for x in actual)
    expected = linear_attention(*(x.double() for x in (q, k, v)), causal=causal, kernel="plain")
    assert largest_error(actual[:1], [expected]) < 2 * TOLERANCE[dtype]


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize("place", range(3))
def test_what_is_not_finite_reaches_no_earlier_output(processors, place, bad):
    processors(100)
    n, at = 2 * cuda.SEGMENT_STEP + 9, cuda.SEGMENT_STEP + 37
    inputs = [x.float() for x in random_inputs(n)[:3]]
    before = linear_attention(*inputs, kernel="cuda")
    inputs[place][:, :, at] = bad
    after = linear_attention(*inputs, kernel="cuda")
    assert torch.equal(before[:, :, :at], after[:, :, :at])
    if bad != 1e30:
        assert not after[:, :, at : at + 1 if place == 0 else None].isfinite().any()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_gradient_of_q_keeps_its_digits_where_values_have_a_mean(dtype, causal):
    q, k, v, dy = random_inputs(1024, h=1, dtype=dtype)
    inputs = q, k, (v + 6).to(dtype).double(), dy
    assert error(inputs, dtype, causal=causal) < TOLERANCE[dtype]


def test_autocast_does_not_lower_the_accuracy():
    inputs = random_inputs(C + 1)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        actual = results(*(x.float() for x in inputs))
    assert largest_error(actual, results(*inputs, kernel="plain")) < TOLERANCE[torch.float32]


@interpreted
@pytest.mark.parametrize("n_segments", [1, 4])
def test_the_cost_model_counts_what_the_interpreter_does(processors, monkeypatch, n_segments):
    """Operations exactly; bytes without the states, so for one segment."""
    from triton.runtime.interpreter import InterpreterBuilder as Builder

    counted = {"operations": 0, "bytes": 0}
    dot, load, store = Builder.create_dot, Builder.create_masked_load, Builder.create_masked_store

    def counting_dot(self, a, b, *arguments):
        counted["operations"] += 2 * a.data.shape[0] * a.data.shape[1] * b.data.shape[1]
        return dot(self, a, b, *arguments)

    def counting_load(self, places, mask, *arguments):
        out = load(self, places, mask, *arguments)
        counted["bytes"] += mask.data.sum() * out.data.itemsize
        return out

    def counting_store(self, places, values, mask, *arguments):
        counted["bytes"] += mask.data.sum() * values.data.itemsize
        return store(self, places, values, mask, *arguments)

    monkeypatch.setattr(Builder, "create_dot", counting_dot)
    monkeypatch.setattr(Builder, "create_masked_load", counting_load)
    monkeypatch.setattr(Builder, "create_masked_store", counting_store)

    processors(1 if n_segments == 1 else 100)
    n, d, m, heads = 4 * cuda.SEGMENT_STEP, 16, 32, 8
    dtype = torch.bfloat16
    q, k, v, dy = (x.to(dtype) for x in random_inputs(n, d, m, b=2, h=4))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    y = linear_attention(*inputs, kernel="cuda")
    forward = dict(counted)
    torch.autograd.grad(y, inputs, dy)
    total = dict(counted)

    states = 2 * d * m * (n_segments - 1) / n_segments  # the last segment's is not needed
    for backward in (False, True):
        done = {name: total[name] - forward[name] if backward else forward[name] for name in total}
        per_token = {name: value / (heads * n) for name, value in done.items()}
        operations = cuda.operations_per_token(d, m, C, backward)
        assert per_token["operations"] == operations + states
        if n_segments == 1:
            assert per_token["bytes"] == cuda.bytes_per_token(d, m, dtype.itemsize, backward)


@interpreted
def test_error_is_that_of_float32_at_length_2048():
    """As long as the interpreter can be waited for; 16384 is for a device."""
    assert error(random_inputs(2048, h=1)) < TOLERANCE[torch.float32]


@on_device
@pytest.mark.parametrize("d", [16, 64, 128])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_error_is_that_of_the_dtype_at_length_16384(dtype, d):
    """The plain form in float64 has 16384² weights: one head alone."""
    assert error(random_inputs(16384, d, d, h=1, dtype=dtype), dtype) < TOLERANCE[dtype]


@on_device
@pytest.mark.parametrize("d", [32, 64, 128])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_every_candidate_computes_the_same(dtype, d, monkeypatch):
    inputs = random_inputs(600, d, d, dtype=dtype)
    for candidate in [*cuda._candidates(d, dtype == torch.float32), cuda.LEAST]:
        monkeypatch.setattr(cuda, "_tune", lambda *_, chosen=candidate: chosen)
        monkeypatch.setattr(cuda, "_fastest", {})
        cuda._plan.cache_clear()
        assert error(inputs, dtype) < TOLERANCE[dtype]
    cuda._plan.cache_clear()


@on_device
def test_results_are_the_same_each_time():
    inputs = [x.bfloat16() for x in random_inputs(8192, 64, 64, b=4, h=8)]
    first, second = results(*inputs), results(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@on_device
def test_memory_is_that_of_y_and_the_gradients():
    q, k, v, dy = (x.bfloat16() for x in random_inputs(16384, 64, 64, b=2, h=8))
    results(q, k, v, dy)  # compiles
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    results(q, k, v, dy)
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < 6.3 * q.numel() * q.element_size()
