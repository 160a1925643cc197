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


def noisy_readout(width, vocab, noise, seed=0):
    """Readout in float64 whose logits carry independent errors, a function of history and token."""

    @dataclass(frozen=True, eq=False)
    class Noisy(Readout):
        def laws(self, position, rows):
            logits = super().laws(position, rows)
            errors = [np.random.default_rng(int(r) + 7).standard_normal(logits.shape[1]) for r in rows[:, 0]]
            logits = logits + noise * np.stack(errors)
            return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)

    scales = np.arange(1, width + 1) ** -0.7
    return Noisy(np.random.default_rng(seed).standard_normal((vocab, width)) * scales)


def test_the_bound_on_noise_holds_and_is_not_idle():
    """Noise of known size: its largest singular value stays below the bound, and within a factor of two."""
    found = hidden_width(LogitAccess(noisy_readout(12, 60, 1e-4)), n=200, rng=0)
    assert (found.width, found.confident, found.at_least, found.reason) == (12, True, 12, "")
    assert found.singular_values[12] < found.noise < 2.5 * found.singular_values[12]
    given = hidden_width(LogitAccess(noisy_readout(12, 60, 1e-4)), n=200, rng=0, noise=1e-4)
    assert given.confident
    assert found.singular_values[12] < given.noise < found.noise


def test_noise_above_the_last_directions_leaves_a_lower_bound_and_no_claim():
    """The least singular value of the signal is about 2, of 7 at n = 200; noise of .15 reaches 3."""
    access = LogitAccess(noisy_readout(12, 60, 0.3))
    blind = hidden_width(access, n=200, rng=0)
    assert not blind.confident
    assert blind.reason
    told = hidden_width(access, n=200, rng=0, noise=0.3)
    assert told.width is None or not told.confident
    assert 2 <= told.at_least <= 12


def test_a_missed_direction_is_not_taken_for_noise():
    """A gap of 100 within the network's own directions: what is left is too large for noise."""
    scales = np.r_[np.ones(6), 1e-3, 1e-3]
    model = Readout(np.random.default_rng(3).standard_normal((60, 8)) * scales)
    found = hidden_width(LogitAccess(model), n=200, rng=0)
    assert (found.width, found.confident) == (6, False) or found.width == 8
    assert not (found.width == 6 and found.confident)


@pytest.mark.parametrize("tokens", [None, 5], ids=["full logits", "top 5 and bias"])
def test_networks_with_padded_vocabularies(tokens):
    """Rows of the unembedding beyond the tokenizer are zero, as in padded checkpoints."""
    torch = pytest.importorskip("torch")
    from oracles.transformer import TransformerOracle
    from tests.oracles.tiny_transformers import VOCAB, tiny_model

    network = tiny_model("llama")
    with torch.no_grad():
        network.get_output_embeddings().weight[VOCAB - 10 :] = 0
    model = TransformerOracle(network)
    access = LogitAccess(model) if tokens is None else TopLogitAccess(model, k=tokens)
    found = hidden_width(access, n=64, rng=0)
    assert (found.width, found.confident) == (16, True)
    assert unembedding(access, 16, rng=1).residual(model.unembedding()) < 1e-4


def test_half_precision_gives_no_false_width():
    torch = pytest.importorskip("torch")
    from oracles.transformer import TransformerOracle
    from tests.oracles.tiny_transformers import tiny_model

    found = hidden_width(LogitAccess(TransformerOracle(tiny_model("llama").to(torch.bfloat16))), n=100, rng=0)
    assert found.width == 16 or not found.confident
    assert found.at_least <= 16


def test_a_network_wider_than_its_vocabulary_says_so():
    wide = Readout(np.random.default_rng(1).standard_normal((20, 30)))
    found = hidden_width(LogitAccess(wide), n=100, rng=0)
    assert found.width is None
    assert "at least min(histories, vocab_size − 1) = 19" in found.reason
