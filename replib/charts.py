"""Pure functions from a tidy frame (`replib.frames`) to an Altair chart; the palette lives here.

Every chart is one layered view as wide as its container (Vega-Lite stretches neither facets nor
concatenations), so that it reads on a phone as on a desk; `printable` gives it a width in pixels.
Text and axes take their colour from the page's theme, light or dark; the background is transparent.
A mechanism keeps its colour, an implementation its dash and shape. Marks are filled for this
session's points and hollow for recorded ones. What has no value (out of memory, diverged) is marked
at the top edge.
"""

import math
import textwrap
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt
import polars as pl

from replib.statistics import SOFTMAX_POWERS, Crossover, Regression

# Okabe and Ito's hues, shifted to a lightness with a contrast of 3 or more on white and on the dark
# page alike; shapes, dashes and direct labels carry what a rare colour blindness still confuses.
PALETTE = {
    "softmax": "#2380C4",
    "linear": "#D55E00",
    "delta": "#009E73",
    "linformer": "#C45BA0",
    "lsh": "#7A7A7A",
}
SPARE_COLOURS = ("#6D5AE0", "#A8705A", "#8C7A00")
DASHES = {
    "fused": [1, 0],
    "textbook": [7, 4],
    "torch": [1, 0],
    "plain": [2, 3],
    "cpu": [10, 3],
    "cuda": [10, 3, 2, 3],
    "2022 article": [2, 3],
}
SHAPES = {
    "fused": "circle",
    "textbook": "square",
    "torch": "diamond",
    "plain": "triangle-up",
    "cpu": "triangle-right",
    "cuda": "triangle-left",
    "2022 article": "cross",
}
NEUTRAL = "#808080"  # annotations; contrast 3.9 on white, 4.4 on marimo's dark page

LOSS_FLOOR = 1e-4  # nats a token; lower losses are drawn here, or noise would fill the log axis
SOLVED_ACCURACY = 0.99  # the line that a copy task has to reach
MAX_CURVE_POINTS = 2000  # a chart's evaluations: half of Altair's limit, and a light page
HEIGHT, TALL = 300, 340  # pixels
LABEL_PX = 14  # height of a line of text
WRAP, SUBTITLE_WRAP = 40, 58  # characters that fit beside the menu, 400 pixels wide
CROSS = {"shape": "cross", "angle": 45, "filled": True, "size": 80, "opacity": 1}
TOP_PX = 7  # where points without a value are marked

BIG_LABELS = "format(datum.value, datum.value < 10000 ? '~g' : '~s')"  # 0.1, 1000, 10k
N_AXIS = "sequence length N (symbols)"
MEASURES = {  # column -> axis title, factor to its unit
    "time_ms": ("time (ms)", 1.0),
    "time_ms_per_sample": ("time (ms a sample)", 1.0),
    "memory_bytes_per_sample": ("peak memory (MB a sample)", 1e-6),
}
CURVES = {"loss": "loss (nats a token)", "accuracy": "accuracy (% of tokens)"}
MODELS = {
    "quadratic": "a + c N²",
    "linear": "a + b N",
    "full_quadratic": "a + b N + c N²",
    "power_law": "a N^p",
}
MODEL_DASHES = {
    "quadratic": [1, 0],
    "linear": [7, 4],
    "full_quadratic": [2, 3],
    "power_law": [10, 3, 2, 3],
}


def colour(attention: str) -> str:
    """The colour of a mechanism in every chart; one that is not in PALETTE keeps a spare one."""
    spare = SPARE_COLOURS[zlib.crc32(attention.encode()) % len(SPARE_COLOURS)]
    return PALETTE.get(attention, spare)


def theme() -> dict[str, Any]:
    """The configuration of every chart, as keywords of `alt.Chart.configure`."""
    text = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
    lines = {"gridColor": NEUTRAL, "gridOpacity": 0.2, "domainColor": NEUTRAL, "tickColor": NEUTRAL}
    title = {"fontSize": 15, "subtitleFontSize": 12, "subtitlePadding": 5, "offset": 10}
    return {
        "background": "transparent",
        "view": {"stroke": None},
        "axis": text | lines,
        "legend": text | {"orient": "top", "columns": 2, "symbolStrokeWidth": 2, "labelLimit": 0},
        "title": title | {"anchor": "start", "frame": "bounds"},
        "text": {"fontSize": 12},
    }


def printable(chart: alt.LayerChart, width: int = 720, background: str = "white") -> alt.LayerChart:
    """The chart for a file: `width` pixels in all, as there is no page to stretch to."""
    fit = alt.AutoSizeParams(type="fit-x", contains="padding")
    return chart.properties(width=width, autosize=fit, background=background)


