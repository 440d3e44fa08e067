"""A look at a daemon from outside, which leaves nothing behind there.

    connect     resolve the name, open a connection
    greet       ZMTP's greeting (ZeroMQ RFC 23): is it a ZeroMQ socket, and does it ask for keys?
    ask         probes, answered by a ranktapd: versions, clock, would this run be let in?

Each step says what the one before it cannot: a port that is open may belong to a web server,
and a ZeroMQ socket to another program.
"""

from __future__ import annotations

import math
import socket
import time
from dataclasses import dataclass, field
from typing import Final

import zmq

from ranktap.clock import Clock
from ranktap.keys import Door, Keys
from ranktap_wire import frames
from ranktap_wire.messages import Error, FrameError, Probe, ProbeAnswer

PROBES: Final = 10
"""The best round trip of so many says most of the clocks; over a slow network it takes 2 s."""

_SIGNATURE: Final = b"\xff\0\0\0\0\0\0\0\x01\x7f"
_MAJOR: Final = b"\x03"
_GREETING_BYTES: Final = 64
_MECHANISM: Final = slice(12, 32)


class StrangerError(Exception):
    """Who answered is no ZeroMQ socket; the message says what it said."""


def zmq_versions() -> list[str]:
    """Of ZeroMQ here: the binding's, and the library's."""
    return [f"pyzmq {zmq.pyzmq_version()}", f"libzmq {zmq.zmq_version()}"]


def split(endpoint: str) -> tuple[str, int]:
    """Host and port of a tcp endpoint."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return host, int(port)


def resolve(endpoint: str) -> list[str]:
    """The addresses of a tcp endpoint's host, as libzmq looks for them.

    Raises:
        OSError: the name stands for none.
    """
    host, port = split(endpoint)
    # As the sender's socket: IPv6 where the endpoint is written so.
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    found = socket.getaddrinfo(host.strip("[]"), port, family, socket.SOCK_STREAM)
    return [str(address[0]) for _, _, _, _, address in found]


def greet(endpoint: str, timeout_s: float) -> str:
    """The mechanism that a ZeroMQ socket asks for: `NULL`, or `CURVE` where it is for keys.

    The connection is closed before a handshake begins: in its log the daemon has nothing of it.

    Raises:
        OSError: there is no connection, or nobody says anything on it.
        StrangerError: it is something else.
    """
    deadline = time.monotonic() + timeout_s
    with _connected(endpoint, timeout_s) as stream:
        # A version more than the signature, and the other side says what it asks for.
        stream.sendall(_SIGNATURE + _MAJOR)
        said = b""
        while len(said) < _GREETING_BYTES:
            stream.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                more = stream.recv(_GREETING_BYTES - len(said))
            except TimeoutError:
                more = b""
            if not more:
                break
            said += more
            if not _SIGNATURE.startswith(said[:1]):
                break
    if not said:
        raise TimeoutError("a connection is taken, and nobody says anything on it")
    if len(said) < _GREETING_BYTES or said[0] != 0xFF or said[9] & 1 == 0:
        raise StrangerError(f"something else answers: {said[:40]!r}")
    return said[_MECHANISM].rstrip(b"\0").decode(errors="replace")


def _connected(endpoint: str, timeout_s: float) -> socket.socket:
    if endpoint.startswith("ipc://"):
        stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(timeout_s)
        try:
            stream.connect(endpoint.removeprefix("ipc://"))
        except OSError:
            stream.close()
            raise
        return stream
    return socket.create_connection((resolve(endpoint)[0], split(endpoint)[1]), timeout_s)


# -- probes -----------------------------------------------------------------------------


@dataclass(slots=True)
class Asked:
    """What came of the probes. At most one of `answer`, `error`, `refusal` and `strange` is
    there; none, where nobody answered in time."""

    answer: ProbeAnswer | None = None
    """The last one."""
    error: Error | None = None
    """A ranktapd does not take probes: it is older than they are."""
    refusal: str | None = None
    """Its door does not let this client in."""
    strange: str | None = None
    """Something answered that is no ranktapd."""
    round_trips_s: list[float] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)


def ask(endpoint: str, keys: Keys | None, run: str | None, timeout_s: float) -> Asked:
    """Probe the daemon at `endpoint`, a few times one after another.

    `keys` are for tcp; `run` is what is asked about. It ends with the first refusal, and
    `timeout_s` after the last answer.

    Raises:
        OSError: libzmq cannot use the endpoint.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        dealer = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.RECONNECT_IVL, 50)
        if "[" in endpoint:
            dealer.setsockopt(zmq.IPV6, 1)
        door = Door(dealer, endpoint, keys) if endpoint.startswith("tcp://") else None
        try:
            dealer.connect(endpoint)
            asked = Asked()
            for _ in range(PROBES):
                if not _ask_once(dealer, door, run, timeout_s, asked):
                    break
            return asked
        except zmq.ZMQError as error:
            raise OSError(f"{endpoint}: {error.strerror}") from None
        finally:
            if door is not None:
                door.close()
    finally:
        context.destroy(linger=0)


def _ask_once(
    dealer: zmq.Socket[bytes], door: Door | None, run: str | None, timeout_s: float, asked: Asked
) -> bool:
    """One probe; whether another one makes sense."""
    sent = time.monotonic()
    deadline = sent + timeout_s
    dealer.send_multipart(frames.pack_probe(Probe(sent, run)))  # type: ignore[arg-type]
    poller = zmq.Poller()
    poller.register(dealer, zmq.POLLIN)
    if door is not None:
        poller.register(door.socket, zmq.POLLIN)
    while (left := deadline - time.monotonic()) > 0:
        ready = dict(poller.poll(math.ceil(left * 1_000)))
        if dealer in ready:
            return _hear(dealer.recv_multipart(), sent, asked)
        asked.refusal = door.refusal() if door is not None else None
        if asked.refusal is not None:
            return False
    asked.answer = None  # it has answered before, and does not any more
    return False


def _hear(parts: list[bytes], sent: float, asked: Asked) -> bool:
    received, wall = time.monotonic(), time.time()
    try:
        answer = frames.read_answer(parts)
    except FrameError as error:
        asked.strange = error.text
        return False
    if isinstance(answer, Error):
        asked.error = answer
        return False
    if not isinstance(answer, ProbeAnswer):
        asked.strange = type(answer).__name__
        return False
    asked.answer = answer
    asked.round_trips_s.append(received - sent)
    # It answers at once: what it had in hand is part of the round trip, which is its bound.
    asked.clock.heard(sent, received, wall, answer.now, 0.0)
    return True
