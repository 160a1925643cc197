"""What a theorem is here: a statement with a source, instances to try it on, and a measurement to compare.

An *instance* is a dictionary of small integers (sizes and a seed), so that it can be drawn at random,
printed, repeated on the command line, and shrunk by hypothesis when it breaks something. A *measurement*
is a pair of numbers, what was measured and what the theorem allows; the theorem says measured ≤ bound on
every instance, or on all but a share δ of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Instance = Mapping[str, int]
Budget = Literal["small", "medium", "large"]
Verdict = Literal["holds", "violated", "undecided"]


@dataclass(frozen=True)
class Measurement:
    """measured ≤ bound is what the theorem claims; `tolerance` is what rounding may add (absolute)."""

    measured: float
    bound: float
    tolerance: float = 1e-9

    @property
    def broken(self) -> bool:
        """Whether the claim fails on this instance; a NaN breaks it."""
        return not self.measured <= self.bound + self.tolerance

    @property
    def slack(self) -> float:
        """How much room was left: bound − measured."""
        return self.bound - self.measured


@dataclass(frozen=True)
class Theorem:
    """One claim with everything needed to try it.

    Attributes:
        name: short, unique, used on the command line.
        statement: the claim in words and symbols.
        source: paper (arXiv id) and theorem, lemma or section number.
        parameters: closed range of each integer of an instance; "seed" is added.
        measure: instance → Measurement.
        bound: the bound as a function of the instance, where it can be had without measuring.
        delta: share of instances on which the claim may fail; 0 for claims about every instance.
        mutants: deliberately broken versions of `measure`, by name; the check must catch each.
        trials: most instances per budget; a claim with δ > 0 stops as soon as it is decided.
        requires: optional packages, as {module: extra of this package}; without them it is not tried.
    """

    name: str
    statement: str
    source: str
    parameters: Mapping[str, tuple[int, int]]
    measure: Callable[[Instance], Measurement]
    bound: Callable[[Instance], float] | None = None
    delta: float = 0.0
    mutants: Mapping[str, Callable[[Instance], Measurement]] = field(default_factory=dict)
    trials: Mapping[str, int] = field(default_factory=lambda: {"small": 60, "medium": 400, "large": 4000})
    requires: Mapping[str, str] = field(default_factory=dict)

    def check(self, budget: Budget = "small", seed: int = 0) -> Finding:
        """Try the theorem on random instances; see `lrlm_sim.theorems.verify`."""
        from lrlm_sim.theorems.verify import check_theorem

        return check_theorem(self, budget, seed)


@dataclass(frozen=True)
class Finding:
    """What trying a theorem showed.

    Attributes:
        verdict: "holds" needs evidence at `confidence`, "violated" a counterexample (δ = 0) or more failures
            than δ explains at the suite's false-alarm budget; "undecided" is neither, or not tried.
        instances: tried; 0 if a package that the theorem needs is missing.
        failures: instances on which measured > bound.
        worst: largest measured value among instances, with its bound: the one with least slack.
        claim: what the evidence says, in words, at `confidence`.
        counterexample: smallest instance found that breaks the claim (after shrinking).
        reproduce: the command that shows it.
        error: text of an exception raised by a measurement; such a check is violated.
        measurements: (measured, bound) of every instance, for the figure.
    """

    name: str
    source: str
    verdict: Verdict
    instances: int
    failures: int
    worst: Measurement | None
    confidence: float
    claim: str
    counterexample: dict[str, int] | None = None
    reproduce: str = ""
    error: str = ""
    measurements: tuple[tuple[float, float], ...] = ()
