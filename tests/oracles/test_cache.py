"""Caches: what was paid for stays, in memory and on disk, and never under another name."""

import gc
import os
import pickle
import sqlite3
import subprocess
import sys
import textwrap
import threading
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oracles.access import ConditionalProbabilityAccess, LogitAccess, TopLogitAccess
from oracles.cache import DiskCache, MemoryCache, Space, as_cache
from oracles.errors import BudgetError, FormatError, ParameterError
from oracles.hmm import HiddenMarkovModel
from oracles.ledger import Ledger

A, T = 3, 5


class Named(HiddenMarkovModel):
    """An HMM that names its weights."""

    @property
    def identity(self):
        return f"hmm {self.initial.tobytes().hex()}"


def hmm(seed=0, kind=HiddenMarkovModel):
    return kind.random(3, A, T, seed)


def space(width=2, **changes):
    fields = {"identity": "x", "kind": "logits", "noise": 0.0, "seed": 0} | changes
    return Space(**fields, width=width)


@pytest.fixture(params=["memory", "disk"])
def cache(request, tmp_path):
    return MemoryCache() if request.param == "memory" else DiskCache(tmp_path / "deep" / "c.sqlite", "x")


# --- stores ------------------------------------------------------------------------------------


def test_put_and_get(cache):
    rows = np.array([[1.5, -np.inf], [np.nextafter(1, 2), 5e-324]])
    known, found = cache.get(space(), [b"a", b""])
    assert not known.any()
    assert found.shape == (0, 2)
    np.testing.assert_array_equal(cache.put(space(), [b"a", b""], rows), rows)
    known, found = cache.get(space(), [b"", b"b", b"a", b""])
    np.testing.assert_array_equal(known, [True, False, True, True])
    np.testing.assert_array_equal(found, rows[[1, 0, 1]])  # to the last bit
    for other in (space(noise=0.1), space(seed=1), space(kind="k"), space(identity="y")):
        assert not cache.get(other, [b"a"])[0].any()


def test_the_first_answer_stands(cache):
    cache.put(space(1), [b"a"], np.array([[1.0]]))
    standing = cache.put(space(1), [b"b", b"a"], np.array([[2.0], [3.0]]))
    np.testing.assert_array_equal(standing, [[2.0], [1.0]])
    np.testing.assert_array_equal(cache.get(space(1), [b"a", b"b"])[1], [[1.0], [2.0]])


@given(st.lists(st.lists(st.binary(max_size=3), unique=True, max_size=20), max_size=6))
def test_memory_cache_is_a_dictionary(batches):
    cache, model = MemoryCache(), {}
    for i, batch in enumerate(batches):
        new = [q for q in batch if q not in model]
        cache.put(space(1), new, np.full((len(new), 1), float(i)))
        model |= dict.fromkeys(new, float(i))
    known, found = cache.get(space(1), [*model, b"much too long"])
    assert known.tolist() == [True] * len(model) + [False]
    np.testing.assert_array_equal(found[:, 0], list(model.values()))


def test_more_questions_than_variables_in_one_statement(cache):
    questions = [i.to_bytes(4, "little") for i in range(2345)]
    rows = np.arange(4690.0).reshape(-1, 2)
    cache.put(space(), questions, rows)
    known, found = cache.get(space(), questions[::-1])
    assert known.all()
    np.testing.assert_array_equal(found, rows[::-1])


# --- choosing a cache --------------------------------------------------------------------------


def test_what_the_cache_argument_may_be(tmp_path):
    assert as_cache(None, hmm()) is None
    assert as_cache(False, hmm()) is None
    assert isinstance(as_cache(True, hmm()), MemoryCache)
    made = as_cache(tmp_path / "a.sqlite", hmm(kind=Named))
    assert isinstance(made, DiskCache)
    assert made.identity == hmm(kind=Named).identity
    assert isinstance(as_cache(str(tmp_path / "a.sqlite"), hmm(kind=Named)), DiskCache)
    with pytest.raises(ParameterError, match="DiskCache"):
        as_cache(tmp_path / "b.sqlite", hmm())
    with pytest.raises(ParameterError, match="identity"):
        DiskCache(tmp_path / "b.sqlite", "")
    with pytest.raises(ParameterError, match="oracle's identity"):
        LogitAccess(hmm(kind=Named), cache=DiskCache(tmp_path / "a.sqlite", "another model"))


