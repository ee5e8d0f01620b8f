"""What charts share: palette, theme, axes, labels and the frame around them.

A function that draws takes or returns Altair objects; none holds state.
"""

import json
import math
import textwrap
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt
import polars as pl

from replib.attention import ATTENTION

# Okabe and Ito's hues, shifted to a lightness with a contrast of 3 or more on white and on the dark
# page alike; shapes, dashes and direct labels carry what a rare colour blindness still confuses.
PALETTE = {
    "softmax": "#2380C4",
    "linear": "#D55E00",
    "relu": "#A8705A",
    "performer": "#6D5AE0",
    "dpfp": "#8C7A00",
    "delta": "#009E73",
    "fwm": "#0091A8",
    "linformer": "#C45BA0",
    "lsh": "#7A7A7A",
}
ON_PAGE = f"application/vnd.vegalite.v{alt.VEGALITE_VERSION.split('.')[0]}+json"
SPARE_COLOURS = ("#B8405E", "#4F7F8C", "#5E7F2E")
SOLID, DASHED, DOTTED, LONG = [1, 0], [7, 4], [2, 3], [10, 3]
DASH_DOT, DASH_DOTS = [10, 3, 2, 3], [8, 3, 2, 3, 2, 3]
MARKS = {  # of options, kernels and ways to generate
    "fused": (SOLID, "circle"),
    "textbook": (DASHED, "square"),
    "torch": (SOLID, "diamond"),
    "plain": (DOTTED, "triangle-up"),
    "cpu": (LONG, "triangle-right"),
    "cuda": (DASH_DOT, "triangle-left"),
    "nu1": (SOLID, "circle"),
    "nu2": (DASHED, "square"),
    "nu3": (DASH_DOTS, "triangle-down"),
    "tanh": (SOLID, "circle"),
    "dpfp1": (DASHED, "square"),
    "64": (SOLID, "circle"),
    "128": (DASHED, "square"),
    "512": (DOTTED, "diamond"),
    "1 round": (SOLID, "circle"),
    "4 rounds": (DASHED, "square"),
    "8 rounds": (DOTTED, "diamond"),
    "original 1 round": (LONG, "triangle-up"),
    "original 4 rounds": (DASH_DOT, "triangle-right"),
    "original 8 rounds": (DASH_DOTS, "triangle-left"),
    "k32": (SOLID, "circle"),
    "k64": (DASHED, "square"),
    "k128": (DOTTED, "diamond"),
    "2022 article": (DOTTED, "cross"),
    "recurrent": (SOLID, "diamond"),
    "cache": (SOLID, "circle"),
    "recompute": (DASHED, "square"),
    "cache, to come": (DOTTED, "circle"),
}
DASHES = {name: dash for name, (dash, _) in MARKS.items()}
SHAPES = {name: shape for name, (_, shape) in MARKS.items()}
NEUTRAL = "#808080"  # annotations; contrast 3.9 on white, 4.4 on marimo's dark page

SOLVED_ACCURACY = 0.99  # the line that a copy task has to reach
HEIGHT, TALL = 260, 320  # pixels
LABEL_PX = 14  # height of a line of text
FILE_PX = 720  # width of a chart in a file
# Widths of a chart, from a phone to a desk, from which on its title has lines as long.
ROOMS = (250, 300, 350, 420, 560, 780)
# Not of `width` alone, which shrinks to the plot's after the title has been given its room; but to
# be looked at again when the page, and with it `width`, changes.
ROOM = f"(isFinite(containerSize()[0]) ? containerSize()[0] : {FILE_PX}) + 0 * width"
SUBTITLE_PX = 330  # of a line of a subtitle in a file
TITLE_FONT, SUBTITLE_FONT, LABEL_FONT = 15, 12, 12
LETTER_EM, BOLD_EM = 0.54, 0.6  # of a text's letters about, a little more than in most fonts
LEGEND_PX = 36  # beside the text of a column of a legend
CROSS = {"shape": "cross", "angle": 45, "filled": True, "size": 80, "opacity": 1}
TOP_PX = 7  # where points without a value are marked

