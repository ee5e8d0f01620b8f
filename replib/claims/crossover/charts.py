"""Where linear attention overtakes softmax, for each implementation of the two."""

import math
from collections.abc import Iterator, Mapping

import altair as alt
import polars as pl

from replib.claims.claim import Figure, Rows
from replib.lab.statistics import article_fits
from replib.pages import frames, style
from replib.published import published

LINE_PX = 20
MARGIN = 1.4  # free space beside the longest and the shortest length, as a factor


def crossings_chart(
    frame: pl.DataFrame, *, references: Mapping[str, float], title: str
) -> alt.LayerChart:
    """The crossover of each implementation with its 95 % interval, a line each, grouped by what it
    is held against. Where no crossing was measured, the bar is open: linear attention is ahead on
    the side of the arrow.

    Args:
        frame: of `frames.crossings`, of one work.
        references: crossovers that others gave, by name: drawn as vertical lines.
    """
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
    from replib.claims.crossover.extrapolation import extrapolation_chart
    from replib.claims.scaling import page
    from replib.claims.scaling.charts import replication_chart

    work, article = "forward_backward", published()["dm2022"]
    some = [row for row in rows["crossover"] if row["config"]["work"] == work]
    for batch_size in (8, 1):
        used = [row for row in some if row["config"]["batch_size"] == batch_size]
        chart = page.crossover_chart(used, work, batch_size)
        yield (
            f"crossover_batch_{batch_size}",
            Figure(chart=chart, experiment="crossover", rows=used),
        )
    chart = page.crossings_chart(some, work)
    yield "crossings", Figure(chart=chart, experiment="crossover", rows=some)
    title = "Four points up to N = 64, extended to 8192"
    chart = extrapolation_chart(article, article_fits(article), title=title)
    yield "extrapolation_2022", Figure(chart=chart, published=True)
    steps = frames.steps_alike(rows["step_time"])
    chart = replication_chart(
        frames.costs(steps), article, title="3000 training steps of the 2022 model"
    )
    yield "table_1", Figure(chart=chart, experiment="step_time", rows=steps, published=True)
