"""Minimal and balanced realisations: same law, exact widths, and what balancing is for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrlm_sim.learners import ISANExtraction
from lrlm_sim.matrices import rank_profile
from lrlm_sim.realisation import balance, minimal, minimal_widths
from oracles import ISAN, CauchySeparation, LogitAccess, Oracle
from oracles.errors import ParameterError, ShapeError
from tests.registry import per_step_isan


def law(network: Oracle) -> np.ndarray:
    return network.score(np.indices((network.vocab_size,) * network.horizon).reshape(network.horizon, -1).T)


def per_step(network: ISAN) -> tuple[np.ndarray, np.ndarray]:
    steps = (network.horizon - 1, network.horizon)
    shape = (network.vocab_size, network.width)
    return (
        np.broadcast_to(network.transitions, (steps[0], *shape, network.width)).copy(),
        np.broadcast_to(network.readouts, (steps[1], *shape)).copy(),
    )


def in_basis(network: ISAN, condition: float, seed: int) -> ISAN:
    """The network in a random basis of the given condition number."""
    rng, width = np.random.default_rng(seed), network.width
    left, right = (np.linalg.qr(rng.normal(size=(width, width)))[0] for _ in range(2))
    basis = left * np.geomspace(1, 1 / condition, width) @ right
    inverse = np.linalg.inv(basis)
    maps, readouts = inverse @ network.transitions @ basis, network.readouts @ basis
    return ISAN(inverse @ network.initial, maps, readouts, network.horizon)


def inflated(network: ISAN, extra: int, seed: int) -> ISAN:
    """The network with `extra` unreachable and `extra` unobservable coordinates, in a random basis."""
    rng, width = np.random.default_rng(seed), network.width
    maps, readouts = per_step(network)
    wide = width + 2 * extra
    big = 0.5 * rng.normal(size=(*maps.shape[:2], wide, wide))
    shown = rng.normal(size=(*readouts.shape[:2], wide))
    core, never = slice(0, width), slice(width, width + extra)
    hidden = slice(width + extra, wide)
    big[..., core, core], shown[..., core] = maps, readouts
    big[..., never, core], big[..., never, hidden], big[..., core, hidden] = 0.0, 0.0, 0.0
    shown[..., hidden] = rng.normal(size=(network.horizon, 1, extra))  # moves all logits alike
    initial = np.concatenate([network.initial, np.zeros(extra), rng.normal(size=extra)])
    return in_basis(ISAN(initial, big, shown, network.horizon), 3.0, seed)


families = st.sampled_from(["affine", "orthogonal", "per step"])


def make(family: str, width: int, vocab_size: int, horizon: int, seed: int) -> ISAN:
    if family == "per step":
        return per_step_isan(width, vocab_size, horizon, seed)
    return ISAN.random(width, vocab_size, horizon, seed, orthogonal=family == "orthogonal")


@given(
    families, st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(0, 99), st.integers(0, 2)
)
def test_minimal_has_the_law_and_the_rank_of_every_cut(family, width, vocab_size, horizon, seed, extra):
    network = make(family, width, vocab_size, horizon, seed)
    big = inflated(network, extra, seed)
    expected = law(network)
    assert np.abs(law(big) - expected).max() <= 1e-10
    ranks = rank_profile(network, "logit").ranks
    small = minimal(big)
    assert minimal_widths(big) == ranks
    assert small.width == max(1, *ranks)
    assert np.abs(law(small) - expected).max() <= 1e-9
    assert minimal_widths(small) == ranks  # nothing is left to remove


@given(
    families, st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(0, 99), st.integers(0, 2)
)
def test_balance_has_the_law_and_the_width(family, width, vocab_size, horizon, seed, extra):
    network = inflated(make(family, width, vocab_size, horizon, seed), extra, seed)
    for strings in (None, network.sample(20, seed)):
        found = balance(network, strings)
        assert found.width == network.width
        assert np.abs(law(found) - law(network)).max() <= 1e-9


def test_extracted_networks_have_the_widths_of_their_teacher():
    """ISANExtraction pads to one width; reduced again, every cut has the teacher's logit rank."""
    teacher = CauchySeparation(3)
    learned = ISANExtraction().fit(LogitAccess(teacher), 0).model
    assert minimal_widths(learned, 1e-8) == rank_profile(teacher, "logit").ranks
    small = minimal(learned, 1e-8)
    assert small.width == 2
    assert np.abs(law(balance(small)) - law(teacher)).max() <= 1e-9


def test_the_constant_of_an_affine_network_counts_only_where_it_is_seen():
    """x = (1, y): rank 2 with a readout of the constant, 1 without one if y is linear, 2 if y is affine."""
    maps = np.array([[[1.0, 0.0], [0.0, 0.5]], [[1.0, 0.0], [0.0, -0.3]], [[1.0, 0.0], [0.0, 0.9]]])
    shown, hidden = (
        np.array([[1.0, 0.3], [0.0, 1.0], [-1.0, -0.4]]),
        np.array([[0, 0.3], [0, 1.0], [0, -0.4]]),
    )
    pushed = maps.copy()
    pushed[:, 1, 0] = [0.2, -0.7, 0.4]
    for network, middle in [
        (ISAN([1.0, 1.0], maps, shown, 4), 2),
        (ISAN([1.0, 1.0], maps, hidden, 4), 1),
        (ISAN([1.0, 1.0], pushed, hidden, 4), 2),
    ]:
        assert minimal_widths(network) == rank_profile(network, "logit").ranks
        assert minimal_widths(network)[2] == middle


