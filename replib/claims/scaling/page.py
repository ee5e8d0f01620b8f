"""The parts of notebook 2."""

from collections.abc import Sequence

import altair as alt

from replib.claims.common import VARIANTS
from replib.claims.scaling.charts import scaling_chart
from replib.claims.scaling.growth import MEMORY, TIME, curves
from replib.lab.run import config_of, variant_of
from replib.lab.store import Row
from replib.pages import drawn
from replib.pages.controls import WORK_LABELS


@drawn.once
def recorded_charts(rows: Sequence[Row]) -> dict[str, alt.LayerChart]:
    """By title: time and memory of each work on the first of `growth.curves`, and time on the
    others; what is beside softmax and linear attention apart."""
    shown = {}
    for work in reversed(WORK_LABELS):
        only = ["forward only"] * (work == "forward")
        alike = curves([row for row in rows if config_of(row).work == work])
        for i, (curve, some) in enumerate(alike.items()):
            main = [row for row in some if variant_of(row) in VARIANTS]
            shown[", ".join(["Time", *only, *[curve] * (i > 0)])] = scaling_chart(main)
            if len(shown) == 1:  # memory is that of the same calls
                shown["Memory"] = scaling_chart(main, MEMORY)
                others = {config_of(row).seq_len for row in some if row not in main}
                if len(others) > 1:
                    shown["Beside LSH attention"] = scaling_chart(some, TIME)
    return shown or {"Time": scaling_chart([])}
