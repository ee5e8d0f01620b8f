"""Scaling exponents, crossovers, the 2022 article's regression, intervals and loss spikes.

Everything is computed from repeated measurements; every interval is a 95 % one.
A measurement series is `lengths` (one a measured sequence length N) and `values`: one value a
length, an array `(n_lengths, n_repeats)`, or one list of repeats a length, of any sizes. Medians of
repeats stand for a length, because timings err upwards.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95
N_BOOTSTRAP, SEED = 2000, 0  # of every interval from resampled repeats
N_PREDICTED = 1000  # draws of a regression
Z_95 = 1.959964  # normal quantile at 0.975

# Small N is dominated by overhead that does not grow with N. The range of the fit is fixed before
# any value is seen (the longer half): a range chosen by the quality of the fit chooses the answer.
ASYMPTOTIC_SHARE = 0.5
MIN_FIT_LENGTHS = 3  # two points fit every line: no residual, hence no interval

SHORTEST_LENGTH = 1.0  # a sequence has at least one symbol
NEVER = 1e12  # symbols; a crossing beyond any sequence there will be counts as none

# A spike is worth the name when it could be seen on the loss axis of the paper's fig. 2. Half a
# window of recent losses must stay calm for the median to stand; near zero a ratio alone would
# count noise.
SPIKE_WINDOW = 20  # recorded points
SPIKE_FACTOR = 3.0
MIN_SPIKE_NATS = 0.05  # nats a token

# Of the size that half of the runs solve. A run in twenty may end on the wrong side however easy or
# hard its task is, so that one of them does not decide; the widths are those of a logistic curve in
# log size, from one that is as good as a step to one that takes a factor of 4 to fall from 9 in 10
# to 1 in 10.
LAPSES = 0.05
LOGISTIC_WIDTHS = (0.01, 0.03, 0.1, 0.3)
HALF_CHI_SQUARE_95 = Z_95**2 / 2  # of one degree of freedom
FLAT = 0.01  # differences of a log likelihood below it are none
LARGEST_SIZE = 1e5
LOG_SIZES = np.arange(math.log(0.5), math.log(10 * LARGEST_SIZE), 0.004)  # thresholds, to 0.4 %

# Powers of N in each model of the softmax time; "quadratic" is the 2022 article's.
SOFTMAX_POWERS = {"quadratic": (0, 2), "linear": (0, 1), "full_quadratic": (0, 1, 2)}
SOFTMAX_MODELS = (*SOFTMAX_POWERS, "power_law")


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Exponent(Estimate):
    """A growth exponent p of `value ~ N^p`, the range of N fitted, and from how many recordings it
    is; of one, the interval does not hold what varies between recordings."""

    from_length: float | None = None
    to_length: float | None = None
    n_recordings: int = 1


@dataclass(frozen=True)
class Crossover:
    """The sequence length N from which the second mechanism stays faster, with its 95 % interval.

    `length` is `inf` where the second never stays faster. `extrapolated` says that no crossing was
    measured: it lies outside `shortest` to `longest`, the measured range.
    """

    length: float
    low: float
    high: float
    extrapolated: bool
    shortest: float | None = None
    longest: float | None = None


@dataclass(frozen=True)
class Regression:
    """The 2022 article's regression. Coefficients are in the unit of the times given.

    `softmax_coefficients` go with rising powers of N (`power_law`: factor, exponent),
    `linear_coefficients` are (intercept, slope).
    """

    softmax_model: str
    softmax_coefficients: tuple[float, ...]
    linear_coefficients: tuple[float, float]
    r2_softmax: float
    r2_linear: float
    crossover: float


def scaling_exponent(lengths: Sequence[float], values: Sequence) -> Exponent:
    """Return the log-log slope p of `value ~ N^p` over the asymptotic range, with a 95 % interval.

    The range is the longer half of the lengths, at least 3 of them. A slope that is still bending
    there (overhead at its lower end) is biased towards zero.

    The interval has two sources of error. Repeats are resampled within each length. What the
    medians depart from the line beyond that noise (cache sizes, a curve that still bends) is drawn
    from a Student t with n_lengths - 2 degrees of freedom, so that 3 lengths give a wide interval.
    Single values have the second source only. Two lengths give a slope and an unbounded interval.

    Raises:
        ValueError: fewer than 2 lengths, values that are not positive and finite, sizes that
            differ, a repeated length.
    """
    rng = np.random.default_rng(SEED)
    lengths, samples = _measurements(lengths, values, "values")
    n_used = _n_fitted(len(lengths))
    if n_used < 2:
        raise ValueError(
            f"{n_used} length(s), a slope needs 2 and an interval {MIN_FIT_LENGTHS}: "
            "measure more lengths"
        )
    lengths, samples = lengths[-n_used:], samples[-n_used:]
    x, y = np.log(lengths), _log_medians(samples)
    low, high = -math.inf, math.inf
    if n_used >= MIN_FIT_LENGTHS:
        draws = _log_median_draws(samples, rng)
        noise = _lack_of_fit_draws(x, y, draws, rng)
        low, high = _percentiles(_line(x, draws + noise)[0])
    value = float(_line(x, y)[0])
    return Exponent(value, min(low, value), max(high, value), float(lengths[0]), float(lengths[-1]))


def exponent_of_recordings(lengths: Sequence[float], recordings: Sequence[Sequence]) -> Exponent:
    """Return the slope of `scaling_exponent` of R recordings made at different times, with a 95 %
    interval that holds what varies between them.

    p is the mean of the slopes p_r that each recording has alone, and

        Var p = s_p² / R + d² / Σ (log N - mean log N)²

    s_p² is the variance of the p_r: of the slope between recordings, and of the noise within them,
    with R - 1 degrees of freedom. d² is what all recordings together depart from a line (a curve
    that still bends): the variance of the residuals of their mean, with n_lengths - 2 degrees,
    less that of its noise, s_e² / R, where s_e² is that of each recording's residuals from the mean
    curve and a slope of its own; 0 at least. The interval is p ± t(0.975, ν) √Var p with the
    smaller of both degrees of freedom, which covers 95 % or more (as Mickey & Brown 1966, Annals of
    Mathematical Statistics 37, 639-642, show of two means).

    One recording has the interval of `scaling_exponent`, and two lengths have none.

    Args:
        recordings: the `values` of each, of the same lengths.

    Raises:
        ValueError: as `scaling_exponent`; or no recording.
    """
    if len(recordings) == 0:
        raise ValueError("no recording: give the values of one at least")
    if len(recordings) == 1:
        return scaling_exponent(lengths, recordings[0])
    n_used, curves = _n_fitted(len(lengths)), []
    if n_used < 2:
        raise ValueError(f"{n_used} length(s), a slope needs 2: measure more lengths")
    for values in recordings:
        measured, samples = _measurements(lengths, values, "recordings")
        curves.append(_log_medians(samples[-n_used:]))
    measured = measured[-n_used:]
    x, y = np.log(measured), np.stack(curves)  # (n), (R, n)
    n_recordings, freedom = len(y), n_used - 2
    slopes, _ = _line(x, y)
    value, low, high = float(slopes.mean()), -math.inf, math.inf
    if n_used >= MIN_FIT_LENGTHS:
        between = float(slopes.var(ddof=1)) / n_recordings
        noise = _residuals(x, y - y.mean(axis=0))
        noise = (noise**2).sum() / ((n_recordings - 1) * freedom)
        bend = (_residuals(x, y.mean(axis=0)) ** 2).sum() / freedom - noise / n_recordings
        bend = max(float(bend), 0.0) / float(((x - x.mean()) ** 2).sum())
        t = t_quantile((1 + CONFIDENCE) / 2, min(n_recordings - 1, freedom))
        half = t * math.sqrt(between + bend)
        low, high = value - half, value + half
    return Exponent(value, low, high, float(measured[0]), float(measured[-1]), n_recordings)


def _residuals(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return y (..., n) less its line."""
    slope, intercept = _line(x, y)
    return y - np.multiply.outer(slope, x) - np.asarray(intercept)[..., None]


