"""The time of the 2022 replication's steps, judged on stored rows: what each defect did to it,
whether "8 to 24 times slower" and the crossover at 3149 stand after mending, and what the article's
extrapolation is worth.

Rows are those of the experiments `autopsy_time` and `autopsy_longer`; for the words that say what
was mended see `claims_autopsy`.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from replib.claims.autopsy.defects import DEFECTS, all_defects
from replib.claims.autopsy.judge import (
    ALONE_OFF,
    ALONE_ON,
    BROKEN,
    MENDED,
    Key,
    ablated,
    by_length,
    lengths_of,
    seq_len_of,
)
from replib.claims.experiments import BOTH
from replib.claims.judging import MODEL_NAMES, each_device, judged_linear, variant_of
from replib.lab.statistics import (
    SOFTMAX_MODELS,
    Crossover,
    Ratio,
    Regression,
    Total,
    article_regression,
    crossover,
    measured_total,
    prediction_interval,
    ratio,
)
from replib.lab.store import Row
from replib.lab.text import LEFT, markdown_table
from replib.lab.verdict import (
    ARTICLE_CROSSOVER,
    Criterion,
    Verdict,
    bound_text,
    crossover_place,
    crossovers_span,
    ratio_text,
)

# Of the slowdown, each by itself; what remains is the rest.
CAUSES = ("float64", "batch_32", "unfused", "extra_losses")
MIN_SAMPLES = 3  # of a step; resampling fewer says nothing of how they vary
NO_TRANSFER = (
    "**These factors are of the device named here and do not transfer to the article's Quadro "
    "P4000.** That GPU computes in float64 at 1/32 of its rate in float32, where a CPU has a half, "
    "so that float64 may have cost it far more; and a batch of 32 need not take it four times as "
    "long as one of 8, which may leave it idle. What made the article's runs slow there was not "
    "measured."
)
NOT_THERE = "not of the article's Quadro P4000, whose float64 runs at 1/32"  # in a subtitle
IN_TURNS = "timed in turns with defects"  # the steps of `autopsy_time`

# --- the time of a step ---------------------------------------------------------------------------


_total = lru_cache(maxsize=2000)(measured_total)


def step_times(rows: Sequence[Row]) -> dict[Key, Total]:
    """The time of a step of each set of defects, in milliseconds. Rounds are resampled together,
    as they were timed."""
    return {
        key: _total(tuple(some[-1]["summary"]["time_ms_samples"]))
        for key, some in ablated(rows).items()
        if some[-1]["outcome"] == "ok"
        and len(some[-1]["summary"].get("time_ms_samples") or ()) >= MIN_SAMPLES
    }


@dataclass(frozen=True)
class Effect:
    """By what factor a defect lengthens a step: alone, and where all others are there as well."""

    defect: str
    alone_on: Ratio | None
    alone_off: Ratio | None


def time_effects(rows: Sequence[Row], attention: str, seq_len: int) -> list[Effect]:
    """The effect of each defect that was measured at one length."""
    times = step_times(rows)

    def compared(above: tuple, below: tuple) -> Ratio | None:
        totals = [times.get((attention, seq_len, *key)) for key in (above, below)]
        return None if None in totals else ratio(*totals)

    effects = (
        Effect(
            defect,
            compared((ALONE_ON, defect), (MENDED, None)),
            compared((BROKEN, None), (ALONE_OFF, defect)),
        )
        for defect in all_defects(attention)
    )
    return [one for one in effects if one.alone_on or one.alone_off]


@dataclass(frozen=True)
class Part:
    """A factor of the slowdown with its 95 % interval; `share` is its part of the logarithm of all
    that the defects of the linear runs do."""

    name: str
    factor: Ratio
    share: Ratio | None = None


@dataclass(frozen=True)
class Attribution:
    """How the ratio of linear to softmax step times of the article comes about at one length:
    mended · CAUSES · rest / softmax's own defects = broken; broken · unexplained = article's.

    `parts` are the middle (geometric mean) of what the defects do alone on and alone off, which
    `alone_on` and `alone_off` have by themselves; in each the rest is what remains of the whole.
    """

    seq_len: int
    article: float
    mended: Ratio
    broken: Ratio
    whole: Ratio
    softmax_whole: Ratio
    unexplained: Ratio
    parts: tuple[Part, ...]
    alone_on: tuple[Part, ...]
    alone_off: tuple[Part, ...]


def attribution(
    rows: Sequence[Row], article: Mapping[str, Any], seq_len: int
) -> Attribution | None:
    """The slowdown at one of the article's lengths, taken apart; None where runs are missing."""
    times = step_times(rows)

    def draws(attention: str, role: str, defect: str | None = None) -> Total:
        return times[attention, seq_len, role, defect]

    try:
        mended, broken = draws("linear", MENDED), draws("linear", BROKEN)
        softmax = draws("softmax", MENDED), draws("softmax", BROKEN)
        on = {one: _over(draws("linear", ALONE_ON, one), mended) for one in CAUSES}
        off = {one: _over(broken, draws("linear", ALONE_OFF, one)) for one in CAUSES}
        published = article["ratio_linear_softmax"][article["N"].index(seq_len)]
    except (KeyError, ValueError):
        return None
    whole = _over(broken, mended)
    between = {one: _middle(on[one], off[one]) for one in CAUSES}
    broken_ratio = _over(broken, softmax[1])
    return Attribution(
        seq_len=seq_len,
        article=published,
        mended=ratio(mended, softmax[0]),
        broken=ratio(broken, softmax[1]),
        whole=ratio(broken, mended),
        softmax_whole=ratio(softmax[1], softmax[0]),
        unexplained=ratio(
            Total(published, np.full_like(broken_ratio.draws, published)), broken_ratio
        ),
        parts=_parts(between, whole),
        alone_on=_parts(on, whole),
        alone_off=_parts(off, whole),
    )


