"""Noisy copy: formula, the published ranks, its network."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oracles import NoisyCopy
from oracles.errors import ParameterError, ZeroProbabilityError
from tests.oracles.enumeration import check_exact, check_same, logit_rank, probability_rank


def definition(length, vocab_size, noise):
    def probability(string):
        total = 1.0
        for first, second in zip(string[:length], string[length:], strict=True):
            total *= (1 - noise if first == second else noise / (vocab_size - 1)) / vocab_size
        return total

    return probability


@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from([0.0, 1e-6, 0.2, 0.5, 1.0]))
def test_exact(length, vocab_size, noise):
    noise = 0.0 if vocab_size == 1 else noise
    model = NoisyCopy(length, vocab_size, noise)
    check_exact(model, definition(length, vocab_size, noise))
    if vocab_size > 1 and noise in (0.0, 1.0):
        with pytest.raises(ZeroProbabilityError):
            model.to_isan()
    else:
        network = model.to_isan()
        assert network.width == max(1, length * (vocab_size - 1))
        check_same(network, model)


def test_published_ranks():
    for length, vocab_size, probability, logit in [(2, 3, 9, 4), (3, 2, 8, 3)]:
        model = NoisyCopy(length, vocab_size, 0.2)
        assert probability_rank(model, length) == probability
        assert logit_rank(model, length) == logit
        assert max(logit_rank(model, cut) for cut in range(2 * length)) == logit


def test_bad_parameters():
    for arguments in [(0, 2, 0.1), (2, 0, 0.1), (2, 2, 1.5), (2, 2, -0.1), (2, 1, 0.1), (2.0, 2, 0.1)]:
        with pytest.raises(ParameterError) as caught:
            NoisyCopy(*arguments)
        assert "\n" not in str(caught.value)
