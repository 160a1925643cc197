"""Noisy copy: random tokens, then the same tokens again; exponential probability rank, small logit rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from oracles.checks import as_integer, as_number
from oracles.errors import ParameterError, ZeroProbabilityError
from oracles.isan import ISAN
from oracles.recurrent import RecurrentOracle
from oracles.storage import storable


@storable("noisy_copy")
@dataclass(frozen=True, eq=False, repr=False)
class NoisyCopy(RecurrentOracle):
    """x_1..x_n uniform, then x_(n+i) = x_i with probability 1 − noise, else another token uniformly.

    Arguments:
        length: n ≥ 1; T = 2n.
        vocab_size: A ≥ 1.
        noise: in [0, 1] (0 when A = 1).

    At cut n the probability rank is A^n and the logit rank n(A−1), for noise other than 0, 1 and 1 − 1/A.
    """

    length: int
    vocab_size: int
    noise: float

    def __post_init__(self) -> None:
        length, vocab_size = (
            as_integer("length", self.length, 1),
            as_integer("vocab_size", self.vocab_size, 1),
        )
        noise = as_number("noise", self.noise, 0.0, 1.0)
        if vocab_size == 1 and noise > 0:
            raise ParameterError(f"noise must be 0 where there is one token only, got {noise}")
        for name, value in {
            "length": length,
            "vocab_size": vocab_size,
            "noise": noise,
            "horizon": 2 * length,
        }.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"NoisyCopy(length={self.length}, vocab_size={self.vocab_size}, noise={self.noise:g})"

    def first_row(self) -> Int[np.ndarray, "n"]:
        return np.zeros(self.length, dtype=np.int64)

    def step(
        self, position: int, rows: Int[np.ndarray, "batch n"], tokens: Int[np.ndarray, "batch"]
    ) -> Int[np.ndarray, "batch n"]:
        if position >= self.length:
            return rows
        read = rows.copy()
        read[:, position] = tokens
        return read

    def laws(self, position: int, rows: Int[np.ndarray, "batch n"]) -> Float[np.ndarray, "batch A"]:
        if position < self.length:
            return np.full((len(rows), self.vocab_size), -np.log(self.vocab_size))
        right, wrong = self._log_probabilities()
        return np.where(rows[:, position - self.length, None] == np.arange(self.vocab_size), right, wrong)

    def to_isan(self) -> ISAN:
        """The same law as a network of width n(A−1): centred codes of the n tokens, side by side.

        The code of token z is row z of V, an orthonormal basis (A, A−1) of the vectors of sum zero, so
        that V V^T = I − 1/A and the centred logits of a copy are a multiple of V times its code. The
        last coordinate is the constant 1 until the last block is written over it.
        Raises ZeroProbabilityError for noise 0 or 1 (infinite logits) when A > 1.
        """
        horizon = 2 * self.length
        if self.vocab_size == 1:
            return ISAN(np.ones(1), np.ones((1, 1, 1)), np.zeros((1, 1)), horizon)
        if self.noise in (0.0, 1.0):
            raise ZeroProbabilityError(f"noise = {self.noise:g} makes infinite logits: choose 0 < noise < 1")
        right, wrong = self._log_probabilities()
        codes = _sum_zero_basis(self.vocab_size)
        size = self.vocab_size - 1
        width = self.length * size
        transitions = np.tile(np.eye(width), (horizon - 1, self.vocab_size, 1, 1))
        readouts = np.zeros((horizon, self.vocab_size, width))
        for i in range(self.length):
            block = slice(i * size, (i + 1) * size)
            transitions[i, :, block, -1] = codes  # this block of the state is 0, or the constant itself
            readouts[self.length + i, :, block] = (right - wrong) * codes
        return ISAN(np.eye(width)[-1], transitions, readouts, horizon)

    def _log_probabilities(self) -> tuple[float, float]:
        """Log P(the copied token), log P(any other token)."""
        with np.errstate(divide="ignore"):
            return float(np.log1p(-self.noise)), float(np.log(self.noise / max(1, self.vocab_size - 1)))


def _sum_zero_basis(vocab_size: int) -> Float[np.ndarray, "A A_minus_1"]:
    """Orthonormal columns orthogonal to the vector of ones (Helmert contrasts)."""
    basis = np.zeros((vocab_size, vocab_size - 1))
    for j in range(1, vocab_size):
        basis[:j, j - 1] = 1.0
        basis[j, j - 1] = -j
        basis[:, j - 1] /= np.sqrt(j * (j + 1))
    return basis
