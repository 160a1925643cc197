"""Labels whose logit is a sparse polynomial of uniform bits: Fourier analysis inside low logit rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from oracles.base import LinearForm
from oracles.checks import as_finite, as_generator, as_integer, as_number
from oracles.errors import ParameterError, ShapeError
from oracles.isan import ISAN, log_softmax
from oracles.recurrent import RecurrentOracle
from oracles.storage import storable

_LINEAR_TERMS = 6  # characters beyond which the 2^k states of `linear_form` are not worth building


@storable("sparse_polynomial")
@dataclass(frozen=True, eq=False, repr=False)
class SparsePolynomial(RecurrentOracle):
    """X uniform on {0,1}^n, then a label of logit L(1|x) = ½(bias + Σ_i weights[i]·χ_(S_i)(x)).

    Arguments:
        n: number of bits, ≥ 0; A = 2, T = n + 1.
        subsets: k subsets S_i of 0..n−1, χ_S(x) = (−1)^(Σ_(j∈S) x_j).
        weights: shape (k,).
        bias: a_0.

    Logits are centred, so bias + Σ weights·χ is the label's log-odds. A character factors at every
    cut, so the logit rank is ≤ k + (bias ≠ 0) (arXiv:2512.09892; noisy parity is k = 1, bias = 0).
    Raises ParameterError or ShapeError on bad subsets, ShapeError or NonFiniteError on bad weights.
    """

    n: int
    subsets: tuple[tuple[int, ...], ...]
    weights: Float[np.ndarray, "k"]
    bias: float = 0.0

    def __post_init__(self) -> None:
        n = as_integer("n", self.n, 0)
        subsets = _as_subsets(self.subsets, n)
        weights = as_finite("weights", self.weights, "(n_subsets,)", 1)
        if len(weights) != len(subsets):
            raise ShapeError("weights", "(n_subsets,)", (len(subsets),), weights.shape)
        for name, value in {
            "n": n,
            "subsets": subsets,
            "weights": weights.copy(),
            "bias": as_number("bias", self.bias, -np.inf),
            "vocab_size": 2,
            "horizon": n + 1,
        }.items():
            object.__setattr__(self, name, value)

    @classmethod
    def random(
        cls,
        n: int,
        terms: int,
        rng: np.random.Generator | int | None = None,
        scale: float = 1.0,
        bias: float = 0.0,
    ) -> SparsePolynomial:
        """`terms` distinct nonempty uniformly random subsets, weights ± `scale` with random signs."""
        n, rng = as_integer("n", n, 1), as_generator(rng)
        terms = as_integer("terms", terms, 0, min(2**n - 1, 1 << 20))
        chosen: dict[tuple[int, ...], None] = {}
        while len(chosen) < terms:
            subset = tuple(np.flatnonzero(rng.integers(0, 2, n)).tolist())
            if subset:
                chosen[subset] = None
        weights = as_number("scale", scale, 0.0) * rng.choice([-1.0, 1.0], terms)
        return cls(n, tuple(chosen), weights, bias)

    def __repr__(self) -> str:
        return f"SparsePolynomial(n={self.n}, terms={len(self.subsets)})"

    def first_row(self) -> Float[np.ndarray, "k"]:
        return np.ones(len(self.subsets))

    def step(
        self, position: int, rows: Float[np.ndarray, "batch k"], tokens: Int[np.ndarray, "batch"]
    ) -> Float[np.ndarray, "batch k"]:
        return rows * self._signs[position, tokens] if position < self.n else rows

    def laws(self, position: int, rows: Float[np.ndarray, "batch k"]) -> Float[np.ndarray, "batch 2"]:
        if position < self.n:
            return np.full((len(rows), 2), -np.log(2))
        return coin_laws(0.5 * (self.bias + rows @ self.weights))

    def linear_form(self) -> LinearForm | None:
        """States are the 2^k sign patterns of the characters; None for more than 6 characters."""
        terms = len(self.subsets)
        if terms > _LINEAR_TERMS:
            return None
        patterns = np.arange(2**terms)
        operators = []
        for signs in self._signs:
            operator = np.zeros((2, 2**terms, 2**terms))
            for token in (0, 1):
                flipped = int(((signs[token] < 0) << np.arange(terms)).sum())
                operator[token, patterns, patterns ^ flipped] = 0.5
            operators.append(operator)
        rows = 1.0 - 2.0 * (patterns[:, None] >> np.arange(terms) & 1)
        label = np.exp(self.laws(self.n, rows)).T[:, :, None] * np.eye(2**terms)
        return LinearForm(np.eye(2**terms)[0], [*operators, label], np.ones(2**terms))

    def to_isan(self) -> ISAN:
        """The same law as a network of width k + (bias ≠ 0), at least 1: the running characters."""
        constant = self.bias != 0 or not self.subsets
        signs = self._signs
        coefficients = self.weights
        if constant:
            signs = np.concatenate([signs, np.ones((self.n, 2, 1))], axis=2)
            coefficients = np.append(coefficients, self.bias)
        readouts = np.zeros((self.n + 1, 2, len(coefficients)))
        readouts[self.n] = 0.5 * np.outer([-1.0, 1.0], coefficients)
        transitions = signs[..., None] * np.eye(len(coefficients))
        return ISAN(np.ones(len(coefficients)), transitions, readouts, self.n + 1)

    @cached_property
    def _signs(self) -> Float[np.ndarray, "n 2 k"]:
        """Factor of every character when bit t is read as 0 or 1."""
        signs = np.ones((self.n, 2, len(self.subsets)))
        for i, subset in enumerate(self.subsets):
            signs[list(subset), 1, i] = -1.0
        return signs


def coin_laws(logits: Float[np.ndarray, "batch"]) -> Float[np.ndarray, "batch 2"]:
    """(log P(0), log P(1)) from the centred logit of token 1, half its log-odds."""
    return log_softmax(np.stack([-logits, logits], axis=1))


def _as_subsets(subsets: Sequence[Sequence[int]], n: int) -> tuple[tuple[int, ...], ...]:
    if not isinstance(subsets, (tuple, list)) or not all(isinstance(s, (tuple, list)) for s in subsets):
        raise ShapeError("subsets", "[n_subsets][size]", "lists of bit numbers", repr(subsets)[:60])
    checked = tuple(
        tuple(as_integer(f"subsets[{i}]", bit, 0, n - 1) for bit in subset)
        for i, subset in enumerate(subsets)
    )
    for i, subset in enumerate(checked):
        if len(set(subset)) < len(subset):
            raise ParameterError(f"subsets[{i}] = {subset} names a bit twice: list each bit once")
    return checked
