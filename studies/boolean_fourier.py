"""Sparse polynomials on twenty bits: the logit-query learner beside Goldreich–Levin / Kushilevitz–Mansour.

Low logit rank uses that a character factors at every cut, and asks beginnings and continuations of its
choice; the bucket search only averages labels of random strings, and its pairs grow like E f⁴/θ⁴.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lrlm_sim.cli.plots import new_figure
from lrlm_sim.distances import estimate_total_variation
from lrlm_sim.learners import LogitQueryLearner
from lrlm_sim.learners.boolean_fourier import FourierLearner, fourier_terms
from lrlm_sim.reconstruction import ReconstructionModel, ridge_isan
from oracles import LogitAccess, Oracle, SparsePolynomial
from studies.common import Study, begin

#: Smallest coefficient sought; those of the teachers are ±½.
THRESHOLD = 0.4


@dataclass(frozen=True)
class Recovery:
    """What a learner got: calls, terms that are right and wrong, largest coefficient error, TV."""

    calls: int
    right: int
    wrong: int
    error: float
    distance: float
    status: str


def compare(
    teacher: SparsePolynomial, model: Oracle, found: dict[tuple[int, ...], float], calls: int, status: str
) -> Recovery:
    """Terms found against the teacher's; a missed or wrong term counts with its whole coefficient."""
    true = {s: w / 2 for s, w in zip(teacher.subsets, teacher.weights.tolist(), strict=True)}
    error = max(abs(true.get(s, 0.0) - found.get(s, 0.0)) for s in true.keys() | found.keys())
    distance = estimate_total_variation(teacher, model, 2000, rng=5).estimate
    right = len(true.keys() & found.keys())
    return Recovery(calls, right, len(found) - right, error, distance, status)


def by_logit_rank(teacher: SparsePolynomial) -> Recovery:
    """Learn, then read the terms off the learned network without a query."""
    learner = LogitQueryLearner(pool=16, validation=32)
    result = learner.fit(LogitAccess(teacher, seed=1), rng=1)
    assert isinstance(result.model, ReconstructionModel)
    found = fourier_terms(ridge_isan(result.model.chain), 1e-3)
    return compare(teacher, result.model, found, result.ledger.calls, result.status.code)


def by_buckets(teacher: SparsePolynomial, pairs: int | None) -> Recovery:
    """The textbook search with that many pairs per level."""
    learner = FourierLearner(threshold=THRESHOLD, pairs=pairs, max_buckets=64)
    result = learner.fit(LogitAccess(teacher, seed=1), rng=1)
    found = dict(zip(result.stats["subsets"], result.stats["coefficients"].tolist(), strict=True))
    return compare(teacher, result.model, found, result.ledger.calls, result.status.code)


def cells(recovery: Recovery) -> tuple[object, ...]:
    """Table cells of one learner."""
    terms = f"{recovery.right} + {recovery.wrong} wrong" if recovery.wrong else str(recovery.right)
    return recovery.calls, terms, recovery.error, recovery.distance, recovery.status


def tables(study: Study, n: int) -> None:
    """Equal queries, the search with its own sizes, and the share of terms found against calls."""
    equal, enough = [], []
    figure, axes = new_figure(7.2, 4.2)
    for terms in study.choose(range(1, 9), (1, 2)):
        teacher = SparsePolynomial.random(n, terms, terms)
        low_rank = by_logit_rank(teacher)
        fair = by_buckets(teacher, max(1, (low_rank.calls - 400) // (2 * n)))
        whole = by_buckets(teacher, None)
        equal.append((terms, *cells(low_rank), *cells(fair)))
        enough.append((terms, *cells(whole), whole.calls / low_rank.calls))
        if terms in study.choose((1, 2, 4, 8), (1, 2)):
            sizes = study.choose((20, 80, 320, 1280, 5120, 20480), (20, 80))
            curve = [fair, whole, *(by_buckets(teacher, pairs) for pairs in sizes)]
            curve.sort(key=lambda row: row.calls)
            share = [2 * row.right / (row.right + row.wrong + terms) for row in curve]
            (line,) = axes.plot([row.calls for row in curve], share, "o-", markersize=4)
            line.set_label(f"{terms} terms, bucket search")
            share_here = 2 * low_rank.right / (low_rank.right + low_rank.wrong + terms)
            axes.plot(
                low_rank.calls, share_here, "*", markersize=13, color=line.get_color(), markeredgecolor="k"
            )
    axes.plot([], [], "*", markersize=11, color="white", markeredgecolor="k", label="logit-query learner")
    axes.set(xscale="log", xlabel="calls", ylabel="F1 of the terms found", title=f"SparsePolynomial, n = {n}")
    axes.legend(fontsize="small")
    study.figure("terms", figure)
    headers = ["calls", "terms", "coefficient error", "TV", "status"]
    names = [f"{who}: {name}" for who in ("low rank", "buckets") for name in headers]
    study.table("equal_queries", ["k", *names], equal)
    study.table(
        "enough_queries", ["k", *(f"buckets: {name}" for name in headers), "calls / low rank"], enough
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Write the tables and the figure."""
    study = begin("boolean_fourier", argv)
    n = study.choose(20, 8)
    tables(study, n)
    study.manifest(n=n, threshold=THRESHOLD, seeds="teacher: k; learners 1; TV 5 (2000 strings)")


if __name__ == "__main__":
    main()
