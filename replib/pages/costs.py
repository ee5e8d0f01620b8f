"""Charts of what was timed: time and memory against N, and what several charts of costs share."""

import math
from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl

from replib.pages import style

MEASURES = {  # name -> axis title, column, its factor
    "time": ("time (ms a sequence)", "time_ms", 1 / pl.col("batch_size")),
    "token": ("time (µs a token)", "time_ms", 1e3 / (pl.col("batch_size") * pl.col("seq_len"))),
    "memory": ("peak memory (MB a sequence)", "memory_bytes", 1e-6 / pl.col("batch_size")),
}
MARKS = {"predicted": "dotted: predicted", "live": "filled: measured now"}
MARKS["recorded"] = "hollow: recorded"


def cost_chart(
    frame: pl.DataFrame, *, y: str = "time", title: str, marks: Sequence[alt.Chart] = ()
) -> alt.LayerChart:
    """Time with its quartiles, or memory, against N on log axes, beside dotted lines that grow as N
    and N²; of a token's time without these. y: a key of MEASURES.

    Args:
        frame: of `tidy.costs`, one work and one batch rule.
        marks: what else is drawn over it.

    Raises:
        ValueError: an unknown y, or a frame with two values at one N of a series.
    """
    style.check_known("y", y, MEASURES)
    axis_title, column, factor = MEASURES[y]
    style.check_single(frame)
    timed = pl.lit(column == "time_ms") & pl.col("time_ms").is_not_null()
    drawn = frame.with_columns(
        value=pl.col(column) * factor,
        low=pl.when(timed).then(pl.col("q25") * factor),
        high=pl.when(timed).then(pl.col("q75") * factor),
    )
    return growth_chart(drawn, axis_title, title, guides=y != "token", marks=marks)


def growth_chart(
    frame: pl.DataFrame, y_title: str, title: str, guides: bool, marks: Sequence[alt.Chart] = ()
) -> alt.LayerChart:
    """`value` with its quartiles `low` and `high` against N, both axes logarithmic."""
    known = frame.filter(pl.col("value").is_not_null())
    failed = frame.filter(pl.col("value").is_null() & (pl.col("outcome") != "ok"))
    if known.is_empty():
        return style.no_data(title)
    x_domain = style.log_domain(frame["seq_len"])
    y_domain = style.log_domain([*known["value"], *known["low"], *known["high"]], margin=1.25)
    if not failed.is_empty():
        y_domain[1] *= (y_domain[1] / y_domain[0]) ** 0.14  # room for the marks at the top
    legend = alt.selection_point(name="shown_series", fields=["series"], bind="legend")
    encodings = series_encodings(frame)
    layers = _guides(known, x_domain, y_domain) if guides else []
    y = style.log_axis("value", y_title, y_domain)
    layers += series_layers(known, encodings, x_domain, y, legend)
    if not failed.is_empty():
        layers += _failed_layers(failed, encodings, x_domain, legend)
    layers += [*marks, series_labels(known, encodings, y_domain, legend)]
    sources = [text for source, text in MARKS.items() if source in frame["source"]]
    return style.finished(
        alt.layer(*layers),
        title,
        "; ".join([style.devices_of(frame), *sources[: len(sources) * (len(sources) > 1)]]),
        f"{y_title} against sequence length on log axes, a line a mechanism and implementation.",
    )


