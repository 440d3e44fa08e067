"""Jobs without a daemon, and with one that comes and goes: what is in their spools arrives, once.

"As live" means: each tag's events, in their order, byte for byte those of a job that had its
daemon all the while. `what_is_logged` says what is left out, which is what the daemon says of
itself.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ranktap
from ranktap.outbox import COLUMN_ROW_BYTES, ROW_BYTES
from ranktap_wire.segment import segments
from tests.support.daemons import DaemonProcess
from tests.support.event_files import accumulate, event_files, events, scalar_points
from tests.support.kept_running import end
from tests.support.spooling_rank import log_step, run_job, start, sync, what_is_logged
from tests.support.timing import SlowestCall
from tests.support.waiting import wait_for

DaemonStarter = Callable[..., DaemonProcess]
MEMORY = 1 << 20
NOBODY = "ipc:///tmp/ranktap-test-nobody-listens-here"
PATIENT = ("--straggler-timeout", "3600")


def left(spool: Path) -> list[str]:
    """What a spool holds, by its name; but for what says that it is one."""
    return sorted(str(path.relative_to(spool)) for path in spool.rglob("*") if path.is_file())[1:]


def taps_of(world_size: int, **options: Any) -> list[ranktap.Tap]:
    """The ranks of a job, in this process."""
    return [
        ranktap.init("job", rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]


def log(taps: list[ranktap.Tap], steps: range) -> None:
    """What all ranks log in these steps."""
    for step in steps:
        for tap in taps:
            log_step(tap, step)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    """What four ranks with a daemon log in 200 steps."""
    logdir = tmp_path_factory.mktemp("live")
    daemon = DaemonProcess(logdir, *PATIENT).start()
    try:
        taps = taps_of(4, endpoint=daemon.endpoint)
        log(taps, range(200))
        assert all(tap.close() for tap in taps)
        end(daemon)
    finally:
        daemon.close()
    return what_is_logged(logdir / "job")


def test_four_ranks_without_network_are_merged_as_live_once_they_are_synced(
    tmp_path: Path, start_daemon: DaemonStarter, live: dict[str, list[bytes]]
) -> None:
    spool = tmp_path / "spool"
    for said, errors in run_job(4, run="job", spool=spool, endpoint=NOBODY, steps=200):
        assert said == {"closed": False, "dropped": 0}
        assert errors.count(f"ranktap sync {spool}") == 1
    # One that gives up on what waits after a moment: the ranks come together all the same.
    daemon = start_daemon("--straggler-timeout", "0.2")
    said = sync(spool, "--endpoint", daemon.endpoint)
    assert "run 'job': sent ranks 0, 1, 2, 3" in said
    assert left(spool) == []
    assert sync(spool, "--endpoint", daemon.endpoint) == f"nothing to send in {spool}\n"
    end(daemon)
    directory = daemon.logdir / "job"
    assert what_is_logged(directory) == live
    read = accumulate(directory)
    assert "ranktap/late" not in read.Tags()["scalars"]
    assert [each.step for each in read.Scalars("scalar/mean")] == list(range(200))


def test_of_one_rank_the_order_across_tags_is_that_of_a_live_job_too(
    tmp_path: Path, start_daemon: DaemonStarter
) -> None:
    daemon = start_daemon()
    spool = tmp_path / "spool"

    def log_scalars(tap: ranktap.Tap) -> None:
        for step in range(2_000):
            tap.scalar(f"tag{step % 7}", float(step), step, walltime=1.7e9 + step)

    with ranktap.init("live", endpoint=daemon.endpoint, rank=0, world_size=1) as tap:
        log_scalars(tap)
    with ranktap.init("spooled", endpoint=NOBODY, spool=spool, rank=0, world_size=1) as tap:
        log_scalars(tap)
    sync(spool, "--endpoint", daemon.endpoint)
    end(daemon)
    written = {
        run: [
            event.SerializeToString()
            for path in event_files(daemon.logdir / run)
            for event in events(path)
            if event.summary.value
        ]
        for run in ("live", "spooled")
    }
    assert len(written["live"]) == 2_000
    assert written["spooled"] == written["live"]


def test_no_daemon_is_asked_for_where_there_is_a_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_daemon: DaemonStarter
) -> None:
    monkeypatch.delenv("RANKTAP_ENDPOINT", raising=False)
    monkeypatch.setenv("RANKTAP_SPOOL", str(tmp_path / "spool"))
    writer = ranktap.SummaryWriter("runs/exp/a")
    for step in range(100):
        writer.add_scalar("loss", float(step), step)
    writer.flush()
    writer.close()
    daemon = start_daemon()
    sync(tmp_path / "spool", "--endpoint", daemon.endpoint)
    end(daemon)
    points = scalar_points(daemon.logdir / "exp" / "a")
    assert points == {"loss": [(step, float(step)) for step in range(100)]}


def test_while_the_daemon_is_away_for_longer_than_memory_holds_nothing_is_dropped(
    tmp_path: Path, start_daemon: DaemonStarter
) -> None:
    daemon = start_daemon("--straggler-timeout", "0.5")
    spool = tmp_path / "spool"
    taps = [
        ranktap.init(
            "job", endpoint=daemon.endpoint, spool=spool, rank=rank, world_size=2, memory=MEMORY
        )
        for rank in range(2)
    ]
    step = 0

    def log_on(steps: int) -> None:
        nonlocal step
        for _ in range(steps):
            for tap in taps:
                tap.scalar("loss", float(step + tap.rank), step)
            step += 1

    def log_slowly(steps: int) -> None:
        # A mebibyte holds 8,192 scalars: no faster than the sender takes them.
        for _ in range(steps // 1_000):
            log_on(1_000)
            wait_for(lambda: all(len(tap._rows) < 4 * 1_000 for tap in taps), "the senders")

    log_on(100)
    assert all(tap.flush() for tap in taps)
    assert not left(spool)
    daemon.kill()
    log_slowly(20_000)
    assert 20_000 * ROW_BYTES > 2 * MEMORY, "more than a memory holds"
    on_disk = sum(path.stat().st_size for path in spool.rglob("*.journal"))
    assert on_disk > 2 * 15_000 * COLUMN_ROW_BYTES
    daemon.start()
    log_slowly(2_000)
    assert all(tap.flush(timeout=30) for tap in taps)
    log_on(100)
    assert all(tap.close(timeout=30) for tap in taps), "nothing was dropped"
    assert left(spool) == []
    wait_for(lambda: len(scalar_points(daemon.logdir / "job").get("loss", ())) >= step, "all of it")
    end(daemon)
    points = scalar_points(daemon.logdir / "job")
    assert points["loss"] == [(at, at + 0.5) for at in range(step)]
    assert not {"ranktap/late", "ranktap/dropped"} & set(points)


def test_a_rank_that_is_killed_leaves_its_spool_and_is_synced_with_the_others(
    tmp_path: Path, start_daemon: DaemonStarter, live: dict[str, list[bytes]]
) -> None:
    spool = tmp_path / "spool"
    options = {"run": "job", "spool": spool, "endpoint": NOBODY, "world_size": 4, "steps": 200}
    ranks = [start("kill", rank=rank, **options) for rank in range(4)]
    for rank in ranks:
        assert rank.stdout is not None and rank.stdin is not None
        # Flushed: with no daemon that means that all of it is on disk.
        assert json.loads(rank.stdout.readline()) == {"flushed": False}
    daemon = start_daemon(*PATIENT)
    said = sync(spool, "--endpoint", daemon.endpoint, status=1)
    assert "ranks 0, 1, 2, 3 may still write" in said
    for rank in ranks:
        rank.communicate("die\n", timeout=30)
    sync(spool, "--endpoint", daemon.endpoint)
    end(daemon)
    assert what_is_logged(daemon.logdir / "job") == live


def test_what_the_daemon_got_before_it_went_is_not_sent_again(
    tmp_path: Path, start_daemon: DaemonStarter, live: dict[str, list[bytes]]
) -> None:
    daemon = start_daemon(*PATIENT)
    spool = tmp_path / "spool"
    taps = taps_of(4, endpoint=daemon.endpoint, spool=spool)
    log(taps, range(100))
    assert all(tap.flush() for tap in taps)
    daemon.kill()
    log(taps, range(100, 200))
    assert not any(tap.close() for tap in taps)
    # This process goes on, and its senders have the spool in hand for a few seconds more.
    assert all(tap._sender.stopped.wait(30) for tap in taps)
    assert len(left(spool)) == 4 * len(("lock", "segment"))
    daemon.start()
    # Nobody is missing that has logged something: they have reached a daemon before.
    sync(spool, "--endpoint", daemon.endpoint)
    assert left(spool) == []
    end(daemon)
    assert what_is_logged(daemon.logdir / "job") == live


def test_a_job_that_was_started_again_is_sent_one_life_after_the_other(
    tmp_path: Path, start_daemon: DaemonStarter
) -> None:
    logged = {}
    for name, endpoint in (("live", None), ("spooled", NOBODY)):
        daemon = start_daemon(*PATIENT, logdir=tmp_path / name)
        spool = tmp_path / f"{name}-spool"
        for steps in (range(100), range(60, 160)):
            resume_step = steps[0] or None
            taps = taps_of(
                2, endpoint=endpoint or daemon.endpoint, spool=spool, resume_step=resume_step
            )
            log(taps, steps)
            for tap in taps:
                tap.close()
                assert tap._sender.stopped.wait(30)
        if endpoint is not None:
            said = sync(spool, "--endpoint", daemon.endpoint)
            assert said.count("sent ranks 0, 1") == 2
        end(daemon)
        logged[name] = what_is_logged(daemon.logdir / "job")
    assert logged["spooled"] == logged["live"]
    assert len(logged["live"]["scalar/mean"]) == 200


def test_a_run_of_which_ranks_are_elsewhere_is_left_until_all_are_named(
    tmp_path: Path, start_daemon: DaemonStarter, live: dict[str, list[bytes]]
) -> None:
    nodes = [tmp_path / "node0", tmp_path / "node1"]
    taps = [
        ranktap.init("job", spool=nodes[rank // 2], endpoint=NOBODY, rank=rank, world_size=4)
        for rank in range(4)
    ]
    log(taps, range(200))
    for tap in taps:
        tap.close()
        assert tap._sender.stopped.wait(30)
    daemon = start_daemon("--straggler-timeout", "0.2")
    said = sync(nodes[0], "--endpoint", daemon.endpoint, status=1)
    assert "ranks 2, 3 of 4 have nothing here" in said
    assert not (daemon.logdir / "job").exists()
    sync(*nodes, "--endpoint", daemon.endpoint)
    end(daemon)
    assert what_is_logged(daemon.logdir / "job") == live


def test_ranks_that_logged_nothing_are_done_without_when_told_so(
    tmp_path: Path, start_daemon: DaemonStarter
) -> None:
    with ranktap.init("job", endpoint=NOBODY, spool=tmp_path / "s", rank=0, world_size=8) as tap:
        for step in range(50):
            tap.scalar("loss", float(step), step)
    daemon = start_daemon("--straggler-timeout", "0.2")
    sync(tmp_path / "s", "--endpoint", daemon.endpoint, status=1)
    sync(tmp_path / "s", "--endpoint", daemon.endpoint, "--partial")
    wait_for(
        lambda: len(scalar_points(daemon.logdir / "job").get("loss", [])) == 50,
        "windows that wait for nobody",
    )
    end(daemon)


def test_a_spool_can_be_written_to_event_files_on_this_machine(tmp_path: Path) -> None:
    with ranktap.init("job", endpoint=NOBODY, spool=tmp_path / "s", rank=0, world_size=1) as tap:
        tap.scalar("loss", 1.0, 1)
    sync(tmp_path / "s", "--logdir", tmp_path / "runs")
    points = wait_for(lambda: scalar_points(tmp_path / "runs" / "job"), "the event file")
    assert points == {"loss": [(1, 1.0)]}


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: None, "no such directory"),
        (lambda path: path.write_text("x"), "no directory"),
        (lambda path: path.mkdir(), "no spool; one is what `spool=`"),
    ],
)
def test_what_is_no_spool_is_said_so(
    tmp_path: Path, make: Callable[[Path], None], why: str
) -> None:
    make(tmp_path / "it")
    said = sync(tmp_path / "it", "--endpoint", NOBODY, status=2)
    assert f"{tmp_path / 'it'}: {why}" in said


def test_without_a_daemon_nothing_is_touched_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ranktap.init("job", endpoint=NOBODY, spool=tmp_path / "s", rank=0, world_size=1) as tap:
        tap.scalar("loss", 1.0, 1)
    (journal,) = (tmp_path / "s").rglob("*.journal")
    before = journal.read_bytes()
    said = sync(tmp_path / "s", "--endpoint", NOBODY, "--patience", "1", status=2)
    assert "no answer" in said and "run it again" in said
    monkeypatch.delenv("RANKTAP_ENDPOINT", raising=False)
    assert "no daemon to send to" in sync(tmp_path / "s", status=2)
    assert journal.read_bytes() == before


def test_a_damaged_segment_is_told_of_and_kept_and_the_rest_arrives(
    tmp_path: Path, start_daemon: DaemonStarter
) -> None:
    spool = tmp_path / "spool"
    with ranktap.init("job", endpoint=NOBODY, spool=spool, rank=0, world_size=1) as tap:
        for part in range(3):
            tap.scalar("loss", float(part), part)
            tap.flush()
    (journal,) = spool.rglob("*.journal")
    assert segments(journal.parent) == [1]
    damaged = bytearray(journal.read_bytes())
    # The opening is entry 1, the batches are the last three.
    at = damaged.index(b"loss", damaged.index(b"loss") + 1)
    damaged[at] ^= 0xFF
    journal.write_bytes(damaged)
    daemon = start_daemon()
    said = sync(spool, "--endpoint", daemon.endpoint)
    assert "damaged" in said and "the rest was sent" in said
    assert [Path(name).name for name in left(spool)] == [f"{journal.name}.damaged"]
    end(daemon)
    assert scalar_points(daemon.logdir / "job") == {"loss": [(0, 0.0), (2, 2.0)]}


def test_a_disk_that_does_not_answer_blocks_no_call_for_longer_than_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_daemon: DaemonStarter
) -> None:
    answers = threading.Event()
    is_asked = threading.Event()
    real = os.fdatasync

    def slow(fd: int) -> None:
        is_asked.set()
        assert answers.wait(60)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", slow)
    tap = ranktap.init("job", endpoint=NOBODY, spool=tmp_path / "spool", rank=0, world_size=1)
    tap.scalar("loss", 0.0, 0)
    assert is_asked.wait(30)
    slowest = SlowestCall()
    for step in range(1, 20_000):
        began = time.perf_counter()
        tap.scalar("loss", float(step), step)
        slowest.add(time.perf_counter() - began)
    assert slowest.blocked_s < 0.05
    assert not tap.flush(timeout=0.1)
    assert not tap.close(timeout=0.2)
    assert tap._outbox.dropped == 0
    answers.set()
    assert tap._sender.stopped.wait(30)
    daemon = start_daemon()
    sync(tmp_path / "spool", "--endpoint", daemon.endpoint)
    end(daemon)
    points = scalar_points(daemon.logdir / "job")
    assert points == {"loss": [(step, float(step)) for step in range(20_000)]}


def test_what_a_daemon_does_not_take_goes_to_the_spool_alone(
    tmp_path: Path, start_daemon: DaemonStarter, caplog: pytest.LogCaptureFixture
) -> None:
    settings = tmp_path / "ranktapd.toml"
    settings.write_text("max_runs = 1\n")
    daemon = start_daemon("--config", str(settings))
    spool = tmp_path / "spool"
    options = {"endpoint": daemon.endpoint, "spool": spool, "rank": 0, "world_size": 1}
    with ranktap.init("first", **options) as first:
        first.scalar("loss", 1.0, 1)
        assert first.flush()
        with ranktap.init("second", **options) as second:
            wait_for(lambda: "goes to the spool alone" in caplog.text, "its refusal")
            second.scalar("loss", 2.0, 2)
            assert not second.flush()
    assert f"ranktap sync {spool}" in caplog.text
    said = sync(spool, "--endpoint", daemon.endpoint, status=1)
    assert "max_runs" in said and "run 'second': left: rank 0" in said
    end(daemon)
    settings.write_text("max_runs = 2\n")
    daemon.start()
    sync(spool, "--endpoint", daemon.endpoint)
    end(daemon)
    assert scalar_points(daemon.logdir / "second") == {"loss": [(2, 2.0)]}
