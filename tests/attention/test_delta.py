"""The delta rule against the product of its transition matrices, and its forms against each other.

B batch, H heads, N sequence length, L number of queries, R feature size, M value size.
"""

import math
from functools import cache, partial
from itertools import product

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from tensors import gradients
from torch.autograd import gradcheck
from torch.nn.functional import normalize

from replib.attention import delta as rules
from replib.attention.delta import delta_retrieve, delta_rule
from replib.kernels import installed, library
from replib.kernels.delta import torch as delta
from replib.lab.memory_use import peak_memory_bytes

B, H, R, M = 2, 3, 8, 5
LENGTHS = (1, 2, 16, 31, 32, 33, 130)  # around one chunk, and several
KERNELS = [kernel for kernel in rules.KERNELS if kernel != "cpu" or installed("numba")]
FORMS = [
    *((delta_rule, kernel) for kernel in KERNELS),
    *((delta_retrieve, kernel) for kernel in rules.RETRIEVAL_KERNELS),
]
# The roundings of a dtype, times a margin for N writes.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def widest(kernel):
    """The widest dtype that a kernel computes in."""
    return torch.float32 if kernel == "cpu" else torch.float64


def random_inputs(n, *, seed=0, dtype=torch.float64, b=B, h=H, r=R, m=M, n_queries=None):
    """q and k of norm 1, v, and beta between 0 and 1."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(b, h, *shape, generator=generator, dtype=torch.float64)

    q, k = normalize(random(n_queries or n, r), dim=-1), normalize(random(n, r), dim=-1)
    return [x.to(dtype) for x in (q, k, random(n, m), torch.sigmoid(random(n)))]


def transition_matrices(k, v, beta):
    """W_i = W_{i-1} (I - β_i k_i k_iᵀ) + β_i v_i k_iᵀ in numpy: (B, H, N, M, R)."""
    k, v, beta = (x.double().numpy() for x in (k, v, beta))
    found = np.zeros((*v.shape, k.shape[-1]))
    for b, h in np.ndindex(k.shape[:2]):
        w = np.zeros((v.shape[-1], k.shape[-1]))
        for i in range(k.shape[2]):
            key = k[b, h, i]
            w = w @ (np.eye(len(key)) - beta[b, h, i] * np.outer(key, key))
            w = w + beta[b, h, i] * np.outer(v[b, h, i], key)
            found[b, h, i] = w
    return torch.from_numpy(found)


def with_gradients(function, inputs, kernel):
    """y, dq, dk, dv, dbeta"""
    inputs = [x.detach().requires_grad_() for x in inputs]
    y = function(*inputs, kernel=kernel)
    return [y, *gradients(y, inputs)]


def assert_near(actual, expected, dtype):
    """Differences are small beside the largest number of a tensor, or of all if it should be 0."""
    size = max(e.abs().max().item() for e in expected)
    for a, e in zip(actual, expected, strict=True):
        atol = TOLERANCE[dtype] * (e.abs().max().item() or size)
        torch.testing.assert_close(a.double(), e.double(), rtol=0, atol=atol)


def assert_is_the_loop(function, inputs, kernel):
    """Outputs and gradients equal those of the loop over positions in float64."""
    expected = with_gradients(function, [x.double() for x in inputs], "plain")
    assert_near(with_gradients(function, inputs, kernel), expected, inputs[0].dtype)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("kernel", [None, *KERNELS])
def test_delta_rule_is_the_product_of_transition_matrices(kernel, n):
    q, k, v, beta = random_inputs(n, dtype=widest(kernel))
    expected = torch.einsum("bhnmr,bhnr->bhnm", transition_matrices(k, v, beta), q.double())
    assert_near([delta_rule(q, k, v, beta, kernel=kernel)], [expected], q.dtype)


@pytest.mark.parametrize("n_queries", [1, R, R + 3])  # more than R are read another way
@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("kernel", [None, *rules.RETRIEVAL_KERNELS])
def test_retrieval_reads_the_last_of_them(kernel, n, n_queries):
    q, k, v, beta = random_inputs(n, n_queries=n_queries)
    expected = torch.einsum("bhmr,bhlr->bhlm", transition_matrices(k, v, beta)[:, :, -1], q)
    assert_near([delta_retrieve(q, k, v, beta, kernel=kernel)], [expected], q.dtype)


# Many heads make blocks short, and few make them long.
@pytest.mark.parametrize("n, b", [*product(LENGTHS, [B]), (40, 30), (300, 1)])
@pytest.mark.parametrize("kernel", [None, *KERNELS])
def test_gradients_of_each_kernel_equal_those_of_the_loop(kernel, n, b):
    assert_is_the_loop(delta_rule, random_inputs(n, b=b, dtype=widest(kernel)), kernel)


@pytest.mark.parametrize("n_queries", [1, R + 3])
@pytest.mark.parametrize("n", LENGTHS)
def test_gradients_of_the_swept_query_equal_those_of_the_loop(n, n_queries):
    assert_is_the_loop(delta_retrieve, random_inputs(n, n_queries=n_queries), "torch")


@pytest.mark.parametrize("r, m", [(16, 32), (48, 16), (1, 1)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_feature_and_value_size_may_differ(kernel, r, m):
    assert_is_the_loop(delta_rule, random_inputs(150, r=r, m=m, dtype=widest(kernel)), kernel)


@pytest.mark.parametrize("n_queries", [1, 4])
@pytest.mark.parametrize("function", [delta_rule, delta_retrieve])
def test_torch_kernel_passes_gradcheck(function, n_queries):
    n_queries = 6 if function is delta_rule else n_queries
    inputs = random_inputs(6, b=1, h=2, r=3, m=2, n_queries=n_queries)
    inputs = [x.requires_grad_() for x in inputs]
    assert gradcheck(lambda *x: function(*x, kernel="torch"), inputs)


@pytest.mark.parametrize("kernel", rules.RETRIEVAL_KERNELS)
def test_overwriting_a_key_replaces_its_value_where_a_sum_would_mix_them(kernel):
    _, k, v, beta = random_inputs(40)
    k[:, :, 39] = k[:, :, 3]
    read = delta_retrieve(k[:, :, 39:], k, v, torch.ones_like(beta), kernel=kernel)[:, :, 0]
    torch.testing.assert_close(read, v[:, :, 39])
    summed = torch.einsum("bhr,bhnr,bhnm->bhm", k[:, :, 39], k, v)
    assert (summed - v[:, :, 39]).norm() > 0.5 * v[:, :, 39].norm()


@pytest.mark.parametrize("function, kernel", FORMS)
def test_heads_split_from_a_projection_are_taken_without_changing_them(function, kernel):
    n, generator = 70, torch.Generator().manual_seed(0)
    x = torch.randn(B, n, 3, H, R, generator=generator, dtype=torch.float64) / R**0.5
    strengths = torch.rand(B, n, H, generator=generator, dtype=torch.float64)
    x, strengths = (z.to(widest(kernel)).requires_grad_() for z in (x, strengths))
    before = x.detach().clone()

    def from_projection(x, strengths, kernel):
        q, k, v = x.permute(2, 0, 3, 1, 4)
        return function(q, k, v, strengths.mT, kernel=kernel)

    assert_is_the_loop(from_projection, [x, strengths], kernel)
    assert torch.equal(x.detach(), before)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("function, kernel", FORMS)
def test_error_against_float64_is_that_of_the_dtype(function, kernel, dtype):
    inputs = random_inputs(1000, b=1, r=32, m=32, dtype=dtype)
    expected = with_gradients(function, [x.double() for x in inputs], "plain")
    for a, e in zip(with_gradients(function, inputs, kernel), expected, strict=True):
        assert a.dtype == dtype
        assert (a.double() - e).norm() < TOLERANCE[dtype] * e.norm()


@pytest.fixture(scope="module")
def loop_of_16384():
    """Inputs of one head in a dtype, and what the loop in float64 makes of them, by function."""

    @cache
    def found(function, dtype):
        inputs = random_inputs(16384, b=1, h=1, dtype=dtype)
        return inputs, with_gradients(function, [x.double() for x in inputs], "plain")

    return found


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("function, kernel", [form for form in FORMS if form[1] != "plain"])
def test_error_at_length_16384_is_that_of_the_dtype(loop_of_16384, function, kernel, dtype):
    inputs, expected = loop_of_16384(function, dtype)
    for a, e in zip(with_gradients(function, inputs, kernel), expected, strict=True):
        assert (a.double() - e).norm() < TOLERANCE[dtype] * e.norm()


@pytest.mark.slow
@pytest.mark.parametrize("beta_dtype", TOLERANCE)
@pytest.mark.parametrize("function", [delta_rule, delta_retrieve])
def test_tensors_of_any_dtypes_give_what_float64_does(function, beta_dtype):
    for dtypes in product(TOLERANCE, repeat=3):
        dtypes = (*dtypes, beta_dtype)
        inputs = [x.to(t) for x, t in zip(random_inputs(19), dtypes, strict=True)]
        expected = with_gradients(function, [x.double() for x in inputs], "plain")
        found = with_gradients(function, inputs, None)
        assert [x.dtype for x in found] == [dtypes[2], *dtypes]
        coarsest = max(TOLERANCE[t] for t in dtypes)
        if len(set(dtypes)) > 1:  # a float64 tensor beside others is computed with in float32
            coarsest = max(coarsest, TOLERANCE[torch.float32])
        for a, e in zip(found, expected, strict=True):
            assert (a.double() - e).norm() < coarsest * e.norm(), dtypes


@pytest.mark.skipif(not installed("numba"), reason="needs numba")
@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_compiled_kernel_refuses_a_dtype_that_it_cannot_read(dtype, place):
    from replib.kernels.delta import cpu

    inputs = random_inputs(5, dtype=torch.float32)
    inputs[place] = inputs[place].to(dtype)
    with pytest.raises(ValueError, match="use kernel='torch'"):
        delta_rule(*inputs, kernel="cpu")
    if place < 3:  # strengths are made float32
        with pytest.raises(ValueError, match="use torch.float32 or torch.bfloat16"):
            cpu.delta_rule(*inputs)


@pytest.mark.parametrize("kernel", KERNELS)
def test_views_whose_rows_overlap_are_taken(kernel):
    def of_views(x, beta, kernel):
        return delta_rule(*(x[i].unfold(2, 16, 1) for i in range(3)), beta, kernel=kernel)

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, B, H, 55, generator=generator) / 4
    assert_is_the_loop(of_views, [x, torch.rand(B, H, 40, generator=generator)], kernel)


@pytest.mark.parametrize("function, kernel", FORMS)
def test_accuracy_is_kept_under_autocast(function, kernel):
    def under_autocast(*inputs, kernel):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return function(*inputs, kernel=kernel)

    assert_is_the_loop(under_autocast, random_inputs(100, dtype=torch.float32), kernel)


# What to make of q, k, v and beta: |k|² β <= 2 keeps the memory bounded.
HARD_INPUTS = {
    "one key": lambda q, k, v, beta: (q, torch.ones_like(k) / R**0.5, v, beta),
    "no keys": lambda q, k, v, beta: (q, 0 * k, v, beta),
    "full strength": lambda q, k, v, beta: (q, k, v, torch.ones_like(beta)),
    "strength of two": lambda q, k, v, beta: (q, k, v, torch.full_like(beta, 2)),
    "no strength": lambda q, k, v, beta: (q, k, v, 0 * beta),
    "large": lambda q, k, v, beta: (1e4 * q, k, 1e4 * v, beta),
    "large keys, weak writes": lambda q, k, v, beta: (q, 1e4 * k, v, 1e-8 * beta),
    "small": lambda q, k, v, beta: (1e-4 * q, 1e-4 * k, 1e-4 * v, beta),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", HARD_INPUTS)
@pytest.mark.parametrize("function, kernel", FORMS)
def test_extreme_inputs_leave_every_kernel_exact(function, kernel, name, dtype):
    inputs = HARD_INPUTS[name](*random_inputs(100, dtype=dtype))
    assert all(x.dtype == dtype for x in inputs)
    assert_is_the_loop(function, inputs, kernel)


@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel != "plain"])
def test_memory_grows_with_n_and_not_with_a_memory_a_position(kernel):
    def peak(n):
        inputs = random_inputs(n, dtype=torch.float32, b=1, h=8, r=64, m=64)
        return peak_memory_bytes(lambda: with_gradients(delta_rule, inputs, kernel))

    short, long = peak(1024), peak(4096)
    q_size = 4 * 8 * 4096 * 64
    # y, the errors, dq, dk, dv and dy (as float64 first) are 8 as large as q, the memories that
    # are kept 2 at most, and the buffers do not grow. A memory a position would be 64.
    assert long < 4.2 * short
    assert long - short < 10 * q_size * 3 / 4


def test_one_query_reads_without_the_memory_being_formed():
    r = m = 192
    inputs = random_inputs(64, dtype=torch.float32, b=1, h=8, r=r, m=m, n_queries=1)
    assert peak_memory_bytes(lambda: delta_retrieve(*inputs)) < 4 * 8 * r * m


def count_operations(function):
    from torch.utils.flop_counter import FlopCounterMode

    def operations(_, a, b, **options):
        return 2 * math.prod(a) * b[-1]

    in_place = {torch.ops.aten.baddbmm_: operations}  # else not counted
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        result = function()
    return result, counter.get_total_flops()


def test_operations_of_the_cost_model_are_those_that_torch_counts():
    n, r, m = 128, 48, 32
    inputs = [x.requires_grad_() for x in random_inputs(n, b=1, h=1, r=r, m=m)]
    y, forward = count_operations(lambda: delta_rule(*inputs, kernel="torch"))
    _, backward = count_operations(lambda: gradients(y, inputs))
    solved = delta.CHUNK_LEN**2  # a position, which the counter does not know of
    for counted, is_backward in ((forward, False), (backward, True)):
        model = delta.operations_per_token(r, m, backward=is_backward) - solved
        assert counted / n == pytest.approx(model, rel=0.1)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda q, k, v, beta: (q[0], k, v, beta), "use .batch, heads, length, size"),
        (lambda q, k, v, beta: (q[..., 1:], k, v, beta), "differ in batch or size"),
        (lambda q, k, v, beta: (q, k, v[:, :, 1:], beta), "differ in batch, heads or length"),
        (lambda q, k, v, beta: (q, k, v, beta[..., None]), r"use \(2, 3, 4\), one for each write"),
        (lambda q, k, v, beta: (q, k, v, beta[:, :, 1:]), r"use \(2, 3, 4\), one for each write"),
    ],
)
@pytest.mark.parametrize("function", [delta_rule, delta_retrieve])
def test_shapes_that_disagree_are_refused(function, change, message):
    with pytest.raises(ValueError, match=message):
        function(*change(*random_inputs(4)))


def test_queries_of_another_number_than_the_writes_are_sent_to_retrieval():
    with pytest.raises(ValueError, match="use delta_retrieve"):
        delta_rule(*random_inputs(4, n_queries=1))


def test_unknown_kernels_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="use torch, cpu, plain"):
        delta_rule(*random_inputs(3), kernel="fast")
    with pytest.raises(ValueError, match="use torch, plain"):
        delta_retrieve(*random_inputs(3), kernel="cpu")


# What autograd, torch.func, torch.compile and torch.export make of the kernels


def hessian_product(function, inputs, kernel):
    """Gradients, and their own gradients along a direction."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    y = function(*inputs, kernel=kernel)
    first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
    along = [x.detach().cos() for x in first]
    second = torch.autograd.grad(first, inputs, along, create_graph=True)
    third = torch.autograd.grad(second, inputs, [x.detach().cos() for x in second])
    return [*first, *second, *third]


