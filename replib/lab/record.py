"""Jobs are run and become rows; those of an experiment are stored, and none is run twice."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from replib import files
from replib.device import resolve_device
from replib.lab import store
from replib.lab.run import Glimpse, Job, Where, identity
from replib.lab.runs import checkpointed

SCALES = ("smoke", "laptop", "paper")
TIMING = "timing"  # of the whole folder: two processes that time at once spoil both
MAX_SECONDS_PER_POINT = 20.0  # of timing


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A named grid of jobs a scale, the same for every device; see `Job.on_device`. Where it is
    `repeated` its recordings at different times are judged together."""

    name: str
    title: str
    jobs: Callable[[str], list[Job]]
    repeated: bool = False


def core_seconds(row: store.Row) -> float:
    """Seconds of one core that a training took, 0 where a row does not tell."""
    told, threads = row["summary"], row["provenance"]["threads"]
    if told.get("seconds") and told.get("seeds_together"):
        return threads * told["seconds"] / told["seeds_together"]
    if told.get("n_steps") and told.get("steps_per_s"):
        return threads * told["n_steps"] / told["steps_per_s"]
    return 0.0


Asked = tuple[Experiment, Job]
"""A job, and the experiment that asks for it."""


def record(
    experiment: Experiment,
    scale: str,
    *,
    device: str | None = None,
    recording: int = 0,
    **options: Any,
) -> Iterator[store.Row]:
    """Record the jobs of an experiment in their order; what else there is to choose, and what is
    raised, is of `record_jobs`."""
    check(experiment, scale, recording)
    device_type = resolve_device(device).type
    asked = ((experiment, job.on_device(device_type)) for job in experiment.jobs(scale))
    yield from record_jobs(asked, scale, device=device, recording=recording, **options)


def check(experiment: Experiment, scale: str, recording: int = 0) -> None:
    """
    Raises:
        ValueError: unknown scale, or a recording above 0 of what is not repeated.
    """
    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r}: use {', '.join(SCALES)}")
    if recording and not (experiment.repeated and recording > 0):
        raise ValueError(
            f"recording {recording} of {experiment.name}: use 0, or a higher number for an "
            "experiment whose recordings are judged together, such as scaling"
        )


def record_jobs(
    asked: Iterable[Asked],
    scale: str,
    *,
    device: str | None = None,
    stop: Callable[[], bool] = lambda: False,
    watch: Callable[[Glimpse], None] = lambda glimpse: None,
    retime_below: int = 0,
    recording: int = 0,
) -> Iterator[store.Row]:
    """Run the jobs that have no finished row on this kind of device yet, append each row to
    `data/` and yield it. A stopped or killed training resumes at its last checkpoint; one that
    another process is at is left to it, so that two processes share an experiment. Points that are
    timed together are timed again together where one of them is new; while one process times,
    another leaves all that to it, with a warning. A run that lacks its data is left out with a
    warning. One whose model is to be kept runs again where it is not.

    Args:
        asked: the jobs, on the kind of device; one is asked for when those before it have ended.
        retime_below: time again what has fewer samples than this and than its job asks for, where
            so many fit MAX_SECONDS_PER_POINT by the times that are recorded; and what had no
            memory.
        recording: the number of a recording of costs, the `seed` of its rows. Several, each in a
            process of its own at another time, tell what varies between them.

    Raises:
        ValueError: no such device.
        FileError: a row cannot be written; what was recorded before stays.
    """
    device_type = resolve_device(device).type
    check_folder()
    files.remove_leftovers(checkpointed.folder(device_type))
    with ExitStack() as locks:
        times: bool | None = None  # whether this process may take times
        for experiment, job in asked:
            if stop():
                return
            how = (device, stop, watch, MAX_SECONDS_PER_POINT, recording)
            where = Where(experiment.name, scale, *how)
            if job.timed:
                if times is None:
                    times = locks.enter_context(store.claimed(f"{TIMING} {device_type}"))
                    if not times:
                        warnings.warn(
                            f"{experiment.name} is left to another process that takes times in "
                            f"{files.data_folder()}: run this again when it has ended",
                            stacklevel=2,
                        )
                if times and missing(experiment, job, device_type, retime_below, recording):
                    for row in job.execute(where):
                        store.append(experiment.name, row)
                        yield row
                continue
            if missing(experiment, job, device_type) is None:
                continue
            if why_not := lacks_data(job):
                say_left_out(job, why_not)
                continue
            with store.claimed(claim_of(job, device_type)) as ours:
                # What another process has finished since is not run again.
                left = missing(experiment, job, device_type) if ours else None
                if left is None:
                    continue
                rows = list(left.execute(where))
                # The rows of seeds that ran together in one write: all of them, or none.
                store.append_rows(experiment.name, rows)
                left.ended(rows)
            yield from rows


def lacks_data(job: Job) -> str | None:
    """Why what a job is to be trained on will not do; None where it will, or where nothing is."""
    return None if job.timed else job.configs[0].missing_data()


def check_folder() -> None:
    """
    Raises:
        FileError: rows cannot be written to the data folder.
    """
    if why_not := files.writable(files.data_folder()):
        raise files.FileError(why_not)


def claim_of(job: Job, device_type: str) -> str:
    """The name by which a process claims a job, see `store.claimed`."""
    return f"{job.ids[0]} {device_type}"


def say_left_out(job: Job, why_not: str) -> None:
    """Warn of a job that lacks its data."""
    warnings.warn(f"{job.configs[0].model.attention} is left out: {why_not}", stacklevel=3)


def missing(
    experiment: Experiment, job: Job, device_type: str, retime_below: int = 0, recording: int = 0
) -> Job | None:
    """What of a job has no finished row on a kind of device, or too few samples; None where it
    has."""
    finished = _finished(experiment.name, device_type)
    if not job.timed:
        return job.left(finished)
    rows = [finished.get(identity(c, recording, cost=True)) for c in job.configs]
    enough = all(rows) and not _too_few_samples(rows, min(retime_below, job.n_repeats))
    return None if enough else job


def _finished(experiment: str, device_type: str) -> dict[str, store.Row]:
    """The finished rows on a kind of device, by their run_id."""
    return {
        row["run_id"]: row
        for row in store.read_rows(experiment)
        if row["outcome"] != "interrupted"
        and row["provenance"]["device"].split(":")[0] == device_type
    }


def _too_few_samples(rows: Sequence[store.Row], least: int) -> bool:
    """Whether points that are timed together lack samples that there is time for, or memory that
    there may be now."""
    if least and any(row["outcome"] == "out_of_memory" for row in rows):
        return True
    samples = [row["summary"]["time_ms_samples"] for row in rows if row["outcome"] == "ok"]
    if all(len(some) >= least for some in samples):
        return False
    round_s = sum(max(some) for some in samples) / 1000
    return (1 + least) * round_s <= MAX_SECONDS_PER_POINT * len(samples)  # one warms up
