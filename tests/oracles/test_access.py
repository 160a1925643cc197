"""Access objects: charges by hand counts, budgets, determinism, noise, statistics, and isolation."""

import itertools
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
from oracles.access.draws import count_tokens, invert
from oracles.base import Oracle, draw_tokens
from oracles.cache import MemoryCache
from oracles.errors import (
    BudgetError,
    HorizonError,
    InconsistentAnswerError,
    NonFiniteError,
    ParameterError,
    ProbabilityError,
    ShapeError,
    TokenError,
    ZeroProbabilityError,
)
from oracles.hmm import HiddenMarkovModel
from oracles.ledger import Budget, Charge, Ledger, Meter
from oracles.recurrent import RecurrentOracle

A, T = 3, 5
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


class Echo(RecurrentOracle):
    """No horizon: repeats the last token with probability .8 (first token uniform)."""

    vocab_size, horizon = 2, None

    def first_row(self):
        return np.array([0.5, 0.5])

    def step(self, position, rows, tokens):
        return np.where(tokens[:, None] == np.arange(2), 0.8, 0.2)

    def laws(self, position, rows):
        return np.log(rows)


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


def brute_probability(model, string):
    """P(string) as a sum over all hidden paths."""
    total = 0.0
    for path in itertools.product(range(model.n_states), repeat=len(string)):
        p = model.initial[path[0]] if path else 1.0
        for t, (state, token) in enumerate(zip(path, string, strict=True)):
            p *= model.emission[state, token]
            if t + 1 < len(path):
                p *= model.transition[state, path[t + 1]]
        total += p
    return total


def strings(low=0, high=T - 1, vocab=A):
    return st.lists(st.integers(0, vocab - 1), min_size=low, max_size=high)


batches = st.lists(strings(), max_size=12)


def ledger_of(history_costs, distinct):
    """Ledger of (submitted, generated) calls."""
    costs = list(history_costs)
    return Ledger(len(costs), distinct, sum(c[0] for c in costs), sum(c[1] for c in costs))


# --- the objects -------------------------------------------------------------------------------


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


@pytest.mark.parametrize("kind", [SampleAccess, ConditionalSampleAccess])
def test_draws_refuse_a_cache(kind, tmp_path):
    for cache in (True, MemoryCache(), tmp_path / "c.sqlite"):
        with pytest.raises(ParameterError, match="fresh"):
            kind(HMM, cache=cache)
    with pytest.raises(ParameterError):
        kind(HMM, noise=1.5)


# --- meter -------------------------------------------------------------------------------------


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


# --- logits ------------------------------------------------------------------------------------


def test_values_against_all_hidden_paths():
    model = HiddenMarkovModel.random(2, A, 4, 1)
    history, future = (2, 0), (1, 1)
    laws = np.array([brute_probability(model, (*history, z)) for z in range(A)])
    logs = np.log(laws / laws.sum())
    expected = logs - logs.mean()
    np.testing.assert_allclose(LogitAccess(model).logits([history])[0], expected, atol=1e-12)
    np.testing.assert_allclose(LogitAccess(model).grid([(2,)], [(0,)])[0, 0], expected, atol=1e-12)
    access = ConditionalProbabilityAccess(model)
    np.testing.assert_allclose(access.next_log_probs([history])[0], logs, atol=1e-12)
    ratio = brute_probability(model, history + future) / brute_probability(model, history)
    np.testing.assert_allclose(access.log_probs([history], [future, ()])[0], [np.log(ratio), 0], atol=1e-12)
    tokens, values = TopLogitAccess(model, k=2).top([history])
    np.testing.assert_array_equal(tokens[0], np.argsort(-logs)[:2])
    np.testing.assert_allclose(values[0], np.sort(logs)[::-1][:2], atol=1e-12)


@given(st.lists(batches, max_size=4), st.sampled_from([1, 3, 1 << 14]), st.booleans())
def test_logit_charges(calls, block_rows, cached):
    spy = Spy(HMM)
    access = LogitAccess(spy, cache=cached or None, block_rows=block_rows)
    costs, seen = [], set()
    for batch in calls:
        distinct = {tuple(h) for h in batch}
        costs += [(len(h), 0) for h in (distinct - seen if cached else distinct)]
        seen |= distinct
        rows = access.logits(batch)
        assert rows.shape == (len(batch), A)
        np.testing.assert_allclose(rows.sum(axis=1), 0, atol=1e-12)
        expected = HMM.next_log_probs(batch)
        np.testing.assert_allclose(rows, expected - expected.mean(axis=1, keepdims=True), atol=1e-12)
    assert access.ledger == ledger_of(costs, len(seen))
    assert spy.laws_read == access.ledger.calls  # nothing is asked that is not charged


