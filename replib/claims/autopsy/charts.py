"""Charts of the autopsy of the 2022 replication: what each defect does, and what remains."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import altair as alt
import polars as pl

from replib.claims.autopsy import frames, full_size
from replib.claims.autopsy.ablation import (
    ALONE_OFF,
    ALONE_ON,
    BROKEN,
    GUESSING,
    LEVEL_MARGIN,
    MENDED,
    NEAR_ZERO,
    OFF_WITH_MASK,
    above_level,
    article_ends,
    final_losses,
    lengths_of,
)
from replib.claims.autopsy.article_losses import article_batches
from replib.claims.autopsy.defects import DEFECTS
from replib.claims.autopsy.frames import (
    ALL_MENDED,
    ARTICLE_LINE,
    BAG,
    BETWEEN,
    EXPECTED,
    HERE,
    LEFT,
    OURS,
    PLATEAU_HERE,
    READ,
    STAGE,
    USUAL_SCALE,
    WRITTEN,
    loss_lines,
)
from replib.claims.autopsy.step_times import (
    NOT_THERE,
    Prediction,
    attribution,
    predicted,
    time_effects,
)
from replib.claims.claim import Figure, Rows
from replib.claims.common import LOSS_MARGIN
from replib.claims.crossover.extrapolation import MODELS, fitted_curves, measured_range
from replib.lab.run import config_of
from replib.lab.store import Row
from replib.lab.verdict import device_names, three_digits
from replib.pages import style
from replib.pages.curves import LOSS_FLOOR
from replib.published import published

LINE_PX, STAGE_PX = 34, 26
MARGIN = 1.25
LABEL_SHARE = 0.35  # of an axis, free for labels beyond the largest factor
ROLE_SHAPES = {ALONE_ON: "circle", ALONE_OFF: "diamond"}
LAST_LENGTH = 16384  # to which the article's four points are extended


def effects_chart(rows: Sequence[Row]) -> alt.LayerChart:
    """By what factor each defect lengthens a training step, alone and among all others, with 95 %
    intervals; a radio button a length and a mechanism. The title has what costs most at the longest
    N."""
    frame = frames.effects(rows)
    if frame.is_empty():
        return style.no_data("No measurements yet")
    longest = lengths_of(rows)[-1]
    alone = [one for one in time_effects(rows, "linear", longest) if one.alone_on]
    title = "What each defect does to the time of a training step"
    if alone:
        most = max(alone, key=lambda one: one.alone_on.value)
        factor, name = three_digits(most.alone_on.value), DEFECTS[most.defect].title
        title = f"At N = {longest}, “{name}” costs most of a linear step: {factor}×"
    params, shown = _radios(frame)
    lines = frame["line"].unique(maintain_order=True).to_list()
    domain = style.log_domain([*frame["low"], *frame["high"], 1.0], MARGIN)
    domain[1] *= (domain[1] / domain[0]) ** LABEL_SHARE
    drawn = frame.with_columns(label=pl.col("value").map_elements(_times, pl.String))
    base = _in_lines(drawn, lines).encode(
        style.attention_colour(drawn, legend=None),
        _role_offset(list(ROLE_SHAPES)),
        tooltip=style.tooltips_of(frame.drop("low", "high")) + _interval_tooltip(),
    )
    low, value, high = (_factor_axis(name, domain) for name in ("low", "value", "high"))
    layers = [
        _rule(1.0, _factor_axis("value", domain)),
        base.mark_rule(strokeWidth=6, opacity=0.4).encode(low, alt.X2("high:Q")),
        *_role_marks(base.encode(value), list(ROLE_SHAPES)),
        base.mark_text(align="left", dx=8).encode(high, text="label:N"),
    ]
    return style.finished(
        alt.layer(*(_only(layer, shown) for layer in layers)).add_params(*params),
        title,
        "; ".join(filter(None, [style.devices_of(frame), NOT_THERE])),
        "The factor by which each defect lengthens a training step, alone on and alone off.",
        LINE_PX * len(lines),
    )


def slowdown_chart(rows: Sequence[Row], article: Mapping[str, Any], n: int) -> alt.LayerChart:
    """From the mended ratio of linear to softmax step times to the article's at one length, a
    factor a line; the title has what stays unexplained."""
    found = attribution(rows, article, n)
    if found is None:
        return style.no_data("No measurements yet")
    left = f"{three_digits(found.unexplained.value)}×"
    title = f"The article's {found.article:z.0f}×, taken apart: {left} is unexplained"
    subtitle = f"N = {n}, linear over softmax, {device_names(rows)}; {NOT_THERE}"
    frame = frames.stages(found)
    lines = frame["line"].to_list()
    domain = style.log_domain([*frame["start"], *frame["end"], 1.0], MARGIN)
    domain[1] *= (domain[1] / domain[0]) ** LABEL_SHARE
    drawn = frame.with_columns(
        label=pl.struct("kind", "factor").map_elements(_stage_label, pl.String),
        right=pl.max_horizontal("start", "end"),
    )
    base = _in_lines(drawn, lines)
    start, end, right = (_factor_axis(name, domain) for name in ("start", "end", "right"))
    colour = alt.Color(
        "kind:N",
        legend=None,
        scale=alt.Scale(
            domain=KINDS, range=[style.colour("linear"), style.SPARE_COLOURS[2], style.NEUTRAL]
        ),
    )
    told = (("line", "line"), ("factor", "factor"), ("low", "95 % from"), ("high", "95 % to"))
    tooltip = [alt.Tooltip(name, title=title) for name, title in told]
    bars = base.mark_bar(height=12).encode(start, alt.X2("end:Q"), colour, tooltip=tooltip)
    return style.finished(
        alt.layer(
            _rule(1.0, start),
            bars,
            base.mark_tick(thickness=2, size=20).encode(end, colour),
            base.mark_text(align="left", dx=6, color=style.NEUTRAL).encode(right, text="label:N"),
        ),
        title,
        subtitle,
        "How the ratio of linear to softmax step times grows from mended to broken, and what of "
        "the article's is left unexplained.",
        STAGE_PX * len(lines),
    )


KINDS = [STAGE, "step", LEFT]


def _stage_label(row: dict) -> str:
    sign = "" if row["kind"] == STAGE else "× "
    return f"{sign}{row['factor']:z.3g}"


def losses_chart(rows: Sequence[Row], article: Mapping[str, Any]) -> alt.LayerChart:
    """Where runs with each defect end, a mark a seed; the dashed line is guessing, ln 10."""
    frame, title = frames.losses(rows, article), _losses_title(rows)
    ours = frame.filter(pl.col("line") != ARTICLE_LINE)
    if ours.is_empty():
        return style.no_data(title)
    params, shown = _radios(ours)
    lines = loss_lines("linear")
    roles = [role for role in ROLE_SHAPES if role in ours["role"]]
    most = max(GUESSING * 1.1, *frame["value"])
    x = alt.X(
        "value:Q",
        title="final loss (nats a token)",
        scale=alt.Scale(domain=[-0.05, most], nice=False),
        axis=alt.Axis(tickCount=6),
    )
    base = _in_lines(frame, lines).encode(
        x,
        style.attention_colour(frame, legend=None),
        tooltip=style.tooltips_of(frame.select("attention", "seq_len", "seed", "value", "device"))
        + ["role:N"],
    )
    together = base.transform_filter(f"!({_one_of('role', ROLE_SHAPES)})")
    layers = [
        _rule(GUESSING, x),
        together.mark_point(filled=True, size=60, opacity=0.9).transform_filter(
            f"datum.line != '{ARTICLE_LINE}'"
        ),
        together.mark_point(**style.CROSS).transform_filter(f"datum.line == '{ARTICLE_LINE}'"),
        *_role_marks(base.encode(_role_offset(roles)) if roles[1:] else base, roles),
    ]
    guessing = alt.Chart(pl.DataFrame({"value": [GUESSING], "text": ["guessing, ln 10"]}))
    layers.append(
        guessing.mark_text(align="right", dx=-5, color=style.NEUTRAL).encode(
            x, y=alt.value(LINE_PX * len(lines) - 8), text="text:N"
        )
    )
    return style.finished(
        alt.layer(*(_only(layer, shown) for layer in layers)).add_params(*params),
        title,
        style.devices_of(ours),
        "The final loss of runs with each defect alone on and alone off, with all and with none.",
        LINE_PX * len(lines),
    )


def _losses_title(rows: Sequence[Row]) -> str:
    """Where linear runs of the longest N end: broken, with the one defect mended that helps most,
    and mended."""
    n = max(lengths_of(rows), default=0)
    ends = {
        (role, defect): median(losses)
        for (attention, length, role, defect), losses in final_losses(rows).items()
        if (attention, length) == ("linear", n)
    }
    broken, mended = ends.get((BROKEN, None)), ends.get((MENDED, None))
    if broken is None or mended is None:
        return "Where runs with and without each defect end" if rows else "No measurements yet"
    told = [f"{_nats(broken)} broken", f"{_nats(mended)} mended"]
    off = {defect: end for (role, defect), end in ends.items() if role == ALONE_OFF}
    helps = min(off, key=off.get, default=None)
    if helps and broken - off[helps] > LOSS_MARGIN:
        masked = ends.get((OFF_WITH_MASK, helps))
        too = "" if masked is None else f" ({_nats(masked)} with the mask too)"
        told.insert(1, f"{_nats(off[helps])} with “{DEFECTS[helps].title}” alone mended{too}")
    return f"At N = {n}, linear runs end at {', '.join(told)}"


def _nats(loss: float) -> str:
    return f"{loss:z.2g}" if loss >= 1e-3 else "under 0.001"


def scale_chart(rows: Sequence[Row], article: Mapping[str, Any]) -> alt.LayerChart:
    """The article's losses as its figures have them and in nats a token, by a radio button; lines
    are the two levels on which a plateau may lie."""
    batches, frame = article_batches(article), frames.scale(article, rows)
    title = f"Divided by batches of {batches['softmax']} and {batches['linear']}, plateaus agree"
    labels = [" in nats a token\u2003", " as printed, summed over the batch"]
    unit = alt.param(
        name="loss_unit",
        value="nats",
        bind=alt.binding_radio(options=["nats", "printed"], labels=labels, name="losses: "),
    )
    x = alt.X(
        "at:Q",
        title=style.N_AXIS,
        scale=alt.Scale(type="log", base=2, domain=[7, 80], nice=False),
        axis=alt.Axis(values=[8, 16, 32, 64], grid=False),
    )
    y = alt.Y("value:Q", title="loss", scale=alt.Scale(zero=True))
    there = frame["what"].to_list()
    marks = {name: shape for name, shape in SCALE_SHAPES.items() if name in there}
    shape = alt.Shape(
        "what:N",
        title=None,
        scale=alt.Scale(domain=list(marks), range=list(marks.values())),
        legend=style.legend(
            [name if "here" in name else f"article, {name}" for name in marks],
            orient="bottom",
            labelExpr="(indexof(datum.label, 'here') < 0 ? 'article, ' : '') + datum.label",
        ),
    )
    base = (
        alt.Chart(style.records_of(frame))
        .transform_calculate(
            value="loss_unit == 'nats' ? datum.nats : datum.printed",
            at=f"datum.seq_len * pow(datum.attention == 'softmax' ? {1 / APART} : {APART}, "
            f"{_one_of('what', LEVEL_DASHES)} ? 0 : datum.what == '{PLATEAU_HERE}' ? 2 : 1)",
        )
        .encode(x, y, style.attention_colour(frame))
    )
    tooltip = ["attention:N", "what:N", "seq_len:Q", "printed:Q", "nats:Q"]
    lines = [
        base.transform_filter(f"datum.what == '{name}'").mark_line(strokeDash=dash)
        for name, dash in LEVEL_DASHES.items()
    ]
    return style.finished(
        alt.layer(
            *lines,
            base.transform_filter(f"!({_one_of('what', LEVEL_DASHES)})")
            .mark_point(filled=True, size=90, opacity=0.85)
            .encode(shape, tooltip=tooltip),
        ).add_params(unit),
        title,
        "dashed: the entropy of single tokens, where a model stands before it has learned "
        "anything; dotted: where it knows a sequence's symbols but not their order",
        "Losses of the article in nats a token or as printed, against N, and the entropies of "
        "single tokens and of symbols without their order, on which plateaus lie.",
    )


SCALE_SHAPES = {
    "first plateau": "triangle-up",
    "final": "cross",
    PLATEAU_HERE: "diamond",
    HERE: "circle",
}
LEVEL_DASHES = {EXPECTED: [6, 4], BAG: [2, 3]}
APART = 1.03  # factor of N by which marks of the same N stand side by side


def loss_curves_chart(rows: Sequence[Row], article: Mapping[str, Any]) -> alt.LayerChart:
    """The article's curves over those of our broken runs, titled with where the article's end."""
    above, ends = above_level(article), len(article_ends(article))
    near = sum(abs(gap) <= LEVEL_MARGIN for gap in above.values())
    title = (
        f"Of the article's {ends} runs {ends - len(above)} end at 0, {near} where the symbols are "
        "known but not their order"
    )
    return _loss_curves(frames.loss_curves(article, rows), frames.levels(article), title)


def full_size_chart(rows: Sequence[Row], article: Mapping[str, Any]) -> alt.LayerChart:
    """The article's curves over those of runs of its size, titled with where softmax ends as
    written."""
    found = full_size.written(rows, "softmax")
    if found is None:
        return style.no_data("No run of the article's size is recorded yet")
    end = article_ends(article)["softmax", full_size.SEQ_LEN]
    title = (
        f"As written, softmax ends at {full_size.printed(found.ends)} here, as printed; "
        f"the article's at {end.printed:zg}"
    )
    levels = frames.levels(article).filter(pl.col("seq_len") == full_size.SEQ_LEN)
    return _loss_curves(frames.full_size_curves(article, rows), levels, title)


def _loss_curves(frame: pl.DataFrame, levels: pl.DataFrame, title: str) -> alt.LayerChart:
    """The article's curves as far as they were read, in nats a token, over those of our runs, a
    radio button a length; lines are the levels on which a plateau may lie."""
    lengths, shown = sorted(frame["seq_len"].unique()), "datum.seq_len == shown_length"
    length = _radio("shown_length", "sequence length N: ", lengths, lengths[0])
    x = style.step_axis(scale=alt.Scale(domain=[0, frame["step"].max()], nice=False))
    y = alt.Y(
        "nats:Q",
        title="loss (nats a token)",
        scale=alt.Scale(domain=[0, max(frame["nats"].max(), GUESSING) * 1.05], nice=False),
        axis=alt.Axis(tickCount=6),
    )
    kinds = [name for name in CURVE_LOOKS if name in frame["kind"].to_list()]
    dashes, widths = zip(*(CURVE_LOOKS[name] for name in kinds), strict=True)
    legend = style.legend(kinds, symbolType="stroke", orient="bottom")
    kind = {"title": None, "legend": legend}
    line = (
        alt.Chart(style.records_of(frame))
        .mark_line(clip=True)
        .encode(
            x,
            y,
            style.attention_colour(frame),
            alt.StrokeDash("kind:N", scale=alt.Scale(domain=kinds, range=list(dashes)), **kind),
            alt.StrokeWidth("kind:N", scale=alt.Scale(domain=kinds, range=list(widths)), **kind),
            alt.Detail("line:N"),
        )
    )
    read = line.transform_filter(f"datum.kind == '{READ}'")
    ours = f"!({_one_of('kind', (READ, BETWEEN))})"
    tooltip = ["attention:N", "kind:N", "seq_len:Q", "seed:Q", "step:Q", "nats:Q"]
    points = alt.Chart(style.records_of(frame)).encode(
        x, y, style.attention_colour(frame), tooltip=tooltip
    )
    rule = alt.Chart(style.records_of(levels)).encode(y)
    names = [  # above the upper level and below the lower one, where both are close
        rule.mark_text(align="right", dx=-4, dy=dy, color=style.NEUTRAL)
        .encode(x=alt.value("width"), text="level:N")
        .transform_filter(f"datum.level == '{name}'")
        for name, dy in ((EXPECTED, -7), (BAG, 10))
    ]
    layers = [
        rule.mark_rule(color=style.NEUTRAL, strokeDash=[4, 3]),
        *names,
        line.mark_line(clip=True, opacity=0.75).transform_filter(ours),
        line.mark_line(clip=True, opacity=0.7).transform_filter(f"datum.kind == '{BETWEEN}'"),
        read,
        points.mark_point(filled=True, size=70, opacity=1).transform_filter(
            f"datum.kind == '{READ}'"
        ),
        points.mark_point(size=50, opacity=0).transform_filter(ours),
    ]
    device = style.devices_of(frame.filter(~pl.col("kind").is_in([READ, BETWEEN])))
    return style.finished(
        alt.layer(*(_only(layer, shown) for layer in layers)).add_params(length),
        title,
        "; ".join(filter(None, [READ_OFF, device])),
        "Loss against training steps of the article's runs, as far as its figures were read, and "
        "of broken runs here, with the levels on which plateaus lie.",
        style.TALL,
    )


READ_OFF = "thick: the article's, read off its figures, where its first plateau is at step 0"
CURVE_LOOKS = {
    READ: ([1, 0], 4),
    BETWEEN: ([2, 4], 2),
    OURS: ([1, 0], 1),
    WRITTEN: ([1, 0], 1),
    USUAL_SCALE: ([8, 3], 1.5),
    ALL_MENDED: ([2, 2], 1.5),
}
"""Dash and width of each kind of curve."""


def prediction_chart(
    article: Mapping[str, Any], lengths: Sequence[int], softmax_model: str
) -> alt.LayerChart:
    """The article's points, filled where the regression uses them, its two curves far beyond them,
    and the 95 % interval of where they meet, which the title has.

    Raises:
        ValueError: as `step_times.predicted`.
    """
    found = predicted(article, lengths, softmax_model)
    title = "These points and this model predict no crossover"
    if math.isfinite(found.fit.crossover):
        crossing = f"{found.fit.crossover:z.0f}"
        title = f"{len(lengths)} points up to N = {lengths[-1]} “predict” N = {crossing}"
    domain_n = [min(article["N"]), LAST_LENGTH]
    drawn_at = [2 ** (i / 4) for i in range(4 * 3, 4 * 14 + 1)]
    curves = fitted_curves([found.fit], drawn_at).filter(pl.col("value") > 0)
    measured, used = max(article["N"]), max(found.lengths)
    points = pl.DataFrame(
        [
            {"attention": a, "seq_len": n, "value": float(s), "used": n in found.lengths}
            for a in ("softmax", "linear")
            for n, s in zip(article["N"], article[f"{a}_s"], strict=True)
        ]
    )
    domain = style.log_domain([*curves["value"], *points["value"]], margin=1.5)
    x, y = style.length_axis(domain_n), style.log_axis("value", "time of 3000 steps (s)", domain)
    colours = style.attention_colour(curves, legend=None)
    line = alt.Chart(style.records_of(curves)).encode(x, y, colours)
    point = alt.Chart(points).encode(x, y, colours, tooltip=style.tooltips_of(points))
    layers = [
        measured_range(min(article["N"]), measured),
        line.transform_filter(f"datum.seq_len <= {used}").mark_line(strokeWidth=3),
        line.transform_filter(f"datum.seq_len >= {used}").mark_line(
            strokeWidth=2, strokeDash=[3, 4]
        ),
        point.transform_filter("datum.used").mark_point(filled=True, size=80, opacity=1),
        point.transform_filter("!datum.used").mark_point(filled=False, size=80, opacity=1),
        *_predicted_crossing(found, domain, domain_n),
        _names_of_curves(found, curves),
    ]
    return style.finished(
        alt.layer(*layers),
        title,
        f"{article['gpu']} (the article's measurements); dashed: beyond every point used",
        "Curves through some of the article's four points, extended far beyond them, and the "
        "interval of where they meet.",
        style.TALL,
    )


def _predicted_crossing(
    found: Prediction, domain: Sequence[float], domain_n: Sequence[float]
) -> list[alt.Chart]:
    """A bar at the bottom from the interval's low end to its high end, and the crossing on it."""
    crossing, last = found.fit.crossover, domain_n[1]
    text = "no crossing" if math.isinf(crossing) else f"N = {crossing:z.0f}"
    low, high = (min(max(bound, domain_n[0]), last) for bound in (found.low, found.high))
    if not math.isinf(found.low):
        above = "no end" if math.isinf(found.high) else f"{found.high:z.0f}"
        text += f" ({found.low:z.0f} to {above})"
    at = min(max(crossing, domain_n[0]), last)
    data = pl.DataFrame({"low": [low], "end": [high], "at": [at], "text": [text]})
    base = alt.Chart(data).encode(y=alt.value(style.TALL - 16))
    axis = [style.length_axis(domain_n, name) for name in ("low", "at")]
    look = {"color": style.NEUTRAL}
    layers = [
        base.mark_text(align="right", dy=-14, fontWeight="bold", **look).encode(
            x=alt.value("width"), text="text:N"
        )
    ]
    if math.isfinite(found.low):
        layers.append(
            base.mark_rule(strokeWidth=7, opacity=0.5, **look).encode(axis[0], alt.X2("end:Q"))
        )
    if math.isfinite(crossing) and crossing <= last:
        layers.append(base.mark_point(filled=True, size=90, opacity=1, **look).encode(axis[1]))
        layers.append(alt.Chart(data).mark_rule(strokeDash=[4, 3], **look).encode(axis[1]))
    return layers


