"""The time of the 2022 replication's steps: what each defect did to it, where steps with and
without defects cross, and what the article's extrapolation is worth.

Runs are those of `ablation.ablated`, of rows of `autopsy_time` and `autopsy_longer`.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from replib.claims.autopsy.ablation import (
    ALONE_OFF,
    ALONE_ON,
    BROKEN,
    MENDED,
    Key,
    Runs,
)
from replib.claims.autopsy.defects import DEFECTS, all_defects
from replib.claims.common import BOTH, Samples, crossing, judged_linear
from replib.lab.run import config_of, variant_of
from replib.lab.statistics import (
    Crossover,
    Ratio,
    Regression,
    Total,
    article_regression,
    measured_total,
    prediction_interval,
    ratio,
)
from replib.lab.store import Row

# Of the slowdown, each by itself; what remains is the rest.
CAUSES = ("float64", "batch_32", "unfused", "extra_losses")
REST = "the rest"
MIN_SAMPLES = 3  # of a step; resampling fewer says nothing of how they vary
NOT_THERE = "not of the article's Quadro P4000, whose float64 runs at 1/32"  # in a subtitle
IN_TURNS = "timed in turns with defects"  # the steps of `autopsy_time`
NO_TRANSFER = (
    "These factors are of the device named here and do not transfer to the article's Quadro P4000. "
    "That GPU computes in float64 at 1/32 of its rate in float32, where a CPU has a half, so that "
    "float64 may have cost it far more; and a batch of 32 need not take it four times as long as "
    "one of 8, which may leave it idle. What made the article's runs slow there was not measured."
)

_total = lru_cache(maxsize=2000)(measured_total)


def step_times(runs: Runs) -> dict[Key, Total]:
    """The time of a step of each set of defects, in milliseconds. Rounds are resampled together,
    as they were timed."""
    return {
        key: _total(tuple(some[-1]["summary"]["time_ms_samples"]))
        for key, some in runs.items()
        if some[-1]["outcome"] == "ok"
        and len(some[-1]["summary"].get("time_ms_samples") or ()) >= MIN_SAMPLES
    }


def time_effects(
    times: Mapping[Key, Total], attention: str, seq_len: int
) -> dict[tuple[str, str], Ratio]:
    """By what factor each defect lengthens a step at one length, where it was measured: by the
    defect, and by whether it is ALONE_ON, or ALONE_OFF of all."""
    found = {}
    for defect in all_defects(attention):
        for role, above, below in (
            (ALONE_ON, (ALONE_ON, defect), (MENDED, None)),
            (ALONE_OFF, (BROKEN, None), (ALONE_OFF, defect)),
        ):
            totals = [times.get((attention, seq_len, *key)) for key in (above, below)]
            if None not in totals:
                found[defect, role] = ratio(*totals)
    return found


@dataclass(frozen=True)
class Attribution:
    """How the ratio of linear to softmax step times of the article comes about at one length:
    mended · parts / softmax's own defects = broken; broken · unexplained = article's.

    `parts` are the factors of CAUSES, each the middle (geometric mean) of what the defect does
    alone on and alone off, and the rest of the whole.
    """

    article: float
    mended: Ratio
    broken: Ratio
    softmax_whole: Ratio
    unexplained: Ratio
    parts: Mapping[str, Ratio]


def attribution(
    times: Mapping[Key, Total], article: Mapping[str, Any], seq_len: int
) -> Attribution | None:
    """The slowdown at one of the article's lengths, taken apart; None where runs are missing."""

    def draws(attention: str, role: str, defect: str | None = None) -> Total:
        return times[attention, seq_len, role, defect]

    try:
        mended, broken = draws("linear", MENDED), draws("linear", BROKEN)
        softmax = draws("softmax", MENDED), draws("softmax", BROKEN)
        on = {one: _over(draws("linear", ALONE_ON, one), mended) for one in CAUSES}
        off = {one: _over(broken, draws("linear", ALONE_OFF, one)) for one in CAUSES}
        published = article["ratio_linear_softmax"][article["N"].index(seq_len)]
    except (KeyError, ValueError):
        return None
    parts = {DEFECTS[one].title: _middle(on[one], off[one]) for one in CAUSES}
    rest = _over(broken, mended)
    for part in parts.values():
        rest = _over(rest, part)
    here = _over(broken, softmax[1])
    return Attribution(
        article=published,
        mended=ratio(mended, softmax[0]),
        broken=ratio(broken, softmax[1]),
        softmax_whole=ratio(softmax[1], softmax[0]),
        unexplained=ratio(Total(published, np.full_like(here.draws, published)), here),
        parts={
            name: ratio(part, Total(1.0, np.ones_like(part.draws)))
            for name, part in (parts | {REST: rest}).items()
        },
    )


def _over(a: Total, b: Total) -> Total:
    return Total(a.value / b.value, a.draws / b.draws)


def _middle(a: Total, b: Total) -> Total:
    return Total(math.sqrt(a.value * b.value), np.sqrt(a.draws * b.draws))


def autopsied(steps: Sequence[Row]) -> list[Row]:
    """Of rows of steps those with a set of defects, were it empty."""
    return [row for row in steps if hasattr(config_of(row), "defects")]


def step_crossovers(steps: Sequence[Row]) -> dict[str, Crossover]:
    """The crossover of the mended steps of `step_time`, against each softmax."""
    steps = [row for row in steps if not hasattr(config_of(row), "defects")]
    samples = _by_length(((variant_of(row), config_of(row).task.seq_len), row) for row in steps)
    fastest = judged_linear(steps)
    found = {
        f"linear {fastest} against softmax {baseline}": crossing(
            samples.get(("softmax", baseline), {}), samples.get(("linear", fastest), {})
        )
        for baseline in ("textbook", "fused")
    }
    return {name: one for name, one in found.items() if one}


def crossovers(runs: Runs) -> dict[str, Crossover]:
    """The crossover of mended and of broken steps."""
    samples = _by_length((((a, role), n), some[-1]) for (a, n, role, _), some in runs.items())
    found = {
        role: crossing(*(samples.get((a, role), {}) for a in BOTH)) for role in (MENDED, BROKEN)
    }
    return {role: one for role, one in found.items() if one}


def _by_length(steps: Iterable[tuple[tuple[Hashable, int], Row]]) -> dict[Hashable, Samples]:
    """The samples of what was timed at each length, by what it is."""
    found: dict[Hashable, dict[int, Sequence[float]]] = {}
    for (kind, n), row in steps:
        if row["outcome"] == "ok":
            found.setdefault(kind, {})[n] = row["summary"]["time_ms_samples"]
    return found


@dataclass(frozen=True)
class Prediction:
    """A crossover extrapolated from some of four points with a model of softmax."""

    lengths: tuple[int, ...]
    fit: Regression
    low: float
    high: float


def predicted(article: Mapping[str, Any], lengths: Sequence[int], softmax_model: str) -> Prediction:
    """What the article's regression predicts from some of its points.

    Raises:
        ValueError: as `article_regression`.
    """
    kept = [i for i, n in enumerate(article["N"]) if n in lengths]
    columns = [[article[name][i] for i in kept] for name in ("N", "softmax_s", "linear_s")]
    fit = article_regression(*columns, softmax_model=softmax_model)
    low, high = prediction_interval(*columns, softmax_model=softmax_model)
    return Prediction(tuple(columns[0]), fit, low, high)
