"""Charts of training runs: loss, accuracy and where each seed ended."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from replib.pages import style

LOSS_FLOOR = 1e-4  # nats a token; lower losses are drawn here, or noise would fill the log axis
MAX_CURVE_POINTS = 250  # of a curve: a point in three pixels, and a light page
CURVES = {"loss": "loss (nats a token)", "accuracy": "accuracy (% of tokens)"}
# Told in the subtitle, as two legends side by side are too wide for a phone.
SOURCES = {
    alt.StrokeDash: {"live": [1, 0], "earlier": [1, 0], "recorded": [5, 4]},
    alt.StrokeWidth: {"live": 2.5, "earlier": 1, "recorded": 1.5},
    alt.StrokeOpacity: {"live": 1, "earlier": 0.5, "recorded": 0.6},
}


def learning_curves(
    frame: pl.DataFrame, *, y: str = "loss", title: str, seq_len: int | None = None
) -> alt.LayerChart:
    """The median of the seeds of each mechanism, in a band from the lowest to the highest, and a
    radio button a length; y: a key of CURVES.

    Losses below LOSS_FLOOR are drawn at it. What is not finite is left out, and the step at which a
    run diverged is marked at the edge.

    Args:
        frame: of `tidy.training_curves`.
        seq_len: the length to begin with; the longest if left out.

    Raises:
        ValueError: an unknown y, or a length that the frame does not hold.
    """
    style.check_known("y", y, CURVES)
    curves = _medians(frame, y)
    known = curves.filter(pl.col("value").is_not_null())
    if known.is_empty():
        return style.no_data(title)
    lengths = sorted(curves["seq_len"].unique())
    first = seq_len or lengths[-1]
    style.check_known("seq_len", first, lengths)
    length = style.radio("shown_length", "sequence length N: ", lengths, first)
    legend = alt.selection_point(name="mechanism", fields=["attention"], bind="legend")
    domain = _domain(known, y)
    base = alt.Chart(style.records_of(curves)).encode(
        style.step_axis(),
        style.attention_colour(curves),
        alt.Detail(["device:N", "source:N"]),
        opacity=style.faded(legend),
    )
    layers = [
        base.mark_area().encode(
            _axis(y, domain, field="low"), alt.Y2("high:Q"), opacity=style.faded(legend, 0.2, 0.03)
        ),
        base.mark_line(strokeWidth=2.5).encode(_axis(y, domain)),
        base.mark_point(size=80).encode(
            _axis(y, domain),
            opacity=alt.value(0),
            tooltip=style.tooltips_of(curves.drop("loss", "accuracy")),
        ),
        _labels(known, y, domain, legend),
        style.corner_text(pl.DataFrame({"seq_len": lengths}), "'N = ' + datum.seq_len", y),
    ]
    if curves["n_diverged"].sum():
        diverged = alt.Chart(style.records_of(curves.filter(pl.col("n_diverged") > 0)))
        layers += style.diverged_marks(
            diverged.encode(style.step_axis(), style.attention_colour(curves)),
            style.TOP_PX if y == "loss" else style.HEIGHT - style.TOP_PX,
            "datum.n_diverged > 0",
        )
    if y == "accuracy":
        layers.append(style.rule_at(style.SOLVED_ACCURACY))
    shown = "!isValid(datum.seq_len) || datum.seq_len == shown_length"
    return style.finished(
        alt.layer(*(layer.transform_filter(shown) for layer in layers)).add_params(length, legend),
        title,
        style.devices_of(frame),
        f"{CURVES[y]} against training steps: the median of the seeds, in a band of all.",
    )


def live_curves(
    live: pl.DataFrame,
    recorded: pl.DataFrame | None = None,
    earlier: pl.DataFrame | None = None,
    *,
    title: str = "This session",
) -> alt.LayerChart:
    """Accuracy above loss of a run in progress, over `earlier` ones, thin, and over the recorded
    medians, faint and dashed.

    The two panes are bands of one view, which costs a quarter of two charts and stays as wide as
    the page. The frames are of `tidy.training_curves`.
    """
    sources = {"recorded": recorded, "earlier": earlier, "live": live}
    frames = [
        frame.with_columns(source=pl.lit(source))
        for source, frame in sources.items()
        if frame is not None and not frame.is_empty()
    ]
    if not frames:
        return style.no_data(title)
    drawn = _medians(pl.concat(frames), "loss")
    # Recorded runs may go on beyond these.
    last_step = live["n_steps"].max() or drawn["step"].max()
    base = (
        alt.Chart(style.records_of(drawn))
        .mark_line(clip=True)
        .encode(
            style.step_axis(scale=alt.Scale(domain=[0, last_step], nice=False)),
            style.attention_colour(drawn),
            alt.Detail(["seq_len:N", "setting:N"]),
            *(style.looks(channel, "source:N", of, legend=None) for channel, of in SOURCES.items()),
            tooltip=style.tooltips_of(drawn),
        )
    )
    upper, lower = [style.TALL * 0.44, 0], [style.TALL, style.TALL * 0.56]
    panes = [
        base.encode(_axis("accuracy", [0.0, 1.0], upper, "accuracy")),
        base.encode(_axis("loss", _domain(drawn, "loss"), lower)),
    ]
    return style.finished(
        alt.layer(*panes).resolve_scale(y="independent"),
        title,
        f"{style.devices_of(pl.concat(frames))}; {_lines_told(drawn)}",
        "Accuracy and loss of the runs of this session against training steps.",
        style.TALL,
    )


def seeds_chart(frame: pl.DataFrame, *, title: str) -> alt.LayerChart:
    """Final accuracy of each seed, by mechanism and length; the line is at style.SOLVED_ACCURACY.

    Args:
        frame: of `tidy.training_summaries`.
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
    base = alt.Chart(style.records_of(drawn)).encode(
        alt.X("seq_len:O", title=style.N_AXIS, axis=alt.Axis(labelAngle=0)),
        style.attention_colour(drawn),
        xOffset=alt.XOffset("slot:O"),
        opacity=style.faded(legend),
    )
    y = alt.Y(
        "value:Q",
        title="final accuracy (% of tokens)",
        scale=alt.Scale(domain=[lowest, 1.0], nice=False),
        axis=alt.Axis(format="~%"),
    )
    points = base.mark_point(filled=True, size=60).encode(y=y, tooltip=style.tooltips_of(drawn))
    return style.finished(
        alt.layer(
            points.transform_filter("isValid(datum.value)"),
            *style.diverged_marks(base, style.HEIGHT - style.TOP_PX),
            style.rule_at(style.SOLVED_ACCURACY),
        ).add_params(legend),
        title,
        style.devices_of(frame),
        "Final accuracy of each seed by mechanism and sequence length; crosses did not finish.",
    )


