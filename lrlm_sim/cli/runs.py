"""Run directories: every command writes what it did, with which seed and versions, beside its results."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from oracles.errors import FormatError

_PACKAGES = ("lrlm-sim", "numpy", "scipy", "highspy", "safetensors", "torch", "transformers", "matplotlib")


def installed_versions() -> dict[str, str | None]:
    """Versions of the packages that matter for a result; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


@dataclass
class Run:
    """One run's folder and the manifest that grows in it."""

    folder: Path
    manifest: dict[str, Any] = field(default_factory=dict)

    def record(self, **entries: Any) -> None:
        """Add results to the manifest and write it at once, so that an interrupted run keeps them."""
        self.manifest.update(entries)
        self.write()

    def write(self) -> None:
        """Write ``manifest.json`` atomically."""
        target = self.folder / "manifest.json"
        partial = target.with_suffix(".json.partial")
        partial.write_text(json.dumps(self.manifest, indent=2, default=plain) + "\n", encoding="utf-8")
        os.replace(partial, target)


def plain(value: Any) -> Any:
    """JSON form of numpy values, paths and records."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return value.as_posix()
    if is_dataclass(value) and not isinstance(value, type):
        return {entry.name: getattr(value, entry.name) for entry in fields(value)}
    return str(value)


@contextmanager
def open_run(command: str, seed: int, out: Path | None, settings: dict[str, Any]) -> Iterator[Run]:
    """A run folder (``runs/COMMAND-TIME`` unless given) whose manifest says how the run ended."""
    started = time.time()
    folder = out or Path("runs") / f"{command}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FormatError(
            f"cannot make the run folder {folder}: {error.strerror}; give another --out"
        ) from None
    run = Run(folder)
    run.record(
        command=command,
        arguments=sys.argv[1:],
        settings=settings,
        seed=seed,
        versions=installed_versions(),
        platform=platform.platform(),
        started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        outcome="running",
    )
    try:
        yield run
    except KeyboardInterrupt:
        run.record(outcome="interrupted")
        sys.stderr.write(f"lrlm: interrupted; what was finished is in {folder}\n")
        raise
    except BaseException as error:
        run.record(outcome="failed", error=f"{type(error).__name__}: {error}")
        raise
    run.record(outcome=run.manifest.get("verdict", "done"), seconds=round(time.time() - started, 3))
