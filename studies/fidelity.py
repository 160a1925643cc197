"""Fidelity to zero: the sampled submatrix learner degrades, the conditional-query learner does not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lrlm_sim.cli.plots import new_figure
from lrlm_sim.distances import total_variation
from lrlm_sim.fidelity import fidelity
from lrlm_sim.learners import ConditionalQueryLearner, ExactConditionalLearner
from oracles import ConditionalSampleAccess
from studies.common import begin, near_duplicate_hmm


def main(argv: Sequence[str] | None = None) -> None:
    """Write table and figure of median total variation against fidelity, at equal generated tokens."""
    study = begin("fidelity", argv)
    seeds = range(study.choose(9, 2))
    rows = []
    for gap in study.choose((0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.003, 0.001), (0.2, 0.02)):
        teacher = near_duplicate_hmm(gap)
        submatrix, query, tokens = [], [], []
        for seed in seeds:
            access = ConditionalSampleAccess(teacher, seed=seed)
            learner = ExactConditionalLearner(samples=study.choose(20_000, 2000), tolerance=1e-4, max_rank=3)
            exact = learner.fit(access, rng=seed)
            submatrix.append(total_variation(teacher, exact.model))
            tokens.append(exact.ledger.generated_tokens)
            m = max(2, exact.ledger.generated_tokens // sum(3**t for t in range(6)))
            access = ConditionalSampleAccess(teacher, seed=seed)
            learned = ConditionalQueryLearner(rank=3, samples=m).fit(access, rng=seed)
            query.append(total_variation(teacher, learned.model))
        measured = fidelity(teacher, tolerance=1e-13).value
        rows.append((gap, measured, float(np.median(tokens)), *map(float, np.median([submatrix, query], 1))))
    headers = [
        "gap of the states",
        "fidelity",
        "generated tokens",
        "TV, submatrix",
        "TV, conditional queries",
    ]
    study.table("fidelity", headers, rows)
    figure, axes = new_figure()
    axes.loglog([r[1] for r in rows], [r[3] for r in rows], "o-", label="submatrix (2302.14753), sampled")
    axes.loglog([r[1] for r in rows], [r[4] for r in rows], "s-", label="conditional queries (2411.07536)")
    axes.invert_xaxis()
    axes.set(xlabel="fidelity of the teacher (falling)", ylabel="median total variation")
    axes.set_title("Two states that become one: equal numbers of generated tokens")
    axes.legend(fontsize="small")
    study.figure("fidelity", figure)
    study.manifest(seeds=list(seeds), horizon=6)


if __name__ == "__main__":
    main()
