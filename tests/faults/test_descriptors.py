"""A daemon that runs out of file descriptors, because strangers hold them all."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

import ranktap
from tests.support import ledger
from tests.support.daemons import DaemonProcess
from tests.support.kept_running import end, kept_running
from tests.support.shown import assert_shown, read_logged
from tests.support.strangers import free_port
from tests.support.waiting import wait_for

DaemonStarter = Callable[..., DaemonProcess]
DESCRIPTORS = 96
PROGRAM = [
    "/bin/sh", "-c", f'ulimit -n {DESCRIPTORS}; exec "$@"', "sh", sys.executable, "-m", "ranktapd",
]  # fmt: skip


@contextmanager
def _crowd(family: socket.AddressFamily, address: object) -> Iterator[list[socket.socket]]:
    """More connections than the daemon can have."""
    crowd: list[socket.socket] = []
    try:
        for _ in range(2 * DESCRIPTORS):
            crowd.append(socket.socket(family))
            crowd[-1].setblocking(False)
            crowd[-1].connect_ex(address)  # type: ignore[arg-type]
        yield crowd
    finally:
        for each in crowd:
            each.close()


def _log(tap: ranktap.Tap, steps: range) -> None:
    for step in steps:
        ledger.log_step(tap, step)


def test_out_of_descriptors_on_tcp_who_is_connected_goes_on_and_others_wait(
    start_daemon: DaemonStarter,
) -> None:
    port = free_port()
    endpoint = f"tcp://127.0.0.1:{port}"
    daemon = start_daemon("--listen", endpoint, program=PROGRAM)
    taps = [ranktap.init("old", endpoint=endpoint, rank=0, world_size=1)]
    _log(taps[0], range(20))
    assert taps[0].flush()
    process = psutil.Process(daemon.pid)
    before = process.num_fds()
    with _crowd(socket.AF_INET, ("127.0.0.1", port)):
        wait_for(lambda: process.num_fds() >= DESCRIPTORS, "no descriptor to be left")
        _log(taps[0], range(20, 40))
        assert taps[0].flush(), "it has its connection and its journal"
        # No pipe can be had for another worker, no file for another run.
        (worker,) = daemon.workers()
        worker.kill()
        wait_for(lambda: "no worker can be started" in daemon.log, "the daemon to notice")
        wait_for(lambda: "journals cannot be weighed" in daemon.log, "it to go on without")
        taps.append(ranktap.init("new", endpoint=endpoint, rank=0, world_size=1))
        _log(taps[1], range(40))
        assert not taps[1].flush(timeout=0.5)
    _log(taps[0], range(40, 60))
    for tap in taps:
        assert tap.close(timeout=30)
    for run, steps in (("old", 60), ("new", 40)):
        expected = ledger.expected_run(1, range(steps))
        directory = Path(daemon.logdir) / run
        wait_for(lambda: read_logged(directory).points() >= expected.points(), run)  # noqa: B023
    wait_for(lambda: process.num_fds() <= before + 4, "the descriptors to come back")
    assert daemon.stop() == 0
    for run, steps in (("old", 60), ("new", 40)):
        assert_shown(Path(daemon.logdir) / run, ledger.expected_run(1, range(steps)))


def test_out_of_descriptors_on_ipc_libzmq_ends_the_daemon_and_nothing_is_lost(
    start_daemon: DaemonStarter,
) -> None:
    daemon = start_daemon(program=PROGRAM)
    events = Path(daemon.logdir) / "job"
    path = daemon.endpoint.removeprefix("ipc://")
    with kept_running(daemon) as statuses:
        tap = ranktap.init("job", endpoint=daemon.endpoint, rank=0, world_size=1)
        _log(tap, range(20))
        assert tap.flush()
        with _crowd(socket.AF_UNIX, path):
            wait_for(lambda: statuses, "the daemon to end")
            _log(tap, range(20, 40))
        _log(tap, range(40, 60))
        assert tap.close(timeout=30)
        expected = ledger.expected_run(1, range(60))
        wait_for(lambda: read_logged(events).points() >= expected.points(), "everything")
    end(daemon)
    assert set(statuses) == {-signal.SIGABRT}
    assert_shown(events, expected)
