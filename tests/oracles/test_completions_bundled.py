"""The bundled trained transformer behind a completions server on the loopback: what real use looks like."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("httpx")

from lrlm_sim import distances, spectra
from lrlm_sim.extraction import hidden_width, logits_from_top
from lrlm_sim.lingen import LinGen
from lrlm_sim.matrices import extended_logits
from oracles import LogitAccess, TopLogitAccess, open_oracle
from oracles.completions import AnswerError, CapabilityError, CompletionsOracle
from oracles.errors import NonFiniteError
from oracles.transformer import TransformerOracle
from tests.oracles.completions_server import Fault, Limits, serving

HISTORIES = [[5, 9, 30], [40, 2, 7], [11, 12, 13], [100, 200, 300], [7, 7, 7], [450, 31, 8]]
FUTURES = [[1], [20, 21], [33, 4], [80]]
GRID = [[*h, *f] for h in HISTORIES for f in FUTURES]


@pytest.fixture(name="model", scope="module")
def _model():
    return open_oracle("bundled")


def client(server, **options):
    quick = {"backoff": 0.001, "attempts": 3, "vocab_size": server.oracle.vocab_size}
    return CompletionsOracle(server.url, "m", **quick | options)


def test_spectrum_lingen_extraction_and_certificate_agree_with_the_local_model(model):
    local = TransformerOracle(model.model, model.tokenizer, horizon=6)
    with serving(model, Limits(echo=False)) as server, client(server, horizon=6, store=True) as remote:
        np.testing.assert_allclose(remote.next_log_probs(GRID[:5]), model.next_log_probs(GRID[:5]), atol=1e-4)
        np.testing.assert_array_equal(remote.sample(3, 5, [40, 2]), local.sample(3, 5, [40, 2]))
        far, near = (extended_logits(oracle, HISTORIES, FUTURES) for oracle in (remote, local))
        np.testing.assert_allclose(far, near, atol=1e-4)
        sigma = spectra.singular_values(near)
        np.testing.assert_allclose(spectra.singular_values(far), sigma, atol=1e-5 * sigma[0])
        lingen = LinGen(HISTORIES[1:], FUTURES, ridge=1e-3)
        weights = [lingen.weights(oracle, HISTORIES[:1]).weights for oracle in (remote, local)]
        np.testing.assert_allclose(weights[0], weights[1], atol=1e-3)
        widths = [hidden_width(LogitAccess(oracle), histories=GRID) for oracle in (remote, local)]
        np.testing.assert_allclose(widths[0].singular_values[:20], widths[1].singular_values[:20], rtol=1e-4)
        assert not widths[0].confident  # 24 histories cannot show a width of 160
        top = logits_from_top(TopLogitAccess(remote, k=600), HISTORIES[:2])
        np.testing.assert_allclose(top, LogitAccess(local).logits(HISTORIES[:2]), atol=1e-4)
        interval = distances.certify(LogitAccess(remote), local, n=6, confidence=0.9, rng=0)
        assert interval.low <= interval.estimate < 1e-3


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=429, headers=(("Retry-After", "0"),)),
        Fault(status=500),
        Fault(silent=True),
        Fault(cut=True),
        Fault(hang_up=True),
    ],
    ids=["429", "500", "time-out", "truncated", "hang up"],
)
def test_a_spectrum_survives_every_fault_that_passes(model, fault, tmp_path):
    asked = [*GRID[:6]]
    options = {"timeout": 6.0, "attempts": 6} if fault.silent else {}
    with serving(model, Limits(echo=False)) as server, client(server, concurrency=2, **options) as remote:
        before = len(server.bodies)
        server.faults.extend([None, fault, None, fault])
        laws = remote.next_log_probs(asked)
        np.testing.assert_allclose(laws, model.next_log_probs(asked), atol=1e-4)
        assert not server.faults
        requests = len(server.bodies) - before
        assert (
            requests >= len(asked) + 2 if fault.silent else requests == len(asked) + 2
        )  # slow machines time out


@pytest.mark.parametrize(
    ("value", "error"), [("absent", AnswerError), ("null", AnswerError), (float("nan"), NonFiniteError)]
)
def test_missing_and_nan_log_probabilities_stop_it_and_nothing_is_paid_twice(model, value, error, tmp_path):
    options = {"store": tmp_path / "answers.db", "identity": "bundled", "concurrency": 1}
    asked = GRID[:6]
    with serving(model, Limits(echo=False)) as server:
        with client(server, **options) as remote:
            probed = len(server.bodies)
            server.faults.extend([None, None, None, Fault(logprobs=value)])
            with pytest.raises(error):
                remote.next_log_probs(asked)
            answered = len(server.bodies) - probed - 1  # a request under way is finished and kept
            assert 3 <= answered <= 4
        with client(server, **options) as remote:
            probed = len(server.bodies)
            np.testing.assert_allclose(remote.next_log_probs(asked), model.next_log_probs(asked), atol=1e-4)
            assert len(server.bodies) - probed == len(asked) - answered


def test_a_killed_client_goes_on_without_paying_again(model, tmp_path):
    """SIGKILL in the middle: what was answered is in the store, but for the requests under way."""
    path, concurrency = tmp_path / "answers.db", 2
    asked = [[a, b] for a in range(5, 15) for b in (40, 50, 60)]
    with serving(model, Limits(echo=False)) as server:
        code = (
            "from oracles.completions import CompletionsOracle\n"
            f"oracle = CompletionsOracle({server.url!r}, 'm', vocab_size={model.vocab_size}, "
            f"store={str(path)!r}, identity='bundled', concurrency={concurrency})\n"
            f"oracle.next_log_probs({asked!r})\n"
        )
        server.delay = 0.02
        process = subprocess.Popen([sys.executable, "-c", code])
        ends = time.monotonic() + 120
        while len(server.bodies) < 14 and process.poll() is None and time.monotonic() < ends:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it had finished: ask for more"
        server.delay = 0.0
        while server.under_way:
            time.sleep(0.01)
        sent = {tuple(body["prompt"]) for body in server.bodies} & {(0, *p) for p in asked} or {
            tuple(body["prompt"]) for body in server.bodies
        } & {tuple(p) for p in asked}
        with client(server, store=path, identity="bundled", concurrency=concurrency) as remote:
            probed = len(server.bodies)
            np.testing.assert_allclose(remote.next_log_probs(asked), model.next_log_probs(asked), atol=1e-4)
            again = len(server.bodies) - probed
    assert len(sent) >= 6
    assert len(asked) - len(sent) <= again <= len(asked) - len(sent) + concurrency + 1


def test_top_5_only_is_refused_at_once(model):
    limits = Limits(top=5, echo=False, counts=False)
    with serving(model, limits) as server:
        with pytest.raises(CapabilityError, match=r"5 most likely .* nor the log-probabilities of a prompt"):
            client(server)
        assert len(server.bodies) <= 8
