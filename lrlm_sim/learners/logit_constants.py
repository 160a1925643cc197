"""Explicit constants of the logit-query learner: what its guarantee asks for, to be computed and compared.

Sufficient constants for Algorithms 1–2 of arXiv:2512.09892 (Theorem 5.11) with the corrections of
Mausberg 2026, "Learning low-logit-rank distributions from conditional samples" (binary alphabet, T ≥ 32).
They are astronomically safe: the request bound of an everyday instance has thirty digits.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from lrlm_sim.spanners import sample_compression_size
from oracles.checks import as_integer, as_number
from oracles.errors import ParameterError

#: Where the published proof of the constants applies.
_PROVED_VOCABULARY, _PROVED_HORIZON = 2, 32


@dataclass(frozen=True)
class TheoryConstants:
    """All constants for rank d, horizon T, centred logits in [−L, L], TV ≤ ε with probability ≥ 1 − δ.

    Attributes:
        horizon, rank, logit_bound, epsilon, delta: T, d, L, ε, δ.
        J: ⌈log2(2Tdα/(εδ))⌉ + 64 with α = dL + 1.
        epochs: K = 512·T·d·J.
        discrepancy: g = ε/(32T²).
        noise: tolerated error ξ of a logit, the largest power of two ≤ g/(1024·K·√(dJ)).
        validation: fresh strings per epoch n = ⌈(1/g)·⌈log2(32KT/δ)⌉⌉.
        miss_mass: η = ε/(3T²n), what a spanner may leave uncovered.
        spanner_failure: δ_s = δ/(32KT).
        words_per_cut: 64·d·J; witness words at one cut stay below it.
        log_factor: H = max(⌈log2(12K/η)⌉, ⌈log2((6K+1)/δ_s)⌉).
        request_bound: 900·H·K³/η + 24·n·T³·K² + K·n + 18·T·K, rounded up.
        error_budget: 2T²g + T²η + Tξ, at most ε/2.
        proved: whether T and A lie where the published proof applies.
    """

    horizon: int
    rank: int
    logit_bound: int
    epsilon: float
    delta: float
    J: int
    epochs: int
    discrepancy: float
    noise: float
    validation: int
    miss_mass: float
    spanner_failure: float
    words_per_cut: int
    log_factor: int
    request_bound: int
    error_budget: float
    proved: bool

    def histories(self, words: int) -> int:
        """Histories to draw at a cut with that many words in F̃_s: sample compression with η and δ_s."""
        return sample_compression_size(words, self.miss_mass, self.spanner_failure)

    def as_dict(self) -> dict[str, Any]:
        """JSON values; integers beyond 2^53 as floats."""
        return {k: float(v) if type(v) is int and v > 2**53 else v for k, v in asdict(self).items()}


def theory_constants(
    horizon: int,
    rank: int,
    logit_bound: int,
    epsilon: float = 0.1,
    delta: float = 0.05,
    *,
    vocab_size: int = 2,
) -> TheoryConstants:
    """The constants of `TheoryConstants` for T, d, integer L, ε and δ; ParameterError outside their ranges.

    The published proof is for two tokens and T ≥ 32; elsewhere the same formulas are evaluated
    and `proved` is False.
    """
    T, d = as_integer("horizon", horizon, 1), as_integer("rank", rank, 1)
    L, A = as_integer("logit_bound", logit_bound, 0), as_integer("vocab_size", vocab_size, 1)
    epsilon, delta = as_number("epsilon", epsilon, 0, 1), as_number("delta", delta, 0, 1)
    if epsilon == 0 or delta == 0:
        raise ParameterError("epsilon and delta must be positive")
    alpha = d * L + 1
    J = math.ceil(math.log2(2 * T * d * alpha / (epsilon * delta))) + 64
    K = 512 * T * d * J
    g = epsilon / (32 * T**2)
    xi = 2.0 ** math.floor(math.log2(g / (1024 * K * math.sqrt(d * J))))
    n = math.ceil(math.ceil(math.log2(32 * K * T / delta)) / g)
    eta = epsilon / (3 * T**2 * n)
    spanner_failure = delta / (32 * K * T)
    H = max(math.ceil(math.log2(12 * K / eta)), math.ceil(math.log2((6 * K + 1) / spanner_failure)))
    requests = math.ceil(900 * H * K**3 / eta) + 24 * n * T**3 * K**2 + K * n + 18 * T * K
    return TheoryConstants(
        horizon=T,
        rank=d,
        logit_bound=L,
        epsilon=epsilon,
        delta=delta,
        J=J,
        epochs=K,
        discrepancy=g,
        noise=xi,
        validation=n,
        miss_mass=eta,
        spanner_failure=spanner_failure,
        words_per_cut=64 * d * J,
        log_factor=H,
        request_bound=requests,
        error_budget=2 * T**2 * g + T**2 * eta + T * xi,
        proved=A == _PROVED_VOCABULARY and T >= _PROVED_HORIZON,
    )
