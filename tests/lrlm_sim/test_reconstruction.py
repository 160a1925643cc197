"""The reconstruction chain: exact on consistent chains, optimal on noisy ones, an oracle in every form."""

from __future__ import annotations

import itertools
import sys

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear

from lrlm_sim.distances import estimate_total_variation, total_variation
from lrlm_sim.matrices import extended_logits
from lrlm_sim.reconstruction import (
    Chain,
    ReconstructionModel,
    joint_program,
    reconstruct,
)
from lrlm_sim.reconstruction.box_least_squares import box_least_squares
from oracles import ISAN, NoisyParity
from tests.lrlm_sim.reconstruction_chains import METHODS, consistent_chain, every_method, teacher_chain


def greedy(chain: Chain, string: np.ndarray) -> np.ndarray:
    """Minimum-norm solution of each equation in turn, without look-back."""
    c = np.ones(1)
    for s, z in enumerate(string):
        c = np.linalg.lstsq(chain.futures[s].T, c @ chain.moves[s][z], rcond=1e-11)[0]
    return c


def objective_of(chain: Chain, string: np.ndarray, blocks: list[np.ndarray], kind: str) -> float:
    errors = np.concatenate(
        [blocks[s + 1] @ chain.futures[s] - blocks[s] @ chain.moves[s][z] for s, z in enumerate(string)]
    )
    return {"squares": float(errors @ errors), "minimax": np.abs(errors).max(), "sum": np.abs(errors).sum()}[
        kind
    ]


