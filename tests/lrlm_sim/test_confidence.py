import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lrlm_sim import confidence as c
from oracles.errors import NonFiniteError, ParameterError, ShapeError

FALSE_ALARM = 1e-9  # of each coverage test


def capital_by_definition(values, mean, delta, truncation):
    """Running maximum of the one-sided capital, one sample at a time (arXiv:2010.09686, section 4)."""
    n, capital, peak = len(values), 1.0, 1.0
    total, spread, variance = 0.5, 0.25, 0.25
    for t, x in enumerate(values, start=1):
        bet = min(np.sqrt(2 * np.log(1 / delta) / (n * variance)), truncation / mean)
        capital *= 1 + bet * (x - mean)
        peak = max(peak, capital)
        total += x
        spread += (x - total / (t + 1)) ** 2
        variance = spread / (t + 1)
    return peak


def low_by_grid(values, delta, grid):
    kept = [m for m in grid if capital_by_definition(values, m, delta, c._TRUNCATION) < 1 / delta]
    return min(kept)


@pytest.mark.parametrize("seed", range(4))
def test_betting_ends_match_a_grid_search_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    values = rng.beta(0.5, 0.5 + 3 * seed, 60)
    grid = np.arange(1, 1000) / 1000
    low, high = c.betting_bounds(values[None], 0.025, 0.025)
    assert low[0] <= low_by_grid(values, 0.025, grid) <= low[0] + 1e-3
    assert 1 - high[0] <= low_by_grid(1 - values, 0.025, grid) <= 1 - high[0] + 1e-3


def test_long_samples_use_lanes_and_agree_with_one_cumulative_sum(monkeypatch):
    values = np.random.default_rng(0).random((2, 5000))
    values[0, :300] = 1.0  # the largest capital is reached on the way
    plain = c.betting_bounds(values, 0.01, 0.02)
    monkeypatch.setattr(c, "_SHORT", 1)
    laned = c.betting_bounds(values, 0.01, 0.02)
    np.testing.assert_allclose(laned, plain, rtol=0, atol=1e-11)


def test_capital_decreases_in_the_candidate():
    rng = np.random.default_rng(1)
    values = c._in_lanes(rng.random((1, 300)))
    bets = c._in_lanes(rng.uniform(0, 5, (1, 300)))
    peaks = [c._peak_log_capital(values, bets, np.array([m]))[0] for m in np.linspace(0.001, 0.999, 200)]
    assert (np.diff(peaks) <= 1e-12).all()


LAWS = {
    "fair coin": (lambda rng, s: (rng.random(s) < 0.5) * 1.0, 0.5),
    "rare coin": (lambda rng, s: (rng.random(s) < 0.002) * 1.0, 0.002),
    "near one": (lambda rng, s: (rng.random(s) < 0.97) * 1.0, 0.97),
    "beta": (lambda rng, s: rng.beta(0.2, 1.8, s), 0.1),
    "uniform": (lambda rng, s: rng.random(s), 0.5),
    "tiny": (lambda rng, s: 1e-3 * rng.random(s), 5e-4),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("method", ["betting", "bernstein", "hoeffding"])
def test_coverage(law, method):
    draw, mean = LAWS[law]
    trials, delta = 1000, 0.1
    values = draw(np.random.default_rng(7), (trials, 100))
    low, high = c._METHODS[method](values, delta / 2, delta / 2)
    for missed in (low > mean, high < mean):
        assert c.binomial_test_failures(int(missed.sum()), trials, delta / 2) > FALSE_ALARM


def test_a_normal_approximation_would_fail_the_coverage_test():
    draw, mean = LAWS["rare coin"]
    values = draw(np.random.default_rng(7), (2000, 150))
    radius = 1.645 * values.std(axis=1, ddof=1) / np.sqrt(150)
    missed = values.mean(axis=1) + radius < mean
    assert c.binomial_test_failures(int(missed.sum()), 2000, 0.05) < FALSE_ALARM


def test_means_near_zero_get_bounds_of_order_one_over_n():
    zeros = c.mean_interval(np.zeros(10_000))
    assert zeros.low == 0
    assert zeros.high < 5 / 10_000  # log(2/δ)/n = 3.7e-4 is the floor
    assert c.mean_interval(np.zeros(10_000), method="hoeffding").high > 1e-2


def test_betting_is_narrower_than_bernstein_and_nearly_binomial():
    rng = np.random.default_rng(3)
    for p in (0.5, 0.05):
        values = (rng.random(4000) < p) * 1.0
        betting, bernstein = c.mean_interval(values), c.mean_interval(values, method="bernstein")
        exact = c.binomial_interval(int(values.sum()), 4000)
        assert betting.width < 0.8 * bernstein.width
        assert betting.width < 1.35 * exact.width


@given(st.integers(1, 400), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95, 1 - 1e-9]))
def test_binomial_interval_matches_scipy(n, share, confidence):
    k = round(share * n)
    found = c.binomial_interval(k, n, confidence)
    expected = stats.binomtest(k, n).proportion_ci(confidence, method="exact")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-12)
    upper = c.binomial_interval(k, n, confidence, side="upper")
    reference = stats.binomtest(k, n, alternative="less").proportion_ci(confidence, method="exact")
    assert upper.low == 0
    assert upper.high == pytest.approx(reference.high, rel=1e-6)


