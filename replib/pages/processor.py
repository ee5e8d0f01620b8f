"""The processor that pages and their runs share: threads of each job, and how long jobs take."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from replib.device import available_memory_bytes, resolve_device
from replib.lab import predict
from replib.lab.run import Job, TrainingJob, uses_compiled
from replib.lab.timing import MEMORY_SHARE
from replib.training import TrainingConfig

MAX_POINT_S = 5.0  # of timing for one mechanism at one length
COMPILE_S = 15.0  # about; a kernel for the CPU, on two cores, once for this machine
MAX_PREDICTED_S = 3600.0  # a reader who wants more has the command line, which resumes
# Before any run: a thread that begins while another is spared one would find fewer.
ALL_THREADS = torch.get_num_threads()

Result = TypeVar("Result")


def side_by_side(jobs: Sequence[Job]) -> int:
    """How many jobs run at once: trainings share the processor, what is timed has it alone."""
    return 1 if any(job.timed for job in jobs) else min(len(jobs), ALL_THREADS)


def threads_of(job: Job, n_together: int = 1) -> int:
    """The threads that a job runs with: all where it takes times, but for a stream, which the page
    draws on its way. Others leave a core to the page, or share them: threads that wait for one that
    the browser has displaced take longer than one thread fewer."""
    streaming = any(getattr(config, "span", None) == "stream" for config in job.configs)
    if job.timed and not streaming:
        return ALL_THREADS
    return max(1, (ALL_THREADS - 1) // max(1, n_together))


@contextmanager
def on_threads(n: int, after: int = ALL_THREADS) -> Iterator[None]:
    """What a thread began with may be another's spared ones: it is not what is set back to."""
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(after)


def in_passing_thread(function: Callable[..., Result], *arguments) -> Result:
    """Call a function that computes with torch in a thread that ends with it.

    OpenMP keeps workers for each thread that has computed, as long as that thread lives; with more
    workers than cores they no longer spin, and a run beside them takes twice as long.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(function, *arguments).result()


def on_one_core(function: Callable[..., Result], *arguments) -> Result:
    """The same with one thread: of tensors this small, sharing them out takes longer than the work,
    and up to a hundred times as long where other programs want the cores."""

    def with_one_thread() -> Result:
        with on_threads(1, after=torch.get_num_threads()):
            return function(*arguments)

    return in_passing_thread(with_one_thread)


def predicted_each(jobs: Sequence[Job], device: str | None) -> list[float]:
    """About how long each job takes on this machine, in seconds."""

    def predicted() -> list[float]:
        every = [jobs, *([job] for job in jobs)]  # what all need is measured first, and once
        options = {"max_seconds_per_point": MAX_POINT_S, "threads": threads_of}
        return [predict.seconds(some, device, **options) for some in every][1:]

    return in_passing_thread(predicted)


def warm() -> None:
    """Load what torch and Numba load at the first step of a training, for a second or two."""
    predicted_each([TrainingJob(config=TrainingConfig(), seed=0)], None)


def together_s(jobs: Sequence[Job], seconds: Sequence[float]) -> float:
    """How long jobs take that take so long each."""
    return max([sum(seconds) / max(1, side_by_side(jobs)), *seconds])


def refusal(jobs: Sequence[Job], device: str | None = None) -> str | None:
    """Why jobs should not be started from a page, with the remedy; None if they may."""
    needed = in_passing_thread(predict.needed_bytes, jobs, device) * side_by_side(jobs)
    free = available_memory_bytes(resolve_device(device))
    if needed > MEMORY_SHARE * free:
        return (
            f"This needs about {needed / 1e9:.1f} GB, more than {MEMORY_SHARE:.0%} of the "
            f"{free / 1e9:.1f} GB free: lower the sequence length, the number of keys or the batch "
            "size."
        )
    seconds = together_s(jobs, predicted_each(jobs, device))
    if seconds > MAX_PREDICTED_S:
        return (
            f"This would take about {seconds / 3600:.1f} hours: lower the steps, the sequence "
            "length or the number of keys, or record it from the command line, which resumes where "
            "it stopped."
        )
    return None


def kernel_to_compile(jobs: Sequence[Job], device: str | None = None) -> str | None:
    """The kernel that jobs use on a device and that this machine has yet to compile."""
    kind = resolve_device(device).type
    used = any(uses_compiled(config, kind) for job in jobs for config in job.configs)
    return kind if used and not kernels_package().compiled(kind) else None


def kernels_package():
    """The package, which is there where something uses it."""
    from replib import kernels

    return kernels
