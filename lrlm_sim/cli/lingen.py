"""`lrlm lingen`: continue prompts of one oracle by linear combinations of other prompts' logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from lrlm_sim.cli.console import Screen
from lrlm_sim.cli.plots import new_figure
from lrlm_sim.cli.runs import Run, open_run
from lrlm_sim.cli.sources import Source, check_one_tokenizer, open_model, short_name, windows_of
from lrlm_sim.corpus import nonsense
from lrlm_sim.lingen import Fit, LinGen, mixed_futures
from lrlm_sim.lingen_baselines import (
    Comparison,
    Generator,
    compare,
    of_histories,
    of_weights,
    random_helpers,
    spanner_helpers,
    without_bos,
)
from oracles.base import Oracle
from oracles.checks import as_generator, as_integer
from oracles.errors import HorizonError, ParameterError

_FITTED = "mixed futures"


@dataclass(frozen=True)
class Options:
    """What is compared.

    Attributes:
        source: text of prompts and futures. other: another source of targets (out of distribution).
        n_helpers, n_futures, n_targets: distinct prompts and futures, from disjoint windows.
        lengths: tokens per prompt, longest future (each is cut at a random length 0..longest).
        steps, repeats: tokens per continuation, continuations per target, drawn from the oracle.
        short: tokens of the short histories. spanner: helpers chosen by a spanner, and at random.
        nonsense: also helpers, and helpers and futures, with their tokens permuted.
        transfer_from: model whose weights are used; earlier: model that is used in place of the oracle.
    """

    source: Source
    other: Source
    n_helpers: int
    n_futures: int
    n_targets: int
    lengths: tuple[int, int]
    steps: int
    repeats: int
    short: int = 5
    spanner: int | None = None
    nonsense: bool = False
    transfer_from: str | None = None
    earlier: str | None = None
    dtype: str | None = None
    device: str | None = None


@dataclass(frozen=True, eq=False)
class Prompts:
    """Helpers (m, T_h), targets (n, T_h), and futures of mixed lengths."""

    helpers: np.ndarray
    targets: np.ndarray
    fixed: np.ndarray
    mixed: list[list[int]]


def run_lingen(screen: Screen, oracle: str, options: Options, seed: int, out: Path | None) -> int:
    """Fit weights, generate, and report KL(true ‖ generated) against the baselines; status 0."""
    model = open_model(oracle, options.dtype, options.device)
    _check(model, options)
    others: dict[str, Oracle] = {}
    for spec in (options.transfer_from, options.earlier):
        if spec is not None:
            others[spec] = open_model(spec, options.dtype, options.device)
            check_one_tokenizer(model, others[spec], (oracle, spec))
    with open_run("lingen", seed, out, {"oracle": oracle, **asdict(options)}) as run:
        with screen.step("drawing prompts and futures"):
            prompts = _draw(model, options, seed)
        with screen.step(f"weights of {options.n_targets} targets from {options.n_helpers} helpers"):
            fit = LinGen(prompts.helpers, prompts.mixed).weights(model, list(prompts.targets))
            np.save(run.folder / "weights.npy", fit.weights, allow_pickle=False)
            run.record(ridges=fit.ridges, relative_error=fit.relative_error)
            generators = _generators(model, prompts, fit, options, others, seed)
        with screen.progress(f"continuing {options.n_targets} targets", options.n_targets) as advance:
            found = compare(model, prompts.targets, generators, options.repeats, options.steps, seed, advance)
        _report(screen, run, oracle, found, options)
    return 0


def _generators(
    model: Oracle, prompts: Prompts, fit: Fit, options: Options, others: Mapping[str, Oracle], seed: int
) -> dict[str, Generator]:
    """Every baseline by its name in the tables, LinGen itself first."""
    helpers, targets, mixed = prompts.helpers, list(prompts.targets), prompts.mixed
    lingen = LinGen(helpers, mixed)
    found = {_FITTED: of_weights(lingen, model, fit.weights)}

    def fitted(name: str, variant: LinGen, teacher: Oracle = model) -> None:
        found[name] = of_weights(variant, model, variant.weights(teacher, targets).weights)

    fitted("fixed-length futures", LinGen(helpers, prompts.fixed))
    if getattr(model, "bos_token_id", 0) is not None:
        fitted("single token", LinGen(helpers, [[]]))
    found["uniform weights"] = of_weights(lingen, model, np.full_like(fit.weights, 1 / len(helpers)))
    last = [target[-options.short :] for target in targets]
    bare = without_bos(model)
    found[f"last {options.short} tokens"] = of_histories(model, last)
    if bare is not None:
        found[f"last {options.short} tokens, no BOS"] = of_histories(bare, last)
    if options.nonsense:
        permuted = nonsense(helpers, seed)
        fitted("nonsense helpers", LinGen(permuted, mixed))
        fitted("nonsense helpers and futures", LinGen(permuted, nonsense(mixed, seed)))
    if options.spanner is not None:
        chosen = spanner_helpers(model, helpers, mixed, options.spanner)
        fitted(f"{options.spanner} helpers by a spanner", LinGen(helpers[chosen], mixed))
        drawn = random_helpers(len(helpers), options.spanner, seed)
        fitted(f"{options.spanner} helpers at random", LinGen(helpers[drawn], mixed))
    if options.transfer_from is not None:
        fitted("weights of another model", lingen, others[options.transfer_from])
        found["the other model itself"] = of_histories(others[options.transfer_from], targets)
    if options.earlier is not None:
        found["earlier checkpoint"] = of_histories(others[options.earlier], targets)
    return found


def _check(model: Oracle, options: Options) -> None:
    as_integer("targets", options.n_targets, 1)
    as_integer("short", options.short, 1, options.lengths[0])
    needed = max(sum(options.lengths) + 1, options.lengths[0] + options.steps)
    if model.horizon is not None and needed > model.horizon:
        raise HorizonError(
            f"prompt, future or continuation, and one token need {needed} tokens, past the horizon "
            f"{model.horizon}: give shorter lengths or fewer steps"
        )
    limit = getattr(model, "max_context", None)
    if limit is not None and needed > limit:
        raise HorizonError(
            f"BOS, prompt and future or continuation need {needed} tokens, the model reads at most {limit}: "
            "give shorter lengths or fewer steps"
        )


def _draw(model: Oracle, options: Options, seed: int) -> Prompts:
    """Distinct helpers and targets (window starts), and futures (ends of other windows)."""
    heads, tails = options.lengths
    counts = [options.n_helpers, options.n_futures, options.n_targets]
    rows = _windows(model, options.source, options.lengths, sum(counts), seed)
    helpers, rest, targets = np.split(rows, np.cumsum(counts)[:-1])
    if options.other != Source():
        targets = _windows(model, options.other, options.lengths, options.n_targets, seed)
    fixed = rest[:, heads : heads + tails]
    return Prompts(helpers[:, :heads], targets[:, :heads], fixed, mixed_futures(fixed, seed))


def _windows(model: Oracle, source: Source, lengths: tuple[int, int], total: int, seed: int) -> np.ndarray:
    """`total` windows with distinct prompts, at random."""
    text = source.read(2 * total * sum(lengths), seed)
    windows = windows_of(model, text, sum(lengths), total, seed)
    rows = as_generator(seed).permutation(windows)
    _, first = np.unique(rows[:, : lengths[0]], axis=0, return_index=True)
    rows = rows[np.sort(first)]
    if len(rows) < total:
        raise ParameterError(
            f"{total} windows with distinct prompts are needed, the text has {len(rows)}: give more text, or "
            "fewer helpers, targets and futures"
        )
    return rows[:total]


def _report(screen: Screen, run: Run, oracle: str, found: Mapping[str, Comparison], options: Options) -> None:
    base = found[_FITTED]
    run.record(
        cumulative_kl={name: [entry.cumulative, entry.cumulative_error] for name, entry in found.items()},
        difference={name: entry.difference(base) for name, entry in found.items()},
        per_step={name: entry.per_step for name, entry in found.items()},
        per_step_error={name: entry.per_step_error for name, entry in found.items()},
        per_target={name: entry.targets for name, entry in found.items()},
    )
    _plot(run.folder / "lingen.png", oracle, found)
    where = "out of distribution" if options.other != Source() else "in distribution"
    screen.table(
        f"{short_name(oracle)}: KL(true ‖ generated), {options.steps} steps, "
        f"{options.n_targets} targets {where}",
        (
            "generator",
            "first step",
            "cumulative KL",
            "standard error",
            "minus LinGen",
            "standard error of it",
        ),
        [
            (name, float(e.per_step[0]), e.cumulative, e.cumulative_error, *e.difference(base))
            for name, e in found.items()
        ],
    )
    screen.say(f"plot, weights and manifest in {run.folder}")
    screen.finish(run.manifest)


def _plot(path: Path, oracle: str, found: Mapping[str, Comparison]) -> None:
    figure, axes = new_figure(8.4, 4.6)
    steps = np.arange(1, len(next(iter(found.values())).per_step) + 1)
    for i, (name, entry) in enumerate(found.items()):
        low = np.clip(0.9 * entry.per_step, 0.0, entry.per_step_error)  # stays above zero on a log axis
        shift = 1 + 0.004 * (i - len(found) / 2)  # bars beside each other
        axes.errorbar(
            steps * shift,
            entry.per_step,
            yerr=[low, entry.per_step_error],
            fmt="o-" if i < 10 else "s--",
            color=f"C{i % 10}",
            markersize=3,
            linewidth=1,
            elinewidth=0.7,
            label=name,
        )
    axes.set_yscale("log")
    axes.set_xticks(steps)
    axes.set(xlabel="step", ylabel="KL of the next-token law, nats", title=f"LinGen on {short_name(oracle)}")
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=150)
