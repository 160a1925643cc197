"""Mutation testing of the numerical core: what share of small breakages do the tests notice?

    python -m tests.mutation distances --sample 120 --seed 0 --jobs 2

mutmut writes broken versions (mutants) of the modules, one operator, number or argument changed in each, into
the folder ``mutants``. A random sample of each module is then tried: its own test file runs in a forked
process until a test fails. The table counts killed (a test failed, or time ran out) and survivors, with an
exact binomial interval for the share killed among all mutants of the module. Results are kept in
``mutants/results.json``: what was killed once is not run again, as tests are only added. Needs the extra
`mutation` and a system that can fork.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import numpy as np

_PROJECTIONS = "test_projection_certificates.py test_projection_polytope.py test_projections.py"
#: Modules of each group, and the test files that each must face, separated by spaces.
GROUPS = {
    "distances": {
        "exact_distance": "test_distances.py",
        "sampled_distance": "test_sampled_distance.py",
        "confidence": "test_confidence.py",
        "certificate": "test_certify.py",
    },
    "spanners": {
        "spanners": "test_spanner_messages.py test_robust_spanners.py test_spanners.py",
        "spanner_search": "test_spanner_search.py test_spanner_messages.py test_spanners.py",
        "spanner_oracle": "test_spanner_oracle.py test_spanner_messages.py",
    },
    "projections": {
        "kl_passes": f"test_kl_passes.py {_PROJECTIONS}",
        "kl_projection": _PROJECTIONS,
        "kl_interior_point": f"test_kl_interior_point.py {_PROJECTIONS}",
        "newton_systems": f"test_newton_systems.py {_PROJECTIONS}",
        "l1_projection": _PROJECTIONS,
        "projection_polytope": _PROJECTIONS,
    },
}
TESTS = {module: file for group in GROUPS.values() for module, file in group.items()}
_FOLDER = Path("mutants")
_CONFIDENCE = 0.95
_SURVIVED = (0, 5)  # pytest: all passed, or no test was left
_SKIPPED = "not cover and not long_strings"  # seconds each, and they kill little
_CPU_SECONDS = 90
#: Imported once, before the forks: no mutant is in them, and every test file needs them.
_SHARED = ("numpy", "scipy.optimize", "scipy.stats", "cvxpy")


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
        from lrlm_sim.confidence import binomial_interval

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


def write_mutants(modules: list[str]) -> dict[str, list[str]]:
    """Copy the project into `_FOLDER` with the modules broken in all ways; names of the mutants."""
    from mutmut.mutation.file_mutation import mutate_file_contents

    skipped = shutil.ignore_patterns("__pycache__", "results", "checkpoints")
    for folder in ("lrlm_sim", "oracles", "studies", "tests"):
        shutil.copytree(folder, _FOLDER / folder, dirs_exist_ok=True, ignore=skipped)
    shutil.copy("pyproject.toml", _FOLDER)
    names = {}
    for module in modules:
        path = Path("lrlm_sim") / f"{module}.py"
        mutated = mutate_file_contents(str(path), path.read_text("utf-8"))
        (_FOLDER / path).write_text(mutated.code, "utf-8")
        names[module] = [f"lrlm_sim.{module}.{name}" for name in mutated.mutant_names]
    return names


def draw(module: str, names: list[str], sample: int | None, seed: int) -> list[str]:
    """A random sample of a module's mutants; all of them without `sample`."""
    if sample is None or sample >= len(names):
        return names
    chosen = np.random.default_rng([seed, *module.encode()]).choice(len(names), sample, replace=False)
    return [names[i] for i in sorted(chosen)]


def face(mutant: str, files: str) -> Callable[[], int]:
    """Start test files on a mutant in a forked process; the result waits for its exit code."""
    child = os.fork()
    if child:
        return lambda: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    import pytest
    from mutmut.mutation.trampoline import set_mutant_under_test

    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS + 5))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    set_mutant_under_test(mutant)
    options = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-k", _SKIPPED]
    os._exit(int(pytest.main([*options, *(f"tests/lrlm_sim/{each}" for each in files.split())])))


def face_all(names: list[str], jobs: int, results: dict[str, int], keep: Callable[[], None]) -> None:
    """Run those that no earlier run killed, `jobs` at a time, in the order given."""
    waiting: list[tuple[str, Callable[[], int]]] = []
    todo = [name for name in names if results.get(name, 0) in _SURVIVED]
    for done, name in enumerate([*todo, *[""] * jobs]):
        if len(waiting) == jobs:
            earlier, code = waiting.pop(0)
            results[earlier] = code()
            keep()
            print(f"{done}/{len(todo)} {earlier}: {results[earlier]}", file=sys.stderr, flush=True)
        if name:
            waiting.append((name, face(name, TESTS[name.split(".")[1]])))


def outcome(module: str, names: list[str], mutants: int, results: dict[str, int]) -> Outcome:
    """Count the results of a module."""
    survivors = [name for name in names if results[name] in _SURVIVED]
    return Outcome(module, mutants, len(names), survivors, sum(results[name] < 0 for name in names))


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
    written = write_mutants(modules)
    os.environ.update(HYPOTHESIS_PROFILE="mutation", MUTANT_UNDER_TEST="", PYTHONPATH="")
    os.chdir(_FOLDER)
    sys.path[:] = [str(Path.cwd()), *(entry for entry in sys.path if Path(entry or ".") != Path.cwd().parent)]
    for name in _SHARED:
        import_module(name)
    store = Path("results.json")
    results = json.loads(store.read_text("utf-8")) if store.exists() else {}
    for file in {TESTS[module] for module in modules}:
        if code := face("", file)():
            raise SystemExit(f"{file} fails without any mutant (exit code {code}): mend that first")
    drawn = {module: draw(module, names, options.sample, options.seed) for module, names in written.items()}
    everything = np.random.default_rng(options.seed).permutation(
        [n for names in drawn.values() for n in names]
    )
    keep = lambda: store.write_text(json.dumps(results, indent=0), "utf-8")  # noqa: E731
    face_all([str(name) for name in everything], options.jobs, results, keep)
    outcomes = [outcome(module, names, len(written[module]), results) for module, names in drawn.items()]
    print(HEADER, *(found.row() for found in outcomes), sep="\n")
    print(*(f"survived: {name}" for found in outcomes for name in found.survivors), sep="\n")


if __name__ == "__main__":
    main()
