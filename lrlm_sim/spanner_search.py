"""The search behind `spanners.barycentric_spanner`: pooled volume exchanges, verified over all rows.

Pivoted QR of a few rows starts it, within r^(r/2) of the largest volume among them (Hadamard);
exchanges are rank-one updates of the coefficients of a small pool; one product over all rows
verifies. The first rows found to violate join the pool, and the product goes on behind them once
they are exchanged, until it has gone round without finding any.

Spanners do not change under right multiplication by an invertible matrix, nor spans under row
scaling, so ranks are decided with both scalings taken out: a row is covered by a span when the part
left outside is small compared with that row, after the columns were brought to comparable sizes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from scipy.linalg import qr, solve_triangular
from scipy.linalg.blas import dger, idamax  # type: ignore[attr-defined]

from oracles.checks import as_generator, as_rows
from oracles.errors import ParameterError

#: Entries of X verified together: a block of rows and its coefficients stay in the second-level cache.
_BLOCK_ENTRIES = 1 << 15
#: Rows of the first pool in multiples of the number of columns: evenly spaced ones, those of largest norm.
_SPACED, _LARGEST = 8, 8
#: Random starts draw this many batches of rows before pivoting completes them.
_RANDOM_BATCHES = 8
#: Condition of the spanner beyond which coefficients come from a triangular solve, not from an inverse.
_STABLE_ABOVE = 1e4
#: A chosen row nearer than this (relative) to the span of the others cannot be told from it.
_DEPENDENT = 64 * np.finfo(float).eps


@dataclass(frozen=True, eq=False)
class Spanner:
    """C-approximate barycentric spanner of the rows of a matrix X (n, d).

    Attributes:
        indices: rows of X in the spanner, (r,); r is the numerical rank.
        coefficients: λ of every row, (n, r): X ≈ coefficients @ X[indices].
        max_coefficient: max |λ|, at most C.
        swaps: exchanges made; each multiplied the volume of the chosen rows by more than C, up to
            rounding (by more than (1+C)/2 while the chosen rows are ill-conditioned).
        log_volume_gain: Σ log |λ| over the exchanges, the log of the volume of the spanner over that
            of the start: swaps < log_volume_gain / log C, with the same proviso.
        passes: products over all rows that verified it, counted in blocks of rows (1 when the first
            found no violation).
        noise: absolute residual (2-norm, rescaled columns) that counted as zero; 0 where every row is
            represented relative to its own size.
    """

    indices: Int[np.ndarray, "r"]
    coefficients: Float[np.ndarray, "n r"]
    max_coefficient: float
    swaps: int
    log_volume_gain: float
    passes: float
    noise: float

    @property
    def rank(self) -> int:
        """Number of rows in the spanner."""
        return len(self.indices)


@dataclass(frozen=True, eq=False)
class Points:
    """The set, with what decides when a row is covered by a span."""

    values: Float[np.ndarray, "n d"]
    norms: Float[np.ndarray, "n"]
    factors: Float[np.ndarray, "d"]  # powers of two that bring the columns to comparable sizes
    tolerance: float
    noise: float = 0.0

    def scaled(self, rows: np.ndarray) -> tuple[Float[np.ndarray, "k d"], Float[np.ndarray, "k"]]:
        """Rows with rescaled columns, and their 2-norms."""
        values = self.values[rows] * self.factors
        return values, norms_of(values)

    def floored(self) -> Points:
        """With residuals counted relative to the largest row instead of each row."""
        largest = float(norms_of(self.values * self.factors).max(initial=0.0))
        return replace(self, noise=max(self.noise, self.tolerance * largest))

    def covered(self, sizes: np.ndarray) -> Float[np.ndarray, "k"]:
        """Residual up to which rows of these 2-norms count as covered."""
        return np.maximum(self.tolerance * sizes, self.noise)

    def rescaled(self, rows: np.ndarray) -> Points:
        """With columns scaled by their largest entry among the given rows, each taken at norm one."""
        largest = np.zeros(self.values.shape[1])
        for block in np.array_split(rows, max(1, len(rows) // 4096)):
            sizes = self.norms[block]
            values = np.abs(self.values[block]) / np.where(sizes > 0, sizes, 1.0)[:, None]
            largest = np.maximum(largest, values.max(axis=0, initial=0.0))
        largest[largest == 0] = 1.0
        return replace(self, factors=np.exp2(-np.round(np.log2(largest))))


def norms_of(values: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n"]:
    """2-norm of every row."""
    return np.sqrt(np.einsum("ij,ij->i", values, values))


def as_points(values: Float[np.ndarray, "n d"], tolerance: float, noise: float = 0.0) -> Points:
    """The set at a scale where squares neither overflow nor vanish; coefficients do not depend on it."""
    with np.errstate(over="ignore"):
        norms = norms_of(values)
    largest = norms.max(initial=0.0)
    if not 1e-100 < largest < 1e100:
        top = np.abs(values).max(initial=0.0)
        shift = -int(np.frexp(top)[1]) if top > 0 else 0
        values, noise = np.ldexp(values, shift), float(np.ldexp(noise, shift))
        norms = norms_of(values)
    return Points(values, norms, np.ones(values.shape[1]), tolerance, noise)


def first_pool(points: Points) -> Int[np.ndarray, "k"]:
    """Evenly spaced rows and the rows of largest norm; all rows of a small set."""
    n, d = points.values.shape
    spaced, largest = _SPACED * max(1, d), _LARGEST * max(1, d)
    if n <= spaced + largest:
        return np.arange(n)
    return np.union1d(np.arange(spaced) * n // spaced, np.argpartition(points.norms, n - largest)[-largest:])


def grow(points: Points, chosen: np.ndarray, candidates: np.ndarray) -> Int[np.ndarray, "r"]:
    """`chosen` and those candidates that leave its span: QR with column pivoting of what is outside.

    A pivot counts only while it is above the tolerance of its own row: huge rows, whose rounding
    errors may exceed the whole of an ordinary row, then make room for the next round.
    """
    scaled, sizes = points.scaled(candidates)
    outside = points.covered(sizes)
    span = np.empty((scaled.shape[1], 0))
    if len(chosen):
        span = np.linalg.qr(points.scaled(chosen)[0].T)[0]
    while span.shape[1] < scaled.shape[1]:
        residual = scaled
        for _ in range(2 if span.shape[1] else 0):  # twice is enough
            residual = residual - (residual @ span) @ span.T
        rows = np.flatnonzero(norms_of(residual) > outside)
        if not len(rows):
            break
        directions, triangle, order = _pivoted(residual[rows].T)
        rows = rows[order[: triangle.shape[0]]]
        count = int(np.cumprod(np.abs(np.diagonal(triangle)) > outside[rows]).sum())
        count = min(count, scaled.shape[1] - span.shape[1])
        if not count:
            break
        chosen = np.append(chosen, candidates[rows[:count]])
        span = np.hstack([span, directions[:, :count]])
    return chosen


def _pivoted(columns: Float[np.ndarray, "d k"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return qr(columns, mode="economic", pivoting=True, check_finite=False)  # type: ignore[return-value]


class Start(NamedTuple):
    """Where the search begins."""

    rows: np.ndarray  # tried first, in batches of as many as are missing
    batches: int

    @classmethod
    def parse(cls, start: str | ArrayLike, rng: np.random.Generator | int | None, n: int) -> Start:
        rng = as_generator(rng)
        if not isinstance(start, str):
            return cls(np.unique(as_rows(start, n)), 1)
        if start == "pivoted":
            return cls(np.arange(0), 0)
        if start == "random":
            return cls(rng.permutation(n), _RANDOM_BATCHES)
        raise ParameterError(f"start must be 'pivoted', 'random' or row numbers, got {start!r}")

    def choose(self, points: Points, pool: np.ndarray) -> Int[np.ndarray, "r"]:
        """Independent rows spanning the pool."""
        chosen, position = np.arange(0), 0
        for _ in range(self.batches):
            width = len(self.rows) if self.batches == 1 else points.values.shape[1] - len(chosen)
            batch = self.rows[position : position + width]
            position += width
            if len(batch):
                chosen = grow(points, chosen, batch)
        return grow(points, chosen, pool)


class Basis(NamedTuple):
    """Chosen rows, factored afresh: (rows · factors / sizes)ᵀ = orthogonal · triangle."""

    chosen: Int[np.ndarray, "r"]
    sizes: Float[np.ndarray, "r"]
    orthogonal: Float[np.ndarray, "d r"]
    triangle: Float[np.ndarray, "r r"]
    rows: Float[np.ndarray, "r d"]  # with rescaled columns
    dual: Float[np.ndarray, "d r"]  # coefficients of a row with rescaled columns: its product with this
    condition: float  # 1 / smallest distance of a chosen row, at norm one, to the span of the others

    @property
    def log_volume(self) -> float:
        return float(np.log(np.abs(np.diagonal(self.triangle))).sum() + np.log(self.sizes).sum())

    def coefficients(self, scaled: Float[np.ndarray, "k d"]) -> Float[np.ndarray, "k r"]:
        """Least-squares coefficients; backward stable where the product with the inverse would not be."""
        if self.condition <= _STABLE_ABOVE:
            return scaled @ self.dual
        right = (scaled @ self.orthogonal).T
        return solve_triangular(self.triangle, right, check_finite=False).T / self.sizes


def factor(points: Points, chosen: np.ndarray) -> Basis:
    """Fresh QR factorisation of the chosen rows; rows that others already span are dropped.

    Column pivoting can overlook such rows (Kahan's matrix), and exchanges by larger rows can create them.
    """
    while True:
        scaled, sizes = points.scaled(chosen)
        orthogonal, triangle = np.linalg.qr((scaled / sizes[:, None]).T)
        distances = np.abs(np.diagonal(triangle))  # of each row to the span of those before it
        if distances.min(initial=1.0) < _DEPENDENT:
            chosen = np.delete(chosen, np.argmin(distances))
            continue
        unit = orthogonal @ solve_triangular(triangle, np.eye(len(chosen)), check_finite=False).T
        inverse_distances = norms_of(unit.T)
        condition = float(inverse_distances.max(initial=1.0))
        if condition * max(_DEPENDENT, points.tolerance / 100) <= 1:
            return Basis(chosen, sizes, orthogonal, triangle, scaled, unit / sizes, condition)
        chosen = np.delete(chosen, np.argmax(inverse_distances))


class UncertifiableError(Exception):
    """Coefficients on small directions drown in the rounding of large rows; never leaves the package."""


class _Exchanged(NamedTuple):
    chosen: Int[np.ndarray, "r"]
    swaps: int
    gain: float


def _exchange(points: Points, basis: Basis, pool: np.ndarray, target: float) -> _Exchanged:
    """Swap rows of the pool in, the largest coefficient first, until none exceeds the target."""
    scaled, sizes = points.scaled(pool)
    rank = len(basis.chosen)
    best = rank * math.log(max(sizes.max(initial=0.0), 1e-300)) - basis.log_volume + 1  # Hadamard
    table = np.asfortranarray(basis.coefficients(scaled))
    table[np.searchsorted(pool, basis.chosen)] = np.eye(rank)
    flat = table.reshape(-1, order="F")
    chosen, swaps, gain = basis.chosen.copy(), 0, 0.0
    while flat.size:
        column, row = divmod(int(idamax(flat)), len(pool))
        pivot = table[row, column]
        if abs(pivot) <= target:
            break
        swaps, gain = swaps + 1, gain + math.log(abs(pivot))
        if not gain <= best:
            raise UncertifiableError
        chosen[column] = pool[row]
        change = table[row].copy()
        change[column] -= 1
        dger(-1 / pivot, table[:, column].copy(), change, a=table, overwrite_a=1)
    return _Exchanged(chosen, swaps, gain)


class _Scan(NamedTuple):
    violating: Int[np.ndarray, "k"]
    largest: float
    blocks: int


def _scan(points: Points, basis: Basis, limit: float, out: np.ndarray, height: int, first: int) -> _Scan:
    """Coefficients of all rows into `out`, block after block from `first` round to `first` again.

    Stops after a block with rows that violate |λ| ≤ limit or leave the span.
    """
    n = len(points.values)
    total = -(-n // height)
    dual = points.factors[:, None] * basis.dual
    unit = np.eye(len(basis.chosen))
    largest = 0.0
    for k in range(total):
        low = (first + k) % total * height
        coefficients = out[low : low + height]
        bad = _fill(points, basis, points.values[low : low + height], dual, coefficients)
        own = np.flatnonzero((basis.chosen >= low) & (basis.chosen < low + height))
        coefficients[basis.chosen[own] - low] = unit[own]
        worst = float(max(coefficients.max(initial=0.0), -coefficients.min(initial=0.0)))
        largest = max(largest, worst)
        if not worst <= limit:
            bad = bad | ~(np.abs(coefficients).max(axis=1) <= limit)
        rows = np.flatnonzero(bad)
        if len(rows):
            return _Scan(rows + low, largest, k + 1)
    return _Scan(np.arange(0), largest, total)


def _fill(
    points: Points, basis: Basis, block: np.ndarray, dual: np.ndarray, out: np.ndarray
) -> np.ndarray | bool:
    """Coefficients of a block of rows into `out`; which of its rows leave the span."""
    full = len(basis.chosen) == min(points.values.shape)
    if full and basis.condition <= _STABLE_ABOVE:
        np.matmul(block, dual, out=out)
        return False
    scaled = block * points.factors
    out[:] = basis.coefficients(scaled)
    if full:
        return False
    residual = scaled - out @ basis.rows
    return norms_of(residual) > 2 * points.covered(norms_of(scaled))


def search(points: Points, C: float, pool: np.ndarray, chosen: np.ndarray) -> Spanner:
    """Exchange in the pool, verify all rows, let those that violate join the pool; until none does."""
    n, d = points.values.shape
    height = max(16, _BLOCK_ENTRIES // max(1, d))
    total, blocks, swaps, gain, stalls = -(-n // height), 0, 0, 0.0, 0
    first = int(points.norms.argmax()) // height if n else 0  # of sorted rows, where the largest are
    coefficients = np.empty((n, 0))
    basis = factor(points, chosen)
    best = (0, -math.inf)
    while True:
        pool = np.union1d(pool, basis.chosen)
        exchanged = _exchange(points, basis, pool, C - 2 * _margin(points, basis, pool, C))
        swaps, gain = swaps + exchanged.swaps, gain + exchanged.gain
        basis = factor(points, exchanged.chosen) if exchanged.swaps else basis
        reached = (len(basis.chosen), basis.log_volume)
        stalls += reached <= best
        best = max(best, reached)
        if stalls > d:  # neither rank nor volume grows: what violates is rounding
            raise UncertifiableError
        if coefficients.shape[1] != len(basis.chosen):
            coefficients = np.empty((n, len(basis.chosen)))
        scan = _scan(points, basis, C - _margin(points, basis, pool, C), coefficients, height, first)
        blocks += scan.blocks
        if not len(scan.violating):
            break
        first = (first + scan.blocks) % total
        pool = np.union1d(pool, scan.violating)
        basis = factor(points, grow(points, basis.chosen, scan.violating))
    return Spanner(
        basis.chosen, coefficients, scan.largest, swaps, gain, blocks / max(1, total), points.noise
    )


def _margin(points: Points, basis: Basis, pool: np.ndarray, C: float) -> float:
    """How far below C coefficients must stay for another solver's rounding not to lift them above it.

    Exchanges begin at twice the margin, so that what a scan finds is never too small to exchange.
    """
    sizes = points.scaled(pool)[1].max(initial=0.0)
    rounding = 8 * np.finfo(float).eps * math.sqrt(len(points.factors)) * sizes
    return min((C - 1) / 4, rounding * float(norms_of(basis.dual.T).max(initial=0.0)))