def learning_curves(
    frame: pl.DataFrame, *, y: str = "loss", title: str, seq_len: int | None = None
) -> alt.LayerChart:
    """Every run thin, the median of the seeds bold, a radio button a length; y: a key of CURVES.

    Losses below LOSS_FLOOR are drawn at it. A step's median is of the runs whose loss is finite;
    one that is not is marked at the top. Runs of this session are bold and solid, and the recorded
    medians are dashed where there are both.

    Args:
        frame: of `frames.training_curves`.
        seq_len: the length to begin with; the longest if left out.

    Raises:
        ValueError: an unknown y, or a length that the frame does not hold.
    """
    _check_known("y", y, CURVES)
    if frame.is_empty():
        return _no_data(title)
    frame = _drawn_curves(frame, y)
    lengths = sorted(frame["seq_len"].unique())
    first = seq_len or lengths[-1]
    _check_known("seq_len", first, lengths)
    labels = [f"\u00a0{n}\u2003" for n in lengths]  # the page sets buttons and labels without space
    radio = alt.binding_radio(options=lengths, labels=labels, name="sequence length N: ")
    length = alt.param(
        name="shown_length", value=first, bind=radio if len(lengths) > 1 else alt.Undefined
    )
    legend = alt.selection_point(name="mechanism", fields=["attention"], bind="legend")
    domain = _curve_domain(frame, y)
    layers = _curve_layers(frame, y, _curve_axis(y, domain), legend)
    layers.append(_curve_labels(frame, domain, legend, HEIGHT))
    layers.append(_corner(pl.DataFrame({"seq_len": lengths}), "'N = ' + datum.seq_len", y))
    if y == "accuracy":
        layers.append(_rule("y", SOLVED_ACCURACY))
    layers = [
        layer.transform_filter("!isValid(datum.seq_len) || datum.seq_len == shown_length")
        for layer in layers
    ]
    return _finished(
        alt.layer(*layers).add_params(length, legend),
        title,
        _devices(frame),
        f"{CURVES[y]} against training steps: a line a run, the median of the seeds bold.",
    )


def live_curves(
    live: pl.DataFrame, recorded: pl.DataFrame | None = None, *, title: str = "This session"
) -> alt.LayerChart:
    """Accuracy above loss of a run in progress, over the recorded medians, faint and dashed.

    The two panes are bands of one view, which costs a quarter of two charts and stays as wide as
    the page. Both frames are of one length, from `frames.training_curves` or `running_curve`.
    """
    frames = [part for part in (recorded, live) if part is not None and not part.is_empty()]
    if not frames:
        return _no_data(title)
    frame = pl.concat(frames)
    last_step = live["n_steps"].max() or frame["step"].max()  # recorded runs may go on beyond it
    drawn = _median(_drawn_curves(frame, "loss")).drop("seq_len", "n_seeds", "loss")
    base = (
        alt.Chart(_values(drawn))
        .mark_line(clip=True)
        .encode(
            _step_axis(scale=alt.Scale(domain=[0, last_step], nice=False)),
            _attention_colour(drawn),
            _by_source(alt.StrokeDash, [1, 0], [5, 4]),
            _by_source(alt.StrokeWidth, 2.5, 1.5),
            _by_source(alt.StrokeOpacity, 1, 0.6),
        )
    )
    upper, lower = [TALL * 0.44, 0], [TALL, TALL * 0.56]
    panes = [
        base.encode(_curve_axis("accuracy", [0.0, 1.0], upper, "accuracy")),
        base.encode(_curve_axis("loss", _curve_domain(drawn, "loss"), lower)),
    ]
    return _finished(
        alt.layer(*panes).resolve_scale(y="independent"),
        title,
        _devices(frame),
        "Accuracy and loss of the runs of this session against training steps.",
        TALL,
    )


def cost_chart(
    frame: pl.DataFrame, *, y: str = "time_ms_per_sample", title: str, guides: bool = True
) -> alt.LayerChart:
    """Time or memory against N on log axes, with quartiles; y: a key of MEASURES.

    Args:
        frame: of `frames.costs`, one work and one batch rule.
        guides: dotted lines that grow as N and N².

    Raises:
        ValueError: an unknown y, or a frame with two values at one N of a series.
    """
    _check_known("y", y, MEASURES)
    axis_title, factor = MEASURES[y]
    _check_single(frame)
    per_sample = pl.col("batch_size") if y.endswith("per_sample") else pl.lit(1)
    timed = pl.lit(y.startswith("time")) & pl.col("time_ms").is_not_null()
    drawn = frame.with_columns(
        value=pl.col(y) * factor,
        low=pl.when(timed).then(pl.col("q25") / per_sample),
        high=pl.when(timed).then(pl.col("q75") / per_sample),
    )
    return _growth_chart(drawn, axis_title, title, guides)


def replication_chart(
    frame: pl.DataFrame, published: Mapping[str, Any], *, title: str
) -> alt.LayerChart:
    """Seconds of a whole training against N: ours, projected from the step time, and Table 1 of Do
    & Bergner 2022.

    Args:
        frame: of `frames.costs`, from step_time rows.
        published: `published()["dm2022"]`.

    Raises:
        ValueError: a frame with two values at one N of a series.
    """
    _check_single(frame)
    steps = published["steps"]
    ours = frame.with_columns(
        value=pl.col("time_ms") * steps / 1000,
        low=pl.col("q25") * steps / 1000,
        high=pl.col("q75") * steps / 1000,
    )
    article = pl.DataFrame(
        [
            {
                "attention": attention,
                "implementation": "2022 article",
                "series": f"{attention} (2022 article)",
                "seq_len": n,
                "value": float(seconds),
                "outcome": "ok",
                "device": published["gpu"] + " (article)",
                "source": "recorded",
            }
            for attention in ("softmax", "linear")
            for n, seconds in zip(published["N"], published[f"{attention}_s"], strict=True)
        ]
    )
    drawn = pl.concat([ours, article], how="diagonal")
    return _growth_chart(drawn, f"time of {steps} steps (s)", title, guides=False)


