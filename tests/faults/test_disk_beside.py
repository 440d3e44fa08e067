"""A full disk, when files are to be made beside a run's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ranktapd.output import File
from ranktapd.run_files import RunFiles
from ranktapd.runs import RunPlace
from tests.faults.test_disk import MIB, SmallDisk, small_disk  # noqa: F401 - a fixture
from tests.support.folding import contents, written_records
from tests.unit.test_event_file import scalar
from tests.unit.test_run_files import BEGINS, group


def test_sub_runs_and_files_that_find_a_full_disk_are_made_when_there_is_room(
    small_disk: Callable[[int], SmallDisk],  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    disk = small_disk(MIB)
    place = RunPlace.of(disk.path / "runs", disk.path / "state", "a")
    place.state.mkdir(parents=True)
    filler = disk.path / "filler"
    waits: list[float] = []

    def wait(seconds: float) -> None:
        """Makes a little room, every time."""
        waits.append(seconds)
        with filler.open("r+b") as file:
            file.truncate(filler.stat().st_size - 4096)

    files = RunFiles(place, BEGINS, wait)
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    large = bytes(100_000)
    made = File("", "00001/x/tensors.tsv", lambda: [large, large], 1)
    files.write([group(1, "", "x", "y/z", files=(made,))])
    files.close()
    assert len(waits) >= 50
    assert contents(place)["00001/x/tensors.tsv"] == large + large
    for sub_run in ("", "x", "y/z"):
        assert written_records(place.events / sub_run) == [scalar(1)[12:-4]]
    assert caplog.text.count("waiting for room") <= 8, "not at every try"
