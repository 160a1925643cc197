"""KL projection onto the combinations of a spanner, each answer with a certificate of optimality.

The solver is `kl_interior_point`; this file knows the problem, recognises targets that need no solving, and
certifies.

Certificate. For every w in R^m and every z ≥ 0, weak duality (y log(y/v) − y + v ≥ w y − v(e^w − 1), y ≥
floor) gives

    optimum ≥ Σ_j v_j (1 − e^(w_j)) + floor·Σ_j z_j + min {cᵀα : Σα = 1, |α_i| ≤ box},   c = R(w − z).

The last minimum is taken exactly, by sorting c, so the bound needs no stationarity and holds whatever the
solver did.
"""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from lrlm_sim.kl_interior_point import PATHS, TARGET_ENTROPY_GAP, InteriorPoint, Solution
from lrlm_sim.kl_passes import fastest_passes
from lrlm_sim.newton_systems import graded_basis
from lrlm_sim.projection_polytope import (
    Polytope,
    Projection,
    ProjectionStatus,
    absorb,
    as_start,
    as_targets,
    judge,
    make_polytope,
    unsolved,
)

#: A row is certified if its duality gap is at most this fraction of its scale.
CERTIFIED_KL_GAP = 1e-10
#: Problems are solved in blocks of about this many numbers per array, so that a block stays in the cache.
_BLOCK_ENTRIES = 2**16
#: A guess that misses the target by more than this, relative to the column's scale, is not worth certifying.
_NEAR = 1e-6

#: `graded_basis` of R: Z (s, s−1) and RᵀZ (m, s−1).
_Directions = tuple[np.ndarray, np.ndarray]


def kl_project(
    R: ArrayLike, v: ArrayLike, box: float, floor: float, *, start: ArrayLike | None = None
) -> Projection:
    """The α that minimises KL(y ‖ v) = Σ_j y_j log(y_j/v_j) − y_j + v_j, y = Rᵀα, for each target v.

    The constraints are Σα = 1, |α_i| ≤ box, y_j ≥ floor. Targets are clipped first: v means max(v, floor),
    so zeros and negative entries are allowed. If a target is itself in the set — the given `start`, else
    the least-squares combination, reproduces it and is feasible — the answer is that combination, without
    iterations.

    Problems that the fast path does not certify are solved again by orthogonal factorisations, and if need
    be by a damped path; `fallbacks` counts them. A row that stays uncertified is finite, says so in
    `status`, and a warning is given. Certified means gap ≤ 1e-10·scale with scale = max(Σ_j y_j (1 +
    |log(y_j/v_j)|), Σ_ij |R_ij| / s); the usual gap is 1e-11·scale. y is unique; α is unique unless some n
    ≠ 0 has Σn = 0 and Rᵀn = 0. Rows depend on the batch around them by less than their gap.

    Args:
        R: rows to combine, (s, m), any signs and scales.
        v: targets, (n, m), any signs.
        box: bound of |α_i|, ≥ 1/s.
        floor: lower bound of every y_j, > 0.
        start: guesses (n, s), to recognise targets inside the set and to start from; default least squares.

    Raises:
        ShapeError, NonFiniteError, ParameterError: malformed arguments.
        InfeasibleError: the feasible set, the same for all targets, is empty.

    Source: the projection step of arXiv 2411.07536; why KL and not ℓ1: `l1_project`.
    """
    polytope = make_polytope(R, box, floor)
    targets = as_targets(v, polytope)
    guesses = as_start(start, len(targets), polytope)
    if polytope.is_point:
        return certify_kl(polytope, targets.T, _center_solution(polytope, targets.T))
    directions = graded_basis(polytope.rows)
    if guesses is None:
        guesses = _least_squares(polytope, directions, targets)
    answer = unsolved(polytope, len(targets))
    rows, inside = _inside(polytope, targets, guesses)
    absorb(answer, rows, inside)
    fallbacks = _solve_open(polytope, directions, targets, guesses, answer)
    missed = int((~answer.certified).sum())
    if missed:
        warnings.warn(
            f"{missed} of {len(targets)} KL projections are not certified: see .status and .gap", stacklevel=2
        )
    return dataclasses.replace(answer, fallbacks=fallbacks)


