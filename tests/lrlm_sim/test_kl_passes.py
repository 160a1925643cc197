"""The compiled passes of the KL projection against the numpy ones, and both against their formulas."""

from __future__ import annotations

import dataclasses
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrlm_sim import kl_passes
from lrlm_sim.kl_passes import Passes, fastest_passes
from lrlm_sim.projections import kl_project
from tests.benchmarks.bench_projections import FAMILIES, random_problems, typical_problems

try:
    from lrlm_sim.kl_kernels import CompiledPasses
except ImportError:
    CompiledPasses = None
#: The passes that run here, and what tests of the compiled ones need.
BOTH = (Passes,) if CompiledPasses is None else (Passes, CompiledPasses)
compiled = pytest.mark.skipif(CompiledPasses is None, reason="compiled passes need numba (extra `fast`)")


@dataclasses.dataclass(frozen=True)
class Iterate:
    """Arrays of a random iterate of m floors and `count` slacks for `size` problems."""

    floors: np.ndarray
    slack: np.ndarray
    dual: np.ndarray
    tilt: np.ndarray
    log_targets: np.ndarray

    def copies(self) -> list[np.ndarray]:
        return [getattr(self, field.name).copy() for field in dataclasses.fields(self)]


@st.composite
def iterates(draw) -> Iterate:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    m, sides, size = draw(st.integers(1, 9)), draw(st.integers(0, 6)), draw(st.integers(1, 19))
    wide = draw(st.sampled_from([0.1, 3.0, 30.0]))
    return Iterate(
        np.exp(wide * rng.standard_normal((m, 1))) * 1e-6,
        np.exp(wide * rng.standard_normal((m + sides, size))),
        np.exp(wide * rng.standard_normal((m + sides, size))),
        wide * rng.standard_normal((m, size)),
        wide * rng.standard_normal((m, size)),
    )


@given(iterates())
@pytest.mark.parametrize("kind", BOTH)
def test_a_look_is_what_its_formulas_say(kind, iterate):
    look = kind().look(*iterate.copies())
    m = len(iterate.floors)
    y = iterate.floors + iterate.slack[:m]
    log_ratio = np.log(y) - iterate.log_targets
    lag = iterate.tilt - log_ratio
    chord = (np.sqrt(1 + lag**2 / 4) - lag / 2) / y
    weights = iterate.dual / iterate.slack
    weights[:m] += chord
    expected = (
        (look.log_ratio, log_ratio),
        (look.lag, lag),
        (look.weights, weights),
        (look.total, (iterate.slack * iterate.dual).sum(axis=0)),
        (look.entropy, (y * lag**2 / 2).sum(axis=0)),
        (look.magnitude, (y * (1 + np.abs(log_ratio))).sum(axis=0)),
    )
    for found, value in expected:
        np.testing.assert_allclose(found, value, rtol=1e-11, atol=1e-13)
    # √(1 + x²/4) − x/2 cancels for large lags x, in any order of evaluation
    np.testing.assert_allclose(look.chord * y, chord * y, rtol=1e-11, atol=1e-14 * (1 + np.abs(lag)).max())


@compiled
@given(iterates(), st.integers(0, 2**32 - 1))
def test_compiled_and_numpy_passes_take_the_same_step(iterate, seed):
    rng = np.random.default_rng(seed)
    relative, moved = (rng.standard_normal(iterate.slack.shape) * iterate.slack for _ in range(2))
    aim, primal, dual_step = rng.uniform(0.1, 1, (3, iterate.slack.shape[1]))
    results = []
    for kind in BOTH:
        passes, (floors, slack, dual, tilt, log_targets) = kind(), iterate.copies()
        look = passes.look(floors, slack, dual, tilt, log_targets)
        wanted, change = relative.copy(), moved.copy()
        predicted = passes.predict(wanted, slack, dual)
        pull = passes.correct(wanted, aim, slack, dual, look.log_ratio).copy()
        corrected = wanted.copy()
        least = passes.limit(change, slack, wanted)
        shortened = wanted.copy()
        passes.move(look, change, wanted, (primal, dual_step), slack, dual, tilt)
        sums = (predicted.least, predicted.greatest, *least)
        results.append(
            (predicted.first, predicted.second, *sums, pull, corrected, shortened, slack, dual, tilt)
        )
    for numpy_result, compiled in zip(*results, strict=True):
        scale = np.abs(numpy_result).max(initial=1e-300)
        np.testing.assert_allclose(compiled, numpy_result, rtol=1e-9, atol=1e-11 * scale)


