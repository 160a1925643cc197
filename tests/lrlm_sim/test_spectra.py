"""Spectra against numpy's SVD, brute-force softmax sums, and constructions with known answers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrlm_sim import low_rank, spectra
from lrlm_sim.gram import StreamedGram, StreamedTriangle
from oracles.errors import NonFiniteError, ParameterError, ShapeError


def power_law_matrix(rows, columns, alpha, rng, dtype=np.float64):
    """Random matrix with singular values i^−alpha."""
    left = np.linalg.qr(rng.standard_normal((rows, rows)))[0]
    right = np.linalg.qr(rng.standard_normal((columns, rows)))[0]
    return ((left * np.arange(1.0, rows + 1) ** -alpha) @ right.T).astype(dtype)


shapes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))


@pytest.mark.parametrize("method", ["auto", "gram", "svd"])
@given(shape=shapes, seed=st.integers(0, 2**32), order=st.sampled_from("CF"))
def test_singular_values_match_numpy(method, shape, seed, order):
    array = np.asarray(np.random.default_rng(seed).standard_normal(shape), order=order)
    matrix = array.reshape(shape[0], -1)
    expected = np.linalg.svd(matrix, compute_uv=False)
    # the Gram route keeps half the digits of the smallest values: sqrt(ε) σ_1
    atol = (1e-7 if method == "gram" else 1e-14) * expected[0]
    np.testing.assert_allclose(spectra.singular_values(array, method), expected, rtol=1e-12, atol=atol)
    np.testing.assert_allclose(spectra.singular_values(matrix.T, method), expected, rtol=1e-12, atol=atol)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
@pytest.mark.parametrize("factor", [StreamedGram, StreamedTriangle])
@pytest.mark.parametrize("shape", [(40, 3000), (700, 60), (1, 5), (5, 1)])
def test_factors_take_every_width_and_layout(dtype, factor, shape):
    matrix = (np.random.default_rng(0).standard_normal(shape) * 10).astype(dtype)
    expected = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    padded = np.zeros((2 * shape[0], 3 * shape[1]), dtype)
    padded[::2, ::3] = matrix
    for block in (matrix, np.asfortranarray(matrix), padded[::2, ::3], np.asfortranarray(padded)[::2, ::3]):
        before = block.copy()
        streamed = factor(shape[0])
        streamed.add(block)
        np.testing.assert_allclose(streamed.singular_values(), expected, rtol=1e-10, atol=1e-12)
        np.testing.assert_array_equal(block, before)


@pytest.mark.parametrize("method", ["gram", "svd"])
def test_float32_power_law_is_accurate_to_1e_10(method):
    matrix = power_law_matrix(300, 4000, 0.8, np.random.default_rng(1), np.float32)
    expected = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    sigma = spectra.singular_values(matrix, method)
    np.testing.assert_allclose(sigma, expected, rtol=1e-11)
    lost = np.sqrt(np.linalg.eigvalsh(matrix @ matrix.T)[::-1].clip(0).astype(np.float64))
    assert np.abs(lost / expected - 1).max() > 1e-6  # float32 sums would not pass


def test_svd_keeps_what_gram_loses():
    matrix = power_law_matrix(20, 500, 8, np.random.default_rng(2))  # down to 4e-11
    expected = np.arange(1, 21) ** -8.0
    np.testing.assert_allclose(spectra.singular_values(matrix, "svd"), expected, rtol=1e-4)
    assert np.abs(spectra.singular_values(matrix, "gram") / expected - 1).max() > 0.1


@pytest.mark.parametrize("kind", [StreamedGram, StreamedTriangle])
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 12),
    widths=st.lists(st.integers(0, 30), min_size=1, max_size=5),
)
def test_streams_and_merges_equal_the_whole(kind, seed, n, widths):
    rng = np.random.default_rng(seed)
    blocks = [rng.standard_normal((n, width)) for width in widths]
    whole, left, right = kind(n), kind(n), kind(n)
    whole.add(np.concatenate(blocks, axis=1))
    for i, block in enumerate(blocks):
        (left if i % 2 else right).add(block)
    left.merge(right)
    assert left.columns == whole.columns == sum(widths)
    sigma = whole.singular_values()
    assert len(sigma) == min(n, sum(widths))
    atol = (1e-7 if kind is StreamedGram else 1e-13) * (1 + sigma.max(initial=0))
    np.testing.assert_allclose(left.singular_values(), sigma, rtol=1e-12, atol=atol)


def test_iterators_and_conversion_chunks(monkeypatch):
    array = np.random.default_rng(3).standard_normal((7, 40, 3)).astype(np.float32)
    expected = np.linalg.svd(array.reshape(7, -1).astype(float), compute_uv=False)
    monkeypatch.setattr("lrlm_sim.gram._CHUNK", 70)
    monkeypatch.setattr("lrlm_sim.gram._MIN_COLUMNS", 4)
    for method in ("auto", "gram", "svd"):
        blocks = (array[:, low : low + 11] for low in range(0, 40, 11))
        np.testing.assert_allclose(spectra.singular_values(blocks, method), expected, rtol=1e-12)
        np.testing.assert_allclose(spectra.singular_values(array, method), expected, rtol=1e-12)
        np.testing.assert_allclose(
            spectra.singular_values(array.T, method)[:5], spectra.singular_values(array.T)[:5]
        )


def test_left_singular_vectors_diagonalise():
    matrix = np.random.default_rng(4).standard_normal((6, 30))
    for kind in (StreamedGram, StreamedTriangle):
        factor = kind(6)
        factor.add(matrix)
        vectors, sigma = factor.left_singular()
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(6), atol=1e-13)
        np.testing.assert_allclose((vectors * sigma**2) @ vectors.T, matrix @ matrix.T, atol=1e-11)


@pytest.mark.parametrize("method", ["gram", "svd"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_entries_are_errors(method, bad):
    array = np.ones((4, 5, 2))
    array[2, 3, 1] = bad
    for L in (array, array.astype(np.float32), array.T, iter([array])):
        with pytest.raises(NonFiniteError, match="finite"):
            spectra.singular_values(L, method)
    with pytest.raises(NonFiniteError):
        spectra.low_rank_kl(array, [1])


@pytest.mark.parametrize(
    "bad", [np.ones(3), np.ones((2, 2, 2, 2)), np.ones((0, 3)), [[1, 2], [3]], np.ones((2, 2)) * 1j]
)
def test_other_arrays_are_shape_errors(bad):
    with pytest.raises(ShapeError):
        spectra.singular_values(bad)


def test_bad_streams_and_methods():
    with pytest.raises(ShapeError, match="at least one block"):
        spectra.singular_values(iter([]))
    with pytest.raises(ShapeError, match="block"):
        spectra.singular_values(iter([np.ones((3, 2)), np.ones((4, 2))]))
    with pytest.raises(ParameterError, match="method"):
        spectra.singular_values(np.ones((2, 2)), "fast")
    with pytest.raises(ParameterError):
        StreamedGram(0)
    with pytest.raises(ShapeError, match="other"):
        StreamedGram(3).merge(StreamedTriangle(3))
    with pytest.raises(ShapeError, match="other"):
        StreamedGram(3).merge(StreamedGram(4))


@pytest.mark.parametrize(("n_h", "n_f"), [(30, 9), (400, 3), (3, 50)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_hidden_states_give_the_spectrum_of_all_logits(n_h, n_f, dtype, monkeypatch):
    rng = np.random.default_rng(5)
    hidden, unembedding = (
        rng.standard_normal((n_h, n_f, 6)).astype(dtype),
        rng.standard_normal((50, 6)).astype(dtype),
    )
    logits = hidden.astype(float) @ unembedding.astype(float).T
    centred = logits - logits.mean(axis=2, keepdims=True)
    expected = np.linalg.svd(centred.reshape(n_h, -1), compute_uv=False)[: min(n_h, n_f * 6)]
    monkeypatch.setattr(spectra, "_STATE_BLOCK", 100)
    monkeypatch.setattr(spectra, "_MIN_COLUMNS", 12)
    before = hidden.copy()
    for method in ("auto", "gram", "svd"):
        sigma = spectra.hidden_state_singular_values(hidden, unembedding, method)
        np.testing.assert_allclose(sigma, expected, rtol=1e-9)
    np.testing.assert_array_equal(hidden, before)
    blocks = (hidden[:, low : low + 4] for low in range(0, n_f, 4))
    streamed = spectra.hidden_state_singular_values(blocks, unembedding, "svd")
    np.testing.assert_allclose(streamed[: len(expected)], expected, rtol=1e-9)


def test_hidden_states_with_fewer_tokens_than_width():
    rng = np.random.default_rng(6)
    hidden, unembedding = rng.standard_normal((5, 4, 8)), rng.standard_normal((3, 8))
    logits = hidden @ unembedding.T
    expected = np.linalg.svd((logits - logits.mean(axis=2, keepdims=True)).reshape(5, -1), compute_uv=False)
    sigma = spectra.hidden_state_singular_values(hidden, unembedding)
    np.testing.assert_allclose(sigma, expected, rtol=1e-12, atol=1e-13)
    with pytest.raises(ShapeError, match="hidden"):
        spectra.hidden_state_singular_values(hidden[:, :, :5], unembedding)
    with pytest.raises(ShapeError, match="unembedding"):
        spectra.hidden_state_singular_values(hidden, unembedding[0])


@given(alpha=st.floats(-2, 4), log_c=st.floats(-5, 5), first=st.integers(1, 20), length=st.integers(1, 60))
def test_power_law_is_recovered_on_its_range_only(alpha, log_c, first, length):
    sigma = np.exp(log_c) * np.arange(1, first + length + 4.0) ** -alpha
    sigma[: first - 1] = 0.0  # outside the range nothing counts
    sigma[first + length :] = 7.0
    fit = spectra.fit_power_law(sigma, first, first + length)
    assert fit.alpha == pytest.approx(alpha, abs=1e-9)
    assert fit.log_c == pytest.approx(log_c, abs=1e-8)
    assert fit.r2 > 1 - 1e-6 or abs(alpha) < 1e-6


def test_power_law_matches_polyfit_and_refuses_bad_ranges():
    rng = np.random.default_rng(7)
    sigma = np.sort(rng.random(50))[::-1] + 0.1
    fit = spectra.fit_power_law(sigma, 3, 40)
    x, y = np.log(np.arange(3, 41)), np.log(sigma[2:40])
    slope, intercept = np.polyfit(x, y, 1)
    assert fit.alpha == pytest.approx(-slope)
    assert fit.log_c == pytest.approx(intercept)
    assert fit.r2 == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)
    assert spectra.fit_power_law(np.ones(5), 1, 5).r2 == 1.0
    for first, last in ((0, 5), (5, 5), (1, 51), (1.0, 5)):
        with pytest.raises(ParameterError):
            spectra.fit_power_law(sigma, first, last)
    sigma[19] = 0.0
    with pytest.raises(ParameterError, match="σ_20 is not positive"):
        spectra.fit_power_law(sigma, 3, 40)
    sigma[19] = np.nan
    with pytest.raises(NonFiniteError):
        spectra.fit_power_law(sigma, 3, 40)


def truncated(L, rank):
    left, sigma, right = np.linalg.svd(L.reshape(len(L), -1), full_matrices=False)
    return ((left[:, :rank] * sigma[:rank]) @ right[:rank]).reshape(L.shape)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@given(shape=shapes, seed=st.integers(0, 2**32), scale=st.sampled_from([0.1, 1.0, 30.0]))
def test_low_rank_kl_matches_brute_force_and_its_bound(shape, seed, scale):
    L = np.random.default_rng(seed).standard_normal(shape) * scale
    full = min(shape[0], shape[1] * shape[2])
    ranks = [full, 0, full // 2]
    result = spectra.low_rank_kl(L, ranks)
    assert result.ranks.tolist() == ranks
    for rank, kl, bound in zip(*result, strict=True):
        p, q = softmax(L), softmax(truncated(L, rank))
        expected = (p * (np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(q, 1e-300)))).sum() / (
            shape[0] * shape[1]
        )
        squares = ((L - truncated(L, rank)) ** 2).sum() / (shape[0] * shape[1])
        assert kl == pytest.approx(expected, rel=1e-6, abs=1e-12 * (1 + scale))
        assert bound == pytest.approx(squares, rel=1e-9, abs=1e-25 * (1 + scale) ** 2)
        assert 0 <= kl <= bound * (1 + 1e-12)


def test_low_rank_blocks_do_not_change_results(monkeypatch):
    for shape in ((6, 20, 3), (80, 4, 3)):
        L = np.random.default_rng(8).standard_normal(shape).astype(np.float32)
        whole = (*spectra.low_rank_kl(L, range(7)), *spectra.misspecification(L, range(7)))
        with monkeypatch.context() as patch:
            patch.setattr(spectra, "CELL_BLOCK", 50)
            parts = (*spectra.low_rank_kl(L, range(7)), *spectra.misspecification(L, range(7)))
        for a, b in zip(whole, parts, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14)


@given(exponent=st.floats(-9, 0.5), seed=st.integers(0, 2**32))
def test_small_kl_keeps_its_digits(exponent, seed):
    """Against extended precision, on both sides of the switch from series to exponentials."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(5), 3)
    shift = 10.0**exponent * rng.standard_normal((3, 5))
    kl = low_rank.kl_of_shift(p, np.log(p), shift)
    wide = shift.astype(np.longdouble)
    s = wide - (p * wide).sum(axis=1, keepdims=True) / p.sum(axis=1, keepdims=True, dtype=np.longdouble)
    expected = np.log1p((p * (np.expm1(s) - s)).sum(axis=1))
    np.testing.assert_allclose(kl, expected.astype(np.float64), rtol=2e-9, atol=1e-30)


