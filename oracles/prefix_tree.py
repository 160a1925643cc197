"""Prefix trees of token strings: every shared prefix is visited once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int


@dataclass(frozen=True)
class Level:
    """Nodes at one depth: node j continues node `parent[j]` of the level above by `token[j]`.

    `strings[i]` ends at node `node[i]` of this level, for the strings of exactly this length.
    """

    parent: Int[np.ndarray, "nodes"]
    token: Int[np.ndarray, "nodes"]
    strings: Int[np.ndarray, "ends"]
    node: Int[np.ndarray, "ends"]


def prefix_tree(strings: list[Int[np.ndarray, "length"]]) -> Iterator[Level]:
    """Levels 0, 1, … of the tree whose nodes are the distinct prefixes of `strings`.

    Level 0 has the root alone (parent 0, token −1). Cost O(total number of tokens · log n).
    """
    lengths = np.array([len(s) for s in strings], dtype=np.int64)
    node_of = np.zeros(len(strings), dtype=np.int64)
    root = np.zeros(1, dtype=np.int64)
    ends = np.flatnonzero(lengths == 0)
    yield Level(root, root - 1, ends, node_of[ends])
    for depth in range(1, int(lengths.max(initial=0)) + 1):
        alive = np.flatnonzero(lengths >= depth)
        tokens = np.array([strings[i][depth - 1] for i in alive], dtype=np.int64)
        pairs = np.stack([node_of[alive], tokens], axis=1)
        nodes, inverse = np.unique(pairs, axis=0, return_inverse=True)
        node_of[alive] = inverse.ravel()
        ends = np.flatnonzero(lengths == depth)
        yield Level(nodes[:, 0], nodes[:, 1], ends, node_of[ends])


def group_by_length(
    strings: list[Int[np.ndarray, "length"]],
) -> Iterator[tuple[Int[np.ndarray, "group"], Int[np.ndarray, "group length"]]]:
    """(positions in the list, strings stacked) for each distinct length, shortest first."""
    lengths = np.array([len(s) for s in strings], dtype=np.int64)
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        stacked = np.empty((len(rows), int(length)), dtype=np.int64)
        for i, row in enumerate(rows):
            stacked[i] = strings[row]
        yield rows, stacked
