"""Trainings that go on where they stopped."""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import TypeVar

import torch

from replib import files
from replib.device import resolve_device
from replib.fast_weights import RetrievalMetrics, RetrievalTraining
from replib.lab import store
from replib.lab.memory_use import is_out_of_memory, release_memory
from replib.lab.run import RetrievalJob, TrainingJob
from replib.training import Metrics, Training

CHECKPOINT_EVERY_S = 30.0  # what a killed run loses at most

Run = TypeVar("Run", Training, RetrievalTraining)


def folder(device_type: str) -> Path:
    """Of a kind of device: generators do not move between kinds."""
    return files.cache_folder() / "checkpoints" / device_type


def path_of(job: TrainingJob | RetrievalJob, device: str | None) -> Path:
    """The checkpoint of a training, or of seeds that are trained together."""
    name = job.ids[0]
    if len(job.ids) > 1:
        name = hashlib.sha256("".join(job.ids).encode()).hexdigest()[: store.HASH_DIGITS]
    return folder(resolve_device(device).type) / f"{name}.pt"


def begun(make: Callable[[], Run], checkpoint: Path) -> Run:
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
def threads_of(training: Training | RetrievalTraining) -> Iterator[None]:
    """Compute with as many threads as a training began with: with others its sums would round
    otherwise, and its end be another."""
    before = torch.get_num_threads()
    torch.set_num_threads(training.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train(
    training: Training | RetrievalTraining,
    checkpoint: Path,
    stop: Callable[[], bool],
    on_metrics: Callable[[Metrics | RetrievalMetrics], None],
    remedy: str,
) -> tuple[Metrics | RetrievalMetrics | None, str | None]:
    """Train, and keep the checkpoint up to date. The last metrics, if any, and where memory ran out
    that it did, with what to lower."""
    last, saved = None, perf_counter()
    try:
        for last in training.metrics(stop):
            on_metrics(last)
            if perf_counter() - saved > CHECKPOINT_EVERY_S or last.outcome == "interrupted":
                _save(training, checkpoint)
                saved = perf_counter()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        release_memory(training.device)
        return last, f"{str(error).splitlines()[0]}: lower {remedy}"
    return last, None


def _save(training: Training | RetrievalTraining, path: Path) -> None:
    """Save a checkpoint; where that fails the run goes on and a warning says so."""
    try:
        training.save(path)
    except (OSError, RuntimeError) as error:  # a FileError, or torch's of a full disk
        warnings.warn(
            f"no checkpoint was written, a stopped run starts anew ({error})", stacklevel=2
        )


def discard(job: TrainingJob | RetrievalJob, rows: Sequence[store.Row]) -> None:
    """Drop the checkpoint of a training whose finished rows have been stored."""
    if any(row["outcome"] == "interrupted" for row in rows):
        return
    with suppress(OSError):  # one that stays is harmless
        path_of(job, rows[0]["provenance"]["device"]).unlink(missing_ok=True)
