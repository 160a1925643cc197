"""The growing-rank hard teacher: exact ranks at every cut, bounds, distance to the ideal generator."""

from __future__ import annotations

import math
from itertools import product

from lrlm_sim.distances import total_variation
from lrlm_sim.rational import branching_law, branching_logits, exact_rank
from lrlm_sim.theorems.base import Instance, Measurement, Theorem
from lrlm_sim.theorems.separations import exact_ranks, float_ranks, misses
from oracles.branching_program import BranchingProgram

_SIZES = {"bits": (1, 4), "copies": (1, 4)}
_FEW = {"small": 16, "medium": 60, "large": 200}
_ODDS = 4  # e^(2B), so that every probability is rational


def _program(instance: Instance, scale: float = 0.5 * math.log(_ODDS)) -> BranchingProgram:
    """A random program followed by one bit of padding."""
    bits, copies = instance["bits"], instance["copies"]
    return BranchingProgram.random(bits, copies, scale, bits + copies + 2, instance["seed"])


def logit_formula(program: BranchingProgram) -> list[int]:
    """Logit rank at every cut, without the logit matrix: the dimension of what the future can ask for.

    After t tokens the future can ask for 2X_i − 1 of every bit that a copy yet to come reads, and, for every
    way b to make the copies that are left, for the label's 2C + R = 2C_t + 2C_rest(b) + R(b run from the
    state reached). These functions of the history are evaluated on all histories and their span is taken.
    """
    bits, copies = int(program.n_bits or 0), len(program.schedule)
    ranks = []
    for t in range(bits + copies + 1):
        histories = list(product((0, 1), repeat=t))
        rests = list(product((0, 1), repeat=bits + copies - t))
        columns = [[_label(program, (*h, *rest)) for rest in rests] for h in histories]
        reads = [int(i) for i in program.schedule[max(0, t - bits) :]]
        known = [[2 * h[i] - 1 for i in reads if i < t] for h in histories]
        constant = [[1] * any(i >= t for i in reads) for _ in histories]  # a bit still to be drawn
        ranks.append(exact_rank([c + k + o for c, k, o in zip(columns, known, constant, strict=True)]))
    return ranks + [0] * (program.horizon - len(ranks))


def _label(program: BranchingProgram, history: tuple[int, ...]) -> int:
    """2C + R after all bits and copies."""
    bits = int(program.n_bits or 0)
    wrong = sum(a != history[i] for a, i in zip(history[bits:], program.schedule, strict=True))
    state = 0
    for copy, bit in enumerate(history[bits:]):
        state = int(program.permutations[copy, bit, state])
    return 2 * wrong + (1 if state else -1)


def logit_bounds(program: BranchingProgram) -> list[int]:
    """1 + k at cut t ≤ n and k + 6 after it, k the known bits that are still read; 1 at the label, 0 in
    padding.

    After cut n: the k bits, the mismatches C, and the five indicators of the program's state.
    """
    bits, copies = int(program.n_bits or 0), len(program.schedule)
    bounds = []
    for t in range(bits + copies):
        k = len({int(i) for i in program.schedule[max(0, t - bits) :] if i < t})
        bounds.append(1 + k if t <= bits else k + 6)
    return [*bounds, 1] + [0] * (program.horizon - bits - copies - 1)


def probability_formula(program: BranchingProgram) -> list[int]:
    """2^k at cut t ≤ n, k the scheduled bits among the first t."""
    return [
        2 ** len({int(i) for i in program.schedule if i < t}) for t in range(int(program.n_bits or 0) + 1)
    ]


def _exact_profile(instance: Instance, tokens_late: int = 0) -> Measurement:
    """Cuts at which the exact ranks differ from the formulas or from double precision."""
    program = _program(instance)
    probability, logit = exact_ranks(branching_law(program, _ODDS), branching_logits(program))
    expected = logit_formula(program)[tokens_late:] + [0] * tokens_late
    head = probability_formula(program)
    wrong = misses(([*head, *probability[len(head) :]], expected), (probability, logit))
    return Measurement(wrong + misses(float_ranks(program), (probability, logit)), 0, 0)


def _bounded(instance: Instance, less: int = 0) -> Measurement:
    """Largest excess of a logit rank over its bound at that cut, and over n + 7."""
    program = _program(instance)
    ranks = branching_logits(program)
    bounds = [min(bound, instance["bits"] + 7) for bound in logit_bounds(program)]
    excess = [ranks.rank(t) - bound + less for t, bound in enumerate(bounds)]
    return Measurement(max(excess), 0, 0)


def _isan_width(instance: Instance) -> Measurement:
    """TV of the explicit ISAN of width n + 7, plus what its width is above that."""
    program = _program(instance)
    network = program.to_isan()
    surplus = max(0, network.transitions.shape[-1] - instance["bits"] - 7)
    return Measurement(total_variation(program, network) + surplus, 0.0, 1e-12)


def _isan_without_mismatches(instance: Instance) -> Measurement:
    """Mutant: a network that does not count the copies that went wrong."""
    program = _program(instance)
    quiet = program.to_isan()
    quiet.readouts[:, :, instance["bits"] + 1] = 0.0
    return Measurement(total_variation(program, quiet), 0.0, 1e-12)


def _ideal_gap(instance: Instance, copies: int = 1) -> Measurement:
    """| TV to the deterministic-copy generator − (1 − (1−η)^(L+1)) |."""
    scale = 0.2 + (instance["seed"] % 5) / 3
    eta = 1 / (1 + math.exp(2 * scale))
    exact = 1 - (1 - eta) ** (instance["copies"] + copies)
    ideal = _program(instance, 30.0)  # e^−60: exact in double precision
    return Measurement(abs(total_variation(_program(instance, scale), ideal) - exact), 0.0, 1e-9)


THEOREMS = (
    Theorem(
        "growing-rank-cuts",
        "Exact ranks of the branching-program teacher at every cut: logit rank = dimension of what "
        "the future can ask for, probability rank 2^k at cut t ≤ n (k scheduled bits among the first t).",
        "Mausberg 2026, section 5; formulas derived in the code",
        _SIZES,
        _exact_profile,
        mutants={"one token late": lambda i: _exact_profile(i, 1)},
        trials=_FEW,
    ),
    Theorem(
        "growing-rank-bound",
        "Its logit rank is at most 1 + k at cut t ≤ n and k + 6 after it (k known bits still to be "
        "copied), hence at most n + 7.",
        "Mausberg 2026, section 5",
        _SIZES,
        _bounded,
        mutants={"one less at every cut": lambda i: _bounded(i, 1)},
        trials=_FEW,
    ),
    Theorem(
        "growing-rank-isan",
        "It is an ISAN of width n + 7: the bits, the number of wrong copies, the program's state.",
        "Mausberg 2026, section 5",
        _SIZES,
        _isan_width,
        lambda instance: 0.0,
        mutants={"wrong copies not counted": _isan_without_mismatches},
        trials=_FEW,
    ),
    Theorem(
        "growing-rank-ideal",
        "Its total variation to the deterministic-copy generator is exactly 1 − (1−η)^(L+1).",
        "Mausberg 2026, section 5",
        {"bits": (1, 4), "copies": (1, 5)},
        _ideal_gap,
        mutants={"one copy forgotten": lambda i: _ideal_gap(i, 0)},
        trials=_FEW,
    ),
)
