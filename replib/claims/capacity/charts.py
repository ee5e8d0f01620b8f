"""Associative retrieval as charts: the loss against the number of keys S, the keys solved, and the
losses of runs in training; and the frame that they are drawn from."""

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt
import polars as pl

from replib.claims.capacity.memories import (
    ENDED,
    GRID_STEP,
    MEMORIES,
    SOLVED_LOSS,
    keys_text,
    label,
    published_losses,
    threshold_of,
)
from replib.claims.claim import Figure, Rows
from replib.fast_weights import MemoryConfig, RetrievalConfig
from replib.lab.run import config_of
from replib.lab.statistics import Threshold
from replib.lab.store import Row
from replib.pages import style
from replib.pages.tidy import frame_of, origin
from replib.published import published

SERIES = dict(series=str, mechanism=str, attention=str, variant=str, n_features=int)
COLUMNS = SERIES | dict(setting=int, n_keys=int, value=float, low=float, high=float)
COLUMNS |= dict(n_seeds=int, n_solved=int, device=str, source=str)
HEAD_DIM = MemoryConfig().head_dim
# Where a run that has solved its task happened to end says little: drawn at the bottom edge.
LOSS_FLOOR = 1e-4
CHANCE = 0.5  # the loss of reading nothing
HEADROOM = 4.0  # free space above the largest loss, as a factor
MOST_SHOWN = 6  # series that are not faint at first
FAINT = 0.15
SETTINGS = {1: "Every key written once", 2: "Keys come back with new values"}
LOSS_TITLE = "loss, 0.5·Σ squared error"
# Of features that no size tells apart, and, with the rules delta and fwm, of those beside DPFP.
DASHES = {"linear": [10, 3], "relu": [10, 3, 2, 3], "tanh": [2, 3]}
RULE_DASHES = {"linear": [2, 3], "performer": [10, 3, 2, 3]}
TOOLTIP = {"series": "memory", "n_keys": "keys S", "value": "loss (median)", "low": "least"}
TOOLTIP |= {"high": "largest", "n_seeds": "seeds", "n_solved": "of them solved"}
TOOLTIP |= {"n_features": "features R", "source": "source", "device": "device"}


def retrieval_frame(rows: Sequence[Row]) -> pl.DataFrame:
    """One line a memory, S, device and source, and the published ones: COLUMNS.

    `value`, `low` and `high` are the median, least and largest loss over seeds, each run's best;
    null where there is none. Recorded runs that are evaluated on half the length are for the cards
    alone. Of runs whose settings differ otherwise, such as their steps, the later ones count.
    `setting` is 1 (every key once) or 2 (keys come back). `mechanism` is what a series is coloured
    by.
    """
    runs: dict[tuple, tuple[RetrievalConfig, dict[int, float]]] = {}
    for row in rows:
        config = config_of(row)
        if row["outcome"] not in ENDED or config.eval_half_length:
            continue
        key = (
            2 if config.task.with_replacement else 1,
            config.model,
            config.task.n_keys,
            row["provenance"]["device_name"],
            "live" if row["scale"] == "live" else "recorded",
        )
        if key not in runs or runs[key][0] != config:
            runs[key] = config, {}
        loss = row["summary"].get("reported_loss")
        runs[key][1][row["seed"]] = math.inf if loss is None else loss
    found = {key: list(losses.values()) for key, (_, losses) in runs.items()}
    for setting in (1, 2):
        logs = published_losses(published()["fastweights_logs"], f"setting{setting}")
        for name, losses in logs.items():
            for n_keys, loss in losses.items():
                found[setting, MEMORIES[name], n_keys, None, "published"] = [loss]
    lines = [
        _series_of(memory, rule=setting == 2)
        | {"setting": setting, "n_keys": n_keys, "device": device, "source": source}
        | {"value": statistics.median(losses), "low": min(losses), "high": max(losses)}
        | {"n_seeds": len(losses), "n_solved": sum(loss <= SOLVED_LOSS for loss in losses)}
        for (setting, memory, n_keys, device, source), losses in found.items()
    ]
    return frame_of(lines, COLUMNS).sort("setting", "n_keys", maintain_order=True)


def _series_of(memory: MemoryConfig, *, rule: bool) -> dict[str, Any]:
    """What a memory is called, coloured and drawn by."""
    series = label(memory, rule=rule or memory.update_rule != "sum")
    if memory.head_dim != HEAD_DIM:
        series += f", D = {memory.head_dim}"
    return {
        "series": series,
        "mechanism": memory.attention if memory.update_rule == "sum" else memory.update_rule,
        "attention": memory.attention,
        "variant": memory.variant[1],
        "n_features": memory.n_features,
    }


