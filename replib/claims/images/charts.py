"""The chart of pixel models: bits per dimension over training."""

import math
from collections.abc import Iterator, Sequence

import altair as alt
import polars as pl

from replib.claims.claim import Figure, Rows
from replib.lab.run import config_of
from replib.lab.store import Row
from replib.pages import style
from replib.pages.curves import learning_curves
from replib.pages.tidy import training_curves
from replib.tasks.image_files import DATASETS, load_images
from replib.tasks.images import histogram_bits

TITLE = "Learning the 8 x 8 digits, pixel by pixel"
Y_TITLE = "bits per dimension of the test"


def bits_chart(rows: Sequence[Row]) -> alt.LayerChart:
    """Bits per dimension of the test images of runs on the digits: `curves.learning_curves`, and a
    line at what the histogram of each position alone needs."""
    frame = training_curves(row for row in rows if config_of(row).task.images == "digits")
    if frame.is_empty():
        return style.no_data(TITLE)
    histogram = histogram_bits(load_images("digits"), DATASETS["digits"].n_levels)
    title = f"{TITLE}; a histogram of each position: {histogram:z.2f}"
    chart = learning_curves(frame.with_columns(pl.col("loss") / math.log(2)), title=title)
    chart.layer.append(style.rule_at(histogram))
    for layer in chart.layer:
        if isinstance(layer.encoding.y, alt.Y):
            layer.encoding.y.title = Y_TITLE
    what = "Bits per dimension of the test images against training steps; lower is better."
    chart.description = f"{title}. {what}"
    return chart


def figures(rows: Rows) -> Iterator[tuple[str, Figure]]:
    """Bits per dimension over training."""
    if rows["images"]:
        chart = bits_chart(rows["images"])
        yield "images_bits", Figure(chart=chart, experiment="images", rows=rows["images"])
