"""Logits and top logits: charges by hand counts, budgets, caches, noise."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oracles.access import (
    ConditionalSampleAccess,
    LogitAccess,
    TopLogitAccess,
)
from oracles.errors import (
    BudgetError,
    InconsistentAnswerError,
    NonFiniteError,
    ParameterError,
    ShapeError,
    ZeroProbabilityError,
)
from oracles.hmm import HiddenMarkovModel
from oracles.ledger import Ledger
from tests.oracles.access_helpers import (
    HMM,
    A,
    Broken,
    Spy,
    batches,
    check_budget,
    ledger_of,
    limits,
    run,
    strings,
    take_within,
    with_zeros,
)


@given(st.lists(batches, max_size=4), st.sampled_from([1, 3, 1 << 14]), st.booleans())
def test_logit_charges(calls, block_rows, cached):
    spy = Spy(HMM)
    access = LogitAccess(spy, cache=cached or None, block_rows=block_rows)
    costs, seen = [], set()
    for batch in calls:
        distinct = {tuple(h) for h in batch}
        costs += [(len(h), 0) for h in (distinct - seen if cached else distinct)]
        seen |= distinct
        rows = access.logits(batch)
        assert rows.shape == (len(batch), A)
        np.testing.assert_allclose(rows.sum(axis=1), 0, atol=1e-12)
        expected = HMM.next_log_probs(batch)
        np.testing.assert_allclose(rows, expected - expected.mean(axis=1, keepdims=True), atol=1e-12)
    assert access.ledger == ledger_of(costs, len(seen))
    assert spy.laws_read == access.ledger.calls  # nothing is asked that is not charged


@given(
    st.lists(st.tuples(st.lists(strings(0, 2), max_size=6), st.lists(strings(0, 2), max_size=6)), max_size=3),
    st.sampled_from([1, 5, 1 << 14]),
    st.booleans(),
)
def test_grid_charges_distinct_strings(calls, block_rows, cached):
    spy = Spy(HMM)
    access = LogitAccess(spy, noise=0.5, cache=cached or None, block_rows=block_rows)
    costs, seen = [], set()
    for histories, futures in calls:
        distinct = {(*h, *f) for h in histories for f in futures}
        costs += [(len(h), 0) for h in (distinct - seen if cached else distinct)]
        seen |= distinct
        grid = access.grid(histories, futures)
        assert grid.shape == (len(histories), len(futures), A)
        flat = LogitAccess(HMM, noise=0.5).logits([h + f for h in histories for f in futures])
        np.testing.assert_allclose(grid.reshape(-1, A), flat, atol=1e-12)
    assert access.ledger == ledger_of(costs, len(seen))
    assert spy.laws_read == access.ledger.calls


def test_large_grids_use_the_bulk_operation_for_each_missing_rectangle():
    spy = Spy(HMM)
    asked = []
    whole = spy.extended_log_probs
    spy.extended_log_probs = lambda h, f: (asked.append((len(h), len(f))), whole(h, f))[1]
    access = LogitAccess(spy, cache=True)
    histories = list(itertools.product(range(A), repeat=3))
    access.grid(histories, [(0,), (1,)])
    access.grid(histories, [(0,), (1,), (2,), ()])
    assert asked == [(27, 2), (27, 2)]
    assert spy.laws_read == access.ledger.calls == 27 * 4


@given(batches, st.randoms(), st.sampled_from([0.0, 0.3]), st.sampled_from([1, 2, 100]))
def test_answers_do_not_depend_on_order_or_batches(batch, random, noise, block_rows):
    together = LogitAccess(HMM, noise=noise, seed=4).logits(batch)
    order = list(range(len(batch)))
    random.shuffle(order)
    access = LogitAccess(HMM, noise=noise, seed=4, block_rows=block_rows, cache=random.random() < 0.5 or None)
    for low in range(0, len(order), 3):
        part = order[low : low + 3]
        rows = access.logits([batch[i] for i in part])
        np.testing.assert_allclose(rows, together[part], atol=1e-12)


@given(batches, limits, st.booleans(), st.sampled_from([1, 2, 100]))
def test_logit_budget(batch, budget, cached, block_rows):
    access = LogitAccess(HMM, budget, cache=cached or None, block_rows=block_rows)
    distinct = list(dict.fromkeys(tuple(h) for h in batch))
    count, spent = take_within(budget, [(h, len(h), 0) for h in distinct])
    rows, error = run(lambda: access.logits(batch))
    check_budget(access, error, count, len(distinct), spent)
    lost = {h for h in distinct[count:]}
    kept = next((i for i, h in enumerate(batch) if tuple(h) in lost), len(batch))
    np.testing.assert_allclose(rows, LogitAccess(HMM).logits(batch[:kept]), atol=1e-12)
    if cached:  # what was paid for is still there, for nothing
        access.logits(batch[:kept])
        assert access.ledger == spent


@given(st.lists(strings(0, 2), max_size=5), st.lists(strings(0, 2), max_size=5), limits)
def test_grid_budget(histories, futures, budget):
    access = LogitAccess(HMM, budget)
    cells = [(*h, *f) for h in histories for f in futures]
    distinct = list(dict.fromkeys(cells))
    count, spent = take_within(budget, [(h, len(h), 0) for h in distinct])
    grid, error = run(lambda: access.grid(histories, futures))
    check_budget(access, error, count, len(distinct), spent)
    expected = LogitAccess(HMM).grid(histories, futures).reshape(-1, A)
    expected[[cell not in distinct[:count] for cell in cells]] = np.nan
    np.testing.assert_allclose(grid.reshape(-1, A), expected, atol=1e-12)


def test_logit_noise_is_bounded_uniform_and_fixed():
    histories = list(itertools.product(range(A), repeat=4))
    exact = LogitAccess(HMM).logits(histories)
    noisy = LogitAccess(HMM, noise=0.1, seed=1)
    first = noisy.logits(histories)
    error = np.abs(first - exact)
    assert error.max() <= 2 * 0.1 * (1 - 1 / A) + 1e-12
    assert error.max() > 0.1 * (1 - 1 / A)
    np.testing.assert_array_equal(noisy.logits(histories), first)
    np.testing.assert_allclose(first.sum(axis=1), 0, atol=1e-12)
    other = LogitAccess(HMM, noise=0.1, seed=2).logits(histories)
    assert (np.abs(other - first) > 1e-9).all()
    double = LogitAccess(HMM, noise=0.2, seed=1).logits(histories)
    np.testing.assert_allclose(double - exact, 2 * (first - exact), atol=1e-12)


def test_zero_probability_names_smoothing():
    with pytest.raises(ZeroProbabilityError, match=r"token 2 .* \[0, 1\].*smooth"):
        LogitAccess(with_zeros()).logits([[0, 1]])
    with pytest.raises(ZeroProbabilityError, match="smooth"):
        LogitAccess(with_zeros()).grid([[0]], [[1]])
    with pytest.raises(ZeroProbabilityError, match="smooth"):
        TopLogitAccess(with_zeros(), k=3).top([[0]])
    assert TopLogitAccess(with_zeros(), k=2, noise=0.1).top([[0]])[0].max() < 2
    assert (ConditionalSampleAccess(with_zeros()).next_counts([[0]], 1000)[0, 2]) == 0


def test_a_teacher_that_changes_is_found():
    histories = list(itertools.product(range(A), repeat=2))
    with pytest.raises(ParameterError, match="cache"):
        LogitAccess(HMM, verify_every=3)
    blind = LogitAccess(Broken(HMM, drift=1e-3), cache=True)
    np.testing.assert_array_equal(blind.logits(histories), blind.logits(histories))
    watchful = LogitAccess(Broken(HMM, drift=1e-3), cache=True, verify_every=4)
    watchful.logits(histories)
    with pytest.raises(InconsistentAnswerError, match="logits"):
        watchful.logits(histories)
    slow = LogitAccess(Broken(HMM, drift=1e-3), cache=True, verify_every=4)
    for _ in range(1 + 3):
        slow.logits([[0]])
    with pytest.raises(InconsistentAnswerError):  # the fourth repeat, one question at a time
        slow.logits([[0]])
    honest = LogitAccess(HMM, budget=11, cache=True, verify_every=4)
    for _ in range(3):
        honest.logits(histories)
    assert honest.ledger.calls == 11  # 9 + 2 verifications of the first 9 repeats, then no budget is left
    tolerant = LogitAccess(Broken(HMM, drift=1e-3), cache=True, verify_every=1, verify_tolerance=0.1)
    tolerant.logits(histories)
    tolerant.logits(histories)
    assert tolerant.ledger == Ledger(18, 9, 36, 0)


@given(batches, st.integers(1, 5), st.sampled_from([0.0, 0.2]), st.integers(0, 2))
def test_top_logits(batch, k, noise, bias_axes):
    spy = Spy(HMM)
    access = TopLogitAccess(spy, k, noise=noise, cache=True, seed=2)
    rng = np.random.default_rng(len(batch))
    bias = None if bias_axes == 0 else rng.normal(size=(A,) if bias_axes == 1 else (len(batch), A))
    tokens, values = access.top(batch, bias)
    assert tokens.shape == values.shape == (len(batch), min(k, A)) == (len(batch), access.k)
    everything = TopLogitAccess(HMM, A, noise=noise, seed=2).top(batch)
    logits = np.empty((len(batch), A))
    np.put_along_axis(logits, *everything, axis=1)
    assert np.abs(logits - HMM.next_log_probs(batch)).max(initial=0) <= 2 * noise + 1e-12
    logits = logits + (0 if bias is None else bias)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_array_equal(tokens, np.argsort(-logs, axis=1)[:, : access.k])
    np.testing.assert_allclose(values, np.take_along_axis(logs, tokens, axis=1), atol=1e-12)
    shifts = np.broadcast_to(np.zeros(A) if bias is None else bias, (len(batch), A))
    questions = {(tuple(h), tuple(s)) for h, s in zip(batch, shifts, strict=True)}
    assert access.ledger == ledger_of([(len(h), 0) for h, _ in questions], len({h for h, _ in questions}))
    assert spy.laws_read == len({h for h, _ in questions})
    spent = access.ledger
    np.testing.assert_array_equal(access.top(batch, bias)[0], tokens)
    assert access.ledger == spent


def test_top_budget_ties_and_bias_errors():
    flat = HiddenMarkovModel([1.0], [[1.0]], [[0.25] * 4], 3)
    tokens, values = TopLogitAccess(flat, 3).top([[0]])
    np.testing.assert_array_equal(tokens, [[0, 1, 2]])
    np.testing.assert_allclose(values, np.log(0.25))
    access = TopLogitAccess(HMM, 2, budget=2)
    with pytest.raises(BudgetError) as caught:
        access.top([[0], [1], [0], [2], [1]])
    rows = TopLogitAccess(HMM, 2).top([[0], [1], [0]])
    for answered, expected in zip(caught.value.answered, rows, strict=True):
        np.testing.assert_array_equal(answered, expected)
    for bad in (np.zeros(2), np.zeros((2, A)), 0.0):
        with pytest.raises(ShapeError):
            TopLogitAccess(HMM).top([[0]], bias=bad)
    with pytest.raises(NonFiniteError):
        TopLogitAccess(HMM).top([[0]], bias=[0, np.inf, 0])
