"""Packed decoders against the models they pack."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, Qwen2Config

pytest.importorskip("numba")

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from oracles import transformer_network, transformer_plan
from oracles.errors import NonFiniteError
from oracles.transformer import TransformerOracle
from oracles.transformer_packed import PackedDecoder
from tests.oracles.tiny_transformers import tiny_model

VOCAB = 60
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 1,
}
CONFIGURATIONS = {
    "llama": LlamaConfig(**SHAPE),
    "one layer": LlamaConfig(**{**SHAPE, "num_hidden_layers": 1}),
    "wide heads": LlamaConfig(**SHAPE, head_dim=16),
    "scaled rotation": LlamaConfig(
        **SHAPE, rope_scaling={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    ),
    "odd sizes": LlamaConfig(
        **{
            **SHAPE,
            "hidden_size": 30,
            "intermediate_size": 37,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
        }
    ),
    "biases": Qwen2Config(**SHAPE),
    "mistral": MistralConfig(**SHAPE, sliding_window=None),
}


def build(config, seed: int = 0):
    """Random weights; norms' gains and biases too, which a new model has at one and zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter += 0.3 * torch.randn_like(parameter)
    return model


@pytest.fixture
def eager_to_pack(monkeypatch):
    """Pack for questions of any size."""
    monkeypatch.setattr(transformer_network, "_LEAST_PACKED", 1)


def without_packing(model) -> TransformerOracle:
    """The same model, read through the library alone."""
    oracle = TransformerOracle(model)
    oracle.network.packed = lambda *_: None
    return oracle


def packed(oracle: TransformerOracle) -> bool:
    """Whether the oracle has packed its weights and trusts them."""
    return oracle.network._packed is not None and oracle.network._packed[1] is not None


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("threads", [1, 2])
def test_packed_decoders_answer_as_their_models_do(name, threads, eager_to_pack):
    model, rng = build(CONFIGURATIONS[name]), np.random.default_rng(0)
    oracle, plain = TransformerOracle(model), without_packing(model)
    histories = [rng.integers(0, VOCAB, n).tolist() for n in (9, 9, 0, 4)]
    futures = [rng.integers(0, VOCAB, n).tolist() for n in (5, 5, 3, 0, 7, 5, 1)]
    futures += [futures[4][:2], futures[4][:6], futures[0]]  # several reads of one string, and a repeat
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = oracle.extended_log_probs(histories, futures)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert packed(oracle)
    assert np.abs(found - plain.extended_log_probs(histories, futures)).max() <= 2e-4
    strings = [[*h, *f] for h in histories for f in futures]
    assert np.abs(oracle.next_log_probs(strings) - plain.next_log_probs(strings)).max() <= 2e-4
    sequences = rng.integers(0, VOCAB, (6, 8))
    assert np.abs(oracle.score(sequences, [3, 4]) - plain.score(sequences, [3, 4])).max() <= 1e-3
    states = [each.final_hidden_states(histories[:2], futures) for each in (oracle, plain)]
    assert np.abs(states[0] - states[1]).max() <= 2e-4 * np.abs(states[1]).max()


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (3, 33)])
def test_strings_read_by_packed_weights_leave_the_cache_of_the_library(name, shape):
    model, rng = build(CONFIGURATIONS[name]), np.random.default_rng(5)
    tokens = rng.integers(0, VOCAB, shape)
    hidden, cache = PackedDecoder(model).remember(tokens)
    with torch.inference_mode():
        out = model.model(torch.from_numpy(tokens), use_cache=True)
    expected = out.last_hidden_state[:, -1].numpy()
    assert np.abs(hidden - expected).max() <= 2e-5 * np.abs(expected).max()
    memory = out.past_key_values
    assert cache.get_seq_length() == memory.get_seq_length() == shape[1]
    for found, layer in zip(cache.layers, memory.layers, strict=True):
        for ours, theirs in ((found.keys, layer.keys), (found.values, layer.values)):
            assert ours.shape == theirs.shape
            assert (ours - theirs).abs().max() <= 2e-5 * theirs.abs().max()


@pytest.mark.parametrize("part", ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "norm"])
def test_nan_in_any_weight_reaches_every_answer(part):
    model, rng = build(CONFIGURATIONS["llama"]), np.random.default_rng(6)
    with torch.no_grad():
        for layer, weight in model.named_parameters():
            if f".{part}." in layer and ("layers.1." in layer or part == "norm"):
                weight.view(-1)[3] = torch.nan
    hidden, _ = PackedDecoder(model).remember(rng.integers(0, VOCAB, (4, 9)))
    assert np.isnan(hidden).any(axis=1).all()


