"""ISAN extraction: a time-varying linear state-space model read off logit queries.

Constructive half of Theorem 4.3 and the learner of Theorem 4.4 in Golowich, Liu, Shetty
(arXiv:2510.24966); the operators are those of weighted-automaton learning with the logit matrix in
the place of the Hankel matrix.

For each cut s, rows are histories h of length s and columns are (f, z) for f in a set of contexts
C_s and every token z. C_s is *closed* when the columns (∅, ·) and (z∘f, ·), f ∈ C_(s+1), add nothing
to its rank. With V_s the right singular vectors of the rows on C_s, the state is
x(h) = L(h, C_s) V_s, and

    B_s    : x(h) → L(h, ·)                      (read-out)
    A_(s,z): x(h) → L(h, z∘C_(s+1)) V_(s+1)      (transition: the state of h∘z)

are ridge regressions over the pool of histories. Orthonormal V_s keep ‖x(h)‖ ≤ ‖L(h, C_s)‖, so the
state is bounded by the teacher's own logits at every horizon.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lrlm_sim.learners.base import SUCCESS, Learner, Result, Status, require_access
from oracles.access import Access, LogitAccess
from oracles.checks import as_generator, as_integer, as_number
from oracles.errors import BudgetError, HorizonError
from oracles.isan import ISAN

#: Relative size below which a singular value of exact float64 logits is rounding.
_ROUNDING = 1e-10


@dataclass(frozen=True)
class ISANExtraction(Learner):
    """Learner of low-logit-rank models from logit queries (arXiv:2510.24966, Theorem 4.4).

    Arguments:
        rank: largest width allowed; None takes the numerical rank found at each cut.
        noise: bound ξ on the error of each answered logit (nats). Singular values below
            2ξ(√rows + √columns) count as noise and the ridge is 10 ξ² per row.
        horizon: length of the strings to learn; None takes the teacher's.
        pool: histories per cut to begin with; doubled while the rank found exceeds half of them.
        max_pool: where doubling stops.
        exploration: share of the pool drawn uniformly at random rather than from the teacher.
        validation: fresh teacher strings on which every predicted logit is compared.
        tolerance: largest accepted discrepancy (nats); None means max(30 ξ, 1e-6).
    """

    rank: int | None = None
    noise: float = 0.0
    horizon: int | None = None
    pool: int = 32
    max_pool: int = 4096
    exploration: float = 0.5
    validation: int = 64
    tolerance: float | None = None

    accesses = (LogitAccess,)

    def __post_init__(self) -> None:
        if self.rank is not None:
            as_integer("rank", self.rank, 1)
        if self.horizon is not None:
            as_integer("horizon", self.horizon, 1)
        if self.tolerance is not None:
            as_number("tolerance", self.tolerance, 0)
        as_number("noise", self.noise, 0)
        as_integer("pool", self.pool, 2)
        as_integer("max_pool", self.max_pool, self.pool)
        as_number("exploration", self.exploration, 0, 1)
        as_integer("validation", self.validation, 1)

    def fit(self, access: Access, rng: np.random.Generator | int | None = None) -> Result:
        require_access(self, access)
        assert isinstance(access, LogitAccess)
        horizon = self._horizon(access)
        pool = _Pool(access, horizon, self.exploration, as_generator(rng))
        cuts: list[_Cut] = []
        try:
            for position in reversed(range(horizon)):
                cuts.append(self._learn_cut(access, pool, position, cuts[-1] if cuts else None))
            model = _assemble(cuts[::-1], horizon)
            discrepancy = self._validate(access, model)
        except BudgetError as error:
            error.partial = {"cuts_learned": [cut.position for cut in cuts], "ranks": [c.rank for c in cuts]}
            raise
        ranks = [cut.rank for cut in reversed(cuts)]
        found = [cut.found for cut in reversed(cuts)]
        stats = {
            "ranks": ranks,
            "numerical_ranks": found,
            "contexts": [len(cut.contexts) for cut in reversed(cuts)],
            "kept_over_dropped": [cut.gap for cut in reversed(cuts)],
            "validation_discrepancy": discrepancy,
            "tolerance": self._accepted,
            "pool": pool.size,
        }
        return Result(model, self._judge(max(found), discrepancy, self.max_pool), access.ledger, stats)

    @property
    def _accepted(self) -> float:
        return max(30 * self.noise, 1e-6) if self.tolerance is None else self.tolerance

    def _horizon(self, access: LogitAccess) -> int:
        horizon = self.horizon if self.horizon is not None else access.horizon
        if horizon is None:
            raise HorizonError("the teacher has no horizon: give ISANExtraction(horizon=…)")
        if access.horizon is not None and horizon > access.horizon:
            raise HorizonError(f"horizon = {horizon} is past the teacher's {access.horizon}")
        return horizon

    def _judge(self, found: int, discrepancy: float, max_pool: int) -> Status:
        if discrepancy <= self._accepted:
            return SUCCESS
        if self.rank is not None and found > self.rank:
            return Status("rank_too_small", f"the logit matrices have numerical rank {found}: raise rank")
        if 2 * found > max_pool:
            return Status("pool_too_small", f"rank {found} needs more than max_pool = {max_pool} histories")
        return Status(
            "not_accepted",
            f"logits on fresh strings are off by {discrepancy:.2g} > {self._accepted:.2g} nats: "
            "raise pool, or state the oracle's error in noise",
        )

    def _learn_cut(self, access: LogitAccess, pool: _Pool, position: int, after: _Cut | None) -> _Cut:
        """Query one cut, enlarging the pool of histories until its rank is resolved."""
        extended = [()] if after is None else [(), *after.extensions(access.vocab_size)]
        size = self.pool
        while True:
            histories = pool.prefixes(position, size)
            grid = access.grid(histories, extended)
            rank = _numerical_rank(grid.reshape(len(grid), -1), self.noise)
            everything = len(histories) == access.vocab_size**position
            if 2 * rank <= len(histories) or everything or size >= self.max_pool:
                return self._solve_cut(position, extended, grid, rank, after)
            size *= 2

    def _solve_cut(
        self, position: int, extended: list[tuple[int, ...]], grid: np.ndarray, rank: int, after: _Cut | None
    ) -> _Cut:
        rows, vocab_size = len(grid), grid.shape[2]
        chosen = _close_contexts(grid, rank, self.noise)
        left, sigma, right = np.linalg.svd(grid[:, chosen].reshape(rows, -1), full_matrices=False)
        width = max(1, rank if self.rank is None else min(rank, self.rank))
        left, kept = left[:, :width], sigma[:width]
        ridge = 10 * self.noise**2 * rows
        # x = left·diag(kept); the ridge solution of x W = Y is W = diag(kept/(kept²+ridge))·leftᵀ Y.
        gains = np.divide(kept, kept**2 + ridge, out=np.zeros_like(kept), where=kept > 0)
        solve = gains[:, None] * left.T
        transitions = np.zeros((vocab_size, width, 0 if after is None else after.rank))
        if after is not None:
            targets = grid[:, 1:].reshape(rows, vocab_size, -1) @ after.basis
            transitions = np.einsum("ri,izj->zrj", solve, targets, optimize=True)
        return _Cut(
            position=position,
            contexts=[extended[i] for i in chosen],
            basis=right[:width].T,
            states=left * kept,
            readout=solve @ grid[:, 0],
            transitions=transitions,
            found=rank,
            gap=float(sigma[width] / sigma[width - 1])
            if width < len(sigma) and sigma[width - 1] > 0
            else 0.0,
        )

    def _validate(self, access: LogitAccess, model: ISAN) -> float:
        """Largest |predicted − answered| centred logit along fresh teacher strings."""
        strings = access.sample(self.validation, length=model.horizon)
        state, worst = model.start(len(strings)), 0.0
        for position in range(model.horizon):
            predicted = model.log_probs(state)
            predicted = predicted - predicted.mean(axis=1, keepdims=True)
            prefixes, first = np.unique(strings[:, :position], axis=0, return_index=True)
            worst = max(worst, float(np.abs(predicted[first] - access.logits(prefixes)).max()))
            if position + 1 < model.horizon:
                state = model.advance(state, strings[:, position])
        return worst


@dataclass(frozen=True, eq=False)
class _Cut:
    """One learned cut: contexts, orthonormal basis (columns, rank), states of the pool, operators."""

    position: int
    contexts: list[tuple[int, ...]]
    basis: Float[np.ndarray, "columns rank"]
    states: Float[np.ndarray, "rows rank"]
    readout: Float[np.ndarray, "rank vocab"]
    transitions: Float[np.ndarray, "vocab rank next_rank"]
    found: int
    gap: float

    @property
    def rank(self) -> int:
        return self.basis.shape[1]

    def extensions(self, vocab_size: int) -> list[tuple[int, ...]]:
        """z∘f for every token z and context f, token-major."""
        return [(token, *context) for token in range(vocab_size) for context in self.contexts]


class _Pool:
    """Histories of every length: prefixes of teacher strings and of uniformly random ones, distinct."""

    def __init__(self, access: LogitAccess, horizon: int, exploration: float, rng: np.random.Generator):
        self._access, self._horizon, self._exploration, self._rng = access, horizon, exploration, rng
        self._strings = np.empty((0, horizon), dtype=np.int64)

    @property
    def size(self) -> int:
        return len(self._strings)

    def prefixes(self, length: int, count: int) -> Int[np.ndarray, "rows length"]:
        """At most `count` distinct histories of one length (fewer when no more were seen)."""
        if length == 0:
            return np.empty((1, 0), dtype=np.int64)
        missing = count - self.size
        if missing > 0:
            uniform = round(missing * self._exploration)
            shape = (uniform, self._horizon)
            random = self._rng.integers(self._access.vocab_size, size=shape)
            drawn = self._access.sample(missing - uniform, length=self._horizon)
            self._strings = np.concatenate([self._strings, drawn, random])
        return np.unique(self._strings[:count, :length], axis=0)


def _numerical_rank(matrix: np.ndarray, noise: float) -> int:
    """Number of singular values above 2ξ(√rows + √columns) and above rounding."""
    sigma = np.linalg.svd(matrix, compute_uv=False)
    floor = max(2 * noise * (np.sqrt(matrix.shape[0]) + np.sqrt(matrix.shape[1])), _ROUNDING * sigma[0])
    return int((sigma > max(floor, 1e-300)).sum())


def _close_contexts(grid: Float[np.ndarray, "rows contexts vocab"], rank: int, noise: float) -> list[int]:
    """Contexts whose columns reach the rank of all: ∅ first, then the largest residual, greedily."""
    rows, contexts, _ = grid.shape
    chosen = [0]
    while len(chosen) < contexts:
        left = np.linalg.svd(grid[:, chosen].reshape(rows, -1), full_matrices=False)[0]
        have = min(_numerical_rank(grid[:, chosen].reshape(rows, -1), noise), rank)
        if have >= rank:
            break
        span = left[:, :have]
        residual = grid - np.einsum("ik,jk,jcz->icz", span, span, grid, optimize=True)
        energy = np.square(residual).sum(axis=(0, 2))
        energy[chosen] = -1.0
        chosen.append(int(energy.argmax()))
    return chosen


def _assemble(cuts: list[_Cut], horizon: int) -> ISAN:
    """ISAN of width max rank; narrower cuts are padded with zeros."""
    width, vocab_size = max(cut.rank for cut in cuts), cuts[0].readout.shape[1]
    transitions = np.zeros((horizon - 1, vocab_size, width, width))
    readouts = np.zeros((horizon, vocab_size, width))
    for s, cut in enumerate(cuts):
        readouts[s, :, : cut.rank] = cut.readout.T
        if s + 1 < horizon:
            transitions[s, :, : cut.transitions.shape[2], : cut.rank] = cut.transitions.transpose(0, 2, 1)
    initial = np.zeros(width)
    initial[: cuts[0].rank] = cuts[0].states[0]
    return ISAN(initial, transitions, readouts, horizon)
