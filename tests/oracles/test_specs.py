"""Specification strings: what they build, and what a mistake is told."""

import sys
import types

import numpy as np
import pytest

from oracles import (
    ISAN,
    BranchingProgram,
    HiddenMarkovModel,
    NGram,
    NoisyParity,
    SparsePolynomial,
    open_oracle,
    specs,
)
from oracles.errors import FormatError, LrlmError, ParameterError, SpecError
from oracles.storage import save


@pytest.mark.parametrize(
    ("spec", "model"),
    [
        ("hmm:n_states=4,vocab_size=6,horizon=12,seed=0", HiddenMarkovModel.random(4, 6, 12, 0)),
        (" hmm: n_states = 4 , vocab_size=6,horizon=12 ", HiddenMarkovModel.random(4, 6, 12, 0)),
        ("hmm:n_states=2,vocab_size=2,horizon=3,concentration=.5", HiddenMarkovModel.random(2, 2, 3, 0, 0.5)),
        ("isan:width=3,vocab_size=2,horizon=5,seed=1,scale=2", ISAN.random(3, 2, 5, 1, 2.0)),
        ("isan:width=3,vocab_size=2,horizon=5,orthogonal=true", ISAN.random(3, 2, 5, 0, orthogonal=True)),
        ("parity:n=6,noise=0.2,seed=3", NoisyParity.random(6, 0.2, 3)),
        ("parity:secret=0110,noise=0.1", NoisyParity([0, 1, 1, 0], 0.1)),
        ("parity:n=4,secret=0110", NoisyParity([0, 1, 1, 0], 0.1)),
        ("polynomial:n=5,terms=3,bias=0.5,seed=2", SparsePolynomial.random(5, 3, 2, bias=0.5)),
        ("branching:n_bits=2,n_copies=3,scale=0.5,seed=1", BranchingProgram.random(2, 3, 0.5, rng=1)),
        ("ngram:order=2,vocab_size=3,horizon=4,seed=7", NGram.random(2, 3, 4, 7)),
    ],
)
def test_synthetic_models(spec, model):
    opened = open_oracle(spec)
    assert repr(opened) == repr(model)
    np.testing.assert_array_equal(opened.sample(20, 0), model.sample(20, 0))
    strings = model.sample(10, 1)
    np.testing.assert_array_equal(opened.score(strings), model.score(strings))


def test_models_without_randomness():
    assert repr(open_oracle("copy:length=3,vocab_size=4")) == "NoisyCopy(length=3, vocab_size=4, noise=0.1)"
    assert repr(open_oracle("cauchy:n=5")) == "CauchySeparation(n=5)"


def test_every_family_opens_with_its_required_parameters_only():
    small = {"horizon": 5, "n_copies": 2, "terms": 2}
    for name, family in specs.FAMILIES.items():
        required = [key for key in family.parameters if key not in family.defaults]
        text = ",".join(f"{key}={small.get(key, 3)}" for key in required) or "n=3"
        assert open_oracle(f"{name}:{text}").vocab_size >= 2


def test_files(tmp_path):
    path = save(NoisyParity([1, 0], 0.1), tmp_path / "a:b,c=1.safetensors")
    assert open_oracle(str(path)).horizon == 3
    with pytest.raises(FormatError, match="no such file"):
        open_oracle(str(tmp_path / "absent.safetensors"))


@pytest.mark.parametrize(
    "suffix", [".pt", ".pth", ".bin", ".pkl", ".pickle", ".npy", ".npz", ".CKPT", ".joblib"]
)
def test_pickles_are_refused_whether_or_not_they_exist(suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    for spec in (str(path), f"hf:{path}"):
        with pytest.raises(FormatError, match="pickle"):
            open_oracle(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "non-empty string"),
        ("  ", "non-empty string"),
        (None, "non-empty string"),
        ("hm:n_states=2", "unknown oracle 'hm:n_states=2', known: hmm, isan, parity"),
        ("some/folder", "unknown oracle"),
        ("hmm", "hmm needs n_states, vocab_size, horizon"),
        ("hmm:n_states=2,horizon=3", "hmm needs vocab_size"),
        ("hmm:states=2", "unknown parameter 'states': hmm knows n_states, vocab_size"),
        ("hmm:n_states", "'n_states' is not of the form name=value"),
        ("hmm:n_states=", "is not of the form name=value"),
        ("hmm:n_states=2.5", "n_states must be an integer, got '2.5'"),
        ("hmm:n_states=2,n_states=3", "'n_states' is given twice"),
        ("isan:width=2,vocab_size=2,horizon=2,orthogonal=maybe", "orthogonal must be true or false"),
        ("parity:noise=0.1", "parity needs n"),
        ("parity:secret=012", "secret must be bits such as 0110"),
        ("parity:secret=01,n=3", "secret has 2 bits but n = 3"),
        ("parity:n=3,noise=high", "noise must be a number"),
        ("hf:", "hf: needs a model name"),
        ("http://localhost:1/v1", "names no model"),
        ("https://localhost:1/v1#", "names no model"),
    ],
)
def test_mistakes_are_told_in_one_line(spec, message):
    with pytest.raises(SpecError) as caught:
        open_oracle(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_out_of_range_are_the_models_own_errors():
    for spec in (
        "hmm:n_states=0,vocab_size=2,horizon=3",
        "parity:n=3,noise=2",
        "cauchy:n=0",
        "copy:length=1,vocab_size=0",
    ):
        with pytest.raises(ParameterError):
            open_oracle(spec)
    with pytest.raises(LrlmError):
        open_oracle("hmm:n_states=2,vocab_size=2,horizon=3,concentration=nan")


def stand_in(monkeypatch, name, **contents):
    """A stand-in for a module that needs optional packages."""
    module = types.ModuleType(name)
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)


def test_transformers_and_servers_are_opened_by_their_modules(monkeypatch, tmp_path):
    class Transformer:
        @staticmethod
        def from_pretrained(name):
            return ("transformer", name)

    stand_in(monkeypatch, "oracles.transformer", TransformerOracle=Transformer)
    stand_in(monkeypatch, "oracles.completions", CompletionsOracle=lambda url, model: ("server", url, model))
    assert open_oracle("hf:owner/name") == ("transformer", "owner/name")
    assert open_oracle("http://localhost:8000/v1#m/7b") == ("server", "http://localhost:8000/v1", "m/7b")
    assert open_oracle("https://host/v1#m") == ("server", "https://host/v1", "m")
    monkeypatch.setattr(specs, "_BUNDLED", tmp_path)
    with pytest.raises(SpecError, match="bundled model is not in this installation"):
        open_oracle("bundled")
    (tmp_path / "config.json").write_text("{}")
    assert open_oracle("bundled") == ("transformer", str(tmp_path))


def test_a_module_that_is_not_in_this_version_says_so(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name, name=name)

    monkeypatch.setattr(specs.importlib, "import_module", absent)
    with pytest.raises(SpecError, match="not in this version"):
        open_oracle("http://localhost/v1#m")
