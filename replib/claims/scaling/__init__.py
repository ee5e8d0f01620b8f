"""Claim 2: time and memory of linear attention grow as N, those of softmax as N²."""

from replib.claims.claim import Claim, Statement
from replib.claims.scaling import grid
from replib.published import published


def article() -> str:
    """What the article's Table 1 says of growth."""
    from replib.lab.statistics import article_fits

    fits = {fit.softmax_model: fit for fit in article_fits(published()["dm2022"])}
    square, line = fits["quadratic"], fits["linear"]
    return (
        f"Linear time is fitted with N (R² {square.r2_linear:z.4f}), softmax time with N² (R² "
        f"{square.r2_softmax:z.4f}), but a straight line fits it as well (R² "
        f"{line.r2_softmax:z.4f})."
    )


CLAIM = Claim(
    name="scaling",
    notebook="02_linear_scaling",
    question="Do time and memory of linear attention grow only as N?",
    experiments=grid.EXPERIMENTS,
    statements=(
        Statement(
            name="scaling",
            title="2 linear scaling",
            text="Linear attention costs O(N), softmax attention O(N²).",
            paper="Time and memory of linear attention grow as N, those of softmax as N² (section "
            "3.2, figure 1).",
            article=article,
            article_more="No memory was measured.",
            experiments=("scaling",),
            figure="scaling_time",
        ),
    ),
)
