"""The 2022 article's extrapolation from some of its four points, as a chart."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import polars as pl

from replib.claims.autopsy.step_times import Prediction, predicted
from replib.claims.common import BOTH
from replib.claims.crossover.extrapolation import MODELS, fitted_curves, measured_range
from replib.pages import style

LAST_LENGTH = 16384  # to which the article's four points are extended


def prediction_chart(
    article: Mapping[str, Any], lengths: Sequence[int], softmax_model: str
) -> alt.LayerChart:
    """The article's points, filled where the regression uses them, its two curves far beyond them,
    and the 95 % interval of where they meet, which the title has.

    Raises:
        ValueError: as `step_times.predicted`.
    """
    found = predicted(article, lengths, softmax_model)
    crossing, fit, last = found.fit.crossover, found.fit, found.lengths[-1]
    title = "These points and this model predict no crossover"
    if math.isfinite(crossing):
        title = f"{len(found.lengths)} points up to N = {last} “predict” N = {crossing:z.0f}, "
        title += f"{crossing / last:z.0f} times beyond them"
    domain_n = [min(article["N"]), LAST_LENGTH]
    drawn_at = [2 ** (i / 4) for i in range(4 * 3, 4 * 14 + 1)]
    curves = fitted_curves([found.fit], drawn_at).filter(pl.col("value") > 0)
    points = pl.DataFrame(
        [
            {"attention": a, "seq_len": n, "value": float(s), "used": n in found.lengths}
            for a in BOTH
            for n, s in zip(article["N"], article[f"{a}_s"], strict=True)
        ]
    )
    domain = style.log_domain([*curves["value"], *points["value"]], margin=1.5)
    y = style.log_axis("value", f"time of {article['steps']} steps (s)", domain)
    x, colours = style.length_axis(domain_n), style.attention_colour(curves)
    line = alt.Chart(style.records_of(curves)).encode(x, y, colours)
    point = alt.Chart(points).encode(x, y, colours, tooltip=style.tooltips_of(points))
    layers = [
        measured_range(min(article["N"]), max(article["N"])),
        line.transform_filter(f"datum.seq_len <= {last}").mark_line(strokeWidth=3),
        line.transform_filter(f"datum.seq_len >= {last}").mark_line(strokeDash=[3, 4]),
        point.transform_filter("datum.used").mark_point(filled=True, size=80, opacity=1),
        point.transform_filter("!datum.used").mark_point(filled=False, size=80, opacity=1),
        *_predicted_crossing(found, domain_n),
    ]
    return style.finished(
        alt.layer(*layers),
        title,
        f"{article['gpu']} (the article's measurements); softmax as {MODELS[softmax_model]} (R² "
        f"{fit.r2_softmax:z.4f}), linear as a + b N ({fit.r2_linear:z.4f}); dashed: beyond it",
        "Curves through some of the article's four points, extended far beyond them, and the "
        "interval of where they meet.",
    )


def _predicted_crossing(found: Prediction, domain_n: Sequence[float]) -> list[alt.Chart]:
    """A bar at the bottom from the interval's low end to its high end, the crossing on it, and
    both in words."""
    crossing, last = found.fit.crossover, domain_n[1]
    text = "no crossing" if math.isinf(crossing) else f"N = {crossing:z.0f}"
    bounds = {}
    if math.isfinite(found.low):
        above = "no end" if math.isinf(found.high) else f"{found.high:z.0f}"
        text += f" ({found.low:z.0f} to {above})"
        bounds = {"low": max(found.low, domain_n[0]), "end": min(found.high, last)}
    at = crossing if crossing <= last else None
    data = pl.DataFrame([{"low": None, "end": None, "at": at, "text": text} | bounds])
    look = {"color": style.NEUTRAL}
    base = alt.Chart(data).encode(y=alt.value(style.HEIGHT - 16))
    low, at = (style.length_axis(domain_n, name) for name in ("low", "at"))
    return [
        base.mark_rule(strokeWidth=7, opacity=0.5, **look).encode(low, alt.X2("end:Q")),
        base.mark_point(filled=True, size=90, opacity=1, **look).encode(at),
        alt.Chart(data).mark_rule(strokeDash=[4, 3], **look).encode(at),
        base.mark_text(align="right", dy=-14, fontWeight="bold", **look).encode(
            x=alt.value("width"), text="text:N"
        ),
    ]
