"""Large Fourier coefficients of a label's logit by Goldreich–Levin / Kushilevitz–Mansour.

Teachers read n bits and then give one label. The label logit is a function on the cube,

    f(x) = L(1 | x) = Σ_S f̂(S) χ_S(x),    χ_S(x) = (−1)^(Σ_(j∈S) x_j),

and the algorithm finds all S with |f̂(S)| ≥ θ by queries: a *bucket* (k, U), U ⊆ {0..k−1}, holds every S
with S ∩ {0..k−1} = U. Its weight is an expectation over heads y, y' of k bits and tails x of n − k bits,

    W(k, U) = Σ_(S in bucket) f̂(S)² = E[f(y∘x) f(y'∘x) χ_U(y) χ_U(y')],

so a bucket lighter than θ²/2 is dropped and the others are split on the next bit; by Parseval at most
2‖f‖²/θ² are heavy at every level. Goldreich and Levin (STOC 1989); Kushilevitz and Mansour
(SIAM J. Comput. 22(6), 1993), Theorem 3.10; O'Donnell, *Analysis of Boolean Functions*, section 3.5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from lrlm_sim.learners.base import SUCCESS, Learner, Result, Status, require_access
from oracles.access import Access, LogitAccess
from oracles.checks import as_generator, as_integer, as_number
from oracles.errors import BudgetError, HorizonError, ParameterError
from oracles.isan import ISAN
from oracles.sparse_polynomial import SparsePolynomial

#: Strings on which moments of f are estimated, and strings whose bits are checked to be fair.
_PROBED, _BIT_STRINGS = 64, 4
#: Standard errors of the fresh mean square error above the chance level that are not accepted.
_DEVIATIONS = 4.0


@dataclass(frozen=True)
class FourierLearner(Learner):
    """Learner of n bits followed by a label whose logit is a sparse polynomial, from logit queries.

    The model is a `SparsePolynomial`, whose bits are fair; that is checked along a few strings.

    Arguments:
        threshold: θ, the smallest coefficient of the centred label logit that must be found.
        pairs: pairs (y∘x, y'∘x) per level, 2 calls each; None is ⌈100·M/θ⁴⌉ with M = E f⁴ estimated on 64
            uniform strings. The standard error of a weight is then θ²/10, a fifth of its distance θ²/2
            from both kinds of error.
        samples: uniform strings on which the coefficients found are fitted; None is ⌈64·E f²/θ²⌉,
            at least four per coefficient.
        horizon: n + 1; None takes the teacher's.
        validation: fresh uniform strings for the root mean square of f − model.
        tolerance: accepted root mean square, with four standard errors to spare; None is θ/2.
        max_buckets: most buckets kept at a level: beyond it the lightest are dropped and the status says so.

    Coefficients come from least squares on the characters found, exact where they are all of them; the
    averages of the textbook, off by O(‖f‖/√samples), are kept in `stats["averages"]`. A level asks 2·pairs
    labels, whatever the number of buckets.
    """

    threshold: float = 0.25
    pairs: int | None = None
    samples: int | None = None
    horizon: int | None = None
    validation: int = 256
    tolerance: float | None = None
    max_buckets: int = 256

    accesses = (LogitAccess,)

    def __post_init__(self) -> None:
        if as_number("threshold", self.threshold, 0) == 0:
            raise ParameterError("threshold must be positive: at 0 every bucket is heavy")
        for name in ("pairs", "samples", "horizon"):
            if getattr(self, name) is not None:
                as_integer(name, getattr(self, name), 1)
        if self.tolerance is not None:
            as_number("tolerance", self.tolerance, 0)
        as_integer("validation", self.validation, 2)
        as_integer("max_buckets", self.max_buckets, 1)

    def fit(self, access: Access, rng: np.random.Generator | int | None = None) -> Result:
        require_access(self, access)
        assert isinstance(access, LogitAccess)
        if access.vocab_size != 2:
            raise ParameterError(f"the teacher must be binary, its vocabulary is {access.vocab_size}")
        horizon = self.horizon if self.horizon is not None else access.horizon
        if horizon is None:
            raise HorizonError("the teacher has no horizon: give FourierLearner(horizon=…)")
        if access.horizon is not None and horizon > access.horizon:
            raise HorizonError(f"horizon = {horizon} is past the teacher's {access.horizon}")
        search = _Search(access, horizon - 1, as_generator(rng))
        try:
            return self._learn(search)
        except BudgetError as error:
            error.partial = {"level": search.level, "buckets": [_subset(row) for row in search.buckets]}
            raise

    def _learn(self, search: _Search) -> Result:
        squares = np.square(search.labels(search.strings(_PROBED)))
        theta = self.threshold
        pairs = self.pairs or max(1, math.ceil(100 * float(np.square(squares).mean()) / theta**4))
        samples = self.samples or max(1, math.ceil(64 * float(squares.mean()) / theta**2))
        dropped = search.run(pairs, theta**2 / 2, self.max_buckets)
        strings = search.strings(max(samples, 4 * len(search.buckets)))
        values, characters = search.labels(strings), _characters(strings, search.buckets)
        averages = characters.T @ values / len(values)
        large = np.abs(_least_squares(characters, values)) >= theta / 2
        kept, coefficients = search.buckets[large], _least_squares(characters[:, large], values)
        error, spread = self._validate(search, kept, coefficients)
        bias = search.largest_bit_logit(_BIT_STRINGS)
        stats: dict[str, Any] = {
            "subsets": [_subset(row) for row in kept],
            "coefficients": coefficients,
            "averages": averages[large],
            "buckets_per_level": search.widths,
            "dropped": dropped,
            "pairs": pairs,
            "samples": samples,
            "largest_bit_logit": bias,
            "validation_error": error,
            "tolerance": self._accepted,
        }
        status = self._judge(error, spread, bias, dropped)
        return Result(_model(search.n, kept, coefficients), status, search.access.ledger, stats)

    @property
    def _accepted(self) -> float:
        return self.threshold / 2 if self.tolerance is None else self.tolerance

    def _validate(
        self, search: _Search, kept: Bool[np.ndarray, "k n"], coefficients: Float[np.ndarray, "k"]
    ) -> tuple[float, float]:
        """Root mean square of f − model on fresh uniform strings, and the standard error of its square."""
        strings = search.strings(self.validation)
        squares = np.square(search.labels(strings) - _characters(strings, kept) @ coefficients)
        return float(np.sqrt(squares.mean())), float(squares.std() / np.sqrt(len(squares)))

    def _judge(self, error: float, spread: float, bias: float, dropped: int) -> Status:
        if bias > self._accepted:
            return Status(
                "not_fair_bits", f"a bit before the label has the logit {bias:.2g}: learn its law too"
            )
        if error**2 + _DEVIATIONS * spread <= self._accepted**2:
            return SUCCESS
        if dropped:
            return Status(
                "too_many_buckets", f"{dropped} buckets were dropped: raise max_buckets or threshold"
            )
        return Status(
            "not_accepted",
            f"the polynomial is off by {error:.2g} (root mean square), accepted {self._accepted:.2g}: "
            "lower threshold, or raise pairs",
        )


def fourier_terms(model: ISAN, threshold: float = 1e-9) -> dict[tuple[int, ...], float]:
    """All S with |f̂(S)| ≥ `threshold` of the centred label logit of a binary network, without queries.

    f(x) = b·A_(n−1,x_(n−1)) ··· A_(0,x_0) x_0 is a product, so f̂(S) = b·M_(n−1) ··· M_0 x_0 with M_t the half
    sum of the two maps where t ∉ S, else their half difference; and the weight of a bucket is
    cᵀΓ_k c with Γ_n = bbᵀ, Γ_k = Σ_M MᵀΓ_(k+1) M: the same search with exact weights, in O(n·terms·d²).
    Raises ParameterError unless the vocabulary is binary and the threshold positive.
    """
    if model.vocab_size != 2:
        raise ParameterError(f"the network must be binary, its vocabulary is {model.vocab_size}")
    if as_number("threshold", threshold, 0) == 0:
        raise ParameterError("threshold must be positive: at 0 every subset is large")
    n = model.horizon - 1
    maps = np.broadcast_to(model.transitions, (n, 2, model.width, model.width))
    halves = np.stack([maps[:, 0] + maps[:, 1], maps[:, 0] - maps[:, 1]], axis=1) / 2
    readout = model.readouts[n] if model.readouts.ndim == 3 else model.readouts
    label = (readout[1] - readout[0]) / 2
    tails = [np.outer(label, label)]
    for step in halves[::-1]:
        tails.append(np.add.reduce([half.T @ tails[-1] @ half for half in step]))
    subsets, states = np.zeros((1, 0), dtype=bool), model.initial[None]
    for step, tail in zip(halves, tails[-2::-1], strict=True):
        states = np.concatenate([states @ half.T for half in step])
        bit = np.repeat([[False], [True]], len(subsets), axis=0)
        subsets = np.concatenate([np.tile(subsets, (2, 1)), bit], axis=1)
        heavy = np.einsum("ki,ij,kj->k", states, tail, states, optimize=True) >= threshold**2 / 2
        subsets, states = subsets[heavy], states[heavy]
    values = states @ label
    order = np.lexsort(subsets.T[::-1]) if len(subsets) and n else np.arange(len(subsets))
    return {_subset(subsets[i]): float(values[i]) for i in order if abs(values[i]) >= threshold}


class _Search:
    """The bucket search: queries of the label logit, and the buckets alive at the level reached."""

    def __init__(self, access: LogitAccess, n: int, rng: np.random.Generator) -> None:
        self.access, self.n, self._rng = access, n, rng
        self.level, self.buckets = 0, np.zeros((1, 0), dtype=bool)
        self.widths: list[int] = []

    def strings(self, count: int) -> Bool[np.ndarray, "count n"]:
        """Uniform strings of n bits."""
        return self._rng.integers(0, 2, (count, self.n)).astype(bool)

    def labels(self, strings: Bool[np.ndarray, "count n"]) -> Float[np.ndarray, "count"]:
        """The centred logit f of label 1; one call per distinct string."""
        return self.access.logits(strings.astype(np.int64))[:, 1]

    def largest_bit_logit(self, count: int) -> float:
        """Largest |logit| of a bit after the beginnings of `count` uniform strings."""
        strings = self.strings(count).astype(np.int64)
        prefixes = [string[:length] for string in strings for length in range(self.n)]
        return float(np.abs(self.access.logits(prefixes)).max()) if prefixes else 0.0

    def run(self, pairs: int, heavy: float, max_buckets: int) -> int:
        """Split level by level; returns how many heavy buckets were dropped for want of room."""
        dropped = 0
        for level in range(1, self.n + 1):
            split = np.repeat(self.buckets, 2, axis=0)
            bit = np.tile([False, True], len(self.buckets))
            candidates = np.concatenate([split, bit[:, None]], axis=1)
            weights = self._weights(candidates, pairs)
            alive = np.flatnonzero(weights >= heavy)
            if len(alive) > max_buckets:
                dropped += len(alive) - max_buckets
                alive = np.sort(alive[np.argsort(-weights[alive], kind="stable")[:max_buckets]])
            self.level, self.buckets = level, candidates[alive]
            self.widths.append(len(alive))
        return dropped

    def _weights(self, candidates: Bool[np.ndarray, "m k"], pairs: int) -> Float[np.ndarray, "m"]:
        """W(k, U) of every candidate from the same pairs: 2·pairs calls for a whole level."""
        level = candidates.shape[1]
        one, other = self.strings(pairs), self.strings(pairs)
        other[:, level:] = one[:, level:]
        products = self.labels(one) * self.labels(other)
        # χ_U(y)·χ_U(y') = χ_U(y xor y')
        return _characters(one[:, :level] ^ other[:, :level], candidates).T @ products / pairs


def _least_squares(
    characters: Float[np.ndarray, "count k"], values: Float[np.ndarray, "count"]
) -> Float[np.ndarray, "k"]:
    return np.linalg.lstsq(characters, values, rcond=None)[0] if characters.shape[1] else np.empty(0)


def _characters(
    strings: Bool[np.ndarray, "count n"], subsets: Bool[np.ndarray, "k n"]
) -> Float[np.ndarray, "count k"]:
    """χ_S(x) of every string and subset, both as rows of bits."""
    parity = strings.astype(np.float64) @ subsets.T.astype(np.float64)
    return 1.0 - 2.0 * np.mod(parity, 2.0)


def _subset(row: Bool[np.ndarray, "n"]) -> tuple[int, ...]:
    return tuple(np.flatnonzero(row).tolist())


def _model(
    n: int, subsets: Bool[np.ndarray, "k n"], coefficients: Float[np.ndarray, "k"]
) -> SparsePolynomial:
    """The polynomial as an oracle; the empty set is its bias, weights are log-odds, twice the logit."""
    empty = ~subsets.any(axis=1)
    terms = tuple(_subset(row) for row in subsets[~empty])
    return SparsePolynomial(n, terms, 2 * coefficients[~empty], float(2 * coefficients[empty].sum()))
