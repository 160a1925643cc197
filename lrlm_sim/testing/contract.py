"""What a checked contract reports: laws, their outcomes, and the error that names a broken one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from oracles.errors import LrlmError

_Probe = TypeVar("_Probe")


class ContractError(LrlmError, AssertionError):
    """A law of a contract is broken: which one, on what inputs, what was expected and what came."""

    def __init__(self, law: str, statement: str, inputs: str, expected: str, actual: str) -> None:
        super().__init__(
            f"law {law!r} is broken: {statement}\n  on:       {inputs}\n"
            f"  expected: {expected}\n  got:      {actual}"
        )
        self.law = law
        self.inputs = inputs
        self.expected = expected
        self.actual = actual


class Violation(Exception):
    """Raised inside a law, which does not know its own name: becomes a ContractError."""

    def __init__(self, inputs: str, expected: str, actual: str) -> None:
        super().__init__(inputs, expected, actual)
        self.inputs = inputs
        self.expected = expected
        self.actual = actual


class NotApplicable(Exception):
    """Raised inside a law that says nothing about this object; the text is the reason."""


@dataclass(frozen=True)
class Law(Generic[_Probe]):
    """A named law: `check(probe)` returns the largest deviation seen, or raises one of the above."""

    name: str
    statement: str
    check: Callable[[_Probe], float]


@dataclass(frozen=True)
class LawResult:
    """Outcome of a law that is not broken: "holds" or "not applicable" (with the reason)."""

    name: str
    statement: str
    verdict: str
    deviation: float
    reason: str


@dataclass(frozen=True)
class ContractReport:
    """Outcomes of all laws for one object; `str` is a table."""

    subject: str
    results: tuple[LawResult, ...]

    @property
    def checked(self) -> tuple[str, ...]:
        """Names of the laws that hold."""
        return tuple(result.name for result in self.results if result.verdict == "holds")

    @property
    def not_applicable(self) -> dict[str, str]:
        """Reason, by name, of each law that says nothing about this object."""
        return {r.name: r.reason for r in self.results if r.verdict == "not applicable"}

    def __str__(self) -> str:
        lines = [self.subject]
        for result in self.results:
            detail = result.reason or f"largest deviation {result.deviation:.1e}"
            lines.append(f"  {result.verdict:<14} {result.name:<20} {detail}")
        return "\n".join(lines)


def run_law(law: Law[_Probe], probe: _Probe) -> LawResult:
    """The result of one law; raises ContractError if it is broken or the object raises an error."""
    try:
        deviation = float(law.check(probe))
    except NotApplicable as reason:
        return LawResult(law.name, law.statement, "not applicable", 0.0, str(reason))
    except Violation as broken:
        raise ContractError(
            law.name, law.statement, broken.inputs, broken.expected, broken.actual
        ) from broken.__cause__
    except Exception as error:
        raise ContractError(
            law.name,
            law.statement,
            "inputs the contract allows",
            "no error",
            f"{type(error).__name__}: {error}",
        ) from error
    return LawResult(law.name, law.statement, "holds", deviation, "")
