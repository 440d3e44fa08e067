"""The open windows of scalars and their records: layout, look-up, putting in, taking out.

No policy lives here; `windows` decides what closes. Pure: no clock, file,
socket or thread.

A window has a *slot* and, for every 64 consecutive ranks of which one has
reported, a *block* of values and wall times:

    by slot    tag, step, first_seq                 int64
               seen    [slot, world_size / 64]      uint64, bit k: rank 64 * column + k reported
               block   [slot, world_size / 64]      int64, -1: nobody of these 64 reported yet
    by block   values, walls                        float64, one for each rank of the block
    index      keys, slots                          int64, one for each open window, sorted

So a record is put where its rank belongs, a second one of the same rank writes
over the first, and taking a window out yields its records in rank order,
whatever order they came in. A tag that 10 of 1,000 ranks log takes one or two
blocks a window rather than 16.

The index is sorted by (tag, step), packed into one int64 as far as the range of
the open steps permits, so that `np.searchsorted` finds windows and a tag's
windows lie side by side in step order. Opening and closing windows moves the
index (16 bytes a window); nothing is ever sorted but the rows that come in.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ranktapd.presence import INT64_MIN, State

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]
Words: TypeAlias = npt.NDArray[np.uint64]
"""Sets of ranks, 64 to a word, little-endian in memory: the last axis is one set."""

BLOCK_RANKS = 64  # one word of a set of ranks

# Bits of an index key. The sign stays clear, and all keys stay below the sentinel.
_KEYBITS = 62
# A million tags leave steps a range of 4.4e12; more tags take bits from the steps.
_TAGBITS = 20
_SENTINEL = np.iinfo(np.int64).max

# Ids are handed out this many at a time at least (arbitrary), then in steps of a
# quarter: growing copies, and doubling would hold half of the memory unused.
_LEAST_GROWTH = 1024

BIT = np.left_shift(np.uint64(1), np.arange(64, dtype=np.uint64)).astype("<u8")


class Rows(NamedTuple):
    """Records in columns, sorted by (tag, step, rank), no two alike in all three.

    `starts` is the first row of each window; `windows`' own columns are
    `tags[starts]` and `steps[starts]`. `first_seqs`: for each window, the
    journal entry of its first row, also if a later row took its place.
    """

    tags: Ints
    steps: Ints
    ranks: Ints
    walls: Floats
    values: Floats
    starts: Ints
    first_seqs: Ints


class Records(NamedTuple):
    """The records of some windows: all of the first, then all of the second ..., by rank.

    `counts`: how many each window has, at least 1. `owners`: the number of each
    record's window.
    """

    counts: Ints
    owners: Ints
    walls: Floats
    values: Floats


def in_window_order(
    seqs: Ints, tags: Ints, steps: Ints, ranks: Ints, walls: Floats, values: Floats
) -> tuple[Rows, int]:
    """Rows of records given in journal order, and how many a later one of their rank replaced."""
    order = _order(tags, steps, ranks)
    tags, steps, ranks = tags[order], steps[order], ranks[order]
    opens = np.empty(order.size, bool)
    opens[0] = True
    np.not_equal(tags[1:], tags[:-1], out=opens[1:])
    opens[1:] |= steps[1:] != steps[:-1]
    starts = opens.nonzero()[0]
    first_seqs = seqs[np.minimum.reduceat(order, starts)]
    # Alike in all three, in journal order: the last one counts.
    replaced = (ranks[1:] == ranks[:-1]) & ~opens[1:]
    repeated = int(np.count_nonzero(replaced))
    if repeated:
        counts = (np.append(~replaced, True)).nonzero()[0]
        tags, steps, ranks, order = tags[counts], steps[counts], ranks[counts], order[counts]
        # A window begins where its first row was, less the replaced rows before.
        starts -= np.append(0, np.cumsum(replaced))[starts]
    return Rows(tags, steps, ranks, walls[order], values[order], starts, first_seqs), repeated


def _order(tags: Ints, steps: Ints, ranks: Ints) -> Ints:
    """The stable order by (tag, step, rank)."""
    low = int(steps.min())
    step_bits = (int(steps.max()) - low).bit_length()
    rank_bits = int(ranks.max()).bit_length()
    if int(tags.max()).bit_length() + step_bits + rank_bits < 64:
        # The stable sort finds the runs that each rank's batch is made of: 2 to 17 ns a row,
        # where the unstable one takes 25 to 40, and lexsort 90.
        return np.argsort(
            ((((tags << step_bits) | (steps - low)) << rank_bits) | ranks), kind="stable"
        )
    return np.lexsort((ranks, steps, tags))


def lengths_of(starts: Ints, total: int) -> Ints:
    """The lengths of the parts of 0 .. `total` that begin at `starts`; there is one at least."""
    lengths = np.empty(starts.size, np.int64)
    lengths[-1] = total
    lengths[:-1] = starts[1:]
    lengths -= starts
    return lengths


def set_words(world_size: int) -> int:
    """How many words a set of ranks has, which is how many blocks a window has at most."""
    return -(-world_size // BLOCK_RANKS)


def window_bytes(world_size: int) -> int:
    """What an open window costs beside its blocks: 24 of its own, 16 in the index, sets."""
    return 40 + 16 * set_words(world_size)


def block_bytes(world_size: int) -> int:
    """What a block costs: a value and a wall time for each of its ranks."""
    return 16 * min(world_size, BLOCK_RANKS)


def to_words(ranks: int, world_size: int) -> Words:
    """A set of ranks as an array of shape (blocks,)."""
    return np.frombuffer(ranks.to_bytes(8 * set_words(world_size), "little"), dtype="<u8")


def to_int(words: Words) -> int:
    """A set of ranks as `presence` has it."""
    return int.from_bytes(words.tobytes(), "little")


def to_ints(sets: Words) -> list[int]:
    """Each row of `sets` as `presence` has it."""
    if sets.shape[1] == 1:
        return [int(word) for word in sets[:, 0].tolist()]
    raw, size = sets.tobytes(), 8 * sets.shape[1]
    return [int.from_bytes(raw[i : i + size], "little") for i in range(0, len(raw), size)]


def count_ranks(sets: Words) -> int:
    """How many ranks the sets hold together."""
    return int(np.unpackbits(np.ascontiguousarray(sets).view(np.uint8)).sum())


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

    A *position* is a place in the index: 0 .. len - 1 in the order of (tag,
    step). Positions hold until the next `put` or `take`.
    """

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._blocks = set_words(world_size)
        self._width = min(world_size, BLOCK_RANKS)
        self._slot_ids = _Ids()
        self._block_ids = _Ids()
        self._blocks_in_use = 0
        self._tag = np.empty(0, np.int64)
        self._step = np.empty(0, np.int64)
        self._first_seq = np.empty(0, np.int64)
        self._seen = np.empty((0, self._blocks), "<u8")
        self._block = np.empty((0, self._blocks), np.int64)
        self._values = np.empty(0, np.float64)
        self._walls = np.empty(0, np.float64)
        # One sentinel behind the last key, so that a look-up past the end needs no care.
        self._keys = np.array([_SENTINEL], np.int64)
        self._slots = np.empty(0, np.int64)
        self._step_bits = _KEYBITS - _TAGBITS
        self._base = -(1 << (self._step_bits - 1))
        self._steps: Ints | None = None
        self._oldest: int | None = None

    def __len__(self) -> int:
        return self._slots.size

    @property
    def used_bytes(self) -> int:
        """What the open windows take: a function of who reported what, not of the arrays' room."""
        windows = len(self) * window_bytes(self.world_size)
        return windows + self._blocks_in_use * block_bytes(self.world_size)

    def oldest_seq(self) -> int | None:
        """The least `first_seq` of the open windows; None if none is open."""
        if self._oldest is None and len(self):
            self._oldest = int(self._first_seq[self._slots].min())
        return self._oldest

    def tags(self, positions: Ints | None = None) -> Ints:
        """The tag of each window, in index order or at `positions`."""
        return self._tag[self._slots if positions is None else self._slots[positions]]

    def steps(self, positions: Ints | None = None) -> Ints:
        """The step of each window, in index order or at `positions`."""
        return self._step[self._slots if positions is None else self._slots[positions]]

    def first_seqs(self) -> Ints:
        """The journal entry of each window's first record, in index order."""
        return self._first_seq[self._slots]

    def seen(self, positions: Ints | slice) -> Words:
        """Who reported, for the windows at `positions`; shape (windows, blocks)."""
        return self._seen[self._slots[positions]]

    def bytes_of_each(self) -> Ints:
        """What each window takes of `used_bytes`, in index order."""
        blocks = (self._block[self._slots] >= 0).sum(axis=1)
        return window_bytes(self.world_size) + blocks * block_bytes(self.world_size)

    def runs(self, tags: Ints) -> tuple[Ints, Ints]:
        """Where the windows of each of `tags` begin and end, as positions."""
        first = np.searchsorted(self._keys, tags << self._step_bits)
        # Tags are whole numbers: the next tag's first possible key ends this one's run.
        end = np.searchsorted(self._keys, (tags + 1) << self._step_bits)
        return first, end

    def put(self, rows: Rows) -> int:
        """Store rows, opening windows for them; how many took the place of an earlier record."""
        slots = self._find_or_open(rows)
        column = rows.ranks >> 6
        if self._blocks == 1:
            parts, part_slots = rows.starts, slots
        else:
            opens = np.zeros(rows.tags.size, bool)
            opens[rows.starts] = True
            window = np.cumsum(opens) - 1
            opens[1:] |= column[1:] != column[:-1]
            parts = opens.nonzero()[0]
            part_slots = slots[window[parts]]
        # A part: the rows of one window and one block.
        part_columns = column[parts]
        blocks = self._find_or_open_blocks(part_slots, part_columns)
        place = rows.ranks & 63
        bits = np.bitwise_or.reduceat(BIT[place], parts)
        before = self._seen[part_slots, part_columns]
        self._seen[part_slots, part_columns] = before | bits
        both = before & bits
        repeated = count_ranks(both) if both.any() else 0
        place += np.repeat(blocks * self._width, lengths_of(parts, place.size))
        self._values[place] = rows.values
        self._walls[place] = rows.walls
        return repeated

    def records(self, positions: Ints | None = None) -> Records:
        """The records of the windows at `positions`, or of all."""
        slots = self._slots if positions is None else self._slots[positions]
        return self._gather(slots)[0]

    def take(self, positions: Ints) -> Records:
        """The records of the windows at `positions` (ascending), which are open no more."""
        slots = self._slots[positions]
        records, blocks = self._gather(slots)
        self._slot_ids.give_back(slots)
        self._block_ids.give_back(blocks)
        self._blocks_in_use -= blocks.size
        stay = np.ones(self._keys.size, bool)
        stay[positions] = False
        self._keys = self._keys[stay]
        self._slots = self._slots[stay[:-1]]
        self._oldest = None
        return records

    def state(self) -> State:
        """A snapshot, in index order: nothing of the layout, so that it may change."""
        records = self.records()
        return {
            "tags": dump(self.tags()),
            "steps": dump(self.steps()),
            "first_seqs": dump(self.first_seqs()),
            "seen": dump(self._seen[self._slots]),
            "walls": dump(records.walls),
            "values": dump(records.values),
        }

    @classmethod
    def restore(cls, state: State, world_size: int) -> WindowStore:
        """The store that `state` was taken of; `world_size` may be larger than it was."""
        store = cls(world_size)
        seen = load(state["seen"])
        bits = np.unpackbits(seen.view(np.uint8), axis=1, bitorder="little")
        owners, ranks = np.nonzero(bits)
        if owners.size:
            starts = (np.diff(owners, prepend=-1)).nonzero()[0]
            tags, steps = load(state["tags"])[owners], load(state["steps"])[owners]
            walls, values = load(state["walls"]), load(state["values"])
            first_seqs = load(state["first_seqs"])
            store.put(Rows(tags, steps, ranks, walls, values, starts, first_seqs))
        return store

    def _gather(self, slots: Ints) -> tuple[Records, Ints]:
        """The records of the windows in `slots`, and their blocks."""
        blocks, seen = self._block[slots], self._seen[slots]
        if self._blocks == 1:
            window, blocks, words = np.arange(slots.size), blocks[:, 0], seen
        else:
            window, column = np.nonzero(blocks >= 0)
            blocks, words = blocks[window, column], seen[window, column][:, None]
        # Only the bytes that hold ranks are looked through: 1 for 8 ranks, not 8.
        octets = words.view(np.uint8)[:, : -(-self._width // 8)]
        reported = np.unpackbits(octets, axis=1, bitorder="little")
        which, place = np.nonzero(reported)
        owners = window[which]
        place += blocks[which] * self._width
        counts = np.bincount(owners, minlength=slots.size)
        return Records(counts, owners, self._walls[place], self._values[place]), blocks

    def _find_or_open(self, rows: Rows) -> Ints:
        """The slot of each window that `rows` has."""
        tags, steps = rows.tags[rows.starts], rows.steps[rows.starts]
        keys = self._pack(tags, steps)
        at = np.searchsorted(self._keys, keys)
        is_new = self._keys[at] != keys
        if not is_new.any():
            return self._slots[at]
        new = is_new.nonzero()[0]
        fresh = self._slot_ids.take(new.size)
        self._make_room_for_slots()
        self._tag[fresh] = tags[new]
        self._step[fresh] = steps[new]
        self._first_seq[fresh] = rows.first_seqs[new]
        self._seen[fresh] = 0
        self._block[fresh] = -1
        # Merge both sorted sequences: each new key goes where the look-up put it,
        # moved on by the new ones before it.
        places = at[new] + np.arange(new.size)
        old = np.ones(self._keys.size + new.size, bool)
        old[places] = False
        merged_keys = np.empty(old.size, np.int64)
        merged_keys[places] = keys[new]
        merged_keys[old] = self._keys
        merged_slots = np.empty(old.size - 1, np.int64)
        merged_slots[places] = fresh
        merged_slots[old[:-1]] = self._slots
        self._keys, self._slots = merged_keys, merged_slots
        if self._oldest is not None:
            self._oldest = min(self._oldest, int(rows.first_seqs[new].min()))
        return merged_slots[at + np.cumsum(is_new) - is_new]

    def _find_or_open_blocks(self, slots: Ints, columns: Ints) -> Ints:
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

    def _make_room_for_slots(self) -> None:
        room = self._slot_ids.limit
        if room > self._tag.size:
            self._tag = grown(self._tag, (room,), None)
            self._step = grown(self._step, (room,), None)
            self._first_seq = grown(self._first_seq, (room,), None)
            self._seen = grown(self._seen, (room, self._blocks), None)
            self._block = grown(self._block, (room, self._blocks), None)

    def _pack(self, tags: Ints, steps: Ints) -> Ints:
        """The index keys of (tag, step); `tags` ascends. May change the keys of open windows."""
        low, high = int(steps.min()), int(steps.max())
        fits = self._base <= low and high - self._base < 1 << self._step_bits
        if not fits or self._steps is not None or int(tags[-1]) >> (_KEYBITS - self._step_bits):
            self._pack_again(int(tags[-1]), steps)
        return self._key_of(tags, steps)

    def _key_of(self, tags: Ints, steps: Ints) -> Ints:
        if self._steps is None:
            place = steps - self._base
        else:
            place = np.searchsorted(self._steps, steps)
        return (tags << self._step_bits) | place

    def _pack_again(self, highest_tag: int, new_steps: Ints) -> None:
        """Choose a packing that takes the open windows and the new ones, in the same order."""
        open_tags, open_steps = self.tags(), self.steps()
        if open_tags.size:
            highest_tag = max(highest_tag, int(open_tags[-1]))
        self._step_bits = _KEYBITS - max(_TAGBITS, highest_tag.bit_length())
        every = np.concatenate((open_steps, new_steps))
        low, high = int(every.min()), int(every.max())
        spare = (1 << self._step_bits) - 1 - (high - low)
        if spare >= 0:
            # Half of the spare range goes below, so that falling steps do not come here each time.
            self._base = max(low - spare // 2, INT64_MIN)
            self._steps = None
        else:
            # Steps farther apart than 4.4e12 are open at once. Their order is all that the
            # index needs: a table of them, made anew for each `put`, slower but never wrong.
            self._steps = np.unique(every)
        self._keys[:-1] = self._key_of(open_tags, open_steps)
