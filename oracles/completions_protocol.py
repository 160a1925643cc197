"""What is asked of a completions server and how its answers are read; the probe of what it can tell.

Tokens are named by number: requests hold lists of numbers, and ``return_tokens_as_token_ids`` (vLLM) makes
the answers name tokens ``token_id:17``. A server that names them by their text is understood if the
text of every token is known and no two are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from oracles.completions_client import AnswerError, CapabilityError, RefusedError
from oracles.errors import NonFiniteError, ParameterError, ProbabilityError

#: Servers write this, or less, for −∞, which JSON does not have.
_IMPOSSIBLE = -9999.0
#: Largest |Σp − 1| of a law as answered (in float32, perhaps rounded); it is normalised afterwards.
_SUM_TOLERANCE = 1e-3
#: Largest difference of two answers about one probability.
_ANSWER_TOLERANCE = 0.02
_MANY = 1 << 20  # more log-probabilities than any vocabulary has
_PREFIX = "token_id:"

#: Sends one body, returns the answer.
Send = Callable[[dict[str, Any]], dict[str, Any]]


class MissingError(AnswerError):
    """The answer holds no log-probabilities where they were asked for."""


@dataclass(frozen=True, eq=False)
class Abilities:
    """What a server tells.

    Attributes:
        vocab_size: number of tokens A.
        laws: a request returns the next-token log-probabilities of the whole vocabulary.
        prompt_log_probs: a request returns the log-probability of every token of its prompt.
        echo_tokens: tokens that must be generated (0 or 1) to get those.
        texts: number of each token by its text, for servers that name them so.
    """

    vocab_size: int
    laws: bool
    prompt_log_probs: bool
    echo_tokens: int
    texts: Mapping[str, int] | None = None


def request_body(
    model: str, prompt: Sequence[int], logprobs: int, max_tokens: int = 1, **fields: Any
) -> dict[str, Any]:
    """A request for `logprobs` log-probabilities per position, under the model's own law."""
    return {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": max_tokens,
        "logprobs": logprobs,
        "temperature": 1.0,
        "top_p": 1.0,
        "return_tokens_as_token_ids": True,
        **fields,
    }


def law_body(model: str, prompt: Sequence[int], abilities: Abilities) -> dict[str, Any]:
    """Request for the law of the token after `prompt`."""
    return request_body(model, prompt, abilities.vocab_size)


def echo_body(model: str, prompt: Sequence[int], echo_tokens: int) -> dict[str, Any]:
    """Request for the log-probabilities of the prompt's own tokens."""
    return request_body(model, prompt, 1, echo_tokens, echo=True)


def read_law(
    answer: dict[str, Any], vocab_size: int, texts: Mapping[str, int] | None
) -> Float[np.ndarray, "vocab"]:
    """The whole next-token law, log-probabilities in the order of the tokens, summing to one."""
    table = _first_table(answer)
    tokens, values = _token_numbers(table, texts), _numbers(table.values())
    row = np.full(vocab_size, np.nan)
    if len(tokens) == vocab_size and max(tokens) < vocab_size:
        row[tokens] = values
    if np.isnan(row).any():
        raise AnswerError(
            f"the server answered {len(tokens)} log-probabilities, tokens {min(tokens)}..{max(tokens)}, in "
            f"place of those of all {vocab_size} tokens"
        )
    return normalised(row)


def read_prompt_log_probs(answer: dict[str, Any], prompt: Sequence[int]) -> Float[np.ndarray, "length"]:
    """Log P(token | tokens before it) for every token of the prompt but the first, (len(prompt) − 1,)."""
    logprobs = _logprobs(answer)
    listed = logprobs.get("token_logprobs")
    if not isinstance(listed, list):
        raise MissingError("the server's answer holds no log-probabilities of the prompt (token_logprobs)")
    if len(listed) < len(prompt):
        raise MissingError(
            f"the server answered log-probabilities of {len(listed)} tokens, the prompt has {len(prompt)}"
        )
    names = logprobs.get("tokens")
    names = names[: len(prompt)] if isinstance(names, list) else []
    if names and all(isinstance(name, str) and name.startswith(_PREFIX) for name in names):
        expected = [f"{_PREFIX}{token}" for token in prompt]
        if names != expected:
            raise AnswerError("the server's answer is about other tokens than the prompt that was sent")
    return _numbers(listed[1 : len(prompt)])


