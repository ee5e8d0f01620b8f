"""Fast weight memories, judged on stored rows: how many keys each remembers, and what an update
rule that corrects what it reads solves that a sum does not.

Rows are those of the experiments `capacity` (setting 1 of Schlag et al. 2021, every key once) and
`update_rules` (setting 2, keys come back with new values); `published` is
`published()["fastweights_logs"]`, of which there is one run a figure. S is the number of keys. What
a memory solves is the S that half of its runs solve (`statistics.solved_threshold`), over all S and
seeds, so that no single run decides; so it is for every memory, in both settings, here and
published. A run's loss is its best, 0.5·Σ squared error, and is compared with the best of the
published run, not with the last that the published figures show. Runs with other settings than the
published ones are not judged. Rows of `evaluation` tell what the published mean of losses does to
some figures, those of `favor_eps` what the published ε does to FAVOR+, and nothing else.
"""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from replib.attention import options_of
from replib.claims.capacity.grid import CAPACITY_MEMORIES, retrieval_config
from replib.claims.update_rules.grid import UPDATE_RULE_MEMORIES
from replib.fast_weights import MemoryConfig, RetrievalConfig
from replib.lab.record import core_seconds
from replib.lab.statistics import (
    CONFIDENCE,
    SolvedCounts,
    Threshold,
    difference_interval,
    solved_threshold,
    solves_more,
    t_quantile,
    wilson_interval,
)
from replib.lab.store import Row, plain
from replib.lab.text import markdown_table
from replib.lab.verdict import (
    MOST,
    Criterion,
    Verdict,
    bound_text,
    each_device,
    three_digits,
    within,
)
from replib.published import published

SOLVED_LOSS = RetrievalConfig().solved_loss
GRID_STEP = 20  # keys, the least step from one recorded S to the next
LOSS_TOLERANCE = 0.15  # of a published best loss
LEAST_COMPARED = 0.01  # published losses below it are compared as solved or not
COMPARED = (100, 200, 400, 600)
MIN_SEEDS = 3  # that an interval is computed from
ENDED = ("ok", "diverged")  # outcomes of runs that count
NOTHING_READ = 0.49  # losses above it are those of a memory that reads nothing, which has 0.5
MEANS = "evaluation"  # the experiment whose rows have several means of the same losses
WITHOUT_EPS = "favor_eps"  # the experiment whose rows are of FAVOR+ without the published ε
MEMORIES = {m.published_name: m for m in (*CAPACITY_MEMORIES, *UPDATE_RULE_MEMORIES)}
# Left out: the published log stops at 300 steps, where the run had not ended.
TRUNCATED = {("setting2", "dpfp2_ours", 100)}

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

Losses = dict[int, dict[int, float]]
"""S -> seed -> best loss; infinite where none was finite."""


def label(memory: MemoryConfig, *, rule: bool = False) -> str:
    """A memory as it is named to readers: "DPFP-2", and with its update rule "DPFP-2 (delta)"."""
    names = {"dpfp": f"DPFP-{memory.size}", "performer": f"FAVOR+ {memory.size}"}
    name = names.get(memory.attention, memory.attention)
    return f"{name} ({memory.update_rule})" if rule else name


def memory_of(config: Mapping[str, Any], *, half_length: bool = False) -> str | None:
    """The published name of a run's memory; None where its settings are not the published ones.
    Those of setting 2 are evaluated on the whole length, or, with `half_length`, as published."""
    for name, memory in MEMORIES.items():
        if config["model"] == plain(memory):
            task, options = config["task"], {"eval_half_length": True} if half_length else {}
            options["with_replacement"] = task["with_replacement"]
            if half_length and not task["with_replacement"]:
                return None
            expected = plain(retrieval_config(task["n_keys"], memory, **options))
            return name if expected == dict(config) else None
    return None


def best_losses(rows: Iterable[Row], *, half_length: bool = False) -> dict[str, Losses]:
    """The best loss of every run that has ended, by memory, S and seed; see `memory_of`."""
    return _best_losses(
        (memory_of(row["config"], half_length=half_length), row)
        for row in rows
        if row["experiment"] not in (MEANS, WITHOUT_EPS)
    )


def _best_losses(named: Iterable[tuple[str | None, Row]]) -> dict[str, Losses]:
    """The best losses of rows, each beside the name of its memory; None is left out."""
    found: dict[str, Losses] = {}
    for name, row in named:
        if name is None or row["outcome"] not in ENDED:
            continue
        best = row["summary"].get("best_loss")
        by_keys = found.setdefault(name, {})
        seeds = by_keys.setdefault(row["config"]["task"]["n_keys"], {})
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


def solved_keys(losses: Losses) -> Threshold:
    """The S that half of the runs solve."""
    return solved_threshold(_counts(losses))


