"""The feasible set of the projections, their results and their errors."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from lrlm_sim.projection_polytope import (
    Projection,
    _deepest_point,
    _reachable_box,
    absorb,
    judge,
    make_polytope,
    unsolved,
)
from lrlm_sim.projections import InfeasibleError, ProjectionStatus, kl_project, l1_project
from oracles.errors import NonFiniteError, ParameterError, ShapeError

SEEDS = st.integers(0, 2**32 - 1)


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


def columns(n, gap, scale=1.0):
    one = np.ones(n)
    names = ("objective", "stationarity", "complementarity")
    return dict.fromkeys(names, one) | {"gap": gap, "scale": scale * one, "iterations": np.arange(n)}


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


@pytest.mark.parametrize("box", [0.3, 0.5, 1.5])
@pytest.mark.parametrize("seed", range(4))
def test_the_deepest_point_has_the_largest_slack_that_a_linear_program_finds(seed, box):
    rng = np.random.default_rng(seed)
    s, m, floor = 4, 9, 1e-3
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


@given(SEEDS)
def test_smallest_value_over_the_box(seed):
    rng = np.random.default_rng(seed)
    s = int(rng.integers(1, 7))
    box = float(rng.choice([1 / s, 1.1 / s, 0.7 + 1 / s, 3.0, 100.0]))
    polytope = make_polytope(np.ones((s, 2)), box, 0.5)
    costs = rng.normal(size=(3, s))
    for cost, value in zip(costs, polytope.smallest(costs), strict=True):
        exact = scipy.optimize.linprog(cost, A_eq=np.ones((1, s)), b_eq=[1], bounds=[(-box, box)] * s)
        assert abs(value - exact.fun) < 1e-8 * box


@pytest.mark.parametrize("project", [kl_project, l1_project])
def test_typed_errors(project):
    R, v = np.full((3, 4), 0.25) + 0.01 * np.eye(3, 4), np.full((2, 4), 0.25)
    with pytest.raises(NonFiniteError, match="v"):
        project(R, v * np.nan, 2.0, 1e-9)
    with pytest.raises(NonFiniteError, match="R"):
        project(R * np.inf, v, 2.0, 1e-9)
    with pytest.raises(ShapeError, match=r"\(n, 4\)"):
        project(R, v[:, :3], 2.0, 1e-9)
    with pytest.raises(ShapeError, match=r"\(n, m\)"):
        project(R, v[0], 2.0, 1e-9)
    with pytest.raises(ShapeError, match="at least one row"):
        project(np.zeros((0, 4)), v, 2.0, 1e-9)
    with pytest.raises(ParameterError, match="floor must be positive"):
        project(R, v, 2.0, 0.0)
    with pytest.raises(ParameterError, match="box"):
        project(R, v, np.nan, 1e-9)


@pytest.mark.parametrize("project", [kl_project, l1_project])
def test_empty_sets_are_errors_that_name_the_cause(project):
    R, v = np.random.default_rng(0).dirichlet(np.ones(4), size=3), np.full((2, 4), 0.25)
    with pytest.raises(InfeasibleError, match=r"box ≥ 1/s"):
        project(R, v, 0.3, 1e-9)
    with pytest.raises(InfeasibleError, match=r"column\(s\) 2 of R"):
        project(R * [1, 1, 0, 1], v, 2.0, 1e-9)
    with pytest.raises(InfeasibleError, match=r"column\(s\)"):
        project(R, v, 2.0, 0.26)  # rows sum to one: four coordinates cannot all reach .26
    project(R, v, 2.0, 0.12)
    with pytest.raises(ShapeError, match="start"):
        kl_project(R, v, 2.0, 1e-9, start=np.ones((2, 4)))