@dataclass(frozen=True)
class Total:
    """The time of a whole sequence, and what resampled repeats make of it."""

    value: float
    draws: np.ndarray


@dataclass(frozen=True)
class Ratio(Estimate):
    """One time divided by another."""


def measured_total(samples: Sequence[float]) -> Total:
    """The median of repeats that each took the whole sequence."""
    _, samples = _measurements([1], [samples], "samples")
    draws = np.exp(_log_median_draws(samples, np.random.default_rng(SEED))[:, 0])
    return Total(float(np.median(samples[0])), draws)


def integrated_total(positions: Sequence[float], values: Sequence, last: int) -> Total:
    """The sum over positions 1 to `last` of times that were measured at some: medians of repeats,
    with straight lines between them in log-log, and the first one's before it.

    What the true times depart from those lines is not in the draws.

    Raises:
        ValueError: as `scaling_exponent`; or `last` is not the last measured position.
    """
    positions, samples = _measurements(positions, values, "values")
    if last != positions[-1]:
        raise ValueError(f"last {last}: measure it, {positions[-1]:g} is the last position")
    at = np.log(np.arange(1, last + 1))
    share = np.stack([np.interp(at, np.log(positions), unit) for unit in np.eye(len(positions))])
    drawn = _log_median_draws(samples, np.random.default_rng(SEED))
    draws = np.exp(drawn @ share).sum(axis=1)
    return Total(float(np.exp(_log_medians(samples) @ share).sum()), draws)


