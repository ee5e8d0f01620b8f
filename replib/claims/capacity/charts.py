"""Charts of fast weight memories: loss of associative retrieval against the number of keys S."""

import math
from collections.abc import Iterator
from typing import Any

import altair as alt
import polars as pl

from replib.claims.capacity.frames import retrieval_frame
from replib.claims.capacity.memories import GRID_STEP, SOLVED_LOSS, keys_text, least_loss
from replib.claims.claim import Figure, Rows
from replib.fast_weights import RetrievalConfig
from replib.lab.statistics import Threshold, solved_threshold
from replib.pages import style
from replib.published import published

# Where a run that has solved its task happened to end says little: drawn at the bottom edge.
LOSS_FLOOR = 1e-4
CHANCE = 0.5  # the loss of reading nothing
HEADROOM = 4.0  # free space above the largest loss, as a factor
FIRST_SHOWN = {1: 200, 2: 100}  # the S that the slider starts at, of a setting
OURS = ("live", "recorded")
N_ASKED = RetrievalConfig.eval_queries
# Dash and shape of features that no implementation tells apart.
LOOKS = {
    "linear": ([10, 3], "triangle-right"),
    "relu": ([10, 3, 2, 3], "triangle-left"),
    "tanh": ([2, 3], "triangle-up"),
}
# Beside DPFP in the same colour.
DELTA_LOOKS = {
    "linear": ([2, 3], "triangle-right"),
    "performer": ([10, 3, 2, 3], "diamond"),
}


def capacity_chart(frame: pl.DataFrame, s: int | None = None) -> alt.LayerChart:
    """Setting 1, every key once: loss against S on a log axis, a line a memory.

    Args:
        frame: of `frames_memory.retrieval_frame`.
        s: the S whose losses stand beside the lines until the reader moves the slider.
    """
    return _chart(frame, 1, s, "Every key written once")


def update_rules_chart(frame: pl.DataFrame, s: int | None = None) -> alt.LayerChart:
    """Setting 2, keys come back with new values: loss against S on a log axis, a line a memory and
    update rule; arguments as `capacity_chart`."""
    return _chart(frame, 2, s, "Keys come back with new values")


def _chart(frame: pl.DataFrame, setting: int, s: int | None, what: str) -> alt.LayerChart:
    frame = frame.filter(pl.col("setting") == setting)
    if frame.is_empty():
        return style.no_data(what)
    series = _series(frame)
    drawn = style.records_of(frame.sort("n_keys")).with_columns(
        drawn=pl.col("value").clip(lower_bound=LOSS_FLOOR),
        least=pl.col("low").clip(lower_bound=LOSS_FLOOR),
        most=pl.col("high").clip(lower_bound=LOSS_FLOOR),
    )
    y_domain = style.log_domain([LOSS_FLOOR, CHANCE, *drawn["most"], *drawn["drawn"]])
    y_domain = [y_domain[0] / 1.3, y_domain[1] * HEADROOM]
    last = math.ceil(max(drawn["n_keys"]) / GRID_STEP) * GRID_STEP
    shown = alt.selection_point(name="shown_series", fields=["series"], bind="legend")
    slider = _slider(drawn, FIRST_SHOWN[setting] if s is None else s)
    colour, dash, shape = _look_channels(series)
    x = alt.X(
        "n_keys:Q",
        title="number of keys S",
        scale=alt.Scale(domain=[0, last], nice=False),
        axis=alt.Axis(grid=False, tickCount=6, labelOverlap=True, labelSeparation=8),
    )
    y = style.log_axis("drawn", "loss, 0.5·Σ squared error", y_domain)
    base = alt.Chart(drawn).encode(
        x,
        y,
        colour,
        alt.Detail(["device:N", "source:N"]),
        opacity=style.faded(shown),
        tooltip=_tooltip(),
    )
    layers = [
        style.rule_at("y", SOLVED_LOSS),
        _solved_text(),
        _rule_at_slider(last),
        *_marks(base, dash, shape, shown),
        *_most_keys(series, last, colour, shown),
        *([_least_losses(series, last, y, colour, shown)] if setting == 1 else []),
        *_labels(drawn, y_domain, colour, shown),
    ]
    return style.finished(
        alt.layer(*layers).add_params(slider),
        _finding(drawn, what),
        _subtitle(drawn, setting),
        f"{what}: loss against the number of keys S, a line a memory, log axis of losses, with a "
        f"line at {SOLVED_LOSS}, at and below which the task counts as solved; published runs as "
        "hollow marks.",
        style.TALL,
    )


