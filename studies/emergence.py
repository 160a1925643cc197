"""Low logit rank along training: power law and rank-r losses of the extended logit matrix, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from lrlm_sim.cli.plots import new_figure
from lrlm_sim.corpus import histories_and_futures, likely_tokens
from lrlm_sim.spectra import fit_power_law, low_rank_kl, singular_values
from oracles.transformer import TransformerOracle
from studies.common import begin
from studies.models import (
    FINAL_STEP,
    INITIAL_SCALE,
    centred_unembedding,
    checkpoint,
    checkpoint_folders,
    kept_logits,
    text_windows,
)

FIRST, SEED, KEPT = 5, 0, 50


def untrained(scale: float) -> TransformerOracle:
    """The bundled model's network with fresh normal weights of deviation `scale`."""
    config = LlamaConfig.from_pretrained(checkpoint_folders()[0], initializer_range=scale)
    set_seed(SEED)
    return TransformerOracle(LlamaForCausalLM(config))


def without_first(logits: np.ndarray) -> np.ndarray:
    """Logits (n_h, n_f, k) minus the best rank-one approximation of their unfolding."""
    matrix = logits.reshape(len(logits), -1)
    direction = np.linalg.eigh(matrix @ matrix.T)[1][:, -1:]
    return (matrix - direction @ (direction.T @ matrix)).reshape(logits.shape)


def spectrum(
    model: TransformerOracle, histories: np.ndarray, futures: np.ndarray, ranks: Sequence[int]
) -> dict[str, Any]:
    """Singular values, fits and losses of one model, with and without the first direction."""
    tokens = likely_tokens(model, futures, KEPT)
    hidden = model.final_hidden_states(histories, futures)
    logits = kept_logits(hidden, centred_unembedding(model), tokens)
    sigma, last = singular_values(logits), len(histories) // 2
    return {
        "sigma": sigma,
        "share": float(sigma[0] ** 2 / np.square(sigma).sum()),
        "fit": fit_power_law(sigma, FIRST, last),
        "fit_rest": fit_power_law(sigma[1:], FIRST, last),
        "kl": low_rank_kl(logits, ranks).kl,
        "kl_rest": low_rank_kl(without_first(logits), ranks).kl,
    }


def draw(found: dict[str, dict[str, Any]], steps: Sequence[int], ranks: Sequence[int], last: int) -> Any:
    """Spectra, α and KL along training."""
    figure, _ = new_figure(13, 4.2)
    figure.clear()
    left, middle, right = figure.subplots(1, 3)
    place = np.arange(len(steps))
    along = [found[str(step)] for step in steps]
    for i, (step, entry) in enumerate(zip(steps, along, strict=True)):
        shade = (0.15 + 0.7 * i / max(1, len(steps) - 1), 0.25, 0.85 - 0.7 * i / max(1, len(steps) - 1))
        sigma = entry["sigma"] / entry["sigma"][0]
        left.loglog(np.arange(1, len(sigma) + 1), sigma, "-", color=shade, label=f"step {step}")
    left.axvspan(FIRST, last, alpha=0.08, color="gray", label=f"fitted range [{FIRST}, {last}]")
    left.set(xlabel="index i", ylabel="σ_i / σ_1", title="singular values", ylim=(1e-7, 2))
    middle.plot(place, [e["fit"].alpha for e in along], "o-", label="all directions")
    middle.plot(place, [e["fit_rest"].alpha for e in along], "s--", label="without the first")
    middle.axhline(0.5, color="gray", linestyle=":", label="α = ½")
    middle.set(ylabel=f"α on [{FIRST}, {last}]", title="power law", ylim=(0, None))
    for i, rank in enumerate(ranks):
        right.semilogy(place, [e["kl"][i] for e in along], "o-", color=f"C{i}", label=f"rank {rank}")
        right.semilogy(place, [e["kl_rest"][i] for e in along], "s--", color=f"C{i}", alpha=0.4)
    right.set(ylabel="average KL, nats", title="best rank-r matrix\n(dashed: first direction removed)")
    for axes in (middle, right):
        axes.set_xticks(place, [str(step) for step in steps])
        axes.set_xlabel("training step")
    for axes in (left, middle, right):
        axes.legend(fontsize="x-small")
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Write table and figure of spectra along training of the bundled model."""
    study = begin("emergence", argv)
    n, length = study.choose(150, 40), study.choose(16, 6)
    steps = list(study.choose(checkpoint_folders(), (0, 243, FINAL_STEP)))
    ranks = study.choose((1, 5, 10, 20, 50), (1, 5, 10))
    windows = text_windows(checkpoint(FINAL_STEP), 2 * length, study.choose(600_000, 60_000))
    histories, futures = histories_and_futures(windows, n, length, length, SEED)
    wide = 160**-0.5
    models: dict[str, tuple[float | str, Callable[[], TransformerOracle]]] = {
        str(step): (INITIAL_SCALE if step == 0 else "", partial(checkpoint, step)) for step in steps
    }
    models["0, wide"] = (wide, lambda: untrained(wide))
    found = {name: spectrum(make(), histories, futures, ranks) for name, (_, make) in models.items()}
    headers = ["step", "initial scale", "α", "R²", "α, first removed", "R², first removed", "σ₁² share"]
    rows = [
        (
            name,
            models[name][0],
            entry["fit"].alpha,
            entry["fit"].r2,
            entry["fit_rest"].alpha,
            entry["fit_rest"].r2,
            f"{entry['share']:.4f}",
            *entry["kl"].tolist(),
            *entry["kl_rest"].tolist(),
        )
        for name, entry in found.items()
    ]
    headers += [f"KL, rank {r}" for r in ranks] + [f"KL, first removed, rank {r}" for r in ranks]
    study.table("along_training", headers, rows)
    study.figure("along_training", draw(found, steps, ranks, n // 2))
    study.manifest(
        seed=SEED,
        n=n,
        history_length=length,
        future_length=length,
        tokens_kept=KEPT,
        fitted_range=[FIRST, n // 2],
        initial_scale=INITIAL_SCALE,
        text="standard library of the running Python",
        sigma={name: entry["sigma"] for name, entry in found.items()},
    )


if __name__ == "__main__":
    main()
