"""Low logit rank along training: power law and rank-r losses of the extended logit matrix, model by model.

For every model: each checkpoint, and fresh weights at the deviation 1/√width, all asked about the same
histories and futures. For four of them, the finished ones and an untrained one first, also the average KL
and ℓ1 misspecification against the rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from lrlm_sim.cli.plots import new_figure
from lrlm_sim.corpus import histories_and_futures
from lrlm_sim.spectra import fit_power_law, low_rank_kl, misspecification, singular_values
from oracles.transformer import TransformerOracle
from studies.common import Study, begin
from studies.models import Subject, add_options, chosen, likely_logits, text_of, text_windows

FIRST, SEED, KEPT = 5, 0, 50


@dataclass(frozen=True)
class Setting:
    """Sizes: histories and futures, their length, ranks of the table along training, ranks of the curves."""

    n: int
    length: int
    characters: int
    ranks: tuple[int, ...]
    curve: tuple[int, ...]


FULL = Setting(250, 16, 600_000, (1, 5, 10, 20, 50), (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150))
QUICK = Setting(40, 6, 60_000, (1, 5, 10), (1, 3, 10, 20))


@dataclass(frozen=True, eq=False)
class Point:
    """One network: its model, training step (−1: not known), deviation of initial weights, how to make it."""

    subject: Subject
    step: int
    scale: float | None
    make: Callable[[], TransformerOracle] = field(repr=False)

    @property
    def label(self) -> str:
        """Step, or what there is instead."""
        if self.step < 0:
            return "as given"
        return "0, wide" if self.scale and self.scale > 0.03 and self.step == 0 else str(self.step)


def points(subject: Subject, quick: bool) -> list[Point]:
    """Checkpoints of a model, and the same network with fresh weights, wide ones included.

    Wide is the deviation 1/√width; where no step 0 was kept, the configured one is drawn anew too.
    """
    config = subject.config().get_text_config()
    scale = float(config.initializer_range)
    found = [
        Point(subject, step, scale if step == 0 else None, partial(subject.load, step))
        for step in subject.sources
    ]
    wide = float(config.hidden_size) ** -0.5
    fresh = [wide] if 0 in subject.sources else [scale, wide]
    found += [Point(subject, 0, value, partial(subject.untrained, value, SEED)) for value in fresh]
    return [p for p in found if p.step in (-1, 0, subject.final)] if quick else found


def without_first(logits: np.ndarray) -> np.ndarray:
    """Logits (n_h, n_f, k) minus the best rank-one approximation of their unfolding."""
    matrix = logits.reshape(len(logits), -1)
    direction = np.linalg.eigh(matrix @ matrix.T)[1][:, -1:]
    return (matrix - direction @ (direction.T @ matrix)).reshape(logits.shape)


def spectrum(model: TransformerOracle, text: str, size: Setting) -> dict[str, np.ndarray]:
    """Singular values and losses of one network, with and without the first direction."""
    windows = text_windows(model, 2 * size.length, text)
    histories, futures = histories_and_futures(windows, size.n, size.length, size.length, SEED)
    logits = likely_logits(model, histories, futures, KEPT)
    return {
        "sigma": singular_values(logits),
        "kl": low_rank_kl(logits, size.ranks).kl,
        "kl_rest": low_rank_kl(without_first(logits), size.ranks).kl,
        "kl_curve": low_rank_kl(logits, size.curve).kl,
        "l1_curve": misspecification(logits, size.curve).mean_l1,
    }


def rows_along(found: Sequence[tuple[Point, dict[str, np.ndarray]]], last: int) -> list[tuple]:
    """Lines of the table along training."""
    rows = []
    for point, entry in found:
        sigma = entry["sigma"]
        fit, rest = fit_power_law(sigma, FIRST, last), fit_power_law(sigma[1:], FIRST, last)
        share = float(sigma[0] ** 2 / np.square(sigma).sum())
        head = (point.subject.name, point.label, "" if point.scale is None else point.scale)
        loss = point.subject.heldout.get(point.step, "") if point.label != "0, wide" else ""
        fits = (fit.alpha, f"{fit.r2:.4f}", rest.alpha, f"{rest.r2:.4f}", f"{share:.4f}")
        rows.append((*head, loss, *fits, *entry["kl"].tolist(), *entry["kl_rest"].tolist()))
    return rows


def draw(found: Sequence[tuple[Point, dict[str, np.ndarray]]], size: Setting) -> Any:
    """Spectra of finished models and untrained ones, α against step and held-out loss, KL along training."""
    figure, _ = new_figure(14, 8)
    figure.clear()
    (spectra, alphas), (against_loss, losses) = figure.subplots(2, 2)
    last, middle = size.n // 2, len(size.ranks) // 2
    for i, subject in enumerate(dict.fromkeys(point.subject for point, _ in found)):
        mine = [(p, e) for p, e in found if p.subject is subject]
        for point, entry in mine:
            if point.step not in (0, subject.final):
                continue
            sigma = entry["sigma"] / entry["sigma"][0]
            style = "-" if point.step == subject.final else (":" if "wide" in point.label else "--")
            label = f"{subject.name}, step {point.label}"
            spectra.loglog(np.arange(1, len(sigma) + 1), sigma, style, color=f"C{i}", label=label)
        steps = [
            (p, e, fit_power_law(e["sigma"], FIRST, last).alpha) for p, e in mine if "wide" not in p.label
        ]
        place = [max(p.step, 0) for p, _, _ in steps]
        alphas.plot(place, [a for _, _, a in steps], "o-", color=f"C{i}", label=subject.name)
        known = [(subject.heldout[p.step], a) for p, _, a in steps if p.step in subject.heldout]
        against_loss.plot(*zip(*known, strict=True) if known else ([], []), "o-", color=f"C{i}")
        kl = [e["kl"][middle] for _, e, _ in steps]
        losses.plot(place, kl, "o-", color=f"C{i}", label=subject.name)
    spectra.axvspan(FIRST, last, alpha=0.08, color="gray", label=f"fitted range [{FIRST}, {last}]")
    spectra.set(xlabel="index i", ylabel="σ_i / σ_1", title="singular values", ylim=(1e-7, 2))
    for axes in (alphas, against_loss):
        axes.axhline(0.5, color="gray", linestyle=":", label="α = ½")
        axes.set(ylabel=f"α on [{FIRST}, {last}]", ylim=(0, None))
    alphas.set(xlabel="training step", title="α along training (step 0: see initial scale)")
    against_loss.set(xlabel="held-out loss, nats per token", title="the same α against the held-out loss")
    against_loss.invert_xaxis()
    losses.set(
        xlabel="training step", ylabel="average KL, nats", title=f"best rank-{size.ranks[middle]} matrix"
    )
    losses.set_yscale("log")
    for axes in (alphas, losses):
        axes.set_xscale("symlog", linthresh=20)
        axes.set_xlim(-4, None)
    for axes in (spectra, alphas, losses):
        axes.legend(fontsize="x-small")
    return figure


def draw_curves(curves: dict[str, dict[str, np.ndarray]], size: Setting) -> Any:
    """Average KL and ℓ1 misspecification against the rank."""
    figure, _ = new_figure(11, 4.2)
    figure.clear()
    for axes, key, label in zip(
        figure.subplots(1, 2),
        ("kl_curve", "l1_curve"),
        ("average KL, nats", "average ℓ1 per cell"),
        strict=True,
    ):
        for name, entry in curves.items():
            axes.loglog(size.curve, entry[key], "o-", markersize=3, label=name)
        axes.set(xlabel="rank r", ylabel=label, title=f"best rank-r matrix, n = {size.n}, {KEPT} tokens")
        axes.legend(fontsize="x-small")
    return figure


def measure(study: Study, size: Setting) -> tuple[list[tuple[Point, dict[str, np.ndarray]]], str]:
    """Every network's spectrum and losses, and the name of the text."""
    text, text_name = text_of(study.options, size.characters)
    found = []
    for subject in chosen(study.options):
        for point in points(subject, study.quick):
            key = (size, text_name, subject.name, subject.sources.get(point.step), point.step, point.scale)
            found.append((point, study.once(lambda p=point: spectrum(p.make(), text, size), *key)))
    return found, text_name


