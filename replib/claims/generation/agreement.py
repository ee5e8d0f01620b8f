"""Whether the ways to generate compute the same function: a model's outputs a token at a time, by
everything again, and of the whole sequence at once.

B batch, N sequence length, V outputs, D size per head.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

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
AT_ONCE, RECOMPUTED = "all at once", "recomputed"


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
    """Compare the outputs for tokens (B, N) a token at a time with those of the whole at once, and
    with those of everything computed again, at some positions. The model itself stays as it is."""
    model = deepcopy(model).to(DTYPES[dtype])
    n, way = tokens.shape[1], STEPS[model.config.attention]
    decoder = Decoder(model, len(tokens), max_len=n)
    steps = torch.stack([decoder.step(token) for token in tokens.unbind(1)], dim=1)  # (B, N, V)
    yield Agreement(way, AT_ONCE, dtype, *_difference(steps, model(tokens)))
    recompute, at = Recompute(model, len(tokens), max_len=n), geometric_positions(n)
    recompute.tokens.copy_(tokens)
    again = []
    for position in at:
        recompute.position = position - 1
        again.append(recompute.step(tokens[:, position - 1]))
    here = steps[:, [position - 1 for position in at]]
    yield Agreement(way, RECOMPUTED, dtype, *_difference(here, torch.stack(again, dim=1)))


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
