"""Ratios of HMM filtering and sampling to their floors and to hmmlearn: python -m tests.benchmarks.bench_hmm

CPU times, best of interleaved repetitions; set OPENBLAS_NUM_THREADS=1. Filtering is compared with the
bare products of the same shapes (the floor) and with hmmlearn's compiled forward pass; sampling with
hmmlearn's `sample`, timed on fewer tokens and scaled.
"""

from __future__ import annotations

import argparse

import numpy as np
from hmmlearn.hmm import CategoricalHMM

from oracles import HiddenMarkovModel
from tests.benchmarks.bench_distances import best_times

BLOCK = 256


def peer_of(model: HiddenMarkovModel) -> CategoricalHMM:
    """The same model in hmmlearn, without its normalisation checks in the way."""
    peer = CategoricalHMM(model.n_states, n_features=model.vocab_size, implementation="scaling")
    peer.startprob_, peer.transmat_, peer.emissionprob_ = model.initial, model.transition, model.emission
    return peer


def bench(states: int, vocab: int, horizon: int, batch: int, repeats: int) -> None:
    """One row per size: filter / GEMM, hmmlearn / filter, hmmlearn sample / alias sample."""
    model = HiddenMarkovModel.random(states, vocab, horizon, rng=0)
    strings = model.sample(batch, 1)
    beliefs, scratch = np.random.default_rng(0).random((BLOCK, states)), np.empty((BLOCK, states))
    peer, few = peer_of(model), max(1, batch // 32)
    flat, lengths = strings[:few].reshape(-1, 1), [horizon] * few

    def products() -> None:
        for _ in range(batch // BLOCK * (horizon - 1)):
            np.matmul(beliefs, model.transition, out=scratch)

    times = best_times(
        repeats,
        ours=lambda: model.score(strings),
        floor=products,
        peer=lambda: peer.score(flat, lengths),
        sample=lambda: model.sample(batch, 2),
        peer_sample=lambda: peer.sample(2000, random_state=0),
    )
    ours, theirs = times["ours"] / batch, times["peer"] / few
    token, peer_token = times["sample"] / (batch * horizon), times["peer_sample"] / 2000
    error = abs(model.score(strings[:few]).sum() - peer.score(flat, lengths))
    print(
        f"S={states:4d} A={vocab:3d} T={horizon:4d}: "
        f"filter / products {times['ours'] / times['floor']:5.2f}   "
        f"hmmlearn score / ours {theirs / ours:6.1f}   hmmlearn sample / ours {peer_token / token:6.0f}   "
        f"score difference {error:.1e}"
    )


def main() -> None:
    """Print one row for each number of states."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    for states in (8, 16, 64, 128, 256):
        bench(states, 8, 50, 4096, repeats)


if __name__ == "__main__":
    main()