@pytest.mark.parametrize("p", [0.003, 0.2, 0.5, 0.9])
def test_binomial_coverage_is_exact(p):
    n, delta = 60, 0.1
    counts = np.arange(n + 1)
    weights = stats.binom.pmf(counts, n, p)
    low, high = c.binomial_bounds(counts, n, delta / 2, delta / 2)
    assert weights[low > p].sum() <= delta / 2 + 1e-12
    assert weights[high < p].sum() <= delta / 2 + 1e-12


@given(st.integers(1, 300), st.floats(0, 1), st.floats(1e-6, 0.999))
def test_failure_probability_is_the_binomial_tail(trials, share, delta):
    failures = round(share * trials)
    expected = stats.binom.pmf(np.arange(failures, trials + 1), trials, delta).sum()
    assert c.binomial_test_failures(failures, trials, delta) == pytest.approx(expected, rel=1e-8, abs=1e-300)


def chance_of_ever_deciding(rate, delta, alpha, trials):
    """Exact probabilities that `failure_evidence` reaches 1/α within so many trials: against, in favour."""
    reached = {"against": 0.0, "in_favour": 0.0}
    for side in reached:
        alive = np.array([1.0])  # mass of each number of failures that has not reached it yet
        for n in range(1, trials + 1):
            alive = np.convolve(alive, [1 - rate, rate])
            decided = [getattr(c.failure_evidence(k, n, delta), side) >= 1 / alpha for k in range(n + 1)]
            reached[side] += alive[decided].sum()
            alive[decided] = 0.0
    return reached["against"], reached["in_favour"]


@pytest.mark.parametrize(("delta", "alpha"), [(0.05, 0.05), (0.3, 0.01), (0.5, 0.1)])
def test_evidence_is_reached_at_any_time_with_its_stated_probability(delta, alpha):
    """Calibration without sampling: every stopping rule within 100 trials is covered by the recursion."""
    against, in_favour = chance_of_ever_deciding(delta, delta, alpha, 100)
    assert 0 < against <= alpha
    assert 0 < in_favour <= alpha
    assert chance_of_ever_deciding(delta / 2, delta, alpha, 100)[0] < against  # rates below δ: rarer still
    assert chance_of_ever_deciding((1 + delta) / 2, delta, alpha, 100)[1] < in_favour


def test_evidence_decides_what_is_plain():
    against, _ = chance_of_ever_deciding(0.4, 0.05, 1e-6, 100)
    _, in_favour = chance_of_ever_deciding(0.001, 0.05, 0.01, 160)
    assert against > 0.999
    assert in_favour > 0.9
    assert c.failure_evidence(0, 0, 0.2) == c.FailureEvidence(pytest.approx(1.0), pytest.approx(1.0))


