"""Baum–Welch: expectation–maximisation for homogeneous HMMs, on the strings' prefix tree, with restarts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lrlm_sim.learners.base import SUCCESS, Learner, Result, Status
from lrlm_sim.learners.ngram import draw_strings
from oracles.access import Access, ConditionalSampleAccess, SampleAccess
from oracles.checks import as_generator, as_integer, as_number
from oracles.errors import NonFiniteError
from oracles.hmm import HiddenMarkovModel


@dataclass(frozen=True)
class BaumWelch(Learner):
    """Maximum likelihood by EM (Baum et al. 1970), the best of several random starts.

    Arguments:
        n_states: S.
        samples: strings drawn.
        restarts: random starts; the one with the highest likelihood is kept.
        iterations: most EM steps per start.
        tolerance: stop when the log-likelihood per string grows by less (nats).
        prior: pseudo-count of every transition and emission (per string 1/samples of it).

    Distinct strings are counted once with their multiplicity, and every prefix that they share is visited
    once: an EM step costs O(S²) per distinct prefix.
    """

    n_states: int
    samples: int = 10_000
    restarts: int = 5
    iterations: int = 200
    tolerance: float = 1e-6
    prior: float = 1e-3
    horizon: int | None = None

    accesses = (SampleAccess, ConditionalSampleAccess)

    def __post_init__(self) -> None:
        for name in ("n_states", "samples", "restarts", "iterations"):
            as_integer(name, getattr(self, name), 1)
        as_number("tolerance", self.tolerance, 0)
        as_number("prior", self.prior, 0)

    def fit(self, access: Access, rng: np.random.Generator | int | None = None) -> Result:
        strings = draw_strings(self, access, self.samples, self.horizon)
        rng = as_generator(rng)
        strings = strings.astype(np.min_scalar_type(access.vocab_size))  # narrow rows sort faster
        distinct, copies = np.unique(strings, axis=0, return_counts=True)
        levels, weights = _prefix_levels(distinct), copies / copies.sum()
        best: tuple[float, HiddenMarkovModel, bool] | None = None
        histories = []
        for _ in range(self.restarts):
            start = HiddenMarkovModel.random(self.n_states, access.vocab_size, strings.shape[1], rng)
            likelihoods, model, converged = self._climb(start, levels, weights)
            histories.append(likelihoods)
            if best is None or likelihoods[-1] > best[0]:
                best = (likelihoods[-1], model, converged)
        assert best is not None
        status = SUCCESS if best[2] else Status("not_converged", "EM was still climbing: raise iterations")
        stats = {"log_likelihood": best[0], "log_likelihoods": histories}
        return Result(best[1], status, access.ledger, stats)

    def _climb(
        self, model: HiddenMarkovModel, levels: list[_Level], weights: Float[np.ndarray, "n"]
    ) -> tuple[list[float], HiddenMarkovModel, bool]:
        """Log-likelihood per string after each step, the last model, and whether it converged."""
        likelihoods: list[float] = []
        for _ in range(self.iterations):
            likelihood, expected = _expectations(model, levels, weights)
            if not np.isfinite(likelihood):
                raise NonFiniteError("Baum–Welch met a likelihood that is not finite: raise prior")
            likelihoods.append(likelihood)
            if len(likelihoods) > 1 and likelihoods[-1] - likelihoods[-2] < self.tolerance:
                return likelihoods, model, True
            pseudo = self.prior / self.samples
            initial, transition, emission = (_normalise(counts + pseudo) for counts in expected)
            model = HiddenMarkovModel(initial, transition, emission, model.horizon)
        return likelihoods, model, False


def _normalise(rows: np.ndarray) -> np.ndarray:
    total = rows.sum(axis=-1, keepdims=True)
    return np.where(total > 0, rows / np.where(total > 0, total, 1), 1 / rows.shape[-1])


@dataclass(frozen=True, eq=False)
class _Level:
    """Distinct prefixes of one length, sorted: last token, parent in the level above, first child below."""

    token: Int[np.ndarray, "nodes"]
    parent: Int[np.ndarray, "nodes"]
    first_child: Int[np.ndarray, "nodes"]


def _prefix_levels(strings: Int[np.ndarray, "n T"]) -> list[_Level]:
    """Prefixes of lengths 1 … T of strings that are distinct and in lexicographic order."""
    differs = np.logical_or.accumulate(strings[1:] != strings[:-1], axis=1)
    levels = []
    above = np.zeros(len(strings), dtype=np.int64)
    for t in range(strings.shape[1]):
        starts = np.flatnonzero(np.concatenate([[True], differs[:, t]]))
        nodes = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(strings)))
        last = t + 1 == strings.shape[1]
        below = starts if last else np.flatnonzero(np.concatenate([[True], differs[:, t + 1]]))
        levels.append(_Level(strings[starts, t], above[starts], np.searchsorted(below, starts)))
        above = nodes
    return levels


def _expectations(
    model: HiddenMarkovModel, levels: list[_Level], weights: Float[np.ndarray, "n"]
) -> tuple[float, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Log-likelihood per string and expected counts (initial, transition, emission), scaled recursions.

    Both recursions run on the prefix tree. Forward: a(h), the filtered law of the state after prefix h.
    Backward: b(h) = Σ_(x continues h) weight(x) P(rest of x | state) / P(rest of x | h), the sum of its
    children's messages; a(h)·b(h) is the posterior of the state at |h|, summed over all strings through h.
    """
    forward, scales = [], []
    predicted = model.initial[None]
    for level in levels:
        seen = predicted[level.parent] * model.emission.T[level.token]
        scale = seen.sum(axis=1)
        forward.append(seen / np.where(scale > 0, scale, 1)[:, None])
        scales.append(scale)
        predicted = forward[-1] @ model.transition
    backward = np.repeat(weights[:, None], model.n_states, axis=1)
    mass, total = weights, 0.0
    transition, emission = np.zeros_like(model.transition), np.zeros_like(model.emission)
    for t in range(len(levels) - 1, -1, -1):
        level, scale = levels[t], scales[t]
        posterior = forward[t] * backward
        for state, row in enumerate(emission):
            row += np.bincount(level.token, posterior[:, state], len(row))
        with np.errstate(divide="ignore"):
            total += float(mass @ np.log(scale))
        if t == 0:
            return total, (posterior.sum(axis=0), transition, emission)
        message = model.emission.T[level.token] * backward / np.where(scale > 0, scale, 1)[:, None]
        transition += model.transition * (forward[t - 1][level.parent].T @ message)
        first = levels[t - 1].first_child
        backward = np.add.reduceat(message, first, axis=0) @ model.transition.T
        mass = np.add.reduceat(mass, first)
    raise AssertionError("strings have at least one token")
