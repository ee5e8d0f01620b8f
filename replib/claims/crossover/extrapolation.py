"""The 2022 article's four points, and how far its crossover moves with the model."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import polars as pl

from replib.claims.crossover.steps import article_frame
from replib.lab.statistics import SOFTMAX_POWERS, Regression
from replib.lab.text import LEFT, markdown_table
from replib.pages import style
from replib.pages.costs import growth_chart

MODELS = {
    "quadratic": "a + c N²",
    "linear": "a + b N",
    "full_quadratic": "a + b N + c N²",
    "power_law": "a N^p",
}
MODEL_NAMES = MODELS | {
    "quadratic": "a + c N² (the article's)",
    "linear": "a + b N, a straight line",
    "power_law": "a Nᵖ",
}
LAST = 8192  # N to which the fits are extended


def extrapolation_chart(
    published: Mapping[str, Any], regressions: Sequence[Regression]
) -> alt.LayerChart:
    """The article's four lengths, and how far its crossover moves with the model of the softmax.

    Args:
        published: `published()["dm2022"]`.
        regressions: of `statistics.article_regression` on its table, one a model.
    """
    shortest, longest = min(published["N"]), max(published["N"])
    n_eighths = round(8 * math.log2(LAST / shortest))
    curves = fitted_curves(regressions, [shortest * 2 ** (i / 8) for i in range(n_eighths + 1)])
    curves = curves.with_columns(
        implementation=pl.when(pl.col("attention") == "softmax")
        .then(pl.col("model").replace_strict(MODELS))
        .otherwise(pl.lit(MODELS["linear"])),
        outcome=pl.lit("ok"),
        source=pl.lit("predicted"),
    ).with_columns(series=pl.concat_str("attention", "implementation", separator=" "))
    return growth_chart(
        pl.concat([curves, article_frame(published)], how="diagonal_relaxed"),
        f"time of {published['steps']} steps (s)",
        f"Four points up to N = {longest}, extended to {LAST}",
        guides=False,
        marks=[measured_range(shortest, longest), *_meetings(regressions)],
    )


def fitted_curves(regressions: Sequence[Regression], lengths: Sequence[float]) -> pl.DataFrame:
    """The lines of all models, and the one line of the linear attention."""
    rows = []
    for fit in regressions:
        for n in lengths:
            rows.append(("softmax", fit.softmax_model, n, _predicted(fit, n)))
    intercept, slope = regressions[0].linear_coefficients
    rows += [("linear", "quadratic", n, intercept + slope * n) for n in lengths]
    return pl.DataFrame(rows, schema=["attention", "model", "seq_len", "value"], orient="row")


def _predicted(fit: Regression, n: float) -> float:
    if fit.softmax_model == "power_law":
        factor, power = fit.softmax_coefficients
        return factor * n**power
    powers = SOFTMAX_POWERS[fit.softmax_model]
    return sum(c * n**power for c, power in zip(fit.softmax_coefficients, powers, strict=True))


def _meetings(regressions: Sequence[Regression]) -> list[alt.Chart]:
    """Where each model of the softmax crosses the linear line, with its N."""
    found = sorted(fit.crossover for fit in regressions if 1 < fit.crossover < LAST)
    intercept, slope = regressions[0].linear_coefficients
    rows = [
        {"seq_len": n, "value": intercept + slope * n, "label": f"N = {n:z.0f}", "first": not i}
        for i, n in enumerate(found)
    ]
    schema = {"seq_len": float, "value": float, "label": str, "first": bool}
    base = alt.Chart(pl.DataFrame(rows, schema=schema)).encode(x="seq_len:Q", y="value:Q")
    text = {"align": "right", "color": style.NEUTRAL, "fontWeight": "bold"}
    layers = [base.mark_point(filled=True, size=80, color=style.NEUTRAL, opacity=1)]
    for place, first in (({"dx": -8, "dy": -8}, "true"), ({"dx": -14, "dy": -22}, "false")):
        shown = base.transform_filter(f"datum.first == {first}")
        layers.append(shown.mark_text(**place, **text).encode(text="label:N"))
    return layers


def measured_range(low: float, high: float) -> alt.Chart:
    data = pl.DataFrame(
        {"seq_len": [low], "end": [high], "text": [f"measured:\nN = {low} to {high}"]}
    )
    base = alt.Chart(data).encode(alt.X("seq_len:Q"))
    return alt.layer(
        base.mark_rect(color=style.NEUTRAL, opacity=0.15).encode(alt.X2("end:Q")),
        base.mark_text(
            align="left",
            dx=4,
            baseline="top",
            lineBreak="\n",
            lineHeight=style.LABEL_PX,
            color=style.NEUTRAL,
        ).encode(y=alt.value(6), text="text:N"),
    )


def extrapolation_text(fits: Sequence[Regression]) -> str:
    """What the article's four points give under each model of softmax, as Markdown."""
    lines = [
        [
            MODEL_NAMES[fit.softmax_model],
            f"{fit.r2_softmax:z.4f}",
            f"{fit.crossover:z.0f}" if math.isfinite(fit.crossover) else "never",
        ]
        for fit in fits
    ]
    table = markdown_table(["model of softmax", "R²", "crossover N"], lines, LEFT)
    return (
        "The article fits its softmax times with N², its linear times with N, and extends both. "
        "Other models of the same four points disagree, a better fitting one among them:\n\n"
        f"{table}"
    )
