"""Claim 2 follows the stored rows: the exponents of several recordings, on curves of the batch."""

import numpy as np
import pytest
from choices import how

from replib.claims.scaling import judge
from replib.claims.scaling.growth import curves, judged_rows
from replib.lab import store
from replib.lab.timing import Cost, CostConfig, tokens_batch
from replib.lab.verdict import INCONCLUSIVE, NOT_SUPPORTED, SUPPORTED

VARIANTS = (("softmax", "textbook"), ("softmax", "fused"), ("linear", "torch"))
LENGTHS = tuple(2**e for e in range(6, 13))
TOKENS = LENGTHS[-1]
SAME_TOKENS, ONE = f"{TOKENS} tokens a batch", "batch 1"


def row(attention, implementation, n, time_ms, **options):
    """A point whose time a sequence is `time_ms`; its faults are its own but where `disturbed`."""
    memory, outcome, recording, device, disturbed, batch_size = (
        options.pop(name, default)
        for name, default in (
            ("memory", 1000 * n),
            ("outcome", "ok"),
            ("recording", 0),
            ("device", "cpu"),
            ("disturbed", 0),
            ("batch_size", tokens_batch(TOKENS, n)),
        )
    )
    config = CostConfig(
        attention=attention,
        **how(attention, implementation),
        seq_len=n,
        batch_size=batch_size,
        **{"work": "forward_backward"} | options,
    )
    factors = (0.99, 1.0, 1.01) if time_ms else ()
    times = tuple(time_ms * batch_size * factor for factor in factors)
    faults = tuple(1e9 if i < disturbed else 10.0 for i in range(len(times)))
    cost = Cost(config, outcome, None, times, memory and memory * batch_size, faults, 10.0)
    found = store.make_row("scaling", "laptop", config, recording, outcome, cost.summary())
    found["provenance"]["device_name"] = device
    return found


def rows(power=1.0, lengths=LENGTHS, **options):
    """Softmax takes N² and linear attention N^power; the memory of the fused one grows as N."""
    found = []
    for n in lengths:
        for attention, implementation in VARIANTS:
            time_ms = n**2 / 1e4 if attention == "softmax" else 300 * n**power / 1e4
            memory = int(n**2 * 100 if implementation == "textbook" else 1000 * n**power)
            found.append(row(attention, implementation, n, time_ms, memory=memory, **options))
    return found


def exponents(*options):
    return {
        (curve, " ".join(variant), what): exponent
        for curve, variant, what, exponent in judge.exponents(*options)
    }


@pytest.mark.parametrize(
    "power, status", [(1.0, SUPPORTED), (1.5, NOT_SUPPORTED), (2.0, NOT_SUPPORTED)]
)
def test_scaling_follows_the_growth_of_the_times(power, status):
    assert judge.scaling(rows(power)).status == status


def test_the_answer_tells_that_the_memory_of_the_fused_softmax_does_not_grow_as_the_textbooks():
    said = judge.scaling(rows()).says
    assert said.endswith("softmax fused, newer than the paper: time N^2.00, memory N^1.00")


def test_an_exponent_that_a_busy_machine_leaves_open_is_not_judged():
    noisy = [row("linear", "cpu", n, n * 1e-6 * 9 ** (i % 2)) for i, n in enumerate(LENGTHS)]
    verdict = judge.scaling([*rows(), *noisy])
    assert verdict.status == INCONCLUSIVE and "busy" in verdict.says


@pytest.mark.parametrize("some", [[], rows(lengths=(64,)), rows(work="forward")])
def test_without_two_lengths_nothing_can_be_told(some):
    assert judge.scaling(some).status == INCONCLUSIVE


def test_exponents_are_those_of_times_and_memories():
    found = exponents(rows(1.25), "forward_backward")
    assert found[SAME_TOKENS, "linear torch", "time"].value == pytest.approx(1.25)
    assert found[SAME_TOKENS, "softmax fused", "time"].value == pytest.approx(2.0)
    assert found[SAME_TOKENS, "softmax textbook", "memory"].value == pytest.approx(2.0, abs=1e-3)
    assert len(found) == 6
    assert exponents(rows(), "forward") == {}


def test_judged_are_the_fastest_linear_and_the_textbook_softmax_with_the_others_as_evidence():
    kernels = [row("linear", name, n, f * n) for n in LENGTHS for name, f in (("cpu", 1e-3),)]
    kernels += [row("linear", "plain", n, n**2, memory=n**2) for n in LENGTHS]
    lsh = [row("lsh", f"{r} rounds", n, 1e-4 * n) for r in (4, 8) for n in LENGTHS]
    verdict = judge.scaling([*rows(1.5), *kernels, *lsh])
    assert verdict.status == SUPPORTED
    assert [one.text.split(" grows")[0] for one in verdict.criteria] == [
        f"{who}, {what}"
        for who in ("linear cpu", "softmax textbook")
        for what in ("time", "memory")
    ]
    told = "; ".join(verdict.evidence)
    for name in ("softmax fused", "linear torch", "linear plain", "lsh 4 rounds", "lsh 8 rounds"):
        assert f"{name}, time grows as N^" in told


