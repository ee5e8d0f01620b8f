import math

import numpy as np
import pytest

from replib.lab import statistics
from replib.lab.statistics import (
    SOFTMAX_MODELS,
    article_regression,
    count_spikes,
    crossover,
    difference_interval,
    exponent_of_recordings,
    integrated_total,
    measured_total,
    prediction_interval,
    ratio,
    scaling_exponent,
    solved_threshold,
    solves_more,
    t_quantile,
    wilson_interval,
)
from replib.published import published

LENGTHS = 2.0 ** np.arange(6, 15)
N_SIMULATED = 300
# What the hits of a 95 % interval may be in 300 trials, with room for a small-sample method.
LEAST_HITS, MOST_HITS = 0.90 * N_SIMULATED, 0.995 * N_SIMULATED


@pytest.fixture
def few_draws(monkeypatch):
    """As many as a coverage needs that is itself from hundreds of simulations."""
    monkeypatch.setattr(statistics, "N_BOOTSTRAP", 400)
    monkeypatch.setattr(statistics, "N_PREDICTED", 400)


def repeats(values, n_repeats, noise, seed=0):
    values = np.asarray(values, dtype=float)
    factors = np.random.default_rng(seed).normal(0, noise, (len(values), n_repeats))
    return values[:, None] * np.exp(factors)


@pytest.mark.parametrize("power", [0.0, 1.0, 1.5, 2.0])
def test_exact_power_law_gives_its_exponent(power):
    exponent = scaling_exponent(LENGTHS, 3e-4 * LENGTHS**power)
    assert exponent.value == pytest.approx(power, abs=1e-9)
    assert exponent.low == pytest.approx(power, abs=1e-6)
    assert exponent.high == pytest.approx(power, abs=1e-6)


def test_overhead_at_small_lengths_does_not_count():
    values = 20_000 + LENGTHS**2
    whole = np.polyfit(np.log(LENGTHS), np.log(values), 1)[0]
    assert scaling_exponent(LENGTHS, values).value == pytest.approx(2, abs=0.02)
    assert whole < 1.9


@pytest.mark.parametrize(("n_lengths", "first_used"), [(3, 64), (4, 128), (5, 256), (9, 1024)])
def test_default_range_is_the_longer_half_and_at_least_three_lengths(n_lengths, first_used):
    exponent = scaling_exponent(LENGTHS[:n_lengths], LENGTHS[:n_lengths])
    assert (exponent.from_length, exponent.to_length) == (first_used, LENGTHS[n_lengths - 1])


def test_one_wild_repeat_does_not_move_the_exponent():
    values = repeats(LENGTHS, 7, 0.01)
    values[-1, 0] *= 50
    assert scaling_exponent(LENGTHS, values).value == pytest.approx(1, abs=0.03)


def test_lengths_may_come_in_any_order_and_with_any_number_of_repeats():
    samples = [[n, 1.1 * n, 0.9 * n][: 1 + i % 3] for i, n in enumerate(LENGTHS)]
    forwards = scaling_exponent(LENGTHS, samples)
    assert scaling_exponent(LENGTHS[::-1], samples[::-1]).value == pytest.approx(forwards.value)


@pytest.mark.parametrize(
    ("n_lengths", "n_repeats", "noise", "lack_of_fit"),
    [(3, 1, 0.05, 0.0), (9, 1, 0.0, 0.05), (9, 7, 0.05, 0.0), (9, 7, 0.02, 0.05)],
    ids=["three-single", "bent", "repeats", "bent-repeats"],
)
def test_exponent_interval_covers_the_truth_about_95_times_in_100(
    few_draws, n_lengths, n_repeats, noise, lack_of_fit
):
    rng = np.random.default_rng(1)
    lengths, hits = LENGTHS[:n_lengths], 0
    for _ in range(N_SIMULATED):
        curve = lengths**1.3 * np.exp(rng.normal(0, lack_of_fit, n_lengths))
        values = curve[:, None] * np.exp(rng.normal(0, noise, (n_lengths, n_repeats)))
        one = scaling_exponent(lengths, values)
        hits += one.low <= 1.3 <= one.high
    assert LEAST_HITS <= hits <= MOST_HITS


