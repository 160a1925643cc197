"""Forward passes of a Hugging Face causal language model, read at chosen positions only.

How far a model's cache can be trusted is measured once, on a few tokens, against the plain pass
without a cache:

- ``chunks``: several tokens at a time continue a cache (attention with growing keys and values);
- ``tokens``: one token at a time does (recurrent layers: Mamba restarts its scan on longer chunks);
- ``recompute``: nothing does, and what is remembered is the tokens themselves.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from oracles.errors import NonFiniteError, ParameterError
from oracles.transformer_attention import SharedPrefix, configurations_of
from oracles.transformer_cache import Memory, appends_only, borrowed_cache, own_cache
from oracles.transformer_packed import PackedDecoder, Rows, parts, weights

Continuation = Literal["chunks", "tokens", "recompute"]

#: What models call their cache, newest first (transformers ≥ 5.24, before, and Mamba before).
_MEMORY_NAMES = ("cache", "past_key_values", "cache_params")
#: So many nats below the likeliest token is a mask (−10⁹, −65504, the least float), not a computed logit.
_NEVER_EMITTED = 1e4
_PROBE_LENGTH = 12
_GAIN = 16.0
#: A prefix of so many times the tokens after it is read in place, if those are so many over all its rows.
_LONG_PREFIX, _RUN_TOKENS = 2, 64
#: Fewer tokens do not pay for packing and compiling; for longer strings the library's attention is better.
_LEAST_PACKED, _LONGEST_PACKED = 1 << 13, 128


class Places(NamedTuple):
    """Where to read: row rows[i] of the batch, at its token positions[i]."""

    rows: Int[Tensor, "reads"]
    positions: Int[Tensor, "reads"]


@dataclass(frozen=True, eq=False)
class Reading:
    """What a pass saw at the places asked for: logits, final hidden states, and the new memory.

    The hidden states have width 0 where the output layer cannot be watched.
    """

    logits: Float[Tensor, "reads vocab"]
    hidden: Float[Tensor, "reads width"]
    memory: Memory | None


@dataclass(frozen=True)
class Abilities:
    """What the measurement of a model found.

    `reads_head`: its output layer can be watched. `shares_prefix`: attention can read one prefix for
    many rows in place. `scale`: c where logits = c · hidden · Wᵀ, else None.
    """

    reads_head: bool
    continuation: Continuation
    shares_prefix: bool = False
    scale: float | None = None


@dataclass(frozen=True)
class _Watch:
    """Whether a pass looks at the output layer, lets it answer, and what it multiplies its input by."""

    head: bool
    logits: bool = True
    gain: float = 1.0


class CachedNetwork:
    """A causal language model read at chosen places, with memories that are values.

    Arguments:
        model: in memory, on its device; put into evaluation mode whenever it is asked.
        deterministic: run every pass under `torch.use_deterministic_algorithms`.
    """

    def __init__(self, model: PreTrainedModel, deterministic: bool = False) -> None:
        parameters = inspect.signature(model.forward).parameters
        names = [name for name in _MEMORY_NAMES if name in parameters]
        self.model = model
        self.deterministic = deterministic
        head = model.get_output_embeddings()
        self.head = head if isinstance(head, torch.nn.Linear) else None
        self._memory_name = names[0] if names else None
        self._lock = threading.Lock()
        self._configurations = configurations_of(model)
        self._packed: tuple[tuple, PackedDecoder | None] | None = None
        self._masks = False  # until `abilities` has looked

    @property
    def vocab_size(self) -> int:
        """Width of the output layer."""
        return self.model.config.get_text_config().vocab_size if self.head is None else self.head.out_features

    @property
    def device(self) -> torch.device:
        """Where tokens have to be."""
        return self._embedding.weight.device

    @property
    def _embedding(self) -> torch.nn.Embedding:
        return cast(torch.nn.Embedding, self.model.get_input_embeddings())

    def read(
        self,
        tokens: Int[Tensor, "batch length"],
        places: Places,
        memory: Memory | None = None,
        source: Int[Tensor, "batch"] | None = None,
        keep: bool = False,
        logits: bool = True,
    ) -> Reading:
        """Read `tokens` after `memory` and report on the places, which count within `tokens`.

        Batch row j continues row source[j] of the memory (row j if None). The memory after all tokens
        is returned where `keep` is set; the one given is unchanged. Without `logits` the output layer is
        spared where it can be watched, and the reading's logits have width 0.
        """
        able = self.abilities
        watch = _Watch(able.reads_head, logits)
        if memory is None:
            return self._from_scratch(tokens, places, keep, watch)
        if isinstance(memory, Tensor):
            past = memory if source is None else memory[source]
            moved = Places(places.rows, places.positions + past.shape[1])
            return self._from_scratch(torch.cat([past, tokens], dim=1), moved, keep, watch)
        if able.continuation != "chunks":
            return self._by_token(tokens, places, own_cache(memory, source), watch)
        if keep or source is None:
            return self._forward(tokens, places, own_cache(memory, source), True, watch)
        shared = self._sharing(memory, source, tokens.shape[1]) if able.shares_prefix else None
        return self._ahead(tokens, places, memory, source, watch, shared)

    @cached_property
    def abilities(self) -> Abilities:
        """What this model's output layer and cache can be trusted with, measured once."""
        tokens = self._probe_tokens()
        plain = self._forward(tokens, _everywhere(tokens), None, False, _Watch(False)).logits
        if torch.isnan(plain).any():
            raise non_finite(self.model.dtype)
        never = masked(plain)
        if never.any():
            self._masks, plain = True, plain.masked_fill(never, -torch.inf)
        self._check_causal(tokens, plain)
        reads_head, scale = False, None
        if self.head is not None:
            seen = self._forward(tokens, _everywhere(tokens), None, False, _Watch(True))
            reads_head = seen.hidden.shape[1] > 0 and self._close(seen.logits, plain)
            scale = self._output_scale(self.head, tokens) if reads_head else None
        by_row = plain.reshape(*tokens.shape, -1)
        return Abilities(reads_head, *self._continuation(tokens, by_row, _Watch(reads_head)), scale)

    def packed(self, tokens: int, longest: int, memory: Memory | None) -> PackedDecoder | None:
        """The packed weights, for reading so many tokens in strings of at most `longest` after a memory.

        None where they do not apply, do not pay, or do not compute what the model does. They are packed
        again after the weights changed.
        """
        if tokens < _LEAST_PACKED or longest > _LONGEST_PACKED:
            return None
        if not (memory is None or (isinstance(memory, Cache) and appends_only(memory))):
            return None
        if not PackedDecoder.fits(self.model):
            return None
        now = tuple((p.data_ptr(), p._version) for p in weights(parts(self.model)))
        if self._packed is None or self._packed[0] != now:
            decoder = PackedDecoder(self.model)
            self._packed = now, decoder if self._agrees(decoder) else None
        return self._packed[1]

    def reading_of(
        self, hidden: Float[np.ndarray, "reads width"], logits: bool, memory: Memory | None = None
    ) -> Reading:
        """What the output layer makes of final hidden states."""
        assert self.head is not None, "models without a linear output layer are not packed"
        seen = torch.from_numpy(hidden)
        with torch.inference_mode():
            return Reading(self.head(seen) if logits else seen[:, :0], seen, memory)

    def unembedding(self) -> tuple[Float[Tensor, "vocab width"], Float[Tensor, "width"]]:
        """Weights of the linear output layer, and the mean of their rows in float32."""
        assert self.head is not None, "asked only of models with a linear output layer"
        weight = self.head.weight.detach()
        return weight, weight.mean(dim=0, dtype=torch.float32)

    def _agrees(self, decoder: PackedDecoder) -> bool:
        """Whether a packed decoder reproduces the plain pass, from scratch and after a cache."""
        tokens = self._probe_tokens()
        half = tokens.shape[1] // 2
        if not self.abilities.reads_head or self.abilities.continuation != "chunks":
            return False
        plain = self._forward(tokens, _everywhere(tokens), None, False, _Watch(True))
        if not self._close(self.reading_of(plain.hidden.numpy(), True).logits, plain.logits):
            return False  # the model does more to its logits than its output layer
        rest = np.tile(np.arange(half), (2, 1))
        nowhere = Places(tokens[:0, 0], tokens[:0, 0])
        begun = self._forward(tokens[:, :half], nowhere, None, True, _Watch(True))
        numbers = tokens.numpy()
        alone = decoder.hidden(Rows(numbers[:, :half], rest), decoder.prefixes(None, [0], half))
        prefixes = decoder.prefixes(begun.memory, [0, 1], tokens.shape[1] - half)
        after = decoder.hidden(Rows(numbers[:, half:], rest), prefixes).reshape(2, 2, half, -1)
        found = np.concatenate([alone.reshape(2, half, -1), after[[0, 1], [0, 1]]], axis=1)
        return self._close(torch.from_numpy(found).flatten(0, 1), plain.hidden)

    def _probe_tokens(self) -> Int[Tensor, "two length"]:
        """Two rows of different tokens."""
        tokens = torch.arange(2 * _PROBE_LENGTH, device=self.device).reshape(2, _PROBE_LENGTH) * 7 + 3
        return tokens % len(self._embedding.weight)

    def _check_causal(self, tokens: Tensor, plain: Tensor) -> None:
        """Raise ParameterError if what follows a position changes its logits (encoders such as BERT)."""
        start = tokens[:, : tokens.shape[1] // 2]
        alone = self._forward(start, _everywhere(start), None, False, _Watch(False)).logits
        if not self._close(alone, plain.reshape(*tokens.shape, -1)[:, : start.shape[1]].flatten(0, 1)):
            raise ParameterError(
                f"{type(self.model).__name__} is not causal (its logits depend on later tokens): encoders "
                "need is_decoder=True in their configuration"
            )

    def _output_scale(self, head: torch.nn.Linear, tokens: Tensor) -> float | None:
        """Constant c of logits = c · hidden · Wᵀ, up to rounding; None with a bias or a soft cap.

        Scaling the hidden states by a power of two must scale the logits exactly: small soft-capped
        logits look linear otherwise.
        """
        plain = self._forward(tokens, _everywhere(tokens), None, False, _Watch(True))
        scaled = self._forward(tokens, _everywhere(tokens), None, False, _Watch(True, gain=_GAIN))
        logits, large = plain.logits.cpu().double(), scaled.logits.cpu().double()
        product = plain.hidden.cpu().double() @ head.weight.detach().cpu().double().T
        scale = float((product * logits).sum() / product.square().sum())
        tolerance = 1e-5 if self.model.dtype.itemsize >= 4 else 3e-2
        linear = (large / _GAIN - logits).norm() <= 1e-6 * logits.norm()
        if not linear or not (scale * product - logits).norm() <= tolerance * logits.norm():
            return None
        return 1.0 if abs(scale - 1) <= tolerance else scale

    def _continuation(
        self, tokens: Tensor, by_row: Float[Tensor, "batch length vocab"], watch: _Watch
    ) -> tuple[Continuation, bool]:
        """The fastest way of continuing a (reordered) cache that reproduces the plain pass."""
        half = tokens.shape[1] // 2
        source = torch.tensor([1, 0, 0], device=tokens.device)
        rest, expected = tokens[source, half:], by_row[source, half:].flatten(0, 1)
        places = _everywhere(rest)

        def agrees(attempt: Callable[[], Reading]) -> bool:
            found = _attempt(attempt)
            return found is not None and self._close(found.logits, expected)

        first = Places(source[:2], source[:2] * 0)
        begun = _attempt(lambda: self._forward(tokens[:, :half], first, None, True, watch))
        memory = None if begun is None else begun.memory
        if not isinstance(memory, Cache) or not memory.layers:
            return "recompute", False
        if appends_only(memory) and agrees(lambda: self._ahead(rest, places, memory, source, watch, None)):
            shared = SharedPrefix(source)
            return "chunks", agrees(lambda: self._ahead(rest, places, memory, source, watch, shared))
        single = agrees(lambda: self._by_token(rest, places, own_cache(memory, source), watch))
        return ("tokens" if single else "recompute"), False

    def _close(self, found: Tensor, expected: Tensor) -> bool:
        """Equal up to rounding, relative to how far the logits of a position differ from each other."""
        found, expected = found.cpu().double(), expected.cpu().double()
        never = expected.isneginf()
        if not torch.equal(found.isneginf(), never):
            return False
        found, expected = found.masked_fill(never, 0), expected.masked_fill(never, 0)
        tolerance = 1e-3 if self.model.dtype.itemsize >= 4 else 0.25  # rounding may turn a router's choice
        spread = (expected - expected.mean(dim=-1, keepdim=True)).norm()
        return bool((found - expected).norm() <= tolerance * spread + 1e-6 * expected.norm())

    def _from_scratch(self, tokens: Tensor, places: Places, keep: bool, watch: _Watch) -> Reading:
        recompute = keep and self.abilities.continuation == "recompute"
        reading = self._forward(tokens, places, None, keep and not recompute, watch)
        return Reading(reading.logits, reading.hidden, tokens) if recompute else reading

    def _sharing(self, memory: Cache, source: Tensor, length: int) -> SharedPrefix | None:
        """How to read prefixes in place where that is faster: with many rows after each.

        A CPU copies a short one as fast as it merges two partial attentions.
        """
        if self.device.type == "cpu" and memory.get_seq_length() < _LONG_PREFIX * length:
            return None
        shared = SharedPrefix(source)
        return shared if len(source) * length >= _RUN_TOKENS * len(shared.runs) else None

    def _ahead(
        self,
        tokens: Tensor,
        places: Places,
        memory: Cache,
        source: Tensor,
        watch: _Watch,
        shared: SharedPrefix | None,
    ) -> Reading:
        """One pass after rows of a memory, whose result is not kept."""
        cache = borrowed_cache(memory, source, shared)
        with shared.reading(self._configurations) if shared else nullcontext():
            reading = self._forward(tokens, places, cache, True, watch)
        if shared:
            shared.finish()
        return Reading(reading.logits, reading.hidden, None)

    def _by_token(self, tokens: Tensor, places: Places, cache: Cache, watch: _Watch) -> Reading:
        """One pass per token on a cache of our own; the reads are put back into their order."""
        readings, order = [], []
        for t in range(tokens.shape[1]):
            here = (places.positions == t).nonzero()[:, 0]
            column = Places(places.rows[here], here * 0)
            readings.append(self._forward(tokens[:, t : t + 1], column, cache, True, watch))
            order.append(here)
        back = torch.cat(order).argsort()
        logits = torch.cat([reading.logits for reading in readings])[back]
        hidden = torch.cat([reading.hidden for reading in readings])[back]
        return Reading(logits, hidden, readings[-1].memory)

    def _forward(
        self,
        tokens: Tensor,
        places: Places,
        cache: Cache | None,
        use_cache: bool,
        watch: _Watch,
    ) -> Reading:
        """One pass of the model, which may update `cache`."""
        arguments: dict[str, Any] = {"input_ids": tokens, "use_cache": use_cache, "return_dict": True}
        if cache is not None and self._memory_name is not None:
            arguments[self._memory_name] = cache
        watching: AbstractContextManager[list[Tensor]] = nullcontext([])
        if watch.head and self.head is not None:
            watching = _watched(self.head, places, watch)
        with self._lock, torch.inference_mode(), self._determinism(), watching as seen:
            if self.model.training:
                self.model.eval()
            out = self.model(**arguments)
        logits = out.logits[0] if seen else out.logits[places.rows, places.positions]
        if seen and not watch.logits:
            logits = seen[0][:, :0]
        elif self._masks:
            logits = logits.masked_fill(masked(logits), -torch.inf)
        memory = out.get(self._memory_name) if use_cache and self._memory_name else None
        return Reading(logits, seen[0] if seen else logits[:, :0], memory)

    @contextmanager
    def _determinism(self) -> Iterator[None]:
        """Deterministic kernels for one pass; the setting found is restored."""
        if not self.deterministic or self.device.type == "cpu":
            yield
            return
        before = torch.are_deterministic_algorithms_enabled()
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warn_only)