def ratio_chart(
    frame: pl.DataFrame,
    *,
    mechanism: str = "linear",
    baseline: str = "softmax",
    crossovers: Mapping[str, Crossover] | None = None,
    title: str,
) -> alt.LayerChart:
    """Speed of a mechanism relative to each implementation of another, break-even at 1.

    The band is from quartile to quartile of the two times.

    Args:
        frame: of `frames.costs`, one work and one batch size.
        crossovers: by the baseline's series, such as "softmax (fused)".

    Raises:
        ValueError: a frame with two values at one N of a series.
    """
    _check_single(frame)
    ratios = _ratios(frame, mechanism, baseline)
    if ratios.is_empty():
        return _no_data(title)
    crossings = _crossings(ratios, crossovers or {})
    x_domain = _domain([*ratios["seq_len"], *crossings["length"]])
    y_domain = _domain([*ratios["low"], *ratios["high"], 1.0], margin=1.2)
    legend = alt.selection_point(name="against", fields=["series"], bind="legend")
    y = alt.Y(
        "value:Q",
        title=f"speed-up of {mechanism} over {baseline}",
        scale=alt.Scale(type="log", base=2, domain=y_domain, nice=False),
        axis=alt.Axis(
            values=_powers(y_domain, 2),
            labelExpr="datum.value < 1 ? '1/' + round(1 / datum.value) : datum.value + '×'",
        ),
    )
    layers = [
        _rule("y", 1.0),
        *_series_layers(ratios, x_domain, y, legend),
        *_crossing_layers(crossings, x_domain),
        _series_labels(ratios, y_domain, legend, HEIGHT),
    ]
    return _finished(
        alt.layer(*layers),
        title,
        _devices(frame, marks=True),
        f"Time of {baseline} divided by time of {mechanism} against N; above 1 {mechanism} wins.",
    )


def extrapolation_chart(
    published: Mapping[str, Any], regressions: Iterable[Regression], *, title: str
) -> alt.LayerChart:
    """The article's four lengths, and how far its crossover moves with the model of the softmax.

    Args:
        published: `published()["dm2022"]`.
        regressions: of `statistics.article_regression` on its table, one a model.
    """
    regressions = list(regressions)
    if not regressions:
        return _no_data(title)
    shortest, longest, last = min(published["N"]), max(published["N"]), 8192
    curves = _fitted_curves(regressions, [2 ** (i / 8) for i in range(8 * 3, 8 * 13 + 1)])
    points = pl.DataFrame(
        [
            {"attention": a, "seq_len": n, "value": s}
            for a in ("softmax", "linear")
            for n, s in zip(published["N"], published[f"{a}_s"], strict=True)
        ]
    )
    domain = _domain([*curves["value"], *points["value"]], margin=1.3)
    x, y = _length_axis([shortest, last]), _log_axis("value", "time of 3000 steps (s)", domain)
    colours = _attention_colour(curves, legend=None)
    layers = [
        _measured_range(shortest, longest),
        alt.Chart(_values(curves))
        .mark_line()
        .encode(
            x, y, colours, alt.Detail("model:N"), strokeDash=_model_dash(), strokeWidth=alt.value(2)
        ),
        alt.Chart(_values(points))
        .mark_point(filled=True, size=70, opacity=1)
        .encode(x, y, colours, tooltip=_tooltips(points)),
        *_meetings(regressions, x, y),
        _line_end_labels(curves, domain, TALL),
    ]
    return _finished(
        alt.layer(*layers),
        title,
        published["gpu"] + " (the article's measurements)",
        "Fits through the article's four lengths, extended to N = 8192, and where they cross.",
        TALL,
    )


def seeds_chart(frame: pl.DataFrame, *, title: str) -> alt.LayerChart:
    """Final accuracy of each seed, by mechanism and length; the line is at SOLVED_ACCURACY.

    Args:
        frame: of `frames.training_summaries`.
    """
    if frame.is_empty():
        return _no_data(title)
    order = _ordered(frame["attention"])
    drawn = frame.with_columns(
        slot=pl.col("attention").replace_strict({a: i for i, a in enumerate(order)}) * 1000
        + pl.col("seed"),
        value=pl.when(pl.col("outcome") != "diverged").then("final_accuracy"),
    )
    lowest = max(0.0, min(0.97, (drawn["value"].min() or 1.0) - 0.01))
    legend = alt.selection_point(name="mechanism", fields=["attention"], bind="legend")
    x = alt.X("seq_len:O", title=N_AXIS, axis=alt.Axis(labelAngle=0))
    y = alt.Y(
        "value:Q",
        title="final accuracy (% of tokens)",
        scale=alt.Scale(domain=[lowest, 1.0], nice=False),
        axis=alt.Axis(format="~%"),
    )
    base = alt.Chart(_values(drawn)).encode(
        x, _attention_colour(drawn), xOffset=alt.XOffset("slot:O"), opacity=_faded(legend)
    )
    tooltip = _tooltips(drawn)
    return _finished(
        alt.layer(
            base.mark_point(filled=True, size=60)
            .encode(y=y, tooltip=tooltip)
            .transform_filter("isValid(datum.value)"),
            *_diverged(base, HEIGHT - TOP_PX),
            _rule("y", SOLVED_ACCURACY),
        ).add_params(legend),
        title,
        _devices(frame),
        "Final accuracy of each seed by mechanism and sequence length; crosses did not finish.",
    )


