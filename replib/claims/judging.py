"""The claims, judged on stored rows: what turns recorded or live rows into verdicts.

Rows are those of `store.read_rows`; each function takes whatever rows there are and says
"inconclusive" where they do not suffice.
"""

import json
import math
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from replib.claims.common import BOTH, LSH_COPY, VARIANTS
from replib.lab.run import variant_of
from replib.lab.runs.training import SOLVED_ACCURACY
from replib.lab.statistics import (
    Crossover,
    Regression,
    crossover,
)
from replib.lab.store import Row
from replib.lab.text import LEFT, markdown_table
from replib.lab.verdict import (
    MAX_LOSS_RATIO,
    MIN_COMPARED_SEEDS,
    MIN_SEEDS,
    NOT_SUPPORTED,
    Criterion,
    SeedResult,
    Verdict,
    accuracy_criterion,
    by_device,
    convergence_verdict,
    crossover_verdict,
    each_device,
    images_verdict,
    implementations_verdict,
    loss_ratio,
    ratio_criterion,
    ratio_text,
    three_digits,
    together,
)
from replib.training import TrainingConfig

if TYPE_CHECKING:
    import polars

Variant = tuple[str, str | None]
"""Attention, and what its options and kernel are called."""

_SAID = {True: "yes", False: "no", None: "cannot be told"}


# The setting of the paper's figure 2. Smaller ones may support its claim, and cannot refute it.
PAPER_COPY = TrainingConfig()
PAPER_SIZES = ("n_layers", "n_heads", "d_model", "d_feedforward")


def of_papers_size(config: Mapping[str, Any]) -> bool:
    """Whether a run of the copy task has the length, model, batch and steps of the paper's."""
    found = [config["model"][name] for name in PAPER_SIZES]
    found += [config["task"]["seq_len"], config["batch_size"], config["n_steps"]]
    papers = [getattr(PAPER_COPY.model, name) for name in PAPER_SIZES]
    papers += [PAPER_COPY.task.seq_len, PAPER_COPY.batch_size, PAPER_COPY.n_steps]
    return all(one >= least for one, least in zip(found, papers, strict=True))


Sides = dict[str, list[SeedResult]]
"""The runs of each mechanism of one setting."""


def _sides(rows: Sequence[Row]) -> Sides:
    found: Sides = {}
    for row in rows:
        if row["outcome"] in ("ok", "diverged"):
            found.setdefault(row["config"]["model"]["attention"], []).append(_seed_result(row))
    return found


