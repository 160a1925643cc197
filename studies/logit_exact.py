"""Exact logits give exact models in one epoch: total variation, calls and witness words over families.

Closure is on except for the last table: without it, words come only from failed validations, and the
elliptical potential bounds how many (arXiv:2512.09892, Lemma 5.7).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lrlm_sim.cli.plots import new_figure
from lrlm_sim.distances import certify, total_variation
from lrlm_sim.learners import LogitQueryLearner, Result
from lrlm_sim.matrices import logit_rank, probability_rank
from oracles import ISAN, BranchingProgram, CauchySeparation, LogitAccess, NoisyCopy, NoisyParity, Oracle
from studies.common import Study, begin

#: Most strings over which a total variation is summed; longer teachers are checked along samples.
STRINGS = 1 << 21
CHECKED = 300
#: Calls of the project's theory notes, measured on an earlier implementation.
EARLIER_CALLS = {"Cauchy, n = 10": 9_471, "noisy parity, n = 20": 3_996, "ISAN, d = 4, A = 4, T = 20": 9_779}


def learn(teacher: Oracle, seed: int, **settings: Any) -> Result:
    """The default learner, or one with other settings, on exact logits."""
    return LogitQueryLearner(**settings).fit(LogitAccess(teacher, seed=seed), rng=seed)


def families(study: Study) -> Iterator[tuple[str, Oracle, int]]:
    """(family, teacher, seed), all small enough for the exact total variation."""
    for seed in range(study.choose(60, 4)):
        rng = np.random.default_rng(seed)
        width, vocab_size = int(rng.integers(1, 5)), int(rng.integers(2, 17))
        longest = int(np.log(study.choose(1 << 18, 1 << 12)) / np.log(vocab_size))
        orthogonal = bool(seed % 2)
        teacher = ISAN.random(width, vocab_size, min(10, longest), rng, orthogonal=orthogonal)
        yield "ISAN, d ≤ 4, A ≤ 16, T ≤ 10", teacher, seed
    for n in study.choose((2, 4, 6, 8, 10, 12, 14, 16, 18, 20), (4, 8)):
        yield "noisy parity, n ≤ 20", NoisyParity.random(n, 0.1, n), n
    for n in study.choose(range(1, 11), (2, 3)):
        yield "Cauchy separation, n ≤ 10", CauchySeparation(n), n
    for length, vocab_size in study.choose(
        ((1, 4), (2, 4), (3, 3), (4, 2), (4, 3), (5, 2), (4, 4)), ((2, 2),)
    ):
        yield "noisy copy", NoisyCopy(length, vocab_size, 0.2), length
    for seed in range(study.choose(8, 1)):
        teacher = BranchingProgram.random(3 + seed % 3, 4 + seed % 4, 1.0, rng=seed)
        yield "branching program, n ≤ 5, L ≤ 7", teacher, seed


def exactness(study: Study) -> None:
    """Largest total variation of every family, in a table and a figure."""
    found: dict[str, list[tuple[float, int, bool]]] = {}
    for family, teacher, seed in families(study):
        result = learn(teacher, seed)
        row = (total_variation(teacher, result.model), result.stats["epochs"], result.status.ok)
        found.setdefault(family, []).append(row)
    rows = [
        (family, len(row), max(r[0] for r in row), max(r[1] for r in row), sum(r[2] for r in row))
        for family, row in found.items()
    ]
    study.table("largest_tv", ["teachers", "number", "largest TV", "most epochs", "success"], rows)
    figure, axes = new_figure(7.2, 3.4)
    for i, row in enumerate(found.values()):
        axes.plot([max(r[0], 1e-17) for r in row], np.full(len(row), i), "o", markersize=3, alpha=0.5)
    axes.axvline(1e-9, color="gray", linestyle="--", label="10⁻⁹")
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="total variation", title="Learned from exact logits")
    axes.legend(fontsize="small")
    study.figure("largest_tv", figure)


def rare_strings(study: Study) -> None:
    """Branching programs again, with more histories or more validation: what success leaves uncovered."""
    settings: dict[str, dict[str, int]] = {
        "default": {},
        "pool 64": {"pool": 64},
        "validation 256": {"validation": 256},
    }
    rows = []
    for seed in range(study.choose(8, 2)):
        teacher = BranchingProgram.random(3 + seed % 3, 4 + seed % 4, 1.0, rng=seed)
        results = [learn(teacher, seed, **chosen) for chosen in settings.values()]
        distances = [total_variation(teacher, result.model) for result in results]
        spent = [result.ledger.calls for result in results]
        rows.append((f"n = {teacher.n_bits}, T = {teacher.horizon}, seed {seed}", *distances, *spent))
    headers = ["branching program", *(f"TV, {name}" for name in settings)]
    study.table("rare_strings", [*headers, *(f"calls, {name}" for name in settings)], rows)


def long_strings(study: Study) -> None:
    """Teachers with too many strings to sum over: agreement along fresh strings, and a certificate."""
    cases = [("ISAN, d = 4, A = 4, T = 100", ISAN.random(4, 4, 100, 0))]
    for orthogonal in study.choose((False, True), ()):
        kind = "orthogonal ISAN" if orthogonal else "ISAN"
        cases.append((f"{kind}, d = 4, A = 16, T = 10", ISAN.random(4, 16, 10, 1, orthogonal=orthogonal)))
        cases.append((f"{kind}, d = 2, A = 4, T = 100", ISAN.random(2, 4, 100, 2, orthogonal=orthogonal)))
    cases = cases if not study.quick else [("ISAN, d = 2, A = 2, T = 30", ISAN.random(2, 2, 30, 0))]
    rows = []
    for name, teacher in cases:
        result = learn(teacher, 0)
        strings = teacher.sample(CHECKED, rng=12345)
        worst = float(np.abs(teacher.score(strings) - result.model.score(strings)).max())
        proof = certify(LogitAccess(teacher, seed=777), result.model, CHECKED)
        rows.append((name, str(result.status), worst, proof.estimate, proof.high, result.ledger.calls))
    headers = ["teacher", "status", f"largest abs(log P − log Q) on {CHECKED} strings", "TV estimate"]
    study.table("long_strings", [*headers, "certified TV ≤ (95 %)", "calls"], rows)


def calls(study: Study) -> None:
    """Calls of three teachers beside those of an earlier implementation."""
    teachers: dict[str, Oracle] = {
        "Cauchy, n = 10": CauchySeparation(10),
        "noisy parity, n = 20": NoisyParity.random(20, 0.1, 0),
        "ISAN, d = 4, A = 4, T = 20": ISAN.random(4, 4, 20, 0),
    }
    rows = []
    for name, teacher in teachers.items():
        spent = [learn(teacher, seed).ledger.calls for seed in range(study.choose(5, 1))]
        rows.append((name, min(spent), max(spent), EARLIER_CALLS[name]))
    study.table("calls", ["teacher", "fewest calls", "most calls", "earlier implementation"], rows)


def two_ranks(study: Study) -> None:
    """Noisy copy: the rank that queries of probabilities see, and the rank that logits see."""
    rows = []
    for length, vocab_size in study.choose(
        ((1, 3), (2, 2), (2, 3), (3, 2), (3, 3), (4, 2), (5, 2)), ((2, 2),) * 2
    ):
        teacher = NoisyCopy(length, vocab_size, 0.2)
        result = learn(teacher, 0)
        ranks = probability_rank(teacher), logit_rank(teacher), max(result.stats["ranks"])
        rows.append((length, vocab_size, vocab_size**length, *ranks, result.ledger.calls))
    headers = ["n", "A", "A^n", "probability rank", "logit rank", "rank learned", "calls"]
    study.table("two_ranks", headers, rows)


def growth(study: Study) -> None:
    """Calls against T, d and A beside the request bound of the guarantee (ε = 0.1), which grows like T⁷d³."""
    sweeps = {
        "T": study.choose((5, 10, 20, 40, 80, 160), (4, 8)),
        "d": study.choose((1, 2, 3, 4, 6, 8, 12), (1, 2)),
        "A": study.choose((2, 3, 4, 6, 8, 12, 16), (2, 3)),
    }
    rows = []
    figure, _ = new_figure(10.5, 3.6)
    figure.clear()
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (name, values) in zip(panels, sweeps.items(), strict=True):
        measured, bounds = [], []
        for value in values:
            size = {"d": 4, "A": 4, "T": study.choose(20, 5)} | {name: value}
            result = learn(ISAN.random(size["d"], size["A"], size["T"], 0, orthogonal=True), 0)
            measured.append(result.ledger.calls)
            bounds.append(float(result.stats["theory"]["request_bound"]))
            rows.append((name, value, measured[-1], bounds[-1], str(result.status)))
        for what, counts, mark in (("calls", measured, "o-"), ("bound", bounds, "s--")):
            slope = float(np.polyfit(np.log(values), np.log(counts), 1)[0])
            label = f"{what}: {counts[0]:.2g} to {counts[-1]:.2g}, slope {slope:.1f}"
            axes.loglog(values, np.array(counts) / counts[0], mark, markersize=4, label=label)
        axes.minorticks_off()
        axes.set_xticks(values, list(map(str, values)))
        axes.set(xlabel=name, title=f"growth with {name}")
        axes.legend(fontsize="x-small")
    panels[0].set_ylabel("relative to the smallest teacher")
    study.figure("growth", figure)
    study.table("growth", ["grows", "value", "calls", "request bound", "status"], rows)


def witness_words(study: Study) -> None:
    """Without closure: words added per cut against 64·d·J, and what the missing closure costs."""
    length = study.choose(10, 4)
    teachers: dict[str, Oracle] = {
        f"ISAN, d = 4, A = 4, T = {length}": ISAN.random(4, 4, length, 0),
        f"orthogonal ISAN, d = 4, A = 2, T = {length}": ISAN.random(4, 2, length, 0, orthogonal=True),
        f"noisy parity, n = {length}": NoisyParity.random(length, 0.1, 0),
        f"Cauchy, n = {length // 2}": CauchySeparation(length // 2),
        "noisy copy, n = 3, A = 2": NoisyCopy(3, 2, 0.2),
    }
    rows = []
    figure, axes = new_figure(7.2, 4.2)
    for name, teacher in teachers.items():
        closed, result = learn(teacher, 0), learn(teacher, 0, closure=False)
        words, bound = result.stats["witness_words"], result.stats["witness_bound"]
        rank = max(result.stats["ranks"])
        epochs = result.stats["epochs"]
        costs = result.ledger.calls, closed.ledger.calls
        rows.append((name, str(result.status), rank, max(words), bound, sum(words), epochs, *costs))
        (line,) = axes.semilogy(range(len(words)), np.maximum(words, 0.5), "o-", markersize=4, label=name)
        axes.axhline(bound, color=line.get_color(), linestyle="--", linewidth=0.8)
    headers = ["teacher", "status", "rank", "most words at a cut", "bound 64·d·J", "words in all", "epochs"]
    study.table("witness_words", [*headers, "calls", "calls with closure"], rows)
    axes.set(xlabel="cut", ylabel="witness words (0 drawn at ½)", title="Without closure; dashed: bounds")
    axes.legend(fontsize="small")
    study.figure("witness_words", figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Write tables and figures of exactness, calls, growth and witness words."""
    study = begin("logit_exact", argv)
    exactness(study)
    rare_strings(study)
    long_strings(study)
    calls(study)
    two_ranks(study)
    growth(study)
    witness_words(study)
    study.manifest(seeds="0..59 (ISAN), 0..7 (branching programs), 0 elsewhere", noise=0.0, checked=CHECKED)


if __name__ == "__main__":
    main()
