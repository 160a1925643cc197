"""The smallest honest completions server: an oracle behind ``/v1/completions``, with faults on demand.

It answers as vLLM does (token numbers as names, −9999 for −∞, refusals with status 400); `Limits` says
what it tells, and `faults` what goes wrong with the next requests.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from oracles.base import Oracle
from oracles.errors import HorizonError


@dataclass(frozen=True)
class Limits:
    """What the server tells.

    top: most log-probabilities a position (None: all); too many are refused, or cut where `clamps`.
    echo: prompts' log-probabilities. counts: vLLM's prompt_logprobs = −1. zero_tokens: max_tokens = 0.
    temperature: of the generated token's law only. texts: names of the tokens in place of their numbers.
    key: what Authorization must hold.
    """

    top: int | None = None
    clamps: bool = False
    logprobs: bool = True
    echo: bool = True
    counts: bool = True
    zero_tokens: bool = True
    empty: bool = True
    temperature: float = 1.0
    texts: tuple[str, ...] | None = None
    key: str | None = None


@dataclass(frozen=True)
class Fault:
    """One request goes wrong: a status with headers, silence, a cut or a changed answer."""

    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    message: str = "injected"
    silent: bool = False
    cut: bool = False
    hang_up: bool = False
    logprobs: Any = None  # "absent", "shifted" tokens, or what stands in place of one log-probability


class Refused(Exception):
    """The request is answered with status 400."""


class CompletionsServer(ThreadingHTTPServer):
    """Serves `oracle` on a free port of 127.0.0.1."""

    daemon_threads = True

    def __init__(self, oracle: Oracle, limits: Limits) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.oracle, self.limits = oracle, limits
        self.faults: deque[Fault | None] = deque()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.released = threading.Event()  # ends the silences
        self.lock = threading.Lock()
        self.under_way = self.most_under_way = 0
        self.delay = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt, wanted, limits = body["prompt"], body.get("logprobs"), self.limits
        size = self.oracle.vocab_size
        most = size if limits.top is None else limits.top
        if not limits.empty and not prompt:
            raise Refused("prompt must not be empty")
        if any(not 0 <= token < size for token in prompt):
            raise Refused("token out of vocabulary")
        if body["max_tokens"] == 0 and not limits.zero_tokens:
            raise Refused("max_tokens must be at least 1")
        if wanted is not None and wanted > most:
            if not limits.clamps:
                raise Refused(f"requested {wanted} logprobs, greater than max allowed: {most}")
            wanted = most
        if body.get("prompt_logprobs") == -1 and limits.counts and most < size:
            raise Refused(f"requested prompt logprobs of {size}, greater than max allowed: {most}")
        echo = bool(body.get("echo")) and limits.echo
        shown = list(prompt) if echo else []
        tables: list[dict[int, float] | None] = [
            self.law(prompt[:t], token, wanted) if t else None for t, token in enumerate(shown)
        ]
        if body["max_tokens"]:
            shown.append(int(self.oracle.next_log_probs([prompt])[0].argmax()))
            tables.append(self.law(prompt, shown[-1], wanted, limits.temperature))
        choice = {"index": 0, "text": "", "logprobs": self.listed(shown, tables)}
        if body.get("prompt_logprobs") == -1 and limits.counts:
            full = [self.law(prompt[:t], token, size) if t else None for t, token in enumerate(prompt)]
            choice["prompt_logprobs"] = [
                table and {str(i): {"logprob": value} for i, value in table.items()} for table in full
            ]
        return {"choices": [choice if limits.logprobs else {**choice, "logprobs": None}]}

    def law(self, prefix: list[int], token: int, count: int, temperature: float = 1.0) -> dict[int, float]:
        """The token itself and the `count` most likely ones, as vLLM lists them."""
        row = np.maximum(self.oracle.next_log_probs([prefix])[0], -9999.0)
        if temperature != 1.0:
            row = row / temperature - np.log(np.exp(row / temperature).sum())
        return {int(i): float(row[i]) for i in (token, *np.argsort(-row, kind="stable")[:count])}

    def listed(self, shown: list[int], tables: list[dict[int, float] | None]) -> dict[str, Any]:
        named = [table and {self.name(i): value for i, value in table.items()} for table in tables]
        return {
            "tokens": [self.name(token) for token in shown],
            "token_logprobs": [table and table[token] for token, table in zip(shown, tables, strict=True)],
            "top_logprobs": named,
        }

    def name(self, token: int) -> str:
        return f"token_id:{token}" if self.limits.texts is None else self.limits.texts[token]

    def spoilt(self, answer: dict[str, Any], value: Any) -> dict[str, Any]:
        """The answer without log-probabilities, or with `value` in place of the last ones."""
        choice = answer["choices"][0]
        if value == "absent":
            choice["logprobs"] = None
            return answer
        if value == "shifted":
            choice["logprobs"]["tokens"].insert(0, self.name(0))
            return answer
        choice["logprobs"]["token_logprobs"][-1] = value
        table = choice["logprobs"]["top_logprobs"][-1]
        table[next(iter(table))] = value
        return answer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # one packet an answer
    server: CompletionsServer

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(body)
            server.headers.append(dict(self.headers))
            fault = server.faults.popleft() if server.faults else None
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        try:
            self.respond(body, fault or Fault())
        finally:
            with server.lock:
                server.under_way -= 1

    def respond(self, body: dict[str, Any], fault: Fault) -> None:
        server = self.server
        server.released.wait(server.delay)
        if fault.silent:
            server.released.wait(30)
        if fault.silent or fault.hang_up:
            self.close_connection = True
            return
        if fault.status is not None:
            self.reply(fault.status, json.dumps({"error": {"message": fault.message}}), fault.headers)
        elif self.path != "/v1/completions":
            self.reply(404, "not here")
        elif server.limits.key and self.headers["Authorization"] != f"Bearer {server.limits.key}":
            self.reply(401, json.dumps({"error": {"message": f"no: {self.headers['Authorization']}"}}))
        else:
            try:
                answer = server.answer(body)
            except (Refused, HorizonError) as refusal:
                self.reply(400, json.dumps({"error": {"message": str(refusal)}}))
                return
            if fault.logprobs is not None:
                answer = server.spoilt(answer, None if fault.logprobs == "null" else fault.logprobs)
            text = json.dumps(answer)
            self.reply(200, text[: len(text) // 2] if fault.cut else text)

    def reply(self, status: int, text: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        data = text.encode()
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(data)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(oracle: Oracle, limits: Limits | None = None) -> Iterator[CompletionsServer]:
    """A running server, stopped and its socket closed at the end."""
    server = CompletionsServer(oracle, limits or Limits())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
