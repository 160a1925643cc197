"""Prefix trees: every distinct prefix once, every string found again."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from oracles.prefix_tree import group_by_length, prefix_tree

STRINGS = st.lists(st.lists(st.integers(0, 3), max_size=5), max_size=12)


def arrays(strings):
    return [np.array(s, dtype=np.int64) for s in strings]


@given(STRINGS)
def test_nodes_are_the_distinct_prefixes(strings):
    spelled: list[list[tuple[int, ...]]] = []
    seen = {}
    for depth, level in enumerate(prefix_tree(arrays(strings))):
        if depth == 0:
            assert level.parent.tolist() == [0]
            assert level.token.tolist() == [-1]
            names = [()]
        else:
            names = [
                (*spelled[-1][parent], token)
                for parent, token in zip(level.parent.tolist(), level.token.tolist(), strict=True)
            ]
        expected = {tuple(s[:depth]) for s in strings if len(s) >= depth} | ({()} if depth == 0 else set())
        assert len(names) == len(set(names))
        assert set(names) == expected
        for string, node in zip(level.strings.tolist(), level.node.tolist(), strict=True):
            seen[string] = names[node]
        spelled.append(names)
    assert len(spelled) == 1 + max((len(s) for s in strings), default=0)
    assert seen == {i: tuple(s) for i, s in enumerate(strings)}


@given(STRINGS)
def test_groups_partition_the_list(strings):
    back, lengths = {}, []
    for rows, stacked in group_by_length(arrays(strings)):
        lengths.append(stacked.shape[1])
        back.update({int(row): stacked[i].tolist() for i, row in enumerate(rows)})
    assert lengths == sorted(set(map(len, strings)))
    assert back == dict(enumerate(strings))
