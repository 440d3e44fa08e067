"""What was sealed and is not acknowledged: in memory, and with a spool on disk behind it.

    without     push -> window -> due
    on disk     push -> tail -> spool -> window -> due

The second way is taken once memory should not hold more, or nothing has arrived for too long:
the window is written out, and from then on every batch passes through the spool, so that their
order stays what it was. When the last one on disk has arrived it is the first way again. What
the disk does not take waits in the tail, in memory, and its records are bounded as ever.

Numbers are consecutive over all of it. For the sender's thread alone; the disk is waited for
in `keep` and `due`, and nothing here raises because of it.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from typing import Final

from ranktap.notices import Notices
from ranktap.outbox import Outbox, Sealed
from ranktap.spool import Spool
from ranktap.spooled import InUseError, Loaded, SpoolError
from ranktap_wire import limits
from ranktap_wire.delivery import Numbered, SendWindow
from ranktap_wire.journal import JournalError
from ranktap_wire.records import Batch

logger = logging.getLogger("ranktap")

HELD_SHARE: Final = 0.25
"""Of the memory, what batches may take before they go to disk: the rest is for what is logged
while the disk writes."""
AHEAD_BYTES: Final = 16 * limits.MIB
"""Read back and not acknowledged, at most, but for one batch: comes on top of the memory."""
GROUP_BYTES: Final = 8 * limits.MIB
"""Written and synced at a time: as in the daemon, so that a sync's fixed cost is small."""
RETRY_S: Final = 5.0
"""How soon a disk that did not take something is asked again."""

_FAILURES = (OSError, JournalError, InUseError, SpoolError)

Item = Sealed | Loaded


@dataclass(frozen=True, slots=True)
class Count:
    """Records of a batch."""

    scalars: int
    blobs: int

    @classmethod
    def of(cls, item: Item) -> Count:
        if isinstance(item, Loaded):
            return cls(item.scalars, item.blobs)
        columns = item.batch.columns
        return cls(0 if columns is None else len(columns), len(item.batch.blobs))


