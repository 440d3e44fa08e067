"""Wall clocks that are set back and forward while a job runs: the daemon's, and the ranks'.

A time namespace does not do: it shifts the clocks that count from the start of the machine,
never the wall clock. So the shift is made where a process reads it, below Python and libzmq
alike; clocks that only run forward are left alone, as they are when somebody sets the time.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import ranktap
from tests.support import ledger
from tests.support.daemons import DaemonProcess
from tests.support.event_files import event_files, events
from tests.support.interposer import Interposer
from tests.support.rank_program import FOR_EVER, ROOT, let_end, report
from tests.support.shown import assert_shown, read_logged
from tests.support.waiting import wait_for

DaemonStarter = Callable[..., DaemonProcess]
RUN = "faults/clock"
WORLD_SIZE = 2
STEP_S = 0.05
HOUR_S, YEAR_S = 3_600.0, 365 * 86_400.0


def test_clocks_set_back_and_forward_change_wall_times_and_nothing_else(
    start_daemon: DaemonStarter, tmp_path: Path
) -> None:
    log_host = Interposer(tmp_path / "log host", tmp_path)
    trainers = [Interposer(tmp_path / f"trainer {rank}", tmp_path) for rank in range(WORLD_SIZE)]
    daemon = start_daemon("--straggler-timeout", "3600", program=log_host.program())
    directory = Path(daemon.logdir) / RUN
    end = tmp_path / "end"
    began = time.monotonic()
    ranks = [
        subprocess.Popen(
            trainers[rank].program(
                "-m", "tests.support.rank_program", daemon.endpoint, RUN, str(rank),
                str(WORLD_SIZE), str(FOR_EVER), str(STEP_S), str(end),
            ),
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(WORLD_SIZE)
    ]  # fmt: skip
    try:
        for log_host_s, trainer_s in ((-HOUR_S, -YEAR_S), (YEAR_S, HOUR_S), (-YEAR_S, 0.0)):
            before = read_logged(directory).points()
            wait_for(lambda: read_logged(directory).points() > before + 300, "progress")  # noqa: B023
            log_host.shift_clock(log_host_s)
            trainers[0].shift_clock(trainer_s)
        steps = let_end(end, began, STEP_S)
        reports = [report(rank, 60) for rank in ranks]
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
                rank.wait()
    assert all(told["closed"] for told in reports), reports
    assert daemon.stop() == 0
    # The clocks were really set: the daemon's log and rank 0's records tell.
    years = {int(year) for year in re.findall(r"^(\d{4})-\d\d-\d\d ", daemon.log, re.MULTILINE)}
    assert max(years) - min(years) >= 1, daemon.log
    (path,) = event_files(directory)
    walls = [
        event.wall_time
        for event in events(path)
        if any(value.tag == "ranks/own/0/rank0" for value in event.summary.value)
    ]
    assert max(walls) - min(walls) > YEAR_S
    assert walls != sorted(walls)
    assert_shown(directory, ledger.expected_run(WORLD_SIZE, range(steps)))


def test_a_new_event_file_sorts_behind_the_old_one_although_the_clock_was_set_back_a_year(
    start_daemon: DaemonStarter, tmp_path: Path
) -> None:
    log_host = Interposer(tmp_path / "log host", tmp_path)
    daemon = start_daemon(program=log_host.program())
    directory = Path(daemon.logdir) / "job"
    with ranktap.init("job", endpoint=daemon.endpoint, rank=0, world_size=1) as tap:
        for step in range(20):
            ledger.log_step(tap, step)
        assert tap.flush()
        first = ledger.expected_run(1, range(20))
        wait_for(lambda: read_logged(directory).points() >= first.points(), "the first file")
        daemon.kill()
        (old,) = event_files(directory)
        # Bytes that do not belong there: it cannot be continued.
        with open(old, "ab") as file:
            file.write(b"\x7f")
        log_host.shift_clock(-YEAR_S)
        daemon.start()
        for step in range(20, 40):
            ledger.log_step(tap, step)
        assert tap.flush(timeout=30)
    assert daemon.stop() == 0
    assert [old, *event_files(directory)[1:]] == event_files(directory)
    assert len(event_files(directory)) == 2
    assert_shown(directory, ledger.expected_run(1, range(40)))
