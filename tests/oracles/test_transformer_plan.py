"""How questions are cut into passes: fewest strings, prefix trees, blocks within budgets."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from oracles.transformer import TransformerOracle
from oracles.transformer_network import CachedNetwork
from oracles.transformer_plan import run_blocks
from oracles.transformer_tree import Branch, ReadingPlan, joined, plan_reads, reading_tree
from tests.oracles.tiny_transformers import tiny_model

STRINGS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), max_size=14)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), max_size=12))
def test_plans_cover_every_string_with_no_string_to_spare(strings):
    plan = plan_reads([np.array(s) for s in strings])
    padded = [tuple(row[:length]) for row, length in zip(plan.tokens.tolist(), plan.lengths, strict=True)]
    found = {}
    for i, cover in enumerate(padded):
        for read in range(plan.starts[i], plan.starts[i + 1]):
            found[int(plan.targets[read])] = list(cover[: plan.positions[read] + 1])
    assert found == dict(enumerate(strings))
    distinct = {tuple(s) for s in strings}
    maximal = {s for s in distinct if not any(len(t) > len(s) and t[: len(s)] == s for t in distinct)}
    assert sorted(padded) == sorted(maximal)
    assert list(plan.lengths) == sorted(plan.lengths)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20), st.integers(1, 30))
def test_blocks_stay_within_their_budgets_and_are_maximal(costs, budget):
    blocks = []
    table, budgets = np.array(costs, dtype=int).reshape(-1, 2), np.array([budget, 12])
    run_blocks(table, budgets, lambda low, high: blocks.append((low, high)))
    assert [i for low, high in blocks for i in range(low, high)] == list(range(len(costs)))

    def within(low: int, high: int) -> bool:
        return high - low == 1 or bool(((high - low) * table[low:high].max(axis=0) <= budgets).all())

    assert all(within(low, high) for low, high in blocks)
    assert not any(within(low, high + 1) for low, high in blocks if high < len(costs))


def answered(branch: Branch, above: tuple[int, ...] = ()) -> dict[int, list[int]]:
    """The string that each target is answered at, over a whole tree."""
    here = (*above, *branch.segment.tolist())
    found = {}
    for position, target in zip(branch.positions, branch.targets, strict=True):
        found[int(target)] = list((*above, *branch.segment[: position + 1].tolist()))
    leaves = branch.leaves
    for row, position, target in zip(leaves.owners, leaves.positions, leaves.targets, strict=True):
        found[int(target)] = list((*here, *leaves.tokens[row, : position + 1].tolist()))
    for child in branch.children:
        found |= answered(child, here)
    return found


def tokens_read(branch: Branch) -> int:
    """Tokens of all segments and leaves."""
    own = len(branch.segment) + int(branch.leaves.lengths.sum())
    return own + sum(tokens_read(child) for child in branch.children)


@given(STRINGS, st.sampled_from([1, 2, 4, 10**6]))
def test_trees_answer_every_string_and_read_shared_prefixes_once(strings, least):
    tree = reading_tree(plan_reads([np.array(s) for s in strings]), least)
    assert answered(tree) == dict(enumerate(strings))
    nodes = {tuple(s[: i + 1]) for s in strings for i in range(len(s))}
    covers = [s for s in {tuple(s) for s in strings} if not any(n[: len(s)] == s and n != s for n in nodes)]
    if least == 1:  # every branch pays: each distinct prefix is read exactly once
        assert tokens_read(tree) == len(nodes)
    assert len(nodes) <= tokens_read(tree) <= sum(map(len, covers))
    if least == 10**6:
        assert not tree.children
        assert tokens_read(tree) == sum(map(len, covers))


@given(STRINGS)
def test_joining_and_taking_plans_keeps_their_reads(strings):
    plan = plan_reads([np.array(s) for s in strings])
    parts = [plan.take(np.arange(i, len(plan.lengths), 2)) for i in range(2)]
    both = joined(parts)
    assert np.array_equal(np.repeat([0, 1], [len(part.lengths) for part in parts]), both.branches)

    def reads(one: ReadingPlan) -> set:
        rows = [
            tuple(one.tokens[i, : p + 1].tolist()) for i, p in zip(one.owners, one.positions, strict=True)
        ]
        return set(zip(rows, one.targets.tolist(), strict=True))

    assert reads(both) == reads(plan)


def passes(oracle: TransformerOracle, monkeypatch) -> list[int]:
    """Tokens of every forward pass from now on."""
    sizes, forward = [], CachedNetwork._forward
    monkeypatch.setattr(
        CachedNetwork,
        "_forward",
        lambda self, tokens, *rest: sizes.append(tokens.numel()) or forward(self, tokens, *rest),
    )
    return sizes


def test_histories_with_common_prefixes_are_read_on_their_tree(monkeypatch):
    oracle = TransformerOracle(tiny_model("llama"), block_tokens=400)
    rng = np.random.default_rng(0)
    trunk, branches = rng.integers(0, 50, 30), rng.integers(0, 50, (6, 8))
    twigs = rng.integers(0, 50, (20, 3))
    histories = [[*trunk, *b, *t] for b in branches for t in twigs] + [trunk[:7], [*trunk, *branches[0][:2]]]
    alone = np.concatenate([oracle.next_log_probs([h]) for h in histories])
    sizes = passes(oracle, monkeypatch)
    found = oracle.next_log_probs(histories)
    assert np.abs(found - alone).max() <= 1e-4
    # BOS and trunk once, each branch once, the twigs: not 120 · 42 tokens
    assert sum(sizes) == 31 + 6 * 8 + 120 * 3


def test_futures_with_common_prefixes_are_read_on_their_tree(monkeypatch):
    oracle = TransformerOracle(tiny_model("llama"), block_tokens=4000)
    rng = np.random.default_rng(1)
    stems, ends = rng.integers(0, 50, (3, 10)), rng.integers(0, 50, (16, 2))
    futures = [[*s, *e] for s in stems for e in ends] + [[], stems[0][:4].tolist()]
    histories = rng.integers(0, 50, (4, 5))
    plain = np.stack([oracle.next_log_probs([[*h, *f] for f in futures]) for h in histories])
    sizes = passes(oracle, monkeypatch)
    found = oracle.extended_log_probs(histories, futures)
    assert np.abs(found - plain).max() <= 1e-4
    assert sum(sizes) == 4 * (6 + 3 * 10 + 48 * 2)


def test_recurrent_models_do_not_read_histories_token_by_token(monkeypatch):
    oracle = TransformerOracle(tiny_model("mamba"))
    assert oracle.network.abilities.continuation == "tokens"
    rng = np.random.default_rng(0)
    trunk = rng.integers(0, 50, 20)
    histories = [[*trunk, *end] for end in rng.integers(0, 50, (30, 2))]
    sizes = passes(oracle, monkeypatch)
    oracle.next_log_probs(histories)
    assert len(sizes) == 1
