"""The journal on a disk that forgets what was not synced.

The disk keeps what each file held at its last sync. A power cut leaves of the rest a
beginning of any length, with zeros in any place of it, or nothing; a file whose name was
not synced may be gone. It comes at any byte of a write and on either side of a sync.
Besides, the disk fills up, and a sync fails.

The oracle is a list: what was appended is read, in order and once, and nothing else is.
Only a group that was being appended when the power went may be there or not, whole.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from ranktap_wire.journal import JournalError, JournalFullError, JournalReader, JournalWriter
from ranktap_wire.segment import START, Position, segments
from tests.support.journals import read_journal, read_on

GROUPS = st.lists(st.sampled_from([0, 1, 8, 50, 200]), min_size=1, max_size=4)
"""Bytes of each entry."""
BYTES = st.integers(0, 700)
SEGMENT_BYTES = 600


class PowerCutError(BaseException):
    """Not an Exception: nobody handles it."""


class Disk:
    """What the journal calls of `os`, with a memory of what was synced."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.synced: dict[str, bytes] = {}
        self.synced_names: set[str] = set()
        self.bytes_until: int | None = None
        """How much more is written before `then` is raised."""
        self.then: BaseException = PowerCutError()
        self.sync_fails: BaseException | None = None

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "writev", self.writev)
        monkeypatch.setattr(os, "fdatasync", self.fdatasync)
        monkeypatch.setattr(os, "fsync", self.fsync)

    def works_again(self) -> None:
        self.bytes_until = None
        self.sync_fails = None

    def writev(self, fd: int, views: list[memoryview]) -> int:
        data = b"".join(views)
        if self.bytes_until is not None:
            if not self.bytes_until:
                raise self.then
            data = data[: self.bytes_until]
            self.bytes_until -= len(data)
        return os.write(fd, data)

    def fdatasync(self, fd: int) -> None:
        if self.sync_fails is not None:
            raise self.sync_fails
        path = Path(f"/proc/self/fd/{fd}").resolve()
        self.synced[path.name] = path.read_bytes()

    def fsync(self, fd: int) -> None:
        if self.sync_fails is not None:
            raise self.sync_fails
        if Path(f"/proc/self/fd/{fd}").resolve() == self.directory:
            self.synced_names = {path.name for path in self.directory.iterdir()}

    def lose_power(self, data: st.DataObject) -> None:
        """Leave of each file what a power cut may leave."""
        self.works_again()
        for path in [*self.directory.iterdir()]:
            if path.name not in self.synced_names and data.draw(st.booleans(), label="lost name"):
                path.unlink()
                continue
            synced = self.synced.get(path.name, b"")
            now = path.read_bytes()
            if len(now) < len(synced):  # it was cut, and that was not synced
                path.write_bytes(data.draw(st.sampled_from([now, synced]), label="cut"))
                continue
            assert now.startswith(synced)
            rest = bytearray(now[len(synced) :])
            ends = st.integers(0, len(rest))
            if data.draw(st.booleans(), label="shorter"):
                del rest[data.draw(ends, label="kept") :]
            start, length = data.draw(ends, label="zeros from"), data.draw(BYTES, label="so many")
            rest[start : start + length] = bytes(len(rest[start : start + length]))
            path.write_bytes(synced + rest)
        self.synced = {path.name: path.read_bytes() for path in self.directory.iterdir()}
        self.synced_names = {*self.synced}


class Journal(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="ranktap-model-"))
        self.patches = pytest.MonkeyPatch()
        self.disk = Disk(self.root / "journal")
        self.disk.patch(self.patches)
        self.appended: list[bytes] = []
        self.count = 0
        self.open()
        self.tail = JournalReader(self.disk.directory)

    def teardown(self) -> None:
        if hasattr(self, "root"):
            self.patches.undo()
            self.writer.close()
            self.tail.close()
            shutil.rmtree(self.root)

    def open(self) -> None:
        self.writer = JournalWriter(
            self.disk.directory,
            segment_bytes=SEGMENT_BYTES,
            preamble=lambda: [[b"so far %d" % len(self.appended)]],
        )

    def group(self, sizes: list[int]) -> list[bytes]:
        """Entries that are told apart from all others."""
        self.count += 1
        return [b"%d.%d " % (self.count, i) + b"x" * size for i, size in enumerate(sizes)]

    def read(self, after: Position = START) -> list[bytes]:
        """The entries of the journal, less preambles, which are checked."""
        read = read_journal(self.disk.directory, self.writer.last, after)
        assert read.damages == []
        preambles = {number for number in segments(self.disk.directory) if number > 1}
        found = []
        for number, frames in read.entries.items():
            if number in preambles:
                assert after != START or frames == [b"so far %d" % len(found)]
            else:
                found += frames
        return found

    # -- what happens -----------------------------------------------------------------

    @rule(sizes=GROUPS)
    def append(self, sizes: list[int]) -> None:
        group = self.group(sizes)
        first = self.writer.append([[entry] for entry in group])
        self.appended += group
        assert self.writer.last == first + len(group) - 1

    @rule(sizes=GROUPS, room=BYTES)
    def append_on_a_full_disk(self, sizes: list[int], room: int) -> None:
        group = self.group(sizes)
        self.disk.bytes_until, self.disk.then = room, OSError(errno.ENOSPC, "full")
        try:
            self.writer.append([[entry] for entry in group])
            self.appended += group
        except JournalFullError:
            pass
        self.disk.works_again()

    @rule(sizes=GROUPS)
    def append_where_the_sync_fails(self, sizes: list[int]) -> None:
        self.disk.sync_fails = OSError(errno.EIO, "broken")
        for _ in range(2):
            with pytest.raises(JournalError):
                self.writer.append([[entry] for entry in self.group(sizes)])
        self.disk.works_again()
        self.reopen()

    @rule()
    def reopen(self) -> None:
        """The daemon was killed, the machine was not."""
        self.writer.close()
        self.open()

    @rule(data=st.data())
    def lose_power(self, data: st.DataObject) -> None:
        self.recover(data, [])

    @rule(data=st.data(), sizes=GROUPS, written=BYTES)
    def lose_power_while_appending(
        self, data: st.DataObject, sizes: list[int], written: int
    ) -> None:
        group = self.group(sizes)
        self.disk.bytes_until, self.disk.then = written, PowerCutError()
        self.disk.sync_fails = PowerCutError()
        with pytest.raises(PowerCutError):
            self.writer.append([[entry] for entry in group])
        self.recover(data, group)

    def recover(self, data: st.DataObject, maybe: list[bytes]) -> None:
        self.writer.close()
        self.disk.lose_power(data)
        self.open()
        found = self.read()
        assert found in (self.appended, self.appended + maybe)
        self.appended = found
        position = self.tail.position
        self.tail.close()
        self.tail = JournalReader(self.disk.directory, position)

    # -- what must hold ---------------------------------------------------------------

    @invariant()
    def what_was_appended_is_read_and_nothing_else(self) -> None:
        assert self.read() == self.appended

    @invariant()
    def a_reader_that_follows_sees_the_same(self) -> None:
        before = self.tail.position
        expected = self.read(before)
        read = read_on(self.tail, self.writer.last)
        found: list[Any] = [
            entry
            for frames in read.entries.values()
            for entry in frames
            if not entry.startswith(b"so far")
        ]
        assert (found, read.damages) == (expected, [])


def test_what_was_appended_is_read_once_and_in_order_whatever_the_disk_forgets() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Journal,
        settings=settings(max_examples=80, stateful_step_count=25, deadline=None),
    )
