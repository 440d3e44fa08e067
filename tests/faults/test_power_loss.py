"""A machine that loses its power at any moment, on a disk that forgets what was not synced.

A real job is recorded: every operation of the daemon and its workers on files, every
message that they sent or received. Then, for each operation of it, the disk is laid out as
it may be found after a power cut behind that operation, and the run is recovered from it by
the product's own code: what was acknowledged before must be there. The clients then send
what is missing of the job, and the event file must hold what was logged, once each.
"""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgpack
import numpy as np
import pytest

import ranktap
from ranktap_wire.messages import Hello
from ranktapd.entries import BatchAccepted, SessionGone, SessionOpened, read_entry
from ranktapd.retention import FinishedRuns
from ranktapd.runs import Run, RunPlace, quarantined
from tests.support import folding, forgetful_disk, ledger
from tests.support.crashing_worker import POISON
from tests.support.daemons import DaemonProcess
from tests.support.forgetful_disk import Disk
from tests.support.interposer import Call, Interposer, Operation
from tests.support.shown import assert_shown, read_logged
from tests.support.waiting import wait_for

RUN = "power/cut"
WORLD_SIZE = 2
STEPS = 6
ACKNOWLEDGEMENT = re.compile(rb"[\x82\x83]\xa4type\xa3ack")
"""How one begins, as a msgpack map of two or three."""
NOISE_SHAPE = (3, 64, 80)
"""15 KB: with two ranks and six steps the journal fills two of the smallest segments."""


def _noise(rank: int, step: int) -> np.ndarray:
    return np.random.default_rng([rank, step]).integers(0, 256, NOISE_SHAPE, dtype=np.uint8)


def _log_step(tap: ranktap.Tap, step: int) -> None:
    ledger.log_step(tap, step)
    tap.image("noise", _noise(tap.rank, step), step)


def _expected() -> ledger.Contents:
    contents = ledger.expected_run(WORLD_SIZE, range(STEPS))
    for rank in range(WORLD_SIZE):
        contents.pictures[ledger.shown_tag("noise", rank)] = [
            (step, pixels.shape, pixels.tobytes())
            for step in range(STEPS)
            for pixels in [_noise(rank, step).transpose(1, 2, 0)]
        ]
    return contents


def _place(logdir: Path) -> RunPlace:
    return RunPlace.of(logdir, logdir / ".ranktap", RUN)


@dataclass(frozen=True)
class Recording:
    """A job, and what of it the clients would send again."""

    root: Path
    operations: list[Operation]
    opened: dict[bytes, SessionOpened]
    batches: dict[bytes, list[list[bytes]]]
    """A session's batches as they were sent, from the first."""
    expected: ledger.Contents


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    directory = tmp_path_factory.mktemp("recorded")
    root = directory / "disk"
    root.mkdir()
    interposer = Interposer(directory, root, trace=directory / "trace")
    daemon = DaemonProcess(
        root / "runs", "--segment-bytes", str(1 << 16), program=interposer.program()
    )
    events = root / "runs" / RUN
    try:
        daemon.start()
        taps = [
            ranktap.init(RUN, endpoint=daemon.endpoint, rank=rank, world_size=WORLD_SIZE)
            for rank in range(WORLD_SIZE)
        ]
        for step in range(STEPS):
            for tap in taps:
                _log_step(tap, step)
                assert tap.flush()
            # The worker's operations stand between the daemon's, as in a job that takes hours.
            wait_for(
                lambda: len(read_logged(events).scalars.get("merged/00", ())) > step,  # noqa: B023
                "the worker to write",
            )
        for tap in taps:
            assert tap.close()
        assert daemon.stop() == 0
    finally:
        print(daemon.log)
        daemon.close()
    assert_shown(events, _expected())
    return _as_recorded(root, interposer.operations(), directory / "whole")


def _as_recorded(root: Path, operations: list[Operation], scratch: Path) -> Recording:
    kept = [each for each in operations if each.call is not Call.UNLINK]
    forgetful_disk.after(kept, root).lay_out(scratch)
    opened: dict[bytes, SessionOpened] = {}
    batches: dict[bytes, list[list[bytes]]] = {}
    for entry in folding.entries(_place(scratch / "runs").journal):
        match read_entry(entry.frames):
            case SessionOpened() as words:
                opened[words.session] = words
            case BatchAccepted() as words:
                sent = batches.setdefault(words.session, [])
                assert words.number == len(sent) + 1
                sent.append([bytes(frame) for frame in entry.frames[1:]])
    assert len(opened) == len(batches) == WORLD_SIZE
    return Recording(root, operations, opened, batches, _expected())


@pytest.fixture(autouse=True)
def _without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda fd: None)


def test_the_recording_holds_what_these_tests_are_about(recording: Recording) -> None:
    done = {(each.call, Path(each.path).suffix) for each in recording.operations}
    assert {(Call.SYNC, ".journal"), (Call.UNLINK, ".journal"), (Call.UNLINK, ".msgpack")} <= done
    assert any(each.call is Call.RENAME for each in recording.operations)
    acknowledged = _acknowledged(recording.operations)
    assert acknowledged == {name: len(sent) for name, sent in recording.batches.items()}


