"""Charts of training runs: loss, accuracy and where each seed ended."""

import math
from collections.abc import Sequence

import altair as alt
import polars as pl

from replib.pages import style

LOSS_FLOOR = 1e-4  # nats a token; lower losses are drawn here, or noise would fill the log axis
MAX_CURVE_POINTS = 2000  # a chart's evaluations: half of Altair's limit, and a light page
N_STOPS = 20  # of the slider, at least
CURVES = {"loss": "loss (nats a token)", "accuracy": "accuracy (% of tokens)"}


def learning_curves(
    frame: pl.DataFrame, *, y: str = "loss", title: str, seq_len: int | None = None
) -> alt.LayerChart:
    """Every run thin, the median of the seeds bold, a radio button a length, and a slider that ends
    the axis sooner, to see the beginning; y: a key of CURVES.

    Losses below LOSS_FLOOR are drawn at it. A step's median is of the runs whose loss is finite;
    one that is not is marked at the top. Runs of this session are bold and solid, and the recorded
    medians are dashed where there are both.

    Args:
        frame: of `frames.training_curves`.
        seq_len: the length to begin with; the longest if left out.

    Raises:
        ValueError: an unknown y, or a length that the frame does not hold.
    """
    style.check_known("y", y, CURVES)
    if frame.is_empty():
        return style.no_data(title)
    frame = _drawn_curves(frame, y)
    if frame["value"].null_count() == frame.height:  # every run diverged at once
        return style.no_data(title)
    lengths = sorted(frame["seq_len"].unique())
    first = seq_len or lengths[-1]
    style.check_known("seq_len", first, lengths)
    labels = [f"\u00a0{n}\u2003" for n in lengths]  # the page sets buttons and labels without space
    radio = alt.binding_radio(options=lengths, labels=labels, name="sequence length N: ")
    length = alt.param(
        name="shown_length", value=first, bind=radio if len(lengths) > 1 else alt.Undefined
    )
    legend = alt.selection_point(name="mechanism", fields=["attention"], bind="legend")
    domain = _curve_domain(frame, y)
    layers = _curve_layers(frame, y, _curve_axis(y, domain), legend)
    layers.append(_curve_labels(frame, domain, legend, style.HEIGHT))
    layers.append(
        style.corner_text(pl.DataFrame({"seq_len": lengths}), "'N = ' + datum.seq_len", y)
    )
    if y == "accuracy":
        layers.append(style.rule_at("y", style.SOLVED_ACCURACY))
    shown = (
        "(!isValid(datum.seq_len) || datum.seq_len == shown_length)"
        " && (!isValid(datum.step) || datum.step <= shown_steps)"
    )
    layers = [layer.transform_filter(shown) for layer in layers]
    return style.finished(
        alt.layer(*layers).add_params(length, _step_slider(frame), legend),
        title,
        style.devices_of(frame),
        f"{CURVES[y]} against training steps: a line a run, the median of the seeds bold.",
    )


def live_curves(
    live: pl.DataFrame, recorded: pl.DataFrame | None = None, *, title: str = "This session"
) -> alt.LayerChart:
    """Accuracy above loss of a run in progress, over the recorded medians, faint and dashed.

    The two panes are bands of one view, which costs a quarter of two charts and stays as wide as
    the page. Both frames are of one length, from `frames.training_curves`.
    """
    frames = [part for part in (recorded, live) if part is not None and not part.is_empty()]
    if not frames:
        return style.no_data(title)
    frame = pl.concat(frames)
    last_step = live["n_steps"].max() or frame["step"].max()  # recorded runs may go on beyond it
    drawn = _median(_drawn_curves(frame, "loss")).drop("seq_len", "n_seeds", "loss")
    base = (
        alt.Chart(style.records_of(drawn))
        .mark_line(clip=True)
        .encode(
            style.step_axis(scale=alt.Scale(domain=[0, last_step], nice=False)),
            style.attention_colour(drawn),
            style.by_source(alt.StrokeDash, [1, 0], [5, 4]),
            style.by_source(alt.StrokeWidth, 2.5, 1.5),
            style.by_source(alt.StrokeOpacity, 1, 0.6),
        )
    )
    upper, lower = [style.TALL * 0.44, 0], [style.TALL, style.TALL * 0.56]
    panes = [
        base.encode(_curve_axis("accuracy", [0.0, 1.0], upper, "accuracy")),
        base.encode(_curve_axis("loss", _curve_domain(drawn, "loss"), lower)),
    ]
    return style.finished(
        alt.layer(*panes).resolve_scale(y="independent"),
        title,
        style.devices_of(frame),
        "Accuracy and loss of the runs of this session against training steps.",
        style.TALL,
    )


