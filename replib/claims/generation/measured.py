"""What each way to generate takes, by single tokens and whole sequences, and by how much one is
faster than another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from replib.claims.generation.grid import IMAGE_SHAPES
from replib.lab.run import config_of
from replib.lab.runs.generation import WAYS, GenerationConfig
from replib.lab.statistics import Ratio, Total, integrated_total, measured_total, ratio
from replib.lab.store import Row
from replib.lab.verdict import by_device

IMAGE_KEYS = {"MNIST": ("mnist", "table1_mnist"), "CIFAR-10": ("cifar10", "table2_cifar10")}
"""What the paper's blocks of figures call an image's shape: key, and table of throughputs."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model and a length to generate; `text` names the paper's ones."""

    seq_len: int
    n_layers: int
    n_heads: int
    head_dim: int
    batch_size: int

    @property
    def image(self) -> str | None:
        """The paper's data set of this shape."""
        shapes = {shape: name for name, shape in IMAGE_SHAPES.items()}
        paper = (self.n_heads, self.head_dim) == (8, 32)
        return shapes.get((self.seq_len, self.n_layers)) if paper else None

    @property
    def text(self) -> str:
        what = self.image or (
            f"N = {self.seq_len}, {self.n_layers} layers, {self.n_heads} heads of {self.head_dim}"
        )
        return f"{what}, batch {self.batch_size}"


MIN_WHOLE_RUNS = 3  # of a sequence; resampling fewer says nothing of how they vary


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What one way of generating takes at one size: the time of the whole sequence, run as one
    ("measured", of MIN_WHOLE_RUNS or more) and summed from single tokens ("integrated"); one of
    the two may be missing, or both. `runs` are the times of whole runs, however few."""

    size: Size
    way: str
    runs: tuple[float, ...]
    integrated: Total | None
    row: Row

    @property
    def measured(self) -> Total | None:
        return _measured(self.runs) if len(self.runs) >= MIN_WHOLE_RUNS else None


def generated(rows: Sequence[Row]) -> dict[Size, dict[str, Generated]]:
    """What each way takes at each size, for rows of one device: a size is a model and batch, with
    the longest of its single tokens or the length of a whole sequence."""
    found: dict[Size, dict[str, Generated]] = {}
    tokens, runs = tokens_by_size(rows), _runs_of(rows)
    for at in sorted({*tokens, *runs}, key=lambda one: (one.seq_len, one.batch_size)):
        for way in WAYS:
            points, run = finished(tokens.get(at, []), way), runs.get(at, {}).get(way)
            row = run or points.get(at.seq_len)
            if row is not None:
                found.setdefault(at, {})[way] = Generated(
                    size=at,
                    way=way,
                    runs=tuple(samples(run)) if run else (),
                    integrated=_integrated(points) if at.seq_len in points else None,
                    row=row,
                )
    return found


def tokens_by_size(rows: Sequence[Row]) -> dict[Size, list[Row]]:
    """All rows of single tokens, by model, batch and last position, whatever their outcome."""
    found: dict[Size, list[Row]] = {}
    for row in rows:
        if config_of(row).span == "token":
            found.setdefault(replace(size(config_of(row)), seq_len=1), []).append(row)
    return {
        replace(size, seq_len=max(config_of(row).seq_len for row in some)): some
        for size, some in found.items()
    }


def finished(rows: Sequence[Row], way: str) -> dict[int, Row]:
    """The single tokens of one size that a way has generated, by position."""
    return {
        config_of(row).seq_len: row
        for row in rows
        if config_of(row).way == way and row["outcome"] == "ok"
    }


def _integrated(points: Mapping[int, Row]) -> Total:
    return _sum(tuple(points), tuple(tuple(samples(row)) for row in points.values()), max(points))


_measured, _sum = lru_cache(maxsize=1000)(measured_total), lru_cache(maxsize=1000)(integrated_total)


def _runs_of(rows: Sequence[Row]) -> dict[Size, dict[str, Row]]:
    found: dict[Size, dict[str, Row]] = {}
    for row in rows:
        if config_of(row).span == "sequence" and row["outcome"] == "ok":
            found.setdefault(size(config_of(row)), {})[config_of(row).way] = row
    return found


def size(config: GenerationConfig) -> Size:
    return Size(**{name: getattr(config, name) for name in Size.__dataclass_fields__})


def samples(row: Row) -> list[float]:
    return row["summary"]["time_ms_samples"]


@dataclass(frozen=True, kw_only=True)
class Speedup:
    """How many times faster linear attention generates a sequence than softmax in another way."""

    size: Size
    over: str
    found: Ratio
    integrated: bool
    row: Row


def speedups(rows: Sequence[Row]) -> list[Speedup]:
    """Those of each device and size, over a cache first."""
    found = (
        speedup(ways.get(way), ways.get("recurrent"))
        for some in by_device(rows).values()
        for ways in generated(some).values()
        for way in ("cache", "recompute")
    )
    return [one for one in found if one]


def speedup(slow: Generated | None, fast: Generated | None) -> Speedup | None:
    """Of whole runs where both sides have enough, else of two sums, whose tokens were timed
    together; None where a side has neither."""
    if slow is None or fast is None:
        return None
    whole = slow.measured, fast.measured
    summed = slow.integrated, fast.integrated
    mixed = slow.measured or slow.integrated, fast.measured or fast.integrated
    totals = next((both for both in (whole, summed, mixed) if None not in both), None)
    if totals is None:
        return None
    found, integrated = ratio(*totals), totals is not whole
    return Speedup(size=fast.size, over=slow.way, found=found, integrated=integrated, row=fast.row)


def published_speedups(paper: Mapping[str, Any]) -> list[tuple[str, str, str, float]]:
    """Image, over which way, where, and how many times faster linear attention is there. The ones
    over recomputing on a GPU are printed (tables 1 and 2), the others are quotients of printed
    throughputs and times (tables 1, 2, 4 and 5)."""
    found = []
    for image, (key, table) in IMAGE_KEYS.items():
        latency = paper["table5_latency_batch1_s"][key]
        linear = paper[table]["rows"]["linear"]
        stateful = paper["table4_stateful"][key]["stateful-softmax"]
        found += [
            (image, "cache", "GPU, many", linear[1] / stateful[1]),
            (image, "recompute", "GPU, many", linear[2]),
        ]
        for over, name in (("cache", "stateful-softmax"), ("recompute", "softmax")):
            for i, device in enumerate(paper["table5_latency_batch1_s"]["columns"]):
                value = latency[name][i] / latency["linear"][i]
                found.append((image, over, f"{device}, batch 1", value))
    return found
