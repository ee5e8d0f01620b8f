"""What the defects of the 2022 replication were expected to do, held against the ablation.

`DEFECTS[...].expected` was written by reading code, before anything ran. Each part of it that the
ablation can decide is a check here, at every length; one that turns out wrong is reported as wrong.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from replib.autopsy import DEFECTS
from replib.claims_autopsy import (
    ALONE_OFF,
    ALONE_ON,
    BROKEN,
    FACTOR_TOLERANCE,
    MENDED,
    NEAR_ZERO,
    Difference,
    Key,
    ablated,
    difference,
    final_losses,
    lengths_of,
    step_times,
)
from replib.statistics import Ratio, Total, ratio
from replib.store import Row
from replib.verdicts import LOSS_MARGIN, ratio_text

RIGHT, WRONG, PARTLY, UNDECIDED = "right", "wrong", "at some lengths", "cannot be told"
SLOWER_STEPS = 1.1  # times as many steps to 99 % count as slower convergence


@dataclass(frozen=True)
class Ablation:
    """The rows of losses and of times of one device, of linear attention."""

    losses: Mapping[Key, list[float]]
    runs: Mapping[Key, list[Row]]
    times: Mapping[Key, Total]
    timed: Mapping[Key, list[Row]]

    @classmethod
    def of(cls, losses: Sequence[Row], times: Sequence[Row]) -> "Ablation":
        return cls(final_losses(losses), ablated(losses), step_times(times), ablated(times))


Judged = tuple[bool | None, str]
"""Whether something holds at one length (None: cannot be told), and its figure."""
Check = Callable[[Ablation, str, int], Judged | None]
"""Judges a defect at a length; None where nothing was measured."""


@dataclass(frozen=True)
class Hypothesis:
    """One expectation that can be checked."""

    defect: str
    text: str
    check: Check


@dataclass(frozen=True)
class Finding:
    """What became of a hypothesis, with its figure at each length."""

    hypothesis: Hypothesis
    status: str
    figures: tuple[str, ...]


def findings(losses: Sequence[Row], times: Sequence[Row]) -> list[Finding]:
    """Every hypothesis, judged on rows of `autopsy` and `autopsy_time`: right where it holds at all
    lengths, wrong where at none and at least one says so."""
    ablation = Ablation.of(losses, times)
    lengths = sorted({*lengths_of(losses), *lengths_of(times)})
    return [_finding(one, ablation, lengths) for one in HYPOTHESES]


def _finding(one: Hypothesis, ablation: Ablation, lengths: Sequence[int]) -> Finding:
    judged = {n: one.check(ablation, one.defect, n) for n in lengths}
    known = {n: found for n, found in judged.items() if found is not None}
    met = [found[0] for found in known.values()]
    if met and all(met):
        status = RIGHT
    elif False in met:
        status = PARTLY if True in met else WRONG
    else:
        status = PARTLY if True in met else UNDECIDED
    figures = tuple(f"N = {n}: {figure}" for n, (_, figure) in known.items())
    return Finding(one, status, figures)


def table(found: Sequence[Finding]) -> str:
    """Findings as Markdown; the wrong ones are told first."""
    wrong = [
        f"{DEFECTS[f.hypothesis.defect].title}: {f.hypothesis.text}"
        for f in found
        if f.status == WRONG
    ]
    if wrong:
        said = f"**Wrong:** {'; '.join(wrong)}."
    elif any(f.figures for f in found):
        said = "None has turned out wrong at every length."
    else:
        said = "Nothing has been measured yet, so that no hypothesis is right or wrong."
    lines = [
        f"| {DEFECTS[f.hypothesis.defect].title} | {f.hypothesis.text} | {f.status} | "
        f"{'; '.join(f.figures) or '–'} |"
        for f in found
    ]
    return (
        f"{said}\n\n| defect | expected by reading | found | measured |\n|:---|:---|:---|:---|\n"
        + ("\n".join(lines))
    )


def _time(ablation: Ablation, defect: str, n: int, *, low: float, high: float) -> Judged | None:
    """The factor of a step's time lies between two bounds."""
    on, mended = (ablation.times.get(("linear", n, *key)) for key in _pair(defect))
    if on is None or mended is None:
        return None
    found = ratio(on, mended)
    return _within(found, low, high), ratio_text(found)


