"""Newton systems of the interior point, and the basis they are written in."""

from __future__ import annotations

import numpy as np
import pytest

from lrlm_sim import newton_systems
from lrlm_sim.kl_passes import Passes
from lrlm_sim.newton_systems import NormalEquations, OrthogonalFactors, graded_basis


def test_newton_systems_solve_their_equations():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(30, 6))
    weights = 10 ** rng.uniform(-3, 3, size=(30, 5))
    h = rng.normal(size=(30, 5))
    exact = np.stack(
        [-np.linalg.solve(matrix.T * w @ matrix, matrix.T @ b) for w, b in zip(weights.T, h.T, strict=True)],
        axis=1,
    )
    for system in (
        newton_systems.NormalEquations(matrix, Passes()),
        newton_systems.OrthogonalFactors(matrix, Passes()),
    ):
        system.factor(weights)
        np.testing.assert_allclose(system.solve(h), exact, rtol=1e-8)


def test_orthogonal_factors_keep_digits_that_the_normal_equations_lose():
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(30, 6))
    weights = np.ones((30, 1))
    weights[:3] = 1e16  # three constraints almost active: the other directions must still be solved
    x = rng.normal(size=6)
    h = -matrix @ x
    h[:3] = 0.0
    null = np.linalg.svd(matrix[:3])[2][3:].T
    exact = -null @ np.linalg.solve((matrix[3:] @ null).T @ (matrix[3:] @ null), null.T @ matrix.T @ h)
    errors = []
    for kind in (newton_systems.NormalEquations, newton_systems.OrthogonalFactors):
        system = kind(matrix, Passes())
        system.factor(weights)
        errors.append(np.abs(system.solve(h[:, None])[:, 0] - exact).max())
    assert errors[1] < 1e-6
    assert errors[0] > 100 * errors[1]


def test_semidefinite_systems_drop_the_null_direction():
    matrix = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    system = newton_systems.NormalEquations(matrix, Passes())
    system.factor(np.ones((2, 1)))
    h = np.array([[1.0], [2.0]])
    np.testing.assert_allclose(matrix @ system.solve(h), -h, atol=1e-12)


def test_graded_basis():
    R = np.random.default_rng(0).dirichlet(np.ones(9), size=5)
    R[3] = R[1]
    R[4] = R[2] * (1 + 1e-9 * np.arange(9))
    basis, product = newton_systems.graded_basis(R)
    np.testing.assert_allclose(basis.T @ basis, np.eye(4), atol=1e-14)
    np.testing.assert_allclose(basis.sum(axis=0), 0, atol=1e-14)
    np.testing.assert_allclose(product, R.T @ basis, atol=1e-15)
    sizes = np.abs(product).max(axis=0)
    assert sizes[3] == 0
    assert 1e-11 < sizes[2] < 1e-8 < sizes[1]


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


def test_the_graded_basis_is_sorted_and_orthogonal_in_the_entropy_s_metric():
    R = np.random.default_rng(2).dirichlet(np.full(9, 0.3), size=5) * np.logspace(0, -6, 9)
    _basis, product = graded_basis(R)
    metric = product / np.sqrt(np.abs(R).max(axis=0))[:, None]
    gram = metric.T @ metric
    np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-12 * gram[0, 0])
    assert (np.diff(np.diag(gram)) < 0).all()
    wide_basis, wide = graded_basis(R[:, :2])
    assert wide_basis.shape == (5, 4)
    np.testing.assert_allclose(wide_basis.T @ wide_basis, np.eye(4), atol=1e-12)
    assert wide.shape == (2, 4)
    assert not wide[:, 2:].any()
