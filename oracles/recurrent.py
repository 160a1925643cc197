"""Models whose state after t tokens is one row of numbers: the four operations written once.

A subclass gives three things — the first row, one step, and the laws read off the rows — and
inherits batching, chunks, `take`, and every check. This is the shortest way to a new model.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped
from numpy.typing import ArrayLike

from oracles.base import Oracle
from oracles.checks import as_chunk, as_integer, as_rows, check_length
from oracles.errors import HorizonError


@dataclass(frozen=True, eq=False)
class RecurrentState:
    """`rows[i]` is the state of batch row i after `position` tokens."""

    position: int
    rows: Shaped[np.ndarray, "batch width"]


class RecurrentOracle(Oracle):
    """Oracle defined by a recurrence on rows: r_0 fixed, r_(t+1) = step(t, r_t, token)."""

    @abstractmethod
    def first_row(self) -> Shaped[np.ndarray, "width"]:
        """The row of the empty history."""

    @abstractmethod
    def step(
        self, position: int, rows: Shaped[np.ndarray, "batch width"], tokens: Shaped[np.ndarray, "batch"]
    ) -> Shaped[np.ndarray, "batch width"]:
        """Rows after reading one token each at 0-based `position`; must not change `rows`."""

    @abstractmethod
    def laws(
        self, position: int, rows: Shaped[np.ndarray, "batch width"]
    ) -> Float[np.ndarray, "batch vocab"]:
        """Natural log P(next token | row) at `position`, shape (batch, vocab_size)."""

    def start(self, batch: int) -> RecurrentState:
        batch = as_integer("batch", batch, 0)
        return RecurrentState(0, np.repeat(self.first_row()[None, :], batch, axis=0))

    def advance(self, state: RecurrentState, tokens: ArrayLike) -> RecurrentState:
        chunk = as_chunk(tokens, len(state.rows), self.vocab_size)
        check_length(state.position + chunk.shape[1], self.horizon)
        position, rows = state.position, state.rows
        for column in np.array(chunk.T, order="C"):  # a copy: steps may keep it, callers reuse theirs
            rows = self.step(position, rows, column)
            position += 1
        return RecurrentState(position, rows)

    def log_probs(self, state: RecurrentState) -> Float[np.ndarray, "batch vocab"]:
        if self.horizon is not None and state.position >= self.horizon:
            raise HorizonError(f"no token follows after horizon = {self.horizon} tokens")
        return self.laws(state.position, state.rows)

    def take(self, state: RecurrentState, rows: ArrayLike) -> RecurrentState:
        return RecurrentState(state.position, state.rows[as_rows(rows, len(state.rows))])