@pytest.mark.parametrize("n_queries", [2, R + 3])
@pytest.mark.parametrize("function", [delta_rule, delta_retrieve])
def test_derivatives_of_higher_order_are_those_of_the_loop(function, n_queries):
    n = 40 if function is delta_rule else n_queries
    inputs = random_inputs(40, b=1, h=2, n_queries=n)
    expected = hessian_product(function, inputs, "plain")
    assert_near(hessian_product(function, inputs, "torch"), expected, torch.float64)


@pytest.mark.skipif(not installed("numba"), reason="needs numba")
def test_second_derivatives_of_the_compiled_kernel_are_those_of_the_loop():
    inputs = random_inputs(40, b=1, h=2, dtype=torch.float32)
    found = hessian_product(delta_rule, inputs, "cpu")
    expected = hessian_product(delta_rule, [x.double() for x in inputs], "plain")
    for a, e in zip(found[:8], expected, strict=False):
        assert (a.double() - e).norm() < 1e-4 * e.norm()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("function, kernel", FORMS)
def test_checkpointing_gives_the_same_gradients(function, kernel, reentrant):
    inputs = [x.requires_grad_() for x in random_inputs(40, dtype=widest(kernel))]
    run = partial(function, kernel=kernel)
    y = torch.utils.checkpoint.checkpoint(run, *inputs, use_reentrant=reentrant)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=y.dtype)
    y.backward(dy)
    expected = torch.autograd.grad(run(*inputs), inputs, dy)
    assert_near([x.grad for x in inputs], expected, y.dtype)


