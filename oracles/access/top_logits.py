"""Top-k access: what production interfaces give (arXiv:2403.06634, 2403.09539)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import final

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from oracles.access.answers import Answerer
from oracles.access.base import BLOCK_ROWS, Access
from oracles.access.logits import row_asker
from oracles.access.noise import next_token_noise
from oracles.base import Oracle
from oracles.cache import Cache, Space, as_cache
from oracles.checks import as_finite, as_integer, as_number
from oracles.errors import ShapeError, ZeroProbabilityError
from oracles.ledger import Budget, Charge


@final
class TopLogitAccess(Access):
    """The k most likely next tokens and their log-probabilities, after an optional logit bias.

    Arguments:
        oracle, budget, seed, block_rows: see `Access`.
        k: number of tokens shown (all of them if the vocabulary is smaller).
        noise: ξ ≥ 0: every logit is moved by a number in [−ξ, ξ], a function of
            (seed, history, token), before the bias is added and the law is normalised.
        cache: a repeated (history, bias) is neither asked nor charged again.

    Errors as of `LogitAccess`; tokens of probability zero matter only among the first k.
    """

    kind = "top logits"

    def __init__(
        self,
        oracle: Oracle,
        k: int = 5,
        budget: Budget | int | None = None,
        noise: float | None = None,
        cache: Cache | bool | str | os.PathLike[str] | None = None,
        seed: int = 0,
        *,
        block_rows: int = BLOCK_ROWS,
    ) -> None:
        super().__init__(oracle, budget, seed, block_rows)
        self._k = min(as_integer("k", k, 1), self.vocab_size)
        self._noise = as_number("noise", 0.0 if noise is None else noise, 0.0)
        store = as_cache(cache, oracle)
        self._identity = "" if store is None else store.identify(oracle)
        self._answerer = Answerer(self._meter, store, self._block_rows)
        self._ask_rows = row_asker(oracle)

    @property
    def k(self) -> int:
        """Number of tokens an answer shows."""
        return self._k

    def top(
        self, histories: Sequence[ArrayLike] | np.ndarray, bias: ArrayLike | None = None
    ) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
        """Tokens and natural-log probabilities of the k largest entries of softmax(logits + bias).

        `bias` is finite, (A,) for all histories or (n, A). Both results are (n, k), most likely
        first, the smaller token first among equals. One call per distinct (history, bias).
        BudgetError.answered: the same pair with the rows before the first one not paid for.
        """
        keys = self._packing.pack("histories", histories)
        lengths = self._packing.lengths(keys)
        self._fit(lengths, 1)
        shifts = None if bias is None else self._as_bias(bias, len(keys))
        questions = keys
        if shifts is not None:
            questions = [key + shift.tobytes() for key, shift in zip(keys, shifts, strict=True)]
        kind = f"{self.kind}, k={self.k}{'' if bias is None else ', biased'}"
        seed = self._seed if self._noise else 0
        answers = self._answerer.collect(
            Space(self._identity, kind, self._noise, seed, 2 * self.k),
            questions,
            Charge.of(keys, len(keys), submitted=lengths),
            self._asker(keys, shifts),
        )
        rows = answers.rows[: answers.prefix]
        result = rows[:, : self.k].astype(np.int64), rows[:, self.k :].copy()
        if not answers.complete:
            raise self._meter.spent(result, answers.prefix, len(keys))
        return result

    def _asker(
        self, keys: list[bytes], shifts: Float[np.ndarray, "n vocab"] | None
    ) -> Callable[[Int[np.ndarray, "m"]], np.ndarray]:
        """Asks for (tokens, log-probabilities) rows; one law serves all biases of its history."""

        def ask(positions: Int[np.ndarray, "m"]) -> np.ndarray:
            chosen = [keys[i] for i in positions.tolist()]
            distinct = list(dict.fromkeys(chosen))
            log_probs = self._ask_rows(distinct)
            if self._noise:
                noise = next_token_noise(self._packing, distinct, self._seed, "top logit noise", self._noise)
                log_probs = log_probs + noise
            place = {key: i for i, key in enumerate(distinct)}
            log_probs = log_probs[[place[key] for key in chosen]]
            return _top(log_probs if shifts is None else log_probs + shifts[positions], self.k)

        return ask

    def _as_bias(self, bias: ArrayLike, n: int) -> Float[np.ndarray, "n vocab"]:
        symbolic = "(vocab_size,) or (n, vocab_size)"
        values = as_finite("bias", bias, symbolic, 2 if np.ndim(bias) == 2 else 1)
        if values.shape not in ((self.vocab_size,), (n, self.vocab_size)):
            expected = f"({self.vocab_size},) or ({n}, {self.vocab_size})"
            raise ShapeError("bias", symbolic, expected, values.shape)
        return np.broadcast_to(values + 0.0, (n, self.vocab_size))  # + 0.0: −0 and 0 are one bias


def _top(logits: Float[np.ndarray, "n vocab"], k: int) -> Float[np.ndarray, "n two_k"]:
    """Tokens, then their normalised log-probabilities, of the k largest logits of each row."""
    tokens = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    largest = np.take_along_axis(logits, tokens, axis=1)
    if np.isneginf(largest).any():
        raise ZeroProbabilityError(
            f"fewer than k = {k} tokens have positive probability after a history: ask for a smaller k, "
            "or smooth the teacher first, (1−τ)·P + τ·uniform"
        )
    peak = largest[:, :1]
    total = peak + np.log(np.exp(logits - peak).sum(axis=1, keepdims=True))
    return np.concatenate([tokens.astype(np.float64), largest - total], axis=1)
