"""What a disk may answer, at every call that changes it: ENOSPC, EIO, EINTR, and a part of it.

The errors come from between the daemon's code and the C library, one after another while
a job runs. A daemon or worker that ends because of one is started again.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

import ranktap
from tests.support import noisy_job
from tests.support.daemons import DaemonProcess
from tests.support.interposer import Act, Call, Interposer, Rule
from tests.support.kept_running import end, kept_running
from tests.support.shown import assert_shown, read_logged
from tests.support.waiting import wait_for

RUNS = [f"disk/errors{number}" for number in range(6)]
"""Each meets its part of the errors: what one waits for does not hold up the others."""
STEPS = range(18)
"""Four of the smallest segments."""

Site = tuple[Call, str, int]
"""A call, what is in the path, and how many of a run's calls come before the one that fails.
`{run}` is where the run's own name ends."""

MANY = 6
"""Making a journal takes up to five: then this one appends to it."""
SITES: list[Site] = [
    (Call.MKDIR, "%2F{run}$", 0), (Call.SYNC, "%2F{run}$", 0),
    (Call.MKDIR, "/journal$", 0), (Call.OPEN, ".journal$", 0), (Call.SYNC, "/journal$", 0),
    (Call.WRITE, ".journal$", 0), (Call.WRITE, ".journal$", MANY), (Call.SYNC, ".journal$", 0),
    (Call.SYNC, ".journal$", MANY), (Call.UNLINK, ".journal$", 0),
    (Call.MKDIR, "/disk/", 0), (Call.OPEN, ".tfevents.", 0), (Call.SYNC, "/disk/", 0),
    (Call.WRITE, ".tfevents.", 0), (Call.WRITE, ".tfevents.", 2), (Call.SYNC, ".tfevents.", 0),
    (Call.OPEN, "{run}/.partial$", 0), (Call.WRITE, "{run}/.partial$", 0),
    (Call.SYNC, "{run}/.partial$", 0), (Call.RENAME, "/event_file$", 0),
    (Call.MKDIR, "/snapshots$", 0), (Call.OPEN, "/snapshots/", 0), (Call.WRITE, "/snapshots/", 0),
    (Call.SYNC, "/snapshots/", 0), (Call.RENAME, "/snapshots/", 0), (Call.SYNC, "/snapshots$", 0),
    (Call.UNLINK, "/snapshots/", 0), (Call.OPEN, "/resting$", 0), (Call.WRITE, "/resting$", 0),
    # Of sub-runs, and of the projector's files.
    (Call.MKDIR, "{run}/event_files$", 0), (Call.OPEN, "{run}/event_files/", 0),
    (Call.WRITE, "{run}/event_files/", 0), (Call.SYNC, "{run}/event_files/", 0),
    (Call.RENAME, "{run}/event_files/", 0), (Call.SYNC, "{run}/event_files$", 0),
    (Call.MKDIR, "{run}/curves_loss_train$", 0), (Call.OPEN, "/curves_loss_valid/events", 0),
    (Call.WRITE, "/curves_loss_valid/events", 1), (Call.SYNC, "/curves_loss_train/events", 0),
    (Call.MKDIR, "/points$", 0), (Call.OPEN, "/points/", 0), (Call.WRITE, "/points/", 0),
    (Call.SYNC, "/points/", 0), (Call.RENAME, "/points/", 0), (Call.RENAME, "/projector_config", 0),
    (Call.LINK, "/directories/", 0), (Call.OPEN, "/writer.lock$", 0),
]  # fmt: skip
OF_NO_RUN: list[Site] = [
    (Call.MKDIR, "/.ranktap/directories$", 0), (Call.MKDIR, "/.ranktap/runs$", 0),
    (Call.SYNC, "/.ranktap/runs$", 0), (Call.MKDIR, "/runs/disk$", 0),
    (Call.SYNC, "/runs/disk$", 0),
    (Call.OPEN, "/directories/.", 0), (Call.WRITE, "/directories/.", 0),
    (Call.SYNC, "/directories/.", 0), (Call.UNLINK, "/directories/.", 0),
    (Call.SYNC, "/directories$", 0),
]  # fmt: skip
"""What is done before a directory has its run's name."""
AT_THE_START: list[Site] = [
    (Call.OPEN, "/.ranktap.lock$", 0), (Call.TRUNCATE, "/.ranktap.lock$", 0),
    (Call.WRITE, "/.ranktap.lock$", 0), (Call.OPEN, "/daemon.lock$", 0),
]  # fmt: skip
"""Of a daemon: another one must come, as it does where a disk is broken."""
ONCE = [(Call.MKDIR, "/root/runs$"), (Call.SYNC, "/root$"), (Call.SYNC, "/root/runs$"),
        (Call.MKDIR, "/.ranktap$"), (Call.SYNC, "/.ranktap$")]  # fmt: skip