@pytest.mark.slow
@pytest.mark.parametrize(("n_recordings", "n_lengths"), [(2, 9), (3, 5), (3, 9), (5, 9)])
@pytest.mark.parametrize(
    ("between", "noise", "lack_of_fit"),
    [(0.03, 0.0, 0.0), (0.0, 0.05, 0.0), (0.03, 0.05, 0.02), (0.0, 0.01, 0.05)],
    ids=["between", "within", "all", "bent"],
)
def test_the_interval_of_recordings_covers_the_truth_about_95_times_in_100(
    n_recordings, n_lengths, between, noise, lack_of_fit
):
    """Slopes differ by `between`, medians of a recording by `noise`, and the curve that all share
    departs from a line by `lack_of_fit`."""
    rng = np.random.default_rng(2)
    lengths, hits = LENGTHS[-n_lengths:], 0
    x = np.log(lengths / lengths[0])
    for _ in range(N_SIMULATED):
        shared = rng.normal(0, lack_of_fit, n_lengths)
        slopes = 1.3 + rng.normal(0, between, (n_recordings, 1))
        y = slopes * x + shared + rng.normal(0, noise, (n_recordings, n_lengths))
        one = exponent_of_recordings(lengths, np.exp(y))
        hits += one.low <= 1.3 <= one.high
    assert LEAST_HITS <= hits <= N_SIMULATED


def test_recordings_that_agree_have_the_interval_of_their_scatter_about_the_line():
    bent = LENGTHS[-5:] * np.array([1.0, 1.3, 1.0, 1.3, 1.0])
    three, one = (
        exponent_of_recordings(LENGTHS[-5:], [bent] * 3),
        exponent_of_recordings(LENGTHS[-5:], [bent]),
    )
    assert three.value == pytest.approx(one.value)
    assert three.high - three.low == pytest.approx(one.high - one.low, rel=0.15)
    assert (three.n_recordings, one.n_recordings) == (3, 1)
    straight = exponent_of_recordings(LENGTHS, [LENGTHS, LENGTHS])
    assert straight.low == pytest.approx(1) and straight.high == pytest.approx(1)


def test_recordings_that_cannot_be_fitted_are_refused():
    with pytest.raises(ValueError, match="no recording: give"):
        exponent_of_recordings(LENGTHS, [])
    with pytest.raises(ValueError, match="1 length.* measure more"):
        exponent_of_recordings([64], [[1.0], [1.0]])
    two = exponent_of_recordings([64, 128], [[1.0, 4.0], [1.0, 4.0]])
    assert two.value == pytest.approx(2) and (two.low, two.high) == (-math.inf, math.inf)


def test_exact_repeats_of_a_bent_curve_do_not_give_a_narrow_interval():
    bent = LENGTHS[-5:] * np.array([1.0, 1.3, 1.0, 1.3, 1.0])
    exponent = scaling_exponent(LENGTHS[-5:], np.repeat(bent[:, None], 9, axis=1))
    assert exponent.high - exponent.low > 0.2


def test_two_lengths_give_a_slope_and_no_bound():
    exponent = scaling_exponent([64, 128], [1.0, 4.0])
    assert exponent.value == pytest.approx(2)
    assert (exponent.low, exponent.high) == (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("lengths", "values", "message"),
    [
        ([64], [1.0], r"1 length\(s\), a slope needs 2 and an interval 3: measure more"),
        ([64, 128], [1.0], "2 lengths but 1 entries in values: give one entry a length"),
        ([64, 128], [1.0, 0.0], "values holds 0.0 at length 128.*leave out the length"),
        ([64, 128], [1.0, math.nan], "values holds nan at length 128"),
        ([64, 128], [[1.0], []], "values has no repeat at length 128: leave the length out"),
        ([64, 64], [1.0, 2.0], "length 64 is given twice: give its repeats as one entry"),
        ([0, 64], [1.0, 2.0], "must be positive and finite"),
    ],
)
def test_bad_measurements_name_value_and_remedy(lengths, values, message):
    with pytest.raises(ValueError, match=message):
        scaling_exponent(lengths, values)


def test_crossing_of_power_laws_is_found_between_measured_lengths():
    found = crossover(LENGTHS, 1e-3 * LENGTHS**2, 0.3 * LENGTHS)  # meet at N = 300
    assert found.length == pytest.approx(300)
    assert not found.extrapolated
    assert (found.low, found.high) == (pytest.approx(256), pytest.approx(512))  # single values
    assert (found.shortest, found.longest) == (64, 16384)


