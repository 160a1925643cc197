"""Barycentric spanners of sets known only through linear maximisation [Awerbuch & Kleinberg 2008]."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from oracles.checks import as_finite, as_integer, as_number
from oracles.errors import InconsistentAnswerError, ParameterError, ShapeError


@dataclass(frozen=True, eq=False)
class OracleSpanner:
    """C-approximate barycentric spanner of an implicit set Ω ⊂ R^d.

    Attributes:
        points: the spanner, (r, d), r = dimension of the span of Ω.
        max_coefficient: max over Ω of |λ_i|, as found by the oracle for every i with the final points.
        swaps: exchanges after the first r points; at most (r/2)·log_C r.
        calls: linear maximisations asked.
    """

    points: Float[np.ndarray, "r d"]
    max_coefficient: float
    swaps: int
    calls: int


def as_approximation(C: object) -> float:
    """The factor C of a spanner as a float, > 1 (ParameterError otherwise)."""
    value = as_number("C", C, 1.0)
    if value == 1.0:
        raise ParameterError(
            "C must exceed 1: the search for C = 1 (a set of largest volume) has no polynomial bound; "
            "ask for C = 1.01"
        )
    return value


def spanner_from_oracle(
    maximise: Callable[[np.ndarray], ArrayLike], dimension: int, C: float = 2.0, tolerance: float = 1e-11
) -> OracleSpanner:
    """C-approximate spanner of a compact set Ω ⊂ R^dimension from a linear-optimisation oracle.

    `maximise(w)` returns a point of Ω where ⟨w, x⟩ is largest, shape (dimension,). As in Awerbuch & Kleinberg
    (2008, section 2): begin with the unit vectors, replace them in turn by the point of Ω of largest
    |det|, then exchange while some point has a coefficient above C. The coefficient on point i is a
    linear function of x, so two calls (±w) find its largest absolute value.

    The triangular first phase leaves a volume within r^(r/2) of the best (Hadamard), hence at most
    (r/2)·log_C r exchanges and O(r² log_C r) calls. A unit vector that no point of Ω needs (all
    coefficients on it zero up to `tolerance`, relative to what cancels) stays as a placeholder and is
    not returned: r is the dimension of the span of Ω.

    Raises ParameterError, ShapeError or NonFiniteError (answers), InconsistentAnswerError when the exchanges
    exceed their bound: the oracle does not maximise.
    """
    dimension = as_integer("dimension", dimension, 1)
    C, tolerance = as_approximation(C), as_number("tolerance", tolerance, 1e-15, 1e-3)
    oracle = _LinearOracle(maximise, dimension)
    basis = np.eye(dimension)
    needed = np.zeros(dimension, dtype=bool)
    for i in range(dimension):
        w = np.linalg.solve(basis, np.eye(dimension)[:, i])
        x, value = oracle.largest(w)
        if value > tolerance * float(np.abs(w) @ np.abs(x)):
            basis[i], needed[i] = x, True
    active = np.flatnonzero(needed)
    bound = len(active) / 2 * math.log(max(1, len(active)), C)
    largest, swaps, unchanged = 0.0, 0, 0
    while unchanged < len(active):  # one whole round without an exchange certifies every coefficient
        i = active[(swaps + unchanged) % len(active)]
        x, value = oracle.largest(np.linalg.solve(basis, np.eye(dimension)[:, i]))
        unchanged, largest = unchanged + 1, max(largest, value)
        if value > C:
            basis[i], swaps, unchanged, largest = x, swaps + 1, 0, 0.0
            if swaps > bound + 1:
                raise InconsistentAnswerError(
                    f"{swaps} exchanges exceed the bound {bound:.1f}: maximise must return a point of the "
                    "set where the linear function is largest"
                )
    return OracleSpanner(basis[active], largest, swaps, oracle.calls)


class _LinearOracle:
    """The caller's `maximise`, checked and counted."""

    def __init__(self, maximise: Callable[[np.ndarray], ArrayLike], dimension: int) -> None:
        self._maximise, self._dimension = maximise, dimension
        self.calls = 0

    def largest(self, w: np.ndarray) -> tuple[np.ndarray, float]:
        """Point of the set where |⟨w, x⟩| is largest, and that value."""
        points = [self._ask(w), self._ask(-w)]
        values = [abs(float(w @ x)) for x in points]
        best = int(values[1] > values[0])
        return points[best], values[best]

    def _ask(self, w: np.ndarray) -> np.ndarray:
        self.calls += 1
        x = as_finite("maximise(w)", self._maximise(w.copy()), "(dimension,)", 1)
        if len(x) != self._dimension:
            raise ShapeError("maximise(w)", "(dimension,)", (self._dimension,), x.shape)
        return x
