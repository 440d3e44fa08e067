"""`ranktapd compact`: less on the disk, and in both of TensorBoard's loaders the same points."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ranktap
from ranktap import SummaryWriter
from ranktapd import cli, compact, event_file
from ranktapd.dirlock import FileLock
from ranktapd.retention import COMPACTING
from ranktapd.runs import RunPlace
from ranktapd.tail import RunTail
from tests.e2e.jobs.resumed import RESUMED_AT, log_life
from tests.support.boards import Board
from tests.support.daemons import DaemonProcess
from tests.support.event_files import accumulate, event_files
from tests.support.interposer import Act, Call, Interposer
from tests.support.waiting import wait_for

RUN = "job/of two lives"
SUB_RUN = f"{RUN}/curves_a"
HIDDEN = 5
"""Steps 5 to 9 of the first life's losses: the second one begins with 5."""
Shown = dict[str, list[list[float]]]


class _InGroups:
    """A writer each of whose calls is journaled, and so written, as a group of its own."""

    def __init__(self, writer: SummaryWriter) -> None:
        self._writer = writer

    def __getattr__(self, name: str) -> Any:
        if name.startswith("add_"):
            self._writer.flush()
        return getattr(self._writer, name)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The logdir of a daemon that has ended, with a run that was resumed and has finished."""
    logdir = tmp_path_factory.mktemp("compact") / "runs"
    daemon = DaemonProcess(logdir).start()
    try:
        for life, purge_step in enumerate((None, RESUMED_AT)):
            writer = SummaryWriter(RUN, purge_step=purge_step, endpoint=daemon.endpoint)
            log_life(_InGroups(writer), life)
        assert daemon.stop() == 0
        yield logdir
    finally:
        print(daemon.log)
        daemon.close()


@pytest.fixture
def logdir(recorded: Path, tmp_path: Path) -> Path:
    """A copy, to change."""
    copy = tmp_path / "runs"
    shutil.copytree(recorded, copy)
    return copy


def _place(logdir: Path, run: str = RUN) -> RunPlace:
    return RunPlace.of(logdir, logdir / ".ranktap", run)


def _command(logdir: Path, *arguments: str, run: str = RUN) -> int:
    return cli.main(["compact", run, "--logdir", str(logdir), *arguments])


def _bytes(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def _shown(board: Board, run: str) -> Shown:
    tags = board.get("/data/plugin/scalars/tags").get(run, {})
    return {tag: board.scalars(run, tag) for tag in tags}


def _read(directory: Path) -> dict[str, list[tuple[float, int, float]]]:
    """The points that the Python loader shows, without a board."""
    found = accumulate(directory)
    return {
        tag: [(point.wall_time, point.step, point.value) for point in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


# -- what a user sees -------------------------------------------------------------------


def test_boards_of_both_loaders_show_the_same_before_and_after_and_what_is_logged_then(
    logdir: Path,
    start_daemon: Callable[..., DaemonProcess],
    start_board: Callable[..., Board],
    capsys: pytest.CaptureFixture[str],
) -> None:
    boards = {fast: start_board(logdir, fast=fast) for fast in (True, False)}
    for board in boards.values():
        wait_for(lambda board=board: _shown(board, SUB_RUN) and _shown(board, RUN), "the run", 60)
    before = {
        (fast, run): _shown(board, run) for fast, board in boards.items() for run in (RUN, SUB_RUN)
    }
    # They do not show the same; none of it may be lost.
    assert before[True, RUN] != before[False, RUN]
    sizes = {run: sum(map(len, _bytes(logdir / run).values())) for run in (RUN, SUB_RUN)}
    files = _bytes(logdir)

    assert _command(logdir, "--dry-run") == 0
    assert f"{HIDDEN} that TensorBoard does not show dropped" in capsys.readouterr().out
    assert _bytes(logdir) == files, "a dry run changes nothing"
    assert _command(logdir) == 0
    out = capsys.readouterr().out
    assert f"{RUN}: 1 file, " in out and f" {HIDDEN} that TensorBoard does not show dropped" in out

    for run, size in sizes.items():
        old, new = event_files(logdir / run)
        assert old.stat().st_size == 0
        assert 0 < new.stat().st_size < size
    # A board that has got as far as what was logged afterwards has read all before that.
    daemon = start_daemon(logdir=logdir)
    tap = ranktap.init(RUN, endpoint=daemon.endpoint, rank=0, world_size=1)
    tap.scalar("afterwards", 1.0, 20)
    tap.curves("curves", {"a": 1.0}, 20)
    assert tap.close()
    for fast in (True, False):
        boards[len(boards)] = start_board(logdir, fast=fast)  # and one that starts now
    for number, board in boards.items():
        fast = number in (True, 2)
        wait_for(
            lambda board=board: (
                board.scalars(RUN, "afterwards") and _shown(board, SUB_RUN)["curves"][-1][1] == 20
            ),
            f"what came afterwards, in board {number}",
            60,
        )
        after = _shown(board, RUN)
        assert len(after.pop("afterwards")) == 1
        assert _without_own(after) == _without_own(before[fast, RUN]), number
        curves = _shown(board, SUB_RUN)
        assert curves["curves"].pop()[1:] == [20, 1.0]
        assert curves == before[fast, SUB_RUN], number
    assert daemon.stop() == 0
    # There is nothing to gain a second time but what has come since.
    assert _command(logdir) == 0
    capsys.readouterr()
    files = _bytes(logdir / RUN)
    assert _command(logdir) == 0
    assert "nothing to gain: 1 file, " in capsys.readouterr().out
    assert _bytes(logdir / RUN) == files


def _without_own(shown: Shown) -> Shown:
    """Without what ranktap says of the job, which has gone on."""
    return {tag: points for tag, points in shown.items() if not tag.startswith("ranktap/")}


def test_former_files_are_deleted_by_a_compaction_that_comes_an_hour_later(logdir: Path) -> None:
    assert _command(logdir) == 0
    old, new = event_files(logdir / RUN)
    shown = _read(logdir / RUN)
    os.utime(old, (1_700_000_000, 1_700_000_000))
    shutil.copy(new, new.with_name(f"{new.name}.copy"))  # so that there is something to gain
    assert _command(logdir) == 0
    assert old not in event_files(logdir / RUN)
    assert _read(logdir / RUN) == shown


# -- whatever ends it -------------------------------------------------------------------


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_a_call_the_points_are_there_once(
    recorded: Path, tmp_path: Path, start_board: Callable[..., Board], every: int
) -> None:
    base, logdir = _place(recorded), tmp_path / "runs"
    interposer = Interposer(tmp_path / "interposer", logdir)
    expected = _read(base.events), _read(base.events / "curves_a")
    runs = []
    while True:
        place = _place(logdir, f"killed at {len(runs)}")
        shutil.copytree(base.state, place.state)
        shutil.copytree(base.events, place.events)
        interposer.clear()
        calls = (Call.OPEN, Call.WRITE, Call.SYNC, Call.TRUNCATE, Call.RENAME, Call.UNLINK)
        rule = interposer.rule(Act.KILL_IN_PART, *calls, path="", skip=every * len(runs))
        command = interposer.program(
            "-m", "ranktapd", "compact", place.name, "--logdir", str(logdir)
        )
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if not rule.fired:
            assert ended.returncode == 0, ended.stderr
            break
        runs.append(place)
        # A reader of the files as they lie now, and one after it was done again.
        assert (_read(place.events), _read(place.events / "curves_a")) == expected, place.name
    assert len(runs) > 20 // every
    boards = [start_board(logdir, fast=fast) for fast in (True, False)]
    wanted = [_fresh(board, runs, base) for board in boards]
    for place in runs:
        assert compact.compact(logdir, logdir / ".ranktap", place.name, dry=False) == 0
        assert not (place.state / COMPACTING).exists()
        assert (_read(place.events), _read(place.events / "curves_a")) == expected, place.name
        assert [path.stat().st_size > 0 for path in event_files(place.events)][-1:] == [True]
    for board, want in zip(boards, wanted, strict=True):
        assert _fresh(board, runs, base) == want


def _fresh(board: Board, runs: list[RunPlace], base: RunPlace) -> Shown:
    """What a board shows of each of the runs, which is the same."""
    wait_for(lambda: _shown(board, f"{runs[-1].name}/curves_a"), "the last run", 60)
    shown = [_shown(board, place.name) for place in runs]
    for place, found in zip(runs, shown, strict=True):
        assert found == shown[0], place.name
    assert len(shown[0]["loss"]) == 8
    return shown[0]


def test_a_worker_ends_a_compaction_that_was_begun(
    logdir: Path, tmp_path: Path, start_daemon: Callable[..., DaemonProcess]
) -> None:
    place = _place(logdir)
    interposer = Interposer(tmp_path / "interposer", logdir)
    interposer.rule(Act.KILL_BEFORE, Call.TRUNCATE, path=".tfevents.")
    command = interposer.program("-m", "ranktapd", "compact", RUN, "--logdir", str(logdir))
    assert subprocess.run(command, timeout=60).returncode == -9
    assert (place.state / COMPACTING).exists()
    shown = _read(place.events)
    daemon = start_daemon(logdir=logdir)
    wait_for(lambda: not (place.state / COMPACTING).exists(), "the worker to end it")
    assert daemon.stop() == 0
    assert [bool(path.stat().st_size) for path in event_files(place.events)] == [False, True]
    assert _read(place.events) == shown


def test_a_rank_that_comes_while_it_is_compacted_waits_and_goes_on_behind_it(
    logdir: Path, start_daemon: Callable[..., DaemonProcess]
) -> None:
    daemon = start_daemon(logdir=logdir)
    lock = FileLock(_place(logdir).state / "writer.lock")
    lock.acquire("a compaction")
    tap = ranktap.init(RUN, endpoint=daemon.endpoint, rank=0, world_size=1)
    tap.scalar("afterwards", 1.0, 20)
    assert tap.flush(), "it is journaled, as ever"
    wait_for(daemon.workers, "a worker")
    assert "afterwards" not in _read(logdir / RUN)
    lock.release()
    wait_for(lambda: "afterwards" in _read(logdir / RUN), "the worker to write")
    assert tap.close()


def test_a_tail_that_follows_shows_nothing_twice_and_goes_on(
    logdir: Path, start_daemon: Callable[..., DaemonProcess]
) -> None:
    tail = RunTail(logdir, RUN, ["loss", "afterwards"])
    assert len(tail.last(1_000)) == 13
    assert _command(logdir) == 0
    assert list(tail.more()) == []
    daemon = start_daemon(logdir=logdir)
    tap = ranktap.init(RUN, endpoint=daemon.endpoint, rank=0, world_size=1)
    tap.scalar("afterwards", 1.0, 20)
    assert tap.close()
    (line,) = wait_for(lambda: list(tail.more()), "what came afterwards")
    assert "afterwards" in line


# -- what is refused --------------------------------------------------------------------


def test_a_run_that_is_not_there_is_refused_with_those_that_are(
    logdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _command(logdir, run="jobb") == 2
    said = capsys.readouterr().err
    assert said.startswith("ranktapd compact: RUN: expected one of which ")
    assert f"(there are {RUN!r}), got 'jobb'" in said
    assert _command(logdir, run="../x") == 2
    assert "RUN: " in capsys.readouterr().err
    assert _command(logdir / "elsewhere") == 2
    assert "(there is none)" in capsys.readouterr().err
    assert not (logdir / "elsewhere").exists()


def test_a_run_that_is_being_written_or_has_sessions_is_refused(
    logdir: Path,
    start_daemon: Callable[..., DaemonProcess],
    capsys: pytest.CaptureFixture[str],
) -> None:
    daemon = start_daemon(logdir=logdir)
    tap = ranktap.init(RUN, endpoint=daemon.endpoint, rank=0, world_size=1)
    tap.scalar("afterwards", 1.0, 20)
    assert tap.flush()
    wait_for(lambda: "afterwards" in _read(logdir / RUN), "the worker to write")
    files = _bytes(logdir / RUN)
    assert _command(logdir) == 2
    assert "which is being written" in capsys.readouterr().err
    daemon.kill()
    place = _place(logdir)
    wait_for(lambda: _is_free(place), "its worker to end")
    assert _command(logdir) == 2
    assert "it has open sessions, or its daemon has not written all" in capsys.readouterr().err
    assert _bytes(logdir / RUN) == files


def _is_free(place: RunPlace) -> bool:
    lock = FileLock(place.state / "writer.lock")
    try:
        lock.acquire("free")
    except Exception:
        return False
    lock.release()
    return True


@pytest.mark.parametrize("what", ["damaged", "another's"])
def test_a_directory_that_cannot_be_compacted_is_left_as_it_is_and_the_others_are_done(
    logdir: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    (path,) = event_files(logdir / RUN)
    if what == "damaged":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        said = f"{RUN}: left as it is: {path} is damaged at byte "
    else:
        other = logdir / RUN / "events.out.tfevents.1900000000.host"
        other.write_bytes(event_file.frame(b"\x09" + bytes(8) + b"\x1a\x0dbrain.Event:2"))
        said = f"{RUN}: left as it is: {other} was not written by ranktapd"
    before = {path.name: path.read_bytes() for path in event_files(logdir / RUN)}
    assert _command(logdir) == 1
    captured = capsys.readouterr()
    assert said in captured.err
    assert f"{SUB_RUN}: 1 file, " in captured.out
    assert {path.name: path.read_bytes() for path in event_files(logdir / RUN)} == before


def test_a_full_disk_leaves_everything_as_it_was(
    logdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = _bytes(logdir / RUN)
    interposer = Interposer(tmp_path / "interposer", logdir)
    interposer.rule(Act.FAIL, Call.WRITE, path=".ranktap-compact", error=errno.ENOSPC, times=-1)
    command = interposer.program("-m", "ranktapd", "compact", RUN, "--logdir", str(logdir))
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "No space left on device" in ended.stderr
    assert _bytes(logdir / RUN) == files


def test_it_shows_how_far_it_is_where_it_takes_long(logdir: Path) -> None:
    program = (
        "import sys; from ranktapd import cli, compact; compact.PROGRESS_S = 0.0; "
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "compact", RUN, "--logdir", str(logdir)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0
    assert f"{RUN}: 0 of 0 MB" in ended.stderr
    assert json.loads(_place(logdir).pointer().read_bytes())["name"] in {
        path.name for path in event_files(logdir / RUN)
    }
