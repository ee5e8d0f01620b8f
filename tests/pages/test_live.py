"""Runs that an open notebook starts: they show, stop, resume, stay and never disturb each other."""

import threading
from time import monotonic, sleep

import pytest
import torch

from replib import kernels
from replib.claims.capacity.grid import retrieval_config
from replib.claims.common import laptop_copy
from replib.fast_weights import MemoryConfig
from replib.generation import copy_with
from replib.lab.memory_use import TIMING_LOCK
from replib.lab.run import CostJob, Glimpse, RetrievalJob, TrainingJob
from replib.lab.runs.checkpointed import path_of
from replib.lab.runs.generation import GenerationConfig
from replib.lab.timing import CostConfig
from replib.pages import live as module
from replib.pages import processor
from replib.pages.live import LiveRuns
from replib.pages.processor import kernel_to_compile, refusal
from replib.tasks import CausalCopy
from replib.training import Training

PATIENCE_S = 60.0  # a busy machine; no test waits so long unless it fails


def job(n_steps=20, attention="linear", seed=0, **changes):
    options = {"eval_every": 5, "eval_batches": 1, "batch_size": 4}
    return TrainingJob(config=laptop_copy(attention, 16, n_steps, **options | changes), seed=seed)


def cost_job(seq_len=16, n_repeats=2):
    variants = (("softmax", "textbook"), ("linear", "torch"))
    configs = [
        CostConfig(attention=a, kernel=i, seq_len=seq_len, n_heads=1, head_dim=4)
        for a, i in variants
    ]
    return CostJob(configs=tuple(configs), n_repeats=n_repeats)


ENDLESS = {"n_steps": 1_000_000, "schedule": "drop"}


def wait_until(true, live=None):
    end = monotonic() + PATIENCE_S
    while not true():
        assert monotonic() < end, "waited in vain"
        if live is not None:
            live.poll()
        sleep(0.01)


def finish(live):
    wait_until(lambda: not live.running, live)
    return live.poll()


def run(jobs, experiment="convergence"):
    live = LiveRuns(experiment)
    live.start(jobs, "cpu")
    assert finish(live).status == "done"
    return live


@pytest.fixture
def started(request):
    """A page with a run that does not end by itself, after its first metrics."""
    live = LiveRuns("convergence")
    live.start([job(**ENDLESS)], "cpu")
    request.addfinalizer(lambda: (live.stop(), live.join(PATIENCE_S)))
    wait_until(lambda: live.poll().rows, live)
    return live


def test_a_run_ends_with_the_row_of_the_training_that_was_asked_for():
    live = run([job()])
    (row,) = live.finished
    alone = Training(job().config, seed=0, device="cpu")
    losses = [m.loss for m in alone.metrics()]
    assert row["curve"]["loss"] == losses
    assert row["outcome"] == "ok" and row["scale"] == "live"
    assert live.poll().fraction == 1.0
    assert live.rows([job()], "cpu") == [row] == live.showing([job()], "cpu")


def test_a_running_job_shows_its_curve_so_far(started):
    (row,) = started.showing([job(**ENDLESS)], "cpu")
    assert row["outcome"] == "interrupted"
    assert row["curve"]["step"][0] == 5
    assert started.rows([job(**ENDLESS)], "cpu") == []
    progress = started.poll()
    assert progress.status == "running" and 0 < progress.fraction < 1
    assert "linear, N = 16, seed 0: step" in progress.text and "nats a token" in progress.text


def test_a_stopped_run_keeps_its_row_and_its_curve(started):
    before = len(next(iter(started.poll().rows.values()))["curve"]["step"])
    started.stop()
    assert finish(started).status == "stopped"
    (row,) = started.finished
    assert row["outcome"] == "interrupted"
    assert len(row["curve"]["step"]) >= before  # stopping measures nothing
    assert started.showing([job(**ENDLESS)], "cpu") == [row]


def test_a_stopped_run_resumes_where_it_stopped():
    config = job(n_steps=60)
    live = LiveRuns("convergence")
    live.start([config], "cpu")
    wait_until(lambda: live.poll().rows, live)
    live.stop()
    finish(live)
    (stopped,) = live.finished
    live.start([config], "cpu")
    assert finish(live).status == "done"
    ended = live.finished[-1]
    if stopped["outcome"] == "ok":
        pytest.skip("the run ended before it could be stopped")
    steps = stopped["curve"]["step"]
    assert ended["outcome"] == "ok" and ended["curve"]["step"][-1] == 60
    assert ended["curve"]["loss"][: len(steps)] == stopped["curve"]["loss"]
    assert ended["run_id"] == stopped["run_id"]
    assert not path_of(config, "cpu").exists()


