"""Hidden Markov models: sums over hidden paths, hmmlearn, extreme scores, alias sampling."""

import itertools

import numpy as np
import pytest
from hmmlearn.hmm import CategoricalHMM
from hypothesis import given
from hypothesis import strategies as st

from oracles import HiddenMarkovModel
from oracles.base import Oracle
from oracles.errors import NonFiniteError, ParameterError, ProbabilityError, ShapeError
from tests.oracles.enumeration import (
    all_strings,
    check_exact,
    check_frequencies,
    dirichlet_with_zeros,
    logit_rank,
    probability_rank,
)
from tests.registry import deterministic_hmm, per_step_hmm, sparse_hmm


def path_sum(model: HiddenMarkovModel):
    """Σ over hidden paths π(s_1) E(s_1, x_1) Π Q(s_t, s_(t+1)) E(s_(t+1), x_(t+1))."""

    def emission(t):
        return model.emission[t] if model.emission.ndim == 3 else model.emission

    def transition(t):
        return model.transition[t] if model.transition.ndim == 3 else model.transition

    def probability(string):
        total = 0.0
        for path in itertools.product(range(model.n_states), repeat=len(string)):
            weight = model.initial[path[0]]
            for t, (state, token) in enumerate(zip(path, string, strict=True)):
                weight *= emission(t)[state, token]
                if t + 1 < len(string):
                    weight *= transition(t)[state, path[t + 1]]
            total += weight
        return total

    return probability


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(0, 99))
def test_exact(states, vocab_size, horizon, seed):
    model = HiddenMarkovModel.random(states, vocab_size, horizon, seed)
    check_exact(model, path_sum(model))
    model = per_step_hmm(states, vocab_size, horizon, seed)
    check_exact(model, path_sum(model))


@given(st.integers(0, 99))
def test_exact_with_zeros(seed):
    rng = np.random.default_rng(seed)
    arrays = [dirichlet_with_zeros(rng, shape) for shape in ((3,), (3, 3), (3, 3))]
    model = HiddenMarkovModel(*arrays, 4)
    check_exact(model, path_sum(model))


def test_exact_when_one_array_only_varies():
    rng = np.random.default_rng(0)
    steps = rng.dirichlet(np.ones(2), (3, 2))
    for transition, emission in [(steps[:2], steps[0]), (steps[0], steps)]:
        model = HiddenMarkovModel([0.3, 0.7], transition, emission, 3)
        check_exact(model, path_sum(model))


@given(st.integers(1, 5), st.integers(2, 6), st.integers(1, 30), st.integers(0, 99))
def test_score_agrees_with_hmmlearn(states, vocab_size, horizon, seed):
    model = HiddenMarkovModel.random(states, vocab_size, horizon, seed)
    peer = CategoricalHMM(n_components=states, n_features=vocab_size)
    peer.startprob_, peer.transmat_, peer.emissionprob_ = model.initial, model.transition, model.emission
    strings = model.sample(5, seed)
    expected = [peer.score(string[:, None]) for string in strings]
    np.testing.assert_allclose(model.score(strings), expected, atol=1e-10)


def test_ranks():
    """Probability rank is at most the number of states, the logit rank grows with the cut (arXiv:2510.24966).

    At cut 3 all 7 columns are independent: the smallest singular value, 2.8e-9 of the largest, was
    confirmed in 60-digit arithmetic. A tolerance of 1e-8 sees 6.
    """
    model = HiddenMarkovModel.random(2, 2, 6, 1)
    assert [probability_rank(model, cut) for cut in range(7)] == [1, 2, 2, 2, 2, 2, 1]
    assert [logit_rank(model, cut, 1e-10) for cut in range(6)] == [1, 2, 4, 7, 3, 1]
    assert logit_rank(model, 3, 1e-8) == 6


