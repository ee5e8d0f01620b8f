"""Charts of the autopsy of the 2022 replication: what each defect does, and what remains."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import altair as alt
import polars as pl

from replib.claims.autopsy.ablation import (
    ALONE_OFF,
    ALONE_ON,
    BROKEN,
    GUESSING,
    MENDED,
    OFF_WITH_MASK,
    ROLES,
    Key,
    ablated,
    final_losses,
    lengths_of,
)
from replib.claims.autopsy.article_losses import article_ends, bag_entropy, unigram_entropy
from replib.claims.autopsy.defects import DEFECTS, article_defects
from replib.claims.autopsy.full_size import SEQ_LEN, end_of, printed, variants, written
from replib.claims.autopsy.prediction import prediction_chart
from replib.claims.autopsy.step_times import (
    NOT_THERE,
    attribution,
    step_times,
    time_effects,
)
from replib.claims.claim import Figure, Rows
from replib.claims.common import BOTH, LOSS_MARGIN
from replib.lab.run import config_of
from replib.lab.statistics import Ratio
from replib.lab.store import Row
from replib.lab.verdict import device_names, three_digits
from replib.pages import style, tidy
from replib.pages.curves import LOSS_FLOOR
from replib.published import published
from replib.tasks import SequenceCopy

LINE_PX, VARIANT_PX, LIVE_PX = 26, 34, 240
MARGIN = 1.25
LABEL_SHARE = 0.35  # of an axis, free for labels beyond the largest factor
NEAR_ZERO = 0.05  # nats a token
ROLE_SHAPES = {ALONE_ON: "circle", ALONE_OFF: "diamond"}
MENDED_LINE, BROKEN_LINE, ARTICLE_LINE = "none (mended)", "all (broken)", "2022 article"
STAGE, STEP, LEFT = "stage", "step", "unexplained"
KINDS = {STAGE: style.colour("linear"), STEP: style.SPARE_COLOURS[2], LEFT: style.NEUTRAL}
CROSS = {**style.CROSS, "size": 90}


def effects_chart(rows: Sequence[Row]) -> alt.LayerChart:
    """By what factor each defect lengthens a training step, alone and among all others, with 95 %
    intervals; a radio button a length and a mechanism. The title has what costs most at the longest
    N."""
    runs = ablated(rows)
    times, found, title = step_times(runs), [], "No measurements yet"
    for attention in BOTH:
        for n in lengths_of(runs, attention):
            effects = time_effects(times, attention, n)
            place = {"attention": attention, "seq_len": n}
            found += [
                place | {"line": DEFECTS[defect].title, "role": role} | asdict(factor)
                for (defect, role), factor in effects.items()
            ]
            alone = {defect: f.value for (defect, role), f in effects.items() if role == ALONE_ON}
            if attention == "linear" and alone:
                most = max(alone, key=alone.get)
                title = f"At N = {n}, “{DEFECTS[most].title}” costs most of a linear step: "
                title += f"{three_digits(alone[most])}×"
    if not found:
        return style.no_data(title)
    frame = pl.DataFrame(found).with_columns(
        label=pl.col("value").map_elements(lambda value: f"{value:z.3g}×", pl.String)
    )
    lines = frame["line"].unique(maintain_order=True).to_list()
    low, value, high = _factor_axes([*frame["low"], *frame["high"]], "low", "value", "high")
    base = _in_lines(frame, lines).encode(
        style.attention_colour(frame, legend=None),
        _role_offset(),
        tooltip=["attention", "seq_len", "role", "value", "low", "high"],
    )
    layers = [
        style.rule_at(1.0, value),
        base.mark_rule(strokeWidth=6, opacity=0.4).encode(low, alt.X2("high:Q")),
        *_role_marks(base.encode(value)),
        base.mark_text(align="left", dx=8).encode(high, text="label:N"),
    ]
    return _with_radios(
        layers,
        frame,
        title,
        f"{device_names(rows)}; {NOT_THERE}",
        "The factor by which each defect lengthens a training step, alone on and alone off.",
        LINE_PX * len(lines),
    )


def slowdown_chart(rows: Sequence[Row], article: Mapping[str, Any], n: int) -> alt.LayerChart:
    """From the mended ratio of linear to softmax step times to the article's at one length, a
    factor a line, each from where the one before it ended; the title has what stays unexplained."""
    found = attribution(step_times(ablated(rows)), article, n)
    if found is None:
        return style.no_data("No measurements yet")
    inverse = found.softmax_whole
    others = Ratio(1 / inverse.value, 1 / inverse.high, 1 / inverse.low)
    factors = found.parts | {"softmax's own defects": others}
    bars, at = [_bar("here, mended", STAGE, 1.0, found.mended)], found.mended.value
    for name, factor in factors.items():
        bars.append(_bar(name, STEP, at, factor))
        at *= factor.value
    bars.append(_bar("here, broken", STAGE, 1.0, found.broken))
    bars.append(_bar("unexplained", LEFT, found.broken.value, found.unexplained))
    theirs = Ratio(found.article, found.article, found.article)
    frame = pl.DataFrame([*bars, _bar(ARTICLE_LINE, STAGE, 1.0, theirs)])
    start, end, right = _factor_axes([*frame["start"], *frame["end"]], "start", "end", "right")
    colour = style.looks(alt.Color, "kind:N", KINDS, legend=None)
    base = _in_lines(frame, frame["line"].to_list())
    left = f"{three_digits(found.unexplained.value)}×"
    return style.finished(
        alt.layer(
            style.rule_at(1.0, start),
            base.mark_bar(height=12).encode(
                start, alt.X2("end:Q"), colour, tooltip=["line", "factor", "low", "high"]
            ),
            base.mark_tick(thickness=2, size=20).encode(end, colour),
            base.mark_text(align="left", dx=6, color=style.NEUTRAL).encode(right, text="label:N"),
        ),
        f"The article's {found.article:z.0f}×, taken apart: {left} is unexplained",
        f"N = {n}, linear over softmax, {device_names(rows)}; {NOT_THERE}",
        "How the ratio of linear to softmax step times grows from mended to broken, and what of "
        "the article's is left unexplained.",
        LINE_PX * len(frame),
    )


def _bar(line: str, kind: str, start: float, factor: Ratio) -> dict[str, Any]:
    end = start * factor.value
    label = f"{'× ' * (kind != STAGE)}{factor.value:z.3g}"
    named = {"line": line, "kind": kind, "label": label, "start": start, "end": end}
    figures = {"factor": factor.value, "low": factor.low, "high": factor.high}
    return named | figures | {"right": max(start, end)}


def losses_chart(rows: Sequence[Row], article: Mapping[str, Any]) -> alt.LayerChart:
    """Where runs with each defect end, a mark a seed, and where the article's do; the dashed line
    is guessing, ln 10."""
    runs, found = ablated(rows), []
    for (attention, n, role, defect), some in runs.items():
        line = {MENDED: MENDED_LINE, BROKEN: BROKEN_LINE}.get(role) or DEFECTS[defect].title
        place = {"attention": attention, "seq_len": n, "line": line, "role": role}
        for row in some if role in ROLES else ():
            figures = {name: row["summary"].get(name) for name in ("final_loss", "final_accuracy")}
            if figures["final_loss"] is not None:
                found.append(place | {"seed": row["seed"]} | figures)
    title = _losses_title(final_losses(runs))
    if not found:
        return style.no_data(title)
    for (attention, n), end in article_ends(article).items():
        place = {"attention": attention, "seq_len": n, "line": ARTICLE_LINE, "role": ARTICLE_LINE}
        found += [place | {"final_loss": end.nats}] * (n in lengths_of(runs))
    frame = pl.DataFrame(found, infer_schema_length=None)
    defects = [DEFECTS[name].title for name in article_defects("linear")]
    lines = [ARTICLE_LINE, BROKEN_LINE, *defects, MENDED_LINE]
    x = _loss_axis("final_loss", max(GUESSING * 1.1, *frame["final_loss"]))
    tooltip = ["attention", "seq_len", "role", "seed", "final_loss", "final_accuracy"]
    base = _in_lines(frame, lines).encode(
        x, style.attention_colour(frame, legend=None), tooltip=tooltip
    )
    ours = base.transform_filter(f"datum.role == '{MENDED}' || datum.role == '{BROKEN}'")
    layers = [
        style.rule_at(GUESSING, x),
        ours.mark_point(filled=True, size=60, opacity=0.9),
        base.mark_point(**CROSS).transform_filter(f"datum.line == '{ARTICLE_LINE}'"),
        *_role_marks(base.encode(_role_offset())),
        style.text_at("guessing, ln 10", GUESSING, x, dx=-5).encode(
            y=alt.value(LINE_PX * len(lines) - 8)
        ),
    ]
    return _with_radios(
        layers,
        frame,
        title,
        device_names(rows),
        "The final loss of runs with each defect alone on and alone off, with all and with none.",
        LINE_PX * len(lines),
    )


def _losses_title(ends: Mapping[Key, Sequence[float]]) -> str:
    """Where linear runs of the longest N end: broken, with the one defect mended that helps most,
    and mended."""
    n = max((n for _, n, *_ in ends), default=0)
    loss = {key[2:]: median(some) for key, some in ends.items() if key[:2] == ("linear", n)}
    broken, mended = loss.get((BROKEN, None)), loss.get((MENDED, None))
    if broken is None or mended is None:
        return "Where runs with and without each defect end" if ends else "No measurements yet"
    told = [f"{_nats(broken)} broken", f"{_nats(mended)} mended"]
    off = {defect: end for (role, defect), end in loss.items() if role == ALONE_OFF}
    helps = min(off, key=off.get, default=None)
    if helps and broken - off[helps] > LOSS_MARGIN:
        masked = loss.get((OFF_WITH_MASK, helps))
        too = "" if masked is None else f" ({_nats(masked)} with the mask too)"
        told.insert(1, f"{_nats(off[helps])} with “{DEFECTS[helps].title}” alone mended{too}")
    return f"At N = {n}, linear runs end at {', '.join(told)}"


def _nats(loss: float) -> str:
    return f"{loss:z.2g}" if loss >= 1e-3 else "under 0.001"


def full_size_chart(rows: Sequence[Row], article: Mapping[str, Any]) -> alt.LayerChart:
    """Where runs of the article's size end, a mark a run, a line what is mended of them, beside the
    article's ends; lines across are the losses of what a model may know before it copies."""
    found = written(rows, "softmax")
    if found is None:
        return style.no_data("No run of the article's size is recorded yet")
    ends = {name: article_ends(article)[name, SEQ_LEN] for name in BOTH}
    points = [
        {"attention": name, "line": f"{ARTICLE_LINE}, {name}", "nats": end.nats}
        for name, end in ends.items()
    ]
    for one in variants(rows):
        line = f"{one.attention}, {one.name}".replace(", but ", "\nbut ")
        for row in one.rows:
            told = {"seed": row["seed"], "accuracy": row["summary"]["final_accuracy"]}
            points.append({"attention": one.attention, "line": line, "nats": end_of(row)} | told)
    frame = pl.DataFrame(points, infer_schema_length=None)
    lines = frame["line"].unique(maintain_order=True).to_list()
    task, height = SequenceCopy(seq_len=SEQ_LEN), VARIANT_PX * len(lines)
    levels = {"symbols known, order not": bag_entropy(task), "nothing known": unigram_entropy(task)}
    x = _loss_axis("nats", max(*levels.values(), *frame["nats"]) * 1.1)
    base = _in_lines(frame, lines).encode(
        x, style.attention_colour(frame), tooltip=["line", "seed", "nats", "accuracy"]
    )
    return style.finished(
        alt.layer(
            *(style.rule_at(level, x) for level in levels.values()),
            *(
                style.text_at(name, level, x, dx=-5).encode(y=alt.value(-6))
                for name, level in levels.items()
            ),
            base.mark_point(filled=True, size=60, opacity=0.9).transform_filter(
                "isValid(datum.seed)"
            ),
            base.mark_point(**CROSS).transform_filter("!isValid(datum.seed)"),
        ),
        f"As written, softmax ends at {printed(found.ends)} here, summed over a batch of 8 as "
        f"printed; the article's at {ends['softmax'].printed:zg}",
        f"N = {SEQ_LEN}, {device_names(rows)}",
        "The final loss of runs of the article's size with its defects and with one thing mended.",
        height,
    )


