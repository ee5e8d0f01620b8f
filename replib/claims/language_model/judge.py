"""Language models with linear and softmax attention, judged on stored rows.

Losses are nats a token of the whole test, the logarithm of the perplexity; of several settings the
one with the lowest loss on the validation text counts, and its test loss is told once.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

from replib.claims.common import BOTH, LOSS_MARGIN, name_of, nothing, seeds_lack, told
from replib.claims.language_model.grid import AXES, DEFECTS, axis_config, defect_config
from replib.lab.record import SCALES
from replib.lab.run import config_of, variant_of
from replib.lab.statistics import difference_interval
from replib.lab.store import Row
from replib.lab.verdict import Criterion, Verdict, each_device, within
from replib.language_model import LanguageModelConfig

MIN_SEEDS = 3
SAME = 0.02  # nats a token, two in a hundred of the perplexity; less is told as none


def loss_of(row: Row) -> float | None:
    """Nats a token of the test; infinite of a run that diverged, None of one that did not end."""
    if row["outcome"] == "diverged":
        return math.inf
    told = row["summary"].get("perplexity")
    return None if row["outcome"] != "ok" or told is None else math.log(told)


def losses(rows: Sequence[Row], config: LanguageModelConfig) -> list[float]:
    """Of each seed of a config."""
    found = (loss_of(row) for row in rows if config_of(row) == config)
    return [loss for loss in found if loss is not None]


def scale_of(rows: Sequence[Row]) -> str:
    """The largest scale that rows are of; the smallest where they are of none."""
    return max(
        (row["scale"] for row in rows if row["scale"] in SCALES),
        key=SCALES.index,
        default=SCALES[0],
    )


def compared(
    text: str, a: Sequence[float], b: Sequence[float], least: float, most: float
) -> Criterion:
    """Whether mean(a) - mean(b), nats a token, is between two limits."""
    if min(len(a), len(b)) < MIN_SEEDS:
        apart = f"{mean(a) - mean(b):+z.3f} nats a token, " if a and b else ""
        return seeds_lack(text, a, b, MIN_SEEDS, apart)
    if not all(map(math.isfinite, [*a, *b])):
        n_diverged = [sum(map(math.isinf, side)) for side in (a, b)]
        met = (
            None
            if all(n_diverged)
            else within(*[math.inf if n_diverged[0] else -math.inf] * 2, least, most)
        )
        return Criterion(text, met, f"{n_diverged[0]} and {n_diverged[1]} seeds diverged")
    low, high = difference_interval(a, b)
    figure = f"{mean(a) - mean(b):+z.3f} ({low:+z.3f} to {high:+z.3f}) nats a token"
    return Criterion(text, within(low, high, least, most), figure)


def lower(text: str, a: Sequence[float], b: Sequence[float]) -> Criterion:
    """Whether a's loss is below b's."""
    return compared(text, a, b, -math.inf, 0.0)


def by_variant(rows: Sequence[Row]) -> dict[tuple, list[float]]:
    """The losses of each mechanism of the corpus and number of steps that most rows are of; softmax
    first."""
    settings: dict[tuple, dict[tuple, list[float]]] = {}
    for row in rows:
        config, loss = config_of(row), loss_of(row)
        if loss is not None:
            setting = config.task, config.n_steps
            settings.setdefault(setting, {}).setdefault(variant_of(row), []).append(loss)
    if not settings:
        return {}
    found = max(settings.values(), key=lambda one: sum(map(len, one.values())))
    return dict(sorted(found.items(), key=lambda one: (one[0][0] != "softmax", one[0])))


def tuned(rows: Sequence[Row], attention: str) -> tuple[float | None, list[float]]:
    """The learning rate at which a mechanism has the lowest validation loss, the mean of its seeds,
    and the test losses there."""
    found = {}
    for rate in AXES["learning rate"]:
        config = axis_config(attention, "learning rate", rate, scale_of(rows))
        some = [row for row in rows if config_of(row) == config and row["outcome"] == "ok"]
        if some:
            found[rate] = mean(row["summary"]["best_loss"] for row in some), losses(some, config)
    if not found:
        return None, []
    rate = min(found, key=lambda one: found[one][0])
    return rate, found[rate][1]


@each_device
def language_model(rows: Sequence[Row]) -> Verdict:
    """Linear attention models text as well as softmax: its loss on the test is at most LOSS_MARGIN
    above, on Shakespeare each at its best learning rate, on Penn Treebank all at one; and softmax
    is no poor baseline, at least as good as an LSTM with as many weights."""
    axes = [row for row in rows if row["experiment"] == "text_axes"]
    words = [row for row in rows if row["experiment"] != "text_axes"]
    found, criteria, said = by_variant(words), [], []
    if not axes and not found:
        return nothing("no run has ended yet")
    margin = f"at most {LOSS_MARGIN} nats a token above softmax"
    if axes:
        (rate, linear), (other, softmax) = (tuned(axes, name) for name in ("linear", "softmax"))
        text = f"Shakespeare, linear at its best rate {rate} is {margin} at {other}"
        criteria.append(compared(text, linear, softmax, -math.inf, LOSS_MARGIN))
        if linear and softmax:
            both = f"softmax {perplexity_text(softmax)}, linear {perplexity_text(linear)}"
            apart = f"{criteria[-1].figure}, {LOSS_MARGIN} allowed"
            said.append(f"Shakespeare, a character: {both}; {apart}")
    if found:
        corpus = max((config_of(row).task.corpus for row in words), key=len)
        one = {variant[0]: values for variant, values in found.items()}
        softmax, linear = one.get("softmax", []), one.get("linear", [])
        criteria.append(
            compared(f"{corpus}, linear is {margin}", linear, softmax, -math.inf, LOSS_MARGIN)
        )
        if "lstm" in one:
            text = f"{corpus}, softmax is not above an LSTM with as many weights"
            criteria.append(lower(text, softmax, one["lstm"]))
        by_name = ", ".join(f"{name_of(v)} {perplexity_text(x)}" for v, x in found.items())
        said.append(f"{corpus}: {by_name}")
    return Verdict(
        f"perplexity, means of the seeds: {'; '.join(said)}",
        tuple(criteria),
        tuple(_beside(found)),
        answer=f"Perplexity, {'; '.join(said)}." if said else "",
    )


def _beside(found: dict[tuple, list[float]]) -> list[str]:
    """How far every other mechanism is from softmax."""
    base = found.get(("softmax", None), [])
    others = {v: x for v, x in found.items() if v[0] not in (*BOTH, "lstm")}
    criteria = [
        compared(f"beside it, {name_of(v)} less softmax", x, base, -math.inf, math.inf)
        for v, x in others.items()
    ]
    return [f"{one.text}: {one.figure}" for one in criteria]


def perplexity_text(losses: Sequence[float]) -> str:
    """The perplexity of the mean loss of seeds."""
    value = mean(losses)
    return f"{math.exp(value):z.3g}" if math.isfinite(value) else "diverged"


def axis_losses(rows: Sequence[Row], axis: str, attention: str) -> dict[float, list[float]]:
    """The losses of each point of an axis that has some."""
    scale = scale_of(rows)
    found = {
        value: losses(rows, axis_config(attention, axis, value, scale)) for value in AXES[axis]
    }
    return {value: some for value, some in found.items() if some}


def _axis(
    rows: Sequence[Row], pairs: Sequence[tuple[str, float, float]], margin: float = 0.0
) -> Verdict:
    """Whether the first value of each pair is better than the second with both mechanisms, or worse
    by at most a margin."""
    criteria, best_of = [], {}
    how = f"at most {margin} nats a token above" if margin else "below"
    for axis, better, worse in pairs:
        for name in BOTH:
            found = axis_losses(rows, axis, name)
            text = f"{name}, {axis}: {better} is {how} {worse}"
            sides = found.get(better, []), found.get(worse, [])
            criteria.append(compared(text, *sides, -math.inf, margin))
            if found:
                best = min(found, key=lambda value: mean(found[value]))
                best_of[f"{best} ({name}, {axis})"] = None
    if not best_of:
        return nothing()
    return told(f"best: {', '.join(best_of)}", criteria)


@each_device
def layers(rows: Sequence[Row]) -> Verdict:
    """The study: more layers have a lower perplexity; each step of its axis."""
    steps = AXES["layers"]
    pairs = [("layers", more, fewer) for fewer, more in zip(steps, steps[1:], strict=False)]
    return _axis(rows, pairs)


@each_device
def batch(rows: Sequence[Row]) -> Verdict:
    """The study: a batch of 16 is best, on small corpora as good as 64, and 4 is worse; after as
    many tokens, as its epochs are."""
    better = _axis(rows, [("batch, equal tokens", 16, 4)])
    as_good = _axis(rows, [("batch, equal tokens", 16, 64)], SAME)
    return replace(better, criteria=better.criteria + as_good.criteria)


@each_device
def length(rows: Sequence[Row]) -> Verdict:
    """The study: on small corpora shorter segments are better. After as many tokens a step, and
    after as many steps, which longer segments have more tokens of."""
    return _axis(rows, [(f"length, equal {of}", 64, 1024) for of in ("tokens", "steps")])


@each_device
def heads(rows: Sequence[Row]) -> Verdict:
    """The study has no numbers: here 8 heads against 1."""
    return _axis(rows, [("heads", 8, 1)])


@each_device
def defects(rows: Sequence[Row]) -> Verdict:
    """Each thing that the study did otherwise raises the loss by more than SAME, with linear
    attention."""
    scale, criteria, every = scale_of(rows), [], []
    mended = losses(rows, defect_config("linear", "mended", scale))
    for name in DEFECTS:
        some = losses(rows, defect_config("linear", name, scale))
        if name != "mended":
            text = f"{name}: more than {SAME} nats a token above"
            criteria.append(compared(text, some, mended, SAME, math.inf))
        if some:
            every.append(f"{name} {perplexity_text(some)}")
    if not every:
        return nothing()
    return Verdict(
        f"perplexity of a character: {', '.join(every)}",
        tuple(criteria),
        tuple(batch_means(rows)),
        answer=f"Perplexity of a character, linear: {', '.join(every)}.",
    )


def batch_means(rows: Sequence[Row]) -> list[str]:
    """How far the mean of batch means is from the perplexity of all tokens."""
    ratios = [
        row["summary"]["perplexity_of_batch_means"] / row["summary"]["perplexity"]
        for row in rows
        if row["outcome"] == "ok" and row["summary"].get("perplexity_of_batch_means")
    ]
    if not ratios:
        return []
    low, high = min(ratios) - 1, max(ratios) - 1
    return [
        f"the mean of batch means is {low:+z.2%} to {high:+z.2%} off the perplexity of all tokens"
    ]


VERDICTS = {
    "language_model": lambda rows: language_model([*rows["language_model"], *rows["text_axes"]]),
    "layers": lambda rows: layers(rows["text_axes"]),
    "batch": lambda rows: batch(rows["text_axes"]),
    "length": lambda rows: length(rows["text_axes"]),
    "heads": lambda rows: heads(rows["text_axes"]),
    "text_defects": lambda rows: defects(rows["text_defects"]),
}