@pytest.mark.parametrize(("k", "n", "delta"), [(0, 30, 0.05), (3, 40, 0.1), (20, 20, 0.7), (500, 4000, 0.1)])
def test_evidence_is_the_mixture_of_likelihood_ratios(k, n, delta):
    def ratio(theta):
        power = (
            k * np.log(theta) + (n - k) * np.log1p(-theta) - k * np.log(delta) - (n - k) * np.log1p(-delta)
        )
        return np.exp(power)

    grid = (np.arange(200_000) + 0.5) / 200_000
    above = ratio(delta + (1 - delta) * grid).mean()
    below = ratio(delta * grid).mean()
    found = c.failure_evidence(k, n, delta)
    assert found.against == pytest.approx(above, rel=1e-5)
    assert found.in_favour == pytest.approx((below + (k == 0) * (1 - delta) ** -n) / 2, rel=1e-5)


def test_looking_at_fixed_size_tests_at_every_trial_would_alarm_too_often():
    """Why there is evidence: stopping at the first small tail probability alarms far more often than α."""
    delta, alpha, trials = 0.2, 0.05, 200
    alive, alarms = np.array([1.0]), 0.0
    for n in range(1, trials + 1):
        alive = np.convolve(alive, [1 - delta, delta])
        seen = np.array([c.binomial_test_failures(k, n, delta) < alpha for k in range(n + 1)])
        alarms += alive[seen].sum()
        alive[seen] = 0.0
    assert alarms > 2 * alpha


def test_betting_bounds_hold_at_every_sample_size_at_once():
    """The interval of n samples is inside those of all smaller sizes made with the same bets: the running
    maximum of the capital is used, so one miss in n looks costs no more than δ (Ville)."""
    rng, trials, n, delta = np.random.default_rng(11), 2000, 120, 0.1
    values = (rng.random((trials, n)) < 0.3) * 1.0
    bets = np.sqrt(2 * np.log(1 / delta) / (n * c._plug_in_variances(values)))
    at_mean = c._peak_log_capital(c._in_lanes(values), c._in_lanes(bets), np.full(trials, 0.3))
    ever = int((at_mean >= np.log(1 / delta)).sum())
    assert c.binomial_test_failures(ever, trials, delta) > FALSE_ALARM
    assert ever > 0


@pytest.mark.parametrize("parts", [7, [1.0, 2.0, 4.0]])
def test_a_suite_of_dependent_events_alarms_within_its_budget(parts):
    """The worst dependence is disjoint events: their probabilities add up, to at most the budget."""
    shares = c.false_alarm_budget(0.02, parts)
    uniform = np.random.default_rng(5).random(20_000)
    ends = np.cumsum(shares)
    alarms = sum(
        ((uniform >= end - share) & (uniform < end)).sum() for share, end in zip(shares, ends, strict=True)
    )
    assert ends[-1] <= 0.02
    assert c.binomial_test_failures(int(alarms), len(uniform), 0.02) > FALSE_ALARM


def test_hoeffding_and_bernstein_are_their_formulas():
    values = np.array([[0.1, 0.4, 0.4, 0.2, 0.9, 0.0, 0.3, 0.3] * 40])
    n, mean, variance = values.size, values.mean(), values.var(ddof=1)
    low, high = c.hoeffding_bounds(values, 0.05, 0.2)
    assert low[0] == pytest.approx(mean - np.sqrt(np.log(20) / (2 * n)), rel=1e-12)
    assert high[0] == pytest.approx(mean + np.sqrt(np.log(5) / (2 * n)), rel=1e-12)
    low, high = c.bernstein_bounds(values, 0.05, 0.2)
    for end, sign, delta in ((low, -1, 0.05), (high, 1, 0.2)):
        log = np.log(2 / delta)
        radius = np.sqrt(2 * variance * log / n) + 7 * log / (3 * (n - 1))
        assert end[0] == pytest.approx(mean + sign * radius, rel=1e-12)
    for bounds in (c.hoeffding_bounds, c.bernstein_bounds):
        assert bounds(values, 0.0, 0.0) == (0.0, 1.0)
        assert bounds(values[:, :2], 1e-9, 1e-9) == (0.0, 1.0)  # cut at the trivial ends