def _counts(losses: Losses) -> SolvedCounts:
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


def impossible_losses(published: Mapping[str, Any]) -> list[tuple[str, int, float, float]]:
    """The published losses of setting 1 that are below `least_loss`: name, S, loss, least loss."""
    return [
        (name, n, loss, least)
        for name, runs in _ordered(published_losses(published, "setting1"))
        if (r := MEMORIES[name].n_features)
        for n, loss in sorted(runs.items())
        if loss < (least := least_loss(r, n))
    ]


def typical(losses: Losses) -> dict[int, float]:
    """The median over seeds, so that an S counts as solved where most seeds solve it."""
    return {n: statistics.median(seeds.values()) for n, seeds in losses.items()}


def least_loss(n_features: int, n_keys: int) -> float:
    """The least mean loss over S keys of a memory of R features, 0.5 (1 - R / S): reads are a
    matrix of rank R times the values, and none of rank R is nearer than S - R to the identity, in
    squares (Eckart & Young 1936)."""
    return max(0.0, 0.5 * (1 - n_features / n_keys))


@each_device
def capacity(rows: Sequence[Row]) -> Verdict:
    """Memories remember as many keys as the paper orders them, and none more than it has features.

    A criterion a pair: the first solves more keys (`statistics.solves_more`), and its losses are
    lower, by Welch's interval of their logarithms over seeds; where neither solves any S the loss
    alone decides. A criterion of all: none solves more than R keys.
    """
    found = _of_setting(rows, with_replacement=False)
    return Verdict(
        _headline(found, _order(found)),
        (_at_most_features(found), *(_above(found, *pair) for pair in ABOVE)),
        tuple(_without_eps(rows, found)),
    )


def _headline(found: Mapping[str, Losses], names: Sequence[str], *, rule: bool = False) -> str:
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
    for name, losses in _ordered(found):
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


def memory_config(row: Row) -> MemoryConfig:
    """The memory that a row is of."""
    model = row["config"]["model"]
    return MemoryConfig(**model | {"options": options_of(model)})


def _without_eps(rows: Sequence[Row], found: Mapping[str, Losses]) -> Iterator[str]:
    """What becomes of FAVOR+ without the ε that the published code adds to its normalisers."""
    named = [
        (memory_config(row).published_name, row) for row in rows if row["experiment"] == WITHOUT_EPS
    ]
    diverged = Counter(name for name, row in named if row["outcome"] == "diverged")
    for name, losses in _ordered(_best_losses(named)):
        beside = typical(found.get(name, {}))
        told = [
            f"S = {n}: {_loss(loss)} for {_loss(beside[n]) if n in beside else 'nothing run'}"
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
    found = _of_setting(rows, with_replacement=False)
    second, alike = _of_setting(rows, with_replacement=True), best_losses(rows, half_length=True)
    criteria, nothing, evidence = [], [], []
    for name, theirs in _ordered(published_losses(published, "setting1")):
        if here := found.get(name):
            told = label(MEMORIES[name])
            solved, losses = _near_solved(told, here, theirs), _near_losses(told, here, theirs)
            criteria += [one for one in (solved, losses) if one]
            nothing += [solved] * _solves_nothing(here, theirs)
            nothing += [losses] * (bool(losses) and _reads_nothing(here, theirs))
    for name, theirs in _ordered(published_losses(published, "setting2")):
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
    return solved_keys(here).value == solved_keys(_one_run(theirs)).value == 0


def _one_run(losses: Mapping[int, float]) -> Losses:
    return {n: {0: loss} for n, loss in losses.items()}


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
        for name, losses in _ordered(_of_setting(rows, with_replacement=False))
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
        and row["config"]["task"]["n_keys"] == n_keys
        and memory_of(row["config"]) == name
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


@each_device
def update_rules(rows: Sequence[Row]) -> Verdict:
    """Where keys come back with new values the delta rule solves what neither a sum nor the earlier
    rule fwm does: with the features of DPFP-1 it solves a longer S, and has lower losses."""
    found = _of_setting(rows, with_replacement=True)
    named = [name for name in _order(found) if name in (*DELTA_AND_SUM, "dpfp1_fwm")]
    between = _above(found, "dpfp1_fwm", "dpfp1_sum", rule=True)
    note = "evaluated on 2·S writes, as trained; published runs are evaluated on S, which is easier"
    return Verdict(
        _headline(found, named, rule=True),
        tuple(
            _above(found, "dpfp1_ours", worse, rule=True) for worse in ("dpfp1_sum", "dpfp1_fwm")
        ),
        (note, f"not part of the claim: {between.text}: {_SAID[between.met]}; {between.figure}"),
    )


def recording(rows: Sequence[Row]) -> str:
    """How many runs an experiment's rows are of, how long they took, and how many seeds."""
    if not rows:
        return "nothing is recorded yet"
    hours = sum(map(core_seconds, rows)) / 3600
    devices = ", ".join(sorted({row["provenance"]["device_name"] for row in rows}))
    took = f"{hours:z.1f}" if hours >= 0.1 else "less than 0.1"
    told = f"{len(rows)} runs in {took} core-hours on {devices}"
    of_memories = [
        {n: len(seeds) for n, seeds in losses.items()} for losses in best_losses(rows).values()
    ]
    keys = sorted({n for one in of_memories for n in one})
    enough = {n: [one.get(n, 0) >= MIN_SEEDS for one in of_memories] for n in keys}
    every = [n for n in keys if all(enough[n])]
    some = [n for n in keys if any(enough[n]) and n not in every]
    seeds = [
        f"{MIN_SEEDS} seeds or more of {whose} at S = {', '.join(map(str, found))}"
        for whose, found in (("every memory", every), ("some memories", some))
        if found
    ]
    rest = "fewer elsewhere" if len(every) + len(some) < len(keys) else ""
    return "; ".join(filter(None, [told, *seeds, rest]))


def _of_setting(rows: Sequence[Row], *, with_replacement: bool) -> dict[str, Losses]:
    some = (row for row in rows if row["config"]["task"]["with_replacement"] == with_replacement)
    return best_losses(some)


def _order(names: Iterable[str]) -> list[str]:
    return [name for name in MEMORIES if name in set(names)]


def _ordered(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name, found[name]) for name in _order(found)]


