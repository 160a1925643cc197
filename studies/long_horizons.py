"""Long horizons: how children are fitted, and what is done with coefficients after each token.

Part one: sticky hidden Markov models, every coefficient fit with every post-processing. Part two: a
worst case for sampling without projection, constructed: `expanding_model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lrlm_sim.cli.plots import new_figure
from lrlm_sim.distances import estimate_total_variation, kl_per_token
from lrlm_sim.learners import ConditionalQueryLearner
from lrlm_sim.spanner_model import SpannerModel
from oracles import ConditionalSampleAccess, HiddenMarkovModel, Oracle
from studies.common import Study, begin, sticky_hmm

FITS = ("plain", "weighted", "kl")
POSTS = ("none", "truncate", "l1", "kl")


def measure(teacher: Oracle, model: SpannerModel, strings: int, few: int) -> dict[str, tuple[float, float]]:
    """(TV, excess log-loss in nats per token) for every post-processing of one learned model."""
    out = {}
    for post in POSTS:
        processed = replace(model, postprocess=post)
        n = few if post == "l1" else strings
        tv = estimate_total_variation(teacher, processed, n, rng=1).estimate
        out[post] = (tv, kl_per_token(teacher, processed, n, rng=2).estimate)
    return out


def sticky_table(study: Study) -> None:
    """Medians over seeds for every horizon, fit and post-processing."""
    rows = []
    for horizon, seeds in study.choose(((100, 2), (300, 1)), ((12, 1),)):
        for fit in FITS:
            found: dict[str, list[tuple[float, float]]] = {post: [] for post in POSTS}
            for seed in range(seeds):
                teacher = sticky_hmm(4, 3, horizon, seed)
                learner = ConditionalQueryLearner(
                    rank=4, samples=600, pool_samples=60, pool=4, futures=12, future_length=4,
                    enumerate_futures=27, route="spanner", coefficients=fit,
                )  # fmt: skip
                result = learner.fit(ConditionalSampleAccess(teacher, seed=seed), rng=seed)
                assert isinstance(result.model, SpannerModel)
                for post, pair in measure(teacher, result.model, study.choose(300, 20), 20).items():
                    found[post].append(pair)
            for post in POSTS:
                tv, loss = np.median(found[post], axis=0)
                rows.append((horizon, fit, post, float(tv), float(loss)))
    headers = ["T", "coefficient fit", "post-processing", "TV", "excess log-loss per token"]
    study.table("sticky", headers, rows)
    draw_sticky(study, rows)


def draw_sticky(study: Study, rows: Sequence[tuple[int, str, str, float, float]]) -> None:
    """Bars of the shortest horizon."""
    figure, all_axes = new_figure(8.0, 3.8)
    figure.clear()
    all_axes = figure.subplots(1, 2)
    horizon = rows[0][0]
    for k, (axes, label) in enumerate(zip(all_axes, ("TV", "excess log-loss per token"), strict=True)):
        for i, post in enumerate(POSTS):
            values = [row[3 + k] for row in rows if row[0] == horizon and row[2] == post]
            axes.bar(np.arange(len(FITS)) + 0.2 * (i - 1.5), values, 0.2, label=post)
        axes.set_xticks(range(len(FITS)), [f"{fit} fit" for fit in FITS])
        axes.set(ylabel=label)
    all_axes[1].legend(title="after each token", fontsize="small")
    figure.suptitle(f"Sticky HMMs (4 states, 3 tokens), T = {horizon}, median over seeds")
    study.figure("sticky", figure)


def expanding_model(horizon: int, gap: float, growth: float, postprocess: str) -> SpannerModel:
    """Operators within O(gap) of fair coin tosses, whose errors grow by `growth` per token unless projected.

    Both spanner histories of every cut have the law (½ ± gap), the teacher tosses a fair coin, and each
    child, whose law is fair, is represented as (½ + growth/2, ½ − growth/2) or the mirror image: an ℓ1
    error of 2·gap·growth in the law with coefficients at most 2 for growth ≤ 3, which is all that the
    learner's construction promises. The difference of the two coefficients is multiplied by `growth`.
    """
    laws = np.array([[0.5 + gap, 0.5 - gap], [0.5 - gap, 0.5 + gap]])
    child = np.array([[0.5 + growth / 2, 0.5 - growth / 2], [0.5 - growth / 2, 0.5 + growth / 2]])
    step = np.stack([laws[:, token, None] * child for token in (0, 1)])
    first = np.full((2, 1, 2), 0.5) * np.array([0.6, 0.4])
    return SpannerModel(
        laws_at=(np.full((1, 2), 0.5), *(laws for _ in range(horizon - 1))),
        operators=(first, *(step for _ in range(horizon - 2))),
        sketches=tuple(laws for _ in range(horizon - 1)),
        postprocess=postprocess,
        box=6.0,
    )


def compounding(study: Study, gap: float = 1e-4, growth: float = 1.5) -> None:
    """Total variation of the worst case against the horizon."""
    horizons = study.choose((5, 10, 15, 20, 25, 30, 40, 60, 100), (5, 25))
    rows: list[tuple[object, ...]] = []
    for horizon in horizons:
        fair = HiddenMarkovModel(np.ones(1), np.ones((1, 1)), np.full((1, 2), 0.5), horizon)
        values = []
        for post in POSTS:
            n = study.choose(2000, 50) if post != "l1" else 50
            model = expanding_model(horizon, gap, growth, post)
            values.append(estimate_total_variation(fair, model, n, rng=3).estimate)
        rows.append((horizon, *values))
    study.table("compounding", ["T", *POSTS], rows)
    figure, axes = new_figure()
    for k, (post, mark) in enumerate(zip(POSTS, "os^D", strict=True), start=1):
        axes.plot([r[0] for r in rows], [r[k] for r in rows], mark + "-", label=post, markersize=5)
    axes.set(
        yscale="log", xlabel="horizon T", ylabel="total variation",
        title=f"Operators with ℓ1 error {2 * gap * growth:.0e} per token",
    )  # fmt: skip
    axes.legend(title="after each token", fontsize="small")
    study.figure("compounding", figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Write both tables and figures."""
    study = begin("long_horizons", argv)
    compounding(study)
    sticky_table(study)
    study.manifest(seeds="0, 1 at T = 100; 0 at T = 300", stay=0.99, samples=600, pool_samples=60)


if __name__ == "__main__":
    main()
