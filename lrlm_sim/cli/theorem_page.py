"""The HTML page of the theorem table: a section and a figure per theorem."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrlm_sim.cli.plots import new_figure
from lrlm_sim.cli.runs import installed_versions
from lrlm_sim.theorems import Finding, Theorem
from oracles.errors import MissingDependencyError

_STYLE = (
    "body{font-family:sans-serif;max-width:68em;margin:2em auto;padding:0 1em;line-height:1.4;color:#222}"
    "table{border-collapse:collapse;font-size:.9em}"
    "td,th{padding:.25em .7em;text-align:left;border-bottom:1px solid #ddd;vertical-align:top}"
    "td.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}"
    "h2{margin-top:2em;border-top:1px solid #ddd;padding-top:1em}"
    "code{background:#f4f4f4;padding:.1em .3em;overflow-wrap:anywhere}img{max-width:100%}"
    ".holds{color:#176117}.violated{color:#a11}.undecided{color:#a60}.source{color:#555}"
)


def draw_figure(folder: Path, theorem: Theorem, finding: Finding) -> str:
    """Measured against bound for every instance, as an SVG file; "" without matplotlib."""
    if not finding.measurements:
        return ""
    try:
        figure, axes = new_figure(5.6, 3.2)
    except MissingDependencyError:
        return ""
    measured, bound = np.array(finding.measurements, dtype=np.float64).T
    order = np.lexsort((measured, bound))
    axes.step(np.arange(len(bound)), bound[order], "-", color="C3", where="mid", label="bound")
    axes.plot(measured[order], ".", color="C0", label="measured")
    largest = max(np.abs(measured).max(), np.abs(bound).max())
    if measured.min() > 0 and bound.min() > 0 and largest > 30 * min(measured.min(), bound.min()):
        axes.set_yscale("log")
    elif largest < 1e-6:  # zero up to rounding: a scale of 1e-17 would show nothing but rounding
        axes.set_ylim(-1e-6, 1e-6)
    axes.set(xlabel="instances, in order of their bound", title=theorem.name)
    axes.margins(x=0.03)
    axes.legend(fontsize="small")
    name = f"{theorem.name}.svg"
    figure.savefig(folder / name, metadata={"Date": None})
    return name


def write_page(folder: Path, rows: Sequence[dict[str, Any]], budget: str, seed: int, total: int) -> None:
    """Write ``theorems.html`` for the theorems tried so far, `total` in all."""
    versions = ", ".join(f"{name} {text}" for name, text in installed_versions().items() if text)
    progress = (
        "" if len(rows) == total else f" <strong>{len(rows)} of {total} theorems tried so far.</strong>"
    )
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Theorem table</title>",
        "<meta name=viewport content='width=device-width'>",
        f"<style>{_STYLE}</style><h1>Theorem table</h1>",
        f"<p>Budget {html.escape(budget)}, seed {seed}; {html.escape(versions)}.{progress} ",
        "<em>measured</em> and <em>bound</em> are those of the instance with the least slack, bound "
        "− measured.</p>",
        "<table><tr><th>theorem<th>source<th>tried<th>failed<th>bound<th>measured<th>slack<th>verdict</tr>",
        *map(_table_row, rows),
        "</table>",
        *map(_section, rows),
    ]
    (folder / "theorems.html").write_text("\n".join(parts) + "\n", encoding="utf-8")


def _table_row(row: dict[str, Any]) -> str:
    numbers = [row["instances"], row["failures"], *(_number(row[k]) for k in ("bound", "measured", "slack"))]
    cells = "".join(f"<td class=number>{number}" for number in numbers)
    link = f"<a href='#{row['name']}'>{html.escape(row['name'])}</a>"
    source = html.escape(row["source"])
    return f"<tr><td>{link}<td class=source>{source}{cells}<td class={row['verdict']}>{row['verdict']}</tr>"


def _section(row: dict[str, Any]) -> str:
    parts = [
        f"<h2 id='{row['name']}'>{html.escape(row['name'])}</h2><p>{html.escape(row['statement'])} ",
        f"<span class=source>[{html.escape(row['source'])}]</span></p>",
        f"<p class={row['verdict']}>{row['verdict']}: {html.escape(row['error'] or row['claim'])}.</p>",
    ]
    if row["counterexample"]:
        parts.append(f"<p>Repeat with <code>{html.escape(row['reproduce'])}</code></p>")
    if row["figure"]:
        parts.append(f"<img src='{row['figure']}' alt='measured and bound of {row['name']}'>")
    return "\n".join(parts)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
