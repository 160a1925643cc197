"""The conditional-query learner of Liu and Moitra (arXiv:2411.07536), for low probability rank.

At every cut t a few *spanner* histories represent all others, and the model is what one token does to
coefficients over them (`lrlm_sim.spanner_model`). Two ways to the same model:

- **tree**: the whole prefix tree is small enough to be asked. Next-token samples are spent on prefixes
  in proportion to (P̂(h) ŝ(h))^(2/3), ŝ the spread of the next token (`tree_draws`); each cut's matrix
  is reduced to its best rank-r subspace (rows weighted by their precision, columns by their marginal), and
  the operators are regressions over *all* histories. Estimates are shared across cuts and every sample
  counts everywhere.
- **spanner**: the paper's. Pools of histories (prefixes of sampled strings *and* every child h∘o of
  the spanner histories of the cut before: without them coefficients at most 2 are not to be had),
  sketches over futures, a 2-approximate spanner, and coefficients of each child fitted by KL.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from lrlm_sim.learners.base import SUCCESS, Learner, Result, Status, require_access
from lrlm_sim.learners.conditional_constants import conditional_constants
from lrlm_sim.learners.conditional_spanner import Coefficients, SpannerFit, SpannerSettings, fit_spanner
from lrlm_sim.learners.conditional_tree import TreeFit, fit_tree
from lrlm_sim.learners.prefix_laws import unchanging
from lrlm_sim.spanner_model import PostProcess, SpannerModel
from oracles.access import Access, ConditionalProbabilityAccess, ConditionalSampleAccess
from oracles.checks import as_generator, as_integer, as_number
from oracles.errors import BudgetError, HorizonError, ParameterError


@dataclass(frozen=True)
class ConditionalQueryLearner(Learner):
    """Learner of models of probability rank ≤ S from conditional samples or exact probabilities.

    Arguments:
        rank: S; None takes the numerical rank (exact access only).
        epsilon: total variation aimed at; sets `samples` when that is not given.
        samples: next-token samples m per distinct prefix (tree: on average; spanner: for the chosen
            histories and their children). Default ⌈4/ε²⌉: TV ≤ 2/√m was seen on all random HMMs tried.
        pool_samples: samples per prefix while candidates are compared (spanner route); None is m/8, at
            least min(m, 32).
        preset: "practical", or "theory": all sizes from `conditional_constants`, for which TV ≤ ε with
            probability ≥ 1 − δ is proved (docs/derivations.md); TooLargeError where that cannot be run.
        delta: failure probability of the theory preset.
        route: "tree", "spanner", or "auto": tree if it has at most `tree_limit` prefixes.
        coefficients: fit of the children on the spanner route: "kl", "weighted" or "plain" least squares.
        postprocess: after each generated token: "kl", "l1", "truncate" or "none".
        pool: sampled histories per cut on the spanner route.
        futures: sampled futures per sketch where they are too many to enumerate; None is 4 × rank + 16.
        future_length: look no further than this; None looks to the horizon. Truncated futures
            are blind to what only shows later (parity!).
        enumerate_futures: most futures enumerated rather than sampled.
        tree_limit: most prefixes of a tree.
        floor: weight of the uniform law in estimates, and smallest coordinate in projections; None is
            0 for exact answers and 1e-9 for estimates.
    """

    rank: int | None = None
    epsilon: float = 0.1
    samples: int | None = None
    pool_samples: int | None = None
    preset: Literal["practical", "theory"] = "practical"
    delta: float = 0.05
    route: Literal["auto", "tree", "spanner"] = "auto"
    coefficients: Coefficients = "kl"
    postprocess: PostProcess = "kl"
    pool: int = 32
    futures: int | None = None
    future_length: int | None = None
    enumerate_futures: int = 256
    tree_limit: int = 40_000
    floor: float | None = None
    spanner_bound: float = 2.0
    horizon: int | None = None

    accesses = (ConditionalSampleAccess, ConditionalProbabilityAccess)

    def __post_init__(self) -> None:
        for name in ("rank", "samples", "pool_samples", "futures", "future_length", "horizon"):
            if getattr(self, name) is not None:
                as_integer(name, getattr(self, name), 1)
        as_number("epsilon", self.epsilon, 1e-6, 1)
        as_number("delta", self.delta, 1e-12, 1)
        if self.floor is not None:
            as_number("floor", self.floor, 0, 0.5)
        as_number("spanner_bound", self.spanner_bound, 1 + 1e-6)
        for name in ("pool", "enumerate_futures", "tree_limit"):
            as_integer(name, getattr(self, name), 1)
        for name, known in (
            ("route", ("auto", "tree", "spanner")),
            ("preset", ("practical", "theory")),
            ("coefficients", get_args(Coefficients)),
            ("postprocess", get_args(PostProcess)),
        ):
            if getattr(self, name) not in known:
                raise ParameterError(f"{name} must be one of {known}, got {getattr(self, name)!r}")

    def fit(self, access: Access, rng: np.random.Generator | int | None = None) -> Result:
        require_access(self, access)
        assert isinstance(access, (ConditionalSampleAccess, ConditionalProbabilityAccess))
        exact = isinstance(access, ConditionalProbabilityAccess)
        if self.rank is None and not exact:
            raise ParameterError("rank is needed with conditional samples: noise hides the numerical rank")
        horizon = self.horizon if self.horizon is not None else access.horizon
        if horizon is None:
            raise HorizonError("the teacher has no horizon: give ConditionalQueryLearner(horizon=…)")
        samples = self.samples or int(np.ceil(4 / self.epsilon**2))
        if self.preset == "theory":
            self = self._theory(access.vocab_size, horizon)
            samples = self.samples or 0
        elif self.floor is None:
            self = replace(self, floor=0.0 if exact else 1e-9)
        result = None
        try:
            with unchanging(access, horizon):
                result = self._learn(access, horizon, samples, as_generator(rng))
        except BudgetError as error:
            if result is not None:  # learned; only the last look at the teacher was not affordable
                error.partial = {"result": result}
            raise
        return replace(result, ledger=access.ledger)

    def _learn(
        self,
        access: ConditionalSampleAccess | ConditionalProbabilityAccess,
        horizon: int,
        samples: int,
        rng: np.random.Generator,
    ) -> Result:
        """One of the two routes, with sizes and floor settled."""
        assert self.floor is not None
        prefixes = sum(access.vocab_size**t for t in range(min(horizon, 64)))
        if self.route == "tree" or (self.route == "auto" and prefixes <= self.tree_limit):
            fit = fit_tree(access, horizon, self.rank, samples, self.floor, self.spanner_bound)
            return self._result(access, "tree", fit, {"max_coefficient": fit.max_coefficient})
        fit = fit_spanner(access, horizon, self._spanner_settings(samples), rng)
        seen = {"max_coefficient": max(fit.coefficients), "child_residuals": fit.residuals}
        return self._result(access, "spanner", fit, seen)

    def _theory(self, vocab_size: int, horizon: int) -> ConditionalQueryLearner:
        """The same learner with the sizes of `conditional_constants`, unprojected (docs/derivations.md)."""
        if self.rank is None:
            raise ParameterError('preset="theory" needs the rank')
        sizes = conditional_constants(self.rank, vocab_size, horizon, self.epsilon, self.delta)
        sizes.check_feasible()
        return replace(
            self,
            samples=sizes.samples,
            pool_samples=sizes.samples,
            pool=sizes.pool,
            futures=sizes.futures,
            enumerate_futures=sizes.enumerated,
            future_length=None,
            route="spanner",
            postprocess="none",
            spanner_bound=sizes.spanner_bound,
            floor=0.0,
        )

    def _spanner_settings(self, samples: int) -> SpannerSettings:
        return SpannerSettings(
            rank=self.rank,
            samples=samples,
            pool_samples=self.pool_samples or max(min(samples, 32), samples // 8),
            pool=self.pool,
            futures=self.futures or 4 * (self.rank or 8) + 16,
            future_length=self.future_length,
            enumerate_futures=self.enumerate_futures,
            coefficients=self.coefficients,
            bound=self.spanner_bound,
            floor=self.floor or 0.0,
            theory=self.preset == "theory",
        )

    def model(
        self,
        laws: list[np.ndarray],
        operators: list[np.ndarray],
        sketches: list[np.ndarray],
    ) -> SpannerModel:
        """The sampler of what was learned, with this learner's projection (box 3 × rank)."""
        box = 3.0 * max(len(law) for law in laws)
        floor = self.floor or 0.0
        sketches = [
            sketch[:, sketch.max(axis=0) > 0] for sketch in sketches
        ]  # impossible futures bind nothing
        # Coefficients sum to one: raising a column lowers its floor. The spanner itself must be above it.
        sketches = [sketch + np.maximum(2 * floor - sketch.min(axis=0), 0.0) for sketch in sketches]
        return SpannerModel(tuple(laws), tuple(operators), tuple(sketches), self.postprocess, box, floor)

    def judge(self, found: int) -> Status:
        """Success unless the numerical rank that was seen is above the rank given."""
        if self.rank is not None and found > self.rank:
            return Status("rank_too_small", f"the probability matrices look of rank {found}: raise rank")
        return SUCCESS

    def _result(
        self, access: Access, route: str, fit: TreeFit | SpannerFit, seen: dict[str, object]
    ) -> Result:
        model = self.model(fit.laws, fit.operators, fit.sketches)
        stats = {
            "route": route,
            "ranks": model.ranks,
            "numerical_ranks": fit.found,
            "parameters": model.n_parameters,
            **seen,
        }
        return Result(model, self.judge(max(fit.found)), access.ledger, stats)
