"""The list of theorems: ranks, distances, spanners and sketches, projections, learners, hard instances."""

from __future__ import annotations

from lrlm_sim.theorems import (
    distances,
    growing_rank,
    hard_instances,
    learners,
    logit_learners,
    projections,
    ranks,
    separations,
    spanners,
)
from lrlm_sim.theorems.base import Theorem


def catalogue() -> list[Theorem]:
    """Every theorem that can be tried, names unique."""
    rooms = (
        ranks,
        separations,
        distances,
        spanners,
        projections,
        learners,
        logit_learners,
        growing_rank,
        hard_instances,
    )
    return [theorem for room in rooms for theorem in room.THEOREMS]
