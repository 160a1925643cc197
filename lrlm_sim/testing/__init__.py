"""Contract suites that users run on their own models and learners."""

from lrlm_sim.testing.contract import ContractError, ContractReport
from lrlm_sim.testing.learners import LEARNER_LAWS, check_learner
from lrlm_sim.testing.oracles import LAWS, check_oracle

__all__ = ["LAWS", "LEARNER_LAWS", "ContractError", "ContractReport", "check_learner", "check_oracle"]
