"""Jobs are run and become rows; those of an experiment are stored, and none is run twice."""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import torch

from replib import files
from replib.claims.capacity.evaluation import MeansConfig, MeansTraining
from replib.claims.experiments import EXPERIMENTS, SCALES, SOLVED_ACCURACY, Experiment
from replib.device import resolve_device
from replib.fast_weights import RetrievalMetrics, RetrievalTraining
from replib.lab import kept_models, store
from replib.lab.memory_use import is_out_of_memory, release_memory
from replib.lab.run import (
    Config,
    CostJob,
    Job,
    RetrievalJob,
    TrainingJob,
    identity,
    is_generation,
    kind_of,
    on_device,
    run_ids,
    versions_of,
)
from replib.lab.runs.generation import measure_generation
from replib.lab.statistics import count_spikes
from replib.lab.timing import Cost, measure_cost
from replib.tasks.image_files import load_images
from replib.tasks.images import Pixels, bits, histogram_bits
from replib.training import Metrics, Training

CHECKPOINT_EVERY_S = 30.0  # what a killed run loses at most
TIMING = "timing"  # of the whole folder: two processes that time at once spoil both
MAX_SECONDS_PER_POINT = 20.0  # of timing; the slowest points get fewer repeats, never none


Run = TypeVar("Run", Training, RetrievalTraining)


def core_seconds(row: store.Row) -> float:
    """Seconds of one core that a training took, 0 where a row does not tell."""
    told, threads = row["summary"], row["provenance"]["threads"]
    if told.get("seconds") and told.get("seeds_together"):
        return threads * told["seconds"] / told["seeds_together"]
    if told.get("n_steps") and told.get("steps_per_s"):
        return threads * told["n_steps"] / told["steps_per_s"]
    return 0.0


def record(
    experiment: Experiment,
    scale: str,
    *,
    device: str | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_metrics: Callable[[Job, Metrics | RetrievalMetrics], None] = lambda job, metrics: None,
    retime_below: int = 0,
    recording: int = 0,
) -> Iterator[store.Row]:
    """Run the jobs that have no finished row on this kind of device yet, append each row to
    `data/` and yield it. A stopped or killed training resumes at its last checkpoint; one that
    another process is at is left to it, so that two processes share an experiment. Points that are
    timed together are timed again together where one of them is new; while one process times,
    another leaves all that to it, with a warning. A run whose images are not there is left out with
    a warning. One whose model is to be kept runs again where it is not.

    Args:
        retime_below: time again what has fewer samples than this and than its job asks for, where
            so many fit MAX_SECONDS_PER_POINT by the times that are recorded.
        recording: the number of a recording of costs, the `seed` of its rows. Several, each in a
            process of its own at another time, tell what varies between them.

    Raises:
        ValueError: unknown scale, no such device, or a recording above 0 of what is not repeated.
        FileError: a row cannot be written; what was recorded before stays.
    """
    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r}: use {', '.join(SCALES)}")
    if recording and not (experiment.repeated and recording > 0):
        raise ValueError(
            f"recording {recording} of {experiment.name}: use 0, or a higher number for "
            f"{', '.join(one.name for one in EXPERIMENTS.values() if one.repeated)}"
        )
    device_type = resolve_device(device).type
    if why_not := files.writable(files.data_folder()):
        raise files.FileError(why_not)

    def finished() -> dict[str, store.Row]:
        return {
            row["run_id"]: row
            for row in store.read_rows(experiment.name)
            if row["outcome"] != "interrupted"
            and row["provenance"]["device"].split(":")[0] == device_type
        }

    def done() -> set[str]:
        return set(finished())

    files.remove_leftovers(checkpoint_path("", device_type).parent)
    with ExitStack() as claims:
        times: bool | None = None  # whether this process may take times
        for job in (on_device(job, device_type) for job in experiment.jobs(scale)):
            if stop():
                return
            if isinstance(job, CostJob):
                if times is None:
                    times = claims.enter_context(store.claimed(f"{TIMING} {device_type}"))
                    if not times:
                        warnings.warn(
                            f"{experiment.name} is left to another process that takes times in "
                            f"{files.data_folder()}: run this again when it has ended",
                            stacklevel=2,
                        )
                rows = finished() if times else {}
                runs = [rows.get(identity(config, recording, cost=True)) for config in job.configs]
                if not times or (
                    all(runs) and not _too_few_samples(runs, min(retime_below, job.n_repeats))
                ):
                    continue
                for row in run_cost(experiment.name, scale, job, device, stop, recording=recording):
                    store.append(experiment.name, row)
                    yield row
                continue
            if not _to_run(job, done()):
                continue
            if why_not := missing_images(job.config):
                warnings.warn(f"{job.config.model.attention} is left out: {why_not}", stacklevel=2)
                continue
            with store.claimed(f"{run_ids(job)[0]} {device_type}") as ours:
                # What another process has finished since is not run again.
                seeds = _to_run(job, done()) if ours else ()
                if not seeds:
                    continue
                if isinstance(job, TrainingJob):
                    rows = [run_training(experiment.name, scale, job, device, stop, on_metrics)]
                else:
                    job = replace(job, seeds=seeds)
                    rows = run_retrieval(experiment.name, scale, job, device, stop, on_metrics)
                    rows = _to_store(job, rows, device_type)
                # The rows of seeds that ran together in one write: all of them, or none.
                store.append_rows(experiment.name, rows)
                discard_checkpoint(job, rows)
            yield from rows


