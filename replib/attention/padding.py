"""What must not be seen: padding, and later positions that are not finite.

B batch, H heads of queries, G heads of keys and values, N sequence length.
"""

import torch
from torch import Tensor

LARGEST = 1e15  # a larger query's square leaves float32's range


def without_padding(
    q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, *, causal: bool, key: float = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys with `key` and values with 0 at padding (B, N), whatever they hold, so that a weight of
    0 may be multiplied with them.

    Causal, queries stand at the same positions. What is not finite, or near that, of one at padding
    is 0, as its gradient, 0 or not, would reach the keys.
    """
    if padding is None:
        return q, k, v
    padding = padding[:, None, :, None]
    if causal:
        size = q.detach().abs().to(torch.promote_types(q.dtype, torch.float32))
        q = q.masked_fill(padding & ~(size <= LARGEST), 0)
    return q, k.masked_fill(padding, key), v.masked_fill(padding, 0)


def nothing_seen(padding: Tensor) -> Tensor:
    """Causal: whether padding (B, N) is all that there is up to a position (B, 1, N, 1)."""
    return (~padding).cumsum(1).eq(0)[:, None, :, None]


def finite_so_far(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors (B, G, N, size) with 0 for what is not finite, and at the end (B, G, N, size of the
    last): 0, but where this or an earlier position is not finite, in its column or anywhere in the
    other tensors, infinite or NaN.

    0·NaN is NaN: in a product with weights that are 0 for later positions, these spoil the earlier
    ones. That of finite ones, to which the last is added, has it only where it belongs.
    """
    finite = [torch.where(x.isfinite(), x, 0) for x in tensors]
    *others, spoiled = (x.detach() - y.detach() for x, y in zip(tensors, finite, strict=True))
    for other in others:
        spoiled = spoiled + 0 * other.sum(-1, keepdim=True)
    return *finite, spoiled.cumsum(2)


def can_be_asked(x: Tensor) -> bool:
    """Whether the numbers of a tensor are at hand, and may decide what is computed."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return not (x.is_meta or (x.is_cuda and torch.cuda.is_current_stream_capturing()))
