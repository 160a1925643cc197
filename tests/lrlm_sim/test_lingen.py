"""LinGen: exact on exactly low-rank models, an honest oracle, ridge chosen without the evaluation set."""

import numpy as np
import pytest

from lrlm_sim.lingen import LinGen, continuation_kl, mixed_futures
from lrlm_sim.testing import check_oracle
from oracles import ISAN, HiddenMarkovModel, perturbed
from oracles.errors import HorizonError, ParameterError, ShapeError


@pytest.fixture(name="teacher")
def _teacher():
    return ISAN.random(4, 4, 16, rng=0)


@pytest.fixture(name="helpers")
def _helpers():
    return np.unique(np.random.default_rng(1).integers(0, 4, (40, 5)), axis=0)


def random_futures(seed=2):
    return mixed_futures(np.random.default_rng(seed).integers(0, 4, (60, 6)), seed)


def test_low_rank_targets_are_continued_exactly(teacher, helpers):
    """Histories of one length of a width-4 model span each other: KL is rounding."""
    target = [3, 1, 2, 0, 1]
    model = LinGen(helpers, random_futures()).fit(teacher, target)
    error = continuation_kl(teacher.condition(target), model, 200, 10, rng=3)
    assert abs(error.cumulative) < 1e-6
    assert model.horizon == 11


def test_it_never_asks_about_the_target(teacher, helpers, monkeypatch):
    target = [3, 1, 2, 0, 1]
    keep = [h for h in helpers.tolist() if h != target]
    model = LinGen(keep, random_futures()).fit(teacher, target)
    asked = []
    original = type(teacher).advance
    monkeypatch.setattr(
        type(teacher),
        "advance",
        lambda self, state, tokens: asked.append(np.asarray(tokens)) or original(self, state, tokens),
    )
    model.sample(3, 0, length=4)
    firsts = [chunk for chunk in asked if chunk.ndim == 2 and chunk.shape[1] == 5]
    assert firsts
    assert not any((chunk == target).all(axis=1).any() for chunk in firsts)


def test_it_is_an_oracle(teacher, helpers):
    ragged = [*helpers[:6].tolist(), [1, 2], [0, 3, 3]]
    check_oracle(LinGen(ragged, random_futures()).fit(teacher, [0, 0, 1, 2, 3]), tolerance=1e-8)


def test_weights_solve_the_ridge_problem(teacher, helpers):
    futures = random_futures()
    noisy = perturbed(teacher, 0.3, 0)
    fit = LinGen(helpers[:8], futures, ridge=1e-3).weights(noisy, [[1, 1, 1, 1, 1]])
    rows = noisy.extended_log_probs([*helpers[:8], [1, 1, 1, 1, 1]], futures)
    rows = (rows - rows.mean(axis=2, keepdims=True)).reshape(9, -1)
    scale = 1e-3 * np.square(rows[:8]).sum() / 8
    direct = np.linalg.solve(rows[:8] @ rows[:8].T + scale * np.eye(8), rows[:8] @ rows[8])
    np.testing.assert_allclose(fit.weights[0], direct, rtol=1e-6)
    expected = np.linalg.norm(rows[8] - direct @ rows[:8]) / np.linalg.norm(rows[8])
    assert fit.relative_error[0] == pytest.approx(expected, rel=1e-6)


def test_cross_validation_prefers_more_ridge_under_noise(helpers):
    teacher = ISAN.random(4, 4, 16, rng=0)
    targets = [[3, 1, 2, 0, 1], [0, 0, 2, 2, 1], [1, 3, 3, 0, 0]]
    clean = LinGen(helpers, random_futures()).weights(teacher, targets)
    noisy = LinGen(helpers, random_futures()).weights(perturbed(teacher, 0.5, 1), targets)
    assert np.median(noisy.ridges) > 100 * np.median(clean.ridges)
    assert (noisy.relative_error > clean.relative_error).all()


def test_more_helpers_and_mixed_futures_help_a_full_rank_model():
    teacher = HiddenMarkovModel.random(4, 4, 16, rng=1)
    rng = np.random.default_rng(0)
    strings = rng.integers(0, 4, (400, 12))
    target = [3, 1, 2, 0, 1]
    truth = teacher.condition(target)

    def kl(helpers, futures):
        model = LinGen(strings[:helpers, :5], futures).fit(teacher, target)
        return continuation_kl(truth, model, 300, 8, rng=5).cumulative

    mixed = mixed_futures(strings[200:, 5:], 0)
    assert kl(60, mixed) < kl(3, mixed)
    assert kl(60, mixed) < kl(60, [[]])


def test_uniform_weights_are_worse_and_transfer_is_possible(teacher, helpers):
    target = [3, 1, 2, 0, 1]
    lingen = LinGen(helpers, random_futures())
    close = perturbed(teacher, 0.02, 7)
    fitted = lingen.weights(teacher, [target]).weights[0]
    truth = close.condition(target)
    moved = continuation_kl(truth, lingen.model(close, fitted), 200, 8, rng=1).cumulative
    uniform = continuation_kl(truth, lingen.model(close, np.full(len(helpers), 1 / len(helpers))), 200, 8, 1)
    assert moved < uniform.cumulative / 10


def test_continuation_kl_matches_exact_kl():
    p, q = HiddenMarkovModel.random(2, 3, 4, rng=0), HiddenMarkovModel.random(2, 3, 4, rng=1)
    strings = np.indices((3,) * 4).reshape(4, -1).T
    exact = np.exp(p.score(strings)) @ (p.score(strings) - q.score(strings))
    error = continuation_kl(p, q, 20_000, 4, rng=0)
    assert abs(error.cumulative - exact) < 6.5 * error.cumulative_error  # false alarm 1e-10
    assert error.per_step.sum() == pytest.approx(error.cumulative)


def test_wrong_inputs_are_typed_errors(teacher):
    with pytest.raises(ParameterError, match="at least one helper"):
        LinGen([], [[1]])
    with pytest.raises(HorizonError, match="horizon = 16"):
        LinGen([[0] * 10], [[0] * 7]).fit(teacher, [1])
    with pytest.raises(ShapeError, match="weights"):
        LinGen([[0]], [[1]]).model(teacher, [0.5, 0.5])
