"""Mamba's selective scan as one compiled pass with its gradient, for training on a CPU.

    h_t = exp(δ_t A) ∘ h_{t−1} + δ_t u_t B_t,    y_t = ⟨h_t, C_t⟩          (Gu, Dao, arXiv:2312.00752, eq. 2)

transformers runs it as one Python step per token. This computes the same numbers, see the test.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import transformers.models.mamba.modeling_mamba as modeling
from numba import njit
from torch import Tensor


@njit(cache=True, fastmath=True)
def _forward(
    decay: np.ndarray, delta: np.ndarray, u: np.ndarray, b: np.ndarray, c: np.ndarray, h: np.ndarray
) -> np.ndarray:
    """Fill the states h (batch, length, inner, state) and return y (batch, length, inner)."""
    batch, length, inner, width = decay.shape
    y = np.zeros_like(u)
    for i in range(batch):
        for t in range(length):
            for j in range(inner):
                scale = delta[i, t, j] * u[i, t, j]
                total = scale * 0
                for n in range(width):
                    state = scale * b[i, t, n]
                    if t > 0:
                        state += decay[i, t, j, n] * h[i, t - 1, j, n]
                    h[i, t, j, n] = state
                    total += state * c[i, t, n]
                y[i, t, j] = total
    return y


@njit(cache=True, fastmath=True)
def _backward(
    gy: np.ndarray,
    decay: np.ndarray,
    delta: np.ndarray,
    u: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray,
    h: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gradients with respect to u, δ, A, B and C of ⟨gy, y⟩; `carry` is the gradient of h_t from later."""
    batch, length, inner, width = decay.shape
    gu, gdelta, ga, gb, gc = (
        np.zeros_like(u),
        np.zeros_like(u),
        np.zeros_like(a),
        np.zeros_like(b),
        np.zeros_like(c),
    )
    for i in range(batch):
        carry = np.zeros_like(a)
        for t in range(length - 1, -1, -1):
            for j in range(inner):
                step, scale, seen = delta[i, t, j], delta[i, t, j] * u[i, t, j], gy[i, t, j]
                inflow, exponent = seen * 0, seen * 0
                for n in range(width):
                    gc[i, t, n] += seen * h[i, t, j, n]
                    g = carry[j, n] + seen * c[i, t, n]
                    gb[i, t, n] += g * scale
                    inflow += g * b[i, t, n]
                    carry[j, n] = g * decay[i, t, j, n]
                    if t > 0:
                        through = carry[j, n] * h[i, t - 1, j, n]
                        exponent += through * a[j, n]
                        ga[j, n] += through * step
                gu[i, t, j] = inflow * step
                gdelta[i, t, j] = inflow * u[i, t, j] + exponent
    return gu, gdelta, ga, gb, gc


class SelectiveScan(torch.autograd.Function):
    """y of u, δ: (batch, length, inner); A: (inner, state); B, C: (batch, length, state)."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """Run the recurrence; the states are kept for the gradient."""
        inputs = [x.detach().contiguous() for x in (delta, u, b, c)]
        decay = (inputs[0][..., None] * a.detach()).exp_()
        states = torch.empty_like(decay)
        arrays: list[Any] = [x.numpy() for x in (decay, *inputs, states)]
        y = _forward(*arrays)
        ctx.save_for_backward(decay, *inputs[:2], a.detach().contiguous(), *inputs[2:], states)
        return torch.from_numpy(y)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Any:
        """Run the adjoint recurrence from the last token to the first."""
        arrays: list[Any] = [x.contiguous().numpy() for x in (outputs[0], *ctx.saved_tensors)]
        return tuple(map(torch.from_numpy, _backward(*arrays)))


def selective_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    **options: Any,
) -> Tensor:
    """What transformers' `mamba_selective_scan` returns for a whole text, channels before positions."""
    if options.get("return_last_state"):
        raise ValueError("the training scan keeps no state: evaluate with use_cache=False")
    delta = torch.nn.functional.softplus(dt + delta_bias[:, None])
    rows = (x.transpose(1, 2) for x in (hidden_states, delta))
    y: Any = SelectiveScan.apply(*rows, A, *(x.transpose(1, 2) for x in (B, C)))
    return (y.transpose(1, 2) + hidden_states * D[:, None]) * torch.nn.functional.silu(z)


@contextmanager
def compiled_scan() -> Iterator[None]:
    """Let transformers' Mamba run this scan; versions of it that keep theirs elsewhere run their own."""
    plain = getattr(modeling, "mamba_selective_scan", None)
    if plain is not None:
        modeling.mamba_selective_scan = selective_scan
    try:
        yield
    finally:
        if plain is not None:
            modeling.mamba_selective_scan = plain
