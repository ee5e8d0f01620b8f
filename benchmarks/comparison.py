"""Races: contenders timed against each other, and what is stored and shown of them.

The contenders of a race are called a round at a time (see `replib.lab.timing.interleave`). A ratio
is of two times of the same round, or of the i-th rounds of each where one takes seconds and has
rounds of its own, and is told as the median of the rounds with their quartiles. A contender that is
not installed, fails or runs out of memory is told so, and stops nobody else.
"""

import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

import numpy as np
import torch
from torch import profiler

from benchmarks.peers import PEERS, Unavailable
from replib.lab import store
from replib.lab.memory_use import is_out_of_memory, release_memory
from replib.lab.timing import Samples, Stop, interleave, never, shortage

EXPERIMENT = "bench"  # the rows are in data/bench.jsonl

# What a figure counts; of AT_MOST, less is better.
TIMES, TENSORS, CROSSOVER, SHARE = "times faster", "tensors", "crossover", "of the rate"
AT_MOST = (TENSORS, CROSSOVER)

AND = "; "  # between the troubles of two contenders

MOST_OF_IT = 0.8  # the share of its time that is told of a kernel that misses a target

SIZES = {"B": "batch_size", "H": "n_heads", "N": "seq_len", "D": "head_dim", "M": "value_dim"}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured at which sizes: the config of a row."""

    kind: ClassVar[str] = EXPERIMENT
    versions: ClassVar[Mapping[str, int]] = {}

    work: str
    batch_size: int
    n_heads: int
    seq_len: int | None = None
    head_dim: int
    value_dim: int | None = None
    dtype: str = "float32"

    def __str__(self) -> str:
        sizes = {letter: getattr(self, name) for letter, name in SIZES.items()}
        told = " ".join(f"{letter} {size}" for letter, size in sizes.items() if size is not None)
        return ", ".join([self.work, *[self.dtype] * (self.dtype != "float32"), told])


@dataclass(frozen=True)
class Target:
    """What a figure should reach at some settings: at least, or at most if its unit is AT_MOST."""

    work: str
    ours: str
    against: str
    unit: str
    limit: float
    where: Mapping[str, Collection] = field(default_factory=dict)
    device_type: str = "cpu"

    def is_for(self, setting: Setting, *named: str) -> bool:
        """Whether it is for this setting, and these ours, against, unit and device type."""
        return (
            self.work == setting.work
            and (self.ours, self.against, self.unit, self.device_type) == named
            and all(getattr(setting, name) in allowed for name, allowed in self.where.items())
        )


Build = Callable[[], Callable[[], object]]
"""Makes what a contender calls, so that nothing is allocated, or fails, before its race."""


class Contender:
    """A contender on its way through a race: what it raises becomes its trouble."""

    def __init__(self, build: Build, device: torch.device):
        self.device = device
        self.trouble: str | None = None
        self.function = self.attempt(build)

    def __call__(self) -> None:
        if self.function is not None:
            self.attempt(self.function)

    def attempt(self, function: Callable[[], Any]) -> Any:
        """What a function returns; None where it fails."""
        try:
            return function()
        except Exception as error:  # a peer may raise anything, and the others go on
            # The text alone is kept: the exception would hold the tensors of its frames.
            self.trouble = _trouble(error)
        self.function = None
        release_memory(self.device)
        return None


def _trouble(error: Exception) -> str:
    if isinstance(error, Unavailable):
        return str(error)
    reason = str(error).strip().split("\n")[0] or "no reason given"
    if is_out_of_memory(error):
        return f"out of memory: {reason}"
    return f"failed: {type(error).__name__}: {reason}"


def check_memory(needed: float, device: torch.device) -> None:
    """Raise MemoryError where that many bytes are not free: Linux promises memory that it does not
    have, and kills the process when it is touched."""
    if why_not := shortage(needed, device):
        raise MemoryError(why_not)


@dataclass(frozen=True)
class Race:
    """Samples of those contenders that finished, the trouble of the others, and who they are."""

    time_ms: dict[str, list[float]]
    trouble: dict[str, str]
    builds: Mapping[str, Build] = field(default_factory=dict)

    def why_not(self, *names: str) -> str | None:
        """Why these cannot be compared; None where they can."""
        told = [f"{name} {self.trouble[name]}" for name in names if name in self.trouble]
        return AND.join(told) or None

    def ratios(self, ours: str, against: str) -> list[float]:
        """How many times faster ours was, round by round; none where it cannot be told."""
        if self.why_not(ours, against):
            return []
        pairs = zip(self.time_ms[against], self.time_ms[ours], strict=False)  # rounds may differ
        return [theirs / mine for theirs, mine in pairs]


def operators(function: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Where the time of a call goes: torch's operators, the largest first, with their own shares of
    it, until they make MOST_OF_IT of it."""
    function()
    activities = [profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(profiler.ProfilerActivity.CUDA)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else a trace prints two lines of its own
    for _ in range(2):  # the first trace of a process counts the profiler's own start
        with profiler.profile(activities=activities) as trace:
            function()
    times = {
        event.key: event.self_device_time_total
        if device.type == "cuda"
        else event.self_cpu_time_total
        for event in trace.key_averages()
    }
    total, shares = sum(times.values()) or 1, {}
    for name, time in sorted(times.items(), key=lambda item: -item[1]):
        if sum(shares.values()) >= MOST_OF_IT:
            break
        shares[name.removeprefix("aten::")] = round(time / total, 3)
    return shares


class Stopped(Exception):
    """A run was told to stop."""


Figure = dict[str, Any]
"""A number of a row: ours, against, unit, value, low, high, target, met, detail."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run: where, for how long, what should be reached, and who is told how far it is.

    Attributes:
        scale: a name for the sizes.
        n_rounds: of a race, at most.
        stop: once it is set, the next race or the one under way raises Stopped.
    """

    device: torch.device
    scale: str
    n_rounds: int
    targets: Sequence[Target]
    stop: Stop = never
    say: Callable[[str], None] = lambda text: None

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    def check_stop(self) -> None:
        if self.stop():
            raise Stopped

    def race(self, setting: Setting, builds: Mapping[str, Build], seconds: float) -> Race:
        """Time contenders against each other for about as long, or one round if that is longer."""
        self.check_stop()
        contenders = {name: Contender(build, self.device) for name, build in builds.items()}
        fit = {name: one for name, one in contenders.items() if one.function is not None}
        samples: dict[str, Samples] = {}
        if fit:
            samples = interleave(
                fit,
                n_repeats=self.n_rounds,
                device=self.device,
                stop=self.stop,
                max_seconds=seconds,
            )
        self.check_stop()
        trouble = {name: one.trouble for name, one in contenders.items() if one.trouble}
        race = Race(
            {name: samples[name].time_ms for name in fit if name not in trouble}, trouble, builds
        )
        self.tell(setting, {n: f"{np.median(x):.3g} ms" for n, x in race.time_ms.items()} | trouble)
        return race

    def tell(self, setting: Setting, found: Mapping[str, str]) -> None:
        self.say(f"{setting}: {', '.join(f'{name} {text}' for name, text in found.items())}")

    def ratio(self, setting: Setting, race: Race, ours: str, against: str) -> Figure:
        """How many times faster ours is."""
        ratios = race.ratios(ours, against)
        return self.figure(setting, ours, against, TIMES, ratios, race.why_not(ours, against))

    def figure(
        self,
        setting: Setting,
        ours: str,
        against: str,
        unit: str,
        values: Sequence[float],
        detail: str | None = None,
    ) -> Figure:
        """The median of some values with their quartiles, and whether it meets its target."""
        low, value, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist() if values else [None] * 3
        named = (ours, against, unit, self.device.type)
        limits = [target.limit for target in self.targets if target.is_for(setting, *named)]
        target, met = limits[0] if limits else None, None
        if target is not None and value is not None:
            met = value <= target if unit in AT_MOST else value >= target
        told = {"ours": ours, "against": against, "unit": unit, "detail": detail}
        return told | {"value": value, "low": low, "high": high, "target": target, "met": met}

    def row(self, setting: Setting, figures: list[Figure], race: Race) -> store.Row:
        rounded = {n: [float(f"{t:.4g}") for t in x] for n, x in race.time_ms.items()}
        missed = {one["ours"] for one in figures if one["met"] is False} & race.builds.keys()
        limits = {name: operators(race.builds[name](), self.device) for name in sorted(missed)}
        return store.make_row(
            EXPERIMENT,
            self.scale,
            setting,
            0,
            "ok" if any(one["value"] is not None for one in figures) else "interrupted",
            {"figures": figures, "time_ms_samples": rounded, "versions": _versions()}
            | ({"operators": limits} if limits else {}),
            detail=race.why_not(*race.trouble),
            device=str(self.device),
            kind="bench",
        )


def _versions() -> dict[str, str]:
    """Of the installed packages that figures depend on, besides those told in every row."""
    found = {}
    for name in (*(peer.distribution for peer in PEERS.values()), "numba", "triton"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def latest_figures(rows: Iterable[store.Row]) -> list[Figure]:
    """The last of each figure in some rows, with the `setting` and `device_name` of its row and the
    `operators` of a kernel that missed a target. One without a value, as a peer was missing, does
    not take the place of one with a value."""
    found: dict[str, Figure] = {}
    for row in rows:
        where = {"setting": row["config"], "device_name": row["provenance"]["device_name"]}
        limits = row["summary"].get("operators", {})
        for figure in row["summary"]["figures"]:
            named = [figure[name] for name in ("ours", "against", "unit")]
            key = json.dumps([where, named], sort_keys=True)
            if key not in found or figure["value"] is not None:
                more = {
                    "setting": Setting(**row["config"]),
                    "operators": limits.get(figure["ours"]),
                }
                found[key] = figure | where | more
    return list(found.values())


def table(figures: Iterable[Figure]) -> str:
    """Figures as a Markdown table with aligned columns, under it where the time of those goes that
    missed their target, and what was not compared."""
    figures = list(figures)
    head = ("work", "against", "median [quartiles]", "target", "met")
    cells = [head, *map(_cells, figures)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [_line(row, widths) for row in cells]
    lines.insert(1, _line(["-" * width for width in widths], widths))
    missing = [one["detail"] for one in figures if one["value"] is None and one["detail"]]
    missed = (one for one in figures if one["met"] is False and one.get("operators"))
    notes = dict.fromkeys(map(_limits, missed))
    notes |= dict.fromkeys(note for detail in missing for note in detail.split(AND))
    return "\n".join([*lines, *(f"\n{note}" for note in notes)])


def _limits(figure: Figure) -> str:
    shares = (f"{name} {share:.0%}" for name, share in figure["operators"].items())
    return f"The time of {figure['ours']}: {figure['setting']} is of {', '.join(shares)}."


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return f"| {' | '.join(padded)} |"


def _cells(figure: Figure) -> tuple[str, ...]:
    unit, target, detail = figure["unit"], figure["target"], figure["detail"]
    measured, digits = "–", ".0f" if unit == CROSSOVER else ".2f"
    if figure["value"] is not None:
        low, value, high = (_number(figure[name], digits) for name in ("low", "value", "high"))
        measured = {
            TIMES: f"{value} [{low}, {high}]",
            SHARE: f"{value} [{low}, {high}] {SHARE}",
            TENSORS: f"{value} {TENSORS}",
            CROSSOVER: f"N = {value} [{low}, {high}]" + (f", {detail}" if detail else ""),
        }[unit]
    limit = "" if target is None else f"{'≤' if unit in AT_MOST else '≥'} {target:g}"
    met = {True: "yes", False: "no", None: ""}[figure["met"]]
    return f"{figure['ours']}: {figure['setting']}", figure["against"], measured, limit, met


def _number(x: float | None, digits: str) -> str:
    return "never" if x is None or not math.isfinite(x) else f"{x:{digits}}"
