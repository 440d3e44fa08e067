"""The same journal gives the same bytes, however often and wherever its folding was interrupted."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ranktapd import event_file
from ranktapd.entries import BatchAccepted, SessionGone, SessionOpened, WindowsExpired
from ranktapd.runs import RunPlace
from tests.support.boards import Board
from tests.support.daemons import DaemonProcess
from tests.support.event_files import event_files, events, scalar_points
from tests.support.folding import (
    RUN,
    WorkerProcess,
    count_entries,
    entries,
    fold_here,
    group_ends,
    new_place,
    output,
    place_of,
    record,
    record_ends,
    record_small,
    record_straight,
    resegmented,
    written_records,
)
from tests.support.waiting import wait_for


def _recorded(logdir: Path, job: Callable[[DaemonProcess], object], *arguments: str) -> RunPlace:
    daemon = DaemonProcess(logdir, *arguments).start()
    try:
        job(daemon)
    finally:
        print(daemon.log)
        daemon.close()
    return place_of(logdir)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> RunPlace:
    """A job's journal, and the event file that its daemon wrote. Nobody may change them."""
    logdir = tmp_path_factory.mktemp("recording") / "runs"
    return _recorded(logdir, lambda daemon: record(daemon, steps=60), "--straggler-timeout", "0.5")


@pytest.fixture(scope="module")
def straight_recording(tmp_path_factory: pytest.TempPathFactory) -> RunPlace:
    """A recording in which no step goes back: TensorBoard shows every point of it."""
    logdir = tmp_path_factory.mktemp("straight") / "runs"
    return _recorded(logdir, lambda daemon: record_straight(daemon, steps=80))


@pytest.fixture(scope="module")
def small_recording(tmp_path_factory: pytest.TempPathFactory) -> RunPlace:
    """The same of a job of few bytes, for what is tried at each of them."""
    return _recorded(tmp_path_factory.mktemp("small") / "runs", record_small)


@pytest.fixture
def worker() -> Iterator[Callable[[RunPlace], WorkerProcess]]:
    """Makes workers that end with the test."""
    made: list[WorkerProcess] = []

    def make(place: RunPlace) -> WorkerProcess:
        made.append(WorkerProcess(place))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_the_recording_holds_what_these_tests_are_about(recording: RunPlace) -> None:
    assert count_entries(recording.journal, SessionOpened) == 5
    assert count_entries(recording.journal, SessionGone) >= 5
    assert count_entries(recording.journal, WindowsExpired) >= 1
    assert count_entries(recording.journal, BatchAccepted) >= 50
    assert "ranktap/late" in scalar_points(recording.events)
    kinds = {
        value.WhichOneof("value")
        for event in events(event_files(recording.events)[0])
        for value in event.summary.value
    }
    assert kinds == {"simple_value", "image", "histo", "tensor"}


