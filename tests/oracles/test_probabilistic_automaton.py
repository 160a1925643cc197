"""Probabilistic automata: sums over state paths, uniform walks of deterministic automata."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oracles import HiddenMarkovModel, ProbabilisticAutomaton
from oracles.errors import NonFiniteError, ParameterError, ProbabilityError, ShapeError
from tests.oracles.enumeration import (
    all_strings,
    check_exact,
    check_frequencies,
    check_same,
    dirichlet_with_zeros,
    probability_rank,
)
from tests.registry import random_pfa


def path_sum(automaton: ProbabilisticAutomaton):
    """Σ over state paths of the product of transition probabilities."""
    per_step = automaton.transitions.ndim == 4

    def probability(string):
        total = 0.0
        for path in itertools.product(range(automaton.n_states), repeat=len(string) + 1):
            weight = automaton.initial[path[0]]
            for t, token in enumerate(string):
                table = automaton.transitions[t] if per_step else automaton.transitions
                weight *= table[token, path[t], path[t + 1]]
            total += weight
        return total

    return probability


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(0, 99), st.booleans())
def test_exact(states, vocab_size, horizon, seed, per_step):
    automaton = random_pfa(states, vocab_size, horizon, seed, steps=horizon * per_step)
    check_exact(automaton, path_sum(automaton))


@given(st.integers(0, 99))
def test_exact_with_zeros(seed):
    rng = np.random.default_rng(seed)
    joint = dirichlet_with_zeros(rng, (3, 9), 0.7).reshape(3, 3, 3).transpose(1, 0, 2)
    automaton = ProbabilisticAutomaton(dirichlet_with_zeros(rng, (3,)), joint, 3)
    check_exact(automaton, path_sum(automaton))


def test_a_hidden_markov_model_is_one():
    model = HiddenMarkovModel.random(3, 2, 6, 0)
    joint = model.emission.T[:, :, None] * model.transition
    check_same(ProbabilisticAutomaton(model.initial, joint, 6), model)


def test_uniform_walk_counts_enabled_tokens():
    """No three zeros in a row, tokens drawn uniformly among the enabled ones."""
    delta = np.array([[1, 0], [2, 0], [-1, 0]])

    def probability(string):
        total, run = 1.0, 0
        for token in string:
            total *= (0.0 if token == 0 else 1.0) if run == 2 else 0.5
            run = run + 1 if token == 0 else 0
        return total

    automaton = ProbabilisticAutomaton.from_dfa(delta, 0, 7)
    check_exact(automaton, probability)
    assert max(probability_rank(automaton, cut) for cut in range(8)) == 3
    check_frequencies(automaton.sample(20_000, 3), np.exp(automaton.score(all_strings(2, 7))), 2)


def test_dead_ends_are_refused_only_when_reached_too_early():
    delta = [[1, -1], [2, -1], [-1, -1]]
    for horizon in (1, 2):
        walk = ProbabilisticAutomaton.from_dfa(delta, 0, horizon)
        np.testing.assert_array_equal(walk.sample(3, 0), np.zeros((3, horizon)))
    with pytest.raises(ParameterError, match="state 2 is reached after 2 tokens"):
        ProbabilisticAutomaton.from_dfa(delta, 0, 3)


def test_bad_arrays():
    fine = np.full((2, 2, 2), 0.25)
    for kind, arguments in [
        (ShapeError, ([[0.5, 0.5]], fine, 2)),
        (ShapeError, ([1.0], fine, 2)),
        (ShapeError, ([0.5, 0.5], np.full((3, 2, 2, 2), 0.25), 2)),
        (ShapeError, ([0.5, 0.5], np.full((2, 2), 0.5), 2)),
        (ProbabilityError, ([0.5, 0.6], fine, 2)),
        (ProbabilityError, ([0.5, 0.5], 2 * fine, 2)),
        (ProbabilityError, ([1.5, -0.5], fine, 2)),
        (NonFiniteError, ([0.5, 0.5], np.full((2, 2, 2), np.nan), 2)),
        (ParameterError, ([0.5, 0.5], fine, 0)),
    ]:
        with pytest.raises(kind) as caught:
            ProbabilisticAutomaton(*arguments)
        assert "\n" not in str(caught.value)
    for kind, arguments in [
        (ShapeError, ([0, 1], 0, 2)),
        (ShapeError, ([[0.0, 1.0]], 0, 2)),
        (ShapeError, (np.zeros((0, 2), int), 0, 2)),
        (ParameterError, ([[0, 1]], 0, 2)),
        (ParameterError, ([[0, -2]], 0, 2)),
        (ParameterError, ([[0, 0]], 1, 2)),
        (ParameterError, ([[0, 0]], 0, 0)),
    ]:
        with pytest.raises(kind):
            ProbabilisticAutomaton.from_dfa(*arguments)
