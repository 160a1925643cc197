"""How bulk questions to a causal network become few, well-filled forward passes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import ArrayLike

from oracles.prefix_tree import group_by_length
from oracles.transformer_cache import Memory
from oracles.transformer_network import CachedNetwork, Places, Reading
from oracles.transformer_packed import PackedDecoder, Rows
from oracles.transformer_tree import Branch, ReadingPlan, joined, plan_reads, reading_tree

#: What to do with the reads of a block: (history, item) of each of them, and what was seen there.
Store = Callable[[np.ndarray, np.ndarray, Reading], None]

#: A branch of the prefix tree is read on its own where that saves so many tokens.
_LEAST_SAVED = 128
#: Logits that a packed pass forms at a time: what a core's cache has room for, in float64 too.
_READ_LOGITS = 1 << 16
_NEVER = np.iinfo(np.int64).max
#: Held while torch's number of threads is changed, which is one for the process.
_ONE_THREAD_EACH = threading.Lock()


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
        logits: bool = True,
    ) -> Reading:
        """`CachedNetwork.read` for numpy arguments."""
        places = Places(self.tensor(rows), self.tensor(positions))
        origin = None if source is None else self.tensor(source)
        return self.network.read(self.tensor(tokens), places, memory, origin, keep, logits)

    def read_strings(
        self, strings: list[Int[np.ndarray, "length"]], store: Store, logits: bool = True
    ) -> None:
        """Read nonempty strings from scratch, on their prefix tree; store(0, string, reading)."""
        # recurrent models continue a memory one token a pass: reading a prefix again is cheaper
        chunks = self.network.abilities.continuation == "chunks"
        tree = reading_tree(plan_reads(strings), _LEAST_SAVED if chunks else _NEVER)
        self._read_below([tree], store, None, 1, self.budgets.copy(), logits)

    def read_grid(
        self, heads: list[np.ndarray], tails: list[np.ndarray], store: Store, logits: bool = True
    ) -> None:
        """Read heads[h] ∘ tails[f] for all h and f, every head once; store(h, f, reading)."""
        lengths = np.array([len(tail) for tail in tails])
        here, rest = np.flatnonzero(lengths == 0), np.flatnonzero(lengths)
        keeps = self.network.abilities.continuation != "recompute"
        tree = reading_tree(plan_reads([tails[f] for f in rest], rest), _LEAST_SAVED if keeps else _NEVER)
        budgets, kept = self.budgets.copy(), np.maximum(self.budgets // 4, 1)
        for rows, tokens in group_by_length(heads):
            self._read_group(rows, tokens, here, tree, store, budgets, kept, logits)

    def read_plan(
        self,
        plan: ReadingPlan,
        store: Store,
        memory: Memory | None = None,
        copies: int = 1,
        budgets: Int[np.ndarray, "budgets"] | None = None,
        logits: bool = True,
        branches: int = 1,
    ) -> None:
        """Read every string of the plan after the memory's rows copy · branches + its branch."""
        if len(plan.lengths) == 0:
            return
        packed = self.network.packed(copies * int(plan.lengths.sum()), plan.tokens.shape[1], memory)
        if packed is not None:
            self._read_packed(packed, plan, store, memory, copies, logits, branches)
            return
        n, counts = len(plan.lengths), np.diff(plan.starts)
        asked = counts * (self.network.vocab_size if logits else 1)
        costs = np.stack([plan.lengths, asked], axis=1)

        def work(low: int, high: int) -> None:
            copy, which = np.divmod(np.arange(low, high), n)
            some = plan.take(which)
            rows = some.owners
            origin = None if memory is None else copy * branches + some.branches
            reading = self.read(some.tokens, rows, some.positions, memory, origin, logits=logits)
            store(copy[rows], some.targets, reading)

        run_blocks(np.tile(costs, (copies, 1)), self.budgets.copy() if budgets is None else budgets, work)

    def _read_packed(
        self,
        packed: PackedDecoder,
        plan: ReadingPlan,
        store: Store,
        memory: Memory | None,
        copies: int,
        logits: bool,
        branches: int,
    ) -> None:
        """`read_plan` through the packed weights: blocks of strings, each after every copy of its branch."""
        longest = plan.tokens.shape[1]
        prefixes = [
            packed.prefixes(memory, slice(branch, copies * branches, branches), longest)
            for branch in range(branches)
        ]

        def work(strings: Int[np.ndarray, "n"]) -> None:
            part = plan.take(strings)
            counts = np.diff(part.starts)
            reads = part.positions[
                part.starts[:-1, None] + np.minimum(np.arange(counts.max()), counts[:, None] - 1)
            ]
            wanted = (np.arange(counts.max()) < counts[:, None]).ravel()
            hidden = packed.hidden(Rows(part.tokens, reads), prefixes[part.branches[0]])[:, wanted]
            together = max(1, _READ_LOGITS // (self.network.vocab_size * len(part.targets)))
            for low in range(0, copies, together):
                copy = np.arange(low, min(low + together, copies))
                reading = self.network.reading_of(hidden[copy].reshape(-1, hidden.shape[2]), logits)
                store(np.repeat(copy, len(part.targets)), np.tile(part.targets, len(copy)), reading)

        in_parallel(work, packed.blocks(plan.lengths, plan.branches))

    def _read_below(
        self,
        parents: Sequence[Branch],
        store: Store,
        memory: Memory | None,
        copies: int,
        budgets: np.ndarray,
        logits: bool,
    ) -> None:
        """What follows branches of one depth; the memory has copies · len(parents) rows, if any."""
        leaves = joined([branch.leaves for branch in parents])
        self.read_plan(leaves, store, memory, copies, budgets, logits, len(parents))
        below = [(j, child) for j, branch in enumerate(parents) for child in branch.children]
        below.sort(key=lambda item: len(item[1].segment))
        kept = np.maximum(self.budgets // 4, 1)  # their memories stay until all below is read
        for _, group in groupby(below, key=lambda item: len(item[1].segment)):
            self._read_branches(list(group), len(parents), store, memory, copies, budgets, kept, logits)

    def _read_branches(
        self,
        group: list[tuple[int, Branch]],
        parents: int,
        store: Store,
        memory: Memory | None,
        copies: int,
        budgets: np.ndarray,
        kept: np.ndarray,
        logits: bool,
    ) -> None:
        """Branches of one length, as (number of the parent, branch), and what is below them."""

        def work(low: int, high: int) -> None:
            numbers, block = zip(*group[low:high], strict=True)
            tokens = np.tile(np.stack([branch.segment for branch in block]), (copies, 1))
            source = (np.arange(copies)[:, None] * parents + np.array(numbers)).ravel()
            owners = np.repeat(np.arange(len(block)), [len(branch.targets) for branch in block])
            positions = np.concatenate([branch.positions for branch in block])
            targets = np.concatenate([branch.targets for branch in block])
            copy, read = np.divmod(np.arange(copies * len(targets)), max(1, len(targets)))
            rows = copy * len(block) + owners[read]
            origin = None if memory is None else source
            reading = self.read(tokens, rows, positions[read], memory, origin, keep=True, logits=logits)
            store(copy, targets[read], reading)
            self._read_below(block, store, reading.memory, copies, budgets, logits)

        length = len(group[0][1].segment)
        reads = [len(branch.targets) * self.network.vocab_size for _, branch in group]
        costs = np.array([[copies * length, copies * count] for count in reads])
        run_blocks(costs, kept, work)

    def _read_group(
        self,
        rows: np.ndarray,
        heads: np.ndarray,
        here: np.ndarray,
        tree: Branch,
        store: Store,
        budgets: np.ndarray,
        kept: np.ndarray,
        logits: bool,
    ) -> None:
        """Heads of one length; `here` are the empty tails, `tree` the others."""
        length = heads.shape[1]
        if length == 0:  # nothing to remember: one copy answers for all

            def place_all(_: np.ndarray, f: np.ndarray, reading: Reading) -> None:
                for row in rows:
                    store(np.full(len(f), row), f, reading)

            self._read_below([tree], place_all, None, 1, budgets, logits)
            return

        packed = self.network.packed(len(rows) * int(tree.leaves.lengths.sum()), length, None)

        def work(low: int, high: int) -> None:
            block, local = rows[low:high], np.arange(high - low)
            if packed is None:
                reading = self.read(heads[low:high], local, local * 0 + length - 1, keep=True, logits=logits)
            else:
                hidden, memory = packed.remember(heads[low:high])
                reading = self.network.reading_of(hidden, logits, memory)
            for f in here:
                store(block, local * 0 + f, reading)

            def place(h: np.ndarray, f: np.ndarray, found: Reading) -> None:
                store(block[h], f, found)

            self._read_below([tree], place, reading.memory, len(block), budgets, logits)

        # the memories of a block of heads stay until the tails are read
        run_blocks(np.tile([length, self.network.vocab_size], (len(rows), 1)), kept, work)


def in_parallel(work: Callable[[np.ndarray], None], jobs: list[np.ndarray]) -> None:
    """Call work(job) for all jobs, one thread of torch's for each; the first error ends it."""

    def one(job: np.ndarray) -> None:
        with torch.inference_mode():  # which is a property of a thread
            work(job)

    with _ONE_THREAD_EACH:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # jobs share nothing; threads within a job would wait for each other
        try:
            in_threads([partial(one, job) for job in jobs], threads)
        finally:
            torch.set_num_threads(threads)


def in_threads(tasks: Sequence[Callable[[], None]], threads: int) -> None:
    """Run tasks in so many threads; the first error is raised, and tasks not begun are dropped."""
    if threads == 1 or len(tasks) == 1:
        for task in tasks:
            task()
        return
    with ThreadPoolExecutor(min(threads, len(tasks))) as pool:
        waiting = [pool.submit(task) for task in tasks]
        try:
            for future in waiting:
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def deal(
    readers: Sequence[BulkReader],
    items: Int[np.ndarray, "n"],
    work: Callable[[BulkReader, Int[np.ndarray, "part"]], None],
) -> None:
    """Call work(reader, part of the items) for every reader at once, consecutive parts of one size."""
    parts = [part for part in np.array_split(items, len(readers)) if len(part)]
    in_threads([partial(work, *pair) for pair in zip(readers, parts, strict=False)], len(parts))


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
