"""Charts of generation: a token's cost against its position, long streams, and speed-ups."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import altair as alt
import polars as pl

from replib.claims.claim import Figure, Rows
from replib.claims.generation.measured import Speedup, published_speedups, speedups, tokens_by_size
from replib.lab.run import config_of
from replib.lab.runs.generation import WAYS, GenerationConfig, state_bytes
from replib.lab.store import Row
from replib.lab.verdict import by_device, three_digits
from replib.pages import style
from replib.pages.costs import growth_chart
from replib.pages.frames import _ORIGIN, frame_of, mechanism, origin
from replib.published import published

_GENERATION = dict(
    attention=str,
    implementation=str,
    series=str,
    seq_len=int,
    batch_size=int,
    n_layers=int,
    n_heads=int,
    head_dim=int,
)
GENERATION_COLUMNS = (
    _GENERATION
    | dict(time_ms=float, q25=float, q75=float)
    | dict(state_bytes=int, memory_bytes=int)
    | dict(outcome=str, detail=str)
    | _ORIGIN
)
STREAM_COLUMNS = (
    _GENERATION
    | dict(position=int, ms_per_token=float)
    | dict(state_bytes=int, process_bytes=int)
    | _ORIGIN
)
SPEEDUP_COLUMNS = dict(
    setting=str,
    over=str,
    where=str,
    value=float,
    low=float,
    high=float,
    how=str,
    device=str,
    source=str,
)

TOKEN_MEASURES = {  # column -> axis title, factor to its unit
    "time_ms": ("time of a token (ms)", 1.0),
    "state_bytes": ("kept between tokens (MB)", 1e-6),
}
N_AXIS = "position N in the sequence"
LINE_PX = 20
LABEL_SHARE = 0.3  # of the axis, free for labels beyond the largest ratio
MARGIN = 1.6  # free space beside the smallest and the largest ratio, as a factor
OVER = {"cache": "over a cache", "recompute": "over recomputing"}


def token_chart(rows: Sequence[Row], y: str = "time_ms", name: str | None = None) -> alt.LayerChart:
    """What the N-th token of one model and batch takes, a line a way to generate, both axes
    logarithmic; titled with what the last tokens took.

    Args:
        y: a key of TOKEN_MEASURES.
        name: of the model and batch.

    Raises:
        ValueError: an unknown y, or two values at one N of a way.
    """
    style.check_known("y", y, TOKEN_MEASURES)
    axis_title, factor = TOKEN_MEASURES[y]
    frame, title = tokens(rows), _token_title(rows, y, name)
    style.check_single(frame)
    timed = pl.lit(y == "time_ms")
    drawn = frame.with_columns(
        value=pl.col(y) * factor,
        low=pl.when(timed).then(pl.col("q25")),
        high=pl.when(timed).then(pl.col("q75")),
    )
    chart = growth_chart(drawn, axis_title, title, guides=False)
    for layer in chart.layer:
        x = getattr(layer.encoding, "x", None)  # a layer may have no encoding
        if isinstance(x, alt.X):
            x.title = N_AXIS
    return chart


def stream_chart(rows: Sequence[Row]) -> alt.LayerChart:
    """Memory along the long streams of one model: what is kept, the whole process, and what a cache
    must hold."""
    frame = streams(rows)
    if frame.is_empty():
        return style.no_data("No measurements yet")
    stream = next(row for row in rows if config_of(row).span == "stream" and row["curve"])
    config = replace(config_of(stream), way="cache", seq_len=1)
    cache_bytes_per_token, last = state_bytes(config), frame["position"].max()
    title, kept = f"{last:,} tokens", frame.filter(frame["implementation"] == "recurrent")
    if not kept.is_empty():
        grown = kept["state_bytes"].max() - kept["state_bytes"].min()
        title += f": the state grows by {grown} bytes"
    lines = _stream_lines(frame, cache_bytes_per_token, last)
    y_domain = style.log_domain(lines["value"], 1.5)
    x_domain = style.log_domain([1, last])
    names = lines["series"].unique(maintain_order=True).to_list()
    colours = [_LOOKS[name][0] for name in names]
    colour = alt.Color(
        "series:N",
        title=None,
        scale=alt.Scale(domain=names, range=colours),
        legend=style.legend(names, 1, symbolStrokeWidth=3),
    )
    dash = alt.StrokeDash(
        "series:N",
        title=None,
        legend=None,
        scale=alt.Scale(domain=names, range=[_LOOKS[name][1] for name in names]),
    )
    legend = alt.selection_point(name="shown_series", fields=["series"], bind="legend")
    x = alt.X(
        "position:Q",
        title="tokens generated",
        scale=alt.Scale(type="log", domain=x_domain, nice=False),
        axis=alt.Axis(
            values=style.powers_between(x_domain, 10), labelExpr=style.BIG_LABELS, grid=False
        ),
    )
    line = (
        alt.Chart(style.records_of(lines))
        .mark_line(strokeWidth=2.5)
        .encode(
            x,
            style.log_axis("value", "memory (MB)", y_domain),
            colour,
            dash,
            alt.Detail(["device:N", "source:N"]),
            opacity=style.faded(legend),
            tooltip=[
                alt.Tooltip("series:N", title="memory of"),
                alt.Tooltip("position:Q", title="tokens", format=",d"),
                alt.Tooltip("value:Q", title="MB", format=".4~g"),
            ],
        )
        .add_params(legend)
    )
    return style.finished(
        alt.layer(line),
        title,
        style.devices_of(frame),
        "Memory in MB against the number of tokens generated, log axes: the recurrent state stays, "
        "a cache grows.",
    )


RECURRENT_KEPT = "linear: recurrent state"
CACHE_KEPT = "softmax: cache (it doubles)"
CACHE_NEEDED = "softmax: cache, what it must hold"
PROCESS = "linear: the whole process"
_LOOKS = {  # colour and dashes
    RECURRENT_KEPT: (style.colour("linear"), [1, 0]),
    CACHE_KEPT: (style.colour("softmax"), [1, 0]),
    CACHE_NEEDED: (style.colour("softmax"), [2, 4]),
    PROCESS: (style.NEUTRAL, [6, 3]),
}


def _stream_lines(frame: pl.DataFrame, cache_bytes_per_token: float, last: int) -> pl.DataFrame:
    """`value` in MB of each line of the chart."""
    recurrent = frame.filter(pl.col("implementation") == "recurrent")
    cache = frame.filter(pl.col("implementation") == "cache")
    ends = frame.head(1).select("device", "source")
    needed = pl.DataFrame({"position": [1, last]}).join(ends, how="cross")
    parts = (
        (RECURRENT_KEPT, recurrent, pl.col("state_bytes")),
        (CACHE_KEPT, cache, pl.col("state_bytes")),
        (CACHE_NEEDED, needed, pl.col("position") * cache_bytes_per_token),
        (PROCESS, recurrent, pl.col("process_bytes")),
    )
    return pl.concat(
        part.select(
            "position", "device", "source", series=pl.lit(name), value=bytes_.cast(float) / 1e6
        )
        for name, part, bytes_ in parts
    ).filter(pl.col("value").is_not_null())


def speedup_chart(found: Sequence[Speedup], paper: Mapping[str, Any]) -> alt.LayerChart:
    """How many times faster linear attention generates, a line a figure, on a log axis: filled and
    hollow marks with 95 % intervals are ours, crosses are published.

    Args:
        paper: `published()["katharopoulos2020"]`.
    """
    if not found:
        return style.no_data("No measurements yet")
    frame = speedup_frame(found, published_speedups(paper))
    title, over_cache = "Speed-ups", sorted(x.found.value for x in found if x.over == "cache")
    if over_cache:
        ends = dict.fromkeys(map(three_digits, (over_cache[0], over_cache[-1])))
        title = f"Linear is {' to '.join(ends)}× as fast as softmax with a cache"
    drawn, lines = _grouped(frame)
    x_domain = style.log_domain([*drawn["low"], *drawn["high"], *drawn["value"], 1.0], MARGIN)
    x_domain[1] *= (x_domain[1] / x_domain[0]) ** LABEL_SHARE
    y = alt.Y(
        "line:O",
        title=None,
        scale=alt.Scale(domain=lines),
        axis=alt.Axis(
            labelExpr="split(datum.value, '|')[2]",
            ticks=False,
            domain=False,
            labelPadding=8,
            labelLimit=0,
        ),
    )
    return style.finished(
        alt.layer(
            alt.Chart(pl.DataFrame({"value": [1.0]}))
            .mark_rule(color=style.NEUTRAL, strokeDash=[4, 3])
            .encode(_ratio_axis("value", x_domain)),
            _headings(drawn, y),
            *_ratio_layers(drawn, y, x_domain),
        ),
        title,
        style.devices_of(frame),
        "Time of softmax divided by time of linear attention for a whole sequence, here and as "
        "published; above 1 linear is faster.",
        len(lines) * LINE_PX,
    )


def _ratio_axis(field: str, domain: Sequence[float]) -> alt.X:
    return alt.X(
        f"{field}:Q",
        title="speed-up of linear attention",
        scale=alt.Scale(type="log", domain=list(domain), nice=False),
        axis=alt.Axis(
            values=style.powers_between(domain, 10), labelExpr=f"{style.BIG_LABELS} + '×'"
        ),
    )


def _grouped(frame: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """The frame with the line of each ratio, "setting|over|where", and all lines from top to
    bottom with a heading above each group, ours first."""
    told_apart = ["device"] if frame["device"].drop_nulls().n_unique() > 1 else []
    where = pl.concat_str("where", *told_apart, separator=", ", ignore_nulls=True)
    drawn = frame.with_columns(where=where).with_columns(
        group=pl.concat_str("setting", "over", separator="|"),
        label=pl.col("value").map_elements(_times, pl.String),
    )
    drawn = drawn.with_columns(line=pl.concat_str("group", "where", separator="|"))
    known = drawn.filter(pl.col("source") != "published")["setting"].unique(maintain_order=True)
    drawn = drawn.filter(pl.col("setting").is_in(known.to_list()))
    lines = []
    for setting, over in itertools.product(known, OVER):
        members = drawn.filter((pl.col("setting") == setting) & (pl.col("over") == over))
        if not members.is_empty():
            lines += [f"{setting}|{over}|", *members["line"]]
    return drawn, lines


def _times(value: float) -> str:
    return f"{value:z.0f}×" if value >= 100 else f"{value:z.3g}×"


def _headings(drawn: pl.DataFrame, y: alt.Y) -> alt.Chart:
    headings = drawn.select("setting", "over", line=pl.col("group") + "|").unique(
        maintain_order=True
    )
    words = [pl.col("over").replace_strict(OVER)]
    if headings["setting"].n_unique() > 1:  # else the page has it already
        words.insert(0, pl.col("setting"))
    headings = headings.with_columns(text=pl.concat_str(words, separator=", "))
    text = alt.Chart(headings).mark_text(align="left", color=style.NEUTRAL, fontWeight="bold")
    return text.encode(y, x=alt.value(0), text="text:N")


def _ratio_layers(drawn: pl.DataFrame, y: alt.Y, x_domain: Sequence[float]) -> list[Any]:
    value, low = (_ratio_axis(name, x_domain) for name in ("value", "low"))
    tooltip = [
        alt.Tooltip("where:N"),
        alt.Tooltip("value:Q", title="speed-up", format=".4~g"),
        alt.Tooltip("low:Q", title="95 % from", format=".4~g"),
        alt.Tooltip("high:Q", title="95 % to", format=".4~g"),
        alt.Tooltip("how:N"),
        alt.Tooltip("device:N"),
    ]
    base = alt.Chart(style.records_of(drawn)).encode(y, tooltip=tooltip)
    ours, theirs = (
        base.transform_filter(f"datum.source {sign} 'published'") for sign in ("!=", "==")
    )
    orange = style.colour("linear")
    marks = [
        ours.mark_rule(strokeWidth=7, opacity=0.4, color=orange).encode(low, alt.X2("high:Q")),
        theirs.mark_point(**style.CROSS, color=style.NEUTRAL).encode(value),
    ]
    for source, filled in (("live", True), ("recorded", False)):
        marks.append(
            base.transform_filter(style.is_from(source))
            .mark_point(filled=filled, size=70, opacity=1, color=orange)
            .encode(value)
        )
    for part, colour, end in ((ours, orange, "high"), (theirs, style.NEUTRAL, "value")):
        marks.append(
            part.mark_text(align="left", dx=9, color=colour).encode(
                _ratio_axis(end, x_domain), text="label:N"
            )
        )
    return marks


def figures(rows: Rows) -> Iterator[tuple[str, Figure]]:
    """A token's time and memory, streams, and speed-ups beside the published ones."""
    recorded = rows["generation"]
    sizes = rows_by_size(recorded)
    if not sizes:
        return
    name = max(sizes, key=lambda size: len(sizes[size]))  # the size that most points are of
    shown = {"experiment": "generation", "rows": sizes[name]}
    yield "generation_tokens", Figure(chart=token_chart(sizes[name], name=name), **shown)
    chart = token_chart(sizes[name], "state_bytes", name)
    yield "generation_memory", Figure(chart=chart, **shown)
    shown["rows"] = recorded
    yield "generation_streams", Figure(chart=stream_chart(recorded), **shown)
    chart = speedup_chart(speedups(recorded), published()["katharopoulos2020"])
    yield "generation_speedups", Figure(chart=chart, **shown, published=True)


