"""What it costs to generate, judged on the rows of the experiment `generation`: a constant cost a
token, and how much faster linear attention generates than softmax in each way."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from replib.claims.common import EXPONENT_TOLERANCE
from replib.claims.generation.grid import IMAGE_SHAPES
from replib.lab.runs.generation import WAYS
from replib.lab.statistics import (
    Exponent,
    Ratio,
    Total,
    integrated_total,
    measured_total,
    ratio,
    scaling_exponent,
)
from replib.lab.store import Row
from replib.lab.text import markdown_table
from replib.lab.verdict import (
    Criterion,
    Verdict,
    by_device,
    each_device,
    exponent_text,
    ratio_text,
    three_digits,
    together,
    within,
)
from replib.published import published

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

    @property
    def total(self) -> Total | None:
        """In milliseconds."""
        return self.measured or self.integrated

    @property
    def images_per_s(self) -> float | None:
        return 1000 * self.size.batch_size / self.total.value if self.total else None


def generated(rows: Sequence[Row]) -> dict[Size, dict[str, Generated]]:
    """What each way takes at each size, for rows of one device: a size is a model and batch, with
    the longest of its single tokens or the length of a whole sequence."""
    found: dict[Size, dict[str, Generated]] = {}
    tokens = _tokens_of(rows)
    lengths = {(size, max(max(points) for points in tokens[size].values())) for size in tokens}
    lengths |= {(replace(size, seq_len=1), size.seq_len) for size, _ in _runs_of(rows)}
    for size, last in sorted(lengths, key=lambda one: (one[1], one[0].batch_size)):
        at = replace(size, seq_len=last)
        for way in WAYS:
            points, run = tokens.get(size, {}).get(way, {}), _runs_of(rows).get((at, way))
            row = run or points.get(last)
            if row is not None:
                found.setdefault(at, {})[way] = Generated(
                    size=at,
                    way=way,
                    runs=tuple(_samples(run)) if run else (),
                    integrated=_integrated(points, last) if last in points else None,
                    row=row,
                )
    return found


def tokens_by_size(rows: Sequence[Row]) -> dict[Size, list[Row]]:
    """All rows of single tokens, by model, batch and last position, whatever their outcome."""
    found: dict[Size, list[Row]] = {}
    for row in rows:
        if row["config"]["span"] == "token":
            found.setdefault(replace(_size(row["config"]), seq_len=1), []).append(row)
    return {
        replace(size, seq_len=max(row["config"]["seq_len"] for row in some)): some
        for size, some in found.items()
    }


def _integrated(points: Mapping[int, Row], last: int) -> Total:
    used = {n: tuple(_samples(row)) for n, row in points.items() if n <= last}
    return _sum(tuple(used), tuple(used.values()), last)


_measured, _sum = lru_cache(maxsize=1000)(measured_total), lru_cache(maxsize=1000)(integrated_total)


def _tokens_of(rows: Sequence[Row]) -> dict[Size, dict[str, dict[int, Row]]]:
    """The finished single tokens: model and batch (a size whose length is 1) -> way -> N -> row."""
    found: dict[Size, dict[str, dict[int, Row]]] = {}
    for row in rows:
        config = row["config"]
        if config["span"] == "token" and row["outcome"] == "ok":
            ways = found.setdefault(replace(_size(config), seq_len=1), {})
            ways.setdefault(config["way"], {})[config["seq_len"]] = row
    return found


def _runs_of(rows: Sequence[Row]) -> dict[tuple[Size, str], Row]:
    return {
        (_size(row["config"]), row["config"]["way"]): row
        for row in rows
        if row["config"]["span"] == "sequence" and row["outcome"] == "ok"
    }


def _size(config: Mapping[str, Any]) -> Size:
    return Size(**{name: config[name] for name in Size.__dataclass_fields__})


def _samples(row: Row) -> list[float]:
    return row["summary"]["time_ms_samples"]


@each_device
def constant_cost(rows: Sequence[Row]) -> Verdict:
    """A token costs the same at every position with a recurrent state, and ever more with softmax:
    `constant_cost_verdict` for each model and batch."""
    verdicts, times = {}, {"recurrent": [], "recompute": []}
    for size, ways in _tokens_of(rows).items():
        last = max(max(points) for points in ways.values())
        figures = (("recurrent", "time"), ("recompute", "time"))
        figures += (("recurrent", "state"), ("cache", "state"))
        found = [_position_exponent(ways.get(way, {}), what) for way, what in figures]
        for some, one in zip(times.values(), found, strict=False):
            some += [one.value] if one else []
        verdicts[replace(size, seq_len=last).text] = constant_cost_verdict(*found)
    streams = [row for row in rows if row["config"]["span"] == "stream" and row["outcome"] == "ok"]
    verdict = together(verdicts, "no measurements yet")
    headline = verdict.headline
    if len(verdicts) > 1 and any(times.values()):
        told = [
            f"as N^{min(some):z.2f} to N^{max(some):z.2f} ({way})"
            for way, some in times.items()
            if some
        ]
        headline = f"the N-th token's time grows {', '.join(told)}"
    evidence = (*verdict.evidence, *map(_stream_text, streams))
    return replace(verdict, headline=headline, evidence=evidence)


def _position_exponent(points: Mapping[int, Row], what: str) -> Exponent | None:
    if len(points) < 2:
        return None
    values = [
        _samples(row) if what == "time" else row["summary"]["state_bytes"]
        for row in points.values()
    ]
    return scaling_exponent(list(points), values)


def _stream_text(row: Row) -> str:
    """How memory went in a long stream."""
    config, curve = row["config"], row["curve"]
    text = (
        f"{config['way']}, {config['n_layers']} layers of {config['n_heads']} heads of "
        f"{config['head_dim']}: {config['seq_len']:,} tokens in {_samples(row)[0] / 1000:z.0f} s, "
        f"{three_digits(curve['state_bytes'][0] / 1e3)} kB kept at first, "
        f"{three_digits(curve['state_bytes'][-1] / 1e3)} kB at the end"
    )
    if None in curve["process_bytes"]:
        return text
    half = len(curve["process_bytes"]) // 2
    grown = curve["process_bytes"][-1] - curve["process_bytes"][half]
    return f"{text}; the process grew by {grown / 1e6:z.1f} MB over the second half"


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
        _speedup(ways.get(way), ways.get("recurrent"))
        for some in by_device(rows).values()
        for ways in generated(some).values()
        for way in ("cache", "recompute")
    )
    return [one for one in found if one]


def _speedup(slow: Generated | None, fast: Generated | None) -> Speedup | None:
    """Of whole runs where both sides have enough, else of two sums, whose tokens were timed
    together; None where a side has neither."""
    if slow is None or fast is None:
        return None
    for how in ("measured", "integrated", "total"):
        totals = getattr(slow, how), getattr(fast, how)
        if None not in totals:
            return Speedup(
                size=fast.size,
                over=slow.way,
                found=ratio(*totals),
                integrated=how != "measured",
                row=fast.row,
            )
    return None


SUMMED = "summed from single tokens"


@each_device
def faster_generation(rows: Sequence[Row]) -> Verdict:
    """Linear attention generates a whole sequence in less time than softmax with its cache, judged
    at each size, by whole runs where there are enough of them, else by sums over tokens; how much
    faster than softmax that computes everything again is evidence, and so is how these sums
    compare with whole runs."""
    verdicts, beside, paper = {}, [], published()["katharopoulos2020"]
    for one in speedups(rows):
        told = [SUMMED] if one.integrated else []
        told += [
            f"by the paper's figures {three_digits(value)}× ({name})"
            for name, value in _published(one, paper)
        ]
        if one.over == "cache":
            verdicts[one.size.text] = faster_generation_verdict(one.found, beside="; ".join(told))
        else:
            text = f"{one.size.text}: linear is {ratio_text(one.found)} as fast as recomputing"
            beside.append("; ".join([text, *told]))
    for size, ways in generated(rows).items():
        for way, one in ways.items():
            if one.runs:
                n = len(one.runs)
                text = f"{size.text}, {way}: {n} whole run{'s' * (n != 1)}"
                if one.integrated:
                    share = one.integrated.value / statistics.median(one.runs)
                    text += f", tokens sum to {share:z.2f} of {'it' if n == 1 else 'their median'}"
                beside.append(text)
    verdict = together(verdicts, "no measurements yet")
    headline = _speedups_text(rows) if len(verdicts) > 1 else verdict.headline
    return replace(verdict, headline=headline, evidence=(*verdict.evidence, *beside))


def _published(one: Speedup, paper: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The paper's figures for an image's shape: the CPU's for one image, the largest batch's for
    several."""
    return [
        (name, value)
        for image, over, name, value in published_speedups(paper)
        if (image, over) == (one.size.image, one.over)
        and ("batch 1" in name) == (one.size.batch_size == 1)
    ]


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


