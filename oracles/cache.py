"""Caches of deterministic answers: a question paid for once is free from then on.

A cache maps (space, question) to a row of float64 numbers. The *space* names everything an answer
depends on besides the question: the teacher, the kind of access, its noise and its seed.
"""

from __future__ import annotations

import os
import sqlite3
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from oracles.base import Oracle
from oracles.errors import FormatError, ParameterError

_SCHEMA_VERSION = 1
_WAIT_SECONDS = 60.0  # for a lock held by another process
_LOOKUP_CHUNK = 500  # below the smallest limit on variables of any SQLite build


@dataclass(frozen=True)
class Space:
    """What an answer depends on besides the question; `width` numbers stand in one answer."""

    identity: str
    kind: str
    noise: float
    seed: int
    width: int


class Cache(ABC):
    """Abstract store of answer rows."""

    @abstractmethod
    def identify(self, oracle: Oracle) -> str:
        """The teacher's name in this cache; raises ParameterError if it has none or another one."""

    @abstractmethod
    def get(
        self, space: Space, questions: Sequence[bytes]
    ) -> tuple[Bool[np.ndarray, "n"], Float[np.ndarray, "known width"]]:
        """Which questions have an answer, and those answers in order."""

    @abstractmethod
    def put(
        self, space: Space, questions: Sequence[bytes], answers: Float[np.ndarray, "n width"]
    ) -> Float[np.ndarray, "n width"]:
        """Store answers to distinct questions; returns the answers that stand (the first to come wins)."""


def as_cache(cache: Cache | bool | str | os.PathLike[str] | None, oracle: Oracle) -> Cache | None:
    """The cache meant by an access's `cache=` argument.

    None or False: no cache. True: a new `MemoryCache`. A path: `DiskCache(path, oracle.identity)`.
    Raises ParameterError if a path is given and the oracle has no identity.
    """
    if cache is None or cache is False:
        return None
    if cache is True:
        return MemoryCache()
    if isinstance(cache, (str, os.PathLike)):
        if oracle.identity is None:
            raise ParameterError(
                f"{type(oracle).__name__} has no identity to file its answers under: "
                "pass cache=DiskCache(path, identity='a name for exactly these weights')"
            )
        return DiskCache(cache, oracle.identity)
    if isinstance(cache, Cache):
        return cache
    raise ParameterError(f"cache must be None, True, a path, MemoryCache or DiskCache, got {cache!r}")


class MemoryCache(Cache):
    """Answers in memory, 8 bytes a number; may be shared by accesses, of different teachers too."""

    def __init__(self) -> None:
        self._tables: dict[Space, _Table] = {}
        self._teachers: dict[str, Callable[[], str]] = {}

    def __repr__(self) -> str:
        return f"MemoryCache({sum(len(table.index) for table in self._tables.values())} answers)"

    def identify(self, oracle: Oracle) -> str:
        name = f"object {id(oracle)}"

        def keep_alive() -> str:  # while it lives, no other object can get the same id
            return f"object {id(oracle)}"

        self._teachers[name] = keep_alive
        return name

    def get(
        self, space: Space, questions: Sequence[bytes]
    ) -> tuple[Bool[np.ndarray, "n"], Float[np.ndarray, "known width"]]:
        table = self._tables.get(space)
        if table is None:
            return np.zeros(len(questions), dtype=bool), np.empty((0, space.width))
        at = np.fromiter((table.index.get(q, -1) for q in questions), dtype=np.int64, count=len(questions))
        return at >= 0, table.rows[at[at >= 0]]

    def put(
        self, space: Space, questions: Sequence[bytes], answers: Float[np.ndarray, "n width"]
    ) -> Float[np.ndarray, "n width"]:
        table = self._tables.setdefault(space, _Table(space.width))
        known, standing = self.get(space, questions)
        table.append([q for q, old in zip(questions, known, strict=True) if not old], answers[~known])
        if known.any():
            answers = answers.copy()
            answers[known] = standing
        return answers


class _Table:
    """Rows of one space in an array that doubles when it is full."""

    def __init__(self, width: int) -> None:
        self.index: dict[bytes, int] = {}
        self.rows = np.empty((0, width))

    def append(self, questions: Sequence[bytes], answers: Float[np.ndarray, "n width"]) -> None:
        first, last = len(self.index), len(self.index) + len(questions)
        if last > len(self.rows):
            grown = np.empty((max(last, 2 * len(self.rows)), self.rows.shape[1]))
            grown[:first] = self.rows[:first]
            self.rows = grown
        self.rows[first:last] = answers
        self.index.update(zip(questions, range(first, last), strict=True))