def solved_chart(frame: pl.DataFrame) -> alt.LayerChart:
    """Setting 1: the S that half of the runs of each memory solve, here and published, with its
    95 % interval as a bar, and its number of features R as a tick.

    Args:
        frame: of `frames_memory.retrieval_frame`.
    """
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
    found = style.records_of(pl.DataFrame(lines, infer_schema_length=None))
    x = alt.X(
        "solved:Q",
        title="number of keys S that half of the runs solve",
        scale=alt.Scale(domain=[0, most], nice=False),
        axis=alt.Axis(grid=True, tickCount=6, labelOverlap=True),
    )
    order = alt.Scale(domain=["published", "recorded", "live"])
    base = alt.Chart(found).encode(
        x,
        alt.Y("series:N", title=None, sort=series["series"].to_list()),
        alt.YOffset("source:N", scale=order),
        alt.Color(
            "series:N",
            legend=None,
            scale=alt.Scale(domain=series["series"].to_list(), range=series["colour"].to_list()),
        ),
        tooltip=[
            alt.Tooltip("series:N", title="memory"),
            alt.Tooltip("text:N", title="keys solved"),
            alt.Tooltip("source:N"),
            alt.Tooltip("device:N"),
        ],
    )
    held = _bounded(series, most).select("series", solved="n_features")
    ticks = alt.Chart(held).mark_tick(color=style.NEUTRAL, thickness=2, size=30)
    layers = [
        ticks.encode(x, alt.Y("series:N", sort=series["series"].to_list())),
        base.mark_rule(strokeWidth=3, opacity=0.5).encode(alt.X("low:Q"), alt.X2("high:Q")),
        base.transform_filter("datum.source != 'published'").mark_point(filled=True, size=70),
        base.transform_filter(style.is_from("published")).mark_point(filled=False, size=70),
    ]
    recorded = frame.filter(pl.col("source") == "recorded")
    title = "Keys solved, as published"
    if not recorded.is_empty():
        title = f"Keys solved: {_solving(recorded)}"
    return style.finished(
        alt.layer(*layers),
        title,
        "filled: recorded here, hollow: published, of one run at each S; bars: 95 % intervals; "
        "ticks: R, the most keys that R features hold",
        "The number of keys S that half of the runs of each memory solve, recorded here and "
        "published, with 95 % intervals.",
        style.HEIGHT,
    )


def _solved(of_series: pl.DataFrame) -> Threshold:
    """The S that half of the runs of a series solve, on whatever devices."""
    counts = of_series.group_by("n_keys", maintain_order=True).agg(
        pl.col("n_solved", "n_seeds").sum()
    )
    return solved_threshold([counts[name] for name in ("n_keys", "n_solved", "n_seeds")])


def _solving(drawn: pl.DataFrame) -> str:
    """How many keys each series of a frame solves, the most first."""
    found = {name: _solved(some) for (name,), some in drawn.group_by("series", maintain_order=True)}
    told = [
        f"{name} {keys_text(one, interval=False)}"
        for name, one in sorted(found.items(), key=lambda pair: -pair[1].value)
        if one.value > 0
    ]
    return ", ".join(told) or "none"


def _series(frame: pl.DataFrame) -> pl.DataFrame:
    """One line a series, in the order of the palette and of feature sizes, with its look."""
    columns = ("mechanism", "attention", "implementation", "n_features")
    found = frame.unique("series", keep="first", maintain_order=True).select("series", *columns)
    order = style.ordered_attention(found["mechanism"])
    rows = sorted(
        found.to_dicts(),
        key=lambda row: (order.index(row["mechanism"]), row["n_features"] or 0, row["series"]),
    )
    for row in rows:
        row["colour"] = style.colour(row["mechanism"])
        row["dash"], row["shape"] = _look(row)
    return pl.DataFrame(rows)


def _look(row: dict[str, Any]) -> tuple[list[int], str]:
    if row["mechanism"] in ("delta", "fwm") and row["attention"] in DELTA_LOOKS:
        return DELTA_LOOKS[row["attention"]]
    if row["attention"] in LOOKS:
        return LOOKS[row["attention"]]
    name = row["implementation"]
    return style.DASHES.get(name, [1, 0]), style.SHAPES.get(name, "circle")


