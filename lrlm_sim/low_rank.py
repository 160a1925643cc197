"""Losses of best low-rank approximations of logits, in one pass over blocks of cells.

A cell is a pair (history, future) with its k logits. With U the left singular vectors of the unfolding
n_h × (n_f·k), the best rank-r approximation of any block of futures B is U_r U_rᵀ B: blocks are independent,
so nothing but one block is ever held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import log_softmax, logsumexp

#: Float64 numbers per block of approximations: their temporaries stay in cache.
CELL_BLOCK = 1 << 17
_SERIES = 1e-3  # shifts of log-probabilities below which a KL is summed by its series
_OVERFLOW = 500.0  # shifts above which it takes a logarithm of sums of exponentials


class LowRankKL(NamedTuple):
    """Average KL, in nats per (history, future), of best rank-r approximations, and its upper bound."""

    ranks: Int[np.ndarray, "ranks"]
    kl: Float[np.ndarray, "ranks"]
    bound: Float[np.ndarray, "ranks"]


class Misspecification(NamedTuple):
    """Distances to the best rank-r approximation, per cell; see `spectra.misspecification`."""

    ranks: Int[np.ndarray, "ranks"]
    mean_l1: Float[np.ndarray, "ranks"]
    max: Float[np.ndarray, "ranks"]
    frobenius: Float[np.ndarray, "ranks"]


class LowRankLosses(NamedTuple):
    """KL and distances of best rank-r approximations; NaN where a loss was not asked for."""

    ranks: Int[np.ndarray, "ranks"]
    kl: Float[np.ndarray, "ranks"]
    mean_l1: Float[np.ndarray, "ranks"]
    max: Float[np.ndarray, "ranks"]
    frobenius: Float[np.ndarray, "ranks"]


#: A block of exact logits and its approximations of ascending rank, each valid until the next.
Approximated = tuple[Float[np.ndarray, "a b k"], Iterator[Float[np.ndarray, "a b k"]]]


def low_rank_losses(
    blocks: Iterable[Approximated],
    ranks: Int[np.ndarray, "ranks"],
    kl: bool = True,
    l1: bool = True,
    expand: Float[np.ndarray, "tokens k"] | None = None,
) -> LowRankLosses:
    """Mean losses over all cells of all blocks, for ascending `ranks`.

    Arguments:
        blocks: exact logits with their approximations.
        kl: sum KL(softmax(exact) ‖ softmax(approximation)). l1: sum absolute differences.
        expand: blocks hold coordinates x of cells whose logits are expand · x (hidden states and centred
            unembedding); None: they hold the logits.
    """
    sums = np.zeros((4, len(ranks)))
    cells = 0
    for coordinates, approximate in blocks:
        cells += coordinates.shape[0] * coordinates.shape[1]
        parts = _row_parts(coordinates, expand)
        laws = [_law(coordinates[rows], expand, kl) for rows in parts] if len(parts) == 1 else None
        for i, candidate in enumerate(approximate):
            for rows in parts:
                law = laws[0] if laws else _law(coordinates[rows], expand, kl)
                difference = candidate[rows] - coordinates[rows]
                if expand is not None:
                    difference = difference @ expand.T
                _add_losses(sums[:, i], difference, law, l1)
    nothing = np.full(len(ranks), np.nan)
    return LowRankLosses(
        ranks,
        sums[0] / cells if kl else nothing,
        sums[1] / cells if l1 else nothing,
        sums[2] if l1 else nothing,
        np.sqrt(sums[3] / cells),
    )


def _row_parts(coordinates: np.ndarray, expand: np.ndarray | None) -> list[slice]:
    """All rows at once, or as many as keep their expanded logits within a block of memory."""
    rows, columns, _ = coordinates.shape
    step = rows if expand is None else max(1, 4 * CELL_BLOCK // (columns * len(expand)))
    return [slice(low, min(low + step, rows)) for low in range(0, rows, step)]


def _law(
    coordinates: Float[np.ndarray, "a b k"], expand: np.ndarray | None, wanted: bool
) -> tuple[Float[np.ndarray, "cells k"], Float[np.ndarray, "cells k"]] | None:
    """(p, log p) of the softmax of every cell."""
    if not wanted:
        return None
    exact = coordinates if expand is None else coordinates @ expand.T
    log_p = log_softmax(exact, axis=-1).reshape(-1, exact.shape[2])
    return np.exp(log_p), log_p


def _add_losses(
    sums: Float[np.ndarray, "4"], difference: np.ndarray, law: tuple[np.ndarray, np.ndarray] | None, l1: bool
) -> None:
    """Add KL, Σ |D|, max |D|, Σ D² of one approximation; `difference` D is overwritten."""
    sums[3] += np.vdot(difference, difference)
    if law is not None:
        sums[0] += kl_of_shift(*law, difference.reshape(law[0].shape)).sum()
    if l1:
        np.abs(difference, out=difference)
        sums[1] += difference.sum()
        sums[2] = max(sums[2], difference.max())


def approximations(
    exact: Float[np.ndarray, "a b k"],
    basis: Float[np.ndarray, "n rank"],
    ranks: Int[np.ndarray, "ranks"],
    by_futures: bool,
) -> Iterator[Float[np.ndarray, "a b k"]]:
    """Best approximations of a block for ascending ranks, each valid until the next is asked for.

    `basis` holds the singular vectors of the block's rows (`by_futures`: histories), or of its columns.
    """
    flat = exact.reshape(len(exact), -1)
    total, done = np.zeros_like(flat), 0
    for rank in ranks:
        part = basis[:, done:rank]
        total += part @ (part.T @ flat) if by_futures else (flat @ part) @ part.T
        done = rank
        yield total.reshape(exact.shape)


def kl_of_shift(
    p: Float[np.ndarray, "cells k"], log_p: Float[np.ndarray, "cells k"], shift: Float[np.ndarray, "cells k"]
) -> Float[np.ndarray, "cells"]:
    """KL(p ‖ q) for q ∝ p·exp(shift), to 1e-9 relative or 1e-15 absolute.

    With s = shift − Σ p·shift the divergence is log Σ p e^s. Since Σ p s = 0, cells with small s sum
    p·(e^s − 1 − s) by its series, which does not cancel.
    """
    s = shift - np.einsum("nk,nk->n", p, shift)[:, None]
    high = s.max(axis=1)
    near = np.maximum(high, -s.min(axis=1)) < _SERIES
    if near.all():
        return _kl_by_series(p, s)
    kl = np.empty(len(s))
    kl[near] = _kl_by_series(p[near], s[near])
    far = high > _OVERFLOW
    kl[far] = logsumexp(log_p[far] + s[far], axis=1)
    rest = ~near & ~far
    p, s = (p, s) if rest.all() else (p[rest], s[rest])
    kl[rest] = np.log(np.einsum("nk,nk->n", p, np.exp(s)))
    return np.maximum(kl, 0.0)


def _kl_by_series(
    p: Float[np.ndarray, "cells k"], s: Float[np.ndarray, "cells k"]
) -> Float[np.ndarray, "cells"]:
    excess = s * s * (1 / 2 + s * (1 / 6 + s / 24))
    return np.log1p(np.einsum("nk,nk->n", p, excess))