class Backlog:
    """The batches of one session that a daemon has not acknowledged. Not thread safe."""

    def __init__(self, outbox: Outbox, spool: Spool | None) -> None:
        self._outbox = outbox
        self._spool = spool
        self._window: SendWindow[Item] = SendWindow(
            limits.IN_FLIGHT_BYTES, limits.IN_FLIGHT_MESSAGES
        )
        self._tail: deque[tuple[int, Sealed]] = deque()
        self._tail_bytes = 0
        self._ahead_bytes = min(AHEAD_BYTES, outbox.memory_bytes // 4)
        self.last_number = 0
        self._acknowledged = 0
        self._loaded = 0
        """The last batch that was read from the spool."""
        self._write_at = self._read_at = 0.0
        """Not before: the disk has failed."""
        self._notices = Notices()
        self._lost = 0

    # -- how it stands ------------------------------------------------------------------

    def __len__(self) -> int:
        """Batches that are not acknowledged."""
        return self.last_number - self._acknowledged

    @property
    def first_unacknowledged(self) -> int:
        """The number that the daemon must see next."""
        return self._acknowledged + 1

    @property
    def is_on_disk(self) -> bool:
        """Whether batches take the way through the spool."""
        return self._spool is not None and self._spool.last > 0

    @property
    def unsent(self) -> int:
        return self.last_number - self._acknowledged - self._window.in_flight

    @property
    def held_bytes(self) -> int:
        """What is in memory."""
        return self._window.held_bytes + self._tail_bytes

    @property
    def kept(self) -> int:
        """Everything up to this number is on disk, or acknowledged."""
        return max(self._acknowledged, 0 if self._spool is None else self._spool.last)

    @property
    def is_too_large(self) -> bool:
        """Whether memory should not hold more."""
        return self.held_bytes > HELD_SHARE * self._outbox.memory_bytes

    # -- in -----------------------------------------------------------------------------

    def push(self, sealed: Sealed) -> None:
        """Number a batch; it is kept until acknowledged."""
        self.last_number += 1
        if self.is_on_disk:
            self._tail.append((self.last_number, sealed))
            self._tail_bytes += sealed.nbytes
        else:
            self._window.push(sealed, sealed.nbytes)

    def keep(self, now: float, wall: float, *, is_last: bool = False) -> None:
        """Put on disk what is only in memory. `now` is the monotonic clock.

        `is_last`: there is no later time to try.
        """
        if self._spool is None or (now < self._write_at and not is_last):
            return
        try:
            if self.is_on_disk:
                self._write_tail(self._spool, wall)
            elif len(self._window):
                self._write_window(self._spool, wall)
        except _FAILURES as error:
            self._write_at = now + RETRY_S
            self._failed("takes", error)
        else:
            if self._notices.forget("takes"):
                logger.warning("ranktap: the spool takes batches again")

    def _write_window(self, spool: Spool, wall: float) -> None:
        """Begin: all of the window, or nothing, so that what is on disk has no gaps."""
        try:
            for group in _groups([(each.number, each.batch) for each in self._window.held()]):
                spool.append(group, wall)
        except _FAILURES:
            spool.clear()
            raise
        # What is in flight too: it may be all of the memory, and never be acknowledged. If it has
        # arrived it is sent a second time, once, and judged a duplicate.
        self._window.rewind()
        for numbered in self._window.take_back():
            self._release(numbered)
        self._loaded = self._acknowledged

    def _write_tail(self, spool: Spool, wall: float) -> None:
        for group in _groups(list(self._tail)):
            spool.append(group, wall)
            for _ in group:
                _, sealed = self._tail.popleft()
                self._tail_bytes -= sealed.nbytes
                self._outbox.release(sealed)

    # -- out ----------------------------------------------------------------------------

    def due(self, now: float) -> Numbered[Item] | None:
        """The next batch to send; None: the window is full, or there is none."""
        numbered = self._window.due()
        if numbered is None and self.is_on_disk and now >= self._read_at:
            self._load(now)
            numbered = self._window.due()
        return numbered

    def _load(self, now: float) -> None:
        assert self._spool is not None
        try:
            while self._window.held_bytes < self._ahead_bytes and self._loaded < self._spool.last:
                loaded = self._spool.read()
                if loaded is None:
                    return
                if loaded.number <= self._loaded:
                    continue  # it has arrived meanwhile
                if not len(self._window):
                    self._window.begin_at(loaded.number)
                self._window.push(loaded, loaded.nbytes)
                self._loaded = loaded.number
                self._count_lost(self._spool)
        except _FAILURES as error:
            self._read_at = now + RETRY_S
            self._failed("gives back", error)

    def _count_lost(self, spool: Spool) -> None:
        if spool.lost > self._lost:
            self._outbox.drop_blobs(spool.lost - self._lost)  # of so many records at least
            self._lost = spool.lost
            self._notices.tell_once(
                "lost", "ranktap: a batch in %s is damaged and lost", spool.directory
            )

    def unsend(self) -> None:
        """Take back the last `due()`: the socket did not accept it."""
        self._window.unsend()

    def rewind(self) -> None:
        """Nothing is in flight any more."""
        self._window.rewind()

    def acknowledged(self, number: int) -> list[Numbered[Item]]:
        """Forget all batches up to `number`, and return those that were in memory."""
        # A daemon cannot have more than there is.
        number = min(number, self.last_number)
        released = self._window.acknowledged(number)
        for numbered in released:
            self._release(numbered)
        self._acknowledged = max(self._acknowledged, number)
        self._loaded = max(self._loaded, self._acknowledged)
        if self._spool is not None and self.is_on_disk:
            self._forget(self._spool)
        return released

    def _forget(self, spool: Spool) -> None:
        try:
            if self._acknowledged < spool.last:
                spool.forget(self._acknowledged)
                return
            spool.clear()
        except _FAILURES as error:
            # It takes room, and is sent a second time by whoever finds it; that is harmless.
            self._notices.tell_once("deletes", "ranktap: the spool: %s", error)
        if self.is_on_disk:
            return
        self._lost = 0
        self._window.begin_at(self._acknowledged + 1)
        while self._tail:
            _, sealed = self._tail.popleft()
            self._window.push(sealed, sealed.nbytes)
        self._tail_bytes = 0

    def _release(self, numbered: Numbered[Item]) -> None:
        if isinstance(numbered.batch, Sealed):
            self._outbox.release(numbered.batch)

    def _failed(self, what: str, error: Exception) -> None:
        self._notices.tell_once(
            what, "ranktap: the spool %s nothing: %s; memory alone holds what is logged",
            what, error,
        )  # fmt: skip

    def close(self) -> None:
        """Let go of the disk."""
        if self._spool is not None:
            self._spool.close()


def _groups(items: list[tuple[int, Item]]) -> list[list[tuple[int, Batch]]]:
    """Batches as they are written together."""
    groups: list[list[tuple[int, Batch]]] = []
    nbytes = 0
    for number, item in items:
        assert isinstance(item, Sealed)  # what was read from the disk is there already
        if not groups or nbytes + item.nbytes > GROUP_BYTES:
            groups.append([])
            nbytes = 0
        groups[-1].append((number, item.batch))
        nbytes += item.nbytes
    return groups
