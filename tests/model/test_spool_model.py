"""Exactly once and in order, through memory, disk, a full disk, reconnects and kills.

A rank's backlog with a small memory and a real spool sends to a daemon that takes only the next
number. Rules log, write out, send, lose messages and answers, fill the disk (a write gets half
of its bytes in, then ENOSPC) and make room again, and kill the process, perhaps in the middle
of a write; then what it left is sent as `ranktap sync` does, broken off and begun again.

The oracle is the list of what was pushed. The daemon has a beginning of it, without a gap; and
after a kill and a sync all that had been kept.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ranktap.backlog import RETRY_S, Backlog
from ranktap.outbox import Outbox
from ranktap.spool import Spool
from ranktap.unsent import open_session
from ranktap_wire.delivery import ReceiveWindow, Verdict
from tests.unit.test_backlog import SESSION, hello, number_in, sealed

SEGMENT_BYTES = 1_500
"""Some batches: segments begin, are passed, and are deleted."""


class SpoolMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="ranktap-model-"))
        self.is_full = False
        self.is_half_written = False
        self.real_writev = os.writev
        self.patch = mock.patch("os.writev", self._writev)
        self.patch.start()
        self.spool = Spool(self.root, hello(), segment_bytes=SEGMENT_BYTES)
        self.outbox = Outbox(1 << 20)
        self.backlog = Backlog(self.outbox, self.spool)
        self.now = 0.0
        self.pushed = 0
        self.kept = 0
        self.daemon = ReceiveWindow()
        self.under_way: list[tuple[int, int]] = []
        self.is_alive = True

    def teardown(self) -> None:
        if hasattr(self, "root"):
            self.patch.stop()
            if self.is_alive:
                self.die(0)
            self.sync(None)
            shutil.rmtree(self.root)

    def _writev(self, fd: int, buffers: list[memoryview]) -> int:
        if not self.is_full:
            return self.real_writev(fd, buffers)
        if self.is_half_written:
            self.is_half_written = False
            raise OSError(errno.ENOSPC, "No space left on device")
        self.is_half_written = True
        first = memoryview(buffers[0]).cast("B")
        return self.real_writev(fd, [first[: max(1, len(first) // 2)]])

    # -- the rank -----------------------------------------------------------------------

    @precondition(lambda self: self.is_alive)
    @rule(count=st.integers(1, 5), rows=st.sampled_from([1, 1, 20]))
    def log(self, count: int, rows: int) -> None:
        for _ in range(count):
            self.pushed += 1
            self.backlog.push(sealed(self.pushed, rows))

    @precondition(lambda self: self.is_alive)
    @rule()
    def keep(self) -> None:
        self.backlog.keep(self.now, 1.0)
        self.kept = max(self.kept, self.backlog.kept)
        if not self.is_full and self.now >= self.backlog._write_at:
            assert self.backlog.kept == self.pushed

    @precondition(lambda self: self.is_alive)
    @rule(count=st.integers(1, 10))
    def send(self, count: int) -> None:
        for _ in range(count):
            numbered = self.backlog.due(self.now)
            if numbered is None:
                return
            self.under_way.append((numbered.number, number_in(numbered.batch)))

    @precondition(lambda self: self.is_alive)
    @rule()
    def connect_anew(self) -> None:
        """What is under way is lost; the welcome says what has arrived."""
        self.under_way.clear()
        self.backlog.rewind()
        self.daemon.reopened(self.backlog.first_unacknowledged)
        self.backlog.acknowledged(self.daemon.last)

    # -- the daemon ---------------------------------------------------------------------

    @rule(count=st.integers(1, 10), answers=st.booleans())
    def arrive(self, count: int, answers: bool) -> None:
        for number, content in self.under_way[:count]:
            if self.daemon.judge(number) is Verdict.NEXT:
                assert content == number, "the batch that has this number, whole"
                self.daemon.accept(number)
        del self.under_way[:count]
        if answers and self.is_alive:
            self.backlog.acknowledged(self.daemon.last)

    # -- what happens to them -----------------------------------------------------------

    @rule()
    def fill_the_disk(self) -> None:
        self.is_full = True

    @rule()
    def make_room(self) -> None:
        self.is_full = self.is_half_written = False
        self.now += RETRY_S

    @precondition(lambda self: self.is_alive)
    @rule(torn_bytes=st.integers(0, 60))
    def die(self, torn_bytes: int) -> None:
        """SIGKILL, perhaps in the middle of a write."""
        self.is_alive = False
        self.under_way.clear()
        self.kept = max(self.kept, self.backlog.kept)
        self.backlog.close()
        last = max(self.spool.directory.glob("*.journal"), default=None)
        if last is not None and torn_bytes:
            content = last.read_bytes()
            with open(last, "ab") as file:
                file.write(content[32 : 32 + torn_bytes])

    @precondition(lambda self: not self.is_alive)
    @rule(stop_after=st.none() | st.integers(0, 5))
    def sync(self, stop_after: int | None) -> None:
        """Send what is left, or some of it."""
        self.is_full = False
        if not self.spool.directory.exists():
            return
        session = open_session(self.spool.directory)
        if session is None:
            return
        assert session.reader is not None and session.hello.session == SESSION
        sent = 0
        assert session.first is not None and session.first <= self.daemon.last + 1
        while stop_after is None or sent < stop_after:
            loaded = session.reader.next(session.upto)
            if loaded is None:
                break
            if self.daemon.judge(loaded.number) is Verdict.NEXT:
                assert number_in(loaded) == loaded.number
                self.daemon.accept(loaded.number)
            session.reader.forget(self.daemon.last)
            sent += 1
        if stop_after is None:
            assert session.reader.lost == 0
            session.remove()
            assert not self.spool.directory.exists()
            assert self.daemon.last >= self.kept
        session.close()

    @invariant()
    def the_daemon_has_a_beginning_and_nothing_is_forgotten_that_it_lacks(self) -> None:
        if not hasattr(self, "daemon"):
            return
        assert self.daemon.last <= self.pushed
        if self.is_alive:
            assert self.backlog.first_unacknowledged <= self.daemon.last + 1
            assert len(self.backlog) == self.pushed + 1 - self.backlog.first_unacknowledged


def test_what_was_pushed_arrives_in_order_once_and_what_was_kept_survives() -> None:
    run_state_machine_as_test(
        SpoolMachine,
        settings=settings(max_examples=60, stateful_step_count=40, deadline=None),
    )