def test_finished_runs_stay_when_the_settings_move_on():
    live = run([job(seed=0)])
    assert live.missing([job(seed=0), job(seed=1)], "cpu") == [job(seed=1)]
    live.start([job(seed=0), job(seed=1)], "cpu")
    finish(live)
    assert [row["seed"] for row in live.finished] == [0, 1]
    assert [row["seed"] for row in live.showing([job(seed=0)], "cpu")] == [0]


def test_what_had_run_stays_in_sight_while_the_rest_runs_and_after_a_stop():
    live = run([job(seed=0)])
    batch = [job(seed=0), job(**ENDLESS)]
    live.start(batch, "cpu")
    wait_until(lambda: live.poll().rows, live)
    assert len(live.showing(batch, "cpu")) == 2
    live.stop()
    finish(live)
    outcomes = [row["outcome"] for row in live.showing(batch, "cpu")]
    assert sorted(outcomes) == ["interrupted", "ok"]


def test_a_new_page_finds_cached_runs_and_their_models():
    first = run([job()])
    second = LiveRuns("convergence")
    assert second.missing([job()], "cpu") == []
    assert second.rows([job()], "cpu") == first.finished
    assert second.model(job(seed=1), "cpu") is None
    loaded, trained = second.model(job(), "cpu"), first.model(job(), "cpu")
    assert loaded is not trained
    symbols = torch.tensor([[1, 2, 3, 4]])
    expected = copy_with(trained.model, trained.config.task, symbols)
    assert torch.equal(copy_with(loaded.model, loaded.config.task, symbols), expected)


def test_a_second_page_waits_until_the_first_has_ended(started):
    second = LiveRuns("convergence")
    second.start([job(seed=3)], "cpu")
    sleep(0.3)
    started.poll()
    progress = second.poll()
    assert progress.status == "waiting" and "another page" in progress.text
    assert second.running and not progress.rows
    started.stop()
    finish(started)
    assert finish(second).status == "done"


def test_only_so_many_runs_wait(monkeypatch, started):
    monkeypatch.setattr(module, "MAX_WAITING", 1)
    second, third = LiveRuns("convergence"), LiveRuns("convergence")
    second.start([job(seed=3)], "cpu")
    wait_until(lambda: module._waiting, second)
    third.start([job(seed=4)], "cpu")
    assert finish(third).status == "failed" and "try again later" in third.poll().error
    second.stop()
    finish(second)


def test_a_waiting_page_can_be_stopped(started):
    second = LiveRuns("convergence")
    second.start([job(seed=3)], "cpu")
    second.stop()
    assert finish(second).status == "stopped"
    assert second.finished == [] and started.running


@pytest.fixture
def computing(monkeypatch):
    """The threads that computed at the same time, at most."""
    inside, most = [], []

    def counted(self):
        inside.append(threading.get_ident())
        most.append(len(set(inside)))
        sleep(0.002)
        self.step += 1
        inside.remove(threading.get_ident())
        return torch.zeros(())

    monkeypatch.setattr(Training, "train_step", counted)
    return most


def test_two_pages_never_compute_at_the_same_time(computing):
    pages = [LiveRuns("convergence") for _ in range(3)]
    for seed, page in enumerate(pages):
        page.start([job(seed=seed)], "cpu")
    for page in pages:
        assert finish(page).status == "done"
    assert len(computing) == 60 and max(computing) == 1


def test_trainings_of_a_page_run_side_by_side_and_what_is_timed_alone(monkeypatch, computing):
    monkeypatch.setattr(processor, "ALL_THREADS", 2)
    live = run([job(seed=seed) for seed in range(3)])
    assert max(computing) == 2 and len(live.finished) == 3
    computing.clear()
    assert processor.side_by_side([job(), cost_job()]) == 1
    assert processor.together_s([job(), job(seed=1)], [2.0, 4.0]) == 4.0
    assert processor.together_s([cost_job(), cost_job(32)], [2.0, 4.0]) == 6.0


def test_other_settings_end_the_run_and_take_its_place(started):
    first = started.batch
    started.start(first.jobs, "cpu")
    assert started.batch is first  # the same go on
    started.start([job(seed=9)], "cpu")
    assert started.poll() is not first
    assert finish(started).status == "done"
    first.thread.join(PATIENCE_S)
    assert first.status == "stopped" and path_of(first.jobs[0], "cpu").exists()
    assert {row["outcome"] for row in started.known([], "cpu")} == {"interrupted", "ok"}
    assert not started.ended_early(first.jobs)  # it may go on when the reader comes back


def test_a_run_is_repeated_where_that_is_asked_for():
    live = run([job()])
    live.start([job()], "cpu")
    finish(live)
    assert len(live.finished) == 1
    live.start([job()], "cpu", again=True)
    finish(live)
    assert [row["outcome"] for row in live.finished] == ["ok", "ok"]


