"""Theorems of the field as checks: `catalogue()` lists them, `verify()` tries them."""

from lrlm_sim.theorems.base import Finding, Instance, Measurement, Theorem
from lrlm_sim.theorems.catalogue import catalogue
from lrlm_sim.theorems.verify import Report, check_theorem, killed, verify

__all__ = [
    "Finding",
    "Instance",
    "Measurement",
    "Report",
    "Theorem",
    "catalogue",
    "check_theorem",
    "killed",
    "verify",
]
