"""Probability and logit matrices of an oracle, and their exact ranks.

Notation: cut t splits strings into a history h of t tokens and a future f; centred logits are
L(z | h) = log P(z | h) − (1/A) Σ_z' log P(z' | h). Definitions: probability rank arXiv:2411.07536,
logit rank arXiv:2510.24966 and 2512.09892.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from lrlm_sim.spectra import singular_values
from oracles.base import LinearForm, Oracle
from oracles.checks import (
    as_integer,
    as_number,
    as_strings,
    as_tokens,
    centred_logits,
    check_length,
    check_log_probs,
)
from oracles.errors import HorizonError, ParameterError, ShapeError, TooLargeError

#: Most conditional probabilities an exact enumeration computes, Σ_t A^(t+1): 128 MiB of them.
MAX_ENTRIES = 1 << 24
#: Singular values above this fraction of the largest count towards a rank. Logits need the looser one:
#: an error δ in a probability p is an error δ/p in its logit.
TOLERANCES = {"probability": 1e-13, "logit": 1e-10}
_BLOCK_ENTRIES = 1 << 24  # log-probabilities asked of an oracle in one bulk call
_BLOCK_ROWS = 1 << 15  # state rows advanced together while enumerating


@dataclass(frozen=True)
class CutRank:
    """Rank of the matrix at one cut: the number of singular values above `threshold` (absolute).

    `last_kept` = σ_rank and `first_dropped` = σ_(rank+1) (0 where there is none) show the gap that
    the floating-point rank rests on; `shape` is (rows, columns) of the matrix.
    """

    cut: int
    rank: int
    shape: tuple[int, int]
    threshold: float
    last_kept: float
    first_dropped: float


@dataclass(frozen=True)
class RankProfile:
    """Ranks at all cuts. `method` is "enumeration" (of P(f|h) or L) or "linear form" (of P(h∘f))."""

    kind: str
    method: str
    tolerance: float
    cuts: tuple[CutRank, ...]

    @property
    def ranks(self) -> tuple[int, ...]:
        """Rank at each cut, in order of the cuts."""
        return tuple(cut.rank for cut in self.cuts)

    @property
    def rank(self) -> int:
        """The largest rank over the cuts: the probability rank, or logit rank, of the model."""
        return max(self.ranks)


def enumerate_log_probs(oracle: Oracle, max_entries: int = MAX_ENTRIES) -> list[Float[np.ndarray, "nodes A"]]:
    """Next-token log-probabilities at *every* history: entry t is (A^t, A), in lexicographic order.

    Every prefix is visited once, in blocks of a few 10^4 states. All matrices of this module are
    re-indexings of this list. Raises HorizonError without a horizon, TooLargeError above `max_entries`.
    """
    vocab, horizon = oracle.vocab_size, _horizon(oracle)
    _refuse_large(vocab, horizon, max_entries)
    levels = [np.empty((vocab**t, vocab)) for t in range(horizon)]
    per_block = max(1, _BLOCK_ROWS // vocab)
    pending = [(oracle.start(1), np.empty(0, dtype=np.int64), 0, 0)]
    while pending:
        state, parents, depth, first = pending.pop()
        if depth:  # states of the parents' children, computed only now: few are held at once
            repeated = oracle.take(state, np.repeat(parents, vocab))
            state = oracle.advance(repeated, np.tile(np.arange(vocab), len(parents)))
        count = max(1, len(parents) * vocab)
        levels[depth][first : first + count] = check_log_probs(oracle.log_probs(state), count, vocab)
        if depth + 1 < horizon:
            for low in range(0, count, per_block):
                rows = np.arange(low, min(low + per_block, count))
                pending.append((state, rows, depth + 1, (first + low) * vocab))
    return levels


def probability_matrix(
    oracle: Oracle, cut: int, max_entries: int = MAX_ENTRIES
) -> Float[np.ndarray, "histories futures"]:
    """P(f | h) for all h ∈ Σ^cut and f ∈ Σ^(T−cut), shape (A^cut, A^(T−cut)), lexicographic order.

    Rows sum to one; the row of a history of probability zero is whatever law the oracle continues it
    with. Raises TooLargeError, HorizonError, ParameterError (cut outside 0..T).
    """
    horizon = _horizon(oracle)
    cut = as_integer("cut", cut, 0, horizon)
    if cut == horizon:
        _refuse_large(oracle.vocab_size, horizon, max_entries)
        return np.ones((oracle.vocab_size**horizon, 1))
    for t, log_probs in _suffix_log_probs(enumerate_log_probs(oracle, max_entries)):
        if t == cut:
            return np.exp(log_probs)
    raise AssertionError("unreachable: every cut below the horizon is visited")


def extended_logits(
    oracle: Oracle,
    histories: Sequence[ArrayLike] | np.ndarray,
    futures: Sequence[ArrayLike] | np.ndarray,
    tokens: ArrayLike | None = None,
    dtype: type[np.floating] = np.float64,
) -> Float[np.ndarray, "n_h n_f k"]:
    """Centred logits L(z | h∘f), shape (n_h, n_f, k), the mean always taken over all A tokens.

    Arguments:
        histories, futures: ragged lists of token lists or 2-D arrays.
        tokens: kept tokens z per future, int (n_f, k); None keeps all (k = A).
        dtype: of the result; float32 halves it. Beside it, a few blocks of 128 MiB are held.

    Raises ZeroProbabilityError where a token has probability zero (its logit is −∞).
    """
    heads = as_strings("histories", histories, oracle.vocab_size)
    tails = as_strings("futures", futures, oracle.vocab_size)
    kept = None if tokens is None else _as_kept(tokens, len(tails), oracle.vocab_size)
    out = np.empty((len(heads), len(tails), oracle.vocab_size if kept is None else kept.shape[1]), dtype)
    for rows, columns in _blocks(len(heads), len(tails), oracle.vocab_size):
        if kept is None:
            out[rows, columns] = centred_logits(oracle.extended_log_probs(heads[rows], tails[columns]))
        else:
            out[rows, columns] = oracle.kept_logits(heads[rows], tails[columns], kept[columns])
    return out


def single_token_logits(
    oracle: Oracle, histories: Sequence[ArrayLike] | np.ndarray
) -> Float[np.ndarray, "n_h A"]:
    """Centred next-token logits L(z | h), shape (n_h, A): rank ≤ the hidden width of a network."""
    return centred_logits(oracle.next_log_probs(histories))


def sequence_logit_matrix(
    oracle: Oracle,
    histories: Sequence[ArrayLike] | np.ndarray,
    futures: Sequence[ArrayLike] | np.ndarray,
) -> Float[np.ndarray, "n_h n_f"]:
    """Sequence log-probabilities log P(f | h), shape (n_h, n_f), f of any length; −∞ where impossible.

    Each distinct proper prefix of the futures is asked about once per history.
    """
    heads = as_strings("histories", histories, oracle.vocab_size)
    tails = as_strings("futures", futures, oracle.vocab_size)
    longest = max((len(tail) for tail in tails), default=0)
    check_length(max((len(head) for head in heads), default=0) + longest, oracle.horizon)
    out = np.zeros((len(heads), len(tails)))
    for rows, columns in _blocks(len(heads), len(tails), oracle.vocab_size * max(1, longest)):
        prefixes: dict[tuple[int, ...], int] = {}
        where = [  # the number of each future's proper prefixes
            [prefixes.setdefault(tuple(tail[:i].tolist()), len(prefixes)) for i in range(len(tail))]
            for tail in tails[columns]
        ]
        laws = oracle.extended_log_probs(heads[rows], list(prefixes)) if prefixes else None
        for j, (tail, numbers) in enumerate(zip(tails[columns], where, strict=True)):
            if laws is not None:
                out[rows, columns.start + j] = laws[:, numbers, tail].sum(axis=1)
    return out


def rank_profile(
    oracle: Oracle, kind: str, tolerance: float | None = None, max_entries: int = MAX_ENTRIES
) -> RankProfile:
    """Ranks at every cut, with the singular-value gap each rests on.

    Kinds:
        "probability": cuts 0..T, matrix P(f | h); rows of histories of probability zero are left out.
            Where enumeration is too large and the model has a linear form, the rank is that of
            P(h∘f) = P(h)·P(f | h), computed from S × S factors at any horizon (same exact rank; a
            direction seen only after histories of probability ≪ `tolerance` is not resolved).
        "logit": cuts 0..T−1, matrix L(z | h∘f) with columns (f, z), |f| < T − cut.

    The rank counts σ_i > max(`tolerance`·σ_1, rounding), rounding = 4ε·max|entry before centring|·√entries;
    `tolerance` defaults to `TOLERANCES[kind]`. Where singular values decay without a gap (logits of hidden
    Markov models, probabilities of the Cauchy separation) it is a lower bound of the rank over the reals.
    Raises TooLargeError, HorizonError, ZeroProbabilityError ("logit" with zero probabilities).
    """
    tolerance = _as_tolerance(tolerance, kind)
    horizon = _horizon(oracle)
    if kind == "logit":
        levels = enumerate_log_probs(oracle, max_entries)
        cuts = _logit_cuts(levels, tolerance, range(horizon))
        return RankProfile(kind, "enumeration", tolerance, cuts)
    if _total_entries(oracle.vocab_size, horizon) > max_entries:
        form = oracle.linear_form()
        if form is not None:
            return RankProfile(kind, "linear form", tolerance, _linear_cuts(form, tolerance))
    levels = enumerate_log_probs(oracle, max_entries)
    cuts = _probability_cuts(levels, tolerance, range(horizon + 1))
    return RankProfile(kind, "enumeration", tolerance, cuts)


def probability_rank(oracle: Oracle, cut: int | None = None, tolerance: float | None = None) -> int:
    """Rank of the matrix P(f | h) at `cut` (0..T), or the largest over all cuts; see `rank_profile`."""
    if cut is None:
        return rank_profile(oracle, "probability", tolerance).rank
    cut, tolerance = as_integer("cut", cut, 0, _horizon(oracle)), _as_tolerance(tolerance, "probability")
    if _total_entries(oracle.vocab_size, _horizon(oracle)) > MAX_ENTRIES:
        return rank_profile(oracle, "probability", tolerance).ranks[cut]
    return _probability_cuts(enumerate_log_probs(oracle), tolerance, [cut])[0].rank


def logit_rank(oracle: Oracle, cut: int | None = None, tolerance: float | None = None) -> int:
    """Rank of the extended logit matrix at `cut` (0..T−1), or the largest over all cuts."""
    if cut is None:
        return rank_profile(oracle, "logit", tolerance).rank
    cut, tolerance = as_integer("cut", cut, 0, _horizon(oracle) - 1), _as_tolerance(tolerance, "logit")
    return _logit_cuts(enumerate_log_probs(oracle), tolerance, [cut])[0].rank


def _as_tolerance(tolerance: float | None, kind: str) -> float:
    if kind not in TOLERANCES:
        raise ParameterError(f'kind must be "probability" or "logit", got {kind!r}')
    return TOLERANCES[kind] if tolerance is None else as_number("tolerance", tolerance, 0.0, 1.0)


def _horizon(oracle: Oracle) -> int:
    if oracle.horizon is None:
        raise HorizonError("exact matrices enumerate all strings of length horizon, this model has none")
    return oracle.horizon


def _total_entries(vocab: int, horizon: int) -> int:
    return sum(vocab ** (t + 1) for t in range(horizon))


def _refuse_large(vocab: int, horizon: int, max_entries: int) -> None:
    total = _total_entries(vocab, horizon)
    if total > max_entries:
        raise TooLargeError(
            f"{vocab}^{horizon} strings take {total:.3g} conditional probabilities, more than "
            f"max_entries = {max_entries}: shorten the horizon, or use extended_logits on chosen strings"
        )


def _suffix_log_probs(levels: list[np.ndarray]) -> Iterator[tuple[int, Float[np.ndarray, "h f"]]]:
    """(t, log P(f | h) at cut t) for t = T−1, …, 0, in one array that each step overwrites."""
    suffix = levels[-1].copy()
    yield len(levels) - 1, suffix
    for t in range(len(levels) - 2, -1, -1):
        nodes = len(levels[t])
        # rows of cut t+1 are the pairs (h, z) of cut t: add log P(z | h) and read (h, z∘f)
        suffix += levels[t].reshape(-1, 1)
        suffix = suffix.reshape(nodes, -1)
        yield t, suffix


def _possible(levels: list[np.ndarray]) -> list[np.ndarray]:
    """For each cut 0..T, which histories have positive probability."""
    masks = [np.ones(1, dtype=bool)]
    for level in levels:
        masks.append((masks[-1][:, None] & ~np.isneginf(level)).ravel())
    return masks


def _probability_cuts(levels: list[np.ndarray], tolerance: float, cuts: Sequence[int]) -> tuple[CutRank, ...]:
    possible, found = _possible(levels), {}
    if len(levels) in cuts:
        ends = int(possible[-1].sum())
        found[len(levels)] = _count(len(levels), np.ones((ends, 1)), tolerance, 1.0)
    for t, log_probs in _suffix_log_probs(levels):
        if t in cuts:
            found[t] = _count(t, np.exp(log_probs[possible[t]]), tolerance, 1.0)
    return tuple(found[t] for t in sorted(found))


def _logit_cuts(levels: list[np.ndarray], tolerance: float, cuts: Sequence[int]) -> tuple[CutRank, ...]:
    scale = max(float(np.abs(level).max()) for level in levels)
    centred = [centred_logits(level) for level in levels]
    found = []
    for t in cuts:
        rows = len(centred[t])
        matrix = np.concatenate([level.reshape(rows, -1) for level in centred[t:]], axis=1)
        found.append(_count(t, matrix, tolerance, scale))
    return tuple(found)


def _count(cut: int, matrix: np.ndarray, tolerance: float, scale: float) -> CutRank:
    sigma = singular_values(matrix, method="svd")
    rounding = 4 * np.finfo(np.float64).eps * scale * np.sqrt(matrix.size)
    rows, columns = matrix.shape
    return _ranked(cut, sigma, (rows, columns), max(tolerance * sigma[0], rounding))


def _ranked(cut: int, sigma: np.ndarray, shape: tuple[int, int], threshold: float) -> CutRank:
    rank = int((sigma > threshold).sum())
    last = float(sigma[rank - 1]) if rank else 0.0
    dropped = float(sigma[rank]) if rank < len(sigma) else 0.0
    return CutRank(cut, rank, shape, float(threshold), last, dropped)


def _linear_cuts(form: LinearForm, tolerance: float) -> tuple[CutRank, ...]:
    """Ranks of P(h∘f) at all cuts from the linear form.

    With F_t (A^t × S) the forward and B_t (S × A^(T−t)) the backward vectors, F_t = Q K_t and
    B_t = N_t Q' with orthonormal Q, Q': the singular values of F_t B_t are those of K_t N_t. K_(t+1) is
    the triangular factor of the stacked K_t O_t[z], so no enumeration is needed. Each factor is
    rescaled: ranks do not see it, and long strings do not underflow.
    """
    forward = [form.initial[None, :]]
    for operator in form.operators:
        forward.append(_triangle(np.concatenate(list(forward[-1] @ operator))))
    backward = [form.final[:, None]]
    for operator in reversed(form.operators):
        backward.append(_triangle(np.concatenate(list((operator @ backward[-1]).transpose(0, 2, 1)))).T)
    vocab, horizon = len(form.operators[0]), len(form.operators)
    found = []
    for t, (k, n) in enumerate(zip(forward, reversed(backward), strict=True)):
        sigma = np.linalg.svd(k @ n, compute_uv=False)
        shape = (vocab**t, vocab ** (horizon - t))
        found.append(_ranked(t, sigma, shape, tolerance * float(sigma[0])))
    return tuple(found)


def _triangle(rows: Float[np.ndarray, "rows S"]) -> Float[np.ndarray, "small S"]:
    factor = np.linalg.qr(rows, mode="r")
    return factor / np.abs(factor).max()


def _as_kept(tokens: ArrayLike, n_f: int, vocab: int) -> Int[np.ndarray, "n_f k"]:
    if np.ndim(tokens) != 2 or len(np.asarray(tokens)) != n_f:
        raise ShapeError("tokens", "(n_f, k)", f"({n_f}, …)", np.shape(tokens))
    return as_tokens("tokens", tokens, vocab, 2)


def _blocks(n_h: int, n_f: int, entries: int) -> Iterator[tuple[slice, slice]]:
    """Blocks (histories, futures) of at most about 2^24 log-probabilities, `entries` per pair.

    Futures are split only when those of one history exceed a block: splitting them reads histories again.
    """
    wide = min(max(1, n_f), max(1, _BLOCK_ENTRIES // entries))
    tall = max(1, _BLOCK_ENTRIES // (wide * entries))
    for left in range(0, n_f, wide):
        for top in range(0, n_h, tall):
            yield slice(top, min(top + tall, n_h)), slice(left, min(left + wide, n_f))
