"""The parts of notebook 3."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import marimo as mo

from replib.claims.crossover.charts import crossings_chart, crossover_chart
from replib.claims.crossover.extrapolation import extrapolation_chart, extrapolation_text
from replib.claims.crossover.steps import replication_chart, step_ratios
from replib.lab.run import config_of
from replib.lab.statistics import article_fits
from replib.lab.store import Row
from replib.lab.verdict import by_device
from replib.pages import drawn, tidy
from replib.pages.controls import WORK_LABELS


@drawn.once
def recorded_charts(rows: Sequence[Row]) -> dict[str, alt.LayerChart]:
    """By title: all crossovers in a chart for each work, and the times that they are of in a chart
    for each device, work and batch size, as far as there are some."""
    works = {work: ", forward only" * (work == "forward") for work in reversed(WORK_LABELS)}
    shown = {f"Crossovers{only}": crossings_chart(rows, work) for work, only in works.items()}
    devices = by_device(rows)
    for device, some in devices.items():
        for work, only in works.items():
            for batch_size in (8, 1):
                alike = [r for r in some if config_of(r).work == work]
                alike = [r for r in alike if config_of(r).batch_size == batch_size]
                name = f"Times{only}, batch {batch_size}"
                shown[name + f", {device}" * (len(devices) > 1)] = crossover_chart(alike)
    return shown


@drawn.once
def article_charts(article: Mapping[str, Any], steps: Sequence[Row]) -> dict[str, mo.Html]:
    """The 2022 article's extrapolation, and its Table 1 beside training steps recorded here."""
    fits, (there, here) = article_fits(article), step_ratios(article, steps)
    chart = replication_chart(tidy.costs(tidy.steps_alike(steps)), article)
    said = mo.md(f"The article: {there} Here: {here}")
    return {
        f"Where {article['fit']['ceil']} comes from": mo.vstack(
            [mo.md(extrapolation_text(fits)), extrapolation_chart(article, fits)]
        ),
        "The article's Table 1": mo.vstack([said, chart]),
    }
