"""Claim 2, judged on stored rows: time and memory of linear attention grow as N, those of softmax
as N².

B batch, N sequence length. As in the paper's figure 1 a batch holds the same number of tokens at
every N, B = tokens / N; a batch of one at every N is told as evidence. Points are recorded several
times, each in a process of its own at another time, and an interval holds what varies between the
recordings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from replib.claims.common import (
    EXPONENT_TOLERANCE,
    judged_linear,
    name_of,
    work_of,
)
from replib.claims.scaling.growth import exponents
from replib.lab.run import config_of, variant_of
from replib.lab.statistics import Exponent
from replib.lab.store import Row
from replib.lab.verdict import (
    Criterion,
    Verdict,
    each_device,
    exponent_text,
    within,
)

# What is claimed to grow how (paper, section 3.2 and fig. 1): exponents of N, of attention alone.
SCALING_CLAIMS = {"linear": 1.0, "softmax": 2.0}


@each_device
def scaling(rows: Sequence[Row], work: str = "forward_backward") -> Verdict:
    """Time and memory of linear attention grow as N, those of softmax as N².

    Judged are the textbook softmax, which the paper had, and `judged_linear`, on the first of
    `curves`; what else was measured is evidence, and which samples have page faults that are not
    the call's own.
    """
    rows = [row for row in rows if config_of(row).work == work]
    lines = exponents(rows, work)
    judged = [("linear", judged_linear(rows)), ("softmax", "textbook")]
    first = next((curve for curve, *_ in lines), None)
    fits = {
        f"{name_of(variant)}, {what}": (exponent, SCALING_CLAIMS[variant[0]])
        for chosen in judged
        for curve, variant, what, exponent in lines
        if curve == first and variant == chosen
    }
    if not fits:
        none = Criterion("two lengths or more", None, "0")
        return Verdict("no measurements yet", (none,))
    beside = (
        f"{_where(curve, first)}{name_of(variant)}, {what} grows as N^{exponent_text(exponent)}"
        for curve, variant, what, exponent in lines
        if curve != first or variant not in judged
    )
    recordings = _recordings_text([exponent for exponent, _ in fits.values()])
    return replace(
        scaling_verdict(fits),
        evidence=(f"judged: {first}; {recordings}", *beside, *_disturbed(rows)),
    )


def _recordings_text(exponents: Sequence[Exponent]) -> str:
    fewest = min(exponent.n_recordings for exponent in exponents)
    if fewest == 1:
        return "one recording: what varies between recordings is not in the intervals"
    return f"{fewest} recordings: the intervals hold what varies between them"


def _where(curve: str, first: str) -> str:
    return "" if curve == first else f"{curve}: "


def _disturbed(rows: Sequence[Row]) -> tuple[str, ...]:
    """Which points have samples with page faults that are not the call's own, of how many."""
    counts: dict[str, list[int]] = {}
    for row in rows:
        n, batch_size = config_of(row).seq_len, config_of(row).batch_size
        count = counts.setdefault(
            f"{name_of(variant_of(row))} at N = {n}, batch {batch_size}", [0, 0]
        )
        count[0] += row["summary"].get("n_disturbed", 0)
        count[1] += row["summary"].get("n_repeats", 0)
    found = [f"{name}: {n} of {of}" for name, (n, of) in counts.items() if n]
    return (f"samples with page faults of another's making: {'; '.join(found)}",) if found else ()


def scaling_verdict(claims: Mapping[str, tuple[Exponent, float]]) -> Verdict:
    """Judge growth exponents: `{"linear time": (exponent, 1.0), "softmax time": (..., 2.0)}`.

    A claim is met where the 95 % interval lies within the claimed exponent ± EXPONENT_TOLERANCE,
    violated where it lies wholly outside, and cannot be told otherwise. The headline has those that
    are not met first, with the reason.
    """
    criteria, reasons, as_claimed = [], [], []
    for name, (fit, claimed) in claims.items():
        text = f"{name} grows as N^{claimed:zg} (exponent within ± {EXPONENT_TOLERANCE:zg})"
        low, high = claimed - EXPONENT_TOLERANCE, claimed + EXPONENT_TOLERANCE
        met = within(fit.low, fit.high, low, high)
        criteria.append(Criterion(text, met, exponent_text(fit)))
        grows = f"{name} grows as N^{fit.value:z.2f}"
        if met:
            as_claimed.append(f"{grows}, claimed {claimed:zg}")
        else:
            place = "is outside" if met is False else "passes"
            reasons.append(
                f"{grows} ({fit.low:z.2f} to {fit.high:z.2f}): the interval {place} claimed "
                f"{claimed:zg} ± {EXPONENT_TOLERANCE:zg}"
            )
    return Verdict("; ".join(reasons + as_claimed) or "nothing measured", tuple(criteria))


VERDICTS = {"scaling": lambda rows: scaling(rows["scaling"], work_of(rows["scaling"]))}