def _over(a: Total, b: Total) -> Total:
    return Total(a.value / b.value, a.draws / b.draws)


def _middle(a: Total, b: Total) -> Total:
    return Total(math.sqrt(a.value * b.value), np.sqrt(a.draws * b.draws))


def _parts(causes: Mapping[str, Total], whole: Total) -> tuple[Part, ...]:
    rest = whole
    for one in causes.values():
        rest = _over(rest, one)
    named = {DEFECTS[name].title: one for name, one in causes.items()} | {REST: rest}
    return tuple(Part(name, _told(one), _share(one, whole)) for name, one in named.items())


REST = "the rest"


def _told(one: Total) -> Ratio:
    return ratio(one, Total(1.0, np.ones_like(one.draws)))


def _share(one: Total, whole: Total) -> Ratio | None:
    """The share of a logarithm; None where the whole may be nothing."""
    if (np.log(whole.draws) <= 0).any() or whole.value <= 1:
        return None
    return ratio(
        Total(math.log(one.value), np.log(one.draws)),
        Total(math.log(whole.value), np.log(whole.draws)),
    )


def attribution_text(found: Attribution | None) -> str:
    """The attribution as Markdown; says where the two ways to attribute disagree."""
    if found is None:
        return "The slowdown cannot be attributed: no measurements yet at this length."
    head = "of the linear step", "alone on", "alone off", "between", "share of the logarithm"
    lines = [
        [middle.name, *map(ratio_text, (on.factor, off.factor, middle.factor)), share]
        for middle, on, off in zip(found.parts, found.alone_on, found.alone_off, strict=True)
        for share in [_percent(middle.share)]
    ]
    apart = [
        on.name
        for on, off in zip(found.alone_on, found.alone_off, strict=True)
        if on.factor.high < off.factor.low or off.factor.high < on.factor.low
    ]
    differ = (
        f"The two attributions differ for {', '.join(apart)}: such defects do not simply multiply."
        if apart
        else "The two attributions agree within their intervals."
    )
    if found.parts[-1].factor.high < 1:
        differ += " A rest below 1 says that the named defects overlap: together they cost less."
    return (
        f"**N = {found.seq_len}.** The article's linear runs took {found.article:z.1f} times its "
        f"softmax runs. Here linear takes {ratio_text(found.mended)} softmax's time when both are "
        f"mended, and {ratio_text(found.broken)} when both are broken; a factor of "
        f"{ratio_text(found.unexplained)} between broken and the article stays **unexplained** "
        "(another machine, other libraries, and what no switch re-enacts). The defects make a "
        f"linear step {ratio_text(found.whole)} as long, a softmax step "
        f"{ratio_text(found.softmax_whole)}.\n\n{markdown_table(head, lines)}\n\n{differ}\n\n"
        f"{NO_TRANSFER}"
    )


def _percent(share: Ratio | None) -> str:
    if share is None:
        return "–"
    return f"{share.value:z.0%} ({share.low:z.0%} to {share.high:z.0%})"


