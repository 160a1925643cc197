"""Distances of laws: telescoping, softmax and coupling lemmas, Pinsker, the Frobenius bound on average KL."""

from __future__ import annotations

import numpy as np

from lrlm_sim.distances import kl_exact, sequence_probabilities, total_variation
from lrlm_sim.exact_distance import expand_tree, telescoping_bound
from lrlm_sim.spectra import low_rank_kl
from lrlm_sim.theorems.base import Instance, Measurement, Theorem
from oracles.base import Oracle
from oracles.hmm import HiddenMarkovModel
from oracles.perturbed import perturbed

_SIZES = {"states": (1, 4), "tokens": (2, 4), "horizon": (1, 5)}


def _pair(instance: Instance) -> tuple[Oracle, Oracle]:
    """A random model and a neighbour of it, anywhere from close to unrelated."""
    seed = instance["seed"]
    p = HiddenMarkovModel.random(instance["states"], instance["tokens"], instance["horizon"], seed)
    if seed % 2:
        return p, perturbed(p, 10.0 ** -(seed % 5), seed)
    return p, HiddenMarkovModel.random(instance["states"], instance["tokens"], instance["horizon"], seed + 1)


def _telescoping(instance: Instance) -> Measurement:
    p, q = _pair(instance)
    return Measurement(total_variation(p, q), telescoping_bound(p, q), 1e-12)


def _telescoping_without_half(instance: Instance) -> Measurement:
    """Mutant: total variation that forgets its factor ½."""
    p, q = _pair(instance)
    return Measurement(2 * total_variation(p, q), telescoping_bound(p, q), 1e-12)


def _pinsker(instance: Instance) -> Measurement:
    p, q = _pair(instance)
    return Measurement(total_variation(p, q), np.sqrt(kl_exact(p, q) / 2), 1e-12)


def _pinsker_in_bits(instance: Instance) -> Measurement:
    """Mutant: KL divided by 8 instead of 2."""
    p, q = _pair(instance)
    return Measurement(total_variation(p, q), np.sqrt(kl_exact(p, q) / 8), 1e-12)


def _logits(instance: Instance) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(instance["seed"])
    u = rng.standard_normal((200, instance["tokens"])) * 10.0 ** rng.uniform(-3, 1, (200, 1))
    return u, u + rng.uniform(-1, 1, u.shape) * 10.0 ** rng.uniform(-4, 1, (200, 1))


