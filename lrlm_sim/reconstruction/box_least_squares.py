"""Sequential reconstruction with a box: c_(s+1) = argmin {‖c G_(s+1) − c_s H_(s,y_s)‖_2 : ‖c‖_∞ ≤ box}.

All rows of a batch share one design matrix G, so the unconstrained problem is one product with pinv(G).
Rows that leave the box go to a primal–dual active-set iteration run on all of them at once: guess
which coordinates are at which bound, solve the least squares of the others, correct the guess by the
signs of the multipliers (Hintermüller, Ito & Kunisch 2003). It ends at a point that satisfies the
optimality conditions. Correcting all coordinates at once may cycle: after a few rounds only the last wrong
one is corrected (Murty 1974, finite where the minimiser is unique); what is left goes to BVLS.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import lsq_linear

from lrlm_sim.reconstruction.chain import BOX_SLACK, RANK_TOLERANCE, Chain, pseudo_inverse
from lrlm_sim.reconstruction.ridge_operators import Sequential
from oracles.isan import switched_product

#: Rounds that correct all coordinates (few rows need more than five), and rounds in all.
_JOINT_ROUNDS, _ROUNDS = 8, 60
#: Most numbers in one batch of masked factors.
_CELLS = 1 << 22


class SequentialBox(Sequential):
    """Box-constrained least squares, one cut after the other, batched."""

    def __init__(self, chain: Chain) -> None:
        super().__init__(chain)
        # Rotated by Qᵀ of Gᵀ = Q R, targets have at most r entries in place of m; distances keep their order.
        factors = [np.linalg.qr(futures.T) for futures in chain.futures]
        self._factors = [factor.R for factor in factors]
        self._inverses = [pseudo_inverse(factor.R, self.rank_floor).T for factor in factors]
        self._moves = [moves @ f.Q for moves, f in zip(chain.moves, factors, strict=True)]

    def advance(
        self, position: int, rows: np.ndarray, tokens: np.ndarray
    ) -> tuple[Float[np.ndarray, "batch r2"], np.ndarray]:
        targets = switched_product(rows, self._moves[position], tokens)
        solution = targets @ self._inverses[position]
        outside = np.any(np.abs(solution) > self.chain.box_limit, axis=1)
        if outside.any():
            factor, box = self._factors[position], self.chain.box
            solution[outside] = box_least_squares(factor, targets[outside], box, self.rank_floor)
        return solution, outside


def box_least_squares(
    design: Float[np.ndarray, "k r"],
    targets: Float[np.ndarray, "n k"],
    box: float,
    floor: float | None = None,
) -> Float[np.ndarray, "n r"]:
    """argmin_x {‖design · x_i − targets_i‖_2 : ‖x_i‖_∞ ≤ box} for every row i.

    Singular values up to `floor` (default: 1e-11 of the largest entry) count as zero. Exact up to rounding.
    Where the minimiser is not unique, one that depends on the row alone.
    """
    floor = RANK_TOLERANCE * float(np.abs(design).max()) if floor is None else floor
    per_block = max(1, _CELLS // design.size)
    return np.concatenate(
        [
            _solve(design, targets[i : i + per_block], box, floor)
            for i in range(0, max(1, len(targets)), per_block)
        ]
    )


def _solve(design: np.ndarray, targets: np.ndarray, box: float, floor: float) -> Float[np.ndarray, "n r"]:
    n, r = len(targets), design.shape[1]
    scale = float(np.linalg.norm(design, 2)) if design.any() else 1.0
    # Multipliers below this are rounding of designᵀ(residual).
    slack = 1e-13 * scale * (scale * box * np.sqrt(r) + np.abs(targets).max(axis=1, keepdims=True))
    side = np.zeros((n, r), dtype=np.int8)  # −1, +1: at that bound; 0: free
    solution, active = np.zeros((n, r)), np.arange(n)
    for count in range(_ROUNDS):
        if not len(active):
            return solution
        guess = _face_minimum(design, targets[active], side[active], box, floor)
        errors = guess @ design.T - targets[active]
        multipliers = -(errors @ design) * side[active]  # ≥ 0 where the bound is rightly active
        fixed = side[active] != 0
        outside = ~fixed & (np.abs(guess) > box * (1 + BOX_SLACK))
        wrong = fixed & (multipliers < -slack[active])
        solution[active] = np.clip(guess, -box, box)
        change = outside | wrong
        if count >= _JOINT_ROUNDS:
            change &= np.arange(r) == r - 1 - change[:, ::-1].argmax(axis=1)[:, None]
        corrected = np.where(outside, np.sign(guess).astype(np.int8), np.int8(0))
        side[active] = np.where(change, corrected, side[active])
        active = active[change.any(axis=1)]
    for i in active:
        answer = lsq_linear(design, targets[i], (-box, box), method="bvls", tol=1e-15, max_iter=100 * r)
        solution[i] = np.clip(answer.x, -box, box)
    return solution


def _face_minimum(
    design: np.ndarray, targets: np.ndarray, side: Int[np.ndarray, "n r"], box: float, floor: float
) -> Float[np.ndarray, "n r"]:
    """Least squares over the free coordinates, the others at their bounds; one SVD per distinct face."""
    faces, face_of = np.unique(side, axis=0, return_inverse=True)
    inverses = pseudo_inverse(design[None] * (faces == 0)[:, None, :], floor)
    fixed = side * box
    shifted = targets - fixed @ design.T
    return fixed + np.einsum("nrk,nk->nr", inverses[face_of.ravel()], shifted)