BIG_LABELS = "format(datum.value, datum.value < 10000 ? '~g' : '~s')"  # 0.1, 1000, 10k
N_AXIS = "sequence length N (symbols)"


def colour(attention: str) -> str:
    """The colour of a mechanism in every chart; those that are not in PALETTE have the spare ones,
    in the order of the registry."""
    others = [name for name in ATTENTION if name not in PALETTE]
    place = others.index(attention) if attention in others else zlib.crc32(attention.encode())
    return PALETTE.get(attention, SPARE_COLOURS[place % len(SPARE_COLOURS)])


def theme() -> dict[str, Any]:
    """The configuration of every chart, as keywords of `alt.Chart.configure`."""
    text = {"labelFontSize": LABEL_FONT, "titleFontSize": 12, "titleFontWeight": "normal"}
    lines = {"gridColor": NEUTRAL, "gridOpacity": 0.2, "domainColor": NEUTRAL, "tickColor": NEUTRAL}
    keys = {
        "symbolBaseFillColor": NEUTRAL,
        "symbolBaseStrokeColor": NEUTRAL,
        "symbolStrokeWidth": 2,
    }
    title = {"fontSize": TITLE_FONT, "subtitleFontSize": SUBTITLE_FONT, "subtitlePadding": 5}
    return {
        "background": "transparent",
        "view": {"stroke": None},
        "axis": text | lines,
        "legend": text | keys | {"orient": "top", "columns": 2, "labelLimit": 0},
        "title": title | {"offset": 10, "anchor": "start", "frame": "bounds"},
        "text": {"fontSize": 12},
    }


def printable(
    chart: alt.LayerChart, width: int = FILE_PX, background: str = "white"
) -> alt.LayerChart:
    """The chart for a file: `width` pixels in all, as there is no page to stretch to."""
    fit = alt.AutoSizeParams(type="fit-x", contains="padding")
    return chart.properties(width=width, autosize=fit, background=background)


def looks(channel: type, field: str, values: Mapping[str, Any], **options: Any) -> Any:
    """A channel, such as `alt.Color`, that gives each name of a field its own value."""
    scale = alt.Scale(domain=list(values), range=list(values.values()))
    return channel(field, **{"title": None, "scale": scale} | options)


def attention_colour(frame: pl.DataFrame, **options: Any) -> alt.Color:
    names = ordered_attention(frame["attention"])
    options = {"legend": legend(names, 3)} | options
    return looks(alt.Color, "attention:N", {name: colour(name) for name in names}, **options)


def is_from(source: str) -> str:
    """A filter for the points of a source, "live" or "recorded"."""
    return f"datum.source == '{source}'"


def faded(legend: alt.Parameter, shown: float = 1.0, hidden: float = 0.08) -> alt.OpacityValue:
    return alt.OpacityValue(hidden, condition=[{"param": legend.name, "value": shown}])


def ordered_attention(names: Iterable[str]) -> list[str]:
    """The mechanisms in the order of the palette, others after them by name."""
    present = set(names)
    return [*(n for n in PALETTE if n in present), *sorted(present - PALETTE.keys())]


def step_axis(**options: Any) -> alt.X:
    axis = alt.Axis(grid=False, labelOverlap=True, labelSeparation=6)
    return alt.X("step:Q", title="training step", axis=axis, **options)


def length_axis(domain: Sequence[float], field: str = "seq_len") -> alt.X:
    """N on a log axis with labels at powers of two: 64, 128, ... 1k, 2k."""
    return alt.X(
        f"{field}:Q",
        title=N_AXIS,
        scale=alt.Scale(type="log", base=2, domain=list(domain), nice=False),
        axis=alt.Axis(
            values=powers_between(domain, 2),
            labelExpr="datum.value < 1024 ? datum.value : datum.value / 1024 + 'k'",
            labelOverlap="parity",
            labelSeparation=6,
            grid=False,
        ),
    )


