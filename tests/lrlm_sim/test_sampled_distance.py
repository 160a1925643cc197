import math

import numpy as np
import pytest
from scipy.special import ndtri

from lrlm_sim import distances as d
from lrlm_sim import sampled_distance
from lrlm_sim.confidence import MeanEstimate, binomial_test_failures
from oracles import ISAN, HiddenMarkovModel, NGram, Tabular
from oracles.errors import HorizonError, ParameterError
from tests.lrlm_sim.test_distances import FALSE_ALARM, brute, strings


def deviation_bound(values, weights, n):
    """Bernstein: |mean of n samples − expectation| exceeds this with probability ≤ FALSE_ALARM."""
    mean = values @ weights
    variance, scale = ((values - mean) ** 2) @ weights, np.abs(values - mean)[weights > 0].max()
    log = np.log(2 / FALSE_ALARM)
    return np.sqrt(2 * variance * log / n) + 2 * scale * log / (3 * n)


@pytest.mark.parametrize("seed", range(5))
def test_estimates_agree_with_the_exact_values(seed):
    rng, n = np.random.default_rng(seed), 20_000
    p = [HiddenMarkovModel.random(3, 3, 5, rng), ISAN.random(3, 3, 5, rng)][seed % 2]
    q = HiddenMarkovModel.random(2, 3, 5, rng)
    of_p, of_q = brute(p), brute(q)
    tv = d.estimate_total_variation(p, q, n, 1 - FALSE_ALARM, rng)
    assert d.total_variation(p, q) in tv
    excess = np.maximum(0, 1 - of_q / of_p)
    assert abs(tv.estimate - d.total_variation(p, q)) <= deviation_bound(excess, of_p, n)
    sequence = d.kl(p, q, n, rng, method="sequence")
    assert abs(sequence.estimate - d.kl_exact(p, q)) <= deviation_bound(np.log(of_p / of_q), of_p, n)
    chain = d.kl(p, q, n, rng)
    profile = d.kl_profile(p, q, n, rng)
    assert profile.shape == (n, 5)
    sums = _chain_terms(p, q)
    assert abs(chain.estimate - d.kl_exact(p, q)) <= deviation_bound(sums, of_p, n)
    assert chain.standard_error < sequence.standard_error
    assert chain.low < chain.estimate < chain.high


