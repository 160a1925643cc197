"""Noisy logits, rank under-estimated, exact and over-estimated: which samplers hold, and what is reported.

Teacher: ISAN of width 4, A = 4, T = 30. Every answered log-probability is off by at most ξ. The samplers of
one row solve the same chain; their total variation is estimated on fresh teacher strings ("lp" on fewer:
each of its tokens is a linear program). "pinv" are the ridge operators without their ridge, for comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lrlm_sim.cli.plots import new_figure
from lrlm_sim.distances import estimate_total_variation
from lrlm_sim.learners import LogitQueryLearner
from lrlm_sim.reconstruction import ReconstructionModel
from oracles import ISAN, LogitAccess
from studies.common import Study, begin

WIDTH = 4
EXCESS = {"−1": -1, "exact": 0, "+2": 2}
METHODS = ("ridge", "box", "qr", "lp", "pinv")


def distances(study: Study, teacher: ISAN, model: ReconstructionModel, seed: int) -> dict[str, float]:
    """Estimated total variation of every sampler of one chain."""
    found = {}
    for method in METHODS:
        chain = replace(model.chain, noise=0.0) if method == "pinv" else model.chain
        sampler = ReconstructionModel.from_chain(chain, "ridge" if method == "pinv" else method)
        size = study.choose(30, 3) if method == "lp" else study.choose(2000, 100)
        with np.errstate(all="ignore"):
            found[method] = estimate_total_variation(teacher, sampler, size, rng=seed).estimate
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Write the table of samplers, rank against noise, and a figure."""
    study = begin("logit_noise", argv)
    horizon = study.choose(30, 6)
    teacher = ISAN.random(WIDTH, 4, horizon, 0)
    rows, tv = [], {}
    for noise in study.choose((1e-4, 1e-3, 1e-2), (1e-3,)):
        for name, excess in EXCESS.items():
            access = LogitAccess(teacher, noise=noise, seed=1)
            learner = LogitQueryLearner(rank=WIDTH + excess, noise=noise, pool=16, validation=32)
            result = learner.fit(access, rng=1)
            assert isinstance(result.model, ReconstructionModel)
            tv[noise, name] = distances(study, teacher, result.model, 2)
            numbers = [tv[noise, name][method] for method in METHODS]
            stats = result.stats
            report = stats["sampler"], result.status.code, max(stats["ranks"]), max(stats["numerical_ranks"])
            discrepancy = stats["validation_discrepancy"], stats["tolerance"]
            rows.append((f"{noise:.0e}", name, *numbers, *report, *discrepancy, result.ledger.calls))
    headers = ["ξ", "rank", *METHODS, "chosen", "status", "rank kept", "rank found"]
    headers += ["discrepancy", "tolerance g", "calls"]
    study.table("samplers", headers, rows)
    figure, _ = new_figure(10.5, 3.6)
    figure.clear()
    for axes, name in zip(figure.subplots(1, 3, sharey=True), EXCESS, strict=True):
        for shift, method in enumerate(METHODS):
            points = [(noise, row[method]) for (noise, rank), row in tv.items() if rank == name]
            x, y = np.array(points).T
            axes.loglog(x * 1.08 ** (shift - 2), np.maximum(y, 1e-6), "o-", markersize=4, label=method)
        axes.axhline(0.03, color="gray", linestyle="--", linewidth=0.8)
        axes.set(xlabel="noise ξ (nats)", title=f"rank {name}")
    figure.axes[0].set_ylabel("total variation (dashed: 0.03)")
    figure.axes[-1].legend(fontsize="small")
    study.figure("samplers", figure)
    study.manifest(width=WIDTH, vocab_size=4, horizon=horizon, seeds="teacher 0, learner 1, strings 2")


if __name__ == "__main__":
    main()
