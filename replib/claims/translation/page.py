"""What only the notebook of Linformer shows: a translator of numbers that is trained on the page,
and what it attends to."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import marimo as mo
import torch

from replib.attention import linformer_attention, softmax_attention
from replib.claims.claim import Recorded
from replib.claims.linformer import charts as of_linformer
from replib.claims.linformer.probes import (
    PADDING,
    errors_of_rank,
    leak,
    padding_change,
    projections,
    slots_masked,
    spectrum,
)
from replib.claims.linformer.stack import n_matrices
from replib.claims.translation.grid import linformer, number_config
from replib.claims.translation.maps import Translated, translated
from replib.lab.run import TrainingJob
from replib.lab.store import Row
from replib.lab.text import markdown_table
from replib.lab.timing import WORKS
from replib.pages import drawn, layout, style, tidy
from replib.pages.costs import cost_chart
from replib.pages.live import LiveRuns
from replib.pages.processor import in_passing_thread
from replib.published import published
from replib.tasks.number_words import words_of

FIGURES = {  # by the title of their tab
    "Times faster": "linformer_saved",
    "Time": "linformer_time",
    "Memory": "linformer_memory",
    "BLEU": "translation_bleu",
    "Long sentences": "translation_length",
    "Number words": "number_words",
}
SCORES = {  # of the Linformer work: as it printed them, and of the same outputs as a corpus
    "ppl": "perplexity",
    "bleu_published": "BLEU as printed",
    "bleu_recomputed": "BLEU of the corpus",
    "chrf2_recomputed": "chrF2",
}
ATTENTIONS = ("softmax", "linear", "linformer")
EXAMPLE = "4,321"
PROBE_N, PROBE_K = 12, 4


def live_jobs(values: Mapping[str, Any]) -> list[TrainingJob]:
    """A translator of number words for each mechanism of the controls."""
    how = {"softmax": {"attention": "softmax"}, "linear": {"attention": "linear"}}
    how["linformer"] = linformer(values["k"])
    return [
        TrainingJob(
            config=number_config(how[name], values["n_steps"], batch_size=values["batch_size"]),
            seed=0,
        )
        for name in values["attention"]
    ]


def translations(
    live: LiveRuns, jobs: Sequence[TrainingJob], typed: str, device: str | None = None
) -> dict[str, Translated]:
    """What each trained model of the jobs makes of a typed number or date; none before one has
    been trained.

    Raises:
        ValueError: it is neither.
    """
    english, _ = words_of(typed or EXAMPLE)
    found = {}
    for job in jobs:
        training = live.model(job, device)
        if training is not None:
            made = in_passing_thread(translated, training, english)
            found[job.config.model.attention] = made
    return found


def answers(made: Mapping[str, Translated], typed: str) -> mo.Html:
    """The translations beside what is right, each token as dark as it was sure."""
    english, pieces = words_of(typed or EXAMPLE)
    right = "".join(pieces).strip()
    rows = [
        f'<tr><th scope="row">English</th><td></td><td>{html.escape(english)}</td></tr>',
        f'<tr><th scope="row">German</th><td></td><td>{html.escape(right)}</td></tr>',
    ]
    for name, one in made.items():
        mark = "right" if one.text == right else "wrong"
        tokens = "".join(
            f'<span title="{share:z.0%} sure" style="opacity:{0.35 + 0.65 * share:z.2f}">'
            f"{html.escape(piece)}</span>"
            for piece, share in zip(one.target, one.confidence.tolist(), strict=True)
            if piece != "</s>"
        )
        rows.append(f'<tr><th scope="row">{name}</th><td>{mark}</td><td>{tokens}</td></tr>')
    return layout.styled(
        f'<table aria-label="translations" class="r-copies">{"".join(rows)}</table>'
    )


def cross_maps(made: Mapping[str, Translated]) -> mo.Html:
    """Which source tokens each target token took, a tab a mechanism."""
    if not made:
        return mo.md("*Train a model below: its cross-attention appears here.*")
    return mo.ui.tabs(
        {
            name: of_linformer.matrix_chart(
                one.cross,
                title=f"What {name} read of the source for each piece of German",
                subtitle="mean of heads and layers; orange: below 0",
                rows=[piece.strip() for piece in one.target],
                columns=one.source,
                colour=style.colour(name),
            )
            for name, one in made.items()
        }
    )


def own_maps(
    live: LiveRuns, jobs: Sequence[TrainingJob], made: Mapping[str, Translated], device: str | None
) -> mo.Html:
    """The n x n attention of the encoder beside the n x k one, the rows of E and F, and how much of
    the first a low rank holds."""
    if "softmax" not in made and "linformer" not in made:
        return mo.md("*Train softmax or Linformer above: their matrices appear here.*")
    parts: dict[str, Any] = {}
    if "softmax" in made:
        one = made["softmax"]
        parts["N × N of softmax"] = of_linformer.matrix_chart(
            one.encoder,
            title="What each word of the source takes of the others, softmax",
            rows=one.source,
            columns=one.source,
            colour=style.colour("softmax"),
        )
        weights = one.encoder.double()
        values = torch.randn(len(weights), 16, generator=torch.Generator().manual_seed(0))
        ks = list(range(1, len(weights) + 1))
        parts["Rank"] = of_linformer.spectrum_chart(
            spectrum(weights), errors_of_rank(weights, values, ks)
        )
    if "linformer" in made:
        one = made["linformer"]
        parts["Linformer"] = of_linformer.matrix_chart(
            one.encoder,
            title="What each word takes of the others through the k slots, Linformer",
            subtitle="the (N, k) weights times F; orange: below 0",
            rows=one.source,
            columns=one.source,
        )
        job = next(job for job in jobs if job.config.model.attention == "linformer")
        attention = live.model(job, device).model.encoder[-1].self_attention.attention
        n = len(one.source)
        for name, matrix in zip("EF", attention.matrices, strict=True):
            parts[f"Rows of {name}"] = of_linformer.matrix_chart(
                matrix.detach()[:, :n],
                title=f"{name}: what each slot sums of the {'keys' if name == 'E' else 'values'}",
                columns=one.source,
                y_title="slot",
            )
    return mo.ui.tabs(parts)


def leak_probe() -> mo.Html:
    """Of a causal mask over positions and over slots."""
    n, k = PROBE_N, PROBE_K
    e, f = projections(n, k)
    ways = {
        "softmax, causal": softmax_attention,
        "Linformer, a causal mask over its slots": slots_masked(n, k),
        "Linformer": lambda *qkv: linformer_attention(*qkv, e, f),
    }
    shown = {}
    for name, attend in ways.items():
        seen = leak(attend, n)
        future = (seen.triu(1) > 1e-12).sum().item()
        shown[name] = of_linformer.matrix_chart(
            seen,
            title=f"{name}: {future} of {n * (n - 1) // 2} future values reach an output",
            subtitle="how much output i (down) changes with value j (across)",
            x_title="value j",
            y_title="output i",
        )
    return mo.ui.tabs(shown)


def padding_probe() -> mo.Html:
    """How much padding changes real outputs, by where it is hidden."""
    lines = [
        [how, *(f"{padding_change(how, PROBE_N, n, PROBE_K):z.1%}" for n in (1, 4, 12))]
        for how in PADDING
    ]
    head = ["padding is", "1 token of it", "4 tokens", "12 tokens"]
    return mo.md(
        f"Largest change of the outputs of {PROBE_N} real tokens, over the largest output, where "
        f"padding is put behind them (k = {PROBE_K}):\n\n{markdown_table(head, lines)}"
    )


def sharing_table(n: int, k: int) -> mo.Html:
    """Matrices and parameters of each way to share them, of the paper's 12 layers of 12 heads."""
    lines = [
        [sharing, f"{n_matrices(sharing):,}", f"{n_matrices(sharing) * n * k / 1e6:z.3g} M"]
        for sharing in ("none", "headwise", "key-value", "layerwise")
    ]
    head = ["shared", "matrices", "parameters"]
    return mo.md(
        f"Matrices E and F of 12 layers with 12 heads, N = {n:,}, k = {k}:\n\n"
        f"{markdown_table(head, lines)}"
    )


