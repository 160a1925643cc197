"""A rule-based state machine that drives an oracle's states in any order against plain prefixes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, rule
from hypothesis.strategies import DataObject
from jaxtyping import Float, Int

from lrlm_sim.testing.contract import ContractError, Violation
from lrlm_sim.testing.probe import Probe
from oracles.base import Oracle, State
from oracles.checks import as_integer, as_number
from oracles.errors import HorizonError

_STATEMENT = "states answer as their prefixes do, whatever was called before"
_MAX_BATCH = 3


@dataclass(frozen=True, eq=False)
class _Pair:
    """A state of the oracle, and the prefixes it should stand for."""

    state: State
    prefixes: Int[np.ndarray, "batch length"]


class _PrefixModel:
    """The brute-force model: a prefix is scored alone, from an empty history, and remembered."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self._rows: dict[tuple[int, ...], Float[np.ndarray, "vocab"]] = {}

    def law(self, prefix: tuple[int, ...]) -> Float[np.ndarray, "vocab"]:
        """Next-token log-probabilities after the prefix."""
        if prefix not in self._rows:
            self._rows[prefix] = self._oracle.next_log_probs([list(prefix)])[0].copy()
        return self._rows[prefix]

    def possible(self, prefix: tuple[int, ...]) -> bool:
        """Whether the prefix has positive probability; after others any valid law may follow."""
        return all(self.law(prefix[:t])[token] > -np.inf for t, token in enumerate(prefix))


