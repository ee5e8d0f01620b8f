"""Runs that an open notebook starts: they show, stop, resume, stay and never disturb each other."""

import threading
from dataclasses import replace
from time import monotonic, sleep

import pytest
import torch

from replib import files, kernels
from replib.claims.autopsy import page as autopsy
from replib.claims.capacity.grid import retrieval_config
from replib.claims.common import laptop_copy
from replib.fast_weights import MemoryConfig, RetrievalTraining
from replib.generation import copy_with
from replib.lab import store
from replib.lab.memory_use import TIMING_LOCK
from replib.lab.run import CostJob, RetrievalJob, TrainingJob
from replib.lab.runs.checkpointed import path_of
from replib.lab.runs.generation import GenerationConfig
from replib.lab.timing import CostConfig
from replib.pages import live as module
from replib.pages.live import LiveRuns, kernel_to_compile, refusal
from replib.tasks import CausalCopy, SequenceCopy
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


def test_nothing_is_shown_before_the_first_run():
    live = LiveRuns("convergence")
    assert live.poll() is None
    assert live.showing([job()], "cpu") == [] == live.rows([job()], "cpu")
    assert not live.running and not live.just_ended()


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
    assert store.read_rows("convergence", started.folder)[-1] == row
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


def test_settings_that_have_not_run_show_the_last_batch():
    live = run([job(seed=0)])
    assert [row["seed"] for row in live.showing([job(seed=7)], "cpu")] == [0]


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


@pytest.mark.slow
def test_a_trained_model_copies_a_sequence_after_its_page_was_closed():
    config = laptop_copy("linear", 16, 250)
    run([TrainingJob(config=config, seed=0)])
    training = LiveRuns("convergence").model(TrainingJob(config=config, seed=0), "cpu")
    symbols = torch.randint(1, 11, (32, 6), generator=torch.Generator().manual_seed(1))
    produced = copy_with(training.model, config.task, symbols)
    assert (produced == symbols).float().mean() > 0.9


def test_a_torn_model_file_is_no_model():
    first = run([job()])
    first._model_path(job().ids[0], "cpu").write_bytes(b"torn")
    assert LiveRuns("convergence").model(job(), "cpu") is None


def test_the_encoder_decoder_is_kept_with_its_own_experiment():
    other = job(task=SequenceCopy(seq_len=8))
    live = run([job(), other])
    assert [r["experiment"] for r in live.finished] == ["convergence", "sequence_copy"]
    assert {r["experiment"] for r in live.poll().rows.values()} == {"convergence", "sequence_copy"}
    assert len(LiveRuns("convergence").rows([job(), other], "cpu")) == 2


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


def test_a_waiting_page_can_be_stopped(started):
    second = LiveRuns("convergence")
    second.start([job(seed=3)], "cpu")
    second.stop()
    assert finish(second).status == "stopped"
    assert second.finished == [] and started.running


def test_two_pages_never_compute_at_the_same_time(monkeypatch):
    inside, most = [], []

    def counted(self):
        inside.append(threading.get_ident())
        most.append(len(set(inside)))
        sleep(0.001)
        loss = torch.zeros(())
        self.step += 1
        inside.remove(threading.get_ident())
        return loss

    monkeypatch.setattr(Training, "train_step", counted)
    pages = [LiveRuns("convergence") for _ in range(3)]
    for seed, page in enumerate(pages):
        page.start([job(seed=seed)], "cpu")
    for page in pages:
        assert finish(page).status == "done"
    assert len(most) == 60 and max(most) == 1


def test_starting_while_a_run_is_under_way_changes_nothing(started):
    progress = started.poll()
    started.start([job(seed=9)], "cpu")
    assert started.poll() is progress


def test_a_run_whose_page_is_gone_ends_by_itself(monkeypatch, started):
    monkeypatch.setattr(module, "ABANDONED_AFTER_S", 0.2)
    started.join(PATIENCE_S)  # nobody polls
    assert not started.running
    (row,) = started.finished
    assert row["outcome"] == "interrupted"
    assert row in store.read_rows("convergence", started.folder)
    assert started.poll().status == "stopped"
    assert not started.ended_early(started._batch)  # no reader has stopped it


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


