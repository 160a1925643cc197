"""The models the studies measure, the text they are asked about, and logits from hidden states.

A study takes ``--model`` any number of times: the name of a model trained here, a Hugging Face folder
(``hf:PATH``), or a name on the Hub (``NAME`` or ``NAME@REVISION``, which needs a network); without it, all
models trained here. Text is the standard library of the running Python, most of which the trained models
were trained on, or what ``--text`` names.
"""

from __future__ import annotations

import argparse
import copy
import json
import pydoc_data.topics
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from transformers import AutoModelForCausalLM, set_seed

from lrlm_sim.corpus import encode, likely_tokens, read_text, standard_library_text, token_windows
from lrlm_sim.matrices import extended_logits
from oracles import bundled
from oracles.base import Oracle, State
from oracles.errors import FormatError
from oracles.transformer import TransformerOracle
from oracles.transformer_loading import load_tokenizer

CHECKPOINTS = Path(__file__).parent / "checkpoints"
_BUNDLED = Path(bundled.TRAINED.removeprefix("hf:"))
_LOCAL = {"trust_remote_code": False, "local_files_only": True}


@dataclass(frozen=True, eq=False)
class Subject:
    """A model under study: its checkpoints, as training step → folder or Hub name, the last one finished.

    A model that was not trained here has one checkpoint, of step −1. `heldout` are the losses its training
    reported, in nats per held-out token, by step. The tokenizer is the model's own, or that of
    `tokenizer_folder`.
    """

    name: str
    sources: dict[int, str]
    heldout: dict[int, float]
    revision: str | None = None
    tokenizer_folder: Path | None = None

    @property
    def final(self) -> int:
        """Step of the finished model."""
        return list(self.sources)[-1]

    @property
    def earlier(self) -> int | None:
        """Step of the last checkpoint before the end, None if there is none but step 0."""
        steps = [step for step in self.sources if 0 < step < self.final]
        return steps[-1] if steps else None

    @cached_property
    def model(self) -> TransformerOracle:
        """The finished model."""
        return self.load(self.final)

    def load(self, step: int) -> TransformerOracle:
        """A checkpoint, in float32 where it runs on the CPU."""
        model = TransformerOracle.from_pretrained(self.sources[step], revision=self.revision)
        if self.tokenizer_folder is not None:
            model.tokenizer = _tokenizer(self.tokenizer_folder)
        if model.tokenizer is None:
            raise FormatError(
                f"{self.name} comes without a tokenizer: save one beside it with save_pretrained"
            )
        return model

    def config(self) -> Any:
        """The configuration of transformers; `initializer_range` is the deviation of initial weights."""
        return copy.deepcopy(self.model.model.config)

    def untrained(self, scale: float, seed: int) -> TransformerOracle:
        """The network with fresh normal weights of deviation `scale` (what its class starts so)."""
        config = self.config()
        config.get_text_config().initializer_range = scale
        set_seed(seed)
        network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        return TransformerOracle(network, self.model.tokenizer)


def trained(name: str) -> Subject:
    """A model of ``studies.train_stdlib``."""
    folder = CHECKPOINTS / name
    report = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    rows = {row["step"]: row["heldout"]["nats_per_token"] for row in report["checkpoints"]}
    sources = {int(path.name.removeprefix("step_")): path for path in folder.glob("step_*")}
    if name == _BUNDLED.name:  # its first and last steps ship with the package
        sources |= {0: Path(bundled.INITIAL.removeprefix("hf:")), max(rows): _BUNDLED}
    return Subject(name, {s: str(sources[s]) for s in sorted(sources)}, rows, tokenizer_folder=_BUNDLED)


def names() -> list[str]:
    """Models of ``studies.train_stdlib`` whose training has ended, the bundled one first."""
    reports = {path.parent.name: json.loads(path.read_text("utf-8")) for path in _reports()}
    found = [name for name, report in reports.items() if "samples" in report]
    return sorted(found, key=lambda name: (name != _BUNDLED.name, name))


def _reports() -> list[Path]:
    return sorted(CHECKPOINTS.glob("*/training.json"))


def subject(spec: str) -> Subject:
    """The model of one ``--model``."""
    if spec in ("bundled", *names()):
        return trained(_BUNDLED.name if spec == "bundled" else spec)
    source, _, revision = spec.removeprefix("hf:").partition("@")
    label = Path(source).name + (f"@{revision}" if revision else "")
    return Subject(label, {-1: source}, {}, revision or None)


