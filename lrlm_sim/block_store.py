"""Arrays of a long computation on disk: written whole or not at all, and never mixed with another's.

A store is a folder of ``NAME.npy`` files and one ``key.json`` that says what they belong to: the identity
of the model, the strings, the settings. A folder opened with any other key is refused, so a second run
continues where the first one stopped (by Ctrl-C, a kill, a full disk) or does not start at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from oracles.errors import FormatError

_FORMAT = 1


class BlockStore:
    """Named arrays in a folder, keyed by what they were computed from.

    Arguments:
        folder: made where it is missing.
        key: JSON values that determine every array: model identity, hashes of texts, settings.

    Raises FormatError if the folder holds arrays of another key; the message names what differs.
    """

    def __init__(self, folder: str | os.PathLike[str], key: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FormatError(
                f"cannot make the folder {self.folder}: {error.strerror}; give another one"
            ) from None
        self.key = json.loads(json.dumps({"format": _FORMAT, **key}))
        path = self.folder / "key.json"
        if path.exists():
            self._check(path)
        else:
            _write_atomically(path, json.dumps(self.key, indent=2).encode())

    def get(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray | None:
        """The array of that name; None if it is not there, is damaged, or has another shape."""
        try:
            array = np.load(self.folder / f"{name}.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError):  # missing, or cut short by a disk
            return None
        return array if shape is None or array.shape == shape else None

    def has(self, name: str) -> bool:
        """Whether a file of that name is there."""
        return (self.folder / f"{name}.npy").is_file()

    def put(self, name: str, array: np.ndarray) -> None:
        """Write one array; a reader finds all of it or nothing."""
        partial = self.folder / f"{name}.{os.getpid()}.partial"
        try:
            with partial.open("wb") as file:
                np.save(file, array, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.folder / f"{name}.npy")
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise FormatError(
                f"cannot write {self.folder / name}.npy ({error.strerror}): make room, then give the same "
                "command again; what was finished is kept"
            ) from None

    def check_room(self, needed: int) -> None:
        """Raise FormatError if the disk has less than `needed` bytes free."""
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise FormatError(
                f"the blocks take {needed / 1e9:.3g} GB, {self.folder} has {free / 1e9:.3g} GB free: make "
                "room, give another folder, or keep fewer tokens"
            )

    def _check(self, path: Path) -> None:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise FormatError(f"{path} is not readable: remove {self.folder}, or give another one") from None
        if found == self.key:
            return
        names = sorted(n for n in {*found, *self.key} if found.get(n) != self.key.get(n))
        changes = ", ".join(
            f"{n}: {_brief(found.get(n))} there, {_brief(self.key.get(n))} now" for n in names
        )
        raise FormatError(
            f"{self.folder} holds blocks of another computation ({changes}): repeat its settings to go on "
            "with it, or give another folder"
        )


def fingerprint(*arrays: np.ndarray) -> str:
    """Hash of the values, types and shapes of arrays, for keys."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:32]


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:28]}…{text[-28:]}"


def _write_atomically(path: Path, data: bytes) -> None:
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_bytes(data)
    os.replace(partial, path)
