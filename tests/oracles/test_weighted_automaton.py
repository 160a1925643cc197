"""Weighted automata: the product formula, signs, cancellation, refused weights."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oracles import HiddenMarkovModel, ProbabilisticAutomaton, WeightedAutomaton
from oracles.errors import NonFiniteError, ParameterError, ProbabilityError, ShapeError
from tests.oracles.enumeration import all_strings, check_exact, check_frequencies
from tests.registry import per_step_hmm, signed_automaton, sparse_hmm


def definition(automaton: WeightedAutomaton):
    """α A[x_1] ··· A[x_T] β."""

    def probability(string):
        row = automaton.initial
        for t, token in enumerate(string):
            row = row @ (
                automaton.weights[t, token] if automaton.weights.ndim == 4 else automaton.weights[token]
            )
        return row @ automaton.final

    return probability


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(0, 99))
def test_exact_with_weights_of_both_signs(states, vocab_size, horizon, seed):
    automaton = signed_automaton(HiddenMarkovModel.random(states, vocab_size, horizon, seed), seed)
    if states > 1 and vocab_size > 1:
        assert (automaton.weights < 0).any()
    check_exact(automaton, definition(automaton))


@given(st.integers(1, 3), st.integers(1, 3), st.integers(2, 5), st.integers(0, 99))
def test_exact_homogeneous(states, vocab_size, horizon, seed):
    rng = np.random.default_rng(seed)
    joint = rng.dirichlet(np.ones(vocab_size * states), states).reshape(states, vocab_size, states)
    basis = np.linalg.qr(rng.standard_normal((states, states)))[0]
    weights = basis.T @ joint.transpose(1, 0, 2) @ basis
    automaton = WeightedAutomaton(
        rng.dirichlet(np.ones(states)) @ basis, weights, basis.T @ np.ones(states), horizon
    )
    check_exact(automaton, definition(automaton))


def test_cancellation_to_zero_is_impossible_not_noise():
    """In a rotated basis zero probabilities come out as rounding noise; they must be exact zeros."""
    source = sparse_hmm()
    strings = all_strings(3, 5)
    expected = source.score(strings)
    for seed in range(20):
        automaton = signed_automaton(source, seed)
        scores = automaton.score(strings)
        np.testing.assert_array_equal(scores == -np.inf, expected == -np.inf)
        np.testing.assert_allclose(scores[scores > -np.inf], expected[expected > -np.inf], atol=1e-10)


def test_long_products_do_not_underflow_and_scaling_does_not_matter():
    source = HiddenMarkovModel.random(3, 4, 1000, 1)
    form = source.linear_form()
    strings = source.sample(20, 0)
    automaton = WeightedAutomaton(1e3 * form.initial, np.stack(form.operators), 1e-3 * form.final, 1000)
    np.testing.assert_allclose(automaton.score(strings), source.score(strings), rtol=1e-11)


def test_total_mass_must_be_one():
    with pytest.raises(ProbabilityError, match=r"must be 1, got 8: divide final by it"):
        WeightedAutomaton([1.0], [[[1.0]], [[1.0]]], [1.0], 3)
    with pytest.raises(ProbabilityError, match="must be positive"):
        WeightedAutomaton([-1.0], [[[0.5]], [[0.5]]], [1.0], 3)
    with pytest.raises(ProbabilityError):
        WeightedAutomaton([1.0 + 2e-9], [[[0.5]], [[0.5]]], [1.0], 3)
    nearly = WeightedAutomaton([1.0 + 5e-10], [[[0.5]], [[0.5]]], [1.0], 3)
    check_exact(nearly, definition(nearly), 1e-14)
    with pytest.raises(NonFiniteError, match="overflows"):
        WeightedAutomaton([1.0], [[[1e200]], [[1e200]]], [1.0], 3)


def test_negative_probabilities_are_refused_when_met():
    """P = (0.6, 0.5, −0.1): the mass is one, the law is not a law."""
    automaton = WeightedAutomaton([1.0], [[[0.6]], [[0.5]], [[-0.1]]], [1.0], 1)
    with pytest.raises(ProbabilityError, match=r"-0.1 < 0 at position 0"):
        automaton.log_probs(automaton.start(1))
    longer = WeightedAutomaton([1.0], [[[0.6]], [[0.5]], [[-0.1]]], [1.0], 2)
    with pytest.raises(ProbabilityError):
        longer.advance(longer.start(1), [2])


def test_rounding_negatives_are_zero():
    automaton = WeightedAutomaton([1.0], [[[0.5]], [[0.5 + 1e-12]], [[-1e-12]]], [1.0], 1)
    np.testing.assert_allclose(np.exp(automaton.log_probs(automaton.start(1))), [[0.5, 0.5, 0.0]], atol=1e-11)


def test_tiny_probabilities_without_cancellation_survive():
    automaton = WeightedAutomaton([1.0], [[[1.0]], [[1e-200]]], [1.0], 2)
    np.testing.assert_allclose(automaton.score([[1, 0], [0, 1]]), np.log(1e-200), rtol=1e-14)


def test_arguments_are_copied():
    arrays = [np.ones(1), np.array([[[0.25]], [[0.75]]]), np.ones(1)]
    automaton = WeightedAutomaton(*arrays, 2)
    for array in arrays:
        array[:] = 7.0
    np.testing.assert_allclose(np.exp(automaton.score([[0, 1]])), 0.1875)


def test_linear_form_is_the_automaton():
    automaton = signed_automaton(per_step_hmm(2, 2, 4, 0), 3)
    form = automaton.linear_form()
    np.testing.assert_array_equal(np.stack(form.operators), automaton.weights)
    pfa = ProbabilisticAutomaton(form.initial * 0 + 0.5, np.full((2, 2, 2), 0.25), 4)
    check_exact(signed_automaton(pfa, 0), lambda string: 2.0**-4)


def test_samples_follow_the_law():
    automaton = signed_automaton(sparse_hmm(), 5)
    check_frequencies(automaton.sample(20_000, 1), np.exp(sparse_hmm().score(all_strings(3, 5))), 3)


def test_bad_arrays():
    one, half = np.ones(1), np.full((2, 1, 1), 0.5)
    for kind, arguments in [
        (ShapeError, (np.ones((1, 1)), half, one, 2)),
        (ShapeError, (one, half, np.ones(2), 2)),
        (ShapeError, (np.ones(2), half, np.ones(2), 2)),
        (ShapeError, (one, np.full((3, 2, 1, 1), 0.5), one, 2)),
        (ShapeError, (one, np.ones((0, 1, 1)), one, 2)),
        (ShapeError, (one, np.full((2, 1), 0.5), one, 2)),
        (NonFiniteError, (one, np.full((2, 1, 1), np.nan), one, 2)),
        (ParameterError, (one, half, one, 0)),
    ]:
        with pytest.raises(kind) as caught:
            WeightedAutomaton(*arguments)
        assert "\n" not in str(caught.value)
