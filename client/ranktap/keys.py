"""The client's keys, and what a daemon's door says to them.

    RANKTAP_KEY_FILE        the file that `ranktapd keygen NAME` made
    RANKTAP_SERVER_KEY      or both keys themselves: the daemon's public one
    RANKTAP_KEY             and this client's secret one

They are used over tcp. An ipc socket is guarded by its file's permissions.
"""

from __future__ import annotations

import logging
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

import zmq

from ranktap_wire import keys as wire_keys

logger = logging.getLogger("ranktap")

_FAILURES = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_MECHANISM_MISMATCH = 0x11000002
"""Of ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL, in zmq.h."""
DROPS = 3
"""Handshakes in a row that the other side broke off: once may be a daemon that ends."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Both as 40 characters of Z85."""

    server: str
    """The daemon's public key: nobody else can read what is sent."""
    secret: str
    """This client's own."""

    @property
    def public(self) -> str:
        return zmq.curve_public(self.secret.encode()).decode()


@dataclass(frozen=True, slots=True)
class Address:
    """Where a daemon is, and the keys to its door, when these are not the environment's."""

    endpoint: str
    keys: Keys | None = None


def new_pair() -> tuple[str, str]:
    """A public key, and the secret one that belongs to it."""
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def from_environment() -> Keys | None:
    """The keys that the environment names; None when it names none.

    Raises:
        ValueError: what it names is no key, or only one of two; the variable is named.
    """
    file = os.environ.get("RANKTAP_KEY_FILE")
    server, secret = os.environ.get("RANKTAP_SERVER_KEY"), os.environ.get("RANKTAP_KEY")
    if not file and not server and not secret:
        return None
    if not file:
        return Keys(
            wire_keys.check_key(server, "RANKTAP_SERVER_KEY"),
            wire_keys.check_key(secret, "RANKTAP_KEY"),
        )
    if server or secret:
        raise ValueError(
            "RANKTAP_KEY_FILE: expected this or RANKTAP_SERVER_KEY and RANKTAP_KEY, got both"
        )
    return from_file(Path(file), "RANKTAP_KEY_FILE")


def from_file(path: Path, given_as: str) -> Keys:
    """The keys of a file that `ranktapd keygen NAME` made.

    Raises:
        ValueError: it is none, or cannot be read; the message begins with `given_as`.
    """
    try:
        said = wire_keys.read_key_file(path, ("server", "secret"))
        keys = Keys(
            wire_keys.check_key(said.get("server"), f"{path}: server"),
            wire_keys.check_key(said.get("secret"), f"{path}: secret"),
        )
    except ValueError as error:
        raise ValueError(f"{given_as}: {error}") from None
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        logger.warning("ranktap: %s can be read by others: chmod 600", path)
    return keys


class Door:
    """A daemon's tcp endpoint, as one connection meets it. Made before the socket connects."""

    def __init__(self, dealer: zmq.Socket[bytes], where: str, keys: Keys | None) -> None:
        self._dealer = dealer
        self._where = where
        self._keys = keys
        self._drops = 0
        if keys is not None:
            dealer.setsockopt(zmq.CURVE_SERVERKEY, keys.server.encode())
            dealer.setsockopt(zmq.CURVE_PUBLICKEY, keys.public.encode())
            dealer.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
        self.socket: zmq.Socket[bytes] = dealer.get_monitor_socket(_FAILURES)
        """Becomes readable when a handshake failed."""

    def refusal(self) -> str | None:
        """Why it does not let this client in, as far as is known by now; None: nothing is."""
        why = None
        while self.socket.poll(0):
            # zmq_socket_monitor(3): the event's number, its value, and an address behind them.
            # pyzmq's own reader of it imports asyncio, which takes 45 ms.
            event, value = struct.unpack("=HI", self.socket.recv_multipart()[0])
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                public = "" if self._keys is None else self._keys.public
                why = f"{self._where} does not let the key {public} in"
            elif value == _MECHANISM_MISMATCH and self._keys is None:
                why = f"{self._where} asks for a key: set RANKTAP_KEY_FILE"
            elif value == _MECHANISM_MISMATCH:
                why = f"{self._where} asks for no key, and RANKTAP_KEY_FILE or RANKTAP_KEY is set"
            else:
                self._drops += 1
                if self._drops >= DROPS:
                    why = f"{self._where} {self._dropping}"
        return why

    @property
    def _dropping(self) -> str:
        if self._keys is None:
            return "breaks every connection off: if it asks for a key, set RANKTAP_KEY_FILE"
        return "breaks every connection off: is the key that is given for it its own?"

    def close(self) -> None:
        self._dealer.disable_monitor()
        self.socket.close(linger=0)
