import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrlm_sim import distances as d
from lrlm_sim import exact_distance
from oracles import ISAN, HiddenMarkovModel, LinearForm, Oracle, Tabular, WeightedAutomaton
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


def test_limits_and_cuts_of_the_product_engine():
    """The cheapest cut, by the operation counts that the docstring states, written out once more."""
    rng = np.random.default_rng(3)
    widths = [3, 2, 5, 4, 1, 6, 2]
    operators = [rng.random((3, a, b)) for a, b in itertools.pairwise(widths)]
    forms = [LinearForm(np.ones(3), operators, np.ones(2)), LinearForm(np.ones(3), operators, np.ones(2))]

    def cost(cut):
        heads = sum(3 ** (t + 1) * 2 * widths[t] * widths[t + 1] for t in range(cut))
        tails = sum(3 ** (6 - t) * 2 * widths[t] * widths[t + 1] for t in range(cut, 6))
        return 3**6 * 2 * widths[cut] + heads + tails

    assert exact_distance._choose_cut(forms) == min(range(1, 7), key=cost)


def test_the_two_sides_must_fit_in_memory(monkeypatch):
    p = HiddenMarkovModel.random(2, 4, 8, 0).linear_form()

    def size(cut):  # float64 rows of heads one token short, and of tails, of both models
        return 8 * (4 ** (cut - 1) * 4 + 4 ** (8 - cut) * 4)

    smallest = min(map(size, range(1, 9)))
    monkeypatch.setattr(exact_distance, "_SIDE_BYTES", smallest)
    cut = exact_distance._choose_cut([p, p])
    assert size(cut) == smallest
    monkeypatch.setattr(exact_distance, "_SIDE_BYTES", smallest - 1)
    with pytest.raises(TooLargeError, match=re.escape(f"{smallest:.3g} bytes")):
        exact_distance._choose_cut([p, p])


def test_rounding_below_zero_is_cut_in_place():
    values = np.array([0.5, -1e-12, 0.5])
    assert exact_distance._non_negative(values) is values
    np.testing.assert_array_equal(values, [0.5, 0.0, 0.5])
    with pytest.raises(ProbabilityError, match=r"-0\.001"):
        exact_distance._non_negative(np.array([1.0, -1e-3]))
