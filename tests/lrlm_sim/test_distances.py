import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrlm_sim import distances as d
from lrlm_sim import exact_distance, sampled_distance
from lrlm_sim.confidence import binomial_test_failures
from oracles import ISAN, HiddenMarkovModel, LinearForm, NGram, Oracle, Tabular, WeightedAutomaton
from oracles.base import Conditioned
from oracles.errors import (
    HorizonError,
    NonFiniteError,
    ParameterError,
    ProbabilityError,
    TooLargeError,
)

FALSE_ALARM = 1e-9  # of each statistical test


class PrefixProducts(Conditioned):
    """A tabular law as products whose width is the number of prefixes, A^t at cut t."""

    def linear_form(self):
        vocab, horizon = self.vocab_size, self.horizon
        operators = []
        for t in range(horizon - 1):
            operator = np.zeros((vocab, vocab**t, vocab ** (t + 1)))
            for h, z in itertools.product(range(vocab**t), range(vocab)):
                operator[z, h, h * vocab + z] = 1.0
            operators.append(operator)
        last = self.oracle.probabilities.reshape(-1, vocab).T[:, :, None]
        return LinearForm(np.ones(1), [*operators, last], np.ones(1))


class Lying(Oracle):
    """A model whose laws have one bad row of numbers."""

    def __init__(self, row):
        self.row, self.vocab_size, self.horizon = np.log(row), len(row), 2

    def start(self, batch):
        return np.zeros(batch)

    def advance(self, state, tokens):
        return state

    def take(self, state, rows):
        return state[rows]

    def log_probs(self, state):
        return np.tile(self.row, (len(state), 1))


def strings(vocab, length):
    return np.array(list(itertools.product(range(vocab), repeat=length)), dtype=np.int64)


def brute(oracle, length=None):
    length = oracle.horizon if length is None else length
    return np.exp(oracle.score(strings(oracle.vocab_size, length)))


def brute_tv(p, q, length=None):
    return float(np.abs(brute(p, length) - brute(q, length)).sum() / 2)


def sparse_tabular(rng, vocab, horizon, share):
    law = rng.dirichlet(np.ones(vocab**horizon)) * (rng.random(vocab**horizon) < share)
    law[rng.integers(len(law))] += 0.1
    return Tabular((law / law.sum()).reshape((vocab,) * horizon))


def time_varying_hmm(rng, states, vocab, horizon):
    emission = rng.dirichlet(np.full(vocab, 0.5), (horizon, states))
    transition = rng.dirichlet(np.full(states, 0.5), (max(horizon - 1, 0), states))
    return HiddenMarkovModel(rng.dirichlet(np.ones(states)), transition, emission, horizon)


