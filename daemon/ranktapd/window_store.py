"""The open windows of scalars and their records: layout, look-up, putting in, taking out.

No policy lives here; `windows` decides what closes. Pure: no clock, file,
socket or thread.

A window has a *slot* and, for every 64 consecutive ranks of which one has
reported, a *block* of values and wall times:

    by slot    first_seq                            int64
               seen    [slot, world_size / 64]      uint64, a set of ranks: who reported
               block   [slot, world_size / 64]      int64, -1: none of these 64 ranks reported yet
    by block   values, walls                        float64, one for each rank of the block
    index      (tag, step) to slot, sorted          2 int64, see `window_index`

So a record is put where its rank belongs, a second one of the same rank writes
over the first, and taking a window out yields its records in rank order,
whatever order they came in. A tag that 10 of 1,000 ranks log takes one or two
blocks a window rather than 16.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ranktapd.presence import State
from ranktapd.rank_sets import BIT, WORD, WORD_RANKS, Words, count_ranks, set_words
from ranktapd.window_index import WindowIndex
from ranktapd.window_rows import Floats, Ints, Rows, lengths_of, run_starts

BLOCK_RANKS = WORD_RANKS  # so that a word of `seen` tells which places of a block are filled

# Ids are handed out this many at a time at least (arbitrary), then in steps of a
# quarter: growing copies, and doubling would hold half of the memory unused.
_LEAST_GROWTH = 1024

# A store that has become empty keeps this much room. More is left over from a rank that
# stalled, and is given back.
_KEPT_BYTES = 32 << 20


class Records(NamedTuple):
    """The records of some windows: all of the first, then all of the second ..., by rank.

    `counts`: how many each window has, at least 1. `owners`: the number of each
    record's window. `ranks`: whose it is.
    """

    counts: Ints
    owners: Ints
    ranks: Ints
    walls: Floats
    values: Floats


def window_bytes(world_size: int) -> int:
    """What an open window costs beside its blocks: 24, and 16 for each that it may have."""
    return 24 + 16 * set_words(world_size)


def block_bytes(world_size: int) -> int:
    """What a block costs: a value and a wall time for each of its ranks."""
    return 16 * min(world_size, BLOCK_RANKS)


def dump(array: npt.NDArray[Any]) -> State:
    """An array as a dict that msgpack takes."""
    return {"dtype": array.dtype.str, "shape": list(array.shape), "data": array.tobytes()}


def load(state: State) -> npt.NDArray[Any]:
    """The array that `dump` was given; a copy that may be written to."""
    flat = np.frombuffer(state["data"], dtype=np.dtype(state["dtype"]))
    return flat.reshape(state["shape"]).copy()


def grown(array: npt.NDArray[Any], shape: tuple[int, ...], fill: int | None) -> npt.NDArray[Any]:
    """`array` in the corner of a larger one, the rest `fill` (None: not initialised)."""
    # Not initialised means not touched: no memory is spent until it is used.
    larger = np.empty(shape, array.dtype) if fill is None else np.full(shape, fill, array.dtype)
    larger[tuple(slice(size) for size in array.shape)] = array
    return larger


class _Ids:
    """Small ints handed out and taken back, lowest first while none came back.

    All are below `limit`, which `take` raises when it must.
    """

    def __init__(self) -> None:
        self._stack = np.empty(0, np.int64)
        self._free = 0
        self.limit = 0

    def take(self, count: int) -> Ints:
        if count > self._free:
            old = self.limit
            self.limit += max(count - self._free, old // 4, _LEAST_GROWTH)
            stack = np.empty(self.limit, np.int64)
            fresh = self.limit - old
            # The old ones on top: memory that was used already is used again first.
            stack[:fresh] = np.arange(self.limit - 1, old - 1, -1)
            stack[fresh : fresh + self._free] = self._stack[: self._free]
            self._stack = stack
            self._free += fresh
        self._free -= count
        return self._stack[self._free : self._free + count][::-1].copy()

    def give_back(self, ids: Ints) -> None:
        self._stack[self._free : self._free + ids.size] = ids
        self._free += ids.size


class WindowStore:
    """The open windows of a run. Not thread safe.

    Positions are those of `index`, which is for reading: they hold until the
    next `put` or `remove`.
    """

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._columns = set_words(world_size)
        self._width = min(world_size, BLOCK_RANKS)
        self._start_empty()

    def _start_empty(self) -> None:
        self.index = WindowIndex()
        self._slot_ids = _Ids()
        self._block_ids = _Ids()
        self._blocks_in_use = 0
        self._first_seq: Ints = np.empty(0, np.int64)
        self._seen: Words = np.empty((0, self._columns), WORD)
        self._block: Ints = np.empty((0, self._columns), np.int64)
        self._values: Floats = np.empty(0, np.float64)
        self._walls: Floats = np.empty(0, np.float64)
        self._oldest: int | None = None

    def __len__(self) -> int:
        return len(self.index)

    @property
    def used_bytes(self) -> int:
        """What the open windows take: a function of who reported what, not of the arrays' room."""
        windows = len(self) * window_bytes(self.world_size)
        return windows + self._blocks_in_use * block_bytes(self.world_size)

    def oldest_seq(self) -> int | None:
        """The least `first_seq` of the open windows; None if none is open."""
        if self._oldest is None and len(self):
            self._oldest = int(self.first_seqs().min())
        return self._oldest

    def first_seqs(self) -> Ints:
        """The journal entry of each window's first record, in index order."""
        return self._first_seq[self.index.slots]

    def seen(self, positions: Ints | slice) -> Words:
        """Who reported, for the windows at `positions`; shape (windows, words of a set)."""
        return self._seen[self.index.slots[positions]]

    def bytes_of_each(self) -> Ints:
        """What each window takes of `used_bytes`, in index order."""
        blocks: Ints = (self._block[self.index.slots] >= 0).sum(axis=1)
        return window_bytes(self.world_size) + blocks * block_bytes(self.world_size)

    def put(self, rows: Rows) -> int:
        """Store rows, opening windows for them; how many took the place of an earlier record."""
        slots = self._find_or_open(rows)
        column = rows.ranks >> 6
        # A part: the rows of one window and one block.
        parts, part_slots = rows.starts, slots
        if self._columns > 1:
            windows = np.arange(slots.size).repeat(lengths_of(rows.starts, column.size))
            parts = run_starts(windows * self._columns + column)
            part_slots = slots[windows[parts]]
        part_columns = column[parts]
        blocks = self._find_or_open_blocks(part_slots, part_columns)
        place = rows.ranks & 63
        bits = np.bitwise_or.reduceat(BIT[place], parts)
        before = self._seen[part_slots, part_columns]
        self._seen[part_slots, part_columns] = before | bits
        place += (blocks * self._width).repeat(lengths_of(parts, place.size))
        self._values[place] = rows.values
        self._walls[place] = rows.walls
        again = before & bits
        return count_ranks(again) if again.any() else 0

    def records(self, positions: Ints | slice) -> Records:
        """The records of the windows at `positions`."""
        slots = self.index.slots[positions]
        blocks, seen = self._block[slots], self._seen[slots]
        column = None
        if self._columns == 1:
            window, blocks, words = np.arange(slots.size), blocks[:, 0], seen
        else:
            window, column = (blocks >= 0).nonzero()
            blocks, words = blocks[window, column], seen[window, column][:, None]
        # Only the bytes that hold ranks are looked through: 1 for 8 ranks, not 8.
        octets = words.view(np.uint8)[:, : -(-self._width // 8)]
        which, place = np.unpackbits(octets, axis=1, bitorder="little").nonzero()
        owners = window[which]
        ranks = place if column is None else place + column[which] * BLOCK_RANKS
        place = blocks[which] * self._width + place
        counts = np.bincount(owners, minlength=slots.size)
        return Records(counts, owners, ranks, self._walls[place], self._values[place])

    def remove(self, positions: Ints) -> None:
        """Forget the windows at `positions`: at least one, ascending."""
        slots = self.index.slots[positions]
        blocks = self._block[slots]
        blocks = blocks[:, 0] if self._columns == 1 else blocks[blocks >= 0]
        self.index.remove(positions)
        self._slot_ids.give_back(slots)
        self._block_ids.give_back(blocks)
        self._blocks_in_use -= blocks.size
        self._oldest = None
        if not len(self) and self._room_bytes() > _KEPT_BYTES:
            self._start_empty()

    def state(self) -> State:
        """A snapshot, in index order: nothing of the layout, so that it may change."""
        records = self.records(slice(None))
        return {
            "tags": dump(self.index.tags()),
            "steps": dump(self.index.steps()),
            "first_seqs": dump(self.first_seqs()),
            "seen": dump(self.seen(slice(None))),
            "walls": dump(records.walls),
            "values": dump(records.values),
        }

    @classmethod
    def restore(cls, state: State, world_size: int) -> WindowStore:
        """The store that `state` was taken of; `world_size` may be larger than it was."""
        store = cls(world_size)
        seen = load(state["seen"])
        owners, ranks = np.unpackbits(seen.view(np.uint8), axis=1, bitorder="little").nonzero()
        if owners.size:
            tags, steps = load(state["tags"])[owners], load(state["steps"])[owners]
            walls, values = load(state["walls"]), load(state["values"])
            starts, first_seqs = run_starts(owners), load(state["first_seqs"])
            store.put(Rows(tags, steps, ranks, walls, values, starts, first_seqs))
        return store

    def _room_bytes(self) -> int:
        windows = self._slot_ids.limit * window_bytes(self.world_size)
        return windows + self._block_ids.limit * block_bytes(self.world_size)

    def _find_or_open(self, rows: Rows) -> Ints:
        """The slot of each window that `rows` has."""
        keys, at, slots, is_new = self.index.find(rows.tags[rows.starts], rows.steps[rows.starts])
        if not is_new.any():
            return slots
        new = is_new.nonzero()[0]
        fresh = self._slot_ids.take(new.size)
        room = self._slot_ids.limit
        if room > self._first_seq.size:
            self._first_seq = grown(self._first_seq, (room,), None)
            self._seen = grown(self._seen, (room, self._columns), None)
            self._block = grown(self._block, (room, self._columns), None)
        self._first_seq[fresh] = rows.first_seqs[new]
        self._seen[fresh] = 0
        self._block[fresh] = -1
        slots[new] = fresh
        self.index.enter(keys[new], at[new], fresh)
        if self._oldest is not None:
            self._oldest = min(self._oldest, int(rows.first_seqs[new].min()))
        return slots

    def _find_or_open_blocks(self, slots: Ints, columns: Ints) -> Ints:
        """The block of each of these parts of windows."""
        blocks = self._block[slots, columns]
        lacking = (blocks < 0).nonzero()[0]
        if lacking.size:
            fresh = self._block_ids.take(lacking.size)
            room = self._block_ids.limit * self._width
            if room > self._values.size:
                self._values = grown(self._values, (room,), None)
                self._walls = grown(self._walls, (room,), None)
            blocks[lacking] = fresh
            self._block[slots[lacking], columns[lacking]] = fresh
            self._blocks_in_use += lacking.size
        return blocks
