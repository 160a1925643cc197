"""Spectra of logit matrices: singular values, power laws, low-rank errors, principal angles.

A logit array L has shape (n_h, n_f, k): history, future, kept token; its *unfolding* is the matrix
n_h × (n_f·k) (arXiv:2510.24966). Real arrays of any width are accepted; sums run in float64.

Where a `method` can be chosen: ``"svd"`` (through a triangular factor) has absolute error ε σ_1;
``"gram"`` takes about half the time, has relative error ε (σ_1/σ_i)² and means nothing below
1e-8 σ_1 (see `lrlm_sim.gram`); ``"auto"`` is ``"svd"`` for small matrices and ``"gram"`` otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from scipy.linalg import subspace_angles
from scipy.linalg.blas import dtrmm  # pyright: ignore[reportAttributeAccessIssue]

from lrlm_sim.gram import StreamedFactor, StreamedGram, StreamedTriangle, factor_of
from lrlm_sim.low_rank import CELL_BLOCK, LowRankKL, Misspecification, approximations, low_rank_losses
from oracles.checks import as_finite, as_integer
from oracles.errors import ParameterError, ShapeError

_SMALL_WORK = 2e9  # rows · columns · min(rows, columns) up to which "auto" affords "svd"
_STATE_BLOCK = 1 << 20  # float64 numbers per block of hidden states
_MIN_COLUMNS = 512  # narrower updates of a factor are bound by memory traffic
_FACTORS: dict[str, type[StreamedFactor]] = {"gram": StreamedGram, "svd": StreamedTriangle}


class PowerLaw(NamedTuple):
    """σ_i ≈ exp(log_c)·i^(−alpha); `r2` is the coefficient of determination on log–log axes."""

    alpha: float
    log_c: float
    r2: float


def unfold(L: ArrayLike, name: str = "L") -> Float[np.ndarray, "n_h columns"]:
    """The matrix n_h × (n_f·k) of an array (n_h, n_f, k); matrices pass through.

    A view where the memory order allows it. Raises ShapeError for other arrays and empty ones.
    """
    symbolic = "(n_h, n_f, k) or (n_h, columns)"
    try:
        array = np.asarray(L)
    except ValueError:
        raise ShapeError(name, symbolic, "2 or 3 axes", "a ragged list") from None
    if array.ndim not in (2, 3) or array.size == 0:
        raise ShapeError(name, symbolic, "2 or 3 non-empty axes", array.shape)
    if array.dtype.kind not in "fiu":
        raise ShapeError(name, symbolic, "real numbers", f"dtype {array.dtype}")
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    return array.reshape(len(array), -1)


def singular_values(L: ArrayLike | Iterator[np.ndarray], method: str = "auto") -> Float[np.ndarray, "rank"]:
    """Singular values of the unfolding of L, descending, min(rows, columns) of them.

    Arguments:
        L: array (n_h, n_f, k) or (n_h, columns), or an *iterator* of such blocks with the same n_h,
            which are consumed and forgotten (blocks of futures, in any order).
        method: "auto", "gram" or "svd", see the module; iterators take "gram" for "auto".

    An array is reduced on its smaller side s in chunks: s² (columns or rows) flops and
    8 s² bytes for "gram", twice that for "svd"; the array is never copied whole. An iterator is
    reduced on the histories.
    Raises NonFiniteError for NaN or infinite entries, ShapeError for other arrays or unequal blocks.
    """
    if isinstance(L, Iterator):
        return _streamed(L, method).singular_values()
    matrix = unfold(L)
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    return factor_of(wide, _method(method, *wide.shape)).singular_values()


def hidden_state_singular_values(
    hidden: ArrayLike | Iterator[np.ndarray], unembedding: ArrayLike, method: str = "auto"
) -> Float[np.ndarray, "rank"]:
    """Singular values of the all-token centred logit matrix of a network, without its logits.

    L[h, f, :] = W_c x_hf with W_c the unembedding minus its mean row. With W_c = QR the unfolding of L
    has the singular values of the unfolding of X Rᵀ: width columns per future in place of vocab_size.

    Arguments:
        hidden: X, final hidden states (what the unembedding is applied to), shape (n_h, n_f, width),
            or an iterator of blocks of futures (n_h, n_f', width).
        unembedding: W, shape (vocab_size, width).
        method: as in `singular_values`.
    """
    triangle = centred_triangle(unembedding)
    if isinstance(hidden, Iterator):
        return _streamed(_projected_blocks(hidden, triangle), method).singular_values()
    states = np.asarray(hidden)
    _check_hidden(states, len(triangle))
    n_h, n_f, width = states.shape
    if n_h <= n_f * width:
        blocks = _projected_blocks(iter([states]), triangle)
    else:  # more histories than columns: reduce on the columns, block by block of histories
        step = max(_MIN_COLUMNS, _STATE_BLOCK // (n_f * width))
        parts = (project_states(states[low : low + step], triangle) for low in range(0, n_h, step))
        blocks = (part.reshape(len(part), -1).T for part in parts)
    rows, columns = sorted((n_h, n_f * width))
    factor = _method(method, rows, columns)(rows)
    for block in blocks:
        factor.add(block.reshape(rows, -1))
    return factor.singular_values()


def fit_power_law(sigma: ArrayLike, first: int, last: int) -> PowerLaw:
    """Least squares of log σ_i on log i over the 1-based inclusive range first ≤ i ≤ last.

    `alpha` refers to σ itself, not σ². Always report the range: α depends on it.
    Raises ParameterError if the range does not fit or holds a value that is not positive.
    """
    values = as_finite("sigma", sigma, "(n,)", 1)
    first = as_integer("first", first, 1)
    last = as_integer("last", last, first + 1, len(values))
    index = np.arange(first, last + 1)
    if (values[first - 1 : last] <= 0).any():
        worst = int(index[values[first - 1 : last] <= 0][0])
        raise ParameterError(f"σ_{worst} is not positive: end the range before it, last < {worst}")
    x, y = np.log(index), np.log(values[first - 1 : last])
    x_mean, y_mean = x.mean(), y.mean()
    slope = ((x - x_mean) @ (y - y_mean)) / ((x - x_mean) @ (x - x_mean))
    residual = y - y_mean - slope * (x - x_mean)
    total = (y - y_mean) @ (y - y_mean)
    r2 = 1.0 if total == 0 else 1.0 - float(residual @ residual / total)
    return PowerLaw(float(-slope), float(y_mean - slope * x_mean), r2)


def low_rank_kl(L: ArrayLike, ranks: Iterable[int]) -> LowRankKL:
    """Average KL(softmax(L_hf) ‖ softmax(A_hf)) for the best rank-r approximation A of the unfolding.

    `bound` is ‖L − A‖_F² / (n_h n_f) ≥ KL (Fact B.2 of arXiv:2510.24966). One factorisation serves all
    ranks; A is built up rank block by rank block over blocks of cells, so that the memory used beside L
    is a few 1 MiB blocks (or single futures) and the n_h² (or (n_f k)²) factor.

    Arguments:
        L: logits (n_h, n_f, k); softmax is over the k tokens given.
        ranks: integers 0..min(n_h, n_f·k), in any order; results come in the same order.
    """
    array, wanted, order = _cells_and_ranks(L, ranks, need_tokens=True)
    found = low_rank_losses(_approximated_blocks(array, wanted[order]), wanted[order], l1=False)
    back = np.argsort(order)
    return LowRankKL(wanted, found.kl[back], np.square(found.frobenius[back]))


def misspecification(L: ArrayLike, ranks: Iterable[int]) -> Misspecification:
    """Distances of L to its best (Frobenius) rank-r approximation A, for the ε(d)-against-d curves.

    With D = L − A and cells (h, f): mean_l1 = mean over cells of Σ_z |D_hfz|; max = max |D_hfz|;
    frobenius = sqrt(mean over cells of Σ_z D_hfz²) = ‖D‖_F/√(n_h n_f). The ℓ1 and max values are upper
    bounds on those of the best rank-r matrix in their own norm. A 2-D L counts as k = 1.
    """
    array, wanted, order = _cells_and_ranks(L, ranks, need_tokens=False)
    found = low_rank_losses(_approximated_blocks(array, wanted[order]), wanted[order], kl=False)
    back = np.argsort(order)
    return Misspecification(wanted, found.mean_l1[back], found.max[back], found.frobenius[back])


def principal_angles(L1: ArrayLike, L2: ArrayLike, rank: int) -> Float[np.ndarray, "rank"]:
    """Angles 0 ≤ θ_1 ≤ … ≤ θ_rank ≤ π/2, in radians, between the top-rank left singular spaces.

    The spaces are of histories: both arrays have the same n_h (row = history); futures and tokens may
    differ. Angles come from sines where cosines lose digits (Björck, Golub 1973; Knyazev, Argentati 2002).
    Raises ParameterError if σ_rank of either matrix is rounding error: its space is not determined.
    A space is well determined only where σ_rank and σ_(rank+1) are apart.
    """
    first, second = unfold(L1, "L1"), unfold(L2, "L2")
    if len(first) != len(second):
        raise ShapeError("L2", "(n_h, n_f, k)", f"({len(first)}, …) as L1", np.shape(L2))
    return subspace_angles(_left_space("L1", first, rank), _left_space("L2", second, rank))[::-1]


def _method(name: str, rows: int, columns: int) -> type[StreamedFactor]:
    if name == "auto":
        return _FACTORS["svd" if rows * columns * min(rows, columns) <= _SMALL_WORK else "gram"]
    if name not in _FACTORS:
        raise ParameterError(f'method must be "auto", "gram" or "svd", got {name!r}')
    return _FACTORS[name]


def _streamed(blocks: Iterator[np.ndarray], method: str) -> StreamedFactor:
    kind = _FACTORS["gram"] if method == "auto" else _method(method, 1, 1)
    factor = None
    for block in blocks:
        matrix = unfold(block)
        factor = factor or kind(len(matrix))
        factor.add(matrix)
    if factor is None:
        raise ShapeError("L", "blocks (n_h, n_f, k)", "at least one block", "an empty iterator")
    return factor


def centred_triangle(unembedding: ArrayLike) -> Float[np.ndarray, "width width"]:
    """R of W_c = QR, in blocks of rows: the unembedding is never copied whole."""
    if np.ndim(unembedding) != 2:
        raise ShapeError("unembedding", "(vocab_size, width)", "2 axes", np.shape(unembedding))
    rows = unfold(unembedding, "unembedding")
    mean = rows.mean(axis=0, dtype=np.float64)
    factor = StreamedTriangle(rows.shape[1])
    step = max(1, _STATE_BLOCK // rows.shape[1])
    for low in range(0, len(rows), step):
        factor.add((rows[low : low + step] - mean).T)
    return factor.triangle


def _check_hidden(states: np.ndarray, width: int) -> None:
    if states.ndim != 3 or states.shape[2] != width or states.size == 0 or states.dtype.kind != "f":
        actual = f"{states.shape} {states.dtype}"
        raise ShapeError("hidden", "(n_h, n_f, width)", f"3 axes of floats, the last {width}", actual)


def _projected_blocks(
    blocks: Iterator[np.ndarray], triangle: Float[np.ndarray, "width width"]
) -> Iterator[Float[np.ndarray, "n_h part width"]]:
    """X Rᵀ in parts of a few futures."""
    width = len(triangle)
    for block in blocks:
        states = np.asarray(block)
        _check_hidden(states, width)
        step = max(1, -(-_MIN_COLUMNS // width), _STATE_BLOCK // (len(states) * width))
        for low in range(0, states.shape[1], step):
            yield project_states(states[:, low : low + step], triangle)


def project_states(
    states: np.ndarray, triangle: Float[np.ndarray, "width width"]
) -> Float[np.ndarray, "n_h part width"]:
    """X Rᵀ, float64: the logits W_c X up to a rotation of the token axis."""
    rows = np.array(states, dtype=np.float64, order="C")  # a copy: dtrmm overwrites it
    columns = rows.reshape(-1, len(triangle)).T
    return dtrmm(1.0, triangle, columns, overwrite_b=1).T.reshape(rows.shape)


def _cells_and_ranks(
    L: ArrayLike, ranks: Iterable[int], need_tokens: bool
) -> tuple[np.ndarray, Int[np.ndarray, "ranks"], Int[np.ndarray, "ranks"]]:
    """L as (n_h, n_f, k), the ranks asked, and the order that sorts them."""
    matrix = unfold(L)
    shape = np.shape(L)
    if need_tokens and len(shape) != 3:
        raise ShapeError("L", "(n_h, n_f, k)", "3 axes: softmax is over the last", shape)
    array = matrix.reshape(*shape, *(1,) * (3 - len(shape)))
    wanted = np.array([as_integer("ranks", rank, 0, min(matrix.shape)) for rank in ranks], dtype=np.int64)
    return array, wanted, np.argsort(wanted, kind="stable")


def _approximated_blocks(
    array: np.ndarray, ranks: Int[np.ndarray, "ranks"]
) -> Iterator[tuple[Float[np.ndarray, "a b k"], Iterator[Float[np.ndarray, "a b k"]]]]:
    """(exact block, its best approximations for ascending ranks), over blocks of cells covering L.

    With U the singular vectors of the smaller side, A = U_r U_rᵀ L: blocks are independent. Each
    approximation is valid until the next is asked for.
    """
    n_h, n_f, k = array.shape
    matrix = array.reshape(n_h, -1)
    by_futures = n_h <= n_f * k
    basis, _ = factor_of(matrix if by_futures else matrix.T, StreamedTriangle).left_singular()
    step = max(1, CELL_BLOCK // (n_h * k if by_futures else n_f * k))
    for low in range(0, n_f if by_futures else n_h, step):
        part = array[:, low : low + step] if by_futures else array[low : low + step]
        exact = np.array(part, dtype=np.float64, order="C")
        yield exact, approximations(exact, basis, ranks, by_futures)


def _left_space(name: str, matrix: np.ndarray, rank: int) -> Float[np.ndarray, "n_h rank"]:
    """Orthonormal basis of the top-`rank` left singular space."""
    rank = as_integer("rank", rank, 1, min(matrix.shape))
    by_rows = matrix.shape[0] <= matrix.shape[1]
    vectors, sigma = factor_of(matrix if by_rows else matrix.T, StreamedTriangle).left_singular()
    if sigma[rank - 1] <= max(matrix.shape) * np.finfo(np.float64).eps * sigma[0]:
        known = int((sigma > max(matrix.shape) * np.finfo(np.float64).eps * sigma[0]).sum())
        raise ParameterError(f"{name} has numerical rank {known}: ask for at most that, got rank = {rank}")
    return vectors[:, :rank] if by_rows else np.linalg.qr(matrix @ vectors[:, :rank])[0]
