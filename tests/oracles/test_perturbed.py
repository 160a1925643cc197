"""Deterministic logit noise: bounded, uniform, a function of (seed, history, token) alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oracles import ISAN, HiddenMarkovModel, NoisyParity, Tabular, perturbed
from oracles.counter import extend_keys, start_keys, uniforms
from oracles.errors import ParameterError
from tests.oracles.enumeration import all_strings, check_exact, check_same, softmax


def definition(model, scale, seed):
    """Noise looked up one history at a time, then softmax and product."""

    def probability(string):
        total = 1.0
        for t, token in enumerate(string):
            key = extend_keys(
                start_keys(1, seed, "perturbed"), np.array([string[:t]], dtype=int).reshape(1, t)
            )
            noise = scale * (2 * uniforms(key, np.arange(model.vocab_size)) - 1)
            total *= softmax(model.next_log_probs([string[:t]])[0] + noise)[token]
        return total

    return probability


@given(st.integers(1, 3), st.integers(1, 4), st.floats(0, 3), st.integers(0, 99))
def test_exact(vocab_size, horizon, scale, seed):
    model = HiddenMarkovModel.random(2, vocab_size, horizon, seed)
    check_exact(perturbed(model, scale, seed), definition(model, scale, seed))


def noise_table(seed, scale=0.25):
    flat = Tabular(np.full((3,) * 7, 3.0**-7))
    noisy = perturbed(flat, scale, seed)
    laws = np.concatenate([noisy.next_log_probs(all_strings(3, length)) for length in range(7)])
    return laws - laws.mean(axis=1, keepdims=True)


def test_noise_is_bounded_spread_and_depends_on_the_seed():
    table = noise_table(0)
    assert np.ptp(table, axis=1).max() <= 0.5
    # differences of two uniforms on [−¼, ¼]: variance 2·(½)²/12; 1093 rows, 6 standard errors
    gaps = table[:, 0] - table[:, 1]
    assert abs(gaps.var() / (2 * 0.25 / 12) - 1) < 6 * np.sqrt(1.4 / len(gaps))
    assert abs(gaps.mean()) < 6 * np.sqrt(2 * 0.25 / 12 / len(gaps))
    assert np.unique(gaps).size == len(gaps)
    assert abs(np.corrcoef(gaps, noise_table(1)[:, 0] - noise_table(1)[:, 1])[0, 1]) < 0.2
    np.testing.assert_array_equal(table, noise_table(0))


def test_laws_move_by_at_most_scale():
    model = ISAN.random(3, 4, 5, 0)
    strings = all_strings(4, 3)
    shift = np.exp(perturbed(model, 0.3, 2).next_log_probs(strings)) - np.exp(model.next_log_probs(strings))
    assert 0 < 0.5 * np.abs(shift).sum(axis=1).max() <= 0.3


def test_taken_rows_keep_their_noise():
    noisy = perturbed(HiddenMarkovModel.random(2, 3, 4, 0), 0.5, 0)
    state = noisy.advance(noisy.start(3), [0, 1, 2])
    expected = noisy.next_log_probs([[2], [0], [2], [1]])
    np.testing.assert_allclose(noisy.log_probs(noisy.take(state, [2, 0, 2, 1])), expected, rtol=1e-13)


def test_conditioning_keeps_the_noise_of_the_whole_history():
    noisy = perturbed(HiddenMarkovModel.random(2, 2, 5, 0), 0.5, 0)
    rest = noisy.condition([1, 0])
    np.testing.assert_array_equal(rest.next_log_probs([[1]]), noisy.next_log_probs([[1, 0, 1]]))


def test_no_noise_is_the_model_itself_and_impossible_stays_impossible():
    parity = NoisyParity([1, 1, 0], 0.0)
    check_same(perturbed(parity, 0.0, 1), parity)
    strings = all_strings(2, 4)
    np.testing.assert_array_equal(
        perturbed(parity, 2.0, 1).score(strings) == -np.inf, parity.score(strings) == -np.inf
    )


def test_identity_follows_the_model_underneath():
    assert perturbed(NoisyParity([1], 0.1), 0.1, 0).identity is None


def test_bad_parameters():
    model = NoisyParity([1], 0.1)
    for arguments in [
        (model, -1.0),
        (model, np.nan),
        (model, "1"),
        (model, 0.1, 0.5),
        (model, 0.1, -1),
        (None, 0.1),
    ]:
        with pytest.raises(ParameterError) as caught:
            perturbed(*arguments)
        assert "\n" not in str(caught.value)
