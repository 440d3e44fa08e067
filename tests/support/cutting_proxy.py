"""A TCP proxy on loopback that resets connections in the middle of what they say."""

from __future__ import annotations

import random
import selectors
import socket
import struct
import threading
from dataclasses import dataclass, field
from types import TracebackType

CHUNK_BYTES = 1 << 16
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER: close() sends a reset, and drops what was not sent."""


@dataclass(eq=False)
class _Link:
    """A client's connection, and ours to the server for it."""

    client: socket.socket
    server: socket.socket
    left: dict[socket.socket, float] = field(default_factory=dict)
    """How many more bytes of each side are passed on."""

    def other(self, side: socket.socket) -> socket.socket:
        return self.server if side is self.client else self.client


class CuttingProxy:
    """Passes on so many bytes of each side of a connection as `chance` says, then resets it.

    A client's bytes are cut within `after_bytes` (lowest, highest); the server's, which are
    answers and few, within a hundredth of that behind the lowest.
    """

    def __init__(
        self, server_port: int, chance: random.Random, after_bytes: tuple[int, int]
    ) -> None:
        self._server_port = server_port
        self._chance = chance
        self._after_bytes = after_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._links: set[_Link] = set()
        self._cuts = True
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.resets = 0
        self.in_mid_message = 0
        """Resets behind which more had already arrived to be passed on."""

    def __enter__(self) -> CuttingProxy:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._wake.close()
        self._thread.join(10)
        for link in tuple(self._links):
            self._reset(link)
        for each in (self._listener, self._woken, self._selector):
            each.close()

    def let_through(self) -> None:
        """Cut nothing any more."""
        self._cuts = False

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._woken:
                    return
                if key.fileobj is self._listener:
                    self._accept()
                elif key.data in self._links:
                    self._pass_on(key.data, key.fileobj)  # type: ignore[arg-type]

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(("127.0.0.1", self._server_port))
        except OSError:
            client.close()
            return
        link = _Link(client, server)
        low, high = self._after_bytes
        link.left[client] = self._chance.randint(low, high)
        link.left[server] = low + self._chance.randint(0, high // 100)
        self._links.add(link)
        for side in (client, server):
            self._selector.register(side, selectors.EVENT_READ, link)

    def _pass_on(self, link: _Link, side: socket.socket) -> None:
        try:
            data = side.recv(CHUNK_BYTES)
            allowed = data[: int(link.left[side])] if self._cuts else data
            link.left[side] -= len(allowed)
            link.other(side).sendall(allowed)
        except OSError:
            self._reset(link)
            return
        if not data:
            self._reset(link)
        elif len(allowed) < len(data):
            self.resets += 1
            self.in_mid_message += bool(allowed)
            self._reset(link)

    def _reset(self, link: _Link) -> None:
        self._links.discard(link)
        for side in (link.client, link.server):
            self._selector.unregister(side)
            side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            side.close()
