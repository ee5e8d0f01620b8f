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
    NEAR_ZERO,
    ROLES,
    ablated,
    above_level,
    article_ends,
    early_losses,
    final_losses,
    leaves,
    lengths_of,
    seq_len_of,
)
from replib.claims.autopsy.article_losses import (
    PLATEAU,
    article_batches,
    article_jumps,
    article_losses,
    bag_entropy,
    unigram_entropy,
)
from replib.claims.autopsy.defects import DEFECTS, article_defects
from replib.claims.autopsy.full_size import (
    BATCH,
    BUT_FOR,
    END_MARGIN,
    N_STEPS,
    SEQ_LEN,
    Variant,
    n_runs,
    printed,
    variants,
    written,
)
from replib.claims.autopsy.judge import softmax_returns, what_decides
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
from replib.claims.common import BOTH, replication_model
from replib.claims.crossover.extrapolation import MODEL_NAMES
from replib.lab.run import config_of
from replib.lab.runs.training import SOLVED_ACCURACY
from replib.lab.statistics import SOFTMAX_MODELS, Ratio, Regression, article_regression
from replib.lab.store import Row
from replib.lab.text import LEFT, RIGHT, markdown_table
from replib.lab.verdict import NOT_SUPPORTED, SUPPORTED, bound_text, crossover_place, ratio_text
from replib.models import TransformerConfig
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
        f"agree.\n\n{by_length('first plateau', lengths, lines)}\n\n{_plateaus_here(rows)}"
    )


PLATEAU_MARGIN = 0.1  # nats a token by which two plateaus may differ and be the same


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


def _entropy(n: int) -> float:
    return unigram_entropy(SequenceCopy(seq_len=n))


def _leaving(rows: Sequence[Row], attention: str, n: int, level: float) -> str:
    """The median step from which broken runs stay below a level, and how many do."""
    some = ablated(rows).get((attention, n, BROKEN, None), [])
    left = [step for row in some if (step := leaves(row, level)) is not None]
    if not some:
        return "–"
    return f"{statistics.median(left):z.0f} ({len(left)} of {len(some)})" if left else "never"


def _unlike(rows: Sequence[Row]) -> str:
    """In what our broken runs differ from the article's, from their configs."""
    broken = [row for key, some in ablated(rows).items() if key[2] == BROKEN for row in some]
    if not broken:
        return "No broken run is recorded here yet."
    here, theirs = config_of(broken[0]).model, replication_model("linear")
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


def _told_size(model: TransformerConfig, key: str) -> str:
    if key != "split":
        return str(getattr(model, key))
    heads, head_dim = split_again(model.n_heads, model.head_dim)
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


def recorded_text(rows: Sequence[Row]) -> str:
    """Which sets of defects have losses, by how many seeds each, and of what model."""
    runs = ablated(rows)
    if not runs:
        return "no run is recorded yet"
    some = config_of(next(iter(runs.values()))[0])
    model, told = some.model, []
    for role in ROLES:
        seeds = [len(found) for key, found in runs.items() if key[2] == role]
        often = _from_to(seeds) if seeds else "none yet"
        told.append(f"{role}: {often}{f' of each of {len(seeds)} sets' if seeds else ''}")
    every = [
        row
        for found in runs.values()
        for row in found
        if tuple(config_of(row).defects) == article_defects("linear")
    ]
    slow = ", ".join(one.title for one in DEFECTS.values() if one.slow)
    return (
        f"a {model.norm}-norm model of {model.n_layers} + {model.n_layers} layers and "
        f"{model.n_heads} heads of {model.head_dim} that trains for {some.n_steps} "
        f"steps. Seeds (a set is of one mechanism and N): {'; '.join(told)}. "
        f"{len(every)} broken linear runs have all defects; the others are without those that are "
        f"merely slow ({slow}), which change losses by rounding alone"
    )


