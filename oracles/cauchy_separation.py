"""Cauchy separation: logit rank 2, probability rank 2^n."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from oracles.checks import as_integer
from oracles.isan import ISAN
from oracles.recurrent import RecurrentOracle
from oracles.sparse_polynomial import coin_laws
from oracles.storage import storable


@storable("cauchy_separation")
@dataclass(frozen=True, eq=False, repr=False)
class CauchySeparation(RecurrentOracle):
    """X and F uniform on {0,1}^n, then a label with P(1) = σ(s(X) − s(F)), s(x) = Σ_(i=1..n) 2^(−i) x_i.

    A = 2, T = 2n + 1. With u = e^s(X), v = e^s(F), P(1) = u/(u + v): a Cauchy matrix at cut n, of
    full rank 2^n, while the label's logit ½(s(X) − s(F)) has rank 2. The state is s(X) − s(F) so far.
    Raises ParameterError unless n ≥ 1.
    """

    n: int

    def __post_init__(self) -> None:
        n = as_integer("n", self.n, 1)
        for name, value in {"n": n, "vocab_size": 2, "horizon": 2 * n + 1}.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"CauchySeparation(n={self.n})"

    def first_row(self) -> Float[np.ndarray, "1"]:
        return np.zeros(1)

    def step(
        self, position: int, rows: Float[np.ndarray, "batch 1"], tokens: Int[np.ndarray, "batch"]
    ) -> Float[np.ndarray, "batch 1"]:
        return rows + self._place(position) * tokens[:, None] if position < 2 * self.n else rows

    def laws(self, position: int, rows: Float[np.ndarray, "batch 1"]) -> Float[np.ndarray, "batch 2"]:
        if position < 2 * self.n:
            return np.full((len(rows), 2), -np.log(2))
        return coin_laws(0.5 * rows[:, 0])

    def to_isan(self) -> ISAN:
        """The same law as a network of width 2: (1, s(X) − s(F))."""
        steps = 2 * self.n
        transitions = np.tile(np.eye(2), (steps, 2, 1, 1))
        transitions[:, 1, 1, 0] = [self._place(t) for t in range(steps)]
        readouts = np.zeros((steps + 1, 2, 2))
        readouts[steps, :, 1] = [-0.5, 0.5]
        return ISAN(np.array([1.0, 0.0]), transitions, readouts, steps + 1)

    def _place(self, position: int) -> float:
        """What a 1 at this position adds to s(X) − s(F)."""
        return 2.0 ** -(position + 1) if position < self.n else -(2.0 ** -(position - self.n + 1))
