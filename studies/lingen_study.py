"""LinGen on the bundled model: continue a prompt by other prompts' logits, against every baseline.

Every variant continues the same targets; the loss is KL(true ‖ generated) of the next-token law after
each of the first steps of continuations drawn from the true model, averaged per target, then over
targets. Laws of all linear variants come from one grid of the helpers' hidden states: with weights v,
Σ v_i L(· | h_i∘z) = W_c Σ v_i x(h_i∘z).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import log_softmax

from lrlm_sim.cli.plots import new_figure
from lrlm_sim.lingen import LinGen, mixed_futures
from lrlm_sim.spanners import barycentric_spanner
from oracles.base import Oracle
from oracles.transformer import TransformerOracle
from studies.common import Study, begin
from studies.models import FINAL_STEP, centred_unembedding, checkpoint, permuted, text_windows

SEED, EARLIER = 0, 2187


@dataclass(frozen=True, eq=False)
class Bench:
    """Targets, continuations of each (n, repeats, steps), and the true laws along them.

    `truth` is (n, repeats, steps, vocab): log-probabilities after the first 0..steps−1 tokens.
    """

    model: TransformerOracle
    centred: np.ndarray
    targets: np.ndarray
    strings: np.ndarray
    truth: np.ndarray

    @classmethod
    def draw(cls, model: TransformerOracle, targets: np.ndarray, repeats: int, steps: int) -> Bench:
        """Continuations from the model itself."""
        strings = np.stack([model.sample(repeats, SEED + i, t, steps) for i, t in enumerate(targets)])
        truth = laws_along(model, targets, strings)
        return cls(model, centred_unembedding(model), targets, strings, truth)

    def prefixes(self) -> list[list[int]]:
        """Every prefix of every continuation, as futures of the helpers."""
        return [s[:t].tolist() for rows in self.strings for s in rows for t in range(len(s))]

    def helper_states(self, helpers: np.ndarray) -> Float[np.ndarray, "m n repeats steps width"]:
        """Hidden states of every helper along every continuation."""
        states = self.model.final_hidden_states(helpers, self.prefixes())
        return states.reshape(len(helpers), *self.strings.shape, -1)

    def losses(self, states: np.ndarray, weights: np.ndarray) -> Float[np.ndarray, "n steps"]:
        """KL per target and step of the combination `weights` (n, m) of helpers' states."""
        mixed = np.einsum("nm,mnrsd->nrsd", weights, states, optimize=True)
        return self.compare(log_softmax(mixed @ self.centred.T, axis=-1))

    def compare(self, laws: np.ndarray) -> Float[np.ndarray, "n steps"]:
        """KL(true ‖ laws) per target and step, averaged over its continuations."""
        return (np.exp(self.truth) * (self.truth - laws)).sum(axis=-1).mean(axis=1)


def laws_along(oracle: Oracle, histories: Sequence[Any] | np.ndarray, strings: np.ndarray) -> np.ndarray:
    """Log laws after h_i ∘ the first 0..steps−1 tokens of each of its strings (n, repeats, steps)."""
    asked = [
        [*h, *s[:t]] for h, rows in zip(histories, strings, strict=True) for s in rows for t in range(len(s))
    ]
    return oracle.next_log_probs(asked).reshape(*strings.shape, oracle.vocab_size)


@dataclass(frozen=True, eq=False)
class Setting:
    """Sizes of one run."""

    helpers: int
    futures: int
    targets: int
    repeats: int
    steps: int
    length: int
    characters: int
    chosen: tuple[int, ...]
    draws: int


FULL = Setting(200, 100, 20, 2, 15, 16, 600_000, (25, 50, 100), 2)
QUICK = Setting(12, 8, 3, 2, 4, 6, 60_000, (4,), 1)


def sensible(
    bench: Bench, helpers: np.ndarray, futures: np.ndarray, earlier: Oracle
) -> dict[str, np.ndarray]:
    """Losses with helpers that make sense, and of baselines without helpers."""
    mixed, targets, model = mixed_futures(futures, SEED), list(bench.targets), bench.model
    states = bench.helper_states(helpers)
    fits = {
        "mixed futures": LinGen(helpers, mixed).weights(model, targets).weights,
        "fixed length": LinGen(helpers, futures).weights(model, targets).weights,
        "nonsense mixed futures": LinGen(helpers, mixed_futures(permuted(futures, SEED), SEED))
        .weights(model, targets)
        .weights,
        "single token": LinGen(helpers, [[]]).weights(model, targets).weights,
        "uniform weights": np.full((len(targets), len(helpers)), 1 / len(helpers)),
        f"weights of step {EARLIER}": LinGen(helpers, mixed).weights(earlier, targets).weights,
    }
    found = {name: bench.losses(states, weights) for name, weights in fits.items()}
    short = [target[-5:] for target in bench.targets]
    found["last 5 tokens, BOS"] = bench.compare(laws_along(model, short, bench.strings))
    found[f"step {EARLIER} itself"] = bench.compare(laws_along(earlier, targets, bench.strings))
    return found


def nonsense(bench: Bench, helpers: np.ndarray, futures: np.ndarray) -> dict[str, np.ndarray]:
    """Losses with helpers whose tokens are permuted."""
    helpers, targets, model = permuted(helpers, SEED), list(bench.targets), bench.model
    states = bench.helper_states(helpers)
    fits = {
        "nonsense helpers, mixed futures": mixed_futures(futures, SEED),
        "nonsense helpers and mixed futures": mixed_futures(permuted(futures, SEED), SEED),
        "nonsense helpers, single token": [[]],
    }
    return {
        name: bench.losses(states, LinGen(helpers, few).weights(model, targets).weights)
        for name, few in fits.items()
    }


