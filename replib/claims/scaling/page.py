"""The parts of notebooks 2 and 3: crossovers and exponents of measured costs."""

import math
from collections.abc import Sequence

import altair as alt
import marimo as mo

from replib.claims.common import judged_linear
from replib.claims.crossover import charts as crossover_charts
from replib.claims.crossover.crossings import crossings
from replib.claims.crossover.judge import implementations
from replib.claims.scaling import charts, judge
from replib.lab.recorded import latest
from replib.lab.statistics import Crossover, Exponent
from replib.lab.store import Row
from replib.lab.text import LEFT, markdown_table
from replib.lab.verdict import ARTICLE_CROSSOVER, PAPER_CROSSOVER, SUPPORTED, by_device
from replib.pages import frames
from replib.pages.controls import WORK_LABELS, has_own_run, in_static_page


def crossover_chart(rows: Sequence[Row], work: str, batch_size: int) -> alt.LayerChart:
    """Speed of linear attention against each softmax, with the crossovers, for rows of one work
    and batch size."""
    rows = [
        row
        for row in rows
        if row["config"]["work"] == work and row["config"]["batch_size"] == batch_size
    ]
    found, judged = crossings(rows, work), judged_linear(rows)
    where = ", ".join(
        f"{_rounded(one.found)} against softmax ({one.baseline})"
        for one in found
        if one.implementation == judged
    )
    title = "Two lengths or more are needed" if rows else "No measurements yet"
    title = f"Linear ({judged or 'fastest'}) is faster {where}" if where else title
    crossed = frames.crossings(found)
    return charts.ratio_chart(frames.costs(rows), crossings=crossed, title=title)


def _rounded(found: Crossover) -> str:
    if not math.isfinite(found.length):
        return "never"
    if found.extrapolated and found.length <= found.shortest:
        return f"from below N = {found.shortest:zg}"
    return f"from N = {found.length:z.0f}{' (extrapolated)' if found.extrapolated else ''}"


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
    config = rows[0]["config"] if rows else {"work": "forward", "batch_size": 1}
    return crossover_chart(rows, config["work"], config["batch_size"])


def crossings_chart(rows: Sequence[Row], work: str = "forward_backward") -> alt.LayerChart:
    """The crossover of each implementation, beside those of the paper and the 2022 article."""
    moves = implementations(rows, work=work).status == SUPPORTED
    title = "The crossover moves to shorter N as linear attention's implementation improves"
    return crossover_charts.crossings_chart(
        frames.crossings(crossings(rows, work)),
        references={"2022 article": ARTICLE_CROSSOVER, "paper": PAPER_CROSSOVER},
        title=title if moves else "Where linear attention overtakes softmax, by implementation",
    )


def session_crossings(rows: Sequence[Row]) -> mo.Html:
    """`crossings_chart` of the rows of one setting, where there is a crossover to show."""
    nothing = in_static_page() and not has_own_run()
    if nothing or not rows or not crossings(rows, rows[0]["config"]["work"]):
        return mo.md("")
    return mo.as_html(crossings_chart(rows, rows[0]["config"]["work"]))


def scaling_charts(rows: Sequence[Row], work: str) -> mo.Html:
    """Time and memory of one work, one above the other, on the first of `claims_scaling.curves`,
    and time on the others."""
    rows = [row for row in rows if row["config"]["work"] == work]
    parts = []
    for curve, some in judge.curves(rows).items() or {"": []}.items():
        costs, where = frames.pooled(frames.costs(some)), f", {curve}" if curve else ""
        parts.append(charts.cost_chart(costs, title=f"Time per sequence{where}"))
        if len(parts) == 1:  # memory is that of the same calls
            memory = {"y": "memory_bytes_per_sample", "title": f"Memory per sequence{where}"}
            parts.append(charts.cost_chart(costs, **memory))
    return mo.vstack(parts)


def first_figure(rows: Sequence[Row]) -> str:
    """What the first recordings of scaling gave, the old rows, and why it was wrong, as Markdown;
    nothing where there are none."""
    older = [row for row in rows if row["scale"] != "smoke"]
    found = judge.first_exponent(latest(older))
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


def exponents(rows: Sequence[Row], work: str) -> mo.Html:
    """The growth exponent of each mechanism's time and memory, with its interval, as a table."""
    if not rows:
        return mo.md("")
    lines = (
        [" ".join(filter(None, variant)), what, f"{exponent.value:z.2f}", _interval(exponent)]
        for _, variant, what, exponent in judge.exponents(rows, work)
    )
    head = "attention", "of", "exponent of N", "95 % interval"
    return mo.md(markdown_table(head, lines, LEFT))


def _interval(exponent: Exponent) -> str:
    if math.isinf(exponent.low) or math.isinf(exponent.high):
        return "unbounded: two lengths tell nothing of scatter"
    return f"{exponent.low:z.2f} to {exponent.high:z.2f}"
