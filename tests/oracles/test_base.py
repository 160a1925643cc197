"""Generic bulk operations of the contract, on an oracle whose every answer is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oracles import HiddenMarkovModel, NGram, Tabular, base
from oracles.base import Oracle, draw_tokens
from oracles.errors import (
    HorizonError,
    NonFiniteError,
    ParameterError,
    ProbabilityError,
    ShapeError,
    TokenError,
)
from oracles.recurrent import RecurrentOracle
from tests.oracles.enumeration import all_strings, check_frequencies
from tests.registry import Unbounded, random_table

STRINGS = st.lists(st.lists(st.integers(0, 2), max_size=3), max_size=6)


class Broken(RecurrentOracle):
    """Answers the given rows, right or wrong."""

    vocab_size, horizon = 2, 3

    def __init__(self, answer):
        self.answer = np.asarray(answer)

    def first_row(self):
        return np.zeros(1)

    def step(self, position, rows, tokens):
        return rows

    def laws(self, position, rows):
        return np.tile(self.answer, (len(rows), 1))


@given(STRINGS)
def test_next_log_probs_of_ragged_histories(histories):
    model = random_table(3, 5, 0)
    got = np.exp(model.next_log_probs(histories))
    assert got.shape == (len(histories), 3)
    for row, history in zip(got, histories, strict=True):
        block = model.probabilities[tuple(history)].reshape(3, -1).sum(axis=1)
        np.testing.assert_allclose(row, block / block.sum(), rtol=1e-12)


@given(STRINGS, st.lists(st.lists(st.integers(0, 2), max_size=2), max_size=6), st.integers(1, 20))
def test_extended_log_probs_are_next_log_probs_of_concatenations(histories, futures, block_rows):
    model = random_table(3, 6, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "_BLOCK_ROWS", block_rows)
        got = model.extended_log_probs(histories, futures)
        again = model.next_log_probs(histories)
    assert got.shape == (len(histories), len(futures), 3)
    joined = [h + f for h in histories for f in futures]
    expected = model.next_log_probs(joined).reshape(got.shape)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    np.testing.assert_allclose(again, model.next_log_probs(histories), rtol=1e-12)


def test_each_prefix_of_the_futures_is_advanced_once_per_history():
    class Counting(NGram):
        advanced = 0

        def advance(self, state, tokens):
            Counting.advanced += np.asarray(tokens).shape[0] * (np.ndim(tokens) == 1)
            return super().advance(state, tokens)

    model = Counting(1, ([0.5, 0.5],), 9)
    model.extended_log_probs([[0], [1, 1]], [[0, 0, 0], [0, 0, 1], [0, 0], [1], []])
    # distinct nonempty prefixes: 0, 1, 00, 000, 001
    assert Counting.advanced == 2 * 5


def test_sampling_and_scoring_continue_a_history():
    model = random_table(3, 4, 2)
    history = [2, 0]
    law = model.probabilities[2, 0] / model.probabilities[2, 0].sum()
    np.testing.assert_allclose(
        np.exp(model.score(all_strings(3, 2), history=history)), law.ravel(), rtol=1e-12
    )
    check_frequencies(model.sample(20_000, 0, history=history), law.ravel(), 3)
    first = law.sum(axis=1)
    check_frequencies(model.sample(20_000, 0, history=history, length=1), first, 3)
    np.testing.assert_allclose(np.exp(model.score([[0], [1], [2]], history=history)), first, rtol=1e-12)


def test_condition_is_the_continuation_law():
    model = random_table(2, 6, 3)
    rest = model.condition([1, 0]).condition([1])
    assert (rest.vocab_size, rest.horizon) == (2, 3)
    law = model.probabilities[1, 0, 1] / model.probabilities[1, 0, 1].sum()
    np.testing.assert_allclose(np.exp(rest.score(all_strings(2, 3))), law.ravel(), rtol=1e-12)
    assert model.condition([0] * 6).sample(4, 0).shape == (4, 0)
    assert Unbounded().condition([1]).horizon is None


def test_sampling_is_reproducible_and_accepts_every_kind_of_rng():
    model = random_table(3, 4, 4)
    np.testing.assert_array_equal(model.sample(9, 5), model.sample(9, np.random.default_rng(5)))
    assert (model.sample(200, None) != model.sample(200, None)).any()
    assert model.sample(0, 0).shape == (0, 4)
    assert model.sample(3, 0, length=0).shape == (3, 0)
    assert model.sample(3, 0).dtype == np.int64
    assert model.score(np.zeros((3, 0), dtype=int)).tolist() == [0, 0, 0]
    assert model.next_log_probs([]).shape == (0, 3)


@given(st.integers(1, 9), st.integers(0, 999))
def test_draw_tokens_inverts_the_cumulative_law(vocab_size, seed):
    rng = np.random.default_rng(seed)
    law = rng.random(vocab_size) * (rng.random(vocab_size) < 0.6)
    law[rng.integers(vocab_size)] = 1.0
    law /= law.sum()
    edges = np.concatenate([[0.0], np.cumsum(law)[:-1], [np.nextafter(1, 0)], rng.random(50)])
    uniforms = np.concatenate([edges, np.nextafter(edges, 0), np.nextafter(edges, 1)])
    uniforms = uniforms[(uniforms >= 0) & (uniforms < 1)]
    tokens = draw_tokens(np.tile(law, (len(uniforms), 1)), uniforms)
    assert (law[tokens] > 0).all()
    low = np.concatenate([[0.0], np.cumsum(law)])[tokens]
    assert ((uniforms >= low - 1e-15) & (uniforms <= low + law[tokens] + 1e-15)).all()


def test_answers_of_a_broken_model_are_refused():
    for kind, answer in [
        (NonFiniteError, [np.nan, 0.0]),
        (ProbabilityError, np.log([0.5, 0.6])),
        (ShapeError, np.log([0.2, 0.3, 0.5])),
    ]:
        model = Broken(answer)
        for use in (
            lambda m=model: m.sample(2, 0),
            lambda m=model: m.score([[0]]),
            lambda m=model: m.next_log_probs([[0]]),
            lambda m=model: m.extended_log_probs([[0]], [[1]]),
        ):
            with pytest.raises(kind):
                use()


def test_mistakes():
    model = HiddenMarkovModel.random(2, 2, 5, 0)
    for kind, mistake in [
        (HorizonError, lambda: Unbounded().sample(2, 0)),
        (HorizonError, lambda: model.next_log_probs(np.zeros((2, 5), dtype=int))),
        (HorizonError, lambda: model.extended_log_probs([[0, 0, 0]], [[0, 0]])),
        (HorizonError, lambda: model.condition([0] * 6)),
        (HorizonError, lambda: model.sample(1, 0, history=[0, 0], length=4)),
        (HorizonError, lambda: model.score([[0, 0, 0, 0]], history=[0, 0])),
        (TokenError, lambda: model.condition([2])),
        (TokenError, lambda: model.next_log_probs([[0], [0.5]])),
        (TokenError, lambda: model.extended_log_probs([[0]], [[-1]])),
        (TokenError, lambda: model.score([[True, False]])),
        (ShapeError, lambda: model.score([0, 1])),
        (ShapeError, lambda: model.score([[0], [0, 1]])),
        (ShapeError, lambda: model.next_log_probs([0, 1])),
        (ShapeError, lambda: model.next_log_probs("01")),
        (ShapeError, lambda: model.next_log_probs([[[0]], [[1]]])),
        (ShapeError, lambda: model.condition([[0]])),
        (ParameterError, lambda: model.sample(-1, 0)),
        (ParameterError, lambda: model.sample(1.5, 0)),
        (ParameterError, lambda: model.sample(1, "0")),
        (ParameterError, lambda: model.sample(1, 0, length=-1)),
    ]:
        with pytest.raises(kind) as caught:
            mistake()
        assert "\n" not in str(caught.value)


def test_an_oracle_is_abstract():
    with pytest.raises(TypeError):
        Oracle()
    assert Tabular([1.0]).linear_form() is None
    assert Tabular([1.0]).identity is None
