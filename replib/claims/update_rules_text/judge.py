"""Sum and delta rule on text, judged on stored rows; losses as in `claims.language_model.judge`."""

import math
from collections.abc import Sequence
from statistics import mean

from replib.claims.common import nothing, told
from replib.claims.language_model.judge import (
    SAME,
    compared,
    losses,
    lower,
    perplexity_text,
    scale_of,
)
from replib.claims.update_rules_text.grid import (
    N_CARRIED,
    POSITIONS,
    RULES,
    carried_config,
    memory_configs,
    rule_config,
)
from replib.lab.run import config_of
from replib.lab.store import Row
from replib.lab.verdict import Verdict, each_device

Cell = tuple[str, str, bool]
"""A rule, positions, and whether it is normalised."""


def by_rule(rows: Sequence[Row]) -> dict[Cell, list[float]]:
    """The losses of each cell of the grid that has some."""
    scale = scale_of(rows)
    cells = [(r, p, n) for p in POSITIONS for n in (True, False) for r in RULES]
    found = {cell: losses(rows, rule_config(*cell, scale)) for cell in cells}
    return {cell: some for cell, some in found.items() if some}


def cell_name(positions: str, normalised: bool) -> str:
    """Such as "no positions, not normalised"."""
    return f"{'no ' * (positions == 'none')}positions, {'not ' * (not normalised)}normalised"


def cell_text(cell: Cell) -> str:
    """Such as "delta, no positions, normalised"."""
    rule, *how = cell
    return f"{rule}, {cell_name(*how)}"


@each_device
def update_rules_text(rows: Sequence[Row]) -> Verdict:
    """The delta rule has a lower loss than the sum of the same features, with and without
    positions, each rule normalised or not, whichever is better for it."""
    found, criteria, said = by_rule(rows), [], []
    for positions in POSITIONS:
        where = {"positions": "with positions", "none": "without positions"}[positions]
        lowest, best = {}, []
        for rule in RULES:
            some = [x for cell, x in found.items() if cell[:2] == (rule, positions)]
            lowest[rule] = min(some, key=mean, default=[])
            best += [f"{rule} {perplexity_text(lowest[rule])}"] if some else []
        said += [f"{where} {', '.join(best)}"] if best else []
        criteria.append(lower(f"{where}, delta is below the sum", lowest["delta"], lowest["sum"]))
    if not said:
        return nothing()
    every = [f"{cell_text(cell)}: {perplexity_text(some)}" for cell, some in found.items()]
    headline = f"perplexity of a character, DPFP-1 features: {'; '.join(said)}"
    return told(headline, criteria, every)


def by_segments(rows: Sequence[Row], rule: str) -> dict[int, list[float]]:
    """The losses by how many segments the state goes through, 0 being without end."""
    scale = scale_of(rows)
    found = {n: losses(rows, carried_config(RULES[rule], n, scale)) for n in N_CARRIED}
    return {n: some for n, some in found.items() if some}


def along_segments(rows: Sequence[Row], rule: str) -> list[float]:
    """The loss on the first, second, ... segment that a state goes through, of the rows whose state
    goes through the most; the mean of the seeds."""
    config = carried_config(RULES[rule], max(N_CARRIED), scale_of(rows))
    losses = [row["summary"].get("by_segment") for row in rows if config_of(row) == config]
    return [mean(some) for some in zip(*filter(None, losses), strict=True)]


def by_state_size(rows: Sequence[Row]) -> list[tuple[str, int, float]]:
    """The mechanism, state bytes and loss of each run whose state is carried without end."""
    scale = scale_of(rows)
    wanted = [*memory_configs(scale), *(carried_config(x, 0, scale) for x in RULES.values())]
    found = []
    for row in rows:
        config = config_of(row)
        if config in wanted and row["outcome"] == "ok" and row["summary"].get("perplexity"):
            summary = row["summary"]
            loss = math.log(summary["perplexity"])
            found.append((config.model.attention, summary["state_bytes"], loss))
    return found


@each_device
def text_carry(rows: Sequence[Row]) -> Verdict:
    """Where the state is carried without end the sum's loss is above that of a state that begins
    afresh at each segment, and the delta rule's is not (published: above 260 against 29.4 of
    perplexity, where each of them is some 30 in segments); and delta is below the sum."""
    of = {rule: by_segments(rows, rule) for rule in RULES}
    if not any(of.values()):
        return nothing()
    (afresh, without_end) = ({rule: of[rule].get(n, []) for rule in RULES} for n in (1, 0))
    criteria = (
        compared(
            f"sum: without end is more than {SAME} above afresh at each segment",
            without_end["sum"],
            afresh["sum"],
            SAME,
            math.inf,
        ),
        compared(
            f"delta: without end is at most {SAME} above afresh at each segment",
            without_end["delta"],
            afresh["delta"],
            -math.inf,
            SAME,
        ),
        lower("without end, delta is below the sum", without_end["delta"], without_end["sum"]),
    )
    both = [
        f"{rule} {perplexity_text(of[rule][1])} afresh and {perplexity_text(of[rule][0])} carried"
        for rule in RULES
        if of[rule].get(1) and of[rule].get(0)
    ]
    every = [
        f"{rule}, by segments carried: "
        + ", ".join(f"{n or 'no end'}: {perplexity_text(some)}" for n, some in of[rule].items())
        for rule in RULES
        if of[rule]
    ]
    said = "; ".join(both) or "runs are still missing"
    return told(f"perplexity of a character: {said}", criteria, every)


VERDICTS = {
    "update_rules_text": lambda rows: update_rules_text(rows["update_rules_text"]),
    "text_carry": lambda rows: text_carry(rows["text_carry"]),
}
