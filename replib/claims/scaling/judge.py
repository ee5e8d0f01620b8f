"""Claim 2, judged on stored rows: time and memory of linear attention grow as N, those of softmax
as N².

B batch, N sequence length. As in the paper's figure 1 a batch holds the same number of tokens at
every N, B = tokens / N; a batch of one at every N is told as evidence. Points are recorded several
times, each in a process of its own at another time, and an interval holds what varies between the
recordings.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from replib.claims.common import (
    EXPONENT_TOLERANCE,
    Variant,
    judged_linear,
    machine_busy,
    name_of,
    not_judged,
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
FUSED = ("softmax", "fused")  # softmax without its N × N weights, which the paper had not
WIDEST = 2.0  # an interval of an exponent that tells anything


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
    if busy := machine_busy([row for row in rows if variant_of(row) in judged]):
        return busy
    widths = {name: fit.high - fit.low for name, (fit, _) in fits.items()}
    if wide := [name for name, width in widths.items() if WIDEST < width < math.inf]:
        return not_judged(f"intervals narrower than {WIDEST:zg}", f"not of {'; '.join(wide)}")
    beside = (
        f"{'' if curve == first else f'{curve}: '}{name_of(variant)}, {what} grows as "
        f"N^{exponent_text(exponent)}"
        for curve, variant, what, exponent in lines
        if curve != first or variant not in judged
    )
    n_recordings = min(exponent.n_recordings for exponent, _ in fits.values())
    varies = "what varies between them" if n_recordings > 1 else "nothing that varies between more"
    recordings = f"{n_recordings} recording{'s' * (n_recordings > 1)}: the intervals hold {varies}"
    verdict = scaling_verdict(fits)
    return replace(
        verdict,
        evidence=(f"judged: {first}; {recordings}", *beside, *_disturbed(rows)),
        answer=_answer([line for line in lines if line[0] == first], judged, verdict.criteria),
    )


def _answer(
    lines: Sequence[tuple[str, Variant, str, Exponent]],
    judged: Sequence[Variant],
    criteria: Sequence[Criterion],
) -> str:
    """How time and memory of each that is judged grow, with the interval of what does not meet its
    criterion; and those of the fused softmax, whose memory does not grow as the textbook's does."""
    met, said = iter(criteria), []
    for chosen in (*judged, FUSED):
        grown = []
        for _, variant, what, fit in lines:
            if variant == chosen:
                open_or_not = chosen in judged and next(met).met is not True
                interval = f" ({fit.low:z.2f} to {fit.high:z.2f})" if open_or_not else ""
                grown.append(f"{what} N^{fit.value:z.2f}{interval}")
        beside = ", newer than the paper" if chosen == FUSED else ""
        said += [f"{name_of(chosen)}{beside}: {', '.join(grown)}"] if grown else []
    return "; ".join(said)


def _disturbed(rows: Sequence[Row]) -> tuple[str, ...]:
    """Which points have samples with page faults that are not the call's own, of how many."""
    counts: dict[str, list[int]] = {}
    for row in rows:
        n, batch_size = config_of(row).seq_len, config_of(row).batch_size
        name = f"{name_of(variant_of(row))} at N = {n}, batch {batch_size}"
        count = counts.setdefault(name, [0, 0])
        count[0] += row["summary"].get("n_disturbed", 0)
        count[1] += row["summary"].get("n_repeats", 0)
    found = [f"{name}: {n} of {of}" for name, (n, of) in counts.items() if n]
    return (f"samples with page faults of another's making: {'; '.join(found)}",) if found else ()


def scaling_verdict(claims: Mapping[str, tuple[Exponent, float]]) -> Verdict:
    """Judge growth exponents: `{"linear time": (exponent, 1.0), "softmax time": (..., 2.0)}`.

    A claim is met where the 95 % interval lies within the claimed exponent ± EXPONENT_TOLERANCE,
    violated where it lies wholly outside, and cannot be told otherwise.
    """
    criteria = [
        Criterion(
            f"{name} grows as N^{claimed:zg} (exponent within ± {EXPONENT_TOLERANCE:zg})",
            within(fit.low, fit.high, claimed - EXPONENT_TOLERANCE, claimed + EXPONENT_TOLERANCE),
            exponent_text(fit),
            few=math.isinf(fit.high - fit.low),
        )
        for name, (fit, claimed) in claims.items()
    ]
    longest = max((fit.to_length or 0 for fit, _ in claims.values()), default=0)
    grown = []
    for one, (name, (fit, _)) in zip(criteria, claims.items(), strict=True):
        beside = [f"to {fit.to_length:zg}"] if fit.to_length and fit.to_length < longest else []
        if one.met is not True:
            how = "not certain" if one.met is None else "not as claimed"
            beside.append(f"{how}: {fit.low:z.2f} to {fit.high:z.2f}")
        grown.append(f"{name} N^{fit.value:z.2f}" + f" ({'; '.join(beside)})" * bool(beside))
    headline = f"Up to N = {longest:zg}: {'; '.join(grown)}" if claims else "nothing measured"
    return Verdict(headline, tuple(criteria))


VERDICTS = {"scaling": lambda rows: scaling(rows["scaling"], work_of(rows["scaling"]))}
