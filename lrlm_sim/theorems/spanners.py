"""Spanners and sketches: existence, computability, sample compression, norm preservation."""

from __future__ import annotations

import numpy as np

from lrlm_sim.sketches import representative_vectors
from lrlm_sim.spanners import barycentric_spanner, sample_compression_size
from lrlm_sim.theorems.base import Instance, Measurement, Theorem
from oracles.hmm import HiddenMarkovModel


def _points(instance: Instance) -> np.ndarray:
    rng = np.random.default_rng(instance["seed"])
    rank = min(instance["dimension"], instance["points"])
    factors = rng.standard_normal((instance["points"], rank)) * 10.0 ** rng.uniform(
        -2, 2, (instance["points"], 1)
    )
    return factors @ rng.standard_normal((rank, instance["dimension"]))


def _largest(points: np.ndarray, chosen: np.ndarray) -> float:
    """Largest coefficient over the chosen rows, by an independent factorisation."""
    basis = points[chosen]
    coefficients = np.linalg.lstsq(basis.T, points.T, rcond=1e-13)[0]
    residual = np.abs(coefficients.T @ basis - points).max() / max(np.abs(points).max(), 1e-300)
    return float(np.abs(coefficients).max()) if residual < 1e-6 else np.inf


def _spanner(instance: Instance) -> Measurement:
    points = _points(instance)
    spanner = barycentric_spanner(points, 2.0, start="random", rng=instance["seed"])
    return Measurement(_largest(points, spanner.indices), 2.0, 1e-7)


def _first_rows(instance: Instance) -> Measurement:
    """Mutant: any independent rows, without exchanges."""
    points = _points(instance)
    rank = np.linalg.matrix_rank(points)
    chosen: list[int] = []
    for row in range(len(points)):
        if np.linalg.matrix_rank(points[[*chosen, row]]) > len(chosen):
            chosen.append(row)
        if len(chosen) == rank:
            break
    return Measurement(_largest(points, np.array(chosen)), 2.0, 1e-7)


def _swaps(instance: Instance) -> Measurement:
    """From the pivoted start, volume is within r^(r/2)·const of the maximum: swaps ≤ r log_C r + r."""
    points = _points(instance)
    spanner = barycentric_spanner(points, 2.0)
    r = len(spanner.indices)
    return Measurement(spanner.swaps, r * np.log2(max(r, 2)) + r, 0)


def _volume_per_swap(instance: Instance) -> Measurement:
    """The volume grows by more than C per swap: swaps ≤ log_C of the ratio of final to first volume."""
    points = _points(instance)
    rng = np.random.default_rng(instance["seed"])
    first = _independent_rows(points, rng)
    spanner = barycentric_spanner(points, 2.0, start=first)
    u, sigma, _ = np.linalg.svd(points, full_matrices=False)
    coordinates = u[:, : len(first)] * sigma[: len(first)]
    gain = _log_volume(coordinates[spanner.indices]) - _log_volume(coordinates[first])
    return Measurement(spanner.swaps, gain / np.log(2.0), 1e-6)


def _volume_per_swap_inflated(instance: Instance) -> Measurement:
    """Mutant: a growth by C^20 per swap is claimed."""
    honest = _volume_per_swap(instance)
    return Measurement(honest.measured, honest.bound / 20, 1e-6)


