"""Charts of Linformer's cost, and of what it sees."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

import altair as alt
import polars as pl
from torch import Tensor

from replib.claims.claim import Figure, Rows
from replib.claims.common import Samples, Variant, judged_linear, name_of
from replib.claims.linformer.grid import JUDGED_K, KS
from replib.claims.linformer.judge import JUDGED, SOFTMAX, WORK, curves, ratio_at
from replib.claims.linformer.stack import operations
from replib.lab.run import config_of, variant_of
from replib.lab.store import Row
from replib.lab.verdict import by_device, device_names
from replib.pages import style, tidy
from replib.pages.costs import cost_chart
from replib.published import published

MANY, FEW = f"k{KS[-1]}", f"k{KS[0]}"
COMPONENTS = {
    "attention": "#C45BA0",
    "projections": "#8C7A00",
    "feed-forward": "#2380C4",
    "output layer": style.NEUTRAL,
}
TIMED = {  # the parts that can be told apart by what is timed
    "attention": "#C45BA0",
    "rest of the layers": "#2380C4",
    "embedding and output layer": style.NEUTRAL,
}
LOW_RANK = {
    "share of singular values": style.NEUTRAL,
    "best of rank k": "#2380C4",
    "random projection": "#C45BA0",
}
OWN_COLOURS = ("#2380C4", "#C45BA0", "#8C7A00", "#009E73")
THEIRS = ("#7A7A7A", "#A8705A")
SOURCES = {"recorded": [1, 0], "published": [4, 4]}


def figures(rows: Rows) -> Iterator[tuple[str, Figure]]:
    """Time and memory against N, and how many times faster than softmax."""
    alone = rows["linformer"]
    some = shown(alone)
    costs = tidy.pooled(tidy.costs(some))
    for name, y, title in (
        ("linformer_time", "time", "Time of attention that is not causal"),
        ("linformer_memory", "memory", "Memory of attention that is not causal"),
    ):
        chart = cost_chart(costs, y=y, title=f"{title}, per sequence")
        yield name, Figure(chart=chart, experiment="linformer", rows=some)
    chart = saved_chart(alone, rows["linformer_stack"])
    yield "linformer_saved", Figure(chart=chart, experiment="linformer", rows=alone, published=True)


def shown(rows: Sequence[Row], work: str = WORK) -> list[Row]:
    """Of rows those with as many tokens at every N, of the fastest linear attention, of both forms
    of softmax, and of the fewest and the most slots."""
    rows = [row for row in rows if config_of(row).work == work]
    tokens = max((config_of(row).seq_len * config_of(row).batch_size for row in rows), default=0)
    rows = [r for r in rows if config_of(r).seq_len * config_of(r).batch_size == tokens]
    kept = {("linear", judged_linear(rows)), *(("softmax", form) for form in SOFTMAX)}
    kept |= {("linformer", slots) for slots in (FEW, MANY)}
    return [row for row in rows if variant_of(row) in kept]


def saved_chart(alone: Sequence[Row], stacks: Sequence[Row]) -> alt.LayerChart:
    """How many times faster than softmax Linformer of k = 128 is: recorded here, and published."""
    own = {f"attention, {form} softmax": _ratios(alone, form) for form in SOFTMAX}
    for part, name in (("encoder", "encoder"), ("translator", "encoder-decoder")):
        some = [row for row in stacks if config_of(row).part == part]
        own[f"{name}, fused softmax"] = _ratios(some, "fused")
    own = {name: points for name, points in own.items() if points}
    paper = published()["linformer_paper"]["time_saved"]
    times = published()["linformer_project"]["perf_ms"]
    of_work = zip(times["vanilla"], times["lin_k128"], strict=True)
    theirs = {
        "paper, table 3": {int(n): x[0] for n, x in paper.items() if int(n) <= 2**14},
        "Linformer work, encoder-decoder": {
            2 ** (8 + i): a / b for i, (a, b) in enumerate(of_work)
        },
    }
    lines = [
        {"seq_len": n, "value": value, "series": name, "source": source}
        for source, series in (("recorded", own), ("published", theirs))
        for name, points in series.items()
        for n, value in points.items()
    ]
    frame = pl.DataFrame(lines)
    colours = dict(zip(own, OWN_COLOURS, strict=False)) | dict(zip(theirs, THEIRS, strict=True))
    x, y = style.log_domain(frame["seq_len"]), style.log_domain(frame["value"], 1.15)
    base = alt.Chart(style.records_of(frame)).encode(
        style.length_axis(x),
        style.log_axis("value", "times faster than softmax", y),
        style.looks(alt.Color, "series:N", colours, legend=style.legend(colours, 3)),
        style.looks(alt.StrokeDash, "source:N", SOURCES, legend=None),
        tooltip=["series", alt.Tooltip("seq_len", title="N"), alt.Tooltip("value", format=".3~g")],
    )
    devices = f" ({device_names(alone)})" * bool(alone)
    return style.finished(
        alt.layer(base.mark_line(), base.mark_point(filled=True, size=45), style.rule_at(1)),
        f"How many times faster than softmax (k = {JUDGED_K})",
        f"solid: recorded here{devices}; dashed: published",
        "The time of softmax attention over that of Linformer against N, on log axes.",
    )


def _times(rows: Sequence[Row]) -> dict[Variant, Samples]:
    """The times that are judged: those with as many tokens at every N."""
    return next(iter(curves(rows).values()), {})


def _ratios(rows: Sequence[Row], form: str) -> dict[int, float]:
    """Softmax's time over that of Linformer at each N."""
    times = _times(rows)
    found = {
        n: ratio_at(times, ("softmax", form), JUDGED, n) for n in sorted(times.get(JUDGED, {}))
    }
    return {n: one.value for n, one in found.items() if one}


