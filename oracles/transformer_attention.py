"""Attention of many continuations of one history, whose keys and values are read where they are.

The softmax over [prefix | own] keys is two partial softmaxes with outputs o_p, o_o and log-sum-exps
l_p, l_o, merged as o = o_o + σ(l_p − l_o)·(o_p − o_o). Rows that continue one history ask the same
prefix, which makes the first part one product of (heads, rows·length, d) queries with (heads, prefix, d)
keys; the plain way copies the prefix once per row and layer.

The cache layers of a pass offer their prefix, and the mode below takes the call of
`scaled_dot_product_attention` that follows. What does not look like causal attention over both parts
goes the plain way; models that call something else are found out by the measurement in
`transformer_network`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.overrides import TorchFunctionMode

from oracles.errors import LrlmError

_sdpa = torch.nn.functional.scaled_dot_product_attention


class PrefixNotReadError(LrlmError, RuntimeError):
    """A layer offered its prefix and the model did not attend to it with `scaled_dot_product_attention`."""


class SharedPrefix(TorchFunctionMode):
    """Context of one forward pass whose rows come in runs that continue one history each.

    Arguments:
        source: for each row of the pass, the row of the cache that it continues.
    """

    def __init__(self, source: Int[Tensor, "batch"]) -> None:
        super().__init__()
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
            raise PrefixNotReadError("the model does not call scaled_dot_product_attention after its cache")

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is _sdpa and self._offer is not None:
            (keys, values), self._offer = self._offer, None
            return self._attend(keys, values, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attend(
        self,
        keys: Tensor,
        values: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if dropout_p == 0 and not is_causal and self._is_causal(attn_mask, query.shape[2], keys.shape[2]):
            return attend_after(keys, values, self.runs, query, key, value, scale)
        rows = [row for row, count in self.runs for _ in range(count)]
        key, value = (
            torch.cat([before[rows].repeat_interleave(own.shape[1] // before.shape[1], dim=1), own], dim=2)
            for before, own in ((keys, key), (values, value))
        )
        return _sdpa(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)

    def _is_causal(self, mask: Tensor | None, length: int, prefix: int) -> bool:
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


def attend_after(
    keys: Float[Tensor, "cached kv_heads prefix d"],
    values: Float[Tensor, "cached kv_heads prefix d"],
    runs: list[tuple[int, int]],
    query: Float[Tensor, "batch heads length d"],
    key: Float[Tensor, "batch own_heads length d"],
    value: Float[Tensor, "batch own_heads length d"],
    scale: float | None = None,
) -> Float[Tensor, "batch heads length d"]:
    """Causal attention of every row over a shared prefix and its own tokens (CPU kernels).

    `runs` are (row of `keys`, number of consecutive rows of the batch that it precedes). Consecutive
    heads share keys where there are fewer of them than queries.
    """
    batch, heads, length, d = query.shape
    if key.shape[1] < heads:
        key, value = (own.repeat_interleave(heads // own.shape[1], dim=1) for own in (key, value))
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    own, own_lse = flash(query, key, value, 0.0, True, scale=scale)
    shared = keys.shape[1]
    grouped = query.reshape(batch, shared, heads // shared, length, d)
    out, first = torch.empty_like(own), 0
    for row, count in runs:
        part = slice(first, first + count)
        queries = grouped[part].transpose(0, 1)  # all queries of a head under one another
        before, lse = flash(
            queries.reshape(1, shared, -1, d), keys[row : row + 1], values[row : row + 1], scale=scale
        )
        before = before.reshape(queries.shape).transpose(0, 1).reshape(own[part].shape)
        lse = lse.reshape(queries.shape[:-1]).transpose(0, 1).reshape(own_lse[part].shape)
        weight = torch.sigmoid(lse - own_lse[part])[..., None].to(own.dtype)
        out[part] = torch.lerp(own[part], before, weight)
        first += count
    return out
