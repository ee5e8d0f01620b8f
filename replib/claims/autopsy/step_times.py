"""The time of the 2022 replication's steps, judged on stored rows: what each defect did to it,
whether "8 to 24 times slower" and the crossover at 3149 stand after mending, and what the article's
extrapolation is worth.

Rows are those of the experiments `autopsy_time` and `autopsy_longer`; for the words that say what
was mended see `claims_autopsy`.
"""

import math
from collections.abc import Mapping, Sequence
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
    ablated,
    lengths_of,
    seq_len_of,
)
from replib.claims.autopsy.defects import DEFECTS, all_defects
from replib.claims.common import BOTH, judged_linear
from replib.lab.run import config_of, variant_of
from replib.lab.statistics import (
    Crossover,
    Ratio,
    Regression,
    Total,
    article_regression,
    crossover,
    measured_total,
    prediction_interval,
    ratio,
)
from replib.lab.store import Row

# Of the slowdown, each by itself; what remains is the rest.
CAUSES = ("float64", "batch_32", "unfused", "extra_losses")
MIN_SAMPLES = 3  # of a step; resampling fewer says nothing of how they vary
NOT_THERE = "not of the article's Quadro P4000, whose float64 runs at 1/32"  # in a subtitle
IN_TURNS = "timed in turns with defects"  # the steps of `autopsy_time`

# --- the time of a step ---------------------------------------------------------------------------

_total = lru_cache(maxsize=2000)(measured_total)


def step_times(rows: Sequence[Row]) -> dict[Key, Total]:
    """The time of a step of each set of defects, in milliseconds. Rounds are resampled together,
    as they were timed."""
    return {
        key: _total(tuple(some[-1]["summary"]["time_ms_samples"]))
        for key, some in ablated(rows).items()
        if some[-1]["outcome"] == "ok"
        and len(some[-1]["summary"].get("time_ms_samples") or ()) >= MIN_SAMPLES
    }


@dataclass(frozen=True)
class Effect:
    """By what factor a defect lengthens a step: alone, and where all others are there as well."""

    defect: str
    alone_on: Ratio | None
    alone_off: Ratio | None


def time_effects(rows: Sequence[Row], attention: str, seq_len: int) -> list[Effect]:
    """The effect of each defect that was measured at one length."""
    times = step_times(rows)

    def compared(above: tuple, below: tuple) -> Ratio | None:
        totals = [times.get((attention, seq_len, *key)) for key in (above, below)]
        return None if None in totals else ratio(*totals)

    effects = (
        Effect(
            defect,
            compared((ALONE_ON, defect), (MENDED, None)),
            compared((BROKEN, None), (ALONE_OFF, defect)),
        )
        for defect in all_defects(attention)
    )
    return [one for one in effects if one.alone_on or one.alone_off]


@dataclass(frozen=True)
class Part:
    """A factor of the slowdown with its 95 % interval; `share` is its part of the logarithm of all
    that the defects of the linear runs do."""

    name: str
    factor: Ratio
    share: Ratio | None = None


@dataclass(frozen=True)
class Attribution:
    """How the ratio of linear to softmax step times of the article comes about at one length:
    mended · CAUSES · rest / softmax's own defects = broken; broken · unexplained = article's.

    `parts` are the middle (geometric mean) of what the defects do alone on and alone off, which
    `alone_on` and `alone_off` have by themselves; in each the rest is what remains of the whole.
    """

    seq_len: int
    article: float
    mended: Ratio
    broken: Ratio
    whole: Ratio
    softmax_whole: Ratio
    unexplained: Ratio
    parts: tuple[Part, ...]
    alone_on: tuple[Part, ...]
    alone_off: tuple[Part, ...]


