"""Spanners of rows near a subspace, and of laws known by samples."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrlm_sim.spanners import (
    barycentric_spanner,
    distributional_spanner,
    represent,
    robust_spanner,
    sample_compression_size,
)
from oracles.errors import ParameterError, ShapeError

SLACK = 1 + 1e-8


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(2, 120),
    m=st.integers(2, 40),
    s=st.integers(1, 5),
    gamma=st.sampled_from([0.0, 1e-9, 1e-3, 0.1]),
)
def test_robust_spanner_within_its_bound(seed, n, m, s, gamma):
    rng = np.random.default_rng(seed)
    s = min(s, n, m)
    noise = rng.standard_normal((n, m)) if seed % 2 else np.ones((n, 1)) * rng.standard_normal(m)
    noise *= gamma / np.linalg.norm(noise, axis=1, keepdims=True)
    X = rng.standard_normal((n, s)) @ rng.standard_normal((s, m)) + noise
    robust = robust_spanner(X, gamma)
    k = robust.directions.shape[1]
    assert robust.spanner.rank == k <= s
    assert robust.spanner.max_coefficient <= 2.0
    assert robust.error <= robust.error_bound + 1e-9 * np.abs(X).max()
    if k:
        assert robust.error_bound <= 6 * gamma * s * math.sqrt(n * m) * (1 + 1e-12)
    assert robust.error == pytest.approx(
        np.abs(X - robust.spanner.coefficients @ X[robust.spanner.indices]).sum(axis=1).max()
    )


def test_robust_spanner_ignores_noise_that_a_plain_one_follows():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 3)) @ rng.standard_normal((3, 30))
    noise = rng.standard_normal(X.shape)
    X += 1e-3 * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    assert barycentric_spanner(X).rank == 30
    for gamma in (1e-3, 0.3):  # 2γ√n is 8.5 at most, the signal is above 60
        assert robust_spanner(X, gamma).spanner.rank == 3


def test_sample_compression_size_is_sufficient():
    """Σ_(k≤m) binom(N, k)(1−η)^(N−k) ≤ δ, summed exactly in logarithms."""
    assert sample_compression_size(4, 0.25, 0.1) == 8 * (4 * 5 + 6)
    for m, eta, delta in itertools.product((1, 2, 5, 20, 64), (0.5, 0.1, 0.01), (0.5, 1e-2, 1e-9)):
        size = sample_compression_size(m, eta, delta)
        terms = [
            math.lgamma(size + 1) - math.lgamma(k + 1) - math.lgamma(size - k + 1)
            + (size - k) * math.log1p(-eta)
            for k in range(m + 1)
        ]  # fmt: skip
        assert np.logaddexp.reduce(terms) <= math.log(delta)
    for eta, delta in ((0.0, 0.1), (1.0, 0.1), (0.1, 0.0), (0.1, 1.0)):
        with pytest.raises(ParameterError):
            sample_compression_size(3, eta, delta)


def test_distributional_spanner_covers_fresh_rows():
    """False alarm: 1e-9 (compression) + 1e-9 (Hoeffding on 4000 fresh rows) for each law."""
    eta, fresh = 0.05, 4000
    for law in (np.random.Generator.standard_normal, np.random.Generator.standard_cauchy):
        found = distributional_spanner(
            lambda n, rng, law=law: law(rng, (n, 3)), 3, eta=eta, delta=1e-9, rng=0
        )
        assert found.sample_size == sample_compression_size(3, eta, 1e-9)
        coefficients, _ = represent(found.points, law(np.random.default_rng(1), (fresh, 3)))
        missed = (np.abs(coefficients).max(axis=1) > 2.0).mean()
        assert missed <= eta + math.sqrt(math.log(1e9) / (2 * fresh))
    with pytest.raises(ShapeError):
        distributional_spanner(lambda n, rng: np.ones((n, 2)), 3, 0.1, 0.1)


@pytest.mark.parametrize(("n", "m"), [(40, 6), (5, 12)])
def test_robust_spanners_keep_singular_values_above_twice_gamma_root_n(n, m):
    rng = np.random.default_rng(0)
    gamma = 0.01
    u, v = np.linalg.qr(rng.standard_normal((n, 3)))[0], np.linalg.qr(rng.standard_normal((m, 3)))[0]
    X = u * np.array([3.0, 2.01 * gamma * math.sqrt(n), 1.99 * gamma * math.sqrt(n)]) @ v.T
    found = robust_spanner(X, gamma, C=1.5)
    assert found.directions.shape == (m, 2)
    np.testing.assert_allclose(np.abs(found.directions.T @ v[:, :2]), np.eye(2), atol=1e-10)
    assert found.error_bound == pytest.approx(2 * gamma * (1 + 1.5 * 2) * math.sqrt(n * m), rel=1e-12)
    left = X - found.spanner.coefficients @ X[found.spanner.indices]
    assert found.error == pytest.approx(np.abs(left).sum(axis=1).max(), rel=1e-12)
    assert found.error <= found.error_bound
    assert found.spanner.max_coefficient <= 1.5
    kept = X @ found.directions
    np.testing.assert_allclose(found.spanner.coefficients @ kept[found.spanner.indices], kept, atol=1e-12)


def test_robust_spanners_pass_on_start_and_randomness():
    X = np.random.default_rng(1).standard_normal((300, 5))
    chosen = [robust_spanner(X, 1e-3, 4.0, "random", seed).spanner.indices for seed in (3, 3, 4)]
    direct = barycentric_spanner(X, 4.0, "random", 3).indices
    np.testing.assert_array_equal(chosen[0], chosen[1])
    assert set(chosen[0]) == set(direct)
    assert set(chosen[0]) != set(chosen[2])


def test_exact_rows_have_robust_rank_without_gamma():
    """γ = 0: what is kept is what stands above rounding, max(n, m)·ε·σ₁."""
    rng = np.random.default_rng(2)
    X = rng.standard_normal((60, 3)) @ rng.standard_normal((3, 30))
    found = robust_spanner(X, 0.0)
    assert found.directions.shape == (30, 3)
    assert found.error_bound == 0.0
    assert robust_spanner(np.zeros((4, 3)), 0.0).directions.shape == (3, 0)


@pytest.mark.parametrize(
    ("m", "eta", "delta"), [(1, 0.5, 0.5), (3, 0.1, 0.05), (8, 0.01, 1e-6), (2, 0.3, 0.9)]
)
def test_the_compression_size_is_its_formula_and_its_bound_holds(m, eta, delta):
    size = sample_compression_size(m, eta, delta)
    inner = m * math.ceil(math.log2(2 * m / eta)) + math.ceil(math.log2((m + 1) / delta))
    assert size == math.ceil(2 / eta * inner)
    failure = sum(math.comb(size, k) * (1 - eta) ** (size - k) for k in range(m + 1))
    assert failure <= delta


def test_distributional_spanners_use_their_rows_their_factor_and_their_generator():
    drawn = []

    def draw(n, rng):
        drawn.append((n, np.sign(rng.standard_normal((n, 6)))))
        return drawn[-1][1]

    found = distributional_spanner(draw, 6, 0.2, 0.1, C=1.05, rng=5)
    (size, rows), *others = drawn
    assert not others
    assert size == found.sample_size == sample_compression_size(6, 0.2, 0.1)
    np.testing.assert_array_equal(rows, np.sign(np.random.default_rng(5).standard_normal((size, 6))))
    np.testing.assert_array_equal(found.points, rows[found.spanner.indices])
    assert np.abs(rows @ np.linalg.inv(found.points)).max() <= 1.05 + 1e-9
    looser = distributional_spanner(draw, 6, 0.2, 0.1, rng=5)
    assert looser.spanner.max_coefficient > 1.05
