"""Projections onto combinations of laws: why relative entropy and not ℓ1."""

from __future__ import annotations

import numpy as np

from lrlm_sim.projections import kl_project, l1_project
from lrlm_sim.theorems.base import Instance, Measurement, Theorem

_SIZES = {"rows": (1, 5), "futures": (2, 12)}
_FLOOR, _BOX, _POINTS = 1e-9, 6.0, 40


def _setting(instance: Instance) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Laws R (s, m), points z = Rᵀα of K (n, m) from inside it, and targets w (n, m) near or far."""
    rng = np.random.default_rng(instance["seed"])
    laws = rng.dirichlet(np.full(instance["futures"], 0.7), instance["rows"])
    laws = np.maximum(laws, 1e-6)
    laws /= laws.sum(axis=1, keepdims=True)
    members = rng.dirichlet(np.ones(instance["rows"]), _POINTS) @ laws
    noise = rng.standard_normal(members.shape) * 10.0 ** rng.uniform(-3, 0, (_POINTS, 1))
    targets = np.maximum(rng.permutation(members) * np.exp(noise), 1e-8)
    return laws, members, targets


def _kl(z: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Generalised relative entropy Σ z log(z/w) − z + w of rows."""
    return (z * np.log(z / w) - z + w).sum(axis=1)


def _pythagoras(instance: Instance) -> Measurement:
    laws, members, targets = _setting(instance)
    projected = kl_project(laws, targets, _BOX, _FLOOR).alpha @ laws
    excess = _kl(members, projected) - _kl(members, targets)
    return Measurement(float(excess.max()), 0.0, 1e-8)


def _pythagoras_l2(instance: Instance) -> Measurement:
    """Mutant: least squares in the place of the KL projection."""
    laws, members, targets = _setting(instance)
    alpha = np.linalg.lstsq(laws.T, targets.T, rcond=None)[0].T
    projected = np.maximum(alpha @ laws, _FLOOR)
    return Measurement(float((_kl(members, projected) - _kl(members, targets)).max()), 0.0, 1e-8)


def _pythagoras_clipped(instance: Instance) -> Measurement:
    """Mutant: clipping at the floor and renormalising instead of projecting."""
    _, members, targets = _setting(instance)
    clipped = np.maximum(targets, 0.05)
    clipped /= clipped.sum(axis=1, keepdims=True)
    return Measurement(float((_kl(members, clipped) - _kl(members, targets)).max()), 0.0, 1e-8)


def _approximate(instance: Instance) -> Measurement:
    """ζ-suboptimal points of K: KL(z ‖ z') ≤ KL(z ‖ w) + √(2ζ)/μ for probability vectors z, z', w."""
    laws, members, targets = _setting(instance)
    targets /= targets.sum(axis=1, keepdims=True)
    best = kl_project(laws, targets, _BOX, _FLOOR).alpha @ laws
    rng = np.random.default_rng(instance["seed"] + 1)
    share = 10.0 ** rng.uniform(-6, -1, (_POINTS, 1))
    near = (1 - share) * best + share * rng.permutation(members)
    zeta = np.maximum(_kl(near, targets) - _kl(best, targets), 0.0)
    allowed = _kl(members, targets) + np.sqrt(2 * zeta) / near.min(axis=1)
    return Measurement(float((_kl(members, near) - allowed).max()), 0.0, 1e-8)


def _approximate_for_free(instance: Instance) -> Measurement:
    """Mutant: suboptimality that is taken to cost nothing."""
    laws, members, targets = _setting(instance)
    targets /= targets.sum(axis=1, keepdims=True)
    best = kl_project(laws, targets, _BOX, _FLOOR).alpha @ laws
    near = 0.5 * best + 0.5 * members[::-1]
    return Measurement(float((_kl(members, near) - _kl(members, targets)).max()), 0.0, 1e-8)


def _l1_factor(instance: Instance) -> Measurement:
    laws, members, targets = _setting(instance)
    projected = l1_project(laws, targets, _BOX, _FLOOR).alpha @ laws
    before = np.abs(targets - members).sum(axis=1)
    after = np.abs(projected - members).sum(axis=1)
    return Measurement(float((after - 2 * before).max()), 0.0, 1e-9)


def _triangle(instance: Instance) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """K = segment from (0, …) to (1, 1+k), x = (1, 1), y = (1, 1+k): a family whose ratio tends to 2."""
    steep = 1.0 + instance["steepness"]
    laws = np.array([[1e-9, 1e-9], [1.0, steep]])
    return laws, np.array([1.0, 1.0]), np.array([1.0, steep])


def _l1_increases(instance: Instance) -> Measurement:
    """ℓ1 projection moves x further from y ∈ K: ratio (2 − 1/steepness…) > 1, written as 1 − ratio < 0."""
    laws, x, y = _triangle(instance)
    projected = (l1_project(laws, x[None], 1.0, 1e-12).alpha @ laws)[0]
    ratio = np.abs(projected - y).sum() / np.abs(x - y).sum()
    steep = 1.0 + instance["steepness"]
    exact = (1 - 1 / steep + steep - 1) / (steep - 1)
    return Measurement(abs(float(ratio) - exact), 0.0, 1e-6)


def _l1_contracts(instance: Instance) -> Measurement:
    """Mutant: the claim that ℓ1 projection does not increase ℓ1 distances."""
    laws, x, y = _triangle(instance)
    projected = (l1_project(laws, x[None], 1.0, 1e-12).alpha @ laws)[0]
    return Measurement(float(np.abs(projected - y).sum() - np.abs(x - y).sum()), 0.0, 1e-9)


THEOREMS = (
    Theorem(
        "kl-pythagoras",
        "z* = argmin_(z'∈K) KL(z' ‖ w) satisfies KL(z ‖ z*) ≤ KL(z ‖ w) for every z ∈ K "
        "(40 pairs per instance).",
        "Csiszár 1975; arXiv:2411.07536",
        _SIZES,
        _pythagoras,
        mutants={
            "least squares instead of KL": _pythagoras_l2,
            "clipping instead of projection": _pythagoras_clipped,
        },
    ),
    Theorem(
        "kl-pythagoras-approximate",
        "A ζ-suboptimal point z' of K costs at most √(2ζ)/μ more, μ its smallest coordinate.",
        "Mausberg 2026",
        _SIZES,
        _approximate,
        mutants={"suboptimality for free": _approximate_for_free},
    ),
    Theorem(
        "l1-projection-factor",
        "ℓ1 projection onto K increases the ℓ1 distance to a point of K by a factor of at most 2.",
        "triangle inequality; arXiv:2411.07536",
        _SIZES,
        _l1_factor,
        mutants={
            "no increase at all": lambda i: _l1_contracts({**i, "steepness": 1}),
        },
    ),
    Theorem(
        "l1-projection-increases",
        "ℓ1 projection does increase ℓ1 distances: onto the segment from 0 to (1, 1+k), by the factor "
        "(k + k/(1+k))/k for x = (1, 1), y = (1, 1+k).",
        "arXiv:2411.07536",
        {"steepness": (1, 6)},
        _l1_increases,
        mutants={"no increase at all": _l1_contracts},
        trials={"small": 8, "medium": 16, "large": 32},
    ),
)
