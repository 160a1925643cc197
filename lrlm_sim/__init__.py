"""Learners, spanners, projections, logit matrices, distances and theorems about language models.

Submodules load on first use, so ``import lrlm_sim`` costs almost nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oracles.storage import load, save

__version__ = "0.1.0"

_SUBMODULES = (
    "confidence",
    "corpus",
    "distances",
    "extraction",
    "fidelity",
    "learners",
    "lingen",
    "matrices",
    "projections",
    "realisation",
    "reconstruction",
    "sketches",
    "spanners",
    "spectra",
    "testing",
    "theorems",
)

__all__ = [*_SUBMODULES, "load", "save"]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"lrlm_sim.{name}")
    if name in ("load", "save"):
        return getattr(importlib.import_module("oracles.storage"), name)
    raise AttributeError(f"module 'lrlm_sim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
