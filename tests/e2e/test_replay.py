"""`ranktapd replay`: a journal folded again gives the bytes that the run's worker wrote."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import ranktap
from ranktap_wire.segment import segment_path, segments
from ranktapd import cli
from ranktapd import replay as replay_module
from ranktapd.runs import RunPlace
from tests.support.daemons import DaemonProcess
from tests.support.event_files import event_files
from tests.support.folding import (
    RUN,
    contents,
    entries,
    fold_here,
    group_ends,
    new_place,
    place_of,
    record_beside,
    resegmented,
)
from tests.support.waiting import wait_for

StartDaemon = Callable[..., DaemonProcess]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> RunPlace:
    """A job's journal, and the files that its daemon wrote. Nobody may change them."""
    logdir = tmp_path_factory.mktemp("replay") / "runs"
    daemon = DaemonProcess(logdir).start()
    try:
        record_beside(daemon, steps=4)
    finally:
        print(daemon.log)
        daemon.close()
    return place_of(logdir)


def replay(*arguments: str | Path) -> int:
    """Here: a process of its own would take a second."""
    return cli.main(["replay", *map(str, arguments)])


def files_of(directory: Path) -> dict[str, bytes]:
    return contents(RunPlace(RUN, directory, directory))


def snapshot_of(directory: Path) -> dict[Path, tuple[int, int, bytes]]:
    """Everything below a directory, with what changes when somebody writes there."""
    return {
        path: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_replayed_files_are_byte_for_byte_what_the_worker_wrote(
    recording: RunPlace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot_of(recording.state_dir)
    for number, journal in enumerate((recording.state, recording.journal)):
        out = tmp_path / str(number)
        assert replay(journal, "--logdir", out) == 0
        written = contents(recording)
        assert len(written) > 6 and "projector_config.pbtxt" in written
        assert files_of(out / RUN) == written
    assert snapshot_of(recording.state_dir) == before
    last = group_ends(recording.journal)[-1]
    assert f"run {RUN!r}: replayed up to entry {last}" in capsys.readouterr().err


def test_a_running_daemons_run_is_replayed_up_to_its_last_whole_group(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    daemon = start_daemon()
    place = RunPlace.of(daemon.logdir, daemon.logdir / ".ranktap", "team/a%b")
    with ranktap.init(place.name, endpoint=daemon.endpoint, rank=0, world_size=1) as tap:
        tap.scalar("loss", 1.0, 0)
        assert tap.flush()
        wait_for(lambda: event_files(place.events), "the event file")
        assert replay(place.state, "--logdir", tmp_path / "out") == 0
        (again,) = event_files(tmp_path / "out" / "team" / "a%b")
        (own,) = event_files(place.events)
        wait_for(lambda: own.stat().st_size >= again.stat().st_size, "the worker to be where it is")
        assert own.name == again.name
        assert b"loss" in again.read_bytes()
        assert own.read_bytes().startswith(again.read_bytes())
        # The daemon was not disturbed: it goes on with the same journal.
        tap.scalar("loss", 2.0, 1)
        assert tap.flush()
    assert daemon.stop() == 0
    assert replay(place.state, "--logdir", tmp_path / "all") == 0
    (again,) = event_files(tmp_path / "all" / "team" / "a%b")
    assert again.read_bytes() == own.read_bytes()


def test_a_torn_end_is_passed_over_and_left_as_it_is(
    recording: RunPlace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = new_place(tmp_path / "torn", recording.journal)
    (number,) = segments(place.journal)
    torn = segment_path(place.journal, number)
    torn.write_bytes(torn.read_bytes()[:-5])
    before = snapshot_of(place.journal)
    assert replay(place.state, "--logdir", tmp_path / "out") == 0
    assert "at its end are of no whole group" in capsys.readouterr().err
    assert snapshot_of(place.journal) == before
    fold_here(place, [group_ends(recording.journal)[-2]])
    assert files_of(tmp_path / "out" / RUN) == contents(place)


def test_damage_is_told_of_and_the_rest_is_replayed(
    recording: RunPlace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = new_place(tmp_path / "damaged", recording.journal)
    (number,) = segments(place.journal)
    path = segment_path(place.journal, number)
    data = bytearray(path.read_bytes())
    middle = entries(recording.journal)[len(group_ends(recording.journal)) // 2]
    data[middle.after.offset - 9] ^= 1
    path.write_bytes(data)
    assert replay(place.state, "--logdir", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert f"entries {middle.sequence} to {middle.sequence} are damaged" in said
    fold_here(place, group_ends(recording.journal)[-1:])
    assert files_of(tmp_path / "out" / RUN) == contents(place)


def test_what_comes_behind_deleted_segments_is_replayed_and_the_lack_is_told(
    recording: RunPlace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = new_place(tmp_path / "long", recording.journal)
    shutil.rmtree(place.journal)
    resegmented(recording.journal, place.journal, 1_500)
    assert len(segments(place.journal)) > 2
    fold_here(place, [entries(place.journal)[-1].sequence])
    assert min(segments(place.journal)) > 1
    assert replay(place.state, "--logdir", tmp_path / "out") == 1
    assert "its journal was deleted" in capsys.readouterr().err
    (again,) = event_files(tmp_path / "out" / RUN)
    (own,) = event_files(place.events)
    # Behind the record that a file begins with.
    length = 16 + int.from_bytes(own.read_bytes()[:8], "little")
    assert again.read_bytes()[:length] == own.read_bytes()[:length]
    assert own.read_bytes().endswith(again.read_bytes()[length:])


@pytest.mark.parametrize("read_before", [False, True])
def test_segments_that_are_deleted_while_it_reads_are_not_taken_for_damage(
    recording: RunPlace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    read_before: bool,
) -> None:
    place = new_place(tmp_path / "long", recording.journal)
    shutil.rmtree(place.journal)
    resegmented(recording.journal, place.journal, 1_500)

    def delete(position: object = None) -> None:
        for number in segments(place.journal)[:-1]:
            segment_path(place.journal, number).unlink()

    @contextmanager
    def progress(place: RunPlace) -> Iterator[Callable[[object], None]]:
        if not read_before:
            delete()
        yield delete

    monkeypatch.setattr(replay_module, "_progress", progress)
    assert replay(place.state, "--logdir", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "its daemon has deleted entry" in said and "damaged" not in said


def test_what_is_no_journal_and_what_is_no_place_is_refused(
    recording: RunPlace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said() -> str:
        return capsys.readouterr().err

    out = tmp_path / "out"
    assert replay(tmp_path / "nothing", "--logdir", out) == 2
    assert "JOURNAL: expected a directory, got" in said()
    assert replay(tmp_path, "--logdir", out) == 2
    assert "JOURNAL: expected a run's journal" in said()
    segment_path(tmp_path, 1).write_bytes(b"something else altogether, for as long as it takes")
    assert replay(tmp_path, "--logdir", out, "--run", "x") == 2
    assert "not a segment of a ranktap journal" in said()
    assert replay(recording.state, "--logdir", recording.events.parent) == 2
    assert "--logdir: " in (text := said()) and "is a daemon's" in text
    assert replay(recording.state, "--logdir", out, "--run", "../x") == 2
    assert "--run: run" in said()
    assert not out.exists()
    (out / RUN).mkdir(parents=True)
    (out / RUN / "mine").write_text("mine")
    assert replay(recording.state, "--logdir", out) == 2
    assert "has files" in said()
    assert replay(recording.journal, "--logdir", out, "--run", "other") == 0
    assert files_of(out / "other") == contents(recording)


def test_on_a_terminal_a_bar_shows_how_far_it_has_come(recording: RunPlace, tmp_path: Path) -> None:
    reader, writer = pty.openpty()
    program = [sys.executable, "-m", "ranktapd", "replay", str(recording.state)]
    process = subprocess.Popen([*program, "--logdir", str(tmp_path / "out")], stderr=writer)
    os.close(writer)
    said = b""
    try:
        while chunk := os.read(reader, 1 << 16):
            said += chunk
    except OSError:
        pass  # Linux's way to say that the other side is closed
    finally:
        os.close(reader)
    assert process.wait(30) == 0
    assert RUN.encode() in said and b"\x1b[" in said
    assert files_of(tmp_path / "out" / RUN) == contents(recording)