def _too_few_samples(rows: Sequence[store.Row], least: int) -> bool:
    """Whether points that are timed together lack samples that there is time for."""
    samples = [row["summary"]["time_ms_samples"] for row in rows if row["outcome"] == "ok"]
    if all(len(some) >= least for some in samples):
        return False
    round_s = sum(max(some) for some in samples) / 1000
    return (1 + least) * round_s <= MAX_SECONDS_PER_POINT * len(samples)  # one warms up


def _to_run(job: TrainingJob | RetrievalJob, done: set[str]) -> tuple[int, ...]:
    """The seeds of a job that have no finished row, or whose model is to be kept and is not."""
    seeds = (job.seed,) if isinstance(job, TrainingJob) else job.seeds
    keep = isinstance(job, TrainingJob) and job.keep
    return tuple(
        seed
        for seed, run in zip(seeds, run_ids(job), strict=True)
        if run not in done or (keep and kept_models.kept_run(job.config.model) != run)
    )


def _to_store(job: RetrievalJob, rows: list[store.Row], device_type: str) -> list[store.Row]:
    """Of seeds that ran together and were stopped those that have not ended: the others are in the
    checkpoint, and the same seeds go on together, as others beside a seed may change its sums."""
    stopped = [row for row in rows if row["outcome"] == "interrupted"]
    return stopped if stopped and _checkpoint_of(job, device_type).exists() else rows


def missing_images(config: Config) -> str | None:
    """Why the images that a run is trained on cannot be read; None where they can."""
    if isinstance(getattr(config, "task", None), Pixels):
        try:
            load_images(config.task.images)
        except ValueError as error:
            return str(error)
    return None


def _begun(make: Callable[[], Run], checkpoint: Path) -> Run:
    """A training at its checkpoint; at its start where there is none, or none that can be used,
    which is said."""
    training = make()
    try:
        training.load(checkpoint)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except ValueError as error:
        warnings.warn(f"{error}; the run starts anew", stacklevel=2)
        return make()
    return training


