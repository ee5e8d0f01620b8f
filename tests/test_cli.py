"""The command line, as a person meets it."""

import inspect
import os
import signal
import subprocess
import sys
import warnings
from time import monotonic, sleep

import pytest
import torch

from replib.__main__ import main
from replib.claims import EXPERIMENTS
from replib.claims.common import laptop_copy
from replib.lab import interrupts, store
from replib.lab.record import SCALES, Experiment, core_seconds
from replib.lab.recorded import recorded_rows
from replib.lab.run import TrainingJob

PATIENCE_S = 60.0  # a busy machine; no test waits so long unless it fails


@pytest.fixture(autouse=True)
def _process_is_as_before(monkeypatch):
    monkeypatch.setattr(interrupts, "GRACE_S", PATIENCE_S)  # else a slow test would end the process
    threads, form = torch.get_num_threads(), warnings.formatwarning
    yield
    warnings.formatwarning = form
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _no_recorded_run_is_touched(data):
    pass


def python(program):
    """A process that runs a program; Popen, as some are interrupted."""
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_list_names_every_experiment_and_counts_its_rows(capsys):
    assert main(["list"]) == 0
    told = capsys.readouterr().out
    assert all(name in told and e.title in told for name, e in EXPERIMENTS.items())
    assert "smoke: 0 rows" in told


def test_help_names_the_scales(capsys):
    with pytest.raises(SystemExit):
        main(["record", "--help"])
    assert f"{', '.join(SCALES[:-1])} or {SCALES[-1]}" in " ".join(capsys.readouterr().out.split())


MEMORIES = ("capacity", "update_rules", "evaluation", "favor_eps")
TRAININGS = ("convergence", "sequence_copy", "autopsy", "autopsy_full", "images", *MEMORIES)
TRAININGS += ("number_words", "translation", "language_model", "text_axes", "text_defects")
TRAININGS += ("update_rules_text", "text_carry", "study_ptb", "study_wikitext2", "study_enwik8")
TRAININGS += ("wikitext103",)


def test_the_time_of_a_training_counts_seeds_together_once_and_every_thread():
    def row(threads, **summary):
        return {"summary": summary, "provenance": {"threads": threads}}

    assert core_seconds(row(2, seconds=30.0, seeds_together=3)) == 20.0
    assert core_seconds(row(1, n_steps=100, steps_per_s=50.0)) == 2.0
    assert core_seconds(row(2, median_ms=3.0)) == 0.0
    assert core_seconds(row(1, n_steps=0)) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_records_at_the_smoke_scale_and_then_has_nothing_to_do(name, capsys):
    jobs = EXPERIMENTS[name].jobs("smoke")
    if not jobs[0].timed and (missing := jobs[0].configs[0].missing_data()):
        pytest.skip(missing)
    assert main(["record", name, "--device", "cpu", "--threads", "1"]) == 0
    rows = store.read_rows(name)
    assert len(rows) == sum(len(job.on_device("cpu").configs) for job in jobs)
    assert {row["outcome"] for row in rows} == {"ok"}
    assert {row["provenance"]["threads"] for row in rows} == {1}
    assert len(capsys.readouterr().out.splitlines()) == len(rows)
    assert main(["record", name, "--device", "cpu"]) == 0
    assert store.read_rows(name) == rows
    assert main(["list"]) == 0
    told = capsys.readouterr().out
    assert f"smoke: {len(rows)} rows" in told
    assert ("trained for" in told) == (name in TRAININGS)


def test_a_command_stops_after_its_minutes_and_the_same_goes_on(capfd, monkeypatch):
    config = laptop_copy("linear", 8, 40, eval_every=10)
    one = Experiment(
        name="convergence",
        title="one run",
        jobs=lambda scale: [TrainingJob(config=config, seed=0)],
    )
    monkeypatch.setitem(EXPERIMENTS, "convergence", one)
    command = ["record", "convergence", "--device", "cpu", "--threads", "1"]
    assert main([*command, "--minutes", "1e-9"]) == 0
    assert not store.read_rows("convergence")
    assert "the same command continues" in capfd.readouterr().err
    assert main([*command, "--minutes", "10"]) == 0
    assert [row["outcome"] for row in store.read_rows("convergence")] == ["ok"]


