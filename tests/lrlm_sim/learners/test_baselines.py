"""Learners from samples and query learners of automata: right where they should be, wrong where they must."""

import warnings

import numpy as np
import pytest
from aalpy.automata import MooreMachine, MooreState
from aalpy.learning_algs import run_Lstar
from aalpy.oracles import RandomWMethodEqOracle
from aalpy.SULs import MooreSUL
from hmmlearn.hmm import CategoricalHMM
from hypothesis import given
from hypothesis import strategies as st

from lrlm_sim import distances
from lrlm_sim.learners import (
    BaumWelch,
    ExactConditionalLearner,
    LStar,
    NGramLearner,
    SpectralHMM,
    baum_welch,
)
from oracles import (
    Budget,
    ConditionalProbabilityAccess,
    ConditionalSampleAccess,
    HiddenMarkovModel,
    NGram,
    NoisyParity,
    ProbabilisticAutomaton,
    SampleAccess,
)
from oracles.errors import BudgetError, HorizonError, NonFiniteError, ParameterError

SAMPLE_LEARNERS = [NGramLearner(3, 4000), SpectralHMM(2, 4000), BaumWelch(2, 4000, restarts=2)]


def well_conditioned() -> HiddenMarkovModel:
    return HiddenMarkovModel([0.6, 0.4], [[0.8, 0.2], [0.3, 0.7]], [[0.8, 0.1, 0.1], [0.1, 0.2, 0.7]], 6)


@pytest.mark.parametrize("learner", SAMPLE_LEARNERS, ids=lambda x: type(x).__name__)
def test_samples_cannot_see_a_noisy_parity(learner):
    """TV to the uniform law is ½ − ν; no learner from samples does better, at any of these sizes."""
    teacher = NoisyParity([1, 0, 1, 1, 0, 1, 1, 0, 1, 0], 0.1)
    result = learner.fit(SampleAccess(teacher, seed=1), rng=0)
    assert distances.total_variation(teacher, result.model) > 0.35


def test_conditional_queries_do_see_it():
    teacher = NoisyParity([1, 0, 1, 1, 0, 1], 0.1)
    result = ExactConditionalLearner().fit(ConditionalProbabilityAccess(teacher), rng=0)
    assert distances.total_variation(teacher, result.model) < 1e-9


@pytest.mark.parametrize("learner", [SpectralHMM, BaumWelch], ids=lambda x: x.__name__)
def test_more_samples_help_on_a_well_conditioned_model(learner):
    teacher = well_conditioned()
    errors = []
    for samples in (2000, 200_000):
        result = learner(2, samples).fit(SampleAccess(teacher, seed=samples), rng=0)
        errors.append(distances.total_variation(teacher, result.model))
    assert result.status.ok
    assert errors[1] < 0.02
    assert errors[1] < errors[0] / 2


def test_spectral_says_when_the_rank_condition_is_not_visible():
    result = SpectralHMM(2, 5000).fit(SampleAccess(NoisyParity([1, 1, 0, 1], 0.1)), rng=0)
    assert result.status.code == "not_full_rank"
    with pytest.raises(ParameterError, match="n_states ≤ vocab_size"):
        SpectralHMM(4).fit(SampleAccess(NoisyParity([1, 1, 0, 1], 0.1)))
    with pytest.raises(HorizonError, match="at least 3"):
        SpectralHMM(2).fit(SampleAccess(HiddenMarkovModel.random(2, 2, 2, rng=0)))


def test_spectral_is_exact_on_exact_moments(monkeypatch):
    teacher = well_conditioned()
    moments = teacher.condition([])
    triples = np.exp(moments.score(np.indices((3,) * 3).reshape(3, -1).T)).reshape(3, 3, 3)
    monkeypatch.setattr("lrlm_sim.learners.spectral_hmm._triples", lambda *_: triples)
    result = SpectralHMM(2, 10).fit(SampleAccess(teacher), rng=0)
    assert distances.total_variation(teacher, result.model) < 1e-9


def test_expectations_agree_with_hmmlearn():
    """One EM step of hmmlearn from the same start gives the same model."""
    teacher, start = well_conditioned(), HiddenMarkovModel.random(2, 3, 6, rng=5)
    strings = teacher.sample(300, 0)
    peer = CategoricalHMM(2, n_iter=1, init_params="", params="ste", tol=-np.inf, n_features=3)
    peer.startprob_, peer.transmat_, peer.emissionprob_ = start.initial, start.transition, start.emission
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer.fit(strings.reshape(-1, 1), [6] * 300)
    distinct, copies = np.unique(strings, axis=0, return_counts=True)
    levels = baum_welch._prefix_levels(distinct)
    likelihood, expected = baum_welch._expectations(start, levels, copies / 300)
    assert likelihood == pytest.approx(start.score(strings).mean(), abs=1e-12)
    for ours, theirs in zip(expected, (peer.startprob_, peer.transmat_, peer.emissionprob_), strict=True):
        np.testing.assert_allclose(baum_welch._normalise(ours), theirs, atol=1e-9)


