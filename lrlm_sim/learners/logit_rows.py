"""What a logit learner has asked: rows, each string paid for once, and a pool of histories."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from lrlm_sim.learners.prefix_laws import all_strings
from oracles.access import LogitAccess
from oracles.access.grids import rectangles
from oracles.access.strings import Packing

#: A future without its last token: one logit query after h∘context answers the words (context, ·).
Context = tuple[int, ...]

#: Rectangles of fewer questions are gathered into one ragged batch.
_SMALL = 32


class RowMemory:
    """Centred logits L(· | h), asked through one access and never asked twice."""

    def __init__(self, access: LogitAccess) -> None:
        self._access = access
        self._packing = Packing(access.vocab_size)
        self._place: dict[bytes, int] = {}
        self._rows = np.empty((64, access.vocab_size))

    @property
    def size(self) -> int:
        """Number of distinct strings asked."""
        return len(self._place)

    def grid(
        self, histories: Int[np.ndarray, "n t"], contexts: Sequence[Context]
    ) -> Float[np.ndarray, "n contexts vocab"]:
        """L(· | h∘f) for every row h and context f."""
        tails = [np.array(context, dtype=np.int64) for context in contexts]
        ends = self._packing.pack("contexts", tails)
        keys = [head + end for head in self._packing.pack("histories", histories) for end in ends]
        missing = np.array([i for i, key in enumerate(keys) if key not in self._place], dtype=np.int64)
        rest: list[int] = []
        for places, h, f in rectangles(missing, len(tails)) if len(missing) else ():
            cells = missing[places]
            if cells.size < _SMALL:
                rest.extend(cells.ravel().tolist())
            else:
                rows = self._access.grid(histories[h], [tails[j] for j in f.tolist()])
                self._remember([keys[i] for i in cells.ravel().tolist()], rows.reshape(cells.size, -1))
        if rest:
            strings = [np.append(histories[i // len(tails)], tails[i % len(tails)]) for i in rest]
            self._remember([keys[i] for i in rest], self._access.logits(strings))
        places = np.fromiter((self._place[key] for key in keys), dtype=np.int64, count=len(keys))
        return self._rows[places].reshape(len(histories), len(tails), -1)

    def along(self, strings: Int[np.ndarray, "n T"]) -> Float[np.ndarray, "n T vocab"]:
        """L(· | x_<t) for every position t of every string, each distinct prefix asked once."""
        out = np.empty((*strings.shape, self._access.vocab_size))
        for position in range(strings.shape[1]):
            prefixes, owner = np.unique(strings[:, :position], axis=0, return_inverse=True)
            out[:, position] = self.grid(prefixes, [()])[owner.ravel(), 0]
        return out

    def _remember(self, keys: list[bytes], rows: np.ndarray) -> None:
        first = len(self._place)
        self._place.update(zip(keys, range(first, first + len(keys)), strict=True))
        while len(self._place) > len(self._rows):
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
        self._rows[first : first + len(keys)] = rows


class HistoryPool:
    """Histories of every length, kept across epochs: prefixes of teacher strings and of uniform ones.

    `exhaustive` replaces them by all A^t strings of each length.
    """

    def __init__(
        self,
        access: LogitAccess,
        horizon: int,
        exploration: float,
        rng: np.random.Generator,
        exhaustive: bool = False,
    ) -> None:
        self._access, self._horizon, self._exploration, self._rng = access, horizon, exploration, rng
        self._exhaustive = exhaustive
        self._found = np.empty((0, horizon), dtype=np.int64)
        self._drawn = np.empty((0, horizon), dtype=np.int64)

    @property
    def size(self) -> int:
        """Number of strings whose prefixes are available."""
        return len(self._found) + len(self._drawn)

    def add(self, strings: Int[np.ndarray, "n T"]) -> None:
        """Take in strings on which a model failed; every later selection includes their prefixes."""
        self._found = np.concatenate([self._found, strings])

    def prefixes(self, length: int, count: int) -> Int[np.ndarray, "rows length"]:
        """Distinct histories of one length: those of all added strings, and of `count` drawn ones."""
        if length == 0:
            return np.empty((1, 0), dtype=np.int64)
        if self._exhaustive:
            return all_strings(self._access.vocab_size, length)
        missing = count - len(self._drawn)
        if missing > 0:
            uniform = round(missing * self._exploration)
            random = self._rng.integers(self._access.vocab_size, size=(uniform, self._horizon))
            drawn = self._access.sample(missing - uniform, length=self._horizon)
            self._drawn = np.concatenate([self._drawn, drawn, random])
        strings = np.concatenate([self._found, self._drawn[:count]])
        return np.unique(strings[:, :length], axis=0)
