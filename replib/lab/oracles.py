"""The kernels of this device against their oracles: the bare equations, in float64.

B batch, H heads, N sequence length, D query/key size, M value size.

The tests say more of each kernel; this is what a machine can say that has torch alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from replib.attention import delta_rule, linear_attention
from replib.kernels import KERNELS, why_not
from replib.lab.memory_use import is_out_of_memory, release_memory

B, H = 1, 2
SIZES = ((5, 16, 16), (127, 32, 32), (1000, 64, 64), (600, 48, 16), (517, 128, 128))
"""N, D and M: odd lengths, sizes that fill no tile."""
LONG = (16384, 64, 64)  # on a CUDA device alone: the oracle has N² weights in float64
DELTA_SIZES = ((5, 16, 16), (129, 32, 64), (300, 64, 64))
# Relative errors, by the roundings of the last place of each dtype and a margin.
MOST = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


@dataclass(frozen=True)
class Check:
    """The largest relative error (Frobenius norms) of y and the gradients of all inputs, against
    the most that is allowed; `error` is None where the kernel failed, and `detail` says how."""

    what: str
    error: float | None
    most: float
    detail: str | None = None

    @property
    def passed(self) -> bool:
        return self.error is not None and self.error <= self.most

    def __str__(self) -> str:
        told = self.detail if self.error is None else f"error {self.error:.1e}"
        return f"{'ok  ' if self.passed else 'FAIL'} {self.what}: {told}, at most {self.most:.0e}"


def checks(device: str | torch.device, stop: Callable[[], bool] = lambda: False) -> Iterator[Check]:
    """Check each kernel that runs on a device, at each dtype that it takes."""
    device = torch.device(device)
    for kernel in KERNELS:
        for dtype in MOST:
            sizes = SIZES + (LONG,) * (device.type == "cuda")
            for n, d, m in sizes:
                kind = {"device_type": device.type, "dtype": dtype, "head_dim": d, "value_dim": m}
                if why_not(kernel, **kind):
                    continue
                if kernel == "torch" and dtype == torch.float16 and device.type == "cpu":
                    continue  # nobody computes in float16 there
                for causal in (True, False):
                    if stop():
                        return
                    form = "causal" if causal else "not causal"
                    what = f"linear {kernel}, {_name(dtype)}, {form}, N {n} D {d} M {m}"
                    options = {"causal": causal}
                    inputs = _drawn(device, dtype, (n, d), (n, d), (n, m), one=n > 10_000)
                    yield _check(what, linear_attention, kernel, inputs, dtype, options)
    for n, d, m in DELTA_SIZES:
        if stop():
            return
        q, k, v, beta = _drawn(device, torch.float32, (n, d), (n, d), (n, m), (n,))
        q, k = (x.abs() / x.abs().sum(-1, keepdim=True) for x in (q, k))
        inputs = [x.float().double() for x in (q, k, v, beta.sigmoid())]
        what = f"delta torch, float32, N {n} R {d} M {m}"
        yield _check(what, delta_rule, "torch", inputs, torch.float32, {})


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _drawn(
    device: torch.device, dtype: torch.dtype, *sizes: tuple[int, ...], one: bool = False
) -> list[Tensor]:
    """Random inputs, each (B, H, *size), with values that a dtype has, in float64."""
    generator = torch.Generator().manual_seed(sum(map(sum, sizes)))
    shape = (B, 1 if one else H)
    drawn = [torch.randn(*shape, *size, generator=generator) for size in sizes]
    return [x.to(device, dtype).double() for x in drawn]


def _check(
    what: str,
    function: Callable[..., Tensor],
    kernel: str,
    inputs: Sequence[Tensor],
    dtype: torch.dtype,
    options: dict,
) -> Check:
    try:
        actual = _results(function, [x.to(dtype) for x in inputs], kernel, options)
        expected = _results(function, inputs, "plain", options)
        pairs = zip(actual, expected, strict=True)
        error = max(((a.double() - e).norm() / e.norm()).item() for a, e in pairs)
    except Exception as error:  # what a compiler or a driver raises is without end
        if is_out_of_memory(error):
            release_memory(inputs[0].device)
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        return Check(what, None, MOST[dtype], f"{type(error).__name__}: {reason}")
    return Check(what, error, MOST[dtype])


def _results(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], kernel: str, options: dict
) -> list[Tensor]:
    """y, and the gradients of the inputs of a fixed random projection of it."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    y = function(*inputs, kernel=kernel, **options)
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(y.shape, generator=generator, dtype=torch.float64).bfloat16()
    return [y.detach(), *torch.autograd.grad(y, inputs, grad.to(y.device, y.dtype))]