def _chain_terms(p, q):
    """Σ_t KL(P(·|x_<t) ‖ Q(·|x_<t)) of every string x, by hand."""
    x = strings(p.vocab_size, p.horizon)
    total = np.zeros(len(x))
    for t in range(p.horizon):
        log_p, log_q = p.next_log_probs(x[:, :t]), q.next_log_probs(x[:, :t])
        total += (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return total


def test_estimated_interval_covers_the_exact_value():
    p, q = HiddenMarkovModel.random(3, 3, 4, 0), HiddenMarkovModel.random(3, 3, 4, 1)
    exact, rng, trials = d.total_variation(p, q), np.random.default_rng(0), 400
    missed = sum(exact not in d.estimate_total_variation(p, q, 60, 0.8, rng) for _ in range(trials))
    assert binomial_test_failures(missed, trials, 0.2) > FALSE_ALARM


def test_long_strings_whose_probability_underflows():
    p = HiddenMarkovModel.random(3, 30, 400, 0)
    q = HiddenMarkovModel(p.initial, p.transition, 0.999 * p.emission + 0.001 / 30, 400)
    assert np.exp(p.score(p.sample(1, 0)))[0] == 0
    interval = d.estimate_total_variation(p, q, 500, 0.95, 0)
    assert 0 < interval.low < interval.high < 0.5
    assert d.estimate_total_variation(p, p, 500, 0.95, 0).estimate == 0
    opposite = HiddenMarkovModel.random(3, 30, 400, 1)
    assert d.estimate_total_variation(p, opposite, 500, 0.95, 0).low > 0.98


def test_models_with_impossible_strings():
    p, q = Tabular(np.array([[0.5, 0.25], [0.25, 0]])), Tabular(np.array([[0.5, 0], [0.25, 0.25]]))
    interval = d.estimate_total_variation(p, q, 5000, 1 - FALSE_ALARM, 0)
    assert 0.25 in interval
    assert interval.width < 0.1
    for method in ("chain", "sequence"):
        infinite = d.kl(p, q, 200, 0, method=method)
        assert (infinite.estimate, infinite.low, infinite.high) == (np.inf, np.inf, np.inf)
    rare = Tabular(np.array([[1 - 1e-9, 0], [0, 1e-9]]))
    point = Tabular(np.array([[1.0, 0], [0, 0]]))
    assert d.kl(rare, point, 10, 0).estimate == np.inf  # the chain rule sees tokens that were not drawn
    assert np.isfinite(d.kl(rare, point, 10, 0, method="sequence").estimate)
    assert d.kl(point, rare, 10, 0).estimate == pytest.approx(1e-9, rel=1e-6)


def test_per_token_divides_by_the_length():
    p, q = HiddenMarkovModel.random(2, 3, 8, 0), HiddenMarkovModel.random(2, 3, 8, 1)
    whole, token = d.kl(p, q, 300, 5), d.kl_per_token(p, q, 300, 5)
    assert token.estimate == pytest.approx(whole.estimate / 8)
    assert token.standard_error == pytest.approx(whole.standard_error / 8)
    short = d.kl_per_token(p, q, 300, 5, length=4)
    assert short.estimate == pytest.approx(d.kl(p, q, 300, 5, length=4).estimate / 4)


def test_results_depend_on_the_seed_alone():
    p, q = HiddenMarkovModel.random(2, 3, 8, 0), HiddenMarkovModel.random(2, 3, 8, 1)
    first, again = (d.estimate_total_variation(p, q, 1000, 0.9, 3) for _ in range(2))
    assert first == again
    assert first != d.estimate_total_variation(p, q, 1000, 0.9, 4)
    assert d.kl(p, q, 100, 3) == d.kl(p, q, 100, 3)


def test_samples_come_in_blocks(monkeypatch):
    p, q = NGram.random(1, 3, 6, 0), HiddenMarkovModel.random(2, 3, 6, 1)
    whole = d.estimate_total_variation(p, q, 1000, 0.9, 3)
    monkeypatch.setattr(sampled_distance, "_STRINGS", 64)
    assert d.estimate_total_variation(p, q, 1000, 0.9, 3).estimate == pytest.approx(whole.estimate, abs=1e-12)


@pytest.mark.parametrize(
    "call",
    [
        lambda p: d.estimate_total_variation(p, p, 0),
        lambda p: d.estimate_total_variation(p, p, 10, 1.5),
        lambda p: d.kl(p, p, 10, 0, method="exact"),
        lambda p: d.kl(p, p, 10, 0, confidence=1.0),
        lambda p: d.kl_per_token(p, p, 10, 0, length=0),
    ],
)
def test_bad_parameters_are_refused(call):
    with pytest.raises(ParameterError):
        call(HiddenMarkovModel.random(2, 3, 4, 0))


P, Q = HiddenMarkovModel.random(3, 3, 6, 0), HiddenMarkovModel.random(2, 3, 6, 1)


@pytest.mark.parametrize("length", [2, 3])
@pytest.mark.parametrize("method", ["chain", "sequence"])
def test_kl_of_shorter_strings_is_that_of_their_law(length, method):
    found = d.kl(P, Q, 4000, 2, method=method, length=length, confidence=1 - FALSE_ALARM)
    assert found.low - 1e-12 <= d.kl_exact(P, Q, length=length) <= found.high + 1e-12
    assert found.high < d.kl_exact(P, Q)  # and not of the whole strings
    first, again, other = (d.kl(P, Q, 100, seed, method=method, length=length) for seed in (2, 2, 3))
    assert first == again != other


def test_lengths_make_models_of_two_horizons_comparable():
    longer = HiddenMarkovModel(Q.initial, Q.transition, Q.emission, 9)
    interval = d.estimate_total_variation(P, longer, 3000, 1 - FALSE_ALARM, 0, length=4)
    assert d.total_variation(P, Q, length=4) in interval
    assert interval.high < d.total_variation(P, Q) + 0.05
    assert d.kl_profile(P, longer, 10, 0, length=4).shape == (10, 4)
    assert d.kl_per_token(P, longer, 10, 0, length=4) == d.kl_per_token(P, Q, 10, 0, length=4)
    with pytest.raises(HorizonError):
        d.kl_profile(P, longer, 10, 0)


def test_per_token_passes_the_method_and_confidence_on():
    for method in ("chain", "sequence"):
        whole = d.kl(P, Q, 200, 7, method=method, confidence=0.8)
        token = d.kl_per_token(P, Q, 200, 7, method=method, confidence=0.8)
        assert token.estimate == pytest.approx(whole.estimate / 6)
        assert (token.low, token.high) == pytest.approx((whole.low / 6, whole.high / 6))
        assert (token.n, token.confidence) == (200, 0.8)


def test_the_default_confidence_is_95_percent():
    for found in (
        d.estimate_total_variation(P, Q, 50, rng=0),
        d.kl(P, Q, 50, 0),
        d.kl_per_token(P, Q, 50, 0),
    ):
        assert found.confidence == 0.95
        assert found.n == 50
    assert d.estimate_total_variation(P, Q, 50, rng=0) == d.estimate_total_variation(P, Q, 50, 0.95, 0)


def test_mean_estimates_are_the_textbook_formula():
    terms = np.array([0.5, 2.0, 1.0, 0.0])
    found = sampled_distance._mean_estimate(terms, 0.9)
    error = terms.std(ddof=1) / 2
    radius = ndtri(0.95) * error
    assert found.estimate == terms.mean()
    assert found.standard_error == pytest.approx(error)
    assert (found.low, found.high) == pytest.approx((max(0, terms.mean() - radius), terms.mean() + radius))
    assert sampled_distance._mean_estimate(terms - 5, 0.9).low == 0  # a divergence is not negative
    one = sampled_distance._mean_estimate(np.array([0.25]), 0.9)
    assert one == MeanEstimate(0.25, math.inf, 0.0, math.inf, 1, 0.9)
    infinite = sampled_distance._mean_estimate(np.array([0.25, math.inf]), 0.9)
    assert infinite == MeanEstimate(math.inf, 0.0, math.inf, math.inf, 2, 0.9)


def test_terms_are_accurate_for_close_models_and_capped_at_one():
    log_p = np.log([0.5, 0.5, 0.5, 0.1])
    log_q = log_p + np.array([-1e-12, 0.3, -np.inf, -0.5])
    expected = [1e-12, 0.0, 1.0, 1 - math.exp(-0.5)]
    np.testing.assert_allclose(sampled_distance.total_variation_terms(log_p, log_q), expected, rtol=1e-3)


def test_blocks_are_bounded_by_strings_and_by_cells(monkeypatch):
    sizes = []

    class Watched(Tabular):
        def sample(self, n, rng=None, history=None, length=None):
            sizes.append((n, length))
            return super().sample(n, rng, history, length)

    model = Watched(np.full((2, 2), 0.25))
    monkeypatch.setattr(sampled_distance, "_STRINGS", 4)
    d.estimate_total_variation(model, model, 10, rng=0, length=1)
    assert sizes == [(4, 1), (4, 1), (2, 1)]
    sizes.clear()
    monkeypatch.setattr(sampled_distance, "_CELLS", 6)  # three strings over two tokens
    d.kl(model, model, 7, 0)
    assert sizes == [(3, 2), (3, 2), (1, 2)]
    sizes.clear()
    monkeypatch.setattr(sampled_distance, "_CELLS", 1)
    d.kl(model, model, 2, 0)
    assert sizes == [(1, 2), (1, 2)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: d.kl(P, Q, 10, 0, method="exact"), "method must be 'chain' or 'sequence', got 'exact'"),
        (lambda: d.kl_per_token(P, Q, 10, 0, length=0), "^strings of length 0 have no tokens to divide"),
        (lambda: d.kl(P, Q, 0, 0), "^n must be"),
        (lambda: d.estimate_total_variation(P, Q, 0), "^n must be"),
    ],
)
def test_messages_name_what_is_wrong(call, message):
    with pytest.raises(ParameterError, match=message):
        call()