def _above(
    found: Mapping[str, Losses], better: str, worse: str, *, rule: bool = False
) -> Criterion:
    """Whether a memory solves more keys than another, and with a lower loss."""
    names = [label(MEMORIES[name], rule=rule) for name in (better, worse)]
    text = f"{names[0]} remembers more keys than {names[1]}"
    missing = [told for told, name in zip(names, (better, worse), strict=True) if name not in found]
    if missing:
        return Criterion(text, None, f"no runs of {' and '.join(missing)} yet")
    sides = found[better], found[worse]
    a, b = map(solved_keys, sides)
    by_loss, told = _lower_loss(*sides)
    more = solves_more(*map(_counts, sides))
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
    mine, published = solved_keys(here), solved_keys(_one_run(theirs))
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


def capacity_table(rows: Sequence[Row], published: Mapping[str, Any]) -> str:
    """Keys solved and best losses of setting 1, here and published, as Markdown."""
    return _table(rows, published, "setting1", COMPARED)


def update_rules_table(rows: Sequence[Row], published: Mapping[str, Any]) -> str:
    """Keys solved and best losses of setting 2, here, here evaluated as published, and published,
    as Markdown."""
    return _table(rows, published, "setting2", (20, 60, 100, 200)) + (
        "\n\nThe published losses of this setting are of sequences of S writes, the first here of "
        "2·S, the second of S."
    )


def _table(
    rows: Sequence[Row], published: Mapping[str, Any], setting: str, keys: Sequence[int]
) -> str:
    second = setting == "setting2"
    found = _of_setting(rows, with_replacement=second)
    alike = best_losses(rows, half_length=True)
    theirs = published_losses(published, setting)
    lines = []
    for name in _order({*found, *theirs}):
        sides = [found.get(name, {}), _one_run(theirs.get(name, {}))]
        if second:
            sides.insert(1, alike.get(name, {}))
        memory = MEMORIES[name]
        solved = (keys_text(solved_keys(losses)) if losses else "–" for losses in sides)
        cells = [str(memory.n_features or "–"), " / ".join(solved)]
        for n in keys:
            losses = [typical(side).get(n) for side in sides]
            cells.append(" / ".join("–" if x is None else _loss(x) for x in losses))
        told = label(memory, rule=second).replace(" ", "\N{NO-BREAK SPACE}")
        lines.append([told, *cells])
    columns = ["R", "keys solved", *(f"S = {n}" for n in keys)]
    first = "here / as published / published" if second else "here / published"
    told = (
        "Keys solved: the S that half of the runs solve, with its 95 % interval, wide for the "
        "published ones, of one run at each S. Losses: medians over the seeds that were run; – is "
        "not run, or not among the published figures we compare with."
    )
    return f"{markdown_table([first, *columns], lines)}\n\n{told}"


def _loss(loss: float) -> str:
    return (
        "diverged" if math.isinf(loss) else f"{loss:z.2g}" if loss < SOLVED_LOSS else f"{loss:z.3g}"
    )


VERDICTS = {
    "capacity": lambda rows: capacity([*rows["capacity"], *rows[WITHOUT_EPS]]),
    "as_published": lambda rows: as_published(
        [*rows["capacity"], *rows["update_rules"], *rows[MEANS]], published()["fastweights_logs"]
    ),
}