@given(
    st.lists(st.tuples(st.lists(strings(0, 2), max_size=6), st.lists(strings(0, 2), max_size=6)), max_size=3),
    st.sampled_from([1, 5, 1 << 14]),
    st.booleans(),
)
def test_grid_charges_distinct_strings(calls, block_rows, cached):
    spy = Spy(HMM)
    access = LogitAccess(spy, noise=0.5, cache=cached or None, block_rows=block_rows)
    costs, seen = [], set()
    for histories, futures in calls:
        distinct = {(*h, *f) for h in histories for f in futures}
        costs += [(len(h), 0) for h in (distinct - seen if cached else distinct)]
        seen |= distinct
        grid = access.grid(histories, futures)
        assert grid.shape == (len(histories), len(futures), A)
        flat = LogitAccess(HMM, noise=0.5).logits([h + f for h in histories for f in futures])
        np.testing.assert_allclose(grid.reshape(-1, A), flat, atol=1e-12)
    assert access.ledger == ledger_of(costs, len(seen))
    assert spy.laws_read == access.ledger.calls


def test_large_grids_use_the_bulk_operation_for_each_missing_rectangle():
    spy = Spy(HMM)
    asked = []
    whole = spy.extended_log_probs
    spy.extended_log_probs = lambda h, f: (asked.append((len(h), len(f))), whole(h, f))[1]
    access = LogitAccess(spy, cache=True)
    histories = list(itertools.product(range(A), repeat=3))
    access.grid(histories, [(0,), (1,)])
    access.grid(histories, [(0,), (1,), (2,), ()])
    assert asked == [(27, 2), (27, 2)]
    assert spy.laws_read == access.ledger.calls == 27 * 4


@given(batches, st.randoms(), st.sampled_from([0.0, 0.3]), st.sampled_from([1, 2, 100]))
def test_answers_do_not_depend_on_order_or_batches(batch, random, noise, block_rows):
    together = LogitAccess(HMM, noise=noise, seed=4).logits(batch)
    order = list(range(len(batch)))
    random.shuffle(order)
    access = LogitAccess(HMM, noise=noise, seed=4, block_rows=block_rows, cache=random.random() < 0.5 or None)
    for low in range(0, len(order), 3):
        part = order[low : low + 3]
        rows = access.logits([batch[i] for i in part])
        np.testing.assert_allclose(rows, together[part], atol=1e-12)


# --- budgets -----------------------------------------------------------------------------------

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


@given(batches, limits, st.booleans(), st.sampled_from([1, 2, 100]))
def test_logit_budget(batch, budget, cached, block_rows):
    access = LogitAccess(HMM, budget, cache=cached or None, block_rows=block_rows)
    distinct = list(dict.fromkeys(tuple(h) for h in batch))
    count, spent = take_within(budget, [(h, len(h), 0) for h in distinct])
    rows, error = run(lambda: access.logits(batch))
    check_budget(access, error, count, len(distinct), spent)
    lost = {h for h in distinct[count:]}
    kept = next((i for i, h in enumerate(batch) if tuple(h) in lost), len(batch))
    np.testing.assert_allclose(rows, LogitAccess(HMM).logits(batch[:kept]), atol=1e-12)
    if cached:  # what was paid for is still there, for nothing
        access.logits(batch[:kept])
        assert access.ledger == spent


@given(st.lists(strings(0, 2), max_size=5), st.lists(strings(0, 2), max_size=5), limits)
def test_grid_budget(histories, futures, budget):
    access = LogitAccess(HMM, budget)
    cells = [(*h, *f) for h in histories for f in futures]
    distinct = list(dict.fromkeys(cells))
    count, spent = take_within(budget, [(h, len(h), 0) for h in distinct])
    grid, error = run(lambda: access.grid(histories, futures))
    check_budget(access, error, count, len(distinct), spent)
    expected = LogitAccess(HMM).grid(histories, futures).reshape(-1, A)
    expected[[cell not in distinct[:count] for cell in cells]] = np.nan
    np.testing.assert_allclose(grid.reshape(-1, A), expected, atol=1e-12)


