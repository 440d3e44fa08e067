"""Many ranks to one, for what is merged as an object: histograms and moments.

The rules are those of `windows` (both stand on `presence`), the bookkeeping is
plain dicts: such records come a few a second, and merging one costs far more
than finding its window. Pure: no clock, file, socket or thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

from ranktapd.presence import INT64_MIN, SPARE_PART, Presence, State, close_in_order
from ranktapd.rank_sets import ranks_in, set_of

POLICIES = ("merge", "last", "rank0")
"""How the ranks' payloads become one: merged in rank order, the latest by wall time, rank 0's."""

# What Python takes beside the payloads' data: measured with tracemalloc, of a record 150, and
# 350 for a payload that is an object with two small arrays.
WINDOW_BYTES = 300
RECORD_BYTES = 500

DEFAULT_MEMORY_BYTES = 64 << 20  # 1,000 windows of 8 ranks, with histograms of 1,000 buckets


class Mergeable(Protocol):
    """A payload."""

    def merge(self, other: Self, /) -> Self:
        """This rank's and a higher rank's as one. Neither may change."""
        ...


P = TypeVar("P", bound=Mergeable)


class Merged(NamedTuple, Generic[P]):
    """One merged point. `wall`: the latest of its records; `reporters`: how many ranks."""

    tag: int
    step: int
    wall: float
    payload: P
    reporters: int


class _Record(NamedTuple, Generic[P]):
    """`size_bytes`: what it takes of the memory."""

    wall: float
    payload: P
    size_bytes: int


@dataclass(slots=True)
class _Window(Generic[P]):
    """The records of one (tag, step), by rank."""

    first_seq: int
    records: dict[int, _Record[P]] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        return WINDOW_BYTES + sum(record.size_bytes for record in self.records.values())


@dataclass(slots=True)
class _Tag(Generic[P]):
    """What is known of a tag. `last` is the step of its last closed window."""

    policy: str
    expected: int
    is_new: bool = True
    last: int | None = None
    late: int = 0
    windows: dict[int, _Window[P]] = field(default_factory=dict)


class MergeWindows(Generic[P]):
    """The windows of one run's mergeable objects. Not thread safe.

    Feed every journal entry in order, and call `close_group` at each group's end;
    `opened`, `gone`, `expire`, `reset`, `resize`, `state` and the counters are
    those of `windows.ScalarWindows`. Tags need not be the same ints as there.

    `memory_bytes` bounds the sum of the `size_bytes` given to `add`, of
    `RECORD_BYTES` for each record and `WINDOW_BYTES` for each window: beyond it
    what may close closes, then the oldest windows as if expired. It belongs to
    the fold.
    """

    def __init__(self, world_size: int, *, memory_bytes: int = DEFAULT_MEMORY_BYTES) -> None:
        self._presence = Presence(world_size)
        self._memory_bytes = memory_bytes
        self._tags: dict[int, _Tag[P]] = {}
        self._used_bytes = 0
        self._late_of_rank: dict[int, int] = {}
        self.repeated_total = 0
        self.ignored_total = 0
        self.discarded_total = 0
        self.incomplete_total = 0
        # The group that is being fed.
        self._in_group = False
        self._touched: set[int] = set()
        self._expired: int | None = None
        self._closed: list[Merged[P]] = []
        # Ranks left or were given up on since the last sweep: any tag may have windows to close.
        self._any_tag = False

    @property
    def world_size(self) -> int:
        """Ranks are 0 .. world_size - 1."""
        return self._presence.world_size

    @property
    def open_windows(self) -> int:
        """How many windows are open."""
        return sum(len(tag.windows) for tag in self._tags.values())

    @property
    def used_bytes(self) -> int:
        """What the open windows take of `memory_bytes`."""
        return self._used_bytes

    @property
    def late_total(self) -> int:
        """Records that came when their window was closed; no point has their payload."""
        return sum(tag.late for tag in self._tags.values())

    def late_by_tag(self) -> dict[int, int]:
        """`late_total` by tag; tags without late records are left out."""
        return {number: tag.late for number, tag in self._tags.items() if tag.late}

    def late_by_rank(self) -> dict[int, int]:
        """`late_total` by rank; ranks without late records are left out."""
        return dict(self._late_of_rank)

    def oldest_open_seq(self) -> int | None:
        """The journal entry of the oldest open window's first record; None if none is open."""
        return min(
            (window.first_seq for tag in self._tags.values() for window in tag.windows.values()),
            default=None,
        )

    def declare(self, tag: int, policy: str) -> None:
        """Say how a tag's records are merged, before its first record; again is no harm.

        Raises:
            ValueError: no such policy, or another than before.
        """
        if policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, not {policy!r}")
        known = self._tags.get(tag)
        if known is None:
            # A window of a rank0 tag opens with the only record it will have.
            expected = 0 if policy == "rank0" else self._presence.newcomers_expected()
            self._tags[tag] = _Tag(policy, expected)
        elif known.policy != policy:
            raise ValueError(f"tag {tag} was declared as {known.policy} and cannot become {policy}")

    def add(
        self, seq: int, rank: int, tag: int, step: int, wall: float, payload: P, size_bytes: int
    ) -> None:
        """Take one record from journal entry `seq`; `size_bytes` is what its payload takes.

        Raises:
            ValueError: no such rank, or the tag was never declared.
        """
        self._presence.check(rank)
        known = self._tags.get(tag)
        if known is None:
            raise ValueError(f"tag {tag} was never declared")
        self._in_group = True
        if known.policy == "rank0" and rank != 0:
            self.ignored_total += 1
            return
        if known.last is not None and step <= known.last:
            known.late += 1
            self._late_of_rank[rank] = self._late_of_rank.get(rank, 0) + 1
            # A rank that comes back is expected again: the next windows wait for it.
            known.expected |= 1 << rank
            return
        window = known.windows.get(step)
        if window is None:
            window = known.windows[step] = _Window(seq)
            self._used_bytes += WINDOW_BYTES
        elif rank in window.records:
            self.repeated_total += 1
            self._used_bytes -= window.records[rank].size_bytes
        size_bytes += RECORD_BYTES
        window.records[rank] = _Record(wall, payload, size_bytes)
        self._touched.add(tag)
        self._used_bytes += size_bytes
        self._bound_memory()

    def opened(self, rank: int) -> None:
        """Note that `rank` has a session: it is expected again where it was when it left."""
        self._expect_of_new(self._presence.opened(rank))

    def gone(self, rank: int) -> None:
        """Note that the last session of `rank` went: no window waits for it any more."""
        self._presence.left(rank)
        self._any_tag = True

    def expire(self, before_seq: int) -> None:
        """Close, at this group's end, all windows that opened at or before entry `before_seq`.

        Earlier open windows of the same tags, which hold them back, close too.
        """
        self._expired = before_seq if self._expired is None else max(before_seq, self._expired)

    def reset(self, step: int) -> None:
        """Forget the open windows from `step` on, and take records from there on as on time."""
        for tag in self._tags.values():
            for gone_back in [at for at in tag.windows if at >= step]:
                window = tag.windows.pop(gone_back)
                self._used_bytes -= window.size_bytes
                self.discarded_total += len(window.records)
            if tag.last is not None and tag.last >= step:
                # Below the least int64 there is no step to be the last.
                tag.last = step - 1 if step > INT64_MIN else None

    def resize(self, world_size: int) -> None:
        """Let more ranks take part. Tags that have closed a window wait for them once they report.

        Raises:
            ValueError: fewer ranks than before.
        """
        before = self.world_size
        self._presence.grow(world_size)
        self._expect_of_new((1 << world_size) - (1 << before))

    def close_group(self) -> list[Merged[P]]:
        """End the group; the points of all windows that closed in it, by tag.

        Within a tag in the order of closing, which is that of the steps unless a
        `reset` stands between two closings of one group.
        """
        self._sweep()
        self._in_group, self._expired = False, None
        closed, self._closed = self._closed, []
        closed.sort(key=lambda point: point.tag)
        return closed

    def state(self, dump: Callable[[P], bytes]) -> State:
        """A snapshot, msgpack-able, with payloads as `dump` makes them; only between groups.

        Raises:
            RuntimeError: in the middle of a group.
        """
        if self._in_group or self._expired is not None:
            raise RuntimeError("state() in the middle of a group: call close_group() before")
        return {
            "memory_bytes": self._memory_bytes,
            "presence": self._presence.state(),
            "late_of_rank": list(self._late_of_rank.items()),
            "repeated_total": self.repeated_total,
            "ignored_total": self.ignored_total,
            "discarded_total": self.discarded_total,
            "incomplete_total": self.incomplete_total,
            "any_tag": self._any_tag,
            "tags": [
                {
                    "tag": number,
                    "policy": tag.policy,
                    "expected": list(ranks_in(tag.expected)),
                    "is_new": tag.is_new,
                    "last": tag.last,
                    "late": tag.late,
                    "windows": [
                        {
                            "step": step,
                            "first_seq": window.first_seq,
                            "records": [
                                [rank, record.wall, dump(record.payload), record.size_bytes]
                                for rank, record in window.records.items()
                            ],
                        }
                        for step, window in tag.windows.items()
                    ],
                }
                for number, tag in self._tags.items()
            ],
        }

    @classmethod
    def restore(cls, state: State, load: Callable[[bytes], P]) -> MergeWindows[P]:
        """The windows that `state` was taken of; `load` undoes `dump`."""
        presence = Presence.restore(state["presence"])
        windows = cls(presence.world_size, memory_bytes=state["memory_bytes"])
        windows._presence = presence
        windows._any_tag = state["any_tag"]
        windows._late_of_rank = dict(state["late_of_rank"])
        windows.repeated_total = state["repeated_total"]
        windows.ignored_total = state["ignored_total"]
        windows.discarded_total = state["discarded_total"]
        windows.incomplete_total = state["incomplete_total"]
        for entry in state["tags"]:
            tag: _Tag[P] = _Tag(entry["policy"], set_of(entry["expected"]))
            tag.is_new, tag.last, tag.late = entry["is_new"], entry["last"], entry["late"]
            for opened in entry["windows"]:
                window: _Window[P] = _Window(opened["first_seq"])
                for rank, wall, payload, size_bytes in opened["records"]:
                    window.records[rank] = _Record(wall, load(payload), size_bytes)
                windows._used_bytes += window.size_bytes
                tag.windows[opened["step"]] = window
            windows._tags[entry["tag"]] = tag
        return windows

    def _expect_of_new(self, ranks: int) -> None:
        for tag in self._tags.values():
            if tag.is_new and tag.policy != "rank0":
                tag.expected |= ranks

    def _bound_memory(self) -> None:
        """Close what may close, then the oldest windows, if the open ones take too much."""
        if self._used_bytes <= self._memory_bytes:
            return
        self._sweep()
        if self._used_bytes <= self._memory_bytes:
            return
        excess = self._used_bytes - self._memory_bytes + self._memory_bytes // SPARE_PART
        windows = [window for tag in self._tags.values() for window in tag.windows.values()]
        for window in sorted(windows, key=lambda window: window.first_seq):
            forced_seq = window.first_seq
            excess -= window.size_bytes
            if excess <= 0:
                break
        self._sweep(forced_seq)

    def _sweep(self, forced_seq: int | None = None) -> None:
        """Close every window that may close; one that opened at or before `forced_seq` must."""
        if forced_seq is None:
            forced_seq = self._expired
        if self._any_tag or forced_seq is not None:
            numbers = list(self._tags)
        else:
            numbers = sorted(self._touched)
        self._touched.clear()
        self._any_tag = False
        missed = 0
        for number in numbers:
            tag = self._tags[number]
            steps = sorted(tag.windows)
            forced = 0
            if forced_seq is not None:
                for place, step in enumerate(steps):
                    if tag.windows[step].first_seq <= forced_seq:
                        forced = place + 1
            seen = [set_of(tag.windows[step].records) for step in steps]
            verdict = close_in_order(tag.expected, self._presence.gone, seen, forced)
            tag.expected = verdict.expected
            missed |= verdict.missed
            self.incomplete_total += verdict.incomplete
            for step in steps[: verdict.closed]:
                window = tag.windows.pop(step)
                self._used_bytes -= window.size_bytes
                self._closed.append(_merged(number, step, window, tag.policy))
                tag.last, tag.is_new = step, False
        given_up = self._presence.give_up(missed)
        if given_up:
            for tag in self._tags.values():
                if tag.is_new:
                    tag.expected &= ~given_up
            # These tags may have windows to close now. The next sweep sees to them.
            self._any_tag = True


def _merged(number: int, step: int, window: _Window[P], policy: str) -> Merged[P]:
    by_rank = [record for _, record in sorted(window.records.items())]
    latest = max(record.wall for record in by_rank)
    if policy == "last":
        payload = [record.payload for record in by_rank if record.wall == latest][-1]
    else:
        payload = by_rank[0].payload
        for record in by_rank[1:]:
            payload = payload.merge(record.payload)
    return Merged(number, step, latest, payload, len(by_rank))
