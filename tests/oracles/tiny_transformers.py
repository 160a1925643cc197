"""Small random models of many families, built from their configurations: nothing is downloaded."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    Olmo2Config,
    OlmoConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

VOCAB = 50
_ATTENTION = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GEMMA = {**_ATTENTION, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8}


def configuration(family: str) -> PretrainedConfig:
    """Two layers, width 16, 50 tokens; Gemma with a window of 4 tokens, so that it slides in the tests."""
    match family:
        case "llama":
            return LlamaConfig(**_ATTENTION)
        case "llama-without-bos":
            return LlamaConfig(**{**_ATTENTION, "bos_token_id": None})
        case "gpt2":
            return GPT2Config(
                vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.2
            )
        case "gptj":
            return GPTJConfig(
                vocab_size=VOCAB,
                n_embd=16,
                n_layer=2,
                n_head=2,
                n_positions=64,
                rotary_dim=4,
                initializer_range=0.2,
                bos_token_id=1,
            )
        case "olmo":
            return OlmoConfig(**{**_ATTENTION, "bos_token_id": None})
        case "olmo2":
            return Olmo2Config(**{**_ATTENTION, "bos_token_id": None})
        case "gemma2":
            return Gemma2Config(**_GEMMA)
        case "gemma3":
            return Gemma3TextConfig(**_GEMMA, layer_types=["sliding_attention", "full_attention"])
        case "granite":
            return GraniteConfig(**_ATTENTION, logits_scaling=4.0)
        case "cohere":
            return CohereConfig(**_ATTENTION, logit_scale=0.25)
        case "mamba":
            return MambaConfig(
                vocab_size=VOCAB,
                hidden_size=16,
                state_size=4,
                num_hidden_layers=2,
                conv_kernel=3,
                time_step_rank=2,
                initializer_range=0.2,
                bos_token_id=1,
            )
    raise ValueError(family)


#: Families whose every operation is tested.
FAMILIES = ("llama", "gpt2", "olmo", "olmo2", "gemma2", "gemma3", "mamba")


def tiny_model(family: str, seed: int = 0) -> PreTrainedModel:
    """Random weights in float32, in evaluation mode."""
    config = configuration(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    words = {word: i for i, word in enumerate(["<unk>", "the", "cat", "<s>", "sat"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")
