"""The chart of keys that come back with new values."""

from collections.abc import Iterator

from replib.claims.capacity.charts import loss_chart, retrieval_frame
from replib.claims.claim import Figure, Rows


def figures(rows: Rows) -> Iterator[tuple[str, Figure]]:
    """Loss against the number of keys, beside the published one."""
    some = rows["update_rules"]
    chart = loss_chart(retrieval_frame(some), 2)
    yield "update_rules", Figure(chart=chart, experiment="update_rules", rows=some, published=True)