@pytest.mark.parametrize("tiny", [1e-30, 2e-40, 1e-60, 1e-300])
def test_scores_survive_any_underflow_between_renormalisations(tiny):
    """A rare token many times over: the blocked forward pass must not return −∞ or lose digits."""
    model = HiddenMarkovModel([0.5, 0.5], [[0.5, 0.5], [0.5, 0.5]], [[1, tiny], [1, tiny]], 30)
    strings = np.zeros((3, 30), dtype=int)
    strings[1], strings[2, 4:20] = 1, 1
    np.testing.assert_allclose(
        model.score(strings), np.log(tiny) * np.array([0, 30, 16]), rtol=1e-13, atol=1e-12
    )


def test_blocks_of_any_size_score_alike():
    model = HiddenMarkovModel.random(4, 3, 20, 0)
    strings = model.sample(700, 0)
    scores = model.score(strings)
    np.testing.assert_allclose(scores, Oracle.score(model, strings), atol=1e-11)
    np.testing.assert_allclose(scores[[0, 300, 699]], model.score(strings[[0, 300, 699]]), atol=1e-12)
    tail = model.score(strings[:, 8:], history=strings[0, :8])
    np.testing.assert_allclose(tail, Oracle.score(model, strings[:, 8:], history=strings[0, :8]), atol=1e-11)


def test_samples_follow_the_law_from_any_history():
    for model in (per_step_hmm(3, 3, 4, 0), sparse_hmm()):
        expected = np.exp(model.score(all_strings(3, model.horizon)))
        check_frequencies(model.sample(20_000, 0), expected, 3)
        history = model.sample(1, 1)[0, :2]
        rest = np.exp(model.score(all_strings(3, model.horizon - 2), history=history))
        check_frequencies(model.sample(20_000, 2, history=history), rest, 3)
        short = np.exp(model.score(all_strings(3, 2)))
        check_frequencies(model.sample(20_000, 3, length=2), short, 3)


def test_deterministic_model_has_one_string():
    model = deterministic_hmm(7)
    np.testing.assert_array_equal(model.sample(5, 0), [[0, 1, 2, 0, 1, 2, 0]] * 5)
    assert model.score([[0, 1, 2, 0, 1, 2, 0]])[0] == 0.0


def test_long_horizons_stay_normalised():
    model = HiddenMarkovModel.random(5, 4, 5000, 0)
    strings = model.sample(4, 0)
    state = model.advance(model.start(4), strings[:, :-1])
    assert np.abs(np.exp(model.log_probs(state)).sum(axis=1) - 1).max() <= 1e-12
    np.testing.assert_allclose(model.score(strings), Oracle.score(model, strings), rtol=1e-12)


def test_bad_arrays():
    pi, q, e = [0.5, 0.5], np.full((2, 2), 0.5), np.full((2, 3), 1 / 3)
    for kind, arguments in [
        (ShapeError, ([pi], q, e, 3)),
        (ShapeError, ([1.0], q, e, 3)),
        (ShapeError, (pi, np.full((2, 3), 1 / 3), e, 3)),
        (ShapeError, (pi, np.full((3, 2, 2), 0.5), e, 3)),
        (ShapeError, (pi, q, np.full((2, 2, 3), 1 / 3), 3)),
        (ShapeError, (pi, q, [1.0], 3)),
        (ShapeError, (pi, [[1.0], [0.5, 0.5]], e, 3)),
        (ProbabilityError, (pi, 2 * q, e, 3)),
        (ProbabilityError, ([1.5, -0.5], q, e, 3)),
        (ProbabilityError, (pi, q, e + 1e-8, 3)),
        (NonFiniteError, (pi, q, np.full((2, 3), np.nan), 3)),
        (NonFiniteError, ([np.inf, 0.0], q, e, 3)),
        (ParameterError, (pi, q, e, 0)),
        (ParameterError, (pi, q, e, True)),
    ]:
        with pytest.raises(kind) as caught:
            HiddenMarkovModel(*arguments)
        assert "\n" not in str(caught.value)
    for arguments in [(0, 2, 3), (2, -1, 3), (2, 2, 0)]:
        with pytest.raises(ParameterError):
            HiddenMarkovModel.random(*arguments, 0)
