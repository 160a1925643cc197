"""Where the draws of the tree route go, and what noise they leave."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from lrlm_sim.learners.prefix_laws import all_strings, estimate_laws
from lrlm_sim.learners.tree_draws import filled_up, relative_variances, sample_tree
from oracles import Budget, ConditionalSampleAccess, HiddenMarkovModel, Tabular
from oracles.errors import BudgetError


def drawn(teacher, samples: int, seed: int = 0):
    first, second = sample_tree(ConditionalSampleAccess(teacher, seed=seed), teacher.horizon, samples, 1e-9)
    return [a + b for a, b in zip(first, second, strict=True)]


def forked(horizon: int = 4) -> Tabular:
    """A fair first token; after 0 all others are 0, after 1 all are fair."""
    table = np.zeros((2,) * horizon)
    table[(0,) * horizon] = 0.5
    table[1] = 0.5 / table[1].size
    return Tabular(table)


def test_nothing_is_spent_where_the_next_token_is_certain():
    counts = drawn(forked(), 4000)
    certain, fair = counts[1].sum(axis=1)
    # the pilot, half of all draws, cannot tell them apart and spends equally here
    assert certain < fair / 2
    deep = counts[3].sum(axis=1)
    assert deep[4:].min() > 5 * deep[1:4].max()  # 1xx against 001, 010, 011, which never follow


def test_draws_are_in_proportion_to_the_allocation():
    """∝ (P(h) s_h)^(2/3), up to the pilot's errors in P and s; the weights differ by a factor of 80."""
    teacher = HiddenMarkovModel.random(2, 2, 4, rng=3)
    counts, weights = drawn(teacher, 100_000), []
    for t in range(4):
        strings = all_strings(2, t)
        reached, law = np.exp(teacher.score(strings)), np.exp(teacher.next_log_probs(strings))
        weights.append((reached * np.sqrt(law * (1 - law)).sum(axis=1)) ** (2 / 3))
    share = np.concatenate([level.sum(axis=1) for level in counts]) / np.concatenate(weights)
    np.testing.assert_allclose(share, share.mean(), rtol=0.1)


@pytest.mark.parametrize("samples", [2, 7, 100])
def test_two_draws_at_least_and_the_sum_is_what_was_given(samples: int):
    counts = drawn(HiddenMarkovModel.random(2, 3, 4, rng=0), samples)
    assert [len(level) for level in counts] == [1, 3, 9, 27]
    spent = sum(int(level.sum()) for level in counts)
    assert min(level.sum(axis=1).min() for level in counts) >= 2
    assert 40 * samples * 0.9 <= spent <= 40 * samples


def test_halves_are_independent_of_each_other_and_equal_in_number():
    teacher = Tabular(np.full((2, 2), 0.25))
    pairs = [sample_tree(ConditionalSampleAccess(teacher, seed=s), 2, 64, 0.0) for s in range(200)]
    left, right = (np.array([pair[k][0][0, 0] / pair[k][0].sum() for pair in pairs]) for k in (0, 1))
    assert abs(np.corrcoef(left, right)[0, 1]) < 5 / np.sqrt(200)
    for first, second in pairs:
        assert all(abs(a.sum() - b.sum()) <= 2 * len(a) for a, b in zip(first, second, strict=True))


@given(
    st.lists(st.tuples(st.floats(0.01, 5), st.integers(0, 50)), min_size=1, max_size=8), st.integers(1, 400)
)
def test_filling_up_is_the_least_error_with_what_is_drawn(rows, extra):
    weights, have = (np.array(column) for column in zip(*rows, strict=True))
    total = have.sum() + extra
    found = filled_up(weights, have, total)
    np.testing.assert_allclose(found.sum(), total, rtol=1e-9)
    assert (found >= have).all()

    def error(m):
        return (weights**1.5 / np.sqrt(m)).sum()

    peer = minimize(
        error,
        have + extra / len(have),
        bounds=[(max(h, 1e-3), None) for h in have],
        constraints={"type": "eq", "fun": lambda m: m.sum() - total},
        method="SLSQP",
    )
    assert error(found) <= peer.fun * (1 + 1e-6)


def test_where_everything_is_spent_nothing_is_added():
    have = np.array([4, 7, 9])
    np.testing.assert_array_equal(filled_up(np.array([1.0, 0.0, 2.0]), have, 15), have)
    np.testing.assert_array_equal(filled_up(np.array([1.0, 1.0, 1.0]), have, 20), have)


def test_relative_variances_are_those_of_independent_estimates():
    """Against the spread of products of estimated laws, 4000 repetitions: 10 % is six standard errors."""
    rng = np.random.default_rng(0)
    laws = [np.array([[0.3, 0.7]]), np.array([[0.5, 0.5], [0.2, 0.8]])]
    draws = [np.array([400]), np.array([200, 900])]
    counts = [np.rint(law * m[:, None]).astype(np.int64) for law, m in zip(laws, draws, strict=True)]
    expected = relative_variances(laws, counts)
    first = rng.binomial(400, 0.3, 4000) / 400
    after = rng.binomial(200, 0.5, 4000) / 200
    np.testing.assert_allclose(expected[0], [0.0])
    np.testing.assert_allclose(np.var(first / 0.3), expected[1][0], rtol=0.15)
    np.testing.assert_allclose(np.var(first * after / 0.15), expected[2][0], rtol=0.15)
    assert len(expected[2]) == 4


def test_a_budget_that_ends_early_leaves_what_was_paid_for():
    teacher = HiddenMarkovModel.random(2, 2, 5, rng=0)
    for budget, levels in ((300, range(6)), (2500, range(5, 6))):  # in the pilot, and in what follows
        access = ConditionalSampleAccess(teacher, seed=0, budget=Budget(generated_tokens=budget))
        with pytest.raises(BudgetError) as caught:
            sample_tree(access, 5, 100, 0.0)
        partial = caught.value.partial
        assert partial["levels"] in levels
        assert len(partial["counts"]) == partial["levels"]
        assert sum(int(level.sum()) for level in partial["counts"]) <= budget
        assert all(np.isfinite(estimate_laws(level, 0.0)).all() for level in partial["counts"])
