"""Each law of `check_oracle` catches the oracle built to break it, and no correct oracle is rejected."""

from dataclasses import dataclass

import numpy as np
import pytest

from lrlm_sim.testing import LAWS, ContractError, check_oracle
from lrlm_sim.testing.probe import Probe
from lrlm_sim.testing.sampling import law_frequencies
from oracles.base import Conditioned, LinearForm
from oracles.checks import as_chunk, as_generator, as_strings, check_length
from oracles.errors import HorizonError, LrlmError, ParameterError
from oracles.hmm import HiddenMarkovModel
from oracles.recurrent import RecurrentOracle, RecurrentState
from oracles.storage import storable
from tests.registry import ORACLES

_TABLE = np.log(np.random.default_rng(0).dirichlet(np.ones(3), (40, 4)))


class Chain(RecurrentOracle):
    """A correct model: the law depends on the position and on the last token."""

    vocab_size = 3
    horizon = 5

    def first_row(self):
        return np.full(1, 3)

    def step(self, position, rows, tokens):
        return tokens[:, None].copy()

    def laws(self, position, rows):
        return _TABLE[position, rows[:, 0]]


class FloatVocabulary(Chain):
    vocab_size = 3.0


class ZeroHorizon(Chain):
    horizon = 0


class Unnormalised(Chain):
    def laws(self, position, rows):
        return super().laws(position, rows) + 1e-6


class NaN(Chain):
    def laws(self, position, rows):
        laws = super().laws(position, rows)
        if position == 3:
            laws[-1, 0] = np.nan
        return laws


class SinglePrecision(Chain):
    def laws(self, position, rows):
        return super().laws(position, rows).astype(np.float32)


class TooManyTokens(Chain):
    def laws(self, position, rows):
        return np.full((len(rows), 4), -np.log(4))


class BatchDependent(Chain):
    def laws(self, position, rows):
        laws = super().laws(position, rows) + 1e-6 * rows.mean() * np.arange(3)
        return laws - np.log(np.exp(laws).sum(axis=1, keepdims=True))


class LastTokenOfChunk(Chain):
    """Positions are counted by calls, not by tokens."""

    def advance(self, state, tokens):
        moved = super().advance(state, tokens)
        return RecurrentState(min(state.position + 1, moved.position), moved.rows)


class SortedTake(Chain):
    def take(self, state, rows):
        return super().take(state, np.sort(rows))


class MutatingAdvance(Chain):
    def advance(self, state, tokens):
        moved = super().advance(state, tokens)
        state.rows[:] = moved.rows
        return moved


class MutatingTake(Chain):
    def take(self, state, rows):
        taken = super().take(state, rows)
        state.rows[:] = 0
        return taken


class KeepsTokens(Chain):
    """The state is a view of the caller's array (`RecurrentOracle.advance` itself copies the tokens)."""

    def advance(self, state, tokens):
        after = super().advance(state, tokens)
        if isinstance(tokens, np.ndarray) and tokens.ndim == 1 and tokens.dtype == np.int64:
            return RecurrentState(after.position, tokens[:, None])
        return after


class SharedAnswers(Chain):
    """The caller is handed the model's own memory."""

    def laws(self, position, rows):
        state = (position, tuple(rows[:, 0].tolist()))
        return _ANSWERS.setdefault(state, super().laws(position, rows))


_ANSWERS: dict = {}


class ForgetsLastToken(Chain):
    def score(self, sequences, history=None):
        return super().score(np.asarray(sequences)[:, :-1], history)


class ForgetsHistory(Chain):
    def score(self, sequences, history=None):
        return super().score(sequences)


class SortedHistories(Chain):
    def next_log_probs(self, histories):
        return super().next_log_probs(sorted(as_strings("histories", histories, 3), key=len))


class DistinctFutures(Chain):
    """Equal futures are answered once."""

    def extended_log_probs(self, histories, futures):
        seen = {tuple(np.asarray(f, dtype=int).tolist()): None for f in as_strings("futures", futures, 3)}
        return super().extended_log_probs(histories, list(seen))


class SortedFutures(Chain):
    def extended_log_probs(self, histories, futures):
        return super().extended_log_probs(histories, sorted(as_strings("futures", futures, 3), key=len))


class FullHorizonAfterHistory(Chain):
    def condition(self, history):
        conditioned = Conditioned(self, tuple(np.asarray(super().condition(history).history).tolist()))
        object.__setattr__(conditioned, "horizon", self.horizon)
        return conditioned


class FiniteImpossible(HiddenMarkovModel):
    """Logarithms are clipped instead of −inf."""

    def score(self, sequences, history=None):
        return np.maximum(super().score(sequences, history), -700.0)


class NoEmptyBatch(Chain):
    def laws(self, position, rows):
        return super().laws(position, rows) + 0 * rows.max()


