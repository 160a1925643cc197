"""Contract suites that users run on their own models and learners.

`lrlm_sim.testing.strategies` draws oracles of every family with hypothesis; `teacher_families` and
`oracle_state_machine` are imported when first used, since hypothesis takes a while to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lrlm_sim.testing.contract import ContractError, ContractReport
from lrlm_sim.testing.learners import LEARNER_LAWS, check_learner
from lrlm_sim.testing.oracles import LAWS, check_oracle

if TYPE_CHECKING:
    from lrlm_sim.testing.state_machine import oracle_state_machine
    from lrlm_sim.testing.strategies import teacher_families

_LAZY = {
    "oracle_state_machine": "lrlm_sim.testing.state_machine",
    "teacher_families": "lrlm_sim.testing.strategies",
}

__all__ = [
    "LAWS",
    "LEARNER_LAWS",
    "ContractError",
    "ContractReport",
    "check_learner",
    "check_oracle",
    "oracle_state_machine",
    "teacher_families",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'lrlm_sim.testing' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
