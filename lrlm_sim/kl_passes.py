"""What the KL projection's interior-point method does between its matrix products, for a block of problems.

An iteration passes five times over the slacks u and multipliers z of a block (`kl_interior_point` has the
formulas) and factorises small matrices. Arrays are (rows, batch): every pass is contiguous over the batch.
`Passes` is numpy; `kl_kernels` has the same compiled, which reads and writes each number once per pass
where numpy does several times, and is what large batches get if numba is installed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

#: A pivot below this fraction of its diagonal entry is noise: its direction is left alone.
PIVOT_NOISE = 1e-16
DROPPED_PIVOT = 1e128
#: From this many numbers per array on, compiled passes repay the half second that importing numba takes.
_WORTH_COMPILING = 2**15


class Workspace:
    """Named scratch arrays, allocated once: fresh memory costs more than the arithmetic done in it."""

    def __init__(self) -> None:
        self._buffers: dict[str, np.ndarray] = {}

    def __call__(self, name: str, *shape: int) -> np.ndarray:
        """Uninitialised array of this shape; the same memory at every call with this name, if enough."""
        size = math.prod(shape)
        if name not in self._buffers or self._buffers[name].size < size:
            self._buffers[name] = np.empty(size)
        return self._buffers[name][:size].reshape(shape)


@dataclass(eq=False)
class Look:
    """What one look at an iterate tells: arrays over floors or slacks, and sums over them.

    Attributes:
        log_ratio: log(y/v).
        lag: w − log(y/v).
        chord: slope (√(1 + lag²/4) − lag/2)/y.
        weights: z/u, plus the chord where there is one.
        total: Σ z·u.
        entropy: Σ y·lag²/2, the entropy's share of the gap to lowest order.
        magnitude: Σ y·(1 + |log(y/v)|).
    """

    log_ratio: Float[np.ndarray, "m batch"]
    lag: Float[np.ndarray, "m batch"]
    chord: Float[np.ndarray, "m batch"]
    weights: Float[np.ndarray, "M batch"]
    total: Float[np.ndarray, "batch"]
    entropy: Float[np.ndarray, "batch"]
    magnitude: Float[np.ndarray, "batch"]


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the predictor du/u would do: Σ z·u·(du/u), Σ z·u·(du/u)², least and greatest du/u."""

    first: Float[np.ndarray, "batch"]
    second: Float[np.ndarray, "batch"]
    least: Float[np.ndarray, "batch"]
    greatest: Float[np.ndarray, "batch"]


