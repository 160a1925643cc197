"""Statistical laws of the oracle contract: samples follow the probabilities, and are reproducible."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from lrlm_sim.testing.contract import NotApplicable, Violation
from lrlm_sim.testing.probe import Probe

#: Probability, over all its tests together, that `law_frequencies` rejects a correct oracle.
FALSE_ALARM = 1e-9
_MAX_STRINGS = 256  # whole strings are counted where there are at most so many
_BLOCK_ENTRIES = 1 << 22


def law_frequencies(probe: Probe) -> float:
    """Counts of events against their exact probabilities; returns the largest share of the threshold used.

    Given the prefixes, tokens at position t are independent, so a count S of an event with (prefix
    dependent) probabilities p_i of mean p̄ obeys P(|S − Np̄| as large) ≤ 2 exp(−N KL(S/N ‖ p̄)) (Hoeffding
    1963, Theorem 1): no asymptotics. Events: each token, the likeliest token, the likelier half, and
    each whole string of small models. The false-alarm probability is split evenly over all of them.
    """
    n, length, vocab = probe.samples, probe.length, probe.oracle.vocab_size
    if n == 0:
        raise NotApplicable("samples=0")
    seed = int(probe.rng("frequencies").integers(1 << 31))
    draws = _sampled(probe, n, seed, length)
    whole = vocab**length if vocab**length <= _MAX_STRINGS else 0
    threshold = np.log(2 * (length * (vocab + 2) + whole + vocab) / FALSE_ALARM)
    worst = 0.0
    for t in range(length):
        counts, means = _position_events(probe, draws, t)
        place = f"{n} strings of sample(…, rng={seed}), position {t}"
        worst = max(worst, _tested(place, counts, means, n, threshold))
    if whole:
        strings = np.stack(np.unravel_index(np.arange(whole), (vocab,) * length), axis=1)
        counts = np.bincount(np.ravel_multi_index(tuple(draws.T), (vocab,) * length), minlength=whole)
        place = f"{n} strings of sample(…, rng={seed}), whole strings in lexicographic order"
        worst = max(worst, _tested(place, counts, np.exp(probe.oracle.score(strings)), n, threshold))
    return max(worst, _continued(probe, n, seed, threshold))


def law_reproducible(probe: Probe) -> float:
    """Same seed, same strings: for an int, for a Generator, and for a smaller n."""
    length = probe.length
    first = _sampled(probe, 6, 11, length)
    for description, again in (
        ("rng=11 again", _sampled(probe, 6, 11, length)),
        ("a Generator seeded with 11", probe.oracle.sample(6, np.random.default_rng(11), length=length)),
        ("rng=11, n=3", _sampled(probe, 3, 11, length)),
    ):
        if not np.array_equal(first[: len(again)], again):
            raise Violation(f"sample, {description}", f"{first[: len(again)].tolist()}", f"{again.tolist()}")
    return 0.0


def _sampled(probe: Probe, n: int, seed: int, length: int) -> Int[np.ndarray, "n length"]:
    inputs = f"sample({n}, rng={seed}, length={length})"
    draws = probe.oracle.sample(n, seed, length=length)
    probe.array("sample", draws, (n, length), np.int64, inputs)
    if draws.min(initial=0) < 0 or draws.max(initial=0) >= probe.oracle.vocab_size:
        raise Violation(inputs, f"tokens 0..{probe.oracle.vocab_size - 1}", f"{draws.min()}..{draws.max()}")
    return draws


def _position_events(
    probe: Probe, draws: Int[np.ndarray, "n length"], t: int
) -> tuple[Float[np.ndarray, "events"], Float[np.ndarray, "events"]]:
    """(counts, mean probabilities) of the events at position t, over distinct prefixes in blocks."""
    prefixes, inverse = np.unique(draws[:, :t], axis=0, return_inverse=True)
    vocab = probe.oracle.vocab_size
    counts, means = np.zeros((2, vocab + 2))
    step = max(1, _BLOCK_ENTRIES // vocab)
    for low in range(0, len(prefixes), step):
        rows = np.flatnonzero((inverse.ravel() >= low) & (inverse.ravel() < low + step))
        p = np.exp(probe.oracle.next_log_probs(prefixes[low : low + step]))[inverse.ravel()[rows] - low]
        tokens = draws[rows, t]
        own = p[np.arange(len(rows)), tokens]
        if (own <= 0).any():
            string = draws[rows[int(own.argmin())], : t + 1].tolist()
            raise Violation("sample", "no string of probability zero", f"{string} drawn")
        top = p.max(axis=1)
        # tokens at least as likely as the law's median token by mass: their exact mass, ties included
        descending = -np.sort(-p, axis=1)
        half = np.take_along_axis(
            descending, (np.cumsum(descending, axis=1) < 0.5).sum(axis=1)[:, None], axis=1
        )
        counts += [*np.bincount(tokens, minlength=vocab), (own == top).sum(), (own >= half[:, 0]).sum()]
        means += [*p.sum(axis=0), (p * (p == top[:, None])).sum(), (p * (p >= half)).sum()]
    return counts, means / len(draws)


def _continued(probe: Probe, n: int, seed: int, threshold: float) -> float:
    """First tokens of sample(history=…) after a reference prefix."""
    history = probe.strings[0, : probe.length // 2]
    draws = probe.oracle.sample(n, seed, history=history, length=1)
    probe.array("sample", draws, (n, 1), np.int64, f"sample({n}, history={history.tolist()}, length=1)")
    counts = np.bincount(draws[:, 0], minlength=probe.oracle.vocab_size)
    means = np.exp(probe.oracle.next_log_probs([history])[0])
    return _tested(f"{n} tokens after history {history.tolist()}", counts, means, n, threshold)


def _tested(
    inputs: str, counts: np.ndarray, means: Float[np.ndarray, "events"], n: int, threshold: float
) -> float:
    """Largest N·KL(count/N ‖ mean) as a share of the threshold; Violation above 1."""
    share = n * _bernoulli_kl(counts / n, np.clip(means, 0.0, 1.0)) / threshold
    event = int(share.argmax())
    if share[event] > 1:
        raise Violation(
            f"{inputs}, event {event} (tokens in order, then likeliest token, likelier half)",
            f"about {n * means[event]:.6g} times (false alarm ≤ {FALSE_ALARM:g})",
            f"{counts[event]:g} times",
        )
    return float(share[event])


def _bernoulli_kl(
    observed: Float[np.ndarray, "events"], p: Float[np.ndarray, "events"]
) -> Float[np.ndarray, "events"]:
    """KL(Bernoulli(observed) ‖ Bernoulli(p)), infinite where the observation is impossible."""
    with np.errstate(divide="ignore", invalid="ignore"):
        heads = np.where(observed > 0, observed * np.log(observed / p), 0.0)
        tails = np.where(observed < 1, (1 - observed) * np.log((1 - observed) / (1 - p)), 0.0)
    return np.maximum(heads + tails, 0.0)
