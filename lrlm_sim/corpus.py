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
from oracles.errors import FormatError, ParameterError


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


def read_text(paths: Sequence[Path]) -> str:
    """Text of files, and of every ``*.txt``, ``*.md`` and ``*.py`` below folders, in sorted order."""
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FormatError(f"no such file or folder: {path}")
        inside = sorted(p for p in path.rglob("*") if p.suffix in {".txt", ".md", ".py"})
        files += inside if path.is_dir() else [path]
    return "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)


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
    rows = np.asarray(windows)
    shuffled = as_generator(rng).permutation(rows)
    half = len(shuffled) // 2
    heads = _distinct(shuffled[:half, :history_length])
    tails = _distinct(shuffled[half:, rows.shape[1] - future_length :])
    for name, found in (("histories", heads), ("futures", tails)):
        if len(found) < n:
            raise ParameterError(
                f"{n} distinct {name} asked for, the text has {len(found)}: give more text or a smaller n"
            )
    return heads[:n], tails[:n]


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


def _distinct(rows: np.ndarray) -> np.ndarray:
    """Distinct rows in order of first appearance."""
    _, first = np.unique(rows, axis=0, return_index=True)
    return rows[np.sort(first)]
