"""How bulk questions to a causal network become few, well-filled forward passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import ArrayLike

from oracles.prefix_tree import group_by_length
from oracles.transformer_cache import Memory
from oracles.transformer_network import CachedNetwork, Places, Reading

#: What to do with the reads of a block: (history, item) of each of them, and what was seen there.
Store = Callable[[np.ndarray, np.ndarray, Reading], None]


@dataclass(frozen=True, eq=False)
class ReadingPlan:
    """Strings to read, right-padded; reads starts[i]:starts[i+1], at `positions`, belong to string i.

    Read j answers for the caller's item targets[j].
    """

    tokens: Int[np.ndarray, "strings longest"]
    lengths: Int[np.ndarray, "strings"]
    starts: Int[np.ndarray, "bounds"]
    positions: Int[np.ndarray, "reads"]
    targets: Int[np.ndarray, "reads"]


class BulkReader:
    """Many strings through a network, in blocks of bounded size.

    Arguments:
        network: the model; plans and strings hold its token numbers.
        block_tokens, block_logits: most tokens in a pass, padding included, and most logits it returns.
    """

    def __init__(self, network: CachedNetwork, block_tokens: int, block_logits: int) -> None:
        self.network = network
        self.budgets = np.array([block_tokens, block_logits])

    def tensor(self, values: ArrayLike) -> torch.Tensor:
        """Integers on the network's device."""
        return torch.from_numpy(np.array(values, dtype=np.int64)).to(self.network.device)

    def read(
        self,
        tokens: Int[np.ndarray, "batch length"],
        rows: ArrayLike,
        positions: ArrayLike,
        memory: Memory | None = None,
        source: Int[np.ndarray, "batch"] | None = None,
        keep: bool = False,
    ) -> Reading:
        """`CachedNetwork.read` for numpy arguments."""
        places = Places(self.tensor(rows), self.tensor(positions))
        origin = None if source is None else self.tensor(source)
        return self.network.read(self.tensor(tokens), places, memory, origin, keep)

    def read_plan(
        self,
        plan: ReadingPlan,
        store: Store,
        memory: Memory | None = None,
        copies: int = 1,
        budgets: Int[np.ndarray, "budgets"] | None = None,
    ) -> None:
        """Read every string of the plan after each of the `copies` rows of the memory."""
        n, counts = len(plan.lengths), np.diff(plan.starts)
        costs = np.stack([plan.lengths, counts * self.network.vocab_size], axis=1)

        def work(low: int, high: int) -> None:
            source, which = np.divmod(np.arange(low, high), n)
            rows = np.repeat(np.arange(high - low), counts[which])
            within = np.arange(len(rows)) - np.repeat(np.cumsum(counts[which]) - counts[which], counts[which])
            reads = plan.starts[which][rows] + within
            tokens = plan.tokens[which, : plan.lengths[which].max()]
            origin = None if memory is None else source
            reading = self.read(tokens, rows, plan.positions[reads], memory, origin)
            store(source[rows], plan.targets[reads], reading)

        run_blocks(np.tile(costs, (copies, 1)), self.budgets.copy() if budgets is None else budgets, work)

    def read_grid(self, heads: list[np.ndarray], tails: list[np.ndarray], store: Store) -> None:
        """Read heads[h] ∘ tails[f] for all h and f, every head once; store(h, f, reading)."""
        lengths = np.array([len(tail) for tail in tails])
        here, rest = np.flatnonzero(lengths == 0), np.flatnonzero(lengths)
        plan = plan_reads([tails[f] for f in rest], rest)
        budgets, kept = self.budgets.copy(), np.maximum(self.budgets // 4, 1)
        for rows, tokens in group_by_length(heads):
            self._read_group(rows, tokens, here, plan, store, budgets, kept)

    def _read_group(
        self,
        rows: np.ndarray,
        heads: np.ndarray,
        here: np.ndarray,
        plan: ReadingPlan,
        store: Store,
        budgets: np.ndarray,
        kept: np.ndarray,
    ) -> None:
        """Heads of one length; `here` are the empty tails, `plan` the others."""
        length = heads.shape[1]
        if length == 0:  # nothing to remember
            self.read_plan(plan, lambda h, f, reading: store(rows[h], f, reading), None, len(rows), budgets)
            return

        def work(low: int, high: int) -> None:
            block, local = rows[low:high], np.arange(high - low)
            reading = self.read(heads[low:high], local, local * 0 + length - 1, keep=True)
            for f in here:
                store(block, local * 0 + f, reading)

            def place(h: np.ndarray, f: np.ndarray, found: Reading) -> None:
                store(block[h], f, found)

            self.read_plan(plan, place, reading.memory, len(block), budgets)

        # the memories of a block of heads stay until the tails are read
        run_blocks(np.tile([length, self.network.vocab_size], (len(rows), 1)), kept, work)


def plan_reads(strings: list[np.ndarray], targets: np.ndarray | None = None) -> ReadingPlan:
    """The fewest strings, shortest first, that have all of the given nonempty ones as prefixes.

    In lexicographic order a string stands before its continuations, so that one backward pass finds
    them. A causal network's outputs at a prefix do not depend on what follows.
    """
    keys = [s.astype(">u8").tobytes() for s in strings]
    covers, cover_of = [], np.empty(len(strings), dtype=np.int64)
    last = None
    for i in sorted(range(len(strings)), key=keys.__getitem__, reverse=True):
        if last is None or not keys[last].startswith(keys[i]):
            last = i
            covers.append(i)
        cover_of[i] = last
    covers.sort(key=lambda i: (len(strings[i]), i))
    tokens = np.zeros((len(covers), max((len(strings[i]) for i in covers), default=0)), dtype=np.int64)
    for row, i in enumerate(covers):
        tokens[row, : len(strings[i])] = strings[i]
    place = np.empty(len(strings), dtype=np.int64)
    place[covers] = np.arange(len(covers))
    order = np.argsort(place[cover_of], kind="stable")
    starts = np.searchsorted(place[cover_of][order], np.arange(len(covers) + 1))
    lengths = np.array([len(s) for s in strings], dtype=np.int64)
    answers = order if targets is None else targets[order]
    return ReadingPlan(tokens, lengths[covers], starts, lengths[order] - 1, answers)


def run_blocks(
    costs: Int[np.ndarray, "items budgets"],
    budgets: Int[np.ndarray, "budgets"],
    work: Callable[[int, int], None],
) -> None:
    """Call work(low, high) over consecutive blocks of items, each within every budget.

    The cost of a block is its length times its dearest item. A block that runs out of memory is
    halved, and `budgets` shrinks in place, so that the blocks after it fit at once; a single item that
    runs out of memory is an error of torch.
    """
    low = 0
    while low < len(costs):
        longest = max(1, int((budgets // np.maximum(costs[low], 1)).min()))
        dearest = np.maximum.accumulate(costs[low : low + longest], axis=0)
        fits = (dearest * np.arange(1, len(dearest) + 1)[:, None] <= budgets).all(axis=1)
        high = low + max(1, int(fits.sum()))
        try:
            work(low, high)
        except torch.OutOfMemoryError:
            if high - low == 1:
                raise
            half = (high - low) // 2 * np.maximum(costs[low:high].max(axis=0), 1)
            np.minimum(budgets, half, out=budgets)
        else:
            low = high
            continue
        if torch.cuda.is_available():  # outside the handler: it keeps the failed block's tensors alive
            torch.cuda.empty_cache()
