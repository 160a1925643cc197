"""Goldreich–Levin / Kushilevitz–Mansour on label logits, and Fourier terms read off networks."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrlm_sim.distances import total_variation
from lrlm_sim.learners.boolean_fourier import FourierLearner, fourier_terms
from oracles import (
    ISAN,
    LogitAccess,
    NoisyCopy,
    NoisyParity,
    SampleAccess,
    SparsePolynomial,
)
from oracles.errors import BudgetError, HorizonError, ParameterError


def brute_force(teacher, n):
    """f̂(S) of every S by the sum over the cube."""
    cube = np.array(list(itertools.product((0, 1), repeat=n))).reshape(2**n, n)
    laws = teacher.next_log_probs(cube)
    values = (laws[:, 1] - laws[:, 0]) / 2
    characters = 1 - 2 * (cube @ cube.T % 2)
    return {tuple(np.flatnonzero(s)): c for s, c in zip(cube, characters @ values / 2**n, strict=True)}


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(0, 4))
def test_sparse_polynomials_are_found_exactly(seed, n, terms):
    """Weights of size 1, θ = 0.4: a bucket errs when an estimate is 5 standard errors off."""
    teacher = SparsePolynomial.random(n, min(terms, 2**n - 1), seed, bias=float(seed % 2))
    result = FourierLearner(threshold=0.4).fit(LogitAccess(teacher, seed=1), 0)
    assert result.status.ok
    assert total_variation(teacher, result.model) < 1e-12
    found = dict(zip(result.stats["subsets"], result.stats["coefficients"], strict=True))
    expected = {s: w / 2 for s, w in zip(teacher.subsets, teacher.weights, strict=True)}
    expected |= {(): teacher.bias / 2} if teacher.bias else {}
    assert found.keys() == expected.keys()
    assert all(abs(found[s] - expected[s]) < 1e-12 for s in expected)


def test_the_search_follows_few_buckets_and_pays_two_labels_per_pair():
    teacher = SparsePolynomial(12, ((0, 5, 11), (2, 3)), np.array([1.0, -1.5]))
    access = LogitAccess(teacher, seed=0)
    result = FourierLearner(threshold=0.4, pairs=5000, samples=100).fit(access, 0)
    assert result.stats["buckets_per_level"] == [2] * 12
    upper = 64 + 12 * 2 * 5000 + 100 + 256 + 4 * 12
    assert 0.2 * upper < result.ledger.calls <= upper  # equal strings of a batch are paid once
    assert access.ledger == result.ledger
    averages = result.stats["averages"]
    assert np.abs(averages - result.stats["coefficients"]).max() < 0.6  # 100 samples, 6 standard errors


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(0, 6), st.integers(1, 4))
def test_terms_of_a_network_are_the_walsh_hadamard_transform(seed, n, width):
    teacher = ISAN.random(width, 2, n + 1, seed, orthogonal=bool(seed % 2))
    expected = {s: c for s, c in brute_force(teacher, n).items() if abs(c) >= 1e-6}
    found = fourier_terms(teacher, 1e-6)
    assert found.keys() == expected.keys()
    assert all(abs(found[s] - expected[s]) < 1e-10 for s in expected)


def test_terms_of_the_network_of_a_polynomial_at_twenty_bits():
    teacher = SparsePolynomial.random(20, 8, 3, bias=0.5)
    found = fourier_terms(teacher.to_isan())
    expected = {s: w / 2 for s, w in zip(teacher.subsets, teacher.weights, strict=True)} | {(): 0.25}
    assert found.keys() == expected.keys()
    assert all(abs(found[s] - expected[s]) < 1e-12 for s in expected)


def test_parity_is_one_character():
    teacher = NoisyParity.random(10, 0.1, 0)
    result = FourierLearner(threshold=0.5).fit(LogitAccess(teacher), 0)
    assert result.stats["subsets"] == [tuple(np.flatnonzero(teacher.secret))]
    assert total_variation(teacher, result.model) < 1e-12


def test_coefficients_below_the_threshold_are_reported():
    teacher = SparsePolynomial(8, ((0,), (1, 2), (3, 4), (5, 6, 7)), np.array([3.0, 0.7, 0.7, 0.7]))
    learner = FourierLearner(threshold=0.8, tolerance=0.1)
    result = learner.fit(LogitAccess(teacher), 0)
    assert result.stats["subsets"] == [(0,)]
    assert result.status.code == "not_accepted"
    assert result.stats["validation_error"] == pytest.approx(0.35 * 3**0.5, rel=0.3)


def test_too_many_buckets_are_reported():
    teacher = SparsePolynomial.random(10, 8, 0)
    result = FourierLearner(threshold=0.4, max_buckets=2).fit(LogitAccess(teacher), 0)
    assert result.stats["dropped"] > 0
    assert result.status.code == "too_many_buckets"


def test_bits_that_are_not_fair_are_reported():
    result = FourierLearner(threshold=0.4).fit(LogitAccess(NoisyCopy(3, 2, 0.1)), 0)
    assert result.status.code == "not_fair_bits"
    assert result.stats["largest_bit_logit"] == pytest.approx(np.log(9) / 2)


def test_noise_is_averaged_out():
    teacher = SparsePolynomial.random(8, 3, 1)
    result = FourierLearner(threshold=0.4).fit(LogitAccess(teacher, noise=0.01, seed=2), 0)
    assert result.status.ok
    assert sorted(result.stats["subsets"]) == sorted(teacher.subsets)
    assert np.abs(np.abs(result.stats["coefficients"]) - 0.5).max() < 0.01


@pytest.mark.parametrize("n", [0, 1])
def test_smallest_cubes(n):
    teacher = SparsePolynomial(n, (), np.empty(0), 1.0)
    result = FourierLearner().fit(LogitAccess(teacher), 0)
    assert result.status.ok
    assert result.stats["subsets"] == [()]
    assert total_variation(teacher, result.model) < 1e-12


def test_a_constant_zero_label_has_no_terms():
    result = FourierLearner().fit(LogitAccess(SparsePolynomial(4, (), np.empty(0))), 0)
    assert result.status.ok
    assert result.stats["subsets"] == []


def test_equal_seeds_give_equal_results_and_budgets_end_with_what_is_known():
    teacher = SparsePolynomial.random(8, 3, 1)
    first, second = (FourierLearner(threshold=0.4).fit(LogitAccess(teacher), 7) for _ in range(2))
    np.testing.assert_array_equal(first.stats["coefficients"], second.stats["coefficients"])
    with pytest.raises(BudgetError) as caught:
        FourierLearner(threshold=0.4, pairs=2000).fit(LogitAccess(teacher, budget=3000), 7)
    assert caught.value.ledger.calls == 3000
    assert caught.value.partial["level"] >= 1
    assert all(max(s, default=0) < caught.value.partial["level"] for s in caught.value.partial["buckets"])


@pytest.mark.parametrize(
    "wrong",
    [{"threshold": 0}, {"pairs": 0}, {"samples": 0}, {"tolerance": -1}, {"max_buckets": 0}, {"horizon": 0}],
)
def test_wrong_parameters(wrong):
    with pytest.raises(ParameterError):
        FourierLearner(**wrong)


def test_wrong_teachers():
    learner, access = FourierLearner(), LogitAccess(ISAN.random(2, 3, 4, 0))
    with pytest.raises(ParameterError, match="binary"):
        learner.fit(access)
    with pytest.raises(ParameterError, match="binary"):
        fourier_terms(ISAN.random(2, 3, 4, 0))
    with pytest.raises(ParameterError, match="LogitAccess"):
        learner.fit(SampleAccess(NoisyParity.random(3, 0.1, 0)))
    with pytest.raises(HorizonError):
        dataclasses.replace(learner, horizon=9).fit(LogitAccess(NoisyParity.random(3, 0.1, 0)))