def unwritable(monkeypatch, tmp_path):
    """A cache folder below a file: nobody, root included, can write there."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REPLIB_CACHE", str(tmp_path / "file" / "cache"))


def test_a_cache_that_cannot_be_written_costs_a_warning_and_no_result(monkeypatch, tmp_path):
    unwritable(monkeypatch, tmp_path)
    live = run([job()])
    assert live.finished[0]["outcome"] == "ok"
    assert live.rows([job()], "cpu") == live.finished
    assert live.model(job(), "cpu") is not None
    assert "not kept after the page closes" in live.warning and "REPLIB_CACHE" in live.warning


def test_a_run_stopped_over_an_unwritable_cache_keeps_its_curve(monkeypatch, tmp_path):
    unwritable(monkeypatch, tmp_path)
    live = LiveRuns("convergence")
    with pytest.warns(UserWarning, match="no checkpoint was written"):
        live.start([job(**ENDLESS)], "cpu")
        wait_until(lambda: live.poll().rows, live)
        live.stop()
        assert finish(live).status == "stopped"
    assert live.finished[0]["curve"]["step"]


def test_a_full_disk_costs_a_warning_and_no_result(monkeypatch):
    def full(*arguments, **options):
        raise files.FileError("disk full: free space")

    monkeypatch.setattr(store, "append", full)
    live = run([job()])
    assert live.finished[0]["outcome"] == "ok"
    assert "disk full" in live.warning


def test_the_end_of_a_run_is_announced_once():
    live = LiveRuns("convergence")
    live.start([job()], "cpu")
    assert not live.running or not live.just_ended()
    finish(live)
    assert [live.just_ended() for _ in range(2)] == [True, False]


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


def autopsy_jobs(**changes):
    values = {
        "seq_len": 8,
        "n_steps": 10,
        "model": "small",
        "attention": ("linear",),
        "defects": ("float64", "extra_losses"),
    }
    return autopsy.live_jobs(values | changes)


def test_runs_of_the_autopsy_are_kept_with_their_own_experiments():
    live = run(autopsy_jobs(), "autopsy_time")
    kept = {(row["experiment"], tuple(row["config"]["defects"])) for row in live.finished}
    assert kept == {
        (name, defects)
        for name in ("autopsy", "autopsy_time")
        for defects in ((), ("float64", "extra_losses"))
    }
    assert len(LiveRuns("autopsy_time").rows(autopsy_jobs(), "cpu")) == 4


def retrieval_job(seeds=(0,), attention="relu", rule="sum", n_keys=5, again=False, **changes):
    """Features that no kernel has to be compiled for."""
    model = MemoryConfig(attention=attention, update_rule=rule, head_dim=8)
    options = {"n_steps": 30, "eval_every": 10, "eval_sequences": 2}
    config = retrieval_config(n_keys, model, with_replacement=again, **options | changes)
    return RetrievalJob(config=config, seeds=seeds)


def test_memories_end_with_the_rows_of_the_training_that_was_asked_for():
    job = retrieval_job(seeds=(0, 3))
    live = run([job], "capacity")
    alone = RetrievalTraining(job.config, seeds=(0, 3), device="cpu")
    expected = [m.losses for m in alone.metrics()]
    for i, (row, seed) in enumerate(zip(live.finished, (0, 3), strict=True)):
        assert row["curve"]["loss"] == [losses[i] for losses in expected]
        assert (row["seed"], row["outcome"], row["scale"]) == (seed, "ok", "live")
    assert live.poll().fraction == 1.0
    assert live.rows([job], "cpu") == live.finished == LiveRuns("capacity").rows([job], "cpu")
    assert live.missing([retrieval_job(seeds=(0,))], "cpu") == []


def test_memories_are_kept_with_the_experiment_of_their_setting():
    live = run([retrieval_job(), retrieval_job(again=True)], "capacity")
    assert [row["experiment"] for row in live.finished] == ["capacity", "update_rules"]
    assert len(LiveRuns("capacity").rows([retrieval_job(), retrieval_job(again=True)], "cpu")) == 2


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


@pytest.mark.slow
def test_memories_that_this_machine_cannot_hold_are_refused_with_the_remedy(monkeypatch):
    assert refusal([retrieval_job()], "cpu") is None
    large = retrieval_job(n_keys=4000, attention="performer", seeds=tuple(range(50)))
    assert "number of keys" in refusal([large], "cpu")
    many = tuple(range(50))
    slow = retrieval_job(n_keys=600, rule="fwm", again=True, n_steps=100_000, seeds=many)
    monkeypatch.setattr(module, "available_memory_bytes", lambda device: 1e15)
    assert "This would take about" in refusal([slow], "cpu")


@pytest.mark.slow
def test_half_a_length_is_measured_again():
    live = run([cost_job()], "crossover")
    half = replace(cost_job(), configs=cost_job().configs[:1])
    assert live.missing([half], "cpu") == []
    more = CostJob(configs=(*half.configs, replace(half.configs[0], kernel="fused")), n_repeats=2)
    assert live.missing([more], "cpu") == [more]


def test_rows_of_another_device_do_not_count():
    live = run([job()])
    row = dict(live.finished[0])
    row["provenance"] = row["provenance"] | {"device": "cuda:0"}
    live.finished, live.folder = [row], live.folder / "empty"
    assert live.rows([job()], "cpu") == []


def cached_cost(live, n_samples, threads=module.ALL_THREADS, **told):
    """The rows of `cost_job()` as if they had been measured so, the last in the cache."""
    for row in live.finished[:2]:
        samples = {"time_ms_samples": [1.0] * n_samples, "page_faults_samples": [0.0] * n_samples}
        summary = row["summary"] | samples | told
        provenance = row["provenance"] | {
            "threads": threads,
            "started": f"2999-{n_samples:02}-01T00:00:00+00:00",
        }
        store.append("crossover", row | {"summary": summary, "provenance": provenance}, live.folder)


def samples_found(n_repeats):
    found = LiveRuns("crossover").rows([cost_job(n_repeats=n_repeats)], "cpu")
    return [len(row["summary"]["time_ms_samples"]) for row in found]


def test_costs_of_fewer_samples_are_measured_again_and_of_more_are_not():
    live = run([cost_job(n_repeats=2)], "crossover")
    assert samples_found(1) == samples_found(2) == [2, 2]
    assert samples_found(3) == []
    assert live.missing([cost_job(n_repeats=3)], "cpu") == [cost_job(n_repeats=3)]


def test_costs_that_had_time_for_fewer_samples_are_not_measured_again(monkeypatch):
    monkeypatch.setattr(module, "MAX_POINT_S", 0.0)
    live = run([cost_job(n_repeats=3)], "crossover")
    assert samples_found(3) == [1, 1]
    assert live.missing([cost_job(n_repeats=3)], "cpu") == []
    assert samples_found(5) == []


def test_costs_of_another_number_of_threads_are_measured_again(monkeypatch):
    live = run([cost_job()], "crossover")
    cached_cost(live, 9, threads=module.ALL_THREADS + 1)
    assert samples_found(2) == [2, 2]
    monkeypatch.setattr(module, "ALL_THREADS", module.ALL_THREADS + 2)
    assert LiveRuns("crossover").missing([cost_job()], "cpu") == [cost_job()]


def test_the_newest_measurement_that_is_as_asked_counts():
    live = run([cost_job()], "crossover")
    cached_cost(live, 4)
    cached_cost(live, 3)
    assert samples_found(2) == [3, 3]  # the last in the file, whatever a clock said
    assert samples_found(4) == [4, 4]
    assert live.rows([cost_job()], "cpu")[0]["summary"]["time_ms_samples"] == [1.0] * 3


def test_a_thread_that_began_with_fewer_measures_with_all_and_leaves_all():
    torch.set_num_threads(module.ALL_THREADS + 1)  # what a run on another page may leave behind
    try:
        live = run([cost_job()], "crossover")
    finally:
        torch.set_num_threads(module.ALL_THREADS)
    assert {row["provenance"]["threads"] for row in live.finished} == {module.ALL_THREADS}


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


def test_a_kernel_that_cannot_be_compiled_is_a_failure_that_is_told(monkeypatch, uncompiled):
    def compile_now(kernel):
        raise RuntimeError("no space left on device")

    monkeypatch.setattr(kernels, "compile_now", compile_now)
    live = LiveRuns("convergence")
    live.start([job()], "cpu")
    progress = finish(live)
    assert (progress.status, progress.error) == ("failed", "no space left on device")


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


def test_the_memory_of_the_machine_decides_on_a_refusal(monkeypatch):
    assert refusal([job()], "cpu") is None
    monkeypatch.setattr(module, "available_memory_bytes", lambda device: 1000)
    assert "more than 80% of the 0.0 GB free" in refusal([job()], "cpu")
    assert refusal([cost_job()], "cpu") is None  # it would be a row that says so
