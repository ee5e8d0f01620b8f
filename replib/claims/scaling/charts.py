"""Charts of what was timed: time and memory, the 2022 table, and speed against softmax."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import altair as alt
import polars as pl

from replib.claims.claim import Figure, Rows
from replib.pages import frames, style

PANE, PANE_GAP = 190, 26  # pixels: the height of a pane, and what is free between two

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
    return growth_chart(drawn, f"time of {steps} steps (s)", title, guides=False)


def ratio_chart(
    frame: pl.DataFrame,
    *,
    mechanism: str = "linear",
    baseline: str = "softmax",
    crossings: pl.DataFrame | None = None,
    title: str,
) -> alt.LayerChart:
    """Speed of each implementation of a mechanism relative to another, break-even at 1.

    A pane for each implementation of the other, as bands of one view; the area is from quartile to
    quartile of the two times.

    Args:
        frame: of `frames.costs`, one work and one batch size.
        crossings: of `frames.crossings`, for the same work and batch size.

    Raises:
        ValueError: a frame with two values at one N of a series.
    """
    style.check_single(frame)
    ratios = _ratios(frame, mechanism, baseline)
    if ratios.is_empty():
        return style.no_data(title)
    if crossings is None:
        crossings = frames.crossings([])
    x_domain = style.log_domain(ratios["seq_len"])
    legend = alt.selection_point(name="shown_series", fields=["series"], bind="legend")
    encodings = _series_encodings(ratios)
    names = ratios["against"].unique(maintain_order=True).to_list()
    height = style.HEIGHT if len(names) == 1 else PANE
    panes = [
        _ratio_pane(
            *(part.filter(pl.col("against") == name) for part in (ratios, crossings)),
            encodings,
            x_domain,
            (top, top + height),
            legend,
        )
        for name, top in zip(names, itertools.count(0, PANE + PANE_GAP), strict=False)
    ]
    return style.finished(
        alt.layer(*panes).resolve_scale(y="independent"),
        title,
        style.devices_of(frame, marks=True),
        f"Time of {baseline} divided by time of {mechanism} against N; above 1 {mechanism} wins.",
        height + (len(names) - 1) * (PANE + PANE_GAP),
    )


def _ratio_pane(
    ratios: pl.DataFrame,
    crossings: pl.DataFrame,
    encodings: dict[str, Any],
    x_domain: list[float],
    band: tuple[float, float],
    legend: alt.Parameter,
) -> alt.LayerChart:
    """The speed-up over one baseline, in a band of the view from one pixel to another."""
    top, bottom = band
    y_domain = style.log_domain([*ratios["low"], *ratios["high"], 1.0], margin=1.2)
    y = alt.Y(
        "value:Q",
        title=f"speed-up over {ratios['against'][0]}",
        scale=alt.Scale(type="log", base=2, domain=y_domain, nice=False, range=[bottom, top]),
        axis=alt.Axis(
            values=style.powers_between(y_domain, 2),
            labelExpr="datum.value < 1 ? '1/' + round(1 / datum.value) : datum.value + '×'",
            labelOverlap=True,
            orient="left",
            grid=True,
        ),
    )
    return alt.layer(
        style.rule_at("y", 1.0),
        *_series_layers(ratios, encodings, x_domain, y, legend, clickable=top == 0),
        *_crossing_layers(crossings, x_domain),
        _series_labels(ratios, encodings, y_domain, legend, bottom - top, top, ["implementation"]),
    )


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
    encodings = _series_encodings(frame)
    layers += _series_layers(known, encodings, x_domain, y, legend)
    if not failed.is_empty():
        layers += _failed_layers(failed, encodings, x_domain, legend)
    layers.append(_series_labels(known, encodings, y_domain, legend, style.HEIGHT))
    return style.finished(
        alt.layer(*layers),
        title,
        style.devices_of(frame, marks=True),
        f"{y_title} against sequence length on log axes, a line a mechanism and implementation.",
    )


def _series_layers(
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


def _series_labels(
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


def _ratios(frame: pl.DataFrame, mechanism: str, baseline: str) -> pl.DataFrame:
    """The time of each implementation of the baseline, `against`, over that of each one of the
    mechanism, at each N that has both."""
    timed = frame.filter(pl.col("time_ms").is_not_null())
    keys = ["seq_len", "batch_size", "work", "device", "source"]
    ours = timed.filter(pl.col("attention") == mechanism).with_columns(
        pl.col("implementation").fill_null("fastest")
    )
    theirs = timed.filter(pl.col("attention") == baseline).select(
        *keys, "time_ms", "q25", "q75", against="series"
    )
    return (
        ours.join(theirs, on=keys, suffix="_of_baseline")
        .with_columns(
            value=pl.col("time_ms_of_baseline") / pl.col("time_ms"),
            low=pl.col("q25_of_baseline") / pl.col("q75"),
            high=pl.col("q75_of_baseline") / pl.col("q25"),
        )
        .sort("against", "series", "seq_len", descending=[True, False, False])
    )


def _crossing_layers(crossings: pl.DataFrame, x_domain: list[float]) -> list[alt.Chart]:
    """The interval as a thick bar on the break-even line, the crossover on it, and its label; of
    the crossovers that were measured alone, and lie among the lengths that are drawn."""
    among = pl.col("length").is_between(*x_domain)
    measured = crossings.filter(~pl.col("extrapolated") & among).sort("length")
    if measured.is_empty():
        return []
    drawn = measured.with_columns(
        pl.col("low").clip(*x_domain),
        pl.col("high").fill_null(x_domain[1]).clip(*x_domain),
        y=pl.lit(1.0),
        label="N ≈ " + pl.col("length").round().cast(pl.Int64).cast(pl.String),
        look=pl.when(pl.int_range(pl.len()) % 2 == 1)
        .then(pl.lit("below"))
        .when(pl.col("length") < x_domain[0] * (x_domain[1] / x_domain[0]) ** 0.25)
        .then(pl.lit("above, after"))  # before it, there is the axis
        .otherwise(pl.lit("above")),
    )
    base = alt.Chart(style.records_of(drawn)).encode(
        style.length_axis(x_domain, "length"), alt.Y("y:Q")
    )
    return [
        base.mark_rule(strokeWidth=7, opacity=0.45, color=style.NEUTRAL).encode(
            style.length_axis(x_domain, "low"), alt.X2("high:Q")
        ),
        base.mark_point(filled=True, size=70, color=style.NEUTRAL, opacity=1).encode(
            tooltip=style.tooltips_of(drawn)
        ),
        *(
            base.mark_text(color=style.NEUTRAL, **place)
            .encode(text="label:N")
            .transform_filter(f"datum.look == '{look}'")
            for look, place in CROSSING_LABELS.items()
        ),
    ]


CROSSING_LABELS = {
    "above": {"dy": -13, "align": "right", "dx": -2},
    "above, after": {"dy": -13, "align": "left", "dx": 2},
    "below": {"dy": 14, "align": "left", "dx": 2},
}


def figures(rows: Rows) -> Iterator[tuple[str, Figure]]:
    """Time and memory of forward and backward against N."""
    from replib.claims.scaling.judge import judged_rows

    some = [row for row in rows["scaling"] if row["config"]["work"] == "forward_backward"]
    some = judged_rows(some)
    costs = frames.pooled(frames.costs(some))
    for name, y, title in (
        ("scaling_time", "time_ms_per_sample", "Time of attention, per sequence"),
        ("scaling_memory", "memory_bytes_per_sample", "Memory of attention, per sequence"),
    ):
        chart = cost_chart(costs, y=y, title=title)
        yield name, Figure(chart=chart, experiment="scaling", rows=some)
