"""What a completions server may do wrong, and what then happens."""

from __future__ import annotations

import time
from email.utils import formatdate

import numpy as np
import pytest

from oracles.completions import (
    AnswerError,
    CompletionsOracle,
    RefusedError,
    ServerError,
)
from oracles.errors import (
    NonFiniteError,
    ProbabilityError,
)
from tests.oracles.completions_helpers import A, client, hmm, zeros_model
from tests.oracles.completions_server import Fault, serving


def slow_down(seconds: str) -> Fault:
    return Fault(status=429, headers=(("Retry-After", seconds),))


PASSING = {
    "429": slow_down("0"),
    "429 with a date": slow_down(formatdate(0, usegmt=True)),
    "429 with nonsense": slow_down("soon"),
    "500": Fault(status=500),
    "503": Fault(status=503),
    "cut": Fault(cut=True),
    "hang up": Fault(hang_up=True),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_failures_that_pass_are_tried_again_but_not_for_ever(fault):
    with serving(hmm()) as server, client(server) as oracle:
        for call, expected in (
            (lambda: oracle.next_log_probs([[0, 1]]), hmm().next_log_probs([[0, 1]])),
            (lambda: oracle.score([[0, 1]], [2]), hmm().score([[0, 1]], [2])),
        ):
            before, charged = len(server.bodies), oracle.ledger.calls
            server.faults.extend([fault, fault])
            np.testing.assert_allclose(call(), expected, rtol=1e-12)
            assert len(server.bodies) == before + 3
            assert oracle.ledger.calls - charged == (1 if fault.status == 429 else 3)
            server.faults.extend([fault] * 3)
            with pytest.raises(ServerError, match=r"attempts: 3\)"):
                call()
            assert len(server.bodies) == before + 6
            assert not server.faults


def test_time_outs_are_tried_again_but_not_for_ever():
    silence = Fault(silent=True)
    with serving(hmm()) as server:
        oracle = client(server, timeout=0.3)
        server.faults.append(silence)
        np.testing.assert_allclose(oracle.next_log_probs([[0]]), hmm().next_log_probs([[0]]))
        server.faults.extend([silence] * 3)
        with pytest.raises(ServerError, match=r"did not answer within 0\.3 s"):
            oracle.next_log_probs([[0]])
        oracle.close()


def test_the_wait_a_server_asks_for_is_kept():
    with serving(hmm()) as server, client(server) as oracle:
        server.faults.append(slow_down("1"))
        began = time.monotonic()
        oracle.next_log_probs([[0]])
        assert time.monotonic() - began >= 1.0
    with serving(hmm()) as server, client(server, longest_wait=5.0) as oracle:
        server.faults.append(slow_down("3600"))
        with pytest.raises(ServerError, match="asks to wait 3600 s"):
            oracle.next_log_probs([[0]])


@pytest.mark.parametrize(
    ("value", "error"),
    [("absent", AnswerError), ("null", AnswerError), ("much", AnswerError), (float("nan"), NonFiniteError)],
)
def test_missing_and_nan_log_probabilities_are_errors_at_once(value, error):
    with serving(hmm()) as server, client(server) as oracle:
        before = len(server.bodies)
        for call in (lambda: oracle.next_log_probs([[0, 1]]), lambda: oracle.score([[0, 1]], [2])):
            server.faults.append(Fault(logprobs=value))
            with pytest.raises(error):
                call()
        assert len(server.bodies) == before + 2


def test_scores_of_other_tokens_than_were_sent_are_an_error():
    with serving(hmm()) as server, client(server) as oracle:
        server.faults.append(Fault(logprobs="shifted"))
        with pytest.raises(AnswerError, match="other tokens"):
            oracle.score([[0, 1]], [2])


def test_impossible_tokens_are_minus_infinity():
    with serving(zeros_model()) as server, client(server) as oracle:
        np.testing.assert_array_equal(np.isneginf(oracle.next_log_probs([[0], [1]])), [[1, 0, 0], [0, 0, 1]])
        assert oracle.score([[0, 0]], [1]) == -np.inf


def test_a_law_that_does_not_sum_to_one_is_an_error():
    with serving(hmm()) as server, client(server) as oracle:
        server.faults.append(Fault(logprobs=-0.01))
        with pytest.raises(ProbabilityError, match="sums to"):
            oracle.next_log_probs([[0, 1]])


def test_nan_in_the_probe_is_an_error():
    with serving(hmm()) as server:
        server.faults.append(Fault(logprobs=float("nan")))
        with pytest.raises(NonFiniteError):
            client(server, vocab_size=A)


def test_refusals_name_the_remedy():
    with serving(hmm()) as server, client(server) as oracle:
        server.faults.append(Fault(status=400, message="this model's\nmaximum context is 7"))
        before = len(server.bodies)
        with pytest.raises(RefusedError, match="maximum context is 7") as caught:
            oracle.next_log_probs([[0]])
        assert caught.value.status == 400
        assert "\n" not in str(caught.value)
        assert len(server.bodies) == before + 1
        with pytest.raises(RefusedError, match="ends in /v1"):
            CompletionsOracle(server.url.removesuffix("/v1"), "m")
        server.faults.append(Fault(status=302, headers=(("Location", "http://127.0.0.1:9/"),)))
        with pytest.raises(RefusedError, match="302"):
            oracle.next_log_probs([[0]])
        url = server.url
    with pytest.raises(ServerError, match="cannot be reached"):
        CompletionsOracle(url, "m", backoff=0.0, attempts=2)


def test_a_closed_oracle_says_so():
    with serving(hmm()) as server:
        oracle = client(server)
        oracle.close()
        oracle.close()
        with pytest.raises(ServerError, match="closed"):
            oracle.next_log_probs([[0]])
