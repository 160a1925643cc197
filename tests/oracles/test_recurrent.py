"""The recurrence base class: chunks, batches, `take`, positions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oracles.errors import HorizonError, ParameterError, ShapeError, TokenError
from oracles.recurrent import RecurrentOracle, RecurrentState


class Diary(RecurrentOracle):
    """Its row is the history itself, so every mistake in bookkeeping shows."""

    vocab_size, horizon = 3, 5

    def first_row(self):
        return np.full(5, -1)

    def step(self, position, rows, tokens):
        written = rows.copy()
        written[:, position] = tokens
        return written

    def laws(self, position, rows):
        assert (rows[:, position:] == -1).all()
        return np.log(np.full((len(rows), 3), 1 / 3))


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 4), st.integers(0, 99))
def test_chunks_and_take(length, split, batch, seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 3, (batch, length))
    split = min(split, length)
    diary = Diary()
    state = diary.advance(diary.advance(diary.start(batch), tokens[:, :split]), tokens[:, split:])
    assert state.position == length
    np.testing.assert_array_equal(state.rows[:, :length], tokens)
    rows = rng.integers(0, batch, 6) if batch else np.zeros(0, dtype=int)
    taken = diary.take(state, rows)
    assert taken.position == length
    np.testing.assert_array_equal(taken.rows, state.rows[rows])


def test_taken_rows_do_not_share_memory_with_the_state():
    diary = Diary()
    state = diary.start(2)
    diary.take(state, [0, 1]).rows[:] = 7
    assert (state.rows == -1).all()
    diary.start(1).rows[:] = 7
    assert (diary.first_row() == -1).all()


def test_mistakes():
    diary = Diary()
    full = RecurrentState(5, np.zeros((1, 5), dtype=int))
    for kind, mistake in [
        (HorizonError, lambda: diary.advance(full, [0])),
        (HorizonError, lambda: diary.log_probs(full)),
        (HorizonError, lambda: diary.advance(diary.start(1), [[0] * 6])),
        (TokenError, lambda: diary.advance(diary.start(1), [3])),
        (ShapeError, lambda: diary.advance(diary.start(2), [0])),
        (ShapeError, lambda: diary.advance(diary.start(1), [[[0]]])),
        (ShapeError, lambda: diary.advance(diary.start(2), [[0], [0, 1]])),
        (ShapeError, lambda: diary.take(diary.start(2), [0.5])),
        (ShapeError, lambda: diary.take(diary.start(2), [[0]])),
        (ParameterError, lambda: diary.start(-1)),
        (ParameterError, lambda: diary.start(1.5)),
    ]:
        with pytest.raises(kind):
            mistake()