def _growth_chart(frame: pl.DataFrame, y_title: str, title: str, guides: bool) -> alt.LayerChart:
    """`value` with its quartiles `low` and `high` against N, both axes logarithmic."""
    known = frame.filter(pl.col("value").is_not_null())
    failed = frame.filter(pl.col("value").is_null() & (pl.col("outcome") != "ok"))
    if known.is_empty():
        return _no_data(title)
    x_domain = _domain(frame["seq_len"])
    y_domain = _domain([*known["value"], *known["low"], *known["high"]], margin=1.25)
    if not failed.is_empty():
        y_domain[1] *= (y_domain[1] / y_domain[0]) ** 0.08  # room for the marks at the top
    legend = alt.selection_point(name="shown_series", fields=["series"], bind="legend")
    y = _log_axis("value", y_title, y_domain)
    layers = _guides(known, x_domain, y_domain) if guides else []
    layers += _series_layers(known, x_domain, y, legend)
    if not failed.is_empty():
        layers += _failed_layers(failed, frame, x_domain, legend)
    layers.append(_series_labels(known, y_domain, legend, HEIGHT))
    return _finished(
        alt.layer(*layers),
        title,
        _devices(frame, marks=True),
        f"{y_title} against sequence length on log axes, a line a mechanism and implementation.",
    )


def _series_layers(
    frame: pl.DataFrame, x_domain: list[float], y: alt.Y, legend: alt.Parameter
) -> list[alt.Chart]:
    """Quartile band, line and points of each series; its implementation sets dash and shape."""
    encodings = _series_encodings(frame)
    base = alt.Chart(_values(frame)).encode(
        _length_axis(x_domain), encodings["color"], alt.Detail(["device:N", "source:N"])
    )
    line = base.encode(y, encodings["strokeDash"], opacity=_faded(legend))
    point = base.encode(y, encodings["shape"], opacity=_faded(legend), tooltip=_tooltips(frame))
    low = y.copy()
    low.shorthand = "low:Q"
    layers = [
        base.mark_area().encode(
            low,
            alt.Y2("high:Q"),
            fillOpacity=_faded(legend, 0.2, 0.03),
        ),
        # The legend is clickable only where its parameter belongs to a layer of the series.
        line.mark_line(strokeWidth=2).add_params(legend),
    ]
    if "live" in frame["source"]:
        layers.append(point.mark_point(filled=True, size=70).transform_filter(_is("live")))
    if "recorded" in frame["source"]:
        layers.append(point.mark_point(filled=False, size=45).transform_filter(_is("recorded")))
    return layers


def _failed_layers(
    failed: pl.DataFrame, frame: pl.DataFrame, x_domain: list[float], legend: alt.Parameter
) -> list[alt.Chart]:
    """Points without a value at the top edge; the first of each outcome is named."""
    failed = failed.with_columns(reason=pl.col("outcome").str.replace_all("_", " "))
    encodings = _series_encodings(frame)
    base = alt.Chart(_values(failed)).encode(
        _length_axis(x_domain), encodings["color"], opacity=_faded(legend), y=alt.value(TOP_PX)
    )
    first = failed.sort("seq_len").unique("reason", keep="first", maintain_order=True)
    return [
        base.mark_point(**CROSS).encode(tooltip=_tooltips(failed)),
        alt.Chart(_values(first))
        .mark_text(align="right", dx=-9, color=NEUTRAL)
        .encode(_length_axis(x_domain), y=alt.value(TOP_PX), text="reason:N"),
    ]


def _series_encodings(frame: pl.DataFrame) -> dict[str, Any]:
    """Colour by mechanism, dash and shape by implementation, with one legend for all three."""
    order = _ordered(frame["attention"])
    series = (
        frame.select("attention", "implementation", "series")
        .unique()
        .sort(pl.col("attention").replace_strict({a: i for i, a in enumerate(order)}), "series")
    )
    names, used = series["series"].to_list(), series["implementation"].to_list()

    def scale(values: Iterable[Any]) -> alt.Scale:
        return alt.Scale(domain=names, range=list(values))

    legend = alt.Legend(symbolStrokeWidth=0)  # a dashed outline would fray the small shapes
    return {
        "color": alt.Color(
            "series:N", title=None, scale=scale(map(colour, series["attention"])), legend=legend
        ),
        "strokeDash": alt.StrokeDash(
            "series:N", title=None, scale=scale(DASHES.get(i, [1, 0]) for i in used), legend=legend
        ),
        "shape": alt.Shape(
            "series:N",
            title=None,
            scale=scale(SHAPES.get(i, "circle") for i in used),
            legend=legend,
        ),
    }


