"""The theorem table: every claim holds, every mutant is killed, verdicts mean what they say."""

import dataclasses
import json

import numpy as np
import pytest

from lrlm_sim.theorems import Measurement, Report, Theorem, catalogue, check_theorem, killed, verify
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


def test_failure_rates_are_judged_by_evidence_at_any_time():
    theorem = claim(lambda i: Measurement(0, 1), delta=0.1)
    assert judge(theorem, 1000, 60)[0] == "holds"
    assert judge(theorem, 1000, 95)[0] == "undecided"  # no more than δ explains, but no proof of it either
    assert judge(theorem, 1000, 115)[0] == "undecided"
    assert judge(theorem, 1000, 200)[0] == "violated"
    assert judge(theorem, 20, 0)[0] == "undecided"
    assert judge(claim(lambda i: Measurement(0, 1)), 10, 1)[0] == "violated"


@pytest.mark.parametrize(
    ("rate", "verdict"), [(0.0, "holds"), (0.02, "holds"), (0.1, "undecided"), (0.5, "violated")]
)
def test_claims_with_a_failure_probability_stop_when_decided(rate, verdict):
    """At the rate δ itself "violated" has probability ≤ 1e-6 and "holds" ≤ 0.01 per run, however long."""

    def fails(instance):
        return Measurement(float(np.random.default_rng(instance["seed"]).random() < rate), 0.0)

    finding = check_theorem(claim(fails, delta=0.1, trials=1000), seed=3)
    assert finding.verdict == verdict
    assert (finding.instances < 1000) == (verdict != "undecided")
    assert len(finding.measurements) == finding.instances


def test_verdicts_do_not_depend_on_how_many_run_side_by_side():
    names = ["hmm-rank", "pinsker", "logit-estimation"]
    done = []
    together, alone = verify(names, jobs=2, progress=done.append), verify(names)
    assert sorted(done) == sorted(names)
    for here, there in zip(together.findings, alone.findings, strict=True):
        assert (here.name, here.verdict, here.claim) == (there.name, there.verdict, there.claim)
        # sums in another process may be rounded differently, by how arrays lie in memory
        np.testing.assert_allclose(here.measurements, there.measurements, rtol=1e-12, atol=1e-15)


def test_a_theorem_whose_package_is_missing_is_not_tried():
    theorem = dataclasses.replace(claim(lambda i: Measurement(0, 1)), requires={"no_such_package": "extra"})
    finding = check_theorem(theorem)
    assert (finding.verdict, finding.instances, finding.worst) == ("undecided", 0, None)
    assert "lrlm-sim[extra]" in finding.claim
    assert Report((finding,), "small", 0).ok  # nothing that was tried failed


def test_bounds_are_those_of_the_measurements():
    """Where a bound is given as a function of the instance, the measurement compares with the same number."""
    for theorem in THEOREMS.values():
        if theorem.bound is not None and not theorem.requires:
            instance = next(instances(theorem, 1, 5))
            assert theorem.measure(instance).bound == pytest.approx(theorem.bound(instance)), theorem.name


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
