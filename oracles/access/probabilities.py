"""Exact conditional probabilities P(f | h) of chosen futures (arXiv:2302.14753)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import final

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from oracles.access.answers import Answerer
from oracles.access.base import BLOCK_ROWS, StringAccess
from oracles.access.grids import pair_asker, rectangles
from oracles.access.logits import row_asker
from oracles.access.noise import pair_noise
from oracles.base import Oracle
from oracles.cache import Cache, Space, as_cache
from oracles.checks import as_number
from oracles.ledger import Budget, Charge


@final
class ConditionalProbabilityAccess(StringAccess):
    """Natural log P(f | h) of chosen histories and futures, one call per distinct pair.

    Arguments:
        oracle, budget, seed, block_rows: see `Access`.
        noise: ξ ≥ 0. Every log P(f | h) is moved by a number in [−ξ, ξ], uniform and a function of
            (seed, h, f): probabilities are off by a factor of at most e^ξ and need not sum to one.
            `sample` is exact.
        cache: a repeated pair is neither asked nor charged again.

    Probability zero is answered as −∞. Raises NonFiniteError or ProbabilityError if the teacher
    answers no law. The prefix that a query submits, as the ledger counts them, is its history.
    """

    kind = "conditional probabilities"

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
        super().__init__(oracle, budget, seed, block_rows)
        self._noise = as_number("noise", 0.0 if noise is None else noise, 0.0)
        store = as_cache(cache, oracle)
        self._cached = store is not None
        self._identity = "" if store is None else store.identify(oracle)
        self._answerer = Answerer(self._meter, store, self._block_rows)
        self._ask_pairs = pair_asker(oracle, self._block_rows)
        self._ask_rows = row_asker(oracle)

    def log_probs(
        self, histories: Sequence[ArrayLike] | np.ndarray, futures: Sequence[ArrayLike] | np.ndarray
    ) -> Float[np.ndarray, "n_h n_f"]:
        """Natural log P(f | h) for every history h and future f, float64 (n_h, n_f); ragged lists allowed.

        A pair is one call of |h| + |f| submitted tokens. BudgetError.answered: the whole array,
        NaN where no answer was paid for (pairs are bought row by row).
        """
        all_heads = self._packing.pack("histories", histories)
        all_tails = self._packing.pack("futures", futures)
        heads, tails = list(dict.fromkeys(all_heads)), list(dict.fromkeys(all_tails))
        head_lengths, tail_lengths = self._packing.lengths(heads), self._packing.lengths(tails)
        self._fit(head_lengths, int(tail_lengths.max(initial=0)))
        prefixes = [head for head in heads for _ in tails]
        charge = Charge.of(prefixes, len(prefixes), submitted=(head_lengths[:, None] + tail_lengths).ravel())

        def ask(positions: Int[np.ndarray, "k"]) -> np.ndarray:
            rows = np.empty(len(positions))
            for places, h, f in rectangles(positions, len(tails)):
                chosen = [heads[i] for i in h.tolist()], [tails[j] for j in f.tolist()]
                values = self._ask_pairs(*chosen)
                if self._noise:
                    values = values + pair_noise(self._packing, *chosen, self._seed, self._noise)
                rows[places.ravel()] = values.ravel()
            return rows[:, None]

        questions = [_question(head, tail) for head in heads for tail in tails] if self._cached else None
        answers = self._answerer.collect(self._space(self.kind, 1), questions, charge, ask)
        values = answers.rows.reshape(len(heads), len(tails))
        head_of, tail_of = {h: i for i, h in enumerate(heads)}, {f: j for j, f in enumerate(tails)}
        table = values[np.ix_([head_of[h] for h in all_heads], [tail_of[f] for f in all_tails])]
        if not answers.complete:
            raise self._meter.spent(table, int((~np.isnan(table)).sum()), table.size)
        return table

    def next_log_probs(self, histories: Sequence[ArrayLike] | np.ndarray) -> Float[np.ndarray, "n vocab"]:
        """Natural log P(z | h) of every token z, float64 (n, A): `log_probs` with all one-token futures.

        One distinct history costs A calls and A·(|h| + 1) submitted tokens, bought together.
        BudgetError.answered: (k, A), the rows before the first history that was not paid for.
        """
        keys = self._packing.pack("histories", histories)
        lengths = self._packing.lengths(keys)
        self._fit(lengths, 1)
        tokens = self._packing.pack("tokens", np.arange(self.vocab_size)[:, None])

        def ask(positions: Int[np.ndarray, "k"]) -> np.ndarray:
            chosen = [keys[i] for i in positions.tolist()]
            rows = self._ask_rows(chosen)
            if self._noise:
                rows = rows + pair_noise(self._packing, chosen, tokens, self._seed, self._noise)
            return rows

        charge = Charge.of(keys, len(keys), calls=self.vocab_size, submitted=self.vocab_size * (lengths + 1))
        space = self._space(f"next {self.kind}", self.vocab_size)
        answers = self._answerer.collect(space, keys, charge, ask)
        if not answers.complete:
            raise self._meter.spent(answers.rows[: answers.prefix], answers.prefix, len(keys))
        return answers.rows

    def _space(self, kind: str, width: int) -> Space:
        return Space(self._identity, kind, self._noise, self._seed if self._noise else 0, width)


def _question(head: bytes, tail: bytes) -> bytes:
    """One name for the pair: the length of the history tells where the future starts."""
    return len(head).to_bytes(4, "little") + head + tail
