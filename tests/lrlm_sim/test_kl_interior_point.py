"""The interior point of the KL projection: its parts by their definitions, and how far it walks."""

from __future__ import annotations

import numpy as np
import pytest

from lrlm_sim import newton_systems
from lrlm_sim.kl_interior_point import PATHS, InteriorPoint, _step, _take
from lrlm_sim.kl_passes import Look, Passes, Prediction
from lrlm_sim.kl_projection import _least_squares, certify_kl
from lrlm_sim.newton_systems import graded_basis
from lrlm_sim.projection_polytope import as_targets, make_polytope
from lrlm_sim.projections import kl_project, l1_project
from tests.benchmarks.bench_projections import (
    TARGETS,
    random_problems,
    typical_problems,
)
from tests.lrlm_sim.projection_problems import random_pair


def test_few_iterations_and_no_fallbacks():
    """The fast paths do the work: the numbers are about 4, 5 and 12 for KL."""
    rng = np.random.default_rng(9)
    for targets, most in zip(TARGETS, (5, 7, 16), strict=True):
        p = typical_problems(rng, 8, 128, 200, targets)
        result = kl_project(p.R, p.v, p.box, p.floor)
        assert result.iterations.mean() < most
        assert result.fallbacks == 0
    for seed in range(8):
        p = random_problems("typical", np.random.default_rng([300, seed]), 20)
        assert l1_project(p.R, p.v, p.box, p.floor).fallbacks == 0


@pytest.mark.parametrize("number", range(len(PATHS)))
def test_every_path_solves_problems_by_itself(number):
    for family in ("typical", "scaled", "near_duplicate_rows", "sparse", "tight_box"):
        p = random_problems(family, np.random.default_rng(number), 6)
        polytope = make_polytope(p.R, p.box, p.floor)
        directions = newton_systems.graded_basis(p.R)
        targets = np.ascontiguousarray(as_targets(p.v, polytope).T)
        guesses = np.repeat(polytope.center[:, None], 6, axis=1)
        solution = InteriorPoint(polytope, directions, PATHS[number], Passes()).solve(targets, guesses)
        assert certify_kl(polytope, targets, solution).certified.all()


def interior(seed, path=PATHS[0]):
    _rng, polytope, v, _ = random_pair(seed)
    method = InteriorPoint(polytope, graded_basis(polytope.rows), path, Passes())
    guesses = _least_squares(polytope, graded_basis(polytope.rows), v)
    return polytope, v, method, method._first(v.T, method._basis.T @ (guesses.T - polytope.center[:, None]))


def test_the_first_iterate_is_inside_balanced_and_halfway():
    polytope, v, method, first = interior(3)
    alpha = polytope.center[:, None] + method._basis @ first.beta
    y = polytope.rows.T @ alpha
    floors, sides = first.slack[:9], first.slack[9:]
    np.testing.assert_allclose(floors, y - polytope.floor, atol=1e-12)
    np.testing.assert_allclose(sides[:4], polytope.box + alpha, atol=1e-12)
    np.testing.assert_allclose(sides[4:], polytope.box - alpha, atol=1e-12)
    assert (first.slack > 0).all()
    log_ratio = np.log(y) - np.log(v.T)
    products = 0.7 / 9 * (floors * (1 + np.abs(log_ratio))).sum(axis=0)
    np.testing.assert_allclose(
        first.slack * first.dual, np.broadcast_to(products, first.slack.shape), rtol=1e-9
    )
    level = np.log(y.sum(axis=0) / v.sum(axis=1))
    np.testing.assert_allclose(first.tilt, (log_ratio + level) / 2, atol=1e-9)
    np.testing.assert_allclose(first.log_targets, np.log(v.T), rtol=1e-12)
    assert first.position.tolist() == list(range(len(v)))


def test_a_first_iterate_beyond_the_boundary_stops_at_98_hundredths():
    _polytope, v, method, _ = interior(3)
    far = np.full((3, 1), 50.0)
    first = method._first(v[:1].T, far)
    reach = method._system.matrix @ far / method._first_slack[:, None]
    assert first.beta / far == pytest.approx(np.full((3, 1), 0.98 / -reach.min()))
    assert (first.slack[:, 0] / method._first_slack).min() == pytest.approx(0.02)