class Passes:
    """The passes in numpy. Results may live in scratch memory that the next iteration overwrites."""

    def __init__(self) -> None:
        self.space = Workspace()

    def look(
        self,
        floors: Float[np.ndarray, "m 1"],
        slack: Float[np.ndarray, "M batch"],
        dual: Float[np.ndarray, "M batch"],
        tilt: Float[np.ndarray, "m batch"],
        log_targets: Float[np.ndarray, "m batch"],
    ) -> Look:
        """The `Look` at multipliers and slacks, y = floors + the first m slacks."""
        m, (count, size), space = len(floors), slack.shape, self.space
        y = np.add(floors, slack[:m], out=space("y", m, size))
        log_ratio = np.log(y, out=space("log_ratio", m, size))
        log_ratio -= log_targets
        lag = np.subtract(tilt, log_ratio, out=space("lag", m, size))
        half = np.multiply(lag, 0.5, out=space("half", m, size))
        chord = np.multiply(half, half, out=space("chord", m, size))
        entropy = 2 * np.einsum("jb,jb->b", y, chord)
        chord += 1
        np.sqrt(chord, out=chord)
        chord -= half
        chord /= y
        weights = np.divide(dual, slack, out=space("weights", count, size))
        weights[:m] += chord
        size_of_log = np.abs(log_ratio, out=half)
        magnitude = y.sum(axis=0) + np.einsum("jb,jb->b", y, size_of_log)
        return Look(log_ratio, lag, chord, weights, np.einsum("jb,jb->b", slack, dual), entropy, magnitude)

    def predict(
        self,
        relative: Float[np.ndarray, "M batch"],
        slack: Float[np.ndarray, "M batch"],
        dual: Float[np.ndarray, "M batch"],
    ) -> Prediction:
        """Divide the predictor's du, given in `relative`, by u in place, and say what it would do."""
        relative /= slack
        change = np.multiply(slack, dual, out=self.space("change", *slack.shape))
        change *= relative
        second = np.einsum("jb,jb->b", change, relative)
        return Prediction(change.sum(axis=0), second, relative.min(axis=0), relative.max(axis=0))

    def correct(
        self,
        relative: Float[np.ndarray, "M batch"],
        aim: Float[np.ndarray, "batch"],
        slack: Float[np.ndarray, "M batch"],
        dual: Float[np.ndarray, "M batch"],
        log_ratio: Float[np.ndarray, "m batch"],
    ) -> Float[np.ndarray, "M batch"]:
        """Turn du/u into the corrector's q = 1 + dz/z + du/u, in place; its pull log(y/v) − z·q.

        From (u + du)(z + dz) = aim with the predictor's du·dz, dz/z = −1 − du/u.
        """
        m, pull = len(log_ratio), self.space("pull", *slack.shape)
        np.multiply(slack, dual, out=pull)
        np.divide(aim, pull, out=pull)
        pull += relative
        relative *= relative
        relative += pull
        np.multiply(dual, relative, out=pull)
        np.subtract(log_ratio, pull[:m], out=pull[:m])
        np.negative(pull[m:], out=pull[m:])
        return pull

    def limit(
        self,
        moved: Float[np.ndarray, "M batch"],
        slack: Float[np.ndarray, "M batch"],
        wanted: Float[np.ndarray, "M batch"],
    ) -> tuple[Float[np.ndarray, "batch"], Float[np.ndarray, "batch"]]:
        """Take du/u, du = `moved`, from `wanted`, in place: 1 + dz/z is left; least of both."""
        relative = np.divide(moved, slack, out=self.space("change", *slack.shape))
        wanted -= relative
        return relative.min(axis=0), wanted.min(axis=0)

    def move(
        self,
        look: Look,
        moved: Float[np.ndarray, "M batch"],
        wanted: Float[np.ndarray, "M batch"],
        steps: tuple[Float[np.ndarray, "batch"], Float[np.ndarray, "batch"]],
        slack: Float[np.ndarray, "M batch"],
        dual: Float[np.ndarray, "M batch"],
        tilt: Float[np.ndarray, "m batch"],
    ) -> None:
        """Step in place: u += du by the primal one of `steps`; z += dz, w += chord·dy − lag by the dual one.

        What `moved`, `wanted` and the look hold afterwards is of no use.
        """
        primal, dual_step = steps
        change = look.chord
        change *= moved[: len(change)]
        change -= look.lag
        change *= dual_step
        tilt += change
        moved *= primal
        slack += moved
        wanted *= dual_step
        wanted += 1 - dual_step
        dual *= wanted

    def cholesky(self, pairs: Float[np.ndarray, "pairs batch"]) -> np.ndarray:
        """Factors, for `cholesky_solve`, of symmetric matrices given as the rows of their lower triangles.

        A pivot that is noise is replaced by 1e128, which removes its direction from the solution:
        semidefinite matrices are fine. (Column by column, each from all columns to its left: the triangle is
        written once.)
        """
        k = math.isqrt(2 * len(pairs))
        factors = self.space("factors", k, k, pairs.shape[1])
        factors.fill(0.0)
        factors[np.tril_indices(k)] = pairs
        noise = factors[np.arange(k), np.arange(k)] * PIVOT_NOISE
        scratch = self.space("scratch", k, pairs.shape[1])
        for j in range(k):
            column = factors[j:, j]
            if j:
                column -= np.einsum("rib,ib->rb", factors[j:, :j], factors[j, :j], out=scratch[j:])
            column[0] = 1 / np.sqrt(np.where(column[0] > noise[j], column[0], DROPPED_PIVOT))
            column[1:] *= column[0]
        return factors

    def cholesky_solve(self, factors: np.ndarray, x: Float[np.ndarray, "k batch"]) -> None:
        """Solve for right-hand sides given in `x`, in place. (The factors' diagonals are inverted.)"""
        k = len(x)
        for j in range(k):
            if j:
                x[j] -= np.einsum("ib,ib->b", factors[j, :j], x[:j])
            x[j] *= factors[j, j]
        for j in range(k - 1, -1, -1):
            if j + 1 < k:
                x[j] -= np.einsum("ib,ib->b", factors[j + 1 :, j], x[j + 1 :])
            x[j] *= factors[j, j]


def fastest_passes(numbers: int) -> Passes:
    """Passes for arrays of so many numbers: compiled where that pays and numba is installed."""
    if numbers >= _WORTH_COMPILING:
        try:
            from lrlm_sim.kl_kernels import CompiledPasses
        except ImportError:
            return Passes()
        return CompiledPasses()
    return Passes()
