"""N-gram models: the next token depends on the last order − 1 tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from oracles.base import LinearForm, Oracle
from oracles.checks import as_chunk, as_generator, as_integer, as_laws, as_number, as_rows, check_length
from oracles.errors import HorizonError, ShapeError
from oracles.storage import storable

_LINEAR_STATES = 256  # contexts beyond which the matrices of `linear_form` are not worth building


@dataclass(frozen=True, eq=False)
class NGramState:
    """`context[i]` numbers the last min(position, order − 1) tokens of row i in base A, oldest first."""

    position: int
    context: Int[np.ndarray, "batch"]


@storable("ngram")
@dataclass(frozen=True, eq=False, repr=False)
class NGram(Oracle):
    """N-gram model of order m: P(x) = Π_t P(x_t | the min(t, m−1) tokens before it).

    Arguments:
        order: m ≥ 1 (1 = independent tokens).
        laws: m arrays; laws[k][c_1, …, c_k, z] = P(z | context c_1 … c_k), shape (A,)·(k+1).
        horizon: T ≥ 1.

    Contexts shorter than m − 1 occur at the beginning only. Probability rank ≤ A^(m−1).
    Raises ShapeError, NonFiniteError or ProbabilityError on arrays that are not laws.
    """

    order: int
    laws: tuple[Float[np.ndarray, "..."], ...]
    horizon: int

    def __post_init__(self) -> None:
        order, horizon = as_integer("order", self.order, 1), as_integer("horizon", self.horizon, 1)
        if not isinstance(self.laws, (tuple, list)) or len(self.laws) != order:
            given = len(self.laws) if isinstance(self.laws, (tuple, list)) else type(self.laws).__name__
            raise ShapeError("laws", "a tuple of order arrays", f"{order} arrays", given)
        laws = tuple(
            as_laws(f"laws[{k}]", law, f"(vocab_size,)·{k + 1}", k + 1) for k, law in enumerate(self.laws)
        )
        vocab_size = len(laws[0])
        for k, law in enumerate(laws):
            if law.shape != (vocab_size,) * (k + 1):
                raise ShapeError(f"laws[{k}]", f"(vocab_size,)·{k + 1}", (vocab_size,) * (k + 1), law.shape)
        for name, value in {
            "order": order,
            "laws": laws,
            "horizon": horizon,
            "vocab_size": vocab_size,
        }.items():
            object.__setattr__(self, name, value)

    @classmethod
    def random(
        cls,
        order: int,
        vocab_size: int,
        horizon: int,
        rng: np.random.Generator | int | None = None,
        concentration: float = 1.0,
    ) -> NGram:
        """Model whose laws are independent Dirichlet(concentration) draws."""
        order, vocab_size = as_integer("order", order, 1), as_integer("vocab_size", vocab_size, 1)
        prior = np.full(vocab_size, as_number("concentration", concentration, 1e-3))
        rng = as_generator(rng)
        laws = tuple(rng.dirichlet(prior, (vocab_size,) * k) for k in range(order))
        return cls(order, laws, horizon)

    def __repr__(self) -> str:
        return f"NGram(order={self.order}, vocab_size={self.vocab_size}, horizon={self.horizon})"

    def start(self, batch: int) -> NGramState:
        return NGramState(0, np.zeros(as_integer("batch", batch, 0), dtype=np.int64))

    def advance(self, state: NGramState, tokens: ArrayLike) -> NGramState:
        chunk = as_chunk(tokens, len(state.context), self.vocab_size)
        position, context = state.position + chunk.shape[1], state.context
        check_length(position, self.horizon)
        kept = self.order - 1
        for column in chunk[:, max(0, chunk.shape[1] - kept) :].T:  # older tokens are forgotten anyway
            context = (context * self.vocab_size + column) % self.vocab_size**kept
        return NGramState(position, context)

    def log_probs(self, state: NGramState) -> Float[np.ndarray, "batch vocab"]:
        if state.position >= self.horizon:
            raise HorizonError(f"no token follows after horizon = {self.horizon} tokens")
        return self._log_laws[min(state.position, self.order - 1)][state.context]

    def take(self, state: NGramState, rows: ArrayLike) -> NGramState:
        return NGramState(state.position, state.context[as_rows(rows, len(state.context))])

    def linear_form(self) -> LinearForm | None:
        """Operators on contexts: O_t[z][c, c'] = P(z | c) for the context c' that z makes of c.

        None where there are more than 256 contexts.
        """
        vocab_size, kept = self.vocab_size, self.order - 1
        if vocab_size**kept > _LINEAR_STATES:
            return None
        made: dict[int, np.ndarray] = {}
        for k in range(min(kept, self.horizon - 1) + 1):
            contexts = np.arange(vocab_size**k)
            operator = np.zeros((vocab_size, vocab_size**k, vocab_size ** min(k + 1, kept)))
            for token in range(vocab_size):
                following = (contexts * vocab_size + token) % operator.shape[2]
                operator[token, contexts, following] = self.laws[k].reshape(-1, vocab_size)[:, token]
            made[k] = operator
        operators = [made[min(t, kept)] for t in range(self.horizon)]
        return LinearForm(np.ones(1), operators, np.ones(operators[-1].shape[2]))

    @cached_property
    def _log_laws(self) -> list[Float[np.ndarray, "contexts A"]]:
        with np.errstate(divide="ignore"):
            return [np.log(law).reshape(-1, self.vocab_size) for law in self.laws]
