"""The feasible set of both projections, and the result type they share.

A *spanner model* predicts by combinations y = Rᵀα of the rows of a sketch R (s, m). The combinations
allowed are

    K = { α : Σ α = 1,  |α_i| ≤ box,  Rᵀα ≥ floor },

the signed simplex of 2411.07536 (there with box = O(S)), cut so that every predicted number stays positive.
K depends on R, box and floor only: it is checked once per batch, and either it has no point
(`InfeasibleError`) or it gives all problems of the batch one strictly feasible starting point.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike

from lrlm_sim.linear_program import INFINITY, is_optimal, linear_program
from oracles.checks import as_finite, as_number
from oracles.errors import LrlmError, ParameterError, ShapeError

#: A constraint may be violated by this much, relative to the largest entry of its column of R.
FEASIBILITY = 1e-12
#: Relative slack from which the uniform combination is a good start; below it a linear program centres.
_COMFORTABLE_SLACK = 1e-6
#: Certificates lose box·1e-16; above this, a linear program finds how large coefficients can become.
_LARGE_BOX = 1e3


class InfeasibleError(LrlmError, ValueError):
    """No combination α satisfies the constraints: the message names the columns, or the box, at fault."""


class ProjectionStatus(enum.IntEnum):
    """How one projection ended."""

    OPTIMAL = 0  #: certified: duality gap ≤ 1e-10 (ℓ1: 1e-8) of the scale, constraints satisfied
    IDENTITY = 1  #: certified without iterations: the target itself is in the set
    UNCERTIFIED = 2  #: feasible, but the duality gap is above the tolerance (or a constraint is violated)


@dataclass(frozen=True, eq=False)
class Projection:
    """Projections of n targets, each with its certificate.

    With `optimum` the unknown smallest objective, objective − optimum ≤ `gap` is a theorem, not an
    estimate: the gap is measured against a dual feasible point, by code that shares nothing with the
    solver. It is the sum of `stationarity` (largest decrease of the linearised Lagrangian over the box),
    `complementarity` (multipliers of the floors times slacks) and, for KL, the Fenchel gap of the entropy.

    Attributes:
        alpha: the combinations, (n, s); always finite, rows sum to one.
        objective: KL(Rᵀα ‖ v), or ‖Rᵀα − v‖₁, of the target clipped at the floor.
        gap, stationarity, complementarity: see above; absolute.
        scale: what the gap is compared with (see `kl_project`, `l1_project`).
        infeasibility: largest violation of a constraint (of a floor: relative to the largest entry of its
            column).
        iterations: interior-point or simplex iterations.
        status: a `ProjectionStatus` per row.
        fallbacks: how many rows the fast path left to the slower solvers.
    """

    alpha: Float[np.ndarray, "n s"]
    objective: Float[np.ndarray, "n"]
    gap: Float[np.ndarray, "n"]
    stationarity: Float[np.ndarray, "n"]
    complementarity: Float[np.ndarray, "n"]
    scale: Float[np.ndarray, "n"]
    infeasibility: Float[np.ndarray, "n"]
    iterations: Int[np.ndarray, "n"]
    status: Int[np.ndarray, "n"]
    fallbacks: int

    @property
    def certified(self) -> Bool[np.ndarray, "n"]:
        """Rows whose optimality is proved."""
        return self.status != ProjectionStatus.UNCERTIFIED

    def take(self, rows: np.ndarray) -> Projection:
        """The projections of some rows (indices or a mask)."""
        columns = {name: value[rows] for name, value in vars(self).items() if name != "fallbacks"}
        return replace(self, **columns)


@dataclass(frozen=True, eq=False)
class Polytope:
    """K = {α : Σα = 1, |α| ≤ box, Rᵀα ≥ floor} with a strictly feasible point.

    Attributes:
        rows: R, (s, m).
        box: bound of |α_i| (or a smaller number that |α_i| cannot exceed on K anyway).
        floor: bound of every coordinate of Rᵀα.
        center: a point of K, strictly inside all constraints that are not constant on K's hyperplane, (s,).
        column_scale: max_i |R_ij|, (m,).
        mass: Σ_ij |R_ij| / s, the ℓ1 norm of an average row: the natural size of a projection.
    """

    rows: Float[np.ndarray, "s m"]
    box: float
    floor: float
    center: Float[np.ndarray, "s"]
    column_scale: Float[np.ndarray, "m"]
    mass: float

    @property
    def is_point(self) -> bool:
        """Whether the box and Σα = 1 alone leave one combination only, the uniform one."""
        return len(self.rows) == 1 or len(self.rows) * self.box <= 1 + FEASIBILITY

    def infeasibility(self, alpha: Float[np.ndarray, "n s"]) -> Float[np.ndarray, "n"]:
        """Largest violation: floors relative to their column's scale, box and sum absolute."""
        floors = ((self.floor - alpha @ self.rows) / self.column_scale).max(axis=1, initial=0.0)
        sides = (np.abs(alpha) - self.box).max(axis=1, initial=0.0)
        return np.maximum(np.maximum(floors, sides), np.abs(alpha.sum(axis=1) - 1))

    def smallest(self, costs: Float[np.ndarray, "n s"]) -> Float[np.ndarray, "n"]:
        """The minimum of cᵀα over Σα = 1, |α| ≤ box, for each row c of `costs`: the cheapest first."""
        s = costs.shape[1]
        full, part = divmod(1 + s * self.box, 2 * self.box)
        cheapest = np.sort(costs, axis=1)
        values = np.full(s, -self.box)
        values[: int(full)] = self.box
        if full < s:
            values[int(full)] += part
        return cheapest @ values


