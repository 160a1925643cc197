"""Chains of spanners that the reconstruction tests share."""

from __future__ import annotations

import numpy as np
import pytest

from lrlm_sim.matrices import extended_logits
from lrlm_sim.reconstruction import (
    Chain,
)
from lrlm_sim.spanners import barycentric_spanner
from oracles import Oracle

METHODS = [("qr", "sum"), ("lp", "sum"), ("lp", "minimax"), ("box", "sum"), ("ridge", "sum")]
every_method = pytest.mark.parametrize(("method", "objective"), METHODS)


def teacher_chain(
    teacher: Oracle,
    contexts: list[tuple[int, ...]] | None = None,
    noise: float = 0.0,
    rank: int | None = None,
    pool: int = 32,
    seed: int = 0,
    box: float = 2.0,
) -> Chain:
    """Chain of a teacher: spanners of the rows of a pool on words = contexts × all tokens.

    Every answer is off by uniform ±noise. With `rank`, rows are projected on that many singular directions
    first, so the spanner has exactly that many rows (more than the teacher's rank = over-estimated).
    """
    rng = np.random.default_rng(seed)
    horizon, vocab = teacher.horizon, teacher.vocab_size
    assert horizon is not None
    if contexts is None:
        contexts = [(z,) for z in range(vocab)] + [tuple(rng.integers(vocab, size=2)) for _ in range(2)]
    words = [[(), *(c for c in contexts if len(c) < horizon - s)] for s in range(horizon)]
    strings = np.concatenate(
        [teacher.sample(pool // 2, rng), rng.integers(vocab, size=(pool - pool // 2, horizon))]
    )

    def answers(histories: np.ndarray, futures: list[tuple[int, ...]]) -> np.ndarray:
        logits = extended_logits(teacher, histories, futures).reshape(len(histories), -1)
        return logits + noise * rng.uniform(-1, 1, logits.shape)

    chosen, futures = [np.zeros((1, 0), dtype=np.int64)], []
    for s in range(1, horizon):
        histories = np.unique(strings[:, :s], axis=0)
        rows = answers(histories, words[s])
        right = np.linalg.svd(rows, full_matrices=False)[2]
        indices = barycentric_spanner(rows if rank is None else rows @ right[:rank].T).indices
        chosen.append(histories[indices])
        futures.append(rows[indices])
    moves = [
        np.stack([answers(chosen[s], [(z, *w) for w in words[s + 1]]) for z in range(vocab)])
        for s in range(horizon - 1)
    ]
    readouts = [answers(histories, [()]) for histories in chosen]
    return Chain(tuple(futures), tuple(moves), tuple(readouts), box, noise)


def consistent_chain(
    seed: int, widths: list[int], words: list[int], deficient: int
) -> tuple[Chain, np.ndarray, list[np.ndarray]]:
    """(chain, string, coefficients): random matrices whose only joint solution for the string is given.

    G of cut `deficient` has dependent rows, so its own equation leaves c free in one direction, which the
    equation of the next cut (more words than rows, all else generic) determines.
    """
    rng = np.random.default_rng(seed)
    t = len(widths)
    r = [1, *widths]
    truth = [np.ones(1), *(rng.uniform(-1.5, 1.5, w) for w in widths)]
    futures = [rng.standard_normal((w, m)) for w, m in zip(widths, words, strict=True)]
    u = rng.standard_normal(widths[deficient - 1])
    futures[deficient - 1] -= np.outer(u, u @ futures[deficient - 1]) / (u @ u)
    moves = [rng.standard_normal((2, r[s], words[s])) for s in range(t)]
    string = rng.integers(2, size=t)
    for s, z in enumerate(string):
        gap = truth[s + 1] @ futures[s] - truth[s] @ moves[s][z]
        moves[s][z] += np.outer(truth[s], gap) / (truth[s] @ truth[s])
    readouts = [rng.standard_normal((w, 2)) for w in r]
    return Chain(tuple(futures), tuple(moves), tuple(readouts)), string, truth
