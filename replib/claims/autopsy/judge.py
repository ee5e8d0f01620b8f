"""The autopsy of the 2022 replication, judged on stored rows: what each defect did to the loss, and
whether "no stable convergence" stands after mending; `claims_autopsy_time` has the steps.

Rows are those of the experiments `autopsy` (losses) and `autopsy_time` (steps). A run is *mended*
(no defect) or *broken* (all that the article's runs of its mechanism had); a defect is *alone on*
in an otherwise mended run, or *alone off* in an otherwise broken one.
"""

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from replib.claims.autopsy.article_losses import (
    FINAL,
    PLATEAU,
    Read,
    article_batches,
    article_jumps,
    article_losses,
    bag_entropy,
    unigram_entropy,
)
from replib.claims.autopsy.defects import DEFECTS, all_defects, article_defects, loss_defects
from replib.claims.experiments import BOTH, replication_model
from replib.claims.judging import article_convergence, each_device
from replib.lab.runs.training import SOLVED_ACCURACY
from replib.lab.statistics import difference_interval, wilson_interval
from replib.lab.store import Row
from replib.lab.text import LEFT, RIGHT, markdown_table
from replib.lab.verdict import MOST, Criterion, Verdict, spikes_text
from replib.tasks import SequenceCopy

MENDED, BROKEN, ALONE_ON, ALONE_OFF = "mended", "broken", "alone on", "alone off"
ROLES = (MENDED, BROKEN, ALONE_ON, ALONE_OFF)
OFF_WITH_MASK = "alone off, but for the mask"  # so that what is learned is no leak
GUESSING = math.log(10)  # nats a token: one of ten symbols
NEAR_ZERO = 0.05  # nats a token

CONCLUSIONS = {
    "convergence": "“A stable convergence does not occur” (result 1): linear attention does not "
    "learn the task.",
    "slowdown": "Linear attention takes 8 to 24 times as long as softmax at N = 8 to 64 (computed "
    "from Table 1).",
    "crossover": "“It is only worthwhile to use Linear Attention from a sequence length of 3149” "
    "(result 3).",
}
STANDS = (
    "Result 2, that the time of linear attention grows linearly with N, stands: it is not among "
    "the conclusions judged above, and page 2 measures it."
)


def article_said(article: Mapping[str, Any]) -> dict[str, str]:
    """What the article concludes, with its figures."""
    ratios, lengths = article["ratio_linear_softmax"], article["N"]
    told = ", ".join(f"{ratio:z.1f}× at N = {n}" for ratio, n in zip(ratios, lengths, strict=True))
    crossing = article["fit"]["ceil"]
    return {
        "convergence": article_convergence(article),
        "slowdown": f"{article['steps']} steps of linear attention take {told} of softmax's time.",
        "crossover": f"A fit of four points up to N = {lengths[-1]} puts the crossover at N = "
        f"{crossing}, {crossing / lengths[-1]:z.0f} times beyond them.",
    }


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


Key = tuple[str, int, str, str | None]
"""Attention, N, role and defect."""


def ablated(rows: Sequence[Row]) -> dict[Key, list[Row]]:
    """The finished rows of an ablation, of the one device and size of model that has most; of each
    seed the last, one with all defects before one without those that are merely slow."""
    sizes = Counter(map(_size, rows))
    found: dict[Key, dict[int, Row]] = {}
    for row in sorted(rows, key=lambda row: len(row["config"]["defects"])):
        model = row["config"]["model"]
        role = role_of(model["attention"], row["config"]["defects"])
        kept = row["outcome"] in ("ok", "diverged") and _size(row) == sizes.most_common(1)[0][0]
        if role is not None and kept:
            key = (model["attention"], seq_len_of(row), *role)
            found.setdefault(key, {})[row["seed"]] = row
    return {key: list(some.values()) for key, some in found.items()}


def _size(row: Row) -> str:
    config = row["config"]
    model = {name: config["model"][name] for name in ("n_layers", "n_heads", "d_model", "norm")}
    return json.dumps([model, config["n_steps"], row["provenance"]["device_name"]])


