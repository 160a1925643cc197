"""Counter-based randomness: a number is a function of (key, counter), never of call order.

Keys are 64-bit hashes of token strings; the stream of a key is SplitMix64 (Steele, Lea, Flood,
"Fast splittable pseudorandom number generators", OOPSLA 2014), evaluated at any counter directly.
All arithmetic is modulo 2^64 and vectorised.
"""

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import Float, UInt64
from numpy.typing import ArrayLike

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def _mix(z: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """Finaliser of SplitMix64, a bijection of 64-bit integers (works on a fresh array)."""
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def start_keys(batch: int, seed: int, purpose: str = "") -> UInt64[np.ndarray, "batch"]:
    """Keys of `batch` empty strings under (seed, purpose); different purposes give unrelated streams."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return np.full(batch, np.frombuffer(digest, dtype=np.uint64)[0])


def extend_keys(keys: UInt64[np.ndarray, "batch"], tokens: ArrayLike) -> UInt64[np.ndarray, "batch"]:
    """Keys after appending one token, tokens (batch,), or several, (batch, length), to each string."""
    columns = np.atleast_2d(np.asarray(tokens, dtype=np.uint64).T)
    with np.errstate(over="ignore"):
        for column in columns:
            keys = _mix(keys ^ _mix((column + np.uint64(1)) * _GOLDEN))
    return keys


def uniforms(keys: UInt64[np.ndarray, "..."], counters: ArrayLike) -> Float[np.ndarray, "..."]:
    """Uniform numbers in [0, 1) for broadcast (key, counter) pairs: 53 bits of mix(key + (counter+1)·γ)."""
    with np.errstate(over="ignore"):
        bits = _mix(keys + (np.asarray(counters, dtype=np.uint64) + np.uint64(1)) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
