"""Trained models that ship with the package, as specifications for `open_oracle`."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent

#: Small Llama trained on the Python standard library (see its README.md), and the same before training.
TRAINED = f"hf:{(_HERE / 'stdlib_llama').as_posix()}"
INITIAL = f"hf:{(_HERE / 'stdlib_llama_step0').as_posix()}"