def _names_of_curves(found: Prediction, curves: pl.DataFrame) -> alt.Chart:
    softmax = f"softmax\n{MODELS[found.fit.softmax_model]}"
    ends = curves.filter(pl.col("seq_len") == pl.col("seq_len").max())
    domain = style.log_domain(curves["value"], margin=1.5)
    ends = style.spread_labels(ends, domain, style.TALL, 2).with_columns(
        label=pl.when(pl.col("attention") == "softmax")
        .then(pl.lit(softmax))
        .otherwise(pl.lit("linear\na + b N"))
    )
    return (
        alt.Chart(ends)
        .mark_text(align="left", dx=6, lineBreak="\n", lineHeight=style.LABEL_PX)
        .encode(
            alt.X("seq_len:Q"),
            alt.Y("label_px:Q", scale=None, axis=None),
            style.attention_colour(curves, legend=None),
            text="label:N",
        )
    )


def switches_curves(rows: Sequence[Row]) -> alt.LayerChart:
    """Loss while learning with the chosen switches (solid) and mended (dashed)."""
    frame, config = frames.curves(rows), config_of(rows[0])
    title = f"N = {config.task.seq_len}, {config.n_steps} steps"
    drawn = frame.with_columns(value=pl.col("loss").clip(lower_bound=LOSS_FLOOR)).select(
        "attention", "switches", "seed", "run_id", "step", "value", "loss", "accuracy"
    )
    domain = style.log_domain([*drawn["value"].drop_nulls(), NEAR_ZERO, GUESSING], 1.2)
    y = style.log_axis("value", "loss (nats a token)", domain)
    kinds = ["with switches", "mended"]
    dash = alt.StrokeDash(
        "switches:N",
        title=None,
        scale=alt.Scale(domain=kinds, range=[[1, 0], [5, 4]]),
        legend=style.legend(kinds, symbolType="stroke", orient="bottom"),
    )
    line = (
        alt.Chart(style.records_of(drawn))
        .mark_line(strokeWidth=2)
        .encode(style.step_axis(), y, style.attention_colour(drawn), dash, alt.Detail("run_id:N"))
    )
    tooltip = ["attention:N", "switches:N", "seed:Q", "step:Q", "loss:Q", "accuracy:Q"]
    return style.finished(
        alt.layer(
            style.rule_at("y", GUESSING),
            line,
            line.mark_point(size=60, opacity=0).encode(tooltip=tooltip),
        ),
        title,
        f"{style.devices_of(frame)}; the dashed grey line is guessing, ln 10",
        "Loss against training steps, with the chosen switches and mended.",
    )


