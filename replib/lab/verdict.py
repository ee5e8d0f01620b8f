"""Verdicts on the claims: written criteria, each decided by a 95 % interval, never typed.

A criterion is met (True), violated (False), or cannot be told (None: the interval straddles the
limit, or there are too few data). All met: supported. Any violated: not supported, or, of a smaller
setting than the claim is about, not tested there. Else: inconclusive. The texts are composed from
the numbers; the caller adds the device they were measured on.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps

import numpy as np

from replib.lab.statistics import (
    CONFIDENCE,
    Crossover,
    Exponent,
    Ratio,
    difference_interval,
    wilson_interval,
)
from replib.lab.store import Row

SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE = "supported", "not supported", "inconclusive"
NOT_TESTED = "not tested at the paper's size"
MARKS = {True: "✓", False: "✗", None: "?"}  # of what is met, violated, or cannot be told

# Convergence: the paper's fig. 2 shows one run a mechanism. Five seeds are the fewest whose Wilson
# interval, with room to spare, can put a share above one half (5 of 5: 57 to 100 %).
ACCURACY_THRESHOLD = 0.99  # share of tokens: a copy with an error in a hundred symbols
MIN_SEEDS = 5
MOST = 0.5
# A fiftieth of the 2.3 nats that guessing one of 10 symbols costs.
LOSS_MARGIN = 0.05  # nats a token
# Where both have learned, losses are a thousandth of that margin, and it says nothing of which is
# lower: their ratio does. This limit was written after the first rows had been seen.
MAX_LOSS_RATIO = 2.0
LEAST_LOSS = 1e-6  # nats a token; float32 tells no smaller ones apart
LARGEST_LOG = 700.0  # whose exponential is finite
MIN_COMPARED_SEEDS = 3  # of another mechanism, that an interval is computed from
MAX_SPIKE_SHARE = 0.5  # "smooth" holds when most runs have no spike

# Scaling: far from the next whole exponent, wide enough for cache effects and lower-order terms.
EXPONENT_TOLERANCE = 0.15

# Images: the paper's linear model is 0.023 bits per dimension above softmax on MNIST. This rule was
# written before the digits had rows.
MIN_IMAGE_SEEDS = 3
BITS_MARGIN = 0.05  # bits per dimension

PAPER_CROSSOVER = 512  # the shortest N of the paper's fig. 1, where linear is already faster
ARTICLE_CROSSOVER = 3149  # the 2022 article's extrapolation


@dataclass(frozen=True)
class Criterion:
    """One condition of a verdict, whether it is met (None: cannot be told), and its figure."""

    text: str
    met: bool | None
    figure: str


@dataclass(frozen=True)
class Verdict:
    """What the data say about a claim. `status` follows from the criteria and cannot be set.

    `untested` says that the data are of a smaller setting than the claim is about, and do not
    support it: such data cannot refute it either.
    """

    headline: str
    criteria: tuple[Criterion, ...]
    evidence: tuple[str, ...] = ()
    untested: bool = False

    @property
    def status(self) -> str:
        """The status: supported, not supported, not tested at the paper's size or inconclusive."""
        met = [criterion.met for criterion in self.criteria]
        if met and all(met):
            return SUPPORTED
        if self.untested:
            return NOT_TESTED
        return NOT_SUPPORTED if any(one is False for one in met) else INCONCLUSIVE

    @property
    def lines(self) -> tuple[str, ...]:
        """The criteria, each with its mark, and the evidence."""
        marked = (f"{MARKS[one.met]} {one.text}: {one.figure}" for one in self.criteria)
        return (*marked, *(f"· {line}" for line in self.evidence))


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