def by_cvxpy(chain: Chain, string: np.ndarray, kind: str) -> tuple[float, np.ndarray]:
    """(optimum, c_t) of the joint program in the box."""
    blocks = [np.ones(1), *(cp.Variable(w) for w in chain.widths[1 : len(string) + 1])]
    errors = cp.hstack(
        [blocks[s + 1] @ chain.futures[s] - blocks[s] @ chain.moves[s][z] for s, z in enumerate(string)]
    )
    value = {"squares": cp.sum_squares, "minimax": cp.norm_inf, "sum": cp.norm1}[kind](errors)
    problem = cp.Problem(cp.Minimize(value), [cp.abs(c) <= chain.box for c in blocks[1:]])
    problem.solve(cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    return problem.value, blocks[-1].value


# --- exact on consistent chains ---------------------------------------------------------------------


@every_method
@pytest.mark.parametrize(("width", "vocab", "horizon"), [(1, 3, 4), (2, 2, 6), (3, 3, 5), (4, 4, 4)])
def test_exact_chains_give_the_teacher(method, objective, width, vocab, horizon):
    teacher = ISAN.random(width, vocab, horizon, width)
    model = ReconstructionModel.from_chain(teacher_chain(teacher), method, objective)
    assert total_variation(teacher, model) < 1e-9


@given(
    width=st.integers(1, 4),
    vocab=st.integers(2, 4),
    horizon=st.integers(2, 8),
    seed=st.integers(0, 10**6),
    orthogonal=st.booleans(),
)
@settings(max_examples=20)
def test_all_methods_agree_on_exact_chains(width, vocab, horizon, seed, orthogonal):
    teacher = ISAN.random(width, vocab, horizon, seed, orthogonal=orthogonal)
    strings = np.random.default_rng(seed).integers(vocab, size=(3, horizon - 1))
    # one word per pair of tokens and a complete pool: closed, and every string is spanned
    contexts = [(y, z) for y in range(vocab) for z in range(vocab)] + [(z,) for z in range(vocab)]
    chain = teacher_chain(teacher, contexts, pool=48, seed=seed, box=50.0)
    expected = extended_logits(teacher, strings, [()])[:, 0]
    for method, objective in METHODS:
        found = reconstruct(chain, strings, method, objective)
        np.testing.assert_allclose(found.logits, expected, atol=1e-9)
        assert found.infeasible == 0
        assert found.residual.max() < 1e-9


def test_parity_is_reconstructed():
    teacher = NoisyParity([1, 0, 1, 1, 0, 1], 0.1)
    contexts = [tuple(np.eye(6, dtype=int)[0, :k]) for k in range(1, 7)]
    chain = teacher_chain(teacher, contexts, pool=64)
    for method, objective in METHODS:
        model = ReconstructionModel.from_chain(chain, method, objective)
        assert total_variation(teacher, model) < 1e-9, method


def test_long_horizons_do_not_drift():
    teacher = ISAN.random(3, 3, 150, 5, orthogonal=True)
    chain = teacher_chain(teacher, [(0,), (1,), (1, 2)])
    strings = np.random.default_rng(0).integers(3, size=(5, 149))
    expected = extended_logits(teacher, strings, [()])[:, 0]
    for method in ("qr", "box", "ridge"):
        np.testing.assert_allclose(reconstruct(chain, strings, method).logits, expected, atol=1e-9)


# --- look-back -----------------------------------------------------------------------------------------


def test_greedy_solving_is_wrong_by_hand():
    # Cut 1 sees only a + b = 1 of c_1 = (a, b). Cut 2 can be solved only if a + 2b = a: b = 0, c_2 = 1.
    futures = (np.array([[1.0], [1.0]]), np.array([[1.0, 1.0]]))
    moves = (np.array([[[1.0]]]), np.array([[[1.0, 1.0], [3.0, 0.0]]]))
    chain = Chain(futures, moves, (np.ones((1, 1)), np.ones((2, 1)), np.ones((1, 1))))
    string = np.zeros(2, dtype=int)
    assert abs(greedy(chain, string)[0] - 1) > 0.2
    for method, objective in METHODS[:3]:
        found = reconstruct(chain, string[None], method, objective)
        np.testing.assert_allclose(found.coefficients[1][0], [1, 0], atol=1e-9)
        np.testing.assert_allclose(found.coefficients[2][0], [1], atol=1e-9)
        assert found.infeasible == 0
    for method in ("box", "ridge"):
        assert reconstruct(chain, string[None], method).infeasible == 1


@given(seed=st.integers(0, 10**6), deficient=st.integers(1, 3))
def test_joint_methods_look_back_where_greedy_is_wrong(seed, deficient):
    chain, string, truth = consistent_chain(seed, [4, 3, 4, 3], [6, 6, 6, 6], deficient)
    assert np.abs(greedy(chain, string) - truth[-1]).max() > 1e-6
    for method, objective in METHODS[:3]:
        found = reconstruct(chain, string[None], method, objective)
        assert found.residual[0] < 1e-9
        if np.linalg.cond(_joint_matrix(chain, string)) < 1e4:
            for block, expected in zip(found.coefficients, truth, strict=True):
                np.testing.assert_allclose(block[0], expected, atol=1e-8)


def _joint_matrix(chain: Chain, string: np.ndarray) -> np.ndarray:
    """Matrix of the joint system in c_1..c_t, dense."""
    t, widths = len(string), chain.widths
    rows = np.cumsum([0, *(g.shape[1] for g in chain.futures[:t])])
    columns = np.cumsum([0, *widths[1 : t + 1]])
    matrix = np.zeros((rows[-1], columns[-1]))
    for s, z in enumerate(string):
        at = slice(rows[s], rows[s + 1])
        matrix[at, columns[s] : columns[s + 1]] = chain.futures[s].T
        if s > 0:
            matrix[at, columns[s - 1] : columns[s]] = -chain.moves[s][z].T
    return matrix


@given(
    seed=st.integers(0, 10**6),
    widths=st.lists(st.integers(1, 5), min_size=2, max_size=6),
    words=st.integers(1, 9),
    collapsed=st.integers(0, 6),
)
def test_elimination_is_the_dense_least_squares(seed, widths, words, collapsed):
    rng = np.random.default_rng(seed)
    futures = [rng.standard_normal((w, words)) for w in widths]
    for s in range(min(collapsed, len(widths))):  # rows that depend on the first, or vanish
        futures[s] = np.outer(rng.integers(0, 2, widths[s]), futures[s][0])
    moves = [rng.standard_normal((2, w, words)) for w in [1, *widths[:-1]]]
    readouts = [rng.standard_normal((w, 2)) for w in [1, *widths]]
    chain = Chain(tuple(futures), tuple(moves), tuple(readouts), box=1e9)
    string = rng.integers(2, size=len(widths))
    matrix = _joint_matrix(chain, string)
    sigma = np.linalg.svd(matrix, compute_uv=False)
    target = np.zeros(len(matrix))
    target[:words] = moves[0][string[0], 0]
    best = np.linalg.lstsq(matrix, target, rcond=1e-11)[0]
    found = reconstruct(chain, string[None], "qr")
    blocks = [block[0] for block in found.coefficients]
    errors = matrix @ np.concatenate(blocks[1:]) - target
    gap = errors @ errors - np.square(matrix @ best - target).sum()
    kept = sigma[sigma > 1e-11 * sigma[0]]
    assert gap < 1e-10 * (sigma[0] / kept[-1]) ** 2
    if len(kept) == matrix.shape[1] and sigma[0] < 1e4 * sigma[-1]:
        np.testing.assert_allclose(np.concatenate(blocks[1:]), best, atol=1e-7)


def test_repeated_spanner_rows_change_nothing():
    # Equal rows leave a direction that no equation ever sees; what lies behind it must not be lost with it.
    plain = teacher_chain(ISAN.random(3, 3, 7, 0), noise=0.05, box=1e3)
    repeat = [[0], *([*range(w), 0, w - 1] for w in plain.widths[1:])]
    doubled = Chain(
        tuple(g[rows] for g, rows in zip(plain.futures, repeat[1:], strict=True)),
        tuple(h[:, rows] for h, rows in zip(plain.moves, repeat[:-1], strict=True)),
        tuple(b[rows] for b, rows in zip(plain.readouts, repeat, strict=True)),
        box=1e3,
    )
    strings = np.random.default_rng(0).integers(3, size=(5, 6))
    for method, objective in METHODS[:2] + METHODS[3:4]:
        expected = reconstruct(plain, strings, method, objective)
        found = reconstruct(doubled, strings, method, objective)
        np.testing.assert_allclose(found.logits, expected.logits, atol=1e-9)
        np.testing.assert_allclose(found.residual, expected.residual, atol=1e-9)


def test_stalled_programs_are_solved_all_the_same(monkeypatch):
    chain = teacher_chain(ISAN.random(3, 3, 7, 0), noise=0.05, rank=5)
    strings = np.random.default_rng(2).integers(3, size=(3, 6))
    expected = reconstruct(chain, strings, "lp", "minimax")
    calls = itertools.count()
    monkeypatch.setattr(joint_program, "is_optimal", lambda _: next(calls) % 2 == 1)  # never at first
    found = reconstruct(chain, strings, "lp", "minimax")
    np.testing.assert_allclose(found.residual, expected.residual, atol=1e-9)


# --- optimal on noisy chains ----------------------------------------------------------------------------


@pytest.mark.parametrize("box", [2.0, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_noisy_chains_reach_the_optimum_of_cvxpy(seed, box):
    teacher = ISAN.random(3, 3, 8, seed)
    chain = teacher_chain(teacher, [(0,)], noise=0.02, rank=4, seed=seed, box=box)
    strings = np.random.default_rng(seed).integers(3, size=(2, 7))
    kinds = [("qr", "sum", "squares"), ("lp", "minimax", "minimax"), ("lp", "sum", "sum")]
    for method, objective, kind in kinds:
        found = reconstruct(chain, strings, method, objective)
        assert found.max_coefficient.max() <= chain.box_limit
        for i, string in enumerate(strings):
            best, last = by_cvxpy(chain, string, kind)
            mine = objective_of(chain, string, [c[i] for c in found.coefficients], kind)
            assert mine == pytest.approx(best, rel=1e-7, abs=1e-9)
            if kind == "squares":
                np.testing.assert_allclose(found.coefficients[-1][i], last, atol=2e-5)
    assert box == 2.0 or reconstruct(chain, strings, "qr").box_solves > 0  # the quadratic program did run


@pytest.mark.parametrize("seed", [0, 1])
def test_sequential_box_reaches_the_optimum_of_cvxpy_at_each_cut(seed):
    teacher = ISAN.random(3, 3, 8, seed)
    chain = teacher_chain(teacher, [(0,)], noise=0.02, rank=5, seed=seed, box=1.0)
    strings = np.random.default_rng(seed).integers(3, size=(3, 7))
    found = reconstruct(chain, strings, "box")
    assert found.box_solves > 0
    for i, string in enumerate(strings):
        for s, z in enumerate(string):
            target = found.coefficients[s][i] @ chain.moves[s][z]
            x = cp.Variable(chain.widths[s + 1])
            problem = cp.Problem(cp.Minimize(cp.sum_squares(x @ chain.futures[s] - target)), [cp.abs(x) <= 1])
            problem.solve(cp.CLARABEL)
            mine = np.square(found.coefficients[s + 1][i] @ chain.futures[s] - target).sum()
            assert mine <= problem.value * (1 + 1e-6) + 1e-9


@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 8), st.integers(1, 7)),
    rank=st.integers(1, 7),
    box=st.sampled_from([1.0, 2.0]),
    decay=st.sampled_from([0.0, 1.0, 6.0]),
)
def test_box_least_squares_is_optimal(seed, shape, rank, box, decay):
    rng = np.random.default_rng(seed)
    rows, columns = shape
    scales = 10.0 ** -(decay * rng.random(columns))
    design = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns)) * scales
    targets = rng.standard_normal((12, rows)) * 5
    found = box_least_squares(design, targets, box)
    assert np.abs(found).max() <= box
    for x, target in zip(found, targets, strict=True):
        gradient = design.T @ (design @ x - target)
        # optimality: no gradient where free, pointing outwards at a bound
        upper, lower = x > box * (1 - 1e-9), x < -box * (1 - 1e-9)
        inward = np.where(upper, np.maximum(gradient, 0), np.where(lower, np.minimum(gradient, 0), gradient))
        assert np.abs(inward).max() < 1e-8 * max(1.0, np.abs(design).max() ** 2)
        best = lsq_linear(design, target, (-box, box), method="bvls", tol=1e-14)
        mine = 0.5 * np.square(design @ x - target).sum()
        assert mine <= best.cost * (1 + 1e-9) + 1e-9


