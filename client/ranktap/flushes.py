"""Those who wait until what they logged is in the daemon's journal.

    flush() -> mark: all that had been logged by then -> number: the last batch that has of it
            -> done, when the daemon has acknowledged that one

Marks and numbers are the sender's business; any thread may wait.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field

from ranktap.backlog import Backlog
from ranktap.outbox import Mark, Outbox


@dataclass(slots=True)
class Flush:
    """Someone waits until everything logged before is acknowledged."""

    done: threading.Event = field(default_factory=threading.Event)
    mark: Mark | None = None
    """What it waits for; None before the sender has seen it. Others may go on logging."""
    number: int | None = None
    """The last batch that it waits for; None before the sender has sealed it."""
    journaled: bool = False


class Flushes:
    """All that wait, the first one first. All but `add` and `give_up` are for the sender alone."""

    def __init__(self, outbox: Outbox, backlog: Backlog) -> None:
        self._outbox = outbox
        self._backlog = backlog
        self._waiting: deque[Flush] = deque()

    def __bool__(self) -> bool:
        """Whether someone waits."""
        return bool(self._waiting)

    def add(self) -> Flush:
        """One more, who waits for `done`."""
        flush = Flush()
        self._waiting.append(flush)
        return flush

    def has_unsealed(self) -> bool:
        """Whether one waits for something that is not in a batch yet."""
        if not self._waiting:
            return False
        # A copy: the threads that flush append to it.
        for flush in tuple(self._waiting):
            if flush.mark is None:
                flush.mark = self._outbox.mark()
            if flush.number is None and self._outbox.has_taken(flush.mark):
                flush.number = self._backlog.last_number
        return any(flush.number is None for flush in tuple(self._waiting))

    def settle(self, kept: int = 0) -> None:
        """Let those go who have what they waited for, and who have no more to wait for: batches up
        to number `kept` are safe where they are, and there is no daemon."""
        self.has_unsealed()
        while self._waiting:
            number = self._waiting[0].number
            if number is None:
                return
            is_journaled = self._backlog.first_unacknowledged > number
            if not is_journaled and number > kept:
                return
            flush = self._waiting.popleft()
            flush.journaled = is_journaled
            flush.done.set()

    def give_up(self) -> None:
        """The sender has ended: what it had not sent will not be."""
        while self._waiting:
            try:
                flush = self._waiting.popleft()
            except IndexError:
                return  # the ending thread and the one that waits both come here
            flush.journaled = not self._outbox and not len(self._backlog)
            flush.done.set()
