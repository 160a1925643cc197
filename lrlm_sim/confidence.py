"""Confidence intervals for probabilities and for means of [0, 1]-valued samples.

Every interval holds at its stated sample size without asymptotics: the chance that it misses the
true value is at most δ = 1 − confidence, whatever the law of the samples. `side` spends that chance:
"both" gives δ/2 to each end, "lower" or "upper" gives all of it to one end and leaves the other at
the trivial 0 or 1.

Claims about failure rates are tried one trial at a time with `failure_evidence`, which holds at every
stopping time.

Sources: Clopper and Pearson 1934; Ville 1939; Hoeffding 1963; Maurer and Pontil, arXiv:0907.3740, Theorem 4;
Waudby-Smith and Ramdas, arXiv:2010.09686 (JRSS B 2023), the hedged capital process of section 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.special import bdtrc, betainc, betaincc, betainccinv, betaincinv, betaln

from oracles.checks import as_finite, as_integer, as_number
from oracles.errors import ParameterError, ShapeError

#: Ends of intervals for rows of samples, from (samples, δ of the low end, δ of the high end).
Bounds = Callable[[np.ndarray, float, float], tuple[np.ndarray, np.ndarray]]

_TRUNCATION = 0.9  # largest share of the capital staked in one round; > 1/2 helps for means near 0
_BISECTIONS = 42  # halvings of [0, 1]: the ends are outward-rounded by at most 2^-42
_LOG_SLACK = 1e-9  # more than the rounding error of a sum of 10^6 logarithms near the threshold
_LANE = 32  # consecutive samples per lane of the running maximum
_SHORT = 1 << 13  # below this many samples one plain cumulative sum is faster than lanes


@dataclass(frozen=True)
class Interval:
    """A point estimate with ends that hold together with probability ≥ `confidence`.

    Fields: estimate, low ≤ estimate ≤ high, n samples used, confidence in (0, 1).
    """

    estimate: float
    low: float
    high: float
    n: int
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not self.low <= self.estimate <= self.high:
            raise ParameterError(
                f"an interval needs low ≤ estimate ≤ high, got {self.low}, {self.estimate}, {self.high}"
            )

    @property
    def width(self) -> float:
        """Length high − low."""
        return self.high - self.low

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class MeanEstimate:
    """Mean of an unbounded quantity over n samples, with its standard error.

    `low` and `high` are estimate ± z · standard_error at the stated confidence: asymptotic (central
    limit theorem), unlike `Interval`. An estimate of +∞ is certain: a witness was seen, and
    low = high = +∞ with standard error 0.
    """

    estimate: float
    standard_error: float
    low: float
    high: float
    n: int
    confidence: float


def as_confidence(confidence: float) -> float:
    """`confidence` as a float strictly between 0 and 1; ParameterError otherwise."""
    value = as_number("confidence", confidence, 0.0, 1.0)
    if value in (0.0, 1.0):
        raise ParameterError(f"confidence must be strictly between 0 and 1, got {value}")
    return value


def false_alarm_budget(delta: float, parts: int | ArrayLike) -> Float[np.ndarray, "parts"]:
    """Shares δ_i of a false-alarm probability with Σ δ_i ≤ δ (Bonferroni).

    `parts` is the number of equal shares, or one positive weight per share. If event i fails with
    probability ≤ δ_i, then some event fails with probability ≤ δ, dependent or not.
    """
    delta = as_number("delta", delta, 0.0, 1.0)
    if isinstance(parts, (int, np.integer)):
        weights = np.ones(as_integer("parts", parts, 1))
    else:
        weights = as_finite("parts", parts, "(parts,)", 1)
    if not len(weights) or (weights <= 0).any():
        raise ParameterError(f"parts must be a positive count or positive weights, got {parts!r}")
    return delta * (1 - 1e-15 * len(weights)) * (weights / weights.sum())


def binomial_test_failures(failures: int, trials: int, delta: float) -> float:
    """P(Bin(trials, δ) ≥ failures), exact: how surprising the failures of a 1 − δ interval are.

    The test "reject when the value is below α" has false-alarm probability ≤ α.
    """
    trials = as_integer("trials", trials, 1)
    failures = as_integer("failures", failures, 0, trials)
    delta = as_number("delta", delta, 0.0, 1.0)
    return 1.0 if failures == 0 else float(bdtrc(failures - 1, trials, delta))


@dataclass(frozen=True)
class FailureEvidence:
    """Two e-values about a failure rate p after some trials: bets that gain only if the claim is wrong.

    Fields:
        against: evidence against p ≤ δ; if p ≤ δ, it ever reaches 1/α with probability ≤ α.
        in_favour: evidence against p ≥ δ; if p ≥ δ, it ever reaches 1/α with probability ≤ α.
    """

    against: float
    in_favour: float


def failure_evidence(failures: int, trials: int, delta: float) -> FailureEvidence:
    """Evidence about the claim "each trial fails with probability ≤ δ", to be looked at after any trial.

    With k failures of n, `against` is the likelihood ratio ∫ θ^k (1−θ)^(n−k) dπ(θ) / (δ^k (1−δ)^(n−k)), π
    uniform on (δ, 1); `in_favour` the same with π half uniform on (0, δ) and half the point θ = 0. For θ >
    δ ≥ p the expected factor of one more trial, pθ/δ + (1−p)(1−θ)/(1−δ), is at most one, and so is that of
    θ < δ ≤ p: both are nonnegative supermartingales from 1, and Ville's inequality bounds the chance of ever
    reaching 1/α by α. One may therefore stop at the first trial that decides, at no cost in confidence.
    """
    trials = as_integer("trials", trials, 0)
    failures = as_integer("failures", failures, 0, trials)
    delta = as_number("delta", delta, 0.0, 1.0)
    if delta in (0.0, 1.0):
        raise ParameterError(f"delta must be strictly between 0 and 1, got {delta}")
    k, m = failures, trials - failures
    under_delta = k * np.log(delta) + m * np.log1p(-delta)
    with np.errstate(divide="ignore", over="ignore"):
        log_ratio = betaln(k + 1, m + 1) - under_delta
        above = log_ratio + np.log(betaincc(k + 1, m + 1, delta)) - np.log1p(-delta)
        below = log_ratio + np.log(betainc(k + 1, m + 1, delta)) - np.log(delta)
        never = -under_delta if k == 0 else -np.inf
        in_favour = np.logaddexp(below, never) - np.log(2)
        return FailureEvidence(float(np.exp(above)), float(np.exp(in_favour)))


def binomial_interval(successes: int, trials: int, confidence: float = 0.95, side: str = "both") -> Interval:
    """Clopper–Pearson interval of a success probability from `successes` out of `trials`.

    The low end p solves P(Bin(n, p) ≥ k) = δ_low, the high end P(Bin(n, p) ≤ k) = δ_high.
    """
    trials = as_integer("trials", trials, 1)
    successes = as_integer("successes", successes, 0, trials)
    delta_low, delta_high = _deltas(confidence, side)
    low, high = binomial_bounds(successes, trials, delta_low, delta_high)
    estimate = successes / trials
    return Interval(estimate, min(float(low), estimate), max(float(high), estimate), trials, confidence)


def binomial_bounds(
    successes: ArrayLike | int, trials: ArrayLike | int, delta_low: float, delta_high: float
) -> tuple[np.ndarray, np.ndarray]:
    """Clopper–Pearson ends for arrays of counts; a δ of zero gives the trivial end 0 or 1.

    Low: the δ_low quantile of Beta(k, n − k + 1); high: the upper δ_high quantile of Beta(k + 1, n − k).
    """
    k, n = np.broadcast_arrays(np.asarray(successes, dtype=float), np.asarray(trials, dtype=float))
    low = np.where(k > 0, betaincinv(np.maximum(k, 1), n - k + 1, delta_low), 0.0)
    high = np.where(k < n, betainccinv(k + 1, np.maximum(n - k, 1), delta_high), 1.0)
    return low, high


def mean_interval(
    values: ArrayLike,
    confidence: float = 0.95,
    side: str = "both",
    method: str = "betting",
) -> Interval:
    """Interval for the mean of i.i.d. samples `values`, shape (n,), each in [0, 1].

    `method`: "betting" (default, the tightest nearly always), "bernstein" (empirical Bernstein,
    n ≥ 2) or "hoeffding". Ends are widened to contain the sample mean, which keeps the guarantee.
    Raises ParameterError for values outside [0, 1], NonFiniteError for NaN.
    """
    samples = as_finite("values", values, "(n,)", 1)
    if not len(samples):
        raise ShapeError("values", "(n,)", "n ≥ 1", samples.shape)
    if samples.min() < 0 or samples.max() > 1:
        raise ParameterError(f"values must be in [0, 1], got {samples.min()}..{samples.max()}")
    if method not in _METHODS:
        raise ParameterError(f"method must be one of {', '.join(_METHODS)}, got {method!r}")
    if method == "bernstein" and len(samples) < 2:
        raise ParameterError("empirical Bernstein needs at least 2 samples, got 1: use method='betting'")
    low, high = _METHODS[method](samples[None, :], *_deltas(confidence, side))
    mean = float(np.clip(samples.mean(), 0.0, 1.0))  # the mean of ones may round above one
    return Interval(mean, min(float(low[0]), mean), max(float(high[0]), mean), len(samples), confidence)


def hoeffding_bounds(
    values: Float[np.ndarray, "rows n"], delta_low: float, delta_high: float
) -> tuple[Float[np.ndarray, "rows"], Float[np.ndarray, "rows"]]:
    """Ends mean ∓ sqrt(log(1/δ) / (2n)) for every row of samples in [0, 1], cut at 0 and 1."""
    mean, n = values.mean(axis=1), values.shape[1]
    radius = [np.sqrt(-_log(delta) / (2 * n)) for delta in (delta_low, delta_high)]
    return np.maximum(0.0, mean - radius[0]), np.minimum(1.0, mean + radius[1])


def bernstein_bounds(
    values: Float[np.ndarray, "rows n"], delta_low: float, delta_high: float
) -> tuple[Float[np.ndarray, "rows"], Float[np.ndarray, "rows"]]:
    """Ends mean ∓ (sqrt(2 V log(2/δ) / n) + 7 log(2/δ) / (3(n − 1))), V the unbiased sample variance.

    Empirical Bernstein bound, arXiv:0907.3740, Theorem 4, applied to each end.
    """
    n = values.shape[1]
    mean, variance = values.mean(axis=1), values.var(axis=1, ddof=1)

    def radius(delta: float) -> np.ndarray | float:
        if delta == 0:
            return np.inf
        log = np.log(2 / delta)
        return np.sqrt(2 * variance * log / n) + 7 * log / (3 * (n - 1))

    return np.maximum(0.0, mean - radius(delta_low)), np.minimum(1.0, mean + radius(delta_high))


def betting_bounds(
    values: Float[np.ndarray, "rows n"], delta_low: float, delta_high: float
) -> tuple[Float[np.ndarray, "rows"], Float[np.ndarray, "rows"]]:
    """Ends of the hedged betting interval for every row of samples in [0, 1].

    A candidate mean m is excluded from below once the capital
    K_t(m) = Π_(i≤t) (1 + min(λ_i, c/m)(x_i − m)) reaches 1/δ at any t ≤ n. Under mean m this is a
    non-negative martingale started at 1, so Ville's inequality bounds the chance by δ; the running
    maximum is the intersection of the intervals of all sample sizes, at no extra δ. With this
    truncation every factor decreases in m, so the excluded candidates form an interval [0, low) and
    bisection finds its end. The high end is one minus the low end of 1 − x. Bets are the predictable
    plug-in λ_i = sqrt(2 log(1/δ) / (n σ̂²_(i−1))) of arXiv:2010.09686 for fixed n; c = 0.9, any c < 1
    being valid.
    """
    low = _betting_low(values, delta_low)
    return low, 1 - _betting_low(1 - values, delta_high)


_METHODS: dict[str, Bounds] = {
    "betting": betting_bounds,
    "bernstein": bernstein_bounds,
    "hoeffding": hoeffding_bounds,
}


def _deltas(confidence: float, side: str) -> tuple[float, float]:
    delta = 1 - as_confidence(confidence)
    if side == "both":
        return delta / 2, delta / 2
    if side not in ("lower", "upper"):
        raise ParameterError(f"side must be 'both', 'lower' or 'upper', got {side!r}")
    return (delta, 0.0) if side == "lower" else (0.0, delta)


def _log(delta: float) -> float:
    return float(np.log(delta)) if delta > 0 else -np.inf


def _betting_low(values: np.ndarray, delta: float) -> Float[np.ndarray, "rows"]:
    rows, n = values.shape
    low = np.zeros(rows)
    if delta == 0:
        return low
    threshold = -_log(delta) + _LOG_SLACK
    bets = np.sqrt(2 * -_log(delta) / (n * _plug_in_variances(values)))
    values, bets = _in_lanes(values), _in_lanes(bets)
    high = np.ones(rows)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        excluded = _peak_log_capital(values, bets, middle) >= threshold
        low, high = np.where(excluded, middle, low), np.where(excluded, high, middle)
    return low


def _plug_in_variances(values: np.ndarray) -> Float[np.ndarray, "rows n"]:
    """σ̂²_(t−1) for t = 1..n: (¼ + Σ_(i<t) (x_i − μ̂_i)²) / t with μ̂_i = (½ + Σ_(j≤i) x_j) / (i + 1)."""
    counts = np.arange(1, values.shape[1] + 1)
    deviations = (values - (0.5 + np.cumsum(values, axis=1)) / (counts + 1)) ** 2
    sums = np.cumsum(deviations, axis=1)
    return (0.25 + np.concatenate([np.zeros((len(values), 1)), sums[:, :-1]], axis=1)) / counts


def _in_lanes(samples: np.ndarray) -> Float[np.ndarray, "lane rows lanes"]:
    """Samples regrouped so that entry (i, r, l) is sample l·lane + i of row r, padded with zeros.

    A running sum over n numbers is one long chain of dependent additions; over many short lanes it
    is vector additions, and the lane totals are few.
    """
    rows, n = samples.shape
    lane = 1 if n < _SHORT else _LANE
    padded = np.zeros((rows, -(-n // lane) * lane))
    padded[:, :n] = samples
    return np.ascontiguousarray(padded.reshape(rows, -1, lane).transpose(2, 0, 1))


def _peak_log_capital(
    values: Float[np.ndarray, "lane rows lanes"],
    bets: Float[np.ndarray, "lane rows lanes"],
    means: Float[np.ndarray, "rows"],
) -> Float[np.ndarray, "rows"]:
    """max_t log K_t(m) for each row, K_0 = 1 included; padding has bet zero and changes nothing."""
    caps, candidates = (_TRUNCATION / means)[:, None], means[:, None]
    running, peak = np.zeros(values.shape[1:]), np.zeros(values.shape[1:])
    gains, stakes = np.empty_like(running), np.empty_like(running)
    for x, bet in zip(values, bets, strict=True):
        np.subtract(x, candidates, out=gains)
        np.minimum(bet, caps, out=stakes)
        np.multiply(gains, stakes, out=gains)
        np.log1p(gains, out=gains)
        running += gains
        np.maximum(peak, running, out=peak)
    ends = np.cumsum(running, axis=1)
    return np.maximum(0.0, (ends - running + peak).max(axis=1))
