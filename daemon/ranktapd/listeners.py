"""The sockets that clients connect to: bound here, or handed over by the service manager."""

from __future__ import annotations

import grp
import os
from pathlib import Path

import zmq

from ranktap_wire import limits
from ranktapd.access import Access
from ranktapd.config import Config

RECEIVE_HIGH_WATER_MARK = 16
"""Messages a connection may have queued here. At libzmq's 1,000 one client pushed 1 GB into
a daemon that was not reading."""
BACKLOG = 1_024
"""Connections that wait to be accepted: a job's ranks come all at once."""
DIRECTORY_MODE = 0o750
SOCKET_UMASK = 0o117
"""An ipc socket is made with mode 0660: its owner and its group may connect."""


def listen(
    context: zmq.Context[zmq.Socket[bytes]],
    config: Config,
    inherited: dict[str, int],
    access: Access | None,
) -> zmq.Socket[bytes]:
    """The ROUTER, bound to every endpoint of the configuration.

    Raises:
        OSError: an endpoint cannot be had; it is named.
    """
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.LINGER, 0)
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    router.setsockopt(zmq.RCVHWM, RECEIVE_HIGH_WATER_MARK)
    router.setsockopt(zmq.MAXMSGSIZE, limits.RECORD_BYTES)
    router.setsockopt(zmq.BACKLOG, BACKLOG)
    router.setsockopt(zmq.HEARTBEAT_IVL, 5_000)
    router.setsockopt(zmq.HEARTBEAT_TIMEOUT, 30_000)
    try:
        # Options hold for what is bound after them: files' permissions guard ipc, keys tcp.
        for endpoint in _of_kind(config, "ipc"):
            _bind(router, endpoint, inherited.get(endpoint), config.socket_group)
        if access is not None:
            access.guard(context, router)
        for endpoint in _of_kind(config, "tcp"):
            # With it, a name may stand for another address.
            router.setsockopt(zmq.IPV6, int("[" in endpoint))
            _bind(router, endpoint, inherited.get(endpoint), None)
    except OSError:
        router.close(linger=0)
        raise
    return router


def _of_kind(config: Config, kind: str) -> list[str]:
    return [endpoint for endpoint in config.listen if endpoint.startswith(f"{kind}://")]


def _bind(router: zmq.Socket[bytes], endpoint: str, fd: int | None, group: str | None) -> None:
    try:
        if fd is not None:
            _bind_inherited(router, endpoint, fd)
        elif endpoint.startswith("ipc://"):
            _bind_path(router, endpoint, group)
        else:
            router.bind(endpoint)
    except zmq.ZMQError as error:
        raise OSError(f"{endpoint}: {error.strerror}") from None
    except OSError as error:
        raise OSError(f"{endpoint}: {error.strerror}") from None


def _bind_inherited(router: zmq.Socket[bytes], endpoint: str, fd: int) -> None:
    # libzmq closes the descriptor that it is given, and accepts from it without waiting.
    own = os.dup(fd)
    os.set_blocking(own, False)
    router.setsockopt(zmq.USE_FD, own)
    try:
        router.bind(endpoint)
    finally:
        router.setsockopt(zmq.USE_FD, -1)


def _bind_path(router: zmq.Socket[bytes], endpoint: str, group: str | None) -> None:
    # A second bind on a live path would steal it; the logdir's lock says that no daemon of
    # this logdir lives.
    path = Path(endpoint.removeprefix("ipc://"))
    gid = -1 if group is None else grp.getgrnam(group).gr_gid
    if not path.parent.exists():
        path.parent.mkdir(parents=True, mode=DIRECTORY_MODE)
        os.chown(path.parent, -1, gid)
    # From its first moment on; chmod would come after it.
    before = os.umask(SOCKET_UMASK)
    try:
        router.bind(endpoint)
    finally:
        os.umask(before)
    if gid >= 0:
        os.chown(path, -1, gid)
