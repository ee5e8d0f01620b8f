"""The verdicts on generation follow the stored rows, whatever rows there are."""

import re

import pytest

from replib.claims.generation import judge as claims
from replib.lab import store
from replib.lab.runs.generation import (
    GenerationConfig,
    GenerationCost,
    geometric_positions,
    state_bytes,
)
from replib.lab.verdict import INCONCLUSIVE, NOT_SUPPORTED, SUPPORTED
from replib.published import published

PAPER = published()["katharopoulos2020"]
SIZES = {"n_layers": 8, "n_heads": 8, "head_dim": 32, "batch_size": 1}
TOKEN_MS = {
    "recurrent": lambda n: 2.0,
    "cache": lambda n: 2 + n / 50,
    "recompute": lambda n: 0.5 * n,
}


REPEATS = (0.99, 1.0, 1.01)


def generation_row(
    way, n, time_ms, *, span="token", outcome="ok", device="cpu", repeats=REPEATS, **changes
):
    config = GenerationConfig(way=way, span=span, seq_len=n, **SIZES | changes)
    samples = tuple(time_ms * factor for factor in repeats) if outcome == "ok" else ()
    cost = GenerationCost(config, outcome, None, samples, None, state_bytes=state_bytes(config))
    row = store.make_row("generation", "laptop", config, 0, outcome, cost.summary())
    row["provenance"]["device_name"] = device
    return row


def token_rows(last=784, ways=tuple(TOKEN_MS), **changes):
    return [
        generation_row(way, n, TOKEN_MS[way](n), **changes)
        for n in geometric_positions(last)
        for way in ways
    ]


def whole_row(way, n=784, factor=1.0, **changes):
    time_ms = factor * sum(map(TOKEN_MS[way], range(1, n + 1)))
    return generation_row(way, n, time_ms, span="sequence", **changes)


def test_a_constant_token_is_supported_by_the_rows_of_all_three_ways():
    verdict = claims.constant_cost(token_rows())
    assert verdict.status == SUPPORTED
    assert verdict.headline.startswith("MNIST, batch 1: the N-th token's time grows as N^")


def test_a_token_that_grows_with_a_recurrent_state_refutes(monkeypatch):
    monkeypatch.setitem(TOKEN_MS, "recurrent", lambda n: 2 + n / 50)
    assert claims.constant_cost(token_rows()).status == NOT_SUPPORTED


def test_without_the_recomputing_way_its_growth_cannot_be_told():
    verdict = claims.constant_cost(token_rows(ways=("recurrent", "cache")))
    assert verdict.status == INCONCLUSIVE
    assert [one.met for one in verdict.criteria] == [True, True, None, True]


def test_a_speedup_is_of_whole_runs_where_there_are_both_else_summed():
    (over_cache, over_recompute) = claims.speedups(token_rows())
    assert (over_cache.over, over_recompute.over) == ("cache", "recompute")
    assert over_cache.integrated and over_recompute.integrated
    assert over_cache.found.value == pytest.approx(1 + 785 / 200, rel=0.02)
    assert over_recompute.found.value == pytest.approx(0.5 * 785 / 4, rel=0.02)

    whole = token_rows() + [whole_row("recurrent"), whole_row("cache", factor=2)]
    (over_cache, over_recompute) = claims.speedups(whole)
    assert not over_cache.integrated and over_recompute.integrated
    assert over_cache.found.value == pytest.approx(2 * (1 + 785 / 200))


@pytest.mark.parametrize("alone", ["recurrent", "cache"])
def test_a_single_whole_run_of_a_side_leaves_the_ratio_to_the_sums(alone):
    repeats = {way: (1.0,) if way == alone else REPEATS for way in ("recurrent", "cache")}
    runs = [whole_row(way, factor=9, repeats=some) for way, some in repeats.items()]
    (over_cache, _) = claims.speedups(token_rows() + runs)
    assert over_cache.integrated
    assert over_cache.found.low < over_cache.found.value < over_cache.found.high
    assert over_cache.found.value == pytest.approx(1 + 785 / 200, rel=0.02)
    verdict = claims.faster_generation(token_rows() + runs)
    assert "summed from single tokens" in verdict.criteria[0].figure + verdict.headline
    told = f"{alone}: 1 whole run, tokens sum to 0.11 of it"
    assert any(told in line for line in verdict.evidence)


