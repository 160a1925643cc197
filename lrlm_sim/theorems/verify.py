"""Trying theorems: random instances, verdicts with stated confidence, counterexamples shrunk by hypothesis.

For a claim about every instance (δ = 0), n instances without a failure say that the share of failing
instances, under the generator, is at most 1 − α^(1/n) with confidence 1 − α. For a claim that may fail
with probability δ, the exact binomial law decides: *violated* if as many failures have probability < α
under δ, *holds* if the upper Clopper–Pearson bound on the failure rate is at most δ or the failures
are no more than δ explains with room (p ≥ ½), else *undecided*.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import HealthCheck, Phase, find, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from lrlm_sim.confidence import binomial_test_failures
from lrlm_sim.theorems.base import Budget, Finding, Instance, Measurement, Theorem, Verdict
from lrlm_sim.theorems.catalogue import catalogue
from oracles.errors import ParameterError

#: Probability with which a verdict may be wrong, each theorem by itself.
ALPHA = 1e-6
_SEEDS = (0, 2**20)


@dataclass(frozen=True)
class Report:
    """Findings of all theorems that were tried, with budget and seed."""

    findings: tuple[Finding, ...]
    budget: str
    seed: int

    @property
    def ok(self) -> bool:
        """Whether nothing was violated and nothing stayed undecided."""
        return all(finding.verdict == "holds" for finding in self.findings)


def verify(
    names: Sequence[str] | None = None,
    budget: Budget = "small",
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Try the named theorems (all if None); `progress` is told each name before it is tried."""
    return Report(tuple(findings(names, budget, seed, progress)), budget, seed)


def findings(
    names: Sequence[str] | None, budget: Budget, seed: int, progress: Callable[[str], None] | None = None
) -> Iterator[Finding]:
    """The findings one by one, so that an interrupted run keeps those already made."""
    for theorem in select(names):
        if progress is not None:
            progress(theorem.name)
        yield check_theorem(theorem, budget, seed)


def select(names: Sequence[str] | None) -> list[Theorem]:
    """Theorems by name, in the catalogue's order; ParameterError lists the known names."""
    known = {theorem.name: theorem for theorem in catalogue()}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ParameterError(f"unknown theorem {unknown[0]!r}, known: {', '.join(known)}")
    return [theorem for name, theorem in known.items() if not names or name in names]


def check_theorem(theorem: Theorem, budget: Budget = "small", seed: int = 0) -> Finding:
    """Measure a theorem on as many random instances as the budget allows, and judge it."""
    measured: list[Measurement] = []
    failing: list[Instance] = []
    for instance in instances(theorem, theorem.trials[budget], seed):
        outcome = _try(theorem.measure, instance)
        if isinstance(outcome, str):
            return _broken_off(theorem, instance, outcome, measured)
        measured.append(outcome)
        if outcome.broken:
            failing.append(instance)
            if theorem.delta == 0:
                break
    verdict, claim = judge(theorem, len(measured), len(failing))
    worst = min(measured, key=lambda m: m.slack, default=None)
    smallest = shrink(theorem, failing[0]) if verdict == "violated" and failing else None
    return Finding(
        name=theorem.name,
        source=theorem.source,
        verdict=verdict,
        instances=len(measured),
        failures=len(failing),
        worst=worst,
        confidence=1 - ALPHA,
        claim=claim,
        counterexample=smallest,
        reproduce=_command(theorem, smallest),
        measurements=tuple((m.measured, m.bound) for m in measured),
    )


def judge(theorem: Theorem, tried: int, failures: int) -> tuple[Verdict, str]:
    """Verdict and what it says, from the numbers of instances tried and failed."""
    confidence = f"with confidence 1 − {ALPHA:g}"
    if theorem.delta == 0:
        if failures:
            return "violated", f"a counterexample among {tried} instances"
        share = 1 - ALPHA ** (1 / max(tried, 1))
        return "holds", f"on {tried} of {tried} instances: {confidence} on all but {share:.2g} of them"
    chance = binomial_test_failures(failures, tried, theorem.delta)
    if chance < ALPHA:
        return (
            "violated",
            f"{failures} of {tried} failed, of probability {chance:.2g} if δ = {theorem.delta:g}",
        )
    if chance >= 0.5 or failures == 0:
        return "holds", f"{failures} of {tried} failed, no more than δ = {theorem.delta:g} explains"
    return "undecided", f"{failures} of {tried} failed, of probability {chance:.2g} if δ = {theorem.delta:g}"


def instances(theorem: Theorem, count: int, seed: int) -> Iterator[Instance]:
    """Random instances, a function of (theorem, seed); the corners of the ranges come first."""
    digest = hashlib.blake2b(f"{seed}/{theorem.name}".encode(), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "little"))
    for number in range(count):
        if number < 2:
            drawn = {name: span[number] for name, span in theorem.parameters.items()}
        else:
            drawn = {
                name: int(rng.integers(low, high + 1)) for name, (low, high) in theorem.parameters.items()
            }
        yield {**drawn, "seed": int(rng.integers(*_SEEDS))}


def shrink(theorem: Theorem, failing: Instance) -> dict[str, int]:
    """A small instance that breaks the claim: hypothesis minimises, starting anywhere; else `failing`."""
    ranges = {name: st.integers(*span) for name, span in theorem.parameters.items()}
    space = st.fixed_dictionaries({**ranges, "seed": st.integers(_SEEDS[0], _SEEDS[1] - 1)})
    quiet = settings(
        max_examples=200,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    try:
        return dict(find(space, lambda instance: _breaks(theorem.measure, instance), settings=quiet))
    except NoSuchExample:
        return dict(failing)


def killed(theorem: Theorem, mutant: str, budget: Budget = "small", seed: int = 0) -> bool:
    """Whether the check catches a deliberately broken measurement, by its number and not by a crash."""
    broken = theorem.mutants[mutant]
    failures = tried = 0
    for instance in instances(theorem, theorem.trials[budget], seed):
        tried += 1
        failures += broken(instance).broken
        if failures and theorem.delta == 0:
            return True
    return judge(theorem, tried, failures)[0] == "violated"


def _try(measure: Callable[[Instance], Measurement], instance: Instance) -> Measurement | str:
    """The measurement, or the text of the exception it raised."""
    try:
        return measure(instance)
    except Exception as error:  # a check that crashes is a finding, and must not stop the others
        return f"{type(error).__name__}: {error}"


def _breaks(measure: Callable[[Instance], Measurement], instance: Instance) -> bool:
    outcome = _try(measure, instance)
    return isinstance(outcome, str) or outcome.broken


def _broken_off(theorem: Theorem, instance: Instance, error: str, measured: list[Measurement]) -> Finding:
    return Finding(
        name=theorem.name,
        source=theorem.source,
        verdict="violated",
        instances=len(measured) + 1,
        failures=1,
        worst=None,
        confidence=1 - ALPHA,
        claim="the measurement raised an error",
        counterexample=dict(instance),
        reproduce=_command(theorem, dict(instance)),
        error=error,
    )


def _command(theorem: Theorem, instance: dict[str, int] | None) -> str:
    if instance is None:
        return ""
    values = ",".join(f"{name}={value}" for name, value in instance.items())
    return f"lrlm verify {theorem.name} --instance {values}"
