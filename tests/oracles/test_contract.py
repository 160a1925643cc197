"""Every law of the contract, on every oracle of the registry."""

import numpy as np
import pytest

from lrlm_sim.testing import check_oracle
from oracles.errors import HorizonError, ShapeError, TokenError
from tests.registry import ORACLES


@pytest.fixture(params=list(ORACLES), name="oracle")
def _oracle(request):
    return ORACLES[request.param]()


def test_contract(oracle):
    check_oracle(oracle)


def test_laws_sum_to_one_to_1e_12_after_sampled_and_random_histories(oracle):
    length = 20 if oracle.horizon is None else oracle.horizon
    rng = np.random.default_rng(0)
    sampled = oracle.sample(40, rng, length=length)
    arbitrary = rng.integers(0, oracle.vocab_size, (40, length))
    for strings in (sampled, arbitrary):
        state = oracle.start(40)
        for column in strings.T:
            laws = oracle.log_probs(state)
            assert laws.dtype == np.float64
            assert laws.shape == (40, oracle.vocab_size)
            assert np.abs(np.exp(laws).sum(axis=1) - 1).max() <= 1e-12
            state = oracle.advance(state, column)
    assert np.isfinite(oracle.score(sampled)).all()


def test_bulk_scores_agree_with_the_four_operations(oracle):
    length = 10 if oracle.horizon is None else oracle.horizon
    strings = np.random.default_rng(1).integers(0, oracle.vocab_size, (30, length))
    total = np.zeros(30)
    state = oracle.start(30)
    for column in strings.T:
        total += oracle.log_probs(state)[np.arange(30), column]
        state = oracle.advance(state, column)
    np.testing.assert_allclose(oracle.score(strings), total, atol=1e-10, rtol=1e-12)


def test_the_first_samples_do_not_depend_on_how_many_are_drawn(oracle):
    length = 6 if oracle.horizon is None else None
    np.testing.assert_array_equal(oracle.sample(3, 5, length=length), oracle.sample(50, 5, length=length)[:3])


def test_advance_and_take_leave_their_state_alone(oracle):
    state = oracle.start(4)
    before = oracle.log_probs(state).copy()
    later = oracle.advance(state, np.zeros(4, dtype=int))
    oracle.take(state, [3, 3, 0])
    np.testing.assert_array_equal(oracle.log_probs(state), before)
    if oracle.horizon is None or oracle.horizon > 1:
        laws = oracle.log_probs(later).copy()
        oracle.advance(later, np.full(4, oracle.vocab_size - 1))
        np.testing.assert_array_equal(oracle.log_probs(later), laws)


def test_bad_arguments_raise_typed_one_line_errors(oracle):
    state = oracle.start(2)
    mistakes = [
        (TokenError, lambda: oracle.advance(state, [0, oracle.vocab_size])),
        (TokenError, lambda: oracle.advance(state, [0, -1])),
        (TokenError, lambda: oracle.advance(state, [0.0, 0.5])),
        (ShapeError, lambda: oracle.advance(state, [0, 0, 0])),
        (ShapeError, lambda: oracle.take(state, [2])),
        (ShapeError, lambda: oracle.take(state, [-1])),
        (TokenError, lambda: oracle.score([[oracle.vocab_size]])),
    ]
    if oracle.horizon is not None:
        past = np.zeros((2, oracle.horizon + 1), dtype=int)
        mistakes += [
            (HorizonError, lambda: oracle.advance(state, past)),
            (HorizonError, lambda: oracle.score(past)),
            (HorizonError, lambda: oracle.sample(1, 0, length=oracle.horizon + 1)),
            (HorizonError, lambda: oracle.log_probs(oracle.advance(state, past[:, 1:]))),
        ]
    for kind, mistake in mistakes:
        with pytest.raises(kind) as caught:
            mistake()
        assert "\n" not in str(caught.value)
