"""Barycentric spanners: a few rows that represent all others with bounded coefficients.

A C-approximate barycentric spanner of the rows of X is a set of r = rank X rows x_1..x_r such that
every row is Σ λ_i x_i with |λ_i| ≤ C (Awerbuch & Kleinberg 2008). Rows of locally maximal volume are
one: by Cramer's rule |λ_i| is the factor by which the volume changes when the row replaces x_i, so
a coefficient above the target is an exchange that multiplies the volume by it.

The explicit set (`barycentric_spanner`, the search itself is in `spanner_search`), sets known by linear
maximisation only (`spanner_from_oracle`), rows near a subspace (`robust_spanner`), and laws known
by samples (`distributional_spanner`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from lrlm_sim.spanner_oracle import OracleSpanner, as_approximation, spanner_from_oracle
from lrlm_sim.spanner_search import (
    Points,
    Spanner,
    Start,
    UncertifiableError,
    as_points,
    factor,
    first_pool,
    norms_of,
    search,
)
from oracles.checks import as_finite, as_generator, as_integer, as_number
from oracles.errors import ParameterError, ShapeError

__all__ = [
    "DistributionalSpanner",
    "OracleSpanner",
    "RobustSpanner",
    "Spanner",
    "barycentric_spanner",
    "distributional_spanner",
    "represent",
    "robust_spanner",
    "sample_compression_size",
    "spanner_from_oracle",
]

#: Default relative tolerance of numerical ranks.
TOLERANCE = 1e-11


def barycentric_spanner(
    X: ArrayLike,
    C: float = 2.0,
    start: str | ArrayLike = "pivoted",
    rng: np.random.Generator | int | None = None,
    *,
    tolerance: float = TOLERANCE,
    noise: float = 0.0,
) -> Spanner:
    """C-approximate barycentric spanner of the rows of X by volume exchanges [Awerbuch & Kleinberg 2008].

    Arguments:
        X: (n, d), any rank; the zero matrix has the empty spanner.
        C: bound on the coefficients, > 1.
        start: "pivoted" (QR with column pivoting of some rows), "random" (independent rows drawn with
            `rng`, to exercise exchanges), or row numbers to begin from (dependent ones are dropped).
        tolerance: relative size, by row, of what may be left outside the span of the spanner (2-norm,
            columns rescaled, up to a factor 2); this decides the numerical rank. Where that asks too
            much of double precision (small rows whose direction is lost in the rounding of large
            ones), it is taken relative to the largest row instead: then `Spanner.noise` > 0.
        noise: absolute size (2-norm, units of X) of what may be left outside as well. For data known
            up to ±noise; when positive, columns are not rescaled. See `robust_spanner` for large noise.

    The coefficients are those of least squares, X pinv(X[indices]), taken with a margin below C where the
    spanner is so ill-conditioned that a second solver would round differently. Cost: about one product of X
    with a (d, d) matrix, another if rows violate after it; deficient or ill-conditioned sets also pay
    for residuals and triangular solves. Rows below 1e-150 of the largest count as zero.

    Raises ShapeError, NonFiniteError, ParameterError (C ≤ 1 among others, or rows of sizes so different
    that double precision cannot certify a spanner).
    """
    C = as_approximation(C)
    tolerance = as_number("tolerance", tolerance, 1e-15, 1e-3)
    points = as_points(as_finite("X", X, "(n, d)", 2), tolerance, as_number("noise", noise, 0.0))
    begin = Start.parse(start, rng, len(points.values))
    pool = first_pool(points)
    try:
        return _search_from(points, begin, pool, C)
    except UncertifiableError:
        everything = np.arange(len(points.values))
        floored = (points if points.noise > 0 else points.rescaled(everything)).floored()
    try:
        return _search_from(floored, begin, pool, C)
    except UncertifiableError:
        raise ParameterError(
            "X has rows of such different sizes, or so nearly dependent, that double precision cannot "
            "certify a spanner: rescale the rows, raise tolerance or noise, or use robust_spanner"
        ) from None


def _search_from(points: Points, begin: Start, pool: np.ndarray, C: float) -> Spanner:
    if points.noise > 0:
        return search(points, C, pool, begin.choose(points, pool))
    scaled = points.rescaled(pool)
    chosen = begin.choose(scaled, pool)
    if len(chosen) < min(points.values.shape):  # the pool may misjudge columns that few rows use
        scaled = points.rescaled(np.arange(len(points.values)))
        chosen = begin.choose(scaled, pool)
    return search(scaled, C, pool, chosen)


def represent(spanner: ArrayLike, rows: ArrayLike) -> tuple[Float[np.ndarray, "n r"], Float[np.ndarray, "n"]]:
    """Least-squares coefficients (n, r) of new rows in the points (r, d) of a spanner, and residual 2-norms.

    Raises ShapeError or NonFiniteError, and ParameterError when the points of the spanner are dependent.
    """
    basis = as_finite("spanner", spanner, "(r, d)", 2)
    values = as_finite("rows", rows, "(n, d)", 2)
    if values.shape[1] != basis.shape[1]:
        raise ShapeError("rows", "(n, d)", f"(n, {basis.shape[1]})", values.shape)
    points = as_points(np.vstack([basis, values]), 0.0).rescaled(np.arange(len(basis)))
    factored = factor(points, np.flatnonzero(points.norms[: min(basis.shape)]))
    if len(factored.chosen) < len(basis):
        raise ParameterError("the points of a spanner must be independent and not zero: drop the others")
    coefficients = factored.coefficients(points.values[len(basis) :] * points.factors)
    return coefficients, norms_of(values - coefficients @ basis)


@dataclass(frozen=True, eq=False)
class RobustSpanner:
    """Spanner of rows that are only near a subspace.

    Attributes:
        spanner: the spanner of the projected rows; its coefficients represent the rows themselves.
        directions: orthonormal basis (m, k) of the directions kept.
        error_bound: largest ℓ1 error of the representation that theory allows.
        error: largest ℓ1 error measured, max_i ‖x_i − Σ_j λ_ij x_j‖_1.
    """

    spanner: Spanner
    directions: Float[np.ndarray, "m k"]
    error_bound: float
    error: float


def robust_spanner(
    X: ArrayLike,
    gamma: float,
    C: float = 2.0,
    start: str = "pivoted",
    rng: np.random.Generator | int | None = None,
) -> RobustSpanner:
    """C-approximate spanner of rows within `gamma` (2-norm) of an s-dimensional subspace [arXiv:2411.07536].

    The rows (n, m) are projected on the right singular directions with singular value above 2γ√n, and
    the projections are spanned. At most s directions are kept, since the distances to the subspace
    form a matrix of norm ≤ γ√n (Weyl). What is left of a row has norm ≤ 2γ√n, so with k kept
    directions the error of a representation is at most (1 + Ck)·2γ√n in 2-norm, and

        ‖x − Σ λ_j x_j‖_1 ≤ 2γ(1 + Ck)√(nm),    at most 6γs√(nm) for C = 2 and 1 ≤ k ≤ s.

    Raises ShapeError, NonFiniteError, ParameterError.
    """
    C, gamma = as_approximation(C), as_number("gamma", gamma, 0.0)
    values = as_finite("X", X, "(n, m)", 2)
    n, m = values.shape
    triangle = np.linalg.qr(values, mode="r") if n > m else values
    _, singular, directions = np.linalg.svd(triangle, full_matrices=False)
    floor = max(n, m) * np.finfo(float).eps * singular.max(initial=0.0)
    kept = directions[singular > max(2 * gamma * math.sqrt(n), floor)].T
    spanner = barycentric_spanner(values @ kept, C, start, rng)
    bound = 2 * gamma * (1 + C * kept.shape[1]) * math.sqrt(n * m)
    error = np.abs(values - spanner.coefficients @ values[spanner.indices]).sum(axis=1).max(initial=0.0)
    return RobustSpanner(spanner, kept, bound, float(error))


def sample_compression_size(dimension: int, eta: float, delta: float) -> int:
    """Rows from which a spanner selects so that a fresh row is covered with probability ≥ 1 − η.

    N = ⌈(2/η)(m⌈log2(2m/η)⌉ + ⌈log2((m+1)/δ)⌉)⌉ for rows in R^m, with probability ≥ 1 − δ over the
    N rows: at most m of them determine the covered set and all N are covered, so the failure
    probability is at most Σ_(k≤m) binom(N, k)(1−η)^(N−k) ≤ δ (sample compression).
    """
    m = as_integer("dimension", dimension, 1)
    eta, delta = _as_probability("eta", eta), _as_probability("delta", delta)
    return math.ceil(
        2 / eta * (m * math.ceil(math.log2(2 * m / eta)) + math.ceil(math.log2((m + 1) / delta)))
    )


def _as_probability(name: str, value: object) -> float:
    number = as_number(name, value, 0.0, 1.0)
    if not 0 < number < 1:
        raise ParameterError(f"{name} must lie strictly between 0 and 1, got {number}")
    return number


@dataclass(frozen=True, eq=False)
class DistributionalSpanner:
    """(η, C)-distributional spanner: points (r, m) that cover a fresh row with probability ≥ 1 − η."""

    points: Float[np.ndarray, "r m"]
    spanner: Spanner
    sample_size: int


def distributional_spanner(
    draw: Callable[[int, np.random.Generator], ArrayLike],
    dimension: int,
    eta: float,
    delta: float,
    C: float = 2.0,
    rng: np.random.Generator | int | None = None,
) -> DistributionalSpanner:
    """Spanner of a law on R^dimension from N i.i.d. rows, N = `sample_compression_size`.

    `draw(n, rng)` returns n fresh rows, (n, dimension). With probability ≥ 1 − δ a fresh row is a combination
    of the points with all |λ_i| ≤ C, except with probability η; `represent` computes it.
    """
    C, rng = as_approximation(C), as_generator(rng)
    size = sample_compression_size(dimension, eta, delta)
    rows = as_finite("draw(n, rng)", draw(size, rng), "(n, dimension)", 2)
    if rows.shape != (size, dimension):
        raise ShapeError("draw(n, rng)", "(n, dimension)", (size, dimension), rows.shape)
    spanner = barycentric_spanner(rows, C)
    return DistributionalSpanner(rows[spanner.indices], spanner, size)
