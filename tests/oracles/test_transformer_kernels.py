"""The microkernel and the attention of packed decoders against their formulas, at odd sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")
pytest.importorskip("transformers")

import numba

from oracles import transformer_kernels as kernels
from oracles import transformer_products as products
from oracles.transformer_packed import in_panels, padded

PANEL, TILE = products.PANEL, products.TILE


@numba.njit
def product(panels, b, out):
    """Panels times b, tile by tile; out has whole panels of rows."""
    terms, columns = panels.shape[1], b.shape[1]
    for p in range(len(panels)):
        for t in range(0, columns, TILE):
            c = products.load_tile(out, p * PANEL * columns + t, columns)
            c = products.accumulate(c, panels, p * PANEL * terms, PANEL, 1, b, t, columns, terms)
            products.store_tile(c, out, p * PANEL * columns + t, columns)


def test_panels_and_tiles_are_of_one_size_everywhere():
    from oracles import transformer_packed

    assert (transformer_packed.PANEL, transformer_packed.TILE) == (PANEL, TILE)


@given(st.integers(1, 23), st.integers(0, 40), st.integers(1, 4), st.integers(0, 2**32))
def test_the_microkernel_multiplies_and_adds(rows, terms, tiles, seed):
    rng = np.random.default_rng(seed)
    a, b = (np.float32(rng.standard_normal(shape)) for shape in ((rows, terms), (terms, tiles * TILE)))
    panels = in_panels(a)
    before = np.float32(rng.standard_normal((len(panels) * PANEL, tiles * TILE)))
    product(panels, b, after := before.copy())
    expected = before[:rows].astype(float) + a.astype(float) @ b
    scale = 1 + np.abs(a).astype(float) @ np.abs(b)
    assert (np.abs(after[:rows] - expected) <= 1e-6 * scale).all()
    np.testing.assert_array_equal(after[rows:], before[rows:])  # rows that fill up the last panel are zero


def attention(queries, keys, values):
    """One query at a time, in float64; scores in bits."""
    scores = keys @ queries
    weights = 2.0 ** (scores - scores.max())
    return weights / weights.sum() @ values


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(1, 2), st.sampled_from([2, 4, 6, 16]), st.integers(0, 9), st.data())
def test_attention_is_one_softmax_over_prefix_and_own_tokens(groups, kv_heads, d, prefix, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    length, rows = data.draw(st.integers(1, 21)), data.draw(st.integers(1, 4))
    heads, tokens = groups * kv_heads, rows * length
    columns = -(-tokens // TILE) * TILE
    sizes = kernels.Sizes(heads, kv_heads, d, heads * d, np.float32(0))
    own = np.float32(2 * rng.standard_normal(((heads + 2 * kv_heads) * d + PANEL, columns)))
    keys, values = np.float32(2 * rng.standard_normal((2, kv_heads, prefix, d)))
    t = np.minimum(np.arange(columns), tokens - 1)
    table = np.empty((d // 2, columns), np.float32)
    places = kernels.Places(np.float32(t // length * length), np.float32(t), table, table)
    scores = np.full((prefix + columns + 2 * PANEL, TILE), np.nan, np.float32)
    mixed = np.empty((heads * d + PANEL, columns), np.float32)
    panels = in_panels(keys), in_panels(values.swapaxes(-1, -2))
    kernels.attend(sizes, *panels, own, own, places, scores, mixed)
    q, k, v = np.split(own[: (heads + 2 * kv_heads) * d].astype(float), [heads * d, (heads + kv_heads) * d])
    for h in range(heads):
        g = h // groups
        rows_of = slice(g * d, (g + 1) * d)
        for t in range(tokens):
            seen = slice(t // length * length, t + 1)
            expected = attention(
                q[h * d : (h + 1) * d, t],
                np.concatenate([keys[g], k[rows_of, seen].T]),
                np.concatenate([values[g], v[rows_of, seen].T]),
            )
            np.testing.assert_allclose(mixed[h * d : (h + 1) * d, t], expected, atol=2e-5)


@pytest.mark.parametrize("scale", [-300.0, 300.0])
def test_attention_is_safe_far_from_zero(scale):
    """All scores near ±300 bits, where neither the zeros that fill panels nor overflow may show."""
    d, columns = 4, TILE
    sizes = kernels.Sizes(1, 1, d, d, np.float32(0))
    own = np.zeros((3 * d + PANEL, columns), np.float32)
    own[0], own[d] = scale, 1.0
    own[2 * d] = np.arange(columns)
    keys = np.zeros((1, 1, d), np.float32)
    keys[0, 0, 0] = 1.0
    table = np.empty((d // 2, columns), np.float32)
    places = kernels.Places(np.zeros(columns, np.float32), np.float32(np.arange(columns)), table, table)
    scores, mixed = np.empty((40, TILE), np.float32), np.empty((d + PANEL, columns), np.float32)
    values = np.full((1, d, 1), 100.0, np.float32)
    kernels.attend(sizes, in_panels(keys), in_panels(values), own, own, places, scores, mixed)
    t = np.arange(columns)
    np.testing.assert_allclose(mixed[0], (100 + t * (t + 1) / 2) / (t + 2), rtol=1e-5)


def test_padding_leaves_whole_arrays_alone():
    whole = np.ones((4, 3))
    assert padded(whole, 4, axis=0) is whole
    np.testing.assert_array_equal(padded(whole, 2, axis=1)[:, 3], 0)
