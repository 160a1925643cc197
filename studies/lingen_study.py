"""LinGen: continue a prompt by other prompts' logits, against every baseline and from model to model.

Every variant continues the same targets; the loss is KL(true ‖ generated) of the next-token law after
each of the first steps of continuations drawn from the true model, averaged per target, then over
targets. Since targets and continuations are shared, variants are compared by paired differences. Laws
of all linear variants come from one grid of the helpers' hidden states: with weights v,
Σ v_i L(· | h_i∘z) = W_c Σ v_i x(h_i∘z).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Any, final

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.special import log_softmax

from lrlm_sim.cli.plots import new_figure
from lrlm_sim.lingen import LinGen, mixed_futures
from lrlm_sim.spanners import barycentric_spanner
from oracles.base import Oracle
from oracles.errors import ParameterError
from oracles.transformer import TransformerOracle
from studies.common import Study, begin
from studies.models import (
    Delegate,
    Subject,
    add_options,
    centred_unembedding,
    chosen,
    heldout_text,
    permuted,
    prose,
    same_tokens,
    text_of,
    text_windows,
)

SEED, SHORT = 0, 5
IN, MIXED = "in distribution", "mixed futures"


@final
class Answered(Delegate):
    """A model whose hidden states after h∘f are computed once for all fits that ask about them."""

    def __init__(self, model: TransformerOracle) -> None:
        super().__init__(model)
        self.network, self.centred = model, centred_unembedding(model)
        self._states: dict[tuple[tuple[int, ...], tuple[int, ...]], np.ndarray] = {}

    def extended_log_probs(
        self, histories: Sequence[ArrayLike] | np.ndarray, futures: Sequence[ArrayLike] | np.ndarray
    ) -> Float[np.ndarray, "n_h n_f vocab"]:
        states = self.states(histories, futures)
        return log_softmax(states @ self.centred.T, axis=-1)

    def states(
        self, histories: Sequence[ArrayLike] | np.ndarray, futures: Sequence[ArrayLike] | np.ndarray
    ) -> Float[np.ndarray, "n_h n_f width"]:
        """Final hidden states after h∘f."""
        heads, tails = ([tuple(np.asarray(s).tolist()) for s in strings] for strings in (histories, futures))
        new = [h for h in dict.fromkeys(heads) if any((h, f) not in self._states for f in tails)]
        if new:
            found = self.network.final_hidden_states([list(h) for h in new], [list(f) for f in tails])
            for h, row in zip(new, found, strict=True):
                self._states.update({(h, f): x for f, x in zip(tails, row, strict=True)})
        return np.array([[self._states[h, f] for f in tails] for h in heads])


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


@dataclass(frozen=True)
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


FULL = Setting(400, 60, 24, 1, 15, 16, 600_000, (25, 50, 100, 200), 3)
QUICK = Setting(12, 8, 3, 2, 4, 6, 60_000, (4,), 1)


@dataclass(frozen=True, eq=False)
class Lab:
    """One model with the helpers, futures and targets, which are the same for all models with its tokens."""

    subject: Subject
    text: str
    size: Setting

    @property
    def model(self) -> TransformerOracle:
        """The finished model."""
        return self.subject.model

    @cached_property
    def pieces(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Helpers and targets (first halves of windows of the text), futures (second halves of others)."""
        size = self.size
        windows = text_windows(self.model, 2 * size.length, self.text)
        rows = np.random.default_rng(SEED).permutation(np.unique(windows, axis=0))
        ends = np.cumsum([size.helpers, size.targets, size.futures])
        if len(rows) < ends[-1]:
            raise ParameterError(f"the text has {len(rows)} distinct windows, {ends[-1]} are needed")
        heads, tails = rows[:, : size.length], rows[:, size.length :]
        return heads[: ends[0]], heads[ends[0] : ends[1]], tails[ends[1] : ends[2]]

    @cached_property
    def targets(self) -> dict[str, np.ndarray]:
        """Prompts to continue: of the text, of held-out files, of another genre, and of no sense."""

        def drawn(text: str) -> np.ndarray:
            windows = np.unique(text_windows(self.model, self.size.length, text), axis=0)
            return np.random.default_rng(SEED).permutation(windows)[: self.size.targets]

        mine = self.pieces[1]
        return {
            IN: mine,
            "held-out files": drawn(heldout_text()),
            "English prose": drawn(prose(self.size.characters)),
            "nonsense": permuted(mine, SEED),
        }

    def bench(self, kind: str) -> Bench:
        """Targets of one kind with their continuations."""
        return Bench.draw(self.model, self.targets[kind], self.size.repeats, self.size.steps)

    def fits(self) -> dict[str, np.ndarray]:
        """Weights (n, m) of every linear variant; names with "nonsense helpers" are of permuted helpers."""
        helpers, mine, futures = self.pieces
        mixed, nonsense = mixed_futures(futures, SEED), mixed_futures(permuted(futures, SEED), SEED)
        answered, scrambled = Answered(self.model), permuted(helpers, SEED)

        def fit(few: np.ndarray, tails: Any, targets: np.ndarray, oracle: Oracle = answered) -> np.ndarray:
            return LinGen(few, tails).weights(oracle, list(targets)).weights

        found = {
            f"{IN}/{MIXED}": fit(helpers, mixed, mine),
            f"{IN}/fixed length": fit(helpers, futures, mine),
            f"{IN}/nonsense mixed futures": fit(helpers, nonsense, mine),
            f"{IN}/nonsense helpers, mixed futures": fit(scrambled, mixed, mine),
            f"{IN}/nonsense helpers and mixed futures": fit(scrambled, nonsense, mine),
            f"{IN}/nonsense helpers, single token": fit(scrambled, [[]], mine),
        }
        if self.subject.earlier is not None:
            earlier = Answered(self.subject.load(self.subject.earlier))
            found[f"{IN}/weights of step {self.subject.earlier}"] = fit(helpers, mixed, mine, earlier)
        for kind, targets in self.targets.items():
            found[f"{kind}/{MIXED}"] = fit(helpers, mixed, targets)
            found[f"{kind}/single token"] = fit(helpers, [[]], targets)
            found[f"{kind}/uniform weights"] = np.full((len(targets), len(helpers)), 1 / len(helpers))
        return found | self.few_helpers(answered, mixed)

    def few_helpers(self, answered: Answered, mixed: list) -> dict[str, np.ndarray]:
        """Weights (n, m), zero but for a few helpers: a spanner of their rows, or random ones."""
        helpers, mine, _ = self.pieces
        _, triangle = np.linalg.qr(answered.centred)
        rows = (answered.states(helpers, mixed) @ triangle.T).reshape(len(helpers), -1)
        left, sigma, _ = np.linalg.svd(rows, full_matrices=False)
        rng = np.random.default_rng(SEED)

        def weights(few: np.ndarray) -> np.ndarray:
            out = np.zeros((len(mine), len(helpers)))
            out[:, few] = LinGen(helpers[few], mixed).weights(answered, list(mine)).weights
            return out

        found = {}
        for size in self.size.chosen:
            spanner = barycentric_spanner((left * sigma)[:, :size], C=1.5).indices
            found[f"few/spanner {size}"] = weights(np.asarray(spanner))
            for i in range(self.size.draws):
                few = rng.choice(len(helpers), size, replace=False)
                found[f"few/random {size} {i}"] = weights(few)
        return found

    def losses(self, fits: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """KL (n, steps) of every variant, named as in `fits`, and of the baselines without helpers."""
        helpers, found = self.pieces[0], {}
        plain = TransformerOracle(self.model.model, self.model.tokenizer, bos_token_id="none")
        for kind in self.targets:
            bench = self.bench(kind)
            states = bench.helper_states(helpers)
            groups = (kind, "few") if kind == IN else (kind,)
            mine = {k: v for k, v in fits.items() if k.split("/")[0] in groups and "helpers" not in k}
            found |= {name: bench.losses(states, weights) for name, weights in mine.items()}
            if kind == IN:
                states = bench.helper_states(permuted(helpers, SEED))
                mine = {k: v for k, v in fits.items() if "nonsense helpers" in k}
                found |= {name: bench.losses(states, weights) for name, weights in mine.items()}
            short = [target[-SHORT:] for target in bench.targets]
            for oracle, name in ((self.model, "BOS"), (plain, "no BOS")):
                laws = laws_along(oracle, short, bench.strings)
                found[f"{kind}/last {SHORT} tokens, {name}"] = bench.compare(laws)
            if self.subject.earlier is not None:
                earlier = laws_along(self.subject.load(self.subject.earlier), bench.targets, bench.strings)
                found[f"{kind}/step {self.subject.earlier} itself"] = bench.compare(earlier)
        return found

    def received(self, other: Lab, weights: np.ndarray) -> dict[str, np.ndarray]:
        """KL (n, steps) of this model's continuations by `weights` fitted on another, and by that one."""
        bench = self.bench(IN)
        states = bench.helper_states(self.pieces[0])
        itself = laws_along(other.model, bench.targets, bench.strings)
        return {"weights": bench.losses(states, weights), "itself": bench.compare(itself)}


def summary(losses: np.ndarray) -> tuple[float, float]:
    """Mean over targets of the sum over steps, and its standard error."""
    total = losses.sum(axis=1)
    return float(total.mean()), float(total.std(ddof=1) / np.sqrt(len(total)))


def compared(losses: np.ndarray, reference: np.ndarray) -> tuple[float, float, float, float]:
    """`summary`, then the same of the difference to `reference` on the same targets."""
    return *summary(losses), *summary(losses - reference)


def measure(study: Study, labs: Sequence[Lab], text_name: str) -> tuple[dict, dict]:
    """Losses by model and variant, and by pair of models (fitted on, used on)."""
    weights, losses, passed = {}, {}, {}
    for lab in labs:
        key = (lab.size, text_name, lab.subject.name, lab.subject.sources)
        weights[lab.subject.name] = study.once(lab.fits, "fits", *key)
        mine = weights[lab.subject.name]
        losses[lab.subject.name] = study.once(lambda mine=mine, lab=lab: lab.losses(mine), "losses", *key)
    for giver, taker in permutations(labs, 2):
        if same_tokens(giver.model, taker.model):
            given = weights[giver.subject.name][f"{IN}/{MIXED}"]
            key = (giver.size, text_name, giver.subject.name, taker.subject.name)
            key += (giver.subject.sources, taker.subject.sources)
            passed[giver.subject.name, taker.subject.name] = study.once(
                lambda t=taker, g=giver, w=given: t.received(g, w), "transfer", *key
            )
    return losses, passed


def variant_rows(losses: dict[str, dict[str, np.ndarray]]) -> list[tuple]:
    """Lines of the table of variants: model, targets, variant, losses, difference to mixed futures."""
    rows = []
    for model, mine in losses.items():
        names = [name for name in mine if not name.startswith("few/")]
        kinds = list(dict.fromkeys(name.split("/")[0] for name in names))
        for name in sorted(names, key=lambda n: kinds.index(n.split("/")[0])):
            kind, variant = name.split("/")
            numbers = compared(mine[name], mine[f"{kind}/{MIXED}"])
            if variant == MIXED:
                numbers = (*numbers[:2], "", "")
            ends = float(mine[name][:, 0].mean()), float(mine[name][:, -1].mean())
            rows.append((model, kind, variant, *numbers, *ends))
    return rows


def few_rows(losses: dict[str, dict[str, np.ndarray]], size: Setting) -> list[tuple]:
    """Lines of the table of chosen helpers: spanner, random (mean over draws), and their difference."""
    rows = []
    for model, mine in losses.items():
        for count in size.chosen:
            spanner = mine[f"few/spanner {count}"]
            drawn = np.mean([mine[f"few/random {count} {i}"] for i in range(size.draws)], axis=0)
            rows.append((model, count, *summary(spanner), *summary(drawn), *summary(spanner - drawn)))
    return rows


def transfer_rows(losses: dict[str, dict[str, np.ndarray]], passed: dict) -> list[tuple]:
    """Lines of the table of transfer, each with the baselines on the same targets of the second model."""
    rows = []
    for (giver, taker), found in passed.items():
        own, uniform = (losses[taker][f"{IN}/{name}"] for name in (MIXED, "uniform weights"))
        numbers = (*summary(found["weights"]), *summary(own), *summary(found["weights"] - own))
        others = *summary(found["itself"]), *summary(found["weights"] - found["itself"]), *summary(uniform)
        rows.append((giver, taker, *numbers, *others))
    return rows


def draw(losses: dict[str, dict[str, np.ndarray]], few: Sequence[tuple], passed: Sequence[tuple]) -> Any:
    """Cumulative KL of every variant and model, spanner against random helpers, and transfer."""
    figure, _ = new_figure(15, 8.5)
    figure.clear()
    rows = [["variants", "few"]] + ([["variants", "transfer"]] if passed else [])
    axes = figure.subplot_mosaic(rows)
    draw_variants(axes["variants"], losses)
    draw_few(axes["few"], list(losses), few)
    if passed:
        draw_transfer(axes["transfer"], passed)
    return figure


def draw_variants(axes: Any, losses: dict[str, dict[str, np.ndarray]]) -> None:
    """One line per variant, one mark per model."""
    names: list[str] = []
    for i, (model, mine) in enumerate(losses.items()):
        general = {_general(name): values for name, values in mine.items() if not name.startswith("few/")}
        names += [name for name in general if name not in names]
        means, errors = zip(*(summary(values) for values in general.values()), strict=True)
        place = [names.index(name) + 0.2 * (i - 1) for name in general]
        axes.errorbar(means, place, xerr=errors, fmt="o", markersize=4, capsize=2, label=model)
    axes.set_yticks(range(len(names)), names, fontsize="x-small")
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="cumulative KL, nats", title="mean over targets ± standard error")
    axes.legend(fontsize="small")


