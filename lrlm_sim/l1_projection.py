"""ℓ1 projection onto the combinations of a spanner, by linear programming, each answer with a certificate.

    minimise ‖Rᵀα − v‖₁   over   Σα = 1,  |α_i| ≤ box,  Rᵀα ≥ floor.

The *dual* program is what is solved: with d = w − z, |w_j| ≤ 1, z ≥ 0,

    maximise  −vᵀw + floor·Σz − box·Σ(p + q) − ν   over   R(w − z) + p − q + ν1 = 0,  p, q ≥ 0,

which has s rows only, whatever m. One HiGHS model serves the batch; a target changes its costs. Every
problem starts from the basis of one reference target, the center of K, so that answers do not depend on the
batch. That basis is dual feasible for all targets, because their costs touch boxed columns alone, and the
dual simplex with bound flips does what Barrodale and Roberts' ℓ1 regression does: it passes many
breakpoints per pivot. α is the vector of row duals.

Why KL is the default: ℓ1 projection can *increase* the ℓ1 distance to points of the set, by a factor up to
2 (x = (1, 1), K = conv{(0, 0), (1, 2)}, y = (1, 2): ‖π(x) − y‖₁ = 1.5 > 1 = ‖x − y‖₁); KL projection never
increases KL(z ‖ ·) for z in it.

Sources: arXiv 2411.07536 (KL against ℓ1); Barrodale and Roberts, SIAM J. Numer. Anal. 10 (1973).
"""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from lrlm_sim.linear_program import INFINITY, is_optimal, linear_program
from lrlm_sim.projection_polytope import (
    Polytope,
    Projection,
    absorb,
    as_targets,
    judge,
    make_polytope,
    unsolved,
)

#: A row is certified if its gap is at most this fraction of its scale; HiGHS's tolerances allow no less.
CERTIFIED_L1_GAP = 1e-8
#: (zoom, warm): variables and costs are multiplied by the zoom, which makes those tolerances as much smaller;
#: the solve starts from the reference basis, or cold and with presolve. The largest are for boxes near 1/s,
#: where the set is no wider than the tolerances.
_ATTEMPTS = ((8.0, True), (64.0, True), (1.0, False), (65536.0, True), (65536.0, False))


def l1_project(R: ArrayLike, v: ArrayLike, box: float, floor: float) -> Projection:
    """The α that minimises ‖Rᵀα − v‖₁, for each target v, with certificates.

    The constraints are Σα = 1, |α_i| ≤ box, Rᵀα ≥ floor. Targets are clipped first: v means max(v, floor)
    (this moves the objective by a constant, not the answer). A certified row has gap ≤ 1e-8·scale (usually
    1e-13), with scale = max(‖y − v‖₁, Σ_ij |R_ij| / s). The answer is a vertex of the optimal face, often
    the only point of it.

    Args:
        R: rows to combine, (s, m), any signs and scales.
        v: targets, (n, m), any signs.
        box: bound of |α_i|, ≥ 1/s.
        floor: lower bound of every coordinate of Rᵀα, > 0.

    Raises:
        ShapeError, NonFiniteError, ParameterError: malformed arguments.
        InfeasibleError: the feasible set, the same for all targets, is empty.
    """
    polytope = make_polytope(R, box, floor)
    targets = as_targets(v, polytope)
    answer = unsolved(polytope, len(targets))
    fallbacks = 0
    for number, (zoom, warm) in enumerate(_ATTEMPTS):
        rows = np.flatnonzero(~answer.certified)
        fallbacks = len(rows) if number == 1 else fallbacks
        if len(rows):
            absorb(answer, rows, _DualProgram(polytope, zoom, warm).solve(targets[rows]))
    missed = int((~answer.certified).sum())
    if missed:
        warnings.warn(
            f"{missed} of {len(targets)} ℓ1 projections are not certified: see .status and .gap", stacklevel=2
        )
    return dataclasses.replace(answer, fallbacks=fallbacks)


def certify_l1(
    polytope: Polytope,
    targets: Float[np.ndarray, "n m"],
    alpha: Float[np.ndarray, "n s"],
    w: Float[np.ndarray, "n m"],
    z: Float[np.ndarray, "n m"],
    iterations: np.ndarray,
) -> Projection:
    """Objective, duality gap and feasibility of α, from scratch, by weak duality with any w and z.

    Once |w_j| ≤ 1 and z ≥ 0: optimum ≥ −wᵀv + floor·Σz + min {cᵀα : Σα = 1, |α| ≤ box}, c = R(w − z). Only
    w − z is used; it is shrunk to be ≤ 1 and split again, w = max(w − z, −1).
    """
    slope = (w - z) / np.maximum(1, (w - z).max(axis=1, initial=1))[:, None]
    w = np.maximum(slope, -1)
    z = w - slope
    reached = alpha @ polytope.rows
    y = np.maximum(reached, polytope.floor)
    off = y - targets
    objective = np.abs(off).sum(axis=1)
    costs = (w - z) @ polytope.rows.T
    stationarity = np.einsum("ni,ni->n", costs, alpha) - polytope.smallest(costs)
    stationarity += np.einsum("nj,nj->n", w - z, y - reached)
    complementarity = np.einsum("nj,nj->n", z, y - polytope.floor)
    return judge(
        polytope,
        alpha=alpha,
        objective=objective,
        tolerance=CERTIFIED_L1_GAP,
        gap=(np.abs(off) - w * off).sum(axis=1) + complementarity + stationarity,
        stationarity=stationarity,
        complementarity=complementarity,
        scale=np.maximum(objective, polytope.mass),
        iterations=iterations,
    )


