import math
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from replib.claims.convergence import judge
from replib.claims.convergence.judge import SeedResult, convergence_verdict, loss_ratio
from replib.claims.crossover.judge import crossover_verdict, implementations_verdict
from replib.claims.generation.judge import constant_cost_verdict, faster_generation_verdict
from replib.claims.images.judge import images_verdict
from replib.claims.scaling.judge import scaling_verdict
from replib.lab.statistics import Crossover, Exponent, Ratio, scaling_exponent
from replib.lab.verdict import (
    Criterion,
    Verdict,
    crossover_text,
    crossovers_span,
    ratio_text,
    together,
)

LENGTHS = 2.0 ** np.arange(6, 15)


def seeds(n=5, loss=0.01, **changes):
    run = SeedResult(
        seed=0, final_loss=loss, final_accuracy=0.998, n_spikes=0, steps_to_threshold=700
    )
    return [replace(run, seed=i, final_loss=loss + 1e-3 * i, **changes) for i in range(n)]


def met(verdict, word):
    (criterion,) = (one for one in verdict.criteria if word in one.text)
    return criterion.met


@pytest.mark.parametrize(
    ("met", "status"),
    [
        ([True, True], "supported"),
        ([True, None], "inconclusive"),
        ([None, False], "not supported"),
        ([True, False], "not supported"),
        ([], "inconclusive"),
    ],
)
def test_status_follows_from_the_criteria(met, status):
    criteria = tuple(Criterion("a criterion", one, "1") for one in met)
    verdict = Verdict(headline="a headline", criteria=criteria)
    assert verdict.status == status
    with pytest.raises((AttributeError, FrozenInstanceError)):
        verdict.status = "supported"


def test_five_good_seeds_support_convergence():
    verdict = convergence_verdict(seeds(), seeds())
    assert verdict.status == "supported"
    assert "5 of 5 linear seeds and 5 of 5 softmax seeds reach 99% accuracy" in verdict.headline
    assert "median 700 steps" in verdict.evidence[0]


@pytest.mark.parametrize("n_seeds", [0, 1, 2, 4])
def test_too_few_seeds_decide_nothing(n_seeds):
    assert convergence_verdict(seeds(n_seeds), seeds()).status == "inconclusive"
    assert convergence_verdict(seeds(), seeds(n_seeds)).status == "inconclusive"
    bad = seeds(n_seeds, loss=2.0, final_accuracy=0.1, diverged=True)
    assert convergence_verdict(bad, seeds(n_seeds)).status == "inconclusive"


def test_seeds_that_do_not_learn_refute_convergence():
    verdict = convergence_verdict(seeds(final_accuracy=0.93), seeds())
    assert met(verdict, "reach 99% accuracy") is False
    assert verdict.status == "not supported"


def test_four_of_five_seeds_cannot_tell():
    verdict = convergence_verdict([*seeds(4), *seeds(1, final_accuracy=0.93)], seeds())
    assert met(verdict, "reach 99% accuracy") is None
    assert verdict.status == "inconclusive"


@pytest.mark.parametrize(
    ("loss", "expected"), [(0.01, True), (0.03, True), (0.06, None), (0.2, False)]
)
def test_final_losses_are_judged_against_the_margin(loss, expected):
    # The interval of the difference is about ± 0.0023, so 0.06 - 0.01 = 0.05 straddles the margin.
    verdict = convergence_verdict(seeds(loss=loss), seeds(loss=0.01))
    assert met(verdict, "final loss equals") is expected


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ((0.9, 1.0, 1.1), True),
        ((0.1, 0.11, 0.12), True),  # lower is as low
        ((1.6, 1.7, 1.75), True),
        ((9.0, 13.0, 19.0), False),  # though both are within 0.05 nats
        ((1.5, 2.0, 2.6), False),  # higher, and perhaps more than twice as high
        ((0.5, 2.0, 8.0), None),
    ],
)
def test_losses_far_below_the_margin_are_told_apart_by_their_ratio(factors, expected, monkeypatch):
    linear, softmax = (
        [replace(run, final_loss=1e-4 * f) for run, f in zip(seeds(3), fs, strict=True)]
        for fs in (factors, (0.95, 1.0, 1.05))
    )
    monkeypatch.setattr(judge, "MIN_SEEDS", 3)
    verdict = convergence_verdict(linear, softmax)
    assert met(verdict, "final loss equals") is True
    assert met(verdict, "at most 2×") is expected
    mean = np.exp(np.log(factors).mean())
    ratio, _ = loss_ratio(linear, softmax)
    assert ratio.value == pytest.approx(mean / np.exp(np.log([0.95, 1.0, 1.05]).mean()))


