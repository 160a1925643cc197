"""Fidelity: how visible the hidden dimensions of a model are in its probabilities.

Kakade, Krishnamurthy, Mahajan and Zhang (arXiv:2302.14753) learn from conditional samples with a
number of queries that grows as the inverse of a *fidelity* of the model, large when some bases of
histories and futures are well conditioned. The measure here is the one that is computed exactly and
bounds what any pair of bases can show under the model's own marginals: with M_t[h, f] = P(h∘f),
r = M_t 1, c = 1ᵀ M_t, and rank r_t,

    fidelity = min over cuts t of σ_(r_t)( M_t / √(r cᵀ) ) ∈ (0, 1],

the smallest canonical correlation of past and future that is not zero. Nearly identical hidden states
drive it to zero; `ConditionalQueryLearner` does not depend on it, the sampled `ExactConditionalLearner` does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lrlm_sim.distances import sequence_probabilities
from oracles.base import Oracle
from oracles.checks import as_number


@dataclass(frozen=True, eq=False)
class Fidelity:
    """`value` is the smallest non-zero canonical correlation; `correlations[t−1]` those of cut t, falling."""

    value: float
    ranks: list[int]
    correlations: list[np.ndarray]


def fidelity(oracle: Oracle, tolerance: float = 1e-9) -> Fidelity:
    """Fidelity of a model small enough to enumerate (see the module's formula).

    Correlations below `tolerance` count as zero. A horizon of one has no cut: value 1.
    Raises TooLargeError where the model cannot be enumerated.
    """
    tolerance = as_number("tolerance", tolerance, 0, 1)
    joint = sequence_probabilities(oracle)
    horizon = oracle.horizon or 0
    correlations = [canonical_correlations(joint, oracle.vocab_size**t) for t in range(1, horizon)]
    ranks = [max(1, int((sigma > tolerance).sum())) for sigma in correlations]
    value = min((float(s[r - 1]) for s, r in zip(correlations, ranks, strict=True)), default=1.0)
    return Fidelity(value, ranks, correlations)


def canonical_correlations(joint: Float[np.ndarray, "strings"], rows: int) -> Float[np.ndarray, "k"]:
    """Singular values of M / √(r cᵀ), M = `joint` reshaped to `rows` rows; the first is one."""
    matrix = joint.reshape(rows, -1)
    r, c = matrix.sum(axis=1), matrix.sum(axis=0)
    scaled = matrix[np.ix_(r > 0, c > 0)] / np.sqrt(np.outer(r[r > 0], c[c > 0]))
    return np.linalg.svd(scaled, compute_uv=False)
