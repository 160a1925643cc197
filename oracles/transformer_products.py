"""The microkernel of matrix products in compiled functions: a tile of 4 rows and 16 columns in registers.

Eight vectors hold the tile; each term of the sums takes two loads of b, four of single numbers of a, and
eight multiplications with addition, which is close to the peak of machines with two such units. Nothing
is copied beforehand: rows of b are contiguous as they stand, and a has strides of its own.
"""

from __future__ import annotations

import numpy as np

from oracles.simd import fma, inlined, load, load_same, same, store

#: Rows of a panel of weights and columns of a tile.
PANEL, TILE = 4, 16


@inlined
def zeros():  # pragma: no cover (compiled)
    """An empty tile."""
    z = same(np.float32(0.0))
    return z, z, z, z, z, z, z, z


@inlined
def accumulate(tile, a, at, step, stride, b, place, columns, terms):  # pragma: no cover (compiled)
    """tile[i, j] + Σ_k a[at + k · step + i · stride] · b[place + k · columns + j], 4 by 16."""
    c00, c01, c10, c11, c20, c21, c30, c31 = tile
    for _ in range(terms):
        b0, b1 = load(b, place), load(b, place + 8)
        w = load_same(a, at)
        c00, c01 = fma(w, b0, c00), fma(w, b1, c01)
        w = load_same(a, at + stride)
        c10, c11 = fma(w, b0, c10), fma(w, b1, c11)
        w = load_same(a, at + 2 * stride)
        c20, c21 = fma(w, b0, c20), fma(w, b1, c21)
        w = load_same(a, at + 3 * stride)
        c30, c31 = fma(w, b0, c30), fma(w, b1, c31)
        at += step
        place += columns
    return c00, c01, c10, c11, c20, c21, c30, c31


@inlined
def load_tile(a, place, columns):  # pragma: no cover (compiled)
    """Four rows of 16."""
    p1 = place + columns
    p2 = p1 + columns
    p3 = p2 + columns
    return (
        load(a, place),
        load(a, place + 8),
        load(a, p1),
        load(a, p1 + 8),
        load(a, p2),
        load(a, p2 + 8),
        load(a, p3),
        load(a, p3 + 8),
    )


@inlined
def store_tile(tile, a, place, columns):  # pragma: no cover (compiled)
    """Write four rows of 16."""
    c00, c01, c10, c11, c20, c21, c30, c31 = tile
    store(a, place, c00)
    store(a, place + 8, c01)
    place += columns
    store(a, place, c10)
    store(a, place + 8, c11)
    place += columns
    store(a, place, c20)
    store(a, place + 8, c21)
    place += columns
    store(a, place, c30)
    store(a, place + 8, c31)
