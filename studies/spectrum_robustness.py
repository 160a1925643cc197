"""How far the spectrum of the bundled model depends on size, tokens kept, lengths, corpus and sense.

Every row changes one thing of the base: n histories and n futures of 16 tokens each from the standard
library's source, the 50 likeliest tokens after each future kept. Also compared are the spaces of
histories (top-r left singular vectors) of sensible and nonsense futures, and of two checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrlm_sim.cli.plots import new_figure
from lrlm_sim.corpus import histories_and_futures, likely_tokens
from lrlm_sim.matrices import extended_logits
from lrlm_sim.spectra import (
    fit_power_law,
    hidden_state_singular_values,
    low_rank_kl,
    principal_angles,
    singular_values,
)
from oracles.transformer import TransformerOracle
from studies.common import Study, begin
from studies.models import FINAL_STEP, centred_unembedding, checkpoint, kept_logits, permuted, text_windows

FIRST, SEED, KEPT, EARLIER = 5, 0, 50, 2187


@dataclass(frozen=True, eq=False)
class Case:
    """One spectrum: its name, singular values, fit on [FIRST, last], and KL at the stated rank."""

    name: str
    n: int
    sigma: np.ndarray
    last: int
    alpha: float
    r2: float
    alpha_rest: float
    kl: float | str


def case(name: str, sigma: np.ndarray, n: int, kl: float | str) -> Case:
    """Fit with and without the first direction."""
    last = n // 2
    fit, rest = fit_power_law(sigma, FIRST, last), fit_power_law(sigma[1:], FIRST, last)
    return Case(name, n, sigma, last, fit.alpha, fit.r2, rest.alpha, kl)


def kept_case(name: str, logits: np.ndarray, rank: int) -> Case:
    """Spectrum and KL of logits (n_h, n_f, k)."""
    return case(name, singular_values(logits), len(logits), float(low_rank_kl(logits, [rank]).kl[0]))


def check_hidden_states(model: TransformerOracle, histories: np.ndarray, futures: np.ndarray) -> float:
    """Largest difference, over σ_1, of all-token singular values by hidden states and by the logits.

    Raises AssertionError above 1e-5: the two passes of the float32 network round differently.
    """
    hidden = model.final_hidden_states(histories, futures)
    unembedding = model.unembedding()
    assert unembedding is not None
    fast = hidden_state_singular_values(hidden, unembedding, method="svd")
    direct = singular_values(extended_logits(model, histories, futures), method="svd")
    shared = min(len(fast), len(direct))
    gap = float(np.abs(fast[:shared] - direct[:shared]).max() / direct[0])
    assert gap < 1e-5, f"all-token singular values differ by {gap:.1e} σ_1"
    return gap


def token_cases(
    model: TransformerOracle, base: np.ndarray, futures: np.ndarray, rank: int
) -> tuple[list[Case], np.ndarray]:
    """Cases of one grid of hidden states: n/2, n/4 and the tokens kept; with the base logits."""
    centred, n = centred_unembedding(model), len(base)
    likely = likely_tokens(model, futures, 200)
    logits = kept_logits(base, centred, likely[:, :KEPT])
    found = [kept_case("base", logits, rank)]
    found += [kept_case(f"n/{part}", logits[: n // part, : n // part], rank) for part in (2, 4)]
    found.append(kept_case("k = 200", kept_logits(base, centred, likely), rank))
    sigma = hidden_state_singular_values(base, centred)
    found.append(case("all 1024 tokens", sigma, n, ""))
    rng = np.random.default_rng(SEED)
    some = np.array([rng.choice(model.vocab_size, KEPT, replace=False) for _ in futures])
    found.append(kept_case("50 random tokens", kept_logits(base, centred, some), rank))
    return found, logits


def likely_logits(model: TransformerOracle, histories: np.ndarray, futures: np.ndarray) -> np.ndarray:
    """Logits of the 50 likeliest tokens after each future."""
    tokens = likely_tokens(model, futures, KEPT)
    return kept_logits(model.final_hidden_states(histories, futures), centred_unembedding(model), tokens)


def angle_rows(
    base: np.ndarray, others: dict[str, np.ndarray], ranks: Sequence[int]
) -> list[tuple[str, int, float, float, float, float]]:
    """(pair, rank, mean cos², its value for random spaces, median and largest angle in degrees)."""
    rows = []
    for name, logits in others.items():
        for rank in ranks:
            angles = principal_angles(base, logits, rank)
            overlap = float(np.square(np.cos(angles)).mean())
            degrees = np.degrees(angles)
            rows.append(
                (name, rank, overlap, rank / len(base), float(np.median(degrees)), float(degrees.max()))
            )
    return rows


def draw(cases: Sequence[Case], angles: Sequence[tuple], n: int) -> Any:
    """Spectra of all cases, their α, and overlap of spaces against rank."""
    figure, _ = new_figure(13.5, 4.4)
    figure.clear()
    left, middle, right = figure.subplots(1, 3)
    for i, entry in enumerate(cases):
        sigma = entry.sigma / entry.sigma[0]
        style = "-" if i < 10 else "--"
        left.loglog(np.arange(1, len(sigma) + 1), sigma, style, color=f"C{i % 10}", label=entry.name)
    left.set(xlabel="index i", ylabel="σ_i / σ_1", title="singular values", ylim=(1e-5, 2))
    left.legend(fontsize="xx-small")
    place = np.arange(len(cases))
    middle.plot([entry.alpha for entry in cases], place, "o", label="all directions")
    middle.plot([entry.alpha_rest for entry in cases], place, "s", label="without the first", alpha=0.6)
    middle.axvline(0.5, color="gray", linestyle=":", label="α = ½")
    middle.set_yticks(place, [entry.name for entry in cases], fontsize="small")
    middle.invert_yaxis()
    middle.set(xlabel=f"α on [{FIRST}, n/2]", title="power law", xlim=(0.4, None))
    middle.legend(fontsize="x-small")
    for name in dict.fromkeys(row[0] for row in angles):
        mine = [row for row in angles if row[0] == name]
        right.plot([row[1] for row in mine], [row[2] for row in mine], "o-", label=name)
    ranks = sorted({row[1] for row in angles})
    right.plot(ranks, [r / n for r in ranks], "k:", label="random spaces")
    right.set(xlabel="rank r", ylabel="mean cos² of principal angles", title="history spaces", ylim=(0, 1.02))
    right.legend(fontsize="x-small")
    return figure


def measure(study: Study) -> tuple[list[Case], dict[str, np.ndarray], dict[str, object]]:
    """All cases; base and compared logits over the same histories; settings for the manifest."""
    n, length, rank = study.choose(160, 48), study.choose(16, 6), study.choose(20, 5)
    lengths = study.choose((8, 24), (4,))
    model, characters = checkpoint(FINAL_STEP), study.choose(600_000, 60_000)
    windows = text_windows(model, 2 * length, characters)
    histories, futures = histories_and_futures(windows, n, length, length, SEED)
    gap = check_hidden_states(model, histories[:40], futures[:30])
    cases, base = token_cases(model, model.final_hidden_states(histories, futures), futures, rank)
    for other in lengths:
        windows = text_windows(model, 2 * other, characters)
        drawn = histories_and_futures(windows, n, other, other, SEED)
        cases.append(kept_case(f"lengths {other}", likely_logits(model, *drawn), rank))
    drawn = histories_and_futures(model.sample(4 * n, SEED, length=2 * length), n, length, length, SEED)
    cases.append(kept_case("model's own samples", likely_logits(model, *drawn), rank))
    others = {
        "nonsense futures": likely_logits(model, histories, permuted(futures, SEED)),
        f"step {EARLIER}": likely_logits(checkpoint(EARLIER), histories, futures),
    }
    cases += [kept_case(name, logits, rank) for name, logits in others.items()]
    settings = {
        "seed": SEED,
        "n": n,
        "length": length,
        "other_lengths": lengths,
        "tokens_kept": KEPT,
        "kl_rank": rank,
        "fitted_range": f"[{FIRST}, n/2]",
        "hidden_state_gap": gap,
        "text": "standard library of the running Python",
    }
    return cases, {"base": base, **others}, settings


def main(argv: Sequence[str] | None = None) -> None:
    """Write tables and figure of the spectrum under every change, and of the history spaces."""
    study = begin("spectrum_robustness", argv)
    cases, logits, settings = measure(study)
    base = logits.pop("base")
    headers = ["case", "n", "range", "α", "R²", "α, first removed", f"KL, rank {settings['kl_rank']}"]
    rows = [(c.name, c.n, f"[{FIRST}, {c.last}]", c.alpha, f"{c.r2:.4f}", c.alpha_rest, c.kl) for c in cases]
    study.table("cases", headers, rows)
    pairs = {f"base, {name}": other for name, other in logits.items()}
    angles = angle_rows(base, pairs, study.choose((1, 5, 10, 20, 40, 60), (1, 5, 10)))
    names = ["against", "rank", "mean cos²", "random spaces", "median angle, °", "largest angle, °"]
    study.table("history_spaces", names, angles)
    study.figure("cases", draw(cases, angles, len(base)))
    study.manifest(**settings)


if __name__ == "__main__":
    main()
