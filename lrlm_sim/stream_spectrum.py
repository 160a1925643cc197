"""Singular values, losses and history spaces of a `LogitStream`, within its memory limit.

One pass over the blocks gives the singular values at n, n/2, n/4, …: the factor of the first m histories
after the first m futures is the leading part of the factor at hand. A second pass gives KL and
misspecification against rank; the history space (top left singular vectors) is kept for principal angles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.linalg import subspace_angles

from lrlm_sim.gram import StreamedFactor, StreamedGram
from lrlm_sim.logit_stream import LogitStream
from lrlm_sim.low_rank import Approximated, LowRankLosses, approximations, low_rank_losses
from lrlm_sim.spectra import PowerLaw, centred_triangle, fit_power_law, project_states
from oracles.checks import as_integer
from oracles.errors import ParameterError, ShapeError

#: Most logits expanded from hidden states per rank; beyond, losses are means over evenly spaced futures.
_EXPANDED = 1 << 31


@dataclass(frozen=True, eq=False)
class StreamedSpectrum:
    """What the blocks of one matrix give.

    Attributes:
        sigmas: singular values by number of histories and futures, the largest first.
        columns: columns of the logit matrix at full size, n_f · tokens kept.
        basis: top left singular vectors (n_h, r), the space of histories.
        losses: KL, mean ℓ1, max and Frobenius distances against rank.
        loss_futures: number of futures the losses are means over.
        arithmetic: absolute error of singular values by the factor's own rounding.
    """

    sigmas: dict[int, Float[np.ndarray, "rank"]]
    columns: int
    basis: Float[np.ndarray, "n_h r"]
    losses: LowRankLosses
    loss_futures: int
    arithmetic: float

    @property
    def sigma(self) -> Float[np.ndarray, "rank"]:
        """Singular values of the whole matrix."""
        return next(iter(self.sigmas.values()))


def halvings(n_h: int, n_f: int, smallest: int = 16) -> list[int]:
    """n, n/2, n/4, … down to `smallest`, n = min(n_h, n_f), without n itself where that is the matrix."""
    size, found = min(n_h, n_f), []
    while size >= smallest:
        found.append(size)
        size //= 2
    return [m for m in found if m < max(n_h, n_f)]


def default_ranks(n: int) -> list[int]:
    """Powers of two below n, at most 512."""
    return [2**i for i in range(10) if 2**i < n]


def measure_stream(
    stream: LogitStream,
    ranks: Sequence[int],
    sizes: Sequence[int] = (),
    progress: Callable[[int], None] | None = None,
) -> StreamedSpectrum:
    """Spectrum of a stream, its blocks computed where they are missing.

    Arguments:
        ranks: of the losses, ascending, each below min(n_h, columns).
        sizes: m < max(n_h, n_f): also singular values of the first m histories × m futures; blocks
            must end at m (the stream's `marks`).
        progress: told the numbers of cells as they are finished in the first pass.
    """
    n_h, n_f, _ = stream.shape
    columns = n_f * stream.tokens_per_cell
    wanted = np.array([as_integer("ranks", r, 0, min(n_h, columns)) for r in ranks], dtype=np.int64)
    if (np.diff(wanted) <= 0).any():
        raise ParameterError(f"ranks must ascend, got {list(ranks)}")
    factor, parts = _factor(stream, sizes, progress)
    vectors, sigma = factor.left_singular()
    basis = np.ascontiguousarray(vectors[:, : max(int(wanted.max(initial=1)), 1)])
    arithmetic = float(sigma[0]) * (1e-8 if isinstance(factor, StreamedGram) else n_h * np.finfo(float).eps)
    del vectors, factor
    step = 1 if stream.expand is None else max(1, -(-n_f * n_h * stream.tokens_per_cell // _EXPANDED))
    losses = low_rank_losses(_approximated(stream, basis, wanted, step), wanted, expand=stream.expand)
    sigmas = {max(n_h, n_f): sigma, **parts}
    return StreamedSpectrum(sigmas, columns, basis, losses, -(-n_f // step), arithmetic)


@dataclass(frozen=True)
class RangeFit:
    """σ_i ≈ C i^−α over one range of indices, with and without the first direction.

    `alpha_rest` fits σ_2, σ_3, … renumbered from 1, on [first, last − 1]: nothing past σ_last is used.
    """

    n: int
    first: int
    last: int
    alpha: float
    log_c: float
    r2: float
    alpha_rest: float
    r2_rest: float


def fit_range(n: int, sigma: Float[np.ndarray, "rank"], first: int, last: int) -> RangeFit | None:
    """Both fits over [first, last]; None where fewer than two positive values lie in it."""
    last = min(last, int((sigma > 0).sum()))
    if last <= first:
        return None
    fit = fit_power_law(sigma, first, last)
    rest = PowerLaw(np.nan, np.nan, np.nan)
    if last - 1 > first:
        rest = fit_power_law(sigma[1:], first, last - 1)
    return RangeFit(n, first, last, *fit, rest.alpha, rest.r2)


@dataclass(frozen=True)
class SpaceAngles:
    """How two spaces of histories of one rank lie: `overlap` is the mean cos² of the principal angles.

    `random` is its expectation for independent random spaces, rank / n_h; angles are in degrees.
    """

    rank: int
    overlap: float
    random: float
    median: float
    largest: float


def space_angles(
    first: Float[np.ndarray, "n_h r"], second: Float[np.ndarray, "n_h r"], ranks: Sequence[int]
) -> list[SpaceAngles]:
    """Principal angles between leading parts of two orthonormal bases, see `spectra.principal_angles`."""
    if len(first) != len(second):
        raise ShapeError("second", "(n_h, r)", f"({len(first)}, …) as first", second.shape)
    found = []
    for rank in ranks:
        as_integer("rank", rank, 1, min(first.shape[1], second.shape[1]))
        angles = subspace_angles(first[:, :rank], second[:, :rank])
        degrees = np.degrees(angles)
        overlap = float(np.square(np.cos(angles)).mean())
        found.append(
            SpaceAngles(rank, overlap, rank / len(first), float(np.median(degrees)), float(degrees.max()))
        )
    return found


def _factor(
    stream: LogitStream, sizes: Sequence[int], progress: Callable[[int], None] | None
) -> tuple[StreamedFactor, dict[int, Float[np.ndarray, "rank"]]]:
    """Factor of all blocks, and singular values of the leading squares asked for."""
    n_h = len(stream.histories)
    missing = [m for m in sizes if m not in stream.plan.edges or not 0 < m <= n_h]
    if missing:
        raise ParameterError(f"sizes must be marks of the stream and at most {n_h} histories, got {missing}")
    triangle = None if stream.expand is None else centred_triangle(stream.expand)
    factor, found = stream.plan.factor(n_h), {}
    step = stream.plan.chunk
    for futures, block in stream.blocks(progress):
        for low in range(0, block.shape[1], step):
            part = block[:, low : low + step]
            factor.add((part if triangle is None else project_states(part, triangle)).reshape(n_h, -1))
        if futures.stop in sizes:
            found[futures.stop] = factor.leading(futures.stop).singular_values()
    return factor, dict(sorted(found.items(), reverse=True))


def _approximated(
    stream: LogitStream, basis: Float[np.ndarray, "n_h r"], ranks: np.ndarray, every: int
) -> Iterator[Approximated]:
    """Blocks of a few futures with their approximations; of every so many-th future only."""
    for futures, block in stream.blocks():
        first = -futures.start % every
        chosen = block[:, first::every]
        for low in range(0, chosen.shape[1], stream.plan.chunk):
            exact = np.array(chosen[:, low : low + stream.plan.chunk], dtype=np.float64, order="C")
            yield exact, approximations(exact, basis, ranks, by_futures=True)
