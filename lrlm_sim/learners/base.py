"""What every learner shares: parameters in, `fit(access, rng)`, a `Result` out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from oracles.access import Access
from oracles.base import Oracle
from oracles.errors import ParameterError
from oracles.ledger import Ledger


@dataclass(frozen=True)
class Status:
    """How learning ended: `code` is "success" or the name of what went wrong, `remedy` what to do."""

    code: str
    remedy: str = ""

    @property
    def ok(self) -> bool:
        """Whether the learner stands by its model."""
        return self.code == "success"

    def __str__(self) -> str:
        return self.code if self.ok else f"{self.code}: {self.remedy}"


SUCCESS = Status("success")


@dataclass(frozen=True, eq=False)
class Result:
    """What `fit` returns.

    Attributes:
        model: the learned model, itself an `Oracle`.
        status: success, or what went wrong and the remedy. A model without success is for diagnosis.
        ledger: every query spent on it.
        stats: diagnostics (ranks per cut, residuals, epochs, …), JSON values and arrays.
    """

    model: Oracle
    status: Status
    ledger: Ledger
    stats: Mapping[str, Any] = field(default_factory=dict)


class Learner(ABC):
    """A learning algorithm with its parameters; subclasses are frozen dataclasses."""

    #: The access classes this learner can work with; it can reach the teacher through nothing else.
    accesses: ClassVar[tuple[type[Access], ...]]

    @abstractmethod
    def fit(self, access: Access, rng: np.random.Generator | int | None = None) -> Result:
        """Learn a model of the teacher behind `access`; deterministic given the access' seed and `rng`.

        Raises:
            BudgetError: the query budget ended; its `partial` holds what was learned so far.
        """


def require_access(learner: Learner, access: object) -> None:
    """Raise ParameterError unless `access` is of a kind that the learner declares."""
    if not isinstance(access, learner.accesses):
        names = " or ".join(kind.__name__ for kind in learner.accesses)
        came = type(access).__name__
        raise ParameterError(f"{type(learner).__name__} needs {names}, got {came}: wrap the oracle in one")
