"""Sparse polynomials: formula, ranks, linear form, network, parity as a special case."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oracles import NoisyParity, SparsePolynomial
from oracles.errors import NonFiniteError, ParameterError, ShapeError
from tests.oracles.enumeration import check_exact, check_same, logit_rank


def definition(n, subsets, weights, bias):
    def probability(string):
        *bits, label = string
        odds = bias + sum(w * (-1) ** sum(bits[j] for j in s) for s, w in zip(subsets, weights, strict=True))
        return 0.5**n / (1 + math.exp(-odds if label else odds))

    return probability


@st.composite
def polynomials(draw):
    n = draw(st.integers(0, 5))
    bits = st.lists(st.integers(0, n - 1), unique=True, max_size=n) if n else st.just([])
    subsets = draw(st.lists(bits, max_size=4))
    weights = [draw(st.floats(-3, 3)) for _ in subsets]
    return n, subsets, weights, draw(st.sampled_from([0.0, 0.7, -1.0]))


@given(polynomials())
def test_exact(arguments):
    n, subsets, weights, bias = arguments
    model = SparsePolynomial(n, subsets, weights, bias)
    check_exact(model, definition(n, subsets, weights, bias))
    network = model.to_isan()
    assert network.width == max(1, len(subsets) + (bias != 0))
    check_same(network, model)


def test_logit_rank_is_at_most_the_number_of_terms_and_the_bias():
    assert logit_rank(SparsePolynomial(5, ((0, 3), (1, 4), (2, 3, 4)), [1.0, 0.7, 0.4], 0.3), 3) == 4
    assert logit_rank(SparsePolynomial(5, ((0, 3), (1, 4), (2, 3, 4)), [1.0, 0.7, 0.4]), 3) == 3


def test_noisy_parity_is_one_character():
    noise = 0.15
    weight = math.log((1 - noise) / noise)
    check_same(SparsePolynomial(3, ((0, 2),), [-weight]), NoisyParity([1, 0, 1], noise))


def test_random_has_distinct_nonempty_subsets():
    model = SparsePolynomial.random(3, 7, 0, scale=0.5)
    assert len(set(model.subsets)) == 7
    assert all(model.subsets)
    np.testing.assert_array_equal(np.abs(model.weights), 0.5)
    with pytest.raises(ParameterError):
        SparsePolynomial.random(3, 8, 0)


def test_linear_form_stops_at_six_characters():
    assert SparsePolynomial.random(5, 6, 0).linear_form() is not None
    assert SparsePolynomial.random(5, 7, 0).linear_form() is None


def test_large_weights_are_thresholds():
    model = SparsePolynomial(2, ((0,),), [1e4])
    np.testing.assert_array_equal(model.next_log_probs([[1, 0]]), [[0.0, -1e4]])


def test_bad_parameters():
    for kind, arguments in [
        (ParameterError, (-1, (), [])),
        (ParameterError, (3, ((0, 3),), [1.0])),
        (ParameterError, (3, ((-1,),), [1.0])),
        (ParameterError, (3, ((1, 1),), [1.0])),
        (ParameterError, (3, ((0.5,),), [1.0])),
        (ShapeError, (3, (0, 1), [1.0, 1.0])),
        (ShapeError, (3, "01", [1.0])),
        (ShapeError, (3, ((0,),), [1.0, 2.0])),
        (NonFiniteError, (3, ((0,),), [np.inf])),
        (ParameterError, (3, (), [], np.nan)),
    ]:
        with pytest.raises(kind) as caught:
            SparsePolynomial(*arguments)
        assert "\n" not in str(caught.value)
