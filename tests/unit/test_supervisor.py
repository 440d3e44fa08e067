"""Workers that say nothing: real processes that hang, and one that only waits for room."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ranktapd import supervisor
from ranktapd.runs import Run, RunPlace
from ranktapd.status import Metrics
from ranktapd.supervisor import Supervisor
from tests.support.waiting import wait_for

HANGS = "import time; time.sleep(60)"
WAITS = """
import time
while True:
    print('{"waiting": 0}', flush=True)
    time.sleep(0.01)
"""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """One whose journal has an entry: its worker has something to write."""
    each = Run.open(RunPlace.of(tmp_path, tmp_path, "run"), sync=False, segment_bytes=1 << 20)
    yield each
    each.close()


def watching(run: Run, program: str) -> Supervisor:
    each = Supervisor(
        lambda run: [sys.executable, "-c", program],
        lambda run, sequence: None,
        lambda run, limit, text: None,
        Metrics(),
        1,
    )
    each.watch(run)
    each.turn()
    assert len(each.running) == 1
    return each


def end(workers: Supervisor) -> None:
    workers.finish()
    workers.kill()
    workers.turn()
    assert workers.running == []


def test_a_worker_that_hangs_is_killed_and_started_again(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "SILENT_S", 0.3)
    workers = watching(run, HANGS)
    first = workers.running[0].process
    assert first is not None

    def is_gone() -> bool:
        workers.turn()
        assert not workers.hangs(time.monotonic())
        return first.poll() is not None

    wait_for(is_gone, "it to be killed")
    assert "has said nothing" in caplog.text
    wait_for(lambda: workers.turn() or workers.running, "another to be started")
    assert workers.running[0].process is not first
    end(workers)


def test_a_worker_that_waits_for_room_is_left_alone(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = watching(run, WAITS)
    worker = workers.running[0]
    wait_for(lambda: workers.turn() or worker.heard_at > worker.started_at, "its first word")
    monkeypatch.setattr(supervisor, "SILENT_S", 0.3)
    until = time.monotonic() + 1.0
    wait_for(lambda: workers.turn() or time.monotonic() > until, "three times the time")
    assert "has said nothing" not in caplog.text
    end(workers)


def test_a_worker_that_cannot_be_killed_is_what_the_watchdog_is_for(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "SILENT_S", 0.3)
    workers = watching(run, HANGS)
    # As one is that waits for a disk that never answers.
    with monkeypatch.context() as stuck:
        stuck.setattr(subprocess.Popen, "kill", lambda process: None)
        wait_for(lambda: workers.turn() or workers.hangs(time.monotonic()), "it to be noticed")
    end(workers)
    assert not workers.hangs(time.monotonic())
