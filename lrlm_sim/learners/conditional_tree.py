"""Conditional queries on a prefix tree that fits in memory: estimate, reduce, regress.

The tree of next-token laws gives P̂ of every string, hence the matrix M_t[h, f] = P̂(h∘f) of every cut.
With r = M_t 1 and c = 1ᵀ M_t, the matrix M_t / √(r cᵀ) has orthonormal leading vectors (√r, √c), and rare
histories and futures weigh as little in it as they matter. The other directions are those of the rows

    √w_h (P̂(· | h) − c) / √c,    w_h = r_h over the variance that the draws leave in the row,

so that a history known precisely shows a direction that the noise of others would hide. The state
x(h) = P̂(· | h) V_t, V_t = (√c and the leading right singular vectors) / √c, carries the total mass as its
first coordinate. The operators

    x(h) A_(t,o) = P̂(o | h) x(h∘o)

are regressions over all histories with weights r_h: each one averages the noise of the whole cut.
A spanner then turns coordinates into coefficients over histories.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lrlm_sim.learners.prefix_laws import all_strings, estimate_laws
from lrlm_sim.learners.tree_draws import relative_variances, sample_tree
from lrlm_sim.spanners import barycentric_spanner
from oracles.access import ConditionalProbabilityAccess, ConditionalSampleAccess
from oracles.errors import BudgetError

#: Noise that every history is taken to have at least, as a part of the mean over histories.
_LEAST_NOISE = 0.3
#: Most linear functionals kept per cut for the projection.
_SKETCH = 256


@dataclass(frozen=True, eq=False)
class TreeFit:
    """Laws, operators and sketches for a `SpannerModel`, and what was seen on the way."""

    laws: list[np.ndarray]
    operators: list[np.ndarray]
    sketches: list[np.ndarray]
    found: list[int]
    max_coefficient: float


@dataclass(frozen=True, eq=False)
class _Cut:
    """States of all histories of one cut, conditional, in the coordinates of its subspace."""

    states: Float[np.ndarray, "n r"]
    weights: Float[np.ndarray, "n"]
    functionals: Float[np.ndarray, "r m"]
    found: int


@dataclass(frozen=True, eq=False)
class _Noise:
    """Probabilities of all strings from two halves of the draws, and `relative_variances` of all prefixes."""

    halves: tuple[Float[np.ndarray, "strings"], Float[np.ndarray, "strings"]]
    variances: list[Float[np.ndarray, "n"]]


def fit_tree(
    access: ConditionalProbabilityAccess | ConditionalSampleAccess,
    horizon: int,
    rank: int | None,
    samples: int,
    floor: float,
    bound: float,
) -> TreeFit:
    """Ask the whole tree and reduce every cut to its rank (at most `rank`)."""
    if isinstance(access, ConditionalProbabilityAccess):
        levels, noise = _ask_tree(access, horizon), None
    else:
        first, second = sample_tree(access, horizon, samples, floor)
        counts = [a + b for a, b in zip(first, second, strict=True)]
        levels = [estimate_laws(level, floor) for level in counts]
        noise = _Noise((_joint_of(first), _joint_of(second)), relative_variances(levels, counts))
    joint = _joint(levels)
    cuts = [_reduce(joint, access.vocab_size**t, t, rank, noise) for t in range(horizon)]
    return _assemble(cuts, levels, access.vocab_size, bound, 1.0 if noise is None else 0.999)


def _ask_tree(access: ConditionalProbabilityAccess, horizon: int) -> list[Float[np.ndarray, "n A"]]:
    """Exact laws of every prefix, level by level; BudgetError.partial has those of the levels answered."""
    levels: list[np.ndarray] = []
    try:
        for t in range(horizon):
            levels.append(np.exp(access.next_log_probs(all_strings(access.vocab_size, t))))
    except BudgetError as error:
        error.partial = {"levels": len(levels), "laws": levels}
        raise
    return levels


def _joint_of(counts: list[np.ndarray]) -> Float[np.ndarray, "strings"]:
    """Shares of draws, no prior: what was never drawn must not look like a direction of the teacher."""
    return _joint([level / np.maximum(level.sum(axis=1, keepdims=True), 1) for level in counts])


def _joint(levels: list[np.ndarray]) -> Float[np.ndarray, "strings"]:
    """Probability of every string, lexicographic, from the laws of every prefix."""
    joint = np.ones(1)
    for laws in levels:
        joint = (joint[:, None] * laws).ravel()
    return joint


def _scaled(joint: Float[np.ndarray, "strings"], rows: int) -> Float[np.ndarray, "rows columns"]:
    """M / √(r cᵀ); impossible rows and columns stay zero."""
    matrix = joint.reshape(rows, -1)
    return matrix * _inverse_root(matrix.sum(axis=1))[:, None] * _inverse_root(matrix.sum(axis=0))


def _inverse_root(mass: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """1/√mass, 0 where there is none."""
    return np.divide(1, np.sqrt(mass), out=np.zeros_like(mass), where=mass > 0)


def _reduce(joint: np.ndarray, rows: int, cut: int, rank: int | None, noise: _Noise | None) -> _Cut:
    """Best rank-r subspace of one cut, states of its histories, and marginals of its futures."""
    matrix = joint.reshape(rows, -1)
    r, c = matrix.sum(axis=1), matrix.sum(axis=0)
    conditional = np.divide(matrix, r[:, None], out=np.zeros_like(matrix), where=r[:, None] > 0)
    right = _inverse_root(c)
    weights = r if noise is None else _precisions(conditional * right, r, cut, noise)
    centred = np.where(r[:, None] > 0, conditional - c, 0.0) * right
    _, sigma, v = np.linalg.svd(np.sqrt(weights)[:, None] * centred, full_matrices=False)
    real = 1 + int((sigma > 1e-11).sum())
    found = real if noise is None else _significant(*noise.halves, rows)
    width = max(1, min(rank or found, real))
    directions = np.concatenate([np.sqrt(c)[None], v[: width - 1]])
    states = conditional @ (directions * right).T
    # v_k √c are the functionals' loadings: P(f | h) ≈ Σ_k x_k(h) v_k[f] √c_f, summed over blocks of futures.
    loadings = directions * np.sqrt(c)
    blocks = max(1, loadings.shape[1] // _SKETCH)
    folded = np.add.reduceat(loadings, np.arange(0, loadings.shape[1], blocks), axis=1)
    return _Cut(states, r, folded, found)


def _precisions(
    scaled: Float[np.ndarray, "n m"], r: Float[np.ndarray, "n"], cut: int, noise: _Noise
) -> Float[np.ndarray, "n"]:
    """r_h over the variance of √r_h P̂(· | h) / √c in units of its mean; no history is free of noise."""
    relative = noise.variances[-1].reshape(len(r), -1) - noise.variances[cut][:, None]
    variance = r * (scaled**2 * relative).sum(axis=1)
    mean = max(float(variance.mean()), 1e-300)
    return r / (variance / mean + _LEAST_NOISE)


def _significant(first: np.ndarray, second: np.ndarray, rows: int) -> int:
    """Rank that both halves of the samples agree on.

    The singular pairs (u_k, v_k) of one half are independent of the other half's noise, so u_kᵀ M₂ v_k has
    mean σ_k for a direction of the teacher and mean about 0 for one of noise. The spread of the
    latter is read off the trailing half of the pairs; six spreads count as signal.
    """
    u, sigma, v = np.linalg.svd(_scaled(first, rows), full_matrices=False)
    if len(sigma) < 8:
        return len(sigma) if len(sigma) == 1 else 1
    agreed = np.einsum("ik,ij,kj->k", u, _scaled(second, rows), v, optimize=True)
    spread = np.sqrt(np.mean(np.square(agreed[len(agreed) // 2 :])))
    below = np.flatnonzero(agreed <= max(6 * spread, 1e-9))
    return int(below[0]) if len(below) else len(agreed)


def _assemble(
    cuts: list[_Cut], levels: list[np.ndarray], vocab_size: int, bound: float, covered: float
) -> TreeFit:
    """Operators between cuts by weighted regression, then coefficients over a spanner of each cut.

    Noise puts some histories below zero in some columns of the sketch, by at most the column's slack. As
    coefficients sum to one, adding it to the column lowers the floor by as much: the projection's set then
    contains the histories it has to represent. (Without it projections were the largest error on nearly
    deterministic teachers.)
    """
    bases, slacks, largest = [], [], 1.0
    for cut in cuts:
        heavy = _covering(cut.weights, covered)
        spanner = barycentric_spanner(cut.states[heavy], bound)
        largest = max(largest, float(spanner.max_coefficient))
        bases.append(cut.states[heavy[spanner.indices]])
        slacks.append(np.maximum(-(cut.states[heavy] @ cut.functionals).min(axis=0), 0.0))
    laws, operators, sketches = [], [], []
    for t, cut in enumerate(cuts):
        root = np.sqrt(cut.weights)[:, None]
        solve = np.linalg.pinv(cut.states * root, rcond=1e-13) * root.T
        laws.append(bases[t] @ (solve @ levels[t]))
        if t + 1 < len(cuts):
            after = cuts[t + 1].states.reshape(len(cut.states), vocab_size, -1)
            targets = levels[t][:, :, None] * after
            moved = np.einsum("rn,noj->orj", bases[t] @ solve, targets, optimize=True)
            operators.append(moved @ np.linalg.pinv(bases[t + 1], rcond=1e-13))
            sketches.append(np.maximum(bases[t + 1] @ cuts[t + 1].functionals + slacks[t + 1], 0.0))
    return TreeFit(laws, operators, sketches, [cut.found for cut in cuts], largest)


def _covering(weights: Float[np.ndarray, "n"], mass: float) -> Int[np.ndarray, "k"]:
    """The fewest histories that hold `mass` of the probability: rare ones are noise, not directions."""
    order = np.argsort(-weights, kind="stable")
    if mass >= 1:
        return order[: max(1, int((weights > 0).sum()))]
    return order[: int(np.searchsorted(np.cumsum(weights[order]), mass * weights.sum())) + 1]