def test_one_memory_cache_keeps_teachers_apart():
    shared = MemoryCache()
    first, second = LogitAccess(hmm(0), cache=shared), LogitAccess(hmm(1), cache=shared)
    np.testing.assert_allclose(first.logits([[0]]), LogitAccess(hmm(0)).logits([[0]]))
    np.testing.assert_allclose(second.logits([[0]]), LogitAccess(hmm(1)).logits([[0]]))
    assert second.ledger.calls == 1
    teacher = hmm(2)
    LogitAccess(teacher, cache=shared).logits([[0], [1]])
    again = LogitAccess(teacher, cache=shared)
    again.logits([[1], [2]])
    assert again.ledger == Ledger(1, 1, 1, 0)


def test_a_memory_cache_keeps_its_teachers_alive():
    """Or another model could come to the same address and inherit the answers."""
    cache, teacher = MemoryCache(), hmm()
    LogitAccess(teacher, cache=cache).logits([[0]])
    alive = weakref.ref(teacher)
    del teacher
    gc.collect()
    assert alive() is not None
    del cache
    gc.collect()
    assert alive() is None


def test_noise_and_seed_have_answers_of_their_own(tmp_path):
    teacher = hmm(kind=Named)

    def calls(**settings):
        access = LogitAccess(teacher, cache=tmp_path / "c.sqlite", **settings)
        rows = access.logits([[0], [1]])
        np.testing.assert_array_equal(rows, LogitAccess(teacher, **settings).logits([[0], [1]]))
        return access.ledger.calls

    assert [calls(), calls(seed=5), calls(noise=0.1), calls(noise=0.1, seed=5), calls(noise=0.1)] == [
        2,
        0,
        2,
        2,
        0,
    ]


# --- disk --------------------------------------------------------------------------------------


def test_answers_outlive_the_access_bit_for_bit(tmp_path):
    path, histories = tmp_path / "c.sqlite", [[], [0], [1, 2]]

    def ask():
        found = []
        for kind, call in (
            (LogitAccess, lambda a: a.grid(histories, histories[:2])),
            (TopLogitAccess, lambda a: a.top(histories, bias=[0.0, 1.0, 2.0])[1]),
            (ConditionalProbabilityAccess, lambda a: a.log_probs(histories, histories)),
            (ConditionalProbabilityAccess, lambda a: a.next_log_probs(histories)),
        ):
            access = kind(hmm(), cache=DiskCache(path, "random hmm, seed 0"))
            found.append((call(access), access.ledger))
        return found

    for (first, paid), (again, free) in zip(ask(), ask(), strict=True):
        np.testing.assert_array_equal(first, again)
        assert paid.calls > 0
        assert free == Ledger()
    other = LogitAccess(hmm(1), cache=DiskCache(path, "random hmm, seed 1"))
    np.testing.assert_array_equal(other.logits([[0]]), LogitAccess(hmm(1)).logits([[0]]))


def test_a_spent_budget_loses_nothing(tmp_path):
    teacher, histories = hmm(kind=Named), [[0], [1], [2], [0, 0]]
    with pytest.raises(BudgetError):
        LogitAccess(teacher, budget=3, cache=tmp_path / "c.sqlite", block_rows=2).logits(histories)
    rest = LogitAccess(teacher, budget=1, cache=tmp_path / "c.sqlite")
    rest.logits(histories)
    assert rest.ledger == Ledger(1, 1, 2, 0)


