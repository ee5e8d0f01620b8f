"""Claim 3: linear attention is faster than softmax from some hundred tokens on."""

from replib.claims.claim import Claim, Statement
from replib.claims.crossover import grid
from replib.published import published

PAPER = (
    "Linear attention is faster than softmax at every length shown, from N = 512 on (figure 1, "
    "curves alone; GTX 1080 Ti)."
)


def article() -> str:
    """What the article extrapolated."""
    table = published()["dm2022"]
    lengths, ratios, crossing = table["N"], table["ratio_linear_softmax"], table["fit"]["ceil"]
    return (
        f"Linear is {ratios[0]:z.0f} to {ratios[-1]:z.0f} times slower at N = {lengths[0]} to "
        f"{lengths[-1]}; a fit puts the crossover at N = {crossing}, "
        f"{crossing / lengths[-1]:z.0f} times beyond the data."
    )


CLAIM = Claim(
    name="crossover",
    notebook="03_speed_crossover",
    question="From which length is linear attention faster?",
    experiments=grid.EXPERIMENTS,
    statements=(
        Statement(
            name="crossover",
            title="3 crossover",
            text="Linear attention is faster from N = 512 on.",
            paper=PAPER,
            article=article,
            experiments=("crossover",),
            figure="crossings",
        ),
        Statement(
            name="implementations",
            text="The crossover moves to shorter N as the implementation of linear attention "
            "improves.",
            experiments=("crossover",),
        ),
    ),
)
