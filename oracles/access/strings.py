"""Token strings as bytes: dictionary keys that concatenate, and that turn back into arrays at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt64
from numpy.typing import ArrayLike

from oracles.checks import as_strings, as_tokens
from oracles.counter import extend_keys, start_keys


@dataclass(frozen=True)
class Packing:
    """Strings over 0..vocab_size−1 packed with the fewest whole bytes a token, little-endian."""

    vocab_size: int

    @property
    def dtype(self) -> np.dtype:
        """Unsigned integer type of one packed token."""
        return np.min_scalar_type(max(1, self.vocab_size - 1)).newbyteorder("<")

    def pack(self, name: str, strings: Sequence[ArrayLike] | np.ndarray) -> list[bytes]:
        """Checked user input (ragged lists or a 2-D array) as packed strings."""
        if isinstance(strings, np.ndarray) and strings.ndim == 2:
            tokens = as_tokens(name, strings, self.vocab_size, 2)
            if tokens.shape[1] == 0:
                return [b""] * len(tokens)
            packed = np.ascontiguousarray(tokens, dtype=self.dtype)
            return packed.view(f"V{packed.shape[1] * packed.itemsize}").ravel().tolist()
        return [s.astype(self.dtype).tobytes() for s in as_strings(name, strings, self.vocab_size)]

    def lengths(self, keys: Sequence[bytes]) -> Int[np.ndarray, "n"]:
        """Number of tokens of each packed string."""
        return np.fromiter(map(len, keys), dtype=np.int64, count=len(keys)) // self.dtype.itemsize

    def by_length(
        self, keys: Sequence[bytes]
    ) -> Iterator[tuple[Int[np.ndarray, "group"], Int[np.ndarray, "group length"]]]:
        """(positions, unpacked strings) for each distinct length, shortest first."""
        lengths = self.lengths(keys)
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            data = b"".join(keys if len(rows) == len(keys) else [keys[i] for i in rows.tolist()])
            tokens = np.frombuffer(data, dtype=self.dtype).astype(np.int64)
            yield rows, tokens.reshape(len(rows), int(length))

    def unpack(self, keys: Sequence[bytes]) -> np.ndarray | list[np.ndarray]:
        """Strings as the oracles' bulk operations take them: 2-D if of one length, else a ragged list."""
        groups = list(self.by_length(keys))
        if len(groups) == 1:
            return groups[0][1]
        strings = np.empty(len(keys), dtype=object)
        for rows, tokens in groups:
            for row, string in zip(rows.tolist(), tokens, strict=True):
                strings[row] = string
        return strings.tolist()

    def hashes(self, keys: Sequence[bytes], seed: int, purpose: str) -> UInt64[np.ndarray, "n"]:
        """Counter-generator keys of the strings: functions of (seed, purpose, tokens) alone."""
        out = np.empty(len(keys), dtype=np.uint64)
        for rows, tokens in self.by_length(keys):
            out[rows] = extend_keys(start_keys(len(rows), seed, purpose), tokens)
        return out
