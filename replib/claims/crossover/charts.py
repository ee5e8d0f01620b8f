"""Where linear attention overtakes softmax, for each implementation of the two."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import altair as alt
import polars as pl

from replib.claims.claim import Figure, Rows
from replib.claims.common import ARTICLE_CROSSOVER, PAPER_CROSSOVER, judged_linear
from replib.claims.crossover.crossings import Crossing, by_setting, crossings, moved
from replib.claims.crossover.extrapolation import extrapolation_chart
from replib.claims.crossover.steps import replication_chart
from replib.lab.run import config_of, variant_of
from replib.lab.statistics import Crossover, article_fits
from replib.lab.store import Row
from replib.pages import frames, style
from replib.pages.costs import series_encodings, series_labels, series_layers
from replib.pages.frames import frame_of, mechanism, origin
from replib.published import published

PANE, PANE_GAP = 190, 26  # pixels: the height of a pane, and what is free between two
CROSSING_COLUMNS = dict(
    attention=str,
    implementation=str,
    series=str,
    against=str,
    setting=str,
    batch_size=int,
    length=float,
    low=float,
    high=float,
    extrapolated=bool,
    shortest=float,
    longest=float,
    device=str,
    source=str,
)

LINE_PX = 20
REFERENCES = {"2022 article": ARTICLE_CROSSOVER, "paper": PAPER_CROSSOVER}
MARGIN = 1.4  # free space beside the longest and the shortest length, as a factor


def crossings_chart(
    rows: Sequence[Row],
    work: str = "forward_backward",
    references: Mapping[str, float] = REFERENCES,
) -> alt.LayerChart:
    """The crossover of each implementation with its 95 % interval, a line each, grouped by what it
    is held against, beside those of the paper and the 2022 article. Where no crossing was measured,
    the bar is open: linear attention is ahead on the side of the arrow."""
    found = crossings(rows, work)
    moves = by_setting(found)
    title = "Where linear attention overtakes softmax, by implementation"
    if moves and all(map(moved, moves.values())):
        title = "The crossover moves to shorter N as linear attention's implementation improves"
    frame = crossings_frame(found)
    if frame.is_empty():
        return style.no_data(title)
    drawn, lines = _in_lines(frame, len(references))
    ends = [*frame["shortest"], *frame["longest"], *references.values()]
    x_domain = style.log_domain(ends, MARGIN)
    columns = dict.fromkeys(("start", "end", "point"), pl.Float64)
    columns |= dict.fromkeys(("label", "arrow", "side"), pl.String)
    bars = pl.DataFrame(
        [_bar(row, *x_domain) for row in drawn.to_dicts()], schema=drawn.schema | columns
    )
    y = alt.Y(
        "line:O",
        title=None,
        scale=alt.Scale(domain=lines),
        axis=alt.Axis(
            labelExpr="split(datum.value, '|')[1]", ticks=False, domain=False, labelPadding=8
        ),
    )
    return style.finished(
        alt.layer(
            *_reference_layers(references, lines, x_domain, y),
            *_heading_layers(drawn, y),
            *_crossing_layers(bars, x_domain, y),
        ),
        title,
        style.devices_of(frame, marks=True),
        "The sequence length from which linear attention is faster than softmax, with its 95 % "
        "interval, a line an implementation.",
        len(lines) * LINE_PX,
    )


def _in_lines(frame: pl.DataFrame, n_references: int) -> tuple[pl.DataFrame, list[str]]:
    """The frame with the name of each crossover's line and of its group's heading, "group|label",
    and the names of all lines from top to bottom."""
    told_apart = [name for name in ("device", "source") if frame[name].n_unique() > 1]
    group = pl.concat_str(pl.lit("against ") + pl.col("setting"), *told_apart, separator=", ")
    drawn = frame.with_columns(group=group).with_columns(
        line=pl.col("group") + "|" + pl.col("implementation").fill_null("fastest"),
        heading=pl.col("group") + "|",
    )
    lines = [f"{i}|" for i in range(n_references)]
    for (heading,), members in drawn.group_by("heading", maintain_order=True):
        lines += [heading, *members["line"]]
    return drawn, lines


def _bar(row: dict, low: float, high: float) -> dict:
    """From where to where a crossover's bar goes on the axis, its label and where that stands, and
    the arrow of a bar that is open."""
    point, arrow = row["length"], None
    if not row["extrapolated"]:
        start, end = row["low"], row["high"] or math.inf
        label = f"{point:z.0f} ({start:z.0f} to {f'{end:z.0f}' if end < math.inf else '…'})"
        arrow = "→" if end > high else None
    elif point is not None and point <= row["shortest"]:
        start, end, point, arrow = low, row["shortest"], None, "←"
        label = f"below {end:zg}"
    else:
        start, end, point, arrow = row["longest"], high, None, "→"
        label = f"not up to {start:zg}"
    start, end = max(start, low), min(end, high)
    spans = [math.log(end / low), math.log(high / start)]
    return row | {
        "start": start,
        "end": end,
        "point": point,
        "label": label,
        "arrow": arrow,
        "side": "after" if spans[0] < spans[1] else "before",
    }


def _crossing_layers(bars: pl.DataFrame, x_domain: list[float], y: alt.Y) -> list[alt.Chart]:
    colour = style.attention_colour(bars, legend=None)
    names = bars["implementation"].unique(maintain_order=True).drop_nulls().to_list()
    shape = alt.Shape(
        "implementation:N",
        legend=None,
        scale=alt.Scale(domain=names, range=[style.SHAPES.get(n, "circle") for n in names]),
    )
    base = alt.Chart(style.records_of(bars)).encode(y, colour)
    start, end, point = (style.length_axis(x_domain, name) for name in ("start", "end", "point"))
    tooltip = style.tooltips_of(bars.select(pl.exclude("start", "end", "point", "label")))
    marks = base.encode(point, shape, tooltip=tooltip).transform_filter("isValid(datum.point)")
    text = base.mark_text
    arrow = {"fontSize": 18, "fontWeight": "bold"}
    return [
        base.mark_rule(strokeWidth=7, opacity=0.4).encode(start, alt.X2("end:Q"), tooltip=tooltip),
        marks.mark_point(filled=True, size=80, opacity=1).transform_filter(style.is_from("live")),
        marks.mark_point(filled=False, size=60, opacity=1).transform_filter(
            style.is_from("recorded")
        ),
        *(
            text(align=align, **look)
            .encode(place, text=f"{field}:N")
            .transform_filter(f"datum.{column} == '{value}'")
            for field, column, value, place, align, look in (
                ("label", "side", "after", end, "left", {"dx": 9}),
                ("label", "side", "before", start, "right", {"dx": -8}),
                ("arrow", "arrow", "→", end, "right", arrow),
                ("arrow", "arrow", "←", start, "left", arrow),
            )
        ),
    ]


def _heading_layers(drawn: pl.DataFrame, y: alt.Y) -> list[alt.Chart]:
    headings = drawn.select("group", line="heading").unique(maintain_order=True)
    text = alt.Chart(headings).mark_text(align="left", color=style.NEUTRAL, fontWeight="bold")
    return [text.encode(y, x=alt.value(0), text="group:N")]


def _reference_layers(
    references: Mapping[str, float], lines: list[str], x_domain: list[float], y: alt.Y
) -> list[alt.Chart]:
    """A vertical line each; the names stand in lines of their own, left of it."""
    if not references:
        return []
    data = pl.DataFrame(
        [
            {"line": lines[i], "length": float(length), "label": f"{name}: {length:zg}"}
            for i, (name, length) in enumerate(references.items())
        ]
    )
    base = alt.Chart(data).encode(style.length_axis(x_domain, "length"))
    return [
        base.mark_rule(color=style.NEUTRAL, strokeDash=[4, 3]),
        base.mark_text(align="right", dx=-5, color=style.NEUTRAL).encode(y, text="label:N"),
    ]


def figures(rows: Rows) -> Iterator[tuple[str, Figure]]:
    """Speed against softmax, where it crosses, the article's extrapolation and its Table 1."""
    work, article = "forward_backward", published()["dm2022"]
    some = [row for row in rows["crossover"] if config_of(row).work == work]
    for batch_size in (8, 1):
        used = [row for row in some if config_of(row).batch_size == batch_size]
        chart = crossover_chart(used, work, batch_size)
        yield (
            f"crossover_batch_{batch_size}",
            Figure(chart=chart, experiment="crossover", rows=used),
        )
    chart = crossings_chart(some, work)
    yield "crossings", Figure(chart=chart, experiment="crossover", rows=some)
    chart = extrapolation_chart(article, article_fits(article))
    yield "extrapolation_2022", Figure(chart=chart, published=True)
    steps = frames.steps_alike(rows["step_time"])
    chart = replication_chart(
        frames.costs(steps), article, title="3000 training steps of the 2022 model"
    )
    yield "table_1", Figure(chart=chart, experiment="step_time", rows=steps, published=True)


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
        crossings = crossings_frame([])
    x_domain = style.log_domain(ratios["seq_len"])
    legend = alt.selection_point(name="shown_series", fields=["series"], bind="legend")
    encodings = series_encodings(ratios)
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
        *series_layers(ratios, encodings, x_domain, y, legend, clickable=top == 0),
        *_crossing_marks(crossings, x_domain),
        series_labels(ratios, encodings, y_domain, legend, bottom - top, top, ["implementation"]),
    )


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