@given(iterates())
def test_the_step_solves_its_equations(iterate):
    """(u + du)(z + dz) = aim with the predictor's du·dz, from full steps of both kinds of passes."""
    for kind in BOTH:
        passes, (floors, slack, dual, tilt, log_targets) = kind(), iterate.copies()
        size = slack.shape[1]
        predictor, moved = 0.3 * slack, -0.2 * slack
        aim = np.full(size, 0.7)
        look = passes.look(floors, slack, dual, tilt, log_targets)
        wanted = predictor.copy()
        passes.predict(wanted, slack, dual)
        passes.correct(wanted, aim, slack, dual, look.log_ratio)
        passes.limit(moved, slack, wanted)
        passes.move(look, moved, wanted, (np.ones(size), np.ones(size)), slack, dual, tilt)
        u, z = iterate.slack, iterate.dual
        second_order = 0.3 * u * (-z - z * 0.3)  # the predictor: z·du + u·dz = −z·u
        dz = dual - z
        np.testing.assert_allclose(slack, 0.8 * u, rtol=1e-12)
        np.testing.assert_allclose(
            (u * z + u * dz + z * -0.2 * u + second_order) / (u * z), aim / (u * z), rtol=1e-9, atol=1e-9
        )


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 20))
@pytest.mark.parametrize("kind", BOTH)
def test_cholesky_solves_batches(kind, seed, k, size):
    rng = np.random.default_rng(seed)
    roots = rng.standard_normal((size, k, k + 2))
    matrices = roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(k)
    i, j = np.tril_indices(k)
    x = rng.standard_normal((k, size))
    right = np.einsum("bij,jb->ib", matrices, x)
    passes = kind()
    passes.cholesky_solve(passes.cholesky(np.ascontiguousarray(matrices[:, i, j].T)), right)
    np.testing.assert_allclose(right, x, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", BOTH)
def test_cholesky_drops_directions_that_are_noise(kind):
    passes = kind()
    right = np.array([[2.0], [4.0]])
    passes.cholesky_solve(passes.cholesky(np.array([[4.0], [8.0], [16.0]])), right)  # [[4, 8], [8, 16]]
    np.testing.assert_allclose(right, [[0.5], [0.0]], atol=1e-12)


@pytest.mark.parametrize("kind", BOTH)
def test_a_broken_problem_shows_and_leaves_its_neighbours_alone(kind):
    whole = Iterate(np.ones((2, 1)), *np.ones((2, 3, 4)), *np.ones((2, 2, 4)))
    broken = Iterate(*whole.copies())
    broken.slack[0, 2] = np.nan
    looks = [kind().look(*iterate.copies()) for iterate in (whole, broken)]
    for field in dataclasses.fields(looks[0]):
        good, bad = (getattr(look, field.name) for look in looks)
        np.testing.assert_array_equal(np.delete(bad, 2, axis=-1), np.delete(good, 2, axis=-1))
        assert np.isnan(bad[..., 2]).any()


@pytest.mark.parametrize("kind", BOTH)
def test_an_iteration_allocates_no_blocks(kind):
    """Fresh memory costs more than arithmetic: from the second iteration on, sums alone are new."""
    rng = np.random.default_rng(0)
    m, count, size, k = 60, 70, 500, 7
    floors, slack, dual = np.ones((m, 1)), *rng.uniform(1, 2, (2, count, size))
    tilt, log_targets = rng.standard_normal((2, m, size))
    matrices = np.tile(np.eye(k)[np.tril_indices(k)][:, None], size)
    wanted, moved, steps = rng.uniform(0, 0.1, (2, count, size)), np.zeros((count, size)), np.ones((2, size))
    passes = kind()
    peaks = []
    tracemalloc.start()
    for _ in range(3):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        look = passes.look(floors, slack, dual, tilt, log_targets)
        passes.predict(wanted[0], slack, dual)
        passes.correct(wanted[0], np.ones(size), slack, dual, look.log_ratio)
        passes.limit(moved, slack, wanted[0])
        passes.cholesky_solve(passes.cholesky(matrices), moved[:k])
        passes.move(look, moved, wanted[0], tuple(steps), slack, dual, tilt)
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
    tracemalloc.stop()
    assert peaks[0] > 8 * m * size
    assert max(peaks[1:]) < 8 * m * size / 2


@compiled
@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_and_numpy_projections_agree(family, monkeypatch):
    p = random_problems(family, np.random.default_rng(7), 30)
    answers = []
    for worth in (np.inf, 0):
        monkeypatch.setattr(kl_passes, "_WORTH_COMPILING", worth)
        answers.append(kl_project(p.R, p.v, p.box, p.floor))
    slow, fast = answers
    assert fast.certified.all()
    assert slow.certified.all()
    assert (np.abs(fast.objective - slow.objective) <= 1e-10 * slow.scale).all()
    distance = (np.abs((fast.alpha - slow.alpha) @ p.R) / slow.scale[:, None]).max()
    assert distance < 1e-4  # y is unique; strong convexity turns gaps into their square roots


@compiled
def test_small_batches_and_machines_without_numba_get_numpy(monkeypatch):
    assert type(fastest_passes(100)) is Passes
    assert type(fastest_passes(2**20)) is CompiledPasses
    monkeypatch.setitem(sys.modules, "lrlm_sim.kl_kernels", None)
    assert type(fastest_passes(2**20)) is Passes


def test_the_lowest_floor_allowed_is_within_reach_of_the_compiled_logarithm():
    p = typical_problems(np.random.default_rng(0), 4, 64, 600, "extrapolated")
    assert kl_project(p.R, p.v, p.box, 1e-300).certified.all()
