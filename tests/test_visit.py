"""A visit to a machine, and what comes home."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from small import cost_job, experiment_of, tiny

from replib.__main__ import main
from replib.claims import EXPERIMENTS
from replib.lab import interrupts, oracles, store
from replib.training import Training
from replib.visit import Visit


@pytest.fixture(autouse=True)
def _process_is_as_before(data, monkeypatch):
    monkeypatch.setattr(interrupts, "GRACE_S", 60.0)  # else a slow test would end the process
    monkeypatch.setattr(interrupts, "OVERTIME_S", 60.0)


@pytest.fixture
def few(monkeypatch):
    """Few small checks, one comparison, and an experiment of a training and timed points."""
    from benchmarks import run as bench

    monkeypatch.setattr(oracles, "SIZES", ((67, 16, 8),))
    monkeypatch.setattr(oracles, "DELTA_SIZES", ())
    monkeypatch.setattr(oracles, "KERNELS", {"torch": None})
    small = replace(bench.QUICK, not_causal_len=16, head_dims=(8,), n_rounds=2, seconds=0.1)
    monkeypatch.setattr(bench, "QUICK", small)
    for name in [*EXPERIMENTS]:
        monkeypatch.delitem(EXPERIMENTS, name)
    monkeypatch.setitem(EXPERIMENTS, "tiny", experiment_of(tiny(), cost_job()))


def visit(folder, *options):
    command = ["gpu", "--device", "cpu", "--scale", "smoke", "--minutes", "3", "--to", str(folder)]
    return main([*command, *options])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_cuda_device_the_visit_says_what_it_needs_and_offers_a_trial(capsys):
    assert main(["gpu"]) == 2
    told = capsys.readouterr().err
    assert "needs a CUDA device, a CUDA build of torch, numpy, and Triton" in told
    assert "python -m replib gpu --device cpu --scale smoke" in told


def test_a_line_that_cannot_be_kept_ends_no_visit(tmp_path, capsys):
    (tmp_path / "doctor.txt").symlink_to("/dev/full")
    (tmp_path / "log.txt").mkdir()
    one = Visit(tmp_path, ends=0.0, scale="smoke", device="cpu")
    for name in ("doctor", "log"):
        with pytest.warns(UserWarning, match=f"{name}.txt is not written .*the visit goes on"):
            one.say("a line", name)
    one.say("a line", "bench")
    assert capsys.readouterr().out == 3 * "a line\n"
    assert (tmp_path / "bench.txt").read_text() == "a line\n"


@pytest.mark.slow
def test_a_trial_brings_home_checks_a_comparison_and_rows_that_are_merged(
    few, tmp_path, capsys, monkeypatch
):
    folder = tmp_path / "visit"
    with monkeypatch.context() as patch:
        patch.setenv("REPLIB_DATA", str(tmp_path / "there"))
        assert visit(folder) == 0
    told = capsys.readouterr().out
    assert {"doctor.txt", "kernels.txt", "bench.txt", "log.txt", "tiny.jsonl", "bench.jsonl"} <= {
        path.name for path in folder.iterdir()
    }
    checks = (folder / "kernels.txt").read_text().splitlines()
    assert checks[-1] == "kernels: 4 checks, 0 failed" and len(checks) == 5
    rows = store.read_rows("tiny", folder)
    assert [row["outcome"] for row in rows] == ["ok"] * 4 and "4 rows in " in told
    assert main(["merge", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "tiny: 4 rows added" in told and "bench: " in told
    assert store.read_rows("tiny") == rows
    assert main(["merge", str(folder)]) == 0  # what is here already is no fault
    assert "nothing was added" in capsys.readouterr().out


@pytest.mark.slow
def test_what_is_recorded_already_is_not_computed_on_a_visit(few, tmp_path, monkeypatch):
    assert main(["record", "tiny", "--device", "cpu"]) == 0
    monkeypatch.setattr(Training, "train_step", lambda self: pytest.fail("computed in vain"))
    assert visit(tmp_path / "visit") == 0
    assert not (tmp_path / "visit" / "tiny.jsonl").exists()


@pytest.mark.slow
def test_a_kernel_that_fails_is_told_and_the_visit_goes_on(few, tmp_path, monkeypatch):
    def wrong(q, k, v, *, kernel, causal):
        return v * q.sum() if kernel == "plain" else v * k.sum()

    monkeypatch.setattr(oracles, "linear_attention", wrong)
    assert visit(tmp_path / "visit") == 1
    assert "FAIL" in (tmp_path / "visit" / "kernels.txt").read_text()
    assert len(store.read_rows("tiny", tmp_path / "visit")) == 4


@pytest.mark.slow
def test_a_visit_needs_torch_and_numpy_alone(tmp_path):
    """A process without what shows, judges, checks or compiles."""
    missing = ("scipy", "msgspec", "polars", "altair", "marimo", "numba", "distributed", "pytest")
    program = (
        f"import sys\nsys.modules |= dict.fromkeys({missing!r})\n"
        "from replib import claims\nfrom replib.claims.common import laptop_copy\n"
        "from replib.lab import oracles\nfrom replib.lab.record import Experiment\n"
        "from replib.lab.run import TrainingJob\n"
        "oracles.SIZES, oracles.DELTA_SIZES = oracles.SIZES[:1], ()\n"
        "job = TrainingJob(config=laptop_copy('linear', 16, 5), seed=0)\n"
        "few = Experiment(name='convergence', title='', jobs=lambda scale: [job])\n"
        "claims.EXPERIMENTS.clear()\nclaims.EXPERIMENTS['convergence'] = few\n"
        "from replib.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    options = ["--device", "cpu", "--scale", "smoke", "--minutes", "8"]
    command = [sys.executable, "-c", program, "gpu", *options, "--to", str(tmp_path / "visit")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(store.read_rows("convergence", tmp_path / "visit")) == 1


@pytest.mark.slow
def test_a_command_whose_step_is_too_long_ends_soon_after_its_time():
    program = (
        "from time import monotonic, sleep\nfrom replib.lab import interrupts\n"
        "interrupts.OVERTIME_S = 0.2\n"
        "with interrupts.stopping(monotonic() + 0.1) as stop:\n"
        "    sleep(0.15)\n    print(stop.is_set(), stop.number, flush=True)\n    sleep(3600)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "True 0")
    assert interrupts.CONTINUES in done.stderr