def operations_chart(seq_len: int, k: int, vocab_size: int) -> alt.LayerChart:
    """The multiplications of a token of an encoder by component, for each mechanism."""
    parts = {}
    for attention in ("softmax", "linear", "linformer"):
        needs = operations(attention, seq_len, k=k, vocab_size=vocab_size)
        values = needs.attention, needs.projections, needs.feedforward, needs.output
        parts[attention] = [value / 1e6 for value in values]
    said = "attention is {} of the multiplications with softmax, {} with Linformer"
    return _parts_chart(
        parts,
        COMPONENTS,
        "millions of multiplications a token",
        f"At N = {seq_len} {said}",
        f"counted; 6 layers of 512, 8 heads, of the Linformer work; {vocab_size:,} tokens, k = {k}",
    )


def time_parts_chart(alone: Sequence[Row], stacks: Sequence[Row]) -> alt.LayerChart | None:
    """The time of a token of an encoder by what takes it, for each mechanism, at the longest N of
    all that is needed: attention alone, a layer, and the encoder; None where that is not recorded.
    What a layer takes beyond its attention, and an encoder beyond its layers, are differences.
    Of several devices the first is shown."""
    device = next(iter(by_device(stacks)), None)
    alone, stacks = (by_device(rows).get(device, []) for rows in (alone, stacks))
    encoders = _of_part(stacks, "encoder")
    variants = [("softmax", "fused"), ("linear", judged_linear(encoders)), JUDGED]
    timed = [_token_us(some) for some in (shown(alone), _of_part(stacks, "layer"), encoders)]
    lengths = set.intersection(*({n for _, n in times} for times in timed))
    while lengths and not all((v, max(lengths)) in times for v in variants for times in timed):
        lengths.remove(max(lengths))
    if not lengths:
        return None
    n, n_layers, parts = max(lengths), config_of(encoders[0]).n_layers, {}
    for variant in variants:
        attention, layer, encoder = (times[variant, n] for times in timed)
        layers = n_layers * attention, n_layers * (layer - attention)
        rest = max(0.0, encoder - n_layers * layer)
        parts[name_of(variant)] = [layers[0], max(0.0, layers[1]), rest]
    how = f"{device_names(encoders)}; medians; attention is timed alone, the rest are differences"
    said = "attention takes {} of the time with fused softmax, {} with Linformer"
    return _parts_chart(parts, TIMED, "time (µs a token)", f"At N = {n} {said}", how)


def _of_part(stacks: Sequence[Row], part: str) -> list[Row]:
    return [row for row in stacks if config_of(row).part == part and row["outcome"] == "ok"]


def _token_us(rows: Sequence[Row]) -> dict[tuple, float]:
    """The median time of a token, by mechanism and N, of rows with as many tokens at every N."""
    n_tokens = max((config_of(row).seq_len * config_of(row).batch_size for row in rows), default=0)
    return {
        (variant, n): 1e3 * median(samples) / n_tokens
        for variant, lengths in _times(rows).items()
        for n, samples in lengths.items()
    }


