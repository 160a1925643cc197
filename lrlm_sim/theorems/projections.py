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


def _unnormalised(instance: Instance, counted: float = 1.0) -> Measurement:
    """KL(z ‖ z*) − KL(z ‖ w) − log Σw with plain KL, z* the projection of w, of any total mass."""
    laws, members, targets = _setting(instance)
    rng = np.random.default_rng(instance["seed"] + 2)
    targets *= 10.0 ** rng.uniform(-1, 1, (_POINTS, 1))
    mass = targets.sum(axis=1)
    projected = kl_project(laws, targets, _BOX, _FLOOR).alpha @ laws
    before, after = ((members * np.log(members / other)).sum(axis=1) for other in (targets, projected))
    return Measurement(float((after - before - counted * np.log(mass)).max()), 0.0, 1e-8)


def _stretch(instance: Instance) -> tuple[float, float]:
    """ℓ1 distances to y before and after projecting x: K = segment from 0 to (1, s), x = (1, 1), y = (1, s).

    With s = 1 + 2^−k: before s − 1, after 1 − 1/s + s − 1, so that the ratio is 1 + 1/s.
    """
    steep = 1.0 + 2.0 ** -instance["halvings"]
    laws, x, y = np.array([[1e-12, 1e-12], [1.0, steep]]), np.ones((1, 2)), np.array([1.0, steep])
    projected = (l1_project(laws, x, 1.0, 1e-13).alpha @ laws)[0]
    return float(np.abs(x[0] - y).sum()), float(np.abs(projected - y).sum())


def _l1_tight(instance: Instance, factor: float = 2.0) -> Measurement:
    """How far the ratio stays below `factor`, which must vanish: at most 2^−k for the factor 2."""
    before, after = _stretch(instance)
    return Measurement(factor - after / before, 2.0 ** -instance["halvings"], 1e-6)


def _l1_never_increases(instance: Instance) -> Measurement:
    """Mutant: the claim that ℓ1 projection does not increase ℓ1 distances."""
    before, after = _stretch(instance)
    return Measurement(after, before, 1e-9)


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
        "kl-pythagoras-unnormalised",
        "For a w of any total mass, KL(z ‖ z*) ≤ KL(z ‖ w) + log Σw for every law z ∈ K.",
        "Mausberg 2026",
        _SIZES,
        _unnormalised,
        mutants={"mass not counted": lambda i: _unnormalised(i, 0.0)},
    ),
    Theorem(
        "l1-projection-factor",
        "ℓ1 projection onto K increases the ℓ1 distance to a point of K by a factor of at most 2.",
        "triangle inequality; arXiv:2411.07536",
        _SIZES,
        _l1_factor,
        mutants={
            "no increase at all": lambda i: _l1_never_increases({**i, "halvings": 3}),
        },
    ),
    Theorem(
        "l1-projection-tight",
        "The factor 2 is not to be improved: onto the segment from 0 to (1, 1 + 2^−k), x = (1, 1) "
        "moves away from y = (1, 1 + 2^−k) by a factor of at least 2 − 2^−k.",
        "arXiv:2411.07536; the family with ratio 1.5 there, taken to its limit",
        {"halvings": (0, 10)},
        _l1_tight,
        lambda instance: 2.0 ** -instance["halvings"],
        mutants={"a factor of 2.5": lambda i: _l1_tight(i, 2.5)},
        trials={"small": 22, "medium": 44, "large": 88},
    ),
)