def _softmax(u: np.ndarray) -> np.ndarray:
    e = np.exp(u - u.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _softmax_lemma(instance: Instance) -> Measurement:
    u, v = _logits(instance)
    gap = 0.5 * np.abs(_softmax(u) - _softmax(v)).sum(axis=1) - np.abs(u - v).max(axis=1)
    return Measurement(float(gap.max()), 0.0, 1e-12)


def _softmax_lemma_in_l2(instance: Instance) -> Measurement:
    """Mutant: the bound taken a quarter as large."""
    u, v = _logits(instance)
    gap = 0.5 * np.abs(_softmax(u) - _softmax(v)).sum(axis=1) - np.abs(u - v).max(axis=1) / 4
    return Measurement(float(gap.max()), 0.0, 1e-12)


def _largest_step(p: Oracle, q: Oracle) -> float:
    """η: the largest total variation between next-token laws after one prefix, over all prefixes."""
    length = p.horizon or 0
    steps = (np.abs(b.laws[0] - b.laws[1]).sum(axis=1).max() / 2 for b in expand_tree([p, q], length))
    return float(max(steps, default=0.0))


def _coupling(instance: Instance) -> Measurement:
    """TV of the complete suffix laws after one random history h, against (T − |h|)·η."""
    p, q = _pair(instance)
    rng = np.random.default_rng(instance["seed"])
    history = rng.integers(0, instance["tokens"], int(rng.integers(instance["horizon"])))
    left = instance["horizon"] - len(history)
    distance = total_variation(p.condition(history), q.condition(history))
    return Measurement(distance, left * _largest_step(p, q), 1e-12)


def _coins(horizon: int, eta: float = 0.05) -> tuple[Oracle, Oracle]:
    """Independent tosses, all of them biased by η under one law and fair under the other."""
    one = np.ones(1), np.ones((1, 1))
    p, q = (HiddenMarkovModel(*one, np.array([[0.5 + b, 0.5 - b]]), horizon) for b in (eta, 0.0))
    return p, q


def _coupling_without_length(instance: Instance) -> Measurement:
    """Mutant: errors that do not add up over the string, on a pair where they do."""
    p, q = _coins(instance["horizon"] + 2)
    return Measurement(total_variation(p, q), _largest_step(p, q), 1e-12)


def transcript_distance(p: Oracle, q: Oracle, queries: int, seed: int) -> float:
    """TV between the transcripts of an adaptive learner that asks for `queries` completions, by enumeration.

    The prefix of each query is a pseudorandom function (of `seed`) of all replies before it.
    """
    horizon = p.horizon or 0
    completions: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}

    def laws(prefix: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        if prefix not in completions:
            completions[prefix] = tuple(sequence_probabilities(o.condition(prefix)) for o in (p, q))  # type: ignore
        return completions[prefix]

    def branch(replies: tuple[int, ...], of_p: float, of_q: float) -> float:
        if len(replies) == queries:
            return abs(of_p - of_q) / 2
        rng = np.random.default_rng([seed, *replies])
        prefix = rng.integers(0, p.vocab_size, int(rng.integers(horizon))).tolist()
        pairs = zip(*laws(tuple(prefix)), strict=True)
        return sum(branch((*replies, i), of_p * float(a), of_q * float(b)) for i, (a, b) in enumerate(pairs))

    return branch((), 1.0, 1.0)


def _transcript(instance: Instance) -> Measurement:
    seed, queries, horizon = instance["seed"], instance["queries"], instance["horizon"]
    p = HiddenMarkovModel.random(instance["states"], 2, horizon, seed)
    q = perturbed(p, 10.0 ** -(seed % 3), seed)
    distance = transcript_distance(p, q, queries, seed)
    return Measurement(distance, queries * horizon * _largest_step(p, q), 1e-12)


def _transcript_of_one_query(instance: Instance) -> Measurement:
    """Mutant: the bound of one query for three, on tosses where every reply tells something."""
    p, q = _coins(1)
    return Measurement(transcript_distance(p, q, 3, instance["seed"]), _largest_step(p, q), 1e-12)


def _frobenius(instance: Instance) -> Measurement:
    rng = np.random.default_rng(instance["seed"])
    logits = rng.standard_normal((instance["rows"], instance["futures"], instance["tokens"]))
    logits -= logits.mean(axis=2, keepdims=True)
    ranks = list(range(1, min(logits.shape[0], logits.shape[1] * logits.shape[2])))
    losses = low_rank_kl(logits * 10.0 ** rng.uniform(-2, 1), ranks)
    return Measurement(float((losses.kl - losses.bound).max(initial=-np.inf)), 0.0, 1e-10)


def _frobenius_small(instance: Instance) -> Measurement:
    """Mutant: a bound fifty times smaller."""
    rng = np.random.default_rng(instance["seed"])
    logits = 0.3 * rng.standard_normal((instance["rows"], instance["futures"], instance["tokens"]))
    logits -= logits.mean(axis=2, keepdims=True)
    losses = low_rank_kl(logits, [1])
    return Measurement(float((losses.kl - losses.bound / 50).max()), 0.0, 1e-10)


THEOREMS = (
    Theorem(
        "tv-telescoping",
        "TV(P, Q) ≤ Σ_t E_(h~P) TV(P(·|h), Q(·|h)).",
        "folklore; arXiv:2512.09892, section 5",
        _SIZES,
        _telescoping,
        mutants={"TV without its half": _telescoping_without_half},
    ),
    Theorem(
        "pinsker",
        "TV(P, Q) ≤ √(KL(P ‖ Q) / 2).",
        "Pinsker 1964",
        _SIZES,
        _pinsker,
        mutants={"wrong constant": _pinsker_in_bits},
    ),
    Theorem(
        "softmax-lemma",
        "TV(softmax u, softmax v) ≤ ‖u − v‖_∞.",
        "arXiv:2512.09892",
        {"tokens": (2, 8)},
        _softmax_lemma,
        mutants={"a quarter of the bound": _softmax_lemma_in_l2},
    ),
    Theorem(
        "coupling",
        "If all next-token laws differ by at most η, the laws of complete suffixes after a history h "
        "differ by at most (T − |h|)·η.",
        "arXiv:2512.09892; Mausberg 2026",
        _SIZES,
        _coupling,
        mutants={"errors that do not add up": _coupling_without_length},
    ),
    Theorem(
        "coupling-transcript",
        "The transcripts of an adaptive learner that asks for q completions then differ by at most q·T·η.",
        "Mausberg 2026",
        {"states": (1, 3), "horizon": (1, 3), "queries": (1, 3)},
        _transcript,
        mutants={"one query instead of q": _transcript_of_one_query},
        trials={"small": 40, "medium": 200, "large": 1000},
    ),
    Theorem(
        "kl-frobenius",
        "The average KL of a rank-r approximation of a logit matrix is at most its squared Frobenius "
        "error per cell.",
        "arXiv:2510.24966, Fact B.2",
        {"rows": (2, 12), "futures": (1, 6), "tokens": (2, 6)},
        _frobenius,
        mutants={"a fiftieth of the bound": _frobenius_small},
    ),
)
