"""A living session's spool: what memory need not hold while a daemon is not there.

    append(batches) -> segments on disk -> read() -> ... acknowledged -> forget(number)

A directory, a lock and a writer are made when the first batch is to be kept, and everything
is deleted when the last one has arrived, so a session that never needs it leaves nothing.
For the sender's thread alone: every call here waits for the disk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from ranktap.spooled import (
    MARKER,
    MARKER_TEXT,
    Loaded,
    SessionLock,
    SpoolReader,
    pack_batch,
    pack_opening,
    remove_directory,
    session_directory,
)
from ranktap_wire import limits
from ranktap_wire.journal import JournalWriter, make_directory
from ranktap_wire.messages import Hello
from ranktap_wire.records import Batch, Buffer
from ranktap_wire.segment import segments


class Spool:
    """One session's batches on disk.

    Calls raise OSError, InUseError or JournalError when the disk does not do what it should;
    then nothing has changed, and they may be made again.
    """

    def __init__(
        self, root: Path, hello: Hello, *, segment_bytes: int = limits.SEGMENT_BYTES
    ) -> None:
        self.root = root
        self.directory = session_directory(root, hello)
        self._hello = hello
        self._segment_bytes = segment_bytes
        self.reached = False
        """A daemon has heard of the session."""
        self.last = 0
        """The last batch that was appended; 0: none is here."""
        self._before = 0
        """The batch before the first that was appended."""
        self._lock: SessionLock | None = None
        self._writer: JournalWriter | None = None
        self._reader: SpoolReader | None = None
        self._upto = 0

    def prepare(self) -> None:
        """Make the directory that all sessions share, and write there what it is."""
        make_directory(self.root)
        marker = self.root / MARKER
        if not marker.exists():
            marker.write_text(MARKER_TEXT)

    def append(self, batches: Sequence[tuple[int, Batch]], at: float) -> None:
        """Put numbered batches on disk, all of them or none; they follow those before them.

        `at` is the wall time, seconds since 1970.
        """
        writer = self._writer or self._open()
        group: list[list[Buffer]] = [] if writer.last else [self._preamble()]
        for number, batch in batches:
            group.append(pack_batch(self._hello.session, number, batch, at))
        try:
            writer.append(group)
        except Exception:
            self._close_writer()  # a writer whose disk has failed has to be opened anew
            raise
        if not self.last:
            self._before = batches[0][0] - 1
        self._upto = writer.last
        self.last = batches[-1][0]

    def read(self) -> Loaded | None:
        """The next batch that was not read; None when all were."""
        if not self.last:
            return None
        if self._reader is None:
            self._reader = SpoolReader(self.directory, self._hello.session, self._before)
        loaded = self._reader.next(self._upto)
        if loaded is None:
            self._reader.fill_to(self.last)  # damage at the very end
            loaded = self._reader.next(self._upto)
        return loaded

    @property
    def lost(self) -> int:
        """Batches that the disk has not given back."""
        return 0 if self._reader is None else self._reader.lost

    def forget(self, number: int) -> None:
        """Delete what has arrived: all up to batch `number`."""
        if self._reader is not None:
            self._reader.forget(number)

    def clear(self) -> None:
        """Delete everything: all has arrived, or is still in memory."""
        self.last = self._upto = 0
        self._close_writer()
        if self._lock is None:
            return
        if self._reader is None and segments(self.directory):
            self._reader = SpoolReader(self.directory, self._hello.session)
        if self._reader is not None:
            self._reader.forget_all()
            self._reader = None
        remove_directory(self.directory)
        self._release()

    def close(self) -> None:
        """Let go of what is left: from now on `ranktap sync` may have it."""
        self._close_writer()
        if self._reader is not None:
            self._reader.close()
        self._release()

    def _open(self) -> JournalWriter:
        if self._lock is None:
            make_directory(self.directory)
            self._lock = SessionLock(self.directory)
        self._writer = JournalWriter(
            self.directory,
            segment_bytes=self._segment_bytes,
            preamble=lambda: [self._preamble()],
        )
        if self._writer.last < self._upto:
            # Its disk has lost what it had said to have.
            self._close_writer()
            raise OSError(f"{self.directory}: entries that were synced are gone")
        return self._writer

    def _preamble(self) -> list[Buffer]:
        return pack_opening(self._hello, reached=self.reached)

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _release(self) -> None:
        if self._lock is not None:
            with contextlib.suppress(OSError):
                self._lock.release()
            self._lock = None
