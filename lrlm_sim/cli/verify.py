"""`lrlm verify`: the theorem table, its HTML page, and the kill table of deliberately broken versions."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrlm_sim.cli.console import Screen
from lrlm_sim.cli.plots import new_figure
from lrlm_sim.cli.runs import Run, open_run
from lrlm_sim.theorems import Finding, Theorem, check_theorem, killed
from lrlm_sim.theorems.verify import select
from oracles.errors import MissingDependencyError, ParameterError


def run_verify(
    screen: Screen,
    names: list[str],
    budget: str,
    mutants: bool,
    instance: str | None,
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
        rows: list[dict[str, Any]] = []
        for number, theorem in enumerate(chosen, 1):
            with screen.step(f"{number}/{len(chosen)} {theorem.name}"):
                finding = check_theorem(theorem, budget, seed)  # type: ignore[arg-type]
            figure = _figure(run.folder, theorem, finding)
            rows.append(_row(theorem, finding, figure))
            run.record(theorems=rows)
        good = all(row["verdict"] == "holds" for row in rows)
        (run.folder / "theorems.html").write_text(_page(rows, budget, seed), encoding="utf-8")
        run.record(verdict="holds" if good else "not all hold")
        screen.table(
            f"theorems, budget {budget}, seed {seed}",
            ("theorem", "tried", "failed", "measured", "bound", "verdict", "source"),
            [
                (
                    row["name"],
                    row["instances"],
                    row["failures"],
                    row["measured"],
                    row["bound"],
                    row["verdict"],
                    row["source"],
                )
                for row in rows
            ],
        )
        for row in rows:
            if row["verdict"] != "holds":
                detail = row["error"] or row["claim"]
                screen.say(f"{row['name']}: {row['verdict']}, {detail}; {row['reproduce']}")
        screen.say(f"page and manifest in {run.folder}")
        screen.finish({"theorems": rows, "budget": budget, "seed": seed, "folder": run.folder})
    return 0 if good else 1


def _repeat(screen: Screen, chosen: Sequence[Theorem], text: str) -> int:
    """One instance of one theorem, measured again."""
    if len(chosen) != 1:
        raise ParameterError("--instance repeats one theorem: name it")
    theorem = chosen[0]
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


def _figure(folder: Path, theorem: Theorem, finding: Finding) -> str:
    """Measured against bound for every instance, as an SVG file; "" without matplotlib."""
    if not finding.measurements:
        return ""
    try:
        figure, axes = new_figure(4.2, 3.0)
    except MissingDependencyError:
        return ""
    measured, bound = np.array(finding.measurements, dtype=np.float64).T
    order = np.argsort(bound, kind="stable")
    axes.plot(bound[order], "-", color="C3", label="bound")
    axes.plot(measured[order], ".", color="C0", label="measured")
    axes.set(xlabel="instance, by bound", title=theorem.name)
    axes.legend(fontsize="small")
    name = f"{theorem.name}.svg"
    figure.savefig(folder / name)
    return name


def _page(rows: Sequence[dict[str, Any]], budget: str, seed: int) -> str:
    """A self-contained HTML page: one section per theorem."""
    style = (
        "body{font-family:sans-serif;max-width:60em;margin:2em auto;line-height:1.4}"
        "table{border-collapse:collapse}td,th{padding:.2em .8em;text-align:left;border-bottom:1px solid #ddd}"
        ".holds{color:#176117}.violated{color:#a11}.undecided{color:#a60}"
    )
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Theorem table</title>",
        f"<style>{style}</style>",
        f"<h1>Theorem table</h1><p>Budget {html.escape(budget)}, seed {seed}.</p><table>",
        "<tr><th>theorem<th>source<th>instances<th>failures<th>measured<th>bound<th>verdict</tr>",
    ]
    for row in rows:
        cells = [f"<a href='#{row['name']}'>{html.escape(row['name'])}</a>", html.escape(row["source"])]
        cells += [
            str(row["instances"]),
            str(row["failures"]),
            _number(row["measured"]),
            _number(row["bound"]),
        ]
        parts.append(f"<tr><td>{'<td>'.join(cells)}<td class={row['verdict']}>{row['verdict']}</tr>")
    parts.append("</table>")
    for row in rows:
        parts.append(
            f"<h2 id='{row['name']}'>{html.escape(row['name'])}</h2><p>{html.escape(row['statement'])}</p>"
        )
        parts.append(f"<p class={row['verdict']}>{row['verdict']}: {html.escape(row['claim'])}.</p>")
        if row["counterexample"]:
            parts.append(f"<p>Repeat with <code>{html.escape(row['reproduce'])}</code></p>")
        if row["figure"]:
            parts.append(f"<img src='{row['figure']}' alt='measured and bound of {row['name']}'>")
    return "\n".join(parts) + "\n"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
