"""Vectors in compiled functions against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("numba")

import numba
from numba.core.errors import TypingError

from oracles import simd

FLOATS = st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=8, max_size=8)


@numba.njit
def each(a, b, c, out):
    """Every operation on a[1:], b[1:], c[1:], one row of out for each."""
    x, y, z = simd.load(a, 1), simd.load(b, 1), simd.load(c, 1)
    simd.store(out, 0, simd.add(x, y))
    simd.store(out, 8, simd.subtract(x, y))
    simd.store(out, 16, simd.multiply(x, y))
    simd.store(out, 24, simd.divide(x, y))
    simd.store(out, 32, simd.root(x))
    simd.store(out, 40, simd.fma(x, y, z))
    simd.store(out, 48, simd.larger(x, y))
    simd.store(out, 56, simd.smaller(x, y))
    simd.store(out, 64, simd.where_at_most(x, y, z, x))
    simd.store(out, 72, simd.same(np.float32(2.5)))
    simd.store(out, 80, simd.load_same(a, 3))


@numba.njit
def powers(x, out):
    """2^x, eight at a time."""
    for i in range(0, len(x), 8):
        simd.store(out, i, simd.exp2(simd.load(x, i)))


@given(FLOATS, FLOATS, FLOATS)
def test_operations_are_those_of_numpy_lane_by_lane(first, second, third):
    a, b, c = (np.array([7.0, *values], dtype=np.float32) for values in (first, second, third))
    out = np.full((11, 8), 99.0, dtype=np.float32)
    each(a, b, c, out)
    x, y, z = a[1:], b[1:], c[1:]
    with np.errstate(all="ignore"):
        exact = x.astype(float) * y + z
        expected = [x + y, x - y, x * y, x / y, np.sqrt(x)]
        rounded = np.float32(exact)
        bound = 2.0**-22 * (np.abs(x.astype(float) * y) + np.abs(z)) + 1e-44
        usual = np.isfinite(rounded) & np.isfinite(out[5])
        error = np.abs(out[5] - exact)
    np.testing.assert_array_equal(out[:5], expected)
    assert (error[usual] <= bound[usual]).all()
    assert (np.isnan(out[5]) >= (np.isnan(x) | np.isnan(y) | np.isnan(z))).all()
    np.testing.assert_array_equal(out[6], np.where(x > y, x, y))
    np.testing.assert_array_equal(out[7], np.where(x < y, x, y))
    np.testing.assert_array_equal(out[8], np.where(x <= y, z, x))
    np.testing.assert_array_equal(out[9], np.full(8, 2.5))
    np.testing.assert_array_equal(out[10], np.full(8, a[3]))


def test_powers_of_two_are_accurate_and_nan_stays():
    x = np.concatenate([np.linspace(-125.9, 126, 40_001), np.arange(-126, 127), [0.0, -0.0]])
    x = np.float32(x[: len(x) // 8 * 8])
    out = np.empty_like(x)
    powers(x, out)
    exact = 2.0 ** x.astype(float)
    assert (np.abs(out - exact) <= 2e-7 * exact).all()
    whole = np.float32(np.arange(-126, -118))
    powers(whole, edge := np.empty_like(whole))
    np.testing.assert_array_equal(edge, 2.0**whole)
    low = np.float32([-np.inf, -1e38, -200, -126, np.nan, 0, 1, 3])
    powers(low, edge)
    np.testing.assert_array_equal(edge, np.float32([2.0**-126] * 4 + [np.nan, 1, 2, 8]))


@pytest.mark.parametrize("array", [np.ones((8, 8), np.float32).T, np.ones(8), np.ones(16, np.float32)[::2]])
def test_places_are_those_of_contiguous_numbers(array):
    with pytest.raises(TypingError, match="contiguous float32"):
        powers(array, np.empty(8, np.float32))