def normalised(row: Float[np.ndarray, "vocab"]) -> Float[np.ndarray, "vocab"]:
    """Log-probabilities that sum to one exactly, from answers that do so within 1e-3."""
    with np.errstate(over="ignore"):
        total = np.exp(row).sum()
    if not abs(total - 1) <= _SUM_TOLERANCE:
        raise ProbabilityError(
            f"the server's next-token law sums to {total:.6g}, not to one: is vocab_size that of the model's "
            "output layer, and does the server report unprocessed log-probabilities?"
        )
    return row - np.log(total)


def probe(
    send: Send,
    model: str,
    start: Sequence[int],
    vocab_size: int | None,
    texts: Mapping[str, int] | None,
    law_by_token: bool,
) -> tuple[Abilities, Float[np.ndarray, "vocab"] | None]:
    """What the server tells, and the law after `start` and token 0 if it tells laws (two to eight requests).

    Raises CapabilityError where the next-token law cannot be known from what it tells (prompts' scores are
    enough only with `law_by_token` and a `vocab_size`), ParameterError where it has another vocabulary
    than the one given.
    """
    prompt, said = [*start, 0], _Said()
    size = vocab_size
    law = None if size is None else _ask_law(send, model, prompt, size, texts, said)
    if law is None:
        size = _count_tokens(send, model, prompt, texts, said)
        if size is not None and vocab_size is not None and size != vocab_size:
            raise ParameterError(f"vocab_size = {vocab_size} was given, the server's model has {size} tokens")
        law = None if size is None else _ask_law(send, model, prompt, size, texts, said)
    echo_tokens, echoed = _ask_echo(send, model, [*prompt, 0], said)
    if law is None and (echoed is None or vocab_size is None or not law_by_token):
        raise CapabilityError(_shortcoming(send, model, prompt, echoed is not None, said))
    if law is not None and echoed is not None:
        gap = abs(float(np.exp(law[0]) - np.exp(echoed[-1])))
        if not gap <= _ANSWER_TOLERANCE:
            raise CapabilityError(
                f"the server gives one token probability {np.exp(law[0]):.4g} as a next token and "
                f"{np.exp(echoed[-1]):.4g} within a prompt: one of them is not the model's law and neither "
                "can be trusted; switch off temperatures, penalties and truncation in the server"
            )
    known = vocab_size if size is None else size
    assert known is not None
    return Abilities(known, law is not None, echoed is not None, echo_tokens, texts), law


class _Said:
    """What the server said to requests that did not succeed, for the message of a CapabilityError."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def note(self, error: Exception) -> None:
        if str(error) not in self.reasons:
            self.reasons.append(str(error))


def _ask_law(
    send: Send,
    model: str,
    prompt: list[int],
    size: int,
    texts: Mapping[str, int] | None,
    said: _Said,
) -> Float[np.ndarray, "vocab"] | None:
    try:
        answer = send(request_body(model, prompt, size))
        return read_law(answer, size, texts)
    except (RefusedError, AnswerError, ProbabilityError) as error:
        _let_through(error)
        said.note(error)
        return None


def _count_tokens(
    send: Send, model: str, prompt: list[int], texts: Mapping[str, int] | None, said: _Said
) -> int | None:
    """Size of the vocabulary: vLLM tells all of a prompt's laws for −1, others as many as there are."""
    asked = (
        (request_body(model, [*prompt, 0], 1, prompt_logprobs=-1), _last_prompt_table, None),
        (request_body(model, prompt, _MANY), _first_table, texts),
    )
    for body, table_of, names in asked:
        try:
            table = table_of(send(body))
            tokens, values = _token_numbers(table, names), _numbers(table.values())
            if sorted(tokens) == list(range(len(tokens))) and abs(np.exp(values).sum() - 1) <= _SUM_TOLERANCE:
                return len(tokens)
        except (RefusedError, AnswerError) as error:
            _let_through(error)
            said.note(error)
    return None


