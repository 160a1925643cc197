"""Samples and conditional samples: charges, budgets, laws, independence of blocks and order."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oracles.access import (
    ConditionalSampleAccess,
    LogitAccess,
    SampleAccess,
    TopLogitAccess,
)
from oracles.access.draws import count_tokens, invert
from oracles.base import draw_tokens
from oracles.cache import MemoryCache
from oracles.errors import (
    BudgetError,
    HorizonError,
    ParameterError,
)
from oracles.ledger import Budget, Ledger
from oracles.recurrent import RecurrentOracle
from tests.oracles.access_helpers import (
    HMM,
    KINDS,
    A,
    T,
    batches,
    check_budget,
    ledger_of,
    limits,
    run,
    take_within,
)


class Echo(RecurrentOracle):
    """No horizon: repeats the last token with probability .8 (first token uniform)."""

    vocab_size, horizon = 2, None

    def first_row(self):
        return np.array([0.5, 0.5])

    def step(self, position, rows, tokens):
        return np.where(tokens[:, None] == np.arange(2), 0.8, 0.2)

    def laws(self, position, rows):
        return np.log(rows)


@pytest.mark.parametrize("kind", [SampleAccess, ConditionalSampleAccess])
def test_draws_refuse_a_cache(kind, tmp_path):
    for cache in (True, MemoryCache(), tmp_path / "c.sqlite"):
        with pytest.raises(ParameterError, match="fresh"):
            kind(HMM, cache=cache)
    with pytest.raises(ParameterError):
        kind(HMM, noise=1.5)


@given(batches, st.integers(0, 4), limits, st.integers(1, 5))
def test_draw_budgets(batch, draws, budget, block_rows):
    def new(budget=None):
        rows = 1 << 14 if budget is None else block_rows
        return ConditionalSampleAccess(HMM, budget, seed=2, block_rows=rows)

    queries = [(tuple(h), len(h), 1) for h in batch for _ in range(draws)]
    count, spent = take_within(budget, queries)
    expected = new().next_tokens(batch, draws)
    expected.ravel()[count:] = -1
    access = new(budget)
    tokens, error = run(lambda: access.next_tokens(batch, draws))
    check_budget(access, error, count, len(queries), spent)
    np.testing.assert_array_equal(tokens, expected)

    access = new(budget)
    counts, error = run(lambda: access.next_counts(batch, draws))
    check_budget(access, error, count, len(queries), spent)
    np.testing.assert_array_equal(counts, (expected[:, :, None] == np.arange(A)).sum(axis=1))

    queries = [(tuple(h), len(h), T - len(h)) for h in batch for _ in range(draws)]
    count, spent = take_within(budget, queries)
    access = new(budget)
    parts, error = run(lambda: access.complete(batch, draws))
    check_budget(access, error, count, len(queries), spent)
    whole = new().complete(batch, draws)
    for i, (part, full) in enumerate(zip(parts, whole, strict=True)):
        np.testing.assert_array_equal(part, full[: max(0, count - i * draws)])


@pytest.mark.parametrize("kind", [k for k in KINDS if k is not TopLogitAccess])
def test_sample_charges_and_budget(kind):
    access = kind(HMM, Budget(generated_tokens=7 * T + 2), seed=5)
    first = access.sample(4)
    assert access.ledger == Ledger(4, 0, 0, 4 * T)
    with pytest.raises(BudgetError, match="generated_tokens 37") as caught:
        access.sample(9)
    assert access.ledger == caught.value.ledger == Ledger(7, 0, 0, 7 * T)
    whole = kind(HMM, seed=5, block_rows=2).sample(7)
    np.testing.assert_array_equal(np.concatenate([first, caught.value.answered]), whole)
    assert whole.shape == (7, T)
    np.testing.assert_array_equal(kind(HMM, seed=5).sample(7, length=2), whole[:, :2])
    assert not np.array_equal(kind(HMM, seed=6).sample(7), whole)
    other = LogitAccess if kind is SampleAccess else SampleAccess
    assert not np.array_equal(other(HMM, seed=5).sample(7), whole)  # fresh strings for a validation


@pytest.mark.parametrize("nu", [0.0, 0.3, 1.0])
def test_mixing_noise_changes_the_law_as_stated(nu):
    access = ConditionalSampleAccess(HMM, noise=nu)
    law = (1 - nu) * np.exp(HMM.next_log_probs([[1, 0]])[0]) + nu / A
    agrees(access.next_counts([[1, 0]], 200_000)[0], law)
    first = SampleAccess(HMM, noise=nu).sample(50_000)[:, 0]
    agrees(np.bincount(first, minlength=A), (1 - nu) * np.exp(HMM.next_log_probs([[]])[0]) + nu / A)


def agrees(counts, law, false_alarm=1e-9):
    """Binomial Chernoff bound on every cell, union bound over the cells: false alarm ≤ 1e-9."""
    n = counts.sum()
    share = counts / n
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = np.where(share > 0, share * np.log(share / law), 0)
        gap += np.where(share < 1, (1 - share) * np.log((1 - share) / (1 - law)), 0)
    assert (n * gap <= np.log(2 * len(counts) / false_alarm)).all()


def joint(strings):
    return np.bincount(strings @ A ** np.arange(strings.shape[1])[::-1], minlength=A ** strings.shape[1])


def test_completions_follow_the_exact_law():
    histories = [[], [2], [0, 1], [0, 2]]
    futures = np.array(list(itertools.product(range(A), repeat=3)))
    access = ConditionalSampleAccess(HMM, seed=8)
    for history, draws in zip(histories, access.complete(histories, 60_000, length=3), strict=True):
        agrees(joint(draws), np.exp(HMM.score(futures, history=history)))
    agrees(joint(access.sample(60_000)[:, :3]), np.exp(HMM.score(futures)))


def test_successive_draws_and_different_histories_are_independent():
    law = np.exp(HMM.next_log_probs([[0, 1], [0, 2]]))
    draws = ConditionalSampleAccess(HMM, seed=9).next_tokens([[0, 1], [0, 2]], 100_000)
    agrees(joint(draws.T), np.kron(law[0], law[1]))
    agrees(joint(draws[0].reshape(-1, 2)), np.kron(law[0], law[0]))
    agrees(joint(np.stack([draws[0, :-1:2], draws[1, 1::2]], axis=1)), np.kron(law[0], law[1]))
    access = ConditionalSampleAccess(HMM, seed=9)
    pairs = np.exp(HMM.score(np.array(list(itertools.product(range(A), repeat=2)))))
    for strings in (access.complete([[]], 100_000, length=2)[0], access.sample(100_000, length=2)):
        agrees(joint(strings.reshape(-1, 4)), np.kron(pairs, pairs))


@given(st.lists(st.tuples(batches, st.integers(0, 5)), max_size=4), st.randoms(), st.sampled_from([1, 2, 99]))
def test_draw_k_of_a_history_is_a_function_of_seed_history_and_k(calls, random, block_rows):
    """Any order, batching and method shows the same sequence of draws."""
    access = ConditionalSampleAccess(HMM, seed=3, block_rows=block_rows)
    seen: dict[tuple, list[int]] = {}
    costs = []
    for batch, draws in calls:
        batch = [h for h in batch if len(h) < T]
        random.shuffle(batch)
        if random.random() < 0.5:
            shown = access.next_tokens(batch, draws)
            costs += [(len(h), 1) for h in batch for _ in range(draws)]
        else:
            length = random.randrange(1, 2)
            shown = [part[:, 0] for part in access.complete(batch, draws, length=length)]
            costs += [(len(h), length) for h in batch for _ in range(draws)]
        for history, tokens in zip(batch, shown, strict=True):
            seen.setdefault(tuple(history), []).extend(tokens.tolist())
    assert access.ledger == ledger_of(costs, sum(bool(tokens) for tokens in seen.values()))
    for history, tokens in seen.items():
        alone = ConditionalSampleAccess(HMM, seed=3).next_tokens([history], len(tokens))
        np.testing.assert_array_equal(alone[0], tokens)


@given(batches, st.lists(st.integers(0, 40), min_size=12, max_size=12), st.sampled_from([1, 3, 99]))
def test_counts_are_the_counts_of_the_tokens(batch, draws, block_rows):
    draws = np.array(draws[: len(batch)], dtype=int)
    access = ConditionalSampleAccess(HMM, seed=1, block_rows=block_rows)
    counts = access.next_counts(batch, draws)
    reference = ConditionalSampleAccess(HMM, seed=1)
    expected = np.zeros((len(batch), A), dtype=int)
    for i, history in enumerate(batch):
        expected[i] = np.bincount(reference.next_tokens([history], int(draws[i]))[0], minlength=A)
    np.testing.assert_array_equal(counts, expected)
    assert access.ledger == reference.ledger


def test_many_draws_cross_the_tiles():
    access, other = ConditionalSampleAccess(HMM), ConditionalSampleAccess(HMM)
    counts = access.next_counts([[1], [2, 2], [1]], [40_000, 17, 3])
    tokens = other.next_tokens([[1]], 40_003)[0]
    np.testing.assert_array_equal(counts[0], np.bincount(tokens[:40_000], minlength=A))
    np.testing.assert_array_equal(counts[2], np.bincount(tokens[40_000:], minlength=A))
    assert counts.sum() == 40_020


def test_completions_do_not_depend_on_blocks():
    histories = [[0, 1], [2], [1, 2], [0, 1], [2, 2]]
    whole = ConditionalSampleAccess(HMM).complete(histories, 60)
    for block_rows in (1, 7, 100):
        parts = ConditionalSampleAccess(HMM, block_rows=block_rows).complete(histories, 60)
        for part, full in zip(parts, whole, strict=True):
            np.testing.assert_array_equal(part, full)


def test_completions_extend_next_tokens_and_shorter_completions():
    histories = [[], [1, 2], [0], [1, 2]]

    def new():
        return ConditionalSampleAccess(HMM, seed=6)

    whole = new().complete(histories, 5)
    assert [part.shape for part in whole] == [(5, 5), (5, 3), (5, 4), (5, 3)]
    short = new().complete(histories, 5, length=2)
    np.testing.assert_array_equal(np.stack(short), np.stack([part[:, :2] for part in whole]))
    np.testing.assert_array_equal(new().next_tokens(histories, 5), np.stack([part[:, 0] for part in whole]))
    assert not np.array_equal(whole[1], whole[3])  # a repeated history gets fresh draws
    assert new().complete([[0] * T], 2)[0].shape == (2, 0)


@pytest.mark.parametrize("vocab", [1, 2, 12, 13, 64, 100])
def test_inversion_agrees_with_the_contract(vocab):
    rng = np.random.default_rng(vocab)
    laws = rng.dirichlet(np.ones(vocab), 20)
    laws[:, rng.random(vocab) < 0.4] = 0
    laws[laws.sum(axis=1) == 0] = 1 / vocab
    laws /= laws.sum(axis=1, keepdims=True)
    numbers = rng.random((20, 50))
    numbers[:, 0], numbers[:, 1] = 0, 1 - 2**-53
    cumulative = np.cumsum(laws, axis=1)
    owner = np.arange(20)
    tokens = invert(cumulative, owner[:, None], numbers)
    expected = np.stack([draw_tokens(laws, column) for column in numbers.T], axis=1)
    np.testing.assert_array_equal(tokens, expected)
    assert (np.take_along_axis(laws, tokens, axis=1) > 0).all()
    counted = np.stack([np.bincount(row, minlength=vocab) for row in expected])
    np.testing.assert_array_equal(count_tokens(cumulative, owner, numbers), counted)


def test_without_a_horizon_a_length_is_needed():
    access = ConditionalSampleAccess(Echo(), seed=1)
    assert access.horizon is None
    for call in (lambda: access.sample(2), lambda: access.complete([[0]], 2)):
        with pytest.raises(HorizonError, match="length"):
            call()
    parts = access.complete([[0], [0, 1]], 1000, length=6)
    assert [part.shape for part in parts] == [(1000, 6)] * 2
    agrees(np.bincount(parts[0][:, 0], minlength=2), np.array([0.8, 0.2]))
    again = ConditionalSampleAccess(Echo(), seed=1)
    np.testing.assert_array_equal(again.next_tokens([[0], [0, 1]], 1000)[1], parts[1][:, 0])
    assert access.sample(3, length=50).shape == (3, 50)
    assert access.ledger == Ledger(2003, 2, 3000, 12_000 + 150)
    assert LogitAccess(Echo()).grid([[0] * 40], [[1] * 3]).shape == (1, 1, 2)
