"""Exact distances between models whose strings can be enumerated.

Two engines, both float64 and exact up to rounding (about 1e-15 per unit of probability):

- *products* (both models have a `linear_form`, e.g. hidden Markov models and weighted automata): cut
  every string in two. P(h∘f) − Q(h∘f) = [F_P(h), F_Q(h)] · [B_P(f); −B_Q(f)] for all pairs (h, f) is
  one matrix product, computed tile by tile in cache and reduced at once: 2(S_P + S_Q) operations per
  string, memory about the square root of the number of strings. (Where weights of mixed sign cancel,
  the rounding error grows by the ratio of Σ|terms| to the probability, as it does in the model itself.)
- *tree* (any two models): prefixes are expanded level by level in blocks, depth first over blocks.
  Every shared prefix is advanced once for both models: A^T / (A − 1) state rows in place of T·A^T.
  A subtree in which one model has probability zero is not entered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import get_blas_funcs

from oracles.base import LinearForm, Oracle, State
from oracles.checks import as_integer, check_length, check_log_probs
from oracles.errors import HorizonError, NonFiniteError, ParameterError, ProbabilityError, TooLargeError

#: Most strings the product engine visits by default.
PRODUCT_LIMIT = 10**10
#: Most strings the tree engine visits by default.
TREE_LIMIT = 2 * 10**7

_TILE = 256  # a 256 × 256 float64 tile stays in the second-level cache
_SIDE_BYTES = 1 << 30  # most memory for the two sides of the product engine
_CELLS = 1 << 16  # children (prefix rows × vocabulary) expanded at once by the tree engine
_MASS_TOLERANCE = 1e-6  # largest |Σ P − 1| accepted from a linear form

#: Σ|x| in one pass without a temporary.
_sum_absolute: Callable[[np.ndarray], float] = get_blas_funcs("asum", dtype=np.float64)  # type: ignore


@runtime_checkable
class OverStrings(Protocol):
    """Anything with a vocabulary and a horizon: an oracle or an access to one."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens A."""
        ...

    @property
    def horizon(self) -> int | None:
        """Length T of whole strings, None if unbounded."""
        ...


def total_variation(
    p: Oracle, q: Oracle, *, length: int | None = None, limit: int | None = None, method: str = "auto"
) -> float:
    """TV(P, Q) = ½ Σ_x |P(x) − Q(x)| over all strings of `length` tokens (default: the horizon).

    `method`: "auto" takes the product engine where both models have a linear form, else the tree.
    `limit` is the largest number of strings A^length to visit; it defaults to `PRODUCT_LIMIT` or
    `TREE_LIMIT`. Raises TooLargeError beyond it, ParameterError or HorizonError if the models differ
    in vocabulary or horizon.
    """
    length = common_length(p, q, length)
    forms = _linear_forms(p, q, length, method)
    if forms is None:
        _check_size(p.vocab_size, length, TREE_LIMIT if limit is None else limit)
        return _tree_total_variation(p, q, length)
    _check_size(p.vocab_size, length, PRODUCT_LIMIT if limit is None else limit)
    return _product_total_variation(*forms)


def sequence_probabilities(
    oracle: Oracle, *, length: int | None = None, limit: int | None = None, method: str = "auto"
) -> Float[np.ndarray, "strings"]:
    """P(x) of every string of `length` tokens (default: the horizon), lexicographic, shape (A^length,)."""
    length = common_length(oracle, oracle, length)
    _check_size(oracle.vocab_size, length, TREE_LIMIT if limit is None else limit)
    forms = _linear_forms(oracle, oracle, length, method)
    if forms is not None:
        cut = length // 2
        heads, tails = _heads(forms[0], cut), _tails(forms[0], cut)
        return _non_negative((heads @ tails.T).ravel())
    out = np.zeros(oracle.vocab_size**length)
    for block in expand_tree([oracle], length):
        if block.depth + 1 == length:
            out.reshape(-1, oracle.vocab_size)[block.index] = block.children[0]
    return out if length else np.ones(1)


