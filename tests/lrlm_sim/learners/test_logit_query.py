"""The logit-query learner: exact on exact answers within the stated queries, honest about everything else."""

from fractions import Fraction
from math import ceil, log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrlm_sim import distances, matrices
from lrlm_sim.learners import logit_epochs as epochs
from lrlm_sim.learners.logit_constants import theory_constants
from lrlm_sim.learners.logit_cuts import Spectrum, close
from lrlm_sim.learners.logit_epochs import Epochs
from lrlm_sim.learners.logit_noise import noise_deviation
from lrlm_sim.learners.logit_query import LogitQueryLearner
from lrlm_sim.learners.logit_rows import RowMemory
from lrlm_sim.learners.logit_validation import find_witness
from lrlm_sim.spanners import sample_compression_size
from oracles import (
    ISAN,
    HiddenMarkovModel,
    LogitAccess,
    NoisyParity,
    Oracle,
    SampleAccess,
    Tabular,
    open_oracle,
)
from oracles.errors import BudgetError, HorizonError, ParameterError, TooLargeError, ZeroProbabilityError

EXACT = [
    "parity:n=8,noise=0.05",
    "cauchy:n=5",
    "copy:length=3,vocab_size=3,noise=0.2",
    "copy:length=3,vocab_size=4,noise=0.1",
    "branching:n_bits=4,n_copies=3",
    "hmm:n_states=2,vocab_size=3,horizon=5",
    "hmm:n_states=2,vocab_size=3,horizon=1",
    "polynomial:n=6,terms=3",
    "ngram:order=2,vocab_size=3,horizon=6",
]


@pytest.mark.parametrize("spec", EXACT)
def test_exact_answers_give_the_exact_model_in_one_epoch(spec):
    teacher = open_oracle(spec)
    result = LogitQueryLearner().fit(LogitAccess(teacher), rng=0)
    assert result.status.ok, result.status
    assert result.stats["epochs"] == 1
    assert distances.total_variation(teacher, result.model) < 1e-9


