"""Projections against their peers: OPENBLAS_NUM_THREADS=1 python -m tests.benchmarks.bench_projections

Prints, per size, how many times longer one problem takes in a DPP-compiled cvxpy/Clarabel problem, in
scipy's SLSQP and (for ℓ1) in scipy's linprog than in the batched projections, the largest excess of our
objective over the peer's, and how many generated problems are not certified (`--problems`). Without numba,
or with `--numpy`, the KL projection runs without compiled passes. All speeds are ratios of CPU times within
one run, medians on both sides.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cvxpy as cp
import numpy as np
import scipy.optimize

from lrlm_sim import kl_passes
from lrlm_sim.projections import Projection, kl_project, l1_project

SIZES = ((4, 16), (4, 64), (8, 128), (16, 256), (16, 512))
TARGETS = ("near", "far", "extrapolated")
FAMILIES = (
    "typical", "scaled", "duplicate_rows", "near_duplicate_rows", "duplicate_columns", "low_rank", "wide",
    "tight_box", "high_floor", "sparse", "mass", "peaked", "extrapolated", "signed", "single",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Problems:
    """A batch of projection problems with one feasible set."""

    R: np.ndarray
    v: np.ndarray
    box: float
    floor: float


def typical_problems(rng: np.random.Generator, s: int, m: int, n: int, targets: str) -> Problems:
    """Random laws as rows; targets near the set, anywhere, or extrapolated and noisy (many floors active)."""
    R = rng.dirichlet(np.full(m, 0.5), size=s) + 1e-6
    R /= R.sum(axis=1, keepdims=True)
    if targets == "near":
        v = rng.dirichlet(np.ones(s), size=n) @ R * np.exp(0.1 * rng.standard_normal((n, m)))
    elif targets == "far":
        v = rng.dirichlet(np.ones(m), size=n)
    else:
        weights = rng.standard_normal((n, s))
        weights = np.clip(weights / weights.sum(axis=1, keepdims=True), -3, 3)
        v = weights @ R + 0.1 / m * rng.standard_normal((n, m))
    return Problems(R, v, 3.0 * s, 1e-12 / m)


def random_problems(family: str, rng: np.random.Generator, n: int) -> Problems:
    """A random set of the named family, with targets of six kinds (inside, noisy, negative, zero, …)."""
    s, m = int(rng.integers(2, 17)), int(rng.choice([16, 32, 64, 128]))
    if family == "single":
        s = 1
    if rng.random() < 0.1:
        m = s + 1
    R, box, floor = _random_set(family, rng, s, m)
    floor = min(floor, 0.9 * R.mean(axis=0).min())
    weights = rng.standard_normal((len(R), n)).T * rng.choice([0.1, 1.0, 3.0])
    if family == "extrapolated":
        weights *= 10
    weights += (1 - weights.sum(axis=1, keepdims=True)) / len(R)
    v = _random_targets(rng, weights @ R, R.mean(axis=0))
    if family == "mass":
        v *= 10 ** rng.uniform(-9, 4, (n, 1))
    return Problems(R, v, box, floor)


def _random_set(family: str, rng: np.random.Generator, s: int, m: int) -> tuple[np.ndarray, float, float]:
    R = np.maximum(rng.dirichlet(np.full(m, rng.choice([0.05, 0.3, 1.0, 3.0])), size=s), 1e-9)
    box, floor = 3.0 * s, 1e-12 / m
    match family:
        case "scaled":
            R, floor = R * 10 ** rng.uniform(-12, 0, m), rng.choice([1e-12 / m, 1e-16, 1e-30])
        case "duplicate_rows":
            R[rng.integers(s)] = R[rng.integers(s)]
        case "near_duplicate_rows":
            R[0] = R[-1] * (1 + 1e-9 * rng.standard_normal(m))
        case "duplicate_columns":
            R = R[:, rng.integers(m, size=m)]
        case "low_rank":
            rank = int(rng.integers(1, s + 1))
            R = rng.dirichlet(np.ones(rank), size=s) @ R[:rank]
        case "wide":
            R = R[:, : max(1, s - 1)]
        case "tight_box":
            box = float(rng.choice([(1 + 1e-6) / s, 1.1 / s, 2 / s, 0.5 + 1 / s, 1.0]))
        case "high_floor":
            floor = R.mean(axis=0).min() * rng.choice([0.1, 0.5, 0.9])
        case "sparse":
            R *= rng.random((s, m)) < 0.3
            R[rng.integers(s, size=m), np.arange(m)] += 0.3 / m
        case "peaked":
            R = np.full((s, m), 1e-6 / m)
            R[np.arange(s), rng.integers(m, size=s)] += 1
        case "signed":
            R += 0.3 / m * rng.standard_normal((s, m))
            R -= np.minimum(0, R.mean(axis=0) - 1e-3 / m)
    return R, box, float(floor)


def _random_targets(rng: np.random.Generator, v: np.ndarray, mean: np.ndarray) -> np.ndarray:
    kinds = (
        v,
        v * np.exp(0.5 * rng.standard_normal(v.shape)),
        v + mean * rng.standard_normal(v.shape),
        rng.dirichlet(np.full(v.shape[1], 0.3), size=len(v)),
        v * (rng.random(v.shape) < 0.5),
        -np.abs(v) * (rng.random(v.shape) < 0.5),
    )
    return np.choose(rng.integers(len(kinds), size=len(v))[:, None], kinds)


def kl(y: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Generalised relative entropy Σ y log(y/v) − y + v of the last axis (y ≥ 0, v > 0)."""
    positive = np.maximum(y, 1e-300)
    return (y * np.log(positive / v) - y + v).sum(axis=-1)


