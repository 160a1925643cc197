"""ISAN extraction: exact on exact answers, honest about noise, rank and budget."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrlm_sim import distances, matrices
from lrlm_sim.learners import ISANExtraction
from lrlm_sim.learners import isan_extraction as module
from oracles import ISAN, Budget, HiddenMarkovModel, LogitAccess, SampleAccess, Tabular, open_oracle
from oracles.errors import BudgetError, HorizonError, ParameterError, ZeroProbabilityError

EXACT = [
    "parity:n=8,noise=0.05",
    "cauchy:n=5",
    "copy:length=3,vocab_size=3,noise=0.2",
    "hmm:n_states=2,vocab_size=2,horizon=6",
    "hmm:n_states=3,vocab_size=3,horizon=5",
    "hmm:n_states=2,vocab_size=3,horizon=1",
    "polynomial:n=6,terms=3",
    "ngram:order=2,vocab_size=3,horizon=6",
]


@pytest.mark.parametrize("spec", EXACT)
def test_exact_answers_give_the_exact_model(spec):
    teacher = open_oracle(spec)
    result = ISANExtraction().fit(LogitAccess(teacher), rng=0)
    assert result.status.ok, result.status
    assert distances.total_variation(teacher, result.model) < 1e-9


@given(
    width=st.integers(1, 4),
    vocab_size=st.integers(2, 5),
    horizon=st.integers(1, 5),
    seed=st.integers(0, 10**6),
)
def test_random_isans_are_learned_with_the_minimal_width(width, vocab_size, horizon, seed):
    teacher = ISAN.random(width, vocab_size, horizon, rng=seed)
    result = ISANExtraction().fit(LogitAccess(teacher, seed=seed), rng=seed)
    assert result.status.ok, result.status
    assert distances.total_variation(teacher, result.model) < 1e-9
    assert max(result.stats["ranks"]) <= max(1, matrices.logit_rank(teacher))


def test_long_horizons_do_not_blow_up():
    teacher = ISAN.random(3, 3, 120, rng=0, orthogonal=True)
    result = ISANExtraction(validation=4).fit(LogitAccess(teacher), rng=0)
    assert result.status.ok
    assert result.stats["validation_discrepancy"] < 1e-9


def test_noise_costs_little_and_is_declared():
    teacher = ISAN.random(4, 4, 12, rng=3)
    result = ISANExtraction(noise=1e-3).fit(LogitAccess(teacher, noise=1e-3), rng=0)
    assert result.status.ok
    assert set(result.stats["ranks"][1:-1]) == {4}
    assert distances.estimate_total_variation(teacher, result.model, 4000, 0.999, rng=1).low < 0.02


def test_undeclared_noise_is_not_accepted():
    result = ISANExtraction(max_pool=64).fit(LogitAccess(ISAN.random(3, 3, 6, rng=0), noise=1e-2), rng=0)
    assert not result.status.ok
    assert result.status.remedy


def test_rank_given_too_small_is_said_with_the_rank_found():
    result = ISANExtraction(rank=3).fit(LogitAccess(ISAN.random(4, 4, 8, rng=1)), rng=0)
    assert result.status.code == "rank_too_small"
    assert "4" in result.status.remedy


def test_pool_too_small_is_said():
    result = ISANExtraction(pool=4, max_pool=8).fit(
        LogitAccess(open_oracle("hmm:n_states=3,vocab_size=3,horizon=6")), 0
    )
    assert result.status.code == "pool_too_small"


def test_budget_error_carries_the_cuts_learned():
    with pytest.raises(BudgetError) as caught:
        ISANExtraction().fit(LogitAccess(ISAN.random(3, 3, 8, rng=0), budget=Budget(calls=300)), rng=0)
    assert caught.value.ledger.calls <= 300
    assert 0 < len(caught.value.partial["cuts_learned"]) < 8


def test_wrong_inputs_are_typed_errors():
    teacher = HiddenMarkovModel.random(2, 2, 3, rng=0)
    with pytest.raises(ParameterError, match="needs LogitAccess, got SampleAccess"):
        ISANExtraction().fit(SampleAccess(teacher))
    with pytest.raises(HorizonError, match="past the teacher's 3"):
        ISANExtraction(horizon=4).fit(LogitAccess(teacher))
    with pytest.raises(ParameterError, match="rank must be at least 1"):
        ISANExtraction(rank=0)
    with pytest.raises(ZeroProbabilityError, match="smooth"):
        ISANExtraction().fit(LogitAccess(Tabular(np.array([[0.5, 0.0], [0.25, 0.25]]))), rng=0)


def test_same_seeds_same_model():
    teacher = ISAN.random(3, 3, 6, rng=0)
    first, second = (ISANExtraction().fit(LogitAccess(teacher, seed=5), rng=7) for _ in range(2))
    np.testing.assert_array_equal(first.model.transitions, second.model.transitions)
    assert first.ledger == second.ledger


def test_without_closure_the_model_is_wrong(monkeypatch):
    """Mutation: keeping only the empty context loses parity, and validation says so."""
    monkeypatch.setattr(module, "_close_contexts", lambda grid, rank, noise: [0])
    result = ISANExtraction().fit(LogitAccess(open_oracle("parity:n=6,noise=0.05")), rng=0)
    assert not result.status.ok
