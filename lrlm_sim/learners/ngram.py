"""n-gram models from samples, interpolated with shorter contexts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lrlm_sim.learners.base import SUCCESS, Learner, Result, require_access
from oracles.access import Access, ConditionalSampleAccess, SampleAccess
from oracles.checks import as_integer, as_number
from oracles.errors import BudgetError, HorizonError, TooLargeError
from oracles.ngram import NGram

_LARGEST = 10**7


@dataclass(frozen=True)
class NGramLearner(Learner):
    """n-gram of order n: P(z | c) = (count(c z) + κ P(z | c without its oldest token)) / (count(c) + κ).

    Arguments:
        order: n; the law looks at the last n−1 tokens.
        samples: strings drawn.
        strength: κ > 0, the weight of the shorter context (MacKay & Peto 1995, with one κ for all).
        horizon: length of the strings; None takes the teacher's.
    """

    order: int = 3
    samples: int = 10_000
    strength: float = 1.0
    horizon: int | None = None

    accesses = (SampleAccess, ConditionalSampleAccess)

    def __post_init__(self) -> None:
        as_integer("order", self.order, 1)
        as_integer("samples", self.samples, 1)
        as_number("strength", self.strength, 1e-12)

    def fit(self, access: Access, rng: np.random.Generator | int | None = None) -> Result:
        strings = draw_strings(self, access, self.samples, self.horizon)
        horizon, vocab_size = strings.shape[1], access.vocab_size
        order = min(self.order, horizon)
        if vocab_size**order > _LARGEST:
            raise TooLargeError(
                f"an n-gram table of {vocab_size}^{order} entries is over {_LARGEST}: lower order"
            )
        pooled, laws = np.full(vocab_size, 1 / vocab_size), []
        for length in range(order):
            pooled = self._smooth(_count(strings, length + 1, vocab_size), pooled)
            # Contexts shorter than order−1 only occur at the beginning: their law is that of the position.
            at_start = _count(strings[:, : length + 1], length + 1, vocab_size)
            laws.append(pooled if length + 1 == order else self._smooth(at_start, pooled))
        model = NGram(order, tuple(laws), horizon)
        return Result(model, SUCCESS, access.ledger, {"parameters": sum(law.size for law in laws)})

    def _smooth(self, counts: np.ndarray, shorter: np.ndarray) -> np.ndarray:
        """Counts plus `strength` pseudo-counts of the shorter context's law, normalised."""
        smoothed = counts + self.strength * shorter
        return smoothed / smoothed.sum(axis=-1, keepdims=True)


def draw_strings(learner: Learner, access: Access, samples: int, horizon: int | None) -> np.ndarray:
    """(samples, T) strings from an access that gives samples; BudgetError.partial is what was drawn."""
    require_access(learner, access)
    assert isinstance(access, (SampleAccess, ConditionalSampleAccess))
    length = horizon if horizon is not None else access.horizon
    if length is None:
        raise HorizonError(f"the teacher has no horizon: give {type(learner).__name__}(horizon=…)")
    try:
        return access.sample(samples, length=length)
    except BudgetError as error:
        error.partial = {"strings": len(error.answered)}
        raise


def _count(strings: np.ndarray, length: int, vocab_size: int) -> np.ndarray:
    """Occurrences of every substring of `length` tokens, shape (A,)*length."""
    windows = np.lib.stride_tricks.sliding_window_view(strings, length, axis=1).reshape(-1, length)
    codes = windows @ vocab_size ** np.arange(length - 1, -1, -1, dtype=np.int64)
    return np.bincount(codes, minlength=vocab_size**length).reshape((vocab_size,) * length).astype(float)