class OneTokenMore(Chain):
    """Off by one: a string of horizon + 1 tokens is accepted."""

    def advance(self, state, tokens):
        chunk = as_chunk(tokens, len(state.rows), 3)
        check_length(state.position + chunk.shape[1], self.horizon + 1)
        rows = chunk[:, -1:] if chunk.shape[1] else state.rows
        return RecurrentState(state.position + chunk.shape[1], rows.copy())


class OneTokenLess(Chain):
    """Off by one: nothing follows horizon − 1 tokens."""

    horizon = 12

    def log_probs(self, state):
        if state.position + 1 >= self.horizon:
            raise HorizonError("too long")
        return super().log_probs(state)


class NegativeTokens(Chain):
    def advance(self, state, tokens):
        return super().advance(state, np.asarray(tokens) % np.int64(3))


class RoundedTokens(Chain):
    def score(self, sequences, history=None):
        return super().score(np.nan_to_num(np.asarray(sequences)).astype(np.int64), history)


class NegativeRows(Chain):
    def take(self, state, rows):
        return RecurrentState(state.position, state.rows[np.asarray(rows, dtype=np.int64)])


class BuiltinErrors(Chain):
    def take(self, state, rows):
        try:
            return super().take(state, rows)
        except LrlmError as error:
            raise IndexError("bad rows") from error


class Unseeded(Chain):
    def sample(self, n, rng=None, history=None, length=None):
        return super().sample(n, None, history, length)


class SizeDependentSamples(Chain):
    def sample(self, n, rng=None, history=None, length=None):
        return super().sample(n, rng, history, length)[::-1].copy()


class WarmSamples(Chain):
    """Samples at another temperature."""

    def sample(self, n, rng=None, history=None, length=None):
        return _Warm().sample(n, rng, history, length)


class _Warm(Chain):
    def laws(self, position, rows):
        laws = 0.6 * super().laws(position, rows)
        return laws - np.log(np.exp(laws).sum(axis=1, keepdims=True))


class IndependentSamples(HiddenMarkovModel):
    """Right marginals, no memory: token t comes from a string of its own."""

    def sample(self, n, rng=None, history=None, length=None):
        strings = super().sample(n, 0, history, length)
        for t, stream in enumerate(as_generator(rng).spawn(strings.shape[1])):
            strings[:, t] = super().sample(n, stream, history, length)[:, t]
        return strings


class IgnoresHistoryInSamples(Chain):
    def sample(self, n, rng=None, history=None, length=None):
        shape = super().sample(n, 0, history, length).shape
        return super().sample(n, rng, None, shape[1])


class WrongLinearForm(HiddenMarkovModel):
    def linear_form(self):
        form = super().linear_form()
        return LinearForm(form.initial, list(form.operators)[::-1], form.final)


class Unfinished(Chain):
    def extended_log_probs(self, histories, futures):
        raise NotImplementedError("later")


@storable("test-forgetful")
@dataclass(frozen=True, eq=False)
class Forgetful(HiddenMarkovModel):
    """The constructor changes what it is given, so a loaded model is another one."""

    def __post_init__(self):
        super().__post_init__()
        emission = 0.9 * self.emission + 0.1 / self.emission.shape[-1]
        object.__setattr__(self, "emission", emission)


_HALVES = np.array([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])  # two states, two tokens each
_STICKY = np.array([[0.9, 0.1], [0.1, 0.9]])
_RNG = np.random.default_rng(1)
_PER_STEP = (_RNG.dirichlet([1, 1]), _RNG.dirichlet([1, 1], (4, 2)), _RNG.dirichlet([1, 1, 1], (5, 2)), 5)

