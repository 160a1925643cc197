"""The learned sampler of Liu and Moitra (arXiv:2411.07536): coefficients over spanner histories.

After t tokens the law of the continuation is represented as P(· | h) ≈ Σ_i λ_i P(· | h_(t,i)) over the
spanner histories of cut t. One token o updates the coefficients by Bayes' rule,

    p(o) = Σ_i λ_i p_t[i, o],      λ̃ = λ O_(t,o) / p(o),      O_(t,o)[i, :] = p_t[i, o] · B_(t,o)[i, :],

where B_(t,o)[i, :] represents the child h_(t,i)∘o over the spanner of cut t+1, and a projection onto
{λ : R^T λ ≥ floor, Σλ = 1, |λ_i| ≤ box} keeps errors from compounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, cast, get_args

import numpy as np
from jaxtyping import Float, Int

from lrlm_sim.projections import kl_project, l1_project
from oracles.base import LinearForm
from oracles.checks import as_finite, as_integer, as_number
from oracles.errors import ParameterError, ShapeError
from oracles.recurrent import RecurrentOracle
from oracles.storage import storable

#: What is done with coefficients after each token.
PostProcess = Literal["none", "truncate", "l1", "kl"]
#: Violations of the floor below this, relative to the largest entry of a column, are rounding.
_SLACK = 1e-10


@storable("spanner")
@dataclass(frozen=True, eq=False, repr=False)
class SpannerModel(RecurrentOracle):
    """Sampler over spanner coefficients; exact sequence probabilities, any horizon, batched.

    Arguments:
        laws: p_t, one (r_t, A) array per position t = 0..T−1; r_0 = 1.
        operators: O_t, one (A, r_t, r_(t+1)) array per position t = 0..T−2.
        sketches: R_(t+1), one non-negative (r_(t+1), m) array per position t = 0..T−2: row i is a
            vector of linear functionals of P(· | h_(t+1,i)), such as probabilities of futures.
        postprocess: "kl" (argmin KL(R^Tα ‖ max(floor, R^Tλ̃))), "l1" (nearest in ℓ1), "truncate" (R^Tλ̃ cut
            at the floor, renormalised and refitted by least squares) or "none".
        box: bound on |λ_i|; 3 × rank in the paper.
        floor: smallest coordinate of R^T α.

    A law that comes out below the floor somewhere is cut there and renormalised.
    """

    laws_at: tuple[Float[np.ndarray, "r A"], ...]
    operators: tuple[Float[np.ndarray, "A r r2"], ...]
    sketches: tuple[Float[np.ndarray, "r m"], ...]
    postprocess: str = "kl"
    box: float = 100.0
    floor: float = 1e-9

    def __post_init__(self) -> None:
        laws = tuple(as_finite(f"laws_at[{t}]", p, "(r, A)", 2) for t, p in enumerate(self.laws_at))
        operators = tuple(
            as_finite(f"operators[{t}]", o, "(A, r, r2)", 3) for t, o in enumerate(self.operators)
        )
        sketches = tuple(as_finite(f"sketches[{t}]", r, "(r, m)", 2) for t, r in enumerate(self.sketches))
        if self.postprocess not in get_args(PostProcess):
            raise ParameterError(
                f"postprocess must be one of {get_args(PostProcess)}, got {self.postprocess!r}"
            )
        if len(laws) < 1 or len(operators) != len(laws) - 1 or len(sketches) != len(laws) - 1:
            raise ParameterError("a model of horizon T has T laws, T−1 operators and T−1 sketches")
        vocab_size, width = laws[0].shape[1], 1
        for t, law in enumerate(laws):
            if law.shape != (width, vocab_size):
                raise ShapeError(f"laws_at[{t}]", "(r_t, A)", (width, vocab_size), law.shape)
            if t < len(operators):
                after = sketches[t].shape[0]
                if operators[t].shape != (vocab_size, width, after):
                    raise ShapeError(
                        f"operators[{t}]", "(A, r_t, r_t+1)", (vocab_size, width, after), operators[t].shape
                    )
                width = after
        for name, value in {
            "laws_at": laws,
            "operators": operators,
            "sketches": sketches,
            "box": as_number("box", self.box, 1),
            "floor": as_number("floor", self.floor, 0, 1),
            "vocab_size": as_integer("vocab_size", vocab_size, 1),
            "horizon": len(laws),
        }.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"SpannerModel(ranks={self.ranks}, vocab_size={self.vocab_size}, horizon={self.horizon})"

    @property
    def ranks(self) -> list[int]:
        """Number of spanner histories at each cut 0..T−1."""
        return [len(law) for law in self.laws_at]

    @property
    def n_parameters(self) -> int:
        """Numbers stored: laws, operators, and the sketches where the projection needs them."""
        kept = self.sketches if self.postprocess != "none" else ()
        return sum(a.size for a in (*self.laws_at, *self.operators, *kept))

    def first_row(self) -> Float[np.ndarray, "one"]:
        return np.ones(1)

    def laws(self, position: int, rows: Float[np.ndarray, "batch r"]) -> Float[np.ndarray, "batch A"]:
        probabilities = np.maximum(rows @ self.laws_at[position], self.floor)
        mass = probabilities.sum(axis=1, keepdims=True)
        lost = mass[:, 0] <= 0
        probabilities[lost], mass[lost] = 1.0, self.vocab_size
        with np.errstate(divide="ignore"):
            return np.log(probabilities / mass)

    def step(
        self, position: int, rows: Float[np.ndarray, "batch r"], tokens: Int[np.ndarray, "batch"]
    ) -> Float[np.ndarray, "batch r2"]:
        if position + 1 >= len(self.laws_at):
            return rows  # after the last token nothing follows
        operators = self.operators[position]
        updated = np.empty((len(rows), operators.shape[2]))
        for token in range(self.vocab_size):
            chosen = np.flatnonzero(tokens == token)
            if len(chosen):
                updated[chosen] = rows[chosen] @ operators[token]
        mass = updated.sum(axis=1, keepdims=True)
        lost = ~(mass[:, 0] > 1e-300)
        updated[lost], mass[lost] = 1.0, operators.shape[2]
        updated /= mass
        return self._post_process(position, updated)

    @cached_property
    def _thresholds(self) -> list[np.ndarray]:
        """Values of RᵀΛ below which rows are projected: the floor, less what rounding can do to a column.

        A projection is exact to 1e-10 in KL only, 1e-5 in total variation: it must not touch exact models.
        """
        return [_room(self.floor, sketch) - _SLACK * sketch.max(axis=0) for sketch in self.sketches]

    def linear_form(self) -> LinearForm | None:
        """None: cutting and projecting make the law non-linear, unless nothing is ever cut."""
        return None

    def _post_process(
        self, position: int, rows: Float[np.ndarray, "batch r"]
    ) -> Float[np.ndarray, "batch r"]:
        if self.postprocess == "none" or rows.shape[1] == 1:
            return rows
        sketch = self.sketches[position]
        values = rows @ sketch
        outside = (values < self._thresholds[position]).any(axis=1) | (np.abs(rows) > self.box).any(axis=1)
        if not outside.any():
            return rows
        # Equal histories have equal rows: each is projected once.
        _, first, where = np.unique(rows[outside], axis=0, return_index=True, return_inverse=True)
        projected = _project(
            cast(PostProcess, self.postprocess), sketch, values[outside][first], self.box, self.floor
        )
        rows = rows.copy()
        rows[outside] = projected[where.ravel()]
        return rows


def _project(
    method: PostProcess, sketch: np.ndarray, values: np.ndarray, box: float, floor: float
) -> Float[np.ndarray, "n r"]:
    floor = _room(floor, sketch)
    targets = np.maximum(values, floor)
    if method == "kl":
        return kl_project(sketch, targets, box, max(floor, 1e-300)).alpha
    if method == "l1":
        return l1_project(sketch, values, box, max(floor, 0.0)).alpha
    targets *= (values.sum(axis=1) / targets.sum(axis=1))[:, None]
    alpha = np.linalg.lstsq(sketch.T, targets.T, rcond=None)[0].T
    total = alpha.sum(axis=1, keepdims=True)
    return np.where(np.abs(total) > 1e-12, alpha / np.where(total == 0, 1, total), 1 / alpha.shape[1])


def _room(floor: float, sketch: Float[np.ndarray, "r m"]) -> float:
    """The floor, lowered where the mean of the spanner rows would not satisfy it."""
    return min(floor, 0.5 * float(sketch.mean(axis=0).min()))