def test_files_that_are_no_cache(tmp_path):
    text, foreign = tmp_path / "text", tmp_path / "foreign.sqlite"
    text.write_text("not a database, and long enough to look at\n" * 40)
    connection = sqlite3.connect(foreign)
    connection.execute("CREATE TABLE precious (x)")
    connection.commit()
    connection.close()
    before = foreign.read_bytes()
    for path in (text, foreign, tmp_path):
        with pytest.raises(FormatError, match=str(path)):
            DiskCache(path, "x")
    assert foreign.read_bytes() == before


def test_one_identity_for_two_vocabularies_is_found(tmp_path):
    LogitAccess(hmm(), cache=DiskCache(tmp_path / "c.sqlite", "x")).logits([[0]])
    larger = HiddenMarkovModel.random(3, A + 1, T, 0)
    with pytest.raises(FormatError, match="vocabulary"):
        LogitAccess(larger, cache=DiskCache(tmp_path / "c.sqlite", "x")).logits([[0]])


def test_a_disk_cache_reopens_after_close_and_pickle(tmp_path):
    cache = DiskCache(tmp_path / "c.sqlite", "x")
    cache.put(space(1), [b"a"], np.ones((1, 1)))
    cache.close()
    for same in (cache, pickle.loads(pickle.dumps(cache))):
        assert same.get(space(1), [b"a"])[0].all()


_WORKER = """
import os, sys
import numpy as np
from oracles.access import LogitAccess
from oracles.cache import DiskCache
from oracles.hmm import HiddenMarkovModel
path, low, high, end = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
access = LogitAccess(HiddenMarkovModel.random(3, 3, 12, 0), cache=DiskCache(path, "m"), block_rows=7)
rng = np.random.default_rng(0)
histories = rng.integers(0, 3, (300, 11))
for i in range(low, high):
    access.logits(histories[10 * i : 10 * i + 10])
print(access.ledger.calls, flush=True)
if end == "kill":
    os.kill(os.getpid(), 9)
"""


def start_worker(path, low, high, end="return"):
    command = [sys.executable, "-c", textwrap.dedent(_WORKER), str(path), str(low), str(high), end]
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
    )


def test_processes_share_a_file_and_a_killed_one_loses_nothing(tmp_path):
    """Two processes write overlapping answers at once, one is killed; a third asks nothing again."""
    path = tmp_path / "c.sqlite"
    workers = [start_worker(path, 0, 20), start_worker(path, 10, 30, "kill")]
    calls = [int(worker.communicate(timeout=60)[0]) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, -9]
    assert max(calls) <= 200
    access = LogitAccess(HiddenMarkovModel.random(3, 3, 12, 0), cache=DiskCache(path, "m"))
    histories = np.random.default_rng(0).integers(0, 3, (300, 11))
    rows = access.logits(histories)
    assert access.ledger == Ledger()
    np.testing.assert_allclose(
        rows, LogitAccess(HiddenMarkovModel.random(3, 3, 12, 0)).logits(histories), atol=1e-12
    )


def test_opening_waits_while_another_process_holds_a_new_file(tmp_path):
    """The switch to WAL fails at once on a busy file, whatever the time-out: it must be repeated."""
    path, freed = tmp_path / "c.sqlite", threading.Event()
    holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN IMMEDIATE")

    def release():
        holder.execute("ROLLBACK")
        freed.set()

    timer = threading.Timer(0.3, release)
    timer.start()
    cache = DiskCache(path, "x")
    assert freed.is_set()
    timer.join()
    holder.close()
    cache.put(space(1), [b"a"], np.ones((1, 1)))
    assert cache.get(space(1), [b"a"])[0].all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_opens_the_file_for_itself(tmp_path):
    cache = DiskCache(tmp_path / "c.sqlite", "x")
    child = os.fork()
    if child == 0:
        try:
            cache.put(space(1), [b"child"], np.ones((1, 1)))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    cache.put(space(1), [b"parent"], np.ones((1, 1)))
    assert cache.get(space(1), [b"child", b"parent"])[0].all()