def _solve_open(
    polytope: Polytope,
    directions: _Directions,
    targets: np.ndarray,
    guesses: np.ndarray,
    answer: Projection,
) -> int:
    """Run the interior-point paths, fast to safe, over the open rows; how many the first left open."""
    step = max(16, _BLOCK_ENTRIES // targets.shape[1])
    fallbacks, passes = 0, fastest_passes(targets.size)
    for number, path in enumerate(PATHS):
        rows = np.flatnonzero(~answer.certified)
        fallbacks = len(rows) if number == 1 else fallbacks
        if len(rows) == 0:
            break
        method = InteriorPoint(polytope, directions, path, passes)
        for block in np.split(rows, range(step, len(rows), step)):
            columns = np.ascontiguousarray(targets[block].T)
            solution = _finite(polytope, columns, method.solve(columns, guesses[block].T))
            absorb(answer, block, certify_kl(polytope, columns, solution))
    return fallbacks


def certify_kl(polytope: Polytope, targets: Float[np.ndarray, "m n"], solution: Solution) -> Projection:
    """Objective, duality gap and feasibility of α for the (clipped, transposed) targets, from scratch.

    Uses only α, the tilt w and the multipliers z of `solution` (the module's formula); see `Projection`.
    """
    reached = polytope.rows.T @ solution.alpha
    y = np.maximum(reached, polytope.floor)
    log_ratio = np.log(y) - np.log(targets)
    z = np.maximum(solution.multipliers, 0)
    excess = log_ratio - solution.tilt
    with np.errstate(over="ignore", invalid="ignore"):  # a tilt that is far off: an infinite gap
        fenchel = np.einsum("jb,jb->b", y, excess + np.expm1(-excess))
    slope = solution.tilt - z
    costs = polytope.rows @ slope
    stationarity = np.einsum("ib,ib->b", costs, solution.alpha) - polytope.smallest(costs.T)
    stationarity += np.einsum("jb,jb->b", slope, y - reached)
    complementarity = np.einsum("jb,jb->b", z, y - polytope.floor)
    objective = np.maximum((y * log_ratio - y + targets).sum(axis=0), 0)
    scale = np.maximum(np.einsum("jb,jb->b", y, 1 + np.abs(log_ratio)), polytope.mass)
    return judge(
        polytope,
        alpha=solution.alpha.T,
        objective=objective,
        tolerance=CERTIFIED_KL_GAP,
        gap=fenchel + complementarity + stationarity,
        stationarity=stationarity,
        complementarity=complementarity,
        scale=scale,
        iterations=solution.iterations,
    )


def _finite(polytope: Polytope, targets: np.ndarray, solution: Solution) -> Solution:
    """The solution with columns that broke down replaced by the center of K, whose gap is honestly large."""
    parts = (solution.alpha, solution.tilt, solution.multipliers)
    broken = ~np.logical_and.reduce([np.isfinite(part).all(axis=0) for part in parts])
    if broken.any():
        safe = _center_solution(polytope, targets[:, broken])
        for part, value in zip(parts, (safe.alpha, safe.tilt, safe.multipliers), strict=True):
            part[:, broken] = value
    return solution


def _center_solution(polytope: Polytope, targets: np.ndarray) -> Solution:
    """The center of K, its gradient as tilt, no multipliers: optimal only where K is a point."""
    size = targets.shape[1]
    alpha = np.repeat(polytope.center[:, None], size, axis=1)
    y = np.maximum(polytope.rows.T @ alpha, polytope.floor)
    return Solution(
        alpha, np.log(y) - np.log(targets), np.zeros_like(targets), np.zeros(size, dtype=np.int64)
    )


def _inside(polytope: Polytope, targets: np.ndarray, guesses: np.ndarray) -> tuple[np.ndarray, Projection]:
    """Rows whose target the guesses reproduce, with certificates (w = z = 0, so gap = objective)."""
    miss = (np.abs(guesses @ polytope.rows - targets) / polytope.column_scale).max(axis=1)
    rows = np.flatnonzero(miss <= _NEAR)
    nothing, none = np.zeros((targets.shape[1], len(rows))), np.zeros(len(rows), dtype=np.int64)
    guess = certify_kl(polytope, targets[rows].T, Solution(guesses[rows].T, nothing, nothing, none))
    inside = guess.certified & (guess.gap <= TARGET_ENTROPY_GAP * guess.scale)
    guess.status[inside] = ProjectionStatus.IDENTITY
    return rows[inside], guess.take(inside)


def _least_squares(
    polytope: Polytope, directions: _Directions, targets: np.ndarray
) -> Float[np.ndarray, "n s"]:
    """α = center + Zβ with β least squares for Rᵀα = v, columns scaled by 1/√column_scale."""
    basis, product = directions
    weight = 1 / np.sqrt(polytope.column_scale)
    inverse = np.linalg.pinv(product * weight[:, None], rcond=1e-13)
    beta = ((targets - polytope.center @ polytope.rows) * weight) @ inverse.T
    return polytope.center + beta @ basis.T
