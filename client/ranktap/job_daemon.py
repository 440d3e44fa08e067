"""The daemon of a job on several machines: rank 0's, which the others find by the job's own store.

    rank 0         starts the daemon of its logdir, which listens on tcp too, for who has a key
                   store["ranktap/..."] = where that is, the keys, and which machine it is on
    other ranks    read this; on rank 0's machine they take the ipc socket, elsewhere tcp

The store is the one that `init_process_group` has made. There is no collective, and nothing of
the training waits: a sender's thread asks the store whether the answer is there, on a
connection of its own, as a question that waits would hold up whoever else uses the store.

Who can read the job's store can read the keys. They are made anew with each daemon, and lie
beside its journals, readable by this user alone.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from ranktap.embedded import EmbeddedDaemon
from ranktap.keys import Address, Keys, new_pair
from ranktap_wire import keys as wire_keys
from ranktap_wire import places

WAIT_S: Final = 10.0
"""How long an answer is waited for before it is said that there is none; then it is asked again."""
ASK_INTERVAL_S: Final = 0.1
ASK_INTERVAL_MAX_S: Final = 1.0
"""A job may have thousands of ranks, and rank 0's daemon take seconds to start."""


T = TypeVar("T")


class Store(Protocol):
    """What is needed of `torch.distributed.Store`."""

    def check(self, keys: list[str], /) -> bool: ...
    def get(self, key: str, /) -> bytes: ...
    def set(self, key: str, value: str, /) -> None: ...


@dataclass(frozen=True, slots=True)
class _Announced:
    """What rank 0 says of its daemon."""

    machine: str
    listen: str
    """The tcp endpoint as the daemon has it."""
    endpoint: str
    """The same as others reach it."""
    server: str
    secret: str
    """The keys: the daemon's public one, and the secret one of this job's ranks."""


class JobDaemon:
    """Finds the daemon of a job, from any of its ranks.

    `given` is the logdir as it was given, which is the same in every rank; `logdir` is where
    that is here.
    """

    def __init__(self, logdir: Path, given: str, rank: int) -> None:
        self._logdir = logdir
        self._rank = rank
        self._key = f"ranktap/{hashlib.sha256(given.encode()).hexdigest()[:16]}"
        self._announced: _Announced | None = None

    def locate(self) -> Address:
        """Where it is; the sender's thread may wait here for some seconds.

        Raises:
            OSError: it cannot be told yet; the message has its own words.
        """
        if self._announced is None:
            self._announced = self._announce() if self._rank == 0 else self._ask()
        announced = self._announced
        if announced.machine == machine():
            daemon = EmbeddedDaemon(self._logdir, _arguments(self._logdir, announced.listen))
            return Address(daemon.locate())
        return Address(announced.endpoint, Keys(announced.server, announced.secret))

    # -- rank 0 -----------------------------------------------------------------------

    def _announce(self) -> _Announced:
        store = _wait_for(
            _store,
            "this job is on several machines, which find rank 0's ranktapd by the store of "
            "torch.distributed, and there is none: call init_process_group, or give endpoint=",
        )
        name = _own_name()
        daemon = EmbeddedDaemon(self._logdir)
        with daemon.starting():
            endpoints = daemon.endpoints()
            if endpoints is None:
                listen = _free_endpoint(name)
                _make_keys(self._logdir)
                daemon.arguments = _arguments(self._logdir, listen)
                daemon.start()
            else:
                listen = _reachable(endpoints, self._logdir)
            server, secret = _add_client(self._logdir)
        port = listen.rpartition(":")[2]
        endpoint = f"tcp://{f'[{name}]' if ':' in name else name}:{port}"
        announced = _Announced(machine(), listen, endpoint, server, secret)
        try:
            store.set(self._key, json.dumps(asdict(announced)))
        except RuntimeError as error:
            raise OSError(f"the store of torch.distributed: {error}") from None
        return announced

    # -- the others -------------------------------------------------------------------

    def _ask(self) -> _Announced:
        store: Store | None = None

        def answer() -> bytes | None:
            nonlocal store
            store = store or _store()
            if store is None or not store.check([self._key]):
                return None
            return store.get(self._key)

        try:
            said = _wait_for(
                answer,
                "this job is on several machines, and rank 0 has not said in the store of "
                f"torch.distributed where the ranktapd of {self._logdir} is",
            )
            return _Announced(**json.loads(said))
        except (RuntimeError, TypeError, ValueError) as error:
            raise OSError(f"the store of torch.distributed: {error}") from None