def seeds_chart(frame: pl.DataFrame, *, title: str) -> alt.LayerChart:
    """Final accuracy of each seed, by mechanism and length; the line is at style.SOLVED_ACCURACY.

    Args:
        frame: of `frames.training_summaries`.
    """
    if frame.is_empty():
        return style.no_data(title)
    order = style.ordered_attention(frame["attention"])
    drawn = frame.with_columns(
        slot=pl.col("attention").replace_strict({a: i for i, a in enumerate(order)}) * 1000
        + pl.col("seed"),
        value=pl.when(pl.col("outcome") != "diverged").then("final_accuracy"),
    )
    lowest = max(0.0, min(0.97, (drawn["value"].min() or 1.0) - 0.01))
    legend = alt.selection_point(name="mechanism", fields=["attention"], bind="legend")
    x = alt.X("seq_len:O", title=style.N_AXIS, axis=alt.Axis(labelAngle=0))
    y = alt.Y(
        "value:Q",
        title="final accuracy (% of tokens)",
        scale=alt.Scale(domain=[lowest, 1.0], nice=False),
        axis=alt.Axis(format="~%"),
    )
    base = alt.Chart(style.records_of(drawn)).encode(
        x, style.attention_colour(drawn), xOffset=alt.XOffset("slot:O"), opacity=style.faded(legend)
    )
    tooltip = style.tooltips_of(drawn)
    return style.finished(
        alt.layer(
            base.mark_point(filled=True, size=60)
            .encode(y=y, tooltip=tooltip)
            .transform_filter("isValid(datum.value)"),
            *style.diverged_marks(base, style.HEIGHT - style.TOP_PX),
            style.rule_at("y", style.SOLVED_ACCURACY),
        ).add_params(legend),
        title,
        style.devices_of(frame),
        "Final accuracy of each seed by mechanism and sequence length; crosses did not finish.",
    )


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
    x, colours = style.step_axis(), style.attention_colour(frame)
    of_run = pl.struct("attention", "run_id", "seed", "device", "source")
    runs = frame.with_columns(run=of_run.rank("dense").cast(pl.Int64)).sort("run", "step")
    runs = _thinned(runs, ["run"]).select("run", "attention", "seed", "seq_len", "step", "value")
    seeds = alt.Chart(style.records_of(runs)).encode(x, colours, alt.Detail("run:N"))
    medians = alt.Chart(style.records_of(_median(frame))).encode(x, axis, colours)
    bold = medians.mark_line(strokeWidth=2.5).encode(
        alt.Detail(["device:N", "source:N"]), opacity=style.faded(legend)
    )
    tooltip = ["attention:N", "source:N", "step:Q", "loss:Q", "accuracy:Q", "n_seeds:Q"]
    layers = [
        seeds.mark_line(strokeWidth=1).encode(axis, strokeOpacity=style.faded(legend, 0.4, 0.04)),
        bold.encode(style.by_source(alt.StrokeDash, [1, 0], [5, 4]))
        if frame["source"].n_unique() > 1
        else bold,
        medians.mark_point(size=80, opacity=0).encode(tooltip=tooltip),
    ]
    if runs["value"].has_nulls():
        layers += style.diverged_marks(
            seeds, style.TOP_PX if y == "loss" else style.HEIGHT - style.TOP_PX
        )
    return layers


def _step_slider(frame: pl.DataFrame) -> alt.Parameter:
    last = int(frame["step"].max())
    stride = next(n for n in range(max(1, last // N_STOPS), 0, -1) if last % n == 0)
    slider = alt.binding_range(min=stride, max=last, step=stride, name="steps shown: ")
    return alt.param(name="shown_steps", value=last, bind=slider)


def _curve_domain(frame: pl.DataFrame, y: str) -> list[float]:
    return [0.0, 1.0] if y == "accuracy" else style.log_domain(frame["value"], margin=1.2)


def _curve_axis(
    y: str, domain: list[float], pane: list[float] | None = None, field: str = "value"
) -> alt.Y:
    """The axis of a curve; `pane` is the band of pixels that it takes, bottom first."""
    place = {} if pane is None else {"range": pane}
    if y == "loss":
        return style.log_axis("value", CURVES[y], domain, **place)
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
    parts = [
        style.spread_labels(part, domain, height, 1, log) for part in ends.partition_by("seq_len")
    ]
    return (
        alt.Chart(style.records_of(pl.concat(parts)))
        .mark_text(align="left", dx=6, fontWeight="bold")
        .encode(
            alt.X("step:Q"),
            alt.Y("label_px:Q", scale=None, axis=None),
            style.attention_colour(frame),
            text="attention:N",
            opacity=style.faded(legend),
        )
    )
