"""Spanners of sets that are known by linear maximisation alone."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrlm_sim.spanners import (
    represent,
    spanner_from_oracle,
)
from oracles.errors import InconsistentAnswerError, NonFiniteError, ParameterError, ShapeError

SLACK = 1 + 1e-8


def finite(X):
    return lambda w: X[np.argmax(X @ w)]


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 60),
    d=st.integers(1, 8),
    rank=st.integers(1, 8),
    C=st.sampled_from([1.01, 2.0]),
)
def test_oracle_spanner_of_a_finite_set(seed, n, d, rank, C):
    rng = np.random.default_rng(seed)
    r = min(n, d, rank)
    X = rng.standard_normal((n, r)) @ rng.standard_normal((r, d))
    found = spanner_from_oracle(finite(X), d, C)
    assert found.points.shape == (r, d)
    coefficients, residuals = represent(found.points, X)
    assert np.abs(coefficients).max() <= C * SLACK
    assert found.max_coefficient == pytest.approx(np.abs(coefficients).max(), rel=1e-6)
    assert residuals.max() <= 1e-9 * np.abs(X).max()
    assert found.swaps <= r / 2 * math.log(r, C) + 1e-9
    assert found.calls == 2 * (d + found.swaps + (found.calls // 2 - d - found.swaps))


def test_oracle_spanner_of_an_ellipsoid_and_a_cube():
    rng = np.random.default_rng(0)
    A = rng.standard_normal((6, 6))

    def ellipsoid(w):
        direction = A.T @ w
        return A @ direction / np.linalg.norm(direction)

    found = spanner_from_oracle(ellipsoid, 6, 1.01)
    dual = np.linalg.inv(found.points)  # the largest coefficient i over the ellipsoid is ‖Aᵀ dual_i‖
    assert np.linalg.norm(A.T @ dual, axis=0).max() == pytest.approx(found.max_coefficient)
    assert found.max_coefficient <= 1.01
    cube = spanner_from_oracle(lambda w: np.where(w >= 0, 1.0, -1.0), 5, 1.01)
    corners = np.array(list(itertools.product((-1.0, 1.0), repeat=5)))
    assert np.abs(represent(cube.points, corners)[0]).max() <= 1.01


def test_oracle_spanner_of_zero_and_scaled_sets():
    assert spanner_from_oracle(lambda w: np.zeros(3), 3).points.shape == (0, 3)
    X = np.random.default_rng(0).standard_normal((40, 4)) * [1e-8, 1.0, 1e8, 1e3]
    found = spanner_from_oracle(finite(X), 4)
    assert found.points.shape == (4, 4)
    assert np.abs(represent(found.points, X)[0]).max() <= 2 * SLACK


def test_oracles_that_do_not_maximise_are_noticed():
    asked = itertools.count(1)
    with pytest.raises(InconsistentAnswerError, match="maximise"):
        spanner_from_oracle(lambda w: w / np.linalg.norm(w) * 2.0 ** next(asked), 4)
    with pytest.raises(ShapeError):
        spanner_from_oracle(lambda w: np.ones(3), 4)
    with pytest.raises(NonFiniteError):
        spanner_from_oracle(lambda w: np.full(4, np.nan), 4)
    with pytest.raises(ParameterError):
        spanner_from_oracle(lambda w: w, 4, C=1.0)


class Finite:
    """Linear maximisation over the rows of a matrix; ties go to the first."""

    def __init__(self, points):
        self.points = np.asarray(points, dtype=float)
        self.asked: list[np.ndarray] = []

    def __call__(self, w):
        self.asked.append(w.copy())
        x = self.points[np.argmax(self.points @ w)].copy()
        w[:] = np.nan  # the question is the caller's copy
        return x


def test_unit_vectors_take_two_rounds_of_two_calls_per_dimension():
    oracle = Finite([*np.eye(3), *-np.eye(3)])
    spanner = spanner_from_oracle(oracle, 3)
    np.testing.assert_array_equal(spanner.points, np.eye(3))
    assert (spanner.max_coefficient, spanner.swaps, spanner.calls) == (1.0, 0, 12)
    assert len(oracle.asked) == 12
    np.testing.assert_array_equal(oracle.asked[:2], [[1, 0, 0], [-1, 0, 0]])


def test_the_point_of_largest_absolute_value_replaces_a_unit_vector():
    spanner = spanner_from_oracle(Finite([[0.5, 0.1], [-2.0, 0.3], [0.0, 1.0], [0.1, -0.9]]), 2)
    np.testing.assert_array_equal(spanner.points, [[-2.0, 0.3], [0.0, 1.0]])


def test_exchanges_start_again_from_the_next_point_and_count():
    points = np.array([[1.0, 0.0], [0.0, 1.0], [0.9, 5.0], [-4.0, 0.2], [3.0, 3.0]])
    spanner = spanner_from_oracle(Finite(points), 2, C=1.01)
    coefficients = points @ np.linalg.inv(spanner.points)
    assert np.abs(coefficients).max() == pytest.approx(spanner.max_coefficient, rel=1e-12)
    assert spanner.max_coefficient <= 1.01
    assert spanner.swaps <= 1 / math.log2(1.01)
    assert spanner.calls >= 2 * (2 + 2 + spanner.swaps)


def test_directions_that_the_set_lacks_are_not_returned():
    flat = np.array([[1.0, 1.0, 0.0], [1.0, -1.0, 0.0], [0.5, 0.0, 0.0]])
    spanner = spanner_from_oracle(Finite([*flat, *-flat]), 3)
    assert spanner.points.shape == (2, 3)
    assert spanner.calls == 2 * 3 + 2 * 2
    nothing = spanner_from_oracle(lambda w: np.zeros(2), 2)
    assert nothing.points.shape == (0, 2)
    assert (nothing.max_coefficient, nothing.swaps, nothing.calls) == (0.0, 0, 4)


@pytest.mark.parametrize(("size", "found"), [(1e-12, 1), (1e-10, 2)])
def test_a_direction_counts_from_the_tolerance_on(size, found):
    """`size` against 1e-11 of what cancels: the second coordinate of (1, 1 + size) over (1, 1)."""
    points = np.array([[1.0, 1.0], [1.0, 1.0 + size]])
    assert len(spanner_from_oracle(Finite([*points, *-points]), 2).points) == found


@pytest.mark.parametrize(
    ("C", "dimension", "swaps", "bound"), [(2, 2, 3, "1.0"), (4, 2, 2, "0.5"), (2, 4, 6, "4.0")]
)
def test_an_oracle_that_does_not_maximise_is_stopped_after_the_bound(C, dimension, swaps, bound):
    """Each answer is ten times the last one: every coefficient exceeds C for ever."""
    size = [1.0]

    def diagonal(w):
        size[0] *= 10
        return size[0] * np.eye(dimension)[np.argmax(np.abs(w))]

    with pytest.raises(InconsistentAnswerError) as error:
        spanner_from_oracle(diagonal, dimension, C=C)
    assert str(error.value) == (
        f"{swaps} exchanges exceed the bound {bound}: maximise must return a point of the set where the "
        "linear function is largest"
    )