def switches_curves(rows: Sequence[Row]) -> alt.LayerChart:
    """Loss while learning with the chosen switches (solid) and mended (dashed)."""
    drawn = []
    for row in rows:
        kind = "with switches" if config_of(row).defects else MENDED
        frame = tidy.training_curves([row]).with_columns(switches=pl.lit(kind))
        drawn.append(frame.with_columns(value=pl.col("loss").clip(lower_bound=LOSS_FLOOR)))
    frame, config = pl.concat(drawn), config_of(rows[0])
    domain = style.log_domain([*frame["value"].drop_nulls(), NEAR_ZERO, GUESSING], 1.2)
    kinds = {"with switches": [1, 0], MENDED: [5, 4]}
    legend = style.legend(kinds, symbolType="stroke", orient="bottom")
    line = (
        alt.Chart(style.records_of(frame))
        .mark_line(strokeWidth=2)
        .encode(
            style.step_axis(scale=alt.Scale(domain=[0, config.n_steps], nice=False)),
            style.log_axis("value", "loss (nats a token)", domain),
            style.attention_colour(frame),
            style.looks(alt.StrokeDash, "switches:N", kinds, legend=legend),
            alt.Detail("run_id:N"),
        )
    )
    tooltip = ["attention:N", "switches:N", "seed:Q", "step:Q", "loss:Q", "accuracy:Q"]
    return style.finished(
        alt.layer(
            style.rule_at(GUESSING),
            line,
            line.mark_point(size=60, opacity=0).encode(tooltip=tooltip),
        ),
        f"Copying {config.task.seq_len - 2} digits (N = {config.task.seq_len})",
        f"{style.devices_of(frame)}; the dashed grey line is guessing, ln 10",
        "Loss against training steps, with the chosen switches and mended.",
        LIVE_PX,
    )