def _crossing_marks(crossings: pl.DataFrame, x_domain: list[float]) -> list[alt.Chart]:
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


def crossover_chart(rows: Sequence[Row], work: str, batch_size: int) -> alt.LayerChart:
    """Speed of linear attention against each softmax, with the crossovers, for rows of one work
    and batch size."""
    rows = [
        row
        for row in rows
        if config_of(row).work == work and config_of(row).batch_size == batch_size
    ]
    found, judged = crossings(rows, work), judged_linear(rows)
    where = ", ".join(
        f"{_rounded(one.found)} against softmax ({one.baseline})"
        for one in found
        if one.implementation == judged
    )
    title = "Two lengths or more are needed" if rows else "No measurements yet"
    title = f"Linear ({judged or 'fastest'}) is faster {where}" if where else title
    crossed = crossings_frame(found)
    return ratio_chart(frames.costs(rows), crossings=crossed, title=title)


def _rounded(found: Crossover) -> str:
    if not math.isfinite(found.length):
        return "never"
    if found.extrapolated and found.length <= found.shortest:
        return f"from below N = {found.shortest:zg}"
    return f"from N = {found.length:z.0f}{' (extrapolated)' if found.extrapolated else ''}"


def crossings_frame(found: Iterable[Crossing]) -> pl.DataFrame:
    """One line a crossover: CROSSING_COLUMNS. A length or bound that is infinite is null."""
    return frame_of(
        [
            mechanism(*variant_of(one.row))
            | {"against": f"softmax ({one.baseline})", "setting": one.setting}
            | {"batch_size": one.batch_size}
            | asdict(one.found)
            | origin(one.row)
            for one in found
        ],
        CROSSING_COLUMNS,
    )
