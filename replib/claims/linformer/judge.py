"""Linformer's speed, judged on stored rows.

B batch, N sequence length, k slots. Judged are points of one work, forward as in the paper's table
3, with as many tokens at every N; a batch of one is told as evidence.
"""

import math
from collections.abc import Mapping, Sequence

from replib.claims.common import Samples, Variant, criterion, crossing, name_of, nothing
from replib.claims.linformer.grid import JUDGED_K, KS
from replib.claims.linformer.stack import operations
from replib.lab.run import config_of, variant_of
from replib.lab.statistics import Ratio, measured_total, ratio
from replib.lab.store import Row
from replib.lab.verdict import (
    Criterion,
    Verdict,
    crossover_text,
    each_device,
    ratio_text,
    three_digits,
    within,
)
from replib.published import published

WORK = "forward"
NO_TIMES = "no measurements yet", "two lengths or more"
FIRST = 512  # the shortest N of the paper's table 3
K_MARGIN = 1.1  # k is said not to matter where four times as many slots take at most so much longer
JUDGED = ("linformer", f"k{JUDGED_K}")
PARTS = {
    "layer": "a layer",
    "encoder": "an encoder with its output layer",
    "translator": "an encoder-decoder",
}
SOFTMAX = {"textbook": "textbook softmax", "fused": "fused softmax"}


def curves(rows: Sequence[Row], work: str = WORK) -> dict[str, dict[Variant, Samples]]:
    """Times of each mechanism by how the batch goes with N, as many tokens before one sequence."""
    rows = [row for row in rows if row["outcome"] == "ok" and config_of(row).work == work]
    sizes = {(config_of(row).seq_len, config_of(row).batch_size) for row in rows}
    tokens = max((n * b for n, b in sizes), default=0)
    found: dict[str, dict[Variant, dict[int, list[float]]]] = {}
    for row in rows:
        config = config_of(row)
        n, batch_size = config.seq_len, config.batch_size
        names = [f"{tokens:,} tokens"] * (n * batch_size == tokens)
        for name in names + ["one sequence"] * (batch_size == 1):
            of_variant = found.setdefault(name, {}).setdefault(variant_of(row), {})
            of_variant.setdefault(n, []).extend(row["summary"]["time_ms_samples"])
    return dict(sorted(found.items(), key=lambda one: one[0] == "one sequence"))


def ratio_at(times: Mapping[tuple, Samples], a: tuple, b: tuple, n: int) -> Ratio | None:
    """The time of a over that of b at a length; None where it was not measured of both."""
    samples = [times.get(one, {}).get(n) for one in (a, b)]
    return ratio(*map(measured_total, samples)) if all(samples) else None


@each_device
def linformer(rows: Sequence[Row]) -> Verdict:
    """Linformer of k = 128 is faster than softmax attention from N = 512 on, the more the longer:
    the crossover with each form of softmax is at 512 or below, and the ratio to the fused form, to
    which all lengths were measured, rises from 512 to the longest."""
    named = curves(rows)
    if not named:
        return nothing(*NO_TIMES)
    name, times = next(iter(named.items()))
    criteria, said = [], []
    for form, words in SOFTMAX.items():
        found = crossing(times.get(("softmax", form), {}), times.get(JUDGED, {}))
        text, limits = f"faster than {words} from N = {FIRST} on", (-math.inf, FIRST)
        criteria.append(criterion(text, found, limits, crossover_text, "fewer than two lengths"))
        if found:
            place = crossover_text(found).split(" (")[0]
            said.append(f"than {words} {'' if place.startswith('not') else 'from '}{place}")
    fused = ("softmax", "fused")
    lengths = sorted(set(times.get(fused, {})) & set(times.get(JUDGED, {})))
    first = next((n for n in lengths if n >= FIRST), None)
    answer = f"Faster {', '.join(said)}." if said else ""
    if first is not None and first < lengths[-1]:
        ends = [ratio_at(times, fused, JUDGED, n) for n in (first, lengths[-1])]
        met = within(ends[1].low, ends[1].high, ends[0].high, math.inf)
        rises = f"{ratio_text(ends[0])} at N = {first}, {ratio_text(ends[1])} at {lengths[-1]}"
        criteria.append(Criterion("the ratio to fused softmax rises with N", met, rises))
        papers = published()["linformer_paper"]["time_saved"].get(str(lengths[-1]))
        beside = f" (paper: {papers[0]:z.3g})" if papers else ""
        answer = (
            f"Faster {', '.join(said)}: {three_digits(ends[1].value)} times at N = "
            f"{lengths[-1]}{beside}.{_linear_too(times)}"
        )
    return Verdict(
        f"k = {JUDGED_K}, {name}, {WORK}: faster {', '.join(said)}",
        tuple(criteria),
        tuple(_beside(named)),
        answer=answer,
    )


