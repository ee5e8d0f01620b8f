"""A visit to a machine, in one command: what it is, whether the kernels are right there, how fast
they are, and as many rows as fit the time, by value. It needs torch and numpy alone, Triton for the
compiled kernel; all is written to one folder, for `python -m replib merge FOLDER` at home."""

import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic

import torch

from benchmarks import run as bench
from benchmarks.comparison import EXPERIMENT as BENCH
from replib import doctor, files
from replib.claims import EXPERIMENTS, deciding
from replib.device import resolve_device
from replib.lab import oracles, provenance, store
from replib.lab.budget import Budget, wanted
from replib.lab.record import missing, record_jobs
from replib.lab.run import Glimpse, line_of

# Of the time at most; what is not used is the rows'.
KERNELS_SHARE, BENCH_SHARE = 0.15, 0.25
# What is compared on a visit: at lengths that kernels are for, first in the dtype of most peers.
VISIT = replace(
    bench.FULL_CUDA,
    name="visit",
    dtypes=("bfloat16", "float32"),
    lengths=tuple(2**e for e in range(9, 17)),
    n_rounds=15,
    seconds=2.0,
    long_seconds=4.0,
)
NEEDS_CUDA = (
    "needs a CUDA device, a CUDA build of torch, numpy, and Triton for the compiled kernel; this "
    "torch is {torch}, and finds no CUDA device. For a trial: "
    "python -m replib gpu --device cpu --scale smoke --minutes 1"
)


@dataclass
class Visit:
    """
    Args:
        folder: where all is written, made if it is not there; one of an earlier visit goes on.
            None is one named after the device and the minute.
        ends: when all has to have ended, of `monotonic`.
        device: a name for `resolve_device`.
        stop: asked on the way; what is true ends it.
        watch: told how far a run is.
    """

    folder: Path | None
    ends: float
    scale: str
    device: str
    stop: Callable[[], bool] = lambda: False
    watch: Callable[[Glimpse], None] = lambda glimpse: None
    began: float = field(default_factory=monotonic)
    n_failed: int = 0
    n_rows: int = 0

    def __post_init__(self):
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"a visit {NEEDS_CUDA.format(torch=torch.__version__)}")
        self.kind = resolve_device(self.device).type
        self.folder = self.folder or self._default_folder()
        if why_not := files.writable(self.folder):
            raise files.FileError(why_not)

    def _default_folder(self) -> Path:
        facts = provenance.provenance(str(resolve_device(self.device)))
        name = "_".join(facts["device_name"].lower().split())
        return Path(f"visit_{name}_{facts['started'][:16].replace(':', '')}")

    @property
    def small(self) -> bool:
        """Whether it is a trial, not a measurement."""
        return self.scale == "smoke"

    def say(self, text: str, name: str = "log") -> None:
        """Print a line, and keep it in a file of the folder; where that cannot be written there is
        a warning."""
        print(text, flush=True)
        path = self.folder / f"{name}.txt"
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(text + "\n")
        except OSError as error:
            told = f"{path} is not written ({error.strerror or error}); the visit goes on"
            warnings.warn(told, stacklevel=1)

    def run(self) -> None:
        """All stages, in their order.

        Raises:
            FileError: something cannot be written.
        """
        # What `data/` has here need not be recorded again.
        placed = wanted(list(EXPERIMENTS.values()), deciding(), self.scale, self.kind)
        for line in doctor.lines():
            self.say(line, "doctor")
        os.environ["REPLIB_DATA"] = str(self.folder.absolute())
        self._check_kernels(monotonic() + KERNELS_SHARE * self._left_s)
        self._bench(monotonic() + BENCH_SHARE * self._left_s)
        self._record(placed)
        took = (monotonic() - self.began) / 60
        self.say(f"{self.n_rows} rows in {took:.1f} minutes; bring {self.folder} home")

    @property
    def _left_s(self) -> float:
        return max(0.0, self.ends - monotonic())

    def _until(self, ends: float) -> Callable[[], bool]:
        return lambda: self.stop() or monotonic() > ends

    def _check_kernels(self, ends: float) -> None:
        checked = list(self._checked(ends))
        self.n_failed = sum(not check.passed for check in checked)
        cut = " (no time for the others)" * (monotonic() > ends)
        checks = f"{len(checked)} check{'s' * (len(checked) != 1)}"
        self.say(f"kernels: {checks}, {self.n_failed} failed{cut}", "kernels")

    def _checked(self, ends: float) -> Iterator[oracles.Check]:
        for check in oracles.checks(self.kind, self._until(ends)):
            self.say(str(check), "kernels")
            yield check

    def _bench(self, ends: float) -> None:
        scale = VISIT if self.kind == "cuda" and not self.small else bench.QUICK
        groups = ("not_causal",) if self.small else ("causal", "memory", "not_causal", "decoding")
        rows = []
        for row in bench.run_bench(
            groups, device=self.kind, scale=scale, stop=self._until(ends), say=self.say
        ):
            store.append(BENCH, row)
            rows.append(row)
        if rows:
            self.say(bench.bench_table(rows), "bench")

    def _record(self, placed) -> None:
        # An earlier visit's rows are in the folder.
        left = [(place, one) for place, one in placed if missing(*one, self.kind)]
        chooser = Budget(self.ends, self.device, self.say)
        for row in record_jobs(
            chooser.chosen(left), self.scale, device=self.device, stop=self.stop, watch=self.watch
        ):
            self.say(line_of(row))
            self.n_rows += 1
