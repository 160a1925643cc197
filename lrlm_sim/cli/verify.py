"""`lrlm verify`: the theorem table and its HTML page, and the kill table of deliberately broken versions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrlm_sim.cli.console import Screen
from lrlm_sim.cli.runs import Run, open_run
from lrlm_sim.cli.theorem_page import draw_figure, write_page
from lrlm_sim.theorems import Finding, Theorem, killed
from lrlm_sim.theorems.verify import findings, missing_package, select
from oracles.errors import MissingDependencyError, ParameterError

_COLUMNS = ("theorem", "tried", "failed", "bound", "measured", "slack", "verdict", "source")


def run_verify(
    screen: Screen,
    names: list[str],
    budget: str,
    mutants: bool,
    instance: str | None,
    jobs: int | None,
    seed: int,
    out: Path | None,
) -> int:
    """Try theorems; status 0 only if every one holds (or, with mutants, every mutant is killed)."""
    if budget not in ("small", "medium", "large"):
        raise ParameterError(f"--budget must be small, medium or large, got {budget!r}")
    chosen = select(names)
    if instance is not None:
        return _repeat(screen, chosen, instance)
    settings = {"names": names, "budget": budget, "mutants": mutants}
    with open_run("verify", seed, out, settings) as run:
        if mutants:
            return _kill_table(screen, run, chosen, seed)
        rows = _try_all(screen, run, chosen, budget, jobs or os.cpu_count() or 1, seed)
        tried = [row for row in rows if row["instances"]]
        good = all(row["verdict"] == "holds" for row in tried)
        run.record(verdict="holds" if good else "not all hold")
        title = f"theorems, budget {budget}, seed {seed}: “holds” at confidence {rows[0]['confidence']:g}"
        screen.table(title, _COLUMNS, [_cells(row) for row in rows])
        for row in rows:
            if row["verdict"] != "holds":
                again = f"; repeat with: {row['reproduce']}" if row["reproduce"] else ""
                screen.say(f"{row['name']}: {row['verdict']}, {row['error'] or row['claim']}{again}")
        screen.say(f"page and manifest in {run.folder}")
        screen.finish({"theorems": rows, "budget": budget, "seed": seed, "folder": run.folder})
    return 0 if good else 1


def _try_all(
    screen: Screen, run: Run, chosen: Sequence[Theorem], budget: str, jobs: int, seed: int
) -> list[dict[str, Any]]:
    """Rows of all theorems in the order of the catalogue; the manifest and the page grow as they come."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # one thread for each process that is started
    place = {theorem.name: number for number, theorem in enumerate(chosen)}
    rows: list[dict[str, Any]] = []
    coming = findings(chosen, budget, seed, jobs)  # type: ignore[arg-type]
    for number in range(1, len(chosen) + 1):
        with screen.step(f"theorem {number} of {len(chosen)}" + (f", {jobs} at a time" if jobs > 1 else "")):
            finding = next(coming)
        theorem = chosen[place[finding.name]]
        rows.append(_row(theorem, finding, draw_figure(run.folder, theorem, finding)))
        rows.sort(key=lambda row: place[row["name"]])
        run.record(theorems=rows)
        write_page(run.folder, rows, budget, seed, len(chosen))
    return rows


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    numbers = (row[key] if row[key] is not None else "–" for key in ("bound", "measured", "slack"))
    verdict = row["verdict"] if row["instances"] else "not tried"
    return (row["name"], row["instances"], row["failures"], *numbers, verdict, row["source"])


def _repeat(screen: Screen, chosen: Sequence[Theorem], text: str) -> int:
    """One instance of one theorem, measured again."""
    if len(chosen) != 1:
        raise ParameterError("--instance repeats one theorem: name it")
    theorem = chosen[0]
    missing = missing_package(theorem)
    if missing is not None:
        raise MissingDependencyError(missing, theorem.requires[missing])
    try:
        given = {key: int(value) for key, value in (item.split("=") for item in text.split(","))}
    except ValueError:
        raise ParameterError(f"--instance must be name=integer,…, got {text!r}") from None
    missing = sorted({*theorem.parameters, "seed"} - given.keys())
    if missing:
        raise ParameterError(f"--instance of {theorem.name} misses {', '.join(missing)}")
    measurement = theorem.measure(given)
    verdict = "violated" if measurement.broken else "holds"
    numbers = {"measured": float(measurement.measured), "bound": float(measurement.bound)}
    record = {
        "name": theorem.name,
        "source": theorem.source,
        "verdict": verdict,
        "instance": given,
        **numbers,
    }
    screen.say(f"{theorem.name} on {text}: measured {numbers['measured']:.6g}, bound {numbers['bound']:.6g}")
    screen.say(verdict)
    screen.finish({"theorems": [record]})
    return 1 if measurement.broken else 0


def _kill_table(screen: Screen, run: Run, chosen: Sequence[Theorem], seed: int) -> int:
    rows = []
    for theorem in chosen:
        if missing_package(theorem) is not None:
            screen.say(f"{theorem.name}: not tried, {missing_package(theorem)} is not installed")
            continue
        for mutant in theorem.mutants:
            with screen.step(f"{theorem.name}: {mutant}"):
                rows.append(
                    {"name": theorem.name, "mutant": mutant, "killed": killed(theorem, mutant, seed=seed)}
                )
            run.record(mutants=rows)
    alive = [row for row in rows if not row["killed"]]
    run.record(verdict="all killed" if not alive else f"{len(alive)} survive")
    screen.table(
        "broken versions of the theorems",
        ("theorem", "mutant", "killed"),
        [(row["name"], row["mutant"], row["killed"]) for row in rows],
    )
    screen.finish({"mutants": rows})
    return 1 if alive else 0


def _row(theorem: Theorem, finding: Finding, figure: str) -> dict[str, Any]:
    worst = finding.worst
    return {
        "name": finding.name,
        "statement": theorem.statement,
        "source": finding.source,
        "verdict": finding.verdict,
        "instances": finding.instances,
        "failures": finding.failures,
        "measured": None if worst is None else float(worst.measured),
        "bound": None if worst is None else float(worst.bound),
        "slack": None if worst is None else float(worst.slack),
        "confidence": finding.confidence,
        "claim": finding.claim,
        "counterexample": finding.counterexample,
        "reproduce": finding.reproduce,
        "error": finding.error,
        "figure": figure,
    }
