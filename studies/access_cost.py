"""What the same teacher costs behind different accesses: logits, top-k logits, conditional samples.

Logits after a history are one call; through answers of k tokens with a bias they are ⌈(A−1)/(k−1)⌉ calls
(`lrlm_sim.extraction.logits_from_top`), and strings are drawn from them token by token. Conditional
next-token samples give laws up to their sampling error: one call per draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from scipy.special import log_softmax

from lrlm_sim.cli.plots import new_figure
from lrlm_sim.distances import total_variation
from lrlm_sim.extraction import logits_from_top
from lrlm_sim.learners import ConditionalQueryLearner, LogitQueryLearner, SmoothedQueryLearner
from lrlm_sim.matrices import logit_rank, probability_rank
from oracles import ISAN, ConditionalSampleAccess, LogitAccess, NoisyParity, Oracle, TopLogitAccess
from oracles.checks import as_chunk, as_integer, as_rows, check_length
from oracles.ledger import Ledger
from studies.common import Study, begin


@final
class FromTop(Oracle):
    """A model seen through top-k answers only; every history is asked once. A state is the tokens read."""

    def __init__(self, access: TopLogitAccess) -> None:
        self.vocab_size, self.horizon = access.vocab_size, access.horizon
        self._access = access
        self._laws: dict[bytes, np.ndarray] = {}

    def start(self, batch: int) -> Int[np.ndarray, "batch t"]:
        return np.empty((as_integer("batch", batch, 0), 0), dtype=np.int64)

    def advance(self, state: np.ndarray, tokens: ArrayLike) -> Int[np.ndarray, "batch t"]:
        chunk = as_chunk(tokens, len(state), self.vocab_size)
        check_length(state.shape[1] + chunk.shape[1], self.horizon)
        return np.concatenate([state, chunk], axis=1)

    def take(self, state: np.ndarray, rows: ArrayLike) -> Int[np.ndarray, "batch t"]:
        return state[as_rows(rows, len(state))]

    def log_probs(self, state: np.ndarray) -> Float[np.ndarray, "batch vocab"]:
        keys = [row.tobytes() for row in state]
        fresh = {key: i for i, key in enumerate(keys) if key not in self._laws}
        if fresh:
            logits = logits_from_top(self._access, state[list(fresh.values())])
            self._laws.update(zip(fresh, log_softmax(logits, axis=1), strict=True))
        return np.array([self._laws[key] for key in keys]).reshape(-1, self.vocab_size)


@dataclass(frozen=True)
class Cost:
    """One learner behind one access."""

    access: str
    learner: str
    setting: str
    ledger: Ledger
    distance: float
    status: str


def costs(study: Study, teacher: Oracle) -> Iterator[Cost]:
    """Every access in turn; the draws per history are swept where answers are samples."""
    learner = LogitQueryLearner(pool=16, validation=32)
    result = learner.fit(LogitAccess(teacher, seed=1), rng=1)
    distance = total_variation(teacher, result.model)
    yield Cost("logits", "LogitQueryLearner", "exact", result.ledger, distance, result.status.code)
    for k in range(2, teacher.vocab_size + 1):
        top = TopLogitAccess(teacher, k=k, seed=1)
        result = learner.fit(LogitAccess(FromTop(top), seed=1), rng=1)
        distance = total_variation(teacher, result.model)
        yield Cost(f"top {k} logits", "LogitQueryLearner", "exact", top.ledger, distance, result.status.code)
    ranks = probability_rank(teacher), logit_rank(teacher)
    for draws in study.choose((100, 1000, 10_000, 100_000), (100, 1000)):
        access = ConditionalSampleAccess(teacher, seed=1)
        result = ConditionalQueryLearner(rank=ranks[0], samples=draws).fit(access, rng=1)
        distance, setting = total_variation(teacher, result.model), f"rank {ranks[0]}, m = {draws}"
        name = "ConditionalQueryLearner"
        yield Cost("conditional samples", name, setting, result.ledger, distance, result.status.code)
        access = ConditionalSampleAccess(teacher, seed=1)
        result = SmoothedQueryLearner(rank=ranks[1], draws=draws).fit(access, rng=1)
        distance, setting = total_variation(teacher, result.model), f"rank {ranks[1]}, m = {draws}"
        name = "SmoothedQueryLearner"
        yield Cost("conditional samples", name, setting, result.ledger, distance, result.status.code)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the cost table and the figure of total variation against calls."""
    study = begin("access_cost", argv)
    teachers: dict[str, Oracle] = {
        "noisy parity, n = 8": NoisyParity.random(study.choose(8, 4), 0.1, 0),
        "ISAN, d = 3, A = 4, T = 6": ISAN.random(
            study.choose(3, 2), study.choose(4, 2), study.choose(6, 4), 0
        ),
    }
    if study.quick:
        teachers = {f"small {i}": teacher for i, teacher in enumerate(teachers.values())}
    rows: list[tuple[object, ...]] = []
    colors: dict[tuple[str, str], str] = {}
    figure, _ = new_figure(10.5, 4.0)
    figure.clear()
    for axes, (name, teacher) in zip(figure.subplots(1, 2, sharey=True), teachers.items(), strict=True):
        found = list(costs(study, teacher))
        for c in found:
            tokens = c.ledger.submitted_tokens, c.ledger.generated_tokens
            cells = c.access, c.learner, c.setting, c.ledger.calls, c.ledger.distinct_prefixes, *tokens
            rows.append((name, *cells, c.distance, c.status))
        for label in dict.fromkeys((c.access, c.learner) for c in found):
            points = [(c.ledger.calls, c.distance) for c in found if (c.access, c.learner) == label]
            x, y = np.array(points).T
            color = colors.setdefault(label, f"C{len(colors)}")
            axes.loglog(x, np.maximum(y, 1e-17), "o-", markersize=5, color=color, label=", ".join(label))
        axes.set(xlabel="calls", title=name)
        axes.legend(fontsize="x-small", loc="center right")
    figure.axes[0].set_ylabel("total variation")
    study.figure("costs", figure)
    headers = ["teacher", "access", "learner", "setting", "calls", "distinct prefixes"]
    study.table("costs", [*headers, "submitted tokens", "generated tokens", "TV", "status"], rows)
    study.manifest(seeds="teachers 0, accesses and learners 1")


if __name__ == "__main__":
    main()
