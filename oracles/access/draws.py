"""Draws that are functions of (seed, history, draw number): inversion of laws, and drawn strings.

The tokens of draw k of history h use the counters k·stride, k·stride + 1, … of h's stream
(`oracles.counter`), with stride = what the horizon leaves after h (2^32 without a horizon).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

from oracles.base import Oracle, draw_tokens
from oracles.checks import check_log_probs
from oracles.counter import uniforms

#: Counters reserved for one draw when the horizon does not bound it.
_OPEN_STRIDE = 2**32
#: Uniform numbers made at once: a few arrays of this size stay in the second-level cache.
_CELLS = 1 << 14
#: Vocabularies up to this size are inverted by comparing with every threshold, larger by bisection.
_FEW_TOKENS = 12

Drawer = Callable[
    [
        Int[np.ndarray, "g length"],  # distinct heads
        Int[np.ndarray, "r"],  # head of each string, in non-decreasing order
        UInt64[np.ndarray, "r"],  # its stream
        UInt64[np.ndarray, "r"],  # its first counter
        int,  # tokens to draw
    ],
    Int[np.ndarray, "r length"],
]


def strides(lengths: Int[np.ndarray, "n"], horizon: int | None) -> UInt64[np.ndarray, "n"]:
    """Counters reserved for each draw after histories of these lengths."""
    if horizon is None:
        return np.full(len(lengths), _OPEN_STRIDE, dtype=np.uint64)
    return np.maximum(horizon - lengths, 1).astype(np.uint64)


class DrawNumbers:
    """Number of draws made so far of each history."""

    def __init__(self) -> None:
        self._made: dict[bytes, int] = {}

    def first(self, keys: Sequence[bytes], repeats: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """Number of the first new draw of each entry; entries of one history follow one another."""
        first = np.fromiter((self._made.get(key, 0) for key in keys), dtype=np.int64, count=len(keys))
        if len(set(keys)) < len(keys):
            ahead: dict[bytes, int] = {}
            for i, (key, count) in enumerate(zip(keys, repeats.tolist(), strict=True)):
                first[i] += ahead.get(key, 0)
                ahead[key] = ahead.get(key, 0) + count
        return first

    def advance(self, keys: Sequence[bytes], repeats: Int[np.ndarray, "n"]) -> None:
        """Record that the draws were delivered."""
        made = self._made
        for key, count in zip(keys, repeats.tolist(), strict=True):
            if count:
                made[key] = made.get(key, 0) + count


def mixed_laws(
    log_probs: np.ndarray, batch: int, vocab_size: int, noise: float
) -> Float[np.ndarray, "batch vocab"]:
    """(1−ν)·P + ν·uniform for each answered row of log P, after the checks of `check_log_probs`."""
    laws = np.exp(check_log_probs(log_probs, batch, vocab_size))
    return laws if noise == 0 else (1 - noise) * laws + noise / vocab_size


def string_drawer(oracle: Oracle, noise: float, block_rows: int) -> Drawer:
    """A function that continues heads by drawn tokens, `block_rows` strings at a time."""

    def draw_block(
        heads: np.ndarray, owner: np.ndarray, streams: np.ndarray, counters: np.ndarray, length: int
    ) -> np.ndarray:
        tokens = np.empty((len(owner), length), dtype=np.int64)
        state = oracle.advance(oracle.start(len(heads)), heads)
        for j in range(length):
            numbers = uniforms(streams, counters + np.uint64(j))
            rows = len(heads) if j == 0 else len(owner)
            laws = mixed_laws(oracle.log_probs(state), rows, oracle.vocab_size, noise)
            if j == 0:  # all draws of a head share its law; from here on each has its own state
                tokens[:, 0] = invert(np.cumsum(laws, axis=1), owner, numbers)
                state = oracle.take(state, owner) if length > 1 else state
            else:
                tokens[:, j] = draw_tokens(laws, numbers)
            if j + 1 < length:
                state = oracle.advance(state, tokens[:, j])
        return tokens

    def draw(
        heads: np.ndarray, owner: np.ndarray, streams: np.ndarray, counters: np.ndarray, length: int
    ) -> np.ndarray:
        tokens = np.empty((len(owner), length), dtype=np.int64)
        for low in range(0, len(owner) if length else 0, block_rows):
            block = slice(low, low + block_rows)
            first, last = owner[block][0], owner[block][-1]
            tokens[block] = draw_block(
                heads[first : last + 1], owner[block] - first, streams[block], counters[block], length
            )
        return tokens

    return draw


def invert(
    cumulative: Float[np.ndarray, "g vocab"], owner: Int[np.ndarray, "..."], numbers: Float[np.ndarray, "..."]
) -> Int[np.ndarray, "..."]:
    """Tokens with cumulative[owner, token − 1] ≤ u·cumulative[owner, −1] < cumulative[owner, token].

    `owner` broadcasts against `numbers`. The same rule as `oracles.base.draw_tokens`: tokens of
    probability zero are never drawn.
    """
    vocab = cumulative.shape[1]
    thresholds = numbers * cumulative[owner, -1]
    if vocab <= _FEW_TOKENS:
        tokens = np.zeros(thresholds.shape, dtype=np.int64)
        for token in range(vocab - 1):
            tokens += cumulative[owner, token] <= thresholds
        return tokens
    bits = (vocab - 1).bit_length()
    padded = np.full((len(cumulative), 1 << bits), np.inf)
    padded[:, : vocab - 1] = cumulative[:, :-1]
    flat, base = padded.ravel(), owner << bits
    tokens = np.zeros(thresholds.shape, dtype=np.int64)
    for bit in reversed(range(bits)):  # tokens = number of entries ≤ threshold, from its highest bit
        probe = flat[base + tokens + ((1 << bit) - 1)]
        tokens += (probe <= thresholds).astype(np.int64) << bit
    return tokens


def count_tokens(
    cumulative: Float[np.ndarray, "g vocab"], owner: Int[np.ndarray, "n"], numbers: Float[np.ndarray, "n m"]
) -> Int[np.ndarray, "n vocab"]:
    """How often each token is among the draws `invert` makes of each row of `numbers`."""
    n, vocab = len(owner), cumulative.shape[1]
    if vocab <= _FEW_TOKENS:
        thresholds = numbers * cumulative[owner, -1][:, None]
        above = np.empty((n, vocab + 1), dtype=np.int64)  # draws of token ≥ z
        above[:, 0], above[:, vocab] = numbers.shape[1], 0
        for token in range(vocab - 1):
            reached: Bool[np.ndarray, "n m"] = cumulative[owner, token][:, None] <= thresholds
            above[:, token + 1] = np.count_nonzero(reached, axis=1)
        return above[:, :-1] - above[:, 1:]
    tokens = invert(cumulative, owner[:, None], numbers)
    return np.bincount((tokens + np.arange(n)[:, None] * vocab).ravel(), minlength=n * vocab).reshape(
        n, vocab
    )


def tiles(repeats: Int[np.ndarray, "n"]) -> Iterator[tuple[Int[np.ndarray, "k"], Int[np.ndarray, "m"]]]:
    """(rows, draw offsets) rectangles of cache size that cover draws 0..repeats[i]−1 of every row i."""
    for count in np.unique(repeats[repeats > 0]).tolist():
        rows = np.flatnonzero(repeats == count)
        offsets = np.arange(count)
        high = max(1, _CELLS // count)
        for i in range(0, len(rows), high):
            for j in range(0, count, _CELLS):
                yield rows[i : i + high], offsets[j : j + _CELLS]
