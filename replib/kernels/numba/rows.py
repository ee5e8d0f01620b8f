"""How the compiled kernels have their tensors lie in memory: the numbers of a row side by side.

A kernel goes from row to row by strides, and through a row number by number.
"""

import torch
from torch import Tensor


def rows_together(x: Tensor) -> Tensor:
    """x, or a copy of it whose rows lie together."""
    return x if x.stride(-1) == 1 else x.contiguous()


def empty_like_rows(x: Tensor) -> Tensor:
    """An empty tensor of x's shape and dtype, no two numbers of which share a place.

    It has x's order of strides where that leaves rows together, so that heads that were split from
    a projection are merged again without a copy. That of a view whose rows overlap may not.
    """
    y = torch.empty_like(x)  # dense, whatever x's strides are
    return y if y.stride(-1) == 1 else torch.empty_like(x, memory_format=torch.contiguous_format)


def gradients(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Room for dq, dk and dv."""
    return empty_like_rows(q), empty_like_rows(k), empty_like_rows(v)
