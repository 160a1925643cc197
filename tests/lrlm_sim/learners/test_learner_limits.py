"""Bad teachers, spent budgets and degenerate sizes, for every learner of the conditional-query family."""

import numpy as np
import pytest

from lrlm_sim import distances
from lrlm_sim.learners import (
    BaumWelch,
    ConditionalQueryLearner,
    ExactConditionalLearner,
    LStar,
    NGramLearner,
    SpectralHMM,
)
from lrlm_sim.learners.base import Learner
from oracles import (
    Budget,
    ConditionalProbabilityAccess,
    ConditionalSampleAccess,
    HiddenMarkovModel,
    ProbabilisticAutomaton,
    SampleAccess,
    Tabular,
)
from oracles.errors import (
    BudgetError,
    HorizonError,
    InconsistentAnswerError,
    NonFiniteError,
    ParameterError,
    ProbabilityError,
)
from oracles.recurrent import RecurrentOracle

LEARNERS = {
    "tree, sampled": (ConditionalQueryLearner(rank=2, samples=500, route="tree"), ConditionalSampleAccess),
    "spanner, sampled": (
        ConditionalQueryLearner(rank=2, samples=500, route="spanner"),
        ConditionalSampleAccess,
    ),
    "tree, exact": (ConditionalQueryLearner(route="tree"), ConditionalProbabilityAccess),
    "spanner, exact": (ConditionalQueryLearner(route="spanner"), ConditionalProbabilityAccess),
    "submatrix, exact": (ExactConditionalLearner(), ConditionalProbabilityAccess),
    "submatrix, sampled": (ExactConditionalLearner(samples=2000), ConditionalSampleAccess),
    "Baum–Welch": (BaumWelch(2, 2000, restarts=2, iterations=30), SampleAccess),
    "spectral": (SpectralHMM(2, 2000), SampleAccess),
    "n-gram": (NGramLearner(2, 2000), SampleAccess),
    "L*": (LStar(), ConditionalProbabilityAccess),
}
ALL = pytest.mark.parametrize(("learner", "access"), LEARNERS.values(), ids=LEARNERS.keys())
EXACT = pytest.mark.parametrize("name", [name for name in LEARNERS if "exact" in name] + ["L*"])


class Spoilt(RecurrentOracle):
    """A hidden Markov model whose laws are spoilt by a function of (log-laws, calls so far)."""

    vocab_size, horizon = 3, 4

    def __init__(self, spoil):
        self._base, self._spoil, self._calls = HiddenMarkovModel.random(2, 3, 4, rng=0), spoil, 0

    def first_row(self):
        return self._base.first_row()

    def step(self, position, rows, tokens):
        return self._base.step(position, rows, tokens)

    def laws(self, position, rows):
        self._calls += 1
        return self._spoil(self._base.laws(position, rows).copy(), self._calls)


def with_nan(logs, _calls):
    logs[:, 0] = np.nan
    return logs


def drifting(logs, calls):
    laws = np.exp(logs)
    laws[:, 0] += 1e-4 * calls
    return np.log(laws / laws.sum(axis=1, keepdims=True))


@ALL
def test_a_teacher_that_answers_nan_or_unnormalised_laws_is_refused(
    learner: Learner, access: type[SampleAccess]
):
    with pytest.raises(NonFiniteError, match="NaN"):
        learner.fit(access(Spoilt(with_nan)), rng=0)
    with pytest.raises(ProbabilityError, match="sum to one"):
        learner.fit(access(Spoilt(lambda logs, _: logs + 0.3)), rng=0)


@EXACT
def test_an_exact_teacher_that_changes_between_calls_is_refused(name: str):
    learner, access = LEARNERS[name]
    with pytest.raises(InconsistentAnswerError, match="answered the same questions differently"):
        learner.fit(access(Spoilt(drifting)), rng=0)


@ALL
@pytest.mark.parametrize("calls", [30, 60])
def test_a_spent_budget_says_what_was_learned(learner: Learner, access: type[SampleAccess], calls: int):
    teacher = HiddenMarkovModel.random(3, 3, 6, rng=0)
    with pytest.raises(BudgetError) as caught:
        learner.fit(access(teacher, budget=Budget(calls=calls), seed=1), rng=0)
    assert caught.value.partial
    assert caught.value.ledger.calls <= calls