class _DualProgram:
    """The dual program in HiGHS; columns (w, z) are scaled by the largest entries of the columns of R.

    Warm: from the reference basis. Cold: from scratch and with presolve, if the warm path failed.
    """

    def __init__(self, polytope: Polytope, zoom: float, warm: bool) -> None:
        self._polytope, self._zoom, self._warm = polytope, zoom, warm
        (s, m), scale = polytope.rows.shape, polytope.column_scale
        scaled = polytope.rows / scale
        self._matrix = np.hstack([scaled, -scaled, np.eye(s), -np.eye(s), np.ones((s, 1))])
        self._lower = np.concatenate([-scale, np.zeros(m + 2 * s), [-INFINITY]])
        upper = np.concatenate([scale, np.full(m + 2 * s + 1, INFINITY)])
        floors, sides = -polytope.floor / scale, np.full(2 * s, polytope.box)
        self._costs = np.concatenate([polytope.center @ scaled, floors, sides, [1.0]])
        zero = np.zeros(s)
        bounds = (zoom * self._lower, zoom * upper)
        self._model = linear_program(self._matrix, zoom * self._costs, bounds, (zero, zero))
        self._model.setOptionValue("simplex_scale_strategy", 0)
        self._model.setOptionValue("presolve", "off" if warm else "on")
        self._model.run()
        self._reference = self._model.getBasis()

    def solve(self, targets: Float[np.ndarray, "n m"]) -> Projection:
        """Solve and certify; a program that HiGHS gives up on leaves the center of K, with its gap."""
        (n, m), scale = targets.shape, self._polytope.column_scale
        alpha = np.repeat(self._polytope.center[None], n, axis=0)
        slope = np.zeros((2, n, m))
        iterations = np.zeros(n, dtype=np.int64)
        reach = self._polytope.box * np.abs(self._polytope.rows).sum(axis=0)  # more is the same program
        for i, target in enumerate(np.minimum(targets, reach) / scale):
            self._costs[:m] = target
            solution = self._solve_one(m)
            if solution is not None:
                alpha[i], values = solution
                slope[:, i] = values[: 2 * m].reshape(2, m) / scale
                iterations[i] = self._model.getInfo().simplex_iteration_count
        alpha = _inside(self._polytope, alpha)
        return certify_l1(self._polytope, targets, alpha, slope[0], slope[1], iterations)

    def _solve_one(self, m: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Row duals and columns for the current costs, recomputed from the final basis if it is regular."""
        model = self._model
        if self._warm:
            model.setBasis(self._reference)
        else:
            model.clearSolver()
        model.changeColsCost(m, np.arange(m, dtype=np.int32), self._zoom * self._costs[:m])
        model.run()
        if not is_optimal(model):
            model.clearSolver()
            return None
        solution = model.getSolution()
        values = np.asarray(solution.col_value) / self._zoom
        basic = np.asarray(model.getBasicVariables()[1])  # type: ignore[attr-defined]
        if (basic < 0).any():  # a row is basic: R has dependent rows
            return np.asarray(solution.row_dual) / self._zoom, values
        basis = self._matrix[:, basic]
        exact = np.where(values[:m] > 0, -self._lower[:m], self._lower[:m])
        values = np.concatenate([exact, np.zeros(len(values) - m)])
        values[basic] = 0.0
        try:
            values[basic] = np.linalg.solve(basis, -self._matrix @ values)
            return np.linalg.solve(basis.T, self._costs[basic]), values
        except np.linalg.LinAlgError:
            return np.asarray(solution.row_dual) / self._zoom, np.asarray(solution.col_value) / self._zoom


def _inside(polytope: Polytope, alpha: Float[np.ndarray, "n s"]) -> Float[np.ndarray, "n s"]:
    """Sums made one, then rows pulled to the center of K until floors and box, ~1e-10 off at first, hold."""
    alpha = alpha + ((1 - alpha.sum(axis=1)) / alpha.shape[1])[:, None]
    center = polytope.center
    lowest, reached = center @ polytope.rows, alpha @ polytope.rows
    with np.errstate(divide="ignore", invalid="ignore"):
        floors = np.where(reached < polytope.floor, (polytope.floor - reached) / (lowest - reached), 0)
        beyond = np.abs(alpha) - polytope.box
        sides = np.where(beyond > 0, beyond / np.abs(alpha - center), 0)
    pull = np.maximum(floors.max(axis=1, initial=0), sides.max(axis=1, initial=0))
    pull = np.where(pull <= 1, pull, 0)[:, None]
    return alpha + pull * (center - alpha)
