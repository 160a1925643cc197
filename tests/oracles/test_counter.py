"""Counter-based numbers: SplitMix64 reference, order independence, collisions, uniformity."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import gammaincc

from oracles.counter import extend_keys, start_keys, uniforms

MASK = 2**64 - 1


def splitmix(seed: int, count: int) -> list[int]:
    """Reference generator of the paper in exact integers."""
    out = []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & MASK
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        out.append(z ^ (z >> 31))
    return out


def test_known_answers():
    """First outputs for seed 1234567, as published with reference implementations of SplitMix64."""
    assert splitmix(1234567, 2) == [6457827717110365317, 3203168211198807973]


@given(st.integers(0, MASK), st.integers(1, 20))
def test_uniforms_are_the_splitmix_stream_of_the_key(seed, count):
    got = uniforms(np.array([seed], dtype=np.uint64)[:, None], np.arange(count))[0]
    np.testing.assert_array_equal(got, [(z >> 11) * 2.0**-53 for z in splitmix(seed, count)])


@given(st.lists(st.integers(0, 50), max_size=8), st.integers(0, 8), st.integers(0, 99))
def test_keys_do_not_depend_on_chunks_or_batches(string, split, seed):
    whole = extend_keys(start_keys(1, seed), np.array([string], dtype=int).reshape(1, -1))
    parts = start_keys(3, seed)
    tokens = np.tile(np.array(string, dtype=int), (3, 1))
    parts = extend_keys(extend_keys(parts, tokens[:, :split]), tokens[:, split:])
    single = start_keys(2, seed)
    for token in string:
        single = extend_keys(single, [token, token])
    assert set(parts.tolist()) | set(single.tolist()) == set(whole.tolist())


def test_seeds_purposes_strings_and_orders_give_different_keys():
    keys = [start_keys(1, seed, purpose)[0] for seed in range(50) for purpose in ("", "a", "noise")]
    strings = np.indices((4,) * 6).reshape(6, -1).T
    for length in range(7):
        prefixes = np.unique(strings[:, :length], axis=0)
        keys.extend(extend_keys(start_keys(len(prefixes), 0, "x"), prefixes))
    assert len(set(map(int, keys))) == len(keys)


@pytest.mark.parametrize("axis", ["counters", "keys"])
def test_uniformity_along_counters_and_along_histories(axis):
    """χ² on 64 cells and lag-1 correlation; false alarm about 1e-9 each."""
    n = 1 << 16
    if axis == "counters":
        values = uniforms(start_keys(1, 7), np.arange(n))
    else:
        values = uniforms(extend_keys(start_keys(n, 7), np.arange(n)), 0)
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.bincount((values * 64).astype(int), minlength=64)
    statistic = ((counts - n / 64) ** 2 / (n / 64)).sum()
    assert gammaincc(63 / 2, statistic / 2) > 1e-9
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 6.1 / np.sqrt(n)


def test_no_overflow_warnings_and_no_changed_arguments():
    keys = np.full(4, MASK, dtype=np.uint64)
    extend_keys(keys, [1, 2, 3, 4])
    uniforms(keys, MASK)
    assert (keys == MASK).all()
