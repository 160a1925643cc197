"""`check_oracle`: the laws of the oracle contract, run on any oracle.

The laws are those of `oracles.base`; one small function each, listed in `LAWS`. A law takes a `Probe`
(the oracle, random strings of positive probability, and their laws as the oracle itself gives them token
by token), returns the largest deviation it saw, and raises `Violation` with the inputs that broke it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from lrlm_sim.testing.contract import ContractReport, Law, NotApplicable, Violation, run_law
from lrlm_sim.testing.probe import Probe
from lrlm_sim.testing.sampling import law_frequencies, law_reproducible
from oracles.base import LinearForm, Oracle
from oracles.checks import as_generator, as_integer, as_number
from oracles.errors import FormatError, HorizonError, ParameterError, ShapeError, TokenError
from oracles.prefix_tree import group_by_length
from oracles.storage import load, save


def law_attributes(probe: Probe) -> float:
    """vocab_size ≥ 1, horizon None or ≥ 1, identity None or a text that stays the same."""
    vocab, horizon = probe.oracle.vocab_size, probe.oracle.horizon
    if isinstance(vocab, bool) or not isinstance(vocab, (int, np.integer)) or vocab < 1:
        raise Violation("vocab_size", "an integer ≥ 1", repr(vocab))
    if horizon is not None and (not isinstance(horizon, (int, np.integer)) or horizon < 1):
        raise Violation("horizon", "None or an integer ≥ 1", repr(horizon))
    first, again = probe.oracle.identity, probe.oracle.identity
    if not (first is None or isinstance(first, str)) or first != again:
        raise Violation("identity, read twice", "None, or one and the same text", f"{first!r}, {again!r}")
    return 0.0


def law_normalised(probe: Probe) -> float:
    """Shape, dtype, NaN and sums of `log_probs` at every reference prefix (checked by the walk)."""
    return float(np.abs(np.exp(probe.laws).sum(axis=2) - 1).max())


def law_chunks(probe: Probe) -> float:
    """advance(state, chunk) = token by token, for empty, one-token, split and whole chunks."""
    oracle, strings, last = probe.oracle, probe.strings, probe.length - 1
    split = int(probe.rng("chunks").integers(0, last + 1))
    worst = 0.0
    for parts in ((0,), (1,), (last,), (split, last - split), (last, 0)):
        state, read = oracle.start(probe.n), 0
        for part in parts:
            part = min(part, last - read)
            state = oracle.advance(state, strings[:, read : read + part])
            read += part
        inputs = f"advance by chunks of lengths {parts} of {strings[:, :read].tolist()}"
        worst = max(worst, probe.same_laws(inputs, probe.laws[:, read], oracle.log_probs(state)))
    return worst


def law_take(probe: Probe) -> float:
    """`take` commutes with `advance`, for repeated and reordered rows."""
    oracle, strings, last = probe.oracle, probe.strings, probe.length - 1
    rows = probe.rng("take").integers(0, probe.n, probe.n + 3)
    position = last // 2
    inputs = f"take {rows.tolist()} after {strings[:, :position].tolist()}"
    taken = oracle.take(_after(probe, strings[:, :position]), rows)
    worst = probe.same_laws(inputs, probe.laws[rows, position], oracle.log_probs(taken))
    if position < last:
        tokens, expected = strings[:, position], probe.laws[rows, position + 1]
        answer = oracle.log_probs(oracle.advance(taken, tokens[rows]))
        worst = max(worst, probe.same_laws(f"{inputs}, then advance", expected, answer))
        answer = oracle.log_probs(oracle.take(_after(probe, strings[:, : position + 1]), rows))
        worst = max(worst, probe.same_laws(f"{inputs}, after one more advance", expected, answer))
    return worst


def law_batches(probe: Probe) -> float:
    """A row alone, and in reversed company, gets the same answers at every position."""
    worst = 0.0
    alone = [np.array([i]) for i in range(min(3, probe.n))]
    for rows in (*alone, np.arange(probe.n)[::-1]):
        state = probe.oracle.start(len(rows))
        for t in range(probe.length):
            strings = probe.strings[rows]
            inputs = f"batch of {len(rows)}: {strings[:, :t].tolist()}"
            worst = max(worst, probe.same_laws(inputs, probe.laws[rows, t], probe.oracle.log_probs(state)))
            if t + 1 < probe.length:
                state = probe.oracle.advance(state, strings[:, t])
    return worst


def law_values(probe: Probe) -> float:
    """Old states keep their answers after advance, take, and after callers reuse the arrays they hold."""
    oracle, strings, states = probe.oracle, probe.strings, [probe.oracle.start(probe.n)]
    for t in range(probe.length - 1):
        tokens = strings[:, t].copy()
        states.append(oracle.advance(states[-1], tokens))
        tokens[:] = oracle.vocab_size - 1 - tokens
    rows = np.arange(probe.n)
    for state in states:
        answer = oracle.log_probs(state)
        if answer.flags.writeable:
            answer[:] = 0.0
    for t in reversed(range(probe.length)):
        copied = oracle.take(states[t], rows)
        for state in (states[t], copied)[: 2 * (t + 1 < probe.length)]:
            oracle.advance(state, oracle.vocab_size - 1 - strings[:, t])
        rows = rows[::-1].copy()
    worst = 0.0
    for t, state in enumerate(states):
        inputs = f"state of {strings[:, :t].tolist()}, asked again after later advance, take and array reuse"
        worst = max(worst, probe.same_laws(inputs, probe.laws[:, t], oracle.log_probs(state)))
    return worst


def law_score(probe: Probe) -> float:
    """`score` = Σ log_probs along the string, whole, cut short, and after a history."""
    oracle, strings, scores = probe.oracle, probe.strings, probe.string_scores
    middle = (probe.length + 1) // 2
    worst = probe.same_scores(f"score({strings.tolist()})", scores[:, -1], oracle.score(strings))
    inputs = f"score({strings[:, :middle].tolist()})"
    worst = max(worst, probe.same_scores(inputs, scores[:, middle - 1], oracle.score(strings[:, :middle])))
    for i in range(min(2, probe.n)):
        history, rest = strings[i, :middle], strings[i : i + 1, middle:]
        inputs = f"score({rest.tolist()}, history={history.tolist()})"
        expected = scores[i : i + 1, -1] - scores[i : i + 1, middle - 1]
        worst = max(worst, probe.same_scores(inputs, expected, oracle.score(rest, history)))
    return worst


def law_next_log_probs(probe: Probe) -> float:
    """Ragged, repeated and rectangular histories = the walk."""
    lengths = probe.rng("next_log_probs").permutation(np.arange(probe.n) % probe.length).tolist()
    histories = [probe.strings[i, :t].tolist() for i, t in enumerate(lengths)]
    expected = np.stack([probe.laws[i, t] for i, t in enumerate(lengths)])
    twice = probe.oracle.next_log_probs([*histories, *histories])
    worst = probe.same_laws(f"next_log_probs({histories * 2})", np.concatenate([expected, expected]), twice)
    t = probe.length - 1
    answer = probe.oracle.next_log_probs(probe.strings[:, :t])
    return max(worst, probe.same_laws(f"next_log_probs of an array (n, {t})", probe.laws[:, t], answer))


def law_extended(probe: Probe) -> float:
    """extended_log_probs[h, f] = next_log_probs(h∘f), for ragged lists that share prefixes and repeat."""
    oracle, strings, last = probe.oracle, probe.strings, probe.length - 1
    head = last // 2
    histories = [strings[i, : max(0, head - i)].tolist() for i in range(min(3, probe.n))]
    histories.append(histories[0])
    futures = [strings[i, t : t + last - head].tolist() for i in range(min(3, probe.n)) for t in (0, head)]
    futures += [[], futures[0][:1], futures[0]]
    answer = oracle.extended_log_probs(histories, futures)
    shape = (len(histories), len(futures), oracle.vocab_size)
    inputs = f"extended_log_probs(histories={histories}, futures={futures})"
    probe.array("extended_log_probs", answer, shape, np.float64, inputs)
    probe.valid_laws(answer.reshape(-1, oracle.vocab_size), shape[0] * shape[1], inputs)
    joined = [np.array(h + f, dtype=np.int64) for h in histories for f in futures]
    possible = np.zeros(len(joined), dtype=bool)  # after an impossible history any valid law may follow
    for rows, stacked in group_by_length(joined):
        possible[rows] = ~np.isneginf(oracle.score(stacked))
    expected = oracle.next_log_probs(joined)
    return probe.same_laws(inputs, expected[possible], answer.reshape(expected.shape)[possible])


def law_kept_logits(probe: Probe) -> float:
    """kept_logits[h, f, j] = L(tokens[f, j] | h∘f), the mean taken over all tokens."""
    oracle, strings, last = probe.oracle, probe.strings, probe.length - 1
    head, count = last // 2, min(3, probe.n)
    histories = [strings[i, : max(0, head - i)].tolist() for i in range(count)]
    futures = [strings[i, head : head + i].tolist() for i in range(count) if head + i <= last]
    laws = oracle.extended_log_probs(histories, futures)
    if np.isneginf(laws).any():
        return 0.0  # a token of probability zero has no logit
    tokens = (np.arange(2) + np.arange(len(futures))[:, None]) % oracle.vocab_size
    inputs = f"kept_logits(histories={histories}, futures={futures}, tokens={tokens.tolist()})"
    answer = oracle.kept_logits(histories, futures, tokens)
    probe.array("kept_logits", answer, (len(histories), len(futures), 2), np.float64, inputs)
    expected = np.take_along_axis(laws - laws.mean(axis=2, keepdims=True), tokens[None], axis=2)
    return probe.same_scores(inputs, expected, answer)


def law_condition(probe: Probe) -> float:
    """condition(h): the horizon that is left, and the continuations' laws and scores."""
    oracle, strings = probe.oracle, probe.strings
    cut = probe.length // 2
    history, rest = strings[0, :cut], strings[:1, cut:]
    inputs = f"condition({history.tolist()})"
    rests = oracle.condition(history)
    left = None if oracle.horizon is None else oracle.horizon - cut
    if (rests.vocab_size, rests.horizon) != (oracle.vocab_size, left):
        actual = f"{rests.vocab_size}, {rests.horizon}"
        raise Violation(inputs, f"vocab_size, horizon = {oracle.vocab_size}, {left}", actual)
    prefixes = [rest[0, :t].tolist() for t in range(probe.length - cut)]
    worst = probe.same_laws(
        f"{inputs}.next_log_probs({prefixes})", probe.laws[0, cut:], rests.next_log_probs(prefixes)
    )
    expected = oracle.score(rest, history)
    worst = max(worst, probe.same_scores(f"{inputs}.score({rest.tolist()})", expected, rests.score(rest)))
    draws = rests.sample(3, 0, length=rest.shape[1])
    probe.array("sample", draws, (3, rest.shape[1]), np.int64, f"{inputs}.sample(3, 0)")
    return worst


