"""Tables of string probabilities."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oracles import HiddenMarkovModel, Tabular
from oracles.errors import NonFiniteError, ProbabilityError, ShapeError
from tests.oracles.enumeration import all_strings, check_exact, check_frequencies, check_same


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 99), st.booleans())
def test_exact(vocab_size, horizon, seed, zeros):
    rng = np.random.default_rng(seed)
    law = rng.random((vocab_size,) * horizon)
    if zeros:
        law *= rng.random(law.shape) < 0.3
        law[(0,) * horizon] = 1.0
    law /= law.sum()
    check_exact(Tabular(law), lambda string: law[string])


def test_histories_of_probability_zero_are_followed_by_the_uniform_law():
    table = Tabular([[0.5, 0.5, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(np.exp(table.next_log_probs([[1]])), 1 / 3)


def test_tiny_probabilities_keep_their_precision():
    law = np.array([[1.0, 0.0], [3e-300, 1e-300]])
    np.testing.assert_allclose(np.exp(Tabular(law).next_log_probs([[1]])), [[0.75, 0.25]], rtol=1e-14)


def test_the_table_of_another_model_is_that_model():
    model = HiddenMarkovModel.random(3, 3, 4, 0)
    law = np.exp(model.score(all_strings(3, 4))).reshape(3, 3, 3, 3)
    check_same(Tabular(law), model)


def test_samples_follow_the_law():
    law = np.random.default_rng(0).dirichlet(np.full(16, 0.3)).reshape(2, 2, 2, 2)
    check_frequencies(Tabular(law).sample(20_000, 0), law.ravel(), 2)


def test_bad_tables():
    for kind, law in [
        (ShapeError, 1.0),
        (ShapeError, [[0.5, 0.5]]),
        (ShapeError, [[0.5], [0.25, 0.25]]),
        (ProbabilityError, []),
        (ProbabilityError, [0.5, 0.6]),
        (ProbabilityError, [1.5, -0.5]),
        (NonFiniteError, [np.nan, 0.5]),
    ]:
        with pytest.raises(kind) as caught:
            Tabular(law)
        assert "\n" not in str(caught.value)
