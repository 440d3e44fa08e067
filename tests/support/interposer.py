"""Faults of the machine, made between a real process and the C library.

`interposer.c` is loaded into a daemon, and by inheritance into its workers, with LD_PRELOAD.
Every call that changes a file below a root, and every send, is held against rules: it fails
with an errno, is done in part, or ends the process before, behind or in the middle of it.
Rules are in a file that test and processes share, so they may be set at any time. What was
done can be traced, and the wall clock shifted. The product's own code is what it always is.

Not by replacing functions of Python's `os`: there EINTR could not be made as it comes (Python
tries again below `os.write`), and a call made in another way would go unseen.
"""

from __future__ import annotations

import enum
import errno
import hashlib
import mmap
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

_SOURCE = Path(__file__).with_suffix(".c")
_RULES = 128
_PATH_BYTES = 160
_RULE = struct.Struct(f"<8i{_PATH_BYTES}s")
_TEXT_BYTES = 1_024
_RULES_AT = 8 + 2 * _TEXT_BYTES
_CONTROL_BYTES = _RULES_AT + _RULES * _RULE.size
_RECORD = struct.Struct("<IIqII")


class Call(enum.IntEnum):
    """Kinds of calls, by what they do."""

    OPEN = 0
    """To write; with a `trace` only those that make or empty a file."""
    WRITE = 1
    SYNC = 2
    TRUNCATE = 3
    RENAME = 4
    UNLINK = 5
    MKDIR = 6
    LINK = 7
    SEND = 8
    """Over a socket."""
    RECEIVE = 9
    """Only traced; no rule is for it."""


class Act(enum.IntEnum):
    FAIL = 1
    IN_PART = 2
    """Half of the bytes are written, which is no error."""
    KILL_BEFORE = 3
    KILL_IN_PART = 4
    """Half of the bytes are written; where there are none, the call is made whole."""
    KILL_AFTER = 5


@dataclass(frozen=True, slots=True)
class Operation:
    """What a process has done, in the order in which it was done."""

    call: Call
    pid: int
    path: str
    offset: int
    """Of a write; the length of a truncation; 1 for an open that empties the file; the
    descriptor of a socket."""
    data: bytes
    """What was written, sent or received (4 KiB of it); the new path of a rename or a link."""


class Interposer:
    """The file that rules are in, and what starts a process under them."""

    def __init__(self, directory: Path, root: Path, trace: Path | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._library = _library()
        self._path = directory / "control"
        self._trace = trace
        with open(self._path, "wb") as file:
            file.truncate(_CONTROL_BYTES)
        with open(self._path, "r+b") as file:
            self._control = mmap.mmap(file.fileno(), _CONTROL_BYTES)
        self._set_text(8, str(root))
        self._set_text(8 + _TEXT_BYTES, "" if trace is None else str(trace))
        self._used = 0

    @property
    def environment(self) -> list[str]:
        """For `env`: what a process is started with."""
        return [f"LD_PRELOAD={self._library}", f"INTERPOSER_CONTROL={self._path}"]

    def program(self, *arguments: str) -> list[str]:
        """A Python program under these rules; `-m ranktapd` unless told."""
        return ["/usr/bin/env", *self.environment, sys.executable, *(arguments or _DAEMON)]

    def shift_clock(self, seconds: float) -> None:
        """Set the wall clock: so far from the machine's own."""
        self._control[:8] = struct.pack("<q", int(seconds * 1e9))

    def rule(
        self,
        act: Act,
        *calls: Call,
        path: str | bytes | tuple[str | bytes, ...],
        error: int = errno.EIO,
        skip: int = 0,
        times: int = 1,
    ) -> Rule:
        """A new rule for these calls where all parts of `path` are in the path, or in what is sent.

        A part that ends with `$` must stand at the end. The first `skip` of the calls are let
        through, then it acts on `times` of them (-1: on all).
        """
        parts = (path,) if isinstance(path, str | bytes) else path
        packed = b"\n".join(part.encode() if isinstance(part, str) else part for part in parts)
        assert len(packed) <= _PATH_BYTES
        kinds = sum(1 << call for call in calls)
        rule = Rule(self._control, _RULES_AT + self._used * _RULE.size)
        self._used = (self._used + 1) % _RULES
        # Its kinds last: from then on it holds.
        _RULE.pack_into(self._control, rule._at, 0, act, error, skip, times, 0, 0, 0, packed)
        self._control[rule._at : rule._at + 4] = struct.pack("<i", kinds)
        return rule

    def clear(self) -> None:
        """No rules any more."""
        for number in range(_RULES):
            at = _RULES_AT + number * _RULE.size
            self._control[at : at + 4] = bytes(4)
        self._used = 0

    def operations(self) -> list[Operation]:
        """What has been done so far."""
        assert self._trace is not None
        return list(_read_trace(self._trace.read_bytes()))

    def _set_text(self, at: int, text: str) -> None:
        encoded = text.encode() + b"\0"
        self._control[at : at + len(encoded)] = encoded


class Rule:
    """A rule that was made; it counts."""

    def __init__(self, control: mmap.mmap, at: int) -> None:
        self._control = control
        self._at = at

    @property
    def fired(self) -> int:
        """How often it has acted."""
        return int(_RULE.unpack_from(self._control, self._at)[5])

    @property
    def seen(self) -> int:
        """How many calls it was for."""
        return int(_RULE.unpack_from(self._control, self._at)[6])

    def end(self) -> None:
        """Let everything through again."""
        self._control[self._at : self._at + 4] = bytes(4)


_DAEMON = ("-m", "ranktapd")


def _read_trace(data: bytes) -> Iterator[Operation]:
    at = 0
    while at < len(data):
        kind, pid, offset, path_bytes, data_bytes = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        path = data[at : at + path_bytes].decode()
        at += path_bytes
        yield Operation(Call(kind), pid, path, offset, data[at : at + data_bytes])
        at += data_bytes


def _library() -> Path:
    """The compiled library, made once; skips where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("a C compiler (cc) is needed to stand between a process and its disk")
    digest = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"ranktap-interposer-{os.getuid()}-{digest}.so"
    if not library.exists():
        partial = library.with_suffix(f".{os.getpid()}")
        command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(partial), str(_SOURCE), "-ldl"]
        subprocess.run(command, check=True)
        partial.replace(library)
    return library
