"""Feature maps φ: (..., D) -> (..., R) whose inner product replaces exp(q·k)."""

from collections.abc import Callable

import torch
from torch import Tensor


def elu1(x: Tensor) -> Tensor:
    """elu(x) + 1 of Katharopoulos et al. 2020, eq. 7; positive, R = D.

    Deviation: computed as exp(min(x, 0)) + max(x, 0). Written as `elu(x) + 1` it rounds
    exp(x) - 1 + 1 and loses all digits of φ below x = -16 in float32.
    """
    return torch.exp(x.clamp(max=0)) + x.clamp(min=0)


FEATURE_MAPS: dict[str, Callable[[Tensor], Tensor]] = {"elu1": elu1}


def feature_map_named(name: str) -> Callable[[Tensor], Tensor]:
    """The feature map of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in FEATURE_MAPS:
        raise ValueError(f"unknown feature map {name!r}: use {', '.join(FEATURE_MAPS)}")
    return FEATURE_MAPS[name]
