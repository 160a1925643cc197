"""Ranks of probability and logit matrices: bounds, exact values, and that neither bounds the other."""

from __future__ import annotations

import numpy as np

from lrlm_sim.matrices import logit_rank, probability_rank
from lrlm_sim.theorems.base import Instance, Measurement, Theorem
from oracles.cauchy_separation import CauchySeparation
from oracles.hmm import HiddenMarkovModel
from oracles.isan import ISAN
from oracles.ngram import NGram
from oracles.noisy_copy import NoisyCopy
from oracles.noisy_parity import NoisyParity
from oracles.probabilistic_automaton import ProbabilisticAutomaton

_EXACT = {"small": 12, "medium": 40, "large": 100}


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


def _secret(instance: Instance) -> np.ndarray:
    secret = np.random.default_rng(instance["seed"]).integers(0, 2, instance["bits"])
    secret[-1] = 1  # an all-zero secret has rank one
    return secret


def _parity_ranks(instance: Instance) -> Measurement:
    """Distance of (probability rank, logit rank) from (2, 1)."""
    model = NoisyParity(_secret(instance), 0.1)
    return Measurement(abs(probability_rank(model) - 2) + abs(logit_rank(model) - 1), 0, 0)


def _parity_ranks_without_noise_bit(instance: Instance) -> Measurement:
    """Mutant: a fair label carries no rank."""
    model = NoisyParity(_secret(instance), 0.5)
    return Measurement(abs(probability_rank(model) - 2) + abs(logit_rank(model) - 1), 0, 0)


def _copy_ranks(instance: Instance) -> Measurement:
    length, tokens = instance["length"], instance["tokens"]
    model = NoisyCopy(length, tokens, 0.1)
    expected = tokens**length, length * (tokens - 1)
    found = probability_rank(model, length), logit_rank(model, length)
    return Measurement(abs(found[0] - expected[0]) + abs(found[1] - expected[1]), 0, 0)


def _copy_ranks_swapped(instance: Instance) -> Measurement:
    """Mutant: the two invariants taken for each other."""
    length, tokens = instance["length"], instance["tokens"]
    model = NoisyCopy(length, tokens, 0.1)
    return Measurement(abs(probability_rank(model, length) - length * (tokens - 1)), 0, 0)


def _cauchy_ranks(instance: Instance) -> Measurement:
    bits = instance["bits"]
    model = CauchySeparation(bits)
    return Measurement(abs(probability_rank(model, bits) - 2**bits) + abs(logit_rank(model, bits) - 2), 0, 0)


def _cauchy_ranks_late(instance: Instance) -> Measurement:
    """Mutant: one cut too late, where half of the second number has been read."""
    bits = instance["bits"]
    model = CauchySeparation(bits)
    return Measurement(abs(logit_rank(model, 2 * bits) - 2), 0, 0)


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
    Theorem(
        "parity-ranks",
        "Noisy parity has probability rank 2 and logit rank 1.",
        "arXiv:math/0502076; arXiv:2512.09892",
        {"bits": (1, 7)},
        _parity_ranks,
        mutants={"fair label": _parity_ranks_without_noise_bit},
        trials=_EXACT,
    ),
    Theorem(
        "copy-separation",
        "Noisy copy of n tokens has logit rank n(A−1) but probability rank A^n at cut n: "
        "low logit rank does not bound probability rank.",
        "arXiv:2510.24966; arXiv:2512.09892",
        {"length": (1, 3), "tokens": (2, 3)},
        _copy_ranks,
        mutants={"ranks swapped": _copy_ranks_swapped},
        trials=_EXACT,
    ),
    Theorem(
        "cauchy-separation",
        "The Cauchy teacher has logit rank 2 but probability rank 2^n at cut n (n ≤ 3 in double precision).",
        "arXiv:2411.07536; Mausberg 2026",
        {"bits": (1, 3)},
        _cauchy_ranks,
        mutants={"wrong cut": _cauchy_ranks_late},
        trials=_EXACT,
    ),
)
