"""Typed errors: each names what was expected, what came, and what to do about it.

Every error of the project derives from `LrlmError`; most also derive from the built-in
exception a caller would expect (`ValueError`, `RuntimeError`, …), so both styles of handling work.
"""

from __future__ import annotations

from typing import Any


class LrlmError(Exception):
    """Base class of every error raised on purpose by `oracles`, `lrlm_sim` and `studies`."""


class ShapeError(LrlmError, ValueError):
    """An array has the wrong shape or dtype.

    The message gives the symbolic shape, e.g. ``(n_states, vocab_size)``, the shape expected in
    numbers where it is known, and the shape that came.
    """

    def __init__(self, name: str, symbolic: str, expected: object, actual: object) -> None:
        super().__init__(f"{name} must have shape {symbolic} = {expected}, got {actual}")


class TokenError(LrlmError, ValueError):
    """A token is not an integer of 0..vocab_size−1."""


class HorizonError(LrlmError, ValueError):
    """A string would run past the horizon of the model, or a length is needed and missing."""


class NonFiniteError(LrlmError, ValueError):
    """A NaN or an infinity where only finite numbers make sense."""


class ProbabilityError(LrlmError, ValueError):
    """Numbers that should be probabilities are negative or do not sum to one."""


class ZeroProbabilityError(LrlmError, ValueError):
    """A logit of a zero-probability token was asked for (it is −∞): smooth the teacher first."""


class ParameterError(LrlmError, ValueError):
    """A scalar parameter is outside its range."""


class TooLargeError(LrlmError, ValueError):
    """An exact computation would enumerate more than is allowed; the message says how much."""


class InconsistentAnswerError(LrlmError, RuntimeError):
    """A teacher gave two different answers to one deterministic query."""


class BudgetError(LrlmError, RuntimeError):
    """The query budget of an access object is spent.

    Attributes:
        answered: the answers of the interrupted call that were within the budget (already paid).
        ledger: what has been spent in all.
        partial: what a learner had learned when it was interrupted (None outside learners).
    """

    def __init__(self, message: str, answered: Any, ledger: Any, partial: Any = None) -> None:
        super().__init__(message)
        self.answered = answered
        self.ledger = ledger
        self.partial = partial


class SpecError(LrlmError, ValueError):
    """A specification string such as ``hmm:n_states=4,…`` cannot be understood."""


class FormatError(LrlmError, ValueError):
    """A file is missing, is not in the expected format, or has an unknown version."""


class MissingDependencyError(LrlmError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: python -m pip install 'lrlm-sim[{extra}]'")
