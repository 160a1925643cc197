"""How far a model's spectrum depends on size, tokens, lengths, corpus and sense; and whose spaces overlap.

The base is n histories and n futures of 16 tokens each from the text, the 50 likeliest tokens after each
future kept. Rows n/2 and n/4 are corners of it; every row below "n/2" has that size and changes one thing
more. The spaces of histories (top-r left singular vectors) are compared between sensible and nonsense
futures of one model, between checkpoints, and between models that read the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations
from typing import Any

import numpy as np

from lrlm_sim.cli.plots import new_figure
from lrlm_sim.corpus import histories_and_futures, likely_tokens
from lrlm_sim.matrices import extended_logits
from lrlm_sim.spectra import (
    fit_power_law,
    hidden_state_singular_values,
    low_rank_kl,
    principal_angles,
    singular_values,
)
from oracles.transformer import TransformerOracle
from studies.common import Study, begin
from studies.models import (
    Subject,
    add_options,
    centred_unembedding,
    chosen,
    heldout_text,
    kept_logits,
    likely_logits,
    permuted,
    prose,
    same_tokens,
    text_of,
    text_windows,
)

FIRST, SEED, KEPT, MANY = 5, 0, 50, 200
NONSENSE = "nonsense futures"


@dataclass(frozen=True)
class Setting:
    """Sizes: histories and futures of the base, length, others, rank of the KL, ranks of the angles."""

    n: int
    length: int
    lengths: tuple[int, ...]
    characters: int
    rank: int
    angle_ranks: tuple[int, ...]


FULL = Setting(250, 16, (8, 24), 600_000, 20, (1, 5, 10, 20, 40, 80))
QUICK = Setting(48, 6, (4,), 60_000, 5, (1, 5, 10))


def check_hidden_states(model: TransformerOracle, histories: np.ndarray, futures: np.ndarray) -> float:
    """Largest difference, over σ_1, of all-token singular values by hidden states and by the logits.

    Raises AssertionError above 1e-5: the two passes of the float32 network round differently.
    """
    hidden = model.final_hidden_states(histories, futures)
    unembedding = model.unembedding()
    assert unembedding is not None
    fast = hidden_state_singular_values(hidden, unembedding, method="svd")
    direct = singular_values(extended_logits(model, histories, futures), method="svd")
    shared = min(len(fast), len(direct))
    gap = float(np.abs(fast[:shared] - direct[:shared]).max() / direct[0])
    assert gap < 1e-5, f"all-token singular values differ by {gap:.1e} σ_1"
    return gap


@dataclass(frozen=True, eq=False)
class Bench:
    """One model, the text it is asked about, and the sizes."""

    subject: Subject
    text: str
    size: Setting

    @property
    def model(self) -> TransformerOracle:
        return self.subject.model

    @cached_property
    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Histories and futures of the base."""
        return self.drawn(self.text, self.size.n)

    @cached_property
    def hidden(self) -> np.ndarray:
        """Final hidden states of the base, after checking what they are used for on a part of it."""
        check_hidden_states(self.model, self.grid[0][:40], self.grid[1][:30])
        return self.model.final_hidden_states(*self.grid)

    @cached_property
    def likely(self) -> np.ndarray:
        """The likeliest tokens after each future of the base."""
        return likely_tokens(self.model, self.grid[1], min(MANY, self.model.vocab_size))

    def drawn(
        self, text: str, n: int, length: int | None = None, rng: int = SEED
    ) -> tuple[np.ndarray, np.ndarray]:
        """Histories and futures of a text."""
        length = length or self.size.length
        return histories_and_futures(text_windows(self.model, 2 * length, text), n, length, length, rng)

    def corner(self, part: int, tokens: np.ndarray | None = None) -> np.ndarray:
        """Logits of the first 1/part of the base; the 50 likeliest tokens unless others are given."""
        n = self.size.n // part
        kept = self.likely[:, :KEPT] if tokens is None else tokens
        return kept_logits(self.hidden[:n, :n], centred_unembedding(self.model), kept[:n])

    def random_tokens(self) -> np.ndarray:
        """50 random tokens for each future of the base."""
        rng = np.random.default_rng(SEED)
        some = [rng.choice(self.model.vocab_size, KEPT, replace=False) for _ in range(self.size.n)]
        return np.array(some)

    def asked(self, histories: np.ndarray, futures: np.ndarray, step: int | None = None) -> np.ndarray:
        """Logits of the likeliest tokens of another grid, or of an earlier step."""
        model = self.model if step is None else self.subject.load(step)
        return likely_logits(model, histories, futures, KEPT)

    def samples(self) -> tuple[np.ndarray, np.ndarray]:
        """Histories and futures from the model's own samples."""
        n, length = self.size.n // 2, self.size.length
        drawn = self.model.sample(4 * n, SEED, length=2 * length)
        return histories_and_futures(drawn, n, length, length, SEED)

    def half(self) -> tuple[np.ndarray, np.ndarray]:
        """The corner n/2 of the base's histories and futures."""
        n = self.size.n // 2
        return self.grid[0][:n], self.grid[1][:n]

    def cases(self) -> dict[str, Callable[[], np.ndarray]]:
        """Logits (n_h, n_f, k) of every case, to be computed."""
        n, earlier = self.size.n // 2, self.subject.earlier
        found: dict[str, Callable[[], np.ndarray]] = {
            "base": lambda: self.corner(1),
            "n/2": lambda: self.corner(2),
            "n/4": lambda: self.corner(4),
            f"k = {MANY}": lambda: self.corner(2, self.likely),
            f"{KEPT} random tokens": lambda: self.corner(2, self.random_tokens()),
            "another draw": lambda: self.asked(*self.drawn(self.text, n, rng=SEED + 1)),
            "held-out files": lambda: self.asked(*self.drawn(heldout_text(), n)),
            "English prose": lambda: self.asked(*self.drawn(prose(self.size.characters), n)),
            "model's own samples": lambda: self.asked(*self.samples()),
            NONSENSE: lambda: self.asked(self.half()[0], permuted(self.half()[1], SEED)),
        }
        for other in self.size.lengths:
            found[f"lengths {other}"] = partial(
                lambda length: self.asked(*self.drawn(self.text, n, length)), other
            )
        if earlier is not None:
            found[f"step {earlier}"] = lambda: self.asked(*self.half(), step=earlier)
        return found

    def all_tokens(self) -> dict[str, np.ndarray]:
        """Singular values of the corner n/2 with all tokens, from the hidden states."""
        n = self.size.n // 2
        centred = centred_unembedding(self.model)
        return {"sigma": hidden_state_singular_values(self.hidden[:n, :n], centred)}

    def measure(self, study: Study, text_name: str) -> dict[str, dict[str, np.ndarray]]:
        """Every case: its singular values, KL, and rows in the basis of its right singular vectors."""

        def entry(compute: Callable[[], np.ndarray]) -> dict[str, np.ndarray]:
            logits = compute()
            left, sigma, _ = np.linalg.svd(logits.reshape(len(logits), -1), full_matrices=False)
            return {
                "sigma": singular_values(logits),
                "kl": low_rank_kl(logits, [self.size.rank]).kl,
                "rows": left * sigma,
            }

        key = (self.size, text_name, self.subject.name, self.subject.sources)
        found = {
            name: study.once(lambda c=compute: entry(c), name, *key) for name, compute in self.cases().items()
        }
        return found | {"all tokens": study.once(self.all_tokens, "all tokens", *key)}


