"""A session's connection to its daemon: found, opened, asked after, and replaced by a new one.

    connect --hello--> receive: welcome -> send batches
       ^                                      |
       +----- renew_if_silent <--- probe -----+

libzmq reconnects by itself, but what its queue had accepted is lost with the peer,
without an error. So its queue is kept short, and a connection that does not answer is
replaced by a new one, whose hello says which batch comes next; the backlog has the rest.
"""

from __future__ import annotations

import math
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from ranktap import keys
from ranktap.backlog import Backlog
from ranktap.clock import Clock
from ranktap.notices import Notices
from ranktap_wire import frames, limits
from ranktap_wire.messages import Ack, Code, DaemonMessage, FrameError, Hello, Source
from ranktap_wire.records import Buffer

PROBE_INTERVAL_S = 0.25
"""How soon a batch that is not acknowledged is asked after: a restarted daemon answers
that it does not know the session, and the 3 s of silence need not pass."""

CLOCK_INTERVAL_S = 5.0
"""How often a daemon is asked for its clock by a rank that has so much to send that it is not
asked for anything else. Clocks drift by 75 us in that time."""

REFUSED_RETRY_S = 30.0
"""How soon a daemon that does not let this key in is tried again, give or take a half: a
handshake costs it 4 ms, and a job may have thousands of ranks."""
# As plain numbers: those of zmq are enums, and each use of one calls two functions of Python.
_MORE_FOLLOWS = int(zmq.NOBLOCK | zmq.SNDMORE)
_LAST = int(zmq.NOBLOCK)
_READABLE = int(zmq.POLLIN)

ANSWERS_S = 1.0
"""For a socket of this machine: only one whose listener hangs takes longer than microseconds."""


def answers(path: Path) -> bool:
    """Whether someone listens on a socket of this machine."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(ANSWERS_S)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def dealer_for(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    """A socket for a session's messages to a daemon there, not connected yet."""
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.LINGER, 0)
    # Our own messages besides batches need a place too.
    dealer.setsockopt(zmq.SNDHWM, limits.IN_FLIGHT_MESSAGES + 16)
    dealer.setsockopt(zmq.RECONNECT_IVL, 50)
    dealer.setsockopt(zmq.RECONNECT_IVL_MAX, 1_000)
    dealer.setsockopt(zmq.HEARTBEAT_IVL, 5_000)
    dealer.setsockopt(zmq.HEARTBEAT_TIMEOUT, 30_000)
    if "[" in endpoint:
        dealer.setsockopt(zmq.IPV6, 1)
    return dealer