"""Of the directories around all runs, when the first daemon makes them: nothing to lose yet."""
INTERRUPTIBLE = (Call.OPEN, Call.WRITE, Call.SYNC, Call.TRUNCATE)
"""The others are never interrupted, by POSIX; Python does not try them again."""


@dataclass(frozen=True)
class Host:
    """A daemon, and what stands between it and its disk."""

    daemon: DaemonProcess
    interposer: Interposer


@pytest.fixture
def start_host(start_daemon: Callable[..., DaemonProcess], tmp_path: Path) -> Callable[[str], Host]:
    def start(name: str) -> Host:
        interposer = Interposer(tmp_path / f"{name}-interposer", tmp_path / name)
        daemon = start_daemon(
            "--segment-bytes", str(noisy_job.SEGMENT_BYTES), "--straggler-timeout", "3600",
            program=interposer.program(), logdir=tmp_path / name / "runs",
        )  # fmt: skip
        return Host(daemon, interposer)

    return start


@pytest.fixture
def host(start_host: Callable[[str], Host]) -> Host:
    return start_host("host")


def test_a_full_disk_or_a_broken_one_at_any_call_loses_and_doubles_nothing(
    start_host: Callable[[str], Host],
) -> None:
    # Both at the same time: most of it is waiting until something is tried again.
    with ThreadPoolExecutor() as together:
        jobs = [
            together.submit(_run_on_a_full_disk, start_host("full")),
            together.submit(_run_on_a_broken_disk, start_host("broken")),
        ]
        for job in jobs:
            job.result()


def _run_on_a_full_disk(host: Host) -> None:
    rules = _one_at_each_site(host.interposer, errno.ENOSPC)
    # It goes on, but for one case: what a sync has left on the disk nobody knows.
    if _run_jobs(host.daemon):
        assert "sync: [Errno 28] No space left on device: ending" in host.daemon.log
    _assert_all_came(rules)


def _run_on_a_broken_disk(host: Host) -> None:
    rules = _one_at_each_site(host.interposer, errno.EIO)
    # Besides, what was written of a group cannot be taken back when it did not fit.
    path = ("errors0/", ".journal$")
    full = host.interposer.rule(Act.FAIL, Call.WRITE, path=path, error=errno.ENOSPC, skip=MANY)
    taken_back = host.interposer.rule(Act.FAIL, Call.TRUNCATE, path=path)
    for call, path, _ in AT_THE_START:
        rules[f"{call.name} {path}"] = host.interposer.rule(Act.FAIL, call, path=path)
    # It ends where a journal fails, with status 1, and must not go on then.
    assert set(_run_jobs(host.daemon)) == {1}
    _assert_all_came(rules | {"full": full, "taken back": taken_back})


def test_calls_that_are_interrupted_or_done_in_part_are_not_even_noticed(host: Host) -> None:
    interposer, daemon = host.interposer, host.daemon
    rules = {}
    run = RUNS[0].rpartition("/")[2]
    calls = {
        (call, path.format(run=run) if "%2F" in path else path.format(run=""))
        for call, path, _ in SITES
        if call in INTERRUPTIBLE
    }
    # The first rule acts that is for a call: "/snapshots/" goes before "/.partial$".
    calls_in_order = sorted(calls, reverse=True)
    for call, path in calls_in_order:
        rules[f"{call.name} {path}"] = interposer.rule(
            Act.FAIL, call, path=path, error=errno.EINTR, times=3
        )
    for call, path in calls_in_order:
        if call is Call.WRITE:
            rules[f"part of {path}"] = interposer.rule(Act.IN_PART, call, path=path, times=-1)
    assert _run_jobs(daemon) == []
    _assert_all_came(rules)
    assert "ended with status" not in daemon.log
    assert "room" not in daemon.log


