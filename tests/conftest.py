"""What every test runs under: no recorded or cached run of the reader's is touched.

Two tiers: `make test` leaves out what is marked slow, `make check` runs all. Whole folders that
drive a browser, run notebooks or write the report are slow, and so is a test that says so itself. A
test that is not may take BUDGET_S of a processor's time.
"""

import os
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch._dynamo  # the first optimizer of a process loads it: no test's own time
from filelock import FileLock

# The models here are too small to share out, and threads would fight with the tests' own.
torch.set_num_threads(1)

SLOW_FOLDERS = {"browser", "notebooks", "report"}
# Files that take longest, first: workers get a file at a time, and should end together.
LONG = (
    "test_notebooks",
    "test_browser",
    "test_cli",
    "test_training",
    "test_offline",
    "test_report",
    "test_generation",
    "test_contract",
    "test_delta",
    "test_models",
)
BUDGET_S = 2.0  # of a processor as fast as one that counts to COUNTED in COUNTED_S
SCATTER = 1.5  # what another run of a test may take where cores are shared
COUNTED, COUNTED_S = 2_000_000, 0.04


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).parts[0] in SLOW_FOLDERS:
            item.add_marker(pytest.mark.slow)
    long = [f"{name}.py" for name in LONG]
    items.sort(key=lambda item: long.index(item.path.name) if item.path.name in long else len(long))


def _slowness() -> float:
    """How many times slower than the one that BUDGET_S is for this processor is now."""
    began = time.process_time()
    for _ in range(COUNTED):
        pass
    return max(1.0, (time.process_time() - began) / COUNTED_S)


def _compiled_s() -> float | None:
    """Seconds in which Numba has compiled so far; None where nothing has asked it to. What LLVM
    does after it is not in them."""
    if "numba" not in sys.modules:
        return None
    from numba.core import event

    if not _COMPILING:
        _COMPILING.append(event.TimingListener())
        event.register("numba:compile", _COMPILING[0])
        return -1.0  # what was compiled before is not known
    return _COMPILING[0].duration if _COMPILING[0].done else 0.0


_COMPILING = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    before, began = _compiled_s(), time.process_time()
    result = yield
    took, after = time.process_time() - began, _compiled_s()
    if took > BUDGET_S and not item.get_closest_marker("slow"):
        if after != before:
            return result  # a kernel was compiled on the way, once for this machine
        budget = BUDGET_S * _slowness()
        if took > SCATTER * budget:
            pytest.fail(
                f"took {took:.1f} s of processor time, a fast test has {budget:.1f}: make it "
                "smaller, or mark it slow",
                pytrace=False,
            )
    return result


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """The run cache of a test, empty."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("REPLIB_CACHE", str(folder))
    return folder


@pytest.fixture
def data(tmp_path_factory, monkeypatch):
    """A data folder of a test's own, empty; without it a test reads the recorded runs."""
    folder = tmp_path_factory.mktemp("data")
    monkeypatch.setenv("REPLIB_DATA", str(folder))
    return folder


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The folder of a report of the recorded rows, built once for all tests and workers."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # which the workers share
    folder /= "built"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            begun = tmp_path_factory.mktemp("built")
            _build_report(begun)
            begun.rename(folder)
    return folder


def _build_report(folder: Path) -> None:
    from replib.report import write

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPLIB_CACHE", str(folder / "cache"))
        patch.setattr(write, "FIGURES", folder)
        patch.setattr(write, "CARDS", folder / "pictures")
        (folder / "docs").mkdir()
        for document in write.TABLES:
            shutil.copy(write.ROOT / document, folder / document)
        patch.setattr(write, "ROOT", folder)
        write.write_report()


@pytest.fixture
def page(monkeypatch):
    """A page's URL and command line, as dictionaries to fill."""
    import marimo as mo

    class Query(dict):
        to_dict = dict.copy

        def set(self, name, value):
            self[name] = value

    url, line = Query(), Query()
    monkeypatch.setattr(mo, "query_params", lambda: url)
    monkeypatch.setattr(mo, "cli_args", lambda: line)
    return SimpleNamespace(url=url, line=line)


@pytest.fixture
def live():
    """The runs of an open notebook, stopped at the end of the test."""
    from replib.pages.live import LiveRuns

    live = LiveRuns("convergence")
    yield live
    live.stop()
    live.join(60)


@pytest.fixture
def packages(monkeypatch):
    """Set which packages of the compiled kernels are installed."""

    def set_installed(*names):
        monkeypatch.setattr("replib.kernels.installed", lambda package: package in names)

    return set_installed
