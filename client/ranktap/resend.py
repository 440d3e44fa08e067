"""Spooled sessions of one life on their way to the daemon, all of them side by side.

    each session    reader -> SendWindow -> a DEALER of its own ======> ranktapd
    all of them     hello, and welcome from all -> batches, the oldest first -> bye

The daemon is told, at the hello, that this comes from a spool; from then on it gives up on no
window of the run until every session has said bye. So however long it takes, and however
often it is broken off and begun again, the ranks' records meet as they would have met live.
The order bounds what the daemon has to hold meanwhile.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

import zmq

from ranktap import keys
from ranktap.connection import dealer_for
from ranktap.spooled import Loaded
from ranktap.unsent import UnsentSession
from ranktap_wire import frames, limits
from ranktap_wire.delivery import SendWindow
from ranktap_wire.messages import (
    Ack,
    ByeAnswer,
    Code,
    DaemonMessage,
    Error,
    FrameError,
    Source,
    Welcome,
)
from ranktap_wire.records import Buffer

POLL_S: Final = 0.05
PROBE_INTERVAL_S: Final = 0.25
IN_FLIGHT_BYTES: Final = 16 * limits.MIB
"""Of each session; with 1,000 of them 16 GB, if their batches were that large."""
FIRST_ANSWER_SHARE: Final = 1 / 6
"""Of the patience: without any answer at all for this long there is no daemon."""


Context = zmq.Context[zmq.Socket[bytes]]


def context_for(sessions: int) -> Context:
    """Where so many sessions have their sockets: one each, and one for what a door says."""
    context: Context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 4 * sessions + 100)
    return context


class ResendError(Exception):
    """It cannot go on; what was not acknowledged is still in the spool."""


class Stream:
    """One session on its way. Not thread safe."""

    def __init__(
        self,
        context: Context,
        session: UnsentSession,
        locate: Callable[[], keys.Address],
        own_keys: keys.Keys | None,
    ) -> None:
        self.session = session
        self._context = context
        self._locate = locate
        self._keys = own_keys
        self._hello = session.hello
        self._hello.source = Source.SPOOL
        self._hello.first = session.first or 1
        self._window: SendWindow[Loaded] = SendWindow(IN_FLIGHT_BYTES, limits.IN_FLIGHT_MESSAGES)
        self._window.begin_at(self._hello.first)
        self._next: Loaded | None = None
        self._acknowledged = self._hello.first - 1
        self._last_heard = self._last_probe = -math.inf
        self._bye_sent = False
        self.socket: zmq.Socket[bytes] | None = None
        self.door: keys.Door | None = None
        self.welcomed = False
        self.done = False
        """Its bye was answered: the daemon has all of it."""
        self.failure: str | None = None
        """Why the daemon does not take it."""
        self.said: str | None = None
        """The last thing that was in the way."""
        self.age = 0.0
        """When the next batch was logged, about: wall time, never going back."""
        self.moved_to: str | None = None
        """The run that it is in, where another job has the one that it names."""
        self.refused = 0
        """Batches that break a rule of the daemon's."""
        self.sent_bytes = 0
        self.sent_batches = 0
        self._advance()

    # -- what is to be sent -------------------------------------------------------------

    def _advance(self) -> None:
        """Look at the next batch."""
        reader = self.session.reader
        assert reader is not None
        self._next = reader.next(self.session.upto)
        if self._next is not None:
            self.age = max(self.age, self._next.at)

    @property
    def has_next(self) -> bool:
        """Whether there are batches that were not sent yet."""
        return self._next is not None

    @property
    def is_delivered(self) -> bool:
        """Whether everything is acknowledged."""
        return self.welcomed and self._next is None and not len(self._window)

    def send_next(self) -> bool:
        """Send the next batch, if it may go now."""
        while self._next is not None and self._next.number <= self._acknowledged:
            self._advance()  # it arrived before the last time was broken off
        if self._next is None or not self.welcomed or self._window.unsent:
            return False
        if self._window.held_bytes + self._next.nbytes > IN_FLIGHT_BYTES and len(self._window):
            return False
        if len(self._window) >= limits.IN_FLIGHT_MESSAGES:
            return False
        if not len(self._window):
            self._window.begin_at(self._next.number)
        self._window.push(self._next, self._next.nbytes)
        self._advance()
        self.send_again()
        return True

    def send_again(self) -> None:
        """Send what is in the window and not in flight."""
        while self.welcomed and self.socket is not None:
            numbered = self._window.due()
            if numbered is None:
                return
            try:
                self.socket.send_multipart(numbered.batch.parts, zmq.NOBLOCK, copy=False)  # type: ignore[arg-type]
            except zmq.Again:
                self._window.unsend()
                return

    def say_bye(self) -> None:
        """Say goodbye, once on each connection."""
        if self.welcomed and not self._bye_sent and not self.done:
            self._bye_sent = self._control(frames.pack_bye(self._hello.session))

    # -- what is heard ------------------------------------------------------------------

    def hear(self) -> bool:
        """Take in all answers; whether it has come further by them."""
        came_further = False
        while self.socket is not None:
            try:
                answer = frames.read_answer(self.socket.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                break
            except FrameError as error:
                self.failure = error.text
                return came_further
            self._last_heard = time.monotonic()
            came_further |= self._take(answer)
        why = None if self.door is None else self.door.refusal()
        if why is not None:
            self.failure = why
        return came_further

    def _take(self, answer: DaemonMessage) -> bool:
        match answer:
            case Welcome():
                self.welcomed, self.said = True, None
                self.moved_to = answer.run
                self._release(answer.last)
                self._window.rewind()
                return True
            case Ack():
                return self.welcomed and self._release(answer.number)
            case ByeAnswer():
                self.done = True
                return True
            case Error(code=Code.UNKNOWN_SESSION):
                if self.welcomed:
                    self._say_hello()
            case Error(code=Code.GAP, number=int(number)):
                self._release(number)
                self._window.rewind()
            case Error(number=int()):
                self.refused += 1
                self.said = answer.text
            case Error(code=Code.PROTOCOL | Code.REFUSED | Code.CONFLICT | Code.LIMIT):
                self.failure = answer.text
            case Error():
                self.said = answer.text
        return False

    def _release(self, number: int) -> bool:
        released = self._window.acknowledged(number)
        self.sent_batches += len(released)
        self.sent_bytes += sum(each.nbytes for each in released)
        is_more = number > self._acknowledged
        self._acknowledged = max(self._acknowledged, number)
        assert self.session.reader is not None
        self.session.reader.forget(self._acknowledged)
        return is_more

    # -- the connection -----------------------------------------------------------------

    def tend(self, now: float) -> None:
        """Connect, ask whether the daemon is there, or connect anew when it does not answer."""
        if now - self._last_heard > limits.ANSWER_TIMEOUT_S:
            self._connect(now)
        elif self.welcomed:
            silence = now - max(self._last_heard, self._last_probe)
            if silence > (PROBE_INTERVAL_S if len(self._window) else limits.BEAT_INTERVAL_S):
                self._last_probe = now
                self._control(frames.pack_beat(self._hello.session, now))

    def _connect(self, now: float) -> None:
        self.disconnect()
        self._last_heard = now
        try:
            address = self._locate()
        except OSError as error:
            self.said = str(error)
            return
        self.socket = dealer = dealer_for(self._context, address.endpoint)
        if address.endpoint.startswith("tcp://"):
            self.door = keys.Door(dealer, address.endpoint, address.keys or self._keys)
        try:
            dealer.connect(address.endpoint)
        except zmq.ZMQError as error:
            self.said = f"{address.endpoint}: {error.strerror}"
            self.disconnect()
            return
        self._say_hello()

    def _say_hello(self) -> None:
        self.welcomed = self._bye_sent = False
        self._hello.first = self._acknowledged + 1
        self._control(frames.pack_hello(self._hello))

    def _control(self, parts: list[Buffer]) -> bool:
        try:
            if self.socket is not None:
                self.socket.send_multipart(parts, zmq.NOBLOCK)  # type: ignore[arg-type]
                return True
        except zmq.Again:
            return False  # it is asked for again
        return False

    def disconnect(self) -> None:
        self.welcomed = False
        self._window.rewind()
        if self.door is not None:
            self.door.close()
            self.door = None
        if self.socket is not None:
            self.socket.close(linger=0)
            self.socket = None


def send_together(streams: list[Stream], patience_s: float, progress: Callable[[], None]) -> None:
    """Bring the sessions of one life to the daemon, until each is done or has a failure.

    `progress` is called some times a second. Sessions that are done are deleted.

    Raises:
        ResendError: nothing has moved for `patience_s`.
        JournalError, SpoolError, OSError: the spool cannot be read or deleted.
    """
    begun = moved = time.monotonic()
    has_begun = False
    is_heard = False
    while waiting := [each for each in streams if not each.done and each.failure is None]:
        _wait(waiting)
        now = time.monotonic()
        for stream in waiting:
            if stream.hear():
                moved, is_heard = now, True
            if stream.done:
                stream.disconnect()
                stream.session.remove()
            elif stream.failure is None:
                stream.tend(now)
        if not has_begun:
            if any(each.failure is not None for each in streams):
                # Nothing of this life has been sent, and nothing is without all of its ranks.
                return
            has_begun = all(each.welcomed for each in streams)
            for stream in streams if has_begun else ():
                # Ranks that are not here at the next try, if there is one, have arrived whole.
                stream.session.note_reached()
        if has_begun:
            _feed([each for each in waiting if not each.done and each.failure is None])
        progress()
        if now - moved > patience_s or (
            not is_heard and now - begun > FIRST_ANSWER_SHARE * patience_s
        ):
            said = next((each.said for each in waiting if each.said is not None), "no answer")
            raise ResendError(said)


def _wait(streams: list[Stream]) -> None:
    poller = zmq.Poller()
    for stream in streams:
        if stream.socket is not None:
            poller.register(stream.socket, zmq.POLLIN)
    poller.poll(int(POLL_S * 1_000))


def _feed(streams: list[Stream]) -> None:
    """Send what may go: always the batch that was logged first, of all sessions."""
    for stream in streams:
        stream.send_again()
    while unsent := [each for each in streams if each.has_next]:
        if not min(unsent, key=lambda each: each.age).send_next():
            return
    if all(each.is_delivered for each in streams):
        for stream in streams:
            stream.say_bye()
