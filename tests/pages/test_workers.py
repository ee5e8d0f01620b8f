"""Live runs on a cluster: the points are those of this machine, Stop ends them, nothing hangs."""

import os
import signal
import sys
from time import monotonic, sleep

import pytest
from small import cost_job, tiny
from test_live import ENDLESS, finish, retrieval_job, wait_until

from replib.lab import cluster
from replib.lab.runs.checkpointed import path_of
from replib.pages import workers
from replib.pages.live import LiveRuns
from replib.training import Training


@pytest.fixture
def live_on(monkeypatch):
    """A function that makes a page whose runs go to a cluster."""
    used = []

    def page(name):
        monkeypatch.setenv(workers.VARIABLE, name)
        used.append(workers.of(name))
        return LiveRuns("convergence")

    yield page
    for each in used:
        each.close()
    workers.of.cache_clear()


@pytest.fixture(scope="module")
def address():
    """The address of a cluster whose worker is a thread of this process."""
    distributed = pytest.importorskip("distributed")
    how = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with distributed.LocalCluster(processes=False, protocol="tcp", **how) as local:
        yield local.scheduler_address


def failure(live, job):
    live.start([job], "auto")
    assert finish(live).status == "failed"
    assert workers.OTHERWISE in live.poll().error
    return live.poll().error


def test_points_of_a_cluster_are_those_of_this_machine_and_come_while_it_runs(live_on, address):
    job, seen = tiny(n_steps=60), []
    live = live_on(address)
    live.start([job], "auto")
    while live.running:
        seen += [row["curve"]["loss"] for row in live.poll().rows.values()]
        sleep(0.01)
    assert finish(live).status == "done", live.poll().error
    (row,) = live.finished
    alone = [m.loss for m in Training(job.config, seed=0, device="cpu").metrics()]
    assert row["curve"]["loss"] == alone and row["outcome"] == "ok"
    parts = [losses for losses in seen if len(losses) < len(alone)]
    assert parts
    assert not [losses for losses in parts if losses != alone[: len(losses)]]
    assert live.rows([job], "auto") == [row] and row["provenance"]["device"] == "cpu"


def test_a_model_comes_home_and_stays(live_on, address):
    job = tiny()
    live = live_on(address)
    live.start([job], "auto")
    assert finish(live).status == "done", live.poll().error
    alone = Training(job.config, seed=0, device="cpu")
    list(alone.metrics())
    for page in (live, LiveRuns("convergence")):
        weights = page.model(job, "auto").model.state_dict()
        assert all(weights[name].equal(x) for name, x in alone.model.state_dict().items())
    wait_until(lambda: not path_of(job, "cpu").exists())


def test_memories_learn_there_too(live_on, address, monkeypatch):
    job = retrieval_job(seeds=(0, 1))
    live = live_on(address)
    live.start([job], "auto")
    assert finish(live).status == "done", live.poll().error
    there = {row["seed"]: row["curve"] for row in live.finished}
    monkeypatch.delenv(workers.VARIABLE)
    live.start([job], "cpu", again=True)
    assert finish(live).status == "done"
    assert there == {row["seed"]: row["curve"] for row in live.finished[2:]} and len(there) == 2


def test_stop_ends_the_task_at_the_worker_and_the_run_goes_on_later(live_on, address):
    job = tiny(**ENDLESS)
    live = live_on(address)
    live.start([job], "auto")
    wait_until(lambda: live.poll().rows, live)
    (shown,) = live.poll().rows.values()
    began = monotonic()
    live.stop()
    wait_until(lambda: not cluster._busy(), live)
    print(f"stopped within {monotonic() - began:.2f} s")
    assert finish(live).status == "stopped"
    (row,) = live.finished
    assert row["outcome"] == "interrupted"
    known = shown["curve"]["loss"]
    assert row["curve"]["loss"][: len(known)] == known
    live.start([job], "auto")
    longer = lambda row: len(row["curve"]["loss"]) > len(known)  # noqa: E731
    wait_until(lambda: any(map(longer, live.poll().rows.values())))
    live.stop()
    finish(live)
    again = live.finished[-1]["curve"]["loss"]
    assert again[: len(row["curve"]["loss"])] == row["curve"]["loss"]


def test_a_run_that_fails_at_the_worker_says_why(live_on, address, monkeypatch):
    def fail(self):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(Training, "train_step", fail)
    live = live_on(address)
    live.start([tiny()], "auto")
    assert finish(live).status == "failed"
    assert live.poll().error == "RuntimeError: shapes differ"


def test_times_are_taken_on_this_machine_which_is_said(live_on):
    live = live_on("tcp://127.0.0.1:1")
    live.start([cost_job()], "cpu")
    assert finish(live).status == "done"
    assert "on this machine, not on tcp://127.0.0.1:1" in workers.where_computed([cost_job()])
    assert "Runs go to tcp://127.0.0.1:1" in workers.where_computed([tiny()])


def test_a_scheduler_that_is_not_there_is_told(live_on, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(cluster, "ANSWER_S", 0.5)
    told = failure(live_on("tcp://127.0.0.1:1"), tiny())
    assert "no scheduler answers at tcp://127.0.0.1:1" in told and "dask scheduler" in told


def test_a_stop_does_not_wait_for_a_scheduler_that_is_not_there(live_on, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(cluster, "ANSWER_S", 30.0)
    live = live_on("tcp://127.0.0.1:1")
    live.start([tiny()], "auto")
    wait_until(lambda: "connecting" in live.poll().text, live)
    live.stop()
    live.join(5.0)
    assert live.poll().status == "stopped"


def test_without_the_extra_the_command_that_installs_it_is_told(live_on, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    told = failure(live_on("local:1"), tiny())
    assert "REPLIB_CLUSTER=local:1 needs the package" in told
    assert cluster.INSTALL in told


def test_what_is_no_cluster_is_refused(live_on):
    assert "REPLIB_CLUSTER=host:8786: use local:4" in failure(live_on("host:8786"), tiny())


def test_a_scheduler_that_goes_is_told_and_the_next_run_finds_the_next_one(live_on, monkeypatch):
    distributed = pytest.importorskip("distributed")
    how = {"processes": False, "protocol": "tcp", "dashboard_address": "127.0.0.1:0"}
    local = distributed.LocalCluster(n_workers=1, threads_per_worker=1, **how)
    live, place = live_on(local.scheduler_address), local.scheduler_address
    live.start([tiny(**ENDLESS)], "auto")
    wait_until(lambda: live.poll().rows, live)
    local.close()
    assert finish(live).status == "failed"
    assert f"the scheduler at {place} has gone" in live.poll().error
    assert workers.OTHERWISE in live.poll().error
    port = int(place.rpartition(":")[2])
    with distributed.LocalCluster(n_workers=1, scheduler_port=port, threads_per_worker=1, **how):
        live.start([tiny()], "auto")
        assert finish(live).status == "done", live.poll().error


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there is no such signal")
def test_a_local_worker_that_is_killed_is_replaced_and_points_are_the_same(live_on, monkeypatch):
    pytest.importorskip("distributed")
    job = tiny(n_steps=600)
    live = live_on("local:1")
    live.start([job], "cpu")
    wait_until(lambda: live.poll().rows, live)
    client = workers.of("local:1").connect().result().client
    os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
    assert finish(live).status == "done", live.poll().error
    (row,) = live.finished
    monkeypatch.delenv(workers.VARIABLE)
    live.start([job], "cpu", again=True)
    assert finish(live).status == "done"
    assert row["curve"] == live.finished[-1]["curve"]