def _radios(frame: pl.DataFrame) -> tuple[list[alt.Parameter], str]:
    """Radio buttons for the length and the mechanism, and a filter for what they show; the longest
    length and linear attention first."""
    lengths, names = sorted(frame["seq_len"].unique()), style.ordered_attention(frame["attention"])
    first = "linear" if "linear" in names else names[0]
    params = [
        _radio("shown_length", "sequence length N: ", lengths, lengths[-1]),
        _radio("shown_attention", "attention: ", names, first),
    ]
    return params, "datum.seq_len == shown_length && datum.attention == shown_attention"


def _radio(name: str, label: str, options: list, value: Any) -> alt.Parameter:
    labels = [f"\u00a0{one}\u2003" for one in options]  # the page sets buttons without space
    bind = alt.binding_radio(options=options, labels=labels, name=label)
    return alt.param(name=name, value=value, bind=bind if len(options) > 1 else alt.Undefined)


def _only(layer: alt.Chart, shown: str) -> alt.Chart:
    return layer.transform_filter(f"!isValid(datum.seq_len) || ({shown})")


def _in_lines(frame: pl.DataFrame, lines: Sequence[str]) -> alt.Chart:
    y = alt.Y(
        "line:N",
        title=None,
        scale=alt.Scale(domain=list(lines)),
        axis=alt.Axis(ticks=False, domain=False, labelPadding=8, labelLimit=0),
    )
    return alt.Chart(style.records_of(frame)).encode(y)


