"""Sketches against exact ℓ1 norms on models whose futures can be enumerated."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import linprog

from lrlm_sim.sketches import (
    draw_mixture_futures,
    exact_representativeness,
    mixture_log_proposal,
    representative_vectors,
    representative_vectors_from_logs,
    search_representativeness,
    sufficient_sample_size,
    transfer_bound,
    transfer_errors,
)
from lrlm_sim.spanners import barycentric_spanner
from oracles.errors import NonFiniteError, ParameterError, ProbabilityError, ShapeError, TooLargeError
from oracles.hmm import HiddenMarkovModel


def sticky(states, vocab_size, horizon, seed):
    """A model whose histories matter: states are kept and tokens tell them apart."""
    stay = 0.85 * np.eye(states) + 0.15 / states
    emission = np.random.default_rng(seed).dirichlet(np.full(vocab_size, 0.5), states)
    return HiddenMarkovModel(np.full(states, 1 / states), stay, emission, horizon)


def enumerated(states, vocab_size, horizon, cut, seed):
    """Model, all histories of length `cut`, and the exact P(f | h) of every future."""
    model = sticky(states, vocab_size, horizon, seed)
    histories = np.array(list(itertools.product(range(vocab_size), repeat=cut)))
    futures = np.array(list(itertools.product(range(vocab_size), repeat=horizon - cut)))
    laws = np.exp([model.score(futures, history=h) for h in histories])
    return model, histories, futures, laws


def sketch(model, histories, selected, m, seed):
    """Vectors of all histories from m futures of the mixture over the selected ones."""
    rng = np.random.default_rng(seed)
    futures, _ = draw_mixture_futures(
        lambda i, count: model.sample(count, rng, history=histories[selected[i]]), len(selected), m, rng
    )
    logs = np.array([model.score(futures, history=h) for h in histories])
    return representative_vectors_from_logs(logs, mixture_log_proposal(logs[selected]))


def gap(c, vectors, laws):
    return np.abs(c @ vectors).sum(axis=-1) - np.abs(c @ laws).sum(axis=-1)


@given(seed=st.integers(0, 10**6), n=st.integers(1, 5))
def test_unbiased(seed, n):
    """Σ_f D(f) ‖Σ c v(f)‖_1 over single draws f is the ℓ1 norm, whatever D is."""
    rng = np.random.default_rng(seed)
    laws, proposal, c = rng.dirichlet(np.ones(12), n), rng.dirichlet(np.ones(12)), rng.uniform(-1, 1, n)
    single = np.hstack([representative_vectors(laws[:, [j]], proposal[[j]]) for j in range(12)])
    assert np.abs(c @ single) @ proposal == pytest.approx(np.abs(c @ laws).sum(), rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_norms_of_combinations_are_estimated(seed):
    """False alarm 1e-9: 40 means of m terms in [0, 3], each off by 3·sqrt(log(2·40/1e-9)/(2m)) at most."""
    model, histories, _, laws = enumerated(3, 3, 6, 2, seed)
    selected, m = [0, 4, 8], 20000
    vectors = sketch(model, histories, selected, m, seed)[selected]
    combinations = np.random.default_rng(seed).uniform(-1, 1, (40, 3))
    allowed = 3 * math.sqrt(math.log(2 * 40 / 1e-9) / (2 * m))
    assert np.abs(gap(combinations, vectors, laws[selected])).max() <= allowed
    assert vectors.max() <= 3 / m * (1 + 1e-12)  # the mixture bounds every coordinate


def test_sufficient_sample_size_suffices():
    """Fails with probability ≤ 1e-9 each, exactly measured."""
    for seed, gamma in ((0, 0.3), (1, 0.2)):
        model, histories, _, laws = enumerated(2, 2, 6, 2, seed)
        m = sufficient_sample_size(gamma, 1e-9, 2)
        vectors = sketch(model, histories, [0, 3], m, seed)[[0, 3]]
        measured = exact_representativeness(vectors, laws[[0, 3]])
        assert measured.exact
        assert 0 < measured.gamma <= gamma


def test_wrong_importance_weights_are_not_representative():
    """What the two tests above would see: weights of another law, or no weights at all."""
    model, histories, futures, laws = enumerated(3, 2, 7, 2, 0)
    rng = np.random.default_rng(0)
    drawn, source = draw_mixture_futures(
        lambda i, count: model.sample(count, rng, history=histories[[0, 3][i]]), 2, 20000, rng
    )
    column = drawn @ 2 ** np.arange(4, -1, -1)
    assert (futures[column] == drawn).all()
    seen, mixture = laws[:, column], laws[[0, 3]].mean(axis=0)
    right = exact_representativeness(representative_vectors(seen, mixture[column])[:3], laws[:3])
    for wrong in (np.full(len(column), 1 / 32), laws[0, column], np.sqrt(mixture[column] / 32)):
        assert exact_representativeness(representative_vectors(seen, wrong)[:3], laws[:3]).gamma > 0.1
    assert right.gamma < 0.05
    assert set(source) == {0, 1}


def linear_programs(vectors, laws):
    """The exact maximum by one linear program per sign pattern of the norm that is maximised."""
    best = 0.0
    n = len(laws)
    for gains, losses in ((vectors, laws), (laws, vectors)):
        size = losses.shape[1]
        above = np.block([[losses.T, -np.eye(size)], [-losses.T, -np.eye(size)]])  # ±(cB)_j ≤ u_j
        bounds = [(-1, 1)] * n + [(0, None)] * size
        for rest in itertools.product((1.0, -1.0), repeat=gains.shape[1] - 1):
            objective = np.concatenate([-gains @ np.array([1.0, *rest]), np.ones(size)])
            best = max(best, -linprog(objective, above, np.zeros(2 * size), bounds=bounds).fun)
    return best


@pytest.mark.parametrize(("n", "m", "n_f"), [(2, 3, 5), (3, 4, 5), (4, 3, 4)])
def test_exact_representativeness_against_linear_programs(n, m, n_f):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        laws, vectors = rng.dirichlet(np.ones(n_f), n), rng.exponential(1 / m, (n, m))
        found = exact_representativeness(vectors, laws)
        assert found.exact
        assert found.gamma == pytest.approx(linear_programs(vectors, laws), abs=1e-9)


@given(seed=st.integers(0, 10**6), n=st.integers(1, 4), m=st.integers(1, 6), signed=st.booleans())
def test_search_never_exceeds_the_exact_value(seed, n, m, signed):
    rng = np.random.default_rng(seed)
    laws = rng.dirichlet(np.ones(7), n)
    vectors = (
        rng.standard_normal((n, m)) / m if signed else representative_vectors(laws[:, :m], np.full(m, 0.3))
    )
    exact = exact_representativeness(vectors, laws)
    found = search_representativeness(vectors, laws, restarts=8, rng=seed)
    assert not found.exact
    assert found.gamma <= exact.gamma * (1 + 1e-9) + 1e-12
    for measured in (exact, found):
        assert np.abs(measured.coefficients).max() <= 1
        assert abs(gap(measured.coefficients, vectors, laws)) == pytest.approx(measured.gamma, abs=1e-12)
    c = rng.uniform(-1, 1, (500, n))
    assert np.abs(gap(c, vectors, laws)).max() <= exact.gamma * (1 + 1e-9) + 1e-12


def test_corners_of_the_box_are_not_enough():
    laws = np.array([[0.5, 0.5, 0.0], [0.0, 0.4, 0.6]])
    vectors = representative_vectors(laws[:, :2], np.array([0.9, 0.9]))
    corners = np.array(list(itertools.product((1.0, -1.0), repeat=2)))
    found = exact_representativeness(vectors, laws)
    grid = np.linspace(-1, 1, 2001)
    edges = np.vstack([np.column_stack([np.ones(2001), grid]), np.column_stack([grid, np.ones(2001)])])
    assert found.gamma == pytest.approx(np.abs(gap(edges, vectors, laws)).max(), abs=1e-3)
    rng = np.random.default_rng(0)
    beyond = 0
    for _ in range(50):
        laws, vectors = rng.dirichlet(np.ones(6), 3), rng.exponential(0.3, (3, 3))
        corners = np.array(list(itertools.product((1.0, -1.0), repeat=3)))
        at_corners = np.abs(gap(corners, vectors, laws)).max()
        beyond += exact_representativeness(vectors, laws).gamma > at_corners * (1 + 1e-6)
    assert beyond > 0


def test_low_rank_keeps_enumeration_small():
    """Eight histories, rank 2: only pairs of hyperplanes can meet in a vertex."""
    model, histories, _, laws = enumerated(2, 2, 7, 3, 0)
    vectors = sketch(model, histories, [0, 7], 200, 1)
    exact = exact_representativeness(vectors, laws)
    found = search_representativeness(vectors, laws, restarts=64, rng=0)
    assert exact.gamma >= found.gamma * (1 - 1e-12)
    assert found.gamma >= 0.5 * exact.gamma
    rng = np.random.default_rng(0)
    with pytest.raises(TooLargeError, match="search_representativeness"):
        exact_representativeness(rng.random((8, 40)), rng.dirichlet(np.ones(200), 8))


@given(seed=st.integers(0, 10**6), states=st.integers(1, 4))
def test_spanners_transfer_exactly_where_ranks_agree(seed, states):
    model, histories, _, laws = enumerated(states, 2, 6, 3, seed)
    vectors = sketch(model, histories, np.arange(len(histories)), 60, seed)
    for rows in (vectors, laws):  # ranks must be clear
        spread = np.linalg.svd(rows, compute_uv=False)
        assume(not ((spread > 1e-14 * spread[0]) & (spread < 1e-5 * spread[0])).any())
    from_sketch, from_laws = (barycentric_spanner(rows, tolerance=1e-9) for rows in (vectors, laws))
    if from_sketch.rank == from_laws.rank:
        assert transfer_errors(from_sketch.coefficients, from_sketch.indices, laws).max() <= 1e-9
    assert from_sketch.rank <= from_laws.rank
    back = transfer_errors(from_laws.coefficients, from_laws.indices, vectors)  # laws → vectors is linear
    assert back.max() <= 1e-9


def test_transfer_errors_stay_within_the_bound():
    """Too few futures, and noisy probabilities: errors are real and below residual + C·γ."""
    largest = 0.0
    for seed in range(12):
        model, histories, _, laws = enumerated(3, 2, 6, 2, seed)
        rng = np.random.default_rng(seed)
        vectors = sketch(model, histories, [0, 1, 2, 3], 2 if seed % 2 else 40, seed)
        if not seed % 2:
            vectors = vectors * rng.uniform(0.9, 1.1, vectors.shape)
        spanner = barycentric_spanner(vectors, 2.0)
        gamma = exact_representativeness(vectors, laws).gamma
        residuals = transfer_errors(spanner.coefficients, spanner.indices, vectors)
        errors = transfer_errors(spanner.coefficients, spanner.indices, laws)
        assert errors.max() <= transfer_bound(gamma, spanner.max_coefficient, residuals.max()) * (1 + 1e-9)
        largest = max(largest, errors.max())
    assert largest > 0.05
    assert transfer_bound(0.1, 2.0, 0.3) == pytest.approx(0.5)
    assert transfer_bound(0.1, 0.5) == pytest.approx(0.1)


def test_logarithms_carry_long_futures():
    model = sticky(2, 3, 2000, 0)
    selected = [np.array([0]), np.array([2])]
    rng = np.random.default_rng(0)
    futures, _ = draw_mixture_futures(
        lambda i, count: model.sample(count, rng, history=selected[i]), 2, 30, rng
    )
    logs = np.array([model.score(futures, history=h) for h in selected])
    assert logs.max() < -1000  # exp would be zero
    vectors = representative_vectors_from_logs(logs, mixture_log_proposal(logs))
    np.testing.assert_allclose(vectors.sum(axis=0), 2 / 30)  # P_1 + P_2 = 2 D
    short = np.log(np.random.default_rng(1).dirichlet(np.ones(6), 3))
    np.testing.assert_allclose(
        representative_vectors_from_logs(short, mixture_log_proposal(short)),
        representative_vectors(np.exp(short), np.exp(short).mean(axis=0)),
    )
    with np.errstate(divide="ignore"):
        zero = np.log(np.array([[0.0, 1.0], [0.5, 0.5]]))
    np.testing.assert_allclose(
        representative_vectors_from_logs(zero, mixture_log_proposal(zero)), [[0, 2 / 3], [1, 1 / 3]]
    )


def test_mixture_futures_come_from_their_histories():
    """|count − n/3| > sqrt(n log(6/1e-9)/2) w.p. ≤ 1e-9 (Hoeffding, three counts)."""
    n = 3000
    asked = []

    def complete(i, count):
        asked.append((i, count))
        return np.full((count, 4), i)

    futures, source = draw_mixture_futures(complete, 3, n, rng=0)
    assert futures.shape == (n, 4)
    np.testing.assert_array_equal(futures[:, 0], source)
    counts = np.bincount(source, minlength=3)
    assert asked == list(enumerate(counts.tolist()))
    assert np.abs(counts - n / 3).max() <= math.sqrt(n * math.log(6 / 1e-9) / 2)
    again, _ = draw_mixture_futures(complete, 3, n, rng=0)
    np.testing.assert_array_equal(futures, again)
    for wrong in (
        lambda i, count: np.zeros((count + 1, 4), dtype=int),
        lambda i, count: np.zeros((count, 4 + i), dtype=int),
        lambda i, count: np.zeros((count, 4)),
        lambda i, count: np.zeros(count, dtype=int),
    ):
        with pytest.raises(ShapeError):
            draw_mixture_futures(wrong, 3, n, rng=0)


def test_sample_sizes():
    sizes = [sufficient_sample_size(g, 0.01, 3) for g in (0.4, 0.2, 0.1)]
    assert sizes == sorted(sizes)
    assert 3.9 < sizes[2] / sizes[1] < 5  # 1/γ² up to logarithms
    assert sufficient_sample_size(0.1, 0.01, 3, ratio=12.0) > 10 * sizes[2]
    # written out once: ρ = n = 2, γ = 1, ε = 1/4/2^j, t = 1 − 4ε
    by_hand = min(
        math.ceil(4 / (2 * (1 - 2.0**-j) ** 2) * (math.log(2 / 0.5) + 2 * math.log(4 * 2**j)))
        for j in range(1, 40)
    )
    assert sufficient_sample_size(1.0, 0.5, 2) == by_hand
    for arguments in ((0.0, 0.1, 2), (0.1, 0.0, 2), (0.1, 1.5, 2), (0.1, 0.1, 0), (0.1, 0.1, 3, 2.0)):
        with pytest.raises(ParameterError):
            sufficient_sample_size(*arguments)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: representative_vectors([[0.5]], [0.0]), ProbabilityError),
        (lambda: representative_vectors([[0.5]], [1.5]), ProbabilityError),
        (lambda: representative_vectors([[-0.5]], [0.5]), ProbabilityError),
        (lambda: representative_vectors([[np.nan]], [0.5]), NonFiniteError),
        (lambda: representative_vectors([[0.5, 0.5]], [0.5]), ShapeError),
        (lambda: representative_vectors([0.5], [0.5]), ShapeError),
        (lambda: representative_vectors(np.zeros((2, 0)), []), ShapeError),
        (lambda: representative_vectors_from_logs([[0.1]], [-1.0]), ProbabilityError),
        (lambda: representative_vectors_from_logs([[-1.0]], [-np.inf]), ProbabilityError),
        (lambda: representative_vectors_from_logs([[np.nan]], [-1.0]), NonFiniteError),
        (lambda: mixture_log_proposal(np.zeros((0, 3))), ParameterError),
        (lambda: mixture_log_proposal([-1.0]), ShapeError),
        (lambda: exact_representativeness(np.eye(2), np.eye(3)), ShapeError),
        (lambda: search_representativeness(np.eye(2), np.eye(2), restarts=0), ParameterError),
        (lambda: transfer_errors(np.eye(2), [0], np.eye(2)), ShapeError),
        (lambda: transfer_errors(np.ones((2, 1)), [2], np.eye(2)), ShapeError),
        (lambda: transfer_bound(-1.0, 2.0), ParameterError),
    ],
)
def test_wrong_arguments(make, error):
    with pytest.raises(error):
        make()


def test_zero_vectors_represent_nothing():
    laws = np.eye(3)
    assert exact_representativeness(np.zeros((3, 2)), laws).gamma == pytest.approx(3.0)
    assert exact_representativeness(np.zeros((3, 2)), np.zeros((3, 4))).gamma == 0.0
    assert search_representativeness(laws, laws, rng=0).gamma == pytest.approx(0.0, abs=1e-12)