def test_intervals_carry_their_sizes():
    for interval in (c.binomial_interval(3, 20, 0.9), c.mean_interval(np.full(20, 0.15), 0.9)):
        assert (interval.n, interval.confidence) == (20, 0.9)
        assert interval.estimate == pytest.approx(0.15)
    assert c.binomial_interval(3, 20) == c.binomial_interval(3, 20, 0.95, "both")
    assert c.binomial_bounds(1, 20, 0.05, 0.05)[0] == pytest.approx(1 - 0.95 ** (1 / 20))  # above 0
    assert c.false_alarm_budget(1.0, 2).sum() <= 1
    with pytest.raises(ParameterError, match="delta"):
        c.false_alarm_budget(1.5, 2)


def test_budget_shares_add_up():
    shares = c.false_alarm_budget(0.05, [3, 1, 1])
    assert shares.sum() <= 0.05
    np.testing.assert_allclose(shares, [0.03, 0.01, 0.01])
    np.testing.assert_allclose(c.false_alarm_budget(0.05, 4), 0.0125)
    assert c.false_alarm_budget(1e-3, 1000).sum() <= 1e-3


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40), st.sampled_from(list(c._METHODS)))
def test_intervals_contain_the_mean_and_reflect(values, method):
    interval = c.mean_interval(values, 0.9, method=method)
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1
    assert interval.n == len(values)
    mirrored = c.mean_interval(1 - np.array(values), 0.9, method=method)
    assert mirrored.low == pytest.approx(1 - interval.high, abs=1e-9)
    wider = c.mean_interval(values, 0.999, method=method)
    one_sided = c.mean_interval(values, 0.9, side="upper", method=method)
    assert wider.low <= interval.low + 1e-9
    assert one_sided.low == 0
    assert one_sided.high <= interval.high + 1e-9


def test_interval_membership_and_errors():
    interval = c.Interval(0.2, 0.1, 0.4, 10)
    assert 0.1 in interval
    assert 0.45 not in interval
    assert interval.width == pytest.approx(0.3)
    with pytest.raises(ParameterError, match="low ≤ estimate"):
        c.Interval(0.5, 0.6, 0.7, 3)
    with pytest.raises(ParameterError, match="low ≤ estimate"):
        c.Interval(np.nan, 0.0, 1.0, 3)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: c.mean_interval([0.1, 1.2]), ParameterError),
        (lambda: c.mean_interval([0.1, np.nan]), NonFiniteError),
        (lambda: c.mean_interval([]), ShapeError),
        (lambda: c.mean_interval([[0.1]]), ShapeError),
        (lambda: c.mean_interval([0.1], 1.0), ParameterError),
        (lambda: c.mean_interval([0.1], method="bernstein"), ParameterError),
        (lambda: c.mean_interval([0.1], method="normal"), ParameterError),
        (lambda: c.mean_interval([0.1], side="left"), ParameterError),
        (lambda: c.binomial_interval(5, 4), ParameterError),
        (lambda: c.binomial_test_failures(5, 4, 0.1), ParameterError),
        (lambda: c.failure_evidence(5, 4, 0.1), ParameterError),
        (lambda: c.failure_evidence(1, 4, 0.0), ParameterError),
        (lambda: c.failure_evidence(1, 4, 1.0), ParameterError),
        (lambda: c.false_alarm_budget(0.1, 0), ParameterError),
        (lambda: c.false_alarm_budget(0.1, [1.0, -1.0]), ParameterError),
    ],
)
def test_bad_input_raises_typed_errors(call, error):
    with pytest.raises(error):
        call()
