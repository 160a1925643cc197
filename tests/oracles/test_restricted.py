"""Laws on some tokens of another model: renormalised token by token, asked in bulk underneath."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oracles import ISAN, HiddenMarkovModel, NoisyParity, Tabular, restricted
from oracles.errors import HorizonError, ParameterError, TokenError, ZeroProbabilityError
from oracles.storage import load, save
from tests.oracles.enumeration import check_exact, check_same


def definition(model, kept):
    """P(kept token | history) over the mass of all kept tokens there, one history at a time."""

    def probability(string):
        total = 1.0
        for t, token in enumerate(string):
            law = np.exp(model.next_log_probs([[kept[z] for z in string[:t]]])[0])[kept]
            total *= law[token] / law.sum()
        return total

    return probability


@given(st.integers(2, 4), st.integers(2, 4), st.integers(0, 99), st.data())
def test_exact(vocab_size, horizon, seed, data):
    model = HiddenMarkovModel.random(2, vocab_size, horizon, seed)
    kept = data.draw(st.permutations(range(vocab_size)))[: data.draw(st.integers(1, vocab_size))]
    length = data.draw(st.integers(1, horizon))
    found = restricted(model, kept, length)
    assert (found.vocab_size, found.horizon) == (len(kept), length)
    check_exact(found, definition(model, kept))


def test_all_tokens_are_the_model_itself_and_an_order_is_a_renaming():
    model = ISAN.random(3, 3, 4, 0)
    check_same(restricted(model, [0, 1, 2]), model)
    swapped = restricted(model, [2, 1, 0])
    np.testing.assert_allclose(swapped.score([[0, 1, 2]]), model.score([[2, 1, 0]]), rtol=1e-13)


def test_bulk_answers_are_those_of_the_states():
    model = restricted(HiddenMarkovModel.random(3, 4, 6, 1), [3, 1])
    heads, tails = [[], [0], [1, 0]], [[1], [], [0, 1]]
    expected = [[model.next_log_probs([[*h, *f]])[0] for f in tails] for h in heads]
    np.testing.assert_allclose(model.extended_log_probs(heads, tails), expected, rtol=1e-12)


def test_kept_tokens_that_are_all_impossible_give_the_uniform_law():
    table = np.zeros((3, 3))
    table[:, 0] = 1 / 3
    model = restricted(Tabular(table), [1, 2])
    np.testing.assert_allclose(np.exp(model.next_log_probs([[0], [1]])), 0.5, rtol=1e-15)


def test_tokens_that_are_never_emitted_can_be_left_out():
    transition, emission = np.eye(1), np.array([[0.25, 0.75, 0.0]])
    model = HiddenMarkovModel(np.ones(1), transition, emission, 3)
    with pytest.raises(ZeroProbabilityError):
        model.kept_logits([[]], [[]], np.array([[0, 1]]))
    logits = restricted(model, [0, 1]).kept_logits([[]], [[]], np.array([[0, 1]]))
    np.testing.assert_allclose(logits[0, 0], [-np.log(3) / 2, np.log(3) / 2], rtol=1e-14)


def test_it_is_saved_with_the_model_underneath(tmp_path):
    model = restricted(HiddenMarkovModel.random(2, 3, 5, 0), [2, 0], 3)
    check_same(load(save(model, tmp_path / "model.safetensors")), model)
    assert repr(model) == f"restricted({model.oracle!r}, 2 tokens, horizon=3)"


def test_identity_names_model_tokens_and_horizon():
    class Named(Tabular):
        identity = "table"

    model = Named(np.full((2, 2), 0.25))
    assert restricted(model, [1, 0]).identity == "restricted(table, [1, 0], 2)"
    assert restricted(NoisyParity([1], 0.1), [0]).identity is None


def test_strings_past_the_shorter_horizon_are_errors():
    model = restricted(HiddenMarkovModel.random(2, 3, 5, 0), [2, 0], 2)
    with pytest.raises(HorizonError, match="at most horizon = 2 tokens, got 3"):
        model.next_log_probs([[0, 1]])
    with pytest.raises(HorizonError, match="at most horizon = 2 tokens, got 3"):
        model.extended_log_probs([[0]], [[1]])
    with pytest.raises(HorizonError, match="at most horizon = 2 tokens, got 3"):
        model.log_probs(model.advance(model.start(1), [[0, 1]]))
    with pytest.raises(HorizonError, match="at most horizon = 2 tokens, got 3"):
        model.advance(model.start(1), [[0, 1, 0]])


def test_bad_arguments():
    model = HiddenMarkovModel.random(2, 3, 5, 0)
    for kept in ([], [0, 0]):
        with pytest.raises(ParameterError, match="kept must be different tokens, at least one"):
            restricted(model, kept)
    with pytest.raises(TokenError, match=r"kept must be in 0\.\.2, got 3"):
        restricted(model, [3])
    with pytest.raises(HorizonError, match="at most 5, that of the model underneath, got 6"):
        restricted(model, [0], 6)
    with pytest.raises(ParameterError, match="horizon"):
        restricted(model, [0], 0)
    with pytest.raises(ParameterError, match="oracle must be an Oracle, got NoneType"):
        restricted(None, [0])  # type: ignore[arg-type]
