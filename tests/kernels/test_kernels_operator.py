"""What is true of every kernel of linear attention: derivatives, transforms, traces, and what of a
sequence stays right where a number of it is not finite.

B batch, H heads, N sequence length, D query/key size, M value size.
"""

from functools import partial

import pytest
import tensors
import torch
from torch.autograd import gradgradcheck
from torch.utils.checkpoint import checkpoint

from replib import plain
from replib.attention import linear_attention
from replib.kernels import KERNELS, why_not

B, H, D, M = 2, 3, 16, 5
KIND = {"device_type": "cpu", "head_dim": D, "value_dim": M}
HERE = [kernel for kernel in KERNELS if why_not(kernel, dtype=torch.float32, **KIND) is None]
EVERY = ["plain", *HERE]
CAUSAL = pytest.mark.parametrize("causal", [True, False])


def random_qkv(n=70, **options):
    return tensors.random_qkv(n, **{"d": D, "m": M, "dtype": torch.float32} | options)


def relative(actual, expected):
    return max(
        ((a.double() - e.double()).norm() / e.double().norm()).item()
        for a, e in zip(actual, expected, strict=True)
    )


def in_float64(inputs):
    return [x.detach().double().requires_grad_() for x in inputs]


def derivatives(function, inputs):
    """First to third, of a loss that is not linear in y."""
    found, y = [], function(*inputs).square().sum()
    for _ in range(3):
        gradients = torch.autograd.grad(y, inputs, create_graph=True)
        found += gradients
        y = sum(g.square().sum() for g in gradients)
    return found


@CAUSAL
@pytest.mark.parametrize("kernel", HERE)
def test_derivatives_to_the_third_are_those_of_the_plain_form(kernel, causal):
    inputs = [x.requires_grad_() for x in random_qkv(n_keys=None if causal else 33)]
    attend = partial(linear_attention, causal=causal)
    found = derivatives(partial(attend, kernel=kernel), inputs)
    expected = derivatives(partial(attend, kernel="plain"), in_float64(inputs))
    assert relative(found, expected) < 1e-4


@CAUSAL
def test_second_derivatives_are_those_of_finite_differences(causal):
    inputs = [x[:1, :1].requires_grad_() for x in random_qkv(3, d=2, m=2, dtype=torch.float64)]
    assert gradgradcheck(lambda *x: linear_attention(*x, causal=causal, kernel="torch"), inputs)


@CAUSAL
@pytest.mark.parametrize("elu1", [True, False])
def test_the_form_that_is_differentiated_twice_is_the_plain_one(elu1, causal):
    q, k, v = random_qkv(dtype=torch.float64)
    features = "elu1" if elu1 else "identity"
    q, k = (q, k) if elu1 else (q.abs(), k.abs())
    y = plain.linear_attention(q, k, v, 1e-6, elu1, causal)
    expected = linear_attention(q, k, v, causal=causal, feature_map=features, kernel="plain")
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kernel", HERE)
def test_checkpointing_gives_the_same_gradients(kernel, reentrant):
    inputs = [x.requires_grad_() for x in random_qkv()]
    attend = partial(linear_attention, kernel=kernel)
    gradients = partial(torch.autograd.grad, grad_outputs=torch.ones(B, H, 70, M))
    expected = gradients(attend(*inputs), inputs)
    checkpoint(attend, *inputs, use_reentrant=reentrant).sum().backward()
    assert all(map(torch.equal, (x.grad for x in inputs), expected))


@CAUSAL
@pytest.mark.parametrize("kernel", HERE)
def test_transforms_give_what_autograd_does(kernel, causal):
    q, k, v = random_qkv(20)
    dq = random_qkv(20, seed=1)[0]

    def loss(q, kernel=kernel, k=k[0], v=v[0]):
        return (
            linear_attention(q[None], k[None], v[None], causal=causal, kernel=kernel).square().sum()
        )

    (expected,) = torch.autograd.grad(loss(exact := q[0].requires_grad_(), "plain"), exact)
    q = q.detach()
    assert relative([torch.func.grad(loss)(q[0])], [expected]) < 1e-4
    assert relative([torch.func.vmap(torch.func.grad(loss))(q)[0]], [expected]) < 1e-4
    _, tangent = torch.func.jvp(loss, (q[0],), (dq[0],))
    assert tangent.item() == pytest.approx((expected * dq[0]).sum().item(), rel=1e-3)
    few, rest = q[0, :, :2], {"k": k[0, :, :2], "v": v[0, :, :2]}
    found = torch.func.hessian(partial(loss, **rest))(few)
    expected = torch.func.hessian(partial(loss, kernel="plain", **rest))(few)
    assert relative([found], [expected]) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("kernel", HERE)
def test_a_graph_holds_the_kernel_whole_at_every_length(kernel):
    class Attend(torch.nn.Module):
        def forward(self, q, k, v):
            return linear_attention(q, k, v, kernel=kernel)

    torch._dynamo.reset()
    length = torch.export.Dim("length", min=2)
    exported = torch.export.export(
        Attend(), tuple(random_qkv(9)), dynamic_shapes=[{2: length}] * 3
    ).module()
    compiled = torch.compile(Attend(), fullgraph=True, backend="aot_eager")
    inputs = [x.requires_grad_() for x in random_qkv()]
    expected, y = Attend()(*inputs), compiled(*inputs)
    assert torch.equal(exported(*random_qkv()), expected) and torch.equal(y, expected)
    found, expected = (torch.autograd.grad(x.square().sum(), inputs) for x in (y, expected))
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e30])
@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("kernel", EVERY)
def test_what_is_not_finite_reaches_no_earlier_output_and_no_gradient_of_one(kernel, place, bad):
    at, inputs = 50, random_qkv()
    spoiled = [x.clone() for x in inputs]
    spoiled[place][0, 1, at, 2:] = bad
    attend = partial(linear_attention, kernel=kernel)
    expected, y = (
        [attend(*x)[:, :, :at], *gradients_of_earlier(attend, x, at)] for x in (inputs, spoiled)
    )
    for a, e in zip(y, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-6)
    if not (place < 2 and bad in (-torch.inf, 1e30)) and not (place == 2 and bad == 1e30):
        later = attend(*spoiled)[0, 1, at : at + 1 if place == 0 else None]
        assert not later.isfinite().all(-1).any()


def gradients_of_earlier(attend, inputs, at):
    """Those of the inputs before a position, of a loss of the outputs before it."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    loss = attend(*inputs)[:, :, :at].square().sum()
    return [g[:, :, :at] for g in torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("kernel", EVERY)
def test_the_slope_of_elu_plus_one_at_zero_is_one(kernel):
    q, _, v = random_qkv(7)
    keys = torch.zeros(B, H, 7, D, requires_grad=True)
    exact = keys.detach().double().requires_grad_()
    y = linear_attention(q, keys, v, kernel=kernel)
    weights = (1 + torch.nn.functional.elu(q.double())) @ (1 + torch.nn.functional.elu(exact)).mT
    weights = weights.tril()
    expected = weights @ v.double() / (weights.sum(-1, keepdim=True) + 1e-6)
    found, expected = (
        torch.autograd.grad((x * x).sum(), k) for x, k in ((y, keys), (expected, exact))
    )
    assert relative(found, expected) < 1e-4
