"""The Numba kernel against the plain form in float64, and what it is made of.

B batch, H heads, N sequence length, C chunk, D query/key size, M value size.
"""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from replib.attention import linear_attention

pytest.importorskip("numba")

from replib.kernels import compile_now, compiled
from replib.kernels.linear import cpu  # noqa: E402
from replib.kernels.numba import threads  # noqa: E402
from replib.kernels.numba import vectors as vec  # noqa: E402
from replib.kernels.numba.rows import empty_like_rows  # noqa: E402

C = cpu.C
LENGTHS = (1, C - 1, C, C + 1, 5 * C + 3)
SIZES = ((16, 16), (32, 64), (64, 32), (8, 5), (17, 1))
# Roundings of a dtype's last place, times a margin for the sums.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


def random_inputs(n, d=32, m=32, *, b=2, h=3, n_keys=None, dtype=torch.float32):
    """q, k, v and dy, in float64 but with values that the dtype has."""
    generator = torch.Generator().manual_seed(n + d + m)
    sizes = ((n, d), (n_keys or n, d), (n_keys or n, m), (n, m))
    return [torch.randn(b, h, *size, generator=generator).to(dtype).double() for size in sizes]


def results(q, k, v, dy, **options):
    """y, dq, dk and dv."""
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    y = linear_attention(*inputs, **options)
    return [y.detach(), *torch.autograd.grad(y, inputs, dy)]


def relative_errors(inputs, dtype, kernel="cpu", **options):
    exact = results(*inputs, kernel="plain", **options)
    rounded = results(*(x.to(dtype) for x in inputs), kernel=kernel, **options)
    assert all(x.dtype == dtype for x in rounded)
    return [
        ((a.double() - e).norm() / e.norm()).item() for a, e in zip(rounded, exact, strict=True)
    ]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("n", [2, *LENGTHS[1:]])
def test_output_and_gradients_equal_the_plain_form_at_every_length(n, dtype, causal):
    errors = relative_errors(random_inputs(n, dtype=dtype), dtype, causal=causal)
    assert max(errors) < TOLERANCE[dtype]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("d, m", SIZES)
def test_output_and_gradients_equal_the_plain_form_at_every_size(d, m, causal):
    errors = relative_errors(random_inputs(2 * C + 1, d, m), torch.float32, causal=causal)
    # With one value a row y is its mean, and what is left of the gradients is rounding.
    assert max(errors[:1] if m == 1 else errors) < 5e-6


def test_one_position_gives_its_value_and_no_gradient_to_query_and_key():
    q, k, v, dy = (x.float() for x in random_inputs(1))
    y, dq, dk, dv = results(q, k, v, dy, kernel="cpu")
    torch.testing.assert_close(y, v, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(dv, dy, rtol=1e-5, atol=1e-6)
    assert dq.abs().max() < 1e-5 and dk.abs().max() < 1e-5


@pytest.mark.parametrize("n_keys", [1, C, 3 * C + 2])
def test_cross_attention_takes_keys_of_another_length(n_keys):
    inputs = random_inputs(C + 5, n_keys=n_keys)
    errors = relative_errors(inputs, torch.float32, causal=False)
    assert max(errors[:1] if n_keys == 1 else errors) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("causal", [True, False])
def test_heads_split_from_a_projection_are_read_where_they_lie(causal):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 70, 3, 4, 32, generator=generator, requires_grad=True)
    dy = torch.randn(2, 70, 4, 32, generator=generator).transpose(1, 2)
    q, k, v = x.permute(2, 0, 3, 1, 4)
    y = linear_attention(q, k, v, causal=causal, kernel="cpu")
    assert y.transpose(1, 2).is_contiguous()  # so that heads are merged without a copy
    expected = linear_attention(q.double(), k.double(), v.double(), causal=causal, kernel="plain")
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-5)
    for gradient in torch.autograd.grad(y, (q, k, v), dy, retain_graph=True):
        assert gradient.transpose(1, 2).is_contiguous()
    (dx,) = torch.autograd.grad(y, x, dy)
    (expected_dx,) = torch.autograd.grad(expected, x, dy.double())
    torch.testing.assert_close(dx, expected_dx, rtol=1e-3, atol=1e-4)


# Views of x (2, 3, 40, 16) whose numbers share places, or whose rows do not lie together.
LAYOUTS = {
    "windows": lambda x: x.flatten(2)[..., :55].unfold(2, 16, 1),
    "one head for all": lambda x: x[:, :1].expand(-1, 3, -1, -1),
    "one sample for all": lambda x: x[:1].expand(2, -1, -1, -1),
    "one position": lambda x: x[:, :, :1].expand(-1, -1, 40, -1),
    "columns": lambda x: x.mT.contiguous().mT,
    "every other row": lambda x: x.repeat_interleave(2, 2)[:, :, ::2],
    "every other number": lambda x: x.repeat_interleave(2, 3)[..., ::2],
}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_views_of_every_layout_are_taken(dtype, layout, causal):
    view, inputs = LAYOUTS[layout], random_inputs(40, 16, 16, dtype=dtype)
    found = results(*(view(x.to(dtype)) for x in inputs), kernel="cpu", causal=causal)
    expected = results(*map(view, inputs), kernel="plain", causal=causal)
    size = expected[0].norm()  # where all positions are one, q and k have no gradient
    for a, e in zip(found, expected, strict=True):
        assert (a.double() - e).norm() < 2 * TOLERANCE[dtype] * max(e.norm(), size)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_have_rows_that_lie_together_and_share_no_place(layout):
    x = LAYOUTS[layout](random_inputs(40, 16, 16)[0])
    y = empty_like_rows(x)
    assert y.shape == x.shape == (2, 3, 40, 16) and y.dtype == x.dtype and y.stride(-1) == 1
    y.copy_(torch.arange(y.numel()).view(y.shape))
    assert y.flatten().tolist() == list(range(y.numel()))


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_a_dtype_that_it_cannot_read_is_refused(dtype, place):
    tensors = [x.float() for x in random_inputs(5)[:3]]
    tensors[place] = tensors[place].to(getattr(torch, dtype))
    with pytest.raises(ValueError, match=f"not {dtype}: use kernel='torch'"):
        linear_attention(*tensors, kernel="cpu")
    with pytest.raises(ValueError, match="use torch.float32 or torch.bfloat16"):
        cpu.linear_attention(*tensors, 1e-6, True, True)


