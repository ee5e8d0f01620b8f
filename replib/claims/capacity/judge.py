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
    ordered,
    published_losses,
    solved_keys,
    typical,
)
from replib.lab.run import config_of
from replib.lab.statistics import (
    CONFIDENCE,
    difference_interval,
    solves_more,
    t_quantile,
    wilson_interval,
)
from replib.lab.store import Row
from replib.lab.verdict import MOST, Criterion, Verdict, each_device, three_digits, within
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
    bounded = _at_most_features(found)
    said = solved_text(found)
    if bounded.met is not None:
        said += f": {'never' if bounded.met else 'for one of them'} more than features R"
    criteria = bounded, *(above(found, *pair) for pair in ABOVE)
    return Verdict(said, criteria, tuple(_without_eps(rows, found)), answer=said)


def solved_text(found: Mapping[str, Losses], *, rule: bool = False) -> str:
    """How many keys each memory solves, the most first; FAVOR+ in one where none of its sizes
    solves any."""
    if not found:
        return NO_RUNS
    solved = {label(MEMORIES[name], rule=rule): solved_keys(x) for name, x in ordered(found)}
    told = [
        f"{keys_text(one, interval=False)} with {name}"
        for name, one in sorted(solved.items(), key=lambda pair: -pair[1].value)
        if one.value > 0
    ]
    none = [name.removesuffix(" 64") for name, one in solved.items() if one.value == 0]
    if "FAVOR+" in none:
        none = [name for name in none if not name.startswith("FAVOR+ ")]
    nothing = f"none with {' or '.join(none)}"
    if not told:
        return f"half of the runs solve {nothing}"
    return f"half of the runs solve S = {', '.join(told + [nothing] * bool(none))}"


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
    text = "no memory solves more keys than its number of features R"
    return Criterion(text, _every(met), "; ".join(told) or "no runs yet")


def _every(met: Sequence[bool | None]) -> bool | None:
    """Whether all are met; None where that cannot be told."""
    return False if False in met else True if met and all(met) else None


def _without_eps(rows: Sequence[Row], found: Mapping[str, Losses]) -> Iterator[str]:
    """What becomes of FAVOR+ without the ε that the published code adds to its normalisers."""
    named = [
        (config_of(row).model.published_name, row)
        for row in rows
        if row["experiment"] == WITHOUT_EPS
    ]
    diverged = Counter(name for name, row in named if row["outcome"] == "diverged")
    for name, losses in ordered(named_losses(named)):
        with_eps = typical(found.get(name, {}))
        told = [
            f"S = {n}: {loss_text(loss)} for {loss_text(with_eps.get(n))}"
            for n, loss in typical(losses).items()
        ]
        yield (
            f"{label(MEMORIES[name])} without the published ε, median best loss for that with it: "
            f"{', '.join(told)}; {diverged[name]} of {sum(map(len, losses.values()))} runs diverge"
        )


NO_RUNS = "no runs with the published settings yet"


@each_device
def as_published(rows: Sequence[Row], published: Mapping[str, Any]) -> Verdict:
    """The recorded figures are the published ones.

    Two criteria a memory of setting 1 that ran: the S it solves is the published one, to GRID_STEP
    (the interval here lies within the published one, as much wider; violated where they lie
    apart); and its best losses at the S of COMPARED, where the published one is above
    LEAST_COMPARED, are within LOSS_TOLERANCE, by the interval of the mean over seeds. One a memory
    of setting 2 with the rules sum and delta: the S solved, evaluated as published where it was run
    so. How many of those that agree do so because nothing is remembered on either side is said.
    """
    found = of_setting(rows, with_replacement=False)
    second, alike = of_setting(rows, with_replacement=True), best_losses(rows, half_length=True)
    criteria, nothing = [], 0
    for name, theirs in ordered(published_losses(published, "setting1")):
        if here := found.get(name):
            told = label(MEMORIES[name])
            solved, losses = _near_solved(told, here, theirs), _near_losses(told, here, theirs)
            criteria += [one for one in (solved, losses) if one]
            nothing += solved.met is True and _solves_nothing(here, theirs)
            nothing += bool(losses and losses.met) and _reads_nothing(here, theirs)
    for name, theirs in ordered(published_losses(published, "setting2")):
        if name in DELTA_AND_SUM and (here := alike.get(name) or second.get(name)):
            told = label(MEMORIES[name], rule=True)
            told += ", evaluated as published" if name in alike else ""
            criteria.append(_near_solved(told, here, theirs))
            nothing += criteria[-1].met is True and _solves_nothing(here, theirs)
    evidence = tuple(_below_least(rows, published))
    if not criteria:
        none = Criterion("a memory that was published ran", None, "none yet")
        return Verdict(NO_RUNS, (none,), evidence)
    met = [one.met for one in criteria]
    aside = f" ({nothing} of them in that nothing is remembered)" if nothing else ""
    said = (
        f"{met.count(True)} of {len(met)} comparisons agree with the published runs{aside}, "
        f"{met.count(False)} do not, {met.count(None)} cannot be told"
    )
    return Verdict(said, tuple(criteria), evidence, answer=said)


