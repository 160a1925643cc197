"""Probabilistic automata: the next token and the next state are drawn together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from oracles.base import LinearForm
from oracles.checks import as_finite, as_integer, as_laws, axes_of
from oracles.errors import ParameterError, ShapeError
from oracles.isan import switched_product
from oracles.recurrent import RecurrentOracle
from oracles.storage import storable


@storable("probabilistic_automaton")
@dataclass(frozen=True, eq=False, repr=False)
class ProbabilisticAutomaton(RecurrentOracle):
    """Probabilistic automaton with S states: P(x) = π W_1[x_1] ··· W_T[x_T] 1.

    Arguments:
        initial: π, shape (S,).
        transitions: W[z, s, s'] = P(token z and next state s' | state s), shape (A, S, S),
            or per step (T, A, S, S); Σ_(z,s') W[z, s, s'] = 1 for every s.
        horizon: T ≥ 1.

    The state is the belief b over the automaton's state: b ← normalise(b W[z]). Probability rank ≤ S.
    Raises ShapeError, NonFiniteError or ProbabilityError on arrays that are not laws.
    """

    initial: Float[np.ndarray, "S"]
    transitions: Float[np.ndarray, "*steps A S S"]
    horizon: int

    def __post_init__(self) -> None:
        horizon = as_integer("horizon", self.horizon, 1)
        initial = as_laws("initial", self.initial, "(n_states,)", 1)
        per_step, states = axes_of(self.transitions) == 4, len(initial)
        symbolic = f"({'horizon, ' * per_step}vocab_size, n_states, n_states)"
        given = as_finite("transitions", self.transitions, symbolic, 4 if per_step else 3)
        vocab_size = given.shape[-3]
        expected = (horizon,) * per_step + (vocab_size, states, states)
        if given.shape != expected:
            raise ShapeError("transitions", symbolic, expected, given.shape)
        joint = np.moveaxis(given, -3, -2)  # (…, S, A, S): one law over (token, next state) per state
        flat = joint.reshape(*joint.shape[:-2], vocab_size * states)
        laws = as_laws("transitions", flat, "(…, n_states, vocab_size·n_states)", 2 + per_step)
        transitions = np.ascontiguousarray(np.moveaxis(laws.reshape(joint.shape), -2, -3))
        for name, value in {
            "initial": initial,
            "transitions": transitions,
            "horizon": horizon,
            "vocab_size": vocab_size,
        }.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_dfa(cls, delta: ArrayLike, start: int, horizon: int) -> ProbabilisticAutomaton:
        """Uniform walk of a deterministic automaton: every enabled token is equally likely.

        delta: (S, A) integers, delta[s, z] the next state, or −1 where z is disabled in s.
        Raises ParameterError if a state where everything is disabled can be reached before the end.
        """
        table: np.ndarray = np.asarray(delta) if axes_of(delta) == 2 else np.empty((0, 0))
        if table.dtype.kind not in "iu" or table.size == 0:
            raise ShapeError(
                "delta",
                "(n_states, vocab_size) of integers",
                "2 axes",
                f"{axes_of(delta)} axes, {table.dtype}",
            )
        states, vocab_size = table.shape
        if table.min() < -1 or table.max() >= states:
            raise ParameterError(f"delta must be in −1..{states - 1}, got {table.min()}..{table.max()}")
        start, horizon = as_integer("start", start, 0, states - 1), as_integer("horizon", horizon, 1)
        enabled = table >= 0
        stuck = ~enabled.any(axis=1)
        reached = np.arange(states) == start
        for t in range(horizon):
            if (reached & stuck).any():
                state = int(np.flatnonzero(reached & stuck)[0])
                raise ParameterError(
                    f"state {state} is reached after {t} tokens and enables none: shorten horizon"
                )
            reached = np.isin(np.arange(states), table[reached])
        transitions = np.zeros((vocab_size, states, states))
        source, token = np.nonzero(enabled)
        transitions[token, source, table[source, token]] = 1 / enabled.sum(axis=1)[source]
        transitions[0, stuck, stuck] = 1.0  # never walked: any law will do
        return cls((np.arange(states) == start).astype(np.float64), transitions, horizon)

    @property
    def n_states(self) -> int:
        """Number of states S."""
        return len(self.initial)

    def __repr__(self) -> str:
        sizes = f"n_states={self.n_states}, vocab_size={self.vocab_size}, horizon={self.horizon}"
        return f"ProbabilisticAutomaton({sizes})"

    def first_row(self) -> Float[np.ndarray, "S"]:
        return self.initial

    def step(
        self, position: int, rows: Float[np.ndarray, "batch S"], tokens: Int[np.ndarray, "batch"]
    ) -> Float[np.ndarray, "batch S"]:
        moved = switched_product(rows, self._transitions_at(position), tokens)
        mass = moved.sum(axis=1, keepdims=True)
        impossible = mass[:, 0] <= 0
        if impossible.any():  # probability zero: any law may follow, keep the belief
            moved[impossible], mass[impossible] = rows[impossible], 1.0
        moved /= mass
        return moved

    def laws(self, position: int, rows: Float[np.ndarray, "batch S"]) -> Float[np.ndarray, "batch A"]:
        probabilities = rows @ self._emission[position if self.transitions.ndim == 4 else 0]
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        with np.errstate(divide="ignore"):
            return np.log(probabilities)

    def linear_form(self) -> LinearForm:
        """The automaton itself, with a final vector of ones."""
        operators = [self._transitions_at(t) for t in range(self.horizon)]
        return LinearForm(self.initial, operators, np.ones(self.n_states))

    def _transitions_at(self, position: int) -> Float[np.ndarray, "A S S"]:
        return self.transitions[position] if self.transitions.ndim == 4 else self.transitions

    @cached_property
    def _emission(self) -> Float[np.ndarray, "steps S A"]:
        """P(token | state)."""
        stacked = self.transitions if self.transitions.ndim == 4 else self.transitions[None]
        return np.ascontiguousarray(stacked.sum(axis=-1).transpose(0, 2, 1))
