"""Live runs on the workers of a Dask cluster, which REPLIB_CLUSTER names: tasks of `lab.cluster`,
whose rows are told while they run.

What is timed stays on the reader's machine. A run looks for `stop` every LOOK_EVERY_S, whoever does
not answer (a result on its way has RESULT_S), and ends with a ClusterError where no more will come.
"""

import json
import os
import queue
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import lru_cache
from time import monotonic
from typing import Any

from replib.lab import cluster, store
from replib.lab.cluster import Cluster, ClusterError
from replib.lab.run import Glimpse, Job, Where
from replib.pages.processor import ALL_THREADS
from replib.training import Training

VARIABLE = "REPLIB_CLUSTER"
LOOK_EVERY_S = 0.05
STOPS_WITHIN_S = 1.0  # a step, or what was told last is kept
LOST_S = 30.0  # of a scheduler that does not answer, or has no worker: a local one comes back
OTHERWISE = f"Or start the server without {VARIABLE}: it then trains by itself"


def chosen() -> str | None:
    """The cluster that live runs go to; None where the server computes them."""
    return os.environ.get(VARIABLE) or None


def takes(jobs: Sequence[Job]) -> bool:
    """Whether jobs go to a cluster: none that takes times does."""
    return chosen() is not None and not any(job.timed for job in jobs)


def where_computed(jobs: Sequence[Job]) -> str:
    """Where jobs are computed, in a sentence; empty where there is no choice."""
    if not jobs or chosen() is None:
        return ""
    if takes(jobs):
        return f"Runs go to {chosen()}; a time told beforehand is this machine's."
    return f"Times are taken on this machine, not on {chosen()}."


@lru_cache
def of(name: str) -> "LiveCluster":
    """The cluster of a name, one for all pages of this process."""
    return LiveCluster(name)


