"""The contract of learners: every learner obeys it, and broken learners are caught by the intended law."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from lrlm_sim.learners import ISANExtraction, Learner, NGramLearner, Result
from lrlm_sim.learners.base import require_access
from lrlm_sim.testing import ContractError, check_learner
from oracles import HiddenMarkovModel, SampleAccess
from oracles.errors import ParameterError
from oracles.ledger import Ledger
from tests.learner_registry import LEARNERS


@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_obeys_the_contract(name):
    entry = LEARNERS[name]
    report = check_learner(entry.learner, entry.teacher(), seed=3, slack=entry.slack)
    assert len(report.checked) >= 6, str(report)


@dataclass(frozen=True)
class Broken(Learner):
    """A learner with one planted fault."""

    fault: str
    accesses = (SampleAccess,)

    def fit(self, access, rng=None):
        inner = NGramLearner(1, 200)
        if self.fault != "takes anything":
            require_access(self, access)
        elif not isinstance(access, SampleAccess):
            access = SampleAccess(HiddenMarkovModel.random(2, 3, 4, rng=0))
        if self.fault == "swallows the budget":
            try:
                result = inner.fit(access, rng)
            except Exception:
                result = inner.fit(SampleAccess(HiddenMarkovModel.random(2, 3, 4, rng=0)), rng)
                return replace(result, ledger=access.ledger)
            return result
        result: Result = inner.fit(access, rng)
        if self.fault == "hides its queries":
            return replace(result, ledger=Ledger())
        if self.fault == "is not deterministic":
            other = HiddenMarkovModel.random(2, 3, 4, rng=np.random.default_rng())
            return replace(result, model=other)
        if self.fault == "knows token zero" and result.model.score([[0, 0, 0, 0]])[0] > np.log(0.05):
            return replace(result, model=HiddenMarkovModel([1.0], [[1.0]], [[0.98, 0.01, 0.01]], 4))
        if self.fault == "returns a view that cannot be saved":
            return replace(result, model=result.model.condition([]))
        return result


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        ("hides its queries", "result"),
        ("is not deterministic", "deterministic"),
        ("swallows the budget", "budget"),
        ("takes anything", "declared access"),
        ("knows token zero", "relabelling"),
        ("returns a view that cannot be saved", "saved"),
    ],
)
def test_planted_faults_are_caught_by_their_law(fault, law):
    skewed = HiddenMarkovModel([1.0], [[1.0]], [[0.7, 0.2, 0.1]], 4)
    with pytest.raises(ContractError) as caught:
        check_learner(Broken(fault), skewed, seed=1, slack=0.1)
    assert caught.value.law == law


def test_only_learners_are_checked():
    with pytest.raises(ParameterError, match="needs a Learner"):
        check_learner("isan")
    assert check_learner(ISANExtraction(), slack=1e-8).subject == "ISANExtraction"
