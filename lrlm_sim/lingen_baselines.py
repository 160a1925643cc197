"""What LinGen is compared with: other weights, other histories, other models, fewer helpers.

Each generator continues the same targets along the same continuations, drawn from the true model, so that
differences between generators are surer than their standard errors over targets suggest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from lrlm_sim.lingen import ContinuationError, LinGen, continuation_kl
from lrlm_sim.matrices import extended_logits
from lrlm_sim.spanners import barycentric_spanner
from oracles.base import Oracle
from oracles.checks import as_generator, as_integer, as_strings
from oracles.errors import ParameterError

#: The generator of target number i.
Generator = Callable[[int], Oracle]


def of_weights(lingen: LinGen, oracle: Oracle, weights: Float[np.ndarray, "n m"]) -> Generator:
    """LinGen with given weights, one row per target: fitted ones, uniform ones, another model's."""
    return lambda i: lingen.model(oracle, weights[i])


def of_histories(oracle: Oracle, histories: Sequence[ArrayLike]) -> Generator:
    """The model itself after other histories: the last tokens of each target, or an earlier checkpoint."""
    return lambda i: oracle.condition(histories[i])


def without_bos(oracle: Any) -> Oracle | None:
    """The same network without a token before its histories; None if it has none, or is no network."""
    if getattr(oracle, "bos_token_id", None) is None:
        return None
    from oracles.transformer import TransformerOracle

    if not isinstance(oracle, TransformerOracle):
        return None
    return TransformerOracle(oracle.model, oracle.tokenizer, horizon=oracle.horizon, bos_token_id="none")


def spanner_helpers(
    oracle: Oracle,
    helpers: Sequence[ArrayLike] | np.ndarray,
    futures: Sequence[ArrayLike],
    count: int,
) -> Int[np.ndarray, "count"]:
    """Numbers of `count` helpers that span the top directions of the helpers' logits, ascending.

    The rows L(h_i, F) are projected on their top singular directions; a 2-approximate barycentric spanner
    (Awerbuch, Kleinberg 2008) of the projections is chosen.
    """
    rows = as_strings("helpers", helpers, oracle.vocab_size)
    count = as_integer("count", count, 1, len(rows))
    gram = np.zeros((len(rows), len(rows)))
    step = max(1, (1 << 24) // (len(rows) * oracle.vocab_size))
    for low in range(0, len(futures), step):
        logits = extended_logits(oracle, rows, futures[low : low + step]).reshape(len(rows), -1)
        gram += logits @ logits.T
    values, vectors = np.linalg.eigh(gram)
    known = int((values > 1e-12 * values[-1]).sum())
    if known < count:
        raise ParameterError(f"the helpers span {known} directions: choose at most that many, got {count}")
    points = vectors[:, -count:] * np.sqrt(values[-count:])
    return np.sort(barycentric_spanner(points, C=2.0).indices)


@dataclass(frozen=True, eq=False)
class Comparison:
    """KL(true ‖ generated) of one generator over many targets, in nats.

    Attributes:
        per_step, per_step_error: mean over targets after t tokens, and its standard error, (steps,).
        cumulative, cumulative_error: of the sum over steps.
        targets: cumulative KL of every target, (n,).

    Standard errors are over targets (0 for one target): they hold the spread of continuations too.
    """

    per_step: Float[np.ndarray, "steps"]
    per_step_error: Float[np.ndarray, "steps"]
    cumulative: float
    cumulative_error: float
    targets: Float[np.ndarray, "n"]

    def difference(self, other: Comparison) -> tuple[float, float]:
        """Mean of self − other over the targets they share, and its standard error."""
        gap = self.targets - other.targets
        return float(gap.mean()), float(_standard_error(gap))


def compare(
    oracle: Oracle,
    targets: Sequence[ArrayLike] | np.ndarray,
    generators: Mapping[str, Generator],
    repeats: int,
    steps: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Comparison]:
    """All generators on all targets, `repeats` continuations of `steps` tokens each.

    Continuations of target i are drawn with seed + i, the same for every generator. `progress` is told
    the number of targets finished since its last call.
    """
    found: dict[str, list[ContinuationError]] = {name: [] for name in generators}
    for i, target in enumerate(targets):
        truth = oracle.condition(target)
        for name, generator in generators.items():
            found[name].append(continuation_kl(truth, generator(i), repeats, steps, seed + i))
        if progress is not None:
            progress(1)
    return {name: _over_targets(errors) for name, errors in found.items()}


def random_helpers(
    m: int, count: int, rng: np.random.Generator | int | None = None
) -> Int[np.ndarray, "count"]:
    """Numbers of `count` of m helpers at random, ascending."""
    return np.sort(as_generator(rng).choice(m, as_integer("count", count, 1, m), replace=False))


def _over_targets(errors: list[ContinuationError]) -> Comparison:
    steps = np.array([entry.per_step for entry in errors])
    total = np.array([entry.cumulative for entry in errors])
    return Comparison(
        steps.mean(axis=0),
        _standard_error(steps),
        float(total.mean()),
        float(_standard_error(total)),
        total,
    )


def _standard_error(values: np.ndarray) -> np.ndarray:
    if len(values) < 2:
        return np.zeros(values.shape[1:])
    return values.std(axis=0, ddof=1) / np.sqrt(len(values))
