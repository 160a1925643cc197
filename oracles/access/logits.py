"""Logit access: all centred next-token logits after a chosen history (arXiv:2512.09892)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import final

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from oracles.access.answers import Answerer, Answers, Verification
from oracles.access.base import BLOCK_ROWS, StringAccess
from oracles.access.grids import rectangles
from oracles.access.noise import next_token_noise
from oracles.access.strings import Packing
from oracles.base import Oracle
from oracles.cache import Cache, Space, as_cache
from oracles.checks import as_integer, as_number, check_log_probs
from oracles.errors import ParameterError, ZeroProbabilityError
from oracles.ledger import Budget, Charge

#: Rectangles of fewer questions are not worth a call of their own.
_SMALL = 32


@final
class LogitAccess(StringAccess):
    """Centred logits L(z | h) = log P(z | h) − (1/A) Σ_z' log P(z' | h), one call per distinct history.

    Arguments:
        oracle, budget, seed, block_rows: see `Access`.
        noise: ξ ≥ 0. Every log-probability is moved by a number in [−ξ, ξ], uniform and a function
            of (seed, history, token), before centring; so a centred logit is off by at most
            2ξ(1 − 1/A). `sample` is exact.
        cache: a repeated history is neither asked nor charged again.
        verify_every: with a cache, ask every `verify_every`-th repeated question again (charged, and
            left out when the budget has no room), to find a teacher that changes its answers.
        verify_tolerance: largest difference accepted then.

    Raises ZeroProbabilityError where a token has probability zero (its logit is −∞),
    NonFiniteError or ProbabilityError if the teacher answers no law, InconsistentAnswerError if it
    changes its answers.
    """

    kind = "logits"

    def __init__(
        self,
        oracle: Oracle,
        budget: Budget | int | None = None,
        noise: float | None = None,
        cache: Cache | bool | str | os.PathLike[str] | None = None,
        seed: int = 0,
        *,
        block_rows: int = BLOCK_ROWS,
        verify_every: int | None = None,
        verify_tolerance: float = 1e-6,
    ) -> None:
        super().__init__(oracle, budget, seed, block_rows)
        noise = as_number("noise", 0.0 if noise is None else noise, 0.0)
        store = as_cache(cache, oracle)
        identity = "" if store is None else store.identify(oracle)
        self._space = Space(identity, self.kind, noise, self._seed if noise else 0, self.vocab_size)
        self._answerer = Answerer(
            self._meter, store, self._block_rows, _verification(store, verify_every, verify_tolerance)
        )
        self._ask_rows = row_asker(oracle)
        self._ask_grid = _grid_asker(oracle)

    def logits(self, histories: Sequence[ArrayLike] | np.ndarray) -> Float[np.ndarray, "n vocab"]:
        """Centred logits after each history, float64 (n, A); ragged lists or a 2-D array.

        BudgetError.answered: (k, A), the rows before the first history that was not paid for.
        """
        keys = self._packing.pack("histories", histories)

        def ask(positions: Int[np.ndarray, "k"]) -> np.ndarray:
            return self._ask_rows([keys[i] for i in positions.tolist()])

        answers = self._collect(keys, ask)
        if not answers.complete:
            raise self._meter.spent(answers.rows[: answers.prefix], answers.prefix, len(keys))
        return answers.rows

    def grid(
        self, histories: Sequence[ArrayLike] | np.ndarray, futures: Sequence[ArrayLike] | np.ndarray
    ) -> Float[np.ndarray, "n_h n_f vocab"]:
        """Centred logits after h∘f for every history h and future f, float64 (n_h, n_f, A).

        Each distinct string h∘f is one query. BudgetError.answered: the whole array, NaN where
        no answer was paid for.
        """
        heads = self._packing.pack("histories", histories)
        tails = self._packing.pack("futures", futures)
        keys = [head + tail for head in heads for tail in tails]

        def ask(positions: Int[np.ndarray, "k"]) -> np.ndarray:
            rows = np.empty((len(positions), self.vocab_size))
            rest: list[np.ndarray] = []
            for places, h, f in rectangles(positions, len(tails)):
                if places.size < _SMALL:
                    rest.append(places.ravel())
                else:
                    laws = self._ask_grid([heads[i] for i in h.tolist()], [tails[j] for j in f.tolist()])
                    rows[places.ravel()] = laws.reshape(-1, self.vocab_size)
            if rest:
                places = np.concatenate(rest)
                rows[places] = self._ask_rows([keys[i] for i in positions[places].tolist()])
            return rows

        answers = self._collect(keys, ask)
        grid = answers.rows.reshape(len(heads), len(tails), self.vocab_size)
        if not answers.complete:
            raise self._meter.spent(grid, int(answers.answered.sum()), len(keys))
        return grid

    def _collect(self, keys: list[bytes], ask: Callable[[Int[np.ndarray, "k"]], np.ndarray]) -> Answers:
        lengths = self._packing.lengths(keys)
        self._fit(lengths, 1)

        def ask_logits(positions: Int[np.ndarray, "k"]) -> np.ndarray:
            return self._centred(ask(positions), [keys[i] for i in positions.tolist()])

        charge = Charge.of(keys, len(keys), submitted=lengths)
        return self._answerer.collect(self._space, keys, charge, ask_logits)

    def _centred(self, log_probs: np.ndarray, keys: Sequence[bytes]) -> Float[np.ndarray, "n vocab"]:
        """Centred logits of checked log-probabilities, with this access's noise."""
        impossible = np.argwhere(np.isneginf(log_probs))
        if len(impossible):
            row, token = impossible[0]
            raise ZeroProbabilityError(
                f"token {token} has probability zero after the history {_shown(self._packing, keys[row])}, "
                "so its logit is −∞: smooth the teacher first, (1−τ)·P + τ·uniform, leave out tokens that it "
                "never emits (oracles.restricted), or use conditional samples or probabilities"
            )
        if self._space.noise:
            log_probs = log_probs + next_token_noise(
                self._packing, keys, self._seed, "logit noise", self._space.noise
            )
        return log_probs - log_probs.mean(axis=1, keepdims=True)