def test_a_budget_spent_by_the_last_look_still_hands_over_the_model():
    teacher, access = HiddenMarkovModel.random(2, 2, 4, rng=0), ConditionalProbabilityAccess
    learner = ConditionalQueryLearner(route="tree")
    calls = learner.fit(access(teacher), rng=0).ledger.calls
    with pytest.raises(BudgetError) as caught:
        learner.fit(access(teacher, budget=Budget(calls=calls - 1)), rng=0)
    assert distances.total_variation(teacher, caught.value.partial["result"].model) < 1e-10


DEGENERATE = {
    "horizon 1": HiddenMarkovModel.random(2, 3, 1, rng=0),
    "one token": HiddenMarkovModel.random(2, 1, 4, rng=0),
    "one token, horizon 1": HiddenMarkovModel.random(2, 1, 1, rng=0),
    "deterministic": ProbabilisticAutomaton.from_dfa(np.array([[1, -1], [-1, 0]]), 0, 6),
    "unreachable histories": Tabular(np.array([[[0.5, 0.0], [0.0, 0.0]], [[0.25, 0.0], [0.0, 0.25]]])),
}


@pytest.mark.parametrize("teacher", DEGENERATE.values(), ids=DEGENERATE.keys())
@pytest.mark.parametrize("name", [name for name in LEARNERS if ", " in name])
def test_degenerate_teachers_are_learned(name: str, teacher):
    learner, access = LEARNERS[name]
    result = learner.fit(access(teacher, seed=1), rng=0)
    assert result.status.ok
    assert distances.total_variation(teacher, result.model) < (1e-7 if "exact" in name else 0.1)


@pytest.mark.parametrize("teacher", DEGENERATE.values(), ids=DEGENERATE.keys())
@pytest.mark.parametrize("name", ["Baum–Welch", "n-gram"])
def test_degenerate_teachers_do_not_break_the_baselines(name: str, teacher):
    """Both are wrong classes for the table of unreachable histories (TV up to .15), right for the rest."""
    learner, access = LEARNERS[name]
    result = learner.fit(access(teacher, seed=1), rng=0)
    assert distances.total_variation(teacher, result.model) < 0.15


def test_the_spectral_learner_says_what_it_needs():
    learner = SpectralHMM(2, 2000)
    with pytest.raises(HorizonError, match="at least 3"):
        learner.fit(SampleAccess(DEGENERATE["horizon 1"]), rng=0)
    with pytest.raises(ParameterError, match="n_states ≤ vocab_size"):
        learner.fit(SampleAccess(DEGENERATE["one token"]), rng=0)


def test_lstar_says_when_the_teacher_is_no_uniform_walk():
    teacher = HiddenMarkovModel.random(2, 3, 4, rng=0)
    result = LStar().fit(ConditionalProbabilityAccess(teacher), rng=0)
    assert result.status.code == "not_a_uniform_walk"
    for name in ("one token", "deterministic"):
        result = LStar().fit(ConditionalProbabilityAccess(DEGENERATE[name]), rng=0)
        assert result.status.ok
        assert distances.total_variation(DEGENERATE[name], result.model) < 1e-12


def test_limits_on_size_are_said_in_the_status():
    teacher = HiddenMarkovModel.random(4, 4, 5, rng=0)
    result = ExactConditionalLearner(max_rank=2).fit(ConditionalProbabilityAccess(teacher), rng=0)
    assert result.status.code == "rank_limit"
    dfa = ProbabilisticAutomaton.from_dfa(np.array([[1, 2], [3, -1], [-1, 3], [0, 1]]), 0, 8)
    result = LStar(max_states=2).fit(ConditionalProbabilityAccess(dfa), rng=0)
    assert result.status.code == "state_limit"


def test_zero_probabilities_are_no_directions():
    """A deterministic teacher has rank one: what was never drawn must not raise the alarm of the rank."""
    teacher = DEGENERATE["deterministic"]
    for samples in (20, 500):
        learner = ConditionalQueryLearner(rank=1, samples=samples, route="tree")
        assert learner.fit(ConditionalSampleAccess(teacher, seed=samples), rng=0).status.ok
