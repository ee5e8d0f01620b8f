"""Runs that an open notebook starts: in a thread, watched by polling, kept when they end.

marimo serves all notebooks as threads of one process, so one such thread works at a time, and a
run whose page is no longer open ends by itself.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TypeVar

import torch

from replib import files
from replib.device import available_memory_bytes, resolve_device
from replib.lab import predict, recorded, store
from replib.lab.run import (
    Glimpse,
    Job,
    TrainingJob,
    Where,
    uses_compiled,
)
from replib.lab.timing import MEMORY_SHARE
from replib.training import Training

SCALE = "live"
MAX_POINT_S = 5.0  # of timing for one mechanism at one length
# A page that is open asks several times a second; one that has not for so long is closed. Browsers
# wake a page that has been hidden for five minutes once a minute only, so a long run waits longer.
ABANDONED_AFTER_S = 20.0
LONG_RUN_S, LONG_RUN_ABANDONED_AFTER_S = 240.0, 90.0
ASKED = "n_repeats_asked"  # in the summary of a cost, which may have had time for fewer
COMPILE_S = 15.0  # about; a kernel for the CPU, on two cores, once for this machine
MAX_PREDICTED_S = 3600.0  # a reader who wants more has the command line, which resumes
_WORK_LOCK = threading.Lock()
# Before any run: a thread that begins while another is spared one would find fewer.
ALL_THREADS = torch.get_num_threads()

Result = TypeVar("Result")


@dataclass
class Progress:
    """Where a batch of jobs stands. `status` is "waiting" (for another page's run), "running",
    "done", "stopped" or "failed", and then `error` says why."""

    status: str = "waiting"
    fraction: float = 0.0
    text: str = "waiting for a run on another page to end"
    error: str | None = None
    rows: dict[str, store.Row] = field(default_factory=dict)
    """Rows so far by run_id; one under way reads as if it were stopped now ("interrupted")."""


class LiveRuns:
    """The runs of one open notebook: what is cached, what is running, what has finished.

    Example:
        >>> live = LiveRuns("convergence")
        >>> live.start(jobs)
        >>> live.poll().fraction
    """

    def __init__(self, experiment: str):
        self.experiment = experiment
        self.folder = files.cache_folder()
        self.finished: list[store.Row] = []
        """Rows of this page, oldest first; they stay when the settings move on."""
        self.models: dict[str, Training] = {}
        self.warning: str | None = None
        self._progress: Progress | None = None
        self._batch: list[Job] = []
        self._device: str | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._abandoned = False
        self._started = self._polled = monotonic()

    @property
    def measuring(self) -> bool:
        """Whether the batch under way takes times, which a busy page would disturb."""
        return self.running and any(job.timed for job in self._batch)

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def rows(self, jobs: Sequence[Job], device: str | None = None) -> list[store.Row]:
        """The finished rows of jobs, of this page or from the cache, the newest of each run; fewer
        than asked for where some have not run, or were measured otherwise than they would be."""
        kind = resolve_device(device).type
        names = {self._name(job) for job in jobs}
        known = [row for name in names for row in self._cached(name)]
        # In the order of the cache, whatever the clock says; then what could not be kept there.
        known += [row for row in self.finished if row not in known]
        by_id: dict[str, list[store.Row]] = {}
        for row in known:
            if row["outcome"] != "interrupted" and row["provenance"]["device"].startswith(kind):
                by_id.setdefault(row["run_id"], []).append(row)
        alike = [
            [row for row in by_id.get(run, []) if _as_asked(row, job)]
            for job in jobs
            for run in job.ids
        ]
        return [rows[-1] for rows in alike if rows]

    def missing(self, jobs: Sequence[Job], device: str | None = None) -> list[Job]:
        """The jobs of which some row is not there."""
        return [job for job in jobs if len(self.rows([job], device)) < len(job.ids)]

    def start(self, jobs: Sequence[Job], device: str | None = None) -> None:
        """Run the missing jobs in a thread; nothing happens while one of this page is running."""
        if self.running:
            return
        self._batch, self._device = list(jobs), device
        jobs = self.missing(jobs, device)
        self._stop.clear()
        self._abandoned = False
        self._started = self._polled = monotonic()
        self._progress = Progress()
        self._thread = threading.Thread(
            target=self._work, args=(jobs, device, self._progress), daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Ask the run to end after its present step; what it computed is kept."""
        self._stop.set()

    def poll(self) -> Progress | None:
        """The progress of the last batch, None before any; says that the page is still open."""
        self._polled = monotonic()
        return self._progress

    def showing(self, jobs: Sequence[Job], device: str | None = None) -> list[store.Row]:
        """The rows to draw: those of `jobs`; while another batch runs, or where none of `jobs` has
        run, those of the last batch. A batch that was stopped shows what it computed."""
        rows = self.rows(jobs, device)
        if self._progress is None:
            return rows
        if self.running or not rows or list(jobs) == self._batch:
            before = {row["run_id"]: row for row in self.rows(self._batch, self._device)}
            rows = list((before | self._progress.rows).values())
        return rows

    def ended_early(self, jobs: Sequence[Job]) -> bool:
        """Whether the last batch was of these jobs and was stopped or failed: what a reader has
        stopped must not begin again by itself. What ended because the page did not ask for so long,
        as it was busy itself, may."""
        early = self._progress is not None and self._progress.status in ("stopped", "failed")
        return early and list(jobs) == self._batch and not self._abandoned

    def just_ended(self) -> bool:
        """True once after each batch: what depends on finished runs is due for an update."""
        ended = self._thread is not None and not self._thread.is_alive()
        if ended:
            self._thread = None
        return ended

    def join(self, timeout: float | None = None) -> None:
        """Wait for the thread to end."""
        if self._thread is not None:
            self._thread.join(timeout)

    def model(self, job: TrainingJob, device: str | None = None) -> Training | None:
        """The trained model of a finished job, from memory or from the cache."""
        (run,) = job.ids
        path = self._model_path(run, device)
        if run not in self.models and path.exists():
            training = job.config.training(seed=job.seed, device=device)
            try:
                training.load(path)
            except ValueError:
                return None
            self.models[run] = training
        return self.models.get(run)

    def _work(self, jobs: list[Job], device: str | None, progress: Progress) -> None:
        try:
            while not _WORK_LOCK.acquire(timeout=0.1):
                if self._stopped():
                    progress.status = "stopped"
                    return
            try:
                progress.status, progress.text = "running", "starting"
                if kernel := kernel_to_compile(jobs, device):
                    progress.text = f"compiling the {kernel} kernel, once: about {COMPILE_S:.0f} s"
                    _kernels().compile_now(kernel)
                for done, job in enumerate(jobs):
                    if self._stopped():
                        break
                    with _on_threads(threads_of(job)):
                        self._run(job, device, progress, done / len(jobs), 1 / len(jobs))
            finally:
                _WORK_LOCK.release()
            progress.fraction = 1.0
            progress.status = "stopped" if self._stopped() else "done"
        except Exception as error:  # the page must say what happened in its thread
            progress.error, progress.status = str(error) or type(error).__name__, "failed"

    def _cached(self, name: str) -> list[store.Row]:
        """Rows of the cache; none, with a warning, where it cannot be read."""
        try:
            return recorded.read_rows(name, self.folder)
        except files.FileError as error:
            self.warning = self.warning or f"Earlier runs cannot be found: {error}"
            return []

    def _name(self, job: Job) -> str:
        """The experiment that a job's rows are kept under: what is trained has one of its own."""
        return self.experiment if job.timed else job.configs[0].experiment

    def _stopped(self) -> bool:
        now = monotonic()
        long = now - self._started > LONG_RUN_S
        patience = LONG_RUN_ABANDONED_AFTER_S if long else ABANDONED_AFTER_S
        self._abandoned = self._abandoned or now - self._polled > patience
        return self._stop.is_set() or self._abandoned

    def _run(self, job, device, progress: Progress, before: float, share: float) -> None:
        def watch(glimpse: Glimpse) -> None:
            nonlocal training
            training = glimpse.training
            progress.rows.update({row["run_id"]: row for row in glimpse.rows()})
            progress.fraction = before + share * glimpse.fraction
            progress.text = glimpse.text

        training: Training | None = None
        where = Where(self._name(job), SCALE, device, self._stopped, watch, MAX_POINT_S)
        rows = []
        for row in job.execute(where):
            if job.timed:
                row["summary"][ASKED] = job.n_repeats
            rows.append(row)
            self._finish(row, progress)
        if hasattr(training, "model") and len(rows) == 1:
            self._keep_model(rows[0], training, device)
        job.ended(rows)

    def _keep_model(self, row: store.Row, training: Training, device: str | None) -> None:
        run = row["run_id"]
        self.models[run] = training
        if row["outcome"] == "ok":
            self._keep(lambda: training.save(self._model_path(run, device)))

    def _finish(self, row: store.Row, progress: Progress) -> None:
        progress.rows[row["run_id"]] = row
        self.finished.append(row)
        self._keep(lambda: store.append(row["experiment"], row, self.folder))

    def _keep(self, write) -> None:
        """Write to the cache; where that fails the result stays on the page, with a warning."""
        try:
            write()
        except (OSError, RuntimeError) as error:  # a FileError, or torch's of a full disk
            self.warning = f"This run is not kept after the page closes: {error}"

    def _model_path(self, run: str, device: str | None) -> Path:
        return self.folder / "models" / resolve_device(device).type / f"{run}.pt"


def kernel_to_compile(jobs: Sequence[Job], device: str | None = None) -> str | None:
    """The kernel that jobs use on a device and that this machine has yet to compile."""
    kind = resolve_device(device).type
    used = any(uses_compiled(config, kind) for job in jobs for config in job.configs)
    return kind if used and not _kernels().compiled(kind) else None


def _kernels():
    """The package, which is there where something uses it."""
    from replib import kernels

    return kernels


def predicted_seconds(jobs: Sequence[Job], device: str | None = None) -> float:
    """About how long jobs take on this machine, in seconds."""
    return in_passing_thread(_predicted_seconds, jobs, device)


@contextmanager
def one_thread_spared() -> Iterator[None]:
    """Leave a core to the page, as in `threads_of`."""
    with _on_threads(_spared_threads()):
        yield


def _spared_threads() -> int:
    return max(1, ALL_THREADS - 1)


@contextmanager
def _on_threads(n: int) -> Iterator[None]:
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(ALL_THREADS)  # what a thread began with may be another's spared ones


def threads_of(job: Job) -> int:
    """The threads that a job runs with: all where it takes times, but for a stream, which the page
    draws on its way. Others leave a core to the page: threads that wait for one that the browser
    has displaced take longer than one thread fewer (on two cores a run took 52 s, and 31 s so)."""
    streaming = any(getattr(config, "span", None) == "stream" for config in job.configs)
    return ALL_THREADS if job.timed and not streaming else _spared_threads()


def _as_asked(row: store.Row, job: Job) -> bool:
    """Whether a row is what running the job now would give: a cost measured with as many threads
    and samples, or with all the samples that there was time for."""
    if not job.timed:
        return True
    if row["provenance"]["threads"] != threads_of(job):
        return False
    told = row["summary"]
    samples = max(len(told["time_ms_samples"]), told.get(ASKED, 0))
    return row["outcome"] != "ok" or samples >= job.n_repeats


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
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return function(*arguments)
        finally:
            torch.set_num_threads(before)  # threads that begin later would have one as well

    return in_passing_thread(with_one_thread)


def _predicted_seconds(jobs: Sequence[Job], device: str | None) -> float:
    return predict.seconds(jobs, device, max_seconds_per_point=MAX_POINT_S, threads=threads_of)


def refusal(jobs: Sequence[Job], device: str | None = None) -> str | None:
    """Why jobs should not be started from a page, with the remedy; None if they may."""
    needed = in_passing_thread(predict.needed_bytes, jobs, device)
    free = available_memory_bytes(resolve_device(device))
    if needed > MEMORY_SHARE * free:
        return (
            f"This needs about {needed / 1e9:.1f} GB, more than {MEMORY_SHARE:.0%} of the "
            f"{free / 1e9:.1f} GB free: lower the sequence length, the number of keys or the batch "
            "size."
        )
    seconds = predicted_seconds(jobs, device)
    if seconds > MAX_PREDICTED_S:
        return (
            f"This would take about {seconds / 3600:.1f} hours: lower the steps, the sequence "
            "length or the number of keys, or record it from the command line, which resumes where "
            "it stopped."
        )
    return None
