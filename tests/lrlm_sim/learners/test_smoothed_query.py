"""Low logit rank from conditional samples: smoothing, estimates, and what they cost."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrlm_sim import distances
from lrlm_sim.learners.smoothed_query import (
    EstimatedOracle,
    SmoothedQueryLearner,
    direct_cost,
    floor_draws,
    logit_error,
    smoothed_logit,
    smoothing_weight,
)
from lrlm_sim.testing import check_oracle
from oracles import ISAN, ConditionalSampleAccess, LogitAccess, NoisyParity, SampleAccess
from oracles.errors import BudgetError, HorizonError, ParameterError, TooLargeError, ZeroProbabilityError


@given(u=st.floats(-400, 400), tau=st.floats(1e-6, 1))
def test_smoothed_logit_is_the_logit_of_the_mixture(u, tau):
    value = float(smoothed_logit(u, tau))
    assert abs(value) <= 0.5 * math.log((2 - tau) / tau) + 1e-12
    p = 1 / (1 + math.exp(min(700, -2 * u)))
    q = 1 / (1 + math.exp(min(700, 2 * u)))
    mixed = (1 - tau) * np.array([p, q]) + tau / 2
    assert value == pytest.approx(0.5 * math.log(mixed[0] / mixed[1]), abs=1e-9)


@given(horizon=st.integers(1, 1000), epsilon=st.floats(1e-4, 1))
def test_smoothing_weight_is_the_largest_power_of_two_within_its_share(horizon, epsilon):
    tau = smoothing_weight(horizon, epsilon)
    assert horizon * tau / 2 <= epsilon / 16 < horizon * tau
    assert math.log2(tau) == round(math.log2(tau))


def test_sizes_of_the_theory():
    assert floor_draws(0.25, 0.5, 0.25) == 48 / (0.25 * 0.25) * 4
    assert direct_cost(3.0, 2, 0.1, 0.05) == pytest.approx(math.exp(6) * 2 * math.log(40) / 0.01)
    assert direct_cost(1e4, 2, 0.1, 0.05) == math.inf


def test_floor_draws_give_the_logits_they_promise():
    """A Chernoff size: 200 estimates at failure 1e-6 each, so a false alarm has probability ≤ 2e-4·10⁻²."""
    teacher, tau, xi = NoisyParity.random(3, 0.0, 0), 0.25, 0.25
    draws = int(floor_draws(tau / 2, xi, 1e-8))
    estimated = EstimatedOracle(ConditionalSampleAccess(teacher), draws, tau, 4)
    for history in ([0, 0, 0], [0, 1, 0], [1, 1, 1], [1, 0], []):
        law = np.exp(teacher.next_log_probs([history])[0])
        truth = np.log((1 - tau) * law + tau / 2)
        answer = estimated.next_log_probs([history])[0]
        assert np.abs((answer - answer.mean()) - (truth - truth.mean())).max() <= xi


def test_the_estimated_oracle_is_an_oracle_that_pays_once():
    access = ConditionalSampleAccess(ISAN.random(2, 3, 4, rng=0))
    estimated = EstimatedOracle(access, 50, 0.1, 4)
    check_oracle(estimated)
    spent = access.ledger
    assert spent.calls == 50 * len(estimated.counts) == 50 * spent.distinct_prefixes
    check_oracle(estimated)
    assert access.ledger == spent
    assert np.exp(estimated.next_log_probs([[0, 1]])).min() >= 0.1 / 3


def test_logit_error_is_about_the_error_seen():
    teacher = ISAN.random(2, 3, 5, rng=1)
    tau, draws = 0.05, 2000
    estimated = EstimatedOracle(ConditionalSampleAccess(teacher), draws, tau, 5)
    histories = [list(h) for h in np.indices((3, 3, 3)).reshape(3, -1).T]
    truth = np.log((1 - tau) * np.exp(teacher.next_log_probs(histories)) + tau / 3)
    errors = estimated.next_log_probs(histories) - truth
    errors -= errors.mean(axis=1, keepdims=True)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(logit_error(estimated.counts, tau), rel=0.4)


@pytest.mark.parametrize(
    "teacher", [ISAN.random(3, 3, 5, rng=0), NoisyParity.random(5, 0.0, 0)], ids=["isan", "noiseless parity"]
)
def test_total_variation_falls_with_samples(teacher):
    """Fixed seeds; medians of three fits. Noiseless parity has tokens of probability zero."""
    rank = 3 if isinstance(teacher, ISAN) else 1
    medians = []
    for draws in (100, 3000, 90_000):
        learner = SmoothedQueryLearner(rank=rank, draws=draws, tau=min(0.1, 1 / draws**0.5) / teacher.horizon)
        fits = [learner.fit(ConditionalSampleAccess(teacher, seed=s), rng=s) for s in range(3)]
        assert all(fit.status.ok for fit in fits)
        medians.append(np.median([distances.total_variation(teacher, fit.model) for fit in fits]))
    assert medians[1] < medians[0] / 2
    assert medians[2] < medians[1] / 2
    assert medians[2] < 0.02


def test_zero_probabilities_need_smoothing_and_the_direct_cost_grows():
    teacher = NoisyParity.random(5, 0.0, 0)
    with pytest.raises(ZeroProbabilityError):
        LogitAccess(teacher).logits([[0, 0, 0, 0, 0]])
    costs = []
    for draws in (300, 30_000):
        result = SmoothedQueryLearner(rank=1, draws=draws).fit(ConditionalSampleAccess(teacher), rng=0)
        assert result.status.ok
        assert result.stats["unseen_tokens"] > 0
        costs.append(result.stats["direct_cost_per_logit"] / draws)
    assert costs[0] > 10
    assert costs[1] > 100 * costs[0]


def test_queries_are_charged_to_the_samples():
    access = ConditionalSampleAccess(ISAN.random(2, 2, 4, rng=0))
    result = SmoothedQueryLearner(rank=2, epsilon=0.2).fit(access, rng=0)
    assert result.stats["draws"] == 100
    assert result.stats["smoothing_bound"] == pytest.approx(0.05)
    assert result.ledger.calls == 100 * result.stats["histories_estimated"]
    assert result.ledger.generated_tokens == result.ledger.calls


def test_rank_too_small_is_reported():
    access = ConditionalSampleAccess(ISAN.random(3, 3, 5, rng=0))
    result = SmoothedQueryLearner(rank=1, draws=100_000, tau=1e-3, tolerance=0.05).fit(access, rng=0)
    assert result.status.code == "rank_too_small"


def test_same_seeds_same_model():
    teacher = ISAN.random(2, 3, 4, rng=0)
    learner = SmoothedQueryLearner(rank=2)
    first, second = (learner.fit(ConditionalSampleAccess(teacher, seed=3), rng=5) for _ in range(2))
    for mine, its in zip(first.model.moves, second.model.moves, strict=True):
        np.testing.assert_array_equal(mine, its)
    assert first.ledger == second.ledger


@pytest.mark.parametrize("budget", [1, 500, 5000])
def test_budget_errors_say_how_far_it_came(budget):
    with pytest.raises(BudgetError) as caught:
        SmoothedQueryLearner(rank=2).fit(
            ConditionalSampleAccess(ISAN.random(2, 3, 5, rng=0), budget=budget), 0
        )
    assert caught.value.partial["histories_estimated"] == budget // 400
    assert caught.value.ledger.calls <= budget


def test_theory_preset_names_its_numbers():
    teacher = ISAN.random(2, 2, 3, rng=0)
    with pytest.raises(TooLargeError, match="samples per history"):
        SmoothedQueryLearner(preset="theory", rank=2).fit(ConditionalSampleAccess(teacher), rng=0)
    learner = SmoothedQueryLearner(preset="theory", rank=2, draws=1000)
    result = learner.fit(ConditionalSampleAccess(teacher), rng=0)
    assert result.stats["tau"] == smoothing_weight(3, 0.1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tau": 0.0}, "tau must be positive"),
        ({"tau": 1.5}, "tau"),
        ({"draws": 0}, "draws"),
        ({"rank": 0}, "rank"),
        ({"noise": float("inf")}, "noise"),
        ({"preset": "theory"}, "needs rank"),
        ({"preset": "fast"}, "preset"),
        ({"sampler": "none"}, "sampler"),
    ],
)
def test_wrong_parameters(wrong, message):
    with pytest.raises(ParameterError, match=message):
        SmoothedQueryLearner(**wrong)


def test_wrong_access_and_horizon():
    teacher = ISAN.random(2, 2, 3, rng=0)
    with pytest.raises(ParameterError, match="needs ConditionalSampleAccess"):
        SmoothedQueryLearner().fit(SampleAccess(teacher))
    with pytest.raises(HorizonError, match="past the teacher's 3"):
        SmoothedQueryLearner(horizon=4).fit(ConditionalSampleAccess(teacher))
