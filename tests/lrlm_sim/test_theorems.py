"""The theorem table: every claim holds, every mutant is killed, verdicts mean what they say."""

import json

import numpy as np
import pytest

from lrlm_sim.theorems import Measurement, Theorem, catalogue, check_theorem, killed, verify
from lrlm_sim.theorems.verify import instances, judge
from oracles.errors import ParameterError

THEOREMS = {theorem.name: theorem for theorem in catalogue()}
MUTANTS = [(name, mutant) for name, theorem in THEOREMS.items() for mutant in theorem.mutants]


def claim(measure, delta=0.0, trials=50):
    sizes = {"small": trials, "medium": trials, "large": trials}
    return Theorem("claim", "x ≤ 1", "test", {"x": (0, 40)}, measure, delta=delta, trials=sizes)


@pytest.mark.parametrize("name", THEOREMS)
def test_every_theorem_holds(name):
    finding = check_theorem(THEOREMS[name], "small", seed=0)
    assert finding.verdict == "holds", f"{finding.claim} {finding.error} {finding.counterexample}"


@pytest.mark.parametrize(("name", "mutant"), MUTANTS)
def test_every_mutant_is_killed(name, mutant):
    assert killed(THEOREMS[name], mutant)


def test_names_are_unique_and_every_theorem_has_a_mutant():
    assert len(THEOREMS) == len(catalogue())
    assert all(theorem.mutants for theorem in THEOREMS.values())
    assert all(theorem.source and theorem.statement for theorem in THEOREMS.values())


def test_a_false_claim_is_violated_and_shrunk_to_its_smallest_counterexample():
    finding = check_theorem(claim(lambda i: Measurement(i["x"], 16, 0)), seed=1)
    assert finding.verdict == "violated"
    assert finding.counterexample == {"x": 17, "seed": 0}
    assert finding.reproduce == "lrlm verify claim --instance x=17,seed=0"


def test_a_crash_is_a_violation_with_its_text():
    def crash(instance):
        raise ValueError("boom")

    finding = check_theorem(claim(crash))
    assert finding.verdict == "violated"
    assert "boom" in finding.error


def test_nan_breaks_a_claim():
    assert Measurement(np.nan, 1.0).broken
    assert not Measurement(1.0, 1.0).broken


def test_failure_rates_are_judged_by_the_binomial_law():
    theorem = claim(lambda i: Measurement(0, 1), delta=0.1)
    assert judge(theorem, 1000, 95)[0] == "holds"
    assert judge(theorem, 1000, 115)[0] == "undecided"
    assert judge(theorem, 1000, 200)[0] == "violated"
    assert judge(claim(lambda i: Measurement(0, 1)), 10, 1)[0] == "violated"


def test_verdicts_on_true_delta_claims_are_calibrated():
    """At δ exactly the failure probability, "violated" has probability 1e-6 per run: none of 200 here."""
    rng = np.random.default_rng(0)
    theorem = claim(lambda i: Measurement(0, 1), delta=0.1)
    assert not any(judge(theorem, 300, int(rng.binomial(300, 0.1)))[0] == "violated" for _ in range(200))
    assert all(judge(theorem, 300, int(rng.binomial(300, 0.4)))[0] == "violated" for _ in range(200))


def test_instances_are_reproducible_and_begin_with_the_corners():
    theorem = THEOREMS["hmm-rank"]
    first, again = list(instances(theorem, 5, 7)), list(instances(theorem, 5, 7))
    assert first == again
    assert first != list(instances(theorem, 5, 8))
    assert [first[0][name] for name in theorem.parameters] == [1, 1, 1]


def test_unknown_names_are_refused():
    with pytest.raises(ParameterError, match="unknown theorem 'nonsense', known: hmm-rank"):
        verify(["nonsense"])
    report = verify(["pinsker", "hmm-rank"])
    assert [finding.name for finding in report.findings] == ["hmm-rank", "pinsker"]
    assert report.ok
    json.dumps([finding.verdict for finding in report.findings])
