"""Spanner certificates re-solved by other means: rational arithmetic, scipy least squares, enumeration."""

import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lrlm_sim import spanner_search, spanners
from lrlm_sim.spanner_search import (
    norms_of,
)
from lrlm_sim.spanners import (
    barycentric_spanner,
    represent,
)
from oracles.errors import NonFiniteError, ParameterError, ShapeError

SLACK = 1 + 1e-8


def resolve(X, indices):
    """Least-squares coefficients by SVD and relative residuals, both scalings taken out."""
    basis = X[indices]
    row = np.abs(basis).max(axis=1)
    column = np.abs(basis / row[:, None]).max(axis=0)
    column[column == 0] = 1
    size = np.linalg.norm(basis / column, axis=1)
    rows = X / column
    own = np.abs(rows).max(axis=1)
    own[own == 0] = 1
    unit = rows / own[:, None]
    solved = scipy.linalg.lstsq((basis / column / size[:, None]).T, unit.T)[0].T
    return solved * own[:, None] / size, np.abs(unit - solved @ (basis / column / size[:, None])).max(axis=1)


def certify(X, spanner, C, residual=1e-9):
    """The whole certificate, with nothing taken from the search but the chosen rows."""
    assert len(set(spanner.indices.tolist())) == spanner.rank <= min(X.shape)
    assert spanner.coefficients.shape == (len(X), spanner.rank)
    assert spanner.max_coefficient == np.abs(spanner.coefficients).max(initial=0.0) <= C * SLACK
    own = np.abs(X).max(axis=1, initial=0.0)
    left = np.abs(X - spanner.coefficients @ X[spanner.indices]).max(axis=1, initial=0.0)
    assert (left <= residual * own).all()
    if spanner.rank:
        coefficients, left = resolve(X, spanner.indices)
        assert np.abs(coefficients).max() <= C * SLACK
        assert left.max() <= residual


