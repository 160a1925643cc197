"""Details of projections that whole-result tests pass by: parts by their definitions, messages in full."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.optimize import linprog

from lrlm_sim import l1_projection
from lrlm_sim.kl_interior_point import PATHS, InteriorPoint, Solution, _step, _take
from lrlm_sim.kl_passes import Look, Passes, Prediction
from lrlm_sim.kl_projection import _center_solution, _least_squares, certify_kl, kl_project
from lrlm_sim.l1_projection import _inside, certify_l1, l1_project
from lrlm_sim.newton_systems import NormalEquations, OrthogonalFactors, graded_basis
from lrlm_sim.projection_polytope import (
    InfeasibleError,
    Projection,
    ProjectionStatus,
    _deepest_point,
    _reachable_box,
    absorb,
    judge,
    make_polytope,
    unsolved,
)
from oracles.errors import NonFiniteError, ParameterError, ShapeError
from tests.benchmarks.bench_projections import TARGETS, typical_problems


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


ROWS, TARGET = np.array([[0.25, 0.75], [0.5, 0.5]]), np.array([[0.4, 0.6]])
LOW = np.vstack([np.full((2, 12), 1e-6), np.full(12, 2e-6)])
WRONG = {
    "R is flat": ((np.ones(2), TARGET, 1, 0.1), "R must have shape (s, m) = 2 axes, got (2,)"),
    "R is empty": (
        (np.ones((0, 2)), TARGET, 1, 0.1),
        "R must have shape (s, m) = at least one row and one column, got (0, 2)",
    ),
    "R is NaN": (([[np.nan, 1]], TARGET, 1, 0.1), "R (s, m) must be finite, got NaN or infinity"),
    "box": ((ROWS, TARGET, -1, 0.1), "box must be finite and in [0.0, inf], got -1"),
    "box is small": (
        (ROWS, TARGET, 0.25, 0.1),
        "|α_i| ≤ box = 0.25 and Σα = 1 need box ≥ 1/s = 0.5: enlarge the box",
    ),
    "floor": ((ROWS, TARGET, 1, -0.5), "floor must be finite and in [0.0, inf], got -0.5"),
    "floor is zero": (
        (ROWS, TARGET, 1, 0),
        "floor must be positive (at least 1e-300), got 0.0: try 1e-12 / m",
    ),
    "one column is low": (
        ([[0.0, 0.75], [0.0, 0.5]], TARGET, 1, 0.125),
        "no α in the box with Σα = 1 brings Rᵀα to the floor 0.125: "
        "column(s) 0 of R stay below it; drop those "
        "columns, lower the floor, or raise R to it",
    ),
    "many columns are low": (
        (LOW, np.ones((1, 12)), 1, 0.125),
        "no α in the box with Σα = 1 brings Rᵀα to the floor 0.125: "
        "column(s) 0, 1, 2, 3, 4, 5, 6, 7, … of R stay "
        "below it; drop those columns, lower the floor, or raise R to it",
    ),
    "the center is low": (
        ([[1.0, -1.0], [-1.0, 1.0]], TARGET, 1, 0.125),
        "no α in the box with Σα = 1 brings Rᵀα to the floor 0.125: "
        "column(s) 0, 1 of R stay below it; drop those "
        "columns, lower the floor, or raise R to it",
    ),
    "v is flat": ((ROWS, [0.5, 0.5], 1, 0.1), "v must have shape (n, m) = 2 axes, got (2,)"),
    "v is wide": (
        (ROWS, np.ones((4, 3)), 1, 0.1),
        "v must have shape (n, m) = (n, 2), m the number of columns of R, got (4, 3)",
    ),
    "v is infinite": ((ROWS, [[np.inf, 1]], 1, 0.1), "v (n, m) must be finite, got NaN or infinity"),
}


@pytest.mark.parametrize("project", [kl_project, l1_project])
@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG.keys())
def test_messages_name_the_argument_what_was_expected_and_what_came(project, arguments, message):
    with pytest.raises((ParameterError, ShapeError, NonFiniteError, InfeasibleError)) as error:
        project(*arguments)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ([0.5, 0.5], "start must have shape (n, s) = 2 axes, got (2,)"),
        (np.ones((2, 2)), "start must have shape (n, s) = (1, 2), got (2, 2)"),
        (np.ones((1, 3)), "start must have shape (n, s) = (1, 2), got (1, 3)"),
        ([[np.nan, 1.0]], "start (n, s) must be finite, got NaN or infinity"),
    ],
)
def test_a_wrong_start_is_named(start, message):
    with pytest.raises((ShapeError, NonFiniteError)) as error:
        kl_project(ROWS, TARGET, 1, 0.1, start=start)
    assert str(error.value) == message


# --- the set -------------------------------------------------------------------------------------------


def test_a_polytope_says_its_scales_center_and_size():
    polytope = make_polytope([[0.25, -0.5, 1.0], [0.5, 1.0, 2.0]], 3, 0.01)
    np.testing.assert_array_equal(polytope.column_scale, [0.5, 1.0, 2.0])
    assert (polytope.mass, polytope.box, polytope.floor) == (5.25 / 2, 3.0, 0.01)
    np.testing.assert_array_equal(polytope.center, [0.5, 0.5])
    assert not polytope.is_point
    assert make_polytope(ROWS, 0.5, 0.1).is_point
    assert make_polytope(ROWS, 0.5 + 4e-13, 0.1).is_point
    assert not make_polytope(ROWS, 0.5 + 1e-12, 0.1).is_point
    assert make_polytope(ROWS[:1], 7, 0.1).is_point


def test_infeasibility_is_the_largest_violation():
    polytope = make_polytope([[0.25, 2.0], [0.5, 4.0]], 1, 0.1)
    alpha = np.array([[0.5, 0.5], [1.5, -0.5], [2.0, -1.5], [0.5, 0.75]])
    # floors: 0.1 − reached, over 0.5 and 4; box: beyond 1; sum: off one
    np.testing.assert_allclose(polytope.infeasibility(alpha), [0.0, 0.5, 1.0, 0.25])
    assert polytope.infeasibility(np.array([[1.0, -0.5]])) == pytest.approx(0.5)
    assert polytope.infeasibility(np.array([[-0.9, 0.9]])) == pytest.approx(1.0)
    low = make_polytope([[0.25, 2.0], [-0.5, 4.0]], 1, 0.1)
    assert low.infeasibility(np.array([[0.2, 0.8]])) == pytest.approx((0.1 - (0.05 - 0.4)) / 0.5)


@pytest.mark.parametrize("seed", range(4))
def test_the_deepest_point_has_the_largest_slack_that_a_linear_program_finds(seed):
    rng = np.random.default_rng(seed)
    s, m, box, floor = 4, 9, 1.5, 1e-3
    rows = rng.dirichlet(np.full(m, 0.2), size=s)
    scale = np.abs(rows).max(axis=0)
    alpha = _deepest_point(rows, box, floor, scale)
    found = linprog(
        np.append(np.zeros(s), -1.0),
        A_ub=np.vstack(
            [
                np.hstack([-(rows / scale).T, np.ones((m, 1))]),
                np.hstack([np.eye(s), np.full((s, 1), box / 2)]),
                np.hstack([-np.eye(s), np.full((s, 1), box / 2)]),
            ]
        ),
        b_ub=np.concatenate([-floor / scale, np.full(2 * s, box)]),
        A_eq=np.append(np.ones(s), 0.0)[None],
        b_eq=[1.0],
        bounds=[(None, None)] * s + [(None, 1.0)],
    )
    slack = min(((alpha @ rows - floor) / scale).min(), (2 * (1 - np.abs(alpha) / box)).min(), 1.0)
    assert slack == pytest.approx(-found.fun, abs=1e-7)
    assert alpha.sum() == pytest.approx(1.0, abs=1e-14)


def test_the_center_is_uniform_where_that_is_comfortable_and_deep_elsewhere():
    comfortable = np.array([[0.25, 0.75], [0.5, 0.5]])
    np.testing.assert_array_equal(make_polytope(comfortable, 2, 0.3).center, [0.5, 0.5])
    tight = np.array([[1.0, 1.0], [-1.0, 1.0]])  # the uniform combination reaches 0 in the first column
    polytope = make_polytope(tight, 2, 0.3)
    assert polytope.center[0] > 0.7
    assert (polytope.center @ tight > 0.3).all()


def test_large_boxes_shrink_to_what_can_be_reached_smaller_ones_stay():
    rows = np.array([[1.0, 0.25], [0.25, 1.0]])
    assert make_polytope(rows, 1e3, 0.1).box == 1e3
    # α = (t, 1 − t), 0.25 + 0.75 t ≥ 0.1 and 1 − 0.75 t ≥ 0.1: |α_i| ≤ 1.2
    assert make_polytope(rows, 1e4, 0.1).box == pytest.approx(2.4, rel=1e-6)
    loose = np.vstack([rows, rows])  # α may grow along (1, 0, −1, 0)
    assert make_polytope(loose, 1e4, 0.1).box == 1e4


# --- results -------------------------------------------------------------------------------------------


def columns(n, gap, scale=1.0):
    one = np.ones(n)
    names = ("objective", "stationarity", "complementarity")
    return dict.fromkeys(names, one) | {"gap": gap, "scale": scale * one, "iterations": np.arange(n)}


def test_a_projection_is_certified_up_to_its_tolerance():
    polytope = make_polytope(ROWS, 1, 0.1)
    alpha = np.tile([0.5, 0.5], (5, 1))
    alpha[3] += 1e-9
    gap = np.array([2e-3, 2.001e-3, np.nan, 0.0, -1.0])
    result = judge(polytope, alpha, 1e-3, **columns(5, gap, 2.0))
    expected = [ProjectionStatus.OPTIMAL] + 3 * [ProjectionStatus.UNCERTIFIED] + [ProjectionStatus.OPTIMAL]
    assert result.status.tolist() == expected
    assert result.certified.tolist() == [True, False, False, False, True]
    assert result.gap[2] == np.inf
    assert result.infeasibility[3] == pytest.approx(2e-9, rel=1e-3)
    assert result.fallbacks == 0


def test_unsolved_problems_are_the_center_with_infinite_gaps():
    polytope = make_polytope(ROWS, 1, 0.1)
    nothing = unsolved(polytope, 3)
    np.testing.assert_array_equal(nothing.alpha, np.full((3, 2), 0.5))
    for name in ("objective", "gap", "stationarity", "complementarity", "scale", "infeasibility"):
        np.testing.assert_array_equal(getattr(nothing, name), np.full(3, np.inf))
    assert nothing.iterations.tolist() == [0, 0, 0]
    assert nothing.status.tolist() == [ProjectionStatus.UNCERTIFIED] * 3
    assert nothing.fallbacks == 0


def test_an_attempt_replaces_rows_that_it_improves_only():
    polytope = make_polytope(ROWS, 1, 0.1)
    alpha = np.tile([0.5, 0.5], (4, 1))
    answer = judge(polytope, alpha, 1e-3, **columns(4, np.array([1.0, 2.0, 3.0, 4.0])))
    other = np.tile([0.25, 0.75], (3, 1))
    other[2] = [0.25, 0.76]
    attempt = judge(polytope, other, 1e-3, **columns(3, np.array([2.0, 3.5, 0.5])))
    absorb(answer, np.array([1, 2, 3]), attempt)
    assert answer.gap.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert answer.alpha[1].tolist() == [0.25, 0.75]  # an equal gap is as good
    assert answer.alpha[[0, 2, 3]].tolist() == [[0.5, 0.5]] * 3  # worse, and infeasible
    assert answer.iterations.tolist() == [0, 0, 2, 3]
    some = answer.take(np.array([1]))
    assert isinstance(some, Projection)
    assert (some.gap.tolist(), some.alpha.tolist(), some.fallbacks) == ([2.0], [[0.25, 0.75]], 0)


def random_pair(seed, n=6):
    """A polytope, targets, feasible combinations, and any multipliers."""
    rng = np.random.default_rng(seed)
    p = typical_problems(rng, 4, 9, n, TARGETS[seed % 3])
    polytope = make_polytope(p.R, p.box, 0.5 * p.R.mean(axis=0).min())
    targets = np.maximum(p.v, polytope.floor)
    alpha = 0.5 * polytope.center + 0.5 * rng.dirichlet(np.ones(4), size=n)
    return rng, polytope, targets, alpha


@pytest.mark.parametrize("seed", range(6))
def test_a_kl_certificate_is_weak_duality_with_the_tilt_and_multipliers_given(seed):
    rng, polytope, v, alpha = random_pair(seed)
    w, z = rng.standard_normal(v.shape), rng.standard_normal(v.shape)
    result = certify_kl(polytope, v.T, Solution(alpha.T, w.T, z.T, np.arange(len(v))))
    z = np.maximum(z, 0)
    y = np.maximum(alpha @ polytope.rows, polytope.floor)
    objective = (y * np.log(y / v) - y + v).sum(axis=1)
    costs = (w - z) @ polytope.rows.T
    dual = (v * (1 - np.exp(w))).sum(axis=1) + polytope.floor * z.sum(axis=1) + polytope.smallest(costs)
    np.testing.assert_allclose(result.objective, objective, rtol=1e-9)
    np.testing.assert_allclose(result.gap, objective - dual, rtol=1e-9)
    np.testing.assert_allclose(result.complementarity, (z * (y - polytope.floor)).sum(axis=1), rtol=1e-9)
    off = ((w - z) * (y - alpha @ polytope.rows)).sum(axis=1)
    np.testing.assert_allclose(
        result.stationarity, (costs * alpha).sum(axis=1) - polytope.smallest(costs) + off, rtol=1e-9
    )
    scale = np.maximum((y * (1 + np.abs(np.log(y / v)))).sum(axis=1), polytope.mass)
    np.testing.assert_allclose(result.scale, scale, rtol=1e-12)
    assert result.iterations.tolist() == list(range(len(v)))


@pytest.mark.parametrize("seed", range(6))
def test_an_l1_certificate_is_weak_duality_with_what_is_left_of_any_multipliers(seed):
    rng, polytope, v, alpha = random_pair(seed)
    w, z = rng.standard_normal((2, *v.shape))
    result = certify_l1(polytope, v, alpha, w, z, np.arange(len(v)))
    slope = w - z
    slope = slope / np.maximum(1, slope.max(axis=1))[:, None]
    below, floors = np.maximum(slope, -1), np.maximum(slope, -1) - slope
    y = np.maximum(alpha @ polytope.rows, polytope.floor)
    objective = np.abs(y - v).sum(axis=1)
    costs = slope @ polytope.rows.T
    dual = -(below * v).sum(axis=1) + polytope.floor * floors.sum(axis=1) + polytope.smallest(costs)
    np.testing.assert_allclose(result.objective, objective, rtol=1e-12)
    np.testing.assert_allclose(result.gap, objective - dual, rtol=1e-9)
    np.testing.assert_allclose(result.complementarity, (floors * (y - polytope.floor)).sum(axis=1), rtol=1e-9)
    off = (slope * (y - alpha @ polytope.rows)).sum(axis=1)
    np.testing.assert_allclose(
        result.stationarity, (costs * alpha).sum(axis=1) - polytope.smallest(costs) + off, rtol=1e-9
    )
    np.testing.assert_allclose(result.scale, np.maximum(objective, polytope.mass), rtol=1e-12)
    assert result.iterations.tolist() == list(range(len(v)))


# --- ways to an answer ---------------------------------------------------------------------------------


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


def test_the_center_is_a_solution_with_its_gradient_as_tilt():
    _, polytope, v, _ = random_pair(2)
    found = _center_solution(polytope, v.T)
    np.testing.assert_array_equal(found.alpha, np.tile(polytope.center[:, None], len(v)))
    y = np.maximum(polytope.center @ polytope.rows, polytope.floor)
    np.testing.assert_allclose(found.tilt, np.log(y)[:, None] - np.log(v.T), rtol=1e-12)
    assert not found.multipliers.any()
    assert found.iterations.tolist() == [0] * len(v)


# --- the interior point's own steps --------------------------------------------------------------------


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
