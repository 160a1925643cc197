"""Small decoders on the CPU at the speed of their matrix products.

At a width of a hundred, three quarters of a forward pass of the `transformers` library go into the
passes over memory between the products. Here the weights of a decoder of the Llama family (RMS norms,
rotary embeddings, grouped queries, gated feed-forward) are packed for one product where the library
has several, activations stand feature-major so that the loops between products are SIMD
(`transformer_kernels`), and work that no answer depends on is left out:

- queries and feed-forward of the last layer, except at the places read;
- the first layer's projections, the same after every history of one length, are computed once for all.

Whether it computes what the model does is measured before it is used; everything else, and every other
model, goes through the library.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from oracles.transformer_cache import Memory

#: Families with this layout; what a configuration adds to it (biases, windows) is looked at too.
_FAMILIES = ("llama", "mistral", "qwen2")
#: Wider models spend their time in matrix products, which the library does as well.
_WIDEST = 256
#: Tokens of a block. Not a power of two: rows of a feature would fall on the same sets of the cache.
_BLOCK_TOKENS = 992


@cache
def compiled_loops() -> Any:
    """`transformer_kernels`, None without numba; imported when first needed, since numba is heavy."""
    try:
        from oracles import transformer_kernels
    except ImportError:
        return None
    return transformer_kernels


@dataclass(frozen=True, eq=False)
class Prefix:
    """Keys (heads, length, d) and transposed values (heads, d, length) of one history, layer by layer."""

    length: int
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Layer:
    """Packed weights of one layer, the norms' gains and the scale of the scores multiplied into them."""

    qkv: Float[Tensor, "queries_keys_values width"]
    bias: Float[Tensor, "queries_keys_values 1"] | None
    out: Float[Tensor, "width queries"]
    gate_up: Float[Tensor, "twice_inner width"]
    down: Float[Tensor, "width inner"]


@dataclass(frozen=True, eq=False)
class Rows:
    """A block of strings, equally long, and the positions at which they are read, as many in every string."""

    tokens: Int[Tensor, "rows length"]
    reads: Int[np.ndarray, "rows reads"]


