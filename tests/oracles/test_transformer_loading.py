"""TransformerOracle from folders: what is loaded, what is refused, and without a network."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

from oracles.errors import (
    FormatError,
    MissingDependencyError,
    ParameterError,
)
from oracles.transformer import TransformerOracle
from tests.oracles.tiny_transformers import VOCAB, tiny_model, tiny_tokenizer


@pytest.fixture
def without_network(monkeypatch):
    """Any attempt to reach a network is an error of its own."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was touched")

    for name in ("socket", "getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)


@pytest.mark.usefixtures("without_network")
def test_folders_load_without_network(tmp_path, folders):
    oracle = TransformerOracle.from_pretrained(str(folders["mamba"]), device="auto")
    assert oracle.tokenizer is None
    assert oracle.vocab_size == VOCAB
    tiny_model("llama").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    oracle = TransformerOracle.from_pretrained(tmp_path, device="cpu", horizon=9, bos_token_id=2)
    assert oracle.tokenizer("the cat sat", add_special_tokens=False)["input_ids"] == [1, 2, 4]
    assert (oracle.horizon, oracle.bos_token_id) == (9, 2)
    assert len(oracle.tokenizer) < oracle.vocab_size  # a padded output layer: all of it is the law
    assert np.exp(oracle.next_log_probs([[1, 2]])).sum() == pytest.approx(1, abs=1e-12)


def test_pickles_are_refused(tmp_path, folders):
    shutil.copy(folders["llama"] / "config.json", tmp_path)
    with pytest.raises(FormatError, match="no weights"):
        TransformerOracle.from_pretrained(tmp_path)
    torch.save(tiny_model("llama").state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(FormatError, match=r"pytorch_model.bin.*save_pretrained"):
        TransformerOracle.from_pretrained(tmp_path)


@pytest.mark.usefixtures("without_network")
def test_folders_that_are_not_models(tmp_path, folders):
    with pytest.raises(FormatError, match="no such model folder"):
        TransformerOracle.from_pretrained(tmp_path / "nothing")
    with pytest.raises(FormatError, match="no such model folder"):
        TransformerOracle.from_pretrained("./nothing/here")
    with pytest.raises(FormatError, match="no config"):
        TransformerOracle.from_pretrained(tmp_path)
    shutil.copy(folders["llama"] / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nonsense" * 9)
    with pytest.raises(FormatError, match="cannot load"):
        TransformerOracle.from_pretrained(tmp_path)


def test_code_that_comes_with_a_model_is_not_run(tmp_path, folders):
    shutil.copytree(folders["llama"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "own.py").write_text("raise SystemExit('ran')\n")
    config = json.loads((tmp_path / "config.json").read_text())
    names = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": names}))
    with pytest.raises(FormatError, match="cannot load"):
        TransformerOracle.from_pretrained(tmp_path)


@pytest.mark.parametrize("local", [True, False])
def test_nothing_unsafe_is_asked_of_the_library(monkeypatch, folders, local):
    asked = {}

    def record(_: str, **options: object) -> None:
        asked.update(options)
        raise OSError("nothing here")

    monkeypatch.setattr("oracles.transformer_loading.AutoModelForCausalLM.from_pretrained", record)
    with pytest.raises(FormatError, match="nothing here"):
        TransformerOracle.from_pretrained(folders["llama"] if local else "some/model", "cpu", revision="v1")
    assert asked["use_safetensors"] is True
    assert asked["trust_remote_code"] is False
    assert asked["local_files_only"] is local
    assert (asked["revision"], asked["dtype"]) == ("v1", torch.float32)


def test_missing_weights_are_an_error(tmp_path):
    model = tiny_model("llama")
    weights = model.state_dict()
    del weights["model.layers.1.mlp.up_proj.weight"]
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(FormatError, match="up_proj"):
        TransformerOracle.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "abacus"}, "device"),
        ({"dtype": "int8"}, "float16, bfloat16, float32, float64"),
        ({"dtype": torch.int64}, "dtype"),
        ({"block_tokens": 0}, "block_tokens"),
        ({"horizon": 0}, "horizon"),
    ],
)
def test_wrong_options(folders, options, message):
    with pytest.raises(ParameterError, match=message):
        TransformerOracle.from_pretrained(folders["llama"], **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_without_a_device(folders):
    with pytest.raises(ParameterError, match="device='cpu'"):
        TransformerOracle.from_pretrained(folders["llama"], device="cuda")


def test_identity_names_weights_precision_and_bos(tmp_path, folders):
    shutil.copytree(folders["llama"], tmp_path / "copy")
    tiny_model("llama", seed=1).save_pretrained(tmp_path / "other")
    first = TransformerOracle.from_pretrained(folders["llama"], "cpu").identity
    assert TransformerOracle.from_pretrained(tmp_path / "copy", "cpu").identity == first
    assert "float32" in first
    others = {
        TransformerOracle.from_pretrained(tmp_path / "other", "cpu").identity,
        TransformerOracle.from_pretrained(folders["llama"], "cpu", "float64").identity,
        TransformerOracle.from_pretrained(folders["llama"], "cpu", bos_token_id=5).identity,
        first,
    }
    assert len(others) == 4
    model = tiny_model("llama")
    assert TransformerOracle(model).identity is None
    assert "mine" in TransformerOracle(model, identity="mine").identity


def test_torch_is_optional():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from oracles.errors import MissingDependencyError\n"
        "try:\n    import oracles.transformer\n"
        "except MissingDependencyError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "lrlm-sim[transformers]" in done.stdout
    assert issubclass(MissingDependencyError, ImportError)
