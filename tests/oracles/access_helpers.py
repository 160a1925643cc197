"""Teachers, strategies and reference counts that the tests of access objects share."""

import numpy as np
from hypothesis import strategies as st

from oracles.access import (
    ConditionalProbabilityAccess,
    ConditionalSampleAccess,
    LogitAccess,
    SampleAccess,
    TopLogitAccess,
)
from oracles.base import Oracle
from oracles.errors import (
    BudgetError,
)
from oracles.hmm import HiddenMarkovModel
from oracles.ledger import Budget, Ledger

A = 3


T = 5


HMM = HiddenMarkovModel.random(4, A, T, 7)


KINDS = [
    SampleAccess,
    ConditionalSampleAccess,
    ConditionalProbabilityAccess,
    LogitAccess,
    TopLogitAccess,
]


class Spy(Oracle):
    """Forwards to another oracle and counts the next-token laws that are read off."""

    def __init__(self, oracle):
        self.oracle, self.vocab_size, self.horizon = oracle, oracle.vocab_size, oracle.horizon
        self.laws_read = 0

    def start(self, batch):
        return self.oracle.start(batch)

    def advance(self, state, tokens):
        return self.oracle.advance(state, tokens)

    def take(self, state, rows):
        return self.oracle.take(state, rows)

    def log_probs(self, state):
        rows = self.oracle.log_probs(state)
        self.laws_read += len(rows)
        return rows


class Broken(Spy):
    """Answers `rows` + shift, a different shift at each call if `drift` is set."""

    def __init__(self, oracle, shift=0.0, drift=0.0):
        super().__init__(oracle)
        self.shift, self.drift, self.calls = shift, drift, 0

    def log_probs(self, state):
        rows = self.oracle.log_probs(state) + self.shift
        self.calls += 1
        rows[:, 0] += self.drift * self.calls
        return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True)) * bool(self.drift)


def with_zeros():
    """An HMM that never says token 2."""
    return HiddenMarkovModel([0.5, 0.5], np.full((2, 2), 0.5), [[0.3, 0.7, 0.0], [0.9, 0.1, 0.0]], T)


def strings(low=0, high=T - 1, vocab=A):
    return st.lists(st.integers(0, vocab - 1), min_size=low, max_size=high)


batches = st.lists(strings(), max_size=12)


def ledger_of(history_costs, distinct):
    """Ledger of (submitted, generated) calls."""
    costs = list(history_costs)
    return Ledger(len(costs), distinct, sum(c[0] for c in costs), sum(c[1] for c in costs))


limits = st.tuples(*[st.none() | st.integers(0, 40)] * 4).map(lambda limit: Budget(*limit))


def take_within(budget, queries):
    """Queries (prefix, submitted, generated) bought one by one in order: how many, and the ledger."""
    spent, seen = Ledger(), set()
    for count, (prefix, submitted, generated) in enumerate(queries):
        fresh = prefix is not None and prefix not in seen
        total = spent + Ledger(1, int(fresh), submitted, generated)
        for name in Ledger.__dataclass_fields__:
            limit = getattr(budget, name)
            if limit is not None and getattr(total, name) > limit:
                return count, spent
        spent = total
        if prefix is not None:
            seen.add(prefix)
    return len(queries), spent


def run(call):
    """(answer, whether the budget ended, error) of a call."""
    try:
        return call(), None
    except BudgetError as error:
        return error.answered, error


def check_budget(access, error, count, of, spent):
    assert (error is not None) == (count < of)
    assert access.ledger == spent
    assert error is None or error.ledger == spent