def ratio(numerator: Total, denominator: Total) -> Ratio:
    """The ratio of two totals that were resampled independently, as often."""
    value = numerator.value / denominator.value
    low, high = _percentiles(numerator.draws / denominator.draws)
    return Ratio(value, min(low, value), max(high, value))


def crossover(lengths: Sequence[float], time_a: Sequence, time_b: Sequence) -> Crossover:
    """Return the length from which b (linear) stays faster than a (softmax), with a 95 % interval.

    With r(N) = log(time_a / time_b) of the medians, piecewise linear in log N:

    - Measured: r is negative at some length and not negative at any longer one. The crossing is the
      zero of r after the last measured length where a is faster.
    - a is faster at the longest length (everywhere, or again): nothing was measured. The power laws
      through the longer half (at least 3 lengths) are extended; where they never meet, `inf`.
    - b is at least as fast at every length: the crossing is below the shortest. The power laws
      through the shorter half are extended down, to 1 at the least.

    The interval comes from resampling the repeats at each length, with the lack of fit added where
    power laws are extended (see `scaling_exponent`); its bounds may lie outside the measured range,
    or be `inf`. Without at least 2 repeats everywhere, a measured crossing is only known to lie
    between its two neighbours, and these are the interval. Two lengths extend to (longest, inf) or
    (1, shortest). Interpolation error is not in the interval; it is less than the distance to the
    neighbours.

    Raises:
        ValueError: fewer than 2 lengths, times that are not positive and finite, sizes that differ,
            a repeated length.
    """
    rng = np.random.default_rng(SEED)
    measured, a = _measurements(lengths, time_a, "time_a")
    _, b = _measurements(lengths, time_b, "time_b")
    if len(measured) < 2:
        raise ValueError(f"{len(measured)} length(s), a crossover needs 2: measure another length")
    x, ratio = np.log(measured), _log_medians(a) - _log_medians(b)
    position, extrapolated = (found.item() for found in _crossing(x, ratio, ratio))
    downwards = extrapolated and position <= x[0]
    repeated = all(len(sample) > 1 for sample in a + b)
    if extrapolated and len(x) < MIN_FIT_LENGTHS:
        low, high = (math.log(SHORTEST_LENGTH), x[0]) if downwards else (x[-1], math.inf)
    elif not extrapolated and not repeated:
        after = int(np.flatnonzero(ratio < 0)[-1]) + 1
        low, high = x[after - 1], x[after]
    else:
        draws = _log_median_draws(a, rng) - _log_median_draws(b, rng)
        extended = draws + _extension_noise(x, ratio, draws, downwards, rng)
        low, high = _percentiles(_crossing(x, draws, extended)[0])
    return Crossover(
        length=_length(position),
        low=_length(min(low, position)),
        high=_length(max(high, position)),
        extrapolated=extrapolated,
        shortest=float(measured[0]),
        longest=float(measured[-1]),
    )


