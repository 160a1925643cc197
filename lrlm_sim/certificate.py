"""Certificates: what queries to a teacher prove about the distance to a model.

The strings are drawn afresh from the teacher, so the statement holds for the finished model whatever
its training did, provided the training never saw these strings: use one access throughout, or give
the certifying access a seed of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import log_softmax

from lrlm_sim.confidence import Interval, as_confidence, binomial_interval, false_alarm_budget, mean_interval
from lrlm_sim.exact_distance import common_length
from lrlm_sim.sampled_distance import laws_along, total_variation_terms
from oracles.access import Access, ConditionalProbabilityAccess, LogitAccess
from oracles.access.base import StringAccess
from oracles.base import Oracle
from oracles.checks import as_generator, as_integer, as_number
from oracles.errors import ParameterError
from oracles.ledger import Ledger

_CELLS = 1 << 24  # most logits held at once
_MODEL_STRINGS = 4  # model strings per held-out teacher string: they cost no query
_TOKENS_PER_COUNT = 8  # training tokens per entry of a count table

Statistic = Callable[[Int[np.ndarray, "n length"]], Float[np.ndarray, "n"]]


@dataclass(frozen=True)
class Certificate:
    """A confidence interval for TV(teacher, model) and what it rests on.

    Fields:
        interval: low ≤ TV ≤ high with probability ≥ confidence, noise allowance included.
        method: "ratio", "telescoping" (which gave `high`) or "event" (lower bound only).
        ratio: interval of the ratio estimator alone, at δ/2 beside `telescoping`, else at δ.
        telescoping: interval for Σ_t E TV(P(·|h_t), Q(·|h_t)) at δ/2, low = 0; None without logits.
        noise: the answers' noise bound that was allowed for.
        spent: the queries of this certificate.
        note: what the reader must know besides the numbers; empty if nothing.
    """

    interval: Interval
    method: str
    ratio: Interval | None
    telescoping: Interval | None
    noise: float
    spent: Ledger
    note: str = ""

    @property
    def estimate(self) -> float:
        """Point estimate of TV (for method "event", of a lower bound on it)."""
        return self.interval.estimate

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.interval.low

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.interval.high

    @property
    def n(self) -> int:
        """Number of teacher strings."""
        return self.interval.n

    @property
    def confidence(self) -> float:
        """Probability with which the interval holds."""
        return self.interval.confidence


def certify(
    teacher_access: Access,
    model: Oracle,
    n: int,
    confidence: float = 0.95,
    rng: np.random.Generator | int | None = None,
    *,
    noise: float = 0.0,
    length: int | None = None,
) -> Certificate:
    """Confidence interval for TV(teacher, model) from queries to the teacher alone.

    What is proved depends on the access (n strings are drawn in each case):

    - `LogitAccess`: the logits of every distinct prefix of the strings are asked once, in one batch
      (at most n·T calls). They give P(x), hence the ratio estimator of `estimate_total_variation`
      at δ/2, and the bound TV ≤ Σ_t E_(h~P) TV(P(·|h), Q(·|h)) at δ/2; `high` is the smaller end.
    - `ConditionalProbabilityAccess`: P(x) of every distinct string (at most n calls): ratio estimator.
    - any other access that draws strings: a lower bound only. An event {s(x) ≥ c} is chosen on one
      half of the strings, s a log-likelihood ratio of a count model against Q or −log Q itself, and
      TV ≥ P(event) − Q(event) is bounded on the other half (Clopper–Pearson, δ/2 for each term).
      No number of plain samples gives an upper bound below 1 over a large set of strings without
      assumptions: an adversary may move mass to strings not yet seen.

    `noise` is the bound that the access was made with, and is allowed for. Logits ±ξ: log P(x) is
    off by ≤ 2Tξ, the ratio estimator by ≤ 1 − e^(−2Tξ), each step's TV by ≤ tanh(ξ/2). Probabilities
    e^(±ξ): 1 − e^(−ξ). Samples mixed with ν uniform: 1 − (1 − ν(1 − 1/A))^T. `rng` draws model strings
    for the event; `length` cuts strings off (needed without a horizon).

    Raises ParameterError for an access that draws no strings, ZeroProbabilityError where logits are
    −∞, BudgetError when the budget ends: then nothing is certified.
    """
    length = common_length(teacher_access, model, length)
    n, noise, confidence = as_integer("n", n, 1), as_number("noise", noise, 0.0), as_confidence(confidence)
    before = teacher_access.ledger
    if isinstance(teacher_access, LogitAccess):
        parts = _from_logits(teacher_access, model, n, length, confidence, noise)
    elif isinstance(teacher_access, ConditionalProbabilityAccess):
        parts = _from_probabilities(teacher_access, model, n, length, confidence, noise)
    elif isinstance(teacher_access, StringAccess):
        parts = _from_samples(teacher_access, model, n, length, confidence, noise, as_generator(rng))
    else:
        raise ParameterError(
            f"{type(teacher_access).__name__} draws no strings, so nothing can be certified: use LogitAccess "
            "or ConditionalProbabilityAccess (SampleAccess gives lower bounds)"
        )
    interval, method, ratio, telescoping, note = parts
    return Certificate(interval, method, ratio, telescoping, noise, teacher_access.ledger - before, note)


_Parts = tuple[Interval, str, Interval | None, Interval | None, str]


def _widened(interval: Interval, allowance: float, ceiling: float = 1.0) -> Interval:
    low, high = max(0.0, interval.low - allowance), min(ceiling, interval.high + allowance)
    return Interval(interval.estimate, low, high, interval.n, interval.confidence)


def _from_probabilities(
    access: ConditionalProbabilityAccess, model: Oracle, n: int, length: int, confidence: float, noise: float
) -> _Parts:
    strings, copies = np.unique(access.sample(n, length), axis=0, return_inverse=True)
    log_p = access.log_probs([()], strings)[0]
    terms = total_variation_terms(log_p, model.score(strings))[copies.ravel()]
    interval = _widened(mean_interval(terms, confidence), -math.expm1(-noise))
    return interval, "ratio", interval, None, ""


def _from_logits(
    access: LogitAccess, model: Oracle, n: int, length: int, confidence: float, noise: float
) -> _Parts:
    strings, copies = np.unique(access.sample(n, length), axis=0, return_inverse=True)
    ratios, steps = np.empty(len(strings)), np.empty(len(strings))
    for rows, teacher_laws in _teacher_laws(access, strings):
        ratios[rows], steps[rows] = _compare_along(teacher_laws, model, strings[rows])
    shares = false_alarm_budget(1 - confidence, 2).tolist()
    ratio = _widened(mean_interval(ratios[copies.ravel()], 1 - shares[0]), -math.expm1(-2 * length * noise))
    scaled = mean_interval(steps[copies.ravel()] / max(1, length), 1 - shares[1], side="upper")
    telescoping = _widened(_times(scaled, length), length * math.tanh(noise / 2), ceiling=float(length))
    method = "telescoping" if telescoping.high < ratio.high else "ratio"
    high = min(ratio.high, telescoping.high)
    low = min(ratio.low, high)  # they cross only where one of the two has failed
    interval = Interval(min(max(ratio.estimate, low), high), low, high, n, confidence)
    return interval, method, ratio, telescoping, ""


def _times(interval: Interval, factor: int) -> Interval:
    estimate, low, high = (factor * x for x in (interval.estimate, interval.low, interval.high))
    return Interval(estimate, low, high, interval.n, interval.confidence)


def _compare_along(
    teacher_laws: Float[np.ndarray, "n length vocab"], model: Oracle, strings: Int[np.ndarray, "n length"]
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Per string: max(0, 1 − Q/P), and Σ_t TV(P(·|x_<t), Q(·|x_<t))."""
    n = len(strings)
    log_p, log_q, distance = np.zeros(n), np.zeros(n), np.zeros(n)
    for t, model_rows in enumerate(laws_along(model, strings)):
        teacher_rows, taken = teacher_laws[:, t], (np.arange(n), strings[:, t])
        log_p += teacher_rows[taken]
        log_q += model_rows[taken]
        distance += np.abs(np.exp(teacher_rows) - np.exp(model_rows)).sum(axis=1) / 2
    return total_variation_terms(log_p, log_q), np.minimum(distance, strings.shape[1])