# --- what they share ------------------------------------------------------------------------------


def _with_radios(
    layers: list[alt.Chart], frame: pl.DataFrame, title: str, subtitle: str, says: str, height: int
) -> alt.LayerChart:
    """The layers with radio buttons for the length and the mechanism; the longest length and
    linear attention first."""
    lengths, names = sorted(frame["seq_len"].unique()), style.ordered_attention(frame["attention"])
    first = "linear" if "linear" in names else names[0]
    radios = [
        style.radio("shown_length", "sequence length N: ", lengths, lengths[-1]),
        style.radio("shown_attention", "attention: ", names, first),
    ]
    shown = (
        "!isValid(datum.seq_len) || "
        "(datum.seq_len == shown_length && datum.attention == shown_attention)"
    )
    chart = alt.layer(*(layer.transform_filter(shown) for layer in layers)).add_params(*radios)
    return style.finished(chart, title, subtitle, says, height)


def _in_lines(frame: pl.DataFrame, lines: Sequence[str]) -> alt.Chart:
    """A base with a line of its own for each of these texts, which may have two lines."""
    y = style.lines_axis(lines, "split(datum.label, '\\n')", **style.ROOMY)
    return alt.Chart(style.records_of(frame)).encode(y)


def _role_offset() -> alt.YOffset:
    places = [LINE_PX * 0.02, LINE_PX * 0.88]  # two bands, in whose middle a mark stands
    return alt.YOffset("role:N", scale=alt.Scale(domain=list(ROLE_SHAPES), range=places))


