"""Learners from logit queries: exactness, witness words, smoothed teachers, tolerated noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from lrlm_sim.distances import total_variation
from lrlm_sim.learners import LogitQueryLearner, SmoothedQueryLearner
from lrlm_sim.theorems.base import Instance, Measurement, Theorem
from oracles.access import ConditionalSampleAccess, LogitAccess
from oracles.base import Oracle, State
from oracles.isan import ISAN
from oracles.noisy_parity import NoisyParity

_ISAN = {"width": (1, 4), "tokens": (2, 4), "horizon": (2, 6)}
_FEW = {"small": 20, "medium": 100, "large": 600}


@dataclass(frozen=True, eq=False)
class Smoothed(Oracle):
    """Every next-token law of a teacher mixed with the uniform law: (1−τ)P + τ/A."""

    teacher: Oracle
    tau: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "vocab_size", self.teacher.vocab_size)
        object.__setattr__(self, "horizon", self.teacher.horizon)

    def start(self, batch: int) -> State:
        return self.teacher.start(batch)

    def advance(self, state: State, tokens: ArrayLike) -> State:
        return self.teacher.advance(state, tokens)

    def log_probs(self, state: State) -> Float[np.ndarray, "batch vocab"]:
        laws = np.exp(self.teacher.log_probs(state))
        return np.log((1 - self.tau) * laws + self.tau / self.vocab_size)

    def take(self, state: State, rows: ArrayLike) -> State:
        return self.teacher.take(state, rows)


def _isan(instance: Instance) -> ISAN:
    return ISAN.random(instance["width"], instance["tokens"], instance["horizon"], instance["seed"])


def _exact(instance: Instance, learner: LogitQueryLearner) -> Measurement:
    """TV of the model shipped, plus one if the learner does not stand by it or needed a second epoch."""
    teacher = _isan(instance)
    result = learner.fit(LogitAccess(teacher, seed=instance["seed"]), instance["seed"])
    doubt = 0.0 if result.status.ok and result.stats["epochs"] == 1 else 1.0
    return Measurement(total_variation(teacher, result.model) + doubt, 0.0, 1e-9)


def _noisy(instance: Instance, factor: float = 1.0) -> Measurement:
    """TV of a learner told ξ, with every answer off by up to factor·ξ, against ξ T³ d^(3/2)."""
    xi, teacher = 10.0 ** -instance["digits"], _isan(instance)
    access = LogitAccess(teacher, noise=factor * xi, seed=instance["seed"])
    result = LogitQueryLearner(rank=instance["width"], noise=xi).fit(access, instance["seed"])
    bound = xi * instance["horizon"] ** 3 * instance["width"] ** 1.5
    return Measurement(total_variation(teacher, result.model), bound, 0.0)


def _one_epoch_without_closure(instance: Instance) -> Measurement:
    """Mutant: no closure, and only one epoch to find witness words."""
    teacher = NoisyParity.random(4, 0.1, instance["seed"])
    learner = LogitQueryLearner(closure=False, epochs=1)
    result = learner.fit(LogitAccess(teacher, seed=instance["seed"]), instance["seed"])
    return Measurement(total_variation(teacher, result.model), 0.0, 1e-9)


def _witnesses(instance: Instance) -> Measurement:
    teacher = NoisyParity.random(instance["bits"], 0.1, instance["seed"])
    learner = LogitQueryLearner(closure=False)
    result = learner.fit(LogitAccess(teacher, seed=instance["seed"]), instance["seed"])
    if not result.status.ok:
        return Measurement(np.inf, 0.0)
    return Measurement(float(np.max(result.stats["witness_words"])), float(result.stats["witness_bound"]), 0)


def _no_witnesses(instance: Instance) -> Measurement:
    """Mutant: the claim that no witness word is ever needed."""
    return Measurement(_witnesses(instance).measured, 0.0, 0)


def _undetected_rank(instance: Instance) -> Measurement:
    """A rank one too small must be reported: 0 if it is, 1 if a bad model is returned as a success."""
    teacher = _isan({**instance, "width": instance["width"] + 1})
    result = LogitQueryLearner(rank=1).fit(LogitAccess(teacher, seed=instance["seed"]), instance["seed"])
    silent = result.status.ok and total_variation(teacher, result.model) > 1e-6
    return Measurement(float(silent), 0.0, 0)


def _accepts_anything(instance: Instance) -> Measurement:
    """Mutant: a tolerance so large that validation accepts every model."""
    teacher = ISAN.random(4, 3, 6, instance["seed"])
    learner = LogitQueryLearner(rank=1, tolerance=1e6)
    result = learner.fit(LogitAccess(teacher, seed=instance["seed"]), instance["seed"])
    wrong = total_variation(teacher, result.model) > 1e-6
    return Measurement(float(wrong), 0.0, 0)


def _smoothing(instance: Instance, power: float = 1.0) -> Measurement:
    teacher, tau = _isan(instance), 2.0 ** -instance["bits"]
    bound = instance["horizon"] * tau / 2 * power
    return Measurement(total_variation(teacher, Smoothed(teacher, tau)), bound, 1e-12)


def _no_smoothing_cost(instance: Instance) -> Measurement:
    """Mutant: smoothing for free."""
    teacher = NoisyParity(np.ones(3, dtype=np.int64), 0.0)
    return Measurement(total_variation(teacher, Smoothed(teacher, 2.0 ** -instance["bits"])), 0.0, 1e-12)


def _smoothed_learner(instance: Instance, draws: int = 4000, epochs: int | None = None) -> Measurement:
    teacher = _isan(instance)
    access = ConditionalSampleAccess(teacher, seed=instance["seed"])
    learner = SmoothedQueryLearner(rank=instance["width"], draws=draws, epochs=epochs)
    result = learner.fit(access, instance["seed"])
    return Measurement(total_variation(teacher, result.model), 0.15, 0.0)


THEOREMS = (
    Theorem(
        "logit-query-exact",
        "From exact logits the logit-query learner returns the teacher, in one epoch with closure.",
        "arXiv:2512.09892, Theorem 5.11 with exact answers",
        _ISAN,
        lambda instance: _exact(instance, LogitQueryLearner()),
        mutants={"one epoch without closure": _one_epoch_without_closure},
        trials=_FEW,
    ),
    Theorem(
        "logit-query-noise",
        "Told that logits are known to ±ξ, the logit-query learner ends within ξ T³ d^(3/2) (constant one).",
        "arXiv:2512.09892, Theorem 5.11; Mausberg 2026, appendix on finite precision",
        {"width": (1, 3), "tokens": (2, 3), "horizon": (3, 6), "digits": (4, 6)},
        _noisy,
        lambda instance: 10.0 ** -instance["digits"] * instance["horizon"] ** 3 * instance["width"] ** 1.5,
        mutants={"ten thousand times the noise": lambda i: _noisy({**i, "digits": 5, "horizon": 4}, 1e4)},
        trials=_FEW,
    ),
    Theorem(
        "witness-words",
        "Without closure, the witness words per cut stay below the elliptical-potential bound.",
        "arXiv:2512.09892, section 5; constants of Mausberg 2026",
        {"bits": (2, 5)},
        _witnesses,
        mutants={"no words needed": _no_witnesses},
        trials={"small": 8, "medium": 40, "large": 200},
    ),
    Theorem(
        "rank-reported",
        "A rank given too small is reported, never a wrong model returned as a success.",
        "arXiv:2512.09892, validation at every cut",
        {"width": (1, 3), "tokens": (2, 4), "horizon": (3, 6)},
        _undetected_rank,
        mutants={"validation that accepts anything": _accepts_anything},
        trials=_FEW,
    ),
    Theorem(
        "smoothing",
        "Mixing every next-token law with τ of the uniform law changes the law of strings by at most Tτ/2.",
        "Mausberg 2026",
        {**_ISAN, "bits": (1, 8)},
        _smoothing,
        lambda instance: instance["horizon"] * 2.0 ** -instance["bits"] / 2,
        mutants={"smoothing for free": _no_smoothing_cost},
    ),
    Theorem(
        "smoothed-learner",
        "4000 draws per history give total variation at most 0.15 on width ≤ 2, A ≤ 3, T ≤ 4, except with "
        "probability 0.05 (constant measured here).",
        "Mausberg 2026",
        {"width": (1, 2), "tokens": (2, 3), "horizon": (2, 4)},
        _smoothed_learner,
        lambda instance: 0.15,
        delta=0.05,
        mutants={
            "two draws per history": lambda i: _smoothed_learner({**i, "tokens": 3, "horizon": 4}, 2, 1)
        },
        trials={"small": 160, "medium": 600, "large": 4000},
    ),
)
