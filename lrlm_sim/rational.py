"""Exact arithmetic with fractions: laws, total variation and ranks of small models, to check float code by.

Nothing here rounds. Laws are tables of `fractions.Fraction`, distances are fractions, ranks come from
fraction-free elimination over the rationals. Logits are not rational, but many models' logits are a common
irrational factor times rational numbers (parity, copy), or rational numbers themselves (networks, sparse
polynomials, the Cauchy separation): `RationalLogits` holds those numbers, and a common factor does not
change a rank. Floats given as numbers are taken as the fractions they are.

Meant for up to a few thousand strings and matrices of up to about a hundred rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import product
from math import gcd, lcm
from numbers import Rational
from typing import TypeAlias

import numpy as np

from oracles.base import LinearForm
from oracles.branching_program import BranchingProgram
from oracles.checks import as_integer
from oracles.errors import ParameterError, ProbabilityError, ShapeError, TooLargeError

Number: TypeAlias = "Rational | float | np.integer"
String: TypeAlias = tuple[int, ...]
#: Vectors, matrices and stacks of matrices: nested sequences or arrays of numbers.
Vector: TypeAlias = "Sequence[Number] | np.ndarray"
Matrix: TypeAlias = "Sequence[Vector] | np.ndarray"
Stack: TypeAlias = "Sequence[Matrix] | np.ndarray"

MAX_STRINGS = 1 << 16


@dataclass(frozen=True)
class ExactLaw:
    """P(x) of all strings of length `horizon`, in lexicographic order; the fractions sum to one."""

    vocab_size: int
    horizon: int
    probabilities: tuple[Fraction, ...]

    def __post_init__(self) -> None:
        if len(self.probabilities) != self.vocab_size**self.horizon:
            expected = (self.vocab_size**self.horizon,)
            raise ShapeError("probabilities", "(A^T,)", expected, (len(self.probabilities),))
        total = sum(self.probabilities)
        if total != 1 or min(self.probabilities) < 0:
            raise ProbabilityError(
                f"probabilities must be ≥ 0 and sum to 1 exactly, got {float(total)} "
                f"and a smallest one of {float(min(self.probabilities)):.3g}"
            )

    def probability(self, string: Sequence[int]) -> Fraction:
        """P(string), the sum over its continuations where it is shorter than the horizon."""
        tail = self.vocab_size ** (self.horizon - len(string))
        first = 0
        for token in string:
            first = first * self.vocab_size + token
        return sum(self.probabilities[first * tail : (first + 1) * tail], Fraction(0))

    def matrix(self, cut: int) -> list[list[Fraction]]:
        """P(h∘f), rows h ∈ Σ^cut, columns f ∈ Σ^(T−cut): the rank is that of P(f | h)."""
        columns = self.vocab_size ** (self.horizon - as_integer("cut", cut, 0, self.horizon))
        entries = self.probabilities
        return [list(entries[low : low + columns]) for low in range(0, len(entries), columns)]

    def rank(self, cut: int) -> int:
        """Probability rank at the cut."""
        return exact_rank(self.matrix(cut))


def law_of_conditionals(
    next_law: Callable[[String], Sequence[Number]], vocab_size: int, horizon: int
) -> ExactLaw:
    """The law with P(z | h) = next_law(h)[z], each of which must sum to one exactly."""
    level: list[tuple[String, Fraction]] = [((), Fraction(1))]
    _refuse_large(vocab_size, horizon)
    for _ in range(horizon):
        level = [
            ((*history, z), mass * fraction(p))
            for history, mass in level
            for z, p in enumerate(next_law(history))
        ]
    return ExactLaw(vocab_size, horizon, tuple(mass for _, mass in level))


def law_of_products(initial: Vector, operators: Sequence[Stack], final: Vector) -> ExactLaw:
    """P(x) = initial · O_1[x_1] ··· O_T[x_T] · final over its sum: a weighted automaton, exactly.

    operators: T stacks (A, S, S'), one per position; the total mass is divided out, so that float
    parameters, which sum to one only up to rounding, may be given. Raises ProbabilityError if it is 0.
    """
    vocab_size, horizon = len(operators[0]), len(operators)
    _refuse_large(vocab_size, horizon)
    vectors = [_vector(initial)]
    for stack in operators:
        matrices = [_matrix(operator) for operator in stack]
        vectors = [_times(vector, matrix) for vector in vectors for matrix in matrices]
    weights = _vector(final)
    masses = [_dot(vector, weights) for vector in vectors]
    total = sum(masses, Fraction(0))
    if total <= 0:
        raise ProbabilityError(f"the total mass of all strings must be positive, got {float(total):.3g}")
    return ExactLaw(vocab_size, horizon, tuple(mass / total for mass in masses))


def law_of_form(form: LinearForm) -> ExactLaw:
    """The exact law of a float model's `linear_form`, its entries read as the fractions they are."""
    return law_of_products(form.initial, form.operators, form.final)


def hidden_markov_law(initial: Vector, transition: Matrix, emission: Matrix, horizon: int) -> ExactLaw:
    """Homogeneous hidden Markov model: initial (S,), transition (S, S), emission (S, A)."""
    moves, emits = _matrix(transition), _matrix(emission)
    operators = [
        [[emits[s][z] * q for q in row] for s, row in enumerate(moves)] for z in range(len(emits[0]))
    ]
    return law_of_products(initial, [operators] * as_integer("horizon", horizon, 1), [1] * len(moves))


def walk_law(delta: Sequence[Sequence[int]], start: int, horizon: int) -> ExactLaw:
    """Uniform walk of a deterministic automaton (−1: the token is disabled), as in `from_dfa`."""

    def next_law(history: String) -> list[Fraction]:
        state = start
        for token in history:
            state = delta[state][token] if state >= 0 else -1
        row = delta[state] if state >= 0 else [0] * len(delta[0])  # impossible: any law will do
        enabled = sum(target >= 0 for target in row)
        return [Fraction(int(target >= 0), enabled) for target in row]

    return law_of_conditionals(next_law, len(delta[0]), horizon)


def parity_law(secret: Sequence[int], noise: Number) -> ExactLaw:
    """Noisy parity: uniform bits, then ⟨secret, X⟩ flipped with probability `noise`."""
    n, wrong = len(secret), fraction(noise)

    def next_law(history: String) -> list[Fraction]:
        if len(history) < n:
            return [Fraction(1, 2)] * 2
        label = _parity(secret, history)
        return [1 - wrong if z == label else wrong for z in (0, 1)]

    return law_of_conditionals(next_law, 2, n + 1)


def copy_law(length: int, vocab_size: int, noise: Number) -> ExactLaw:
    """Noisy copy: uniform tokens, then each again, replaced by another one with probability `noise`."""
    wrong = fraction(noise)

    def next_law(history: String) -> list[Fraction]:
        if len(history) < length:
            return [Fraction(1, vocab_size)] * vocab_size
        copied = history[len(history) - length]
        return [1 - wrong if z == copied else wrong / (vocab_size - 1) for z in range(vocab_size)]

    return law_of_conditionals(next_law, vocab_size, 2 * length)


def cauchy_law(n: int, base: Number = 2) -> ExactLaw:
    """The Cauchy separation with P(1) = w^i/(w^i + w^j), i = 2^n s(X), j = 2^n s(F), w = `base`.

    The model itself has w = e^(2^−n), which is transcendental: its ranks are those over the field Q(w),
    and no rank falls below what it is at any rational w > 0. Full rank at w = 2 proves full rank.
    """
    w = fraction(base)

    def next_law(history: String) -> list[Fraction]:
        if len(history) < 2 * n:
            return [Fraction(1, 2)] * 2
        u, v = w ** _binary(history[:n]), w ** _binary(history[n:])
        return [v / (u + v), u / (u + v)]

    return law_of_conditionals(next_law, 2, 2 * n + 1)


def branching_law(program: BranchingProgram, odds: Number) -> ExactLaw:
    """The program's law at the scale B = ½ log(odds), where every probability is rational."""
    w = fraction(odds)

    def next_law(history: String) -> list[Fraction]:
        ratio = w ** _program_logit(program, history)
        return [1 / (1 + ratio), ratio / (1 + ratio)]

    return law_of_conditionals(next_law, 2, program.horizon)


@dataclass(frozen=True)
class RationalLogits:
    """Centred logits up to one common factor: `next_logits(h)` gives A numbers, centred here."""

    vocab_size: int
    horizon: int
    next_logits: Callable[[String], Sequence[Number]]

    @cached_property
    def levels(self) -> list[list[list[Fraction]]]:
        """Entry t: centred logits after all histories of t tokens, lexicographic."""
        _refuse_large(self.vocab_size, self.horizon - 1)
        return [
            [_centred(self.next_logits(history)) for history in _strings(self.vocab_size, t)]
            for t in range(self.horizon)
        ]

    def matrix(self, cut: int) -> list[list[Fraction]]:
        """L(z | h∘f), rows h ∈ Σ^cut, columns (f, z), |f| < T − cut: the extended logit matrix."""
        cut = as_integer("cut", cut, 0, self.horizon - 1)
        rows: list[list[Fraction]] = [[] for _ in range(self.vocab_size**cut)]
        for level in self.levels[cut:]:
            per_row = len(level) // len(rows)
            for number, logits in enumerate(level):
                rows[number // per_row].extend(logits)
        return rows

    def rank(self, cut: int) -> int:
        """Logit rank at the cut."""
        return exact_rank(self.matrix(cut))


def parity_logits(secret: Sequence[int]) -> RationalLogits:
    """Noisy parity in units of half the label's log-odds, for noise other than 0, ½ and 1."""
    n = len(secret)

    def next_logits(history: String) -> list[int]:
        sign = 1 if len(history) == n else 0
        return [sign, -sign] if _parity(secret, history) == 0 else [-sign, sign]

    return RationalLogits(2, n + 1, next_logits)


def copy_logits(length: int, vocab_size: int) -> RationalLogits:
    """Noisy copy in units of log P(copied)/P(another one), for noise other than 0, 1 and 1 − 1/A."""

    def next_logits(history: String) -> list[int]:
        if len(history) < length:
            return [0] * vocab_size
        return [int(z == history[len(history) - length]) for z in range(vocab_size)]

    return RationalLogits(vocab_size, 2 * length, next_logits)


def polynomial_logits(
    n: int, subsets: Sequence[Sequence[int]], weights: Vector, bias: Number = 0
) -> RationalLogits:
    """Sparse polynomial: label logits ±½(bias + Σ weights·χ), exactly."""
    coefficients, constant = _vector(weights), fraction(bias)

    def next_logits(history: String) -> list[Fraction]:
        if len(history) < n:
            return [Fraction(0)] * 2
        signs = [(-1) ** sum(history[i] for i in subset) for subset in subsets]
        value = (constant + _dot(coefficients, [Fraction(s) for s in signs])) / 2
        return [-value, value]

    return RationalLogits(2, n + 1, next_logits)


def cauchy_logits(n: int) -> RationalLogits:
    """The Cauchy separation: label logits ±½(s(X) − s(F)), dyadic fractions."""

    def next_logits(history: String) -> list[Fraction]:
        if len(history) < 2 * n:
            return [Fraction(0)] * 2
        value = Fraction(_binary(history[:n]) - _binary(history[n:]), 2 ** (n + 1))
        return [-value, value]

    return RationalLogits(2, 2 * n + 1, next_logits)


def branching_logits(program: BranchingProgram) -> RationalLogits:
    """The branching program's logits in units of its scale B > 0: integers."""

    def next_logits(history: String) -> list[int]:
        value = _program_logit(program, history)
        return [-value, value]

    return RationalLogits(2, program.horizon, next_logits)


def isan_logits(initial: Vector, transitions: Stack, readouts: Matrix, horizon: int) -> RationalLogits:
    """Homogeneous network: B A_(z_t) ··· A_(z_1) x_0; shapes (d,), (A, d, d), (A, d)."""
    first, maps, readout = _vector(initial), [_matrix(m) for m in transitions], _matrix(readouts)

    def next_logits(history: String) -> list[Fraction]:
        state = first
        for token in history:
            state = [_dot(row, state) for row in maps[token]]
        return [_dot(row, state) for row in readout]

    return RationalLogits(len(readout), horizon, next_logits)


def exact_total_variation(p: ExactLaw, q: ExactLaw) -> Fraction:
    """½ Σ |P(x) − Q(x)| as a fraction."""
    if (p.vocab_size, p.horizon) != (q.vocab_size, q.horizon):
        expected, came = (p.vocab_size, p.horizon), (q.vocab_size, q.horizon)
        raise ParameterError(f"the laws must have one vocabulary and horizon, got {expected} and {came}")
    pairs = zip(p.probabilities, q.probabilities, strict=True)
    return sum((abs(a - b) for a, b in pairs), Fraction(0)) / 2


def exact_rank(matrix: Matrix) -> int:
    """Rank over the rationals, by fraction-free Gaussian elimination (Bareiss 1968) on integer rows."""
    rows = [_integers(row) for row in matrix]
    columns = len(rows[0]) if rows else 0
    rank, previous = 0, 1
    for column in range(columns):
        pivot = next((i for i in range(rank, len(rows)) if rows[i][column]), None)
        if pivot is None:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        top, head = rows[rank], rows[rank][column]
        for i in range(rank + 1, len(rows)):
            row, factor = rows[i], rows[i][column]
            # every entry is a minor of the integer matrix, so the division leaves no remainder
            rows[i] = [(head * a - factor * b) // previous for a, b in zip(row, top, strict=True)]
        previous, rank = head, rank + 1
    return rank


def fraction(value: Number) -> Fraction:
    """The number as a fraction, floats as exactly what they are; ParameterError for others, NaN, ±∞."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (Rational, float)) or value - value != 0:
        raise ParameterError(f"expected a finite rational number or float, got {value!r}")
    return Fraction(value)


def _integers(row: Vector) -> list[int]:
    """The row times a positive number that makes it coprime integers."""
    values = _vector(row)
    common = lcm(*(value.denominator for value in values))
    integers = [value.numerator * (common // value.denominator) for value in values]
    divisor = gcd(*integers) or 1
    return [value // divisor for value in integers]


def _vector(values: Vector) -> list[Fraction]:
    return [fraction(value) for value in values]


def _matrix(rows: Matrix) -> list[list[Fraction]]:
    return [_vector(row) for row in rows]


def _dot(a: Sequence[Fraction], b: Sequence[Fraction]) -> Fraction:
    return sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0))


def _times(vector: Sequence[Fraction], matrix: Sequence[Sequence[Fraction]]) -> list[Fraction]:
    return [_dot(vector, column) for column in zip(*matrix, strict=True)]


def _centred(logits: Sequence[Number]) -> list[Fraction]:
    values = _vector(logits)
    mean = sum(values, Fraction(0)) / len(values)
    return [value - mean for value in values]


def _strings(vocab_size: int, length: int) -> Iterator[String]:
    return product(range(vocab_size), repeat=length)


def _parity(secret: Sequence[int], bits: Sequence[int]) -> int:
    return sum(s * x for s, x in zip(secret, bits, strict=False)) % 2


def _program_logit(program: BranchingProgram, history: String) -> int:
    """Logit of token 1 over B: 2X − 1 at a copy of X, 2C + R at the label, 0 elsewhere."""
    bits, copies = int(program.n_bits or 0), len(program.schedule)
    done = len(history) - bits
    if not 0 <= done <= copies:
        return 0
    if done < copies:
        return 2 * history[program.schedule[done]] - 1
    state, mismatches = 0, 0
    for copy, bit in enumerate(history[bits:]):
        state = int(program.permutations[copy, bit, state])
        mismatches += bit != history[program.schedule[copy]]
    return 2 * mismatches + (1 if state else -1)


def _binary(bits: Sequence[int]) -> int:
    """The number with these binary digits, first one highest: 2^n Σ 2^(−i) x_i."""
    return sum(bit << i for i, bit in enumerate(reversed(bits)))


def _refuse_large(vocab_size: int, horizon: int) -> None:
    if vocab_size**horizon > MAX_STRINGS:
        raise TooLargeError(
            f"{vocab_size}^{horizon} strings are more than {MAX_STRINGS}: shorten the horizon"
        )
