"""Input-switched affine networks: every law of logit rank d is one of width d, and conversely."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from oracles.checks import as_finite, as_generator, as_integer, as_number, axes_of
from oracles.errors import NonFiniteError, ShapeError
from oracles.recurrent import RecurrentOracle
from oracles.storage import storable

if TYPE_CHECKING:
    import torch

    from oracles.isan_torch import ISANForCausalLM

_MEMORY = 0.8  # what one step keeps of the state in random contracting networks


@storable("isan")
@dataclass(frozen=True, eq=False, repr=False)
class ISAN(RecurrentOracle):
    """Input-switched affine network of width d: z_t ~ softmax(B_t x_t), x_(t+1) = A_(t, z_t) x_t.

    Arguments:
        initial: x_0, shape (d,).
        transitions: A, shape (A, d, d) acting on columns, or per step (T−1, A, d, d).
        readouts: B, shape (A, d), or per step (T, A, d); B x are logits up to a constant.
        horizon: T ≥ 1.

    A coordinate that stays 1 makes the maps affine. Time-varying networks of width d are exactly
    the laws of logit rank ≤ d (arXiv:2510.24966, theorem 4.3).
    Raises ShapeError or NonFiniteError on bad arrays, NonFiniteError when a state overflows.
    """

    initial: Float[np.ndarray, "d"]
    transitions: Float[np.ndarray, "*steps A d d"]
    readouts: Float[np.ndarray, "*steps A d"]
    horizon: int

    def __post_init__(self) -> None:
        horizon = as_integer("horizon", self.horizon, 1)
        initial = as_finite("initial", self.initial, "(width,)", 1)
        many_a, many_b = axes_of(self.transitions) == 4, axes_of(self.readouts) == 3
        a_shape = "(horizon-1, vocab_size, width, width)" if many_a else "(vocab_size, width, width)"
        b_shape = "(horizon, vocab_size, width)" if many_b else "(vocab_size, width)"
        transitions = as_finite("transitions", self.transitions, a_shape, 4 if many_a else 3)
        readouts = as_finite("readouts", self.readouts, b_shape, 3 if many_b else 2)
        width, vocab_size = len(initial), readouts.shape[-2]
        expected_a = (horizon - 1,) * many_a + (vocab_size, width, width)
        expected_b = (horizon,) * many_b + (vocab_size, width)
        if width == 0 or vocab_size == 0:
            raise ShapeError("readouts", b_shape, "at least one token and one coordinate", readouts.shape)
        if readouts.shape != expected_b:
            raise ShapeError("readouts", b_shape, expected_b, readouts.shape)
        if transitions.shape != expected_a:
            raise ShapeError("transitions", a_shape, expected_a, transitions.shape)
        for name, value in {
            "initial": initial.copy(),
            "transitions": transitions.copy(),
            "readouts": readouts.copy(),
            "horizon": horizon,
            "vocab_size": vocab_size,
        }.items():
            object.__setattr__(self, name, value)

    @classmethod
    def random(
        cls,
        width: int,
        vocab_size: int,
        horizon: int,
        rng: np.random.Generator | int | None = None,
        scale: float = 1.0,
        orthogonal: bool = False,
    ) -> ISAN:
        """Homogeneous network whose logits have standard deviation about `scale` at every position.

        `orthogonal`: Haar rotations of a unit vector, so nothing is ever forgotten and |x_t| = 1.
        Otherwise x = (1, y) with y' = 0.8·U_z y + 0.6·v_z, U_z a rotation and v_z a unit vector:
        affine, fading memory, |y| ≤ 3 for ever and about 1 typically.
        """
        width, vocab_size = as_integer("width", width, 1), as_integer("vocab_size", vocab_size, 1)
        scale, rng = as_number("scale", scale, 0.0), as_generator(rng)
        if orthogonal:
            transitions = _rotations(rng, vocab_size, width)
            readouts = scale * rng.standard_normal((vocab_size, width))
            return cls(_unit_vectors(rng, 1, width)[0], transitions, readouts, horizon)
        transitions = np.zeros((vocab_size, width, width))
        transitions[:, 0, 0] = 1.0
        initial = np.ones(width)
        if width > 1:
            transitions[:, 1:, 1:] = _MEMORY * _rotations(rng, vocab_size, width - 1)
            pushes = _unit_vectors(rng, vocab_size, width - 1)
            transitions[:, 1:, 0] = np.sqrt(1 - _MEMORY**2) * pushes
            initial[1:] = _unit_vectors(rng, 1, width - 1)[0]
        spread = scale / np.sqrt(min(width, 2))  # two unit parts: the constant and y
        return cls(initial, transitions, spread * rng.standard_normal((vocab_size, width)), horizon)

    @property
    def width(self) -> int:
        """Number of coordinates d of the state."""
        return len(self.initial)

    def to_torch(self, dtype: str | torch.dtype = "float32") -> ISANForCausalLM:
        """The network as a `torch.nn.Module` that is a Hugging Face `PreTrainedModel` with `generate`.

        It has one token more, A: the beginning and the end of a string; see `oracles.isan_torch`.
        `from_torch` there is the way back. `dtype`: float16, bfloat16, float32 or float64.
        Raises MissingDependencyError without torch and transformers.
        """
        from oracles.isan_torch import ISANForCausalLM

        return ISANForCausalLM.from_isan(self, dtype)

    def __repr__(self) -> str:
        return f"ISAN(width={self.width}, vocab_size={self.vocab_size}, horizon={self.horizon})"

    def first_row(self) -> Float[np.ndarray, "d"]:
        return self.initial

    def step(
        self, position: int, rows: Float[np.ndarray, "batch d"], tokens: Int[np.ndarray, "batch"]
    ) -> Float[np.ndarray, "batch d"]:
        if position + 1 >= self.horizon:
            return rows
        maps = self._transposed[position] if self._transposed.ndim == 4 else self._transposed
        with np.errstate(over="ignore", invalid="ignore"):  # `laws` reports it
            return switched_product(rows, maps, tokens)

    def laws(self, position: int, rows: Float[np.ndarray, "batch d"]) -> Float[np.ndarray, "batch A"]:
        readout = self.readouts[position] if self.readouts.ndim == 3 else self.readouts
        with np.errstate(over="ignore", invalid="ignore"):
            logits = rows @ readout.T
        if not np.isfinite(logits).all():
            raise NonFiniteError(f"the logits overflowed at position {position}: scale the transitions down")
        return log_softmax(logits)

    @cached_property
    def _transposed(self) -> Float[np.ndarray, "*steps A d d"]:
        return np.ascontiguousarray(np.swapaxes(self.transitions, -1, -2))


def log_softmax(logits: Float[np.ndarray, "*batch A"]) -> Float[np.ndarray, "*batch A"]:
    """Each row minus its log-sum-exp; −∞ entries stay −∞."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def switched_product(
    rows: Float[np.ndarray, "batch d"],
    matrices: Float[np.ndarray, "A d d2"],
    tokens: Int[np.ndarray, "batch"],
) -> Float[np.ndarray, "batch d2"]:
    """rows[i] @ matrices[tokens[i]] for every i.

    Small batches gather one matrix per row while the gathered copy fits the cache; large ones are
    sorted by token and multiplied by one GEMM per token that occurs: 2·batch·d·d2 flops, never A times that.
    """
    vocab_size, width, out_width = matrices.shape
    if len(rows) * width * out_width <= 4096 * (vocab_size + 4):
        return np.matmul(rows[:, None, :], matrices[tokens])[:, 0, :]
    narrow = tokens.astype(np.uint16) if vocab_size <= 1 << 16 else tokens  # 16 bits: numpy's radix sort
    order = np.argsort(narrow, kind="stable")
    counts = np.bincount(tokens, minlength=vocab_size)
    ends = np.cumsum(counts)
    grouped = rows[order]
    products = np.empty((len(rows), out_width))
    for token in np.flatnonzero(counts):
        part = slice(ends[token] - counts[token], ends[token])
        np.matmul(grouped[part], matrices[token], out=products[part])
    result = np.empty_like(products)
    result[order] = products
    return result


def _unit_vectors(rng: np.random.Generator, count: int, width: int) -> Float[np.ndarray, "count width"]:
    vectors = rng.standard_normal((count, width))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _rotations(rng: np.random.Generator, count: int, width: int) -> Float[np.ndarray, "count width width"]:
    """Haar-distributed orthogonal matrices (QR of Gaussian ones with the signs of R; math-ph/0609050)."""
    q, r = np.linalg.qr(rng.standard_normal((count, width, width)))
    signs = np.where(np.diagonal(r, axis1=1, axis2=2) < 0, -1.0, 1.0)
    return q * signs[:, None, :]