def test_an_entry_that_was_set_aside_stays_aside(
    start_daemon: Callable[..., DaemonProcess], tmp_path: Path
) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    interposer = Interposer(tmp_path / "interposer", root, trace=tmp_path / "trace")
    program = interposer.program("-m", "tests.support.crashing_worker", "raise")
    daemon = start_daemon(program=program, logdir=root / "runs")
    with ranktap.init(RUN, endpoint=daemon.endpoint, rank=0, world_size=1) as tap:
        tap.scalar(POISON, 1.0, 0)
        assert tap.flush()
        tap.scalar("loss", 1.0, 1)
        wait_for(lambda: read_logged(root / "runs" / RUN).scalars, "what comes behind it")
    (entry,) = _place(root / "runs").quarantine.iterdir()
    done = interposer.operations()
    written = max(
        number
        for number, each in enumerate(done)
        if each.call is Call.WRITE and ".tfevents." in each.path
    )
    target = tmp_path / "left"
    forgetful_disk.after(done[: written + 1], root).lay_out_synced(target)
    assert {*quarantined(_place(target / "runs"))} == {int(entry.stem)}


Forgetting = Callable[[Disk, Path, random.Random], None]
FORGETTING: dict[str, Forgetting] = {
    "nothing": lambda disk, target, _: disk.lay_out(target),
    "everything": lambda disk, target, _: disk.lay_out_synced(target),
    "something": lambda disk, target, chance: disk.lay_out_by_chance(target, chance),
}


@pytest.mark.parametrize("forgotten", FORGETTING)
def test_at_every_operation_what_was_acknowledged_is_kept_and_the_rest_arrives_once(
    recording: Recording, tmp_path: Path, forgotten: str
) -> None:
    _cut_the_power_everywhere(recording, tmp_path, FORGETTING[forgotten], seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_at_every_operation_forty_ways_of_forgetting_lose_nothing(
    recording: Recording, tmp_path: Path
) -> None:
    for seed in range(2, 42):
        _cut_the_power_everywhere(recording, tmp_path, FORGETTING["something"], seed)


def _cut_the_power_everywhere(
    recording: Recording, tmp_path: Path, forget: Forgetting, seed: int
) -> None:
    disk = Disk(recording.root)
    points = 0
    for number, operation in enumerate(recording.operations):
        disk.do(operation)
        if operation.call is Call.RECEIVE or (
            operation.call is Call.SEND and not ACKNOWLEDGEMENT.search(operation.data)
        ):
            continue  # nothing has changed, neither on the disk nor in what it must hold
        target = tmp_path / "disk"
        forget(disk, target, random.Random(f"{seed} {number}"))
        done = recording.operations[: number + 1]
        try:
            place = _recover(recording, target / "runs", _acknowledged(done))
            ledger.assert_same(read_logged(place.events), recording.expected)
            if points % 10 == 0:  # it takes twice as long as all the rest
                assert_shown(place.events, recording.expected)
        except Exception as error:
            raise AssertionError(f"power cut behind operation {number}: {operation}") from error
        shutil.rmtree(target)
        points += 1
    print(f"seed {seed}: {points} power cuts")
    assert points > 80


def _acknowledged(operations: list[Operation]) -> dict[bytes, int]:
    """The last batch of each session that its client may have been told is safe."""
    session_of: dict[int, bytes] = {}
    last: dict[bytes, int] = {}
    for each in operations:
        if each.call is Call.RECEIVE and b"\xa5hello" in each.data:
            at = each.data.index(b"\xa7session\xc4\x10") + 10
            session_of[each.offset] = each.data[at : at + 16]
        elif each.call is Call.SEND:
            for found in ACKNOWLEDGEMENT.finditer(each.data):
                said = msgpack.Unpacker()
                said.feed(each.data[found.start() :])
                last[session_of[each.offset]] = said.unpack()["number"]
    return last


def _recover(recording: Recording, logdir: Path, acknowledged: dict[bytes, int]) -> RunPlace:
    """What a daemon and a worker do that find this disk, and then the job's clients."""
    place = _place(logdir)
    if RUN in FinishedRuns(logdir / ".ranktap", 0.0).find() or not place.state.exists():
        _finish_job(recording, place, acknowledged)
    else:
        assert acknowledged == {name: len(sent) for name, sent in recording.batches.items()}
    return place


def _finish_job(recording: Recording, place: RunPlace, acknowledged: dict[bytes, int]) -> None:
    run = Run.open(place, sync=True, segment_bytes=1 << 16)
    for identity, opened in recording.opened.items():
        safe = acknowledged.get(identity, 0)
        hello = Hello(
            identity, RUN, opened.rank, WORLD_SIZE, opened.host, opened.pid, safe + 1,
            opened.started,
        )  # fmt: skip
        known = run.sessions.sessions.get(identity)
        ended = run.sessions.ended.get(identity)
        last = known.window.last if known else ended.last if ended else 0
        assert last >= safe, f"rank {opened.rank} was told {safe}, the journal holds {last}"
        session = run.welcome(hello, b"peer", 0.0)
        sent = recording.batches[identity]
        for number in range(session.window.last + 1, len(sent) + 1):
            run.add_batch(session, BatchAccepted(identity, number), [*sent[number - 1]], number)
        run.add(SessionGone(identity, final=True))
    run.commit()
    run.close()
    folding.fold_here(place, [run.journal.last])