def article_regression(
    lengths: Sequence[float],
    softmax_s: Sequence[float],
    linear_s: Sequence[float],
    *,
    softmax_model: str = "quadratic",
) -> Regression:
    """Return the regression that gave the 2022 replication its crossover of 3149 symbols.

    Do & Bergner 2022 (Table 1, R script): least squares of the softmax time on N² and of the linear
    time on N, over N = 8, 16, 32, 64; the crossover is where the two curves meet. `softmax_model`:

    - "quadratic"       a + c N²         the article's: 3148.7
    - "linear"          a + b N          fits as well, and never meets: `inf`
    - "full_quadratic"  a + b N + c N²   fits better: 6219.2
    - "power_law"       a N^p            least squares in logarithms; R² in seconds, like the others

    The crossover is the N from which the linear curve is below the softmax curve for good: `inf` if
    it never is, 1 if it always is.

    Raises:
        ValueError: an unknown model, fewer lengths than its coefficients and one, times that are
            not positive and finite, sizes that differ, a repeated length.
    """
    if softmax_model not in SOFTMAX_MODELS:
        raise ValueError(f"softmax_model {softmax_model!r} is unknown: use one of {SOFTMAX_MODELS}")
    measured, softmax = _measurements(lengths, softmax_s, "softmax_s")
    _, linear = _measurements(lengths, linear_s, "linear_s")
    needed = len(SOFTMAX_POWERS.get(softmax_model, (0, 1))) + 1
    if len(measured) < needed:
        raise ValueError(
            f"{len(measured)} length{'s' * (len(measured) != 1)}, the {softmax_model} model needs "
            f"{needed}: use more lengths or a model with fewer coefficients"
        )
    softmax, linear = np.exp(_log_medians(softmax)), np.exp(_log_medians(linear))
    fits = _Fit(measured, softmax, softmax_model), _Fit(measured, linear, "linear")
    return Regression(
        softmax_model=softmax_model,
        softmax_coefficients=fits[0].told,
        linear_coefficients=fits[1].told,
        r2_softmax=_r_squared(softmax, fits[0](measured)),
        r2_linear=_r_squared(linear, fits[1](measured)),
        crossover=_last_meeting(*fits),
    )


def prediction_interval(
    lengths: Sequence[float],
    softmax_s: Sequence[float],
    linear_s: Sequence[float],
    *,
    softmax_model: str = "quadratic",
) -> tuple[float, float]:
    """Return the 95 % interval of `article_regression`'s crossover, if its models are right.

    Both fits are drawn anew with the errors that their residuals imply: normal ones, whose variance
    is the residual sum of squares over a chi-square draw of n - (number of coefficients) degrees of
    freedom. With so few lengths it is wide, and often has no end (`inf`). That a model may be wrong
    beyond the data is not in it.

    Raises:
        ValueError: as `article_regression`.
    """
    article_regression(lengths, softmax_s, linear_s, softmax_model=softmax_model)
    rng = np.random.default_rng(SEED)
    measured, softmax = _measurements(lengths, softmax_s, "softmax_s")
    _, linear = _measurements(lengths, linear_s, "linear_s")
    grid = np.geomspace(SHORTEST_LENGTH, NEVER, 2001)  # steps of 1.4 %
    curves = (
        _Fit(measured, np.exp(_log_medians(one)), model).drawn(grid, rng)
        for one, model in ((softmax, softmax_model), (linear, "linear"))
    )
    softmax_faster = np.less(*curves)  # (N_PREDICTED, n_grid)
    n_after = softmax_faster[:, ::-1].argmax(axis=1)  # grid points after the last such
    crossings = np.append(grid, math.inf)[len(grid) - n_after]
    return _percentiles(np.where(softmax_faster.any(axis=1), crossings, SHORTEST_LENGTH))


