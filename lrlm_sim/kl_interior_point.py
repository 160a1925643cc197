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
  matrix (one matrix product for the batch), 4·m·s for the solves, about 40 elementwise passes over m
  numbers.

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

from lrlm_sim.newton_systems import NewtonSystem, NormalEquations, OrthogonalFactors, Workspace
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

    system: Callable[[np.ndarray], NewtonSystem]
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


@dataclass(eq=False)
class _Measure:
    """What one look at an iterate tells.

    `log_ratio` log(y/v), `lag` w − log(y/v), the chord's slope, the products z·u and their sum, the scale.
    """

    log_ratio: Float[np.ndarray, "m batch"]
    lag: Float[np.ndarray, "m batch"]
    chord: Float[np.ndarray, "m batch"]
    products: Float[np.ndarray, "M batch"]
    total: Float[np.ndarray, "batch"]
    scale: Float[np.ndarray, "batch"]
    finished: Bool[np.ndarray, "batch"]


_Block = TypeVar("_Block", _Iterate, _Measure)


class InteriorPoint:
    """The method for one polytope (and the `graded_basis` of its rows); `solve` takes blocks of targets."""

    def __init__(self, polytope: Polytope, directions: tuple[np.ndarray, np.ndarray], path: Path) -> None:
        rows, center, box = polytope.rows, polytope.center, polytope.box
        self._path, self._box, self._mass, self._center = path, box, polytope.mass, center
        self._basis, product = directions
        self._m = rows.shape[1]
        self._system = path.system(np.concatenate([product, self._basis, -self._basis]))
        reached = np.maximum(rows.T @ center, polytope.floor)
        opening = np.minimum(_OPENING * polytope.column_scale, polytope.floor / 2)
        slack = np.maximum(reached - polytope.floor, opening)
        sides = np.maximum([box + center, box - center], _OPENING * box)
        self._floors = (reached - slack)[:, None]
        self._first_slack = np.concatenate([slack, *sides])
        self._space = Workspace()

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
                measure = self._measure(current)
                last = iteration == self._path.iterations
                stop = measure.finished | last
                self._record(answer, current, stop, iteration)
                if stop.all():
                    break
                if stop.mean() >= _COMPACT_AT:
                    current, measure = _take(current, ~stop), _take(measure, ~stop)
                self._advance(current, measure)
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

    def _measure(self, current: _Iterate) -> _Measure:
        m, (count, size), space = self._m, current.slack.shape, self._space
        y = np.add(self._floors, current.slack[:m], out=space("y", m, size))
        log_ratio = np.log(y, out=space("log_ratio", m, size))
        log_ratio -= current.log_targets
        lag = np.subtract(current.tilt, log_ratio, out=space("lag", m, size))
        half = np.multiply(lag, 0.5, out=space("half", m, size))
        chord = np.multiply(half, half, out=space("chord", m, size))
        entropy_gap = 2 * np.einsum("jb,jb->b", y, chord)  # to lowest order in the lag
        chord += 1
        np.sqrt(chord, out=chord)
        chord -= half
        chord /= y
        products = np.multiply(current.slack, current.dual, out=space("products", count, size))
        total = products.sum(axis=0)
        magnitude = np.abs(log_ratio, out=half)
        scale = np.maximum(y.sum(axis=0) + np.einsum("jb,jb->b", y, magnitude), self._mass)
        finished = total + entropy_gap <= TARGET_GAP * scale
        if finished.any():
            finished &= total + entropy_gap + self._residual_gap(current) <= TARGET_GAP * scale
            finished &= entropy_gap <= TARGET_ENTROPY_GAP * scale
        return _Measure(log_ratio, lag, chord, products, total, scale, finished)

    def _residual_gap(self, current: _Iterate) -> Float[np.ndarray, "batch"]:
        """Σ_i box·|r_i| − r_i α_i: what the dual residual r = Z(Aᵀz − (RᵀZ)ᵀw) costs the gap."""
        m, space = self._m, self._space
        pull = space("pull", *current.slack.shape)
        np.subtract(current.dual[:m], current.tilt, out=pull[:m])
        pull[m:] = current.dual[m:]
        residual = self._basis @ (self._system.transpose @ pull)
        alpha = self._center[:, None] + self._basis @ current.beta
        return (self._box * np.abs(residual) - residual * alpha).sum(axis=0)

    def _advance(self, current: _Iterate, measure: _Measure) -> None:
        """One predictor–corrector step, in place."""
        m, (count, size), space = self._m, current.slack.shape, self._space
        path, system = self._path, self._system
        weights = np.divide(current.dual, current.slack, out=space("weights", count, size))
        weights[:m] += measure.chord
        system.factor(weights)
        relative = np.matmul(
            system.matrix, system.solve(measure.log_ratio), out=space("relative", count, size)
        )
        relative /= current.slack
        aim = self._centering(measure, relative, weights)
        # (u + du)(z + dz) = aim, with the predictor's du·dz: dz/z = wanted − 1 − du/u
        wanted = np.add(relative, 1.0, out=space("wanted", count, size))
        wanted *= relative
        wanted += np.divide(aim, measure.products, out=weights)
        pull = np.multiply(current.dual, wanted, out=weights)
        np.subtract(measure.log_ratio, pull[:m], out=pull[:m])
        np.negative(pull[m:], out=pull[m:])
        beta = system.solve(pull)
        moved = np.matmul(system.matrix, beta, out=weights)
        np.divide(moved, current.slack, out=relative)
        wanted -= relative
        primal_step = _step(path.to_boundary, relative.min(axis=0))
        dual_step = _step(path.to_boundary, wanted.min(axis=0) - 1)
        if path.equal_steps:
            primal_step = dual_step = np.minimum(primal_step, dual_step)
        tilt = measure.chord
        tilt *= moved[:m]
        tilt -= measure.lag
        tilt *= dual_step
        current.tilt += tilt
        current.beta += primal_step * beta
        moved *= primal_step
        current.slack += moved
        wanted *= dual_step
        wanted += 1 - dual_step
        current.dual *= wanted

    def _centering(
        self, measure: _Measure, relative: np.ndarray, scratch: np.ndarray
    ) -> Float[np.ndarray, "batch"]:
        """Mehrotra's σμ from the predictor, relative = du/u, hence dz/z = −1 − du/u."""
        count = len(relative)
        change = np.multiply(measure.products, relative, out=scratch)
        first = change.sum(axis=0)
        second = np.einsum("jb,jb->b", change, relative)
        primal = 1 / np.maximum(1, -relative.min(axis=0))
        dual = 1 / np.maximum(1, 1 + relative.max(axis=0))
        after = (1 - dual) * measure.total + (primal * (1 - dual) - dual) * first - primal * dual * second
        sigma = np.clip(after / measure.total, self._path.least_centering ** (1 / 3), 1) ** 3
        return np.maximum(sigma * measure.total, _LAST_CENTERING * TARGET_GAP * measure.scale) / count


def _take(arrays: _Block, keep: np.ndarray) -> _Block:
    """Some problems of a block: the fields of `arrays` all have the batch last."""
    return type(arrays)(*(getattr(arrays, field.name)[..., keep] for field in dataclasses.fields(arrays)))


def _step(to_boundary: float, smallest: np.ndarray) -> Float[np.ndarray, "batch"]:
    """A full step where it stays inside (1 + smallest > 0), else `to_boundary` of the way to the boundary."""
    return np.where(smallest > -1 + _MARGIN, 1.0, to_boundary / np.maximum(-smallest, 1 - _MARGIN))
