"""Ratios of the spectrum routines to their floors: python -m tests.benchmarks.bench_spectra

The floor of a spectrum is one BLAS dsyrk of the whole matrix in float64: n² flops per column. Timings
are process CPU time, the best of a few interleaved repetitions; only ratios are printed. `--full` takes
2000 × 100000.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from scipy.linalg.blas import dsyrk

from lrlm_sim import matrices, spectra
from oracles import HiddenMarkovModel


def best_times(repeats: int, **calls: Callable[[], object]) -> dict[str, float]:
    """Least CPU time of each call, repetitions interleaved so that load hits all alike."""
    best = dict.fromkeys(calls, np.inf)
    for _ in range(repeats):
        for name, call in calls.items():
            begin = time.process_time()
            call()
            best[name] = min(best[name], time.process_time() - begin)
    return best


def power_law(rows: int, columns: int, alpha: float) -> np.ndarray:
    """Float32 matrix with singular values about i^−alpha (random directions)."""
    rng = np.random.default_rng(0)
    left = np.linalg.qr(rng.standard_normal((rows, rows)))[0] * np.arange(1.0, rows + 1) ** -alpha
    out = np.empty((rows, columns), np.float32)
    for low in range(0, columns, 4096):
        high = min(low + 4096, columns)
        out[:, low:high] = left @ rng.standard_normal((rows, high - low))
    return out


def bench_singular_values(rows: int, columns: int, repeats: int) -> None:
    """The Gram and triangle routes from float32 against dsyrk in float64."""
    single = power_law(rows, columns, 0.8)
    double = single.astype(np.float64)
    gram = np.zeros((rows, rows), order="F")
    best = best_times(
        repeats,
        floor=lambda: dsyrk(1.0, double.T, c=gram, trans=1, lower=1, overwrite_c=1),
        gram=lambda: spectra.singular_values(single, "gram"),
        svd=lambda: spectra.singular_values(single, "svd"),
    )
    print(f"singular values of {rows} × {columns} float32, α = 0.8")
    print(f"  gram / dsyrk floor          {best['gram'] / best['floor']:.2f}   (target ≤ 1.4)")
    print(f"  svd  / dsyrk floor          {best['svd'] / best['floor']:.2f}")
    exact = spectra.singular_values(single, "svd")
    first = min(500, rows // 2)
    error = np.abs(spectra.singular_values(single, "gram") / exact - 1)
    print(f"  gram against svd, σ_1..σ_{first}: {error[:first].max():.1e}   all: {error.max():.1e}")


def bench_hidden_states(histories: int, futures: int, width: int, vocab: int, repeats: int) -> None:
    """The width-column route against the Gram matrix of all logits, formed and already formed."""
    rng = np.random.default_rng(1)
    hidden = rng.standard_normal((histories, futures, width)).astype(np.float32)
    unembedding = rng.standard_normal((vocab, width)).astype(np.float32)

    def from_logits() -> np.ndarray:
        centred = unembedding - unembedding.mean(axis=0)
        return spectra.singular_values(hidden[:, low : low + 8] @ centred.T for low in range(0, futures, 8))

    centred = unembedding - unembedding.mean(axis=0)
    logits = hidden @ centred.T
    best = best_times(
        repeats,
        gram=lambda: spectra.singular_values(logits, "gram"),
        hidden=lambda: spectra.hidden_state_singular_values(hidden, unembedding, "gram"),
        logits=from_logits,
    )
    print(f"all-token spectrum, {histories} × {futures} cells, width {width}, {vocab} tokens")
    print(f"  logits formed, Gram / from hidden states  {best['logits'] / best['hidden']:.1f}   (target ≥ 4)")
    print(f"  Gram of given logits / from hidden states {best['gram'] / best['hidden']:.1f}   (target ≥ 4)")


def bench_low_rank_kl(histories: int, futures: int, tokens: int, repeats: int) -> None:
    """One pass for all ranks against one truncated SVD product and two softmaxes per rank."""
    L = power_law(histories, futures * tokens, 0.6).reshape(histories, futures, tokens) * 30
    ranks = np.unique(np.geomspace(1, histories, 20).astype(int))

    def softmax(x: np.ndarray) -> np.ndarray:
        weights = np.exp(x - x.max(axis=2, keepdims=True))
        return weights / weights.sum(axis=2, keepdims=True)

    def naive() -> list[float]:
        u, s, v = np.linalg.svd(L.astype(np.float64).reshape(histories, -1), full_matrices=False)
        out = []
        for rank in ranks:
            p, q = softmax(L), softmax(((u[:, :rank] * s[:rank]) @ v[:rank]).reshape(L.shape))
            out.append(float((p * np.log(p / q)).sum(axis=2).mean()))
        return out

    best = best_times(repeats, ours=lambda: spectra.low_rank_kl(L, ranks), naive=naive)
    print(f"average KL at {len(ranks)} ranks, {histories} × {futures} × {tokens}")
    print(f"  one SVD and product per rank / one pass  {best['naive'] / best['ours']:.1f}")


def bench_ranks(horizon: int, repeats: int) -> None:
    """Both ranks at all cuts from one enumeration against scoring each cut's matrix on its own."""
    oracle = HiddenMarkovModel.random(3, 2, horizon, 0)

    def per_cut() -> int:
        strings = np.indices((2,) * horizon).reshape(horizon, -1).T
        ranks = []
        for cut in range(horizon + 1):
            matrix = np.exp(oracle.score(strings)).reshape(2**cut, -1)
            ranks.append(np.linalg.matrix_rank(matrix, tol=1e-13 * np.linalg.norm(matrix, 2)))
        return max(ranks)

    best = best_times(repeats, ours=lambda: matrices.rank_profile(oracle, "probability"), per_cut=per_cut)
    print(f"probability ranks at all cuts, A = 2, T = {horizon}")
    print(f"  score and SVD per cut / one enumeration  {best['per_cut'] / best['ours']:.1f}")


def main() -> None:
    """Print all ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="2000 × 100000 (2.5 GB, minutes)")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    rows, columns = (2000, 100_000) if arguments.full else (1000, 50_000)
    bench_singular_values(rows, columns, arguments.repeats)
    bench_hidden_states(300, 64, 64, 4096, arguments.repeats)
    bench_hidden_states(200, 64, 160, 1024, arguments.repeats)
    bench_low_rank_kl(200, 200, 50, arguments.repeats)
    bench_ranks(14, arguments.repeats)


if __name__ == "__main__":
    main()
