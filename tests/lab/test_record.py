"""Recording loses and repeats nothing, whatever happens to it."""

import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import pytest
from small import EVERYWHERE, cost_job, experiment_of, is_whole, tiny, variants_of

from replib import files
from replib.claims import EXPERIMENTS
from replib.claims.capacity.grid import retrieval_config
from replib.fast_weights import MemoryConfig
from replib.lab import store
from replib.lab.record import TIMING, record
from replib.lab.recorded import recorded_rows
from replib.lab.run import RetrievalJob
from replib.lab.runs.checkpointed import path_of
from replib.lab.runs.training import summary_of
from replib.tasks.text import Text
from replib.training import Metrics, Training


def test_too_few_samples_are_timed_again_only_if_asked_and_where_there_is_time(data, monkeypatch):
    """A job with one sample a point as an earlier recording left it."""
    sequences = next(job for job in EXPERIMENTS["generation"].jobs("smoke") if is_whole(job))
    first = list(record(experiment_of(replace(sequences, n_repeats=1)), "smoke", device="cpu"))
    assert [len(row["summary"]["time_ms_samples"]) for row in first] == [1, 1]
    now = experiment_of(replace(sequences, n_repeats=3))
    assert not list(record(now, "smoke", device="cpu"))
    with monkeypatch.context() as patch:
        patch.setattr("replib.lab.record.MAX_SECONDS_PER_POINT", 0.0)
        assert not list(record(now, "smoke", device="cpu", retime_below=3))
    again = list(record(now, "smoke", device="cpu", retime_below=3))
    assert [len(row["summary"]["time_ms_samples"]) for row in again] == [3, 3]
    assert [row["run_id"] for row in again] == [row["run_id"] for row in first]
    assert not list(record(now, "smoke", device="cpu", retime_below=3))


def test_what_had_no_memory_is_timed_again_only_if_asked(data, monkeypatch):
    """A machine that was full while it recorded."""
    with monkeypatch.context() as patch:
        patch.setattr("replib.lab.timing.available_memory_bytes", lambda device: 10**3)
        first = list(record(experiment_of(cost_job()), "smoke", device="cpu"))
    assert {row["outcome"] for row in first} == {"out_of_memory"}
    assert not list(record(experiment_of(cost_job()), "smoke", device="cpu"))
    again = list(record(experiment_of(cost_job()), "smoke", device="cpu", retime_below=1))
    assert {row["outcome"] for row in again} == {"ok"}
    assert not list(record(experiment_of(cost_job()), "smoke", device="cpu", retime_below=1))


def test_a_further_recording_has_rows_of_its_own_once(data):
    experiment = replace(experiment_of(cost_job()), repeated=True)
    first, second = (list(record(experiment, "smoke", device="cpu", recording=i)) for i in (0, 1))
    assert [row["config"] for row in first] == [row["config"] for row in second]
    assert {row["seed"] for row in first} == {0} and {row["seed"] for row in second} == {1}
    assert not {row["run_id"] for row in first} & {row["run_id"] for row in second}
    assert recorded_rows("tiny") == [*first, *second]
    assert not list(record(experiment, "smoke", device="cpu", recording=1))
    for refused in (experiment_of(cost_job()), 1), (experiment, -1):
        with pytest.raises(ValueError, match="use 0, or a higher number for an"):
            list(record(refused[0], "smoke", device="cpu", recording=refused[1]))


def test_recording_without_a_compiled_kernel_goes_on_and_measures_the_group_again_with_it(
    data, packages
):
    job = cost_job(variants=(*EVERYWHERE, ("linear", "cpu")))
    packages()
    with pytest.warns(UserWarning, match="linear cpu is left out"):
        before = rows_of(job)
        assert len(before) == 3 and rows_of(job) == []
    packages("numba")
    pytest.importorskip("numba")
    after = rows_of(job)
    assert [row["config"]["kernel"] for row in after] == [i for _, i in variants_of(job)]
    assert rows_of(job) == []
    assert store.read_rows("tiny") == [*before, *after]  # nothing is lost,
    assert recorded_rows("tiny") == after  # and what was timed together is shown together


