"""The kernels of linear attention as one differentiable operator.

B batch, H heads, N sequence length, D key size, R feature size, M value size.

A kernel's module computes y and what its backward pass needs, with no notion of autograd:

    results(q, k, v, elu1, causal) -> (y, *kept), still empty
    forward(q, k, v, *results, eps, elu1, causal) -> whether q, k and v let y be finite
    gradients(q, k, v) -> (dq, dk, dv), still empty
    backward(dy, q, k, v, *kept, eps, elu1, causal) -> (dq, dk, dv), and the same of them

where y is among what is kept if the module says KEEPS_Y.

Here are the rules around it: derivatives of any order, forward mode, vmap, and what of a sequence
is right if a number of it is not finite. Derivatives of a gradient are those of `written_out`,
which autograd knows. torch.compile and torch.export see the operators `replib::linear_attention`
and `replib::linear_attention_backward`.
"""

from functools import cache
from importlib import import_module

import torch
from torch import Tensor
from torch.autograd import Function

from replib.kernels.library import without_autocast

CHUNK_LEN = 64  # of `written_out`


def exactly(x: Tensor):
    """Where autocast rounds no product of x."""
    return without_autocast(x.device.type)


@cache
def _module(kernel: str):
    return import_module(f"replib.kernels.linear.{kernel}")


def attend(
    kernel: str, q: Tensor, k: Tensor, v: Tensor, eps: float, elu1: bool, causal: bool
) -> Tensor:
    """Normalised linear attention by a kernel; y has the dtype of v."""
    if torch.compiler.is_compiling():
        return _operator(q, k, v, kernel, eps, elu1, causal)[0]
    if torch._C._are_functorch_transforms_active():
        return _TransformedLinearAttention.apply(q, k, v, kernel, eps, elu1, causal)[0]
    return _LinearAttention.apply(q, k, v, kernel, eps, elu1, causal)[0]


def written_out(q: Tensor, k: Tensor, v: Tensor, eps: float, elu1: bool, causal: bool) -> Tensor:
    """The same in operations that autograd can differentiate as often as asked, O(N) in memory."""
    dtype, wide = v.dtype, torch.promote_types(q.dtype, torch.float32)
    with exactly(q):
        q, k, v = (x.to(wide) for x in (q, k, v))
        if elu1:
            q, k = (torch.exp(x.clamp(max=0)) + torch.relu(x) for x in (q, k))
        if not causal:
            den = (q * k.sum(2, keepdim=True)).sum(-1, keepdim=True)
            return (q @ (k.mT @ v) / (den + eps)).to(dtype)
        s, z, y = k[:, :, :1].mT @ v[:, :, :1] * 0, k[:, :, :1] * 0, []
        for q_c, k_c, v_c in zip(*(x.split(CHUNK_LEN, 2) for x in (q, k, v)), strict=True):
            weights = (q_c @ k_c.mT).tril()
            den = weights.sum(-1, keepdim=True) + (q_c * z).sum(-1, keepdim=True) + eps
            y.append((weights @ v_c + q_c @ s) / den)
            s, z = s + k_c.mT @ v_c, z + k_c.sum(2, keepdim=True)
        return torch.cat(y, 2).to(dtype)


