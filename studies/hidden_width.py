"""Hidden width and unembedding of the bundled model read off its answers (arXiv:2403.06634, 2403.09539).

From full logits, and from the five likeliest tokens under a logit bias: ⌈(A − 1)/4⌉ calls per history.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from lrlm_sim.cli.plots import new_figure
from lrlm_sim.extraction import hidden_width, unembedding
from oracles import LogitAccess, TopLogitAccess
from oracles.base import Oracle, State
from studies.common import begin
from studies.models import FINAL_STEP, checkpoint

SEED, HISTORIES, LENGTH = 0, 340, 8


@final
class Remembered(Oracle):
    """A model that computes the law after a history once; calls are counted by the access as ever."""

    def __init__(self, model: Oracle) -> None:
        self.model, self.vocab_size, self.horizon = model, model.vocab_size, model.horizon
        self._laws: dict[tuple[int, ...], np.ndarray] = {}

    def start(self, batch: int) -> State:
        return self.model.start(batch)

    def advance(self, state: State, tokens: ArrayLike) -> State:
        return self.model.advance(state, tokens)

    def log_probs(self, state: State) -> Float[np.ndarray, "batch vocab"]:
        return self.model.log_probs(state)

    def take(self, state: State, rows: ArrayLike) -> State:
        return self.model.take(state, rows)

    def next_log_probs(self, histories: Sequence[ArrayLike] | np.ndarray) -> Float[np.ndarray, "n vocab"]:
        keys = [tuple(np.asarray(history).tolist()) for history in histories]
        new = list(dict.fromkeys(key for key in keys if key not in self._laws))
        if new:
            self._laws.update(zip(new, self.model.next_log_probs([list(key) for key in new]), strict=True))
        return np.array([self._laws[key] for key in keys]).reshape(len(keys), self.vocab_size)


def main(argv: Sequence[str] | None = None) -> None:
    """Write table and figure of width, gap and unembedding residual from full and from top-k answers."""
    study = begin("hidden_width", argv)
    model = checkpoint(FINAL_STEP)
    truth, oracle = model.unembedding(), Remembered(model)
    assert truth is not None
    shown = study.choose(5, 256)
    rows, drawn = [], {}
    for name, access, again in (
        ("full logits", LogitAccess(oracle), LogitAccess(oracle)),
        (f"top {shown} and bias", TopLogitAccess(oracle, shown), TopLogitAccess(oracle, shown)),
    ):
        found = hidden_width(access, HISTORIES, LENGTH, rng=SEED)  # both ask the same histories
        width = found.width or 1
        residual = unembedding(again, width, HISTORIES, LENGTH, rng=SEED).residual(truth)
        below = (
            unembedding(again, width - 1, HISTORIES, LENGTH, rng=SEED).residual(truth) if width > 1 else 1.0
        )
        drawn[name] = found.singular_values
        answer = found.width if found.width is not None else "none"
        confident = "yes" if found.confident else "no"
        rows.append(
            (name, access.ledger.calls, truth.shape[1], answer, found.drop, confident, residual, below)
        )
    headers = ["answers", "calls", "true width", "width", "σ_w / σ_(w+1)", "confident"]
    study.table("width", [*headers, "unembedding residual", "residual with one direction less"], rows)
    figure, axes = new_figure()
    for (name, sigma), mark, size in zip(drawn.items(), "ox", (7, 3), strict=True):
        index = np.arange(1, len(sigma) + 1)
        axes.semilogy(index, sigma / sigma[0], mark, markersize=size, label=name, mfc="none")
    axes.axvline(truth.shape[1], color="gray", linestyle=":", label=f"true width {truth.shape[1]}")
    axes.set(
        xlabel="index i",
        ylabel="σ_i / σ_1",
        ylim=(1e-10, 2),
        title=f"Next-token logits of {HISTORIES} random histories",
    )
    axes.legend(fontsize="small")
    study.figure("width", figure)
    study.manifest(seed=SEED, histories=HISTORIES, history_length=LENGTH, shown=shown)


if __name__ == "__main__":
    main()