@given(st.lists(strings(0, 2), max_size=5), st.lists(strings(0, 3), max_size=5), limits, st.booleans())
def test_probability_budget(histories, futures, budget, cached):
    access = ConditionalProbabilityAccess(HMM, budget, cache=cached or None)
    pairs = list(dict.fromkeys((tuple(h), tuple(f)) for h in histories for f in futures))
    count, spent = take_within(budget, [(h, len(h) + len(f), 0) for h, f in sorted_pairs(pairs)])
    values, error = run(lambda: access.log_probs(histories, futures))
    check_budget(access, error, count, len(pairs), spent)
    paid = set(sorted_pairs(pairs)[:count])
    expected = np.full((len(histories), len(futures)), np.nan)
    for i, h in enumerate(histories):
        for j, f in enumerate(futures):
            if (tuple(h), tuple(f)) in paid:
                expected[i, j] = HMM.score([f], history=h)[0]
    np.testing.assert_allclose(values, expected, atol=1e-12)


def sorted_pairs(pairs):
    """Row by row over distinct histories, then distinct futures, in order of appearance."""
    heads, tails = dict.fromkeys(h for h, _ in pairs), dict.fromkeys(f for _, f in pairs)
    return [(h, f) for h in heads for f in tails]


@given(batches, st.integers(0, 4), limits, st.integers(1, 5))
def test_draw_budgets(batch, draws, budget, block_rows):
    def new(budget=None):
        rows = 1 << 14 if budget is None else block_rows
        return ConditionalSampleAccess(HMM, budget, seed=2, block_rows=rows)

    queries = [(tuple(h), len(h), 1) for h in batch for _ in range(draws)]
    count, spent = take_within(budget, queries)
    expected = new().next_tokens(batch, draws)
    expected.ravel()[count:] = -1
    access = new(budget)
    tokens, error = run(lambda: access.next_tokens(batch, draws))
    check_budget(access, error, count, len(queries), spent)
    np.testing.assert_array_equal(tokens, expected)

    access = new(budget)
    counts, error = run(lambda: access.next_counts(batch, draws))
    check_budget(access, error, count, len(queries), spent)
    np.testing.assert_array_equal(counts, (expected[:, :, None] == np.arange(A)).sum(axis=1))

    queries = [(tuple(h), len(h), T - len(h)) for h in batch for _ in range(draws)]
    count, spent = take_within(budget, queries)
    access = new(budget)
    parts, error = run(lambda: access.complete(batch, draws))
    check_budget(access, error, count, len(queries), spent)
    whole = new().complete(batch, draws)
    for i, (part, full) in enumerate(zip(parts, whole, strict=True)):
        np.testing.assert_array_equal(part, full[: max(0, count - i * draws)])


@pytest.mark.parametrize("kind", [k for k in KINDS if k is not TopLogitAccess])
def test_sample_charges_and_budget(kind):
    access = kind(HMM, Budget(generated_tokens=7 * T + 2), seed=5)
    first = access.sample(4)
    assert access.ledger == Ledger(4, 0, 0, 4 * T)
    with pytest.raises(BudgetError, match="generated_tokens 37") as caught:
        access.sample(9)
    assert access.ledger == caught.value.ledger == Ledger(7, 0, 0, 7 * T)
    whole = kind(HMM, seed=5, block_rows=2).sample(7)
    np.testing.assert_array_equal(np.concatenate([first, caught.value.answered]), whole)
    assert whole.shape == (7, T)
    np.testing.assert_array_equal(kind(HMM, seed=5).sample(7, length=2), whole[:, :2])
    assert not np.array_equal(kind(HMM, seed=6).sample(7), whole)
    other = LogitAccess if kind is SampleAccess else SampleAccess
    assert not np.array_equal(other(HMM, seed=5).sample(7), whole)  # fresh strings for a validation


# --- exact conditional probabilities -------------------------------------------------------------