class DiskCache(Cache):
    """Answers in one SQLite file (WAL), committed to disk before they are returned.

    Several processes may share the file; an object serves one thread. Answers are float64,
    little-endian; a crash or a spent budget loses nothing that was answered.

    Arguments:
        path: the file, made if missing.
        identity: names the teacher *and its exact weights* (a repository with its revision, a
            hash); answers are only ever reused under the same identity.

    Raises FormatError if the file is something else, ParameterError if an oracle that names itself
    differently is put in front of it.
    """

    def __init__(self, path: str | os.PathLike[str], identity: str) -> None:
        if not isinstance(identity, str) or not identity:
            raise ParameterError(
                f"identity must be a non-empty text that names the teacher, got {identity!r}"
            )
        self.path = Path(path)
        self.identity = identity
        self._connections: dict[int, sqlite3.Connection] = {}  # by process: none survives a fork
        self._connect()

    def __repr__(self) -> str:
        return f"DiskCache({str(self.path)!r}, identity={self.identity!r})"

    def __reduce__(self) -> tuple[type[DiskCache], tuple[str, str]]:
        return DiskCache, (str(self.path), self.identity)

    def identify(self, oracle: Oracle) -> str:
        if oracle.identity is not None and oracle.identity != self.identity:
            raise ParameterError(
                f"this cache holds answers of {self.identity!r}, the oracle is {oracle.identity!r}: "
                "open the cache under the oracle's identity (or pass its path, which does so)"
            )
        return self.identity

    def get(
        self, space: Space, questions: Sequence[bytes]
    ) -> tuple[Bool[np.ndarray, "n"], Float[np.ndarray, "known width"]]:
        found: dict[bytes, bytes] = {}
        with self._errors():
            connection = self._connect()
            number = self._space_number(connection, space)
            for low in range(0, len(questions), _LOOKUP_CHUNK):
                chunk = questions[low : low + _LOOKUP_CHUNK]
                marks = ",".join("?" * len(chunk))
                found.update(
                    connection.execute(
                        f"SELECT question, answer FROM answers WHERE space = ? AND question IN ({marks})",
                        (number, *chunk),
                    )
                )
        known = np.fromiter((q in found for q in questions), dtype=bool, count=len(questions))
        blobs = [found[q] for q, old in zip(questions, known, strict=True) if old]
        if any(len(blob) != 8 * space.width for blob in blobs):
            raise FormatError(
                f"{self.path} holds answers of {self.identity!r} for another vocabulary size: "
                "two models were filed under one identity, give them different ones"
            )
        rows = np.frombuffer(b"".join(blobs), dtype="<f8").astype(np.float64)
        return known, rows.reshape(len(blobs), space.width)

    def put(
        self, space: Space, questions: Sequence[bytes], answers: Float[np.ndarray, "n width"]
    ) -> Float[np.ndarray, "n width"]:
        blobs = [row.tobytes() for row in answers.astype("<f8", copy=False)]
        with self._errors():
            connection = self._connect()
            number = self._space_number(connection, space)
            with _transaction(connection):
                cursor = connection.executemany(
                    "INSERT OR IGNORE INTO answers VALUES (?, ?, ?)",
                    zip([number] * len(blobs), questions, blobs, strict=True),
                )
        if cursor.rowcount == len(blobs):
            return answers
        return self.get(space, questions)[1]  # another process answered some of them first

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        connection = self._connections.pop(os.getpid(), None)
        if connection is not None:
            connection.close()

    def _connect(self) -> sqlite3.Connection:
        """This process's connection, opened (and the tables made) on first use."""
        process = os.getpid()
        if process not in self._connections:
            with self._errors():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                connection = sqlite3.connect(
                    self.path, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False
                )
                weakref.finalize(self, _close_in, process, connection)
                _patiently(lambda: _prepare(connection, self.path))
                self._connections[process] = connection
        return self._connections[process]

    def _space_number(self, connection: sqlite3.Connection, space: Space) -> int:
        key = (space.identity, space.kind, space.noise, str(space.seed))
        query = "SELECT number FROM spaces WHERE identity = ? AND kind = ? AND noise = ? AND seed = ?"
        row = connection.execute(query, key).fetchone()
        if row is None:
            with _transaction(connection):
                connection.execute(
                    "INSERT OR IGNORE INTO spaces (identity, kind, noise, seed) VALUES (?, ?, ?, ?)", key
                )
            row = connection.execute(query, key).fetchone()
        return row[0]

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise FormatError(
                f"the cache {self.path} cannot be used ({error}): check the path and the disk"
            ) from None
        except sqlite3.DatabaseError as error:
            raise FormatError(f"{self.path} is not an answer cache ({error}): give another path") from None


def _patiently(step: Callable[[], None]) -> None:
    """Repeat a step while the file is busy: SQLite does not wait by itself when the journal mode changes."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            return step()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Check that the file is an answer cache, or make the tables in a new one."""
    if not _is_current(connection, path):
        connection.execute("PRAGMA journal_mode = WAL")
        with _transaction(connection):
            if not _is_current(connection, path):  # unless another process was faster
                connection.execute(
                    "CREATE TABLE spaces (number INTEGER PRIMARY KEY, identity TEXT NOT NULL, "
                    "kind TEXT NOT NULL, noise REAL NOT NULL, seed TEXT NOT NULL, "
                    "UNIQUE (identity, kind, noise, seed))"
                )
                connection.execute(
                    "CREATE TABLE answers (space INTEGER NOT NULL, question BLOB NOT NULL, "
                    "answer BLOB NOT NULL, UNIQUE (space, question))"
                )
                connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
    connection.execute("PRAGMA synchronous = FULL")  # a commit is on the disk, not on its way there


def _is_current(connection: sqlite3.Connection, path: Path) -> bool:
    """True for a cache of this version, False for an empty file, FormatError for anything else."""
    # in this order: tables and version are committed together, perhaps between these two reads
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == _SCHEMA_VERSION or (version == 0 and tables == 0):
        return version == _SCHEMA_VERSION
    raise FormatError(
        f"{path} is an SQLite file of version {version}, not an answer cache of version {_SCHEMA_VERSION}: "
        "give another path"
    )


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Take the write lock at once (no deadlock between upgraders); commit, or roll back on any error."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _close_in(process: int, connection: sqlite3.Connection) -> None:
    """Close a connection, but only in the process that opened it."""
    if os.getpid() == process:
        connection.close()