@dataclass(frozen=True)
class Threshold(Estimate):
    """The size (of a task) that half of the runs solve: 0 says that no size is solved, `inf` that
    every one is; likewise the ends of the interval."""


SolvedCounts = tuple[Sequence[float], Sequence[int], Sequence[int]]
"""Sizes of a task, and of how many runs (third) how many solved it (second) at each."""


def solved_threshold(counts: SolvedCounts) -> Threshold:
    """Return the size up to which most runs solve a task.

    A logistic curve in log size, P(solved) = λ + (1 - 2λ) σ((log T - log size) / w), with λ =
    LAPSES and w one of LOGISTIC_WIDTHS; the interval holds every T whose likelihood, at its best w,
    is within half the 95 % quantile of χ² of the largest (profile likelihood). Where several T are
    as likely, as between the last size solved and the first that is not, `value` is their middle.

    Raises:
        ValueError: no sizes, repeated ones or some outside 1 to LARGEST_SIZE, entries that differ
            in number, counts that are not 0 to the number of runs.
    """
    fit = _profile(counts)
    best, inside = (LOG_SIZES[fit > -less] for less in (FLAT, HALF_CHI_SQUARE_95))
    ends = [_end(log_size) for log_size in (best[0], best[-1], inside[0], inside[-1])]
    value = 0.0 if ends[0] == 0 else math.sqrt(ends[0] * ends[1])
    # Of sizes longer than all, or shorter, nothing is known.
    return Threshold(value, min(ends[2], max(counts[0])), max(ends[3], min(counts[0])))


def solves_more(a: SolvedCounts, b: SolvedCounts) -> bool | None:
    """Return whether the threshold of a is above that of b (False: below), None where one T for
    both is as likely, by the likelihood ratio at 95 %.

    Raises:
        ValueError: as `solved_threshold`.
    """
    fits = _profile(a), _profile(b)
    if sum(fits).max() > -HALF_CHI_SQUARE_95:
        return None
    return bool(fits[0].argmax() > fits[1].argmax())


def _profile(counts: SolvedCounts) -> np.ndarray:
    """The log likelihood of each threshold of LOG_SIZES at its best width, less the largest."""
    sizes, solved, runs = (np.asarray(x, dtype=float) for x in counts)
    if not len(sizes) or not len(sizes) == len(solved) == len(runs):
        raise ValueError(
            f"{len(sizes)} sizes, {len(solved)} and {len(runs)} counts: give one of each a size"
        )
    if len(set(sizes)) < len(sizes) or not ((sizes >= 1) & (sizes <= LARGEST_SIZE)).all():
        raise ValueError(f"sizes {sizes.tolist()}: give each once, from 1 to {LARGEST_SIZE:g}")
    if not ((runs >= 1) & (solved >= 0) & (solved <= runs)).all():
        raise ValueError(f"{solved.tolist()} of {runs.tolist()} solved: give 0 to n of n >= 1 runs")
    widths = np.array(LOGISTIC_WIDTHS)[:, None, None]
    z = (LOG_SIZES[:, None] - np.log(sizes)) / widths  # (n_widths, n_thresholds, n_sizes)
    p = LAPSES + (1 - 2 * LAPSES) / (1 + np.exp(-z.clip(-40, 40)))
    fit = (np.log(p) * solved + np.log1p(-p) * (runs - solved)).sum(-1).max(0)
    return fit - fit.max()


def _end(log_size: float) -> float:
    """A threshold of LOG_SIZES; at its ends, 0 or infinite."""
    if log_size == LOG_SIZES[0]:
        return 0.0
    return math.inf if log_size == LOG_SIZES[-1] else math.exp(log_size)


