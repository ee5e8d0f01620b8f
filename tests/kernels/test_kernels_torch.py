"""The portable kernel `torch`: its cost model, and what it keeps."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from replib.attention import linear_attention
from replib.kernels.linear import torch as torch_chunked
from replib.lab.memory_use import peak_memory_bytes


def inputs_of(b: int, h: int, n: int, d: int, m: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(b, h, n, size) for size in (d, d, m)]
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def attend(inputs: list[torch.Tensor]) -> torch.Tensor:
    return linear_attention(*inputs, kernel="torch")


def forward_and_backward(inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    y = attend(inputs)
    return torch.autograd.grad(y, inputs, torch.ones_like(y))


@pytest.mark.parametrize("b, c", [(1, 64), (8, 32)])
def test_operations_of_the_cost_model_are_those_that_torch_counts(b, c):
    h, n, d, m = 4, 512, 32, 48

    def count(function) -> float:
        in_place = {torch.ops.aten.baddbmm_: lambda _, a, b, **options: 2 * math.prod(a) * b[-1]}
        with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
            function()
        return counter.get_total_flops() / (b * h * n)

    inputs = inputs_of(b, h, n, d, m)
    forward, both = count(lambda: attend(inputs)), count(lambda: forward_and_backward(inputs))
    model = [torch_chunked.operations_per_token(d, m, c, backward) for backward in (False, True)]
    assert forward == pytest.approx(model[0], rel=0.1)
    assert both - forward == pytest.approx(model[1], rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("d, m", [(16, 16), (32, 32), (64, 64), (16, 64), (64, 16)])
def test_states_that_are_kept_take_half_of_what_q_or_v_does(d, m):
    inputs = inputs_of(4, 8, 4096, d, m)
    results = sum(4 * x.numel() for x in inputs) + 8 * inputs[2].numel()  # dq, dk, dv; y, dy
    peak = peak_memory_bytes(lambda: forward_and_backward(inputs), torch.device("cpu"))
    assert peak - results < 0.7 * 4 * max(inputs[0].numel(), inputs[2].numel())
