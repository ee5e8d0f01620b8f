"""Rows of the autopsy as tidy polars frames, for `charts.autopsy`.

Every function returns a frame with the same columns for no rows as for many. `line` names a defect,
or what is compared; losses are nats a token, factors are of the time of a step.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from replib.claims.autopsy import full_size
from replib.claims.autopsy.ablation import (
    ALONE_OFF,
    ALONE_ON,
    BROKEN,
    EARLY,
    GUESSING,
    MENDED,
    ROLES,
    ablated,
    early_losses,
    final_losses,
    lengths_of,
)
from replib.claims.autopsy.article_losses import (
    FINAL,
    article_curves,
    article_losses,
    bag_entropy,
    unigram_entropy,
)
from replib.claims.autopsy.defects import DEFECTS, article_defects
from replib.claims.autopsy.step_times import Attribution, Part, time_effects
from replib.lab.run import config_of
from replib.lab.statistics import Ratio
from replib.lab.store import Row
from replib.pages import frames
from replib.tasks import SequenceCopy

EFFECT_COLUMNS = dict(
    attention=str, seq_len=int, line=str, role=str, value=float, low=float, high=float, device=str
)
LOSS_COLUMNS = dict(
    attention=str,
    seq_len=int,
    line=str,
    role=str,
    seed=int,
    value=float,
    accuracy=float,
    device=str,
)
STAGE_COLUMNS = dict(
    line=str, kind=str, start=float, end=float, factor=float, low=float, high=float
)
SCALE_COLUMNS = dict(attention=str, seq_len=int, what=str, printed=float, nats=float)
CURVE_COLUMNS = dict(
    attention=str, seq_len=int, kind=str, line=str, step=int, nats=float, seed=int, device=str
)
LEVEL_COLUMNS = dict(seq_len=int, level=str, nats=float)
MENDED_LINE, BROKEN_LINE = "none (mended)", "all (broken)"
ARTICLE_LINE = "2022 article"
EXPECTED, HERE = "entropy of single tokens", "broken here, final"
BAG, PLATEAU_HERE = "symbols known, order not", f"broken here, steps {EARLY[0]}–{EARLY[1]}"
READ, BETWEEN, OURS = "article, as read", "not known", "here, broken"
WRITTEN, USUAL_SCALE, ALL_MENDED = "here, as written", "here, embedding × √E", "here, mended"
FULL_SIZE_KINDS = {(): WRITTEN, ("embedding_scale",): USUAL_SCALE, None: ALL_MENDED}
STAGE, STEP, LEFT = "stage", "step", "unexplained"


def effects(rows: Sequence[Row], attentions: Iterable[str] = ("linear", "softmax")) -> pl.DataFrame:
    """One line a defect, length, mechanism and way to attribute: EFFECT_COLUMNS."""
    found, device = [], _device(rows)
    for attention in attentions:
        for seq_len in lengths_of(rows):
            for one in time_effects(rows, attention, seq_len):
                for role, factor in ((ALONE_ON, one.alone_on), (ALONE_OFF, one.alone_off)):
                    if factor is not None:
                        found.append(
                            {"attention": attention, "seq_len": seq_len, "role": role}
                            | {"line": DEFECTS[one.defect].title, "device": device}
                            | {"value": factor.value, "low": factor.low, "high": factor.high}
                        )
    return pl.DataFrame(found, schema=EFFECT_COLUMNS)


def losses(rows: Sequence[Row], article: Mapping[str, Any]) -> pl.DataFrame:
    """One line a run, and the article's final losses at the lengths of the runs: LOSS_COLUMNS."""
    found, device = [], _device(rows)
    for (attention, seq_len, role, defect), some in ablated(rows).items():
        if role not in ROLES:
            continue
        line = {MENDED: MENDED_LINE, BROKEN: BROKEN_LINE}.get(role) or DEFECTS[defect].title
        for row in some:
            if row["summary"].get("final_loss") is not None:
                found.append(
                    {"attention": attention, "seq_len": seq_len, "line": line, "role": role}
                    | {"seed": row["seed"], "value": row["summary"]["final_loss"]}
                    | {"accuracy": row["summary"]["final_accuracy"], "device": device}
                )
    lengths = lengths_of(rows)
    for one in article_losses(article) if found else ():
        if one.what == FINAL and one.seq_len in lengths:
            found.append(
                {"attention": one.attention, "seq_len": one.seq_len, "line": ARTICLE_LINE}
                | {"role": ARTICLE_LINE, "value": one.nats}
            )
    return pl.DataFrame(found, schema=LOSS_COLUMNS)


def loss_lines(attention: str) -> list[str]:
    """The lines of a chart of losses from top to bottom."""
    titles = [DEFECTS[name].title for name in article_defects(attention)]
    return [ARTICLE_LINE, BROKEN_LINE, *titles, MENDED_LINE]


def stages(found: Attribution | None) -> pl.DataFrame:
    """The way from the mended ratio of linear to softmax to the article's, a factor a line, each
    from where the one before it ended: STAGE_COLUMNS."""
    if found is None:
        return pl.DataFrame(schema=STAGE_COLUMNS)
    inverse = found.softmax_whole
    others = Ratio(1 / inverse.value, 1 / inverse.high, 1 / inverse.low)
    steps = [*found.parts, Part("softmax's own defects", others)]
    lines = [_stage("here, mended", found.mended)]
    at = found.mended.value
    for part in steps:
        lines.append(_step(part.name, STEP, at, part.factor))
        at *= part.factor.value
    lines.append(_stage("here, broken", found.broken))
    lines.append(_step("unexplained", LEFT, found.broken.value, found.unexplained))
    article = Ratio(found.article, found.article, found.article)
    return pl.DataFrame([*lines, _stage(ARTICLE_LINE, article)], schema=STAGE_COLUMNS)


