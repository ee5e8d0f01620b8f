"""Claim 2: time and memory of linear attention grow as N, those of softmax as N²."""

from replib.claims.claim import Claim, Statement
from replib.claims.scaling import grid
from replib.published import published

PAPER = (
    "Time and memory of linear attention grow as N, those of softmax as N² (section 3.2, figure 1)."
)


def article() -> str:
    """What the article's Table 1 says of growth."""
    from replib.lab.statistics import article_fits

    table = published()["dm2022"]
    fits = {fit.softmax_model: fit for fit in article_fits(table)}
    square, line = fits["quadratic"], fits["linear"]
    return (
        f"Linear: time grows as N (R² {square.r2_linear:z.4f}). Softmax: fitted with N² (R² "
        f"{square.r2_softmax:z.4f}), but a straight line fits as well (R² {line.r2_softmax:z.4f}). "
        f"N = {table['N'][0]} to {table['N'][-1]}; no memory was measured."
    )


CLAIM = Claim(
    name="scaling",
    notebook="02_linear_scaling",
    experiments=grid.EXPERIMENTS,
    statements=(
        Statement(
            name="scaling",
            title="2 linear scaling",
            text="Linear attention costs O(N), softmax attention O(N²).",
            paper=PAPER,
            article=article,
            experiments=("scaling",),
            figure="scaling_time",
        ),
    ),
)
