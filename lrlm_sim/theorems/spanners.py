"""Spanners and sketches: existence, computability, sample compression, norm preservation."""

from __future__ import annotations

import math

import numpy as np

from lrlm_sim.sketches import (
    exact_representativeness,
    representative_vectors,
    sufficient_sample_size,
    transfer_bound,
    transfer_errors,
)
from lrlm_sim.spanners import (
    barycentric_spanner,
    represent,
    robust_spanner,
    sample_compression_size,
    spanner_from_oracle,
)
from lrlm_sim.theorems.base import Instance, Measurement, Theorem
from oracles.hmm import HiddenMarkovModel

_DELTA = 0.05


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


def _approximation(instance: Instance) -> float:
    """C in (1, 3]."""
    return 1 + instance["twentieths"] / 20


def _spanner(instance: Instance) -> Measurement:
    points, C = _points(instance), _approximation(instance)
    spanner = barycentric_spanner(points, C, start="random", rng=instance["seed"])
    return Measurement(_largest(points, spanner.indices), C, 1e-7)


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
    return Measurement(_largest(points, np.array(chosen)), _approximation(instance), 1e-7)


def _from_oracle(instance: Instance) -> tuple[int, float, int]:
    """Exchanges, largest coefficient over the set and rank r, by linear maximisation over random points."""
    points, C = _points(instance), _approximation(instance)
    spanner = spanner_from_oracle(lambda w: points[int(np.argmax(points @ w))], points.shape[1], C)
    coefficients, _ = represent(spanner.points, points)
    return spanner.swaps, float(np.abs(coefficients).max()), len(spanner.points)


def _oracle_coefficients(instance: Instance) -> Measurement:
    return Measurement(_from_oracle(instance)[1], _approximation(instance), 1e-6)


def _triangular_phase_only(instance: Instance) -> Measurement:
    """Mutant: the first r maximisers, without exchanges (C so large that none is made)."""
    hard = {**instance, "dimension": 8, "points": 60}
    return Measurement(_from_oracle({**hard, "twentieths": 20_000})[1], 1.05, 1e-6)


def _oracle_swaps(instance: Instance, share: float = 1.0) -> Measurement:
    swaps, _, r = _from_oracle(instance)
    return Measurement(swaps, share * r / 2 * math.log(max(1, r), _approximation(instance)), 1e-9)


def _robust(instance: Instance, blind: float = 1.0) -> Measurement:
    """ℓ1 error of a representation, of rows within γ of an s-dimensional subspace."""
    rng = np.random.default_rng(instance["seed"])
    n, m, s = instance["points"], instance["futures"], instance["dimension"]
    gamma = 10.0 ** rng.uniform(-4, -1)
    rows = rng.standard_normal((n, s)) @ np.linalg.qr(rng.standard_normal((m, s)))[0].T
    noise = rng.standard_normal((n, m))
    rows += gamma * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    found = robust_spanner(rows, gamma * blind, rng=instance["seed"])
    return Measurement(found.error, 6 * gamma * s * math.sqrt(n * m), 1e-9)


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
    eta, delta, m = 0.2, _DELTA, instance["dimension"]
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


def _laws_of_histories(instance: Instance, histories: int, length: int) -> np.ndarray:
    """P(f | h) for that many random histories of a hidden Markov model, all futures of `length` tokens."""
    rng = np.random.default_rng(instance["seed"])
    model = HiddenMarkovModel.random(instance["states"], 2, 4 + length, instance["seed"])
    futures = np.indices((2,) * length).reshape(length, -1).T
    return np.exp(np.stack([model.score(futures, h) for h in rng.integers(0, 2, (histories, 4))]))


def _sketched(laws: np.ndarray, m: int, seed: int, uniform: bool = False) -> np.ndarray:
    """Importance-weighted vectors on m futures drawn from the mixture of the laws."""
    mixture = laws.mean(axis=0) / laws.mean(axis=0).sum()
    drawn = np.random.default_rng([seed, m]).choice(len(mixture), size=m, p=mixture)
    proposal = np.full(m, 1 / len(mixture)) if uniform else mixture[drawn]
    return representative_vectors(laws[:, drawn], proposal)


