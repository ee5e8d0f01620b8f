"""Claim 1, judged on stored rows."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from replib.claims.common import BOTH, LOSS_MARGIN, LSH_COPY, setting_of, share_criterion
from replib.lab.run import config_of, variant_of
from replib.lab.runs.training import SOLVED_ACCURACY
from replib.lab.statistics import CONFIDENCE, Ratio, difference_interval
from replib.lab.store import Row
from replib.lab.verdict import (
    MOST,
    NOT_SUPPORTED,
    Criterion,
    Verdict,
    each_device,
    ratio_text,
    spikes_text,
    three_digits,
    together,
    within,
)
from replib.training import TrainingConfig

# Convergence: the paper's fig. 2 shows one run a mechanism. Five seeds are the fewest whose Wilson
# interval, with room to spare, can put a share above one half (5 of 5: 57 to 100 %).
MIN_SEEDS = 5
# Where both have learned, losses are a thousandth of that margin, and it says nothing of which is
# lower: their ratio does. This limit was written after the first rows had been seen.
MAX_LOSS_RATIO = 2.0
LEAST_LOSS = 1e-6  # nats a token; float32 tells no smaller ones apart
LARGEST_LOG = 700.0  # whose exponential is finite
MIN_COMPARED_SEEDS = 3  # of another mechanism, that an interval is computed from
MOST_TOLD = 3  # settings of a session
MAX_SPIKE_SHARE = 0.5  # "smooth" holds when most runs have no spike


@dataclass(frozen=True)
class SeedResult:
    """The outcome of one training run: loss in nats a token, accuracy as a share of tokens.

    A diverged run may hold NaN. `steps_to_threshold` is None where the accuracy was not reached.
    """

    seed: int
    final_loss: float
    final_accuracy: float
    n_spikes: int
    diverged: bool = False
    steps_to_threshold: int | None = None


# The setting of the paper's figure 2. Smaller ones may support its claim, and cannot refute it.
PAPER_COPY = TrainingConfig()

PAPER_SIZES = ("n_layers", "n_heads", "d_model", "d_feedforward")


def of_papers_size(config: TrainingConfig) -> bool:
    """Whether a run of the copy task has the length, model, batch and steps of the paper's."""
    found = [getattr(config.model, name) for name in PAPER_SIZES]
    found += [config.task.seq_len, config.batch_size, config.n_steps]
    papers = [getattr(PAPER_COPY.model, name) for name in PAPER_SIZES]
    papers += [PAPER_COPY.task.seq_len, PAPER_COPY.batch_size, PAPER_COPY.n_steps]
    return all(one >= least for one, least in zip(found, papers, strict=True))


Sides = dict[str, list[SeedResult]]
"""The runs of each mechanism of one setting."""


def _sides(rows: Sequence[Row]) -> Sides:
    found: Sides = {}
    for row in rows:
        if row["outcome"] in ("ok", "diverged"):
            found.setdefault(config_of(row).model.attention, []).append(_seed_result(row))
    return found


