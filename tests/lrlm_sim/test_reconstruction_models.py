"""Models that answer by reconstruction: the contract, the string alone decides, limits and errors."""

from __future__ import annotations

import numpy as np
import pytest

from lrlm_sim.distances import total_variation
from lrlm_sim.reconstruction import (
    Chain,
    ReconstructionModel,
    joint_program,
    reconstruct,
    ridge_isan,
    ridge_operators,
)
from lrlm_sim.reconstruction.block_elimination import BlockElimination
from lrlm_sim.testing import check_oracle
from oracles import ISAN
from oracles.errors import (
    HorizonError,
    NonFiniteError,
    ParameterError,
    ShapeError,
    TokenError,
)
from oracles.storage import load, save
from tests.lrlm_sim.reconstruction_chains import METHODS, every_method, teacher_chain


@every_method
def test_models_obey_the_contract(method, objective):
    chain = teacher_chain(ISAN.random(3, 3, 5, 0), noise=0.3, rank=5, box=1.0)
    samples = 200 if method == "lp" else 1000
    check_oracle(ReconstructionModel.from_chain(chain, method, objective), n=4, samples=samples)


@every_method
def test_models_predict_what_reconstruct_reports(method, objective):
    chain = teacher_chain(ISAN.random(3, 3, 6, 1), noise=0.05, rank=5, box=1.0)
    model = ReconstructionModel.from_chain(chain, method, objective)
    strings = np.random.default_rng(1).integers(3, size=(6, 5))
    for t in range(6):
        logits = reconstruct(chain, strings[:, :t], method, objective).logits
        laws = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(np.exp(model.next_log_probs(strings[:, :t])), laws, atol=1e-12)


@pytest.mark.parametrize("objective", ["sum", "minimax"])
def test_programs_are_a_function_of_the_string(objective, monkeypatch):
    # Noise of the size of the logits: the minimax optimum is far from unique.
    chain = teacher_chain(ISAN.random(3, 3, 7, 0), noise=0.3, rank=5)
    strings = np.random.default_rng(2).integers(3, size=(4, 6))
    whole = reconstruct(chain, strings, "lp", objective)
    model = ReconstructionModel.from_chain(chain, "lp", objective)
    state = model.start(4)
    for t in range(6):
        model.advance(state, (strings[:, t] + 1) % 3)  # another branch moves the kept programs on
        state = model.advance(state, strings[:, t])
    assert np.array_equal(model.solver.coefficients(state.inner), whole.coefficients[-1])
    monkeypatch.setattr(joint_program, "_ALIVE", 1)
    few = model.advance(model.start(4), strings)
    assert np.array_equal(model.solver.coefficients(few.inner), whole.coefficients[-1])


def test_elimination_carries_a_block_of_fixed_size():
    teacher = ISAN.random(3, 3, 40, 2)
    method = BlockElimination(teacher_chain(teacher, [(0,), (1,)]))
    state = method.start(2)
    for t in range(39):
        state = method.step(state, np.array([t % 3, (t + 1) % 3]))
        if 2 <= t < 38:
            assert state.factor.shape == (2, 3, 3)
            assert state.target.shape == (2, 3)


def test_infeasible_prefixes_are_reported_and_predicted():
    teacher = ISAN.random(3, 3, 6, 0)
    exact = teacher_chain(teacher)
    moves = [m.copy() for m in exact.moves]
    moves[2][1] += np.random.default_rng(0).standard_normal(moves[2][1].shape)  # nothing explains it
    chain = Chain(exact.futures, tuple(moves), exact.readouts)
    strings = np.array([[0, 0, 0, 0, 0], [0, 0, 1, 0, 0], [2, 1, 1, 2, 0]])
    for method, objective in METHODS:
        found = reconstruct(chain, strings, method, objective)
        assert found.feasible.tolist() == [True, False, False]
        assert found.infeasible == 2
        assert np.isfinite(found.logits).all()
        model = ReconstructionModel.from_chain(chain, method, objective)
        assert np.isfinite(model.next_log_probs(strings)).all()


def test_noise_widens_the_feasible_residual():
    chain = teacher_chain(ISAN.random(3, 3, 6, 0), noise=1e-2)
    strings = np.random.default_rng(0).integers(3, size=(20, 5))
    assert reconstruct(chain, strings, "lp", "minimax").infeasible == 0
    strict = Chain(chain.futures, chain.moves, chain.readouts)
    assert reconstruct(strict, strings, "lp", "minimax").infeasible == 20