def attribution(
    rows: Sequence[Row], article: Mapping[str, Any], seq_len: int
) -> Attribution | None:
    """The slowdown at one of the article's lengths, taken apart; None where runs are missing."""
    times = step_times(rows)

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
    whole = _over(broken, mended)
    between = {one: _middle(on[one], off[one]) for one in CAUSES}
    broken_ratio = _over(broken, softmax[1])
    return Attribution(
        seq_len=seq_len,
        article=published,
        mended=ratio(mended, softmax[0]),
        broken=ratio(broken, softmax[1]),
        whole=ratio(broken, mended),
        softmax_whole=ratio(softmax[1], softmax[0]),
        unexplained=ratio(
            Total(published, np.full_like(broken_ratio.draws, published)), broken_ratio
        ),
        parts=_parts(between, whole),
        alone_on=_parts(on, whole),
        alone_off=_parts(off, whole),
    )


def _over(a: Total, b: Total) -> Total:
    return Total(a.value / b.value, a.draws / b.draws)


def _middle(a: Total, b: Total) -> Total:
    return Total(math.sqrt(a.value * b.value), np.sqrt(a.draws * b.draws))


def _parts(causes: Mapping[str, Total], whole: Total) -> tuple[Part, ...]:
    rest = whole
    for one in causes.values():
        rest = _over(rest, one)
    named = {DEFECTS[name].title: one for name, one in causes.items()} | {REST: rest}
    return tuple(Part(name, _told(one), _share(one, whole)) for name, one in named.items())


REST = "the rest"


def _told(one: Total) -> Ratio:
    return ratio(one, Total(1.0, np.ones_like(one.draws)))


def _share(one: Total, whole: Total) -> Ratio | None:
    """The share of a logarithm; None where the whole may be nothing."""
    if (np.log(whole.draws) <= 0).any() or whole.value <= 1:
        return None
    return ratio(
        Total(math.log(one.value), np.log(one.draws)),
        Total(math.log(whole.value), np.log(whole.draws)),
    )


# --- two conclusions ---


def autopsied(steps: Sequence[Row]) -> list[Row]:
    return [row for row in steps if hasattr(config_of(row), "defects")]


def step_crossovers(steps: Sequence[Row]) -> dict[str, Crossover]:
    """The crossover of the mended steps of `step_time`, against each softmax."""
    steps = [row for row in steps if not hasattr(config_of(row), "defects")]
    samples = {
        (*variant_of(row), seq_len_of(row)): tuple(row["summary"]["time_ms_samples"])
        for row in steps
        if row["outcome"] == "ok"
    }
    found, fastest = {}, judged_linear(steps)
    for baseline in ("textbook", "fused"):
        sides = ("softmax", baseline), ("linear", fastest)
        lengths = [n for n in lengths_of(steps) if all((*side, n) in samples for side in sides)]
        if len(lengths) >= 2:
            times = (tuple(samples[*side, n] for n in lengths) for side in sides)
            found[f"linear {fastest} against softmax {baseline}"] = _crossover(
                tuple(lengths), *times
            )
    return found


def crossovers(rows: Sequence[Row]) -> dict[str, Crossover]:
    """The crossover of whole steps, mended and broken; one needs two lengths."""
    times, found = step_samples(rows), {}
    for role in (MENDED, BROKEN):
        lengths = [n for n in lengths_of(rows) if all((a, n, role) in times for a in BOTH)]
        if len(lengths) >= 2:
            sides = (tuple(times[a, n, role] for n in lengths) for a in BOTH)
            found[role] = _crossover(tuple(lengths), *sides)
    return found


_crossover = lru_cache(maxsize=100)(crossover)


def step_samples(rows: Sequence[Row]) -> dict[tuple[str, int, str], tuple[float, ...]]:
    return {
        key[:3]: tuple(some[-1]["summary"]["time_ms_samples"])
        for key, some in ablated(rows).items()
        if key[2] in (MENDED, BROKEN) and some[-1]["outcome"] == "ok"
    }


# --- extrapolation --------------------------------------------------------------------------------


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


NO_TRANSFER = (
    "**These factors are of the device named here and do not transfer to the article's Quadro "
    "P4000.** That GPU computes in float64 at 1/32 of its rate in float32, where a CPU has a half, "
    "so that float64 may have cost it far more; and a batch of 32 need not take it four times as "
    "long as one of 8, which may leave it idle. What made the article's runs slow there was not "
    "measured."
)