def _general(name: str) -> str:
    """A variant's name without the number of the earlier step, which differs between models."""
    return re.sub(r"step \d+", "an earlier step", name.replace("/", ": "))


def draw_few(axes: Any, models: Sequence[str], few: Sequence[tuple]) -> None:
    """Loss against the number of helpers, chosen by a spanner or at random."""
    for i, model in enumerate(models):
        lines = [row for row in few if row[0] == model]
        for at, style, way in ((2, "o-", "spanner"), (4, "s--", "random")):
            values, bars = [row[at] for row in lines], [row[at + 1] for row in lines]
            counts = [row[1] for row in lines]
            axes.errorbar(counts, values, yerr=bars, fmt=style, color=f"C{i}", label=f"{model}, {way}")
    axes.set(xlabel="helpers", ylabel="cumulative KL, nats", title="which helpers", ylim=(0, None))
    axes.legend(fontsize="x-small")


def draw_transfer(axes: Any, passed: Sequence[tuple]) -> None:
    """Loss of received weights beside own, uniform ones and the giving model itself."""
    place = np.arange(len(passed))
    for shift, at, label in ((-0.2, 4, "own weights"), (0, 2, "weights of the first model")):
        values, bars = [row[at] for row in passed], [row[at + 1] for row in passed]
        axes.errorbar(values, place + shift, xerr=bars, fmt="o", markersize=4, capsize=2, label=label)
    for shift, at, label in ((0.2, 8, "the first model itself"), (0.4, 12, "uniform weights")):
        values, bars = [row[at] for row in passed], [row[at + 1] for row in passed]
        axes.errorbar(values, place + shift, xerr=bars, fmt="s", markersize=4, capsize=2, label=label)
    axes.set_yticks(place, [f"{giver} → {taker}" for giver, taker, *_ in passed], fontsize="x-small")
    axes.invert_yaxis()
    axes.set(
        xlabel="cumulative KL, nats",
        title="coefficients fitted on one model, used on another",
        xlim=(0, None),
    )
    axes.legend(fontsize="x-small")


