"""Verdicts on the claims: written criteria, each decided by a 95 % interval, never typed.

A criterion is met (True), violated (False), or cannot be told (None: the interval straddles the
limit, or there are too few data). All met: supported. Any violated: not supported, or, of a smaller
setting than the claim is about, not tested there. Else: inconclusive; a reader is told why. The
texts are composed from the numbers; the caller adds the device they were measured on.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from statistics import median

from replib.lab.statistics import Crossover, Exponent, Ratio
from replib.lab.store import Row

SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE = "supported", "not supported", "inconclusive"
NOT_TESTED = "not tested at the paper's size"
NOT_RECORDED, TOO_FEW, NOT_TOLD = "not recorded yet", "too few runs", "cannot be told"
LABELS = (SUPPORTED, NOT_SUPPORTED, NOT_TESTED, TOO_FEW, NOT_TOLD, NOT_RECORDED)
MARKS = {True: "✓", False: "✗", None: "?"}  # of what is met, violated, or cannot be told

MOST = 0.5
BUSY_SPREAD = 1.5  # of repeats; on a quiet machine most points have 1.05 to 1.15


@dataclass(frozen=True)
class Criterion:
    """One condition of a verdict, whether it is met (None: cannot be told), and its figure; `few`
    is whether it cannot be told as seeds, recordings or lengths are missing."""

    text: str
    met: bool | None
    figure: str
    few: bool = False


@dataclass(frozen=True)
class Verdict:
    """What the data say about a claim. `status` follows from the criteria and cannot be set.

    `untested` says that the data are of a smaller setting than the claim is about, and do not
    support it: such data cannot refute it either. `recorded` is whether there are any data.
    `answer` is one sentence of at most 30 words for a reader; the headline stands in for it.
    """

    headline: str
    criteria: tuple[Criterion, ...]
    evidence: tuple[str, ...] = ()
    untested: bool = False
    recorded: bool = True
    answer: str = ""

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
    def label(self) -> str:
        """The status as a reader meets it: where it is inconclusive, why."""
        if self.status != INCONCLUSIVE:
            return self.status
        if not self.recorded:
            return NOT_RECORDED
        return TOO_FEW if any(one.few for one in self.criteria if one.met is None) else NOT_TOLD

    @property
    def says(self) -> str:
        """The sentence of a card."""
        text = self.answer or self.headline
        return text[:1].upper() + text[1:]

    @property
    def lines(self) -> tuple[str, ...]:
        """The criteria, each with its mark, and the evidence."""
        marked = (f"{MARKS[one.met]} {one.text}: {one.figure}" for one in self.criteria)
        return (*marked, *(f"· {line}" for line in self.evidence))


def exponent_text(found: Exponent) -> str:
    """Such as "1.05 (0.87 to 1.26) over N = 64 to 4096"."""
    return (
        f"{found.value:z.2f} ({found.low:z.2f} to {found.high:z.2f}) "
        f"over N = {found.from_length:zg} to {found.to_length:zg}"
    )


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


def spikes_text(n_spikes: int) -> str:
    return f"{n_spikes} loss spike{'s' * (n_spikes != 1)}"


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


def spread_of_repeats(rows: Sequence[Row]) -> float:
    """The upper over the lower quartile of the repeats of a timing, the median of the rows'; 1
    where nothing was timed more than twice. Above BUSY_SPREAD the machine had other work."""
    timed = [row["summary"] for row in rows if len(row["summary"].get("time_ms_samples", ())) > 2]
    return median([one["time_ms_q75"] / one["time_ms_q25"] for one in timed] or [1.0])


def together(verdicts: dict[str, Verdict], nothing: str) -> Verdict:
    """One verdict that is supported where all of several are."""
    if not verdicts:
        return Verdict(nothing, (Criterion("some rows", None, "0", few=True),))
    criteria = tuple(
        Criterion(
            f"{name}: {verdict.label}",
            _MET[verdict.status],
            _why(verdict),
            few=verdict.label == TOO_FEW,
        )
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
    labels = Counter(verdict.label for verdict in verdicts.values())
    counts = [f"{label} in {labels[label]}" for label in LABELS if label in labels]
    return Verdict(
        f"{', '.join(counts)} of {len(verdicts)} settings",
        criteria,
        evidence,
        untested=any(one.untested for one in verdicts.values()) and NOT_SUPPORTED not in labels,
    )


def _why(verdict: Verdict) -> str:
    """The headline, and which criteria are not met."""
    said = {None: "cannot be told", False: "violated"}
    reasons = [f"{said[one.met]}: {one.text}" for one in verdict.criteria if not one.met]
    return "; ".join([verdict.headline, *reasons])
