"""Tables and figures of `lrlm spectrum`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lrlm_sim.cli.console import Screen
from lrlm_sim.cli.plots import new_figure
from lrlm_sim.cli.sources import short_name
from lrlm_sim.noise_floor import NoiseFloor
from lrlm_sim.stream_spectrum import RangeFit, SpaceAngles, StreamedSpectrum


@dataclass(frozen=True, eq=False)
class Measured:
    """One matrix: spectrum, noise floor, fits (the asked range first)."""

    spectrum: StreamedSpectrum
    noise: NoiseFloor
    fits: list[RangeFit]
    form: str
    computed: int
    reused: int

    def record(self) -> dict[str, Any]:
        """For the manifest; singular values stand in files beside it."""
        losses, sigma = self.spectrum.losses, self.spectrum.sigma
        return {
            "fits": [asdict(fit) for fit in self.fits],
            "noise": asdict(self.noise)
            | {"sinks_at": self.noise.sinks(sigma), "certain": self.noise.certain(sigma)},
            "first_share": float(sigma[0] ** 2 / np.square(sigma).sum()),
            "losses": losses._asdict() | {"bound": np.square(losses.frobenius)},
            "loss_futures": self.spectrum.loss_futures,
            "columns": self.spectrum.columns,
            "kept": self.form,
            "blocks": {"computed": self.computed, "reused": self.reused},
        }


def plot_streams(path: Path, oracle: str, found: Mapping[str, Measured]) -> Path:
    """Singular values of every matrix and of its parts, the first fit of each, and the noise floors.

    The grey band reaches from the floor of independent rounding errors to their worst case.
    """
    figure, axes = new_figure(7.2, 4.8)
    low, top = np.inf, 0.0
    for i, (name, entry) in enumerate(found.items()):
        for j, (size, sigma) in enumerate(entry.spectrum.sigmas.items()):
            values = sigma[sigma > 0]
            label = f"{name}, {size} histories" if j == 0 else None
            axes.loglog(
                np.arange(1, len(values) + 1), values, ".", ms=3, color=f"C{i}", alpha=0.6**j, label=label
            )
            low, top = min(low, values.min()), max(top, values.max())
        if entry.fits:
            fit = entry.fits[0]
            inside = np.arange(fit.first, fit.last + 1)
            text = f"α = {fit.alpha:.3f} on [{fit.first}, {fit.last}] (R² = {fit.r2:.4f})"
            axes.loglog(inside, np.exp(fit.log_c) * inside**-fit.alpha, color=f"C{i}", lw=1, label=text)
    noise = found["sensible"].noise
    if noise.floor > 0:
        axes.axhspan(noise.floor, noise.worst * 1.001, color="gray", alpha=0.3)
        axes.axhline(noise.floor, color="gray", lw=1, label=f"noise floor ({noise.method}) to worst case")
        low = min(low, noise.floor)
    axes.set(xlabel="index i", ylabel="σ_i", title=f"Extended logit matrix of {short_name(oracle)}")
    axes.set_ylim(max(low, 1e-17 * top) / 2, 2 * top)
    axes.legend(fontsize="x-small", loc="upper right")
    figure.savefig(path, dpi=150)
    return path


def plot_losses(path: Path, oracle: str, found: Mapping[str, Measured]) -> Path:
    """Average KL with its Frobenius bound, and mean ℓ1 and largest error, against rank."""
    figure, _ = new_figure(10.5, 4.8)
    figure.clear()
    left, right = figure.subplots(1, 2)
    for i, (name, entry) in enumerate(found.items()):
        losses, color = entry.spectrum.losses, f"C{i}"
        left.loglog(losses.ranks, losses.kl, "o-", ms=3, color=color, label=f"{name}: average KL")
        label = "Frobenius bound" if i == 0 else None
        left.loglog(losses.ranks, np.square(losses.frobenius), "--", color=color, label=label)
        right.loglog(losses.ranks, losses.mean_l1, "o-", ms=3, color=color, label=f"{name}: mean ℓ1")
        right.loglog(losses.ranks, losses.max, ":", color=color, label="largest error" if i == 0 else None)
    left.set(xlabel="rank", ylabel="nats per cell", title="KL (Fact B.2, arXiv:2510.24966)")
    right.set(xlabel="rank", ylabel="logits per cell", title="misspecification (arXiv:2512.09892)")
    for axes in (left, right):
        axes.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    figure.suptitle(short_name(oracle), fontsize="medium")
    figure.savefig(path, dpi=150)
    return path


def plot_angles(path: Path, angles: Mapping[str, Sequence[SpaceAngles]]) -> Path:
    """Overlap of spaces of histories against rank, with that of random spaces."""
    figure, axes = new_figure()
    rows: Sequence[SpaceAngles] = ()
    for name, rows in angles.items():
        axes.semilogx([r.rank for r in rows], [r.overlap for r in rows], "o-", label=f"sensible and {name}")
    axes.semilogx([r.rank for r in rows], [r.random for r in rows], "k:", label="random spaces")
    axes.set(
        xlabel="rank", ylabel="mean cos² of principal angles", ylim=(0, 1.02), title="Spaces of histories"
    )
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    return path


def print_tables(
    screen: Screen, oracle: str, found: Mapping[str, Measured], angles: Mapping[str, Sequence[SpaceAngles]]
) -> None:
    """Fits, noise, losses and angles."""
    screen.table(
        f"{short_name(oracle)}: σ_i ≈ C i^−α",
        ("matrix", "n", "range", "α", "R²", "α without σ_1", "R² without σ_1"),
        [
            (name, f.n, f"[{f.first}, {f.last}]", f.alpha, f.r2, f.alpha_rest, f.r2_rest)
            for name, entry in found.items()
            for f in entry.fits
        ],
    )
    screen.table(
        "rounding noise: entry error, floor and worst case in units of σ",
        ("matrix", "estimated by", "entry error", "floor", "worst case", "σ sinks at", "σ_i certain up to"),
        [_noise_row(name, entry) for name, entry in found.items()],
    )
    screen.table(
        "best rank-r approximation, mean per cell",
        ("matrix", "rank", "KL (nats)", "Frobenius bound", "mean ℓ1", "largest error"),
        [
            (name, int(r), float(kl), float(frobenius) ** 2, float(l1), float(largest))
            for name, entry in found.items()
            for r, kl, l1, largest, frobenius in zip(*entry.spectrum.losses, strict=True)
        ],
    )
    if angles:
        screen.table(
            "principal angles of spaces of histories, degrees",
            ("sensible and", "rank", "mean cos²", "random spaces", "median angle", "largest angle"),
            [
                (name, r.rank, r.overlap, r.random, r.median, r.largest)
                for name, rows in angles.items()
                for r in rows
            ],
        )


def _noise_row(name: str, entry: Measured) -> tuple[Any, ...]:
    noise, sigma = entry.noise, entry.spectrum.sigma
    sink = noise.sinks(sigma)
    place = f"none of {len(sigma)}" if sink is None else sink
    return name, noise.method, noise.entry, noise.floor, noise.worst, place, noise.certain(sigma)
