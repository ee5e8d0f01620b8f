"""How many keys each memory remembers, judged on stored rows; `memories` says what is counted."""

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from replib.claims.capacity.memories import (
    COMPARED,
    GRID_STEP,
    MEANS,
    MEMORIES,
    MIN_SEEDS,
    SOLVED_LOSS,
    WITHOUT_EPS,
    Losses,
    best_losses,
    counts,
    keys_text,
    label,
    least_loss,
    loss_text,
    memory_of,
    named_losses,
    of_setting,
    one_run,
    order,
    ordered,
    published_losses,
    solved_keys,
    typical,
)
from replib.fast_weights import RetrievalConfig
from replib.lab.run import config_of
from replib.lab.statistics import (
    CONFIDENCE,
    difference_interval,
    solves_more,
    t_quantile,
    wilson_interval,
)
from replib.lab.store import Row
from replib.lab.verdict import (
    MOST,
    Criterion,
    Verdict,
    each_device,
    three_digits,
    within,
)
from replib.published import published

LOSS_TOLERANCE = 0.15  # of a published best loss
LEAST_COMPARED = 0.01  # published losses below it are compared as solved or not
NOTHING_READ = 0.49  # losses above it are those of a memory that reads nothing, which has 0.5

ABOVE = (  # the claimed order, which does not say which of softmax and DPFP-3 is above
    ("softmax_cat", "dpfp2_sum"),
    ("dpfp3_sum", "dpfp2_sum"),
    ("dpfp2_sum", "dpfp1_sum"),
    ("dpfp1_sum", "linear_sum"),
    ("linear_sum", "favor64_sum"),
    ("linear_sum", "favor128_sum"),
    ("linear_sum", "favor512_sum"),
)
DELTA_AND_SUM = ("dpfp1_sum", "linear_ours", "dpfp1_ours", "dpfp2_ours")


def impossible_losses(published: Mapping[str, Any]) -> list[tuple[str, int, float, float]]:
    """The published losses of setting 1 that are below `least_loss`: name, S, loss, least loss."""
    return [
        (name, n, loss, least)
        for name, runs in ordered(published_losses(published, "setting1"))
        if (r := MEMORIES[name].n_features)
        for n, loss in sorted(runs.items())
        if loss < (least := least_loss(r, n))
    ]


@each_device
def capacity(rows: Sequence[Row]) -> Verdict:
    """Memories remember as many keys as the paper orders them, and none more than it has features.

    A criterion a pair: the first solves more keys (`statistics.solves_more`), and its losses are
    lower, by Welch's interval of their logarithms over seeds; where neither solves any S the loss
    alone decides. A criterion of all: none solves more than R keys.
    """
    found = of_setting(rows, with_replacement=False)
    return Verdict(
        solved_text(found, order(found)),
        (_at_most_features(found), *(above(found, *pair) for pair in ABOVE)),
        tuple(_without_eps(rows, found)),
    )


def solved_text(found: Mapping[str, Losses], names: Sequence[str], *, rule: bool = False) -> str:
    """How many keys each memory solves, those that solve none at the end."""
    if not names:
        return NO_RUNS
    solved = {name: solved_keys(found[name]) for name in names}
    told = [
        f"{label(MEMORIES[name], rule=rule)} {keys_text(one, interval=False)}"
        for name, one in solved.items()
        if one.value > 0
    ]
    if none := [label(MEMORIES[name], rule=rule) for name in names if solved[name].value == 0]:
        told.append(f"none by {', '.join(none)}")
    return f"keys solved by half of the runs: {', '.join(told)}"


def _at_most_features(found: Mapping[str, Losses]) -> Criterion:
    """Whether no memory solves more keys than it has features R: violated where the interval of the
    S it solves lies above R; met where it lies below, or most of the runs with more than R keys, up
    to twice as many, fail (Wilson interval)."""
    told, met = [], []
    for name, losses in ordered(found):
        if r := MEMORIES[name].n_features:
            solved = solved_keys(losses)
            told.append(f"{label(MEMORIES[name])} {keys_text(solved)} of {r}")
            beyond = [x for n, seeds in losses.items() if r < n <= 2 * r for x in seeds.values()]
            n_beyond = sum(loss <= SOLVED_LOSS for loss in beyond)
            fail = bool(beyond) and wilson_interval(n_beyond, len(beyond))[1] < MOST
            met.append(False if solved.low > r else True if fail or solved.high <= r else None)
    return Criterion(
        "no memory solves more keys than its number of features R",
        False if False in met else True if met and all(met) else None,
        "; ".join(told) or "no runs yet",
    )


