"""What a TransformerOracle refuses or has to choose: BOS, contexts, horizons, wrong tokens, NaN."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertLMHeadModel

from oracles.errors import HorizonError, NonFiniteError, ParameterError, ShapeError, TokenError
from oracles.transformer import TransformerOracle
from tests.oracles.tiny_transformers import VOCAB, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def llama() -> TransformerOracle:
    return TransformerOracle(tiny_model("llama"), block_tokens=40)


def test_bos_is_found_or_chosen():
    tokens = np.arange(2 * 5).reshape(2, 5)
    bare, model = tiny_model("llama-without-bos"), tiny_model("llama")
    own, explicit = TransformerOracle(model), TransformerOracle(bare, bos_token_id=1)
    assert own.bos_token_id == explicit.bos_token_id == 1
    assert np.abs(own.next_log_probs(tokens) - explicit.next_log_probs(tokens)).max() <= 1e-4
    assert TransformerOracle(model, bos_token_id=7).bos_token_id == 7
    assert TransformerOracle(model, bos_token_id="none").bos_token_id is None
    assert TransformerOracle(bare, tiny_tokenizer(), bos_token_id=None).bos_token_id == 3
    assert TransformerOracle(tiny_model("gpt2")).bos_token_id is None  # its default, 50256, is no token here
    with pytest.raises(ParameterError, match="bos_token_id"):
        TransformerOracle(model, bos_token_id=VOCAB)


def test_contexts_are_limited_by_the_position_embeddings(llama):
    assert llama.next_log_probs([np.ones(63, dtype=int)]).shape == (1, VOCAB)
    state = llama.advance(llama.start(1), np.ones((1, 40), dtype=int))
    for ask in (
        lambda: llama.next_log_probs([np.ones(64, dtype=int)]),
        lambda: llama.advance(state, np.ones((1, 24), dtype=int)),
        lambda: llama.extended_log_probs([np.ones(40, dtype=int)], [np.ones(24, dtype=int)]),
        lambda: llama.score(np.ones((1, 65), dtype=int)),
        lambda: llama.sample(1, 0, length=65),
        lambda: TransformerOracle(llama.model, horizon=64),
    ):
        with pytest.raises(HorizonError, match=r"max_position_embeddings = 64 tokens, got 65"):
            ask()
    assert TransformerOracle(tiny_model("mamba")).next_log_probs([np.ones(99, dtype=int)]).shape == (1, VOCAB)


def test_a_horizon_can_be_given(llama):
    oracle = TransformerOracle(llama.model, horizon=4)
    assert llama.horizon is None
    assert oracle.horizon == 4
    assert oracle.sample(3, 0).shape == (3, 4)
    full = oracle.advance(oracle.start(1), [[1, 2, 3, 4]])
    for ask in (
        lambda: oracle.log_probs(full),
        lambda: oracle.advance(full, [1]),
        lambda: oracle.next_log_probs([[1, 2, 3, 4]]),
        lambda: oracle.extended_log_probs([[1, 2]], [[3, 4]]),
        lambda: oracle.score([[1, 2, 3, 4, 5]]),
        lambda: llama.sample(1),
    ):
        with pytest.raises(HorizonError):
            ask()


def test_wrong_tokens_and_shapes(llama):
    state = llama.start(2)
    with pytest.raises(TokenError):
        llama.advance(state, [0, VOCAB])
    with pytest.raises(TokenError):
        llama.next_log_probs([[0.5]])
    with pytest.raises(ShapeError):
        llama.advance(state, [0, 1, 2])
    with pytest.raises(ShapeError):
        llama.take(state, [2])


def test_only_causal_pretrained_models():
    with pytest.raises(ParameterError, match="PreTrainedModel"):
        TransformerOracle(torch.nn.Linear(2, 2))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    encoder = BertLMHeadModel(BertConfig(vocab_size=VOCAB, initializer_range=0.3, **sizes))
    with pytest.raises(ParameterError, match="not causal"):
        TransformerOracle(encoder).next_log_probs([[1, 2]])


def test_a_training_model_is_put_into_evaluation_mode():
    model = tiny_model("gpt2").train()
    oracle = TransformerOracle(model)
    first, second = oracle.next_log_probs([[1, 2, 3]]), oracle.next_log_probs([[1, 2, 3]])
    assert np.array_equal(first, second)
    assert not model.training


def test_nan_logits_are_an_error():
    model = tiny_model("llama")
    oracle = TransformerOracle(model)
    oracle.next_log_probs([[1]])
    with torch.no_grad():
        model.lm_head.weight[5, 0] = torch.nan
    for ask in (
        lambda: oracle.next_log_probs([[1, 2]]),
        lambda: oracle.score([[1, 2]]),
        lambda: oracle.log_probs(oracle.start(1)),
        lambda: TransformerOracle(model).next_log_probs([[1, 2]]),
    ):
        with pytest.raises(NonFiniteError, match="half precision"):
            ask()
    with pytest.raises(NonFiniteError, match="dtype='float32'"):
        TransformerOracle(model.bfloat16()).next_log_probs([[1, 2]])
