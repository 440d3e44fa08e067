"""Ten thousand sessions that connect, say something or nothing, and vanish."""

from __future__ import annotations

import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import zmq

import ranktap
from ranktap_wire import frames, limits
from ranktap_wire.messages import Ack
from tests.support import ledger, messages
from tests.support.daemons import DaemonProcess
from tests.support.event_files import scalar_points
from tests.support.shown import assert_shown
from tests.support.strangers import a_batch, free_port, metrics, points_of
from tests.support.waiting import wait_for

SESSIONS = 10_000
AT_ONCE = 100
RUNS = [f"crowd/{number}" for number in range(5)]
RANKS = 500
RSS_BYTES = 40 * limits.MIB
"""What the main process may grow by."""


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 4 * AT_ONCE)
    yield context
    context.destroy(linger=0)


class _Visitor:
    """A session; it stays until it is acknowledged, or not even that long."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, number: int) -> None:
        self.run, self.rank = RUNS[number % len(RUNS)], number % RANKS
        self.stays = number % 4 != 0
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(endpoint)
        session = random.Random(number).randbytes(16)
        hello = messages.hello(session=session, run=self.run, rank=self.rank, world_size=RANKS)
        self._socket.send_multipart(frames.pack_hello(hello))
        self._socket.send_multipart(frames.pack_batch(session, 1, _batch()))

    def is_done(self) -> bool:
        while self.stays and self._socket.poll(0):
            if isinstance(frames.read_answer(self._socket.recv_multipart()), Ack):
                return True
        return not self.stays

    def vanish(self) -> None:
        self._socket.close(linger=0)


def _batch():  # type: ignore[no-untyped-def]
    return frames.read_batch(messages.as_bytes(a_batch(bytes(16), 1)))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_sessions_that_vanish_leave_memory_descriptors_and_files_as_they_were(
    start_daemon: Callable[..., DaemonProcess], context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    port = free_port()
    program = [sys.executable, "-m", "tests.support.impatient_daemon"]
    daemon = start_daemon("--metrics", f"127.0.0.1:{port}", program=program)
    process = psutil.Process(daemon.pid)
    healthy = ranktap.init("healthy", endpoint=daemon.endpoint, rank=0, world_size=1)
    ledger.log_step(healthy, 0)
    assert healthy.flush()
    descriptors = process.num_fds()
    _visit(context, daemon.endpoint, range(AT_ONCE))  # what every process takes once
    rss = process.memory_info().rss
    began = time.monotonic()
    acknowledged = Counter({("healthy", 0): 0})
    for begin in range(AT_ONCE, SESSIONS, AT_ONCE):
        acknowledged += _visit(context, daemon.endpoint, range(begin, begin + AT_ONCE))
        ledger.log_step(healthy, begin // AT_ONCE)
        with socket.socket(socket.AF_UNIX) as raw:  # and one that never says what it is
            raw.connect(daemon.endpoint.removeprefix("ipc://"))
            raw.send(b"\xff" * (begin % 13))
    took = time.monotonic() - began
    peak = process.memory_info().rss
    wait_for(lambda: metrics(port)["ranktapd_sessions", ""] <= 1, "all to be given up", 60)
    wait_for(
        lambda: process.num_fds() <= descriptors + 2 * len(RUNS) + 4, "descriptors to come back", 60
    )
    grown = process.memory_info().rss - rss
    print(
        f"{SESSIONS} sessions in {took:.0f} s; the main process grew by {grown / limits.MIB:.1f} "
        f"MiB ({(peak - rss) / limits.MIB:.1f} at the end of the crowd), "
        f"{process.num_fds() - descriptors:+d} descriptors"
    )
    assert grown < RSS_BYTES
    assert healthy.close()
    # Nothing is left of the runs in the daemon, and of each of them a few files on the disk.
    wait_for(lambda: metrics(port)["ranktapd_runs", ""] == 0, "all runs to rest", 120)
    assert daemon.workers() == []
    state = Path(daemon.logdir) / ".ranktap" / "runs"
    files = [path for path in state.rglob("*") if path.is_file()]
    assert len(files) <= 8 * (len(RUNS) + 1), files
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.log
    steps = range(SESSIONS // AT_ONCE)
    assert_shown(Path(daemon.logdir) / "healthy", ledger.expected_run(1, steps))
    for run in RUNS:
        found = scalar_points(Path(daemon.logdir) / run)
        for rank in range(RANKS):
            points = found.get(f"ranks/value/rank{rank}", [])
            batches = len(points) // 3
            # Who was told that it is safe is there; who did not stay may be.
            assert points == points_of([1] * batches)
            visits = sum(RUNS[number % len(RUNS)] == run for number in range(rank, SESSIONS, RANKS))
            assert acknowledged[run, rank] <= batches <= visits, (run, rank)


def _visit(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, numbers: range
) -> Counter[tuple[str, int]]:
    """How many of each run and rank were acknowledged."""
    visitors = [_Visitor(context, endpoint, number) for number in numbers]
    left = list(visitors)

    def are_done() -> bool:
        left[:] = [each for each in left if not each.is_done()]
        return not left

    wait_for(are_done, "acknowledgements")
    for each in visitors:
        each.vanish()
    return Counter((each.run, each.rank) for each in visitors if each.stays)
