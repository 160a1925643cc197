"""Other realisations of an input-switched affine network: of smallest width, or in a stable basis.

The states at a cut t may be written in any basis: x_t = V_t y_t gives the same law with
A'_(t,z) = V_(t+1)⁻¹ A_(t,z) V_t and B'_t = B_t V_t. Adding one row to all rows of B_t does not change
it either; C_t below is B_t with the mean over tokens removed, so that C_t x_t are the centred logits.

Smallest width. The extended logit matrix at cut t factors as L(z | h∘f) = [C_(t+|f|) A_f]_z x_t(h), so
its rank is dim R_t − dim(R_t ∩ N_t), with R_t the span of the states x_t(h) and N_t the states whose
logits vanish after every future. Restricting to R_t and dividing out N_t keeps the law, and no
realisation by *linear* maps is narrower at any cut: width at cut t = logit rank at cut t, exactly
(arXiv:2510.24966, theorem 4.3, cut by cut; the construction is the minimal realisation of linear
systems, Kalman 1963, for switched maps). `ISAN` is linear, a constant coordinate is a coordinate like
others and counts only if it is observed: at most one is saved by writing the maps as affine instead.

Stable basis. Balanced coordinates (Moore, IEEE Trans. Automatic Control 26, 1981) make what strings
reach and what logits show of each coordinate equally large, which matters in single precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from oracles.checks import as_number, as_tokens
from oracles.errors import ShapeError
from oracles.isan import ISAN

_ROUNDING = 1e-13  # singular values of unit-norm blocks below this are rounding errors
_FLOOR = 1e-5  # share of the identity in the factors of Gramians: change of basis of condition ≤ 1e5


def minimal(network: ISAN, tolerance: float = 1e-10) -> ISAN:
    """The same law with the smallest width: the state at cut t has logit-rank-at-t coordinates.

    Narrower cuts are padded with zeros to the largest rank (at least 1). All projections are
    orthonormal, so the maps do not grow. Costs O(T·A·d³); works at any horizon.

    Arguments:
        tolerance: a direction counts if its singular value, in the block of maps that reaches or shows
            it, exceeds this fraction of the largest. Directions are not weighed by how often or how
            strongly they occur, so ranks over the reals are found where enumeration would lose them.
    """
    return _assemble(_reduce(_unroll(network), as_number("tolerance", tolerance, 0.0, 1.0)), network.horizon)


def minimal_widths(network: ISAN, tolerance: float = 1e-10) -> tuple[int, ...]:
    """Width of the minimal realisation at each cut 0..T−1: the logit rank there, without enumeration.

    Equals `lrlm_sim.matrices.logit_rank(network, t)` in exact arithmetic; 0 where the laws of all
    futures are uniform. `tolerance` as in `minimal`.
    """
    chain = _reduce(_unroll(network), as_number("tolerance", tolerance, 0.0, 1.0))
    return tuple(readout.shape[1] for readout in chain.readouts)


def balance(network: ISAN, strings: ArrayLike | None = None) -> ISAN:
    """The same law and width, in coordinates where both Gramians of every cut are one diagonal matrix.

    Reachability Gramian P_t = E x_t x_tᵀ, observability Gramian Q_t = C_tᵀC_t + Σ_z w_t(z) A_zᵀ Q_(t+1) A_z.
    Only square roots of them are formed, by QR; 1e-5 of the identity is added to these, so directions that
    are not reached or not seen are carried along: `minimal` removes them.

    Arguments:
        strings: tokens (n, horizon) along which E and the frequencies w_t are taken, e.g.
            ``network.sample(1000, rng)``; None takes uniform strings, exactly.
    """
    chain = _unroll(network)
    if strings is None:
        weights = np.full((network.horizon, network.vocab_size), 1 / network.vocab_size)
        reached = list(_reach_uniform(chain))
    else:
        tokens = as_tokens("strings", strings, network.vocab_size, 2)
        if tokens.shape[1] != network.horizon or len(tokens) == 0:
            raise ShapeError("strings", "(n, horizon)", f"(at least 1, {network.horizon})", tokens.shape)
        weights = np.stack([np.bincount(c, minlength=network.vocab_size) / len(c) for c in tokens.T])
        reached = list(_reach_strings(network, tokens))
    seen = list(_observe(chain, weights))[::-1]
    bases = [_balancing(s, g) for s, g in zip(reached, seen, strict=True)]
    initial = np.linalg.solve(bases[0], chain.initial)
    maps = [np.linalg.solve(new, m @ old) for m, old, new in zip(chain.maps, bases, bases[1:], strict=False)]
    readouts = [c @ basis for c, basis in zip(chain.readouts, bases, strict=True)]
    return _assemble(_Chain(initial, maps, readouts), network.horizon)


@dataclass(frozen=True, eq=False)
class _Chain:
    """A network with a width of its own at every cut: T−1 maps and T centred readouts."""

    initial: Float[np.ndarray, "d"]
    maps: list[Float[np.ndarray, "A d2 d"]]
    readouts: list[Float[np.ndarray, "A d"]]


def _unroll(network: ISAN) -> _Chain:
    steps = network.horizon - 1
    maps = network.transitions if network.transitions.ndim == 4 else [network.transitions] * steps
    readouts = network.readouts - network.readouts.mean(axis=-2, keepdims=True)
    return _Chain(
        network.initial, list(maps), list(readouts) if readouts.ndim == 3 else [readouts] * network.horizon
    )


def _assemble(chain: _Chain, horizon: int) -> ISAN:
    widths = [readout.shape[1] for readout in chain.readouts]
    width, vocab = max(1, *widths), len(chain.readouts[0])
    initial = np.zeros(width)
    initial[: widths[0]] = chain.initial
    transitions = np.zeros((horizon - 1, vocab, width, width))
    readouts = np.zeros((horizon, vocab, width))
    for t, readout in enumerate(chain.readouts):
        readouts[t, :, : widths[t]] = readout
        if t + 1 < horizon:
            transitions[t, :, : widths[t + 1], : widths[t]] = chain.maps[t]
    return ISAN(initial, transitions, readouts, horizon)


def _reduce(chain: _Chain, tolerance: float) -> _Chain:
    """Restrict every cut to the reachable directions, then to the observable ones."""
    scales = [np.linalg.norm(m) or 1.0 for m in chain.maps]  # a product smaller than this·1e-13 is rounding
    reach = [_column_space(chain.initial[:, None] / (np.linalg.norm(chain.initial) or 1.0), tolerance)]
    for m, scale in zip(chain.maps, scales, strict=True):
        reach.append(_column_space(np.concatenate(list(m @ reach[-1]), axis=1) / scale, tolerance))
    reached = _project(chain, reach)
    shown = [_shown(chain.readouts[-1], reached.readouts[-1])]
    seen = [_column_space(shown[0].T, tolerance)]
    for t in reversed(range(len(chain.maps))):
        rows = [_shown(chain.readouts[t], reached.readouts[t])]
        rows.extend(seen[-1].T @ reached.maps[t] / scales[t])
        seen.append(_column_space(np.concatenate(rows).T, tolerance))
    return _project(reached, seen[::-1])


def _shown(
    readout: Float[np.ndarray, "A d"], restricted: Float[np.ndarray, "A k"]
) -> Float[np.ndarray, "A k"]:
    return restricted / (np.linalg.norm(readout) or 1.0)


def _project(chain: _Chain, bases: list[Float[np.ndarray, "d k"]]) -> _Chain:
    maps = [new.T @ m @ old for m, old, new in zip(chain.maps, bases, bases[1:], strict=False)]
    readouts = [c @ basis for c, basis in zip(chain.readouts, bases, strict=True)]
    return _Chain(bases[0].T @ chain.initial, maps, readouts)


def _column_space(matrix: Float[np.ndarray, "d n"], tolerance: float) -> Float[np.ndarray, "d k"]:
    """Orthonormal basis of the columns, up to singular values below tolerance·σ_1 or rounding."""
    if matrix.size == 0:
        return np.zeros((len(matrix), 0))
    left, sigma, _ = np.linalg.svd(matrix, full_matrices=False)
    return left[:, sigma > max(tolerance * sigma[0], _ROUNDING)]


def _reach_uniform(chain: _Chain) -> Iterator[Float[np.ndarray, "d n"]]:
    """S_t with S_t S_tᵀ = P_t under uniform tokens."""
    factor = chain.initial[:, None]
    yield factor
    for maps in chain.maps:
        factor = _triangle(np.concatenate(list(maps @ factor), axis=1).T / np.sqrt(len(maps))).T
        yield factor


def _reach_strings(network: ISAN, tokens: np.ndarray) -> Iterator[Float[np.ndarray, "d n"]]:
    """S_t with S_t S_tᵀ = mean of x_t x_tᵀ along the strings."""
    rows = np.repeat(network.initial[None], len(tokens), axis=0)
    for t, column in enumerate(tokens.T):
        yield _triangle(rows / np.sqrt(len(tokens))).T
        rows = network.step(t, rows, column)


def _observe(chain: _Chain, weights: Float[np.ndarray, "T A"]) -> Iterator[Float[np.ndarray, "n d"]]:
    """G_t with G_tᵀ G_t = Q_t, for t = T−1, …, 0."""
    factor = _triangle(chain.readouts[-1])
    yield factor
    for t in reversed(range(len(chain.maps))):
        ahead = np.sqrt(weights[t])[:, None, None] * (factor @ chain.maps[t])
        factor = _triangle(np.concatenate([chain.readouts[t], *ahead]))
        yield factor


def _balancing(reached: Float[np.ndarray, "d n"], seen: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "d d"]:
    """V with V⁻¹ P V⁻ᵀ = Vᵀ Q V diagonal, for P = SSᵀ and Q = GᵀG with a small multiple of 1 added.

    G S = U Σ Wᵀ gives V = S W Σ^(−1/2).
    """
    s, g = _floored(reached.T).T, _floored(seen)
    _, sigma, right = np.linalg.svd(g @ s)
    return (s @ right.T) / np.sqrt(sigma)


def _floored(factor: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d d"]:
    """Square root of FᵀF + (1e-5·|F|)²·1; the identity for F = 0."""
    floor = _FLOOR * np.linalg.norm(factor) or 1.0
    return _triangle(np.concatenate([factor, floor * np.eye(factor.shape[1])]))


def _triangle(matrix: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "k d"]:
    return np.asarray(np.linalg.qr(matrix, mode="r"))
