"""What only the notebook of language models shows: character models that are trained on the page,
and text that they write."""

import html
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import altair as alt
import marimo as mo
import polars as pl
import torch

from replib.claims.claim import Recorded
from replib.claims.language_model.charts import axis_name
from replib.claims.language_model.grid import AXES, character_config
from replib.generation import Decoder, sampled, stream
from replib.lab.run import TrainingJob
from replib.lab.text import markdown_table
from replib.pages import drawn, layout, style
from replib.pages.controls import Control
from replib.pages.live import LiveRuns
from replib.pages.processor import on_one_core
from replib.published import published
from replib.tasks.text import Text
from replib.training import Training

FIGURES = {  # by the title of their tab
    "Perplexity": "text_perplexity",
    "Context": "text_position",
    "Study's defects": "text_defects",
    "Update rules": "text_rules",
    "Carried state": "text_carry",
    "Along segments": "text_segments",
    "State size": "text_state",
}
POSITIONS = {"sinusoids": "concatenated", "none": "none", "by batch row": "batch row"}
PROMPT, N_DRAWN = "ROMEO:\n", 240
N_BARS = 10
OTHER_TOKENS = {  # of the study's models that compare with none of the others
    "Sparse": "words, seen from both sides (a masked model)",
    "Reformer (pretrained, subword)": "subwords, pretrained",
}
CHOICES = (
    Control("temperature", "Temperature", (0.2, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5), 0.7),
    Control("top_k", "Top k (0: all)", (0, 1, 2, 5, 10, 20), 0),
    Control("draw_seed", "Seed", tuple(range(20)), 0),
)
SHOWN = {" ": "␣", "\n": "⏎"}  # of characters that cannot be seen
_TAKES = itertools.count()  # an animation of a new name begins anew, though its page is the same


def live_jobs(values: Mapping[str, Any]) -> list[TrainingJob]:
    """A character model for each mechanism of the controls."""
    kept = ("n_layers", "n_heads", "batch_size", "lr", "embedding_dropout")
    sizes = {name: values[name] for name in kept}
    return [
        TrainingJob(
            config=character_config(
                attention,
                values["n_steps"],
                task=Text(seq_len=values["seq_len"]),
                positions=POSITIONS[values["positions"]],
                eval_batches=16,
                **sizes,
            ),
            seed=0,
        )
        for attention in values["attention"]
    ]


@dataclass(frozen=True)
class Written:
    """What a model wrote.

    Attributes:
        prompt: what it was given; tokens: those that it drew.
        likeliest: before each of them, the likeliest tokens with their probabilities at the
            temperature, of all or of the top k.
        token_ms: mean time of a token.
        trained: after how many steps of its run, where it was stopped before the last.
    """

    prompt: str
    tokens: list[str]
    likeliest: list[list[tuple[str, float]]]
    token_ms: float
    trained: str


