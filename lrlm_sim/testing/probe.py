"""What every law of the oracle contract starts from: strings, reference laws, comparisons."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from lrlm_sim.testing.contract import Violation
from oracles.base import Oracle

#: Longest horizon that laws walk to its end.
MAX_WALK = 4096
_LIKELY = 1e-9  # reference strings take tokens at least this probable: rounding noise is not a token


@dataclass(frozen=True, eq=False)
class Probe:
    """An oracle and what to ask it; `strings` and `laws` are its own token-by-token walk."""

    oracle: Oracle
    seed: int
    n: int
    max_length: int
    samples: int
    tolerance: float

    @property
    def length(self) -> int:
        """Length of the reference strings: the horizon, or `max_length` if that is shorter."""
        horizon = self.oracle.horizon
        return self.max_length if horizon is None else min(self.max_length, horizon)

    @property
    def full_horizon(self) -> int | None:
        """The horizon if there is one and it is short enough to be walked."""
        horizon = self.oracle.horizon
        return None if horizon is None or horizon > MAX_WALK else horizon

    def rng(self, purpose: str) -> np.random.Generator:
        """Generator of its own for each purpose, so that laws do not depend on each other's order."""
        return np.random.default_rng([self.seed, zlib.crc32(purpose.encode())])

    @property
    def strings(self) -> Int[np.ndarray, "n length"]:
        """Possible strings: even rows follow the model, odd rows are uniform over its likely tokens."""
        return self._walk[0]

    @property
    def laws(self) -> Float[np.ndarray, "n length vocab"]:
        """Log-probabilities of the next token along `strings`, `laws[:, t]` after t tokens."""
        return self._walk[1]

    @property
    def string_scores(self) -> Float[np.ndarray, "n length"]:
        """Running sums of the log-probabilities of `strings`."""
        return np.cumsum(np.take_along_axis(self.laws, self.strings[:, :, None], axis=2)[:, :, 0], axis=1)

    @cached_property
    def _walk(self) -> tuple[np.ndarray, np.ndarray]:
        rng = self.rng("strings")
        strings = np.zeros((self.n, self.length), dtype=np.int64)
        laws = np.empty((self.n, self.length, self.oracle.vocab_size))
        state = self.oracle.start(self.n)
        for t in range(self.length):
            place = f"{self.n} strings after {t} tokens: {strings[:, :t].tolist()}"
            laws[:, t] = self.valid_laws(self.oracle.log_probs(state), self.n, place)
            p = np.exp(laws[:, t])
            p[1::2] = p[1::2] >= np.minimum(_LIKELY, p[1::2].max(axis=1, keepdims=True))
            cumulative = np.cumsum(p, axis=1)
            strings[:, t] = (cumulative <= rng.random((self.n, 1)) * cumulative[:, -1:]).sum(axis=1)
            if t + 1 < self.length:
                state = self.oracle.advance(state, strings[:, t].copy())
        return strings, laws

    def valid_laws(self, rows: np.ndarray, batch: int, inputs: str) -> Float[np.ndarray, "batch vocab"]:
        """`rows` if they are float64 log-laws of the right shape; Violation otherwise."""
        self.array("log_probs", rows, (batch, self.oracle.vocab_size), np.float64, inputs)
        if np.isnan(rows).any():
            raise Violation(
                inputs, "log-probabilities", f"NaN in row {int(np.isnan(rows).any(axis=1).argmax())}"
            )
        with np.errstate(over="ignore"):
            gaps = np.abs(np.exp(rows).sum(axis=1) - 1)
        if (gaps > self.tolerance).any():
            row = int(gaps.argmax())
            raise Violation(
                inputs,
                f"rows that sum to one within {self.tolerance:g}",
                f"row {row} is off by {gaps[row]:.3g}",
            )
        return rows

    @staticmethod
    def array(name: str, values: object, shape: tuple[int, ...], dtype: type, inputs: str) -> np.ndarray:
        """`values` if it is an array of this shape and dtype; Violation otherwise."""
        expected = f"{name}: an array {shape} {np.dtype(dtype)}"
        if not isinstance(values, np.ndarray):
            raise Violation(inputs, expected, f"a {type(values).__name__}")
        if values.shape != shape or values.dtype != dtype:
            raise Violation(inputs, expected, f"{values.shape} {values.dtype}")
        return values

    def same_laws(self, inputs: str, expected: np.ndarray, actual: np.ndarray) -> float:
        """`same_scores` for rows of next-token log-probabilities.

        Probabilities within 1e-4·tolerance of each other count as equal, so that the rounding noise of
        near-impossible tokens is not taken for an error.
        """
        self.array("log-probabilities", actual, expected.shape, np.float64, inputs)
        with np.errstate(over="ignore"):
            close = np.abs(np.exp(expected) - np.exp(actual)) <= 1e-4 * self.tolerance
        return self.same_scores(inputs, expected, np.where(close, expected, actual))

    def same_scores(self, inputs: str, expected: np.ndarray, actual: np.ndarray) -> float:
        """Largest |a − b|/(1 + |a|) of two arrays of log-probabilities; Violation above `tolerance`."""
        self.array("log-probabilities", actual, expected.shape, np.float64, inputs)
        with np.errstate(invalid="ignore"):
            deviation = np.abs(expected - actual) / (1 + np.abs(expected))
        deviation = np.where(expected == actual, 0.0, np.where(np.isnan(deviation), np.inf, deviation))
        if deviation.size == 0:
            return 0.0
        if deviation.max() > self.tolerance:
            where = tuple(int(i) for i in np.unravel_index(deviation.argmax(), deviation.shape))
            raise Violation(
                f"{inputs}, entry {list(where)}",
                f"{expected[where]:.12g} within {self.tolerance:g}·(1 + |·|)",
                f"{actual[where]:.12g}",
            )
        return float(deviation.max())

    @staticmethod
    def refuses(inputs: str, call: Callable[[], object], *errors: type[Exception]) -> None:
        """Violation unless `call` raises one of `errors`."""
        names = " or ".join(error.__name__ for error in errors)
        try:
            answer = call()
        except errors:
            return
        except Exception as error:
            raise Violation(inputs, names, f"{type(error).__name__}: {error}") from error
        raise Violation(inputs, names, f"no error, answer of type {type(answer).__name__}")