def _role_marks(base: alt.Chart) -> list[alt.Chart]:
    """Alone on is filled, alone off hollow, so that both are told apart where they meet."""
    shape = style.looks(alt.Shape, "role:N", ROLE_SHAPES)
    return [
        base.mark_point(filled=role == ALONE_ON, size=60, opacity=1)
        .encode(shape)
        .transform_filter(f"datum.role == '{role}'")
        for role in ROLE_SHAPES
    ]


def _factor_axes(values: Sequence[float], *fields: str) -> list[alt.X]:
    """The axis of factors of a step's time for each field, which holds the values."""
    low, high = style.log_domain([*values, 1.0], MARGIN)
    domain = [low, high * (high / low) ** LABEL_SHARE]
    at = style.log_axis("", "", domain).to_dict()["axis"]["values"]
    title, look = "factor of a step's time", {"values": at, "labelOverlap": True}
    return [style.factor_axis(field, title, domain, **look) for field in fields]


def _loss_axis(field: str, most: float) -> alt.X:
    scale = alt.Scale(domain=[-0.05, most], nice=False)
    axis = alt.Axis(tickCount=6)
    return alt.X(f"{field}:Q", title="final loss (nats a token)", scale=scale, axis=axis)


def figures(rows: Rows) -> Iterator[tuple[str, Figure]]:
    """What each defect does to losses and steps, and what the article's extrapolation is worth."""
    article, losses, times = published()["dm2022"], rows["autopsy"], rows["autopsy_time"]
    if losses:
        chart = losses_chart(losses, article)
        drawn = {"experiment": "autopsy", "rows": losses}
        yield "autopsy_losses", Figure(chart=chart, published=True, **drawn)
    drawn = {"experiment": "autopsy_time", "rows": times}
    if times:
        yield "autopsy_effects", Figure(chart=effects_chart(times), **drawn)
        longest = max(article["N"])
        chart = slowdown_chart(times, article, longest)
        yield f"autopsy_slowdown_{longest}", Figure(chart=chart, published=True, **drawn)
    chart = prediction_chart(article, article["N"], "quadratic")
    yield "autopsy_prediction_quadratic", Figure(chart=chart, published=True)
