"""The files of a run: each sub-run's own, and none in another run's directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from ranktap_wire.messages import Code, FrameError
from ranktap_wire.segment import Position
from ranktapd import run_files
from ranktapd.directories import claim
from ranktapd.entries import RunBegins
from ranktapd.event_file import checkpoint_record, read_checkpoint, version_record
from ranktapd.output import File, Group, Output
from ranktapd.run_files import RunFiles
from ranktapd.runs import Run, RunPlace
from tests.support.event_files import event_files
from tests.support.folding import record_ends, written_records
from tests.unit.test_event_file import scalar

BEGINS = RunBegins(1.7e9, "host", 7, "")


@pytest.fixture
def place(tmp_path: Path) -> RunPlace:
    return made_place(tmp_path, "a")


def made_place(tmp_path: Path, run: str) -> RunPlace:
    place = RunPlace.of(tmp_path / "runs", tmp_path / "state", run)
    place.state.mkdir(parents=True)
    return place


@pytest.fixture
def files(place: RunPlace) -> Iterator[RunFiles]:
    made = RunFiles(place, BEGINS)
    yield made
    made.close()


def group(number: int, *sub_runs: str, files: tuple[File, ...] = ()) -> Output:
    """Ends at entry `number`, with a scalar of that step for each of the sub-runs."""
    collected = Group()
    for sub_run in sub_runs:
        collected.add(sub_run, scalar(number))
    for file in files:
        collected.add_file(file)
    return collected.close(1.5, str(Position(number, 1, 0)))


def payloads(data: bytes) -> list[bytes]:
    begins = [0, *record_ends(data)]
    return [data[begin + 12 : end - 4] for begin, end in pairwise(begins)]


def test_a_sub_run_has_an_event_file_of_its_own_that_begins_as_the_runs_does(
    place: RunPlace, files: RunFiles
) -> None:
    files.write([group(1, "", "sub/run"), group(2, "sub/run"), group(3, "")])
    (own,) = event_files(place.events)
    (of_sub_run,) = event_files(place.events / "sub" / "run")
    position = [str(Position(number, 1, 0)) for number in range(4)]
    assert of_sub_run.read_bytes() == b"".join(
        (
            version_record(1.7e9),
            scalar(1), checkpoint_record(1.5, position[1]),
            scalar(2), checkpoint_record(1.5, position[2]),
        )
    )  # fmt: skip
    # The run's own says of each group that all of it is written.
    marks = [read_checkpoint(payload) for payload in payloads(own.read_bytes())]
    assert [mark for mark in marks if mark] == position[1:]
    assert own.name == of_sub_run.name


def test_a_run_that_is_opened_again_writes_what_it_lacks_and_nothing_twice(
    place: RunPlace,
) -> None:
    groups = [group(number, "", "x", *["y"] * (number > 2)) for number in range(1, 6)]
    for upto in (0, 2, 3, 5):
        files = RunFiles(place, BEGINS)
        files.write(groups[:upto])
        files.close()
    assert files.checkpoint == groups[2].position, "when it was opened"
    for sub_run, first in (("", 1), ("x", 1), ("y", 3)):
        records = [scalar(number)[12:-4] for number in range(first, 6)]
        assert written_records(place.events / sub_run) == records


def test_a_file_of_a_sub_run_that_lost_its_end_gets_what_it_lacks(place: RunPlace) -> None:
    groups = [group(number, "", "x") for number in range(1, 6)]
    files = RunFiles(place, BEGINS)
    files.write(groups)
    files.close()
    (path,) = event_files(place.events / "x")
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        files = RunFiles(place, BEGINS)
        files.write(groups)
        files.close()
        assert path.read_bytes() == whole, f"cut off at byte {end}"


def test_only_so_many_files_are_open_and_all_are_written(
    place: RunPlace, files: RunFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_files, "OPEN_FILES", 3)
    names = [f"sub-{number}" for number in range(8)]
    for number in range(1, 4):
        files.write([group(number, "", *names)])
        assert sum(writer.is_open for writer in files._writers.values()) <= 3
    files.sync()
    assert sum(writer.is_open for writer in files._writers.values()) <= 3
    for name in names:
        assert written_records(place.events / name) == [scalar(n)[12:-4] for n in (1, 2, 3)]


def test_a_file_is_written_whole_and_anew_where_it_is_there_already(
    place: RunPlace, files: RunFiles
) -> None:
    for number, content in ((1, [b"a long one", b", in pieces"]), (2, [b"short"])):
        made = File("sub", "00001/x/tensors.tsv", lambda content=content: content, 1)
        files.write([group(number, files=(made,))])
        path = place.events / "sub" / "00001" / "x" / "tensors.tsv"
        assert path.read_bytes() == b"".join(content)
        assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert not event_files(place.events / "sub"), "it has no events"
    (own,) = event_files(place.events)
    assert read_checkpoint(payloads(own.read_bytes())[-1]) == str(Position(2, 1, 0))


def test_a_file_of_a_group_that_is_written_is_not_made_again(place: RunPlace) -> None:
    def fail() -> list[bytes]:
        raise AssertionError("asked for")

    files = RunFiles(place, BEGINS)
    files.write([group(1, files=(File("", "a.txt", lambda: [b"a"], 1),))])
    files.close()
    again = RunFiles(place, BEGINS)
    again.write([group(1, files=(File("", "a.txt", fail, 1),))])
    again.close()


# -- whose directory it is ----------------------------------------------------------------


def test_a_sub_run_does_not_write_to_the_directory_of_a_run(
    tmp_path: Path, place: RunPlace, files: RunFiles, caplog: pytest.LogCaptureFixture
) -> None:
    other = RunPlace.of(tmp_path / "runs", tmp_path / "state", "a/b")
    run = Run.open(other, sync=False, segment_bytes=1 << 20)
    run.close()
    made = File("b", "projector_config.pbtxt", lambda: [b""], 1)
    for number in (1, 2):
        files.write([group(number, "", "b", "c", files=(made,))])
    assert not other.events.exists()
    records = [scalar(number)[12:-4] for number in (1, 2)]
    assert written_records(place.events) == written_records(place.events / "c") == records
    assert caplog.text.count("its sub-run 'b' is left out") == 1
    assert f"{other.events} is the directory of run 'a/b'" in caplog.text


def test_a_run_does_not_begin_in_the_directory_of_a_sub_run(
    tmp_path: Path, files: RunFiles
) -> None:
    files.write([group(1, "b/c")])
    other = RunPlace.of(tmp_path / "runs", tmp_path / "state", "a/b/c")
    with pytest.raises(FrameError, match="is the directory of a sub-run of run 'a'") as caught:
        Run.open(other, sync=False, segment_bytes=1 << 20)
    assert caught.value.code is Code.CONFLICT
    assert not other.state.exists()
    # Beside and above it there is room.
    for name in ("a/b", "a/b/d"):
        free = RunPlace.of(tmp_path / "runs", tmp_path / "state", name)
        Run.open(free, sync=False, segment_bytes=1 << 20).close()


def test_a_directory_that_two_runs_sub_runs_share_belongs_to_the_first(tmp_path: Path) -> None:
    assert claim(tmp_path, "a", "b/c") is None
    assert claim(tmp_path, "a", "b/c") is None
    assert claim(tmp_path, "a/b", "c") == "a"


def test_sub_runs_of_the_logdir_itself_are_runs_in_it(tmp_path: Path) -> None:
    assert claim(tmp_path, ".") is None
    assert claim(tmp_path, ".", "b") is None
    assert claim(tmp_path, "b") == "."
    assert claim(tmp_path, "c") is None
    assert claim(tmp_path, ".", "c") == "c"


def test_a_claim_that_was_interrupted_behind_its_link_is_not_overwritten_by_the_next(
    tmp_path: Path,
) -> None:
    assert claim(tmp_path, "a") is None
    # What the same process leaves when it could not unlink it, or an earlier one of its number.
    directory = tmp_path / "directories"
    (directory / f".{os.getpid()}.partial").hardlink_to(directory / "a")
    assert claim(tmp_path, "b") is None
    assert claim(tmp_path, "a") is None
    assert claim(tmp_path, "a/c") is None
    assert (directory / "a").read_text() == "a"


def test_a_directory_whose_name_no_file_can_have_is_claimed_too(tmp_path: Path) -> None:
    run, sub_run = "r" * 200, "/".join("s" * 60 for _ in range(3))
    assert claim(tmp_path, run, sub_run) is None
    assert claim(tmp_path, run, sub_run) is None
    assert claim(tmp_path, f"{run}/{'s' * 60}", f"{'s' * 60}/{'s' * 60}") == run
    assert claim(tmp_path, run, f"{sub_run}/x") is None


def test_a_run_that_claimed_nothing_has_its_directory_all_the_same(tmp_path: Path) -> None:
    made_place(tmp_path, "a/b")
    assert claim(tmp_path / "state", "a", "b") == "a/b"
    assert claim(tmp_path / "state", "a/b") is None


def test_a_sub_run_whose_directory_is_a_file_is_left_out_and_the_others_go_on(
    place: RunPlace, files: RunFiles, caplog: pytest.LogCaptureFixture
) -> None:
    (place.events / "file").write_text("a user's")
    (place.events / "00001").write_text("a user's")
    made = File("", "00001/tensors.tsv", lambda: [b""], 1)
    files.write([group(1, "", "file", "file/below", "x", files=(made,))])
    assert (place.events / "file").read_text() == "a user's"
    assert written_records(place.events) == written_records(place.events / "x") != []
    for told in ("its sub-run 'file' is", "its sub-run 'file/below' is", "00001"):
        assert told in caplog.text