def loss_chart(frame: pl.DataFrame, setting: int) -> alt.LayerChart:
    """Loss against S on a log axis, a line a memory (and in setting 2 update rule), of a
    `retrieval_frame`."""
    what = SETTINGS[setting]
    frame = frame.filter(pl.col("setting") == setting)
    if frame.is_empty():
        return style.no_data(what)
    series = _series(frame)
    columns = {"drawn": "value", "least": "low", "most": "high"}
    drawn = style.records_of(frame.sort("n_keys")).with_columns(
        **{name: pl.col(of).clip(lower_bound=LOSS_FLOOR) for name, of in columns.items()}
    )
    y_domain = style.log_domain([LOSS_FLOOR, CHANCE, *drawn["most"], *drawn["drawn"]])
    y_domain = [y_domain[0] / 1.3, y_domain[1] * HEADROOM]
    last = math.ceil(max(drawn["n_keys"]) / GRID_STEP) * GRID_STEP
    first = [{"series": name} for name in list(_best_first(frame))[:MOST_SHOWN]]
    shown = alt.selection_point(name="shown_series", fields=["series"], value=first)
    colour, dash = _look_channels(series)
    x = alt.X(
        "n_keys:Q",
        title="number of keys S",
        scale=alt.Scale(domain=[0, last], nice=False),
        axis=alt.Axis(grid=False, tickCount=6, labelOverlap=True, labelSeparation=8),
    )
    base = alt.Chart(drawn).encode(
        x,
        style.log_axis("drawn", LOSS_TITLE, y_domain),
        colour,
        alt.Detail(["device:N", "source:N"]),
        opacity=style.faded(shown, hidden=FAINT),
        tooltip=[alt.Tooltip(name, title=title) for name, title in TOOLTIP.items()],
    )
    layers = [
        style.rule_at(SOLVED_LOSS),
        _beside("solved below", SOLVED_LOSS, "drawn", baseline="top", dy=3),
        *_marks(base, dash),
        *_most_keys(series, last, colour),
        _names(drawn, y_domain, colour, shown),
    ]
    return style.finished(
        alt.layer(*layers),
        _finding(frame, what),
        _subtitle(drawn, len(series)),
        f"{what}: loss against the number of keys S, a line a memory, log axis of losses, with a "
        f"line at {SOLVED_LOSS}, at and below which the task counts as solved; published runs as "
        "hollow marks.",
        style.TALL,
    )


def solved_chart(frame: pl.DataFrame) -> alt.LayerChart:
    """Setting 1: the S that half of the runs of each memory solve, here and published, with its
    95 % interval as a bar, and its number of features R as a tick, of a `retrieval_frame`."""
    frame = frame.filter(pl.col("setting") == 1)
    if frame.is_empty():
        return style.no_data("Keys solved")
    series, most = _series(frame), frame["n_keys"].max()
    lines = []
    for (name, source, device), some in frame.group_by(
        "series", "source", "device", maintain_order=True
    ):
        found = _solved(some)
        lines.append(
            {"series": name, "source": source, "device": device, "text": keys_text(found)}
            | {"solved": min(found.value, most), "low": found.low, "high": min(found.high, most)}
        )
    x = alt.X(
        "solved:Q",
        title="number of keys S that half of the runs solve",
        scale=alt.Scale(domain=[0, most], nice=False),
        axis=alt.Axis(grid=True, tickCount=6, labelOverlap=True),
    )
    y = alt.Y("series:N", title=None, sort=series["series"].to_list())
    base = alt.Chart(style.records_of(pl.DataFrame(lines, infer_schema_length=None))).encode(
        x,
        y,
        alt.YOffset("source:N", scale=alt.Scale(domain=["published", "recorded", "live"])),
        _look_channels(series)[0],
        tooltip=["series:N", alt.Tooltip("text:N", title="keys solved"), "source:N", "device:N"],
    )
    held = _bounded(series, most).select("series", solved="n_features")
    ticks = alt.Chart(held).mark_tick(color=style.NEUTRAL, thickness=2, size=30)
    layers = [
        ticks.encode(x, y),
        base.mark_rule(strokeWidth=3, opacity=0.5).encode(alt.X("low:Q"), alt.X2("high:Q")),
        base.transform_filter("datum.source != 'published'").mark_point(filled=True, size=70),
        base.transform_filter(style.is_from("published")).mark_point(filled=False, size=70),
    ]
    return style.finished(
        alt.layer(*layers),
        _finding(frame, SETTINGS[1]),
        "filled: recorded here, hollow: published, of one run at each S; bars: 95 % intervals; "
        "ticks: R, the most keys that R features hold",
        "The number of keys S that half of the runs of each memory solve, recorded here and "
        "published, with 95 % intervals.",
    )


