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
_SAMPLE_BLOCK = 1024  # strings drawn together: uniforms and codes stay in cache
_LARGEST_JOINT = 1 << 15  # entries of a joint table of (state, token, next state) that still fits the cache
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
        """Hidden path and tokens by alias tables, one table look-up per token, no filtering.

        One uniform number per token and one for the first state (two per token where the joint table
        of token and next state would be too large), in row-major order from `rng`.
        """
        n = as_integer("n", n, 0)
        prefix, length = self._span(history, length)
        rng = as_generator(rng)
        tokens = np.empty((n, length), dtype=np.int64)
        start = AliasTable.build(self._after(prefix, 1).rows)
        path = self._joint_path if self._joint_tables else self._two_step_path
        numbers = length + 1 if self._joint_tables else 2 * length + 1
        for low in range(0, n, _SAMPLE_BLOCK):
            block = tokens[low : low + _SAMPLE_BLOCK]
            uniforms = np.ascontiguousarray(rng.random((len(block), numbers)).T)
            states = start.draw(np.zeros(len(block), dtype=np.int64), uniforms[0])
            block[:] = path(len(prefix), length, states, uniforms[1:]).T
        return tokens

    def _joint_path(
        self, offset: int, length: int, states: Int[np.ndarray, "n"], uniforms: Float[np.ndarray, "T n"]
    ) -> Int[np.ndarray, "T n"]:
        """Tokens along hidden paths from `states`: each draw gives token · 2^bits + next state."""
        codes = np.empty((length, len(states)), dtype=np.int64)
        bits = _bits(self.n_states)
        for t in range(length):
            self._joint_tables[min(offset + t, len(self._joint_tables) - 1)].draw(
                states, uniforms[t], out=codes[t]
            )
            states = codes[t] & ((1 << bits) - 1)
        return codes >> bits

    def _two_step_path(
        self, offset: int, length: int, states: Int[np.ndarray, "n"], uniforms: Float[np.ndarray, "T2 n"]
    ) -> Int[np.ndarray, "T n"]:
        tokens = np.empty((length, len(states)), dtype=np.int64)
        for t in range(length):
            emission = self._emission_tables[self._emission_index(offset + t)]
            emission.draw(states, uniforms[2 * t], out=tokens[t])
            if t + 1 < length:
                transition = self._transition_tables[self._transition_index(offset + t)]
                states = transition.draw(states, uniforms[2 * t + 1])
        return tokens

    def _emission_index(self, position: int) -> int:
        return position if self.emission.ndim == 3 else 0

    def _transition_index(self, position: int) -> int:
        return position if self.transition.ndim == 3 else 0

    @cached_property
    def _by_token(self) -> Float[np.ndarray, "steps A S"]:
        emission = self.emission if self.emission.ndim == 3 else self.emission[None]
        return np.ascontiguousarray(emission.transpose(0, 2, 1))

    @cached_property
    def _joint_tables(self) -> list[AliasTable]:
        """Tables of (token, next state) given the state, one for all positions or one each; [] if large."""
        size = 1 << _bits(self.n_states)
        if self.n_states * self.vocab_size * size > _LARGEST_JOINT:
            return []
        stays = np.eye(self.n_states)[None]  # nothing follows the last token: any next state will do
        q = self.transition if self.transition.ndim == 2 else np.concatenate([self.transition, stays])
        joint = self._by_token[..., None] * q[..., None, :, :]  # (steps, A, S, S')
        laws = np.zeros((len(joint), self.n_states, self.vocab_size, size))
        laws[..., : self.n_states] = joint.transpose(0, 2, 1, 3)
        return [AliasTable.build(law) for law in laws.reshape(len(joint), self.n_states, -1)]

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


def _bits(n_states: int) -> int:
    """Bits that hold a state number."""
    return (n_states - 1).bit_length()
