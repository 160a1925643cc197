"""Sufficient sample sizes for the conditional-query learner, derived in docs/derivations.md.

The constants are explicit. `conditional_constants`, what the theory preset runs, is proved for the sampler
*without* projection, whose error bound grows with the horizon like (S·C)^T; for a bound polynomial in the
horizon see `projected_constants`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lrlm_sim.sketches import sufficient_sample_size
from lrlm_sim.spanners import sample_compression_size
from oracles.checks import as_integer, as_number
from oracles.errors import ParameterError, TooLargeError

#: Coefficient bound C of every spanner.
_BOUND = 2.0
#: Most futures per cut that are enumerated, with no sketching error, rather than sampled.
_ENUMERATED = 4096
#: Most next-token samples the learner starts to draw.
_FEASIBLE = 10**9


@dataclass(frozen=True)
class ConditionalConstants:
    """Sizes for which TV ≤ epsilon with probability ≥ 1 − delta.

    Attributes:
        zeta: ℓ1 accuracy of P̂(· | h), over whole futures, at all histories at once.
        gamma: representativeness asked of sampled sketches; 0 where all futures are enumerated.
        samples: next-token samples m of every prefix asked.
        futures: sampled futures per sketch.
        enumerated: futures per cut up to which sketches enumerate them.
        pool: sampled histories per cut: a fresh one is spanned except with probability epsilon/2T.
        spanner_bound: C.
        prefixes: bound on the number of distinct prefixes asked.
        total_samples: samples × prefixes.
    """

    zeta: float
    gamma: float
    samples: int
    futures: int
    enumerated: int
    pool: int
    spanner_bound: float
    prefixes: int
    total_samples: int

    def check_feasible(self) -> None:
        """Raise TooLargeError when more than 10⁹ next-token samples would be drawn."""
        if self.total_samples > _FEASIBLE:
            raise TooLargeError(
                f"the theory preset needs about {_order(self.total_samples)} next-token samples "
                f"({_order(self.samples)} at each of up to {_order(self.prefixes)} prefixes), more than "
                f'{_order(_FEASIBLE)}: use preset="practical"'
            )


def _order(number: int) -> str:
    """Number for a message; integers beyond the range of floats included."""
    return f"{number:.3g}" if number < 10**15 else f"10^{len(str(number)) - 1}"


def conditional_constants(
    rank: int, vocab_size: int, horizon: int, epsilon: float, delta: float
) -> ConditionalConstants:
    """Sizes for rank S, alphabet A, horizon T; the derivation is in docs/derivations.md.

    TV ≤ F_ζ·ζ + F_γ·γ with the factors of `_amplification`; ζ and γ each take half of epsilon (ζ all of it
    where nothing is sampled). Raises ParameterError on epsilon or delta outside (0, 1).
    """
    rank, vocab_size = as_integer("rank", rank, 1), as_integer("vocab_size", vocab_size, 1)
    horizon = as_integer("horizon", horizon, 1)
    epsilon, delta = as_number("epsilon", epsilon, 0, 1), as_number("delta", delta, 0, 1)
    if not (0 < epsilon < 1 and 0 < delta < 1):
        raise ParameterError(f"epsilon and delta must lie in (0, 1), got {epsilon} and {delta}")
    try:
        return _sizes(rank, vocab_size, horizon, epsilon, delta)
    except (OverflowError, ZeroDivisionError):
        raise TooLargeError(
            f"the sample sizes for rank {rank}, horizon {horizon} are beyond 1e300 samples: "
            'use preset="practical"'
        ) from None


def _sizes(rank: int, vocab_size: int, horizon: int, epsilon: float, delta: float) -> ConditionalConstants:
    pool = sample_compression_size(rank, epsilon / (2 * horizon), delta)
    candidates = [min(vocab_size**t, pool + rank * vocab_size) for t in range(horizon)]
    sampled = [vocab_size ** (horizon - t) > _ENUMERATED for t in range(horizon)]
    needs_sketch = [s and n > rank for s, n in zip(sampled, candidates, strict=True)]
    gamma, futures = 0.0, 1
    if any(needs_sketch):
        if horizon * math.log10(_BOUND * rank) > 290:
            raise OverflowError
        gamma = epsilon / 2 / _amplification(rank, vocab_size, candidates, sampled, 1, delta)[1]
        largest = max(n for n, s in zip(candidates, needs_sketch, strict=True) if s)
        futures = sufficient_sample_size(gamma, delta / (4 * horizon), largest)
    factor = _amplification(rank, vocab_size, candidates, sampled, futures, delta)[0]
    if not math.isfinite(factor):
        raise OverflowError
    zeta = (epsilon if gamma == 0 else epsilon / 2) / factor
    samples = law_samples(vocab_size, horizon, zeta, delta / 2)
    prefixes = _prefixes(vocab_size, candidates, sampled, futures)
    return ConditionalConstants(
        zeta, gamma, samples, futures, _ENUMERATED, pool, _BOUND, prefixes, samples * prefixes
    )


def _amplification(
    rank: int, vocab_size: int, candidates: list[int], sampled: list[bool], futures: int, delta: float
) -> tuple[float, float]:
    """(F_ζ, F_γ) of TV ≤ Σ_(t<T) (E_t + ζW_t) + Σ_(1≤t<T) E_t = F_ζ ζ + F_γ γ.

    E_(t+1) = E_t + (ζ + ρ_t) W_t and W_(t+1) = κ_t W_t, from E_0 = 0 and W_0 = 1. Where every cut has at most
    `rank` histories nothing is represented: TV ≤ ζ.
    """
    if all(n <= rank for n in candidates[1:]):
        return 1.0, 0.0
    horizon = len(candidates)
    weight, error_zeta, error_gamma, total_zeta, total_gamma = 1.0, 0.0, 0.0, 0.0, 0.0
    for t in range(horizon):
        total_zeta += (2 if t else 1) * error_zeta + weight
        total_gamma += (2 if t else 1) * error_gamma
        if t + 1 == horizon:
            break
        n, step_zeta, step_gamma, growth = candidates[t + 1], 1.0, 0.0, 1.0
        if n > rank:  # otherwise every candidate is chosen and represents itself
            growth = _BOUND * rank
            columns, spread = vocab_size ** (horizon - t - 1), 1.0
            if sampled[t + 1]:
                columns, spread = futures, 4 * horizon * n / delta  # Markov for the sketches of P̂ − P
                step_gamma = _BOUND
            step_zeta += (1 + growth) * (1 + spread * math.sqrt(n * columns))
        error_zeta += step_zeta * weight
        error_gamma += step_gamma * weight
        weight *= growth
    return total_zeta, total_gamma


def law_samples(vocab_size: int, horizon: int, zeta: float, delta: float) -> int:
    """An m with T√((A−1)/m) + T/m + √(2T log(N/δ)/m) ≤ ζ, N = Σ_(t<T) A^t histories.

    It is the least square number, less than (1 + √m₀)² for the least m₀.
    """
    if vocab_size == 1:
        return 2
    smallest = math.log1p(-(float(vocab_size) ** -horizon))
    log_histories = horizon * math.log(vocab_size) + smallest - math.log(vocab_size - 1)
    slope = horizon * math.sqrt(vocab_size - 1) + math.sqrt(2 * horizon * (log_histories - math.log(delta)))
    # With s = 1/√m: T s² + slope·s = ζ, written without cancellation.
    root = 2 * zeta / (slope + math.sqrt(slope**2 + 4 * horizon * zeta))
    return max(2, math.ceil(1 / root) ** 2)


def _prefixes(vocab_size: int, candidates: list[int], sampled: list[bool], futures: int) -> int:
    """Prefixes asked: all, or those under the candidates' futures (sources, pool sketch, final sketch)."""
    everything = sum(vocab_size**t for t in range(len(candidates)))
    asked = 1
    for t in range(1, len(candidates)):
        length = len(candidates) - t
        below = 3 * futures * length if sampled[t] else sum(vocab_size**k for k in range(length))
        asked += candidates[t] * below
    return min(everything, asked)
