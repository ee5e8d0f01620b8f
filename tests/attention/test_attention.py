"""Every mechanism against an oracle of its own, and what all of them share.

B batch, H heads, N sequence length, D query/key size, M value size.
"""

from itertools import product

import numpy as np
import pytest
import torch
from tensors import gradients, random_qkv
from torch.autograd import gradcheck
from torch.nn.functional import elu, scaled_dot_product_attention

from replib.attention import ATTENTION, linear_attention, softmax_attention
from replib.kernels import KERNELS, fastest_kernel, why_not

B, H, D, M = 2, 3, 8, 5
LENGTHS = (1, 2, 63, 64, 65, 130)  # around one and two chunks


def kernels_for(dtype, device_type="cpu"):
    kind = {"device_type": device_type, "dtype": dtype, "head_dim": 8, "value_dim": 8}
    return [kernel for kernel in KERNELS if why_not(kernel, **kind) is None]


EXACT = kernels_for(torch.float64)  # the compiled kernels have tests of their own
HERE = kernels_for(torch.float32)


def equation_9(q, k, v, causal, eps=1e-6):
    """Katharopoulos et al. 2020, eq. 4 and 9, a query at a time in numpy, with torch's own elu."""
    phi_q, phi_k = (1 + elu(x).numpy() for x in (q, k))
    v, y = v.numpy(), np.empty((*q.shape[:3], v.shape[-1]))
    for b, h, i in np.ndindex(*q.shape[:3]):
        last = i + 1 if causal else k.shape[2]
        similarity = phi_k[b, h, :last] @ phi_q[b, h, i]
        y[b, h, i] = similarity @ v[b, h, :last] / (similarity.sum() + eps)
    return torch.from_numpy(y)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n", [1, 7, 65, 130])
