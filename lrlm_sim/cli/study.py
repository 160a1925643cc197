"""`lrlm study`: list, run and show the studies, each a program of its own under ``studies/``."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from lrlm_sim.cli.console import Screen
from oracles.errors import MissingDependencyError, ParameterError


def study_files() -> dict[str, Path]:
    """Studies by name: the modules of the package `studies` that define ``main``."""
    found = find_spec("studies")
    if found is None or not found.submodule_search_locations:
        raise MissingDependencyError("the package studies", "all")
    files = sorted(Path(found.submodule_search_locations[0]).glob("*.py"))
    return {file.stem: file for file in files if "def main(" in file.read_text(encoding="utf-8")}


def run_list(screen: Screen) -> int:
    """Names and first lines of all studies."""
    rows = [(name, _summary(file)) for name, file in study_files().items()]
    screen.table("studies", ("study", "what it asks"), rows)
    screen.finish({"studies": [{"name": name, "summary": summary} for name, summary in rows]})
    return 0


def run_study(name: str, arguments: list[str]) -> int:
    """Run one study in a process of its own, with its own options; its exit status."""
    _require(name)
    return subprocess.run([sys.executable, "-m", f"studies.{name}", *arguments], check=False).returncode


def run_report(screen: Screen, name: str) -> int:
    """Print the committed tables of a study; status 1 if it has none."""
    results = _require(name).parent / "results" / name
    tables = sorted(results.glob("*.md"))
    texts = {table.stem: table.read_text(encoding="utf-8") for table in tables}
    for text in texts.values():
        screen.say(text)
    if not texts:
        screen.say(f"{name} has no committed tables: lrlm study run {name}")
    screen.finish({"study": name, "tables": texts})
    return 0 if texts else 1


def _require(name: str) -> Path:
    files = study_files()
    if name not in files:
        raise ParameterError(f"unknown study {name!r}, known: {', '.join(files)}")
    return files[name]


def _summary(file: Path) -> str:
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.strip().splitlines()[0] if text.strip() else ""
