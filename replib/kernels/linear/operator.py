"""The kernels of linear attention as one differentiable operator.

B batch, H heads, N sequence length, D key size, R feature size, M value size.

A kernel's module computes y and what its backward pass needs, with no notion of autograd:

    results(q, k, v, elu1, causal) -> (y, *kept), still empty
    forward(q, k, v, *results, eps, elu1, causal) -> whether q, k and v let y be finite
    gradients(q, k, v) -> (dq, dk, dv), still empty
    backward(dy, q, k, v, *kept, eps, elu1, causal) -> (dq, dk, dv), and the same of them

where y is among what is kept if the module says KEEPS_Y. Here are the rules for sizes of 0, and for
what of a sequence is right if a number of it is not finite.
"""

from collections.abc import Sequence
from functools import cache
from importlib import import_module

from torch import Tensor

from replib import plain
from replib.kernels.library import operator
from replib.plain import without_autocast, without_what_is_not_finite


@cache
def _module(kernel: str):
    return import_module(f"replib.kernels.linear.{kernel}")


def _kept(results: Sequence[Tensor], kernel: str, *options) -> Sequence[Tensor]:
    return results if _module(kernel).KEEPS_Y else results[1:]


def _forward(q, k, v, kernel: str, eps: float, elu1: bool, causal: bool) -> tuple[Tensor, ...]:
    """y and what is kept."""
    module, options = _module(kernel), {"eps": eps, "elu1": elu1, "causal": causal}
    with without_autocast(q.device.type):
        results = module.results(q, k, v, elu1, causal)
        if 0 in (*q.shape, *k.shape, *v.shape):
            return tuple(x.zero_() for x in results)
        if module.forward(q, k, v, *results, **options) or not causal:
            return results
        *finite, seen = without_what_is_not_finite(q, k, v, elu1)
        module.forward(*finite, *results, **options)
        results[0].add_(seen)
        return results


def _backward(dy, kept, q, k, v, kernel: str, eps: float, elu1: bool, causal: bool):
    """dq, dk and dv."""
    module, options = _module(kernel), {"eps": eps, "elu1": elu1, "causal": causal}
    with without_autocast(q.device.type):
        if 0 in (*q.shape, *k.shape, *v.shape):
            return tuple(x.zero_() for x in module.gradients(q, k, v))
        gradients, finite = module.backward(dy, q, k, v, *kept, **options)
        if finite or not causal:
            return gradients
        # What is not finite and has no gradient itself leaves those of all others as they are.
        q, k, v, _ = without_what_is_not_finite(q, k, v, elu1)
        results = module.results(q, k, v, elu1, causal)
        module.forward(q, k, v, *results, **options)
        return module.backward(dy, q, k, v, *_kept(results, kernel), **options)[0]


def _plain(
    q: Tensor, k: Tensor, v: Tensor, kernel: str, eps: float, elu1: bool, causal: bool
) -> Tensor:
    return plain.linear_attention(q, k, v, eps, elu1, causal)


attend = operator(
    "linear_attention",
    _forward,
    _backward,
    plain=_plain,
    empty=lambda q, k, v, kernel, eps, elu1, causal: _module(kernel).results(q, k, v, elu1, causal),
    empty_gradients=lambda dy, kept, q, k, v, kernel, *_: _module(kernel).gradients(q, k, v),
    kept=_kept,
)
"""(q, k, v, kernel, eps, elu1, causal) -> y, in the dtype of v."""
