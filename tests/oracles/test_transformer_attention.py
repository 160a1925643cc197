"""Attention over shared prefixes: against the plain way, kernel by kernel and inside models."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from oracles.transformer import TransformerOracle
from oracles.transformer_attention import (
    NAME,
    PrefixNotReadError,
    SharedPrefix,
    _plain_attention,
    attend_after,
    configurations_of,
    partial_attention,
    shared_prefix_attention,
)
from tests.oracles.tiny_transformers import configuration, tiny_model


def masked_attention(keys, values, runs, query, key, value, mask, scale=None):
    """The plain way: prefixes copied for every row, and heads for every query."""
    rows = [row for row, count in runs for _ in range(count)]
    both = (torch.cat([a[rows], b], dim=2) for a, b in ((keys, key), (values, value)))
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in both)
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def random_attention(kv_heads: int, heads: int, prefix: int, length: int) -> tuple[torch.Tensor, ...]:
    """Keys and values of 3 prefixes; queries, keys and values of 6 rows."""
    shapes = [(3, kv_heads, prefix), (3, kv_heads, prefix), (6, heads, length)] + [(6, kv_heads, length)] * 2
    generator = torch.Generator().manual_seed(0)
    return tuple(3 * torch.randn(*shape, 8, generator=generator) for shape in shapes)


@pytest.mark.parametrize(("kv_heads", "heads"), [(4, 4), (2, 6), (1, 3)])
@pytest.mark.parametrize(("prefix", "length"), [(5, 3), (40, 1), (1, 7)])
def test_attention_over_shared_prefixes(kv_heads, heads, prefix, length):
    keys, values, query, key, value = random_attention(kv_heads, heads, prefix, length)
    runs, mask = [(2, 3), (0, 1), (2, 2)], torch.ones(length, prefix + length, dtype=torch.bool).tril(prefix)
    expected = masked_attention(keys, values, runs, query, key, value, mask)
    assert (attend_after(keys, values, runs, query, key, value) - expected).abs().max() <= 1e-5
    repeated = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (key, value))
    assert (attend_after(keys, values, runs, query, *repeated) - expected).abs().max() <= 1e-5


class Layer(torch.nn.Module):
    """What an attention function sees of the layer that calls it."""

    is_causal = False
    num_key_value_groups = 1


@pytest.mark.parametrize("kind", ["causal", "scale", "window", "bias", "no mask"])
def test_only_causal_attention_reads_prefixes_in_place(kind):
    keys, values, query, key, value = random_attention(2, 2, 5, 3)
    mask = torch.ones(1, 1, 3, 8, dtype=torch.bool).tril(5)
    if kind == "window":
        mask &= torch.ones(3, 8, dtype=torch.bool).triu(3)
    if kind == "bias":
        mask = torch.where(mask, torch.arange(8.0), -torch.inf)
    if kind == "no mask":
        mask = None
    scale = 0.1 if kind == "scale" else None
    shared, runs = SharedPrefix(torch.tensor([2, 2, 2, 0, 2, 2])), [(2, 3), (0, 1), (2, 2)]
    assert shared.runs == runs
    with shared.reading([]):
        shared.offer(keys, values)
        found, _ = shared_prefix_attention(Layer(), query, key, value, mask, scaling=scale)
        alone, _ = shared_prefix_attention(Layer(), query, key, value, None)  # nothing was offered
    expected = masked_attention(keys, values, runs, query, key, value, mask, scale)
    assert (found.transpose(1, 2) - expected).abs().max() <= 1e-5
    plain = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    assert torch.equal(alone.transpose(1, 2), plain)
    shared.finish()
    shared.offer(keys, values)
    with pytest.raises(PrefixNotReadError, match="attention interface"):
        shared.finish()


@pytest.mark.parametrize("causal", [False, True])
def test_partial_attention_and_its_log_sum_exp(causal):
    _, _, query, key, value = random_attention(2, 2, 1, 7)
    found, sums = partial_attention(query, key, value, causal, 0.3)
    plain, plain_sums = _plain_attention(query, key, value, causal, 0.3)
    scores = 0.3 * query @ key.transpose(-1, -2)
    if causal:
        scores = scores + torch.full((7, 7), -torch.inf).triu(1)
    assert (sums - scores.logsumexp(-1)).abs().max() <= 1e-5
    assert (found - scores.softmax(-1) @ value).abs().max() <= 1e-5
    assert (plain - found).abs().max() <= 1e-5
    assert (plain_sums - sums).abs().max() <= 1e-5


def test_models_attend_through_the_registered_name_only_during_a_pass():
    model = tiny_model("llama")
    found = configurations_of(model)
    assert [id(each) for each in found] == [id(model.config)]
    shared = SharedPrefix(torch.tensor([0]))
    with shared.reading(found):
        assert model.config._attn_implementation == NAME
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(ZeroDivisionError), shared.reading(found):
        raise ZeroDivisionError
    assert model.config._attn_implementation == "sdpa"


def test_a_model_that_attends_its_own_way_copies_prefixes_instead():
    config = configuration("llama")
    config._attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = type(tiny_model("llama"))(config).eval()
    eager, usual = TransformerOracle(model), TransformerOracle(tiny_model("llama"))
    assert eager.network.abilities.continuation == usual.network.abilities.continuation == "chunks"
    assert not eager.network.abilities.shares_prefix
    assert usual.network.abilities.shares_prefix
    rng = np.random.default_rng(0)
    histories, futures = rng.integers(0, 50, (3, 12)), rng.integers(0, 50, (40, 3))
    pair = [oracle.extended_log_probs(histories, futures) for oracle in (eager, usual)]
    assert np.abs(pair[0] - pair[1]).max() <= 1e-4


def test_long_prefixes_are_read_in_place(monkeypatch):
    oracle, calls = TransformerOracle(tiny_model("llama")), []
    read = SharedPrefix.take_offer
    assert oracle.network.abilities.shares_prefix
    monkeypatch.setattr(SharedPrefix, "take_offer", lambda self: calls.append(1) or read(self))
    rng = np.random.default_rng(0)
    oracle.extended_log_probs(rng.integers(0, 50, (2, 12)), rng.integers(0, 50, (40, 3)))
    assert len(calls) == oracle.model.config.num_hidden_layers  # one pass for both histories
