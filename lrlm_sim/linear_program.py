"""Linear programs kept alive in HiGHS: build once, change costs or bounds, solve again from a basis."""

from __future__ import annotations

import highspy
import numpy as np
from jaxtyping import Float

INFINITY = highspy.kHighsInf
#: HiGHS accepts no smaller tolerances than this.
TOLERANCE = 1e-10


class _Silent(highspy.Highs):
    """HiGHS 1.16 greets on standard output when made, unless silenced before its callbacks are set."""

    def enableCallbacks(self) -> None:
        self.setOptionValue("output_flag", False)
        super().enableCallbacks()


def linear_program(
    matrix: Float[np.ndarray, "rows columns"],
    costs: Float[np.ndarray, "columns"],
    column_bounds: tuple[Float[np.ndarray, "columns"], Float[np.ndarray, "columns"]],
    row_bounds: tuple[Float[np.ndarray, "rows"], Float[np.ndarray, "rows"]],
) -> highspy.Highs:
    """A silent model of min {costᵀx : lower ≤ x ≤ upper, row_lower ≤ matrix·x ≤ row_upper}, tolerances 1e-10.

    Presolve is off, so that a later solve starts from the basis of the last one (or from one given to
    `setBasis`).
    """
    rows, columns = matrix.shape
    program = highspy.HighsLp()
    program.num_col_, program.num_row_ = columns, rows
    program.col_cost_ = costs
    program.col_lower_, program.col_upper_ = column_bounds
    program.row_lower_, program.row_upper_ = row_bounds
    entries = matrix.T != 0
    program.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    program.a_matrix_.start_ = np.concatenate([[0], np.cumsum(entries.sum(axis=1))]).astype(np.int32)
    program.a_matrix_.index_ = np.nonzero(entries)[1].astype(np.int32)
    program.a_matrix_.value_ = matrix.T[entries]
    model = _Silent()
    for option, value in (
        ("output_flag", False),
        ("threads", 1),
        ("presolve", "off"),
        ("solver", "simplex"),
        ("small_matrix_value", 1e-12),
        ("primal_feasibility_tolerance", TOLERANCE),
        ("dual_feasibility_tolerance", TOLERANCE),
    ):
        model.setOptionValue(option, value)
    model.passModel(program)
    return model


def is_optimal(model: highspy.Highs) -> bool:
    """Whether the last run of `model` ended with an optimal basis."""
    return model.getModelStatus() == highspy.HighsModelStatus.kOptimal