def test_answers_do_not_depend_on_the_strings_beside(eager_to_pack):
    oracle, rng = TransformerOracle(build(CONFIGURATIONS["llama"])), np.random.default_rng(1)
    histories, futures = rng.integers(0, VOCAB, (3, 6)), rng.integers(0, VOCAB, (90, 9))
    whole = oracle.extended_log_probs(histories, futures)
    alone = oracle.extended_log_probs(histories[1:2], futures[70:71])
    assert np.abs(whole[1, 70] - alone[0, 0]).max() <= 1e-4


def test_changed_weights_are_packed_again(eager_to_pack):
    model, rng = build(CONFIGURATIONS["llama"]), np.random.default_rng(2)
    oracle, plain = TransformerOracle(model), without_packing(model)
    histories, futures = rng.integers(0, VOCAB, (2, 6)), rng.integers(0, VOCAB, (8, 4))
    before = oracle.extended_log_probs(histories, futures)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1.5)
    after = oracle.extended_log_probs(histories, futures)
    assert np.abs(after - before).max() > 1e-2
    assert np.abs(after - plain.extended_log_probs(histories, futures)).max() <= 2e-4


@pytest.mark.parametrize(
    "why", ["family", "half precision", "window", "width", "activation", "no numba", "hook"]
)
def test_other_models_go_through_the_library(why, monkeypatch):
    model = tiny_model("olmo2") if why == "family" else build(CONFIGURATIONS["llama"])
    if why == "half precision":
        model = model.half()
    if why == "window":
        model = build(MistralConfig(**SHAPE, sliding_window=4))
    if why == "width":
        monkeypatch.setattr("oracles.transformer_packed._WIDEST", 16)
    if why == "activation":
        model = build(LlamaConfig(**SHAPE, hidden_act="gelu"))
    if why == "hook":
        model.model.layers[0].register_forward_hook(lambda module, inputs, output: None)
    if why == "no numba":
        monkeypatch.setattr("oracles.transformer_packed.compiled_kernels", lambda: None)
    assert not PackedDecoder.fits(model)


def test_a_packed_decoder_that_disagrees_with_its_model_is_not_used(eager_to_pack, monkeypatch):
    model, rng = build(CONFIGURATIONS["llama"]), np.random.default_rng(3)
    model.model.layers[1].self_attn.scaling *= 3  # the packed weights know it; the broken ones below do not
    pack = PackedDecoder._pack

    def forget(self, layer):
        scaling, layer.self_attn.scaling = layer.self_attn.scaling, self.sizes.d**-0.5
        try:
            return pack(self, layer)
        finally:
            layer.self_attn.scaling = scaling

    monkeypatch.setattr(PackedDecoder, "_pack", forget)
    oracle = TransformerOracle(model)
    histories, futures = rng.integers(0, VOCAB, (2, 6)), rng.integers(0, VOCAB, (8, 4))
    found = oracle.extended_log_probs(histories, futures)
    assert not packed(oracle)
    assert np.abs(found - without_packing(model).extended_log_probs(histories, futures)).max() <= 2e-4


def test_broken_weights_are_an_error_in_packed_form_too(eager_to_pack):
    model, rng = build(CONFIGURATIONS["llama"]), np.random.default_rng(4)
    oracle = TransformerOracle(model)
    histories, futures = rng.integers(0, VOCAB - 1, (2, 6)), rng.integers(0, VOCAB - 1, (8, 4))
    oracle.extended_log_probs(histories, futures)
    assert packed(oracle)
    with torch.no_grad():
        model.model.embed_tokens.weight[VOCAB - 1] = torch.nan
    futures[3, 1] = VOCAB - 1
    with pytest.raises(NonFiniteError):
        oracle.extended_log_probs(histories, futures)


def test_errors_in_a_thread_are_raised_and_the_rest_is_dropped():
    done = []

    def work(job: np.ndarray) -> None:
        if job[0] == 0:
            raise ZeroDivisionError
        done.append(job)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError):
            transformer_plan.in_parallel(work, [np.array([i % 50]) for i in range(200)])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_small_questions_are_not_worth_packing():
    oracle = TransformerOracle(LlamaForCausalLM(CONFIGURATIONS["llama"]).eval())
    oracle.next_log_probs([[1, 2, 3]])
    assert oracle.network._packed is None
