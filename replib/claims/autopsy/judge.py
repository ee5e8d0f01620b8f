"""The 2022 replication's conclusions, judged on stored rows: does each stand after mending?

An ablation's words (mended, broken, alone on, alone off) are those of `ablation`.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from replib.claims.autopsy.ablation import MENDED, Key, ablated, solved
from replib.claims.autopsy.article_losses import article_ends
from replib.claims.autopsy.full_size import (
    BATCH,
    END_MARGIN,
    MIN_RUNS,
    SEQ_LEN,
    n_runs,
    printed,
    variants,
    written,
)
from replib.claims.autopsy.step_times import (
    IN_TURNS,
    NO_TRANSFER,
    attribution,
    autopsied,
    crossovers,
    step_crossovers,
    step_times,
)
from replib.claims.common import ARTICLE_CROSSOVER, replication_model, share_criterion
from replib.lab.run import config_of
from replib.lab.runs.training import SOLVED_ACCURACY
from replib.lab.statistics import Crossover, Ratio, ratio
from replib.lab.store import Row
from replib.lab.verdict import (
    MOST,
    Criterion,
    Verdict,
    crossover_place,
    crossovers_span,
    each_device,
    ratio_text,
    spikes_text,
    three_digits,
)
from replib.published import published


@each_device
def convergence(rows: Sequence[Row]) -> Verdict:
    """Does "no stable convergence" stand? It does where most mended linear runs, of all lengths,
    end below 99 % accuracy or diverge (Wilson interval). Smaller models than the article's that
    learn refute it; where they fail nothing is told, as of the paper's claim on page 1."""
    mended = {key: some for key, some in ablated(rows).items() if key[2] == MENDED}
    linear = [row for key, some in mended.items() if key[0] == "linear" for row in some]
    text = f"most mended linear runs end below {SOLVED_ACCURACY:z.0%} accuracy"
    n, n_failed = len(linear), sum(not solved(row) for row in linear)
    failed = share_criterion(text, n_failed, n, (MOST, math.inf))
    if not linear:
        return Verdict("no measurements yet", (failed,))
    size, theirs = config_of(linear[0]).model.d_model, replication_model("linear").d_model
    if failed.met and size < theirs:
        failed = replace(failed, met=None)
    smaller = f", though the model is smaller ({size} wide; the article's is {theirs})"
    told = {True: "it stands", False: "refuted, it does learn", None: "open"}[failed.met]
    so = {True: "It stands", False: "It does learn", None: "Open"}[failed.met]
    return Verdict(
        f"{told}: {n - n_failed} of {n} mended linear runs learn to copy (model size {size}; the "
        f"article's {theirs})",
        (failed,),
        tuple(_told_runs(key, some) for key, some in sorted(mended.items(), key=_at_length)),
        answer=f"{so}: {n - n_failed} of {n} runs without the defects copy the sequence"
        f"{smaller * (size < theirs)}.",
    )


def _at_length(item: tuple[Key, Any]) -> tuple:
    (attention, seq_len, *_), _ = item
    return seq_len, attention


def _told_runs(key: Key, rows: Sequence[Row]) -> str:
    attention, seq_len, role, _ = key
    n_steps = config_of(rows[0]).n_steps
    spikes = sum(row["summary"].get("n_spikes") or 0 for row in rows)
    steps = [row["summary"].get("steps_to_solved") for row in rows if solved(row)]
    speed = f", after {statistics.median(steps):zg} steps (median)" if steps else ""
    return (
        f"N = {seq_len}, {role} {attention}: {sum(map(solved, rows))} of {len(rows)} runs reach "
        f"{SOLVED_ACCURACY:z.0%} within {n_steps} steps{speed}; {spikes_text(spikes)}"
    )


@each_device
def slowdown(rows: Sequence[Row], article: Mapping[str, Any]) -> Verdict:
    """Does "8 to 24 times slower" stand? At each of the article's lengths, mended: linear takes
    longer than softmax, and by its least factor or more (95 % intervals of the ratio of steps)."""
    times, criteria, ratios = step_times(ablated(rows)), [], {}
    least = min(article["ratio_linear_softmax"])
    for n in article["N"]:
        totals = [times.get((name, n, MENDED, None)) for name in ("linear", "softmax")]
        if None in totals:
            continue
        found = ratios[n] = ratio(*totals)
        for limit, text in ((1.0, "linear takes longer"), (least, f"by {least:z.1f}× or more")):
            criteria.append(
                Criterion(f"N = {n}, mended: {text}", _above(found, limit), ratio_text(found))
            )
    if not ratios:
        return Verdict("no measurements yet", (Criterion("a length or more", None, "0"),))
    ends = dict.fromkeys((min(ratios), max(ratios)))
    told = " and ".join(f"{ratio_text(ratios[n])} softmax's time at N = {n}" for n in ends)
    short = " and ".join(f"{three_digits(ratios[n].value)} at N = {n}" for n in ends)
    beside = [
        f"N = {n}, broken: {ratio_text(found.broken)}; the article has {found.article:z.1f}×"
        for n in ratios
        if (found := attribution(times, article, n))
    ]
    return Verdict(
        f"mended, linear takes {told}",
        tuple(criteria),
        (*beside, *[NO_TRANSFER] * bool(beside)),
        answer="A step of linear attention without the defects, as a multiple of one of softmax: "
        f"{short}.",
    )