def training_chart(rows: Sequence[Row]) -> alt.LayerChart:
    """Loss over the steps of runs of one setting, a line a run, with a line where it counts as
    solved."""
    config = config_of(rows[0])
    lines = []
    for row in rows:
        memory = config_of(row).model
        series = _series_of(memory, rule=memory.attention != "softmax") | {"seed": row["seed"]}
        points = zip(row["curve"]["step"], row["curve"]["loss"], strict=True)
        lines += [series | {"step": step, "loss": loss} for step, loss in points]
    drawn = frame_of(lines, SERIES | dict(seed=int, step=int, loss=float))
    drawn = drawn.with_columns(value=pl.col("loss").clip(LOSS_FLOOR))
    colour, dash = _look_channels(_series(drawn), legend=True)
    domain = style.log_domain([LOSS_FLOOR, CHANCE, *drawn["value"]], 1.3)
    lines = alt.Chart(style.records_of(drawn)).encode(
        style.step_axis(),
        style.log_axis("value", LOSS_TITLE, domain),
        colour,
        dash,
        alt.Detail("seed:N"),
        tooltip=["series:N", "seed:Q", "step:Q", "loss:Q"],
    )
    layers = [
        style.rule_at(SOLVED_LOSS),
        style.rule_at(CHANCE),
        _beside("solved", SOLVED_LOSS, "value", baseline="bottom", dy=-2),
        _beside("nothing read", CHANCE, "value", baseline="bottom", dy=-2),
        lines.mark_line(strokeWidth=2, clip=True, point=True),
    ]
    return style.finished(
        alt.layer(*layers),
        f"This session: S = {config.task.n_keys}, D = {config.model.head_dim}",
        "; ".join(sorted({origin(row)["device"] for row in rows})),
        "Loss of the runs of this session against training steps, on a log axis.",
        style.TALL,
    )


def _solved(of_series: pl.DataFrame) -> Threshold:
    """The S that half of the runs of a series solve, on whatever devices."""
    counts = of_series.group_by("n_keys", maintain_order=True).agg(
        pl.col("n_solved", "n_seeds").sum()
    )
    return threshold_of(*(tuple(counts[name]) for name in ("n_keys", "n_solved", "n_seeds")))


def _best_first(frame: pl.DataFrame) -> dict[str, Threshold]:
    """What each series solves, the most first, and where that is the same the least losses."""
    found = {
        name: (_solved(some), some["value"].fill_null(math.inf).median())
        for (name,), some in frame.group_by("series", maintain_order=True)
    }
    names = sorted(found, key=lambda name: (-found[name][0].value, found[name][1]))
    return {name: found[name][0] for name in names}


def _series(frame: pl.DataFrame) -> pl.DataFrame:
    """One line a series, in the order of the palette and of feature sizes, with its look."""
    found = frame.unique("series", keep="first", maintain_order=True).select(*SERIES)
    order = style.ordered_attention(found["mechanism"])
    rows = sorted(
        found.to_dicts(),
        key=lambda row: (order.index(row["mechanism"]), row["n_features"] or 0, row["series"]),
    )
    for row in rows:
        row["colour"] = style.colour(row["mechanism"])
        named = DASHES | (RULE_DASHES if row["mechanism"] in ("delta", "fwm") else {})
        row["dash"] = named.get(row["attention"], style.DASHES.get(row["variant"], [1, 0]))
    return pl.DataFrame(rows, infer_schema_length=None)


def _look_channels(series: pl.DataFrame, legend: bool = False) -> list[alt.Color | alt.StrokeDash]:
    """Colour and dash of each series."""
    names = series["series"].to_list()
    shown = style.legend(names, 3) if legend else None
    return [
        style.looks(kind, "series:N", dict(zip(names, series[of], strict=True)), legend=shown)
        for kind, of in ((alt.Color, "colour"), (alt.StrokeDash, "dash"))
    ]