def _look_channels(series: pl.DataFrame) -> list[Any]:
    """Colour, dash and shape, with one legend for all three."""
    names = series["series"].to_list()

    def scale(column: str) -> alt.Scale:
        return alt.Scale(domain=names, range=series[column].to_list())

    legend = style.legend(names, symbolStrokeWidth=0)  # else its outline would be dashed
    return [
        alt.Color("series:N", title=None, scale=scale("colour"), legend=legend),
        alt.StrokeDash("series:N", title=None, scale=scale("dash"), legend=legend),
        alt.Shape("series:N", title=None, scale=scale("shape"), legend=legend),
    ]


def _marks(
    base: alt.Chart, dash: alt.StrokeDash, shape: alt.Shape, shown: alt.Parameter
) -> list[alt.Chart]:
    """Recorded: a line, and a bar over seeds; this session: filled marks; published: hollow."""
    several = "datum.source != 'published' && datum.n_seeds > 1 && isValid(datum.high)"
    line, point = base.encode(dash), base.encode(shape)
    known = point.transform_filter("isValid(datum.value)")
    recorded, live, published = (
        known.transform_filter(style.is_from(name)) for name in ("recorded", "live", "published")
    )
    return [
        line.transform_filter(style.is_from("recorded")).mark_line(strokeWidth=2).add_params(shown),
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


def _tooltip() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("series:N", title="memory"),
        alt.Tooltip("n_keys:Q", title="keys S"),
        alt.Tooltip("value:Q", title="loss (median)", format=".3~g"),
        alt.Tooltip("low:Q", title="least", format=".3~g"),
        alt.Tooltip("high:Q", title="largest", format=".3~g"),
        alt.Tooltip("n_seeds:Q", title="seeds"),
        alt.Tooltip("n_solved:Q", title="of them solved"),
        alt.Tooltip("n_features:Q", title="features R"),
        alt.Tooltip("source:N"),
        alt.Tooltip("device:N"),
    ]


def _slider(drawn: pl.DataFrame, wanted: int) -> alt.Parameter:
    """The S that a rule and the numbers at the right are for, among those that were run."""
    ours = _ours(drawn)
    keys = sorted((drawn if ours.is_empty() else ours)["n_keys"].unique())
    value = min(keys, key=lambda n: abs(n - wanted))
    step = math.gcd(*(n - keys[0] for n in keys)) or 1
    bind = alt.binding_range(min=keys[0], max=keys[-1], step=step, name="losses at S = ")
    return alt.param(name="shown_keys", value=value, bind=bind if len(keys) > 1 else alt.Undefined)


def _rule_at_slider(last: int) -> alt.Chart:
    x = alt.X("n_keys:Q", scale=alt.Scale(domain=[0, last], nice=False))
    rule = alt.Chart(pl.DataFrame({"n_keys": [0]})).mark_rule(color=style.NEUTRAL, strokeWidth=1.5)
    return rule.encode(x).transform_calculate(n_keys="shown_keys")


def _solved_text() -> alt.Chart:
    data = pl.DataFrame({"drawn": [SOLVED_LOSS], "text": ["solved below"]})
    text = alt.Chart(data).mark_text(align="right", dx=-6, dy=-8, color=style.NEUTRAL)
    return text.encode(alt.Y("drawn:Q"), x=alt.value("width"), text="text:N")


def _bounded(series: pl.DataFrame, last: int) -> pl.DataFrame:
    """The series whose number of features R is within the chart, but FAVOR+, which is far from what
    R allows."""
    return series.filter((pl.col("n_features") < last) & (pl.col("attention") != "performer"))


def _most_keys(
    series: pl.DataFrame, last: int, colour: alt.Color, shown: alt.Parameter
) -> list[alt.Chart]:
    """Ticks at the top at S = R, as many keys as a memory of R features can tell apart."""
    held = _bounded(series, last).unique("n_features", keep="first", maintain_order=True)
    held = held.select("series", "n_features").sort("n_features")
    alternate = (held[::2], 1), (held[1::2], 13)  # neighbours are close on a narrow page

    def drawn(frame: pl.DataFrame) -> alt.Chart:
        return alt.Chart(frame).encode(alt.X("n_features:Q"), colour, opacity=style.faded(shown))

    return [
        drawn(held).mark_rule(strokeWidth=2).encode(y=alt.value(0), y2=alt.value(12)),
        *(
            drawn(some)
            .mark_text(align="left", baseline="top", dx=3, fontSize=11)
            .encode(y=alt.value(pixel), text="n_features:N")
            for some, pixel in alternate
        ),
    ]


