"""Nothing paid for is asked twice or lost: the store of answers, and budgets."""

from __future__ import annotations

import numpy as np
import pytest

from oracles.cache import Cache, DiskCache, Space
from oracles.completions import (
    AnswerError,
)
from oracles.errors import (
    BudgetError,
    FormatError,
    InconsistentAnswerError,
)
from oracles.ledger import Ledger
from tests.oracles.completions_helpers import HISTORIES, A, client, hmm
from tests.oracles.completions_server import Fault, Limits, serving


def test_each_distinct_question_is_asked_once_and_never_again(tmp_path):
    with serving(hmm()) as server:
        for _ in range(2):
            with client(server, store=tmp_path / "answers.db", identity="w") as oracle:
                probed = len(server.bodies)
                laws = oracle.next_log_probs(HISTORIES)
                scores = oracle.score([[1, 2], [0, 0], [1, 2]], [0])
                asked = len(server.bodies) - probed
                np.testing.assert_allclose(laws, hmm().next_log_probs(HISTORIES), rtol=1e-12)
                np.testing.assert_allclose(scores, hmm().score([[1, 2], [0, 0], [1, 2]], [0]), rtol=1e-12)
        assert asked == 0
        with client(server) as oracle:
            probed = len(server.bodies)
            oracle.next_log_probs(HISTORIES)
            oracle.next_log_probs(HISTORIES)
            assert len(server.bodies) - probed == 8


def test_what_came_before_a_failure_is_in_the_store(tmp_path):
    path = tmp_path / "answers.db"
    histories = [[a, b, c] for a in range(A) for b in range(A) for c in range(A)]
    with serving(hmm()) as server:
        with client(server, store=path, identity="w", concurrency=2) as oracle:
            probed = len(server.bodies)
            server.faults.extend([None] * 10 + [Fault(logprobs="absent")])
            with pytest.raises(AnswerError):
                oracle.next_log_probs(histories)
            paid = len(server.bodies) - probed
            assert 11 <= paid < 20  # what was under way is finished, nothing new is sent
        with client(server, store=path, identity="w") as oracle:
            probed = len(server.bodies)
            np.testing.assert_allclose(
                oracle.next_log_probs(histories), hmm().next_log_probs(histories), rtol=1e-12
            )
            assert len(server.bodies) - probed == len(histories) - (paid - 1)


def test_an_answer_is_kept_before_it_is_used():
    class Full(Cache):
        """A disk with room for the probe only."""

        room = 1

        def identify(self, oracle):
            return "w"

        def get(self, space, questions):
            return np.zeros(len(questions), dtype=bool), np.empty((0, space.width))

        def put(self, space, questions, answers):
            self.room -= 1
            if self.room < 0:
                raise FormatError("disk full")
            return answers

    with serving(hmm()) as server, client(server, store=Full()) as oracle:
        with pytest.raises(FormatError, match="disk full"):
            oracle.next_log_probs([[0, 1]])
        with pytest.raises(FormatError, match="disk full"):
            oracle.score([[0, 1]], [2])


def test_the_store_is_an_answer_cache(tmp_path):
    path = tmp_path / "answers.db"
    with serving(hmm()) as server, client(server, store=path, identity="w") as oracle:
        law = oracle.next_log_probs([[2, 1]])
    cache = DiskCache(path, "w")
    question = np.array([2, 1], dtype="<i4").tobytes()
    _, rows = cache.get(Space("w", "next-token law", 0.0, 0, A), [question])
    np.testing.assert_array_equal(rows, law)
    cache.close()


def test_another_model_under_the_same_name_is_noticed(tmp_path):
    path = tmp_path / "answers.db"
    with serving(hmm()) as server, client(server, store=path, identity="w"):
        pass
    with serving(hmm(seed=1)) as server:
        with pytest.raises(InconsistentAnswerError, match="identity="):
            client(server, store=path, identity="w")
        with client(server, store=path, identity="v") as oracle:
            np.testing.assert_allclose(
                oracle.next_log_probs([[0]]), hmm(seed=1).next_log_probs([[0]]), rtol=1e-12
            )


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_call_budget_hands_over_what_was_answered(concurrency):
    with serving(hmm()) as server:
        with client(server, concurrency=concurrency) as oracle:
            spent = oracle.ledger
        with client(server, concurrency=concurrency, call_budget=spent.calls + 3) as oracle:
            with pytest.raises(BudgetError, match="call_budget") as caught:
                oracle.next_log_probs([*HISTORIES, [1], [0]])
            answered = caught.value.answered  # [0, 1] is asked once: three calls answer four rows
            np.testing.assert_allclose(answered, hmm().next_log_probs(HISTORIES[:4]), rtol=1e-12)
            assert caught.value.ledger == oracle.ledger
            assert oracle.ledger.calls == spent.calls + 3
        with client(server, concurrency=concurrency, call_budget=spent.calls + 2) as oracle:
            with pytest.raises(BudgetError) as caught:
                oracle.score([[0, 1], [1, 1], [2, 1]], [0])
            np.testing.assert_allclose(caught.value.answered, hmm().score([[0, 1], [1, 1]], [0]), rtol=1e-12)
        before = len(server.bodies)
        with pytest.raises(BudgetError) as caught:
            client(server, call_budget=0)
        assert (caught.value.answered, caught.value.ledger) == (None, Ledger())
        assert len(server.bodies) == before


def test_a_token_budget_counts_prompts_and_generated_tokens():
    with serving(hmm()) as server:
        with client(server) as oracle:
            probe = oracle.ledger
        tokens = probe.submitted_tokens + probe.generated_tokens
        with client(server, token_budget=tokens + 7, concurrency=1) as oracle:
            with pytest.raises(BudgetError, match="token_budget") as caught:
                oracle.next_log_probs([[0, 1], [2, 1, 0], [1]])  # 3 + 4 + 2
            assert len(caught.value.answered) == 2
            assert oracle.ledger.calls == len(server.bodies) - probe.calls
            assert oracle.ledger.distinct_prefixes == len({tuple(b["prompt"]) for b in server.bodies})
            spent = oracle.ledger - probe
            assert (spent.calls, spent.submitted_tokens, spent.generated_tokens) == (2, 5, 2)


def test_a_budget_that_ends_within_a_law_put_together():
    with serving(hmm(), Limits(top=1)) as server:
        with client(server, vocab_size=A, law_by_token=True) as oracle:
            calls = oracle.ledger.calls
        with client(server, vocab_size=A, law_by_token=True, call_budget=calls + 2 * A + 1) as oracle:
            with pytest.raises(BudgetError) as caught:
                oracle.next_log_probs([[0], [1], [0], [2]])
            expected = hmm().next_log_probs([[0], [1], [0]])
            np.testing.assert_allclose(caught.value.answered, expected, rtol=1e-12)


def test_at_most_so_many_requests_at_once():
    with serving(hmm()) as server:
        for concurrency in (1, 3):
            with client(server, concurrency=concurrency) as oracle:
                server.most_under_way, server.delay = 0, 0.03
                oracle.next_log_probs([[a, b] for a in range(A) for b in range(A)])
                assert server.most_under_way == concurrency
                server.delay = 0.0
