"""Kernels as functions that autograd, `torch.func`, `torch.compile` and `torch.export` know.

What is traced sees a kernel as one custom operator, whose inside it need not understand. Called at
once a kernel goes without the operator, which would cost about 25 µs more.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor


def operator(
    name: str,
    forward: Callable[..., tuple[Tensor, ...]],
    backward: Callable[..., tuple[Tensor, ...]],
    *,
    plain: Callable[..., Tensor],
    empty: Callable[..., tuple[Tensor, ...]],
    empty_gradients: Callable[..., tuple[Tensor, ...]],
    n_kept: int,
) -> Callable[..., Tensor]:
    """A function (*inputs) -> y with derivatives of any order.

    All tensors have a batch first, each row of which is computed by itself.

    Args:
        forward: (*inputs) -> (y, *kept).
        backward: (dy, *inputs, *kept) -> the gradient of each input; it changes none of them.
        plain: (*inputs) -> y in operations of torch, which second derivatives are those of.
        empty, empty_gradients: what the two give, of these sizes, dtypes and strides, unfilled.
    """
    inputs = [f"Tensor {parameter}" for parameter in inspect.signature(plain).parameters]
    kept = [f"Tensor kept{i}" for i in range(n_kept)]
    forward_op = torch.library.custom_op(
        f"replib::{name}",
        forward,
        mutates_args=(),
        schema=f"({', '.join(inputs)}) -> ({', '.join(['Tensor'] * (1 + n_kept))})",
    )
    backward_op = torch.library.custom_op(
        f"replib::{name}_backward",
        backward,
        mutates_args=(),
        schema=f"({', '.join(['Tensor dy', *inputs, *kept])})"
        f" -> ({', '.join(['Tensor'] * len(inputs))})",
    )
    forward_op.register_fake(empty)
    backward_op.register_fake(empty_gradients)
    n_inputs = len(inputs)

    def second(saved: Sequence[Tensor], directions: Sequence[Tensor | None]) -> tuple:
        """The gradients of dy and the inputs, by those of the gradients of the inputs."""
        given = tuple(
            torch.zeros_like(x) if d is None else d
            for x, d in zip(saved[1:], directions, strict=True)
        )

        def gradients(dy, *tensors):
            return torch.func.vjp(plain, *tensors)[1](dy)

        return *torch.func.vjp(gradients, *saved)[1](given), *[None] * n_kept

    def keep(ctx, inputs, output):
        ctx.save_for_backward(*inputs, *output[1:])
        ctx.set_materialize_grads(False)

    def keep_for_second(ctx, inputs, output):
        ctx.save_for_backward(*inputs[: 1 + n_inputs])
        ctx.set_materialize_grads(False)

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(*tensors):
            return backward(*tensors)

        setup_context = staticmethod(keep_for_second)

        @staticmethod
        def backward(ctx, *directions):
            return second(ctx.saved_tensors, directions)

        @staticmethod
        def vmap(info, in_dims, *tensors):
            return _folded(Backward.apply, info, in_dims, tensors)

    class Transformed(torch.autograd.Function):
        @staticmethod
        def forward(*tensors):
            return forward(*tensors)

        @staticmethod
        def setup_context(ctx, tensors, outputs):
            ctx.mark_non_differentiable(*outputs[1:])
            ctx.save_for_forward(*tensors)
            keep(ctx, tensors, outputs)

        @staticmethod
        def backward(ctx, dy, *_):
            if dy is None:
                return (None,) * n_inputs
            # Where no gradient of the gradient is asked for, `apply` would be for nothing.
            traced = torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
            return (Backward.apply if traced else backward)(dy, *ctx.saved_tensors)

        @staticmethod
        def jvp(ctx, *tangents):
            tensors = ctx.saved_tensors[:n_inputs]
            given = (
                torch.zeros_like(x) if t is None else t
                for x, t in zip(tensors, tangents, strict=True)
            )
            return torch.func.jvp(plain, tensors, tuple(given))[1], *[None] * n_kept

        @staticmethod
        def vmap(info, in_dims, *tensors):
            return _folded(Transformed.apply, info, in_dims, tensors)

    class Forward(torch.autograd.Function):
        """The same for autograd alone: with a `setup_context`, `apply` takes 100 µs more."""

        @staticmethod
        def forward(ctx, *tensors):
            outputs = forward(*tensors)
            Transformed.setup_context(ctx, tensors, outputs)
            return outputs

        backward, jvp = staticmethod(Transformed.backward), staticmethod(Transformed.jvp)

    forward_op.register_autograd(
        lambda ctx, dy, *_: backward_op(dy, *ctx.saved_tensors), setup_context=keep
    )
    backward_op.register_autograd(
        lambda ctx, *directions: second(ctx.saved_tensors, directions),
        setup_context=keep_for_second,
    )
    for op in (forward_op, backward_op):
        op.register_vmap(partial(_folded, op))

    def call(*tensors: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return forward_op(*tensors)[0]
        transformed = torch._C._are_functorch_transforms_active()
        return (Transformed if transformed else Forward).apply(*tensors)[0]

    return call


def _folded(function, info, in_dims: Sequence[int | None], tensors: Sequence[Tensor]):
    """A function of tensors with one more dimension, as more rows of their batch."""
    size = info.batch_size
    moved = [
        x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip(tensors, in_dims, strict=True)
    ]
    batch = moved[0].shape[1]
    found = function(*(x.flatten(0, 1) for x in moved))
    return tuple(x.unflatten(0, (size, batch)) for x in found), (0,) * len(found)


def once(name: str, backward: Callable[..., tuple[Tensor | None, ...]]) -> Callable[..., tuple]:
    """The backward pass of a kernel, whose own raises: a gradient that is differentiated again is
    then no number that lacks a part, as `once_differentiable` would leave one to inputs that it is
    connected to by other ways.

    Args:
        backward: (*arguments) -> gradients; it changes none of the tensors, and is given all that
            the kernel was.
    """

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *arguments):
            return backward(*arguments)

        @staticmethod
        def backward(ctx, *directions):
            raise NotImplementedError(
                f"{name} is differentiable once: write it out in operations of torch for more"
            )

    return Backward.apply


def without_autocast(device_type: str) -> AbstractContextManager:
    """A context without autocast: 20 µs less where there is none."""
    available = torch.amp.is_autocast_available(device_type)  # "meta" has none
    if available and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def all_finite(x: Tensor) -> bool:
    """Whether no number is NaN or infinite: one pass. A sum beyond float32 reads as infinite, and a
    tensor without numbers as finite."""
    if x.is_meta:
        return True
    wide = torch.promote_types(x.dtype, torch.float32)
    return math.isfinite(x.detach().sum(dtype=wide).item())