def _medians(frame: pl.DataFrame, y: str) -> pl.DataFrame:
    """The curve of each mechanism, setting, device and source: the median `value` of its seeds,
    their `low` and `high`, and how many diverged there. Of a long curve neighbouring steps are
    taken together."""
    width = max(1, -(-(frame["step"].max() or 1) // MAX_CURVE_POINTS))
    finite = pl.col("loss").is_not_null() & pl.col("loss").is_not_nan()
    value = pl.col("loss").clip(lower_bound=LOSS_FLOOR) if y == "loss" else pl.col(y)
    setting = pl.concat_str("batch_size", "n_layers", "d_model", "lr", "n_steps", separator=" ")
    curve = ["attention", "seq_len", "device", "source", "setting", "step"]
    return (
        frame.with_columns(
            setting=setting,
            value=pl.when(finite).then(value),
            loss=pl.when(finite).then("loss"),
            step=(pl.col("step") + width - 1) // width * width,
        )
        .group_by(curve)
        .agg(
            pl.median("value", "loss", "accuracy"),
            low=pl.min("value"),
            high=pl.max("value"),
            n_seeds=pl.n_unique("seed"),
            n_diverged=pl.col("seed").filter(~finite).n_unique(),
        )
        .sort(curve)
    )


def _lines_told(frame: pl.DataFrame) -> str:
    told = {"live": "bold: this run", "earlier": "thin: before it", "recorded": "dashed: recorded"}
    return ", ".join(text for source, text in told.items() if source in frame["source"])


def _domain(frame: pl.DataFrame, y: str) -> list[float]:
    values = [*frame["low"], *frame["high"]]
    return [0.0, 1.0] if y == "accuracy" else style.log_domain(values, margin=1.2)


def _axis(
    y: str, domain: list[float], pane: Sequence[float] | None = None, field: str = "value"
) -> alt.Y:
    """The axis of a curve; `pane` is the band of pixels that it takes, bottom first."""
    place = {} if pane is None else {"range": pane}
    if y == "loss":
        return style.log_axis(field, CURVES[y], domain, **place)
    scale = alt.Scale(domain=domain, nice=False, **place)
    axis = alt.Axis(format="%", values=[0, 0.25, 0.5, 0.75, 1], orient="left")
    return alt.Y(f"{field}:Q", title=CURVES[y], scale=scale, axis=axis)


def _labels(curves: pl.DataFrame, y: str, domain: list[float], legend: alt.Parameter) -> alt.Chart:
    """The mechanism at the end of each curve."""
    ends = curves.sort("step").group_by("seq_len", "attention", maintain_order=True).last()
    placed = [
        style.spread_labels(some, domain, style.HEIGHT, 1, log=y == "loss")
        for some in ends.partition_by("seq_len")
    ]
    return (
        alt.Chart(style.records_of(pl.concat(placed)))
        .mark_text(align="left", dx=6, fontWeight="bold")
        .encode(
            alt.X("step:Q"),
            alt.Y("label_px:Q", scale=None, axis=None),
            style.attention_colour(curves),
            text=alt.Text("attention:N"),
            opacity=style.faded(legend),
        )
    )
