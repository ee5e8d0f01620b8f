"""The tables and texts of the autopsy's page, as Markdown."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from replib.claims.autopsy.ablation import (
    ALONE_ON,
    BROKEN,
    MENDED,
    ablated,
    final_losses,
    lengths_of,
    solved,
    what_decides,
)
from replib.claims.autopsy.article_losses import (
    article_ends,
    article_jumps,
    article_plateaus,
    bag_entropy,
    unigram_entropy,
)
from replib.claims.autopsy.defects import DEFECTS
from replib.claims.autopsy.step_times import step_times, time_effects
from replib.claims.common import BOTH, LOSS_MARGIN
from replib.lab.runs.training import SOLVED_ACCURACY
from replib.lab.store import Row
from replib.lab.text import LEFT, RIGHT, markdown_table
from replib.lab.verdict import ratio_text
from replib.tasks.copy import SequenceCopy


def defects_table(losses: Sequence[Row], times: Sequence[Row]) -> str:
    """What each defect is, where it stands, what reading it led to expect, and what it did by
    itself to linear runs of the longest N, as Markdown."""
    head = ["defect", "what", "where", "expected by reading", "measured, alone"]
    runs, timed = ablated(losses), ablated(times)
    effects = {n: time_effects(step_times(timed), "linear", n) for n in lengths_of(timed)[-1:]}
    lines = []
    for name, one in DEFECTS.items():
        measured = [
            f"a step takes {ratio_text(found[name, ALONE_ON])} the time at N = {n}"
            for n, found in effects.items()
            if (name, ALONE_ON) in found
        ]
        for n in lengths_of(runs)[-1:]:
            if some := runs.get(("linear", n, ALONE_ON, name)):
                learned = sum(map(solved, some))
                measured.append(f"{learned} of {len(some)} runs learn at N = {n}")
        expected = one.expected or "found later, when its effect was known"
        what = one.what + " Linear runs only." * one.linear_only
        told = "; ".join(measured) or "see the article's own size"
        lines.append([one.title, what, f"`{one.where}`", expected, told])
    return markdown_table(head, lines, LEFT)


def failure_table(rows: Sequence[Row]) -> str:
    """Which defects are to blame that broken linear runs do not learn, as Markdown."""
    runs = ablated(rows)
    lengths = lengths_of(runs, "linear")
    if not lengths:
        return ""
    found = [what_decides(runs, n) for n in lengths]
    lines = [[name, *(one[name] for one in found)] for name in found[0]]
    table = by_length("linear attention", lengths, lines, LEFT)
    return (
        f"{table}\n\nA decoder without the mask sees its target: {SOLVED_ACCURACY:z.0%} may then "
        "be the leak and no copying. In the last line there is none."
    )


def losses_table(article: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The article's losses in nats a token beside ours and the levels that the task has, and what
    undoing their scale shows, as Markdown."""
    plateaus, ends, lengths = article_plateaus(article), article_ends(article), article["N"]
    finals = final_losses(ablated(rows))
    tasks = [SequenceCopy(seq_len=n) for n in lengths]
    orderless = {n: bag_entropy(task) for n, task in zip(lengths, tasks, strict=True)}

    def of_both(name: str, cell) -> list[list[str]]:
        return [[f"{name}, {a}", *(cell(a, n) for n in lengths)] for a in BOTH]

    def plateau(attention: str, n: int) -> str:
        read = plateaus.get((attention, n))
        return f"{read.printed:zg} / {read.batch} = {read.text}" if read else "not read"

    def end_of(role: str):
        def median(attention: str, n: int) -> str:
            some = finals.get((attention, n, role, None))
            return f"{statistics.median(some):z.4f} ({len(some)})" if some else "–"

        return median

    lines = [
        ["nothing known yet", *(f"{unigram_entropy(task):z.2f}" for task in tasks)],
        *of_both("2022 article, first plateau", plateau),
        ["symbols known, their order not", *(f"{level:z.2f}" for level in orderless.values())],
        *of_both("2022 article, end", lambda a, n: ends[a, n].text),
        *of_both("here, broken, end", end_of(BROKEN)),
        *of_both("here, mended, end", end_of(MENDED)),
    ]
    above = [end.nats - orderless[n] for (_, n), end in ends.items() if end.nats > LOSS_MARGIN]
    near = sum(abs(gap) <= LOSS_MARGIN for gap in above)
    batches = {one.attention: one.batch for one in plateaus.values()}
    jumps = "".join(f" Of the others {one.text}." for one in article_jumps(article))
    return (
        "The article's losses are sums over the batch. Before anything is learned a loss stands at "
        "the entropy of single tokens, so that its plateau tells the batch: "
        f"{batches['softmax']} for softmax and {batches['linear']} for linear attention, which "
        "makes linear curves four times as high for nothing.\n\n"
        f"{by_length('nats a token', lengths, lines)}\n\n"
        f"Of the article's {len(ends)} runs {len(ends) - len(above)} end at 0. Of the other "
        f"{len(above)}, {near} end within {LOSS_MARGIN} nats of the loss of a model that knows "
        "which symbols the source holds but not their order (computed from the task, with nothing "
        f"fitted).{jumps} Ours are medians of the number of runs in brackets."
    )


def by_length(
    name: str, lengths: Sequence[int], lines: Sequence[Sequence[str]], align: str = RIGHT
) -> str:
    """A Markdown table with a column for each N."""
    return markdown_table([name, *(f"N = {n}" for n in lengths)], lines, align)
