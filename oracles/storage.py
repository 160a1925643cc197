"""Saving and loading models: safetensors with a JSON header, versioned, never pickle.

A storable model is a frozen dataclass registered with `@storable("kind")`. Its constructor fields
are the file: arrays become tensors, tuples of arrays become numbered tensors, nested models become
prefixed tensors, and everything else goes into the JSON header. Packages that define models of
their own name the modules in the entry-point group ``lrlm_sim.models``, so that `load` finds them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors
from safetensors.numpy import save as serialize

from oracles.base import Oracle
from oracles.errors import FormatError

_FORMAT, _VERSION = "lrlm-sim", 1
_KINDS: dict[str, type[Oracle]] = {}
_Model = TypeVar("_Model", bound=type[Oracle])


def storable(kind: str) -> Callable[[_Model], _Model]:
    """Class decorator: register a frozen dataclass oracle under a stable name for `save` and `load`."""

    def register(model: _Model) -> _Model:
        _KINDS[kind] = model
        model.kind = kind  # type: ignore[attr-defined]
        return model

    return register


def save(model: Oracle, path: str | os.PathLike[str], metadata: dict[str, Any] | None = None) -> Path:
    """Write a model to one safetensors file, atomically; `metadata` is any JSON value kept beside it."""
    tensors: dict[str, np.ndarray] = {}
    header = _pack(model, "", tensors)
    record = {"format": _FORMAT, "version": _VERSION, "model": header, "metadata": metadata or {}}
    target = Path(path)
    data = serialize(tensors, {"lrlm-sim": json.dumps(record, sort_keys=True)})
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
        file.write(data)
    os.replace(file.name, target)
    return target


def load(path: str | os.PathLike[str]) -> Oracle:
    """Read a model written by `save`; every constructor check runs again on what was read."""
    record, tensors = _read(Path(path))
    return _unpack(record["model"], "", tensors)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The `metadata` given to `save`."""
    return _read(Path(path))[0]["metadata"]


def _pack(model: Oracle, prefix: str, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    kind = getattr(type(model), "kind", None)
    if kind is None or not dataclasses.is_dataclass(model):
        raise FormatError(
            f"{type(model).__name__} cannot be saved: make it a frozen dataclass with @storable(kind)"
        )
    header: dict[str, Any] = {"kind": kind, "settings": {}, "lists": {}, "models": {}}
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        if not field.init:
            continue
        if isinstance(value, np.ndarray):
            tensors[prefix + field.name] = np.ascontiguousarray(value)
        elif isinstance(value, tuple) and value and isinstance(value[0], np.ndarray):
            header["lists"][field.name] = len(value)
            for i, array in enumerate(value):
                tensors[f"{prefix}{field.name}.{i}"] = np.ascontiguousarray(array)
        elif isinstance(value, Oracle):
            header["models"][field.name] = _pack(value, f"{prefix}{field.name}/", tensors)
        else:
            header["settings"][field.name] = value
    return header


def _unpack(header: dict[str, Any], prefix: str, tensors: dict[str, np.ndarray]) -> Oracle:
    try:
        kind, settings = header["kind"], dict(header["settings"])
        lists, models = header["lists"], header["models"]
    except (KeyError, TypeError) as error:
        raise FormatError(f"the model header is incomplete: {error}") from None
    model = _model_class(kind)
    names = {f.name for f in dataclasses.fields(model) if f.init}  # type: ignore[arg-type]
    for name in names & {key.removeprefix(prefix) for key in tensors}:
        settings[name] = tensors[prefix + name]
    for name, count in lists.items():
        settings[name] = tuple(tensors[f"{prefix}{name}.{i}"] for i in range(count))
    for name, nested in models.items():
        settings[name] = _unpack(nested, f"{prefix}{name}/", tensors)
    unknown, missing = settings.keys() - names, names - settings.keys()
    if unknown or missing:
        raise FormatError(f"{kind} file has unknown fields {sorted(unknown)}, misses {sorted(missing)}")
    return model(**settings)


def _model_class(kind: str) -> type[Oracle]:
    if kind not in _KINDS:
        for entry in entry_points(group="lrlm_sim.models"):
            entry.load()
    if kind not in _KINDS:
        raise FormatError(f"unknown model kind {kind!r}, known: {', '.join(sorted(_KINDS))}")
    return _KINDS[kind]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if not path.is_file():
        raise FormatError(f"no such file: {path}")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            record = json.loads((file.metadata() or {}).get("lrlm-sim", "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, ValueError) as error:
        raise FormatError(
            f"{path} is not a safetensors file ({error}): write it with lrlm_sim.save, pickles are refused"
        ) from None
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise FormatError(f"{path} is a safetensors file without an lrlm-sim header")
    if record.get("version") != _VERSION:
        raise FormatError(f"{path} has version {record.get('version')}, this release reads {_VERSION}")
    return record, tensors
