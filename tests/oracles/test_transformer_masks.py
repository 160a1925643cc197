"""Models that mask tokens of their output layer: never emitted, whatever number stands for it."""

from functools import wraps

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from oracles import restricted, transformer_network, transformer_plan
from oracles.errors import ZeroProbabilityError
from oracles.transformer import TransformerOracle
from tests.oracles.tiny_transformers import VOCAB, tiny_model

NEVER = [7, 48, 49]
KEPT = np.setdiff1d(np.arange(VOCAB), NEVER)


class MaskedLlama(LlamaForCausalLM):
    """Answers `mask` for the tokens of NEVER."""

    mask = -1e9

    @wraps(LlamaForCausalLM.forward)  # its cache is found by the name of the argument
    def forward(self, *arguments, **named):
        out = super().forward(*arguments, **named)
        out.logits[..., NEVER] = self.mask
        return out


def masked_model(mask: float):
    plain = tiny_model("llama")
    model = MaskedLlama(plain.config).eval()
    model.load_state_dict(plain.state_dict())
    model.mask = mask
    return TransformerOracle(model), TransformerOracle(plain)


@pytest.fixture(params=[-1e9, -65504.0, torch.finfo(torch.float32).min, -torch.inf])
def pair(request):
    return masked_model(request.param)


def test_masked_tokens_have_probability_zero_by_every_question(pair):
    oracle, _ = pair
    histories, futures = [[3], [4, 5]], [[], [6, 9]]
    laws = oracle.extended_log_probs(histories, futures)
    assert np.isneginf(laws[..., NEVER]).all()
    assert np.isfinite(laws[..., KEPT]).all()
    np.testing.assert_allclose(np.exp(laws).sum(axis=-1), 1, rtol=1e-12)
    flat = oracle.next_log_probs([[3], [3, 6, 9], [4, 5], [4, 5, 6, 9]])
    np.testing.assert_allclose(flat[:, KEPT], laws.reshape(4, -1)[:, KEPT], atol=1e-5)
    state = oracle.advance(oracle.start(1), [[4, 5]])
    assert np.isneginf(oracle.log_probs(state)[0, NEVER]).all()
    np.testing.assert_array_equal(oracle.score([[3, 7], [3, 8]]) == -np.inf, [True, False])
    assert not np.isin(oracle.sample(50, rng=0, length=4), NEVER).any()


def test_their_cache_is_measured_on_the_other_tokens(pair, monkeypatch):
    assert pair[0].network.abilities.continuation == "chunks"
    network = masked_model(-1e9)[0].network
    forward = network._forward

    def astray(tokens, places, cache, use_cache, watch):
        reading = forward(tokens, places, cache, use_cache, watch)
        wrong = reading.logits if cache is None else reading.logits + torch.arange(VOCAB) % 2
        return transformer_network.Reading(wrong, reading.hidden, reading.memory)

    monkeypatch.setattr(network, "_forward", astray)
    assert network.abilities.continuation == "recompute"


def test_centred_logits_are_refused_and_those_of_the_other_tokens_are_had_by_restricting(pair):
    oracle, plain = pair
    assert oracle.unembedding() is None
    with pytest.raises(ZeroProbabilityError, match="restricted"):
        oracle.kept_logits([[3]], [[]], np.array([[4, 5]]))
    logits = restricted(oracle, KEPT).kept_logits([[3]], [[2]], np.array([[4, 5]]))[0, 0]
    law = plain.next_log_probs([[3, KEPT[2]]])[0, KEPT]
    np.testing.assert_allclose(logits, (law - law.mean())[[4, 5]], atol=1e-5)


def test_packed_weights_are_not_used_where_a_model_does_more_to_its_logits(monkeypatch):
    pytest.importorskip("numba")
    monkeypatch.setattr(transformer_network, "_LEAST_PACKED", 0)
    monkeypatch.setattr(transformer_plan, "_LEAST_SAVED", 1 << 60)
    oracle, plain = masked_model(-1e9)
    assert plain.network.packed(1, 1, None) is not None
    assert oracle.network.packed(1, 1, None) is None


def test_small_logits_are_no_masks():
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[5] = 0
        model.lm_head.weight[:5] *= 300.0
    laws = TransformerOracle(model).next_log_probs([[3], [4, 5]])
    assert laws.min() < -500
    assert np.isfinite(laws).all()
