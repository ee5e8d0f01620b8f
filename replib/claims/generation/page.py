"""The marimo parts of the generation notebook."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import altair as alt
import marimo as mo
import torch

from replib.claims.generation import agreement, charts, judge
from replib.claims.generation.agreement import Agreement
from replib.claims.generation.grid import stream_jobs, token_jobs
from replib.device import resolve_device
from replib.lab.kept_models import Kept
from replib.lab.run import CostJob
from replib.lab.runs.generation import WAYS, GenerationConfig, state_bytes
from replib.lab.store import Row
from replib.lab.text import LEFT, RIGHT, markdown_table
from replib.lab.verdict import by_device, three_digits
from replib.pages import controls, frames
from replib.pages.live import in_passing_thread

WAY_LABELS = {
    "recurrent": "linear, recurrent state",
    "cache": "softmax, cache",
    "recompute": "softmax, recomputed",
}
EVERY = "Every comparison"


def live_jobs(values: Mapping[str, Any]) -> list[CostJob]:
    """The tokens that the controls ask for; a job a position."""
    names = ("batch_size", "n_layers", "n_heads", "head_dim")
    sizes = {name: values[name] for name in names}
    return token_jobs(values["seq_len"], values["repeats"], values["ways"], **sizes)


def live_stream_jobs(values: Mapping[str, Any]) -> list[CostJob]:
    """The two streams that the second panel asks for."""
    return stream_jobs(values["n_tokens"], min(values["n_tokens"], values["n_cached"]))


def rows_by_size(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of single tokens, by the name of their model, batch and device."""
    found: dict[str, list[Row]] = {}
    devices = by_device(rows)
    for device, some in devices.items():
        for size, members in judge.tokens_by_size(some).items():
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
    found = judge.speedups(rows)
    frame = frames.speedups(found, judge.published_speedups(paper))
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
    """Whether outputs of a token at a time, of the whole sequence at once and of everything again
    agree, for the model of the settings on their device, in each dtype."""
    sizes = {name: settings[name] for name in ("n_layers", "n_heads", "head_dim")}
    found: dict[str, list[Agreement]] = {}
    try:
        for way in ("recurrent", "cache"):
            config = GenerationConfig(way=way, **sizes)
            found[WAYS[way]] = _alone(agreement.of_sizes, config, settings["device"])
    except ValueError as error:
        return mo.callout(str(error), kind="warn")
    return _agreement(found, settings["device"])


def kept_agreement(models: Mapping[str, Kept], device: str | None = None) -> mo.Html:
    """The same of the trained models of the digits, and whether they draw the same digits."""
    if not models:
        return mo.md("*No trained model is there.*")
    found = {name: _alone(agreement.of_kept, kept, device) for name, kept in models.items()}
    drawn = []
    for name, kept in models.items():
        same, n = _alone(agreement.levels_drawn_alike, kept, device)
        drawn.append(
            f"{agreement.N_DRAWN} digits drawn by the {agreement.STEPS[name]} of {name} attention, "
            "and by computing everything again with the same random numbers: "
            f"{same} of {n} pixels are the same."
        )
    return mo.vstack([_agreement(found, device), mo.md("\n\n".join(drawn))])


def _agreement(found: Mapping[str, Sequence[Agreement]], device: str | None) -> mo.Html:
    """The farthest apart of each attention and dtype, and below them every comparison."""
    every = [(name, one) for name, some in found.items() for one in some]
    farthest: dict[tuple[str, str], Agreement] = {}
    for name, one in every:
        other = farthest.setdefault((name, one.dtype), one)
        if not one.found.relative <= other.found.relative:
            farthest[name, one.dtype] = one
    held = [one.holds for _, one in every].count(True)
    said = f"**{held} of {len(every)} comparisons agree**, on {resolve_device(device).type}. "
    said += "The farthest apart of each dtype:"
    shown = [(name, one) for (name, _), one in farthest.items()]
    names = [f"{name}: {one.way}; {one.other}" for name, one in every]
    details = _agreement_table("compared", names, [one for _, one in every])
    table = _agreement_table("attention", [name for name, _ in shown], [x for _, x in shown])
    return mo.vstack([mo.md(f"{said}\n\n{table}"), mo.accordion({EVERY: mo.md(details)})])


def _agreement_table(head: str, names: Sequence[str], some: Sequence[Agreement]) -> str:
    lines = []
    for name, one in zip(names, some, strict=True):
        numbers = map(_power, (one.found.absolute, one.found.relative, one.tolerance))
        said = "agree" if one.holds else "**differ**"
        lines.append([name, one.dtype, *numbers, said])
    columns = "dtype", "largest difference", "of the largest output", "tolerance", "result"
    return markdown_table([head, *columns], lines, [LEFT, *[RIGHT] * 3, LEFT])


def _power(value: float) -> str:
    return f"{value:z.1e}" if value else "0"


def _alone(function: Callable, *arguments) -> Any:
    """In a thread that ends with it: with one core, as two take up to 60 times as long for products
    this small where other programs want them too."""

    def with_one_thread():
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return function(*arguments)
        finally:
            torch.set_num_threads(before)  # threads that begin later would have one as well

    return in_passing_thread(with_one_thread)