class LiveCluster:
    """A cluster that is connected to by the first run, and again by the next where it was lost."""

    def __init__(self, name: str):
        self.name = name
        self._lock = threading.Lock()
        self._opened: Future[Cluster] | None = None
        self._open = ExitStack()
        # What the client has no time limit for is asked in threads of its own.
        self._asking = ThreadPoolExecutor(max_workers=4)
        self._topic = f"{cluster.TOPIC}-{secrets.token_hex(8)}"
        self._told: dict[str, queue.SimpleQueue] = {}
        """By task, what its worker tells, and None when it has ended."""

    def connect(self) -> "Future[Cluster]":
        """The connection, which is made meanwhile where there is none."""
        with self._lock:
            if self._opened is None or self._opened.done() and not self._connected():
                self._opened = Future()
                threading.Thread(target=self._connect, args=(self._opened,), daemon=True).start()
            return self._opened

    def close(self) -> None:
        """Leave the cluster; end it if it is a local one."""
        with self._lock:
            self._opened = None
            self._open.close()

    def _connected(self) -> bool:
        return self._opened.exception() is None and self._opened.result().client.status == "running"

    def _connect(self, opened: "Future[Cluster]") -> None:
        try:
            with suppress(Exception):  # of a cluster that was lost
                self._open.close()
            option = f"{VARIABLE}="
            n = cluster.n_local_workers(self.name, option)
            threads = n and max(1, (ALL_THREADS - 1) // n)  # a core is the page's
            found = self._open.enter_context(
                cluster.connected(self.name, threads=threads, option=option)
            )
            found.client.subscribe_topic(self._topic, self._hear)
            opened.set_result(found)
        except ClusterError as error:
            opened.set_exception(ClusterError(f"{error}. {OTHERWISE}"))
        except Exception as error:  # the page must say what happened in its thread
            opened.set_exception(error)

    def _hear(self, event: tuple[float, Mapping[str, Any]]) -> None:
        """Called in the client's thread."""
        _, told = event
        if heard := self._told.get(told["key"]):
            heard.put(told)

    def workers(self, device: str | None, stop: Callable[[], bool]) -> Cluster | None:
        """The cluster as it computes on a device, None where `stop` says so before it is there.

        Raises:
            ClusterError: it cannot be used; the message says what to do.
        """
        opened = self.connect()
        while not opened.done():
            if stop():
                return None
            with suppress(TimeoutError):
                opened.exception(timeout=LOOK_EVERY_S)
        found = opened.result()
        if device in (None, "auto", found.device):
            return found
        if device != "cpu":
            raise ClusterError(f"no worker of {self.name} has the resource GPU: choose cpu or auto")
        return replace(found, device=device)

    def execute(self, job: Job, where: Where) -> Iterator[store.Row]:
        """As `job.execute(where)`, on a worker."""
        workers = self.workers(where.device, where.stop)
        if workers is None:
            return
        try:
            rows = yield from self._rows(workers, job, where)
        except cluster.SchedulerGone as error:
            raise ClusterError(
                f"the scheduler at {self.name} has gone: start it again with dask scheduler. "
                f"{OTHERWISE}"
            ) from error
        if rows:
            self._asking.submit(workers.client.run, cluster.discard, [(job, rows)])

    def _rows(self, workers: Cluster, job: Job, where: Where):
        """Yield the rows of a job; returns those that have been stored then."""
        key, heard = f"replib-live-{secrets.token_hex(8)}", queue.SimpleQueue()
        self._told[key] = heard
        options = {"topic": self._topic, "live": True}
        future = workers.submit(job, where.experiment, where.scale, key, **options)
        future.add_done_callback(lambda future: heard.put(None))
        watch = _Watch(self, workers, where)
        try:
            while not where.stop():
                watch.look()
                try:
                    told = heard.get(timeout=LOOK_EVERY_S)
                except queue.Empty:
                    continue
                if told is not None:
                    watch.tell(told)
                    continue
                try:
                    reply = workers.reply(future)
                except TimeoutError:  # its worker has died with the rows, and another is at it
                    future.add_done_callback(lambda future: heard.put(None))
                    continue
                return (yield from watch.end(reply, job))
            future.release()  # nobody wants it any more: it ends at its next step
            watch.wind_down(heard)
            yield from watch.rows
        finally:
            future.release()
            del self._told[key]


class _Watch:
    """A run on its way, and whether there is anybody to compute it."""

    def __init__(self, live: LiveCluster, workers: Cluster, where: Where):
        self.live, self.workers, self.where = live, workers, where
        self.rows: list[store.Row] = []
        self.share, self.begun = 0.0, False
        self.text = ""
        self.asked: Future | None = None
        self.answered = self.manned = monotonic()
        self.say(f"waiting for a worker of {live.name}")

    def tell(self, told: Mapping[str, Any]) -> None:
        """Let the page see what a worker has told."""
        self.begun, self.share = True, told["share"]
        self.rows = json.loads(told["rows"])
        self.say(f"{told['text']}, on {self.live.name}")

    def say(self, text: str) -> None:
        self.text = text
        self.where.watch(Glimpse(self.share, text, lambda: self.rows))

    def look(self) -> None:
        """Ask for the workers once in a while.

        Raises:
            ClusterError: there have been none for LOST_S, or nobody answers.
        """
        now, name = monotonic(), self.live.name
        if self.asked is None and now - self.answered > cluster.COUNTED_EVERY_S:
            self.asked = self.live._asking.submit(self.workers.workers)
        if self.asked is not None and self.asked.done():
            found, self.asked, self.answered = self.asked.result(), None, now
            if found:
                self.manned = now
            else:
                self.say(f"{name} has no worker")
        if now - self.answered > LOST_S:
            raise ClusterError(
                f"the scheduler at {name} has not answered for {LOST_S:.0f} s: start it again with "
                f"dask scheduler. {OTHERWISE}"
            )
        if now - self.manned > LOST_S:
            raise ClusterError(
                f"{name} has had no worker for {LOST_S:.0f} s: start one with dask worker "
                f"{self.workers.client.scheduler.address} --nthreads 1. {OTHERWISE}"
            )

    def wind_down(self, heard: queue.SimpleQueue) -> None:
        """Wait for the last that a worker tells of a run that was stopped."""
        ends = monotonic() + STOPS_WITHIN_S
        while self.begun and (left := ends - monotonic()) > 0:
            with suppress(queue.Empty):
                if told := heard.get(timeout=left):
                    self.tell(told)
                    self.begun = not told["ends"]

    def end(self, reply: cluster.Reply | str, job: Job):
        """Let the page have the model, and yield the rows, which are returned too.

        Raises:
            ValueError: the run failed.
        """
        if isinstance(reply, str) or reply.left_out:
            raise ValueError(reply if isinstance(reply, str) else reply.left_out)
        self.rows = list(reply.rows)
        trained = _trained(job, reply.weights)
        self.where.watch(Glimpse(1.0, self.text, lambda: self.rows, trained))
        yield from self.rows
        return self.rows


def _trained(job: Job, weights: Mapping[str, Any] | None) -> Training | None:
    """The trained model, on a device of this machine: for pages, not to be trained on."""
    if weights is None:
        return None
    with suppress(ValueError):  # what it is built from cannot be read here
        training = job.configs[0].training(seed=job.seeds[0])
        training.model.load_state_dict(weights)
        training.step = job.configs[0].n_steps
        return training
    return None
