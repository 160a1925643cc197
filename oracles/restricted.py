"""A language model on some of the tokens of another one, and cut to a horizon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from oracles.base import Oracle, State
from oracles.checks import as_chunk, as_integer, as_rows, as_strings, as_tokens, check_length
from oracles.errors import HorizonError, ParameterError
from oracles.isan import log_softmax
from oracles.storage import storable


@dataclass(frozen=True, eq=False)
class RestrictedState:
    """State of the oracle underneath after `length` tokens, for `batch` histories."""

    inner: State
    batch: int
    length: int


@storable("restricted")
@dataclass(frozen=True, eq=False, repr=False)
class Restricted(Oracle):
    """P(z | h) of another model given that z is one of `kept`; token i stands for `kept[i]`.

    A law of its own: every next-token law is renormalised, the computation of the model stays inside. Where
    none of the kept tokens is possible the law is uniform. It makes a large vocabulary small enough for
    learners that ask every token, and leaves out tokens that a network never emits.

    Arguments:
        oracle: the model underneath.
        kept: different tokens of it, (A′,).
        horizon: at most the one underneath; None is that one.
    """

    oracle: Oracle
    kept: Int[np.ndarray, "vocab"]
    horizon: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.oracle, Oracle):
            raise ParameterError(f"oracle must be an Oracle, got {type(self.oracle).__name__}")
        kept = as_tokens("kept", self.kept, self.oracle.vocab_size, 1)
        if not len(kept) or len(np.unique(kept)) < len(kept):
            raise ParameterError(f"kept must be different tokens, at least one, got {kept.tolist()}")
        horizon, longest = self.horizon, self.oracle.horizon
        if horizon is not None:
            horizon = as_integer("horizon", horizon, 1)
            if longest is not None and horizon > longest:
                raise HorizonError(
                    f"horizon must be at most {longest}, that of the model underneath, got {horizon}"
                )
        object.__setattr__(self, "kept", kept)
        object.__setattr__(self, "horizon", longest if horizon is None else horizon)
        object.__setattr__(self, "vocab_size", len(kept))

    def __repr__(self) -> str:
        return f"restricted({self.oracle!r}, {len(self.kept)} tokens, horizon={self.horizon})"

    @property
    def identity(self) -> str | None:
        inner = self.oracle.identity
        return None if inner is None else f"restricted({inner}, {self.kept.tolist()}, {self.horizon})"

    def start(self, batch: int) -> RestrictedState:
        return RestrictedState(self.oracle.start(batch), as_integer("batch", batch, 0), 0)

    def advance(self, state: RestrictedState, tokens: ArrayLike) -> RestrictedState:
        chunk = as_chunk(tokens, state.batch, self.vocab_size)
        length = state.length + chunk.shape[1]
        check_length(length, self.horizon)
        return RestrictedState(self.oracle.advance(state.inner, self.kept[chunk]), state.batch, length)

    def take(self, state: RestrictedState, rows: ArrayLike) -> RestrictedState:
        chosen = as_rows(rows, state.batch)
        return RestrictedState(self.oracle.take(state.inner, chosen), len(chosen), state.length)

    def log_probs(self, state: RestrictedState) -> Float[np.ndarray, "batch vocab"]:
        self._check_follows(state.length)
        return self._renormalised(self.oracle.log_probs(state.inner))

    def next_log_probs(self, histories: Sequence[ArrayLike] | np.ndarray) -> Float[np.ndarray, "n vocab"]:
        return self._renormalised(self.oracle.next_log_probs(self._underneath("histories", histories, 1)))

    def extended_log_probs(
        self, histories: Sequence[ArrayLike] | np.ndarray, futures: Sequence[ArrayLike] | np.ndarray
    ) -> Float[np.ndarray, "n_h n_f vocab"]:
        heads = self._underneath("histories", histories, 0)
        tails = self._underneath("futures", futures, 0)
        self._check_follows(max(map(len, heads), default=0) + max(map(len, tails), default=0))
        return self._renormalised(self.oracle.extended_log_probs(heads, tails))

    def _underneath(
        self, name: str, strings: Sequence[ArrayLike] | np.ndarray, more: int
    ) -> list[np.ndarray]:
        """Strings in the tokens of the model underneath, each of which `more` tokens can follow."""
        found = [self.kept[string] for string in as_strings(name, strings, self.vocab_size)]
        check_length(max(map(len, found), default=0) + more, self.horizon)
        return found

    def _check_follows(self, length: int) -> None:
        check_length(length + 1, self.horizon)

    def _renormalised(self, laws: Float[np.ndarray, "*cells inner"]) -> Float[np.ndarray, "*cells vocab"]:
        found = laws[..., self.kept]
        found[np.isneginf(found).all(axis=-1)] = 0.0
        return log_softmax(found)


def restricted(oracle: Oracle, kept: ArrayLike, horizon: int | None = None) -> Restricted:
    """`oracle` given that every token is one of `kept`; see `Restricted`."""
    return Restricted(oracle, kept, horizon)  # type: ignore[arg-type]
