"""What a command prints: tables and progress for people, one JSON object for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from lrlm_sim.cli.runs import plain


class Screen:
    """Tables and progress on the terminal; with ``json=True`` silent until `finish`."""

    def __init__(self, as_json: bool) -> None:
        self._json = as_json
        wide = None if sys.stdout.isatty() else 140  # a file or a pipe has no width of its own
        self._out = Console(quiet=as_json, highlight=False, width=wide)
        self._err = Console(stderr=True, quiet=as_json, highlight=False)

    def say(self, text: str) -> None:
        """One line of text."""
        self._out.print(text, markup=False)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table, numbers to four significant digits."""
        table = Table(title=title, title_justify="left", title_style="bold")
        for i, column in enumerate(columns):
            words = column in ("source", "result", "state", "what it asks")
            table.add_column(column, justify="left" if i == 0 or words else "right", no_wrap=not words)
        for row in rows:
            table.add_row(*(Text(_cell(value)) for value in row))  # text, not markup: [extra] stays
        self._out.print(table)

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """A spinner while something runs, where there is a terminal to show it on."""
        if self._json or not self._err.is_terminal:
            yield
            return
        with self._err.status(text):
            yield

    @contextmanager
    def progress(self, text: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar that the given function moves forward, where there is a terminal to show it on."""
        with Progress(console=self._err, disable=self._json or not self._err.is_terminal) as bar:
            task = bar.add_task(text, total=total)
            yield lambda count: bar.advance(task, count)

    def finish(self, result: dict[str, Any]) -> None:
        """Print the result as one JSON object if that was asked for."""
        if self._json:
            sys.stdout.write(json.dumps(result, indent=2, default=plain) + "\n")


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