def non_finite(dtype: torch.dtype) -> NonFiniteError:
    """The error for NaN logits, with its likely reason."""
    remedy = "load it with dtype='float32'" if dtype.itemsize < 4 else "check its weights"
    return NonFiniteError(
        f"the model's logits are NaN in {dtype}: half precision overflows in many models; {remedy}"
    )


def masked(logits: Float[Tensor, "*reads vocab"]) -> Bool[Tensor, "*reads vocab"]:
    """Where a logit is so far below its row's largest that it stands for a token never emitted."""
    return logits < logits.amax(dim=-1, keepdim=True) - _NEVER_EMITTED


def _attempt(attempt: Callable[[], Reading]) -> Reading | None:
    """What a pass saw, None if it failed: where a cache does not fit, models fail in many ways."""
    try:
        return attempt()
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return None


def _everywhere(tokens: Int[Tensor, "batch length"]) -> Places:
    """Every token of every row, row by row."""
    return Places(*torch.ones_like(tokens).nonzero().T)


@contextmanager
def _watched(head: torch.nn.Module, places: Places, watch: _Watch) -> Iterator[list[Tensor]]:
    """Let the output layer see only the given places, as one row of `reads` hidden states.

    What the layer saw is appended to the list. This is the models' own `logits_to_keep`, for ragged
    positions and for models that do not have it.
    """
    seen: list[Tensor] = []

    def select(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        device = inputs[0].device
        hidden = inputs[0][places.rows.to(device), places.positions.to(device)]
        seen.append(hidden)
        shown = hidden if watch.logits else hidden[:0]
        return (shown[None] if watch.gain == 1 else watch.gain * shown[None], *inputs[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield seen
    finally:
        handle.remove()
