"""Whether the ways to generate compute the same function: a model's outputs a token at a time, by
everything again, and of the whole sequence at once.

B batch, N sequence length, V outputs, D size per head.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from replib.attention.kernels import fastest_kernel
from replib.device import resolve_device
from replib.generation import Decoder, Recompute
from replib.lab.kept_models import Kept
from replib.lab.memory_use import TIMING_LOCK
from replib.lab.runs.generation import geometric_positions
from replib.lab.timing import DTYPES
from replib.models import CausalTransformer
from replib.tasks.image_files import load_images

# Two ways agree where their outputs differ by no more than this share of the largest. Rounding in
# models of 1 to 16 layers came to 2e-15, 7e-7 and 2e-2; an error in a formula is nearer to 1.
TOLERANCES = {"float64": 1e-13, "float32": 1e-5, "bfloat16": 5e-2}
STEPS = {"linear": "recurrent state", "softmax": "cache"}
AT_ONCE, PROMPT, RECOMPUTED = "all at once", "prompt at once, then tokens", "recomputed"


@dataclass(frozen=True)
class Agreement:
    """How far the outputs of one way depart at most from those of another, in one dtype; `relative`
    to the largest output."""

    way: str
    other: str
    dtype: str
    absolute: float
    relative: float

    @property
    def tolerance(self) -> float:
        return TOLERANCES[self.dtype]

    @property
    def holds(self) -> bool:
        return self.relative <= self.tolerance  # not so for NaN


@torch.inference_mode()
def agreements(model: CausalTransformer, tokens: Tensor, dtype: str) -> Iterator[Agreement]:
    """Compare the outputs for tokens (B, N) a token at a time with those of the whole at once (of
    linear attention by the torch kernel, and by the device's own where it takes the dtype), and
    with those of everything computed again, at some positions. The model itself stays as it is."""
    model = deepcopy(model).to(DTYPES[dtype])
    mechanism, n = model.config.attention, tokens.shape[1]
    way = STEPS.get(mechanism, "state")
    decoder = Decoder(model, len(tokens), max_len=n)
    steps = torch.stack([decoder.step(token) for token in tokens.unbind(1)], dim=1)  # (B, N, V)
    for kernel in _kernels(model) if mechanism == "linear" else [None]:
        name = f"{AT_ONCE}, {kernel} kernel" if kernel else AT_ONCE
        yield Agreement(way, name, dtype, *_difference(steps, _whole(model, tokens, kernel)))
    half, decoder = -(-n // 2), Decoder(model, len(tokens), max_len=n)
    after = [decoder.prefill(tokens[:, :half])]
    after += [decoder.step(token) for token in tokens[:, half:].unbind(1)]
    there = torch.stack(after, dim=1)
    yield Agreement(way, PROMPT, dtype, *_difference(steps[:, half - 1 :], there))
    recompute, at = Recompute(model, len(tokens), max_len=n), geometric_positions(n)
    recompute.tokens.copy_(tokens)
    again = []
    for position in at:
        recompute.position = position - 1
        again.append(recompute.step(tokens[:, position - 1]))
    here = steps[:, [position - 1 for position in at]]
    yield Agreement(way, RECOMPUTED, dtype, *_difference(here, torch.stack(again, dim=1)))


def _kernels(model: CausalTransformer) -> list[str]:
    """The torch kernel, and the one that is chosen for the model where that is another."""
    weight, size = model.head.weight, model.config.head_dim
    some = weight.new_empty(1, 1, 1, size)
    return list(dict.fromkeys(["torch", fastest_kernel(some, some, some)]))


def _whole(model: CausalTransformer, tokens: Tensor, kernel: str | None) -> Tensor:
    attentions = [block.self_attention.attention for block in model.blocks]
    before = [attention.kernel for attention in attentions]
    try:
        for attention in attentions:
            attention.kernel = kernel
        return model(tokens)
    finally:
        for attention, usual in zip(attentions, before, strict=True):
            attention.kernel = usual


def _difference(one: Tensor, other: Tensor) -> tuple[float, float]:
    absolute = (one.double() - other.double()).abs().max().item()
    return absolute, absolute / other.double().abs().max().item()


def of_kept(kept: Kept, device: str | None = None) -> list[Agreement]:
    """`agreements` of a trained pixel model on the first test image, in each dtype.

    Held under TIMING_LOCK, so that no measurement beside it is disturbed.
    """
    place = resolve_device(device)
    image = load_images(kept.task.images).test[:1].flatten(1).long()
    tokens = kept.task.inputs(image[:, :-1]).to(place)
    with TIMING_LOCK:
        model = deepcopy(kept.training.model).to(place)
        return [one for dtype in TOLERANCES for one in agreements(model, tokens, dtype)]
