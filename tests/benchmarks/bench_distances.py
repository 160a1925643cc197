"""Ratios of the exact distances to enumeration: python -m tests.benchmarks.bench_distances

Timings are CPU times (other processes do not count), the best of a few interleaved repetitions; set
OPENBLAS_NUM_THREADS=1. Only ratios and operation counts are printed. Per-string enumeration scores
`SUBSET` strings one by one in Python and is extrapolated linearly to all A^T strings; everything else
is timed in full.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable

import numpy as np
from scipy.linalg import get_blas_funcs

from lrlm_sim import confidence, distances
from oracles import ISAN, HiddenMarkovModel, Oracle

SUBSET = 300


def best_times(repeats: int, **calls: Callable[[], object]) -> dict[str, float]:
    """Shortest CPU time of each call, repetitions interleaved so that load hits all alike."""
    best = dict.fromkeys(calls, np.inf)
    for _ in range(repeats):
        for name, call in calls.items():
            begin = time.process_time()
            call()
            best[name] = min(best[name], time.process_time() - begin)
    return best


def all_strings(vocab: int, length: int) -> np.ndarray:
    """All strings in lexicographic order, shape (A^T, T)."""
    return np.array(list(itertools.product(range(vocab), repeat=length)), dtype=np.int64)


def one_by_one(p: Oracle, q: Oracle, strings: np.ndarray) -> float:
    """Σ |P − Q| over the given strings, one `score` call per model and string."""
    rows = (string[None, :] for string in strings)
    return sum(abs(np.exp(p.score(x)[0]) - np.exp(q.score(x)[0])) for x in rows)


def unshared(p: Oracle, q: Oracle, strings: np.ndarray) -> float:
    """TV by the generic batched scorer: every string is read from its first token."""
    return float(np.abs(np.exp(Oracle.score(p, strings)) - np.exp(Oracle.score(q, strings))).sum() / 2)


def bench_linear(states: int, vocab: int, horizon: int, repeats: int, target: str) -> None:
    """Two hidden Markov models: matrix product, tree, per-string enumeration, and the bare product."""
    p, q = (HiddenMarkovModel.random(states, vocab, horizon, seed) for seed in (0, 1))
    strings = all_strings(vocab, horizon)
    subset = strings[np.random.default_rng(0).choice(len(strings), SUBSET, replace=False)]
    side = vocab ** (horizon // 2)
    heads, tails = np.random.default_rng(1).random((2, side, 2 * states))
    product, asum = np.empty((side, side)), get_blas_funcs("asum", dtype=np.float64)

    def floor() -> float:
        np.matmul(heads, tails.T, out=product)
        return asum(product.ravel())

    best = best_times(
        repeats,
        products=lambda: distances.total_variation(p, q),
        floor=floor,
        tree=lambda: distances.total_variation(p, q, method="tree"),
        strings=lambda: one_by_one(p, q, subset),
    )
    per_string = best["strings"] * len(strings) / SUBSET
    flops = 2 * 2 * states * len(strings)
    print(f"two hidden Markov models, S = {states}, A = {vocab}, T = {horizon}: {len(strings)} strings")
    print(f"  per-string enumeration / products   {per_string / best['products']:,.0f}   ({target})")
    print(f"  per-string enumeration / tree       {per_string / best['tree']:,.0f}")
    print(
        f"  products / bare product and sum     {best['products'] / best['floor']:.2f}   ({flops:.3g} flops)"
    )
    error = distances.total_variation(p, q) - distances.total_variation(p, q, method="tree")
    print(f"  |products − tree|                   {abs(error):.1e}")


def bench_tree(name: str, p: Oracle, q: Oracle) -> None:
    """Shared prefixes against reading every string from the start, both batched."""
    vocab, horizon = p.vocab_size, p.horizon
    assert horizon is not None
    strings = all_strings(vocab, horizon)
    shared_rows = sum(vocab**t for t in range(horizon))
    best = best_times(
        2,
        tree=lambda: distances.total_variation(p, q, method="tree"),
        unshared=lambda: unshared(p, q, strings),
    )
    error = abs(distances.total_variation(p, q, method="tree") - unshared(p, q, strings))
    print(f"two {name}, A = {vocab}, T = {horizon}")
    print(f"  unshared / tree                     {best['unshared'] / best['tree']:.1f}   (target ≥ 25)")
    print(f"  state rows, unshared / tree         {horizon * len(strings) / shared_rows:.1f}")
    print(f"  difference                          {error:.1e}")


def bench_betting(n: int, repeats: int) -> None:
    """The betting interval in passes over the data (one pass: the logarithm of every sample)."""
    values = np.random.default_rng(0).random(n) * 1e-2
    best = best_times(
        repeats, interval=lambda: confidence.mean_interval(values), one_pass=lambda: np.log1p(values)
    )
    betting, bernstein = (confidence.mean_interval(values, method=m) for m in ("betting", "bernstein"))
    print(f"betting interval of {n} samples (mean .005)")
    passes = best["interval"] / best["one_pass"]
    print(f"  interval / one log1p pass           {passes:.0f}   (84 capital passes)")
    print(f"  width, empirical Bernstein / betting {bernstein.width / betting.width:.2f}")


def main() -> None:
    """Print all ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    bench_linear(8, 4, 10, repeats, "target ≥ 20,000")
    bench_linear(64, 4, 10, repeats, "8 times the operations per string")
    bench_tree("ISANs of width 8", ISAN.random(8, 4, 10, 0), ISAN.random(8, 4, 10, 1))
    bench_tree(
        "hidden Markov models, S = 8 (generic scorer)",
        HiddenMarkovModel.random(8, 4, 10, 0),
        HiddenMarkovModel.random(8, 4, 10, 1),
    )
    bench_betting(10**6, repeats)


if __name__ == "__main__":
    main()