@settings(max_examples=40)
@given(
    width=st.integers(1, 4),
    vocab_size=st.integers(1, 5),
    horizon=st.integers(1, 5),
    orthogonal=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_random_isans_are_learned_exactly_with_minimal_ranks(width, vocab_size, horizon, orthogonal, seed):
    teacher = ISAN.random(width, vocab_size, horizon, rng=seed, orthogonal=orthogonal)
    result = LogitQueryLearner().fit(LogitAccess(teacher, seed=seed), rng=seed)
    assert result.status.ok, result.status
    assert distances.total_variation(teacher, result.model) < 1e-9
    assert max(result.stats["ranks"]) <= max(1, matrices.logit_rank(teacher)) <= width


@pytest.mark.parametrize(
    ("spec", "most"),
    [
        ("cauchy:n=10", 9_471),
        ("parity:n=20", 3_996),
        ("isan:width=4,vocab_size=4,horizon=20", 9_779),
        ("isan:width=4,vocab_size=16,horizon=10", 9_779),
    ],
)
def test_queries_stay_below_those_of_the_handbook(spec, most):
    teacher = open_oracle(spec)
    access = LogitAccess(teacher)
    result = LogitQueryLearner().fit(access, rng=0)
    assert result.status.ok
    assert result.stats["epochs"] == 1
    assert access.ledger.calls <= most
    strings = teacher.sample(500, rng=1)
    np.testing.assert_allclose(result.model.score(strings), teacher.score(strings), atol=1e-9)


def test_no_string_is_asked_twice():
    """Rows asked = distinct prefixes, though the access has no cache and three epochs need the same rows."""
    teacher = NoisyParity.random(5, 0.1, 0)
    access = LogitAccess(teacher)
    result = LogitQueryLearner(closure=False).fit(access, rng=0)
    assert result.stats["epochs"] > 2
    drawn = access.ledger.generated_tokens // teacher.horizon
    assert access.ledger.calls - drawn == access.ledger.distinct_prefixes


def test_horizon_100_by_certificate():
    teacher = ISAN.random(3, 3, 100, rng=0)
    result = LogitQueryLearner(sampler="qr").fit(LogitAccess(teacher), rng=0)
    assert result.status.ok
    certificate = distances.certify(LogitAccess(teacher, seed=1), result.model, 60)
    assert certificate.estimate < 1e-9
    assert certificate.telescoping.estimate < 1e-9


@pytest.mark.parametrize("sampler", ["qr", "lp", "box", "ridge"])
def test_every_sampler_is_exact_on_exact_answers(sampler):
    teacher = ISAN.random(3, 3, 5, rng=4)
    result = LogitQueryLearner(sampler=sampler).fit(LogitAccess(teacher), rng=0)
    assert result.status.ok, result.status
    assert result.stats["sampler"] == result.model.method == sampler
    assert distances.total_variation(teacher, result.model) < 1e-9


def test_without_closure_words_are_found_by_witnesses():
    teacher = open_oracle("cauchy:n=3")
    result = LogitQueryLearner(closure=False).fit(LogitAccess(teacher), rng=0)
    stats = result.stats
    assert result.status.ok
    assert stats["epochs"] > 1
    assert 0 < max(stats["witness_words"]) <= stats["witness_bound"]
    assert sum(stats["witness_words"]) == sum(stats["contexts"]) - teacher.horizon
    assert distances.total_variation(teacher, result.model) < 1e-9


def test_each_witness_word_separates_what_the_words_before_it_did_not():
    """A witness is a word on which two combinations differ that agree on every word of its cut so far."""
    teacher = NoisyParity.random(5, 0.1, 3)
    access = LogitAccess(teacher)
    learner = LogitQueryLearner(closure=False)
    run = Epochs(access, learner._settings(6, 0.0), np.random.default_rng(0))
    run._learn_cuts()
    chain = run._chain()
    string = np.array([1, 0, 1, 1, 0])
    witness = find_witness(chain, [cut.histories for cut in run.cuts], string, 0, RowMemory(access), "qr")
    label = teacher.next_log_probs([string])[0]
    assert witness.gap == pytest.approx(abs(label[0] - label.mean()), rel=1e-9)  # predicted: 0
    assert witness.context == tuple(string[witness.cut :])
    assert witness.cut >= 1


NOISY = ISAN.random(4, 4, 30, rng=1)


@pytest.mark.parametrize("noise", [1e-3, "estimate"])
def test_overestimated_rank_under_noise(noise):
    access = LogitAccess(NOISY, noise=1e-3)
    result = LogitQueryLearner(rank=6, noise=noise).fit(access, rng=0)
    assert result.status.ok, result.status
    assert max(result.stats["ranks"]) == 6
    assert max(result.stats["numerical_ranks"]) == 4
    assert distances.estimate_total_variation(NOISY, result.model, 2000, 0.95, rng=1).estimate < 0.03
    assert result.stats["noise"] == pytest.approx(1e-3, rel=0.15)
    assert set(result.stats["sampler_scores"]) == {"ridge", "box", "qr", "lp"}


def test_rank_found_under_noise():
    result = LogitQueryLearner(noise=1e-3, sampler="ridge").fit(LogitAccess(NOISY, noise=1e-3), rng=0)
    assert result.status.ok
    assert max(result.stats["ranks"]) == 4
    assert distances.estimate_total_variation(NOISY, result.model, 2000, 0.95, rng=1).estimate < 0.03


def test_underestimated_rank_is_reported_with_the_rank_found():
    for noise in (0.0, 1e-3):
        learner = LogitQueryLearner(rank=3, noise=noise, sampler="ridge")
        result = learner.fit(LogitAccess(NOISY, noise=noise), rng=0)
        assert result.status.code == "rank_too_small"
        assert "numerical rank 4" in result.status.remedy


def test_noise_above_the_threshold_is_not_accepted():
    learner = LogitQueryLearner(rank=4, noise=1e-2, tolerance=1e-3, sampler="ridge", epochs=2)
    result = learner.fit(LogitAccess(NOISY, noise=1e-2), rng=0)
    assert result.status.code == "not_accepted"
    assert result.stats["epochs"] == 2
    assert "noise" in result.status.remedy


def test_undeclared_noise_is_not_accepted():
    result = LogitQueryLearner(max_pool=32).fit(LogitAccess(NOISY, noise=1e-2), rng=0)
    assert result.status.code == "not_accepted"
    assert "noise" in result.status.remedy


def test_estimated_noise_of_exact_answers_is_zero():
    teacher = ISAN.random(2, 3, 12, rng=0)
    result = LogitQueryLearner(noise="estimate").fit(LogitAccess(teacher), rng=0)
    assert result.status.ok
    assert result.stats["noise"] == 0
    assert result.stats["validation_discrepancy"] < 1e-9


def test_a_teacher_without_structure_is_not_accepted_as_noise():
    """Full rank: the estimate takes most of it for noise, and the threshold does not follow."""
    laws = np.random.default_rng(0).dirichlet(np.full(3**6, 0.3)).reshape((3,) * 6)
    result = LogitQueryLearner(noise="estimate", pool=32).fit(LogitAccess(Tabular(laws)), rng=0)
    assert result.stats["noise"] > 0.5
    assert result.stats["tolerance"] == 1.0
    assert not result.status.ok


def test_dropped_directions_are_projected_out(monkeypatch):
    """Mutation: the spanner's own rows in place of their projections give a larger error (3-seed medians)."""
    teacher = open_oracle("hmm:n_states=3,vocab_size=3,horizon=8")
    learner = LogitQueryLearner(rank=3, sampler="box", pool=32, epochs=1)

    def median_error():
        fits = [learner.fit(LogitAccess(teacher, seed=seed), rng=seed) for seed in range(3)]
        assert {fit.status.code for fit in fits} == {"rank_too_small"}
        return np.median([fit.stats["validation_total_variation"] for fit in fits])

    projected = median_error()
    plain = epochs.span
    monkeypatch.setattr(epochs, "span", lambda *arguments: plain(*arguments[:7], False, arguments[8]))
    assert projected < 0.75 * median_error()


@given(rank=st.integers(0, 8), rows=st.integers(20, 40), columns=st.integers(20, 90), seed=st.integers(0, 99))
def test_noise_deviation_of_low_rank_plus_noise(rank, rows, columns, seed):
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns))
    noise = rng.uniform(-1, 1, (rows, columns)) * np.sqrt(3) * 0.01
    sigma = np.linalg.svd(signal + noise, compute_uv=False)
    assert noise_deviation(sigma, rows, columns) == pytest.approx(0.01, rel=0.2)


