"""Histories and futures from text: prefixes of some windows, suffixes of others, never repeated.

Follows the pipeline of Golowich, Liu, Shetty (arXiv:2510.24966, experiments): histories are length-T_h
prefixes of sampled texts, futures are length-T_f suffixes of *other* texts, and for each future the k
tokens most likely after it are kept as columns.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Int
from numpy.typing import ArrayLike

from oracles.base import Oracle
from oracles.checks import as_generator, as_integer, as_tokens
from oracles.errors import FormatError, MissingDependencyError, ParameterError


def standard_library_text(characters: int = 2_000_000) -> str:
    """Source text of the running Python's own standard library, in sorted order: on every machine."""
    pieces, total = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        pieces.append(text)
        total += len(text)
        if total >= characters:
            break
    return "\n".join(pieces)[:characters]


def read_text(
    paths: Sequence[Path], limit: int | None = None, rng: np.random.Generator | int | None = None
) -> str:
    """Text of files, and of every text or source file below folders.

    Files are read in sorted order; with a `limit` in characters, in random order until it is reached, so
    that a large folder is sampled and not read from its beginning.
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FormatError(f"no such file or folder: {path}")
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in TEXT_SUFFIXES and p.is_file())
        if path.is_dir() and not inside:
            raise FormatError(f"{path} holds no text: files must end in {', '.join(sorted(TEXT_SUFFIXES))}")
        files += inside if path.is_dir() else [path]
    if limit is not None:
        files = [files[i] for i in as_generator(rng).permutation(len(files))]
    pieces, total = [], 0
    for file in files:
        piece = file.read_text(encoding="utf-8", errors="replace")
        pieces.append(piece if limit is None else piece[: limit - total])
        total += len(pieces[-1]) + 1
        if limit is not None and total >= limit:
            break
    return "\n".join(pieces)


def dataset_text(name: str, limit: int, column: str = "text") -> str:
    """Beginning of a Hugging Face dataset: the training split's texts, streamed until `limit` characters.

    Arguments:
        name: ``OWNER/NAME``, or ``OWNER/NAME:CONFIGURATION``. column: of the texts.

    Needs the package `datasets` (extra ``hub``) and a network. Raises MissingDependencyError, or
    FormatError where the dataset cannot be read.
    """
    try:
        import datasets  # type: ignore[import-not-found]
    except ImportError:
        raise MissingDependencyError("datasets", "hub") from None
    name, _, configuration = name.partition(":")
    pieces, total, row = [], 0, {}
    try:
        rows = datasets.load_dataset(name, configuration or None, split="train", streaming=True)
        for row in rows:
            pieces.append(row[column])
            total += len(row[column])
            if total >= limit:
                break
    except KeyError:
        raise FormatError(f"dataset {name} has no column {column!r}, only {', '.join(row)}") from None
    except Exception as error:  # the package raises errors of many libraries
        raise FormatError(
            f"cannot read dataset {name} ({type(error).__name__}: {error}): check its name and the network, "
            "or download its text and give it as files"
        ) from error
    return "\n".join(pieces)[:limit]


#: What counts as text in a folder.
TEXT_SUFFIXES = frozenset(
    ".txt .md .rst .tex .py .pyi .c .h .cc .cpp .hpp .rs .go .java .js .ts .sh .jl .r .hs .ml .html "
    ".css .toml .yaml .yml".split()
)


def token_windows(tokens: ArrayLike, length: int) -> Int[np.ndarray, "windows length"]:
    """A token sequence cut into consecutive windows of equal length, the remainder dropped."""
    values = np.asarray(tokens, dtype=np.int64)
    count = len(values) // as_integer("length", length, 1)
    return values[: count * length].reshape(count, length)


def histories_and_futures(
    windows: ArrayLike,
    n: int,
    history_length: int,
    future_length: int,
    rng: np.random.Generator | int | None = None,
) -> tuple[Int[np.ndarray, "n history"], Int[np.ndarray, "n future"]]:
    """`n` distinct prefixes and `n` distinct suffixes of disjoint random sets of windows.

    Arguments:
        windows: token strings, shape (N, L) with L ≥ max(history_length, future_length).

    Raises:
        ParameterError: there are not n distinct prefixes or suffixes; says how many there are.
    """
    heads, tails = _halves(windows, history_length, future_length, as_generator(rng))
    heads, tails = _distinct(heads), _distinct(tails)
    _check_enough(n, histories=len(heads), futures=len(tails))
    return heads[:n], tails[:n]


def histories_and_mixed_futures(
    windows: ArrayLike,
    n: int,
    history_length: int,
    future_length: int,
    rng: np.random.Generator | int | None = None,
) -> tuple[Int[np.ndarray, "n history"], list[Int[np.ndarray, "length"]]]:
    """As `histories_and_futures`, each future cut at a random length 1..future_length, then deduplicated."""
    generator = as_generator(rng)
    heads, tails = _halves(windows, history_length, future_length, generator)
    cuts = generator.integers(1, future_length + 1, size=len(tails))
    mixed = {tuple(tail[:cut].tolist()): None for tail, cut in zip(tails, cuts, strict=True)}
    heads = _distinct(heads)
    _check_enough(n, histories=len(heads), futures=len(mixed))
    return heads[:n], [np.array(tail, dtype=np.int64) for tail in list(mixed)[:n]]


def nonsense(
    strings: Sequence[ArrayLike] | np.ndarray, rng: np.random.Generator | int | None = None
) -> list[Int[np.ndarray, "length"]]:
    """Each string's tokens in random order: nonsense of the same tokens."""
    generator = as_generator(rng)
    return [generator.permutation(np.asarray(string, dtype=np.int64)) for string in strings]


def likely_tokens(
    oracle: Oracle, futures: Sequence[ArrayLike] | np.ndarray, k: int
) -> Int[np.ndarray, "n k"]:
    """The k most likely tokens after each future standing alone, most likely first, shape (n_f, k)."""
    as_integer("k", k, 1, oracle.vocab_size)
    laws = oracle.next_log_probs(futures)
    return np.argsort(-laws, axis=1, kind="stable")[:, :k]


class Tokenizer(Protocol):
    """What is needed of a Hugging Face tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool) -> Sequence[int]:
        """Token numbers of a text."""
        ...


def encode(tokenizer: Tokenizer, text: str, vocab_size: int) -> Int[np.ndarray, "tokens"]:
    """Text as tokens, line by line without special tokens, checked against the model's vocabulary.

    Raises TokenError where the tokenizer is not the model's.
    """
    lines = text.splitlines(keepends=True)
    pieces = [tokenizer.encode(line, add_special_tokens=False) for line in lines]
    tokens = np.fromiter((token for piece in pieces for token in piece), dtype=np.int64)
    return as_tokens("encoded text (do tokenizer and model match?)", tokens, vocab_size, 1)


def _halves(
    windows: ArrayLike, history_length: int, future_length: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Prefixes of one random half of the windows, suffixes of the other."""
    rows = np.asarray(windows)
    shuffled = generator.permutation(rows)
    half = len(shuffled) // 2
    return shuffled[:half, :history_length], shuffled[half:, rows.shape[1] - future_length :]


def _check_enough(n: int, **found: int) -> None:
    for name, count in found.items():
        if count < n:
            raise ParameterError(
                f"{n} distinct {name} asked for, the text has {count}: give more text or a smaller n"
            )


def _distinct(rows: np.ndarray) -> np.ndarray:
    """Distinct rows in order of first appearance."""
    _, first = np.unique(rows, axis=0, return_index=True)
    return rows[np.sort(first)]