def test_crossing_is_interpolated_in_logarithms():
    # log ratio -log 2 at 64 and +log 8 at 1024: a quarter of the way, 64 * 16**0.25 = 128
    assert crossover([64, 1024], [1, 8], [2, 1]).length == pytest.approx(128)


def test_crossing_counts_after_the_last_length_where_softmax_is_faster():
    found = crossover([64, 128, 256, 512], [2, 1, 1, 4], [1, 2, 2, 1])
    assert 256 < found.length < 512


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_crossover_interval_covers_the_truth_about_95_times_in_100(few_draws, noise):
    lengths, hits = LENGTHS[:7], 0
    for trial in range(N_SIMULATED):
        softmax = repeats(1e-3 * lengths**2, 7, noise, seed=2 * trial)
        linear = repeats(0.3 * lengths, 7, noise, seed=2 * trial + 1)
        found = crossover(lengths, softmax, linear)
        hits += found.low <= 300 <= found.high
    assert LEAST_HITS <= hits <= MOST_HITS


def test_crossing_beyond_the_measured_lengths_is_extrapolated_upwards():
    lengths = LENGTHS[:5]  # to 1024
    found = crossover(
        lengths, repeats(1e-4 * lengths**2, 7, 0.02), repeats(0.5 * lengths, 7, 0.02, 1)
    )
    assert found.extrapolated
    assert found.length == pytest.approx(5000, rel=0.15)
    assert 1024 < found.low < 5000 < found.high


def test_crossing_below_the_measured_lengths_is_extrapolated_downwards():
    lengths = LENGTHS[4:]  # from 1024
    found = crossover(lengths, repeats(5e-3 * lengths**2, 7, 0.02), repeats(lengths, 7, 0.02, 1))
    assert found.extrapolated
    assert found.length == pytest.approx(200, rel=0.2)
    assert 1 <= found.low < 200 < found.high <= 1024


def test_extensions_follow_the_nearer_half_of_the_lengths():
    shorter, longer = LENGTHS[:4], LENGTHS[4:8]
    rising = np.concatenate([shorter / 32, np.full(4, 8.0) * longer**0.1])
    downwards = crossover(LENGTHS[:8], rising, np.ones(8))
    assert downwards.length == pytest.approx(32)
    upwards = crossover(LENGTHS[:8], np.concatenate([np.full(4, 0.1), longer / 20_000]), np.ones(8))
    assert upwards.length == pytest.approx(20_000)


def test_linear_faster_by_a_constant_factor_is_faster_from_the_shortest_sequence_on():
    found = crossover(LENGTHS, 2 * LENGTHS, LENGTHS)
    assert (found.length, found.extrapolated) == (1, True)


def test_curves_that_never_meet_cross_at_infinity():
    slower = crossover(LENGTHS, LENGTHS, 2 * LENGTHS)
    falling_behind = crossover(LENGTHS, 64 * LENGTHS, 0.3 * LENGTHS**2)
    for found in (slower, falling_behind):
        assert (found.length, found.high, found.extrapolated) == (math.inf, math.inf, True)


def test_two_lengths_extrapolate_without_a_bound():
    upwards = crossover([64, 128], [1, 4], [10, 20])
    assert upwards.extrapolated
    assert (upwards.low, upwards.high) == (pytest.approx(128), math.inf)
    downwards = crossover([64, 128], [2, 8], [1, 2])
    assert downwards.extrapolated
    assert (downwards.low, downwards.high) == (pytest.approx(1), pytest.approx(64))


def test_articles_own_times_do_not_cross_by_power_laws():
    article = published()["dm2022"]
    found = crossover(article["N"], article["softmax_s"], article["linear_s"])
    assert found.extrapolated
    assert found.length == math.inf


def article_table():
    article = published()["dm2022"]
    return article["N"], article["softmax_s"], article["linear_s"]


def test_articles_regression_gives_the_published_fit():
    fit, printed = article_regression(*article_table()), published()["dm2022"]["fit"]
    a, c = (float(part) for part in printed["softmax"].replace("*N^2", "").split("+"))
    intercept, slope = (float(part) for part in printed["linear"].replace("*N", "").split("+"))
    assert fit.softmax_coefficients == pytest.approx((a, c), rel=1e-6)
    assert fit.linear_coefficients == pytest.approx((intercept, slope), rel=1e-6)
    assert fit.r2_softmax == pytest.approx(printed["r2"], abs=5e-5)
    assert fit.r2_linear == pytest.approx(printed["r2_linear"], abs=5e-6)
    assert fit.crossover == pytest.approx(printed["crossover"], abs=5e-4)
    assert math.ceil(fit.crossover) == printed["ceil"] == 3149


