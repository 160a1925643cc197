"""Probability rank and logit rank are different invariants: exact values at every cut, both separations.

Ranks in double precision are compared with formulas and with exact elimination: over the rationals where
logits and probabilities are rational, in decimal arithmetic of 120 digits where logits are logarithms.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import product

import numpy as np

from lrlm_sim.matrices import rank_profile
from lrlm_sim.rational import (
    ExactLaw,
    RationalLogits,
    cauchy_law,
    cauchy_logits,
    copy_law,
    copy_logits,
    hidden_markov_law,
    parity_law,
    parity_logits,
)
from lrlm_sim.theorems.base import Instance, Measurement, Theorem
from oracles.base import Oracle
from oracles.cauchy_separation import CauchySeparation
from oracles.noisy_copy import NoisyCopy
from oracles.noisy_parity import NoisyParity

_EXACT = {"small": 12, "medium": 24, "large": 60}
_DIGITS = 120
_ZERO = Decimal(10) ** -70  # rounding leaves 1e-100 and less; true minors are above 1e-50 here

#: Probability ranks at cuts 0..T and logit ranks at cuts 0..T−1.
Ranks = tuple[list[int], list[int]]


def exact_ranks(law: ExactLaw, logits: RationalLogits) -> Ranks:
    """Both ranks at every cut by elimination over the rationals."""
    cuts = range(law.horizon)
    return [*(law.rank(t) for t in cuts), 1], [logits.rank(t) for t in cuts]


def float_ranks(model: Oracle) -> Ranks:
    """Both ranks at every cut in double precision."""
    return tuple(list(rank_profile(model, kind).ranks) for kind in ("probability", "logit"))  # type: ignore


def misses(found: Ranks, expected: Ranks) -> int:
    """Number of cuts, over both kinds, at which ranks differ."""
    pairs = zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True)
    return sum(a != b for a, b in pairs)


def secret_of(instance: Instance) -> np.ndarray:
    """A secret whose last bit is one."""
    secret = np.random.default_rng(instance["seed"]).integers(0, 2, instance["bits"])
    secret[-1] = 1
    return secret


def parity_formula(secret: np.ndarray) -> Ranks:
    """2 and 1 from the first secret bit on, 1 and 1 before it, 1 at the end."""
    first, n = int(np.flatnonzero(secret)[0]), len(secret)
    return [1] * (first + 1) + [2] * (n - first) + [1], [1] * (n + 1)


def copy_formula(n: int, vocab: int) -> Ranks:
    """A^t up to cut n, then A^(2n−t); logits: t(A−1) + 1 before cut n, (2n−t)(A−1) from it on."""
    probability = [vocab ** min(t, 2 * n - t) for t in range(2 * n + 1)]
    logit = [t * (vocab - 1) + 1 if t < n else (2 * n - t) * (vocab - 1) for t in range(2 * n)]
    return probability, logit


def cauchy_formula(n: int) -> Ranks:
    """2^t up to cut n, 2^(n−s) + 1 at cut n + s, 1 at the end; logits 1, 2, …, 2, 1."""
    probability = [*(2**t for t in range(n + 1)), *(2 ** (n - s) + 1 for s in range(1, n + 1)), 1]
    return probability, [1, *([2] * (2 * n - 1)), 1]


def _against_formula(formula: Ranks, law: ExactLaw, logits: RationalLogits, model: Oracle) -> Measurement:
    """Cuts at which exact elimination or double precision disagree with the formula."""
    wrong = misses(exact_ranks(law, logits), formula) + misses(float_ranks(model), formula)
    return Measurement(wrong, 0, 0)


def _parity(instance: Instance, noise: float = 0.1) -> Measurement:
    secret = secret_of(instance)
    laws = parity_law(secret.tolist(), noise), parity_logits(secret.tolist())
    return _against_formula(parity_formula(secret), *laws, NoisyParity(secret, noise))


def _copy(instance: Instance, swapped: bool = False) -> Measurement:
    n, vocab = instance["length"], instance["tokens"]
    probability, logit = copy_formula(n, vocab)
    formula = ([*logit, 1], probability[:-1]) if swapped else (probability, logit)
    laws = copy_law(n, vocab, Fraction(1, 10)), copy_logits(n, vocab)
    return _against_formula(formula, *laws, NoisyCopy(n, vocab, 0.1))


def _cauchy(instance: Instance, shift: int = 0) -> Measurement:
    """Exact elimination for n ≤ 4; double precision, which loses ranks beyond n = 2, for the logits only."""
    n = instance["bits"]
    formula = cauchy_formula(n)
    found = exact_ranks(cauchy_law(n), cauchy_logits(n))
    floats = list(rank_profile(CauchySeparation(n), "logit").ranks)
    shifted = formula[0], [*formula[1][shift:], *[1] * shift]
    return Measurement(misses(found, shifted) + misses(([], floats), ([], shifted[1])), 0, 0)


def _two_state_chain(seed: int) -> tuple[list[Fraction], list[list[Fraction]], list[list[Fraction]]]:
    """A hidden Markov model with rational laws: states that move and speak differently."""
    rng = np.random.default_rng(seed)

    def laws(low: int, high: int) -> list[list[Fraction]]:
        shares = rng.integers((low, high), (low + 5, high + 5))
        return [[Fraction(int(share), 30), Fraction(30 - int(share), 30)] for share in shares]

    return laws(5, 20)[0], laws(3, 17), laws(4, 21)


def _decimal_rank(rows: Sequence[Sequence[Decimal]]) -> int:
    """Rank by elimination with the largest pivot; what is below `_ZERO` is zero."""
    table, rank = [list(row) for row in rows], 0
    for column in range(len(table[0])):
        pivot = max(range(rank, len(table)), key=lambda i: abs(table[i][column]), default=None)
        if pivot is None or abs(table[pivot][column]) < _ZERO:
            continue
        table[rank], table[pivot] = table[pivot], table[rank]
        top = table[rank]
        for row in table[rank + 1 :]:
            factor = row[column] / top[column]
            row[:] = [a - factor * b for a, b in zip(row, top, strict=True)]
        rank += 1
    return rank


def _hmm_logit_ranks(law: ExactLaw) -> list[int]:
    """Logit ranks of a binary law at every cut, from logarithms of exact probabilities."""
    with localcontext() as context:
        context.prec = _DIGITS

        def logit(history: tuple[int, ...]) -> Decimal:
            odds = law.probability((*history, 1)) / law.probability((*history, 0))
            return Decimal(odds.numerator).ln() - Decimal(odds.denominator).ln()

        ranks = []
        for t in range(law.horizon):
            futures = [f for k in range(law.horizon - t) for f in product((0, 1), repeat=k)]
            rows = [[logit((*h, *f)) for f in futures] for h in product((0, 1), repeat=t)]
            ranks.append(_decimal_rank(rows))
        return ranks


def _hmm_growth(instance: Instance, memory: bool = True) -> Measurement:
    """Cuts where a two-state chain misses logit rank min(2^t, 2^(T−t) − 1); plus any probability rank > 2."""
    horizon = instance["horizon"]
    initial, transition, emission = _two_state_chain(instance["seed"])
    law = hidden_markov_law(initial, transition if memory else [transition[0]] * 2, emission, horizon)
    expected = [min(2**t, 2 ** (horizon - t) - 1) for t in range(horizon)]
    wrong = sum(a != b for a, b in zip(_hmm_logit_ranks(law), expected, strict=True))
    return Measurement(wrong + max(0, max(law.rank(t) for t in range(horizon)) - 2), 0, 0)


THEOREMS = (
    Theorem(
        "parity-ranks",
        "Noisy parity has probability rank 2 from the first secret bit to the label and logit rank "
        "1, at every cut.",
        "arXiv:math/0502076; arXiv:2512.09892",
        {"bits": (1, 7)},
        _parity,
        mutants={"fair label": lambda i: _parity(i, 0.5)},
        trials=_EXACT,
    ),
    Theorem(
        "copy-separation",
        "Noisy copy of n tokens has probability rank A^min(t, 2n−t) but logit rank t(A−1) + 1 before "
        "cut n and (2n−t)(A−1) from it on: low logit rank does not bound probability rank.",
        "arXiv:2510.24966; arXiv:2512.09892",
        {"length": (1, 3), "tokens": (2, 3)},
        _copy,
        mutants={"ranks swapped": lambda i: _copy(i, swapped=True)},
        trials=_EXACT,
    ),
    Theorem(
        "cauchy-separation",
        "The Cauchy teacher has logit ranks 1, 2, …, 2, 1 but probability rank 2^t up to cut n and "
        "2^(n−s) + 1 at cut n + s (exact elimination; in double precision the 2^n shows for n ≤ 3 only).",
        "arXiv:2411.07536; Mausberg 2026",
        {"bits": (1, 4)},
        _cauchy,
        mutants={"one cut too late": lambda i: _cauchy(i, 1)},
        trials=_EXACT,
    ),
    Theorem(
        "hmm-logit-rank-grows",
        "A two-state hidden Markov model over two tokens, of probability rank 2, has logit rank "
        "min(2^t, 2^(T−t) − 1) at cut t: low probability rank does not bound logit rank.",
        "arXiv:2512.09892, section 2; generic ranks, 120-digit arithmetic",
        {"horizon": (2, 8)},
        _hmm_growth,
        mutants={"states without memory": lambda i: _hmm_growth({**i, "horizon": 4}, memory=False)},
        trials=_EXACT,
    ),
)
