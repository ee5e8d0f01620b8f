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
from replib.pages.tidy import ORIGIN, frame_of, mechanism, origin
from replib.published import published

_WAY = dict(attention=str, implementation=str, series=str, seq_len=int)
TOKEN_COLUMNS = (
    _WAY
    | dict(time_ms=float, q25=float, q75=float, state_bytes=int)
    | dict(outcome=str, detail=str)
    | ORIGIN
)
STREAM_COLUMNS = _WAY | dict(value=float, low=float, high=float, outcome=str) | ORIGIN
SPEEDUP_COLUMNS = (
    dict(line=str, heading=str, label=str, where=str, value=float, low=float, high=float)
    | dict(how=str)
    | ORIGIN
)

TOKEN_MEASURES = {  # column -> axis title, factor to its unit
    "time_ms": ("time of a token (ms)", 1.0),
    "state_bytes": ("kept between tokens (MB)", 1e-6),
}
N_AXIS = "position N in the sequence"
TO_COME = "cache, to come"
LINE_PX = 20
LABEL_SHARE = 0.3  # of the axis, free for labels beyond the largest ratio
MARGIN = 1.6  # free space beside the smallest and the largest ratio, as a factor
OVER = {"cache": "over a cache", "recompute": "over recomputing"}


def token_chart(rows: Sequence[Row], name: str = "", y: str = "time_ms") -> alt.LayerChart:
    """What the N-th token of one model and batch takes, a line a way to generate, both axes
    logarithmic; titled with what the last tokens took.

    Args:
        name: of the model and batch.
        y: a key of TOKEN_MEASURES.

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
    return _against(N_AXIS, growth_chart(drawn, axis_title, title, guides=False))


def _against(title: str, chart: alt.LayerChart) -> alt.LayerChart:
    """The chart with another title of its axis of positions."""
    for layer in chart.layer:
        x = getattr(layer.encoding, "x", None)  # a layer may have no encoding
        if isinstance(x, alt.X):
            x.title = title
    return chart


def stream_chart(rows: Sequence[Row]) -> alt.LayerChart:
    """Memory along the long streams of one model: what is kept, the whole process, and what a cache
    must hold."""
    frame = streams(rows)
    if frame.is_empty():
        return style.no_data("No measurements yet")
    title = f"{frame['seq_len'].max():,} tokens"
    kept = frame.filter(pl.col("implementation") == "recurrent")["value"]
    if len(kept):
        title += f": the state grows by {1e6 * (kept.max() - kept.min()):z.0f} bytes"
    chart = growth_chart(frame, "memory (MB)", title, guides=False)
    return _against("tokens generated", chart)


def speedup_chart(found: Sequence[Speedup], paper: Mapping[str, Any]) -> alt.LayerChart:
    """How many times faster linear attention generates, a line a figure, on a log axis: circles
    with 95 % intervals are ours, crosses are published.

    Args:
        paper: `published()["katharopoulos2020"]`.
    """
    if not found:
        return style.no_data("No measurements yet")
    title, over_cache = "Speed-ups", sorted(x.found.value for x in found if x.over == "cache")
    if over_cache:
        ends = dict.fromkeys(map(three_digits, (over_cache[0], over_cache[-1])))
        title = f"Linear is {' to '.join(ends)}× as fast as softmax with a cache"
    drawn = _speedup_lines(found, published_speedups(paper))
    x_domain = style.log_domain([*drawn["low"], *drawn["high"], *drawn["value"], 1.0], MARGIN)
    x_domain[1] *= (x_domain[1] / x_domain[0]) ** LABEL_SHARE
    y = style.lines_axis(drawn["line"].to_list(), "split(datum.value, '|')[2]", **style.ROOMY)
    one = style.rule_at(1.0, _ratio_axis("value", x_domain))
    return style.finished(
        alt.layer(one, *_ratio_layers(drawn, y, x_domain)),
        title,
        style.devices_of(drawn),
        "Time of softmax divided by time of linear attention for a whole sequence, here and as "
        "published; above 1 linear is faster.",
        len(drawn) * LINE_PX,
    )


def _ratio_axis(field: str, domain: Sequence[float]) -> alt.X:
    values = style.powers_between(domain, 10)
    return style.factor_axis(field, "speed-up of linear attention", domain, values=values)


def _speedup_lines(
    found: Iterable[Speedup], published: Iterable[tuple[str, str, str, float]]
) -> pl.DataFrame:
    """From top to bottom the ratios of times, ours above those of `measured.published_speedups` of
    the same images and way, below a heading each: SPEEDUP_COLUMNS. A `line` reads
    "images|way|where"."""
    devices = {origin(one.row)["device"] for one in found}
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in found:
        setting = one.size.image or one.size.text.rsplit(", batch", 1)[0]
        here = origin(one.row)
        where = [f"here, batch {one.size.batch_size}", *[here["device"]] * (len(devices) > 1)]
        how = {"how": "from single tokens" if one.integrated else "whole runs"}
        line = {"where": ", ".join(where)} | asdict(one.found) | how | here
        groups.setdefault((setting, one.over), []).append(line)
    theirs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for image, over, where, value in published:
        line = {"where": f"paper {where}", "value": float(value)}
        line |= {"how": "published", "source": "published"}
        theirs.setdefault((image, over), []).append(line)
    settings, lines = dict.fromkeys(setting for setting, _ in groups), []
    for setting, over in filter(groups.__contains__, itertools.product(settings, OVER)):
        of = f"{setting}, " * (len(settings) > 1)  # else the page has it already
        heading = of + OVER[over]
        lines.append({"line": f"{setting}|{over}|", "heading": heading})
        for line in groups[setting, over] + theirs.get((setting, over), []):
            name = f"{setting}|{over}|{line['where']}"
            lines.append(line | {"line": name, "label": _times(line["value"])})
    return frame_of(lines, SPEEDUP_COLUMNS)


def _times(value: float) -> str:
    return f"{value:z.0f}×" if value >= 100 else f"{value:z.3g}×"


def _ratio_layers(drawn: pl.DataFrame, y: alt.Y, x_domain: Sequence[float]) -> list[Any]:
    value, low = (_ratio_axis(name, x_domain) for name in ("value", "low"))
    titles = {"where": "where", "value": "speed-up", "low": "95 % from", "high": "95 % to"}
    titles |= {"how": "how", "device": "device"}
    tooltip = [alt.Tooltip(name, title=title) for name, title in titles.items()]
    base = alt.Chart(style.records_of(drawn)).encode(y)
    heading = base.transform_filter("isValid(datum.heading)").encode(x=alt.value(0))
    ratios = base.transform_filter("isValid(datum.value)").encode(tooltip=tooltip)
    ours, theirs = (
        ratios.transform_filter(f"datum.source {sign} 'published'") for sign in ("!=", "==")
    )
    orange = style.colour("linear")
    bold = {"align": "left", "color": style.NEUTRAL, "fontWeight": "bold"}
    marks = [
        heading.mark_text(**bold).encode(text="heading:N"),
        ours.mark_rule(strokeWidth=7, opacity=0.4, color=orange).encode(low, alt.X2("high:Q")),
        theirs.mark_point(**style.CROSS, color=style.NEUTRAL).encode(value),
        ours.mark_point(size=70, opacity=1, color=orange).encode(value),
    ]
    for part, colour, end in ((ours, orange, "high"), (theirs, style.NEUTRAL, "value")):
        label = part.mark_text(align="left", dx=9, color=colour)
        marks.append(label.encode(_ratio_axis(end, x_domain), text="label:N"))
    return marks


def figures(rows: Rows) -> Iterator[tuple[str, Figure]]:
    """A token's time and memory, streams, and speed-ups beside the published ones."""
    recorded = rows["generation"]
    if not recorded:
        return
    some, name = most_measured(recorded)
    shown = {"experiment": "generation", "rows": some}
    yield "generation_tokens", Figure(chart=token_chart(some, name), **shown)
    yield "generation_memory", Figure(chart=token_chart(some, name, "state_bytes"), **shown)
    shown["rows"] = recorded
    yield "generation_streams", Figure(chart=stream_chart(recorded), **shown)
    chart = speedup_chart(speedups(recorded), published()["katharopoulos2020"])
    yield "generation_speedups", Figure(chart=chart, **shown, published=True)