def convergence_verdict(
    linear: Sequence[SeedResult],
    softmax: Sequence[SeedResult],
    *,
    accuracy_threshold: float = ACCURACY_THRESHOLD,
    min_seeds: int = MIN_SEEDS,
    loss_margin: float = LOSS_MARGIN,
    max_loss_ratio: float = MAX_LOSS_RATIO,
    max_spike_share: float = MAX_SPIKE_SHARE,
    n_comparisons: int = 1,
) -> Verdict:
    """Judge: linear attention learns smoothly and to the same final loss as softmax (paper, fig.
    2).

    Criteria: at least `min_seeds` seeds each; most linear seeds reach `accuracy_threshold` (Wilson
    interval); the difference of mean final losses, linear - softmax, lies within ± `loss_margin`
    nats a token (Welch interval); their ratio, of geometric means, is at most `max_loss_ratio`
    (Welch interval of logarithms; violated where it passes that and lies above 1); no linear run
    diverges; at most `max_spike_share` of the linear runs have a loss spike (Wilson interval). With
    too few seeds nothing is decided. The intervals of losses are of 1 - 0.05 / `n_comparisons`
    (Bonferroni): of several lengths one must not look worse by chance.

    Diverged runs count as not reaching the accuracy; they have no final loss and are left out of
    the difference, which says so.
    """
    enough = min(len(linear), len(softmax)) >= min_seeds
    criteria = (
        Criterion(
            f"at least {min_seeds} seeds of each mechanism",
            True if enough else None,
            f"linear {len(linear)}, softmax {len(softmax)}",
        ),
        accuracy_criterion(linear, accuracy_threshold),
        _loss_criterion(linear, softmax, loss_margin, n_comparisons),
        ratio_criterion(linear, softmax, max_loss_ratio, n_comparisons),
        Criterion(
            "no linear run diverges",
            not any(run.diverged for run in linear),
            f"{sum(run.diverged for run in linear)} of {len(linear)} diverged",
        ),
        _spike_criterion(linear, max_spike_share),
    )
    if not enough:
        criteria = tuple(Criterion(one.text, None, one.figure) for one in criteria)
    ratio, _ = loss_ratio(linear, softmax, n_comparisons)
    reached = " and ".join(
        f"{_n_reached(runs, accuracy_threshold)} of {len(runs)} {name} seeds"
        for name, runs in (("linear", linear), ("softmax", softmax))
    )
    return Verdict(
        headline=f"{reached} reach {accuracy_threshold:z.0%} accuracy; "
        f"final loss {'not known' if ratio is None else ratio_text(ratio)} softmax's",
        criteria=criteria,
        evidence=(_run_line("linear", linear), _run_line("softmax", softmax)),
    )


def scaling_verdict(
    claims: Mapping[str, tuple[Exponent, float]], *, tolerance: float = EXPONENT_TOLERANCE
) -> Verdict:
    """Judge growth exponents: `{"linear time": (exponent, 1.0), "softmax time": (..., 2.0)}`.

    A claim is met where the 95 % interval lies within the claimed exponent ± `tolerance`, violated
    where it lies wholly outside, and cannot be told otherwise. The headline has those that are not
    met first, with the reason.
    """
    criteria, reasons, as_claimed = [], [], []
    for name, (fit, claimed) in claims.items():
        text = f"{name} grows as N^{claimed:zg} (exponent within ± {tolerance:zg})"
        met = within(fit.low, fit.high, claimed - tolerance, claimed + tolerance)
        criteria.append(Criterion(text, met, exponent_text(fit)))
        grows = f"{name} grows as N^{fit.value:z.2f}"
        if met:
            as_claimed.append(f"{grows}, claimed {claimed:zg}")
        else:
            place = "is outside" if met is False else "passes"
            reasons.append(
                f"{grows} ({fit.low:z.2f} to {fit.high:z.2f}): the interval {place} claimed "
                f"{claimed:zg} ± {tolerance:zg}"
            )
    return Verdict("; ".join(reasons + as_claimed) or "nothing measured", tuple(criteria))


def exponent_text(found: Exponent) -> str:
    """Such as "1.05 (0.87 to 1.26) over N = 64 to 4096"."""
    return (
        f"{found.value:z.2f} ({found.low:z.2f} to {found.high:z.2f}) "
        f"over N = {found.from_length:zg} to {found.to_length:zg}"
    )


