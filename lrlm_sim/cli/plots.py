"""Figures of the command line. matplotlib is imported on first use (extra ``analysis``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from oracles.errors import MissingDependencyError


def new_figure(width: float = 6.4, height: float = 4.2) -> tuple[Any, Any]:
    """A figure and its axes without any global state of matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError("matplotlib", "analysis") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def plot_spectra(
    path: Path,
    spectra: Mapping[str, np.ndarray],
    fits: Mapping[str, tuple[float, float, float]],
    span: tuple[int, int],
) -> Path:
    """Singular values against index on log–log axes, with the fitted power laws over their range."""
    figure, axes = new_figure()
    for name, sigma in spectra.items():
        index = np.arange(1, len(sigma) + 1)
        (line,) = axes.loglog(index, sigma / sigma[0], ".", markersize=3)
        alpha, log_c, r2 = fits[name]
        inside = np.arange(span[0], span[1] + 1)
        axes.loglog(
            inside,
            np.exp(log_c) * inside**-alpha / sigma[0],
            color=line.get_color(),
            label=f"{name}: α = {alpha:.3f} (R² = {r2:.3f})",
        )
    axes.axvspan(*span, alpha=0.08, color="gray", label=f"fitted range [{span[0]}, {span[1]}]")
    axes.set(xlabel="index i", ylabel="σ_i / σ_1", title="Singular values of the extended logit matrix")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    return path


def plot_kl(
    path: Path, ranks: Sequence[int], kl: Mapping[str, np.ndarray], bound: Mapping[str, np.ndarray]
) -> Path:
    """Average KL of the best rank-r approximation against r, with its Frobenius bound."""
    figure, axes = new_figure()
    for name, values in kl.items():
        (line,) = axes.loglog(ranks, values, "o-", markersize=3, label=f"{name}: average KL")
        axes.loglog(ranks, bound[name], "--", color=line.get_color(), label=f"{name}: Frobenius bound")
    axes.set(xlabel="rank", ylabel="nats", title="KL of rank-r logit matrices (Fact B.2, arXiv:2510.24966)")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    return path


def plot_certificates(path: Path, rows: Sequence[tuple[str, float, float, float, float]]) -> Path:
    """Exact TV (cross) and certified interval (bar); rows are (name, exact, estimate, low, high)."""
    figure, axes = new_figure(height=1.4 + 0.6 * len(rows))
    floor = 1e-17
    for i, (_, exact, _, low, high) in enumerate(rows):
        axes.plot([max(low, floor), high], [i, i], "-", linewidth=5, alpha=0.4, color="C0")
        axes.plot(max(exact, floor), i, "x", color="C3")
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.set(xscale="log", xlim=(floor / 2, 1), xlabel="total variation", ylim=(-0.6, len(rows) - 0.4))
    axes.set_title("Certified interval (bar) and exact value (cross)")
    figure.savefig(path, dpi=150)
    return path
