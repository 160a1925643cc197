import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from lrlm_sim import certificate
from lrlm_sim import distances as d
from lrlm_sim.confidence import binomial_interval, binomial_test_failures, mean_interval
from oracles import ISAN, HiddenMarkovModel, NoisyParity, Tabular
from oracles.access import (
    ConditionalProbabilityAccess,
    ConditionalSampleAccess,
    LogitAccess,
    SampleAccess,
    TopLogitAccess,
)
from oracles.errors import BudgetError, HorizonError, ParameterError, ZeroProbabilityError

FALSE_ALARM = 1e-9  # of each statistical test
SURE = 1 - FALSE_ALARM


def near(hmm, share):
    """The model with its emissions mixed with the uniform law."""
    emission = (1 - share) * hmm.emission + share / hmm.vocab_size
    return HiddenMarkovModel(hmm.initial, hmm.transition, emission, hmm.horizon)


TEACHER = HiddenMarkovModel.random(3, 3, 6, 0)
MODELS = {"near": near(TEACHER, 0.1), "far": HiddenMarkovModel.random(2, 3, 6, 9), "same": TEACHER}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", [LogitAccess, ConditionalProbabilityAccess])
def test_certificates_hold_and_are_narrow(kind, name):
    exact = d.total_variation(TEACHER, MODELS[name])
    found = d.certify(kind(TEACHER), MODELS[name], 8000, SURE)
    assert found.low <= exact + 1e-12
    assert found.high >= exact
    assert found.high - found.low < 0.08
    assert found.n == 8000
    assert found.confidence == SURE
    assert found.note == ""
    assert found.ratio is not None


@pytest.mark.parametrize("kind", [LogitAccess, ConditionalProbabilityAccess])
def test_the_ratio_estimate_is_the_mean_over_the_strings_that_were_drawn(kind):
    strings = kind(TEACHER, seed=4).sample(300)
    expected = np.maximum(0, -np.expm1(MODELS["near"].score(strings) - TEACHER.score(strings))).mean()
    found = d.certify(kind(TEACHER, seed=4), MODELS["near"], 300)
    assert found.ratio.estimate == pytest.approx(expected, abs=1e-13)


def test_telescoping_estimate_is_the_mean_of_stepwise_distances():
    strings, model = LogitAccess(TEACHER, seed=4).sample(200), MODELS["far"]
    total = 0.0
    for t in range(6):
        laws = [np.exp(oracle.next_log_probs(strings[:, :t])) for oracle in (TEACHER, model)]
        total += np.abs(laws[0] - laws[1]).sum() / 2
    found = d.certify(LogitAccess(TEACHER, seed=4), model, 200)
    assert found.telescoping.estimate == pytest.approx(total / 200, abs=1e-12)
    assert found.telescoping.low == 0
    assert d.certify(LogitAccess(TEACHER), model, 4000, SURE).telescoping.high >= d.telescoping_bound(
        TEACHER, model
    )


@pytest.mark.parametrize("kind", [LogitAccess, ConditionalProbabilityAccess])
def test_coverage_at_the_stated_confidence(kind):
    exact, trials = d.total_variation(TEACHER, MODELS["near"]), 150
    access = kind(TEACHER)
    found = [d.certify(access, MODELS["near"], 80, 0.8) for _ in range(trials)]
    missed = sum(not c.low <= exact <= c.high for c in found)
    assert binomial_test_failures(missed, trials, 0.2) > FALSE_ALARM
    assert len({c.estimate for c in found}) > trials // 2  # every certificate draws fresh strings


def test_every_distinct_prefix_is_asked_once_whatever_the_blocks(monkeypatch):
    strings = LogitAccess(TEACHER, seed=2).sample(400)
    prefixes = {tuple(x[:t]) for x in strings for t in range(6)}
    results = []
    for cells in (1, 100, 1 << 24):
        monkeypatch.setattr(certificate, "_CELLS", cells)
        access = LogitAccess(TEACHER, seed=2)
        found = d.certify(access, MODELS["near"], 400)
        assert found.spent == access.ledger
        assert found.spent.calls == 400 + len(prefixes)
        assert found.spent.distinct_prefixes == len(prefixes)
        assert found.spent.submitted_tokens == sum(map(len, prefixes))
        assert found.spent.generated_tokens == 400 * 6
        results.append([found.low, found.high, found.telescoping.estimate])
    np.testing.assert_allclose(results, [results[0]] * 3, rtol=0, atol=1e-12)


