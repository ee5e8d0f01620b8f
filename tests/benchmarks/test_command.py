"""`python -m benchmarks`: its arguments, its rows and its end."""

import signal
import warnings
from dataclasses import replace

import pytest
from test_bench import TINY

from benchmarks import run
from benchmarks.__main__ import main
from benchmarks.comparison import Setting
from replib.lab import interrupts, store


@pytest.fixture(autouse=True)
def _as_before(data, monkeypatch):
    monkeypatch.setattr(interrupts, "GRACE_S", 60.0)  # else a slow test would end the process
    form = warnings.formatwarning
    yield
    warnings.formatwarning = form


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "use auto, cpu or cuda"),
        (["--only", "casual"], "use causal, memory, not_causal"),
    ],
)
def test_a_mistake_ends_with_a_line(capsys, arguments, message):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def tiny_bench(monkeypatch):
    """`bench` at the sizes of tests, under the name of the quick scale."""
    monkeypatch.setattr(run, "QUICK", replace(TINY, name="quick"))


@pytest.mark.slow
def test_bench_tells_ratios_and_saves_its_rows(tiny_bench, capsys):
    assert main(["--quick", "--only", "not_causal", "delta", "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    rows = store.read_rows("bench")
    assert [row["config"]["work"] for row in rows] == [
        run.NOT_CAUSAL,
        run.LAST_READ,
        run.ALL_READS,
    ]
    assert {row["scale"] for row in rows} == {"quick"}
    assert run.bench_table(rows) in told
    for row in rows:
        assert f"{Setting(**row['config'])}: " in told


@pytest.mark.slow
def test_bench_saves_nothing_when_told_so(tiny_bench, capsys):
    arguments = ["--quick", "--no-save", "--only", "delta", "--device", "cpu"]
    assert main(arguments) == 0
    assert run.LAST_READ in capsys.readouterr().out
    assert store.read_rows("bench") == []


def test_an_interrupted_bench_keeps_what_it_measured(tiny_bench, monkeypatch, capsys):
    append = store.append

    def append_and_interrupt(*arguments):
        append(*arguments)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(store, "append", append_and_interrupt)
    assert main(["--quick", "--only", "delta", "--device", "cpu"]) == 130
    assert [row["config"]["work"] for row in store.read_rows("bench")] == [run.LAST_READ]
    told = capsys.readouterr()
    assert "what was measured is kept" in told.err and f"delta rule: {run.LAST_READ}" in told.out