def test_the_prefix_tree_of_strings_has_every_prefix_once():
    strings = np.unique(np.random.default_rng(0).integers(0, 3, (40, 5)), axis=0)
    above = np.zeros((1, 0), dtype=int)
    for t, level in enumerate(baum_welch._prefix_levels(strings)):
        prefixes = np.column_stack([above[level.parent], level.token])
        np.testing.assert_array_equal(prefixes, np.unique(strings[:, : t + 1], axis=0))
        if t < 4:
            continued = prefixes[:, None] == np.unique(strings[:, : t + 2], axis=0)[None, :, : t + 1]
            np.testing.assert_array_equal(level.first_child, continued.all(axis=2).argmax(axis=1))
        above = prefixes


def test_baum_welch_climbs_and_refuses_nan(monkeypatch):
    access = SampleAccess(well_conditioned(), seed=0)
    result = BaumWelch(2, 500, restarts=3, iterations=50).fit(access, rng=1)
    for path in result.stats["log_likelihoods"]:
        assert np.all(np.diff(path) > -1e-9)
    assert result.stats["log_likelihood"] == max(path[-1] for path in result.stats["log_likelihoods"])
    monkeypatch.setattr(baum_welch, "_expectations", lambda *_: (float("nan"), ()))
    with pytest.raises(NonFiniteError, match="prior"):
        BaumWelch(2, 500).fit(access, rng=1)


def test_ngram_recovers_an_ngram():
    teacher = NGram.random(2, 3, 8, rng=0)
    few, many = (NGramLearner(2, n).fit(SampleAccess(teacher, seed=n), rng=0) for n in (300, 30_000))
    error = distances.total_variation(teacher, many.model)
    assert error < 0.03
    assert error < distances.total_variation(teacher, few.model) / 2


@given(seed=st.integers(0, 10**6), n_states=st.integers(1, 5), vocab_size=st.integers(1, 4))
def test_submatrix_learner_is_exact(seed, n_states, vocab_size):
    teacher = HiddenMarkovModel.random(n_states, vocab_size, 5, rng=seed)
    access = ConditionalProbabilityAccess(teacher, seed=seed)
    result = ExactConditionalLearner(validation=24).fit(access, rng=seed)
    assert max(result.stats["ranks"]) <= n_states
    assert distances.total_variation(teacher, result.model) < 1e-8


def random_dfa(seed: int, states: int) -> np.ndarray:
    """A transition table whose states all allow at least one of two tokens."""
    rng = np.random.default_rng(seed)
    delta = rng.integers(0, states, (states, 2))
    closed = rng.random(states) < 0.5
    delta[closed, rng.integers(0, 2, states)[closed]] = -1
    return delta


def states_found_by_aalpy(delta: np.ndarray) -> int:
    """Number of states AALpy's L* finds for the Moore machine whose output is the support."""
    machine_states = [MooreState(f"s{i}", str(tuple(row >= 0))) for i, row in enumerate(delta)]
    dead = MooreState("dead", "dead")
    for token in (0, 1):
        dead.transitions[token] = dead
        for i, row in enumerate(delta):
            machine_states[i].transitions[token] = machine_states[row[token]] if row[token] >= 0 else dead
    machine = MooreMachine(machine_states[0], [*machine_states, dead])
    sul = MooreSUL(machine)
    equivalence = RandomWMethodEqOracle([0, 1], sul, walks_per_state=100, walk_len=20)
    learned = run_Lstar([0, 1], sul, equivalence, automaton_type="moore", print_level=0)
    return sum(state.output != "dead" for state in learned.states)


@pytest.mark.parametrize("seed", range(12))
def test_lstar_agrees_with_aalpy(seed):
    delta = random_dfa(seed, 5)
    teacher = ProbabilisticAutomaton.from_dfa(delta, 0, 14)
    result = LStar().fit(ConditionalProbabilityAccess(teacher, seed=seed), rng=seed)
    assert result.status.ok
    assert distances.total_variation(teacher, result.model) < 1e-12
    assert result.stats["states"] == states_found_by_aalpy(delta)
    assert result.stats["equivalence_queries"] <= result.stats["states"] + 1


@pytest.mark.parametrize("learner", SAMPLE_LEARNERS, ids=lambda x: type(x).__name__)
def test_a_spent_budget_carries_the_count(learner):
    access = SampleAccess(well_conditioned(), budget=Budget(calls=100))
    with pytest.raises(BudgetError) as caught:
        learner.fit(access, rng=0)
    assert caught.value.partial == {"strings": 100}


def test_sampled_submatrix_learner_improves_with_samples():
    teacher = well_conditioned()
    errors = [
        distances.total_variation(
            teacher, ExactConditionalLearner(samples=m).fit(ConditionalSampleAccess(teacher, seed=m), 0).model
        )
        for m in (300, 30_000)
    ]
    assert errors[1] < min(errors[0], 0.05)
