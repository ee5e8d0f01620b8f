"""Fast weight memories, judged on stored rows: how many keys each remembers, and what an update
rule that corrects what it reads solves that a sum does not.

Rows are those of the experiments `capacity` (setting 1 of Schlag et al. 2021, every key once) and
`update_rules` (setting 2, keys come back with new values); `published` is
`published()["fastweights_logs"]`, of which there is one run a figure. S is the number of keys. A
run's loss is its best, 0.5·Σ squared error, and is compared with the best of the published run,
not with the last that the published figures show. Runs with other settings than the published ones
are not judged. Rows of `evaluation` tell what the published mean of losses does to three figures,
and nothing else.
"""

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from replib.claims import each_device
from replib.experiments import CAPACITY_MEMORIES, UPDATE_RULE_MEMORIES, retrieval_config
from replib.recording import core_seconds
from replib.retrieval import MemoryConfig, RetrievalConfig
from replib.statistics import CONFIDENCE, difference_interval, t_quantile
from replib.store import Row
from replib.tables import markdown_table
from replib.verdicts import Criterion, Verdict

SOLVED_LOSS = RetrievalConfig().solved_loss
GRID_STEP = 20  # keys, the least step from one recorded S to the next
LOSS_TOLERANCE = 0.15  # of a published best loss
LEAST_COMPARED = 0.01  # published losses below it are compared as solved or not
COMPARED = (100, 200, 400, 600)
MIN_SEEDS = 3  # that an interval is computed from
MEANS = "evaluation"  # the experiment whose rows have several means of the same losses
MEMORIES = {m.published_name: m for m in (*CAPACITY_MEMORIES, *UPDATE_RULE_MEMORIES)}
# Left out: the published log stops at 300 steps, where the run had not ended.
TRUNCATED = {("setting2", "dpfp2_ours", 100)}

ABOVE = (  # the claimed order; softmax and DPFP-3 are not compared
    ("softmax_cat", "dpfp2_sum"),
    ("dpfp3_sum", "dpfp2_sum"),
    ("dpfp2_sum", "dpfp1_sum"),
    ("dpfp1_sum", "linear_sum"),
    ("linear_sum", "favor64_sum"),
    ("linear_sum", "favor128_sum"),
    ("linear_sum", "favor512_sum"),
)
DELTA_AND_SUM = ("dpfp1_sum", "linear_ours", "dpfp1_ours", "dpfp2_ours")

PAPER_SAYS = {
    "capacity": "With every key written once, softmax and DPFP-3 remember most keys, then DPFP-2, "
    "DPFP-1, linear attention and FAVOR+: a memory with R features holds at most R keys (section "
    "6.1.1).",
    "as_published": "The last S that each memory solves, and its best losses, are in the logs of "
    "the paper's authors: one run each, at S = 20, 60, 100, 200, ... 600.",
    "update_rules": "Where keys come back with new values, the delta rule replaces the old value; "
    "a sum cannot (section 6.1.2).",
}

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
        if config["model"] == asdict(memory):
            task, options = config["task"], {"eval_half_length": True} if half_length else {}
            options["with_replacement"] = task["with_replacement"]
            if half_length and not task["with_replacement"]:
                return None
            expected = asdict(retrieval_config(task["n_keys"], memory, **options))
            return name if json.loads(json.dumps(expected)) == dict(config) else None
    return None


def best_losses(rows: Iterable[Row], *, half_length: bool = False) -> dict[str, Losses]:
    """The best loss of every run that has ended, by memory, S and seed; see `memory_of`."""
    found: dict[str, Losses] = {}
    for row in rows:
        if row["experiment"] == MEANS:
            continue
        name = memory_of(row["config"], half_length=half_length)
        if name is None or row["outcome"] not in ("ok", "diverged"):
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


@dataclass(frozen=True)
class Solved:
    """The last S that a memory solves, 0 where it solves none, and the next S that it does not;
    `failed` is None where nothing longer was run."""

    last: int
    failed: int | None

    @property
    def text(self) -> str:
        if self.failed is None:
            return f"{self.last} or more"
        gap = self.failed - self.last > GRID_STEP and self.last
        return f"{self.last or 'none'}{f', not {self.failed}' if gap else ''}"


