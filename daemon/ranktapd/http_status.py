"""What can be asked over HTTP, on the address of `metrics`: for Prometheus, probes and people.

    /metrics    counters and gauges, in Prometheus' format
    /healthz    200 while intake and workers go on, 503 and why when they do not
    /status     runs, ranks, lag and rates, as JSON (see overview.py); with ?ranks=RUN the ranks
                of that run alone, and of none with ?ranks=

It is answered by threads of its own: when the main loop stands still they still say so. They
read nothing that the loop changes: a thread that is asked for the status asks the loop, which
makes it between two rounds.
"""

from __future__ import annotations

import json
import logging
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

logger = logging.getLogger("ranktapd")

STANDSTILL_S: Final = 30.0
"""How old the last sign of life may be where no watchdog says so: what ours is set to."""
ANSWER_S: Final = 5.0
"""How long the main loop has to say how it stands: it looks four times a second."""
READ_S: Final = 10.0
"""How long a request may take to arrive: a thread waits for it."""

PATHS: Final = ("/metrics", "/healthz", "/status")


@dataclass(slots=True)
class Health:
    """Whether the work goes on: what feeds the watchdog, for who asks instead."""

    patience_s: float = STANDSTILL_S
    stage: str = "recovering the journals"
    """What it does instead of serving; empty while it serves."""
    alive_at: float = 0.0
    round_at: float = 0.0
    note: str = ""
    """What is not well, and yet goes on by itself."""

    def round(self, now: float, *, works: bool) -> None:
        """The main loop has gone round; `works` as for the watchdog."""
        self.round_at = now
        if works:
            self.alive_at = now

    def turns(self, now: float) -> bool:
        """Whether the main loop goes round, and can be asked."""
        return not self.stage and now - self.round_at <= self.patience_s

    def judge(self, now: float) -> tuple[bool, str]:
        """Whether it is well, and that in words."""
        if self.stage:
            return False, self.stage
        if now - self.alive_at <= self.patience_s:
            return True, f"ok, but {self.note}" if self.note else "ok"
        if not self.turns(now):
            return False, f"the main loop has not gone round for {now - self.round_at:.0f} s"
        return False, "a worker that was killed because it hung does not end"


@dataclass(slots=True)
class _Question:
    """Of a thread, to the main loop."""

    ranks_of: str | None
    """The run whose ranks are wanted; None: all."""
    said: bytes = b""
    is_answered: threading.Event = field(default_factory=threading.Event)


class HttpStatus:
    """The HTTP server, and the main loop's side of it."""

    def __init__(self, registry: CollectorRegistry, health: Health) -> None:
        self._metrics = make_wsgi_app(registry)
        self._health = health
        self._questions: deque[_Question] = deque()

    def serve(self, address: str) -> None:
        """Serve at HOST:PORT, in threads that end with the process.

        Raises:
            OSError: the address cannot be bound.
        """
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        try:
            family = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0][0]
            kind: type[_Server] = type("Server", (_Server,), {"address_family": family})
            server = make_server(host, int(port), self._app, kind, _Handler)
        except OSError as error:
            raise OSError(f"metrics: {address}: {error.strerror}") from None
        threading.Thread(target=server.serve_forever, name="http-status", daemon=True).start()
        logger.info("metrics at http://%(address)s/metrics", {"address": address})

    def answer(self, status: Callable[[str | None], dict[str, Any]]) -> None:
        """Called by the main loop: say how it stands, when somebody asks.

        `status` is given the run whose ranks are wanted; None: those of all.
        """
        said: dict[str | None, bytes] = {}
        while self._questions:
            question = self._questions.popleft()
            if question.ranks_of not in said:
                said[question.ranks_of] = json.dumps(status(question.ranks_of)).encode() + b"\n"
            question.said = said[question.ranks_of]
            question.is_answered.set()

    # -- in its threads ---------------------------------------------------------------

    def _app(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if path == "/metrics":
            answer: Iterable[bytes] = self._metrics(environ, start)
            return answer
        if path not in PATHS:
            return _say(start, "404 Not Found", f"there are {', '.join(PATHS)}\n")
        if method != "GET":
            return _say(start, "405 Method Not Allowed", "use GET\n", ("Allow", "GET"))
        now = time.monotonic()
        well, words = self._health.judge(now)
        status = "200 OK" if well else "503 Service Unavailable"
        if path == "/healthz":
            return _say(start, status, words + "\n")
        said = self._ask(environ.get("QUERY_STRING", "")) if self._health.turns(now) else None
        if said is None:
            return _say(start, "503 Service Unavailable", f"no answer: {words}\n")
        start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(said)))])
        return [said]

    def _ask(self, query: str) -> bytes | None:
        wanted = parse_qs(query, keep_blank_values=True).get("ranks")
        question = _Question(None if wanted is None else wanted[0])
        self._questions.append(question)
        return question.said if question.is_answered.wait(ANSWER_S) else None


def _say(start: StartResponse, status: str, text: str, *more: tuple[str, str]) -> list[bytes]:
    said = text.encode()
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(said)))]
    start(status, [*headers, *more])
    return [said]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Who asked has gone: a line of the log, where socketserver writes a traceback."""
        logger.info("a request over HTTP ended early: %(error)s", {"error": sys.exc_info()[1]})


class _Handler(WSGIRequestHandler):
    timeout = READ_S

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Requests of a scraper are no news."""
