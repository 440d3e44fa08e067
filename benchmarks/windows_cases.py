"""What merging the ranks' scalars costs: CPU time of the worker that folds a run's journal.

The records are made before the clock starts; what is measured is process time, so that
other processes of the machine do not count.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks import tally
from benchmarks.cases import Case, Figures
from benchmarks.work import many, timed
from ranktap_wire import frames
from ranktap_wire.limits import BATCH_INTERVAL_S
from ranktap_wire.records import Across, Batch, Columns, byte_view
from ranktap_wire.segment import Entry, Position
from ranktapd.entries import BatchAccepted, RunBegins, SessionOpened, Words, pack_entry
from ranktapd.fold import Fold
from ranktapd.lateness import Lateness
from ranktapd.windows import ScalarWindows

RANKS, TAGS, STEPS_PER_S = 8, 1_000, 10
START = 1_700_000_000.0


def _warm_up() -> None:
    # As the worker does: glibc keeps blocks of this size from then on.
    np.empty(16 << 20, np.uint8)


class _Journal:
    """Entries as a worker reads them, in groups."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def say(self, words: Words, batch: frames.Frames = (), *, ends_group: bool = True) -> None:
        number = len(self.entries) + 1
        parts = [memoryview(bytes(byte_view(part))) for part in pack_entry(words, batch)]
        self.entries.append(Entry(number, ends_group, parts, Position(number, 1, 0)))


def _job(seconds: int) -> tuple[Fold, _Journal]:
    """A fold that knows the ranks, and the entries of so many seconds: a group each time that
    all ranks send, which is every 50 ms."""
    journal = _Journal()
    journal.say(RunBegins(START, "host", 1, ""))
    for rank in range(RANKS):
        identity = rank.to_bytes(16, "little")
        journal.say(SessionOpened(identity, rank, RANKS, "host", rank, START, None, 0))
    fold = Fold(ThreadPoolExecutor(1))
    for entry in journal.entries:
        fold.apply(entry)
        fold.close_group(str(entry.after))
    journal.entries.clear()
    tags = [f"section{number % 20}/layer{number}/norm" for number in range(TAGS)]
    rows = round(TAGS * STEPS_PER_S * BATCH_INTERVAL_S)
    for group in range(round(seconds / BATCH_INTERVAL_S)):
        at = np.arange(group * rows, (group + 1) * rows)
        steps, index = at // TAGS, at % TAGS
        used = np.unique(index)
        for rank in range(RANKS):
            columns = Columns(
                [tags[number] for number in used],
                np.full(used.size, Across.MEAN, np.uint8),
                np.searchsorted(used, index).astype(np.int32),
                steps,
                START + steps / STEPS_PER_S + rank * 1e-3,
                np.random.default_rng(rank).random(rows),
            )
            identity = rank.to_bytes(16, "little")
            packed = frames.pack_batch(identity, group + 1, Batch(columns))
            journal.say(BatchAccepted(identity, group + 1), packed, ends_group=rank == RANKS - 1)
    return fold, journal


def share_of_a_core(directory: Path) -> Figures:
    """All that a worker does with such a job but reading and writing files."""
    _warm_up()
    seconds = many(20, 1)
    fold, journal = _job(seconds)
    nbytes = 0
    with timed() as took:
        for entry in journal.entries:
            fold.apply(entry)
            if entry.ends_group:
                nbytes += len(fold.close_group(str(entry.after)).join())
    spent = took.cpu_s
    merged = seconds * STEPS_PER_S * TAGS
    if nbytes < merged * 3 * 40:  # mean, min and max of each
        raise RuntimeError(f"{nbytes} bytes of events are too few for {merged} merged points")
    tally.note({"bytes of events": nbytes})
    return {"share of a core": 100 * spent / seconds}


def records_merged(directory: Path) -> Figures:
    """The windows alone, with the times that ranks took: records in, merged points out."""
    _warm_up()
    windows = ScalarWindows(RANKS)
    windows.observer = Lateness(RANKS).closed
    for tag in range(TAGS):
        windows.declare(tag, "mean")
    tags, steps = np.arange(TAGS), many(200, 2)
    values = np.random.default_rng(0).random((RANKS, TAGS))
    walls = START + values
    points = 0
    with timed() as took:
        for step in range(steps):
            at = np.full(TAGS, step)
            for rank in range(RANKS):
                windows.add(step, rank, tags, at, walls[rank] + step, values[rank])
            points += len(windows.close_group())
    tally.read_back({"merged points": steps * TAGS}, {"merged points": points})
    return {"records/s": steps * TAGS * RANKS / took.cpu_s}


WINDOWS_CASES = [
    Case(
        "windows-share",
        f"merging {RANKS} ranks x {TAGS:,} tags x {STEPS_PER_S} steps a second: all of the fold",
        {"ranktap": share_of_a_core},
        {"share of a core": ("below", 25)},
        {"share of a core": "%"},
    ),
    Case(
        "windows-merged",
        f"scalar records of {RANKS} ranks merged, on one core",
        {"ranktap": records_merged},
        {"records/s": ("above", 1_000_000)},
        {"records/s": "1/s"},
        higher_is_better=True,
    ),
]
