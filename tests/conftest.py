"""Fixtures: real daemons and boards, ended whatever a test does."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.boards import Board
from tests.support.daemons import DaemonProcess

# A shell ignores Ctrl-C for what it runs in the background, and every process of a test would
# inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def start_daemon(tmp_path: Path) -> Iterator[Callable[..., DaemonProcess]]:
    """Start a daemon, on `tmp_path/runs` unless told; its log is shown when the test fails."""
    started: list[DaemonProcess] = []

    def start(
        *arguments: str, wait: bool = True, logdir: Path | None = None, **named: object
    ) -> DaemonProcess:
        daemon = DaemonProcess(logdir or tmp_path / "runs", *arguments, **named)
        started.append(daemon)
        return daemon.start(wait=wait)

    yield start
    for daemon in started:
        print(daemon.log)
        daemon.close()


@pytest.fixture
def start_board() -> Iterator[Callable[..., Board]]:
    """Start a TensorBoard."""
    started: list[Board] = []

    def start(logdir: Path, *, fast: bool) -> Board:
        board = Board(logdir, fast=fast)
        started.append(board)
        return board

    yield start
    for board in started:
        print(board.log)
        board.close()
