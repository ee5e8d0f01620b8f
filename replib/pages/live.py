"""Runs that an open notebook starts: in threads, watched by polling, kept when they end.

marimo serves all notebooks as threads of one process, so one page works at a time, and a run whose
page is no longer open ends by itself.
"""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple, TypeVar

import torch

from replib import files
from replib.device import available_memory_bytes, resolve_device
from replib.lab import predict, recorded, store
from replib.lab.run import Glimpse, Job, TrainingJob, Where, uses_compiled
from replib.lab.timing import MEMORY_SHARE
from replib.training import Training

SCALE = "live"
MAX_POINT_S = 5.0  # of timing for one mechanism at one length
# A page that is open asks several times a second; one that has not for so long is closed, as one
# that was reloaded, for which another waits. Browsers wake a page that has been hidden for five
# minutes once a minute only, so a long run waits longer.
ABANDONED_AFTER_S, WANTED_AFTER_S = 20.0, 5.0
LONG_RUN_S, LONG_RUN_ABANDONED_AFTER_S = 240.0, 90.0
ASKED = "n_repeats_asked"  # in the summary of a cost, which may have had time for fewer
COMPILE_S = 15.0  # about; a kernel for the CPU, on two cores, once for this machine
MAX_PREDICTED_S = 3600.0  # a reader who wants more has the command line, which resumes
LEAST_S = 1e-3  # of a job whose time is not known
SURE_SHARE = 0.1  # of a batch that is done, from which on its speed tells the time left
MAX_WAITING = 8  # batches, each a thread
_WORK_LOCK = threading.Lock()
_waiting: set[int] = set()  # batches that another keeps from working
# Before any run: a thread that begins while another is spared one would find fewer.
ALL_THREADS = torch.get_num_threads()

Result = TypeVar("Result")


class Batch:
    """Jobs that are run together, and where they stand.

    Attributes:
        todo: those that have not run before, or are to be run again.
        seconds: that each of them is predicted to take; alike where nothing is known.
        status: "waiting" (for another page's run), "running", "done", "stopped" or "failed", and
            then `error` says why.
        fraction: that is done. `seconds_left` are those of the whole batch.
        rows: those so far by run_id; one under way reads as if it were stopped now ("interrupted").
    """

    def __init__(self, jobs: Sequence[Job] = (), todo: Sequence[Job] = (), device=None, seconds=()):
        self.jobs, self.todo, self.device = list(jobs), list(todo), device
        self.seconds = [s if s > 0 else LEAST_S for s in seconds or [math.nan] * len(self.todo)]
        self.status, self.text = "waiting", "waiting for a run on another page to end"
        self.error: str | None = None
        self.fraction, self.seconds_left = 0.0, math.nan
        self.rows: dict[str, store.Row] = {}
        self.thread: threading.Thread | None = None
        self.told = False  # that it has ended
        self.abandoned = False
        self.asked_to_stop = threading.Event()
        self.seen = threading.Event()  # set as soon as a step has been seen
        self.polled = self._began = monotonic()
        self._shares: dict[int, float] = {}  # that are done, of those that have begun

    def stopped(self) -> bool:
        """Whether it is to end."""
        now = monotonic()
        long = now - self._began > LONG_RUN_S
        patience = LONG_RUN_ABANDONED_AFTER_S if long else ABANDONED_AFTER_S
        if _waiting - {id(self)}:
            patience = min(patience, WANTED_AFTER_S)
        self.abandoned = self.abandoned or now - self.polled > patience
        return self.asked_to_stop.is_set() or self.abandoned

    def begin(self) -> None:
        """To be called when its turn has come."""
        self.status, self.text = "running", "starting"
        self._began = monotonic()

    def look(self, which: int, glimpse: Glimpse) -> None:
        """Take note of how far a job is; what is told is of the one that is behind."""
        self.rows.update({row["run_id"]: row for row in glimpse.rows()})
        self.count(which, glimpse.fraction)
        if glimpse.fraction <= min(share for share in (*self._shares.values(), 1.0) if share):
            self.text = glimpse.text
        if glimpse.fraction:
            self.seen.set()

    def count(self, which: int, share: float) -> None:
        """Bring the fraction up to date with the share of a job that is done."""
        self._shares[which] = share
        done = sum(self.seconds[i] * share for i, share in self._shares.items())
        self.fraction = done / sum(self.seconds)
        if self.fraction > SURE_SHARE:
            spent = monotonic() - self._began
            self.seconds_left = spent * (1 / self.fraction - 1)


