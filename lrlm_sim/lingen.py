"""LinGen: continue a prompt by a linear combination of unrelated prompts (arXiv:2510.24966).

With centred logits L, helpers h_1..h_m and futures F, the weights of a target h* are

    v = argmin ‖L(h*, F) − Σ_i v_i L(h_i, F)‖² + ridge · n · ‖v‖²     (n = number of entries of L(h*, F)),

and the continuation is generated without asking about h* again:

    z_t ~ softmax(Σ_i v_i L(· | h_i∘z_<t)).

Only the Gram matrix of the helpers' rows is kept while futures are streamed, one per cross-validation
fold, so memory is O(folds · m²) however many futures there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from lrlm_sim.matrices import extended_logits
from oracles.base import Oracle, State
from oracles.checks import as_chunk, as_generator, as_integer, as_number, as_rows, as_strings
from oracles.errors import HorizonError, ParameterError, ShapeError

#: Ridges tried by cross-validation, relative to the mean squared row norm of the helpers per entry.
RIDGES = np.logspace(-10, 0, 21)
#: Logits held at once while futures are streamed.
_BLOCK_NUMBERS = 1 << 24


@dataclass(frozen=True, eq=False)
class LinGenModel(Oracle):
    """Continuation law softmax(Σ_i v_i L(· | h_i∘f)) as an oracle over f; the target is never asked.

    Arguments:
        oracle: the model that is asked about the helpers.
        helpers: m token strings, ragged lengths allowed.
        weights: v, shape (m,).
        horizon: longest continuation; None if the oracle is unbounded.
    """

    oracle: Oracle
    helpers: tuple[tuple[int, ...], ...]
    weights: Float[np.ndarray, "m"]

    def __post_init__(self) -> None:
        longest = max(len(helper) for helper in self.helpers)
        horizon = self.oracle.horizon
        object.__setattr__(self, "vocab_size", self.oracle.vocab_size)
        object.__setattr__(self, "horizon", None if horizon is None else horizon - longest)

    def start(self, batch: int) -> State:
        batch = as_integer("batch", batch, 0)
        return batch, tuple(
            self.oracle.take(self._read(rows), np.tile(np.arange(len(rows)), batch))
            for rows in self._groups()
        )

    def advance(self, state: State, tokens: ArrayLike) -> State:
        batch, parts = state
        values = as_chunk(tokens, batch, self.vocab_size)
        return batch, tuple(
            self.oracle.advance(part, np.repeat(values, len(rows), axis=0))
            for part, rows in zip(parts, self._groups(), strict=True)
        )

    def log_probs(self, state: State) -> Float[np.ndarray, "batch vocab"]:
        batch, parts = state
        mixed = np.zeros((batch, self.vocab_size))
        for part, rows in zip(parts, self._groups(), strict=True):
            logits = self.oracle.log_probs(part)
            logits = logits - logits.mean(axis=1, keepdims=True)
            logits = logits.reshape(batch, len(rows), self.vocab_size)
            mixed += np.einsum("bmz,m->bz", logits, self.weights[rows])
        mixed -= mixed.max(axis=1, keepdims=True)
        return mixed - np.log(np.exp(mixed).sum(axis=1, keepdims=True))

    def take(self, state: State, rows: ArrayLike) -> State:
        batch, parts = state
        chosen = as_rows(rows, batch)
        return len(chosen), tuple(
            self.oracle.take(part, (chosen[:, None] * len(group) + np.arange(len(group))).ravel())
            for part, group in zip(parts, self._groups(), strict=True)
        )

    def _groups(self) -> list[Int[np.ndarray, "k"]]:
        """Numbers of the helpers of each length; helpers of weight zero are left out."""
        lengths = np.array([len(helper) for helper in self.helpers])
        used = self.weights != 0
        groups = [np.flatnonzero((lengths == length) & used) for length in np.unique(lengths)]
        return [group for group in groups if len(group)]

    def _read(self, rows: Int[np.ndarray, "k"]) -> State:
        strings = np.array([self.helpers[i] for i in rows], dtype=np.int64).reshape(len(rows), -1)
        return self.oracle.advance(self.oracle.start(len(rows)), strings)


@dataclass(frozen=True, eq=False)
class Fit:
    """Weights of many targets, (n_targets, m), with the ridge chosen for each and its relative error.

    `relative_error` is ‖L(h*, F) − Σ v_i L(h_i, F)‖ / ‖L(h*, F)‖ on held-out futures where the ridge
    was chosen by cross-validation, else on the futures it was fitted on.
    """

    weights: Float[np.ndarray, "n m"]
    ridges: Float[np.ndarray, "n"]
    relative_error: Float[np.ndarray, "n"]


@dataclass(frozen=True, eq=False)
class LinGen:
    """Linear generation from helper prompts.

    Arguments:
        helpers: m ≥ 1 histories, token lists.
        futures: token lists on which the weights are fitted. Mixed lengths, the empty one included,
            generate better than one fixed length (`mixed_futures`); [[]] alone is the single-token variant.
        ridge: relative ridge; None chooses per target from `RIDGES` by cross-validation over futures.
        folds: cross-validation folds.
    """

    helpers: Sequence[ArrayLike] | np.ndarray
    futures: Sequence[ArrayLike] | np.ndarray
    ridge: float | None = None
    folds: int = 5

    def __post_init__(self) -> None:
        if len(self.helpers) < 1 or len(self.futures) < 1:
            raise ParameterError("LinGen needs at least one helper and one future")
        if self.ridge is not None:
            as_number("ridge", self.ridge, 0)
        as_integer("folds", self.folds, 2)

    def fit(self, oracle: Oracle, target: ArrayLike) -> LinGenModel:
        """The oracle that continues `target` (a token list) without asking about it."""
        return self.model(oracle, self.weights(oracle, [target]).weights[0])

    def model(self, oracle: Oracle, weights: ArrayLike) -> LinGenModel:
        """The generator of given weights, for instance of weights fitted on another model."""
        helpers = as_strings("helpers", list(self.helpers), oracle.vocab_size)
        weights = np.asarray(weights, dtype=np.float64)
        if weights.shape != (len(helpers),):
            raise ShapeError("weights", "(m,)", (len(helpers),), weights.shape)
        return LinGenModel(oracle, tuple(tuple(h.tolist()) for h in helpers), weights)

    def weights(self, oracle: Oracle, targets: Sequence[ArrayLike]) -> Fit:
        """Weights of every target; the helpers' logits are computed once for all of them."""
        helpers = as_strings("helpers", list(self.helpers), oracle.vocab_size)
        goals = as_strings("targets", list(targets), oracle.vocab_size)
        futures = as_strings("futures", list(self.futures), oracle.vocab_size)
        longest = max(len(h) for h in [*helpers, *goals]) + max(len(f) for f in futures)
        if oracle.horizon is not None and longest >= oracle.horizon:
            raise HorizonError(
                f"history, future and one token need {longest + 1} tokens, horizon = {oracle.horizon}"
            )
        folds = min(self.folds, len(futures)) if self.ridge is None else 1
        grams = _grams(oracle, helpers, goals, futures, folds)
        if self.ridge is not None or folds < 2:
            ridge = np.full(len(goals), 1e-6 if self.ridge is None else self.ridge)
            solution = _RidgeProblem.of(grams.sum(axis=0), len(helpers)).solve(ridge)
            return Fit(solution, ridge, _relative_error(solution, grams.sum(axis=0), len(helpers)))
        return _cross_validate(grams, len(helpers))