def main(argv: Sequence[str] | None = None) -> None:
    """Write tables and figures of spectra along training and of losses against rank."""
    study = begin("emergence", argv, add_options)
    size = study.choose(FULL, QUICK)
    found, text_name = measure(study, size)
    last = size.n // 2
    headers = ["model", "step", "initial scale", "held-out loss", "α", "R²"]
    headers += ["α, first removed", "R², first removed", "σ₁² share"]
    headers += [f"KL, rank {r}" for r in size.ranks] + [f"KL, first removed, rank {r}" for r in size.ranks]
    study.table("along_training", headers, rows_along(found, last))
    study.figure("along_training", draw(found, size))
    ends = [(p, e) for p, e in found if p.step in (-1, p.subject.final)]
    starts = [(p, e) for p, e in found if p.step == 0]
    curves = {f"{p.subject.name}, {p.label}": entry for p, entry in [*ends, *starts[:2]]}
    rows = [
        (name, rank, float(entry["kl_curve"][i]), float(entry["l1_curve"][i]))
        for name, entry in curves.items()
        for i, rank in enumerate(size.curve)
    ]
    study.table("against_rank", ["model, step", "rank", "average KL", "average ℓ1"], rows)
    study.figure("against_rank", draw_curves(curves, size))
    study.manifest(
        seed=SEED,
        sizes=size,
        tokens_kept=KEPT,
        fitted_range=[FIRST, last],
        text=text_name,
        sigma={f"{p.subject.name}, {p.label}": entry["sigma"] for p, entry in found},
    )


if __name__ == "__main__":
    main()
