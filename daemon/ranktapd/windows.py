"""Many ranks to one: scalars of several ranks become one point for each (tag, step).

The constraints that shaped it:

- The event file is a pure function of the journal, so this is too: what
  `close_group` returns depends on the calls before it and on nothing else. No
  clock, file, socket, thread or config. Time enters as `expire`, an entry that
  the worker wrote to the journal first.
- A million records a second on one core: records stay columns, and closing is
  decided for all tags at once. Only a tag whose reporters changed, and that has
  more windows behind the change, is followed window by window.
- A rank may stall for long. A group then costs what its own rows cost, however
  many windows are open, save moving their index (16 bytes a window).

A group is folded in two halves. `add` keeps the batches; `_absorb` drops what
does not count, sorts the rest by (tag, step, rank) and puts it into the store.
At the group's end `_sweep` closes what may close and merges it. When the open
windows outgrow `memory_bytes`, the oldest are closed as if expired.

The rules are `presence.close_in_order`, for each tag in step order: a window
closes when all expected ranks have reported and all earlier ones are closed;
its reporters are the ones expected of the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from ranktapd.presence import SPARE_PART, Presence, State, close_in_order
from ranktapd.rank_sets import any_member, count_ranks, to_int, to_ints, to_words
from ranktapd.tag_table import LAST, MAX, MEAN, MIN, TagTable
from ranktapd.window_rows import Floats, Ints, in_window_order, lengths_of, run_starts
from ranktapd.window_store import Records, WindowStore

# 600,000 open windows of 8 ranks, 6,000 of 1,000 that all reported. What numpy copies while
# arrays grow and all windows close at once comes on top: 250 MB in all at worst (measured).
DEFAULT_MEMORY_BYTES = 96 << 20

# Rows absorbed at once. It bounds what a huge group takes before the memory limit is looked
# at (a row opens a window and a block: 21 MB with 1,000 ranks), and keeps columns in the cache.
CHUNK_ROWS = 16_384

# Records merged at once, at most. With all open windows closing at once (a stalled rank is given
# up on) their columns would take several times the memory limit.
_RECORDS_AT_ONCE = 1 << 19

_RUN_AT_ONCE = 1024  # windows of one tag that are followed at once; arbitrary

Observer = Callable[[Ints, Ints, Records], None]
"""Takes windows by their tags and steps, within a tag in step order, and their records."""


@dataclass(frozen=True, slots=True)
class Closed:
    """Merged points, a row each, sorted by tag, and within a tag by step.

    (Within a tag in the order of closing, to be exact: a `reset` between two
    closings of one group lets steps go back.)

    `tags`, `steps` int64; `walls` float64, the latest of the records' wall
    times; `values` float64, merged by the tag's policy; `minimum`, `maximum`
    float64, over the ranks; `reporters` int64, how many ranks, at least 1. The
    arrays are the caller's.

    Values are bit for bit the same whatever order the records came in: sums run
    in rank order, zeros are +0.0 and all NaNs one NaN. NaN makes `mean` and
    `sum` NaN; `minimum` and `maximum` leave it out unless all are NaN.
    """

    tags: Ints
    steps: Ints
    walls: Floats
    values: Floats
    minimum: Floats
    maximum: Floats
    reporters: Ints

    def __len__(self) -> int:
        return self.tags.size


class ScalarWindows:
    """The windows of one run's scalars: records in, merged points out. Not thread safe.

    Feed every journal entry in order, and call `close_group` at each group's end.
    A tag is a small int (of the run, from 0 without large gaps: tables are by
    tag), a step any int64; wall times are finite.

    `memory_bytes` bounds what the open windows take: `window_store.window_bytes`
    and `block_bytes` say how much one does. It belongs to the fold, as the same
    journal under another limit may give other points, so `restore` takes it from
    the state.

    Counters of records over the whole journal: `late_total` (came when their
    window was closed), `repeated_total` (a later one of the same rank took their
    place), `ignored_total` (of other ranks, for rank0 tags), `discarded_total`
    (forgotten by `reset`). With the records of closed and of open windows they
    add up to what was added. `incomplete_total` counts windows that closed
    without an expected rank.
    """

    def __init__(self, world_size: int, *, memory_bytes: int = DEFAULT_MEMORY_BYTES) -> None:
        self._presence = Presence(world_size)
        self._memory_bytes = memory_bytes
        self._store = WindowStore(world_size)
        self._table = TagTable(world_size)
        self.repeated_total = 0
        self.discarded_total = 0
        self.incomplete_total = 0
        # The group that is being fed.
        self._pending: list[tuple[int, int, Ints, Ints, Floats, Floats]] = []
        self._pending_rows = 0
        self._touched: list[tuple[Ints, Ints]] = []
        self._expired: int | None = None
        self._closed: list[Closed] = []
        # Ranks left or were given up on since the last sweep: any tag may have windows to close.
        self._any_tag = False
        self.observer: Observer | None = None
        """Is shown the records of each window that closes."""

    @property
    def world_size(self) -> int:
        """Ranks are 0 .. world_size - 1."""
        return self._presence.world_size

    @property
    def open_windows(self) -> int:
        """How many windows are open, as of the last group's end."""
        return len(self._store)

    @property
    def used_bytes(self) -> int:
        """What the open windows take of `memory_bytes`, as of the last group's end."""
        return self._store.used_bytes

    @property
    def late_total(self) -> int:
        """Records that came when their window was closed; no point has their value."""
        return self._table.late_total

    @property
    def ignored_total(self) -> int:
        """Records that ranks other than 0 logged to rank0 tags."""
        return self._table.ignored_total

    def late_by_tag(self) -> dict[int, int]:
        """`late_total` by tag; tags without late records are left out."""
        return self._table.late_by_tag()

    def late_by_rank(self) -> dict[int, int]:
        """`late_total` by rank; ranks without late records are left out."""
        return self._table.late_by_rank()

    def oldest_open_seq(self) -> int | None:
        """The journal entry of the oldest open window's first record; None if none is open.

        As of the last group's end. For the worker, which has the clock, to tell
        when to write an `expire`.
        """
        return self._store.oldest_seq()

    def declare(self, tag: int, policy: str) -> None:
        """Say how a tag's records are merged, before its first record; again is no harm.

        Raises:
            ValueError: no such policy, a negative tag, or another policy than before.
        """
        self._table.declare(tag, policy, self._presence.newcomers_expected())

    def add(
        self,
        seq: int,
        rank: int,
        tags: npt.NDArray[Any],
        steps: npt.NDArray[Any],
        walls: npt.NDArray[Any],
        values: npt.NDArray[Any],
    ) -> None:
        """Take a rank's records from journal entry `seq`, in the order they were logged.

        Four columns of one length: ints of any width, wall times and values of
        any float width. They are kept until the group's end: do not change them
        before. `seq` never falls from call to call.

        Raises:
            ValueError: no such rank, or the columns differ in length. A tag that was never
                declared raises here or at the group's end, when the rows are looked at.
        """
        self._presence.check(rank)
        rows = len(tags)
        if not rows == len(steps) == len(walls) == len(values):
            raise ValueError(
                "columns must have one length; tags, steps, walls and values have "
                f"{rows}, {len(steps)}, {len(walls)} and {len(values)}"
            )
        for start in range(0, rows, CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            size = min(rows - start, CHUNK_ROWS)
            if self._pending_rows + size > CHUNK_ROWS:
                self._absorb()
                self._bound_memory()
            self._pending.append((seq, rank, tags[part], steps[part], walls[part], values[part]))
            self._pending_rows += size

    def opened(self, rank: int) -> None:
        """Note that `rank` has a session: it is expected again where it was when it left."""
        self._table.expect_of_new(self._presence.opened(rank))

    def gone(self, rank: int) -> None:
        """Note that the last session of `rank` went: no window waits for it any more."""
        self._presence.left(rank)
        self._any_tag = True

    def expire(self, before_seq: int) -> None:
        """Close, at this group's end, all windows that opened at or before entry `before_seq`.

        Whatever they lack. Earlier open windows of the same tags, which hold them
        back, close too.
        """
        self._expired = before_seq if self._expired is None else max(before_seq, self._expired)

    def reset(self, step: int) -> None:
        """Forget the open windows from `step` on, and take records from there on as on time.

        For a resumed run, which logs these steps again.
        """
        self._absorb()
        positions = (self._store.index.steps() >= step).nonzero()[0]
        if positions.size:
            self.discarded_total += count_ranks(self._store.seen(positions))
            self._store.remove(positions)
        self._table.reopen(step)

    def resize(self, world_size: int) -> None:
        """Let more ranks take part. Tags that have closed a window wait for them once they report.

        Raises:
            ValueError: fewer ranks than before.
        """
        before = self.world_size
        self._presence.grow(world_size)
        if world_size == before:
            return
        self._absorb()
        self._store = WindowStore.restore(self._store.state(), world_size)
        self._table.widen(world_size)
        self._table.expect_of_new((1 << world_size) - (1 << before))

    def close_group(self) -> Closed:
        """End the group; the points of all windows that closed in it."""
        self._absorb()
        self._sweep()
        self._bound_memory()
        self._expired = None
        closed, self._closed = self._closed, []
        return closed[0] if len(closed) == 1 else _joined(closed)

    def state(self) -> State:
        """A snapshot, msgpack-able, that `restore` goes on from as if nothing had been.

        Only between groups: after `close_group` and before the next entry.

        Raises:
            RuntimeError: in the middle of a group.
        """
        if self._pending or self._touched or self._closed or self._expired is not None:
            raise RuntimeError("state() in the middle of a group: call close_group() before")
        return {
            "memory_bytes": self._memory_bytes,
            "presence": self._presence.state(),
            "tags": self._table.state(),
            "open": self._store.state(),
            "any_tag": self._any_tag,
            "repeated_total": self.repeated_total,
            "discarded_total": self.discarded_total,
            "incomplete_total": self.incomplete_total,
        }

    @classmethod
    def restore(cls, state: State) -> ScalarWindows:
        """The windows that `state` was taken of."""
        presence = Presence.restore(state["presence"])
        windows = cls(presence.world_size, memory_bytes=state["memory_bytes"])
        windows._presence = presence
        windows._table = TagTable.restore(state["tags"], presence.world_size)
        windows._store = WindowStore.restore(state["open"], presence.world_size)
        windows._any_tag = state["any_tag"]
        windows.repeated_total = state["repeated_total"]
        windows.discarded_total = state["discarded_total"]
        windows.incomplete_total = state["incomplete_total"]
        return windows

    def _absorb(self) -> None:
        """Put the pending rows into the store, less those that do not count."""
        if not self._pending:
            return
        batch_seqs, batch_ranks, *columns = zip(*self._pending, strict=True)
        lengths = [len(tags) for tags in columns[0]]
        self._pending, self._pending_rows = [], 0
        seqs = np.array(batch_seqs, np.int64).repeat(lengths)
        ranks = np.array(batch_ranks, np.int64).repeat(lengths)
        tags, steps = (np.concatenate(column, dtype=np.int64) for column in columns[:2])
        walls, values = (np.concatenate(column, dtype=np.float64) for column in columns[2:])
        counting = self._table.counting(tags, steps, ranks)
        if counting is not None:
            if not counting.any():
                return
            seqs, ranks, tags = seqs[counting], ranks[counting], tags[counting]
            steps, walls, values = steps[counting], walls[counting], values[counting]
        rows, repeated = in_window_order(seqs, tags, steps, ranks, walls, values)
        self.repeated_total += repeated + self._store.put(rows)
        touched = rows.tags[rows.starts]
        first = run_starts(touched)
        self._touched.append((touched[first], lengths_of(first, touched.size)))

    def _bound_memory(self) -> None:
        """Close what may close, then the oldest windows, if the open ones take too much."""
        if self._store.used_bytes <= self._memory_bytes:
            return
        self._sweep()
        excess = self._store.used_bytes - self._memory_bytes
        if excess <= 0:
            return
        excess += self._memory_bytes // SPARE_PART
        seqs = self._store.first_seqs()
        oldest_first = seqs.argsort(kind="stable")
        freed = self._store.bytes_of_each()[oldest_first].cumsum()
        enough = min(int(freed.searchsorted(excess)), seqs.size - 1)
        self._sweep(int(seqs[oldest_first[enough]]))

    def _sweep(self, forced_seq: int | None = None) -> None:
        """Close every window that may close; one that opened at or before `forced_seq` must."""
        if forced_seq is None:
            forced_seq = self._expired
        if self._any_tag or forced_seq is not None:
            tags = self._store.index.tags()
            tags = tags[run_starts(tags)] if tags.size else tags
            touched = np.ones(tags.size, np.int64)
        elif not self._touched:
            return
        elif len(self._touched) == 1:
            tags, touched = self._touched[0]
        else:
            tags, which = np.unique(
                np.concatenate([tags for tags, _ in self._touched]), return_inverse=True
            )
            touched = np.zeros(tags.size, np.int64)
            np.add.at(touched, which, np.concatenate([counts for _, counts in self._touched]))
        self._touched.clear()
        self._any_tag = False
        positions, missed = self._find_closing(tags, touched, forced_seq)
        if positions.size:
            self._merge(positions)
        given_up = self._presence.give_up(missed)
        if given_up:
            self._table.spare_new(given_up)
            # These tags may have windows to close now. The next sweep sees to them.
            self._any_tag = True

    def _merge(self, positions: Ints) -> None:
        """Turn windows into points, and forget them."""
        store, some = self._store, max(1, _RECORDS_AT_ONCE // self.world_size)
        for start in range(0, positions.size, some):
            part = positions[start : start + some]
            tags, steps = store.index.tags(part), store.index.steps(part)
            self._table.note_closed(tags, steps)
            policies = self._table.policy[tags]
            records = store.records(part)
            if self.observer is not None:
                self.observer(tags, steps, records)
            self._closed.append(_merged(tags, steps, policies, records))
        store.remove(positions)

    def _find_closing(self, tags: Ints, ahead: Ints, forced_seq: int | None) -> tuple[Ints, int]:
        """The positions of the windows of `tags` that close, ascending, and the ranks they miss.

        `close_in_order`, for all tags at once; what the tags expect is updated.
        Each round looks at some windows of each tag, from its first open one on:
        `ahead` at first (how many were touched), then at more if all of those
        close. So it costs as much as was touched and closes, however many are open.
        """
        store, expected_of = self._store, self._table.expected
        gone = to_words(self._presence.gone, self.world_size)
        first, end = store.index.runs(tags)
        forced = first  # where each tag's windows that must close end
        if forced_seq is not None:
            old = (store.first_seqs() <= forced_seq).nonzero()[0]
            forced = first.copy()
            forced[end.searchsorted(old, side="right")] = old + 1
            ahead = np.maximum(ahead, forced - first)
        found: list[Ints] = []
        missed = 0
        going = (first < end).nonzero()[0]
        further = 1
        while going.size:
            begin, count = first[going], np.minimum(ahead, end - first)[going]
            stop = count.cumsum()
            start = stop - count
            total = int(stop[-1])
            at = np.arange(total) + (begin - start).repeat(count)
            seen = store.seen(at)
            expected = expected_of[tags[going]].repeat(count, axis=0)
            lacking = expected & ~gone & ~seen
            closes = ~any_member(lacking)
            if forced_seq is not None:
                closes |= at < forced[going].repeat(count)
            steady = closes & ~any_member((seen | (expected & gone)) ^ expected)
            if steady.all():
                found.append(at)
                first[going] += count
            else:
                # The first window of each tag that waits, or that closes and changes what is
                # expected of the next one; `stop` where there is none.
                turn = np.where(steady, total, np.arange(total))
                turn = np.minimum(np.minimum.reduceat(turn, start), stop)
                turns = turn < stop
                changes = turns.copy()
                changes[turns] = closes[turn[turns]]
                closed = turn - start + changes
                found.append(at[np.arange(total) < (start + closed).repeat(count)])
                first[going] += closed
                changed, turn = going[changes], turn[changes]
                expected_of[tags[changed]] = seen[turn] | (expected[turn] & gone)
                short = lacking[turn]
                missed |= to_int(np.bitwise_or.reduce(short, axis=0))
                self.incomplete_total += int(np.count_nonzero(any_member(short)))
                for i in changed[first[changed] < end[changed]].tolist():
                    run = self._follow(int(tags[i]), int(first[i]), int(end[i]), int(forced[i]))
                    found.append(run[0])
                    missed |= run[1]
                going = going[~turns]
            going = going[first[going] < end[going]]
            ahead, further = np.full(tags.size, further), further * 4
        if not found:
            return first[:0], missed
        return np.sort(np.concatenate(found)) if len(found) > 1 else found[0], missed

    def _follow(self, tag: int, first: int, end: int, forced: int) -> tuple[Ints, int]:
        """`close_in_order` for one tag whose reporters have just changed.

        Looks at the windows at positions `first` .. `end`, of which those before
        `forced` must close. The positions of those that close, and the ranks they miss.
        """
        gone, missed, position = self._presence.gone, 0, first
        expected = to_int(self._table.expected[tag])
        while position < end:
            some = slice(position, min(position + _RUN_AT_ONCE, end))
            seen = to_ints(self._store.seen(some))
            verdict = close_in_order(expected, gone, seen, forced - position)
            expected = verdict.expected
            missed |= verdict.missed
            self.incomplete_total += verdict.incomplete
            position += verdict.closed
            if verdict.closed < len(seen):
                break
        self._table.expected[tag] = to_words(expected, self.world_size)
        return np.arange(first, position), missed


@np.errstate(invalid="ignore")  # a signalling NaN is data, not an error
def _merged(tags: Ints, steps: Ints, policies: npt.NDArray[np.int8], records: Records) -> Closed:
    """One point for each window; see `Closed` for what stays the same."""
    counts, owners, _, walls, values = records
    starts = counts.cumsum() - counts
    # bincount adds one by one in the order given, on every machine; add.reduceat adds in
    # pairs, and how it pairs them is numpy's affair.
    merged: Floats = np.bincount(owners, values, counts.size).astype(np.float64, copy=False)
    minimum, maximum = np.fmin.reduceat(values, starts), np.fmax.reduceat(values, starts)
    latest = np.maximum.reduceat(walls, starts)
    np.divide(merged, counts, out=merged, where=policies == MEAN)
    np.copyto(merged, minimum, where=policies == MIN)
    np.copyto(merged, maximum, where=policies == MAX)
    is_last = policies == LAST
    if is_last.any():
        # Of the records with the latest wall time the one of the highest rank, which is
        # the last of them.
        at_latest = np.where(walls == latest.repeat(counts), np.arange(walls.size), -1)
        np.copyto(merged, values[np.maximum.reduceat(at_latest, starts)], where=is_last)
    for column in (merged, minimum, maximum):
        # Which of the zeros and of the NaNs comes out depends on the processor.
        column += 0.0
        column[np.isnan(column)] = np.nan
    return Closed(tags, steps, latest, merged, minimum, maximum, counts)


def _joined(parts: list[Closed]) -> Closed:
    """The points of several sweeps, or none."""
    if not parts:
        none, nothing = np.empty(0, np.int64), np.empty(0, np.float64)
        return Closed(none, none, nothing, nothing, nothing, nothing, none)
    columns = [
        np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Closed)
    ]
    by_tag = columns[0].argsort(kind="stable")
    return Closed(*(column[by_tag] for column in columns))
