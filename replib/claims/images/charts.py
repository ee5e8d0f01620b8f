"""Charts of pixel models: images as they are drawn, and bits per dimension over training."""

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
DRAWING_COLUMNS = dict(
    strip=str, attention=str, image=int, row=int, column=int, order=int, level=float, given=bool
)

GAP, LABEL = 1, 3  # pixels of an image: between two of a strip, and above a strip for its name
# Of a pixel where the page is wide enough; on a narrow one they shrink, and stay square.
CELL_PX = 11


def digits_chart(
    frame: pl.DataFrame,
    *,
    shape: tuple[int, int],
    title: str,
    subtitle: str = "",
    slider: bool = False,
) -> alt.LayerChart:
    """Strips of images: what was given in grey, what a model drew in its colour, a dashed line
    between the two.

    Args:
        frame: of `frames.drawings`; an image that is not finished has fewer positions.
        shape: (h, w) of an image.
        slider: let the reader hide and draw again the pixels, in the order in which they came.
    """
    if frame.is_empty():
        return style.no_data(title)
    h, w = shape
    strips = frame["strip"].unique(maintain_order=True).to_list()
    drawn = _placed(frame, strips, h, w)
    columns = (frame["image"].max() + 1) * (w + GAP) - GAP
    rows = len(strips) * (h + LABEL)
    x, y = _axis(alt.X, "x", columns, columns, rows), _axis(alt.Y, "y", rows, columns, rows)
    pixels = alt.Chart(drawn.select("x", "y", "x2", "y2", "order", "level", "ink"))
    layers = [_frames(drawn, h, w, x, y), _names(strips, h, x, y)]
    n_given = frame.filter(pl.col("given") & pl.col("attention").is_not_null())["order"].max()
    n_given = 0 if n_given is None else n_given + 1
    bind = alt.binding_range(min=n_given, max=h * w, step=1, name="pixels drawn: ")
    last = alt.param(name="n_drawn", value=h * w, bind=bind if slider else alt.Undefined)
    layers.append(
        pixels.mark_rect()
        .encode(
            x,
            y,
            alt.X2("x2:Q"),
            alt.Y2("y2:Q"),
            alt.Color("ink:N", scale=None),
            alt.Opacity("level:Q", scale=alt.Scale(domain=[0, 1], range=[0, 1]), legend=None),
        )
        .transform_filter("datum.order < n_drawn")
    )
    layers += _borders(drawn, n_given, h, w, x, y)
    return style.finished(
        alt.layer(*layers).add_params(last),
        title,
        subtitle,
        f"Images of {h} x {w} pixels in strips: {'; '.join(strips)}.",
        round(rows * CELL_PX),
    )


def _placed(frame: pl.DataFrame, strips: list[str], h: int, w: int) -> pl.DataFrame:
    """Where each pixel is, in pixels from the upper left corner, and its ink."""
    top = pl.col("strip").replace_strict(
        {name: i * (h + LABEL) + LABEL for i, name in enumerate(strips)}
    )
    inks = {name: style.colour(name) for name in frame["attention"].drop_nulls().unique()}
    ink = pl.col("attention").replace_strict(inks, default=style.NEUTRAL, return_dtype=pl.String)
    return frame.with_columns(
        left=pl.col("image") * (w + GAP),
        top=top,
        ink=pl.when("given").then(pl.lit(style.NEUTRAL)).otherwise(ink),
        level=pl.col("level").round(3),
        # An image that no model drew is there from the start.
        order=pl.when(pl.col("attention").is_null()).then(-1).otherwise("order"),
    ).with_columns(
        x=pl.col("left") + pl.col("column"),
        x2=pl.col("left") + pl.col("column") + 1,
        y=pl.col("top") + pl.col("row"),
        y2=pl.col("top") + pl.col("row") + 1,
    )


def _axis(channel: type, field: str, extent: int, columns: int, rows: int):
    """Square pixels, as large as the page allows."""
    pixel = f"min(width / {columns}, height / {rows})"
    scale = alt.Scale(
        domain=[0, extent], range=[0, alt.ExprRef(f"{pixel} * {extent}")], nice=False, zero=False
    )
    return channel(f"{field}:Q", scale=scale, axis=None)


def _frames(drawn: pl.DataFrame, h: int, w: int, x: alt.X, y: alt.Y) -> alt.Chart:
    corners = drawn.select(x="left", y="top").unique(maintain_order=True)
    corners = corners.with_columns(x2=pl.col("x") + w, y2=pl.col("y") + h)
    return (
        alt.Chart(corners)
        .mark_rect(fillOpacity=0, stroke=style.NEUTRAL, strokeWidth=1, strokeOpacity=0.5)
        .encode(x, y, alt.X2("x2:Q"), alt.Y2("y2:Q"))
    )


def _borders(
    drawn: pl.DataFrame, n_given: int, h: int, w: int, x: alt.X, y: alt.Y
) -> list[alt.Chart]:
    """The line between what was given and what was drawn, where there are both."""
    some = drawn.filter(pl.col("attention").is_not_null())
    if n_given in (0, h * w):
        return []
    lines = some.select(x="left", y=pl.col("top") + n_given / w).unique(maintain_order=True)
    lines = lines.with_columns(x2=pl.col("x") + w)
    rule = alt.Chart(lines).mark_rule(color=style.NEUTRAL, strokeDash=[4, 3], strokeWidth=1.5)
    return [rule.encode(x, y, alt.X2("x2:Q"))]


def _names(strips: list[str], h: int, x: alt.X, y: alt.Y) -> alt.Chart:
    names = pl.DataFrame(
        {
            "x": [0] * len(strips),
            "y": [i * (h + LABEL) + LABEL - 0.5 for i in range(len(strips))],
            "strip": strips,
        }
    )
    text = alt.Chart(names).mark_text(align="left", baseline="bottom", color=style.NEUTRAL)
    return text.encode(x, y, text="strip:N")


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


def drawings(
    strips: Iterable[tuple[str, str | None, Sequence[Sequence[int]], int]],
    shape: tuple[int, int, int],
    n_levels: int,
) -> pl.DataFrame:
    """One line a position of an image that has a level: DRAWING_COLUMNS.

    Args:
        strips: of images side by side: what to call them, the mechanism that drew them, their
            levels in order, which may be fewer than an image has, and how many were given.
        shape: (h, w, 1) of an image.
        n_levels: L; `level` is 0 to 1 of the highest.

    Raises:
        ValueError: the images have several channels.
    """
    if shape[2] != 1:
        raise ValueError(f"images of {shape[2]} channels cannot be drawn: use digits or mnist")
    lines = [
        {
            "strip": name,
            "attention": attention,
            "image": image,
            "row": order // shape[1],
            "column": order % shape[1],
            "order": order,
            "level": level / (n_levels - 1),
            "given": order < n_given,
        }
        for name, attention, images, n_given in strips
        for image, levels in enumerate(images)
        for order, level in enumerate(levels)
    ]
    return frame_of(lines, DRAWING_COLUMNS)
