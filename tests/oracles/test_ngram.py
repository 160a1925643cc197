"""N-gram models against the product of table entries."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oracles import NGram
from oracles.errors import NonFiniteError, ParameterError, ProbabilityError, ShapeError
from tests.oracles.enumeration import (
    all_strings,
    check_exact,
    check_frequencies,
    dirichlet_with_zeros,
    probability_rank,
)


def definition(model: NGram):
    """Π P(x_t | last order − 1 tokens)."""

    def probability(string):
        total = 1.0
        for t, token in enumerate(string):
            context = string[max(0, t - model.order + 1) : t]
            total *= model.laws[len(context)][(*context, token)]
        return total

    return probability


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(0, 99))
def test_exact(order, vocab_size, horizon, seed):
    model = NGram.random(order, vocab_size, horizon, seed)
    check_exact(model, definition(model))


@given(st.integers(1, 3), st.integers(0, 99))
def test_exact_with_zeros(order, seed):
    rng = np.random.default_rng(seed)
    model = NGram(order, tuple(dirichlet_with_zeros(rng, (3,) * (k + 1)) for k in range(order)), 4)
    check_exact(model, definition(model))


def test_chunks_longer_than_the_context():
    model = NGram.random(3, 3, 9, 0)
    string = np.array([[0, 2, 1, 1, 0, 2, 1]])
    laws = model.log_probs(model.advance(model.start(1), string))
    np.testing.assert_allclose(np.exp(laws[0]), model.laws[2][2, 1], rtol=1e-15)


def test_probability_rank_and_linear_form():
    assert probability_rank(NGram.random(3, 2, 7, 0), 4) == 4
    assert NGram.random(3, 17, 4, 0).linear_form() is None
    assert NGram.random(3, 16, 4, 0).linear_form() is not None


def test_samples_follow_the_law():
    model = NGram.random(2, 3, 4, 1)
    check_frequencies(model.sample(20_000, 1), np.exp(model.score(all_strings(3, 4))), 3)


def test_bad_laws():
    first = [0.5, 0.5]
    for kind, arguments in [
        (ShapeError, (2, (first,), 3)),
        (ShapeError, (1, np.array([first]), 3)),
        (ShapeError, (2, (first, first), 3)),
        (ShapeError, (2, (first, np.full((3, 2), 0.5)), 3)),
        (ShapeError, (2, (first, np.full((2, 3), 1 / 3)), 3)),
        (ProbabilityError, (1, ([0.5, 0.6],), 3)),
        (ProbabilityError, (1, ([1.5, -0.5],), 3)),
        (NonFiniteError, (1, ([np.nan, 0.5],), 3)),
        (ParameterError, (0, (), 3)),
        (ParameterError, (1, (first,), 0)),
    ]:
        with pytest.raises(kind) as caught:
            NGram(*arguments)
        assert "\n" not in str(caught.value)
