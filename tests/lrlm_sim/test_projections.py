"""Projections: agreement with other solvers, certificates that can fail, the inequalities they serve."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st

from lrlm_sim import kl_interior_point, kl_projection, l1_projection
from lrlm_sim.kl_interior_point import PATHS
from lrlm_sim.kl_projection import _center_solution, _least_squares
from lrlm_sim.l1_projection import _inside
from lrlm_sim.newton_systems import graded_basis
from lrlm_sim.projection_polytope import make_polytope
from lrlm_sim.projections import ProjectionStatus, kl_project, l1_project
from tests.benchmarks.bench_projections import (
    FAMILIES,
    TARGETS,
    Compiled,
    kl,
    linprog_l1,
    random_problems,
    typical_problems,
)
from tests.lrlm_sim.projection_problems import random_pair

SEEDS = st.integers(0, 2**32 - 1)


def feasible_points(p, alpha, rng, count):
    """Combinations in K: convex mixtures of given feasible ones (K is convex)."""
    return rng.dirichlet(np.full(len(alpha), 0.3), size=count) @ alpha


def assert_in_set(p, alpha, tolerance=1e-12):
    assert np.isfinite(alpha).all()
    assert np.abs(alpha.sum(axis=1) - 1).max() <= tolerance
    assert np.abs(alpha).max() <= p.box + tolerance
    slack = alpha @ p.R - p.floor
    assert (slack / np.abs(p.R).max(axis=0)).min() >= -tolerance


# --- against independent solvers -------------------------------------------------------------------------


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize(("s", "m"), [(2, 5), (4, 16), (8, 40)])
def test_kl_agrees_with_clarabel(s, m, targets):
    p = typical_problems(np.random.default_rng(s), s, m, 12, targets)
    result = kl_project(p.R, p.v, p.box, p.floor)
    v = np.maximum(p.v, p.floor)
    compiled = Compiled(p)
    reference = kl(np.array([compiled.solve(row) for row in v]) @ p.R, v)
    assert_in_set(p, result.alpha)
    np.testing.assert_allclose(result.objective, kl(result.alpha @ p.R, v), rtol=1e-10, atol=1e-12)
    assert (result.objective <= reference + 1e-9 * result.scale).all()
    assert (reference <= result.objective + 1e-6 * result.scale).all()  # and it is the same problem


@pytest.mark.parametrize("targets", TARGETS)
def test_l1_agrees_with_linprog(targets):
    p = typical_problems(np.random.default_rng(7), 6, 24, 8, targets)
    result = l1_project(p.R, p.v, p.box, p.floor)
    v = np.maximum(p.v, p.floor)
    reference = np.array([np.abs(linprog_l1(p, row) @ p.R - row).sum() for row in v])
    assert_in_set(p, result.alpha)
    assert result.certified.all()
    np.testing.assert_allclose(result.objective, np.abs(result.alpha @ p.R - v).sum(axis=1), atol=1e-11)
    np.testing.assert_allclose(result.objective, reference, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("box", [0.3, 1.0, 24.0])
def test_karush_kuhn_tucker_conditions(box):
    """Multipliers of the active constraints, found by non-negative least squares, cancel the gradient."""
    rng = np.random.default_rng(3)
    p = dataclasses.replace(typical_problems(rng, 8, 32, 30, "extrapolated"), box=box, floor=1e-4)
    result = kl_project(p.R, p.v, p.box, p.floor)
    active = np.zeros(2)
    for alpha, v in zip(result.alpha, np.maximum(p.v, p.floor), strict=True):
        y = alpha @ p.R
        floors, sides = y < p.floor + 1e-8, np.abs(alpha) > box - 1e-7
        active += floors.sum(), sides.sum()
        # R log(y/v) = Σ z_j R_j (floors) − Σ sign(α_i) a_i e_i (sides) − ν 1 with z, a ≥ 0, ν = ν₊ − ν₋
        ones = np.ones((len(alpha), 1))
        normals = np.hstack([p.R[:, floors], -np.diag(np.sign(alpha))[:, sides], ones, -ones])
        assert scipy.optimize.nnls(normals, p.R @ np.log(y / v))[1] < 1e-6
    assert active[0] > 30
    assert active[1] > 5 or box > 0.3


def test_broken_answers_fail_the_conditions():
    """The KKT test above is not vacuous: moving 1e-3 towards the centre breaks it."""
    rng = np.random.default_rng(3)
    p = dataclasses.replace(typical_problems(rng, 8, 32, 5, "far"), floor=1e-4)
    alpha = 0.999 * kl_project(p.R, p.v, p.box, p.floor).alpha + 0.001 / 8
    gradient = np.log(alpha @ p.R / np.maximum(p.v, p.floor)) @ p.R.T
    assert np.ptp(gradient, axis=1).min() > 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_every_generated_problem_is_certified(family):
    for seed in range(5):
        p = random_problems(family, np.random.default_rng([100 + seed, FAMILIES.index(family)]), 40)
        result = kl_project(p.R, p.v, p.box, p.floor)  # warns, hence fails, if a row is uncertified
        assert result.certified.all()
        assert (result.gap <= 1e-10 * result.scale).all()
        assert_in_set(p, result.alpha)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_generated_l1_problem_is_certified(family):
    p = random_problems(family, np.random.default_rng([200, FAMILIES.index(family)]), 20)
    result = l1_project(p.R, p.v, p.box, p.floor)
    assert result.certified.all()
    assert_in_set(p, result.alpha)


# --- special sets and conventions ------------------------------------------------------------------------


def test_zero_and_negative_targets_mean_the_floor():
    p = typical_problems(np.random.default_rng(0), 5, 12, 6, "extrapolated")
    v = p.v * (np.random.default_rng(1).random(p.v.shape) < 0.6)
    assert (v == 0).any()
    assert (v < 0).any()
    for project in (kl_project, l1_project):
        clipped = project(p.R, np.maximum(v, p.floor), p.box, p.floor)
        np.testing.assert_array_equal(project(p.R, v, p.box, p.floor).alpha, clipped.alpha)


def test_targets_inside_the_set_are_returned_without_iterations():
    rng = np.random.default_rng(2)
    p = typical_problems(rng, 5, 30, 1, "near")
    alpha = rng.dirichlet(np.ones(5), size=50) * 1.1 - 0.02
    alpha = alpha[(alpha @ p.R > p.floor).all(axis=1)]
    assert len(alpha) > 10
    assert (alpha < 0).any()
    v = alpha @ p.R
    for start in (alpha, None):
        result = kl_project(p.R, v, p.box, p.floor, start=start)
        assert (result.status == ProjectionStatus.IDENTITY).all()
        assert (result.iterations == 0).all()
        np.testing.assert_allclose(result.alpha, alpha, atol=1e-12)
    np.testing.assert_array_equal(kl_project(p.R, v, p.box, p.floor, start=alpha).alpha, alpha)
    outside = kl_project(p.R, v, 0.25, p.floor, start=alpha)  # the box now cuts off those beyond it
    np.testing.assert_array_equal(outside.status == ProjectionStatus.IDENTITY, alpha.max(axis=1) <= 0.25)
    assert np.abs(outside.alpha).max() <= 0.25 + 1e-12


def test_dependent_rows_and_a_wrong_start_leave_the_projection_alone():
    p = typical_problems(np.random.default_rng(4), 4, 20, 10, "far")
    plain = kl_project(p.R, p.v, p.box, p.floor)
    started = kl_project(p.R, p.v, p.box, p.floor, start=np.full((10, 4), 7.0))
    doubled = kl_project(np.vstack([p.R, p.R]), p.v, p.box, p.floor)
    np.testing.assert_allclose(started.alpha, plain.alpha, atol=1e-8)
    np.testing.assert_allclose(doubled.alpha[:, :4] + doubled.alpha[:, 4:], plain.alpha, atol=1e-7)


@pytest.mark.parametrize("box", [0.25, 0.25 * (1 + 1e-9), 1e9])
def test_boxes_that_leave_a_point_or_everything(box):
    p = typical_problems(np.random.default_rng(4), 4, 20, 10, "far")
    result = kl_project(p.R, p.v, box, p.floor)
    assert result.certified.all()
    if box < 1:
        np.testing.assert_allclose(result.alpha, 0.25, atol=1e-8)
    else:
        np.testing.assert_allclose(result.objective, kl_project(p.R, p.v, 50.0, p.floor).objective, rtol=1e-9)


def test_extreme_scales():
    rng = np.random.default_rng(8)
    R = rng.dirichlet(np.ones(8), size=4)
    v = rng.dirichlet(np.ones(8), size=5)
    plain = kl_project(R, v, 3.0, 1e-12)
    for scale in (1e-100, 1e6):
        scaled = kl_project(scale * R, scale * v, 3.0, scale * 1e-12)
        np.testing.assert_allclose(scaled.alpha, plain.alpha, atol=1e-7)
        assert scaled.certified.all()
    for wide in (1e300 * v, 10.0 ** rng.uniform(-300, 300, size=(5, 8))):
        assert kl_project(R, wide, 3.0, 1e-300).certified.all()
        assert l1_project(R, wide, 3.0, 1e-12).certified.all()


def test_single_row_constant_columns_and_thin_sets():
    rng = np.random.default_rng(8)
    v = rng.dirichlet(np.ones(3), size=4)
    one = kl_project(np.array([[0.2, 0.3, 0.5]]), v, 1.0, 1e-12)
    np.testing.assert_array_equal(one.alpha, 1.0)
    assert one.certified.all()
    clipped = kl_project(np.array([[0.2, 0.8, 1e-12], [0.7, 0.3, 1e-12]]), v, 3.0, 1e-12)
    assert clipped.certified.all()  # third column equals the floor on all of K
    thin = np.array([[0.2, 0.8], [0.9, 0.1], [0.3, 0.7]])  # y₁ + y₂ = 1 and y ≥ ½ leave one y
    np.testing.assert_allclose(kl_project(thin, v[:, :2], 3.0, 0.5).alpha @ thin, 0.5, atol=1e-9)
    assert kl_project(thin, np.zeros((0, 2)), 3.0, 1e-3).alpha.shape == (0, 3)


# --- independence of the batch, determinism, fallbacks ---------------------------------------------------


@pytest.mark.parametrize("project", [kl_project, l1_project])
def test_results_do_not_depend_on_the_batch(project):
    p = typical_problems(np.random.default_rng(6), 5, 24, 40, "far")
    whole = project(p.R, p.v, p.box, p.floor).alpha
    np.testing.assert_array_equal(project(p.R, p.v, p.box, p.floor).alpha, whole)
    backwards = project(p.R, p.v[::-1], p.box, p.floor).alpha[::-1]
    single = np.vstack([project(p.R, row[None], p.box, p.floor).alpha for row in p.v[:5]])
    np.testing.assert_allclose(backwards, whole, atol=1e-8)
    np.testing.assert_allclose(single, whole[:5], atol=1e-8)


def test_blocks_of_any_size_agree(monkeypatch):
    p = typical_problems(np.random.default_rng(6), 5, 24, 100, "extrapolated")
    whole = kl_project(p.R, p.v, p.box, p.floor)
    monkeypatch.setattr(kl_projection, "_BLOCK_ENTRIES", 1)
    blocks = kl_project(p.R, p.v, p.box, p.floor)
    np.testing.assert_allclose(blocks.alpha @ p.R, whole.alpha @ p.R, atol=1e-9)


def test_fallbacks_are_counted_and_failures_are_said(monkeypatch):
    p = typical_problems(np.random.default_rng(6), 5, 24, 20, "far")
    whole = kl_project(p.R, p.v, p.box, p.floor)
    assert whole.fallbacks == 0
    crippled = tuple(dataclasses.replace(path, iterations=1) for path in PATHS)
    monkeypatch.setattr(kl_projection, "PATHS", (crippled[0], *PATHS[1:]))
    rescued = kl_project(p.R, p.v, p.box, p.floor)
    assert rescued.fallbacks == 20
    np.testing.assert_allclose(rescued.alpha, whole.alpha, atol=1e-7)
    monkeypatch.setattr(kl_projection, "PATHS", crippled)
    with pytest.warns(UserWarning, match="20 of 20 KL projections are not certified"):
        failed = kl_project(p.R, p.v, p.box, p.floor)
    assert (failed.status == ProjectionStatus.UNCERTIFIED).all()
    assert_in_set(p, failed.alpha)
    assert (failed.objective - whole.objective <= failed.gap + 1e-12).all()  # still a valid bound


def test_a_breakdown_never_returns_nan(monkeypatch):
    def broken(self, current, measure):
        current.beta[:] = np.nan
        current.tilt[:] = np.nan

    monkeypatch.setattr(kl_interior_point.InteriorPoint, "_advance", broken)
    p = typical_problems(np.random.default_rng(6), 5, 24, 3, "far")
    with pytest.warns(UserWarning, match="not certified"):
        failed = kl_project(p.R, p.v, p.box, p.floor)
    assert_in_set(p, failed.alpha)
    assert np.isfinite(failed.objective).all()


# --- the inequalities the projections are for --------------------------------------------------------


def inequality_instances(seed, targets):
    """Law rows, targets w with masses off one, their projections, and many points z of K."""
    rng = np.random.default_rng(seed)
    s, m = int(rng.integers(2, 7)), int(rng.integers(3, 25))
    p = typical_problems(rng, s, m, 25, targets)
    w = np.maximum(p.v, 1e-3 / m) * 10 ** rng.uniform(-1, 1, (25, 1))
    result = kl_project(p.R, w, p.box, p.floor)
    corners = np.vstack([np.eye(s), result.alpha])
    z = np.maximum(feasible_points(p, corners, rng, 40) @ p.R, p.floor)
    return p, w, result, z


def relative_entropy(z, w):
    """Σ z log(z/w) for all pairs, (z rows, w rows): not generalised."""
    return (z * np.log(z)).sum(axis=1)[:, None] - z @ np.log(w).T


@pytest.mark.parametrize("targets", TARGETS)
def test_pythagorean_inequality(targets):
    """KL(z‖z*) ≤ KL(z‖w) + log Σw for z in K: 0 violations beyond 1e-8; other points of K violate it."""
    pairs = violations = wrong = 0
    for seed in range(6):
        p, w, result, z = inequality_instances([seed, TARGETS.index(targets)], targets)
        projected = np.maximum(result.alpha @ p.R, p.floor)
        right = relative_entropy(z, w) + np.log(w.sum(axis=1))
        violations += int((relative_entropy(z, projected) > right + 1e-8).sum())
        # the three-point form, with generalised KL: KL(z‖z*) + KL(z*‖w) ≤ KL(z‖w)
        generalised = kl(z[:, None], w[None]) - kl(projected, w)
        violations += int((kl(z[:, None], projected[None]) > generalised + 1e-8).sum())
        other = np.roll(projected, 1, axis=0)
        wrong += int((relative_entropy(z, other) > right + 1e-8).sum())
        pairs += right.size
    assert pairs >= 5000  # × 3 kinds of targets
    assert violations == 0
    assert wrong > 0


def test_approximate_optimum_costs_little():
    """A feasible z' with objective ≤ optimum + ζ has KL(z‖z') ≤ KL(z‖w) + log Σw + √(2ζ)/min z'."""
    worst = -np.inf
    for seed in range(6):
        p, w, result, z = inequality_instances(seed, "far")
        best = np.maximum(result.alpha @ p.R, p.floor)
        for mixture in (1e-1, 1e-3):
            near = (1 - mixture) * best + mixture * np.maximum(p.R.mean(axis=0), p.floor)
            excess = np.maximum(kl(near, w) - result.objective, 0) + result.gap
            left = relative_entropy(z, near)
            right = relative_entropy(z, w) + np.log(w.sum(axis=1))
            assert (left <= right + np.sqrt(2 * excess) / near.min(axis=1) + 1e-8).all()
            worst = max(worst, float((left - relative_entropy(z, best)).max()))
    assert worst > 1e-3  # the allowance is used: approximation does cost something


