"""The contract: a language model is a batched state machine.

An `Oracle` has a vocabulary {0..A−1}, a horizon T (None = unbounded) and four operations on a
*state* whose leading axis is the batch. Everything else — sampling, scoring, logit matrices,
distances, learners — is written once against those four.

Laws, checked on any oracle by `lrlm_sim.testing.check_oracle`:

- `log_probs` rows are float64 and sum to one (their exponentials), NaN never;
- advancing by a chunk equals advancing token by token;
- `take` and `advance` commute; a row's results do not depend on the batch around it;
- states are values: `advance` and `take` leave their argument unchanged;
- `score` is the sum of `log_probs` along the string, and samples follow them;
- wrong tokens, shapes, and strings past the horizon raise the typed errors of `oracles.errors`.

After a history of probability zero any valid law may follow: the string's probability stays zero.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from oracles.checks import (
    as_generator,
    as_integer,
    as_strings,
    as_tokens,
    centred_logits,
    check_length,
    check_log_probs,
)
from oracles.errors import HorizonError
from oracles.prefix_tree import Level, group_by_length, prefix_tree

#: What `start` returns: opaque to callers, only ever passed back to the oracle that made it.
State = Any
#: Most state rows the generic bulk operations hold at once.
_BLOCK_ROWS = 1 << 16


@dataclass(frozen=True, eq=False)
class LinearForm:
    """A law of products: P(x_1..x_T) = initial · O_1[x_1] ··· O_T[x_T] · final.

    Shapes: initial (S,); operators a sequence of T arrays (A, S, S) (one array may stand at many
    positions; S may change from step to step); final (S,).
    """

    initial: Float[np.ndarray, "S"]
    operators: Sequence[Float[np.ndarray, "A S S2"]]
    final: Float[np.ndarray, "S"]


class Oracle(ABC):
    """Abstract language model over strings of at most `horizon` tokens of 0..`vocab_size`−1."""

    vocab_size: int
    horizon: int | None

    @abstractmethod
    def start(self, batch: int) -> State:
        """State of `batch` empty histories."""

    @abstractmethod
    def advance(self, state: State, tokens: ArrayLike) -> State:
        """New state after reading `tokens`, shape (batch,) or a chunk (batch, length)."""

    @abstractmethod
    def log_probs(self, state: State) -> Float[np.ndarray, "batch vocab"]:
        """Natural-log next-token probabilities, float64, shape (batch, vocab_size)."""

    @abstractmethod
    def take(self, state: State, rows: ArrayLike) -> State:
        """State of the given batch rows, shape (n,), repeated or reordered at will."""

    @property
    def identity(self) -> str | None:
        """Text that names this model and its weights in persistent caches; None if it has none."""
        return None

    def linear_form(self) -> LinearForm | None:
        """The law as a product of matrices where the model has one, for exact fast distances."""
        return None

    # Bulk operations: generic here; an oracle whose hardware wants another order overrides them.

    def sample(
        self,
        n: int,
        rng: np.random.Generator | int | None = None,
        history: ArrayLike | None = None,
        length: int | None = None,
    ) -> Int[np.ndarray, "n length"]:
        """`n` strings drawn from P(· | history), int64 (n, length), the history not included.

        `length` defaults to what is left of the horizon. One uniform number per token, drawn in
        row-major order from `rng`, so the first rows do not depend on `n`.
        """
        n = as_integer("n", n, 0)
        history, length = self._span(history, length)
        uniforms = as_generator(rng).random((n, length))
        tokens = np.empty((n, length), dtype=np.int64)
        state = self._after(history, n)
        for t in range(length):
            rows = check_log_probs(self.log_probs(state), n, self.vocab_size)
            tokens[:, t] = draw_tokens(np.exp(rows), uniforms[:, t])
            if t + 1 < length:
                state = self.advance(state, tokens[:, t])
        return tokens

    def score(self, sequences: ArrayLike, history: ArrayLike | None = None) -> Float[np.ndarray, "n"]:
        """Natural log P(sequence | history) of each row of `sequences` (n, length); −inf where impossible."""
        sequences = as_tokens("sequences", sequences, self.vocab_size, 2)
        n, length = sequences.shape
        history, length = self._span(history, length)
        total = np.zeros(n)
        state = self._after(history, n)
        for t in range(length):
            rows = check_log_probs(self.log_probs(state), n, self.vocab_size)
            total += rows[np.arange(n), sequences[:, t]]
            if t + 1 < length:
                state = self.advance(state, sequences[:, t])
        return total

    def next_log_probs(self, histories: Sequence[ArrayLike] | np.ndarray) -> Float[np.ndarray, "n vocab"]:
        """Next-token log-probabilities after each history; ragged lists or a 2-D array."""
        strings = as_strings("histories", histories, self.vocab_size)
        out = np.empty((len(strings), self.vocab_size))
        for rows, tokens in group_by_length(strings):
            for block in np.array_split(np.arange(len(rows)), -(-len(rows) // _BLOCK_ROWS)):
                state = self.advance(self.start(len(block)), tokens[block])
                out[rows[block]] = check_log_probs(self.log_probs(state), len(block), self.vocab_size)
        return out

    def extended_log_probs(
        self, histories: Sequence[ArrayLike] | np.ndarray, futures: Sequence[ArrayLike] | np.ndarray
    ) -> Float[np.ndarray, "n_h n_f vocab"]:
        """Natural log P(· | h∘f) for every history h and future f, (n_h, n_f, A); ragged lists allowed.

        Each history is read once and each distinct prefix of the futures once per history.
        """
        heads = as_strings("histories", histories, self.vocab_size)
        tails = as_strings("futures", futures, self.vocab_size)
        levels = list(prefix_tree(tails))
        per_block = max(1, _BLOCK_ROWS // max(len(level.parent) for level in levels))
        out = np.empty((len(heads), len(tails), self.vocab_size))
        for rows, tokens in group_by_length(heads):
            for first in range(0, len(rows), per_block):
                block = rows[first : first + per_block]
                state = self.advance(self.start(len(block)), tokens[first : first + per_block])
                for ends, laws in self._laws_after(state, levels, len(block)):
                    out[np.ix_(block, ends)] = laws
        return out

    def kept_logits(
        self,
        histories: Sequence[ArrayLike] | np.ndarray,
        futures: Sequence[ArrayLike] | np.ndarray,
        tokens: Int[np.ndarray, "n_f k"],
    ) -> Float[np.ndarray, "n_h n_f k"]:
        """Centred logits after every h∘f of the tokens kept for each future; the mean is over all A tokens.

        Raises ZeroProbabilityError where any token has probability zero.
        """
        logits = centred_logits(self.extended_log_probs(histories, futures))
        return np.take_along_axis(logits, np.asarray(tokens)[None], axis=2)

    def condition(self, history: ArrayLike) -> Oracle:
        """The law of continuations P(· | history) as an oracle with the horizon that is left."""
        history, _ = self._span(history, 0)
        return Conditioned(self, tuple(int(token) for token in history))

    def _laws_after(
        self, state: State, levels: Sequence[Level], batch: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(futures, their laws (batch, futures, A)) level by level, continuing every row of `state`."""
        rows, nodes_above = np.arange(batch)[:, None], 1
        for level in levels:
            if level.token[0] >= 0:  # below the root: repeat the parents, then read one token
                state = self.take(state, (rows * nodes_above + level.parent).ravel())
                state = self.advance(state, np.tile(level.token, batch))
            nodes_above = len(level.parent)
            if len(level.strings):
                ended = (rows * nodes_above + level.node).ravel()
                laws = check_log_probs(self.log_probs(self.take(state, ended)), len(ended), self.vocab_size)
                yield level.strings, laws.reshape(batch, -1, self.vocab_size)

    def _span(self, history: ArrayLike | None, length: int | None) -> tuple[np.ndarray, int]:
        """Validated history, and the length of its continuation (what is left of the horizon)."""
        prefix = as_tokens("history", [] if history is None else history, self.vocab_size, 1)
        if length is None:
            if self.horizon is None:
                raise HorizonError("this model has no horizon: give length=")
            check_length(len(prefix), self.horizon)
            return prefix, self.horizon - len(prefix)
        length = as_integer("length", length, 0)
        check_length(len(prefix) + length, self.horizon)
        return prefix, length

    def _after(self, history: np.ndarray, batch: int) -> State:
        """State of `batch` copies of one history, which is read once."""
        state = self.advance(self.start(1), history[None, :])
        return self.take(state, np.zeros(batch, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Conditioned(Oracle):
    """The continuation law P(· | history) of another oracle."""

    oracle: Oracle
    history: tuple[int, ...]

    def __post_init__(self) -> None:
        horizon = self.oracle.horizon
        object.__setattr__(self, "vocab_size", self.oracle.vocab_size)
        object.__setattr__(self, "horizon", None if horizon is None else horizon - len(self.history))

    def start(self, batch: int) -> State:
        return self.oracle._after(np.array(self.history, dtype=np.int64), as_integer("batch", batch, 0))

    def advance(self, state: State, tokens: ArrayLike) -> State:
        return self.oracle.advance(state, tokens)

    def log_probs(self, state: State) -> Float[np.ndarray, "batch vocab"]:
        return self.oracle.log_probs(state)

    def take(self, state: State, rows: ArrayLike) -> State:
        return self.oracle.take(state, rows)


def draw_tokens(laws: Float[np.ndarray, "n vocab"], uniforms: Float[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """One token per row by inverting the cumulative law; zero-probability tokens are never drawn."""
    cumulative = np.cumsum(laws, axis=1)
    thresholds = uniforms * cumulative[:, -1]
    return (cumulative <= thresholds[:, None]).sum(axis=1)
