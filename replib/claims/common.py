"""What several claims share: models, variants and seeds of their grids, rules of their judges."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from replib.attention.lsh import LSHAttention
from replib.lab.record import Experiment
from replib.lab.run import Job, TrainingJob, config_of, variant_of
from replib.lab.statistics import Crossover, Exponent, Ratio, crossover, wilson_interval
from replib.lab.store import Row
from replib.lab.verdict import Criterion, Verdict, within
from replib.models import TransformerConfig
from replib.tasks.copy import CausalCopy
from replib.training import TrainingConfig

BOTH = ("softmax", "linear")
ADAMW = {"optimizer": "adamw", "schedule": "cosine", "clip": "global"}
Jobs = Callable[[str], list[Job]]
Interval = Ratio | Exponent | Crossover

# What is timed side by side: softmax as the 2022 replication wrote it, and fused; linear attention
# as its equation stands, in chunks of torch operations, and compiled for the device.
VARIANTS = (
    ("softmax", "textbook"),
    ("softmax", "fused"),
    ("linear", "plain"),
    ("linear", "torch"),
    ("linear", "cpu"),
    ("linear", "cuda"),
)

# The paper's figures have LSH attention beside the two that are judged: figure 2 of 4 rounds,
# figure 1 of each of these. At the paper scale it is as in the original's code.
LSH_COPY = LSHAttention.Options(rounds=4)


def experiment(title: str, *, repeated: bool = False) -> Callable[[Jobs], Experiment]:
    """Makes of a function, which returns the jobs of a scale, the experiment of its name."""

    def made(jobs: Jobs) -> Experiment:
        return Experiment(name=jobs.__name__, title=title, jobs=jobs, repeated=repeated)

    return made


def paper_model(attention: str, **changes) -> TransformerConfig:
    """The model of Katharopoulos et al. 2020, section 4.1, and of their code, which has no dropout
    at the embedding."""
    return TransformerConfig(attention=attention, embedding_dropout=0.0, **changes)


def laptop_model(attention: str, **how) -> TransformerConfig:
    """A model that learns to copy in seconds on a CPU.

    Deviation: the paper's has 4 layers, 8 heads of 32, post-norm and dropout; pre-norm without
    dropout learns in a tenth of the steps.
    """
    return TransformerConfig(
        attention=attention,
        n_layers=2,
        n_heads=4,
        d_model=64,
        d_feedforward=128,
        norm="pre",
        dropout=0.0,
        **how,
    )


def laptop_copy(attention: str, seq_len: int, n_steps: int, **changes) -> TrainingConfig:
    """The causal copy task at a size for a CPU."""
    options = {
        "task": CausalCopy(seq_len=seq_len),
        "model": laptop_model(attention),
        "batch_size": 32,
        "n_steps": n_steps,
        "lr": 5e-3,
        "warmup_steps": 30,
        "eval_every": max(1, min(20, n_steps // 10)),
    }
    return TrainingConfig(**ADAMW | options | changes)


def replication_model(attention: str, **how) -> TransformerConfig:
    """The sizes that Do & Bergner 2022 give for their encoder and decoder."""
    return TransformerConfig(
        attention=attention,
        n_layers=4,
        n_heads=8,
        d_model=512,
        d_feedforward=1024,
        positions="added",
        **how,
    )


def seed_jobs(configs: list[TrainingConfig], n_seeds: int) -> list[Job]:
    return [TrainingJob(config=config, seed=seed) for config in configs for seed in range(n_seeds)]


def setting_of(row: Row) -> str:
    config = config_of(row)
    model = replace(config.model, attention="softmax", options=None, kernel=None)
    return repr(replace(config, model=model))


Variant = tuple[str, str | None]
"""Attention, and what its options and kernel are called."""


def name_of(variant: Variant) -> str:
    """Such as "linear torch"."""
    return " ".join(filter(None, variant))


def order_of(variant: Variant) -> tuple:
    """In the order of VARIANTS, others after them by name."""
    known = VARIANTS.index(variant) if variant in VARIANTS else len(VARIANTS)
    return known, name_of(variant)


def judged_linear(rows: Sequence[Row]) -> str | None:
    """The implementation of linear attention that is judged: of those in the rows the fastest, by
    the sum of its times over the points that all of them finished; None where there is none.

    A claim about linear attention is one about the best that is known of it; every other
    implementation is told as evidence. This rule was written before a compiled kernel had rows.
    """
    times: dict[str, dict[Hashable, float]] = {}
    for row in rows:
        attention, implementation = variant_of(row)
        if attention == "linear" and row["outcome"] == "ok":
            times.setdefault(implementation, {})[_point(row)] = row["summary"]["time_ms"]
    if not times:
        return None
    shared = set.intersection(*map(set, times.values()))
    return min(times, key=lambda name: sum(times[name][point] for point in shared))


def _point(row: Row) -> Hashable:
    config = config_of(row)
    seq_len = getattr(config, "task", config).seq_len
    return seq_len, config.batch_size, getattr(config, "work", None)


def work_of(rows: Sequence[Row]) -> str:
    """The work that is judged: forward and backward where it was measured, else the other."""
    measured = {config_of(row).work for row in rows}
    return "forward" if measured == {"forward"} else "forward_backward"


def criterion(
    text: str,
    found: Interval | None,
    limits: tuple[float, float],
    show: Callable[[Any], str],
    missing: str = "not measured",
) -> Criterion:
    """Whether an interval lies inside the limits; it cannot be told where nothing was found."""
    if found is None:
        return Criterion(text, None, missing, few=True)
    return Criterion(text, within(found.low, found.high, *limits), show(found))


def share_criterion(text: str, n: int, of: int, limits: tuple[float, float]) -> Criterion:
    """Whether a share of runs lies inside the limits, by its Wilson interval."""
    if not of:
        return Criterion(text, None, "no runs", few=True)
    low, high = wilson_interval(n, of)
    figure = f"{n} of {of} ({low:z.0%} to {high:z.0%})"
    return Criterion(text, within(low, high, *limits), figure)


def seeds_lack(text: str, a: Sequence, b: Sequence, least: int, apart: str = "") -> Criterion:
    """That two have too few seeds for a criterion, after how far they are apart."""
    return Criterion(
        text, None, f"{apart}{len(a)} and {len(b)} seeds, {least} are needed", few=True
    )


def told(said: str, criteria: Iterable[Criterion], evidence: Iterable[str] = ()) -> Verdict:
    """A verdict whose headline is a sentence for a reader too."""
    answer = f"{said[:1].upper()}{said[1:]}."
    return Verdict(said, tuple(criteria), tuple(evidence), answer=answer)


def nothing(said: str = "no runs yet", needed: str = "some runs") -> Verdict:
    """A verdict on nothing."""
    return Verdict(said, (Criterion(needed, None, "0", few=True),))


Samples = Mapping[int, Sequence[float]]
"""Milliseconds of the repeats, by N."""


def crossing(first: Samples, second: Samples) -> Crossover | None:
    """From which N on the second takes less time; None with fewer than two lengths of both."""
    lengths = sorted(first.keys() & second.keys())
    if len(lengths) < 2:
        return None
    sides = (tuple(tuple(side[n]) for n in lengths) for side in (first, second))
    return _crossover(tuple(lengths), *sides)


# A page asks for the same ones several times, and again while a run goes on beside it.
_crossover = lru_cache(maxsize=1000)(crossover)


# Of recorded points one in twenty has quartiles so far apart.
BUSY_SPREAD, BUSY_SHARE = 1.5, 0.25


def machine_busy(rows: Sequence[Row]) -> Verdict | None:
    """What is said of times that other programs disturbed: the upper quartile of the repeats is
    more than BUSY_SPREAD times the lower one at more than BUSY_SHARE of the points; else None."""
    quartiles = [
        (row["summary"]["time_ms_q25"], row["summary"]["time_ms_q75"])
        for row in rows
        if row["outcome"] == "ok"
    ]
    n_wide = sum(high > BUSY_SPREAD * low for low, high in quartiles)
    if n_wide <= BUSY_SHARE * len(quartiles):
        return None
    figure = f"{n_wide} of {len(quartiles)} points are not"
    return not_judged(f"quartiles of the repeats within a factor of {BUSY_SPREAD:zg}", figure)


def not_judged(needed: str, figure: str) -> Verdict:
    """A verdict on times that a busy machine measured."""
    said = "machine busy, not judged"
    answer = f"{said.capitalize()}. Close other programs and measure again."
    return Verdict(said, (Criterion(needed, None, figure),), answer=answer)


PAPER_CROSSOVER = 512  # the shortest N of the paper's fig. 1, where linear is already faster

ARTICLE_CROSSOVER = 3149  # the 2022 article's extrapolation

# A fiftieth of the 2.3 nats that guessing one of 10 symbols costs.
LOSS_MARGIN = 0.05  # nats a token

# Scaling: far from the next whole exponent, wide enough for cache effects and lower-order terms.
EXPONENT_TOLERANCE = 0.15
