"""Access objects: the only way a learner reaches a teacher. See `oracles.access.base` for the charges."""

from oracles.access.base import Access, StringAccess
from oracles.access.conditional_samples import ConditionalSampleAccess
from oracles.access.logits import LogitAccess
from oracles.access.probabilities import ConditionalProbabilityAccess
from oracles.access.samples import SampleAccess
from oracles.access.top_logits import TopLogitAccess

__all__ = [
    "Access",
    "ConditionalProbabilityAccess",
    "ConditionalSampleAccess",
    "LogitAccess",
    "SampleAccess",
    "StringAccess",
    "TopLogitAccess",
]