def test_straight_line_fits_the_article_as_well_and_never_crosses():
    line = article_regression(*article_table(), softmax_model="linear")
    assert line.r2_softmax == pytest.approx(0.99019, abs=5e-6)
    assert line.r2_softmax > article_regression(*article_table()).r2_softmax
    assert line.softmax_coefficients == pytest.approx((183.17, 3.561), abs=5e-3)
    assert line.crossover == math.inf


def test_full_quadratic_doubles_the_articles_crossover():
    full = article_regression(*article_table(), softmax_model="full_quadratic")
    printed = published()["dm2022"]["fit"]["other_quadratic_with_linear_term_crossover"]
    assert full.crossover == pytest.approx(printed, abs=0.05)


def test_prediction_intervals_say_how_little_four_points_decide():
    low, high = prediction_interval(*article_table())
    assert low < 3148.7 < high and high > 1.5 * low
    low, high = prediction_interval(*article_table(), softmax_model="full_quadratic")
    assert low < 3148.7 and high == math.inf
    assert prediction_interval(*article_table(), softmax_model="linear") == (math.inf, math.inf)


@pytest.mark.slow
def test_a_prediction_interval_covers_the_truth_about_95_times_in_100(few_draws):
    n, rng, hits = np.array([8.0, 16, 32, 64, 128]), np.random.default_rng(5), 0
    truth = (1 + math.sqrt(1 + 4 * 0.01 * 90)) / 0.02  # 10 + 0.01 N² = 100 + N
    for _ in range(N_SIMULATED):
        softmax, linear = 10 + 0.01 * n**2, 100 + n
        noisy = (one + rng.normal(0, 2, len(n)) for one in (softmax, linear))
        low, high = prediction_interval(n, *noisy)
        hits += low <= truth <= high
    assert LEAST_HITS <= hits <= MOST_HITS


def test_points_on_the_curves_predict_one_point():
    n = np.array([8.0, 16, 32, 64])
    for model, times in (("quadratic", 10 + 0.01 * n**2), ("power_law", 0.04 * n**2)):
        meeting = article_regression(n, times, 100 + n, softmax_model=model).crossover
        low, high = prediction_interval(n, times, 100 + n, softmax_model=model)
        assert low == high == pytest.approx(meeting, rel=0.02)


@pytest.mark.parametrize("model", SOFTMAX_MODELS)
def test_regression_recovers_the_model_it_assumes(model):
    n = np.array([64.0, 128, 256, 512, 1024])
    softmax, coefficients, meeting = {
        "quadratic": (5 + 2e-3 * n**2, (5, 2e-3), (1 + math.sqrt(1 + 4 * 2e-3 * 95)) / 4e-3),
        "linear": (5 + 2 * n, (5, 2), 95.0),
        "full_quadratic": (200 + n + 1e-3 * n**2, (200, 1, 1e-3), 1.0),  # always above the line
        "power_law": (1e-4 * n**2, (1e-4, 2), (1 + math.sqrt(1 + 4e-4 * 100)) / 2e-4),
    }[model]
    fit = article_regression(n, softmax, 100 + n, softmax_model=model)
    assert fit.softmax_coefficients == pytest.approx(coefficients, rel=1e-6)
    assert fit.r2_softmax == pytest.approx(1)
    assert fit.crossover == pytest.approx(meeting, rel=1e-6)


@pytest.mark.parametrize(
    ("n_lengths", "model", "message"),
    [
        (4, "cubic", "softmax_model 'cubic' is unknown: use one of .*quadratic"),
        (2, "quadratic", "2 lengths, the quadratic model needs 3"),
        (3, "full_quadratic", "3 lengths, the full_quadratic model needs 4: use more"),
    ],
)
def test_bad_regression_names_value_and_remedy(n_lengths, model, message):
    columns = (column[:n_lengths] for column in article_table())
    with pytest.raises(ValueError, match=message):
        article_regression(*columns, softmax_model=model)


def test_difference_interval_agrees_with_welch_by_hand():
    # means 3 and 2, variances 2.5 and 1, sizes 5 and 3: s² = 1/2 + 1/3, ν = (5/6)²/(1/16 + 1/18)
    freedom = (25 / 36) / (1 / 16 + 1 / 18)
    half = t_quantile(0.975, freedom) * math.sqrt(5 / 6)
    low, high = difference_interval([1, 2, 3, 4, 5], [1, 2, 3])
    assert (low, high) == pytest.approx((1 - half, 1 + half))