def _memory(ablation: Ablation, defect: str, n: int, *, factor: float) -> Judged | None:
    """The factor of a step's peak memory is about as said."""
    rows = [ablation.timed.get(("linear", n, *key)) for key in _pair(defect)]
    if None in rows:
        return None
    on, mended = (some[-1]["summary"].get("memory_bytes") for some in rows)
    if not on or not mended:
        return None
    found = on / mended
    near = factor * (1 - FACTOR_TOLERANCE) <= found <= factor * (1 + FACTOR_TOLERANCE)
    return near, f"{found:.2f}× the memory"


def _pair(defect: str) -> tuple[tuple[str, str | None], ...]:
    return (ALONE_ON, defect), (MENDED, None)


def _within(found: Ratio | Difference, low: float, high: float) -> bool | None:
    if low <= found.low and found.high <= high:
        return True
    return False if found.high < low or found.low > high else None


def _loss(
    ablation: Ablation,
    defect: str,
    n: int,
    *,
    low: float,
    high: float,
    sides: Callable[[str], tuple] = _pair,
) -> Judged | None:
    """The difference of final losses, nats a token, lies between two bounds."""
    losses = [ablation.losses.get(("linear", n, *key)) for key in sides(defect)]
    if None in losses:
        return None
    found = difference(*losses)
    bounds = "" if math.isinf(found.low) else f" ({found.low:+.2g} to {found.high:+.2g})"
    return _within(found, low, high), f"{found.value:+.2g} nats{bounds}"


def _broken_zero(ablation: Ablation, defect: str, n: int) -> Judged | None:
    losses = ablation.losses.get(("linear", n, BROKEN, None))
    if losses is None:
        return None
    loss = statistics.fmean(losses)
    return loss <= NEAR_ZERO, f"{loss:.2g} nats, broken"


def _without(defect: str) -> tuple[tuple[str, str | None], ...]:
    return (ALONE_OFF, defect), (BROKEN, None)


def _slower(ablation: Ablation, defect: str, n: int) -> Judged | None:
    """More steps to 99 % accuracy; a run that does not get there counts as its last step."""
    runs = [ablation.runs.get(("linear", n, *key)) for key in _pair(defect)]
    if None in runs:
        return None
    solved = [[row["summary"].get("steps_to_solved") for row in some] for some in runs]
    if not any(one for side in solved for one in side):
        return None, "neither learns"
    steps = [
        [math.log(one or row["config"]["n_steps"]) for one, row in zip(side, some, strict=True)]
        for side, some in zip(solved, runs, strict=True)
    ]
    found = difference(*steps)
    factor, low, high = map(math.exp, (found.value, found.low, min(found.high, 700)))
    bounds = "" if math.isinf(found.low) else f" ({low:.2g} to {high:.2g})"
    never = "" if all(solved[0]) else ", not always reached"
    text = f"{factor:.2g}× the steps to 99 %{bounds}{never}"
    return _within(found, math.log(SLOWER_STEPS), math.inf), text


_SLOWER_STEP = partial(_time, low=1.0, high=math.inf)
_SAME_LOSS = partial(_loss, low=-LOSS_MARGIN, high=LOSS_MARGIN)

HYPOTHESES = (
    Hypothesis("float64", "a step takes longer", _SLOWER_STEP),
    Hypothesis("float64", "twice the memory", partial(_memory, factor=2.0)),
    Hypothesis("float64", "the losses hardly change", _SAME_LOSS),
    Hypothesis("split_heads", "less is copied", partial(_loss, low=LOSS_MARGIN, high=math.inf)),
    Hypothesis("leak", "a loss near 0 in broken runs", _broken_zero),
    Hypothesis(
        "leak",
        "which is no copying: with the mask alone mended it is higher",
        partial(_loss, low=LOSS_MARGIN, high=math.inf, sides=_without),
    ),
    Hypothesis("reused_encoder", "no better loss", partial(_loss, low=-LOSS_MARGIN, high=math.inf)),
    Hypothesis("adam", "slower convergence", _slower),
    Hypothesis(
        "batch_32",
        "up to four times the time of a step",
        partial(_time, low=1.0, high=4 * (1 + FACTOR_TOLERANCE)),
    ),
    Hypothesis(
        "extra_losses",
        "a third more time a step",
        partial(_time, low=4 / 3 - FACTOR_TOLERANCE, high=4 / 3 + FACTOR_TOLERANCE),
    ),
    Hypothesis("extra_losses", "the losses do not change", _SAME_LOSS),
    Hypothesis("elu_feedforward", "slower convergence", _slower),
    Hypothesis("unfused", "a step takes longer", _SLOWER_STEP),
    Hypothesis("unfused", "the losses do not change", _SAME_LOSS),
)
