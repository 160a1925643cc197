"""Baum–Welch: expectation–maximisation for homogeneous hidden Markov models, with restarts."""

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

    Distinct strings are counted once with their multiplicity, so the cost is that of the support.
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
        distinct, counts = np.unique(strings, axis=0, return_counts=True)
        best: tuple[float, HiddenMarkovModel, bool] | None = None
        histories = []
        for _ in range(self.restarts):
            start = HiddenMarkovModel.random(self.n_states, access.vocab_size, strings.shape[1], rng)
            likelihoods, model, converged = self._climb(start, distinct, counts)
            histories.append(likelihoods)
            if best is None or likelihoods[-1] > best[0]:
                best = (likelihoods[-1], model, converged)
        assert best is not None
        status = SUCCESS if best[2] else Status("not_converged", "EM was still climbing: raise iterations")
        stats = {"log_likelihood": best[0], "log_likelihoods": histories}
        return Result(best[1], status, access.ledger, stats)

    def _climb(
        self, model: HiddenMarkovModel, strings: Int[np.ndarray, "n T"], copies: Int[np.ndarray, "n"]
    ) -> tuple[list[float], HiddenMarkovModel, bool]:
        """Log-likelihood per string after each step, the last model, and whether it converged."""
        weights = copies / copies.sum()
        likelihoods: list[float] = []
        for _ in range(self.iterations):
            likelihood, expected = _expectations(model, strings, weights)
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


def _expectations(
    model: HiddenMarkovModel, strings: Int[np.ndarray, "n T"], weights: Float[np.ndarray, "n"]
) -> tuple[float, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Log-likelihood per string and expected counts (initial, transition, emission), scaled recursions."""
    n, horizon = strings.shape
    likelihood = model.emission.T[strings.T]  # (T, n, S)
    forward = np.empty((horizon, n, model.n_states))
    scale = np.empty((horizon, n))
    belief = np.broadcast_to(model.initial, (n, model.n_states))
    for t in range(horizon):
        seen = belief * likelihood[t]
        scale[t] = seen.sum(axis=1)
        forward[t] = seen / np.where(scale[t] > 0, scale[t], 1)[:, None]
        belief = forward[t] @ model.transition
    backward = np.ones((n, model.n_states))
    transition = np.zeros_like(model.transition)
    emission = np.zeros_like(model.emission.T)
    posterior = np.zeros((n, model.n_states))
    for t in range(horizon - 1, -1, -1):
        posterior = forward[t] * backward * weights[:, None]
        np.add.at(emission, strings[:, t], posterior)
        if t:
            message = likelihood[t] * backward / np.where(scale[t] > 0, scale[t], 1)[:, None]
            transition += model.transition * ((forward[t - 1] * weights[:, None]).T @ message)
            backward = message @ model.transition.T
    with np.errstate(divide="ignore"):
        total = float(weights @ np.log(scale).sum(axis=0))
    return total, (posterior.sum(axis=0), transition, emission.T)
