"""Many ranks on one daemon: it asks for longer batches, and gets as many messages as it takes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import ranktap
from ranktap.tap import Tap
from ranktap_wire import limits
from ranktapd.crowd import BATCHES_PER_S, GATHER_S
from tests.support import many_ranks
from tests.support.daemons import DaemonProcess
from tests.support.event_files import scalar_points
from tests.support.strangers import free_port, metrics

StartDaemon = Callable[..., DaemonProcess]
RANKS = 4
INTERVAL_S = 0.5
"""What `crowded_daemon` asks of that many."""


def batches(port: int) -> float:
    return metrics(port).get(("ranktapd_batches_total", "next"), 0.0)


@pytest.fixture
def crowd(start_daemon: StartDaemon) -> Iterator[tuple[DaemonProcess, int, list[Tap]]]:
    """Taps that have heard that they are many: the daemon, the port of its metrics, they."""
    port = free_port()
    program = [sys.executable, "-m", "tests.support.crowded_daemon"]
    daemon = start_daemon("--metrics", f"127.0.0.1:{port}", program=program)
    with ExitStack() as open_taps:
        taps = [
            open_taps.enter_context(
                ranktap.init("crowd", endpoint=daemon.endpoint, rank=rank, world_size=RANKS)
            )
            for rank in range(RANKS)
        ]
        # Of the first round the first ranks are asked for less than the last one.
        for number in range(2):
            for tap in taps:
                tap.scalar("begins", 0.0, step=number)
                assert tap.flush()
        yield daemon, port, taps


def test_taps_collect_for_as_long_as_they_are_asked_and_lose_nothing(
    crowd: tuple[DaemonProcess, int, list[Tap]],
) -> None:
    daemon, port, taps = crowd
    before, began, step = batches(port), time.monotonic(), 0
    while batches(port) - before < 6 * RANKS:
        for tap in taps:
            tap.scalar("loss", float(step), step=step)
        step += 1
        time.sleep(0.005)  # what a step takes
    took_s = time.monotonic() - began
    # Unasked they make as many in a tenth of the time.
    assert batches(port) - before <= RANKS * (took_s / INTERVAL_S + 2)
    for tap in taps:
        assert tap.close()
    assert daemon.stop() == 0
    points = scalar_points(daemon.logdir / "crowd")
    assert points["loss"] == [(number, float(number)) for number in range(step)]
    assert not {"ranktap/late", "ranktap/dropped"} & points.keys()


def test_what_is_flushed_and_what_is_large_waits_for_nothing(
    crowd: tuple[DaemonProcess, int, list[Tap]],
) -> None:
    _, port, taps = crowd
    tap = taps[0]
    count = 20
    before, began = batches(port), time.monotonic()
    for step in range(count):
        tap.scalar("loss", 0.0, step=step)
        assert tap.flush()
    assert batches(port) - before >= count
    assert time.monotonic() - began < count * INTERVAL_S

    large = np.zeros((3, 1_024, 512), np.uint8)
    assert large.nbytes > limits.BATCH_TARGET_BYTES
    began = time.monotonic()
    for step in range(count):
        before = batches(port)
        tap.image("large", large, step=step)
        while batches(port) == before:
            pass
    assert time.monotonic() - began < count * INTERVAL_S


def test_two_hundred_ranks_are_as_many_batches_and_syncs_as_one_daemon_takes(
    start_daemon: StartDaemon,
) -> None:
    ranks, seconds, scalars_per_s = 200, 3.0, 100.0
    port = free_port()
    daemon = start_daemon("--metrics", f"127.0.0.1:{port}")
    arguments = [daemon.endpoint, "crowd", 0, ranks, ranks, seconds, scalars_per_s]
    told = subprocess.run(
        [sys.executable, Path(many_ranks.__file__), *map(str, arguments)],
        input="go\n", capture_output=True, text=True, timeout=50,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    report = json.loads(told.stdout.splitlines()[-1])
    # Until they are told, which takes as long as the machine takes, they send as they do unasked.
    assert report["interval_s"] == ranks / BATCHES_PER_S
    assert report["paced"] <= BATCHES_PER_S * report["took_s"] + ranks
    # And as many syncs as rounds that gather, not one for the few that are there each time; their
    # hellos, goodbyes, and what comes before they are a crowd besides.
    commits = metrics(port)["ranktapd_commits_total", ""]
    assert commits <= report["took_s"] / GATHER_S + 3 * ranks
    assert daemon.stop() == 0
    points = scalar_points(daemon.logdir / "crowd")
    steps = report["steps"]
    for number in range(many_ranks.TAGS):
        expected = [(step, step + (ranks - 1) / 2) for step in range(steps)]
        assert points[f"tag{number}"] == expected
