"""Representative vectors: short vectors whose combinations have the ℓ1 norms of laws over futures.

Vectors v_h are γ-representative of the laws P(· | h) when | ‖Σ c_h v_h‖_1 − ‖Σ c_h P(· | h)‖_1 | ≤ γ for
all |c_h| ≤ 1 (arXiv:2411.07536). Futures f_1..f_m drawn from a proposal law D give such vectors by
importance weighting,

    v_h = (P(f_j | h) / (m·D(f_j)))_j,      E ‖Σ c_h v_h‖_1 = Σ_f |Σ c_h P(f | h)| = ‖Σ c_h P(· | h)‖_1,

and with D the uniform mixture of P(· | h_1..h_k) every coordinate of v_(h_i) is at most k/m, hence
concentration. The conditional-query learner works with these vectors in place of the laws: its
spanners, its ℓ1 norms and its generalised KL projections Σ y log(y/v) − y + v are sums over the m
coordinates, which estimate the sums over all futures without bias for fixed arguments.

v_h = P(· | h) W for one matrix W, so a spanner of the laws is one of the vectors with the same
coefficients; conversely see `transfer_bound`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations, islice, product

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from oracles.checks import SUM_TOLERANCE, as_finite, as_generator, as_integer, as_number, as_rows
from oracles.errors import NonFiniteError, ParameterError, ProbabilityError, ShapeError, TooLargeError

__all__ = [
    "Representativeness",
    "draw_mixture_futures",
    "exact_representativeness",
    "mixture_log_proposal",
    "representative_vectors",
    "representative_vectors_from_logs",
    "search_representativeness",
    "sufficient_sample_size",
    "transfer_bound",
    "transfer_errors",
]

#: Most sign-cell vertices that `exact_representativeness` visits.
_MAX_VERTICES = 4_000_000
#: Systems solved together while visiting them.
_CHUNK = 20_000
#: Systems with a smaller determinant (unit normals) have no vertex that rounding would leave meaningful.
_SINGULAR = 1e-12
#: Coordinate ascent: smallest step that counts, relative to the norms, and most sweeps.
_LEAST_GAIN, _MAX_SWEEPS = 1e-12, 100


def representative_vectors(probabilities: ArrayLike, proposal: ArrayLike) -> Float[np.ndarray, "n_h m"]:
    """v_h = (P(f_j | h) / (m·D(f_j)))_j from P(f_j | h), shape (n_h, m), and D(f_j), shape (m,).

    The futures must have been drawn from D (`draw_mixture_futures`), repeated as often as drawn.
    Raises ShapeError, NonFiniteError, ProbabilityError (P outside [0, 1] or D outside (0, 1]).
    """
    laws = as_finite("probabilities", probabilities, "(n_h, m)", 2)
    weights = as_finite("proposal", proposal, "(m,)", 1)
    _check_columns("proposal", weights, laws)
    if (laws < 0).any() or (laws > 1 + SUM_TOLERANCE).any():
        raise ProbabilityError(f"probabilities must lie in [0, 1], got {laws.min():.3g} to {laws.max():.3g}")
    if (weights <= 0).any() or (weights > 1 + SUM_TOLERANCE).any():
        raise ProbabilityError(
            f"proposal must lie in (0, 1], got {weights.min():.3g} to {weights.max():.3g}: give the "
            "probabilities under the law that the futures were drawn from"
        )
    return laws / (len(weights) * weights)


def representative_vectors_from_logs(
    log_probs: ArrayLike, log_proposal: ArrayLike
) -> Float[np.ndarray, "n_h m"]:
    """The same from log P(f_j | h) (−∞ allowed) and log D(f_j): long futures do not underflow."""
    laws, weights = _as_logs("log_probs", log_probs, 2), _as_logs("log_proposal", log_proposal, 1)
    _check_columns("log_proposal", weights, laws)
    if (weights == -np.inf).any():
        raise ProbabilityError(
            "log_proposal must be finite: a future that was drawn has positive probability"
        )
    return np.exp(laws - (weights + math.log(len(weights))))


def mixture_log_proposal(log_probs: ArrayLike) -> Float[np.ndarray, "m"]:
    """Logarithm of the mixture D(f_j) = (1/k) Σ_i P(f_j | h_i), from log P(f_j | h_i), shape (k, m)."""
    laws = _as_logs("log_probs", log_probs, 2)
    if not len(laws):
        raise ParameterError("a mixture needs at least one selected history")
    with np.errstate(divide="ignore"):
        return np.logaddexp.reduce(laws, axis=0) - math.log(len(laws))


def draw_mixture_futures(
    complete: Callable[[int, int], ArrayLike],
    n_histories: int,
    n: int,
    rng: np.random.Generator | int | None = None,
) -> tuple[Int[np.ndarray, "n length"], Int[np.ndarray, "n"]]:
    """`n` i.i.d. futures from the uniform mixture of P(· | h_i), and the history that each came from.

    `complete(i, count)` returns `count` fresh completions of history number i, (count, length), for instance
    ``lambda i, count: access.complete([histories[i]], count)[0]``; all of one length. Asked once for
    each history that the mixture chose.
    """
    n_histories, n = as_integer("n_histories", n_histories, 1), as_integer("n", n, 1)
    source = as_generator(rng).integers(n_histories, size=n)
    drawn = {int(i): np.asarray(complete(int(i), int((source == i).sum()))) for i in np.unique(source)}
    length = next(iter(drawn.values())).shape[-1:]
    for i, part in drawn.items():
        expected = (int((source == i).sum()), *length)
        if part.shape != expected or part.dtype.kind not in "iu":
            raise ShapeError(
                f"complete({i}, {expected[0]})", "(count, length) of tokens", expected, part.shape
            )
    futures = np.empty((n, *length), dtype=np.int64)
    for i, part in drawn.items():
        futures[source == i] = part
    return futures, source


def sufficient_sample_size(gamma: float, delta: float, n_histories: int, ratio: float | None = None) -> int:
    """Futures m for which the vectors of n histories are γ-representative with probability ≥ 1 − δ.

    `ratio` is a bound ρ on Σ_h P(f | h) / D(f), never below n, its mean under D; for D the uniform mixture
    over the same n histories it is n (the default). For n histories covered with coefficients ≤ C by
    the k that D mixes, nCk.

    Derivation. For fixed c in the box, ‖Σ c_h v_h‖_1 is a mean of m i.i.d. terms in [0, ρ] with
    expectation ‖Σ c_h P(· | h)‖_1: by Hoeffding it is off by more than t with probability at most
    2 exp(−2mt²/ρ²). Moving every c_h by at most ε changes ‖Σ c_h v_h‖_1 by at most ε Σ_h ‖v_h‖_1 ≤ ερ and
    ‖Σ c_h P(· | h)‖_1 by at most εn. The centres of ⌈1/ε⌉^n cells of the box are an ε-net, and so with
    t = γ − ε(ρ + n)

        m ≥ ρ² / (2t²) · log(2⌈1/ε⌉^n / δ)

    suffices for any ε < γ/(ρ + n); the smallest such m over ε = γ/(ρ + n)/2^j is returned.
    Scaling: the difference of norms is homogeneous in c, so vectors γ-representative on |c_h| ≤ 1 are
    Cγ-representative on |c_h| ≤ C.
    """
    n = as_integer("n_histories", n_histories, 1)
    gamma, delta = as_number("gamma", gamma, 0.0), as_number("delta", delta, 0.0, 1.0)
    if gamma == 0 or delta == 0:
        raise ParameterError("gamma and delta must be positive")
    rho = float(n) if ratio is None else as_number("ratio", ratio, float(n))
    sizes = []
    for j in range(1, 40):
        epsilon = gamma / (rho + n) / 2**j
        t = gamma - epsilon * (rho + n)
        net = n * math.log(math.ceil(1 / epsilon))
        sizes.append(math.ceil(rho**2 / (2 * t**2) * (math.log(2 / delta) + net)))
    return min(sizes)


@dataclass(frozen=True, eq=False)
class Representativeness:
    """How far vectors are from representing laws in ℓ1.

    Attributes:
        gamma: | ‖Σ c_h v_h‖_1 − ‖Σ c_h P(· | h)‖_1 | at `coefficients`.
        exact: True when no c in the box does worse; False when gamma is only a lower bound.
        coefficients: where it is attained, (n_h,), |c_h| ≤ 1.
    """

    gamma: float
    exact: bool
    coefficients: Float[np.ndarray, "n_h"]


def exact_representativeness(vectors: ArrayLike, probabilities: ArrayLike) -> Representativeness:
    """Largest | ‖Σ c_h v_h‖_1 − ‖Σ c_h P(· | h)‖_1 | over the box |c_h| ≤ 1, by enumeration.

    `vectors` (n_h, m), `probabilities` (n_h, n_f) over all futures. The difference of two norms is
    neither convex nor concave, so the corners of the box are not enough: it is linear on the cells into
    which the hyperplanes {c : (cV)_j = 0} and {c : (cP)_f = 0} cut the box, and its largest absolute
    value is at a vertex of a cell. A vertex has some coordinates at ±1 and as many independent
    hyperplanes through it as it has other coordinates, at most the rank of [V P]. All are visited
    (columns that are multiples of one another are one hyperplane). For a few histories or low rank;
    TooLargeError beyond 4·10^6 vertices: use `search_representativeness`.
    """
    arrangement = _Arrangement.of(vectors, probabilities)
    n, planes = arrangement.normals.shape
    rank = int(np.linalg.matrix_rank(arrangement.normals)) if planes else 0
    free_counts = range(min(rank, n - 1, planes) + 1)
    count = sum(math.comb(n, q) * 2 ** (n - q - 1) * math.comb(planes, q) for q in free_counts)
    if count > _MAX_VERTICES:
        raise TooLargeError(
            f"{n} histories and {planes} distinct futures have up to {count} cell vertices, more than "
            f"{_MAX_VERTICES}: use search_representativeness for a lower bound"
        )
    best = Representativeness(0.0, True, np.zeros(n))
    for q in free_counts:
        for free in combinations(range(n), q):
            for points in arrangement.vertices(list(free)):
                gaps = np.abs(arrangement.gap(points))
                k = int(np.argmax(gaps))
                if gaps[k] > best.gamma:
                    best = Representativeness(float(gaps[k]), True, points[k])
    return best


def search_representativeness(
    vectors: ArrayLike,
    probabilities: ArrayLike,
    restarts: int = 32,
    rng: np.random.Generator | int | None = None,
) -> Representativeness:
    """A lower bound on the same maximum: coordinate ascent from random corners and points of the box.

    Along a coordinate the difference of norms is piecewise linear, so each step tries its break points
    and both ends and is exact. Never above `exact_representativeness`; equality is not promised.
    """
    arrangement = _Arrangement.of(vectors, probabilities)
    restarts, rng = as_integer("restarts", restarts, 1), as_generator(rng)
    n = len(arrangement.normals)
    best = Representativeness(0.0, False, np.zeros(n))
    for k in range(restarts):
        c = rng.uniform(-1, 1, n)
        c = np.sign(c) if k % 2 == 0 else c
        for sign in (1.0, -1.0):
            point, gamma = arrangement.ascend(c, sign)
            if gamma > best.gamma:
                best = Representativeness(gamma, False, point)
    return best


def transfer_errors(
    coefficients: ArrayLike, indices: ArrayLike, probabilities: ArrayLike
) -> Float[np.ndarray, "n_h"]:
    """‖P(· | h) − Σ_i λ_hi P(· | h_i)‖_1 of every history, for a spanner (λ, indices) found elsewhere.

    `coefficients` (n_h, r) and `indices` (r,) as in `spanners.Spanner`; `probabilities` (n_h, n_f). With
    a sketch in place of the laws: the residuals of the representation.
    """
    laws = as_finite("probabilities", probabilities, "(n_h, n_f)", 2)
    weights = as_finite("coefficients", coefficients, "(n_h, r)", 2)
    chosen = as_rows(indices, len(laws))
    if weights.shape != (len(laws), len(chosen)):
        raise ShapeError("coefficients", "(n_h, r)", (len(laws), len(chosen)), weights.shape)
    return np.abs(laws - weights @ laws[chosen]).sum(axis=1)


def transfer_bound(gamma: float, C: float, residual: float = 0.0) -> float:
    """Largest ℓ1 error on the laws of a C-spanner of γ-representative vectors: residual + max(1, C)·γ.

    If v_h = Σ λ_i v_(h_i) up to `residual` in ℓ1 with |λ_i| ≤ C, the combination c = e_h − Σ λ_i e_(h_i)
    lies in a box of half-width max(1, C), and by homogeneity ‖Σ c P‖_1 ≤ ‖Σ c v‖_1 + max(1, C)·γ, with
    γ measured over h and the spanner. With exact probabilities and residual 0 the error is exactly 0
    whenever vectors and laws have the same rank: v_h = P(· | h) W and W is injective on the row space.
    """
    return as_number("residual", residual, 0.0) + max(1.0, as_number("C", C, 0.0)) * as_number(
        "gamma", gamma, 0.0
    )


@dataclass(frozen=True, eq=False)
class _Arrangement:
    """gap(c) = ‖cV‖_1 − ‖cP‖_1 = Σ_g weights_g |c · normals_g|, with multiples of one column merged."""

    normals: Float[np.ndarray, "n_h planes"]
    weights: Float[np.ndarray, "planes"]

    @classmethod
    def of(cls, vectors: ArrayLike, probabilities: ArrayLike) -> _Arrangement:
        v = as_finite("vectors", vectors, "(n_h, m)", 2)
        p = as_finite("probabilities", probabilities, "(n_h, n_f)", 2)
        if len(v) != len(p):
            raise ShapeError("vectors", "(n_h, m)", f"({len(p)}, m)", v.shape)
        columns = np.hstack([v, p])
        sizes = np.linalg.norm(columns, axis=0)
        signed = np.where(np.arange(len(sizes)) < v.shape[1], sizes, -sizes)
        kept = sizes > 0
        units = columns[:, kept] / sizes[kept]
        if not units.size:
            return cls(np.zeros((len(v), 0)), np.zeros(0))
        leading = np.take_along_axis(units, np.abs(units).argmax(axis=0)[None], axis=0)
        units = units * np.sign(leading)
        _, first, group = np.unique(np.round(units, 10), axis=1, return_index=True, return_inverse=True)
        return cls(units[:, first], np.bincount(group.ravel(), signed[kept], len(first)))

    def gap(self, points: Float[np.ndarray, "k n_h"]) -> Float[np.ndarray, "k"]:
        return np.abs(points @ self.normals) @ self.weights

    def vertices(self, free: list[int]) -> Iterator[Float[np.ndarray, "k n_h"]]:
        """Points that len(free) hyperplanes fix, the coordinates outside `free` at ±1, the first at 1."""
        n, q = len(self.normals), len(free)
        fixed = [h for h in range(n) if h not in free]
        signs = np.array([(1.0, *rest) for rest in product((1.0, -1.0), repeat=len(fixed) - 1)])
        if not q:
            yield signs
            return
        chosen = combinations(range(self.normals.shape[1]), q)
        while chunk := list(islice(chosen, max(1, _CHUNK // len(signs)))):
            planes = self.normals.T[np.array(chunk)]
            systems = planes[:, :, free]
            solvable = np.abs(np.linalg.det(systems)) > _SINGULAR
            right = -planes[solvable][:, :, fixed] @ signs.T
            inner = np.linalg.solve(systems[solvable], right).transpose(0, 2, 1).reshape(-1, q)
            points = np.empty((len(inner), n))
            points[:, fixed] = np.tile(signs, (int(solvable.sum()), 1))
            points[:, free] = np.clip(inner, -1, 1)
            inside = (np.abs(inner) <= 1 + 1e-9).all(axis=1)
            if inside.any():
                yield points[inside]

    def ascend(self, start: Float[np.ndarray, "n_h"], sign: float) -> tuple[np.ndarray, float]:
        """Coordinate ascent of sign · gap from `start`, exact along each coordinate."""
        c = start.copy()
        value = sign * float(self.gap(c[None])[0])
        least = _LEAST_GAIN * float(np.abs(self.weights).sum())
        for _ in range(_MAX_SWEEPS):
            before = value
            for h in range(len(c)):
                slopes = self.normals[h]
                with np.errstate(divide="ignore", invalid="ignore"):
                    breaks = c[h] - (c @ self.normals) / slopes
                tried = np.concatenate([[-1.0, 1.0], breaks[np.abs(breaks) <= 1]])
                products = (c @ self.normals) + np.outer(tried - c[h], slopes)
                values = sign * (np.abs(products) @ self.weights)
                k = int(np.argmax(values))
                if values[k] > value + least:
                    c[h], value = tried[k], float(values[k])
            if value == before:
                break
        return c, sign * float(self.gap(c[None])[0])


def _as_logs(name: str, values: ArrayLike, ndim: int) -> Float[np.ndarray, "..."]:
    """Log-probabilities: −∞ allowed, NaN and positive values (beyond rounding) not."""
    logs = np.asarray(values, dtype=np.float64)
    if logs.ndim != ndim:
        raise ShapeError(name, "(n_h, m)" if ndim == 2 else "(m,)", f"{ndim} axes", logs.shape)
    if np.isnan(logs).any():
        raise NonFiniteError(f"{name} must not be NaN")
    if (logs > SUM_TOLERANCE).any():
        raise ProbabilityError(f"{name} must be at most 0 = log 1, got {logs.max():.3g}")
    return logs


def _check_columns(name: str, weights: np.ndarray, laws: np.ndarray) -> None:
    if weights.shape != laws.shape[1:] or not len(weights):
        raise ShapeError(name, "(m,)", f"({laws.shape[1]},) with m ≥ 1", weights.shape)
