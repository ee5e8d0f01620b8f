"""Charts of claim 2."""

from collections.abc import Iterator

from replib.claims.claim import Figure, Rows
from replib.lab.run import config_of
from replib.pages import frames
from replib.pages.costs import cost_chart


def figures(rows: Rows) -> Iterator[tuple[str, Figure]]:
    """Time and memory of forward and backward against N."""
    from replib.claims.scaling.growth import judged_rows

    some = [row for row in rows["scaling"] if config_of(row).work == "forward_backward"]
    some = judged_rows(some)
    costs = frames.pooled(frames.costs(some))
    for name, y, title in (
        ("scaling_time", "time_ms_per_sample", "Time of attention, per sequence"),
        ("scaling_memory", "memory_bytes_per_sample", "Memory of attention, per sequence"),
    ):
        chart = cost_chart(costs, y=y, title=title)
        yield name, Figure(chart=chart, experiment="scaling", rows=some)
