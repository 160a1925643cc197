"""Argument checks at the boundary of oracles: one place that turns bad input into typed errors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from oracles.errors import (
    HorizonError,
    NonFiniteError,
    ParameterError,
    ProbabilityError,
    ShapeError,
    TokenError,
    ZeroProbabilityError,
)

#: Largest |Σp − 1| accepted in a probability vector given by a user.
SUM_TOLERANCE = 1e-9
#: More than what renormalising a vector and adding it up again (pairwise summation) leaves of |Σp − 1|.
_SUM_ROUNDING = 64 * float(np.finfo(np.float64).eps)


def as_generator(rng: np.random.Generator | int | None) -> np.random.Generator:
    """Generator of numpy from None (fresh entropy), an integer seed, or a Generator (returned as is)."""
    if rng is not None and not isinstance(rng, (int, np.integer, np.random.Generator)):
        raise ParameterError(f"rng must be None, an int or a numpy Generator, got {type(rng).__name__}")
    return np.random.default_rng(rng)


def as_integer(name: str, value: object, low: int, high: int | None = None) -> int:
    """`value` as an int with low ≤ value ≤ high."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ParameterError(f"{name} must be an integer, got {value!r}")
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"in {low}..{high}"
        raise ParameterError(f"{name} must be {bounds}, got {value}")
    return int(value)


