"""The bound of the KL-projected sampler: its formula, and against the bound of the unprojected one."""

import math

import pytest

from lrlm_sim.learners.conditional_constants import (
    conditional_constants,
    projected_constants,
    projected_divergence,
)
from oracles.errors import ParameterError


def test_the_divergence_by_hand():
    """S = 1, A = 2, T = 2: one step with M = 2 futures and n = 2 > S histories."""
    theta, zeta = 0.1, 1e-3
    residual = 3 * zeta * math.sqrt(2)
    moved = 2 * 2 * 2 * 2 * residual * math.sqrt(2) / theta
    step = (2 / theta + 1) * moved + theta + (2 * theta + 12 * residual) * math.log(4 / theta)
    assert projected_divergence(1, 2, 2, theta, zeta) == pytest.approx(2 * theta + step)


@pytest.mark.parametrize("sizes", [(2, 2, 4), (3, 3, 4), (8, 2, 11), (8, 2, 4), (2, 3, 1)])
def test_the_sizes_spend_the_whole_error(sizes):
    epsilon = 0.3
    found = projected_constants(*sizes, epsilon, 0.05)
    assert found.zeta / 2 + math.sqrt(found.divergence / 2) == pytest.approx(epsilon)
    assert found.divergence == projected_divergence(*sizes, found.theta, found.zeta)


def test_projection_removes_the_power_of_the_rank():
    """Per further token the samples grow by a power of A, whatever the rank; without projection by (2S)²."""
    ratio = {}
    for rank in (4, 64):
        projected = [projected_constants(rank, 2, T, 0.3, 0.05).samples for T in (16, 18)]
        ratio[rank] = projected[1] / projected[0]
    assert ratio[64] < 1.5 * ratio[4]
    unprojected = [conditional_constants(8, 2, T, 0.3, 0.05).samples for T in (9, 11)]
    assert unprojected[1] / unprojected[0] > 16**3
    small, large = (2, 2, 3), (8, 2, 20)
    assert projected_constants(*small, 0.5, 0.1).samples > conditional_constants(*small, 0.5, 0.1).samples
    assert projected_constants(*large, 0.5, 0.1).samples < conditional_constants(*large, 0.5, 0.1).samples


def test_wrong_arguments():
    with pytest.raises(ParameterError, match="epsilon and delta"):
        projected_constants(2, 2, 3, 0.0, 0.1)
