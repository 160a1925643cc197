"""Answers that are functions of the question: asked once, charged once, remembered in a cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from oracles.cache import Cache, Space
from oracles.errors import InconsistentAnswerError
from oracles.ledger import Charge, Meter

#: Asks the teacher: positions in a batch of questions → one answer row each.
Ask = Callable[[Int[np.ndarray, "k"]], np.ndarray]


@dataclass(frozen=True, eq=False)
class Answers:
    """Rows in the order of the questions; rows that the budget did not pay for are NaN."""

    rows: Float[np.ndarray, "n width"]
    answered: Bool[np.ndarray, "n"]

    @property
    def complete(self) -> bool:
        """Whether every question was answered."""
        return bool(self.answered.all())

    @property
    def prefix(self) -> int:
        """Number of questions before the first unanswered one."""
        return len(self.rows) if self.complete else int(np.argmin(self.answered))


@dataclass(frozen=True)
class Verification:
    """Ask every `every`-th answer that the cache would give again, and compare within `tolerance`."""

    every: int
    tolerance: float


class Answerer:
    """Gets batches of answers from cache and teacher, charging what the teacher is asked."""

    def __init__(
        self, meter: Meter, cache: Cache | None, block_rows: int, verification: Verification | None = None
    ) -> None:
        self._meter = meter
        self._cache = cache
        self._block_rows = block_rows
        self._verification = verification
        self._repeats_seen = 0

    def collect(self, space: Space, keys: Sequence[bytes] | None, charge: Charge, ask: Ask) -> Answers:
        """Answers to a batch of questions.

        Arguments:
            space: where they stand in the cache.
            keys: the questions; None means that they are distinct and nothing is cached.
            charge: the price of each question.
            ask: asks the teacher those at the given positions.
        """
        n = len(charge.repeats)
        rows = np.full((n, space.width), np.nan)
        answered = np.zeros(n, dtype=bool)
        source = np.arange(n) if keys is None else _first_occurrences(keys)
        asked = np.flatnonzero(source == np.arange(n))
        if self._cache is not None and keys is not None:
            known, found = self._cache.get(space, _at(keys, asked))
            rows[asked[known]], answered[asked[known]] = found, True
            self._verify(space, asked[known], found, charge, ask)
            asked = asked[~known]
        paid = self._meter.affordable(charge.at(asked)) if len(asked) < n else self._meter.affordable(charge)
        asked = asked[paid > 0]
        for low in range(0, len(asked), self._block_rows):
            block = asked[low : low + self._block_rows]
            fresh = np.asarray(ask(block), dtype=np.float64)
            self._meter.pay(charge.at(block))
            if self._cache is not None and keys is not None:
                fresh = self._cache.put(space, _at(keys, block), fresh)
            rows[block], answered[block] = fresh, True
        copies = np.flatnonzero(source != np.arange(n))
        rows[copies], answered[copies] = rows[source[copies]], answered[source[copies]]
        return Answers(rows, answered)

    def _verify(
        self,
        space: Space,
        known: Int[np.ndarray, "k"],
        found: Float[np.ndarray, "k width"],
        charge: Charge,
        ask: Ask,
    ) -> None:
        """Ask a few of the cached answers again, as far as the budget goes, and compare."""
        if self._verification is None:
            return
        turn = (self._repeats_seen + 1 + np.arange(len(known))) % self._verification.every == 0
        self._repeats_seen += len(known)
        again = charge.at(known[turn])
        paid = self._meter.affordable(again)
        if not paid.any():
            return
        fresh = np.asarray(ask(known[turn][paid > 0]), dtype=np.float64)
        self._meter.pay(again.repeated(paid))
        gap = np.abs(fresh - found[turn][paid > 0]).max()
        if gap > self._verification.tolerance:
            raise InconsistentAnswerError(
                f"the teacher answered a repeated question about its {space.kind} differently, by {gap:.3g} "
                f"(tolerance {self._verification.tolerance:.3g}): make it deterministic, raise the tolerance "
                "to its numerical noise, or drop the cache"
            )


def _first_occurrences(keys: Sequence[bytes]) -> Int[np.ndarray, "n"]:
    """Position at which each question stands first in the batch."""
    first = dict(zip(reversed(keys), range(len(keys) - 1, -1, -1), strict=True))
    return np.fromiter(map(first.__getitem__, keys), dtype=np.int64, count=len(keys))


def _at(keys: Sequence[bytes], positions: Int[np.ndarray, "k"]) -> Sequence[bytes]:
    return keys if len(positions) == len(keys) else [keys[i] for i in positions.tolist()]
