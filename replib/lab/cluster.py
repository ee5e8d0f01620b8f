"""Jobs on the workers of a Dask cluster, a task each; rows come back here and are stored here.

No more jobs are sent than the workers can begin soon, and each is claimed as by any process that
records, so that several may share an experiment. A checkpoint stays on the worker: where one dies
Dask gives its job to another, which goes on at the checkpoint if both share `REPLIB_CACHE`, else
anew. A task that nobody wants any more, as its command was stopped or killed, ends at its next
step.
"""

import hashlib
import json
import logging
import queue
import secrets
import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version_tuple
from time import monotonic
from typing import Any

from replib import files
from replib.lab import kept_models, store
from replib.lab.memory_use import tune_memory
from replib.lab.record import (
    MAX_SECONDS_PER_POINT,
    Asked,
    check_folder,
    claim_of,
    lacks_data,
    missing,
    say_left_out,
)
from replib.lab.run import Glimpse, Job, Where
from replib.training import Training

INSTALL = "pip install -e '.[cluster]'"
LOCAL = "local:"
GPU = "GPU"  # the resource of a worker that has a device to itself
ANSWER_S = 10.0  # a scheduler that is there answers within it
WORKERS_S = 30.0  # the first worker is there within it
BEGIN_S = 600.0  # a local worker is at work within it, on a busy machine too
ASKED_EVERY_S = 0.2  # what has ended
COUNTED_EVERY_S = 1.0  # the workers; also how often a worker tells how far it is
TOLD_EVERY_S = 0.1  # the same of a live run, whose rows so far are told too
WIND_DOWN_S = 8.0  # for steps under way to end, and be checkpointed
RESULT_S = 10.0  # for rows to come back; a run whose worker has died meanwhile is run again
TOPIC = "replib"


class ClusterError(ValueError):
    """A cluster cannot be used as it is; the message says what to do."""


class SchedulerGone(ClusterError):
    """The connection to the scheduler is lost."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a worker is sent: a job, where its rows belong, and what all that compute it share. Of a
    live one its rows so far are told on the way under `topic`, and its weights come back."""

    job: Job
    experiment: str
    scale: str
    device: str
    recording: int = 0
    threads: int | None
    versions: Mapping[str, str]
    ids: list[str]
    topic: str = TOPIC
    live: bool = False


@dataclass(frozen=True)
class Reply:
    """What comes back: rows, kept models by their file names, or why the job was left out; of a
    live run its weights on the CPU."""

    rows: Sequence[store.Row] = ()
    models: Mapping[str, str] = field(default_factory=dict)
    left_out: str | None = None
    weights: Mapping[str, Any] | None = None


# On a worker


@lru_cache
def versions(device: str) -> dict[str, str]:
    """The packages that have to be the same here and on each worker."""
    found = {"Python": ".".join(python_version_tuple()[:2])}
    names = ("torch", "numpy", "distributed") + ("numba",) * (device == "cpu")
    for name in names:
        try:
            found[name] = version(name).split("+")[0]  # a build for another device is no other
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def with_code(device: str) -> dict[str, str]:
    """`versions`, and a digest of the sources of this package: what is looked at before a grid
    begins. While it runs the identities of its runs are, as somebody may edit a page meanwhile."""
    root = Path(__file__).parents[1]
    sources = sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix())
    content = hashlib.sha256()
    for path in sources:
        content.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    digest = content.hexdigest()[: store.HASH_DIGITS]
    return versions(device) | {"the code of replib": digest}


def _differing(here: Mapping[str, str], there: Mapping[str, str]) -> str | None:
    """What differs between two `versions`, in words."""
    told = [f"{name} is {here[name]} here, {there.get(name)} there" for name in here]
    return "; ".join(x for name, x in zip(here, told, strict=True) if here[name] != there.get(name))


class VersionsDiffer(RuntimeError):
    """A worker that came later has other versions."""


_at_work: set[str] = set()  # the tasks of this process whose threads have not ended


