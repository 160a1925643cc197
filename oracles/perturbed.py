"""Bounded logit noise on any oracle: laws of approximately low logit rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt64
from numpy.typing import ArrayLike

from oracles.base import Oracle, State
from oracles.checks import as_integer, as_number, as_rows
from oracles.counter import extend_keys, start_keys, uniforms
from oracles.errors import ParameterError
from oracles.isan import log_softmax
from oracles.storage import storable


@dataclass(frozen=True, eq=False)
class PerturbedState:
    """State of the oracle underneath, and the 64-bit key of every history."""

    inner: State
    keys: UInt64[np.ndarray, "batch"]


@storable("perturbed")
@dataclass(frozen=True, eq=False, repr=False)
class Perturbed(Oracle):
    """The law softmax(log P(· | h) + noise(seed, h, ·)), noise uniform in [−scale, scale].

    The noise of a (history, token) pair is a function of (seed, history, token), so answers repeat
    and never depend on batches. Next-token laws move by at most `scale` in total variation; impossible
    tokens stay impossible; before centring each logit moves by at most `scale`.
    """

    oracle: Oracle
    scale: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.oracle, Oracle):
            raise ParameterError(f"oracle must be an Oracle, got {type(self.oracle).__name__}")
        for name, value in {
            "scale": as_number("scale", self.scale, 0.0),
            "seed": as_integer("seed", self.seed, 0),
            "vocab_size": self.oracle.vocab_size,
            "horizon": self.oracle.horizon,
        }.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"perturbed({self.oracle!r}, scale={self.scale:g}, seed={self.seed})"

    @property
    def identity(self) -> str | None:
        inner = self.oracle.identity
        return None if inner is None else f"perturbed({inner}, scale={self.scale!r}, seed={self.seed})"

    def start(self, batch: int) -> PerturbedState:
        return PerturbedState(self.oracle.start(batch), start_keys(batch, self.seed, "perturbed"))

    def advance(self, state: PerturbedState, tokens: ArrayLike) -> PerturbedState:
        inner = self.oracle.advance(state.inner, tokens)  # checks the tokens
        return PerturbedState(inner, extend_keys(state.keys, tokens))

    def log_probs(self, state: PerturbedState) -> Float[np.ndarray, "batch vocab"]:
        laws = self.oracle.log_probs(state.inner)
        noise = 2.0 * uniforms(state.keys[:, None], np.arange(self.vocab_size)) - 1.0
        return log_softmax(laws + self.scale * noise)

    def take(self, state: PerturbedState, rows: ArrayLike) -> PerturbedState:
        inner = self.oracle.take(state.inner, rows)
        return PerturbedState(inner, state.keys[as_rows(rows, len(state.keys))])


def perturbed(oracle: Oracle, scale: float, seed: int = 0) -> Perturbed:
    """`oracle` with deterministic uniform logit noise in [−scale, scale]; see `Perturbed`."""
    return Perturbed(oracle, scale, seed)