@torch.inference_mode()
def write(
    training: Training, prompt: str, temperature: float, top_k: int | None, seed: int, n: int
) -> Written:
    """Draw n tokens from a trained model, each from its state and the token before it. Where its
    sequence length is reached it goes on from the last half, as it has seen no later positions.

    Raises:
        ValueError: the prompt has a character that the training text has not.
    """
    task, model = training.config.task, training.model
    vocabulary = task.text.vocabulary
    prompt = prompt or "\n"
    ids = vocabulary.encode(prompt).tolist()
    if 0 in ids:
        unknown = prompt[ids.index(0)]
        raise ValueError(f"{unknown!r} is in no line of {task.corpus}: leave it out")
    generator = torch.Generator(training.device).manual_seed(seed)
    draw, likeliest = sampled(generator, temperature=temperature, top_k=top_k), []

    def choose(logits: torch.Tensor) -> torch.Tensor:
        shares = (logits[0].float() / temperature).softmax(-1)
        top = shares.topk(min(top_k or N_BARS, N_BARS, len(shares)))
        pieces = vocabulary.pieces(top.indices.tolist())
        likeliest.append(list(zip(pieces, top.values.tolist(), strict=True)))
        return draw(logits)

    first, began, half = len(ids), perf_counter(), max(1, task.seq_len // 2)
    model.eval()
    while len(ids) < first + n:
        given = torch.tensor([ids[-half:]], device=training.device)
        room = min(max(1, task.seq_len - given.shape[1]), first + n - len(ids))
        tokens = stream(Decoder(model, 1), given, choose)
        ids += [int(token) for token in itertools.islice(tokens, room)]
    token_ms = 1000 * (perf_counter() - began) / n
    step, of = training.step, training.config.n_steps
    trained = f", stopped at step {step} of {of}" if step < of else ""
    return Written(prompt, vocabulary.pieces(ids[first:]), likeliest, token_ms, trained)


def written(
    live: LiveRuns,
    jobs: Sequence[TrainingJob],
    prompt: str,
    settings: Mapping[str, Any],
    device: str | None = None,
) -> dict[str, Written]:
    """What each model of the jobs whose run ended or was stopped writes after a prompt.

    Raises:
        ValueError: the prompt has a character that the text has not.
    """
    top_k = settings["top_k"] or None
    how = settings["temperature"], top_k, settings["draw_seed"], N_DRAWN
    found = {}
    for job in jobs:
        training = live.model(job, device)
        if training is not None:
            found[job.config.model.attention] = on_one_core(write, training, prompt, *how)
    return found


def texts(made: Mapping[str, Written]) -> mo.Html:
    """What was written, a token at a time."""
    if not made:
        return mo.md("*Each model writes here once its run has ended or been stopped.*")
    take, shown = next(_TAKES), []
    for name, one in made.items():
        drawn = "".join(
            f'<span class="r-drawn" style="--i:{i}">{html.escape(token)}</span>'
            for i, token in enumerate(one.tokens)
        )
        timed = "" if layout.in_static_page() else f", {one.token_ms:z.2g} ms a token"
        shown.append(
            f'<figure><figcaption><b style="color:{style.colour(name)}">{name}</b>'
            f"{one.trained}{timed}</figcaption>"
            f'<pre class="r-written"><b>{html.escape(one.prompt)}</b>{drawn}</pre></figure>'
        )
    return layout.styled(
        f"<style>@keyframes r-take{take} {{ from, to {{ visibility: hidden; }} }}</style>"
        f'<div class="r-grid" style="--least:15rem;--take:r-take{take}">{"".join(shown)}</div>'
    )


def bars(made: Mapping[str, Written], at: int) -> mo.Html:
    """The likeliest tokens before the at-th that each model drew, which is marked."""
    shown = []
    for name, one in made.items():
        i = min(at, len(one.tokens)) - 1
        before = (one.prompt + "".join(one.tokens[:i]))[-12:]
        shown.append(bars_chart(one.likeliest[i], one.tokens[i], name, before))
    return layout.grid(shown, "15rem") if shown else mo.md("")


def bars_chart(
    likeliest: Sequence[tuple[str, float]], drawn: str, name: str, before: str
) -> alt.LayerChart:
    """Probabilities of the next token."""
    lines = [
        {"token": _visible(token), "share": share, "drawn": token == drawn}
        for token, share in likeliest
    ]
    chart = (
        alt.Chart(style.records_of(pl.DataFrame(lines)))
        .mark_bar(color=style.colour(name))
        .encode(
            alt.X("share:Q", title="probability", axis=alt.Axis(format="~%", tickCount=3)),
            alt.Y("token:N", sort=None, title=None),
            opacity=alt.condition("datum.drawn", alt.value(1), alt.value(0.4)),
            tooltip=["token", alt.Tooltip("share", format=".1%")],
        )
    )
    title = f"{name}: after “{_visible(before)}”"
    description = "The probability of each of the likeliest next tokens; the drawn one is darker."
    return style.finished(alt.layer(chart), title, "", description, 16 * N_BARS)


def _visible(text: str) -> str:
    return "".join(SHOWN.get(character, character) for character in text)


@drawn.once
def recorded_charts(*claims: Recorded) -> dict[str, Any]:
    """What is recorded of this page's claims by title, what there are rows of; the axes of the
    study side by side, but for the first, which decides."""
    figures = {name: one for claim in claims for name, one in claim.figures.items()}
    first, *axes = [figures[axis_name(axis)] for axis in AXES]
    shown = {"Learning rate": first} | {title: figures[name] for title, name in FIGURES.items()}
    found = {title: one.chart for title, one in shown.items() if one.rows}
    if first.rows:
        found["Other axes of the study"] = layout.grid([one.chart for one in axes], "20rem")
    return found or {"Learning rate": first.chart}


def published_table() -> mo.Html:
    """The study's table of perplexities, in bits a byte where tokens are bytes, and what its rows
    cannot be compared with."""
    lines = []
    for name, of in published()["lm_study"]["ppl"].items():
        figures = [f"{of[corpus]:z.2f}" for corpus in ("wt2", "ptb", "enwik8")]
        bits = "–" if name in OTHER_TOKENS else f"{math.log2(of['enwik8']):z.2f}"
        lines.append([name, *figures, bits, OTHER_TOKENS.get(name, "words; bytes of enwik8")])
    head = ["model", "WikiText-2", "Penn Treebank", "enwik8", "bits a byte", "tokens"]
    return mo.md(
        "The language-model study has these perplexities in one table. Only rows of the same "
        "tokens, predicted from the left alone, can be compared; bits a byte compare any:\n\n"
        f"{markdown_table(head, lines)}"
    )
