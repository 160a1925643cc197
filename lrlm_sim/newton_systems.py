"""Newton systems AᵀWA x = −Aᵀh of the projection's interior-point method, for a batch of weights at once.

A (M, k) is shared by the batch, W = diag(weights) differs. Arrays carry the batch *last*, so that every
elementwise pass is contiguous over the batch and the normal matrices of all problems are one product: the
rows of `pairs`, A_ji·A_jk over j, times the weights (M, batch).

`NormalEquations` (batched Cholesky) is the fast solver. Interior points make W range over 20 orders of
magnitude and squaring A then costs digits; `OrthogonalFactors` (pivoted QR of √W·A, rows sorted, problem by
problem) loses half as many and solves the few problems where that matters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import scipy.linalg
from jaxtyping import Float

from lrlm_sim.kl_passes import PIVOT_NOISE, Passes


def graded_basis(
    rows: Float[np.ndarray, "s m"],
) -> tuple[Float[np.ndarray, "s k"], Float[np.ndarray, "m k"]]:
    """Orthonormal Z (s, s−1) with 1ᵀZ = 0, and RᵀZ, ordered from the strongest to the weakest direction of R.

    Z holds left singular vectors of R, columns scaled by 1/√max|R_·j| (the entropy's own metric up to
    constants). In this basis near-dependence of the rows of R appears as small *columns* of RᵀZ, which a
    Cholesky or QR
    factorisation handles without loss, and exact dependence as columns that are zero: entries below the
    rounding error of their own product are set to zero. (Without the basis, near-duplicate rows defeat the
    normal equations.)
    """
    s, m = rows.shape
    contrasts = scipy.linalg.helmert(s).T
    scale = np.abs(rows).max(axis=0)
    scaled = contrasts.T @ (rows / np.sqrt(scale))
    if m < s - 1:  # the SVD must return all s−1 directions
        scaled = np.hstack([scaled, np.zeros((s - 1, s - 1 - m))])
    basis = contrasts @ np.linalg.svd(scaled, full_matrices=False)[0]
    product = rows.T @ basis
    product[np.abs(product) <= s * np.finfo(float).eps * scale[:, None]] = 0.0
    return basis, product


class NewtonSystem(ABC):
    """Solver of AᵀWA x = −Aᵀh for a batch: `factor(weights)` once, then `solve(h)` for several h."""

    def __init__(self, matrix: Float[np.ndarray, "M k"], passes: Passes) -> None:
        self.matrix, self.passes = matrix, passes
        self.transpose = np.ascontiguousarray(matrix.T)

    @abstractmethod
    def factor(self, weights: Float[np.ndarray, "M batch"]) -> None:
        """Factorise AᵀWA for each column of positive `weights`."""

    @abstractmethod
    def solve(self, h: Float[np.ndarray, "M batch"]) -> Float[np.ndarray, "k batch"]:
        """Solution x of AᵀWA x = −Aᵀh for each column of `h`, by the last factorisation."""


class NormalEquations(NewtonSystem):
    """Forms AᵀWA for the whole batch by one matrix product and factorises all by one vectorised Cholesky."""

    def __init__(self, matrix: Float[np.ndarray, "M k"], passes: Passes) -> None:
        super().__init__(matrix, passes)
        i, j = np.tril_indices(matrix.shape[1])
        self._pairs = np.ascontiguousarray((matrix[:, i] * matrix[:, j]).T)

    def factor(self, weights: Float[np.ndarray, "M batch"]) -> None:
        out = self.passes.space("pairs", len(self._pairs), weights.shape[1])
        self._factors = self.passes.cholesky(np.matmul(self._pairs, weights, out=out))

    def solve(self, h: Float[np.ndarray, "M batch"]) -> Float[np.ndarray, "k batch"]:
        x = self.transpose[:, : len(h)] @ h
        np.negative(x, out=x)
        self.passes.cholesky_solve(self._factors, x)
        return x


class OrthogonalFactors(NewtonSystem):
    """Least squares min ‖√W·A x + h/√W‖ by column-pivoted QR, rows sorted by size (row-wise stable)."""

    def factor(self, weights: Float[np.ndarray, "M batch"]) -> None:
        self._roots = np.sqrt(weights.T)
        self._orders, self._factors = [], []
        largest = np.abs(self.matrix).max(axis=1)
        for root in self._roots:
            order = np.argsort(-root * largest)
            scaled = (root[:, None] * self.matrix)[order]
            self._orders.append(order)
            self._factors.append(scipy.linalg.qr(scaled, mode="economic", pivoting=True, check_finite=False))

    def solve(self, h: Float[np.ndarray, "M batch"]) -> Float[np.ndarray, "k batch"]:
        x = np.empty((self.matrix.shape[1], h.shape[1]))
        for b, (order, (q, r, pivots)) in enumerate(zip(self._orders, self._factors, strict=True)):
            pull = np.zeros(len(order))
            pull[: len(h)] = h[:, b] / self._roots[b, : len(h)]
            right = -q.T @ pull[order]
            diagonal = np.abs(np.diag(r))
            rank = int((diagonal > PIVOT_NOISE**2 * diagonal[0]).sum())
            x[pivots[rank:], b] = 0.0
            x[pivots[:rank], b] = scipy.linalg.solve_triangular(
                r[:rank, :rank], right[:rank], check_finite=False
            )
        return x
