"""Charts of what was timed: time and memory, the 2022 table, and speed against softmax."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import altair as alt
import polars as pl

from replib.charts import style
from replib.statistics import Crossover

MEASURES = {  # column -> axis title, factor to its unit
    "time_ms": ("time (ms)", 1.0),
    "time_ms_per_sample": ("time (ms a sample)", 1.0),
    "memory_bytes_per_sample": ("peak memory (MB a sample)", 1e-6),
}


def cost_chart(
    frame: pl.DataFrame, *, y: str = "time_ms_per_sample", title: str, guides: bool = True
) -> alt.LayerChart:
    """Time or memory against N on log axes, with quartiles; y: a key of MEASURES.

    Args:
        frame: of `frames.costs`, one work and one batch rule.
        guides: dotted lines that grow as N and N².

    Raises:
        ValueError: an unknown y, or a frame with two values at one N of a series.
    """
    style.check_known("y", y, MEASURES)
    axis_title, factor = MEASURES[y]
    style.check_single(frame)
    per_sample = pl.col("batch_size") if y.endswith("per_sample") else pl.lit(1)
    timed = pl.lit(y.startswith("time")) & pl.col("time_ms").is_not_null()
    drawn = frame.with_columns(
        value=pl.col(y) * factor,
        low=pl.when(timed).then(pl.col("q25") / per_sample),
        high=pl.when(timed).then(pl.col("q75") / per_sample),
    )
    return _growth_chart(drawn, axis_title, title, guides)


def replication_chart(
    frame: pl.DataFrame, published: Mapping[str, Any], *, title: str
) -> alt.LayerChart:
    """Seconds of a whole training against N: ours, projected from the step time, and Table 1 of Do
    & Bergner 2022.

    Args:
        frame: of `frames.costs`, from step_time rows.
        published: `published()["dm2022"]`.

    Raises:
        ValueError: a frame with two values at one N of a series.
    """
    style.check_single(frame)
    steps = published["steps"]
    ours = frame.with_columns(
        value=pl.col("time_ms") * steps / 1000,
        low=pl.col("q25") * steps / 1000,
        high=pl.col("q75") * steps / 1000,
    )
    article = pl.DataFrame(
        [
            {
                "attention": attention,
                "implementation": "2022 article",
                "series": f"{attention} (2022 article)",
                "seq_len": n,
                "value": float(seconds),
                "outcome": "ok",
                "device": published["gpu"] + " (article)",
                "source": "recorded",
            }
            for attention in ("softmax", "linear")
            for n, seconds in zip(published["N"], published[f"{attention}_s"], strict=True)
        ]
    )
    drawn = pl.concat([ours, article], how="diagonal")
    return _growth_chart(drawn, f"time of {steps} steps (s)", title, guides=False)


def ratio_chart(
    frame: pl.DataFrame,
    *,
    mechanism: str = "linear",
    baseline: str = "softmax",
    crossovers: Mapping[str, Crossover] | None = None,
    title: str,
) -> alt.LayerChart:
    """Speed of a mechanism relative to each implementation of another, break-even at 1.

    The band is from quartile to quartile of the two times.

    Args:
        frame: of `frames.costs`, one work and one batch size.
        crossovers: by the baseline's series, such as "softmax (fused)".

    Raises:
        ValueError: a frame with two values at one N of a series.
    """
    style.check_single(frame)
    ratios = _ratios(frame, mechanism, baseline)
    if ratios.is_empty():
        return style.no_data(title)
    crossings = _crossings(ratios, crossovers or {})
    x_domain = style.log_domain([*ratios["seq_len"], *crossings["length"]])
    y_domain = style.log_domain([*ratios["low"], *ratios["high"], 1.0], margin=1.2)
    legend = alt.selection_point(name="against", fields=["series"], bind="legend")
    y = alt.Y(
        "value:Q",
        title=f"speed-up of {mechanism} over {baseline}",
        scale=alt.Scale(type="log", base=2, domain=y_domain, nice=False),
        axis=alt.Axis(
            values=style.powers_between(y_domain, 2),
            labelExpr="datum.value < 1 ? '1/' + round(1 / datum.value) : datum.value + '×'",
        ),
    )
    layers = [
        style.rule_at("y", 1.0),
        *_series_layers(ratios, x_domain, y, legend),
        *_crossing_layers(crossings, x_domain),
        _series_labels(ratios, y_domain, legend, style.HEIGHT),
    ]
    return style.finished(
        alt.layer(*layers),
        title,
        style.devices_of(frame, marks=True),
        f"Time of {baseline} divided by time of {mechanism} against N; above 1 {mechanism} wins.",
    )


def _growth_chart(frame: pl.DataFrame, y_title: str, title: str, guides: bool) -> alt.LayerChart:
    """`value` with its quartiles `low` and `high` against N, both axes logarithmic."""
    known = frame.filter(pl.col("value").is_not_null())
    failed = frame.filter(pl.col("value").is_null() & (pl.col("outcome") != "ok"))
    if known.is_empty():
        return style.no_data(title)
    x_domain = style.log_domain(frame["seq_len"])
    y_domain = style.log_domain([*known["value"], *known["low"], *known["high"]], margin=1.25)
    if not failed.is_empty():
        y_domain[1] *= (y_domain[1] / y_domain[0]) ** 0.08  # room for the marks at the top
    legend = alt.selection_point(name="shown_series", fields=["series"], bind="legend")
    y = style.log_axis("value", y_title, y_domain)
    layers = _guides(known, x_domain, y_domain) if guides else []
    layers += _series_layers(known, x_domain, y, legend)
    if not failed.is_empty():
        layers += _failed_layers(failed, frame, x_domain, legend)
    layers.append(_series_labels(known, y_domain, legend, style.HEIGHT))
    return style.finished(
        alt.layer(*layers),
        title,
        style.devices_of(frame, marks=True),
        f"{y_title} against sequence length on log axes, a line a mechanism and implementation.",
    )


def _series_layers(
    frame: pl.DataFrame, x_domain: list[float], y: alt.Y, legend: alt.Parameter
) -> list[alt.Chart]:
    """Quartile band, line and points of each series; its implementation sets dash and shape."""
    encodings = _series_encodings(frame)
    base = alt.Chart(style.records_of(frame)).encode(
        style.length_axis(x_domain), encodings["color"], alt.Detail(["device:N", "source:N"])
    )
    line = base.encode(y, encodings["strokeDash"], opacity=style.faded(legend))
    point = base.encode(
        y, encodings["shape"], opacity=style.faded(legend), tooltip=style.tooltips_of(frame)
    )
    low = y.copy()
    low.shorthand = "low:Q"
    layers = [
        base.mark_area().encode(
            low,
            alt.Y2("high:Q"),
            fillOpacity=style.faded(legend, 0.2, 0.03),
        ),
        # The legend is clickable only where its parameter belongs to a layer of the series.
        line.mark_line(strokeWidth=2).add_params(legend),
    ]
    if "live" in frame["source"]:
        layers.append(point.mark_point(filled=True, size=70).transform_filter(_is("live")))
    if "recorded" in frame["source"]:
        layers.append(point.mark_point(filled=False, size=45).transform_filter(_is("recorded")))
    return layers


def _failed_layers(
    failed: pl.DataFrame, frame: pl.DataFrame, x_domain: list[float], legend: alt.Parameter
) -> list[alt.Chart]:
    """Points without a value at the top edge; the first of each outcome is named."""
    failed = failed.with_columns(reason=pl.col("outcome").str.replace_all("_", " "))
    encodings = _series_encodings(frame)
    base = alt.Chart(style.records_of(failed)).encode(
        style.length_axis(x_domain),
        encodings["color"],
        opacity=style.faded(legend),
        y=alt.value(style.TOP_PX),
    )
    first = failed.sort("seq_len").unique("reason", keep="first", maintain_order=True)
    return [
        base.mark_point(**style.CROSS).encode(tooltip=style.tooltips_of(failed)),
        alt.Chart(style.records_of(first))
        .mark_text(align="right", dx=-9, color=style.NEUTRAL)
        .encode(style.length_axis(x_domain), y=alt.value(style.TOP_PX), text="reason:N"),
    ]


def _series_encodings(frame: pl.DataFrame) -> dict[str, Any]:
    """Colour by mechanism, dash and shape by implementation, with one legend for all three."""
    order = style.ordered_attention(frame["attention"])
    series = (
        frame.select("attention", "implementation", "series")
        .unique()
        .sort(pl.col("attention").replace_strict({a: i for i, a in enumerate(order)}), "series")
    )
    names, used = series["series"].to_list(), series["implementation"].to_list()

    def scale(values: Iterable[Any]) -> alt.Scale:
        return alt.Scale(domain=names, range=list(values))

    legend = alt.Legend(symbolStrokeWidth=0)  # a dashed outline would fray the small shapes
    return {
        "color": alt.Color(
            "series:N",
            title=None,
            scale=scale(map(style.colour, series["attention"])),
            legend=legend,
        ),
        "strokeDash": alt.StrokeDash(
            "series:N",
            title=None,
            scale=scale(style.DASHES.get(i, [1, 0]) for i in used),
            legend=legend,
        ),
        "shape": alt.Shape(
            "series:N",
            title=None,
            scale=scale(style.SHAPES.get(i, "circle") for i in used),
            legend=legend,
        ),
    }


def _is(source: str) -> str:
    return f"datum.source == '{source}'"


def _series_labels(
    frame: pl.DataFrame, domain: list[float], legend: alt.Parameter, height: int
) -> alt.LayerChart:
    """The name of each series: beside its end, or above it where others go on to longer N."""
    ends = frame.sort("seq_len").group_by("series", maintain_order=True).last()
    words = ["attention", "implementation"]
    beside, above = (
        ends.filter(at_end := pl.col("seq_len") == ends["seq_len"].max()),
        ends.filter(~at_end),
    )
    beside = style.spread_labels(beside, domain, height, 2).with_columns(
        label=pl.concat_str(words, separator="\n", ignore_nulls=True)
    )
    above = style.spread_labels(above, domain, height, 1).with_columns(
        label=pl.concat_str(words, separator=" ", ignore_nulls=True)
    )
    layers = []
    for part, place in (
        (beside, {"align": "left", "dx": 8}),
        (above, {"align": "right", "dx": 4, "dy": -12}),
    ):
        text = alt.Chart(style.records_of(part)).mark_text(
            lineBreak="\n", lineHeight=style.LABEL_PX, baseline="middle", **place
        )
        layers.append(
            text.encode(
                alt.X("seq_len:Q"),
                alt.Y("label_px:Q", scale=None, axis=None),
                _series_encodings(frame)["color"],
                text="label:N",
                opacity=style.faded(legend),
            )
        )
    return alt.layer(*layers)


def _guides(frame: pl.DataFrame, x_domain: list[float], y_domain: list[float]) -> list[alt.Chart]:
    """Dotted N and N² from a little under the lowest first point, as far as the axes go."""
    x0 = float(frame["seq_len"].min())
    y0 = frame.filter(pl.col("seq_len") == x0)["value"].min() / 1.2
    lines = []
    for power, name in ((1, "~ N"), (2, "~ N²")):
        x1 = min(x_domain[1], x0 * (y_domain[1] / y0) ** (1 / power))
        for x, label in ((x0, None), (math.sqrt(x0 * x1), name), (x1, None)):
            y = y0 * (x / x0) ** power
            lines.append({"seq_len": x, "value": y, "guide": name, "label": label})
    base = alt.Chart(pl.DataFrame(lines)).encode(
        style.length_axis(x_domain), alt.Y("value:Q", scale=alt.Scale(type="log", domain=y_domain))
    )
    return [
        base.mark_line(color=style.NEUTRAL, strokeDash=[1, 3]).encode(alt.Detail("guide:N")),
        base.mark_text(color=style.NEUTRAL, align="left", dx=6, dy=9)
        .encode(text="label:N")
        .transform_filter("isValid(datum.label)"),
    ]


def _ratios(frame: pl.DataFrame, mechanism: str, baseline: str) -> pl.DataFrame:
    """The baseline's time over the mechanism's at each N that has both, a series a baseline."""
    timed = frame.filter(pl.col("time_ms").is_not_null())
    keys = ["seq_len", "batch_size", "work", "device", "source"]
    ours = timed.filter(pl.col("attention") == mechanism).select(*keys, "time_ms", "q25", "q75")
    theirs = timed.filter(pl.col("attention") == baseline)
    return (
        theirs.join(ours, on=keys, suffix="_of_mechanism")
        .with_columns(
            value=pl.col("time_ms") / pl.col("time_ms_of_mechanism"),
            low=pl.col("q25") / pl.col("q75_of_mechanism"),
            high=pl.col("q75") / pl.col("q25_of_mechanism"),
        )
        .sort("series", "seq_len")
    )


def _crossings(ratios: pl.DataFrame, crossovers: Mapping[str, Crossover]) -> pl.DataFrame:
    """The finite crossovers of the series drawn, with their intervals and labels."""
    series = ratios.select("attention", "implementation", "series").unique("series").sort("series")
    rows = []
    for row in series.to_dicts():
        found = crossovers.get(row["series"])
        if found is None or not math.isfinite(found.length):
            continue
        high = "…" if math.isinf(found.high) else f"{found.high:.0f}"
        about = "extrapolated " if found.extrapolated else ""
        row |= {"length": found.length, "low": found.low, "high": found.high}
        row["label"] = f"{about}N ≈ {found.length:.0f}\n{found.low:.0f} to {high}"
        rows.append(row)
    columns = dict.fromkeys(("attention", "implementation", "series", "label"), pl.String)
    columns |= dict.fromkeys(("length", "low", "high"), pl.Float64)
    return pl.DataFrame(rows, schema=columns)


def _crossing_layers(crossings: pl.DataFrame, x_domain: list[float]) -> list[alt.Chart]:
    """The interval as a thick bar on the break-even line, the crossover on it, and its label."""
    if crossings.is_empty():
        return []
    drawn = crossings.sort("length").with_columns(
        pl.col("low", "high").clip(*x_domain),
        y=pl.lit(1.0),
        lift=pl.int_range(pl.len()) % 2,
    )
    base = alt.Chart(drawn).encode(style.length_axis(x_domain, "length"), alt.Y("y:Q"))
    return [
        base.mark_rule(strokeWidth=7, opacity=0.45, color=style.NEUTRAL).encode(
            style.length_axis(x_domain, "low"), alt.X2("high:Q")
        ),
        base.mark_point(filled=True, size=90, color=style.NEUTRAL, opacity=1).encode(
            tooltip=["series:N", "length:Q", "low:Q", "high:Q"]
        ),
        *(
            base.mark_text(
                lineBreak="\n",
                lineHeight=style.LABEL_PX,
                dy=dy,
                align=align,
                dx=dx,
                color=style.NEUTRAL,
            )
            .encode(text="label:N")
            .transform_filter(f"datum.lift == {lift}")
            for lift, dy, align, dx in ((0, -28, "right", 0), (1, 18, "left", 0))
        ),
    ]
