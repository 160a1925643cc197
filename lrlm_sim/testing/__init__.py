"""Contract suites that users run on their own models."""

from lrlm_sim.testing.contract import ContractError, ContractReport
from lrlm_sim.testing.oracles import LAWS, check_oracle

__all__ = ["LAWS", "ContractError", "ContractReport", "check_oracle"]
