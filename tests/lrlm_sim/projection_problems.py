"""Projection problems that several test files share."""

from __future__ import annotations

import numpy as np

from lrlm_sim.projection_polytope import (
    make_polytope,
)
from tests.benchmarks.bench_projections import (
    TARGETS,
    typical_problems,
)


def random_pair(seed, n=6):
    """A polytope, targets, feasible combinations, and any multipliers."""
    rng = np.random.default_rng(seed)
    p = typical_problems(rng, 4, 9, n, TARGETS[seed % 3])
    polytope = make_polytope(p.R, p.box, 0.5 * p.R.mean(axis=0).min())
    targets = np.maximum(p.v, polytope.floor)
    alpha = 0.5 * polytope.center + 0.5 * rng.dirichlet(np.ones(4), size=n)
    return rng, polytope, targets, alpha