def four_points(article: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The article's Table 1 with our broken and mended steps, as Markdown: seconds of as many
    steps."""
    times, lengths = step_times(rows), article["N"]
    lines = []
    for attention in BOTH:
        lines.append([f"2022 article, {attention}", *map(str, article[f"{attention}_s"])])
        for role in (BROKEN, MENDED):
            found = [times.get((attention, n, role, None)) for n in lengths]
            cells = [f"{x.value * article['steps'] / 1000:z.0f}" if x else "–" for x in found]
            lines.append([f"here, {role}, {attention}", *cells])
    return by_length(
        f"seconds of {article['steps']} steps (here: of a median step)", lengths, lines
    )


# --- two conclusions ---


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
    found, longer = crossovers([*rows, *_autopsied(steps)]), step_crossovers(steps)
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


def _autopsied(steps: Sequence[Row]) -> list[Row]:
    return [row for row in steps if "defects" in row["config"]]


def step_crossovers(steps: Sequence[Row]) -> dict[str, Crossover]:
    """The crossover of the mended steps of `step_time`, against each softmax."""
    steps = [row for row in steps if "defects" not in row["config"]]
    samples = {
        (*variant_of(row), seq_len_of(row)): tuple(row["summary"]["time_ms_samples"])
        for row in steps
        if row["outcome"] == "ok"
    }
    found, fastest = {}, judged_linear(steps)
    for baseline in ("textbook", "fused"):
        sides = ("softmax", baseline), ("linear", fastest)
        lengths = [n for n in lengths_of(steps) if all((*side, n) in samples for side in sides)]
        if len(lengths) >= 2:
            times = (tuple(samples[*side, n] for n in lengths) for side in sides)
            found[f"linear {fastest} against softmax {baseline}"] = _crossover(
                tuple(lengths), *times
            )
    return found


def crossovers(rows: Sequence[Row]) -> dict[str, Crossover]:
    """The crossover of whole steps, mended and broken; one needs two lengths."""
    times, found = _step_samples(rows), {}
    for role in (MENDED, BROKEN):
        lengths = [n for n in lengths_of(rows) if all((a, n, role) in times for a in BOTH)]
        if len(lengths) >= 2:
            sides = (tuple(times[a, n, role] for n in lengths) for a in BOTH)
            found[role] = _crossover(tuple(lengths), *sides)
    return found


_crossover = lru_cache(maxsize=100)(crossover)


def _step_samples(rows: Sequence[Row]) -> dict[tuple[str, int, str], tuple[float, ...]]:
    return {
        key[:3]: tuple(some[-1]["summary"]["time_ms_samples"])
        for key, some in ablated(rows).items()
        if key[2] in (MENDED, BROKEN) and some[-1]["outcome"] == "ok"
    }


# --- extrapolation --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prediction:
    """A crossover extrapolated from some of four points with a model of softmax."""

    lengths: tuple[int, ...]
    fit: Regression
    low: float
    high: float


def predicted(article: Mapping[str, Any], lengths: Sequence[int], softmax_model: str) -> Prediction:
    """What the article's regression predicts from some of its points.

    Raises:
        ValueError: as `article_regression`.
    """
    kept = [i for i, n in enumerate(article["N"]) if n in lengths]
    columns = [[article[name][i] for i in kept] for name in ("N", "softmax_s", "linear_s")]
    fit = article_regression(*columns, softmax_model=softmax_model)
    low, high = prediction_interval(*columns, softmax_model=softmax_model)
    return Prediction(tuple(columns[0]), fit, low, high)


def prediction_text(found: Prediction) -> str:
    """A prediction in words."""
    crossing = found.fit.crossover
    where = (
        "linear never overtakes" if math.isinf(crossing) else f"crossover at N = {crossing:z.0f}"
    )
    longest = found.lengths[-1]
    beyond = "" if math.isinf(crossing) else f", {crossing / longest:z.0f} times beyond the data"
    interval = (
        f"95 % interval {bound_text(found.low)} to {bound_text(found.high)}, if the model is right"
    )
    if math.isinf(found.low):
        interval = "no error of its size says otherwise"
    return (
        f"{MODEL_NAMES[found.fit.softmax_model]} through N = {', '.join(map(str, found.lengths))}: "
        f"{where}{beyond}; {interval}; R² of softmax {found.fit.r2_softmax:z.4f}, of linear "
        f"{found.fit.r2_linear:z.4f}"
    )


def prediction_table(
    article: Mapping[str, Any], rows: Sequence[Row], steps: Sequence[Row] = ()
) -> str:
    """The article's regression on its own four points and on ours, with every model; and the
    crossovers that were measured, with `steps` of longer N as in `article_crossover`, as Markdown.
    """
    sources = {"2022 article": [article["N"], article["softmax_s"], article["linear_s"]]}
    samples = _step_samples(rows)
    for role in (BROKEN, MENDED):
        lengths = [n for n in lengths_of(rows) if all((a, n, role) in samples for a in BOTH)]
        if len(lengths) >= 4:
            sides = [[statistics.median(samples[a, n, role]) for n in lengths] for a in BOTH]
            sources[f"here, {role}"] = [lengths, *sides]
    lines = [
        [name, *(_crossing(article_regression(*columns, softmax_model=m)) for m in SOFTMAX_MODELS)]
        for name, columns in sources.items()
    ]
    head = ["crossover N by model of softmax", *(MODEL_NAMES[m] for m in SOFTMAX_MODELS)]
    table = markdown_table(head, lines)
    found = crossovers([*rows, *_autopsied(steps)])
    measured = {f"{role}, {IN_TURNS}": found[role] for role in found}
    measured |= {f"{MENDED}, {name}": one for name, one in step_crossovers(steps).items()}
    if not measured:
        return f"{table}\n\nHere nothing has been measured yet."
    lines = [[name, crossover_place(one)] for name, one in measured.items()]
    return f"{table}\n\n{markdown_table(['steps measured here', 'cross at'], lines, LEFT)}"


def _crossing(fit: Regression) -> str:
    return bound_text(fit.crossover).replace("no end", "never")