class Drawing(NamedTuple):
    """The charts of a page's run as they were drawn last, when its ticker stood `at` a value, and
    until when its ticks need not draw them again."""

    shown: Any
    tick: Any
    at: Any
    until: float


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
        self.batch: Batch | None = None
        """The last that was started."""
        self.drawing: Drawing | None = None

    @property
    def running(self) -> bool:
        return self.batch is not None and self.batch.thread.is_alive()

    @property
    def measuring(self) -> bool:
        """Whether the batch under way takes times, which a busy page would disturb."""
        return self.running and any(job.timed for job in self.batch.jobs)

    def is_of(self, jobs: Sequence[Job]) -> bool:
        """Whether the last batch is of these jobs."""
        return self.batch is not None and self.batch.jobs == list(jobs)

    def rows(self, jobs: Sequence[Job], device: str | None = None) -> list[store.Row]:
        """The finished rows of jobs, of this page or from the cache, the newest of each run; fewer
        than asked for where some have not run, or were measured otherwise than they would be."""
        kind = resolve_device(device).type
        names = {self._name(job) for job in jobs}
        known = [row for name in names for row in self._cached(name)]
        # In the order of the cache, whatever the clock says; then what could not be kept there.
        cached = set(map(_which, known))
        known += [row for row in self.finished if _which(row) not in cached]
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

    def start(
        self, jobs: Sequence[Job], device: str | None = None, again=False, seconds=()
    ) -> None:
        """Run jobs in the place of what this page is running, those that are missing or, `again`,
        all, of which each is predicted to take so many `seconds`; nothing happens where these are
        running already."""
        if self.running and self.is_of(jobs):
            return
        self.stop()
        todo = jobs if again else self.missing(jobs, device)
        batch = Batch(jobs, todo, device, seconds if len(seconds) == len(todo) else ())
        batch.thread = threading.Thread(target=self._work, args=(batch,), daemon=True)
        self.batch = batch
        batch.thread.start()

    def stop(self) -> None:
        """Ask the run to end after its present step; what it computed is kept."""
        if self.batch is not None:
            self.batch.asked_to_stop.set()

    def poll(self) -> Batch | None:
        """The last batch, None before any; says that the page is still open."""
        if self.batch is not None:
            self.batch.polled = monotonic()
        return self.batch

    def so_far(self, jobs: Sequence[Job], device: str | None = None) -> list[store.Row]:
        """The rows of jobs, as far as they are while they run or where they were stopped."""
        rows = {row["run_id"]: row for row in self.rows(jobs, device)}
        return list((rows | (self.batch.rows if self.is_of(jobs) else {})).values())

    def showing(self, jobs: Sequence[Job], device: str | None = None) -> list[store.Row]:
        """The rows to draw: those of `jobs` so far; of the last batch where there are none."""
        rows = self.so_far(jobs, device)
        return rows if rows or self.batch is None else self.so_far(self.batch.jobs, device)

    def known(self, jobs: Sequence[Job], device: str | None = None) -> list[store.Row]:
        """What has ended: of this page, whatever its settings were, and of `jobs` in the cache."""
        rows = [*self.finished, *self.rows(jobs, device)]
        return list({row["run_id"]: row for row in rows}.values())

    def ended_early(self, jobs: Sequence[Job]) -> bool:
        """Whether the last batch was of these jobs and a reader stopped it, or it failed: it must
        not begin again by itself. What ended because its page did not ask for so long, as it was
        busy itself, may."""
        ended = self.is_of(jobs) and self.batch.status in ("stopped", "failed")
        return ended and not self.batch.abandoned

    def just_ended(self) -> bool:
        """True once after each batch: what depends on finished runs is due for an update."""
        if self.batch is None or self.running or self.batch.told:
            return False
        self.batch.told = True
        return True

    def join(self, timeout: float | None = None) -> None:
        """Wait for the batch to end."""
        if self.batch is not None:
            self.batch.thread.join(timeout)

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

    def _work(self, batch: Batch) -> None:
        if len(_waiting) >= MAX_WAITING:
            batch.status = "failed"
            batch.error = f"{MAX_WAITING} runs of other pages wait already: try again later"
            return
        _waiting.add(id(batch))
        try:
            while not _WORK_LOCK.acquire(timeout=0.05):
                if batch.stopped():
                    batch.status = "stopped"
                    return
            _waiting.discard(id(batch))
            try:
                self._work_through(batch)
            finally:
                _WORK_LOCK.release()
            batch.status = "stopped" if batch.stopped() else "done"
        except Exception as error:  # the page must say what happened in its thread
            batch.error, batch.status = str(error) or type(error).__name__, "failed"
        finally:
            _waiting.discard(id(batch))

    def _work_through(self, batch: Batch) -> None:
        if kernel := kernel_to_compile(batch.todo, batch.device):
            batch.status = "running"
            batch.text = f"compiling the {kernel} kernel, once: about {COMPILE_S:.0f} s"
            _kernels().compile_now(kernel)
        batch.begin()
        with ThreadPoolExecutor(max(1, side_by_side(batch.todo))) as pool:
            runs = [pool.submit(self._run, batch, i) for i in range(len(batch.todo))]
            for run in as_completed(runs):
                if run.exception():
                    batch.asked_to_stop.set()
                    raise run.exception()

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

    def _run(self, batch: Batch, which: int) -> None:
        if batch.stopped():
            return

        def watch(glimpse: Glimpse) -> None:
            nonlocal training
            training = glimpse.training
            batch.look(which, glimpse)

        training: Training | None = None
        job = batch.todo[which]
        where = Where(self._name(job), SCALE, batch.device, batch.stopped, watch, MAX_POINT_S)
        rows = []
        with _on_threads(threads_of(job, side_by_side(batch.todo))):
            for row in job.execute(where):
                if job.timed:
                    row["summary"][ASKED] = job.n_repeats
                rows.append(row)
                self._finish(row, batch)
        if hasattr(training, "model") and len(rows) == 1:
            self._keep_model(rows[0], training, batch.device)
        job.ended(rows)
        batch.count(which, 1.0)

    def _keep_model(self, row: store.Row, training: Training, device: str | None) -> None:
        run = row["run_id"]
        self.models[run] = training
        if row["outcome"] == "ok":
            self._keep(lambda: training.save(self._model_path(run, device)))

    def _finish(self, row: store.Row, batch: Batch) -> None:
        """A run that was stopped stays on the page, and goes on from its checkpoint."""
        batch.rows[row["run_id"]] = row
        stopped = row["outcome"] == "interrupted"
        if not stopped or any((row["curve"] or {}).values()):
            self.finished.append(row)
        if not stopped:
            self._keep(lambda: store.append(row["experiment"], row, self.folder))

    def _keep(self, write) -> None:
        """Write to the cache; where that fails the result stays on the page, with a warning."""
        try:
            write()
        except (OSError, RuntimeError) as error:  # a FileError, or torch's of a full disk
            self.warning = f"This run is not kept after the page closes: {error}"

    def _model_path(self, run: str, device: str | None) -> Path:
        return self.folder / "models" / resolve_device(device).type / f"{run}.pt"


