"""A small journal cut off, or with a bit flipped, at every byte: what a run makes of the rest.

The daemon opens it, a worker folds it. What cannot be read is named, in the log too;
every batch that is not named is in the event file, and nothing else.
"""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ranktap_wire.segment import segment_path
from ranktapd.entries import BatchAccepted, SessionGone, read_entry
from ranktapd.runs import Run, RunPlace
from tests.support import folding, messages
from tests.support.event_files import accumulate, scalar_points
from tests.support.journals import flip_bit, read_journal
from tests.support.strangers import a_batch, points_of

RUN = "damaged"
SESSIONS = {0: b"a" * 16, 1: b"b" * 16}
"""By rank."""


@dataclass
class Small:
    """A journal of one segment, and what of it each rank's batches are."""

    place: RunPlace
    last: int
    batches: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Entry to (rank, batch number)."""
    groups: list[tuple[int, int]] = field(default_factory=list)
    """(offset, last entry) at the end of each."""

    @property
    def segment(self) -> Path:
        return segment_path(self.place.journal, 1)


def _place(logdir: Path) -> RunPlace:
    return RunPlace.of(logdir, logdir / ".ranktap", RUN)


@pytest.fixture(autouse=True)
def _without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda fd: None)


@pytest.fixture
def small(tmp_path: Path) -> Small:
    place = _place(tmp_path / "whole")
    run = Run.open(place, sync=False, segment_bytes=1 << 20)
    sessions = {}
    for rank, identity in SESSIONS.items():
        hello = messages.hello(session=identity, run=RUN, rank=rank, world_size=2)
        sessions[rank] = run.welcome(hello, b"peer", 0.0)
        run.commit()
    for number in (1, 2):
        for rank, identity in SESSIONS.items():
            words = BatchAccepted(identity, number, rank, world_size=2)
            run.add_batch(sessions[rank], words, a_batch(identity, number), number)
        run.commit()
    for identity in SESSIONS.values():
        run.add(SessionGone(identity, final=True))
    run.commit()
    run.close()
    small = Small(place, run.journal.last)
    for entry in folding.entries(place.journal):
        words = read_entry(entry.frames)
        if isinstance(words, BatchAccepted):
            (rank,) = [rank for rank, identity in SESSIONS.items() if identity == words.session]
            small.batches[entry.sequence] = (rank, words.number)
        if entry.ends_group:
            small.groups.append((entry.after.offset, entry.sequence))
    return small


def _expected(small: Small, entries: set[int]) -> dict[str, list[tuple[int, float]]]:
    """What these entries' batches make."""
    numbers: dict[int, list[int]] = {}
    for sequence in sorted(entries & small.batches.keys()):
        rank, number = small.batches[sequence]
        numbers.setdefault(rank, []).append(number)
    return {f"ranks/value/rank{rank}": points_of(each) for rank, each in numbers.items()}


def _laid_out(logdir: Path, segment: bytes) -> RunPlace:
    """A run of this journal and nothing else."""
    place = _place(logdir)
    if place.events.exists():  # something was folded there
        shutil.rmtree(logdir)
    place.journal.mkdir(parents=True, exist_ok=True)
    segment_path(place.journal, 1).write_bytes(segment)
    return place


def _open(place: RunPlace) -> int:
    """What a daemon does that finds this journal; its last entry then."""
    run = Run.open(place, sync=False, segment_bytes=1 << 20)
    run.close()
    return run.journal.last


def _fold(place: RunPlace, last: int) -> dict[str, list[tuple[int, float]]]:
    """What the event file shows when a worker has been there."""
    folding.fold_here(place, [last])
    shown = accumulate(place.events)
    points = {
        tag: [(point.step, point.value) for point in shown.Scalars(tag)]
        for tag in shown.Tags()["scalars"]
    }
    assert points == scalar_points(place.events)
    return points


FOLD_EVERY = 16
"""What is written depends on the entries that can be read alone: each set of them is folded
once, and besides at every so many bytes."""


def test_a_bit_flipped_in_any_byte_is_reported_and_the_rest_is_kept(
    small: Small, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(1)
    whole = small.segment.read_bytes()
    size = len(whole)
    folded: set[tuple[int, ...]] = set()
    silent = 0
    for offset in range(size):
        place = _laid_out(tmp_path / "trial", whole)
        flip_bit(segment_path(place.journal, 1), offset, chance.randrange(8))
        caplog.clear()
        with caplog.at_level("INFO"):
            last = _open(place)
        read = read_journal(place.journal, last)
        if tuple(read.entries) not in folded or offset % FOLD_EVERY == 0:
            folded.add(tuple(read.entries))
            with caplog.at_level("INFO"):
                found = _fold(place, last)
            assert found == _expected(small, {*read.entries}), f"byte {offset}"
        if read.damages:
            assert str(read.damages[0]) in caplog.text, f"byte {offset}"
        elif last < small.last:
            assert "cut" in caplog.text, f"byte {offset}"
        else:
            silent += 1
            assert {*read.entries} == {*range(1, small.last + 1)}
        # It costs its own entry, or the last group, and nothing besides.
        assert {*read.entries} | {*read.lost} == {*range(1, last + 1)}
        assert len(read.lost) <= 1, f"byte {offset}"
        assert last in (small.last, small.groups[-2][1]), f"byte {offset}"
    print(f"{size} bytes, {silent} of them between entries; {len(folded)} sets of entries")
    assert silent < size // 10
    # Without each single entry, without the last group, and whole.
    assert len(folded) > small.last - 2


def test_a_journal_cut_off_at_any_byte_loses_its_last_group_and_nothing_else(
    small: Small, tmp_path: Path
) -> None:
    whole = small.segment.read_bytes()
    for end in range(small.groups[0][0], len(whole)):
        place = _laid_out(tmp_path / "trial", whole[:end])
        last = max(last for offset, last in small.groups if offset <= end)
        assert _open(place) == last, f"cut off at byte {end}"
        if end % FOLD_EVERY == 0 or any(offset == end for offset, _ in small.groups):
            found = _fold(place, last)
            assert found == _expected(small, {*range(last + 1)}), f"cut off at byte {end}"
