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
    Variant,
    judged_linear,
    name_of,
    order_of,
    work_of,
)
from replib.lab.run import variant_of
from replib.lab.statistics import MIN_FIT_LENGTHS, Exponent, exponent_of_recordings
from replib.lab.store import Row
from replib.lab.verdict import (
    Criterion,
    Verdict,
    by_device,
    each_device,
    exponent_text,
    within,
)

# What is claimed to grow how (paper, section 3.2 and fig. 1): exponents of N, of attention alone.
SCALING_CLAIMS = {"linear": 1.0, "softmax": 2.0}
TIME, MEMORY = "time", "memory"


@each_device
def scaling(rows: Sequence[Row], work: str = "forward_backward") -> Verdict:
    """Time and memory of linear attention grow as N, those of softmax as N².

    Judged are the textbook softmax, which the paper had, and `judged_linear`, on the first of
    `curves`; what else was measured is evidence, and which samples have page faults that are not
    the call's own.
    """
    rows = [row for row in rows if row["config"]["work"] == work]
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
        n, batch_size = row["config"]["seq_len"], row["config"]["batch_size"]
        count = counts.setdefault(
            f"{name_of(variant_of(row))} at N = {n}, batch {batch_size}", [0, 0]
        )
        count[0] += row["summary"].get("n_disturbed", 0)
        count[1] += row["summary"].get("n_repeats", 0)
    found = [f"{name}: {n} of {of}" for name, (n, of) in counts.items() if n]
    return (f"samples with page faults of another's making: {'; '.join(found)}",) if found else ()


def first_exponent(rows: Sequence[Row], work: str = "forward_backward") -> Exponent | None:
    """That of the time of linear attention in rows of the protocol before, as it was judged then:
    at all lengths, whatever their batch; a call then paid for what others had given back to the
    system. None where there are no such rows."""
    older = [row for row in rows if _counts(row, work)]
    variant = "linear", judged_linear(older)
    points = {
        row["config"]["seq_len"]: row["summary"]["time_ms_per_sample"]
        for row in older
        if variant_of(row) == variant
    }
    if len(points) < MIN_FIT_LENGTHS:
        return None
    return exponent_of_recordings(list(points), [list(points.values())])


def judged_rows(rows: Sequence[Row]) -> list[Row]:
    """Those of one work that are judged, of each device: of the first of its `curves`."""
    found = []
    for some in by_device(rows).values():
        found += next(iter(curves(some).values()), [])
    return found


def curves(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows by how the batch goes with N: constant tokens before a constant batch, and of each
    the one with the most lengths first. A point can be on two. One needs two lengths."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        n, batch_size = row["config"]["seq_len"], row["config"]["batch_size"]
        for name in (f"{n * batch_size} tokens a batch", f"batch {batch_size}"):
            found.setdefault(name, []).append(row)
    n_lengths = {
        name: len({one["config"]["seq_len"] for one in some}) for name, some in found.items()
    }

    def rank(name: str) -> tuple:
        # Two points of two constant batches happen to have the same tokens: that is no curve.
        fits = n_lengths[name] >= MIN_FIT_LENGTHS
        return not fits, not name.endswith("tokens a batch"), -n_lengths[name]

    return {name: found[name] for name in sorted(found, key=rank) if n_lengths[name] >= 2}


def exponents(
    rows: Sequence[Row], work: str = "forward_backward"
) -> list[tuple[str, Variant, str, Exponent]]:
    """The growth exponents of time and memory a sequence: curve, mechanism, what, exponent. The
    first of `curves` comes first; of the others those with lengths enough for an interval."""
    found = []
    for i, (curve, some) in enumerate(curves([r for r in rows if _counts(r, work)]).items()):
        for variant in sorted({variant_of(row) for row in some}, key=order_of):
            for what in (TIME, MEMORY):
                lengths, recordings = _recordings(some, variant, what)
                if len(lengths) >= (MIN_FIT_LENGTHS if i else 2):
                    exponent = exponent_of_recordings(lengths, recordings)
                    found.append((curve, variant, what, exponent))
    return found


def _counts(row: Row, work: str) -> bool:
    return row["config"]["work"] == work and row["outcome"] == "ok"


def _recordings(
    rows: Sequence[Row], variant: Variant, what: str
) -> tuple[list[int], list[list[list[float]]]]:
    """The lengths that every recording of a mechanism has, shortest first, and for each recording
    the repeats a sequence at each length."""
    found: dict[int, dict[int, list[float]]] = {}
    for row in rows:
        if variant_of(row) == variant and (repeats := _repeats(row, what)):
            found.setdefault(row["seed"], {})[row["config"]["seq_len"]] = repeats
    if not found:
        return [], []
    most = max(map(len, found.values()))
    whole = [points for points in found.values() if len(points) == most]
    lengths = sorted(set.intersection(*(set(points) for points in whole)))
    return lengths, [[points[n] for n in lengths] for points in whole]


def _repeats(row: Row, what: str) -> list[float]:
    summary, batch_size = row["summary"], row["config"]["batch_size"]
    if what == MEMORY:
        memory = summary.get("memory_bytes_per_sample")
        return [memory] if memory else []
    return [time_ms / batch_size for time_ms in summary.get("time_ms_samples", ())]


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


VERDICTS = {"scaling": lambda rows: scaling(rows["scaling"], work_of(rows["scaling"]))}
