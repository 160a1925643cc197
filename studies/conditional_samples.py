"""Total variation against generated tokens: conditional queries beside everything that whole strings give.

Teachers: random hidden Markov models, nearly deterministic ones, noisy parities, and a rare branch (what
happens after a first token of probability 10⁻³, judged by the conditional law inside the branch). The
empirical distribution, Baum–Welch and the spectral learner get as many whole strings as the query learner's
tokens pay for. Teachers of one family differ tenfold in difficulty, so that medians may be of different
ones: the second table compares with the empirical distribution teacher by teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lrlm_sim.cli.plots import new_figure
from lrlm_sim.distances import total_variation
from lrlm_sim.learners import BaumWelch, ConditionalQueryLearner, SpectralHMM
from oracles import ConditionalSampleAccess, HiddenMarkovModel, NoisyParity, Oracle, SampleAccess, Tabular
from studies.common import Study, begin

BRANCH = 1e-3


@dataclass(frozen=True)
class Problem:
    """A family of teachers, how one is learned, and what its error is."""

    name: str
    teacher: Callable[[int], Oracle]
    learner: ConditionalQueryLearner
    baselines: dict[str, BaumWelch | SpectralHMM]
    budgets: Sequence[int]
    history: tuple[int, ...] = ()


def random_hmm(size: int, seed: int) -> Oracle:
    """S = A = size, T = 6."""
    return HiddenMarkovModel.random(size, size, 6, rng=seed)


def rare_branch(seed: int) -> HiddenMarkovModel:
    """First token 1 with probability 10⁻³, then two hidden states; otherwise fair coins; T = 8."""
    rng = np.random.default_rng(seed)
    inner = HiddenMarkovModel.random(2, 2, 8, rng, concentration=0.5)
    transition = np.zeros((3, 3))
    transition[0, 0] = 1
    transition[1:, 1:] = inner.transition
    emission = np.full((8, 3, 2), 0.5)
    emission[1:, 1:] = inner.emission
    emission[0] = [[1, 0], [0, 1], [0, 1]]
    return HiddenMarkovModel(np.array([1 - BRANCH, *(BRANCH * inner.initial)]), transition, emission, 8)


def sure_hmm(seed: int) -> Oracle:
    """S = A = 3, T = 6, nearly deterministic rows: few strings carry the mass, samples are at their best."""
    return HiddenMarkovModel.random(3, 3, 6, rng=seed, concentration=0.1)


def problems(study: Study) -> list[Problem]:
    """The panels. The learner chooses its route, but in the rare branch: only pools spend tokens inside."""
    budgets = study.choose((10_000, 30_000, 100_000, 300_000, 1_000_000), (10_000, 100_000))
    out = []
    hmms: dict[str, tuple[int, Callable[[int], Oracle]]] = {
        "random HMM, S = A = 3, T = 6": (3, lambda seed: random_hmm(3, seed)),
        "random HMM, S = A = 4, T = 6": (4, lambda seed: random_hmm(4, seed)),
        "nearly deterministic HMM": (3, sure_hmm),
    }
    for name, (size, teacher) in hmms.items():
        baselines: dict[str, BaumWelch | SpectralHMM] = {
            "Baum–Welch": BaumWelch(size, restarts=2, iterations=study.choose(20, 5)),
            "spectral": SpectralHMM(size),
        }
        out.append(Problem(name, teacher, ConditionalQueryLearner(rank=size), baselines, budgets))
    for n in study.choose((8, 10, 12, 14), (6, 8)):
        # two draws at each of 2^(n+1) − 1 prefixes are the least the learner can ask for
        affordable = [tokens for tokens in budgets if tokens > 2 ** (n + 2)]
        out.append(
            Problem(
                f"noisy parity, n = {n}",
                (lambda bits: lambda seed: NoisyParity.random(bits, 0.1, seed))(n),
                ConditionalQueryLearner(rank=2),
                {"Baum–Welch": BaumWelch(4, restarts=1, iterations=5), "spectral": SpectralHMM(2)},
                affordable,
            )
        )
    out.append(
        Problem(
            "rare branch, inside it",
            rare_branch,
            ConditionalQueryLearner(rank=3, route="spanner", pool=16, futures=32),
            {"Baum–Welch": BaumWelch(3, restarts=1, iterations=study.choose(10, 5))},
            study.choose((300_000, 1_000_000, 3_000_000), (100_000,)),
            (1,),
        )
    )
    return out


def error(teacher: Oracle, model: Oracle, history: tuple[int, ...]) -> float:
    """TV of the laws after `history`."""
    if history:
        teacher, model = teacher.condition(history), model.condition(history)
    return total_variation(teacher, model)


def empirical(teacher: Oracle, strings: int, seed: int) -> Tabular:
    """The distribution of that many whole strings, a millionth part uniform so that every law exists."""
    drawn = SampleAccess(teacher, seed=seed).sample(strings)
    table = np.zeros((teacher.vocab_size,) * drawn.shape[1])
    np.add.at(table, tuple(drawn.T), 1 / strings)
    return Tabular((1 - 1e-6) * table + 1e-6 / table.size)


def fit_with_tokens(problem: Problem, teacher: Oracle, tokens: int, seed: int) -> tuple[Oracle, int]:
    """The query learner with about as many generated tokens: tokens are proportional to m."""
    horizon = teacher.horizon or 1
    trial, samples = 16, max(2, tokens // sum(teacher.vocab_size**t for t in range(horizon)))
    if problem.learner.route == "spanner":
        access = ConditionalSampleAccess(teacher, seed=seed)
        spent = replace(problem.learner, samples=trial).fit(access, rng=seed).ledger.generated_tokens
        samples = max(4, tokens * trial // spent)
    access = ConditionalSampleAccess(teacher, seed=seed)
    result = replace(problem.learner, samples=samples).fit(access, rng=seed)
    return result.model, result.ledger.generated_tokens


def measure(problem: Problem, tokens: int, seeds: Sequence[int]) -> dict[str, np.ndarray]:
    """(tokens, TV) of every method on every teacher, (seeds, 2)."""
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in seeds:
        teacher = problem.teacher(seed)
        model, spent = fit_with_tokens(problem, teacher, tokens, seed)
        found.setdefault("conditional queries", []).append((spent, error(teacher, model, problem.history)))
        strings = max(1, spent // (teacher.horizon or 1))
        model = empirical(teacher, strings, seed + 1000)
        found.setdefault("empirical", []).append((spent, error(teacher, model, problem.history)))
        for name, learner in problem.baselines.items():
            result = replace(learner, samples=strings).fit(SampleAccess(teacher, seed=seed + 2000), rng=seed)
            found.setdefault(name, []).append((spent, error(teacher, result.model, problem.history)))
    return {name: np.array(pairs) for name, pairs in found.items()}


def against_empirical(curve: dict[str, np.ndarray]) -> tuple[int, float, int, float]:
    """Median tokens, geometric mean over teachers of TV / empirical TV, teachers lost, worst ratio."""
    ours, theirs = curve["conditional queries"], curve["empirical"]
    ratios = ours[:, 1] / theirs[:, 1]
    mean = float(np.exp(np.log(ratios).mean()))
    return int(np.median(ours[:, 0])), mean, int((ratios > 1).sum()), float(ratios.max())


def draw(study: Study, rows: Sequence[tuple[str, str, int, float]]) -> None:
    """One panel for every teacher."""
    names = list(dict.fromkeys(row[0] for row in rows))
    figure, _ = new_figure(13.0, 6.4)
    figure.clear()
    panels = figure.subplots(2, -(-len(names) // 2)).ravel()
    for axes in panels[len(names) :]:
        axes.remove()
    marks = {"conditional queries": "o", "empirical": "s", "Baum–Welch": "^", "spectral": "D"}
    for name, axes in zip(names, panels, strict=False):
        for k, (method, mark) in enumerate(marks.items()):
            points = [row[2:] for row in rows if row[:2] == (name, method)]
            if points:
                axes.loglog(*zip(*points, strict=True), mark + "-", color=f"C{k}", label=method, markersize=4)
        axes.set_title(name, fontsize="medium")
        axes.set(xlabel="generated tokens", ylabel="median TV")
        axes.xaxis.set_minor_formatter("")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    study.figure("tv_against_tokens", figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Write table and figure."""
    study = begin("conditional_samples", argv)
    seeds = range(study.choose(10, 1))
    rows: list[tuple[str, str, int, float]] = []
    pairs: list[tuple[str, int, float, int, float]] = []
    for problem in problems(study):
        curves = [measure(problem, tokens, seeds) for tokens in problem.budgets]
        pairs += [(problem.name, *against_empirical(curve)) for curve in curves]
        for name in curves[0]:
            medians = [np.median(curve[name], axis=0) for curve in curves]
            rows += [(problem.name, name, int(tokens), float(tv)) for tokens, tv in medians]
    study.table("tv_against_tokens", ["teacher", "method", "generated tokens", "median TV"], rows)
    header = ["teacher", "generated tokens", "TV / empirical TV", "teachers lost", "worst ratio"]
    study.table("against_empirical", header, pairs)
    draw(study, rows)
    study.manifest(seeds=list(seeds), branch=BRANCH)


if __name__ == "__main__":
    main()