def _without_eps(rows: Sequence[Row], found: Mapping[str, Losses]) -> Iterator[str]:
    """What becomes of FAVOR+ without the ε that the published code adds to its normalisers."""
    named = [
        (config_of(row).model.published_name, row)
        for row in rows
        if row["experiment"] == WITHOUT_EPS
    ]
    diverged = Counter(name for name, row in named if row["outcome"] == "diverged")
    for name, losses in ordered(named_losses(named)):
        with_eps = {n: loss_text(loss) for n, loss in typical(found.get(name, {})).items()}
        told = [
            f"S = {n}: {loss_text(loss)} for {with_eps.get(n, 'nothing run')}"
            for n, loss in typical(losses).items()
        ]
        n_runs = sum(map(len, losses.values()))
        yield (
            f"{label(MEMORIES[name])} without the published ε, median best loss for that with it: "
            f"{', '.join(told)}; {diverged[name]} of {n_runs} runs diverge"
        )


NO_RUNS = "no runs with the published settings yet"
_SAID = {True: "yes", False: "no", None: "cannot be told"}


@each_device
def as_published(rows: Sequence[Row], published: Mapping[str, Any]) -> Verdict:
    """The recorded figures are the published ones.

    Two criteria a memory of setting 1 that ran: the S it solves is the published one, to GRID_STEP
    (the interval here lies within the published one, as much wider; violated where they lie
    apart); and its best losses at the S of COMPARED, where the published one is above
    LEAST_COMPARED, are within LOSS_TOLERANCE, by the interval of the mean over seeds. One a memory
    of setting 2 with the rules sum and delta: the S solved, evaluated as published where it was run
    so. The headline says how many of those that agree do so because nothing is remembered on either
    side.
    """
    found = of_setting(rows, with_replacement=False)
    second, alike = of_setting(rows, with_replacement=True), best_losses(rows, half_length=True)
    criteria, nothing, evidence = [], [], []
    for name, theirs in ordered(published_losses(published, "setting1")):
        if here := found.get(name):
            told = label(MEMORIES[name])
            solved, losses = _near_solved(told, here, theirs), _near_losses(told, here, theirs)
            criteria += [one for one in (solved, losses) if one]
            nothing += [solved] * _solves_nothing(here, theirs)
            nothing += [losses] * (bool(losses) and _reads_nothing(here, theirs))
    for name, theirs in ordered(published_losses(published, "setting2")):
        if here := alike.get(name) or second.get(name):
            told = label(MEMORIES[name], rule=True)
            told += ", evaluated as published" if name in alike else ""
            near = _near_solved(told, here, theirs)
            if name in DELTA_AND_SUM:
                criteria.append(near)
                nothing += [near] * _solves_nothing(here, theirs)
            else:
                evidence.append(f"{near.text}: {_SAID[near.met]}; {near.figure}")
    met = [one.met for one in criteria]
    n_nothing = sum(one.met is True for one in nothing)
    aside = f" ({n_nothing} of them in that nothing is remembered)" if n_nothing else ""
    headline = (
        f"{met.count(True)} of {len(met)} comparisons agree with the published runs{aside}, "
        f"{met.count(False)} do not, {met.count(None)} cannot be told"
    )
    return Verdict(
        headline if criteria else NO_RUNS,
        tuple(criteria) or (Criterion("a memory that was published ran", None, "none yet"),),
        (*evidence, *_below_least(rows, published)),
    )


def _solves_nothing(here: Losses, theirs: Mapping[int, float]) -> bool:
    return solved_keys(here).value == solved_keys(one_run(theirs)).value == 0


