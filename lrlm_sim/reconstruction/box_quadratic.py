"""The joint least squares of a chain with |c_s| ≤ box, one string at a time: a sparse quadratic program.

    min over c_1..c_t, e  ½‖e‖²   subject to   W_s [c_s; c_(s+1)] = e_s  (s = 0..t−1),   ‖c_s‖_∞ ≤ box,

W_s the triangular factors of the equations. Keeping e as a variable, rather than forming the normal
equations, leaves the conditioning of W unsquared. PIQP (interior point, extra `convex`) where it is
installed, else scipy's `lsq_linear`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse
from scipy.optimize import lsq_linear

#: Accuracy of the interior-point method, relative and absolute.
_ACCURACY = 1e-11


def solve_box_quadratic(
    equations: Sequence[Float[np.ndarray, "A _k _r_plus_r2"]], box: float, string: Int[np.ndarray, "t"]
) -> list[Float[np.ndarray, "_r"]]:
    """c_0..c_t of one string, t ≥ 1, from `block_elimination.equation_factors`."""
    matrix, target, ends = joint_system(equations, string)
    solution = _by_interior_point(matrix, target, box)
    if solution is None:
        solution = lsq_linear(
            matrix.toarray(), target, (-box, box), method="bvls", tol=1e-15, max_iter=100 * len(target)
        ).x
    return [np.ones(1), *np.split(np.clip(solution, -box, box), ends[:-1])]


def joint_system(
    equations: Sequence[Float[np.ndarray, "A _k _r_plus_r2"]], string: Int[np.ndarray, "t"]
) -> tuple[sparse.csc_matrix, Float[np.ndarray, "rows"], Int[np.ndarray, "t"]]:
    """(matrix, target, ends of the blocks): residuals are matrix · (c_1, …, c_t) − target."""
    blocks = [equations[s][token] for s, token in enumerate(string)]
    widths = [1]
    for block in blocks:
        widths.append(block.shape[1] - widths[-1])
    ends = np.cumsum(widths[1:])
    rows = np.cumsum([0, *(len(block) for block in blocks)])
    target = np.zeros(rows[-1])
    target[: rows[1]] = -blocks[0][:, 0]
    entries = [_placed(blocks[0][:, 1:], 0, 0)]
    entries += [
        _placed(b, int(rows[s]), int(ends[s - 1]) - widths[s]) for s, b in enumerate(blocks[1:], start=1)
    ]
    row, column, value = (np.concatenate(part) for part in zip(*entries, strict=True))
    matrix = sparse.csc_matrix((value, (row, column)), shape=(rows[-1], ends[-1]))
    return matrix, target, ends


def _placed(block: np.ndarray, row: int, column: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    i, j = np.nonzero(block)
    return i + row, j + column, block[i, j]


def _by_interior_point(
    matrix: sparse.csc_matrix, target: Float[np.ndarray, "rows"], box: float
) -> Float[np.ndarray, "columns"] | None:
    """The minimiser, or None when PIQP is not installed or does not reach the accuracy."""
    try:
        import piqp
    except ImportError:
        return None
    rows, columns = len(target), matrix.indptr.size - 1
    quadratic = sparse.csc_matrix(sparse.diags(np.repeat([0.0, 1.0], [columns, rows])))
    equalities = sparse.csc_matrix(sparse.hstack([matrix, -sparse.eye(rows)]))
    free = np.full(rows, np.inf)
    bounds = np.full(columns, box)
    solver = piqp.SparseSolver()
    settings = solver.settings
    settings.eps_abs = settings.eps_rel = _ACCURACY
    settings.eps_duality_gap_abs = settings.eps_duality_gap_rel = _ACCURACY
    settings.max_iter = 200
    solver.setup(
        quadratic,
        np.zeros(columns + rows),
        equalities,
        target,
        x_l=np.concatenate([-bounds, -free]),
        x_u=np.concatenate([bounds, free]),
    )
    if solver.solve() != piqp.PIQP_SOLVED:
        return None
    return solver.result.x[:columns]
