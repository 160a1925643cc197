"""Sizes for the KL-projected sampler of arXiv:2411.07536, polynomial in the horizon (docs/derivations.md).

They prove what can be proved, and are no advice: `conditional_constants`, without projection, are smaller on
every horizon that can be run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lrlm_sim.learners.conditional_constants import law_samples
from lrlm_sim.sketches import sufficient_sample_size
from oracles.checks import as_integer, as_number
from oracles.errors import ParameterError, TooLargeError

#: Coefficient bound of every spanner, and of representations whose coefficients sum to one.
_BOUND, _SUMMED = 2.0, 3.0


@dataclass(frozen=True)
class ProjectedConstants:
    """Sizes for which TV ≤ epsilon with probability ≥ 1 − delta.

    Attributes:
        theta: floor, in units of the mean law of a cut's spanner.
        rho: ℓ1 error of a covered history's law over the spanner.
        tau: accuracy of the projections' means over sampled futures.
        eta: probability of a history that is not covered, per cut.
        zeta: ℓ1 accuracy of P̂(· | h) at all histories at once.
        gamma: representativeness of the sketches.
        pool: strings sampled from the teacher at every cut.
        sketch_futures: futures per sketch, M.
        projection_futures: futures per cut for the projections, m′.
        samples: next-token samples m of every prefix asked.
        total_samples: samples × a bound on the number of prefixes asked; the pools' strings come on top.
    """

    theta: float
    rho: float
    tau: float
    eta: float
    zeta: float
    gamma: float
    pool: int
    sketch_futures: int
    projection_futures: int
    samples: int
    total_samples: int


def projected_constants(
    rank: int, vocab_size: int, horizon: int, epsilon: float, delta: float
) -> ProjectedConstants:
    """Sizes for rank S, alphabet A ≥ 2, horizon T ≥ 2; `projected_error` of them is at most epsilon.

    ParameterError on arguments outside these ranges and epsilon or delta outside (0, 1); TooLargeError
    beyond the range of floats.
    """
    rank, vocab_size = as_integer("rank", rank, 1), as_integer("vocab_size", vocab_size, 2)
    horizon = as_integer("horizon", horizon, 2)
    epsilon, delta = as_number("epsilon", epsilon, 0, 1), as_number("delta", delta, 0, 1)
    if not (0 < epsilon < 1 and 0 < delta < 1):
        raise ParameterError(f"epsilon and delta must lie in (0, 1), got {epsilon} and {delta}")
    try:
        logarithm, found = 1.0, None
        while found is None or log_ratio(found, vocab_size, horizon) > logarithm:
            if found is not None:
                logarithm = 1.01 * log_ratio(found, vocab_size, horizon)
            found = _sizes(rank, vocab_size, horizon, epsilon, delta, logarithm)
        return found
    except (OverflowError, ZeroDivisionError):
        raise TooLargeError(
            f"the sizes for rank {rank}, horizon {horizon} are beyond the range of floats: use smaller ones"
        ) from None


def projected_error(sizes: ProjectedConstants, rank: int, vocab_size: int, horizon: int) -> float:
    """The bound Tζ/2 + (T − 1)η + TAτ + √((T − 1)κ/2) on the total variation, with κ = `step_divergence`."""
    steps = horizon - 1
    kappa = step_divergence(sizes, rank, vocab_size, horizon)
    linear = horizon * sizes.zeta / 2 + steps * sizes.eta + horizon * vocab_size * sizes.tau
    return linear + math.sqrt(steps * kappa / 2)


def step_divergence(sizes: ProjectedConstants, rank: int, vocab_size: int, horizon: int) -> float:
    """κ = 4(3S/θ + 1)(3S/θ)G + θ + 2τ + (6ρ + 2θ)L, G = 2ρ + 2τ + 3S(2ρ + 1/m), L = `log_ratio`."""
    theta, rho, tau = sizes.theta, sizes.rho, sizes.tau
    moved = 2 * rho + 2 * tau + _SUMMED * rank * (2 * rho + 1 / sizes.samples)
    logarithm = log_ratio(sizes, vocab_size, horizon)
    return _gain(rank, theta) * moved + theta + 2 * tau + (6 * rho + 2 * theta) * logarithm


def log_ratio(sizes: ProjectedConstants, vocab_size: int, horizon: int) -> float:
    """L = log(9/θ) + T log(A(2m + 1)), a bound on all log-ratios of laws."""
    return math.log(9 / sizes.theta) + horizon * math.log(vocab_size * (2 * sizes.samples + 1))


def _gain(rank: int, theta: float) -> float:
    ratio = _SUMMED * rank / theta
    return 4 * (ratio + 1) * ratio


def _sizes(
    rank: int, vocab_size: int, horizon: int, epsilon: float, delta: float, logarithm: float
) -> ProjectedConstants:
    """Sizes for which every part of the error is small enough where L ≤ `logarithm`."""
    eta = epsilon / 8 / (horizon - 1)
    half = 25 / 64 * epsilon**2 / (horizon - 1)  # of κ
    theta = half / (1 + 2 * logarithm)
    per_rho = _gain(rank, theta) * (4 + 3 * _SUMMED * rank) + 2 + 6 * logarithm  # τ = ρ ≥ 1/m
    rho = min(half / per_rho, epsilon / (8 * horizon * vocab_size))
    if not rho > 0:
        raise OverflowError
    pool = _pool(rank, vocab_size, eta, delta / (8 * horizon))
    candidates = pool + rank * vocab_size
    gamma = rho / 2 / _BOUND
    sketch = sufficient_sample_size(gamma, delta / (8 * horizon), candidates)
    vector = rho / 2 / (1 + _BOUND * rank) / math.sqrt(candidates * sketch)  # ζ′
    zeta = vector * delta / (8 * horizon * candidates)
    samples = law_samples(vocab_size, horizon, zeta, delta / 2)
    futures = _projection_futures(rank, vocab_size, horizon, theta, rho, delta)
    prefixes = horizon**2 * ((candidates + 1) * sketch + futures * (rank + 1))
    return ProjectedConstants(
        theta, rho, rho, eta, zeta, gamma, pool, sketch, futures, samples, samples * prefixes
    )


def _pool(rank: int, vocab_size: int, eta: float, delta: float) -> int:
    """The least power of two times S with (N + SA + 1)^S (1 − η)^(N − S) ≤ δ."""
    size = rank
    while (size - rank) * -math.log1p(-eta) < rank * math.log(size + rank * vocab_size + 1) - math.log(delta):
        size *= 2
    return size


def _projection_futures(
    rank: int, vocab_size: int, horizon: int, theta: float, tau: float, delta: float
) -> int:
    """m′ = ⌈(8B²/τ²)(log(16T(A + 3)/δ) + 3S log(1 + 4 C_w Λ/τ))⌉, by Hoeffding and a net."""
    widest = 2 * _SUMMED**2 * rank / theta  # C_w
    logarithm = math.log(widest * rank / theta)
    bound = max(_SUMMED * rank * logarithm, widest * rank)
    slope = _SUMMED * 3 * rank**2 * logarithm / theta
    net = 3 * rank * math.log1p(4 * widest * slope / tau)
    return math.ceil(8 * (bound / tau) ** 2 * (math.log(16 * horizon * (vocab_size + 3) / delta) + net))