def last_solved(losses: Mapping[int, float], *, consecutive: bool = True) -> Solved:
    """The last S whose loss is at most SOLVED_LOSS; with `consecutive`, before the first that is
    above it."""
    solved = {n: loss <= SOLVED_LOSS for n, loss in sorted(losses.items())}
    if consecutive:
        failed = next((n for n, is_solved in solved.items() if not is_solved), None)
        return Solved(max((n for n in solved if n < (failed or math.inf)), default=0), failed)
    last = max((n for n, is_solved in solved.items() if is_solved), default=0)
    return Solved(last, next((n for n in solved if n > last), None))


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
    """Memories remember as many keys as the paper orders them.

    A criterion a pair: the first solves more keys, by its last consecutive S solved, and its mean
    loss is lower, by Welch's interval over seeds; where neither solves any S the loss alone
    decides.
    """
    found = _of_setting(rows, with_replacement=False)
    told = [f"{label(MEMORIES[name])} {_here(found[name])}" for name in _order(found)]
    return Verdict(
        f"last S solved: {', '.join(told)}" if told else NO_RUNS,
        tuple(_above(found, *pair) for pair in ABOVE),
    )


NO_RUNS = "no runs with the published settings yet"
_SAID = {True: "yes", False: "no", None: "cannot be told"}


@each_device
def as_published(rows: Sequence[Row], published: Mapping[str, Any]) -> Verdict:
    """The recorded figures are the published ones.

    Two criteria a memory of setting 1: its last consecutive S solved is within GRID_STEP of the
    published one, which is known to lie between two published S; and its best losses at the S of
    COMPARED, where the published one is above LEAST_COMPARED, are within LOSS_TOLERANCE, by the
    interval of the mean over seeds. One a memory of setting 2 with the rules sum and delta: the
    last S solved, evaluated as published where it was run so. As a published run of setting 2 may
    fail at an S and solve a longer one, the last there counts, consecutive or not.
    """
    found = _of_setting(rows, with_replacement=False)
    criteria, evidence = [], []
    for name, runs in _ordered(published_losses(published, "setting1")):
        here = found.get(name, {})
        criteria.append(_near_last(label(MEMORIES[name]), here, runs))
        criteria.append(_near_losses(label(MEMORIES[name]), here, runs))
    second, alike = _of_setting(rows, with_replacement=True), best_losses(rows, half_length=True)
    for name, runs in _ordered(published_losses(published, "setting2")):
        here, told = alike.get(name) or second.get(name, {}), label(MEMORIES[name], rule=True)
        if name in alike:
            told += ", evaluated as published"
        near = _near_last(told, here, runs, consecutive=False)
        if name in DELTA_AND_SUM:
            criteria.append(near)
        else:
            evidence.append(f"{near.text}: {_SAID[near.met]}; {near.figure}")
    criteria = [one for one in criteria if one]
    met = [one.met for one in criteria]
    return Verdict(
        f"{met.count(True)} of {len(met)} comparisons agree with the published runs, "
        f"{met.count(False)} do not, {met.count(None)} cannot be told"
        if found or second
        else NO_RUNS,
        tuple(criteria),
        (*evidence, *_below_least(rows, published)),
    )


def _below_least(rows: Sequence[Row], published: Mapping[str, Any]) -> Iterator[str]:
    """The published losses that no mean over all keys can have, and whether the way that they were
    averaged explains them."""
    for name, runs in _ordered(published_losses(published, "setting1")):
        r = MEMORIES[name].n_features
        for n in COMPARED if r else ():
            least = least_loss(r, n)
            if runs.get(n, math.inf) < least:
                yield (
                    f"{label(MEMORIES[name])}, S = {n}: the published {runs[n]:.3g} is below "
                    f"{least:.3g}, the least mean over all keys with R = {r}; "
                    f"{_of_means(rows, name, n, runs[n])}"
                )


