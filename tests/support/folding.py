"""Journals recorded from real jobs, and ways to fold them again: here, or in a worker process."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import ranktap
from ranktap_wire.journal import JournalReader, JournalWriter
from ranktap_wire.segment import START, Damage, Entry
from ranktapd import event_file
from ranktapd.entries import SessionsSoFar, WindowsExpired, pack_entry, read_entry
from ranktapd.run_worker import RunWorker
from ranktapd.runs import RunPlace
from ranktapd.sessions import RunSessions
from tests.support import ledger
from tests.support.daemons import DaemonProcess
from tests.support.event_files import event_files
from tests.support.waiting import wait_for

RUN = "recorded"


# -- recording ----------------------------------------------------------------------------


def record_straight(daemon: DaemonProcess, *, steps: int) -> Path:
    """The journal of a job in which nothing goes wrong: four ranks, everything of the ledger."""
    taps = [
        ranktap.init(RUN, endpoint=daemon.endpoint, rank=rank, world_size=4) for rank in range(4)
    ]
    _log(taps, range(steps))
    for tap in taps:
        assert tap.close()
    assert daemon.stop() == 0
    return place_of(daemon.logdir).journal


def record(daemon: DaemonProcess, *, steps: int) -> Path:
    """The journal of a job in which much happens; its daemon has ended.

    Four ranks, everything of the ledger. One falls behind until its windows are given up
    on, and reports late; one is started again in the middle; one ends early. The daemon's
    `straggler_timeout` must be short.
    """
    taps = [
        ranktap.init(RUN, endpoint=daemon.endpoint, rank=rank, world_size=4) for rank in range(4)
    ]
    third = steps // 3
    _log(taps, range(third))
    _log(taps[:3], range(third, 2 * third))
    journal = place_of(daemon.logdir).journal
    wait_for(lambda: count_entries(journal, WindowsExpired), "windows to be given up on")
    _log(taps[3:], range(third, 2 * third))
    # It has died, without a word, and begins again from 0.
    again = ranktap.init(RUN, endpoint=daemon.endpoint, rank=1, world_size=4)
    assert taps[2].close()
    _log([taps[0], again, taps[3]], range(third))
    for tap in (taps[0], again, taps[3], taps[1]):
        tap.close(timeout=10)
    assert daemon.stop() == 0
    return journal


def _log(taps: list[ranktap.Tap], steps: range) -> None:
    """In bursts of a few steps, so that there are many groups."""
    for step in steps:
        for tap in taps:
            ledger.log_step(tap, step)
        if step % 3 == 0:
            assert all(tap.flush() for tap in taps)


def record_small(daemon: DaemonProcess) -> Path:
    """The journal of a job of two ranks and few bytes, with one record of every kind."""
    taps = [
        ranktap.init(RUN, endpoint=daemon.endpoint, rank=rank, world_size=2) for rank in range(2)
    ]
    for tap in taps:
        tap.scalar("loss", 1.0 + tap.rank, 0)
        assert tap.flush()
    for tap in taps:
        tap.scalar("loss", 2.0 + tap.rank, 1)
        tap.scalar("own", 3.0, 1, across="each")
        tap.image("picture", np.full((1, 2, 2), tap.rank, np.float32), 1)
        tap.histogram("weights", np.arange(3.0), 1, bins=[0.0, 1.0, 4.0])
        tap.text("note", f"rank {tap.rank}", 1)
        assert tap.flush()
    # Without a goodbye, which would be told of: the last group is that of the records.
    assert daemon.stop() == 0
    for tap in taps:
        tap.close(timeout=0)
    return place_of(daemon.logdir).journal


def record_beside(daemon: DaemonProcess, *, steps: int) -> Path:
    """The journal of a job of two ranks and few bytes, with files beside the run's own events:
    of sub-runs, and of embeddings. Its last group gives something to all of them."""
    taps = [
        ranktap.init(RUN, endpoint=daemon.endpoint, rank=rank, world_size=2) for rank in range(2)
    ]
    for step in range(steps):
        for tap in taps:
            tap.scalar("loss", step + tap.rank, step)
            tap.curves("curve", {"a": step + tap.rank, "b": 2 * step}, step)
            if step in (0, steps - 1):
                tap.hparams({"lr": 0.1}, {"loss": step}, step, run_name="trial")
                if tap.rank:
                    tap.embedding("points", np.eye(2, dtype=np.float32), step)
            assert tap.flush()
    for tap in taps:
        assert tap.close()
    assert daemon.stop() == 0
    return place_of(daemon.logdir).journal


def entries(journal: Path) -> list[Entry]:
    """All entries of a journal, none damaged."""
    last = _last_entry(journal)
    reader = JournalReader(journal, START)
    found = list(reader.entries(last))
    reader.close()
    assert not any(isinstance(entry, Damage) for entry in found)
    return found  # type: ignore[return-value]


def count_entries(journal: Path, kind: type) -> int:
    return sum(isinstance(read_entry(entry.frames), kind) for entry in entries(journal))


def group_ends(journal: Path) -> list[int]:
    """Sequence numbers of the last entry of each group."""
    return [entry.sequence for entry in entries(journal) if entry.ends_group]


def _last_entry(journal: Path) -> int:
    """The journal may be in use: what its writer would recover of it as it is now."""
    copy = journal.with_name("copy-to-count")
    shutil.copytree(journal, copy)
    try:
        writer = JournalWriter(copy)
        writer.close()
        return writer.last
    finally:
        shutil.rmtree(copy)


def resegmented(journal: Path, target: Path, segment_bytes: int, *, groups_in_one: int = 1) -> Path:
    """The same entries in segments of another size, each beginning with what segments begin with.

    Of each so many groups one is made.
    """
    sessions = RunSessions()
    writer = JournalWriter(
        target, segment_bytes=segment_bytes, preamble=lambda: [pack_entry(sessions.so_far())]
    )
    moved: dict[int, int] = {}
    group: list[Entry] = []
    groups = 0
    last = entries(journal)[-1].sequence
    for entry in entries(journal):
        group.append(entry)
        groups += entry.ends_group
        if groups < groups_in_one and entry.sequence < last:
            continue
        groups = 0
        said = [(each, read_entry(each.frames)) for each in group]
        kept = [(each, words) for each, words in said if not isinstance(words, SessionsSoFar)]
        for _, words in kept:
            sessions.fold(words)
        first = writer.append(
            [
                pack_entry(WindowsExpired(moved[words.before]))
                if isinstance(words, WindowsExpired)
                else each.frames
                for each, words in kept
            ]
        )
        for index, (each, _) in enumerate(kept):
            moved[each.sequence] = first + index
        group.clear()
    writer.close()
    return target


# -- folding ------------------------------------------------------------------------------


def place_of(logdir: Path) -> RunPlace:
    return RunPlace.of(logdir, logdir / ".ranktap", RUN)


def new_place(logdir: Path, journal: Path) -> RunPlace:
    """A logdir in which nothing of this journal is folded yet."""
    place = place_of(logdir)
    shutil.copytree(journal, place.journal)
    return place


def output(place: RunPlace) -> bytes:
    """The bytes of the one event file of a run."""
    (path,) = event_files(place.events)
    return path.read_bytes()


def contents(place: RunPlace) -> dict[str, bytes]:
    """All files of a run and its sub-runs, by path."""
    return {
        str(path.relative_to(place.events)): path.read_bytes()
        for path in sorted(place.events.rglob("*"))
        if path.is_file()
    }


def record_ends(data: bytes) -> list[int]:
    """Where the records of an event file end."""
    ends: list[int] = []
    at = 0
    while at < len(data):
        at += 16 + int.from_bytes(data[at : at + 8], "little")
        ends.append(at)
    return ends


def written_records(directory: Path) -> list[bytes]:
    """Payloads of a run's whole records in the order of reading, less the version records and
    checkpoints."""
    found = []
    for path in event_files(directory):
        data = path.read_bytes()
        data = data[: event_file.scan(data).end]
        begin = 0
        for end in record_ends(data):
            payload = data[begin + 12 : end - 4]
            begin = end
            is_version = b"brain.Event:2" in payload
            if not is_version and event_file.read_checkpoint(payload) is None:
                found.append(payload)
    return found


class NoPipe:
    """Stands for `run_worker.Controls` where a test calls the worker itself."""

    finish = ended = False

    def __init__(self, committed: int) -> None:
        self.committed = committed

    def say(self, **words: int) -> None:
        """Nobody listens."""

    def hear(self) -> None:
        """Nobody speaks."""


def fold_here(place: RunPlace, announced: Iterable[int]) -> None:
    """Fold up to each of these entries in turn, as one worker."""
    announced = list(announced)
    worker = RunWorker(place, NoPipe(announced[0]), 3_600.0, careful=False)  # type: ignore[arg-type]
    try:
        for sequence in announced:
            worker.fold_upto(sequence)
    finally:
        worker.close()


@dataclass
class WorkerProcess:
    """A real worker, told what the main process would tell it; may be killed and started again."""

    place: RunPlace
    process: subprocess.Popen[bytes] | None = None
    folded: int = -1
    kills: int = 0
    _unread: bytes = b""

    def start(self, committed: int, *arguments: str) -> None:
        command = [
            sys.executable, "-m", "ranktapd.run_worker", f"--run={self.place.name}",
            f"--logdir={_logdir(self.place)}", f"--state-dir={_logdir(self.place) / '.ranktap'}",
            "--straggler-timeout=3600", *arguments,
        ]  # fmt: skip
        self._unread = b""
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.tell(committed=committed)

    def tell(self, **message: int) -> None:
        assert self.process is not None and self.process.stdin is not None
        os.write(self.process.stdin.fileno(), json.dumps(message).encode() + b"\n")

    def hear(self, timeout_s: float) -> None:
        """Take in what it says within the time, or until it ends."""
        assert self.process is not None and self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], timeout_s)[0]:
            return
        said = self._unread + os.read(self.process.stdout.fileno(), 1 << 16)
        *lines, self._unread = said.split(b"\n")
        for line in lines:
            self.folded = max(self.folded, json.loads(line).get("folded", -1))

    def wait_until_folded(self, sequence: int, deadline_s: float = 30.0) -> None:
        end = time.monotonic() + deadline_s
        while self.folded < sequence:
            assert time.monotonic() < end, f"the worker is at {self.folded} of {sequence}"
            assert self.process is not None and self.process.poll() is None, "the worker has ended"
            self.hear(0.05)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.close()
        self.kills += 1

    def finish(self) -> None:
        """Let it write everything and end."""
        self.tell(finish=1)
        assert self.process is not None
        assert self.process.wait(30) == 0
        self.close()

    def close(self) -> None:
        if self.process is None:
            return
        assert self.process.stdin is not None and self.process.stdout is not None
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def _logdir(place: RunPlace) -> Path:
    return place.state.parents[2]
