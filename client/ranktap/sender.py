"""The sender: one daemon thread that owns the socket, sends batches, and sends them again.

    outbox --take--> batch --push--> Backlog --due--> DEALER ======> ranktapd
                                      |   ^                             |
                                    spool +--- acknowledged(n) <- ack n +

It wakes every 50 ms, or earlier when an answer, a megabyte of blobs, or a flush is
there. What was logged becomes a batch then, or less often when the daemon asks for that.
Nothing that happens here reaches the training thread: errors of the network are retried
for ever, errors of the protocol are told to the logger and counted.

libzmq reconnects by itself, but what its queue had accepted is lost with the peer,
without an error. So its queue is kept short, everything is held until the daemon has
it on disk, and a connection that does not answer is replaced by a new one.
"""

from __future__ import annotations

import logging
import math
import os
import random
import shlex
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from ranktap import about, keys
from ranktap.backlog import Backlog
from ranktap.clock import Clock
from ranktap.finite import FiniteWatch
from ranktap.flushes import Flushes
from ranktap.outbox import Outbox, Sealed
from ranktap.pacing import Pacing
from ranktap.spool import Spool
from ranktap.spooled import Loaded
from ranktap_wire import frames, limits
from ranktap_wire.messages import (
    Ack,
    ByeAnswer,
    Code,
    DaemonMessage,
    Error,
    FrameError,
    Hello,
    Source,
    Welcome,
)
from ranktap_wire.records import Buffer

logger = logging.getLogger("ranktap")

BACKLOG_BYTES = 256 * limits.KIB
"""While batches wait to be sent, scalars are sealed in batches of at least this much:
without a daemon, thousands of tiny ones would take more memory than their records."""
BATCHES_A_TURN = 16
"""Then answers are read, whatever still waits: a loop that logs faster than batches are
made must not keep acknowledgements from freeing memory."""
PROBE_INTERVAL_S = 0.25
"""How soon a batch that is not acknowledged is asked after: a restarted daemon answers
that it does not know the session, and the 3 s of silence need not pass."""

CLOCK_INTERVAL_S = 5.0
"""How often a daemon is asked for its clock by a rank that has so much to send that it is not
asked for anything else. Clocks drift by 75 us in that time."""

REFUSED_RETRY_S = 30.0
"""How soon a daemon that does not let this key in is tried again, give or take a half: a
handshake costs it 4 ms, and a job may have thousands of ranks."""
ANSWERS_S = 1.0
"""For a socket of this machine: only one whose listener hangs takes longer than microseconds."""
GOODBYE_S = limits.ANSWER_TIMEOUT_S + 2.0
"""How long a closed tap tries to say goodbye: a daemon that was started again is found after
the time without an answer, and one that is embedded takes a second to start. Without a goodbye
it would wait for this session, and not end, for as long as sessions are waited for."""
SPOOL_AFTER_S = limits.ANSWER_TIMEOUT_S
"""Without an acknowledgement for this long, what waits goes to the spool, so that the end of
the process loses no more than this."""
SPOOL_INTERVAL_S = 1.0
"""Then a batch is made at the latest this long after its first record: a write and a sync."""
SPOOL_RESERVE_S = 2.0
"""Of the time that `close` has, for writing out what is left; half of it, if that is less."""


