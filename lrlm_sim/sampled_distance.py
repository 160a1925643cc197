"""Distances estimated from samples of P, at any horizon, for models that give exact probabilities.

All arithmetic is in logarithms, so strings whose probability underflows are handled like others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtri

from lrlm_sim.confidence import Interval, MeanEstimate, as_confidence, mean_interval
from lrlm_sim.exact_distance import common_length
from oracles.base import Oracle
from oracles.checks import as_generator, as_integer, check_log_probs
from oracles.errors import NonFiniteError, ParameterError, ProbabilityError

_STRINGS = 1 << 14  # most strings sampled and scored together
_CELLS = 1 << 24  # most numbers (strings × vocabulary) in one block of next-token laws


def estimate_total_variation(
    p: Oracle,
    q: Oracle,
    n: int,
    confidence: float = 0.95,
    rng: np.random.Generator | int | None = None,
    *,
    length: int | None = None,
) -> Interval:
    """TV(P, Q) from n strings of P: the mean of X = max(0, 1 − Q(x)/P(x)) with a betting interval.

    E_(x~P) X = Σ_x max(0, P(x) − Q(x)) = TV(P, Q) and X ∈ [0, 1], so the interval holds with
    probability ≥ `confidence` for every n, P and Q, δ/2 spent on each end. It is the intersection of
    the intervals after 1, 2, …, n samples, which Ville's inequality gives at no extra δ; nothing else
    is intersected. Strings impossible under Q count as X = 1. Both models need a common vocabulary
    and horizon, or `length` (the laws of the first `length` tokens are compared).
    """
    length = common_length(p, q, length)
    excess = [
        total_variation_terms(p.score(x), q.score(x)) for x in _samples(p, n, as_generator(rng), length)
    ]
    return mean_interval(np.concatenate(excess), confidence)


def total_variation_terms(
    log_p: Float[np.ndarray, "n"], log_q: Float[np.ndarray, "n"]
) -> Float[np.ndarray, "n"]:
    """X = max(0, 1 − Q/P) from log-probabilities of samples of P, accurate also where Q ≈ P."""
    _check_scores(log_p, log_q)
    return -np.expm1(np.minimum(0.0, log_q - log_p))


def kl(
    p: Oracle,
    q: Oracle,
    n: int,
    rng: np.random.Generator | int | None = None,
    *,
    confidence: float = 0.95,
    method: str = "chain",
    length: int | None = None,
) -> MeanEstimate:
    """KL(P ‖ Q) in nats from n strings of P, with its standard error.

    "chain" averages Σ_t KL(P(·|x_<t) ‖ Q(·|x_<t)), exact at every prefix of the samples: unbiased by
    the chain rule, never negative, and usually of much lower variance than "sequence", which averages
    log P(x) − log Q(x). The result is +∞, with certainty, once a prefix (chain) or a string
    (sequence) with P > 0 = Q is seen; an infinite divergence whose witnesses were all missed looks
    finite, so a finite estimate is no proof. `low`, `high` are asymptotic (see `MeanEstimate`).
    """
    length = common_length(p, q, length)
    if method == "chain":
        return _mean_estimate(kl_profile(p, q, n, rng, length=length).sum(axis=1), confidence)
    if method != "sequence":
        raise ParameterError(f"method must be 'chain' or 'sequence', got {method!r}")
    terms = []
    for x in _samples(p, n, as_generator(rng), length):
        log_p, log_q = p.score(x), q.score(x)
        _check_scores(log_p, log_q)
        terms.append(log_p - log_q)
    return _mean_estimate(np.concatenate(terms), confidence)


def kl_per_token(
    p: Oracle,
    q: Oracle,
    n: int,
    rng: np.random.Generator | int | None = None,
    *,
    confidence: float = 0.95,
    method: str = "chain",
    length: int | None = None,
) -> MeanEstimate:
    """`kl` divided by the number of tokens: nats per token, the excess log-loss of Q on text of P."""
    length = common_length(p, q, length)
    if length == 0:
        raise ParameterError("strings of length 0 have no tokens to divide by: give length ≥ 1")
    total = kl(p, q, n, rng, confidence=confidence, method=method, length=length)
    per_token = {
        name: getattr(total, name) / length for name in ("estimate", "standard_error", "low", "high")
    }
    return replace(total, **per_token)


def kl_profile(
    p: Oracle,
    q: Oracle,
    n: int,
    rng: np.random.Generator | int | None = None,
    *,
    length: int | None = None,
) -> Float[np.ndarray, "n length"]:
    """KL(P(·|x_<t) ‖ Q(·|x_<t)) for n samples x of P and every position t; +∞ where Q misses support."""
    length = common_length(p, q, length)
    blocks = []
    for x in _samples(p, n, as_generator(rng), length):
        rows = np.empty(x.shape)
        pairs = zip(laws_along(p, x), laws_along(q, x), strict=True)
        for t, (log_p, log_q) in enumerate(pairs):
            rows[:, t] = row_kl(log_p, log_q)
        blocks.append(rows)
    return np.concatenate(blocks)


def row_kl(
    log_p: Float[np.ndarray, "n vocab"], log_q: Float[np.ndarray, "n vocab"]
) -> Float[np.ndarray, "n"]:
    """KL between the laws in each pair of rows of log-probabilities; 0 · log 0 = 0."""
    with np.errstate(invalid="ignore"):
        terms = np.exp(log_p) * (log_p - log_q)
    terms[np.isneginf(log_p)] = 0.0
    return np.maximum(0.0, terms.sum(axis=1))


def laws_along(
    oracle: Oracle, strings: Int[np.ndarray, "n length"]
) -> Iterator[Float[np.ndarray, "n vocab"]]:
    """Next-token log P(· | x_<t) of every string x, for t = 0, …, length − 1."""
    n, length = strings.shape
    state = oracle.start(n)
    for t in range(length):
        yield check_log_probs(oracle.log_probs(state), n, oracle.vocab_size)
        if t + 1 < length:
            state = oracle.advance(state, strings[:, t])


def _samples(
    oracle: Oracle, n: int, rng: np.random.Generator, length: int
) -> Iterator[Int[np.ndarray, "block length"]]:
    """`n` strings in blocks of a fixed size, drawn one block after the other from one generator."""
    n = as_integer("n", n, 1)
    block = max(1, min(_STRINGS, _CELLS // oracle.vocab_size))
    for first in range(0, n, block):
        yield oracle.sample(min(block, n - first), rng, length=length)


def _check_scores(log_p: np.ndarray, log_q: np.ndarray) -> None:
    if np.isnan(log_p).any() or np.isnan(log_q).any():
        raise NonFiniteError("sequence log-probabilities must not be NaN")
    if np.isneginf(log_p).any():
        raise ProbabilityError(
            "a string sampled from P has probability zero under P: its sample and score disagree"
        )


def _mean_estimate(terms: Float[np.ndarray, "n"], confidence: float) -> MeanEstimate:
    confidence = as_confidence(confidence)
    n = len(terms)
    if np.isposinf(terms).any():
        return MeanEstimate(math.inf, 0.0, math.inf, math.inf, n, confidence)
    mean = float(terms.mean())
    error = float(terms.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    radius = float(ndtri((1 + confidence) / 2)) * error
    return MeanEstimate(mean, error, max(0.0, mean - radius), mean + radius, n, confidence)