def law_impossible(probe: Probe) -> float:
    """Strings through a zero-probability token score −inf, and valid laws follow it."""
    places = np.argwhere(np.isneginf(probe.laws))
    if len(places) == 0:
        raise NotApplicable("no token of probability zero on the reference strings")
    for row, t, token in places[:: max(1, len(places) // 4)]:
        string = [*probe.strings[row, :t].tolist(), int(token)]
        for impossible in (string, string + probe.strings[row, t + 1 :].tolist()):
            inputs = f"score([{impossible}]), whose token {t} has probability zero"
            probe.same_scores(inputs, np.array([-np.inf]), probe.oracle.score([impossible]))
        if len(string) < probe.length:
            probe.valid_laws(probe.oracle.next_log_probs([string]), 1, f"next_log_probs([{string}])")
    return 0.0


def law_empty(probe: Probe) -> float:
    """Empty batches and empty strings give empty answers and score 0."""
    oracle, vocab, none = probe.oracle, probe.oracle.vocab_size, np.empty(0, dtype=np.int64)
    nothing = np.empty((0, probe.length), dtype=np.int64)
    start = oracle.start(2)
    for inputs, values, shape, dtype in (
        ("log_probs(take(state, []))", oracle.log_probs(oracle.take(start, none)), (0, vocab), np.float64),
        ("sample(0)", oracle.sample(0, 0, length=probe.length), (0, probe.length), np.int64),
        ("sample(2, length=0)", oracle.sample(2, 0, length=0), (2, 0), np.int64),
        ("score of no strings", oracle.score(nothing), (0,), np.float64),
        ("next_log_probs([])", oracle.next_log_probs([]), (0, vocab), np.float64),
        ("extended_log_probs([], [[]])", oracle.extended_log_probs([], [[]]), (0, 1, vocab), np.float64),
        ("extended_log_probs([[]], [])", oracle.extended_log_probs([[]], []), (1, 0, vocab), np.float64),
    ):
        probe.array(inputs, values, shape, dtype, inputs)
    return probe.same_scores(
        "score of two empty strings", np.zeros(2), oracle.score(np.empty((2, 0), dtype=np.int64))
    )


def law_horizon(probe: Probe) -> float:
    """Strings of exactly horizon tokens work, one more raises HorizonError."""
    oracle, horizon = probe.oracle, probe.full_horizon
    if oracle.horizon is None:
        probe.refuses("sample(1) without length, horizon None", lambda: oracle.sample(1, 0), HorizonError)
        return 0.0
    if horizon is None:
        raise NotApplicable(f"horizon = {oracle.horizon} is too long to walk")
    string = oracle.sample(1, 0)
    probe.array("sample", string, (1, horizon), np.int64, "sample(1, rng=0)")
    longer = np.concatenate([string, string[:, :1]], axis=1)
    before = oracle.advance(oracle.start(1), string[:, :-1])
    probe.valid_laws(oracle.log_probs(before), 1, f"state after horizon − 1 = {horizon - 1} tokens")
    whole = oracle.advance(before, string[:, -1])
    for inputs, call in (
        (f"log_probs after {horizon} tokens", lambda: oracle.log_probs(whole)),
        (f"advance by one token after {horizon}", lambda: oracle.advance(whole, longer[:, -1])),
        (f"advance by {horizon + 1} tokens at once", lambda: oracle.advance(oracle.start(1), longer)),
        (f"score of {horizon + 1} tokens", lambda: oracle.score(longer)),
        (f"score of 1 token after {horizon}", lambda: oracle.score(longer[:, :1], string[0])),
        (f"sample(1, length={horizon + 1})", lambda: oracle.sample(1, 0, length=horizon + 1)),
        (f"next_log_probs after {horizon} tokens", lambda: oracle.next_log_probs(string)),
        (f"extended_log_probs after {horizon} tokens", lambda: oracle.extended_log_probs(string, [[]])),
        (f"condition({horizon + 1} tokens)", lambda: oracle.condition(longer[0])),
    ):
        probe.refuses(inputs, call, HorizonError)
    return 0.0


def law_bad_tokens(probe: Probe) -> float:
    """−1, vocab_size and floats are not tokens, wherever tokens are given."""
    oracle = probe.oracle
    for bad in (-1, oracle.vocab_size, 0.0, np.nan):
        for inputs, call in (
            (f"advance(start(2), [0, {bad}])", lambda bad=bad: oracle.advance(oracle.start(2), [0, bad])),
            (f"advance(start(1), [[{bad}]])", lambda bad=bad: oracle.advance(oracle.start(1), [[bad]])),
            (f"score([[{bad}]])", lambda bad=bad: oracle.score([[bad]])),
            (f"sample(1, history=[{bad}], length=0)", lambda bad=bad: oracle.sample(1, 0, [bad], 0)),
            (f"condition([{bad}])", lambda bad=bad: oracle.condition([bad])),
            (f"next_log_probs([[{bad}]])", lambda bad=bad: oracle.next_log_probs([[bad]])),
            (
                f"extended_log_probs([[]], [[{bad}]])",
                lambda bad=bad: oracle.extended_log_probs([[]], [[bad]]),
            ),
        ):
            probe.refuses(inputs, call, TokenError)
    return 0.0


def law_bad_shapes(probe: Probe) -> float:
    """Wrong numbers of axes or rows, and rows that are not there, raise ShapeError."""
    oracle = probe.oracle
    for inputs, call in (
        ("advance(start(2), [0])", lambda: oracle.advance(oracle.start(2), [0])),
        ("advance(start(2), 0)", lambda: oracle.advance(oracle.start(2), 0)),
        ("advance(start(1), [[[0]]])", lambda: oracle.advance(oracle.start(1), [[[0]]])),
        ("take(start(2), [2])", lambda: oracle.take(oracle.start(2), [2])),
        ("take(start(2), [-1])", lambda: oracle.take(oracle.start(2), [-1])),
        ("take(start(2), [0.0])", lambda: oracle.take(oracle.start(2), [0.0])),
        ("take(start(2), [[0]])", lambda: oracle.take(oracle.start(2), [[0]])),
        ("score([0])", lambda: oracle.score([0])),
        ("next_log_probs([0])", lambda: oracle.next_log_probs([0])),
        ("condition([[0]])", lambda: oracle.condition([[0]])),
    ):
        probe.refuses(inputs, call, ShapeError)
    probe.refuses("start(-1)", lambda: oracle.start(-1), ParameterError)
    probe.refuses("sample(-1)", lambda: oracle.sample(-1, 0, length=1), ParameterError)
    return 0.0


def law_linear_form(probe: Probe) -> float:
    """The product of matrices agrees with score, and its total mass is one."""
    form = probe.oracle.linear_form()
    if form is None:
        raise NotApplicable("the model has no linear form")
    if probe.full_horizon is None:
        raise NotApplicable(f"horizon = {probe.oracle.horizon} is not walked")
    expected = (probe.full_horizon, probe.oracle.vocab_size)
    actual = (len(form.operators), *{len(operator) for operator in form.operators})
    if actual != expected:
        raise Violation("linear_form().operators", f"horizon, vocab_size = {expected}", f"{actual}")
    strings = probe.oracle.sample(probe.n, 0)
    inputs = f"log of the matrix product of {strings.tolist()}"
    worst = probe.same_scores(inputs, probe.oracle.score(strings), _product_log(form, strings))
    summed = LinearForm(form.initial, [operator.sum(axis=0)[None] for operator in form.operators], form.final)
    total = _product_log(summed, np.zeros((1, len(form.operators)), dtype=np.int64))
    return max(worst, probe.same_scores("log of the total mass", np.zeros(1), total))


def law_storage(probe: Probe) -> float:
    """`save`, then `load`, gives the same model, for models that can be stored."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        try:
            save(probe.oracle, path)
        except FormatError as reason:
            raise NotApplicable(str(reason)) from None
        again = load(path)
    expected = (type(probe.oracle), probe.oracle.vocab_size, probe.oracle.horizon)
    actual = (type(again), again.vocab_size, again.horizon)
    if actual != expected:
        raise Violation("load(save(model))", f"{expected}", f"{actual}")
    inputs = f"score({probe.strings.tolist()}) after load"
    return probe.same_scores(inputs, probe.string_scores[:, -1], again.score(probe.strings))


LAWS: tuple[Law[Probe], ...] = (
    Law("attributes", "vocab_size and horizon are positive integers, horizon may be None", law_attributes),
    Law("normalised", "log_probs are float64 (batch, vocab_size), never NaN, sum to one", law_normalised),
    Law("batches", "a row's answers do not depend on the batch around it", law_batches),
    Law("chunks", "advancing by a chunk equals advancing token by token", law_chunks),
    Law("take", "take and advance commute, rows may repeat", law_take),
    Law("values", "states are values: no later call changes their answers", law_values),
    Law("score", "score is the sum of log_probs along the string", law_score),
    Law("next_log_probs", "next_log_probs is log_probs after each history", law_next_log_probs),
    Law("extended_log_probs", "extended_log_probs[h, f] equals next_log_probs(h∘f)", law_extended),
    Law("kept_logits", "kept_logits are the centred logits of the tokens kept", law_kept_logits),
    Law("condition", "condition(h) is the continuation law after h", law_condition),
    Law("impossible", "strings of probability zero score −inf, valid laws follow them", law_impossible),
    Law("empty", "empty batches and strings give empty answers", law_empty),
    Law("horizon", "horizon tokens fit, one more raises HorizonError", law_horizon),
    Law("bad_tokens", "what is not a token raises TokenError", law_bad_tokens),
    Law("bad_shapes", "wrong shapes and rows raise ShapeError, counts ParameterError", law_bad_shapes),
    Law("reproducible", "the same seed gives the same strings, whatever n", law_reproducible),
    Law("frequencies", "samples follow the probabilities", law_frequencies),
    Law("linear_form", "the product of matrices equals exp(score)", law_linear_form),
    Law("storage", "a stored model loads as the same model", law_storage),
)


def check_oracle(
    oracle: Oracle,
    *,
    rng: np.random.Generator | int | None = 0,
    n: int = 8,
    length: int = 8,
    samples: int = 2000,
    tolerance: float = 1e-9,
) -> ContractReport:
    """Check every law of the oracle contract; returns what was checked, raises at the first broken law.

    Arguments:
        rng: seed of the strings and samples; the same seed repeats the same checks.
        n: batch of strings (≥ 2). length: their length (the horizon if that is shorter).
        samples: strings drawn for the test of frequencies, 0 to leave it out (slow models). Its chance to
            reject a correct model is ≤ 1e-9; deviations of about 3/√samples are seen.
        tolerance: largest |a − b|/(1 + |a|) between log-probabilities that should be equal, and of
            sums from one; 1e-9 suits float64 models, 1e-3 float32 accelerators.

    A model without a law of the empty history is checked as `oracle.condition(prefix)`.
    About 30·length calls of `advance` and `log_probs` on n rows, and length calls on `samples` rows.
    Raises `ContractError` naming the law, the inputs that broke it, and what was expected.
    """
    if not isinstance(oracle, Oracle):
        raise ParameterError(
            f"check_oracle takes an oracles.Oracle, got {type(oracle).__name__}: subclass Oracle"
        )
    probe = Probe(
        oracle,
        seed=int(as_generator(rng).integers(1 << 63)),
        n=as_integer("n", n, 2),
        max_length=as_integer("length", length, 1),
        samples=as_integer("samples", samples, 0),
        tolerance=as_number("tolerance", tolerance, 0.0),
    )
    return ContractReport(repr(oracle), tuple(run_law(law, probe) for law in LAWS))


def _after(probe: Probe, tokens: np.ndarray) -> object:
    return probe.oracle.advance(probe.oracle.start(len(tokens)), tokens)


def _product_log(form: LinearForm, strings: np.ndarray) -> np.ndarray:
    """Log of initial · O[x_1] ··· O[x_T] · final for each string, rescaled at each step; −inf for ≤ 0."""
    vectors = np.repeat(form.initial[None, :], len(strings), axis=0)
    total = np.zeros(len(strings))
    for operator, tokens in zip(form.operators, strings.T, strict=True):
        vectors = np.einsum("ns,nsr->nr", vectors, operator[tokens])
        size = np.abs(vectors).max(axis=1, keepdims=True)
        size[size == 0] = 1.0
        vectors = vectors / size
        total += np.log(size[:, 0])
    with np.errstate(divide="ignore"):
        return total + np.log(np.maximum(vectors @ form.final, 0.0))