@given(st.lists(strings(0, 2), max_size=6), st.lists(strings(0, 3), max_size=6), st.sampled_from([1, 4, 999]))
def test_probability_values_and_charges(histories, futures, block_rows):
    spy = Spy(HMM)
    access = ConditionalProbabilityAccess(spy, cache=True, noise=0.25, block_rows=block_rows)
    values = access.log_probs(histories, futures)
    exact = np.array([[HMM.score([f], history=h)[0] for f in futures] for h in histories])
    assert values.shape == (len(histories), len(futures))
    assert np.abs(values - exact.reshape(values.shape)).max(initial=0) <= 0.25
    pairs = {(tuple(h), tuple(f)) for h in histories for f in futures}
    costs = [(len(h) + len(f), 0) for h, f in pairs]
    assert access.ledger == ledger_of(costs, len({h for h, _ in pairs}))
    reads = spy.laws_read
    np.testing.assert_array_equal(access.log_probs(histories[::-1], futures[::-1]), values[::-1, ::-1])
    assert access.ledger == ledger_of(costs, len({h for h, _ in pairs}))
    assert spy.laws_read == reads


def test_next_log_probs_is_log_probs_of_single_tokens():
    histories = [[], [1], [1], [0, 2, 1, 1]]
    access = ConditionalProbabilityAccess(HMM, noise=0.1)
    rows = access.next_log_probs(histories)
    assert access.ledger == Ledger(3 * A, 3, A * (1 + 2 + 5), 0)
    same = ConditionalProbabilityAccess(HMM, noise=0.1).log_probs(histories, np.arange(A)[:, None])
    np.testing.assert_allclose(rows, same, atol=1e-12)
    limited = ConditionalProbabilityAccess(HMM, budget=2 * A + 1)
    with pytest.raises(BudgetError) as caught:
        limited.next_log_probs(histories)
    np.testing.assert_allclose(caught.value.answered, HMM.next_log_probs(histories)[:3], atol=1e-12)
    assert limited.ledger == Ledger(2 * A, 2, A * (1 + 2), 0)


def test_probability_zero_is_minus_infinity():
    access = ConditionalProbabilityAccess(with_zeros(), cache=True, noise=0.1)
    for _ in range(2):
        values = access.log_probs([[0]], [[2, 1], [0], [1, 2]])
        np.testing.assert_array_equal(np.isneginf(values), [[True, False, True]])
    assert np.isneginf(access.next_log_probs([[]])[0, 2])


# --- noise -------------------------------------------------------------------------------------


def test_logit_noise_is_bounded_uniform_and_fixed():
    histories = list(itertools.product(range(A), repeat=4))
    exact = LogitAccess(HMM).logits(histories)
    noisy = LogitAccess(HMM, noise=0.1, seed=1)
    first = noisy.logits(histories)
    error = np.abs(first - exact)
    assert error.max() <= 2 * 0.1 * (1 - 1 / A) + 1e-12
    assert error.max() > 0.1 * (1 - 1 / A)
    np.testing.assert_array_equal(noisy.logits(histories), first)
    np.testing.assert_allclose(first.sum(axis=1), 0, atol=1e-12)
    other = LogitAccess(HMM, noise=0.1, seed=2).logits(histories)
    assert (np.abs(other - first) > 1e-9).all()
    double = LogitAccess(HMM, noise=0.2, seed=1).logits(histories)
    np.testing.assert_allclose(double - exact, 2 * (first - exact), atol=1e-12)


def test_probability_noise_has_the_moments_of_a_uniform_law():
    """4·9·27 errors on [−ξ, ξ]: Hoeffding bounds of mean and mean square, false alarm < 4e-9 each."""
    histories = [h for n in range(3) for h in itertools.product(range(A), repeat=n)]
    futures = [f for n in range(4) for f in itertools.product(range(A), repeat=n)]
    exact = ConditionalProbabilityAccess(HMM).log_probs(histories, futures)
    error = (ConditionalProbabilityAccess(HMM, noise=0.5).log_probs(histories, futures) - exact) / 0.5
    assert np.abs(error).max() <= 1 + 1e-9
    assert np.linalg.matrix_rank(error) == len(histories)  # no sum of a noise of h and a noise of f
    bound = np.sqrt(np.log(1e9) / (2 * error.size))
    assert abs(error.mean()) < 2 * bound
    assert abs((error**2).mean() - 1 / 3) < bound


@pytest.mark.parametrize("nu", [0.0, 0.3, 1.0])
def test_mixing_noise_changes_the_law_as_stated(nu):
    access = ConditionalSampleAccess(HMM, noise=nu)
    law = (1 - nu) * np.exp(HMM.next_log_probs([[1, 0]])[0]) + nu / A
    agrees(access.next_counts([[1, 0]], 200_000)[0], law)
    first = SampleAccess(HMM, noise=nu).sample(50_000)[:, 0]
    agrees(np.bincount(first, minlength=A), (1 - nu) * np.exp(HMM.next_log_probs([[]])[0]) + nu / A)


