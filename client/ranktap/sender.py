"""The sender: one daemon thread that sends batches, and sends them again.

    outbox --take--> batch --push--> Backlog --due--> Connection ==> ranktapd
                                      |   ^                             |
                                    spool +--- acknowledged(n) <- ack n +

It wakes every 50 ms, or earlier when an answer, a megabyte of blobs, or a flush is
there. What was logged becomes a batch then, or less often when the daemon asks for that.
Nothing that happens here reaches the training thread: errors of the network are retried
for ever, errors of the protocol are told to the logger and counted. Everything is held
until the daemon has it on disk, as a connection may lose what it had taken.
"""

from __future__ import annotations

import logging
import math
import os
import shlex
import threading
import time
from collections.abc import Callable

from ranktap import about, keys
from ranktap.backlog import Backlog, Count
from ranktap.connection import Connection
from ranktap.finite import FiniteWatch
from ranktap.flushes import Flushes
from ranktap.notices import Notices
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
        # Has a thread rather than being one: Thread's own private names are many, and each
        # release has others.
        self._thread = threading.Thread(target=self._run, name="ranktap-sender", daemon=True)
        self._outbox = outbox
        self._hello = hello
        self._spool = spool
        self._backlog = Backlog(outbox, spool)
        self._flushes = Flushes(outbox, self._backlog)
        self._notices = Notices()
        self._connection = Connection(
            hello, locate, self._backlog, self._notices, has_spool=spool is not None
        )
        self._closing = threading.Event()
        self.stopped = threading.Event()
        """Set when the thread has ended, for whatever reason."""
        self._kept = threading.Event()
        """Set when the tap is closed and all that is left of it is in the spool."""
        self._moved_at = time.monotonic()
        """When something was acknowledged, or nothing waited, for the last time."""
        self._next_keep_at = 0.0
        self._goodbye_until = math.inf
        self._said_goodbye = False
        self._is_known = False
        """A daemon has this session, and would wait for it."""
        self._is_woken = False
        """A byte is in the pipe, or is about to be."""
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._refused: set[int] = set()
        """Batches that break a rule; they are acknowledged like others, but were not kept."""
        self._finite = FiniteWatch()
        self._pacing = Pacing()
        self._more = False

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
            self._connection.open()
            if self._hello.rank == 0:
                about.add_commit(self._hello.about)
            self._prepare_spool()
            self._connection.connect()
            while not self._finished():
                self._turn()
        # A bug here must not end the training, and must not go unheard.
        except Exception:
            logger.exception("ranktap: the sender failed; nothing more is logged by this rank")
        finally:
            self._outbox.close()
            self._connection.disconnect()
            self._keep_rest()
            self._backlog.close()
            self._connection.close()
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
        self._connection.hear_door(now)
        self._seal(now)
        self._keep(now)
        self._send()
        self._flushes.settle(self._backlog.kept if self._connection.is_silent(now) else 0)
        self._connection.probe(now, self._pacing.interval_s)
        self._connection.say_caught_up()
        if self._closing.is_set() and not self._outbox and not len(self._backlog):
            self._connection.say_bye()
        self._connection.renew_if_silent(now)

    def _wait(self) -> None:
        pause_s = 0.0 if self._more else max(0.0, self._pacing.next_turn_at - time.monotonic())
        if self._connection.wait(self._wake_read, pause_s, listens=self._awaits_answer()):
            os.read(self._wake_read, 4_096)
            # Behind the read: who finds it set has logged before what follows here looks.
            self._is_woken = False

    def _awaits_answer(self) -> bool:
        """Whether something waits for an answer; else it is read at the next turn.

        With a few scalars a step every batch would cost two turns of the interpreter: one to
        send it, and one soon after to hear that it has arrived.
        """
        return (
            self._connection.awaits_answer
            or bool(self._flushes)
            or self._closing.is_set()
            or self._backlog.held_bytes >= limits.BATCH_TARGET_BYTES
            or self._backlog.is_on_disk
        )

    def _receive(self) -> None:
        try:
            while (answer := self._connection.receive()) is not None:
                self._hear(answer)
        except FrameError as error:
            self._stop(error.text)

    def _hear(self, answer: DaemonMessage) -> None:
        match answer:
            case Ack():
                self._pacing.asked(answer.interval)
                if answer.sent is not None:
                    self._connection.hear_clock(answer.sent, answer)
                if self._connection.is_welcomed:
                    self._release(answer.number)
            case Welcome():
                self._release(answer.last)
                self._backlog.rewind()
                self._connection.welcome()
                self._is_known = True
                if self._spool is not None:
                    self._spool.reached = True
                self._pacing.asked(answer.interval)
                if answer.run is not None:
                    self._notices.tell_once(
                        "run", "ranktap: another job writes to run %r; this one is run %r",
                        self._hello.run, answer.run,
                    )  # fmt: skip
            case ByeAnswer():
                self._said_goodbye = True
            case Error():
                self._hear_error(answer)

    def _hear_error(self, error: Error) -> None:
        if error.code == Code.UNKNOWN_SESSION:
            # Every message that it got before our hello is answered so; one hello serves all.
            if self._connection.is_welcomed:
                self._connection.say_hello()
        elif error.code == Code.GAP and error.number is not None:
            self._release(error.number)
            self._backlog.rewind()
        elif error.number is not None:
            self._refused.add(error.number)
            self._notices.tell_once(error.text, "ranktap: ranktapd refused a batch: %s", error.text)
        elif error.code in (Code.PROTOCOL, Code.REFUSED, Code.CONFLICT, Code.LIMIT):
            self._stop(error.text, is_replaced=error.code == Code.CONFLICT)
        else:
            self._connection.put_off()
            self._notices.tell_once(error.text, "ranktap: ranktapd says: %s", error.text)

    def _release(self, number: int) -> None:
        if number >= self._backlog.first_unacknowledged:
            self._moved_at = time.monotonic()
        for released in self._backlog.acknowledged(number):
            if released.number in self._refused:
                self._refused.remove(released.number)
                records = Count.of(released.batch)
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
                if now >= self._next_keep_at and self._backlog.is_on_disk:
                    is_due = True
                if not large and not is_due:
                    return
            sealed = self._outbox.take()
            if sealed is None:
                return
            # One batch has all scalars. Those that are logged while it is sent have time until the
            # next turn: every batch costs the training a change of threads.
            due = due and self._outbox.pending_blob_bytes > 0
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
                self._notices.tell_once("spool", "ranktap: the spool cannot be used yet: %s", error)

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
            or self._connection.is_absent
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
        connection = self._connection
        connection.is_blocked = False
        while connection.is_welcomed and self._backlog.unsent:
            now = time.monotonic()
            numbered = self._backlog.due(now)
            if numbered is None:
                return
            if not connection.send(self._frames_of(numbered.number, numbered.batch, now)):
                self._backlog.unsend()
                return

    def _frames_of(self, number: int, item: Sealed | Loaded, now: float) -> list[Buffer]:
        if isinstance(item, Loaded):
            return item.parts
        item.batch.clock = self._connection.clock.estimate(now)
        return frames.pack_batch(self._hello.session, number, item.batch)

    # -- the end ----------------------------------------------------------------------

    def _stop(self, reason: str, *, is_replaced: bool = False) -> None:
        """There is nothing to be had from this daemon."""
        self._is_known = False
        if self._spool is not None and not is_replaced:
            logger.error("ranktap: %s; what this rank logs goes to the spool alone", reason)
            self._connection.give_up()
            return
        logger.error("ranktap: %s; nothing more is logged by this rank", reason)
        self._outbox.close()
        self._closing.set()
        self._connection.disconnect()