def test_difference_interval_of_five_seeds_covers_the_truth_about_95_times_in_100():
    rng, hits = np.random.default_rng(3), 0
    for _ in range(N_SIMULATED):
        low, high = difference_interval(rng.normal(0, 1, 5), rng.normal(0, 1, 5))
        hits += low <= 0 <= high
    assert LEAST_HITS <= hits <= MOST_HITS


def test_samples_that_do_not_vary_differ_by_a_point():
    assert difference_interval([2, 2, 2], [1, 1]) == (1, 1)


@pytest.mark.parametrize(
    ("successes", "n", "interval"),
    [(5, 5, (0.5655, 1.0)), (0, 5, (0.0, 0.4345)), (8, 10, (0.4902, 0.9433))],
)
def test_wilson_interval_agrees_with_printed_values(successes, n, interval):
    assert wilson_interval(successes, n) == pytest.approx(interval, abs=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: difference_interval([1], [1, 2]), r"a has 1 value\(s\).*run more seeds"),
        (lambda: difference_interval([1, 2], [1, math.nan]), "b holds nan: leave out diverged"),
        (lambda: wilson_interval(3, 2), "3 of 2 is not a share: give n >= 1"),
        (lambda: wilson_interval(0, 0), "0 of 0 is not a share"),
    ],
)
def test_bad_arguments_name_value_and_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call()


CALM = [0.1] * 30


@pytest.mark.parametrize(
    ("losses", "n_spikes"),
    [
        ([], 0),
        (CALM, 0),
        (list(np.geomspace(2.3, 1e-4, 200)), 0),  # steady descent
        ([*CALM, 2.0, *CALM], 1),
        ([*CALM, 2.0, *CALM, 1.0, *CALM], 2),
        ([*CALM, *[2.0] * 40, *CALM], 1),  # long, still one
        ([*CALM, 2.0, 0.25, 2.0, 0.25, *CALM], 1),  # not back in between
        ([*CALM, 0.25, *CALM], 0),  # less than three times
        ([*CALM, *[2.0] * 40], 0),  # never comes back
        ([1e-4] * 30 + [0.01] + [1e-4] * 30, 0),  # a hundred times, but invisible
        ([*CALM, math.nan, *CALM], 1),
        ([*CALM, math.inf, math.nan], 0),
    ],
)
def test_spikes_are_rises_that_come_back(losses, n_spikes):
    assert count_spikes(losses) == n_spikes


def test_ordinary_noise_is_no_spike():
    descent = 2.3 * np.exp(-np.arange(400) / 80) + 0.02
    noise = np.exp(np.random.default_rng(0).normal(0, 0.15, 400))
    assert count_spikes(descent * noise) == 0


POSITIONS = (1, 2, 5, 12, 25, 50, 100)


@pytest.mark.parametrize("power", [0.0, 1.0, -0.5])
def test_a_total_of_a_power_law_is_its_sum(power):
    exact = sum(3.0 * n**power for n in range(1, 101))
    found = integrated_total(POSITIONS, [[3.0 * n**power] * 3 for n in POSITIONS], 100)
    assert found.value == pytest.approx(exact)
    assert found.draws == pytest.approx(exact)


def test_a_total_starts_with_the_first_position_that_was_measured():
    assert integrated_total([10, 20], [4.0, 4.0], 20).value == pytest.approx(80)


def test_a_total_beyond_the_measured_positions_is_refused():
    with pytest.raises(ValueError, match="last 101: measure it, 100 is the last position"):
        integrated_total(POSITIONS, [1.0] * len(POSITIONS), 101)
    with pytest.raises(ValueError, match="holds 0.0 at length 2"):
        integrated_total([1, 2], [1.0, 0.0], 2)


def test_a_measured_total_is_the_median_of_its_runs():
    found = measured_total([10.0, 11.0, 100.0])
    assert found.value == 11
    assert np.unique(found.draws.round(6)).tolist() == [10, 11, 100]


def test_a_ratio_interval_covers_the_truth_about_95_times_in_100(few_draws):
    rng, covered = np.random.default_rng(0), 0
    for _ in range(200):
        slow, fast = (
            integrated_total(
                POSITIONS,
                [level * rng.lognormal(0, 0.1, 15) for _ in POSITIONS],
                100,
            )
            for level in (6, 2)
        )
        found = ratio(slow, fast)
        assert found.low <= found.value <= found.high
        covered += found.low <= 3 <= found.high
    assert 180 <= covered <= 200


