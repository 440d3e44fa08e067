"""Who may write what over tcp: CURVE keys, in a directory that is read again when it changes.

    handshake   libzmq asks here, with the client's public key  -> let in, or not
    hello       the intake asks `refusal(key, run)`             -> may that key write this run?

libzmq asks over a ZAP socket (ZeroMQ RFC 27) that the main loop reads between two rounds. The
authenticators that pyzmq has run in a thread, and once that has died everyone is let in, unless
ZAP_ENFORCE_DOMAIN is set. It is, and there is no thread: while nobody answers, nobody gets in.

What libzmq refuses by itself (no key, a message for another server's key) it tells on a monitor
socket, without an address: that is counted, and said in the log as often as is bearable.
"""

from __future__ import annotations

import fnmatch
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from ranktap_wire import keys
from ranktapd.log_budget import LogBudget
from ranktapd.status import Metrics

logger = logging.getLogger("ranktapd")

DOMAIN = b"ranktap"
ZAP_ENDPOINT = "inproc://zeromq.zap.01"
MONITOR_ENDPOINT = "inproc://ranktapd.handshakes"
LOOK_S = 1.0
"""How soon a changed directory of keys is noticed; looking at it costs 10 us and 3 us a key."""
LOOK_FOR_UNKNOWN_S = 0.1
"""How often it is looked at besides when unknown keys come: one may have been added just now."""
ANSWERS_A_TURN = 64
"""Handshakes of one turn, so that a crowd of strangers is not more urgent than what is logged."""
SUFFIX = ".toml"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")

_FAILURES = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
# Values of ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL in zmq.h.
_CRYPTOGRAPHIC = 0x11000001
_MECHANISM_MISMATCH = 0x11000002


@dataclass(frozen=True, slots=True)
class Client:
    """A key that is let in."""

    name: str
    """Its file's, for people."""
    public: str
    runs: tuple[str, ...] | None
    """Patterns of the runs that it may write; None: every run."""


