"""The 2022 article's four points, and how far its crossover moves with the model."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import polars as pl

from replib.lab.statistics import SOFTMAX_POWERS, Regression
from replib.lab.text import LEFT, markdown_table
from replib.pages import style

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
MODEL_DASHES = {
    "quadratic": [1, 0],
    "linear": [7, 4],
    "full_quadratic": [2, 3],
    "power_law": [10, 3, 2, 3],
}


def extrapolation_chart(
    published: Mapping[str, Any], regressions: Sequence[Regression]
) -> alt.LayerChart:
    """The article's four lengths, and how far its crossover moves with the model of the softmax.

    Args:
        published: `published()["dm2022"]`.
        regressions: of `statistics.article_regression` on its table, one a model.
    """
    shortest, longest, last = min(published["N"]), max(published["N"]), 8192
    curves = fitted_curves(regressions, [2 ** (i / 8) for i in range(8 * 3, 8 * 13 + 1)])
    points = pl.DataFrame(
        [
            {"attention": a, "seq_len": n, "value": s}
            for a in ("softmax", "linear")
            for n, s in zip(published["N"], published[f"{a}_s"], strict=True)
        ]
    )
    domain = style.log_domain([*curves["value"], *points["value"]], margin=1.3)
    x = style.length_axis([shortest, last])
    y = style.log_axis("value", "time of 3000 steps (s)", domain)
    colours = style.attention_colour(curves, legend=None)
    scale = alt.Scale(domain=list(MODEL_DASHES), range=list(MODEL_DASHES.values()))
    dashes = alt.StrokeDash("model:N", legend=None, scale=scale)
    layers = [
        measured_range(shortest, longest),
        alt.Chart(style.records_of(curves))
        .mark_line(strokeWidth=2)
        .encode(x, y, colours, alt.Detail("model:N"), dashes),
        alt.Chart(style.records_of(points))
        .mark_point(filled=True, size=70, opacity=1)
        .encode(x, y, colours, tooltip=style.tooltips_of(points)),
        *_meetings(regressions, x, y),
        _line_end_labels(curves, domain, style.TALL),
    ]
    return style.finished(
        alt.layer(*layers),
        f"Four points up to N = {longest}, extended to {last}",
        published["gpu"] + " (the article's measurements)",
        "Fits through the article's four lengths, extended to N = 8192, and where they cross.",
        style.TALL,
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


def _line_end_labels(curves: pl.DataFrame, domain: list[float], height: int) -> alt.Chart:
    ends = curves.sort("seq_len").group_by("attention", "model", maintain_order=True).last()
    softmax = pl.col("attention") == "softmax"
    ends = style.spread_labels(ends, domain, height, 2).with_columns(
        label=pl.when(softmax)
        .then("softmax\n" + pl.col("model").replace_strict(MODELS))
        .otherwise(pl.lit("linear\na + b N"))
    )
    return (
        alt.Chart(ends)
        .mark_text(align="left", dx=6, lineBreak="\n", lineHeight=style.LABEL_PX)
        .encode(
            alt.X("seq_len:Q"),
            alt.Y("label_px:Q", scale=None, axis=None),
            style.attention_colour(curves, legend=None),
            text="label:N",
        )
    )


def _meetings(regressions: Sequence[Regression], x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """Where each model of the softmax crosses the linear line, with its N."""
    rows = []
    for fit in regressions:
        if 1 < fit.crossover < 8192:
            intercept, slope = fit.linear_coefficients
            value = intercept + slope * fit.crossover
            label = f"N = {round(fit.crossover)}"
            rows.append({"seq_len": fit.crossover, "value": value, "label": label})
    if not rows:
        return []
    rows.sort(key=lambda row: row["seq_len"])
    base = alt.Chart(pl.DataFrame(rows)).encode(x, y)
    text = {"align": "right", "color": style.NEUTRAL, "fontWeight": "bold"}
    layers = [base.mark_point(filled=True, size=80, color=style.NEUTRAL, opacity=1)]
    for place, test in (({"dx": -8, "dy": -8}, "=="), ({"dx": -14, "dy": -22}, "!=")):
        shown = base.transform_filter(f"datum.label {test} '{rows[0]['label']}'")
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
