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

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from oracles.errors import NonFiniteError, ParameterError
from oracles.transformer_attention import SharedPrefix
from oracles.transformer_cache import Memory, appends_only, borrowed_cache, own_cache

Continuation = Literal["chunks", "tokens", "recompute"]

_PROBE_LENGTH = 12
_GAIN = 16.0
#: A prefix of so many times the tokens after it is read in place, if those are so many over all its rows.
_LONG_PREFIX, _RUN_TOKENS = 2, 64


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


class CachedNetwork:
    """A causal language model read at chosen places, with memories that are values.

    Arguments:
        model: in memory, on its device; put into evaluation mode whenever it is asked.
        deterministic: run every pass under `torch.use_deterministic_algorithms`.
    """

    def __init__(self, model: PreTrainedModel, deterministic: bool = False) -> None:
        parameters = inspect.signature(model.forward).parameters
        names = [name for name in ("past_key_values", "cache_params") if name in parameters]
        self.model = model
        self.deterministic = deterministic
        head = model.get_output_embeddings()
        self.head = head if isinstance(head, torch.nn.Linear) else None
        self._memory_name = names[0] if names else None
        self._lock = threading.Lock()

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
    ) -> Reading:
        """Read `tokens` after `memory` and report on the places, which count within `tokens`.

        Batch row j continues row source[j] of the memory (row j if None). The memory after all tokens
        is returned where `keep` is set; the one given is unchanged.
        """
        if memory is None:
            return self._from_scratch(tokens, places, keep)
        if isinstance(memory, Tensor):
            past = memory if source is None else memory[source]
            moved = Places(places.rows, places.positions + past.shape[1])
            return self._from_scratch(torch.cat([past, tokens], dim=1), moved, keep)
        able = self.abilities
        if able.continuation != "chunks":
            return self._by_token(tokens, places, own_cache(memory, source), able.reads_head)
        if keep or source is None:
            return self._forward(tokens, places, own_cache(memory, source), True, able.reads_head)
        shared = self._sharing(memory, source, tokens.shape[1]) if able.shares_prefix else None
        return self._ahead(tokens, places, memory, source, able.reads_head, shared)

    @cached_property
    def abilities(self) -> Abilities:
        """What this model's output layer and cache can be trusted with, measured once."""
        tokens = torch.arange(2 * _PROBE_LENGTH, device=self.device).reshape(2, _PROBE_LENGTH) * 7 + 3
        tokens %= len(self._embedding.weight)
        plain = self._forward(tokens, _everywhere(tokens), None, False, False).logits
        if torch.isnan(plain).any():
            raise non_finite(self.model.dtype)
        self._check_causal(tokens, plain)
        reads_head, scale = False, None
        if self.head is not None:
            seen = self._forward(tokens, _everywhere(tokens), None, False, True)
            reads_head = seen.hidden.shape[1] > 0 and self._close(seen.logits, plain)
            scale = self._output_scale(self.head, tokens) if reads_head else None
        by_row = plain.reshape(*tokens.shape, -1)
        return Abilities(reads_head, *self._continuation(tokens, by_row, reads_head), scale)

    def _check_causal(self, tokens: Tensor, plain: Tensor) -> None:
        """Raise ParameterError if what follows a position changes its logits (encoders such as BERT)."""
        start = tokens[:, : tokens.shape[1] // 2]
        alone = self._forward(start, _everywhere(start), None, False, False).logits
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
        plain = self._forward(tokens, _everywhere(tokens), None, False, True)
        scaled = self._forward(tokens, _everywhere(tokens), None, False, True, gain=_GAIN)
        logits, large = plain.logits.cpu().double(), scaled.logits.cpu().double()
        product = plain.hidden.cpu().double() @ head.weight.detach().cpu().double().T
        scale = float((product * logits).sum() / product.square().sum())
        tolerance = 1e-5 if self.model.dtype.itemsize >= 4 else 3e-2
        linear = (large / _GAIN - logits).norm() <= 1e-6 * logits.norm()
        if not linear or not (scale * product - logits).norm() <= tolerance * logits.norm():
            return None
        return 1.0 if abs(scale - 1) <= tolerance else scale

    def _continuation(
        self, tokens: Tensor, by_row: Float[Tensor, "batch length vocab"], reads_head: bool
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
        begun = _attempt(lambda: self._forward(tokens[:, :half], first, None, True, reads_head))
        memory = None if begun is None else begun.memory
        if not isinstance(memory, Cache) or not memory.layers:
            return "recompute", False
        if appends_only(memory) and agrees(
            lambda: self._ahead(rest, places, memory, source, reads_head, None)
        ):
            shared = SharedPrefix(source)  # its kernels are those of CPUs
            return "chunks", self.device.type == "cpu" and agrees(
                lambda: self._ahead(rest, places, memory, source, reads_head, shared)
            )
        single = agrees(lambda: self._by_token(rest, places, own_cache(memory, source), reads_head))
        return ("tokens" if single else "recompute"), False

    def _close(self, found: Tensor, expected: Tensor) -> bool:
        """Equal up to rounding, relative to how far the logits of a position differ from each other."""
        found, expected = found.cpu().double(), expected.cpu().double()
        tolerance = 1e-3 if self.model.dtype.itemsize >= 4 else 0.25  # rounding may turn a router's choice
        spread = (expected - expected.mean(dim=-1, keepdim=True)).norm()
        return bool((found - expected).norm() <= tolerance * spread + 1e-6 * expected.norm())

    def _from_scratch(self, tokens: Tensor, places: Places, keep: bool) -> Reading:
        able = self.abilities
        recompute = keep and able.continuation == "recompute"
        reading = self._forward(tokens, places, None, keep and not recompute, able.reads_head)
        return Reading(reading.logits, reading.hidden, tokens) if recompute else reading

    def _sharing(self, memory: Cache, source: Tensor, length: int) -> SharedPrefix | None:
        """How to read prefixes in place where that is faster: for long ones, with many rows after each."""
        if memory.get_seq_length() < _LONG_PREFIX * length:
            return None
        shared = SharedPrefix(source)
        return shared if len(source) * length >= _RUN_TOKENS * len(shared.runs) else None

    def _ahead(
        self,
        tokens: Tensor,
        places: Places,
        memory: Cache,
        source: Tensor,
        reads_head: bool,
        shared: SharedPrefix | None,
    ) -> Reading:
        """One pass after rows of a memory, whose result is not kept."""
        cache = borrowed_cache(memory, source, shared)
        with shared or nullcontext():
            reading = self._forward(tokens, places, cache, True, reads_head)
        if shared:
            shared.finish()
        return Reading(reading.logits, reading.hidden, None)

    def _by_token(self, tokens: Tensor, places: Places, cache: Cache, reads_head: bool) -> Reading:
        """One pass per token on a cache of our own; the reads are put back into their order."""
        readings, order = [], []
        for t in range(tokens.shape[1]):
            here = (places.positions == t).nonzero()[:, 0]
            column = Places(places.rows[here], here * 0)
            readings.append(self._forward(tokens[:, t : t + 1], column, cache, True, reads_head))
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
        reads_head: bool,
        gain: float = 1.0,
    ) -> Reading:
        """One pass of the model, which may update `cache`; `gain` multiplies what the output layer sees."""
        arguments: dict[str, Any] = {"input_ids": tokens, "use_cache": use_cache, "return_dict": True}
        if cache is not None and self._memory_name is not None:
            arguments[self._memory_name] = cache
        watch: AbstractContextManager[list[Tensor]] = nullcontext([])
        if reads_head and self.head is not None:
            watch = _watched(self.head, places, gain)
        with self._lock, torch.inference_mode(), self._determinism(), watch as seen:
            if self.model.training:
                self.model.eval()
            out = self.model(**arguments)
        logits = out.logits[0] if seen else out.logits[places.rows, places.positions]
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
def _watched(head: torch.nn.Module, places: Places, gain: float) -> Iterator[list[Tensor]]:
    """Let the output layer see only the given places, as one row of `reads` hidden states.

    What the layer saw is appended to the list. This is the models' own `logits_to_keep`, for ragged
    positions and for models that do not have it.
    """
    seen: list[Tensor] = []

    def select(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        device = inputs[0].device
        hidden = inputs[0][places.rows.to(device), places.positions.to(device)]
        seen.append(hidden)
        return (hidden[None] if gain == 1 else gain * hidden[None], *inputs[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield seen
    finally:
        handle.remove()