def families(rng, n, d):
    gauss = rng.standard_normal((n, d))
    low = gauss[:, : max(1, d // 3)] @ rng.standard_normal((max(1, d // 3), d))
    rows, columns = 10.0 ** rng.uniform(-8, 8, (n, 1)), 10.0 ** rng.uniform(-8, 8, (1, d))
    grid = np.arange(n)[:, None]
    yield "gaussian", gauss, min(n, d)
    yield "duplicated", gauss[rng.integers(0, min(3, n), n)], None
    yield "low rank", low, min(n, max(1, d // 3))
    yield "row scales", gauss * rows, min(n, d)
    yield "column scales", gauss * columns, min(n, d)
    yield "both scales", gauss * rows * columns, min(n, d)
    yield "low rank, row scales", low * rows, min(n, max(1, d // 3))
    yield "low rank, column scales", low * columns, min(n, max(1, d // 3))
    yield "vandermonde", np.vander(rng.uniform(-1, 1, n), d), None
    yield "vandermonde on a grid", np.vander(np.linspace(0, 1, n), d), None
    yield "hilbert", 1 / (grid + np.arange(d) + 1.0), None
    yield "kernel", np.exp(-((grid / n * 5 - np.linspace(0, 5, d)) ** 2)), None
    for gap in (1e-4, 1e-8, 1e-12, 1e-15):
        near = gauss[rng.integers(0, max(1, n // 8), n)] + gap * rng.standard_normal((n, d))
        yield f"near duplicates {gap}", near, None
    for size in (1e4, 1e8):
        huge = gauss.copy()
        huge[rng.integers(0, n, 3)] *= size
        yield f"huge rows {size}", huge, min(n, d)
        sparse = gauss.copy()
        sparse[rng.integers(0, n, 3)] = size * np.eye(d)[rng.integers(0, d, 3)]
        yield f"huge sparse rows {size}", sparse, None
        parallel = gauss.copy()
        parallel[: n // 4] = size * (gauss[0] + 1e-3 * rng.standard_normal((n // 4, d)))
        yield f"huge parallel rows {size}", parallel, min(n, d)
    yield "signs", rng.choice([-1.0, 1.0], (n, d)), None
    yield "laws", rng.dirichlet(np.full(d, 0.05), n), None
    kahan = np.array([[0.8**i * ((i == j) - 0.6 * (j > i)) for j in range(d)] for i in range(d)])
    yield "kahan", kahan, None
    yield "zero", np.zeros((n, d)), 0


@pytest.mark.parametrize("C", [1.01, 2.0])
@pytest.mark.parametrize("start", ["pivoted", "random"])
@pytest.mark.parametrize("seed", range(6))
def test_certificate_on_every_family(seed, start, C):
    rng = np.random.default_rng(seed)
    n, d = [(1, 7), (5, 12), (40, 6), (300, 12), (600, 20), (9, 1)][seed]
    for name, X, rank in families(rng, n, d):
        spanner = barycentric_spanner(X, C, start, rng=seed)
        try:
            certify(X, spanner, C)
        except AssertionError as error:
            raise AssertionError(name) from error
        assert rank is None or spanner.rank == rank, name


def exact_coefficients(basis, row):
    """λ with λ·basis = row in rational arithmetic, None if there is none; basis independent."""
    columns = [[Fraction(int(v)) for v in column] for column in zip(*basis, row, strict=True)]
    pivots, r = [], 0
    for c in range(len(basis)):
        k = next((i for i in range(r, len(columns)) if columns[i][c] != 0), None)
        if k is None:
            return None
        columns[r], columns[k] = columns[k], columns[r]
        columns[r] = [v / columns[r][c] for v in columns[r]]
        for i in range(len(columns)):
            if i != r:
                columns[i] = [v - columns[i][c] * w for v, w in zip(columns[i], columns[r], strict=True)]
        pivots.append(c)
        r += 1
    if any(line[-1] != 0 for line in columns[r:]):
        return None
    return [columns[i][-1] for i in range(r)]


@given(
    X=st.tuples(st.integers(1, 12), st.integers(1, 5)).flatmap(
        lambda shape: arrays(np.float64, shape, elements=st.integers(-3, 3).map(float))
    ),
    C=st.sampled_from([1.01, 1.5, 2.0, 10.0]),
    start=st.sampled_from(["pivoted", "random"]),
)
def test_certificate_in_rational_arithmetic(X, C, start):
    spanner = barycentric_spanner(X, C, start, rng=0)
    assert spanner.rank == np.linalg.matrix_rank(X)
    basis = X[spanner.indices].tolist()
    for row, found in zip(X.tolist(), spanner.coefficients, strict=True):
        exact = exact_coefficients(basis, row) if basis else []
        assert exact is not None
        assert all(abs(value) <= Fraction(C) * Fraction(SLACK) for value in exact)
        np.testing.assert_allclose(found, np.array(exact, dtype=float), atol=1e-12)


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 400),
    d=st.integers(1, 12),
    C=st.sampled_from([1.1, 2.0, 5.0]),
)
def test_exchanges_account_for_the_volume(seed, n, d, C):
    rng = np.random.default_rng(seed)
    X = rng.standard_t(2, (n, d))
    r = min(n, d)
    start = rng.permutation(n)[:r]
    spanner = barycentric_spanner(X, C, start)
    before, after = (np.linalg.slogdet(X[i] @ X[i].T)[1] / 2 for i in (start, spanner.indices))
    assert spanner.log_volume_gain == pytest.approx(after - before, abs=1e-6)
    assert spanner.swaps * math.log(C) <= spanner.log_volume_gain + 1e-9
    certify(X, spanner, C)


@given(seed=st.integers(0, 10**6), n=st.integers(1, 150), d=st.integers(1, 10))
def test_pivoted_start_needs_few_exchanges(seed, n, d):
    """All rows fit the first pool (16 d rows), so QR leaves at most (r/2)·log_C r exchanges."""
    X = np.random.default_rng(seed).standard_normal((min(n, 16 * d), d))
    spanner = barycentric_spanner(X, 1.2)
    assert spanner.swaps <= spanner.rank / 2 * math.log(spanner.rank, 1.2) + 1e-9


@pytest.mark.parametrize("heavy", [False, True])
def test_random_starts_exchange_and_stay_within_r_log_r(heavy):
    rng, total = np.random.default_rng(1), 0
    for seed in range(5):
        X = rng.standard_t(2, (3000, 16)) if heavy else rng.standard_normal((3000, 16))
        spanner = barycentric_spanner(X, 2.0, "random", rng=seed)
        certify(X, spanner, 2.0)
        total += spanner.swaps
        assert spanner.swaps <= 16 * math.log(16, 2.0)
    assert total >= 20  # the exchange branch runs


def hidden_violator():
    """One short row in a thin direction, which no pool of spaced and large rows contains."""
    rng = np.random.default_rng(0)
    X = np.hstack([1 + rng.random((4000, 2)), 1e-3 * rng.standard_normal((4000, 1))])
    X[1] = [0.0, 0.0, 0.5]
    return X


def hidden_direction():
    """One short row outside the plane of the others."""
    X = np.hstack([1 + np.random.default_rng(0).random((4000, 2)), np.zeros((4000, 1))])
    X[1] = [0.0, 0.0, 1e-5]
    return X


@pytest.mark.parametrize("X", [hidden_violator(), hidden_direction()], ids=["violator", "direction"])
def test_rows_outside_the_pool_are_found(X):
    spanner = barycentric_spanner(X)
    certify(X, spanner, 2.0)
    assert spanner.rank == 3
    assert 1 in spanner.indices
    assert spanner.passes > 1


@pytest.mark.parametrize("X", [hidden_violator(), hidden_direction()], ids=["violator", "direction"])
def test_without_the_verifying_product_the_certificate_fails(X, monkeypatch):
    scan = spanner_search._scan
    monkeypatch.setattr(
        spanner_search, "_scan", lambda *args: scan(*args)._replace(violating=np.arange(0), largest=1.0)
    )
    with pytest.raises(AssertionError):
        certify(X, barycentric_spanner(X), 2.0)


def test_without_updating_the_coefficients_exchanges_are_refused(monkeypatch):
    monkeypatch.setattr(spanner_search, "dger", lambda *args, **kwargs: None)
    X = np.random.default_rng(0).standard_normal((500, 8))
    with pytest.raises((ParameterError, AssertionError)):
        certify(X, barycentric_spanner(X, 1.2, "random", rng=0), 1.2)


@pytest.mark.parametrize("pool", [1, 20])
def test_any_first_pool_will_do(monkeypatch, pool):
    """The pool only saves time: with one row in it the scan does it all."""
    monkeypatch.setattr(spanners, "first_pool", lambda points: np.arange(min(pool, len(points.values))))
    rng = np.random.default_rng(0)
    for X in (
        np.sort(rng.standard_t(1, (9000, 6)), axis=0),
        rng.standard_normal((9000, 3)) @ rng.standard_normal((3, 6)),
        rng.standard_normal((9000, 6)) * 10.0 ** rng.uniform(-8, 8, (9000, 1)),
    ):
        certify(X, barycentric_spanner(X), 2.0)


def test_coefficients_of_an_ill_conditioned_spanner_keep_residuals_small():
    X = np.vander(np.linspace(0, 1, 400), 20)
    spanner = barycentric_spanner(X)
    assert np.linalg.cond(X[spanner.indices]) > 1e8
    assert np.abs(X - spanner.coefficients @ X[spanner.indices]).max() <= 1e-10


@pytest.mark.parametrize("exponent", [-900, -150, 40, 900])
def test_global_scale_does_not_matter(exponent):
    X = np.random.default_rng(0).standard_normal((300, 5))
    here, there = barycentric_spanner(X), barycentric_spanner(np.ldexp(X, exponent))
    assert barycentric_spanner(np.ldexp(X, exponent), noise=math.ldexp(100, exponent)).rank == 0
    assert barycentric_spanner(np.ldexp(X, exponent), noise=math.ldexp(1e-6, exponent)).rank == 5
    np.testing.assert_array_equal(here.indices, there.indices)
    np.testing.assert_allclose(here.coefficients, there.coefficients, atol=1e-13)


def test_noise_is_an_absolute_threshold():
    rng = np.random.default_rng(0)
    noise = 1e-13 * rng.standard_normal((200, 6))
    assert barycentric_spanner(noise, noise=1e-10).rank == 0
    assert barycentric_spanner(noise).rank == 6
    low = rng.standard_normal((200, 2)) @ rng.standard_normal((2, 6))
    low[3] = 0.0
    for spanner in (
        barycentric_spanner(low + noise, noise=1e-10),
        barycentric_spanner(low + noise),  # row 3 is all noise: found to be below the rounding of the others
    ):
        assert spanner.rank == 2
        assert spanner.noise > 0
        assert spanner.max_coefficient <= 2.0
        assert np.abs(low - spanner.coefficients @ low[spanner.indices]).max() < 1e-9


def test_small_and_empty_sets():
    one = barycentric_spanner([[3.0, 4.0]])
    assert one.indices.tolist() == [0]
    assert one.coefficients.tolist() == [[1.0]]
    for shape in ((0, 3), (3, 0), (4, 2)):
        empty = barycentric_spanner(np.zeros(shape))
        assert empty.rank == 0
        assert empty.coefficients.shape == (shape[0], 0)
        assert empty.max_coefficient == 0.0


def test_results_are_reproducible_and_do_not_change_the_input():
    X = np.random.default_rng(0).standard_normal((500, 7))
    copy = X.copy()
    first, second = (barycentric_spanner(X, 1.1, "random", rng=5) for _ in range(2))
    np.testing.assert_array_equal(first.indices, second.indices)
    np.testing.assert_array_equal(X, copy)
    fortran, single = np.asfortranarray(X), X.astype(np.float32)
    np.testing.assert_array_equal(barycentric_spanner(fortran).indices, barycentric_spanner(X).indices)
    certify(single.astype(float), barycentric_spanner(single), 2.0)


def test_rows_that_are_all_independent_are_all_chosen():
    """Kahan's matrix, rows from 1 to 1e-12: rounding of its large rows exceeds the small ones."""
    X = np.array([[0.3**i * ((i == j) - 0.95 * (j > i)) for j in range(24)] for i in range(24)])
    spanner = barycentric_spanner(X)
    assert spanner.rank == 24
    assert spanner.swaps == 0
    assert spanner.noise == 0
    np.testing.assert_array_equal(spanner.coefficients[spanner.indices], np.eye(24))


def test_columns_that_few_rows_use():
    """Two short rows in a plane that the pool sees at 1e-13 of its size, if at all."""
    X = np.zeros((4000, 3))
    X[:, 0] = 10 * (1 + np.random.default_rng(0).random(4000))
    X[:, 1] = 1e-13 * X[:, 0]
    X[1], X[3] = [0, 1, 1], [0, 1, 2]
    spanner = barycentric_spanner(X)
    assert spanner.rank == 3
    certify(X, spanner, 2.0)


@pytest.mark.parametrize("small", [1.0, 1e-8])
def test_coefficients_near_the_limit_are_exchanged_where_rounding_matters(monkeypatch, small):
    """A row outside the pool with coefficient C(1 − 1e-12): kept, unless other solvers would err by more."""
    monkeypatch.setattr(spanners, "first_pool", lambda points: np.arange(5))
    for seed in range(10):  # rounding itself decides about half of them
        rng = np.random.default_rng(seed)
        spread, turn = np.diag([1, 1, 1, 1, small]), np.linalg.qr(rng.random((5, 5)))[0]
        basis = rng.standard_normal((5, 5)) @ spread @ turn
        X = np.vstack([basis, np.array([[2 * (1 - 1e-12), 0.5, 0.5, 0.5, 0.5]]) @ basis])
        spanner = barycentric_spanner(X)
        certify(X, spanner, 2.0)
        assert spanner.swaps == (small < 1)


def test_dependent_rows_of_an_explicit_start_are_dropped():
    X = np.random.default_rng(0).standard_normal((50, 4))
    X[7] = 2 * X[3]
    spanner = barycentric_spanner(X, start=[3, 7, 3, 9])
    certify(X, spanner, 2.0)
    assert spanner.rank == 4
    X[:5] = np.outer(np.arange(1.0, 6.0), X[0])
    spanner = barycentric_spanner(X, C=1e9, start=range(8))  # a huge C: no exchange leaves the start
    assert spanner.rank == 4
    assert set(spanner.indices) <= set(range(8))


def test_sets_beyond_double_precision_are_refused():
    """Huge parallel rows whose differences are rounding, and a tolerance below it."""
    rng = np.random.default_rng(3)
    X = rng.standard_normal((200, 8))
    X[:20] = 1e20 * (X[0] + 1e-14 * rng.standard_normal((20, 8)))
    with pytest.raises(ParameterError, match="double precision"):
        barycentric_spanner(X, tolerance=1e-15)
    spanner = barycentric_spanner(X)
    assert spanner.max_coefficient <= 2.0
    left = np.linalg.norm(X - spanner.coefficients @ X[spanner.indices], axis=1)
    assert left.max() <= 4e-11 * np.linalg.norm(X, axis=1).max()


@pytest.mark.parametrize(
    ("X", "settings", "error"),
    [
        ([[1.0, np.nan]], {}, NonFiniteError),
        ([[1.0, np.inf]], {}, NonFiniteError),
        ([1.0, 2.0], {}, ShapeError),
        (np.ones((2, 2, 2)), {}, ShapeError),
        ([["a"]], {}, ShapeError),
        (np.eye(2), {"C": 0.5}, ParameterError),
        (np.eye(2), {"C": 1.0}, ParameterError),
        (np.eye(2), {"C": np.nan}, ParameterError),
        (np.eye(2), {"C": np.inf}, ParameterError),
        (np.eye(2), {"start": "best"}, ParameterError),
        (np.eye(2), {"start": [2]}, ShapeError),
        (np.eye(2), {"tolerance": 0.5}, ParameterError),
        (np.eye(2), {"noise": -1.0}, ParameterError),
    ],
)
def test_wrong_arguments(X, settings, error):
    with pytest.raises(error):
        barycentric_spanner(X, **settings)


@given(seed=st.integers(0, 10**6), r=st.integers(1, 6), scaled=st.booleans())
def test_represent_recovers_coefficients(seed, r, scaled):
    rng = np.random.default_rng(seed)
    basis = rng.standard_normal((r, 8)) * (10.0 ** rng.uniform(-6, 6, 8) if scaled else 1.0)
    wanted = rng.uniform(-2, 2, (5, r))
    coefficients, residuals = represent(basis, wanted @ basis)
    conditioning = np.linalg.cond(basis / np.abs(basis).max(axis=0))
    np.testing.assert_allclose(coefficients, wanted, atol=1e-13 * conditioning)
    terms = np.abs(wanted) @ np.abs(basis)  # rows that cancel carry the rounding of what cancelled
    assert (residuals <= 1e-12 * np.linalg.norm(terms, axis=1)).all()


def test_represent_measures_what_is_outside_and_refuses_dependent_points():
    coefficients, residuals = represent([[1.0, 0.0]], [[2.0, 3.0]])
    assert coefficients.tolist() == [[2.0]]
    assert residuals.tolist() == [3.0]
    assert represent(np.zeros((0, 2)), np.ones((3, 2)))[0].shape == (3, 0)
    with pytest.raises(ParameterError, match="independent"):
        represent([[1.0, 2.0], [2.0, 4.0]], [[1.0, 1.0]])
    for dependent in ([[0.0, 0.0]], [[1.0, 0.0], [2.0, 0.0]], [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]):
        with pytest.raises(ParameterError, match="independent"):
            represent(dependent, [[1.0, 1.0]])
    with pytest.raises(ShapeError):
        represent([[1.0, 2.0]], [[1.0]])


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
