"""Small decoders on the CPU at the speed of their matrix products.

At a width of a hundred, three quarters of a forward pass of the `transformers` library go into the
passes over memory between the products, and these are too small for a general library to be at its best.
Here the weights of a decoder of the Llama family (RMS norms, rotary embeddings, grouped queries, gated
feed-forward) are packed for one compiled pass over a block of strings (`transformer_kernels`), and work
that no answer depends on is left out:

- queries and feed-forward of the last layer, except at the places read;
- the first layer's projections, the same after every history of one length, are computed once for all.

Whether it computes what the model does is measured before it is used; everything else, and every other
model, goes through the library.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from oracles.transformer_cache import Memory

#: Families with this layout; what a configuration adds to it (biases, windows) is looked at too.
_FAMILIES = ("llama", "mistral", "qwen2")
#: Wider models spend their time in matrix products, which the library does as well.
_WIDEST = 256
#: Tokens of a block.
_BLOCK_TOKENS = 992
#: Rows of a panel and columns of a tile, as in `transformer_products`.
PANEL, TILE = 4, 16


@cache
def compiled_kernels() -> Any:
    """`transformer_kernels`, None without numba; imported when first needed, since numba is heavy."""
    try:
        from oracles import transformer_kernels
    except ImportError:
        return None
    return transformer_kernels


def parts(model: torch.nn.Module) -> list[torch.nn.Module]:
    """A model and all its parts, as `modules()` has them, in a tenth of the time."""
    found = [model]
    for part in found:  # grows meanwhile
        found += [below for below in part._modules.values() if below is not None]
    return found


def weights(found: list[torch.nn.Module]) -> list[Tensor]:
    """All parameters of some parts, those shared as often as they are used."""
    return [p for part in found for p in part._parameters.values() if p is not None]


@dataclass(frozen=True, eq=False)
class Prefixes:
    """Keys and values of histories of one length, layer by layer, in panels, and the rotation after them.

    keys: (histories, layers, kv_heads, length / 4, d, 4),
    values: (histories, layers, kv_heads, d / 4, length, 4).
    """

    cos: Float[np.ndarray, "half places"]
    sin: Float[np.ndarray, "half places"]
    keys: Float[np.ndarray, "histories layers kv_heads panels d four"]
    values: Float[np.ndarray, "histories layers kv_heads panels length four"]


@dataclass(frozen=True, eq=False)
class Rows:
    """A block of strings, equally long, and the positions at which they are read, as many in every string."""

    tokens: Int[np.ndarray, "rows length"]
    reads: Int[np.ndarray, "rows reads"]


class PackedDecoder:
    """The weights of a small decoder, packed; see the module.

    Arguments:
        model: of a family and shape that `fits` accepts.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        body: Any = model.model
        config, head = model.config, body.layers[0].self_attn.head_dim
        self.kernels = compiled_kernels()
        self.sizes = self.kernels.Sizes(
            config.num_attention_heads,
            config.num_key_value_heads,
            head,
            config.hidden_size,
            np.float32(config.rms_norm_eps),
        )
        self.rotary, self.like = body.rotary_emb, body.norm.weight.detach()
        with torch.inference_mode():
            parts = [self._pack(layer) for layer in body.layers]
            self.weights = self.kernels.Weights(
                body.embed_tokens.weight.numpy(),
                *(np.stack(each) for each in zip(*parts, strict=True)),
                body.norm.weight.numpy().copy(),
            )

    @staticmethod
    def fits(model: PreTrainedModel) -> bool:
        """Whether a model has the layout and no hooks, which packed weights would pass by.

        Whether it computes the same is for the caller to measure.
        """
        config, parameter, found = model.config, next(model.parameters()), parts(model)
        return (
            config.model_type in _FAMILIES
            and compiled_kernels() is not None
            and parameter.dtype == torch.float32
            and parameter.device.type == "cpu"
            and config.hidden_size <= _WIDEST
            and config.hidden_act == "silu"
            and not getattr(config, "mlp_bias", False)
            and not getattr(config, "sliding_window", None)
            and not any(part._forward_hooks or part._forward_pre_hooks for part in found)
            and not any(p.is_inference() for p in weights(found))  # their changes cannot be seen
        )

    def _pack(self, layer: Any) -> tuple[np.ndarray, ...]:
        """One layer's part of the `Weights`, but for the last gain."""
        attention, feed = layer.self_attn, layer.mlp
        parts = [attention.q_proj, attention.k_proj, attention.v_proj]
        scale = torch.ones(sum(part.out_features for part in parts), 1)
        scale[: parts[0].out_features] = attention.scaling * math.log2(math.e)  # scores in bits
        weight = scale * torch.cat([part.weight for part in parts]) * layer.input_layernorm.weight
        bias = torch.zeros(len(weight))
        if parts[0].bias is not None:
            bias = scale[:, 0] * torch.cat([part.bias for part in parts])
        gain = layer.post_attention_layernorm.weight
        gates, values = feed.gate_proj.weight * -math.log2(math.e), feed.up_proj.weight / -math.log2(math.e)
        pairs = [
            padded((each * gain).numpy(), 2, axis=0).reshape(-1, 2, len(gain)) for each in (gates, values)
        ]
        gate_up = np.concatenate(pairs, axis=1).reshape(-1, len(gain))
        return (
            in_panels(weight.numpy()),
            padded(bias.numpy(), PANEL, axis=0),
            in_panels(attention.o_proj.weight.numpy()),
            in_panels(gate_up),
            in_panels(padded(feed.down_proj.weight.numpy(), 2, axis=1)),
        )

    def blocks(
        self, lengths: Int[np.ndarray, "strings"], branches: Int[np.ndarray, "strings"]
    ) -> list[Int[np.ndarray, "block"]]:
        """Strings of one length and branch, as many together as a core's cache has room for."""
        order = np.lexsort((lengths, branches))
        ends = np.flatnonzero(np.diff(lengths[order]) | np.diff(branches[order])) + 1
        alike = np.split(order, ends)
        blocks, threads = [], torch.get_num_threads()
        for group in alike:
            count = -(-len(group) * int(lengths[group[0]]) // _BLOCK_TOKENS)
            if count > 1:  # as many for every thread
                count = min(len(group), -(-count // threads) * threads)
            blocks += np.array_split(group, count)
        return blocks

    def prefixes(self, memory: Memory | None, rows: list[int] | slice, longest: int) -> Prefixes:
        """What rows of a memory hold, which is a cache or nothing: then there is one prefix, of length 0.

        They can be followed by `longest` tokens.
        """
        if isinstance(memory, Cache):
            layers: list[Any] = memory.layers
            keys, values = (
                torch.stack(part, dim=1).numpy()[rows]
                for part in zip(*((layer.keys, layer.values) for layer in layers), strict=True)
            )
        else:
            shape = 1, len(self.weights.qkv), self.sizes.kv_heads, 0, self.sizes.d
            keys = values = np.zeros(shape, np.float32)
        tables = self.rotation(keys.shape[3], longest)
        return Prefixes(*tables, in_panels(keys), in_panels(values.swapaxes(-1, -2)))

    @lru_cache(maxsize=64)  # noqa: B019 (a decoder lives as long as its model's weights)
    def rotation(self, begin: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Cos and sin of the rotary embedding, (d / 2, count); both halves of a head rotate alike."""
        positions, half = torch.arange(begin, begin + count), self.sizes.d // 2
        cos, sin = self.rotary(self.like, positions[None])
        return cos[0, :, :half].T.contiguous().numpy(), sin[0, :, :half].T.contiguous().numpy()

    def hidden(self, rows: Rows, prefixes: Prefixes) -> Float[np.ndarray, "histories places width"]:
        """Final hidden states at the places read, row by row, after each prefix."""
        return self._decode(rows, prefixes, keep=False)[0]

    def remember(
        self, tokens: Int[np.ndarray, "rows length"]
    ) -> tuple[Float[np.ndarray, "rows width"], Cache]:
        """Final hidden states after strings of one length, and the cache of them."""
        count, length = tokens.shape
        ends = np.full((count, 1), length - 1)
        hidden, kept = self._decode(Rows(tokens, ends), self.prefixes(None, [0], length), keep=True)
        shape = len(kept), 2, self.sizes.kv_heads, self.sizes.d, count, length
        parts = torch.from_numpy(kept).view(shape).permute(0, 1, 4, 2, 5, 3).contiguous()
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(parts):
            cache.update(keys, values, layer)
        return hidden[0], cache

    def _decode(self, rows: Rows, prefixes: Prefixes, keep: bool) -> tuple[np.ndarray, np.ndarray]:
        """Hidden states at the places read, and keys and values of all layers where they are kept."""
        count, length = rows.tokens.shape
        steps, starts = np.arange(length), np.arange(count)[:, None] * length
        everywhere = self._places(np.broadcast_to(steps, (count, length)), starts, prefixes)
        reads, width = self._places(rows.reads, starts, prefixes), 2 * self.sizes.kv_heads * self.sizes.d
        kept = np.empty((len(self.weights.qkv) if keep else 0, width, count * length), np.float32)
        out = np.empty((len(prefixes.keys), rows.reads.size, self.sizes.width), np.float32)
        self.kernels.decode(
            self.weights,
            self.sizes,
            rows.tokens.ravel(),
            (prefixes.keys, prefixes.values),
            everywhere,
            reads,
            (starts + rows.reads).ravel(),
            kept,
            out,
        )
        return out, kept

    def _places(
        self, positions: Int[np.ndarray, "rows reads"], starts: Int[np.ndarray, "rows 1"], prefixes: Prefixes
    ) -> Any:
        """`Places` of a block, whose columns are filled up by repeating the last."""
        columns = -(-positions.size // TILE) * TILE
        which = np.minimum(np.arange(columns), positions.size - 1)
        first = np.broadcast_to(starts, positions.shape).ravel()[which]
        steps = positions.ravel()[which]
        cos, sin = (np.take(table, steps, axis=1) for table in (prefixes.cos, prefixes.sin))
        return self.kernels.Places(np.float32(first), np.float32(first + steps), cos, sin)


def padded(array: np.ndarray, multiple: int, axis: int) -> np.ndarray:
    """The array with zeros after its end, up to a multiple."""
    if array.shape[axis] % multiple == 0:
        return array
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, -array.shape[axis] % multiple)
    return np.pad(array, widths)


def in_panels(
    matrix: Float[np.ndarray, "*batch rows terms"],
) -> Float[np.ndarray, "*batch panels terms four"]:
    """Matrices in panels of four rows, the last filled up with zeros."""
    whole = padded(matrix, PANEL, axis=-2)
    *batch, rows, terms = whole.shape
    panels = torch.from_numpy(whole).reshape(*batch, rows // PANEL, PANEL, terms)
    return panels.transpose(-1, -2).contiguous().numpy()  # torch copies faster