def add_options(parser: argparse.ArgumentParser) -> None:
    """``--model`` and ``--text``."""
    parser.add_argument("--model", action="append", help=f"{', '.join(names())}, hf:PATH or a Hub name")
    parser.add_argument(
        "--text", action="append", type=Path, help="file or folder in place of Python's library"
    )


def chosen(options: argparse.Namespace) -> list[Subject]:
    """The models asked for, all trained here if none is."""
    return [subject(spec) for spec in options.model or names()]


def text_of(options: argparse.Namespace, characters: int) -> tuple[str, str]:
    """The text asked about, and its name for manifests."""
    if options.text:
        return read_text(options.text)[:characters], ", ".join(path.name for path in options.text)
    return standard_library_text(characters), "standard library of the running Python"


def heldout_text() -> str:
    """The standard library's files that no model here was trained on (see `studies.train_stdlib`)."""
    report = json.loads((CHECKPOINTS / _BUNDLED.name / "training.json").read_text(encoding="utf-8"))
    files = [Path(sysconfig.get_path("stdlib")) / name for name in report["corpus"]["heldout_paths"]]
    return "\n".join(file.read_text(encoding="utf-8") for file in files if file.is_file())


def prose(characters: int) -> str:
    """English prose about Python: the language reference in ``pydoc_data``, left out of the training."""
    return "\n".join(pydoc_data.topics.topics.values())[:characters]


def text_windows(model: TransformerOracle, length: int, text: str) -> Int[np.ndarray, "windows length"]:
    """Consecutive windows of a text in the model's tokens."""
    return token_windows(_encoded(model.tokenizer, text, model.vocab_size), length)


@lru_cache(maxsize=16)
def _encoded(tokenizer: Any, text: str, vocab_size: int) -> Int[np.ndarray, "tokens"]:
    return encode(tokenizer, text, vocab_size)


@lru_cache(maxsize=4)
def _tokenizer(folder: Path) -> Any:
    return load_tokenizer(str(folder), folder, _LOCAL)


def same_tokens(first: TransformerOracle, second: TransformerOracle) -> bool:
    """Whether two models read and write the same tokens, so that their logits can be compared."""
    return first.tokenizer.get_vocab() == second.tokenizer.get_vocab()


def permuted(rows: Int[np.ndarray, "n length"], rng: int) -> Int[np.ndarray, "n length"]:
    """Each row's tokens in random order: nonsense of the same tokens."""
    return np.random.default_rng(rng).permuted(rows, axis=1)


def centred_unembedding(model: TransformerOracle) -> Float[np.ndarray, "vocab width"]:
    """W minus the mean of its rows: centred logits are hidden states times its transpose."""
    weights = model.unembedding()
    if weights is None:
        raise FormatError("this needs a plain linear output layer, which the model does not have")
    return weights - weights.mean(axis=0)


def kept_logits(
    hidden: Float[np.ndarray, "n_h n_f width"],
    centred: Float[np.ndarray, "vocab width"],
    tokens: Int[np.ndarray, "n_f k"],
) -> Float[np.ndarray, "n_h n_f k"]:
    """Centred logits of the tokens kept after each future: the mean is over all tokens, kept or not."""
    columns = centred[tokens].transpose(0, 2, 1)
    return np.ascontiguousarray((hidden.transpose(1, 0, 2) @ columns).transpose(1, 0, 2))


def likely_logits(
    model: TransformerOracle, histories: Sequence[Any] | np.ndarray, futures: np.ndarray, k: int
) -> Float[np.ndarray, "n_h n_f k"]:
    """Centred logits of the k likeliest tokens after each future."""
    tokens = likely_tokens(model, futures, k)
    if model.unembedding() is None:
        return extended_logits(model, histories, futures, tokens)
    return kept_logits(model.final_hidden_states(histories, futures), centred_unembedding(model), tokens)


class Delegate(Oracle):
    """A model as it is; subclasses remember some of its answers."""

    def __init__(self, model: Oracle) -> None:
        self.model, self.vocab_size, self.horizon = model, model.vocab_size, model.horizon

    def start(self, batch: int) -> State:
        return self.model.start(batch)

    def advance(self, state: State, tokens: ArrayLike) -> State:
        return self.model.advance(state, tokens)

    def log_probs(self, state: State) -> Float[np.ndarray, "batch vocab"]:
        return self.model.log_probs(state)

    def take(self, state: State, rows: ArrayLike) -> State:
        return self.model.take(state, rows)
