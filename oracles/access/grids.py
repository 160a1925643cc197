"""Grids of (history, future) questions: which rectangles of a grid still have to be asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from oracles.access.strings import Packing
from oracles.base import Oracle
from oracles.checks import check_log_probs
from oracles.prefix_tree import Level, prefix_tree

#: log P(f | h) of packed histories × packed futures.
PairAsker = Callable[[Sequence[bytes], Sequence[bytes]], Float[np.ndarray, "n_h n_f"]]


def rectangles(
    positions: Int[np.ndarray, "k"], n_futures: int
) -> Iterator[tuple[Int[np.ndarray, "h f"], Int[np.ndarray, "h"], Int[np.ndarray, "f"]]]:
    """(places in `positions`, histories, futures) of rectangles that cover the cells exactly.

    `positions` are increasing row-major cell numbers of a grid with `n_futures` columns; histories
    with the same set of futures share a rectangle.
    """
    history, future = np.divmod(positions, n_futures)
    starts = np.flatnonzero(np.diff(history, prepend=-1))
    stops = np.append(starts[1:], len(positions))
    patterns: dict[bytes, list[int]] = {}
    for i, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        patterns.setdefault(future[start:stop].tobytes(), []).append(i)
    for members in patterns.values():
        first = starts[members]
        width = int(stops[members[0]] - first[0])
        yield first[:, None] + np.arange(width), history[first], future[first[0] : first[0] + width]


def pair_asker(oracle: Oracle, block_rows: int) -> PairAsker:
    """A function that asks an oracle for log P(f | h), reading every shared prefix of the futures once."""
    packing = Packing(oracle.vocab_size)

    def ask_block(heads: np.ndarray, levels: list[Level], n_futures: int) -> np.ndarray:
        out = np.zeros((len(heads), n_futures))
        histories = np.arange(len(heads))[:, None]
        state = oracle.advance(oracle.start(len(heads)), heads)
        total, nodes = np.zeros((len(heads), 1)), 1
        for depth, level in enumerate(levels[1:], start=1):
            laws = check_log_probs(oracle.log_probs(state), len(heads) * nodes, oracle.vocab_size)
            above = histories * nodes + level.parent
            total = total.ravel()[above] + laws[above, level.token]
            out[:, level.strings] = total[:, level.node]
            if depth + 1 < len(levels):
                state = oracle.take(state, above.ravel())
                state = oracle.advance(state, np.tile(level.token, len(heads)))
            nodes = len(level.token)
        return out

    def ask(heads: Sequence[bytes], tails: Sequence[bytes]) -> np.ndarray:
        levels = list(prefix_tree(list(packing.unpack(tails))))
        per_block = max(1, block_rows // max(len(level.token) for level in levels))
        out = np.empty((len(heads), len(tails)))
        for rows, tokens in packing.by_length(heads):
            for low in range(0, len(rows), per_block):
                block = slice(low, low + per_block)
                out[rows[block]] = ask_block(tokens[block], levels, len(tails))
        return out

    return ask