def without_what_is_not_finite(
    q: Tensor, k: Tensor, v: Tensor, elu1: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k and v with 0 for what is not finite, and what is to be added to the causal y of them.

    In a product with a triangle, NaN and infinities of a value reach rows that do not see it, as
    0·NaN is NaN; what is added reaches those that do. With φ = elu + 1, a key of -∞ is one whose
    feature is 0.
    """
    bad_q, bad_k, bad_v = (~x.isfinite() for x in (q, k, v))
    if elu1:
        bad_q, bad_k = bad_q & (q != -torch.inf), bad_k & (k != -torch.inf)
    finite = v.masked_fill(bad_v, 0)
    nan = torch.full((), torch.nan, dtype=v.dtype, device=v.device)
    seen = (v - finite).masked_fill(bad_k.any(-1, keepdim=True), torch.nan).detach().cumsum(2)
    seen = torch.where(bad_q.any(-1, keepdim=True), nan, seen)
    return q.masked_fill(bad_q, 0), k.masked_fill(bad_k, 0), finite, seen


def _kept(kernel: str, results) -> list[Tensor]:
    return list(results if _module(kernel).KEEPS_Y else results[1:])


def _forward(q, k, v, kernel: str, eps: float, elu1: bool, causal: bool) -> tuple[Tensor, ...]:
    """y and what is kept."""
    module, options = _module(kernel), {"eps": eps, "elu1": elu1, "causal": causal}
    with exactly(q):
        results = module.results(q, k, v, elu1, causal)
        if 0 in (*q.shape, *k.shape, *v.shape):
            return tuple(x.zero_() for x in results)
        if module.forward(q, k, v, *results, **options) or not causal:
            return results
        *finite, seen = without_what_is_not_finite(q, k, v, elu1)
        module.forward(*finite, *results, **options)
        results[0].add_(seen)
        return results


def _backward(dy, q, k, v, kept, kernel: str, eps: float, elu1: bool, causal: bool):
    """dq, dk and dv."""
    module, options = _module(kernel), {"eps": eps, "elu1": elu1, "causal": causal}
    with exactly(q):
        if 0 in (*q.shape, *k.shape, *v.shape):
            return tuple(x.zero_() for x in module.gradients(q, k, v))
        gradients, finite = module.backward(dy, q, k, v, *kept, **options)
        if finite or not causal:
            return gradients
        # What is not finite and has no gradient itself leaves those of all others as they are.
        q, k, v, _ = without_what_is_not_finite(q, k, v, elu1)
        results = module.results(q, k, v, elu1, causal)
        module.forward(q, k, v, *results, **options)
        return module.backward(dy, q, k, v, *_kept(kernel, results), **options)[0]


class _LinearAttention(Function):
    """As autograd sees it outside transforms, which ask for a slower `apply`."""

    @staticmethod
    def forward(ctx, *inputs):
        outputs = _forward(*inputs)
        _TransformedLinearAttention.setup_context(ctx, inputs, outputs)
        return outputs

    @staticmethod
    def backward(ctx, dy, *_):
        return _TransformedLinearAttention.backward(ctx, dy)

    @staticmethod
    def jvp(ctx, *tangents):
        return _TransformedLinearAttention.jvp(ctx, *tangents)


class _TransformedLinearAttention(Function):
    @staticmethod
    def forward(q, k, v, kernel, eps, elu1, causal):
        return _forward(q, k, v, kernel, eps, elu1, causal)

    @staticmethod
    def setup_context(ctx, inputs, output):
        q, k, v, *ctx.options = inputs
        ctx.n_outputs = len(output)
        ctx.save_for_backward(q, k, v, *_kept(ctx.options[0], output))
        ctx.save_for_forward(q, k, v)
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, dy, *_):
        if dy is None:
            return (None,) * 7
        q, k, v, *kept = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to be differentiated
            gradients = _Gradient.apply(dy, q, k, v, *ctx.options, *kept)
        else:
            gradients = _backward(dy, q, k, v, kept, *ctx.options)
        return (*gradients, None, None, None, None)

    @staticmethod
    def vmap(info, in_dims, q, k, v, *options):
        n = info.batch_size
        q, k, v = _folded(n, in_dims[:3], q, k, v)
        outputs = _TransformedLinearAttention.apply(q, k, v, *options)
        return _unfolded(n, outputs), (0,) * len(outputs)

    @staticmethod
    def jvp(ctx, dq, dk, dv, *_):
        q, k, v = inputs = ctx.saved_tensors[:3]
        dy = q.new_zeros((*q.shape[:3], v.shape[-1]), dtype=v.dtype)
        (tangent,) = _tangents(
            lambda dy: _gradients_written_out(dy, q, k, v, *ctx.options[1:]),
            (dy,),
            _or_zeros((dq, dk, dv), inputs),
        )
        return tangent, *[None] * (ctx.n_outputs - 1)


class _Gradient(Function):
    """The gradient of linear attention, whose own is that of `written_out`'s."""

    @staticmethod
    def forward(dy, q, k, v, kernel, eps, elu1, causal, *kept):
        return _backward(dy, q, k, v, kept, kernel, eps, elu1, causal)

    @staticmethod
    def setup_context(ctx, inputs, output):
        dy, q, k, v, _, *ctx.options = inputs[:8]
        ctx.n_inputs = len(inputs)
        ctx.save_for_backward(dy, q, k, v)
        ctx.save_for_forward(dy, q, k, v)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *given):
        gradients = _gradient_of_gradient(given, *ctx.saved_tensors, *ctx.options)
        return (*gradients, *[None] * (ctx.n_inputs - 4))

    @staticmethod
    def jvp(ctx, *tangents):
        inputs = ctx.saved_tensors
        return _tangents(
            lambda *given: _gradient_of_gradient(given, *inputs, *ctx.options),
            tuple(torch.zeros_like(x) for x in inputs[1:]),
            _or_zeros(tangents[:4], inputs),
        )

    @staticmethod
    def vmap(info, in_dims, dy, q, k, v, kernel, eps, elu1, causal, *kept):
        n = info.batch_size
        dims = (*in_dims[:4], *in_dims[8:])
        dy, q, k, v, *kept = _folded(n, dims, dy, q, k, v, *kept)
        gradients = _Gradient.apply(dy, q, k, v, kernel, eps, elu1, causal, *kept)
        return _unfolded(n, gradients), (0, 0, 0)