@st.composite
def model_tuples(draw, count):
    vocab = draw(st.integers(1, 4))
    horizon = draw(st.integers(1, {1: 6, 2: 7, 3: 5, 4: 4}[vocab]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kinds = draw(st.lists(st.sampled_from("hvtsni"), min_size=count, max_size=count))
    make = {
        "h": lambda: HiddenMarkovModel.random(int(rng.integers(1, 6)), vocab, horizon, rng),
        "v": lambda: time_varying_hmm(rng, int(rng.integers(1, 4)), vocab, horizon),
        "t": lambda: sparse_tabular(rng, vocab, horizon, 0.4),
        "s": lambda: PrefixProducts(sparse_tabular(rng, vocab, horizon, 0.5), ()),
        "n": lambda: Tabular(
            np.eye(vocab**horizon)[rng.integers(vocab**horizon)].reshape((vocab,) * horizon)
        ),
        "i": lambda: ISAN.random(3, vocab, horizon, rng),
    }
    return [make[kind]() for kind in kinds]


# --- exact ------------------------------------------------------------------------------------------


@given(model_tuples(2))
def test_exact_total_variation_matches_brute_force(models):
    p, q = models
    expected = brute_tv(p, q)
    assert d.total_variation(p, q) == pytest.approx(expected, abs=1e-13)
    assert d.total_variation(p, q, method="tree") == pytest.approx(expected, abs=1e-13)
    if p.linear_form() is not None and q.linear_form() is not None:
        assert d.total_variation(p, q, method="products") == pytest.approx(expected, abs=1e-13)


@given(model_tuples(3))
def test_total_variation_is_a_metric(models):
    p, q, r = models
    tv = d.total_variation
    assert tv(p, q) == pytest.approx(tv(q, p), abs=1e-14)
    assert tv(p, r) <= tv(p, q) + tv(q, r) + 1e-13
    assert tv(p, p) <= 1e-14
    assert (tv(p, q) < 1e-12) == np.allclose(brute(p), brute(q), rtol=0, atol=1e-12)


@given(model_tuples(2))
def test_inequalities_between_distances(models):
    p, q = models
    tv, kl, telescoping = d.total_variation(p, q), d.kl_exact(p, q), d.telescoping_bound(p, q)
    assert tv <= np.sqrt(kl / 2) + 1e-12  # Pinsker
    assert tv <= telescoping + 1e-12
    assert telescoping <= p.horizon
    per_step = [d.total_variation(p, q, length=t) for t in range(p.horizon + 1)]
    assert (np.diff(per_step) >= -1e-13).all()  # laws of longer prefixes are further apart
    assert per_step[0] == 0


@given(model_tuples(2))
def test_telescoping_bound_matches_brute_force(models):
    p, q = models
    expected = 0.0
    for t in range(p.horizon):
        prefixes = strings(p.vocab_size, t)
        laws = [np.exp(oracle.next_log_probs(prefixes)) for oracle in models]
        expected += float(brute(p, t) @ np.abs(laws[0] - laws[1]).sum(axis=1)) / 2
    assert d.telescoping_bound(p, q) == pytest.approx(expected, abs=1e-12)


@given(model_tuples(2))
def test_kl_matches_brute_force(models):
    p, q = models
    of_p, of_q = brute(p), brute(q)
    seen = of_p > 0
    with np.errstate(divide="ignore"):
        expected = float((of_p[seen] * np.log(of_p[seen] / of_q[seen])).sum())
    assert d.kl_exact(p, q) == pytest.approx(expected, abs=1e-11)


@given(model_tuples(1))
def test_sequence_probabilities_are_lexicographic(models):
    (p,) = models
    for method in ("auto", "tree"):
        found = d.sequence_probabilities(p, method=method)
        np.testing.assert_allclose(found, brute(p), rtol=0, atol=1e-14)
    shorter = p.horizon // 2
    np.testing.assert_allclose(d.sequence_probabilities(p, length=shorter), brute(p, shorter), atol=1e-14)


def test_hand_computed_values():
    coin = lambda p: HiddenMarkovModel([1.0], [[1.0]], [[1 - p, p]], 1)  # noqa: E731
    assert d.total_variation(coin(0.3), coin(0.5)) == pytest.approx(0.2, abs=1e-15)
    pair = lambda p: HiddenMarkovModel([1.0], [[1.0]], [[1 - p, p]], 2)  # noqa: E731
    # |.49−.25| + 2·|.21−.25| + |.09−.25| = .48
    for method in ("products", "tree"):
        assert d.total_variation(pair(0.3), pair(0.5), method=method) == pytest.approx(0.24, abs=1e-15)
    assert d.telescoping_bound(pair(0.3), pair(0.5)) == pytest.approx(0.4, abs=1e-15)
    assert d.kl_exact(pair(0.3), pair(0.5)) == pytest.approx(2 * (0.7 * np.log(1.4) + 0.3 * np.log(0.6)))
    first, second = Tabular(np.array([[1.0, 0], [0, 0]])), Tabular(np.array([[0, 0], [0, 1.0]]))
    assert d.total_variation(first, second) == 1.0
    assert d.kl_exact(first, second) == np.inf


@pytest.mark.parametrize(
    "broken",
    [lambda x: float(x.sum()), lambda x: 2 * float(np.abs(x).sum())],
    ids=["no absolute value", "no half"],
)
@pytest.mark.parametrize("method", ["products", "tree"])
def test_the_reference_catches_broken_variants(monkeypatch, broken, method):
    p, q = HiddenMarkovModel.random(3, 3, 4, 0), HiddenMarkovModel.random(2, 3, 4, 1)
    monkeypatch.setattr(exact_distance, "_sum_absolute", broken)
    assert abs(d.total_variation(p, q, method=method) - brute_tv(p, q)) > 0.1


@pytest.mark.parametrize("cells", [1, 7, 64, 1 << 16])
def test_tree_expansion_visits_every_prefix_once_whatever_the_block(cells):
    p = HiddenMarkovModel.random(3, 3, 5, 0)
    blocks = list(exact_distance.expand_tree([p], 5, cells=cells))
    assert max(len(b.index) for b in blocks) <= max(1, cells // 3)
    visited = [(b.depth, int(i)) for b in blocks for i in b.index]
    assert sorted(visited) == [(t, i) for t in range(5) for i in range(3**t)]
    for b in blocks:
        np.testing.assert_allclose(b.weights[0], brute(p, b.depth)[b.index], rtol=1e-12)


def test_subtrees_without_mass_are_not_entered():
    alternating = HiddenMarkovModel([1.0, 0], [[0, 1.0], [1, 0]], np.eye(2), 40)
    almost = HiddenMarkovModel([0.75, 0.25], [[0, 1.0], [1, 0]], np.eye(2), 40)
    assert sum(len(b.index) for b in exact_distance.expand_tree([alternating, almost], 40)) == 40
    tv = d.total_variation(alternating, almost, limit=2**40, method="tree")
    assert tv == pytest.approx(0.25, abs=1e-14)


@pytest.mark.parametrize(
    ("vocab", "horizon"), [(1, 9), (2, 13), (7, 1), (40, 2), (12, 3), (600, 1), (300, 2)]
)
def test_products_in_every_shape(vocab, horizon):
    p, q = HiddenMarkovModel.random(3, vocab, horizon, 0), HiddenMarkovModel.random(5, vocab, horizon, 1)
    expected = d.total_variation(p, q, method="tree")
    assert d.total_variation(p, q, method="products") == pytest.approx(expected, abs=1e-13)


def test_every_cut_gives_the_same_distance(monkeypatch):
    p, q = time_varying_hmm(np.random.default_rng(0), 3, 3, 6), HiddenMarkovModel.random(2, 3, 6, 1)
    expected = brute_tv(p, q)
    for cut in range(1, 7):
        monkeypatch.setattr(exact_distance, "_choose_cut", lambda forms, cut=cut: cut)
        assert d.total_variation(p, q) == pytest.approx(expected, abs=1e-13)


def test_cut_prefers_the_narrow_place():
    wide, narrow = np.full((2, 9, 9), 1 / 18), 4
    operators = [wide] * 8
    operators[narrow - 1], operators[narrow] = np.full((2, 9, 1), 0.5), np.full((2, 1, 9), 1 / 18)
    form = LinearForm(np.full(9, 1 / 9), operators, np.ones(9))
    assert exact_distance._choose_cut([form, form]) == narrow


def test_distance_of_weighted_automata_with_negative_weights():
    p = HiddenMarkovModel.random(3, 3, 6, 0)
    basis = np.random.default_rng(0).standard_normal((3, 3))
    inverse = np.linalg.inv(basis)
    turned = basis @ p.linear_form().operators[0] @ inverse
    q = WeightedAutomaton(p.initial @ inverse, turned, basis @ np.ones(3), 6)
    assert (turned < 0).any()
    assert d.total_variation(p, q) < 1e-13
    r = HiddenMarkovModel.random(2, 3, 6, 5)
    assert d.total_variation(q, r) == pytest.approx(brute_tv(p, r), abs=1e-12)


def test_sizes_that_cannot_be_enumerated_are_refused_with_the_remedy():
    p = HiddenMarkovModel.random(2, 4, 30, 0)
    for call in (
        lambda: d.total_variation(p, p),
        lambda: d.total_variation(p, p, method="tree"),
        lambda: d.sequence_probabilities(p),
        lambda: d.kl_exact(p, p),
        lambda: d.telescoping_bound(p, p),
    ):
        with pytest.raises(TooLargeError, match=r"4\^30 = 10\^18\.1 strings.*estimate_total_variation"):
            call()
    with pytest.raises(TooLargeError, match="limit of 10 strings"):
        d.total_variation(p, p, length=2, limit=10)
    huge = HiddenMarkovModel.random(2, 50, 10_000, 0)
    with pytest.raises(TooLargeError, match=r"50\^10000"):
        d.total_variation(huge, huge)


def test_products_too_large_for_memory_are_refused(monkeypatch):
    p = HiddenMarkovModel.random(2, 4, 8, 0)
    monkeypatch.setattr(exact_distance, "_SIDE_BYTES", 100)
    with pytest.raises(TooLargeError, match="bytes"):
        d.total_variation(p, p)


def test_mismatched_models_are_refused():
    p = HiddenMarkovModel.random(2, 3, 4, 0)
    with pytest.raises(ParameterError, match="vocab_size 3 and 2"):
        d.total_variation(p, HiddenMarkovModel.random(2, 2, 4, 0))
    with pytest.raises(HorizonError, match="4 and 5"):
        d.estimate_total_variation(p, HiddenMarkovModel.random(2, 3, 5, 0), 10)
    with pytest.raises(HorizonError):
        d.total_variation(p, p, length=5)
    with pytest.raises(ParameterError, match="method"):
        d.total_variation(p, p, method="fast")
    with pytest.raises(ParameterError, match="products"):
        d.total_variation(p, ISAN.random(2, 3, 4, 0), method="products")
    longer = HiddenMarkovModel.random(2, 3, 6, 1)
    assert d.total_variation(p, longer, length=3) == pytest.approx(brute_tv(p, longer, 3), abs=1e-14)


@pytest.mark.parametrize(
    ("row", "error"), [([0.5, 0.6], ProbabilityError), ([0.5, np.nan], NonFiniteError)], ids=["mass", "nan"]
)
def test_models_that_answer_no_laws_are_refused(row, error):
    fair = HiddenMarkovModel([1.0], [[1.0]], [[0.5, 0.5]], 2)
    for call in (
        lambda: d.total_variation(fair, Lying(row)),
        lambda: d.kl(fair, Lying(row), 10, 0),
        lambda: d.estimate_total_variation(fair, Lying(row), 10, rng=0),
    ):
        with pytest.raises(error):
            call()


@pytest.mark.parametrize(
    ("final", "error"), [([2.0, 2.0], ProbabilityError), ([np.nan, 1.0], NonFiniteError)]
)
def test_linear_forms_that_are_no_laws_are_refused(final, error):
    class Wrong(Conditioned):
        def linear_form(self):
            form = self.oracle.linear_form()
            return LinearForm(form.initial, form.operators, np.array(final))

    p = HiddenMarkovModel.random(2, 3, 4, 0)
    with pytest.raises(error):
        d.total_variation(p, Wrong(p, ()))


# --- estimated --------------------------------------------------------------------------------------


def deviation_bound(values, weights, n):
    """Bernstein: |mean of n samples − expectation| exceeds this with probability ≤ FALSE_ALARM."""
    mean = values @ weights
    variance, scale = ((values - mean) ** 2) @ weights, np.abs(values - mean)[weights > 0].max()
    log = np.log(2 / FALSE_ALARM)
    return np.sqrt(2 * variance * log / n) + 2 * scale * log / (3 * n)


@pytest.mark.parametrize("seed", range(5))
def test_estimates_agree_with_the_exact_values(seed):
    rng, n = np.random.default_rng(seed), 20_000
    p = [HiddenMarkovModel.random(3, 3, 5, rng), ISAN.random(3, 3, 5, rng)][seed % 2]
    q = HiddenMarkovModel.random(2, 3, 5, rng)
    of_p, of_q = brute(p), brute(q)
    tv = d.estimate_total_variation(p, q, n, 1 - FALSE_ALARM, rng)
    assert d.total_variation(p, q) in tv
    excess = np.maximum(0, 1 - of_q / of_p)
    assert abs(tv.estimate - d.total_variation(p, q)) <= deviation_bound(excess, of_p, n)
    sequence = d.kl(p, q, n, rng, method="sequence")
    assert abs(sequence.estimate - d.kl_exact(p, q)) <= deviation_bound(np.log(of_p / of_q), of_p, n)
    chain = d.kl(p, q, n, rng)
    profile = d.kl_profile(p, q, n, rng)
    assert profile.shape == (n, 5)
    sums = _chain_terms(p, q)
    assert abs(chain.estimate - d.kl_exact(p, q)) <= deviation_bound(sums, of_p, n)
    assert chain.standard_error < sequence.standard_error
    assert chain.low < chain.estimate < chain.high


def _chain_terms(p, q):
    """Σ_t KL(P(·|x_<t) ‖ Q(·|x_<t)) of every string x, by hand."""
    x = strings(p.vocab_size, p.horizon)
    total = np.zeros(len(x))
    for t in range(p.horizon):
        log_p, log_q = p.next_log_probs(x[:, :t]), q.next_log_probs(x[:, :t])
        total += (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return total


def test_estimated_interval_covers_the_exact_value():
    p, q = HiddenMarkovModel.random(3, 3, 4, 0), HiddenMarkovModel.random(3, 3, 4, 1)
    exact, rng, trials = d.total_variation(p, q), np.random.default_rng(0), 400
    missed = sum(exact not in d.estimate_total_variation(p, q, 60, 0.8, rng) for _ in range(trials))
    assert binomial_test_failures(missed, trials, 0.2) > FALSE_ALARM


def test_long_strings_whose_probability_underflows():
    p = HiddenMarkovModel.random(3, 30, 400, 0)
    q = HiddenMarkovModel(p.initial, p.transition, 0.999 * p.emission + 0.001 / 30, 400)
    assert np.exp(p.score(p.sample(1, 0)))[0] == 0
    interval = d.estimate_total_variation(p, q, 500, 0.95, 0)
    assert 0 < interval.low < interval.high < 0.5
    assert d.estimate_total_variation(p, p, 500, 0.95, 0).estimate == 0
    opposite = HiddenMarkovModel.random(3, 30, 400, 1)
    assert d.estimate_total_variation(p, opposite, 500, 0.95, 0).low > 0.98


def test_models_with_impossible_strings():
    p, q = Tabular(np.array([[0.5, 0.25], [0.25, 0]])), Tabular(np.array([[0.5, 0], [0.25, 0.25]]))
    interval = d.estimate_total_variation(p, q, 5000, 1 - FALSE_ALARM, 0)
    assert 0.25 in interval
    assert interval.width < 0.1
    for method in ("chain", "sequence"):
        infinite = d.kl(p, q, 200, 0, method=method)
        assert (infinite.estimate, infinite.low, infinite.high) == (np.inf, np.inf, np.inf)
    rare = Tabular(np.array([[1 - 1e-9, 0], [0, 1e-9]]))
    point = Tabular(np.array([[1.0, 0], [0, 0]]))
    assert d.kl(rare, point, 10, 0).estimate == np.inf  # the chain rule sees tokens that were not drawn
    assert np.isfinite(d.kl(rare, point, 10, 0, method="sequence").estimate)
    assert d.kl(point, rare, 10, 0).estimate == pytest.approx(1e-9, rel=1e-6)


def test_per_token_divides_by_the_length():
    p, q = HiddenMarkovModel.random(2, 3, 8, 0), HiddenMarkovModel.random(2, 3, 8, 1)
    whole, token = d.kl(p, q, 300, 5), d.kl_per_token(p, q, 300, 5)
    assert token.estimate == pytest.approx(whole.estimate / 8)
    assert token.standard_error == pytest.approx(whole.standard_error / 8)
    short = d.kl_per_token(p, q, 300, 5, length=4)
    assert short.estimate == pytest.approx(d.kl(p, q, 300, 5, length=4).estimate / 4)


def test_results_depend_on_the_seed_alone():
    p, q = HiddenMarkovModel.random(2, 3, 8, 0), HiddenMarkovModel.random(2, 3, 8, 1)
    first, again = (d.estimate_total_variation(p, q, 1000, 0.9, 3) for _ in range(2))
    assert first == again
    assert first != d.estimate_total_variation(p, q, 1000, 0.9, 4)
    assert d.kl(p, q, 100, 3) == d.kl(p, q, 100, 3)


def test_samples_come_in_blocks(monkeypatch):
    p, q = NGram.random(1, 3, 6, 0), HiddenMarkovModel.random(2, 3, 6, 1)
    whole = d.estimate_total_variation(p, q, 1000, 0.9, 3)
    monkeypatch.setattr(sampled_distance, "_STRINGS", 64)
    assert d.estimate_total_variation(p, q, 1000, 0.9, 3).estimate == pytest.approx(whole.estimate, abs=1e-12)


@pytest.mark.parametrize(
    "call",
    [
        lambda p: d.estimate_total_variation(p, p, 0),
        lambda p: d.estimate_total_variation(p, p, 10, 1.5),
        lambda p: d.kl(p, p, 10, 0, method="exact"),
        lambda p: d.kl(p, p, 10, 0, confidence=1.0),
        lambda p: d.kl_per_token(p, p, 10, 0, length=0),
    ],
)
def test_bad_parameters_are_refused(call):
    with pytest.raises(ParameterError):
        call(HiddenMarkovModel.random(2, 3, 4, 0))
