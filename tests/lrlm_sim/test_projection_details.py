"""Details of projections and spanners that whole-result tests pass by: found by mutation testing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog

from lrlm_sim.kl_passes import Passes
from lrlm_sim.kl_projection import kl_project
from lrlm_sim.newton_systems import NormalEquations, OrthogonalFactors
from lrlm_sim.projection_polytope import ProjectionStatus, _reachable_box
from lrlm_sim.spanner_oracle import spanner_from_oracle
from lrlm_sim.spanners import barycentric_spanner
from oracles.errors import ParameterError, ShapeError


def test_a_target_close_to_the_set_but_outside_is_solved_not_returned():
    """A guess within 1e-6 of its target is certified as feasible, but is not the projection."""
    rng = np.random.default_rng(0)
    R = rng.dirichlet(np.ones(12), size=3)
    alpha = rng.dirichlet(np.ones(3), size=20)
    off = rng.standard_normal((20, 12))
    basis = np.linalg.qr(R.T)[0]
    off -= off @ basis @ basis.T  # leaves the span of R: no α reaches the target
    targets = alpha @ R + 3e-7 * off / np.abs(off / R.max(axis=0)).max(axis=1, keepdims=True)
    result = kl_project(R, targets, 9.0, 1e-9)
    assert (result.status == ProjectionStatus.OPTIMAL).all()
    assert (result.iterations > 0).all()
    both = kl_project(R, np.concatenate([targets, alpha @ R]), 9.0, 1e-9)
    expected = [ProjectionStatus.OPTIMAL] * 20 + [ProjectionStatus.IDENTITY] * 20
    assert both.status.tolist() == expected


def test_the_reachable_box_of_badly_scaled_columns_is_a_linear_program_s():
    rng = np.random.default_rng(1)
    rows = rng.dirichlet(np.ones(8), size=4) * np.logspace(0, -6, 8)
    floor = 1e-9
    box = _reachable_box(rows, 1e6, floor, np.abs(rows).max(axis=0))
    extremes = []
    for i in range(4):
        for sign in (1.0, -1.0):
            found = linprog(
                -sign * np.eye(4)[i],
                A_ub=-(rows / np.abs(rows).max(axis=0)).T,
                b_ub=-floor / np.abs(rows).max(axis=0),
                A_eq=np.ones((1, 4)),
                b_eq=[1.0],
                bounds=(None, None),
            )
            assert found.success
            extremes.append(-found.fun)
    assert box == pytest.approx(2 * max(extremes), rel=1e-5)


@pytest.mark.parametrize("system", [NormalEquations, OrthogonalFactors])
def test_newton_systems_solve_weighted_least_squares(system):
    """x minimises ‖√W·A x + h/√W‖, that is AᵀWA x = −Aᵀh, for every column of a batch."""
    rng = np.random.default_rng(3)
    matrix, weights = rng.standard_normal((40, 5)), rng.uniform(1, 2, (40, 3))
    h = rng.standard_normal((40, 3))
    solver = system(matrix, Passes())
    for _ in range(2):  # the second time in the buffers of the first
        solver.factor(weights)
        expected = [
            -np.linalg.solve(matrix.T @ (weights[:, b, None] * matrix), matrix.T @ h[:, b]) for b in range(3)
        ]
        np.testing.assert_allclose(solver.solve(h), np.stack(expected, axis=1), rtol=1e-8)
        weights = weights[:, ::-1].copy()


def test_wrong_arguments_are_named():
    with pytest.raises(ParameterError, match="tolerance"):
        barycentric_spanner(np.eye(2), tolerance=1.0)
    with pytest.raises(ParameterError, match="noise"):
        barycentric_spanner(np.eye(2), noise=-1.0)
    with pytest.raises(ParameterError, match="tolerance"):
        spanner_from_oracle(lambda w: w, 2, tolerance=1.0)
    with pytest.raises(ParameterError, match="dimension"):
        spanner_from_oracle(lambda w: w, 0)
    with pytest.raises(ShapeError, match=r"maximise\(w\).*\(dimension,\)"):
        spanner_from_oracle(lambda w: np.ones(3), 2)