def log_axis(field: str, title: str, domain: list[float], **scale: Any) -> alt.Y:
    """A log axis with labels at powers of ten, and between them where these are few."""
    tens = powers_between([domain[0] / 10, domain[1]], 10)
    for digits in ((1,), (1, 2, 5), [half / 2 for half in range(2, 20)]):
        values = [d * ten for ten in tens for d in digits if domain[0] <= d * ten <= domain[1]]
        if len(values) >= 3:
            break
    return alt.Y(
        f"{field}:Q",
        title=title,
        scale=alt.Scale(type="log", domain=domain, nice=False, **scale),
        axis=alt.Axis(values=values, labelExpr=BIG_LABELS, orient="left", grid=True),
    )


def powers_between(domain: Sequence[float], base: int) -> list[float]:
    """The powers of a base inside a range, as decimals without rounding errors."""
    first = math.ceil(math.log(domain[0], base) - 1e-9)
    last = math.floor(math.log(domain[1], base) + 1e-9)
    return [float(f"{float(base) ** power:z.12g}") for power in range(first, last + 1)]


def log_domain(values: Iterable[float | None], margin: float = 1.0) -> list[float]:
    """The range of the positive values for a log axis; never empty."""
    known = [v for v in values if v is not None and math.isfinite(v) and v > 0] or [1.0]
    low, high = min(known) / margin, max(known) * margin
    return [low, high] if low < high else [low / 2, high * 2]


def radio(name: str, label: str, options: Sequence, first: Any) -> alt.Parameter:
    """Buttons that choose one of some options; nothing to see where there is but one."""
    labels = [f"\u00a0{one}\u2003" for one in options]  # the page sets buttons without space
    bind = alt.binding_radio(options=list(options), labels=labels, name=label)
    return alt.param(name=name, value=first, bind=bind if len(options) > 1 else alt.Undefined)


def factor_axis(field: str, title: str, domain: Sequence[float], **options: Any) -> alt.X:
    """A log axis of factors: 0.5×, 1×, 10×."""
    return alt.X(
        f"{field}:Q",
        title=title,
        scale=alt.Scale(type="log", domain=list(domain), nice=False),
        axis=alt.Axis(labelExpr=f"{BIG_LABELS} + '×'", **options),
    )


def lines_axis(lines: Sequence[str], label: str, **options: Any) -> alt.Y:
    """A line of its own for each of these texts, of which `label`, an expression, is shown."""
    axis = alt.Axis(ticks=False, domain=False, labelExpr=label, **options)
    return alt.Y("line:N", title=None, scale=alt.Scale(domain=list(lines)), axis=axis)


ROOMY = {"labelPadding": 8, "labelLimit": 0}  # of labels that may be long


def rule_at(value: float, axis: alt.X | alt.Y | None = None) -> alt.Chart:
    """A dashed line across at a value of an axis, of the y axis if none is given."""
    axis = alt.Y("value:Q") if axis is None else axis
    data = pl.DataFrame({axis.to_dict()["field"]: [value]})
    return alt.Chart(data).mark_rule(color=NEUTRAL, strokeDash=[4, 3]).encode(axis)


def text_at(text: str, value: float, axis: alt.X | alt.Y, **place: Any) -> alt.Chart:
    """A text beside a rule at a value of an axis."""
    data = pl.DataFrame({axis.to_dict()["field"]: [value], "text": [text]})
    mark = alt.Chart(data).mark_text(align="right", color=NEUTRAL, **place)
    return mark.encode(axis, text="text:N")


def corner_text(data: pl.DataFrame, expression: str, y: str) -> alt.Chart:
    """A text in the right corner that the curves leave free, one a row of the data."""
    place, baseline = (4, "top") if y == "loss" else (HEIGHT - 6, "bottom")
    return (
        alt.Chart(data)
        .transform_calculate(text=expression)
        .mark_text(align="right", baseline=baseline, dx=-4, fontSize=14, color=NEUTRAL)
        .encode(x=alt.value("width"), y=alt.value(place), text="text:N")
    )


def diverged_marks(base: alt.Chart, y: int, where="!isValid(datum.value)") -> list[alt.Chart]:
    """A named cross for the points that a filter leaves, at the edge that means failure."""
    base = base.encode(y=alt.value(y)).transform_filter(where)
    return [
        base.mark_point(**CROSS).encode(tooltip="attention:N"),
        base.mark_text(align="left", dx=8).encode(text=alt.value("diverged")),
    ]