@pytest.mark.parametrize("announced", ["all at once", "a group at a time", "at random"])
def test_folding_again_gives_the_bytes_that_the_daemon_wrote(
    recording: RunPlace, tmp_path: Path, announced: str
) -> None:
    ends = group_ends(recording.journal)
    place = new_place(tmp_path, recording.journal)
    chance = random.Random(3)
    fold_here(
        place,
        {
            "all at once": ends[-1:],
            "a group at a time": ends,
            "at random": [*sorted(chance.sample(ends, len(ends) // 4)), ends[-1]],
        }[announced],
    )
    assert output(place) == output(recording)


def test_a_worker_that_is_killed_again_and_again_writes_the_same_bytes(
    recording: RunPlace, tmp_path: Path, worker: Callable[[RunPlace], WorkerProcess]
) -> None:
    place = new_place(tmp_path, recording.journal)
    ends = group_ends(recording.journal)
    chance = random.Random(4)
    process = worker(place)
    told = 0
    while told < len(ends) - 1:
        process.start(ends[told])
        process.wait_until_folded(ends[told])
        for _ in range(chance.randint(1, 3)):
            told = min(told + chance.randint(1, 4), len(ends) - 1)
            process.tell(committed=ends[told])
        process.hear(chance.uniform(0, 0.02))
        process.kill()
    process.start(ends[-1])
    process.finish()
    print(f"{process.kills} kills")
    assert process.kills >= 10
    assert output(place) == output(recording)


def test_a_file_cut_off_at_any_byte_is_completed_with_the_same_bytes(
    small_recording: RunPlace, tmp_path: Path
) -> None:
    ends = group_ends(small_recording.journal)
    place = new_place(tmp_path, small_recording.journal)
    fold_here(place, ends[-1:])
    (path,) = event_files(place.events)
    whole = path.read_bytes()
    assert whole == output(small_recording)
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        fold_here(place, ends[-1:])
        assert path.read_bytes() == whole, f"cut off at byte {end}"


def test_a_long_file_cut_off_within_or_between_records_is_completed_with_the_same_bytes(
    recording: RunPlace, tmp_path: Path
) -> None:
    ends = group_ends(recording.journal)
    place = new_place(tmp_path, recording.journal)
    fold_here(place, ends[-1:])
    (path,) = event_files(place.events)
    whole = path.read_bytes()
    chance = random.Random(5)
    for end in sorted(chance.sample(record_ends(whole), 20)):
        for cut in (end - 1, end, end + 1):
            path.write_bytes(whole[:cut])
            fold_here(place, ends[-1:])
            assert path.read_bytes() == whole, f"cut off at byte {cut}"


@pytest.fixture
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the disk where a thousand files are made and none must survive the machine."""
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda fd: None)


# -- segments -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_segments(recording: RunPlace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recording's journal in segments that are left behind while it is folded."""
    journal = resegmented(recording.journal, tmp_path_factory.mktemp("segments") / "j", 1 << 14)
    assert len(list(journal.iterdir())) >= 8
    return journal


def test_the_events_do_not_depend_on_the_size_of_segments(
    recording: RunPlace, small_segments: Path, tmp_path: Path
) -> None:
    place = new_place(tmp_path, small_segments)
    fold_here(place, group_ends(small_segments)[-1:])
    assert len(list(place.journal.iterdir())) == 1, "segments were left behind"
    assert written_records(place.events) == written_records(recording.events)


def test_folding_small_segments_with_kills_and_without_gives_the_same_bytes(
    small_segments: Path, tmp_path: Path, worker: Callable[[RunPlace], WorkerProcess]
) -> None:
    ends = group_ends(small_segments)
    undisturbed = new_place(tmp_path / "undisturbed", small_segments)
    fold_here(undisturbed, ends)
    place = new_place(tmp_path / "killed", small_segments)
    process = worker(place)
    chance = random.Random(6)
    for told in sorted(chance.sample(ends[:-1], 12)):
        process.start(told)
        process.hear(5.0)
        process.hear(chance.uniform(0, 0.03))
        process.kill()
    process.start(ends[-1])
    process.finish()
    assert output(place) == output(undisturbed)
    assert len(list(place.journal.iterdir())) == 1


class EndedError(Exception):
    """Stands for the end of the process."""


class Mortal:
    """Lets this process's next calls that change the disk succeed, and then none.

    The last write is done in part.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
        self._calls_left = calls
        for owner, name in (
            (os, "open"), (os, "fsync"), (os, "fdatasync"), (os, "link"),
            (Path, "mkdir"), (Path, "replace"), (Path, "unlink"),
        ):  # fmt: skip
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))
        self._pwritev, self._write = os.pwritev, os.write
        monkeypatch.setattr(os, "pwritev", self._partly_pwritev)
        monkeypatch.setattr(os, "write", self._partly_write)

    def _is_last(self) -> bool:
        self._calls_left -= 1
        return self._calls_left < 0

    def _counted(self, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            if self._is_last():
                raise EndedError
            return real(*arguments, **named)

        return call

    def _partly_pwritev(self, fd: int, pieces: list[memoryview], offset: int) -> int:
        if self._is_last():
            whole = b"".join(pieces)
            self._pwritev(fd, [whole[: len(whole) // 2]], offset)
            raise EndedError
        return self._pwritev(fd, pieces, offset)

    def _partly_write(self, fd: int, data: memoryview) -> int:
        if self._is_last():
            self._write(fd, data[: len(data) // 2])
            raise EndedError
        return self._write(fd, data)


@pytest.mark.parametrize("is_turned_over", [False, True], ids=["same file", "new file"])
def test_a_worker_that_ends_at_any_step_is_continued_with_the_same_bytes(
    small_segments: Path, tmp_path: Path, is_turned_over: bool
) -> None:
    ends = group_ends(small_segments)
    begun = new_place(tmp_path / "begun", small_segments)
    fold_here(begun, [ends[len(ends) // 3]])
    if is_turned_over:
        with open(event_files(begun.events)[0], "ab") as file:
            file.write(b"\x7f")
    trial = tmp_path / "trial"
    place = place_of(trial)

    def outcome() -> dict[str, bytes]:
        assert len(list(place.journal.iterdir())) == 1, "segments were left behind"
        return {path.name: path.read_bytes() for path in event_files(place.events)}

    shutil.copytree(tmp_path / "begun", trial)
    fold_here(place, ends[-1:])
    expected = outcome()
    assert len(expected) == (2 if is_turned_over else 1)
    steps = 0
    while True:
        shutil.rmtree(trial)
        shutil.copytree(tmp_path / "begun", trial)
        with pytest.MonkeyPatch.context() as monkeypatch:
            Mortal(monkeypatch, steps)
            try:
                fold_here(place, ends[-1:])
                break
            except EndedError:
                steps += 1
        fold_here(place, ends[-1:])
        assert outcome() == expected, f"ended at step {steps}"
    assert steps >= 30


# -- other bytes --------------------------------------------------------------------------


@pytest.mark.usefixtures("no_sync")
def test_a_different_byte_in_the_tail_leaves_the_old_file_alone_and_loses_and_doubles_nothing(
    small_recording: RunPlace, tmp_path: Path
) -> None:
    whole = output(small_recording)
    ends = group_ends(small_recording.journal)
    expected = written_records(small_recording.events)
    checkpoint_end = event_file.scan(whole[:-1]).checkpoint_end
    place = new_place(tmp_path, small_recording.journal)
    fold_here(place, ends[-1:])
    (old,) = event_files(place.events)
    shutil.copytree(place.state, tmp_path / "as-before")
    # Cut off everywhere behind the last checkpoint but one, the last byte changed.
    for end in range(checkpoint_end + 1, len(whole)):
        changed = bytearray(whole[:end])
        changed[-1] ^= 0x20
        old.write_bytes(changed)
        fold_here(place, ends[-1:])
        assert old.read_bytes() == changed
        first, second = event_files(place.events)
        assert first == old
        assert second.name > first.name
        assert written_records(place.events) == expected, f"changed at byte {end - 1}"
        second.unlink()
        shutil.copytree(tmp_path / "as-before", place.state, dirs_exist_ok=True)


@pytest.mark.usefixtures("no_sync")
@pytest.mark.parametrize("whole_records", [0, 2, 4])
def test_the_new_file_cut_off_at_any_byte_is_completed_with_the_same_bytes(
    small_recording: RunPlace, tmp_path: Path, whole_records: int
) -> None:
    whole = output(small_recording)
    ends = group_ends(small_recording.journal)
    checkpoint_end = event_file.scan(whole[:-1]).checkpoint_end
    tail_ends = [end for end in record_ends(whole) if end >= checkpoint_end]
    place = new_place(tmp_path, small_recording.journal)
    fold_here(place, ends[-1:])
    (old,) = event_files(place.events)
    torn = whole[: tail_ends[whole_records]] + b"\x7f"
    old.write_bytes(torn)
    fold_here(place, ends[-1:])
    _, new = event_files(place.events)
    continued = new.read_bytes()
    assert written_records(place.events) == written_records(small_recording.events)
    for end in range(len(continued)):
        new.write_bytes(continued[:end])
        fold_here(place, ends[-1:])
        assert new.read_bytes() == continued, f"cut off at byte {end}"
    new.unlink()
    fold_here(place, ends[-1:])
    assert new.read_bytes() == continued
    assert old.read_bytes() == torn


def test_a_new_file_whose_tail_differs_too_is_followed_by_a_third(
    small_recording: RunPlace, tmp_path: Path
) -> None:
    whole = output(small_recording)
    ends = group_ends(small_recording.journal)
    checkpoint_end = event_file.scan(whole[:-1]).checkpoint_end
    place = new_place(tmp_path, small_recording.journal)
    fold_here(place, ends[-1:])
    (old,) = event_files(place.events)
    tail_ends = [end for end in record_ends(whole) if end > checkpoint_end]
    old.write_bytes(whole[: tail_ends[0]] + b"\x7f")
    fold_here(place, ends[-1:])
    _, new = event_files(place.events)
    version, *rest = record_ends(new.read_bytes())
    for cut in (0, version, rest[0], rest[1]):
        trial = shutil.copytree(tmp_path, tmp_path / "trial", ignore=lambda *_: ["trial"])
        third = place_of(trial)
        changed = new.read_bytes()[:cut] + b"\x7f"
        (third.events / new.name).write_bytes(changed)
        fold_here(third, ends[-1:])
        assert len(event_files(third.events)) == 3
        assert (third.events / new.name).read_bytes() == changed
        assert written_records(third.events) == written_records(small_recording.events)
        shutil.rmtree(trial)


# -- a damaged journal --------------------------------------------------------------------


def _damage(place: RunPlace, sequence: int) -> None:
    """Change the last byte of an entry's payload."""
    (segment,) = place.journal.iterdir()
    (entry,) = [each for each in entries(place.journal) if each.sequence == sequence]
    data = bytearray(segment.read_bytes())
    last_frame = bytes(entry.frames[-1])
    at = data.rindex(last_frame, 0, entry.after.offset)
    data[at + len(last_frame) - 1] ^= 0x01
    segment.write_bytes(data)


def _own_series(records: dict[str, list[tuple[int, float]]]) -> dict[str, list[tuple[int, float]]]:
    return {tag: points for tag, points in records.items() if "own/" in tag}


def test_a_damaged_entry_is_reported_and_everything_else_is_written_the_same_each_time(
    straight_recording: RunPlace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ends = group_ends(straight_recording.journal)
    whole = _own_series(scalar_points(straight_recording.events))
    damaged = ends[len(ends) // 2]
    outputs = []
    for name, announced in (("at once", ends[-1:]), ("one by one", ends)):
        place = new_place(tmp_path / name, straight_recording.journal)
        _damage(place, damaged)
        fold_here(place, announced)
        outputs.append(output(place))
        found = _own_series(scalar_points(place.events))
        assert found.keys() == whole.keys()
        lost = {tag for tag in whole if found[tag] != whole[tag]}
        # One batch: some steps of one rank.
        assert len({tag.rpartition("/")[2] for tag in lost}) == 1
        for tag in lost:
            assert set(found[tag]) < set(whole[tag])
            assert found[tag] == sorted(set(found[tag]))
    assert outputs[0] == outputs[1]
    assert f"entries {damaged} to {damaged} are damaged" in caplog.text


def test_an_entry_that_is_damaged_after_it_was_written_is_not_missed_and_nothing_is_doubled(
    straight_recording: RunPlace, tmp_path: Path
) -> None:
    journal = resegmented(
        straight_recording.journal, tmp_path / "journal", 1 << 30, groups_in_one=3
    )
    ends = group_ends(journal)
    place = new_place(tmp_path, journal)
    middle = len(ends) // 2
    fold_here(place, [ends[middle]])
    # The last of its group: where the group ended can only be told by the checkpoint.
    _damage(place, ends[middle])
    fold_here(place, ends[-1:])
    expected = scalar_points(straight_recording.events)
    assert _own_series(scalar_points(place.events)) == _own_series(expected)


# -- read meanwhile -----------------------------------------------------------------------


@pytest.mark.parametrize("is_turned_over", [False, True], ids=["same file", "new file"])
def test_both_loaders_that_read_all_the_while_show_every_point_and_none_twice(
    straight_recording: RunPlace,
    tmp_path: Path,
    worker: Callable[[RunPlace], WorkerProcess],
    start_board: Callable[..., Board],
    is_turned_over: bool,
) -> None:
    place = new_place(tmp_path / "runs", straight_recording.journal)
    ends = group_ends(straight_recording.journal)
    expected = scalar_points(straight_recording.events)
    chance = random.Random(8)
    process = worker(place)
    process.start(ends[3])
    process.wait_until_folded(ends[3])
    boards = [start_board(tmp_path / "runs", fast=fast) for fast in (True, False)]

    def shown(board: Board, tag: str) -> list[tuple[int, float]]:
        points = [(int(step), value) for _, step, value in board.scalars(RUN, tag)]
        # What has been written so far, from the first point on, and nothing else.
        assert points == expected[tag][: len(points)], (board.log, tag)
        return points

    told = 3
    turns = 0
    while told < len(ends) - 1:
        process.kill()
        turns += 1
        for board in boards:
            for tag in chance.sample(sorted(expected), 3):
                shown(board, tag)
        if turns % 3 == 0:
            written = scalar_points(place.events)["merged/00"]
            for board in boards:
                wait_for(lambda: shown(board, "merged/00") == written, "what is written")  # noqa: B023
            path = event_files(place.events)[-1]
            if is_turned_over and turns == 6:
                with open(path, "ab") as file:
                    file.write(b"\x7f")
            else:
                os.truncate(path, path.stat().st_size - chance.randint(1, 40))
        told = min(told + chance.randint(5, 15), len(ends) - 1)
        process.start(ends[told])
        process.wait_until_folded(ends[told - 1])
        process.hear(chance.uniform(0, 0.03))
    process.wait_until_folded(ends[-1])
    assert process.kills >= 8
    assert len(event_files(place.events)) == (2 if is_turned_over else 1)
    for board in boards:
        for tag, points in expected.items():
            wait_for(lambda: shown(board, tag) == points, f"{tag} on a board")  # noqa: B023