def _role_offset(roles: list[str]) -> alt.YOffset:
    places = [LINE_PX * 0.02, LINE_PX * 0.88]  # two bands, in whose middle a mark stands
    return alt.YOffset("role:N", scale=alt.Scale(domain=roles, range=places))


def _role_shape(roles: list[str]) -> alt.Shape:
    scale = alt.Scale(domain=roles, range=[ROLE_SHAPES[role] for role in roles])
    return alt.Shape("role:N", title=None, scale=scale)


def _role_marks(base: alt.Chart, roles: list[str]) -> list[alt.Chart]:
    """Alone on is filled, alone off hollow, so that both are told apart where they meet."""
    return [
        base.mark_point(filled=role == ALONE_ON, size=60, opacity=1)
        .encode(_role_shape(roles))
        .transform_filter(f"datum.role == '{role}'")
        for role in roles
    ]


def _factor_axis(field: str, domain: Sequence[float]) -> alt.X:
    axis = style.log_axis(field, "", list(domain)).to_dict()["axis"]["values"]
    return alt.X(
        f"{field}:Q",
        title="factor of a step's time",
        scale=alt.Scale(type="log", domain=list(domain), nice=False),
        axis=alt.Axis(values=axis, labelExpr=f"{style.BIG_LABELS} + '×'", labelOverlap=True),
    )