def _linear_too(times: Mapping) -> str:
    """That linear attention is faster still, where it is at every length."""
    for kernel in ("cuda", "cpu"):
        linear = ("linear", kernel)
        both = set(times.get(linear, {})) & set(times.get(JUDGED, {}))
        if both and all(ratio_at(times, JUDGED, linear, n).low > 1 for n in both):
            return f" {name_of(linear).capitalize()} is faster still at every N."
    return ""


def _beside(named: Mapping[str, Mapping[tuple, Samples]]) -> list[str]:
    """Where Linformer is faster than others, by each number of slots."""
    lines = []
    for name, times in named.items():
        others = [one for one in times if one[0] in ("softmax", "linear")]
        for k in KS:
            own = times.get(("linformer", f"k{k}"), {})
            found = {name_of(other): crossing(times[other], own) for other in others}
            told = [f"{other} {crossover_text(one)}" for other, one in found.items() if one]
            if told:
                lines.append(f"{name}, k = {k} is faster than: {'; '.join(told)}")
    return lines


@each_device
def slots(alone: Sequence[Row], stacks: Sequence[Row]) -> Verdict:
    """k does not matter to the time: of attention alone, of a layer, and of models, at the longest
    N that was measured of all."""
    parts = {"attention alone": list(alone)}
    for row in stacks:
        parts.setdefault(PARTS[config_of(row).part], []).append(row)
    few, many = (("linformer", f"k{k}") for k in (KS[0], KS[-1]))
    criteria, ratios = [], {}
    for part, some in parts.items():
        times = next(iter(curves(some).values()), {})
        lengths = sorted(set(times.get(few, {})) & set(times.get(many, {})))
        text = f"{part}: k = {KS[-1]} takes at most {K_MARGIN:zg} times as long as k = {KS[0]}"
        if not lengths:
            criteria.append(Criterion(text, None, "not measured", few=True))
            continue
        found = ratios[part] = ratio_at(times, many, few, lengths[-1])
        met = within(found.low, found.high, -math.inf, K_MARGIN)
        criteria.append(Criterion(text, met, f"{ratio_text(found)} at N = {lengths[-1]}"))
    if not ratios:
        return nothing(*NO_TIMES)
    needs = operations("linformer", 1, k=KS[-1])
    told = ", ".join(f"{part} {three_digits(one.value)}" for part, one in ratios.items())
    return Verdict(
        f"k = {KS[-1]} over k = {KS[0]}: {told}",
        tuple(criteria),
        (
            f"of the multiplications of an encoder with an output layer attention is "
            f"{needs.attention / needs.total:z.1%} at k = {KS[-1]}, the output layer "
            f"{needs.output / needs.total:z.0%}",
        ),
        answer=f"k = {KS[-1]} takes so many times as long as k = {KS[0]}: {told}.",
    )


VERDICTS = {
    "linformer": lambda rows: linformer(rows["linformer"]),
    "slots": lambda rows: slots(rows["linformer"], rows["linformer_stack"]),
}