def _which(row: store.Row) -> tuple[str, str]:
    return row["run_id"], row["provenance"]["started"]


def kernel_to_compile(jobs: Sequence[Job], device: str | None = None) -> str | None:
    """The kernel that jobs use on a device and that this machine has yet to compile."""
    kind = resolve_device(device).type
    used = any(uses_compiled(config, kind) for job in jobs for config in job.configs)
    return kind if used and not _kernels().compiled(kind) else None


def _kernels():
    """The package, which is there where something uses it."""
    from replib import kernels

    return kernels


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
def _on_threads(n: int, after: int = ALL_THREADS) -> Iterator[None]:
    """What a thread began with may be another's spared ones: it is not what is set back to."""
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(after)


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
        with _on_threads(1, after=torch.get_num_threads()):
            return function(*arguments)

    return in_passing_thread(with_one_thread)


def together_s(jobs: Sequence[Job], seconds: Sequence[float]) -> float:
    """How long jobs take that take so long each."""
    return max([sum(seconds) / max(1, side_by_side(jobs)), *seconds])


def predicted_each(jobs: Sequence[Job], device: str | None) -> list[float]:
    """About how long each job takes on this machine, in seconds."""

    def predicted() -> list[float]:
        every = [jobs, *([job] for job in jobs)]  # what all need is measured first, and once
        options = {"max_seconds_per_point": MAX_POINT_S, "threads": threads_of}
        return [predict.seconds(some, device, **options) for some in every][1:]

    return in_passing_thread(predicted)


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
