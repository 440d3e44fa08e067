"""What can be set: on the command line, or in a TOML file with the same names."""

from __future__ import annotations

import dataclasses
import grp
import ipaddress
import os
import tomllib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ranktap_wire import limits, places


class ConfigError(Exception):
    """A setting is wrong; the message says where it stands, its name, what was given, and
    what is allowed."""


@dataclass(slots=True)
class Config:
    """The daemon's settings. Times are in seconds, sizes in bytes."""

    logdir: Path = Path()
    """Where TensorBoard looks: runs are directories below it."""
    state_dir: Path | None = None
    """Journals and snapshots; `.ranktap` in the logdir unless given."""

    listen: list[str] = field(default_factory=list)
    """Endpoints, `tcp://HOST:PORT` or `ipc://PATH`."""
    socket_group: str | None = None
    """The group whose members may connect to an ipc socket; the process's own unless given."""
    server_key: Path | None = None
    """The daemon's secret key. With it, who connects over tcp needs a key too."""
    client_keys: Path | None = None
    """A directory with the public keys of those who may."""
    insecure: bool = False
    """Listen on tcp beyond this machine although anyone there can then write."""
    metrics: str | None = None
    """HOST:PORT for Prometheus."""
    log_format: str = "text"
    """`text`: lines for people. `json`: an object a line, for programs."""

    sync: str = "group"
    """`group`: acknowledged means on disk. `off`: acknowledged means safe from a crash of the
    daemon, not of the machine."""
    on_conflict: str = "error"
    """What becomes of a job that uses the name of a run that another job is writing to: `error`:
    it is told so, and logs nothing; `suffix`: it gets a run of its own, `NAME-2`."""
    straggler_timeout_s: float = 10.0
    """A point that ranks have not reported is written without them after this long."""
    segment_bytes: int = limits.SEGMENT_BYTES
    """A journal is deleted in pieces of this size."""
    keep_finished_s: float = 86_400.0
    """The journal of a run that has finished goes this long after all of it was written: until
    then its event files can be made again of it. An embedded daemon keeps none."""

    min_free_bytes: int = 256 * limits.MIB
    """With less room on the disk nothing is accepted, until there is more."""
    max_journal_bytes: int = 1 << 40
    """With more than this in all journals nothing is accepted, until less waits. Arbitrary:
    it is `min_free_bytes` that keeps the disk from filling."""
    max_run_journal_bytes: int = 64 << 30
    """The same of one run: a job that logs faster than is written does not take the room of
    the others. At 100 MB/s it takes eleven minutes to get there."""
    max_runs: int = 10_000
    """Runs whose journal is open: each takes a descriptor and 3 KB."""
    max_run_tags: int = limits.TAGS
    """Tags of a run, those of its sub-runs and those that are made of others included; what is
    logged under more is left out."""
    max_workers: int = 256
    """Runs that are written at the same time; a worker takes about 60 MB."""
    max_sessions: int = 20_000
    """Ranks that are connected; each takes a descriptor and 30 KB, 100 KB once it has sent some
    hundred batches, and up to 16 of its messages while the daemon is behind."""
    max_message_bytes: int = limits.MESSAGE_BYTES
    """One batch with all its tensors."""
    max_session_batches_per_s: int = 10_000
    """Batches of one session. A tap sends 20, or one for each MiB."""
    max_session_bytes_per_s: int = 1 << 30
    """Bytes of one session: more than a daemon takes of all of them together."""

    @property
    def state(self) -> Path:
        return self.state_dir or places.state_directory(self.logdir)


@dataclass(frozen=True, slots=True)
class Rule:
    """What a setting may be."""

    allowed: str
    read: Callable[[Any], Any]
    """The value as it is kept; ValueError when it may not be."""
    reloads: bool = False
    """Whether a running daemon takes another value."""


# -- what values may be -----------------------------------------------------------------


def _typed(*types: type) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if type(value) not in types:
            raise ValueError
        return value

    return read


def _number(low: float, high: float, unit: str, *, whole: bool = True) -> Rule:
    def read(value: Any) -> Any:
        if type(value) not in ((int,) if whole else (int, float)) or not low <= value <= high:
            raise ValueError
        return value if whole else float(value)

    return Rule(f"{'a whole number' if whole else 'a number'} of {unit}, {low} to {high}",
                read, reloads=True)  # fmt: skip


def _path(value: Any) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError
    return Path(value).absolute()


