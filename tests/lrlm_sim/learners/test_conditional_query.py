"""The conditional-query learner: exact on exact answers, root-m on samples, honest about rank and budget."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrlm_sim import distances
from lrlm_sim.confidence import binomial_test_failures
from lrlm_sim.fidelity import fidelity
from lrlm_sim.learners import ConditionalQueryLearner, ExactConditionalLearner
from lrlm_sim.learners import conditional_spanner as module
from lrlm_sim.learners.conditional_constants import conditional_constants
from lrlm_sim.learners.prefix_laws import PrefixLaws
from oracles import (
    Budget,
    ConditionalProbabilityAccess,
    ConditionalSampleAccess,
    HiddenMarkovModel,
    LogitAccess,
    NoisyParity,
    ProbabilisticAutomaton,
    Tabular,
)
from oracles.errors import BudgetError, InconsistentAnswerError, ParameterError, TooLargeError
from oracles.storage import load, save

ROUTES = ["tree", "spanner"]


def near_duplicate_states(gap: float) -> HiddenMarkovModel:
    """Three states, two of which differ by `gap` in emissions and transitions."""
    transition = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.2, 0.5, 0.3]])
    emission = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.1, 0.3, 0.6]])
    emission[2] += [gap, -gap, 0.0]
    transition[2] += [0.0, gap, -gap]
    return HiddenMarkovModel(np.array([0.5, 0.3, 0.2]), transition, emission, 6)


@pytest.mark.parametrize("route", ROUTES)
@settings(max_examples=60)
@given(n_states=st.integers(1, 8), vocab_size=st.integers(1, 8), seed=st.integers(0, 10**6))
def test_exact_probabilities_give_the_exact_model(route, n_states, vocab_size, seed):
    teacher = HiddenMarkovModel.random(n_states, vocab_size, 5 if vocab_size > 4 else 6, rng=seed)
    result = ConditionalQueryLearner(route=route).fit(
        ConditionalProbabilityAccess(teacher, seed=seed), rng=seed
    )
    assert result.status.ok
    assert max(result.model.ranks) <= n_states
    assert distances.total_variation(teacher, result.model) <= 1e-10


@pytest.mark.parametrize("n", [4, 12, 16])
def test_parity_is_learned_exactly_with_two_histories_per_cut(n):
    teacher = NoisyParity(np.random.default_rng(n).integers(0, 2, n), 0.1)
    result = ConditionalQueryLearner(route="spanner").fit(ConditionalProbabilityAccess(teacher), rng=0)
    assert max(result.model.ranks) <= 2
    assert distances.total_variation(teacher, result.model) <= 1e-10
    assert result.ledger.distinct_prefixes < 2 ** (n - 1) or n < 16


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("gap", [1e-1, 1e-2, 1e-3, 1e-4])
def test_near_duplicate_states_do_no_harm(route, gap):
    teacher = near_duplicate_states(gap)
    result = ConditionalQueryLearner(route=route).fit(ConditionalProbabilityAccess(teacher), rng=0)
    assert distances.total_variation(teacher, result.model) <= 1e-10


@pytest.mark.parametrize("route", ROUTES)
def test_edge_cases(route):
    learner = ConditionalQueryLearner(route=route)
    deterministic = ProbabilisticAutomaton.from_dfa(np.array([[1, -1], [-1, 0]]), 0, 6)
    unreachable = Tabular(np.array([[[0.5, 0.0], [0.0, 0.0]], [[0.25, 0.0], [0.0, 0.25]]]))
    for teacher in (
        HiddenMarkovModel.random(2, 3, 1, rng=0),
        HiddenMarkovModel.random(2, 1, 4, rng=0),
        deterministic,
        unreachable,
    ):
        result = learner.fit(ConditionalProbabilityAccess(teacher), rng=0)
        assert distances.total_variation(teacher, result.model) <= 1e-10


def test_total_variation_is_at_most_two_over_root_m():
    """Failure frequency against δ = 5 %: an exact binomial test, false alarm ≤ 1e-9."""
    samples, trials, failures = 400, 40, 0
    for seed in range(trials):
        teacher = HiddenMarkovModel.random(3, 3, 5, rng=seed)
        access = ConditionalSampleAccess(teacher, seed=seed)
        result = ConditionalQueryLearner(rank=3, samples=samples).fit(access, rng=seed)
        failures += distances.total_variation(teacher, result.model) > 2 / np.sqrt(samples)
    assert binomial_test_failures(failures, trials, 0.05) > 1e-9


def test_ten_times_the_samples_give_two_and_a_half_times_less():
    medians = []
    for samples in (100, 1000, 10_000):
        values = []
        for seed in range(12):
            teacher = HiddenMarkovModel.random(3, 3, 5, rng=seed)
            access = ConditionalSampleAccess(teacher, seed=seed + 100)
            result = ConditionalQueryLearner(rank=3, samples=samples).fit(access, rng=seed)
            values.append(distances.total_variation(teacher, result.model))
        medians.append(np.median(values))
    assert medians[0] >= 2.5 * medians[1] >= 6.25 * medians[2]


@pytest.mark.parametrize(("size", "tokens"), [(3, 240_000), (4, 570_000)])
def test_a_tenth_of_the_plain_schemes_samples_is_enough(size, tokens):
    """TV ≤ .05 at a tenth of one estimate per cut and prefix, and better than as many whole strings."""
    prefixes = sum(size**t for t in range(6))
    for seed in range(4):
        teacher = HiddenMarkovModel.random(size, size, 6, rng=seed)
        access = ConditionalSampleAccess(teacher, seed=seed)
        result = ConditionalQueryLearner(rank=size, samples=tokens // prefixes).fit(access, rng=seed)
        assert result.ledger.generated_tokens <= tokens
        learned = distances.total_variation(teacher, result.model)
        assert learned <= 0.05
        strings, counts = np.unique(teacher.sample(tokens // 6, seed + 10), axis=0, return_counts=True)
        empirical = np.zeros((size,) * 6)
        empirical[tuple(strings.T)] = counts / counts.sum()
        assert learned < distances.total_variation(teacher, Tabular(empirical))


def test_rank_given_too_small_is_said():
    teacher = HiddenMarkovModel.random(3, 4, 5, rng=1)
    for route in ROUTES:
        exact = ConditionalQueryLearner(rank=2, route=route).fit(ConditionalProbabilityAccess(teacher), rng=0)
        assert exact.status.code == "rank_too_small"
        assert "3" in exact.status.remedy
    access = ConditionalSampleAccess(teacher, seed=0)
    sampled = ConditionalQueryLearner(rank=1, samples=20_000).fit(access, rng=0)
    assert sampled.status.code == "rank_too_small"


def test_fidelity_hurts_the_submatrix_learner_and_not_this_one():
    gaps, submatrix, spanner = (0.2, 0.02), [], []
    for gap in gaps:
        teacher = near_duplicate_states(gap)
        assert fidelity(teacher).value < gap
        access = ConditionalSampleAccess(teacher, seed=3)
        exact = ExactConditionalLearner(samples=20_000, tolerance=1e-4, max_rank=3).fit(access, rng=0)
        submatrix.append(distances.total_variation(teacher, exact.model))
        access = ConditionalSampleAccess(teacher, seed=3)
        learned = ConditionalQueryLearner(rank=3, samples=2000).fit(access, rng=0)
        spanner.append(distances.total_variation(teacher, learned.model))
    assert max(spanner) < 0.03
    assert max(submatrix) > 3 * max(spanner)


def test_budget_error_carries_what_was_learned():
    teacher = HiddenMarkovModel.random(2, 3, 6, rng=0)
    for route in ROUTES:
        access = ConditionalSampleAccess(teacher, budget=Budget(generated_tokens=20_000))
        with pytest.raises(BudgetError) as caught:
            ConditionalQueryLearner(rank=2, samples=2000, route=route).fit(access, rng=0)
        assert caught.value.ledger.generated_tokens <= 20_000
        assert caught.value.partial


def test_wrong_inputs_are_typed_errors():
    teacher = HiddenMarkovModel.random(2, 2, 3, rng=0)
    with pytest.raises(ParameterError, match="needs ConditionalSampleAccess or ConditionalProbabilityAccess"):
        ConditionalQueryLearner().fit(LogitAccess(teacher))
    with pytest.raises(ParameterError, match="rank is needed"):
        ConditionalQueryLearner().fit(ConditionalSampleAccess(teacher))
    with pytest.raises(ParameterError, match="postprocess"):
        ConditionalQueryLearner(postprocess="magic")


def test_the_learned_sampler_is_an_oracle_that_can_be_saved(tmp_path):
    teacher = HiddenMarkovModel.random(3, 3, 5, rng=2)
    access = ConditionalSampleAccess(teacher, seed=0)
    model = ConditionalQueryLearner(rank=3, samples=500).fit(access, rng=0).model
    again = load(save(model, tmp_path / "model.safetensors"))
    strings = model.sample(50, 1)
    np.testing.assert_array_equal(model.score(strings), again.score(strings))


def test_without_children_in_the_pool_exactness_is_lost(monkeypatch):
    """Mutation: a pool of sampled prefixes alone does not span the children of the spanner."""
    monkeypatch.setattr(module, "_pool", lambda prefixes, children: np.unique(prefixes, axis=0))
    worst = 0.0
    for seed in range(12):
        teacher = HiddenMarkovModel.random(6, 3, 6, rng=seed, concentration=0.1)
        learner = ConditionalQueryLearner(route="spanner", pool=8)
        result = learner.fit(ConditionalProbabilityAccess(teacher, seed=seed), rng=seed)
        worst = max(worst, distances.total_variation(teacher, result.model))
    assert worst > 1e-6


# The spanner route from conditional samples.


@pytest.mark.parametrize("n", [12, 20])
def test_noisy_parity_is_recovered_from_conditional_samples(n):
    """A model at chance has TV ½ − ν = .4; four times less is out of its reach."""
    teacher = NoisyParity.random(n, 0.1, n)
    learner = ConditionalQueryLearner(rank=2, samples=500, pool=4, futures=16, route="spanner")
    result = learner.fit(ConditionalSampleAccess(teacher, seed=n), rng=n)
    assert result.status.ok
    assert max(result.model.ranks) == 2
    assert distances.total_variation(teacher, result.model) < 0.1


def test_truncated_futures_are_blind_to_parity():
    teacher = NoisyParity.random(8, 0.1, 1)
    learner = ConditionalQueryLearner(rank=2, samples=1000, future_length=2, route="spanner")
    result = learner.fit(ConditionalSampleAccess(teacher, seed=0), rng=0)
    assert distances.total_variation(teacher, result.model) > 0.3


def test_too_small_a_rank_is_said_on_the_spanner_route_with_samples():
    teacher = HiddenMarkovModel.random(3, 4, 5, rng=1)
    learner = ConditionalQueryLearner(rank=1, samples=20_000, route="spanner")
    assert learner.fit(ConditionalSampleAccess(teacher, seed=0), rng=0).status.code == "rank_too_small"


def test_the_right_rank_raises_no_alarm_with_samples():
    for seed in range(8):
        teacher = HiddenMarkovModel.random(2, 3, 5, rng=seed)
        learner = ConditionalQueryLearner(rank=2, samples=400, route="spanner")
        result = learner.fit(ConditionalSampleAccess(teacher, seed=seed), rng=seed)
        assert result.status.ok
        assert distances.total_variation(teacher, result.model) < 2 / np.sqrt(400)


def test_deterministic_and_unreachable_histories_with_samples():
    deterministic = ProbabilisticAutomaton.from_dfa(np.array([[1, -1], [-1, 0]]), 0, 6)
    unreachable = Tabular(np.array([[[0.5, 0.0], [0.0, 0.0]], [[0.25, 0.0], [0.0, 0.25]]]))
    for teacher in (deterministic, unreachable, HiddenMarkovModel.random(2, 1, 4, rng=0)):
        for route in ROUTES:
            learner = ConditionalQueryLearner(rank=2, samples=2000, route=route)
            result = learner.fit(ConditionalSampleAccess(teacher, seed=0), rng=0)
            assert distances.total_variation(teacher, result.model) < 0.05


def test_estimates_are_shared_topped_up_and_split_in_halves():
    teacher = HiddenMarkovModel.random(2, 3, 4, rng=0)
    access = ConditionalSampleAccess(teacher, seed=0)
    laws = PrefixLaws(access, 100, 0.0)
    prefixes = np.array([[0], [1], [0]])
    first = laws.laws(prefixes)
    np.testing.assert_array_equal(first[0], first[2])
    assert access.ledger.calls == 200
    np.testing.assert_array_equal(laws.laws(prefixes, 50), first)
    laws.laws(prefixes, 300)
    assert access.ledger.calls == 600
    stack = laws.future_estimates(prefixes, [[0], [1], [2]], 300)
    np.testing.assert_allclose(stack.sum(axis=2), 1, atol=1e-12)
    np.testing.assert_allclose(stack[0], (stack[1] + stack[2]) / 2, atol=0.01)
    assert np.abs(stack[1] - stack[2]).max() > 0


# The theory preset.


def test_constants_follow_their_formula_at_horizon_one():
    """T = 1: F_ζ = 1, so ζ = ε and m is the root of √((A−1)/m) + 1/m + √(2 log(2/δ)/m) = ε."""
    sizes = conditional_constants(2, 3, 1, 0.1, 0.05)
    m = sizes.samples
    bound = [np.sqrt(2 / k) + 1 / k + np.sqrt(2 * np.log(2 / 0.05) / k) for k in (m, 0.97 * m)]
    assert sizes.zeta == pytest.approx(0.1)
    assert bound[0] <= 0.1 < bound[1]
    assert sizes.prefixes == 1


def test_constants_grow_with_accuracy_confidence_rank_and_horizon():
    base = conditional_constants(2, 2, 3, 0.5, 0.1).samples
    for harder in ((2, 2, 3, 0.25, 0.1), (2, 2, 3, 0.5, 0.01), (3, 2, 5, 0.5, 0.1), (2, 2, 4, 0.5, 0.1)):
        assert conditional_constants(*harder).samples > base


def test_the_theory_preset_runs_and_keeps_its_promise():
    """P(TV > ε) ≤ δ = 1e-3 is proved; the bound is loose, so the seeds here stay far inside it."""
    for seed in range(4):
        teacher = HiddenMarkovModel.random(2, 2, 3, rng=seed)
        learner = ConditionalQueryLearner(rank=2, preset="theory", epsilon=0.9, delta=1e-3)
        access = ConditionalSampleAccess(teacher, seed=seed)
        result = learner.fit(access, rng=seed)
        sizes = conditional_constants(2, 2, 3, 0.9, 1e-3)
        assert distances.total_variation(teacher, result.model) <= 0.9
        assert distances.total_variation(teacher, result.model) <= 0.05
        assert access.ledger.calls <= sizes.total_samples + sizes.pool
        assert result.stats["max_coefficient"] <= 2 + 1e-6


def test_the_theory_preset_does_not_span_laws_of_impossible_histories():
    """Such a law is whatever the model answers: as a candidate it cost TV .55 at ε = .3 on this table."""
    table = np.zeros((12, 12))
    table[0, 0] = 0.05
    table[1, :3] = 0.95 * np.array([0.3, 0.35, 0.35])
    teacher = Tabular(table)
    learner = ConditionalQueryLearner(rank=2, preset="theory", epsilon=0.5, delta=0.1)
    result = learner.fit(ConditionalSampleAccess(teacher, seed=0), rng=0)
    assert result.status.ok
    assert distances.total_variation(teacher, result.model) <= 0.05


def test_where_every_history_is_chosen_the_error_is_that_of_the_estimates():
    """S ≥ A^(T−1): the sampler is P̂, TV ≤ ζ/2 + T/2m ≤ ζ = ε, within the samples for twice that error."""
    for rank, horizon in ((2, 2), (4, 3), (8, 4)):
        sizes = conditional_constants(rank, 2, horizon, 0.5, 0.1)
        assert sizes.zeta == 0.5
        assert horizon / sizes.samples <= sizes.zeta
        assert sizes.samples < conditional_constants(rank - 1, 2, horizon, 0.5, 0.1).samples / 10


def test_one_token_costs_what_the_constants_say():
    single = Tabular(np.ones((1, 1, 1)))
    access = ConditionalSampleAccess(single, seed=0)
    ConditionalQueryLearner(rank=1, preset="theory", epsilon=0.5, delta=0.1).fit(access, rng=0)
    sizes = conditional_constants(1, 1, 3, 0.5, 0.1)
    assert access.ledger.calls <= sizes.total_samples + sizes.pool


@pytest.mark.parametrize("horizon", [6, 100, 3000])
def test_the_theory_preset_says_what_it_would_need(horizon):
    teacher = HiddenMarkovModel.random(3, 3, horizon, rng=0)
    with pytest.raises(TooLargeError, match="samples"):
        ConditionalQueryLearner(rank=3, preset="theory").fit(ConditionalSampleAccess(teacher))


@pytest.mark.parametrize("route", ROUTES)
def test_a_teacher_that_changes_its_answers_is_refused(route, monkeypatch):
    teacher, calls = HiddenMarkovModel.random(2, 3, 4, rng=0), []
    original = HiddenMarkovModel.laws

    def drifting(self, position, rows):
        calls.append(position)
        laws = np.exp(original(self, position, rows))
        laws[:, 0] += 1e-4 * len(calls)
        return np.log(laws / laws.sum(axis=1, keepdims=True))

    monkeypatch.setattr(HiddenMarkovModel, "laws", drifting)
    with pytest.raises(InconsistentAnswerError, match="answered the same questions differently"):
        ConditionalQueryLearner(route=route).fit(ConditionalProbabilityAccess(teacher), rng=0)
