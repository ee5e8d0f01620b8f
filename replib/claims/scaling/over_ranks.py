"""What page 2 shows of sequences that lie over several ranks.

N sequence length, W ranks; S are the bytes of a layer's state, of a batch of one in float32.
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import marimo as mo
import numpy as np
import polars as pl

from replib.lab import over_ranks
from replib.lab.over_ranks import AttentionOverRanks, Compared, PartTimes
from replib.lab.text import markdown_table
from replib.lab.verdict import three_digits
from replib.pages import code, layout, style
from replib.parallel import WAYS, output, run_processes
from replib.parallel.cost import SCHEMES, Link, same_bytes_at, seconds, sent_bytes
from replib.published import published

COLOURS = {
    "ring": style.PALETTE["linear"],
    "all-gather": style.PALETTE["performer"],
    "all-scan": style.PALETTE["dpfp"],
    "softmax ring": style.PALETTE["softmax"],
}
NAMES = {
    "ring": "ring (LASP)",
    "all-gather": "all-gather (LASP-2)",
    "all-scan": "all-scan (ZeCO)",
    "softmax ring": "ring of softmax attention",
}
PHASES = {
    "its own part's state": style.PALETTE["linear"],
    "waiting for earlier parts": style.NEUTRAL,
    "its output": style.PALETTE["delta"],
}
TEXT = """
W devices, *ranks*, hold N / W tokens each. No rank needs the keys and values of those before it:
their state has it all, and is as large whatever N is. Ranks pass it on one after the other
(*ring*), to all at once (*all-gather*), or in blocks (*all-scan*). Softmax attention has to send
keys and values.
"""
LENGTHS = [2**e for e in range(10, 23)]
MOST_MEASURED, REPEATS = 4096, 3  # tokens and calls: most of the time two processes start
PROCESSES = 2
MEASURE_WITHIN_S = 240.0
BUSY = 1.25  # times as long by the clock as of the processor: it had other work


def inputs() -> mo.ui.dictionary:
    """The controls: W, N, the attention, and the link between ranks."""

    def slider(label: str, steps: Sequence[float], value: float):
        return mo.ui.slider(steps=list(steps), value=value, label=label, show_value=True)

    return mo.ui.dictionary(
        {
            "ranks": slider("ranks W", [2**e for e in range(1, 9)], 8),
            "seq_len": slider("N", LENGTHS, 65_536),
            "latency_us": slider("latency (µs)", [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000], 20),
            "gb_per_s": slider("bandwidth (GB/s)", [0.1, 0.3, 1, 3, 10, 30, 100, 300], 10),
            "attention": mo.ui.radio(["linear", "delta"], value="linear", inline=True),
        }
    )


def measure_button():
    """Starts what `measured` does."""
    return mo.ui.run_button(label="Measure on this machine")


def _run(values: Mapping[str, Any]) -> AttentionOverRanks:
    return AttentionOverRanks(attention=values["attention"], seq_len=values["seq_len"])


def _link(values: Mapping[str, Any]) -> Link:
    return Link(latency_s=values["latency_us"] / 1e6, bandwidth=values["gb_per_s"] * 1e9)


def section(
    elements: mo.ui.dictionary, button, found: "Measured | None", shown_tab: dict[str, str]
) -> mo.Html:
    """What is folded: the question, the controls, and the charts that follow them. The tab that a
    reader chose stays, as `shown_tab` keeps it."""
    values = elements.value
    tabs = {
        "What travels": mo.vstack([traffic_chart(values), traffic_table(values)]),
        "Rank by rank": timeline(values, found),
        "Two processes": two_processes(found),
        "Published": published_chart(published()["sequence_parallelism"]["zeco2025"]),
        "In code": code.source(output),
    }
    shown = layout.inputs(*elements.elements.values(), button)
    chosen = mo.ui.tabs(
        tabs,
        value=shown_tab.get("tab"),
        on_change=lambda name: shown_tab.update(tab=name),
    )
    return mo.vstack([mo.md(TEXT), shown, chosen])


def traffic_chart(values: Mapping[str, Any]) -> alt.LayerChart:
    """What all ranks send of a layer in a forward pass against N."""
    layer, size, n = _run(values).layer, values["ranks"], values["seq_len"]
    schemes = ("ring", "all-gather", "softmax ring")
    lines = [
        {"seq_len": one, "scheme": NAMES[s], "value": sent_bytes(s, layer, size, one) / 1e6}
        for s in schemes
        for one in LENGTHS
    ]
    frame = pl.DataFrame(lines)
    domain = style.log_domain(frame["value"], margin=1.3)
    base = alt.Chart(style.records_of(frame)).encode(
        style.length_axis([LENGTHS[0], LENGTHS[-1]]),
        style.log_axis("value", "MB that all ranks send, a layer, one way", domain),
        _scheme_colour(schemes),
        tooltip=["scheme", alt.Tooltip("seq_len", title="N"), alt.Tooltip("value", title="MB")],
    )
    here = base.mark_point(filled=True, size=80).transform_filter(f"datum.seq_len == {n}")
    ring, softmax = (_size(sent_bytes(s, layer, size, n)) for s in ("ring", "softmax ring"))
    return style.finished(
        alt.layer(base.mark_line(strokeWidth=2), here),
        f"States: {ring} at every N. Keys and values of softmax attention: {softmax} at N = {n:,}",
        f"{size} ranks; {layer.n_heads} heads of {layer.value_dim}, batch 1, float32, forward; "
        f"the same from N = {same_bytes_at(layer, size):z,.0f} on",
        "Bytes sent against N on log axes, a line a way to communicate.",
        240,
    )


def _scheme_colour(schemes: Sequence[str]) -> alt.Color:
    names = [NAMES[s] for s in schemes]
    scale = alt.Scale(domain=names, range=[COLOURS[s] for s in schemes])
    return alt.Color("scheme:N", title=None, scale=scale, legend=style.legend(names, 3))


def _size(n_bytes: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= factor:
            return f"{three_digits(n_bytes / factor)} {unit}"
    return f"{n_bytes:z.0f} bytes"


def traffic_table(values: Mapping[str, Any]) -> mo.Html:
    """What is sent in a forward pass, and how long it takes on the link."""
    layer, size, n = _run(values).layer, values["ranks"], values["seq_len"]
    lines = [
        (
            NAMES[s],
            _size(sent_bytes(s, layer, size, n)),
            f"{three_digits(1e3 * seconds(s, layer, size, _link(values), n))} ms",
        )
        for s in SCHEMES
    ]
    return mo.md(markdown_table(("a layer, one way", "sent", "time on this link"), lines))


def timeline(values: Mapping[str, Any], found: "Measured | None") -> Any:
    """When each rank does what, of a ring and of an all-gather: its part as it was measured on
    virtual ranks, what lies between as the link has it."""
    part = found.ranks[0].part if found else _recorded_part(values["attention"])
    if part is None:
        return mo.md("Nothing has been measured yet: press *Measure on this machine*.")
    run, size = _run(values), values["ranks"]
    n = values["seq_len"] / size
    local_ms, output_ms = (1e3 * x * n for x in (part.local_s, part.output_s))
    rows, ends = [], {}
    for way in WAYS:
        for rank in range(size):
            waits_ms = 1e3 * _waits_s(way, run, rank, size, _link(values))
            cuts = np.cumsum([0, local_ms, waits_ms, output_ms]).tolist()
            for i, phase in enumerate(PHASES):
                line = {"way": NAMES[way], "rank": rank + 1, "phase": phase}
                rows.append(line | {"start": cuts[i], "end": cuts[i + 1]})
            ends[way] = cuts[-1]
    return _timeline_chart(rows, ends, size * output_ms, values, found is not None)


def _waits_s(way: str, run: AttentionOverRanks, rank: int, size: int, link: Link) -> float:
    """Seconds from a rank's own state to that before its part: of a ring as many hops as there are
    ranks before it, of an all-gather all of it."""
    return seconds(way, run.layer, rank + 1 if way == "ring" else size, link)


def _timeline_chart(
    rows: Sequence[Mapping[str, Any]],
    ends: Mapping[str, float],
    alone_ms: float,
    values: Mapping[str, Any],
    here: bool,
) -> alt.LayerChart:
    scale = alt.Scale(domain=list(PHASES), range=list(PHASES.values()))
    bars = (
        alt.Chart(style.records_of(pl.DataFrame(rows)))
        .mark_bar()
        .encode(
            alt.X("start:Q", title="ms from the start of a layer, forward"),
            alt.X2("end:Q"),
            alt.Y("rank:O", title="rank", axis=alt.Axis(labelOverlap=True)),
            alt.Color("phase:N", title=None, scale=scale, legend=style.legend(PHASES, 3)),
            alt.YOffset("way:N", sort=[NAMES[w] for w in ends]),
            tooltip=["way", "rank", "phase", alt.Tooltip("end", format=".3~g", title="until (ms)")],
        )
    )
    said = " and ".join(f"{three_digits(ms)} ms by {NAMES[way]}" for way, ms in ends.items())
    where = "measured here" if here else "recorded"
    return style.finished(
        alt.layer(bars),
        f"The last rank has its output after {said}; one device needs {three_digits(alone_ms)} ms",
        f"upper bar: {NAMES['ring']}, lower: {NAMES['all-gather']}; compute of a part: {where}, on "
        f"virtual ranks, one thread; link: {values['latency_us']} µs, {values['gb_per_s']} GB/s",
        "When each rank computes and waits, a bar a phase.",
        style.HEIGHT,
    )


def _recorded_part(attention: str) -> PartTimes | None:
    """Seconds a token, as recorded."""
    part = (over_ranks.recorded() or {}).get("parts", {}).get(attention)
    return part and PartTimes(local_s=part["local_s"], output_s=part["output_s"])


@dataclass(frozen=True)
class Measured:
    """What was measured on this machine of one attention, by each of two processes."""

    run: AttentionOverRanks
    ranks: list[Compared]


_MEASURED: dict[str, Measured] = {}


def measured(values: Mapping[str, Any], now: bool) -> Measured | None:
    """What was measured last of the attention chosen; `now`, first, it is measured anew, at up to
    MOST_MEASURED tokens: two processes, and W virtual ranks."""
    name = values["attention"]
    if now:
        n = min(values["seq_len"], MOST_MEASURED)
        run = AttentionOverRanks(attention=name, seq_len=n, n_repeats=REPEATS)
        arguments = run, tuple(WAYS), values["ranks"]
        try:
            with mo.status.spinner("Two processes, then virtual ranks"):
                _MEASURED[name] = Measured(run, _of_processes(arguments))
        except (RuntimeError, TimeoutError) as error:
            mo.status.toast("Not measured", html.escape(str(error)[-300:]), kind="danger")
    return _MEASURED.get(name)


def _of_processes(arguments: tuple) -> list[Compared]:
    options = {"timeout_s": MEASURE_WITHIN_S}
    return run_processes(over_ranks.of_this_part, PROCESSES, *arguments, **options)


def two_processes(found: Measured | None) -> mo.Html:
    """What training over two processes took, as recorded, and what attention took here."""
    recorded = over_ranks.recorded()
    parts = [mo.md(recorded_text(recorded))] if recorded else []
    if recorded:
        parts.append(mo.md(over_ranks.recorded_table(recorded)))
    if found:
        parts.append(mo.md(measured_text(found)))
    return mo.vstack(
        parts or [mo.md("Nothing is recorded: `python -m benchmarks.parallel --save`")]
    )


def recorded_text(recorded: Mapping[str, Any]) -> str:
    """That two processes hold twice the sequence at the memory of one, and how long they take."""

    def most(n: int, way: str | None, *keys: str, threads: int = 1) -> float:
        case = n, way, threads
        (run,) = (r for r in recorded["runs"] if (r["seq_len"], r["way"], r["threads"]) == case)
        return max(sum(one[key] for key in keys) for one in run["ranks"])

    n = recorded["run"]["seq_len"]
    half, whole, each = (
        most(*case, "tensor_bytes") for case in ((n // 2, None), (n, None), (n, "ring"))
    )
    alone_s, cpu_s = (most(n, None, key) for key in ("step_s", "cpu_s"))
    together_s, both_s = most(n, "ring", "step_s"), most(n, None, "step_s", threads=2)
    share = most(n, "ring", "scan_s", "gradient_s") / together_s
    busy = " The machine was busy: times by the clock are too long." * (alone_s > BUSY * cpu_s)
    return (
        f"A training step on a sequence of N = {n:,} takes **{_size(each)}** in each of two "
        f"processes. One takes {_size(half)} for {n // 2:,} tokens, {_size(whole)} for {n:,}. Two "
        f"take {together_s:z.2f} s, {share:z.0%} of it to communicate, where one takes "
        f"{alone_s:z.2f} s, {both_s:z.2f} s with both cores: the gain is memory. "
        f"Recorded on {recorded['provenance']['device_name']}.{busy}"
    )


def measured_text(found: Measured) -> str:
    """The time of two processes against one, and the share of communication."""
    run = found.run
    alone_s = found.ranks[0].alone.total_s
    lines = [("one process", f"{three_digits(1e3 * alone_s)} ms", "–", "–", "–")]
    for way in WAYS:
        each = [rank.ways[way] for rank in found.ranks]
        total_s, scan_s = (max(getattr(x, k) for x in each) for k in ("total_s", "scan_s"))
        sent, formula = sum(x.sent_bytes for x in each), 2 * sent_bytes(way, run.layer, PROCESSES)
        lines.append(
            (
                f"two processes, {NAMES[way]}",
                f"{three_digits(1e3 * total_s)} ms",
                f"{scan_s / total_s:z.0%}",
                f"{sent:,}",
                f"{formula:,}",
            )
        )
    head = ("attention, forward and backward", "time", "communication", "bytes sent", "formula")
    said = (
        f"Measured here: N = {run.seq_len:,} ({MOST_MEASURED:,} at most), {run.attention}, one "
        "thread each; other programs lengthen what waits for both.\n\n"
    )
    return said + markdown_table(head, lines)


def fitted_line(ranks: Sequence[int], times: Sequence[float]) -> tuple[float, float, float]:
    """t = a + b (W - 1) with the least relative error, as the formulas of a ring, an all-gather and
    an all-scan have it: a, b, and the largest relative departure."""
    t, hops = np.asarray(times, float), np.asarray(ranks, float) - 1
    columns = np.stack([1 / t, hops / t], axis=1)
    (a, b), *_ = np.linalg.lstsq(columns, np.ones_like(t), rcond=None)
    return float(a), float(b), float(np.abs((a + b * hops) / t - 1).max())


def published_chart(zeco: Mapping[str, Any]) -> alt.LayerChart:
    """Published times against W, each with the line that its formula allows."""
    points, lines, worst = [], [], {}
    schemes = {"LASP": "ring", "LASP-2": "all-gather", "ZeCO": "all-scan"}
    for block, what in (("collective_ms", "messages alone"), ("operator_ms", "attention")):
        gpus = zeco[block]["gpus"]
        for name, times in zeco[block].items():
            scheme = schemes.get(name, name)
            if scheme not in NAMES:
                continue
            a, b, departure = fitted_line(gpus, times)
            worst[f"{name}, {what}"] = departure
            common = {"scheme": NAMES[scheme], "what": what}
            points += [common | {"w": w, "ms": t} for w, t in zip(gpus, times, strict=True)]
            between = np.geomspace(gpus[0], gpus[-1], 40).tolist()
            lines += [common | {"w": w, "ms": a + b * (w - 1)} for w in between]
    return _published_chart(points, lines, worst)


def _published_chart(points: list, lines: list, worst: Mapping[str, float]) -> alt.LayerChart:
    domain = style.log_domain([row["ms"] for row in points], margin=1.3)
    x = alt.X(
        "w:Q",
        title="GPUs (ranks W)",
        scale=alt.Scale(type="log", base=2, domain=[7, 290], nice=False),
        axis=alt.Axis(values=[8, 16, 32, 64, 128, 256], grid=False),
    )
    shared = (x, style.log_axis("ms", "ms", domain), _scheme_colour(SCHEMES[:3]))
    of_points, of_lines = (alt.Chart(style.records_of(pl.DataFrame(r))) for r in (points, lines))
    fit = of_lines.mark_line(strokeWidth=1.5).encode(
        *shared, alt.StrokeDash("what:N", title=None, legend=style.legend(["messages alone"], 2))
    )
    marks = of_points.mark_point(filled=True, size=60).encode(
        *shared, tooltip=["scheme", "what", "w", "ms"]
    )
    least, most = min(worst.values()), max(worst.values())
    return style.finished(
        alt.layer(fit, marks),
        f"Published times grow as a line in W, as the formulas do, to {least:z.0%} to {most:z.0%}",
        "points: ZeCO's paper, by a secondary source, not confirmed; lines: a + b (W − 1), fitted",
        "Published times of communication and of attention against the number of GPUs, log axes.",
        260,
    )
