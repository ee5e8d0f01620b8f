"""Charts of pixel models: bits per dimension over training."""

import math
from collections.abc import Iterable, Iterator, Sequence

import altair as alt
import polars as pl

from replib.claims.claim import Figure, Rows
from replib.lab.run import config_of
from replib.lab.store import Row
from replib.pages import style
from replib.pages.frames import _RUN, CURVE_COLUMNS, frame_of, training_curves
from replib.tasks.image_files import DATASETS, load_images
from replib.tasks.images import histogram_bits

BITS_COLUMNS = _RUN | dict(images=str, step=int, bits_per_dim=float)


def bits_chart(rows: Sequence[Row]) -> alt.LayerChart:
    """Bits per dimension of the test images of runs on the digits: every run thin, the mean of the
    seeds bold, and the histogram of each position to compare with."""
    title, digits = "Learning the 8 x 8 digits, pixel by pixel", DATASETS["digits"]
    histogram = histogram_bits(load_images("digits"), digits.n_levels)
    references = {"each position by its own histogram": histogram}
    frame = bits_curves(row for row in rows if config_of(row).task.images == "digits")
    frame = frame.filter(pl.col("bits_per_dim").is_not_null())
    if frame.is_empty():
        return style.no_data(title)
    mean = frame.group_by("attention", "step", maintain_order=True).agg(
        pl.col("bits_per_dim").mean()
    )
    low = min(frame["bits_per_dim"].min(), *references.values())
    high = 1.2 * max(mean.filter(pl.col("step") == pl.col("step").max())["bits_per_dim"])
    domain = [0.95 * low, max(high, *(1.05 * value for value in references.values()))]
    scale = alt.Scale(domain=domain, nice=False, zero=False)
    y = alt.Y("bits_per_dim:Q", title="bits per dimension of the test", scale=scale)
    legend = alt.selection_point(name="mechanism", fields=["attention"], bind="legend")
    lines = alt.Chart(style.records_of(frame.select("attention", "seed", "step", "bits_per_dim")))
    colours = style.attention_colour(frame)
    bold = alt.Chart(style.records_of(mean)).encode(style.step_axis(), y, colours)
    tooltip = ["attention:N", "step:Q", alt.Tooltip("bits_per_dim:Q", format=".3f")]
    layers = [
        lines.mark_line(clip=True, strokeWidth=1).encode(
            style.step_axis(), y, colours, alt.Detail("seed:N"), opacity=style.faded(legend, 0.4)
        ),
        bold.mark_line(clip=True, strokeWidth=2.5).encode(opacity=style.faded(legend)),
        bold.mark_point(size=80, opacity=0, clip=True).encode(tooltip=tooltip),
        *(_reference(name, value, y) for name, value in references.items()),
    ]
    return style.finished(
        alt.layer(*layers).add_params(legend),
        title,
        style.devices_of(frame),
        "Bits per dimension of the test images against training steps; lower is better.",
    )


def _reference(name: str, value: float, y: alt.Y) -> alt.LayerChart:
    data = pl.DataFrame({"bits_per_dim": [value], "text": [f"{name}: {value:z.3f}"]})
    base = alt.Chart(data).encode(y)
    rule = base.mark_rule(color=style.NEUTRAL, strokeDash=[4, 3])
    text = base.mark_text(align="right", baseline="bottom", dx=-4, dy=-3, color=style.NEUTRAL)
    return alt.layer(rule, text.encode(x=alt.value("width"), text="text:N"))


def figures(rows: Rows) -> Iterator[tuple[str, Figure]]:
    """Bits per dimension over training."""
    if rows["images"]:
        chart = bits_chart(rows["images"])
        yield "images_bits", Figure(chart=chart, experiment="images", rows=rows["images"])


def bits_curves(rows: Iterable[Row]) -> pl.DataFrame:
    """One line an evaluation of a pixel model, in bits per dimension: BITS_COLUMNS."""
    parts = [
        training_curves([row]).with_columns(images=pl.lit(config_of(row).task.images))
        for row in rows
    ]
    curves = pl.concat(parts) if parts else frame_of([], CURVE_COLUMNS | dict(images=str))
    bits_per_dim = pl.col("loss") / math.log(2)
    return curves.with_columns(bits_per_dim=bits_per_dim).select(list(BITS_COLUMNS))
