"""One string for any oracle: ``hmm:n_states=4,vocab_size=6,horizon=12``, a file, a network model."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oracles.base import Oracle
from oracles.branching_program import BranchingProgram
from oracles.cauchy_separation import CauchySeparation
from oracles.errors import FormatError, SpecError
from oracles.hmm import HiddenMarkovModel
from oracles.isan import ISAN
from oracles.ngram import NGram
from oracles.noisy_copy import NoisyCopy
from oracles.noisy_parity import NoisyParity
from oracles.sparse_polynomial import SparsePolynomial
from oracles.storage import load

_BUNDLED = Path(__file__).parent / "bundled" / "stdlib_llama"
_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".npy", ".npz", ".ckpt", ".joblib")


@dataclass(frozen=True)
class Family:
    """One kind of synthetic model: how it is built, and the type of each parameter.

    Parameters not in `defaults` must be given. `seed` always goes to the builder's generator.
    """

    build: Callable[..., Oracle]
    parameters: Mapping[str, Callable[[str], Any]]
    defaults: Mapping[str, Any]


def open_oracle(spec: str) -> Oracle:
    """The oracle a specification string describes.

    - ``FAMILY:name=value,…`` a synthetic model: ``hmm``, ``isan``, ``parity``, ``polynomial``, ``copy``,
      ``cauchy``, ``branching``, ``ngram``; parameters are those of the class's ``random``, ``seed`` is 0
      unless given, and ``parity:secret=0110,noise=0.1`` fixes the secret;
    - ``hf:NAME_OR_PATH`` a Hugging Face causal language model, ``bundled`` the one that ships;
    - ``http://HOST/v1#MODEL`` an OpenAI-compatible completions server;
    - ``PATH.safetensors`` a model written by `save`. Pickles are refused.

    Raises SpecError on anything else, naming what is known, and the model's own errors on bad values.
    """
    if not isinstance(spec, str) or not spec.strip():
        raise SpecError(f"an oracle is given by a non-empty string, got {spec!r}: {_known()}")
    spec = spec.strip()
    head, colon, rest = spec.partition(":")
    if spec.startswith(("http://", "https://")):
        return _open_completions(spec)
    if spec.lower().endswith(_PICKLES):
        raise FormatError(f"{spec} may hold a pickle, which can run code: convert it to safetensors")
    if colon and head == "hf":
        return _open_transformer(rest)
    if spec == "bundled":
        return _open_bundled()
    if spec.endswith(".safetensors"):
        return load(spec)
    if head not in FAMILIES:
        raise SpecError(f"unknown oracle {spec!r}, known: {_known()}")
    return _build(head, rest)


def _build(name: str, text: str) -> Oracle:
    family = FAMILIES[name]
    texts = split_parameters(name, text, family.parameters)
    given = {key: _parse(key, value, family.parameters[key]) for key, value in texts.items()}
    missing = [key for key in family.parameters if key not in given and key not in family.defaults]
    if missing:
        raise SpecError(f"{name} needs {', '.join(missing)}: it knows {', '.join(family.parameters)}")
    return family.build(**{**family.defaults, **given})


def split_parameters(name: str, text: str, known: Iterable[str]) -> dict[str, str]:
    """``a=1,b=x`` as a dictionary of strings; SpecError lists the known parameters of `name`."""
    known = list(known)
    given: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not value:
            raise SpecError(f"{item!r} is not of the form name=value: {name} knows {', '.join(known)}")
        if key not in known:
            raise SpecError(f"unknown parameter {key!r}: {name} knows {', '.join(known)}")
        if key in given:
            raise SpecError(f"parameter {key!r} is given twice in {name}:{text}")
        given[key] = value
    return given


def _parse(key: str, value: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise SpecError(f"{key} must be {_KIND_NAMES[kind]}, got {value!r}") from None


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise ValueError(text)
    return text.lower() in ("true", "1")


def _bits(text: str) -> list[int]:
    if set(text) - set("01"):
        raise ValueError(text)
    return [int(character) for character in text]


_KIND_NAMES = {int: "an integer", float: "a number", _flag: "true or false", _bits: "bits such as 0110"}


def _hmm(seed: int, **parameters: Any) -> Oracle:
    return HiddenMarkovModel.random(**parameters, rng=seed)


def _isan(seed: int, **parameters: Any) -> Oracle:
    return ISAN.random(**parameters, rng=seed)


def _ngram(seed: int, **parameters: Any) -> Oracle:
    return NGram.random(**parameters, rng=seed)


def _polynomial(seed: int, **parameters: Any) -> Oracle:
    return SparsePolynomial.random(**parameters, rng=seed)


def _branching(seed: int, **parameters: Any) -> Oracle:
    return BranchingProgram.random(**parameters, rng=seed)


def _parity(n: int | None, secret: list[int] | None, noise: float, seed: int) -> Oracle:
    if secret is not None and n is not None and n != len(secret):
        raise SpecError(f"secret has {len(secret)} bits but n = {n}: give one of them")
    if secret is not None:
        return NoisyParity(secret, noise)  # type: ignore[arg-type]
    if n is None:
        raise SpecError("parity needs n (a random secret) or secret=0110")
    return NoisyParity.random(n, noise, seed)


#: Synthetic models by the name used in specifications.
FAMILIES: dict[str, Family] = {
    "hmm": Family(
        _hmm,
        {"n_states": int, "vocab_size": int, "horizon": int, "concentration": float, "seed": int},
        {"concentration": 1.0, "seed": 0},
    ),
    "isan": Family(
        _isan,
        {
            "width": int,
            "vocab_size": int,
            "horizon": int,
            "scale": float,
            "orthogonal": _flag,
            "seed": int,
        },
        {"scale": 1.0, "orthogonal": False, "seed": 0},
    ),
    "parity": Family(
        _parity,
        {"n": int, "secret": _bits, "noise": float, "seed": int},
        {"n": None, "secret": None, "noise": 0.1, "seed": 0},
    ),
    "polynomial": Family(
        _polynomial,
        {"n": int, "terms": int, "scale": float, "bias": float, "seed": int},
        {"scale": 1.0, "bias": 0.0, "seed": 0},
    ),
    "copy": Family(NoisyCopy, {"length": int, "vocab_size": int, "noise": float}, {"noise": 0.1}),
    "cauchy": Family(CauchySeparation, {"n": int}, {}),
    "branching": Family(
        _branching,
        {"n_bits": int, "n_copies": int, "scale": float, "horizon": int, "seed": int},
        {"scale": 1.0, "horizon": None, "seed": 0},
    ),
    "ngram": Family(
        _ngram,
        {"order": int, "vocab_size": int, "horizon": int, "concentration": float, "seed": int},
        {"concentration": 1.0, "seed": 0},
    ),
}


def _known() -> str:
    return (
        f"{', '.join(FAMILIES)} (FAMILY:name=value,…), hf:NAME, bundled, http://HOST#MODEL, PATH.safetensors"
    )


def _open_transformer(name: str) -> Oracle:
    if not name:
        raise SpecError("hf: needs a model name or a folder, such as hf:allenai/OLMo-1B-hf")
    return _optional("oracles.transformer").TransformerOracle.from_pretrained(name)


def _open_bundled() -> Oracle:
    if not (_BUNDLED / "config.json").is_file():
        raise SpecError(
            f"the bundled model is not in this installation (expected {_BUNDLED.name}/config.json)"
        )
    return _open_transformer(str(_BUNDLED))


def _open_completions(spec: str) -> Oracle:
    url, _, model = spec.partition("#")
    if not model:
        raise SpecError(f"{spec} names no model: write {url}#MODEL")
    return _optional("oracles.completions").CompletionsOracle(url, model)


def _optional(module: str) -> Any:
    """A module of this package that needs an extra; SpecError where this version has none."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise SpecError(f"{module} is not in this version: use another kind of oracle") from None