# --- draws -------------------------------------------------------------------------------------


def agrees(counts, law, false_alarm=1e-9):
    """Binomial Chernoff bound on every cell, union bound over the cells: false alarm ≤ 1e-9."""
    n = counts.sum()
    share = counts / n
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = np.where(share > 0, share * np.log(share / law), 0)
        gap += np.where(share < 1, (1 - share) * np.log((1 - share) / (1 - law)), 0)
    assert (n * gap <= np.log(2 * len(counts) / false_alarm)).all()


def joint(strings):
    return np.bincount(strings @ A ** np.arange(strings.shape[1])[::-1], minlength=A ** strings.shape[1])


def test_completions_follow_the_exact_law():
    histories = [[], [2], [0, 1], [0, 2]]
    futures = np.array(list(itertools.product(range(A), repeat=3)))
    access = ConditionalSampleAccess(HMM, seed=8)
    for history, draws in zip(histories, access.complete(histories, 60_000, length=3), strict=True):
        agrees(joint(draws), np.exp(HMM.score(futures, history=history)))
    agrees(joint(access.sample(60_000)[:, :3]), np.exp(HMM.score(futures)))


def test_successive_draws_and_different_histories_are_independent():
    law = np.exp(HMM.next_log_probs([[0, 1], [0, 2]]))
    draws = ConditionalSampleAccess(HMM, seed=9).next_tokens([[0, 1], [0, 2]], 100_000)
    agrees(joint(draws.T), np.kron(law[0], law[1]))
    agrees(joint(draws[0].reshape(-1, 2)), np.kron(law[0], law[0]))
    agrees(joint(np.stack([draws[0, :-1:2], draws[1, 1::2]], axis=1)), np.kron(law[0], law[1]))
    access = ConditionalSampleAccess(HMM, seed=9)
    pairs = np.exp(HMM.score(np.array(list(itertools.product(range(A), repeat=2)))))
    for strings in (access.complete([[]], 100_000, length=2)[0], access.sample(100_000, length=2)):
        agrees(joint(strings.reshape(-1, 4)), np.kron(pairs, pairs))


@given(st.lists(st.tuples(batches, st.integers(0, 5)), max_size=4), st.randoms(), st.sampled_from([1, 2, 99]))
def test_draw_k_of_a_history_is_a_function_of_seed_history_and_k(calls, random, block_rows):
    """Any order, batching and method shows the same sequence of draws."""
    access = ConditionalSampleAccess(HMM, seed=3, block_rows=block_rows)
    seen: dict[tuple, list[int]] = {}
    costs = []
    for batch, draws in calls:
        batch = [h for h in batch if len(h) < T]
        random.shuffle(batch)
        if random.random() < 0.5:
            shown = access.next_tokens(batch, draws)
            costs += [(len(h), 1) for h in batch for _ in range(draws)]
        else:
            length = random.randrange(1, 2)
            shown = [part[:, 0] for part in access.complete(batch, draws, length=length)]
            costs += [(len(h), length) for h in batch for _ in range(draws)]
        for history, tokens in zip(batch, shown, strict=True):
            seen.setdefault(tuple(history), []).extend(tokens.tolist())
    assert access.ledger == ledger_of(costs, sum(bool(tokens) for tokens in seen.values()))
    for history, tokens in seen.items():
        alone = ConditionalSampleAccess(HMM, seed=3).next_tokens([history], len(tokens))
        np.testing.assert_array_equal(alone[0], tokens)


@given(batches, st.lists(st.integers(0, 40), min_size=12, max_size=12), st.sampled_from([1, 3, 99]))
def test_counts_are_the_counts_of_the_tokens(batch, draws, block_rows):
    draws = np.array(draws[: len(batch)], dtype=int)
    access = ConditionalSampleAccess(HMM, seed=1, block_rows=block_rows)
    counts = access.next_counts(batch, draws)
    reference = ConditionalSampleAccess(HMM, seed=1)
    expected = np.zeros((len(batch), A), dtype=int)
    for i, history in enumerate(batch):
        expected[i] = np.bincount(reference.next_tokens([history], int(draws[i]))[0], minlength=A)
    np.testing.assert_array_equal(counts, expected)
    assert access.ledger == reference.ledger


