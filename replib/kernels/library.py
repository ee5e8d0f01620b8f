"""Kernels as functions that autograd, `torch.func`, `torch.compile` and `torch.export` know.

What is traced sees a kernel as one custom operator, whose inside it need not understand. Called at
once a kernel goes without the operator, which would cost about 25 µs more.
"""

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# In the names of operators, by which code calls them that torch.compile has cached, on any machine:
# to be raised when their arguments or results change.
VERSION = 2


def _all_but_y(outputs: Sequence[Tensor], *options) -> Sequence[Tensor]:
    return outputs[1:]


def _like_inputs(dy: Tensor, kept: Sequence[Tensor], *arguments) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in arguments if isinstance(x, Tensor))


def operator(
    name: str,
    forward: Callable[..., Sequence[Tensor]],
    backward: Callable[..., Sequence[Tensor]],
    *,
    plain: Callable[..., Tensor],
    empty: Callable[..., Sequence[Tensor]],
    empty_gradients: Callable[..., Sequence[Tensor]] = _like_inputs,
    kept: Callable[..., Sequence[Tensor]] = _all_but_y,
) -> Callable[..., Tensor]:
    """A function (*inputs, *options) -> y with derivatives of any order.

    The inputs are tensors with a batch first, each row of which is computed by itself; the options
    are text and numbers.

    Args:
        forward: (*inputs, *options) -> y, and other tensors.
        backward: (dy, kept, *inputs, *options) -> the gradient of each input; it changes none.
        plain: (*inputs, *options) -> y in operations of torch, which second derivatives are those
            of; its annotations say what the arguments are.
        empty, empty_gradients: what the two give, of these sizes, dtypes and strides, unfilled.
        kept: (outputs of forward, *options) -> those that the backward pass needs.
    """
    parameters = inspect.signature(plain).parameters.values()
    n_arguments = len(parameters)
    n = sum(one.annotation is Tensor for one in parameters)  # inputs
    schema = [f"{one.annotation.__name__} {one.name}" for one in parameters]
    forward_op = torch.library.custom_op(
        f"replib::{name}_v{VERSION}",
        lambda *arguments: list(forward(*arguments)),
        mutates_args=(),
        schema=f"({', '.join(schema)}) -> Tensor[]",
    )
    backward_op = torch.library.custom_op(
        f"replib::{name}_backward_v{VERSION}",
        lambda dy, *arguments: list(backward(dy, arguments[-1], *arguments[:-1])),
        mutates_args=(),
        schema=f"(Tensor dy, {', '.join(schema)}, Tensor[] kept) -> Tensor[]",
    )
    forward_op.register_fake(lambda *arguments: list(empty(*arguments)))
    backward_op.register_fake(
        lambda dy, *arguments: list(empty_gradients(dy, arguments[-1], *arguments[:-1]))
    )

    def gradients(options: Sequence, dy: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Those of the plain form."""
        return torch.func.vjp(lambda *x: plain(*x, *options), *inputs)[1](dy)

    def second(ctx, directions: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """The gradients of dy and the inputs, by those of the gradients of the inputs."""
        saved = ctx.saved_tensors
        given = _or_zeros(directions, saved[1:])
        return torch.func.vjp(lambda *x: gradients(ctx.options, *x), *saved)[1](given)

    def keep(ctx, inputs, output):
        ctx.options = inputs[n:]
        ctx.save_for_backward(*inputs[:n], *kept(output, *ctx.options))
        ctx.set_materialize_grads(False)

    def keep_for_second(ctx, dy, arguments):
        ctx.options = arguments[n:n_arguments]
        ctx.save_for_backward(dy, *arguments[:n])
        ctx.save_for_forward(dy, *arguments[:n])
        ctx.set_materialize_grads(False)

    class Backward(torch.autograd.Function):
        """(dy, *inputs, *options, *kept) -> the gradients of the inputs."""

        @staticmethod
        def forward(dy, *arguments):
            return tuple(backward(dy, arguments[n_arguments:], *arguments[:n_arguments]))

        @staticmethod
        def setup_context(ctx, arguments, outputs):
            keep_for_second(ctx, arguments[0], arguments[1:])
            ctx.n_others = len(arguments) - 1 - n

        @staticmethod
        def backward(ctx, *directions):
            return *second(ctx, directions), *[None] * ctx.n_others

        @staticmethod
        def jvp(ctx, *tangents):
            saved = ctx.saved_tensors
            given = _or_zeros(tangents[: 1 + n], saved)
            return torch.func.jvp(lambda *x: gradients(ctx.options, *x), saved, given)[1]

        @staticmethod
        def vmap(info, in_dims, *arguments):
            return _folded(Backward.apply, info, in_dims, arguments)

    class Transformed(torch.autograd.Function):
        @staticmethod
        def forward(*arguments):
            return tuple(forward(*arguments))

        @staticmethod
        def setup_context(ctx, arguments, outputs):
            ctx.n_outputs = len(outputs)
            ctx.mark_non_differentiable(*outputs[1:])
            ctx.save_for_forward(*arguments[:n])
            keep(ctx, arguments, outputs)

        @staticmethod
        def backward(ctx, dy, *_):
            if dy is None:
                return (None,) * n_arguments
            saved = ctx.saved_tensors
            inputs, rest = saved[:n], saved[n:]
            # Where no gradient of the gradient is asked for, `apply` would be for nothing.
            if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
                found = Backward.apply(dy, *inputs, *ctx.options, *rest)
            else:
                found = backward(dy, rest, *inputs, *ctx.options)
            return *found, *[None] * len(ctx.options)

        @staticmethod
        def jvp(ctx, *tangents):
            inputs = ctx.saved_tensors[:n]
            given = _or_zeros(tangents[:n], inputs)
            y = torch.func.jvp(lambda *x: plain(*x, *ctx.options), inputs, given)[1]
            return y, *[None] * (ctx.n_outputs - 1)

        @staticmethod
        def vmap(info, in_dims, *arguments):
            return _folded(Transformed.apply, info, in_dims, arguments)

    class Forward(torch.autograd.Function):
        """The same for autograd alone: with a `setup_context`, `apply` takes 100 µs more."""

        @staticmethod
        def forward(ctx, *arguments):
            outputs = tuple(forward(*arguments))
            Transformed.setup_context(ctx, arguments, outputs)
            return outputs

        backward, jvp = staticmethod(Transformed.backward), staticmethod(Transformed.jvp)

    def pull(ctx, given):
        saved = ctx.saved_tensors
        inputs, rest = saved[:n], saved[n:]
        found = backward_op(given[0], *inputs, *ctx.options, list(rest))
        return *found, *[None] * len(ctx.options)

    def keep_gradient(ctx, inputs, output):
        dy, *arguments, rest = inputs
        keep_for_second(ctx, dy, arguments)
        ctx.n_kept = len(rest)

    def pull_gradient(ctx, directions):
        d_dy, *found = second(ctx, directions)
        return d_dy, *found, *[None] * len(ctx.options), [None] * ctx.n_kept

    def fold(info, in_dims, *arguments):
        return _as_lists(_folded(forward_op, info, in_dims, arguments))

    def fold_gradient(info, in_dims, *arguments):
        def flat(dy, *given):
            return backward_op(dy, *given[:n_arguments], list(given[n_arguments:]))

        (*others, rest), (*dims, rest_dims) = arguments, in_dims
        return _as_lists(_folded(flat, info, (*dims, *rest_dims), (*others, *rest)))

    forward_op.register_autograd(pull, setup_context=keep)
    backward_op.register_autograd(pull_gradient, setup_context=keep_gradient)
    forward_op.register_vmap(fold)
    backward_op.register_vmap(fold_gradient)

    def call(*arguments) -> Tensor:
        if torch.compiler.is_compiling():
            return forward_op(*arguments)[0]
        transformed = torch._C._are_functorch_transforms_active()
        return (Transformed if transformed else Forward).apply(*arguments)[0]

    return call


def _or_zeros(given: Sequence[Tensor | None], like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    pairs = zip(given, like, strict=True)
    return tuple(torch.zeros_like(x) if g is None else g for g, x in pairs)


def _folded(function: Callable, info, in_dims: Sequence, arguments: Sequence):
    """A function of tensors with one more dimension, as more rows of their batch."""
    size, folded = info.batch_size, []
    for x, dim in zip(arguments, in_dims, strict=True):
        if isinstance(x, Tensor):
            x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
            x = x.flatten(0, 1)
        folded.append(x)
    found = function(*folded)
    return tuple(x.unflatten(0, (size, x.shape[0] // size)) for x in found), (0,) * len(found)


def _as_lists(found: tuple) -> tuple[list, ...]:
    return tuple(map(list, found))


def once(
    name: str,
    forward: Callable[..., tuple[Tensor, Sequence[Tensor]]],
    backward: Callable[..., Sequence[Tensor | None]],
) -> Callable[..., Tensor]:
    """A function (*inputs, *options) -> y that is differentiable once. A gradient that is
    differentiated again raises: it would be a number that lacks a part, as `once_differentiable`
    leaves one to inputs that it is connected to by other ways.

    Args:
        forward: (*inputs, *options) -> y, and what the backward pass is given, all inputs among it.
        backward: (whether each argument needs a gradient, dy, *given, *options) -> that of each
            input; it changes none of the tensors.
    """

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *arguments):
            return tuple(backward(*arguments))

        @staticmethod
        def backward(ctx, *directions):
            raise NotImplementedError(
                f"{name} is differentiable once: write it out in operations of torch for more"
            )

    class Forward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *arguments):
            y, given = forward(*arguments)
            ctx.options = [x for x in arguments if not isinstance(x, Tensor)]
            ctx.save_for_backward(*given)
            return y

        @staticmethod
        def backward(ctx, dy):
            found = Backward.apply(ctx.needs_input_grad, dy, *ctx.saved_tensors, *ctx.options)
            return *found, *[None] * len(ctx.options)

    return Forward.apply
