"""What answers give away about a network's last layer (arXiv:2403.06634, 2403.09539).

Next-token logits of a transformer are W·x with a hidden vector x of `width` numbers, so the matrix of
centred logits of n > width histories has rank at most width, and its right singular vectors span the
columns of the centred unembedding W_c: the unembedding up to an invertible width × width map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from oracles.access import LogitAccess, TopLogitAccess
from oracles.checks import as_finite, as_generator, as_integer, as_number
from oracles.errors import ParameterError, ShapeError

#: A bias that lifts tokens above all others in every answer of an API (its usual largest value).
_LIFT = 100.0


@dataclass(frozen=True, eq=False)
class Width:
    """Hidden width read off logits.

    Attributes:
        width: estimated width; `None` if no gap decides.
        drop: σ_width / σ_(width+1), how clear the gap is.
        agreement: whether two disjoint halves of the histories give the same width.
        singular_values: of the centred logits, falling.
        confident: drop ≥ the required one, both halves agree, and more histories than twice the width.
    """

    width: int | None
    drop: float
    agreement: bool
    singular_values: Float[np.ndarray, "k"]
    confident: bool


def hidden_width(
    access: LogitAccess | TopLogitAccess,
    n: int | None = None,
    length: int = 4,
    drop: float = 10.0,
    rng: np.random.Generator | int | None = None,
    histories: Sequence[ArrayLike] | None = None,
) -> Width:
    """Hidden width of the model behind `access`: the numerical rank of its centred logits.

    The rank is where log σ_i falls most between neighbours, searched over the indices that leave half of
    the histories spare: below the width, singular values of a trained network fall smoothly; past
    it they fall to the rounding of the model's arithmetic at once. The same rule on two disjoint
    halves of the histories must agree.

    Arguments:
        n: histories asked; None doubles from 64 until the estimate is confident or n ≥ 4 × vocabulary.
        length: tokens per history, drawn uniformly at random; ignored when `histories` are given.
        drop: smallest σ_width / σ_(width+1) that counts as a gap.

    With `TopLogitAccess` full logits are rebuilt first, see `logits_from_top`.
    A width that reaches vocab_size − 1 is not visible: the answer is then `None`.
    """
    as_number("drop", drop, 1.0)
    generator = as_generator(rng)
    if histories is not None:
        return _width_of(_ask(access, histories), drop)
    size = 64 if n is None else as_integer("n", n, 4)
    logits = np.empty((0, access.vocab_size))
    while True:
        shape = (size - len(logits), as_integer("length", length, 1))
        logits = np.concatenate([logits, _ask(access, generator.integers(access.vocab_size, size=shape))])
        found = _width_of(logits, drop)
        if found.confident or n is not None or size >= 4 * access.vocab_size:
            return found
        size *= 2


@dataclass(frozen=True, eq=False)
class Unembedding:
    """`basis` (A, width), orthonormal: W_c = basis · M, M invertible; `singular_values` of the logits."""

    basis: Float[np.ndarray, "vocab width"]
    singular_values: Float[np.ndarray, "width"]

    def residual(self, unembedding: ArrayLike) -> float:
        """‖W_c − basis · M‖_F / ‖W_c‖_F for the best M, W_c the true unembedding (A, width) centred."""
        true = as_finite("unembedding", unembedding, "(vocab, width)", 2)
        if len(true) != len(self.basis):
            raise ShapeError("unembedding", "(vocab, width)", f"({len(self.basis)}, width)", true.shape)
        centred = true - true.mean(axis=0)
        left = centred - self.basis @ (self.basis.T @ centred)
        return float(np.linalg.norm(left) / np.linalg.norm(centred))


def unembedding(
    access: LogitAccess | TopLogitAccess,
    width: int,
    n: int | None = None,
    length: int = 4,
    rng: np.random.Generator | int | None = None,
) -> Unembedding:
    """Column space of the centred unembedding from the logits of `n` histories (default 4 × width)."""
    width = as_integer("width", width, 1, access.vocab_size)
    n = 4 * width if n is None else as_integer("n", n, width)
    histories = as_generator(rng).integers(access.vocab_size, size=(n, as_integer("length", length, 1)))
    _, sigma, right = np.linalg.svd(_ask(access, histories), full_matrices=False)
    return Unembedding(right[:width].T, sigma[:width])


def logits_from_top(
    access: TopLogitAccess, histories: Sequence[ArrayLike] | np.ndarray
) -> Float[np.ndarray, "n vocab"]:
    """All centred logits from answers that show only k tokens, by logit bias (arXiv:2403.06634, section 4).

    Each call lifts one reference token and k − 1 others above the rest by one bias; their answered
    log-probabilities then differ by exactly the differences of their logits. ⌈(A−1)/(k−1)⌉ calls per history.
    """
    vocab_size, k = access.vocab_size, access.k
    if k < 2:
        raise ParameterError("rebuilding logits needs k ≥ 2 tokens per answer: raise k")
    count = len(histories)
    differences = np.zeros((count, vocab_size))
    for first in range(1, vocab_size, k - 1):
        lifted = np.arange(first, min(first + k - 1, vocab_size))
        bias = np.zeros(vocab_size)
        bias[[0, *lifted]] = _LIFT
        tokens, log_probs = access.top(histories, bias)
        answered = np.full((count, vocab_size), np.nan)
        np.put_along_axis(answered, tokens, log_probs, axis=1)
        differences[:, lifted] = answered[:, lifted] - answered[:, :1]
    if np.isnan(differences).any():
        raise ParameterError(
            f"a bias of {_LIFT:g} does not lift every token into the answer: logits too spread"
        )
    return differences - differences.mean(axis=1, keepdims=True)


def _ask(
    access: LogitAccess | TopLogitAccess, histories: Sequence[ArrayLike] | np.ndarray
) -> Float[np.ndarray, "n vocab"]:
    if isinstance(access, TopLogitAccess):
        return logits_from_top(access, histories)
    if isinstance(access, LogitAccess):
        return access.logits(histories)
    raise ParameterError(f"extraction needs LogitAccess or TopLogitAccess, got {type(access).__name__}")


def _width_of(logits: Float[np.ndarray, "n vocab"], drop: float) -> Width:
    halves = [_largest_drop(np.linalg.svd(part, compute_uv=False)) for part in (logits[::2], logits[1::2])]
    sigma = np.linalg.svd(logits, compute_uv=False)
    width, ratio = _largest_drop(sigma)
    if width is None or ratio < drop:
        return Width(None, ratio, False, sigma, False)
    agreement = all(half == width for half, _ in halves)
    return Width(width, ratio, agreement, sigma, agreement and len(logits) >= 2 * width)


def _largest_drop(sigma: Float[np.ndarray, "k"]) -> tuple[int | None, float]:
    """(index, ratio) of the largest fall between neighbouring singular values; None without one.

    The last value of a centred full-rank matrix is rounding (rows sum to zero): a fall there says
    nothing, so the search ends before it.
    """
    floor = 1e-14 * sigma[0] if len(sigma) and sigma[0] > 0 else 1e-300
    values = np.maximum(sigma[:-1], floor)
    if len(values) < 2:
        return None, 1.0
    falls = values[:-1] / values[1:]
    index = int(falls.argmax())
    return index + 1, float(falls[index])