def test_probabilities_are_asked_once_per_distinct_string():
    access = ConditionalProbabilityAccess(TEACHER, seed=2)
    distinct = {tuple(x) for x in ConditionalProbabilityAccess(TEACHER, seed=2).sample(400)}
    access.sample(400)
    before = access.ledger
    found = d.certify(access, MODELS["near"], 400)
    assert found.spent == access.ledger - before
    assert 400 < found.spent.calls <= 800
    again = ConditionalProbabilityAccess(TEACHER, seed=2)
    assert d.certify(again, MODELS["near"], 400).spent.calls == 400 + len(distinct)


@pytest.mark.parametrize(
    ("kind", "noise"),
    [(LogitAccess, 0.05), (ConditionalProbabilityAccess, 0.2)],
    ids=["logits", "probabilities"],
)
def test_noise_must_be_allowed_for(kind, noise):
    teacher = HiddenMarkovModel.random(3, 3, 12, 0)
    blind = d.certify(kind(teacher, noise=noise), teacher, 3000, SURE)
    assert blind.low > 0  # the true distance is zero
    honest = d.certify(kind(teacher, noise=noise), teacher, 3000, SURE, noise=noise)
    assert honest.low == 0
    assert honest.high > blind.high
    assert honest.noise == noise


@given(st.integers(2, 6), st.floats(0, 3), st.integers(0, 2**32))
def test_bounded_logit_noise_moves_a_law_by_at_most_tanh(vocab, noise, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, vocab)
    moved = logits + noise * rng.choice([-1.0, 1.0], vocab)
    assert np.abs(softmax(logits) - softmax(moved)).sum() / 2 <= np.tanh(noise / 2) + 1e-12
    ends = softmax([noise, 0.0]), softmax([0.0, noise])  # the bound is attained: ±ξ/2 around ±ξ/2
    assert np.abs(ends[0] - ends[1]).sum() / 2 == pytest.approx(np.tanh(noise / 2), abs=1e-12)


def test_stepwise_noise_allowance_is_added_to_the_telescoping_bound():
    blind, honest = (d.certify(LogitAccess(TEACHER), MODELS["near"], 300, noise=x) for x in (0.0, 0.1))
    expected = blind.telescoping.high + 6 * np.tanh(0.05)
    assert honest.telescoping.high == pytest.approx(expected, abs=1e-12)
    assert honest.ratio.high == pytest.approx(blind.ratio.high + 1 - np.exp(-1.2), abs=1e-12)


def test_telescoping_wins_where_it_is_tighter():
    # with noise ξ the ratio estimator pays 1 − e^(−2Tξ), the telescoping bound T·tanh(ξ/2) only
    teacher = HiddenMarkovModel.random(3, 3, 12, 0)
    access = LogitAccess(teacher, noise=0.02)
    found = d.certify(access, teacher, 5000, 0.95, noise=0.02)
    assert found.method == "telescoping"
    assert found.high == found.telescoping.high < found.ratio.high
    assert d.certify(LogitAccess(teacher), near(teacher, 0.3), 5000).method == "ratio"


def test_long_strings_beyond_enumeration():
    teacher = ISAN.random(4, 8, 100, 0)
    found = d.certify(LogitAccess(teacher), teacher, 100, 0.95)
    assert found.low == 0
    assert found.high < 0.06
    assert found.estimate < 1e-12


@pytest.mark.parametrize("kind", [SampleAccess, ConditionalSampleAccess])
@pytest.mark.parametrize("name", MODELS)
def test_samples_give_lower_bounds_only(kind, name):
    exact = d.total_variation(TEACHER, MODELS[name])
    found = d.certify(kind(TEACHER), MODELS[name], 20_000, SURE, 0)
    assert found.method == "event"
    assert found.high == 1
    assert found.low <= exact
    assert found.low > (0.5 * exact if name == "far" else -1)
    assert "no upper bound" in found.note
    assert found.ratio is None
    assert found.spent.calls == 20_000