def recorded_text(rows: Sequence[Row]) -> str:
    """Which sets of defects have losses, by how many seeds each, and of what model."""
    runs = ablated(rows)
    if not runs:
        return "no run is recorded yet"
    some = next(iter(runs.values()))[0]["config"]
    model, told = some["model"], []
    for role in ROLES:
        seeds = [len(found) for key, found in runs.items() if key[2] == role]
        often = _from_to(seeds) if seeds else "none yet"
        told.append(f"{role}: {often}{f' of each of {len(seeds)} sets' if seeds else ''}")
    every = [
        row
        for found in runs.values()
        for row in found
        if tuple(row["config"]["defects"]) == article_defects("linear")
    ]
    slow = ", ".join(one.title for one in DEFECTS.values() if one.slow)
    return (
        f"a {model['norm']}-norm model of {model['n_layers']} + {model['n_layers']} layers and "
        f"{model['n_heads']} heads of {model['d_model'] // model['n_heads']} that trains for "
        f"{some['n_steps']} steps. Seeds (a set is of one mechanism and N): {'; '.join(told)}. "
        f"{len(every)} broken linear runs have all defects; the others are without those that are "
        f"merely slow ({slow}), which change losses by rounding alone"
    )


def _from_to(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


def seq_len_of(row: Row) -> int:
    """The N of a row."""
    return row["config"]["task"]["seq_len"]


def lengths_of(rows: Sequence[Row]) -> list[int]:
    """The N of an ablation's rows."""
    return sorted({seq_len_of(row) for row in rows})


def by_length(
    name: str, lengths: Iterable[int], lines: Iterable[Sequence[str]], align: str = RIGHT
) -> str:
    """A Markdown table with a column for each N."""
    return markdown_table([name, *(f"N = {n}" for n in lengths)], lines, align)


# --- final losses ---------------------------------------------------------------------------------


def final_losses(rows: Sequence[Row]) -> dict[Key, list[float]]:
    """Final losses of each set of defects, nats a token, a seed each; none of a diverged run."""
    found = {}
    for key, some in ablated(rows).items():
        losses = [row["summary"].get("final_loss") for row in some if row["outcome"] == "ok"]
        found[key] = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    return {key: losses for key, losses in found.items() if losses}


@dataclass(frozen=True)
class Difference:
    """A difference of means with its 95 % interval (Welch), which has no ends where a side has a
    single run."""

    value: float
    low: float
    high: float


def difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    value = statistics.fmean(a) - statistics.fmean(b)
    if min(len(a), len(b)) < 2:
        return Difference(value, -math.inf, math.inf)
    return Difference(value, *difference_interval(a, b))


def scale_text(article: Mapping[str, Any], rows: Sequence[Row] = ()) -> str:
    """What undoing the loss scale shows, and whether our broken runs have the same plateaus, as
    Markdown."""
    batches, lengths = article_batches(article), article["N"]
    read = {(x.attention, x.seq_len): x for x in article_losses(article) if x.what == PLATEAU}
    early = early_losses(rows)
    lines = [["expected", *(f"{_entropy(n):z.2f}" for n in lengths)]]
    for attention in BOTH:
        found = [read.get((attention, n)) for n in lengths]
        cells = [f"{x.printed:zg} / {x.batch} = {x.text}" if x else "not read" for x in found]
        lines.append([f"2022 article, {attention}", *cells])
    for attention in BOTH:
        known = [early.get((attention, n)) for n in lengths]
        cells = ["–" if loss is None else f"{loss:z.2f}" for loss in known]
        lines.append([f"here, broken, {attention}", *cells])
    return (
        "The article's losses are sums over the batch. Before anything is learned a loss stands at "
        "the entropy of single tokens, so that its plateau tells the batch: "
        f"{batches['softmax']} for softmax and {batches['linear']} for linear attention, which "
        "makes linear curves four times as high for nothing. In nats a token both plateaus "
        f"agree.\n\n{by_length('first plateau', lengths, lines)}\n\n{_plateaus_here(rows)}"
    )


EARLY = (20, 100)  # steps: the first evaluation, and before most runs leave the first plateau
PLATEAU_MARGIN = 0.1  # nats a token by which two plateaus may differ and be the same


def early_losses(rows: Sequence[Row]) -> dict[tuple[str, int], float]:
    """The mean loss of the broken runs of each mechanism and N over the steps EARLY, of those whose
    curve has them."""
    found = {}
    for (attention, n, role, _), some in ablated(rows).items():
        curves = (zip(row["curve"]["step"], row["curve"]["loss"], strict=True) for row in some)
        early = [loss for curve in curves for step, loss in curve if EARLY[0] <= step <= EARLY[1]]
        losses = [loss for loss in early if loss is not None]  # None of a run that diverged
        if role == BROKEN and losses:
            found[attention, n] = statistics.fmean(losses)
    return found


def _plateaus_here(rows: Sequence[Row]) -> str:
    """Whether broken runs of both mechanisms stand on the same plateau, in nats a token."""
    early = early_losses(rows)
    lengths = [n for n in lengths_of(rows) if all((a, n) in early for a in BOTH)]
    if not lengths:
        return "No broken run here has a curve of both mechanisms yet."
    apart = {n: abs(early["softmax", n] - early["linear", n]) for n in lengths}
    other = [n for n in lengths if apart[n] > PLATEAU_MARGIN]
    verdict = (
        f"the same plateau for both within {PLATEAU_MARGIN} at every N, as expected"
        if not other
        else f"**not** the same plateau at N = {', '.join(map(str, other))}"
    )
    return (
        f"Of our broken runs it is the mean loss over steps {EARLY[0]} to {EARLY[1]}. Both "
        f"mechanisms differ by at most {max(apart.values()):z.2f} nats a token: {verdict}."
    )


def article_ends(article: Mapping[str, Any]) -> dict[tuple[str, int], Read]:
    """The article's final losses of each mechanism and N."""
    read = (one for one in article_losses(article) if one.what == FINAL)
    return {(one.attention, one.seq_len): one for one in read}


def above_level(article: Mapping[str, Any]) -> dict[tuple[str, int], float]:
    """How far above `bag_entropy` those of the article's runs end that do not end at 0."""
    ends = {key: one.nats for key, one in article_ends(article).items() if one.nats > NEAR_ZERO}
    return {(a, n): loss - bag_entropy(SequenceCopy(seq_len=n)) for (a, n), loss in ends.items()}


def level_text(article: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Where the article's runs that do not reach 0 end, and why ours do not end there, as
    Markdown."""
    finals, above = article_ends(article), above_level(article)
    levels = {n: bag_entropy(SequenceCopy(seq_len=n)) for n in article["N"]}
    near = [gap for gap in above.values() if abs(gap) <= LEVEL_MARGIN]
    jumps = "".join(f" Of the others {one.text}." for one in article_jumps(article))
    lines = [
        ["before anything is learned", *(f"{_entropy(n):z.2f}" for n in levels)],
        ["symbols known, order not", *(f"{one:z.2f}" for one in levels.values())],
        *([f"2022 article, {a}, end", *(finals[a, n].text for n in levels)] for a in BOTH),
        *(
            [
                f"here, broken {a}, below “order not” from step",
                *(_leaving(rows, a, n, level) for n, level in levels.items()),
            ]
            for a in BOTH
        ),
    ]
    table = by_length("nats a token", levels, lines)
    return (
        f"Of the article's {len(finals)} runs {len(finals) - len(above)} end at 0. Of the other "
        f"{len(above)}, {len(near)} end within {LEVEL_MARGIN} nats of a second level: the loss of "
        "a model that knows which symbols the source holds, and where it ends, but not their "
        "order (computed from the task, with nothing fitted), as if they had learned that much in "
        f"{article['steps']} steps and no more.{jumps}\n\n{table}\n\n{_unlike(rows)}"
    )


LEVEL_MARGIN = 0.05  # nats a token from a level that is computed


def _entropy(n: int) -> float:
    return unigram_entropy(SequenceCopy(seq_len=n))


def _leaving(rows: Sequence[Row], attention: str, n: int, level: float) -> str:
    """The median step from which broken runs stay below a level, and how many do."""
    some = ablated(rows).get((attention, n, BROKEN, None), [])
    left = [step for row in some if (step := leaves(row, level)) is not None]
    if not some:
        return "–"
    return f"{statistics.median(left):z.0f} ({len(left)} of {len(some)})" if left else "never"


def leaves(row: Row, level: float) -> int | None:
    """The step from which a run's loss stays more than LEVEL_MARGIN below a level."""
    found = None
    for step, loss in zip(row["curve"]["step"], row["curve"]["loss"], strict=True):
        below = loss is not None and loss < level - LEVEL_MARGIN
        found = (step if found is None else found) if below else None
    return found


def _unlike(rows: Sequence[Row]) -> str:
    """In what our broken runs differ from the article's, from their configs."""
    broken = [row for key, some in ablated(rows).items() if key[2] == BROKEN for row in some]
    if not broken:
        return "No broken run is recorded here yet."
    here, theirs = broken[0]["config"]["model"], asdict(replication_model("linear"))
    differ = "; ".join(
        f"{name} {_told_size(here, key)} for {_told_size(theirs, key)}"
        for key, name in SIZES.items()
        if _told_size(here, key) != _told_size(theirs, key)
    )
    later = ", ".join(one.title for one in DEFECTS.values() if one.full_size)
    low = [row for row in broken if (row["summary"].get("final_loss") or 0) < _level_of(row)]
    if not differ:
        return "These broken runs have the article's sizes."
    return (
        f"**Here broken runs do not end where the article's do**: {len(low)} of {len(broken)} end "
        "below that level. They pass it and learn on; what differs is how long a run stays there, "
        "and so how fast this model learns at 1e-4 and finds the leak. It is another "
        f"model: {differ}; and it lacks what was found later ({later}). Which of these does it "
        "these rows do not tell; those of the article's size, below, do at N = 8. Neither tell why "
        "the article's linear runs reach 0 at N = 8 and 32 and not at 16: a run a length, where "
        "finding a leak is a matter of luck, would look like this, and so would others."
    )


SIZES = {
    "n_layers": "layers",
    "d_model": "model size",
    "d_feedforward": "feed-forward size",
    "split": "heads, split twice:",
    "norm": "norm:",
    "positions": "positions:",
}


def _told_size(model: Mapping[str, Any], key: str) -> str:
    if key != "split":
        return str(model[key])
    heads, head_dim = split_again(model["n_heads"], model["d_model"] // model["n_heads"])
    return f"{heads} of {head_dim}"


def split_again(n_heads: int, head_dim: int) -> tuple[int, int]:
    """The heads, and their size, that the defect "heads split twice" leaves of some."""
    parts = max(p for p in range(1, min(n_heads, head_dim) + 1) if head_dim % p == 0)
    return n_heads * parts, head_dim // parts


def _level_of(row: Row) -> float:
    return bag_entropy(SequenceCopy(seq_len=seq_len_of(row))) - LEVEL_MARGIN


def loss_table(article: Mapping[str, Any], rows: Sequence[Row], attention: str = "linear") -> str:
    """Final losses of the article beside those of our broken and mended runs of the small model,
    and how far it is from broken ones, as Markdown."""
    here, lengths = final_losses(rows), article["N"]
    printed = {n: one for (a, n), one in article_ends(article).items() if a == attention}
    broken, mended = (
        {n: here.get((attention, n, role, None)) for n in lengths} for role in (BROKEN, MENDED)
    )
    left = {n: printed[n].nats - statistics.median(broken[n]) for n in lengths if broken[n]}
    lines = [
        ["2022 article", *(printed[n].text for n in lengths)],
        ["here, broken", *(_median(broken[n]) for n in lengths)],
        ["article less broken", *(_signed(left.get(n)) for n in lengths)],
        ["here, mended", *(_median(mended[n]) for n in lengths)],
    ]
    return by_length(f"final loss, {attention}", lengths, lines)


def _signed(difference: float | None) -> str:
    return "–" if difference is None else f"{round(difference, 2) + 0.0:+z.2f}"


def _median(losses: Sequence[float] | None) -> str:
    return f"{statistics.median(losses):z.4f} ({len(losses)})" if losses else "–"


# --- the first conclusion ------------------------------------------------------------------------


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
        for name, which in _what_decides(runs, n).items()
    ]
    model = linear[0]["config"]["model"]
    learn = f"{len(linear) - len(failed)} of {len(linear)} mended linear runs learn to copy"
    told = {True: "it stands", False: "refuted, it does learn", None: "open"}[met]
    return Verdict(
        f"{told}: {learn} (model size {model['d_model']}; the article's "
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
    n_steps = rows[0]["config"]["n_steps"]
    spikes = sum(row["summary"].get("n_spikes") or 0 for row in rows)
    steps = [row["summary"].get("steps_to_solved") for row in rows if _solved(row)]
    speed = f", after {statistics.median(steps):zg} steps (median)" if steps else ""
    return (
        f"N = {seq_len}, {role} {attention}: {sum(map(_solved, rows))} of {len(rows)} runs reach "
        f"{SOLVED_ACCURACY:z.0%} within {n_steps} steps{speed}; {spikes_text(spikes)}"
    )


def _what_decides(runs: Mapping[Key, list[Row]], n: int) -> dict[str, str]:
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


def failure_table(rows: Sequence[Row]) -> str:
    """Which defects are to blame that broken linear runs do not learn, as Markdown."""
    runs = ablated(rows)
    lengths = sorted({key[1] for key in runs if key[0] == "linear"})
    if not lengths:
        return ""
    found = [_what_decides(runs, n) for n in lengths]
    lines = [[name, *(one[name] for one in found)] for name in found[0]]
    table = by_length("linear attention", lengths, lines, LEFT)
    return (
        f"{table}\n\nA decoder without the mask sees its target: {SOLVED_ACCURACY:z.0%} may then "
        "be the leak and no copying. In the last line there is none."
    )
