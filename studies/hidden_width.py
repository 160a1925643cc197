"""Hidden width and unembedding of language models read off their answers (arXiv:2403.06634, 2403.09539).

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
from oracles.base import Oracle
from oracles.errors import FormatError
from studies.common import begin
from studies.models import Delegate, Subject, add_options, chosen

SEED, HISTORIES, LENGTH = 0, 340, 8


@final
class Remembered(Delegate):
    """A model that computes the law after a history once; calls are counted by the access as ever."""

    def __init__(self, model: Oracle) -> None:
        super().__init__(model)
        self._laws: dict[tuple[int, ...], np.ndarray] = {}

    def next_log_probs(self, histories: Sequence[ArrayLike] | np.ndarray) -> Float[np.ndarray, "n vocab"]:
        keys = [tuple(np.asarray(history).tolist()) for history in histories]
        new = list(dict.fromkeys(key for key in keys if key not in self._laws))
        if new:
            self._laws.update(zip(new, self.model.next_log_probs([list(key) for key in new]), strict=True))
        return np.array([self._laws[key] for key in keys]).reshape(len(keys), self.vocab_size)


def measure(subject: Subject, shown: int) -> tuple[list[tuple], dict[str, np.ndarray], int]:
    """Lines of the table for one model, singular values by kind of answer, and the true width."""
    truth, oracle = subject.model.unembedding(), Remembered(subject.model)
    if truth is None:
        raise FormatError(
            f"{subject.name} has no plain linear output layer: there is no width to compare with"
        )
    histories = max(HISTORIES, 2 * truth.shape[1] + 20)
    rows, drawn = [], {}
    for name, access, again in (
        ("full logits", LogitAccess(oracle), LogitAccess(oracle)),
        (f"top {shown} and bias", TopLogitAccess(oracle, shown), TopLogitAccess(oracle, shown)),
    ):
        found = hidden_width(access, histories, LENGTH, rng=SEED)  # both ask the same histories
        width = found.width or 1
        residual = unembedding(again, width, histories, LENGTH, rng=SEED).residual(truth)
        below = (
            unembedding(again, width - 1, histories, LENGTH, rng=SEED).residual(truth) if width > 1 else 1.0
        )
        drawn[name] = found.singular_values
        answer = found.width if found.width is not None else "none"
        confident = "yes" if found.confident else "no"
        numbers = (access.ledger.calls, truth.shape[1], answer, found.drop, confident, residual, below)
        rows.append((subject.name, name, *numbers))
    return rows, drawn, truth.shape[1]


def main(argv: Sequence[str] | None = None) -> None:
    """Write table and figure of width, gap and unembedding residual from full and from top-k answers."""
    study = begin("hidden_width", argv, add_options)
    shown = study.choose(5, 256)
    lines: list[tuple] = []
    figure, axes = new_figure()
    for i, subject in enumerate(chosen(study.options)):
        rows, drawn, width = measure(subject, shown)
        lines += rows
        for (name, sigma), mark, size in zip(drawn.items(), "ox", (7, 3), strict=True):
            index, label = np.arange(1, len(sigma) + 1), f"{subject.name}, {name}"
            axes.semilogy(
                index, sigma / sigma[0], mark, markersize=size, label=label, mfc="none", color=f"C{i}"
            )
        axes.axvline(width, color=f"C{i}", linestyle=":", label=f"true width {width}")
    headers = ["model", "answers", "calls", "true width", "width", "σ_w / σ_(w+1)", "confident"]
    study.table("width", [*headers, "unembedding residual", "residual with one direction less"], lines)
    axes.set(
        xlabel="index i",
        ylabel="σ_i / σ_1",
        ylim=(1e-10, 2),
        title="Next-token logits of random histories",
    )
    axes.legend(fontsize="x-small")
    study.figure("width", figure)
    study.manifest(seed=SEED, least_histories=HISTORIES, history_length=LENGTH, shown=shown)


if __name__ == "__main__":
    main()