def _of_means(rows: Sequence[Row], name: str, n_keys: int, theirs: float) -> str:
    """Whether a published loss is one that a run here may have, averaged as published: within the
    95 % interval of one run more, from those that were measured so."""
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
        return f"{how}: what that does is not measured yet, and the difference unexplained"
    whole, batches = zip(*found, strict=True)
    half = t_quantile((1 + CONFIDENCE) / 2, len(found) - 1) * math.sqrt(1 + 1 / len(found))
    half *= statistics.stdev(batches)
    low, high = statistics.fmean(batches) - half, statistics.fmean(batches) + half
    explains = "explains it" if low <= theirs <= high else "does not explain it"
    return (
        f"{how}, which {explains}: so averaged, {len(found)} runs here have "
        f"{min(batches):.3g} to {max(batches):.3g}, and one more would have {low:.3g} to "
        f"{high:.3g}; over all keys the same runs have {min(whole):.3g} to {max(whole):.3g}"
    )


@each_device
def update_rules(rows: Sequence[Row]) -> Verdict:
    """The delta rule solves what a sum does not, where keys come back with new values: with the
    features of DPFP-1 it solves a longer S, and has a lower mean loss."""
    found = _of_setting(rows, with_replacement=True)
    told = [
        f"{label(MEMORIES[name], rule=True)} {_here(found[name], consecutive=False)}"
        for name in _order(found)
        if name in DELTA_AND_SUM
    ]
    note = "evaluated on 2·S writes, as trained; published runs are evaluated on S, which is easier"
    return Verdict(
        f"last S solved: {', '.join(told)}" if told else NO_RUNS,
        (_above(found, "dpfp1_ours", "dpfp1_sum", consecutive=False),),
        (note,),
    )


def recording(rows: Sequence[Row]) -> str:
    """How many runs an experiment's rows are of, how long they took, and how many seeds."""
    if not rows:
        return "nothing is recorded yet"
    hours = sum(map(core_seconds, rows)) / 3600
    devices = ", ".join(sorted({row["provenance"]["device_name"] for row in rows}))
    took = f"{hours:.1f}" if hours >= 0.1 else "less than 0.1"
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


def _here(losses: Losses, *, consecutive: bool = True) -> str:
    return last_solved(typical(losses), consecutive=consecutive).text


def _above(
    found: Mapping[str, Losses], better: str, worse: str, *, consecutive: bool = True
) -> Criterion:
    """Whether a memory solves more keys than another, and with a lower loss."""
    rule = not consecutive
    names = [label(MEMORIES[name], rule=rule) for name in (better, worse)]
    text = f"{names[0]} remembers more keys than {names[1]}"
    missing = [told for told, name in zip(names, (better, worse), strict=True) if name not in found]
    if missing:
        return Criterion(text, None, f"no runs of {' and '.join(missing)} yet")
    sides = found[better], found[worse]
    a, b = (last_solved(typical(side), consecutive=consecutive) for side in sides)
    by_loss, told = _lower_loss(*sides)
    parts = [by_loss] if a == b and a.failed else [_longer(a, b), by_loss]
    met = False if False in parts else True if all(parts) else None
    return Criterion(text, met, f"last S solved {a.text} against {b.text}; {told}")


def _longer(a: Solved, b: Solved) -> bool | None:
    """Whether a's last S is beyond b's; None where what was run does not say."""
    if b.failed is not None and a.last >= b.failed:
        return True
    return False if a.failed is not None and b.last >= a.failed else None


def _lower_loss(better: Losses, worse: Losses) -> tuple[bool | None, str]:
    """Whether the mean loss is lower, over the S that both have MIN_SEEDS seeds of and that one of
    them does not solve: below SOLVED_LOSS a run ends, at a loss that chance decides."""
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
            statistics.fmean(side[n][seed] for n in common)
            for seed in sorted(set.intersection(*(set(side[n]) for n in common)))
        ]
        for side in (worse, better)
    ]
    if min(map(len, means)) < 2 or not all(math.isfinite(x) for side in means for x in side):
        return None, "a seed has no loss"
    low, high = difference_interval(*means)
    value = statistics.fmean(means[0]) - statistics.fmean(means[1])
    keys = ", ".join(map(str, sorted(common)))
    told = f"mean loss at S = {keys} lower by {value:.3g} ({low:.3g} to {high:.3g})"
    return (True if low > 0 else False if high < 0 else None), told


