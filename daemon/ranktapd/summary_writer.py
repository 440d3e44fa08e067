"""The one writer of a run: its event file, continued where it ends, with the same bytes.

A TensorBoard may be reading the file at any moment. It survives a torn tail that is
completed with the bytes that were meant to follow, and nothing else. So after a restart
the writer is given again what it may have written before: as far as that is in the file
already it is compared, from there on it is appended. When it differs, the file is left
as it is, for good, and a new one with a later name starts behind the last whole record.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

from ranktapd import event_file
from ranktapd.event_file import Scan

logger = logging.getLogger("ranktapd")

RETRY_S = 1.0
"""How often a full disk is tried again."""


class SummaryWriter:
    """Appends to one event file, which it begins with the record `version`.

    `name_later(existing)` names the file that would follow it, and `renamed` is told before
    that one is made.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        version: bytes,
        name_later: Callable[[list[str]], str],
        renamed: Callable[[str], None],
    ) -> None:
        self._directory = directory
        self._version = version
        self._name_later = name_later
        self._renamed = renamed
        self._waiting_for_room = False
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / name
        is_new = not self.path.exists()
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if is_new:
            _sync_directory(directory)
        self.found = self._scan()
        behind = os.fstat(self._fd).st_size - self.found.checkpoint_end
        self._tail = os.pread(self._fd, behind, self.found.checkpoint_end)
        """What stands behind the last checkpoint and is still to be proved right."""
        self._end = self.found.checkpoint_end

    def _scan(self) -> Scan:
        size = os.fstat(self._fd).st_size
        if size == 0:
            return event_file.scan(b"")
        with mmap.mmap(self._fd, size, prot=mmap.PROT_READ) as data:
            return event_file.scan(data)

    @property
    def proving(self) -> bool:
        """Whether the file holds more than what was appended: append a group at a time."""
        return bool(self._tail)

    def append(self, records: bytes) -> None:
        """Append whole records, or find them in the file already.

        Waits while the disk is full: the journal keeps what follows.

        Raises:
            OSError: the file cannot be written.
        """
        if self._end == 0 and records:
            records = self._version + records
        known = min(len(self._tail), len(records))
        if records[:known] != self._tail[:known]:
            records = self._turn_over(records)
        else:
            self._tail = self._tail[known:]
            self._end += known
            records = records[known:]
        self._write(records)

    def sync(self) -> None:
        """Make what was appended survive the machine: before its journal may be deleted.

        Raises:
            OSError: it may not.
        """
        os.fdatasync(self._fd)

    def close(self) -> None:
        os.close(self._fd)

    def _write(self, records: bytes) -> None:
        left = memoryview(records)
        while left:
            try:
                written = os.pwrite(self._fd, left, self._end)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                # What is written is the beginning of what belongs there. It is completed
                # with the same bytes, which a reader does not mind.
                self._tell_full(error)
                time.sleep(RETRY_S)
                continue
            self._waiting_for_room = False
            self._end += written
            left = left[written:]

    def _tell_full(self, error: OSError) -> None:
        if not self._waiting_for_room:
            self._waiting_for_room = True
            logger.error("%s: %s; waiting for room", self.path, error.strerror)

    def _turn_over(self, records: bytes) -> bytes:
        """Start a new file; what of `records` it still has to hold.

        Other bytes than before: the renderer has changed since, or the file was.
        """
        # The new file has a version record of its own.
        skip = max(self.found.records_behind, 1 if self._end == 0 else 0)
        name = self._name_later([path.name for path in self._directory.iterdir()])
        logger.warning(
            "%s does not continue with the same bytes; going on in %s behind its %d whole records",
            self.path, name, self.found.records,
        )  # fmt: skip
        os.close(self._fd)
        self.path = self._directory / name
        self._renamed(name)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        _sync_directory(self._directory)
        self._tail = b""
        self._end = 0
        self._write(self._version)
        # The tail holds no checkpoint, so all of it is of the group that was being written,
        # and this is that group's output: groups are appended one at a time until then.
        return _skip_records(records, skip)


def _skip_records(records: bytes, count: int) -> bytes:
    offset = 0
    while count > 0 and offset < len(records):
        length = int.from_bytes(records[offset : offset + 8], "little")
        offset += event_file.HEADER_BYTES + length + event_file.TRAILER_BYTES
        count -= 1
    return records[offset:]


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