def _representative(instance: Instance, uniform: bool = False) -> Measurement:
    """The largest | ‖Σ c v_h‖_1 − ‖Σ c P(·|h)‖_1 | over the whole box |c| ≤ 1, against γ."""
    laws, gamma = _laws_of_histories(instance, instance["histories"], 3), 0.2
    m = sufficient_sample_size(gamma, _DELTA, len(laws))
    vectors = _sketched(laws, m, instance["seed"], uniform)
    return Measurement(exact_representativeness(vectors, laws).gamma, gamma, 0.0)


def _transfer(instance: Instance, share: float = 1.0) -> Measurement:
    """ℓ1 errors of a sketch's spanner on the laws, and of the laws' spanner on the sketch, over their bounds.

    Few futures are drawn, so that the sketch hides directions of the laws.
    """
    laws = _laws_of_histories(instance, 4, 3)
    sketch = _sketched(laws, instance["futures"], instance["seed"])
    gamma = exact_representativeness(sketch, laws).gamma
    excess = []
    for here, there in ((sketch, laws), (laws, sketch)):
        spanner = barycentric_spanner(here, 2.0)
        residual = float(transfer_errors(spanner.coefficients, spanner.indices, here).max())
        error = float(transfer_errors(spanner.coefficients, spanner.indices, there).max())
        excess.append(error - transfer_bound(share * gamma, 2.0, residual))
    return Measurement(max(excess), 0.0, 1e-9)


THEOREMS = (
    Theorem(
        "spanner-exists",
        "Every finite set has a C-approximate barycentric spanner for every C > 1, and exchanges "
        "find it from any start.",
        "Awerbuch and Kleinberg 2008, Theorem 2.5",
        {"dimension": (1, 8), "points": (1, 60), "twentieths": (1, 40)},
        _spanner,
        _approximation,
        mutants={"no exchanges": _first_rows},
    ),
    Theorem(
        "spanner-computable",
        "From linear maximisation alone, exchanges find a C-approximate spanner of a compact set.",
        "Awerbuch and Kleinberg 2008, Proposition 2.4 and Theorem 2.5",
        {"dimension": (1, 8), "points": (1, 60), "twentieths": (1, 40)},
        _oracle_coefficients,
        _approximation,
        mutants={"first maximisers only": _triangular_phase_only},
    ),
    Theorem(
        "spanner-oracle-swaps",
        "It makes at most (r/2)·log_C r exchanges.",
        "Awerbuch and Kleinberg 2008, Theorem 2.5; volume within r^(r/2) by Hadamard",
        {"dimension": (1, 8), "points": (1, 60), "twentieths": (1, 40)},
        _oracle_swaps,
        mutants={
            "no exchange": lambda i: _oracle_swaps({**i, "dimension": 8, "points": 60, "twentieths": 1}, 0.0)
        },
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
        delta=_DELTA,
        mutants={"a fiftieth of the sample": lambda i: _compression(i, 0.02)},
        trials={"small": 160, "medium": 600, "large": 4000},
    ),
    Theorem(
        "spanner-robust",
        "Rows within γ of an s-dimensional subspace: projected on singular directions above 2γ√n and "
        "spanned, they are represented up to 6γs√(nm) in ℓ1.",
        "Mausberg 2026, after arXiv:2411.07536",
        {"dimension": (1, 4), "points": (5, 60), "futures": (5, 20)},
        _robust,
        mutants={"a thousand times the threshold": lambda i: _robust(i, 1e3)},
    ),
    Theorem(
        "sketch-representative",
        "Importance-weighted futures from the uniform mixture over n histories are γ-representative, "
        "uniformly over the box |c| ≤ 1, at the sample size of Hoeffding's bound and a net, except "
        "with probability δ = 0.05 (γ = 0.2; the maximum over the box is exact).",
        "arXiv:2411.07536, representative vectors; sample size derived in docs/derivations.md",
        {"states": (1, 4), "histories": (1, 3)},
        _representative,
        lambda instance: 0.2,
        delta=_DELTA,
        mutants={"wrong importance weight": lambda i: _representative({**i, "histories": 3}, uniform=True)},
        trials={"small": 160, "medium": 600, "large": 4000},
    ),
    Theorem(
        "spanner-transfer",
        "A C-spanner of γ-representative vectors represents the laws up to max(1, C)·γ in ℓ1, and a "
        "C-spanner of the laws the vectors (C = 2, γ measured exactly).",
        "arXiv:2411.07536, spanners of representative vectors",
        {"states": (1, 4), "futures": (1, 8)},
        _transfer,
        mutants={"transfer for free": lambda i: _transfer({**i, "states": 4, "futures": 2}, 0.0)},
    ),
)