def check_name(name: str) -> str:
    """The name, when a client may have it.

    Raises:
        ValueError: it may not.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"name: expected 1 to 100 letters, digits, '.', '_' or '-', got {name!r}")
    return name


def read_secret(path: Path) -> str:
    """The server's secret key.

    Raises:
        ValueError: the file has none, or cannot be read.
    """
    said = keys.read_key_file(path, ("secret", "public"))
    return keys.check_key(said.get("secret"), f"{path}: secret")


def read_client(path: Path) -> Client:
    """The client of a file.

    Raises:
        ValueError: it is none, or cannot be read.
    """
    said = keys.read_key_file(path, ("public", "runs"))
    runs = said.get("runs")
    if runs is not None and not (
        isinstance(runs, list) and runs and all(isinstance(each, str) and each for each in runs)
    ):
        raise ValueError(f'{path}: runs: expected a list of patterns, such as ["alice/*"]')
    public = keys.check_key(said.get("public"), f"{path}: public")
    return Client(path.stem, public, None if runs is None else tuple(runs))


def read_clients(directory: Path) -> tuple[dict[str, Client], list[str]]:
    """The clients of a directory by their public keys, and what is wrong with its other files.

    Raises:
        OSError: the directory cannot be read.
    """
    clients: dict[str, Client] = {}
    wrong = []
    for path in sorted(directory.iterdir()):
        if path.suffix != SUFFIX or path.name.startswith("."):
            continue
        try:
            client = read_client(path)
        except ValueError as error:
            wrong.append(str(error))
            continue
        rival = clients.setdefault(client.public, client)
        if rival is not client:
            wrong.append(f"{path}: public: {rival.name}{SUFFIX} has the same key, and comes first")
    return clients, wrong


class Access:
    """The server's key and its clients'.

    Raises:
        ValueError, OSError: the key or the directory cannot be read.
    """

    def __init__(self, server_key: Path, client_keys: Path, metrics: Metrics) -> None:
        self._secret = read_secret(server_key)
        self._directory = client_keys
        self._metrics = metrics
        self._log = LogBudget()
        self._clients: dict[str, Client] = {}
        self._seen = self._look()
        self._next_look = self._next_look_for_unknown = 0.0
        self.changes = 0
        """How often the directory was read: sessions are looked at again when it was."""
        self._unreadable = False
        self._zap: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._read()

    # -- sockets ----------------------------------------------------------------------

    def guard(self, context: zmq.Context[zmq.Socket[bytes]], router: zmq.Socket[bytes]) -> None:
        """Endpoints that the router binds from now on are for those who have a key."""
        self._zap = context.socket(zmq.REP)
        self._zap.setsockopt(zmq.LINGER, 0)
        self._zap.bind(ZAP_ENDPOINT)
        router.monitor(MONITOR_ENDPOINT, _FAILURES)
        self._monitor = context.socket(zmq.PAIR)
        # No mark: behind a full queue libzmq's thread waits, and with it everyone's messages,
        # for as long as a disk may hold us up.
        self._monitor.setsockopt(zmq.RCVHWM, 0)
        self._monitor.connect(MONITOR_ENDPOINT)
        router.setsockopt(zmq.CURVE_SERVER, 1)
        router.setsockopt(zmq.CURVE_SECRETKEY, self._secret.encode())
        router.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
        # Without it libzmq lets everyone in while nobody answers.
        router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def sockets(self) -> list[zmq.Socket[bytes]]:
        """What becomes readable when someone wants to get in."""
        return [each for each in (self._zap, self._monitor) if each is not None]

    def turn(self) -> None:
        """Answer who wants to get in, and hear who could not."""
        now = time.monotonic()
        assert self._zap is not None and self._monitor is not None
        for _ in range(ANSWERS_A_TURN):
            try:
                asked = self._zap.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            self._zap.send_multipart(self._answer(asked, now))
        for _ in range(ANSWERS_A_TURN):
            if not self._monitor.poll(0):
                break
            self._failed(recv_monitor_message(self._monitor), now)

    def close(self, router: zmq.Socket[bytes]) -> None:
        """Hear nothing more. The router is about to be closed."""
        self.turn()
        router.disable_monitor()
        for each in self.sockets():
            each.close(linger=0)
        self._zap = self._monitor = None

    def _answer(self, asked: list[bytes], now: float) -> list[bytes]:
        """ZAP's answer. The key goes with every message of the connection, as its User-Id."""
        version, request, domain, address, _identity, mechanism, *credentials = asked
        if domain == DOMAIN and mechanism == b"CURVE" and len(credentials) == 1:
            public = z85.encode(credentials[0])
            if self.is_gone(public.decode()) and now >= self._next_look_for_unknown:
                self._next_look_for_unknown = now + LOOK_FOR_UNKNOWN_S
                self._reread_if_changed()
            if not self.is_gone(public.decode()):
                self._metrics.admitted.inc()
                return [version, request, b"200", b"", public, b""]
            self._metrics.denied.labels("unknown-key").inc()
            self._log.warning(
                now,
                "refused a connection from %(address)s: no file in %(directory)s has its key "
                "%(key)s",
                {
                    "address": address.decode(errors="replace"), "directory": self._directory,
                    "key": public.decode(),
                },
            )  # fmt: skip
        return [version, request, b"400", b"no file on the server has this key", b"", b""]

    def _failed(self, event: Mapping[str, object], now: float) -> None:
        endpoint = event["endpoint"]
        where = endpoint.decode() if isinstance(endpoint, bytes) else "?"
        if not where.startswith("tcp://"):
            return  # a look whether someone listens on an ipc socket ends like this
        if event["value"] == _MECHANISM_MISMATCH:
            self._metrics.denied.labels("no-key").inc()
            self._log.warning(
                now, "refused a connection to %(endpoint)s: it came without a key",
                {"endpoint": where},
            )  # fmt: skip
        elif event["value"] == _CRYPTOGRAPHIC:
            self._metrics.denied.labels("wrong-server-key").inc()
            self._log.warning(
                now,
                "refused a connection to %(endpoint)s: its message was for another server's key",
                {"endpoint": where},
            )
        else:
            # Not in the log: a load balancer that looks every second ends like this. So does
            # who has no key, when it is quicker than we to see that this leads to nothing.
            self._metrics.denied.labels("no-handshake").inc()

    # -- keys -------------------------------------------------------------------------

    def refusal(self, public: str, run: str) -> str | None:
        """Why a key that was let in may not write a run; None: it may.

        None too for one whose file is gone, which `is_gone` tells.
        """
        client = self._clients.get(public)
        if client is None or client.runs is None:
            return None
        if any(fnmatch.fnmatchcase(run, pattern) for pattern in client.runs):
            return None
        allowed = ", ".join(repr(pattern) for pattern in client.runs)
        return f"the key of {client.name!r} may write runs that match {allowed}, got run {run!r}"

    def is_gone(self, public: str) -> bool:
        """Whether a key that was let in would not be let in any more."""
        return public not in self._clients

    def look(self, now: float) -> None:
        """Read the directory when it has changed; looks once a second."""
        if now >= self._next_look:
            self._next_look = now + LOOK_S
            self._reread_if_changed()

    def _reread_if_changed(self) -> None:
        try:
            has_changed = self._look() != self._seen
        except OSError as error:
            self._cannot_read(error)
            return
        if has_changed:
            self.reread()

    def reread(self) -> None:
        """Read the directory now."""
        try:
            self._seen = self._look()
            self._read()
        except OSError as error:
            self._cannot_read(error)

    def _cannot_read(self, error: OSError) -> None:
        # What was read before holds: a directory that is away for a moment must not end
        # every job's logging.
        if not self._unreadable:
            logger.error(
                "%(directory)s: %(error)s; the keys read before hold",
                {"directory": self._directory, "error": error.strerror},
            )
        self._unreadable = True

    def _read(self) -> None:
        self._clients, wrong = read_clients(self._directory)
        self._unreadable = False
        self.changes += 1
        self._metrics.clients.set(len(self._clients))
        for each in wrong:
            logger.error("%(problem)s", {"problem": each})
        logger.info(
            "%(keys)d client keys in %(directory)s",
            {"keys": len(self._clients), "directory": self._directory},
        )

    def _look(self) -> list[tuple[str, int, int, int]]:
        """What changes when a file does, or its permissions."""
        found = []
        for path in self._directory.iterdir():
            if path.suffix == SUFFIX:
                try:
                    stat = path.stat()
                except FileNotFoundError:
                    continue
                found.append((path.name, stat.st_size, stat.st_ctime_ns, stat.st_ino))
        return sorted(found)
