"""Input-switched affine networks: definition, kernels, random families, errors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oracles import ISAN
from oracles.errors import NonFiniteError, ParameterError, ShapeError
from oracles.isan import log_softmax, switched_product
from tests.oracles.enumeration import check_exact, check_frequencies, logit_rank, softmax
from tests.registry import per_step_isan


def definition(network: ISAN):
    """P(x) by matrix-vector products, one string at a time."""

    def probability(string):
        state, total = network.initial, 1.0
        for t, token in enumerate(string):
            readout = network.readouts[t] if network.readouts.ndim == 3 else network.readouts
            total *= softmax(readout @ state)[token]
            if t + 1 < network.horizon:
                maps = network.transitions[t] if network.transitions.ndim == 4 else network.transitions
                state = maps[token] @ state
        return total

    return probability


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(0, 99), st.booleans())
def test_exact(width, vocab_size, horizon, seed, orthogonal):
    network = ISAN.random(width, vocab_size, horizon, seed, scale=2.0, orthogonal=orthogonal)
    check_exact(network, definition(network))


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(0, 99))
def test_exact_per_step(width, vocab_size, horizon, seed):
    network = per_step_isan(width, vocab_size, horizon, seed)
    check_exact(network, definition(network))


def test_the_last_token_can_be_read():
    network = per_step_isan(2, 3, 4, 0)
    assert network.advance(network.start(2), [[0, 1, 2, 0], [1, 1, 1, 1]]).position == 4


def test_arguments_are_copied():
    arrays = [np.ones(2), np.ones((3, 2, 2)), np.eye(3)[:, :2].copy()]
    network = ISAN(*arrays, 4)
    before = network.score([[0, 1, 2, 0]])
    for array in arrays:
        array[:] = 7.0
    np.testing.assert_array_equal(network.score([[0, 1, 2, 0]]), before)


def test_constant_readouts_with_maps_per_step_and_the_reverse():
    rng = np.random.default_rng(0)
    x, maps, one = rng.normal(size=2), rng.normal(size=(3, 2, 2, 2)), rng.normal(size=(2, 2))
    for network in (ISAN(x, maps, one, 4), ISAN(x, maps[0], rng.normal(size=(4, 2, 2)), 4)):
        check_exact(network, definition(network))


def test_huge_logits_keep_full_precision():
    network = ISAN([1.0], [[[1.0]]] * 3, [[700.0], [-700.0], [699.0]], 2)
    laws = network.log_probs(network.start(1))[0]
    expected = np.array([0.0, -1400.0, -1.0]) - np.log1p(np.exp(-1.0))
    np.testing.assert_allclose(laws, expected, rtol=1e-14)


@given(st.integers(0, 300), st.integers(1, 9), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_switched_product_is_one_product_per_row(batch, vocab_size, width, out_width, seed):
    rng = np.random.default_rng(seed)
    rows, maps = rng.normal(size=(batch, width)), rng.normal(size=(vocab_size, width, out_width))
    tokens = rng.integers(0, vocab_size, batch)
    expected = np.array([r @ maps[t] for r, t in zip(rows, tokens, strict=True)]).reshape(batch, out_width)
    np.testing.assert_allclose(switched_product(rows, maps, tokens), expected, atol=1e-13)


@pytest.mark.parametrize("vocab_size", [1, 3, 70_000])
def test_switched_product_of_large_batches_groups_by_token(vocab_size):
    rng = np.random.default_rng(1)
    batch = 40_000 if vocab_size < 100 else 1
    maps = rng.normal(size=(vocab_size, 4, 4)) if batch > 1 else np.ones((vocab_size, 1, 1))
    rows = rng.normal(size=(batch, maps.shape[1]))
    tokens = rng.integers(0, vocab_size, batch)
    expected = np.einsum("ni,nij->nj", rows, maps[tokens])
    np.testing.assert_allclose(switched_product(rows, maps, tokens), expected, atol=1e-13)


def test_log_softmax_keeps_impossible_tokens():
    rows = np.array([[0.0, -np.inf, 0.0], [1e6, 1e6, -1e6]])
    expected = [[-np.log(2), -np.inf, -np.log(2)], [-np.log(2), -np.log(2), -2e6 - np.log(2)]]
    np.testing.assert_allclose(log_softmax(rows), expected, rtol=1e-15)


@pytest.mark.parametrize("orthogonal", [False, True])
@pytest.mark.parametrize("width", [2, 4, 8])
def test_random_logits_have_the_asked_scale_at_all_positions(orthogonal, width):
    spreads = []
    for seed in range(40):
        network = ISAN.random(width, 4, 300, seed, scale=0.7, orthogonal=orthogonal)
        strings = np.random.default_rng(seed).integers(0, 4, (20, 299))
        for length in (0, 20, 299):
            state = network.advance(network.start(20), strings[:, :length])
            spreads.append((length, (state.rows @ network.readouts.T).std() / 0.7))
    for length in (0, 20, 299):
        assert 0.5 < np.mean([s for t, s in spreads if t == length]) < 1.5


def test_logit_rank_is_the_width():
    assert logit_rank(ISAN.random(3, 3, 6, 0), 3) == 3
    assert logit_rank(ISAN.random(2, 2, 6, 0, orthogonal=True), 3) == 2


def test_samples_follow_the_law():
    network = ISAN.random(3, 3, 3, 4, scale=1.5)
    expected = np.exp(network.score(np.indices((3, 3, 3)).reshape(3, -1).T))
    check_frequencies(network.sample(20_000, 0), expected, 3)


def test_bad_arrays():
    x, maps, readout = np.ones(2), np.ones((3, 2, 2)), np.ones((3, 2))
    for kind, arguments in [
        (ShapeError, (np.ones((2, 1)), maps, readout, 4)),
        (ShapeError, (np.ones(3), maps, readout, 4)),
        (ShapeError, (np.ones(0), np.ones((3, 0, 0)), np.ones((3, 0)), 4)),
        (ShapeError, (x, np.ones((2, 2, 2)), readout, 4)),
        (ShapeError, (x, np.ones((4, 3, 2, 2)), readout, 4)),
        (ShapeError, (x, maps, np.ones((3, 3, 2)), 4)),
        (ShapeError, (x, [[1.0], [1.0, 2.0]], readout, 4)),
        (NonFiniteError, (x, np.full((3, 2, 2), np.nan), readout, 4)),
        (NonFiniteError, ([np.inf, 0.0], maps, readout, 4)),
        (ParameterError, (x, maps, readout, 0)),
        (ParameterError, (x, maps, readout, 2.5)),
    ]:
        with pytest.raises(kind) as caught:
            ISAN(*arguments)
        assert "\n" not in str(caught.value)
    for arguments in [(0, 2, 3), (2, 0, 3), (2, 2, 0)]:
        with pytest.raises(ParameterError):
            ISAN.random(*arguments, 0)
    with pytest.raises(ParameterError):
        ISAN.random(2, 2, 3, 0, scale=-1.0)


def test_an_exploding_network_says_so():
    network = ISAN([1.0], [[[1e200]], [[1e200]]], [[1.0], [-1.0]], 4)
    with pytest.raises(NonFiniteError, match="overflowed at position 2"):
        network.sample(3, 0)
