"""The ablation of the 2022 replication's defects, and what each did to the loss.

Rows are those of the experiments `autopsy` (losses) and `autopsy_time` (steps). A run is *mended*
(no defect) or *broken* (all that the article's runs of its mechanism had); a defect is *alone on*
in an otherwise mended run, or *alone off* in an otherwise broken one.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from replib.claims.autopsy.defects import DEFECTS, all_defects, article_defects, loss_defects
from replib.lab.run import config_of
from replib.lab.runs.training import SOLVED_ACCURACY
from replib.lab.store import Row

MENDED, BROKEN, ALONE_ON, ALONE_OFF = "mended", "broken", "alone on", "alone off"
ROLES = (MENDED, BROKEN, ALONE_ON, ALONE_OFF)
OFF_WITH_MASK = "alone off, but for the mask"  # so that what is learned is no leak
GUESSING = math.log(10)  # nats a token: one of ten symbols

Key = tuple[str, int, str, str | None]
"""Attention, N, role and defect."""
Runs = Mapping[Key, Sequence[Row]]
"""The runs of an ablation, one a seed."""


def role_of(attention: str, defects: Sequence[str]) -> tuple[str, str | None] | None:
    """What a set of defects is in the ablation of a mechanism, and the one defect that it is
    about; None for a set that is not part of it. All but those that are merely slow are broken."""
    defects = tuple(defects)
    if not defects:
        return MENDED, None
    if len(defects) == 1 and defects[0] in all_defects(attention):
        return ALONE_ON, defects[0]
    for every in (article_defects(attention), loss_defects(attention)):
        off = [one for one in every if one not in defects]
        if set(defects) <= set(every) and len(off) <= 1:
            return (ALONE_OFF, off[0]) if off else (BROKEN, None)
        if set(defects) <= set(every) and len(off) == 2 and "leak" in off:
            return OFF_WITH_MASK, next(one for one in off if one != "leak")
    return None


def ablated(rows: Sequence[Row]) -> dict[Key, list[Row]]:
    """The finished rows of an ablation, of the one device and size of model that has most; of each
    seed the last, one with all defects before one without those that are merely slow."""
    known = [(row, config_of(row)) for row in rows]
    sizes = [_size(row, config) for row, config in known]
    most = Counter(sizes).most_common(1)
    kept = [
        pair
        for pair, size in zip(known, sizes, strict=True)
        if size == most[0][0] and pair[0]["outcome"] in ("ok", "diverged")
    ]
    found: dict[Key, dict[int, Row]] = {}
    for row, config in sorted(kept, key=lambda pair: len(pair[1].defects)):
        attention = config.model.attention
        if role := role_of(attention, config.defects):
            found.setdefault((attention, config.task.seq_len, *role), {})[row["seed"]] = row
    return {key: list(some.values()) for key, some in found.items()}


def _size(row: Row, config) -> str:
    model = config.model
    sizes = model.n_layers, model.n_heads, model.d_model, model.norm
    return repr((sizes, config.n_steps, row["provenance"]["device_name"]))


def lengths_of(runs: Runs, attention: str | None = None) -> list[int]:
    """The N of runs, or of those of one mechanism."""
    return sorted({n for name, n, *_ in runs if attention in (None, name)})


def final_losses(runs: Runs) -> dict[Key, list[float]]:
    """Final losses of each set of defects, nats a token, a seed each; none of a diverged run."""
    found = {}
    for key, some in runs.items():
        losses = [row["summary"].get("final_loss") for row in some if row["outcome"] == "ok"]
        found[key] = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    return {key: losses for key, losses in found.items() if losses}


def solved(row: Row) -> bool:
    """Whether a run ended at 99 % accuracy or more."""
    reached = (row["summary"].get("final_accuracy") or 0) >= SOLVED_ACCURACY
    return row["outcome"] == "ok" and reached


def what_decides(runs: Runs, n: int) -> dict[str, str]:
    """The defects that by themselves keep linear runs from 99 % accuracy; those of which mending
    one alone lets broken runs reach it, whose decoder sees its target; and those that do so where
    the mask is mended as well. How many runs, where these do not agree."""

    def told(role: str, *, reached: bool) -> str:
        found = {d: runs.get(("linear", n, role, d), []) for d in DEFECTS}
        if not any(found.values()):
            return "not measured"
        counts = {d: sum(solved(row) == reached for row in some) for d, some in found.items()}
        names = [
            DEFECTS[d].title + (f" ({count} of {len(found[d])})" if count < len(found[d]) else "")
            for d, count in counts.items()
            if count
        ]
        if role == OFF_WITH_MASK and not names:
            return f"not {', '.join(DEFECTS[d].title for d, some in found.items() if some)}"
        return ", ".join(names) or "none"

    broken = runs.get(("linear", n, BROKEN, None), [])
    return {
        f"mended: one defect keeps it from {SOLVED_ACCURACY:z.0%}": told(ALONE_ON, reached=False),
        f"broken: mending one defect lets it reach {SOLVED_ACCURACY:z.0%}": (
            "broken runs reach it"
            if broken and all(map(solved, broken))
            else told(ALONE_OFF, reached=True)
        ),
        f"broken, but for the mask: mending one more lets it reach {SOLVED_ACCURACY:z.0%}": (
            told(OFF_WITH_MASK, reached=True)
        ),
    }
