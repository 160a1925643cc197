"""The prefix tree of the strings a network is asked about, cut where reading a prefix once pays.

A branch is read on its own, and what is remembered of it continued by everything below, where that saves
enough tokens; branches that save less are read again with each string below them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int


@dataclass(frozen=True, eq=False)
class ReadingPlan:
    """Strings to read, right-padded; reads starts[i]:starts[i+1], at `positions`, belong to string i.

    Read j answers for the caller's item targets[j]. String i continues branch branches[i] of the tree.
    """

    tokens: Int[np.ndarray, "strings longest"]
    lengths: Int[np.ndarray, "strings"]
    starts: Int[np.ndarray, "bounds"]
    positions: Int[np.ndarray, "reads"]
    targets: Int[np.ndarray, "reads"]
    branches: Int[np.ndarray, "strings"]

    @classmethod
    def of(
        cls,
        tokens: Int[np.ndarray, "strings longest"],
        lengths: Int[np.ndarray, "strings"],
        reads: tuple[np.ndarray, np.ndarray, np.ndarray],
        branches: Int[np.ndarray, "strings"] | None = None,
    ) -> ReadingPlan:
        """From reads given as (string, position, target), in any order."""
        strings, positions, targets = reads
        order = np.lexsort((positions, strings))
        starts = np.searchsorted(strings[order], np.arange(len(tokens) + 1))
        if branches is None:
            branches = np.zeros(len(tokens), dtype=np.int64)
        return cls(tokens, lengths, starts, positions[order], targets[order], branches)

    @property
    def owners(self) -> Int[np.ndarray, "reads"]:
        """The string that each read belongs to."""
        return np.repeat(np.arange(len(self.lengths)), np.diff(self.starts))

    def take(self, strings: Int[np.ndarray, "n"]) -> ReadingPlan:
        """The plan of some of the strings."""
        lengths = self.lengths[strings]
        counts = np.diff(self.starts)[strings]
        starts = np.concatenate([[0], np.cumsum(counts)])
        reads = np.repeat(self.starts[strings] - starts[:-1], counts) + np.arange(starts[-1])
        tokens = self.tokens[strings, : lengths.max(initial=0)]
        return ReadingPlan(
            tokens, lengths, starts, self.positions[reads], self.targets[reads], self.branches[strings]
        )


@dataclass(frozen=True, eq=False)
class Branch:
    """Tokens read once for all below: `segment` follows what is above it, with reads at `positions`.

    `leaves` are the strings that go on from here alone, counted from here; `children` the branches.
    """

    segment: Int[np.ndarray, "length"]
    positions: Int[np.ndarray, "reads"]
    targets: Int[np.ndarray, "reads"]
    leaves: ReadingPlan
    children: tuple[Branch, ...]


@dataclass(eq=False)
class _Open:
    """A branch while its strings, numbers first:last in lexicographic order, are collected."""

    depth: int
    first: int
    last: int = 0
    leaves: list[int] = field(default_factory=list)
    children: list[_Open] = field(default_factory=list)


def plan_reads(
    strings: list[Int[np.ndarray, "length"]], targets: Int[np.ndarray, "n"] | None = None
) -> ReadingPlan:
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
    lengths = np.array([len(s) for s in strings], dtype=np.int64)
    answers = np.arange(len(strings)) if targets is None else np.asarray(targets)
    return ReadingPlan.of(tokens, lengths[covers], (place[cover_of], lengths - 1, answers))


def reading_tree(plan: ReadingPlan, least_saved: int) -> Branch:
    """The tree of a plan in which no string begins another; branches save at least so many tokens.

    A branch of length ℓ with k continuations saves (k − 1)·ℓ tokens. The longest common prefixes of
    neighbours in lexicographic order tell where strings part; a stack of open branches finds the tree.
    """
    n, width = plan.tokens.shape
    padded = np.where(np.arange(width) < plan.lengths[:, None], plan.tokens, -1)
    order = np.lexsort(padded.T[::-1]) if width else np.arange(n)
    ordered = padded[order]
    equal = np.cumprod(ordered[1:] == ordered[:-1], axis=1).sum(axis=1, dtype=np.int64)
    shared = np.concatenate([equal, [0]])
    stack = [_Open(0, 0)]
    for i in range(n):
        following = int(shared[i])
        if following > stack[-1].depth:
            stack.append(_Open(following, i))
        stack[-1].leaves.append(i)
        while stack[-1].depth > following:
            done = stack.pop()
            done.last = i + 1
            if stack[-1].depth < following:
                stack.append(_Open(following, done.first))
            _settle(done, stack[-1], least_saved)
    root = stack[0]
    root.last = n
    return _closed(root, 0, plan.take(order))


def _settle(branch: _Open, above: _Open, least_saved: int) -> None:
    """Hang a finished branch below another one, or dissolve it into that one."""
    continuations = len(branch.leaves) + len(branch.children)
    if (continuations - 1) * (branch.depth - above.depth) >= least_saved:
        above.children.append(branch)
    else:
        above.leaves += branch.leaves
        above.children += branch.children


def _closed(branch: _Open, above: int, ordered: ReadingPlan) -> Branch:
    """The finished branch; `ordered` is the whole plan in lexicographic order, `above` the depth so far."""
    depth = branch.depth
    below = slice(ordered.starts[branch.first], ordered.starts[branch.last])
    here = (ordered.positions[below] >= above) & (ordered.positions[below] < depth)
    leaves = ordered.take(np.array(sorted(branch.leaves, key=lambda i: ordered.lengths[i]), dtype=np.int64))
    owners = leaves.owners
    left = leaves.positions >= depth
    return Branch(
        ordered.tokens[branch.first, above:depth] if depth else np.empty(0, dtype=np.int64),
        ordered.positions[below][here] - above,
        ordered.targets[below][here],
        ReadingPlan.of(
            leaves.tokens[:, depth:],
            leaves.lengths - depth,
            (owners[left], leaves.positions[left] - depth, leaves.targets[left]),
        ),
        tuple(_closed(child, depth, ordered) for child in branch.children),
    )


def joined(plans: list[ReadingPlan]) -> ReadingPlan:
    """All strings of the plans in one; those of plan j continue branch j."""
    width = max((plan.tokens.shape[1] for plan in plans), default=0)
    sizes = [len(plan.lengths) for plan in plans]
    firsts = np.cumsum([0, *sizes])
    tokens = np.zeros((firsts[-1], width), dtype=np.int64)
    for plan, first in zip(plans, firsts[:-1], strict=True):
        tokens[first : first + len(plan.tokens), : plan.tokens.shape[1]] = plan.tokens
    reads = (
        np.concatenate([plan.owners + first for plan, first in zip(plans, firsts[:-1], strict=True)]),
        np.concatenate([plan.positions for plan in plans]),
        np.concatenate([plan.targets for plan in plans]),
    )
    return ReadingPlan.of(
        tokens,
        np.concatenate([plan.lengths for plan in plans]),
        reads,
        np.repeat(np.arange(len(plans)), sizes),
    )