PAPER_AT = "https://arxiv.org/abs/2006.16236"


def generation(rows: Sequence[Row]) -> Verdict:
    """`constant_cost` and `faster_generation`, both; headed by the speed-ups, those over a cache
    first: nobody need recompute."""
    parts = constant_cost(rows), faster_generation(rows)
    criteria, evidence = (
        tuple(line for part in parts for line in getattr(part, name))
        for name in ("criteria", "evidence")
    )
    headline = _speedups_text(rows) or "; ".join(dict.fromkeys(part.headline for part in parts))
    return Verdict(headline, criteria, evidence)


def _speedups_text(rows: Sequence[Row]) -> str:
    """By how much linear attention generates faster, from where by least to where by most."""
    found = {over: [one for one in speedups(rows) if one.over == over] for over in COMPARED}
    told = [
        f"{_ends([one.found for one in found[over]], intervals=over == 'cache')} as fast as {what}"
        for over, what in COMPARED.items()
        if found[over]
    ]
    return f"linear generates {', '.join(told)}" if told else ""


# The one that it is judged by is told first, and with its intervals.
COMPARED = {"cache": "softmax with a cache", "recompute": "softmax that recomputes"}


def _ends(ratios: Sequence[Ratio], *, intervals: bool) -> str:
    """The least and the largest of some ratios."""
    least, most = (pick(ratios, key=lambda one: one.value) for pick in (min, max))
    text = ratio_text if intervals else lambda one: f"{three_digits(one.value)}×"
    told = [text(one) for one in dict.fromkeys((least, most))]
    return " to ".join(told)