def test_ridge_operators_are_the_ridge_regression():
    chain = teacher_chain(ISAN.random(3, 3, 5, 0), noise=0.1)
    operators = ridge_operators(chain)
    for futures, moves, operator in zip(chain.futures, chain.moves, operators, strict=True):
        penalty = 10 * 0.1**2 * futures.shape[1] * np.eye(len(futures))
        expected = moves @ futures.T @ np.linalg.inv(futures @ futures.T + penalty)
        np.testing.assert_allclose(operator, expected, atol=1e-10)
    model = ReconstructionModel.from_chain(chain, "ridge")
    assert total_variation(model, ridge_isan(chain)) < 1e-12


@every_method
def test_small_chains(method, objective, tmp_path):
    one = ReconstructionModel((), (), (np.array([[0.0, 1.0]]),), method=method, objective=objective)
    law = np.exp([0.0, 1.0]) / np.exp([0.0, 1.0]).sum()
    np.testing.assert_allclose(np.exp(one.next_log_probs([[]]))[0], law)
    assert load(save(one, tmp_path / "one.safetensors")).horizon == 1
    assert one.sample(3, 0).shape == (3, 1)
    zeros = (np.zeros((2, 1)),) * 2, (np.zeros((1, 1, 1)), np.zeros((1, 2, 1)))
    silent = ReconstructionModel(*zeros, (np.zeros((1, 1)), *[np.zeros((2, 1))] * 2), method=method)
    assert silent.vocab_size == 1
    np.testing.assert_allclose(silent.score([[0, 0, 0]]), 0.0, atol=1e-12)
    assert reconstruct(silent.chain, np.zeros((0, 2), dtype=int), method).logits.shape == (0, 1)
    assert reconstruct(silent.chain, np.zeros((2, 0), dtype=int), method).infeasible == 0


def test_wrong_chains_raise():
    g, h, b0, b1 = np.ones((2, 3)), np.ones((2, 1, 3)), np.ones((1, 2)), np.ones((2, 2))
    Chain((g,), (h,), (b0, b1))
    with pytest.raises(ParameterError, match="T−1"):
        Chain((g,), (h,), (b0,))
    with pytest.raises(ParameterError, match="T−1"):
        Chain((), (), ())
    with pytest.raises(ShapeError, match="one row"):
        Chain((g,), (h,), (b1, b1))
    with pytest.raises(ShapeError, match=r"moves\[0\]"):
        Chain((g,), (np.ones((2, 1, 4)),), (b0, b1))
    with pytest.raises(ShapeError, match=r"futures\[0\]"):
        Chain((np.ones((3, 3)),), (h,), (b0, b1))
    with pytest.raises(ShapeError, match=r"readouts\[1\]"):
        Chain((g,), (h,), (b0, np.ones((2, 3))))
    with pytest.raises(NonFiniteError):
        Chain((g * np.nan,), (h,), (b0, b1))
    with pytest.raises(ParameterError, match="box"):
        Chain((g,), (h,), (b0, b1), box=0.5)
    with pytest.raises(ParameterError, match="noise"):
        Chain((g,), (h,), (b0, b1), noise=-1.0)


def test_wrong_questions_raise():
    chain = teacher_chain(ISAN.random(2, 3, 4, 0))
    with pytest.raises(ParameterError, match="method"):
        reconstruct(chain, [[0]], "magic")
    with pytest.raises(ParameterError, match="objective"):
        reconstruct(chain, [[0]], "lp", "mean")
    with pytest.raises(HorizonError):
        reconstruct(chain, [[0, 0, 0, 0]])
    with pytest.raises(TokenError):
        reconstruct(chain, [[3]])
    with pytest.raises(HorizonError):
        ReconstructionModel.from_chain(chain).score([[0] * 5])


@every_method
def test_cuts_where_all_logits_are_rounding(method, objective):
    # A law that is uniform up to rounding at some cuts: no direction there may count as determined.
    exact = teacher_chain(ISAN.random(3, 3, 6, 0))
    rng = np.random.default_rng(0)
    futures, moves = list(exact.futures), list(exact.moves)
    futures[2], moves[2] = 1e-16 * rng.standard_normal(futures[2].shape), 1e-16 * moves[2]
    chain = Chain(tuple(futures), tuple(moves), exact.readouts)
    found = reconstruct(chain, rng.integers(3, size=(5, 4)), method, objective)
    assert found.max_coefficient.max() <= chain.box_limit
    assert found.infeasible == 0


def test_operators_that_blow_up_are_named():
    horizon = 40
    futures = (np.array([[1e-10]]),) * (horizon - 1)
    moves = (np.full((2, 1, 1), 1.0),) * (horizon - 1)
    model = ReconstructionModel(futures, moves, (np.ones((1, 2)),) * horizon, method="ridge")
    with pytest.raises(NonFiniteError, match="noise"):
        model.score(np.zeros((1, horizon), dtype=int))
