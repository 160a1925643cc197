"""A distribution given by the probability of every string."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from oracles.checks import as_finite, as_laws, axes_of
from oracles.errors import ShapeError
from oracles.recurrent import RecurrentOracle
from oracles.storage import storable


@storable("tabular")
@dataclass(frozen=True, eq=False, repr=False)
class Tabular(RecurrentOracle):
    """The law P(x_1, …, x_T) = probabilities[x_1, …, x_T].

    Arguments:
        probabilities: shape (A,)·T, T ≥ 1, zeros allowed, sum 1.

    The state is the number of the history in base A; conditional laws are tables of quotients of
    marginals (A^(T+1)/(A−1) numbers in all), uniform after histories of probability zero.
    Raises ShapeError, NonFiniteError or ProbabilityError on an array that is not a law.
    """

    probabilities: Float[np.ndarray, "..."]

    def __post_init__(self) -> None:
        axes = axes_of(self.probabilities)
        table = as_finite("probabilities", self.probabilities, "(vocab_size,)·horizon", max(1, axes))
        shape = table.shape
        if len(set(shape)) > 1:
            raise ShapeError("probabilities", "(vocab_size,)·horizon", "equal axes", shape)
        law = as_laws("probabilities", table.ravel(), "(vocab_size^horizon,)", 1)
        object.__setattr__(self, "probabilities", law.reshape(shape))
        object.__setattr__(self, "vocab_size", shape[0])
        object.__setattr__(self, "horizon", len(shape))

    def __repr__(self) -> str:
        return f"Tabular(vocab_size={self.vocab_size}, horizon={self.horizon})"

    def first_row(self) -> Int[np.ndarray, "1"]:
        return np.zeros(1, dtype=np.int64)

    def step(
        self, position: int, rows: Int[np.ndarray, "batch 1"], tokens: Int[np.ndarray, "batch"]
    ) -> Int[np.ndarray, "batch 1"]:
        return rows * self.vocab_size + tokens[:, None]

    def laws(self, position: int, rows: Int[np.ndarray, "batch 1"]) -> Float[np.ndarray, "batch A"]:
        return self._log_laws[position][rows[:, 0]]

    @cached_property
    def _log_laws(self) -> list[Float[np.ndarray, "histories A"]]:
        tables = []
        masses = self.probabilities.ravel()
        for _ in range(self.probabilities.ndim):
            masses = masses.reshape(-1, self.vocab_size)
            totals = masses.sum(axis=1, keepdims=True)
            impossible = totals == 0
            laws = np.where(impossible, 1 / self.vocab_size, masses / np.where(impossible, 1.0, totals))
            with np.errstate(divide="ignore"):
                tables.append(np.log(laws))
            masses = totals
        return tables[::-1]