def generation_table(rows: Sequence[Row], paper: Mapping[str, Any]) -> str:
    """Images a second of the paper's tables 1, 2 and 4 and here, as Markdown."""
    lines = []
    for image, (key, table) in IMAGE_KEYS.items():
        here = paper[table]["rows"]
        stateful = paper["table4_stateful"][key]["stateful-softmax"]
        rates = here["softmax"][1], stateful[1], here["linear"][1]
        over = [f"{three_digits(rates[2] / rate)}×" for rate in rates[:2]]
        cells = [three_digits(rate) for rate in rates] + over
        # The link is also what a keyboard scrolls the table by, on a narrow page.
        lines.append([_unbroken(f"[paper]({PAPER_AT}), {image}, GPU, many images"), *cells])
    for device, some in by_device(rows).items():
        for size, ways in generated(some).items():
            found = [ways.get(way) for way in ("recompute", "cache", "recurrent")]
            cells = [_rate(one) for one in found]
            cells += [_times(_speedup(slow, found[2])) for slow in found[:2]]
            lines.append([_unbroken(f"{device}, {size.text}"), *cells])
    columns = "softmax, recomputed", "softmax, cached", "linear", "linear over recomputed"
    head = [_unbroken("images a second"), *columns, "over cached"]
    return markdown_table(head, lines) + (
        "\n\n~ is summed from single tokens, which were measured at some positions; the others are "
        f"medians of {MIN_WHOLE_RUNS} or more whole runs. A ratio is of whole runs where both have "
        "so many."
    )


def _rate(one: Generated | None) -> str:
    if one is None or one.total is None:
        return "–"
    return f"{'' if one.measured else '~'}{three_digits(one.images_per_s)}"


def _times(one: Speedup | None) -> str:
    return f"{'~' * one.integrated}{three_digits(one.found.value)}×" if one else "–"


def _unbroken(name: str) -> str:
    return name.replace(" ", "\N{NO-BREAK SPACE}")  # a narrow page scrolls the table


def constant_cost_verdict(
    recurrent: Exponent | None,
    recompute: Exponent | None,
    state: Exponent | None,
    cache: Exponent | None,
    *,
    tolerance: float = EXPONENT_TOLERANCE,
) -> Verdict:
    """Judge: with a recurrent state every token costs the same time and memory wherever it stands,
    and softmax's costs grow (Katharopoulos et al. 2020, section 3.4).

    Criteria, on 95 % intervals of growth exponents of the position: the time of a token and the
    bytes of the state within ± `tolerance` of 0; the time of a token that is computed with
    everything before it, and the bytes of a cache, above `tolerance`. What was not measured cannot
    be told.
    """
    still, growing = f"(exponent within ± {tolerance:zg})", f"(exponent above {tolerance:zg})"
    steady, rising = (-tolerance, tolerance), (tolerance, math.inf)
    criteria = (
        _growth_criterion(f"recurrent: a token's time does not grow {still}", recurrent, steady),
        _growth_criterion(f"recurrent: the state does not grow {still}", state, steady),
        _growth_criterion(f"recompute: a token's time grows {growing}", recompute, rising),
        _growth_criterion(f"cache: its bytes grow {growing}", cache, rising),
    )
    told = ", ".join(
        f"as N^{found.value:z.2f} ({name})"
        for name, found in (("recurrent", recurrent), ("recompute", recompute))
        if found is not None
    )
    return Verdict(f"the N-th token's time grows {told}" if told else "too few positions", criteria)


def _growth_criterion(text: str, found: Exponent | None, bounds: tuple[float, float]) -> Criterion:
    if found is None:
        return Criterion(text, None, "fewer than 2 positions")
    return Criterion(text, within(found.low, found.high, *bounds), exponent_text(found))


def faster_generation_verdict(speedup: Ratio, *, beside: str = "") -> Verdict:
    """Judge: linear attention generates a sequence in less time than softmax with its cache.

    The criterion is met where the 95 % interval of the ratio of times lies above 1, violated where
    it lies below. `beside` is told beside it.
    """
    text = ratio_text(speedup)
    met = within(speedup.low, speedup.high, 1.0, math.inf)
    criterion = Criterion("linear takes less time a sequence than cached softmax", met, text)
    beside = f", {beside}" if beside else ""
    return Verdict(f"linear is {text} as fast as cached softmax{beside}", (criterion,))


VERDICTS = {
    "generation": lambda rows: generation(rows["generation"]),
    "constant_cost": lambda rows: constant_cost(rows["generation"]),
    "faster_generation": lambda rows: faster_generation(rows["generation"]),
}
