"""What can be set: on the command line, or in a TOML file with the same names."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ranktap_wire import limits, places


class ConfigError(Exception):
    """A setting is wrong; the message names it, what was given, and what is allowed."""


@dataclass(slots=True)
class Config:
    """The daemon's settings. Times are in seconds, sizes in bytes."""

    logdir: Path = Path()
    """Where TensorBoard looks: runs are directories below it."""
    listen: list[str] = field(default_factory=list)
    """Endpoints, `tcp://HOST:PORT` or `ipc://PATH`."""
    state_dir: Path | None = None
    """Journals and snapshots; `.ranktap` in the logdir unless given."""
    sync: str = "group"
    """`group`: acknowledged means on disk. `off`: acknowledged means safe from a crash of the
    daemon, not of the machine."""
    straggler_timeout_s: float = 10.0
    """A point that ranks have not reported is written without them after this long."""
    segment_bytes: int = limits.SEGMENT_BYTES
    """A journal is deleted in pieces of this size."""
    min_free_bytes: int = 256 * limits.MIB
    """With less room on the disk nothing is accepted, until there is more."""
    max_runs: int = 10_000
    max_workers: int = 256
    """Runs that are written at the same time; a worker takes about 60 MB."""
    metrics: str | None = None
    """HOST:PORT for Prometheus."""
    insecure: bool = False
    """Listen on tcp beyond this machine although anyone there can then write."""

    @property
    def state(self) -> Path:
        return self.state_dir or places.state_directory(self.logdir)


_ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "sync": (lambda value: value in ("group", "off"), "'group' or 'off'"),
    "straggler_timeout_s": (lambda value: 0.1 <= value <= 86_400, "0.1 to 86400 seconds"),
    "segment_bytes": (lambda value: 1 << 16 <= value <= 1 << 32, "65536 to 4294967296 bytes"),
    "min_free_bytes": (lambda value: value >= 0, "0 bytes or more"),
    "max_runs": (lambda value: value >= 1, "1 or more"),
    "max_workers": (lambda value: value >= 1, "1 or more"),
}


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
    known = {each.name for each in dataclasses.fields(Config)}
    for name in settings:
        if name not in known:
            raise ConfigError(
                f"{path}: {name}: no such setting; allowed are {', '.join(sorted(known))}"
            )
    return settings


def build(settings: dict[str, Any], source: str) -> Config:
    """The configuration of settings, checked; `source` is named in errors.

    Raises:
        ConfigError: a value is of another type or out of its range.
    """
    config = Config()
    for name, value in settings.items():
        setattr(config, name, _convert(source, name, value))
        is_allowed, allowed = _ALLOWED.get(name, (None, ""))
        if is_allowed is not None and not is_allowed(getattr(config, name)):
            raise ConfigError(f"{source}: {name}: expected {allowed}, got {value!r}")
    if not str(settings.get("logdir", "")):
        raise ConfigError(f"{source}: logdir: expected a directory, got none")
    config.logdir = config.logdir.absolute()
    if config.state_dir is not None:
        config.state_dir = config.state_dir.absolute()
    if not config.listen:
        config.listen = default_endpoints()
    for endpoint in config.listen:
        _check_endpoint(source, endpoint, config.insecure)
    return config


def default_endpoints() -> list[str]:
    """The service's socket, where this process may make one, and loopback."""
    endpoints = [f"tcp://127.0.0.1:{places.TCP_PORT}"]
    directory = places.SERVICE_SOCKET.parent
    if directory.is_dir() and os.access(directory, os.W_OK):
        endpoints.insert(0, f"ipc://{places.SERVICE_SOCKET}")
    return endpoints


def _convert(source: str, name: str, value: Any) -> Any:
    if name in ("logdir", "state_dir") and isinstance(value, str | Path):
        return Path(value)
    if name == "listen":
        if isinstance(value, list) and all(isinstance(endpoint, str) for endpoint in value):
            return value
        raise ConfigError(f"{source}: listen: expected a list of endpoints, got {value!r}")
    if name == "straggler_timeout_s" and type(value) in (int, float):
        return float(value)
    wanted = {"sync": str, "metrics": str, "insecure": bool}.get(name, int)
    if type(value) is not wanted:
        raise ConfigError(f"{source}: {name}: expected {wanted.__name__}, got {value!r}")
    return value


def _check_endpoint(source: str, endpoint: str, insecure: bool) -> None:
    kind, _, rest = endpoint.partition("://")
    if kind == "ipc" and rest:
        if len(os.fsencode(rest)) > places.SOCKET_PATH_BYTES:
            raise ConfigError(
                f"{source}: listen: a socket's path has at most {places.SOCKET_PATH_BYTES} bytes, "
                f"got {endpoint!r}"
            )
        return
    host, _, port = rest.rpartition(":")
    if kind != "tcp" or not host or not (port.isdigit() and int(port) < 1 << 16):
        raise ConfigError(
            f"{source}: listen: expected 'tcp://HOST:PORT' or 'ipc://PATH', got {endpoint!r}"
        )
    if not _is_loopback(host) and not insecure:
        raise ConfigError(
            f"{source}: listen: {endpoint!r} is reachable from other machines, and everyone there "
            "could write; say --insecure (insecure = true) if that network is trusted"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