def test_a_page_that_was_reloaded_takes_over_the_run_of_the_one_before(monkeypatch, started):
    monkeypatch.setattr(module, "WANTED_AFTER_S", 0.2)
    again = LiveRuns("convergence")
    again.start(started.batch.jobs, "cpu")  # nobody polls the first
    wait_until(lambda: again.poll().status == "running", again)
    started.join(PATIENCE_S)
    assert started.batch.status == "stopped"
    again.stop()
    finish(again)


def test_a_run_whose_page_is_gone_ends_by_itself(monkeypatch, started):
    monkeypatch.setattr(module, "ABANDONED_AFTER_S", 0.2)
    started.join(PATIENCE_S)  # nobody polls
    assert not started.running
    (row,) = started.finished
    assert row["outcome"] == "interrupted"
    assert started.poll().status == "stopped"
    assert not started.ended_early(started.batch.jobs)  # no reader has stopped it


def test_a_long_run_waits_longer_for_a_page_that_is_hidden(monkeypatch, started):
    monkeypatch.setattr(module, "ABANDONED_AFTER_S", 0.0)
    monkeypatch.setattr(module, "LONG_RUN_S", 0.0)
    started.join(1.0)  # nobody polls
    assert started.running
    monkeypatch.setattr(module, "LONG_RUN_ABANDONED_AFTER_S", 0.0)
    started.join(PATIENCE_S)
    assert not started.running


def test_a_failure_in_the_thread_is_told_and_the_next_run_works(monkeypatch):
    def fail(*arguments):
        raise RuntimeError("the fuse blew")

    live = LiveRuns("convergence")
    with monkeypatch.context() as broken:
        broken.setattr(Training, "train_step", fail)
        live.start([job()], "cpu")
        progress = finish(live)
    assert progress.status == "failed" and progress.error == "the fuse blew"
    live.start([job()], "cpu")
    assert finish(live).status == "done"


def test_out_of_memory_is_a_row_with_the_remedy(monkeypatch):
    def fail(*arguments):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Training, "train_step", fail)
    live = run([job()])
    (row,) = live.finished
    assert row["outcome"] == "out_of_memory"
    assert "lower batch_size" in row["detail"]
    assert live.missing([job()], "cpu") == []


def test_costs_arrive_one_length_after_the_other(monkeypatch):
    seen = []
    live = LiveRuns("crossover")
    measure = live._run

    def watched(*arguments):
        measure(*arguments)
        seen.append(len(live.poll().rows))

    monkeypatch.setattr(live, "_run", watched)
    jobs = [cost_job(n) for n in (16, 32, 64)]
    live.start(jobs, "cpu")
    assert finish(live).status == "done"
    assert seen == [2, 4, 6]
    assert [r["config"]["seq_len"] for r in live.rows(jobs, "cpu")] == [16, 16, 32, 32, 64, 64]
    assert all(len(r["summary"]["time_ms_samples"]) == 2 for r in live.finished)
    assert LiveRuns("crossover").missing(jobs, "cpu") == []


def test_a_stream_shows_its_curve_on_the_way_and_keeps_it_when_stopped():
    config = GenerationConfig(span="stream", seq_len=10**6, n_layers=1, n_heads=1, head_dim=8)
    live, jobs = LiveRuns("generation"), [CostJob(configs=(config,), n_repeats=1)]
    live.start(jobs, "cpu")
    assert live.measuring
    wait_until(lambda: live.poll().rows, live)
    (row,) = live.showing(jobs, "cpu")
    assert row["outcome"] == "interrupted" and row["curve"]["position"]
    assert 0 < live.poll().fraction < 1 and "of 1,000,000 tokens" in live.poll().text
    live.stop()
    live.join(PATIENCE_S)
    assert live.poll().status == "stopped"
    (stopped,) = live.showing(jobs, "cpu")
    assert len(stopped["curve"]["position"]) >= len(row["curve"]["position"])
    assert live.missing(jobs, "cpu") == jobs


def retrieval_job(seeds=(0,), attention="relu", rule="sum", n_keys=5, again=False, **changes):
    """Features that no kernel has to be compiled for."""
    model = MemoryConfig(attention=attention, update_rule=rule, head_dim=8)
    options = {"n_steps": 30, "eval_every": 10, "eval_sequences": 2}
    config = retrieval_config(n_keys, model, with_replacement=again, **options | changes)
    return RetrievalJob(config=config, seeds=seeds)


