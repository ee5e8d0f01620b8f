"""Charts of what was timed: time and memory against N, and what several charts of costs share."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt
import polars as pl

from replib.pages import style

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
    return growth_chart(drawn, axis_title, title, guides)


def growth_chart(frame: pl.DataFrame, y_title: str, title: str, guides: bool) -> alt.LayerChart:
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
    y = style.log_axis("value", y_title, y_domain)
    layers = _guides(known, x_domain, y_domain) if guides else []
    encodings = series_encodings(frame)
    layers += series_layers(known, encodings, x_domain, y, legend)
    if not failed.is_empty():
        layers += _failed_layers(failed, encodings, x_domain, legend)
    layers.append(series_labels(known, encodings, y_domain, legend, style.HEIGHT))
    return style.finished(
        alt.layer(*layers),
        title,
        style.devices_of(frame, marks=True),
        f"{y_title} against sequence length on log axes, a line a mechanism and implementation.",
    )


def series_layers(
    frame: pl.DataFrame,
    encodings: dict[str, Any],
    x_domain: list[float],
    y: alt.Y,
    legend: alt.Parameter,
    clickable: bool = True,
) -> list[alt.Chart]:
    """Quartile band, line and points of each series; the legend is told of its parameter in the
    layers that are `clickable`, which can be those of one pane alone."""
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
        line.mark_line(strokeWidth=2).add_params(*[legend] * clickable),
    ]
    if "live" in frame["source"]:
        layers.append(
            point.mark_point(filled=True, size=70).transform_filter(style.is_from("live"))
        )
    if "recorded" in frame["source"]:
        layers.append(
            point.mark_point(filled=False, size=45).transform_filter(style.is_from("recorded"))
        )
    return layers


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
        .encode(style.length_axis(x_domain), y=alt.value(style.TOP_PX), text="reason:N"),
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

    def scale(values: Iterable[Any]) -> alt.Scale:
        return alt.Scale(domain=names, range=list(values))

    # A dashed outline would fray the small shapes.
    legend = style.legend(names, symbolStrokeWidth=0)
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


MOST_LABEL_LINES = 8  # beside the ends; with more, names would stand far from their lines


def series_labels(
    frame: pl.DataFrame,
    encodings: dict[str, Any],
    domain: list[float],
    legend: alt.Parameter,
    height: float,
    top: float = 0,
    words: Sequence[str] = ("attention", "implementation"),
) -> alt.Chart:
    """The name of each series beside its end, a line each of `words`, or all in one where there
    are many names or the series ends before others do."""
    ends = frame.sort("seq_len").group_by("series", maintain_order=True).last()
    at_end = pl.col("seq_len") == ends["seq_len"].max()
    n_lines = len(words) if len(words) * ends.filter(at_end).height <= MOST_LABEL_LINES else 1
    ends = style.spread_labels(ends, domain, height, n_lines).with_columns(
        pl.col("label_px") + top,
        label=pl.when(at_end)
        .then(pl.concat_str(words, separator="\n" if n_lines > 1 else " ", ignore_nulls=True))
        .otherwise(pl.concat_str(words, separator=" ", ignore_nulls=True)),
    )
    text = alt.Chart(style.records_of(ends)).mark_text(
        lineBreak="\n", lineHeight=style.LABEL_PX, baseline="middle", align="left", dx=8
    )
    return text.encode(
        alt.X("seq_len:Q"),
        alt.Y("label_px:Q", scale=None, axis=None),
        encodings["color"],
        text="label:N",
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
        .encode(text="label:N")
        .transform_filter("isValid(datum.label)"),
    ]
