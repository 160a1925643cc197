"""The growing-rank teacher: formula, network of width n + 7, distance to the ideal generator."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oracles import BranchingProgram
from oracles.errors import NonFiniteError, ParameterError, ShapeError, TokenError
from tests.oracles.enumeration import all_strings, check_exact, check_same


def verdict(model, copies):
    state = 0
    for j, bit in enumerate(copies):
        state = int(model.permutations[j, bit, state])
    return 1 if state != 0 else -1


def definition(model):
    n, count = model.n_bits, len(model.schedule)

    def law(token, logit):
        return 1 / (1 + math.exp(-2 * logit if token else 2 * logit))

    def probability(string):
        bits, copies, label = string[:n], string[n : n + count], string[n + count]
        total = 0.5 ** (model.horizon - count - 1)
        mismatches = 0
        for source, copy in zip(model.schedule.tolist(), copies, strict=True):
            total *= law(copy, model.scale * (2 * bits[source] - 1))
            mismatches += copy != bits[source]
        return total * law(label, model.scale * (2 * mismatches + verdict(model, copies)))

    return probability


@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.5, 3.0]),
    st.integers(0, 2),
    st.integers(0, 99),
)
def test_exact(n_bits, n_copies, scale, padding, seed):
    model = BranchingProgram.random(n_bits, n_copies, scale, n_bits + n_copies + 1 + padding, seed)
    check_exact(model, definition(model))
    network = model.to_isan()
    assert network.width == n_bits + 7
    check_same(network, model)


def test_distance_to_the_error_free_generator():
    """TV = 1 − (1−η)^(L+1): the ideal generator copies and labels without error."""
    model = BranchingProgram.random(2, 3, 0.8, rng=3)
    strings = all_strings(2, model.horizon)
    ideal = np.array(
        [0.25 * (s[2:5] == s[model.schedule]).all() * (s[5] == (verdict(model, s[2:5]) > 0)) for s in strings]
    )
    distance = 0.5 * np.abs(np.exp(model.score(strings)) - ideal).sum()
    eta = 1 / (1 + math.exp(2 * 0.8))
    assert distance == pytest.approx(1 - (1 - eta) ** 4, abs=1e-12)


def test_number_of_bits_defaults_to_the_largest_scheduled_one():
    permutations = np.tile(np.arange(5), (2, 2, 1))
    assert BranchingProgram([2, 0], permutations, 1.0, 6).n_bits == 3
    assert BranchingProgram([0, 0], permutations, 1.0, 9, n_bits=4).n_bits == 4


def test_bad_parameters():
    same = np.tile(np.arange(5), (2, 2, 1))
    swapped = same.copy()
    swapped[0, 0, 0] = 1
    for kind, arguments in [
        (TokenError, ([0, -1], same, 1.0, 6)),
        (TokenError, ([0, 3], same, 1.0, 9, 3)),
        (TokenError, ([0.5, 1.0], same, 1.0, 6)),
        (ShapeError, ([], same[:0], 1.0, 6)),
        (ShapeError, ([[0, 1]], same, 1.0, 6)),
        (ShapeError, ([0, 1], same[:1], 1.0, 6)),
        (ShapeError, ([0, 1], same[:, :, :4], 1.0, 6)),
        (ParameterError, ([0, 1], swapped, 1.0, 6)),
        (ParameterError, ([0, 1], same + 0.5, 1.0, 6)),
        (NonFiniteError, ([0, 1], same + np.nan, 1.0, 6)),
        (ParameterError, ([0, 1], same, -1.0, 6)),
        (ParameterError, ([0, 1], same, np.inf, 6)),
        (ParameterError, ([0, 1], same, 1.0, 4)),
        (ParameterError, ([0, 1], same, 1.0, 6, 0)),
    ]:
        with pytest.raises(kind) as caught:
            BranchingProgram(*arguments)
        assert "\n" not in str(caught.value)