@drawn.once
def recorded_charts(*claims: Recorded) -> dict[str, alt.LayerChart]:
    """What is recorded of this page's claims, by title."""
    figures = {name: one for claim in claims for name, one in claim.figures.items()}
    return {title: figures[name].chart for title, name in FIGURES.items()}


@drawn.once
def every_time(rows: Sequence[Row]) -> dict[str, alt.LayerChart]:
    """Time against N of each work."""
    title = "Time of attention that is not causal, per sequence"
    costs = {work: tidy.pooled(tidy.costs(of_linformer.shown(rows, work))) for work in WORKS}
    return {work.replace("_", " and "): cost_chart(one, title=title) for work, one in costs.items()}


def published_table() -> mo.Html:
    """The scores of the Linformer work as printed and as a corpus."""
    lines = [
        [name, *(f"{row[figure]:z.2f}" for figure in SCORES)]
        for name, row in published()["linformer_project"]["table"].items()
    ]
    return mo.md(
        "The Linformer work called `corpus_bleu(cands, [[s] for s in refs])`, which takes all "
        "references for those of the first sentence, and scores that alone. Its own outputs scored "
        "by `corpus_bleu(cands, [refs])` come in the order of their perplexities:\n\n"
        f"{markdown_table(['model', *SCORES.values()], lines)}"
    )
