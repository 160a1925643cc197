"""Strategies of oracles: every draw obeys the contract; learners are driven over the families."""

import numpy as np
import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from lrlm_sim.learners import SpectralHMM
from lrlm_sim.testing import LEARNER_LAWS, check_learner, check_oracle
from lrlm_sim.testing.strategies import (
    POSITIVE_FLOOR,
    histories,
    laws,
    oracles,
    possible_strings,
    strings,
    teacher_families,
)
from oracles import Oracle
from oracles.errors import HorizonError, ParameterError
from oracles.storage import load, save
from tests.learner_registry import LEARNERS
from tests.oracles.enumeration import all_strings
from tests.registry import ORACLES

FAMILIES = teacher_families(max_vocab=3, max_horizon=5)
POSITIVE = teacher_families(max_vocab=3, max_horizon=5, positive=True)


def test_at_least_twenty_families():
    assert len(FAMILIES) == 28
    assert len(POSITIVE) == 23
    assert set(POSITIVE) < set(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_obeys_the_contract(name):
    @given(FAMILIES[name])
    @settings(max_examples=5)
    def check(oracle):
        assert isinstance(oracle, Oracle)
        assert 1 <= oracle.vocab_size <= 3
        assert 1 <= oracle.horizon <= 5
        check_oracle(oracle, n=4, length=5, samples=300)

    check()


@pytest.mark.parametrize("name", [n for n in FAMILIES if not n.startswith("conditioned")])
def test_every_model_is_loaded_bit_for_bit(name, tmp_path):
    @given(FAMILIES[name])
    @settings(max_examples=30 if name.startswith("weighted") else 8)
    def check(oracle):
        again = load(save(oracle, tmp_path / "model.safetensors"))
        strings = all_strings(oracle.vocab_size, oracle.horizon)
        np.testing.assert_array_equal(again.score(strings), oracle.score(strings))

    check()


@pytest.mark.parametrize("name", POSITIVE)
def test_positive_oracles_are_positive_after_every_history(name):
    @given(POSITIVE[name])
    @settings(max_examples=8)
    def check(oracle):
        for t in range(oracle.horizon):
            smallest = oracle.next_log_probs(all_strings(oracle.vocab_size, t)).min()
            assert smallest >= np.log(POSITIVE_FLOOR)

    check()


@given(st.data())
def test_strings_and_histories_can_be_asked_about(data):
    oracle = data.draw(oracles(max_vocab=3, max_horizon=4))
    assert oracle.score([data.draw(strings(oracle))]).shape == (1,)
    assert np.isfinite(oracle.next_log_probs([data.draw(histories(oracle))])).any()
    possible = data.draw(possible_strings(oracle))
    assert len(possible) == oracle.horizon
    assert oracle.score([possible])[0] > -np.inf


@given(st.data())
def test_models_without_a_horizon(data):
    unbounded = ORACLES["unbounded"]()
    assert len(data.draw(strings(unbounded, 7))) == 7
    assert len(data.draw(possible_strings(unbounded, 3))) == 3
    assert len(data.draw(histories(unbounded, 4))) <= 4
    with pytest.raises(HorizonError, match="length="):
        strings(unbounded)


@given(st.sampled_from(["counts", "near-deterministic", "zeros", "deterministic", "tiny"]), st.data())
def test_laws_are_laws(kind, data):
    rows = data.draw(laws((2, 3, 4), [kind]))
    assert rows.shape == (2, 3, 4)
    np.testing.assert_allclose(rows.sum(axis=2), 1, atol=1e-12)
    assert rows.min() >= (0 if kind in ("zeros", "deterministic") else 1e-13)


def test_small_bounds_leave_out_what_does_not_fit():
    assert {"parity", "copy", "cauchy"}.isdisjoint(teacher_families(1, 1))
    assert "hmm" in teacher_families(1, 1)
    with pytest.raises(ParameterError):
        teacher_families(0, 3)


_SHARED = tuple(law for law in LEARNER_LAWS if law.name in ("result", "deterministic", "budget", "saved"))
_NEEDS_LOGITS = ("isan", "logit", "fourier")
#: Learners of one class of teachers only.
_ONLY = {"fourier": {"parity", "polynomial"}}


def _fits(learner, teacher):
    """Teachers that a learner refuses by a typed error of its own are not its teachers."""
    return not isinstance(learner, SpectralHMM) or (teacher.horizon >= 3 and teacher.vocab_size >= 2)


def _drive(learner, teachers):
    @given(teachers)
    @settings(max_examples=3, phases=[Phase.generate])
    def check(teacher):
        assume(_fits(learner, teacher))
        check_learner(learner, teacher, laws=_SHARED)

    check()


@pytest.mark.parametrize("name", LEARNERS)
def test_learners_keep_their_contract_on_every_family(name):
    learner = LEARNERS[name].learner
    longest = 4 if isinstance(learner, SpectralHMM) else 3
    families = teacher_families(max_vocab=3, max_horizon=longest, positive=name in _NEEDS_LOGITS)
    assert len(families) >= 20
    for family in _ONLY.get(name, set(families)) & set(families):
        _drive(learner, families[family])
