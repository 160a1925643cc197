"""Extraction of the last layer: exact on linear read-outs, silent where nothing is to be seen."""

from dataclasses import dataclass

import numpy as np
import pytest

from lrlm_sim.extraction import hidden_width, logits_from_top, unembedding
from oracles import ISAN, HiddenMarkovModel, LogitAccess, RecurrentOracle, SampleAccess, TopLogitAccess
from oracles.errors import ParameterError


@dataclass(frozen=True, eq=False)
class Readout(RecurrentOracle):
    """softmax(W x) with a pseudo-random hidden vector x per history, rounded to float32 like a network."""

    matrix: np.ndarray
    horizon: int = 12

    def __post_init__(self):
        object.__setattr__(self, "vocab_size", len(self.matrix))

    def first_row(self):
        return np.zeros(1, dtype=np.int64)

    def step(self, position, rows, tokens):
        return (rows * 1_000_003 + tokens[:, None] + 1) % (2**31)

    def laws(self, position, rows):
        width = self.matrix.shape[1]
        hidden = np.stack([np.random.default_rng(int(r)).standard_normal(width) for r in rows[:, 0]])
        logits = (hidden.astype(np.float32) @ self.matrix.T.astype(np.float32)).astype(np.float64)
        return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


@pytest.fixture(name="model")
def _model():
    scales = np.arange(1, 13) ** -0.7  # a power law, as in trained networks
    return Readout(np.random.default_rng(0).standard_normal((60, 12)) * scales)


def test_width_and_unembedding_of_a_float32_readout(model):
    found = hidden_width(LogitAccess(model), rng=0)
    assert found.width == 12
    assert found.confident
    assert found.drop > 1000
    stolen = unembedding(LogitAccess(model), 12, rng=1)
    assert stolen.residual(model.matrix) < 1e-5
    assert unembedding(LogitAccess(model), 9, rng=1).residual(model.matrix) > 1e-2


def test_top_k_and_bias_give_the_same_logits(model):
    access = TopLogitAccess(model, k=5)
    histories = np.random.default_rng(2).integers(0, 60, (7, 3))
    np.testing.assert_allclose(
        logits_from_top(access, histories), LogitAccess(model).logits(histories), atol=1e-9
    )
    assert access.ledger.calls == 7 * 15  # ⌈59 / 4⌉ calls per history
    assert hidden_width(TopLogitAccess(model, k=5), n=64, rng=0).width == 12


def test_no_width_is_claimed_without_a_gap():
    full_rank = Readout(np.random.default_rng(1).standard_normal((20, 20)))
    assert hidden_width(LogitAccess(full_rank), n=80, rng=0).width is None
    smooth = HiddenMarkovModel.random(3, 30, 6, rng=0)
    assert not hidden_width(LogitAccess(smooth), n=8, rng=0).confident


def test_an_isan_shows_its_readout_rank():
    found = hidden_width(LogitAccess(ISAN.random(5, 40, 6, rng=0)), rng=0)
    assert found.width == 5


def test_wrong_inputs_are_typed_errors(model):
    with pytest.raises(ParameterError, match="k ≥ 2"):
        logits_from_top(TopLogitAccess(model, k=1), [[0]])
    with pytest.raises(ParameterError, match="needs LogitAccess"):
        hidden_width(SampleAccess(model))