BROKEN = {
    "FloatVocabulary": (FloatVocabulary, "attributes"),
    "ZeroHorizon": (ZeroHorizon, "attributes"),
    "Unnormalised": (Unnormalised, "normalised"),
    "NaN": (NaN, "normalised"),
    "SinglePrecision": (SinglePrecision, "normalised"),
    "TooManyTokens": (TooManyTokens, "normalised"),
    "BatchDependent": (BatchDependent, "batches"),
    "LastTokenOfChunk": (LastTokenOfChunk, "chunks"),
    "SortedTake": (SortedTake, "take"),
    "MutatingAdvance": (MutatingAdvance, "values"),
    "MutatingTake": (MutatingTake, "values"),
    "KeepsTokens": (KeepsTokens, "values"),
    "SharedAnswers": (SharedAnswers, "values"),
    "ForgetsLastToken": (ForgetsLastToken, "score"),
    "ForgetsHistory": (ForgetsHistory, "score"),
    "SortedHistories": (SortedHistories, "next_log_probs"),
    "DistinctFutures": (DistinctFutures, "extended_log_probs"),
    "SortedFutures": (SortedFutures, "extended_log_probs"),
    "Unfinished": (Unfinished, "extended_log_probs"),
    "FullHorizonAfterHistory": (FullHorizonAfterHistory, "condition"),
    "NoEmptyBatch": (NoEmptyBatch, "empty"),
    "OneTokenMore": (OneTokenMore, "horizon"),
    "OneTokenLess": (OneTokenLess, "horizon"),
    "NegativeTokens": (NegativeTokens, "bad_tokens"),
    "RoundedTokens": (RoundedTokens, "bad_tokens"),
    "NegativeRows": (NegativeRows, "bad_shapes"),
    "BuiltinErrors": (BuiltinErrors, "bad_shapes"),
    "Unseeded": (Unseeded, "reproducible"),
    "SizeDependentSamples": (SizeDependentSamples, "reproducible"),
    "WarmSamples": (WarmSamples, "frequencies"),
    "IgnoresHistoryInSamples": (IgnoresHistoryInSamples, "frequencies"),
    "FiniteImpossible": (lambda: FiniteImpossible([0.5, 0.5], np.eye(2), np.eye(2), 7), "impossible"),
    "IndependentSamples": (lambda: IndependentSamples([0.5, 0.5], _STICKY, _HALVES, 7), "frequencies"),
    "WrongLinearForm": (lambda: WrongLinearForm(*_PER_STEP), "linear_form"),
    "Forgetful": (lambda: Forgetful(*_PER_STEP), "storage"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_right_law_catches(name):
    build, law = BROKEN[name]
    with pytest.raises(ContractError) as caught:
        check_oracle(build())
    assert caught.value.law == law
    assert repr(law) in str(caught.value)
    assert caught.value.inputs in str(caught.value)
    assert isinstance(caught.value, LrlmError)
    assert isinstance(caught.value, AssertionError)


def test_the_correct_model_passes_every_law_that_applies():
    report = check_oracle(Chain())
    assert set(report.checked) | set(report.not_applicable) == {law.name for law in LAWS}
    assert set(report.not_applicable) == {"impossible", "linear_form", "storage"}
    assert "frequencies" in str(report)
    assert max(r.deviation for r in report.results if r.name != "frequencies") < 1e-12


@pytest.mark.parametrize(
    "name", ["hmm-zeros", "hmm-horizon-1", "hmm-one-token", "unbounded", "hmm-deterministic"]
)
def test_edge_cases_pass(name):
    oracle = ORACLES[name]()
    report = check_oracle(oracle, rng=3)
    assert ("impossible" in report.checked) == (name in ("hmm-zeros", "hmm-deterministic"))
    for n, length, samples in ((2, 1, 0), (3, 2, 50), (5, 30, 200)):
        report = check_oracle(oracle, n=n, length=length, samples=samples)
        assert ("frequencies" in report.not_applicable) == (samples == 0)


def test_long_horizons_are_not_walked():
    report = check_oracle(HiddenMarkovModel.random(2, 2, 10**6, 0), samples=100)
    assert "too long" in report.not_applicable["horizon"]
    assert "horizon" in report.not_applicable["linear_form"]


def test_a_seed_repeats_its_checks():
    same = [check_oracle(Chain(), rng=5) for _ in range(2)]
    assert same[0].results == same[1].results == check_oracle(Chain(), rng=np.random.default_rng(5)).results
    assert check_oracle(Chain(), rng=6).results != same[0].results


def test_the_tolerance_is_what_it_says():
    class Rounded(Chain):
        def laws(self, position, rows):
            return super().laws(position, rows).astype(np.float32).astype(np.float64)

    with pytest.raises(ContractError, match="sum to one"):
        check_oracle(Rounded())
    check_oracle(Rounded(), tolerance=1e-5)


def test_arguments():
    for wrong in ({"n": 1}, {"length": 0}, {"samples": -1}, {"tolerance": np.nan}, {"rng": "0"}):
        with pytest.raises(ParameterError):
            check_oracle(Chain(), **wrong)
    with pytest.raises(ParameterError, match="subclass Oracle"):
        check_oracle("hmm")


def test_the_test_of_frequencies_does_not_reject_correct_models():
    """300 seeds: a correct model is rejected in one of them with probability ≤ 3e-7."""
    for name in ("hmm", "hmm-zeros", "isan"):
        oracle = ORACLES[name]()
        for seed in range(100):
            assert law_frequencies(Probe(oracle, seed, 4, 3, 300, 1e-9)) < 1


class Fair(Chain):
    vocab_size = 2

    def laws(self, position, rows):
        return np.log(np.full((len(rows), 2), 0.5))


class Unfair(Fair):
    """Samples prefer one token at the last position."""

    def laws(self, position, rows):
        return (
            np.log(np.tile([0.35, 0.65], (len(rows), 1))) if position == 4 else super().laws(position, rows)
        )


class SaysFair(Fair):
    def sample(self, n, rng=None, history=None, length=None):
        return Unfair().sample(n, rng, history, length)


def test_the_test_of_frequencies_sees_small_deviations():
    """Missed with probability < 1e-8 per seed: 0.15 is 13.4 standard deviations, 7.2 are needed."""
    for seed in range(20):
        with pytest.raises(ContractError) as caught:
            check_oracle(SaysFair(), rng=seed)
        assert caught.value.law == "frequencies"
