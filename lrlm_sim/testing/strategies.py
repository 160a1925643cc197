"""Hypothesis strategies for every family of oracles: valid, extreme, degenerate and adversarial members.

`teacher_families()` maps names to strategies, `oracles()` is their union; both shrink towards few tokens,
short horizons and round numbers. ``positive=True`` keeps every next-token probability ≥ `POSITIVE_FLOOR`
after every history, which is what learners from logits need. Usage::

    @given(oracles(max_vocab=3, max_horizon=4))
    def test_my_learner(teacher): ...
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from hypothesis.strategies import DrawFn, SearchStrategy

from oracles.base import Oracle
from oracles.branching_program import BranchingProgram
from oracles.cauchy_separation import CauchySeparation
from oracles.checks import as_integer
from oracles.errors import HorizonError
from oracles.hmm import HiddenMarkovModel
from oracles.isan import ISAN
from oracles.ngram import NGram
from oracles.noisy_copy import NoisyCopy
from oracles.noisy_parity import NoisyParity
from oracles.perturbed import Perturbed
from oracles.probabilistic_automaton import ProbabilisticAutomaton
from oracles.restricted import Restricted
from oracles.sparse_polynomial import SparsePolynomial
from oracles.tabular import Tabular
from oracles.weighted_automaton import WeightedAutomaton

#: Smallest next-token probability of the oracles drawn with positive=True.
POSITIVE_FLOOR = 1e-7
_NEARLY = 1e-6  # mass of a token that a near-deterministic law avoids
_MAX_STATES = 3
_LOGIT_SCALE = 50.0  # of networks with large logits: probabilities down to about e^-600
_POSITIVE_KINDS = ("counts", "near-deterministic")
_ALL_KINDS = (*_POSITIVE_KINDS, "zeros", "deterministic", "tiny")


@dataclass(frozen=True)
class _Bounds:
    """What may be drawn: at most so many tokens and positions; `positive` forbids probabilities near 0."""

    vocab: int
    horizon: int
    positive: bool

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of next-token laws allowed."""
        return _POSITIVE_KINDS if self.positive else _ALL_KINDS

    def sizes(self) -> SearchStrategy[tuple[int, int]]:
        """(vocab_size, horizon), degenerate ones included."""
        return st.tuples(st.integers(1, self.vocab), st.integers(1, self.horizon))

    def noise(self) -> SearchStrategy[float]:
        """Noise of parities and copies: ½ erases, 0 and 1 are deterministic."""
        inside = [0.25, 0.1, 0.5, 0.9, 0.001]
        return st.sampled_from(inside if self.positive else [*inside, 0.0, 1.0, 1e-12])


@dataclass(frozen=True)
class _Family:
    """How to draw a family, the smallest vocabulary and horizon it needs, whether it has positive members."""

    make: Callable[[_Bounds], SearchStrategy[Oracle]]
    vocab: int = 1
    horizon: int = 1
    positive: bool = True


@st.composite
def laws(draw: DrawFn, shape: Sequence[int], kinds: Sequence[str] = _ALL_KINDS) -> np.ndarray:
    """Probability vectors along the last axis of an array of `shape`.

    Kinds: "counts" (ratios of 1..9), "near-deterministic" (1e-6 on all tokens but one), "zeros" (ratios of
    0..9), "deterministic" (one-hot), "tiny" (powers of ten down to 1e-12). One kind for a whole array.
    """
    shape = tuple(shape)
    kind = draw(st.sampled_from(tuple(kinds)))
    if kind in ("near-deterministic", "deterministic"):
        chosen = draw(arrays(np.int64, shape[:-1], elements=st.integers(0, shape[-1] - 1)))
        weights = np.full(shape, _NEARLY if kind == "near-deterministic" else 0.0)
        np.put_along_axis(weights, np.asarray(chosen)[..., None], 1.0, axis=-1)
    elif kind == "tiny":
        weights = 10.0 ** -draw(arrays(np.int64, shape, elements=st.integers(0, 12)))
    else:
        low = 0 if kind == "zeros" else 1
        weights = draw(arrays(np.int64, shape, elements=st.integers(low, 9))).astype(np.float64)
        weights[weights.sum(axis=-1) == 0] = 1.0
    return weights / weights.sum(axis=-1, keepdims=True)


