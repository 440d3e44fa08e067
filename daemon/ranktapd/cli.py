"""The command `ranktapd`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from ranktap_wire import places
from ranktapd import __version__, config, logs
from ranktapd.config import ConfigError
from ranktapd.service_manager import ServiceManager, inherited_sockets

logger = logging.getLogger("ranktapd")

_DESCRIPTION = """\
Takes what the ranks of PyTorch jobs log, keeps it safe, merges it, and writes
one TensorBoard event file a run.

  ranktapd --logdir runs                  on this machine: ipc and tcp on loopback
  tensorboard --logdir runs               beside it

In the job:
  tap = ranktap.init("digits/lr=0.1", endpoint="tcp://127.0.0.1:5757")
  tap.scalar("loss/train", loss, step)

ranktapd keygen NAME...     keys, for tcp beyond this machine
ranktapd check [OPTIONS]    what a daemon with these options would find
ranktapd replay JOURNAL     a run's journal, folded again into fresh event files
ranktapd tail RUN           what a run logs, as it arrives
ranktapd compact RUN        its event files, without what TensorBoard does not show
                            (--help for each)
"""


_CHECK = """\
Reads the configuration, and says what a daemon with these options would find here: settings,
directories, room, keys, addresses, versions. Changes nothing. The status is 0 when it would
start, 1 when something is wrong, 2 when the configuration cannot be read.
"""


COMMANDS = ("keygen", "check", "replay", "tail", "compact")
"""What may stand first instead of options: else it is the daemon."""


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments and arguments[0] in COMMANDS else None
    if command is not None:
        arguments = arguments[1:]
    if command == "keygen":
        from ranktapd import keygen

        return keygen.main(arguments)
    if command in ("replay", "tail", "compact"):
        try:
            return _with_files(command, arguments)
        except KeyboardInterrupt:
            return 130
    checks = command == "check"
    options = _parser(checks).parse_args(arguments)
    try:
        inherited = {} if options.embedded else inherited_sockets()
        settings = _settings(options, inherited)
    except (ConfigError, OSError) as error:
        print(f"ranktapd: {error}", file=sys.stderr)
        return 2
    if checks:
        from ranktapd import check

        return check.main(settings)
    # Only its workers import most of it, and they would end again and again.
    missing = places.daemon_lacks()
    if missing:
        print(f"ranktapd: lacks {', '.join(missing)}: pip install 'ranktap[daemon]'",
              file=sys.stderr)  # fmt: skip
        return 2
    if options.embedded:
        return _detached(settings)
    logs.to_stderr(settings.log_format)
    return _run(
        settings,
        reread=lambda: _settings(options, inherited),
        inherited=inherited,
        manager=ServiceManager.from_environment(),
    )


def _with_files(command: str, arguments: list[str]) -> int:
    """A command that works on what a daemon has written."""
    # One of them: what they import takes a tenth of a second and more.
    if command == "replay":
        from ranktapd import replay

        return replay.main(arguments)
    if command == "compact":
        from ranktapd import compact

        return compact.main(arguments)
    from ranktapd import tail

    return tail.main(arguments)


def _parser(checks: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ranktapd check" if checks else "ranktapd",
        description=_CHECK if checks else _DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--version", action="version", version=f"ranktapd {__version__}")
    add("--logdir", type=Path, metavar="DIR", help="where TensorBoard looks for runs")
    add(
        "--listen",
        action="append",
        metavar="ENDPOINT",
        help="tcp://HOST:PORT or ipc://PATH; may be given several times "
        f"(tcp://127.0.0.1:{places.TCP_PORT}, and the service's socket where it can be made)",
    )
    add("--state-dir", type=Path, metavar="DIR", help="journals and snapshots (LOGDIR/.ranktap)")
    add("--config", type=Path, metavar="FILE", help="settings in TOML; the command line goes first")
    add("--metrics", metavar="HOST:PORT", help="serve Prometheus metrics there")
    add("--log-format", choices=logs.FORMATS, help="the log on stderr: lines for people (text), or "
        "an object a line for programs (json)")  # fmt: skip
    add("--sync", choices=("group", "off"), help="what acknowledged means: on disk (group), or "
        "safe from a crash of the daemon only (off)")  # fmt: skip
    add("--on-conflict", choices=("error", "suffix"), help="a job that uses the run's name of "
        "another one that is running is told so (error), or gets NAME-2 (suffix)")  # fmt: skip
    add(
        "--straggler-timeout",
        type=float,
        metavar="SECONDS",
        dest="straggler_timeout_s",
        help="a point that some ranks have not reported is written without them after this (10)",
    )
    add("--segment-bytes", type=int, metavar="BYTES", help="size of a journal's segments (64 MiB)")
    add("--server-key", type=Path, metavar="FILE", help="the daemon's secret key: who connects "
        "over tcp needs a key too (ranktapd keygen)")  # fmt: skip
    add("--client-keys", type=Path, metavar="DIR", help="public keys of those who may")
    add("--insecure", action="store_true", default=None,
        help="listen on tcp beyond this machine without keys")  # fmt: skip
    add("--embedded", action="store_true", help=argparse.SUPPRESS)
    return parser


def _settings(options: argparse.Namespace, inherited: Collection[str]) -> config.Config:
    layers: list[tuple[str, dict[str, Any]]] = []
    if options.config is not None:
        layers.append((str(options.config), config.read_file(options.config)))
    given = {
        name: value
        for name, value in vars(options).items()
        if value is not None and name in config.RULES
    }
    return config.build([*layers, ("command line", given)], inherited)


def _run(
    settings: config.Config,
    *,
    reread: Callable[[], config.Config],
    inherited: dict[str, int],
    manager: ServiceManager,
    told_ready: int | None = None,
) -> int:
    # Imported here: a process that detaches does so before ZeroMQ has threads.
    from ranktapd.daemon import Daemon
    from ranktapd.dirlock import LockedError

    def ready() -> None:
        if told_ready is not None:
            os.write(told_ready, b"ready\n")
            os.close(told_ready)

    try:
        daemon = Daemon(
            settings,
            reread=reread,
            inherited=inherited,
            manager=manager,
            embedded=told_ready is not None,
        )
        return daemon.run(ready)
    except (LockedError, OSError, ConfigError) as error:
        if settings.log_format == "json":
            logger.critical("ranktapd: %(error)s", {"error": error})
        else:
            print(f"ranktapd: {error}", file=sys.stderr)
        if told_ready is not None:
            os.write(told_ready, f"{error}\n".encode())
        return 1


def _detached(settings: config.Config) -> int:
    """Leave a daemon behind, in a session of its own, and return when it is ready."""
    # It outlives the training, and must not keep open what that may have left open for children.
    os.closerange(3, 65_536)
    settings.state.mkdir(parents=True, exist_ok=True)
    read, write = os.pipe()
    if os.fork():
        os.close(write)
        with open(read) as pipe:
            said = pipe.readline().strip()
        if said == "ready":
            return 0
        print(f"ranktapd: {said or 'it ended before it was ready'}; see "
              f"{settings.state / 'ranktapd.log'}", file=sys.stderr)  # fmt: skip
        return 1
    os.close(read)
    os.setsid()
    log = os.open(settings.state / "ranktapd.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir("/")
    logs.to_stderr(settings.log_format)
    status = _run(
        settings, reread=lambda: settings, inherited={}, manager=ServiceManager(), told_ready=write
    )
    logging.shutdown()
    os._exit(status)
