"""A thousand ranks on one daemon: nothing lost, memory flat. It prints what it has measured."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from tensorboard.compat.proto.event_pb2 import Event

from tests.support import many_ranks
from tests.support.daemons import DaemonProcess
from tests.support.event_files import event_files, scalar_points
from tests.support.waiting import wait_for

PROGRAM = Path(many_ranks.__file__)
RANKS, PROCESSES = 1_000, 2
SECONDS, SCALARS_PER_S = 150, 100
RUN = "thousand"
SETTLED_S = 90
"""What grows until then: libzmq keeps two chunks of 256 frames of 64 bytes for what comes from each
connection, which are touched as frames pass: seven a batch, a batch a second, so in 73 s. The two
chunks for what goes there take 512 acknowledgements, which is 64 KiB a second for all of them."""
SETTLED_MIB = 12
"""What may be added to after that: the acknowledgements' 4 MiB, and what waits at a time."""
CONNECTION_KIB = 300
"""What a connection takes at most: those 64 KiB, buffers, and as many messages as may wait for a
daemon that is behind (RECEIVE_HIGH_WATER_MARK), each of these in a buffer of 8 KiB."""


class Usage:
    """CPU and memory of the daemon and its workers, taken every second."""

    def __init__(self, daemon: DaemonProcess) -> None:
        self.samples: list[tuple[float, dict[str, tuple[float, int]]]] = []
        self._daemon = daemon
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(1.0):
            now = {}
            pairs = [("main", psutil.Process(self._daemon.pid))]
            pairs += [("worker", worker) for worker in self._daemon.workers()]
            for name, process in pairs:
                try:
                    times, memory = process.cpu_times(), process.memory_info()
                except psutil.NoSuchProcess:
                    continue
                now[name] = (times.user + times.system, memory.rss)
            self.samples.append((time.monotonic(), now))

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def cpu(self, name: str) -> float:
        """Share of a core."""
        known = [(when, each[name][0]) for when, each in self.samples if name in each]
        (first, before), (last, after) = known[0], known[-1]
        return (after - before) / (last - first)

    def rss_mib(self, name: str) -> list[float]:
        return [each[name][1] / (1 << 20) for _, each in self.samples if name in each]


class Ages:
    """How old each step's merged point of one tag was when it could first be read."""

    def __init__(self, daemon: DaemonProcess) -> None:
        self.seconds: list[float] = []
        self._directory = daemon.logdir / RUN
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        (path,) = wait_for(lambda: event_files(self._directory), "the event file", 30)
        read = path.stat().st_size
        while not self._over.wait(0.05):
            with open(path, "rb") as file:
                file.seek(read)
                data = file.read()
            now = time.time()
            whole, walls = walls_in(data)
            read += whole
            self.seconds += [now - wall for wall in walls]

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_ranks_lose_nothing_and_memory_stays_flat(
    start_daemon: Callable[..., DaemonProcess],
) -> None:
    daemon = start_daemon()
    each = RANKS // PROCESSES
    senders = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), daemon.endpoint, RUN, str(first), str(each), str(RANKS),
             str(SECONDS), str(SCALARS_PER_S)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for first in range(0, RANKS, each)
    ]  # fmt: skip
    for sender in senders:
        assert sender.stdout is not None and sender.stdin is not None
        assert sender.stdout.readline() == "ready\n"
    usage = Usage(daemon)
    for sender in senders:
        assert sender.stdin is not None
        sender.stdin.write("go\n")
        sender.stdin.flush()
    ages = Ages(daemon)
    told = []
    for sender in senders:
        assert sender.stdout is not None and sender.stdin is not None
        told.append(json.loads(sender.stdout.readline()))
        assert sender.wait(60) == 0
        sender.stdin.close()
        sender.stdout.close()
    usage.stop()
    ages.stop()
    assert daemon.stop(timeout_s=60) == 0
    waits = np.array([report["waits_s"] for report in told]).max(axis=0)
    print(
        f"\n{RANKS} ranks, {SCALARS_PER_S} scalars a second each\n"
        f"main {usage.cpu('main'):.2f} of a core, worker {usage.cpu('worker'):.2f}\n"
        f"MiB of main {spread(usage.rss_mib('main'))}, of the worker "
        f"{spread(usage.rss_mib('worker'))}\n"
        f"batch until acknowledged: median {waits[0]:.3f} s, 99th percentile {waits[1]:.3f} s, "
        f"worst {waits[2]:.3f} s\n"
        "from a step's wall time until its point can be read: "
        f"median {np.median(ages.seconds):.3f} s, "
        f"99th percentile {np.percentile(ages.seconds, 99):.3f} s\n"
        f"sent {[report['sent'] for report in told]} of {[report['batches'] for report in told]}"
    )

    steps = round(SECONDS * SCALARS_PER_S / many_ranks.TAGS)
    assert [report["steps"] for report in told] == [steps] * PROCESSES
    points = scalar_points(daemon.logdir / RUN)
    for number in range(many_ranks.TAGS):
        tag = f"tag{number}"
        for name, offset in ((tag, (RANKS - 1) / 2), (f"ranks/{tag}/min", 0),
                             (f"ranks/{tag}/max", RANKS - 1)):  # fmt: skip
            assert points.pop(name) == [(step, step + offset) for step in range(steps)], name
    assert points == {}, "nothing was late and nothing dropped"
    assert usage.cpu("main") + usage.cpu("worker") < 1.0
    for name in ("main", "worker"):
        rss = usage.rss_mib(name)
        assert max(rss) < rss[0] + RANKS * CONNECTION_KIB / 1024, name
        before, after = rss[:SETTLED_S], rss[SETTLED_S:]
        assert max(after) < max(before) + SETTLED_MIB, name


def spread(values: list[float]) -> str:
    third = len(values) // 3
    parts = (values[:third], values[third : 2 * third], values[2 * third :])
    return ", ".join(f"{max(part):.0f}" for part in parts) + " (largest of each third)"


def walls_in(data: bytes) -> tuple[int, list[float]]:
    """How much of it is whole records, and the wall times of one tag's among them."""
    walls: list[float] = []
    at = 0
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        if at + 16 + length > len(data):
            break
        event = Event.FromString(data[at + 12 : at + 12 + length])
        walls += [event.wall_time for value in event.summary.value if value.tag == "tag0"]
        at += 16 + length
    return at, walls
