"""Joint linear program of the whole chain, kept alive in HiGHS and grown by one block per token.

    min over |c_1|, …, |c_t| ≤ box  of  max_j |e_j|  ("minimax")  or  Σ_j |e_j|  ("sum"),
    e_s = c_(s+1) G_(s+1) − c_s H_(s,y_s)

"sum" is the default: its optimum is almost always unique, while "minimax" leaves free whatever does not
touch the worst equation.

The residual is minimised: a tolerance |e| ≤ ε given beforehand would let errors grow in proportion to ε.
A token appends the columns of c_(t+1) and the rows of its equation. The new columns meet the new rows
only, so the old basis with the new rows in it stays dual feasible and the dual simplex method continues.

The optimum need not be unique. To make the answer a function of the string alone, every solve begins
from an explicit basis (the last one, extended) with everything else in the solver forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import highspy
import numpy as np
from jaxtyping import Float, Int

from lrlm_sim.linear_program import INFINITY, is_optimal, linear_program
from lrlm_sim.reconstruction.chain import Chain, Method, Trajectory

Objective = Literal["minimax", "sum"]
#: Most programs kept alive in one state; further rows are rebuilt from their prefix and basis.
_ALIVE = 64
#: Pivots, beside one per column, after which a solve counts as stalled.
_PIVOTS = 200
#: The extended basis is dual feasible and a few pivots from the optimum: exact steepest-edge weights and
#: perturbed costs, both meant for long runs, cost more than they save (5 to 15 times at width 16).
_WARM = (
    ("simplex_dual_edge_weight_strategy", 1),  # Devex
    ("dual_simplex_cost_perturbation_multiplier", 0.0),
)
#: HiGHS's own choices.
_USUAL = (
    ("simplex_dual_edge_weight_strategy", -1),
    ("dual_simplex_cost_perturbation_multiplier", 1.0),
)


@dataclass(frozen=True, eq=False)
class Basis:
    """Simplex basis: HiGHS status codes of columns and rows."""

    columns: list[highspy.HighsBasisStatus]
    rows: list[highspy.HighsBasisStatus]


class JointProgram:
    """The linear program of one growing string."""

    def __init__(self, chain: Chain, objective: Objective = "sum") -> None:
        self.chain, self.objective = chain, objective
        self.tokens: tuple[int, ...] = ()
        self._starts = [-1]  # first column of c_s; c_0 is a constant
        none = np.zeros(0)
        bound = np.ones(1) if objective == "minimax" else none  # the column of max |e|, first of all
        self._model = linear_program(
            np.zeros((0, len(bound))), bound, (0 * bound, INFINITY * bound), (none, none)
        )
        self._basis = Basis([highspy.HighsBasisStatus.kLower] * len(bound), [])

    @classmethod
    def rebuilt(
        cls, chain: Chain, objective: Objective, tokens: tuple[int, ...], basis: Basis
    ) -> JointProgram:
        """The program of `tokens` as it stood when `basis` was its last one."""
        program = cls(chain, objective)
        for token in tokens:
            program.append(token)
        program._basis = basis
        return program

    @property
    def basis(self) -> Basis:
        """The last optimal basis."""
        return self._basis

    def append(self, token: int) -> None:
        """Columns of the next block and rows of its equation; `solve` afterwards."""
        cut = len(self.tokens) + 1
        futures, moved = self.chain.futures[cut - 1], self.chain.moves[cut - 1][token]
        r, m = futures.shape
        self._starts.append(self._model.getNumCol())
        self._add_columns(np.zeros(r), -self.chain.box, self.chain.box)
        known = moved[0] if cut == 1 else np.zeros(m)  # c_0 H is a constant
        columns = np.arange(self._starts[cut], self._starts[cut] + r)
        matrix = futures.T
        if cut > 1:
            before = np.arange(self._starts[cut - 1], self._starts[cut - 1] + len(moved))
            columns, matrix = np.concatenate([before, columns]), np.concatenate([-moved.T, matrix], axis=1)
        if self.objective == "minimax":  # e ≤ known + ρ, e ≥ known − ρ
            self._add_rows(columns, matrix, np.zeros((m, 1)) - 1, np.zeros(m, int), -INFINITY, known)
            self._add_rows(columns, matrix, np.zeros((m, 1)) + 1, np.zeros(m, int), known, INFINITY)
        else:  # e = known + e₊ − e₋
            first = self._model.getNumCol()
            self._add_columns(np.ones(2 * m), 0.0, INFINITY)
            slack = np.stack([first + np.arange(m), first + m + np.arange(m)], axis=1)
            self._add_rows(columns, matrix, np.tile([-1.0, 1.0], (m, 1)), slack, known, known)
        self.tokens = (*self.tokens, token)
        self._extend_basis()

    def solve(self) -> None:
        """Minimise the residual from the last basis."""
        model = self._model
        basis = highspy.HighsBasis()
        basis.col_status, basis.row_status, basis.valid = self._basis.columns, self._basis.rows, True
        # Without perturbed costs the simplex method may stall: then HiGHS's own choices, which do not.
        for options, limit in ((_WARM, _PIVOTS + model.getNumCol()), (_USUAL, highspy.kHighsIInf)):
            # Not clearSolver: it keeps the solver's random vectors, and the answer would depend on the past.
            model.passModel(model.getLp())
            model.setBasis(basis)
            for name, value in options:
                model.setOptionValue(name, value)
            model.setOptionValue("simplex_iteration_limit", limit)
            model.run()
            if is_optimal(model):
                break
        found = model.getBasis()
        self._basis = Basis(found.col_status, found.row_status)

    @property
    def objective_value(self) -> float:
        """The minimised residual."""
        return float(self._model.getInfo().objective_function_value)

    def blocks(self) -> list[Float[np.ndarray, "_r"]]:
        """c_0..c_t at the optimum."""
        values = np.array(self._model.getSolution().col_value)
        widths = self.chain.widths
        found = [values[first : first + widths[s]] for s, first in enumerate(self._starts) if s > 0]
        return [np.ones(1), *found]

    def _add_columns(self, costs: np.ndarray, lower: float, upper: float) -> None:
        n, none = len(costs), np.zeros(0, dtype=np.int32)
        bounds = np.full(n, lower), np.full(n, upper)
        self._model.addCols(n, costs, *bounds, 0, np.zeros(n, dtype=np.int32), none, np.zeros(0))

    def _add_rows(
        self,
        columns: Int[np.ndarray, "k"],
        matrix: Float[np.ndarray, "m k"],
        slack_values: Float[np.ndarray, "m i"],
        slack_columns: Int[np.ndarray, "m"] | Int[np.ndarray, "m i"],
        lower: float | np.ndarray,
        upper: float | np.ndarray,
    ) -> None:
        m = len(matrix)
        values = np.concatenate([matrix, slack_values], axis=1)
        where = np.concatenate([np.tile(columns, (m, 1)), slack_columns.reshape(m, -1)], axis=1)
        kept = values != 0
        starts = np.concatenate([[0], np.cumsum(kept.sum(axis=1))[:-1]]).astype(np.int32)
        self._model.addRows(
            m,
            np.broadcast_to(lower, m).astype(np.float64),
            np.broadcast_to(upper, m).astype(np.float64),
            int(kept.sum()),
            starts,
            where[kept].astype(np.int32),
            values[kept],
        )

    def _extend_basis(self) -> None:
        status = highspy.HighsBasisStatus
        columns = self._model.getNumCol() - len(self._basis.columns)
        rows = self._model.getNumRow() - len(self._basis.rows)
        self._basis = Basis(
            [*self._basis.columns, *[status.kLower] * columns], [*self._basis.rows, *[status.kBasic] * rows]
        )


@dataclass(frozen=True, eq=False)
class ProgramState:
    """Prefix, last basis and block of each row; programs are caches that another branch may have used."""

    prefixes: Int[np.ndarray, "batch t"]
    blocks: Float[np.ndarray, "batch r"]
    bases: list[Basis | None]
    programs: list[JointProgram | None]


class JointLinearProgram(Method):
    """Joint minimisation of the largest or the summed absolute residual, |c| ≤ box, re-solved per token."""

    def __init__(self, chain: Chain, objective: Objective = "sum") -> None:
        super().__init__(chain)
        self.objective: Objective = objective

    def start(self, batch: int) -> ProgramState:
        prefixes, blocks = np.zeros((batch, 0), dtype=np.int64), np.ones((batch, 1))
        return ProgramState(prefixes, blocks, [None] * batch, [None] * batch)

    def take(self, state: ProgramState, rows: Int[np.ndarray, "rows"]) -> ProgramState:
        bases, programs = [state.bases[i] for i in rows], [state.programs[i] for i in rows]
        return ProgramState(state.prefixes[rows], state.blocks[rows], bases, programs)

    def coefficients(self, state: ProgramState) -> Float[np.ndarray, "batch r"]:
        return state.blocks

    def step(self, state: ProgramState, tokens: Int[np.ndarray, "batch"]) -> ProgramState:
        prefixes = np.concatenate([state.prefixes, tokens[:, None]], axis=1)
        distinct, first, row_of = np.unique(prefixes, axis=0, return_index=True, return_inverse=True)
        blocks = np.empty((len(distinct), self.chain.widths[prefixes.shape[1]]))
        bases: list[Basis | None] = [None] * len(distinct)
        programs: list[JointProgram | None] = [None] * len(distinct)
        for k, i in enumerate(first):
            program = self._program(state, int(i))
            program.append(int(tokens[i]))
            program.solve()
            blocks[k], bases[k] = program.blocks()[-1], program.basis
            programs[k] = program if k < _ALIVE else None
        rows = row_of.ravel()
        return ProgramState(prefixes, blocks[rows], [bases[k] for k in rows], [programs[k] for k in rows])

    def trajectory(self, strings: Int[np.ndarray, "n t"]) -> Trajectory:
        n, t = strings.shape
        blocks = [np.ones((n, width)) for width in self.chain.widths[: t + 1]]
        if t == 0:
            return Trajectory(tuple(blocks))
        for i, string in enumerate(strings):
            program = JointProgram(self.chain, self.objective)
            for token in string:
                program.append(int(token))
                program.solve()
            for block, values in zip(blocks, program.blocks(), strict=True):
                block[i] = values
        return Trajectory(tuple(blocks), n)

    def _program(self, state: ProgramState, row: int) -> JointProgram:
        """A program that stands at the prefix of this row: the kept one, or one rebuilt."""
        program, basis = state.programs[row], state.bases[row]
        prefix = tuple(int(token) for token in state.prefixes[row])
        if program is not None and program.tokens == prefix:
            return program
        if basis is None:
            return JointProgram(self.chain, self.objective)
        return JointProgram.rebuilt(self.chain, self.objective, prefix, basis)
