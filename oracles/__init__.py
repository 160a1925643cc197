"""Oracles: the language models that are asked. A language model is a batched state machine; see `Oracle`.

`TransformerOracle` and `CompletionsOracle` are imported when first used, and left out of ``import *``:
they need optional packages.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from oracles.access import (
    ConditionalProbabilityAccess,
    ConditionalSampleAccess,
    LogitAccess,
    SampleAccess,
    TopLogitAccess,
)
from oracles.base import LinearForm, Oracle
from oracles.branching_program import BranchingProgram
from oracles.cauchy_separation import CauchySeparation
from oracles.hmm import HiddenMarkovModel
from oracles.isan import ISAN
from oracles.ledger import Budget, Ledger
from oracles.ngram import NGram
from oracles.noisy_copy import NoisyCopy
from oracles.noisy_parity import NoisyParity
from oracles.perturbed import Perturbed, perturbed
from oracles.probabilistic_automaton import ProbabilisticAutomaton
from oracles.recurrent import RecurrentOracle
from oracles.restricted import Restricted, restricted
from oracles.sparse_polynomial import SparsePolynomial
from oracles.specs import open_oracle
from oracles.storage import storable
from oracles.tabular import Tabular
from oracles.weighted_automaton import WeightedAutomaton

if TYPE_CHECKING:
    from oracles.completions import CompletionsOracle as CompletionsOracle
    from oracles.transformer import TransformerOracle as TransformerOracle

_LAZY = {"TransformerOracle": "oracles.transformer", "CompletionsOracle": "oracles.completions"}

__all__ = [
    "ISAN",
    "BranchingProgram",
    "Budget",
    "CauchySeparation",
    "ConditionalProbabilityAccess",
    "ConditionalSampleAccess",
    "HiddenMarkovModel",
    "Ledger",
    "LinearForm",
    "LogitAccess",
    "NGram",
    "NoisyCopy",
    "NoisyParity",
    "Oracle",
    "Perturbed",
    "ProbabilisticAutomaton",
    "RecurrentOracle",
    "Restricted",
    "SampleAccess",
    "SparsePolynomial",
    "Tabular",
    "TopLogitAccess",
    "WeightedAutomaton",
    "open_oracle",
    "perturbed",
    "restricted",
    "storable",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'oracles' has no attribute {name!r}")
    try:
        return getattr(import_module(_LAZY[name]), name)
    except ModuleNotFoundError as error:
        if error.name != _LAZY[name]:
            raise
        raise AttributeError(f"oracles.{name} is not in this version") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_LAZY})
