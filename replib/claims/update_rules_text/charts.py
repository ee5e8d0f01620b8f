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
)
from replib.lab.store import Row
from replib.pages import style

WITHOUT_END = "no end"


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
    title = "Sum and delta rule on text"
    lines = [
        {
            "attention": RULES[rule],
            "cell": f"{'' if positions != 'none' else 'no '}positions, "
            f"{'' if normalised else 'not '}normalised",
            "value": loss,
        }
        for (rule, positions, normalised), some in by_rule(rows).items()
        for loss in some
    ]
    if not lines:
        return style.no_data(title)
    frame = pl.DataFrame(lines)
    means = frame.group_by("attention").agg(pl.mean("value"))
    best = dict(means.iter_rows())
    lower = "delta" if best.get("delta", 1e9) < best.get("dpfp", 1e9) else "the sum"
    return style.finished(
        seed_points(frame, "cell", list(dict.fromkeys(frame["cell"]))),
        f"{title}: lower on the whole with {lower}",
        f"{devices_of(rows)}; the sum is DPFP's",
        "Test loss of each seed of two rules, by positions and normalisation.",
    )


def carry_chart(rows: Sequence[Row]) -> alt.LayerChart:
    """The loss against the segments that a state goes through."""
    title = "A state carried through segments"
    lines = [
        {
            "attention": RULES[rule],
            "point": str(n or WITHOUT_END),
            "value": mean(some),
            "low": min(some),
            "high": max(some),
        }
        for rule in RULES
        for n, some in by_segments(rows, rule).items()
    ]
    if not lines:
        return style.no_data(title)
    order = [str(n or WITHOUT_END) for n in N_CARRIED]
    chart = seed_bands(
        pl.DataFrame(lines), order, f"segments of {SEGMENT} that a state goes through"
    )
    return style.finished(
        chart,
        title,
        f"{devices_of(rows)}; the sum is DPFP's; lines are means of the seeds",
        "Test loss against the segments that a state goes through, of sum and delta rule.",
        220,
    )


def segments_chart(rows: Sequence[Row]) -> alt.LayerChart:
    """The loss on each segment that one state goes through."""
    title = "Loss along the segments of one state"
    lines = [
        {"attention": RULES[rule], "point": str(i), "value": loss, "low": loss, "high": loss}
        for rule in RULES
        for i, loss in enumerate(along_segments(rows, rule), start=1)
    ]
    if not lines:
        return style.no_data(title)
    order = list(dict.fromkeys(line["point"] for line in lines))
    return style.finished(
        seed_bands(pl.DataFrame(lines), order, f"segment of {SEGMENT}"),
        title,
        f"{devices_of(rows)}; the sum is DPFP's; means of the seeds",
        "Test loss on the first, second and later segments that a state goes through.",
        220,
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
