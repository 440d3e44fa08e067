"""The same journal gives the same bytes in all files: the run's own, its sub-runs', embeddings'."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from ranktapd import event_file
from ranktapd.runs import RunPlace
from tests.faults.test_determinism import EndedError, Mortal
from tests.support.daemons import DaemonProcess
from tests.support.event_files import event_files, scalar_points
from tests.support.folding import (
    contents,
    fold_here,
    group_ends,
    new_place,
    place_of,
    record_beside,
    record_ends,
    resegmented,
    written_records,
)

STEPS = 4


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> RunPlace:
    """A job's journal, and the files that its daemon wrote. Nobody may change them."""
    logdir = tmp_path_factory.mktemp("beside") / "runs"
    daemon = DaemonProcess(logdir).start()
    try:
        record_beside(daemon, steps=STEPS)
    finally:
        print(daemon.log)
        daemon.close()
    return place_of(logdir)


@pytest.fixture
def place(recording: RunPlace, tmp_path: Path) -> RunPlace:
    """The recording's journal, with all of it folded."""
    place = new_place(tmp_path, recording.journal)
    fold_here(place, group_ends(recording.journal)[-1:])
    return place


@pytest.fixture
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the disk where a thousand files are made and none must survive the machine."""
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda fd: None)


def only_file(directory: Path) -> Path:
    (path,) = event_files(directory)
    return path


def test_the_recording_holds_what_these_tests_are_about(recording: RunPlace) -> None:
    written = contents(recording)
    assert [path for path in written if "tfevents" not in path] == [
        "00000/ranks%2fpoints%2frank1/tensors.tsv",
        f"{STEPS - 1:05}/ranks%2fpoints%2frank1/tensors.tsv",
        "projector_config.pbtxt",
    ]
    assert {path.partition("/")[0] for path in written} >= {"curve_a", "curve_b", "trial"}
    merged = [(step, step + 0.5) for step in range(STEPS)]
    assert scalar_points(recording.events)["loss"] == merged
    assert scalar_points(recording.events / "curve_a")["curve"] == merged
    last = group_ends(recording.journal)[-2]  # then the sessions are closed
    for directory in ("", "curve_a", "curve_b"):
        data = only_file(recording.events / directory).read_bytes()
        checkpoint = event_file.scan(data).checkpoint
        assert checkpoint is not None and int(checkpoint.partition("@")[0]) >= last - 1


@pytest.mark.parametrize("announced", ["all at once", "a group at a time"])
def test_folding_again_gives_the_bytes_that_the_daemon_wrote(
    recording: RunPlace, tmp_path: Path, announced: str
) -> None:
    ends = group_ends(recording.journal)
    place = new_place(tmp_path, recording.journal)
    fold_here(place, ends[-1:] if announced == "all at once" else ends)
    assert contents(place) == contents(recording)


@pytest.mark.usefixtures("no_sync")
@pytest.mark.parametrize("directory", ["", "curve_a"], ids=["own", "sub-run"])
def test_a_file_cut_off_at_any_byte_of_its_last_group_is_completed_with_the_same_bytes(
    recording: RunPlace, place: RunPlace, directory: str
) -> None:
    ends = group_ends(recording.journal)
    path = only_file(place.events / directory)
    whole = path.read_bytes()
    begin = event_file.scan(whole[: record_ends(whole)[-2]]).checkpoint_end
    assert len(whole) - begin > 100
    for end in range(begin, len(whole)):
        path.write_bytes(whole[:end])
        fold_here(place, ends[-1:])
        assert path.read_bytes() == whole, f"cut off at byte {end}"
    assert contents(place) == contents(recording)


@pytest.mark.usefixtures("no_sync")
def test_whatever_a_power_cut_leaves_of_which_file_all_become_whole_again(
    recording: RunPlace, place: RunPlace
) -> None:
    ends = group_ends(recording.journal)
    chance = random.Random(9)
    paths = [only_file(place.events / name) for name in ("", "curve_a", "curve_b", "trial")]
    whole = {path: path.read_bytes() for path in paths}
    for turn in range(60):
        for path in paths:
            if chance.random() < 0.6:
                path.write_bytes(whole[path][: chance.randint(0, len(whole[path]))])
        if turn % 10 == 0:
            chance.choice(paths[1:]).unlink()
        fold_here(place, ends[-1:])
        assert contents(place) == contents(recording), f"turn {turn}"


def test_a_different_byte_in_a_sub_runs_tail_leaves_its_old_file_alone_and_doubles_nothing(
    recording: RunPlace, place: RunPlace
) -> None:
    ends = group_ends(recording.journal)
    old = only_file(place.events / "curve_a")
    changed = bytearray(old.read_bytes()[:-20])
    changed[-1] ^= 0x20
    old.write_bytes(changed)
    fold_here(place, ends[-1:])
    first, second = event_files(place.events / "curve_a")
    assert (first, first.read_bytes()) == (old, changed)
    assert written_records(second.parent) == written_records(recording.events / "curve_a")
    untouched = {path: data for path, data in contents(place).items() if "curve_a" not in path}
    assert untouched == {
        path: data for path, data in contents(recording).items() if "curve_a" not in path
    }


@pytest.mark.usefixtures("no_sync")
def test_a_worker_that_ends_at_any_step_is_continued_with_the_same_bytes(
    recording: RunPlace, tmp_path: Path
) -> None:
    # Segments that are left behind while they are folded.
    journal = resegmented(recording.journal, tmp_path / "journal", 1 << 11)
    assert len(list(journal.iterdir())) >= 3
    ends = group_ends(journal)
    undisturbed = new_place(tmp_path / "undisturbed", journal)
    fold_here(undisturbed, ends[-1:])
    trial = tmp_path / "trial"
    steps = 0
    while True:
        place = new_place(trial, journal)
        with pytest.MonkeyPatch.context() as monkeypatch:
            Mortal(monkeypatch, steps)
            try:
                fold_here(place, ends[-1:])
                break
            except EndedError:
                pass
        fold_here(place, ends[-1:])
        found = contents(place)
        for path in [path for path in found if path.endswith(".partial")]:
            del found[path]
        assert found == contents(undisturbed), f"ended at step {steps}"
        shutil.rmtree(trial)
        steps += 1
    print(f"{steps} steps")
    assert steps >= 60
