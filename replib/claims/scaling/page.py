"""The parts of notebooks 2 and 3: crossovers and exponents of measured costs."""

import math
from collections.abc import Sequence

import marimo as mo

from replib.claims.scaling.growth import curves, exponents
from replib.lab.run import config_of
from replib.lab.statistics import Exponent
from replib.lab.store import Row
from replib.lab.text import LEFT, markdown_table
from replib.pages import frames
from replib.pages.costs import cost_chart


def scaling_charts(rows: Sequence[Row], work: str) -> mo.Html:
    """Time and memory of one work, one above the other, on the first of `claims_scaling.curves`,
    and time on the others."""
    rows = [row for row in rows if config_of(row).work == work]
    parts = []
    for curve, some in curves(rows).items() or {"": []}.items():
        costs, where = frames.pooled(frames.costs(some)), f", {curve}" if curve else ""
        parts.append(cost_chart(costs, title=f"Time per sequence{where}"))
        if len(parts) == 1:  # memory is that of the same calls
            memory = {"y": "memory_bytes_per_sample", "title": f"Memory per sequence{where}"}
            parts.append(cost_chart(costs, **memory))
    return mo.vstack(parts)


def exponents_table(rows: Sequence[Row], work: str) -> mo.Html:
    """The growth exponent of each mechanism's time and memory, with its interval, as a table."""
    if not rows:
        return mo.md("")
    lines = (
        [" ".join(filter(None, variant)), what, f"{exponent.value:z.2f}", _interval(exponent)]
        for _, variant, what, exponent in exponents(rows, work)
    )
    head = "attention", "of", "exponent of N", "95 % interval"
    return mo.md(markdown_table(head, lines, LEFT))


def _interval(exponent: Exponent) -> str:
    if math.isinf(exponent.low) or math.isinf(exponent.high):
        return "unbounded: two lengths tell nothing of scatter"
    return f"{exponent.low:z.2f} to {exponent.high:z.2f}"
