"""The 2022 replication's conclusions, judged on stored rows: does each stand after mending?

An ablation's words (mended, broken, alone on, alone off) are those of `ablation`.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from replib.claims.autopsy.ablation import (
    ALONE_OFF,
    ALONE_ON,
    BROKEN,
    MENDED,
    OFF_WITH_MASK,
    Key,
    ablated,
    article_ends,
)
from replib.claims.autopsy.defects import DEFECTS
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
from replib.claims.common import ARTICLE_CROSSOVER, replication_model
from replib.lab.run import config_of
from replib.lab.runs.training import SOLVED_ACCURACY
from replib.lab.statistics import Crossover, Ratio, ratio, wilson_interval
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
)
from replib.published import published


@each_device
def convergence(rows: Sequence[Row]) -> Verdict:
    """Does "no stable convergence" stand? It does where most mended linear runs, of all lengths,
    end below 99 % accuracy or diverge (Wilson interval)."""
    runs = ablated(rows)
    mended = {key: some for key, some in runs.items() if key[2] == MENDED}
    linear = [row for key, some in mended.items() if key[0] == "linear" for row in some]
    text = f"most mended linear runs end below {SOLVED_ACCURACY:z.0%} accuracy"
    if not linear:
        return Verdict("no measurements yet", (Criterion(text, None, "no runs"),))
    failed = [row for row in linear if not _solved(row)]
    low, high = wilson_interval(len(failed), len(linear))
    met = True if low > MOST else False if high < MOST else None
    figure = f"{len(failed)} of {len(linear)} ({low:z.0%} to {high:z.0%})"
    evidence = [_told_runs(key, some) for key, some in sorted(mended.items(), key=_at_length)]
    decisive = [
        f"N = {n}, {name}: {which}"
        for n in sorted({key[1] for key in runs if key[0] == "linear"})
        for name, which in what_decides(runs, n).items()
    ]
    model = config_of(linear[0]).model
    learn = f"{len(linear) - len(failed)} of {len(linear)} mended linear runs learn to copy"
    told = {True: "it stands", False: "refuted, it does learn", None: "open"}[met]
    return Verdict(
        f"{told}: {learn} (model size {model.d_model}; the article's "
        f"{replication_model('linear').d_model})",
        (Criterion(text, met, figure),),
        (*evidence, *decisive),
    )


def _at_length(item: tuple[Key, Any]) -> tuple:
    (attention, seq_len, *_), _ = item
    return seq_len, attention


def _solved(row: Row) -> bool:
    reached = (row["summary"].get("final_accuracy") or 0) >= SOLVED_ACCURACY
    return row["outcome"] == "ok" and reached


def _told_runs(key: Key, rows: Sequence[Row]) -> str:
    attention, seq_len, role, _ = key
    n_steps = config_of(rows[0]).n_steps
    spikes = sum(row["summary"].get("n_spikes") or 0 for row in rows)
    steps = [row["summary"].get("steps_to_solved") for row in rows if _solved(row)]
    speed = f", after {statistics.median(steps):zg} steps (median)" if steps else ""
    return (
        f"N = {seq_len}, {role} {attention}: {sum(map(_solved, rows))} of {len(rows)} runs reach "
        f"{SOLVED_ACCURACY:z.0%} within {n_steps} steps{speed}; {spikes_text(spikes)}"
    )


def what_decides(runs: Mapping[Key, list[Row]], n: int) -> dict[str, str]:
    """The defects that by themselves keep linear runs from 99 % accuracy; those of which mending
    one alone lets broken runs reach it, whose decoder sees its target; and those that do so where
    the mask is mended as well. How many runs, where these do not agree."""

    def told(role: str, *, solved: bool) -> str:
        found = {d: runs.get(("linear", n, role, d), []) for d in DEFECTS}
        if not any(found.values()):
            return "not measured"
        counts = {d: sum(_solved(row) == solved for row in some) for d, some in found.items()}
        names = [
            DEFECTS[d].title + (f" ({count} of {len(found[d])})" if count < len(found[d]) else "")
            for d, count in counts.items()
            if count
        ]
        if role == OFF_WITH_MASK and not names:
            return f"not {', '.join(DEFECTS[d].title for d, some in found.items() if some)}"
        return ", ".join(names) or "none"

    broken = runs.get(("linear", n, BROKEN, None), [])
    reached = broken and all(map(_solved, broken))
    return {
        f"mended: one defect keeps it from {SOLVED_ACCURACY:z.0%}": told(ALONE_ON, solved=False),
        f"broken: mending one defect lets it reach {SOLVED_ACCURACY:z.0%}": (
            "broken runs reach it" if reached else told(ALONE_OFF, solved=True)
        ),
        f"broken, but for the mask: mending one more lets it reach {SOLVED_ACCURACY:z.0%}": (
            told(OFF_WITH_MASK, solved=True)
        ),
    }


@each_device
def slowdown(rows: Sequence[Row], article: Mapping[str, Any]) -> Verdict:
    """Does "8 to 24 times slower" stand? At each of the article's lengths, mended: linear takes
    longer than softmax, and by its least factor or more (95 % intervals of the ratio of steps)."""
    times, criteria, ratios = step_times(rows), [], {}
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
    headline = f"mended, linear takes {told}"
    beside = [
        f"N = {n}, broken: {ratio_text(found.broken)}; the article has {found.article:z.1f}×"
        for n in ratios
        if (found := attribution(rows, article, n))
    ]
    beside += [NO_TRANSFER.replace("**", "")] * bool(beside)
    return Verdict(headline, tuple(criteria), tuple(beside))


def _above(found: Ratio, limit: float) -> bool | None:
    return True if found.low > limit else False if found.high < limit else None


@each_device
def article_crossover(rows: Sequence[Row], steps: Sequence[Row] = ()) -> Verdict:
    """Does the crossover at 3149 stand? It does where the 95 % interval of a measured crossover of
    mended steps holds 3149, and not where it does not; a crossover that is extrapolated beyond the
    longest N decides nothing, ours as little as the article's.

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
    found, longer = crossovers([*rows, *autopsied(steps)]), step_crossovers(steps)
    if MENDED in found:
        longer = {IN_TURNS: found[MENDED]} | longer
    criteria = [_at_article(f"{text}, {name}", one) for name, one in longer.items()]
    headline = "two lengths are needed"
    if longer:
        headline = f"mended steps cross: {crossovers_span(list(longer.values()))}"
    if len(longer) > 1:
        headline += ", by what they are timed against and beside"
    return Verdict(
        headline,
        tuple(criteria) or (Criterion(text, None, "fewer than 2 lengths"),),
        tuple(f"{role} steps cross at {crossover_place(one)}" for role, one in found.items()),
    )


def _at_article(text: str, found: Crossover) -> Criterion:
    inside = found.low <= ARTICLE_CROSSOVER <= found.high
    beyond = found.extrapolated and found.length >= found.longest
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
        Criterion(f"at least {MIN_RUNS} runs as written", n >= MIN_RUNS or None, f"{n}"),
        Criterion(near, _all_or_none(inside), f"{sum(inside)} of {n} runs: {printed(found.ends)}"),
        Criterion(
            f"as written, no softmax run reaches {SOLVED_ACCURACY:z.0%} accuracy",
            _all_or_none([True] * (n - found.n_solved) + [False] * found.n_solved),
            f"{n - found.n_solved} of {n}",
        ),
    )
    others = [one for one in variants(rows) if one.rows != found.rows]
    evidence = [
        f"{one.attention}, {one.name}: {printed(one.ends)}, accuracy {one.accuracy:z.0%} "
        f"({n_runs(len(one.rows))})"
        for one in others
    ]
    return Verdict(
        f"as written it ends at {printed(found.ends)}, {n_runs(n)}, and at "
        f"{found.accuracy:z.0%} accuracy; the article's ends at {end.printed:zg}",
        criteria,
        tuple(evidence),
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