def _copy_settings(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The runs of each setting by its name, the shortest first: those of the paper's size where
    there are any. Runs that differ in anything but the mechanism and the seed (two scales, say) are
    not judged together."""
    if papers := [row for row in rows if of_papers_size(config_of(row))]:
        rows = papers
    settings: dict[str, list[Row]] = {}
    for row in rows:
        settings.setdefault(setting_of(row), []).append(row)
    named: dict[str, list[Row]] = {}
    for some in sorted(settings.values(), key=_seq_len):
        config = config_of(some[0])
        name = f"N = {_seq_len(some)}, {config.n_steps} steps"
        if name in named:
            name += f", d_model {config.model.d_model}, batch {config.batch_size}"
        named[name] = some
    return named


@each_device
def convergence(rows: Sequence[Row]) -> Verdict:
    """Linear attention learns the copy task as softmax does: `convergence_verdict` at every length
    there is, together, with the intervals of losses corrected for their number. Runs of a smaller
    size than the paper's do not refute its claim: where they fail it is not tested. Mechanisms
    besides softmax and linear have no part in it; `below_lsh` is told as evidence."""
    judged = [row for row in rows if config_of(row).model.attention in BOTH]
    settings = {name: (some, _sides(some)) for name, some in _copy_settings(judged).items()}
    verdicts = {}
    for name, (some, sides) in settings.items():
        verdict = convergence_verdict(
            *(sides.get(one, []) for one in ("linear", "softmax")), n_comparisons=len(settings)
        )
        failed = verdict.status == NOT_SUPPORTED
        small = not of_papers_size(config_of(some[0]))
        verdicts[name] = replace(verdict, untested=failed and small)
    verdict = together(verdicts, "no runs yet")
    lsh = below_lsh(rows)
    beside = (f"beside it, {BELOW_LSH}: {lsh.label}; {lsh.headline}", *lsh.lines)
    verdict = replace(verdict, evidence=(*verdict.evidence, *beside))
    if learned := _learned(settings.values()):
        return replace(verdict, headline=learned)
    return replace(verdict, answer=_so_far(settings.values()))


TOLD = (
    "as accurate as softmax at N =",
    "its loss ends higher at",
    "its loss is open at",
    "not learned at",
)


def _learned(settings: Iterable[tuple[list[Row], Sides]]) -> str:
    """At which lengths linear attention is as accurate as softmax, and its loss as low; "" before
    the seeds suffice at any."""
    settings = list(settings)
    told: dict[str, list[str]] = {}
    for some, sides in settings:
        linear, softmax = sides.get("linear", []), sides.get("softmax", [])
        if min(len(linear), len(softmax)) < MIN_SEEDS:
            continue
        n, accurate = str(_seq_len(some)), accuracy_criterion(linear).met
        if accurate is not None:
            told.setdefault(TOLD[0 if accurate else 3], []).append(n)
        low = ratio_criterion(linear, softmax, len(settings)).met
        ratio, _ = loss_ratio(linear, softmax)
        if accurate and ratio and not low:
            said = f"{n} ({three_digits(ratio.value)}×)"
            told.setdefault(TOLD[1 if low is False else 2], []).append(said)
    said = [f"{words} {', '.join(told[words])}" for words in TOLD if words in told]
    small = not any(of_papers_size(config_of(some[0])) for some, _ in settings)
    return f"{'small models: ' * small}{'; '.join(said)}" if said else ""


def _so_far(settings: Iterable[tuple[list[Row], Sides]]) -> str:
    """How accurate each mechanism ended, of the longest settings."""
    said = []
    for some, sides in list(settings)[-MOST_TOLD:]:
        ends = (
            f"{name} {statistics.median(one.final_accuracy for one in runs):z.0%}"
            for name, runs in sides.items()
        )
        said.append(f"N = {_seq_len(some)}: {', '.join(ends)} right")
    return f"{'; '.join(said)}. It takes {MIN_SEEDS} seeds to judge." if said else ""


BELOW_LSH = "Linear attention ends at a lower loss than LSH attention of 4 rounds"


@each_device
def below_lsh(rows: Sequence[Row]) -> Verdict:
    """Linear attention ends below LSH attention of 4 rounds (paper, figure 2): at each length with
    MIN_COMPARED_SEEDS seeds of both, the interval of the ratio of final losses lies below 1
    (violated where it lies above). LSH attention is defined otherwise here than in the original."""
    some = [
        row
        for row in rows
        if variant_of(row) == ("lsh", LSH_COPY.label) or config_of(row).model.attention == "linear"
    ]
    settings = {name: _sides(some) for name, some in _copy_settings(some).items()}
    settings = {name: sides for name, sides in settings.items() if "lsh" in sides}
    criteria = []
    for name, sides in settings.items():
        linear, lsh = sides.get("linear", []), sides["lsh"]
        text = f"{name}: linear's final loss is below that of LSH attention"
        if min(len(linear), len(lsh)) < MIN_COMPARED_SEEDS:
            seeds = [
                f"{statistics.median(one.final_loss for one in some):z.2g} of {len(some)} {name}"
                for some, name in ((linear, "linear"), (lsh, "LSH"))
                if some
            ]
            figure = f"{' against '.join(seeds)} (medians; too few seeds: not judged)"
            criteria.append(Criterion(text, None, figure, few=True))
            continue
        ratio, note = loss_ratio(linear, lsh, len(settings))
        met = None
        if ratio:
            met = True if ratio.high < 1 else False if ratio.low > 1 else None
        criteria.append(Criterion(text, met, f"{ratio_text(ratio)}{note}" if ratio else note))
    if not criteria:
        needed = "runs of LSH attention and of linear"
        missing = Criterion(needed, None, "none: not judged", few=True)
        return Verdict("not judged: no runs of LSH attention", (missing,))
    met = [one.met for one in criteria]
    small = not any(of_papers_size(config_of(row)) for row in some)
    counts = f"{met.count(True)} lower, {met.count(False)} higher, {met.count(None)} not told"
    return Verdict(
        f"of {len(met)} lengths {counts}", tuple(criteria), untested=small and False in met
    )


def _seq_len(rows: Sequence[Row]) -> int:
    return config_of(rows[0]).task.seq_len


def _seed_result(row: Row) -> SeedResult:
    summary = row["summary"]
    return SeedResult(
        seed=row["seed"],
        final_loss=_number(summary.get("final_loss")),
        final_accuracy=_number(summary.get("final_accuracy")),
        n_spikes=summary.get("n_spikes", 0),
        diverged=row["outcome"] == "diverged",
        steps_to_threshold=summary.get("steps_to_solved"),
    )


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def convergence_verdict(
    linear: Sequence[SeedResult],
    softmax: Sequence[SeedResult],
    *,
    n_comparisons: int = 1,
) -> Verdict:
    """Judge: linear attention learns smoothly and to the same final loss as softmax (paper, fig.
    2).

    Criteria: at least MIN_SEEDS seeds each; most linear seeds reach SOLVED_ACCURACY (Wilson
    interval); the difference of mean final losses, linear - softmax, lies within ± LOSS_MARGIN
    nats a token (Welch interval); their ratio, of geometric means, is at most MAX_LOSS_RATIO
    (Welch interval of logarithms; violated where it passes that and lies above 1); no linear run
    diverges; at most MAX_SPIKE_SHARE of the linear runs have a loss spike (Wilson interval). With
    too few seeds nothing is decided. The intervals of losses are of 1 - 0.05 / `n_comparisons`
    (Bonferroni): of several lengths one must not look worse by chance.

    Diverged runs count as not reaching the accuracy; they have no final loss and are left out of
    the difference, which says so.
    """
    enough = min(len(linear), len(softmax)) >= MIN_SEEDS
    criteria = (
        Criterion(
            f"at least {MIN_SEEDS} seeds of each mechanism",
            True if enough else None,
            f"linear {len(linear)}, softmax {len(softmax)}",
        ),
        accuracy_criterion(linear),
        _loss_criterion(linear, softmax, n_comparisons),
        ratio_criterion(linear, softmax, n_comparisons),
        Criterion(
            "no linear run diverges",
            not any(run.diverged for run in linear),
            f"{sum(run.diverged for run in linear)} of {len(linear)} diverged",
        ),
        _spike_criterion(linear),
    )
    if not enough:
        criteria = tuple(Criterion(one.text, None, one.figure, few=True) for one in criteria)
    ratio, _ = loss_ratio(linear, softmax, n_comparisons)
    reached = " and ".join(
        f"{_n_reached(runs)} of {len(runs)} {name} seeds"
        for name, runs in (("linear", linear), ("softmax", softmax))
    )
    loss = "not known" if ratio is None else f"{ratio_text(ratio)} softmax's"
    return Verdict(
        headline=f"{reached} reach {SOLVED_ACCURACY:z.0%} accuracy; final loss {loss}",
        criteria=criteria,
        evidence=(_run_line("linear", linear), _run_line("softmax", softmax)),
    )


def _n_reached(runs: Sequence[SeedResult]) -> int:
    return sum(not run.diverged and run.final_accuracy >= SOLVED_ACCURACY for run in runs)


def accuracy_criterion(linear: Sequence[SeedResult]) -> Criterion:
    """Whether most runs reach SOLVED_ACCURACY."""
    text = f"most linear seeds reach {SOLVED_ACCURACY:z.0%} accuracy"
    return share_criterion(text, _n_reached(linear), len(linear), (MOST, math.inf))


def _loss_criterion(
    linear: Sequence[SeedResult], softmax: Sequence[SeedResult], n: int
) -> Criterion:
    text = f"final loss equals softmax's within ± {LOSS_MARGIN:zg} nats a token"
    losses, note = _losses(linear, softmax)
    if min(map(len, losses)) < 2:
        return Criterion(text, None, f"fewer than 2 runs with a final loss{note}")
    low, high = difference_interval(*losses, confidence=_corrected(n))
    difference = float(np.mean(losses[0]) - np.mean(losses[1]))
    figure = f"{difference:+z.4f} nats a token ({low:+z.4f} to {high:+z.4f}{note}{_note(n)})"
    return Criterion(text, within(low, high, -LOSS_MARGIN, LOSS_MARGIN), figure)


def ratio_criterion(linear: Sequence[SeedResult], other: Sequence[SeedResult], n: int) -> Criterion:
    """Whether linear attention's final loss is at most MAX_LOSS_RATIO times another's."""
    found, note = loss_ratio(linear, other, n)
    text = f"final loss is at most {MAX_LOSS_RATIO:zg}× softmax's"
    if found is None:
        return Criterion(text, None, f"fewer than 2 runs with a final loss{note}")
    met = True if found.high <= MAX_LOSS_RATIO else False if found.low > 1 else None
    return Criterion(text, met, f"{ratio_text(found)}{note}{_note(n)}")


def loss_ratio(
    linear: Sequence[SeedResult], other: Sequence[SeedResult], n_comparisons: int = 1
) -> tuple[Ratio | None, str]:
    """The ratio of final losses (geometric means) with its interval, and which runs it leaves out;
    None where a side has fewer than 2 losses."""
    losses, note = _losses(linear, other)
    if min(map(len, losses)) < 2:
        return None, note
    logs = [np.log(np.maximum(side, LEAST_LOSS)) for side in losses]
    value = math.exp(logs[0].mean() - logs[1].mean())
    ends = difference_interval(*logs, confidence=_corrected(n_comparisons))
    low, high = (math.exp(min(end, LARGEST_LOG)) for end in ends)
    return Ratio(value, min(low, value), max(high, value)), note


def _losses(*sides: Sequence[SeedResult]) -> tuple[list[list[float]], str]:
    """The final losses of runs that did not diverge, and how many were left out."""
    losses = [
        [run.final_loss for run in runs if not run.diverged and math.isfinite(run.final_loss)]
        for runs in sides
    ]
    n_left_out = sum(map(len, sides)) - sum(map(len, losses))
    return losses, f", {n_left_out} diverged run(s) left out" if n_left_out else ""


def _corrected(n_comparisons: int) -> float:
    return 1 - (1 - CONFIDENCE) / n_comparisons


def _note(n_comparisons: int) -> str:
    """What an interval is of, where it is not a 95 % one."""
    if n_comparisons == 1:
        return ""
    return f", interval of {_corrected(n_comparisons):z.2%}, for {n_comparisons} lengths"


def _spike_criterion(linear: Sequence[SeedResult]) -> Criterion:
    text = f"at most {MAX_SPIKE_SHARE:z.0%} of linear runs have a loss spike"
    spiked = sum(run.n_spikes > 0 for run in linear)
    return share_criterion(text, spiked, len(linear), (0.0, MAX_SPIKE_SHARE))


def _run_line(name: str, runs: Sequence[SeedResult]) -> str:
    """Return one line on a mechanism's runs: spikes, divergence, steps to the accuracy."""
    steps = [run.steps_to_threshold for run in runs if run.steps_to_threshold is not None]
    speed = f"median {np.median(steps):zg} steps to accuracy" if steps else "accuracy not reached"
    return (
        f"{name}: {len(runs)} seeds, {spikes_text(sum(run.n_spikes for run in runs))}, "
        f"{sum(run.diverged for run in runs)} diverged, {speed}"
    )


VERDICTS = {
    "convergence": lambda rows: convergence(rows["convergence"]),
    "below_lsh": lambda rows: below_lsh(rows["convergence"]),
}
