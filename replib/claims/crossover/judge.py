"""Claim 3, judged on stored rows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from replib.claims.common import (
    ARTICLE_CROSSOVER,
    PAPER_CROSSOVER,
    judged_linear,
    machine_busy,
    name_of,
    work_of,
)
from replib.claims.crossover.crossings import Crossing, by_setting, crossings, moved
from replib.lab.run import config_of
from replib.lab.statistics import Crossover
from replib.lab.store import Row
from replib.lab.verdict import (
    Criterion,
    Verdict,
    crossover_place,
    crossover_text,
    crossovers_span,
    each_device,
    together,
    within,
)


@each_device
def speed_crossover(rows: Sequence[Row], *, work: str = "forward_backward") -> Verdict:
    """Linear attention is faster from N = 512 on (paper, fig. 1).

    Judged is `judged_linear` against the textbook softmax, which the paper had; the fused one,
    which came later, is judged beside it as evidence, and so are the other implementations of
    linear attention. That the textbook softmax is the one was chosen after the first rows were
    seen: with the fused one among the criteria it could not be told.
    """
    rows = [row for row in rows if config_of(row).work == work]
    found, judged = crossings(rows, work), judged_linear(rows)
    fastest = [one for one in found if one.implementation == judged]
    verdicts: dict[str, dict[str, Verdict]] = {"textbook": {}, "fused": {}}
    for one in fastest:
        verdicts[one.baseline][one.setting] = crossover_verdict(one.found)
    verdict = together(verdicts["textbook"], "no measurements yet")
    if not found:
        return verdict
    if busy := machine_busy(rows):
        return busy
    beside = [f"{name}: {one.label}; {one.headline}" for name, one in verdicts["fused"].items()]
    if len({one.implementation for one in found}) > 1:
        beside.append(f"by implementation: {implementations(rows, work=work).headline}")
    evidence = (*verdict.evidence, *beside)
    return replace(verdict, headline=_headline(fastest, judged), evidence=evidence)


def _headline(fastest: Sequence[Crossing], judged: str | None) -> str:
    """From where on the fastest linear attention is ahead of each softmax, in a sentence."""
    places: dict[str, list[Crossover]] = {}
    for one in fastest:
        places.setdefault(one.baseline, []).append(one.found)
    said = [f"{crossovers_span(some)} ({name} softmax)" for name, some in places.items()]
    return (
        f"{name_of(('linear', judged)).capitalize()} is faster from: {'; '.join(said)}. "
        f"The 2022 article extrapolated {ARTICLE_CROSSOVER}."
    )


@each_device
def implementations(rows: Sequence[Row], *, work: str = "forward_backward") -> Verdict:
    """The crossover is one of implementations: it moves to shorter N as linear attention's
    improves. Judged for each softmax and batch size by `implementations_verdict`."""
    found = by_setting(crossings(rows, work))
    return implementations_verdict({setting: members for (_, setting), members in found.items()})


def crossover_verdict(crossover: Crossover) -> Verdict:
    """Judge: linear is faster at every N from PAPER_CROSSOVER on (paper, fig. 1).

    Criteria: the 95 % interval of the crossover lies at or below that (violated where it lies
    wholly above); and it is inside the measured range. A crossover extrapolated from lengths that
    do not include it decides nothing.
    """
    claimed = PAPER_CROSSOVER
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
                few=not covered,
            ),
        ),
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
        first, *_, last = *found, *found
        figure = "; ".join(f"{name} {crossover_text(one)}" for name, one in found.items())
        text = f"{setting}: {last} crosses before {first}"
        if first == last:
            text = f"{setting}: two implementations or more"
        criteria.append(Criterion(text, moved(found), figure, few=first == last))
    names = dict.fromkeys(name for found in settings.values() for name in found)
    spans = {
        name: crossovers_span([found[name] for found in settings.values() if name in found])
        for name in names
    }
    headline = "; ".join(f"{name} {span}" for name, span in spans.items())
    headline = f"Linear is faster from: {headline}" if headline else "no measurements yet"
    return Verdict(headline, tuple(criteria))


VERDICTS = {
    "crossover": lambda rows: speed_crossover(rows["crossover"], work=work_of(rows["crossover"])),
    "implementations": lambda rows: implementations(
        rows["crossover"], work=work_of(rows["crossover"])
    ),
}
