"""Conditional samples: completions or next tokens of chosen histories (arXiv:2302.14753, 2411.07536)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float, Int, UInt64
from numpy.typing import ArrayLike

from oracles.access.base import BLOCK_ROWS, StringAccess
from oracles.access.draws import DrawNumbers, count_tokens, invert, mixed_laws, strides, tiles
from oracles.access.samples import refuse_cache
from oracles.access.strings import Packing
from oracles.base import Oracle
from oracles.cache import Cache
from oracles.checks import as_integer, as_number
from oracles.counter import uniforms
from oracles.errors import ParameterError, ShapeError
from oracles.ledger import Budget, Charge


@final
class ConditionalSampleAccess(StringAccess):
    """Fresh draws after chosen histories: completions, next tokens, or counts of next tokens.

    Draw number k of history h is one string, a function of (seed, h, k): `complete` shows its first
    `length` tokens, `next_tokens` and `next_counts` its first. Numbers advance with every draw of h,
    so repeated questions give fresh draws, whatever the order or the batches.

    Arguments: those of `SampleAccess`, noise and the refusal of a cache included.
    """

    kind = "conditional samples"

    def __init__(
        self,
        oracle: Oracle,
        budget: Budget | int | None = None,
        noise: float | None = None,
        cache: Cache | bool | str | os.PathLike[str] | None = None,
        seed: int = 0,
        *,
        block_rows: int = BLOCK_ROWS,
    ) -> None:
        refuse_cache(cache)
        mixing = as_number("noise", 0.0 if noise is None else noise, 0.0, 1.0)
        super().__init__(oracle, budget, seed, block_rows, mixing)
        self._numbers = DrawNumbers()
        self._ask_laws = _law_asker(oracle, mixing)

    def complete(
        self, histories: Sequence[ArrayLike] | np.ndarray, draws: int, length: int | None = None
    ) -> list[Int[np.ndarray, "draws length"]]:
        """`draws` completions of each history, as int64 arrays (draws, length).

        `length` defaults to what the horizon leaves after each history. A draw is one call, |h|
        submitted and `length` generated tokens. BudgetError.answered: the same list with only the
        draws that were paid for (one array may be shorter, the later ones are empty).
        """
        keys = self._packing.pack("histories", histories)
        lengths = self._packing.lengths(keys)
        draws = as_integer("draws", draws, 0)
        rest = self._rest(length)
        self._fit(lengths, 0 if rest is None else rest)
        drawn = self._horizon - lengths if rest is None else np.full(len(keys), rest)
        plan = self._plan(keys, lengths, np.full(len(keys), draws), drawn)
        results = [np.empty((0, int(size)), dtype=np.int64) for size in drawn]
        for rows, heads in self._packing.by_length(keys):
            tokens = self._continue(plan, rows, heads, int(drawn[rows[0]]))
            parts = np.split(tokens, np.cumsum(plan.paid[rows])[:-1])
            for row, part in zip(rows.tolist(), parts, strict=True):
                results[row] = part
        return self._settle(plan, results)

    def next_tokens(
        self, histories: Sequence[ArrayLike] | np.ndarray, draws: int
    ) -> Int[np.ndarray, "n draws"]:
        """`draws` next tokens after each history, int64 (n, draws).

        A draw is one call, |h| submitted and 1 generated token. BudgetError.answered: (n, draws)
        with −1 for draws not paid for.
        """
        draws = as_integer("draws", draws, 0)
        plan = self._next_plan(histories, draws)
        tokens = np.full((len(plan.keys), draws), -1, dtype=np.int64)
        for cumulative, rows, owner, offsets, numbers in self._next(plan):
            tokens[rows[:, None], offsets] = invert(cumulative, owner[:, None], numbers)
        return self._settle(plan, tokens)

    def next_counts(
        self, histories: Sequence[ArrayLike] | np.ndarray, draws: int | ArrayLike
    ) -> Int[np.ndarray, "n vocab"]:
        """How often each token comes next in fresh draws after each history, int64 (n, A).

        `draws` is one number for all histories or one for each, (n,). Draws and charges as of
        `next_tokens`, without keeping the tokens. BudgetError.answered: (n, A) counts of the draws
        that were paid for.
        """
        plan = self._next_plan(histories, draws)
        counts = np.zeros((len(plan.keys), self.vocab_size), dtype=np.int64)
        for cumulative, rows, owner, _, numbers in self._next(plan):
            counts[rows] += count_tokens(cumulative, owner, numbers)
        return self._settle(plan, counts)

    def _next_plan(self, histories: Sequence[ArrayLike] | np.ndarray, draws: int | ArrayLike) -> _Plan:
        keys = self._packing.pack("histories", histories)
        lengths = self._packing.lengths(keys)
        self._fit(lengths, 1)
        return self._plan(keys, lengths, _as_draws(draws, len(keys)), np.ones(len(keys), dtype=np.int64))

    def _plan(
        self,
        keys: list[bytes],
        lengths: Int[np.ndarray, "n"],
        draws: Int[np.ndarray, "n"],
        generated: Int[np.ndarray, "n"],
    ) -> _Plan:
        """What the budget pays for, and the random streams of those draws."""
        charge = Charge.of(keys, len(keys), repeats=draws, submitted=lengths, generated=generated)
        paid = self._meter.affordable(charge)
        return _Plan(
            keys=keys,
            charge=charge,
            paid=paid,
            streams=self._packing.hashes(keys, self._seed, "draws"),
            first=self._numbers.first(keys, paid).astype(np.uint64),
            stride=strides(lengths, self._horizon),
        )

    def _settle(self, plan: _Plan, results):
        """Charge the draws and return them, or hand them over in a BudgetError."""
        self._numbers.advance(plan.keys, plan.paid)
        self._meter.pay(plan.charge.repeated(plan.paid))
        count, wanted = int(plan.paid.sum()), int(plan.charge.repeats.sum())
        if count < wanted:
            raise self._meter.spent(results, count, wanted)
        return results

    def _continue(
        self, plan: _Plan, rows: Int[np.ndarray, "g"], heads: Int[np.ndarray, "g t"], length: int
    ) -> Int[np.ndarray, "r length"]:
        """The paid draws of histories of one length, one after the other."""
        paid = plan.paid[rows]
        owner = np.repeat(np.arange(len(rows)), paid)
        number = np.arange(len(owner)) - np.repeat(np.cumsum(paid) - paid, paid)
        counters = (plan.first[rows][owner] + number.astype(np.uint64)) * plan.stride[rows][owner]
        return self._draw(heads, owner, plan.streams[rows][owner], counters, length)

    def _next(
        self, plan: _Plan
    ) -> Iterator[
        tuple[
            Float[np.ndarray, "g vocab"],
            Int[np.ndarray, "k"],
            Int[np.ndarray, "k"],
            Int[np.ndarray, "m"],
            Float[np.ndarray, "k m"],
        ]
    ]:
        """Cache-sized tiles (cumulative laws, rows, law of each row, draw offsets, uniform numbers).

        The law of each distinct history is asked once, `block_rows` histories at a time.
        """
        wanted = np.flatnonzero(plan.paid > 0)
        place: dict[bytes, int] = {}
        owner = np.array(
            [place.setdefault(plan.keys[i], len(place)) for i in wanted.tolist()], dtype=np.int64
        )
        distinct = list(place)
        order = np.argsort(owner, kind="stable")
        for low in range(0, len(distinct), self._block_rows):
            laws = self._ask_laws(distinct[low : low + self._block_rows])
            cumulative = np.cumsum(laws, axis=1)
            first, last = np.searchsorted(owner[order], [low, low + len(laws)])
            members = order[first:last]
            for inner, offsets in tiles(plan.paid[wanted[members]]):
                rows = wanted[members[inner]]
                draw = plan.first[rows][:, None] + offsets.astype(np.uint64)
                numbers = uniforms(plan.streams[rows][:, None], draw * plan.stride[rows][:, None])
                yield cumulative, rows, owner[members[inner]] - low, offsets, numbers


@dataclass(frozen=True, eq=False)
class _Plan:
    """The paid part of a batch of draws, one entry per history of the batch."""

    keys: list[bytes]
    charge: Charge
    paid: Int[np.ndarray, "n"]
    streams: UInt64[np.ndarray, "n"]
    first: UInt64[np.ndarray, "n"]
    stride: UInt64[np.ndarray, "n"]


def _law_asker(oracle: Oracle, noise: float) -> Callable[[Sequence[bytes]], Float[np.ndarray, "n vocab"]]:
    packing = Packing(oracle.vocab_size)

    def ask(keys: Sequence[bytes]) -> np.ndarray:
        log_probs = oracle.next_log_probs(packing.unpack(keys))
        return mixed_laws(log_probs, len(keys), oracle.vocab_size, noise)

    return ask


def _as_draws(draws: int | ArrayLike, n: int) -> Int[np.ndarray, "n"]:
    """Number of draws of each of `n` histories."""
    if np.ndim(draws) == 0:
        return np.full(n, as_integer("draws", draws if isinstance(draws, int) else np.asarray(draws)[()], 0))
    values = np.asarray(draws)
    if values.shape != (n,):
        raise ShapeError("draws", "an int or (n,)", (n,), values.shape)
    if values.size and (values.dtype.kind not in "iu" or values.min() < 0):
        raise ParameterError(f"draws must be integers ≥ 0, got {values.dtype} down to {values.min()}")
    return values.astype(np.int64)
