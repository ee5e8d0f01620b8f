"""Claim 6: a fast weight memory holds as many keys as it has features."""

from replib.claims.capacity import grid
from replib.claims.claim import Claim, Statement

CLAIM = Claim(
    name="capacity",
    address="memory",
    notebook="06_fast_weights",
    question="How many keys does linear attention remember?",
    experiments=grid.EXPERIMENTS,
    statements=(
        Statement(
            name="capacity",
            title="6 capacity",
            text="A memory holds no more keys than it has features: softmax and DPFP-3 remember "
            "most, then DPFP-2, DPFP-1, linear attention and FAVOR+.",
            paper="Softmax and DPFP-3 remember most keys, then DPFP-2, DPFP-1, linear attention "
            "and FAVOR+: with R features at most R keys (Schlag et al. 2021, section 6.1.1).",
            experiments=("capacity", "favor_eps"),
            figure="capacity",
        ),
        Statement(
            name="as_published",
            title="6 as published",
            text="The runs here solve as many keys as the published ones, to a step of the grid, "
            "and end at the same losses, to 15 %.",
            paper="Its authors' logs hold one run of each memory and S.",
            paper_more="The figures we compare with are those at S = 20, 60, 100, 200, ... 600, "
            "without DPFP-3, which the logs hold as well.",
            experiments=("capacity", "update_rules", "evaluation"),
            figure="capacity_solved",
        ),
    ),
)
