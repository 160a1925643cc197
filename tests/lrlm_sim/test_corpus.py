"""Histories and futures from text: disjoint sources, distinct rows, errors that say how many there are."""

import numpy as np
import pytest

from lrlm_sim.corpus import (
    encode,
    histories_and_futures,
    likely_tokens,
    read_text,
    standard_library_text,
    token_windows,
)
from oracles import HiddenMarkovModel
from oracles.errors import FormatError, ParameterError, TokenError


class Letters:
    """A tokenizer of lower-case letters."""

    def encode(self, text, *, add_special_tokens):
        assert not add_special_tokens
        return [ord(c) - ord("a") for c in text if c.islower()]


def test_windows_drop_the_remainder():
    np.testing.assert_array_equal(token_windows(np.arange(7), 3), [[0, 1, 2], [3, 4, 5]])


def test_histories_and_futures_come_from_different_windows_and_never_repeat():
    windows = np.arange(400).reshape(100, 4)
    heads, tails = histories_and_futures(windows, 40, 2, 3, rng=0)
    assert heads.shape == (40, 2)
    assert tails.shape == (40, 3)
    assert not set(heads[:, 0] // 4) & set(tails[:, -1] // 4)
    repeated = np.tile(windows[:5], (20, 1))
    with pytest.raises(ParameterError, match=r"40 distinct histories asked for, the text has [1-5]"):
        histories_and_futures(repeated, 40, 2, 2, rng=0)


def test_likely_tokens_are_the_largest_in_order():
    model = HiddenMarkovModel.random(3, 6, 5, rng=0)
    futures = [[0], [1, 2]]
    kept = likely_tokens(model, futures, 3)
    laws = model.next_log_probs(futures)
    np.testing.assert_array_equal(kept, np.argsort(-laws, axis=1)[:, :3])


def test_text_is_read_in_order_and_tokens_are_checked(tmp_path):
    (tmp_path / "b.txt").write_text("cd")
    (tmp_path / "a.md").write_text("ab")
    (tmp_path / "c.bin").write_text("zz")
    assert read_text([tmp_path]) == "ab\ncd"
    np.testing.assert_array_equal(encode(Letters(), "ab\ncd", 4), [0, 1, 2, 3])
    with pytest.raises(TokenError, match="do tokenizer and model match"):
        encode(Letters(), "abz", 4)
    with pytest.raises(FormatError, match="no such file"):
        read_text([tmp_path / "missing"])


def test_the_standard_library_is_text():
    text = standard_library_text(5000)
    assert len(text) == 5000
    assert "def " in text
