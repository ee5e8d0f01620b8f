"""Whole training steps of the 2022 replication's model, beside its Table 1."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import polars as pl

from replib.claims.common import judged_linear, name_of, order_of
from replib.lab.run import config_of, variant_of
from replib.lab.store import Row
from replib.pages import style
from replib.pages.costs import growth_chart


def step_ratios(article: Mapping[str, Any], steps: Sequence[Row]) -> tuple[str, str]:
    """How many times longer linear attention takes than softmax in whole training steps: in the
    article, and in the rows recorded here at its lengths, `judged_linear` first."""
    there = article["ratio_linear_softmax"]
    times = {
        (variant_of(row), config_of(row).task.seq_len): row["summary"]["time_ms"]
        for row in steps
        if row["outcome"] == "ok"
    }
    variants = sorted({variant for variant, _ in times if variant[0] == "linear"}, key=order_of)
    variants.sort(key=lambda variant: variant[1] != judged_linear(steps))
    here = []
    for variant in variants:
        parts = []
        for baseline in ("textbook", "fused"):
            ratios = [
                times[variant, n] / times[("softmax", baseline), n]
                for n in article["N"]
                if (variant, n) in times and (("softmax", baseline), n) in times
            ]
            if ratios:
                parts.append(
                    f"{min(ratios):z.2f} to {max(ratios):z.2f} times softmax {baseline}'s time"
                )
        here += [f"{name_of(variant)} takes {' and '.join(parts)}"] if parts else []
    lengths = f"at N = {article['N'][0]} to {article['N'][-1]}"
    return (
        f"Linear takes {min(there):z.1f} to {max(there):z.1f} times softmax's time {lengths}.",
        f"{'; '.join(here).capitalize()} {lengths}." if here else "nothing yet",
    )


def replication_chart(frame: pl.DataFrame, published: Mapping[str, Any]) -> alt.LayerChart:
    """Seconds of a whole training against N: ours, projected from the step time, and Table 1 of Do
    & Bergner 2022.

    Args:
        frame: of `tidy.costs`, from step_time rows.
        published: `published()["dm2022"]`.

    Raises:
        ValueError: a frame with two values at one N of a series.
    """
    style.check_single(frame)
    steps = published["steps"]
    times = {"value": "time_ms", "low": "q25", "high": "q75"}
    ours = frame.with_columns(**{to: pl.col(name) * steps / 1000 for to, name in times.items()})
    return growth_chart(
        pl.concat([ours, article_frame(published)], how="diagonal"),
        f"time of {steps} steps (s)",
        f"{steps} training steps of the 2022 model",
        guides=False,
    )


def article_frame(published: Mapping[str, Any]) -> pl.DataFrame:
    """The article's Table 1, a line a length and attention."""
    rows = [
        (attention, n, float(seconds))
        for attention in ("softmax", "linear")
        for n, seconds in zip(published["N"], published[f"{attention}_s"], strict=True)
    ]
    return pl.DataFrame(rows, schema=["attention", "seq_len", "value"], orient="row").with_columns(
        implementation=pl.lit("2022 article"),
        series=pl.col("attention") + " (2022 article)",
        low=pl.lit(None, pl.Float64),
        high=pl.lit(None, pl.Float64),
        outcome=pl.lit("ok"),
        device=pl.lit(published["gpu"] + " (article)"),
        source=pl.lit("recorded"),
    )