def _rule(value: float, axis: alt.X) -> alt.Chart:
    data = pl.DataFrame({axis.to_dict()["field"]: [value]})
    return alt.Chart(data).mark_rule(color=style.NEUTRAL, strokeDash=[4, 3]).encode(axis)


def _one_of(field: str, values) -> str:
    return " || ".join(f"datum.{field} == '{value}'" for value in values)


def _interval_tooltip() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("role:N", title="how"),
        alt.Tooltip("low:Q", title="95 % from", format=".3~g"),
        alt.Tooltip("high:Q", title="95 % to", format=".3~g"),
    ]


def _times(value: float) -> str:
    return f"{value:z.2f}×" if value < 10 else f"{value:z.3g}×"


def figures(rows: Rows) -> Iterator[tuple[str, Figure]]:
    """What each defect does to losses and steps, and what the article's extrapolation is worth."""
    article, losses, times = published()["dm2022"], rows["autopsy"], rows["autopsy_time"]
    drawn = {"experiment": "autopsy", "rows": losses, "published": True}
    if losses:
        yield "autopsy_losses", Figure(chart=losses_chart(losses, article), **drawn)
    yield "autopsy_scale", Figure(chart=scale_chart(losses, article), **drawn)
    drawn = {"experiment": "autopsy_time", "rows": times}
    if times:
        yield "autopsy_effects", Figure(chart=effects_chart(times), **drawn)
    for n in article["N"]:
        if attribution(times, article, n):
            chart = slowdown_chart(times, article, n)
            yield f"autopsy_slowdown_{n}", Figure(chart=chart, published=True, **drawn)
    for model in ("quadratic", "full_quadratic"):  # the article's, and one that fits better
        chart = prediction_chart(article, article["N"], model)
        yield f"autopsy_prediction_{model}", Figure(chart=chart, published=True)
