"""Distances between language models: exact, estimated from samples, certified from queries.

Exact (`lrlm_sim.exact_distance`): `total_variation`, `sequence_probabilities`, `kl_exact`,
`telescoping_bound`. From samples, at any horizon (`lrlm_sim.sampled_distance`):
`estimate_total_variation`, `kl`, `kl_per_token`, `kl_profile`. From queries to a teacher behind an
access object (`lrlm_sim.certificate`): `certify`.

TV(P, Q) = ½ Σ|P − Q| = E_(x~P) max(0, 1 − Q(x)/P(x)) ≤ Σ_t E_(h~P) TV(P(·|h), Q(·|h)), and
TV ≤ sqrt(KL/2) (Pinsker). Logarithms are natural.
"""

from lrlm_sim.certificate import Certificate, certify
from lrlm_sim.exact_distance import (
    PRODUCT_LIMIT,
    TREE_LIMIT,
    kl_exact,
    sequence_probabilities,
    telescoping_bound,
    total_variation,
)
from lrlm_sim.sampled_distance import (
    estimate_total_variation,
    kl,
    kl_per_token,
    kl_profile,
)

__all__ = [
    "PRODUCT_LIMIT",
    "TREE_LIMIT",
    "Certificate",
    "certify",
    "estimate_total_variation",
    "kl",
    "kl_exact",
    "kl_per_token",
    "kl_profile",
    "sequence_probabilities",
    "telescoping_bound",
    "total_variation",
]
