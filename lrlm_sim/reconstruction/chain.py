"""The reconstruction chain of the logit-query learner (arXiv:2512.09892) and what its methods share.

At cut s stand r_s spanner histories and a set F_s of words. The logits of a history y of length t are
represented as those of Σ_i c_(t,i) h_(t,i), where the rows c_1, …, c_t solve

    c_0 = (1),    c_(s+1) G_(s+1) = c_s H_(s,y_s)  (s = 0..t−1),    ‖c_s‖_∞ ≤ box,

G_s holding the logits of the spanner of cut s on F_s and H_(s,z) those on z∘F_(s+1). A vector c_s that
solves its own equation need not be one from which the later equations can be solved: where the rows of
G_s are dependent, only the later ones tell. Hence the joint methods beside the sequential ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike

from oracles.checks import as_finite, as_number, as_tokens, check_length
from oracles.errors import ParameterError, ShapeError
from oracles.isan import switched_product

#: Singular values below this share of the largest entry of the chain count as rounding.
RANK_TOLERANCE = 1e-11
#: Residuals below this share of the largest entry count as rounding (the LP solver's own slack included).
ROUNDING = 1e-8
#: Excess over the box, relative to it, that counts as rounding.
BOX_SLACK = 1e-9


@dataclass(frozen=True, eq=False)
class Chain:
    """The matrices of a chain of horizon T over A tokens, r_0 = 1; units are nats (centred logits).

    Arguments:
        futures: G_s, one (r_s, m_s) array per cut s = 1..T−1.
        moves: H_s, one (A, r_s, m_(s+1)) array per cut s = 0..T−2.
        readouts: B_s, one (r_s, A) array per cut s = 0..T−1: the rows on single tokens.
        box: bound on |c|, ≥ 1 (2 for a 2-approximate spanner).
        noise: bound ξ on the error of each entry.

    Raises ShapeError, NonFiniteError, ParameterError.
    """

    futures: tuple[Float[np.ndarray, "_r _m"], ...]
    moves: tuple[Float[np.ndarray, "A _r _m2"], ...]
    readouts: tuple[Float[np.ndarray, "_r A"], ...]
    box: float = 2.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        futures = tuple(as_finite(f"futures[{s}]", g, "(r, m)", 2) for s, g in enumerate(self.futures))
        moves = tuple(as_finite(f"moves[{s}]", h, "(A, r, m2)", 3) for s, h in enumerate(self.moves))
        readouts = tuple(as_finite(f"readouts[{s}]", b, "(r, A)", 2) for s, b in enumerate(self.readouts))
        if not readouts or len(futures) != len(readouts) - 1 or len(moves) != len(readouts) - 1:
            raise ParameterError(
                "a chain of horizon T has T readouts, T−1 futures and T−1 moves, got "
                f"{len(readouts)}, {len(futures)} and {len(moves)}"
            )
        vocab_size = readouts[0].shape[1]
        if readouts[0].shape[0] != 1 or vocab_size == 0:
            raise ShapeError("readouts[0]", "(1, A)", "one row (the empty history)", readouts[0].shape)
        for s, readout in enumerate(readouts):
            width = len(readout)
            if width == 0 or readout.shape[1] != vocab_size:
                raise ShapeError(f"readouts[{s}]", "(r_s ≥ 1, A)", f"(r, {vocab_size})", readout.shape)
            if s > 0 and (len(futures[s - 1]) != width or futures[s - 1].shape[1] == 0):
                raise ShapeError(f"futures[{s - 1}]", "(r_s, m_s ≥ 1)", f"({width}, m)", futures[s - 1].shape)
            if s + 1 < len(readouts):
                expected = (vocab_size, width, futures[s].shape[1])
                if moves[s].shape != expected:
                    raise ShapeError(f"moves[{s}]", "(A, r_s, m_(s+1))", expected, moves[s].shape)
        for name, value in {
            "futures": futures,
            "moves": moves,
            "readouts": readouts,
            "box": as_number("box", self.box, 1),
            "noise": as_number("noise", self.noise, 0),
        }.items():
            object.__setattr__(self, name, value)

    @property
    def horizon(self) -> int:
        """Length T of the strings."""
        return len(self.readouts)

    @property
    def vocab_size(self) -> int:
        """Number of tokens A."""
        return self.readouts[0].shape[1]

    @property
    def widths(self) -> list[int]:
        """Number of spanner histories r_s at each cut 0..T−1."""
        return [len(readout) for readout in self.readouts]

    @property
    def box_limit(self) -> float:
        """Largest |c| that counts as inside the box."""
        return self.box * (1 + BOX_SLACK)

    @property
    def rank_floor(self) -> float:
        """Singular values of combinations of the matrices up to here are rounding, nats.

        One floor for all cuts: at a cut where all logits are rounding, no direction may count.
        """
        entries = (np.abs(array).max() for array in (*self.futures, *self.moves))
        return RANK_TOLERANCE * float(max(entries, default=0.0))

    def tolerance(self, cut: int) -> float:
        """Largest residual at `cut` ≥ 1 that errors of the entries explain.

        Solutions of the noiseless equation leave ξ (‖c_s‖_1 + ‖c_(s−1)‖_1) ≤ ξ box (r_s + r_(s−1)) at most.
        """
        widths = self.widths
        largest = max(np.abs(self.futures[cut - 1]).max(), np.abs(self.moves[cut - 1]).max(), 1.0)
        return ROUNDING * float(largest) + self.noise * self.box * (widths[cut] + widths[cut - 1])

    def residual(
        self, cut: int, before: np.ndarray, after: np.ndarray, tokens: np.ndarray
    ) -> Float[np.ndarray, "n m"]:
        """c_cut G_cut − c_(cut−1) H_(cut−1, token), row by row; `cut` ≥ 1."""
        return after @ self.futures[cut - 1] - switched_product(before, self.moves[cut - 1], tokens)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Coefficients c_0..c_t of a batch of strings, and how many strings went to a box solver."""

    coefficients: tuple[Float[np.ndarray, "n _r"], ...]
    box_solves: int = 0


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """The chain solved for n strings of length t.

    Attributes:
        coefficients: c_s of every string, one (n, r_s) array for s = 0..t, minimising the method's residual.
        logits: predicted centred logits of the next token, c_t B_t, (n, A).
        residual: largest |c_s G_s − c_(s−1) H| over all equations, (n,), nats.
        max_coefficient: largest |c|, (n,).
        feasible: residuals within `Chain.tolerance` and coefficients within the box, (n,).
        box_solves: strings for which a box-constrained program was solved (all of them for "lp").
    """

    coefficients: tuple[Float[np.ndarray, "n _r"], ...]
    logits: Float[np.ndarray, "n A"]
    residual: Float[np.ndarray, "n"]
    max_coefficient: Float[np.ndarray, "n"]
    feasible: Bool[np.ndarray, "n"]
    box_solves: int

    @property
    def infeasible(self) -> int:
        """Number of strings predicted by the fallback: the coefficients of smallest residual, box or not."""
        return int((~self.feasible).sum())