def _least_losses(
    series: pl.DataFrame, last: int, y: alt.Y, colour: alt.Color, shown: alt.Parameter
) -> alt.Chart:
    """`claims_memory.least_loss` of each series."""
    bounded = _bounded(series, last).select("series", "n_features")
    curves = pl.DataFrame(
        [
            {"series": name, "n_keys": n, "drawn": round(least_loss(r, n), 5)}
            for name, r in bounded.iter_rows()
            for n in range(r + 1, last + 1, 2)
        ],
        schema=dict(series=str, n_keys=int, drawn=float),
    )
    line = alt.Chart(curves).mark_line(strokeWidth=1, strokeDash=[1, 3])
    return line.encode(alt.X("n_keys:Q"), y, colour, opacity=style.faded(shown))


def _labels(
    drawn: pl.DataFrame, y_domain: list[float], colour: alt.Color, shown: alt.Parameter
) -> list[alt.Chart]:
    """The name of each series at its right end, with its loss at the slider's S: of this session
    where there is one, else recorded; and above them which S that is."""
    ends = (
        drawn.filter(pl.col("drawn").is_not_null())
        .sort(pl.col("source") == "published", "n_keys", descending=[True, False])
        .unique("series", keep="last", maintain_order=True)
        .select("series", value="drawn")
    )
    ends = style.spread_labels(ends, y_domain, style.TALL, 1)
    losses: dict[str, dict[str, str]] = {}
    ours = _ours(drawn).sort("source", descending=True)
    missing = "" if ours.is_empty() else "–"
    for name, n_keys, loss in ours.select("series", "n_keys", "value").iter_rows():
        losses.setdefault(name, {})[str(n_keys)] = "diverged" if loss is None else _loss(loss)
    records = [
        {**end, "losses": losses.get(end["series"], {})}
        for end in ends.select("series", "label_px").to_dicts()
    ]
    names = (
        alt.Chart(alt.Data(values=records))
        .transform_calculate(
            text=f"datum.series + '  ' + (datum.losses[shown_keys] || '{missing}')"
        )
        .mark_text(align="left", dx=8)
        .encode(
            alt.Y("label_px:Q", scale=None, axis=None),
            colour,
            x=alt.value("width"),
            opacity=style.faded(shown),
            text="text:N",
        )
    )
    if ours.is_empty():
        return [names]
    above = max(0.0, min(ends["label_px"]) - 2 * style.LABEL_PX)
    caption = (
        alt.Chart(alt.Data(values=[{}]))
        .transform_calculate(text="'loss at S = ' + shown_keys + ':'")
        .mark_text(align="left", baseline="top", dx=8, fontWeight="bold", color=style.NEUTRAL)
        .encode(x=alt.value("width"), y=alt.value(above), text="text:N")
    )
    return [names, caption]


def _ours(drawn: pl.DataFrame) -> pl.DataFrame:
    """What was not published but ran here."""
    return drawn.filter(pl.col("source").is_in(OURS))


def _loss(loss: float) -> str:
    return f"{loss:z.2f}" if loss >= 0.01 else f"{loss:z.4f}" if loss >= LOSS_FLOOR else "<0.0001"


def _finding(drawn: pl.DataFrame, what: str) -> str:
    """What was recorded, or else ran in this session, as a title."""
    for source in ("recorded", "live"):
        some = drawn.filter(pl.col("source") == source)
        if some.is_empty():
            continue
        return f"{what}; keys solved: {_solving(some)}"
    return f"{what}: published losses"


def _subtitle(drawn: pl.DataFrame, setting: int) -> str:
    sources = set(drawn["source"])
    ticks = "ticks at the top: R, the most keys that R features hold"
    parts = [
        (style.devices_of(drawn), True),
        ("lines: recorded, bars: least to largest of several seeds", "recorded" in sources),
        ("filled: this session", "live" in sources),
        ("hollow: published", "published" in sources),
        ("crosses: diverged", drawn["value"].null_count() > 0),
        (ticks, True),
        (
            "dotted: the least mean over all keys with R, 0.5\u00b7(1\u00a0-\u00a0R/S); above S = "
            f"{N_ASKED} the first {N_ASKED} keys are asked for",
            setting == 1,
        ),
    ]
    return "; ".join(text for text, is_shown in parts if text and is_shown)


def figures(rows: Rows) -> Iterator[tuple[str, Figure]]:
    """Loss against the number of keys, and how many keys are solved, beside the published ones."""
    frame = retrieval_frame(rows["capacity"], published()["fastweights_logs"])
    for name, draw in (("capacity", capacity_chart), ("capacity_solved", solved_chart)):
        shown = {"experiment": "capacity", "rows": rows["capacity"], "published": True}
        yield name, Figure(chart=draw(frame), **shown)