def test_l1_projection_can_increase_the_distance():
    """x = (1, 1), K = conv{(0, 0), (1, 2)}, y = (1, 2): 1.5 > 1; the KL projection keeps its promise."""
    R, x, y = np.array([[0.0, 0.0], [1.0, 2.0]]), np.array([[1.0, 1.0]]), np.array([1.0, 2.0])
    result = l1_project(R, x, box=1.0, floor=1e-9)
    np.testing.assert_allclose(result.alpha @ R, [[0.5, 1.0]], atol=1e-9)
    assert abs(np.abs(result.alpha @ R - y).sum() - 1.5) < 1e-9
    assert np.abs(x - y).sum() == 1.0
    assert kl(y, (kl_project(R, x, box=1.0, floor=1e-9).alpha @ R)[0]) <= kl(y, x[0]) + 1e-12


@given(SEEDS)
def test_l1_projection_at_most_doubles_the_distance(seed):
    rng = np.random.default_rng(seed)
    s = int(rng.integers(2, 5))
    p = typical_problems(rng, s, int(rng.integers(2, 9)), 5, TARGETS[seed % 3])
    v = np.maximum(p.v, p.floor)
    result = l1_project(p.R, v, p.box, p.floor)
    z = feasible_points(p, np.vstack([np.eye(s), result.alpha]), rng, 20) @ p.R
    distance = np.abs(z[:, None] - v).sum(axis=2)
    assert (np.abs(z[:, None] - result.alpha @ p.R).sum(axis=2) <= 2 * distance + 1e-8).all()


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