def case_rows(found: dict[str, dict[str, dict[str, np.ndarray]]], n: int) -> list[tuple]:
    """Lines of the table of cases: the fitted range is [5, size/2]."""
    rows = []
    for model, cases in found.items():
        for name, entry in cases.items():
            size = n if name == "base" else n // 4 if name == "n/4" else n // 2
            sigma, last = entry["sigma"], size // 2
            fit, rest = fit_power_law(sigma, FIRST, last), fit_power_law(sigma[1:], FIRST, last)
            kl = float(entry["kl"][0]) if "kl" in entry else ""
            rows.append((model, name, size, f"[{FIRST}, {last}]", fit.alpha, f"{fit.r2:.4f}", rest.alpha, kl))
    return rows


def angle_rows(
    pairs: dict[str, tuple[np.ndarray, np.ndarray]], ranks: Sequence[int]
) -> list[tuple[str, int, float, float, float, float]]:
    """(pair, rank, mean cos², its value for random spaces, median and largest angle in degrees).

    Ranks above n/2 are left out: such spaces intersect whatever they are.
    """
    rows = []
    for name, (first, second) in pairs.items():
        for rank in (r for r in ranks if 2 * r <= len(first)):
            angles = principal_angles(first, second, rank)
            overlap = float(np.square(np.cos(angles)).mean())
            degrees = np.degrees(angles)
            rows.append(
                (name, rank, overlap, rank / len(first), float(np.median(degrees)), float(degrees.max()))
            )
    return rows


