"""Alias tables: exact column masses, impossible outcomes, boundary uniforms."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from oracles.alias import AliasTable
from tests.oracles.enumeration import dirichlet_with_zeros


def masses(table: AliasTable, laws: int) -> np.ndarray:
    """Probability of each outcome read off the table: kept parts plus what aliases send."""
    out = np.zeros((laws, table.outcomes))
    for row in range(laws):
        for column in range(table.outcomes):
            slot = row * table.outcomes + column
            kept = table.threshold[slot] - column
            assert -1e-12 <= kept <= 1 + 1e-12
            out[row, column] += kept
            out[row, table.alias[slot]] += 1 - kept
    return out / table.outcomes


@given(st.integers(1, 4), st.integers(1, 40), st.floats(0, 0.9), st.integers(0, 999))
def test_tables_hold_the_laws(count, outcomes, zeros, seed):
    laws = dirichlet_with_zeros(np.random.default_rng(seed), (count, outcomes), zeros)
    np.testing.assert_allclose(masses(AliasTable.build(laws), count), laws, atol=1e-13)


@given(st.integers(1, 30), st.integers(0, 999))
def test_impossible_outcomes_are_never_drawn(outcomes, seed):
    rng = np.random.default_rng(seed)
    laws = dirichlet_with_zeros(rng, (2, outcomes), 0.6)
    edges = np.concatenate([np.arange(outcomes) / outcomes, [np.nextafter(1, 0)], rng.random(500)])
    uniforms = np.concatenate([edges, np.nextafter(edges[1:outcomes], 0)])
    for row in (0, 1):
        drawn = AliasTable.build(laws).draw(np.full(len(uniforms), row), uniforms)
        assert drawn.min() >= 0
        assert drawn.max() < outcomes
        assert (laws[row, drawn] > 0).all()


def test_draws_on_a_grid_count_the_law():
    """A fine grid of uniforms hits each outcome in proportion, within one grid cell per column."""
    laws = np.array([[0.5, 0.3, 0.2], [0.0, 0.9, 0.1]])
    grid = (np.arange(30_000) + 0.5) / 30_000
    for row, law in enumerate(laws):
        drawn = AliasTable.build(laws).draw(np.full(len(grid), row), grid)
        np.testing.assert_allclose(np.bincount(drawn, minlength=3) / len(grid), law, atol=4 / 30_000)
