"""A small decoder as one compiled pass (numba) over a block of strings, for `transformer_packed`.

Activations are feature-major, float32 (features, columns), so that tokens stand side by side: 16 of them
make a tile, two vectors wide (`oracles.simd`). Every product goes through the microkernel of
`transformer_products`; weights are packed in panels of 4 rows for it, and what
stands before or after a product (bias, residual, gate) is done while the tile is in registers. A strip of
columns goes through the whole feed-forward before the next, so that its intermediates stay in cache.
The tokens of a block are its strings, one after another, rounded up to whole tiles.

numba's cache on disk follows changes of this file alone, not of the two it builds on.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from oracles.simd import (
    add,
    divide,
    exp2,
    fma,
    inlined,
    larger,
    load,
    load_same,
    multiply,
    root,
    same,
    smaller,
    store,
    subtract,
    where_at_most,
)
from oracles.transformer_products import PANEL, TILE, accumulate, load_tile, store_tile, zeros

#: Columns that go through a feed-forward together.
STRIP = 64
_f = np.float32
#: Below every score, and far enough from −∞ that differences stay finite.
_MINUS_INFINITY = _f(-1.0e38)


class Weights(NamedTuple):
    """Matrices of all layers in panels (layers, rows / 4, terms, 4), norms' gains multiplied into them.

    The embedding (vocabulary, width), biases (layers, rows) and the last norm's gain (width,) are plain.

    Rows of `gate_up` are two gates, then the two values they gate. Gates are in units of −log2(e) and
    values of its inverse, queries scaled so that scores are in bits.
    """

    embedding: np.ndarray
    qkv: np.ndarray
    bias: np.ndarray
    out: np.ndarray
    gate_up: np.ndarray
    down: np.ndarray
    gain: np.ndarray


class Sizes(NamedTuple):
    """Numbers of heads, of heads of keys and values, features of a head, of the stream, and its epsilon."""

    heads: int
    kv_heads: int
    d: int
    width: int
    epsilon: np.float32


class Places(NamedTuple):
    """Columns at which queries are asked: own keys first ≤ k ≤ last, and the rotary embedding there.

    first, last: float32 (columns,), numbers of tokens of the block; cos, sin: (d / 2, columns).
    """

    first: np.ndarray
    last: np.ndarray
    cos: np.ndarray
    sin: np.ndarray


class Scratch(NamedTuple):
    """What is written and read again within a strip of columns, or a tile of queries."""

    normal: np.ndarray
    raw: np.ndarray
    gated: np.ndarray
    scores: np.ndarray


@inlined
def _biases(bias, row):  # pragma: no cover (compiled)
    """A tile that starts from the biases of four rows."""
    a, b, c, d = (
        load_same(bias, row),
        load_same(bias, row + 1),
        load_same(bias, row + 2),
        load_same(bias, row + 3),
    )
    return a, a, b, b, c, c, d, d


@inlined
def _normalise(x, column, epsilon, width, out, tiles):  # pragma: no cover (compiled)
    """Write x / √(mean of squares over features + epsilon) of some columns into the strip out."""
    columns = x.shape[1]
    for tile in range(tiles):
        place = column + tile * TILE
        s0 = s1 = same(_f(0.0))
        for c in range(width):
            v0, v1 = load(x, c * columns + place), load(x, c * columns + place + 8)
            s0, s1 = fma(v0, v0, s0), fma(v1, v1, s1)
        one, over, e = same(_f(1.0)), same(_f(1.0) / _f(width)), same(epsilon)
        s0, s1 = divide(one, root(fma(s0, over, e))), divide(one, root(fma(s1, over, e)))
        for c in range(width):
            v0, v1 = load(x, c * columns + place), load(x, c * columns + place + 8)
            store(out, c * STRIP + tile * TILE, multiply(v0, s0))
            store(out, c * STRIP + tile * TILE + 8, multiply(v1, s1))


@inlined
def _rotate(x, row, column, d, places, tiles):  # pragma: no cover (compiled)
    """Rotary embedding of one head's rows, in place; pairs are (c, c + d/2)."""
    columns, half = x.shape[1], d // 2
    for c in range(half):
        u_at, v_at = (row + c) * columns + column, (row + half + c) * columns + column
        table = c * places.cos.shape[1] + column
        for t in range(0, tiles * TILE, 8):
            u, v = load(x, u_at + t), load(x, v_at + t)
            cos, sin = load(places.cos, table + t), load(places.sin, table + t)
            store(x, u_at + t, subtract(multiply(u, cos), multiply(v, sin)))
            store(x, v_at + t, fma(u, sin, multiply(v, cos)))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def project(weights, sizes, layer, x, begin, end, places, normal, out):  # pragma: no cover (compiled)
    """Queries, keys and values of all columns of x, queries and keys rotated: panels begin ≤ p < end.

    normal: scratch (width, STRIP).
    """
    panels, bias = weights.qkv[layer], weights.bias[layer]
    width, columns, used = sizes.width, x.shape[1], len(places.first)
    rotated = (sizes.heads + sizes.kv_heads) * sizes.d
    for column in range(0, used, STRIP):
        tiles = min(STRIP, used - column) // TILE
        _normalise(x, column, sizes.epsilon, width, normal, tiles)
        row = -(-begin * PANEL // sizes.d) * sizes.d
        for p in range(begin, end):
            for tile in range(tiles):
                c = _biases(bias, p * PANEL)
                c = accumulate(c, panels, p * PANEL * width, PANEL, 1, normal, tile * TILE, STRIP, width)
                store_tile(c, out, p * PANEL * columns + column + tile * TILE, columns)
            while row + sizes.d <= min(rotated, (p + 1) * PANEL):  # heads that are complete
                _rotate(out, row, column, sizes.d, places, tiles)
                row += sizes.d


@inlined
def _add_product(panels, p, terms, b, place, columns, x, x_place):  # pragma: no cover (compiled)
    """X += a panel of weights times b, one tile."""
    c = load_tile(x, x_place, x.shape[1])
    c = accumulate(c, panels, p * PANEL * terms, PANEL, 1, b, place, columns, terms)
    store_tile(c, x, x_place, x.shape[1])


@inlined
def _gate(z, u):  # pragma: no cover (compiled)
    """silu(g) · u, where z = −log2(e) g and u comes in units of −ln(2)."""
    return divide(multiply(z, u), add(same(_f(1.0)), exp2(smaller(same(_f(126.0)), z))))


@inlined
def _gated_product(panels, p, width, normal, tiles, raw, gated):  # pragma: no cover (compiled)
    """Two rows of gated values of a strip, from a panel of two gates and their values."""
    for t in range(0, tiles * TILE, TILE):
        c = accumulate(zeros(), panels, p * PANEL * width, PANEL, 1, normal, t, STRIP, width)
        store_tile(c, raw, t, STRIP)
    for row in range(2):
        for t in range(row * STRIP, row * STRIP + tiles * TILE, 8):
            store(gated, 2 * p * STRIP + t, _gate(load(raw, t), load(raw, 2 * STRIP + t)))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def finish(weights, sizes, layer, mixed, x, used, scratch):  # pragma: no cover (compiled)
    """X += out · mixed, then x += down · gated: what follows attention in a layer, strip by strip."""
    normal, raw, gated, _ = scratch
    out, gate_up, down = weights.out[layer], weights.gate_up[layer], weights.down[layer]
    width, columns, inner, queries = sizes.width, x.shape[1], down.shape[1], sizes.heads * sizes.d
    for column in range(0, used, STRIP):
        tiles = min(STRIP, used - column) // TILE
        for p in range(len(out)):
            for t in range(column, column + tiles * TILE, TILE):
                _add_product(out, p, queries, mixed, t, columns, x, p * PANEL * columns + t)
        _normalise(x, column, sizes.epsilon, width, normal, tiles)
        for p in range(len(gate_up)):
            _gated_product(gate_up, p, width, normal, tiles, raw, gated)
        for p in range(len(down)):
            for tile in range(tiles):
                place = p * PANEL * columns + column + tile * TILE
                _add_product(down, p, inner, gated, tile * TILE, STRIP, x, place)


@inlined
def _hide(tile, key, first0, first1, last0, last1):  # pragma: no cover (compiled)
    """A tile of scores of four keys from `key` on, −∞ where not first ≤ key ≤ last."""
    c00, c01, c10, c11, c20, c21, c30, c31 = tile
    never, k = same(_MINUS_INFINITY), same(_f(key))
    c00 = where_at_most(k, last0, where_at_most(first0, k, c00, never), never)
    c01 = where_at_most(k, last1, where_at_most(first1, k, c01, never), never)
    k = same(_f(key + 1))
    c10 = where_at_most(k, last0, where_at_most(first0, k, c10, never), never)
    c11 = where_at_most(k, last1, where_at_most(first1, k, c11, never), never)
    k = same(_f(key + 2))
    c20 = where_at_most(k, last0, where_at_most(first0, k, c20, never), never)
    c21 = where_at_most(k, last1, where_at_most(first1, k, c21, never), never)
    k = same(_f(key + 3))
    c30 = where_at_most(k, last0, where_at_most(first0, k, c30, never), never)
    c31 = where_at_most(k, last1, where_at_most(first1, k, c31, never), never)
    return c00, c01, c10, c11, c20, c21, c30, c31


@inlined
def _highest(tile, top0, top1):  # pragma: no cover (compiled)
    """Largest scores so far, with those of a tile."""
    c00, c01, c10, c11, c20, c21, c30, c31 = tile
    top0 = larger(larger(c00, c10), larger(larger(c20, c30), top0))
    top1 = larger(larger(c01, c11), larger(larger(c21, c31), top1))
    return top0, top1


@inlined
def _score_prefix(keys, count, queries, place, d, scores):  # pragma: no cover (compiled)
    """Scores of a tile of queries at the keys of a prefix, into rows of `scores`; returns the largest."""
    columns = queries.shape[1]
    top0 = top1 = same(_MINUS_INFINITY)
    for p in range(len(keys)):
        c = accumulate(zeros(), keys, p * PANEL * d, PANEL, 1, queries, place, columns, d)
        if (p + 1) * PANEL > count:  # rows that fill up the last panel
            first, last = same(_f(0.0)), same(_f(count - 1))
            c = _hide(c, p * PANEL, first, first, last, last)
        top0, top1 = _highest(c, top0, top1)
        store_tile(c, scores, p * PANEL * TILE, TILE)
    return top0, top1


@inlined
def _score_own(own, row, span, queries, place, places, column, d, top, scores, to):  # pragma: no cover
    """The same at own keys low ≤ k < high, of which shown ≤ k < hidden are open to the whole tile."""
    low, high, shown, hidden = span
    columns, tokens = queries.shape[1], own.shape[1]
    first0, first1 = load(places.first, column), load(places.first, column + 8)
    last0, last1 = load(places.last, column), load(places.last, column + 8)
    top0, top1 = top
    for k in range(low, high, PANEL):
        c = accumulate(zeros(), own, row * tokens + k, tokens, 1, queries, place, columns, d)
        if k < shown or k + PANEL > hidden:
            c = _hide(c, k, first0, first1, last0, last1)
        top0, top1 = _highest(c, top0, top1)
        store_tile(c, scores, (to + k - low) * TILE, TILE)
    return top0, top1


@inlined
def _exponentiate(scores, rows, top0, top1):  # pragma: no cover (compiled)
    """Softmax numerators of a tile of scores in place; returns one over their sums."""
    s0 = s1 = same(_f(0.0))
    for place in range(0, rows * TILE, TILE):
        p0 = exp2(subtract(load(scores, place), top0))
        p1 = exp2(subtract(load(scores, place + 8), top1))
        store(scores, place, p0)
        store(scores, place + 8, p1)
        s0, s1 = add(s0, p0), add(s1, p1)
    one = same(_f(1.0))
    return divide(one, s0), divide(one, s1)


@inlined
def _span(places, column):  # pragma: no cover (compiled)
    """Own keys low ≤ k < high of a tile of queries; shown ≤ k < hidden are open to all of them."""
    low = shown = places.first[column]
    high = hidden = places.last[column]
    for t in range(column + 1, column + TILE):
        low, shown = min(low, places.first[t]), max(shown, places.first[t])
        high, hidden = max(high, places.last[t]), min(hidden, places.last[t])
    return int(low), int(high) + 1, int(shown), int(hidden) + 1


@inlined
def _mix(values, own, row, low, high, scores, begin, over0, over1, mixed, m_row, column):  # pragma: no cover
    """Values weighted by a tile of softmax numerators, over their sums."""
    columns, tokens = mixed.shape[1], own.shape[1]
    prefix = values.shape[1]
    for p in range(len(values)):
        c = accumulate(zeros(), values, p * PANEL * prefix, PANEL, 1, scores, 0, TILE, prefix)
        at = (row + p * PANEL) * tokens + low
        c = accumulate(c, own, at, 1, tokens, scores, begin * TILE, TILE, high - low)
        c00, c01, c10, c11, c20, c21, c30, c31 = c
        c = (
            multiply(c00, over0),
            multiply(c01, over1),
            multiply(c10, over0),
            multiply(c11, over1),
            multiply(c20, over0),
            multiply(c21, over1),
            multiply(c30, over0),
            multiply(c31, over1),
        )
        store_tile(c, mixed, (m_row + p * PANEL) * columns + column, columns)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def attend(sizes, keys, values, queries, own, places, scores, mixed):  # pragma: no cover (compiled)
    """One softmax over the prefix and the own tokens of each place; mixed (heads · d, columns).

    keys: (kv_heads, prefix / 4, d, 4) and values: (kv_heads, d / 4, prefix, 4) in panels; own: queries,
    keys and values of all tokens (features, tokens); scores: scratch.
    """
    heads, kv_heads, d, _, _ = sizes
    prefix, begin = values.shape[2], keys.shape[1] * PANEL
    for column in range(0, len(places.first), TILE):
        span = _span(places, column)
        for h in range(heads):
            g = h // (heads // kv_heads)
            row, place = (heads + g) * d, h * d * queries.shape[1] + column
            top = _score_prefix(keys[g], prefix, queries, place, d, scores)
            top0, top1 = _score_own(own, row, span, queries, place, places, column, d, top, scores, begin)
            over0, over1 = _exponentiate(scores, begin + span[1] - span[0], top0, top1)
            row += kv_heads * d
            low, high = span[0], span[1]
            _mix(values[g], own, row, low, high, scores, begin, over0, over1, mixed, h * d, column)


@inlined
def _stride(columns):  # pragma: no cover (compiled)
    """Numbers from one feature to the next: at a high power of two they would share few sets of the cache."""
    return columns + TILE if columns % (8 * TILE) == 0 else columns


@inlined
def _embed(embedding, tokens, out):  # pragma: no cover (compiled)
    """Write the rows of an embedding into columns."""
    for c in range(embedding.shape[1]):
        for t in range(len(tokens)):
            out[c, t] = embedding[tokens[t], c]


@inlined
def _gather(x, places, out):  # pragma: no cover (compiled)
    """Write some columns of x side by side."""
    for c in range(len(x)):
        for j in range(len(places)):
            out[c, j] = x[c, places[j]]


@inlined
def _emit(weights, sizes, x, count, normal, out):  # pragma: no cover (compiled)
    """Write the first columns of x, normalised for the last time, into rows of out."""
    for column in range(0, count, STRIP):
        tiles = -(-min(STRIP, count - column) // TILE)
        _normalise(x, column, sizes.epsilon, sizes.width, normal, tiles)
        for j in range(column, min(column + STRIP, count)):
            for c in range(sizes.width):
                out[j, c] = normal[c, j - column] * weights.gain[c]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def decode(weights, sizes, tokens, prefixes, all_places, read_places, read, kept, out):  # pragma: no cover
    """Final hidden states (prefixes, reads, width) of a block at the columns `read`, after each prefix.

    prefixes: keys and values of every prefix and layer, in the panels of `attend`; all_places and
    read_places: of all tokens, and of those read. Keys and values of the block itself are written into
    kept (layers, 2 · kv_heads · d, columns), if that has layers.
    """
    keys, values = prefixes
    last, zero = len(weights.qkv) - 1, np.int64(0)  # a literal would be compiled for once more
    features, asked = weights.bias.shape[1], sizes.heads * sizes.d
    rows, columns = -(-sizes.width // PANEL) * PANEL, _stride(len(all_places.first))
    read_columns = _stride(len(read_places.first))
    start = np.zeros((rows, columns), np.float32)
    scratch = Scratch(
        np.empty((rows, STRIP), np.float32),
        np.empty((PANEL, STRIP), np.float32),
        np.empty((weights.down.shape[2], STRIP), np.float32),
        np.empty((keys.shape[3] * PANEL + columns + PANEL, TILE), np.float32),
    )
    normal = scratch.normal
    first = np.empty((features + PANEL, columns), np.float32)
    qkv = np.empty((features + PANEL, columns), np.float32)
    all_x = np.empty((rows, columns), np.float32)
    all_mixed = np.empty((asked + PANEL, columns), np.float32)
    read_x = np.zeros((rows, read_columns), np.float32)
    read_queries = np.empty((asked + PANEL, read_columns), np.float32)
    read_mixed = np.empty((asked + PANEL, read_columns), np.float32)
    _embed(weights.embedding, tokens, start)
    for p in range(len(keys)):
        all_x[:] = start
        for layer in range(last + 1):
            own = qkv if layer else first
            x, queries, mixed, places = all_x, own, all_mixed, all_places
            if layer or not p:  # the first layer's are the same after every prefix
                begin = asked // PANEL if layer == last else zero
                project(weights, sizes, layer, x, begin, features // PANEL, places, normal, own)
            if len(kept):
                kept[layer] = own[asked : asked + kept.shape[1], : kept.shape[2]]
            if layer == last:  # what follows is asked for at the places read alone
                x, queries, mixed, places = read_x, read_queries, read_mixed, read_places
                _gather(all_x, read, x)
                project(weights, sizes, layer, x, zero, -(-asked // PANEL), places, normal, queries)
            attend(sizes, keys[p, layer], values[p, layer], queries, own, places, scratch.scores, mixed)
            finish(weights, sizes, layer, mixed, x, len(places.first), scratch)
        _emit(weights, sizes, read_x, len(read), normal, out[p])
