"""Matrices against string-by-string enumeration, and ranks against the known table."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrlm_sim import matrices
from lrlm_sim.matrices import extended_logits, logit_rank, probability_matrix, probability_rank, rank_profile
from oracles import (
    ISAN,
    CauchySeparation,
    HiddenMarkovModel,
    NoisyCopy,
    NoisyParity,
    ProbabilisticAutomaton,
    Tabular,
)
from oracles.errors import (
    HorizonError,
    ParameterError,
    ShapeError,
    TokenError,
    TooLargeError,
    ZeroProbabilityError,
)
from tests.oracles import enumeration
from tests.registry import ORACLES

SMALL = [
    name
    for name, build in ORACLES.items()
    if (o := build()).horizon is not None and o.vocab_size**o.horizon <= 5000
]
ZEROS = ("zeros", "deterministic", "noiseless", "dfa", "impossible", "tabular-horizon-1", "peaked")


@pytest.fixture(params=SMALL, name="oracle")
def _oracle(request):
    return ORACLES[request.param]()


def test_probability_matrices_of_every_small_oracle(oracle):
    for cut in range(oracle.horizon + 1):
        matrix = probability_matrix(oracle, cut)
        histories = enumeration.all_strings(oracle.vocab_size, cut)
        futures = enumeration.all_strings(oracle.vocab_size, oracle.horizon - cut)
        assert matrix.shape == (len(histories), len(futures))
        np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
        for i in range(0, len(histories), max(1, len(histories) // 5)):
            expected = np.exp(oracle.score(futures, histories[i]))
            np.testing.assert_allclose(matrix[i], expected, rtol=1e-10, atol=1e-14)


def test_enumerated_laws_of_every_small_oracle(oracle):
    levels = matrices.enumerate_log_probs(oracle)
    assert len(levels) == oracle.horizon
    for t, level in enumerate(levels):
        expected = oracle.next_log_probs(enumeration.all_strings(oracle.vocab_size, t))
        np.testing.assert_allclose(np.exp(level), np.exp(expected), rtol=1e-12, atol=1e-14)


def test_enumeration_in_blocks_is_the_same(monkeypatch):
    oracle = HiddenMarkovModel.random(3, 3, 6, 0)
    whole = matrices.enumerate_log_probs(oracle)
    for rows in (1, 7, 20):
        monkeypatch.setattr(matrices, "_BLOCK_ROWS", rows)
        for a, b in zip(whole, matrices.enumerate_log_probs(oracle), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-13)


# The table of known ranks: oracle, probability ranks at cuts 0..T, logit ranks at cuts 0..T−1.
TABLE = {
    "hmm 2 2 6": (HiddenMarkovModel.random(2, 2, 6, 0), (1, 2, 2, 2, 2, 2, 1), (1, 2, 4, 6, 3, 1)),
    "parity": (NoisyParity([1, 0, 1, 1], 0.1), (1, 2, 2, 2, 2, 1), (1, 1, 1, 1, 1)),
    "copy 2 3": (NoisyCopy(2, 3, 0.2), (1, 3, 9, 3, 1), (1, 3, 4, 2)),
    "copy 3 2": (NoisyCopy(3, 2, 0.2), (1, 2, 4, 8, 4, 2, 1), (1, 2, 3, 3, 2, 1)),
    "cauchy 3": (CauchySeparation(3), (1, 2, 4, 8, 5, 3, 2, 1), (1, 2, 2, 2, 2, 2, 1)),
}


@pytest.mark.parametrize("name", TABLE)
def test_table_of_known_ranks(name):
    oracle, probability, logit = TABLE[name]
    profile = rank_profile(oracle, "probability")
    assert profile.ranks == probability
    assert profile.method == "enumeration"
    assert probability_rank(oracle) == max(probability)
    assert rank_profile(oracle, "logit").ranks == logit
    assert logit_rank(oracle) == max(logit)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_separations_grow_as_claimed(n):
    assert n > 3 or probability_rank(CauchySeparation(n), n) == 2**n  # σ_16/σ_1 is about 1e-24
    assert logit_rank(CauchySeparation(n)) == 2
    assert probability_rank(NoisyCopy(n, 2, 0.3), n) == 2**n
    assert logit_rank(NoisyCopy(n, 2, 0.3), n) == n


@given(
    states=st.integers(1, 4), vocab=st.integers(1, 3), horizon=st.integers(1, 5), seed=st.integers(0, 2**32)
)
def test_hidden_markov_models_have_probability_rank_at_most_states(states, vocab, horizon, seed):
    oracle = HiddenMarkovModel.random(states, vocab, horizon, seed)
    for cut, rank in enumerate(rank_profile(oracle, "probability").ranks):
        assert 1 <= rank <= min(states, vocab**cut, vocab ** (horizon - cut))


@given(
    width=st.integers(1, 4), vocab=st.integers(2, 3), horizon=st.integers(1, 5), seed=st.integers(0, 2**32)
)
def test_isans_have_logit_rank_at_most_width(width, vocab, horizon, seed):
    oracle = ISAN.random(width, vocab, horizon, seed)
    assert logit_rank(oracle) <= width


def test_hidden_markov_logit_ranks_decay_without_a_gap():
    """At cut 3 the seven futures of up to two bits are independent: 6 in the table is the tolerance."""
    profile = rank_profile(HiddenMarkovModel.random(2, 2, 6, 0), "logit")
    assert 1e-13 < profile.cuts[3].first_dropped < profile.cuts[3].threshold
    exact = rank_profile(HiddenMarkovModel.random(2, 2, 6, 1), "logit", tolerance=1e-13)
    assert exact.ranks == (1, 2, 4, 7, 3, 1)
    assert exact.cuts[3].last_kept > 1e6 * exact.cuts[3].first_dropped


@pytest.mark.parametrize("name", [name for name in SMALL if not any(z in name for z in ZEROS)])
def test_ranks_match_full_enumeration(name):
    oracle = ORACLES[name]()
    profiles = {kind: rank_profile(oracle, kind, tolerance=1e-10) for kind in ("probability", "logit")}
    for cut in range(oracle.horizon):
        futures = enumeration.all_strings(oracle.vocab_size, oracle.horizon - cut)
        histories = enumeration.all_strings(oracle.vocab_size, cut)
        rows = np.exp([oracle.score(futures, history) for history in histories])
        assert probability_rank(oracle, cut, 1e-10) == profiles["probability"].ranks[cut]
        assert profiles["probability"].ranks[cut] == enumeration.rank(rows, 1e-10)
        assert logit_rank(oracle, cut) == profiles["logit"].ranks[cut]
        if oracle.vocab_size > 1:
            assert profiles["logit"].ranks[cut] == enumeration.logit_rank(oracle, cut)
    for cut in (*profiles["probability"].cuts, *profiles["logit"].cuts):
        assert cut.first_dropped <= cut.threshold < cut.last_kept or cut.rank == 0
        assert cut.rank <= min(cut.shape)


def test_constant_laws_have_logit_rank_zero():
    for vocab in range(2, 14):
        uniform = HiddenMarkovModel([1.0], [[1.0]], [[1 / vocab] * vocab], 3)
        assert logit_rank(uniform) == 0  # centring leaves rounding, which is not a direction
        assert probability_rank(uniform) == 1
    assert logit_rank(HiddenMarkovModel.random(2, 1, 4, 0)) == 0


def test_impossible_histories_are_left_out_of_the_rank():
    law = np.zeros((2, 2, 2))
    law[0, 0, 0] = law[0, 1, 0] = 0.5  # one continuation each; after 1 any law may follow
    assert rank_profile(Tabular(law), "probability").ranks == (1, 1, 1, 1)
    dfa = ProbabilisticAutomaton.from_dfa([[1, -1], [-1, 0]], 0, 5)
    assert probability_rank(dfa) == 1
    with pytest.raises(ZeroProbabilityError, match="smooth"):
        logit_rank(dfa)


@pytest.mark.parametrize(
    "name",
    ["hmm", "hmm-zeros", "hmm-per-step", "weighted", "weighted-zeros", "pfa", "dfa", "parity", "polynomial"],
)
def test_linear_forms_give_the_same_ranks_without_enumeration(name):
    oracle = ORACLES[name]()
    enumerated = rank_profile(oracle, "probability", tolerance=1e-9)
    linear = rank_profile(oracle, "probability", tolerance=1e-9, max_entries=1)
    assert (enumerated.method, linear.method) == ("enumeration", "linear form")
    assert linear.ranks == enumerated.ranks


def test_linear_forms_give_the_singular_values_of_joint_probabilities():
    oracle = HiddenMarkovModel.random(3, 3, 6, 2)
    cuts = rank_profile(oracle, "probability", max_entries=1).cuts
    joint = np.exp(oracle.score(enumeration.all_strings(3, 6)))
    for cut in cuts[1:-1]:
        sigma = np.linalg.svd(joint.reshape(3**cut.cut, -1), compute_uv=False)
        ratio = (
            cut.last_kept * matrices.TOLERANCES["probability"] / cut.threshold
        )  # the factors are rescaled: only ratios mean something
        assert ratio == pytest.approx(sigma[cut.rank - 1] / sigma[0], rel=1e-9)


def test_long_hidden_markov_models_do_not_underflow():
    ranks = rank_profile(HiddenMarkovModel.random(4, 3, 2000, 0), "probability").ranks
    assert ranks[:3] == (1, 3, 4)
    assert set(ranks[2:-2]) == {4}
    assert ranks[-2:] == (3, 1)


def reference_logits(oracle, histories, futures):
    out = np.empty((len(histories), len(futures), oracle.vocab_size))
    for i, h in enumerate(histories):
        for j, f in enumerate(futures):
            laws = oracle.next_log_probs([list(h) + list(f)])[0]
            out[i, j] = laws - laws.sum() / len(laws)
    return out


def ragged(rng, n, vocab, longest):
    return [rng.integers(0, vocab, rng.integers(0, longest + 1)).tolist() for _ in range(n)]


@given(seed=st.integers(0, 2**32), n_h=st.integers(0, 6), n_f=st.integers(0, 6), k=st.integers(1, 5))
def test_extended_logits_and_kept_tokens(seed, n_h, n_f, k):
    rng = np.random.default_rng(seed)
    oracle = ISAN.random(3, 4, 8, 0)
    histories, futures = ragged(rng, n_h, 4, 4), ragged(rng, n_f, 4, 3)
    expected = reference_logits(oracle, histories, futures)
    full = extended_logits(oracle, histories, futures)
    np.testing.assert_allclose(full, expected, atol=1e-12)
    assert np.abs(full.sum(axis=2)).max(initial=0) < 1e-12
    tokens = rng.integers(0, 4, (n_f, k))
    kept = extended_logits(oracle, histories, futures, tokens, dtype=np.float32)
    assert kept.dtype == np.float32
    assert kept.shape == (n_h, n_f, k)
    for j in range(n_f):
        np.testing.assert_allclose(kept[:, j], expected[:, j, tokens[j]], atol=1e-5)


def test_blocks_do_not_change_matrices(monkeypatch):
    rng = np.random.default_rng(0)
    oracle = HiddenMarkovModel.random(3, 4, 9, 1)
    histories, futures = ragged(rng, 11, 4, 4), ragged(rng, 7, 4, 4)
    tokens = rng.integers(0, 4, (7, 2))
    whole = extended_logits(oracle, histories, futures, tokens)
    sequences = matrices.sequence_logit_matrix(oracle, histories, futures)
    for entries in (1, 10, 40, 100):
        monkeypatch.setattr(matrices, "_BLOCK_ENTRIES", entries)
        np.testing.assert_allclose(extended_logits(oracle, histories, futures, tokens), whole, atol=1e-13)
        again = matrices.sequence_logit_matrix(oracle, histories, futures)
        np.testing.assert_allclose(again, sequences, atol=1e-13)


@pytest.mark.parametrize("name", ["hmm", "hmm-zeros", "isan", "tabular-zeros", "parity"])
def test_sequence_logits_are_scores(name):
    oracle = ORACLES[name]()
    rng = np.random.default_rng(1)
    cut = oracle.horizon // 2
    histories = [*ragged(rng, 5, oracle.vocab_size, cut), []]
    futures = [*ragged(rng, 5, oracle.vocab_size, oracle.horizon - cut), [], []]
    futures += [[0] * (oracle.horizon - cut)]
    matrix = matrices.sequence_logit_matrix(oracle, histories, futures)
    assert matrix.shape == (6, 8)
    for i, history in enumerate(histories):
        for j, future in enumerate(futures):
            expected = oracle.score(np.array([future], dtype=int).reshape(1, -1), history)[0]
            assert matrix[i, j] == pytest.approx(expected, abs=1e-11)
    assert matrices.sequence_logit_matrix(oracle, [], futures).shape == (0, 8)
    assert matrices.sequence_logit_matrix(oracle, histories, []).shape == (6, 0)
    assert matrices.sequence_logit_matrix(oracle, [[]], [[]]).tolist() == [[0.0]]


def test_single_token_logits_of_an_isan_have_rank_at_most_width():
    oracle = ISAN.random(3, 9, 8, 2)
    histories = oracle.sample(60, 0, length=6)
    logits = matrices.single_token_logits(oracle, histories)
    np.testing.assert_allclose(logits, extended_logits(oracle, histories, [[]])[:, 0], atol=1e-12)
    assert np.linalg.matrix_rank(logits, tol=1e-10) == 3


def test_wrong_arguments():
    oracle = HiddenMarkovModel.random(2, 3, 4, 0)
    for tokens in ([0, 1], [[0, 1]], [[[0]]]):
        with pytest.raises(ShapeError, match="tokens"):
            extended_logits(oracle, [[0]], [[0], [1]], tokens)
    for tokens in ([[3], [0]], [[-1], [0]], [[0.0], [1.0]]):
        with pytest.raises(TokenError):
            extended_logits(oracle, [[0]], [[0], [1]], tokens)
    for function in (extended_logits, matrices.sequence_logit_matrix):
        with pytest.raises(HorizonError):
            function(oracle, [[0, 0, 0]], [[0, 0]])
        with pytest.raises(TokenError):
            function(oracle, [[0]], [[7]])
    with pytest.raises(ZeroProbabilityError, match="smooth"):
        extended_logits(ORACLES["hmm-zeros"](), [[]], [[], [0]], [[0], [0]])
    with pytest.raises(ZeroProbabilityError, match="smooth"):
        matrices.single_token_logits(NoisyParity([1, 1], 0.0), [[0, 1]])
    for cut in (-1, 5, 1.0):
        with pytest.raises(ParameterError, match="cut"):
            probability_matrix(oracle, cut)
        with pytest.raises(ParameterError, match="cut"):
            probability_rank(oracle, cut)
    with pytest.raises(ParameterError, match="cut"):
        logit_rank(oracle, 4)
    with pytest.raises(ParameterError, match="kind"):
        rank_profile(oracle, "hankel")
    for tolerance in (-1.0, np.nan, 2.0):
        for cut in (None, 1):
            with pytest.raises(ParameterError, match="tolerance"):
                logit_rank(oracle, cut, tolerance)
            with pytest.raises(ParameterError, match="tolerance"):
                probability_rank(oracle, cut, tolerance)


def test_sizes_are_refused_before_work():
    oracle = HiddenMarkovModel.random(2, 3, 40, 0)
    for compute in (
        lambda: probability_matrix(oracle, 3),
        lambda: probability_matrix(oracle, 40),
        lambda: logit_rank(oracle),
        lambda: logit_rank(oracle, 2),
        lambda: probability_rank(ISAN.random(2, 3, 40, 0)),
    ):
        with pytest.raises(TooLargeError, match=r"3\^40"):
            compute()
    assert probability_rank(oracle, 20) == 2
    with pytest.raises(HorizonError, match="none"):
        logit_rank(ORACLES["unbounded"]())


def test_one_token_and_one_step():
    assert probability_rank(HiddenMarkovModel.random(3, 1, 30, 0)) == 1
    single = HiddenMarkovModel.random(3, 4, 1, 0)
    assert rank_profile(single, "probability").ranks == (1, 1)
    assert rank_profile(single, "logit").ranks == (1,)
    np.testing.assert_allclose(probability_matrix(single, 0), np.exp(single.next_log_probs([[]])))
    np.testing.assert_array_equal(probability_matrix(single, 1), np.ones((4, 1)))