def _gradients_written_out(dy, q, k, v, eps, elu1, causal):
    _, pull = torch.func.vjp(lambda *x: written_out(*x, eps, elu1, causal), q, k, v)
    return pull(dy)


def _gradient_of_gradient(given, dy, q, k, v, eps, elu1, causal):
    """Of dy, q, k and v, where `given` are the gradients of dq, dk and dv."""
    _, pull = torch.func.vjp(lambda *x: _gradients_written_out(*x, eps, elu1, causal), dy, q, k, v)
    return pull(_or_zeros(given, (q, k, v)))


def _tangents(pull, zeros, tangents):
    """J·tangents, where pull(x) is Jᵀ x: what is linear has its transpose as its gradient."""
    return torch.func.vjp(pull, *zeros)[1](tangents)


def _or_zeros(gradients, like) -> tuple[Tensor, ...]:
    pairs = zip(gradients, like, strict=True)
    return tuple(torch.zeros_like(x) if g is None else g for g, x in pairs)


def _folded(n: int, dims, *tensors: Tensor) -> list[Tensor]:
    """Tensors with a dimension of vmap as ones with a larger batch."""
    moved = (
        x.expand(n, *x.shape) if dim is None else x.movedim(dim, 0)
        for dim, x in zip(dims, tensors, strict=True)
    )
    return [x.flatten(0, 1) for x in moved]


def _unfolded(n: int, tensors) -> tuple[Tensor, ...]:
    return tuple(x.unflatten(0, (n, x.shape[0] // n)) for x in tensors)


@torch.library.custom_op("replib::linear_attention", mutates_args=())
def _operator(
    q: Tensor, k: Tensor, v: Tensor, kernel: str, eps: float, elu1: bool, causal: bool
) -> list[Tensor]:
    return list(_forward(q, k, v, kernel, eps, elu1, causal))


@torch.library.custom_op("replib::linear_attention_backward", mutates_args=())
def _backward_operator(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kept: list[Tensor],
    kernel: str,
    eps: float,
    elu1: bool,
    causal: bool,
) -> list[Tensor]:
    return list(_backward(dy, q, k, v, kept, kernel, eps, elu1, causal))


@_operator.register_fake
def _(q, k, v, kernel, eps, elu1, causal):
    return list(_module(kernel).results(q, k, v, elu1, causal))


@_backward_operator.register_fake
def _(dy, q, k, v, kept, kernel, eps, elu1, causal):
    return list(_module(kernel).gradients(q, k, v))


@_operator.register_vmap
def _(info, in_dims, q, k, v, *options):
    n = info.batch_size
    outputs = _operator(*_folded(n, in_dims[:3], q, k, v), *options)
    return list(_unfolded(n, outputs)), [0] * len(outputs)


@_backward_operator.register_vmap
def _(info, in_dims, dy, q, k, v, kept, *options):
    n, dims = info.batch_size, (*in_dims[:4], *in_dims[4])
    dy, q, k, v, *kept = _folded(n, dims, dy, q, k, v, *kept)
    gradients = _backward_operator(dy, q, k, v, kept, *options)
    return list(_unfolded(n, gradients)), [0] * 3


def _keep(ctx, inputs, output):
    q, k, v, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, *_kept(ctx.options[0], output))
    ctx.set_materialize_grads(False)


def _pull(ctx, given):
    q, k, v, *kept = ctx.saved_tensors
    gradients = _backward_operator(given[0], q, k, v, kept, *ctx.options)
    return (*gradients, None, None, None, None)


def _keep_gradient(ctx, inputs, output):
    dy, q, k, v, kept, _, *ctx.options = inputs
    ctx.n_kept = len(kept)
    ctx.save_for_backward(dy, q, k, v)
    ctx.set_materialize_grads(False)


def _pull_gradient(ctx, given):
    gradients = _gradient_of_gradient(given, *ctx.saved_tensors, *ctx.options)
    return (*gradients, [None] * ctx.n_kept, None, None, None, None)


_operator.register_autograd(_pull, setup_context=_keep)
_backward_operator.register_autograd(_pull_gradient, setup_context=_keep_gradient)
