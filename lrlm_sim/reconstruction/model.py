"""Language models that predict by reconstruction: the next-token law is softmax(c_t B_t)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from lrlm_sim.reconstruction.block_elimination import BlockElimination
from lrlm_sim.reconstruction.box_least_squares import SequentialBox
from lrlm_sim.reconstruction.chain import Chain, Method, Reconstruction, as_prefixes, audit
from lrlm_sim.reconstruction.joint_program import JointLinearProgram, Objective
from lrlm_sim.reconstruction.ridge_operators import RidgeOperators
from oracles.base import Oracle
from oracles.checks import as_chunk, as_integer, as_rows, check_length
from oracles.errors import HorizonError, NonFiniteError, ParameterError
from oracles.isan import log_softmax
from oracles.storage import storable

MethodName = Literal["qr", "lp", "box", "ridge"]


def reconstruct(
    chain: Chain, strings: ArrayLike, method: str = "qr", objective: str = "sum"
) -> Reconstruction:
    """Solve the chain for every string, (n, t) with t ≤ T−1, by the method a `ReconstructionModel` would use.

    Methods:
        "qr": joint least squares, box-constrained from the first step at which the box binds.
        "lp": joint linear program; `objective` "sum" of absolute residuals, or "minimax".
        "box": sequential least squares with the box.
        "ridge": linear operators, no box.

    All agree where the chain is consistent and determines every c_s in turn; where c_s is determined by later
    equations only, "box" and "ridge" may be wrong. An infeasible string keeps the coefficients of smallest
    residual and is reported in `feasible` and `infeasible`.
    Raises ShapeError, TokenError, HorizonError (t > T−1), ParameterError.
    """
    prefixes = as_prefixes(chain, strings)
    return audit(chain, prefixes, _method(chain, method, objective).trajectory(prefixes))


def _method(chain: Chain, method: str, objective: str) -> Method:
    if objective not in get_args(Objective):
        raise ParameterError(f"objective must be one of {get_args(Objective)}, got {objective!r}")
    if method == "qr":
        return BlockElimination(chain)
    if method == "lp":
        return JointLinearProgram(chain, "sum" if objective == "sum" else "minimax")
    if method == "box":
        return SequentialBox(chain)
    if method == "ridge":
        return RidgeOperators(chain)
    raise ParameterError(f"method must be one of {get_args(MethodName)}, got {method!r}")


@dataclass(frozen=True, eq=False)
class ReconstructionState:
    """`inner` is what the method carries after `position` tokens (after min(position, T−1) of them)."""

    position: int
    batch: int
    inner: Any


@storable("reconstruction")
@dataclass(frozen=True, eq=False, repr=False)
class ReconstructionModel(Oracle):
    """The law of a reconstruction chain: P(· | y_<t) = softmax(c_t B_t) (arXiv:2512.09892).

    Arguments:
        futures, moves, readouts, box, noise: the fields of `Chain`.
        method: "qr", "lp", "box" or "ridge"; objective: of "lp", see `reconstruct`.

    Where a prefix cannot be reconstructed within tolerance, the coefficients of smallest residual are
    used; `reconstruct` on the same strings says where.
    """

    futures: Sequence[Float[np.ndarray, "_r _m"]]
    moves: Sequence[Float[np.ndarray, "A _r _m2"]]
    readouts: Sequence[Float[np.ndarray, "_r A"]]
    box: float = 2.0
    noise: float = 0.0
    method: str = "qr"
    objective: str = "sum"
    chain: Chain = field(init=False)
    solver: Method = field(init=False)

    def __post_init__(self) -> None:
        chain = Chain(tuple(self.futures), tuple(self.moves), tuple(self.readouts), self.box, self.noise)
        for name in ("futures", "moves", "readouts", "box", "noise", "horizon", "vocab_size"):
            object.__setattr__(self, name, getattr(chain, name))
        object.__setattr__(self, "chain", chain)
        object.__setattr__(self, "solver", _method(chain, self.method, self.objective))

    def __repr__(self) -> str:
        return (
            f"ReconstructionModel(method={self.method!r}, widths={self.chain.widths}, "
            f"vocab_size={self.vocab_size}, horizon={self.horizon})"
        )

    @classmethod
    def from_chain(cls, chain: Chain, method: str = "qr", objective: str = "sum") -> ReconstructionModel:
        """Model of a chain."""
        fields = chain.futures, chain.moves, chain.readouts, chain.box, chain.noise
        return cls(*fields, method=method, objective=objective)

    def start(self, batch: int) -> ReconstructionState:
        batch = as_integer("batch", batch, 0)
        return ReconstructionState(0, batch, self.solver.start(batch))

    def advance(self, state: ReconstructionState, tokens: ArrayLike) -> ReconstructionState:
        chunk = as_chunk(tokens, state.batch, self.vocab_size)
        position, inner = state.position, state.inner
        check_length(position + chunk.shape[1], self.chain.horizon)
        for column in chunk.T:
            position += 1
            if position < self.chain.horizon:  # after the last token nothing is predicted
                inner = self.solver.step(inner, column)
        return ReconstructionState(position, state.batch, inner)

    def log_probs(self, state: ReconstructionState) -> Float[np.ndarray, "batch vocab"]:
        if state.position >= self.chain.horizon:
            raise HorizonError(f"no token follows after horizon = {self.chain.horizon} tokens")
        with np.errstate(over="ignore", invalid="ignore"):
            logits = self.solver.coefficients(state.inner) @ self.readouts[state.position]
        if not np.isfinite(logits).all():
            raise NonFiniteError(
                f"the logits overflowed at position {state.position}: this chain's operators grow without "
                'bound, give its noise or use method="box" or "qr"'
            )
        return log_softmax(logits)

    def take(self, state: ReconstructionState, rows: ArrayLike) -> ReconstructionState:
        chosen = as_rows(rows, state.batch)
        return ReconstructionState(state.position, len(chosen), self.solver.take(state.inner, chosen))
