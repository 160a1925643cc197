"""Joint least squares of the whole chain by block elimination: a square-root information filter.

    min over c_1..c_t of  Σ_s ‖c_(s+1) G_(s+1) − c_s H_(s,y_s)‖²

couples neighbours only. With everything before cut s minimised out, what is known of c_s is
‖R_s c_s − z_s‖² + const with R_s of order r_s. One token stacks it on the next equation,

    [ R_s      0        | z_s ]      QR     [ *   *        |  *      ]
    [ Hᵀ    −Gᵀ         |  0  ]  ────────►  [ 0   R_(s+1)  | z_(s+1) ]  (last row: growth of the residual),

so a step costs the same at every t and later constraints correct earlier coefficients (what sequential
solving cannot do where c_s is not determined by its own equation). [H_(s,z)ᵀ, −G_(s+1)ᵀ] is replaced by its
own triangular factor, at most r_s + r_(s+1) rows, once per (s, z).

Directions of c_s that nothing determines yet show as zero singular values of the leading block: their
equations are kept, not lost in its null rows. c_t itself has minimum norm among the minimisers.

The box: c_t is compared with it at every step. From the first step outside, the string's coefficients
are those of the box-constrained joint problem (`box_quadratic`); strings that never leave cost nothing
more. Corrections of earlier coefficients by later constraints are not compared with the box at
generation; `trajectory` computes them, and `Reconstruction.max_coefficient` shows them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from lrlm_sim.reconstruction.box_quadratic import solve_box_quadratic
from lrlm_sim.reconstruction.chain import Chain, Method, Trajectory, pseudo_inverse


@dataclass(frozen=True, eq=False)
class EliminationState:
    """What is known of c_t: a triangular block whose size does not depend on t, and the tokens read.

    factor: R_t (batch, r, r); target: z_t (batch, r); solution: its minimum-norm minimiser (batch, r);
    outside: whether some c_s, s ≤ t, left the box when it was the last.
    """

    prefixes: Int[np.ndarray, "batch t"]
    factor: Float[np.ndarray, "batch r r"]
    target: Float[np.ndarray, "batch r"]
    solution: Float[np.ndarray, "batch r"]
    outside: Bool[np.ndarray, "batch"]

    @property
    def position(self) -> int:
        return self.prefixes.shape[1]


class BlockElimination(Method):
    """Joint least squares over c_1..c_t, box-constrained where the box binds."""

    def __init__(self, chain: Chain) -> None:
        super().__init__(chain)
        self.equations = equation_factors(chain)
        ranks = [np.linalg.matrix_rank(g, tol=self.rank_floor) for g in chain.futures]
        # c_1..c_s are determined one after the other while every G has full row rank: no SVD needed.
        full = [rank == len(g) for rank, g in zip(ranks, chain.futures, strict=True)]
        self._determined = [True, *(all(full[: s + 1]) for s in range(len(full)))]

    def start(self, batch: int) -> EliminationState:
        known = np.ones((batch, 1))
        return EliminationState(
            np.zeros((batch, 0), dtype=np.int64), known[:, None], known, known, np.zeros(batch, dtype=bool)
        )

    def take(self, state: EliminationState, rows: Int[np.ndarray, "rows"]) -> EliminationState:
        return EliminationState(
            state.prefixes[rows],
            state.factor[rows],
            state.target[rows],
            state.solution[rows],
            state.outside[rows],
        )

    def step(self, state: EliminationState, tokens: Int[np.ndarray, "batch"]) -> EliminationState:
        cut = state.position + 1
        factor, target = self._eliminate(state, self.equations[cut - 1][tokens])
        solution = self._minimum_norm(factor, target, cut)
        outside = state.outside | (np.abs(solution) > self.chain.box_limit).any(axis=1)
        prefixes = np.concatenate([state.prefixes, tokens[:, None]], axis=1)
        return EliminationState(prefixes, factor, target, solution, outside)

    def coefficients(self, state: EliminationState) -> Float[np.ndarray, "batch r"]:
        if not state.outside.any():
            return state.solution
        solution = state.solution.copy()
        solution[state.outside] = self._boxed(state.prefixes[state.outside])[-1]
        return solution

    def trajectory(self, strings: Int[np.ndarray, "n t"]) -> Trajectory:
        states = [self.start(len(strings))]
        for tokens in strings.T:
            states.append(self.step(states[-1], tokens))
        blocks = self._substitute_back(states, strings)
        outside = states[-1].outside
        if outside.any():
            for block, boxed in zip(blocks, self._boxed(strings[outside]), strict=True):
                block[outside] = boxed
        return Trajectory(tuple(blocks), int(outside.sum()))

    def _eliminate(
        self, state: EliminationState, equations: Float[np.ndarray, "batch k r_plus_r2"]
    ) -> tuple[Float[np.ndarray, "batch r2 r2"], Float[np.ndarray, "batch r2"]]:
        n, r = state.solution.shape
        after = equations.shape[2] - r
        if state.position == 0:  # c_0 = (1) is given, not estimated: its column is the right-hand side
            return _split(_triangle(np.concatenate([equations[:, :, 1:], -equations[:, :, :1]], axis=2)))
        stack = np.zeros((n, r + equations.shape[1], r + after + 1))
        stack[:, :r, :r] = state.factor
        stack[:, :r, -1] = state.target
        stack[:, r:, :-1] = equations
        triangle = _triangle(stack)
        rest = triangle[:, r:, r:]
        if not self._determined[state.position]:
            kept = _unseen(triangle[:, :r, :r], triangle[:, :r, r:], self.rank_floor)
            rest = _triangle(np.concatenate([rest, kept], axis=1))
        return _split(rest)

    def _minimum_norm(
        self, factor: Float[np.ndarray, "n r r"], target: Float[np.ndarray, "n r"], cut: int
    ) -> Float[np.ndarray, "n r"]:
        """Minimiser of ‖factor · x − target‖ of minimum norm."""
        if self._determined[cut]:
            return np.linalg.solve(factor, target[:, :, None])[:, :, 0]
        return np.einsum("nrk,nk->nr", pseudo_inverse(factor, self.rank_floor), target)

    def _substitute_back(
        self, states: list[EliminationState], strings: Int[np.ndarray, "n t"]
    ) -> list[Float[np.ndarray, "n _r"]]:
        """c_0..c_t of the unconstrained joint problem: each c_s minimises given c_(s+1)."""
        blocks = [states[-1].solution.copy()]
        for s in range(len(states) - 2, 0, -1):
            r, equations = states[s].solution.shape[1], self.equations[s][strings[:, s]]
            factor = np.concatenate([states[s].factor, equations[:, :, :r]], axis=1)
            moved = -np.einsum("nkr,nr->nk", equations[:, :, r:], blocks[0])
            inverse = pseudo_inverse(factor, self.rank_floor)
            target = np.concatenate([states[s].target, moved], axis=1)
            blocks.insert(0, np.einsum("nrk,nk->nr", inverse, target))
        if len(states) > 1:
            blocks.insert(0, states[0].solution.copy())
        return blocks

    def _boxed(self, prefixes: Int[np.ndarray, "n t"]) -> list[Float[np.ndarray, "n _r"]]:
        """c_0..c_t of the box-constrained joint problem, one program per distinct string."""
        strings, row_of = np.unique(prefixes, axis=0, return_inverse=True)
        solved = [solve_box_quadratic(self.equations, self.chain.box, string) for string in strings]
        blocks = [np.stack(block) for block in zip(*solved, strict=True)]
        return [block[row_of.ravel()] for block in blocks]


def equation_factors(chain: Chain) -> tuple[Float[np.ndarray, "A _k _r_plus_r2"], ...]:
    """Triangular factors of [H_(s,z)ᵀ, −G_(s+1)ᵀ]: same sums of squares, k = min(m, r_s + r_(s+1)) rows."""
    factors = []
    for futures, moves in zip(chain.futures, chain.moves, strict=True):
        right = np.broadcast_to(-futures.T, (len(moves), *futures.T.shape))
        factors.append(_triangle(np.concatenate([moves.transpose(0, 2, 1), right], axis=2)))
    return tuple(factors)


def _triangle(stack: Float[np.ndarray, "n rows columns"]) -> Float[np.ndarray, "n k columns"]:
    return np.asarray(np.linalg.qr(stack, mode="r"))


def _split(
    triangle: Float[np.ndarray, "n k r_plus_1"],
) -> tuple[Float[np.ndarray, "n r r"], Float[np.ndarray, "n r"]]:
    """(R, z) of order r: rows of zeros added when there are fewer equations, the residual's row dropped."""
    r = triangle.shape[2] - 1
    block = triangle[:, :r]
    if block.shape[1] < r:
        block = np.pad(block, ((0, 0), (0, r - block.shape[1]), (0, 0)))
    return block[:, :, :r], block[:, :, r]


def _unseen(
    leading: Float[np.ndarray, "n r r"], rest: Float[np.ndarray, "n r columns"], floor: float
) -> Float[np.ndarray, "n r columns"]:
    """What the rows of `rest` say in the left null directions of `leading`; zero rows elsewhere."""
    left, sigma, _ = np.linalg.svd(leading)
    return np.swapaxes(left, 1, 2) @ rest * (sigma <= floor)[:, :, None]