def test_enormous_shifts_do_not_overflow():
    L = np.random.default_rng(10).standard_normal((4, 5, 3)) * 3000
    result = spectra.low_rank_kl(L, [0, 2])
    for rank, kl in zip(result.ranks, result.kl, strict=True):
        log_p, log_q = (x - np.logaddexp.reduce(x, axis=2, keepdims=True) for x in (L, truncated(L, rank)))
        expected = (np.exp(log_p) * (log_p - log_q)).sum() / 20
        assert kl == pytest.approx(expected, rel=1e-9)


@given(shape=shapes, seed=st.integers(0, 2**32))
def test_misspecification_matches_brute_force(shape, seed):
    L = np.random.default_rng(seed).standard_normal(shape)
    ranks = [min(shape[0], shape[1] * shape[2]) // 2, 0]
    result = spectra.misspecification(L, ranks)
    for i, rank in enumerate(ranks):
        D = L - truncated(L, rank)
        assert result.mean_l1[i] == pytest.approx(np.abs(D).sum(axis=2).mean(), rel=1e-9, abs=1e-13)
        assert result.max[i] == pytest.approx(np.abs(D).max(), rel=1e-9, abs=1e-13)
        assert result.frobenius[i] == pytest.approx(np.sqrt((D**2).sum(axis=2).mean()), rel=1e-9, abs=1e-13)
    flat = spectra.misspecification(L.reshape(shape[0], -1), ranks)
    np.testing.assert_allclose(flat.mean_l1 * shape[2], result.mean_l1, rtol=1e-9, atol=1e-13)


def test_low_rank_arguments():
    L = np.ones((3, 4, 2))
    with pytest.raises(ShapeError, match="softmax"):
        spectra.low_rank_kl(L[:, :, 0], [1])
    for ranks in ([4], [-1], [1.5]):
        with pytest.raises(ParameterError, match="ranks"):
            spectra.misspecification(L, ranks)
    assert len(spectra.low_rank_kl(L, []).kl) == 0


@given(angle=st.floats(1e-9, np.pi / 2), seed=st.integers(0, 2**32), tall=st.booleans())
def test_principal_angles_of_a_known_rotation(angle, seed, tall):
    rng = np.random.default_rng(seed)
    n, rank = 30, 3
    basis = np.linalg.qr(rng.standard_normal((n, 2 * rank)))[0]
    angles = np.array([angle / 4, angle / 2, angle])
    turned = basis[:, :rank] * np.cos(angles) + basis[:, rank:] * np.sin(angles)
    columns = 9 if tall else 60
    matrices = [
        left @ np.diag([3.0, 2.0, 1.0]) @ np.linalg.qr(rng.standard_normal((columns, rank)))[0].T
        for left in (basis[:, :rank], turned)
    ]
    np.testing.assert_allclose(spectra.principal_angles(*matrices, rank), angles, rtol=1e-5, atol=3e-14)


def test_principal_angles_refuse_what_is_not_determined():
    rng = np.random.default_rng(9)
    low = rng.standard_normal((6, 2)) @ rng.standard_normal((2, 10))
    full = rng.standard_normal((6, 5, 2))
    assert spectra.principal_angles(full, full, 6).max() < 1e-7
    with pytest.raises(ParameterError, match="L2 has numerical rank 2"):
        spectra.principal_angles(full, low, 3)
    with pytest.raises(ShapeError, match="as L1"):
        spectra.principal_angles(full, full[:5], 2)
    with pytest.raises(ParameterError, match="rank"):
        spectra.principal_angles(full, full, 0)