def _independent_rows(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    chosen: list[int] = []
    rank = np.linalg.matrix_rank(points)
    for row in rng.permutation(len(points)):
        if np.linalg.matrix_rank(points[[*chosen, int(row)]]) > len(chosen):
            chosen.append(int(row))
        if len(chosen) == rank:
            break
    return np.array(chosen)


def _log_volume(rows: np.ndarray) -> float:
    return float(np.linalg.slogdet(rows)[1])


def _compression(instance: Instance, share: float = 1.0) -> Measurement:
    """Miss mass of a spanner of N i.i.d. rows, N from the sample-compression bound."""
    eta, delta, m = 0.2, 0.05, instance["dimension"]
    rng = np.random.default_rng(instance["seed"])
    mixing = rng.standard_normal((m, m))

    def draw(count: int) -> np.ndarray:
        heavy = rng.standard_t(1.5, (count, m))  # heavy tails: rare directions that a sample may miss
        return heavy @ mixing

    size = max(m + 1, int(share * sample_compression_size(m, eta, delta)))
    sample = draw(size)
    spanner = barycentric_spanner(sample, 2.0)
    fresh = draw(4000)
    coefficients = np.linalg.lstsq(sample[spanner.indices].T, fresh.T, rcond=1e-13)[0]
    missed = float((np.abs(coefficients).max(axis=0) > 2.0 + 1e-9).mean())
    return Measurement(missed, eta + 6 * np.sqrt(eta / 4000), 0.0)


def _sketch(instance: Instance, broken: bool = False) -> Measurement:
    """|‖Σ c v_h‖_1 − ‖Σ c P(·|h)‖_1| over random coefficients, against its Hoeffding bound."""
    rng = np.random.default_rng(instance["seed"])
    model = HiddenMarkovModel.random(instance["states"], 2, 9, instance["seed"])
    histories = np.indices((2,) * 3).reshape(3, -1).T
    laws = np.exp(np.stack([model.score(np.indices((2,) * 6).reshape(6, -1).T, h) for h in histories]))
    selected = laws[: instance["selected"]]
    mixture = selected.mean(axis=0)
    m = 4000
    drawn = rng.choice(len(mixture), size=m, p=mixture / mixture.sum())
    proposal = np.full(m, 1 / len(mixture)) if broken else mixture[drawn]
    vectors = representative_vectors(selected[:, drawn], proposal)
    c = rng.uniform(-1, 1, (200, len(selected)))
    gap = np.abs(np.abs(c @ vectors).sum(axis=1) - np.abs(c @ selected).sum(axis=1))
    # Each coordinate of m·Σ c v is at most (Σ|c|)·k ≤ k²; Hoeffding with a union over the 200 combinations.
    k = len(selected)
    allowed = k * k * np.sqrt(np.log(2 * 200 / 1e-9) / (2 * m))
    return Measurement(float(gap.max()), allowed, 0.0)


THEOREMS = (
    Theorem(
        "spanner-exists",
        "Every finite set has a 2-approximate barycentric spanner, and exchanges find it from any start.",
        "Awerbuch and Kleinberg 2008, Theorem 2.5",
        {"dimension": (1, 8), "points": (1, 60)},
        _spanner,
        lambda instance: 2.0,
        mutants={"no exchanges": _first_rows},
    ),
    Theorem(
        "spanner-swaps",
        "After a pivoted start, O(r log_C r) exchanges suffice.",
        "Awerbuch and Kleinberg 2008, Theorem 2.5",
        {"dimension": (1, 12), "points": (1, 200)},
        _swaps,
        mutants={"from a random start": lambda i: Measurement(_volume_per_swap(i).measured, 0, 0)},
    ),
    Theorem(
        "spanner-volume",
        "Each exchange multiplies the volume by more than C.",
        "Awerbuch and Kleinberg 2008, Lemma 2.6",
        {"dimension": (2, 8), "points": (10, 60)},
        _volume_per_swap,
        mutants={"growth by C^20": _volume_per_swap_inflated},
    ),
    Theorem(
        "spanner-compression",
        "A spanner of N = ⌈(2/η)(m⌈log2(2m/η)⌉ + ⌈log2((m+1)/δ)⌉)⌉ i.i.d. rows covers a fresh row with "
        "probability ≥ 1−η, except with probability δ = 0.05 (η = 0.2; tested on 4000 fresh rows).",
        "Mausberg 2026",
        {"dimension": (2, 6)},
        _compression,
        delta=0.05,
        mutants={"a fiftieth of the sample": lambda i: _compression(i, 0.02)},
    ),
    Theorem(
        "sketch-norms",
        "Importance-weighted futures from the mixture preserve ℓ1 norms of combinations up to "
        "k²√(log(2n/δ)/2m) (Hoeffding, n = 200 combinations, m = 4000 futures).",
        "arXiv:2411.07536, representative vectors",
        {"states": (1, 4), "selected": (1, 4)},
        _sketch,
        mutants={"wrong importance weight": lambda i: _sketch(i, broken=True)},
    ),
)
