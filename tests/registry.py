"""One line per oracle: every law of the contract runs on each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from oracles import (
    ISAN,
    BranchingProgram,
    CauchySeparation,
    HiddenMarkovModel,
    NGram,
    NoisyCopy,
    NoisyParity,
    Oracle,
    ProbabilisticAutomaton,
    RecurrentOracle,
    SparsePolynomial,
    Tabular,
    WeightedAutomaton,
    open_oracle,
    perturbed,
    restricted,
)


def per_step_hmm(states: int, vocab_size: int, horizon: int, seed: int) -> HiddenMarkovModel:
    """Hidden Markov model with arrays of its own at every position."""
    rng = np.random.default_rng(seed)
    transition = rng.dirichlet(np.ones(states), (horizon - 1, states))
    emission = rng.dirichlet(np.ones(vocab_size), (horizon, states))
    return HiddenMarkovModel(rng.dirichlet(np.ones(states)), transition, emission, horizon)


def deterministic_hmm(horizon: int) -> HiddenMarkovModel:
    """The periodic string 0 1 2 0 1 2 …"""
    return HiddenMarkovModel(np.eye(3)[0], np.roll(np.eye(3), 1, axis=1), np.eye(3), horizon)


def sparse_hmm() -> HiddenMarkovModel:
    """Zeros in every array."""
    transition = [[0.5, 0.5, 0.0], [0.0, 0.2, 0.8], [1.0, 0.0, 0.0]]
    emission = [[1.0, 0.0, 0.0], [0.0, 0.3, 0.7], [0.5, 0.5, 0.0]]
    return HiddenMarkovModel([0.4, 0.0, 0.6], transition, emission, 5)


def per_step_isan(width: int, vocab_size: int, horizon: int, seed: int) -> ISAN:
    """Network with Gaussian maps of its own at every position."""
    rng = np.random.default_rng(seed)
    transitions = rng.standard_normal((horizon - 1, vocab_size, width, width)) / np.sqrt(width)
    readouts = rng.standard_normal((horizon, vocab_size, width))
    return ISAN(rng.standard_normal(width), transitions, readouts, horizon)


def signed_automaton(oracle: Oracle, seed: int) -> WeightedAutomaton:
    """A homogeneous or per-step linear form in a random orthogonal basis: weights of both signs."""
    form = oracle.linear_form()
    assert form is not None
    states = len(form.initial)
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((states, states)))[0]
    weights = np.stack([basis.T @ operator @ basis for operator in form.operators])
    return WeightedAutomaton(form.initial @ basis, weights, basis.T @ form.final, oracle.horizon)


def random_pfa(
    states: int, vocab_size: int, horizon: int, seed: int, steps: int = 0
) -> ProbabilisticAutomaton:
    """Dirichlet joint laws, per step when `steps` is the horizon."""
    rng = np.random.default_rng(seed)
    joint = rng.dirichlet(np.ones(vocab_size * states), (steps or 1, states))
    transitions = joint.reshape(-1, states, vocab_size, states).transpose(0, 2, 1, 3)
    return ProbabilisticAutomaton(
        rng.dirichlet(np.ones(states)), transitions if steps else transitions[0], horizon
    )


def sparse_ngram() -> NGram:
    """Bigrams that never repeat a token."""
    return NGram(2, ([0.5, 0.5, 0.0], [[0.0, 0.5, 0.5], [0.9, 0.0, 0.1], [1.0, 0.0, 0.0]]), 4)


def sparse_table() -> Tabular:
    """Three strings of eight are possible."""
    law = np.zeros((2, 2, 2))
    law[0, 0, 0], law[0, 1, 1], law[1, 0, 1] = 0.5, 0.25, 0.25
    return Tabular(law)


def random_table(vocab_size: int, horizon: int, seed: int) -> Tabular:
    """Dirichlet law on all strings."""
    shape = (vocab_size,) * horizon
    return Tabular(np.random.default_rng(seed).dirichlet(np.ones(vocab_size**horizon)).reshape(shape))


@dataclass(frozen=True, eq=False)
class Unbounded(RecurrentOracle):
    """A model without horizon, as a user would write one: the more ones, the likelier another."""

    vocab_size: int = 2
    horizon: None = None

    def first_row(self) -> np.ndarray:
        return np.zeros(1)

    def step(self, position: int, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        return 0.5 * rows + tokens[:, None]

    def laws(self, position: int, rows: np.ndarray) -> np.ndarray:
        ones = 1 / (1 + np.exp(1 - rows))
        return np.log(np.concatenate([1 - ones, ones], axis=1))


# An even number of ones, never three zeros in a row.
_DFA = np.array([[1, 3], [2, 3], [-1, 3], [4, 0], [5, 0], [-1, 0]])

ORACLES: dict[str, Callable[[], Oracle]] = {
    "hmm": lambda: HiddenMarkovModel.random(3, 4, 6, 0),
    "hmm-one-state": lambda: HiddenMarkovModel.random(1, 3, 4, 1),
    "hmm-one-token": lambda: HiddenMarkovModel.random(3, 1, 4, 2),
    "hmm-horizon-1": lambda: HiddenMarkovModel.random(3, 4, 1, 3),
    "hmm-per-step": lambda: per_step_hmm(3, 2, 5, 4),
    "hmm-per-step-horizon-1": lambda: per_step_hmm(2, 3, 1, 5),
    "hmm-zeros": sparse_hmm,
    "hmm-deterministic": lambda: deterministic_hmm(7),
    "hmm-peaked": lambda: HiddenMarkovModel.random(4, 5, 6, 6, concentration=0.01),
    "hmm-long": lambda: HiddenMarkovModel.random(3, 3, 200, 7),
    "isan": lambda: ISAN.random(3, 4, 6, 0),
    "isan-orthogonal": lambda: ISAN.random(3, 3, 6, 1, orthogonal=True),
    "isan-per-step": lambda: per_step_isan(3, 3, 5, 2),
    "isan-width-1": lambda: ISAN.random(1, 3, 4, 3),
    "isan-one-token": lambda: ISAN.random(2, 1, 4, 4),
    "isan-horizon-1": lambda: per_step_isan(2, 3, 1, 5),
    "isan-large-logits": lambda: ISAN.random(3, 3, 5, 6, scale=200.0),
    "isan-long": lambda: ISAN.random(4, 3, 200, 7),
    "isan-wide-vocabulary": lambda: ISAN.random(3, 300, 4, 8),
    "weighted": lambda: signed_automaton(HiddenMarkovModel.random(3, 3, 5, 0), 1),
    "weighted-zeros": lambda: signed_automaton(sparse_hmm(), 2),
    "weighted-one-state": lambda: WeightedAutomaton([2.0], [[[0.25]], [[0.75]]], [0.5], 4),
    "weighted-one-token": lambda: WeightedAutomaton([1.0], [[[1.0]]], [1.0], 3),
    "weighted-horizon-1": lambda: WeightedAutomaton([1.0], [[[0.5]], [[0.5]]], [1.0], 1),
    "pfa": lambda: random_pfa(3, 3, 5, 0),
    "pfa-per-step": lambda: random_pfa(2, 3, 4, 1, steps=4),
    "pfa-one-token": lambda: random_pfa(2, 1, 4, 2),
    "dfa": lambda: ProbabilisticAutomaton.from_dfa(_DFA, 0, 6),
    "dfa-one-path": lambda: ProbabilisticAutomaton.from_dfa([[1, -1], [-1, 0]], 0, 5),
    "ngram": lambda: NGram.random(3, 3, 5, 0),
    "ngram-independent": lambda: NGram.random(1, 4, 4, 1),
    "ngram-longer-than-horizon": lambda: NGram.random(4, 2, 2, 2),
    "ngram-one-token": lambda: NGram.random(2, 1, 3, 3),
    "ngram-zeros": sparse_ngram,
    "tabular": lambda: random_table(3, 4, 0),
    "tabular-zeros": sparse_table,
    "tabular-horizon-1": lambda: Tabular([0.2, 0.0, 0.8]),
    "tabular-one-token": lambda: Tabular([[[1.0]]]),
    "parity": lambda: NoisyParity([0, 1, 1, 0], 0.1),
    "parity-noiseless": lambda: NoisyParity([1, 1, 1], 0.0),
    "parity-no-bits": lambda: NoisyParity([], 0.3),
    "parity-hmm": lambda: NoisyParity([1, 0, 1], 0.2).to_hmm(),
    "parity-isan": lambda: NoisyParity([1, 0, 1], 0.2).to_isan(),
    "polynomial": lambda: SparsePolynomial(4, ((0, 2), (1,), (0, 1, 3)), [1.0, -0.7, 0.3], 0.2),
    "polynomial-constant": lambda: SparsePolynomial(3, (), [], 0.4),
    "polynomial-isan": lambda: SparsePolynomial.random(4, 3, 0, bias=0.5).to_isan(),
    "copy": lambda: NoisyCopy(3, 3, 0.2),
    "copy-noiseless": lambda: NoisyCopy(2, 3, 0.0),
    "copy-one-token": lambda: NoisyCopy(2, 1, 0.0),
    "copy-isan": lambda: NoisyCopy(2, 3, 0.2).to_isan(),
    "cauchy": lambda: CauchySeparation(3),
    "cauchy-isan": lambda: CauchySeparation(2).to_isan(),
    "branching": lambda: BranchingProgram.random(3, 4, 0.7, rng=0),
    "branching-padded": lambda: BranchingProgram.random(2, 3, 1.0, 9, rng=1),
    "branching-isan": lambda: BranchingProgram.random(2, 3, 1.0, 7, rng=2).to_isan(),
    "perturbed": lambda: perturbed(HiddenMarkovModel.random(3, 3, 5, 8), 0.1, 0),
    "perturbed-zeros": lambda: perturbed(sparse_hmm(), 0.5, 1),
    "perturbed-nothing": lambda: perturbed(NoisyParity([1, 1], 0.1), 0.0, 2),
    "perturbed-twice": lambda: perturbed(perturbed(NGram.random(2, 3, 4, 4), 0.3, 0), 0.3, 1),
    "conditioned": lambda: HiddenMarkovModel.random(3, 4, 7, 9).condition([1, 0]),
    "conditioned-twice": lambda: NoisyCopy(3, 3, 0.2).condition([1, 0]).condition([2]),
    "conditioned-nothing": lambda: ISAN.random(3, 3, 4, 9).condition([]),
    "conditioned-perturbed": lambda: perturbed(ISAN.random(3, 3, 6, 9), 0.2, 3).condition([2, 2]),
    "conditioned-impossible": lambda: sparse_hmm().condition([2, 2]),
    "restricted": lambda: restricted(HiddenMarkovModel.random(3, 4, 6, 8), [3, 0, 2], 5),
    "restricted-zeros": lambda: restricted(sparse_hmm(), [2, 1]),
    "unbounded": Unbounded,
    "opened": lambda: open_oracle("hmm:n_states=2,vocab_size=3,horizon=4,seed=5"),
}