def spread_labels(
    ends: pl.DataFrame, domain: list[float], height: int, n_lines: int, log: bool = True
) -> pl.DataFrame:
    """Add `label_px`, the pixel of each `value`, moved apart so that labels do not overlap."""
    low, high = (math.log(bound) if log else bound for bound in domain)
    ends = ends.sort("value", descending=True)
    gap, pixels = n_lines * LABEL_PX + 2, []
    for value in ends["value"]:
        share = ((math.log(value) if log else value) - low) / (high - low)
        pixels.append(max(height * (1 - share), pixels[-1] + gap if pixels else 0))
    if not pixels:
        return ends.with_columns(label_px=pl.lit(0.0))
    too_low = max(0.0, max(pixels) + gap / 2 - height - LABEL_PX)
    for i in reversed(range(len(pixels))):
        limit = height + LABEL_PX - gap / 2 if i == len(pixels) - 1 else pixels[i + 1] - gap
        pixels[i] = min(pixels[i], limit) if too_low else pixels[i]
    return ends.with_columns(label_px=pl.Series(pixels, dtype=pl.Float64))


def tooltips_of(frame: pl.DataFrame) -> list[alt.Tooltip]:
    """What there is to say about a point, by the columns of its frame."""
    low, high = "lower quartile", "upper quartile"
    if "length" in frame.columns:
        low, high = "95 % from", "95 % to"
    if "n_seeds" in frame.columns:
        low, high = "lowest seed", "highest seed"
    titles = {
        "series": "mechanism",
        "attention": "mechanism",
        "seq_len": "N",
        "step": "step",
        "seed": "seed",
        "work": "work",
        "batch_size": "batch",
        "value": "value",
        "against": "against",
        "length": "crossover N",
        "low": low,
        "high": high,
        "n": "repeats",
        "loss": "loss (nats a token)",
        "accuracy": "accuracy",
        "n_seeds": "seeds",
        "final_accuracy": "final accuracy",
        "final_loss": "final loss (nats a token)",
        "steps_to_solved": "steps to 99 %",
        "n_spikes": "loss spikes",
        "outcome": "outcome",
        "detail": "detail",
        "source": "source",
        "device": "device",
    }
    found = {title: name for name, title in titles.items() if name in frame.columns}
    return [
        alt.Tooltip(name, title=title, format=".4~g")
        if frame.schema[name].is_float()
        else alt.Tooltip(name, title=title)
        for title, name in found.items()
    ]


def records_of(frame: pl.DataFrame) -> pl.DataFrame:
    """What the page needs: no lists, floats to five digits."""
    nested = [name for name, kind in frame.schema.items() if kind.is_nested()]
    floats = [name for name, kind in frame.schema.items() if kind.is_float()]
    return frame.drop(nested).with_columns(pl.col(floats).round_sig_figs(5))


def devices_of(frame: pl.DataFrame, marks: bool = False) -> str:
    """The subtitle: where it was measured, and how to tell this session's marks."""
    devices = "; ".join(sorted(set(frame["device"].drop_nulls())))
    if marks and frame["source"].n_unique() > 1:
        return f"{devices}; filled: this session, hollow: recorded"
    return devices


def finished(
    chart: alt.LayerChart, title: str, subtitle: str, description: str, height: int = HEIGHT
) -> alt.LayerChart:
    """Title, size, description for screen readers and the theme."""
    text = _lines_by_room(title, BOLD_EM * TITLE_FONT)
    heading = alt.TitleParams(
        text=alt.ExprRef(text) if isinstance(text, str) else text,
        subtitle=wrapped_lines(subtitle, SUBTITLE_PX, LETTER_EM * SUBTITLE_FONT),
    )
    # Set here, as `properties` and `configure` return copies of every layer and its data.
    chart.width, chart.height, chart.title = "container", height, heading
    chart.description, chart.config = f"{title}. {description}", alt.Config(**theme())
    below = _lines_by_room(subtitle, LETTER_EM * SUBTITLE_FONT)
    if isinstance(below, str):
        # Vega-Lite takes no expression for a subtitle, but Vega, to which a page compiles it, does.
        patch = [{"op": "replace", "path": "/title/subtitle", "value": {"signal": below}}]
        chart.usermeta = {"embedOptions": {"patch": patch}}
    return chart


