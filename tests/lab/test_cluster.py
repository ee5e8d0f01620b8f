"""A grid on a cluster gives the rows that it gives without one, whatever happens to its workers."""

import os
import signal
import sys
from contextlib import contextmanager
from time import monotonic, sleep

import pytest
from small import cost_job, experiment_of, tiny

from replib.lab import cluster, kept_models, store
from replib.lab.record import claim_of, record
from replib.lab.runs.checkpointed import path_of
from replib.training import Training

PATIENCE_S = 120.0  # of a busy machine


@pytest.mark.parametrize(
    "on", ["local:0", "local:", "local:two", "local:-1", "local", "host:8786", "http://host:80"]
)
def test_what_is_no_cluster_is_refused_with_the_remedy(on):
    with pytest.raises(cluster.ClusterError, match="use local:4 .* or the address of a scheduler"):
        connect(on)


def connect(on, **options):
    with cluster.connected(on, **options):
        pass


def test_without_the_extra_the_command_that_installs_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(cluster.ClusterError, match=r"pip install -e '\.\[cluster\]'"):
        connect("local:1")


def test_local_workers_are_never_exclusive():
    with pytest.raises(cluster.ClusterError, match="leave out --on for timed points"):
        connect("local:1", exclusive=True)


def test_a_scheduler_that_is_not_there_is_told_in_time(monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(cluster, "ANSWER_S", 0.5)
    with pytest.raises(cluster.ClusterError, match="no scheduler answers at tcp://127.0.0.1:1 "):
        connect("tcp://127.0.0.1:1")


@contextmanager
def in_this_process(**options):
    """The address of a cluster whose workers are threads of this process."""
    distributed = pytest.importorskip("distributed")
    how = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"} | options
    with distributed.LocalCluster(processes=False, protocol="tcp", **how) as local:
        yield local.scheduler_address


@pytest.fixture(scope="module")
def address():
    with in_this_process() as address:
        yield address


@pytest.fixture
def workers(data, address):
    with cluster.connected(address) as workers:
        yield workers


def rows_on(workers, *jobs, **options):
    asked = [(experiment_of(*jobs), job) for job in jobs]
    return list(cluster.record_on(workers, asked, "smoke", **options))


def compared(rows):
    """What does not depend on when, where and how fast a run was."""
    timed = ("steps_per_s", "seconds")
    told = [
        [row["run_id"], row["curve"], {n: x for n, x in row["summary"].items() if n not in timed}]
        for row in rows
    ]
    return sorted(told, key=lambda run: run[0])


def test_rows_are_those_of_recording_without_a_cluster(workers, data):
    jobs = [tiny(seed=seed) for seed in range(3)]
    rows = rows_on(workers, *jobs)
    assert rows == store.read_rows("tiny")
    (data / "tiny.jsonl").unlink()
    alone = list(record(experiment_of(*jobs), "smoke", device="cpu"))
    assert compared(rows) == compared(alone)
    assert rows_on(workers, *jobs) == []  # nothing is run again


def test_a_job_that_fails_is_told_and_the_others_go_on(workers, monkeypatch):
    step, failed = Training.train_step, []

    def fail_at_seed_0(self):
        if self.seed == 0:
            raise RuntimeError("shapes differ")
        return step(self)

    monkeypatch.setattr(Training, "train_step", fail_at_seed_0)
    rows = rows_on(workers, tiny(seed=0), tiny(seed=1), failed=failed.append)
    assert [row["seed"] for row in rows] == [1]
    assert failed == ["tiny: linear, seed 0: RuntimeError: shapes differ"]


def test_a_stopped_command_leaves_nothing_on_the_cluster_and_goes_on(workers, monkeypatch):
    step, seen = Training.train_step, []

    def slow_step(self):
        sleep(0.01)
        return step(self)

    monkeypatch.setattr(Training, "train_step", slow_step)
    jobs = [tiny(seed=0, n_steps=20), *(tiny(seed=seed, n_steps=20_000) for seed in (1, 2))]

    def watch(glimpse):
        seen.append(glimpse.text)

    rows = rows_on(workers, *jobs, watch=watch, stop=lambda: "1 running" in seen[-1:].__str__())
    assert len(rows) <= 1
    assert cluster._busy() == []
    names = workers.client.run_on_scheduler(lambda dask_scheduler: [*dask_scheduler.tasks])
    ends = monotonic() + PATIENCE_S
    while names and monotonic() < ends:
        sleep(0.1)
        names = workers.client.run_on_scheduler(lambda dask_scheduler: [*dask_scheduler.tasks])
    assert names == []
    monkeypatch.undo()


def test_a_run_that_another_process_is_at_is_left_to_it(workers):
    theirs, mine = tiny(seed=0), tiny(seed=1)
    with store.claimed(claim_of(theirs, "cpu")):
        assert [row["seed"] for row in rows_on(workers, theirs, mine)] == [1]


def test_timed_points_are_refused_on_shared_workers_and_left_out_beside_others(workers):
    with pytest.raises(cluster.ClusterError, match="timed points, which a shared worker would sp"):
        rows_on(workers, cost_job())
    with pytest.warns(UserWarning, match="record them without --on, or with --exclusive"):
        rows = rows_on(workers, cost_job(), tiny())
    assert [row["kind"] for row in rows] == ["training"]


def test_timed_points_are_measured_where_each_worker_has_its_machine(data, address):
    with cluster.connected(address, exclusive=True) as workers:
        rows = rows_on(workers, cost_job())
        assert [row["outcome"] for row in rows] == ["ok"] * 3
        assert rows_on(workers, cost_job()) == []


@pytest.mark.parametrize(
    "how, told",
    [({"n_workers": 2}, "more than one worker"), ({"threads_per_worker": 2}, "--nthreads 1")],
)
def test_workers_that_share_a_machine_are_not_exclusive(how, told):
    with in_this_process(**how) as address, pytest.raises(cluster.ClusterError, match=told):
        connect(address, exclusive=True)


def test_a_device_that_no_worker_has_is_refused(address):
    with pytest.raises(cluster.ClusterError, match="--resources GPU=1"):
        connect(address, device="cuda")


def test_other_versions_on_a_worker_are_refused_and_named(address, monkeypatch):
    with pytest.raises(cluster.ClusterError, match="torch is 2.99 here, .* there"):
        here = cluster.with_code("cpu") | {"torch": "2.99"}
        asked = iter([here])  # the first that asks is this process
        real = cluster.with_code
        monkeypatch.setattr(cluster, "with_code", lambda device: next(asked, None) or real(device))
        connect(address)


def test_a_worker_that_computes_another_run_ends_the_command(workers, monkeypatch):
    ids = ["0" * 16]
    make = cluster.Task
    monkeypatch.setattr(cluster, "Task", lambda **given: make(**given | {"ids": ids}))
    with pytest.raises(cluster.ClusterError, match="parts of replib that compute a run have other"):
        rows_on(workers, tiny())
    assert store.read_rows("tiny") == []


def test_a_kept_model_comes_back_with_its_row(workers, data, monkeypatch):
    from replib.claims import EXPERIMENTS
    from replib.lab.run import TrainingJob

    small = EXPERIMENTS["images"].jobs("smoke")[0]
    job = TrainingJob(config=small.config, seed=0, keep=True)
    monkeypatch.setattr(kept_models, "model_text", lambda training, row: ("kept.txt", row["kind"]))
    monkeypatch.setattr(kept_models, "keep_model", lambda *_: pytest.fail("written by a worker"))
    rows_on(workers, job)
    assert (data / "models" / "kept.txt").read_text() == "training"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there is no such signal")
def test_a_worker_that_is_killed_loses_no_run_and_repeats_none(data):
    pytest.importorskip("distributed")
    jobs = [tiny(seed=seed, n_steps=60) for seed in range(10)]
    alone = compared(record(experiment_of(*jobs), "smoke", device="cpu"))
    (data / "tiny.jsonl").unlink()
    asked, rows, failed = [(experiment_of(*jobs), job) for job in jobs], [], []
    with cluster.connected("local:2", threads=1) as workers:
        for row in cluster.record_on(workers, asked, "smoke", failed=failed.append):
            if not rows:
                os.kill(next(iter(workers.client.run(os.getpid).values())), signal.SIGKILL)
            rows.append(row)
    assert failed == [] and compared(rows) == alone
    assert rows == store.read_rows("tiny")
    assert not any(path_of(job, "cpu").exists() for job in jobs)