def _attention_colour(frame: pl.DataFrame, **options: Any) -> alt.Color:
    names = _ordered(frame["attention"])
    scale = alt.Scale(domain=names, range=[colour(name) for name in names])
    return alt.Color("attention:N", title=None, scale=scale, **options)


def _by_source(channel: type, live: Any, recorded: Any) -> Any:
    scale = alt.Scale(domain=["live", "recorded"], range=[live, recorded])
    return channel("source:N", scale=scale, title=None)


def _model_dash() -> alt.StrokeDash:
    scale = alt.Scale(domain=list(MODEL_DASHES), range=list(MODEL_DASHES.values()))
    return alt.StrokeDash("model:N", legend=None, scale=scale)


def _faded(legend: alt.Parameter, shown: float = 1.0, hidden: float = 0.08) -> Any:
    return alt.when(legend).then(alt.value(shown)).otherwise(alt.value(hidden))


def _is(source: str) -> str:
    return f"datum.source == '{source}'"


def _drawn_curves(frame: pl.DataFrame, y: str) -> pl.DataFrame:
    """The curves with the drawn `value`, null where the loss is not finite."""
    finite = pl.col("loss").is_finite()
    value = pl.col("loss").clip(lower_bound=LOSS_FLOOR) if y == "loss" else pl.col(y)
    return frame.with_columns(value=pl.when(finite).then(value))


def _median(frame: pl.DataFrame) -> pl.DataFrame:
    """The median run of each mechanism, length, device and source, evenly thinned."""
    of_run = ["attention", "seq_len", "device", "source"]
    medians = (
        frame.group_by(*of_run, "step")
        .agg(
            pl.median("value"), pl.median("loss"), pl.median("accuracy"), pl.col("seed").n_unique()
        )
        .rename({"seed": "n_seeds"})
        .sort(*of_run, "step")
    )
    return _thinned(medians, of_run)


def _thinned(frame: pl.DataFrame, of_run: Sequence[str]) -> pl.DataFrame:
    """Even points of each run, with its last and its extremes, about MAX_CURVE_POINTS in all."""
    if len(frame) <= MAX_CURVE_POINTS:
        return frame
    stride = math.ceil(len(frame) / MAX_CURVE_POINTS)
    index, value = pl.int_range(pl.len()).over(of_run), pl.col("value")
    return frame.filter(
        (index % stride == 0)
        | (index == pl.len().over(of_run) - 1)
        | value.is_null()
        | (index == value.arg_max().over(of_run))
        | (index == value.arg_min().over(of_run))
    )


def _curve_layers(
    frame: pl.DataFrame, y: str, axis: alt.Y, legend: alt.Parameter
) -> list[alt.Chart]:
    x, colours = _step_axis(), _attention_colour(frame)
    of_run = pl.struct("attention", "run_id", "seed", "device", "source")
    runs = frame.with_columns(run=of_run.rank("dense").cast(pl.Int64)).sort("run", "step")
    runs = _thinned(runs, ["run"]).select("run", "attention", "seed", "seq_len", "step", "value")
    seeds = alt.Chart(_values(runs)).encode(x, colours, alt.Detail("run:N"))
    medians = alt.Chart(_values(_median(frame))).encode(x, axis, colours)
    bold = medians.mark_line(strokeWidth=2.5).encode(
        alt.Detail(["device:N", "source:N"]), opacity=_faded(legend)
    )
    tooltip = ["attention:N", "source:N", "step:Q", "loss:Q", "accuracy:Q", "n_seeds:Q"]
    layers = [
        seeds.mark_line(strokeWidth=1).encode(axis, strokeOpacity=_faded(legend, 0.4, 0.04)),
        bold.encode(_by_source(alt.StrokeDash, [1, 0], [5, 4]))
        if frame["source"].n_unique() > 1
        else bold,
        medians.mark_point(size=80, opacity=0).encode(tooltip=tooltip),
    ]
    if runs["value"].has_nulls():
        layers += _diverged(seeds, TOP_PX if y == "loss" else HEIGHT - TOP_PX)
    return layers


def _diverged(base: alt.Chart, y: int) -> list[alt.Chart]:
    """A named cross where `value` is null, at the edge that means failure."""
    base = base.encode(y=alt.value(y)).transform_filter("!isValid(datum.value)")
    return [
        base.mark_point(**CROSS).encode(tooltip=["attention:N", "seed:Q"]),
        base.mark_text(align="left", dx=8).encode(text=alt.value("diverged")),
    ]


def _curve_domain(frame: pl.DataFrame, y: str) -> list[float]:
    return [0.0, 1.0] if y == "accuracy" else _domain(frame["value"], margin=1.2)


def _curve_axis(
    y: str, domain: list[float], pane: list[float] | None = None, field: str = "value"
) -> alt.Y:
    """The axis of a curve; `pane` is the band of pixels that it takes, bottom first."""
    place = {} if pane is None else {"range": pane}
    if y == "loss":
        return _log_axis("value", CURVES[y], domain, **place)
    scale = alt.Scale(domain=domain, nice=False, **place)
    axis = alt.Axis(format="%", values=[0, 0.25, 0.5, 0.75, 1], orient="left")
    return alt.Y(f"{field}:Q", title=CURVES[y], scale=scale, axis=axis)


