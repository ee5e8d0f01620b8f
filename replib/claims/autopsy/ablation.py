"""The ablation of the 2022 replication's defects, and what each did to the loss.

Rows are those of the experiments `autopsy` (losses) and `autopsy_time` (steps). A run is *mended*
(no defect) or *broken* (all that the article's runs of its mechanism had); a defect is *alone on*
in an otherwise mended run, or *alone off* in an otherwise broken one.
"""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from replib.claims.autopsy.article_losses import (
    FINAL,
    Read,
    article_losses,
    bag_entropy,
)
from replib.claims.autopsy.defects import all_defects, article_defects, loss_defects
from replib.lab.run import config_of
from replib.lab.statistics import difference_interval
from replib.lab.store import Row
from replib.tasks import SequenceCopy

MENDED, BROKEN, ALONE_ON, ALONE_OFF = "mended", "broken", "alone on", "alone off"
ROLES = (MENDED, BROKEN, ALONE_ON, ALONE_OFF)
OFF_WITH_MASK = "alone off, but for the mask"  # so that what is learned is no leak
GUESSING = math.log(10)  # nats a token: one of ten symbols
NEAR_ZERO = 0.05  # nats a token


def role_of(attention: str, defects: Sequence[str]) -> tuple[str, str | None] | None:
    """What a set of defects is in the ablation of a mechanism, and the one defect that it is
    about; None for a set that is not part of it. All but those that are merely slow are broken."""
    defects = tuple(defects)
    if not defects:
        return MENDED, None
    if len(defects) == 1 and defects[0] in all_defects(attention):
        return ALONE_ON, defects[0]
    for every in (article_defects(attention), loss_defects(attention)):
        off = [one for one in every if one not in defects]
        if set(defects) <= set(every) and len(off) <= 1:
            return (ALONE_OFF, off[0]) if off else (BROKEN, None)
        if set(defects) <= set(every) and len(off) == 2 and "leak" in off:
            return OFF_WITH_MASK, next(one for one in off if one != "leak")
    return None


Key = tuple[str, int, str, str | None]
"""Attention, N, role and defect."""


def ablated(rows: Sequence[Row]) -> dict[Key, list[Row]]:
    """The finished rows of an ablation, of the one device and size of model that has most; of each
    seed the last, one with all defects before one without those that are merely slow."""
    sizes = Counter(map(_size, rows))
    found: dict[Key, dict[int, Row]] = {}
    for row in sorted(rows, key=lambda row: len(config_of(row).defects)):
        model = config_of(row).model
        role = role_of(model.attention, config_of(row).defects)
        kept = row["outcome"] in ("ok", "diverged") and _size(row) == sizes.most_common(1)[0][0]
        if role is not None and kept:
            key = (model.attention, seq_len_of(row), *role)
            found.setdefault(key, {})[row["seed"]] = row
    return {key: list(some.values()) for key, some in found.items()}


def _size(row: Row) -> str:
    config, model = config_of(row), config_of(row).model
    sizes = model.n_layers, model.n_heads, model.d_model, model.norm
    return repr((sizes, config.n_steps, row["provenance"]["device_name"]))


def seq_len_of(row: Row) -> int:
    """The N of a row."""
    return config_of(row).task.seq_len


def lengths_of(rows: Sequence[Row]) -> list[int]:
    """The N of an ablation's rows."""
    return sorted({seq_len_of(row) for row in rows})


# --- final losses ---------------------------------------------------------------------------------


def final_losses(rows: Sequence[Row]) -> dict[Key, list[float]]:
    """Final losses of each set of defects, nats a token, a seed each; none of a diverged run."""
    found = {}
    for key, some in ablated(rows).items():
        losses = [row["summary"].get("final_loss") for row in some if row["outcome"] == "ok"]
        found[key] = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    return {key: losses for key, losses in found.items() if losses}


@dataclass(frozen=True)
class Difference:
    """A difference of means with its 95 % interval (Welch), which has no ends where a side has a
    single run."""

    value: float
    low: float
    high: float


def difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    value = statistics.fmean(a) - statistics.fmean(b)
    if min(len(a), len(b)) < 2:
        return Difference(value, -math.inf, math.inf)
    return Difference(value, *difference_interval(a, b))


EARLY = (20, 100)  # steps: the first evaluation, and before most runs leave the first plateau


def early_losses(rows: Sequence[Row]) -> dict[tuple[str, int], float]:
    """The mean loss of the broken runs of each mechanism and N over the steps EARLY, of those whose
    curve has them."""
    found = {}
    for (attention, n, role, _), some in ablated(rows).items():
        curves = (zip(row["curve"]["step"], row["curve"]["loss"], strict=True) for row in some)
        early = [loss for curve in curves for step, loss in curve if EARLY[0] <= step <= EARLY[1]]
        losses = [loss for loss in early if loss is not None]  # None of a run that diverged
        if role == BROKEN and losses:
            found[attention, n] = statistics.fmean(losses)
    return found


def article_ends(article: Mapping[str, Any]) -> dict[tuple[str, int], Read]:
    """The article's final losses of each mechanism and N."""
    read = (one for one in article_losses(article) if one.what == FINAL)
    return {(one.attention, one.seq_len): one for one in read}


def above_level(article: Mapping[str, Any]) -> dict[tuple[str, int], float]:
    """How far above `bag_entropy` those of the article's runs end that do not end at 0."""
    ends = {key: one.nats for key, one in article_ends(article).items() if one.nats > NEAR_ZERO}
    return {(a, n): loss - bag_entropy(SequenceCopy(seq_len=n)) for (a, n), loss in ends.items()}


LEVEL_MARGIN = 0.05  # nats a token from a level that is computed


def leaves(row: Row, level: float) -> int | None:
    """The step from which a run's loss stays more than LEVEL_MARGIN below a level."""
    found = None
    for step, loss in zip(row["curve"]["step"], row["curve"]["loss"], strict=True):
        below = loss is not None and loss < level - LEVEL_MARGIN
        found = (step if found is None else found) if below else None
    return found
