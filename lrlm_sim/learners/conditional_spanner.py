"""Conditional queries without the whole tree: pools, sketches, spanners (arXiv:2411.07536).

Cut by cut: candidates are prefixes of sampled strings *and* the children h∘o of the spanner histories of the
cut before (without them coefficients at most 2 are not to be had). Candidates are compared by sketches over
sampled futures, estimated with few draws; a spanner of them is chosen; only the chosen histories and
their parents' children are estimated with many draws, and each child is expressed over the chosen ones.
All estimates live in one `PrefixLaws`, so a prefix met again at another cut costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from lrlm_sim.learners.prefix_laws import PrefixLaws, all_strings, join
from lrlm_sim.projections import kl_project
from lrlm_sim.spanners import barycentric_spanner
from oracles.access import ConditionalProbabilityAccess, ConditionalSampleAccess
from oracles.errors import BudgetError

#: How the children of spanner histories are expressed over the next spanner.
Coefficients = Literal["kl", "weighted", "plain"]
#: Singular values this many times the estimated noise are directions of the teacher.
_CLEAR = 3.0
#: Power of the share of draws that early laws of futures get; see `PrefixLaws.future_estimates`.
_SHARE = 0.5
#: Singular values below this share of the first are rounding.
_ROUNDING = 1e-13


@dataclass(frozen=True)
class SpannerSettings:
    """Sizes of the algorithm; see `ConditionalQueryLearner`."""

    rank: int | None
    samples: int
    pool_samples: int
    pool: int
    futures: int
    future_length: int | None
    enumerate_futures: int
    coefficients: Coefficients
    bound: float
    floor: float
    theory: bool = False


@dataclass(eq=False)
class SpannerFit:
    """Laws, operators and sketches for a `SpannerModel`, and what was seen on the way."""

    laws: list[np.ndarray] = field(default_factory=list)
    operators: list[np.ndarray] = field(default_factory=list)
    sketches: list[np.ndarray] = field(default_factory=list)
    found: list[int] = field(default_factory=lambda: [1])
    coefficients: list[float] = field(default_factory=lambda: [1.0])
    residuals: list[float] = field(default_factory=list)


def fit_spanner(
    access: ConditionalProbabilityAccess | ConditionalSampleAccess,
    horizon: int,
    settings: SpannerSettings,
    rng: np.random.Generator,
) -> SpannerFit:
    """Spanner histories of every cut and what one token does to coefficients over them.

    BudgetError.partial says how many cuts were learned.
    """
    share = 0.0 if settings.theory else _SHARE
    oracle = PrefixLaws(access, settings.samples, settings.floor, share)
    route = _Route(oracle, horizon, settings, rng)
    fit = SpannerFit()
    try:
        strings = access.sample(settings.pool, length=horizon)
        chosen = np.empty((1, 0), dtype=np.int64)
        # the first law is a factor of everything, and one prefix of many: what it misses stays unknown
        first = settings.samples if settings.theory else settings.samples * horizon
        fit.laws.append(route.oracle.laws(chosen, first))
        for cut in range(1, horizon):
            before = access.ledger.generated_tokens
            chosen = route.cut(fit, strings[:, :cut], chosen, access.vocab_size)
            spent = access.ledger.generated_tokens - before
            draws = settings.samples if settings.theory else max(settings.samples, spent // (4 * len(chosen)))
            fit.laws.append(oracle.laws(chosen, draws))
    except BudgetError as error:
        error.partial = {"cuts_learned": len(fit.laws), "ranks": [len(law) for law in fit.laws]}
        raise
    return fit


@dataclass(frozen=True, eq=False)
class _Choice:
    """Spanner rows of a pool, coefficients of all its rows over them, and the rank above the noise."""

    rows: Int[np.ndarray, "r"]
    coefficients: Float[np.ndarray, "n r"]
    found: int


@dataclass(frozen=True, eq=False)
class _Route:
    oracle: PrefixLaws
    horizon: int
    settings: SpannerSettings
    rng: np.random.Generator

    def cut(
        self, fit: SpannerFit, prefixes: Int[np.ndarray, "n t"], last: Int[np.ndarray, "r s"], vocab_size: int
    ) -> Int[np.ndarray, "r2 t"]:
        """Choose the spanner of one cut and express the children of the last one over it."""
        children = join(last, np.arange(vocab_size)[:, None])
        weights = fit.laws[-1].reshape(-1)
        # the law after an impossible child means nothing and must not be spanned
        seen = self.oracle.possible(last).ravel()
        pool = _pool(prefixes, children[seen])
        futures, proposal = self._futures(pool, vocab_size, self.settings.pool_samples)
        values = self.oracle.future_estimates(pool, futures, self.settings.pool_samples) / proposal
        choice = self._choose(values)
        chosen = pool[choice.rows]
        moved = np.full((len(children), len(chosen)), 1 / len(chosen))
        if self.settings.theory:  # what the bound is proved for: the spanner's own coefficients
            sketch = values[0, choice.rows]
            where = (pool[:, None, :] == children[None, seen]).all(axis=2).argmax(axis=0)
            moved[seen], residual = choice.coefficients[where], 0.0
        else:
            if len(chosen) < len(pool):
                futures, proposal = self._futures(chosen, vocab_size, self.settings.samples)
            sketch = self.oracle.future_probabilities(chosen, futures) / proposal
            targets = self.oracle.future_probabilities(children[seen], futures) / proposal
            moved[seen], residual = self._express(sketch, targets)
        operators = (weights[:, None] * moved).reshape(len(last), vocab_size, len(chosen))
        fit.operators.append(np.ascontiguousarray(operators.transpose(1, 0, 2)))
        fit.sketches.append(sketch)
        fit.found.append(choice.found)
        fit.coefficients.append(float(np.abs(choice.coefficients).max(initial=1.0)))
        fit.residuals.append(residual)
        return chosen

    def _futures(
        self, histories: Int[np.ndarray, "n t"], vocab_size: int, draws: int
    ) -> tuple[Int[np.ndarray, "m length"], Float[np.ndarray, "m"]]:
        """Futures with weights 1/(m D(f)): enumerated (weight 1) or drawn from D, the histories' mixture.

        A future drawn k times appears once with k times the weight: ℓ1 norms of sketches are the same.
        Exact laws also show what only rare futures tell apart, so there D is half uniform.
        """
        length = self.horizon - histories.shape[1]
        if self.settings.future_length is not None:
            length = min(length, self.settings.future_length)
        if vocab_size**length <= self.settings.enumerate_futures:
            return all_strings(vocab_size, length), np.ones(vocab_size**length)
        count = self.settings.futures
        uniform = count // 2 if self.oracle.exact else 0
        sources = histories[self.rng.integers(len(histories), size=count - uniform)]
        drawn = self.oracle.draw_futures(sources, length, self.rng, draws)
        drawn = np.concatenate([drawn, self.rng.integers(vocab_size, size=(uniform, length))])
        drawn, times = np.unique(drawn, axis=0, return_counts=True)
        mixture = self.oracle.future_probabilities(histories, drawn, draws).mean(axis=0)
        share = uniform / count
        return drawn, count * ((1 - share) * mixture + share * float(vocab_size) ** -length) / times

    def _choose(self, values: Float[np.ndarray, "k n m"]) -> _Choice:
        """A spanner from estimates and their two halves.

        Rows are first projected on the leading singular directions, as in `spanners.robust_spanner`, but
        the rank given, not a noise level, says how many; the noise seen in the halves says how many are real.
        """
        matrix, limit = values[0], self.settings.rank
        if self.settings.theory and limit is not None and len(matrix) <= limit:
            return _Choice(np.arange(len(matrix)), np.eye(len(matrix)), len(matrix))
        _, sigma, directions = np.linalg.svd(matrix, full_matrices=False)
        noise = 0.0 if self.oracle.exact else float(np.linalg.norm(values[1] - values[2], 2)) / 2
        real = max(1, int((sigma > _ROUNDING * sigma[0]).sum()))
        found = max(1, int((sigma > max(_ROUNDING * sigma[0], _CLEAR * noise)).sum()))
        width = found if limit is None else min(limit, real)
        spanner = barycentric_spanner(matrix @ directions[:width].T, self.settings.bound, tolerance=_ROUNDING)
        return _Choice(spanner.indices, spanner.coefficients, found)

    def _express(
        self, sketch: Float[np.ndarray, "r m"], children: Float[np.ndarray, "n m"]
    ) -> tuple[Float[np.ndarray, "n r"], float]:
        """Coefficients of each child's sketch over the spanner's, rows summing to one; worst ℓ1 residual."""
        kind = self.settings.coefficients
        plain = np.linalg.lstsq(sketch.T, children.T, rcond=1e-13)[0].T
        residual = float(np.abs(plain @ sketch - children).sum(axis=1).max(initial=0.0))
        fitted = plain
        if kind == "weighted":
            fitted = _weighted_least_squares(sketch, children)
        elif kind == "kl" and not self.oracle.exact and len(sketch) > 1:
            tiny = max(1e-3 * float(sketch.mean(axis=0).min()), 1e-300)
            fitted = kl_project(sketch, np.maximum(children, tiny), 3.0 * len(sketch), tiny).alpha
        total = fitted.sum(axis=1, keepdims=True)
        sound = np.abs(total) > 1e-9
        return np.where(sound, fitted / np.where(sound, total, 1), 1 / fitted.shape[1]), residual


def _weighted_least_squares(
    sketch: Float[np.ndarray, "r m"], children: Float[np.ndarray, "n m"]
) -> Float[np.ndarray, "n r"]:
    """argmin_β Σ_j (β·R_j − v_j)² / v_j for each child: the quadratic approximation of the KL fit."""
    scales = 1 / np.sqrt(np.maximum(children, 1e-12 * children.max(initial=1e-300)))
    pairs = zip(children, scales, strict=True)
    return np.stack([np.linalg.lstsq((sketch * s).T, v * s, rcond=1e-13)[0] for v, s in pairs])


def _pool(prefixes: Int[np.ndarray, "n t"], children: Int[np.ndarray, "m t"]) -> Int[np.ndarray, "k t"]:
    """Candidates for a spanner: sampled prefixes, and the last spanner's children so that it covers them."""
    return np.unique(np.concatenate([prefixes, children]), axis=0)