def _reads_nothing(here: Losses, theirs: Mapping[int, float]) -> bool:
    """Whether the losses compared are, on both sides, that of reading nothing, or near it."""
    compared = [losses.get(n, math.inf) for losses in (typical(here), theirs) for n in COMPARED]
    return min(compared) > NOTHING_READ


def _below_least(rows: Sequence[Row], published: Mapping[str, Any]) -> Iterator[str]:
    """The published losses that no mean over all keys can have, whether the way that they were
    averaged explains them, and how many of those here are below it as well."""
    if not any(row["experiment"] == MEANS for row in rows):
        return
    unmeasured = []
    for name, n, loss, least in impossible_losses(published):
        told = f"{label(MEMORIES[name])}, S = {n}: the published {loss:z.3g} is below {least:z.3g}"
        if explained := _of_means(rows, name, n, loss):
            r = MEMORIES[name].n_features
            yield f"{told}, the least mean over all keys with R = {r}; {explained}"
        else:
            unmeasured.append(told)
    if unmeasured:
        yield f"as well, with what explains it not measured: {'; '.join(unmeasured)}"
    below = [
        n
        for name, losses in ordered(of_setting(rows, with_replacement=False))
        if (r := MEMORIES[name].n_features)
        for n, loss in typical(losses).items()
        if loss < least_loss(r, n)
    ]
    if below:
        n_asked = RetrievalConfig.eval_queries
        told = f"{len(below)} medians here are below that least mean as well"
        told += f", all at S = {min(below)} or more"
        if min(below) > n_asked:
            told += f": above S = {n_asked} the first {n_asked} keys alone are asked for, as in the"
            told += " published code"
        yield told


def _of_means(rows: Sequence[Row], name: str, n_keys: int, theirs: float) -> str:
    """Whether a published loss is one that a run here may have, averaged as published: within the
    95 % interval of one run more, from those that were measured so; "" where too few were."""
    found = [
        (row["summary"]["best_all_keys_loss"], row["summary"]["best_batches_loss"])
        for row in rows
        if row["experiment"] == MEANS
        and row["outcome"] == "ok"
        and config_of(row).task.n_keys == n_keys
        and memory_of(config_of(row)) == name
    ]
    how = "the mean is of batches of which the last is smaller and counts as much"
    if n_keys > RetrievalConfig.eval_queries:
        how += f", and of the first {RetrievalConfig.eval_queries} keys"
    if len(found) < MIN_SEEDS:
        return ""
    whole, batches = zip(*found, strict=True)
    half = t_quantile((1 + CONFIDENCE) / 2, len(found) - 1) * math.sqrt(1 + 1 / len(found))
    half *= statistics.stdev(batches)
    low, high = statistics.fmean(batches) - half, statistics.fmean(batches) + half
    explains = "explains it" if low <= theirs <= high else "does not explain it"
    return (
        f"{how}, which {explains}: so averaged, {len(found)} runs here have "
        f"{min(batches):z.3g} to {max(batches):z.3g}, and one more would have {low:z.3g} to "
        f"{high:z.3g}; over all keys the same runs have {min(whole):z.3g} to {max(whole):z.3g}"
    )


def above(found: Mapping[str, Losses], better: str, worse: str, *, rule: bool = False) -> Criterion:
    """Whether a memory solves more keys than another, and with a lower loss."""
    names = [label(MEMORIES[name], rule=rule) for name in (better, worse)]
    text = f"{names[0]} remembers more keys than {names[1]}"
    missing = [told for told, name in zip(names, (better, worse), strict=True) if name not in found]
    if missing:
        return Criterion(text, None, f"no runs of {' and '.join(missing)} yet")
    sides = found[better], found[worse]
    a, b = map(solved_keys, sides)
    by_loss, told = _lower_loss(*sides)
    more = solves_more(*map(counts, sides))
    parts = [by_loss] if a.value == b.value == 0 else [more, by_loss]
    met = False if False in parts else True if all(parts) else None
    return Criterion(text, met, f"solves {keys_text(a)} against {keys_text(b)} keys; {told}")


