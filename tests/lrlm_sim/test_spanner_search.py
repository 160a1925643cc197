"""Parts of the spanner search by their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.linalg import qr

from lrlm_sim import spanner_search
from lrlm_sim.spanner_search import (
    Start,
    as_points,
    factor,
    first_pool,
    grow,
    norms_of,
    search,
)


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


def test_a_scan_stops_at_the_first_block_that_violates_and_goes_on_behind_it():
    """Four blocks; the pool sees none of the rows that violate, which are all in the second."""
    d = 4
    height = spanner_search._BLOCK_ENTRIES // d
    values = np.tile(np.eye(d), (4 * height // d, 1))
    values[height + 100] *= 3
    values[2 * height - 1] *= 3
    points = as_points(values, 1e-11)
    found = search(points, 2.0, np.arange(d), np.arange(d))
    assert found.passes == 1.25  # the largest row's block comes first, then the four from there on
    assert found.swaps == 2
    assert found.max_coefficient == 1.0
    far = np.concatenate([values, 4 * np.eye(d)[:1]])  # a larger row in a fifth block, of one row
    found = search(as_points(far, 1e-11), 2.0, np.arange(d), np.arange(d))
    assert found.passes == (1 + 2 + 5) / 5
    assert set(found.indices) == {len(values), 2 * height - 1, 1, 2}
    noisy = search(as_points(values, 1e-11, 0.25), 2.0, np.arange(d), np.arange(d))
    assert noisy.noise == 0.25


def test_coefficients_stay_below_C_by_a_margin_for_rounding():
    points = as_points(np.array([[3.0, 4.0], [0.0, 1.0], [1.0, 0.0]]), 1e-11)
    basis = factor(points, np.array([0, 1]))
    expected = 8 * np.finfo(float).eps * math.sqrt(2) * 5 * norms_of(basis.dual.T).max()
    assert spanner_search._margin(points, basis, np.arange(3), 2.0) == pytest.approx(expected, rel=1e-12)
    assert spanner_search._margin(points, basis, np.array([1]), 2.0) == pytest.approx(expected / 5, rel=1e-12)
    assert spanner_search._margin(points, basis, np.arange(3), 1 + 2.0**-50) == 2.0**-52
