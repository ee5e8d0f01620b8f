"""A training, and its row."""

from collections.abc import Iterator
from datetime import UTC, datetime

from replib.lab import kept_models, store
from replib.lab.run import Glimpse, TrainingJob, Where
from replib.lab.runs import checkpointed, language_model, translation
from replib.lab.statistics import count_spikes
from replib.language_model import LanguageModelTraining
from replib.tasks.translation import Translating
from replib.training import Metrics

SOLVED_ACCURACY = 0.99  # a copy task counts as learned from here on
CURVE = ("step", "train_loss", "loss", "accuracy")
REMEDY = "batch_size, seq_len or d_model"


def execute(job: TrainingJob, where: Where) -> Iterator[store.Row]:
    """Train, from a checkpoint where there is one, and make the row."""
    started, config = datetime.now(UTC), job.config
    checkpoint = checkpointed.path_of(job, where.device)
    training = checkpointed.begun(
        lambda: config.training(seed=job.seed, device=where.device), checkpoint
    )

    def row(outcome: str = "interrupted", detail: str | None = None) -> store.Row:
        history = list(training.history)
        loss = history[-1].loss if history else None
        return store.make_row(
            where.experiment,
            where.scale,
            config,
            job.seed,
            outcome,
            summary_of(history) | config.task.figures_of(loss),
            curve={key: [getattr(m, key) for m in history] for key in CURVE},
            detail=detail,
            device=str(training.device),
            started=started,
        )

    def watch(metrics: Metrics) -> None:
        text = (
            f"{_who(job)}: step {metrics.step} of {config.n_steps}, "
            f"loss {metrics.loss:z.3f} nats a token, accuracy {metrics.accuracy:z.1%}, "
            f"{metrics.steps_per_s:z.0f} steps/s"
        )
        where.watch(
            Glimpse(metrics.step / config.n_steps, text, lambda: [row()], training, metrics)
        )

    where.watch(Glimpse(0.0, f"{_who(job)}: first steps", list, training))
    with checkpointed.threads_of(training):
        last, detail = checkpointed.train(training, checkpoint, where.stop, watch, REMEDY)
        outcome = "out_of_memory" if detail else (last and last.outcome) or "interrupted"
        made = row(outcome, detail)
        if outcome == "ok" and isinstance(config.task, Translating):
            made["summary"] |= translation.scores(training)
        if outcome == "ok" and isinstance(training, LanguageModelTraining):
            made["summary"] |= language_model.scores(training)
    if job.keep and outcome == "ok":
        (where.keep or kept_models.keep_model)(training, made)
    yield made


def _who(job: TrainingJob) -> str:
    """The mechanism of a run, how many defects it has, and its seed."""
    n = len(getattr(job.config, "defects", ()))
    defects = f" with {n} defect{'s' * (n > 1)}" if n else ""
    return f"{job.config.model.attention}{defects}, N = {job.config.task.seq_len}, seed {job.seed}"


def summary_of(history: list[Metrics]) -> dict:
    """The figures of a run: losses in nats a token, accuracies as shares of tokens."""
    if not history:
        return {"n_steps": 0}
    last = history[-1]
    solved = [m.step for m in history if m.accuracy >= SOLVED_ACCURACY]
    return {
        "n_steps": last.step,
        "final_loss": last.loss,
        "final_accuracy": last.accuracy,
        "best_loss": min(m.loss for m in history),
        "steps_to_solved": solved[0] if solved else None,
        "n_spikes": count_spikes([m.loss for m in history]),
        "steps_per_s": last.steps_per_s,
    }
