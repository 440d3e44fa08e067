"""What ranks say besides what is logged: who they are, what time it is, and what went wrong."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Callable

import pytest

import ranktap
from ranktap_wire import frames
from ranktap_wire.records import Batch
from ranktapd.entries import BatchAccepted, SessionOpened, read_entry
from ranktapd.runs import RunPlace
from tests.support.daemons import DaemonProcess
from tests.support.folding import entries
from tests.support.waiting import wait_for

StartDaemon = Callable[..., DaemonProcess]


def journaled(daemon: DaemonProcess) -> tuple[list[SessionOpened], list[Batch]]:
    """The sessions and the batches in the journal of the run `run`."""
    place = RunPlace.of(daemon.logdir, daemon.logdir / ".ranktap", "run")
    opened, batches = [], []
    for entry in entries(place.journal):
        words = read_entry(entry.frames)
        if isinstance(words, SessionOpened):
            opened.append(words)
        elif isinstance(words, BatchAccepted):
            batches.append(frames.read_batch(entry.frames[1:]))
    return opened, batches


def test_who_a_rank_is_and_how_far_its_clock_is_off_are_journaled(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon()
    taps = [
        ranktap.init("run", endpoint=daemon.endpoint, rank=rank, world_size=2) for rank in range(2)
    ]
    for step in range(5):
        for tap in taps:
            tap.scalar("x", 1.0, step)
            assert tap.flush()
    for tap in taps:
        assert tap.close()
    assert daemon.stop() == 0
    opened, batches = journaled(daemon)
    first, other = sorted(opened, key=lambda words: words.rank)
    assert (first.host, first.pid) == (socket.gethostname(), os.getpid())
    for words in (first, other):
        assert words.about["ranktap"] == ranktap.__version__
        assert "job" not in words.about  # their place was given by hand
    # Of all ranks one looks which commit runs: they may be thousands, on one file system.
    assert "git" not in other.about
    # The first batch may be quicker than the first answer to a beat.
    known = [batch.clock for batch in batches if batch.clock is not None]
    assert len(known) >= 6
    for offset, error in known:
        assert abs(offset) <= error < 3.0


def test_a_number_that_is_not_finite_is_told_to_the_ranks_logger_once(
    start_daemon: StartDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    daemon = start_daemon()
    with (
        caplog.at_level(logging.WARNING, "ranktap"),
        ranktap.init("run", endpoint=daemon.endpoint, rank=1, world_size=2) as tap,
    ):
        for step in range(3):
            tap.scalar("loss", math.nan, step)
            assert tap.flush()
        wait_for(lambda: caplog.messages, "it to be told", 2.0)
    assert caplog.messages == ["ranktap: rank 1: not finite: 'loss' (nan) at step 0"]
