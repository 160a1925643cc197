"""The reconstruction chain of the logit-query learner and models that solve it (arXiv:2512.09892)."""

from lrlm_sim.reconstruction.chain import Chain, Method, Reconstruction
from lrlm_sim.reconstruction.model import MethodName, ReconstructionModel, ReconstructionState, reconstruct
from lrlm_sim.reconstruction.ridge_operators import ridge_isan, ridge_operators

__all__ = [
    "Chain",
    "Method",
    "MethodName",
    "Reconstruction",
    "ReconstructionModel",
    "ReconstructionState",
    "reconstruct",
    "ridge_isan",
    "ridge_operators",
]
