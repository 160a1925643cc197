"""Caches of the `transformers` library as values, and the states made of them.

The library updates a cache in place during every forward pass. Here a pass gets a copy that shares
what it does not change, so that an earlier cache stays good for ever. Which sharing is safe is known
by the class of each layer: attention layers append to new tensors, recurrent layers write into theirs.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import cache_utils
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from oracles.transformer_attention import SharedPrefix

#: What a model remembers of the tokens read: a cache, or the tokens themselves, shape (batch, length).
Memory = Cache | Tensor

#: Cache layers whose update makes new tensors and leaves the old ones alone (DummyLayer: transformers 5).
_APPENDING = tuple(
    vars(cache_utils)[name]
    for name in ("DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer")
    if name in vars(cache_utils)
)
#: Cache layers that keep dictionaries of convolution and recurrent states (transformers 5).
_RECURRENT = tuple(vars(cache_utils)[name] for name in ("LinearAttentionLayer",) if name in vars(cache_utils))


@dataclass(frozen=True, eq=False)
class TransformerState:
    """`batch` histories of `length` tokens (BOS not counted), their memory and their next-token logits.

    Nothing has been read as long as `memory` is None. A state is a value: no operation changes it.
    """

    batch: int
    length: int
    memory: Memory | None
    logits: Float[Tensor, "batch vocab"] | None


def take_memory(memory: Memory, rows: Int[Tensor, "n"]) -> Memory:
    """The memory of the given batch rows, repeated or reordered."""
    return memory[rows] if isinstance(memory, Tensor) else own_cache(memory, rows)


def appends_only(cache: Cache) -> bool:
    """Whether all layers hold keys and values that only grow: several tokens at once can follow."""
    return all(type(layer) in _APPENDING for layer in cache.layers)


def own_cache(cache: Cache, rows: Int[Tensor, "n"] | None) -> Cache:
    """A cache (of the given rows) that a pass may update without changing the one given."""
    view: Any = copy.copy(cache)
    view.layers = [_own_layer(layer, rows) for layer in cache.layers]
    return view


def borrowed_cache(cache: Cache, rows: Int[Tensor, "n"], shared: SharedPrefix | None) -> Cache:
    """Rows of a cache for one pass whose result is not kept; for caches that only append.

    With `shared`, layers offer their rows to attention instead of repeating them.
    """
    view: Any = copy.copy(cache)
    view.layers = [_borrowed_layer(layer, rows, shared) for layer in cache.layers]
    return view


class _BorrowedKeys:
    """Mixin of cache layers: rows of another layer's keys and values, which an update never stores.

    A repeated prefix lives for one layer of one pass instead of all layers of all futures.
    """

    keys: Any
    values: Any

    def __init__(self, layer: Any, rows: Tensor, shared: SharedPrefix | None) -> None:
        self.__dict__.update(vars(layer))
        self.rows = rows
        self.shared = shared

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of the prefix followed by the new ones, or these alone, the prefix offered."""
        if self.shared is not None:
            self.shared.offer(self.keys, self.values)
            return key_states, value_states
        return (
            torch.cat([_spread(self.keys, self.rows), key_states], dim=-2),
            torch.cat([_spread(self.values, self.rows), value_states], dim=-2),
        )


class _Borrowed(_BorrowedKeys, DynamicLayer):
    pass


class _BorrowedSliding(_BorrowedKeys, DynamicSlidingWindowLayer):
    pass


def _borrowed_layer(layer: Any, rows: Tensor, shared: SharedPrefix | None) -> Any:
    if layer.keys is None:  # a layer that has no keys of its own
        return copy.copy(layer)
    if isinstance(layer, DynamicSlidingWindowLayer):  # how much of the prefix is seen depends on the token
        return _BorrowedSliding(layer, rows, None)
    return _Borrowed(layer, rows, shared)


def _own_layer(layer: Any, rows: Tensor | None) -> Any:
    if type(layer) in _APPENDING:
        layer = copy.copy(layer)
        if rows is not None and layer.keys is not None:
            layer.keys, layer.values = _spread(layer.keys, rows), _spread(layer.values, rows)
        return layer
    # updated in place: nothing may be shared, unless selecting rows makes new tensors anyway
    selects = rows is not None and isinstance(layer, _RECURRENT)
    layer = _copy_containers(layer) if selects else copy.deepcopy(layer)
    if rows is not None:
        layer.reorder_cache(rows)
    return layer


def _copy_containers(layer: Any) -> Any:
    """A twin of a cache layer whose attributes can be rebound without changing the layer's."""
    twin = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, dict):
            setattr(twin, name, dict(value))
    return twin


def _spread(values: Tensor, rows: Tensor) -> Tensor:
    """Rows of a tensor; a single row is repeated without copying it."""
    if values.shape[0] == 1:
        return values.expand(len(rows), *values.shape[1:])
    return values.index_select(0, rows)
