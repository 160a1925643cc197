"""Coverage of certificates: how often a stated interval misses the exact distance, by access and confidence.

Every run draws fresh strings, certifies one model of one teacher, and is compared with the exact total
variation (and the exact telescoping sum). A statement at confidence 1 − δ may miss in a share δ of the runs,
each part of a certificate in its own share of δ; the last column is the exact binomial probability of as many
misses or more if it missed exactly that often. Part two: widths against the number of strings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lrlm_sim.cli.plots import new_figure
from lrlm_sim.confidence import binomial_interval, binomial_test_failures
from lrlm_sim.distances import Certificate, certify, telescoping_bound, total_variation
from oracles import (
    ISAN,
    ConditionalProbabilityAccess,
    ConditionalSampleAccess,
    HiddenMarkovModel,
    LogitAccess,
    NoisyParity,
    Oracle,
    perturbed,
)
from oracles.access import Access
from studies.common import Study, begin

ACCESSES: dict[str, Callable[..., Access]] = {
    "logits": LogitAccess,
    "probabilities": ConditionalProbabilityAccess,
    "conditional samples": ConditionalSampleAccess,
}

#: Strings per certificate in part one; an event takes more of them than a ratio to show anything.
STRINGS = {"logits": 40, "probabilities": 40, "conditional samples": 400}


@dataclass(frozen=True)
class Pair:
    """A teacher, a model, and the exact distances between them."""

    name: str
    teacher: Oracle
    model: Oracle

    @cached_property
    def exact(self) -> float:
        """Total variation."""
        return total_variation(self.teacher, self.model)

    @cached_property
    def telescoping(self) -> float:
        """Σ_t E TV of next-token laws."""
        return telescoping_bound(self.teacher, self.model)


def coin(heads: float, horizon: int) -> HiddenMarkovModel:
    """Independent tosses."""
    return HiddenMarkovModel(np.ones(1), np.ones((1, 1)), np.array([[1 - heads, heads]]), horizon)


def pairs() -> list[Pair]:
    """From close to far, and two where few strings carry the whole difference."""
    hmm, isan = HiddenMarkovModel.random(3, 3, 4, 0), ISAN.random(3, 3, 4, 1)
    return [
        Pair("HMM, logits moved by ≤ 0.3", hmm, perturbed(hmm, 0.3, 1)),
        Pair("HMM, unrelated", hmm, HiddenMarkovModel.random(2, 3, 4, 9)),
        Pair("ISAN, logits moved by ≤ 1", isan, perturbed(isan, 1.0, 2)),
        Pair("parity, fair coins", NoisyParity(np.array([1, 0, 1, 1]), 0.1), coin(0.5, 5)),
        Pair("rare heads, rarer heads", coin(0.02, 3), coin(0.005, 3)),
    ]


def statements(found: Certificate, pair: Pair, confidence: float) -> dict[str, tuple[bool, float, float]]:
    """Per statement of a certificate: whether it missed, the δ it may miss with, its width."""
    exact, delta = pair.exact, 1 - confidence
    out = {"certificate": (not found.low <= exact <= found.high, delta, found.interval.width)}
    if found.telescoping is not None and found.ratio is not None:
        out["ratio"] = (exact not in found.ratio, delta / 2, found.ratio.width)
        upper = found.telescoping.high
        out["telescoping"] = (upper < pair.telescoping, delta / 2, upper - pair.telescoping)
    return out


def coverage(study: Study) -> None:
    """Misses over many runs for every pair, access and confidence."""
    runs = study.choose(1000, 10)
    rows: list[tuple[object, ...]] = []
    for pair in pairs()[:: study.choose(1, 3)]:
        for access, kind in ACCESSES.items():
            for confidence in study.choose((0.8, 0.95), (0.8,)):
                teacher_access, rng = kind(pair.teacher, seed=7), np.random.default_rng(8)
                n = STRINGS[access]
                found = [
                    statements(certify(teacher_access, pair.model, n, confidence, rng), pair, confidence)
                    for _ in range(runs)
                ]
                rows += [row(pair, access, confidence, name, found) for name in found[0]]
    headers = [
        "teacher, model", "TV", "access", "confidence", "statement", "runs", "missed", "allowed share",
        "share missed", "99.9 % interval, low", "high", "mean width", "probability of as many",
    ]  # fmt: skip
    study.table("coverage", headers, rows)
    draw_coverage(study, rows)


def row(
    pair: Pair,
    access: str,
    confidence: float,
    name: str,
    found: Sequence[dict[str, tuple[bool, float, float]]],
) -> tuple[object, ...]:
    """One line of the table."""
    missed, delta = sum(run[name][0] for run in found), found[0][name][1]
    share = binomial_interval(missed, len(found), 0.999)
    width = float(np.mean([run[name][2] for run in found]))
    chance = binomial_test_failures(missed, len(found), delta)
    head = (pair.name, pair.exact, access, confidence, name, len(found), missed, delta)
    return (*head, share.estimate, share.low, share.high, width, chance)


def draw_coverage(study: Study, rows: Sequence[tuple[object, ...]]) -> None:
    """Share missed over the share allowed, with its interval: everything must reach below one."""
    figure, axes = new_figure(8.0, 1.2 + 0.16 * len(rows))
    names = list(ACCESSES)
    for i, line in enumerate(reversed(rows)):
        allowed, share, low, high = (float(value) for value in line[7:11])  # type: ignore[arg-type]
        colour = f"C{names.index(str(line[2]))}"
        axes.plot([low / allowed, high / allowed], [i, i], "-", color=colour, linewidth=2)
        axes.plot(share / allowed, i, "o", color=colour, markersize=3)
    labels = [f"{line[0]}: {line[4]}, {line[3]}" for line in reversed(rows)]
    axes.set_yticks(range(len(rows)), labels, fontsize=6)
    axes.axvline(1.0, color="gray", linewidth=1)
    for k, name in enumerate(names):
        axes.plot([], [], "o-", color=f"C{k}", label=name)
    axes.set(xlabel="share of runs that missed / share allowed", ylim=(-1, len(rows)), xlim=(-0.05, 1.6))
    axes.set_title("Misses of certificates, with exact 99.9 % intervals", fontsize="medium")
    axes.legend(fontsize="small", loc="lower right")
    study.figure("coverage", figure)


def widths(study: Study, confidence: float = 0.95) -> None:
    """Mean width of the interval against the number of strings; low end alone for samples."""
    runs, pair = study.choose(10, 2), pairs()[0]
    rows: list[tuple[object, ...]] = []
    for n in study.choose((50, 200, 800, 3200, 12800), (50, 200)):
        found = {
            access: [certify(kind(pair.teacher, seed=s), pair.model, n, confidence, s) for s in range(runs)]
            for access, kind in ACCESSES.items()
        }
        parts = [c.ratio for c in found["logits"] if c.ratio is not None]
        rows.append((
            n, pair.exact, float(np.mean([p.width for p in parts])),
            float(np.mean([c.interval.width for c in found["logits"]])),
            float(np.mean([c.interval.width for c in found["probabilities"]])),
            float(np.mean([c.low for c in found["conditional samples"]])),
        ))  # fmt: skip
    headers = ["strings", "TV", "ratio at δ/2", "logits", "probabilities", "lower bound from samples"]
    study.table("widths", headers, rows)
    figure, axes = new_figure()
    for k, label in (
        (3, "width, logits"),
        (4, "width, probabilities"),
        (5, "lower bound, conditional samples"),
    ):
        axes.loglog([r[0] for r in rows], [max(float(r[k]), 1e-4) for r in rows], "o-", label=label)  # type: ignore
    axes.axhline(pair.exact, color="gray", linewidth=1, label="exact TV")
    axes.set(
        xlabel="teacher strings", title=f"{pair.name}: mean over {runs} certificates at {confidence:.0%}"
    )
    axes.legend(fontsize="small")
    study.figure("widths", figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Write both tables and figures."""
    study = begin("certificate_coverage", argv)
    widths(study)
    coverage(study)
    study.manifest(seed=7, model_strings_seed=8, strings_per_run=STRINGS, runs=study.choose(1000, 10))


if __name__ == "__main__":
    main()
