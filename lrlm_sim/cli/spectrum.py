"""`lrlm spectrum`: the extended logit matrix of one oracle, its power law, and KL against rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lrlm_sim.cli.console import Screen
from lrlm_sim.cli.plots import plot_kl, plot_spectra
from lrlm_sim.cli.runs import open_run
from lrlm_sim.corpus import encode, histories_and_futures, likely_tokens, read_text, token_windows
from lrlm_sim.matrices import extended_logits
from lrlm_sim.spectra import fit_power_law, low_rank_kl, singular_values
from oracles import open_oracle
from oracles.base import Oracle
from oracles.errors import ParameterError


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of one logit matrix with its fit and its rank-r losses."""

    sigma: np.ndarray
    span: tuple[int, int]
    fit: tuple[float, float, float]
    ranks: list[int]
    kl: np.ndarray
    bound: np.ndarray


def measure(
    oracle: Oracle,
    histories: np.ndarray,
    futures: np.ndarray,
    tokens: np.ndarray | None,
    span: tuple[int, int],
) -> Spectrum:
    """Extended logits of `oracle`, their singular values, α over `span` (1-based, inclusive), KL per rank."""
    logits = extended_logits(oracle, histories, futures, tokens)
    sigma = singular_values(logits)
    last = min(span[1], len(sigma))
    if span[0] >= last:
        raise ParameterError(
            f"the fit needs first < last ≤ {len(sigma)} singular values, got [{span[0]}, {last}]"
        )
    ranks = [r for r in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if r < len(sigma)]
    losses = low_rank_kl(logits, ranks)
    alpha, log_c, r2 = fit_power_law(sigma, span[0], last)
    return Spectrum(sigma, (span[0], last), (alpha, log_c, r2), ranks, losses.kl, losses.bound)


def windows_of(oracle: Oracle, texts: Sequence[Path], length: int, n: int, seed: int) -> np.ndarray:
    """Token windows from text files where given, else from the oracle's own samples."""
    if not texts:
        return oracle.sample(4 * n, seed, length=length)
    tokenizer = getattr(oracle, "tokenizer", None)
    if tokenizer is None:
        raise ParameterError("this oracle has no tokenizer, so it cannot read --text: leave --text out")
    tokens = encode(tokenizer, read_text(texts), oracle.vocab_size)
    return token_windows(tokens, length)


def run_spectrum(
    screen: Screen,
    oracle: str,
    texts: list[Path],
    n: int,
    lengths: tuple[int, int],
    kept: int | None,
    span: tuple[int, int | None],
    seed: int,
    out: Path | None,
) -> int:
    """Measure and plot one spectrum; status 0."""
    settings = {"oracle": oracle, "text": texts, "n": n, "lengths": lengths, "tokens": kept, "fit": span}
    with open_run("spectrum", seed, out, settings) as run:
        model = open_oracle(oracle)
        if model.horizon is not None and sum(lengths) >= model.horizon:
            raise ParameterError(
                f"history + future + 1 token = {sum(lengths) + 1} is past the horizon {model.horizon}: "
                "give smaller --history-length and --future-length"
            )
        with screen.step("drawing histories and futures"):
            windows = windows_of(model, texts, sum(lengths), n, seed)
            histories, futures = histories_and_futures(windows, n, *lengths, seed)
            tokens = None if kept is None or kept >= model.vocab_size else likely_tokens(model, futures, kept)
        with screen.step(f"{n} × {n} extended logits"):
            spectrum = measure(model, histories, futures, tokens, (span[0], span[1] or n // 2))
        np.save(run.folder / "singular_values.npy", spectrum.sigma, allow_pickle=False)
        alpha, log_c, r2 = spectrum.fit
        run.record(
            alpha=alpha, log_c=log_c, r2=r2, fitted_range=spectrum.span, ranks=spectrum.ranks, kl=spectrum.kl
        )
        plot_spectra(
            run.folder / "spectrum.png", {oracle: spectrum.sigma}, {oracle: spectrum.fit}, spectrum.span
        )
        plot_kl(run.folder / "kl.png", spectrum.ranks, {oracle: spectrum.kl}, {oracle: spectrum.bound})
        screen.table(
            f"{oracle}: σ_i ≈ C i^−α",
            ("range", "alpha", "R²", "σ_1² share"),
            [
                (
                    f"{spectrum.span[0]}..{spectrum.span[1]}",
                    alpha,
                    r2,
                    spectrum.sigma[0] ** 2 / np.square(spectrum.sigma).sum(),
                )
            ],
        )
        screen.table(
            "average KL against rank (nats)",
            ("rank", "KL", "Frobenius bound"),
            list(zip(spectrum.ranks, spectrum.kl.tolist(), spectrum.bound.tolist(), strict=True)),
        )
        screen.say(f"plots and manifest in {run.folder}")
        screen.finish(run.manifest)
    return 0
