"""The tables and texts of notebook 5, as Markdown."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from replib.claims.autopsy.ablation import (
    BROKEN,
    EARLY,
    LEVEL_MARGIN,
    MENDED,
    ablated,
    above_level,
    article_ends,
    early_losses,
    final_losses,
    leaves,
    lengths_of,
)
from replib.claims.autopsy.article_losses import (
    PLATEAU,
    article_batches,
    article_jumps,
    article_losses,
    bag_entropy,
    unigram_entropy,
)
from replib.claims.autopsy.full_size import (
    BATCH,
    SEQ_LEN,
    printed,
    variants,
)
from replib.claims.autopsy.judge import what_decides
from replib.claims.autopsy.step_times import (
    IN_TURNS,
    NO_TRANSFER,
    Attribution,
    Prediction,
    autopsied,
    crossovers,
    step_crossovers,
    step_samples,
    step_times,
)
from replib.claims.common import BOTH
from replib.claims.crossover.extrapolation import MODEL_NAMES
from replib.lab.runs.training import SOLVED_ACCURACY
from replib.lab.statistics import SOFTMAX_MODELS, Ratio, Regression, article_regression
from replib.lab.store import Row
from replib.lab.text import LEFT, RIGHT, markdown_table
from replib.lab.verdict import bound_text, crossover_place, ratio_text
from replib.tasks.copy import SequenceCopy


def failure_table(rows: Sequence[Row]) -> str:
    """Which defects are to blame that broken linear runs do not learn, as Markdown."""
    runs = ablated(rows)
    lengths = sorted({key[1] for key in runs if key[0] == "linear"})
    if not lengths:
        return ""
    found = [what_decides(runs, n) for n in lengths]
    lines = [[name, *(one[name] for one in found)] for name in found[0]]
    table = by_length("linear attention", lengths, lines, LEFT)
    return (
        f"{table}\n\nA decoder without the mask sees its target: {SOLVED_ACCURACY:z.0%} may then "
        "be the leak and no copying. In the last line there is none."
    )


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
        f"agree.\n\n{by_length('first plateau', lengths, lines)}\n\nOf our broken runs it is the "
        f"mean loss over steps {EARLY[0]} to {EARLY[1]}."
    )


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
        f"{article['steps']} steps and no more.{jumps}\n\n{table}"
    )


def _entropy(n: int) -> float:
    return unigram_entropy(SequenceCopy(seq_len=n))


def _leaving(rows: Sequence[Row], attention: str, n: int, level: float) -> str:
    """The median step from which broken runs stay below a level, and how many do."""
    some = ablated(rows).get((attention, n, BROKEN, None), [])
    left = [step for row in some if (step := leaves(row, level)) is not None]
    if not some:
        return "–"
    return f"{statistics.median(left):z.0f} ({len(left)} of {len(some)})" if left else "never"


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


def by_length(
    name: str, lengths: Iterable[int], lines: Iterable[Sequence[str]], align: str = RIGHT
) -> str:
    """A Markdown table with a column for each N."""
    return markdown_table([name, *(f"N = {n}" for n in lengths)], lines, align)


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
    samples = step_samples(rows)
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
    found = crossovers([*rows, *autopsied(steps)])
    measured = {f"{role}, {IN_TURNS}": found[role] for role in found}
    measured |= {f"{MENDED}, {name}": one for name, one in step_crossovers(steps).items()}
    if not measured:
        return f"{table}\n\nHere nothing has been measured yet."
    lines = [[name, crossover_place(one)] for name, one in measured.items()]
    return f"{table}\n\n{markdown_table(['steps measured here', 'cross at'], lines, LEFT)}"


def _crossing(fit: Regression) -> str:
    return bound_text(fit.crossover).replace("no end", "never")


def full_size_table(rows: Sequence[Row], article: Mapping[str, Any]) -> str:
    """Where runs of the article's size end, beside the article's, as Markdown."""
    head = ["N = 8", "runs", f"printed, a batch of {BATCH}", "nats a token", "accuracy"]
    lines = []
    for attention in ("softmax", "linear"):
        end = article_ends(article)[attention, SEQ_LEN]
        at = f"{end.nats * BATCH:zg}"
        if end.batch != BATCH:
            at += f" (it prints {end.printed:zg}, of a batch of {end.batch})"
        lines.append([f"2022 article, {attention}", "1", at, end.text, "not told"])
        for one in variants(rows):
            if one.attention == attention:
                nats = f"{statistics.median(one.ends):z.2f}"
                told = [str(len(one.rows)), printed(one.ends), nats, f"{one.accuracy:z.0%}"]
                lines.append([f"{attention}, {one.name}", *told])
    return markdown_table(head, lines)
