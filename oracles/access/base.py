r"""What every access object is: a counter of queries in front of a teacher nobody can reach.

An access never stores its oracle: the functions that ask it are closures made once, so a learner
finds the vocabulary size, the horizon, the ledger and the one kind of query it was given, and
nothing else. Charges of one query (T horizon, h history, f future):

| access | query | calls | submitted | generated |
| --- | --- | --- | --- | --- |
| all but `TopLogitAccess` | a string from P (`sample`) | 1 | 0 | T |
| `ConditionalSampleAccess` | a completion of h | 1 | \|h\| | T − \|h\| |
| `ConditionalSampleAccess` | a next token after h | 1 | \|h\| | 1 |
| `ConditionalProbabilityAccess` | P(f \| h) | 1 | \|h\| + \|f\| | 0 |
| `LogitAccess`, `TopLogitAccess` | the logits after h | 1 | \|h\| | 0 |

Answers that are functions of the question (probabilities, logits) are asked once per call however
often a batch repeats them, and once for all with a cache. Draws are always fresh: each one is paid.
When a budget ends inside a batch, the queries that fit are answered in order and handed over in
`BudgetError.answered`; each method says in which form. The budget is checked before the teacher is asked;
a question that ends in any other error is not charged.

Seeds: strings drawn by two accesses of one kind and one seed are the same strings. Give the access
that validates a model another seed than the one that trained it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from oracles.access.draws import strides, string_drawer
from oracles.access.strings import Packing
from oracles.base import Oracle
from oracles.checks import as_integer, check_length
from oracles.counter import start_keys
from oracles.errors import HorizonError, ParameterError
from oracles.ledger import Budget, Charge, Ledger, Meter

#: Rows of teacher state held at once; results do not depend on it.
BLOCK_ROWS = 1 << 14
#: Most numbers (rows × vocabulary) in one block.
_BLOCK_NUMBERS = 1 << 24


class Access(ABC):
    """Abstract query access to a hidden teacher.

    Arguments shared by all kinds:
        oracle: the teacher.
        budget: None, a number of calls, or a `Budget`.
        noise: see each kind; None or 0 is none.
        cache: None, True (memory), a `MemoryCache`, a `DiskCache`, or a path (then the oracle must
            have an identity). Kinds that draw refuse one, see `SampleAccess`.
        seed: every random number is a function of it and of the question.
        block_rows: most rows the teacher is asked at once; answers do not depend on it.
    """

    #: Name of the kind of query.
    kind: ClassVar[str]

    @abstractmethod
    def __init__(self, oracle: Oracle, budget: Budget | int | None, seed: int, block_rows: int) -> None:
        if not isinstance(oracle, Oracle):
            raise ParameterError(f"an access is made from an Oracle, got {type(oracle).__name__}")
        self._packing = Packing(oracle.vocab_size)
        self._horizon = oracle.horizon
        self._meter = Meter(budget)
        self._seed = as_integer("seed", seed, 0)
        rows = as_integer("block_rows", block_rows, 1)
        self._block_rows = max(1, min(rows, _BLOCK_NUMBERS // oracle.vocab_size))

    @property
    def vocab_size(self) -> int:
        """Number of tokens A."""
        return self._packing.vocab_size

    @property
    def horizon(self) -> int | None:
        """Length T of whole strings; None if the teacher has no horizon."""
        return self._horizon

    @property
    def ledger(self) -> Ledger:
        """What has been spent so far."""
        return self._meter.ledger

    @property
    def budget(self) -> Budget:
        """What may be spent in all."""
        return self._meter.budget

    def __repr__(self) -> str:
        size = f"vocab_size={self.vocab_size}, horizon={self.horizon}"
        return f"{type(self).__name__}({size}, ledger={self.ledger})"

    def _fit(self, lengths: Int[np.ndarray, "n"], more: int) -> None:
        """Raise HorizonError unless `more` tokens still fit after histories of these lengths."""
        check_length(int(lengths.max(initial=0)) + more, self._horizon)

    def _rest(self, length: int | None) -> int | None:
        """A validated `length=` argument, None for what is left of the horizon."""
        if length is None and self._horizon is None:
            raise HorizonError("this teacher has no horizon: give length=")
        return None if length is None else as_integer("length", length, 0)


class StringAccess(Access):
    """Abstract access that also draws whole strings from P."""

    @abstractmethod
    def __init__(
        self, oracle: Oracle, budget: Budget | int | None, seed: int, block_rows: int, mixing: float = 0.0
    ) -> None:
        super().__init__(oracle, budget, seed, block_rows)
        self._draw = string_drawer(oracle, mixing, self._block_rows)
        self._strings_drawn = 0

    def sample(self, n: int, length: int | None = None) -> Int[np.ndarray, "n length"]:
        """`n` fresh strings from P, int64 (n, length); n calls and n·length generated tokens.

        String number k of the access is a function of (kind, seed, k); a shorter `length` (default:
        the horizon) gives its first tokens. BudgetError.answered: the (k, length) strings paid for.
        """
        n = as_integer("n", n, 0)
        rest = self._rest(length)
        length = self._horizon if rest is None else rest
        assert length is not None  # _rest has seen to it
        check_length(length, self._horizon)
        charge = Charge.of(None, 1, repeats=n, generated=length)
        paid = self._meter.affordable(charge)
        count = int(paid[0])
        numbers = np.arange(self._strings_drawn, self._strings_drawn + count, dtype=np.uint64)
        tokens = self._draw(
            np.empty((1, 0), dtype=np.int64),
            np.zeros(count, dtype=np.int64),
            start_keys(count, self._seed, f"strings/{self.kind}"),
            numbers * strides(np.zeros(1, dtype=np.int64), self._horizon),
            length,
        )
        self._strings_drawn += count
        self._meter.pay(charge.repeated(paid))
        if count < n:
            raise self._meter.spent(tokens, count, n)
        return tokens
