"""Sample access: whole strings, and nothing else."""

from __future__ import annotations

import os
from typing import final

from oracles.access.base import BLOCK_ROWS, StringAccess
from oracles.base import Oracle
from oracles.cache import Cache
from oracles.checks import as_number
from oracles.errors import ParameterError
from oracles.ledger import Budget


@final
class SampleAccess(StringAccess):
    """Independent strings from P through `sample`.

    Arguments:
        oracle, budget, seed, block_rows: see `Access`.
        noise: ν in [0, 1]: every next-token law is replaced by (1−ν)·P + ν·uniform, at total
            variation ≤ ν(1 − 1/A) ≤ ν per token, hence ≤ T·ν for whole strings.
        cache: must be None. A draw is not a function of the question: asking again must give a fresh
            one, at its price, or sample complexities would depend on what an earlier run asked. A
            rerun with the same seed repeats its draws anyway, in any order and batching.
    """

    kind = "samples"

    def __init__(
        self,
        oracle: Oracle,
        budget: Budget | int | None = None,
        noise: float | None = None,
        cache: Cache | bool | str | os.PathLike[str] | None = None,
        seed: int = 0,
        *,
        block_rows: int = BLOCK_ROWS,
    ) -> None:
        refuse_cache(cache)
        mixing = as_number("noise", 0.0 if noise is None else noise, 0.0, 1.0)
        super().__init__(oracle, budget, seed, block_rows, mixing)


def refuse_cache(cache: object) -> None:
    """Raise ParameterError if draws are to be cached."""
    if cache is not None and cache is not False:
        raise ParameterError(
            "draws are fresh by definition and cannot be cached: pass cache=None (the same seed repeats "
            "the same draws), or use an access with deterministic answers (logits, probabilities)"
        )
