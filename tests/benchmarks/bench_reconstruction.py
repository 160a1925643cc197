"""Ratios of the reconstruction methods: python -m tests.benchmarks.bench_reconstruction

One string of a noisy chain is extended token by token. Timings are CPU times of one step, the best of a few
repetitions in one process; set OPENBLAS_NUM_THREADS=1. Only ratios are printed. `linprog` is
scipy.optimize.linprog (HiGHS) on the whole program of one prefix, its sparse matrices built beforehand.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from lrlm_sim.reconstruction.block_elimination import BlockElimination
from lrlm_sim.reconstruction.box_least_squares import SequentialBox
from lrlm_sim.reconstruction.chain import Chain
from lrlm_sim.reconstruction.joint_program import JointProgram, Objective
from lrlm_sim.reconstruction.ridge_operators import RidgeOperators


def noisy_chain(width: int, vocab_size: int, words: int, horizon: int, noise: float) -> Chain:
    """Random rotations of a state of dimension `width` seen through random columns, entries off by ±noise."""
    rng = np.random.default_rng(0)

    def noisy(values: np.ndarray) -> np.ndarray:
        return values + noise * rng.uniform(-1, 1, values.shape)

    maps = np.linalg.qr(rng.standard_normal((vocab_size, width, width)))[0]
    columns = rng.standard_normal((horizon, width, words)) / np.sqrt(width)
    spanners = [rng.standard_normal((1, width))]
    spanners += [
        np.linalg.qr(rng.standard_normal((width, width)))[0] * np.sqrt(width) for _ in range(1, horizon)
    ]
    futures = tuple(noisy(x @ f) for x, f in zip(spanners[1:], columns[1:], strict=True))
    moves = tuple(noisy(spanners[s] @ maps @ columns[s + 1]) for s in range(horizon - 1))
    readouts = tuple(x @ f[:, :vocab_size] for x, f in zip(spanners, columns, strict=True))
    return Chain(futures, moves, readouts, box=5.0, noise=noise)


def linear_program_of(chain: Chain, string: np.ndarray, objective: Objective) -> dict[str, Any]:
    """Arguments of linprog for the joint program of a whole string."""
    widths = chain.widths
    starts = np.cumsum([0, *widths[1 : len(string) + 1]])
    equations, constants = [], []
    for s, token in enumerate(string):
        row: list[Any] = [None] * len(string)
        row[s] = sparse.csr_matrix(chain.futures[s].T)
        if s > 0:
            row[s - 1] = sparse.csr_matrix(-chain.moves[s][token].T)
        equations.append(row)
        constants.append(chain.moves[0][token, 0] if s == 0 else np.zeros(chain.futures[s].shape[1]))
    matrix, constant = sparse.bmat(equations, format="csr"), np.concatenate(constants)
    rows, box = len(constant), [(-chain.box, chain.box)] * int(starts[-1])
    if objective == "minimax":
        ones = sparse.csr_matrix(np.ones((rows, 1)))
        both = sparse.bmat([[matrix, -ones], [-matrix, -ones]], format="csc")
        costs = np.append(np.zeros(starts[-1]), 1.0)
        bounds = [*box, (0, None)]
        return {"c": costs, "A_ub": both, "b_ub": np.concatenate([constant, -constant]), "bounds": bounds}
    split = sparse.hstack([matrix, -sparse.eye(rows), sparse.eye(rows)], format="csc")
    costs = np.concatenate([np.zeros(starts[-1]), np.ones(2 * rows)])
    return {"c": costs, "A_eq": split, "b_eq": constant, "bounds": [*box, *[(0, None)] * (2 * rows)]}


def cpu_time(call: Callable[[], object], repeats: int) -> float:
    """Shortest CPU time of one call."""
    best = np.inf
    for _ in range(repeats):
        begin = time.process_time()
        call()
        best = min(best, time.process_time() - begin)
    return best


def bench_elimination(width: int, words: int, horizon: int, repeats: int) -> None:
    """Cost of one elimination step along a string, against one linprog solve of the whole prefix."""
    chain = noisy_chain(width, 4, words, horizon + 1, 1e-3)
    string = np.random.default_rng(1).integers(4, size=horizon)
    method = BlockElimination(chain)
    state, times, batched = method.start(1), [], []
    many = method.start(256)
    for token in string:
        one, tokens = np.array([token]), np.full(256, token)
        times.append(cpu_time(lambda state=state, one=one: method.step(state, one), 20 * repeats))
        batched.append(cpu_time(lambda many=many, tokens=tokens: method.step(many, tokens), 1) / 256)
        state, many = method.step(state, one), method.step(many, tokens)
    early, late = np.median(times[3:13]), np.median(times[-10:])
    program = linear_program_of(chain, string, "minimax")
    whole = cpu_time(lambda: linprog(**program, method="highs"), 1)
    rows = np.ones((256, width))
    tokens = np.random.default_rng(2).integers(4, size=256)
    sequential = {
        "box least squares": SequentialBox(chain),
        "ridge operators": RidgeOperators(chain),
    }
    print(f"width {width}, {words} words per cut, t = {horizon}")
    print(f"  elimination step, last ten / first ten of the string   {late / early:.2f}   (target 1)")
    print(f"  linprog of the whole prefix / elimination step         {whole / late:.0f}   (target ≥ 100)")
    print(f"  elimination step alone / per row of a batch of 256     {late / np.median(batched):.1f}")
    for name, other in sequential.items():
        step = cpu_time(lambda other=other: other.advance(horizon // 2, rows, tokens), 10 * repeats) / 256
        print(f"  elimination, per row of a batch / {name:<20} {np.median(batched) / step:.1f}")


def bench_program(width: int, words: int, horizon: int, objective: Objective) -> None:
    """One more token in the program kept alive against linprog rebuilt for the longer prefix."""
    chain = noisy_chain(width, 4, words, horizon + 1, 1e-3)
    string = np.random.default_rng(1).integers(4, size=horizon)
    program, warm, cold, gap = JointProgram(chain, objective), [], [], 0.0
    for t, token in enumerate(string, start=1):
        begin = time.process_time()
        program.append(int(token))
        program.solve()
        warm.append(time.process_time() - begin)
        if t % 10 == 0:
            begin = time.process_time()
            answer = linprog(**linear_program_of(chain, string[:t], objective), method="highs")
            cold.append(time.process_time() - begin)
            gap = max(gap, abs(program.objective_value - answer.fun))
    ratio = [c / np.mean(warm[t - 5 : t]) for t, c in zip(range(10, horizon + 1, 10), cold, strict=False)]
    print(f"width {width}, {words} words, {objective}: linprog rebuilt / warm step at t = 10, 20, …")
    print(f"  {' '.join(f'{r:.1f}' for r in ratio)}   (target ≥ 3); optima agree to {gap:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--horizon", type=int, default=60)
    options = parser.parse_args()
    bench_elimination(16, 32, options.horizon, options.repeats)
    bench_elimination(4, 8, options.horizon, options.repeats)
    for objective in ("minimax", "sum"):
        bench_program(4, 8, options.horizon, objective)
        bench_program(16, 32, options.horizon // 2, objective)


if __name__ == "__main__":
    main()