def _stage(line: str, at: Ratio) -> dict[str, Any]:
    return {"line": line, "kind": STAGE, "start": 1.0, "end": at.value, "factor": at.value} | {
        "low": at.low,
        "high": at.high,
    }


def _step(line: str, kind: str, at: float, factor: Ratio) -> dict[str, Any]:
    return {"line": line, "kind": kind, "start": at, "end": at * factor.value} | {
        "factor": factor.value,
        "low": factor.low,
        "high": factor.high,
    }


def scale(article: Mapping[str, Any], rows: Sequence[Row] = ()) -> pl.DataFrame:
    """The article's losses as printed and in nats a token, the entropy of single tokens that its
    plateaus should have and of symbols without their order; the first plateaus of our broken runs
    and the medians of where they end: SCALE_COLUMNS."""
    read = article_losses(article)
    batches = {one.attention: one.batch for one in read}
    found = [
        {"attention": one.attention, "seq_len": one.seq_len, "what": one.what}
        | {"printed": one.printed, "nats": one.nats}
        for one in read
    ]

    def ours(attention: str, seq_len: int, what: str, nats: float) -> dict[str, Any]:
        printed = nats * batches[attention]
        return {"attention": attention, "seq_len": seq_len, "what": what, "nats": nats} | {
            "printed": printed
        }

    for attention in batches:
        for n in article["N"]:
            for name, entropy in LEVELS.items():
                found.append(ours(attention, n, name, entropy(SequenceCopy(seq_len=n))))
    for (attention, n), here in early_losses(rows).items():
        found.append(ours(attention, n, PLATEAU_HERE, here))
    for (attention, n, role, _), here in final_losses(rows).items():
        if role == BROKEN:
            found.append(ours(attention, n, HERE, float(pl.Series(here).median())))
    return pl.DataFrame(found, schema=SCALE_COLUMNS)


LEVELS = {EXPECTED: unigram_entropy, BAG: bag_entropy}


def levels(article: Mapping[str, Any]) -> pl.DataFrame:
    """The losses on which a run may stand before it copies: LEVEL_COLUMNS."""
    found = [
        {"seq_len": n, "level": name, "nats": entropy(SequenceCopy(seq_len=n))}
        for n in article["N"]
        for name, entropy in LEVELS.items()
    ]
    return pl.DataFrame(found, schema=LEVEL_COLUMNS)


def loss_curves(article: Mapping[str, Any], rows: Sequence[Row] = ()) -> pl.DataFrame:
    """The article's curves as far as they were read, in nats a token, and those of our broken runs
    at its lengths, a `line` each: CURVE_COLUMNS."""
    found = []
    for i, piece in enumerate(article_curves(article)):
        named = {"attention": piece.attention, "seq_len": piece.seq_len, "line": f"article {i}"}
        named["kind"] = READ if piece.read else BETWEEN
        found += [named | {"step": step, "nats": nats} for step, nats in piece.points]
    for (attention, n, role, _), some in ablated(rows).items():
        for row in some if role == BROKEN and n in article["N"] else ():
            named = {"attention": attention, "seq_len": n, "kind": OURS, "line": row["run_id"]}
            named |= {"seed": row["seed"], "device": _device(rows)}
            curve = zip(row["curve"]["step"], row["curve"]["loss"], strict=True)
            found += [named | {"step": step, "nats": loss} for step, loss in curve]
    return pl.DataFrame(found, schema=CURVE_COLUMNS)


def full_size_curves(article: Mapping[str, Any], rows: Sequence[Row]) -> pl.DataFrame:
    """The article's curves at N = 8, and those of runs of its size: as written, with one thing
    mended that changes where they end, and mended: CURVE_COLUMNS."""
    found = loss_curves(article).filter(pl.col("seq_len") == full_size.SEQ_LEN).to_dicts()
    for one in full_size.variants(rows):
        kind = FULL_SIZE_KINDS.get(one.mended if one.name != full_size.MENDED else None)
        for row in one.rows if kind and one.batch == full_size.BATCH else ():
            named = {"attention": one.attention, "seq_len": full_size.SEQ_LEN}
            named |= {"kind": kind, "line": row["run_id"], "seed": row["seed"]}
            named["device"] = row["provenance"]["device_name"]
            curve = zip(row["curve"]["step"], row["curve"]["loss"], strict=True)
            found += [named | {"step": step, "nats": loss} for step, loss in curve]
    return pl.DataFrame(found, schema=CURVE_COLUMNS)


def curves(rows: Sequence[Row]) -> pl.DataFrame:
    """`frames.training_curves` with `switches`: "mended" or "with switches"."""
    parts = [
        frames.training_curves([row]).with_columns(
            switches=pl.lit("with switches" if config_of(row).defects else MENDED)
        )
        for row in rows
    ]
    empty = frames.training_curves([]).with_columns(switches=pl.lit(None, pl.String))
    return pl.concat([empty, *parts])


def _device(rows: Sequence[Row]) -> str:
    """The device of the rows that `ablated` keeps."""
    kept = (row for some in ablated(rows).values() for row in some)
    names = {row["provenance"]["device_name"] or "unknown device" for row in kept}
    return "; ".join(sorted(names))


__all__ = [
    "GUESSING",
    "curves",
    "effects",
    "full_size_curves",
    "levels",
    "loss_curves",
    "loss_lines",
    "losses",
    "scale",
    "stages",
]
