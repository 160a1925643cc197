"""Learners by name: ``isan:rank=4,noise=0.001`` for the command line and the studies."""

from __future__ import annotations

import dataclasses

from lrlm_sim.learners.base import Learner
from lrlm_sim.learners.baum_welch import BaumWelch
from lrlm_sim.learners.boolean_fourier import FourierLearner
from lrlm_sim.learners.conditional_query import ConditionalQueryLearner
from lrlm_sim.learners.exact_conditional import ExactConditionalLearner
from lrlm_sim.learners.isan_extraction import ISANExtraction
from lrlm_sim.learners.logit_query import LogitQueryLearner
from lrlm_sim.learners.lstar import LStar
from lrlm_sim.learners.ngram import NGramLearner
from lrlm_sim.learners.smoothed_query import SmoothedQueryLearner
from lrlm_sim.learners.spectral_hmm import SpectralHMM
from oracles.access import Access
from oracles.base import Oracle
from oracles.errors import SpecError
from oracles.specs import split_parameters

#: Every learner by its short name.
LEARNERS: dict[str, type[Learner]] = {
    "isan": ISANExtraction,
    "logit": LogitQueryLearner,
    "smoothed": SmoothedQueryLearner,
    "conditional": ConditionalQueryLearner,
    "exact_conditional": ExactConditionalLearner,
    "ngram": NGramLearner,
    "spectral": SpectralHMM,
    "baum_welch": BaumWelch,
    "lstar": LStar,
    "fourier": FourierLearner,
}


def open_learner(spec: str) -> Learner:
    """Learner from ``name`` or ``name:parameter=value,…``; unknown names and parameters list the known."""
    name, _, text = spec.strip().partition(":")
    if name not in LEARNERS:
        raise SpecError(f"unknown learner {name!r}, known: {', '.join(sorted(LEARNERS))}")
    learner = LEARNERS[name]
    known = [field.name for field in dataclasses.fields(learner)]  # type: ignore[arg-type]
    texts = split_parameters(f"learner {name}", text, known)
    return learner(**{key: _literal(value) for key, value in texts.items()})


def _literal(text: str) -> object:
    """A number, true, false or none where the text is one, else the text itself."""
    words: dict[str, object] = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def make_access(learner: Learner, oracle: Oracle, **settings: object) -> Access:
    """The first kind of access that a learner declares, made from an oracle."""
    return learner.accesses[0](oracle, **settings)  # type: ignore[arg-type]
