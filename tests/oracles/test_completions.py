"""CompletionsOracle against a real server on the loopback, healthy, limited and faulty."""

from __future__ import annotations

import gc
import importlib
import logging
import sys

import numpy as np
import pytest

import oracles
from lrlm_sim.testing import check_oracle
from oracles import HiddenMarkovModel, open_oracle
from oracles.access import ConditionalProbabilityAccess
from oracles.base import Oracle
from oracles.completions import (
    CapabilityError,
    CompletionsOracle,
    RefusedError,
    ServerError,
)
from oracles.errors import (
    HorizonError,
    MissingDependencyError,
    ParameterError,
    ProbabilityError,
    ShapeError,
)
from tests.oracles.completions_helpers import HISTORIES, A, T, client, hmm, zeros_model
from tests.oracles.completions_server import Fault, Limits, serving

# The contract


@pytest.mark.parametrize("model", [hmm(horizon=T + 1), zeros_model()], ids=["hmm", "zeros"])
@pytest.mark.parametrize(
    "limits",
    [Limits(), Limits(echo=False), Limits(zero_tokens=False), Limits(counts=False, clamps=True)],
    ids=["all", "laws", "one token", "clamps"],
)
def test_the_contract(model, limits):
    with serving(model, limits) as server, client(server, store=True, horizon=T) as oracle:
        assert oracle.vocab_size == A
        assert oracle.abilities.prompt_log_probs == limits.echo
        check_oracle(oracle, samples=500)


def test_the_contract_of_laws_put_together_from_prompts():
    """No law at once, but prompts are scored: one request per token."""
    with (
        serving(zeros_model(), Limits(top=1, counts=False)) as server,
        client(server, vocab_size=A, law_by_token=True, store=True, horizon=T) as oracle,
    ):
        assert not oracle.abilities.laws
        check_oracle(oracle.condition([2]), samples=500)
        with pytest.raises(ParameterError, match="bos_token_id"):
            oracle.next_log_probs([[]])
        with pytest.raises(ParameterError, match="bos_token_id"):
            oracle.score([[0, 1]])


@pytest.mark.parametrize("limits", [Limits(), Limits(echo=False), Limits(top=1)], ids=["all", "laws", "echo"])
def test_a_bos_token_stands_before_every_history(limits):
    class Tokenizer:
        bos_token_id = 1

    model = hmm(horizon=T + 1)
    behind = model.condition([1])
    with serving(model, limits) as server:
        for options in ({"bos_token_id": 1}, {"tokenizer": Tokenizer()}):
            with client(server, vocab_size=A, law_by_token=True, horizon=T, store=True, **options) as oracle:
                assert (oracle.bos_token_id, oracle.tokenizer) == (1, options.get("tokenizer"))
                strings = behind.sample(10, 0)
                np.testing.assert_allclose(oracle.score(strings), behind.score(strings), rtol=1e-12)
                laws = behind.next_log_probs([[], *HISTORIES])
                np.testing.assert_allclose(oracle.next_log_probs([[], *HISTORIES]), laws, rtol=1e-12)
        with client(server, vocab_size=A, law_by_token=True, bos_token_id="none") as oracle:
            np.testing.assert_allclose(oracle.score([[0, 1]], [2]), model.score([[0, 1]], [2]), rtol=1e-12)


@pytest.mark.parametrize("limits", [Limits(), Limits(echo=False)], ids=["all", "laws"])
def test_answers_are_those_of_the_model(limits):
    model = hmm(5, 6, 1)
    with serving(model, limits) as server, client(server) as oracle:
        histories = [[], [4], [0, 1, 2], [3, 3, 3, 3, 3]]
        np.testing.assert_allclose(
            oracle.next_log_probs(histories), model.next_log_probs(histories), rtol=1e-12
        )
        grid = histories[:3], [[], [1, 0], [2]]
        np.testing.assert_allclose(
            oracle.extended_log_probs(*grid), model.extended_log_probs(*grid), rtol=1e-12
        )
        for history in ([], [1], [4, 0, 2]):
            for length in range(6 - len(history) + 1):
                strings = model.sample(4, 0, history, length)
                np.testing.assert_allclose(
                    oracle.score(strings, history), model.score(strings, history), rtol=1e-12, atol=1e-15
                )
        np.testing.assert_array_equal(oracle.sample(20, 7), Oracle.sample(model, 20, 7))
        assert oracle.identity == f"{server.url}#m"
        with pytest.raises(HorizonError):
            oracle.next_log_probs([[0] * 6])