@pytest.mark.parametrize("function, kernel", FORMS)
def test_a_gradient_that_is_handed_in_stays_as_it_was(function, kernel):
    """torch hands one tensor to both terms of a sum."""
    for n_queries in (1, 2, 64):
        inputs = random_inputs(64, dtype=widest(kernel), n_queries=n_queries)
        if function is delta_rule:
            inputs[0] = inputs[0][:, :, :1].expand_as(inputs[1])
        inputs = [x.requires_grad_() for x in inputs]
        before = [x.detach().clone() for x in inputs]
        y = function(*inputs, kernel=kernel)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=y.dtype)
        expected, kept = torch.autograd.grad(y, inputs, dy.clone(), retain_graph=True), dy.clone()
        again = torch.autograd.grad(y, inputs, dy, retain_graph=True)
        assert torch.equal(dy, kept)
        assert all(torch.equal(a, e) for a, e in zip(again, expected, strict=True))
        assert all(torch.equal(a, e.detach()) for a, e in zip(before, inputs, strict=True))
        one = dy[:1, :1, :1, :1].expand(y.shape)  # as that of a sum is
        found = torch.autograd.grad(y, inputs, one, retain_graph=True)
        expected = torch.autograd.grad(y, inputs, one.contiguous())
        assert all(torch.equal(a, e) for a, e in zip(found, expected, strict=True))


