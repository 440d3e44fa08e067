"""How the daemon's log looks: lines for people, or JSON for programs.

    text   2026-11-28 15:00:00,123 WARNING run 'a': rank 3 (process 12 on node-7) has not been ...
    json   {"time": "2026-11-28T15:00:00.123Z", "level": "warning",
            "event": "run {run}: rank {rank} (process {pid} on {host}) has not been heard of ...",
            "message": "run 'a': rank 3 (process 12 on node-7) has not been heard of for 30 s",
            "run": "a", "rank": 3, "pid": 12, "host": "node-7", "silent_s": 30}

A message names its values (`"run %(run)r: ..."` and a dict), so a line for programs has them as
fields, and as its event what the message is without them. Under systemd the journal has the time
already, and is given the level instead (sd-daemon(3)).

A line is a line, whatever a stranger has put into a name: text escapes what is not printable,
and JSON all that is not ASCII too.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final

logger = logging.getLogger("ranktapd")

FORMATS: Final = ("text", "json")

_NAMED: Final = re.compile(r"%\((\w+)\)[^a-zA-Z]*[a-zA-Z]")
_PRIORITIES: Final = {
    logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7,
}  # fmt: skip
"""Levels as syslog(3) counts them."""


def to_stderr(kind: str, run: str | None = None) -> None:
    """Log to stderr from now on, in one of FORMATS; `run` is the one that this process is for."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(kind, run, for_journal=_is_journal(sys.stderr.fileno())))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    if kind == "json":
        sys.excepthook = _log_exception


def formatter(kind: str, run: str | None = None, *, for_journal: bool = False) -> logging.Formatter:
    """What makes a line of a record."""
    return (_Json if kind == "json" else _Text)(run, for_journal)


def escaped(text: str) -> str:
    """The text on one line, without what a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def _is_journal(fd: int) -> bool:
    """Whether what is written there goes to systemd's journal."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))


class _Formatter(logging.Formatter):
    def __init__(self, run: str | None, for_journal: bool) -> None:
        super().__init__()
        self._run = run
        self._for_journal = for_journal

    def _start(self, record: logging.LogRecord) -> str:
        return f"<{_PRIORITIES.get(record.levelno, 6)}>" if self._for_journal else ""


class _Text(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = escaped(record.getMessage())
        if self._run is not None and not message.startswith("run "):
            message = f"run {self._run!r}: {message}"
        when = "" if self._for_journal else f"{self.formatTime(record)} "
        line = f"{self._start(record)}{when}{record.levelname} {message}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class _Json(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        said: dict[str, Any] = {}
        if not self._for_journal:
            when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
            said["time"] = when.replace("+00:00", "Z")
        said["level"] = record.levelname.lower()
        said["event"] = _NAMED.sub(r"{\1}", str(record.msg))
        said["message"] = record.getMessage()
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        if self._run is not None:
            said["run"] = self._run
        if isinstance(record.args, Mapping):
            for name, value in record.args.items():
                said.setdefault(name, value)
        return self._start(record) + json.dumps(said, default=str)


def _log_exception(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logger.critical("ended by an error: %(error)s", {"error": error}, exc_info=(kind, error, trace))
