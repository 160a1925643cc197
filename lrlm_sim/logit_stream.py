"""Extended logit matrices that fit no memory: computed block by block, kept on disk, resumed.

A `LogitStream` cuts the futures into blocks. Every block (all histories, a few futures) is computed once,
written whole (`BlockStore`), and read again by whatever wants it: factors, losses, angles. Which numbers
of a cell (history, future) are kept:

- ``"logits"``: the centred logits of the kept tokens, asked of any oracle;
- ``"kept states"``: the same, as final hidden state times the kept columns of the centred unembedding,
  where the model's output layer is linear;
- ``"states"``: the final hidden states themselves, for all tokens of such a model: width numbers in place
  of vocab_size (`spectra.hidden_state_singular_values`).

Memory: the limit covers the centred unembedding, one block, the answers of one call and the factors made
of the blocks; it does not cover the model's weights and the activations of one pass of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from lrlm_sim.block_store import BlockStore, fingerprint
from lrlm_sim.corpus import likely_tokens
from lrlm_sim.gram import StreamedFactor, StreamedGram, StreamedTriangle
from lrlm_sim.matrices import extended_logits
from oracles.base import Oracle
from oracles.checks import as_integer, as_strings
from oracles.errors import ParameterError, TooLargeError

Form = Literal["logits", "kept states", "states"]
#: Fewest blocks of a large matrix, so that little is lost when a run is stopped, and futures that are
#: not split further for that: histories are read again for every block.
_BLOCKS, _FUTURES = 16, 32
#: n × n float64 arrays alive at once while singular vectors are computed, measured (peak of the process).
_FACTOR_COPIES: dict[type[StreamedFactor], int] = {StreamedTriangle: 10, StreamedGram: 6}
_EXPANSION_BYTES = 1 << 25  # logits of hidden states while losses are summed, see `low_rank`


@runtime_checkable
class ShowsStates(Protocol):
    """Oracles that show what their output layer sees, such as `TransformerOracle`."""

    def final_hidden_states(self, histories: Any, futures: Any) -> Float[np.ndarray, "n_h n_f width"]:
        """Final hidden states after h∘f."""
        ...

    def unembedding(self) -> Float[np.ndarray, "vocab width"] | None:
        """W where the logits are X·Wᵀ, else None."""
        ...


@dataclass(frozen=True)
class KeptTokens:
    """Which tokens stand as columns after each future: the k likeliest, k random ones, or all."""

    rule: Literal["likely", "random", "all"] = "likely"
    k: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rule not in ("likely", "random", "all"):
            raise ParameterError(f'tokens must be "likely", "random" or "all", got {self.rule!r}')
        as_integer("k", self.k, 1)

    def key(self, vocab_size: int) -> dict[str, Any]:
        """What determines the choice, for a `BlockStore`."""
        if self.rule == "all" or self.k >= vocab_size:
            return {"rule": "all"}
        return {"rule": self.rule, "k": self.k} | ({"seed": self.seed} if self.rule == "random" else {})

    def choose(
        self, oracle: Oracle, futures: Sequence[ArrayLike], rows: int
    ) -> Int[np.ndarray, "n_f k"] | None:
        """Token numbers, (n_f, k), asking about `rows` futures at a time; None stands for all."""
        if self.rule == "all" or self.k >= oracle.vocab_size:
            return None
        if self.rule == "random":
            rng = np.random.default_rng(self.seed)
            drawn = [rng.choice(oracle.vocab_size, self.k, replace=False) for _ in futures]
            return np.array(drawn, dtype=np.int64)
        parts = range(0, len(futures), rows)
        return np.concatenate([likely_tokens(oracle, futures[low : low + rows], self.k) for low in parts])


@dataclass(frozen=True, eq=False)
class StreamPlan:
    """How a matrix is cut: `edges` of the blocks of futures, histories per call, factor, chunk.

    `chunk` is the number of futures whose approximations are computed together.
    """

    edges: tuple[int, ...]
    rows: int
    factor: type[StreamedFactor]
    chunk: int


class LogitStream:
    """The extended logit matrix of one model, in blocks of futures.

    Arguments:
        oracle: the model. histories, futures: token strings, ragged lists allowed.
        tokens: which columns are kept.
        folder: where blocks are kept; the same folder with the same model, strings and tokens goes on
            with the blocks that are there, any other use of it is refused (FormatError).
        identity: names the model and its weights; None takes the oracle's own.
        memory: limit in bytes, see the module. marks: numbers of futures at which a block must end.

    Raises TooLargeError, naming the bytes needed, where the limit cannot be kept.
    """

    def __init__(
        self,
        oracle: Oracle,
        histories: Sequence[ArrayLike] | np.ndarray,
        futures: Sequence[ArrayLike] | np.ndarray,
        tokens: KeptTokens,
        folder: str | Path,
        identity: str | None = None,
        memory: int = 1 << 31,
        marks: Sequence[int] = (),
    ) -> None:
        self.oracle, self.memory = oracle, as_integer("memory", memory, 1 << 20)
        self.histories = as_strings("histories", histories, oracle.vocab_size)
        self.futures = as_strings("futures", futures, oracle.vocab_size)
        if not self.histories or not self.futures:
            raise ParameterError("a logit matrix needs at least one history and one future")
        name = oracle.identity if identity is None else identity
        if name is None:
            raise ParameterError(
                "this model has no identity, so its blocks could be taken for another's: give identity="
            )
        weights = oracle.unembedding() if isinstance(oracle, ShowsStates) else None
        self.centred = None if weights is None else weights - weights.mean(axis=0)
        del weights
        kept = tokens.key(oracle.vocab_size)
        self.form: Form = "logits" if self.centred is None else "kept states"
        if self.centred is not None and kept["rule"] == "all":
            self.form = "states"
        #: Networks round in float32 at best; exact models keep their digits.
        self.dtype = np.dtype(np.float64 if self.centred is None else np.float32)
        self.store = BlockStore(folder, self._key(name, kept))
        self.plan = self._plan(oracle.vocab_size if kept["rule"] == "all" else kept["k"], marks)
        self.tokens = self._tokens(tokens)
        #: Blocks computed by this object, and blocks that were there before it.
        self.computed, self.reused = 0, sum(self.store.has(_block_name(part)) for part in self._parts())

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n_h, n_f, numbers kept per cell)."""
        return len(self.histories), len(self.futures), self._width

    @property
    def expand(self) -> Float[np.ndarray, "vocab width"] | None:
        """Matrix that takes a cell's numbers to its logits; None where they are the logits."""
        return self.centred if self.form == "states" else None

    @cached_property
    def tokens_per_cell(self) -> int:
        """Columns of the logit matrix per future."""
        return self.oracle.vocab_size if self.tokens is None else self.tokens.shape[1]

    def blocks(
        self, progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[slice, Float[np.ndarray, "n_h part width"]]]:
        """(futures, numbers) block by block: read from the folder where they are, else computed and kept.

        `progress` is told the number of cells finished since its last call.
        """
        for futures in self._parts():
            name = _block_name(futures)
            block = self.store.get(name, (len(self.histories), futures.stop - futures.start, self._width))
            if block is None:
                block = self._compute(futures, progress)
                self.store.put(name, block)
                self.computed += 1
            elif progress is not None:
                progress(block.shape[0] * block.shape[1])
            yield futures, block

    def cells(self, oracle: Oracle, rows: slice, futures: slice) -> Float[np.ndarray, "rows futures width"]:
        """The numbers of some cells as `oracle`, this stream's or one of the same shape, computes them."""
        heads, tails = self.histories[rows], self.futures[futures]
        tokens = None if self.tokens is None else self.tokens[futures]
        if self.centred is None or not isinstance(oracle, ShowsStates):
            return extended_logits(oracle, heads, tails, tokens)
        states = oracle.final_hidden_states(heads, tails)
        if tokens is None:
            return states
        out = np.empty((len(heads), len(tails), tokens.shape[1]))
        for j, kept in enumerate(tokens):  # one future at a time: its columns are gathered, not all futures'
            np.matmul(states[:, j], self.centred[kept].T, out=out[:, j])
        return out

    @cached_property
    def _width(self) -> int:
        if self.form == "states" and self.centred is not None:
            return self.centred.shape[1]
        return self.tokens_per_cell

    def _parts(self) -> list[slice]:
        return [slice(low, high) for low, high in pairwise(self.plan.edges)]

    def _compute(self, futures: slice, progress: Callable[[int], None] | None) -> np.ndarray:
        count = futures.stop - futures.start
        block = np.empty((len(self.histories), count, self._width), self.dtype)
        for low in range(0, len(block), self.plan.rows):
            rows = slice(low, min(low + self.plan.rows, len(block)))
            block[rows] = self.cells(self.oracle, rows, futures)
            if progress is not None:
                progress((rows.stop - rows.start) * count)
        return block

    def _key(self, name: str, kept: dict[str, Any]) -> dict[str, Any]:
        return {
            "model": name,
            "histories": _fingerprint(self.histories),
            "futures": _fingerprint(self.futures),
            "tokens": kept,
            "form": self.form,
            "dtype": self.dtype.name,
        }

    def _tokens(self, tokens: KeptTokens) -> Int[np.ndarray, "n_f k"] | None:
        """The kept tokens; stored, since ties between likely tokens may be broken by rounding."""
        stored = self.store.get("tokens")
        if stored is not None:
            return stored
        rows = max(1, self.memory // 4 // (32 * self.oracle.vocab_size))
        chosen = tokens.choose(self.oracle, self.futures, rows)
        if chosen is not None:
            self.store.put("tokens", chosen)
        return chosen

    def _plan(self, columns: int, marks: Sequence[int]) -> StreamPlan:
        n_h, n_f, vocab = len(self.histories), len(self.futures), self.oracle.vocab_size
        width = columns if self.centred is None or self.form != "states" else self.centred.shape[1]
        layer = 0 if self.centred is None else 2 * self.centred.nbytes  # held once, twice while made
        future = n_h * width * self.dtype.itemsize
        cell = 36 * vocab if self.centred is None else 8 * vocab + 16 * self.centred.shape[1] + 8 * width
        small = 2 * _FACTOR_COPIES[StreamedGram] * 8 * n_h**2
        expanded = _EXPANSION_BYTES if self.form == "states" else 0
        part = self.memory - layer
        least = layer + max(4 * future, 4 * cell, 4 * 80 * n_h * width + expanded, small)
        if self.memory < least:
            raise TooLargeError(
                f"{n_h} × {n_f} cells of {width} numbers need a memory limit of at least {gigabytes(least)}, "
                f"got {gigabytes(self.memory)}: raise it, or take fewer histories or tokens"
            )
        cells = part // 4 // cell
        most = int(min(part // 4 // future, cells))
        edges = self.store.get("edges")
        if edges is None:
            edges = _edges(n_f, min(most, max(_FUTURES, -(-n_f // _BLOCKS))), marks)
            self.store.check_room(n_h * n_f * width * self.dtype.itemsize)
            self.store.put("edges", edges)
        count = int(np.diff(edges).max())
        if count > most:
            raise TooLargeError(
                f"this folder's blocks hold {count} futures, the limit of {gigabytes(self.memory)} has room "
                f"for {most}: raise the memory limit to what it was, or take another folder"
            )
        triangle = 2 * _FACTOR_COPIES[StreamedTriangle] * 8 * n_h**2 <= part
        return StreamPlan(
            tuple(edges.tolist()),
            max(1, min(n_h, cells // count)),
            StreamedTriangle if triangle else StreamedGram,
            max(1, part // 4 // (80 * n_h * width)),
        )


def gigabytes(count: float) -> str:
    """A number of bytes for people, to four digits."""
    unit, name = (1e9, "GB") if count >= 1e9 else (1e6, "MB")
    return f"{count / unit:.4g} {name}"


def _edges(n_f: int, size: int, marks: Sequence[int]) -> Int[np.ndarray, "edges"]:
    """Ends of blocks of at most `size` futures, of about one size between two marks."""
    stops = sorted({m for m in marks if 0 < m < n_f} | {n_f})
    edges = [0]
    for stop in stops:
        parts = -(-(stop - edges[-1]) // size)
        edges += [int(e) for e in np.linspace(edges[-1], stop, parts + 1).round()[1:]]
    return np.array(edges, dtype=np.int64)


def _block_name(futures: slice) -> str:
    return f"block-{futures.start:07d}-{futures.stop:07d}"


def _fingerprint(strings: list[Int[np.ndarray, "length"]]) -> str:
    lengths = np.array([len(string) for string in strings], dtype=np.int64)
    return fingerprint(lengths, np.concatenate([*strings, np.empty(0, dtype=np.int64)]))
