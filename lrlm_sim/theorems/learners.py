"""Learners: exact on exact answers, close with enough samples, robust to noise, bounded in queries."""

from __future__ import annotations

import numpy as np

from lrlm_sim.distances import estimate_total_variation, total_variation
from lrlm_sim.learners import (
    ConditionalQueryLearner,
    ExactConditionalLearner,
    ISANExtraction,
    Learner,
    LStar,
)
from lrlm_sim.matrices import logit_rank
from lrlm_sim.theorems.base import Instance, Measurement, Theorem
from oracles.access import ConditionalProbabilityAccess, ConditionalSampleAccess, LogitAccess
from oracles.hmm import HiddenMarkovModel
from oracles.isan import ISAN
from oracles.noisy_parity import NoisyParity
from oracles.probabilistic_automaton import ProbabilisticAutomaton

_HMM = {"states": (1, 5), "tokens": (1, 4), "horizon": (1, 5)}
_ISAN = {"width": (1, 4), "tokens": (2, 4), "horizon": (2, 6)}
_FEW = {"small": 24, "medium": 100, "large": 600}
_STATISTICAL = {"small": 160, "medium": 600, "large": 4000}  # δ = 0.05 needs 100 instances without a failure


def _hmm(instance: Instance) -> HiddenMarkovModel:
    return HiddenMarkovModel.random(
        instance["states"], instance["tokens"], instance["horizon"], instance["seed"]
    )


def _isan(instance: Instance) -> ISAN:
    return ISAN.random(instance["width"], instance["tokens"], instance["horizon"], instance["seed"])


def _near_duplicates(instance: Instance) -> HiddenMarkovModel:
    """Three states, two of them 10^−gap apart."""
    gap = 10.0 ** -instance["gap"]
    rng = np.random.default_rng(instance["seed"])
    transition, emission = rng.dirichlet(np.ones(3), 3), rng.dirichlet(np.ones(3), 3)
    transition[2] = (1 - gap) * transition[1] + gap * transition[2]
    emission[2] = (1 - gap) * emission[1] + gap * emission[2]
    return HiddenMarkovModel(rng.dirichlet(np.ones(3)), transition, emission, 5)


def _from_probabilities(instance: Instance, learner: Learner) -> Measurement:
    teacher = _hmm(instance)
    result = learner.fit(ConditionalProbabilityAccess(teacher, seed=instance["seed"]), instance["seed"])
    return Measurement(total_variation(teacher, result.model), 0.0, 1e-9)


def _rank_one(instance: Instance) -> Measurement:
    """Mutant: rank one whatever the teacher."""
    return _from_probabilities(instance, ConditionalQueryLearner(rank=1))


def _submatrix(instance: Instance) -> Measurement:
    """TV against ln(K/δ)/n: n fresh strings showed no counterexample, of at most K = T·S + 1 such sets."""
    validation, teacher = 64, _hmm(instance)
    learner = ExactConditionalLearner(validation=validation)
    result = learner.fit(ConditionalProbabilityAccess(teacher, seed=instance["seed"]), instance["seed"])
    tried = instance["horizon"] * instance["states"] + 1
    bound = np.log(tried / 0.05) / validation
    return Measurement(total_variation(teacher, result.model), bound, 1e-9)


def _one_counterexample(instance: Instance) -> Measurement:
    """Mutant: a submatrix of one history per cut, on a noisy parity."""
    teacher = NoisyParity.random(4, 0.1, instance["seed"])
    result = ExactConditionalLearner(max_rank=1).fit(ConditionalProbabilityAccess(teacher), instance["seed"])
    return Measurement(total_variation(teacher, result.model), np.log(9 / 0.05) / 64, 1e-9)


def _from_samples(instance: Instance, share: float = 1.0) -> Measurement:
    m, teacher = 400, _hmm(instance)
    learner = ConditionalQueryLearner(rank=instance["states"], samples=max(1, int(m * share)))
    result = learner.fit(ConditionalSampleAccess(teacher, seed=instance["seed"]), instance["seed"])
    return Measurement(total_variation(teacher, result.model), 2 / np.sqrt(m), 0.0)


def _fidelity(instance: Instance, learner: Learner | None = None) -> Measurement:
    teacher, m = _near_duplicates(instance), 1000
    learner = learner or ConditionalQueryLearner(rank=3, samples=m)
    result = learner.fit(ConditionalSampleAccess(teacher, seed=instance["seed"]), instance["seed"])
    return Measurement(total_variation(teacher, result.model), 2 / np.sqrt(m), 0.0)


