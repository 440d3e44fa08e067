"""A daemon that is not there, or does not answer: training does not notice, nobody is misled."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

import ranktap
from ranktap.outbox import BATCH_BYTES, ROW_BYTES
from tests.support.daemons import DaemonProcess
from tests.support.hoarding_rank import PICTURES, SCALARS
from tests.support.ledger import read_run
from tests.support.rank_program import ROOT
from tests.support.timing import SlowestCall
from tests.support.waiting import wait_for

DaemonStarter = Callable[..., DaemonProcess]
MEMORY_BYTES = 32 << 20
BESIDES_BYTES = 16 << 20
SLOWEST_CALL_S = 0.05


def test_memory_stays_under_its_bound_drops_are_told_and_what_is_held_arrives(
    tmp_path: Path, start_daemon: DaemonStarter
) -> None:
    daemon = start_daemon()
    assert daemon.stop() == 0
    rank = subprocess.Popen(
        [sys.executable, "-m", "tests.support.hoarding_rank", daemon.endpoint, str(MEMORY_BYTES)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert rank.stdin is not None and rank.stdout is not None
        full = json.loads(rank.stdout.readline())
        print(f"full: {full}")
        daemon.start()
        said, errors = rank.communicate("go on\n", timeout=90)
    finally:
        if rank.poll() is None:
            rank.kill()
            rank.wait()
    print(errors)
    assert rank.returncode == 0
    ended = json.loads(said)

    assert full["slowest_s"] < SLOWEST_CALL_S
    # The last scalars that fit become a batch or two, which take a little besides.
    assert full["held_bytes"] <= MEMORY_BYTES + 4 * BATCH_BYTES
    # What libzmq, the allocator and the interpreter take besides does not grow with it.
    assert full["grown_bytes"] < MEMORY_BYTES + BESIDES_BYTES
    dropped = full["dropped"]
    assert dropped["pictures"] > 0
    assert dropped["scalars"] > 0
    # Pictures had taken all that they may before the first scalar came.
    assert (SCALARS - dropped["scalars"]) * ROW_BYTES >= MEMORY_BYTES / 5

    assert ended["flushed"]
    assert not ended["closed"], "close() says that something was dropped"
    assert ended["dropped"] == dropped
    assert errors.count("records are being dropped") == 1
    told = f"{dropped['scalars']} scalars and {dropped['pictures']} other records were dropped"
    assert errors.count(told) == 1

    assert daemon.stop() == 0
    run = read_run(Path(daemon.logdir) / "hoard")
    assert run.scalars["ranktap/dropped"][-1][1] == dropped["scalars"] + dropped["pictures"]
    assert run.scalars["after"] == [(SCALARS, 1.0)]
    pictures = [point[0] for point in run.pictures["picture"]]
    assert pictures == list(range(PICTURES - dropped["pictures"]))
    steps = [step for step, _ in run.scalars["loss"]]
    assert len(steps) == SCALARS - dropped["scalars"]
    assert steps == sorted(set(steps))
    assert all(value == step for step, value in run.scalars["loss"])


def test_a_daemon_that_stands_still_for_seconds_loses_nothing_and_blocks_no_call(
    start_daemon: DaemonStarter, caplog: pytest.LogCaptureFixture
) -> None:
    daemon = start_daemon()
    process = psutil.Process(daemon.pid)
    picture = np.zeros((3, 64, 64), np.uint8)
    slowest = SlowestCall()
    step = 0
    with ranktap.init("job", endpoint=daemon.endpoint, rank=0, world_size=1) as tap:

        def log(count: int) -> None:
            nonlocal step
            for _ in range(count):
                began = time.perf_counter()
                tap.scalar("loss", float(step), step)
                if step % 10 == 0:
                    tap.image("picture", picture, step)
                slowest.add(time.perf_counter() - began)
                step += 1

        log(100)
        assert tap.flush()
        process.suspend()

        def is_silent() -> bool:
            log(10)
            return "no answer from" in caplog.text

        # Long enough that the connection is given up: what is on its way may arrive twice.
        wait_for(is_silent, "the client to notice")
        end = time.monotonic() + 4.0
        wait_for(lambda: is_silent() and time.monotonic() > end, "another connection to be tried")
        process.resume()
        log(100)
        assert tap.flush(timeout=30)
    print(f"{step} steps, {slowest}")
    assert slowest.blocked_s < SLOWEST_CALL_S
    assert daemon.stop() == 0
    run = read_run(Path(daemon.logdir) / "job")
    assert run.scalars == {"loss": [(at, float(at)) for at in range(step)]}
    assert [point[0] for point in run.pictures["picture"]] == list(range(0, step, 10))