def crossover_verdict(
    crossover: Crossover, *, claimed: float = PAPER_CROSSOVER, article: float = ARTICLE_CROSSOVER
) -> Verdict:
    """Judge: linear is faster at every N from `claimed` on (paper, fig. 1).

    Criteria: the 95 % interval of the crossover lies at or below `claimed` (violated where it lies
    wholly above); and `claimed` is inside the measured range. A crossover extrapolated from lengths
    that do not include `claimed` decides nothing. The 2022 article's extrapolation is compared as
    evidence.
    """
    covered = crossover.shortest is None or crossover.shortest <= claimed <= crossover.longest
    met = within(crossover.low, crossover.high, 0.0, claimed)
    if crossover.extrapolated and (crossover.shortest is None or not covered):
        met = None
    measured = (
        "range not given"
        if crossover.shortest is None
        else f"measured N = {crossover.shortest:zg} to {crossover.longest:zg}"
    )
    place = crossover_place(crossover)
    headline = f"linear is faster from {place}"
    if math.isinf(crossover.length):
        headline = f"linear never stays faster {place.removeprefix('no N ')}"
    return Verdict(
        headline=f"{headline}; claimed from N = {claimed:zg} on",
        criteria=(
            Criterion(
                f"linear is faster at every N from {claimed:zg} on", met, f"crossover {place}"
            ),
            Criterion(
                f"N = {claimed:zg} is within the measured range",
                True if covered else None,
                measured,
            ),
        ),
        evidence=(_article_line(crossover, article),),
    )


def implementations_verdict(settings: Mapping[str, Mapping[str, Crossover]]) -> Verdict:
    """Judge: the crossover moves to shorter N as the implementation of linear attention improves.

    In each setting (a softmax and a batch size) the criterion is met where the 95 % interval of the
    last implementation's crossover lies wholly below that of the first, violated where it lies
    wholly above, and cannot be told otherwise.

    Args:
        settings: setting -> implementation -> crossover. The order of the implementations is that
            in which they improve, and is not taken from their times.
    """
    criteria = []
    for setting, found in settings.items():
        names = list(found)
        first, last = names[0], names[-1]
        start, end = found[first], found[last]
        met = True if end.high < start.low else False if end.low > start.high else None
        figure = "; ".join(f"{name} {crossover_text(one)}" for name, one in found.items())
        text = f"{setting}: {last} crosses before {first}"
        if first == last:
            text = f"{setting}: two implementations or more"
        criteria.append(Criterion(text, met, figure))
    names = dict.fromkeys(name for found in settings.values() for name in found)
    spans = {
        name: crossovers_span([found[name] for found in settings.values() if name in found])
        for name in names
    }
    headline = "; ".join(f"{name} {span}" for name, span in spans.items())
    return Verdict(headline or "no measurements yet", tuple(criteria))


def images_verdict(
    linear: Sequence[float],
    softmax: Sequence[float],
    *,
    histogram: float,
    n_diverged: int = 0,
    min_seeds: int = MIN_IMAGE_SEEDS,
    margin: float = BITS_MARGIN,
) -> Verdict:
    """Judge: as a model of images linear attention is as good as softmax (paper, tables 1 and 2).

    Criteria: at least `min_seeds` seeds each; bits per dimension of linear exceed those of softmax
    by at most `margin` (Welch interval); every linear seed is below the histogram of each position;
    no linear run diverges. With too few seeds nothing is decided.

    Args:
        linear, softmax: bits per dimension of the test images, a seed each.
        histogram: those of the histogram of each position in the images to train on.
        n_diverged: linear runs that are not among them, as they diverged.
    """
    enough = min(len(linear), len(softmax)) >= min_seeds
    seeds = f"linear {len(linear)}, softmax {len(softmax)}"
    criteria = [Criterion(f"at least {min_seeds} seeds of each mechanism", enough or None, seeds)]
    headline = "too few seeds"
    if min(len(linear), len(softmax)) >= 2:
        low, high = difference_interval(linear, softmax)
        means = float(np.mean(linear)), float(np.mean(softmax))
        difference = f"{means[0] - means[1]:+z.3f} ({low:+z.3f} to {high:+z.3f})"
        text = f"linear is at most {margin:zg} bits per dimension above softmax"
        criteria.append(Criterion(text, within(low, high, -math.inf, margin), difference))
        headline = (
            f"linear {means[0]:z.3f}, softmax {means[1]:z.3f} bits per dimension, means of "
            f"{len(linear)} and {len(softmax)} seeds; linear - softmax: {difference}"
        )
    if linear:
        text = f"every linear seed is below the histogram of each position, {histogram:z.3f}"
        criteria.append(Criterion(text, max(linear) < histogram, f"at most {max(linear):z.3f}"))
    criteria.append(Criterion("no linear run diverges", n_diverged == 0, f"{n_diverged} diverged"))
    if not enough:
        criteria = [Criterion(one.text, None, one.figure) for one in criteria]
    return Verdict(headline, tuple(criteria))