def work(task: Task) -> Reply:
    """Run a job in a task of a Dask worker, until it ends or nobody wants it any more."""
    import torch
    from distributed import get_worker

    if told := _differing(task.versions, versions(task.device)):
        raise VersionsDiffer(told)
    if task.job.ids != task.ids:
        raise VersionsDiffer("parts of replib that compute a run have other versions there")
    worker = get_worker()
    key = worker.get_current_task()
    if task.threads is not None and torch.get_num_threads() != task.threads:
        torch.set_num_threads(task.threads)
    _tune()
    if why_not := lacks_data(task.job):
        return Reply(left_out=why_not)

    def stop() -> bool:
        known = worker.state.tasks.get(key)
        return known is None or known.state == "cancelled" or worker.status.name.startswith("clos")

    said, training = -COUNTED_EVERY_S, None

    def watch(glimpse: Glimpse) -> None:
        nonlocal said, training
        training, ends = glimpse.training, task.live and stop()
        if ends or monotonic() - said > (TOLD_EVERY_S if task.live else COUNTED_EVERY_S):
            said = monotonic()
            told = {"key": key, "worker": worker.address, "share": float(glimpse.fraction)}
            if task.live:
                rows = json.dumps(glimpse.rows())  # Dask would make lists tuples
                told |= {"text": glimpse.text, "rows": rows, "ends": ends}
            worker.log_event(task.topic, told)

    models: dict[str, str] = {}
    keep = lambda *trained: models.update([kept_models.model_text(*trained)])  # noqa: E731
    limits = (MAX_SECONDS_PER_POINT, task.recording, keep)
    where = Where(task.experiment, task.scale, task.device, stop, watch, *limits)
    _at_work.add(key)
    try:
        rows = list(task.job.execute(where))
        return Reply(rows, models, weights=_weights(training) if task.live else None)
    finally:
        _at_work.discard(key)


def _weights(training: Any) -> dict[str, Any] | None:
    """Of the model of a training, on the CPU, as another machine may have no other device."""
    if not isinstance(training, Training):
        return None
    return {name: x.cpu() for name, x in training.model.state_dict().items()}


@lru_cache
def _tune() -> None:
    tune_memory()


def _busy() -> list[str]:
    return sorted(_at_work)


def discard(ended: Sequence[tuple[Job, list[store.Row]]]) -> None:
    """Drop the checkpoints of runs that have been stored."""
    for job, rows in ended:
        with suppress(ValueError):  # another kind of device than this worker's
            job.ended(rows)


def dask_setup(worker: Any) -> None:
    """What a local worker does first: Ctrl-C is this command's, which tells its workers."""
    with suppress(ValueError):  # not in a main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)