@pytest.mark.parametrize("kernel", [None, "plain", *EXACT])
def test_linear_attention_is_equation_9(kernel, n, causal):
    q, k, v = random_qkv(n)
    y = linear_attention(q, k, v, causal=causal, kernel=kernel)
    torch.testing.assert_close(y, equation_9(q, k, v, causal), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("kernel", EXACT)
def test_kernel_gradients_equal_those_of_the_plain_form(kernel, n):
    inputs = [x.requires_grad_() for x in random_qkv(n)]
    expected = gradients(linear_attention(*inputs, kernel="plain"), inputs)
    actual = gradients(linear_attention(*inputs, kernel=kernel), inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kernel", EXACT)
def test_kernel_passes_gradcheck(kernel):
    inputs = [x.requires_grad_() for x in random_qkv(5, b=1, h=2, d=3, m=2)]
    assert gradcheck(lambda q, k, v: linear_attention(q, k, v, kernel=kernel), inputs)


@pytest.mark.parametrize("kernel", EXACT)
def test_kernel_takes_heads_split_from_a_projection_without_changing_them(kernel):
    n, generator = 70, torch.Generator().manual_seed(0)
    x = torch.randn(B, n, 3, H, D, generator=generator, dtype=torch.float64, requires_grad=True)
    before = x.detach().clone()
    q, k, v = x.permute(2, 0, 3, 1, 4)
    y = linear_attention(q, k, v, kernel=kernel)
    expected = linear_attention(q.contiguous(), k.contiguous(), v.contiguous(), kernel="plain")
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(gradients(y, [x]), gradients(expected, [x]), rtol=1e-9, atol=1e-11)
    assert torch.equal(x.detach(), before)


# Roundings of the last place of each dtype, times a margin for N additions.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


# Of float16 and float64 too, which not every kernel takes.
ROUNDING = {torch.float64: 1e-10, **TOLERANCE, torch.float16: 4e-3}


def assert_relative(actual, expected, tolerance):
    errors = [
        ((a.double() - e).norm() / e.norm()).item() for a, e in zip(actual, expected, strict=True)
    ]
    assert max(errors) < tolerance, errors  # not so for a NaN


@pytest.mark.parametrize("path", ["causal", "not causal", "padded", "features"])
@pytest.mark.parametrize("dtypes", [*product(ROUNDING, repeat=3)])
def test_queries_keys_and_values_of_any_dtypes_give_what_float64_does(dtypes, path):
    options = {"causal": path in ("causal", "features")}
    if path == "padded":
        options["key_padding_mask"] = torch.zeros(B, 37, dtype=torch.bool)
        options["key_padding_mask"][:, 30:] = True
    if path == "features":
        options["feature_map"] = "dpfp2"
    rounded = [x.to(t).requires_grad_() for x, t in zip(random_qkv(37), dtypes, strict=True)]
    exact = [x.detach().double().requires_grad_() for x in rounded]
    y = linear_attention(*rounded, **options)
    expected = linear_attention(*exact, kernel="plain", **options)
    found = [y, *gradients(y, rounded)]
    assert [x.dtype for x in found] == [dtypes[2], *dtypes]
    # A float64 tensor beside others is computed with in float32.
    coarsest = max(ROUNDING[t] for t in dtypes)
    tolerance = coarsest if len(set(dtypes)) == 1 else max(coarsest, ROUNDING[torch.float32])
    assert_relative(found, [expected, *gradients(expected, exact)], tolerance)


def equations_18_to_20(q, k, v, causal, eps=1e-6):
    """Katharopoulos et al. 2020, with every state S of the sequence: N·D·M numbers."""
    phi_q, phi_k = (1 + elu(x) for x in (q, k))
    s, z = torch.einsum("bhnd,bhnm->bhndm", phi_k, v), phi_k
    s, z = (x.cumsum(2) if causal else x.sum(2, keepdim=True) for x in (s, z))
    return torch.einsum("bhnd,bhndm->bhnm", phi_q, s) / ((phi_q * z).sum(-1, keepdim=True) + eps)


def at_length_16384(dtype, mean=0.0):
    """q, k and v of one head, the values of `mean`, in their dtype and in float64."""
    q, k, v = random_qkv(16384, b=1, h=1, d=16, m=16)
    rounded = [x.to(dtype).requires_grad_() for x in (q, k, v + mean)]
    return rounded, [x.detach().double().requires_grad_() for x in rounded]


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "kernel, dtype", [(kernel, t) for t in ROUNDING for kernel in kernels_for(t)]
)
def test_kernel_error_at_length_16384_is_that_of_its_dtype(kernel, dtype, causal):
    rounded, exact = at_length_16384(dtype)
    y = linear_attention(*rounded, causal=causal, kernel=kernel)
    expected = equations_18_to_20(*exact, causal)
    found = [y, *gradients(y, rounded)]
    assert_relative(found, [expected, *gradients(expected, exact)], ROUNDING[dtype])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_plain_form_at_length_16384_has_the_error_of_its_dtype(dtype):
    """Its output alone, as its gradients would take gigabytes more."""
    rounded, exact = at_length_16384(dtype)
    with torch.no_grad():
        y = linear_attention(*rounded, kernel="plain")
        assert_relative([y], [equations_18_to_20(*exact, True)], TOLERANCE[dtype])


@pytest.mark.parametrize("causal, tolerance", [(True, 2.5e-4), (False, 1e-3)])
@pytest.mark.parametrize("kernel", HERE)
def test_gradients_keep_their_digits_where_values_have_a_mean(kernel, causal, tolerance):
    """In dQ = G Sᵀ + g zᵀ nearly all cancels: sums that lose digits a position at a time, and not
    a chunk at a time, have three times this error."""
    rounded, exact = at_length_16384(torch.float32, mean=5.0)
    y = linear_attention(*rounded, causal=causal, kernel=kernel)
    expected = equations_18_to_20(*exact, causal)
    assert_relative([y], [expected], 1e-6)
    found, expected = gradients(y, rounded), gradients(expected, exact)
    assert_relative(found[:1], expected[:1], tolerance)
    assert_relative(found[1:], expected[1:], ROUNDING[torch.float32])


@pytest.mark.parametrize("kernel", ["plain", *HERE])
def test_linear_attention_keeps_its_accuracy_under_autocast(kernel):
    q, k, v = random_qkv(100, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = linear_attention(q, k, v, kernel=kernel)
    torch.testing.assert_close(y, linear_attention(q, k, v, kernel="plain"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("magnitude", [1e-4, 30.0, 1e4])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kernel", ["plain", *HERE])
def test_linear_attention_has_no_nan_at_extreme_inputs(kernel, dtype, magnitude, causal):
    inputs = [(x * magnitude).to(dtype).requires_grad_() for x in random_qkv(100)]
    y = linear_attention(*inputs, kernel=kernel, causal=causal)
    expected = linear_attention(*(x.double() for x in inputs), kernel="plain", causal=causal)
    assert_relative([y], [expected], TOLERANCE[dtype])
    assert all(g.isfinite().all() for g in gradients(y, inputs))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shift", [-30.0, -8.0, 0.0, 5.0])
@pytest.mark.parametrize("kernel", ["plain", *HERE])
def test_denominators_are_never_below_eps(kernel, shift, causal):
    q, k, v = random_qkv(50, dtype=torch.float32)
    q, k, ones = q + shift, k + shift, torch.ones_like(v)
    y = linear_attention(q, k, ones, kernel=kernel, causal=causal)  # den / (den + eps)
    assert (y >= 0).all() and (y <= 1 + 1e-5).all()
    expected = equations_18_to_20(*(x.double() for x in (q, k, ones)), causal)
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-6)


def test_elu1_keeps_its_digits_where_elu_plus_one_loses_them():
    from replib.attention.feature_maps import elu1

    x = torch.tensor([-20.0, -10.0, -1e-3, 0.0, 3.0])
    exact = torch.where(x > 0, x.double() + 1, x.double().exp())
    torch.testing.assert_close(elu1(x).double(), exact, rtol=1e-6, atol=0)
    assert (elu(x) + 1)[0] == 0  # what would be lost


@pytest.mark.parametrize("n_keys", [7, 20])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("implementation", ATTENTION["softmax"].kernels)
def test_softmax_attention_is_vaswani_equation_1(implementation, causal, n_keys):
    n = n_keys if causal else 7
    q, k, v = random_qkv(n, n_keys=n_keys)
    y = softmax_attention(q, k, v, causal=causal, implementation=implementation)
    expected = torch.empty_like(y)
    for i in range(n):
        last = i + 1 if causal else n_keys
        similarity = torch.exp((k[:, :, :last] @ q[:, :, i, :, None]) / D**0.5)
        expected[:, :, i] = (similarity * v[:, :, :last]).sum(2) / similarity.sum(2)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-12)


def qkv_of_lengths(*lengths, sizes=(D, D, M)):
    return [torch.zeros(B, H, n, s) for n, s in zip(lengths, sizes, strict=True)]


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ([torch.zeros(3, 4)] * 3, {}, "use .batch, heads, length, size"),
        (qkv_of_lengths(4, 4, 4, sizes=(8, 6, 5)), {}, "differ in batch or size"),
        (qkv_of_lengths(4, 4, 3), {}, "differ in batch, heads or length"),
        (qkv_of_lengths(4, 5, 5), {}, "use causal=False"),
        ([torch.zeros(B, h, 4, D) for h in (3, 2, 2)], {}, "give q as many, or a multiple"),
        (
            qkv_of_lengths(4, 4, 4),
            {"key_padding_mask": torch.zeros(B, 4), "causal": False},
            "use bool",
        ),
    ],
)
def test_shapes_that_cannot_be_attended_over_are_refused(name, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        ATTENTION[name].for_model(n_heads=H, head_dim=D, max_len=64)(*arguments, **options)


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("dtype", (torch.int64, torch.bool, torch.complex64))
def test_numbers_that_are_not_floating_point_are_refused(name, dtype):
    attention, x = (
        ATTENTION[name].for_model(n_heads=H, head_dim=D, max_len=64),
        torch.zeros(B, H, 4, D),
    )
    for place in range(3):
        qkv = [x.to(dtype) if i == place else x for i in range(3)]
        with pytest.raises(ValueError, match=f"{'qkv'[place]} is {dtype}: use floating point"):
            attention(*qkv)


@pytest.mark.parametrize("kernel", (None, *ATTENTION["linear"].kernels))
def test_integers_and_an_eps_below_0_are_refused_by_all_kernels(kernel):
    x = torch.ones(B, H, 4, D)
    with pytest.raises(ValueError, match="q is torch.int64: use floating point"):
        linear_attention(x.long(), x, x, kernel=kernel)
    for eps in (-1e-6, float("nan")):
        with pytest.raises(ValueError, match=f"eps {eps}: use 0 or more"):
            linear_attention(x, x, x, eps=eps, kernel=kernel)


def test_the_fastest_kernel_is_one_that_takes_the_tensors():
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for d in (16, 300):
            x = torch.zeros(1, 1, 2, d, dtype=dtype)
            kernel = fastest_kernel(x, x, x)
            sizes = {"head_dim": d, "value_dim": d}
            assert why_not(kernel, device_type="cpu", dtype=dtype, **sizes) is None
            linear_attention(x, x, x)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"device_type": "cuda"}, "runs on cpu tensors, these are on cuda: use kernel='torch'"),
        ({"dtype": torch.float64}, "takes float32, bfloat16, not float64: use kernel='torch'"),
        ({"head_dim": 1000}, "takes a head_dim of up to 256, not 1000"),
        ({"value_dim": 1000}, "takes a value size of up to 256, not 1000"),
    ],
)
def test_a_kernel_says_why_it_cannot_run_and_what_to_use(changes, message):
    kind = {"device_type": "cpu", "dtype": torch.float32, "head_dim": 8, "value_dim": 8}
    assert message in why_not("cpu", **(kind | changes))


