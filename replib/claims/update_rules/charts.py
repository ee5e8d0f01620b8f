"""Charts of keys that come back with new values."""

from collections.abc import Iterator

from replib.claims.capacity.charts import update_rules_chart
from replib.claims.capacity.frames import retrieval_frame
from replib.claims.claim import Figure, Rows
from replib.published import published


def figures(rows: Rows) -> Iterator[tuple[str, Figure]]:
    """Loss against the number of keys, beside the published one."""
    some = rows["update_rules"]
    chart = update_rules_chart(retrieval_frame(some, published()["fastweights_logs"]))
    figure = Figure(chart=chart, experiment="update_rules", rows=some, published=True)
    yield "update_rules", figure
