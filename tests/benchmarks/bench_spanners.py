"""Spanner search against the product it cannot avoid, and against the textbook search by determinants.

    OPENBLAS_NUM_THREADS=1 python tests/benchmarks/bench_spanners.py

All figures are ratios within this run. The unit is X @ M with X (n, d) and M (d, d): what one look at all
coefficients costs. Measurements alternate so that both sides see the same machine; on a shared
machine the least of several CPU times is the figure to read.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import numpy as np

from lrlm_sim.spanners import barycentric_spanner

#: (rows, columns, most products allowed)
SIZES = ((100_000, 64, 2.5), (20_000, 32, 6.0))
#: Rows of which the determinant version is timed; it is extrapolated to all of them.
TIMED_ROWS = 100


def least(tasks: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Least CPU time of each task, the tasks taking turns."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            began = time.process_time()
            task()
            times[name].append(time.process_time() - began)
    return {name: min(measured) for name, measured in times.items()}


def sets(n: int, d: int) -> Iterator[tuple[str, np.ndarray]]:
    """Point sets of increasing unkindness."""
    rng = np.random.default_rng(0)
    gaussian = rng.standard_normal((n, d))
    yield "gaussian", gaussian
    yield "gaussian, sorted by norm", gaussian[np.argsort(np.linalg.norm(gaussian, axis=1))]
    yield "heavy tails (t, 2 degrees)", rng.standard_t(2, (n, d))
    yield "sparse laws (Dirichlet .1)", rng.dirichlet(np.full(d, 0.1), n)
    yield "row scales 1e-8 to 1e8", gaussian * 10.0 ** rng.uniform(-8, 8, (n, 1))
    yield "rank d/4", gaussian[:, : d // 4] @ rng.standard_normal((d // 4, d))


def determinant_sweep(X: np.ndarray, basis: np.ndarray, rows: int) -> float:
    """CPU time of one textbook sweep: |det| of the basis with each row in each place, `rows` of n timed.

    The determinants are taken in batches, so that LAPACK and not the interpreter is timed.
    """
    began = time.process_time()
    largest = 0.0
    for place in range(len(basis)):
        exchanged = np.repeat(basis[None], rows, axis=0)
        exchanged[:, place] = X[:rows]
        largest = max(largest, np.abs(np.linalg.det(exchanged)).max())
    return (time.process_time() - began) * len(X) / rows


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    for n, d, allowed in SIZES:
        product = np.random.default_rng(1).standard_normal((d, d))
        print(f"\n{n} x {d}, in products (aim: at most {allowed})")
        for name, X in sets(n, d):
            found = barycentric_spanner(X)
            exchanged = barycentric_spanner(X, start="random", rng=0)
            seconds = least(
                {
                    "product": lambda X=X, product=product: X @ product,
                    "pivoted": lambda X=X: barycentric_spanner(X),
                    "random": lambda X=X: barycentric_spanner(X, start="random", rng=0),
                },
                repeats,
            )
            print(
                f"  {name:28s} pivoted {seconds['pivoted'] / seconds['product']:5.2f} ({found.swaps} swaps)"
                f"   random {seconds['random'] / seconds['product']:5.2f} ({exchanged.swaps} swaps)"
            )
    n, d, _ = SIZES[1]
    X = np.random.default_rng(0).standard_normal((n, d))
    fast = least({"spanner": lambda: barycentric_spanner(X)}, repeats)["spanner"]
    slow = determinant_sweep(X, X[barycentric_spanner(X).indices], TIMED_ROWS)
    print(
        f"\n{n} x {d}: one sweep of the determinant version (which needs at least one to stop) takes "
        f"{slow / fast:.0f} times as long, extrapolated from {TIMED_ROWS} of {n} rows"
    )


if __name__ == "__main__":
    main()
