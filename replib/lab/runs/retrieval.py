"""Memories of associative retrieval that are trained together, and a row a seed."""

from collections.abc import Iterator
from datetime import UTC, datetime
from time import perf_counter

from replib.fast_weights import RetrievalMetrics
from replib.lab import store
from replib.lab.run import Glimpse, RetrievalJob, Where
from replib.lab.runs import checkpointed

REMEDY = "batch_size or n_keys"
# Most runs have solved it by then, or make no more progress.
TYPICAL_STEPS = 3000


def execute(job: RetrievalJob, where: Where) -> Iterator[store.Row]:
    """Train the seeds together, from a checkpoint where there is one, and make their rows. Of seeds
    that were stopped those that have not ended: the others are in the checkpoint, and the same
    seeds go on together, as others beside a seed may change its sums."""
    started, began, config = datetime.now(UTC), perf_counter(), job.config
    checkpoint = checkpointed.path_of(job, where.device)
    training = checkpointed.begun(
        lambda: config.training(seeds=job.seeds, device=where.device), checkpoint
    )
    expected = min(config.n_steps, TYPICAL_STEPS)
    seeds = f", {len(job.seeds)} seeds" if len(job.seeds) > 1 else ""
    who = f"{_words(job)}, S = {config.task.n_keys}{seeds}"

    def rows(unfinished: str = "interrupted", detail: str | None = None) -> list[store.Row]:
        return [
            store.make_row(
                where.experiment,
                where.scale,
                config,
                seed.seed,
                seed.outcome or unfinished,
                training.summary(seed.seed)
                | {"seconds": perf_counter() - began, "seeds_together": len(job.seeds)},
                curve={"step": list(seed.steps), "loss": list(seed.losses)},
                detail=None if seed.outcome else detail,
                device=str(training.device),
                started=started,
            )
            for seed in training.seeds
        ]

    def watch(metrics: RetrievalMetrics) -> None:
        text = (
            f"{who}: step {metrics.step} of at most {config.n_steps}, loss {metrics.loss:z.4f}, "
            f"{metrics.steps_per_s:z.0f} steps/s"
        )
        share = metrics.step / max(metrics.step, expected)
        where.watch(Glimpse(share, text, rows, training, metrics))

    where.watch(Glimpse(0.0, f"{who}: first steps (a kernel is compiled once)", list, training))
    with checkpointed.threads_of(training):
        _, detail = checkpointed.train(training, checkpoint, where.stop, watch, REMEDY)
        made = rows("out_of_memory" if detail else "interrupted", detail)
    stopped = [row for row in made if row["outcome"] == "interrupted"]
    yield from stopped if stopped and checkpoint.exists() else made


def _words(job: RetrievalJob) -> str:
    """The features and the update rule of a memory; softmax has none."""
    model = job.config.model
    text = " ".join(filter(None, model.variant))
    return text if model.attention == "softmax" else f"{text}, {model.update_rule}"