def _teacher_laws(
    access: LogitAccess, strings: Int[np.ndarray, "m length"]
) -> Iterator[tuple[slice, Float[np.ndarray, "block length vocab"]]]:
    """(rows, log P(· | x_<t) of these strings): every distinct prefix is asked once in all.

    `strings` are distinct and sorted, so equal prefixes are neighbours, also across blocks: what a
    block shares with the one before is on the path of that block's last string. Prefixes are asked
    in depth-first order, which lets the teacher read each of them as an extension of the previous.
    """
    m, length = strings.shape
    agree = np.cumprod(strings[1:] == strings[:-1], axis=1).sum(axis=1)
    new = np.arange(length) > np.concatenate([[-1], agree])[:, None]
    numbers = np.where(new, np.cumsum(new).reshape(new.shape) - 1, 0)
    node = np.maximum.accumulate(numbers, axis=0)
    per_block = max(1, _CELLS // max(1, length * access.vocab_size))
    path, asked = np.empty((length, access.vocab_size)), 0
    for first in range(0, m, per_block):
        rows = slice(first, min(m, first + per_block))
        prefixes = [strings[first + i, :t] for i, t in np.argwhere(new[rows])]
        logits = access.grid([()], prefixes)[0]
        table = np.concatenate([path, log_softmax(logits, axis=1)])
        at = np.where(node[rows] >= asked, node[rows] - asked + length, np.arange(length))
        laws = table[at]
        asked += len(prefixes)
        path = laws[-1]
        yield rows, laws


def _from_samples(
    access: StringAccess,
    model: Oracle,
    n: int,
    length: int,
    confidence: float,
    noise: float,
    rng: np.random.Generator,
) -> _Parts:
    """Lower bound by an event chosen on the first half of the strings and measured on the second."""
    as_integer("n", n, 4)
    strings = access.sample(n, length)
    fit, choose, test = np.split(strings, [n // 4, n // 2])
    event = _best_event(fit, choose, model.sample(len(choose), rng, length=length), model)
    model_strings = model.sample(_MODEL_STRINGS * len(test), rng, length=length)
    shares = false_alarm_budget(1 - confidence, 2).tolist()
    seen_p, seen_q = int(event(test).sum()), int(event(model_strings).sum())
    under_p = binomial_interval(seen_p, len(test), 1 - shares[0], side="lower")
    under_q = binomial_interval(seen_q, len(model_strings), 1 - shares[1], side="upper")
    vocab = access.vocab_size
    allowance = -math.expm1(length * math.log1p(-min(noise, 1.0) * (1 - 1 / vocab)))
    low = max(0.0, under_p.low - under_q.high - allowance)
    estimate = max(low, under_p.estimate - under_q.estimate)
    note = (
        "a lower bound only: without the teacher's probabilities no upper bound exists; "
        "LogitAccess or ConditionalProbabilityAccess give one"
    )
    return Interval(estimate, low, 1.0, n, confidence), "event", None, None, note


def _best_event(
    fit: Int[np.ndarray, "a length"],
    choose: Int[np.ndarray, "b length"],
    model_strings: Int[np.ndarray, "c length"],
    model: Oracle,
) -> Callable[[Int[np.ndarray, "n length"]], Bool[np.ndarray, "n"]]:
    """The event {s ≥ c} or {s < c} with the largest gap between teacher's and model's frequencies."""
    counts = [_count_model(fit, model.vocab_size, positional) for positional in (False, True)]

    def surprise(x: np.ndarray) -> np.ndarray:
        return -model.score(x)

    def ratio(count: Statistic) -> Statistic:
        return lambda x: count(x) - model.score(x)

    best_gap, best = -1.0, (surprise, 0.0, False)
    for statistic in (surprise, *map(ratio, counts)):
        of_p, of_q = np.sort(statistic(choose)), np.sort(statistic(model_strings))
        cuts = np.unique(np.concatenate([of_p, of_q]))
        below_p = np.searchsorted(of_p, cuts) / len(of_p)
        below_q = np.searchsorted(of_q, cuts) / len(of_q)
        i = int(np.argmax(np.abs(below_p - below_q)))
        if abs(below_p[i] - below_q[i]) > best_gap:
            best_gap, best = abs(below_p[i] - below_q[i]), (statistic, cuts[i], below_p[i] > below_q[i])
    statistic, cut, below = best
    return lambda x: (statistic(x) < cut) == below


def _count_model(strings: Int[np.ndarray, "n length"], vocab: int, positional: bool) -> Statistic:
    """The function log N(x), N the add-½ model of tokens given the longest context the counts can bear.

    Contexts are the last `order` tokens (a mark stands before the string), with the position if
    `positional`. Any choice is sound: the event is measured on other strings.
    """
    n, length = strings.shape
    places = length if positional else 1
    order = 0
    while order < length and places * (vocab + 1) ** (order + 1) * vocab * _TOKENS_PER_COUNT <= n * length:
        order += 1
    powers = (vocab + 1) ** np.arange(order)

    def contexts(x: np.ndarray) -> np.ndarray:
        padded = np.concatenate([np.full((len(x), order), vocab), x], axis=1)
        past = sum((padded[:, j : j + length] * powers[j] for j in range(order)), np.zeros_like(x))
        return past * places + (np.arange(length) if positional else 0)

    cells = contexts(strings) * vocab + strings
    counts = (
        np.bincount(cells.ravel(), minlength=places * (vocab + 1) ** order * vocab).reshape(-1, vocab) + 0.5
    )
    log_laws = np.log(counts / counts.sum(axis=1, keepdims=True))
    return lambda x: log_laws[contexts(x), x].sum(axis=1)
