"""The bound of the KL-projected sampler: its formulas, its growth, and the inequality that it rests on."""

import math

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrlm_sim.learners.conditional_constants import conditional_constants
from lrlm_sim.learners.projected_constants import (
    ProjectedConstants,
    log_ratio,
    projected_constants,
    projected_error,
    step_divergence,
)
from oracles.errors import ParameterError, TooLargeError

SIZES = [(2, 2, 2), (1, 2, 5), (2, 3, 8), (8, 2, 32), (3, 50, 100)]


def test_the_bound_by_hand():
    sizes = ProjectedConstants(0.5, 1e-6, 2e-6, 1e-3, 1e-5, 0.0, 0, 0, 0, 10**6, 0)
    logarithm = math.log(18) + 3 * math.log(2 * (2 * 10**6 + 1))
    assert log_ratio(sizes, 2, 3) == pytest.approx(logarithm)
    moved = 2e-6 + 4e-6 + 6 * (2e-6 + 1e-6)
    kappa = 4 * 13 * 12 * moved + 0.5 + 4e-6 + (6e-6 + 1) * logarithm
    assert step_divergence(sizes, 2, 2, 3) == pytest.approx(kappa)
    total = 1.5e-5 + 2e-3 + 6 * 2e-6 + math.sqrt(kappa)
    assert projected_error(sizes, 2, 2, 3) == pytest.approx(total)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("epsilon", [0.9, 0.1, 0.001])
def test_the_sizes_give_the_error_asked_for(sizes, epsilon):
    rank, vocab_size, horizon = sizes
    found = projected_constants(*sizes, epsilon, 0.05)
    assert epsilon / 2 < projected_error(found, *sizes) <= epsilon
    assert 1 / found.samples <= found.rho <= 0.5
    candidates = found.pool + rank * vocab_size
    failing = rank * math.log(candidates + 1) + (found.pool - rank) * math.log1p(-found.eta)
    assert failing <= math.log(0.05 / (8 * horizon))
    vector = 8 * horizon * candidates * found.zeta / 0.05
    spanned = (1 + 2 * rank) * vector * math.sqrt(candidates * found.sketch_futures) + 2 * found.gamma
    assert spanned == pytest.approx(found.rho)
    law = horizon * math.sqrt((vocab_size - 1) / found.samples) + horizon / found.samples
    histories = sum(vocab_size**t for t in range(horizon))
    law += math.sqrt(2 * horizon * (math.log(histories) - math.log(0.025)) / found.samples)
    assert law <= found.zeta * (1 + 1e-9)


def test_futures_of_the_projections_by_hand():
    """Hoeffding at τ/2 for means of width 2B, and a net of spacing τ/2Λ in 3S coordinates of size C_w."""
    found = projected_constants(2, 3, 4, 0.5, 0.1)
    widest = 36 / found.theta
    logarithm = math.log(2 * widest / found.theta)
    bound, slope = 2 * widest, 36 * logarithm / found.theta
    points = 2 * widest / (found.tau / (2 * slope)) + 1
    union = math.log(2 * 6 * 4 * 8 / 0.1) + 6 * math.log(points)
    exponent = found.projection_futures * 2 * (found.tau / 2) ** 2 / (2 * bound) ** 2
    assert exponent == pytest.approx(union)


def test_growth_is_polynomial_in_the_horizon_and_not_without_projection():
    """Doublings of T multiply all samples by powers of two that stay; without projection they double."""

    def doublings(constants, horizons):
        orders = [math.log2(constants(2, 2, T, 0.5, 0.1).total_samples) for T in horizons]
        return np.diff(orders)

    assert (doublings(projected_constants, (16, 32, 64, 128, 256)) < 55).all()
    unprojected = doublings(conditional_constants, (16, 32, 64, 128))
    assert (unprojected[1:] > 1.4 * unprojected[:-1]).all()
    for rank, horizon in ((2, 128), (8, 64)):
        sizes = rank, 2, horizon, 0.5, 0.1
        assert projected_constants(*sizes).total_samples < conditional_constants(*sizes).total_samples


