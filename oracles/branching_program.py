"""Teachers of growing logit rank that hide a width-5 permutation branching program."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from oracles.checks import as_finite, as_generator, as_integer, as_number, as_tokens
from oracles.errors import ParameterError, ShapeError
from oracles.isan import ISAN
from oracles.recurrent import RecurrentOracle
from oracles.sparse_polynomial import coin_laws
from oracles.storage import storable

_STATES = 5
#: R of the final state: +1 when the program has moved state 0, −1 when it has not.
_VERDICT = np.array([-1.0, 1.0, 1.0, 1.0, 1.0])


@storable("branching_program")
@dataclass(frozen=True, eq=False, repr=False)
class BranchingProgram(RecurrentOracle):
    """Uniform bits X_0..X_(n−1), L noisy copies a_j of X_(schedule[j]), a label, then fair padding.

    Arguments:
        schedule: which bit each copy repeats, shape (L,), entries 0..n−1, L ≥ 1.
        permutations: shape (L, 2, 5); permutations[j, b, s] is the state after s when copy j is b.
        scale: B ≥ 0. The logit of token 1 is B(2X_(schedule[j]) − 1) at copy j and B(2C + R(a)) at the
            label, where C counts the copies that differ from their bit and R(a) = +1 if the program,
            run on the copies from state 0, ends elsewhere, −1 if it ends in state 0.
        horizon: T ≥ n + L + 1.
        n_bits: n; by default the largest scheduled bit plus one.

    Logits are centred (half the log-odds): a copy is wrong with probability η = 1/(1 + e^(2B)), and
    the total variation distance to the generator that copies and labels without error is
    1 − (1−η)^(L+1). Branching programs of this width compute all of NC¹ (Barrington 1989), which is
    what makes the family hard when n grows (Mausberg 2026). Logit rank ≤ n + 7.
    """

    schedule: Int[np.ndarray, "L"]
    permutations: Int[np.ndarray, "L 2 5"]
    scale: float
    horizon: int
    n_bits: int | None = None

    def __post_init__(self) -> None:
        n_bits = 1 << 31 if self.n_bits is None else as_integer("n_bits", self.n_bits, 1)
        schedule = np.array(as_tokens("schedule", self.schedule, n_bits, 1))
        if not len(schedule):
            raise ShapeError("schedule", "(n_copies,)", "at least one copy", schedule.shape)
        n_bits = int(schedule.max()) + 1 if self.n_bits is None else n_bits
        permutations = _as_permutations(self.permutations, len(schedule))
        horizon = as_integer("horizon", self.horizon, 1)
        if horizon < n_bits + len(schedule) + 1:
            needed = f"n_bits + n_copies + 1 = {n_bits + len(schedule) + 1}"
            raise ParameterError(f"horizon must be at least {needed}, got {horizon}")
        for name, value in {
            "schedule": schedule,
            "permutations": permutations,
            "scale": as_number("scale", self.scale, 0.0),
            "horizon": horizon,
            "n_bits": n_bits,
            "vocab_size": 2,
        }.items():
            object.__setattr__(self, name, value)

    @classmethod
    def random(
        cls,
        n_bits: int,
        n_copies: int,
        scale: float,
        horizon: int | None = None,
        rng: np.random.Generator | int | None = None,
    ) -> BranchingProgram:
        """Uniformly random schedule and permutations; no padding unless `horizon` asks for it."""
        n_bits, n_copies = as_integer("n_bits", n_bits, 1), as_integer("n_copies", n_copies, 1)
        rng = as_generator(rng)
        schedule = rng.integers(0, n_bits, n_copies)
        permutations = rng.permuted(np.tile(np.arange(_STATES), (n_copies, 2, 1)), axis=2)
        return cls(
            schedule, permutations, scale, n_bits + n_copies + 1 if horizon is None else horizon, n_bits
        )

    def __repr__(self) -> str:
        return (
            f"BranchingProgram(n_bits={self.n_bits}, n_copies={len(self.schedule)}, "
            f"scale={self.scale:g}, horizon={self.horizon})"
        )

    def first_row(self) -> Int[np.ndarray, "width"]:
        """The bits, the number of mismatches, the program's state."""
        return np.zeros(self._bits + 2, dtype=np.int64)

    def step(
        self, position: int, rows: Int[np.ndarray, "batch width"], tokens: Int[np.ndarray, "batch"]
    ) -> Int[np.ndarray, "batch width"]:
        copy = position - self._bits
        if copy >= len(self.schedule):
            return rows
        read = rows.copy()
        if copy < 0:
            read[:, position] = tokens
        else:
            read[:, -2] += tokens != rows[:, self.schedule[copy]]
            read[:, -1] = self.permutations[copy, tokens, rows[:, -1]]
        return read

    def laws(self, position: int, rows: Int[np.ndarray, "batch width"]) -> Float[np.ndarray, "batch 2"]:
        copy = position - self._bits
        if 0 <= copy < len(self.schedule):
            return coin_laws(self.scale * (2.0 * rows[:, self.schedule[copy]] - 1.0))
        if copy == len(self.schedule):
            return coin_laws(self.scale * (2.0 * rows[:, -2] + _VERDICT[rows[:, -1]]))
        return np.full((len(rows), 2), -np.log(2))

    def to_isan(self) -> ISAN:
        """The same law as a network of width n + 7: (1, X_0..X_(n−1), C, one-hot program state)."""
        n, copies = self._bits, len(self.schedule)
        width, mismatch, states = n + 7, n + 1, np.arange(_STATES) + n + 2
        transitions = np.tile(np.eye(width), (self.horizon - 1, 2, 1, 1))
        readouts = np.zeros((self.horizon, 2, width))
        transitions[np.arange(n), 1, np.arange(n) + 1, 0] = 1.0
        for j, bit in enumerate(self.schedule + 1):
            for token in (0, 1):  # C + token + (1 − 2·token)·X
                move = transitions[n + j, token]
                move[mismatch, 0], move[mismatch, bit] = token, 1 - 2 * token
                move[np.ix_(states, states)] = np.eye(_STATES)[self.permutations[j, token]].T
            readouts[n + j, 1, [0, bit]] = self.scale * np.array([-1.0, 2.0])
        readouts[n + copies, 1, mismatch] = 2 * self.scale
        readouts[n + copies, 1, states] = self.scale * _VERDICT
        readouts[:, 0] = -readouts[:, 1]
        return ISAN(np.eye(width)[0] + np.eye(width)[states[0]], transitions, readouts, self.horizon)

    @cached_property
    def _bits(self) -> int:
        return int(self.n_bits or 0)


def _as_permutations(permutations: object, copies: int) -> Int[np.ndarray, "L 2 5"]:
    symbolic, expected = "(n_copies, 2, 5)", (copies, 2, _STATES)
    values = as_finite("permutations", permutations, symbolic, 3)  # type: ignore[arg-type]
    if values.shape != expected:
        raise ShapeError("permutations", symbolic, expected, values.shape)
    if not (np.sort(values, axis=2) == np.arange(_STATES)).all():
        raise ParameterError(f"permutations {symbolic} must each hold 0..{_STATES - 1} once, last axis")
    return values.astype(np.int64)