class PackedDecoder:
    """The weights of a small decoder, packed; see the module.

    Arguments:
        model: of a family and shape that `fits` accepts.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        body: Any = model.model
        self.loops = compiled_loops()
        config = model.config
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.d = body.layers[0].self_attn.head_dim
        self.epsilon = np.float32(config.rms_norm_eps)
        self.rotary = body.rotary_emb
        with torch.inference_mode():
            self.embedding = body.embed_tokens.weight.detach()
            self.gain = body.norm.weight.detach().clone()
            self.layers = [self._pack(layer) for layer in body.layers]

    @staticmethod
    def fits(model: PreTrainedModel) -> bool:
        """Whether a model has the layout and no hooks, which packed weights would pass by.

        Whether it computes the same is for the caller to measure.
        """
        config, parameter = model.config, next(model.parameters())
        return (
            config.model_type in _FAMILIES
            and compiled_loops() is not None
            and parameter.dtype == torch.float32
            and parameter.device.type == "cpu"
            and config.hidden_size <= _WIDEST
            and config.hidden_act == "silu"
            and not getattr(config, "mlp_bias", False)
            and not getattr(config, "sliding_window", None)
            and not any(p.is_inference() for p in model.parameters())  # their changes cannot be seen
            and not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
        )

    def _pack(self, layer: Any) -> Layer:
        attention, feed = layer.self_attn, layer.mlp
        parts = [attention.q_proj, attention.k_proj, attention.v_proj]
        scale = torch.ones(sum(part.out_features for part in parts), 1)
        scale[: parts[0].out_features] = attention.scaling * math.log2(math.e)  # scores in bits
        weight = scale * torch.cat([part.weight for part in parts]) * layer.input_layernorm.weight
        bias = None
        if parts[0].bias is not None:
            bias = scale * torch.cat([part.bias for part in parts])[:, None]
        gate_up = torch.cat([feed.gate_proj.weight, feed.up_proj.weight])
        return Layer(
            weight.contiguous(),
            bias,
            attention.o_proj.weight.contiguous().clone(),
            (gate_up * layer.post_attention_layernorm.weight).contiguous(),
            feed.down_proj.weight.contiguous().clone(),
        )

    def blocks(
        self, lengths: Int[np.ndarray, "strings"], branches: Int[np.ndarray, "strings"]
    ) -> list[Int[np.ndarray, "block"]]:
        """Strings of one length and branch, as many together as a core's cache has room for."""
        order = np.lexsort((lengths, branches))
        ends = np.flatnonzero(np.diff(lengths[order]) | np.diff(branches[order])) + 1
        alike = np.split(order, ends)
        return [
            block
            for group in alike
            for block in np.array_split(group, -(-len(group) * int(lengths[group[0]]) // _BLOCK_TOKENS))
        ]

    def prefix(self, memory: Memory | None, row: int) -> Prefix | None:
        """What one row of a memory holds, which is a cache or nothing."""
        if not isinstance(memory, Cache):
            return None
        layers: list[Any] = memory.layers
        group = self.heads // self.kv_heads
        return Prefix(
            memory.get_seq_length(),
            tuple(layer.keys[row].repeat_interleave(group, dim=0) for layer in layers),
            tuple(layer.values[row].transpose(1, 2).repeat_interleave(group, dim=0) for layer in layers),
        )

    def hidden(
        self, rows: Rows, prefixes: Sequence[Prefix | None]
    ) -> Iterator[Float[Tensor, "places width"]]:
        """Final hidden states at the places read, row by row, after each prefix; all have one length."""
        block = _Block(self, rows, 0 if prefixes[0] is None else prefixes[0].length)
        for prefix in prefixes:
            yield block.run(prefix)

    def rotation(self, positions: Int[np.ndarray, "places"]) -> tuple[np.ndarray, np.ndarray]:
        """Tables cos and sin of the rotary embedding, (d, places) each."""
        cos, sin = self.rotary(self.embedding, torch.from_numpy(positions)[None])
        return cos[0].T.contiguous().numpy(), sin[0].T.contiguous().numpy()


class _Stage:
    """Buffers, and the views of them, for the queries at one set of places of a block.

    Arguments:
        qkv: buffer of queries, keys and values of all tokens of the block.
        last: position of each place within its row.
    """

    def __init__(
        self,
        decoder: PackedDecoder,
        qkv: Tensor,
        length: int,
        last: Int[np.ndarray, "rows reads"],
        begin: int,
    ) -> None:
        heads, d, group = decoder.heads, decoder.d, decoder.heads // decoder.kv_heads
        layer, (rows, reads) = decoder.layers[0], last.shape
        places = last.size
        self.epsilon, self.loops = decoder.epsilon, decoder.loops
        self.last = last.astype(np.int32)
        self.rotation = decoder.rotation(begin + last.ravel())
        self.x = torch.empty(len(layer.out), places)
        self.normal = torch.empty_like(self.x)
        self.inner = torch.empty(len(layer.gate_up), places)
        self.gated = torch.empty(layer.down.shape[1], places)
        self.before = torch.empty(heads, begin, places)
        self.own = torch.empty(heads, rows, length, reads)
        self.own_mixed = torch.empty(heads, rows, d, reads)
        self.mixed = torch.zeros(heads, d, places)
        self.flat = self.mixed.view(heads * d, places)
        self.total = np.empty((heads, places), dtype=np.float32)
        self.scratch = np.empty(places, dtype=np.float32)
        everywhere = places == qkv.shape[1]
        self.queries = qkv[: heads * d] if everywhere else torch.empty(heads * d, places)
        self.query = self.queries.view(heads, d, places)
        by_row = self.query.view(heads, d, rows, reads)
        keys_values = qkv[heads * d :].view(2, decoder.kv_heads, d, rows, length)
        self.by_head = [
            (
                keys_values[0, h // group].permute(1, 2, 0),  # (rows, length, d)
                by_row[h].transpose(0, 1),  # (rows, d, reads)
                self.own[h],
                keys_values[1, h // group].transpose(0, 1),  # (rows, d, length)
                self.own_mixed[h],
            )
            for h in range(heads)
        ]

    def normalise(self) -> Float[Tensor, "width places"]:
        """The residual stream over its root mean square."""
        self.loops.rms_normalise(self.x.numpy(), self.epsilon, self.normal.numpy(), self.scratch)
        return self.normal

    def attend(self, prefix: Prefix | None, number: int) -> Float[Tensor, "queries places"]:
        """One softmax over the prefix and the own tokens up to each place."""
        for key, query, own, _, _ in self.by_head:
            torch.bmm(key, query, out=own)
        if prefix is not None:
            torch.bmm(prefix.keys[number], self.query, out=self.before)
        self.loops.exponentiate(self.before.numpy(), self.own.numpy(), self.last, self.scratch, self.total)
        for _, _, own, value, mixed in self.by_head:
            torch.bmm(value, own, out=mixed)
        if prefix is None:
            self.mixed.zero_()
        else:
            torch.bmm(prefix.values[number], self.before, out=self.mixed)
        self.loops.mix(self.mixed.numpy(), self.own_mixed.numpy(), self.total)
        return self.flat

    def finish(self, layer: Layer, prefix: Prefix | None, number: int) -> None:
        """The rest of a layer whose queries, keys and values are there."""
        self.x.addmm_(layer.out, self.attend(prefix, number))
        torch.mm(layer.gate_up, self.normalise(), out=self.inner)
        self.loops.gate(self.inner.numpy(), self.gated.numpy())
        self.x.addmm_(layer.down, self.gated)


class _Block:
    """One block of strings on its way through the layers, after one prefix at a time.

    What does not depend on the prefix is computed once.
    """

    def __init__(self, decoder: PackedDecoder, rows: Rows, begin: int) -> None:
        count, length = rows.tokens.shape
        self.decoder = decoder
        self.queries = decoder.heads * decoder.d
        self.rotated = self.queries + decoder.kv_heads * decoder.d
        self.qkv = torch.empty(len(decoder.layers[0].qkv), count * length)
        everywhere = np.tile(np.arange(length), (count, 1))
        self.all = _Stage(decoder, self.qkv, length, everywhere, begin)
        self.read = _Stage(decoder, self.qkv, length, rows.reads, begin)
        self.places = torch.from_numpy((np.arange(count)[:, None] * length + rows.reads).ravel())
        self.input = decoder.embedding[rows.tokens.flatten()].T.contiguous()
        self.all.x.copy_(self.input)
        self.project(decoder.layers[0], 0)
        self.first = self.qkv.clone()

    def run(self, prefix: Prefix | None) -> Float[Tensor, "places width"]:
        """Final hidden states at the places read."""
        *layers, last = self.decoder.layers
        self.all.x.copy_(self.input)
        self.qkv.copy_(self.first)
        for number, layer in enumerate(layers):
            if number:
                self.project(layer, 0)
            self.all.finish(layer, prefix, number)
        if layers:
            self.project(last, self.queries)
        self.ask(last)
        self.read.finish(last, prefix, len(layers))
        return self.read.normalise().T * self.decoder.gain

    def project(self, layer: Layer, first: int) -> None:
        """Rotated queries and keys, and values of all tokens: rows first: of them."""
        normal, out = self.all.normalise(), self.qkv[first:]
        torch.mm(layer.qkv[first:], normal, out=out)
        if layer.bias is not None:
            out += layer.bias[first:]
        rotated = self.qkv[first : self.rotated].view(-1, self.decoder.d, out.shape[1])
        self.decoder.loops.rotate(rotated.numpy(), *self.all.rotation)

    def ask(self, layer: Layer) -> None:
        """Rotated queries at the places read alone."""
        torch.index_select(self.all.x, 1, self.places, out=self.read.x)
        torch.mm(layer.qkv[: self.queries], self.read.normalise(), out=self.read.queries)
        if layer.bias is not None:
            self.read.queries.add_(layer.bias[: self.queries])
        self.decoder.loops.rotate(self.read.query.numpy(), *self.read.rotation)
