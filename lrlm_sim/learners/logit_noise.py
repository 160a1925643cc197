"""The error of answered logits, read off the trailing singular values of a probe.

Deterministic noise cannot be seen by asking again, but it has no low rank: of a grid of
logits with rank well below its size, the smaller half of the singular values is noise.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from lrlm_sim.learners.logit_cuts import ROUNDING
from lrlm_sim.learners.logit_rows import Context, HistoryPool, RowMemory
from oracles.errors import ParameterError

#: Fewest singular values an estimate is made from.
_FEWEST = 6
#: Rounds of separating signal from noise; it settles in two or three.
_ROUNDS = 10


def estimate_noise(pool: HistoryPool, memory: RowMemory, horizon: int, vocab_size: int, size: int) -> float:
    """ξ of answers log P + uniform on [−ξ, ξ], from `size` histories and `size` futures at the middle cut.

    The grid is taken in orthonormal contrasts of the tokens, where centred independent errors stay
    independent with standard deviation σ = ξ/√3. σ is the median of the singular values below
    those that stand out, over the median of the Marchenko–Pastur law for that shape. A teacher that
    is only approximately of low rank has a tail too: the tail of rank above size/2 counts as noise.

    Raises ParameterError if horizon or vocabulary are too small for a probe of six singular values.
    """
    position = horizon // 2
    histories = pool.prefixes(position, size)[:size]
    contexts = _futures(pool, position, horizon, size)
    contrasts = np.linalg.qr(np.eye(vocab_size)[:, 1:] - 1 / vocab_size)[0]
    matrix = (memory.grid(histories, contexts) @ contrasts).reshape(len(histories), -1)
    if min(matrix.shape) < _FEWEST:
        raise ParameterError(
            f"noise='estimate' needs {_FEWEST} singular values at the middle cut, there are "
            f"{min(matrix.shape)} (horizon {horizon}, {vocab_size} tokens): give noise as a number"
        )
    sigma = np.linalg.svd(matrix, compute_uv=False)
    deviation = noise_deviation(sigma, *matrix.shape)
    xi = float(np.sqrt(3) * deviation)
    return 0.0 if xi <= ROUNDING * sigma[0] else xi


def noise_deviation(sigma: Float[np.ndarray, "k"], rows: int, columns: int) -> float:
    """Standard deviation of independent noise added to a low-rank matrix, from the singular values."""
    signal, deviation = 0, 0.0
    for _ in range(_ROUNDS):
        shape = rows - signal, columns - signal
        deviation = float(np.median(sigma[signal:])) / _median_singular_value(*shape)
        above = int((sigma > 1.15 * deviation * (np.sqrt(rows) + np.sqrt(columns))).sum())
        if above == signal or 2 * above > len(sigma):
            break
        signal = above
    return deviation


def _median_singular_value(rows: int, columns: int) -> float:
    """Median of the singular values of a Gaussian matrix of unit variance (Marchenko–Pastur)."""
    few, many = min(rows, columns), max(rows, columns)
    beta = few / many
    edges = 1 - np.sqrt(beta), 1 + np.sqrt(beta)
    x = np.linspace(*edges, 4001)[1:]
    density = np.sqrt(np.maximum((x**2 - edges[0] ** 2) * (edges[1] ** 2 - x**2), 0)) / x
    cumulative = np.cumsum(density)
    return float(np.sqrt(many) * np.interp(0.5, cumulative / cumulative[-1], x))


def _futures(pool: HistoryPool, position: int, horizon: int, size: int) -> list[Context]:
    """Distinct contexts of mixed lengths that fit after `position` tokens: pieces of the pool's strings."""
    strings = pool.prefixes(horizon, 2 * size)
    room = horizon - 1 - position
    pieces = {tuple(x[position : position + i % (room + 1)].tolist()): None for i, x in enumerate(strings)}
    return list(pieces)[:size]
