"""Runs that an open notebook starts: in threads or on a cluster, watched by polling, kept when they
end.

marimo serves all notebooks as threads of one process, so one page works at a time, and a run whose
page is no longer open ends by itself.
"""

import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from replib import files
from replib.device import resolve_device
from replib.lab import recorded, store
from replib.lab.run import Glimpse, Job, TrainingJob, Where
from replib.pages import workers
from replib.pages.processor import (
    COMPILE_S,
    MAX_POINT_S,
    kernel_to_compile,
    kernels_package,
    on_threads,
    side_by_side,
    threads_of,
)
from replib.training import Training

SCALE = "live"
# A page that is open asks several times a second; one that has not for so long is closed, as one
# that was reloaded, for which another waits. Browsers wake a page that has been hidden for five
# minutes once a minute only, so a long run waits longer.
ABANDONED_AFTER_S, WANTED_AFTER_S = 20.0, 5.0
LONG_RUN_S, LONG_RUN_ABANDONED_AFTER_S = 240.0, 90.0
ASKED = "n_repeats_asked"  # in the summary of a cost, which may have had time for fewer
LEAST_S = 1e-3  # of a job whose time is not known
SURE_SHARE = 0.1  # of a batch that is done, from which on its speed tells the time left
MAX_SENT = 16  # jobs of a batch on a cluster, each a thread that waits
MAX_WAITING = 8  # batches, each a thread
_WORK_LOCK = threading.Lock()
_waiting: set[int] = set()  # batches that another keeps from working


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
        kind = _device_type(jobs, device)
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
            training = job.config.training(seed=job.seed, device=_models_device(device))
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
        n_together = side_by_side(batch.todo)
        if workers.takes(batch.todo):
            n_together = min(len(batch.todo), MAX_SENT)
            cluster = workers.of(workers.chosen())
            batch.status, batch.text = "running", f"connecting to {cluster.name}"
            if cluster.workers(batch.device, batch.stopped) is None:
                return
        elif kernel := kernel_to_compile(batch.todo, batch.device):
            batch.status = "running"
            batch.text = f"compiling the {kernel} kernel, once: about {COMPILE_S:.0f} s"
            kernels_package().compile_now(kernel)
        batch.begin()
        with ThreadPoolExecutor(max(1, n_together)) as pool:
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
        rows, elsewhere = [], workers.takes(batch.todo)
        execute = workers.of(workers.chosen()).execute if elsewhere else type(job).execute
        with on_threads(threads_of(job, side_by_side(batch.todo))):
            for row in execute(job, where):
                if job.timed:
                    row["summary"][ASKED] = job.n_repeats
                rows.append(row)
                self._finish(row, batch)
        if hasattr(training, "model") and len(rows) == 1:
            self._keep_model(rows[0], training, batch.device)
        if not elsewhere:
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
        return self.folder / "models" / resolve_device(_models_device(device)).type / f"{run}.pt"


def _device_type(jobs: Sequence[Job], device: str | None) -> str:
    """What the device of the jobs' rows begins with; any, on a cluster, of "auto"."""
    if workers.takes(jobs):
        return "" if device in (None, "auto") else device
    return resolve_device(device).type


def _models_device(device: str | None) -> str | None:
    """Where a page has the models of its runs: those of a cluster on this machine's own device."""
    return None if workers.chosen() else device


def _which(row: store.Row) -> tuple[str, str]:
    return row["run_id"], row["provenance"]["started"]


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
