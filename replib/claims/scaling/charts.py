"""Charts of claim 2."""

from collections.abc import Iterator, Sequence

import altair as alt

from replib.claims.claim import Figure, Rows
from replib.claims.common import judged_linear, machine_busy, name_of
from replib.claims.scaling.growth import MEMORY, TIME, exponents, judged_rows
from replib.lab.run import config_of
from replib.lab.store import Row
from replib.pages import tidy
from replib.pages.costs import cost_chart


def scaling_chart(
    rows: Sequence[Row], what: str = TIME, predicted: Sequence[Row] = ()
) -> alt.LayerChart:
    """Time or memory of a sequence against N, of rows of one work and one rule for the batch. The
    title has the exponents of what is judged: of the rows or, before two lengths of them are
    there, of those `predicted`; or that the machine was busy."""
    said, how, busy = _growth(rows, what), "grows", what == TIME and machine_busy(rows)
    if not said:
        said, how = _growth(predicted, what), "is predicted to grow"
    costs = tidy.pooled(tidy.costs([*rows, *predicted]))
    title = f"{what.capitalize()} of a sequence"
    if said:
        title = busy.headline.capitalize() if busy else f"{title} {how}: {said}"
    return cost_chart(costs, y=what, title=title)


def _growth(rows: Sequence[Row], what: str) -> str:
    grown = {
        variant: exponent
        for work in {config_of(row).work for row in rows}
        for _, variant, measure, exponent in reversed(exponents(rows, work))
        if measure == what
    }
    judged = ("linear", judged_linear(rows)), ("softmax", "textbook")
    return ", ".join(f"{name_of(x)} as N^{grown[x].value:z.2f}" for x in judged if x in grown)


def figures(rows: Rows) -> Iterator[tuple[str, Figure]]:
    """Time and memory of forward and backward against N."""
    some = [row for row in rows["scaling"] if config_of(row).work == "forward_backward"]
    some = judged_rows(some)
    for what in (TIME, MEMORY):
        chart = scaling_chart(some, what)
        yield f"scaling_{what}", Figure(chart=chart, experiment="scaling", rows=some)
