"""Learners: each takes an access object and returns a `Result` whose model is an oracle."""

from lrlm_sim.learners.base import SUCCESS, Learner, Result, Status
from lrlm_sim.learners.baum_welch import BaumWelch
from lrlm_sim.learners.boolean_fourier import FourierLearner, fourier_terms
from lrlm_sim.learners.conditional_query import ConditionalQueryLearner
from lrlm_sim.learners.exact_conditional import ExactConditionalLearner
from lrlm_sim.learners.isan_extraction import ISANExtraction
from lrlm_sim.learners.logit_query import LogitQueryLearner
from lrlm_sim.learners.lstar import LStar
from lrlm_sim.learners.ngram import NGramLearner
from lrlm_sim.learners.smoothed_query import SmoothedQueryLearner
from lrlm_sim.learners.specs import LEARNERS, make_access, open_learner
from lrlm_sim.learners.spectral_hmm import SpectralHMM

__all__ = [
    "LEARNERS",
    "SUCCESS",
    "BaumWelch",
    "ConditionalQueryLearner",
    "ExactConditionalLearner",
    "FourierLearner",
    "ISANExtraction",
    "LStar",
    "Learner",
    "LogitQueryLearner",
    "NGramLearner",
    "Result",
    "SmoothedQueryLearner",
    "SpectralHMM",
    "Status",
    "fourier_terms",
    "make_access",
    "open_learner",
]