def test_a_memory_in_training_shows_its_curves_and_resumes_after_a_stop():
    endless = {"n_steps": 10**6, "patience": 10**6, "solved_loss": 1e-12, "n_keys": 8}
    job = retrieval_job(seeds=(0, 1), **endless)
    live = LiveRuns("capacity")
    live.start([job], "cpu")
    wait_until(lambda: len(live.poll().rows) == 2, live)
    rows = live.showing([job], "cpu")
    assert [(row["seed"], row["outcome"]) for row in rows] == [
        (0, "interrupted"),
        (1, "interrupted"),
    ]
    assert all(row["curve"]["step"] for row in rows)
    progress = live.poll()
    assert 0 < progress.fraction <= 1
    assert "relu, sum, S = 8, 2 seeds: step" in progress.text and "loss 0." in progress.text
    live.stop()
    assert finish(live).status == "stopped"
    stopped = live.finished[-1]["curve"]
    live.start([job], "cpu")
    longer = len(stopped["step"]) + 2
    wait_until(
        lambda: any(len(r["curve"]["step"]) >= longer for r in live.poll().rows.values()), live
    )
    live.stop()
    finish(live)
    resumed = live.finished[-1]["curve"]
    assert len(resumed["step"]) >= longer
    assert resumed["loss"][: len(stopped["loss"])] == stopped["loss"]


def test_rows_of_another_device_do_not_count():
    live = run([job()])
    row = dict(live.finished[0])
    row["provenance"] = row["provenance"] | {"device": "cuda:0"}
    live.finished, live.folder = [row], live.folder / "empty"
    assert live.rows([job()], "cpu") == []


def samples_found(n_repeats):
    found = LiveRuns("crossover").rows([cost_job(n_repeats=n_repeats)], "cpu")
    return [len(row["summary"]["time_ms_samples"]) for row in found]


def test_costs_of_fewer_samples_are_measured_again_and_of_more_are_not():
    live = run([cost_job(n_repeats=2)], "crossover")
    assert samples_found(1) == samples_found(2) == [2, 2]
    assert samples_found(3) == []
    assert live.missing([cost_job(n_repeats=3)], "cpu") == [cost_job(n_repeats=3)]


def test_a_thread_that_began_with_fewer_measures_with_all_and_leaves_all():
    torch.set_num_threads(processor.ALL_THREADS + 1)  # what a run on another page may leave behind
    try:
        live = run([cost_job()], "crossover")
    finally:
        torch.set_num_threads(processor.ALL_THREADS)
    assert {row["provenance"]["threads"] for row in live.finished} == {processor.ALL_THREADS}


@pytest.fixture
def uncompiled(monkeypatch):
    """A machine that has yet to compile its kernels; when it did so, and what the page said."""
    done = []
    monkeypatch.setattr(kernels, "installed", lambda package: True)
    monkeypatch.setattr(kernels, "compiled", lambda kernel: bool(done))
    return done


def test_a_kernel_is_compiled_before_anything_is_timed_and_the_page_says_so(
    monkeypatch, uncompiled
):
    live = LiveRuns("convergence")

    def compile_now(kernel):
        progress = live.poll()
        uncompiled.append((kernel, progress.text, dict(progress.rows), TIMING_LOCK.locked()))

    monkeypatch.setattr(kernels, "compile_now", compile_now)
    jobs = [job(attention="softmax"), job()]
    assert kernel_to_compile(jobs[:1], "cpu") is None and kernel_to_compile(jobs, "cpu") == "cpu"
    live.start(jobs, "cpu")
    assert finish(live).status == "done"
    text = "compiling the cpu kernel, once: about 15 s"
    assert uncompiled == [("cpu", text, {}, False)]
    live.start([job(seed=1)], "cpu")
    finish(live)
    assert len(uncompiled) == 1


@pytest.mark.parametrize(
    "changes, remedy",
    [
        ({"batch_size": 65_536, "task": CausalCopy(seq_len=4096)}, "batch size"),
        ({"batch_size": 512, "task": CausalCopy(seq_len=131_072)}, "sequence length"),
        ({"n_steps": 1_000_000, "batch_size": 512}, "lower the steps"),
    ],
)
def test_runs_that_this_machine_cannot_hold_are_refused_with_the_remedy(changes, remedy):
    assert remedy in refusal([job(**changes)], "cpu")


def test_what_is_told_is_of_the_run_that_is_behind_and_follows_it():
    batch = module.Batch([], [job(), job(seed=1)], seconds=[1.0, 1.0])
    told = []
    for which, share in [(0, 0.1), (0, 0.2), (1, 0.1), (0, 0.3), (1, 0.4), (0, 1.0), (1, 0.5)]:
        batch.look(which, Glimpse(share, f"run {which} at {share}", list))
        told.append(batch.text)
    at = ["run 0 at 0.1", "run 0 at 0.2", "run 1 at 0.1", "run 1 at 0.1"]
    assert told == [*at, "run 1 at 0.1", "run 1 at 0.1", "run 1 at 0.5"]
