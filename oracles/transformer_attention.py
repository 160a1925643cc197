"""Attention of many continuations of one history, whose keys and values are read where they are.

The softmax over [prefix | own] keys is two partial softmaxes with outputs o_p, o_o and log-sum-exps
l_p, l_o, merged as o = o_o + σ(l_p − l_o)·(o_p − o_o). Rows that continue one history ask the same
prefix, which makes the first part one product of (heads, rows·length, d) queries with (heads, prefix, d)
keys; the plain way copies the prefix once per row and layer.

It enters models through the library's own `AttentionInterface`, under the name `NAME`: during a pass the
cache layers offer their prefix, and the attention call that follows takes it. Layers that offer nothing,
and calls that do not look like causal attention over both parts, go the plain way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from oracles.errors import LrlmError

#: Name of the attention in the library's registry.
NAME = "shared_prefix"
#: Arguments of attention functions that change the softmax itself (soft caps, sinks, position biases).
_OTHER_SOFTMAX = ("softcap", "s_aux", "position_bias")

_current: ContextVar[SharedPrefix | None] = ContextVar("shared prefix", default=None)


class PrefixNotReadError(LrlmError, RuntimeError):
    """A layer offered its prefix and the model did not attend to it through the library's interface."""


class SharedPrefix:
    """One forward pass whose rows come in runs that continue one history each.

    Arguments:
        source: for each row of the pass, the row of the cache that it continues.
    """

    def __init__(self, source: Int[Tensor, "batch"]) -> None:
        histories, counts = torch.unique_consecutive(source, return_counts=True)
        self.runs = list(zip(histories.tolist(), counts.tolist(), strict=True))
        self._offer: tuple[Tensor, Tensor] | None = None
        self._causal: Tensor | None = None

    def offer(
        self, keys: Float[Tensor, "cached heads prefix d"], values: Float[Tensor, "cached heads prefix d"]
    ) -> None:
        """The prefixes that the next attention of this pass stands behind."""
        self.finish()
        self._offer = (keys, values)

    def finish(self) -> None:
        """Raise `PrefixNotReadError` if an offer was not taken."""
        if self._offer is not None:
            raise PrefixNotReadError("the model does not call the library's attention interface")

    @contextmanager
    def reading(self, configurations: list[Any]) -> Iterator[None]:
        """Let the models of these configurations attend through `NAME` for the length of a pass."""
        before = [configuration._attn_implementation for configuration in configurations]
        token = _current.set(self)
        try:
            for configuration in configurations:
                configuration._attn_implementation = NAME
            yield
        finally:
            for configuration, name in zip(configurations, before, strict=True):
                configuration._attn_implementation = name
            _current.reset(token)

    def take_offer(self) -> tuple[Tensor, Tensor] | None:
        """Keys and values of the prefix offered last, once."""
        offer, self._offer = self._offer, None
        return offer

    def is_causal(self, mask: Tensor | None, length: int, prefix: int) -> bool:
        """Whether a mask shows all of the prefix and the own tokens up to each; checked once per mask."""
        if mask is None or mask is self._causal:
            return mask is not None or length == 1
        if mask.dtype != torch.bool or mask.shape[-2:] != (length, prefix + length):
            return False
        own = mask[..., prefix:]
        triangle = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
        if not mask[..., :prefix].all() or not torch.equal(own, triangle.expand_as(own)):
            return False
        self._causal = mask
        return True


def configurations_of(model: PreTrainedModel) -> list[Any]:
    """Distinct configurations in a model that choose torch's attention: the ones `NAME` can stand in for."""
    parts = {id(part.config): part.config for part in model.modules() if isinstance(part, PreTrainedModel)}
    return [configuration for configuration in parts.values() if configuration._attn_implementation == "sdpa"]


