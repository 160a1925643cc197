"""Access objects of every kind: isolation, parameters, meters, horizons, teachers that answer badly."""

import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oracles.access import (
    Access,
    ConditionalProbabilityAccess,
    ConditionalSampleAccess,
    LogitAccess,
    SampleAccess,
    StringAccess,
    TopLogitAccess,
)
from oracles.base import Oracle
from oracles.errors import (
    HorizonError,
    NonFiniteError,
    ParameterError,
    ProbabilityError,
    ShapeError,
    TokenError,
)
from oracles.ledger import Budget, Charge, Ledger, Meter
from tests.oracles.access_helpers import HMM, KINDS, A, Broken, T


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_access_shows(kind):
    access = kind(HMM, budget=10, seed=3)
    assert (access.vocab_size, access.horizon, access.ledger) == (A, T, Ledger())
    assert access.budget == Budget(calls=10)
    assert isinstance(access.kind, str)
    assert "Ledger" in repr(access)
    for abstract in (Access, StringAccess):
        with pytest.raises(TypeError):
            abstract(HMM, None, 0, 1)


def leads_to(thing, wanted, seen):
    """Whether attributes, items or bound methods of `thing` lead to an instance of `wanted`."""
    if id(thing) in seen or isinstance(thing, (str, bytes, int, float, np.ndarray, type, types.ModuleType)):
        return False
    seen.add(id(thing))
    if isinstance(thing, wanted):
        return True
    parts = list(getattr(thing, "__dict__", {}).values())
    for cls in type(thing).__mro__:
        parts += [getattr(thing, name, None) for name in getattr(cls, "__slots__", ())]
    if isinstance(thing, dict):
        parts += [*thing.keys(), *thing.values()]
    elif isinstance(thing, (list, tuple, set, frozenset)):
        parts += list(thing)
    if isinstance(thing, types.MethodType):
        parts.append(thing.__self__)
    return any(leads_to(part, wanted, seen) for part in parts)


@pytest.mark.parametrize("kind", KINDS)
def test_no_attribute_leads_to_the_oracle(kind):
    cached = kind not in (SampleAccess, ConditionalSampleAccess)
    access = kind(HMM, cache=True if cached else None, noise=0.1)
    assert not leads_to(access, Oracle, set())
    assert leads_to(types.SimpleNamespace(inside=[{"f": HMM.score}]), Oracle, set())  # the walk can find one
    names = {name for name in dir(access) if not name.startswith("_")}
    shared = {"budget", "horizon", "kind", "ledger", "vocab_size"}
    allowed = {
        SampleAccess: {"sample"},
        ConditionalSampleAccess: {"sample", "complete", "next_tokens", "next_counts"},
        ConditionalProbabilityAccess: {"sample", "log_probs", "next_log_probs"},
        LogitAccess: {"sample", "logits", "grid"},
        TopLogitAccess: {"top", "k"},
    }
    assert names == shared | allowed[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("budget", -1),
        ("budget", 1.5),
        ("budget", True),
        ("noise", -0.1),
        ("noise", float("nan")),
        ("seed", -1),
        ("seed", 0.5),
        ("block_rows", 0),
        ("cache", 3),
    ],
)
def test_bad_parameters(kind, name, value):
    with pytest.raises(ParameterError):
        kind(HMM, **{name: value})
    with pytest.raises(ParameterError):
        kind("an oracle")


@given(
    st.lists(st.tuples(*[st.integers(0, 3)] * 5), max_size=8),
    st.tuples(*[st.none() | st.integers(0, 12)] * 4),
    st.integers(0, 3),
)
def test_meter_buys_the_longest_affordable_prefix(entries, limits, earlier):
    """Against buying one query at a time."""
    budget = Budget(*limits)
    meter = Meter(budget)
    charge = Charge(
        [bytes([e[0]]) for e in entries], *np.array([e[1:] for e in entries], dtype=np.int64).reshape(-1, 4).T
    )
    before = charge.at(np.arange(min(earlier, len(entries))))
    if not (meter.affordable(before) == before.repeats).all():
        return
    meter.pay(before)
    seen, spent = {p for p, r in zip(before.prefixes, before.repeats, strict=True) if r}, meter.ledger
    expected, stopped = np.zeros(len(entries), dtype=int), False
    for i, (prefix, repeats, calls, submitted, generated) in enumerate(entries):
        for _ in range(repeats):
            new = Ledger(calls, bytes([prefix]) not in seen, submitted, generated)
            total = spent + new
            over = any(
                limit is not None and getattr(total, name) > limit
                for name, limit in zip(Ledger.__dataclass_fields__, limits, strict=True)
            )
            stopped = stopped or over
            if stopped:
                break
            spent, expected[i] = total, expected[i] + 1
            seen.add(bytes([prefix]))
    paid = meter.affordable(charge)
    np.testing.assert_array_equal(paid, expected)
    meter.pay(charge.repeated(paid))
    assert meter.ledger == spent
    assert (meter.ledger - Ledger()) == spent


def test_entries_without_queries_submit_no_prefix():
    meter = Meter(Budget(distinct_prefixes=1))
    charge = Charge.of([b"a", b"b", b"b"], 3, repeats=[0, 2, 1])
    np.testing.assert_array_equal(meter.affordable(charge), [0, 2, 1])
    meter.pay(charge)
    assert meter.ledger == Ledger(3, 1, 0, 0)


def test_horizon_and_token_errors_cost_nothing():
    full = [[0] * T]
    calls = {
        ConditionalSampleAccess: [
            lambda a, h: a.next_tokens(h, 1),
            lambda a, h: a.next_counts(h, 1),
            lambda a, h: a.complete(h, 1, length=1),
        ],
        ConditionalProbabilityAccess: [
            lambda a, h: a.next_log_probs(h),
            lambda a, h: a.log_probs(h, [[0]]),
        ],
        LogitAccess: [lambda a, h: a.logits(h), lambda a, h: a.grid(h, [[]])],
        TopLogitAccess: [lambda a, h: a.top(h)],
    }
    for kind, methods in calls.items():
        access = kind(HMM)
        for method in methods:
            with pytest.raises(HorizonError):
                method(access, full)
            with pytest.raises(TokenError):
                method(access, [[0, A]])
            with pytest.raises(ShapeError):
                method(access, [0, 1])
        assert access.ledger == Ledger()
    access = ConditionalSampleAccess(HMM)
    with pytest.raises(HorizonError):
        access.sample(1, length=T + 1)
    for bad in (-1, 1.5, [1.0, 2.0], [-1, 2]):
        with pytest.raises(ParameterError):
            access.next_counts([[0], [1]], bad)
    with pytest.raises(ShapeError):
        access.next_counts([[0], [1]], [1, 2, 3])


@pytest.mark.parametrize(("shift", "error"), [(np.nan, NonFiniteError), (0.01, ProbabilityError)])
def test_teachers_that_answer_no_law(shift, error):
    teacher = Broken(HMM, shift)
    for call in (
        lambda: LogitAccess(teacher).logits([[0]]),
        lambda: LogitAccess(teacher).grid([[0]] * 8, [[0], [1]] * 8),
        lambda: TopLogitAccess(teacher).top([[0]]),
        lambda: ConditionalProbabilityAccess(teacher).log_probs([[0]], [[1]]),
        lambda: ConditionalProbabilityAccess(teacher).next_log_probs([[0]]),
        lambda: ConditionalSampleAccess(teacher).next_counts([[0]], 3),
        lambda: ConditionalSampleAccess(teacher).complete([[0]], 3),
        lambda: SampleAccess(teacher).sample(3),
    ):
        with pytest.raises(error):
            call()
