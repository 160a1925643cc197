"""Ranks of probability and logit matrices: what bounds them."""

from __future__ import annotations

import numpy as np

from lrlm_sim.matrices import logit_rank, probability_rank
from lrlm_sim.theorems.base import Instance, Measurement, Theorem
from oracles.hmm import HiddenMarkovModel
from oracles.isan import ISAN
from oracles.ngram import NGram
from oracles.probabilistic_automaton import ProbabilisticAutomaton


def _hmm(instance: Instance) -> HiddenMarkovModel:
    return HiddenMarkovModel.random(
        instance["states"], instance["tokens"], instance["horizon"], instance["seed"]
    )


def _hmm_rank(instance: Instance) -> Measurement:
    return Measurement(probability_rank(_hmm(instance)), instance["states"], 0)


def _hmm_rank_of_logits(instance: Instance) -> Measurement:
    """Mutant: the rank of the wrong matrix."""
    return Measurement(logit_rank(_hmm(instance)), instance["states"], 0)


def _dfa_rank(instance: Instance) -> Measurement:
    delta = np.random.default_rng(instance["seed"]).integers(
        0, instance["states"], (instance["states"], instance["tokens"])
    )
    automaton = ProbabilisticAutomaton.from_dfa(delta, 0, instance["horizon"])
    return Measurement(probability_rank(automaton), instance["states"], 0)


def _ngram(instance: Instance) -> NGram:
    return NGram.random(instance["order"], instance["tokens"], instance["horizon"], rng=instance["seed"])


def _ngram_rank(instance: Instance) -> Measurement:
    return Measurement(probability_rank(_ngram(instance)), instance["tokens"] ** (instance["order"] - 1), 0)


def _ngram_rank_short(instance: Instance) -> Measurement:
    """Mutant: one context token too few in the bound."""
    bound = instance["tokens"] ** max(instance["order"] - 2, 0)
    return Measurement(probability_rank(_ngram(instance)), bound, 0)


def _isan_rank(instance: Instance) -> Measurement:
    model = ISAN.random(instance["width"], instance["tokens"], instance["horizon"], instance["seed"])
    return Measurement(logit_rank(model), instance["width"], 0)


THEOREMS = (
    Theorem(
        "hmm-rank",
        "A hidden Markov model with S states has probability rank at most S at every cut.",
        "arXiv:2411.07536, section 1",
        {"states": (1, 4), "tokens": (1, 4), "horizon": (1, 5)},
        _hmm_rank,
        lambda instance: instance["states"],
        mutants={"rank of the logit matrix": _hmm_rank_of_logits},
    ),
    Theorem(
        "dfa-rank",
        "The uniform walk of a DFA with k states has probability rank at most k.",
        "Carlyle and Paz 1971; arXiv:2411.07536",
        {"states": (1, 6), "tokens": (1, 3), "horizon": (1, 5)},
        _dfa_rank,
        lambda instance: instance["states"],
        mutants={"one state fewer": lambda i: Measurement(_dfa_rank(i).measured, i["states"] - 1, 0)},
    ),
    Theorem(
        "ngram-rank",
        "An n-gram model of order m over A tokens has probability rank at most A^(m−1).",
        "arXiv:2411.07536",
        {"order": (1, 3), "tokens": (1, 3), "horizon": (3, 6)},
        _ngram_rank,
        lambda instance: instance["tokens"] ** (instance["order"] - 1),
        mutants={"one context token too few": _ngram_rank_short},
    ),
    Theorem(
        "isan-rank",
        "A time-varying ISAN of width d has logit rank at most d at every cut.",
        "arXiv:2510.24966, Theorem 4.3",
        {"width": (1, 4), "tokens": (1, 4), "horizon": (1, 5)},
        _isan_rank,
        lambda instance: instance["width"],
        mutants={"one dimension fewer": lambda i: Measurement(_isan_rank(i).measured, i["width"] - 1, 0)},
    ),
)
