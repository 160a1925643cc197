"""Next-token draws on a whole prefix tree, spent where they matter.

With m_h draws at prefix h the error of the tree of laws is at most

    Σ_h P(h) E‖p̂_h − p_h‖₁ ≈ √(2/π) Σ_h P(h) s_h / √m_h,    s_h = Σ_o √(p_h(o) (1 − p_h(o))),

which at a fixed Σ_h m_h is least for m_h ∝ (P(h) s_h)^(2/3) (Neyman's allocation for this error): a likely
prefix deserves more, one after which the next token is certain nothing. A pilot on the way down the tree
estimates P and s; the rest of the draws goes where the allocation wants more than the pilot spent.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from lrlm_sim.learners.prefix_laws import all_strings, estimate_laws
from oracles.access import ConditionalSampleAccess
from oracles.errors import BudgetError

#: Power of P(h) s_h in the allocation.
_SHARE = 2 / 3
#: Part of all draws that is the pilot, and draws per prefix up to which all are: fewer tell too little.
_PILOT, _FEW = 0.5, 8

#: Next-token counts at every prefix, level by level.
Counts = list[Int[np.ndarray, "n A"]]


def sample_tree(
    access: ConditionalSampleAccess, horizon: int, samples: int, floor: float
) -> tuple[Counts, Counts]:
    """Two independent halves of next-token counts: `samples` per prefix on average, at least two at each.

    BudgetError.partial has the counts of the levels drawn so far.
    """
    prefixes = sum(access.vocab_size**t for t in range(horizon))
    total, least = samples * prefixes, min(samples, _FEW) * prefixes
    halves: tuple[Counts, Counts] = ([], [])
    try:
        _pilot(access, horizon, max(int(_PILOT * total), least), floor, halves)
        _refine(access, total, floor, halves)
    except BudgetError as error:
        counts = [a + b for a, b in zip(*halves, strict=False)]
        error.partial = {"levels": len(counts), "counts": counts}
        raise
    return halves


def _pilot(
    access: ConditionalSampleAccess, horizon: int, left: int, floor: float, halves: tuple[Counts, Counts]
) -> None:
    """Draws ∝ P̂(h)^(2/3) level by level, at least two at each prefix.

    Level t deserves a part in proportion to Σ_h P(h)^(2/3). Of the levels below only the growth is guessed:
    as fast per token as so far, between 1 (deterministic) and A^(1/3) (uniform).
    """
    vocab_size = access.vocab_size
    growth = float(vocab_size) ** (1 - _SHARE)
    reached = np.ones(1)
    for t in range(horizon):
        share = reached**_SHARE
        if t:
            growth = min(growth, max(1.0, float(share.sum()) ** (1 / t)))
        parts = growth ** np.arange(horizon - t)
        least_below = 2 * sum(vocab_size**k for k in range(t + 1, horizon))
        part = min(left / parts.sum(), left - least_below)
        draws = np.floor(filled_up(share, np.full(len(share), 2), part)).astype(np.int64)
        left -= int(draws.sum())
        prefixes = all_strings(vocab_size, t)
        for half, count in zip(halves, (draws // 2, draws - draws // 2), strict=True):
            half.append(access.next_counts(prefixes, count))
        laws = estimate_laws(halves[0][t] + halves[1][t], floor)
        reached = (reached[:, None] * laws).ravel()


def _refine(access: ConditionalSampleAccess, total: int, floor: float, halves: tuple[Counts, Counts]) -> None:
    """Add draws at the prefixes that deserve more than they have, up to `total` in all."""
    weights, drawn, reached = [], [], np.ones(1)
    for first, second in zip(*halves, strict=True):
        laws = estimate_laws(first + second, floor)
        weights.append((reached * np.sqrt(laws * (1 - laws)).sum(axis=1)) ** _SHARE)
        drawn.append((first + second).sum(axis=1))
        reached = (reached[:, None] * laws).ravel()
    wanted = filled_up(np.concatenate(weights), np.concatenate(drawn), total)
    ends = np.cumsum([len(level) for level in drawn])[:-1]
    for t, (level, have) in enumerate(zip(np.split(wanted, ends), drawn, strict=True)):
        more = np.floor(level - have).astype(np.int64)
        prefixes = all_strings(access.vocab_size, t)
        for half, count in zip(halves, (more // 2, more - more // 2), strict=True):
            rows = np.flatnonzero(count > 0)
            if len(rows):
                half[t][rows] += access.next_counts(prefixes[rows], count[rows])


def filled_up(
    weights: Float[np.ndarray, "n"], drawn: Int[np.ndarray, "n"], total: float
) -> Float[np.ndarray, "n"]:
    """m_h = max(drawn_h, c·weight_h) with Σ_h m_h = total; `drawn` where it has as many already.

    The minimiser of Σ_h weight_h^(3/2) / √m_h under m ≥ drawn and Σ m = total.
    """
    weights = np.maximum(weights, 1e-300)
    order = np.argsort(drawn / weights, kind="stable")
    ratios = (drawn / weights)[order]
    untouched = drawn.sum() - np.cumsum(drawn[order])
    levels = (total - untouched) / np.cumsum(weights[order])
    fits = levels <= np.append(ratios[1:], np.inf)
    return np.maximum(drawn, float(levels[int(np.argmax(fits))]) * weights)


def relative_variances(
    levels: list[Float[np.ndarray, "n A"]], counts: Counts
) -> list[Float[np.ndarray, "n"]]:
    """Var P̂(h) / P(h)² of every prefix, lengths 0, …, T, to first order: Σ over its tokens of (1 − p)/(p m).

    Laws of different prefixes are independent, so relative variances of products add.
    """
    found = [np.zeros(1)]
    for laws, drawn in zip(levels, counts, strict=True):
        step = (1 - laws) / (laws * drawn.sum(axis=1, keepdims=True))
        found.append((found[-1][:, None] + step).ravel())
    return found
