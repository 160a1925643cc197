"""Noisy parity: formula, ranks, its hidden Markov model and its network."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oracles import NoisyParity
from oracles.errors import ParameterError, ShapeError, TokenError, ZeroProbabilityError
from tests.oracles.enumeration import check_exact, check_same, logit_rank, probability_rank

SECRETS = st.lists(st.integers(0, 1), max_size=6)


def definition(secret, noise):
    def probability(string):
        *bits, label = string
        parity = sum(s * x for s, x in zip(secret, bits, strict=True)) % 2
        return 0.5 ** len(secret) * (1 - noise if label == parity else noise)

    return probability


@given(SECRETS, st.sampled_from([0.0, 1e-9, 0.1, 0.5, 0.8, 1.0]))
def test_exact(secret, noise):
    parity = NoisyParity(secret, noise)
    check_exact(parity, definition(secret, noise))
    check_same(parity.to_hmm(), parity)
    if 0 < noise < 1:
        network = parity.to_isan()
        assert network.width == 1
        check_same(network, parity)
    else:
        with pytest.raises(ZeroProbabilityError):
            parity.to_isan()


def test_ranks_are_two_and_one():
    parity = NoisyParity([1, 0, 1, 1], 0.2)
    assert [probability_rank(parity, cut) for cut in range(5)] == [1, 2, 2, 2, 2]
    assert [logit_rank(parity, cut) for cut in range(5)] == [1] * 5


def test_label_logit():
    parity = NoisyParity([1, 1], 0.1)
    laws = parity.next_log_probs([[1, 0], [1, 1]])
    expected = 0.5 * np.log(9)
    np.testing.assert_allclose(laws[:, 1] - laws.mean(axis=1), [expected, -expected], rtol=1e-14)


def test_random_secrets_are_nonzero_and_reproducible():
    assert all(NoisyParity.random(1, 0.1, seed).secret[0] for seed in range(20))
    np.testing.assert_array_equal(
        NoisyParity.random(30, 0.1, 3).secret, NoisyParity.random(30, 0.1, 3).secret
    )


def test_the_secret_is_a_copy():
    secret = np.array([1, 0])
    parity = NoisyParity(secret, 0.1)
    secret[0] = 0
    assert parity.secret[0] == 1


def test_bad_parameters():
    for kind, arguments in [
        (TokenError, ([0, 2], 0.1)),
        (TokenError, ([0.5], 0.1)),
        (ShapeError, ([[0, 1]], 0.1)),
        (ParameterError, ([0, 1], -0.1)),
        (ParameterError, ([0, 1], 1.1)),
        (ParameterError, ([0, 1], np.nan)),
        (ParameterError, ([0, 1], "0.1")),
    ]:
        with pytest.raises(kind) as caught:
            NoisyParity(*arguments)
        assert "\n" not in str(caught.value)
    with pytest.raises(ParameterError):
        NoisyParity.random(0, 0.1, 0)