@given(rank=st.integers(1, 6), contexts=st.integers(3, 12), seed=st.integers(0, 999))
def test_closure_reaches_the_rank_and_no_more_than_it_needs(rank, contexts, seed):
    rng = np.random.default_rng(seed)
    grid = rng.standard_normal((16, rank)) @ rng.standard_normal((rank, contexts * 3))
    grid = grid.reshape(16, contexts, 3)
    spectrum = Spectrum.of(grid, 0.0)
    chosen = close(spectrum, spectrum.found, [0])
    assert spectrum.found == np.linalg.matrix_rank(grid.reshape(16, -1))
    assert np.linalg.matrix_rank(grid[:, chosen].reshape(16, -1)) == spectrum.found
    assert chosen[0] == 0
    assert len(set(chosen)) == len(chosen)
    restricted = spectrum.right[: spectrum.found, chosen].reshape(spectrum.found, -1)
    assert np.linalg.svd(restricted, compute_uv=False)[-1] >= 0.1 - 1e-12
    if len(chosen) > 1:
        without = spectrum.right[: spectrum.found, chosen[:-1]].reshape(spectrum.found, -1)
        assert without.shape[1] < spectrum.found or np.linalg.svd(without, compute_uv=False)[-1] < 0.1


def test_a_model_that_fails_validation_is_never_a_success(monkeypatch):
    """Mutation: without the added contexts parity cannot be learned in one epoch, and the cap says so."""
    monkeypatch.setattr("lrlm_sim.learners.logit_epochs.close", lambda spectrum, rank, chosen: [0])
    monkeypatch.setattr(Epochs, "_witness", lambda *arguments: None)
    result = LogitQueryLearner(epochs=3).fit(LogitAccess(NoisyParity.random(6, 0.05, 0)), rng=0)
    assert result.status.code == "not_accepted"
    assert result.stats["epochs"] == 3


