"""Charts of language models."""

from collections.abc import Iterator, Sequence
from statistics import mean

import altair as alt
import polars as pl

from replib.claims.claim import Figure, Rows
from replib.claims.common import BOTH
from replib.claims.language_model.grid import AXES, DEFECTS, defect_config
from replib.claims.language_model.judge import axis_losses, losses, scale_of
from replib.claims.translation.charts import seeds_chart
from replib.lab.run import variant_of
from replib.lab.store import Row
from replib.pages import frames, style

LOSS_TITLE = "test loss (nats a token)"
SMALL = 150  # pixels, of a chart among several
TITLE = "Perplexity on Penn Treebank"


def axis_name(axis: str) -> str:
    """What the figure of an axis is called."""
    return f"text_{axis.replace(',', '').replace(' ', '_')}"


def figures(rows: Rows) -> Iterator[tuple[str, Figure]]:
    """Perplexity of each seed, what context buys, each axis of the study, and its defects."""
    words, axes, some = (rows[name] for name in ("language_model", "text_axes", "text_defects"))
    chart = seeds_chart(words, "perplexity", "perplexity of a word", TITLE, best=min)
    yield "text_perplexity", Figure(chart=chart, experiment="language_model", rows=words)
    chart = position_chart(words)
    yield "text_position", Figure(chart=chart, experiment="language_model", rows=words)
    for axis in AXES:
        chart = axis_chart(axes, axis)
        yield axis_name(axis), Figure(chart=chart, experiment="text_axes", rows=axes)
    yield "text_defects", Figure(chart=defects_chart(some), experiment="text_defects", rows=some)


def axis_chart(rows: Sequence[Row], axis: str) -> alt.LayerChart:
    """The mean loss of the seeds at each point of an axis, in a band of all seeds."""
    title = axis[:1].upper() + axis[1:]
    lines = [
        {
            "attention": name,
            "point": str(value),
            "value": mean(some),
            "low": min(some),
            "high": max(some),
        }
        for name in BOTH
        for value, some in axis_losses(rows, axis, name).items()
    ]
    if not lines:
        return style.no_data(title)
    best = {
        name: min((one for one in lines if one["attention"] == name), key=lambda one: one["value"])
        for name in dict.fromkeys(one["attention"] for one in lines)
    }
    told = ", ".join(f"{name} {one['point']}" for name, one in best.items())
    chart = seed_bands(
        pl.DataFrame(lines), [str(value) for value in AXES[axis]], axis.split(",")[0]
    )
    return style.finished(
        chart, f"{title}: best {told}", devices_of(rows), f"Test loss against {axis}.", SMALL
    )


def seed_bands(frame: pl.DataFrame, order: Sequence[str], x_title: str) -> alt.LayerChart:
    """Lines of `value` by `point` in bands from `low` to `high`, a colour a mechanism."""
    drawn = frame.with_columns(frames.finite(pl.col("value", "low", "high")))
    x = alt.X("point:O", sort=list(order), title=x_title, axis=alt.Axis(labelAngle=0, grid=False))
    base = alt.Chart(style.records_of(drawn)).encode(x, style.attention_colour(drawn))
    zero = {"scale": alt.Scale(zero=False)}
    tooltip = ["attention", "point", alt.Tooltip("value", format=".4f", title=LOSS_TITLE)]
    return alt.layer(
        base.mark_area(opacity=0.2).encode(
            alt.Y("low:Q", **zero, title=LOSS_TITLE), alt.Y2("high:Q")
        ),
        base.mark_line().encode(alt.Y("value:Q", **zero)),
        base.mark_point(filled=True, size=50).encode(alt.Y("value:Q", **zero), tooltip=tooltip),
    )


def seed_points(frame: pl.DataFrame, group: str, order: Sequence[str]) -> alt.LayerChart:
    """The `value` of each seed, a line a group in that order, a colour a mechanism."""
    chart = alt.Chart(style.records_of(frame)).encode(
        alt.X("value:Q", title=LOSS_TITLE, scale=alt.Scale(zero=False)),
        alt.Y(f"{group}:N", sort=list(order), title=None),
        style.attention_colour(frame),
        alt.YOffset("attention:N"),
    )
    return alt.layer(chart.mark_point(filled=True, size=60, opacity=0.7))


def defects_chart(rows: Sequence[Row]) -> alt.LayerChart:
    """The loss of each seed with each thing that the study did otherwise."""
    title = "What the study did otherwise"
    scale = scale_of(rows)
    lines = [
        {"defect": defect, "attention": name, "value": loss}
        for defect in DEFECTS
        for name in BOTH
        for loss in losses(rows, defect_config(name, defect, scale))
    ]
    if not lines:
        return style.no_data(title)
    frame = pl.DataFrame(lines)
    worst = frame.group_by("defect").agg(pl.mean("value")).sort("value")["defect"][-1]
    return style.finished(
        seed_points(frame, "defect", list(DEFECTS)),
        f"{title}: the highest loss has {worst}",
        devices_of(rows),
        "Test loss of each seed, by what the study did otherwise.",
    )


def position_chart(rows: Sequence[Row]) -> alt.LayerChart:
    """Nats a token by how much of the text a token was predicted from, the mean of the seeds."""
    title = "What a longer context buys"
    found: dict[tuple, dict[int, list[float]]] = {}
    for row in rows:
        for group in row["summary"].get("by_position") or ():
            of_variant = found.setdefault(variant_of(row), {})
            of_variant.setdefault(group["position"], []).append(group["nats"])
    lines = [
        {**frames.mechanism(*variant), "position": position, "value": mean(some)}
        for variant, groups in found.items()
        for position, some in groups.items()
    ]
    if not lines:
        return style.no_data(title)
    frame = pl.DataFrame(lines, infer_schema_length=None)
    ticks = sorted(set(frame["position"]))
    base = alt.Chart(style.records_of(frame)).encode(
        alt.X(
            "position:Q",
            title="position in the segment, up to",
            scale=alt.Scale(type="log", base=2, domain=[ticks[0], ticks[-1]], nice=False),
            axis=alt.Axis(values=ticks, labelExpr="datum.value", grid=False, labelOverlap=True),
        ),
        alt.Y("value:Q", title="nats a token", scale=alt.Scale(zero=False)),
        style.attention_colour(frame),
        alt.Detail("series:N"),
        tooltip=["series", "position", alt.Tooltip("value", format=".3f")],
    )
    return style.finished(
        alt.layer(base.mark_line(), base.mark_point(filled=True, size=40)),
        title,
        devices_of(rows),
        "Nats a token against its position in the segment, a line a mechanism.",
        220,
    )


def devices_of(rows: Sequence[Row]) -> str:
    """Where rows were computed, and with how many threads."""
    return "; ".join(sorted({frames.origin(row)["device"] for row in rows}))
