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
        confident: drop ≥ the required one, what is left after `width` directions is no larger than noise,
            both halves agree, and there are at least twice as many histories as the width.
        noise: largest singular value that rounding noise of the size found (or given) reaches with the
            stated confidence; 0 where no width was a candidate and no noise was given.
        confidence: 1 − δ of that bound, for independent errors.
        at_least: directions above `noise`: a lower bound of the width, also where no gap decides.
        reason: why the answer is not confident, and what to change; empty where it is.
    """

    width: int | None
    drop: float
    agreement: bool
    singular_values: Float[np.ndarray, "k"]
    confident: bool
    noise: float = 0.0
    confidence: float = 1 - 1e-6
    at_least: int = 0
    reason: str = ""


def hidden_width(
    access: LogitAccess | TopLogitAccess,
    n: int | None = None,
    length: int = 4,
    drop: float = 10.0,
    rng: np.random.Generator | int | None = None,
    histories: Sequence[ArrayLike] | None = None,
    confidence: float = 1 - 1e-6,
    noise: float | None = None,
) -> Width:
    """Hidden width of the model behind `access`: the numerical rank of its centred logits.

    The rank w is where log σ_i falls most between neighbours: below the width, singular values of a
    trained network fall smoothly; past it they fall to the rounding of the model's arithmetic at once. It
    is accepted if what is left, E = L − L_w, is no larger than independent errors of its size: with
    probability 1 − δ those have

        ‖E‖₂ ≤ max_h ‖E_h·‖ + max_z ‖E_·z‖ + max |E| √(2 log 1/δ)

    (leading terms of Bandeira, van Handel 2016, Theorem 1.1, and Gaussian concentration; the errors need
    not be of one size). A missed direction of the network violates this unless it is itself that small.
    The same rule on two disjoint halves of the histories must agree.

    Arguments:
        n: histories asked; None doubles from 64 until the estimate is confident or n ≥ 4 × vocabulary.
        length: tokens per history, drawn uniformly at random; ignored when `histories` are given.
        drop: smallest σ_width / σ_(width+1) that counts as a gap.
        confidence: 1 − δ.
        noise: root mean square error of one logit where it is known (`noise_floor.NoiseFloor.entry`): the
            bound is then noise (√n + √A + √(2 log 1/δ)), and `at_least` is known without a gap too.

    With `TopLogitAccess` full logits are rebuilt first, see `logits_from_top`.
    A width that reaches vocab_size − 1 is not visible: the answer is then `None`. Tokens that pad the
    vocabulary beyond the tokenizer are answered like any other and do not change the rank.
    """
    as_number("drop", drop, 1.0)
    as_number("confidence", confidence, 0.5, 1 - 1e-15)
    rule = _Rule(drop, confidence, None if noise is None else as_number("noise", noise, 0.0))
    generator = as_generator(rng)
    if histories is not None:
        return _width_of(_ask(access, histories), rule)
    size = 64 if n is None else as_integer("n", n, 4)
    logits = np.empty((0, access.vocab_size))
    while True:
        shape = (size - len(logits), as_integer("length", length, 1))
        logits = np.concatenate([logits, _ask(access, generator.integers(access.vocab_size, size=shape))])
        found = _width_of(logits, rule)
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


@dataclass(frozen=True)
class _Rule:
    """Gap, confidence and known noise that decide about a width."""

    drop: float
    confidence: float
    noise: float | None

    @property
    def deviation(self) -> float:
        """√(2 log 1/δ)."""
        return float(np.sqrt(-2 * np.log1p(-self.confidence)))

    def bound(self, left: Float[np.ndarray, "n vocab"] | None, shape: tuple[int, ...]) -> float:
        """Largest singular value of noise: of the known size, or of the size of what is left."""
        if self.noise is not None:
            return self.noise * (np.sqrt(shape[0]) + np.sqrt(shape[1]) + self.deviation)
        if left is None:
            return 0.0
        rows, columns = (float(np.linalg.norm(left, axis=axis).max()) for axis in (1, 0))
        return rows + columns + float(np.abs(left).max()) * self.deviation


def _width_of(logits: Float[np.ndarray, "n vocab"], rule: _Rule) -> Width:
    left_vectors, sigma, right = np.linalg.svd(logits, full_matrices=False)
    width, ratio = _largest_drop(sigma)
    n, vocab = logits.shape
    if width is None or ratio < rule.drop:
        bound = rule.bound(None, logits.shape)
        at_least = int((sigma > bound).sum()) if bound > 0 else 0
        reason = (
            f"no singular value falls by {rule.drop:g} to the next: the width is at least "
            f"min(histories, vocab_size − 1) = {min(n, vocab - 1)}, or rounding hides it (ask in float32)"
        )
        return Width(None, ratio, False, sigma, False, bound, rule.confidence, at_least, reason)
    left = logits - (left_vectors[:, :width] * sigma[:width]) @ right[:width]
    bound = rule.bound(left, logits.shape)
    halves = [_largest_drop(np.linalg.svd(part, compute_uv=False)) for part in (logits[::2], logits[1::2])]
    agreement = all(half == width for half, _ in halves)
    reason = _doubt(sigma, width, bound, agreement, n)
    at_least = min(width, int((sigma > bound).sum()))
    return Width(width, ratio, agreement, sigma, not reason, bound, rule.confidence, at_least, reason)


def _doubt(sigma: Float[np.ndarray, "k"], width: int, bound: float, agreement: bool, n: int) -> str:
    """Why a width is not certain; empty if it is."""
    if n < 2 * width:
        return f"{n} histories for a width of {width}: ask at least {2 * width}"
    if not agreement:
        return "two halves of the histories give different widths: ask more histories"
    if width < len(sigma) and sigma[width] > bound:
        return "what is left after the gap is larger than independent rounding errors of its size would be"
    if sigma[width - 1] <= bound:
        return "the last direction before the gap is no larger than noise: ask in a wider precision"
    return ""


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
