"""Conditional probabilities: values, charges, budgets, noise."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oracles.access import (
    ConditionalProbabilityAccess,
    LogitAccess,
    TopLogitAccess,
)
from oracles.errors import (
    BudgetError,
)
from oracles.hmm import HiddenMarkovModel
from oracles.ledger import Ledger
from tests.oracles.access_helpers import (
    HMM,
    A,
    Spy,
    check_budget,
    ledger_of,
    limits,
    run,
    strings,
    take_within,
    with_zeros,
)


def brute_probability(model, string):
    """P(string) as a sum over all hidden paths."""
    total = 0.0
    for path in itertools.product(range(model.n_states), repeat=len(string)):
        p = model.initial[path[0]] if path else 1.0
        for t, (state, token) in enumerate(zip(path, string, strict=True)):
            p *= model.emission[state, token]
            if t + 1 < len(path):
                p *= model.transition[state, path[t + 1]]
        total += p
    return total


def test_values_against_all_hidden_paths():
    model = HiddenMarkovModel.random(2, A, 4, 1)
    history, future = (2, 0), (1, 1)
    laws = np.array([brute_probability(model, (*history, z)) for z in range(A)])
    logs = np.log(laws / laws.sum())
    expected = logs - logs.mean()
    np.testing.assert_allclose(LogitAccess(model).logits([history])[0], expected, atol=1e-12)
    np.testing.assert_allclose(LogitAccess(model).grid([(2,)], [(0,)])[0, 0], expected, atol=1e-12)
    access = ConditionalProbabilityAccess(model)
    np.testing.assert_allclose(access.next_log_probs([history])[0], logs, atol=1e-12)
    ratio = brute_probability(model, history + future) / brute_probability(model, history)
    np.testing.assert_allclose(access.log_probs([history], [future, ()])[0], [np.log(ratio), 0], atol=1e-12)
    tokens, values = TopLogitAccess(model, k=2).top([history])
    np.testing.assert_array_equal(tokens[0], np.argsort(-logs)[:2])
    np.testing.assert_allclose(values[0], np.sort(logs)[::-1][:2], atol=1e-12)


@given(st.lists(strings(0, 2), max_size=5), st.lists(strings(0, 3), max_size=5), limits, st.booleans())
def test_probability_budget(histories, futures, budget, cached):
    access = ConditionalProbabilityAccess(HMM, budget, cache=cached or None)
    pairs = list(dict.fromkeys((tuple(h), tuple(f)) for h in histories for f in futures))
    count, spent = take_within(budget, [(h, len(h) + len(f), 0) for h, f in sorted_pairs(pairs)])
    values, error = run(lambda: access.log_probs(histories, futures))
    check_budget(access, error, count, len(pairs), spent)
    paid = set(sorted_pairs(pairs)[:count])
    expected = np.full((len(histories), len(futures)), np.nan)
    for i, h in enumerate(histories):
        for j, f in enumerate(futures):
            if (tuple(h), tuple(f)) in paid:
                expected[i, j] = HMM.score([f], history=h)[0]
    np.testing.assert_allclose(values, expected, atol=1e-12)


def sorted_pairs(pairs):
    """Row by row over distinct histories, then distinct futures, in order of appearance."""
    heads, tails = dict.fromkeys(h for h, _ in pairs), dict.fromkeys(f for _, f in pairs)
    return [(h, f) for h in heads for f in tails]


@given(st.lists(strings(0, 2), max_size=6), st.lists(strings(0, 3), max_size=6), st.sampled_from([1, 4, 999]))
def test_probability_values_and_charges(histories, futures, block_rows):
    spy = Spy(HMM)
    access = ConditionalProbabilityAccess(spy, cache=True, noise=0.25, block_rows=block_rows)
    values = access.log_probs(histories, futures)
    exact = np.array([[HMM.score([f], history=h)[0] for f in futures] for h in histories])
    assert values.shape == (len(histories), len(futures))
    assert np.abs(values - exact.reshape(values.shape)).max(initial=0) <= 0.25
    pairs = {(tuple(h), tuple(f)) for h in histories for f in futures}
    costs = [(len(h) + len(f), 0) for h, f in pairs]
    assert access.ledger == ledger_of(costs, len({h for h, _ in pairs}))
    reads = spy.laws_read
    np.testing.assert_array_equal(access.log_probs(histories[::-1], futures[::-1]), values[::-1, ::-1])
    assert access.ledger == ledger_of(costs, len({h for h, _ in pairs}))
    assert spy.laws_read == reads


def test_next_log_probs_is_log_probs_of_single_tokens():
    histories = [[], [1], [1], [0, 2, 1, 1]]
    access = ConditionalProbabilityAccess(HMM, noise=0.1)
    rows = access.next_log_probs(histories)
    assert access.ledger == Ledger(3 * A, 3, A * (1 + 2 + 5), 0)
    same = ConditionalProbabilityAccess(HMM, noise=0.1).log_probs(histories, np.arange(A)[:, None])
    np.testing.assert_allclose(rows, same, atol=1e-12)
    limited = ConditionalProbabilityAccess(HMM, budget=2 * A + 1)
    with pytest.raises(BudgetError) as caught:
        limited.next_log_probs(histories)
    np.testing.assert_allclose(caught.value.answered, HMM.next_log_probs(histories)[:3], atol=1e-12)
    assert limited.ledger == Ledger(2 * A, 2, A * (1 + 2), 0)


def test_probability_zero_is_minus_infinity():
    access = ConditionalProbabilityAccess(with_zeros(), cache=True, noise=0.1)
    for _ in range(2):
        values = access.log_probs([[0]], [[2, 1], [0], [1, 2]])
        np.testing.assert_array_equal(np.isneginf(values), [[True, False, True]])
    assert np.isneginf(access.next_log_probs([[]])[0, 2])


def test_probability_noise_has_the_moments_of_a_uniform_law():
    """4·9·27 errors on [−ξ, ξ]: Hoeffding bounds of mean and mean square, false alarm < 4e-9 each."""
    histories = [h for n in range(3) for h in itertools.product(range(A), repeat=n)]
    futures = [f for n in range(4) for f in itertools.product(range(A), repeat=n)]
    exact = ConditionalProbabilityAccess(HMM).log_probs(histories, futures)
    error = (ConditionalProbabilityAccess(HMM, noise=0.5).log_probs(histories, futures) - exact) / 0.5
    assert np.abs(error).max() <= 1 + 1e-9
    assert np.linalg.matrix_rank(error) == len(histories)  # no sum of a noise of h and a noise of f
    bound = np.sqrt(np.log(1e9) / (2 * error.size))
    assert abs(error.mean()) < 2 * bound
    assert abs((error**2).mean() - 1 / 3) < bound
