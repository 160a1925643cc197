"""Exact arithmetic against the float code, and against theorems that need no arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrlm_sim import rational
from lrlm_sim.distances import total_variation
from lrlm_sim.matrices import logit_rank, probability_rank, rank_profile
from lrlm_sim.rational import exact_rank, exact_total_variation
from oracles import (
    ISAN,
    CauchySeparation,
    HiddenMarkovModel,
    NoisyCopy,
    NoisyParity,
    ProbabilisticAutomaton,
    SparsePolynomial,
    Tabular,
)
from oracles.errors import ParameterError, ProbabilityError, ShapeError, TooLargeError
from tests.oracles.enumeration import all_strings

# An even number of ones, never three zeros in a row.
DELTA = [[1, 3], [2, 3], [-1, 3], [4, 0], [5, 0], [-1, 0]]
TRANSITION = [["1/2", "1/2", 0], [0, "1/5", "4/5"], ["1/3", "1/3", "1/3"]]
EMISSION = [["9/10", "1/10"], ["1/2", "1/2"], ["1/7", "6/7"]]


def fractions(rows):
    return [[Fraction(entry) for entry in row] for row in rows]


def exact_hmm(start, horizon=5):
    initial = [Fraction(int(s == start)) for s in range(3)]
    transition, emission = fractions(TRANSITION), fractions(EMISSION)
    law = rational.hidden_markov_law(initial, transition, emission, horizon)
    arrays = [np.array(x, dtype=float) for x in (initial, transition, emission)]
    return law, HiddenMarkovModel(*arrays, horizon)


PAIRS = {
    "hmm": lambda: exact_hmm(0),
    "parity": lambda: (rational.parity_law([1, 0, 1, 1], Fraction(1, 10)), NoisyParity([1, 0, 1, 1], 0.1)),
    "parity-noiseless": lambda: (rational.parity_law([1, 1], 0), NoisyParity([1, 1], 0.0)),
    "copy-2-3": lambda: (rational.copy_law(2, 3, Fraction(1, 5)), NoisyCopy(2, 3, 0.2)),
    "copy-3-2": lambda: (rational.copy_law(3, 2, Fraction(1, 5)), NoisyCopy(3, 2, 0.2)),
    "dfa": lambda: (rational.walk_law(DELTA, 0, 6), ProbabilisticAutomaton.from_dfa(DELTA, 0, 6)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_probabilities_and_ranks_agree_with_the_floats(name):
    law, oracle = PAIRS[name]()
    expected = np.array([float(p) for p in law.probabilities])
    strings = all_strings(law.vocab_size, law.horizon)
    np.testing.assert_allclose(np.exp(oracle.score(strings)), expected, rtol=2e-15 * law.horizon, atol=0)
    exact = tuple(law.rank(cut) for cut in range(law.horizon + 1))
    assert rank_profile(oracle, "probability").ranks == exact
    prefix = strings[-1, :2].tolist()
    assert float(law.probability(prefix)) == pytest.approx(np.exp(oracle.score([prefix])[0]), rel=1e-14)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (exact_hmm(0), exact_hmm(2)),
        (PAIRS["parity"](), (rational.parity_law([1, 1, 1, 1], 0.5), NoisyParity([1, 1, 1, 1], 0.5))),
        (PAIRS["copy-2-3"](), (rational.copy_law(2, 3, Fraction(1, 3)), NoisyCopy(2, 3, 1 / 3))),
        (PAIRS["copy-3-2"](), (rational.copy_law(3, 2, 0), NoisyCopy(3, 2, 0.0))),
        (PAIRS["dfa"](), (rational.walk_law(DELTA, 1, 6), ProbabilisticAutomaton.from_dfa(DELTA, 1, 6))),
    ],
    ids=["hmm", "parity", "copy-2-3", "copy-3-2", "dfa"],
)
def test_total_variation_is_the_fraction_to_1e_15(first, second):
    exact = exact_total_variation(first[0], second[0])
    assert 0 < exact <= 1
    assert abs(total_variation(first[1], second[1]) - float(exact)) <= 1e-15
    assert exact_total_variation(first[0], first[0]) == 0


def test_total_variation_of_random_float_models_against_their_exact_products():
    for seed in range(5):
        p, q = HiddenMarkovModel.random(3, 3, 4, seed), HiddenMarkovModel.random(2, 3, 4, seed + 100)
        exact = exact_total_variation(*(rational.law_of_form(o.linear_form()) for o in (p, q)))
        assert abs(total_variation(p, q) - float(exact)) <= 1e-15


def test_total_variation_of_parities_is_half_minus_noise():
    # two secrets disagree on half the strings, where the labels' laws are 1 − 2η apart
    p, q = (rational.parity_law(secret, Fraction(1, 10)) for secret in ([1, 0, 1], [0, 1, 1]))
    assert exact_total_variation(p, q) == Fraction(1, 2) * (1 - Fraction(2, 10))


@pytest.mark.parametrize(
    ("law", "logits", "oracle", "cut", "ranks"),
    [
        (
            rational.parity_law([1, 0, 1], Fraction(1, 10)),
            rational.parity_logits([1, 0, 1]),
            NoisyParity([1, 0, 1], 0.1),
            2,
            (2, 1),
        ),
        (
            rational.copy_law(2, 3, Fraction(1, 5)),
            rational.copy_logits(2, 3),
            NoisyCopy(2, 3, 0.2),
            2,
            (9, 4),
        ),
        (
            rational.copy_law(3, 2, Fraction(1, 5)),
            rational.copy_logits(3, 2),
            NoisyCopy(3, 2, 0.2),
            3,
            (8, 3),
        ),
        (rational.cauchy_law(2), rational.cauchy_logits(2), CauchySeparation(2), 2, (4, 2)),
        (rational.cauchy_law(3), rational.cauchy_logits(3), CauchySeparation(3), 3, (8, 2)),
    ],
    ids=["parity", "copy-2-3", "copy-3-2", "cauchy-2", "cauchy-3"],
)
def test_the_table_of_ranks(law, logits, oracle, cut, ranks):
    assert (law.rank(cut), logits.rank(cut)) == ranks
    # the Cauchy model of n = 3 has singular values down to 1e-13: its float rank needs the tolerance
    tolerance = 1e-15 if isinstance(oracle, CauchySeparation) else None
    if not (isinstance(oracle, CauchySeparation) and oracle.n > 2):
        assert probability_rank(oracle, cut, tolerance) == ranks[0]
    assert logit_rank(oracle, cut) == ranks[1]


def test_the_cauchy_matrix_of_sixteen_rows_has_full_rank_although_floats_cannot_see_it():
    assert rational.cauchy_law(4).rank(4) == 16
    assert probability_rank(CauchySeparation(4), 4) < 16


@pytest.mark.parametrize("cut", range(5))
def test_polynomial_logit_ranks(cut):
    subsets, weights, bias = ((0, 2), (1,), (0, 1, 3)), [1.0, -0.75, 0.5], 0.25
    logits = rational.polynomial_logits(4, subsets, weights, bias)
    oracle = SparsePolynomial(4, subsets, weights, bias)
    assert logits.rank(cut) == logit_rank(oracle, cut) <= 4
    expected = [float(p) for p in logits.levels[4][5]]
    laws = oracle.next_log_probs([[0, 1, 0, 1]])[0]
    np.testing.assert_allclose(laws - laws.mean(), expected, atol=1e-14)


def test_network_logits_and_ranks():
    rng = np.random.default_rng(0)
    for width in (1, 2, 3):
        maps, readouts = rng.integers(-2, 3, (3, width, width)) / 4, rng.integers(-2, 3, (3, width)) / 1
        oracle = ISAN(np.ones(width), maps, readouts, 4)
        logits = rational.isan_logits(np.ones(width), maps, readouts, 4)
        for t, level in enumerate(logits.levels):
            laws = oracle.next_log_probs(all_strings(3, t))
            exact = np.array([[float(entry) for entry in row] for row in level])
            np.testing.assert_allclose(laws - laws.mean(axis=1, keepdims=True), exact, atol=1e-13)
        for cut in range(4):
            assert logits.rank(cut) == logit_rank(oracle, cut) <= width


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 5), st.integers(0, 1 << 30))
@settings(max_examples=60)
def test_rank_of_products_with_known_rank(rows, columns, inner, seed):
    # (I over a random block)·(I beside a random block) has rank exactly min(inner, rows, columns)
    rng, inner = np.random.default_rng(seed), min(inner, rows, columns)
    left, right = rng.integers(-9, 10, (rows, inner)), rng.integers(-9, 10, (inner, columns))
    left[:inner], right[:, :inner] = np.eye(inner), np.eye(inner)
    matrix = (left @ right)[rng.permutation(rows)][:, rng.permutation(columns)]
    scaled = [[Fraction(int(entry), 7 + i) for entry in row] for i, row in enumerate(matrix)]
    assert exact_rank(scaled) == inner
    assert exact_rank(list(zip(*scaled, strict=True))) == inner


def test_rank_sees_what_floats_cannot():
    tiny = Fraction(1, 10**40)
    assert exact_rank([[1, 1], [1, 1 + tiny]]) == 2
    assert exact_rank([[1, 1], [1 + tiny, 1 + tiny]]) == 1
    third = Fraction(1, 3)
    assert exact_rank([[third, 2 * third], [1, 2]]) == 1
    assert exact_rank([]) == exact_rank([[0, 0]]) == 0


def test_law_of_a_table_is_itself():
    law = rational.ExactLaw(2, 2, tuple(Fraction(k, 10) for k in (1, 2, 3, 4)))
    oracle = Tabular([[0.1, 0.2], [0.3, 0.4]])
    assert law.probability([1]) == Fraction(7, 10)
    assert law.probability([]) == 1
    assert law.rank(1) == probability_rank(oracle, 1) == 2


def test_errors():
    with pytest.raises(ProbabilityError, match="sum to 1 exactly"):
        rational.ExactLaw(2, 1, (Fraction(1, 2), Fraction(1, 3)))
    with pytest.raises(ShapeError):
        rational.ExactLaw(2, 2, (Fraction(1),))
    with pytest.raises(ParameterError, match="finite"):
        rational.fraction(float("nan"))
    with pytest.raises(ParameterError, match="finite"):
        rational.fraction(float("inf"))
    with pytest.raises(ParameterError, match="finite"):
        rational.fraction("1/2")
    with pytest.raises(TooLargeError):
        rational.copy_law(10, 4, 0)
    with pytest.raises(ParameterError, match="one vocabulary"):
        exact_total_variation(rational.parity_law([1], 0), rational.parity_law([1, 1], 0))
    with pytest.raises(ProbabilityError, match="positive"):
        rational.law_of_products([0], [[[[1]]]], [1])
