"""Every learner that the contract of learners runs on: a new one is one line.

Each entry: the learner, the teachers it should cope with, and how much renaming tokens may matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lrlm_sim.learners import (
    BaumWelch,
    ConditionalQueryLearner,
    ExactConditionalLearner,
    FourierLearner,
    ISANExtraction,
    Learner,
    LogitQueryLearner,
    LStar,
    NGramLearner,
    SmoothedQueryLearner,
    SpectralHMM,
)
from oracles import HiddenMarkovModel, Oracle, ProbabilisticAutomaton, SparsePolynomial


@dataclass(frozen=True)
class Entry:
    """A learner, what makes its default teacher, and the slack of the relabelling law."""

    learner: Learner
    teacher: Callable[[], Oracle] = lambda: HiddenMarkovModel.random(2, 3, 4, rng=0)
    slack: float = 1e-8


LEARNERS: dict[str, Entry] = {
    "isan": Entry(ISANExtraction()),
    "logit": Entry(LogitQueryLearner()),
    "smoothed": Entry(SmoothedQueryLearner(rank=2), slack=0.15),
    "conditional-sampled": Entry(ConditionalQueryLearner(rank=2, samples=1000), slack=0.1),
    "conditional-spanner": Entry(ConditionalQueryLearner(rank=2, samples=1000, route="spanner"), slack=0.15),
    "fourier": Entry(FourierLearner(threshold=0.4), lambda: SparsePolynomial.random(5, 2, 0)),
    "exact-conditional": Entry(ExactConditionalLearner()),
    "ngram": Entry(NGramLearner(2, 2000), slack=0.1),
    "spectral": Entry(SpectralHMM(2, 20_000), slack=0.5),
    "baum-welch": Entry(BaumWelch(2, 2000, restarts=2, iterations=30), slack=0.15),
    "lstar": Entry(
        LStar(), lambda: ProbabilisticAutomaton.from_dfa(np.array([[1, 0], [-1, 2], [0, -1]]), 0, 6)
    ),
}