def mixed_futures(
    strings: Sequence[ArrayLike] | np.ndarray, rng: np.random.Generator | int | None = None
) -> list[list[int]]:
    """Each future cut at a uniformly random length 0..len, so that every step of generation is fitted."""
    generator = as_generator(rng)
    rows = [np.asarray(string) for string in strings]
    return [row[: generator.integers(len(row) + 1)].tolist() for row in rows]


@dataclass(frozen=True, eq=False)
class ContinuationError:
    """KL(true ‖ generated) along continuations drawn from the true model.

    Attributes:
        per_step: mean KL of the next-token laws after t tokens, nats, (steps,).
        per_step_error: its standard error over continuations, (steps,).
        cumulative: mean of the sum over steps: KL of the laws of whole continuations, nats.
        cumulative_error: its standard error.
    """

    per_step: Float[np.ndarray, "steps"]
    per_step_error: Float[np.ndarray, "steps"]
    cumulative: float
    cumulative_error: float


def continuation_kl(
    truth: Oracle, model: Oracle, n: int, steps: int, rng: np.random.Generator | int | None = None
) -> ContinuationError:
    """Chain rule of KL over `steps` tokens, averaged over `n` continuations drawn from `truth`.

    `truth` is the true law of continuations, e.g. ``oracle.condition(target)``.
    """
    n, steps = as_integer("n", n, 1), as_integer("steps", steps, 1)
    strings = truth.sample(n, rng, length=steps)
    states = truth.start(n), model.start(n)
    kl = np.empty((n, steps))
    for t in range(steps):
        p, q = truth.log_probs(states[0]), model.log_probs(states[1])
        kl[:, t] = np.where(np.isneginf(p), 0.0, np.exp(p) * (p - q)).sum(axis=1)
        if t + 1 < steps:
            states = truth.advance(states[0], strings[:, t]), model.advance(states[1], strings[:, t])
    total = kl.sum(axis=1)
    spread = np.sqrt(max(n - 1, 1) * n)

    def error(values: np.ndarray) -> np.ndarray:
        return np.sqrt(np.square(values - values.mean(axis=0)).sum(axis=0)) / spread

    return ContinuationError(kl.mean(axis=0), error(kl), float(total.mean()), float(error(total)))


