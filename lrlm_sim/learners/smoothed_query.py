"""Low logit rank from conditional samples alone: smooth the teacher, estimate its logits, learn those.

Mausberg 2026, "Learning low-logit-rank distributions from conditional samples". A logit of a rare token
costs exponentially many samples, e^(2λ)·A·log(A/δ)/ξ² for |logit| ≤ λ (arXiv:2512.09892, Remark 5.8), and
without a bound λ infinitely many; but the *distribution* is easy. With every next-token law mixed with
the uniform one,

    P_τ(z | h) = (1 − τ)·P(z | h) + τ/A,    TV(P, P_τ) ≤ T·τ/2,

no probability is below γ = τ/A, so frequencies of fresh next tokens give every logit. Each history asked is
estimated once and kept: the table is one fixed language model, and `LogitQueryLearner` learns that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final, get_args

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from lrlm_sim.learners.base import Learner, Result, require_access
from lrlm_sim.learners.logit_constants import theory_constants
from lrlm_sim.learners.logit_query import LogitQueryLearner, Preset, Sampler
from oracles.access import Access, ConditionalSampleAccess, LogitAccess
from oracles.access.strings import Packing
from oracles.base import Oracle
from oracles.checks import as_chunk, as_generator, as_integer, as_number, as_rows, as_strings, check_length
from oracles.errors import BudgetError, HorizonError, ParameterError, TooLargeError

#: Most conditional samples the theory preset spends on one logit row.
_THEORY_DRAWS = 10_000_000
#: Strings on which the error of estimated logits is measured.
_PROBED = 4


def smoothed_logit(logit: ArrayLike, tau: float) -> Float[np.ndarray, "..."]:
    """ψ_τ(u) = ½·log(((2−τ)e^(2u) + τ)/(τe^(2u) + 2−τ)): half the log-odds of two tokens, after smoothing.

    |ψ_τ| ≤ ½·log((2−τ)/τ). Raises ParameterError unless 0 < τ ≤ 1.
    """
    tau = _as_tau(tau)
    u = np.asarray(logit, dtype=np.float64)
    grown, other = np.log(2 - tau) + 2 * u, np.log(tau) + 2 * u
    return np.asarray(0.5 * (np.logaddexp(grown, np.log(tau)) - np.logaddexp(other, np.log(2 - tau))))


def smoothing_weight(horizon: int, epsilon: float) -> float:
    """τ = 2^−⌈log2(8T/ε)⌉: smoothing then costs at most ε/16 in total variation."""
    horizon, epsilon = as_integer("horizon", horizon, 1), as_number("epsilon", epsilon, 1e-12, 1)
    return 2.0 ** -math.ceil(math.log2(8 * horizon / epsilon))


def floor_draws(gamma: float, xi: float, zeta: float) -> float:
    """⌈48/(γξ²)·⌈log2(4/ζ)⌉⌉: samples that give a binary logit to ±ξ, probabilities ≥ γ, failure ζ."""
    gamma, xi = as_number("gamma", gamma, 0, 1), as_number("xi", xi, 0)
    zeta = as_number("zeta", zeta, 0, 1)
    if not (gamma > 0 and xi > 0 and zeta > 0):
        raise ParameterError("gamma, xi and zeta must be positive")
    return float(math.ceil(48 / (gamma * xi**2) * math.ceil(math.log2(4 / zeta))))


def direct_cost(logit_bound: float, vocab_size: int, xi: float, delta: float) -> float:
    """e^(2λ)·A·log(A/δ)/ξ²: conditional samples for one logit to ±ξ without smoothing, up to a constant."""
    log_cost = 2 * logit_bound + math.log(vocab_size * math.log(vocab_size / delta)) - 2 * math.log(xi)
    return math.exp(log_cost) if log_cost < 700 else math.inf


@final
class EstimatedOracle(Oracle):
    """The smoothed teacher as estimated: P̂_τ(· | h) from `draws` next-token samples, asked once per history.

    A state is the tokens read, (batch, t). Every estimate is charged to the conditional-sample access.
    """

    def __init__(self, access: ConditionalSampleAccess, draws: int, tau: float, horizon: int) -> None:
        self.vocab_size, self.horizon = access.vocab_size, horizon
        self._access, self._draws, self._tau = access, draws, tau
        self._packing = Packing(access.vocab_size)
        self._table: dict[bytes, np.ndarray] = {}

    @property
    def counts(self) -> Int[np.ndarray, "n vocab"]:
        """Counts of every history asked, in asking order."""
        return np.array(list(self._table.values()), dtype=np.int64).reshape(-1, self.vocab_size)

    def start(self, batch: int) -> Int[np.ndarray, "batch t"]:
        return np.empty((as_integer("batch", batch, 0), 0), dtype=np.int64)

    def advance(self, state: np.ndarray, tokens: ArrayLike) -> Int[np.ndarray, "batch t"]:
        chunk = as_chunk(tokens, len(state), self.vocab_size)
        check_length(state.shape[1] + chunk.shape[1], self.horizon)
        return np.concatenate([state, chunk], axis=1)

    def take(self, state: np.ndarray, rows: ArrayLike) -> Int[np.ndarray, "batch t"]:
        return state[as_rows(rows, len(state))]

    def log_probs(self, state: np.ndarray) -> Float[np.ndarray, "batch vocab"]:
        check_length(state.shape[1] + 1, self.horizon)
        return self._estimates(self._packing.pack("histories", state))

    def next_log_probs(self, histories: Any) -> Float[np.ndarray, "n vocab"]:
        strings = as_strings("histories", histories, self.vocab_size)
        return self._estimates(self._packing.pack("histories", strings))

    def extended_log_probs(self, histories: Any, futures: Any) -> Float[np.ndarray, "n_h n_f vocab"]:
        heads = self._packing.pack("histories", as_strings("histories", histories, self.vocab_size))
        tails = self._packing.pack("futures", as_strings("futures", futures, self.vocab_size))
        rows = self._estimates([head + tail for head in heads for tail in tails])
        return rows.reshape(len(heads), len(tails), self.vocab_size)

    def _estimates(self, keys: list[bytes]) -> Float[np.ndarray, "n vocab"]:
        fresh = list(dict.fromkeys(key for key in keys if key not in self._table))
        if fresh:
            self._estimate(fresh)
        counts = np.array([self._table[key] for key in keys]).reshape(-1, self.vocab_size)
        return np.log((1 - self._tau) * counts / self._draws + self._tau / self.vocab_size)

    def _estimate(self, keys: list[bytes]) -> None:
        try:
            counts = self._access.next_counts(list(self._packing.unpack(keys)), self._draws)
        except BudgetError as error:
            paid = error.answered.sum(axis=1) == self._draws
            self._table.update((keys[i], error.answered[i]) for i in np.flatnonzero(paid).tolist())
            raise
        self._table.update(zip(keys, counts, strict=True))


def logit_error(counts: Int[np.ndarray, "n vocab"], tau: float) -> float:
    """Root mean square error of the centred logits that smoothed counts give (first order, plug-in).

    Var log p̂_τ(z) = (1−τ)² p̂(1−p̂)/m / p̂_τ², with half a count added to p̂ where it is zero; covariances
    between tokens are left out, which overstates it.
    """
    draws = counts.sum(axis=1, keepdims=True)
    vocab_size = counts.shape[1]
    frequency = (counts + 0.5 / vocab_size) / (draws + 0.5)
    smooth = (1 - tau) * frequency + tau / vocab_size
    variance = np.square((1 - tau) / smooth) * frequency * (1 - frequency) / draws
    return float(np.sqrt(variance.mean()))


@dataclass(frozen=True)
class SmoothedQueryLearner(Learner):
    """Learner of low-logit-rank models from conditional next-token samples only (Mausberg 2026).

    Arguments:
        rank: directions to keep at every cut. None takes those that stand out of the sampling noise: rank
            then grows with `draws`.
        epsilon: total variation aimed at; sets `tau`, and `draws` in the theory preset.
        tau: weight of the uniform law; None is ε/(2T) (costs ε/4), in the theory preset
            2^−⌈log2(8T/ε)⌉.
        draws: next-token samples per history asked; None is ⌈4/ε²⌉, in the theory preset the
            size that gives every logit to ξ/2 (`floor_draws`; TooLargeError beyond 10^7).
        noise: error of estimated logits (nats); None measures it, `logit_error` along a few strings.
        tolerance: largest accepted discrepancy (nats); None is 30 × noise, at most 1.
        preset: "practical", or "theory" (needs rank): τ and draws of the source. The inner learner is
            practical in both: its own theory preset fits no instance that draws of that size leave possible.
        horizon, closure, sampler, epochs, pool, max_pool, exploration, validation, delta: as in
            `LogitQueryLearner`, which learns the estimated model.

    The status is that of the inner learner: it speaks about the estimated model. The error of the estimates
    themselves is `stats["estimate_error"]`, per logit.
    """

    rank: int | None = None
    epsilon: float = 0.1
    tau: float | None = None
    draws: int | None = None
    noise: float | None = None
    tolerance: float | None = None
    preset: Preset = "practical"
    horizon: int | None = None
    closure: bool = True
    sampler: Sampler = "auto"
    epochs: int | None = None
    pool: int = 16
    max_pool: int = 64
    exploration: float = 0.5
    validation: int = 16
    delta: float = 0.05

    accesses = (ConditionalSampleAccess,)

    def __post_init__(self) -> None:
        as_number("epsilon", self.epsilon, 1e-6, 1)
        if self.tau is not None:
            _as_tau(self.tau)
        if self.draws is not None:
            as_integer("draws", self.draws, 1)
        if self.noise is not None:
            as_number("noise", self.noise, 0)
        if self.preset not in get_args(Preset):
            raise ParameterError(f"preset must be one of {get_args(Preset)}, got {self.preset!r}")
        if self.preset == "theory" and self.rank is None:
            raise ParameterError("preset='theory' needs rank: its constants depend on it")
        self._inner(self.noise or 0.0, 1)

    def fit(self, access: Access, rng: np.random.Generator | int | None = None) -> Result:
        require_access(self, access)
        assert isinstance(access, ConditionalSampleAccess)
        horizon = self.horizon if self.horizon is not None else access.horizon
        if horizon is None:
            raise HorizonError("the teacher has no horizon: give SmoothedQueryLearner(horizon=…)")
        if access.horizon is not None and horizon > access.horizon:
            raise HorizonError(f"horizon = {horizon} is past the teacher's {access.horizon}")
        tau, draws = self._sizes(horizon, access.vocab_size)
        generator = as_generator(rng)
        seed = int(generator.integers(2**31))
        estimated = EstimatedOracle(access, draws, tau, horizon)
        try:
            noise = self._noise(estimated, tau, seed)
            logits = LogitAccess(estimated, seed=seed)
            inner = self._inner(noise, horizon).fit(logits, generator)
        except BudgetError as error:
            asked = len(estimated.counts)
            error.partial = {"histories_estimated": asked, "tau": tau, "draws": draws, "inner": error.partial}
            raise
        stats = {
            "tau": tau,
            "draws": draws,
            "smoothing_bound": horizon * tau / 2,
            "histories_estimated": len(estimated.counts),
            "estimate_error": logit_error(estimated.counts, tau),
            "logit_queries": logits.ledger.calls,
            **self._direct(estimated.counts, noise),
            "inner": dict(inner.stats),
        }
        return Result(inner.model, inner.status, access.ledger, stats)

    def _sizes(self, horizon: int, vocab_size: int) -> tuple[float, int]:
        """τ and the samples per history."""
        if self.preset == "practical":
            tau = self.epsilon / (2 * horizon) if self.tau is None else self.tau
            return tau, self.draws or math.ceil(4 / self.epsilon**2)
        assert self.rank is not None
        tau = smoothing_weight(horizon, self.epsilon) if self.tau is None else self.tau
        bound = max(1, math.ceil(0.5 * math.log((2 - tau) / tau)))
        constants = theory_constants(
            horizon, self.rank, bound, self.epsilon, self.delta, vocab_size=vocab_size
        )
        zeta = self.delta / (4 * constants.request_bound)
        needed = floor_draws(tau / vocab_size, constants.noise / 2, zeta)
        if self.draws is None and needed > _THEORY_DRAWS:
            raise TooLargeError(
                f"the theory preset needs {needed:.3g} samples per history (limit {_THEORY_DRAWS:.0e}) and "
                f"allows {constants.request_bound:.3g} histories: use preset='practical', or give draws"
            )
        return tau, self.draws or int(needed)

    def _noise(self, estimated: EstimatedOracle, tau: float, seed: int) -> float:
        """Error of the estimates, measured on the first strings that the inner learner will draw anyway."""
        if self.noise is not None:
            return self.noise
        LogitAccess(estimated, seed=seed).sample(_PROBED)
        return logit_error(estimated.counts, tau)

    def _inner(self, noise: float, horizon: int) -> LogitQueryLearner:
        return LogitQueryLearner(
            rank=self.rank,
            noise=noise,
            closure=self.closure,
            sampler=self.sampler,
            horizon=horizon,
            epochs=self.epochs,
            pool=self.pool,
            max_pool=self.max_pool,
            exploration=self.exploration,
            validation=self.validation,
            tolerance=self.tolerance,
            epsilon=self.epsilon,
            delta=self.delta,
        )

    def _direct(self, counts: Int[np.ndarray, "n vocab"], noise: float) -> dict[str, Any]:
        """What estimating the raw teacher's logits to the same accuracy would have cost, per logit."""
        draws = counts.sum(axis=1, keepdims=True)
        raw = np.log((counts + 0.5) / (draws + 0.5 * counts.shape[1]))
        largest = float(np.abs(raw - raw.mean(axis=1, keepdims=True)).max(initial=0.0))
        return {
            "raw_logit_bound": largest,
            "unseen_tokens": int((counts == 0).sum()),
            "direct_cost_per_logit": direct_cost(largest, counts.shape[1], max(noise, 1e-12), self.delta),
        }


def _as_tau(tau: float) -> float:
    tau = as_number("tau", tau, 0, 1)
    if tau == 0:
        raise ParameterError("tau must be positive: without smoothing a logit can be −∞")
    return tau
