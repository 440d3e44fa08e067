"""`ranktapd check`: what a daemon with these settings would find here. Changes nothing."""

from __future__ import annotations

import fcntl
import os
import platform
import pwd
import resource
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import zmq

from ranktap_wire import places
from ranktap_wire.messages import PROTOCOL
from ranktapd import __version__, access
from ranktapd.config import RULES, Config, is_reachable
from ranktapd.runs import free_bytes

PACKAGES = ("msgpack", "numpy", "tensorboard", "protobuf", "isal", "prometheus-client")
DESCRIPTORS_BESIDE_SESSIONS = 256
"""What a daemon has open besides its sessions, workers and runs."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`ok`, `note` (it works, and may not be meant), or `WRONG` (a daemon would not start)."""

    level: str
    text: str


def main(settings: Config) -> int:
    default = Config()
    for name in RULES:
        value = getattr(settings, name)
        mark = " " if value == getattr(default, name) else "*"
        print(f"{mark} {name} = {value if value is not None else 'none'}")
    print("  (*: not the default)\n")
    findings = list(examine(settings))
    for finding in findings:
        print(f"{finding.level:6}{finding.text}")
    wrong = sum(finding.level == "WRONG" for finding in findings)
    print(f"\n{wrong} things are wrong" if wrong else "\nA daemon would start.")
    return 1 if wrong else 0


def examine(settings: Config) -> Iterator[Finding]:
    """What is right and wrong, in the order in which a daemon would meet it."""
    yield Finding("ok", f"as user {_user()}: it should be the daemon's")
    yield from _versions()
    owner = _running(settings)
    if owner is not None:
        where = f"it listens on {owner or '?'}; addresses are not tried"
        yield Finding("note", f"a ranktapd has this logdir now; {where}")
    for name, directory in (("logdir", settings.logdir), ("state_dir", settings.state)):
        yield _directory(name, directory)
    yield _room(settings)
    yield from _keys(settings)
    for endpoint in settings.listen:
        if owner is None:
            yield _address(endpoint)
        if is_reachable(endpoint) and settings.server_key is None:
            yield Finding("note", f"{endpoint}: everyone who reaches it can write (insecure)")
    if settings.metrics is not None and owner is None:
        yield _address(f"tcp://{settings.metrics}")
    yield _descriptors(settings)


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _versions() -> Iterator[Finding]:
    found = [f"Python {platform.python_version()}", f"ranktapd {__version__}"]
    found += [f"protocol {PROTOCOL}", f"pyzmq {zmq.pyzmq_version()}", f"libzmq {zmq.zmq_version()}"]
    missing = places.daemon_lacks()
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    yield Finding("ok", ", ".join(found))
    if missing:
        lacks = ", ".join(dict.fromkeys(missing))
        yield Finding("WRONG", f"not installed: {lacks}: pip install 'ranktap[daemon]'")
    if not zmq.has("curve"):
        yield Finding("note", "this libzmq has no CURVE: server_key cannot be used")


def _running(settings: Config) -> str | None:
    """Where the daemon that has the logdir listens; None when there is none."""
    try:
        with open(places.lock_path(settings.logdir)) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return lock.read().strip().replace("\n", ", ")
    except OSError:
        return None
    return None


def _directory(name: str, path: Path) -> Finding:
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        return Finding("WRONG", f"{name}: {there} is no directory")
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding("WRONG", f"{name}: {path}: {there} cannot be written")
    return Finding("ok", f"{name}: {path}" + ("" if there == path else " will be made"))


def _room(settings: Config) -> Finding:
    there = settings.state
    while not there.exists() and there != there.parent:
        there = there.parent
    free = free_bytes(there)
    text = f"{free} bytes free, {settings.min_free_bytes} are kept (min_free_bytes)"
    return Finding("ok" if free > settings.min_free_bytes else "WRONG", text)


def _keys(settings: Config) -> Iterator[Finding]:
    if settings.server_key is None or settings.client_keys is None:
        return
    try:
        access.read_secret(settings.server_key)
        mode = settings.server_key.stat().st_mode
    except (ValueError, OSError) as error:
        yield Finding("WRONG", f"server_key: {error}")
    else:
        open_to_others = mode & (stat.S_IRWXG | stat.S_IRWXO)
        yield Finding(
            "note" if open_to_others else "ok",
            f"server_key: {settings.server_key}"
            + (f": others may read it (mode {stat.S_IMODE(mode):04o})" if open_to_others else ""),
        )
    try:
        clients, wrong = access.read_clients(settings.client_keys)
    except OSError as error:
        yield Finding("WRONG", f"client_keys: {settings.client_keys}: {error.strerror}")
        return
    yield Finding("ok" if clients else "note", f"client_keys: {len(clients)} may write over tcp")
    for each in wrong:
        yield Finding("note", f"client_keys: {each}")


def _address(endpoint: str) -> Finding:
    kind, _, rest = endpoint.partition("://")
    if kind == "ipc":
        finding = _directory(endpoint, Path(rest).absolute().parent)
        if finding.level == "ok" and _answers(rest):
            return Finding("WRONG", f"{endpoint}: someone listens there")
        return Finding(finding.level, finding.text if finding.level == "WRONG" else endpoint)
    host, _, port = rest.rpartition(":")
    try:
        # "*" is libzmq's word for every address.
        found = socket.getaddrinfo(
            None if host == "*" else host.strip("[]"), int(port),
            type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE,
        )  # fmt: skip
        family, kind_of_socket, protocol, _, where = found[0]
        with socket.socket(family, kind_of_socket, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        return Finding("WRONG", f"{endpoint}: {error.strerror}")
    return Finding("ok", endpoint)


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def _descriptors(settings: Config) -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.max_sessions + 2 * settings.max_workers + settings.max_runs
    wanted += DESCRIPTORS_BESIDE_SESSIONS
    text = f"{hard} descriptors; max_sessions, max_workers and max_runs may take {wanted}"
    return Finding("ok" if hard >= wanted or hard < 0 else "note", text)
