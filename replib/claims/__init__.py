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