def kl_exact(p: Oracle, q: Oracle, *, length: int | None = None, limit: int | None = None) -> float:
    """KL(P ‖ Q) = Σ_x P(x) log(P(x) / Q(x)) in nats by the chain rule, +∞ where Q misses support of P.

    Σ_h P(h) KL(P(·|h) ‖ Q(·|h)) over all prefixes h; the same limits and errors as `total_variation`.
    """
    length = common_length(p, q, length)
    _check_size(p.vocab_size, length, TREE_LIMIT if limit is None else limit)
    parts = []
    for block in expand_tree([p, q], length, follow="first"):
        mass, (log_p, log_q) = block.children[0], block.log_laws
        seen = mass > 0
        if np.isneginf(log_q[seen]).any():
            return math.inf
        parts.append(float(mass[seen] @ (log_p[seen] - log_q[seen])))
    return max(0.0, math.fsum(parts))


def telescoping_bound(p: Oracle, q: Oracle, *, length: int | None = None, limit: int | None = None) -> float:
    """Σ_t E_(h~P, |h|=t) TV(P(·|h), Q(·|h)), exact: an upper bound on TV(P, Q), at most `length`."""
    length = common_length(p, q, length)
    _check_size(p.vocab_size, length, TREE_LIMIT if limit is None else limit)
    blocks = expand_tree([p, q], length, follow="first")
    return math.fsum(float(b.weights[0] @ np.abs(b.laws[0] - b.laws[1]).sum(axis=1)) for b in blocks) / 2


def common_length(p: OverStrings, q: OverStrings, length: int | None) -> int:
    """Length of the strings on which two models are compared; checks vocabulary and horizons."""
    if p.vocab_size != q.vocab_size:
        raise ParameterError(
            f"two models are compared over one vocabulary, got vocab_size {p.vocab_size} and {q.vocab_size}"
        )
    if length is not None:
        length = as_integer("length", length, 0)
        check_length(length, p.horizon)
        check_length(length, q.horizon)
        return length
    horizons = {oracle.horizon for oracle in (p, q)} - {None}
    if len(horizons) != 1:
        raise HorizonError(
            f"two models are compared at one horizon, got {p.horizon} and {q.horizon}: give length="
        )
    return int(horizons.pop())  # type: ignore[arg-type]


def _check_size(vocab_size: int, length: int, limit: int) -> None:
    strings = vocab_size**length
    if strings > limit:
        exponent = length * math.log10(vocab_size)
        raise TooLargeError(
            f"{vocab_size}^{length} = 10^{exponent:.1f} strings (10^{exponent + math.log10(8):.1f} bytes of "
            f"probabilities) exceed the limit of {limit:.3g} strings: raise limit=, shorten the strings "
            "with length=, or use estimate_total_variation, which works at any horizon"
        )


# --- the tree engine ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Expansion:
    """A block of prefixes of one depth and their next-token laws under each of several models.

    Fields: depth |h|; index (rows,), the lexicographic number of each prefix; per model, in lists:
    weights P(h) (rows,), log_laws log P(·|h) and laws P(·|h) (rows, A), children P(h∘z) (rows, A).
    """

    depth: int
    index: Int[np.ndarray, "rows"]
    weights: list[Float[np.ndarray, "rows"]]
    log_laws: list[Float[np.ndarray, "rows vocab"]]
    laws: list[Float[np.ndarray, "rows vocab"]]
    children: list[Float[np.ndarray, "rows vocab"]]


@dataclass(frozen=True, eq=False)
class _Pending:
    """Prefixes still to expand: row `parents[i]` of `states`, continued by `tokens[i]`."""

    depth: int
    states: list[State]
    parents: Int[np.ndarray, "rows"]
    tokens: Int[np.ndarray, "rows"]
    index: Int[np.ndarray, "rows"]
    weights: list[Float[np.ndarray, "rows"]]


