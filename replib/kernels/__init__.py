"""Causal linear attention as kernels of the same equations, and the choice among them.

A kernel is a function (q, k, v, eps, elu1) -> y, where q, k are (B, H, N, D), v and y are
(B, H, N, M), and `elu1` says whether φ = elu + 1 is still to be applied to q and k or they
are features already. B batch, H heads, N sequence length, D key size, M value size.
"""

from collections.abc import Callable

from torch import Tensor

from replib.kernels import torch_chunked

KERNELS: dict[str, Callable[[Tensor, Tensor, Tensor, float, bool], Tensor]] = {
    "torch": torch_chunked.causal_linear_attention,
}


def fastest_kernel(q: Tensor, k: Tensor, v: Tensor) -> str:
    """The name of the fastest kernel for tensors of this device, dtype and shape."""
    return "torch"
