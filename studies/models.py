"""The trained models the studies measure, the text they are asked about, and logits from hidden states.

Text is the standard library of the running Python, most of which the bundled model was trained on.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from lrlm_sim.corpus import encode, standard_library_text, token_windows
from oracles.bundled import INITIAL, TRAINED
from oracles.transformer import TransformerOracle

#: Deviation of the weights of the bundled model before training; spectra at step 0 depend on it.
INITIAL_SCALE = 0.02
#: Updates of the finished bundled model.
FINAL_STEP = 6561
_CHECKPOINTS = Path(__file__).parent / "checkpoints" / "stdlib_llama"


def checkpoint_folders() -> dict[int, Path]:
    """Folder of the bundled model after each number of updates, step 0 and the last included."""
    folders = {0: Path(INITIAL.removeprefix("hf:")), FINAL_STEP: Path(TRAINED.removeprefix("hf:"))}
    for folder in _CHECKPOINTS.glob("step_*"):
        number = re.fullmatch(r"step_(\d+)", folder.name)
        if number:
            folders[int(number.group(1))] = folder
    return dict(sorted(folders.items()))


def checkpoint(step: int) -> TransformerOracle:
    """The bundled model after `step` updates, computed in float32 on the CPU."""
    return TransformerOracle.from_pretrained(checkpoint_folders()[step], device="cpu", dtype="float32")


def text_windows(
    model: TransformerOracle, length: int, characters: int = 600_000
) -> Int[np.ndarray, "windows length"]:
    """Consecutive windows of the standard library's source in the model's tokens."""
    tokens = encode(model.tokenizer, standard_library_text(characters), model.vocab_size)
    return token_windows(tokens, length)


def permuted(rows: Int[np.ndarray, "n length"], rng: int) -> Int[np.ndarray, "n length"]:
    """Each row's tokens in random order: nonsense of the same tokens."""
    return np.random.default_rng(rng).permuted(rows, axis=1)


def centred_unembedding(model: TransformerOracle) -> Float[np.ndarray, "vocab width"]:
    """W minus the mean of its rows: centred logits are hidden states times its transpose."""
    weights = model.unembedding()
    if weights is None:
        raise ValueError("the bundled models have a plain linear output layer")
    return weights - weights.mean(axis=0)


def kept_logits(
    hidden: Float[np.ndarray, "n_h n_f width"],
    centred: Float[np.ndarray, "vocab width"],
    tokens: Int[np.ndarray, "n_f k"],
) -> Float[np.ndarray, "n_h n_f k"]:
    """Centred logits of the tokens kept after each future: the mean is over all tokens, kept or not."""
    columns = centred[tokens].transpose(0, 2, 1)
    return np.ascontiguousarray((hidden.transpose(1, 0, 2) @ columns).transpose(1, 0, 2))