def _equivalence(instance: Instance) -> Measurement:
    """TV after oracle → ISAN, plus how far the width found is above the exact logit rank."""
    teacher = _isan(instance)
    result = ISANExtraction().fit(LogitAccess(teacher, seed=instance["seed"]), instance["seed"])
    surplus = max(0, max(result.stats["ranks"]) - max(1, logit_rank(teacher)))
    return Measurement(total_variation(teacher, result.model) + surplus, 0.0, 1e-9)


def _equivalence_too_narrow(instance: Instance) -> Measurement:
    """Mutant: one dimension fewer than the rank."""
    teacher = _isan(instance)
    learner = ISANExtraction(rank=max(1, logit_rank(teacher) - 1))
    result = learner.fit(LogitAccess(teacher, seed=instance["seed"]), instance["seed"])
    return Measurement(total_variation(teacher, result.model), 0.0, 1e-9)


def _noise(instance: Instance, factor: float = 1.0) -> Measurement:
    """TV (lower end of its interval) against ξ T³ d^(3/2)."""
    xi, teacher = 10.0 ** -instance["digits"], _isan(instance)
    access = LogitAccess(teacher, noise=factor * xi, seed=instance["seed"])
    result = ISANExtraction(noise=factor * xi).fit(access, instance["seed"])
    interval = estimate_total_variation(teacher, result.model, 500, 1 - 1e-6, instance["seed"])
    bound = xi * instance["horizon"] ** 3 * instance["width"] ** 1.5
    return Measurement(interval.low, min(1.0, bound), 0.0)


def _needs_fidelity(instance: Instance) -> Measurement:
    """2/√m − TV of the submatrix learner, which must be negative."""
    learner = ExactConditionalLearner(samples=1000, tolerance=1e-6, max_rank=3)
    found = _fidelity(instance, learner)
    return Measurement(found.bound - found.measured, 0.0, 0.0)


def _exact_probabilities(instance: Instance) -> Measurement:
    """Mutant: the same learner on exact answers, which near-duplicate states do not disturb."""
    teacher = _near_duplicates(instance)
    result = ExactConditionalLearner().fit(ConditionalProbabilityAccess(teacher), instance["seed"])
    return Measurement(2 / np.sqrt(1000) - total_variation(teacher, result.model), 0.0, 0.0)


def _automaton(instance: Instance) -> ProbabilisticAutomaton:
    """A random DFA of which some states forbid a token, so that its states differ."""
    states, tokens = instance["states"], instance["tokens"]
    rng = np.random.default_rng(instance["seed"])
    delta = rng.integers(0, states, (states, tokens))
    closed = rng.random(states) < 0.5
    delta[closed, rng.integers(0, tokens, states)[closed]] = -1
    return ProbabilisticAutomaton.from_dfa(delta, 0, 12)


def _lstar(instance: Instance, max_states: int = 1000) -> tuple[float, dict[str, int]]:
    """TV of the automaton that L* finds, and its numbers of states, columns and queries."""
    teacher = _automaton(instance)
    access = ConditionalProbabilityAccess(teacher, seed=instance["seed"])
    result = LStar(equivalence_strings=100, max_states=max_states).fit(access, instance["seed"])
    return total_variation(teacher, result.model), dict(result.stats)


def _lstar_equivalence(instance: Instance, max_states: int = 1000) -> Measurement:
    """Equivalence queries beyond k, the number of states of the teacher, plus TV of the automaton found."""
    distance, stats = _lstar(instance, max_states)
    extra = max(0, stats["equivalence_queries"] - instance["states"])
    return Measurement(extra + distance, 0.0, 1e-9)


def _lstar_membership(instance: Instance) -> Measurement:
    """Histories asked for the table and for counterexamples, against (1 + kA)·k + (k−1)·(T + 1)."""
    k, length = instance["states"], 12
    allowed = (1 + k * instance["tokens"]) * k + (k - 1) * (length + 1)
    return Measurement(_lstar(instance)[1]["membership_queries"], allowed, 0)


def _one_query_per_transition(instance: Instance) -> Measurement:
    """Mutant: kA queries, as if states were seen and not told apart by suffixes."""
    found = _lstar_membership({**instance, "states": 5})
    return Measurement(found.measured, 5 * instance["tokens"], 0)