def as_number(name: str, value: object, low: float, high: float = np.inf) -> float:
    """`value` as a finite float with low ≤ value ≤ high."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise ParameterError(f"{name} must be a number, got {value!r}")
    if not np.isfinite(value) or not low <= value <= high:
        raise ParameterError(f"{name} must be finite and in [{low}, {high}], got {value}")
    return float(value)


def axes_of(array: ArrayLike) -> int:
    """Number of axes of what a user gave; 0 for ragged lists, which no shape check accepts."""
    try:
        return np.ndim(array)
    except ValueError:
        return 0


def as_finite(name: str, array: ArrayLike, symbolic: str, ndim: int) -> Float[np.ndarray, "..."]:
    """Float64 contiguous array with `ndim` axes and no NaN or infinity."""
    try:
        values = np.ascontiguousarray(array, dtype=np.float64)
    except (TypeError, ValueError):
        raise ShapeError(name, symbolic, f"{ndim} axes of numbers", "ragged or non-numeric") from None
    if np.ndim(array) != ndim:
        raise ShapeError(name, symbolic, f"{ndim} axes", np.shape(array))
    if not np.isfinite(values).all():
        raise NonFiniteError(f"{name} {symbolic} must be finite, got NaN or infinity")
    return values


def as_laws(name: str, array: ArrayLike, symbolic: str, ndim: int) -> Float[np.ndarray, "..."]:
    """Array of probability vectors along the last axis: ≥ 0, sums within 1e-9 of 1, renormalised.

    Vectors that sum to one up to rounding stay as they are, so that a saved model is loaded bit for bit.
    """
    laws = as_finite(name, array, symbolic, ndim)
    if (laws < 0).any():
        raise ProbabilityError(f"{name} {symbolic} must be non-negative, smallest entry {laws.min():.3g}")
    sums = laws.sum(axis=-1, keepdims=True)
    gap = np.abs(sums - 1).max(initial=0.0)
    if gap > SUM_TOLERANCE:
        raise ProbabilityError(f"{name} {symbolic} must sum to one along its last axis, off by {gap:.3g}")
    return laws / np.where(np.abs(sums - 1) <= _SUM_ROUNDING, 1.0, sums)


def check_log_probs(rows: np.ndarray, batch: int, vocab_size: int) -> Float[np.ndarray, "batch vocab"]:
    """Next-token log-probabilities as answered by an oracle: shape, NaN and normalisation checked."""
    rows = np.asarray(rows, dtype=np.float64)
    if rows.shape != (batch, vocab_size):
        raise ShapeError("log_probs", "(batch, vocab_size)", (batch, vocab_size), rows.shape)
    if np.isnan(rows).any():
        raise NonFiniteError("log_probs must not be NaN: the model answered NaN")
    gap = np.abs(np.exp(rows).sum(axis=1) - 1).max(initial=0.0)
    if gap > 1e-6:
        raise ProbabilityError(f"next-token laws must sum to one, the model's are off by {gap:.3g}")
    return rows


def as_tokens(name: str, tokens: ArrayLike, vocab_size: int, ndim: int) -> Int[np.ndarray, "..."]:
    """int64 array of tokens 0..vocab_size−1 with `ndim` axes."""
    symbolic = "(batch, length)" if ndim == 2 else "(length,)"
    values = _rectangular(name, tokens, symbolic)
    if values.size == 0:
        values = values.astype(np.int64)
    if values.ndim != ndim:
        raise ShapeError(name, symbolic, f"{ndim} axes", values.shape)
    if values.dtype.kind not in "iu":
        raise TokenError(f"{name} must be integers 0..{vocab_size - 1}, got dtype {values.dtype}")
    if values.size and (values.min() < 0 or values.max() >= vocab_size):
        worst = values.min() if values.min() < 0 else values.max()
        raise TokenError(f"{name} must be in 0..{vocab_size - 1}, got {worst}")
    return values.astype(np.int64, copy=False)


def as_chunk(tokens: ArrayLike, batch: int, vocab_size: int) -> Int[np.ndarray, "batch length"]:
    """Tokens of `advance`: shape (batch,) or (batch, length), as (batch, length)."""
    values = _rectangular("tokens", tokens, "(batch,) or (batch, length)")
    if values.ndim == 1:
        values = values[:, None]
    chunk = as_tokens("tokens", values, vocab_size, 2)
    if chunk.shape[0] != batch:
        raise ShapeError("tokens", "(batch,) or (batch, length)", f"({batch}, …)", np.shape(tokens))
    return chunk


def _rectangular(name: str, values: ArrayLike, symbolic: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError:
        raise ShapeError(name, symbolic, "rows of one length", "ragged lists") from None


def as_rows(rows: ArrayLike, batch: int) -> Int[np.ndarray, "rows"]:
    """Row numbers of `take`: a 1-D integer array with entries 0..batch−1."""
    values = _rectangular("rows", rows, "(n,) of integers")
    if values.size == 0:
        values = values.astype(np.int64)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ShapeError("rows", "(n,) of integers", "1 axis", f"{values.shape} {values.dtype}")
    if values.size and (values.min() < 0 or values.max() >= batch):
        raise ShapeError("rows", "(n,)", f"entries 0..{batch - 1}", f"{values.min()}..{values.max()}")
    return values.astype(np.int64, copy=False)


def as_strings(
    name: str, strings: Iterable[ArrayLike] | np.ndarray, vocab_size: int
) -> list[Int[np.ndarray, "length"]]:
    """Ragged list of token lists (or a 2-D array) as a list of int64 arrays."""
    if isinstance(strings, np.ndarray) and strings.ndim == 2:
        return list(as_tokens(name, strings, vocab_size, 2))
    if isinstance(strings, (str, bytes)) or not isinstance(strings, (Sequence, np.ndarray)):
        raise ShapeError(name, "[n][length]", "a list of token lists", type(strings).__name__)
    if len(strings) and axes_of(strings[0]) != 1:
        raise ShapeError(
            name, "[n][length]", "a list of token lists", f"entries with {axes_of(strings[0])} axes"
        )
    return [as_tokens(f"{name}[{i}]", s, vocab_size, 1) for i, s in enumerate(strings)]


def check_length(length: int, horizon: int | None) -> None:
    """Raise `HorizonError` if a string of `length` tokens does not fit the horizon."""
    if horizon is not None and length > horizon:
        raise HorizonError(
            f"strings have at most horizon = {horizon} tokens, got {length}: shorten the string"
        )


def centred_logits(log_probs: Float[np.ndarray, "*cells A"]) -> Float[np.ndarray, "*cells A"]:
    """Log-probabilities minus their mean over tokens; the argument is left alone.

    Raises ZeroProbabilityError where a token has probability zero (its logit is −∞).
    """
    if np.isneginf(log_probs).any():
        raise ZeroProbabilityError(
            "a next token has probability zero, its logit is −∞: smooth the teacher first, "
            "(1−τ)·P + τ·uniform, leave out tokens that it never emits (oracles.restricted), "
            "or use probability matrices"
        )
    return log_probs - log_probs.mean(axis=-1, keepdims=True)