def test_float32_laws_are_normalised():
    class Single(HiddenMarkovModel):
        def laws(self, position, rows):
            return super().laws(position, rows).astype(np.float32).astype(np.float64)

        def next_log_probs(self, histories):
            return np.round(super().next_log_probs(histories), 4)

    with serving(Single.random(3, A, T, 0)) as server, client(server) as oracle:
        laws = oracle.next_log_probs(HISTORIES)
        np.testing.assert_allclose(np.exp(laws).sum(axis=1), 1, rtol=1e-14)
        np.testing.assert_allclose(laws, hmm().next_log_probs(HISTORIES), atol=3e-4)


def test_by_specification_string_and_through_an_access():
    with serving(hmm()) as server:
        oracle = open_oracle(f"{server.url}#m")
        assert isinstance(oracle, oracles.CompletionsOracle)
        assert (oracle.vocab_size, oracle.horizon) == (A, None)
        assert (
            repr(oracle)
            == f"CompletionsOracle('{server.url}', 'm', vocab_size=3, horizon=None, bos_token_id=None)"
        )
        access = ConditionalProbabilityAccess(oracle)
        answer = access.log_probs([[0], [1]], [[2, 1], [0, 0]])
        expected = [[float(hmm().score([f], h)[0]) for f in ([2, 1], [0, 0])] for h in ([0], [1])]
        np.testing.assert_allclose(answer, expected, rtol=1e-12)
        assert all(body["model"] == "m" for body in server.bodies)
        assert all(isinstance(token, int) for body in server.bodies for token in body["prompt"])
        del oracle, access
        gc.collect()  # closes the connections: a socket left open would be a warning, hence an error


def test_a_trained_transformer_behind_a_server():
    model = open_oracle("bundled")
    with serving(model) as server, client(server, bos_token_id=None, horizon=None) as oracle:
        histories = [[5, 9], [40, 2, 7]]
        assert oracle.vocab_size == model.vocab_size
        np.testing.assert_allclose(
            oracle.next_log_probs(histories), model.next_log_probs(histories), atol=1e-4
        )
        strings = [[1, 2, 3], [30, 20, 10]]
        np.testing.assert_allclose(oracle.score(strings, [4]), model.score(strings, [4]), atol=1e-3)


# What a server must be able to do


@pytest.mark.parametrize("vocab_size", [2, 4, 7])
def test_a_wrong_vocabulary_size_is_named_with_the_right_one(vocab_size):
    for limits in (Limits(), Limits(echo=False), Limits(counts=False, clamps=True)):
        with (
            serving(hmm(), limits) as server,
            pytest.raises(ParameterError, match=f"= {vocab_size} .* has 3"),
        ):
            client(server, vocab_size=vocab_size)


@pytest.mark.parametrize("vocab_size", [None, 9])
@pytest.mark.parametrize("clamps", [False, True])
def test_top_5_only_is_refused_at_once(vocab_size, clamps):
    limits = Limits(top=5, echo=False, counts=False, clamps=clamps)
    with serving(hmm(9), limits) as server:
        with pytest.raises(CapabilityError, match=r"5 most likely .* samples and top-k .*--max-logprobs -1"):
            client(server, vocab_size=vocab_size)
        assert len(server.bodies) <= 8


def test_a_server_without_log_probabilities_is_good_for_samples():
    with (
        serving(hmm(), Limits(logprobs=False)) as server,
        pytest.raises(CapabilityError, match="samples only"),
    ):
        client(server)


def test_a_server_that_scores_prompts_only_is_taken_on_request():
    with serving(hmm(), Limits(top=1)) as server:
        for options in ({}, {"vocab_size": A}, {"law_by_token": True}):
            with pytest.raises(CapabilityError, match=r"scores strings .* vocab_size= and law_by_token=True"):
                client(server, **options)
        with client(server, vocab_size=A, law_by_token=True) as oracle:
            np.testing.assert_allclose(oracle.score([[0, 1]], [2]), hmm().score([[0, 1]], [2]))
        for wrong in (A - 1, A + 1):
            oracle = client(server, vocab_size=wrong, law_by_token=True)
            with oracle, pytest.raises((ProbabilityError, RefusedError)):
                oracle.next_log_probs([[0]])


def test_a_server_that_changes_its_laws_is_not_trusted():
    limits = Limits(temperature=0.5)
    with serving(hmm(), limits) as server, pytest.raises(CapabilityError, match="neither can be trusted"):
        client(server)