def projected(rows, mean, mixed, theta, clipped):
    """argmin over λ of Σ D [φ(r_λ) − r_λ log(w̄/D)] with Σλ = 1, |λ| ≤ 3, Σ(θD − y)⁺ ≤ clipped; y = λ·rows."""
    weights, excess = cp.Variable(len(rows)), cp.Variable(rows.shape[1], nonneg=True)
    ratio = (rows / mean).T @ weights
    above = ratio + excess  # φ(r) = min over s ≥ 0, r + s ≥ θ of (r + s) log(r + s) − (r + s) − s log θ
    costs = -cp.entr(above) - above - math.log(theta) * excess - cp.multiply(np.log(mixed / mean), ratio)
    constraints = [cp.sum(weights) == 1, cp.abs(weights) <= 3, above >= theta]
    constraints += [cp.sum(cp.multiply(mean, cp.pos(theta - ratio))) <= clipped]
    cp.Problem(cp.Minimize(mean @ costs), constraints).solve(solver=cp.CLARABEL)
    return weights.value @ rows


def problem(seed, futures, concentration, theta, share):
    """Rows, their mean, a target w of sum one, θ, and a point z of the set.

    w is `share` of a combination of the rows, negative in places, and for the rest any law; the
    inequality holds for both.
    """
    rng = np.random.default_rng(seed)
    rows = rng.dirichlet(np.full(futures, concentration), 3) + 1e-6
    rows /= rows.sum(axis=1, keepdims=True)
    weights = 3 * rng.normal(size=3)
    weights += (1 - weights.sum()) / 3
    target = share * (weights @ rows) + (1 - share) * rng.dirichlet(np.full(futures, concentration))
    return rows, rows.mean(axis=0), target, theta, rng.dirichlet(np.ones(3)) @ rows


def excess_loss(rows, mean, target, theta, point, project):
    """(Σ z log(w̄/q), Σ(θD − w)⁺) for z in the set, q = max(ŷ, θD) normalised."""
    mixed = np.maximum(target, theta * mean)
    floored = np.maximum(project(rows, mean, mixed, theta, 0.01), theta * mean)
    inside = (1 - theta) * point + theta * mean
    law = floored / floored.sum()
    return float(inside @ np.log(mixed / law)), float(np.maximum(theta * mean - target, 0).sum())


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(3, 8),
    st.sampled_from([0.1, 1.0]),
    st.sampled_from([0.3, 0.01]),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_projecting_costs_no_more_than_the_floor_adds(seed, futures, concentration, theta, share):
    """Section 5 of the derivation, with exact means: Σ z log(w̄/q) ≤ Σ(θD − w)⁺ for every z of the set."""
    loss, added = excess_loss(*problem(seed, futures, concentration, theta, share), projected)
    assert loss <= added + 1e-4


def test_the_nearest_point_in_least_squares_does_cost_more():
    """The broken variant: another projection on the same set does not have the inequality."""

    def nearest(rows, mean, mixed, theta, clipped):
        weights = cp.Variable(len(rows))
        ratio = (rows / mean).T @ weights
        constraints = [cp.sum(weights) == 1, cp.abs(weights) <= 3]
        constraints += [cp.sum(cp.multiply(mean, cp.pos(theta - ratio))) <= clipped]
        distance = cp.sum_squares(rows.T @ weights - mixed)
        cp.Problem(cp.Minimize(distance), constraints).solve(solver=cp.CLARABEL)
        return weights.value @ rows

    gaps = []
    for seed in range(20):
        loss, added = excess_loss(*problem(seed, 5, 1.0, 0.01, 0.0), nearest)
        gaps.append(loss - added)
    assert max(gaps) > 0.05


def test_wrong_arguments():
    with pytest.raises(ParameterError, match="epsilon and delta"):
        projected_constants(2, 2, 3, 0.0, 0.1)
    with pytest.raises(ParameterError, match="horizon"):
        projected_constants(2, 2, 1, 0.5, 0.1)
    for epsilon in (1e-40, 1e-80, 1e-170):
        with pytest.raises(TooLargeError, match="beyond the range of floats"):
            projected_constants(2, 2, 3, epsilon, 0.1)
    with pytest.raises(TooLargeError, match="beyond the range of floats"):
        projected_constants(10**18, 2, 100, 1e-6, 0.1)