def test_lower_bound_covers():
    exact, trials = d.total_variation(TEACHER, MODELS["far"]), 150
    access, rng = SampleAccess(TEACHER), np.random.default_rng(0)
    missed = sum(d.certify(access, MODELS["far"], 100, 0.8, rng).low > exact for _ in range(trials))
    assert binomial_test_failures(missed, trials, 0.2) > FALSE_ALARM


def test_the_two_intervals_of_logits_share_the_confidence():
    found = d.certify(LogitAccess(TEACHER, seed=4), MODELS["near"], 300, 0.9)
    strings = LogitAccess(TEACHER, seed=4).sample(300)
    ratios = np.maximum(0, -np.expm1(MODELS["near"].score(strings) - TEACHER.score(strings)))
    alone = mean_interval(ratios, 0.95)  # δ/2 of δ = 0.1
    assert (found.ratio.low, found.ratio.high) == pytest.approx((alone.low, alone.high), abs=1e-9)
    assert (found.ratio.n, found.telescoping.n) == (300, 300)
    assert found.ratio.confidence == pytest.approx(0.95)
    assert found.telescoping.confidence == pytest.approx(0.95)
    steps = np.zeros(300)
    for t in range(6):
        laws = [np.exp(oracle.next_log_probs(strings[:, :t])) for oracle in (TEACHER, MODELS["near"])]
        steps += np.abs(laws[0] - laws[1]).sum(axis=1) / 2
    upper = mean_interval(steps / 6, 0.95, side="upper").high
    assert found.telescoping.high == pytest.approx(6 * upper, abs=1e-9)
    assert found.interval.confidence == found.confidence == 0.9


def counted(strings, vocab, order, positional):
    """Add-½ log-likelihood of tokens given the last `order` tokens, by a dictionary; −1 before the string."""
    counts = {}

    def context(x, t):
        past = tuple(int(x[t - j]) if t >= j else -1 for j in range(order, 0, -1))
        return (*past, t) if positional else past

    for x in strings:
        for t, z in enumerate(x):
            counts.setdefault(context(x, t), np.full(vocab, 0.5))[z] += 1

    def score(x):
        rows = (counts.get(context(x, t), np.full(vocab, 0.5)) for t in range(len(x)))
        return sum(np.log(row[z] / row.sum()) for row, z in zip(rows, x, strict=True))

    return lambda batch: np.array([score(x) for x in batch])