def _solves_nothing(here: Losses, theirs: Mapping[int, float]) -> bool:
    return solved_keys(here).value == solved_keys(one_run(theirs)).value == 0


def _reads_nothing(here: Losses, theirs: Mapping[int, float]) -> bool:
    """Whether the losses compared are, on both sides, that of reading nothing, or near it."""
    compared = [losses.get(n, math.inf) for losses in (typical(here), theirs) for n in COMPARED]
    return min(compared) > NOTHING_READ


def _below_least(rows: Sequence[Row], published: Mapping[str, Any]) -> Iterator[str]:
    """The published losses that no mean over all keys can have, and whether runs here, averaged as
    the published code does, have such losses: within the 95 % interval of one run more."""
    measured: dict[tuple[str | None, int], list[tuple[float, float]]] = {}
    for row in rows:
        if row["experiment"] == MEANS and row["outcome"] == "ok":
            config, summary = config_of(row), row["summary"]
            means = summary["best_all_keys_loss"], summary["best_batches_loss"]
            measured.setdefault((memory_of(config), config.task.n_keys), []).append(means)
    for name, n, loss, least in impossible_losses(published) if measured else ():
        told = f"{label(MEMORIES[name])}, S = {n}: the published {loss:z.3g} is below the least "
        told += f"mean over all keys, {least:z.3g}"
        found = measured.get((name, n), [])
        if len(found) < MIN_SEEDS:
            yield f"{told}; why is not measured"
            continue
        whole, batches = zip(*found, strict=True)
        low, high = _mean_interval(batches, of_one_more=True)
        yield (
            f"{told}; the mean of batches, as published, "
            f"{'explains' if low <= loss <= high else 'does not explain'} it: so averaged "
            f"{len(found)} runs here have {min(batches):z.3g} to {max(batches):z.3g} (one more "
            f"{low:z.3g} to {high:z.3g}), and over all keys {min(whole):z.3g} to {max(whole):z.3g}"
        )


def above(found: Mapping[str, Losses], better: str, worse: str, *, rule: bool = False) -> Criterion:
    """Whether a memory solves more keys than another, and with a lower loss."""
    names = [label(MEMORIES[name], rule=rule) for name in (better, worse)]
    text = f"{names[0]} remembers more keys than {names[1]}"
    missing = [told for told, name in zip(names, (better, worse), strict=True) if name not in found]
    if missing:
        return Criterion(text, None, f"no runs of {' and '.join(missing)} yet", few=True)
    sides = found[better], found[worse]
    a, b = map(solved_keys, sides)
    by_loss, told = _lower_loss(*sides)
    more = solves_more(*map(counts, sides))
    met = _every([by_loss] if a.value == b.value == 0 else [more, by_loss])
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
        met.append(within(low, high, -LOSS_TOLERANCE, LOSS_TOLERANCE))
        seeds = f"{len(losses)} seed{'s' * (len(losses) > 1)}"
        apart = f"{statistics.fmean(ratios):+z.0%}"
        if len(losses) >= 2:
            apart += f", {low:+z.0%} to {high:+z.0%}"
        told.append(
            f"S = {n}: mean {statistics.fmean(losses):z.3g} of {seeds}, published {theirs[n]:z.3g} "
            f"({apart})"
        )
    text = f"{name}: best loss within {LOSS_TOLERANCE:z.0%} of the published"
    return Criterion(text, _every(met), "; ".join(told))


def _mean_interval(values: Sequence[float], of_one_more: bool = False) -> tuple[float, float]:
    """The 95 % interval of a mean, or of one value more, by Student's t; without ends for a single
    value."""
    if len(values) < 2:
        return -math.inf, math.inf
    quantile = t_quantile((1 + CONFIDENCE) / 2, len(values) - 1)
    half = quantile * statistics.stdev(values) * math.sqrt(of_one_more + 1 / len(values))
    return statistics.fmean(values) - half, statistics.fmean(values) + half


VERDICTS = {
    "capacity": lambda rows: capacity([*rows["capacity"], *rows[WITHOUT_EPS]]),
    "as_published": lambda rows: as_published(
        [*rows["capacity"], *rows["update_rules"], *rows[MEANS]], published()["fastweights_logs"]
    ),
}