@st.composite
def _hmms(
    draw: DrawFn, bounds: _Bounds, kinds: tuple[str, ...] = (), per_step: bool = False, states: int = 0
) -> Oracle:
    kinds = kinds or bounds.kinds
    vocab, horizon = draw(bounds.sizes())
    states = states or draw(st.integers(1, _MAX_STATES))
    transition = draw(laws(((horizon - 1,) * per_step) + (states, states), _hidden(kinds)))
    emission = draw(laws(((horizon,) * per_step) + (states, vocab), kinds))
    return HiddenMarkovModel(draw(laws((states,), _hidden(kinds))), transition, emission, horizon)


def _hidden(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """Hidden states may be unreachable whatever the tokens' laws, unless the family forbids it."""
    return kinds if "zeros" in kinds or "deterministic" in kinds else (*kinds, "zeros")


@st.composite
def _signed_automata(draw: DrawFn, bounds: _Bounds, per_step: bool = False) -> Oracle:
    """A hidden Markov model in a sheared basis: weights of both signs, the same law."""
    kinds = ("counts",) if bounds.positive else ("counts", "zeros")
    form = draw(_hmms(bounds, kinds, per_step)).linear_form()
    assert form is not None
    states, horizon = len(form.initial), len(form.operators)
    basis = np.eye(states) + np.triu(draw(arrays(np.int64, (states, states), elements=st.integers(-2, 2))), 1)
    inverse = np.linalg.inv(basis)
    # the last operator of a hidden Markov model has no transition: per step, or one that fits every position
    operators = form.operators if per_step or horizon == 1 else [form.operators[0]] * horizon
    weights = np.stack([inverse @ operator @ basis for operator in operators])
    return WeightedAutomaton(
        form.initial @ basis, weights if per_step else weights[0], inverse @ form.final, horizon
    )


@st.composite
def _isans(
    draw: DrawFn, bounds: _Bounds, per_step: bool = False, scale: float = 1.0, orthogonal: bool = False
) -> Oracle:
    """Rational parameters of spectral radius ≤ 1, or Haar rotations."""
    vocab, horizon = draw(bounds.sizes())
    width = draw(st.integers(1, _MAX_STATES))
    if orthogonal:
        return ISAN.random(width, vocab, horizon, draw(st.integers(0, 99)), orthogonal=True)
    entries = st.integers(-2, 2)
    maps = draw(arrays(np.int64, (horizon - 1,) * per_step + (vocab, width, width), elements=entries))
    readouts = draw(arrays(np.int64, (horizon,) * per_step + (vocab, width), elements=entries))
    initial = draw(arrays(np.int64, width, elements=st.integers(-1, 1)))
    return ISAN(initial / 1.0, maps / (2.0 * width), scale * readouts, horizon)


@st.composite
def _pfas(draw: DrawFn, bounds: _Bounds, per_step: bool = False) -> Oracle:
    vocab, horizon = draw(bounds.sizes())
    states = draw(st.integers(1, _MAX_STATES))
    steps = (horizon,) * per_step
    tokens = draw(laws((*steps, states, vocab), bounds.kinds))
    moves = draw(laws((*steps, states, vocab, states), _hidden(bounds.kinds)))
    joint = np.moveaxis(tokens[..., None] * moves, -2, -3)
    return ProbabilisticAutomaton(draw(laws((states,), _hidden(bounds.kinds))), joint, horizon)


@st.composite
def _dfas(draw: DrawFn, bounds: _Bounds) -> Oracle:
    """Uniform walks of automata in which every state enables a token, all of them when positive."""
    vocab, horizon = draw(bounds.sizes())
    states = draw(st.integers(1, _MAX_STATES + 1))
    low = 0 if bounds.positive else -1
    delta = draw(arrays(np.int64, (states, vocab), elements=st.integers(low, states - 1)))
    stuck = (delta < 0).all(axis=1)
    delta[stuck, 0] = 0
    return ProbabilisticAutomaton.from_dfa(delta, draw(st.integers(0, states - 1)), horizon)


@st.composite
def _ngrams(draw: DrawFn, bounds: _Bounds, kinds: tuple[str, ...] = ()) -> Oracle:
    """Orders up to 3, longer than the horizon at times."""
    vocab, horizon = draw(bounds.sizes())
    order = draw(st.integers(1, 3))
    tables = tuple(draw(laws((vocab,) * (k + 1), kinds or bounds.kinds)) for k in range(order))
    return NGram(order, tables, horizon)


@st.composite
def _tables(draw: DrawFn, bounds: _Bounds, kinds: tuple[str, ...] = ()) -> Oracle:
    """Laws on all strings; the table is kept below 256 cells."""
    vocab = draw(st.integers(1, bounds.vocab))
    longest = bounds.horizon if vocab == 1 else min(bounds.horizon, int(np.log(256.5) / np.log(vocab)))
    horizon = draw(st.integers(1, max(1, longest)))
    allowed = kinds or (("counts",) if bounds.positive else bounds.kinds)
    return Tabular(draw(laws((vocab**horizon,), allowed)).reshape((vocab,) * horizon))


@st.composite
def _parities(draw: DrawFn, bounds: _Bounds) -> Oracle:
    secret = draw(st.lists(st.integers(0, 1), max_size=bounds.horizon - 1))
    return NoisyParity(np.array(secret, dtype=np.int64), draw(bounds.noise()))


@st.composite
def _polynomials(draw: DrawFn, bounds: _Bounds) -> Oracle:
    n = draw(st.integers(0, bounds.horizon - 1))
    subset = st.sets(st.integers(0, n - 1)) if n else st.just(set())
    subsets = draw(st.lists(subset.map(lambda s: tuple(sorted(s))), max_size=min(3, 2**n), unique=True))
    numbers = st.integers(-4, 4).map(lambda k: k / 2)
    weights = draw(st.lists(numbers, min_size=len(subsets), max_size=len(subsets)))
    return SparsePolynomial(n, tuple(subsets), np.array(weights, dtype=np.float64), draw(numbers))


@st.composite
def _copies(draw: DrawFn, bounds: _Bounds) -> Oracle:
    vocab, length = draw(st.integers(1, bounds.vocab)), draw(st.integers(1, bounds.horizon // 2))
    return NoisyCopy(length, vocab, draw(bounds.noise()) if vocab > 1 else 0.0)


def _cauchy(bounds: _Bounds) -> SearchStrategy[Oracle]:
    return st.integers(1, (bounds.horizon - 1) // 2).map(CauchySeparation)


@st.composite
def _branching(draw: DrawFn, bounds: _Bounds) -> Oracle:
    n_bits = draw(st.integers(1, min(3, bounds.horizon - 2)))
    copies = draw(st.integers(1, min(3, bounds.horizon - n_bits - 1)))
    horizon = draw(st.integers(n_bits + copies + 1, bounds.horizon))
    scale = draw(st.sampled_from([0.5, 0.0, 1.0] if bounds.positive else [0.5, 0.0, 1.0, 20.0]))
    return BranchingProgram.random(n_bits, copies, scale, horizon, draw(st.integers(0, 99)))


@st.composite
def _perturbed(draw: DrawFn, bounds: _Bounds) -> Oracle:
    inner = draw(_base(bounds))
    return Perturbed(inner, draw(st.sampled_from([0.1, 0.0, 1.0])), draw(st.integers(0, 9)))


@st.composite
def _restricted(draw: DrawFn, bounds: _Bounds) -> Oracle:
    """Some tokens, in any order, of a model that may be longer."""
    inner = draw(_base(bounds))
    kept = draw(st.permutations(range(inner.vocab_size)))[: draw(st.integers(1, inner.vocab_size))]
    return Restricted(inner, np.array(kept), draw(st.integers(1, inner.horizon or bounds.horizon)))


@st.composite
def _conditioned(draw: DrawFn, bounds: _Bounds, noise: bool = False) -> Oracle:
    """Continuation laws, after impossible histories too; twice conditioned at times."""
    oracle = draw(_perturbed(bounds) if noise else _base(bounds))
    for _ in range(draw(st.integers(1, 2))):
        oracle = oracle.condition(draw(histories(oracle)))
    return oracle


_DIRECT: dict[str, _Family] = {
    "hmm": _Family(_hmms),
    "hmm-per-step": _Family(partial(_hmms, per_step=True)),
    "hmm-one-state": _Family(partial(_hmms, states=1)),
    "hmm-zeros": _Family(partial(_hmms, kinds=("zeros",)), positive=False),
    "hmm-deterministic": _Family(partial(_hmms, kinds=("deterministic",)), positive=False),
    "hmm-near-deterministic": _Family(partial(_hmms, kinds=("near-deterministic",))),
    "isan": _Family(_isans),
    "isan-per-step": _Family(partial(_isans, per_step=True)),
    "isan-rotations": _Family(partial(_isans, orthogonal=True)),
    "isan-large-logits": _Family(partial(_isans, scale=_LOGIT_SCALE), positive=False),
    "weighted-automaton": _Family(_signed_automata),
    "weighted-automaton-per-step": _Family(partial(_signed_automata, per_step=True)),
    "probabilistic-automaton": _Family(_pfas),
    "probabilistic-automaton-per-step": _Family(partial(_pfas, per_step=True)),
    "dfa": _Family(_dfas),
    "ngram": _Family(_ngrams),
    "ngram-zeros": _Family(partial(_ngrams, kinds=("zeros", "deterministic")), positive=False),
    "tabular": _Family(_tables),
    "tabular-zeros": _Family(partial(_tables, kinds=("zeros",)), positive=False),
    "parity": _Family(_parities, vocab=2),
    "polynomial": _Family(_polynomials, vocab=2),
    "copy": _Family(_copies, horizon=2),
    "cauchy": _Family(_cauchy, vocab=2, horizon=3),
    "branching": _Family(_branching, vocab=2, horizon=3),
}
_DERIVED: dict[str, _Family] = {
    "perturbed": _Family(_perturbed),
    "restricted": _Family(_restricted),
    "conditioned": _Family(_conditioned),
    "conditioned-perturbed": _Family(partial(_conditioned, noise=True)),
}


def _fitting(families: dict[str, _Family], bounds: _Bounds) -> dict[str, SearchStrategy[Oracle]]:
    return {
        name: family.make(bounds)
        for name, family in families.items()
        if family.vocab <= bounds.vocab
        and family.horizon <= bounds.horizon
        and (family.positive or not bounds.positive)
    }


def _base(bounds: _Bounds) -> SearchStrategy[Oracle]:
    """Any family that is not a view of another oracle."""
    return st.one_of(*_fitting(_DIRECT, bounds).values())


def teacher_families(
    max_vocab: int = 3, max_horizon: int = 5, positive: bool = False
) -> dict[str, SearchStrategy[Oracle]]:
    """Strategy of every family by name: 27 of them at the default sizes, 22 with positive=True.

    Arguments:
        max_vocab, max_horizon: largest vocabulary and horizon (both ≥ 1); families that need more than
            that (bits need 2 tokens, Cauchy and branching programs 3 positions) are left out.
        positive: every next-token probability is at least `POSITIVE_FLOOR` after every history; families
            that are about zeros are left out.
    """
    bounds = _Bounds(
        as_integer("max_vocab", max_vocab, 1), as_integer("max_horizon", max_horizon, 1), positive
    )
    return _fitting({**_DIRECT, **_DERIVED}, bounds)


def oracles(max_vocab: int = 3, max_horizon: int = 5, positive: bool = False) -> SearchStrategy[Oracle]:
    """Oracles of every family that fits; arguments as in `teacher_families`."""
    return st.one_of(*teacher_families(max_vocab, max_horizon, positive).values())


def strings(oracle: Oracle, length: int | None = None) -> SearchStrategy[list[int]]:
    """Lists of `length` arbitrary tokens of an oracle (default: its horizon), impossible ones included."""
    if length is None:
        if oracle.horizon is None:
            raise HorizonError("this model has no horizon: give length=")
        length = oracle.horizon
    return st.lists(st.integers(0, oracle.vocab_size - 1), min_size=length, max_size=length)


def histories(oracle: Oracle, max_length: int = 8) -> SearchStrategy[list[int]]:
    """Lists of at most `max_length` arbitrary tokens after which a next token can be asked for."""
    longest = max_length if oracle.horizon is None else min(max_length, oracle.horizon - 1)
    return st.lists(st.integers(0, oracle.vocab_size - 1), max_size=longest)


@st.composite
def possible_strings(draw: DrawFn, oracle: Oracle, length: int | None = None) -> list[int]:
    """Strings of positive probability, each token drawn among the possible ones, likely or not."""
    horizon = oracle.horizon
    if length is None:
        if horizon is None:
            raise HorizonError("this model has no horizon: give length=")
        length = horizon
    string: list[int] = []
    for _ in range(length):
        possible = np.flatnonzero(oracle.next_log_probs([string])[0] > -np.inf)
        string.append(draw(st.sampled_from(possible.tolist())))
    return string