def helper_directions(model: TransformerOracle, helpers: np.ndarray, futures: list) -> np.ndarray:
    """Helpers' logit rows in the basis of their right singular vectors, largest first, (m, rank)."""
    states = model.final_hidden_states(helpers, futures)
    _, triangle = np.linalg.qr(centred_unembedding(model))
    left, sigma, _ = np.linalg.svd((states @ triangle.T).reshape(len(helpers), -1), full_matrices=False)
    return left * sigma


def choices(
    bench: Bench, helpers: np.ndarray, futures: np.ndarray, sizes: Sequence[int], draws: int
) -> dict[tuple[str, int], np.ndarray]:
    """Losses with a few of the helpers: a spanner of their rows in the top directions, or random ones."""
    mixed, found = mixed_futures(futures, SEED), {}
    rows = helper_directions(bench.model, helpers, mixed)
    rng = np.random.default_rng(SEED)

    def losses(chosen: np.ndarray) -> np.ndarray:
        few = helpers[chosen]
        weights = LinGen(few, mixed).weights(bench.model, list(bench.targets)).weights
        return bench.losses(bench.helper_states(few), weights)

    for size in sizes:
        found["spanner", size] = losses(barycentric_spanner(rows[:, :size], C=1.5).indices)
        drawn = [losses(rng.choice(len(helpers), size, replace=False)) for _ in range(draws)]
        found["random", size] = np.mean(drawn, axis=0)
    return found


def summary(losses: np.ndarray) -> tuple[float, float]:
    """Mean over targets of the sum over steps, and its standard error."""
    total = losses.sum(axis=1)
    return float(total.mean()), float(total.std(ddof=1) / np.sqrt(len(total)))


def draw(found: dict[str, np.ndarray], few: dict[tuple[str, int], np.ndarray], full: int) -> Any:
    """KL per step, cumulative KL of every variant, and helpers chosen by spanner against random."""
    figure, _ = new_figure(14.5, 4.6)
    figure.clear()
    left, middle, right = figure.subplots(1, 3)
    for i, (name, losses) in enumerate(found.items()):
        steps = np.arange(1, losses.shape[1] + 1)
        left.semilogy(steps, losses.mean(axis=0), "-" if i < 10 else "--", color=f"C{i % 10}", label=name)
    left.set(xlabel="step", ylabel="KL, nats", title="KL of the next-token law per step", ylim=(4e-4, 6))
    left.legend(fontsize="xx-small")
    for i, losses in enumerate(found.values()):
        mean, error = summary(losses)
        middle.errorbar(mean, i, xerr=error, fmt="o", color=f"C{i % 10}", capsize=3)
    middle.set_yticks(range(len(found)), list(found), fontsize="small")
    middle.invert_yaxis()
    middle.set(xlim=(0, None), xlabel="cumulative KL, nats", title="mean over targets ± standard error")
    for way in ("spanner", "random"):
        points = [(size, *summary(losses)) for (kind, size), losses in few.items() if kind == way]
        right.errorbar(
            *zip(*[p[:2] for p in points], strict=True), yerr=[p[2] for p in points], label=way, fmt="o-"
        )
    right.axhline(
        summary(found["mixed futures"])[0], color="gray", linestyle=":", label=f"all {full} helpers"
    )
    right.set(xlabel="helpers", ylabel="cumulative KL, nats", title="which helpers", ylim=(0, None))
    right.legend(fontsize="small")
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Write tables and figure of all variants."""
    study: Study = begin("lingen_study", argv)
    size = study.choose(FULL, QUICK)
    model, earlier = checkpoint(FINAL_STEP), checkpoint(EARLIER)
    windows = text_windows(model, 2 * size.length, size.characters)
    rows = np.random.default_rng(SEED).permutation(np.unique(windows, axis=0))
    ends = np.cumsum([size.helpers, size.targets, size.futures])
    heads, tails = rows[:, : size.length], rows[:, size.length :]
    helpers, targets, futures = heads[: ends[0]], heads[ends[0] : ends[1]], tails[ends[1] : ends[2]]
    bench = Bench.draw(model, targets, size.repeats, size.steps)
    found = sensible(bench, helpers, futures, earlier) | nonsense(bench, helpers, futures)
    few = choices(bench, helpers, futures, size.chosen, size.draws)
    header = ["variant", f"cumulative KL, {size.steps} steps", "standard error", "first step", "last step"]
    lines = [
        (name, *summary(losses), float(losses[:, 0].mean()), float(losses[:, -1].mean()))
        for name, losses in found.items()
    ]
    study.table("variants", header, lines)
    study.table(
        "helpers",
        ["chosen", "helpers", f"cumulative KL, {size.steps} steps", "standard error"],
        [(way, count, *summary(losses)) for (way, count), losses in few.items()],
    )
    study.figure("variants", draw(found, few, size.helpers))
    study.manifest(
        seed=SEED,
        sizes=size,
        ridge="by 5-fold cross-validation over futures, per target",
        text="standard library of the running Python",
        per_step={name: losses.mean(axis=0) for name, losses in found.items()},
    )


if __name__ == "__main__":
    main()