def unsolved(polytope: Polytope, n: int) -> Projection:
    """The center of K for every one of n rows, uncertified, with infinite gaps."""
    alpha = np.repeat(polytope.center[None], n, axis=0)
    unknown = np.full((6, n), np.inf)
    status = np.full(n, int(ProjectionStatus.UNCERTIFIED))
    iterations = np.zeros(n, dtype=np.int64)
    return Projection(
        alpha,
        objective=unknown[0],
        gap=unknown[1],
        stationarity=unknown[2],
        complementarity=unknown[3],
        scale=unknown[4],
        infeasibility=unknown[5],
        iterations=iterations,
        status=status,
        fallbacks=0,
    )


def judge(
    polytope: Polytope, alpha: Float[np.ndarray, "n s"], tolerance: float, **columns: np.ndarray
) -> Projection:
    """A `Projection` of the given columns, with infeasibility measured and status decided."""
    columns["gap"] = np.where(np.isnan(columns["gap"]), np.inf, columns["gap"])
    infeasibility = polytope.infeasibility(alpha)
    proved = (columns["gap"] <= tolerance * columns["scale"]) & (infeasibility <= FEASIBILITY)
    status = np.where(proved, int(ProjectionStatus.OPTIMAL), int(ProjectionStatus.UNCERTIFIED))
    return Projection(alpha=alpha, infeasibility=infeasibility, status=status, fallbacks=0, **columns)


def absorb(answer: Projection, rows: Int[np.ndarray, "k"], attempt: Projection) -> None:
    """Write `attempt` into those `rows` of `answer` where it is feasible and has the smaller gap."""
    better = (attempt.infeasibility <= FEASIBILITY) & (attempt.gap <= answer.gap[rows])
    for field in fields(Projection):
        if field.name != "fallbacks":
            getattr(answer, field.name)[rows[better]] = getattr(attempt, field.name)[better]


def make_polytope(R: ArrayLike, box: float, floor: float) -> Polytope:
    """Check the arguments common to both projections and find a strictly feasible point of K.

    Raises:
        ShapeError, NonFiniteError, ParameterError: malformed arguments.
        InfeasibleError: K is empty, with the columns that cannot reach the floor or the box that is too
            small.
    """
    rows = as_finite("R", R, "(s, m)", 2)
    if rows.size == 0:
        raise ShapeError("R", "(s, m)", "at least one row and one column", rows.shape)
    box = as_number("box", box, 0.0)
    floor = as_number("floor", floor, 0.0)
    if floor < 1e-300:
        raise ParameterError(f"floor must be positive (at least 1e-300), got {floor}: try 1e-12 / m")
    s = len(rows)
    if s * box < 1 - 1e-15:
        raise InfeasibleError(f"|α_i| ≤ box = {box} and Σα = 1 need box ≥ 1/s = {1 / s:.6g}: enlarge the box")
    column_scale = np.abs(rows).max(axis=0)
    reach = np.minimum(column_scale * s * box, np.where(np.ptp(rows, axis=0) == 0, rows[0], np.inf))
    short = np.flatnonzero(reach < floor * (1 - FEASIBILITY))
    if len(short):
        raise InfeasibleError(_name_columns(short, floor))
    center = _strictly_feasible(rows, box, floor, column_scale)
    if box > _LARGE_BOX:
        box = _reachable_box(rows, box, floor, column_scale)
    return Polytope(rows, box, floor, center, column_scale, float(np.abs(rows).sum() / s))