def test_the_cost_of_a_dual_residual_is_its_largest_pull_within_the_box():
    polytope, _, method, first = interior(4)
    A, m = method._system.matrix, 9
    residual = method._basis @ (A.T @ first.dual - A[:m].T @ first.tilt)
    alpha = polytope.center[:, None] + method._basis @ first.beta
    expected = (polytope.box * np.abs(residual) - residual * alpha).sum(axis=0)
    np.testing.assert_allclose(method._residual_gap(first), expected, rtol=1e-9)


@pytest.mark.parametrize("least", [0.0, 0.3])
def test_centering_is_mehrotra_s(least):
    _, _, method, _ = interior(5, PATHS[2] if least else PATHS[0])
    total, first, second = np.array([2.0, 3.0, 4.0]), np.array([-0.3, 0.2, -1.9]), np.array([0.4, 0.1, 1.0])
    low, high = np.array([-2.0, -0.5, -1.0]), np.array([1.0, -0.25, 0.0])
    nothing = np.empty((9, 3))
    look = Look(nothing, nothing, nothing, nothing, total, np.zeros(3), np.array([1.0, 1e12, 1.0]))
    primal, dual = np.array([0.5, 1.0, 1.0]), np.array([0.5, 1.0, 1.0])
    np.testing.assert_allclose(dual, 1 / np.maximum(1, 1 + high))
    # Σ (u + p·du)(z + d·dz) with dz = −z − z·du/u
    after = total + primal * first - dual * (total + first) - primal * dual * (first + second)
    sigma = np.clip((after / total) ** 3, least, 1)
    expected = np.maximum(sigma * total, 0.5e-11 * np.maximum(look.magnitude, method._mass)) / 17
    found = method._centering(look, Prediction(first, second, low, high))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_steps_are_full_inside_and_stop_short_of_the_boundary():
    smallest = np.array([0.3, -0.5, -1 + 2e-8, -1 + 0.5e-8, -1.0, -4.0])
    expected = [1, 1, 1, 0.9 / (1 - 0.5e-8), 0.9, 0.225]
    np.testing.assert_allclose(_step(0.9, smallest), expected, rtol=1e-7)
    assert _step(0.9, smallest)[3] < 0.91


def test_taking_some_problems_keeps_the_batch_contiguous():
    _, _, _, first = interior(5)
    some = _take(first, np.array([True, False, True, False, False, True]))
    assert some.position.tolist() == [0, 2, 5]
    for name in ("log_targets", "beta", "slack", "dual", "tilt"):
        np.testing.assert_array_equal(getattr(some, name), getattr(first, name)[:, [0, 2, 5]])
        assert getattr(some, name).flags.c_contiguous


@pytest.mark.parametrize(("targets", "most"), [("near", 4.5), ("far", 6.0), ("extrapolated", 13.0)])
def test_problems_take_few_iterations(targets, most):
    """Means over 200 problems (3.9, 5.1, 11.6 when this was written): a worse step shows here first."""
    p = typical_problems(np.random.default_rng(0), 8, 128, 200, targets)
    result = kl_project(p.R, p.v, p.box, p.floor)
    assert result.certified.all()
    assert result.fallbacks == 0
    assert result.iterations.mean() <= most
    assert result.iterations.min() >= 1


def test_every_problem_keeps_its_own_iterations_and_place():
    """Easy and hard targets in turn: finished problems leave the batch, answers stay in their rows."""
    rng = np.random.default_rng(1)
    near, hard = (typical_problems(rng, 5, 24, 20, kind) for kind in ("near", "extrapolated"))
    v = np.stack([near.v, hard.v], axis=1).reshape(40, 24)
    together = kl_project(near.R, v, near.box, near.floor)
    assert together.iterations[::2].max() < together.iterations[1::2].mean()
    for row in (0, 1, 38, 39):
        alone = kl_project(near.R, v[row : row + 1], near.box, near.floor)
        assert abs(int(alone.iterations[0]) - int(together.iterations[row])) <= 1
        np.testing.assert_allclose(alone.alpha[0] @ near.R, together.alpha[row] @ near.R, atol=1e-8)