def tokens(rows: Iterable[Row]) -> pl.DataFrame:
    """One line a token that was generated at some position, `seq_len`: GENERATION_COLUMNS. The way
    to generate stands for an implementation; a cache's and a state's bytes are those allocated."""
    lines = []
    for row in rows:
        if config_of(row).span == "token":
            summary = row["summary"]
            line = _way(config_of(row)) | {n: row[n] for n in ("outcome", "detail")} | origin(row)
            line |= {name: summary.get(name) for name in ("time_ms", "state_bytes", "memory_bytes")}
            line |= {"q25": summary.get("time_ms_q25"), "q75": summary.get("time_ms_q75")}
            lines.append(line)
    return frame_of(lines, GENERATION_COLUMNS)


def streams(rows: Iterable[Row]) -> pl.DataFrame:
    """One line a look at a long stream: STREAM_COLUMNS."""
    names = ("position", "ms_per_token", "state_bytes", "process_bytes")
    lines = []
    for row in rows:
        if config_of(row).span == "stream" and row["curve"]:
            run = _way(config_of(row)) | origin(row)
            points = zip(*(row["curve"][name] for name in names), strict=True)
            lines += [run | dict(zip(names, point, strict=True)) for point in points]
    return frame_of(lines, STREAM_COLUMNS)