def _copy_settings(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The runs of each setting by its name, the shortest first: those of the paper's size where
    there are any. Runs that differ in anything but the mechanism and the seed (two scales, say) are
    not judged together."""
    if papers := [row for row in rows if of_papers_size(row["config"])]:
        rows = papers
    settings: dict[str, list[Row]] = {}
    for row in rows:
        settings.setdefault(_setting(row), []).append(row)
    named: dict[str, list[Row]] = {}
    for some in sorted(settings.values(), key=_seq_len):
        config = some[0]["config"]
        name = f"N = {_seq_len(some)}, {config['n_steps']} steps"
        if name in named:
            name += f", d_model {config['model']['d_model']}, batch {config['batch_size']}"
        named[name] = some
    return named


@each_device
def convergence(rows: Sequence[Row]) -> Verdict:
    """Linear attention learns the copy task as softmax does: `convergence_verdict` at every length
    there is, together, with the intervals of losses corrected for their number. Runs of a smaller
    size than the paper's do not refute its claim: where they fail it is not tested. Mechanisms
    besides softmax and linear have no part in it; `below_lsh` is told as evidence."""
    judged = [row for row in rows if row["config"]["model"]["attention"] in BOTH]
    settings = {name: (some, _sides(some)) for name, some in _copy_settings(judged).items()}
    verdicts = {}
    for name, (some, sides) in settings.items():
        verdict = convergence_verdict(
            *(sides.get(one, []) for one in ("linear", "softmax")),
            accuracy_threshold=SOLVED_ACCURACY,
            n_comparisons=len(settings),
        )
        failed = verdict.status == NOT_SUPPORTED
        small = not of_papers_size(some[0]["config"])
        verdicts[name] = replace(verdict, untested=failed and small)
    verdict = together(verdicts, "no runs yet")
    lsh = below_lsh(rows)
    beside = (f"beside it, {BELOW_LSH}: {lsh.status}; {lsh.headline}", *lsh.lines)
    headline = _learned(settings.values()) or verdict.headline
    return replace(verdict, headline=headline, evidence=(*verdict.evidence, *beside))


def _learned(settings: Iterable[tuple[list[Row], Sides]]) -> str:
    """At which lengths linear attention is as accurate as softmax, and its loss as low; "" before
    the seeds suffice at any."""
    settings = list(settings)
    told: dict[str, list[str]] = {}
    for some, sides in settings:
        linear, softmax = sides.get("linear", []), sides.get("softmax", [])
        if min(len(linear), len(softmax)) < MIN_SEEDS:
            continue
        n, accurate = str(_seq_len(some)), accuracy_criterion(linear, SOLVED_ACCURACY).met
        told.setdefault({True: "accurate", False: "failed"}.get(accurate, ""), []).append(n)
        low = ratio_criterion(linear, softmax, MAX_LOSS_RATIO, len(settings)).met
        ratio, _ = loss_ratio(linear, softmax)
        if accurate and ratio and not low:
            word = "higher" if low is False else "untold"
            told.setdefault(word, []).append(f"{n} ({three_digits(ratio.value)}×)")
    said = [
        f"{words} {', '.join(told[name])}"
        for name, words in (
            ("accurate", "as accurate as softmax at N ="),
            ("higher", "loss not as low at"),
            ("untold", "loss open at"),
            ("failed", "not learned at"),
        )
        if name in told
    ]
    small = not any(of_papers_size(some[0]["config"]) for some, _ in settings)
    return f"{'small models: ' * small}{'; '.join(said)}" if said else ""


BELOW_LSH = "Linear attention ends at a lower loss than LSH attention of 4 rounds"


@each_device
def below_lsh(rows: Sequence[Row]) -> Verdict:
    """Linear attention ends below LSH attention of 4 rounds (paper, figure 2): at each length with
    MIN_COMPARED_SEEDS seeds of both, the interval of the ratio of final losses lies below 1
    (violated where it lies above). LSH attention is defined otherwise here than in the original."""
    some = [
        row
        for row in rows
        if variant_of(row) == ("lsh", LSH_COPY.label)
        or row["config"]["model"]["attention"] == "linear"
    ]
    settings = {name: _sides(some) for name, some in _copy_settings(some).items()}
    settings = {name: sides for name, sides in settings.items() if "lsh" in sides}
    criteria = []
    for name, sides in settings.items():
        linear, lsh = sides.get("linear", []), sides["lsh"]
        text = f"{name}: linear's final loss is below that of LSH attention"
        if min(len(linear), len(lsh)) < MIN_COMPARED_SEEDS:
            seeds = [
                f"{statistics.median(one.final_loss for one in some):z.2g} of {len(some)} {name}"
                for some, name in ((linear, "linear"), (lsh, "LSH"))
                if some
            ]
            figure = f"{' against '.join(seeds)} (medians; too few seeds: not judged)"
            criteria.append(Criterion(text, None, figure))
            continue
        ratio, note = loss_ratio(linear, lsh, len(settings))
        met = None
        if ratio:
            met = True if ratio.high < 1 else False if ratio.low > 1 else None
        criteria.append(Criterion(text, met, f"{ratio_text(ratio)}{note}" if ratio else note))
    if not criteria:
        missing = Criterion("runs of LSH attention and of linear", None, "none: not judged")
        return Verdict("not judged: no runs of LSH attention", (missing,))
    met = [one.met for one in criteria]
    small = not any(of_papers_size(row["config"]) for row in some)
    counts = f"{met.count(True)} lower, {met.count(False)} higher, {met.count(None)} not told"
    return Verdict(
        f"of {len(met)} lengths {counts}", tuple(criteria), untested=small and False in met
    )


def _setting(row: Row) -> str:
    model = row["config"]["model"] | {"attention": None, "options": None, "kernel": None}
    return json.dumps(row["config"] | {"model": model}, sort_keys=True)


def _seq_len(rows: Sequence[Row]) -> int:
    return rows[0]["config"]["task"]["seq_len"]


def _seed_result(row: Row) -> SeedResult:
    summary = row["summary"]
    return SeedResult(
        seed=row["seed"],
        final_loss=_number(summary.get("final_loss")),
        final_accuracy=_number(summary.get("final_accuracy")),
        n_spikes=summary.get("n_spikes", 0),
        diverged=row["outcome"] == "diverged",
        steps_to_threshold=summary.get("steps_to_solved"),
    )


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


@each_device
def images(rows: Sequence[Row]) -> Verdict:
    """Linear attention models images as well as softmax: `images_verdict` of each data set and
    setting there is."""
    settings: dict[str, list[Row]] = {}
    for row in rows:
        if row["outcome"] in ("ok", "diverged"):
            settings.setdefault(_setting(row), []).append(row)
    verdicts = {}
    for some in settings.values():
        config = some[0]["config"]
        name = f"{config['task']['images']}, {config['n_steps']} steps"
        if name in verdicts:
            name += f", {config['model']['n_layers']} layers, batch {config['batch_size']}"
        verdicts[name] = _images_of_setting(some)
    return together(verdicts, "no runs yet")


def _images_of_setting(rows: Sequence[Row]) -> Verdict:
    found: dict[str, list[float]] = {"linear": [], "softmax": []}
    n_diverged = 0
    for row in rows:
        attention = row["config"]["model"]["attention"]
        if row["outcome"] == "ok" and attention in found:
            found[attention].append(row["summary"]["bits_per_dim"])
        n_diverged += attention == "linear" and row["outcome"] == "diverged"
    histogram = rows[0]["summary"]["histogram_bits_per_dim"]
    return images_verdict(**found, histogram=histogram, n_diverged=n_diverged)


def judged_linear(rows: Sequence[Row]) -> str | None:
    """The implementation of linear attention that is judged: of those in the rows the fastest, by
    the sum of its times over the points that all of them finished; None where there is none.

    A claim about linear attention is one about the best that is known of it; every other
    implementation is told as evidence. This rule was written before a compiled kernel had rows.
    """
    times: dict[str, dict[Hashable, float]] = {}
    for row in rows:
        attention, implementation = variant_of(row)
        if attention == "linear" and row["outcome"] == "ok":
            times.setdefault(implementation, {})[_point(row)] = row["summary"]["time_ms"]
    if not times:
        return None
    shared = set.intersection(*map(set, times.values()))
    return min(times, key=lambda name: sum(times[name][point] for point in shared))


def _point(row: Row) -> Hashable:
    config = row["config"]
    return config.get("task", config)["seq_len"], config["batch_size"], config.get("work")


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """The N from which linear attention in one implementation is faster than softmax in another
    (`baseline`), at one batch size. `row` is one of its rows, to tell where it was measured."""

    implementation: str | None
    baseline: str
    batch_size: int
    found: Crossover
    row: Row

    @property
    def setting(self) -> str:
        """What it is held against."""
        return f"softmax {self.baseline}, batch {self.batch_size}"


def crossings(rows: Sequence[Row], work: str = "forward_backward") -> list[Crossing]:
    """The measured crossover of each implementation of linear attention, for each batch size,
    device and softmax; the largest batch first, and the compiled implementations last. One needs
    two lengths at which both ran."""
    rows = [row for row in rows if row["config"]["work"] == work and row["outcome"] == "ok"]
    found = []
    for some in by_device(rows).values():
        timed: dict[int, dict[Variant, dict[int, Row]]] = {}
        for row in some:
            batch = timed.setdefault(row["config"]["batch_size"], {})
            batch.setdefault(variant_of(row), {})[row["config"]["seq_len"]] = row
        for batch_size in sorted(timed, reverse=True):
            found += _crossings(timed[batch_size], batch_size)
    return found


def _crossings(timed: dict[Variant, dict[int, Row]], batch_size: int) -> list[Crossing]:
    found = []
    for baseline in ("textbook", "fused"):
        softmax = timed.get(("softmax", baseline), {})
        for variant in sorted((one for one in timed if one[0] == "linear"), key=order_of):
            linear = timed[variant]
            lengths = sorted(softmax.keys() & linear.keys())
            if len(lengths) < 2:
                continue
            times = (
                tuple(tuple(rows[n]["summary"]["time_ms_samples"]) for n in lengths)
                for rows in (softmax, linear)
            )
            crossing = Crossing(
                implementation=variant[1],
                baseline=baseline,
                batch_size=batch_size,
                found=_crossover(tuple(lengths), *times),
                row=linear[lengths[-1]],
            )
            found.append(crossing)
    return found


# A page asks for the same ones several times, and again while a run goes on beside it.
_crossover = lru_cache(maxsize=1000)(crossover)


@each_device
def speed_crossover(rows: Sequence[Row], *, work: str = "forward_backward") -> Verdict:
    """Linear attention is faster from N = 512 on (paper, fig. 1).

    Judged is `judged_linear` against the textbook softmax, which the paper had; the fused one,
    which came later, is judged beside it as evidence, and so are the other implementations of
    linear attention. That the textbook softmax is the one was chosen after the first rows were
    seen: with the fused one among the criteria they read "inconclusive".
    """
    rows = [row for row in rows if row["config"]["work"] == work]
    found, judged = crossings(rows, work), judged_linear(rows)
    verdicts: dict[str, dict[str, Verdict]] = {"textbook": {}, "fused": {}}
    for one in found:
        if one.implementation == judged:
            verdicts[one.baseline][one.setting] = crossover_verdict(one.found)
    verdict = together(verdicts["textbook"], "no measurements yet")
    if not found:
        return verdict
    beside = [f"{name}: {one.status}; {one.headline}" for name, one in verdicts["fused"].items()]
    headline = f"{name_of(('linear', judged))} judged"
    if len(verdicts["textbook"]) < 2 or len({x.status for x in verdicts["textbook"].values()}) > 1:
        headline = f"{verdict.headline}, {headline}"
    if len({one.implementation for one in found}) > 1:
        moved = implementations(rows, work=work)
        headline += f"; crossovers: {moved.headline}"
        beside += [f"{one.text}: {_SAID[one.met]}; {one.figure}" for one in moved.criteria]
    return replace(verdict, headline=headline, evidence=(*verdict.evidence, *beside))


@each_device
def implementations(rows: Sequence[Row], *, work: str = "forward_backward") -> Verdict:
    """The crossover is one of implementations: it moves to shorter N as linear attention's
    improves. Judged for each softmax and batch size by `implementations_verdict`."""
    settings: dict[str, dict[str, Crossover]] = {}
    for one in crossings(rows, work):
        settings.setdefault(one.setting, {})[one.implementation or "fastest"] = one.found
    return implementations_verdict(settings)


def name_of(variant: Variant) -> str:
    """Such as "linear torch"."""
    return " ".join(filter(None, variant))


def order_of(variant: Variant) -> tuple:
    """In the order of VARIANTS, others after them by name."""
    known = VARIANTS.index(variant) if variant in VARIANTS else len(VARIANTS)
    return known, name_of(variant)


MODEL_NAMES = {
    "quadratic": "a + c N² (the article's)",
    "linear": "a + b N, a straight line",
    "full_quadratic": "a + b N + c N²",
    "power_law": "a Nᵖ",
}


def extrapolation_text(fits: Sequence[Regression]) -> str:
    """What the article's four points give under each model of softmax, as Markdown."""
    lines = [
        [MODEL_NAMES[fit.softmax_model], f"{fit.r2_softmax:z.4f}", _crossing(fit.crossover)]
        for fit in fits
    ]
    table = markdown_table(["model of softmax", "R²", "crossover N"], lines, LEFT)
    return (
        "## Where 3149 comes from\n\n"
        "The article fits its softmax times with N², its linear times with N, and extends both. "
        "Other models of the same four points disagree, a better fitting one among them:\n\n"
        f"{table}"
    )


def _crossing(length: float) -> str:
    return f"{length:z.0f}" if math.isfinite(length) else "never"


def table_1(article: Mapping[str, Any], steps: Sequence[Row]) -> str:
    """The article's Table 1 with a row for each variant recorded here, as Markdown: seconds for
    as many training steps as the article took."""
    times = _step_times(steps)
    lines = [
        [f"2022 article, {name}", *(f"{seconds}" for seconds in article[f"{name}_s"])]
        for name in BOTH
    ]
    for variant in sorted({variant for variant, _ in times}, key=order_of):
        cells = [_seconds(times.get((variant, n)), article["steps"]) for n in article["N"]]
        lines.append([f"here, {variant[0]} ({variant[1]})", *cells])
    table = markdown_table(["seconds", *(f"N = {n}" for n in article["N"])], lines, LEFT)
    return (
        f"## The article's Table 1\n\nSeconds for {article['steps']} training steps; the "
        f"article's on a {article['gpu']}, ours from the median step on the device named in "
        f"the chart.\n\n{table}"
    )


def step_ratios(article: Mapping[str, Any], steps: Sequence[Row]) -> tuple[str, str]:
    """How many times longer linear attention takes than softmax in whole training steps: in the
    article, and in the rows recorded here at its lengths, `judged_linear` first."""
    there = article["ratio_linear_softmax"]
    times = _step_times(steps)
    variants = sorted({variant for variant, _ in times if variant[0] == "linear"}, key=order_of)
    variants.sort(key=lambda variant: variant[1] != judged_linear(steps))
    here = []
    for variant in variants:
        parts = []
        for baseline in ("textbook", "fused"):
            ratios = [
                times[variant, n] / times[("softmax", baseline), n]
                for n in article["N"]
                if (variant, n) in times and (("softmax", baseline), n) in times
            ]
            if ratios:
                parts.append(
                    f"{min(ratios):z.2f} to {max(ratios):z.2f} times softmax {baseline}'s time"
                )
        here += [f"{name_of(variant)} takes {' and '.join(parts)}"] if parts else []
    lengths = f"at N = {article['N'][0]} to {article['N'][-1]}"
    return (
        f"Linear takes {min(there):z.1f} to {max(there):z.1f} times softmax's time {lengths}.",
        f"{'; '.join(here).capitalize()} {lengths}." if here else "nothing yet",
    )


def _step_times(steps: Sequence[Row]) -> dict[tuple, float]:
    """Milliseconds of a training step, by variant and length."""
    return {
        (variant_of(row), row["config"]["task"]["seq_len"]): row["summary"]["time_ms"]
        for row in steps
        if row["outcome"] == "ok"
    }


def _seconds(time_ms: float | None, n_steps: int) -> str:
    return "–" if time_ms is None else f"{time_ms * n_steps / 1000:z.0f}"


def work_of(rows: Sequence[Row]) -> str:
    """The work that is judged: forward and backward where it was measured, else the other."""
    measured = {row["config"]["work"] for row in rows}
    return "forward" if measured == {"forward"} else "forward_backward"


def of_work(costs: "polars.DataFrame", work: str) -> "polars.DataFrame":
    """The points of one work."""
    return costs.filter(costs["work"] == work)