def tokens(rows: Iterable[Row]) -> pl.DataFrame:
    """One line a token that was generated at some position, `seq_len`: TOKEN_COLUMNS. The way to
    generate stands for an implementation; a cache's and a state's bytes are those allocated."""
    lines = []
    for row in rows:
        if config_of(row).span == "token":
            summary = row["summary"]
            line = _way(config_of(row)) | {n: row[n] for n in ("outcome", "detail")} | origin(row)
            line |= {name: summary.get(name) for name in ("time_ms", "state_bytes")}
            line |= {"q25": summary.get("time_ms_q25"), "q75": summary.get("time_ms_q75")}
            lines.append(line)
    return frame_of(lines, TOKEN_COLUMNS)


def streams(rows: Iterable[Row]) -> pl.DataFrame:
    """One line a look at a long stream, `seq_len` tokens from its start: STREAM_COLUMNS, `value` in
    MB. Beside what is kept there are the whole process, and what a cache must hold to the end."""
    streamed = [row for row in rows if config_of(row).span == "stream" and row["curve"]]
    lines, last = [], 1
    for row in sorted(streamed, key=lambda row: config_of(row).way == "cache"):
        config, curve = config_of(row), row["curve"]
        at = curve["position"]
        looks = [i for i, n in enumerate(at) if i + 1 == len(at) or _doubles(n, at[i + 1])]
        drawn = {name: [(at[i], curve[name][i]) for i in looks] for name in curve}
        lines += _line(row, _way(config), drawn["state_bytes"])
        if config.way == "recurrent":
            last = at[-1]
            lines += _line(row, mechanism("whole process", None), drawn["process_bytes"])
        elif at[-1] < last:
            held = [(n, state_bytes(replace(config, seq_len=n))) for n in (at[-1], last)]
            lines += _line(row, mechanism("softmax", TO_COME), held)
    return frame_of(lines, STREAM_COLUMNS)


def _doubles(n: int, following: int) -> bool:
    """Whether there is a power of two between two positions: a look for each is enough."""
    return int(following).bit_length() > int(n).bit_length()


def _line(row: Row, series: dict[str, Any], looks: Iterable[tuple[int, Any]]) -> list[dict]:
    run = series | {"outcome": "ok"} | origin(row)
    return [run | {"seq_len": n, "value": value / 1e6} for n, value in looks if value]


def _way(config: GenerationConfig) -> dict[str, Any]:
    return mechanism(WAYS[config.way], config.way) | {"seq_len": config.seq_len}


def _token_title(rows: Sequence[Row], y: str, name: str) -> str:
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


def most_measured(rows: Sequence[Row]) -> tuple[list[Row], str]:
    """The rows of the model and batch that most tokens are of, and its name."""
    sizes = rows_by_size(rows) or {"": []}
    name = max(sizes, key=lambda size: len(sizes[size]))
    return sizes[name], name