def speedup_frame(
    found: Iterable[Speedup], published: Iterable[tuple[str, str, str, float]] = ()
) -> pl.DataFrame:
    """One line a ratio of times, ours and those of `claims_generation.published_speedups`:
    SPEEDUP_COLUMNS. `setting` is the data set whose images have that size, or the size itself."""
    ours = [
        {"setting": one.size.image or one.size.text.rsplit(", batch", 1)[0], "over": one.over}
        | {"where": f"here, batch {one.size.batch_size}"}
        | asdict(one.found)
        | {"how": "from single tokens" if one.integrated else "whole runs"}
        | origin(one.row)
        for one in found
    ]
    theirs = [
        {"setting": image, "over": over, "where": f"paper {where}", "value": float(value)}
        | {"how": "published", "source": "published"}
        for image, over, where, value in published
    ]
    return frame_of(ours + theirs, SPEEDUP_COLUMNS)


def _way(config: GenerationConfig) -> dict[str, Any]:
    way = config.way
    sizes = ("seq_len", "batch_size", "n_layers", "n_heads", "head_dim")
    return mechanism(WAYS[way], way) | {name: getattr(config, name) for name in sizes}


def _token_title(rows: Sequence[Row], y: str, name: str | None) -> str:
    done = [row for row in rows if row["outcome"] == "ok" and row["summary"].get(y)]
    if not done:
        return "No measurements yet"
    last = max(config_of(row).seq_len for row in done)
    found = {config_of(r).way: r["summary"][y] for r in done if config_of(r).seq_len == last}
    where = f"{name}: " if name else ""
    if "recurrent" not in found or len(found) == 1:
        return f"{where}tokens up to {last}"
    verb, what = {"time_ms": ("takes", "time"), "state_bytes": ("keeps", "memory")}[y]
    compared = [
        f"{text} {verb} {three_digits(found[way] / found['recurrent'])}×"
        for way, text in (("cache", "a cache"), ("recompute", "recomputing"))
        # What recomputing keeps is its tokens alone.
        if way in found and (way, y) != ("recompute", "state_bytes")
    ]
    said = f"{', '.join(compared)} the {what} of a recurrent state" if compared else ""
    return f"{where}token {last}: {said}" if said else f"{where}tokens up to {last}"


def rows_by_size(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of single tokens, by the name of their model, batch and device."""
    found: dict[str, list[Row]] = {}
    devices = by_device(rows)
    for device, some in devices.items():
        for size, members in tokens_by_size(some).items():
            name = f"{size.text}, {device}" if len(devices) > 1 else size.text
            found[name] = members
    return found
