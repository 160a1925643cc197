"""Exact conditional probabilities give exact models: largest total variation over families of teachers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lrlm_sim.cli.plots import new_figure
from lrlm_sim.distances import total_variation
from lrlm_sim.fidelity import fidelity
from lrlm_sim.learners import ConditionalQueryLearner
from oracles import ConditionalProbabilityAccess, HiddenMarkovModel, NoisyParity, Oracle
from studies.common import Study, begin, near_duplicate_hmm

GAPS = (1e-1, 1e-2, 1e-3, 1e-4)


def near_singular_hmm(gap: float) -> HiddenMarkovModel:
    """Four states whose transition matrix has singular values down to about `gap`: rows nearly alike."""
    rng = np.random.default_rng(0)
    row = rng.dirichlet(np.ones(4))
    transition = (1 - gap) * row + gap * rng.dirichlet(np.ones(4), 4)
    return HiddenMarkovModel(rng.dirichlet(np.ones(4)), transition, rng.dirichlet(np.ones(5), 4), 6)


def families(study: Study) -> Iterator[tuple[str, Oracle, int]]:
    """(family, teacher, seed)."""
    for seed in range(study.choose(240, 4)):
        rng = np.random.default_rng(seed)
        n_states, vocab_size = int(rng.integers(1, 9)), int(rng.integers(1, 9))
        horizon = 5 if vocab_size > 4 else 6
        concentration = float(rng.choice([0.1, 0.3, 1.0]))
        teacher = HiddenMarkovModel.random(n_states, vocab_size, horizon, rng, concentration)
        yield "random HMM, S ≤ 8, A ≤ 8", teacher, seed
    for n in study.choose(range(2, 17), (4, 8)):
        yield "noisy parity, n ≤ 16", NoisyParity.random(n, 0.1, n), n
    for gap in GAPS:
        yield f"near-duplicate states, gap {gap:.0e}", near_duplicate_hmm(gap), 0
        yield f"near-singular transitions, gap {gap:.0e}", near_singular_hmm(gap), 0


def main(argv: Sequence[str] | None = None) -> None:
    """Write table and figure of the largest total variation of every family, by both routes."""
    study = begin("conditional_exact", argv)
    found: dict[str, dict[str, list[float]]] = {}
    visible: dict[str, float] = {}
    for family, teacher, seed in families(study):
        if "gap" in family:
            visible[family] = fidelity(teacher, tolerance=1e-13).value
        for route in ("tree", "spanner"):
            access = ConditionalProbabilityAccess(teacher, seed=seed)
            result = ConditionalQueryLearner(route=route, tree_limit=10**6).fit(access, rng=seed)
            entry = found.setdefault(family, {"tree": [], "spanner": []})
            entry[route].append(total_variation(teacher, result.model))
    rows = [
        (name, len(tv["tree"]), visible.get(name, ""), max(tv["tree"]), max(tv["spanner"]))
        for name, tv in found.items()
    ]
    headers = ["teachers", "number", "fidelity", "largest TV, tree", "largest TV, spanner"]
    study.table("largest_tv", headers, rows)
    figure, axes = new_figure(7.2, 4.2)
    place = np.arange(len(found))
    for shift, route, mark in ((-0.12, "tree", "o"), (0.12, "spanner", "s")):
        for i, tv in enumerate(found.values()):
            values = np.maximum(tv[route], 1e-17)
            color = "C0" if route == "tree" else "C1"
            axes.plot(values, np.full(len(values), i + shift), mark, color=color, markersize=3, alpha=0.5)
        axes.plot([], [], mark, color="C0" if route == "tree" else "C1", label=f"{route} route")
    axes.axvline(1e-10, color="gray", linestyle="--", label="10⁻¹⁰")
    axes.set_yticks(place, list(found))
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="total variation", title="Learned from exact conditional probabilities")
    axes.legend(fontsize="small")
    study.figure("largest_tv", figure)
    study.manifest(seeds="0..239 (HMM), n (parity)", gaps=GAPS)


if __name__ == "__main__":
    main()
