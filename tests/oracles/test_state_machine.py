"""Oracle states driven in any order against plain prefixes; broken oracles are caught."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from lrlm_sim.testing import ContractError
from lrlm_sim.testing.state_machine import oracle_state_machine
from oracles import HiddenMarkovModel, RecurrentOracle
from oracles.recurrent import RecurrentState
from tests.registry import ORACLES

_FEW = settings(
    max_examples=8, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
# A fault ends the search; what hypothesis draws depends on the modules loaded, so the search is long.
_MANY = settings(_FEW, max_examples=2000, derandomize=True, database=None, phases=[Phase.generate])
_DRIVEN = [
    "hmm",
    "hmm-per-step",
    "hmm-zeros",
    "hmm-horizon-1",
    "isan-per-step",
    "weighted-zeros",
    "pfa",
    "dfa",
    "ngram",
    "ngram-longer-than-horizon",
    "tabular-zeros",
    "parity",
    "polynomial",
    "copy",
    "cauchy",
    "branching-padded",
    "perturbed-zeros",
    "conditioned-perturbed",
    "unbounded",
]


@pytest.mark.parametrize("name", _DRIVEN)
def test_states_stand_for_their_prefixes(name):
    run_state_machine_as_test(oracle_state_machine(ORACLES[name]()), settings=_FEW)


@dataclass(frozen=True, eq=False)
class Broken(RecurrentOracle):
    """Counts ones; each fault breaks one promise of states."""

    fault: str
    vocab_size: int = 2
    horizon: int = 6

    def first_row(self):
        return np.zeros(1)

    def step(self, position, rows, tokens):
        if self.fault == "advance writes into its argument":
            rows += tokens[:, None]
            return rows
        return rows + tokens[:, None]

    def laws(self, position, rows):
        if self.fault == "the batch leaks" and len(rows) > 1:
            rows = rows - rows[:1]
        ones = 1 / (1 + np.exp(1 - rows))
        return np.log(np.concatenate([1 - ones, ones], axis=1))

    def advance(self, state, tokens):
        if self.fault == "keeps the caller's tokens" and np.ndim(tokens) == 1:
            state = super().advance(state, tokens)
            return _Lazy(state.position, state.rows - np.asarray(tokens)[:, None], tokens)
        if self.fault == "a chunk loses its last token" and np.ndim(tokens) == 2 and np.shape(tokens)[1] > 1:
            short = super().advance(state, np.asarray(tokens)[:, :-1])
            return RecurrentState(short.position + 1, short.rows)
        return super().advance(self._read(state), tokens)

    def take(self, state, rows):
        if self.fault == "take sorts its rows":
            rows = np.sort(rows)
        return super().take(self._read(state), rows)

    def log_probs(self, state):
        return super().log_probs(self._read(state))

    @staticmethod
    def _read(state):
        if isinstance(state, _Lazy):
            return RecurrentState(state.position, state.rows + state.tokens[:, None])
        return state


@dataclass(frozen=True, eq=False)
class _Lazy(RecurrentState):
    """A state that has not read its last token yet, and holds the caller's array."""

    tokens: np.ndarray


@pytest.mark.parametrize(
    "fault",
    [
        "advance writes into its argument",
        "the batch leaks",
        "a chunk loses its last token",
        "take sorts its rows",
        "keeps the caller's tokens",
    ],
)
def test_broken_states_are_caught(fault):
    machine = oracle_state_machine(lambda: Broken(fault))
    with pytest.raises(ContractError, match="state machine"):
        run_state_machine_as_test(machine, settings=_MANY)


def test_the_same_oracle_without_a_fault_passes():
    run_state_machine_as_test(oracle_state_machine(lambda: Broken("none")), settings=_FEW)


def test_an_answer_that_is_a_cached_array_is_caught():
    class Cached(HiddenMarkovModel):
        """Hands out an array that it keeps."""

        def laws(self, position, rows):
            if position or len(rows) != 1:
                return super().laws(position, rows)
            if "answer" not in self.__dict__:
                object.__setattr__(self, "answer", super().laws(position, rows))
            return self.__dict__["answer"]

    inner = HiddenMarkovModel.random(2, 2, 3, 0)
    machine = oracle_state_machine(lambda: Cached(inner.initial, inner.transition, inner.emission, 3))
    with pytest.raises(ContractError, match="state machine"):
        run_state_machine_as_test(machine, settings=_MANY)


def test_past_the_horizon_must_be_refused():
    class Endless(Broken):
        """Answers after its horizon."""

        def log_probs(self, state):
            return self.laws(0, state.rows)

    with pytest.raises(ContractError, match="HorizonError"):
        run_state_machine_as_test(oracle_state_machine(lambda: Endless("none", horizon=2)), settings=_MANY)
