"""Independent references for small models: every string, from a formula for its probability."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from oracles.base import LinearForm, Oracle


def all_strings(vocab_size: int, length: int) -> np.ndarray:
    """Every string, lexicographic, shape (A^length, length)."""
    return np.indices((vocab_size,) * length).reshape(length, vocab_size**length).T


def product_probabilities(form: LinearForm, strings: np.ndarray) -> np.ndarray:
    """initial · O_1[x_1] ··· O_T[x_T] · final, one string at a time."""
    out = []
    for string in strings:
        row = form.initial
        for operators, token in zip(form.operators, string, strict=True):
            row = row @ operators[token]
        out.append(row @ form.final)
    return np.array(out)


def check_exact(
    oracle: Oracle, probability: Callable[[tuple[int, ...]], float], tolerance: float = 1e-10
) -> None:
    """Score, conditional laws at every history, linear form and continuation laws against a formula."""
    vocab_size, horizon = oracle.vocab_size, oracle.horizon
    assert horizon is not None
    strings = all_strings(vocab_size, horizon)
    expected = np.array([probability(tuple(s)) for s in strings.tolist()])
    assert abs(expected.sum() - 1) < 1e-10, "the reference itself is not a law"
    possible = expected > 0
    scores = oracle.score(strings)
    np.testing.assert_allclose(scores[possible], np.log(expected[possible]), atol=tolerance, rtol=0)
    assert (scores[~possible] == -np.inf).all()
    for length in range(horizon):
        marginal = expected.reshape(vocab_size**length, vocab_size, -1).sum(axis=2)
        laws = np.exp(oracle.next_log_probs(all_strings(vocab_size, length)))
        assert np.abs(laws.sum(axis=1) - 1).max() <= 1e-12
        met = marginal.sum(axis=1) > 0
        quotients = marginal[met] / marginal[met].sum(axis=1, keepdims=True)
        np.testing.assert_allclose(laws[met], quotients, atol=tolerance, rtol=0)
    form = oracle.linear_form()
    if form is not None:
        np.testing.assert_allclose(product_probabilities(form, strings), expected, atol=tolerance, rtol=0)


def check_same(oracle: Oracle, other: Oracle, tolerance: float = 1e-12) -> None:
    """Two oracles are one law: scores of every string agree."""
    assert (oracle.vocab_size, oracle.horizon) == (other.vocab_size, other.horizon)
    strings = all_strings(oracle.vocab_size, oracle.horizon)
    np.testing.assert_allclose(oracle.score(strings), other.score(strings), atol=tolerance, rtol=tolerance)


def check_frequencies(samples: np.ndarray, expected: np.ndarray, vocab_size: int) -> None:
    """String frequencies against probabilities, by Bernstein's inequality over all cells.

    A correct sampler fails with probability ≤ 1e-9; impossible strings must never come.
    """
    n, length = samples.shape
    codes = samples @ vocab_size ** np.arange(length)[::-1]
    frequency = np.bincount(codes, minlength=len(expected)) / n
    log_term = np.log(2 * len(expected) / 1e-9)
    radius = np.sqrt(2 * expected * (1 - expected) * log_term / n) + log_term / (3 * n)
    assert (np.abs(frequency - expected) <= np.where(expected > 0, radius, 0.0)).all()


def softmax(logits: np.ndarray) -> np.ndarray:
    """Reference softmax of a vector."""
    weights = np.exp(np.asarray(logits) - np.max(logits))
    return weights / weights.sum()


def probability_rank(oracle: Oracle, cut: int, tolerance: float = 1e-10) -> int:
    """Rank of the matrix of P(h∘f), full enumeration."""
    strings = all_strings(oracle.vocab_size, oracle.horizon)
    matrix = np.exp(oracle.score(strings)).reshape(oracle.vocab_size**cut, -1)
    return rank(matrix, tolerance)


def logit_rank(oracle: Oracle, cut: int, tolerance: float = 1e-10) -> int:
    """Rank of the cutwise extended logit matrix, full enumeration."""
    futures = [
        f
        for length in range(oracle.horizon - cut)
        for f in all_strings(oracle.vocab_size, length).astype(int).tolist()
    ]
    laws = oracle.extended_log_probs(all_strings(oracle.vocab_size, cut), futures)
    logits = laws - laws.mean(axis=2, keepdims=True)
    return rank(logits.reshape(len(logits), -1), tolerance)


def rank(matrix: np.ndarray, tolerance: float) -> int:
    """Number of singular values above tolerance · the largest."""
    values = np.linalg.svd(matrix, compute_uv=False)
    return int((values > tolerance * max(values[0], 1e-300)).sum())


def dirichlet_with_zeros(rng: np.random.Generator, shape: Sequence[int], zeros: float = 0.4) -> np.ndarray:
    """Laws along the last axis with about this share of exact zeros."""
    weights = rng.random(tuple(shape)) * (rng.random(tuple(shape)) >= zeros)
    first = rng.integers(0, shape[-1], tuple(shape[:-1]))
    np.put_along_axis(weights, first[..., None], 1.0, axis=-1)
    return weights / weights.sum(axis=-1, keepdims=True)