def test_near_answers_of_linear_programs_are_pulled_inside():
    polytope = make_polytope([[0.25, 0.75], [0.5, 0.5], [0.75, 0.25]], 1.0, 0.25)
    center = polytope.center
    rows = np.array([
        [0.5, 0.25, 0.26],  # the sum is off: each number gives a third
        [1 + 1e-7, -1e-7, 0.0],  # beyond the box, and below the floor
        [-0.1, 0.1, 1.0],  # below the floor in the second column
        [0.2, 0.3, 0.5],  # inside: left alone
    ])  # fmt: skip
    found = _inside(polytope, rows)
    np.testing.assert_allclose(found[0], rows[0] - 0.01 / 3, atol=1e-15)
    np.testing.assert_array_equal(found[3], rows[3])
    assert (polytope.infeasibility(found) <= 1e-15).all()
    for before, after in zip(rows[1:3], found[1:3], strict=True):
        way = (after - before) / (center - before)
        assert np.ptp(way[np.abs(center - before) > 1e-9]) < 1e-9  # straight to the center
    assert found[1].max() == pytest.approx(1.0, abs=1e-7)
    assert (found[2] @ polytope.rows).min() == pytest.approx(0.25, abs=1e-12)


def test_answers_that_no_pull_can_mend_stay():
    polytope = make_polytope([[0.25, 0.75], [0.5, 0.5]], 0.5, 0.25)  # K is its center
    np.testing.assert_array_equal(_inside(polytope, np.array([[0.5, 0.5]])), [[0.5, 0.5]])