def transforms(function, inputs, kernel):
    """What torch.func makes of a kernel."""
    q, *rest = inputs

    def loss(q):
        return function(q, *rest, kernel=kernel).square().sum()

    stacked = torch.stack([q, 2 * q], dim=1)  # the dimension of vmap need not be the first
    return [
        torch.func.grad(loss)(q),
        torch.func.grad(lambda x: (torch.func.grad(loss)(x) * q).sum())(q),
        torch.func.vmap(lambda q: function(q, *rest, kernel=kernel), in_dims=1)(stacked),
        torch.func.vmap(torch.func.grad(loss), in_dims=1)(stacked),
        torch.func.jacrev(lambda q: function(q, *rest, kernel=kernel).sum((0, 1, 3)))(q),
        torch.func.jvp(loss, (q,), (q,))[1],
    ]


@pytest.mark.parametrize("function, kernel", FORMS)
def test_transforms_of_a_kernel_are_those_of_the_loop(function, kernel):
    inputs = random_inputs(35, dtype=widest(kernel))
    expected = transforms(function, [x.double() for x in inputs], "plain")
    assert_near(transforms(function, inputs, kernel), expected, inputs[0].dtype)


class Reads(torch.nn.Module):
    def __init__(self, function, kernel):
        super().__init__()
        self.function, self.kernel = function, kernel

    def forward(self, *inputs):
        return self.function(*inputs, kernel=self.kernel)


