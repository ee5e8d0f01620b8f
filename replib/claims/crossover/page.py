"""The parts of notebook 3."""

from collections.abc import Sequence

import altair as alt
import marimo as mo

from replib.claims.crossover.charts import crossings_chart, crossover_chart
from replib.claims.crossover.crossings import crossings
from replib.lab.run import config_of
from replib.lab.store import Row
from replib.lab.verdict import by_device
from replib.pages.controls import WORK_LABELS, has_own_run, in_static_page


def crossover_tabs(rows: Sequence[Row]) -> mo.Html:
    """`crossover_chart` of each device, work and batch size of recorded rows."""
    devices = by_device(rows) or {"": []}
    return mo.ui.tabs(
        {
            f"{text.capitalize()}, batch {batch_size}{f', {device}' if len(devices) > 1 else ''}": (
                crossover_chart(some, work, batch_size)
            )
            for device, some in devices.items()
            for work, text in reversed(WORK_LABELS.items())
            for batch_size in (8, 1)
        }
    )


def session_crossover_chart(rows: Sequence[Row]) -> alt.LayerChart:
    """`crossover_chart` of the rows of one setting."""
    if not rows:
        return crossover_chart([], "forward", 1)
    return crossover_chart(rows, config_of(rows[0]).work, config_of(rows[0]).batch_size)


def session_crossings(rows: Sequence[Row]) -> mo.Html:
    """`crossings_chart` of the rows of one setting, where there is a crossover to show."""
    nothing = in_static_page() and not has_own_run()
    if nothing or not rows or not crossings(rows, config_of(rows[0]).work):
        return mo.md("")
    return mo.as_html(crossings_chart(rows, config_of(rows[0]).work))