def _near_last(
    name: str, here: Losses, theirs: Mapping[int, float], *, consecutive: bool = True
) -> Criterion:
    """Whether the last S solved is within a step of the published one, whatever S between those
    that were published it is. The published is of one run: where most runs here are not near it,
    but some are, it cannot be told."""
    text = f"{name}: last S solved within {GRID_STEP} of the published"
    published = last_solved(theirs, consecutive=consecutive)
    if not here:
        return Criterion(text, None, f"no runs yet; published {published.text}")
    most, *others = (
        last_solved({n: of(seeds.values()) for n, seeds in here.items()}, consecutive=consecutive)
        for of in (statistics.median, min, max)
    )
    figure = f"{most.text}; published {published.text}"
    near = _is_near(most, published)
    unlike = [one for one in others if one != most and _is_near(one, published)]
    if unlike and not near:
        near, figure = None, f"{figure}; some runs here {unlike[0].text}"
    return Criterion(text, near, figure)


def _is_near(found: Solved, published: Solved) -> bool | None:
    # What the last S of a step of GRID_STEP can be, both ends included.
    low, high = found.last, math.inf if found.failed is None else found.failed - GRID_STEP
    least = published.last - GRID_STEP
    most = math.inf if published.failed is None else published.failed
    return True if least <= low and high <= most else False if high < least or low > most else None


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
            told.append(f"S = {n}: no loss here, published {theirs[n]:.3g}")
            continue
        ratios = [loss / theirs[n] - 1 for loss in losses]
        low, high = _mean_interval(ratios)
        inside = low >= -LOSS_TOLERANCE and high <= LOSS_TOLERANCE
        outside = high < -LOSS_TOLERANCE or low > LOSS_TOLERANCE
        met.append(True if inside else False if outside else None)
        seeds = f"{len(losses)} seed{'s' * (len(losses) > 1)}"
        apart = f"{statistics.fmean(ratios):+.0%}"
        if len(losses) >= 2:
            apart += f", {low:+.0%} to {high:+.0%}"
        told.append(
            f"S = {n}: {statistics.fmean(losses):.3g} of {seeds}, published {theirs[n]:.3g} "
            f"({apart})"
        )
    return Criterion(
        f"{name}: best loss within {LOSS_TOLERANCE:.0%} of the published",
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
    """Last S solved and best losses of setting 1, here and published, as Markdown."""
    return _table(rows, published, "setting1", COMPARED)


def update_rules_table(rows: Sequence[Row], published: Mapping[str, Any]) -> str:
    """Last S solved and best losses of setting 2, here, here evaluated as published, and published,
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
        sides = [typical(found.get(name, {})), theirs.get(name, {})]
        if second:
            sides.insert(1, typical(alike.get(name, {})))
        memory = MEMORIES[name]
        last = [
            last_solved(losses, consecutive=not second).text if losses else "–" for losses in sides
        ]
        cells = [str(memory.n_features or "–"), " / ".join(last)]
        for n in keys:
            losses = [side.get(n) for side in sides]
            cells.append(" / ".join("–" if x is None else _loss(x) for x in losses))
        told = label(memory, rule=second).replace(" ", "\N{NO-BREAK SPACE}")
        lines.append([told, *cells])
    columns = ["R", "last S solved", *(f"S = {n}" for n in keys)]
    first = "here / as published / published" if second else "here / published"
    told = "Medians over the seeds that were run; – is not run, or not among the published figures."
    return f"{markdown_table([first, *columns], lines)}\n\n{told}"


def _loss(loss: float) -> str:
    return (
        "diverged" if math.isinf(loss) else f"{loss:.2g}" if loss < SOLVED_LOSS else f"{loss:.3g}"
    )
