"""Hidden Markov models, homogeneous or per step: probability rank at most the number of states."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from oracles.alias import AliasTable
from oracles.base import LinearForm
from oracles.checks import as_generator, as_integer, as_laws, as_tokens, axes_of
from oracles.errors import ShapeError
from oracles.recurrent import RecurrentOracle
from oracles.storage import storable

_BLOCK = 256  # rows filtered together: with 64 states a block of beliefs stays in the second-level cache
_RESCALE = 8  # steps between renormalisations while scoring
_THIN = 1e-100  # masses below this between renormalisations are scored again, renormalised at every step


@storable("hmm")
@dataclass(frozen=True, eq=False, repr=False)
class HiddenMarkovModel(RecurrentOracle):
    """Hidden Markov model with S states: s_1 ~ π, x_t ~ E_t[s_t], s_(t+1) ~ Q_t[s_t].

    Arguments:
        initial: π, shape (S,).
        transition: Q, shape (S, S), or per step (T−1, S, S) (Q_t leads from position t to t+1).
        emission: E, shape (S, A), or per step (T, S, A).
        horizon: T ≥ 1.

    The state is the belief b over s_t given the past: b ← normalise(b ⊙ E[:, z]) Q.
    P(f | h) factors through the belief, so every probability matrix has rank ≤ S (arXiv:2411.07536).
    Raises ShapeError, NonFiniteError or ProbabilityError on arrays that are not laws.
    """

    initial: Float[np.ndarray, "S"]
    transition: Float[np.ndarray, "*steps S S"]
    emission: Float[np.ndarray, "*steps S A"]
    horizon: int

    def __post_init__(self) -> None:
        horizon = as_integer("horizon", self.horizon, 1)
        initial = as_laws("initial", self.initial, "(n_states,)", 1)
        per_step_q, per_step_e = axes_of(self.transition) == 3, axes_of(self.emission) == 3
        q_shape = "(horizon-1, n_states, n_states)" if per_step_q else "(n_states, n_states)"
        e_shape = "(horizon, n_states, vocab_size)" if per_step_e else "(n_states, vocab_size)"
        transition = as_laws("transition", self.transition, q_shape, 3 if per_step_q else 2)
        emission = as_laws("emission", self.emission, e_shape, 3 if per_step_e else 2)
        states = len(initial)
        expected_q = (horizon - 1,) * per_step_q + (states, states)
        expected_e = (horizon,) * per_step_e + (states, emission.shape[-1])
        if transition.shape != expected_q:
            raise ShapeError("transition", q_shape, expected_q, transition.shape)
        if emission.shape != expected_e:
            raise ShapeError("emission", e_shape, expected_e, emission.shape)
        for name, value in {
            "initial": initial,
            "transition": transition,
            "emission": emission,
            "horizon": horizon,
            "vocab_size": emission.shape[-1],
        }.items():
            object.__setattr__(self, name, value)

    @classmethod
    def random(
        cls,
        n_states: int,
        vocab_size: int,
        horizon: int,
        rng: np.random.Generator | int | None = None,
        concentration: float = 1.0,
    ) -> HiddenMarkovModel:
        """Model with Dirichlet(concentration) rows everywhere."""
        rng = as_generator(rng)
        n_states, vocab_size = as_integer("n_states", n_states, 1), as_integer("vocab_size", vocab_size, 1)
        states, tokens = np.full(n_states, concentration), np.full(vocab_size, concentration)
        return cls(
            rng.dirichlet(states), rng.dirichlet(states, n_states), rng.dirichlet(tokens, n_states), horizon
        )

    @property
    def n_states(self) -> int:
        """Number of hidden states S."""
        return len(self.initial)

    def __repr__(self) -> str:
        sizes = f"n_states={self.n_states}, vocab_size={self.vocab_size}, horizon={self.horizon}"
        return f"HiddenMarkovModel({sizes})"

    def first_row(self) -> Float[np.ndarray, "S"]:
        return self.initial

    def step(
        self, position: int, rows: Float[np.ndarray, "batch S"], tokens: Int[np.ndarray, "batch"]
    ) -> Float[np.ndarray, "batch S"]:
        seen = rows * self._likelihoods(position)[tokens]
        mass = seen.sum(axis=1, keepdims=True)
        impossible = mass[:, 0] <= 0
        if impossible.any():  # probability zero: any law may follow, keep the prior belief
            seen[impossible], mass[impossible] = rows[impossible], 1.0
        seen /= mass
        return seen @ self._transitions(position) if position + 1 < self.horizon else seen

    def laws(self, position: int, rows: Float[np.ndarray, "batch S"]) -> Float[np.ndarray, "batch A"]:
        probabilities = rows @ self._likelihoods(position).T
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        with np.errstate(divide="ignore"):
            return np.log(probabilities)

    def linear_form(self) -> LinearForm:
        """Operators O_t[z] = diag(E_t[:, z]) Q_t, final vector of ones."""
        made: dict[tuple[int, int], np.ndarray] = {}
        operators = []
        for t in range(self.horizon):
            key = (t if self.emission.ndim == 3 else 0, t if self.transition.ndim == 3 else 0)
            if t + 1 == self.horizon:
                operators.append(self._likelihoods(t)[:, :, None] * np.eye(self.n_states))
            else:
                if key not in made:
                    made[key] = self._likelihoods(t)[:, :, None] * self._transitions(t)
                operators.append(made[key])
        return LinearForm(self.initial, operators, np.ones(self.n_states))

    def score(self, sequences: ArrayLike, history: ArrayLike | None = None) -> Float[np.ndarray, "n"]:
        """Forward algorithm in cache-sized blocks, renormalised every few steps: one GEMM per step."""
        sequences = as_tokens("sequences", sequences, self.vocab_size, 2)
        prefix, length = self._span(history, sequences.shape[1])
        first = self._after(prefix, 1).rows[0]
        columns = np.ascontiguousarray(sequences.T)
        out = np.empty(len(sequences))
        beliefs, scratch = np.empty((2, min(_BLOCK, max(1, len(sequences))), self.n_states))
        for low in range(0, len(sequences), _BLOCK):
            block = columns[:, low : low + _BLOCK]
            out[low : low + _BLOCK] = self._score_block(
                first, block, len(prefix), length, beliefs[: block.shape[1]], scratch[: block.shape[1]]
            )
        thin = np.isnan(out)
        if thin.any():
            out[thin] = super().score(sequences[thin], history)
        return out

    def _score_block(
        self,
        first: np.ndarray,
        columns: np.ndarray,
        offset: int,
        length: int,
        beliefs: np.ndarray,
        scratch: np.ndarray,
    ) -> Float[np.ndarray, "n"]:
        beliefs[:] = first
        total = np.zeros(columns.shape[1])
        for t in range(length):
            self._likelihoods(offset + t).take(columns[t], axis=0, out=scratch, mode="clip")
            np.multiply(beliefs, scratch, out=scratch)
            last = t + 1 == length
            if last or t % _RESCALE == _RESCALE - 1:
                mass = scratch.sum(axis=1)
                mass[mass < _THIN] = np.nan
                total += np.log(mass)
                np.divide(scratch, mass[:, None], out=scratch)
            if not last:
                np.matmul(scratch, self._transitions(offset + t), out=beliefs)
        return total

    def sample(
        self,
        n: int,
        rng: np.random.Generator | int | None = None,
        history: ArrayLike | None = None,
        length: int | None = None,
    ) -> Int[np.ndarray, "n length"]:
        """Hidden path and tokens by alias tables: two table look-ups per token, no filtering."""
        n = as_integer("n", n, 0)
        prefix, length = self._span(history, length)
        uniforms = as_generator(rng).random((n, length + 1, 2)).transpose(1, 2, 0).copy()
        belief = self._after(prefix, 1).rows
        states = AliasTable.build(belief).draw(np.zeros(n, dtype=np.int64), uniforms[0, 0])
        tokens = np.empty((length, n), dtype=np.int64)
        for t in range(length):
            tokens[t] = self._emission_tables[self._emission_index(len(prefix) + t)].draw(
                states, uniforms[t + 1, 0]
            )
            if t + 1 < length:
                table = self._transition_tables[self._transition_index(len(prefix) + t)]
                states = table.draw(states, uniforms[t + 1, 1])
        return np.ascontiguousarray(tokens.T)

    def _emission_index(self, position: int) -> int:
        return position if self.emission.ndim == 3 else 0

    def _transition_index(self, position: int) -> int:
        return position if self.transition.ndim == 3 else 0

    @cached_property
    def _by_token(self) -> Float[np.ndarray, "steps A S"]:
        emission = self.emission if self.emission.ndim == 3 else self.emission[None]
        return np.ascontiguousarray(emission.transpose(0, 2, 1))

    @cached_property
    def _emission_tables(self) -> list[AliasTable]:
        return [AliasTable.build(e) for e in self._by_token.transpose(0, 2, 1)]

    @cached_property
    def _transition_tables(self) -> list[AliasTable]:
        stacked = self.transition if self.transition.ndim == 3 else self.transition[None]
        return [AliasTable.build(q) for q in stacked]

    def _likelihoods(self, position: int) -> Float[np.ndarray, "A S"]:
        return self._by_token[self._emission_index(position)]

    def _transitions(self, position: int) -> Float[np.ndarray, "S S"]:
        return self.transition[position] if self.transition.ndim == 3 else self.transition