def row_asker(oracle: Oracle) -> Callable[[Sequence[bytes]], Float[np.ndarray, "n vocab"]]:
    """A function that asks an oracle for checked next-token log-probabilities of packed histories."""
    packing = Packing(oracle.vocab_size)

    def ask(keys: Sequence[bytes]) -> np.ndarray:
        rows = oracle.next_log_probs(packing.unpack(keys))
        return check_log_probs(rows, len(keys), oracle.vocab_size)

    return ask


def _grid_asker(
    oracle: Oracle,
) -> Callable[[Sequence[bytes], Sequence[bytes]], Float[np.ndarray, "n_h n_f vocab"]]:
    packing = Packing(oracle.vocab_size)

    def ask(heads: Sequence[bytes], tails: Sequence[bytes]) -> np.ndarray:
        laws = oracle.extended_log_probs(packing.unpack(heads), packing.unpack(tails))
        flat = np.asarray(laws).reshape(-1, np.shape(laws)[-1])
        checked = check_log_probs(flat, len(heads) * len(tails), oracle.vocab_size)
        return checked.reshape(len(heads), len(tails), -1)

    return ask


def _verification(
    cache: Cache | None, verify_every: int | None, verify_tolerance: float
) -> Verification | None:
    if verify_every is None:
        return None
    if cache is None:
        raise ParameterError("verify_every checks answers against a cache: pass cache=True or a path too")
    every = as_integer("verify_every", verify_every, 1)
    return Verification(every, as_number("verify_tolerance", verify_tolerance, 0.0))


def _shown(packing: Packing, key: bytes) -> str:
    """A history for an error message: all of it, or its end."""
    tokens = packing.unpack([key])[0].tolist()
    return str(tokens) if len(tokens) <= 20 else f"[…, {', '.join(map(str, tokens[-20:]))}]"
