"""Loading Hugging Face models from safetensors: folders without network, names from the Hub."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import oracles.isan_torch  # noqa: F401  (registers exported ISANs with the Auto classes)
from oracles.checks import as_integer
from oracles.errors import FormatError, ParameterError

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
)


def choose_devices(
    device: str | torch.device | Sequence[str | torch.device] | None,
) -> list[torch.device]:
    """Usable devices: one, or several as a list or separated by commas."""
    if isinstance(device, str):
        device = [part.strip() for part in device.split(",")]
    elif device is None or isinstance(device, torch.device):
        return [choose_device(device)]
    if len(device) == 0:
        raise ParameterError("no device was given: name at least one, or None for the best there is")
    return [choose_device(each) for each in device]


def choose_device(device: str | torch.device | None) -> torch.device:
    """A usable device: None or "auto" takes CUDA, then MPS, then the CPU."""
    if device is None or device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError):
        raise ParameterError(f"device must be auto, cpu, cuda, cuda:0, mps, …, got {device!r}") from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ParameterError(
            f"device {device!r} was asked for, but torch sees no CUDA device: use device='cpu'"
        )
    return place


def choose_dtype(dtype: str | torch.dtype | None, place: torch.device) -> torch.dtype | Literal["auto"]:
    """A floating precision by name or dtype; None is the model's own on CUDA, float32 elsewhere."""
    if dtype is None:
        return "auto" if place.type == "cuda" else torch.float32
    for known in _DTYPES:
        if dtype in (known, str(known).removeprefix("torch.")):
            return known
    names = ", ".join(str(known).removeprefix("torch.") for known in _DTYPES)
    raise ParameterError(f"dtype must be one of {names}, got {dtype!r}")


def local_folder(name_or_path: str | os.PathLike[str]) -> Path | None:
    """The folder of a local model, checked; None for a name on the Hub."""
    path = Path(name_or_path).expanduser()
    if not path.is_dir():
        looks_local = not isinstance(name_or_path, str) or name_or_path.startswith((".", "/", "~"))
        if looks_local or path.exists() or str(name_or_path).count("/") > 1 or "\\" in str(name_or_path):
            raise FormatError(f"no such model folder: {path}")
        return None
    if not (path / "config.json").is_file():
        raise FormatError(f"{path} has no config.json: it is not a folder written by save_pretrained")
    if not any(path.glob("*.safetensors")):
        pickles = sorted(file.name for file in (*path.glob("*.bin"), *path.glob("*.pt*")))
        found = f"only {pickles[0]}, a pickle, which is refused" if pickles else "no weights"
        raise FormatError(
            f"{path} has {found}: convert it where you trust it, with model.save_pretrained(folder), "
            "which writes model.safetensors"
        )
    return path


def load_model(
    source: str, dtype: torch.dtype | Literal["auto"], place: torch.device, options: dict[str, Any]
) -> PreTrainedModel:
    """The causal language model, all of its weights read from safetensors; FormatError otherwise."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise FormatError(f"cannot load {source} as a causal language model: {error}") from error
    model, info = loaded
    if info["missing_keys"]:
        raise FormatError(
            f"{source} lacks weights of {type(model).__name__}: {sorted(info['missing_keys'])[:3]}"
        )
    return model.to(place)


def load_tokenizer(source: str, folder: Path | None, options: dict[str, Any]) -> Any:
    """The tokenizer, None if the model comes without one."""
    if folder is not None and not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError) as error:
        if folder is not None:
            raise FormatError(f"cannot read the tokenizer in {source}: {error}") from error
        return None


def hash_folder(folder: Path) -> str:
    """Hash of the configuration and of all safetensors files of a model folder."""
    digest = hashlib.sha256()
    for file in (folder / "config.json", *sorted(folder.glob("*.safetensors"))):
        with file.open("rb") as data:
            digest.update(hashlib.file_digest(data, "sha256").digest())
    return f"sha256-{digest.hexdigest()}"


def bos_token(
    model: PreTrainedModel, tokenizer: Any, chosen: int | Literal["none"] | None, vocab_size: int
) -> int | None:
    """The token of the empty history; numbers outside the vocabulary (class defaults) do not count."""
    if chosen == "none":
        return None
    if chosen is not None:
        return as_integer("bos_token_id", chosen, 0, vocab_size - 1)
    found = (
        getattr(place, "bos_token_id", None)
        for place in (model.config.get_text_config(), model.generation_config, tokenizer)
    )
    return next((token for token in found if isinstance(token, int) and 0 <= token < vocab_size), None)


def max_context(model: PreTrainedModel) -> int | None:
    """Most tokens that the model's positions are made for; None where it does not say."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None