def _parts_chart(
    parts: Mapping[str, Sequence[float]],
    colours: Mapping[str, str],
    axis: str,
    title: str,
    subtitle: str,
) -> alt.LayerChart:
    """A bar a mechanism, of its parts. The title has a place for the first part's share with the
    first mechanism, and one for that with the last."""
    first, *_, last = (values[0] / sum(values) for values in parts.values())
    lines = [
        {"attention": name, "component": part, "order": i}
        | {"value": value, "share": value / sum(values)}
        for name, values in parts.items()
        for i, (part, value) in enumerate(zip(colours, values, strict=True))
    ]
    shown = [alt.Tooltip("value", title=axis, format=".3~g"), alt.Tooltip("share", format=".1%")]
    bars = (
        alt.Chart(style.records_of(pl.DataFrame(lines)))
        .mark_bar()
        .encode(
            alt.X("value:Q", title=axis),
            alt.Y("attention:N", title=None, sort=list(parts)),
            style.looks(alt.Color, "component:N", colours, legend=style.legend(colours, 4)),
            alt.Order("order:Q"),
            tooltip=["attention", "component", *shown],
        )
    )
    return style.finished(
        alt.layer(bars),
        title.format(f"{first:z.0%}", f"{last:z.1%}"),
        subtitle,
        f"{axis} by component, a bar a mechanism.",
        120,
    )


def matrix_chart(
    matrix: Tensor,
    *,
    title: str,
    subtitle: str = "",
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    x_title: str = "",
    y_title: str = "",
    colour: str = "#C45BA0",
) -> alt.LayerChart:
    """A heat map of a matrix; where it has values of both signs, those below 0 are orange."""
    n, m = matrix.shape
    lines = [
        {"row": i, "column": j, "value": value}
        for i, values in enumerate(matrix.tolist())
        for j, value in enumerate(values)
    ]
    frame = style.records_of(pl.DataFrame(lines))
    most = max(float(matrix.abs().max()), 1e-9)
    signed = float(matrix.min()) < -1e-6 * most
    scale = alt.Scale(domain=[-most, 0, most], range=["#D55E00", "transparent", colour])
    if not signed:
        scale = alt.Scale(domain=[0, most], range=["transparent", colour])

    def axis(channel: type, field: str, names: Sequence[str] | None, title: str, **options):
        labels = alt.Undefined
        if names is not None:
            array = "[" + ",".join(repr(name) for name in names) + "]"
            labels = f"{array}[datum.value]"
        shown = alt.Axis(labelExpr=labels, labelAngle=options.pop("angle", 0), ticks=False)
        if names is None and max(n, m) > 40:
            shown = alt.Axis(labels=False, ticks=False)
        return channel(f"{field}:O", title=title or None, axis=shown)

    chart = (
        alt.Chart(frame)
        .mark_rect(stroke=style.NEUTRAL, strokeWidth=0.3 if n * m < 1500 else 0)
        .encode(
            axis(alt.X, "column", columns, x_title, angle=-50 if columns else 0),
            axis(alt.Y, "row", rows, y_title),
            alt.Color("value:Q", scale=scale, legend=None),
            tooltip=["row", "column", alt.Tooltip("value", format=".3~g")],
        )
    )
    height = min(420, max(70, 22 * n))
    return style.finished(alt.layer(chart), title, subtitle, "A heat map of a matrix.", height)


def spectrum_chart(cumulative: Tensor, errors: Sequence[dict]) -> alt.LayerChart:
    """The share of singular values and the errors of low rank, against k."""
    share = [
        {"k": i + 1, "how": "share of singular values", "error": value}
        for i, value in enumerate(cumulative.tolist())
    ]
    frame = style.records_of(pl.DataFrame([*share, *errors]))
    base = alt.Chart(frame).encode(
        alt.X("k:Q", title="k", axis=alt.Axis(tickMinStep=1, grid=False)),
        alt.Y("error:Q", title="share, or relative error"),
        style.looks(alt.Color, "how:N", LOW_RANK, legend=style.legend(LOW_RANK, 3)),
        tooltip=["how", "k", alt.Tooltip("error", format=".3~g")],
    )
    return style.finished(
        alt.layer(base.mark_line(), base.mark_point(filled=True, size=25)),
        "How much of an attention matrix k dimensions hold",
        "best of rank k: by singular values; random projection: as in the paper's theorem 1",
        "The share of singular values and the error of two approximations against k.",
        220,
    )