def test_a_loss_of_zero_has_a_ratio():
    ratio, _ = loss_ratio(seeds(3, loss=1e-5), [replace(r, final_loss=0.0) for r in seeds(3)])
    assert np.isfinite([ratio.value, ratio.low, ratio.high]).all()


@pytest.mark.parametrize(
    ("met", "status"),
    [
        ([True, True], "supported"),
        ([True, None], "not tested at the paper's size"),
        ([True, False], "not tested at the paper's size"),
    ],
)
def test_a_smaller_setting_than_the_claims_does_not_refute_it(met, status):
    criteria = tuple(Criterion("a criterion", one, "1") for one in met)
    assert Verdict("a headline", criteria, untested=True).status == status


def test_one_diverged_seed_refutes_stability_and_is_named():
    diverged = replace(seeds(1)[0], diverged=True, final_loss=math.nan, final_accuracy=math.nan)
    verdict = convergence_verdict([*seeds(5), diverged], seeds())
    assert met(verdict, "diverges") is False
    assert verdict.status == "not supported"
    assert "1 diverged run(s) left out" in verdict.criteria[2].figure


def test_a_diverged_run_with_a_loss_is_left_out_of_the_difference():
    blown_up = replace(seeds(1)[0], diverged=True, final_loss=50.0)
    verdict = convergence_verdict([*seeds(5), blown_up], seeds())
    assert met(verdict, "final loss equals") is True


@pytest.mark.parametrize(("n_spiked", "expected"), [(0, True), (2, None), (5, False)])
def test_spikes_are_judged_by_the_share_of_runs(n_spiked, expected):
    linear = [*seeds(n_spiked, n_spikes=3), *seeds(5 - n_spiked)]
    assert met(convergence_verdict(linear, seeds()), "loss spike") is expected


def claims(linear_power=1.0, softmax_power=2.0, noise=0.01):
    factors = np.exp(np.random.default_rng(0).normal(0, noise, (len(LENGTHS), 7)))
    powers = {"linear time": (linear_power, 1.0), "softmax time": (softmax_power, 2.0)}
    return {
        name: (scaling_exponent(LENGTHS, factors * LENGTHS[:, None] ** power), claimed)
        for name, (power, claimed) in powers.items()
    }


def test_exponents_as_claimed_are_supported():
    verdict = scaling_verdict(claims())
    assert verdict.status == "supported"
    assert "linear time N^1.00" in verdict.headline
    assert "over N = 1024 to 16384" in verdict.criteria[0].figure


def test_one_exponent_off_refutes_and_names_which():
    verdict = scaling_verdict(claims(softmax_power=1.2))
    assert verdict.status == "not supported"
    assert (met(verdict, "linear time"), met(verdict, "softmax time")) == (True, False)


def test_exponent_at_the_tolerance_cannot_tell():
    verdict = scaling_verdict(claims(linear_power=1.15, noise=0.05))
    assert met(verdict, "linear time") is None


def test_two_lengths_cannot_tell_an_exponent():
    some = {"linear time": (scaling_exponent(LENGTHS[:2], LENGTHS[:2]), 1.0)}
    assert scaling_verdict(some).status == "inconclusive"