def test_spanner_and_diagnostics():
    result = LogitQueryLearner().fit(LogitAccess(ISAN.random(4, 3, 8, rng=0)), rng=0)
    stats = result.stats
    assert max(stats["spanner_coefficients"]) <= 2 * (1 + 1e-8)
    assert stats["words"] == [3 * n for n in stats["contexts"]]
    assert len(stats["validation_discrepancies"]) == 8
    assert stats["infeasible"] == 0
    assert stats["theory"]["request_bound"] > 1e12 * stats["requests"]
    assert [len(readout) for readout in result.model.readouts] == stats["ranks"]


@pytest.mark.parametrize("calls", [0, 1, 16, 100, 500])
def test_budget_errors_carry_what_was_learned(calls):
    teacher = ISAN.random(3, 3, 10, rng=0)
    with pytest.raises(BudgetError) as caught:
        LogitQueryLearner().fit(LogitAccess(teacher, budget=calls), rng=0)
    assert caught.value.ledger.calls <= calls
    partial = caught.value.partial
    assert len(partial["contexts"]) == 10
    assert partial["cuts_learned"] == sorted(partial["cuts_learned"])
    assert (len(partial["cuts_learned"]) > 0) == (calls >= 100)


def test_budget_error_during_the_noise_probe_has_the_same_form():
    with pytest.raises(BudgetError) as caught:
        LogitQueryLearner(noise="estimate").fit(LogitAccess(NOISY, budget=200), rng=0)
    assert caught.value.partial["epochs"] == []


@given(seed=st.integers(0, 1000))
@settings(max_examples=5)
def test_same_seeds_same_model_whatever_the_cache(seed):
    teacher = ISAN.random(3, 3, 6, rng=seed)
    learner = LogitQueryLearner(noise=1e-3)
    fits = [
        learner.fit(LogitAccess(teacher, seed=seed, noise=1e-3, cache=cache), rng=seed)
        for cache in (None, None, True)
    ]
    for other in fits[1:]:
        assert other.ledger == fits[0].ledger
        for mine, its in zip(fits[0].model.moves, other.model.moves, strict=True):
            np.testing.assert_array_equal(mine, its)


class Endless(Oracle):
    """A coin that remembers its last toss, for ever."""

    vocab_size, horizon = 2, None

    def start(self, batch):
        return np.zeros(batch, dtype=np.int64)

    def advance(self, state, tokens):
        chunk = np.asarray(tokens).reshape(len(state), -1)
        return chunk[:, -1] if chunk.shape[1] else state

    def log_probs(self, state):
        return np.log(np.where(np.eye(2, dtype=bool)[state], 0.8, 0.2))

    def take(self, state, rows):
        return state[rows]


def test_unbounded_teachers_need_a_horizon():
    with pytest.raises(HorizonError, match="LogitQueryLearner"):
        LogitQueryLearner().fit(LogitAccess(Endless()), rng=0)
    result = LogitQueryLearner(horizon=5).fit(LogitAccess(Endless()), rng=0)
    assert result.status.ok
    assert result.model.horizon == 5
    strings = Endless().sample(50, rng=0, length=5)
    np.testing.assert_allclose(result.model.score(strings), Endless().score(strings), atol=1e-10)