def rows_of(*jobs, **options):
    return list(record(experiment_of(*jobs), "smoke", device="cpu", **options))


def test_recording_appends_the_rows_that_it_yields(data):
    rows = rows_of(tiny(), cost_job())
    assert rows == store.read_rows("tiny", data)
    assert [row["outcome"] for row in rows] == ["ok"] * 4
    expected = [m.loss for m in Training(tiny().config, seed=0, device="cpu").metrics()]
    assert rows[0]["curve"]["loss"] == expected
    assert rows[0]["summary"]["final_loss"] == expected[-1]


def test_recording_again_runs_nothing_again(data):
    rows_of(tiny(), cost_job())
    assert rows_of(tiny(), cost_job()) == []
    assert [row["seed"] for row in rows_of(tiny(), tiny(seed=1), cost_job())] == [1]


def test_a_part_of_a_new_version_runs_again_and_loses_no_row(data, monkeypatch):
    rows_of(tiny())
    monkeypatch.setattr("replib.models.VERSION", 2)
    (row,) = rows_of(tiny())
    assert row["versions"]["models"] == 2
    assert len(store.read_rows("tiny", data)) == 2
    assert recorded_rows("tiny") == [row]


def test_a_run_of_another_kind_of_device_does_not_count(data, monkeypatch):
    (row,) = rows_of(tiny())
    elsewhere = dict(row, provenance=row["provenance"] | {"device": "cuda:0"})
    (data / "tiny.jsonl").unlink()
    store.append("tiny", elsewhere)
    assert len(rows_of(tiny())) == 1


def after(n):
    """A `stop` that is true from the n-th time on that it is asked."""
    asked = iter(range(n))
    return lambda: next(asked, None) is None


def evaluations(seen):
    """A `watch` that collects them."""
    return lambda glimpse: glimpse.metrics and seen.append(glimpse.metrics)


class Killed(BaseException):
    """What no handler catches, like the end of a process."""


def curve_without_speed(row):
    return {key: row["curve"][key] for key in ("step", "loss", "accuracy", "train_loss")}


@contextmanager
def claimed_elsewhere(work, data, tmp_path):
    """Another process, which reaches the data folder by a link and has another cache, is at work;
    yields it."""
    program = (
        "import sys\nfrom replib.lab import store\n"
        f"with store.claimed({work!r}) as ours:\n    print(ours, flush=True)\n"
        "    sys.stdin.read()"
    )
    link = tmp_path / "link"
    link.symlink_to(data)
    environment = os.environ | {"REPLIB_DATA": str(link), "REPLIB_CACHE": str(tmp_path / "other")}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    other = subprocess.Popen([sys.executable, "-c", program], env=environment, **pipes)
    with other:
        assert other.stdout.readline() == "True\n"
        yield other
        other.kill()


def test_what_is_timed_is_left_to_the_process_that_times(data, tmp_path):
    with (
        claimed_elsewhere(f"{TIMING} cpu", data, tmp_path) as other,
        pytest.warns(UserWarning, match="tiny is left to another process that takes times"),
    ):
        assert [row["config"].get("n_steps") for row in rows_of(cost_job(), tiny())] == [20]
        other.kill()  # a claim does not outlive its process
        other.wait()
        assert len(rows_of(cost_job())) == 3


def test_a_run_that_another_process_is_at_is_left_to_it(data, tmp_path):
    (theirs,), (mine,) = tiny(seed=0).ids, tiny(seed=1).ids
    with claimed_elsewhere(f"{theirs} cpu", data, tmp_path):
        rows = rows_of(tiny(seed=0), tiny(seed=1))
    assert [row["run_id"] for row in rows] == [mine]
    rows = rows_of(tiny(seed=0), tiny(seed=1))
    assert [row["run_id"] for row in rows] == [theirs]