def answers(path: Path) -> bool:
    """Whether someone listens on a socket of this machine."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(ANSWERS_S)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


class Sender:
    """Streams one outbox to one daemon.

    `locate` tells where the daemon is, and is asked before every connection; it may start one,
    and raises OSError when it cannot. What memory should not hold goes to `spool`, where one is
    given.

    Raises:
        ValueError: the environment names keys that are none.
    """

    def __init__(
        self,
        outbox: Outbox,
        hello: Hello,
        locate: Callable[[], keys.Address],
        spool: Spool | None = None,
    ) -> None:
        self._keys = keys.from_environment()
        # Has a thread rather than being one: Thread's own private names are many, and each
        # release has others.
        self._thread = threading.Thread(target=self._run, name="ranktap-sender", daemon=True)
        self._outbox = outbox
        self._hello = hello
        self._locate = locate
        self._spool = spool
        self._backlog = Backlog(outbox, spool)
        self._flushes = Flushes(outbox, self._backlog)
        self._closing = threading.Event()
        self.stopped = threading.Event()
        """Set when the thread has ended, for whatever reason."""
        self._kept = threading.Event()
        """Set when the tap is closed and all that is left of it is in the spool."""
        self._is_absent = False
        """There is no daemon to be found, or one that does not take this session."""
        self._heard_at = time.monotonic()
        self._moved_at = self._heard_at
        """When something was acknowledged, or nothing waited, for the last time."""
        self._next_keep_at = 0.0
        self._goodbye_until = math.inf
        self._said_goodbye = False
        self._is_known = False
        """A daemon has this session, and would wait for it."""
        self._is_woken = False
        """A byte is in the pipe, or is about to be."""
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._socket: zmq.Socket[bytes] | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._door: keys.Door | None = None
        self._not_before = 0.0
        """No connection before this: the last one was not let in."""
        self._welcomed = False
        self._refused: set[int] = set()
        """Batches that break a rule; they are acknowledged like others, but were not kept."""
        self._last_heard = 0.0
        self._last_probe = 0.0
        self._is_put_off = False
        """The daemon has said that it does not take this session now."""
        self._is_asked = False
        """A beat has gone out, and no answer to one has come."""
        self._clock = Clock()
        self._finite = FiniteWatch()
        self._pacing = Pacing()
        self._blocked = False
        self._more = False
        self._where = "the daemon"
        self._bye_sent = False
        self._told: set[str] = set()

    # -- called by other threads ------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        # A write to the pipe lets go of the interpreter, and getting it back takes the time of
        # a turn of the sender: only one for each time that it sleeps.
        if self._is_woken:
            return
        self._is_woken = True
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:
            return  # the pipe is full: it will wake anyway
        except OSError:
            return  # the thread has ended and closed it

    def flush(self, timeout_s: float) -> bool:
        """Wait until what was logged before is in the daemon's journal; False when it is not.

        With a spool it is not waited for a daemon that does not answer, once all is there.
        """
        flush = self._flushes.add()
        if self.stopped.is_set():
            self._flushes.give_up()
        self.wake()
        flush.done.wait(timeout_s)
        return flush.journaled

    def close(self, timeout_s: float) -> bool:
        """Flush, say goodbye and end the thread, within the time; True when all was journaled."""
        deadline = time.monotonic() + timeout_s
        reserve_s = 0.0 if self._spool is None else min(SPOOL_RESERVE_S, timeout_s / 2)
        flushed = self.flush(timeout_s - reserve_s)
        self._outbox.close()
        self._closing.set()
        self.wake()
        # Without a daemon the thread ends at once; with one it waits for the goodbye. It goes on
        # trying when the rest is in the spool, but that need not be waited for.
        ended = self.stopped if flushed or self._spool is None else self._kept
        ended.wait(max(0.1, deadline - time.monotonic()))
        return flushed

    @property
    def rest(self) -> str:
        """Where what is left of a closed tap is, and how it is sent; empty when it is nowhere."""
        backlog = self._backlog
        if self._spool is None or not len(backlog) or backlog.kept < backlog.last_number:
            return ""
        return (
            f"; the rest of rank {self._hello.rank} is on disk, and is sent by: "
            f"ranktap sync {shlex.quote(str(self._spool.root))}"
        )

    # -- the thread -------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._context = zmq.Context()
            if self._hello.rank == 0:
                about.add_commit(self._hello.about)
            self._prepare_spool()
            self._connect()
            while not self._finished():
                self._turn()
        # A bug here must not end the training, and must not go unheard.
        except Exception:
            logger.exception("ranktap: the sender failed; nothing more is logged by this rank")
        finally:
            self._outbox.close()
            self._disconnect()
            self._keep_rest()
            self._backlog.close()
            if self._context is not None:
                self._context.destroy(linger=0)
            self.stopped.set()
            self._flushes.give_up()
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _finished(self) -> bool:
        if not self._closing.is_set():
            return False
        now = time.monotonic()
        self._goodbye_until = min(self._goodbye_until, now + GOODBYE_S)
        return self._said_goodbye or not self._is_known or now > self._goodbye_until

    def _turn(self) -> None:
        self._wait()
        self._receive()
        now = time.monotonic()
        self._hear_door(now)
        self._seal(now)
        self._keep(now)
        self._send()
        self._flushes.settle(self._backlog.kept if self._is_silent(now) else 0)
        self._probe(now)
        if self._welcomed and self._hello.source is Source.BACKLOG and not self._backlog.is_on_disk:
            self._say_hello()  # it has caught up
        is_done = self._closing.is_set() and not self._outbox and not len(self._backlog)
        if is_done and self._welcomed and not self._bye_sent:
            self._bye_sent = self._send_control(frames.pack_bye(self._hello.session))
        if now - self._last_heard > limits.ANSWER_TIMEOUT_S and now >= self._not_before:
            if self._socket is not None and not self._is_put_off:
                self._tell_once(
                    "silent", "ranktap: no answer from %s; training goes on", self._where
                )
            self._connect()

    def _wait(self) -> None:
        poller = zmq.Poller()
        poller.register(self._wake_read, zmq.POLLIN)
        if self._socket is not None and self._awaits_answer():
            events = zmq.POLLIN | (zmq.POLLOUT if self._blocked else 0)
            poller.register(self._socket, events)
        if self._door is not None:
            poller.register(self._door.socket, zmq.POLLIN)
        pause_s = 0.0 if self._more else max(0.0, self._pacing.next_turn_at - time.monotonic())
        ready = dict(poller.poll(math.ceil(pause_s * 1_000)))
        if self._wake_read in ready:
            os.read(self._wake_read, 4_096)
            # Behind the read: who finds it set has logged before what follows here looks.
            self._is_woken = False

    def _awaits_answer(self) -> bool:
        """Whether something waits for an answer; else it is read at the next turn.

        With a few scalars a step every batch would cost two turns of the interpreter: one to
        send it, and one soon after to hear that it has arrived.
        """
        return (
            not self._welcomed
            or bool(self._flushes)
            or self._is_asked  # a beat, whose round trip is measured
            or self._blocked
            or self._closing.is_set()
            or self._backlog.held_bytes >= limits.BATCH_TARGET_BYTES
            or self._backlog.is_on_disk
        )

    def _receive(self) -> None:
        while self._socket is not None:
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                answer = frames.read_answer(parts)
            except FrameError as error:
                if error.code is Code.PROTOCOL:
                    self._stop(error.text)
                else:
                    self._tell_once(
                        "answer", "ranktap: %s said something else: %s", self._where, error
                    )
                continue
            self._last_heard = self._heard_at = time.monotonic()
            self._is_absent = False
            self._hear(answer)

    def _hear(self, answer: DaemonMessage) -> None:
        match answer:
            case Welcome():
                self._release(answer.last)
                self._backlog.rewind()
                self._welcomed = self._is_known = True
                if self._spool is not None:
                    self._spool.reached = True
                self._told -= {"silent", "door"}
                self._pacing.asked(answer.interval)
                self._last_probe = -math.inf
                if answer.run is not None:
                    self._tell_once(
                        "run", "ranktap: another job writes to run %r; this one is run %r",
                        self._hello.run, answer.run,
                    )  # fmt: skip
            case Ack():
                self._pacing.asked(answer.interval)
                if answer.sent is not None:
                    self._hear_clock(answer.sent, answer)
                if self._welcomed:
                    self._release(answer.number)
            case ByeAnswer():
                self._said_goodbye = True
            case Error():
                self._hear_error(answer)

    def _hear_clock(self, sent: float, answer: Ack) -> None:
        """Take the answer to a beat that was sent at that time."""
        self._is_asked = False
        now, wall = time.monotonic(), time.time()
        if answer.now is not None and answer.held is not None:
            self._clock.heard(sent, now, wall, answer.now, answer.held)

    def _hear_error(self, error: Error) -> None:
        if error.code == Code.UNKNOWN_SESSION:
            # Every message that it got before our hello is answered so; one hello serves all.
            if self._welcomed:
                self._say_hello()
        elif error.code == Code.GAP and error.number is not None:
            self._release(error.number)
            self._backlog.rewind()
        elif error.number is not None:
            self._refused.add(error.number)
            self._tell_once(error.text, "ranktap: ranktapd refused a batch: %s", error.text)
        elif error.code in (Code.PROTOCOL, Code.REFUSED, Code.CONFLICT, Code.LIMIT):
            self._stop(error.text, is_replaced=error.code == Code.CONFLICT)
        else:
            self._is_put_off = not self._welcomed
            self._tell_once(error.text, "ranktap: ranktapd says: %s", error.text)

    def _release(self, number: int) -> None:
        if number >= self._backlog.first_unacknowledged:
            self._moved_at = time.monotonic()
        for released, records in self._backlog.acknowledged(number):
            if released in self._refused:
                self._refused.remove(released)
                self._outbox.drop_scalars(records.scalars)
                self._outbox.drop_blobs(records.blobs)

    def _seal(self, now: float) -> None:
        """Move what was logged into numbered batches."""
        due = self._pacing.turn(now)
        self._more = False
        for _ in range(BATCHES_A_TURN):
            if not self._outbox:
                return
            if not self._flushes.has_unsealed():
                large = (
                    self._outbox.pending_blob_bytes >= limits.BATCH_TARGET_BYTES
                    or self._outbox.row_bytes >= BACKLOG_BYTES
                    or (self._spool is not None and self._outbox.is_crowded)
                )
                is_due = due and not self._backlog.unsent
                if self._backlog.is_on_disk and now >= self._next_keep_at:
                    is_due = True
                if not large and not is_due:
                    return
            sealed = self._outbox.take()
            if sealed is None:
                return
            told = self._finite.look(sealed.batch)
            if told is not None:
                logger.warning("ranktap: rank %d: %s", self._hello.rank, told)
            self._backlog.push(sealed)
            self._next_keep_at = now + SPOOL_INTERVAL_S
            self._send()
        self._more = True

    # -- the spool --------------------------------------------------------------------

    def _prepare_spool(self) -> None:
        if self._spool is not None:
            try:
                self._spool.prepare()
            except OSError as error:
                self._tell_once("spool", "ranktap: the spool cannot be used yet: %s", error)

    def _is_silent(self, now: float) -> bool:
        """Whether there is no daemon, as far as is known."""
        return self._is_absent or now - self._heard_at > limits.ANSWER_TIMEOUT_S

    def _keep(self, now: float) -> None:
        """Put on disk what has waited too long, and what memory should not hold."""
        if self._closing.is_set():
            self._keep_rest()
            return
        if not len(self._backlog):
            self._moved_at = now
        elif (
            self._backlog.is_on_disk
            or self._backlog.is_too_large
            or self._is_absent
            or now - self._moved_at > SPOOL_AFTER_S
        ):
            self._backlog.keep(now, time.time())

    def _keep_rest(self) -> None:
        """Put all that is left on disk."""
        if self._spool is None:
            return
        try:
            while (sealed := self._outbox.take()) is not None:
                self._backlog.push(sealed)
            if self._backlog.kept < self._backlog.last_number:
                self._backlog.keep(time.monotonic(), time.time(), is_last=True)
        # The same as in `_run`, which may have come here because of it.
        except Exception:
            logger.exception("ranktap: what is left cannot be put into the spool")
        self._kept.set()

    # -- out --------------------------------------------------------------------------

    def _send(self) -> None:
        self._blocked = False
        while self._welcomed and self._socket is not None:
            now = time.monotonic()
            numbered = self._backlog.due(now)
            if numbered is None:
                return
            parts = self._frames_of(numbered.number, numbered.batch, now)
            try:
                # pyzmq copies frames under 64 KiB and refers to larger ones.
                self._socket.send_multipart(parts, zmq.NOBLOCK, copy=False)  # type: ignore[arg-type]
            except zmq.Again:
                self._backlog.unsend()
                self._blocked = True
                return

    def _frames_of(self, number: int, item: Sealed | Loaded, now: float) -> list[Buffer]:
        if isinstance(item, Loaded):
            return item.parts
        item.batch.clock = self._clock.estimate(now)
        return frames.pack_batch(self._hello.session, number, item.batch)

    def _send_control(self, parts: list[Any]) -> bool:
        try:
            if self._socket is not None:
                self._socket.send_multipart(parts, zmq.NOBLOCK)
                return True
        except zmq.Again:
            self._blocked = True
        return False

    def _probe(self, now: float) -> None:
        """Say that we are there, and ask whether the daemon is."""
        if not self._welcomed:
            return
        silence = now - max(self._last_heard, self._last_probe)
        # Where many send, acknowledgements take longer, and beats would be most of what is sent.
        probe_s = max(PROBE_INTERVAL_S, min(self._pacing.interval_s, limits.BEAT_INTERVAL_S))
        is_silent = silence > (probe_s if len(self._backlog) else limits.BEAT_INTERVAL_S)
        if is_silent or now - self._last_probe > CLOCK_INTERVAL_S:
            self._last_probe = now
            self._is_asked = self._send_control(frames.pack_beat(self._hello.session, now))

    # -- the connection ---------------------------------------------------------------

    def _connect(self) -> None:
        self._disconnect()
        self._last_heard = time.monotonic()
        try:
            address = self._locate()
        except OSError as error:
            self._is_absent = True
            self._tell_once("locate", "ranktap: %s; training goes on", error)
            return
        self._where = address.endpoint
        # Nobody listens: with a spool that need not be waited for. libzmq goes on trying.
        path = self._where.removeprefix("ipc://")
        self._is_absent = (
            self._spool is not None and path != self._where and not answers(Path(path))
        )
        assert self._context is not None
        dealer = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        # Our own messages besides batches need a place too.
        dealer.setsockopt(zmq.SNDHWM, limits.IN_FLIGHT_MESSAGES + 16)
        dealer.setsockopt(zmq.RECONNECT_IVL, 50)
        dealer.setsockopt(zmq.RECONNECT_IVL_MAX, 1_000)
        dealer.setsockopt(zmq.HEARTBEAT_IVL, 5_000)
        dealer.setsockopt(zmq.HEARTBEAT_TIMEOUT, 30_000)
        if "[" in self._where:
            dealer.setsockopt(zmq.IPV6, 1)
        self._socket = dealer
        if self._where.startswith("tcp://"):
            self._door = keys.Door(dealer, self._where, address.keys or self._keys)
        try:
            dealer.connect(self._where)
        except zmq.ZMQError as error:
            self._disconnect()
            self._tell_once("connect", "ranktap: %s: %s", self._where, error.strerror)
            return
        self._say_hello()

    def _hear_door(self, now: float) -> None:
        why = self._door.refusal() if self._door is not None else None
        if why is not None:
            self._tell_once("door", "ranktap: %s; training goes on, and it is tried again", why)
            self._disconnect()
            self._not_before = now + REFUSED_RETRY_S * random.uniform(0.5, 1.5)
            self._last_heard = -math.inf  # then, and not after the time without an answer

    def _say_hello(self) -> None:
        self._welcomed = self._is_put_off = False
        self._bye_sent = False
        self._hello.first = self._backlog.first_unacknowledged
        self._hello.source = Source.BACKLOG if self._backlog.is_on_disk else Source.LIVE
        self._send_control(frames.pack_hello(self._hello))

    def _disconnect(self) -> None:
        self._welcomed = self._is_asked = False
        self._backlog.rewind()
        if self._door is not None:
            self._door.close()
            self._door = None
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None

    def _stop(self, reason: str, *, is_replaced: bool = False) -> None:
        """There is nothing to be had from this daemon."""
        if self._spool is not None and not is_replaced:
            logger.error("ranktap: %s; what this rank logs goes to the spool alone", reason)
            self._is_known, self._is_absent, self._not_before = False, True, math.inf
            self._disconnect()
            return
        logger.error("ranktap: %s; nothing more is logged by this rank", reason)
        self._outbox.close()
        self._closing.set()
        self._is_known = False
        self._disconnect()

    def _tell_once(self, key: str, text: str, *values: object) -> None:
        if key not in self._told and len(self._told) < 100:
            self._told.add(key)
            logger.warning(text, *values)
