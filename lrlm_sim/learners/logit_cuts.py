"""One cut of the logit-query learner: numerical rank, closed future sets, spanner rows.

At cut s the columns are words (f, z), grouped by context f: one query answers all z. F_s holds the words
of the contexts C_s, F̃_s those of C_s and of z∘f, f ∈ C_(s+1). With X = U Σ Vᵀ the pool's rows on F̃_s:

- *rank*: singular values above 2ξ(√rows + √columns) (ξ bounds the error of an answer) and above rounding;
- *closure*: the rows on F_s have the rank of the rows on F̃_s iff V restricted to F_s has full row rank.
  Contexts are added, each time the one that reaches furthest into the directions not yet covered, until
  the smallest singular value of that restriction is at least `_COVERED`: then solving on F_s instead
  of F̃_s costs a factor of at most 1/_COVERED in accuracy;
- *spanner*: rows that represent all others with |coefficients| ≤ C. Spanners do not change under
  invertible maps of the columns, so they are computed on U, which is perfectly conditioned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lrlm_sim.learners.logit_rows import Context
from lrlm_sim.spanners import barycentric_spanner

#: Relative size below which a singular value of exact float64 logits is rounding.
ROUNDING = 1e-10
#: Smallest singular value of V restricted to F_s that counts as covered.
_COVERED = 0.1
#: The same where only exactness is asked for.
_REACHED = 1e-6


@dataclass(frozen=True, eq=False)
class Cut:
    """One cut: the histories of its spanner and their rows.

    Attributes:
        position: s, the length of the histories.
        extended: contexts of F̃_s, the empty one first.
        histories: the spanner, (r, s).
        rows: centred logits of the spanner on F̃_s, (r, contexts, A); with noise or dropped directions,
            projected on the kept singular directions of the whole pool.
        rank: directions kept.
        found: numerical rank by the rule above.
        gap: first dropped over last kept singular value.
        pool: histories they were selected from.
        max_coefficient: of the pool over the spanner.
        resolved: whether the pool was large enough to tell the rank.
    """

    position: int
    extended: list[Context]
    histories: Int[np.ndarray, "r s"]
    rows: Float[np.ndarray, "r contexts vocab"]
    rank: int
    found: int
    gap: float
    pool: int
    max_coefficient: float
    resolved: bool

    def on(self, contexts: Sequence[Context]) -> Float[np.ndarray, "r words"]:
        """Spanner rows on the words of some contexts of F̃_s."""
        places = {context: i for i, context in enumerate(self.extended)}
        return self.rows[:, [places[context] for context in contexts]].reshape(len(self.rows), -1)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular value decomposition of a pool's rows and the rank read off it."""

    left: Float[np.ndarray, "rows k"]
    sigma: Float[np.ndarray, "k"]
    right: Float[np.ndarray, "k contexts vocab"]
    found: int
    resolvable: int

    @classmethod
    def of(cls, grid: Float[np.ndarray, "rows contexts vocab"], noise: float) -> Spectrum:
        """Decomposition and numerical rank, singular values > max(2ξ(√rows + √columns), 1e-10·σ_1)."""
        matrix = grid.reshape(len(grid), -1)
        left, sigma, right = np.linalg.svd(matrix, full_matrices=False)
        rounding = max(ROUNDING * sigma[0], 1e-300)
        floor = max(2 * noise * (np.sqrt(matrix.shape[0]) + np.sqrt(matrix.shape[1])), rounding)
        right = right.reshape(-1, *grid.shape[1:])
        return cls(left, sigma, right, int((sigma > floor).sum()), int((sigma > rounding).sum()))

    def kept(self, rank: int | None) -> int:
        """Directions to keep: the given rank as far as double precision tells it, else the rank found."""
        return max(1, self.found if rank is None else min(rank, self.resolvable))


def close(spectrum: Spectrum, rank: int, chosen: list[int], target: float = _COVERED) -> list[int]:
    """Contexts (columns of the spectrum) that cover the first `rank` directions, `chosen` among them."""
    basis = spectrum.right[:rank]
    chosen = list(chosen)
    if spectrum.resolvable == 0:
        return chosen
    while len(chosen) < basis.shape[1]:
        left, sigma, _ = np.linalg.svd(basis[:, chosen].reshape(rank, -1), full_matrices=True)
        covered = int((sigma >= target).sum())
        if covered == rank:
            break
        reach = np.square(np.einsum("ij,icz->jcz", left[:, covered:], basis)).sum(axis=(0, 2))
        reach[chosen] = -1.0
        chosen.append(int(reach.argmax()))
    return chosen


def span(
    position: int,
    histories: Int[np.ndarray, "n s"],
    extended: list[Context],
    grid: Float[np.ndarray, "n contexts vocab"],
    spectrum: Spectrum,
    rank: int,
    bound: float,
    projected: bool,
    resolved: bool,
) -> Cut:
    """Spanner of the pool's rows; `projected` replaces them by their projections on the kept directions.

    The projection averages noise over the pool, and makes the matrices of a chain consistent with
    one subspace where directions are dropped (measured: 0.5 to 0.95 of the error of unprojected rows).
    """
    spanner = barycentric_spanner(spectrum.left[:, :rank], bound)
    chosen = np.sort(spanner.indices)
    rows = grid[chosen]
    if projected:
        rows = np.einsum(
            "ij,jcz->icz", spectrum.left[chosen, :rank] * spectrum.sigma[:rank], spectrum.right[:rank]
        )
    sigma = spectrum.sigma
    gap = float(sigma[rank] / sigma[rank - 1]) if rank < len(sigma) and sigma[rank - 1] > 0 else 0.0
    return Cut(
        position=position,
        extended=extended,
        histories=histories[chosen],
        rows=rows,
        rank=rank,
        found=spectrum.found,
        gap=gap,
        pool=len(histories),
        max_coefficient=float(spanner.max_coefficient),
        resolved=resolved,
    )