def test_a_run_that_was_killed_before_its_row_was_written_is_finished(data, monkeypatch):
    (whole,) = rows_of(tiny())
    (data / "tiny.jsonl").unlink()
    monkeypatch.setattr("replib.lab.runs.checkpointed.CHECKPOINT_EVERY_S", 0.0)

    def kill(*arguments):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(store, "append_rows", kill)
        with pytest.raises(Killed):
            rows_of(tiny())
    monkeypatch.setattr(Training, "train_step", lambda self: pytest.fail("computed in vain"))
    (row,) = rows_of(tiny())
    assert row["outcome"] == "ok" and curve_without_speed(row) == curve_without_speed(whole)
    assert rows_of(tiny()) == []


def test_seeds_that_were_stopped_together_go_on_together(data):
    config = retrieval_config(
        6, MemoryConfig(head_dim=8), n_steps=20, eval_every=5, eval_sequences=2, solved_loss=0.2
    )
    job, seen = RetrievalJob(config=config, seeds=(0, 1, 2)), []
    whole = {row["seed"]: row["curve"] for row in rows_of(job)}
    (data / "tiny.jsonl").unlink()
    stopped = rows_of(job, stop=lambda: len(seen) > 1, watch=evaluations(seen))
    assert {row["outcome"] for row in stopped} == {"interrupted"}
    assert {row["seed"]: row["curve"] for row in rows_of(job)} == whole
    assert rows_of(job) == []


def test_a_damaged_checkpoint_is_told_and_the_run_starts_anew(data, monkeypatch):
    (whole,) = rows_of(tiny())
    (data / "tiny.jsonl").unlink()
    rows_of(tiny(), stop=after(8))
    (data / "tiny.jsonl").unlink()
    path = path_of(tiny(), "cpu")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"\.pt is damaged.*the run starts anew") as caught:
        (row,) = rows_of(tiny())
    assert len(caught) == 1 and curve_without_speed(row) == curve_without_speed(whole)


def test_a_run_goes_on_with_the_threads_that_it_began_with(data, monkeypatch):
    import torch

    before = torch.get_num_threads()
    rows_of(tiny(), stop=after(8))
    used, step = set(), Training.train_step

    def counting(self):
        used.add(torch.get_num_threads())
        return step(self)

    monkeypatch.setattr(Training, "train_step", counting)
    torch.set_num_threads(before + 1)
    try:
        (row,) = rows_of(tiny())
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert used == {before} and row["provenance"]["threads"] == before


def test_a_run_that_another_process_has_finished_meanwhile_is_not_run_again(data, monkeypatch):
    claimed = store.claimed

    def finished_just_before(run):
        monkeypatch.setattr(store, "claimed", claimed)
        rows_of(tiny())
        return claimed(run)

    monkeypatch.setattr(store, "claimed", finished_just_before)
    assert rows_of(tiny()) == []
    assert len(store.read_rows("tiny", data)) == 1


def test_without_locks_every_process_runs(data):
    (data / ".locks").touch()
    with store.claimed("0" * 16) as ours:
        assert ours


def test_a_killed_run_resumes_at_its_checkpoint_to_the_same_end(data, monkeypatch):
    monkeypatch.setattr("replib.lab.runs.checkpointed.CHECKPOINT_EVERY_S", 0.0)
    (whole,) = rows_of(tiny())
    (data / "tiny.jsonl").unlink()

    def kill(glimpse):
        if glimpse.metrics and glimpse.metrics.step == 15:
            raise Killed

    with pytest.raises(Killed):
        rows_of(tiny(), watch=kill)
    assert store.read_rows("tiny", data) == []
    assert path_of(tiny(), "cpu").exists()
    steps = []
    (row,) = rows_of(tiny(), watch=evaluations(steps))
    assert [m.step for m in steps] == [15, 20]  # the checkpoint was of step 10
    assert curve_without_speed(row) == curve_without_speed(whole)
    assert not path_of(tiny(), "cpu").exists()