def expand_tree(
    oracles: Sequence[Oracle],
    length: int,
    *,
    follow: str = "all",
    cells: int = _CELLS,
) -> Iterator[Expansion]:
    """Every prefix of fewer than `length` tokens once, in blocks, depth first over blocks.

    A child is entered where all models give it positive probability (`follow="all"`), or the first
    does ("first"). At most `cells` // A prefixes are expanded at once; at most A times that many wait
    at each depth, so memory is O(length · cells) numbers and length · (cells // A) state rows.
    """
    vocab = oracles[0].vocab_size
    rows = max(1, cells // vocab)
    zero = np.zeros(1, dtype=np.int64)
    root = _Pending(0, [o.start(1) for o in oracles], zero, zero, zero, [np.ones(1) for _ in oracles])
    stack = [root] if length else []
    while stack:
        todo = stack.pop()
        states = todo.states
        if todo.depth:
            states = [
                o.advance(o.take(s, todo.parents), todo.tokens) for o, s in zip(oracles, states, strict=True)
            ]
        block = _expand(oracles, states, todo)
        yield block
        if todo.depth + 1 < length:
            stack.extend(reversed(_children(block, states, follow, rows)))


def _expand(oracles: Sequence[Oracle], states: list[State], todo: _Pending) -> Expansion:
    log_laws = [np.asarray(o.log_probs(s), dtype=np.float64) for o, s in zip(oracles, states, strict=True)]
    laws = [np.exp(rows) for rows in log_laws]
    size = (len(todo.tokens), oracles[0].vocab_size)
    for rows, law in zip(log_laws, laws, strict=True):
        sane = law.shape == size and np.abs(law @ np.ones(size[1]) - 1).max() <= _MASS_TOLERANCE
        if not sane:  # names the defect; NaN makes the comparison false
            check_log_probs(rows, *size)
    children = [weight[:, None] * law for weight, law in zip(todo.weights, laws, strict=True)]
    return Expansion(todo.depth, todo.index, todo.weights, log_laws, laws, children)


def _children(block: Expansion, states: list[State], follow: str, rows: int) -> list[_Pending]:
    vocab = block.children[0].shape[1]
    alive = block.children[0] > 0
    for other in block.children[1:] if follow == "all" else ():
        alive &= other > 0
    entered = np.flatnonzero(alive)
    parents, tokens = np.divmod(entered, vocab)
    index = block.index[parents] * vocab + tokens
    weights = [children.ravel()[entered] for children in block.children]
    parts = (slice(first, first + rows) for first in range(0, len(entered), rows))
    return [
        _Pending(block.depth + 1, states, parents[s], tokens[s], index[s], [w[s] for w in weights])
        for s in parts
    ]


def _tree_total_variation(p: Oracle, q: Oracle, length: int) -> float:
    parts = []
    for block in expand_tree([p, q], length):
        of_p, of_q = block.children
        if block.depth + 1 == length:
            parts.append(_sum_absolute((of_p - of_q).ravel()))
        else:  # subtrees with no mass under one model are not entered: their share is the other's mass
            lost = (of_p == 0) | (of_q == 0)
            parts.append(float(of_p[lost].sum() + of_q[lost].sum()))
    return min(1.0, math.fsum(parts) / 2)


# --- the product engine ------------------------------------------------------------------------------


def _linear_forms(p: Oracle, q: Oracle, length: int, method: str) -> tuple[LinearForm, LinearForm] | None:
    """Both models' laws of `length` tokens as products, or None for the tree engine."""
    if method not in ("auto", "products", "tree"):
        raise ParameterError(f"method must be 'auto', 'products' or 'tree', got {method!r}")
    forms = [] if method == "tree" else [form for o in (p, q) if (form := o.linear_form()) is not None]
    if len(forms) == 2 and length:
        return _first_tokens(forms[0], length), _first_tokens(forms[1], length)
    if method == "products":
        raise ParameterError(
            "method='products' needs two models with a linear form and length ≥ 1: use 'auto'"
        )
    return None


def _first_tokens(form: LinearForm, length: int) -> LinearForm:
    """The law of the first `length` tokens: later operators are summed into the final vector."""
    final = form.final
    for operator in reversed(form.operators[length:]):
        final = operator.sum(axis=0) @ final
    mass = final
    for operator in reversed(form.operators[:length]):
        mass = operator.sum(axis=0) @ mass
    total = float(form.initial @ mass)
    if not np.isfinite(total):
        raise NonFiniteError("the linear form has NaN or infinite entries")
    if abs(total - 1) > _MASS_TOLERANCE:
        raise ProbabilityError(f"the linear form must have total mass one, its mass is {total:.6g}")
    return LinearForm(form.initial, list(form.operators[:length]), final)


def _product_total_variation(p: LinearForm, q: LinearForm) -> float:
    """½ Σ |[F_P F_Q] [B_P; −B_Q]|; heads are extended by their last token block by block, never stored."""
    vocab = p.operators[0].shape[0]
    cut = _choose_cut([p, q])
    shorter = [_heads(form, cut - 1) for form in (p, q)]
    tails = np.concatenate([_tails(p, cut), -_tails(q, cut)], axis=1)
    tails = tails[tails.any(axis=1)]
    per_block = max(1, _TILE // vocab)
    parts = []
    for first in range(0, len(shorter[0]), per_block):
        block = slice(first, first + per_block)
        heads = [_extend(rows[block], f.operators[cut - 1]) for rows, f in zip(shorter, (p, q), strict=True)]
        joined = np.concatenate(heads, axis=1)
        parts.append(_absolute_sum(joined[joined.any(axis=1)], tails))
    return min(1.0, math.fsum(parts) / 2)


def _absolute_sum(heads: Float[np.ndarray, "n width"], tails: Float[np.ndarray, "m width"]) -> float:
    """Σ |heads · tailsᵀ| without the n × m product: each tile is summed while it is in cache."""
    buffer, total = np.empty(_TILE * _TILE), 0.0
    for i in range(0, len(heads), _TILE):
        rows = heads[i : i + _TILE]
        for j in range(0, len(tails), _TILE):
            columns = tails[j : j + _TILE]
            tile = buffer[: len(rows) * len(columns)]
            np.matmul(rows, columns.T, out=tile.reshape(len(rows), len(columns)))
            total += _sum_absolute(tile)
    return total


def _heads(form: LinearForm, cut: int) -> Float[np.ndarray, "strings S"]:
    """Row h = initial · O_1[h_1] ··· O_cut[h_cut], all A^cut strings in lexicographic order."""
    rows = form.initial[None, :]
    for operator in form.operators[:cut]:
        rows = _extend(rows, operator)
    return rows


def _extend(
    rows: Float[np.ndarray, "n S"], operator: Float[np.ndarray, "A S S2"]
) -> Float[np.ndarray, "n_A S2"]:
    """Rows h∘z for every row h and token z: one product with [O[0] | … | O[A−1]]."""
    vocab, width, next_width = operator.shape
    side_by_side = operator.transpose(1, 0, 2).reshape(width, vocab * next_width)
    return (rows @ side_by_side).reshape(len(rows) * vocab, next_width)


def _tails(form: LinearForm, cut: int) -> Float[np.ndarray, "strings S"]:
    """Row f = (O_(cut+1)[f_1] ··· O_T[f_(T−cut)] · final)ᵀ, lexicographic order."""
    rows = form.final[None, :]
    for operator in reversed(form.operators[cut:]):
        rows = (rows @ operator.transpose(0, 2, 1)).reshape(-1, operator.shape[1])
    return rows


def _choose_cut(forms: Sequence[LinearForm]) -> int:
    """The cut 1..T with the fewest operations among those whose two sides fit in memory."""
    length, vocab = len(forms[0].operators), forms[0].operators[0].shape[0]
    widths = [[len(f.initial), *(operator.shape[2] for operator in f.operators)] for f in forms]
    total = [sum(at_cut) for at_cut in zip(*widths, strict=True)]
    step = [sum(w[t] * w[t + 1] for w in widths) for t in range(length)]  # multiply-adds per extended row
    costs = {}
    for cut in range(1, length + 1):
        size = 8 * (vocab ** (cut - 1) * total[cut - 1] + vocab ** (length - cut) * total[cut])
        heads = sum(vocab ** (t + 1) * step[t] for t in range(cut))
        tails = sum(vocab ** (length - t) * step[t] for t in range(cut, length))
        costs[cut] = (size > _SIDE_BYTES, vocab**length * total[cut] + heads + tails, size)
    cut = min(costs, key=costs.__getitem__)
    if costs[cut][0]:
        raise TooLargeError(
            f"the two sides of the matrix product need {min(c[2] for c in costs.values()):.3g} bytes, more "
            f"than {_SIDE_BYTES:.3g}: use estimate_total_variation, which works at any horizon"
        )
    return cut


def _non_negative(probabilities: Float[np.ndarray, "strings"]) -> Float[np.ndarray, "strings"]:
    """Rounding below zero becomes zero; anything more negative is not a law."""
    if probabilities.min() < -1e-9:
        raise ProbabilityError(f"the linear form gives a string probability {probabilities.min():.3g}")
    return np.maximum(probabilities, 0.0, out=probabilities)
