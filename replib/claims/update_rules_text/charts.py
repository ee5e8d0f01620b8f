"""Charts of update rules on text."""

from collections.abc import Iterator, Sequence
from statistics import mean

import altair as alt
import polars as pl

from replib.claims.claim import Figure, Rows
from replib.claims.language_model.charts import LOSS_TITLE, devices_of, seed_bands, seed_points
from replib.claims.update_rules_text.grid import N_CARRIED, RULES, SEGMENT
from replib.claims.update_rules_text.judge import (
    along_segments,
    by_rule,
    by_segments,
    by_state_size,
    cell_name,
)
from replib.lab.store import Row
from replib.pages import style

WITHOUT_END = "no end"
SUM = "the sum is DPFP's"


def figures(rows: Rows) -> Iterator[tuple[str, Figure]]:
    """The grid of rules, the loss by segments carried, and by the size of the state."""
    rules, carry = rows["update_rules_text"], rows["text_carry"]
    yield "text_rules", Figure(chart=rules_chart(rules), experiment="update_rules_text", rows=rules)
    yield "text_carry", Figure(chart=carry_chart(carry), experiment="text_carry", rows=carry)
    chart = segments_chart(carry)
    yield "text_segments", Figure(chart=chart, experiment="text_carry", rows=carry)
    yield "text_state", Figure(chart=state_chart(carry), experiment="text_carry", rows=carry)


def rules_chart(rows: Sequence[Row]) -> alt.LayerChart:
    """The loss of each seed of sum and delta, by positions and normalisation."""
    found, title = by_rule(rows), "Sum and delta rule on text"
    of_rule = {
        rule: [x for cell in found if cell[0] == rule for x in found[cell]] for rule in RULES
    }
    if found:
        ends = {rule: mean(some) for rule, some in of_rule.items() if some}
        lower = min(ends, key=ends.get)
        title += f": lower on the whole with {'the ' * (lower == 'sum')}{lower}"
    cells = {(cell_name(*how), RULES[rule]): some for (rule, *how), some in found.items()}
    description = "Test loss of each seed of two rules, by positions and normalisation."
    return seed_points(cells, title, f"{devices_of(rows)}; {SUM}", description)


def carry_chart(rows: Sequence[Row]) -> alt.LayerChart:
    """The loss against the segments that a state goes through."""
    found = {
        RULES[rule]: {n or WITHOUT_END: some for n, some in by_segments(rows, rule).items()}
        for rule in RULES
    }
    return seed_bands(
        found,
        [n or WITHOUT_END for n in N_CARRIED],
        f"segments of {SEGMENT} that a state goes through",
        "A state carried through segments",
        f"{devices_of(rows)}; {SUM}; lines are means of the seeds",
        "Test loss against the segments that a state goes through, of sum and delta rule.",
    )


def segments_chart(rows: Sequence[Row]) -> alt.LayerChart:
    """The loss on each segment that one state goes through."""
    found = {
        RULES[rule]: {i: [loss] for i, loss in enumerate(along_segments(rows, rule), start=1)}
        for rule in RULES
    }
    return seed_bands(
        found,
        max(found.values(), key=len),
        f"segment of {SEGMENT}",
        "Loss along the segments of one state",
        f"{devices_of(rows)}; {SUM}; means of the seeds",
        "Test loss on the first, second and later segments that a state goes through.",
    )


def state_chart(rows: Sequence[Row]) -> alt.LayerChart:
    """The loss against the bytes of the state of one sequence."""
    title = "Loss by the size of what is carried without end"
    found = by_state_size(rows)
    if not found:
        return style.no_data(title)
    frame = pl.DataFrame(found, schema=["attention", "bytes", "value"], orient="row")
    chart = alt.Chart(style.records_of(frame)).encode(
        alt.X(
            "bytes:Q",
            title="bytes of the state of one sequence",
            scale=alt.Scale(type="log", base=2, nice=False, padding=12),
            axis=alt.Axis(format="~s", grid=False),
        ),
        alt.Y("value:Q", title=LOSS_TITLE, scale=alt.Scale(zero=False)),
        style.attention_colour(frame),
        tooltip=["attention", "bytes", alt.Tooltip("value", format=".4f")],
    )
    return style.finished(
        alt.layer(
            chart.mark_line().encode(alt.Y("mean(value):Q")),
            chart.mark_point(filled=True, size=50, opacity=0.7),
        ),
        title,
        f"{devices_of(rows)}; softmax keeps the last keys and values",
        "Test loss against the bytes of the state, a line a mechanism.",
        220,
    )