def test_threads_do_not_change_a_bit(monkeypatch):
    inputs = [x.float() for x in random_inputs(90)]
    alone = results(*inputs, kernel="cpu")
    monkeypatch.setattr(cpu.torch, "get_num_threads", lambda: 3)
    assert all(map(torch.equal, results(*inputs, kernel="cpu"), alone))
    monkeypatch.setattr(threads, "_openmp", lambda: None)  # as on macOS and Windows
    assert all(map(torch.equal, results(*inputs, kernel="cpu"), alone))


def test_calls_from_several_python_threads_do_not_disturb_each_other():
    problems = [[x.float() for x in random_inputs(n)] for n in (33, 64, 90, 120)]
    expected = [results(*x, kernel="cpu") for x in problems]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = pool.map(lambda x: results(*x, kernel="cpu"), problems)
            for a, e in zip(found, expected, strict=True):
                assert all(map(torch.equal, a, e))


def test_memory_beyond_the_inputs_is_that_of_the_results():
    from replib.lab.memory_use import peak_memory_bytes

    q, k, v, dy = (x.float() for x in random_inputs(4096, b=2, h=4))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    linear_attention(*inputs, kernel="cpu")  # compiled by now
    peak = peak_memory_bytes(
        lambda: torch.autograd.grad(linear_attention(*inputs, kernel="cpu"), inputs, dy)
    )
    assert 4 * q.nbytes <= peak < 4.2 * q.nbytes  # y, dq, dk, dv and little else


@pytest.mark.slow
def test_the_code_is_compiled_once_and_said_so(tmp_path):
    compile_now("cpu")
    assert compiled("cpu")
    program = (
        "import torch; from replib.attention import linear_attention;"
        "linear_attention(*[torch.ones(1, 1, 3, 16)] * 3, kernel='cpu')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0 and "compiling" not in done.stderr, done.stderr


def test_a_change_of_any_source_is_a_change_of_the_code(monkeypatch, tmp_path):
    (tmp_path / "numba").mkdir()
    monkeypatch.setattr(threads, "__file__", str(tmp_path / "numba" / "threads.py"))
    before, source = threads._code_folder.__wrapped__(), tmp_path / "cpu.py"
    source.write_text("# another kernel")
    assert threads._code_folder.__wrapped__() != before


@pytest.mark.slow
def test_importing_replib_does_not_import_numba():
    program = "import replib.claims, sys; assert 'numba' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_the_cost_model_counts_the_products_of_the_equations():
    d, m = 32, 64
    # With no triangle to leave out it would be 2·n·rows·columns for each product of a chunk.
    whole_forward = 2 * (C * C * d + C * C * m + C * d * m + C * d * m) / C
    whole_backward = 2 * (C * C * (3 * m + 3 * d) + 5 * C * d * m) / C
    for backward, whole in ((False, whole_forward), (True, whole_backward)):
        counted = cpu.operations_per_token(d, m, C, backward)
        assert 0.8 * whole < counted < whole


def call_on_vector(function, x):
    from numba import njit

    compiled_function = njit(function)

    @njit
    def apply(source, target):
        vec.store(target, compiled_function(vec.load(source)))

    x = np.asarray(x, dtype=np.float32)
    out = np.empty(vec.WIDTH, dtype=np.float32)
    apply(x.ctypes.data, out.ctypes.data)
    return out


def test_the_feature_map_has_the_accuracy_of_float32():
    from numba import njit

    @njit
    def apply(source, target, n):
        for i in range(0, 4 * n, 64):
            vec.store(target + i, cpu._elu1(vec.load(source + i)))

    x = np.linspace(-79, 10, 16 * 4096, dtype=np.float32)
    y = np.empty_like(x)
    apply(x.ctypes.data, y.ctypes.data, len(x))
    wide = x.astype(np.float64)
    exact = np.exp(np.minimum(wide, 0)) + np.maximum(wide, 0)
    error = np.abs(y / exact - 1)
    assert error[x > -10].max() < 2e-7 and error.max() < 1e-6
    extremes = np.array([-np.inf, -1e30, -200, 0, np.inf, 1e30] + [0] * 10, dtype=np.float32)
    found = call_on_vector(lambda v: cpu._elu1(v), extremes)
    assert (found[:3] < 1e-34).all() and found[3] == 1 and found[4] == np.inf
    assert found[5] == np.float32(1e30)


def test_bfloat16_is_rounded_as_torch_does():
    from numba import njit

    @njit
    def round_trip(source, half, back):
        vec.store_bfloat16(half, vec.load(source))
        vec.store(back, vec.load_bfloat16(half))

    generator = np.random.default_rng(0)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.00390625, 1.01171875, 3.3895e38]
    x = np.concatenate([special, generator.standard_normal(8)]).astype(np.float32)
    half, back = np.empty(16, np.uint16), np.empty(16, np.float32)
    round_trip(x.ctypes.data, half.ctypes.data, back.ctypes.data)
    expected = torch.from_numpy(x).bfloat16().float().numpy()
    np.testing.assert_array_equal(back, expected)
