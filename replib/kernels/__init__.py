"""Linear attention as kernels of the same equations, and the choice among them.

A kernel is a function (q, k, v, eps, elu1, causal) -> y, differentiable, where q, k are
(B, H, N, D), v and y are (B, H, N, M), and `elu1` says whether φ = elu + 1 is still to be applied
to q and k or they are features already; not causal, q may have a length of its own. Sums are in
float32 or wider and y has the dtype of v. B batch, H heads, N sequence length, D key size, M value
size.

"torch" runs anywhere; "cpu" (Numba) and "cuda" (Triton) are compiled at their first call. Their
packages are imported then, so that `import replib` neither needs nor waits for them.
"""

import os
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from replib.kernels.linear import torch as torch_chunked


def _cpu(q: Tensor, k: Tensor, v: Tensor, eps: float, elu1: bool, causal: bool) -> Tensor:
    from replib.kernels.linear import cpu

    return cpu.linear_attention(q, k, v, eps, elu1, causal)


def _cuda(q: Tensor, k: Tensor, v: Tensor, eps: float, elu1: bool, causal: bool) -> Tensor:
    from replib.kernels.linear import cuda

    return cuda.linear_attention(q, k, v, eps, elu1, causal)


KERNELS: dict[str, Callable[[Tensor, Tensor, Tensor, float, bool, bool], Tensor]] = {
    "torch": torch_chunked.linear_attention,
    "cpu": _cpu,
    "cuda": _cuda,
}

# Sizes per head that a compiled kernel takes, and its dtypes.
CPU_SIZES, CPU_DTYPES = range(1, 257), (torch.float32, torch.bfloat16)
CUDA_SIZES, CUDA_DTYPES = range(1, 129), (torch.float32, torch.bfloat16, torch.float16)


_INSTALLED = {package: find_spec(package) is not None for package in ("numba", "triton")}


def installed(package: str) -> bool:
    """Whether the package of a compiled kernel can be imported."""
    return _INSTALLED[package]


def why_not(
    kernel: str, *, device_type: str, dtype: torch.dtype, head_dim: int, value_dim: int
) -> str | None:
    """Why a kernel cannot take tensors of this kind, with what to do; None where it can."""
    if kernel == "cpu":
        package, device, sizes, dtypes = "numba", "cpu", CPU_SIZES, CPU_DTYPES
    elif kernel == "cuda":
        package, device, sizes, dtypes = "triton", "cuda", CUDA_SIZES, CUDA_DTYPES
        if os.environ.get("TRITON_INTERPRET") == "1":
            device = device_type
    else:
        return None
    remedy = "use kernel='torch'"
    if not installed(package):
        return f"kernel '{kernel}' needs {package}: pip install {package}, or {remedy}"
    if device_type != device:
        return f"kernel '{kernel}' runs on {device} tensors, these are on {device_type}: {remedy}"
    if dtype not in dtypes:
        names = ", ".join(str(x).removeprefix("torch.") for x in dtypes)
        return f"kernel '{kernel}' takes {names}, not {str(dtype).removeprefix('torch.')}: {remedy}"
    for name, size in (("head_dim", head_dim), ("value size", value_dim)):
        if size not in sizes:
            return f"kernel '{kernel}' takes a {name} of up to {sizes[-1]}, not {size}: {remedy}"
    return None


def refusal(kernel: str, q: Tensor, k: Tensor, v: Tensor, *others: Tensor) -> str | None:
    """`why_not` of tensors, each of which has to be of a kind that the kernel takes.

    The widest dtype would not do: a kernel for float32 that is given float16 and float32 has none
    that it can read float16 as.
    """
    sizes = {"head_dim": q.shape[-1], "value_dim": v.shape[-1]}
    kinds = dict.fromkeys((x.device.type, x.dtype) for x in (q, k, v, *others))
    reasons = (why_not(kernel, device_type=kind, dtype=dtype, **sizes) for kind, dtype in kinds)
    return next(filter(None, reasons), None)


def fastest_kernel(q: Tensor, k: Tensor, v: Tensor) -> str:
    """The name of the fastest kernel for tensors of these devices, dtypes and shapes."""
    compiled = q.device.type  # the compiled kernels are named after what they run on
    if compiled not in KERNELS:
        return "torch"
    return "torch" if refusal(compiled, q, k, v) else compiled


def compiled(kernel: str) -> bool:
    """Whether a kernel's first call is ready to run, rather than about to compile."""
    if kernel != "cpu" or not installed("numba"):
        return True
    from replib.kernels.linear import cpu

    return cpu.KERNEL.compiled()


def compile_now(kernel: str) -> None:
    """Compile a kernel before it is timed, where that takes long and can be done beforehand."""
    if kernel == "cpu" and installed("numba"):
        from replib.kernels.linear import cpu

        cpu.KERNEL.compile_now()