def test_the_same_tokens_at_every_length_are_judged_and_a_batch_of_one_is_evidence():
    """The longest has a batch of one, and is on both curves."""
    one = [x for x in rows(1.5, batch_size=1) if x["config"]["seq_len"] < TOKENS]
    verdict, alone = judge.scaling([*one, *rows()]), judge.scaling(rows())
    assert (verdict.headline, verdict.criteria) == (alone.headline, alone.criteria)
    assert verdict.evidence[0].startswith(f"judged: {SAME_TOKENS}")
    beside = [line for line in verdict.evidence if line.startswith(ONE)]
    assert any(line.startswith(f"{ONE}: linear torch, time grows as N^") for line in beside)
    assert len(beside) == 6
    longest = exponents([*one, *rows()])[ONE, "linear torch", "time"].to_length
    assert longest == TOKENS
    found = judged_rows([*one, *rows()])
    assert {x["config"]["seq_len"] * x["config"]["batch_size"] for x in found} == {TOKENS}


@pytest.mark.slow
def test_points_of_two_batches_that_happen_to_have_as_many_tokens_are_no_curve():
    two = [*rows(batch_size=4), *rows(batch_size=8)]
    assert set(curves(two)) >= {"batch 4", "batch 8"}
    assert list(curves(two))[0] in ("batch 4", "batch 8")


def test_samples_with_faults_of_anothers_making_are_told():
    marked = [row("linear", "torch", 4096, 0.03 * 4096, disturbed=2), *rows(lengths=LENGTHS[:-1])]
    (line,) = [x for x in judge.scaling(marked).evidence if "page faults" in x]
    assert "linear torch at N = 4096, batch 1: 2 of 3" in line
    assert not [x for x in judge.scaling(rows()).evidence if "page faults of" in x]


def test_the_interval_holds_what_varies_between_recordings():
    """Three recordings that each fit a line to rounding, with slopes of their own."""
    powers = (1.0, 1.05, 0.95)
    some = [x for i, power in enumerate(powers) for x in rows(power, recording=i)]
    found = exponents(some)[SAME_TOKENS, "linear torch", "time"]
    assert found.n_recordings == 3 and found.value == pytest.approx(1.0)
    # ± t(0.975, 2) s / sqrt(3) with s = 0.05
    assert found.high - found.value == pytest.approx(4.30265 * 0.05 / 3**0.5, rel=1e-3)
    verdict = judge.scaling(some)
    assert "3 recordings" in verdict.evidence[0]


def test_a_recording_that_lacks_lengths_is_not_averaged_with_whole_ones():
    broken = rows(2.0, lengths=LENGTHS[:3], recording=1)
    found = exponents([*rows(), *broken])[SAME_TOKENS, "linear torch", "time"]
    assert found.n_recordings == 1 and found.value == pytest.approx(1.0)


def test_points_without_a_figure_are_left_out():
    holes = [
        row("linear", "torch", 2**14, None, outcome="out_of_memory"),
        row("linear", "torch", 2**15, 1.0, outcome="interrupted"),
    ]
    assert exponents([*rows(), *holes]) == exponents(rows())
    assert judge.scaling([*rows(), *holes]).criteria == (judge.scaling(rows()).criteria)


def test_devices_are_judged_by_themselves():
    verdict = judge.scaling([*rows(device="slow"), *rows(2.0, device="fast")])
    assert [one.text for one in verdict.criteria] == ["slow: supported", "fast: not supported"]


def test_a_chart_has_all_recordings_of_a_point_as_one(monkeypatch):
    from replib.pages import tidy

    some = [x for i in range(3) for x in rows(recording=i)]
    some[-1]["summary"] = some[-1]["summary"] | {"time_ms_samples": [1e3, 1e3, 1e3]}
    pooled = tidy.pooled(tidy.costs(some))
    assert pooled.columns == list(tidy.COST_COLUMNS) and len(pooled) == len(rows())
    samples = [
        x
        for one in (some[-1], *some[len(rows()) - 1 :: len(rows())][:2])
        for x in one["summary"]["time_ms_samples"]
    ]
    last = pooled.row(-1, named=True)
    expected = np.quantile(samples, [0.25, 0.5, 0.75])
    assert [last["q25"], last["time_ms"], last["q75"]] == pytest.approx(list(expected))
    assert last["time_ms_per_sample"] == pytest.approx(expected[1])