def test_the_sites_are_all_calls_that_change_a_file(
    start_daemon: Callable[..., DaemonProcess], tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    interposer = Interposer(tmp_path / "interposer", root, trace=tmp_path / "trace")
    daemon = start_daemon(
        "--segment-bytes", str(noisy_job.SEGMENT_BYTES),
        program=interposer.program(), logdir=root / "runs",
    )  # fmt: skip
    assert _run_jobs(daemon, RUNS[:1]) == []
    run = RUNS[0].rpartition("/")[2]
    sites = {(call, path.format(run=run)) for call, path, _ in SITES + OF_NO_RUN + AT_THE_START}
    sites |= {*ONCE}
    unknown = {
        (each.call.name, path)
        for each in interposer.operations()
        if each.call not in (Call.SEND, Call.RECEIVE)
        # A rule is for a new name.
        for path in [each.data.decode() if each.call in (Call.RENAME, Call.LINK) else each.path]
        if not any(each.call is call and _is_at(path, site) for call, site in sites)
    }
    assert unknown == set()


def _is_at(path: str, site: str) -> bool:
    return path.endswith(site[:-1]) if site.endswith("$") else site in path


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("seed", range(10, 30))
def test_errors_of_all_kinds_at_random_calls_lose_and_double_nothing(host: Host, seed: int) -> None:
    interposer, daemon = host.interposer, host.daemon
    chance = random.Random(seed)
    rules = []
    for _ in range(60):
        call, path, _ = chance.choice(SITES)
        error = chance.choice((errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EINTR, errno.EMFILE))
        if error == errno.EINTR and call not in INTERRUPTIBLE:
            continue
        kill = (Act.KILL_BEFORE, Act.KILL_IN_PART, Act.KILL_AFTER)
        act = chance.choice((Act.FAIL, Act.FAIL, Act.FAIL, Act.IN_PART, chance.choice(kill)))
        skip, times = chance.choice((0, 1, 2, 5, 9, 14)), chance.choice((1, 1, 1, 2))
        rules.append(
            interposer.rule(
                act, call, path=path.format(run=""), error=error, skip=skip, times=times
            )
        )
    _run_jobs(daemon)
    came = sum(bool(rule.fired) for rule in rules)
    print(f"seed {seed}: {came} of {len(rules)} faults came")
    assert came >= 15


def _one_at_each_site(interposer: Interposer, error: int) -> dict[str, Rule]:
    """One error at each, at a call of one of the runs."""
    rules = {}
    for number, (call, path, skip) in enumerate(SITES):
        run = RUNS[number % len(RUNS)].rpartition("/")[2]
        rules[f"{call.name} {path} {skip}"] = interposer.rule(
            Act.FAIL, call, path=(run, path.format(run=run)), error=error, skip=skip
        )
    for call, path, skip in OF_NO_RUN:
        rules[f"{call.name} {path}"] = interposer.rule(
            Act.FAIL, call, path=path, error=error, skip=skip
        )
    return rules


def _assert_all_came(rules: dict[str, Rule]) -> None:
    assert [name for name, rule in rules.items() if not rule.fired] == []


def _run_jobs(daemon: DaemonProcess, runs: list[str] = RUNS) -> list[int]:
    """Log everything, and compare it; with what statuses the daemon has ended."""
    expected = noisy_job.expected(1, STEPS, beside=True)
    with kept_running(daemon) as statuses:
        taps = [ranktap.init(run, endpoint=daemon.endpoint, rank=0, world_size=1) for run in runs]
        for step in STEPS:
            for tap in taps:
                noisy_job.log_step(tap, step, beside=True)
            if step % 2:
                assert all(tap.flush(timeout=40) for tap in taps), daemon.log
        assert all(tap.close(timeout=40) for tap in taps)
        for run in runs:
            wait_for(
                lambda: (
                    read_logged(daemon.logdir / run, beside=True).points()  # noqa: B023
                    >= expected.points()
                ),
                f"all of {run}; its log:\n{daemon.log}",
            )
    end(daemon)
    print(f"ended with {statuses}; worker deaths: {daemon.log.count('its worker ended')}")
    for run in runs:
        assert_shown(daemon.logdir / run, expected, beside=True)
    return statuses