@pytest.mark.parametrize(
    "arguments, remedy",
    [
        (["record", "convergense"], "use convergence, sequence_copy, scaling"),
        (["record", "convergence", "--scale", "huge"], "use smoke, laptop, paper"),
        (["record", "convergence", "--device", "tpu"], "use auto, cpu or cuda"),
        (["record", "convergence", "--threads", "0"], "use at least 1"),
        (["record", "convergence", "--threads", "two"], "invalid int value"),
        (["record", "convergence", "--minutes", "0"], "use above 0"),
        (["record", "convergence", "--on", "local:0"], "use local:4"),
        (["record", "convergence", "--exclusive"], "give --on too"),
        (["gpu", "--device", "cpu", "--scale", "huge"], "use smoke, laptop, paper"),
        (["gpu", "--device", "cpu", "--minutes", "-1"], "use above 0"),
        (["merge", "nowhere"], "nowhere is no folder"),
        (["record", "convergence", "--sale", "smoke"], "unrecognized arguments: --sale"),
        (["record"], "EXPERIMENT"),
        (["rekord"], "invalid choice"),
        ([], "COMMAND"),
    ],
)
def test_mistakes_end_with_status_2_and_the_remedy(arguments, remedy, capsys):
    try:
        status = main(arguments)
    except SystemExit as end:  # how argparse refuses
        status = end.code
    assert status == 2
    told = capsys.readouterr()
    assert remedy.lower() in told.err.lower() and "Traceback" not in told.err
    assert told.out == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_refused_with_the_remedy(capsys):
    assert main(["record", "convergence", "--device", "cuda"]) == 2
    assert "use --device cpu" in capsys.readouterr().err