def series_layers(
    frame: pl.DataFrame,
    encodings: dict[str, Any],
    x_domain: list[float],
    y: alt.Y,
    legend: alt.Parameter,
) -> list[alt.Chart]:
    """Quartile band, line and points of each series; of what is predicted a dotted line alone,
    which takes the place of the line of what is measured now, as its points should land on it."""
    base = alt.Chart(style.records_of(frame)).encode(
        style.length_axis(x_domain), encodings["color"], alt.Detail(["device:N", "source:N"])
    )
    measured = base.transform_filter("datum.source != 'predicted'")
    predicted = "predicted" in frame["source"]
    lined = base.transform_filter(style.is_from("recorded")) if predicted else measured
    line = {"y": y, "opacity": style.faded(legend)}
    point = measured.encode(encodings["shape"], **line, tooltip=style.tooltips_of(frame))
    low = y.copy()
    low.shorthand = "low:Q"
    layers = [
        base.mark_area().encode(low, alt.Y2("high:Q"), fillOpacity=style.faded(legend, 0.2, 0.03)),
        lined.mark_line(strokeWidth=2).encode(encodings["strokeDash"], **line),
        point.mark_point(filled=True, size=70).transform_filter(style.is_from("live")),
        point.mark_point(filled=False, size=45).transform_filter(style.is_from("recorded")),
        base.mark_line(strokeWidth=1.5, strokeDash=[1, 3])
        .encode(**line)
        .transform_filter(style.is_from("predicted")),
    ]
    return [layers[0].add_params(legend), *layers[1:]]


def _failed_layers(
    failed: pl.DataFrame, encodings: dict[str, Any], x_domain: list[float], legend: alt.Parameter
) -> list[alt.Chart]:
    """Points without a value at the top edge; the first of each outcome is named."""
    failed = failed.with_columns(reason=pl.col("outcome").str.replace_all("_", " "))
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
        .encode(style.length_axis(x_domain), alt.Text("reason:N"), y=alt.value(style.TOP_PX)),
    ]


def series_encodings(frame: pl.DataFrame) -> dict[str, Any]:
    """Colour by mechanism, dash and shape by implementation, with one legend for all three."""
    order = style.ordered_attention(frame["attention"])
    series = (
        frame.select("attention", "implementation", "series")
        .unique()
        .sort(pl.col("attention").replace_strict({a: i for i, a in enumerate(order)}), "series")
    )
    names, used = series["series"].to_list(), series["implementation"].to_list()

    # A dashed outline would fray the small shapes.
    legend = style.legend(names, symbolStrokeWidth=0)
    shown = {
        "color": (alt.Color, map(_colour, series["attention"], used)),
        "strokeDash": (alt.StrokeDash, (style.DASHES.get(i, [1, 0]) for i in used)),
        "shape": (alt.Shape, (style.SHAPES.get(i, "circle") for i in used)),
    }
    return {
        name: style.looks(channel, "series:N", dict(zip(names, values, strict=True)), legend=legend)
        for name, (channel, values) in shown.items()
    }


def _colour(attention: str, implementation: str | None) -> str:
    """That of the mechanism; grey where linear attention is computed at the cost of softmax."""
    return style.NEUTRAL if implementation == "plain" else style.colour(attention)


MOST_LABEL_LINES = 10  # beside the ends; with more, names would stand far from their lines


def series_labels(
    frame: pl.DataFrame, encodings: dict[str, Any], domain: list[float], legend: alt.Parameter
) -> alt.Chart:
    """The name of each series that goes on to the longest N beside its end, in two lines where
    there is room. That of one that ends before would stand on other lines: the legend has it."""
    ends = frame.filter(pl.col("seq_len") == frame["seq_len"].max())
    ends = ends.unique("series", keep="last", maintain_order=True)
    n_lines = 2 if 2 * ends.height <= MOST_LABEL_LINES else 1
    words, separator = ("attention", "implementation"), "\n" if n_lines > 1 else " "
    ends = style.spread_labels(ends, domain, style.HEIGHT, n_lines).with_columns(
        label=pl.concat_str(words, separator=separator, ignore_nulls=True)
    )
    text = alt.Chart(style.records_of(ends)).mark_text(
        lineBreak="\n", lineHeight=style.LABEL_PX, baseline="middle", align="left", dx=8
    )
    return text.encode(
        alt.X("seq_len:Q"),
        alt.Y("label_px:Q", scale=None, axis=None),
        encodings["color"],
        text=alt.Text("label:N"),
        opacity=style.faded(legend),
    )


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
        .encode(alt.Text("label:N"))
        .transform_filter("isValid(datum.label)"),
    ]
