"""Several replicas of a model answer as one does."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from oracles.errors import ParameterError
from oracles.transformer import TransformerOracle
from oracles.transformer_loading import choose_devices
from oracles.transformer_network import CachedNetwork
from tests.oracles.tiny_transformers import tiny_model


def test_questions_are_dealt_out_among_replicas(monkeypatch):
    one = TransformerOracle(tiny_model("llama"))
    several = TransformerOracle(tiny_model("llama"), replicas=[tiny_model("llama"), tiny_model("llama")])
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, 50, n).tolist() for n in (5, 0, 3, 5, 9)]
    futures = [[], *rng.integers(0, 50, (4, 3)).tolist()]
    asked, forward = {}, CachedNetwork._forward

    def count(self, tokens, *rest):
        asked.setdefault(id(self), set()).add(threading.get_ident())
        return forward(self, tokens, *rest)

    monkeypatch.setattr(CachedNetwork, "_forward", count)
    found = several.extended_log_probs(histories, futures)
    assert len(asked) == 3
    assert np.abs(found - one.extended_log_probs(histories, futures)).max() <= 1e-4
    strings = [[*h, *f] for h in histories for f in futures]
    assert np.abs(several.next_log_probs(strings) - one.next_log_probs(strings)).max() <= 1e-4
    sequences = rng.integers(0, 50, (7, 6))
    assert np.abs(several.score(sequences, [1, 2]) - one.score(sequences, [1, 2])).max() <= 1e-4
    states = [each.final_hidden_states(histories, futures) for each in (one, several)]
    assert np.abs(states[0] - states[1]).max() <= 1e-4
    assert several.next_log_probs([[3]]).shape == (1, 50)  # fewer questions than replicas


def test_a_model_is_loaded_once_for_every_device(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    oracle = TransformerOracle.from_pretrained(tmp_path, device="cpu,cpu")
    assert len(oracle._readers) == 2
    assert oracle._readers[0].network.model is not oracle._readers[1].network.model


def test_devices():
    assert [str(d) for d in choose_devices("cpu, cpu")] == ["cpu", "cpu"]
    assert [str(d) for d in choose_devices(["cpu"])] == ["cpu"]
    assert len(choose_devices(None)) == 1
    with pytest.raises(ParameterError, match="no device"):
        choose_devices([])
    with pytest.raises(ParameterError, match="device must be"):
        choose_devices("cpu,nonsense")
