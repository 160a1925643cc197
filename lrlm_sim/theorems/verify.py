"""Trying theorems: random instances, verdicts with stated confidence, counterexamples shrunk by hypothesis.

For a claim about every instance (δ = 0), n instances without a failure say that the share of failing
instances, under the generator, is at most 1 − (1 − c)^(1/n) with confidence c = `EVIDENCE`. A claim that
may fail with probability δ is tried until `confidence.failure_evidence` decides: *holds* once the evidence
against a failure rate ≥ δ reaches 1/(1 − `EVIDENCE`), *violated* once the evidence against a rate ≤ δ
reaches 1/α, *undecided* if the budget ends before. α is the theorem's share of `FALSE_ALARM`, so that all
verdicts "violated" of a suite of true theorems together have at most that probability.
"""

from __future__ import annotations

import hashlib
import importlib.util
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import HealthCheck, Phase, find, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from lrlm_sim.confidence import failure_evidence, false_alarm_budget
from lrlm_sim.theorems.base import Budget, Finding, Instance, Measurement, Theorem, Verdict
from lrlm_sim.theorems.catalogue import catalogue
from oracles.checks import as_integer
from oracles.errors import ParameterError

#: Probability with which a suite of true theorems shows any verdict "violated".
FALSE_ALARM = 1e-6
#: Confidence of "holds".
EVIDENCE = 0.99
_SEEDS = (0, 2**20)


@dataclass(frozen=True)
class Report:
    """Findings of all theorems that were tried, with budget and seed."""

    findings: tuple[Finding, ...]
    budget: str
    seed: int

    @property
    def ok(self) -> bool:
        """Whether everything that was tried holds."""
        return all(finding.verdict == "holds" for finding in self.findings if finding.instances)


def verify(
    names: Sequence[str] | None = None,
    budget: Budget = "small",
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
    jobs: int = 1,
) -> Report:
    """Try the named theorems (all if None), `jobs` at a time; `progress` is told each name that is done."""
    chosen = select(names)
    found = {}
    for finding in findings(chosen, budget, seed, jobs):
        found[finding.name] = finding
        if progress is not None:
            progress(finding.name)
    return Report(tuple(found[theorem.name] for theorem in chosen), budget, seed)


def findings(chosen: Sequence[Theorem], budget: Budget, seed: int, jobs: int = 1) -> Iterator[Finding]:
    """The findings as they come, so that an interrupted run keeps those already made.

    With `jobs` > 1 theorems of the catalogue are tried in that many processes, and the order is that in which
    they end; the findings themselves do not depend on `jobs`, up to rounding.
    """
    if as_integer("jobs", jobs, 1) == 1 or len(chosen) < 2:
        yield from (check_theorem(theorem, budget, seed) for theorem in chosen)
        return
    tasks: list[tuple[str, Budget, int]] = [(theorem.name, budget, seed) for theorem in chosen]
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(jobs, len(tasks)), _leave_interrupts_to_the_parent) as pool:
        yield from pool.imap_unordered(_check_by_name, tasks)


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _check_by_name(task: tuple[str, Budget, int]) -> Finding:
    name, budget, seed = task
    return check_theorem(select([name])[0], budget, seed)


def select(names: Sequence[str] | None) -> list[Theorem]:
    """Theorems by name, in the catalogue's order; ParameterError lists the known names."""
    known = {theorem.name: theorem for theorem in catalogue()}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ParameterError(f"unknown theorem {unknown[0]!r}, known: {', '.join(known)}")
    return [theorem for name, theorem in known.items() if not names or name in names]


def check_theorem(theorem: Theorem, budget: Budget = "small", seed: int = 0) -> Finding:
    """Measure a theorem on as many random instances as the budget allows, and judge it."""
    missing = missing_package(theorem)
    if missing is not None:
        return _not_tried(theorem, missing)
    measured: list[Measurement] = []
    failing: list[Instance] = []
    for instance in instances(theorem, theorem.trials[budget], seed):
        outcome = _try(theorem.measure, instance)
        if isinstance(outcome, str):
            return _broken_off(theorem, instance, outcome, measured)
        measured.append(outcome)
        if outcome.broken:
            failing.append(instance)
        if decided(theorem, len(measured), len(failing)):
            break
    verdict, claim = judge(theorem, len(measured), len(failing))
    smallest = shrink(theorem, failing[0]) if verdict == "violated" and failing else None
    return Finding(
        name=theorem.name,
        source=theorem.source,
        verdict=verdict,
        instances=len(measured),
        failures=len(failing),
        worst=min(measured, key=lambda m: m.slack, default=None),
        confidence=EVIDENCE,
        claim=claim,
        counterexample=smallest,
        reproduce=_command(theorem, smallest),
        measurements=tuple((m.measured, m.bound) for m in measured),
    )


def missing_package(theorem: Theorem) -> str | None:
    """The first optional package that the theorem needs and that is not installed; None if all are."""
    return next((module for module in theorem.requires if importlib.util.find_spec(module) is None), None)


def decided(theorem: Theorem, tried: int, failures: int) -> bool:
    """Whether further instances cannot change the verdict, or are not needed for it."""
    if theorem.delta == 0:
        return failures > 0
    return judge(theorem, tried, failures)[0] != "undecided"


def judge(theorem: Theorem, tried: int, failures: int) -> tuple[Verdict, str]:
    """Verdict and what it says, from the numbers of instances tried and failed."""
    if theorem.delta == 0:
        if failures:
            return "violated", f"a counterexample among {tried} instances"
        share = 1 - (1 - EVIDENCE) ** (1 / max(tried, 1))
        return (
            "holds",
            f"on {tried} of {tried}: with confidence {EVIDENCE:g} on all but {share:.2g} of instances",
        )
    evidence = failure_evidence(failures, tried, theorem.delta)
    counts = f"{failures} of {tried} failed"
    if evidence.against >= 1 / alpha():
        return "violated", f"{counts}: evidence {evidence.against:.3g} to 1 against δ = {theorem.delta:g}"
    if evidence.in_favour >= 1 / (1 - EVIDENCE):
        rate = f"a failure rate below δ = {theorem.delta:g}"
        return "holds", f"{counts}: with confidence {EVIDENCE:g} {rate}"
    return "undecided", f"{counts}: too few instances to tell from δ = {theorem.delta:g}"


def alpha() -> float:
    """One theorem's share of the suite's false-alarm budget."""
    return float(false_alarm_budget(FALSE_ALARM, len(catalogue()))[0])


def instances(theorem: Theorem, count: int, seed: int) -> Iterator[Instance]:
    """Random instances, a function of (theorem, seed); with δ = 0 the corners of the ranges come first."""
    digest = hashlib.blake2b(f"{seed}/{theorem.name}".encode(), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "little"))
    for number in range(count):
        if number < 2 and theorem.delta == 0:
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
        if decided(theorem, tried, failures):
            break
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
        confidence=EVIDENCE,
        claim="the measurement raised an error",
        counterexample=dict(instance),
        reproduce=_command(theorem, dict(instance)),
        error=error,
    )


def _not_tried(theorem: Theorem, module: str) -> Finding:
    remedy = f"not tried: it needs {module}, install lrlm-sim[{theorem.requires[module]}]"
    return Finding(theorem.name, theorem.source, "undecided", 0, 0, None, EVIDENCE, remedy)


def _command(theorem: Theorem, instance: dict[str, int] | None) -> str:
    if instance is None:
        return ""
    values = ",".join(f"{name}={value}" for name, value in instance.items())
    return f"lrlm verify {theorem.name} --instance {values}"
