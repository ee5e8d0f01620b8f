"""Charts of language models."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import mean
from typing import Any

import altair as alt
import polars as pl

from replib.claims.claim import Figure, Rows
from replib.claims.common import BOTH
from replib.claims.language_model.grid import AXES, DEFECTS, defect_config
from replib.claims.language_model.judge import axis_losses, losses, scale_of
from replib.claims.translation.charts import seeds_chart
from replib.lab.run import variant_of
from replib.lab.store import Row
from replib.pages import style, tidy

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
    found = {name: axis_losses(rows, axis, name) for name in BOTH}
    best = [
        f"{name} {min(some, key=lambda point: mean(some[point]))}"
        for name, some in found.items()
        if some
    ]
    title = axis[:1].upper() + axis[1:] + (f": best {', '.join(best)}" if best else "")
    texts = title, devices_of(rows), f"Test loss against {axis}.", SMALL
    return seed_bands(found, AXES[axis], axis.split(",")[0], *texts)


def seed_bands(
    found: Mapping[str, Mapping[Any, Sequence[float]]],
    points: Iterable[Any],
    x_title: str,
    title: str,
    subtitle: str,
    description: str,
    height: int = 220,
) -> alt.LayerChart:
    """The mean loss of the seeds of each mechanism at each point, in a band of all seeds."""
    lines = [
        {"attention": name, "point": str(point), "value": mean(some)}
        | {"low": min(some), "high": max(some)}
        for name, groups in found.items()
        for point, some in groups.items()
    ]
    if not lines:
        return style.no_data(title)
    drawn = pl.DataFrame(lines).with_columns(tidy.finite(pl.col("value", "low", "high")))
    order, axis = list(map(str, points)), alt.Axis(labelAngle=0, grid=False)
    x = alt.X("point:O", sort=order, title=x_title, axis=axis)
    base = alt.Chart(style.records_of(drawn)).encode(x, style.attention_colour(drawn))
    value, low = (
        alt.Y(f"{name}:Q", scale=alt.Scale(zero=False), **options)
        for name, options in (("value", {}), ("low", {"title": LOSS_TITLE}))
    )
    tooltip = ["attention", "point", alt.Tooltip("value", format=".4f", title=LOSS_TITLE)]
    layers = [
        base.mark_area(opacity=0.2).encode(low, alt.Y2("high:Q")),
        base.mark_line().encode(value),
        base.mark_point(filled=True, size=50).encode(value, tooltip=tooltip),
    ]
    return style.finished(alt.layer(*layers), title, subtitle, description, height)


def seed_points(
    found: Mapping[tuple[str, str], Sequence[float]],
    title: str,
    subtitle: str,
    description: str,
) -> alt.LayerChart:
    """The loss of each seed by group and mechanism, a line a group."""
    lines = [
        {"group": group, "attention": name, "value": loss}
        for (group, name), some in found.items()
        for loss in some
    ]
    if not lines:
        return style.no_data(title)
    frame = pl.DataFrame(lines)
    chart = alt.Chart(style.records_of(frame)).encode(
        alt.X("value:Q", title=LOSS_TITLE, scale=alt.Scale(zero=False)),
        alt.Y("group:N", sort=list(dict.fromkeys(frame["group"])), title=None),
        style.attention_colour(frame),
        alt.YOffset("attention:N"),
    )
    layers = alt.layer(chart.mark_point(filled=True, size=60, opacity=0.7))
    return style.finished(layers, title, subtitle, description)


def defects_chart(rows: Sequence[Row]) -> alt.LayerChart:
    """The loss of each seed with each thing that the study did otherwise."""
    scale, title = scale_of(rows), "Trained as the study did (tied, positions added)"
    found = {
        (defect, name): losses(rows, defect_config(name, defect, scale))
        for defect in DEFECTS
        for name in BOTH
    }
    of_defect = {defect: [x for name in BOTH for x in found[defect, name]] for defect in DEFECTS}
    if some := {defect: values for defect, values in of_defect.items() if values}:
        title += f": the highest loss has {max(some, key=lambda defect: mean(some[defect]))}"
    description = "Test loss of each seed, by what the study did otherwise."
    return seed_points(found, title, devices_of(rows), description)


def position_chart(rows: Sequence[Row]) -> alt.LayerChart:
    """Nats a token by how much of the text a token was predicted from, the mean of the seeds."""
    title = "What a longer context buys"
    found: dict[tuple, dict[int, list[float]]] = {}
    for row in rows:
        for group in row["summary"].get("by_position") or ():
            of_variant = found.setdefault(variant_of(row), {})
            of_variant.setdefault(group["position"], []).append(group["nats"])
    lines = [
        {**tidy.mechanism(*variant), "position": position, "value": mean(some)}
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
    return "; ".join(sorted({tidy.origin(row)["device"] for row in rows}))
