"""A language model behind an OpenAI-compatible ``/v1/completions`` endpoint, as an oracle.

The state is the prefix itself. Prompts are sent as token numbers; answers are log-probabilities, read
by `oracles.completions_protocol` and never trusted unseen: a law that lacks a token or does not sum to one
is an error, not an approximation.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from oracles.base import Oracle
from oracles.cache import Cache, Space, as_cache
from oracles.checks import as_chunk, as_integer, as_rows, as_strings, as_tokens, check_length
from oracles.completions_client import (
    AnswerError,
    CapabilityError,
    CompletionsClient,
    Purse,
    RefusedError,
    RetryPolicy,
    ServerError,
    SpentError,
)
from oracles.completions_protocol import (
    echo_body,
    law_body,
    normalised,
    probe,
    read_law,
    read_prompt_log_probs,
)
from oracles.errors import BudgetError, HorizonError, InconsistentAnswerError, ParameterError, ShapeError
from oracles.ledger import Ledger

__all__ = ["AnswerError", "CapabilityError", "CompletionsOracle", "RefusedError", "ServerError"]

_LAWS = "next-token law"
#: Total variation of the probed law from the stored one above which the server's model has changed.
_SAME_MODEL = 0.05

#: Asks one question; may give up when the event is set.
Ask = Callable[[Int[np.ndarray, "length"], threading.Event], Float[np.ndarray, "width"]]
Convert = Callable[[Float[np.ndarray, "n width"]], np.ndarray]


@dataclass(frozen=True, eq=False)
class CompletionsState:
    """`prefixes[i]` is the history of row i."""

    prefixes: Int[np.ndarray, "batch length"]


class CompletionsOracle(Oracle):
    """A language model on a server that speaks OpenAI's completions protocol with log-probabilities.

    At construction the server is asked what it tells (at most eight small requests). It must answer the
    log-probabilities of all tokens (vLLM: start it with ``--max-logprobs -1``). With `law_by_token` the
    scores of a prompt's own tokens (``echo``) are enough. Otherwise CapabilityError says what the server
    can be used for instead. `abilities` holds what was found.

    Arguments:
        base_url: address that ``/completions`` is appended to, such as ``http://127.0.0.1:8000/v1``.
        model: the model's name on the server.
        vocab_size: number of tokens; None: learned from the server. It is the width of the model's
            output layer, often more than its tokenizer has.
        vocabulary: text of every token, in order, all different: for servers that name tokens by text.
        law_by_token: where the server only scores prompts, put a law together from `vocab_size` requests.
        tokenizer: kept as `.tokenizer` for the user; its `bos_token_id` is the token of the empty history.
        bos_token_id: token before every history; None: the tokenizer's, ``"none"``: do without.
        horizon: T if strings end there; None means unbounded.
        api_key_env: environment variable with the API key; None: LRLM_API_KEY where it is set. The key
            is sent to the server and stands nowhere else.
        concurrency: most requests under way at once.
        call_budget, token_budget: most requests, and most tokens (prompts and generated), this object may
            spend, the probe and repeated attempts included. BudgetError then hands over what was answered.
        store: None, True (memory), a path or a `Cache`: answers are kept there, on the disk before they are
            used, and never paid for again. None keeps nothing between calls.
        identity: names the model and its exact weights in stores; the default is the address and the model.
            If the server's law differs from the stored one by 0.05 in total variation,
            InconsistentAnswerError is raised at construction.
        timeout: seconds to wait for an answer. attempts, backoff, longest_wait: see `RetryPolicy`.

    Histories are given without BOS. Without one, the empty history is an empty prompt; where the server
    refuses that, asking for it raises ParameterError. A server that must generate a token to score a prompt
    (`abilities.echo_tokens` = 1) cannot score strings that fill its whole context. `close` (or ``with``)
    releases the connections, as does the end of the object's life. One object serves one thread.

    Errors of the server: `ServerError` (no answer), `RefusedError` (status 3xx, 4xx), `AnswerError`
    (log-probabilities missing), NonFiniteError (NaN), ProbabilityError (laws that do not sum to one).
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        vocab_size: int | None = None,
        vocabulary: Sequence[str] | None = None,
        law_by_token: bool = False,
        tokenizer: Any = None,
        bos_token_id: int | Literal["none"] | None = None,
        horizon: int | None = None,
        api_key_env: str | None = None,
        concurrency: int = 8,
        call_budget: int | None = None,
        token_budget: int | None = None,
        store: Cache | bool | str | os.PathLike[str] | None = None,
        identity: str | None = None,
        timeout: float = 60.0,
        attempts: int = 6,
        backoff: float = 0.5,
        longest_wait: float = 60.0,
    ) -> None:
        if not isinstance(model, str) or not model:
            raise ParameterError(f"model must be the model's name on the server, got {model!r}")
        self.model, self.tokenizer = model, tokenizer
        self.horizon = None if horizon is None else as_integer("horizon", horizon, 1)
        texts = _numbered(vocabulary)
        if vocab_size is not None:
            vocab_size = as_integer("vocab_size", vocab_size, 1)
        elif vocabulary is not None:
            vocab_size = len(vocabulary)
        self.bos_token_id = _bos_token(tokenizer, bos_token_id)
        self._start = [] if self.bos_token_id is None else [self.bos_token_id]
        self._purse = Purse(call_budget, token_budget)
        policy = RetryPolicy(timeout, attempts, backoff, longest_wait)
        self._client = CompletionsClient(base_url, api_key_env, concurrency, policy, self._purse)
        self._finalizer = weakref.finalize(self, self._client.close)
        self._identity = f"{self._client.base_url}#{model}" if identity is None else identity
        try:
            self._cache = as_cache(store, self)
            self._stored_as = "" if self._cache is None else self._cache.identify(self)
            self.abilities, law = probe(
                self._client.send, model, self._start, vocab_size, texts, law_by_token
            )
            self.vocab_size = self.abilities.vocab_size
            self._check_bos()
            if law is not None:
                self._check_stored(law)
        except SpentError:
            self.close()
            raise self._budget_error(None, 0, 1) from None
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return (
            f"CompletionsOracle({self._client.base_url!r}, {self.model!r}, vocab_size={self.vocab_size}, "
            f"horizon={self.horizon}, bos_token_id={self.bos_token_id})"
        )

    def __enter__(self) -> CompletionsOracle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; nothing can be asked afterwards."""
        self._finalizer()

    @property
    def identity(self) -> str:
        """Name of the model in persistent caches."""
        return self._identity

    @property
    def ledger(self) -> Ledger:
        """What was sent to the server: requests, distinct prompts, tokens; the probe included."""
        return self._purse.ledger

    def start(self, batch: int) -> CompletionsState:
        return CompletionsState(np.empty((as_integer("batch", batch, 0), 0), dtype=np.int64))

    def advance(self, state: CompletionsState, tokens: ArrayLike) -> CompletionsState:
        chunk = as_chunk(tokens, len(state.prefixes), self.vocab_size)
        prefixes = np.concatenate([state.prefixes, chunk], axis=1)
        check_length(prefixes.shape[1], self.horizon)
        return CompletionsState(prefixes)

    def log_probs(self, state: CompletionsState) -> Float[np.ndarray, "batch vocab"]:
        return self._laws(list(state.prefixes), state.prefixes.shape[1])

    def take(self, state: CompletionsState, rows: ArrayLike) -> CompletionsState:
        return CompletionsState(state.prefixes[as_rows(rows, len(state.prefixes))])

    def next_log_probs(self, histories: Sequence[ArrayLike] | np.ndarray) -> Float[np.ndarray, "n vocab"]:
        """Next-token laws, each distinct history asked once; BudgetError.answered: the first rows."""
        strings = as_strings("histories", histories, self.vocab_size)
        return self._laws(strings, max(map(len, strings), default=0))

    def extended_log_probs(
        self, histories: Sequence[ArrayLike] | np.ndarray, futures: Sequence[ArrayLike] | np.ndarray
    ) -> Float[np.ndarray, "n_h n_f vocab"]:
        """Laws after every history ∘ future, each distinct string asked once, all in one batch."""
        heads = as_strings("histories", histories, self.vocab_size)
        tails = as_strings("futures", futures, self.vocab_size)
        laws = self.next_log_probs([np.concatenate([head, tail]) for head in heads for tail in tails])
        return laws.reshape(len(heads), len(tails), self.vocab_size)

    def score(self, sequences: ArrayLike, history: ArrayLike | None = None) -> Float[np.ndarray, "n"]:
        """Log P(sequence | history): one request per distinct string where the server scores prompts.

        Elsewhere from next-token laws, one request per distinct prefix. BudgetError.answered: the
        first scores.
        """
        if not self.abilities.prompt_log_probs:
            return super().score(sequences, history)
        strings = as_tokens("sequences", sequences, self.vocab_size, 2)
        prefix, length = self._span(history, strings.shape[1])
        first = np.zeros(len(strings))
        if strings.size == 0:
            return first
        known = len(self._start) + len(prefix)
        if known == 0:  # no server tells the probability of a prompt's first token
            first = self._laws([prefix], 0)[0][strings[:, 0]]
        if known + length == 1:
            return first
        prompts = [np.concatenate([self._start, prefix, string]).astype(np.int64) for string in strings]
        skipped = max(0, known - 1)

        def total(rows: np.ndarray) -> np.ndarray:
            return first[: len(rows)] + rows[:, skipped:].sum(axis=1)

        return self._prompt_log_probs(prompts, total)

    def _laws(self, strings: list[np.ndarray], longest: int) -> Float[np.ndarray, "n vocab"]:
        """Laws after strings of at most `longest` tokens."""
        if self.horizon is not None and longest >= self.horizon:
            raise HorizonError(f"no token follows after horizon = {self.horizon} tokens, got {longest}")
        prompts = [np.concatenate([self._start, string]).astype(np.int64) for string in strings]
        if not self.abilities.laws:
            return self._laws_by_token(prompts)

        def ask(prompt: np.ndarray, stop: threading.Event) -> np.ndarray:
            body = law_body(self.model, prompt.tolist(), self.abilities)
            try:
                answer = self._client.send(body, stop)
            except RefusedError as error:
                if len(prompt):
                    raise
                raise ParameterError(
                    f"{error}: the server has no law of the empty history, give bos_token_id="
                ) from None
            return read_law(answer, self.vocab_size, self.abilities.texts)

        return self._answers(_LAWS, self.vocab_size, prompts, ask, lambda rows: rows)

    def _laws_by_token(self, prompts: list[np.ndarray]) -> Float[np.ndarray, "n vocab"]:
        """Laws put together from the scores of prompt ∘ token, for every token; each prompt once."""
        laws = np.empty((len(prompts), self.vocab_size))
        done: dict[bytes, int] = {}
        for i, prompt in enumerate(prompts):
            if len(prompt) == 0:
                raise ParameterError("the server does not score a prompt's first token: give bos_token_id=")
            if prompt.tobytes() in done:
                laws[i] = laws[done[prompt.tobytes()]]
                continue
            longer = [np.append(prompt, token) for token in range(self.vocab_size)]
            try:
                laws[i] = normalised(self._prompt_log_probs(longer, lambda rows: rows[:, -1]))
            except BudgetError:
                raise self._budget_error(laws[:i], i, len(prompts)) from None
            done[prompt.tobytes()] = i
        return laws

    def _prompt_log_probs(self, prompts: list[np.ndarray], convert: Convert) -> np.ndarray:
        """convert(log-probabilities of tokens 1, 2, … of each prompt), prompts of one length ≥ 2."""

        def ask(prompt: np.ndarray, stop: threading.Event) -> np.ndarray:
            tokens = prompt.tolist()
            answer = self._client.send(echo_body(self.model, tokens, self.abilities.echo_tokens), stop)
            return read_prompt_log_probs(answer, tokens)

        width = len(prompts[0]) - 1
        return self._answers(f"log-probabilities in {width + 1} tokens", width, prompts, ask, convert)

    def _answers(
        self, kind: str, width: int, prompts: list[np.ndarray], ask: Ask, convert: Convert
    ) -> np.ndarray:
        """convert(answers), one row per prompt: from the store or the server, kept before they are used."""
        place: dict[bytes, int] = {}
        row_of = np.array([place.setdefault(_question(p), len(place)) for p in prompts], dtype=np.int64)
        keys, distinct = list(place), {int(j): p for j, p in zip(row_of, prompts, strict=True)}
        space = Space(self._stored_as, kind, 0.0, 0, width)
        rows, have = np.empty((len(keys), width)), np.zeros(len(keys), dtype=bool)
        if self._cache is not None:
            have, known = self._cache.get(space, keys)
            rows[have] = known
        missing = np.flatnonzero(~have)

        def keep(positions: list[int], answered: list[np.ndarray]) -> None:
            which, block = missing[positions], np.stack(answered)
            if self._cache is not None:
                block = self._cache.put(space, [keys[j] for j in which], block)
            rows[which], have[which] = block, True

        try:
            self._client.map(ask, [distinct[int(j)] for j in missing], keep)
        except SpentError:
            count = int(np.cumprod(have[row_of]).sum())
            raise self._budget_error(convert(rows[row_of[:count]]), count, len(prompts)) from None
        return convert(rows if len(keys) == len(prompts) else rows[row_of])

    def _budget_error(self, answered: np.ndarray | None, count: int, of: int) -> BudgetError:
        return BudgetError(
            f"the budget of the server ({self._purse!r}) is spent: the first {count} of {of} questions were "
            f"answered and stand in .answered, spending in all {self.ledger}; raise it or ask for less",
            answered=answered,
            ledger=self.ledger,
        )

    def _check_bos(self) -> None:
        if self.bos_token_id is not None and self.bos_token_id >= self.vocab_size:
            raise ParameterError(f"bos_token_id = {self.bos_token_id} is not below {self.vocab_size} tokens")

    def _check_stored(self, law: Float[np.ndarray, "vocab"]) -> None:
        """Compare the probed law with the stored one, or store it."""
        if self._cache is None:
            return
        space = Space(self._stored_as, _LAWS, 0.0, 0, self.vocab_size)
        standing = self._cache.put(space, [_question(np.array([*self._start, 0]))], law[None])[0]
        distance = 0.5 * np.abs(np.exp(standing) - np.exp(law)).sum()
        if distance > _SAME_MODEL:
            raise InconsistentAnswerError(
                f"the store holds another model's answers under {self._identity!r} (total variation "
                f"{distance:.3g} on the probed law): give another identity= or store="
            )


def _question(prompt: np.ndarray) -> bytes:
    return prompt.astype("<i4").tobytes()


def _bos_token(tokenizer: Any, chosen: int | Literal["none"] | None) -> int | None:
    if chosen == "none" or (chosen is None and tokenizer is None):
        return None
    if chosen is not None:
        return as_integer("bos_token_id", chosen, 0)
    return tokenizer.bos_token_id


def _numbered(vocabulary: Sequence[str] | None) -> dict[str, int] | None:
    """Number of each token text."""
    if vocabulary is None:
        return None
    if isinstance(vocabulary, str) or not all(isinstance(text, str) for text in vocabulary):
        raise ShapeError("vocabulary", "(vocab_size,)", "a sequence of texts", type(vocabulary).__name__)
    numbers = {text: token for token, text in enumerate(vocabulary)}
    if len(numbers) < len(vocabulary):
        raise ParameterError(
            f"vocabulary has {len(vocabulary) - len(numbers)} repeated texts, so answers "
            "cannot be told apart: let the server name tokens by number (vLLM: --return-tokens-as-token-ids)"
        )
    return numbers
