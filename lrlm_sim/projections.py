"""Projections of targets onto the combinations of spanner rows: by relative entropy, and by the ℓ1 distance.

`kl_project` is what the learners use; `l1_project` is the comparison. Both return a `Projection`.
"""

from lrlm_sim.kl_projection import kl_project
from lrlm_sim.l1_projection import l1_project
from lrlm_sim.projection_polytope import InfeasibleError, Projection, ProjectionStatus

__all__ = ["InfeasibleError", "Projection", "ProjectionStatus", "kl_project", "l1_project"]
