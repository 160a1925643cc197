"""Learning from conditional probabilities by growing a full-rank submatrix (arXiv:2302.14753).

Generalises L* from automata to linear models: for every cut t keep histories H_t (rows) and test
futures F_t (columns) such that P(F_t | H_t) is invertible. With coefficients c of a history over H_t,

    P(o∘F_(t+1) | h) = c · P(o∘F_(t+1) | H_t),     c' = P(o∘F_(t+1) | h) P(F_(t+1) | H_(t+1))⁻¹ / P(o | h).

A sampled string on which some P(o∘f | h) differs from its prediction is a counterexample: adding the
history h and the future o∘f keeps the submatrix invertible, since its Schur complement is that difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lrlm_sim.learners.base import SUCCESS, Learner, Result, Status, require_access
from lrlm_sim.learners.prefix_laws import unchanging
from lrlm_sim.spanner_model import SpannerModel
from oracles.access import Access, ConditionalProbabilityAccess, ConditionalSampleAccess
from oracles.checks import as_integer, as_number
from oracles.errors import BudgetError, HorizonError

_Strings = list[tuple[int, ...]]


@dataclass(frozen=True)
class ExactConditionalLearner(Learner):
    """Learner from exact P(f | h), or from conditional samples that estimate it.

    Arguments:
        validation: fresh strings without a counterexample after which the model is accepted.
        tolerance: smallest difference of probabilities that counts as one. Default 1e-9 exact,
            4/√samples estimated.
        samples: completions per history when probabilities are estimated.
        max_rank: most histories per cut; reaching it is said in the status.

    With samples the inverse of a nearly singular submatrix multiplies their error: this is the
    dependence on *fidelity* of the paper, which `ConditionalQueryLearner` does not have.
    """

    validation: int = 64
    tolerance: float | None = None
    samples: int = 10_000
    max_rank: int = 256
    horizon: int | None = None

    accesses = (ConditionalProbabilityAccess, ConditionalSampleAccess)

    def __post_init__(self) -> None:
        for name in ("validation", "samples", "max_rank"):
            as_integer(name, getattr(self, name), 1)
        if self.tolerance is not None:
            as_number("tolerance", self.tolerance, 0, 1)

    def fit(self, access: Access, rng: np.random.Generator | int | None = None) -> Result:
        require_access(self, access)
        assert isinstance(access, (ConditionalProbabilityAccess, ConditionalSampleAccess))
        horizon = self.horizon if self.horizon is not None else access.horizon
        if horizon is None:
            raise HorizonError("the teacher has no horizon: give ExactConditionalLearner(horizon=…)")
        exact = isinstance(access, ConditionalProbabilityAccess)
        default = 1e-9 if exact else 4 / np.sqrt(self.samples)
        tolerance = default if self.tolerance is None else self.tolerance
        table = _Table(_Probabilities(access, self.samples), horizon, access.vocab_size)
        counterexamples, full = 0, False
        try:
            with unchanging(access, horizon):
                table.begin(tuple(int(z) for z in access.sample(1, length=horizon)[0]))
                passed = 0
                while passed < self.validation and not full:
                    strings = access.sample(self.validation - passed, length=horizon)
                    for string in strings:
                        found = table.refine(tuple(int(z) for z in string), tolerance, self.max_rank)
                        counterexamples += found
                        passed = 0 if found else passed + 1
                        full = max(len(h) for h in table.histories) >= self.max_rank
        except BudgetError as error:
            error.partial = {"ranks": [len(h) for h in table.histories], "counterexamples": counterexamples}
            raise
        model = table.model()
        stats = {
            "ranks": [len(h) for h in table.histories],
            "counterexamples": counterexamples,
            "condition_numbers": [float(np.linalg.cond(m)) for m in table.submatrices],
        }
        status = (
            Status("rank_limit", f"a cut reached max_rank = {self.max_rank}: raise it") if full else SUCCESS
        )
        return Result(model, status, access.ledger, stats)


class _Probabilities:
    """P(f | h), exact, or the share of `samples` completions of h that begin with f; each asked once."""

    def __init__(self, access: ConditionalProbabilityAccess | ConditionalSampleAccess, samples: int) -> None:
        self._access, self._samples = access, samples
        self._known: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {}
        self._completions: dict[tuple[int, ...], np.ndarray] = {}

    def __call__(self, histories: _Strings, futures: _Strings) -> Float[np.ndarray, "n m"]:
        for history in histories:
            fresh = [f for f in dict.fromkeys(futures) if (history, f) not in self._known]
            if fresh:
                for future, value in zip(fresh, self._ask(history, fresh), strict=True):
                    self._known[history, future] = float(value)
        return np.array([[self._known[h, f] for f in futures] for h in histories])

    def _ask(self, history: tuple[int, ...], futures: _Strings) -> Float[np.ndarray, "m"]:
        if isinstance(self._access, ConditionalProbabilityAccess):
            return np.exp(self._access.log_probs([list(history)], [list(f) for f in futures])[0])
        if history not in self._completions:
            self._completions[history] = self._access.complete([list(history)], self._samples)[0]
        drawn = self._completions[history]
        return np.array([np.mean((drawn[:, : len(f)] == f).all(axis=1)) for f in futures])


class _Table:
    """Histories and futures of every cut, with the submatrix P(F_t | H_t) kept invertible."""

    def __init__(self, probabilities: _Probabilities, horizon: int, vocab_size: int) -> None:
        self._ask, self._horizon = probabilities, horizon
        self._tokens: _Strings = [(z,) for z in range(vocab_size)]
        self.histories: list[_Strings] = [[] for _ in range(horizon)]
        self.futures: list[_Strings] = [[] for _ in range(horizon)]

    @property
    def submatrices(self) -> list[np.ndarray]:
        return [self._ask(h, f) for h, f in zip(self.histories, self.futures, strict=True)]

    def begin(self, string: tuple[int, ...]) -> None:
        """One history and one future per cut: a string that was drawn, so no entry is zero."""
        for t in range(self._horizon):
            self.histories[t] = [string[:t]]
            self.futures[t] = [string[t : t + 1]]

    def refine(self, string: tuple[int, ...], tolerance: float, max_rank: int) -> int:
        """Add rows and columns until every prediction along `string` holds; number of additions."""
        added = 0
        for t in range(self._horizon - 1, -1, -1):
            history = string[:t]
            while len(self.histories[t]) < max_rank:
                tests = self._tests(t)
                truth = self._ask([history], tests)[0]
                predicted = self._coefficients(t, history) @ self._ask(self.histories[t], tests)
                gap = np.abs(truth - predicted)
                worst = int(gap.argmax())
                if gap[worst] <= tolerance or history in self.histories[t]:
                    break
                self.histories[t].append(history)
                self.futures[t].append(tests[worst])
                added += 1
        return added

    def _tests(self, t: int) -> _Strings:
        """Futures whose prediction matters at cut t: every token, and every o∘f of the next cut."""
        if t + 1 == self._horizon:
            return self._tokens
        return [*self._tokens, *((*o, *f) for o in self._tokens for f in self.futures[t + 1])]

    def _coefficients(self, t: int, history: tuple[int, ...]) -> Float[np.ndarray, "r"]:
        row = self._ask([history], self.futures[t])[0]
        return np.linalg.lstsq(self._ask(self.histories[t], self.futures[t]).T, row, rcond=1e-14)[0]

    def model(self) -> SpannerModel:
        """The predictions as a sampler over the histories; coefficients carry the total mass."""
        laws = [self._ask(h, self._tokens) for h in self.histories]
        operators = []
        for t in range(self._horizon - 1):
            below = self._ask(self.histories[t + 1], self.futures[t + 1])
            moved = [
                self._ask(self.histories[t], [(*o, *f) for f in self.futures[t + 1]]) for o in self._tokens
            ]
            operators.append(np.stack([np.linalg.lstsq(below.T, m.T, rcond=1e-14)[0].T for m in moved]))
        return SpannerModel(
            tuple(law / law.sum(axis=1, keepdims=True) for law in laws),
            tuple(operators),
            tuple(np.ones((len(h), 1)) for h in self.histories[1:]),
            postprocess="none",
        )
