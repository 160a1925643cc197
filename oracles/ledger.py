"""Counting and limiting queries: what an access has spent, and what it may spend.

Charges follow the cost model of the literature (arXiv:2302.14753, 2411.07536, 2512.09892): every
query is one call; tokens sent to the teacher are *submitted*, tokens it draws are *generated*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from numpy.typing import ArrayLike

from oracles.checks import as_integer
from oracles.errors import BudgetError, ParameterError


@dataclass(frozen=True)
class Ledger:
    """What has been spent: all four are non-negative counts.

    Attributes:
        calls: queries answered by the teacher.
        distinct_prefixes: distinct prefixes the teacher was asked about (strings drawn without a
            chosen prefix add none).
        submitted_tokens: tokens sent to the teacher.
        generated_tokens: tokens drawn by the teacher.

    `later - earlier` is what was spent in between; `+` adds the spending of separate accesses
    (distinct prefixes are then counted once per access).
    """

    calls: int = 0
    distinct_prefixes: int = 0
    submitted_tokens: int = 0
    generated_tokens: int = 0

    def __add__(self, other: Ledger) -> Ledger:
        return Ledger(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Ledger)))

    def __sub__(self, other: Ledger) -> Ledger:
        return Ledger(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(Ledger)))


@dataclass(frozen=True)
class Budget:
    """Upper limits on the entries of a `Ledger`; None means unlimited."""

    calls: int | None = None
    distinct_prefixes: int | None = None
    submitted_tokens: int | None = None
    generated_tokens: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            limit = getattr(self, field.name)
            if limit is not None:
                object.__setattr__(self, field.name, as_integer(f"budget.{field.name}", limit, 0))

    @classmethod
    def of(cls, budget: Budget | int | None) -> Budget:
        """The budget itself, a limit on calls from a plain integer, or no limit from None."""
        if isinstance(budget, cls):
            return budget
        if budget is None:
            return cls()
        if isinstance(budget, bool) or not isinstance(budget, (int, np.integer)):
            raise ParameterError(f"budget must be None, an int (calls) or a Budget, got {budget!r}")
        return cls(calls=int(budget))


@dataclass(frozen=True, eq=False)
class Charge:
    """Prices of a batch: entry i is `repeats[i]` equal queries about `prefixes[i]`, in asking order.

    `calls`, `submitted` and `generated` are the price of one query of each entry. `prefixes` None
    means that the queries choose no prefix.
    """

    prefixes: Sequence[bytes] | None
    repeats: Int[np.ndarray, "n"]
    calls: Int[np.ndarray, "n"]
    submitted: Int[np.ndarray, "n"]
    generated: Int[np.ndarray, "n"]

    @classmethod
    def of(
        cls,
        prefixes: Sequence[bytes] | None,
        n: int,
        repeats: ArrayLike = 1,
        calls: ArrayLike = 1,
        submitted: ArrayLike = 0,
        generated: ArrayLike = 0,
    ) -> Charge:
        """Charge of `n` entries; each price is one number for all entries or one per entry."""
        given = (repeats, calls, submitted, generated)
        return cls(prefixes, *(np.broadcast_to(np.asarray(price, dtype=np.int64), (n,)) for price in given))

    def at(self, entries: Int[np.ndarray, "k"]) -> Charge:
        """The charge of some of the entries."""
        prefixes = None if self.prefixes is None else [self.prefixes[i] for i in entries.tolist()]
        return Charge(
            prefixes,
            self.repeats[entries],
            self.calls[entries],
            self.submitted[entries],
            self.generated[entries],
        )

    def repeated(self, repeats: Int[np.ndarray, "n"]) -> Charge:
        """The same queries, asked another number of times."""
        return replace(self, repeats=repeats)


class Meter:
    """Adds up charges and says how much of a batch the budget still pays for."""

    def __init__(self, budget: Budget | int | None = None) -> None:
        self._budget = Budget.of(budget)
        self._ledger = Ledger()
        self._seen: set[bytes] = set()

    @property
    def budget(self) -> Budget:
        """The limits."""
        return self._budget

    @property
    def ledger(self) -> Ledger:
        """What has been spent so far, a value that does not change any more."""
        return self._ledger

    def affordable(self, charge: Charge) -> Int[np.ndarray, "n"]:
        """How many of each entry's queries fit the budget when they are bought in order.

        All of `charge.repeats` if everything fits; otherwise the longest prefix of the batch that
        does: full entries, then one partly paid entry, then zeros. Nothing is charged.
        """
        fits = charge.repeats.copy()
        spent, budget = self._ledger, self._budget
        for limit, used, price in (
            (budget.calls, spent.calls, charge.calls),
            (budget.submitted_tokens, spent.submitted_tokens, charge.submitted),
            (budget.generated_tokens, spent.generated_tokens, charge.generated),
        ):
            if limit is not None:
                cost = charge.repeats * price
                left = limit - used - (np.cumsum(cost) - cost)
                fits = np.minimum(fits, np.where(price > 0, left // np.maximum(price, 1), charge.repeats))
        if budget.distinct_prefixes is not None:
            room = budget.distinct_prefixes - spent.distinct_prefixes
            fits[np.cumsum(self._new_prefixes(charge)) > room] = 0
        short = np.flatnonzero(fits < charge.repeats)
        if len(short):
            fits[short[0] + 1 :] = 0
        return np.maximum(fits, 0)

    def pay(self, charge: Charge) -> None:
        """Record that these queries were answered."""
        if charge.prefixes is not None:
            if (charge.repeats > 0).all():
                self._seen.update(charge.prefixes)
            else:
                self._seen.update(p for p, r in zip(charge.prefixes, charge.repeats, strict=True) if r > 0)
        self._ledger = Ledger(
            self._ledger.calls + int(charge.repeats @ charge.calls),
            len(self._seen),
            self._ledger.submitted_tokens + int(charge.repeats @ charge.submitted),
            self._ledger.generated_tokens + int(charge.repeats @ charge.generated),
        )

    def spent(self, answered: Any, count: int, of: int) -> BudgetError:
        """The error that hands over the `count` paid answers of a batch of `of` queries."""
        limits = {f.name: getattr(self._budget, f.name) for f in fields(Budget)}
        text = ", ".join(f"{name} {limit}" for name, limit in limits.items() if limit is not None)
        return BudgetError(
            f"the query budget ({text}) is spent: {count} of the {of} queries of this batch were answered "
            f"and stand in .answered, spending in all {self._ledger}; raise the budget or ask for less",
            answered=answered,
            ledger=self._ledger,
        )

    def _new_prefixes(self, charge: Charge) -> Bool[np.ndarray, "n"]:
        """Which entries submit a prefix for the first time."""
        new = np.zeros(len(charge.repeats), dtype=bool)
        fresh: set[bytes] = set()
        for i, prefix in enumerate(charge.prefixes or ()):
            if charge.repeats[i] > 0 and prefix not in self._seen and prefix not in fresh:
                fresh.add(prefix)
                new[i] = True
        return new
