"""Generation from learned models: OPENBLAS_NUM_THREADS=1 python -m tests.benchmarks.bench_generation

Learned eight-state models generate a batch; one teacher token is what filtering the teacher costs (belief,
law, draw: the same generic loop), in the same run. Prints tokens per second, the ratio to filtering, the
share of rows that are projected, and what projections cost: time with / without post-processing. CPU times.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from typing import Literal

import numpy as np

from lrlm_sim.learners import ConditionalQueryLearner
from lrlm_sim.spanner_model import SpannerModel
from oracles import ConditionalSampleAccess, HiddenMarkovModel
from oracles.recurrent import RecurrentOracle

#: (vocab size, horizon, route)
TEACHERS: tuple[tuple[int, int, Literal["tree", "spanner"]], ...] = (
    (4, 6, "tree"),
    (8, 5, "tree"),
    (4, 20, "spanner"),
)


def seconds(oracle: RecurrentOracle, strings: int, repeats: int) -> float:
    """Least CPU time of sampling by the generic loop."""
    times = []
    for seed in range(repeats):
        begin = time.process_time()
        RecurrentOracle.sample(oracle, strings, seed)
        times.append(time.process_time() - begin)
    return min(times)


def projected_share(model: SpannerModel, strings: np.ndarray) -> float:
    """Share of steps whose coefficients the projection moved."""
    rows, moved, steps = np.ones((len(strings), 1)), 0, 0
    free = dataclasses.replace(model, postprocess="none")
    for position in range(len(model.sketches)):
        before = free.step(position, rows, strings[:, position])
        rows = model.step(position, rows, strings[:, position])
        moved += int((before != rows).any(axis=1).sum())
        steps += len(rows)
    return moved / steps


def main() -> None:
    """Table over teachers and samples per prefix."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strings", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print("   A    T route    samples  tokens/s  filtering/model  projected  with/without projection")
    for vocab_size, horizon, route in TEACHERS:
        teacher = HiddenMarkovModel.random(8, vocab_size, horizon, rng=0)
        filtering = seconds(teacher, arguments.strings, arguments.repeats)
        for samples in (30, 1000):
            learner = ConditionalQueryLearner(rank=8, samples=samples, route=route, pool=16, futures=32)
            model = learner.fit(ConditionalSampleAccess(teacher, seed=0), rng=0).model
            assert isinstance(model, SpannerModel)
            ours = seconds(model, arguments.strings, arguments.repeats)
            free = seconds(
                dataclasses.replace(model, postprocess="none"), arguments.strings, arguments.repeats
            )
            share = projected_share(model, model.sample(arguments.strings, 1))
            tokens = arguments.strings * horizon / ours
            print(
                f"{vocab_size:4d} {horizon:4d} {route:8s} {samples:7d} {tokens:9.2g} {filtering / ours:14.3f}"
                f" {share:11.2f} {ours / free:12.1f}"
            )


if __name__ == "__main__":
    main()