def test_a_data_folder_that_cannot_be_written_is_refused_with_the_remedy(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REPLIB_DATA", str(tmp_path / "file" / "data"))
    assert main(["record", "convergence"]) == 2
    assert "set REPLIB_DATA to another folder" in capsys.readouterr().err


@pytest.mark.slow
def test_a_torn_line_is_reported_and_recording_goes_on(data, capsys):
    assert main(["record", "step_time", "--device", "cpu"]) == 0
    rows = store.read_rows("step_time")
    with (data / "step_time.jsonl").open("a") as file:
        file.write('{"run_id": "torn')
    with pytest.warns(UserWarning, match=r"lines skipped: line \d+ .torn"):
        assert main(["record", "step_time", "--device", "cpu"]) == 0
        assert store.read_rows("step_time") == rows


def test_doctor_tells_versions_folders_and_rows(data, cache, capsys):
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert torch.__version__ in told and "marimo: found" in told
    assert "fast-transformers: found" in told or "fast-transformers: missing" in told
    assert f"{data}: writable" in told and f"{cache}: writable" in told
    assert "crossover: 0 rows recorded" in told


def test_doctor_tells_what_cannot_be_written(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REPLIB_CACHE", str(tmp_path / "file" / "cache"))
    assert main(["doctor"]) == 0
    assert "set REPLIB_CACHE to another folder" in capsys.readouterr().out


def tiny_jobs(scale):
    config = laptop_copy("linear", 16, 50, eval_every=5, eval_batches=1, batch_size=4)
    return [TrainingJob(config=config, seed=seed) for seed in (0, 1)]


# Slow, so that there is time to interrupt it.
SLOW = f"""
import sys, time
from replib import __main__ as cli
from replib.claims import EXPERIMENTS
from replib.claims.common import laptop_copy
from replib.lab import interrupts
from replib.lab.record import Experiment
from replib.lab.run import TrainingJob
from replib.lab.runs import checkpointed

{inspect.getsource(tiny_jobs)}
EXPERIMENTS["tiny"] = Experiment(name="tiny", title="", jobs=tiny_jobs)
checkpointed.CHECKPOINT_EVERY_S, interrupts.GRACE_S = 0.0, 60.0
cli._print_progress = lambda glimpse: time.sleep(0.4)
sys.exit(cli.main(["record", "tiny", "--device", "cpu", "--threads", "1"]))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="a signal cannot be sent to one process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_recording_keeps_what_it_has_and_the_same_command_continues(
    cache, monkeypatch, number
):
    process, end = python(SLOW), monotonic() + PATIENCE_S
    while not list(cache.glob("checkpoints/**/*.pt")):  # the first run is under way
        assert process.poll() is None and monotonic() < end, process.communicate()
        sleep(0.05)
    process.send_signal(number)
    _, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + number
    # A kernel that is compiled on the way says so before.
    *_, last = told.splitlines()
    assert last == "replib: stopped: what was recorded is kept; the same command continues"
    (row,) = store.read_rows("tiny")
    assert row["outcome"] == "interrupted" and 0 < row["summary"]["n_steps"] < 50
    assert len(list(cache.glob("checkpoints/**/*.pt"))) == 1

    monkeypatch.setitem(EXPERIMENTS, "tiny", Experiment(name="tiny", title="", jobs=tiny_jobs))
    assert main(["record", "tiny", "--device", "cpu", "--threads", "1"]) == 0
    assert [(r["seed"], r["outcome"]) for r in recorded_rows("tiny")] == [(0, "ok"), (1, "ok")]
    resumed = recorded_rows("tiny")[0]
    n = len(row["curve"]["step"])
    assert resumed["curve"]["loss"][:n] == row["curve"]["loss"]
    assert resumed["summary"]["n_steps"] == 50
    assert len(set(resumed["curve"]["step"])) == len(resumed["curve"]["step"])
    assert not list(cache.glob("checkpoints/**/*.pt"))


ENDLESS = """
import time
from replib.lab import interrupts
with interrupts.stopping() as stop:
    print("running", flush=True)
    end = time.monotonic() + 60
    while time.monotonic() < end:  # a step that takes as long
        time.sleep(0.01)
"""


@pytest.mark.skipif(os.name == "nt", reason="a signal cannot be sent to one process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_within_a_long_step_is_ended_all_the_same(number):
    process = python(ENDLESS)
    assert process.stdout.readline() == "running\n"
    process.send_signal(number)
    _, told = process.communicate(timeout=PATIENCE_S / 2)
    assert process.returncode == 128 + number
    # A kernel that is compiled on the way says so before.
    *_, last = told.splitlines()
    assert last == "replib: stopped: what was recorded is kept; the same command continues"


@pytest.mark.skipif(os.name == "nt", reason="a signal cannot be sent to one process")
def test_a_signal_during_imports_ends_with_a_line():
    program = (
        "import os, signal, runpy, sys\n"
        "class Signal:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'torch':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Signal())\n"
        "sys.argv = ['replib', 'list']\n"
        "runpy.run_module('replib', run_name='__main__')"
    )
    process = python(program)
    _, told = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, told) == (130, "replib: ended; what was recorded is kept\n")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["list", "doctor"])
def test_a_reader_that_closes_the_pipe_is_no_error(command):
    program = f"import sys\nfrom replib.__main__ import main\nsys.exit(main([{command!r}]))"
    process = python(program)
    process.stdout.close()
    assert process.wait(timeout=PATIENCE_S) == 141
    assert process.stderr.read() == ""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in this file system")
def test_what_is_no_data_file_is_told_and_the_rest_listed(data, capsys):
    os.mkfifo(data / "scaling.jsonl")
    (data / "crossover.jsonl").mkdir()
    for command in ("list", "doctor"):
        assert main([command]) == 0
        told = capsys.readouterr().out
        assert told.count("no access to") == 2 and "images" in told


def test_recording_needs_torch_and_numpy_alone():
    program = (
        "import replib.__main__, replib.claims, replib.lab.record, replib.generation, sys\n"
        "from replib.lab.runs import cost, retrieval, training\n"
        "shown = {'marimo', 'altair', 'polars', 'msgspec', 'scipy'}\n"
        "print(sorted(shown & set(sys.modules)))"
    )
    out, told = python(program).communicate(timeout=PATIENCE_S)
    assert out == "[]\n", told


@pytest.mark.slow
def test_importing_the_bench_imports_no_peer_and_no_compiler():
    program = (
        "import sys, benchmarks.run\n"
        "print(sorted({'fast_transformers', 'fla', 'numba'} & set(sys.modules)))"
    )
    out, told = python(program).communicate(timeout=PATIENCE_S)
    assert out == "[]\n", told


def test_importing_the_package_or_its_command_line_imports_nothing_heavy():
    program = (
        "import sys, replib.__main__\n"
        "print(sorted({'torch', 'numpy', 'marimo', 'altair', 'polars'} & set(sys.modules)))"
    )
    out, told = python(program).communicate(timeout=PATIENCE_S)
    assert out == "[]\n", told
