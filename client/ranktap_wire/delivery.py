"""Exactly once over a connection that loses, repeats and reorders: both windows, side by side.

A session's batches are numbered 1, 2, 3 ...

    client: SendWindow                          daemon: ReceiveWindow
      push(batch)  -> number                      judge(number) -> NEXT       journal it, then
      due()        -> what to send next                            DUPLICATE  acknowledge again
      acknowledged(n): forget all up to n                          GAP        refuse, say `last`
      rewind(n): n arrived, all behind it did not

This is go-back-N (Tanenbaum & Wetherall, Computer Networks, 3.4.2) with a
receive window of one. The daemon accepts only the number that follows the last
one it has. Remembering just the highest number seen would lose data: after a
reconnect, later messages can overtake earlier ones that were lost with the
old connection's queue.

Pure: no sockets, no clock. Not thread safe; each side has one thread for it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

BatchT = TypeVar("BatchT")


@dataclass(slots=True)
class Numbered(Generic[BatchT]):
    """A batch with its place in the session."""

    number: int
    batch: BatchT
    nbytes: int


@dataclass(slots=True)
class SendWindow(Generic[BatchT]):
    """What was numbered and is not yet acknowledged, in order; a prefix of it is in flight."""

    max_bytes: int
    max_messages: int
    in_flight: int = field(default=0, init=False)
    """Batches. Like the next one, for everyone to read, and for the window alone to set."""
    held_bytes: int = field(default=0, init=False)
    _held: deque[Numbered[BatchT]] = field(default_factory=deque, init=False)
    _in_flight_bytes: int = field(default=0, init=False)
    _last_number: int = field(default=0, init=False)

    def push(self, batch: BatchT, nbytes: int) -> int:
        """Number a batch; it is kept until acknowledged."""
        self._last_number += 1
        self._held.append(Numbered(self._last_number, batch, nbytes))
        self.held_bytes += nbytes
        return self._last_number

    def due(self) -> Numbered[BatchT] | None:
        """The next batch to send, from now on in flight; None: the window is full or all is sent.

        One batch is always let through, so that one larger than the window cannot stall it.
        """
        if self.in_flight == len(self._held) or self.in_flight >= self.max_messages:
            return None
        batch = self._held[self.in_flight]
        if self.in_flight and self._in_flight_bytes + batch.nbytes > self.max_bytes:
            return None
        self.in_flight += 1
        self._in_flight_bytes += batch.nbytes
        return batch

    def held(self) -> list[Numbered[BatchT]]:
        """All that is held, in order."""
        return list(self._held)

    def begin_at(self, number: int) -> None:
        """Give the next batch that is pushed this number.

        Raises:
            ValueError: batches are held, whose numbers would not be followed by it.
        """
        if self._held:
            raise ValueError(f"batch {number} does not follow batch {self._last_number}")
        self._last_number = number - 1

    def take_back(self) -> list[Numbered[BatchT]]:
        """Hand back what is not in flight, in order, as if it had not been pushed."""
        taken: deque[Numbered[BatchT]] = deque()
        while len(self._held) > self.in_flight:
            batch = self._held.pop()
            self.held_bytes -= batch.nbytes
            self._last_number -= 1
            taken.appendleft(batch)
        return list(taken)

    def unsend(self) -> None:
        """Take back the last `due()`: the socket did not accept it."""
        self.in_flight -= 1
        self._in_flight_bytes -= self._held[self.in_flight].nbytes

    def acknowledged(self, number: int) -> list[Numbered[BatchT]]:
        """Forget all batches up to `number`, and return them. An older number changes nothing."""
        released = []
        while self._held and self._held[0].number <= number:
            batch = self._held.popleft()
            self.held_bytes -= batch.nbytes
            if self.in_flight:
                self.in_flight -= 1
                self._in_flight_bytes -= batch.nbytes
            released.append(batch)
        return released

    def rewind(self) -> None:
        """Nothing is in flight any more: send again from the first that is held."""
        self.in_flight = 0
        self._in_flight_bytes = 0

    @property
    def first_unacknowledged(self) -> int:
        """The number that the daemon must see next; that of the next batch when none is held."""
        return self._held[0].number if self._held else self._last_number + 1

    @property
    def unsent(self) -> int:
        return len(self._held) - self.in_flight

    def __len__(self) -> int:
        return len(self._held)


class Verdict(Enum):
    """What a batch's number says about it."""

    NEXT = "next"
    """It follows the last one: journal it."""
    DUPLICATE = "duplicate"
    """It was journaled before: acknowledge again, write nothing."""
    GAP = "gap"
    """One before it is missing. Never acknowledged: the rank still holds the missing
    batch and sends it again. Skipping ahead would turn a slow network into lost data."""


@dataclass(slots=True)
class ReceiveWindow:
    """The last number of a session that is in the journal."""

    last: int = 0

    def judge(self, number: int) -> Verdict:
        if number == self.last + 1:
            return Verdict.NEXT
        return Verdict.DUPLICATE if number <= self.last else Verdict.GAP

    def accept(self, number: int) -> None:
        """Move on to `number`.

        Raises:
            ValueError: it is not the next one; both numbers are in the message.
        """
        if self.judge(number) is not Verdict.NEXT:
            raise ValueError(f"batch {number} does not follow batch {self.last}")
        self.last = number

    def reopened(self, first_held: int) -> int:
        """A client said hello and holds everything from `first_held` on; returns how many are lost.

        Batches between ours and the client's first were acknowledged once and are in
        no journal of ours: the state directory was replaced or damaged. They cannot
        come again, so waiting for them would stop the session for good.
        """
        lost = max(0, first_held - 1 - self.last)
        self.last += lost
        return lost