def _lower_loss(better: Losses, worse: Losses) -> tuple[bool | None, str]:
    """Whether losses are lower, by the interval of their ratio (geometric means) over the S that
    both have MIN_SEEDS seeds of and that one of them does not solve. Below SOLVED_LOSS a run ends,
    at a loss that chance decides: it counts as SOLVED_LOSS."""
    common = [
        n
        for n in better.keys() & worse.keys()
        if min(len(better[n]), len(worse[n])) >= MIN_SEEDS
        and max(typical(better)[n], typical(worse)[n]) > SOLVED_LOSS
    ]
    if not common:
        return None, f"no S yet with {MIN_SEEDS} seeds of both that one of them does not solve"
    means = [
        [
            statistics.fmean(math.log(max(side[n][seed], SOLVED_LOSS)) for n in common)
            for seed in sorted(set.intersection(*(set(side[n]) for n in common)))
        ]
        for side in (worse, better)
    ]
    if min(map(len, means)) < 2 or not all(math.isfinite(x) for side in means for x in side):
        return None, "a seed has no loss"
    low, high = difference_interval(*means)
    value = statistics.fmean(means[0]) - statistics.fmean(means[1])
    way, ends = ("lower", (value, low, high)) if value >= 0 else ("higher", (-value, -high, -low))
    factor, least, most = (three_digits(math.exp(x)) for x in ends)
    keys = ", ".join(map(str, sorted(common)))
    told = f"losses at S = {keys} are {factor}× {way} ({least} to {most})"
    return (True if low > 0 else False if high < 0 else None), told


def _near_solved(name: str, here: Losses, theirs: Mapping[int, float]) -> Criterion:
    """Whether the S solved is the published one, to a step of the grid. Both are intervals; the
    published, of one run at few S, is the wider."""
    mine, published = solved_keys(here), solved_keys(one_run(theirs))
    near = within(mine.low, mine.high, published.low - GRID_STEP, published.high + GRID_STEP)
    figure = f"{keys_text(mine)} here, {keys_text(published)} published"
    return Criterion(f"{name}: solves as many keys as published, to {GRID_STEP}", near, figure)


def _near_losses(name: str, here: Losses, theirs: Mapping[int, float]) -> Criterion | None:
    """Whether best losses are near the published; None where none is to be compared."""
    compared = [n for n in COMPARED if LEAST_COMPARED < theirs.get(n, 0) < math.inf]
    if not compared:
        return None
    met, told = [], []
    for n in compared:
        losses = list(here.get(n, {}).values())
        if not losses or not all(map(math.isfinite, losses)):
            met.append(None)
            told.append(f"S = {n}: no loss here, published {theirs[n]:z.3g}")
            continue
        ratios = [loss / theirs[n] - 1 for loss in losses]
        low, high = _mean_interval(ratios)
        inside = low >= -LOSS_TOLERANCE and high <= LOSS_TOLERANCE
        outside = high < -LOSS_TOLERANCE or low > LOSS_TOLERANCE
        met.append(True if inside else False if outside else None)
        seeds = f"{len(losses)} seed{'s' * (len(losses) > 1)}"
        apart = f"{statistics.fmean(ratios):+z.0%}"
        if len(losses) >= 2:
            apart += f", {low:+z.0%} to {high:+z.0%}"
        told.append(
            f"S = {n}: mean {statistics.fmean(losses):z.3g} of {seeds}, published {theirs[n]:z.3g} "
            f"({apart})"
        )
    return Criterion(
        f"{name}: best loss within {LOSS_TOLERANCE:z.0%} of the published",
        False if False in met else True if all(met) else None,
        "; ".join(told),
    )


def _mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a mean, by Student's t; without ends for a single value."""
    if len(values) < 2:
        return -math.inf, math.inf
    quantile = t_quantile((1 + CONFIDENCE) / 2, len(values) - 1)
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values) - half, statistics.fmean(values) + half


VERDICTS = {
    "capacity": lambda rows: capacity([*rows["capacity"], *rows[WITHOUT_EPS]]),
    "as_published": lambda rows: as_published(
        [*rows["capacity"], *rows["update_rules"], *rows[MEANS]], published()["fastweights_logs"]
    ),
}