class Records(alt.Data):
    """Records that the copies of a chart share: Altair copies every layer several times."""

    def __deepcopy__(self, *_) -> "Records":
        return self

    def to_dict(self, *_, **__) -> dict[str, list]:
        return {"values": self.values}


class OnPage:
    """A chart as marimo shows it. Left to itself marimo converts a chart twice and uses the second;
    the first is validated, which takes as long again, and which tests do."""

    def __init__(self, chart: alt.TopLevelMixin):
        self.chart = chart

    def _mime_(self) -> tuple[str, str]:
        spec = without_unused(self.chart.to_dict(validate=False))
        return ON_PAGE, json.dumps(spec, allow_nan=False, default=str)


def without_unused(spec: dict[str, Any]) -> dict[str, Any]:
    """A Vega-Lite chart without the columns of its data that nothing in it names."""
    datasets = spec.get("datasets", {})
    text = json.dumps({name: part for name, part in spec.items() if name != "datasets"})
    named = {key for rows in datasets.values() for row in rows for key in row if key in text}
    kept = {
        name: [{key: row[key] for key in row if key in named} for row in rows]
        for name, rows in datasets.items()
    }
    return spec | {"datasets": kept} if kept else spec


alt.TopLevelMixin._display_ = lambda chart: OnPage(chart)


def _lines_by_room(text: str, letter_px: float) -> list[str] | str:
    """The lines of a heading; of one with several, an expression that has fewer on a wider page."""
    lines = narrowest = wrapped_lines(text, ROOMS[0], letter_px)
    expression = json.dumps(lines)
    for room in ROOMS[1:]:
        wider = wrapped_lines(text, room, letter_px)
        if len(wider) < len(lines):
            expression, lines = f"{ROOM} < {room} ? {expression} : {json.dumps(wider)}", wider
    return narrowest if lines is narrowest else expression


def wrapped_lines(text: str, pixels: float, letter_px: float) -> list[str]:
    """Lines of about equal length, as few as fit into `pixels`; "N = 64" stays whole."""
    text, most = text.replace(" = ", "\u00a0=\u00a0"), int(pixels / letter_px)
    fewest = len(textwrap.wrap(text, most))
    wrapped = (textwrap.wrap(text, n) for n in range(most // 2, most + 1))
    return next((lines for lines in wrapped if len(lines) <= fewest), []) or [""]


def legend(labels: Iterable[str], most: int = 2, beside: float = 60, **options: Any) -> alt.Legend:
    """A legend of as many columns as there is room for beside the axis, up to `most`."""
    longest = max(map(len, labels), default=0) * LETTER_EM * LABEL_FONT + LEGEND_PX
    columns = "1"
    for n in range(2, most + 1):
        columns = f"{ROOM} < {beside + n * longest:z.0f} ? {columns} : {n}"
    return alt.Legend(columns=alt.ExprRef(columns), **{"symbolOpacity": 1} | options)


def no_data(title: str) -> alt.LayerChart:
    text = alt.Chart(pl.DataFrame({"text": ["no data yet"]})).mark_text(fontSize=16, color=NEUTRAL)
    return finished(alt.layer(text.encode(text="text:N")), title, "", "No data yet.", 120)


def check_known(name: str, value: Any, known: Iterable[Any]) -> None:
    if value not in known:
        raise ValueError(f"{name} {value!r}: use {', '.join(map(str, known))}")


def check_single(frame: pl.DataFrame) -> None:
    keys = ["series", "seq_len", "device", "source"]
    if frame.select(keys).is_duplicated().any():
        twice = frame.filter(frame.select(keys).is_duplicated()).row(0, named=True)
        raise ValueError(
            f"{twice['series']} has two values at N = {twice['seq_len']}: "
            "filter the frame to one work and batch_size, of latest rows"
        )
