"""Models and token strings of the commands that measure real models: opened, named, read, drawn."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from lrlm_sim.corpus import dataset_text, encode, read_text, token_windows
from oracles import open_oracle
from oracles.base import Oracle
from oracles.bundled import TRAINED
from oracles.errors import ParameterError

#: Characters read for every token that is needed; half of all windows go to histories, half to futures.
_CHARACTERS = 64
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


def open_model(spec: str, dtype: str | None = None, device: str | None = None) -> Oracle:
    """`open_oracle`, with the precision and device of Hugging Face models where they are given."""
    if dtype is None and device is None:
        return open_oracle(spec)
    name = TRAINED if spec.strip() == "bundled" else spec.strip()
    if not name.startswith("hf:"):
        raise ParameterError(f"--dtype and --device are for bundled and hf:NAME models, got {spec}")
    from oracles.transformer import TransformerOracle

    return TransformerOracle.from_pretrained(name.removeprefix("hf:"), device=device, dtype=dtype)


def identity_of(spec: str, oracle: Oracle) -> str:
    """Text that names a model and its weights: its own, a file's hash, or a family with its parameters."""
    if oracle.identity is not None:
        return oracle.identity
    path = Path(spec.strip())
    if path.is_file():
        return f"sha256-{hashlib.sha256(path.read_bytes()).hexdigest()}"
    return spec.strip()


def short_name(spec: str) -> str:
    """An oracle string for titles: the end of a long path."""
    return spec if len(spec) <= 40 else f"…{spec[-39:]}"


def memory_bytes(text: str) -> int:
    """A number of bytes such as ``2GB``, ``512 MB`` or ``1e9`` (powers of 1000)."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?b?)\s*", text.lower())
    try:
        number, unit = (float(match[1]), match[2]) if match else (0.0, "")
    except ValueError:
        number, unit = 0.0, ""
    unit = unit if unit.endswith("b") or not unit else f"{unit}b"
    size = int(number * _UNITS.get("" if unit == "b" else unit, 0))
    if size < 1 << 20:
        raise ParameterError(f"memory must be a size of at least 1 MB, such as 2GB or 512MB, got {text!r}")
    return size


@dataclass(frozen=True)
class Source:
    """Where token strings come from: files or folders, a dataset, or (neither) the model's own samples."""

    texts: tuple[Path, ...] = ()
    dataset: str | None = None

    def read(self, tokens: int, seed: int) -> str | None:
        """Text for about so many tokens; None for samples."""
        if self.texts and self.dataset:
            raise ParameterError("give --text or --dataset, not both")
        limit = max(2_000_000, _CHARACTERS * tokens)
        if self.dataset:
            return dataset_text(self.dataset, limit)
        return read_text(self.texts, limit, seed) if self.texts else None


def windows_of(
    oracle: Oracle, text: str | None, length: int, n: int, seed: int
) -> Int[np.ndarray, "windows length"]:
    """Token windows of a text, or 4 n strings that the oracle itself draws."""
    if text is None:
        return oracle.sample(4 * n, seed, length=length)
    tokenizer = getattr(oracle, "tokenizer", None)
    if tokenizer is None:
        raise ParameterError(
            "this model has no tokenizer, so it cannot read text: give a folder with its tokenizer's files, "
            "or leave --text and --dataset out (the model's own samples)"
        )
    return token_windows(encode(tokenizer, text, oracle.vocab_size), length)


def check_one_tokenizer(first: Oracle, second: Oracle, names: Sequence[str]) -> None:
    """Raise ParameterError if two models do not number the same tokens alike."""
    if first.vocab_size != second.vocab_size:
        raise ParameterError(
            f"{names[0]} has {first.vocab_size} tokens and {names[1]} {second.vocab_size}: models are "
            "compared token by token, give two with one tokenizer"
        )
    tables = [getattr(getattr(model, "tokenizer", None), "get_vocab", dict)() for model in (first, second)]
    if all(tables) and tables[0] != tables[1]:
        raise ParameterError(
            f"{names[0]} and {names[1]} have different tokenizers: their tokens mean different texts, "
            "give two models with one tokenizer"
        )