def space_pairs(
    subjects: Sequence[Subject], found: dict[str, dict[str, dict[str, np.ndarray]]]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Rows over the same histories: sense against nonsense, two steps, two models with the same tokens."""
    pairs = {}
    for subject in subjects:
        mine = found[subject.name]
        for other in (NONSENSE, f"step {subject.earlier}"):
            if other in mine:
                pairs[f"{subject.name}: n/2, {other}"] = (mine["n/2"]["rows"], mine[other]["rows"])
    for first, second in combinations(subjects, 2):
        if same_tokens(first.model, second.model):
            rows = found[first.name]["n/2"]["rows"], found[second.name]["n/2"]["rows"]
            pairs[f"{first.name}, {second.name}"] = rows
    return pairs


def draw(cases: Sequence[tuple], angles: Sequence[tuple]) -> Any:
    """α of every case and model, and overlap of spaces against rank."""
    figure, _ = new_figure(13.5, 5)
    figure.clear()
    left, right = figure.subplots(1, 2)
    names = list(dict.fromkeys(row[1] for row in cases))
    for i, model in enumerate(dict.fromkeys(row[0] for row in cases)):
        mine = [row for row in cases if row[0] == model]
        place = [names.index(row[1]) + 0.15 * (i - 1) for row in mine]
        left.plot([row[4] for row in mine], place, "o", color=f"C{i}", label=model)
        left.plot([row[6] for row in mine], place, "s", color=f"C{i}", alpha=0.35)
    left.axvline(0.5, color="gray", linestyle=":", label="α = ½")
    left.set_yticks(range(len(names)), names, fontsize="small")
    left.invert_yaxis()
    left.set(xlabel="α (pale squares: without the first direction)", title="power law", xlim=(0.4, None))
    left.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.12), ncol=4)
    for i, name in enumerate(dict.fromkeys(row[0] for row in angles)):
        mine = [row for row in angles if row[0] == name]
        style = "-" if NONSENSE in name else "--" if "step" in name else ":"
        right.plot([r[1] for r in mine], [r[2] for r in mine], f"o{style}", color=f"C{i}", label=name)
    expected = sorted({(row[1], row[3]) for row in angles})
    right.plot(*zip(*expected, strict=True), "k-", linewidth=0.7, label="random spaces")
    right.set(xlabel="rank r", ylabel="mean cos² of principal angles", title="history spaces", ylim=(0, 1.02))
    right.legend(fontsize="xx-small", loc="upper center", bbox_to_anchor=(0.5, -0.12), ncol=3)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Write tables and figure of the spectra under every change, and of the history spaces."""
    study = begin("spectrum_robustness", argv, add_options)
    size = study.choose(FULL, QUICK)
    text, text_name = text_of(study.options, size.characters)
    subjects = chosen(study.options)
    found = {s.name: Bench(s, text, size).measure(study, text_name) for s in subjects}
    headers = ["model", "case", "n", "range", "α", "R²", "α, first removed", f"KL, rank {size.rank}"]
    cases = case_rows(found, size.n)
    study.table("cases", headers, cases)
    angles = angle_rows(space_pairs(subjects, found), size.angle_ranks)
    names = ["spaces", "rank", "mean cos²", "random spaces", "median angle, °", "largest angle, °"]
    study.table("history_spaces", names, angles)
    study.figure("cases", draw(cases, angles))
    study.manifest(seed=SEED, sizes=size, tokens_kept=KEPT, fitted_range=f"[{FIRST}, n/2]", text=text_name)


if __name__ == "__main__":
    main()