# Here


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster that has been looked at: its client, and how runs are computed on it."""

    client: Any
    name: str
    device: str
    threads: int | None
    exclusive: bool

    def workers(self) -> dict[str, dict]:
        """What is known of each worker that can run a job, by its address.

        Raises:
            SchedulerGone: it has.
        """
        try:
            found = self.client.scheduler_info()["workers"]
        except Exception as error:  # what a lost connection raises is not told
            raise SchedulerGone(_gone(self.name)) from error
        return {x: about for x, about in found.items() if _slots(about, self.device)}

    @property
    def text(self) -> str:
        """What runs where, in a line."""
        n = len(self.workers())
        threads = f", {self.threads} thread{'s' * (self.threads > 1)} each" if self.threads else ""
        return f"{n} worker{'s' * (n != 1)} of {self.name}, on {self.device}{threads}"

    def n_slots(self, workers: Mapping[str, dict]) -> int:
        """How many jobs some workers run at the same time."""
        return sum(_slots(about, self.device) for about in workers.values())

    def submit(self, job: Job, experiment: str, scale: str, key: str, **options: Any) -> Any:
        """Send a job as the task `key`, with the `options` of a `Task`; its future."""
        task = Task(
            job=job,
            experiment=experiment,
            scale=scale,
            device=self.device,
            threads=self.threads,
            versions=versions(self.device),
            ids=job.ids,
            **options,
        )
        wants = {"resources": {GPU: 1}} if self.device == "cuda" else {}
        return self.client.submit(work, task, key=key, pure=False, **wants)

    def reply(self, future: Any) -> Reply | str:
        """What came back in a future that is done, or what went wrong.

        Raises:
            ClusterError: no more will come.
            TimeoutError: not yet.
        """
        if future.status in ("cancelled", "lost"):
            if self.client.status != "running":
                raise SchedulerGone(_gone(self.name))
            return "somebody cancelled it on the cluster"
        if future.status == "error":
            error = future.exception(timeout=RESULT_S)
            if isinstance(error, VersionsDiffer):
                raise ClusterError(f"a worker of {self.name} does not suit: {error}")
            name = type(error).__name__
            if name == "KilledWorker":
                return f"its workers died {error.allowed_failures + 1} times"
            return f"{name}: {str(error).strip().splitlines()[0] if str(error) else 'no reason'}"
        return future.result(timeout=RESULT_S)


def _slots(about: Mapping[str, Any], device: str) -> int:
    return int(about["resources"].get(GPU, 0)) if device == "cuda" else about["nthreads"]


def _gone(name: str) -> str:
    return (
        f"the scheduler at {name} has gone: what was recorded is kept; the same command "
        "continues once it is there again"
    )


@contextmanager
def connected(
    on: str,
    *,
    device: str | None = None,
    threads: int | None = None,
    exclusive: bool = False,
    option: str = "--on ",
) -> Iterator[Cluster]:
    """A cluster to run jobs on, checked.

    Args:
        on: "local:4" starts so many workers on this machine, of a process each; else the address of
            a scheduler, such as tcp://host:8786.
        device: "cpu" or "cuda"; where it is left out "cuda" if a worker has the resource GPU.
        threads: of each run; left out, those that a worker has, and of local workers a fair share
            of the cores.
        exclusive: each worker has its machine to itself, so that points may be timed on it.
        option: what stands before `on` where the reader has written it, for what is told.

    Raises:
        ClusterError: `distributed` is not installed, there is no such scheduler or no worker, or a
            worker does not suit.
    """
    n_local = n_local_workers(on, option)
    if exclusive and n_local:
        raise ClusterError(
            f"--exclusive with {on}: local workers share this machine; leave out --on for timed "
            "points"
        )
    if device not in (None, "auto", "cpu", "cuda"):
        raise ClusterError(f"--device {device} on a cluster: use auto, cpu or cuda")
    try:
        import distributed
    except ImportError as error:
        raise ClusterError(f"{option}{on} needs the package distributed: {INSTALL}") from error
    with ExitStack() as stack:
        address = on
        if n_local:
            threads = threads or max(1, (_cores() // n_local))
            local = stack.enter_context(_local_cluster(distributed, n_local))
            address = local.scheduler_address
        client = stack.enter_context(_client(distributed, address, on, option))
        try:
            client.wait_for_workers(1, timeout=WORKERS_S)
        except TimeoutError as error:
            raise ClusterError(
                f"the scheduler at {on} has had no worker for {WORKERS_S:.0f} s: start some with "
                f"dask worker {address} --nthreads 1"
            ) from error
        has_gpu = any(_slots(x, "cuda") for x in client.scheduler_info()["workers"].values())
        if device in (None, "auto"):
            device = "cuda" if has_gpu else "cpu"
        if device == "cuda" and not has_gpu:
            raise ClusterError(
                f"no worker of {on} has a CUDA device: start one with --resources {GPU}=1, or use "
                "--device cpu"
            )
        cluster = Cluster(
            client=client, name=on, device=device, threads=threads, exclusive=exclusive
        )
        _check_versions(cluster)
        if exclusive:
            _check_exclusive(cluster)
        yield cluster


def n_local_workers(on: str, option: str = "--on ") -> int | None:
    """The number of local workers; None where an address of a scheduler was given."""
    if on.startswith(("tcp://", "tls://")):
        return None
    n = on.removeprefix(LOCAL)
    if not on.startswith(LOCAL) or not n.isdecimal() or not 1 <= int(n) <= 1000:
        raise ClusterError(
            f"{option}{on}: use local:4 for 4 workers on this machine, or the address of a "
            "scheduler such as tcp://host:8786"
        )
    return int(n)


def _cores() -> int:
    import torch

    return torch.get_num_threads()


@contextmanager
def _local_cluster(distributed: Any, n_workers: int) -> Iterator[Any]:
    import dask

    folder = files.cache_folder() / "dask"
    how = {
        "distributed.worker.multiprocessing-method": "spawn",
        "distributed.deploy.lost-worker-timeout": BEGIN_S,  # of one that was killed to come again
    }
    with (
        dask.config.set(how),
        distributed.LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
            local_directory=str(folder),
            preload=[__name__],
            silence_logs=logging.CRITICAL,
        ) as local,
    ):
        yield local


@contextmanager
def _client(distributed: Any, address: str, on: str, option: str) -> Iterator[Any]:
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # said by this program
    try:
        client = distributed.Client(address, timeout=ANSWER_S, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise ClusterError(
            f"no scheduler answers at {on} within {ANSWER_S:.0f} s: start one with dask scheduler, "
            f"or use {option}{LOCAL}2"
        ) from error
    try:
        yield client
    finally:
        with suppress(Exception):  # of a connection that is lost
            client.close(timeout=ANSWER_S)


def _check_versions(cluster: Cluster) -> None:
    """
    Raises:
        ClusterError: the scheduler or a worker has other versions than this process.
    """
    here, client = with_code(cluster.device), cluster.client
    options = {"device": cluster.device}
    found: dict[str, Any] = client.run(with_code, **options, on_error="return")
    try:
        found["the scheduler"] = client.run_on_scheduler(with_code, **options)
    except Exception as error:  # what cannot be imported there, and whatever it raises
        found["the scheduler"] = error
    for who, there in found.items():
        if isinstance(there, Exception):
            told = f"replib cannot be used there ({there})"
        elif not (told := _differing(here, there)):
            continue
        raise ClusterError(
            f"{who} of {cluster.name} does not suit: {told}. Install the same there, and start it "
            "again"
        )


def _check_exclusive(cluster: Cluster) -> None:
    """
    Raises:
        ClusterError: two workers share a machine, or two tasks a worker.
    """
    workers = cluster.workers().values()
    hosts = [about["host"] for about in workers]
    if twice := [host for host in hosts if hosts.count(host) > 1]:
        raise ClusterError(f"--exclusive: {twice[0]} has more than one worker, start one there")
    if any(about["nthreads"] > 1 for about in workers):
        raise ClusterError("--exclusive: start workers with --nthreads 1, one task at a time")


def record_on(
    cluster: Cluster,
    asked: Iterable[Asked],
    scale: str,
    *,
    stop: Callable[[], bool] = lambda: False,
    watch: Callable[[Glimpse], None] = lambda glimpse: None,
    failed: Callable[[str], None] = lambda text: None,
    retime_below: int = 0,
    recording: int = 0,
) -> Iterator[store.Row]:
    """Run the jobs that have no finished row on the kind of device of a cluster, append their rows
    to `data/` as they come back, and yield them. A job that fails, or whose workers died again and
    again, is told to `failed`, and the others go on.

    Raises:
        ClusterError: nothing but timed points is asked for and the workers are not exclusive; a
            worker came that has other versions; the scheduler has gone. What was recorded stays.
        FileError: a row cannot be written.
    """
    check_folder()
    wanted: deque[Asked] = deque()
    refused: list[Asked] = []
    for experiment, job in asked:
        left = missing(experiment, job, cluster.device, retime_below, recording)
        if left is None:
            continue
        (wanted if cluster.exclusive or not job.timed else refused).append((experiment, left))
    if refused:
        told = (
            f"{', '.join(dict.fromkeys(one.name for one, _ in refused))}: timed points, which a "
            "shared worker would spoil: record them without --on, or with --exclusive where each "
            "worker has its machine to itself"
        )
        if not wanted:
            raise ClusterError(told)
        warnings.warn(told, stacklevel=2)
    grid = _Grid(cluster, wanted, scale, retime_below, recording)
    try:
        while grid.send() and not stop():
            for rows, trouble in grid.ended():
                if trouble:
                    failed(trouble)
                yield from rows
            watch(Glimpse(grid.share, grid.text, list))
    finally:
        grid.close()


@dataclass
class _Sent:
    """A job on its way, which this process has claimed."""

    asked: Asked
    future: Any
    claim: ExitStack
    worker: str | None = None  # that is at it, and the share that it has done
    share: float = 0.0


class _Grid:
    """The jobs of a command: waiting, sent, ended."""

    def __init__(
        self,
        cluster: Cluster,
        wanted: deque[Asked],
        scale: str,
        retime_below: int,
        recording: int,
    ):
        self.cluster, self.waiting, self.n_jobs = cluster, wanted, len(wanted)
        self.scale, self.retime_below, self.recording = scale, retime_below, recording
        self.sent: dict[str, _Sent] = {}
        self.n_done = self.n_failed = self.n_elsewhere = 0
        self.began, self.counted = monotonic(), -COUNTED_EVERY_S
        self.name = secrets.token_hex(8)  # tells the tasks of this command from others'
        self.n_sent = 0
        self.workers: dict[str, dict] = {}
        self.back: queue.SimpleQueue[str] = queue.SimpleQueue()
        cluster.client.subscribe_topic(TOPIC, self._told)

    def _told(self, event: tuple[float, Mapping[str, Any]]) -> None:
        """How far a worker is; called in the client's thread."""
        _, told = event
        if sent := self.sent.get(told.get("key")):
            sent.worker, sent.share = told["worker"], told["share"]

    def send(self) -> bool:
        """Send as many jobs as can begin soon; whether any are under way."""
        if monotonic() - self.counted > COUNTED_EVERY_S:
            self.workers, self.counted = self.cluster.workers(), monotonic()
        # One more a worker, so that none waits for the next to be sent.
        most = max(1, self.cluster.n_slots(self.workers) + len(self.workers))
        while self.waiting and len(self.sent) < most:
            self._send(*self.waiting.popleft())
        return bool(self.sent)

    def _send(self, experiment, job: Job) -> None:
        cluster = self.cluster
        claim = ExitStack()
        ours = claim.enter_context(store.claimed(claim_of(job, cluster.device)))
        how = (self.retime_below, self.recording)
        left = missing(experiment, job, cluster.device, *how) if ours else None
        if left is None:  # another process is at it, or has finished it
            claim.close()
            self.n_elsewhere += 1
            return
        key = f"replib-{self.name}-{self.n_sent}"
        self.n_sent += 1
        options = {"recording": self.recording}
        future = cluster.submit(left, experiment.name, self.scale, key, **options)
        self.sent[key] = _Sent((experiment, left), future, claim)
        future.add_done_callback(lambda future: self.back.put(future.key))

    def ended(self) -> Iterator[tuple[list[store.Row], str | None]]:
        """The stored rows of each job that has ended, or what went wrong; waits a moment."""
        keys = []
        with suppress(queue.Empty):
            keys.append(self.back.get(timeout=ASKED_EVERY_S))
            while True:
                keys.append(self.back.get_nowait())
        stored = []
        for key in keys:
            sent = self.sent[key]
            try:
                reply = self.cluster.reply(sent.future)
            except TimeoutError:  # its worker has died with the rows, and another is at it
                sent.future.add_done_callback(lambda future: self.back.put(future.key))
                continue
            del self.sent[key]
            with sent.claim:
                yield self._stored(sent, reply, stored)
        if stored:
            with suppress(Exception):  # a checkpoint that stays is harmless
                self.cluster.client.run(discard, stored, on_error="ignore")

    def _stored(self, sent: _Sent, reply: Reply | str, stored: list):
        experiment, job = sent.asked
        if isinstance(reply, str):
            self.n_failed += 1
            return [], f"{experiment.name}: {_words(job)}: {reply}"
        if reply.left_out:
            self.n_elsewhere += 1
            say_left_out(job, reply.left_out)
            return [], None
        rows = list(reply.rows)
        if any(row["outcome"] == "interrupted" for row in rows) or not rows:
            self.waiting.appendleft(sent.asked)  # its worker was told to end
            return [], None
        for name, text in reply.models.items():
            kept_models.write_model(name, text)
        store.append_rows(experiment.name, rows)
        stored.append((job, rows))
        self.n_done += 1
        return rows, None

    @property
    def share(self) -> float:
        """Of the work, the part that is done, from 0 to 1."""
        done = self.n_done + self.n_failed + sum(sent.share for sent in [*self.sent.values()])
        return done / max(1, self.n_jobs - self.n_elsewhere)

    @property
    def text(self) -> str:
        """How far it is, in a line."""
        at_work = [sent for sent in [*self.sent.values()] if sent.worker in self.workers]
        n_jobs, share = self.n_jobs - self.n_elsewhere, self.share
        words = [f"{self.n_done} of {n_jobs} runs done", f"{len(at_work)} running"]
        words.append(f"{self.n_failed} failed")
        if not self.workers:
            words.append("no worker")
        elif share > 0:
            words.append(f"about {_span((monotonic() - self.began) * (1 - share) / share)} left")
        return ", ".join(words)

    def close(self) -> None:
        """Leave nothing of this command on the cluster: tasks are cancelled, and have WIND_DOWN_S
        to end their step and write their checkpoints."""
        client = self.cluster.client
        with suppress(Exception):  # the scheduler may have gone
            client.unsubscribe_topic(TOPIC)
            if self.sent:
                client.cancel([sent.future for sent in self.sent.values()])
                ends = monotonic() + WIND_DOWN_S
                while self._at_work() and monotonic() < ends:
                    time.sleep(ASKED_EVERY_S / 2)
        for sent in self.sent.values():
            sent.claim.close()
        self.sent.clear()

    def _at_work(self) -> bool:
        busy = self.cluster.client.run(_busy, on_error="ignore")
        return any(self.name in key for keys in busy.values() for key in keys)


def _words(job: Job) -> str:
    model = getattr(job.configs[0], "model", job.configs[0])
    seeds = ", ".join(map(str, job.seeds[:8]))
    return f"{getattr(model, 'attention', job.kind)}, seed {seeds}"


def _span(seconds: float) -> str:
    """Such as "40 s", "12 min" or "3 h 20 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