KEYS = [20, 40, 60, 80, 100, 120, 140, 160, 180, 200, 240, 280, 320, 360, 400]
SEEDS = [3 if n in (20, 60, 100, 200, 400) else 1 for n in KEYS]


def grid(last, *flipped):
    """Counts of a task that every run solves up to `last`, with one run on the other side at some
    sizes."""
    solved = [n if keys <= last else 0 for keys, n in zip(KEYS, SEEDS, strict=True)]
    for keys in flipped:
        i = KEYS.index(keys)
        solved[i] += -1 if solved[i] else 1
    return KEYS, solved, SEEDS


def test_a_threshold_lies_between_the_last_size_solved_and_the_first_that_is_not():
    for last, following in ((100, 120), (140, 160), (240, 280)):
        found = solved_threshold(grid(last))
        assert last < found.value < following
        assert found.low <= found.value <= found.high
        assert found.value == pytest.approx(math.sqrt(last * following), rel=0.02)


@pytest.mark.parametrize("flipped", KEYS)
def test_one_run_on_the_other_side_moves_a_threshold_by_a_step_at_most(flipped):
    found = solved_threshold(grid(140, flipped))
    assert 120 < found.value < 180
    assert solves_more(grid(320, flipped), grid(140)) is True
    assert solves_more(grid(140), grid(320, flipped)) is False
    assert solves_more(grid(140, flipped), grid(140)) is None


def test_thresholds_beyond_what_was_run_have_no_end():
    every, none = solved_threshold(grid(400)), solved_threshold(grid(0))
    assert every.value == every.high == math.inf and every.low == 400
    assert none.value == none.low == 0 and none.high == 20
    assert solves_more(grid(400), grid(0)) is True
    assert solves_more(grid(400), grid(400)) is None


def test_the_likelihood_of_a_threshold_is_the_binomial_of_a_logistic_curve():
    """An oracle that shares no code: the best of many curves, by a sum over single runs."""
    sizes, solved, runs = [10, 20, 40], [4, 2, 1], [4, 4, 4]

    def likelihood(t, w):
        total = 0.0
        for n, k, m in zip(sizes, solved, runs, strict=True):
            p = 0.05 + 0.9 / (1 + (n / t) ** (1 / w))
            total += k * math.log(p) + (m - k) * math.log(1 - p)
        return total

    ts = [10 * 1.002**i for i in range(1000)]
    best = {t: max(likelihood(t, w) for w in (0.01, 0.03, 0.1, 0.3)) for t in ts}
    inside = [t for t in ts if best[t] > max(best.values()) - 3.841459 / 2]
    found = solved_threshold((sizes, solved, runs))
    assert found.value == pytest.approx(max(best, key=best.get), rel=0.1)
    assert found.low == pytest.approx(inside[0], rel=0.01)
    assert found.high == pytest.approx(inside[-1], rel=0.01)


def test_the_interval_of_a_threshold_covers_it():
    rng, n_covered = np.random.default_rng(0), 0
    for _ in range(200):
        p = 0.05 + 0.9 / (1 + (np.array(KEYS) / 130) ** 10)
        found = solved_threshold((KEYS, rng.binomial(SEEDS, p), SEEDS))
        n_covered += found.low <= 130 <= found.high
    assert n_covered >= 180  # of 200; 190 are expected


@pytest.mark.parametrize(
    "counts, message",
    [
        (([], [], []), "give one of each a size"),
        (([20], [1, 1], [1]), "give one of each a size"),
        (([20, 20], [1, 1], [1, 1]), "give each once"),
        (([0], [1], [1]), "from 1 to"),
        (([20], [2], [1]), "0 to n of n >= 1"),
        (([20], [0], [0]), "0 to n of n >= 1"),
    ],
)
def test_impossible_counts_are_refused(counts, message):
    with pytest.raises(ValueError, match=message):
        solved_threshold(counts)


def test_an_interval_of_more_confidence_is_wider():
    a, b = [1.0, 1.2, 0.9], [0.5, 0.6, 0.7]
    plain, wide = difference_interval(a, b), difference_interval(a, b, confidence=0.9875)
    assert wide[0] < plain[0] < plain[1] < wide[1]