def constant_cost_verdict(
    recurrent: Exponent | None,
    recompute: Exponent | None,
    state: Exponent | None,
    cache: Exponent | None,
    *,
    tolerance: float = EXPONENT_TOLERANCE,
) -> Verdict:
    """Judge: with a recurrent state every token costs the same time and memory wherever it stands,
    and softmax's costs grow (Katharopoulos et al. 2020, section 3.4).

    Criteria, on 95 % intervals of growth exponents of the position: the time of a token and the
    bytes of the state within ± `tolerance` of 0; the time of a token that is computed with
    everything before it, and the bytes of a cache, above `tolerance`. What was not measured cannot
    be told.
    """
    still, growing = f"(exponent within ± {tolerance:zg})", f"(exponent above {tolerance:zg})"
    steady, rising = (-tolerance, tolerance), (tolerance, math.inf)
    criteria = (
        _growth_criterion(f"recurrent: a token's time does not grow {still}", recurrent, steady),
        _growth_criterion(f"recurrent: the state does not grow {still}", state, steady),
        _growth_criterion(f"recompute: a token's time grows {growing}", recompute, rising),
        _growth_criterion(f"cache: its bytes grow {growing}", cache, rising),
    )
    told = ", ".join(
        f"as N^{found.value:z.2f} ({name})"
        for name, found in (("recurrent", recurrent), ("recompute", recompute))
        if found is not None
    )
    return Verdict(f"the N-th token's time grows {told}" if told else "too few positions", criteria)


def _growth_criterion(text: str, found: Exponent | None, bounds: tuple[float, float]) -> Criterion:
    if found is None:
        return Criterion(text, None, "fewer than 2 positions")
    return Criterion(text, within(found.low, found.high, *bounds), exponent_text(found))


def faster_generation_verdict(speedup: Ratio, *, beside: str = "") -> Verdict:
    """Judge: linear attention generates a sequence in less time than softmax with its cache.

    The criterion is met where the 95 % interval of the ratio of times lies above 1, violated where
    it lies below. `beside` is told beside it.
    """
    text = ratio_text(speedup)
    met = within(speedup.low, speedup.high, 1.0, math.inf)
    criterion = Criterion("linear takes less time a sequence than cached softmax", met, text)
    beside = f", {beside}" if beside else ""
    return Verdict(f"linear is {text} as fast as cached softmax{beside}", (criterion,))


def ratio_text(found: Ratio) -> str:
    """Such as "12× (11 to 13)"; with as many digits as tell the ends of an interval apart, and
    without an interval where a single sample gives none."""
    value, low, high = (three_digits(x) for x in (found.value, found.low, found.high))
    if math.isclose(found.low, found.high, rel_tol=1e-9):
        return f"{value}× (no interval)"
    for digits in range(4, 10):
        if low != high:
            break
        value, low, high = (f"{x:z.{digits}g}" for x in (found.value, found.low, found.high))
    return f"{value}× ({low} to {high})"


def three_digits(value: float) -> str:
    """A number for reading: 0.0123, 1.23, 12.3, 1234."""
    return f"{value:z.0f}" if 100 <= value < 1e6 else f"{value:z.3g}"