def _one_of(*allowed: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in allowed:
            raise ValueError
        return str(value)

    return read


def _group(value: Any) -> str:
    try:
        grp.getgrnam(value)
    except (KeyError, TypeError):
        raise ValueError from None
    return str(value)


def _host_and_port(value: Any) -> str:
    host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not host or not _is_port(port):
        raise ValueError
    return str(value)


def _endpoints(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(map(_is_endpoint, value)):
        raise ValueError
    return value


def _is_endpoint(endpoint: Any) -> bool:
    if not isinstance(endpoint, str):
        return False
    kind, _, rest = endpoint.partition("://")
    if kind == "ipc":
        # A name that begins with "@" is no file, and has no permissions.
        return (
            bool(rest) and rest[0] != "@" and (len(os.fsencode(rest)) <= places.SOCKET_PATH_BYTES)
        )
    host, _, port = rest.rpartition(":")
    return kind == "tcp" and bool(host) and _is_port(port)


def _is_port(port: str) -> bool:
    return port.isascii() and port.isdigit() and len(port) <= 5 and int(port) < 1 << 16


def _counted(what: str) -> Rule:
    return _number(1, 1_000_000, what)


_BYTES = _number(0, 1 << 60, "bytes")
RULES: dict[str, Rule] = {
    "logdir": Rule("a directory", _path),
    "state_dir": Rule("a directory", _path),
    "listen": Rule(
        "a list of 'tcp://HOST:PORT' and 'ipc://PATH' (a socket's path has at most "
        f"{places.SOCKET_PATH_BYTES} bytes)",
        _endpoints,
    ),
    "socket_group": Rule("a group of this machine", _group),
    "server_key": Rule("a file, made by ranktapd keygen", _path),
    "client_keys": Rule("a directory", _path),
    "insecure": Rule("true or false", _typed(bool)),
    "metrics": Rule("'HOST:PORT'", _host_and_port),
    "log_format": Rule("'text' or 'json'", _one_of("text", "json")),
    "sync": Rule("'group' or 'off'", _one_of("group", "off")),
    "on_conflict": Rule("'error' or 'suffix'", _one_of("error", "suffix"), reloads=True),
    "straggler_timeout_s": _number(0.1, 86_400, "seconds", whole=False),
    "segment_bytes": dataclasses.replace(_number(1 << 16, 1 << 32, "bytes"), reloads=False),
    "keep_finished_s": _number(0, 10 * 365 * 86_400, "seconds", whole=False),
    "min_free_bytes": _BYTES,
    "max_journal_bytes": _number(limits.MIB, 1 << 60, "bytes"),
    "max_run_journal_bytes": _number(limits.MIB, 1 << 60, "bytes"),
    "max_runs": _counted("runs"),
    "max_run_tags": _counted("tags"),
    "max_workers": _counted("processes"),
    "max_sessions": _counted("sessions"),
    "max_message_bytes": _number(limits.MIB, limits.MESSAGE_BYTES, "bytes"),
    "max_session_batches_per_s": _number(1, 1 << 60, "batches a second"),
    "max_session_bytes_per_s": _number(limits.MIB, 1 << 60, "bytes a second"),
}
"""By the names of `Config`'s fields."""


# -- reading ----------------------------------------------------------------------------


def read_file(path: Path) -> dict[str, Any]:
    """The settings of a TOML file.

    Raises:
        ConfigError: it cannot be read, or has a setting that there is not.
    """
    try:
        settings = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    for name in settings:
        if name not in RULES:
            raise ConfigError(
                f"{path}: {name}: no such setting; allowed are {', '.join(sorted(RULES))}"
            )
    return settings


def build(layers: list[tuple[str, dict[str, Any]]], inherited: Collection[str] = ()) -> Config:
    """The configuration of settings, checked. Each layer goes before the ones in front of it,
    and is named in errors. `inherited` are endpoints that the process was started with.

    Raises:
        ConfigError: a value is of another type or out of its range, or values do not go together.
    """
    config = Config()
    source = layers[0][0]
    origins: dict[str, str] = {}
    for origin, settings in layers:
        for name, value in settings.items():
            try:
                setattr(config, name, RULES[name].read(value))
            except ValueError:
                raise ConfigError(
                    f"{origin}: {name}: expected {RULES[name].allowed}, got {value!r}"
                ) from None
            origins[name] = origin
    if "logdir" not in origins:
        raise ConfigError(f"{source}: logdir: expected {RULES['logdir'].allowed}, got none")
    config.listen = list(dict.fromkeys([*config.listen, *inherited])) or default_endpoints()
    _check_keys(config, origins)
    if config.server_key is None and not config.insecure:
        for endpoint in filter(is_reachable, config.listen):
            raise ConfigError(
                f"{origins.get('listen', source)}: listen: {endpoint!r} is reachable from other "
                "machines, and everyone there could write; make keys (ranktapd keygen) and set "
                "server_key and client_keys, or say --insecure (insecure = true) if that network "
                "is trusted"
            )
    return config


def _check_keys(config: Config, origins: dict[str, str]) -> None:
    for name, other in (("server_key", "client_keys"), ("client_keys", "server_key")):
        if name in origins and other not in origins:
            raise ConfigError(
                f"{origins[name]}: {other}: expected {RULES[other].allowed} beside {name}, got none"
            )


def changed(before: Config, after: Config) -> list[str]:
    """The settings that differ."""
    return [name for name in RULES if getattr(before, name) != getattr(after, name)]


def default_endpoints() -> list[str]:
    """The service's socket, where this process may make one, and loopback."""
    endpoints = [f"tcp://127.0.0.1:{places.TCP_PORT}"]
    directory = places.SERVICE_SOCKET.parent
    if directory.is_dir() and os.access(directory, os.W_OK):
        endpoints.insert(0, f"ipc://{places.SERVICE_SOCKET}")
    return endpoints


def is_reachable(endpoint: str) -> bool:
    """Whether other machines may reach it."""
    kind, _, rest = endpoint.partition("://")
    return kind == "tcp" and not _is_loopback(rest.rpartition(":")[0])


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
