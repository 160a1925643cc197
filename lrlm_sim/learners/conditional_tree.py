"""Conditional queries on a prefix tree that fits in memory: estimate, reduce, regress.

The tree of next-token laws gives P̂ of every string, hence the matrix M_t[h, f] = P̂(h∘f) of every cut.
With r = M_t 1 and c = 1ᵀ M_t, the matrix M_t / √(r cᵀ) has orthonormal leading vectors (√r, √c), so the
state x(h) = M_t[h, :] V_t / r_h, V_t = (right singular vectors) / √c, carries the total mass as its first
coordinate, and rare histories and futures weigh as little as they matter. The operators

    x(h) A_(t,o) = P̂(o | h) x(h∘o)

are regressions over all histories with weights r_h: each one averages the noise of the whole cut.
A spanner then turns coordinates into coefficients over histories.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lrlm_sim.learners.prefix_laws import all_strings, estimate_laws
from lrlm_sim.spanners import barycentric_spanner
from oracles.access import ConditionalProbabilityAccess, ConditionalSampleAccess
from oracles.errors import BudgetError

#: Samples of a prefix grow as its probability to this power (2/3 minimises Σ_h P(h)/√m_h at fixed Σ m_h;
#: measured optimum .5–.67).
_SHARE = 0.6
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
        levels, halves = _ask_tree(access, horizon), None
    else:
        first, second = _sample_tree(access, horizon, samples, floor)
        levels = [estimate_laws(a + b, floor) for a, b in zip(first, second, strict=True)]
        halves = _joint_of(first), _joint_of(second)
    joint = _joint(levels)
    cuts = [_reduce(joint, access.vocab_size**t, rank, halves) for t in range(horizon)]
    return _assemble(cuts, levels, access.vocab_size, bound, 1.0 if halves is None else 0.999)


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


def _sample_tree(
    access: ConditionalSampleAccess, horizon: int, samples: int, floor: float
) -> tuple[list[Int[np.ndarray, "n A"]], list[Int[np.ndarray, "n A"]]]:
    """Two independent halves of next-token counts at every prefix, m_h ∝ P̂(h)^0.6, level by level.

    Level t deserves a part in proportion to Σ_h P(h)^0.6. Of the levels below only the growth is guessed: as
    fast per token as so far, between 1 (deterministic) and A^0.4 (uniform).
    """
    vocab_size = access.vocab_size
    left = samples * sum(vocab_size**t for t in range(horizon))
    growth = float(vocab_size) ** (1 - _SHARE)
    reached = np.ones(1)
    halves: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for t in range(horizon):
        share = reached**_SHARE
        if t:
            growth = min(growth, max(1.0, float(share.sum()) ** (1 / t)))
        parts = growth ** np.arange(horizon - t)
        draws = np.floor(left / parts.sum() * share / share.sum()).astype(np.int64)
        draws = np.maximum(draws, 2)
        left = max(0, left - int(draws.sum()))
        prefixes = all_strings(vocab_size, t)
        try:
            for half, count in zip(halves, (draws // 2, draws - draws // 2), strict=True):
                half.append(access.next_counts(prefixes, count))
        except BudgetError as error:
            error.partial = {"levels": t, "counts": [a + b for a, b in zip(*halves, strict=False)]}
            raise
        laws = estimate_laws(halves[0][-1] + halves[1][-1], floor)
        reached = (reached[:, None] * laws).ravel()
    return halves


def _joint_of(counts: list[np.ndarray]) -> Float[np.ndarray, "strings"]:
    """Shares of draws, no prior: what was never drawn must not look like a direction of the teacher."""
    return _joint([level / np.maximum(level.sum(axis=1, keepdims=True), 1) for level in counts])


def _joint(levels: list[np.ndarray]) -> Float[np.ndarray, "strings"]:
    """Probability of every string, lexicographic, from the laws of every prefix."""
    joint = np.ones(1)
    for laws in levels:
        joint = (joint[:, None] * laws).ravel()
    return joint


def _scaled(joint: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """M / √(r cᵀ) with its marginals; impossible rows and columns stay zero."""
    matrix = joint.reshape(rows, -1)
    r, c = matrix.sum(axis=1), matrix.sum(axis=0)
    left = np.divide(1, np.sqrt(r), out=np.zeros_like(r), where=r > 0)
    right = np.divide(1, np.sqrt(c), out=np.zeros_like(c), where=c > 0)
    return matrix * left[:, None] * right, r, right


def _reduce(
    joint: np.ndarray, rows: int, rank: int | None, halves: tuple[np.ndarray, np.ndarray] | None
) -> _Cut:
    """Best rank-r subspace of one cut, states of its histories, and marginals of its futures."""
    scaled, r, right = _scaled(joint, rows)
    _, sigma, v = np.linalg.svd(scaled, full_matrices=False)
    found = int((sigma > 1e-11 * sigma[0]).sum()) if halves is None else _significant(*halves, rows)
    width = max(1, min(rank or found, int((sigma > 1e-11 * sigma[0]).sum())))
    matrix = joint.reshape(rows, -1)
    conditional = np.divide(matrix, r[:, None], out=np.zeros_like(matrix), where=r[:, None] > 0)
    states = conditional @ (v[:width] * right).T
    # v_k √c are the functionals' loadings: P(f | h) ≈ Σ_k x_k(h) v_k[f] √c_f, summed over blocks of futures.
    loadings = v[:width] * np.sqrt(matrix.sum(axis=0))
    blocks = max(1, loadings.shape[1] // _SKETCH)
    folded = np.add.reduceat(loadings, np.arange(0, loadings.shape[1], blocks), axis=1)
    return _Cut(states, r, folded, found)


def _significant(first: np.ndarray, second: np.ndarray, rows: int) -> int:
    """Rank that both halves of the samples agree on.

    The singular pairs (u_k, v_k) of one half are independent of the other half's noise, so u_kᵀ M₂ v_k has
    mean σ_k for a direction of the teacher and mean about 0 for one of noise. The spread of the
    latter is read off the trailing half of the pairs; six spreads count as signal.
    """
    u, sigma, v = np.linalg.svd(_scaled(first, rows)[0], full_matrices=False)
    if len(sigma) < 8:
        return len(sigma) if len(sigma) == 1 else 1
    agreed = np.einsum("ik,ij,kj->k", u, _scaled(second, rows)[0], v, optimize=True)
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
