"""What the studies share: a folder with a manifest, tables as markdown and CSV, figures.

Every study is one file with `main(argv)`: ``python -m studies.NAME [--out DIR] [--quick]``. Without
``--out`` it writes into ``studies/results/NAME``, which is committed.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lrlm_sim.cli.runs import installed_versions, plain
from oracles import HiddenMarkovModel


@dataclass(frozen=True)
class Study:
    """Name and folder of a study, whether it is run in its small version, and its own options."""

    name: str
    folder: Path
    quick: bool
    options: argparse.Namespace = field(default_factory=argparse.Namespace)

    def choose(self, full: Any, quick: Any) -> Any:
        """`quick` in the small version, else `full`."""
        return quick if self.quick else full

    def table(self, name: str, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Write rows as ``NAME.md`` and ``NAME.csv``."""
        text = markdown_table(headers, rows)
        (self.folder / f"{name}.md").write_text(text, encoding="utf-8")
        with open(self.folder / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([headers, *rows])
        print(text)

    def figure(self, name: str, figure: Any) -> None:
        """Write a matplotlib figure as ``NAME.png``."""
        figure.savefig(self.folder / f"{name}.png", dpi=120)

    def once(self, compute: Callable[[], dict[str, np.ndarray]], *key: object) -> dict[str, np.ndarray]:
        """What `compute` returns, kept in ``partial/`` under `key`, so that a study cut off can go on.

        The key must hold everything the result depends on but the study's code: delete the folder
        ``partial`` (git ignores it) after changing that.
        """
        digest = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        path = self.folder / "partial" / f"{digest}.npz"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as file:
                np.savez(file, allow_pickle=False, **compute())
            Path(file.name).replace(path)
        with np.load(path) as kept:
            return dict(kept)

    def manifest(self, **settings: object) -> None:
        """Write ``manifest.json``: seeds and sizes, and the versions they were run with."""
        content = {"study": self.name, "quick": self.quick, **settings, "versions": installed_versions()}
        text = json.dumps(content, indent=2, default=plain, ensure_ascii=False)
        (self.folder / "manifest.json").write_text(text + "\n", encoding="utf-8")


def begin(
    name: str,
    argv: Sequence[str] | None,
    add_options: Callable[[argparse.ArgumentParser], None] | None = None,
) -> Study:
    """Study from command-line arguments, those of `add_options` included; makes its folder."""
    parser = argparse.ArgumentParser(prog=f"python -m studies.{name}")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / name)
    parser.add_argument("--quick", action="store_true", help="small sizes, seconds")
    if add_options is not None:
        add_options(parser)
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    return Study(name, arguments.out, arguments.quick, arguments)


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """GitHub table; floats with three significant digits."""
    lines = [headers, ["---"] * len(headers), *[[_cell(value) for value in row] for row in rows]]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, (float, np.floating)) else str(value)


def sticky_hmm(
    n_states: int, vocab_size: int, horizon: int, rng: np.random.Generator | int, stay: float = 0.99
) -> HiddenMarkovModel:
    """States that persist with probability `stay` and otherwise move anywhere; Dirichlet(1) emissions."""
    generator = np.random.default_rng(rng)
    transition = np.full((n_states, n_states), (1 - stay) / max(1, n_states - 1))
    np.fill_diagonal(transition, stay if n_states > 1 else 1.0)
    emission = generator.dirichlet(np.ones(vocab_size), n_states)
    return HiddenMarkovModel(np.full(n_states, 1 / n_states), transition, emission, horizon)


def near_duplicate_hmm(gap: float, horizon: int = 6) -> HiddenMarkovModel:
    """Three states, two of which differ by `gap` in emissions and transitions."""
    transition = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.2, 0.5, 0.3]])
    emission = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.1, 0.3, 0.6]])
    emission[2] += [gap, -gap, 0.0]
    transition[2] += [0.0, gap, -gap]
    return HiddenMarkovModel(np.array([0.5, 0.3, 0.2]), transition, emission, horizon)