def shared_prefix_attention(
    module: torch.nn.Module,
    query: Float[Tensor, "batch heads length d"],
    key: Float[Tensor, "batch kv_heads length d"],
    value: Float[Tensor, "batch kv_heads length d"],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "batch length heads d"], None]:
    """The attention function registered as `NAME`; without an offer it is torch's."""
    shared = _current.get()
    offer = None if shared is None else shared.take_offer()
    if shared is None or offer is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    keys, values = offer
    usual = dropout == 0 and all(others.get(name) is None for name in _OTHER_SOFTMAX)
    if usual and shared.is_causal(attention_mask, query.shape[2], keys.shape[2]):
        out = attend_after(keys, values, shared.runs, query, key, value, scaling)
        return out.transpose(1, 2), None
    rows = torch.tensor([row for row, count in shared.runs for _ in range(count)], device=key.device)
    key, value = torch.cat([keys[rows], key], dim=2), torch.cat([values[rows], value], dim=2)
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
    )


AttentionInterface.register(NAME, shared_prefix_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def attend_after(
    keys: Float[Tensor, "cached kv_heads prefix d"],
    values: Float[Tensor, "cached kv_heads prefix d"],
    runs: list[tuple[int, int]],
    query: Float[Tensor, "batch heads length d"],
    key: Float[Tensor, "batch own_heads length d"],
    value: Float[Tensor, "batch own_heads length d"],
    scale: float | None = None,
) -> Float[Tensor, "batch heads length d"]:
    """Causal attention of every row over a shared prefix and its own tokens.

    `runs` are (row of `keys`, number of consecutive rows of the batch that it precedes). Consecutive
    heads share keys where there are fewer of them than queries. The result is laid out for its
    transpose to (batch, length, heads, d).
    """
    batch, heads, length, d = query.shape
    if key.shape[1] < heads:
        key, value = (own.repeat_interleave(heads // own.shape[1], dim=1) for own in (key, value))
    own, own_sums = partial_attention(query, key, value, True, scale)
    shared = keys.shape[1]
    grouped = query.reshape(batch, shared, heads // shared, length, d)
    out = query.new_empty(batch, length, heads, d).transpose(1, 2)
    first = 0
    for row, count in runs:
        part = slice(first, first + count)
        queries = grouped[part].transpose(0, 1)  # all queries of a head under one another
        before, sums = partial_attention(
            queries.reshape(1, shared, -1, d), keys[row : row + 1], values[row : row + 1], False, scale
        )
        before = before.reshape(queries.shape).transpose(0, 1).reshape(own[part].shape)
        sums = sums.reshape(queries.shape[:-1]).transpose(0, 1).reshape(own_sums[part].shape)
        weight = torch.sigmoid(sums - own_sums[part])[..., None].to(own.dtype)
        torch.lerp(own[part], before, weight, out=out[part])
        first += count
    return out


def partial_attention(
    query: Float[Tensor, "batch heads length d"],
    key: Float[Tensor, "batch heads keys d"],
    value: Float[Tensor, "batch heads keys d"],
    causal: bool,
    scale: float | None,
) -> tuple[Float[Tensor, "batch heads length d"], Float[Tensor, "batch heads length"]]:
    """Attention and the log-sum-exp of its scores, by the device's fused kernel that tells both.

    Where there is none (MPS, head widths that the kernels do not take) the scores are formed.
    """
    ops = torch.ops.aten
    if query.device.type == "cpu":
        return ops._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scale)
    if query.device.type == "cuda" and query.shape[-1] % 8 == 0 and query.shape[-1] <= 256:
        if query.dtype in (torch.float16, torch.bfloat16):
            found = ops._scaled_dot_product_flash_attention(
                query, key, value, 0.0, causal, False, scale=scale
            )
            return found[0], found[1]
        found = ops._scaled_dot_product_efficient_attention(
            query, key, value, None, True, 0.0, causal, scale=scale
        )
        return found[0], found[1][..., : query.shape[2]]  # the kernel rounds its length up
    return _plain_attention(query, key, value, causal, scale)


def _plain_attention(
    query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float | None
) -> tuple[Tensor, Tensor]:
    """`partial_attention` by its formula, sums in float32."""
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query @ key.transpose(-1, -2)).float() * factor
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    sums = scores.logsumexp(dim=-1)
    return torch.exp(scores - sums[..., None]).to(value.dtype) @ value, sums
