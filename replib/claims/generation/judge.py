"""What it costs to generate, judged on the rows of the experiment `generation`: a constant cost a
token, and how much faster linear attention generates than softmax in each way."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from replib.claims.common import EXPONENT_TOLERANCE
from replib.claims.generation.measured import (
    Speedup,
    finished,
    generated,
    published_speedups,
    samples,
    speedups,
    tokens_by_size,
)
from replib.lab.run import config_of
from replib.lab.statistics import Exponent, Ratio, scaling_exponent
from replib.lab.store import Row
from replib.lab.verdict import (
    INCONCLUSIVE,
    NOT_SUPPORTED,
    SUPPORTED,
    Criterion,
    Verdict,
    each_device,
    exponent_text,
    ratio_text,
    three_digits,
    together,
    within,
)
from replib.published import published

POSITIONS = {
    SUPPORTED: "is the same at every position",
    NOT_SUPPORTED: "depends on its position",
    INCONCLUSIVE: "is not certain to be the same at every position",
}


@each_device
def constant_cost(rows: Sequence[Row]) -> Verdict:
    """A token costs the same at every position with a recurrent state, and ever more with softmax:
    `constant_cost_verdict` for each model and batch."""
    verdicts, times = {}, {"recurrent": [], "recompute": []}
    for size, some in tokens_by_size(rows).items():
        figures = (("recurrent", "time"), ("recompute", "time"))
        figures += (("recurrent", "state"), ("cache", "state"))
        found = [_position_exponent(finished(some, way), what) for way, what in figures]
        for values, one in zip(times.values(), found, strict=False):
            values += [one.value] if one else []
        if any(row["outcome"] == "ok" for row in some):
            verdicts[size.text] = constant_cost_verdict(*found)
    streams = [row for row in rows if config_of(row).span == "stream" and row["outcome"] == "ok"]
    verdict = together(verdicts, "no measurements yet")
    headline, answer = verdict.headline, ""
    spans = {
        way: f"N^{min(some):z.2f} to N^{max(some):z.2f}" for way, some in times.items() if some
    }
    if len(verdicts) > 1 and spans:
        told = [f"as {span} ({way})" for way, span in spans.items()]
        headline = f"the N-th token's time grows {', '.join(told)}"
    if "recurrent" in spans:
        answer = f"a token's time {POSITIONS[verdict.status]} ({spans['recurrent']})"
    evidence = (*verdict.evidence, *map(_stream_text, streams))
    return replace(verdict, headline=headline, evidence=evidence, answer=answer)


def _position_exponent(points: Mapping[int, Row], what: str) -> Exponent | None:
    if len(points) < 2:
        return None
    values = [
        samples(row) if what == "time" else row["summary"]["state_bytes"] for row in points.values()
    ]
    return scaling_exponent(list(points), values)


def _stream_text(row: Row) -> str:
    """How memory went in a long stream."""
    config, curve = config_of(row), row["curve"]
    text = (
        f"{config.way}, {config.n_layers} layers of {config.n_heads} heads of "
        f"{config.head_dim}: {config.seq_len:,} tokens in {samples(row)[0] / 1000:z.0f} s, "
        f"{three_digits(curve['state_bytes'][0] / 1e3)} kB kept at first, "
        f"{three_digits(curve['state_bytes'][-1] / 1e3)} kB at the end"
    )
    if None in curve["process_bytes"]:
        return text
    half = len(curve["process_bytes"]) // 2
    grown = curve["process_bytes"][-1] - curve["process_bytes"][half]
    return f"{text}; the process grew by {grown / 1e6:z.1f} MB over the second half"


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
    over_cache = [one.found.value for one in speedups(rows) if one.over == "cache"]
    answer = ""
    if over_cache:
        ends = dict.fromkeys(map(three_digits, (min(over_cache), max(over_cache))))
        answer = f"linear generates {' to '.join(ends)} times as fast as softmax with a cache"
    evidence = (*verdict.evidence, *beside)
    return replace(verdict, headline=headline, evidence=evidence, answer=answer)


def _published(one: Speedup, paper: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The paper's figures for an image's shape: the CPU's for one image, the largest batch's for
    several."""
    return [
        (name, value)
        for image, over, name, value in published_speedups(paper)
        if (image, over) == (one.size.image, one.over)
        and ("batch 1" in name) == (one.size.batch_size == 1)
    ]


def generation(rows: Sequence[Row]) -> Verdict:
    """`constant_cost` and `faster_generation`, both; headed by the speed-ups, those over a cache
    first: nobody need recompute."""
    cost, faster = constant_cost(rows), faster_generation(rows)
    headline = _speedups_text(rows) or "; ".join(dict.fromkeys((cost.headline, faster.headline)))
    return Verdict(
        headline,
        (*cost.criteria, *faster.criteria),
        (*cost.evidence, *faster.evidence),
        answer="; ".join(filter(None, (faster.answer, cost.answer))),
    )


def _speedups_text(rows: Sequence[Row]) -> str:
    """By how much linear attention generates faster, from where by least to where by most."""
    told = []
    for over, what in COMPARED.items():
        found = sorted((x.found for x in speedups(rows) if x.over == over), key=lambda x: x.value)
        if found:
            ends = dict.fromkeys((found[0], found[-1]))
            text = ratio_text if over == "cache" else lambda one: f"{three_digits(one.value)}×"
            told.append(f"{' to '.join(map(text, ends))} as fast as {what}")
    return f"linear generates {', '.join(told)}" if told else ""


# The one that it is judged by is told first, and with its intervals.
COMPARED = {"cache": "softmax with a cache", "recompute": "softmax that recomputes"}


def constant_cost_verdict(
    recurrent: Exponent | None,
    recompute: Exponent | None,
    state: Exponent | None,
    cache: Exponent | None,
) -> Verdict:
    """Judge: with a recurrent state every token costs the same time and memory wherever it stands,
    and softmax's costs grow (Katharopoulos et al. 2020, section 3.4).

    Criteria, on 95 % intervals of growth exponents of the position: the time of a token and the
    bytes of the state within ± EXPONENT_TOLERANCE of 0; the time of a token that is computed with
    everything before it, and the bytes of a cache, above EXPONENT_TOLERANCE. What was not measured
    cannot be told.
    """
    most = EXPONENT_TOLERANCE
    still, growing = f"(exponent within ± {most:zg})", f"(exponent above {most:zg})"
    steady, rising = (-most, most), (most, math.inf)
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
        return Criterion(text, None, "fewer than 2 positions", few=True)
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


VERDICTS = {"generation": lambda rows: generation(rows["generation"])}