def _marks(base: alt.Chart, dash: alt.StrokeDash) -> list[alt.Chart]:
    """Recorded: a line, and a bar over seeds; this session: filled marks; published: hollow."""
    several = "datum.source != 'published' && datum.n_seeds > 1 && isValid(datum.high)"
    known = base.transform_filter("isValid(datum.value)")
    recorded, live, published = (
        known.transform_filter(style.is_from(name)) for name in ("recorded", "live", "published")
    )
    lines = base.encode(dash).transform_filter(style.is_from("recorded"))
    return [
        lines.mark_line(strokeWidth=2),
        base.transform_filter(several)
        .mark_rule(strokeWidth=2)
        .encode(alt.Y("least:Q"), alt.Y2("most:Q")),
        recorded.mark_point(filled=True, size=22),
        live.mark_point(filled=True, size=90),
        published.mark_point(filled=False, size=60, strokeWidth=1.5),
        base.transform_filter("!isValid(datum.value)")
        .mark_point(shape="cross", angle=45, filled=True, size=80)
        .encode(y=alt.value(style.TOP_PX + 14)),
    ]


def _beside(text: str, value: float, field: str, **place: Any) -> alt.Chart:
    """A text at the right end of a line, where curves are rarely."""
    return style.text_at(text, value, alt.Y(f"{field}:Q"), dx=-6, **place).encode(
        x=alt.value("width")
    )


def _bounded(series: pl.DataFrame, last: int) -> pl.DataFrame:
    """The series whose number of features R is within the chart, but FAVOR+, which is far from what
    R allows."""
    return series.filter((pl.col("n_features") < last) & (pl.col("attention") != "performer"))


def _most_keys(series: pl.DataFrame, last: int, colour: alt.Color) -> list[alt.Chart]:
    """Ticks at the top at S = R, as many keys as a memory of R features can tell apart."""
    held = _bounded(series, last).unique("n_features", keep="first", maintain_order=True)
    ticks = alt.Chart(held.select("series", "n_features")).encode(alt.X("n_features:Q"), colour)
    number = ticks.mark_text(align="center", baseline="top", fontSize=11)
    return [
        ticks.mark_rule(strokeWidth=2).encode(y=alt.value(0), y2=alt.value(8)),
        number.encode(y=alt.value(10), text="n_features:N"),
    ]


def _names(
    drawn: pl.DataFrame, y_domain: list[float], colour: alt.Color, shown: alt.Parameter
) -> alt.Chart:
    """The name of each series at its right end, to be clicked."""
    ends = (
        drawn.filter(pl.col("drawn").is_not_null())
        .sort(pl.col("source") == "published", "n_keys", descending=[True, False])
        .unique("series", keep="last", maintain_order=True)
        .select("series", value="drawn")
    )
    ends = style.spread_labels(ends, y_domain, style.TALL, 1)
    base = alt.Chart(ends.select("series", "label_px")).encode(
        alt.Y("label_px:Q", scale=None, axis=None),
        colour,
        x=alt.value("width"),
        opacity=style.faded(shown, hidden=2 * FAINT),
        text="series:N",
    )
    return base.mark_text(align="left", dx=8, cursor="pointer").add_params(shown)


def _finding(frame: pl.DataFrame, what: str) -> str:
    """What was recorded as a title, the most keys first."""
    recorded = frame.filter(pl.col("source") == "recorded")
    if recorded.is_empty():
        return f"{what}: published losses"
    told = [
        f"{name} {keys_text(one, interval=False)}"
        for name, one in _best_first(recorded).items()
        if one.value > 0
    ]
    return f"{what}; keys solved: {', '.join(told) or 'none'}"


def _subtitle(drawn: pl.DataFrame, n_series: int) -> str:
    parts = [
        style.devices_of(drawn),
        "lines: recorded, bars: least to largest of several seeds; filled: this session; hollow: "
        "published; ticks at the top: R, the most keys that R features hold",
    ]
    if drawn["value"].null_count():
        parts.append("crosses: diverged")
    if n_series > MOST_SHOWN:
        parts.append("faint: click a name to see it, twice anywhere for all")
    return "; ".join(filter(None, parts))


def figures(rows: Rows) -> Iterator[tuple[str, Figure]]:
    """Loss against the number of keys, and how many keys are solved, beside the published ones."""
    frame = retrieval_frame(rows["capacity"])
    shown = {"experiment": "capacity", "rows": rows["capacity"], "published": True}
    yield "capacity", Figure(chart=loss_chart(frame, 1), **shown)
    yield "capacity_solved", Figure(chart=solved_chart(frame), **shown)
