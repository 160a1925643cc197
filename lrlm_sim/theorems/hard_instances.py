"""Hard instances: what samples cannot show and queries can, and what logits cost without a floor."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lrlm_sim.distances import total_variation
from lrlm_sim.learners import ISANExtraction, NGramLearner
from lrlm_sim.matrices import single_token_logits
from lrlm_sim.theorems.base import Instance, Measurement, Theorem
from oracles.access import ConditionalSampleAccess, LogitAccess, SampleAccess
from oracles.isan import ISAN
from oracles.noisy_parity import NoisyParity

_DELTA = 0.05


def basis_query_count(n: int, noise: float, delta: float) -> int:
    """Replies per bit r = ⌈2/(1−2ν)² · ⌈log2(n/δ)⌉⌉ that recover a noisy parity with probability ≥ 1−δ."""
    return math.ceil(2 / (1 - 2 * noise) ** 2 * math.ceil(math.log2(n / delta)))


def recover_parity(access: ConditionalSampleAccess, replies: int) -> np.ndarray:
    """Secret of a noisy parity: the majority label after each basis vector, `replies` replies each."""
    n = (access.horizon or 1) - 1
    counts = access.next_counts(np.eye(n, dtype=np.int64), replies)
    return (counts[:, 1] > counts[:, 0]).astype(np.int64)


def _basis_queries(instance: Instance, share: float = 1.0) -> Measurement:
    n, noise = instance["bits"], instance["noise"] / 10
    teacher = NoisyParity.random(n, noise, instance["seed"])
    access = ConditionalSampleAccess(teacher, seed=instance["seed"])
    replies = max(1, int(share * basis_query_count(n, noise, _DELTA)))
    wrong = int((recover_parity(access, replies) != teacher.secret).sum())
    if access.ledger.calls != n * replies:
        return Measurement(np.inf, 0.0)
    return Measurement(wrong, 0.0, 0.0)


def _samples_fail(instance: Instance) -> Measurement:
    """TV of what an n-gram learner makes of 2000 samples is at least ½ − ν − 0.1."""
    teacher = NoisyParity.random(instance["bits"], 0.1, instance["seed"])
    learner = NGramLearner(4, 2000)
    result = learner.fit(SampleAccess(teacher, seed=instance["seed"]), instance["seed"])
    return Measurement(0.4 - total_variation(teacher, result.model), 0.1, 0.0)


def _queries_do_not_fail(instance: Instance) -> Measurement:
    """Mutant: the learner asks for logits."""
    teacher = NoisyParity.random(instance["bits"], 0.1, instance["seed"])
    result = ISANExtraction().fit(LogitAccess(teacher, seed=instance["seed"]), instance["seed"])
    return Measurement(0.4 - total_variation(teacher, result.model), 0.1, 0.0)


def _single_token_rank(instance: Instance) -> Measurement:
    model = ISAN.random(instance["width"], instance["tokens"], 4, instance["seed"])
    histories = np.random.default_rng(instance["seed"]).integers(0, instance["tokens"], (60, 2))
    logits = single_token_logits(model, histories)
    sigma = np.linalg.svd(logits, compute_uv=False)
    return Measurement(int((sigma > 1e-10 * max(sigma[0], 1e-300)).sum()), instance["width"], 0)


def _floor_samples(instance: Instance, share: float = 1.0) -> Measurement:
    """A binary logit (half log-odds) from draws: error against ξ at the sufficient sample size."""
    xi, floor = instance["tenths"] / 10, 10.0 ** -instance["digits"]
    rng = np.random.default_rng(instance["seed"])
    p = floor ** rng.choice([1.0, rng.random()])  # at the floor itself, or anywhere above it
    p = p if rng.random() < 0.5 else 1 - p
    size = math.ceil(48 / (floor * xi**2) * math.ceil(math.log2(4 / _DELTA)))
    draws = max(2, int(share * size))
    hits = np.clip(rng.binomial(draws, p), 0.5, draws - 0.5)
    estimate = 0.5 * math.log(hits / (draws - hits))
    return Measurement(abs(estimate - 0.5 * math.log(p / (1 - p))), xi, 0.0)


def _lower_bound(instance: Instance, power: float = 2.0) -> Measurement:
    """KL per draw of two teachers whose logit differs by 2ξ at −T, in units of ξ² e^(−2T), against 15.

    By Pinsker any estimate right with probability ¾ then needs 1/(2·KL) ≥ e^(2T)/(30 ξ²) draws.
    """
    depth, xi = instance["depth"], 10.0 ** -instance["digits"]
    p, q = (1 / (1 + math.exp(2 * (depth - shift))) for shift in (-xi, xi))
    kl = p * math.log(p / q) + (1 - p) * math.log1p((q - p) / (1 - q))
    return Measurement(kl / xi**2 * math.exp(power * depth), 15.0, 1e-6)


def _transformer_rank(instance: Instance, less: int = 0) -> Measurement:
    """Rank of the single-token logits of a random two-layer Llama, in double precision."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from oracles.transformer import TransformerOracle

    sizes: dict[str, Any] = {
        "hidden_size": 4 * instance["quarters"],
        "intermediate_size": 24,
        "num_hidden_layers": 2,
    }
    heads: dict[str, Any] = {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32,
    }
    config = LlamaConfig(vocab_size=60, initializer_range=0.3, bos_token_id=1, **sizes, **heads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(instance["seed"])
        network = LlamaForCausalLM(config).double()
    histories = np.random.default_rng(instance["seed"]).integers(0, 60, (80, 6))
    logits = single_token_logits(TransformerOracle(network), histories)
    sigma = np.linalg.svd(logits, compute_uv=False)
    return Measurement(int((sigma > 1e-9 * sigma[0]).sum()), config.hidden_size - less, 0)


def _needed_rank(alpha: float, size: int, epsilon: float) -> int:
    energy = np.cumsum(np.arange(1, size + 1, dtype=np.float64) ** (-2 * alpha))
    return int(np.searchsorted(energy, (1 - epsilon) * energy[-1])) + 1


def _above_transition(instance: Instance) -> Measurement:
    """α > ½: a rank that does not depend on the size captures 1 − ε of the energy."""
    alpha, epsilon = 0.5 + instance["tenths"] / 10, 0.1
    sufficient = math.ceil((epsilon * (2 * alpha - 1)) ** (-1 / (2 * alpha - 1)))
    return Measurement(_needed_rank(alpha, 10 ** instance["magnitude"], epsilon), sufficient, 0)


def _below_transition(instance: Instance, exponent: float = 1.0) -> Measurement:
    """α < ½: the rank needed grows in proportion to the size."""
    alpha, epsilon, size = 0.5 - instance["tenths"] / 20, 0.1, 10 ** instance["magnitude"]
    power = 1 - 2 * alpha
    least = ((1 - epsilon) * ((size + 1) ** power - 1)) ** (1 / power)
    return Measurement(least * exponent, _needed_rank(alpha, size, epsilon), 1e-6)


THEOREMS = (
    Theorem(
        "parity-basis-queries",
        "⌈2/(1−2ν)²⌈log2(n/δ)⌉⌉ replies to each basis vector recover a noisy parity with probability ≥ 1−δ.",
        "Mausberg 2026, appendix on parity",
        {"bits": (1, 30), "noise": (0, 3)},
        _basis_queries,
        delta=_DELTA,
        mutants={"one reply each": lambda i: _basis_queries({**i, "bits": 30, "noise": 3}, 1e-9)},
        trials={"small": 200, "medium": 2000, "large": 20_000},
    ),
    Theorem(
        "parity-samples-fail",
        "What an n-gram learner makes of 2000 samples of a noisy parity (ν = 0.1) keeps a total variation of "
        "at least 0.3.",
        "arXiv:math/0502076; arXiv:2512.09892",
        {"bits": (8, 12)},
        _samples_fail,
        mutants={"logit queries instead of samples": _queries_do_not_fail},
        trials={"small": 20, "medium": 60, "large": 300},
    ),
    Theorem(
        "single-token-rank",
        "The single-token logit matrix of a linear read-out has rank at most its width.",
        "arXiv:2403.06634; arXiv:2403.09539",
        {"width": (1, 5), "tokens": (2, 12)},
        _single_token_rank,
        mutants={
            "one dimension fewer": lambda i: Measurement(
                _single_token_rank({**i, "tokens": 12}).measured, i["width"] - 1, 0
            )
        },
    ),
    Theorem(
        "single-token-rank-transformer",
        "The single-token logit matrix of a transformer, random and in memory here, has rank at most "
        "its hidden width.",
        "arXiv:2403.06634; arXiv:2403.09539",
        {"quarters": (1, 5)},
        _transformer_rank,
        lambda instance: 4 * instance["quarters"],
        mutants={"one dimension fewer": lambda i: _transformer_rank(i, 1)},
        trials={"small": 10, "medium": 40, "large": 100},
        requires={"torch": "transformers", "transformers": "transformers"},
    ),
    Theorem(
        "logit-estimation",
        "With probability floor γ, ⌈48/(γξ²)⌈log2(4/ζ)⌉⌉ draws give a binary logit to ±ξ, except with "
        "probability ζ = 0.05.",
        "Mausberg 2026",
        {"tenths": (1, 10), "digits": (1, 4)},
        _floor_samples,
        lambda instance: instance["tenths"] / 10,
        delta=_DELTA,
        mutants={
            "a ten-thousandth of the draws": lambda i: _floor_samples({**i, "tenths": 1, "digits": 2}, 1e-4)
        },
        trials={"small": 400, "medium": 4000, "large": 40_000},
    ),
    Theorem(
        "logit-lower-bound",
        "Without a floor, a logit at −T costs at least e^(2T)/(30 ξ²) draws.",
        "Mausberg 2026",
        {"depth": (1, 12), "digits": (2, 4)},
        _lower_bound,
        mutants={"e^(3T) draws": lambda i: _lower_bound({**i, "depth": 6, "digits": 2}, 3.0)},
    ),
    Theorem(
        "transition-above",
        "σ_i ∝ i^−α with α > ½: rank ⌈(ε(2α−1))^(−1/(2α−1))⌉ captures 1 − ε of the energy at every size "
        "(ε = 0.1).",
        "arXiv:2510.24966, section 3",
        {"tenths": (2, 8), "magnitude": (1, 6)},
        _above_transition,
        mutants={
            "the same below the transition": lambda i: Measurement(
                _needed_rank(0.4, 10**6, 0.1), _above_transition(i).bound, 0
            )
        },
    ),
    Theorem(
        "transition-below",
        "σ_i ∝ i^−α with α < ½: the rank needed for 1 − ε of the energy grows linearly with the size.",
        "arXiv:2510.24966, section 3",
        {"tenths": (2, 8), "magnitude": (2, 6)},
        _below_transition,
        mutants={"a rank four times as large": lambda i: _below_transition(i, 4.0)},
    ),
)