def test_the_uniform_law_has_rank_zero_and_width_one():
    network = ISAN([1.0, 2.0], np.ones((3, 2, 2)), np.ones((3, 2)), 4)
    assert minimal_widths(network) == (0, 0, 0, 0)
    small = minimal(network)
    assert small.width == 1
    np.testing.assert_allclose(law(small), -4 * np.log(3), rtol=1e-14)
    assert minimal_widths(ISAN([0.0, 0.0], np.ones((3, 2, 2)), np.eye(3)[:, :2], 2)) == (0, 0)


def test_long_horizons():
    network = ISAN.random(5, 3, 200, 0, scale=2.0)
    big = inflated(ISAN.random(5, 3, 200, 0, scale=2.0, orthogonal=True), 2, 0)
    strings = np.random.default_rng(0).integers(0, 3, (20, 200))
    for given_network, width in ((network, 5), (big, 5)):
        small = minimal(given_network)
        assert small.width == width
        assert max(minimal_widths(given_network)) == width
        for found in (small, balance(small)):
            assert np.abs(found.score(strings) - given_network.score(strings)).max() <= 1e-9


def test_a_direction_reached_by_one_rare_string_is_kept():
    """Zeros in a row are counted: the last state follows one history of 4^39, 2e-12 of the Gramian's root."""
    width, vocab_size = 40, 4
    maps = np.zeros((vocab_size, width, width))
    maps[0] = np.eye(width, k=-1)
    maps[1:, 0, :] = 1.0
    readout = np.zeros((vocab_size, width))
    readout[1, -1] = 5.0
    network = ISAN(np.eye(width)[0], maps, readout, width)
    small, zeros = minimal(network), np.zeros((1, width - 1), dtype=int)
    for history in (zeros, zeros[:, 1:]):
        found = small.next_log_probs(history)
        assert np.abs(found - network.next_log_probs(history)).max() <= 1e-12
    assert network.next_log_probs(zeros)[0, 1] > -0.1


def gramians(network: ISAN) -> list[tuple[np.ndarray, np.ndarray]]:
    """(P_t, Q_t) by their definition, over all strings."""
    maps, readouts = per_step(network)
    readouts = readouts - readouts.mean(axis=1, keepdims=True)
    reach = [np.outer(network.initial, network.initial)]
    for m in maps:
        reach.append(np.mean([a @ reach[-1] @ a.T for a in m], axis=0))
    seen = [readouts[-1].T @ readouts[-1]]
    for m, c in zip(maps[::-1], readouts[-2::-1], strict=True):
        seen.append(c.T @ c + np.mean([a.T @ seen[-1] @ a for a in m], axis=0))
    return list(zip(reach, seen[::-1], strict=True))


def test_balanced_gramians_are_equal_and_diagonal():
    network = in_basis(ISAN.random(3, 4, 8, 1, scale=2.0), 100.0, 0)
    profile = minimal_widths(network)
    pairs = gramians(balance(network))
    full = [t for t in range(8) if profile[t] == 3]
    assert len(full) >= 4
    for t in full:
        reach, seen = pairs[t]
        np.testing.assert_allclose(reach, seen, atol=1e-3 * np.abs(seen).max())
        np.testing.assert_allclose(reach, np.diag(np.diag(reach)), atol=1e-3 * np.abs(reach).max())
    before = gramians(network)[4]
    assert np.abs(before[0] - before[1]).max() > 0.5 * np.abs(before[1]).max()


def test_balancing_makes_a_bad_basis_good_for_single_precision():
    """Rounding the arrays to float32 moves the laws by less after balancing, at least 20 times here."""

    def damage(network: ISAN) -> float:
        arrays = (network.initial, network.transitions, network.readouts)
        rounded = ISAN(*(a.astype(np.float32).astype(np.float64) for a in arrays), network.horizon)
        strings = np.random.default_rng(0).integers(0, 3, (200, 12))
        return float(np.abs(rounded.score(strings) - network.score(strings)).max())

    bad = in_basis(ISAN.random(4, 3, 12, 0, scale=2.0), 1e4, 0)
    assert damage(balance(bad)) < damage(bad) / 20


def test_wrong_arguments():
    network = ISAN.random(2, 3, 4, 0)
    with pytest.raises(ShapeError, match="horizon"):
        balance(network, np.zeros((2, 3), dtype=int))
    with pytest.raises(ShapeError):
        balance(network, np.zeros((0, 4), dtype=int))
    with pytest.raises(ParameterError):
        minimal(network, -1.0)