def _from_to(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


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


def full_size_text(rows: Sequence[Row], article: Mapping[str, Any]) -> str:
    """Where runs of the article's size end, what that explains of its losses, and what it does not,
    as Markdown."""
    found = written(rows, "softmax")
    if found is None:
        return "No run of the article's size is recorded yet."
    return "\n\n".join(
        [
            full_size_table(rows, article),
            _explained(rows, found, article),
            _which(rows, found),
            _unexplained(rows, article),
        ]
    )


def _explained(rows: Sequence[Row], found: Variant, article: Mapping[str, Any]) -> str:
    """Whether the article's softmax comes back, and where it stands."""
    end, level = (
        article_ends(article)["softmax", SEQ_LEN],
        bag_entropy(SequenceCopy(seq_len=SEQ_LEN)),
    )
    there = f"{printed(found.ends)} as printed ({n_runs(len(found.rows))}), for {end.printed:zg}"
    status = softmax_returns(rows, article).status
    if status == NOT_SUPPORTED or found.n_solved:
        return f"**Softmax as written does not end where the article's does:** {there}."
    few = "" if status == SUPPORTED else f", as far as {n_runs(len(found.rows))} can tell"
    return (
        f"**Explained{few}: that softmax does not learn at N = 8.** With the size and the "
        "differences of "
        f"the article's code, and nothing else, it ends where the article's does: at {there}. Both "
        "are at the level of a model that knows which symbols the source holds and not their order "
        f"({BATCH * level:z.1f} as printed, computed from the task). That the article's runs had "
        "this code is inferred: softmax stands in it as a comment."
    )


def _which(rows: Sequence[Row], found: Variant) -> str:
    """What mending one difference alone does to softmax as written."""
    alone = [
        one
        for one in variants(rows)
        if one.attention == "softmax" and one.batch == BATCH and len(one.mended) == 1
    ]
    if not alone:
        return "No run with one difference mended is recorded yet."
    here, told = statistics.median(found.ends), []
    alone += [
        one
        for one in variants(rows)
        if one.attention == "softmax" and one.batch != BATCH and not one.mended
    ]
    large = [one for one in alone if one.batch != BATCH and one.n_solved == len(one.rows)]
    for one in alone:
        near = abs(statistics.median(one.ends) - here) <= END_MARGIN
        what = "it ends at the same level" if near else "it ends elsewhere"
        if one.n_solved:
            leak = "" if "leak" in one.mended or one in large else ", which may be the leak"
            what = f"{one.n_solved} of {len(one.rows)} reach {SOLVED_ACCURACY:z.0%}{leak}"
        name = BUT_FOR[one.mended[0]] if one.mended else f"batch {one.batch}"
        steps = "" if one.n_steps == N_STEPS else f" of {one.n_steps} steps"
        told.append(f"{name}: {what}, {printed(one.ends)} ({n_runs(len(one.rows))}{steps})")
    scale, conclusion = written(rows, "softmax", "embedding_scale"), ""
    if scale and not scale.n_solved and abs(statistics.median(scale.ends) - here) > END_MARGIN:
        conclusion = (
            " **The embedding's scale decides at which level softmax stands, not that it does not "
            "learn:** with the usual one it stands at another, and does not learn either."
        )
    if large and not found.n_solved:
        conclusion += (
            f" **The batch decides that:** with {large[0].batch} in place of {BATCH} and the rest "
            f"as written it learns. {COPIES} The article's plateaus say that its softmax had a "
            "batch of 8 and its linear attention one of 32 (inferred; its text says 8 for both): "
            "then its curves compare batches as much as mechanisms."
        )
    return (
        f"With one thing changed alone, softmax as written: {'; '.join(told)}. Losses are as "
        f"printed, for a batch of {BATCH}.{conclusion}\n\n{OWN_NOTEBOOK}"
    )


COPIES = (
    "It copies, though it could see its target: given the source of one sequence and the tokens of "
    "another, it wrote 96 % of the symbols after the source and 9 % after its own input, where "
    "chance is 10 % (`defects.followed`, once at step 700 of that run, not recorded)."
)


OWN_NOTEBOOK = (
    "That scale is that of Transformers.jl's tutorial, and the authors' own softmax notebook has "
    "it too (`Templates/SoftmaxTransformer.ipynb`: 512, 2 + 4 layers that count, Adam at 1e-4, "
    "trained positions, 12 tokens), with a batch of 32 and the package's attention, whose decoder "
    "is masked. There softmax learns: the loss that it prints falls from 85 to 0.93 at step 720. "
    "Their article suspects “the very small batch size”."
)


def _unexplained(rows: Sequence[Row], article: Mapping[str, Any]) -> str:
    """What runs of this size leave open."""
    end, found = article_ends(article)["linear", SEQ_LEN], written(rows, "linear")
    of_linear = "its linear run, of which none is recorded here yet"
    if found is not None:
        of_linear = (
            f"its linear run, which ends at {end.printed:zg}: here it ends at "
            f"{printed(found.ends)} with batch {BATCH} as its code and text say "
            f"({n_runs(len(found.rows))})"
        )
        if all(loss <= NEAR_ZERO for loss in found.ends):
            of_linear = ""
    explained = (
        ""
        if of_linear
        else f"Its linear run, which ends at {end.printed:zg}, comes back as well "
        f"({n_runs(len(found.rows))}, batch {BATCH}): without the mask, so that it need not copy. "
    )
    return (
        f"{explained}**Not explained:** {of_linear}{'; ' * bool(of_linear)}the other lengths, of "
        "which no run of this size is recorded; and the time of its steps."
    )
