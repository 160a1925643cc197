"""Cauchy separation: formula, both ranks, its network."""

import math
from fractions import Fraction

import pytest

from oracles import CauchySeparation
from oracles.errors import ParameterError
from tests.oracles.enumeration import check_exact, check_same, logit_rank, probability_rank


def definition(n):
    def probability(string):
        def value(bits):
            return sum(Fraction(bit, 2**i) for i, bit in enumerate(bits, 1))

        gap = float(value(string[:n]) - value(string[n : 2 * n]))
        return 0.25**n / (1 + math.exp(-gap if string[-1] else gap))

    return probability


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_exact(n):
    model = CauchySeparation(n)
    check_exact(model, definition(n))
    network = model.to_isan()
    assert network.width == 2
    check_same(network, model)


def test_probability_rank_is_exponential_and_logit_rank_two():
    for n in (1, 2):
        assert probability_rank(CauchySeparation(n), n, 1e-13) == 2**n
    for n in (1, 2, 3):
        assert max(logit_rank(CauchySeparation(n), cut) for cut in range(2 * n + 1)) == 2


def test_bad_parameters():
    for n in (0, -1, 1.5, True):
        with pytest.raises(ParameterError):
            CauchySeparation(n)