def test_tokens_named_by_their_text():
    texts = ("a", "b", "token_id:b")
    with serving(hmm(), Limits(texts=texts)) as server:
        with pytest.raises(CapabilityError, match="--return-tokens-as-token-ids"):
            client(server)
        with client(server, vocabulary=texts) as oracle:
            np.testing.assert_allclose(
                oracle.next_log_probs(HISTORIES), hmm().next_log_probs(HISTORIES), rtol=1e-12
            )
            np.testing.assert_allclose(oracle.score([[0, 1, 2]]), hmm().score([[0, 1, 2]]), rtol=1e-12)
        with pytest.raises(CapabilityError, match="not in vocabulary"):
            client(server, vocabulary=("a", "b", "x"))
        with pytest.raises(ParameterError, match="repeated texts"):
            client(server, vocabulary=("a", "b", "b"))
        with pytest.raises(ShapeError, match="vocabulary"):
            client(server, vocabulary="abc")


def test_a_server_without_empty_prompts_has_no_law_of_the_empty_history():
    with serving(hmm(), Limits(empty=False)) as server, client(server) as oracle:
        check_oracle(oracle.condition([0]), samples=0)
        for call in (lambda: oracle.next_log_probs([[]]), lambda: oracle.score([[0]])):
            with pytest.raises(ParameterError, match="bos_token_id"):
                call()


# The key


def test_the_key_goes_into_the_header_and_nowhere_else(tmp_path, monkeypatch, caplog, capfd):
    key = "sk-very-secret-0123456789"
    caplog.set_level(logging.DEBUG)
    with serving(hmm(), Limits(key=key)) as server:
        monkeypatch.setenv("SOME_KEY", key)
        with client(server, api_key_env="SOME_KEY", store=tmp_path / "answers.db") as oracle:
            oracle.next_log_probs(HISTORIES)
            server.faults.append(Fault(status=400, message=f"bad {key}"))
            with pytest.raises(RefusedError) as caught:
                oracle.next_log_probs([[1]])
            assert "bad [key]" in str(caught.value)
            texts = [
                repr(caught.value),
                repr(oracle),
                repr(oracle._client),
                str(vars(oracle)),
                oracle.identity,
            ]
            server.faults.extend([Fault(status=500, message=f"bad {key}")] * 3)
            with pytest.raises(ServerError) as failed:
                oracle.next_log_probs([[1]])
            texts.append(repr(failed.value))
        monkeypatch.setenv("SOME_KEY", key + "x")
        with pytest.raises(RefusedError, match=r"401.*api_key_env") as caught:
            client(server, api_key_env="SOME_KEY")
        assert key not in str(caught.value)
    assert all(key not in text for text in texts)
    assert key not in caplog.text
    assert not any(key in text for text in capfd.readouterr())
    assert not any(key.encode() in file.read_bytes() for file in tmp_path.iterdir())


def test_where_the_key_comes_from(monkeypatch):
    monkeypatch.delenv("LRLM_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "of-another-service")
    with serving(hmm()) as server:
        with client(server):
            assert "Authorization" not in server.headers[-1]
        monkeypatch.setenv("LRLM_API_KEY", " k \n")
        with client(server):
            assert server.headers[-1]["Authorization"] == "Bearer k"
        with pytest.raises(ParameterError, match="NO_SUCH_KEY"):
            client(server, api_key_env="NO_SUCH_KEY")
        for bad in ("two words", "new\nline", "ключ"):
            monkeypatch.setenv("LRLM_API_KEY", bad)
            with pytest.raises(ParameterError, match="LRLM_API_KEY") as caught:
                client(server)
            assert bad not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "ftp://host/v1",
        "http://",
        None,
        "http://u:secret@host/v1",
        "http://h/v1?k=secret",
    ],
)
def test_bad_addresses(url):
    with pytest.raises(ParameterError, match="base_url") as caught:
        CompletionsOracle(url, "m")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"model": ""},
        {"vocab_size": 0},
        {"concurrency": 0},
        {"timeout": 0},
        {"attempts": 0},
        {"call_budget": -1},
        {"token_budget": 1.5},
        {"horizon": 0},
        {"bos_token_id": -1},
        {"backoff": float("nan")},
        {"longest_wait": -1},
        {"store": 3},
    ],
)
def test_bad_parameters_are_refused_before_anything_is_sent(options):
    with pytest.raises(ParameterError, match=next(iter(options)).replace("store", "cache")):
        CompletionsOracle("http://127.0.0.1:9/v1", **{"model": "m"} | options)


@pytest.mark.parametrize("package", ["httpx", "tenacity"])
def test_a_missing_package_names_the_extra(monkeypatch, package):
    for module in ("oracles.completions", "oracles.completions_client", "oracles.completions_protocol"):
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"{package} is not installed.*lrlm-sim\[http\]"):
        importlib.import_module("oracles.completions")
    with pytest.raises(MissingDependencyError):
        open_oracle("http://127.0.0.1:9/v1#m")
