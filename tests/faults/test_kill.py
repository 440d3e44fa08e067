"""Exactly once under kill -9 of the daemon and its workers, at random moments."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import ranktap
from tests.support import ledger
from tests.support.daemons import DaemonProcess
from tests.support.rank_program import FOR_EVER, let_end, report, start_rank
from tests.support.shown import assert_shown
from tests.support.waiting import wait_for

RUN = "faults/kill"
WORLD_SIZE = 4
STEP_S = 0.05
SLOWEST_SCALAR_S = 0.05


def _kill(daemon: DaemonProcess, chance: random.Random, rounds: int) -> list[str]:
    """Kill the daemon or one of its workers, again and again; what was killed, and when.

    How long each lives is counted in what it does, so that it is the same on a slow machine:
    until the journal has grown some times, and a moment.
    """
    began = time.monotonic()
    kills: list[str] = []
    while len(kills) < rounds:
        for _ in range(chance.choice((0, 1, 1, 3))):
            before = _end_of_journal(daemon)
            wait_for(lambda: _end_of_journal(daemon) != before, "the journal to grow", 60)  # noqa: B023
        time.sleep(chance.choice((0.0, 0.02, 0.1, 0.4)) * chance.uniform(0.5, 1.5))
        workers = daemon.workers()
        if workers and chance.random() < 0.5:
            workers[0].kill()
            kills.append(f"worker at {time.monotonic() - began:.2f}")
            continue
        daemon.kill()
        kills.append(f"daemon at {time.monotonic() - began:.2f}")
        # Not always until it listens: it must be possible to kill it while it starts.
        daemon.start(wait=chance.random() < 0.7)
    return kills


def _end_of_journal(daemon: DaemonProcess) -> tuple[str, int]:
    """Its last segment, and how long that is."""
    segments = sorted(Path(daemon.logdir).rglob("*.journal"))
    return (segments[-1].name, segments[-1].stat().st_size) if segments else ("", 0)


def _kill_in_a_job(daemon: DaemonProcess, directory: Path, *, rounds: int, seed: int) -> None:
    """The ledger's job, which goes on as long as there are kills, and then a little."""
    end = directory / "end"
    began = time.monotonic()
    ranks = [
        start_rank(daemon.endpoint, RUN, rank, WORLD_SIZE, steps=FOR_EVER, step_s=STEP_S, end=end)
        for rank in range(WORLD_SIZE)
    ]
    try:
        kills = _kill(daemon, random.Random(seed), rounds)
        steps = let_end(end, began, STEP_S)
        reports = [report(rank, 90) for rank in ranks]
    finally:
        for each in ranks:
            if each.poll() is None:
                each.kill()
                each.wait()
    print(f"{len(kills)} kills in {steps} steps: {', '.join(kills)}")
    assert {kill.split()[0] for kill in kills} == {"worker", "daemon"}
    _check(daemon, reports, steps)


def _check(daemon: DaemonProcess, reports: list[dict[str, float]], steps: int) -> None:
    for rank, told in enumerate(reports):
        print(
            f"rank {rank}: {told['calls']} calls, slowest {told['slowest_s'] * 1e3:.2f} ms "
            f"({told['slowest_wall_s'] * 1e3:.2f} ms with waiting for a processor)"
        )
        assert told["closed"], told["stderr"]
        assert told["calls"] == steps * ledger.SCALARS_A_STEP
        assert told["slowest_s"] < SLOWEST_SCALAR_S
    expected = ledger.expected_run(WORLD_SIZE, range(steps), beside=True)
    directory = Path(daemon.logdir) / RUN
    _stop_with_all_written(daemon)
    assert_shown(directory, expected, beside=True)


def _stop_with_all_written(daemon: DaemonProcess) -> None:
    """Stop it, and once more where it says that a worker had more to write than it waits for."""
    for _ in range(20):
        before = daemon.log.count("the rest at the next start")
        assert daemon.stop() == 0
        if daemon.log.count("the rest at the next start") == before:
            return
        daemon.start()
    raise AssertionError(f"not all is written\n{daemon.log}")


@pytest.mark.timeout(180)
def test_everything_is_there_exactly_once_after_twenty_kills(
    start_daemon: Callable[..., DaemonProcess], tmp_path: Path
) -> None:
    # Merged points need all ranks, and a rank waits for every restart: no window may expire.
    daemon = start_daemon("--straggler-timeout", "3600", "--segment-bytes", str(1 << 16))
    _kill_in_a_job(daemon, tmp_path, rounds=20, seed=7)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_everything_is_there_exactly_once_after_150_kills(
    start_daemon: Callable[..., DaemonProcess], tmp_path: Path
) -> None:
    daemon = start_daemon("--straggler-timeout", "3600", "--segment-bytes", str(1 << 16))
    _kill_in_a_job(daemon, tmp_path, rounds=150, seed=150)


