"""The probability interface of a conditional-query learner: one law per prefix, shared by every use of it.

Exact access answers the law; conditional samples estimate it from draws. P̂(f | h) is then the product
of the laws along f, so every number the learner uses, and every future it draws, comes from one
consistent tree (arXiv:2411.07536, section on estimating conditional probabilities). A prefix that is asked
for again, at another cut or with more draws, pays only for the draws that are missing.

Draws fall into two halves of equal size. Their disagreement (M₁ − M₂)/2 has the law of the error of the
mean M to first order, so its spectral norm says which singular values of M are signal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike

from oracles.access import ConditionalProbabilityAccess, ConditionalSampleAccess
from oracles.base import draw_tokens
from oracles.errors import InconsistentAnswerError
from oracles.prefix_tree import prefix_tree

#: Prior count per token, in all half a count per law: estimates stay positive.
_PRIOR = 0.5


class PrefixLaws:
    """Cached next-token laws behind one access, each estimated from at least as many draws as asked for."""

    def __init__(
        self,
        access: ConditionalProbabilityAccess | ConditionalSampleAccess,
        draws: int,
        floor: float,
        share: float = 0.0,
    ) -> None:
        self._access, self._draws, self._floor, self._share = access, max(2, draws), floor, share
        self._row_of: dict[bytes, int] = {}
        self._token = np.min_scalar_type(access.vocab_size)
        width = (access.vocab_size,) if self.exact else (2, access.vocab_size)
        self._table = np.empty((0, *width))  # laws, or the counts of both halves

    @property
    def exact(self) -> bool:
        """Whether laws are answered rather than estimated."""
        return isinstance(self._access, ConditionalProbabilityAccess)

    def laws(
        self, prefixes: Int[np.ndarray, "n length"], draws: int | None = None
    ) -> Float[np.ndarray, "n vocab"]:
        """P̂(· | prefix) of each row from at least `draws` draws (default: those of the constructor)."""
        return self._stack(prefixes, draws)[0]

    def possible(self, prefixes: Int[np.ndarray, "n length"]) -> Bool[np.ndarray, "n vocab"]:
        """Whether each token can follow: of positive probability, or drawn at least once so far."""
        rows = self._rows(np.asarray(prefixes))
        table = self._table[rows]
        return (table if self.exact else table.sum(axis=1)) > 0

    def future_probabilities(
        self,
        histories: Int[np.ndarray, "n t"],
        futures: Sequence[ArrayLike] | np.ndarray,
        draws: int | None = None,
    ) -> Float[np.ndarray, "n m"]:
        """P̂(f | h) for every history and future: each distinct prefix h∘f_<k is asked once."""
        return self.future_estimates(histories, futures, draws)[0]

    def future_estimates(
        self,
        histories: Int[np.ndarray, "n t"],
        futures: Sequence[ArrayLike] | np.ndarray,
        draws: int | None = None,
    ) -> Float[np.ndarray, "k n m"]:
        """P̂(f | h) from all draws, from the first half and from the second; k = 1 where laws are exact.

        With N futures, the law after h∘g gets (N q)^share times the draws, at least two; q is the part of g
        in the probabilities after h of all distinct g of its length. An early or likely law is a factor of
        much of the mass of P̂(· | h), and there are few of them.
        """
        strings = [np.asarray(future, dtype=np.int64) for future in futures]
        kinds = 1 if self.exact else 3
        out = np.empty((kinds, len(histories), len(strings)))
        probability = np.ones((kinds, len(histories), 1))
        paths = np.empty((1, 0), dtype=np.int64)
        laws: np.ndarray | None = None
        for level in prefix_tree(strings):
            if laws is not None:
                probability = probability[:, :, level.parent] * laws[:, :, level.parent, level.token]
                paths = np.concatenate([paths[level.parent], level.token[:, None]], axis=1)
            out[:, :, level.strings] = probability[:, :, level.node]
            if len(level.strings) < len(strings):
                total = np.maximum(probability[0].sum(axis=1, keepdims=True), 1e-300)
                boost = (len(strings) * probability[0] / total).ravel() ** self._share
                stack = self._stack(join(histories, paths), (draws or self._draws) * boost)
                laws = stack.reshape(kinds, len(histories), len(paths), -1)
        return out

    def draw_futures(
        self,
        histories: Int[np.ndarray, "n t"],
        length: int,
        rng: np.random.Generator,
        draws: int | None = None,
    ) -> Int[np.ndarray, "n length"]:
        """One continuation of each history, drawn from the estimated tree."""
        strings = histories
        for _ in range(length):
            tokens = draw_tokens(self.laws(strings, draws), rng.random(len(strings)))
            strings = np.concatenate([strings, tokens[:, None]], axis=1)
        return strings[:, histories.shape[1] :]

    def _stack(
        self, prefixes: Int[np.ndarray, "n length"], draws: int | Float[np.ndarray, "n"] | None
    ) -> np.ndarray:
        """Laws (1 or 3, n, A): of all draws, of the first half, of the second."""
        rows = self._rows(np.asarray(prefixes))
        if isinstance(self._access, ConditionalProbabilityAccess):
            return self._table[rows][None]
        wanted = np.maximum(2, np.asarray(self._draws if draws is None else draws, dtype=np.int64))
        self._top_up(prefixes, rows, np.broadcast_to(wanted, rows.shape))
        halves = self._table[rows].transpose(1, 0, 2)
        return estimate_laws(np.concatenate([halves.sum(axis=0, keepdims=True), halves]), self._floor)

    def _rows(self, prefixes: Int[np.ndarray, "n length"]) -> Int[np.ndarray, "n"]:
        """Row of each prefix in the table; fresh ones are added, and asked at once where laws are exact."""
        block = np.ascontiguousarray(prefixes, dtype=self._token)
        head = block.shape[1].to_bytes(4, "little")  # prefixes of different lengths are different keys
        row_of, first = self._row_of, len(self._row_of)
        rows = np.fromiter(
            (row_of.setdefault(head + row.tobytes(), len(row_of)) for row in block), np.int64, len(block)
        )
        added = len(row_of)
        if added > len(self._table):
            room = np.zeros((max(added - len(self._table), len(self._table) // 2), *self._table.shape[1:]))
            self._table = np.concatenate([self._table, room])
        if added > first and isinstance(self._access, ConditionalProbabilityAccess):
            fresh, where = np.unique(rows, return_index=True)
            where = where[fresh >= first]
            self._table[first:added] = np.exp(self._access.next_log_probs(prefixes[where]))
        return rows

    def _top_up(
        self, prefixes: Int[np.ndarray, "n length"], rows: Int[np.ndarray, "n"], draws: Int[np.ndarray, "n"]
    ) -> None:
        assert isinstance(self._access, ConditionalSampleAccess)
        distinct, where = np.unique(rows, return_index=True)
        draws = draws[where]
        for half, wanted in enumerate((draws // 2, draws - draws // 2)):
            missing = wanted - self._table[distinct, half].sum(axis=1).astype(np.int64)
            short = missing > 0
            if short.any():
                counts = self._access.next_counts(prefixes[where[short]], missing[short])
                self._table[distinct[short], half] += counts


def estimate_laws(counts: np.ndarray, floor: float) -> Float[np.ndarray, "*n vocab"]:
    """Laws from counts with half a prior count in all, mixed with weight `floor` of the uniform law."""
    vocab_size = counts.shape[-1]
    laws = (counts + _PRIOR / vocab_size) / (counts.sum(axis=-1, keepdims=True) + _PRIOR)
    return (1 - floor) * laws + floor / vocab_size


def join(heads: Int[np.ndarray, "n t"], tails: Int[np.ndarray, "m k"]) -> Int[np.ndarray, "nm tk"]:
    """All n·m concatenations, head-major."""
    left = np.repeat(heads, len(tails), axis=0)
    return np.concatenate([left, np.tile(tails, (len(heads), 1))], axis=1)


def all_strings(vocab_size: int, length: int) -> Int[np.ndarray, "n length"]:
    """Every string of one length in lexicographic order."""
    if length == 0:
        return np.empty((1, 0), dtype=np.int64)
    return np.indices((vocab_size,) * length).reshape(length, -1).T.astype(np.int64)


@contextmanager
def unchanging(
    access: ConditionalProbabilityAccess | ConditionalSampleAccess, horizon: int
) -> Iterator[None]:
    """Ask an exact teacher the same few questions before and after the body; samples may always differ.

    Raises InconsistentAnswerError if an answer has changed by over 1e-9.
    """
    if isinstance(access, ConditionalSampleAccess):
        yield
        return
    before = _probe(access, horizon)
    yield
    _check_unchanged(before, _probe(access, horizon))


def _probe(access: ConditionalProbabilityAccess, horizon: int) -> Float[np.ndarray, "k vocab"]:
    """Laws after at most four prefixes of one fixed string."""
    lengths = sorted({0, horizon // 3, 2 * horizon // 3, horizon - 1})
    string = np.arange(horizon) % access.vocab_size
    return access.next_log_probs([string[:length] for length in lengths])


def _check_unchanged(before: Float[np.ndarray, "k vocab"], after: Float[np.ndarray, "k vocab"]) -> None:
    gap = float(np.abs(np.exp(before) - np.exp(after)).max(initial=0.0))
    if gap > 1e-9:
        raise InconsistentAnswerError(
            f"the teacher answered the same questions differently, by up to {gap:.2g}: exact answers must "
            "not change between calls; learn from conditional samples instead"
        )
