"""Batched primal–dual interior-point method for KL projections onto K = {Σα = 1, |α| ≤ box, Rᵀα ≥ floor}.

For each target v of a batch, with y = Rᵀα: minimise Σ_j [ y_j log(y_j/v_j) − y_j + v_j ] over K.

* α = center + Zβ with 1ᵀZ = 0 (`graded_basis`) removes the equation Σα = 1; every iterate is primal feasible.
* All inequalities are one list of slacks u = Aβ + u₀ ≥ 0, A = [RᵀZ; Z; −Z] (floors, lower and upper sides
  of the box), with multipliers z ≥ 0.
* The entropy is treated primal–dually as well. Its gradient log(y/v) gets a variable w of its own (the
  *tilt*), so that dual feasibility, (RᵀZ)ᵀw = Aᵀz, is linear and primal and dual steps may differ.
  The pair (y, w) is linearised by a slope close to that of the chord through (y, log(y/v)) and (v e^w, w),
  which is x/(e^x − 1)/y with the lag x = w − log(y/v): (√(1 + x²/4) − x/2)/y agrees to first order in x, is
  |x|/y for x → −∞, and for x → ∞ falls like 1/x instead of x e^−x, which makes bold tilts safe. At
  convergence it is the tangent 1/y. (Without w, coordinates that must fall to the floor hold the step
  length down for tens of iterations; the chord saves another tenth to a third against the tangent.)
* Mehrotra's predictor–corrector: one factorisation of Aᵀ diag(z/u + chord) A and two solves per iteration.
  Problems that are finished leave the batch. Per problem and iteration: m·s²/2 multiply–adds for the normal
  matrix (one matrix product for the batch), 4·m·s for the solves, and what `kl_passes` does with the
  numbers in between.

Arrays carry the batch last. Nothing here is trusted: `kl_projection` certifies every answer from scratch.

Sources: Mehrotra, SIAM J. Optim. 2 (1992); the problem is the projection step of arXiv 2411.07536.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

from lrlm_sim.kl_passes import Look, Passes, Prediction
from lrlm_sim.newton_systems import NewtonSystem, NormalEquations, OrthogonalFactors
from lrlm_sim.projection_polytope import Polytope

#: A problem is finished when the estimated gap is below this fraction of its scale …
TARGET_GAP = 1e-11
#: … and the entropy's share below this one. First-order inequalities (Pythagoras) see its square root: so
#: they hold to about 1e-10 of the scale, at the price of less than one more iteration.
TARGET_ENTROPY_GAP = 1e-21
#: Complementarity is aimed at this fraction of the target gap: smaller products only cost digits.
_LAST_CENTERING = 0.5
#: First iterate: this fraction of the way from the center to the boundary, if the guess lies beyond.
_TOWARDS_GUESS = 0.98
#: First multipliers: products z·u at this fraction of the average of u(1 + |log(y/v)|).
_FIRST_CENTERING = 0.7
#: A slack that vanishes on all of K (K has no interior) is opened by this fraction of its constraint's scale.
_OPENING = 1e-13
#: A full step may come this close to a boundary. (Full steps save a third of an easy problem's iterations.)
_MARGIN = 1e-8
#: Finished problems are removed when they make up this fraction of the batch.
_COMPACT_AT = 0.125


@dataclass(frozen=True)
class Path:
    """How the method walks: linear algebra, fraction of the way to the boundary, least σ, iterations."""

    system: Callable[[np.ndarray, Passes], NewtonSystem]
    to_boundary: float = 0.998
    least_centering: float = 0.0
    equal_steps: bool = False
    iterations: int = 60


#: Tried in this order; the later ones are slower and safer.
PATHS = (
    Path(NormalEquations),
    Path(OrthogonalFactors, iterations=100),
    Path(OrthogonalFactors, to_boundary=0.9, least_centering=0.3, equal_steps=True, iterations=300),
)


@dataclass(frozen=True, eq=False)
class Solution:
    """Last iterates: α (s, batch), tilt w and floor multipliers z (m, batch), iterations (batch,)."""

    alpha: Float[np.ndarray, "s batch"]
    tilt: Float[np.ndarray, "m batch"]
    multipliers: Float[np.ndarray, "m batch"]
    iterations: Int[np.ndarray, "batch"]


@dataclass(eq=False)
class _Iterate:
    """Where the problems of a block are; `position` is their place in the block."""

    position: Int[np.ndarray, "batch"]
    log_targets: Float[np.ndarray, "m batch"]
    beta: Float[np.ndarray, "k batch"]
    slack: Float[np.ndarray, "M batch"]
    dual: Float[np.ndarray, "M batch"]
    tilt: Float[np.ndarray, "m batch"]


_Block = TypeVar("_Block", _Iterate, Look)


class InteriorPoint:
    """The method for one polytope (and the `graded_basis` of its rows); `solve` takes blocks of targets."""

    def __init__(
        self, polytope: Polytope, directions: tuple[np.ndarray, np.ndarray], path: Path, passes: Passes
    ) -> None:
        rows, center, box = polytope.rows, polytope.center, polytope.box
        self._path, self._box, self._mass, self._center = path, box, polytope.mass, center
        self._basis, product = directions
        self._m = rows.shape[1]
        self._passes = passes
        self._system = path.system(np.concatenate([product, self._basis, -self._basis]), passes)
        reached = np.maximum(rows.T @ center, polytope.floor)
        opening = np.minimum(_OPENING * polytope.column_scale, polytope.floor / 2)
        slack = np.maximum(reached - polytope.floor, opening)
        sides = np.maximum([box + center, box - center], _OPENING * box)
        self._floors = (reached - slack)[:, None]
        self._first_slack = np.concatenate([slack, *sides])

    def solve(self, targets: Float[np.ndarray, "m batch"], guesses: Float[np.ndarray, "s batch"]) -> Solution:
        """Project the (positive) targets, one per column, starting from the center towards the guesses."""
        m, size = targets.shape
        answer = Solution(
            np.full((len(self._center), size), np.nan),
            np.zeros((m, size)),
            np.zeros((m, size)),
            np.zeros(size, int),
        )
        with np.errstate(all="ignore"):  # a problem that breaks down ends as NaN: its certificate tells
            current = self._first(targets, self._basis.T @ (guesses - self._center[:, None]))
            for iteration in range(self._path.iterations + 1):
                look = self._passes.look(
                    self._floors, current.slack, current.dual, current.tilt, current.log_targets
                )
                finished = self._finished(current, look)
                stop = finished | (iteration == self._path.iterations)
                self._record(answer, current, stop, iteration)
                if stop.all():
                    break
                if stop.mean() >= _COMPACT_AT:
                    current, look = _take(current, ~stop), _take(look, ~stop)
                self._advance(current, look)
        return answer

    def _first(self, targets: np.ndarray, beta: np.ndarray) -> _Iterate:
        """From the center towards the guess, short of the boundary; products z·u all equal; tilt halfway
        between log(y/v) and the constant for which v e^w has y's mass.
        """
        size = targets.shape[1]
        slack = self._system.matrix @ beta
        slack /= self._first_slack[:, None]
        step = np.minimum(1, _TOWARDS_GUESS / np.maximum(-slack.min(axis=0), 1e-30))
        slack *= step
        slack += 1
        slack *= self._first_slack[:, None]
        y = self._floors + slack[: self._m]
        log_targets = np.log(targets)
        log_ratio = np.log(y) - log_targets
        tilt = (log_ratio + np.log(y.sum(axis=0) / targets.sum(axis=0))) / 2
        weight = 1 + np.abs(log_ratio)
        centering = _FIRST_CENTERING / self._m * np.einsum("jb,jb->b", slack[: self._m], weight)
        return _Iterate(np.arange(size), log_targets, beta * step, slack, centering / slack, tilt)

    def _record(self, answer: Solution, current: _Iterate, stop: np.ndarray, iteration: int) -> None:
        """Store the problems in `stop` that were not stored before."""
        new = stop & (answer.iterations[current.position] == 0)
        if not new.any():
            return
        where = current.position[new]
        answer.alpha[:, where] = self._center[:, None] + self._basis @ current.beta[:, new]
        answer.tilt[:, where] = current.tilt[:, new]
        answer.multipliers[:, where] = current.dual[: self._m, new]
        answer.iterations[where] = max(iteration, 1)

    def _finished(self, current: _Iterate, look: Look) -> Bool[np.ndarray, "batch"]:
        """Problems whose estimated gap is small enough, the dual residual's share counted last."""
        gap, scale = look.total + look.entropy, np.maximum(look.magnitude, self._mass)
        finished = (gap <= TARGET_GAP * scale) & (look.entropy <= TARGET_ENTROPY_GAP * scale)
        if finished.any():
            gap[finished] += self._residual_gap(_take(current, finished))
            finished &= gap <= TARGET_GAP * scale
        return finished

    def _residual_gap(self, current: _Iterate) -> Float[np.ndarray, "batch"]:
        """Σ_i box·|r_i| − r_i α_i: what the dual residual r = Z(Aᵀz − (RᵀZ)ᵀw) costs the gap."""
        m, transpose = self._m, self._system.transpose
        pull = transpose[:, :m] @ (current.dual[:m] - current.tilt) + transpose[:, m:] @ current.dual[m:]
        residual = self._basis @ pull
        alpha = self._center[:, None] + self._basis @ current.beta
        return (self._box * np.abs(residual) - residual * alpha).sum(axis=0)

    def _advance(self, current: _Iterate, look: Look) -> None:
        """One predictor–corrector step, in place."""
        path, system, passes = self._path, self._system, self._passes
        slack, dual = current.slack, current.dual
        system.factor(look.weights)
        direction = system.solve(look.log_ratio)
        wanted = np.matmul(system.matrix, direction, out=passes.space("wanted", *slack.shape))
        aim = self._centering(look, passes.predict(wanted, slack, dual))
        pull = passes.correct(wanted, aim, slack, dual, look.log_ratio)
        beta = system.solve(pull)
        moved = np.matmul(system.matrix, beta, out=pull)
        least, least_wanted = passes.limit(moved, slack, wanted)
        primal_step = _step(path.to_boundary, least)
        dual_step = _step(path.to_boundary, least_wanted - 1)
        if path.equal_steps:
            primal_step = dual_step = np.minimum(primal_step, dual_step)
        current.beta += primal_step * beta
        passes.move(look, moved, wanted, (primal_step, dual_step), slack, dual, current.tilt)

    def _centering(self, look: Look, predicted: Prediction) -> Float[np.ndarray, "batch"]:
        """Mehrotra's σμ from the predictor, dz/z = −1 − du/u."""
        primal = 1 / np.maximum(1, -predicted.least)
        dual = 1 / np.maximum(1, 1 + predicted.greatest)
        after = (1 - dual) * look.total + (primal * (1 - dual) - dual) * predicted.first
        after -= primal * dual * predicted.second
        after /= look.total
        sigma = np.clip(after * after * after, self._path.least_centering, 1)
        least = _LAST_CENTERING * TARGET_GAP * np.maximum(look.magnitude, self._mass)
        return np.maximum(sigma * look.total, least) / len(self._first_slack)


def _take(arrays: _Block, keep: np.ndarray) -> _Block:
    """Some problems of a block: the fields of `arrays` all have the batch last.

    (`compress` keeps the batch contiguous; an index on the last axis would put it first in memory.)
    """
    fields = (getattr(arrays, field.name) for field in dataclasses.fields(arrays))
    return type(arrays)(*(field.compress(keep, axis=-1) for field in fields))


def _step(to_boundary: float, smallest: np.ndarray) -> Float[np.ndarray, "batch"]:
    """A full step where it stays inside (1 + smallest > 0), else `to_boundary` of the way to the boundary."""
    return np.where(smallest > -1 + _MARGIN, 1.0, to_boundary / np.maximum(-smallest, 1 - _MARGIN))