def _curve_labels(
    frame: pl.DataFrame, domain: list[float], legend: alt.Parameter, height: int
) -> alt.Chart:
    """The mechanism at the end of each median, a label a length."""
    ends = _median(frame).filter(pl.col("value").is_not_null())
    ends = ends.sort("step").group_by("seq_len", "attention", maintain_order=True).last()
    log = domain[0] > 0
    parts = [_spread(part, domain, height, 1, log) for part in ends.partition_by("seq_len")]
    return (
        alt.Chart(_values(pl.concat(parts)))
        .mark_text(align="left", dx=6, fontWeight="bold")
        .encode(
            alt.X("step:Q"),
            alt.Y("label_px:Q", scale=None, axis=None),
            _attention_colour(frame),
            text="attention:N",
            opacity=_faded(legend),
        )
    )


def _series_labels(
    frame: pl.DataFrame, domain: list[float], legend: alt.Parameter, height: int
) -> alt.LayerChart:
    """The name of each series: beside its end, or above it where others go on to longer N."""
    ends = frame.sort("seq_len").group_by("series", maintain_order=True).last()
    words = ["attention", "implementation"]
    beside, above = (
        ends.filter(at_end := pl.col("seq_len") == ends["seq_len"].max()),
        ends.filter(~at_end),
    )
    beside = _spread(beside, domain, height, 2).with_columns(
        label=pl.concat_str(words, separator="\n", ignore_nulls=True)
    )
    above = _spread(above, domain, height, 1).with_columns(
        label=pl.concat_str(words, separator=" ", ignore_nulls=True)
    )
    layers = []
    for part, place in (
        (beside, {"align": "left", "dx": 8}),
        (above, {"align": "right", "dx": 4, "dy": -12}),
    ):
        text = alt.Chart(_values(part)).mark_text(
            lineBreak="\n", lineHeight=LABEL_PX, baseline="middle", **place
        )
        layers.append(
            text.encode(
                alt.X("seq_len:Q"),
                alt.Y("label_px:Q", scale=None, axis=None),
                _series_encodings(frame)["color"],
                text="label:N",
                opacity=_faded(legend),
            )
        )
    return alt.layer(*layers)


