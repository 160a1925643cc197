"""Noisy parity: easy from chosen prefixes, hard from samples alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from oracles.base import LinearForm
from oracles.checks import as_generator, as_integer, as_number, as_tokens
from oracles.errors import ZeroProbabilityError
from oracles.hmm import HiddenMarkovModel
from oracles.isan import ISAN
from oracles.recurrent import RecurrentOracle
from oracles.storage import storable

_SWAPS = np.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])  # identity, exchange


@storable("noisy_parity")
@dataclass(frozen=True, eq=False, repr=False)
class NoisyParity(RecurrentOracle):
    """X uniform on {0,1}^n, then Y = ⟨secret, X⟩ ⊕ Bernoulli(noise); A = 2, T = n + 1.

    Arguments:
        secret: n ≥ 0 bits.
        noise: in [0, 1]; 0 is deterministic, ½ erases the parity.

    Probability rank 2 at cuts 1..n, logit rank 1 (label logit ±½ log((1−noise)/noise)); learning it
    from samples is learning parity with noise (arXiv:2512.09892; hidden Markov form math/0502076).
    Raises TokenError or ShapeError on a secret that is not bits, ParameterError on a wrong noise.
    """

    secret: Int[np.ndarray, "n"]
    noise: float

    def __post_init__(self) -> None:
        secret = np.array(as_tokens("secret", self.secret, 2, 1))
        object.__setattr__(self, "secret", secret)
        object.__setattr__(self, "noise", as_number("noise", self.noise, 0.0, 1.0))
        object.__setattr__(self, "vocab_size", 2)
        object.__setattr__(self, "horizon", len(secret) + 1)

    @classmethod
    def random(cls, n: int, noise: float, rng: np.random.Generator | int | None = None) -> NoisyParity:
        """Uniformly random nonzero secret of n ≥ 1 bits."""
        n, rng = as_integer("n", n, 1), as_generator(rng)
        secret = rng.integers(0, 2, n)
        while not secret.any():
            secret = rng.integers(0, 2, n)
        return cls(secret, noise)

    def __repr__(self) -> str:
        return f"NoisyParity(n={len(self.secret)}, noise={self.noise:g})"

    def first_row(self) -> Int[np.ndarray, "1"]:
        return np.zeros(1, dtype=np.int64)

    def step(
        self, position: int, rows: Int[np.ndarray, "batch 1"], tokens: Int[np.ndarray, "batch"]
    ) -> Int[np.ndarray, "batch 1"]:
        if position >= len(self.secret):
            return rows
        return rows ^ (self.secret[position] & tokens)[:, None]

    def laws(self, position: int, rows: Int[np.ndarray, "batch 1"]) -> Float[np.ndarray, "batch 2"]:
        if position < len(self.secret):
            return np.full((len(rows), 2), -np.log(2))
        return self._label_table()[rows[:, 0]]

    def linear_form(self) -> LinearForm:
        """Two states, the running parity; the label is read off the last one."""
        reading = [0.5 * np.stack([_SWAPS[0], _SWAPS[bit]]) for bit in (0, 1)]
        label = np.exp(self._label_table()).T[:, :, None] * np.eye(2)
        operators = [reading[bit] for bit in self.secret]
        return LinearForm(np.array([1.0, 0.0]), [*operators, label], np.ones(2))

    def to_hmm(self) -> HiddenMarkovModel:
        """The same law as a hidden Markov model with 4 states per position: 2·(token) + (parity so far)."""
        n = len(self.secret)
        bits = np.array([0, 0, 1, 1])
        emission = np.eye(2)[bits]
        table = np.exp(self._label_table())
        initial = np.zeros(4)
        transition = np.zeros((n, 4, 4))
        for token in (0, 1):
            if n == 0:
                initial[2 * token] = table[0, token]
            else:
                initial[2 * token + (token & self.secret[0])] += 0.5
            for state in range(4):
                parity = state % 2
                for t in range(1, n):
                    transition[t - 1, state, 2 * token + (parity ^ (token & self.secret[t]))] += 0.5
                if n:
                    transition[n - 1, state, 2 * token + parity] = table[parity, token]
        return HiddenMarkovModel(initial, transition, emission, n + 1)

    def to_isan(self) -> ISAN:
        """The same law as a network of width 1: the running sign (−1)^⟨secret, X⟩.

        Raises ZeroProbabilityError for noise 0 or 1, where the label's logit is infinite.
        """
        if self.noise in (0.0, 1.0):
            raise ZeroProbabilityError(f"noise = {self.noise:g} makes infinite logits: choose 0 < noise < 1")
        n = len(self.secret)
        transitions = np.ones((n, 2, 1, 1))
        transitions[self.secret == 1, 1] = -1.0
        readouts = np.zeros((n + 1, 2, 1))
        readouts[n, :, 0] = self._label_table()[0]
        readouts[n, :, 0] -= readouts[n, :, 0].mean()
        return ISAN(np.ones(1), transitions, readouts, n + 1)

    def _label_table(self) -> Float[np.ndarray, "2 2"]:
        """Log P(label | parity), rows parities."""
        with np.errstate(divide="ignore"):
            right, wrong = np.log1p(-self.noise), np.log(self.noise)
        return np.array([[right, wrong], [wrong, right]])