def test_box_least_squares_does_not_depend_on_the_batch():
    rng = np.random.default_rng(3)
    design, targets = rng.standard_normal((5, 4)), rng.standard_normal((30, 5)) * 4
    together = box_least_squares(design, targets, 1.0)
    alone = np.concatenate([box_least_squares(design, t[None], 1.0) for t in targets])
    np.testing.assert_allclose(together, alone, atol=1e-12)


def test_quadratic_program_without_the_extra(monkeypatch):
    teacher = ISAN.random(3, 3, 6, 0)
    chain = teacher_chain(teacher, [(0,)], noise=0.02, box=1.0)
    strings = np.random.default_rng(0).integers(3, size=(4, 5))
    found = reconstruct(chain, strings, "qr")
    monkeypatch.setitem(sys.modules, "piqp", None)
    without = reconstruct(chain, strings, "qr")
    assert found.box_solves == without.box_solves > 0
    np.testing.assert_allclose(found.logits, without.logits, atol=1e-6)


def test_overestimated_rank_with_noise():
    """T = 30, ξ = 1e-3, two rows too many: every method stays close (fixed seeds)."""
    teacher = ISAN.random(4, 4, 30, 0)
    chain = teacher_chain(teacher, [(0,)], noise=1e-3, rank=6, pool=64)
    assert chain.widths[3:29] == [6] * 26
    for method, objective, n in (
        ("qr", "sum", 300),
        ("box", "sum", 300),
        ("ridge", "sum", 300),
        ("lp", "sum", 8),
    ):
        model = ReconstructionModel.from_chain(chain, method, objective)
        assert estimate_total_variation(teacher, model, n, rng=0).estimate < 0.03, method