def test_wrong_inputs_are_typed_errors():
    teacher = HiddenMarkovModel.random(2, 2, 3, rng=0)
    with pytest.raises(ParameterError, match="needs LogitAccess, got SampleAccess"):
        LogitQueryLearner().fit(SampleAccess(teacher))
    with pytest.raises(HorizonError, match="past the teacher's 3"):
        LogitQueryLearner(horizon=4).fit(LogitAccess(teacher))
    with pytest.raises(ZeroProbabilityError, match="smooth"):
        LogitQueryLearner().fit(LogitAccess(Tabular(np.array([[0.5, 0.0], [0.25, 0.25]]))), rng=0)
    with pytest.raises(ParameterError, match="give noise as a number"):
        LogitQueryLearner(noise="estimate").fit(LogitAccess(teacher), rng=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rank": 0}, "rank must be at least 1"),
        ({"noise": -1.0}, "noise"),
        ({"noise": float("nan")}, "noise"),
        ({"noise": "guess"}, "'estimate'"),
        ({"sampler": "joint"}, "sampler must be one of"),
        ({"preset": "quick"}, "preset must be one of"),
        ({"preset": "theory"}, "needs rank and logit_bound"),
        ({"closure": 1}, "closure"),
        ({"spanner_bound": 1.0}, "spanner_bound"),
        ({"box": 0.5}, "box"),
        ({"pool": 64, "max_pool": 32}, "max_pool"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_wrong_parameters(wrong, message):
    with pytest.raises(ParameterError, match=message):
        LogitQueryLearner(**wrong)


@given(
    horizon=st.integers(1, 200),
    rank=st.integers(1, 20),
    bound=st.integers(0, 30),
    epsilon=st.sampled_from([1.0, 0.5, 0.1, 1e-3]),
    delta=st.sampled_from([0.5, 0.05, 1e-6]),
)
def test_theory_constants_satisfy_what_the_proof_uses(horizon, rank, bound, epsilon, delta):
    c = theory_constants(horizon, rank, bound, epsilon, delta)
    assert c.error_budget <= epsilon / 2
    assert 0 < c.noise <= c.discrepancy / (1024 * c.epochs) < 2 * c.noise * np.sqrt(rank * c.J)
    assert np.log2(c.noise) == round(np.log2(c.noise))
    assert c.words_per_cut * horizon * 8 == c.epochs  # an epoch per word, eightfold
    assert c.proved == (horizon >= 32)
    dimension = 6 * c.epochs  # most words of an extended set
    histories = sample_compression_size(dimension, c.miss_mass, c.spanner_failure)
    assert histories <= 2 / c.miss_mass * (dimension + 1) * c.log_factor + 1
    assert c.epochs * dimension * histories <= c.request_bound


def test_theory_constants_of_one_instance_by_exact_arithmetic():
    c = theory_constants(32, 2, 3, 0.125, 0.0625)
    eps, delta, T, d = Fraction(1, 8), Fraction(1, 16), 32, 2
    J = ceil(log2(2 * T * d * 7 / (eps * delta))) + 64
    K = 512 * T * d * J
    g = eps / (32 * T**2)
    n = ceil(ceil(log2(32 * K * T / delta)) / g)
    eta = eps / (3 * T**2 * n)
    H = max(ceil(log2(12 * K / eta)), ceil(log2((6 * K + 1) * 32 * K * T / delta)))
    requests = ceil(900 * H * K**3 / eta) + 24 * n * T**3 * K**2 + K * n + 18 * T * K
    assert (c.J, c.epochs, c.validation, c.log_factor) == (J, K, n, H)
    assert Fraction(c.discrepancy) == g
    assert abs(c.request_bound / requests - 1) < 1e-12


def test_theory_preset_runs_where_it_can_and_names_the_number_elsewhere():
    teacher = ISAN.random(2, 2, 3, rng=0)
    access = LogitAccess(teacher)
    learner = LogitQueryLearner(preset="theory", rank=2, logit_bound=3, epsilon=0.5)
    result = learner.fit(access, rng=0)
    constants = theory_constants(3, 2, 3, 0.5, 0.05)
    assert result.status.ok
    assert result.stats["tolerance"] == constants.discrepancy
    assert distances.total_variation(teacher, result.model) < 1e-9
    assert constants.validation <= access.ledger.calls <= constants.request_bound
    with pytest.raises(TooLargeError, match=r"strings per epoch .* requests in all"):
        learner.fit(LogitAccess(ISAN.random(2, 2, 40, rng=0)), rng=0)
    with pytest.raises(ParameterError, match="tolerates"):
        LogitQueryLearner(preset="theory", rank=2, logit_bound=3, noise=1e-3).fit(access, rng=0)
