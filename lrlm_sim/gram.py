"""Gram and triangular factors of matrices that arrive in column blocks and are never held whole.

Both classes take blocks B_1, B_2, … of a matrix L = [B_1 B_2 …] with n rows and forget them:

- `StreamedGram` keeps G = L Lᵀ: n² flops per column (BLAS dsyrk, lower triangle, in place). The
  square root halves the digits: σ_i comes with a relative error of about ε (σ_1/σ_i)², ε = 1.1e-16,
  so 1e-10 down to σ_i = 1e-3 σ_1, 1e-2 at 1e-7 σ_1, and nothing below 1e-8 σ_1.
- `StreamedTriangle` keeps R of L = Rᵀ Qᵀ: 2 n² flops per column (LAPACK dtpqrt; the "tall and skinny"
  QR of Demmel, Grigori, Hoemmen, Langou, arXiv:0808.2664). σ_i has an absolute error of about ε σ_1.

Sums run in float64 whatever the blocks hold: a float32 Gram matrix loses σ_200 of a power law to 1e-3.
Peak memory: 8 n² bytes for the factor, as much again while singular values are computed, and
max(16 MiB, 4096 n bytes) for the conversion of blocks that are not contiguous float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float
from scipy.linalg import eigh, eigvalsh
from scipy.linalg.blas import dsyrk  # pyright: ignore[reportAttributeAccessIssue]
from scipy.linalg.lapack import dtpqrt  # pyright: ignore[reportAttributeAccessIssue]

from oracles.checks import as_integer
from oracles.errors import NonFiniteError, ShapeError

_CHUNK = 1 << 21  # float64 numbers converted at a time (16 MiB): fits the last-level cache
_MIN_COLUMNS = 512  # narrower updates of an n × n factor are bound by its memory traffic
_PANEL = 32  # columns per block reflector of dtpqrt: the fastest of 16, 32, 64, 128 at n = 1000


class StreamedFactor(ABC):
    """An n × n factor of a matrix with n rows whose columns arrive in blocks."""

    def __init__(self, n: int) -> None:
        self.n = as_integer("n", n, 1)
        self.columns = 0
        self._factor = np.zeros((self.n, self.n), order="F")

    @abstractmethod
    def add(self, block: np.ndarray) -> None:
        """Append the columns of `block` (n, columns), real numbers of any width, any memory order."""

    @abstractmethod
    def merge(self, other: StreamedFactor) -> None:
        """Append the columns that `other`, a factor of the same kind and n, has seen."""

    @abstractmethod
    def singular_values(self) -> Float[np.ndarray, "rank"]:
        """Singular values of all columns seen, descending, min(n, columns) of them."""

    @abstractmethod
    def left_singular(self) -> tuple[Float[np.ndarray, "n rank"], Float[np.ndarray, "rank"]]:
        """(U, σ): left singular vectors as columns, and singular values, descending."""

    def leading(self, m: int) -> StreamedFactor:
        """The factor of the first m rows of the columns seen so far: a copy of the leading m × m part.

        (L Lᵀ)[:m, :m] = L[:m] L[:m]ᵀ, and L[:m] = (R[:m, :m])ᵀ Q[:, :m]ᵀ since R is upper triangular.
        """
        part = type(self)(as_integer("m", m, 1, self.n))
        part.columns = self.columns
        part._factor = self._factor[:m, :m].copy(order="F")
        return part

    def _count(self, block: np.ndarray) -> np.ndarray:
        block = np.asarray(block)
        if block.ndim != 2 or len(block) != self.n:
            raise ShapeError("block", "(n, columns)", f"({self.n}, …)", block.shape)
        if block.dtype.kind not in "fiu":
            raise ShapeError("block", "(n, columns)", "real numbers", f"dtype {block.dtype}")
        self.columns += block.shape[1]
        return block

    def _count_other(self, other: StreamedFactor) -> None:
        if type(other) is not type(self) or other.n != self.n:
            expected = f"{type(self).__name__} with n = {self.n}"
            raise ShapeError("other", "(n, n)", expected, f"{type(other).__name__} with n = {other.n}")
        self.columns += other.columns


class StreamedGram(StreamedFactor):
    """Lower triangle of G = L Lᵀ: the fast factor; see the module for what it loses."""

    def add(self, block: np.ndarray) -> None:
        for part in _float64_parts(self._count(block), always_copy=False):
            rows_adjacent = part.flags.f_contiguous and not part.flags.c_contiguous
            columns, trans = (part, 0) if rows_adjacent else (part.T, 1)  # Fortran order: no hidden copy
            self._factor = dsyrk(1.0, columns, beta=1.0, c=self._factor, trans=trans, lower=1, overwrite_c=1)

    def merge(self, other: StreamedFactor) -> None:
        self._count_other(other)
        self._factor += other._factor

    def singular_values(self) -> Float[np.ndarray, "rank"]:
        squares = eigvalsh(self._finite(), lower=True, check_finite=False)
        return _descending_roots(squares)[: self.columns]

    def left_singular(self) -> tuple[Float[np.ndarray, "n rank"], Float[np.ndarray, "rank"]]:
        squares, vectors = eigh(self._finite(), lower=True, check_finite=False, driver="evd")
        keep = min(self.n, self.columns)
        return np.ascontiguousarray(vectors[:, ::-1][:, :keep]), _descending_roots(squares)[:keep]

    def _finite(self) -> Float[np.ndarray, "n n"]:
        # A NaN, an infinity or a square that overflows in row i shows in G_ii = Σ_j L_ij².
        if not np.isfinite(np.diagonal(self._factor)).all():
            raise NonFiniteError("matrix entries must be finite and below 1e150, got NaN, infinity or more")
        return self._factor


class StreamedTriangle(StreamedFactor):
    """Upper triangular R with L = Rᵀ Qᵀ: full accuracy at about twice the work of `StreamedGram`."""

    def add(self, block: np.ndarray) -> None:
        for part in _float64_parts(self._count(block), always_copy=True):
            self._append(part.T)

    def merge(self, other: StreamedFactor) -> None:
        self._count_other(other)
        self._append(other._factor.copy(order="F"))

    def singular_values(self) -> Float[np.ndarray, "rank"]:
        return np.linalg.svd(self._finite(), compute_uv=False)[: self.columns]

    def left_singular(self) -> tuple[Float[np.ndarray, "n rank"], Float[np.ndarray, "rank"]]:
        _, sigma, vectors = np.linalg.svd(self._finite())
        keep = min(self.n, self.columns)
        return np.ascontiguousarray(vectors[:keep].T), sigma[:keep]

    @property
    def triangle(self) -> Float[np.ndarray, "n n"]:
        """R, upper triangular, Fortran order (a copy)."""
        return self._finite().copy(order="F")

    def _append(self, rows: Float[np.ndarray, "columns n"]) -> None:
        panel = min(_PANEL, self.n)
        self._factor, _, _, _ = dtpqrt(0, panel, self._factor, rows, overwrite_a=1, overwrite_b=1)

    def _finite(self) -> Float[np.ndarray, "n n"]:
        if not np.isfinite(self._factor).all():
            raise NonFiniteError("matrix entries must be finite, got NaN or infinity")
        return self._factor


def factor_of(matrix: np.ndarray, method: type[StreamedFactor]) -> StreamedFactor:
    """The n × n factor of a matrix held in memory, n its number of rows."""
    factor = method(len(matrix))
    factor.add(matrix)
    return factor


def _descending_roots(squares: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    return np.sqrt(np.maximum(squares[::-1], 0.0))


def _float64_parts(block: np.ndarray, always_copy: bool) -> Iterator[Float[np.ndarray, "n part"]]:
    """Column parts as contiguous float64, each valid until the next: one buffer serves all.

    The buffer has the memory order of the block, so that the conversion reads and writes in sequence;
    with `always_copy` the parts are C-ordered and may be overwritten.
    """
    n, columns = block.shape
    contiguous = block.flags.c_contiguous or block.flags.f_contiguous
    if not always_copy and block.dtype == np.float64 and contiguous and block.size:
        yield block
        return
    width = min(max(1, columns), max(_MIN_COLUMNS, _CHUNK // n))
    rows_adjacent = not always_copy and abs(block.strides[0]) < abs(block.strides[1])
    buffer = np.empty((width, n)).T if rows_adjacent else np.empty(n * width)
    for low in range(0, columns, width):
        source = block[:, low : low + width]
        count = source.shape[1]
        part = buffer[:, :count] if rows_adjacent else buffer[: n * count].reshape(n, count)
        np.copyto(part, source, casting="unsafe")
        yield part