def test_single_whole_runs_without_tokens_decide_nothing():
    rows = [whole_row(way, repeats=(1.0,)) for way in ("recurrent", "cache")]
    assert claims.speedups(rows) == []
    verdict = claims.faster_generation(rows)
    assert verdict.status == INCONCLUSIVE
    assert "MNIST, batch 1, recurrent: 1 whole run" in verdict.evidence


def test_the_headline_of_generation_says_how_much_faster_at_what_and_than_what():
    rows = token_rows() + token_rows(3072, n_layers=16)
    headline = claims.generation(rows).headline
    told = [float(number) for number in re.findall(r"([\d.]+)×", headline)]
    exact = [1 + 785 / 200, 1 + 3073 / 200, 785 / 8, 3073 / 8]  # sums of TOKEN_MS over positions
    assert told == pytest.approx(exact, rel=0.01)
    assert headline.index("with a cache") < headline.index("that recomputes")


def test_a_way_that_ran_out_of_memory_at_the_last_token_has_no_total():
    rows = token_rows(ways=("recurrent", "cache"))
    rows += [generation_row("recompute", n, float(n)) for n in (1, 100)]
    rows.append(generation_row("recompute", 784, 1.0, outcome="out_of_memory"))
    assert [one.over for one in claims.speedups(rows)] == ["cache"]


def test_faster_generation_follows_the_ratio_and_stands_beside_the_published_one():
    rows = token_rows() + token_rows(batch_size=32) + token_rows(3072, n_layers=16)
    verdict = claims.faster_generation(rows)
    assert verdict.status == SUPPORTED
    said = [f"{one.text} {one.figure}" for one in verdict.criteria]
    assert [text.split(":")[0] for text in said] == [
        "MNIST, batch 1",
        "MNIST, batch 32",
        "CIFAR-10, batch 1",
    ]
    theirs = "by the paper's figures"
    assert f"{theirs} 1.35× (CPU, batch 1)" in said[0] and "18.9×" not in said[0]
    assert f"{theirs} 18.9× (GPU, many)" in said[1]
    assert f"{theirs} 1.59× (CPU, batch 1)" in said[2]
    assert any(f"{theirs} 317× (GPU, many)" in line for line in verdict.evidence)


def test_slower_generation_refutes(monkeypatch):
    monkeypatch.setitem(TOKEN_MS, "cache", lambda n: 1.0)
    assert claims.faster_generation(token_rows()).status == NOT_SUPPORTED


def test_sums_are_told_beside_the_runs_that_check_them():
    rows = token_rows() + [whole_row("recurrent"), whole_row("recompute", factor=1.25)]
    evidence = claims.faster_generation(rows).evidence
    assert "MNIST, batch 1, recurrent: 3 whole runs, tokens sum to 1.00 of their median" in evidence
    assert "MNIST, batch 1, recompute: 3 whole runs, tokens sum to 0.80 of their median" in evidence


def test_other_sizes_are_named_by_their_numbers():
    (one, _) = claims.speedups(token_rows(16, n_heads=2))
    assert one.size.image is None
    assert one.size.text == "N = 16, 8 layers, 2 heads of 32, batch 1"


def test_devices_are_judged_apart():
    rows = token_rows() + token_rows(device="gpu")
    assert len(claims.speedups(rows)) == 4
    assert claims.constant_cost(rows).headline == "supported in 2 of 2 settings"
    assert claims.generation(rows).status == SUPPORTED


def test_published_speedups_follow_from_the_papers_tables():
    found = {key: value for *key, value in claims.published_speedups(PAPER) for key in [tuple(key)]}
    assert found["MNIST", "recompute", "GPU, many"] == 317
    assert found["CIFAR-10", "cache", "GPU, many"] == pytest.approx(55.8, abs=0.05)
    assert found["MNIST", "cache", "GPU, many"] == pytest.approx(18.9, abs=0.05)
    assert found["MNIST", "cache", "CPU, batch 1"] == pytest.approx(7.4 / 5.5)
    assert found["CIFAR-10", "recompute", "GPU, batch 1"] == pytest.approx(300.1 / 61.3)


def test_without_rows_generation_is_inconclusive():
    verdict = claims.generation([])
    assert verdict.status == INCONCLUSIVE and verdict.headline == "no measurements yet"
    assert claims.speedups([]) == []