@contextmanager
def _threads_of(training: Training | RetrievalTraining) -> Iterator[None]:
    """Compute with as many threads as a training began with: with others its sums would round
    otherwise, and its end be another."""
    before = torch.get_num_threads()
    torch.set_num_threads(training.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(
    training: Training | RetrievalTraining,
    checkpoint: Path,
    stop: Callable[[], bool],
    on_metrics: Callable[[Metrics | RetrievalMetrics], None],
    on_start: Callable[[Training | RetrievalTraining], None],
    remedy: str,
) -> tuple[Metrics | RetrievalMetrics | None, str | None]:
    """Train, and keep the checkpoint up to date. The last metrics, if any, and where memory ran out
    that it did, with what to lower."""
    on_start(training)
    last, saved = None, perf_counter()
    try:
        for last in training.metrics(stop):
            on_metrics(last)
            if perf_counter() - saved > CHECKPOINT_EVERY_S or last.outcome == "interrupted":
                _save_checkpoint(training, checkpoint)
                saved = perf_counter()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        release_memory(training.device)
        return last, f"{str(error).splitlines()[0]}: lower {remedy}"
    return last, None


def run_training(
    name: str,
    scale: str,
    job: TrainingJob,
    device: str | None,
    stop: Callable[[], bool],
    on_metrics: Callable[[TrainingJob, Metrics], None] = lambda job, metrics: None,
    on_start: Callable[[Training], None] = lambda training: None,
) -> store.Row:
    """Train, from a checkpoint where there is one, and make the row; nothing is appended."""
    started, checkpoint = datetime.now(UTC), _checkpoint_of(job, resolve_device(device).type)
    training = _begun(lambda: job.config.training(seed=job.seed, device=device), checkpoint)
    remedy = "batch_size, seq_len or d_model"
    with _threads_of(training):
        last, detail = _train(
            training, checkpoint, stop, partial(on_metrics, job), on_start, remedy
        )
        outcome = "out_of_memory" if detail else (last and last.outcome) or "interrupted"
        row = training_row(name, scale, job, training, outcome, detail=detail, started=started)
    if job.keep and outcome == "ok":
        kept_models.keep_model(training, row)
    return row


def training_row(
    name: str,
    scale: str,
    job: TrainingJob,
    training: Training,
    outcome: str,
    *,
    detail: str | None = None,
    started: datetime | None = None,
) -> store.Row:
    """The row of a run as it stands."""
    history = list(training.history)
    summary = training_summary(history)
    if isinstance(job.config.task, Pixels):
        summary |= pixel_summary(job.config.task, history)
    return store.make_row(
        name,
        scale,
        job.config,
        job.seed,
        outcome,
        summary,
        curve={key: [getattr(m, key) for m in history] for key in CURVE},
        detail=detail,
        device=str(training.device),
        kind=kind_of(job.config, cost=False),
        versions=versions_of(job.config, cost=False),
        started=started,
    )


def run_retrieval(
    name: str,
    scale: str,
    job: RetrievalJob,
    device: str | None,
    stop: Callable[[], bool],
    on_metrics: Callable[[RetrievalJob, RetrievalMetrics], None] = lambda job, metrics: None,
    on_start: Callable[[RetrievalTraining], None] = lambda training: None,
) -> list[store.Row]:
    """Train the seeds of a job together, from a checkpoint where there is one, and make their rows;
    nothing is appended."""
    started, began = datetime.now(UTC), perf_counter()
    checkpoint = _checkpoint_of(job, resolve_device(device).type)
    kind = MeansTraining if isinstance(job.config, MeansConfig) else RetrievalTraining
    training = _begun(lambda: kind(job.config, seeds=job.seeds, device=device), checkpoint)
    remedy = "batch_size or n_keys"
    with _threads_of(training):
        _, detail = _train(training, checkpoint, stop, partial(on_metrics, job), on_start, remedy)
        unfinished = "out_of_memory" if detail else "interrupted"
        more = {"seconds": perf_counter() - began, "started": started}
        return [
            retrieval_row(
                name,
                scale,
                job,
                training,
                seed.seed,
                seed.outcome or unfinished,
                detail=None if seed.outcome else detail,
                **more,
            )
            for seed in training.seeds
        ]


def retrieval_row(
    name: str,
    scale: str,
    job: RetrievalJob,
    training: RetrievalTraining,
    seed: int,
    outcome: str,
    *,
    detail: str | None = None,
    seconds: float,
    started: datetime | None = None,
) -> store.Row:
    """The row of one seed of a run as it stands."""
    run = next(one for one in training.seeds if one.seed == seed)
    more: dict[str, Any] = {"seconds": seconds, "seeds_together": len(job.seeds)}
    if isinstance(training, MeansTraining):
        more |= training.best_means(seed)
    return store.make_row(
        name,
        scale,
        job.config,
        seed,
        outcome,
        run.summary(job.config) | more,
        curve={"step": list(run.steps), "loss": list(run.losses)},
        detail=detail,
        device=str(training.device),
        kind=kind_of(job.config, cost=False),
        versions=versions_of(job.config, cost=False),
        started=started,
    )


CURVE = ("step", "train_loss", "loss", "accuracy")


def training_summary(history: list[Metrics]) -> dict:
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


def pixel_summary(task: Pixels, history: list[Metrics]) -> dict:
    """Bits per dimension of the test images: of the model, and of the histogram of each position,
    which a model that learned anything of images is below."""
    histogram = histogram_bits(load_images(task.images), task.n_levels)
    last = bits(history[-1].loss) if history else None
    return {"bits_per_dim": last, "histogram_bits_per_dim": histogram}


def run_cost(
    name: str,
    scale: str,
    job: CostJob,
    device: str | None,
    stop: Callable[[], bool],
    max_seconds_per_point: float = MAX_SECONDS_PER_POINT,
    on_partial: Callable[[store.Row], None] = lambda row: None,
    recording: int = 0,
) -> Iterator[store.Row]:
    """Measure the points of a job together and make their rows; nothing is appended.

    `on_partial` is told of a stream on its way, as if it were stopped now; `recording` is the seed
    of what is computed with, and of the rows.
    """
    started = datetime.now(UTC)

    def row_of(cost: Cost) -> store.Row:
        return store.make_row(
            name,
            scale,
            cost.config,
            recording,
            cost.outcome,
            cost.summary(),
            curve=getattr(cost, "curve", None),
            detail=cost.detail,
            device=str(resolve_device(device)),
            kind=kind_of(cost.config, cost=True),
            versions=versions_of(cost.config, cost=True),
            started=started,
        )

    measure, options = measure_cost, {}
    if is_generation(job):
        measure = measure_generation
        options = {"on_partial": lambda cost: on_partial(row_of(cost))}
    for cost in measure(
        job.configs,
        n_repeats=job.n_repeats,
        device=device,
        seed=recording,
        stop=stop,
        max_seconds_per_point=max_seconds_per_point,
        **options,
    ):
        yield row_of(cost)


def checkpoint_path(run: str, device_type: str) -> Path:
    """Where a run of a kind of device is checkpointed: generators do not move between kinds."""
    return files.cache_folder() / "checkpoints" / device_type / f"{run}.pt"


def _checkpoint_of(job: TrainingJob | RetrievalJob, device_type: str) -> Path:
    """The checkpoint of a training, or of seeds that are trained together."""
    if isinstance(job, TrainingJob):
        return checkpoint_path(run_ids(job)[0], device_type)
    together = "".join(run_ids(job)).encode()
    return checkpoint_path(hashlib.sha256(together).hexdigest()[:16], device_type)


def _save_checkpoint(training: Training | RetrievalTraining, path: Path) -> None:
    """Save a checkpoint; where that fails the run goes on and a warning says so."""
    try:
        training.save(path)
    except (OSError, RuntimeError) as error:  # a FileError, or torch's of a full disk
        warnings.warn(
            f"no checkpoint was written, a stopped run starts anew ({error})", stacklevel=2
        )


def discard_checkpoint(job: Job, rows: Sequence[store.Row]) -> None:
    """Drop the checkpoint of a training whose finished rows have been stored."""
    if isinstance(job, CostJob) or any(row["outcome"] == "interrupted" for row in rows):
        return
    device_type = rows[0]["provenance"]["device"].split(":")[0]
    with suppress(OSError):  # one that stays is harmless
        _checkpoint_of(job, device_type).unlink(missing_ok=True)
