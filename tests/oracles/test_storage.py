"""Files: every model comes back as it was; bad files are typed errors; nothing is ever unpickled."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
from safetensors.numpy import save_file

from oracles import HiddenMarkovModel, NGram, NoisyParity, SparsePolynomial, perturbed
from oracles.errors import FormatError, ParameterError, ProbabilityError
from oracles.storage import load, read_metadata, save, storable
from tests.registry import ORACLES, Unbounded

STORABLE = [name for name in ORACLES if not name.startswith(("conditioned", "unbounded"))]


@pytest.mark.parametrize("name", STORABLE)
def test_round_trip(name, tmp_path):
    model = ORACLES[name]()
    back = load(save(model, tmp_path / "model.safetensors"))
    assert type(back) is type(model)
    assert repr(back) == repr(model)
    assert (back.vocab_size, back.horizon) == (model.vocab_size, model.horizon)
    strings = np.random.default_rng(0).integers(0, model.vocab_size, (20, model.horizon))
    np.testing.assert_allclose(back.score(strings), model.score(strings), rtol=1e-13, atol=1e-13)
    np.testing.assert_array_equal(back.sample(5, 0), model.sample(5, 0))


def test_nested_models_lists_and_settings(tmp_path):
    model = perturbed(perturbed(NGram.random(3, 2, 4, 0), 0.1, 5), 0.2, 6)
    back = load(save(model, tmp_path / "deep" / "er" / "m.safetensors"))
    assert (back.scale, back.seed, back.oracle.scale, back.oracle.seed) == (0.2, 6, 0.1, 5)
    for stored, given in zip(back.oracle.oracle.laws, model.oracle.oracle.laws, strict=True):
        np.testing.assert_allclose(stored, given, rtol=1e-15)
    polynomial = SparsePolynomial(3, ((0, 1), (2,)), [1.0, 2.0], 0.5)
    back = load(save(polynomial, tmp_path / "p.safetensors"))
    assert (back.n, back.subsets, back.bias) == (3, ((0, 1), (2,)), 0.5)


def test_metadata_is_kept_and_files_are_replaced_whole(tmp_path):
    path = tmp_path / "m.safetensors"
    save(NoisyParity([1], 0.1), path, {"epochs": [1, 2], "note": "σ"})
    assert read_metadata(path) == {"epochs": [1, 2], "note": "σ"}
    save(NoisyParity([1, 1], 0.1), path)
    assert read_metadata(path) == {}
    assert load(path).horizon == 3
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_models_of_other_packages(tmp_path):
    @storable("test-unbounded")
    @dataclasses.dataclass(frozen=True, eq=False)
    class Mine(Unbounded):
        pass

    assert type(load(save(Mine(), tmp_path / "m.safetensors"))) is Mine
    for model in (Unbounded(), HiddenMarkovModel.random(2, 2, 3, 0).condition([0])):
        with pytest.raises(FormatError, match="@storable"):
            save(model, tmp_path / "n.safetensors")
    assert not (tmp_path / "n.safetensors").exists()


def record(**changes):
    model = {"kind": "noisy_parity", "settings": {"noise": 0.1}, "lists": {}, "models": {}}
    whole = {"format": "lrlm-sim", "version": 1, "model": model, "metadata": {}}
    whole.update({k: v for k, v in changes.items() if k in whole})
    model.update({k: v for k, v in changes.items() if k in model})
    return {"lrlm-sim": json.dumps(whole)}


@pytest.mark.parametrize(
    ("header", "error", "match"),
    [
        (None, FormatError, "without an lrlm-sim header"),
        ({"lrlm-sim": "null"}, FormatError, "without an lrlm-sim header"),
        ({"lrlm-sim": "{"}, FormatError, "not a safetensors file"),
        (record(format="other"), FormatError, "without an lrlm-sim header"),
        (record(version=2), FormatError, "version 2"),
        (record(kind="unheard-of"), FormatError, "unknown model kind 'unheard-of'"),
        (record(settings={}), FormatError, "misses"),
        (record(settings={"noise": 0.1, "extra": 1}), FormatError, "unknown fields"),
        (record(settings={"noise": 7}), ParameterError, "noise"),
        (record(model={}), FormatError, "incomplete"),
        (record(model=None), FormatError, "incomplete"),
    ],
)
def test_bad_headers(header, error, match, tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"secret": np.array([1, 0])}, path, metadata=header)
    with pytest.raises(error, match=match):
        load(path)


def test_good_header_written_by_hand(tmp_path):
    save_file({"secret": np.array([1, 0])}, tmp_path / "m.safetensors", metadata=record())
    assert load(tmp_path / "m.safetensors").horizon == 3


def test_pickles_truncated_and_missing_files_are_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was executed",))

    path = tmp_path / "m.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(FormatError, match="not a safetensors file"):
        load(path)
    save(HiddenMarkovModel.random(2, 2, 3, 0), path)
    whole = path.read_bytes()
    for cut in (0, 4, 20, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(FormatError):
            load(path)
    with pytest.raises(FormatError, match="no such file"):
        load(tmp_path / "absent.safetensors")
    with pytest.raises(FormatError, match="no such file"):
        load(tmp_path)


def test_constructor_checks_run_on_what_was_read(tmp_path):
    path = save(HiddenMarkovModel.random(2, 2, 3, 0), tmp_path / "m.safetensors")
    data = bytearray(path.read_bytes())
    data[-8:] = np.array([2.0]).tobytes()  # the last number of the last tensor
    path.write_bytes(bytes(data))
    with pytest.raises(ProbabilityError):
        load(path)