def crossover_text(crossover: Crossover) -> str:
    """Where a crossover was measured, with its interval, or on which side of all lengths it is."""
    if not crossover.extrapolated:
        bounds = f"{bound_text(crossover.low)} to {bound_text(crossover.high)}"
        return f"N = {crossover.length:z.0f} ({bounds})"
    if crossover.length <= crossover.shortest:
        return f"below N = {crossover.shortest:zg}"
    return f"not up to N = {crossover.longest:zg}"


def crossover_place(crossover: Crossover) -> str:
    """Where a crossover is, with its 95 % interval, and beside which of the measured lengths."""
    told = []
    if not math.isinf(crossover.low):
        told = [f"95 % interval {bound_text(crossover.low)} to {bound_text(crossover.high)}"]
    if crossover.extrapolated and crossover.shortest and crossover.length <= crossover.shortest:
        return f"below N = {crossover.shortest:zg}, the shortest measured ({told[0]})"
    never = math.isinf(crossover.length)
    beyond = crossover.extrapolated and not never
    how, beside = ("extrapolated", "beyond") if beyond else ("measured", "up to")
    if crossover.longest is not None:
        how += f" {beside} N = {crossover.longest:zg}"
    where = "no N" if never else f"N = {bound_text(crossover.length)}"
    return f"{where} ({'; '.join([how, *told])})"


def crossovers_span(found: Sequence[Crossover]) -> str:
    """From the earliest to the latest of several crossovers."""
    early, late = (pick(found, key=lambda one: one.length) for pick in (min, max))
    first, last = (crossover_text(one).split(" (")[0] for one in (early, late))
    if first == last:
        return f"{first}, the shortest measured" if first.startswith("below") else first
    if last.startswith("not"):
        return f"{first} or {last}"
    return f"{first} to {last.removeprefix('N = ') if first.startswith('N = ') else last}"


def bound_text(length: float) -> str:
    """An end of an interval of N."""
    return (
        "no end" if math.isinf(length) else f"{length:z.0f}" if length < 1e6 else f"{length:z.0e}"
    )


def within(low: float, high: float, least: float, most: float) -> bool | None:
    """Return whether an interval lies inside least..most: False wholly outside, None straddling."""
    if least <= low and high <= most:
        return True
    return False if high < least or low > most else None


def _n_reached(runs: Sequence[SeedResult], threshold: float) -> int:
    return sum(not run.diverged and run.final_accuracy >= threshold for run in runs)


def accuracy_criterion(linear: Sequence[SeedResult], threshold: float) -> Criterion:
    """Whether most runs reach an accuracy."""
    text = f"most linear seeds reach {threshold:z.0%} accuracy"
    if not linear:
        return Criterion(text, None, "no runs")
    reached = _n_reached(linear, threshold)
    low, high = wilson_interval(reached, len(linear))
    met = True if low > MOST else False if high < MOST else None
    return Criterion(text, met, f"{reached} of {len(linear)} ({low:z.0%} to {high:z.0%})")


def _loss_criterion(
    linear: Sequence[SeedResult], softmax: Sequence[SeedResult], margin: float, n: int
) -> Criterion:
    text = f"final loss equals softmax's within ± {margin:zg} nats a token"
    losses, note = _losses(linear, softmax)
    if min(map(len, losses)) < 2:
        return Criterion(text, None, f"fewer than 2 runs with a final loss{note}")
    low, high = difference_interval(*losses, confidence=_corrected(n))
    difference = float(np.mean(losses[0]) - np.mean(losses[1]))
    figure = f"{difference:+z.4f} nats a token ({low:+z.4f} to {high:+z.4f}{note}{_note(n)})"
    return Criterion(text, within(low, high, -margin, margin), figure)


def ratio_criterion(
    linear: Sequence[SeedResult], other: Sequence[SeedResult], most: float, n: int
) -> Criterion:
    """Whether linear attention's final loss is as low as another's, to a factor of `most`."""
    found, note = loss_ratio(linear, other, n)
    text = f"final loss is at most {most:zg}× softmax's"
    if found is None:
        return Criterion(text, None, f"fewer than 2 runs with a final loss{note}")
    met = True if found.high <= most else False if found.low > 1 else None
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