def as_targets(v: ArrayLike, polytope: Polytope) -> Float[np.ndarray, "n m"]:
    """Targets as a finite (n, m) array, clipped from below at the floor (convention of both projections)."""
    targets = as_finite("v", v, "(n, m)", 2)
    if targets.shape[1] != polytope.rows.shape[1]:
        m = polytope.rows.shape[1]
        raise ShapeError("v", "(n, m)", f"(n, {m}), m the number of columns of R", targets.shape)
    return np.maximum(targets, polytope.floor)


def as_start(start: ArrayLike | None, n: int, polytope: Polytope) -> Float[np.ndarray, "n s"] | None:
    """Guessed combinations as a finite (n, s) array, or None."""
    if start is None:
        return None
    guess = as_finite("start", start, "(n, s)", 2)
    if guess.shape != (n, len(polytope.rows)):
        raise ShapeError("start", "(n, s)", (n, len(polytope.rows)), guess.shape)
    return guess


def _strictly_feasible(
    rows: np.ndarray, box: float, floor: float, column_scale: np.ndarray
) -> Float[np.ndarray, "s"]:
    """The uniform combination if it is well inside K, else the point of largest relative slack (by HiGHS)."""
    s = len(rows)
    uniform = np.full(s, 1 / s)
    moving = np.ptp(rows, axis=0) > 0
    slack = ((rows.T @ uniform - floor) / column_scale)[moving].min(initial=np.inf)
    if slack >= _COMFORTABLE_SLACK or s * box <= 1 + FEASIBILITY:
        center = uniform
    else:
        center = _deepest_point(rows[:, moving], box, floor, column_scale[moving])
    below = (rows.T @ center - floor) / column_scale < -FEASIBILITY
    if below.any():
        raise InfeasibleError(_name_columns(np.flatnonzero(below), floor))
    return center


def _deepest_point(
    rows: np.ndarray, box: float, floor: float, column_scale: np.ndarray
) -> Float[np.ndarray, "s"]:
    """The α of largest slack t ≤ 1: Rᵀα − floor ≥ t·column_scale, |α| ≤ box(1 − t/2), Σα = 1."""
    s, m = rows.shape
    eye, side = np.eye(s), np.full((s, 1), -box / 2)
    matrix = np.block([
        [(rows / column_scale).T, np.full((m, 1), -1.0)],
        [eye, side],
        [-eye, side],
        [np.ones((1, s)), np.zeros((1, 1))],
    ])  # fmt: skip
    lower = np.concatenate([floor / column_scale, np.full(2 * s, -box), [1.0]])
    upper = np.concatenate([np.full(m + 2 * s, INFINITY), [1.0]])
    bounds = (np.full(s + 1, -INFINITY), np.append(np.full(s, INFINITY), 1.0))
    model = linear_program(matrix, np.append(np.zeros(s), -1.0), bounds, (lower, upper))
    model.run()
    if not is_optimal(model):
        raise InfeasibleError(
            f"no α with |α| ≤ {box}, Σα = 1 and Rᵀα ≥ {floor} was found: the linear program failed"
        )
    alpha = np.asarray(model.getSolution().col_value)[:s]
    return alpha + (1 - alpha.sum()) / s


def _reachable_box(rows: np.ndarray, box: float, floor: float, column_scale: np.ndarray) -> float:
    """Twice the largest |α_i| in K if that is below `box`: a box that never binds would only cost digits."""
    s, m = rows.shape
    matrix = np.vstack([(rows / column_scale).T, np.ones(s)])
    limits = (np.append(floor / column_scale, 1.0), np.append(np.full(m, INFINITY), 1.0))
    model = linear_program(matrix, np.zeros(s), (np.full(s, -box), np.full(s, box)), limits)
    largest = 0.0
    for i in range(s):
        for sign in (1.0, -1.0):
            model.changeColCost(i, sign)
            model.run()
            reached = abs(model.getInfo().objective_function_value) if is_optimal(model) else box
            largest = max(largest, reached)
        model.changeColCost(i, 0.0)
    return min(box, 2 * largest)


def _name_columns(columns: np.ndarray, floor: float) -> str:
    shown = ", ".join(map(str, columns[:8])) + (", …" if len(columns) > 8 else "")
    return (
        f"no α in the box with Σα = 1 brings Rᵀα to the floor {floor:.3g}: column(s) {shown} of R "
        "stay below it; drop those columns, lower the floor, or raise R to it"
    )
