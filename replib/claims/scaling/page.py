"""The parts of notebooks 2 and 3: crossovers and exponents of measured costs."""

import math
from collections.abc import Sequence

import marimo as mo

from replib.claims.scaling.growth import curves, exponents, first_exponent
from replib.lab.recorded import latest
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


def first_figure(rows: Sequence[Row]) -> str:
    """What the first recordings of scaling gave, the old rows, and why it was wrong, as Markdown;
    nothing where there are none."""
    older = [row for row in rows if row["scale"] != "smoke"]
    found = first_exponent(latest(older))
    if found is None:
        return ""
    return (
        f"**The first figure was made by the measurement.** The {len(older)} rows that were "
        f"recorded first gave N^{found.value:z.2f} ({_interval(found)}) for linear attention's "
        "time, and "
        "this page explained it by caches that long sequences outgrow. In truth freed memory was "
        "given back to the system after every competitor that took seconds, which happened from N "
        "= 4096 on, and what was timed next had to get it again page by page (some 8,200 page "
        "faults at N = 16384, in spite of one untimed call). There its samples were 31.8 to 40.0 "
        "ms right after such a competitor, and 19.4 to 21.5 ms where none had come since its own "
        "last call; the fit to samples of the second kind alone is N^1.07 (1.03 to 1.14). Besides, "
        "a batch had 4096 tokens up to N = 4096 and more beyond. "
        "Those rows are kept in `data/`, and left out above."
    )


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