@pytest.mark.timeout(120)
def test_every_record_is_merged_or_counted_as_late_when_kills_meet_stragglers(
    start_daemon: Callable[..., DaemonProcess],
) -> None:
    steps, tags, behind = 300, ("a", "b", "c"), 25
    chance = random.Random(11)
    daemon = start_daemon("--straggler-timeout", "0.3", "--segment-bytes", str(1 << 16))
    taps = [
        ranktap.init(RUN, endpoint=daemon.endpoint, rank=rank, world_size=WORLD_SIZE)
        for rank in range(WORLD_SIZE)
    ]
    kills = 0
    for step in range(steps):
        for tap in taps[:-1]:
            tap.scalars(dict.fromkeys(tags, 1.0), step, across="sum")
        # The last rank reports in bursts: some of its records come too late, some in time.
        if step % behind == behind - 1:
            for late_step in range(step + 1 - behind, step + 1):
                taps[-1].scalars(dict.fromkeys(tags, 1.0), late_step, across="sum")
            if chance.random() < 0.6:
                for worker in daemon.workers():
                    worker.kill()
                daemon.kill()
                daemon.start(wait=False)
                kills += 1
        time.sleep(0.02)
    assert kills >= 5
    directory = Path(daemon.logdir) / RUN
    # On a busy machine every burst may have come in time: one step that surely does not.
    for tap in taps[:-1]:
        tap.scalars(dict.fromkeys(tags, 1.0), steps, across="sum")

    def is_given_up_on() -> bool:
        return (steps, 3.0) in ledger.read_run(directory).scalars.get(tags[0], ())

    wait_for(is_given_up_on, "the last step to be given up on", 30)
    taps[-1].scalars(dict.fromkeys(tags, 1.0), steps, across="sum")
    assert all(tap.close(timeout=30) for tap in taps)
    steps += 1

    def records() -> float:
        """Reporters of each point, and what came too late."""
        scalars = ledger.read_run(directory).scalars
        merged = sum(value for tag in tags for _, value in scalars.get(tag, ()))
        return merged + (scalars["ranktap/late"][-1][1] if "ranktap/late" in scalars else 0)

    wait_for(lambda: records() >= steps * len(tags) * WORLD_SIZE, "all records", 30)
    assert daemon.stop() == 0
    assert records() == steps * len(tags) * WORLD_SIZE
    scalars = ledger.read_run(directory).scalars
    assert scalars["ranktap/late"][-1][1] > 0
    for tag in tags:
        assert [step for step, _ in scalars[tag]] == list(range(steps))
        assert {value for _, value in scalars[tag]} <= {1.0, 2.0, 3.0, 4.0}


@pytest.mark.timeout(120)
def test_a_rank_that_stood_still_comes_back_with_nothing_lost_or_doubled_although_it_was_let_go(
    start_daemon: Callable[..., DaemonProcess],
) -> None:
    steps, world_size = 240, 2
    program = [sys.executable, "-m", "tests.support.impatient_daemon"]
    daemon = start_daemon("--straggler-timeout", "3600", program=program)
    ranks = [
        start_rank(daemon.endpoint, RUN, rank, world_size, steps=steps, step_s=0.05)
        for rank in range(world_size)
    ]
    directory = Path(daemon.logdir) / RUN
    try:
        wait_for(lambda: ledger.read_run(directory).points() > 500, "both ranks to have begun")
        still = psutil.Process(ranks[1].pid)
        still.suspend()
        wait_for(lambda: "rank 1 (process" in daemon.log, "the daemon to let it go")

        def has_points_of_one_rank() -> bool:
            scalars = ledger.read_run(directory).scalars
            return len(scalars["merged/00"]) > len(scalars["ranks/merged/00/min"])

        wait_for(has_points_of_one_rank, "points without it")
        daemon.kill()
        daemon.start()
        still.resume()
        reports = [report(rank, 60) for rank in ranks]
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
                rank.wait()
    assert all(told["closed"] for told in reports), reports
    assert daemon.stop() == 0

    found = ledger.read_run(directory, beside=True)
    whole = ledger.expected_run(world_size, range(steps), beside=True)
    for tag, series in whole.scalars.items():
        if "own/" in tag:
            assert found.scalars[tag] == series
    assert found.pictures == whole.pictures
    assert found.texts == whole.texts
    assert found.files == whole.files
    # A merged point has both ranks' records, or only that of the rank that was there; then
    # the other's is counted as late.
    alone = 0
    merged_tags = [(tag, f"ranks/{tag}/min", tag) for tag in ledger.MERGED]
    merged_tags += [
        (ledger.curve_key(name), ledger.curve_key(name, "min"), name) for name in ledger.CURVES
    ]
    for tag, least, logged_as in merged_tags:
        assert [step for step, _ in found.scalars[tag]] == list(range(steps))
        of_both = {step for step, _ in found.scalars[least]}
        for point, merged in zip(found.scalars[tag], whole.scalars[tag], strict=True):
            step, value = point
            assert value == (merged[1] if step in of_both else ledger.scalar(0, step, logged_as))
        alone += steps - len(of_both)
    assert [point[0] for point in found.histograms["weights"]] == [
        point[0] for point in whole.histograms["weights"]
    ]
    alone += len(set(whole.histograms["weights"]) - set(found.histograms["weights"]))
    assert alone > 0
    assert found.scalars["ranktap/late"][-1][1] == alone
