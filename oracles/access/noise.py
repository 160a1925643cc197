"""Deterministic bounded noise: the same question is always off by the same amount."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from oracles.access.strings import Packing
from oracles.counter import uniforms


def next_token_noise(
    packing: Packing, histories: Sequence[bytes], seed: int, purpose: str, bound: float
) -> Float[np.ndarray, "n vocab"]:
    """Numbers in [−ξ, ξ], uniform and independent over (history, token) under one seed."""
    streams = packing.hashes(histories, seed, purpose)
    return bound * (2 * uniforms(streams[:, None], np.arange(packing.vocab_size)) - 1)


def pair_noise(
    packing: Packing, histories: Sequence[bytes], futures: Sequence[bytes], seed: int, bound: float
) -> Float[np.ndarray, "n_h n_f"]:
    """Numbers in [−ξ, ξ], uniform and independent over pairs (history, future) under one seed."""
    streams = packing.hashes(histories, seed, "probability noise/history")
    counters = packing.hashes(futures, seed, "probability noise/future")
    return bound * (2 * uniforms(streams[:, None], counters) - 1)