def test_a_kernel_whose_package_is_missing_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("replib.kernels.installed", lambda package: False)
    q, k, v = random_qkv(3, dtype=torch.float32)
    assert fastest_kernel(q, k, v) == "torch"
    with pytest.raises(ValueError, match="pip install numba, or use kernel='torch'"):
        linear_attention(q, k, v, kernel="cpu")


def test_unknown_names_are_refused_with_the_known_ones():
    q, k, v = random_qkv(3)
    with pytest.raises(ValueError, match="use torch, cpu, cuda, plain"):
        linear_attention(q, k, v, kernel="fast")
    with pytest.raises(ValueError, match="use elu1"):
        linear_attention(q, k, v, feature_map="exp")
    with pytest.raises(ValueError, match="use fused, textbook"):
        softmax_attention(q, k, v, implementation="flash")


@pytest.mark.parametrize("many_rows", [0, 2**20])
def test_a_step_reads_few_and_many_rows_of_its_cache_as_the_fused_kernel_does(
    many_rows, monkeypatch
):
    monkeypatch.setattr("replib.attention.softmax.MANY_ROWS", many_rows)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 33, 4, generator=generator) for _ in range(3))
    attention = ATTENTION["softmax"].for_model(n_heads=3, head_dim=4, max_len=33)
    state, read = attention.init_state(2, 3, 4), []
    for i in range(33):
        y, state = attention.step_(state, *(x[:, :, i] for x in (q, k, v)))
        read.append(y)
    expected = scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(torch.stack(read, dim=2), expected)
