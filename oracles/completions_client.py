"""The wire under `CompletionsOracle`: requests, retries, concurrency, and what has been spent."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import Any, TypeVar

from oracles.checks import as_integer, as_number
from oracles.errors import LrlmError, MissingDependencyError, ParameterError
from oracles.ledger import Ledger

try:
    import httpx
    import tenacity
except ModuleNotFoundError as error:
    raise MissingDependencyError(error.name or "httpx", "http") from error

#: Environment variable of the key where `api_key_env` names no other.
DEFAULT_KEY = "LRLM_API_KEY"
_RETRIED = (408, 425, 429)  # and every status from 500 on
_QUOTED = 300  # characters of a server's message that an error repeats
_CONNECT_SECONDS = 10.0

Item = TypeVar("Item")
Result = TypeVar("Result")


class ServerError(LrlmError, RuntimeError):
    """A server did not answer, or nothing that is JSON, however often it was asked."""


class AnswerError(ServerError):
    """A server's answer is not about what was asked: log-probabilities missing, of other tokens, …"""


class RefusedError(ServerError):
    """A server refused a request for good, by an HTTP status of the 300s or 400s, `status`."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class CapabilityError(LrlmError, RuntimeError):
    """A server does not tell enough for what is asked of it; the message says what it can be used for."""


class SpentError(Exception):
    """The budget does not pay for the next request (turned into a BudgetError with the answers)."""


class _Transient(Exception):
    """A failure that may pass: the error it becomes if it does not, and the wait the server asked for."""

    def __init__(self, error: ServerError, seconds: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.seconds = seconds


class _Stopped(Exception):
    """Another request of the batch has failed: do not try again."""


class Purse:
    """Counts what requests cost and refuses what the budget does not pay for; used by many threads."""

    def __init__(self, calls: int | None, tokens: int | None) -> None:
        self.call_budget = None if calls is None else as_integer("call_budget", calls, 0)
        self.token_budget = None if tokens is None else as_integer("token_budget", tokens, 0)
        self._lock = threading.Lock()
        self._calls = self._submitted = self._generated = 0
        self._prefixes: set[bytes] = set()  # their hashes

    def charge(self, prompt: Sequence[int], generated: int) -> None:
        """Pay for one request, or raise SpentError."""
        with self._lock:
            tokens = self._submitted + self._generated + len(prompt) + generated
            if self.call_budget is not None and self._calls >= self.call_budget:
                raise SpentError
            if self.token_budget is not None and tokens > self.token_budget:
                raise SpentError
            self._calls += 1
            self._submitted += len(prompt)
            self._generated += generated
            self._prefixes.add(hashlib.blake2b(repr(prompt).encode(), digest_size=16).digest())

    def refund(self, prompt: Sequence[int], generated: int) -> None:
        """Take back the price of a request that no server has worked on."""
        with self._lock:
            self._calls -= 1
            self._submitted -= len(prompt)
            self._generated -= generated

    @property
    def ledger(self) -> Ledger:
        """What has been spent so far."""
        with self._lock:
            return Ledger(self._calls, len(self._prefixes), self._submitted, self._generated)

    def __repr__(self) -> str:
        limits = {"call_budget": self.call_budget, "token_budget": self.token_budget}
        return ", ".join(f"{name} {limit}" for name, limit in limits.items() if limit is not None)


@dataclass(frozen=True)
class RetryPolicy:
    """How long to wait for an answer, and how often to ask again; all times in seconds.

    `attempts` includes the first one. The k-th wait is uniform in 0..min(longest_wait, backoff·2^k), or
    what the server's Retry-After says; where that is above `longest_wait`, the request fails at once.
    """

    timeout: float
    attempts: int
    backoff: float
    longest_wait: float

    def __post_init__(self) -> None:
        as_number("timeout", self.timeout, 1e-3)
        as_integer("attempts", self.attempts, 1)
        as_number("backoff", self.backoff, 0.0)
        as_number("longest_wait", self.longest_wait, 0.0)

    def wait(self, state: tenacity.RetryCallState) -> float:
        """Seconds until the next attempt."""
        failure = None if state.outcome is None else state.outcome.exception()
        if isinstance(failure, _Transient) and failure.seconds is not None:
            return failure.seconds
        return tenacity.wait_random_exponential(multiplier=self.backoff, max=self.longest_wait)(state)


class CompletionsClient:
    """Posts bodies to ``base_url``/completions.

    Retried, as often as `policy` says: time-outs, broken connections, statuses 408, 425, 429 and 5xx,
    and answers that are not JSON. Every attempt is charged to `purse`, since the server may bill it,
    except those it turned away (429, or no connection).

    The API key is read from the environment variable `api_key_env` (None: LRLM_API_KEY, if that is set).
    It stands in the header of the requests and nowhere else; redirections are not followed.
    """

    def __init__(
        self, base_url: str, api_key_env: str | None, concurrency: int, policy: RetryPolicy, purse: Purse
    ) -> None:
        self.base_url, host = _checked_url(base_url)
        self.purse, self._policy = purse, policy
        self._concurrency = as_integer("concurrency", concurrency, 1, 1024)
        self._key = _api_key(api_key_env)
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        self._http = httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(policy.timeout, connect=min(policy.timeout, _CONNECT_SECONDS)),
            limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            trust_env=not _is_loopback(host),  # proxies of the environment are not for this machine
        )
        self.close = self._http.close  # holds no reference to self: usable as its finalizer

    def __repr__(self) -> str:
        return f"CompletionsClient({self.base_url!r}, concurrency={self._concurrency})"

    def send(self, body: dict[str, Any], stop: threading.Event | None = None) -> dict[str, Any]:
        """The server's answer to one body, a JSON object; asked again after failures that may pass."""
        stop = threading.Event() if stop is None else stop
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self._policy.attempts),
            wait=self._policy.wait,
            retry=tenacity.retry_if_exception_type(_Transient),
            sleep=tenacity.sleep_using_event(stop),
            reraise=True,
        )
        try:
            return retrying(self._attempt, body, stop)
        except _Transient as failure:
            raise type(failure.error)(
                f"{failure.error} (attempts: {self._policy.attempts}): ask again later, or raise timeout= or "
                "attempts=; answers that came are kept if there is a store="
            ) from None

    def map(
        self,
        work: Callable[[Item, threading.Event], Result],
        items: Sequence[Item],
        keep: Callable[[list[int], list[Result]], None],
    ) -> None:
        """work(item, stop) for every item, at most `concurrency` at a time.

        keep(positions, results) gets every result as it comes, in the caller's thread. After a failure
        nothing new is sent, what was under way is waited for and kept, and the failure of the first
        item that failed is raised (SpentError only where there is no other).
        """
        stop, failures = threading.Event(), dict[int, BaseException]()
        waiting, sent = iter(enumerate(items)), dict[Future[Result], int]()
        pool = ThreadPoolExecutor(self._concurrency, "completions")

        def collect() -> None:
            done = {future: i for future, i in sent.items() if future.done()}
            good = {i: f.result() for f, i in done.items() if not f.cancelled() and f.exception() is None}
            if good:
                keep(list(good), list(good.values()))
            for future, i in done.items():
                del sent[future]
                if not future.cancelled() and (failure := future.exception()) is not None:
                    failures[i] = failure

        try:
            while not failures:
                for i, item in islice(waiting, 2 * self._concurrency - len(sent)):
                    sent[pool.submit(work, item, stop)] = i
                if not sent:
                    break
                wait(sent, return_when=FIRST_COMPLETED)
                collect()
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            collect()
        real = [i for i, failure in failures.items() if not isinstance(failure, (_Stopped, SpentError))]
        if failures:
            raise failures[min(real)] if real else SpentError()

    def _attempt(self, body: dict[str, Any], stop: threading.Event) -> dict[str, Any]:
        if stop.is_set():
            raise _Stopped
        if self._http.is_closed:
            raise ServerError(f"the connection to {self.base_url} was closed: make a new oracle")
        price = body["prompt"], body["max_tokens"]
        self.purse.charge(*price)
        try:
            response = self._http.post(f"{self.base_url}/completions", content=json.dumps(body))
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            self.purse.refund(*price)
            raise self._transient(f"cannot be reached ({type(error).__name__})") from None
        except httpx.TimeoutException:
            raise self._transient(f"did not answer within {self._policy.timeout:g} s") from None
        except httpx.TransportError as error:
            raise self._transient(f"broke the connection ({type(error).__name__})") from None
        if response.status_code == 429:
            self.purse.refund(*price)
        if response.status_code in _RETRIED or response.status_code >= 500:
            raise self._status_failure(response)
        if response.status_code != 200:
            message = f"{self.base_url} refused the request with {self._quote(response)}"
            raise RefusedError(message + _remedy(response.status_code), response.status_code)
        try:
            answer = response.json()
        except ValueError:
            problem = f"{self.base_url} answered something that is not JSON, or is cut short"
            raise _Transient(ServerError(problem)) from None
        if not isinstance(answer, dict):
            raise ServerError(f"{self.base_url} answered {type(answer).__name__}, not a JSON object")
        return answer

    def _transient(self, what: str, seconds: float | None = None) -> _Transient:
        return _Transient(ServerError(f"{self.base_url} {what}"), seconds)

    def _status_failure(self, response: httpx.Response) -> Exception:
        """Failure that may pass, unless the server asks for a longer wait than the policy allows."""
        what, seconds = f"answered {self._quote(response)}", _retry_after(response)
        if seconds is not None and seconds > self._policy.longest_wait:
            return ServerError(
                f"{self.base_url} {what} and asks to wait {seconds:.0f} s, longer than "
                f"longest_wait = {self._policy.longest_wait:g}: ask again then, or raise it"
            )
        return self._transient(what, seconds)

    def _quote(self, response: httpx.Response) -> str:
        """Status and beginning of the message, on one line, without the key if the server repeats it."""
        text = " ".join(response.text.split())
        try:
            error = response.json()
            error = error.get("error", error)
            text = str(error.get("message", error) if isinstance(error, dict) else error)
        except (ValueError, AttributeError):
            pass  # the message is not JSON of the usual form: quoted as it is
        if self._key:
            text = text.replace(self._key, "[key]")
        return f"status {response.status_code}: {' '.join(text.split())[:_QUOTED]!r}"


