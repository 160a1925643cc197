"""The package itself: public names, lazy ones, and what importing it brings along."""

import subprocess
import sys

import pytest

import oracles

HEAVY = ("torch", "transformers", "scipy", "matplotlib", "polars", "cvxpy", "highspy", "httpx", "pandas")


def test_every_public_name_is_there():
    for name in oracles.__all__:
        assert getattr(oracles, name) is not None
        assert name in dir(oracles)
    assert {"TransformerOracle", "CompletionsOracle"} <= set(dir(oracles))
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = oracles.Nonsense


def test_import_stays_light():
    """No heavy package is imported by `import oracles`, nor by a star import."""
    code = "import sys; from oracles import *; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & set(HEAVY)


def test_an_absent_module_makes_an_absent_attribute(monkeypatch):
    monkeypatch.setitem(oracles._LAZY, "CompletionsOracle", "oracles.no_such_module")
    with pytest.raises(AttributeError, match="not in this version"):
        _ = oracles.CompletionsOracle


def test_random_families_have_short_reprs():
    for spec in ("hmm:n_states=9,vocab_size=99,horizon=99", "isan:width=9,vocab_size=99,horizon=99"):
        assert len(repr(oracles.open_oracle(spec))) < 110