class Compiled:
    """The KL projection as a DPP-compiled cvxpy problem: only the parameter log v changes."""

    def __init__(self, problems: Problems, **tolerances: float) -> None:
        self.alpha = cp.Variable(len(problems.R))
        self.log_v = cp.Parameter(problems.R.shape[1])
        y = problems.R.T @ self.alpha
        cost = cp.sum(-cp.entr(y) - cp.multiply(self.log_v, y) - y)
        limits = [y >= problems.floor, cp.sum(self.alpha) == 1, cp.abs(self.alpha) <= problems.box]
        self.problem = cp.Problem(cp.Minimize(cost), limits)
        self.tolerances = tolerances
        assert self.problem.is_dcp(dpp=True)

    def solve(self, v: np.ndarray) -> np.ndarray:
        """α for one clipped target."""
        self.log_v.value = np.log(v)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "solution may be inaccurate": the caller compares objectives
            self.problem.solve(solver=cp.CLARABEL, **self.tolerances)
        return self.alpha.value


def slsqp(problems: Problems, v: np.ndarray) -> np.ndarray:
    """α for one clipped target by scipy's SLSQP with exact derivatives."""
    R, s = problems.R, len(problems.R)
    result = scipy.optimize.minimize(
        lambda a: kl(R.T @ a, v),
        np.full(s, 1 / s),
        jac=lambda a: R @ np.log(np.maximum(R.T @ a, 1e-300) / v),
        method="SLSQP",
        bounds=[(-problems.box, problems.box)] * s,
        constraints=[
            {"type": "eq", "fun": lambda a: a.sum() - 1, "jac": lambda a: np.ones(s)},
            {"type": "ineq", "fun": lambda a: R.T @ a - problems.floor, "jac": lambda a: R.T},
        ],
        options={"ftol": 1e-12, "maxiter": 300},
    )
    return result.x


def linprog_l1(problems: Problems, v: np.ndarray) -> np.ndarray:
    """α for one clipped target of the ℓ1 problem, the textbook program rebuilt by scipy's linprog."""
    R, (s, m) = problems.R, problems.R.shape
    costs = np.concatenate([np.zeros(s), np.ones(m)])
    rows = np.block([[R.T, -np.eye(m)], [-R.T, -np.eye(m)], [-R.T, np.zeros((m, m))]])
    limits = np.concatenate([v, -v, np.full(m, -problems.floor)])
    total = np.concatenate([np.ones(s), np.zeros(m)])[None]
    bounds = [(-problems.box, problems.box)] * s + [(0, None)] * m
    result = scipy.optimize.linprog(costs, rows, limits, total, [1.0], bounds, method="highs")
    return result.x[:s]


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Median CPU time of a few calls."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        call()
        times.append(time.process_time() - begin)
    return float(np.median(times))


