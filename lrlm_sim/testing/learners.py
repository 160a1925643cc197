"""`check_learner`: metamorphic laws that every learner obeys, whatever it learns.

A law takes a `LearnerProbe` (the learner, a teacher, a seed), fits the learner as often as it needs to,
returns the largest deviation it saw, and raises `Violation` with what broke it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from lrlm_sim.distances import total_variation
from lrlm_sim.learners.base import Learner, Result
from lrlm_sim.testing.contract import ContractReport, Law, NotApplicable, Violation, run_law
from lrlm_sim.testing.oracles import check_oracle
from oracles.access import (
    Access,
    ConditionalProbabilityAccess,
    ConditionalSampleAccess,
    LogitAccess,
    SampleAccess,
    TopLogitAccess,
)
from oracles.base import Oracle, State
from oracles.checks import as_chunk, as_integer, as_number
from oracles.errors import BudgetError, FormatError, ParameterError
from oracles.hmm import HiddenMarkovModel
from oracles.ledger import Budget
from oracles.storage import load, save

_KINDS: tuple[type[Access], ...] = (
    SampleAccess,
    ConditionalSampleAccess,
    ConditionalProbabilityAccess,
    LogitAccess,
    TopLogitAccess,
)


@dataclass(frozen=True, eq=False)
class Relabelled(Oracle):
    """The same model with token z called `names[z]`."""

    oracle: Oracle
    names: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "vocab_size", self.oracle.vocab_size)
        object.__setattr__(self, "horizon", self.oracle.horizon)

    def start(self, batch: int) -> State:
        return self.oracle.start(batch), batch

    def advance(self, state: State, tokens: ArrayLike) -> State:
        inner, batch = state
        chunk = as_chunk(tokens, batch, self.vocab_size)
        return self.oracle.advance(inner, np.argsort(self.names)[chunk]), batch

    def log_probs(self, state: State) -> Float[np.ndarray, "batch vocab"]:
        return self.oracle.log_probs(state[0])[:, np.argsort(self.names)]

    def take(self, state: State, rows: ArrayLike) -> State:
        return self.oracle.take(state[0], rows), len(np.asarray(rows))


@dataclass(frozen=True)
class LearnerProbe:
    """A learner on one teacher, with everything a law needs to fit it."""

    learner: Learner
    teacher: Oracle
    seed: int
    slack: float

    def access(self, teacher: Oracle | None = None, budget: Budget | None = None) -> Access:
        """A fresh access of the first kind that the learner declares."""
        kind = self.learner.accesses[0]
        return kind(teacher or self.teacher, budget=budget, seed=self.seed)  # type: ignore[call-arg]

    @cached_property
    def fitted(self) -> tuple[Result, Access]:
        """One fit, shared by the laws that only look at it."""
        access = self.access()
        return self.learner.fit(access, self.seed), access

    @cached_property
    def strings(self) -> np.ndarray:
        """Teacher strings on which two models are compared."""
        return self.teacher.sample(64, self.seed)


def law_result(probe: LearnerProbe) -> float:
    """The model has the teacher's vocabulary and horizon; the ledger is the access's; the status speaks."""
    result, access = probe.fitted
    shape = (result.model.vocab_size, result.model.horizon)
    wanted = (probe.teacher.vocab_size, probe.teacher.horizon)
    if shape != wanted:
        raise Violation("model's (vocab_size, horizon)", str(wanted), str(shape))
    if result.ledger != access.ledger:
        raise Violation("result.ledger", str(access.ledger), str(result.ledger))
    if result.ledger.calls <= 0:
        raise Violation("queries spent", "at least one", str(result.ledger))
    if not result.status.ok and not result.status.remedy:
        raise Violation(f"status {result.status.code}", "a remedy", "none")
    return 0.0


def law_model_is_an_oracle(probe: LearnerProbe) -> float:
    """What was learned obeys the contract of oracles."""
    check_oracle(probe.fitted[0].model, rng=probe.seed)
    return 0.0


def law_deterministic(probe: LearnerProbe) -> float:
    """The same access seed and rng give the same model and the same ledger."""
    first, again = probe.fitted[0], probe.learner.fit(probe.access(), probe.seed)
    if first.ledger != again.ledger:
        raise Violation("fitted twice", str(first.ledger), str(again.ledger))
    scores = first.model.score(probe.strings), again.model.score(probe.strings)
    if not np.array_equal(*scores):
        raise Violation("scores of teacher strings, fitted twice", str(scores[0][:4]), str(scores[1][:4]))
    return 0.0


def law_budget(probe: LearnerProbe) -> float:
    """Half the calls it needs end in a BudgetError that stays within the budget."""
    calls = probe.fitted[1].ledger.calls // 2
    if calls < 1:
        raise NotApplicable("one call is all it needs")
    access = probe.access(budget=Budget(calls=calls))
    try:
        probe.learner.fit(access, probe.seed)
    except BudgetError as error:
        if error.ledger.calls > calls or access.ledger.calls > calls:
            raise Violation(f"budget of {calls} calls", f"at most {calls}", str(access.ledger)) from error
        if error.partial is None:
            raise Violation(f"budget of {calls} calls", "partial results on the error", "None") from error
        return 0.0
    raise Violation(f"budget of {calls} calls, half of what was spent", "BudgetError", "a result")


def law_declared_access(probe: LearnerProbe) -> float:
    """Every other kind of access, and a bare oracle, is refused by a ParameterError."""
    others = [kind(probe.teacher) for kind in _KINDS if kind not in probe.learner.accesses]  # type: ignore[call-arg]
    for other in [*others, probe.teacher]:
        try:
            probe.learner.fit(other, probe.seed)  # type: ignore[arg-type]
        except ParameterError:
            continue
        raise Violation(f"fit({type(other).__name__})", "ParameterError", "accepted")
    return 0.0


def law_relabelling(probe: LearnerProbe) -> float:
    """Renaming the tokens changes how well it learns by no more than `slack` in total variation."""
    names = np.roll(np.arange(probe.teacher.vocab_size), 1)
    renamed = Relabelled(probe.teacher, names)
    before = total_variation(probe.teacher, probe.fitted[0].model)
    after = total_variation(renamed, probe.learner.fit(probe.access(renamed), probe.seed).model)
    if abs(after - before) > probe.slack:
        raise Violation(
            f"tokens renamed {names.tolist()}", f"TV within {probe.slack} of {before:.3g}", f"{after:.3g}"
        )
    return abs(after - before)


def law_saved(probe: LearnerProbe) -> float:
    """A saved and reloaded model scores every string the same."""
    model = probe.fitted[0].model
    with TemporaryDirectory() as folder:
        try:
            again = load(save(model, Path(folder) / "model.safetensors"))
        except FormatError as error:
            raise Violation("save, load", "a storable model", str(error)) from error
    scores = model.score(probe.strings), again.score(probe.strings)
    if not np.array_equal(*scores):
        raise Violation("scores after save and load", str(scores[0][:4]), str(scores[1][:4]))
    return 0.0


LEARNER_LAWS: tuple[Law[LearnerProbe], ...] = tuple(
    Law(name, (check.__doc__ or "").strip(), check)
    for name, check in {
        "result": law_result,
        "model is an oracle": law_model_is_an_oracle,
        "deterministic": law_deterministic,
        "budget": law_budget,
        "declared access": law_declared_access,
        "relabelling": law_relabelling,
        "saved": law_saved,
    }.items()
)


def check_learner(
    learner: Learner,
    teacher: Oracle | None = None,
    *,
    seed: int = 0,
    slack: float = 0.15,
    laws: Sequence[Law[LearnerProbe]] = LEARNER_LAWS,
) -> ContractReport:
    """Run the laws of learners on one learner and teacher; raises ContractError naming a broken one.

    Arguments:
        learner: any `Learner`.
        teacher: small enough for exact total variation; default a random HMM (2 states, 3 tokens, T = 4).
        seed: of the access, the learner and the checks.
        slack: how much total variation may change when tokens are renamed; 1e-8 for exact learners.

    Each learner is fitted about four times.
    """
    if not isinstance(learner, Learner):
        raise ParameterError(f"check_learner needs a Learner, got {type(learner).__name__}")
    teacher = teacher or HiddenMarkovModel.random(2, 3, 4, rng=0)
    probe = LearnerProbe(learner, teacher, as_integer("seed", seed, 0), as_number("slack", slack, 0, 1))
    return ContractReport(type(learner).__name__, tuple(run_law(law, probe) for law in laws))
