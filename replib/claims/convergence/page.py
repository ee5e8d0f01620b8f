"""The parts of notebook 1: learning curves in words, and a sequence that trained models copy."""

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import marimo as mo
import polars as pl
import torch

from replib.claims.common import BOTH, laptop_copy, laptop_model
from replib.generation import copy_with
from replib.lab.run import TrainingJob, config_of
from replib.lab.store import Row
from replib.lab.text import LEFT, markdown_table
from replib.pages.controls import callout, plain, sizes_text, styled
from replib.pages.live import LiveRuns, in_passing_thread
from replib.published import published
from replib.tasks import CausalCopy, SequenceCopy, Task
from replib.training import Training

TASKS = {"causal copy": CausalCopy, "encoder-decoder copy": SequenceCopy}


def live_jobs(values: Mapping[str, Any]) -> list[TrainingJob]:
    """The runs that the controls ask for; a run per mechanism and seed."""
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
            ),
            seed=seed,
        )
        for seed in range(values["seeds"])
        for attention in values["attention"]
    ]


def recorded_behind(shown: pl.DataFrame, recorded: pl.DataFrame) -> pl.DataFrame | None:
    """The recorded curves to draw behind shown ones: those of the same length, if there are."""
    if shown.is_empty():
        return None
    return recorded.filter(pl.col("seq_len") == shown["seq_len"][0])


def title_of(shown: pl.DataFrame, behind: pl.DataFrame | None = None) -> str:
    """The settings of shown runs as a chart's title, and those of the recorded curves behind them
    where they differ."""
    if shown.is_empty():
        return "Nothing has run yet"
    settings = _settings(shown)
    title = f"N = {shown['seq_len'][0]}, {settings[0]}"
    others = [] if behind is None else [one for one in _settings(behind) if one != settings[0]]
    return f"{title} (recorded: {'; '.join(others)})" if others else title


def _settings(curves: pl.DataFrame) -> list[str]:
    """The batch and the models of curves in words, each once."""
    runs = curves.select("batch_size", "n_layers", "n_heads", "d_model").unique(maintain_order=True)
    return [
        f"batch {batch_size}, {sizes_text(n_layers, n_heads, d_model // n_heads)}"
        for batch_size, n_layers, n_heads, d_model in runs.iter_rows()
    ]


FIRST_LETTER = ord("a")


def copies(
    live: LiveRuns, jobs: Sequence[TrainingJob], text: str, n_shuffles: int, device: str
) -> mo.Html:
    """A sequence, and what each trained model of the jobs makes of it, symbol by symbol.

    The text holds letters, the first for symbol 1, shuffled where `n_shuffles` is not 0; without
    a text the sequence is drawn at random, of a length that the models were trained on.
    """
    none_yet = mo.md("*There is no trained model of these settings yet: run them first.*")
    if not jobs:
        return none_yet
    task = jobs[0].config.task
    try:
        symbols = _symbols(task, text.strip().lower(), random.Random(n_shuffles), n_shuffles > 0)
        produced = in_passing_thread(_produced, live, jobs, symbols, device)
    except ValueError as error:
        return callout(str(error))
    if not produced:
        return none_yet
    rows = {"given": symbols} | produced
    body = "".join(_copy_row(name, made, symbols) for name, made in rows.items())
    table = styled(f'<table aria-label="copies" class="r-copies">{body}</table>')
    trained = trained_lengths(task)
    if len(symbols) in trained:
        return table
    lengths = f"{trained[0]} to {trained[-1]}" if len(trained) > 1 else f"{trained[0]}"
    count = "1 symbol" if len(symbols) == 1 else f"{len(symbols)} symbols"
    return mo.vstack([table, plain(f"{count}: the models were trained on {lengths}.")])


def _produced(
    live: LiveRuns, jobs: Sequence[TrainingJob], symbols: list[int], device: str
) -> dict[str, list[int]]:
    """What the trained model of each mechanism makes of the symbols."""
    models = {job.config.model.attention: live.model(job, device) for job in reversed(jobs)}
    return {
        name: copy_with(t.model, t.config.task, _tensor(symbols, t))[0].tolist()
        for name, t in models.items()
        if t is not None
    }


def trained_lengths(task: Task) -> range:
    """The numbers of symbols that a task draws."""
    if isinstance(task, CausalCopy):
        return task.lengths
    return range(task.seq_len - 2, task.seq_len - 1)


def _symbols(task: Task, text: str, drawn: random.Random, shuffled: bool) -> list[int]:
    if not text:
        return [
            drawn.randint(1, task.n_symbols) for _ in range(drawn.choice(trained_lengths(task)))
        ]
    symbols = [ord(letter) - FIRST_LETTER + 1 for letter in text]
    if not all(1 <= symbol <= task.n_symbols for symbol in symbols):
        last = chr(FIRST_LETTER + task.n_symbols - 1)
        raise ValueError(f"{text!r}: type letters from a to {last} only")
    if shuffled:
        drawn.shuffle(symbols)
    return symbols


def _tensor(symbols: list[int], training: Training) -> torch.Tensor:
    return torch.tensor([symbols], device=training.device)


def _copy_row(name: str, produced: list[int], given: list[int]) -> str:
    letters = ""
    for i, symbol in enumerate(given):
        made = produced[i] if i < len(produced) else 0
        letter = chr(FIRST_LETTER + made - 1) if 1 <= made <= 26 else "·"
        letters += f"<span{' class=r-wrong' * (made != symbol)}>{letter}</span>"
    n_right = sum(a == b for a, b in zip(produced, given, strict=False))
    return (
        f'<tr><th scope="row">{name}</th><td>{n_right} of {len(given)} right</td>'
        f"<td>{letters}</td></tr>"
    )


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
        "## The 2022 replication's task\n\nAn encoder reads the sequence and a decoder writes it "
        "again. Here the decoder cannot see what it has yet to write; in the article's code it "
        "could (found by reading it, not by running it), which would explain its zeros. Loss "
        f"after {article['steps']} steps in nats a token; the article's is our reading of its "
        "figures, divided by the batch that we infer; ours is the median of the seeds:"
        f"\n\n{table}"
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