class Connection:
    """What one session has to a daemon, at most one socket at a time. Not thread safe.

    `locate` tells where the daemon is, and is asked before every connection; it may start one,
    and raises OSError when it cannot. `backlog` says which batch comes next, and is told when
    those on their way are lost. `has_spool`: there is another place for what is logged, so
    whether someone listens is worth knowing at once.

    Raises:
        ValueError: the environment names keys that are none.
    """

    def __init__(
        self,
        hello: Hello,
        locate: Callable[[], keys.Address],
        backlog: Backlog,
        notices: Notices,
        *,
        has_spool: bool,
    ) -> None:
        self._keys = keys.from_environment()
        self._hello = hello
        self._locate = locate
        self._backlog = backlog
        self._notices = notices
        self._has_spool = has_spool
        self.where = "the daemon"
        """The endpoint, once it is known."""
        self.is_welcomed = False
        """The daemon takes this session's batches."""
        self.is_blocked = False
        """Something could not be sent, as the socket's queue is full; its user says when it tries
        again."""
        self.is_absent = False
        """There is no daemon to be found, or one that does not take this session."""
        self.clock = Clock()
        self._heard_at = time.monotonic()
        self._last_heard = 0.0
        """The same, or when this socket was made."""
        self._last_probe = 0.0
        self._not_before = 0.0
        """No connection before this: the last one was not let in."""
        self._is_put_off = False
        """The daemon has said that it does not take this session now."""
        self._is_asked = False
        """A beat has gone out, and no answer to one has come."""
        self._bye_sent = False
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._door: keys.Door | None = None

    # -- how it stands ------------------------------------------------------------------

    @property
    def awaits_answer(self) -> bool:
        """Whether it cannot go on, or measure a round trip, before an answer is read."""
        return not self.is_welcomed or self._is_asked or self.is_blocked

    def is_silent(self, now: float) -> bool:
        """Whether there is no daemon, as far as is known."""
        return self.is_absent or now - self._heard_at > limits.ANSWER_TIMEOUT_S

    # -- its beginning ------------------------------------------------------------------

    def open(self) -> None:
        """Make what sockets come from, in the thread that uses them."""
        self._context = zmq.Context()

    def connect(self) -> None:
        """Find the daemon, and say hello to it on a new socket."""
        self.disconnect()
        self._last_heard = time.monotonic()
        try:
            address = self._locate()
        except OSError as error:
            self.is_absent = True
            self._notices.tell_once("locate", "ranktap: %s; training goes on", error)
            return
        self.where = address.endpoint
        # Nobody listens: with a spool that need not be waited for. libzmq goes on trying.
        path = self.where.removeprefix("ipc://")
        self.is_absent = self._has_spool and path != self.where and not answers(Path(path))
        assert self._context is not None
        self._socket = dealer = dealer_for(self._context, self.where)
        if self.where.startswith("tcp://"):
            self._door = keys.Door(dealer, self.where, address.keys or self._keys)
        try:
            dealer.connect(self.where)
        except zmq.ZMQError as error:
            self.disconnect()
            self._notices.tell_once("connect", "ranktap: %s: %s", self.where, error.strerror)
            return
        self.say_hello()

    def say_hello(self) -> None:
        """Ask for the session, again where it is a new one to the daemon."""
        self.is_welcomed = self._is_put_off = False
        self._bye_sent = False
        self._hello.first = self._backlog.first_unacknowledged
        self._hello.source = Source.BACKLOG if self._backlog.is_on_disk else Source.LIVE
        self._send_control(frames.pack_hello(self._hello))

    def say_caught_up(self) -> None:
        """Where a session came out of the spool and does no longer, say hello as a live one."""
        if (
            self.is_welcomed
            and self._hello.source is Source.BACKLOG
            and not self._backlog.is_on_disk
        ):
            self.say_hello()

    # -- in -----------------------------------------------------------------------------

    def wait(self, wake: int, timeout_s: float, *, listens: bool) -> bool:
        """Wait until there is something to do, or for so long.

        Whether the descriptor `wake` can be read; answers are waited for with `listens`, room
        in the socket's queue where it was full, and what the door says always.
        """
        waited_for: list[tuple[Any, int]] = [(wake, _READABLE)]
        if self._socket is not None and listens:
            events = _READABLE | (int(zmq.POLLOUT) if self.is_blocked else 0)
            waited_for.append((self._socket, events))
        if self._door is not None:
            waited_for.append((self._door.socket, _READABLE))
        ready = zmq.zmq_poll(waited_for, timeout=math.ceil(timeout_s * 1_000))
        return wake in dict(ready)

    def receive(self) -> DaemonMessage | None:
        """The next answer; None: there is none yet. What is no answer is told and passed over.

        Raises:
            FrameError: the daemon speaks another version of the protocol.
        """
        # Asked first: most often there is none, and an exception costs as much as an answer.
        while self._socket is not None and int(self._socket.get(zmq.EVENTS)) & _READABLE:
            received = [self._socket.recv(_LAST, copy=False)]
            while received[-1].more:  # not `recv_multipart`, which asks the socket through an enum
                received.append(self._socket.recv(_LAST, copy=False))
            parts = [frame.bytes for frame in received]
            try:
                answer = frames.read_answer(parts)
            except FrameError as error:
                if error.code is Code.PROTOCOL:
                    raise
                self._notices.tell_once(
                    "answer", "ranktap: %s said something else: %s", self.where, error
                )
                continue
            self._last_heard = self._heard_at = time.monotonic()
            self.is_absent = False
            return answer
        return None

    def welcome(self) -> None:
        """Take the answer to a hello: batches may go out."""
        self.is_welcomed = True
        self._notices.forget("silent", "door")
        self._last_probe = -math.inf

    def put_off(self) -> None:
        """Take it that the daemon does not open the session now: its silence tells nothing new."""
        self._is_put_off = not self.is_welcomed

    def hear_clock(self, sent: float, answer: Ack) -> None:
        """Take the answer to a beat that was sent at that time."""
        self._is_asked = False
        now, wall = time.monotonic(), time.time()
        if answer.now is not None and answer.held is not None:
            self.clock.heard(sent, now, wall, answer.now, answer.held)

    def hear_door(self, now: float) -> None:
        """Where the door has not let this key in, leave, and come back later."""
        why = self._door.refusal() if self._door is not None else None
        if why is not None:
            self._notices.tell_once(
                "door", "ranktap: %s; training goes on, and it is tried again", why
            )
            self.disconnect()
            self._not_before = now + REFUSED_RETRY_S * random.uniform(0.5, 1.5)
            self._last_heard = -math.inf  # then, and not after the time without an answer

    # -- out ----------------------------------------------------------------------------

    def send(self, parts: list[Buffer]) -> bool:
        """Send a batch; False when there is no room for it now."""
        assert self._socket is not None, "who is welcome has a socket"
        *others, last = parts
        try:
            # pyzmq copies frames under 64 KiB and refers to larger ones. There is room for all of a
            # message, or for none: only its first frame can meet a full queue.
            for part in others:
                self._socket.send(part, _MORE_FOLLOWS, copy=False)  # type: ignore[arg-type]
            self._socket.send(last, _LAST, copy=False)  # type: ignore[arg-type]
        except zmq.Again:
            self.is_blocked = True
            return False
        return True

    def probe(self, now: float, interval_s: float) -> None:
        """Say that we are there, and ask whether the daemon is.

        `interval_s` is how often batches are made: where many send, acknowledgements take longer,
        and beats would be most of what is sent.
        """
        if not self.is_welcomed:
            return
        silence = now - max(self._last_heard, self._last_probe)
        probe_s = max(PROBE_INTERVAL_S, min(interval_s, limits.BEAT_INTERVAL_S))
        is_silent = silence > (probe_s if len(self._backlog) else limits.BEAT_INTERVAL_S)
        if is_silent or now - self._last_probe > CLOCK_INTERVAL_S:
            self._last_probe = now
            self._is_asked = self._send_control(frames.pack_beat(self._hello.session, now))

    def say_bye(self) -> None:
        """End the session, once for each hello."""
        if self.is_welcomed and not self._bye_sent:
            self._bye_sent = self._send_control(frames.pack_bye(self._hello.session))

    def _send_control(self, parts: list[Any]) -> bool:
        try:
            if self._socket is not None:
                self._socket.send_multipart(parts, zmq.NOBLOCK)
                return True
        except zmq.Again:
            self.is_blocked = True
        return False

    # -- its end ------------------------------------------------------------------------

    def renew_if_silent(self, now: float) -> None:
        """Put a new socket in the place of one that does not answer."""
        if now - self._last_heard > limits.ANSWER_TIMEOUT_S and now >= self._not_before:
            if self._socket is not None and not self._is_put_off:
                self._notices.tell_once(
                    "silent", "ranktap: no answer from %s; training goes on", self.where
                )
            self.connect()

    def give_up(self) -> None:
        """Never connect again: there is nothing to be had from this daemon."""
        self.is_absent, self._not_before = True, math.inf
        self.disconnect()

    def disconnect(self) -> None:
        """Close the socket. What was on its way is lost, and due again."""
        self.is_welcomed = self._is_asked = False
        self._backlog.rewind()
        if self._door is not None:
            self._door.close()
            self._door = None
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None

    def close(self) -> None:
        """Let go of what `open` made; it is disconnected."""
        if self._context is not None:
            self._context.destroy(linger=0)