def bench_kl(n: int, few: int) -> None:
    """Ratios and objective differences of the KL projection."""
    print(f"KL, n = {n}: time of a peer's problem / time of one of ours; (our objective − peer's) / scale")
    print("   s    m targets       iterations   cvxpy/Clarabel  SLSQP   excess over Clarabel, SLSQP")
    rng = np.random.default_rng(0)
    for s, m in SIZES:
        for targets in TARGETS:
            problems = typical_problems(rng, s, m, n, targets)
            result = kl_project(problems.R, problems.v, problems.box, problems.floor)
            ours = seconds(lambda p=problems: kl_project(p.R, p.v, p.box, p.floor), 5) / n
            v = np.maximum(problems.v, problems.floor)
            peers = (Compiled(problems).solve, partial(slsqp, problems))
            peers[0](v[0])
            others = np.empty((2, few, s))
            times = np.empty((2, few))
            for number, peer in enumerate(peers):
                for i in range(few):
                    begin = time.process_time()
                    others[number, i] = peer(v[i])
                    times[number, i] = time.process_time() - begin
            ratios = np.median(times, axis=1) / ours
            excess = (result.objective[:few] - kl(others @ problems.R, v[:few])) / result.scale[:few]
            worst = excess.max(axis=1)
            note = "" if result.certified.all() else "  NOT CERTIFIED"
            print(
                f"{s:4d} {m:4d} {targets:14s} {result.iterations.mean():8.1f} {ratios[0]:14.0f}"
                f" {ratios[1]:9.0f} {worst[0]:12.1e} {worst[1]:9.1e}{note}"
            )


def bench_l1(n: int, few: int) -> None:
    """Ratios and objective differences of the ℓ1 projection against linprog."""
    print(f"ℓ1, n = {n}: time of one linprog / time of one of ours; (our objective − linprog's) / scale")
    rng = np.random.default_rng(1)
    for s, m in SIZES:
        problems = typical_problems(rng, s, m, n, "extrapolated")
        result = l1_project(problems.R, problems.v, problems.box, problems.floor)
        ours = seconds(lambda p=problems: l1_project(p.R, p.v, p.box, p.floor), 1) / n
        v = np.maximum(problems.v, problems.floor)
        peer = np.median([seconds(lambda i=i, p=problems, v=v: linprog_l1(p, v[i]), 1) for i in range(few)])
        others = [np.abs(linprog_l1(problems, v[i]) @ problems.R - v[i]).sum() for i in range(few)]
        excess = ((result.objective[:few] - others) / result.scale[:few]).max()
        print(f"{s:4d} {m:4d} {peer / ours:8.1f} {excess:10.1e}   certified {result.certified.sum()} of {n}")


def bench_robustness(problems: int, project: Callable[..., Projection], batch: int = 100) -> None:
    """Generated problems of every family: how many are not certified, how many needed the slow paths."""
    print(f"{project.__name__}: {problems} generated problems")
    print("  family                 iterations: mean, max  fallbacks  uncertified  gap/scale  infeasible")
    total = np.zeros(3, dtype=int)
    each = -(-problems // len(FAMILIES) // batch)
    for number, family in enumerate(FAMILIES):
        results = []
        for seed in range(each):
            p = random_problems(family, np.random.default_rng([number, seed]), batch)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                results.append(project(p.R, p.v, p.box, p.floor))
        iterations = np.concatenate([r.iterations for r in results])
        missed = sum(int((~r.certified).sum()) for r in results)
        fallbacks = sum(r.fallbacks for r in results)
        gap = max((r.gap / r.scale).max() for r in results)
        worst = max(r.infeasibility.max() for r in results)
        total += len(iterations), fallbacks, missed
        print(
            f"  {family:22s} {iterations.mean():12.1f} {iterations.max():8d} {fallbacks:10d} {missed:12d}"
            f" {gap:10.1e} {worst:11.1e}"
        )
    print(f"  total {total[0]} problems, {total[1]} fallbacks, {total[2]} uncertified")


def main() -> None:
    """Run all three parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=1000, help="batch size of the timings")
    parser.add_argument("--few", type=int, default=10, help="peer problems per size")
    parser.add_argument("--problems", type=int, default=100_000, help="generated problems")
    parser.add_argument("--numpy", action="store_true", help="no compiled passes, whatever the size")
    arguments = parser.parse_args()
    kl_passes._WORTH_COMPILING = np.inf if arguments.numpy else 0
    bench_kl(arguments.n, arguments.few)
    bench_l1(max(20, arguments.n // 10), arguments.few)
    bench_robustness(arguments.problems, kl_project)
    bench_robustness(arguments.problems // 10, l1_project)


if __name__ == "__main__":
    main()