THEOREMS = (
    Theorem(
        "conditional-query-exact",
        "From exact conditional probabilities the conditional-query learner returns the teacher.",
        "arXiv:2411.07536, Theorem 1.3 with exact answers",
        _HMM,
        lambda instance: _from_probabilities(instance, ConditionalQueryLearner()),
        mutants={"rank one": _rank_one},
    ),
    Theorem(
        "conditional-query-spanner",
        "The same by spanners, sampled futures and children, without enumerating the tree.",
        "arXiv:2411.07536, Theorem 1.3 with exact answers",
        _HMM,
        lambda instance: _from_probabilities(instance, ConditionalQueryLearner(route="spanner")),
        mutants={
            "one history per pool and cut": lambda i: _from_probabilities(
                i, ConditionalQueryLearner(route="spanner", rank=1)
            )
        },
    ),
    Theorem(
        "conditional-query-sampled",
        "With m samples per prefix its total variation is at most 2/√m, except with probability 0.05 "
        "(m = 400).",
        "arXiv:2411.07536, Theorem 1.3; constant measured here",
        {"states": (1, 4), "tokens": (2, 3), "horizon": (2, 5)},
        _from_samples,
        lambda instance: 0.1,
        delta=0.05,
        mutants={"a hundredth of the samples": lambda i: _from_samples(i, 0.01)},
        trials=_STATISTICAL,
    ),
    Theorem(
        "fidelity-independence",
        "The same bound holds however close two hidden states are (m = 1000).",
        "arXiv:2411.07536 against arXiv:2302.14753",
        {"gap": (0, 4)},
        _fidelity,
        lambda instance: 2 / np.sqrt(1000),
        delta=0.05,
        mutants={
            "submatrix learner instead": lambda i: _fidelity(
                {**i, "gap": 2}, ExactConditionalLearner(samples=1000, tolerance=1e-6, max_rank=3)
            )
        },
        trials=_STATISTICAL,
    ),
    Theorem(
        "fidelity-dependence",
        "The submatrix learner needs fidelity: with m = 1000 samples and two hidden states 0.1 % "
        "apart its total variation exceeds 2/√m on most teachers (δ = 0.4).",
        "arXiv:2302.14753, dependence on Δ*; arXiv:2411.07536, section 1",
        {"gap": (3, 4)},
        _needs_fidelity,
        delta=0.4,
        mutants={"exact probabilities": _exact_probabilities},
        trials=_STATISTICAL,
    ),
    Theorem(
        "exact-conditional",
        "A full-rank submatrix grown by counterexamples, accepted after n = 64 fresh strings without one, is "
        "within ln((TS+1)/δ)/n of the teacher except with probability δ = 0.05.",
        "arXiv:2302.14753, Theorem 1",
        _HMM,
        _submatrix,
        delta=0.05,
        mutants={"one history per cut": _one_counterexample},
        trials=_STATISTICAL,
    ),
    Theorem(
        "logit-rank-isan",
        "A model of logit rank d is an ISAN of width d, read off its logits.",
        "arXiv:2510.24966, Theorems 4.3 and 4.4",
        _ISAN,
        _equivalence,
        mutants={"one dimension too few": _equivalence_too_narrow},
    ),
    Theorem(
        "logit-noise",
        "Logits known to ±ξ give total variation at most ξ T³ d^(3/2) (constant one; lower confidence ends).",
        "arXiv:2512.09892, Theorem 5.11",
        {"width": (1, 3), "tokens": (2, 3), "horizon": (3, 10), "digits": (3, 5)},
        _noise,
        mutants={"ten thousand times the noise": lambda i: _noise({**i, "digits": 5, "horizon": 4}, 1e4)},
        trials=_FEW,
    ),
    Theorem(
        "lstar-equivalence-queries",
        "L* finds a DFA with k states by at most k equivalence queries.",
        "Angluin 1987; Rivest and Schapire 1993",
        {"states": (1, 5), "tokens": (2, 3)},
        _lstar_equivalence,
        mutants={"at most one state": lambda i: _lstar_equivalence(i, 1)},
        trials=_FEW,
    ),
    Theorem(
        "lstar-membership-queries",
        "Its observation table takes at most k(1 + kA) membership queries, and each of at most k − 1 "
        "counterexamples, of at most m tokens, m + 1 more.",
        "Angluin 1987; Rivest and Schapire 1993",
        {"states": (1, 5), "tokens": (2, 3)},
        _lstar_membership,
        mutants={"one query per transition": _one_query_per_transition},
        trials=_FEW,
    ),
)