def test_l1_fallbacks_are_counted_and_failures_said(monkeypatch):
    p = typical_problems(np.random.default_rng(0), 3, 8, 5, "far")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert l1_project(p.R, p.v, p.box, p.floor).fallbacks == 0
    monkeypatch.setattr(l1_projection, "CERTIFIED_L1_GAP", -1.0)
    with pytest.warns(UserWarning, match="not certified") as caught:
        failed = l1_project(p.R, p.v, p.box, p.floor)
    message = "5 of 5 ℓ1 projections are not certified: see .status and .gap"
    assert [str(w.message) for w in caught] == [message]
    assert failed.fallbacks == 5
    assert np.isfinite(failed.objective).all()


def test_kl_failures_are_said_once(monkeypatch):
    p = typical_problems(np.random.default_rng(0), 3, 8, 5, "far")
    monkeypatch.setattr("lrlm_sim.kl_projection.CERTIFIED_KL_GAP", -1.0)
    with pytest.warns(UserWarning, match="not certified") as caught:
        failed = kl_project(p.R, p.v, p.box, p.floor)
    message = "5 of 5 KL projections are not certified: see .status and .gap"
    assert [str(w.message) for w in caught] == [message]
    assert failed.fallbacks == 5


def test_least_squares_guesses_weigh_columns_by_their_scales():
    _rng, polytope, v, _ = random_pair(1)
    guesses = _least_squares(polytope, graded_basis(polytope.rows), v)
    np.testing.assert_allclose(guesses.sum(axis=1), 1.0, atol=1e-12)
    weight = 1 / np.sqrt(polytope.column_scale)
    contrasts = np.linalg.svd(np.ones((1, 4)))[2][1:]
    system = ((contrasts @ polytope.rows) * weight).T
    for guess, target in zip(guesses, v, strict=True):
        right = (target - polytope.center @ polytope.rows) * weight
        best = polytope.center + np.linalg.lstsq(system, right, rcond=None)[0] @ contrasts
        np.testing.assert_allclose(guess, best, atol=1e-9)


def test_the_center_is_a_solution_with_its_gradient_as_tilt():
    _, polytope, v, _ = random_pair(2)
    found = _center_solution(polytope, v.T)
    np.testing.assert_array_equal(found.alpha, np.tile(polytope.center[:, None], len(v)))
    y = np.maximum(polytope.center @ polytope.rows, polytope.floor)
    np.testing.assert_allclose(found.tilt, np.log(y)[:, None] - np.log(v.T), rtol=1e-12)
    assert not found.multipliers.any()
    assert found.iterations.tolist() == [0] * len(v)


def test_l1_projection_into_a_box_hardly_wider_than_a_point():
    """Σα = 1 leaves each α a part 10⁻⁶ of its size: HiGHS sees that at a large zoom only."""
    p = random_problems("tight_box", np.random.default_rng([FAMILIES.index("tight_box"), 1]), 100)
    assert p.box * len(p.R) == pytest.approx(1 + 1e-6)
    assert l1_project(p.R, p.v, p.box, p.floor).certified.all()
