"""What the defects of the 2022 replication were expected to do, held against the ablation.

`DEFECTS[...].expected` and `published.json` were written by reading code, before anything ran. Each
part of them that the ablation can decide is a check here, at every length; one that turns out wrong
is reported as wrong, and where. What is said of time is of the device of the rows: it does not
transfer to the article's GPU. Defects that were found later are not among them.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from replib.claims.autopsy.ablation import (
    ALONE_OFF,
    ALONE_ON,
    BROKEN,
    MENDED,
    NEAR_ZERO,
    Difference,
    Key,
    ablated,
    difference,
    final_losses,
    lengths_of,
)
from replib.claims.autopsy.defects import DEFECTS
from replib.claims.autopsy.step_times import Attribution, attribution, step_times
from replib.claims.common import LOSS_MARGIN
from replib.lab.run import config_of
from replib.lab.statistics import Ratio, Total, ratio
from replib.lab.store import Row
from replib.lab.text import LEFT, markdown_table
from replib.lab.verdict import MARKS, ratio_text
from replib.published import published

RIGHT, WRONG, UNDECIDED = "right", "wrong", "cannot be told"
PARTLY = "wrong at some lengths"
FACTOR_TOLERANCE = 0.15  # of a predicted factor of time or memory
ZERO_AT = (8, 32)  # where the article's linear runs end at 0
SLOWER_STEPS = 1.1  # times as many steps to 99 % count as slower convergence


@dataclass(frozen=True)
class Ablation:
    """The rows of losses and of times of one device, of linear attention; and the slowdown taken
    apart, by length."""

    losses: Mapping[Key, list[float]]
    runs: Mapping[Key, list[Row]]
    times: Mapping[Key, Total]
    timed: Mapping[Key, list[Row]]
    slowdown: Mapping[int, Attribution]

    @classmethod
    def of(cls, losses: Sequence[Row], times: Sequence[Row]) -> "Ablation":
        parts = {n: attribution(times, published()["dm2022"], n) for n in lengths_of(times)}
        slowdown = {n: found for n, found in parts.items() if found is not None}
        ran, timed = ablated(losses), ablated(times)
        return cls(final_losses(losses), ran, step_times(times), timed, slowdown)


Judged = tuple[bool | None, str]
"""Whether something holds at one length (None: cannot be told), and its figure."""
Check = Callable[[Ablation, str, int], Judged | None]
"""Judges a defect at a length; None where nothing was measured."""


@dataclass(frozen=True)
class Hypothesis:
    """One expectation that can be checked; at some `lengths` alone where it is about these."""

    defect: str
    text: str
    check: Check
    lengths: tuple[int, ...] | None = None

    @property
    def named(self) -> str:
        """It, with the title of its defect."""
        return f"{DEFECTS[self.defect].title}: {self.text}"


@dataclass(frozen=True)
class Finding:
    """What became of a hypothesis, with its figure at each length; and the lengths at which it is
    right, wrong, and at which the rows do not tell."""

    hypothesis: Hypothesis
    status: str
    figures: tuple[str, ...]
    right_at: tuple[int, ...] = ()
    wrong_at: tuple[int, ...] = ()
    unknown_at: tuple[int, ...] = ()


def findings(losses: Sequence[Row], times: Sequence[Row]) -> list[Finding]:
    """Every hypothesis, judged on rows of `autopsy` and `autopsy_time`: right where it holds at all
    lengths that say something, wrong where at none of them."""
    ablation = Ablation.of(losses, times)
    lengths = sorted({*lengths_of(losses), *lengths_of(times)})
    return [_finding(one, ablation, lengths) for one in HYPOTHESES]


def _finding(one: Hypothesis, ablation: Ablation, lengths: Sequence[int]) -> Finding:
    asked = [n for n in lengths if n in (one.lengths or lengths)]
    judged = {n: one.check(ablation, one.defect, n) for n in asked}
    met = {n: None if found is None else found[0] for n, found in judged.items()}
    right, wrong, unknown = (
        tuple(n for n in asked if met[n] is told) for told in (True, False, None)
    )
    status = PARTLY if right and wrong else RIGHT if right else WRONG if wrong else UNDECIDED
    figures = tuple(
        f"{MARKS[met[n]]} N = {n}: {found[1]}" for n, found in judged.items() if found is not None
    )
    return Finding(one, status, figures, right, wrong, unknown)


def headline(found: Sequence[Finding]) -> str:
    """What turned out wrong, and where, as Markdown."""
    wrong = [one.hypothesis.named for one in found if one.status == WRONG]
    partly = [
        f"{one.hypothesis.named} ({_at(one.wrong_at)})" for one in found if one.status == PARTLY
    ]
    told = [(name.capitalize(), some) for name, some in ((WRONG, wrong), (PARTLY, partly)) if some]
    if told:
        return "\n\n".join(f"**{name}:** {'; '.join(some)}." for name, some in told)
    if any(f.figures for f in found):
        return "None has turned out wrong at any length."
    return "Nothing has been measured yet, so that no hypothesis is right or wrong."


def measured(found: Sequence[Finding], defect: str) -> str:
    """What became of the expectations of one defect, in a line; none that was not measured."""
    return "; ".join(
        f"{_marks(one)} {one.hypothesis.text}"
        for one in found
        if one.hypothesis.defect == defect and one.figures
    )


def _marks(found: Finding) -> str:
    """Whether it holds; with the lengths, where it depends on them."""
    places = {True: found.right_at, False: found.wrong_at, None: found.unknown_at}
    told = [f"{MARKS[met]} {_at(lengths)}" for met, lengths in places.items() if lengths]
    return f"{', '.join(told)}:" if len(told) > 1 else told[0].split()[0]


def table(found: Sequence[Finding]) -> str:
    """Findings as a Markdown table."""
    head = "defect", "expected by reading", "found", "measured"
    lines = [
        [
            DEFECTS[one.hypothesis.defect].title,
            one.hypothesis.text,
            _status(one),
            "<br>".join(one.figures) or "–",
        ]
        for one in found
    ]
    return markdown_table(head, lines, LEFT)


def _status(found: Finding) -> str:
    """Its status, and at which lengths that is not known."""
    if found.status == UNDECIDED or not found.unknown_at:
        return found.status
    return f"{found.status}; {UNDECIDED} at {_at(found.unknown_at)}"


def _at(lengths: Sequence[int]) -> str:
    return f"N = {', '.join(map(str, lengths))}"


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
    return near, f"{found:z.2f}× the memory"


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
    bounds = "" if math.isinf(found.low) else f" ({found.low:+z.2g} to {found.high:+z.2g})"
    return _within(found, low, high), f"{found.value:+z.2g} nats{bounds}"


def _main_cause(ablation: Ablation, defect: str, n: int) -> Judged | None:
    """No other part of the slowdown has a larger factor, by their intervals."""
    found = ablation.slowdown.get(n)
    if found is None:
        return None
    parts = {part.name: part for part in found.parts}
    mine = parts.pop(DEFECTS[defect].title)
    most = max(parts.values(), key=lambda part: part.factor.value)
    ahead = all(mine.factor.low > part.factor.high for part in parts.values())
    behind = any(mine.factor.high < part.factor.low for part in parts.values())
    text = f"{ratio_text(mine.factor)}; {most.name}: {ratio_text(most.factor)}"
    if mine.share and most.share:
        text += f"; {mine.share.value:z.0%} against {most.share.value:z.0%} of the logarithm"
    return (True if ahead else False if behind else None), text


def _beside_half(ablation: Ablation, defect: str, n: int) -> Judged | None:
    """The rows have no model of half the layers, so that they do not decide."""
    judged = _time(ablation, defect, n, low=1.0, high=math.inf)
    return judged and (None, f"{judged[1]} a step of all layers")


def _broken_zero(ablation: Ablation, defect: str, n: int) -> Judged | None:
    losses = ablation.losses.get(("linear", n, BROKEN, None))
    if losses is None:
        return None
    loss = statistics.fmean(losses)
    return loss <= NEAR_ZERO, f"{loss:z.2g} nats, broken, mean of {len(losses)}"


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
        [math.log(one or config_of(row).n_steps) for one, row in zip(side, some, strict=True)]
        for side, some in zip(solved, runs, strict=True)
    ]
    found = difference(*steps)
    factor, low, high = map(math.exp, (found.value, found.low, min(found.high, 700)))
    bounds = "" if math.isinf(found.low) else f" ({low:z.2g} to {high:z.2g})"
    least, never = "", ""
    if not all(solved[0]):
        least, never = "at least ", ", not always reached" if any(solved[0]) else ", never reached"
    text = f"{least}{factor:z.2g}× the steps to 99 %{bounds}{never}"
    return _within(found, math.log(SLOWER_STEPS), math.inf), text


_SLOWER_STEP = partial(_time, low=1.0, high=math.inf)
_SAME_LOSS = partial(_loss, low=-LOSS_MARGIN, high=LOSS_MARGIN)

HYPOTHESES = (
    Hypothesis("float64", "a step takes longer", _SLOWER_STEP),
    Hypothesis("float64", "the main cause of the slowdown on this device", _main_cause),
    Hypothesis("float64", "twice the memory", partial(_memory, factor=2.0)),
    Hypothesis("float64", "the losses hardly change", _SAME_LOSS),
    Hypothesis("split_heads", "less is copied", partial(_loss, low=LOSS_MARGIN, high=math.inf)),
    Hypothesis("leak", "a loss near 0 in broken runs, as in the article", _broken_zero, ZERO_AT),
    Hypothesis(
        "leak",
        "which is no copying: with the mask alone mended it is higher",
        partial(_loss, low=LOSS_MARGIN, high=math.inf, sides=_without),
    ),
    Hypothesis(
        "reused_encoder",
        "slower than a model of half the encoder layers (no such model in the rows; below, the "
        "encoders are timed)",
        _beside_half,
    ),
    Hypothesis("reused_encoder", "no better loss", partial(_loss, low=-LOSS_MARGIN, high=math.inf)),
    Hypothesis("adam", "slower convergence", _slower),
    Hypothesis(
        "batch_32",
        "up to four times the time of a step",
        partial(_time, low=1.0, high=4 * (1 + FACTOR_TOLERANCE)),
    ),
    Hypothesis(
        "batch_32",
        "four times the time of a step",
        partial(_time, low=4 * (1 - FACTOR_TOLERANCE), high=4 * (1 + FACTOR_TOLERANCE)),
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