@pytest.mark.parametrize(
    ("crossover", "status"),
    [
        (Crossover(200, 150, 260, False, 64, 16384), "supported"),
        (Crossover(500, 450, 512, False, 64, 16384), "supported"),
        (Crossover(500, 450, 560, False, 64, 16384), "inconclusive"),
        (Crossover(900, 800, 990, False, 64, 16384), "not supported"),
        # linear faster at every measured length, 512 among them
        (Crossover(20, 1, 64, True, 64, 16384), "supported"),
        # ... and from 1024 on only: nothing was measured at 512
        (Crossover(200, 100, 400, True, 1024, 16384), "inconclusive"),
        # measured, but not as far as 512
        (Crossover(100, 90, 110, False, 64, 256), "inconclusive"),
        # softmax faster at every measured length
        (Crossover(math.inf, 9000, math.inf, True, 64, 4096), "not supported"),
        (Crossover(5000, 3000, math.inf, True, 8, 64), "inconclusive"),
        (Crossover(200, 150, 260, False), "supported"),
        (Crossover(900, 800, 990, True), "inconclusive"),
    ],
)
def test_crossover_verdict_flips_with_the_interval_and_the_measured_range(crossover, status):
    assert crossover_verdict(crossover).status == status


def test_what_is_inconclusive_says_why():
    wide, missing = Criterion("wide", None, ""), Criterion("missing", None, "", few=True)
    assert Verdict("", (wide,)).label == "cannot be told"
    assert Verdict("", (wide, missing)).label == "too few runs"
    assert Verdict("", (missing,), recorded=False).label == "not recorded yet"
    assert Verdict("", (Criterion("met", True, ""),)).label == "supported"
    both = together({"a": Verdict("h", (missing,)), "b": Verdict("h", (wide,))}, "")
    assert both.headline == "too few runs in 1, cannot be told in 1 of 2 settings"
    assert both.label == "too few runs"


NEVER = Crossover(math.inf, 5000.0, math.inf, True, 8, 2048)
ALWAYS = Crossover(3.0, 1.0, 7.0, True, 8, 2048)


def measured(length, low, high):
    return Crossover(length, low, high, False, 8, 2048)


@pytest.mark.parametrize(
    ("crossover", "text"),
    [
        (measured(104.6, 87.2, 144.9), "N = 105 (87 to 145)"),
        (measured(104.6, 87.2, math.inf), "N = 105 (87 to no end)"),
        (NEVER, "not up to N = 2048"),
        (Crossover(3149.0, 3000.0, 3300.0, True, 8, 64), "not up to N = 64"),
        (ALWAYS, "below N = 8"),
    ],
)
def test_a_crossover_is_told_with_its_interval_or_its_side_of_the_lengths(crossover, text):
    assert crossover_text(crossover) == text


@pytest.mark.parametrize(
    ("first", "last", "met"),
    [
        (measured(300, 250, 350), measured(30, 20, 40), True),
        (NEVER, measured(30, 20, 40), True),
        (measured(300, 250, 350), ALWAYS, True),
        (measured(300, 250, 350), measured(260, 200, 320), None),
        (NEVER, NEVER, None),
        (measured(30, 20, 40), measured(300, 250, 350), False),
    ],
)
def test_implementations_are_told_apart_by_their_intervals(first, last, met):
    between = measured(100, 50, 150)
    verdict = implementations_verdict({"a": {"plain": first, "torch": between, "cpu": last}})
    (criterion,) = verdict.criteria
    assert criterion.met is met and criterion.text == "a: cpu crosses before plain"
    assert "torch N = 100 (50 to 150)" in criterion.figure


def test_the_implementations_are_summed_up_over_the_settings():
    verdict = implementations_verdict(
        {
            "a": {"plain": NEVER, "torch": measured(105, 90, 120), "cpu": ALWAYS},
            "b": {"plain": measured(900, 800, 1000), "torch": measured(205, 190, 220)},
            "c": {"torch": measured(150, 140, 160), "cpu": measured(63, 56, 70)},
        }
    )
    assert verdict.status == "supported"
    alone = implementations_verdict({"a": {"torch": measured(105, 90, 120)}})
    assert alone.status == "inconclusive" and "two implementations" in alone.criteria[0].text
    assert implementations_verdict({}).headline == "no measurements yet"