def _above(found: Ratio, limit: float) -> bool | None:
    return True if found.low > limit else False if found.high < limit else None


@each_device
def article_crossover(rows: Sequence[Row], steps: Sequence[Row] = ()) -> Verdict:
    """Does the crossover at 3149 stand? It does where the 95 % interval of a measured crossover of
    mended steps holds 3149, and not where it does not; a crossover that is extrapolated beyond the
    longest N, or whose interval has no end, decides nothing, ours as little as the article's.

    Args:
        steps: rows of longer N, judged as well: of `autopsy_longer`, and of `step_time`, whose
            mended steps count by the fastest implementation of linear attention against each
            softmax.
    """
    text = f"the crossover of mended steps is at N = {ARTICLE_CROSSOVER}"
    if not rows:
        return Verdict("no measurements yet", (Criterion(text, None, "no steps"),))
    device = rows[0]["provenance"]["device_name"]
    steps = [row for row in steps if row["provenance"]["device_name"] == device]
    found, longer = crossovers(ablated([*rows, *autopsied(steps)])), step_crossovers(steps)
    if MENDED in found:
        longer = {IN_TURNS: found[MENDED]} | longer
    if not longer:
        nothing = Criterion(text, None, "fewer than 2 lengths", few=True)
        return Verdict("two lengths are needed", (nothing,))
    criteria = tuple(_at_article(f"{text}, {name}", one) for name, one in longer.items())
    span, several = crossovers_span(list(longer.values())), len(longer) > 1
    pairs = zip(longer.values(), criteria, strict=True)
    told = [one for one, said in pairs if said.met is not None]
    answer = ""
    if told:
        missed, n_open = any(one.met is False for one in criteria), len(longer) - len(told)
        answer = f"Without the defects, linear attention is faster from {crossovers_span(told)} on"
        answer += f", not from {ARTICLE_CROSSOVER}" * missed
        if n_open:
            answer += f"; {n_open} of {len(longer)} comparisons cannot tell"
    return Verdict(
        f"mended steps cross: {span}{', by what they are timed against and beside' * several}",
        criteria,
        tuple(f"{role} steps cross at {crossover_place(one)}" for role, one in found.items()),
        answer=answer and f"{answer}.",
    )


def _at_article(text: str, found: Crossover) -> Criterion:
    inside = found.low <= ARTICLE_CROSSOVER <= found.high
    beyond = found.extrapolated and found.length >= found.longest or math.isinf(found.high)
    return Criterion(text, None if beyond else inside, crossover_place(found))


@each_device
def softmax_returns(rows: Sequence[Row], article: Mapping[str, Any]) -> Verdict:
    """Does the article's softmax that does not learn come back? It does where every run as written
    ends within END_MARGIN nats a token of the article's end and none learns to copy, of MIN_RUNS
    or more."""
    end, found = article_ends(article)["softmax", SEQ_LEN], written(rows, "softmax")
    near = f"as written, softmax ends at {end.printed:zg} ± {BATCH * END_MARGIN:zg}, as printed"
    if found is None:
        return Verdict("no measurements yet", (Criterion(near, None, "no runs"),))
    inside = [abs(loss - end.nats) <= END_MARGIN for loss in found.ends]
    n = len(found.rows)
    criteria = (
        Criterion(
            f"at least {MIN_RUNS} runs as written", n >= MIN_RUNS or None, f"{n}", few=n < MIN_RUNS
        ),
        Criterion(near, _all_or_none(inside), f"{sum(inside)} of {n} runs: {printed(found.ends)}"),
        Criterion(
            f"as written, no softmax run reaches {SOLVED_ACCURACY:z.0%} accuracy",
            _all_or_none([True] * (n - found.n_solved) + [False] * found.n_solved),
            f"{n - found.n_solved} of {n}",
        ),
    )
    evidence = (
        f"{one.attention}, {one.name}: {printed(one.ends)}, accuracy {one.accuracy:z.0%} "
        f"({n_runs(len(one.rows))})"
        for one in variants(rows)
        if one.rows != found.rows
    )
    at = f"{printed(found.ends)}, {n_runs(n)}, and at {found.accuracy:z.0%} accuracy"
    return Verdict(
        f"as written it ends at {at}; the article's ends at {end.printed:zg}",
        criteria,
        tuple(evidence),
        answer="With its code's defects, at its size, softmax ends at a loss of "
        f"{BATCH * statistics.median(found.ends):z.1f} ({n_runs(n)}); the article's ended at "
        f"{end.printed:zg}.",
    )


def _all_or_none(met: Sequence[bool]) -> bool | None:
    return True if all(met) else None if any(met) else False


VERDICTS = {
    "slowdown": lambda rows: slowdown(rows["autopsy_time"], published()["dm2022"]),
    "convergence": lambda rows: convergence(rows["autopsy"]),
    "crossover": lambda rows: article_crossover(
        rows["autopsy_time"], [*rows["step_time"], *rows["autopsy_longer"]]
    ),
    "softmax_returns": lambda rows: softmax_returns(rows["autopsy_full"], published()["dm2022"]),
}
