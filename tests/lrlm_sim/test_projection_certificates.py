"""Certificates of projections: bounds for any multipliers, and their formulas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrlm_sim.kl_interior_point import Solution
from lrlm_sim.kl_projection import certify_kl
from lrlm_sim.l1_projection import certify_l1
from lrlm_sim.projection_polytope import as_targets, make_polytope
from lrlm_sim.projections import kl_project, l1_project
from tests.benchmarks.bench_projections import (
    FAMILIES,
    random_problems,
    typical_problems,
)
from tests.lrlm_sim.projection_problems import random_pair

SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS)
def test_kl_certificate_is_a_lower_bound_for_any_multipliers(seed):
    rng = np.random.default_rng(seed)
    p = random_problems(FAMILIES[seed % len(FAMILIES)], rng, 3)
    polytope = make_polytope(p.R, p.box, p.floor)
    targets = as_targets(p.v, polytope).T
    best = kl_project(p.R, p.v, p.box, p.floor)
    anywhere = np.repeat(polytope.center[:, None], 3, axis=1)
    tilt = np.log(np.maximum(p.R.T @ best.alpha.T, p.floor) / targets) + rng.normal(size=targets.shape)
    tilt *= rng.integers(2)  # zero tilt: the bound is the trivial one, optimum ≥ 0
    z = rng.exponential(size=targets.shape) * rng.integers(2)
    bound = certify_kl(polytope, targets, Solution(anywhere, tilt, z, np.zeros(3, dtype=int)))
    assert (bound.objective - bound.gap <= best.objective + 1e-9 * bound.scale).all()


@given(SEEDS)
def test_l1_certificate_is_a_lower_bound_for_any_multipliers(seed):
    rng = np.random.default_rng(seed)
    p = typical_problems(rng, 4, 12, 3, "extrapolated")
    polytope = make_polytope(p.R, p.box, p.floor)
    targets = as_targets(p.v, polytope)
    best = l1_project(p.R, p.v, p.box, p.floor)
    anywhere = np.repeat(polytope.center[None], 3, axis=0)
    w, z = rng.normal(size=(2, *targets.shape))
    bound = certify_l1(polytope, targets, anywhere, w, z, np.zeros(3, dtype=int))
    assert (bound.objective - bound.gap <= best.objective + 1e-9).all()


def test_a_gap_bounds_the_distance_to_the_optimum_and_worse_points_are_not_certified():
    rng = np.random.default_rng(5)
    p = typical_problems(rng, 6, 20, 50, "far")
    polytope = make_polytope(p.R, p.box, p.floor)
    targets = as_targets(p.v, polytope).T
    best = kl_project(p.R, p.v, p.box, p.floor)
    for mixture in (1e-2, 1e-4):
        alpha = (1 - mixture) * best.alpha.T + mixture * polytope.center[:, None]
        tilt = np.log(np.maximum(p.R.T @ alpha, p.floor) / targets)
        worse = certify_kl(polytope, targets, Solution(alpha, tilt, 0 * tilt, np.zeros(50, dtype=int)))
        assert (worse.objective - best.objective <= worse.gap).all()
        assert (worse.objective > best.objective).all()
        assert not worse.certified.any()


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