def _spread(
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


def _guides(frame: pl.DataFrame, x_domain: list[float], y_domain: list[float]) -> list[alt.Chart]:
    """Dotted N and N² from a little under the lowest first point, as far as the axes go."""
    x0 = float(frame["seq_len"].min())
    y0 = frame.filter(pl.col("seq_len") == x0)["value"].min() / 1.2
    lines = []
    for power, name in ((1, "~ N"), (2, "~ N²")):
        x1 = min(x_domain[1], x0 * (y_domain[1] / y0) ** (1 / power))
        for x, label in ((x0, None), (math.sqrt(x0 * x1), name), (x1, None)):
            y = y0 * (x / x0) ** power
            lines.append({"seq_len": x, "value": y, "guide": name, "label": label})
    base = alt.Chart(pl.DataFrame(lines)).encode(
        _length_axis(x_domain), alt.Y("value:Q", scale=alt.Scale(type="log", domain=y_domain))
    )
    return [
        base.mark_line(color=NEUTRAL, strokeDash=[1, 3]).encode(alt.Detail("guide:N")),
        base.mark_text(color=NEUTRAL, align="left", dx=6, dy=9)
        .encode(text="label:N")
        .transform_filter("isValid(datum.label)"),
    ]


def _ratios(frame: pl.DataFrame, mechanism: str, baseline: str) -> pl.DataFrame:
    """The baseline's time over the mechanism's at each N that has both, a series a baseline."""
    timed = frame.filter(pl.col("time_ms").is_not_null())
    keys = ["seq_len", "batch_size", "work", "device", "source"]
    ours = timed.filter(pl.col("attention") == mechanism).select(*keys, "time_ms", "q25", "q75")
    theirs = timed.filter(pl.col("attention") == baseline)
    return (
        theirs.join(ours, on=keys, suffix="_of_mechanism")
        .with_columns(
            value=pl.col("time_ms") / pl.col("time_ms_of_mechanism"),
            low=pl.col("q25") / pl.col("q75_of_mechanism"),
            high=pl.col("q75") / pl.col("q25_of_mechanism"),
        )
        .sort("series", "seq_len")
    )


def _crossings(ratios: pl.DataFrame, crossovers: Mapping[str, Crossover]) -> pl.DataFrame:
    """The finite crossovers of the series drawn, with their intervals and labels."""
    series = ratios.select("attention", "implementation", "series").unique("series").sort("series")
    rows = []
    for row in series.to_dicts():
        found = crossovers.get(row["series"])
        if found is None or not math.isfinite(found.length):
            continue
        high = "…" if math.isinf(found.high) else f"{found.high:.0f}"
        about = "extrapolated " if found.extrapolated else ""
        row |= {"length": found.length, "low": found.low, "high": found.high}
        row["label"] = f"{about}N ≈ {found.length:.0f}\n{found.low:.0f} to {high}"
        rows.append(row)
    columns = dict.fromkeys(("attention", "implementation", "series", "label"), pl.String)
    columns |= dict.fromkeys(("length", "low", "high"), pl.Float64)
    return pl.DataFrame(rows, schema=columns)


def _crossing_layers(crossings: pl.DataFrame, x_domain: list[float]) -> list[alt.Chart]:
    """The interval as a thick bar on the break-even line, the crossover on it, and its label."""
    if crossings.is_empty():
        return []
    drawn = crossings.sort("length").with_columns(
        pl.col("low", "high").clip(*x_domain),
        y=pl.lit(1.0),
        lift=pl.int_range(pl.len()) % 2,
    )
    base = alt.Chart(drawn).encode(_length_axis(x_domain, "length"), alt.Y("y:Q"))
    return [
        base.mark_rule(strokeWidth=7, opacity=0.45, color=NEUTRAL).encode(
            _length_axis(x_domain, "low"), alt.X2("high:Q")
        ),
        base.mark_point(filled=True, size=90, color=NEUTRAL, opacity=1).encode(
            tooltip=["series:N", "length:Q", "low:Q", "high:Q"]
        ),
        *(
            base.mark_text(
                lineBreak="\n", lineHeight=LABEL_PX, dy=dy, align=align, dx=dx, color=NEUTRAL
            )
            .encode(text="label:N")
            .transform_filter(f"datum.lift == {lift}")
            for lift, dy, align, dx in ((0, -28, "right", 0), (1, 18, "left", 0))
        ),
    ]


def _fitted_curves(regressions: Sequence[Regression], lengths: Sequence[float]) -> pl.DataFrame:
    """The lines of all models, and the one line of the linear attention."""
    rows = []
    for fit in regressions:
        for n in lengths:
            rows.append(("softmax", fit.softmax_model, n, _predicted(fit, n)))
    intercept, slope = regressions[0].linear_coefficients
    rows += [("linear", "quadratic", n, intercept + slope * n) for n in lengths]
    return pl.DataFrame(rows, schema=["attention", "model", "seq_len", "value"], orient="row")


def _predicted(fit: Regression, n: float) -> float:
    if fit.softmax_model == "power_law":
        factor, power = fit.softmax_coefficients
        return factor * n**power
    powers = SOFTMAX_POWERS[fit.softmax_model]
    return sum(c * n**power for c, power in zip(fit.softmax_coefficients, powers, strict=True))


def _line_end_labels(curves: pl.DataFrame, domain: list[float], height: int) -> alt.Chart:
    ends = curves.sort("seq_len").group_by("attention", "model", maintain_order=True).last()
    softmax = pl.col("attention") == "softmax"
    ends = _spread(ends, domain, height, 2).with_columns(
        label=pl.when(softmax)
        .then("softmax\n" + pl.col("model").replace_strict(MODELS))
        .otherwise(pl.lit("linear\na + b N"))
    )
    return (
        alt.Chart(ends)
        .mark_text(align="left", dx=6, lineBreak="\n", lineHeight=LABEL_PX)
        .encode(
            alt.X("seq_len:Q"),
            alt.Y("label_px:Q", scale=None, axis=None),
            _attention_colour(curves, legend=None),
            text="label:N",
        )
    )


def _meetings(regressions: Sequence[Regression], x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """Where each model of the softmax crosses the linear line, with its N."""
    rows = []
    for fit in regressions:
        if 1 < fit.crossover < 8192:
            intercept, slope = fit.linear_coefficients
            value = intercept + slope * fit.crossover
            label = f"N = {round(fit.crossover)}"
            rows.append({"seq_len": fit.crossover, "value": value, "label": label})
    if not rows:
        return []
    rows.sort(key=lambda row: row["seq_len"])
    base = alt.Chart(pl.DataFrame(rows)).encode(x, y)
    first, others = f"datum.label == '{rows[0]['label']}'", f"datum.label != '{rows[0]['label']}'"
    text = {"color": NEUTRAL, "fontWeight": "bold"}
    return [
        base.mark_point(filled=True, size=80, color=NEUTRAL, opacity=1),
        base.mark_text(align="right", dx=-8, dy=-8, **text)
        .encode(text="label:N")
        .transform_filter(first),
        base.mark_text(align="right", dx=-14, dy=-22, **text)
        .encode(text="label:N")
        .transform_filter(others),
    ]


def _measured_range(low: float, high: float) -> alt.Chart:
    data = pl.DataFrame(
        {"seq_len": [low], "end": [high], "text": [f"measured:\nN = {low} to {high}"]}
    )
    base = alt.Chart(data).encode(alt.X("seq_len:Q"))
    return alt.layer(
        base.mark_rect(color=NEUTRAL, opacity=0.15).encode(alt.X2("end:Q")),
        base.mark_text(
            align="left", dx=4, baseline="top", lineBreak="\n", lineHeight=LABEL_PX, color=NEUTRAL
        ).encode(y=alt.value(6), text="text:N"),
    )


def _step_axis(**options: Any) -> alt.X:
    axis = alt.Axis(grid=False, labelOverlap=True, labelSeparation=6)
    return alt.X("step:Q", title="training step", axis=axis, **options)


def _length_axis(domain: Sequence[float], field: str = "seq_len") -> alt.X:
    """N on a log axis with labels at powers of two: 64, 128, ... 1k, 2k."""
    return alt.X(
        f"{field}:Q",
        title=N_AXIS,
        scale=alt.Scale(type="log", base=2, domain=list(domain), nice=False),
        axis=alt.Axis(
            values=_powers(domain, 2),
            labelExpr="datum.value < 1024 ? datum.value : datum.value / 1024 + 'k'",
            labelOverlap="parity",
            labelSeparation=6,
            grid=False,
        ),
    )


def _log_axis(field: str, title: str, domain: list[float], **scale: Any) -> alt.Y:
    """A log axis with labels at powers of ten, and between them where these are few."""
    tens = _powers([domain[0] / 10, domain[1]], 10)
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


def _powers(domain: Sequence[float], base: int) -> list[float]:
    """The powers of a base inside a range, as decimals without rounding errors."""
    first = math.ceil(math.log(domain[0], base) - 1e-9)
    last = math.floor(math.log(domain[1], base) + 1e-9)
    return [float(f"{float(base) ** power:.12g}") for power in range(first, last + 1)]


def _domain(values: Iterable[float | None], margin: float = 1.0) -> list[float]:
    """The range of the positive values for a log axis; never empty."""
    known = [v for v in values if v is not None and math.isfinite(v) and v > 0] or [1.0]
    low, high = min(known) / margin, max(known) * margin
    return [low, high] if low < high else [low / 2, high * 2]


def _rule(channel: str, value: float) -> alt.Chart:
    data = pl.DataFrame({"value": [value]})
    rule = alt.Chart(data).mark_rule(color=NEUTRAL, strokeDash=[4, 3])
    return rule.encode(**{channel: alt.Y("value:Q")})


def _corner(data: pl.DataFrame, expression: str, y: str) -> alt.Chart:
    """A text in the right corner that the curves leave free, one a row of the data."""
    place, baseline = (4, "top") if y == "loss" else (HEIGHT - 6, "bottom")
    return (
        alt.Chart(data)
        .transform_calculate(text=expression)
        .mark_text(align="right", baseline=baseline, dx=-4, fontSize=14, color=NEUTRAL)
        .encode(x=alt.value("width"), y=alt.value(place), text="text:N")
    )


def _tooltips(frame: pl.DataFrame) -> list[alt.Tooltip]:
    """What there is to say about a point, by the columns of its frame."""
    titles = {
        "series": "mechanism",
        "attention": "mechanism",
        "seq_len": "N",
        "seed": "seed",
        "work": "work",
        "batch_size": "batch",
        "value": "value",
        "low": "lower quartile",
        "high": "upper quartile",
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


def _values(frame: pl.DataFrame) -> pl.DataFrame:
    """What the page needs: no lists, floats to five digits."""
    nested = [name for name, kind in frame.schema.items() if kind.is_nested()]
    floats = [name for name, kind in frame.schema.items() if kind.is_float()]
    return frame.drop(nested).with_columns(pl.col(floats).round_sig_figs(5))


def _ordered(names: Iterable[str]) -> list[str]:
    """The mechanisms in the order of the palette, others after them by name."""
    present = set(names)
    return [*(n for n in PALETTE if n in present), *sorted(present - PALETTE.keys())]


def _devices(frame: pl.DataFrame, marks: bool = False) -> str:
    """The subtitle: where it was measured, and how to tell this session's marks."""
    devices = "; ".join(sorted(set(frame["device"].drop_nulls())))
    if marks and frame["source"].n_unique() > 1:
        return f"{devices}; filled: this session, hollow: recorded"
    return devices


def _finished(
    chart: alt.LayerChart, title: str, subtitle: str, description: str, height: int = HEIGHT
) -> alt.LayerChart:
    """Title, size, description for screen readers and the theme."""
    heading = alt.TitleParams(
        text=_wrapped(title, WRAP) or [""], subtitle=_wrapped(subtitle, SUBTITLE_WRAP)
    )
    return chart.properties(
        width="container", height=height, title=heading, description=f"{title}. {description}"
    ).configure(**theme())


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of about equal length, as few as `width` characters allow; "N = 64" stays whole."""
    text = text.replace(" = ", "\u00a0=\u00a0")
    fewest = len(textwrap.wrap(text, width))
    widths = range(max(1, len(text) // max(1, fewest)), width + 1)
    return next((w for w in (textwrap.wrap(text, n) for n in widths) if len(w) <= fewest), [text])


def _no_data(title: str) -> alt.LayerChart:
    text = alt.Chart(pl.DataFrame({"text": ["no data yet"]})).mark_text(fontSize=16, color=NEUTRAL)
    return _finished(alt.layer(text.encode(text="text:N")), title, "", "No data yet.", 120)


def _check_known(name: str, value: Any, known: Iterable[Any]) -> None:
    if value not in known:
        raise ValueError(f"{name} {value!r}: use {', '.join(map(str, known))}")


def _check_single(frame: pl.DataFrame) -> None:
    keys = ["series", "seq_len", "device", "source"]
    if frame.select(keys).is_duplicated().any():
        twice = frame.filter(frame.select(keys).is_duplicated()).row(0, named=True)
        raise ValueError(
            f"{twice['series']} has two values at N = {twice['seq_len']}: "
            "filter the frame to one work and batch_size, of store.latest rows"
        )
