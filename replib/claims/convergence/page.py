"""What notebook 1 alone shows: learning curves in words, and trained models that copy."""

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import altair as alt
import marimo as mo
import polars as pl
import torch

from replib.claims.common import BOTH, laptop_copy, laptop_model
from replib.generation import copy_with
from replib.lab.run import TrainingJob, config_of
from replib.lab.store import Row
from replib.lab.text import LEFT, markdown_table, sizes_text
from replib.pages import curves, drawn, style, tidy
from replib.pages.attention_maps import recorded_inputs, weights
from replib.pages.layout import callout, grid, plain, styled
from replib.pages.live import LiveRuns
from replib.pages.processor import in_passing_thread
from replib.published import published
from replib.tasks import CausalCopy, SequenceCopy, Task
from replib.training import Training, n_parameters

TASKS = {"causal copy": CausalCopy, "encoder-decoder copy": SequenceCopy}
N_EARLIER = 2  # runs of other settings that stay in the chart
FIRST_LETTER = ord("a")
NOT_TRAINED = "*There is no trained model of these settings yet: let them run first.*"


def live_jobs(values: Mapping[str, Any]) -> list[TrainingJob]:
    """The runs that the controls ask for; a run per mechanism and seed. They are looked at oftener
    than recorded ones: a reader waits for the first point."""
    task = TASKS[values["task"]](seq_len=values["seq_len"])
    sizes = {
        "n_layers": values["n_layers"],
        "n_heads": values["n_heads"],
        "d_model": values["n_heads"] * values["head_dim"],
        "d_feedforward": 2 * values["n_heads"] * values["head_dim"],
    }
    return [
        TrainingJob(
            config=laptop_copy(
                attention,
                values["seq_len"],
                values["n_steps"],
                task=task,
                model=replace(laptop_model(attention), **sizes),
                batch_size=values["batch_size"],
                lr=values["lr"],
                eval_every=max(1, min(10, values["n_steps"] // 10)),
            ),
            seed=seed,
        )
        for seed in range(values["seeds"])
        for attention in values["attention"]
    ]


def sizes(values: Mapping[str, Any]) -> mo.Html:
    """What follows from the settings before anything runs."""
    try:
        jobs = live_jobs(values)
    except ValueError:
        return mo.md("")
    if not jobs:
        return mo.md("")
    config = jobs[0].config
    n, d = config.task.seq_len, config.model.head_dim
    symbols = trained_lengths(config.task)
    return mo.md(
        f"{symbols[0]} to {symbols[-1]} symbols to copy. A model has "
        f"**{n_parameters(config):,}** parameters. In each head softmax "
        f"weighs N² = **{n * n:,}** pairs; linear attention carries S and z along, D² + D = "
        f"**{d * d + d:,}** numbers, whatever N is."
    )


@drawn.once
def recorded_charts(rows: Sequence[Row]) -> dict[str, alt.LayerChart]:
    """By title: loss and accuracy while models learn, and where each seed ends."""
    frame = tidy.training_curves(rows)
    learning = {
        y.capitalize(): curves.learning_curves(
            frame, y=y, title=f"{y.capitalize()} while learning to copy"
        )
        for y in ("loss", "accuracy")
    }
    ends = curves.seeds_chart(tidy.training_summaries(rows), title="Where each seed ended")
    return learning | {"Every seed": ends}


@drawn.once
def sequence_copy(rows: Sequence[Row]) -> dict[str, mo.Html]:
    """The task of the 2022 replication: final losses beside its own, and how they came about."""
    title = "Loss on the sequence-to-sequence copy task"
    chart = curves.learning_curves(tidy.training_curves(rows), title=title)
    table = mo.md(sequence_copy_table(rows))
    return {"The 2022 replication's task": mo.vstack([table, chart])}


def curves_behind(recorded: Mapping[str, Sequence[Row]], values: Mapping[str, Any]) -> pl.DataFrame:
    """The recorded curves of the task and length that the controls ask for, none where there are
    none."""
    rows = recorded[TASKS[values["task"]].experiment]
    alike = (row for row in rows if config_of(row).task.seq_len == values["seq_len"])
    return tidy.training_curves(
        row for row in alike if config_of(row).model.attention in values["attention"]
    )


def curves_before(live: LiveRuns, shown: Sequence[Row]) -> pl.DataFrame:
    """The curves of the last runs of this session with other settings."""
    now = {row["run_id"] for row in shown}
    ended = {row["run_id"]: row for row in live.finished if row["run_id"] not in now}
    return tidy.training_curves(list(ended.values())[-N_EARLIER * len(BOTH) :])


def title_of(shown: pl.DataFrame, behind: pl.DataFrame | None = None) -> str:
    """What shown runs have come to, and their settings; those of the recorded curves behind them
    where they differ."""
    if shown.is_empty():
        return "Nothing has run yet" if behind is None or behind.is_empty() else "Recorded runs"
    learned = (
        shown.filter(pl.col("accuracy") >= style.SOLVED_ACCURACY)
        .group_by("attention")
        .agg(pl.min("step"))
        .sort("step")
    )
    found = ", ".join(f"{name} at step {step}" for name, step in learned.iter_rows())
    settings = _settings(shown)
    others = [] if behind is None else [one for one in _settings(behind) if one not in settings]
    title = f"N = {shown['seq_len'][0]}, {settings[0]}"
    title += f" (recorded: {'; '.join(others)})" * bool(others)
    return f"{style.SOLVED_ACCURACY:z.0%} right: {found}. {title}" if found else title


def _settings(curves: pl.DataFrame) -> list[str]:
    """The steps, batch and models of curves in words, each once."""
    names = ("n_steps", "batch_size", "n_layers", "n_heads", "d_model")
    return [
        f"{n_steps} steps, batch {batch_size}, {sizes_text(n_layers, n_heads, d_model // n_heads)}"
        for n_steps, batch_size, n_layers, n_heads, d_model in curves.select(names)
        .unique(maintain_order=True)
        .iter_rows()
    ]


def copies(
    live: LiveRuns, jobs: Sequence[TrainingJob], text: str, drawing: int, device: str
) -> mo.Html:
    """A sequence, what each trained model of the jobs makes of it, symbol by symbol, and where it
    looks while it copies. Letters stand for symbols, a for 1; without a text a sequence of a length
    that the models were trained on is drawn, the `drawing`-th."""
    if not jobs:
        return mo.md(NOT_TRAINED)
    task = jobs[0].config.task
    try:
        symbols = _symbols(task, text.strip().lower(), random.Random(drawing))
        return in_passing_thread(_copied, live, jobs, symbols, device)
    except ValueError as error:
        return callout(str(error))


def _copied(
    live: LiveRuns, jobs: Sequence[TrainingJob], symbols: list[int], device: str
) -> mo.Html:
    """To be called in a thread that ends: the models compute."""
    models: dict[str, Training] = {}
    for job in jobs:
        if training := live.model(job, device):
            models.setdefault(job.config.model.attention, training)
    if not models:
        return mo.md(NOT_TRAINED)
    task, rows, looks = jobs[0].config.task, {"given": symbols}, []
    for name, training in models.items():
        given = torch.tensor([symbols], device=training.device)
        produced = copy_with(training.model, task, given)
        rows[name] = produced[0].tolist()
        if isinstance(task, CausalCopy):
            tokens = torch.cat([given, given.new_zeros(1, 1), produced[:, :-1]], dim=1)
            taken = attention_weights(training, tokens)[len(symbols) :]
            looks.append(_looks_chart(name, taken, symbols, rows[name]))
    body = "".join(_copy_row(name, made, symbols) for name, made in rows.items())
    shown = [styled(f'<table aria-label="copies" class="r-copies">{body}</table>')]
    trained = trained_lengths(task)
    if len(symbols) not in trained:
        lengths = f"{trained[0]} to {trained[-1]}" if len(trained) > 1 else f"{trained[0]}"
        count = "1 symbol" if len(symbols) == 1 else f"{len(symbols)} symbols"
        shown.append(plain(f"{count}: the models were trained on {lengths}."))
    if looks:
        shown.append(grid(looks, "17rem"))
    return mo.vstack(shown)


def trained_lengths(task: Task) -> range:
    """The numbers of symbols that a task draws."""
    if isinstance(task, CausalCopy):
        return task.lengths
    return range(task.seq_len - 2, task.seq_len - 1)


def _symbols(task: Task, text: str, drawn: random.Random) -> list[int]:
    if not text:
        n = drawn.choice(trained_lengths(task))
        return [drawn.randint(1, task.n_symbols) for _ in range(n)]
    symbols = [ord(letter) - FIRST_LETTER + 1 for letter in text]
    if not all(1 <= symbol <= task.n_symbols for symbol in symbols):
        raise ValueError(f"{text!r}: type letters from a to {_letter(task.n_symbols)} only")
    return symbols


def _letter(symbol: int) -> str:
    return chr(FIRST_LETTER + symbol - 1) if 1 <= symbol <= 26 else "·"


def _copy_row(name: str, produced: list[int], given: list[int]) -> str:
    made = [*produced, *[0] * len(given)][: len(given)]
    letters = "".join(
        f"<span{' class=r-wrong' * (symbol != right)}>{_letter(symbol)}</span>"
        for symbol, right in zip(made, given, strict=True)
    )
    n_right = sum(symbol == right for symbol, right in zip(made, given, strict=True))
    return (
        f'<tr><th scope="row">{name}</th><td>{n_right} of {len(given)} right</td>'
        f"<td>{letters}</td></tr>"
    )


@torch.no_grad()
def attention_weights(training: Training, tokens: torch.Tensor) -> torch.Tensor:
    """How much each position takes from each, (N, N), in the head of the sharpest weights."""
    training.model.eval()
    with recorded_inputs(training.model) as inputs:
        training.model(tokens)
    found = [weights(mechanism, *qk, causal=True)[0] for mechanism, qk in inputs.items()]
    heads = torch.cat(found)  # (layers · H, N, N)
    return heads[heads[:, tokens.shape[1] // 2 :].amax(-1).mean(-1).argmax()]


def _looks_chart(
    name: str, weights: torch.Tensor, given: Sequence[int], produced: Sequence[int]
) -> alt.LayerChart:
    """Rows: what is written; columns: what came before. A copying head has a diagonal."""
    came = [*given, 0, *produced]
    cells = [
        {"written": i, "letter": _letter(symbol), "at": j, "from": _letter(came[j]), "weight": w}
        for i, (symbol, row) in enumerate(zip(produced, weights.tolist(), strict=True))
        for j, w in enumerate(row)
    ]
    chart = (
        alt.Chart(style.records_of(pl.DataFrame(cells)))
        .mark_rect(color=style.colour(name))
        .encode(
            alt.X("at:O", title="looks at position", axis=alt.Axis(labelAngle=0)),
            alt.Y("written:O", title="writes symbol"),
            opacity=alt.Opacity("weight:Q", legend=None, scale=alt.Scale(range=[0, 1])),
            tooltip=["letter:N", "from:N", "weight:Q"],
        )
    )
    title = f"{name}: where its sharpest head looks"
    description = "A row a symbol that is written, a column a position that it takes from."
    return style.finished(alt.layer(chart), title, "", description, style.HEIGHT // 2)


def sequence_copy_table(rows: Sequence[Row]) -> str:
    """Final losses on the article's task, its own beside those recorded here, as Markdown."""
    article, lines = published()["dm2022"], []
    losses = article["loss_scale"]["nats_per_token"]
    for name in BOTH:
        cells = [f"{losses[name][str(n)]:z.2f}" for n in article["N"]]
        lines.append([f"2022 article, {name}", *cells])
    for name in BOTH:
        lines.append([f"here, {name}", *(_median_loss(rows, name, n) for n in article["N"])])
    table = markdown_table(["loss", *(f"N = {n}" for n in article["N"])], lines, LEFT)
    return (
        "An encoder reads the sequence and a decoder writes it again. Here the decoder cannot see "
        "what it has yet to write; in the article's code it could (found by reading it, not by "
        "running it), which would explain its zeros. Loss after "
        f"{article['steps']} steps in nats a token; the article's is our reading of its figures, "
        f"divided by the batch that we infer; ours is the median of the seeds:\n\n{table}"
    )


def _median_loss(rows: Sequence[Row], attention: str, seq_len: int) -> str:
    losses = [
        row["summary"]["final_loss"]
        for row in rows
        if config_of(row).model.attention == attention
        and config_of(row).task.seq_len == seq_len
        and row["summary"].get("final_loss") is not None
    ]
    return f"{statistics.median(losses):z.4f} ({len(losses)} seeds)" if losses else "–"
