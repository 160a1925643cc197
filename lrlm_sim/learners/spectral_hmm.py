"""Spectral learning of hidden Markov models from samples (Hsu, Kakade, Zhang, arXiv:0811.4413)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lrlm_sim.learners.base import SUCCESS, Learner, Result, Status
from lrlm_sim.learners.ngram import draw_strings
from lrlm_sim.spanner_model import SpannerModel
from oracles.access import Access, ConditionalSampleAccess, SampleAccess
from oracles.checks import as_generator, as_integer
from oracles.errors import HorizonError, ParameterError


@dataclass(frozen=True)
class SpectralHMM(Learner):
    """Observable operators of a homogeneous HMM with S ≤ A states of full rank.

    From the laws of single tokens, pairs and triples, P_1, P_21[j, i] = P(x_2 = j, x_1 = i) and
    P_3x1[j, i] = P(x_3 = j, x_2 = x, x_1 = i), with U the top S left singular vectors of P_21:

        b_1 = Uᵀ P_1,   b_∞ = (P_21ᵀ U)⁺ P_1,   B_x = (Uᵀ P_3x1)(Uᵀ P_21)⁺,
        P(x_1…x_t) = b_∞ᵀ B_(x_t) ⋯ B_(x_1) b_1.

    Needs transition and emission matrices of rank S (the condition of Mossel and Roch, math/0502076);
    the singular value σ_S(P_21) is compared with its sampling error, and the status says when the
    condition is not visible: noisy parity is such a case.

    Arguments:
        n_states: S.
        samples: strings drawn.
        stationary: average the moments over all positions (right for stationary processes only);
            otherwise the first three tokens are used, as in the paper.
    """

    n_states: int
    samples: int = 10_000
    stationary: bool = False
    horizon: int | None = None

    accesses = (SampleAccess, ConditionalSampleAccess)

    def __post_init__(self) -> None:
        as_integer("n_states", self.n_states, 1)
        as_integer("samples", self.samples, 1)

    def fit(self, access: Access, rng: np.random.Generator | int | None = None) -> Result:
        if self.n_states > access.vocab_size:
            raise ParameterError(
                f"spectral learning needs n_states ≤ vocab_size = {access.vocab_size}, got {self.n_states}"
            )
        strings = draw_strings(self, access, self.samples, self.horizon)
        horizon = strings.shape[1]
        if horizon < 3:
            raise HorizonError(f"spectral learning needs strings of at least 3 tokens, got {horizon}")
        triples = _triples(strings, access.vocab_size, self.stationary)
        first, pairs = triples.sum(axis=(1, 2)), triples.sum(axis=2).T
        left, sigma, _ = np.linalg.svd(pairs)
        basis = left[:, : self.n_states]
        smallest, error = float(sigma[self.n_states - 1]), 1 / np.sqrt(len(strings))
        inverse = np.linalg.pinv(basis.T @ pairs)
        operators = np.stack([basis.T @ triples[:, x].T @ inverse for x in range(access.vocab_size)])
        begin, end = basis.T @ first, np.linalg.pinv(pairs.T @ basis) @ first
        model = _as_model(begin, operators, end, horizon, as_generator(rng))
        status = SUCCESS
        if smallest < 2 * error:
            status = Status(
                "not_full_rank",
                f"σ_{self.n_states}(P_21) = {smallest:.2g} is within its sampling error {error:.2g}: "
                "fewer states, more samples, or conditional queries",
            )
        return Result(model, status, access.ledger, {"singular_values": sigma, "sampling_error": error})


def _triples(
    strings: Int[np.ndarray, "n T"], vocab_size: int, stationary: bool
) -> Float[np.ndarray, "A A A"]:
    """Empirical law of (x_1, x_2, x_3), shape (A, A, A) in that order."""
    kept = strings if stationary else strings[:, :3]
    windows = np.lib.stride_tricks.sliding_window_view(kept, 3, axis=1).reshape(-1, 3)
    codes = windows @ np.array([vocab_size**2, vocab_size, 1])
    counts = np.bincount(codes, minlength=vocab_size**3)
    return counts.reshape((vocab_size,) * 3) / counts.sum()


def _as_model(
    begin: Float[np.ndarray, "S"],
    operators: Float[np.ndarray, "A S S"],
    end: Float[np.ndarray, "S"],
    horizon: int,
    rng: np.random.Generator,
) -> SpannerModel:
    """The operators as a sampler whose coefficients sum to the total mass.

    A random rotation makes every coordinate of b_∞ non-zero; scaling by it turns b_∞ into ones. Laws
    that come out negative are cut at zero and renormalised.
    """
    size = len(begin)
    rotation = np.linalg.qr(rng.standard_normal((size, size)))[0]
    scale = rotation @ end
    scale = np.where(np.abs(scale) > 1e-12, scale, 1e-12)
    # Row vectors: state ↦ state @ operator, with state = scale · (rotation b).
    turned = rotation @ operators @ rotation.T
    rows = (scale[:, None] * turned / scale).transpose(0, 2, 1)
    start = (scale * (rotation @ begin))[None, :] @ rows
    laws = np.ascontiguousarray(rows.sum(axis=2).T)
    sketch = np.ones((size, 1))
    return SpannerModel(
        laws_at=(start.sum(axis=2).T, *(laws for _ in range(horizon - 1))),
        operators=(start, *(rows for _ in range(horizon - 2))),
        sketches=tuple(sketch for _ in range(horizon - 1)),
        postprocess="none",
    )
