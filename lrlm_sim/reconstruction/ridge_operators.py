"""Reconstruction by fixed linear operators: one ridge regression per (cut, token), then only products.

    A_(s,z) = H_(s,z) Gᵀ (G Gᵀ + λ I)^(−1),    G = G_(s+1),    λ = 10 ξ² m_(s+1),

with m the number of equations and ξ the error of an entry; the pseudo-inverse when ξ = 0. The operators
of weighted-automaton learning (arXiv:2510.24966, Theorem 4.4) on the matrices of arXiv:2512.09892.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lrlm_sim.reconstruction.chain import Chain, Method, Trajectory, pseudo_inverse
from oracles.isan import ISAN, switched_product


def ridge_operators(chain: Chain) -> tuple[Float[np.ndarray, "A _r _r2"], ...]:
    """A_(s,z) acting on rows, c_(s+1) = c_s A_(s,z): one (A, r_s, r_(s+1)) array for s = 0..T−2."""
    floor, ridge = chain.rank_floor, 10 * chain.noise**2
    return tuple(
        moves @ pseudo_inverse(futures, floor, ridge * futures.shape[1])
        for futures, moves in zip(chain.futures, chain.moves, strict=True)
    )


def ridge_isan(chain: Chain) -> ISAN:
    """The ridge reconstruction as an ISAN of width max r_s (narrower cuts padded with zeros): same law."""
    width, horizon, vocab_size = max(chain.widths), chain.horizon, chain.vocab_size
    transitions = np.zeros((horizon - 1, vocab_size, width, width))
    readouts = np.zeros((horizon, vocab_size, width))
    for s, operator in enumerate(ridge_operators(chain)):
        transitions[s, :, : operator.shape[2], : operator.shape[1]] = operator.transpose(0, 2, 1)
    for s, readout in enumerate(chain.readouts):
        readouts[s, :, : len(readout)] = readout.T
    return ISAN(np.eye(width)[0], transitions, readouts, horizon)


@dataclass(frozen=True, eq=False)
class RowState:
    """c_t of every batch row after `position` tokens: all that the sequential methods carry."""

    position: int
    rows: Float[np.ndarray, "batch r"]


class Sequential(Method):
    """Methods in which c_(s+1) is a function of c_s and the token."""

    def start(self, batch: int) -> RowState:
        return RowState(0, np.ones((batch, 1)))

    def take(self, state: RowState, rows: Int[np.ndarray, "rows"]) -> RowState:
        return RowState(state.position, state.rows[rows])

    def coefficients(self, state: RowState) -> Float[np.ndarray, "batch r"]:
        return state.rows

    def step(self, state: RowState, tokens: Int[np.ndarray, "batch"]) -> RowState:
        return RowState(state.position + 1, self.advance(state.position, state.rows, tokens)[0])

    def trajectory(self, strings: Int[np.ndarray, "n t"]) -> Trajectory:
        blocks = [np.ones((len(strings), 1))]
        boxed = np.zeros(len(strings), dtype=bool)
        for position, tokens in enumerate(strings.T):
            rows, outside = self.advance(position, blocks[-1], tokens)
            blocks.append(rows)
            boxed |= outside
        return Trajectory(tuple(blocks), int(boxed.sum()))

    @abstractmethod
    def advance(
        self, position: int, rows: np.ndarray, tokens: np.ndarray
    ) -> tuple[Float[np.ndarray, "batch r2"], np.ndarray]:
        """c_(position+1), and which rows needed the box solver, (batch,) bool."""


class RidgeOperators(Sequential):
    """c_(s+1) = c_s A_(s, y_s): 2 r_s r_(s+1) flops per row and token; the box is not imposed."""

    def __init__(self, chain: Chain) -> None:
        super().__init__(chain)
        self._operators = ridge_operators(chain)

    def advance(
        self, position: int, rows: np.ndarray, tokens: np.ndarray
    ) -> tuple[Float[np.ndarray, "batch r2"], np.ndarray]:
        with np.errstate(over="ignore", invalid="ignore"):  # the model reports what overflows
            return switched_product(rows, self._operators[position], tokens), np.zeros(len(rows), dtype=bool)
