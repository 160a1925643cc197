"""L* of Angluin (1987) for the automaton that decides which tokens may come next.

The output of a history is its *support*, the set of tokens of positive probability; a history of
probability zero is dead. The learner asks next-token probabilities only for their zeros, keeps an
observation table of outputs on prefix-closed rows and suffix columns, and processes counterexamples
as Rivest and Schapire (1993): one new column each, so at most k equivalence queries for k states.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from lrlm_sim.learners.base import SUCCESS, Learner, Result, Status, require_access
from lrlm_sim.learners.prefix_laws import unchanging
from oracles.access import Access, ConditionalProbabilityAccess
from oracles.checks import as_generator, as_integer
from oracles.errors import BudgetError, HorizonError
from oracles.probabilistic_automaton import ProbabilisticAutomaton

#: Laws this much off the uniform law of their support are no rounding.
_UNEVEN = 1e-6

_String = tuple[int, ...]
_Output = tuple[bool, ...]


@dataclass(frozen=True)
class LStar(Learner):
    """Learner of a DFA (as its uniform walk) from which tokens have positive probability.

    Arguments:
        equivalence_strings: strings per approximate equivalence query: half sampled from the
            teacher, half walks that choose uniformly among the tokens the hypothesis allows or, one
            step in ten, among all.
        max_states: where the search stops.
        horizon: length of strings; None takes the teacher's.

    Two histories that only differ beyond the horizon cannot be told apart, so the automaton learned
    is one that agrees on strings up to the horizon.
    """

    equivalence_strings: int = 200
    max_states: int = 1000
    horizon: int | None = None

    accesses = (ConditionalProbabilityAccess,)

    def __post_init__(self) -> None:
        as_integer("equivalence_strings", self.equivalence_strings, 2)
        as_integer("max_states", self.max_states, 1)

    def fit(self, access: Access, rng: np.random.Generator | int | None = None) -> Result:
        require_access(self, access)
        assert isinstance(access, ConditionalProbabilityAccess)
        horizon = self.horizon if self.horizon is not None else access.horizon
        if horizon is None:
            raise HorizonError("the teacher has no horizon: give LStar(horizon=…)")
        rng = as_generator(rng)
        table = _Table(_Supports(access, horizon))
        queries, status = 0, SUCCESS
        try:
            with unchanging(access, horizon):
                while True:
                    table.close(self.max_states)
                    delta = table.automaton()
                    queries += 1
                    if len(table.rows) >= self.max_states:
                        remedy = f"max_states = {self.max_states} was reached: raise it"
                        status = Status("state_limit", remedy)
                        break
                    wrong = self._counterexample(access, table, delta, horizon, rng)
                    if wrong is None or not table.split(wrong, delta):
                        break
        except BudgetError as error:
            error.partial = {"states": len(table.rows), "equivalence_queries": queries}
            raise
        if status.ok and table.output.unevenness > _UNEVEN:
            status = Status(
                "not_a_uniform_walk",
                "allowed tokens are not equally likely: the automaton has their support, not their laws; "
                "learn those with ExactConditionalLearner",
            )
        model = ProbabilisticAutomaton.from_dfa(delta, 0, horizon)
        stats = {
            "states": len(delta),
            "columns": len(table.columns),
            "equivalence_queries": queries,
            "membership_queries": len(table.output.asked),
        }
        return Result(model, status, access.ledger, stats)

    def _counterexample(
        self,
        access: ConditionalProbabilityAccess,
        table: _Table,
        delta: Int[np.ndarray, "states A"],
        horizon: int,
        rng: np.random.Generator,
    ) -> _String | None:
        """A string after which hypothesis and teacher disagree on what may come next."""
        half = self.equivalence_strings // 2
        sampled = access.sample(half, length=horizon)
        walks = [_walk(delta, horizon, rng) for _ in range(self.equivalence_strings - half)]
        for string in [*(tuple(int(z) for z in row) for row in sampled), *walks]:
            state = 0
            for length in range(horizon):
                if state < 0 or table.output.support(string[:length]) != tuple(
                    bool(z >= 0) for z in delta[state]
                ):
                    return string[:length]
                if delta[state, string[length]] < 0:
                    break
                state = int(delta[state, string[length]])
        return None


def _walk(delta: Int[np.ndarray, "states A"], horizon: int, rng: np.random.Generator) -> _String:
    state, string = 0, []
    for _ in range(horizon):
        allowed = np.flatnonzero(delta[state] >= 0)
        if not len(allowed) or rng.random() < 0.1:
            allowed = np.arange(delta.shape[1])
        token = int(rng.choice(allowed))
        string.append(token)
        if delta[state, token] < 0:
            string += rng.integers(delta.shape[1], size=horizon - len(string)).tolist()
            break
        state = int(delta[state, token])
    return tuple(string)


class _Supports:
    """Which tokens may follow a history; dead histories (probability zero) allow none.

    A call is a membership query, and `asked` holds their histories; `support` alone answers the
    approximate equivalence queries.
    """

    def __init__(self, access: ConditionalProbabilityAccess, horizon: int) -> None:
        self._access, self.horizon, self.vocab_size = access, horizon, access.vocab_size
        self._dead: _Output = (False,) * access.vocab_size
        self._known: dict[_String, _Output] = {}
        self.unevenness = 0.0  # largest |P(z | h)·(size of the support) − 1| that was seen
        self.asked: set[_String] = set()

    def __call__(self, history: _String) -> _Output | None:
        if len(history) < self.horizon:
            self.asked.add(history)
        return self.support(history)

    def support(self, history: _String) -> _Output | None:
        """Support after `history`, None where the horizon leaves nothing to ask."""
        if len(history) >= self.horizon:
            return None
        if history not in self._known:
            before = self.support(history[:-1]) if history else None
            if before is not None and not before[history[-1]]:
                self._known[history] = self._dead
            else:
                law = self._access.next_log_probs([list(history)])[0]
                allowed = np.isfinite(law)
                self._known[history] = tuple(bool(z) for z in allowed)
                gap = np.abs(np.exp(law[allowed]) * allowed.sum() - 1)
                self.unevenness = max(self.unevenness, float(gap.max(initial=0.0)))
        return self._known[history]


class _Table:
    """Observation table: rows are access strings of distinct states, columns are suffixes."""

    def __init__(self, supports: _Supports) -> None:
        self.output = supports
        self.rows: list[_String] = [()]
        self.columns: list[_String] = [()]

    def signature(self, history: _String) -> tuple[_Output | None, ...]:
        return tuple(self.output((*history, *column)) for column in self.columns)

    def close(self, max_states: int) -> None:
        """Add one-token extensions of rows until each equals, as far as the horizon shows, a row."""
        position = 0
        while position < len(self.rows) and len(self.rows) < max_states:
            row = self.rows[position]
            allowed = self.output(row) or ()
            for token in [z for z, possible in enumerate(allowed) if possible]:
                if len(row) + 1 < self.output.horizon and self.state_of((*row, token)) is None:
                    self.rows.append((*row, token))
            position += 1

    def state_of(self, history: _String) -> int | None:
        """The row this history cannot be told from: unknown entries agree with everything."""
        signature = self.signature(history)
        for index, row in enumerate(self.rows):
            pairs = zip(signature, self.signature(row), strict=True)
            if all(a == b or a is None or b is None for a, b in pairs):
                return index
        return None

    def automaton(self) -> Int[np.ndarray, "states A"]:
        """Transition table of the hypothesis, −1 where a token may not come."""
        delta = np.full((len(self.rows), self.output.vocab_size), -1, dtype=np.int64)
        for index, row in enumerate(self.rows):
            for token, possible in enumerate(self.output(row) or ()):
                if possible:
                    delta[index, token] = self.state_of((*row, token)) or 0
        return delta

    def split(self, wrong: _String, delta: Int[np.ndarray, "states A"]) -> bool:
        """Add the suffix of a counterexample that separates two histories taken for one state."""
        states = [0]
        for token in wrong:
            if states[-1] < 0:
                break
            states.append(int(delta[states[-1], token]))
        for cut in range(len(states) - 1, 0, -1):
            if states[cut] < 0:
                continue
            suffix = wrong[cut:]
            reached, stands_for = self.output(wrong), self.output((*self.rows[states[cut]], *suffix))
            if reached != stands_for and suffix not in self.columns and stands_for is not None:
                self.columns.append(suffix)
                return True
        return False