@pytest.mark.parametrize("positional", [False, True])
@pytest.mark.parametrize(("n", "order"), [(3, 0), (None, 1), (None, 2)])
def test_count_models_match_a_dictionary(n, order, positional):
    """Without `n`, the fewest strings whose tokens bear that order; one string less bears one order less."""
    vocab, length = 3, 5
    places = length if positional else 1
    tokens = places * (vocab + 1) ** order * vocab * certificate._TOKENS_PER_COUNT
    enough = -(-tokens // length) if n is None else n
    rng = np.random.default_rng(order)
    fresh = rng.integers(0, vocab, (40, length))
    for size, expected in ((enough, order), (enough - 1, max(0, order - 1))):
        strings = rng.integers(0, vocab, (size, length))
        found = certificate._count_model(strings, vocab, positional)(fresh)
        np.testing.assert_allclose(found, counted(strings, vocab, expected, positional)(fresh), atol=1e-12)


def test_the_event_is_the_one_with_the_largest_gap():
    """Strings of the teacher repeat a token at a fixed place; the model is uniform: only counts can tell."""
    rng = np.random.default_rng(0)
    uniform = HiddenMarkovModel([1.0], [[1.0]], [[0.5, 0.5]], 8)
    teacher = rng.integers(0, 2, (4000, 8))
    teacher[:, 5] = 1
    model = uniform.sample(4000, 1)
    event = certificate._best_event(teacher[:2000], teacher[2000:], model, uniform)
    fresh = rng.integers(0, 2, (4000, 8))
    marked = fresh.copy()
    marked[:, 5] = 1
    assert abs(event(marked).mean() - event(fresh).mean()) > 0.45
    # where tokens themselves differ, the surprise under the model is enough, whatever the counts
    biased = HiddenMarkovModel([1.0], [[1.0]], [[0.9, 0.1]], 8)
    few = rng.integers(0, 2, (2, 8))
    event = certificate._best_event(few, rng.integers(0, 2, (2000, 8)), biased.sample(2000, 2), biased)
    assert event(rng.integers(0, 2, (2000, 8))).mean() - event(biased.sample(2000, 3)).mean() > 0.7


def test_lower_bounds_spend_half_on_each_frequency():
    found = d.certify(SampleAccess(TEACHER, seed=1), MODELS["far"], 4000, 0.9, 3)
    again = SampleAccess(TEACHER, seed=1).sample(4000, 6)
    fit, choose, test = np.split(again, [1000, 2000])
    rng = np.random.default_rng(3)
    event = certificate._best_event(fit, choose, MODELS["far"].sample(1000, rng, length=6), MODELS["far"])
    model = MODELS["far"].sample(8000, rng, length=6)
    under_p = binomial_interval(int(event(test).sum()), 2000, 0.95, "lower")
    under_q = binomial_interval(int(event(model).sum()), 8000, 0.95, "upper")
    assert found.low == pytest.approx(under_p.low - under_q.high, abs=1e-9)
    assert found.estimate == pytest.approx(under_p.estimate - under_q.estimate)
    assert found.note == (
        "a lower bound only: without the teacher's probabilities no upper bound exists; "
        "LogitAccess or ConditionalProbabilityAccess give one"
    )
    assert (found.n, found.confidence) == (4000, 0.9)


def test_samples_see_impossible_strings_and_miss_parity():
    supported = Tabular(np.array([[0.5, 0.5], [0, 0]]))
    other = Tabular(np.array([[0, 0], [0.5, 0.5]]))
    assert d.certify(SampleAccess(supported), other, 2000, 0.95, 0).low > 0.98
    parity = NoisyParity([1, 1, 0, 1, 1, 1, 0, 1, 1, 0, 1, 1], 0.05)
    uniform = HiddenMarkovModel([1.0], [[1.0]], [[0.5, 0.5]], 13)
    assert d.certify(SampleAccess(parity), uniform, 4000, SURE, 0).low == 0  # though TV is .45
    assert d.certify(LogitAccess(parity), uniform, 4000, SURE).low > 0.4


def test_mixed_samples_must_be_allowed_for():
    teacher = near(HiddenMarkovModel.random(2, 3, 6, 3), 0.02)
    blind = d.certify(SampleAccess(teacher, noise=0.2), teacher, 20_000, SURE, 0)
    honest = d.certify(SampleAccess(teacher, noise=0.2), teacher, 20_000, SURE, 0, noise=0.2)
    assert blind.low > 0
    assert honest.low == 0


def test_same_seeds_same_certificate():
    for kind in (SampleAccess, LogitAccess):
        first, again = (d.certify(kind(TEACHER, seed=1), MODELS["far"], 200, 0.9, 5) for _ in range(2))
        assert first == again


def test_shorter_strings_by_length():
    exact = d.total_variation(TEACHER, MODELS["far"], length=3)
    for kind in (LogitAccess, ConditionalProbabilityAccess):
        found = d.certify(kind(TEACHER), MODELS["far"], 3000, SURE, length=3)
        assert found.low <= exact <= found.high
        assert found.spent.generated_tokens == 9000


def test_refusals():
    with pytest.raises(ParameterError, match="draws no strings"):
        d.certify(TopLogitAccess(TEACHER), TEACHER, 100)
    with pytest.raises(HorizonError):
        d.certify(LogitAccess(TEACHER), HiddenMarkovModel.random(2, 3, 5, 0), 100)
    with pytest.raises(ParameterError, match="vocabulary"):
        d.certify(LogitAccess(TEACHER), HiddenMarkovModel.random(2, 4, 6, 0), 100)
    for confidence in (0.0, 1.0, np.nan):
        for kind in (LogitAccess, ConditionalProbabilityAccess, SampleAccess):
            with pytest.raises(ParameterError):
                d.certify(kind(TEACHER), TEACHER, 100, confidence)
    with pytest.raises(ParameterError, match=r"^n must be"):
        d.certify(SampleAccess(TEACHER), TEACHER, 3)
    with pytest.raises(BudgetError):
        d.certify(LogitAccess(TEACHER, budget=120), TEACHER, 100)
    with pytest.raises(ZeroProbabilityError):
        d.certify(LogitAccess(Tabular(np.array([[0.5, 0.5], [0, 0]]))), Tabular(np.full((2, 2), 0.25)), 10)
