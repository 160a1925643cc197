"""Details of spanners that whole-result tests pass by: the parts by their definitions, messages in full."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.linalg import qr

from lrlm_sim import spanner_search
from lrlm_sim.spanner_oracle import as_approximation, spanner_from_oracle
from lrlm_sim.spanner_search import (
    Start,
    UncertifiableError,
    as_points,
    factor,
    first_pool,
    grow,
    norms_of,
    search,
)
from lrlm_sim.spanners import (
    barycentric_spanner,
    distributional_spanner,
    represent,
    robust_spanner,
    sample_compression_size,
)
from oracles.errors import InconsistentAnswerError, NonFiniteError, ParameterError, ShapeError

EYE, FEW = np.eye(2), sample_compression_size(2, 0.5, 0.5)
WRONG = {
    "C is 1": (
        lambda: as_approximation(1),
        "C must exceed 1: the search for C = 1 (a set of largest volume) has no polynomial bound; "
        "ask for C = 1.01",
    ),
    "C below 1": (lambda: as_approximation(0.5), "C must be finite and in [1.0, inf], got 0.5"),
    "C is no number": (lambda: as_approximation("2"), "C must be a number, got '2'"),
    "tolerance": (
        lambda: barycentric_spanner(EYE, tolerance=1.0),
        "tolerance must be finite and in [1e-15, 0.001], got 1.0",
    ),
    "tolerance below": (
        lambda: barycentric_spanner(EYE, tolerance=1e-16),
        "tolerance must be finite and in [1e-15, 0.001], got 1e-16",
    ),
    "noise": (lambda: barycentric_spanner(EYE, noise=-1), "noise must be finite and in [0.0, inf], got -1"),
    "points": (lambda: barycentric_spanner(np.ones(3)), "X must have shape (n, d) = 2 axes, got (3,)"),
    "points are NaN": (
        lambda: barycentric_spanner([[np.nan]]),
        "X (n, d) must be finite, got NaN or infinity",
    ),
    "start": (
        lambda: barycentric_spanner(EYE, start="best"),
        "start must be 'pivoted', 'random' or row numbers, got 'best'",
    ),
    "oracle's tolerance": (
        lambda: spanner_from_oracle(lambda w: w, 2, tolerance=1.0),
        "tolerance must be finite and in [1e-15, 0.001], got 1.0",
    ),
    "oracle's tolerance below": (
        lambda: spanner_from_oracle(lambda w: w, 2, tolerance=1e-16),
        "tolerance must be finite and in [1e-15, 0.001], got 1e-16",
    ),
    "dimension": (lambda: spanner_from_oracle(lambda w: w, 0), "dimension must be at least 1, got 0"),
    "answer's length": (
        lambda: spanner_from_oracle(lambda w: np.ones(3), 2),
        "maximise(w) must have shape (dimension,) = (2,), got (3,)",
    ),
    "answer's axes": (
        lambda: spanner_from_oracle(lambda w: np.ones((1, 2)), 2),
        "maximise(w) must have shape (dimension,) = 1 axes, got (1, 2)",
    ),
    "answer is NaN": (
        lambda: spanner_from_oracle(lambda w: [np.nan, 1], 2),
        "maximise(w) (dimension,) must be finite, got NaN or infinity",
    ),
    "points of represent": (
        lambda: represent(np.ones(2), EYE),
        "spanner must have shape (r, d) = 2 axes, got (2,)",
    ),
    "rows of represent": (
        lambda: represent(EYE, np.ones(2)),
        "rows must have shape (n, d) = 2 axes, got (2,)",
    ),
    "width of represent": (
        lambda: represent(EYE, np.ones((4, 3))),
        "rows must have shape (n, d) = (n, 2), got (4, 3)",
    ),
    "dependent": (
        lambda: represent([[1.0, 2.0], [2.0, 4.0]], EYE),
        "the points of a spanner must be independent and not zero: drop the others",
    ),
    "zero": (
        lambda: represent([[1.0, 2.0], [0.0, 0.0]], EYE),
        "the points of a spanner must be independent and not zero: drop the others",
    ),
    "too many": (
        lambda: represent([[1.0, 2.0], [0.0, 1.0], [1.0, 0.0]], EYE),
        "the points of a spanner must be independent and not zero: drop the others",
    ),
    "gamma": (lambda: robust_spanner(EYE, -0.5), "gamma must be finite and in [0.0, inf], got -0.5"),
    "robust rows": (lambda: robust_spanner(np.ones(2), 0.1), "X must have shape (n, m) = 2 axes, got (2,)"),
    "robust start": (
        lambda: robust_spanner(EYE, 0.1, start="best"),
        "start must be 'pivoted', 'random' or row numbers, got 'best'",
    ),
    "rows wanted": (lambda: sample_compression_size(0, 0.1, 0.1), "dimension must be at least 1, got 0"),
    "eta": (lambda: sample_compression_size(2, 0, 0.1), "eta must lie strictly between 0 and 1, got 0.0"),
    "eta above": (
        lambda: sample_compression_size(2, 1.5, 0.1),
        "eta must be finite and in [0.0, 1.0], got 1.5",
    ),
    "delta": (lambda: sample_compression_size(2, 0.1, 1), "delta must lie strictly between 0 and 1, got 1.0"),
    "delta below": (
        lambda: sample_compression_size(2, 0.1, -1),
        "delta must be finite and in [0.0, 1.0], got -1",
    ),
    "rows drawn": (
        lambda: distributional_spanner(lambda n, rng: np.ones((3, 2)), 2, 0.5, 0.5),
        f"draw(n, rng) must have shape (n, dimension) = ({FEW}, 2), got (3, 2)",
    ),
    "rows drawn are flat": (
        lambda: distributional_spanner(lambda n, rng: np.ones(2 * n), 2, 0.5, 0.5),
        f"draw(n, rng) must have shape (n, dimension) = 2 axes, got ({2 * FEW},)",
    ),
    "rows drawn are NaN": (
        lambda: distributional_spanner(lambda n, rng: np.full((n, 2), np.nan), 2, 0.5, 0.5),
        "draw(n, rng) (n, dimension) must be finite, got NaN or infinity",
    ),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG.keys())
def test_messages_name_the_argument_what_was_expected_and_what_came(call, message):
    with pytest.raises((ParameterError, ShapeError, NonFiniteError)) as error:
        call()
    assert str(error.value) == message


def test_rows_that_no_double_certifies_are_refused_with_remedies(monkeypatch):
    monkeypatch.setattr(spanner_search, "_exchange", _refuse)
    with pytest.raises(ParameterError) as error:
        barycentric_spanner(EYE)
    assert str(error.value) == (
        "X has rows of such different sizes, or so nearly dependent, that double precision cannot "
        "certify a spanner: rescale the rows, raise tolerance or noise, or use robust_spanner"
    )


def _refuse(*_):
    raise UncertifiableError


# --- sets known by linear maximisation -----------------------------------------------------------------


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


# --- robust and distributional -------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(40, 6), (5, 12)])
def test_robust_spanners_keep_singular_values_above_twice_gamma_root_n(n, m):
    rng = np.random.default_rng(0)
    gamma = 0.01
    u, v = np.linalg.qr(rng.standard_normal((n, 3)))[0], np.linalg.qr(rng.standard_normal((m, 3)))[0]
    X = u * np.array([3.0, 2.01 * gamma * math.sqrt(n), 1.99 * gamma * math.sqrt(n)]) @ v.T
    found = robust_spanner(X, gamma, C=1.5)
    assert found.directions.shape == (m, 2)
    np.testing.assert_allclose(np.abs(found.directions.T @ v[:, :2]), np.eye(2), atol=1e-10)
    assert found.error_bound == pytest.approx(2 * gamma * (1 + 1.5 * 2) * math.sqrt(n * m), rel=1e-12)
    left = X - found.spanner.coefficients @ X[found.spanner.indices]
    assert found.error == pytest.approx(np.abs(left).sum(axis=1).max(), rel=1e-12)
    assert found.error <= found.error_bound
    assert found.spanner.max_coefficient <= 1.5
    kept = X @ found.directions
    np.testing.assert_allclose(found.spanner.coefficients @ kept[found.spanner.indices], kept, atol=1e-12)


def test_robust_spanners_pass_on_start_and_randomness():
    X = np.random.default_rng(1).standard_normal((300, 5))
    chosen = [robust_spanner(X, 1e-3, 4.0, "random", seed).spanner.indices for seed in (3, 3, 4)]
    direct = barycentric_spanner(X, 4.0, "random", 3).indices
    np.testing.assert_array_equal(chosen[0], chosen[1])
    assert set(chosen[0]) == set(direct)
    assert set(chosen[0]) != set(chosen[2])


def test_exact_rows_have_robust_rank_without_gamma():
    """γ = 0: what is kept is what stands above rounding, max(n, m)·ε·σ₁."""
    rng = np.random.default_rng(2)
    X = rng.standard_normal((60, 3)) @ rng.standard_normal((3, 30))
    found = robust_spanner(X, 0.0)
    assert found.directions.shape == (30, 3)
    assert found.error_bound == 0.0
    assert robust_spanner(np.zeros((4, 3)), 0.0).directions.shape == (3, 0)


@pytest.mark.parametrize(
    ("m", "eta", "delta"), [(1, 0.5, 0.5), (3, 0.1, 0.05), (8, 0.01, 1e-6), (2, 0.3, 0.9)]
)
def test_the_compression_size_is_its_formula_and_its_bound_holds(m, eta, delta):
    size = sample_compression_size(m, eta, delta)
    inner = m * math.ceil(math.log2(2 * m / eta)) + math.ceil(math.log2((m + 1) / delta))
    assert size == math.ceil(2 / eta * inner)
    failure = sum(math.comb(size, k) * (1 - eta) ** (size - k) for k in range(m + 1))
    assert failure <= delta


def test_distributional_spanners_use_their_rows_their_factor_and_their_generator():
    drawn = []

    def draw(n, rng):
        drawn.append((n, np.sign(rng.standard_normal((n, 6)))))
        return drawn[-1][1]

    found = distributional_spanner(draw, 6, 0.2, 0.1, C=1.05, rng=5)
    (size, rows), *others = drawn
    assert not others
    assert size == found.sample_size == sample_compression_size(6, 0.2, 0.1)
    np.testing.assert_array_equal(rows, np.sign(np.random.default_rng(5).standard_normal((size, 6))))
    np.testing.assert_array_equal(found.points, rows[found.spanner.indices])
    assert np.abs(rows @ np.linalg.inv(found.points)).max() <= 1.05 + 1e-9
    looser = distributional_spanner(draw, 6, 0.2, 0.1, rng=5)
    assert looser.spanner.max_coefficient > 1.05


def test_represent_is_least_squares_whatever_the_columns_scales():
    rng = np.random.default_rng(3)
    scales = 10.0 ** rng.integers(-12, 12, 6)
    basis, rows = rng.standard_normal((3, 6)) * scales, rng.standard_normal((7, 6)) * scales
    coefficients, residual = represent(basis, rows)
    inside, nothing = represent(basis, rng.standard_normal((4, 3)) @ basis)
    largest = np.abs(basis / norms_of(basis)[:, None]).max(axis=0)
    factors = np.exp2(-np.round(np.log2(largest)))
    expected = np.linalg.lstsq((basis * factors).T, (rows * factors).T, rcond=None)[0].T
    np.testing.assert_allclose(coefficients, expected, rtol=1e-9)
    np.testing.assert_allclose(residual, np.linalg.norm(rows - coefficients @ basis, axis=1), rtol=1e-12)
    assert (nothing <= 1e-9 * norms_of(inside @ basis)).all()


# --- parts of the search -------------------------------------------------------------------------------


def test_points_are_covered_by_tolerance_and_by_noise():
    points = as_points(np.array([[3.0, 4.0], [0.0, 1.0]]), 0.1, 0.2)
    np.testing.assert_array_equal(points.norms, [5.0, 1.0])
    np.testing.assert_allclose(points.covered(points.norms), [0.5, 0.2])
    floored = as_points(np.array([[3.0, 4.0], [0.0, 1.0]]), 0.1).floored()
    assert floored.noise == 0.5
    assert as_points(np.array([[3.0, 4.0]]), 0.1, 0.7).floored().noise == 0.7
    np.testing.assert_array_equal(points.factors, [1.0, 1.0])


def test_columns_are_rescaled_by_their_largest_entry_among_rows_of_norm_one():
    values = np.array([[8.0, 0.0, 0.0], [0.0, 1.0, 1e-3], [0.0, 0.0, 0.0], [1.0, 4.0, 0.0]])
    points = as_points(values, 1e-11)
    units = np.abs(values[[0, 1, 3]]) / points.norms[[0, 1, 3], None]
    expected = np.exp2(-np.round(np.log2(units.max(axis=0))))
    np.testing.assert_array_equal(points.rescaled(np.arange(4)).factors, expected)
    np.testing.assert_array_equal(points.rescaled(np.array([0])).factors, [1.0, 1.0, 1.0])
    scaled, sizes = points.rescaled(np.arange(4)).scaled(np.array([1, 3]))
    np.testing.assert_array_equal(scaled, values[[1, 3]] * expected)
    np.testing.assert_allclose(sizes, np.linalg.norm(scaled, axis=1))


def test_rescaling_looks_at_every_block_of_rows():
    rng = np.random.default_rng(4)
    values = rng.standard_normal((20_000, 2))
    values[:, 1] *= 1e-9
    values[13_001] = [0.0, 7.0]
    np.testing.assert_array_equal(as_points(values, 1e-11).rescaled(np.arange(20_000)).factors, [1.0, 1.0])


@pytest.mark.parametrize("scale", [1e-200, 1e-101, 1.0, 1e101, 1e200])
def test_extreme_sizes_are_shifted_by_a_power_of_two_noise_too(scale):
    values = np.array([[3.0, 4.0], [1.0, 0.0]])
    points = as_points(values * scale, 1e-11, 0.5 * scale)
    factor_of_two = points.values[1, 0] / scale
    np.testing.assert_allclose(points.values, values * scale * factor_of_two, rtol=1e-12)
    np.testing.assert_allclose(points.norms, np.array([5.0, 1.0]) * scale * factor_of_two, rtol=1e-12)
    assert points.noise == pytest.approx(0.5 * scale * factor_of_two, rel=1e-12)
    if scale == 1.0:
        np.testing.assert_array_equal(points.values, values)
    else:
        assert 0.5 <= np.abs(points.values).max() < 1.0


def test_the_first_pool_is_spaced_rows_and_the_largest():
    rng = np.random.default_rng(5)
    values = rng.standard_normal((1000, 3))
    pool = first_pool(as_points(values, 1e-11))
    spaced = np.arange(24) * 1000 // 24
    largest = np.argsort(norms_of(values))[-24:]
    np.testing.assert_array_equal(pool, np.union1d(spaced, largest))
    np.testing.assert_array_equal(first_pool(as_points(values[:48], 1e-11)), np.arange(48))
    assert len(first_pool(as_points(values[:49], 1e-11))) < 49


def test_starts_are_parsed():
    assert Start.parse("pivoted", None, 9) == (pytest.approx(np.arange(0)), 0)
    rows, batches = Start.parse("random", 3, 9)
    np.testing.assert_array_equal(rows, np.random.default_rng(3).permutation(9))
    assert batches == 8
    rows, batches = Start.parse([5, 2, 5], None, 9)
    np.testing.assert_array_equal(rows, [2, 5])
    assert batches == 1


def test_a_start_is_completed_from_the_pool_and_freed_of_dependent_rows():
    values = np.array([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 3.0]])
    points = as_points(values, 1e-11)
    chosen = Start.parse([0, 1], None, 4).choose(points, np.arange(4))
    assert chosen[0] == 1  # the larger of the two parallel rows; pivoting takes the larger first
    assert set(chosen) == {1, 2, 3}


def test_growing_takes_pivots_in_order_and_keeps_what_was_chosen():
    rng = np.random.default_rng(6)
    values = rng.standard_normal((50, 4))
    points = as_points(values, 1e-11)
    chosen = grow(points, np.arange(0), np.arange(50))
    np.testing.assert_array_equal(chosen, qr(values.T, mode="economic", pivoting=True)[2][:4])
    longer = grow(points, np.array([7]), np.arange(50))
    assert longer[0] == 7
    span = values[7] / norms_of(values[7:8])
    outside = values - (values @ span)[:, None] * span
    np.testing.assert_array_equal(longer[1:], qr(outside.T, mode="economic", pivoting=True)[2][:3])
    np.testing.assert_array_equal(grow(points, chosen, np.arange(50)), chosen)


def test_growing_ignores_what_is_within_the_tolerance_of_each_row():
    values = np.array([[1.0, 0.0, 0.0], [1.0, 1e-12, 0.0], [1e-13, 1e-13, 0.0], [1.0, 0.0, 1e-10]])
    assert set(grow(as_points(values, 1e-11), np.arange(0), np.arange(4))) in ({0, 2, 3}, {1, 2, 3})
    assert len(grow(as_points(values, 1e-11, 1e-9), np.arange(0), np.arange(4))) == 1


def test_a_factorisation_drops_what_the_others_span_and_measures_the_rest():
    rng = np.random.default_rng(7)
    values = rng.standard_normal((4, 5))
    basis = factor(as_points(values, 1e-11), np.arange(4))
    np.testing.assert_array_equal(basis.chosen, np.arange(4))
    np.testing.assert_allclose(basis.log_volume, 0.5 * np.linalg.slogdet(values @ values.T)[1], rtol=1e-12)
    units = values / norms_of(values)[:, None]
    distances = [np.linalg.norm(u - np.linalg.lstsq(np.delete(units, i, 0).T, u)[0] @ np.delete(units, i, 0))
                 for i, u in enumerate(units)]  # fmt: skip
    assert basis.condition == pytest.approx(1 / min(distances), rel=1e-9)
    rows = rng.standard_normal((6, 5))
    expected = np.linalg.lstsq(values.T, rows.T, rcond=None)[0].T
    np.testing.assert_allclose(basis.coefficients(rows), expected, rtol=1e-9)
    np.testing.assert_allclose(basis._replace(condition=1e5).coefficients(rows), expected, rtol=1e-9)
    doubled = as_points(np.vstack([values, values[1] + values[2]]), 1e-11)
    dropped = factor(doubled, np.arange(5)).chosen
    assert len(dropped) == 4
    assert 4 not in dropped or not {1, 2} <= set(dropped)


def test_a_search_reports_exchanges_volume_passes_and_noise():
    rng = np.random.default_rng(8)
    values = rng.standard_normal((400, 4))
    values[:4] = 1e-3 * np.eye(4)
    points = as_points(values, 1e-11)
    found = search(points, 2.0, np.arange(400), np.arange(4))
    gain = np.linalg.slogdet(values[found.indices])[1] - np.linalg.slogdet(values[:4])[1]
    assert found.log_volume_gain == pytest.approx(gain, rel=1e-9)
    assert 4 <= found.swaps < gain / math.log(2)
    assert (found.passes, found.noise, found.rank) == (1.0, 0.0, 4)
    np.testing.assert_allclose(found.coefficients, values @ np.linalg.inv(values[found.indices]), atol=1e-12)
    np.testing.assert_array_equal(found.coefficients[found.indices], np.eye(4))
    assert found.max_coefficient == np.abs(found.coefficients).max() <= 2


def test_passes_count_the_blocks_looked_at_before_enough_rows_violate():
    """Two blocks of rows; the pool sees none of those that violate, which are all in the first."""
    d = 4
    height = spanner_search._BLOCK_ENTRIES // d
    values = np.tile(np.eye(d), (2 * height // d, 1))
    values[100 : 100 + spanner_search._GATHERED * d] *= 10
    points = as_points(values, 1e-11)
    found = search(points, 2.0, np.arange(d), np.arange(d))
    assert found.passes == 1.5  # half a pass found the violations, a whole one verified
    assert found.max_coefficient == 1.0
    fewer = values.copy()
    fewer[100] = values[0]
    found = search(as_points(fewer, 1e-11), 2.0, np.arange(d), np.arange(d))
    assert found.passes == 2.0  # one row short: the first pass went on to its end
    noisy = search(as_points(values, 1e-11, 0.25), 2.0, np.arange(d), np.arange(d))
    assert noisy.noise == 0.25


def test_coefficients_stay_below_C_by_a_margin_for_rounding():
    points = as_points(np.array([[3.0, 4.0], [0.0, 1.0], [1.0, 0.0]]), 1e-11)
    basis = factor(points, np.array([0, 1]))
    expected = 8 * np.finfo(float).eps * math.sqrt(2) * 5 * norms_of(basis.dual.T).max()
    assert spanner_search._margin(points, basis, np.arange(3), 2.0) == pytest.approx(expected, rel=1e-12)
    assert spanner_search._margin(points, basis, np.array([1]), 2.0) == pytest.approx(expected / 5, rel=1e-12)
    assert spanner_search._margin(points, basis, np.arange(3), 1 + 2.0**-50) == 2.0**-52