def test_a_stopped_run_is_recorded_as_interrupted_and_continued(data):
    seen = []
    stop = lambda: len(seen) >= 2  # noqa: E731
    rows = rows_of(tiny(), tiny(seed=1), stop=stop, watch=evaluations(seen))
    (row,) = rows
    assert row["outcome"] == "interrupted" and row["curve"]["step"] == [5, 10]
    rest = rows_of(tiny(), tiny(seed=1))
    assert [(r["seed"], r["outcome"]) for r in rest] == [(0, "ok"), (1, "ok")]
    assert rest[0]["curve"]["step"] == [5, 10, 15, 20]
    assert rest[0]["run_id"] == row["run_id"]
    assert [r["outcome"] for r in recorded_rows("tiny")] == ["ok", "ok"]


def test_a_run_out_of_memory_is_recorded_and_the_next_goes_on(data, monkeypatch):
    step = Training.train_step

    def fail_at_seed_0(self):
        if self.seed == 0:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried\nto")
        return step(self)

    monkeypatch.setattr(Training, "train_step", fail_at_seed_0)
    rows = rows_of(tiny(), tiny(seed=1))
    assert [row["outcome"] for row in rows] == ["out_of_memory", "ok"]
    assert rows[0]["detail"].endswith("you tried: lower batch_size, seq_len or d_model")
    assert rows_of(tiny()) == []


def test_an_error_that_is_no_shortage_is_not_hidden(data, monkeypatch):
    def fail(self):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(Training, "train_step", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        rows_of(tiny())


def test_a_data_folder_that_cannot_be_written_is_told_before_anything_is_computed(
    tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REPLIB_DATA", str(tmp_path / "file" / "data"))
    monkeypatch.setattr(Training, "train_step", lambda self: pytest.fail("computed in vain"))
    with pytest.raises(files.FileError, match="REPLIB_DATA"):
        rows_of(tiny())


def test_a_run_on_a_text_that_is_too_short_is_left_out_and_the_others_go_on(
    data, tmp_path, monkeypatch
):
    monkeypatch.setenv("REPLIB_TEXTS", str(tmp_path))
    (tmp_path / "brief").mkdir()
    (tmp_path / "brief" / "some.txt").write_text("to be or not to be\n" * 3)
    job = tiny()
    short = replace(job, config=replace(job.config, task=Text(corpus="brief", seq_len=16)))
    with pytest.warns(UserWarning, match="linear is left out: brief has 51 tokens to train on"):
        (row,) = rows_of(short, job)
    assert row["outcome"] == "ok" and row["run_id"] == job.ids[0]


def test_a_checkpoint_that_cannot_be_written_is_told_and_costs_no_run(data, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REPLIB_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("replib.lab.runs.checkpointed.CHECKPOINT_EVERY_S", 0.0)
    with pytest.warns(UserWarning, match="REPLIB_CACHE"):
        (row,) = rows_of(tiny())
    assert row["outcome"] == "ok"


def test_smoke_runs_are_shown_only_where_there_are_no_others(data):
    rows_of(tiny())
    assert [row["scale"] for row in recorded_rows("tiny")] == ["smoke"]
    list(record(experiment_of(tiny(seed=1)), "laptop", device="cpu"))
    assert [row["scale"] for row in recorded_rows("tiny")] == ["laptop"]
    assert recorded_rows("convergence") == []


def test_a_summary_says_where_the_run_ended_and_when_it_was_solved():
    history = [
        Metrics(step=s, train_loss=1, loss=x, accuracy=a, steps_per_s=1, seconds_left=0)
        for s, x, a in ((10, 2.0, 0.1), (20, 0.1, 0.995), (30, 0.3, 0.9), (40, 0.2, 1.0))
    ]
    found = summary_of(history)
    assert (found["n_steps"], found["final_loss"], found["final_accuracy"]) == (40, 0.2, 1.0)
    assert (found["best_loss"], found["steps_to_solved"]) == (0.1, 20)
    assert summary_of(history[:1])["steps_to_solved"] is None
    assert summary_of([]) == {"n_steps": 0}
