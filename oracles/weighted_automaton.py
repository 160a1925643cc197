"""Weighted automata: laws that are products of matrices, of any sign."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from oracles.base import LinearForm
from oracles.checks import SUM_TOLERANCE, as_finite, as_integer, axes_of
from oracles.errors import NonFiniteError, ProbabilityError, ShapeError
from oracles.isan import switched_product
from oracles.recurrent import RecurrentOracle
from oracles.storage import storable

_MASS_ROUNDING = 1e-14  # a mass this near to 1 is left as it is, so that a saved model is loaded bit for bit
_NOISE = 1e-13  # a sum this small against the sum of its absolute values is all rounding


@storable("weighted_automaton")
@dataclass(frozen=True, eq=False, repr=False)
class WeightedAutomaton(RecurrentOracle):
    """Weighted automaton with S states: P(x) = α A_1[x_1] ··· A_T[x_T] β.

    Arguments:
        initial: α, shape (S,), any sign.
        weights: A, shape (A, S, S) acting on row vectors, or per step (T, A, S, S).
        final: β, shape (S,).
        horizon: T ≥ 1.

    With β_T = β, β_t = Σ_z A_(t+1)[z] β_(t+1) and α_h = α A[h_1] ··· A[h_t],
    P(z | h) = α_h A[z] β_(t+1) / α_h β_t. Every law of probability rank ≤ S at all cuts has this
    form. Whether all P(x) ≥ 0 cannot be checked cheaply: a negative conditional mass raises
    ProbabilityError when it is met; negative or positive values that are rounding noise (below 1e-13
    of the sum of absolute values; down to −1e-9 for negative ones) are zero.
    Raises ShapeError or NonFiniteError on bad arrays, ProbabilityError when the total mass is not 1.
    """

    initial: Float[np.ndarray, "S"]
    weights: Float[np.ndarray, "*steps A S S"]
    final: Float[np.ndarray, "S"]
    horizon: int
    _backward: list[np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        horizon = as_integer("horizon", self.horizon, 1)
        initial = as_finite("initial", self.initial, "(n_states,)", 1)
        final = as_finite("final", self.final, "(n_states,)", 1)
        per_step, states = axes_of(self.weights) == 4, len(initial)
        symbolic = f"({'horizon, ' * per_step}vocab_size, n_states, n_states)"
        weights = as_finite("weights", self.weights, symbolic, 4 if per_step else 3)
        expected = (horizon,) * per_step + (weights.shape[-3], states, states)
        if weights.shape != expected or weights.shape[-3] == 0 or states == 0:
            raise ShapeError("weights", symbolic, expected, weights.shape)
        if final.shape != initial.shape:
            raise ShapeError("final", "(n_states,)", initial.shape, final.shape)
        for name, value in {
            "initial": initial.copy(),
            "weights": weights.copy(),
            "horizon": horizon,
            "vocab_size": weights.shape[-3],
        }.items():
            object.__setattr__(self, name, value)
        backward = _backward_vectors(weights, final, horizon)
        mass = float(initial @ backward[0])
        if abs(mass - 1) > SUM_TOLERANCE:
            hint = "divide final by it" if mass > 0 else "it must be positive"
            raise ProbabilityError(f"the total mass of all strings must be 1, got {mass:.12g}: {hint}")
        if abs(mass - 1) <= _MASS_ROUNDING:
            mass = 1.0
        object.__setattr__(self, "final", final / mass)
        object.__setattr__(self, "_backward", [vector / mass for vector in backward])

    @property
    def n_states(self) -> int:
        """Number of states S."""
        return len(self.initial)

    def __repr__(self) -> str:
        sizes = f"n_states={self.n_states}, vocab_size={self.vocab_size}, horizon={self.horizon}"
        return f"WeightedAutomaton({sizes})"

    def first_row(self) -> Float[np.ndarray, "S"]:
        return self.initial

    def step(
        self, position: int, rows: Float[np.ndarray, "batch S"], tokens: Int[np.ndarray, "batch"]
    ) -> Float[np.ndarray, "batch S"]:
        masses, absolute = self._masses(position, rows)
        chosen = np.arange(len(rows)), tokens
        mass = masses[chosen]
        alive = _real(mass, absolute[chosen], position)
        moved = switched_product(rows, self._weights_at(position), tokens)
        mass[~alive] = 1.0
        moved /= mass[:, None]
        moved[~alive] = 0.0  # an impossible history; `laws` answers it with the uniform law
        return moved

    def laws(self, position: int, rows: Float[np.ndarray, "batch S"]) -> Float[np.ndarray, "batch A"]:
        masses, absolute = self._masses(position, rows)
        masses[~_real(masses, absolute, position)] = 0.0
        masses[~rows.any(axis=1)] = 1.0
        masses /= masses.sum(axis=1, keepdims=True)
        with np.errstate(divide="ignore"):
            return np.log(masses)

    def linear_form(self) -> LinearForm:
        """The automaton itself."""
        return LinearForm(self.initial, [self._weights_at(t) for t in range(self.horizon)], self.final)

    def _weights_at(self, position: int) -> Float[np.ndarray, "A S S"]:
        return self.weights[position] if self.weights.ndim == 4 else self.weights

    def _masses(
        self, position: int, rows: Float[np.ndarray, "batch S"]
    ) -> tuple[Float[np.ndarray, "batch A"], Float[np.ndarray, "batch A"]]:
        """α_h A[z] β_(t+1) for every token, and the sum of the absolute values of its terms."""
        readout, absolute = self._readouts[position]
        return rows @ readout, np.abs(rows) @ absolute

    @cached_property
    def _readouts(self) -> list[tuple[Float[np.ndarray, "S A"], Float[np.ndarray, "S A"]]]:
        """Per position, the masses A[z] β_(t+1) of every token, and the same with absolute values."""
        pairs = []
        for t in range(self.horizon):
            weights, ahead = self._weights_at(t), self._backward[t + 1]
            pairs.append(((weights @ ahead).T.copy(), (np.abs(weights) @ np.abs(ahead)).T.copy()))
        return pairs


def _backward_vectors(
    weights: Float[np.ndarray, "*steps A S S"], final: Float[np.ndarray, "S"], horizon: int
) -> list[Float[np.ndarray, "S"]]:
    """β_0, …, β_T; NonFiniteError when the products leave the range of floats."""
    sums = weights.sum(axis=-3)
    vectors = [final]
    with np.errstate(over="ignore", invalid="ignore"):
        for t in reversed(range(horizon)):
            vectors.append((sums[t] if sums.ndim == 3 else sums) @ vectors[-1])
    if not np.isfinite(vectors[-1]).all():
        raise NonFiniteError("the total mass of all strings overflows: rescale weights and final")
    return vectors[::-1]


def _real(
    masses: Float[np.ndarray, "*shape"], absolute: Float[np.ndarray, "*shape"], position: int
) -> Bool[np.ndarray, "*shape"]:
    """Which masses are positive beyond rounding; ProbabilityError if one is truly negative."""
    noise = _NOISE * absolute
    if (masses < -SUM_TOLERANCE - noise).any():
        raise ProbabilityError(
            f"conditional mass {masses.min():.3g} < 0 at position {position}: the weights are not a law"
        )
    return masses > noise