class Method(ABC):
    """One way to solve a chain, token by token for a batch; states are values.

    `coefficients(state)` after t steps is the last block of `trajectory` of the same strings.
    """

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.rank_floor = chain.rank_floor

    @abstractmethod
    def start(self, batch: int) -> Any:
        """State of `batch` empty strings."""

    @abstractmethod
    def step(self, state: Any, tokens: Int[np.ndarray, "batch"]) -> Any:
        """State after one token each, at a cut below T−1."""

    @abstractmethod
    def take(self, state: Any, rows: Int[np.ndarray, "rows"]) -> Any:
        """State of the given rows."""

    @abstractmethod
    def coefficients(self, state: Any) -> Float[np.ndarray, "batch r"]:
        """c_t of every row."""

    @abstractmethod
    def trajectory(self, strings: Int[np.ndarray, "n t"]) -> Trajectory:
        """c_0..c_t of every string."""


def pseudo_inverse(
    matrices: Float[np.ndarray, "*batch k r"], floor: float, ridge: float = 0.0
) -> Float[np.ndarray, "*batch r k"]:
    """(MᵀM + ridge·I)⁻¹ Mᵀ of each matrix, singular values up to `floor` taken as zero."""
    left, sigma, right = np.linalg.svd(matrices, full_matrices=False)
    gains = np.divide(sigma, sigma**2 + ridge, out=np.zeros_like(sigma), where=sigma > floor)
    return np.swapaxes(right, -1, -2) @ (gains[..., None] * np.swapaxes(left, -1, -2))


def audit(chain: Chain, strings: Int[np.ndarray, "n t"], trajectory: Trajectory) -> Reconstruction:
    """Residuals, box and tolerance of a trajectory."""
    blocks, n = trajectory.coefficients, len(strings)
    residual, largest, feasible = np.zeros(n), np.ones(n), np.ones(n, dtype=bool)
    for cut in range(1, len(blocks)):
        errors = chain.residual(cut, blocks[cut - 1], blocks[cut], strings[:, cut - 1])
        worst = np.abs(errors).max(axis=1)
        residual = np.maximum(residual, worst)
        largest = np.maximum(largest, np.abs(blocks[cut]).max(axis=1))
        feasible &= worst <= chain.tolerance(cut)
    feasible &= largest <= chain.box_limit
    logits = blocks[-1] @ chain.readouts[len(blocks) - 1]
    return Reconstruction(blocks, logits, residual, largest, feasible, trajectory.box_solves)


def as_prefixes(chain: Chain, strings: ArrayLike) -> Int[np.ndarray, "n t"]:
    """Strings (n, t), t ≤ T−1: after T tokens there is nothing to predict."""
    values = as_tokens("strings", strings, chain.vocab_size, 2)
    check_length(values.shape[1], chain.horizon - 1)
    return values