def _remedy(status: int) -> str:
    if status in (401, 403):
        return f": put a valid key into the environment variable of api_key_env ({DEFAULT_KEY})"
    if status == 404:
        return ": check the address (it usually ends in /v1) and the model's name"
    return ""


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds of a Retry-After header, which holds a number or a date; None without a valid one."""
    text = response.headers.get("Retry-After", "").strip()
    try:
        if text.isdecimal():
            return float(text)
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def _checked_url(base_url: str) -> tuple[str, str]:
    """The address without a slash at its end, and its host; no secrets in it, since errors show it."""
    try:
        url = httpx.URL(base_url)
    except (httpx.InvalidURL, TypeError):
        raise ParameterError("base_url must be an address such as http://127.0.0.1:8000/v1") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ParameterError("base_url must begin with http:// or https:// and a host")
    if url.userinfo or url.query or url.fragment:
        raise ParameterError(
            "base_url must hold no user, password, query or fragment: keys go into the environment variable "
            f"of api_key_env ({DEFAULT_KEY})"
        )
    return str(url).rstrip("/"), url.host


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _api_key(variable: str | None) -> str:
    """The key, "" if there is none; a variable that was named must be set."""
    key = os.environ.get(DEFAULT_KEY if variable is None else variable, "").strip()
    if variable is not None and not key:
        raise ParameterError(f"the environment variable {variable} of api_key_env is not set, or empty")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ParameterError(f"the key in {variable or DEFAULT_KEY} has blanks or non-ASCII characters")
    return key