def test_crossovers_of_several_settings_are_told_from_the_earliest_to_the_latest():
    early, late = measured(105, 105, 105), measured(900, 900, 900)
    assert crossovers_span([late, NEVER, early]) == "N = 105 or not up to N = 2048"
    assert crossovers_span([late, early]) == "N = 105 to 900"
    assert crossovers_span([late, ALWAYS]) == "below N = 8 to N = 900"
    assert crossovers_span([ALWAYS, ALWAYS]) == "below N = 8, the shortest measured"
    assert crossovers_span([NEVER]) == "not up to N = 2048"


STILL, GROWING = Exponent(0.01, -0.02, 0.04, 100, 784), Exponent(1.0, 0.9, 1.1, 100, 784)
CANNOT_TELL = Exponent(0.2, -0.5, 0.9, 100, 784)


@pytest.mark.parametrize(
    "found, expected",
    [
        ((STILL, GROWING, STILL, GROWING), [True, True, True, True]),
        ((GROWING, GROWING, STILL, GROWING), [False, True, True, True]),
        ((STILL, GROWING, GROWING, GROWING), [True, False, True, True]),
        ((STILL, STILL, STILL, GROWING), [True, True, False, True]),
        ((STILL, GROWING, STILL, STILL), [True, True, True, False]),
        ((CANNOT_TELL, CANNOT_TELL, STILL, GROWING), [None, True, None, True]),
        ((STILL, None, STILL, None), [True, True, None, None]),
        ((None, None, None, None), [None] * 4),
    ],
)
def test_a_constant_cost_is_judged_by_four_exponents(found, expected):
    verdict = constant_cost_verdict(*found)
    assert [criterion.met for criterion in verdict.criteria] == expected
    if not any(found):
        assert verdict.headline == "too few positions"
    for criterion, one in zip(verdict.criteria, (0, 2, 1, 3), strict=True):
        assert ("784" in criterion.figure) == (found[one] is not None)


@pytest.mark.parametrize(
    "interval, expected", [((1.2, 3.0), True), ((0.2, 0.8), False), ((0.9, 1.3), None)]
)
def test_faster_generation_is_judged_by_the_interval_of_the_ratio(interval, expected):
    verdict = faster_generation_verdict(Ratio(sum(interval) / 2, *interval), beside="18.9x")
    assert [criterion.met for criterion in verdict.criteria] == [expected]
    assert "18.9x" in verdict.headline


@pytest.mark.parametrize(
    "value, text", [(4462.4, "4462×"), (12.34, "12.3×"), (1.0, "1×"), (0.1234, "0.123×")]
)
def test_ratios_are_told_in_three_digits_or_whole(value, text):
    assert ratio_text(Ratio(value, value, value)).startswith(text + " (")


@pytest.mark.parametrize(
    "found, text",
    [
        (Ratio(1.1, 1.05, 1.16), "1.1× (1.05 to 1.16)"),
        (Ratio(1.0973, 1.0968, 1.0978), "1.097× (1.097 to 1.098)"),
        (Ratio(1.09727, 1.09727, 1.09727 + 1e-15), "1.1× (no interval)"),
    ],
)
def test_an_interval_is_told_by_two_different_ends_or_not_at_all(found, text):
    assert ratio_text(found) == text


@pytest.mark.parametrize(
    "linear, softmax, n_diverged, status",
    [
        ([1.85, 1.84, 1.86], [1.83, 1.82, 1.84], 0, "supported"),
        ([1.70, 1.71, 1.72], [1.83, 1.82, 1.84], 0, "supported"),  # better is as good
        ([1.95, 1.94, 1.96], [1.83, 1.82, 1.84], 0, "not supported"),
        ([1.80, 1.95, 1.85], [1.83, 1.70, 1.95], 0, "inconclusive"),
        ([1.85, 1.84], [1.83, 1.82, 1.84], 0, "inconclusive"),
        ([], [], 0, "inconclusive"),
        ([2.45, 2.44, 2.46], [2.44, 2.45, 2.46], 0, "not supported"),  # no better than counting
        ([1.85, 1.84, 1.86], [1.83, 1.82, 1.84], 1, "not supported"),
    ],
)
def test_images_are_judged_by_the_difference_of_bits_per_dimension(
    linear, softmax, n_diverged, status
):
    verdict = images_verdict(linear, softmax, histogram=2.4, n_diverged=n_diverged)
    assert verdict.status == status
