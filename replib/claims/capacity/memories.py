"""Runs of fast weight memories: which memory each is of, its losses, and how many keys it solves.

Rows are those of the experiments `capacity` (setting 1 of Schlag et al. 2021, every key once) and
`update_rules` (setting 2, keys come back with new values); `published` is
`published()["fastweights_logs"]`, of which there is one run a figure. S is the number of keys. What
a memory solves is the S that half of its runs solve (`statistics.solved_threshold`), over all S and
seeds, so that no single run decides; so it is for every memory, in both settings, here and
published. A run's loss is its best, 0.5·Σ squared error, and is compared with the best of the
published run, not with the last that the published figures show. Runs with other settings than the
published ones are not judged. Rows of `evaluation` tell what the published mean of losses does to
some figures, those of `favor_eps` what the published ε does to FAVOR+, and nothing else."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from replib.claims.capacity.grid import CAPACITY_MEMORIES, retrieval_config
from replib.claims.update_rules.grid import UPDATE_RULE_MEMORIES
from replib.fast_weights import MemoryConfig, RetrievalConfig
from replib.lab.run import config_of
from replib.lab.statistics import SolvedCounts, Threshold, solved_threshold
from replib.lab.store import Row
from replib.lab.verdict import bound_text

SOLVED_LOSS = RetrievalConfig().solved_loss
GRID_STEP = 20  # keys, the least step from one recorded S to the next
MIN_SEEDS = 3  # that an interval is computed from
ENDED = ("ok", "diverged")  # outcomes of runs that count
MEANS = "evaluation"  # the experiment whose rows have several means of the same losses
WITHOUT_EPS = "favor_eps"  # the experiment whose rows are of FAVOR+ without the published ε
MEMORIES = {m.published_name: m for m in (*CAPACITY_MEMORIES, *UPDATE_RULE_MEMORIES)}
# Left out: the published log stops at 300 steps, where the run had not ended.
TRUNCATED = {("setting2", "dpfp2_ours", 100)}
COMPARED = (100, 200, 400, 600)

Losses = dict[int, dict[int, float]]
"""S -> seed -> best loss; infinite where none was finite."""


def label(memory: MemoryConfig, *, rule: bool = False) -> str:
    """A memory as it is named to readers: "DPFP-2", and with its update rule "DPFP-2 (delta)"."""
    names = {"dpfp": f"DPFP-{memory.size}", "performer": f"FAVOR+ {memory.size}"}
    name = names.get(memory.attention, memory.attention)
    return f"{name} ({memory.update_rule})" if rule else name


@lru_cache(maxsize=4096)
def memory_of(config: RetrievalConfig, *, half_length: bool = False) -> str | None:
    """The published name of a run's memory; None where its settings are not the published ones.
    Those of setting 2 are evaluated on the whole length, or, with `half_length`, as published."""
    again = config.task.with_replacement
    for name, memory in MEMORIES.items():
        if config.model == memory and (again or not half_length):
            options = {"with_replacement": again, "eval_half_length": half_length}
            expected = retrieval_config(config.task.n_keys, memory, **options)
            # A run that also keeps other means of its losses is the same.
            return name if vars(expected) == vars(config) else None
    return None


def best_losses(rows: Iterable[Row], *, half_length: bool = False) -> dict[str, Losses]:
    """The best loss of every run that has ended, by memory, S and seed; see `memory_of`."""
    return named_losses(
        (memory_of(config_of(row), half_length=half_length), row)
        for row in rows
        if row["experiment"] not in (MEANS, WITHOUT_EPS)
    )


def of_setting(rows: Sequence[Row], *, with_replacement: bool) -> dict[str, Losses]:
    """`best_losses` of one of the settings."""
    some = (row for row in rows if config_of(row).task.with_replacement == with_replacement)
    return best_losses(some)


def named_losses(named: Iterable[tuple[str | None, Row]]) -> dict[str, Losses]:
    """The best losses of rows, each beside the name of its memory; None is left out."""
    found: dict[str, Losses] = {}
    for name, row in named:
        if name is None or row["outcome"] not in ENDED:
            continue
        best = row["summary"].get("best_loss")
        by_keys = found.setdefault(name, {})
        seeds = by_keys.setdefault(config_of(row).task.n_keys, {})
        seeds[row["seed"]] = math.inf if best is None else best
    return {name: dict(sorted(by_keys.items())) for name, by_keys in found.items()}


def published_losses(published: Mapping[str, Any], setting: str) -> dict[str, dict[int, float]]:
    """The published best losses of "setting1" or "setting2", by memory and S; infinite where the
    run diverged before its first evaluation."""
    return {
        name: {
            int(n): math.inf if run["best"] is None else run["best"]
            for n, run in runs.items()
            if (setting, name, int(n)) not in TRUNCATED
        }
        for name, runs in published[setting].items()
    }


def one_run(losses: Mapping[int, float]) -> Losses:
    """Published losses, of a run each."""
    return {n: {0: loss} for n, loss in losses.items()}


def ordered(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Items by the name of a memory, in the order of MEMORIES."""
    return [(name, found[name]) for name in MEMORIES if name in found]


def solved_keys(losses: Losses) -> Threshold:
    """The S that half of the runs solve."""
    return threshold_of(*map(tuple, counts(losses)))


@lru_cache(maxsize=4096)
def threshold_of(*counts: tuple[int, ...]) -> Threshold:
    """`solved_threshold`; verdicts and charts ask for the same several times."""
    return solved_threshold(counts)


def counts(losses: Losses) -> SolvedCounts:
    """How many runs solve each S: end with a loss of at most SOLVED_LOSS."""
    n_solved = [sum(loss <= SOLVED_LOSS for loss in seeds.values()) for seeds in losses.values()]
    return list(losses), n_solved, list(map(len, losses.values()))


def keys_text(found: Threshold, *, interval: bool = True) -> str:
    """Such as "110 (100 to 131)", "156 or more" where the interval has no end, or "none"."""
    if found.value == 0:
        return f"none (below {bound_text(found.high)})" if interval else "none"
    if math.isinf(found.high):
        return f"{found.low:z.0f} or more"
    bounds = f" ({found.low:z.0f} to {bound_text(found.high)})"
    return f"{found.value:z.0f}{bounds * interval}"


def typical(losses: Losses) -> dict[int, float]:
    """The median over seeds, so that an S counts as solved where most seeds solve it."""
    return {n: statistics.median(seeds.values()) for n, seeds in losses.items()}


def least_loss(n_features: int, n_keys: int) -> float:
    """The least mean loss over S keys of a memory of R features, 0.5 (1 - R / S): reads are a
    matrix of rank R times the values, and none of rank R is nearer than S - R to the identity, in
    squares (Eckart & Young 1936)."""
    return max(0.0, 0.5 * (1 - n_features / n_keys))


def loss_text(loss: float | None) -> str:
    """To three digits, or why there is none."""
    if loss is None:
        return "none run"
    return "diverged" if math.isinf(loss) else f"{loss:z.3g}"
