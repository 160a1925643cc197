"""Validation of a reconstruction on fresh strings, choice of its sampler, and witness words.

A sampler is judged by what it would generate: at every cut of fresh teacher strings its predicted
centred logits are compared with the answered ones, and the chain of every string must be feasible. A
discrepancy names a word that F_s lacks. For a string y of length t and last token z let

    v_s = Σ_i c_(s,i) L(z | h_(s,i) ∘ y_(s+1..t)),    v_0 = L(z | y) answered,    v_t predicted.

The chain makes h_s∘y_(s+1) and h_(s+1) agree on F_(s+1), so where v_s and v_(s+1) differ the word
(y_(s+2..t), z) tells apart what F_(s+1) does not (arXiv:2512.09892, Algorithm 2). Bisection finds such
an s with ⌈log2 t⌉ evaluations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from lrlm_sim.learners.logit_rows import Context, RowMemory
from lrlm_sim.reconstruction import Chain, ReconstructionModel, reconstruct
from oracles.errors import NonFiniteError

#: Methods of `lrlm_sim.reconstruction`, cheapest first.
SAMPLERS = ("qr", "ridge", "box", "lp")


@dataclass(frozen=True, eq=False)
class Validation:
    """How one sampler did on n strings of length T.

    Attributes:
        discrepancy: max_z |predicted − answered| centred logit at every cut, (n, T); inf where the
            model overflowed.
        feasible: strings whose whole chain is feasible, (n,).
        total_variation: Σ_t TV(answered law, predicted law) of each string, (n,): the mean bounds TV(P, Q).
        worst_token: token of the largest discrepancy, (n, T).
    """

    discrepancy: Float[np.ndarray, "n T"]
    feasible: Bool[np.ndarray, "n"]
    total_variation: Float[np.ndarray, "n"]
    worst_token: Int[np.ndarray, "n T"]

    def at(self, rows: Int[np.ndarray, "k"]) -> Validation:
        """The same for some of the strings, repeated or reordered."""
        return Validation(
            self.discrepancy[rows], self.feasible[rows], self.total_variation[rows], self.worst_token[rows]
        )

    def failing(self, tolerance: float) -> Int[np.ndarray, "k"]:
        """Strings that are infeasible or off by more than `tolerance` at some cut."""
        return np.flatnonzero(~self.feasible | ~(self.discrepancy <= tolerance).all(axis=1))

    @property
    def worst(self) -> float:
        """Largest discrepancy anywhere."""
        return float(self.discrepancy.max(initial=0.0))

    @property
    def infeasible(self) -> int:
        """Number of infeasible strings."""
        return int((~self.feasible).sum())


def validate(
    chain: Chain,
    model: ReconstructionModel,
    strings: Int[np.ndarray, "n T"],
    memory: RowMemory,
    method: str,
    tolerance: float,
) -> Validation:
    """Predicted against answered logits at every cut of every string, and feasibility.

    A chain is feasible if its residuals are what the errors of its entries explain, or at most `tolerance`,
    and its coefficients stay in the box.
    """
    distinct, owner = np.unique(strings, axis=0, return_inverse=True)
    done = _validate_distinct(chain, model, distinct, memory, method, tolerance)
    return done.at(owner.ravel())


def _validate_distinct(
    chain: Chain,
    model: ReconstructionModel,
    strings: Int[np.ndarray, "n T"],
    memory: RowMemory,
    method: str,
    tolerance: float,
) -> Validation:
    answered = memory.along(strings)
    n, horizon = strings.shape
    predicted = np.full(answered.shape, np.nan)
    state = model.start(n)
    try:
        for t in range(horizon):
            laws = model.log_probs(state)
            predicted[:, t] = laws - laws.mean(axis=1, keepdims=True)
            if t + 1 < horizon:
                state = model.advance(state, strings[:, t])
    except NonFiniteError:
        pass  # what was not predicted counts as infinitely wrong
    errors = np.abs(predicted - answered)
    errors[~np.isfinite(errors)] = np.inf
    with np.errstate(invalid="ignore"):
        distance = 0.5 * np.abs(_laws(predicted) - _laws(answered)).sum(axis=2)
    distance[~np.isfinite(distance)] = 1.0
    solved = reconstruct(chain, strings[:, :-1], method)
    return Validation(
        discrepancy=errors.max(axis=2),
        feasible=solved.feasible
        | ((solved.residual <= tolerance) & (solved.max_coefficient <= chain.box_limit)),
        total_variation=distance.sum(axis=1),
        worst_token=errors.argmax(axis=2),
    )


def choose_sampler(
    chain: Chain, methods: Sequence[str], strings: Int[np.ndarray, "n T"], memory: RowMemory, tolerance: float
) -> tuple[str, dict[str, float]]:
    """The method of smallest mean Σ_t TV along `strings`, and that score of each method tried.

    Without noise the first method that is exact on them is taken: all exact methods agree.
    """
    scores: dict[str, float] = {}
    for method in methods:
        model = ReconstructionModel.from_chain(chain, method)
        done = validate(chain, model, strings, memory, method, tolerance)
        scores[method] = float(done.total_variation.mean())
        if chain.noise == 0 and not len(done.failing(tolerance)):
            break
    return min(scores, key=lambda method: scores[method]), scores


@dataclass(frozen=True)
class Witness:
    """A word (context, token) missing from F_cut: two combinations that agree there differ on it by `gap`."""

    cut: int
    context: Context
    token: int
    gap: float


def find_witness(
    chain: Chain,
    spanners: Sequence[Int[np.ndarray, "_ _"]],
    string: Int[np.ndarray, "t"],
    token: int,
    memory: RowMemory,
    method: str,
) -> Witness | None:
    """Witness of a wrong prediction of `token` after `string`, None if the chain does not make it."""
    length = len(string)
    if length == 0:
        return None
    coefficients = reconstruct(chain, string[None, :], method).coefficients

    def value(cut: int) -> float:
        context = tuple(string[cut:].tolist())
        return float(coefficients[cut][0] @ memory.grid(spanners[cut], [context])[:, 0, token])

    low, high = _largest_half(value, length)
    gap = abs(value(low) - value(high))
    return Witness(high, tuple(string[high:].tolist()), token, gap) if gap > 0 else None


def _largest_half(value: Callable[[int], float], length: int) -> tuple[int, int]:
    """Neighbouring cuts between which `value` changes, found by keeping the half with the larger change."""
    low, high = 0, length
    while high - low > 1:
        middle = (low + high) // 2
        at = value(middle)
        if abs(value(low) - at) >= abs(at - value(high)):
            high = middle
        else:
            low = middle
    return low, high


def _laws(logits: Float[np.ndarray, "n T vocab"]) -> Float[np.ndarray, "n T vocab"]:
    weights = np.exp(logits - logits.max(axis=2, keepdims=True))
    return weights / weights.sum(axis=2, keepdims=True)