def test_many_draws_cross_the_tiles():
    access, other = ConditionalSampleAccess(HMM), ConditionalSampleAccess(HMM)
    counts = access.next_counts([[1], [2, 2], [1]], [40_000, 17, 3])
    tokens = other.next_tokens([[1]], 40_003)[0]
    np.testing.assert_array_equal(counts[0], np.bincount(tokens[:40_000], minlength=A))
    np.testing.assert_array_equal(counts[2], np.bincount(tokens[40_000:], minlength=A))
    assert counts.sum() == 40_020


def test_completions_do_not_depend_on_blocks():
    histories = [[0, 1], [2], [1, 2], [0, 1], [2, 2]]
    whole = ConditionalSampleAccess(HMM).complete(histories, 60)
    for block_rows in (1, 7, 100):
        parts = ConditionalSampleAccess(HMM, block_rows=block_rows).complete(histories, 60)
        for part, full in zip(parts, whole, strict=True):
            np.testing.assert_array_equal(part, full)


def test_completions_extend_next_tokens_and_shorter_completions():
    histories = [[], [1, 2], [0], [1, 2]]

    def new():
        return ConditionalSampleAccess(HMM, seed=6)

    whole = new().complete(histories, 5)
    assert [part.shape for part in whole] == [(5, 5), (5, 3), (5, 4), (5, 3)]
    short = new().complete(histories, 5, length=2)
    np.testing.assert_array_equal(np.stack(short), np.stack([part[:, :2] for part in whole]))
    np.testing.assert_array_equal(new().next_tokens(histories, 5), np.stack([part[:, 0] for part in whole]))
    assert not np.array_equal(whole[1], whole[3])  # a repeated history gets fresh draws
    assert new().complete([[0] * T], 2)[0].shape == (2, 0)


@pytest.mark.parametrize("vocab", [1, 2, 12, 13, 64, 100])
def test_inversion_agrees_with_the_contract(vocab):
    rng = np.random.default_rng(vocab)
    laws = rng.dirichlet(np.ones(vocab), 20)
    laws[:, rng.random(vocab) < 0.4] = 0
    laws[laws.sum(axis=1) == 0] = 1 / vocab
    laws /= laws.sum(axis=1, keepdims=True)
    numbers = rng.random((20, 50))
    numbers[:, 0], numbers[:, 1] = 0, 1 - 2**-53
    cumulative = np.cumsum(laws, axis=1)
    owner = np.arange(20)
    tokens = invert(cumulative, owner[:, None], numbers)
    expected = np.stack([draw_tokens(laws, column) for column in numbers.T], axis=1)
    np.testing.assert_array_equal(tokens, expected)
    assert (np.take_along_axis(laws, tokens, axis=1) > 0).all()
    counted = np.stack([np.bincount(row, minlength=vocab) for row in expected])
    np.testing.assert_array_equal(count_tokens(cumulative, owner, numbers), counted)


# --- horizons, errors ----------------------------------------------------------------------------


def test_without_a_horizon_a_length_is_needed():
    access = ConditionalSampleAccess(Echo(), seed=1)
    assert access.horizon is None
    for call in (lambda: access.sample(2), lambda: access.complete([[0]], 2)):
        with pytest.raises(HorizonError, match="length"):
            call()
    parts = access.complete([[0], [0, 1]], 1000, length=6)
    assert [part.shape for part in parts] == [(1000, 6)] * 2
    agrees(np.bincount(parts[0][:, 0], minlength=2), np.array([0.8, 0.2]))
    again = ConditionalSampleAccess(Echo(), seed=1)
    np.testing.assert_array_equal(again.next_tokens([[0], [0, 1]], 1000)[1], parts[1][:, 0])
    assert access.sample(3, length=50).shape == (3, 50)
    assert access.ledger == Ledger(2003, 2, 3000, 12_000 + 150)
    assert LogitAccess(Echo()).grid([[0] * 40], [[1] * 3]).shape == (1, 1, 2)


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


def test_zero_probability_names_smoothing():
    with pytest.raises(ZeroProbabilityError, match=r"token 2 .* \[0, 1\].*smooth"):
        LogitAccess(with_zeros()).logits([[0, 1]])
    with pytest.raises(ZeroProbabilityError, match="smooth"):
        LogitAccess(with_zeros()).grid([[0]], [[1]])
    with pytest.raises(ZeroProbabilityError, match="smooth"):
        TopLogitAccess(with_zeros(), k=3).top([[0]])
    assert TopLogitAccess(with_zeros(), k=2, noise=0.1).top([[0]])[0].max() < 2
    assert (ConditionalSampleAccess(with_zeros()).next_counts([[0]], 1000)[0, 2]) == 0


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


