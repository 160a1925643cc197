"""Noisy parity: sample-only baselines stay at chance, conditional queries recover the secret.

A model that knows everything but the label's parity has TV ½ − ν: the fair coin on the last token. The
basis-query attack (arXiv:2512.09892) asks the label after each unit vector e_i r times; what it costs is
checked against the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lrlm_sim.cli.plots import new_figure
from lrlm_sim.distances import total_variation
from lrlm_sim.learners import BaumWelch, ConditionalQueryLearner, NGramLearner, SpectralHMM
from oracles import ConditionalSampleAccess, Ledger, NoisyParity, SampleAccess
from studies.common import begin

NOISE = 0.1


def basis_query_attack(
    access: ConditionalSampleAccess, noise: float, delta: float
) -> tuple[np.ndarray, np.ndarray, Ledger]:
    """(secret, labels' majorities' margins, ledger) from n·r labels, r = ⌈2/(1−2ν)² · ⌈log2(n/δ)⌉⌉.

    Each majority is wrong with probability ≤ exp(−r(1−2ν)²/2) (Hoeffding), so all are right with
    probability ≥ 1 − δ.
    """
    assert access.horizon is not None
    n = access.horizon - 1
    repeats = math.ceil(2 / (1 - 2 * noise) ** 2 * math.ceil(math.log2(n / delta)))
    before = access.ledger
    counts = access.next_counts(np.eye(n, dtype=np.int64), repeats)
    assert access.ledger.calls - before.calls == n * repeats
    return (counts[:, 1] > counts[:, 0]).astype(np.int64), np.abs(counts[:, 1] / repeats - 0.5), access.ledger


def main(argv: Sequence[str] | None = None) -> None:
    """Write table and figure of total variation against n for every learner."""
    study = begin("parity_queries", argv)
    lengths = study.choose((12, 14, 16, 18, 20), (8,))
    strings = study.choose(1_000_000, 5_000)
    rows = []
    for n in lengths:
        teacher = NoisyParity.random(n, NOISE, n)
        baselines = {
            "spectral": SpectralHMM(2, samples=strings),
            "4-gram": NGramLearner(4, samples=strings),
            "Baum–Welch, 4 states": BaumWelch(4, samples=strings, restarts=2, iterations=60),
        }
        for name, learner in baselines.items():
            result = learner.fit(SampleAccess(teacher, seed=n), rng=n)
            tv = total_variation(teacher, result.model)
            rows.append((n, name, tv, result.status.code, result.ledger.generated_tokens))
        learner = ConditionalQueryLearner(rank=2, samples=1000, pool_samples=200, pool=8, route="spanner")
        result = learner.fit(ConditionalSampleAccess(teacher, seed=n), rng=n)
        tv = total_variation(teacher, result.model)
        rows.append((n, "conditional queries", tv, result.status.code, result.ledger.generated_tokens))
        access = ConditionalSampleAccess(teacher, seed=n + 1)
        secret, _, ledger = basis_query_attack(access, NOISE, 1e-3)
        found = "recovered" if (secret == teacher.secret).all() else "wrong"
        tv = total_variation(teacher, NoisyParity(secret, NOISE))
        rows.append((n, "n·r basis queries", tv, found, ledger.generated_tokens))
    study.table("parity", ["n", "learner", "TV", "status", "generated tokens"], rows)
    figure, axes = new_figure()
    marks = dict(zip(dict.fromkeys(row[1] for row in rows), "os^Dv", strict=True))
    for name, mark in marks.items():
        chosen = [row for row in rows if row[1] == name]
        values = [max(row[2], 1e-3) for row in chosen]
        axes.plot([row[0] for row in chosen], values, mark + "-", label=name, markersize=5)
    axes.axhline(0.5 - NOISE, color="gray", linestyle="--", label="fair label: ½ − ν")
    axes.set(
        yscale="log",
        xlabel="n bits",
        ylabel="total variation (0 drawn at 10⁻³)",
        title=f"Noisy parity, ν = {NOISE:g}, baselines from {strings:,} strings",
    )
    axes.set_xticks(list(lengths))
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    study.figure("parity", figure)
    study.manifest(seeds="n", noise=NOISE, strings=strings, lengths=lengths)


if __name__ == "__main__":
    main()
