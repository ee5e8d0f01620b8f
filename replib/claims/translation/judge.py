"""Translators with Linformer, linear and softmax attention, judged on stored rows."""

import math
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

from replib.claims.common import name_of, nothing, seeds_lack
from replib.lab.run import config_of, variant_of
from replib.lab.statistics import difference_interval
from replib.lab.store import Row
from replib.lab.verdict import Criterion, Verdict, each_device, within
from replib.tasks.translation import ParallelText

MIN_SEEDS = 3
# Half of what separates neighbours in the usual tables of translation; written before any row.
BLEU_MARGIN = 1.0
EXACT_MARGIN = 0.02
MIN_SENTENCES = 30  # of a group of sources: two long ones tell nothing
LEAST_BLEU = 33.0  # on Multi30k; public small Transformers reach 35 to 37 from German to English


def by_variant(rows: Sequence[Row], figure: str) -> dict[tuple, list[float]]:
    """A figure of each seed, by mechanism."""
    found: dict[tuple, list[float]] = {}
    for row in rows:
        if row["outcome"] == "ok" and row["summary"].get(figure) is not None:
            found.setdefault(variant_of(row), []).append(row["summary"][figure])
    return dict(sorted(found.items(), key=lambda one: (not is_baseline(one[0]), _order(one[0]))))


def is_baseline(variant: tuple) -> bool:
    """Whether a mechanism is the one that others are compared with, by whatever kernel."""
    return variant[0] == "softmax"


def of_baseline(found: dict[tuple, Any]) -> Any:
    """What was found of softmax; None where there is nothing."""
    return next((value for variant, value in found.items() if is_baseline(variant)), None)


def _order(variant: tuple) -> tuple:
    name, label = variant
    return name, int("".join(filter(str.isdigit, label or "")) or 0)


def compared(
    found: dict[tuple, list[float]], margin: float, unit: str, show: Callable[[float], str]
) -> list[Criterion]:
    """Each mechanism is at most a margin below softmax."""
    criteria = []
    base = of_baseline(found) or []
    for variant, values in found.items():
        if is_baseline(variant):
            continue
        text = f"{name_of(variant)} is at most {show(margin)}{unit} below softmax"
        if min(len(values), len(base)) < MIN_SEEDS:
            criteria.append(seeds_lack(text, values, base, MIN_SEEDS))
            continue
        low, high = difference_interval(base, values)
        figure = f"{show(mean(base) - mean(values))} ({show(low)} to {show(high)}) below"
        criteria.append(Criterion(text, within(low, high, -math.inf, margin), figure))
    return criteria


def _lacking(found: dict[tuple, list[float]]) -> list[Criterion]:
    """What is open where no Linformer has been trained, of which the claim is."""
    if any(variant[0] == "linformer" for variant in found):
        return []
    return [Criterion("some runs of a Linformer", None, "0", few=True)]


def _latest_setting(rows: Sequence[Row]) -> list[Row]:
    """Of rows those of one task and number of steps: the most trained."""
    if not rows:
        return []
    steps = max(config_of(row).n_steps for row in rows)
    task = next(config_of(row).task for row in rows if config_of(row).n_steps == steps)
    return [row for row in rows if (config_of(row).n_steps, config_of(row).task) == (steps, task)]


@each_device
def translation(rows: Sequence[Row]) -> Verdict:
    """A Linformer translates as well as a Transformer: BLEU of greedy translations is at most
    BLEU_MARGIN below that of softmax attention after as many steps, and that is no poor baseline.
    """
    rows = _latest_setting(rows)
    found = by_variant(rows, "bleu")
    if not found:
        return nothing()
    of_linformer = {v: x for v, x in found.items() if v[0] != "linear"}
    criteria = compared(of_linformer, BLEU_MARGIN, " BLEU", "{:z.1f}".format) + _lacking(found)
    base = of_baseline(found) or []
    task = config_of(rows[0]).task
    if isinstance(task, ParallelText) and task.corpus == "multi30k" and base:
        text = f"softmax reaches BLEU {LEAST_BLEU:zg}, as small Transformers do"
        criteria.append(Criterion(text, mean(base) >= LEAST_BLEU, f"{mean(base):z.1f}"))
    told = ", ".join(f"{name_of(v)} {mean(x):z.1f}" for v, x in found.items())
    others = {v: x for v, x in found.items() if v[0] != "linformer"}
    beside = compared(others, BLEU_MARGIN, " BLEU", "{:z.1f}".format)
    evidence = [f"beside it, {one.text}: {one.figure}" for one in beside]
    for figure, name in (
        ("bleu_beam", "BLEU by beam search"),
        ("chrf", "chrF2"),
        ("perplexity", "perplexity of a token"),
        ("perplexity_per_char", "perplexity of a letter"),
    ):
        values = by_variant(rows, figure)
        line = ", ".join(f"{name_of(v)} {mean(x):z.4g}" for v, x in values.items())
        evidence.append(f"{name}: {line}")
    evidence += with_length(rows) + [rows[0]["summary"].get("bleu_signature") or ""]
    return Verdict(
        f"BLEU, means of the seeds: {told}",
        tuple(criteria),
        tuple(filter(None, evidence)),
        answer=f"BLEU on {getattr(task, 'corpus', 'the test')}: {told}.",
    )


def by_length(rows: Sequence[Row], figure: str) -> dict[tuple, dict[int | None, list[float]]]:
    """A figure of each seed, by mechanism and by the most words of a group of sources, of groups
    with MIN_SENTENCES and more."""
    found: dict[tuple, dict[int | None, list[float]]] = {}
    for row in rows:
        for group in row["summary"].get("by_length") or ():
            if group.get(figure) is not None and group["n"] >= MIN_SENTENCES:
                of_variant = found.setdefault(variant_of(row), {})
                of_variant.setdefault(group["words"], []).append(group[figure])
    return found


def with_length(rows: Sequence[Row]) -> list[str]:
    """How much more perplexity than softmax a mechanism has on the shortest sources and on the
    longest."""
    found, lines = by_length(rows, "perplexity"), []
    base = of_baseline(found) or {}
    for variant, groups in found.items():
        shared = [words for words in groups if words in base]
        if is_baseline(variant) or len(shared) < 2:
            continue
        more = [math.log(mean(groups[w]) / mean(base[w])) for w in (shared[0], shared[-1])]
        longest = f"more than {shared[-2]}" if shared[-1] is None else f"up to {shared[-1]}"
        lines.append(
            f"{name_of(variant)} over softmax, nats a token: {more[0]:+z.3f} at up to "
            f"{shared[0]} words, {more[1]:+z.3f} at {longest}"
        )
    return lines


@each_device
def number_words(rows: Sequence[Row]) -> Verdict:
    """Of numbers and dates as many are right to the letter as with softmax attention."""
    rows = _latest_setting(rows)
    found = by_variant(rows, "exact")
    if not found:
        return nothing()
    told = ", ".join(f"{name_of(v)} {mean(x):z.2%}" for v, x in found.items())
    return Verdict(
        f"right to the letter, means of the seeds: {told}",
        tuple(compared(found, EXACT_MARGIN, "", "{:z.2%}".format) + _lacking(found)),
        tuple(with_length(rows)),
        answer=f"Right to the letter: {told}.",
    )


VERDICTS = {
    "translation": lambda rows: translation(rows["translation"]),
    "number_words": lambda rows: number_words(rows["number_words"]),
}
