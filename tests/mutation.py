"""Mutation testing of the numerical core: what share of small breakages do the tests notice?

    python -m tests.mutation distances --sample 120 --seed 0 --jobs 2

mutmut changes one operator, number or argument at a time and runs the tests that reach the changed function.
A random sample of the broken versions (mutants) of each module is run, and a table printed: killed (a test
failed, or ran out of time) or survived, with an exact binomial interval of the share killed among all mutants
of that module. `python -m mutmut show NAME` prints a survivor. Needs the extra `mutation`; options of mutmut
itself are in pyproject.toml.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lrlm_sim.confidence import binomial_interval

GROUPS = {
    "distances": ("exact_distance", "sampled_distance", "confidence", "certificate"),
    "spanners": ("spanners", "spanner_search", "spanner_oracle"),
    "projections": (
        "kl_projection",
        "kl_interior_point",
        "l1_projection",
        "projection_polytope",
        "newton_systems",
    ),
}
_CONFIDENCE = 0.95
_SURVIVED, _NO_TESTS, _KILLED = 0, (5, 33), (1, 3)  # exit codes; any other is a signal: out of time


@dataclass(frozen=True)
class Outcome:
    """What became of the mutants of a module that were run."""

    module: str
    mutants: int
    run: int
    survivors: list[str] = field(default_factory=list)
    timeouts: int = 0

    def row(self) -> str:
        """A row of the Markdown table."""
        killed = self.run - len(self.survivors)
        share = binomial_interval(killed, self.run, _CONFIDENCE)
        interval = "all" if self.run == self.mutants else f"{share.low:.1%} – {share.high:.1%}"
        return (
            f"| `{self.module}` | {self.mutants} | {self.run} | {killed} | {self.timeouts} "
            f"| {len(self.survivors)} | {killed / self.run:.1%} | {interval} |"
        )


HEADER = (
    "| module | mutants | run | killed | of these by time | survived | share killed | 95 % interval |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |"
)


def mutants_of(module: str) -> list[str]:
    """Names of all mutants of a module, as mutmut makes them."""
    from mutmut.mutation.file_mutation import mutate_file_contents

    path = Path("lrlm_sim") / f"{module}.py"
    names = mutate_file_contents(str(path), path.read_text("utf-8")).mutant_names
    return [f"lrlm_sim.{module}.{name}" for name in names]


def draw(module: str, sample: int | None, seed: int) -> tuple[list[str], int]:
    """A random sample of a module's mutants (all without `sample`), and how many there are."""
    names = mutants_of(module)
    if sample is None or sample >= len(names):
        return names, len(names)
    chosen = np.random.default_rng([seed, *module.encode()]).choice(len(names), sample, replace=False)
    return [names[i] for i in sorted(chosen)], len(names)


def stored_codes(module: str) -> dict[str, int | None]:
    """Exit codes that mutmut has stored for the mutants of a module."""
    path = Path("mutants/lrlm_sim", f"{module}.py.meta")
    return json.loads(path.read_text("utf-8"))["exit_code_by_key"] if path.exists() else {}


def alive(module: str, names: list[str]) -> list[str]:
    """Those no earlier run killed: tests added since may. Delete the folder mutants to start afresh."""
    codes = stored_codes(module)
    return [name for name in names if codes.get(name) in (None, _SURVIVED, *_NO_TESTS)]


def outcome(module: str, names: list[str], mutants: int) -> Outcome:
    """Read the results that mutmut stored."""
    stored = stored_codes(module)
    codes = {name: stored[name] for name in names}
    unfinished = [name for name, code in codes.items() if code is None]
    if unfinished:
        raise SystemExit(f"{len(unfinished)} mutants of {module} were not run, {unfinished[0]} for one")
    survivors = [name for name, code in codes.items() if code in (_SURVIVED, *_NO_TESTS)]
    timeouts = sum(code not in (_SURVIVED, *_NO_TESTS, *_KILLED) for code in codes.values())
    return Outcome(module, mutants, len(names), survivors, timeouts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="+", help=f"modules, or groups of them: {', '.join(GROUPS)}")
    parser.add_argument("--sample", type=int, help="mutants per module (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    modules = [module for target in options.targets for module in GROUPS.get(target, (target,))]
    drawn = {module: draw(module, options.sample, options.seed) for module in modules}
    names = [name for module, (chosen, _) in drawn.items() for name in alive(module, chosen)]
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(options.jobs), *names]
    profile = {**os.environ, "HYPOTHESIS_PROFILE": "mutation"}
    if names:
        subprocess.run(command, check=True, env=profile, stdout=sys.stderr)
    outcomes = [outcome(module, chosen, mutants) for module, (chosen, mutants) in drawn.items()]
    print(HEADER, *(found.row() for found in outcomes), sep="\n")
    print(*(f"survived: {name}" for found in outcomes for name in found.survivors), sep="\n")


if __name__ == "__main__":
    main()
