"""The windows against a reference that handles one record at a time, and as naively as possible.

The reference keeps a dict of windows, decides with sets of ranks, looks at every
tag at every sweep and adds up with Python floats. Both are driven by the same
random journal; after each group points, counters and open records must be equal,
floats bit for bit.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ranktap_wire.delivery import ReceiveWindow, SendWindow, Verdict
from ranktapd import window_index
from ranktapd import windows as scalar_module
from ranktapd.blob_windows import RECORD_BYTES, WINDOW_BYTES, MergeWindows
from ranktapd.lateness import Lateness
from ranktapd.rank_sets import set_of, to_int
from ranktapd.window_rows import Ints
from ranktapd.window_store import Records, block_bytes, window_bytes
from ranktapd.windows import ScalarWindows

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
TAGS = {0: "mean", 1: "sum", 2: "min", 3: "max", 4: "last", 5: "rank0", 70: "mean", 9000: "last"}
CHUNK_ROWS = 7  # so that groups are absorbed in pieces

FAR_STEPS = [INT64_MIN, INT64_MIN + 1, -(2**50), -1, 2**41, 2**42 + 3, 10**18, INT64_MAX]
STEPS = st.one_of(st.integers(0, 6), st.integers(0, 40), st.sampled_from(FAR_STEPS))
VALUES = st.one_of(
    st.floats(allow_nan=False, width=64),
    st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 0.1, 0.2, 0.3, 1e308]),
)
WALLS = st.sampled_from([1.5, 2.5, 2.5, 3.25, 1e9])
MORE_RANKS = st.sampled_from([0, 1, 1, 2, 62])
WORLDS = st.sampled_from([1, 2, 2, 3, 3, 4, 5, 5, 66, 130])


class ReferenceTag:
    def __init__(self, policy: str, expected: set[int]) -> None:
        self.policy = policy
        self.expected = expected
        self.is_new = True
        self.last: int | None = None
        self.late = 0
        self.late_of: Counter[int] = Counter()


class ReferenceWindow:
    def __init__(self, seq: int) -> None:
        self.first_seq = seq
        self.records: dict[int, tuple[float, Any]] = {}


class Reference:
    """The rules, one record at a time.

    `merge(policy, records by rank)` makes a point's payload; `cost(world size,
    ranks)` is what a window takes.
    """

    def __init__(
        self,
        world_size: int,
        memory_bytes: int,
        merge: Callable[[str, list[tuple[float, Any]]], Any],
        cost: Callable[[int, set[int]], int],
    ) -> None:
        self.world_size = world_size
        self.memory_bytes = memory_bytes
        self.merge = merge
        self.cost = cost
        self.tags: dict[int, ReferenceTag] = {}
        self.windows: dict[tuple[int, int], ReferenceWindow] = {}
        self.with_session: set[int] = set()
        self.gone_ranks: set[int] = set()
        self.absent: set[int] = set()
        self.expire_seq = -1
        self.closed: list[tuple[Any, ...]] = []
        self.shown: list[tuple[int, int, list[Any]]] = []
        """The windows that closed, each with its records by rank."""
        self.added = self.repeated = self.ignored = self.discarded = 0
        self.incomplete = self.in_closed = 0

    def declare(self, tag: int, policy: str) -> None:
        if tag not in self.tags:
            expected = set(range(self.world_size)) - self.absent - self.gone_ranks
            self.tags[tag] = ReferenceTag(policy, set() if policy == "rank0" else expected)

    def record(self, seq: int, rank: int, tag: int, step: int, wall: float, payload: Any) -> None:
        known = self.tags[tag]
        self.added += 1
        if known.policy == "rank0" and rank != 0:
            self.ignored += 1
        elif known.last is not None and step <= known.last:
            known.late += 1
            known.late_of[rank] += 1
            known.expected.add(rank)
        else:
            window = self.windows.setdefault((tag, step), ReferenceWindow(seq))
            self.repeated += rank in window.records
            window.records[rank] = (wall, payload)

    def opened(self, rank: int) -> None:
        self.with_session.add(rank)
        self.gone_ranks.discard(rank)
        self.absent.discard(rank)
        self.wait_for([rank])

    def wait_for(self, ranks: list[int]) -> None:
        for tag in self.tags.values():
            if tag.is_new and tag.policy != "rank0":
                tag.expected |= set(ranks)

    def gone(self, rank: int) -> None:
        self.with_session.discard(rank)
        self.gone_ranks.add(rank)

    def resize(self, world_size: int) -> None:
        self.wait_for(list(range(self.world_size, world_size)))
        self.world_size = world_size

    def reset(self, step: int) -> None:
        for key in [key for key in self.windows if key[1] >= step]:
            self.discarded += len(self.windows.pop(key).records)
        for tag in self.tags.values():
            if tag.last is not None and tag.last >= step:
                tag.last = step - 1

    def used_bytes(self) -> int:
        return sum(self.cost(self.world_size, set(w.records)) for w in self.windows.values())

    def bound_memory(self) -> None:
        if self.used_bytes() > self.memory_bytes:
            self.sweep(self.expire_seq)
        if self.used_bytes() > self.memory_bytes:
            excess = self.used_bytes() - self.memory_bytes + self.memory_bytes // 16
            by_age = sorted(self.windows.values(), key=lambda window: window.first_seq)
            for window in by_age:
                seq = window.first_seq
                excess -= self.cost(self.world_size, set(window.records))
                if excess <= 0:
                    break
            self.sweep(seq)

    def sweep(self, forced_seq: int) -> None:
        missed: set[int] = set()
        for number, tag in self.tags.items():
            steps = sorted(step for of, step in self.windows if of == number)
            for i, step in enumerate(steps):
                window = self.windows[number, step]
                lacking = tag.expected - self.gone_ranks - set(window.records)
                if lacking:
                    later = [self.windows[number, at].first_seq for at in steps[i:]]
                    if not any(seq <= forced_seq for seq in later):
                        break
                    self.incomplete += 1
                    missed |= lacking
                del self.windows[number, step]
                tag.expected = set(window.records) | (tag.expected & self.gone_ranks)
                tag.last, tag.is_new = step, False
                records = [window.records[rank] for rank in sorted(window.records)]
                self.in_closed += len(records)
                wall = max(record[0] for record in records)
                point = self.merge(tag.policy, records)
                self.closed.append((number, step, wall, point, len(records)))
                self.shown.append((number, step, sorted(window.records.items())))
        given_up = missed - self.with_session
        self.absent |= given_up
        for tag in self.tags.values():
            if tag.is_new:
                tag.expected -= given_up

    def close_group(self) -> list[tuple[Any, ...]]:
        self.sweep(self.expire_seq)
        self.bound_memory()
        self.expire_seq = -1
        closed, self.closed = self.closed, []
        return sorted(closed, key=lambda point: point[0])

    def expected(self) -> dict[int, int]:
        return {number: set_of(tag.expected) for number, tag in self.tags.items()}

    def counters(self) -> dict[str, Any]:
        in_open = sum(len(window.records) for window in self.windows.values())
        late = sum(tag.late for tag in self.tags.values())
        dropped = late + self.repeated + self.ignored + self.discarded
        assert self.added == self.in_closed + in_open + dropped
        return {
            "late_total": late,
            "late_by_tag": {number: tag.late for number, tag in self.tags.items() if tag.late},
            "late_by_rank": sum((tag.late_of for tag in self.tags.values()), Counter()),
            "repeated_total": self.repeated,
            "ignored_total": self.ignored,
            "discarded_total": self.discarded,
            "incomplete_total": self.incomplete,
            "open_windows": len(self.windows),
            "used_bytes": self.used_bytes(),
            "oldest_open_seq": min((w.first_seq for w in self.windows.values()), default=None),
        }


def counters_of(windows: Any) -> dict[str, Any]:
    return {
        "late_total": windows.late_total,
        "late_by_tag": windows.late_by_tag(),
        "late_by_rank": windows.late_by_rank(),
        "repeated_total": windows.repeated_total,
        "ignored_total": windows.ignored_total,
        "discarded_total": windows.discarded_total,
        "incomplete_total": windows.incomplete_total,
        "open_windows": windows.open_windows,
        "used_bytes": windows.used_bytes,
        "oldest_open_seq": windows.oldest_open_seq(),
    }


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def merge_scalars(policy: str, records: list[tuple[float, float]]) -> tuple[bytes, bytes, bytes]:
    """Value, minimum and maximum as bytes."""
    values = [value for _, value in records]
    total = 0.0
    for value in values:
        total += value
    numbers = [value for value in values if not math.isnan(value)]
    low, high = min(numbers, default=math.nan), max(numbers, default=math.nan)
    latest = max(wall for wall, _ in records)
    last = [value for wall, value in records if wall == latest][-1]
    merged = {
        "mean": total / len(values),
        "sum": total,
        "rank0": total,
        "min": low,
        "max": high,
        "last": last,
    }[policy]
    clean = [math.nan if math.isnan(value) else value + 0.0 for value in (merged, low, high)]
    return bits(clean[0]), bits(clean[1]), bits(clean[2])


def scalar_cost(world_size: int, ranks: set[int]) -> int:
    blocks = len({rank // 64 for rank in ranks})
    return window_bytes(world_size) + blocks * block_bytes(world_size)


def points_of(closed: scalar_module.Closed) -> list[tuple[Any, ...]]:
    columns = (closed.values, closed.minimum, closed.maximum)
    merged = zip(*([bits(value) for value in column.tolist()] for column in columns), strict=True)
    return list(
        zip(
            closed.tags.tolist(),
            closed.steps.tolist(),
            closed.walls.tolist(),
            merged,
            closed.reporters.tolist(),
            strict=True,
        )
    )


def windows_of(
    tags: Ints, steps: Ints, records: Records
) -> list[tuple[int, int, list[tuple[int, float, bytes]]]]:
    """Tag, step and records (rank, wall time, bits of the value) of windows that were shown."""
    ends = records.counts.cumsum().tolist()
    ranks, walls, values = (
        column.tolist() for column in (records.ranks, records.walls, records.values)
    )
    found = []
    for tag, step, begin, end in zip(tags.tolist(), steps.tolist(), [0, *ends], ends, strict=False):
        rows = range(begin, end)
        found.append((tag, step, [(ranks[i], walls[i], bits(values[i])) for i in rows]))
    return found


class Windows(RuleBasedStateMachine):
    """What scalars and blobs have in common: who comes and goes, and where groups end."""

    windows: Any
    reference: Reference

    def start(self, world_size: int) -> None:
        self.seq = 0
        self.world_size = world_size
        for number in TAGS:
            if number % 2 == 0:
                self.declare(number)

    def declare(self, tag: int) -> None:
        raise NotImplementedError

    def restored(self) -> Any:
        raise NotImplementedError

    def compare(self) -> None:
        """End the group: points, and whom each tag waits for next."""
        raise NotImplementedError

    def some_rank(self, data: st.DataObject) -> int:
        return data.draw(
            st.one_of(
                st.integers(0, min(3, self.world_size - 1)), st.integers(0, self.world_size - 1)
            ),
            label="rank",
        )

    @rule(data=st.data())
    def open_session(self, data: st.DataObject) -> None:
        rank = self.some_rank(data)
        self.windows.opened(rank)
        self.reference.opened(rank)

    @rule(data=st.data())
    def last_session_goes(self, data: st.DataObject) -> None:
        rank = self.some_rank(data)
        self.windows.gone(rank)
        self.reference.gone(rank)

    @rule(back=st.integers(0, 8))
    def expire(self, back: int) -> None:
        self.windows.expire(self.seq - back)
        self.reference.expire_seq = max(self.reference.expire_seq, self.seq - back)

    @rule(step=STEPS)
    def reset(self, step: int) -> None:
        self.windows.reset(step)
        self.reference.reset(step)

    @rule(more=MORE_RANKS)
    @precondition(lambda self: self.world_size < 200)
    def grow(self, more: int) -> None:
        self.world_size += more
        self.windows.resize(self.world_size)
        self.reference.resize(self.world_size)

    @rule(save=st.booleans())
    def end_group(self, save: bool) -> None:
        self.compare()
        assert counters_of(self.windows) == self.reference.counters()
        if save:
            self.windows = self.restored()
            assert counters_of(self.windows) == self.reference.counters()

    def teardown(self) -> None:
        if hasattr(self, "windows"):
            self.compare()
            for rank in range(self.world_size):
                self.windows.gone(rank)
                self.reference.gone(rank)
            self.compare()
            assert self.windows.open_windows == 0  # nobody is waited for any more
            assert counters_of(self.windows) == self.reference.counters()


class Scalars(Windows):
    @initialize(world_size=WORLDS, memory=st.sampled_from([1500, 5000, 1 << 20]))
    def set_up(self, world_size: int, memory: int) -> None:
        self.windows = ScalarWindows(world_size, memory_bytes=memory)
        self.reference = Reference(world_size, memory, merge_scalars, scalar_cost)
        self.pending_rows = 0
        self.shown: list[tuple[int, int, list[Any]]] = []
        self.windows.observer = self.observe
        self.start(world_size)

    def observe(self, tags: Ints, steps: Ints, records: Records) -> None:
        self.shown += windows_of(tags, steps, records)

    def declare(self, tag: int) -> None:
        self.windows.declare(tag, TAGS[tag])
        self.reference.declare(tag, TAGS[tag])

    @rule(
        data=st.data(),
        tags=st.lists(st.sampled_from(sorted(TAGS)), min_size=1, max_size=3, unique=True),
        steps=st.lists(STEPS, max_size=6),
    )
    def batch(self, data: st.DataObject, tags: list[int], steps: list[int]) -> None:
        """One rank logs some steps of some tags."""
        rows = [(tag, step) for step in steps for tag in tags]
        walls = data.draw(st.lists(WALLS, min_size=len(rows), max_size=len(rows)), label="walls")
        values = data.draw(st.lists(VALUES, min_size=len(rows), max_size=len(rows)), label="values")
        for tag in tags:
            self.declare(tag)
        ranks = {self.some_rank(data) for _ in range(data.draw(st.integers(1, 3), label="ranks"))}
        for rank in ranks:
            self.add(rank, rows, walls, values)

    @rule(data=st.data(), tag=st.sampled_from(sorted(TAGS)), first=st.integers(0, 30))
    def all_ranks_log(self, data: st.DataObject, tag: int, first: int) -> None:
        """As it should be: every rank, or all but one, logs the same steps."""
        self.declare(tag)
        rows = [(tag, first + i) for i in range(data.draw(st.integers(1, 4), label="steps"))]
        but = data.draw(st.one_of(st.none(), st.integers(0, self.world_size - 1)), label="but")
        for rank in data.draw(st.permutations(range(min(self.world_size, 70))), label="order"):
            if rank != but:
                value = data.draw(VALUES, label="value")
                self.add(rank, rows, [2.5] * len(rows), [value] * len(rows))

    def add(
        self, rank: int, rows: list[tuple[int, int]], walls: list[float], values: list[float]
    ) -> None:
        self.seq += 1
        columns = list(zip(rows, walls, values, strict=True))
        self.windows.add(
            self.seq,
            rank,
            np.array([tag for tag, _ in rows], np.int32),
            np.array([step for _, step in rows], np.int64),
            np.array(walls, np.float64),
            np.array(values, np.float64),
        )
        for start in range(0, len(columns), CHUNK_ROWS):
            part = columns[start : start + CHUNK_ROWS]
            if self.pending_rows + len(part) > CHUNK_ROWS:
                self.reference.bound_memory()
                self.pending_rows = 0
            self.pending_rows += len(part)
            for (tag, step), wall, value in part:
                self.reference.record(self.seq, rank, tag, step, wall, value)

    @rule(step=STEPS)
    def reset(self, step: int) -> None:
        self.pending_rows = 0
        super().reset(step)

    @rule(more=MORE_RANKS)
    @precondition(lambda self: self.world_size < 200)
    def grow(self, more: int) -> None:
        if more:
            self.pending_rows = 0
        super().grow(more)

    def compare(self) -> None:
        self.pending_rows = 0
        assert points_of(self.windows.close_group()) == self.reference.close_group()
        reference, self.reference.shown = self.reference.shown, []
        shown, self.shown = self.shown, []
        # In the same order within a tag.
        assert sorted(shown, key=lambda window: window[0]) == [
            (tag, step, [(rank, wall, bits(value)) for rank, (wall, value) in records])
            for tag, step, records in sorted(reference, key=lambda window: window[0])
        ]
        expected = {tag: to_int(self.windows._table.expected[tag]) for tag in self.reference.tags}
        assert expected == self.reference.expected()

    def restored(self) -> ScalarWindows:
        windows = ScalarWindows.restore(msgpack.unpackb(msgpack.packb(self.windows.state())))
        windows.observer = self.observe
        return windows


class Trail:
    """A payload that remembers what was merged into it, in order."""

    def __init__(self, parts: list[tuple[int, int]]) -> None:
        self.parts = parts

    def merge(self, other: Trail) -> Trail:
        return Trail(self.parts + other.parts)

    def dump(self) -> bytes:
        packed: bytes = msgpack.packb(self.parts)
        return packed

    @classmethod
    def load(cls, packed: bytes) -> Trail:
        return cls([(rank, number) for rank, number in msgpack.unpackb(packed)])


def merge_trails(policy: str, records: list[tuple[float, Trail]]) -> list[tuple[int, int]]:
    if policy == "last":
        latest = max(wall for wall, _ in records)
        return [trail for wall, trail in records if wall == latest][-1].parts
    return [part for _, trail in records for part in trail.parts]


class Blobs(Windows):
    policies = ("merge", "last", "rank0")
    size_bytes = 100

    @initialize(world_size=WORLDS, memory=st.sampled_from([3000, 1 << 20]))
    def set_up(self, world_size: int, memory: int) -> None:
        self.windows = MergeWindows(world_size, memory_bytes=memory)
        self.reference = Reference(world_size, memory, merge_trails, self.cost)
        self.start(world_size)

    def cost(self, world_size: int, ranks: set[int]) -> int:
        return WINDOW_BYTES + len(ranks) * (self.size_bytes + RECORD_BYTES)

    def declare(self, tag: int) -> None:
        self.windows.declare(tag, self.policies[tag % 3])
        self.reference.declare(tag, self.policies[tag % 3])

    @rule(data=st.data(), tag=st.sampled_from(sorted(TAGS)), step=STEPS)
    def log(self, data: st.DataObject, tag: int, step: int) -> None:
        self.declare(tag)
        for rank in {self.some_rank(data) for _ in range(data.draw(st.integers(1, 4)))}:
            self.add(rank, tag, step, data.draw(WALLS, label="wall"))

    @rule(data=st.data(), tag=st.sampled_from(sorted(TAGS)), step=STEPS)
    def all_ranks_log(self, data: st.DataObject, tag: int, step: int) -> None:
        self.declare(tag)
        but = data.draw(st.one_of(st.none(), st.integers(0, self.world_size - 1)), label="but")
        for rank in data.draw(st.permutations(range(min(self.world_size, 70))), label="order"):
            if rank != but:
                self.add(rank, tag, step, data.draw(WALLS, label="wall"))

    def add(self, rank: int, tag: int, step: int, wall: float) -> None:
        self.seq += 1
        trail = Trail([(rank, self.seq)])
        self.windows.add(self.seq, rank, tag, step, wall, trail, self.size_bytes)
        self.reference.record(self.seq, rank, tag, step, wall, trail)
        self.reference.bound_memory()

    def compare(self) -> None:
        points = [
            (point.tag, point.step, point.wall, point.payload.parts, point.reporters)
            for point in self.windows.close_group()
        ]
        assert points == self.reference.close_group()
        expected = {tag: self.windows._tags[tag].expected for tag in self.reference.tags}
        assert expected == self.reference.expected()

    def restored(self) -> MergeWindows[Trail]:
        state = msgpack.unpackb(msgpack.packb(self.windows.state(Trail.dump)))
        return MergeWindows.restore(state, Trail.load)


THOROUGH = settings(max_examples=120, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("merged_in_a_move", [0, 10**9])
def test_scalar_windows_do_what_the_reference_does(
    monkeypatch: pytest.MonkeyPatch, merged_in_a_move: int
) -> None:
    monkeypatch.setattr(scalar_module, "CHUNK_ROWS", CHUNK_ROWS)
    # Both ways in which the index moves, whatever its size; closing in pieces.
    monkeypatch.setattr(window_index, "_MERGED_IN_A_MOVE", merged_in_a_move)
    monkeypatch.setattr(scalar_module, "_RECORDS_AT_ONCE", 9)
    run_state_machine_as_test(Scalars, settings=THOROUGH)


def test_merge_windows_do_what_the_reference_does() -> None:
    run_state_machine_as_test(Blobs, settings=THOROUGH)


@settings(deadline=None)
@given(data=st.data(), world_size=st.integers(2, 70))
def test_points_do_not_depend_on_the_order_in_which_ranks_report(
    data: st.DataObject, world_size: int
) -> None:
    count = 3 * len(TAGS)
    tags = np.repeat(np.array(list(TAGS)), 3)
    steps = np.tile(np.array([-5, 0, 2**45]), len(TAGS))
    ranks = data.draw(st.sets(st.integers(0, world_size - 1), min_size=2), label="ranks")
    columns = {
        rank: (
            np.array(data.draw(st.lists(WALLS, min_size=count, max_size=count))),
            np.array(data.draw(st.lists(VALUES, min_size=count, max_size=count))),
        )
        for rank in sorted(ranks)
    }
    results = []
    for order in (sorted(ranks), data.draw(st.permutations(sorted(ranks)), label="order")):
        windows = ScalarWindows(world_size)
        for number, policy in TAGS.items():
            windows.declare(number, policy)
        for rank in order:
            windows.add(1, rank, tags, steps, *columns[rank])
        for rank in range(world_size):
            windows.gone(rank)
        results.append(points_of(windows.close_group()))
    assert len(results[0]) >= 3 * (len(TAGS) - 1)
    assert results[0] == results[1]


# -- the way there --------------------------------------------------------------------------

Row = tuple[int, int]
"""Tag and step."""


@dataclass
class Sending:
    """A rank that sends batches over a network that loses, repeats and reorders them."""

    rank: int
    batches: list[list[Row]]
    window: SendWindow[list[Row]] = field(default_factory=lambda: SendWindow(1 << 20, 3))
    journaled: ReceiveWindow = field(default_factory=ReceiveWindow)
    on_its_way: list[tuple[int, list[Row]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for batch in self.batches:
            self.window.push(batch, 1)

    def send(self) -> None:
        while (numbered := self.window.due()) is not None:
            self.on_its_way.append((numbered.number, numbered.batch))


def value_of(rank: int, tag: int, step: int) -> float:
    """Of whole numbers sums are exact: what is in one tells whose they are."""
    return float(rank + 1 << 10) + tag + step


class Plan:
    """A job: what its ranks log, and what happens on the way to the windows and in them."""

    def __init__(self, data: st.DataObject) -> None:
        ranks = data.draw(st.integers(2, 4), label="ranks")
        steps = st.sets(st.integers(0, 6), max_size=7)
        self.senders = []
        for rank in range(ranks):
            rows = [
                (tag, step)
                for step in sorted(data.draw(steps, label=f"steps of {rank}"))
                for tag in data.draw(st.sampled_from([(0,), (1,), (0, 1), (1, 4)]), label="tags")
            ]
            size = data.draw(st.integers(1, 4), label="rows of a batch")
            batches = [rows[first : first + size] for first in range(0, len(rows), size)]
            self.senders.append(Sending(rank, batches))
        self.windows = ScalarWindows(ranks)
        for tag in (0, 1, 4):
            self.windows.declare(tag, TAGS[tag])
        self.seq = 0
        self.shown: list[tuple[int, int, list[tuple[int, float, bytes]]]] = []
        self.windows.observer = lambda *columns: self.shown.extend(windows_of(*columns))
        self.points: dict[Row, tuple[Any, ...]] = {}
        self.logged = {
            (sender.rank, *row) for sender in self.senders for batch in sender.batches
            for row in batch
        }  # fmt: skip

    def arrive(self, sender: Sending, number: int, batch: list[Row]) -> None:
        """What the intake does: only the batch that follows is taken, once."""
        if sender.journaled.judge(number) is Verdict.NEXT:
            sender.journaled.accept(number)
            self.seq += 1
            tags, steps = (np.array(column) for column in zip(*batch, strict=True))
            values = np.array([value_of(sender.rank, *row) for row in batch])
            walls = 100.0 * steps + sender.rank
            self.windows.add(self.seq, sender.rank, tags, steps, walls, values)
        sender.window.acknowledged(sender.journaled.last)

    def close_group(self) -> None:
        for point in points_of(self.windows.close_group()):
            assert point[:2] not in self.points, "a window closes once"
            self.points[point[:2]] = point[2:]

    def step(self, data: st.DataObject, *, has_stragglers: bool) -> None:
        sender = data.draw(st.sampled_from(self.senders))
        ways = ["send", "arrive", "arrive", "arrive", "lose", "repeat", "reconnect", "group"]
        way = data.draw(st.sampled_from(ways + ["give up", "leave"] * has_stragglers))
        there = sender.on_its_way
        if way in ("arrive", "lose", "repeat") and there:
            # Any of them: what was sent later may come first.
            at = data.draw(st.integers(0, len(there) - 1))
            message = there[at] if way == "repeat" else there.pop(at)
            if way != "lose":
                self.arrive(sender, *message)
        elif way == "send":
            sender.send()
        elif way == "reconnect":
            sender.window.rewind()
        elif way == "group":
            self.close_group()
        elif way == "give up":
            self.windows.expire(self.seq)
        elif way == "leave":
            self.windows.gone(sender.rank)
            self.windows.opened(sender.rank)

    def finish(self) -> None:
        """All that is still held arrives in the end, as the client goes on until it does."""
        for sender in self.senders:
            while len(sender.window):
                sender.window.rewind()
                sender.send()
                for message in sender.on_its_way:
                    self.arrive(sender, *message)
                sender.on_its_way.clear()
        self.close_group()
        for sender in self.senders:
            self.windows.gone(sender.rank)
        self.close_group()


@settings(deadline=None, max_examples=150)
@given(data=st.data(), has_stragglers=st.booleans())
def test_whatever_happens_to_batches_each_record_is_in_one_window_or_late(
    data: st.DataObject, has_stragglers: bool
) -> None:
    plan = Plan(data)
    for _ in range(data.draw(st.integers(0, 40), label="length")):
        plan.step(data, has_stragglers=has_stragglers)
    plan.finish()
    merged = [(rank, tag, step) for tag, step, records in plan.shown for rank, _, _ in records]
    assert len(merged) == len(set(merged)), "a record is in one window at most"
    late = Counter(rank for rank, _, _ in plan.logged - set(merged))
    assert plan.windows.late_by_rank() == late, "and what is in none is late"
    assert plan.windows.open_windows == 0
    assert len(merged) + plan.windows.late_total == len(plan.logged)
    if not has_stragglers:
        assert not late, "nothing was given up on"
    # The reference sees all of a window's records at once, as they were logged.
    expected = {}
    for tag, step in {(tag, step) for _, tag, step in merged}:
        ranks = sorted(rank for rank, *row in merged if row == [tag, step])
        records = [(100.0 * step + rank, value_of(rank, tag, step)) for rank in ranks]
        point = merge_scalars(TAGS[tag], records)
        expected[tag, step] = (max(wall for wall, _ in records), point, len(ranks))
    assert plan.points == expected


@settings(deadline=None)
@given(data=st.data(), world_size=st.integers(2, 5))
def test_how_late_ranks_are_does_not_depend_on_the_order_in_which_windows_close(
    data: st.DataObject, world_size: int
) -> None:
    keys = st.sets(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=12)
    windows = {
        key: data.draw(
            st.dictionaries(st.integers(0, world_size - 1), WALLS, min_size=1), label=str(key)
        )
        for key in sorted(data.draw(keys, label="windows"))
    }
    offsets = data.draw(st.one_of(st.none(), st.lists(WALLS, min_size=5, max_size=5)))
    lateness = Lateness(world_size)
    if offsets is not None:
        lateness.offsets = np.array(offsets[:world_size])
    order = data.draw(st.permutations(sorted(windows)), label="order")
    size = data.draw(st.integers(1, 12), label="windows that close at once")
    for start in range(0, len(order), size):
        some = [(key, sorted(windows[key].items())) for key in order[start : start + size]]
        rows = [row for _, records in some for row in records]
        lateness.closed(
            np.array([key[0] for key, _ in some]),
            np.array([key[1] for key, _ in some]),
            Records(
                np.array([len(records) for _, records in some]),
                np.arange(len(some)).repeat([len(records) for _, records in some]),
                np.array([rank for rank, _ in rows]),
                np.array([wall for _, wall in rows]),
                np.ones(len(rows)),
            ),
        )
    expected: dict[int, dict[int, float]] = {}
    for (_, step), records in windows.items():
        if len(records) > 1:
            shift = offsets or [0.0] * world_size
            adjusted = {rank: wall + shift[rank] for rank, wall in records.items()}
            for rank, wall in adjusted.items():
                of_step = expected.setdefault(step, {})
                behind = wall - min(adjusted.values())
                of_step[rank] = max(of_step.get(rank, 0.0), behind)
    found = {
        step.number: {
            rank: late for rank, late in enumerate(step.late.tolist()) if not math.isnan(late)
        }
        for step in lateness.take(is_over=True)
    }
    assert found == expected
