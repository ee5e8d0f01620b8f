"""Where linear attention overtakes softmax, for each implementation of the two."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from replib.claims.claim import Figure, Rows
from replib.claims.common import (
    ARTICLE_CROSSOVER,
    PAPER_CROSSOVER,
    judged_linear,
    machine_busy,
)
from replib.claims.crossover.crossings import Crossing, by_setting, crossings, moved
from replib.claims.crossover.extrapolation import extrapolation_chart
from replib.claims.crossover.steps import replication_chart
from replib.lab.run import config_of
from replib.lab.statistics import Crossover, article_fits
from replib.lab.store import Row
from replib.pages import style, tidy
from replib.pages.costs import cost_chart
from replib.published import published

LINE_PX = 17
REFERENCES = {"2022 article": ARTICLE_CROSSOVER, "paper": PAPER_CROSSOVER}
MARGIN = 1.4  # free space beside the longest and the shortest length, as a factor
COLUMNS = dict.fromkeys(("group", "line", "implementation", "label", "arrow", "side"), pl.String)
COLUMNS |= dict.fromkeys(("start", "end", "point"), pl.Float64)


def crossings_chart(rows: Sequence[Row], work: str = "forward_backward") -> alt.LayerChart:
    """The crossover of each implementation with its 95 % interval, a line each, grouped by what it
    is held against, beside those of the paper and the 2022 article. Where no crossing was measured,
    the bar is open: linear attention is ahead on the side of the arrow."""
    found = crossings(rows, work)
    moves = by_setting(found)
    title = "Where linear attention overtakes softmax, by implementation"
    if moves and all(map(moved, moves.values())):
        title = "The crossover moves to shorter N as linear attention's implementation improves"
    if not found:
        return style.no_data(title)
    ends = [end for one in found for end in (one.found.shortest, one.found.longest)]
    x_domain = style.log_domain([*ends, *REFERENCES.values()], MARGIN)
    lines, bars = [f"{name}|" for name in REFERENCES], []
    for (device, setting), members in moves.items():
        group = f"against {setting}"
        group += f", {device}" if len({device for device, _ in moves}) > 1 else ""
        lines.append(f"{group}|")
        for name, crossover in members.items():
            lines.append(f"{group}|{name}")
            place = {"group": group, "line": lines[-1], "implementation": name}
            bars.append(place | _bar(crossover, *x_domain))
    y = style.lines_axis(lines, "split(datum.value, '|')[1]")
    return style.finished(
        alt.layer(*_reference_layers(x_domain, y), *_bar_layers(bars, x_domain, y)),
        title,
        style.devices_of(tidy.costs([one.row for one in found])),
        "The sequence length from which linear attention is faster than softmax, with its 95 % "
        "interval, a line an implementation.",
        len(lines) * LINE_PX,
    )


def _bar(found: Crossover, low: float, high: float) -> dict[str, Any]:
    """From where to where a crossover's bar goes on the axis, its label and where that stands, and
    the arrow of a bar that is open."""
    point, arrow = found.length, None
    if not found.extrapolated:
        start, end = found.low, found.high
        label = f"{point:z.0f} ({start:z.0f} to {f'{end:z.0f}' if end < math.inf else '…'})"
        arrow = "→" if end > high else None
    elif point <= found.shortest:
        start, end, point, arrow = low, found.shortest, None, "←"
        label = f"below {end:zg}"
    else:
        start, end, point, arrow = found.longest, high, None, "→"
        label = f"not up to {start:zg}"
    start, end = max(start, low), min(end, high)
    side = "after" if end / low < high / start else "before"
    bar = {"start": start, "end": end, "point": point, "label": label}
    return bar | {"arrow": arrow, "side": side}


def _bar_layers(bars: list[dict], x_domain: list[float], y: alt.Y) -> list[alt.Chart]:
    names = dict.fromkeys(bar["implementation"] for bar in bars)
    shapes = {name: style.SHAPES.get(name, "circle") for name in names}
    shape = style.looks(alt.Shape, "implementation:N", shapes, legend=None)
    frame = pl.DataFrame(bars, schema=COLUMNS)
    base = alt.Chart(frame).encode(y, color=alt.value(style.colour("linear")))
    start, end, point = (style.length_axis(x_domain, name) for name in ("start", "end", "point"))
    arrow = {"fontSize": 18, "fontWeight": "bold"}
    headings = frame.select("group", line=pl.col("group") + "|").unique(maintain_order=True)
    heading = alt.Chart(headings).mark_text(align="left", color=style.NEUTRAL, fontWeight="bold")
    return [
        heading.encode(y, x=alt.value(0), text="group:N"),
        base.mark_rule(strokeWidth=7, opacity=0.4).encode(start, alt.X2("end:Q")),
        base.mark_point(filled=False, size=60, opacity=1)
        .encode(point, shape)
        .transform_filter("isValid(datum.point)"),
        *(
            base.mark_text(align=align, **look)
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


def _reference_layers(x_domain: list[float], y: alt.Y) -> list[alt.Chart]:
    """A vertical line each; the names stand in lines of their own, left of it."""
    data = [
        {"line": f"{name}|", "length": float(length), "label": f"{name}: {length:zg}"}
        for name, length in REFERENCES.items()
    ]
    base = alt.Chart(pl.DataFrame(data)).encode(style.length_axis(x_domain, "length"))
    return [
        base.mark_rule(color=style.NEUTRAL, strokeDash=[4, 3]),
        base.mark_text(align="right", dx=-5, color=style.NEUTRAL).encode(y, text="label:N"),
    ]


def figures(rows: Rows) -> Iterator[tuple[str, Figure]]:
    """Time of a token, where it crosses, the article's extrapolation and its Table 1."""
    article = published()["dm2022"]
    some = [row for row in rows["crossover"] if config_of(row).work == "forward_backward"]
    for batch_size in (8, 1):
        used = [row for row in some if config_of(row).batch_size == batch_size]
        name = f"crossover_batch_{batch_size}"
        yield name, Figure(chart=crossover_chart(used), experiment="crossover", rows=used)
    yield "crossings", Figure(chart=crossings_chart(some), experiment="crossover", rows=some)
    chart = extrapolation_chart(article, article_fits(article))
    yield "extrapolation_2022", Figure(chart=chart, published=True)
    steps = tidy.steps_alike(rows["step_time"])
    chart = replication_chart(tidy.costs(steps), article)
    yield "table_1", Figure(chart=chart, experiment="step_time", rows=steps, published=True)


