"""The marimo parts of the generation notebook."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import marimo as mo
import torch

from replib import charts, claims, controls, frames
from replib.generation import Difference
from replib.live import in_passing_thread
from replib.store import Row
from replib.streams import GenerationConfig, agreement, state_bytes
from replib.verdicts import three_digits

WAY_LABELS = {
    "recurrent": "linear, recurrent state",
    "cache": "softmax, cache",
    "recompute": "softmax, recomputed",
}


def rows_by_size(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of single tokens, by the name of their model, batch and device."""
    found: dict[str, list[Row]] = {}
    devices = claims.by_device(rows)
    for device, some in devices.items():
        for size, members in claims.tokens_by_size(some).items():
            name = f"{size.text}, {device}" if len(devices) > 1 else size.text
            found[name] = members
    return found


def token_chart(rows: Sequence[Row], y: str = "time_ms", name: str | None = None) -> alt.LayerChart:
    """`charts.token_chart` of one model and batch, titled with what its last tokens took."""
    return charts.token_chart(frames.tokens(rows), y=y, title=_title(rows, y, name))


def _title(rows: Sequence[Row], y: str, name: str | None) -> str:
    done = [row for row in rows if row["outcome"] == "ok" and row["summary"].get(y)]
    if not done:
        return "No measurements yet"
    last = max(row["config"]["seq_len"] for row in done)
    found = {r["config"]["way"]: r["summary"][y] for r in done if r["config"]["seq_len"] == last}
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


def recorded_tabs(rows: Sequence[Row], y: str = "time_ms") -> mo.Html:
    """`token_chart` of each recorded model and batch."""
    sizes = rows_by_size(rows) or {"": []}
    return mo.ui.tabs({name or "–": token_chart(some, y, name) for name, some in sizes.items()})


def speedup_chart(rows: Sequence[Row], paper: Mapping[str, Any]) -> alt.LayerChart:
    """`charts.speedup_chart` of whole sequences, beside the published figures."""
    found = claims.speedups(rows)
    frame = frames.speedups(found, claims.published_speedups(paper))
    over_cache = sorted(one.found.value for one in found if one.over == "cache")
    title = "Speed-ups" if found else "No measurements yet"
    if over_cache:
        ends = dict.fromkeys(map(three_digits, (over_cache[0], over_cache[-1])))
        title = f"Linear is {' to '.join(ends)}× as fast as softmax with a cache"
    return charts.speedup_chart(frame, title=title)


def stream_chart(rows: Sequence[Row]) -> alt.LayerChart:
    """`charts.stream_chart` of the long streams among rows."""
    rows = [row for row in rows if row["config"]["span"] == "stream" and row["curve"]]
    frame = frames.streams(rows)
    if frame.is_empty():
        return charts.stream_chart(frame, cache_bytes_per_token=1, title="No measurements yet")
    first = GenerationConfig(**rows[0]["config"] | {"way": "cache", "seq_len": 1})
    last, kept = frame["position"].max(), frame.filter(frame["implementation"] == "recurrent")
    title = f"{last:,} tokens"
    if not kept.is_empty():
        grown = kept["state_bytes"].max() - kept["state_bytes"].min()
        title += f": the state grows by {grown} bytes"
    return charts.stream_chart(frame, cache_bytes_per_token=state_bytes(first), title=title)


def recorded_streams(rows: Sequence[Row]) -> mo.Html:
    """`stream_chart` of each device."""
    return controls.device_tabs(rows, stream_chart)


def agreement_table(settings: Mapping[str, Any]) -> mo.Html:
    """How far outputs of a token at a time and of the whole sequence at once differ, for the model
    of the settings, in each dtype."""
    sizes = {name: settings[name] for name in ("n_layers", "n_heads", "head_dim")}
    try:
        configs = {way: GenerationConfig(way=way, **sizes) for way in ("recurrent", "cache")}
    except ValueError as error:
        return mo.callout(str(error), kind="warn")
    lines = []
    for way, config in configs.items():
        for dtype, found in in_passing_thread(_agreement, config).items():
            text = f"{found.absolute:.1e} | {found.relative:.1e}"
            lines.append(f"| {WAY_LABELS[way]} | {dtype} | {text} |")
    head = "| against all at once | dtype | largest difference | of the largest output |"
    return mo.md(f"{head}\n|:---|:---|---:|---:|\n" + "\n".join(lines))


def _agreement(config: GenerationConfig) -> dict[str, Difference]:
    """In a thread that ends with it: with one core, as two take up to 60 times as long for products
    this small where other programs want them too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return agreement(config)
    finally:
        torch.set_num_threads(before)  # threads that begin later would have one as well