def _grams(
    oracle: Oracle,
    helpers: list[Int[np.ndarray, "length"]],
    goals: list[Int[np.ndarray, "length"]],
    futures: list[Int[np.ndarray, "length"]],
    folds: int,
) -> Float[np.ndarray, "folds rows rows"]:
    """Gram matrix per fold of the rows [helpers; goals] over the fold's futures, per entry."""
    rows = [*helpers, *goals]
    grams = np.zeros((folds, len(rows), len(rows)))
    block = max(1, _BLOCK_NUMBERS // (len(rows) * oracle.vocab_size))
    for fold in range(folds):
        mine = futures[fold::folds]
        for first in range(0, len(mine), block):
            logits = extended_logits(oracle, rows, mine[first : first + block]).reshape(len(rows), -1)
            grams[fold] += logits @ logits.T
    return grams / (len(futures) * oracle.vocab_size)


@dataclass(frozen=True, eq=False)
class _RidgeProblem:
    """The normal equations in the eigenbasis of the helpers' Gram matrix: made once, solved for any ridge."""

    values: Float[np.ndarray, "m"]
    vectors: Float[np.ndarray, "m m"]
    rotated: Float[np.ndarray, "m n"]

    @classmethod
    def of(cls, gram: Float[np.ndarray, "k k"], m: int) -> _RidgeProblem:
        """Problem of the Gram matrix of m helpers followed by n targets."""
        values, vectors = np.linalg.eigh(gram[:m, :m])
        return cls(np.maximum(values, 0.0), vectors, vectors.T @ gram[:m, m:])

    def solve(self, ridges: float | Float[np.ndarray, "n"]) -> Float[np.ndarray, "n m"]:
        """Weights of all targets, one ridge for all or one each."""
        damped = self.values[:, None] + ridges * max(self.values.mean(), 1e-300) + 1e-15 * self.values[-1]
        return (self.vectors @ (self.rotated / damped)).T


def _relative_error(
    weights: Float[np.ndarray, "n m"], gram: Float[np.ndarray, "k k"], m: int
) -> Float[np.ndarray, "n"]:
    """‖L(h*, F) − Σ v_i L(h_i, F)‖ / ‖L(h*, F)‖ of each target, from the Gram matrix alone."""
    norms = np.diagonal(gram)[m:]
    cross = (weights * gram[:m, m:].T).sum(axis=1)
    quadratic = ((weights @ gram[:m, :m]) * weights).sum(axis=1)
    squares = np.maximum(norms - 2 * cross + quadratic, 0.0)
    return np.sqrt(squares / np.maximum(norms, 1e-300))


def _cross_validate(grams: Float[np.ndarray, "folds k k"], m: int) -> Fit:
    """Per target the ridge with the smallest squared error on held-out futures; refitted on all."""
    total, targets = grams.sum(axis=0), grams.shape[1] - m
    errors = np.zeros((len(RIDGES), targets))
    held = np.zeros(targets)
    for gram in grams:
        norms = np.diagonal(gram)[m:]
        held += norms
        problem = _RidgeProblem.of(total - gram, m)
        for i, ridge in enumerate(RIDGES):
            errors[i] += np.square(_relative_error(problem.solve(ridge), gram, m)) * norms
    best = errors.argmin(axis=0)
    ridges = RIDGES[best]
    relative = np.sqrt(errors[best, np.arange(targets)] / np.maximum(held, 1e-300))
    return Fit(_RidgeProblem.of(total, m).solve(ridges), ridges, relative)