class _OracleStateMachine(RuleBasedStateMachine):
    """Rules over one oracle; `oracle_state_machine` sets the class attributes."""

    make: Callable[[], Oracle]
    tolerance: float
    max_length: int

    pairs = Bundle("pairs")

    def __init__(self) -> None:
        super().__init__()
        self.oracle = self.make()
        self.model = _PrefixModel(self.oracle)
        self.probe = Probe(self.oracle, seed=0, n=2, max_length=1, samples=0, tolerance=self.tolerance)
        self.longest = self.max_length if self.oracle.horizon is None else self.oracle.horizon
        self.made: list[_Pair] = []

    @rule(target=pairs, batch=st.integers(0, _MAX_BATCH))
    def start(self, batch: int) -> _Pair:
        """Empty histories."""
        return self._keep(self.oracle.start(batch), np.zeros((batch, 0), dtype=np.int64))

    @rule(target=pairs, pair=pairs, data=st.data())
    def advance_by_token(self, pair: _Pair, data: DataObject) -> _Pair:
        """One token of shape (batch,); past the horizon it must be refused."""
        tokens = self._tokens(data, len(pair.prefixes), 1)
        if pair.prefixes.shape[1] == self.oracle.horizon:
            self._refused(f"advance past {pair.prefixes.tolist()}", pair, tokens)
            return pair
        if pair.prefixes.shape[1] == self.longest:
            return pair
        return self._advance(pair, tokens[:, 0].copy(), tokens)

    @rule(target=pairs, pair=pairs, data=st.data())
    def advance_by_chunk(self, pair: _Pair, data: DataObject) -> _Pair:
        """A chunk of any length that fits, zero included."""
        room = self.longest - pair.prefixes.shape[1]
        tokens = self._tokens(data, len(pair.prefixes), data.draw(st.integers(0, room), "length"))
        return self._advance(pair, tokens.copy(), tokens)

    @rule(target=pairs, pair=pairs, data=st.data())
    def take(self, pair: _Pair, data: DataObject) -> _Pair:
        """Rows repeated, reordered, dropped."""
        n = len(pair.prefixes)
        chosen = st.lists(st.integers(0, n - 1), max_size=_MAX_BATCH) if n else st.just([])
        rows = np.array(data.draw(chosen, "rows"), dtype=np.int64)
        prefixes = pair.prefixes[rows]
        state = self.oracle.take(pair.state, rows)
        rows[:] = 0
        return self._keep(state, prefixes)

    @rule(pair=pairs)
    def ask(self, pair: _Pair) -> None:
        """The laws of a state, old or new."""
        self._compare(pair)

    def teardown(self) -> None:
        """Every state ever made still answers."""
        for pair in self.made:
            self._compare(pair)

    def _tokens(self, data: DataObject, batch: int, length: int) -> Int[np.ndarray, "batch length"]:
        token = st.integers(0, self.oracle.vocab_size - 1)
        flat = data.draw(st.lists(token, min_size=batch * length, max_size=batch * length), "tokens")
        return np.array(flat, dtype=np.int64).reshape(batch, length)

    def _advance(self, pair: _Pair, given: np.ndarray, tokens: np.ndarray) -> _Pair:
        state = self.oracle.advance(pair.state, given)
        given[...] = self.oracle.vocab_size - 1 - given  # the caller reuses its array
        return self._keep(state, np.concatenate([pair.prefixes, tokens], axis=1))

    def _keep(self, state: State, prefixes: np.ndarray) -> _Pair:
        self.made.append(_Pair(state, prefixes))
        return self.made[-1]

    def _refused(self, inputs: str, pair: _Pair, tokens: np.ndarray) -> None:
        self._checked(
            lambda: Probe.refuses(inputs, lambda: self.oracle.advance(pair.state, tokens), HorizonError)
        )

    def _compare(self, pair: _Pair) -> None:
        self._checked(lambda: self._check_laws(pair))

    def _check_laws(self, pair: _Pair) -> None:
        inputs = f"state of {pair.prefixes.tolist()}"
        if pair.prefixes.shape[1] == self.oracle.horizon:
            Probe.refuses(
                f"log_probs of the {inputs}", lambda: self.oracle.log_probs(pair.state), HorizonError
            )
            return
        answer = self.oracle.log_probs(pair.state)
        self.probe.valid_laws(answer, len(pair.prefixes), inputs)
        keys = [tuple(prefix) for prefix in pair.prefixes.tolist()]
        expected = np.array([self.model.law(key) for key in keys]).reshape(answer.shape)
        possible = np.array([self.model.possible(key) for key in keys], dtype=bool)
        self.probe.same_laws(inputs, expected[possible], answer[possible])
        if answer.flags.writeable:
            answer[:] = 0.0  # what was handed out is the caller's

    def _checked(self, check: Callable[[], None]) -> None:
        try:
            check()
        except Violation as broken:
            raise ContractError(
                "state machine", _STATEMENT, broken.inputs, broken.expected, broken.actual
            ) from broken


def oracle_state_machine(
    oracle: Oracle | Callable[[], Oracle], tolerance: float = 1e-9, max_length: int = 8
) -> type[RuleBasedStateMachine]:
    """State machine whose rules call `start`, `advance` (token or chunk) and `take` on earlier states.

    Every state ever made can be asked and reused at any later time, so that an oracle whose states are
    not values is caught; arrays passed in or handed out are overwritten by the machine. Answers are
    compared with `next_log_probs` of the plain prefixes, one at a time, from scratch.

    Arguments:
        oracle: the oracle, or a function that makes a fresh one for each run (for oracles that a broken
            run could spoil).
        tolerance: largest |a − b|/(1 + |a|) between log-probabilities, as in `check_oracle`.
        max_length: longest prefix of models without a horizon.

    Run it with ``run_state_machine_as_test(oracle_state_machine(model))`` or assign its ``TestCase`` in
    a test module. Raises ContractError for the law "state machine".
    """
    make = (lambda: oracle) if isinstance(oracle, Oracle) else oracle
    tolerance, max_length = as_number("tolerance", tolerance, 0.0), as_integer("max_length", max_length, 1)
    settings = {"make": staticmethod(make), "tolerance": tolerance, "max_length": max_length}
    return type("OracleStateMachine", (_OracleStateMachine,), settings)
