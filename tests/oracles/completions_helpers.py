"""The model behind the server, and a client of it, that the completions tests share."""

from __future__ import annotations

import numpy as np

from oracles import HiddenMarkovModel, NGram
from oracles.completions import (
    CompletionsOracle,
)
from tests.oracles.completions_server import Limits

A, T = 3, 4


TOP_5 = Limits(top=5, echo=False)


HISTORIES = [[0, 1], [2], [0, 1], [1, 1, 0], [2, 2]]


def hmm(vocab_size: int = A, horizon: int = T, seed: int = 0) -> HiddenMarkovModel:
    return HiddenMarkovModel.random(3, vocab_size, horizon, seed)


def client(server, **options) -> CompletionsOracle:
    """An oracle that loses no time over failures."""
    quick = {"backoff": 0.001, "timeout": 20.0, "attempts": 3, "horizon": server.oracle.horizon}
    return CompletionsOracle(server.url, "m", **quick | options)


def zeros_model() -> NGram:
    """A bigram model in which token 0 never follows itself."""
    laws = np.array([[0.0, 0.3, 0.7], [0.5, 0.5, 0.0], [0.2, 0.2, 0.6]])
    return NGram(2, (np.array([0.2, 0.3, 0.5]), laws), T + 1)