@pytest.mark.slow  # the first to export in a process loads all that it takes
@pytest.mark.parametrize("function, kernel", [form for form in FORMS if form[1] != "plain"])
def test_kernels_can_be_exported_and_compiled_whole(function, kernel):
    module, inputs = Reads(function, kernel), random_inputs(35, dtype=widest(kernel))
    expected = with_gradients(function, [x.double() for x in inputs], "plain")
    exported = torch.export.export(module, tuple(inputs))
    assert_near([exported.module()(*inputs)], expected[:1], inputs[0].dtype)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    found = with_gradients(lambda *x, kernel: compiled(*x), inputs, kernel)
    assert_near(found, expected, inputs[0].dtype)


@pytest.mark.slow
@pytest.mark.parametrize("m", [16, 5])
@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel != "plain"])
def test_operators_give_what_they_are_said_to(kernel, m):
    name = {"torch": "delta_rule", "cpu": "delta_rule_cpu"}[kernel]
    delta_rule(*random_inputs(3, m=m, dtype=torch.float32), kernel=kernel)  # registers it
    inputs = [x.requires_grad_() for x in random_inputs(40, m=m, dtype=torch.float32)]
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    operator = getattr(torch.ops.replib, f"{name}_v{library.VERSION}").default
    torch.library.opcheck(operator, inputs, test_utils=checks)