def difference_interval(
    a: Sequence[float], b: Sequence[float], *, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return the interval of mean(a) - mean(b) by Welch's t; a 95 % one unless said.

    d ± t(0.975, ν) s with s² = s_a²/n_a + s_b²/n_b and ν = s⁴ / Σ (s_i²/n_i)² / (n_i - 1) (Welch
    1947). With 5 seeds a percentile bootstrap covers about 85 % instead of 95 %, because it
    estimates the spread from 5 values and forgets that it did; t does not. Where neither sample
    varies, the interval is the one point. (scipy's `ttest_ind` warns where samples hardly vary.)

    Raises:
        ValueError: fewer than 2 values on a side, or values that are not finite.
    """
    a, b = _finite(a, "a"), _finite(b, "b")
    shares = [float(side.var(ddof=1)) / len(side) for side in (a, b)]
    difference, variance = float(a.mean() - b.mean()), sum(shares)
    if variance == 0:
        return difference, difference
    # Shares relative to their sum, so that tiny variances do not underflow when squared.
    freedom = 1 / sum(
        (s / variance) ** 2 / (len(side) - 1) for s, side in zip(shares, (a, b), strict=True)
    )
    half = t_quantile((1 + confidence) / 2, freedom) * math.sqrt(variance)
    return difference - half, difference + half


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share (Wilson 1927): sane at 0 of n and at n of n.

    Raises:
        ValueError: n below 1, or successes outside 0 to n.
    """
    from scipy.stats import binomtest

    if n < 1 or not 0 <= successes <= n:
        raise ValueError(
            f"{successes} of {n} is not a share: give n >= 1 trials and 0 to n successes"
        )
    interval = binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def t_quantile(probability: float, freedom: float) -> float:
    """Return the quantile of Student's t."""
    from scipy.stats import t  # imported here, as recording needs no scipy

    return float(t.ppf(probability, freedom))


def count_spikes(losses: Sequence[float]) -> int:
    """Return how often a loss curve (nats a token) rose sharply and came back.

    A spike starts where the loss exceeds both SPIKE_FACTOR times the baseline and the baseline plus
    MIN_SPIKE_NATS; the baseline is the median of the last SPIKE_WINDOW recorded losses outside
    spikes. It ends, and counts once however long it was, when the loss is back below half of that
    rise. A rise that never comes back is no spike: it shows in the final loss. A loss that is not
    finite counts as high.
    """
    calm: list[float] = []
    n_spikes, back_below = 0, None
    for loss in np.nan_to_num(np.asarray(losses, dtype=float), nan=math.inf, posinf=math.inf):
        if back_below is not None:
            if loss > back_below:
                continue
            n_spikes, back_below = n_spikes + 1, None
        elif calm:
            baseline = float(np.median(calm[-SPIKE_WINDOW:]))
            rise = max((SPIKE_FACTOR - 1) * baseline, MIN_SPIKE_NATS)
            if loss > baseline + rise:
                back_below = baseline + rise / 2
                continue
        if math.isfinite(loss):
            calm.append(loss)
    return n_spikes


def _measurements(
    lengths: Sequence[float], values: Sequence, name: str
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return lengths in rising order and the repeats of each, or say what is wrong with them."""
    lengths = np.asarray(lengths, dtype=float).reshape(-1)
    samples = [np.asarray(value, dtype=float).reshape(-1) for value in values]
    if len(lengths) != len(samples):
        raise ValueError(
            f"{len(lengths)} lengths but {len(samples)} entries in {name}: give one entry a length"
        )
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ValueError(f"lengths {lengths.tolist()} must be positive and finite")
    for length, sample in zip(lengths, samples, strict=True):
        if not len(sample):
            raise ValueError(f"{name} has no repeat at length {length:g}: leave the length out")
        wrong = sample[~(np.isfinite(sample) & (sample > 0))]
        if len(wrong):
            raise ValueError(
                f"{name} holds {wrong[0]} at length {length:g}, and only positive finite values "
                "have a logarithm: leave out the length, as for one that ran out of memory"
            )
    order = np.argsort(lengths, kind="stable")
    lengths = lengths[order]
    repeated = lengths[:-1][np.diff(lengths) == 0]
    if len(repeated):
        raise ValueError(f"length {repeated[0]:g} is given twice: give its repeats as one entry")
    return lengths, [samples[i] for i in order]


def _finite(values: Sequence[float], name: str) -> np.ndarray:
    values = np.asarray(values, dtype=float).reshape(-1)
    if len(values) < 2:
        raise ValueError(f"{name} has {len(values)} value(s), an interval needs 2: run more seeds")
    if not np.isfinite(values).all():
        raise ValueError(
            f"{name} holds {values[~np.isfinite(values)][0]}: leave out diverged runs and say so"
        )
    return values


def _percentiles(draws: Sequence[float]) -> tuple[float, float]:
    # inverted_cdf returns drawn values: interpolation between infinite ones would give NaN.
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], method="inverted_cdf")
    return float(low), float(high)


def _n_fitted(n_lengths: int) -> int:
    return min(n_lengths, max(MIN_FIT_LENGTHS, math.ceil(ASYMPTOTIC_SHARE * n_lengths)))


def _log_medians(samples: list[np.ndarray]) -> np.ndarray:
    return np.log([np.median(sample) for sample in samples])


def _log_median_draws(samples: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Return log medians of resampled repeats, (N_BOOTSTRAP, n_lengths)."""
    columns = []
    for sample in samples:
        picks = rng.integers(0, len(sample), (N_BOOTSTRAP, len(sample)))
        columns.append(np.median(sample[picks], axis=1))
    return np.log(np.stack(columns, axis=1))


def _line(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return least-squares slope and intercept of y (..., n) on x (n)."""
    centred = x - x.mean()
    slope = y @ centred / (centred @ centred)
    return slope, y.mean(axis=-1) - slope * x.mean()


def _lack_of_fit_draws(
    x: np.ndarray, y: np.ndarray, draws: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return errors (N_BOOTSTRAP, n): what the repeats do not explain of y's distance to its line.

    Their variance is the residual variance less the variance of the resampled medians, which are in
    `draws` (N_BOOTSTRAP, n) already. One chi-square a row makes slopes Student-t distributed.
    """
    residuals, freedom = _residuals(x, y), len(x) - 2
    variance = residuals @ residuals / freedom - draws.var(axis=0).mean()
    scale = np.sqrt(max(variance, 0.0) * freedom / rng.chisquare(freedom, (len(draws), 1)))
    return scale * rng.standard_normal(draws.shape)


def _extension_noise(
    x: np.ndarray, ratio: np.ndarray, draws: np.ndarray, downwards: bool, rng: np.random.Generator
) -> np.ndarray:
    """Return lack-of-fit errors (N_BOOTSTRAP, n), zero outside the lengths that are extended."""
    noise = np.zeros_like(draws)
    n_fitted = _n_fitted(len(x))
    if n_fitted >= MIN_FIT_LENGTHS:
        part = slice(n_fitted) if downwards else slice(len(x) - n_fitted, None)
        noise[:, part] = _lack_of_fit_draws(x[part], ratio[part], draws[:, part], rng)
    return noise


def _crossing(
    x: np.ndarray, ratio: np.ndarray, extended: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return log N of the crossing of each curve, and whether it is extrapolated; see `crossover`
    for the cases.

    `ratio` (..., n) is log(time_a / time_b) at x = log N; `extended` the same for the power laws to
    extend.
    """
    n_fitted, a_faster = _n_fitted(len(x)), ratio < 0
    always, never = ~a_faster.any(-1), a_faster[..., -1]  # b is faster
    last = np.minimum(len(x) - 1 - a_faster[..., ::-1].argmax(-1), len(x) - 2)
    before, after = (np.take_along_axis(ratio, i[..., None], -1)[..., 0] for i in (last, last + 1))
    floor = min(math.log(SHORTEST_LENGTH), x[0])
    with np.errstate(divide="ignore", invalid="ignore"):  # of cases that are not taken
        inside = x[last] + before / (before - after) * (x[last + 1] - x[last])
        slope, intercept = _line(x[:n_fitted], extended[..., :n_fitted])
        below = np.where(slope > 0, np.clip(-intercept / slope, floor, x[0]), floor)
        slope, intercept = _line(x[-n_fitted:], extended[..., -n_fitted:])
        beyond = np.where(slope > 0, np.maximum(-intercept / slope, x[-1]), math.inf)
    return np.where(always, below, np.where(never, beyond, inside)), always | never


def _length(position: float) -> float:
    return math.inf if position > math.log(NEVER) else math.exp(position)


class _Fit:
    """The least-squares curve of a model of the time, called with N; a power law is a line in
    logarithms."""

    def __init__(self, lengths: np.ndarray, seconds: np.ndarray, model: str):
        self.is_power_law, self.longest = model == "power_law", lengths.max()
        self.powers = np.array(SOFTMAX_POWERS.get(model, (0, 1)), dtype=float)
        self.design, self.y = self._design(lengths), seconds
        if self.is_power_law:
            self.y = np.log(seconds)
        self.coefficients = np.linalg.lstsq(self.design, self.y, rcond=None)[0]

    def _design(self, n: np.ndarray) -> np.ndarray:
        if self.is_power_law:
            return np.stack([np.ones_like(n, dtype=float), np.log(n)], axis=-1)
        # Columns near 1: N² of long sequences is huge.
        return (np.asarray(n)[..., None] / self.longest) ** self.powers

    @property
    def told(self) -> tuple[float, ...]:
        """The coefficients of powers of N; of a power law the factor and the exponent."""
        if self.is_power_law:
            return math.exp(self.coefficients[0]), float(self.coefficients[1])
        return tuple(map(float, self.coefficients / self.longest**self.powers))

    def __call__(self, n: np.ndarray | float) -> np.ndarray:
        return self._times(self._design(n) @ self.coefficients)

    def drawn(self, grid: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Curves over a grid, (N_PREDICTED, n_grid), with errors as the residuals imply."""
        residuals = self.y - self.design @ self.coefficients
        freedom = len(self.y) - self.design.shape[1]
        scale = np.sqrt(residuals @ residuals / rng.chisquare(freedom, (N_PREDICTED, 1)))
        errors = scale * rng.standard_normal((N_PREDICTED, len(self.y)))
        draws = self.coefficients + errors @ np.linalg.pinv(self.design).T
        return self._times(draws @ self._design(grid).T)

    def _times(self, y: np.ndarray) -> np.ndarray:
        return np.exp(y.clip(-700, 700)) if self.is_power_law else y


def _last_meeting(softmax: Callable, linear: Callable) -> float:
    """Return the N from which the linear curve is below the softmax curve for good."""
    grid = np.geomspace(SHORTEST_LENGTH, NEVER, 4001)  # steps of 0.7 %
    softmax_faster = np.flatnonzero(softmax(grid) < linear(grid))
    if not len(softmax_faster):
        return SHORTEST_LENGTH
    if softmax_faster[-1] == len(grid) - 1:
        return math.inf
    low, high = grid[softmax_faster[-1]], grid[softmax_faster[-1] + 1]
    for _ in range(60):  # 0.7 % of N halved 60 times is below rounding
        middle = (low + high) / 2
        low, high = (middle, high) if softmax(middle) < linear(middle) else (low, middle)
    return float(high)


def _r_squared(values: np.ndarray, fitted: np.ndarray) -> float:
    """Return 1 - residual / total sum of squares; NaN where the values do not vary."""
    total = float(((values - values.mean()) ** 2).sum())
    return 1 - float(((values - fitted) ** 2).sum()) / total if total else math.nan


def article_fits(article: Mapping[str, Any]) -> list[Regression]:
    """The article's regression on its Table 1, under each model of softmax."""
    times = article["N"], article["softmax_s"], article["linear_s"]
    return [article_regression(*times, softmax_model=model) for model in SOFTMAX_MODELS]