def crossover_chart(rows: Sequence[Row], predicted: Sequence[Row] = ()) -> alt.LayerChart:
    """Time of a token of one work and batch size, with the lengths marked from which linear
    attention stays faster than softmax: of the rows or, before two lengths of them are there, of
    those `predicted`."""
    told, how, found = rows, "Linear", _crossings(rows)
    if not found:
        told, how = predicted, "Predicted: linear"
        found = _crossings(told)
    judged = judged_linear(told)
    where = ", ".join(
        f"{_rounded(one.found)} against softmax ({one.baseline})"
        for one in found
        if one.implementation == judged
    )
    title = f"{how} ({judged or 'fastest'}) is faster {where}"
    if busy := machine_busy(rows):
        title = busy.headline.capitalize()
    marks = _crossing_marks(found, judged, tidy.costs(told))
    costs = tidy.costs([*rows, *predicted])
    return cost_chart(costs, y="token", title=title if where else "Time of a token", marks=marks)


def _crossings(rows: Sequence[Row]) -> list[Crossing]:
    return [one for work in {config_of(row).work for row in rows} for one in crossings(rows, work)]


def _rounded(found: Crossover) -> str:
    if not math.isfinite(found.length):
        return "never"
    if found.extrapolated and found.length <= found.shortest:
        return f"from below N = {found.shortest:zg}"
    return f"from N = {found.length:z.0f}{' (extrapolated)' if found.extrapolated else ''}"


def _crossing_marks(
    found: Sequence[Crossing], judged: str | None, costs: pl.DataFrame
) -> list[alt.Chart]:
    """A ring where the line of an implementation meets that of a softmax, if it was measured, and
    its N for the fastest implementation."""
    marks = []
    for one in found:
        n, line = one.found.length, costs.filter(series=f"softmax ({one.baseline})")
        line = line.filter(pl.col("time_ms").is_not_null(), batch_size=one.batch_size)
        if not one.found.extrapolated:
            points = np.log(line.sort("seq_len").select("seq_len", "time_ms").to_numpy()).T
            time_us = 1e3 * np.exp(np.interp(math.log(n), *points)) / (n * one.batch_size)
            marks.append((n, time_us, f"N = {n:z.0f}" if one.implementation == judged else None))
    if not marks:
        return []
    data = pl.DataFrame(marks, schema=["seq_len", "value", "label"], orient="row")
    base = alt.Chart(style.records_of(data)).encode(x="seq_len:Q", y="value:Q")
    ring = base.mark_point(size=170, strokeWidth=2, color=style.NEUTRAL, opacity=1)
    text = base.mark_text(dy=-16, color=style.NEUTRAL, fontWeight="bold").encode(text="label:N")
    return [ring, text.transform_filter("isValid(datum.label)")]