def test_a_teacher_that_changes_is_found():
    histories = list(itertools.product(range(A), repeat=2))
    with pytest.raises(ParameterError, match="cache"):
        LogitAccess(HMM, verify_every=3)
    blind = LogitAccess(Broken(HMM, drift=1e-3), cache=True)
    np.testing.assert_array_equal(blind.logits(histories), blind.logits(histories))
    watchful = LogitAccess(Broken(HMM, drift=1e-3), cache=True, verify_every=4)
    watchful.logits(histories)
    with pytest.raises(InconsistentAnswerError, match="logits"):
        watchful.logits(histories)
    slow = LogitAccess(Broken(HMM, drift=1e-3), cache=True, verify_every=4)
    for _ in range(1 + 3):
        slow.logits([[0]])
    with pytest.raises(InconsistentAnswerError):  # the fourth repeat, one question at a time
        slow.logits([[0]])
    honest = LogitAccess(HMM, budget=11, cache=True, verify_every=4)
    for _ in range(3):
        honest.logits(histories)
    assert honest.ledger.calls == 11  # 9 + 2 verifications of the first 9 repeats, then no budget is left
    tolerant = LogitAccess(Broken(HMM, drift=1e-3), cache=True, verify_every=1, verify_tolerance=0.1)
    tolerant.logits(histories)
    tolerant.logits(histories)
    assert tolerant.ledger == Ledger(18, 9, 36, 0)


# --- top-k ---------------------------------------------------------------------------------------


@given(batches, st.integers(1, 5), st.sampled_from([0.0, 0.2]), st.integers(0, 2))
def test_top_logits(batch, k, noise, bias_axes):
    spy = Spy(HMM)
    access = TopLogitAccess(spy, k, noise=noise, cache=True, seed=2)
    rng = np.random.default_rng(len(batch))
    bias = None if bias_axes == 0 else rng.normal(size=(A,) if bias_axes == 1 else (len(batch), A))
    tokens, values = access.top(batch, bias)
    assert tokens.shape == values.shape == (len(batch), min(k, A)) == (len(batch), access.k)
    everything = TopLogitAccess(HMM, A, noise=noise, seed=2).top(batch)
    logits = np.empty((len(batch), A))
    np.put_along_axis(logits, *everything, axis=1)
    assert np.abs(logits - HMM.next_log_probs(batch)).max(initial=0) <= 2 * noise + 1e-12
    logits = logits + (0 if bias is None else bias)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_array_equal(tokens, np.argsort(-logs, axis=1)[:, : access.k])
    np.testing.assert_allclose(values, np.take_along_axis(logs, tokens, axis=1), atol=1e-12)
    shifts = np.broadcast_to(np.zeros(A) if bias is None else bias, (len(batch), A))
    questions = {(tuple(h), tuple(s)) for h, s in zip(batch, shifts, strict=True)}
    assert access.ledger == ledger_of([(len(h), 0) for h, _ in questions], len({h for h, _ in questions}))
    assert spy.laws_read == len({h for h, _ in questions})
    spent = access.ledger
    np.testing.assert_array_equal(access.top(batch, bias)[0], tokens)
    assert access.ledger == spent


def test_top_budget_ties_and_bias_errors():
    flat = HiddenMarkovModel([1.0], [[1.0]], [[0.25] * 4], 3)
    tokens, values = TopLogitAccess(flat, 3).top([[0]])
    np.testing.assert_array_equal(tokens, [[0, 1, 2]])
    np.testing.assert_allclose(values, np.log(0.25))
    access = TopLogitAccess(HMM, 2, budget=2)
    with pytest.raises(BudgetError) as caught:
        access.top([[0], [1], [0], [2], [1]])
    rows = TopLogitAccess(HMM, 2).top([[0], [1], [0]])
    for answered, expected in zip(caught.value.answered, rows, strict=True):
        np.testing.assert_array_equal(answered, expected)
    for bad in (np.zeros(2), np.zeros((2, A)), 0.0):
        with pytest.raises(ShapeError):
            TopLogitAccess(HMM).top([[0]], bias=bad)
    with pytest.raises(NonFiniteError):
        TopLogitAccess(HMM).top([[0]], bias=[0, np.inf, 0])