def _wait_for(ask: Callable[[], T | None], otherwise: str) -> T:
    """What `ask` finds; OSError with those words when it has found nothing after `WAIT_S`."""
    deadline = time.monotonic() + WAIT_S
    pause_s = ASK_INTERVAL_S
    while (found := ask()) is None:
        if time.monotonic() > deadline:
            raise OSError(otherwise)
        time.sleep(pause_s)
        pause_s = min(1.5 * pause_s, ASK_INTERVAL_MAX_S)
    return found


def machine() -> str:
    """What is the same where one socket on a file system can be shared: the boot of a machine,
    and the container in it."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path('/proc/self/ns/net').readlink()}"


def _store() -> Store | None:
    """The job's store, by a connection of our own; None while there is no process group."""
    distributed: Any = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    try:
        # By a function of torch's that is not public, but older than any store of its own.
        store = distributed.distributed_c10d._get_default_store()
        cloned: Store = store.clone() if hasattr(store, "clone") else store
    except (AttributeError, RuntimeError) as error:
        raise OSError(f"torch.distributed has no store that could be used: {error}") from None
    return cloned


def _own_name() -> str:
    """How other machines reach this one: by the name at which rank 0 is the master."""
    master = os.environ.get("MASTER_ADDR", "")
    if not master or _is_loopback(master):
        return socket.gethostname()
    return master


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _free_endpoint(name: str) -> str:
    """A tcp endpoint of this machine at which others reach it by that name.

    On the one address of it, where that is one of ours: behind a translation of addresses, and
    where our own name is entered as a loopback one, on all of them.
    """
    try:
        found = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)
    except OSError:
        found = []
    addresses = [(family, str(address[0])) for family, _, _, _, address in found]
    for family, address in [*addresses, (socket.AF_INET, "0.0.0.0")]:
        if _is_loopback(address):
            continue
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((address, 0))
            except OSError:
                continue
            port = probe.getsockname()[1]
        return f"tcp://{f'[{address}]' if ':' in address else address}:{port}"
    raise OSError(f"no port is free for the ranktapd of this job at {name!r}")


def _reachable(endpoints: list[str], logdir: Path) -> str:
    for endpoint in endpoints:
        host = endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
        if endpoint.startswith("tcp://") and not _is_loopback(host) and _keys_of(logdir).exists():
            return endpoint
    raise OSError(
        f"the ranktapd that has {logdir} already was started by a job on one machine, and others "
        "do not reach it: it ends with that job"
    )


# -- keys -----------------------------------------------------------------------------------


def _keys_of(logdir: Path) -> Path:
    return places.state_directory(logdir) / "job"


def _arguments(logdir: Path, listen: str) -> list[str]:
    """What a daemon that others reach is started with."""
    directory = _keys_of(logdir)
    return [
        f"--listen={listen}",
        f"--server-key={directory / 'server.key'}",
        f"--client-keys={directory / 'clients'}",
    ]


def _make_keys(logdir: Path) -> None:
    """A key for a daemon that is about to start; whoever had one for the last has none for it."""
    directory = _keys_of(logdir)
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "clients").mkdir(parents=True)
    directory.chmod(0o700)
    public, secret = new_pair()
    _write(directory / "server.key", public=public, secret=secret)


def _add_client(logdir: Path) -> tuple[str, str]:
    """Let one more job in: the daemon's public key, and the job's secret one."""
    directory = _keys_of(logdir)
    try:
        said = wire_keys.read_key_file(directory / "server.key", ("public", "secret"))
        server = wire_keys.check_key(said.get("public"), "public")
    except ValueError as error:
        raise OSError(str(error)) from None
    public, secret = new_pair()
    name = secrets.token_hex(8)
    _write(directory / "clients" / f"{name}.toml", public=public)
    return server, secret


def _write(path: Path, **said: str) -> None:
    """A key file that is there whole or not at all, and for this user alone."""
    partial = path.with_suffix(".partial")
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w") as file:
        # Z85 has no character that TOML would have to escape.
        file.writelines(f'{name} = "{key}"\n' for name, key in said.items())
    partial.rename(path)