def _spike_criterion(linear: Sequence[SeedResult], max_share: float) -> Criterion:
    text = f"at most {max_share:z.0%} of linear runs have a loss spike"
    if not linear:
        return Criterion(text, None, "no runs")
    spiked = sum(run.n_spikes > 0 for run in linear)
    low, high = wilson_interval(spiked, len(linear))
    figure = f"{spiked} of {len(linear)} ({low:z.0%} to {high:z.0%})"
    return Criterion(text, within(low, high, 0.0, max_share), figure)


def _run_line(name: str, runs: Sequence[SeedResult]) -> str:
    """Return one line on a mechanism's runs: spikes, divergence, steps to the accuracy."""
    steps = [run.steps_to_threshold for run in runs if run.steps_to_threshold is not None]
    speed = f"median {np.median(steps):zg} steps to accuracy" if steps else "accuracy not reached"
    return (
        f"{name}: {len(runs)} seeds, {spikes_text(sum(run.n_spikes for run in runs))}, "
        f"{sum(run.diverged for run in runs)} diverged, {speed}"
    )


def spikes_text(n_spikes: int) -> str:
    return f"{n_spikes} loss spike{'s' * (n_spikes != 1)}"


def _article_line(crossover: Crossover, article: float) -> str:
    met = within(crossover.low, crossover.high, 0.0, article)
    if crossover.low <= article <= crossover.high:
        place = "inside the 95 % interval"
    else:
        place = "above the 95 % interval" if met else "below the 95 % interval"
    return f"the 2022 article extrapolated N = {article:zg}: {place} here"


_MET = {SUPPORTED: True, NOT_SUPPORTED: False, NOT_TESTED: None, INCONCLUSIVE: None}


def each_device(judge: Callable[..., Verdict]) -> Callable[..., Verdict]:
    """Judge the rows of each device by themselves, and together say where the claim holds."""

    @wraps(judge)
    def judged(rows: Sequence[Row], *options, **named) -> Verdict:
        devices = by_device(rows)
        if len(devices) < 2:
            return judge(rows, *options, **named)
        verdicts = {device: judge(some, *options, **named) for device, some in devices.items()}
        return together(verdicts, "no rows yet")

    return judged


def by_device(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each device, by its name."""
    devices: dict[str, list[Row]] = {}
    for row in rows:
        devices.setdefault(row["provenance"]["device_name"], []).append(row)
    return devices


def device_names(rows: Sequence[Row]) -> str:
    """The devices that rows were computed on."""
    return ", ".join(sorted(by_device(rows))) or "nothing yet"


def together(verdicts: dict[str, Verdict], nothing: str) -> Verdict:
    """One verdict that is supported where all of several are."""
    if not verdicts:
        return Verdict(nothing, (Criterion("some rows", None, "0"),))
    criteria = tuple(
        Criterion(f"{name}: {verdict.status}", _MET[verdict.status], _why(verdict))
        for name, verdict in verdicts.items()
    )
    evidence = tuple(
        f"{name}: {line}" for name, verdict in verdicts.items() for line in verdict.evidence
    )
    if len(verdicts) == 1:
        (name,) = verdicts
        return replace(verdicts[name], headline=f"{name}: {verdicts[name].headline}")
    judged_by = {tuple(one.text for one in verdict.criteria) for verdict in verdicts.values()}
    if len(judged_by) == 1:  # else each has its own, and says so
        evidence = (f"judged each by: {'; '.join(*judged_by)}", *evidence)
    counts = [f"{status} in {n}" for status in _MET if (n := _count(verdicts, status))]
    return Verdict(
        f"{', '.join(counts)} of {len(verdicts)} settings",
        criteria,
        evidence,
        untested=any(one.untested for one in verdicts.values())
        and not _count(verdicts, NOT_SUPPORTED),
    )


def _why(verdict: Verdict) -> str:
    """The headline, and which criteria are not met."""
    said = {None: "cannot be told", False: "violated"}
    reasons = [f"{said[one.met]}: {one.text}" for one in verdict.criteria if not one.met]
    return "; ".join([verdict.headline, *reasons])


def _count(verdicts: dict[str, Verdict], status: str) -> int:
    return sum(verdict.status == status for verdict in verdicts.values())
