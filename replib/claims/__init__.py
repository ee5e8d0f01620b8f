"""The claims, a line each; a claim is a folder with a `grid`, a `judge`, `charts` and a `page`."""

from replib.claims import (
    autopsy,
    capacity,
    convergence,
    crossover,
    generation,
    images,
    scaling,
    update_rules,
)
from replib.lab.record import Experiment

CLAIMS = (
    convergence.CLAIM,
    scaling.CLAIM,
    crossover.CLAIM,
    generation.CLAIM,
    images.CLAIM,
    autopsy.CLAIM,
    capacity.CLAIM,
    update_rules.CLAIM,
)

EXPERIMENTS = {one.name: one for claim in CLAIMS for one in claim.experiments}


def experiment_named(name: str) -> Experiment:
    """The experiment of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"unknown experiment {name!r}: use {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]