def _ask_echo(
    send: Send, model: str, prompt: list[int], said: _Said
) -> tuple[int, Float[np.ndarray, "length"] | None]:
    """(tokens to generate, log-probabilities of the prompt's tokens or None if the server has none)."""
    for echo_tokens in (0, 1):
        try:
            answer = send(echo_body(model, prompt, echo_tokens))
            return echo_tokens, read_prompt_log_probs(answer, prompt)
        except (RefusedError, AnswerError) as error:
            _let_through(error)
            said.note(error)
    return 0, None


def _let_through(error: Exception) -> None:
    """Raise what says nothing about the server's abilities: no such model, no access."""
    if isinstance(error, RefusedError) and error.status in (401, 403, 404):
        raise error


def _shortcoming(send: Send, model: str, prompt: list[int], echoes: bool, said: _Said) -> str:
    """Why the law cannot be known, what the server is good for, and what to change."""
    try:
        count = len(_first_table(send(request_body(model, prompt, 5))))
    except (RefusedError, AnswerError):
        count = 0
    if echoes:
        can = (
            "scores strings but does not tell the whole next-token law: give vocab_size= and "
            "law_by_token=True to put each law together from the scores of vocab_size strings"
        )
    elif count:
        can = (
            f"tells the {count} most likely next tokens but neither the whole next-token law nor the "
            "log-probabilities of a prompt: it can be used for samples and top-k queries only"
        )
    else:
        can = "tells no log-probabilities: it can be used for samples only"
    reasons = "; ".join(said.reasons[:3])
    return (
        f"the server {can}. An oracle needs log-probabilities of all tokens (vLLM: start it with "
        f"--max-logprobs -1) or of the prompt (echo). What it said: {reasons}"
    )


def _logprobs(answer: dict[str, Any]) -> dict[str, Any]:
    logprobs = _choice(answer).get("logprobs")
    if not isinstance(logprobs, dict):
        raise MissingError("the server's answer holds no log-probabilities")
    return logprobs


def _choice(answer: dict[str, Any]) -> dict[str, Any]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise AnswerError("the server's answer holds no choices: is this a completions server?")
    return choices[0]


def _first_table(answer: dict[str, Any]) -> dict[str, Any]:
    """Log-probabilities of the alternatives to the one generated token, by their names."""
    tables = _logprobs(answer).get("top_logprobs")
    if not isinstance(tables, list) or not tables or not isinstance(tables[0], dict) or not tables[0]:
        raise MissingError("the server's answer holds no log-probabilities of next tokens (top_logprobs)")
    return tables[0]


def _last_prompt_table(answer: dict[str, Any]) -> dict[str, Any]:
    """The form of vLLM: one table for each token of the prompt, numbers to {"logprob": …}."""
    tables = _choice(answer).get("prompt_logprobs")
    if not isinstance(tables, list) or not tables or not isinstance(tables[-1], dict) or not tables[-1]:
        raise MissingError("the server does not know the field prompt_logprobs")
    return {f"{_PREFIX}{token}": entry.get("logprob") for token, entry in tables[-1].items()}


def _token_numbers(names: Iterable[str], texts: Mapping[str, int] | None) -> list[int]:
    names = list(names)
    if all(name.startswith(_PREFIX) for name in names):
        numbers = [name.removeprefix(_PREFIX) for name in names]
        if all(number.isdecimal() for number in numbers):
            return [int(number) for number in numbers]
    if texts is None:
        raise AnswerError(
            f"the server names tokens by their text ({names[0]!r}): start it with token numbers (vLLM: "
            "--return-tokens-as-token-ids) or give vocabulary="
        )
    unknown = [name for name in names if name not in texts]
    if unknown:
        raise AnswerError(f"the server names a token {unknown[0]!r} that is not in vocabulary")
    return [texts[name] for name in names]


def _numbers(values: Iterable[Any]) -> Float[np.ndarray, "n"]:
    """Log-probabilities as answered: every one there, none NaN or +∞; −9999 and less stand for −∞."""
    listed = list(values)
    if not all(isinstance(value, (int, float)) for value in listed):
        raise MissingError("a log-probability is missing in the server's answer (null in its place)")
    numbers = np.array(listed, dtype=np.float64)
    if np.isnan(numbers).any() or np.isposinf(numbers).any():
        raise NonFiniteError("the server answered NaN or infinity as a log-probability")
    numbers[numbers <= _IMPOSSIBLE] = -np.inf
    return numbers
