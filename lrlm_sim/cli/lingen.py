"""`lrlm lingen`: continue prompts of one oracle by linear combinations of other prompts' logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lrlm_sim.cli.console import Screen
from lrlm_sim.cli.plots import new_figure
from lrlm_sim.cli.runs import open_run
from lrlm_sim.cli.spectrum import windows_of
from lrlm_sim.lingen import ContinuationError, LinGen, continuation_kl, mixed_futures
from oracles import open_oracle
from oracles.base import Oracle
from oracles.checks import as_generator, as_integer
from oracles.errors import HorizonError, ParameterError

_VARIANTS = ("mixed futures", "single token", "uniform weights")


def run_lingen(
    screen: Screen,
    oracle: str,
    texts: list[Path],
    n_helpers: int,
    n_futures: int,
    n_targets: int,
    lengths: tuple[int, int],
    steps: int,
    repeats: int,
    seed: int,
    out: Path | None,
) -> int:
    """Fit weights, generate, and report KL(true ‖ generated) against two baselines; status 0.

    Arguments:
        texts: files or folders; empty takes the oracle's own samples.
        n_helpers, n_futures, n_targets: distinct prompts and futures, drawn from disjoint windows.
        lengths: tokens per prompt, longest future (each is cut at a random length 0..longest).
        steps, repeats: tokens per continuation, continuations per target, drawn from the oracle.
    """
    settings = {
        "oracle": oracle,
        "text": texts,
        "helpers": n_helpers,
        "futures": n_futures,
        "targets": n_targets,
        "lengths": lengths,
        "steps": steps,
        "continuations_per_target": repeats,
    }
    with open_run("lingen", seed, out, settings) as run:
        model = open_oracle(oracle)
        _check(model, n_targets, lengths, steps)
        with screen.step("drawing prompts and futures"):
            helpers, targets, futures = _draw(model, texts, (n_helpers, n_targets, n_futures), lengths, seed)
        losses: dict[str, list[ContinuationError]] = {name: [] for name in _VARIANTS}
        with screen.step(f"weights of {n_targets} targets from {n_helpers} helpers and {n_futures} futures"):
            mixed = LinGen(helpers, mixed_futures(futures, seed))
            fit = mixed.weights(model, list(targets))
            single = LinGen(helpers, [[]]).weights(model, list(targets)).weights
        weights = dict(
            zip(_VARIANTS, (fit.weights, single, np.full_like(single, 1 / n_helpers)), strict=True)
        )
        for i, target in enumerate(targets):
            with screen.step(f"continuing target {i + 1} of {n_targets}"):
                truth = model.condition(target)
                for name, rows in weights.items():
                    generated = mixed.model(model, rows[i])
                    losses[name].append(continuation_kl(truth, generated, repeats, steps, seed + i))
            run.record(targets_done=i + 1)
        np.save(run.folder / "weights.npy", fit.weights, allow_pickle=False)
        table = {name: _summary(found) for name, found in losses.items()}
        run.record(
            ridges=fit.ridges, relative_error=fit.relative_error, cumulative_kl=table, per_step=_steps(losses)
        )
        _plot(run.folder / "lingen.png", oracle, losses)
        screen.table(
            f"{oracle}: KL(true ‖ generated), {steps} steps, {n_targets} targets",
            ("weights", "cumulative KL", "standard error"),
            [(name, *values) for name, values in table.items()],
        )
        screen.say(f"plot, weights and manifest in {run.folder}")
        screen.finish(run.manifest)
    return 0


def _check(model: Oracle, n_targets: int, lengths: tuple[int, int], steps: int) -> None:
    as_integer("targets", n_targets, 1)
    needed = max(sum(lengths) + 1, lengths[0] + steps)
    if model.horizon is not None and needed > model.horizon:
        raise HorizonError(
            f"prompt, future or continuation, and one token need {needed} tokens, past the horizon "
            f"{model.horizon}: give shorter lengths or fewer steps"
        )


def _draw(
    model: Oracle, texts: list[Path], counts: tuple[int, int, int], lengths: tuple[int, int], seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct helpers and targets (window starts), and futures (ends of other windows)."""
    n_helpers, n_targets, _ = counts
    total = sum(counts)
    windows = np.asarray(windows_of(model, texts, sum(lengths), total, seed))
    rows = as_generator(seed).permutation(windows)
    _, first = np.unique(rows[:, : lengths[0]], axis=0, return_index=True)
    rows = rows[np.sort(first)]
    if len(rows) < total:
        raise ParameterError(
            f"{total} windows with distinct prompts are needed, the text has {len(rows)}: give more text, or "
            "fewer helpers, targets and futures"
        )
    prompts = rows[: n_helpers + n_targets, : lengths[0]]
    return prompts[:n_helpers], prompts[n_helpers:], rows[n_helpers + n_targets : total, lengths[0] :]


def _summary(found: list[ContinuationError]) -> tuple[float, float]:
    """Mean cumulative KL over targets and its standard error (0 for one target)."""
    values = np.array([entry.cumulative for entry in found])
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean()), float(error)


def _steps(losses: dict[str, list[ContinuationError]]) -> dict[str, np.ndarray]:
    return {name: np.mean([entry.per_step for entry in found], axis=0) for name, found in losses.items()}


def _plot(path: Path, oracle: str, losses: dict[str, list[ContinuationError]]) -> None:
    figure, axes = new_figure()
    for name, values in _steps(losses).items():
        axes.semilogy(np.arange(1, len(values) + 1), values, "o-", markersize=3, label=name)
    axes.set(xlabel="step", ylabel="KL of the next-token law, nats", title=f"LinGen on {oracle}"[:80])
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