def main(argv: Sequence[str] | None = None) -> None:
    """Write tables and figure of all variants, chosen helpers and transfers."""
    study = begin("lingen_study", argv, add_options)
    size = study.choose(FULL, QUICK)
    text, text_name = text_of(study.options, size.characters)
    losses, passed = measure(study, [Lab(s, text, size) for s in chosen(study.options)], text_name)
    kl = f"cumulative KL, {size.steps} steps"
    header = ["model", "targets", "variant", kl, "standard error"]
    header += [f"difference to {MIXED}", "its standard error", "first step", "last step"]
    study.table("variants", header, variant_rows(losses))
    header = ["model", "helpers", "spanner", "standard error", "random", "standard error"]
    few = few_rows(losses, size)
    study.table("helpers", [*header, "difference", "its standard error"], few)
    transfers = transfer_rows(losses, passed)
    if transfers:
        header = ["fitted on", "used on"]
        for name in ("its weights", "own weights", "difference", "fitted-on model itself"):
            header += [name, "standard error"]
        header += ["its weights minus that", "standard error", "uniform weights", "standard error"]
        study.table("transfer", header, transfers)
    study.figure("variants", draw(losses, few, transfers))
    study.manifest(
        seed=SEED,
        sizes=size,
        ridge="by 5-fold cross-validation over futures, per target",
        text=text_name,
        per_step={m: {n: v.mean(axis=0) for n, v in mine.items()} for m, mine in losses.items()},
    )


if __name__ == "__main__":
    main()
