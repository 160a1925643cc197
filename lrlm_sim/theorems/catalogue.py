"""The list of theorems: ranks, distances, spanners and sketches, projections, learners, hard instances."""

from __future__ import annotations

from lrlm_sim.theorems import (
    distances,
    hard_instances,
    learners,
    logit_learners,
    projections,
    ranks,
    spanners,
)
from lrlm_sim.theorems.base import Theorem


def catalogue() -> list[Theorem]:
    """Every theorem that can be tried, names unique."""
    rooms = (ranks, distances, spanners, projections, learners, logit_learners, hard_instances)
    return [theorem for room in rooms for theorem in room.THEOREMS]
