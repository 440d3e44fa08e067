"""The open windows in order: a sorted map from (tag, step) to a slot, as arrays.

(tag, step) is packed into one int64, the tag above the step, so that
`searchsorted` finds windows and a tag's windows lie side by side in step order.
42 bits are left for the steps, counted from a base that follows the open ones.
Steps farther apart than that (4.4e12) are numbered in their order instead, which
costs a sort of the open steps each time, but is right for any int64.

Nothing is ever sorted again as a whole: entering and removing move what lies
behind. Where that happens in few places, as with a stalled rank and many windows
open, it is a memmove for each of them, in place.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ranktapd.presence import INT64_MIN
from ranktapd.window_rows import Ints, run_starts

# The sign stays clear, and all keys stay below the sentinel.
_KEY_BITS = 62
_TAG_BITS = 20  # a million tags; more take bits from the steps
_SENTINEL = np.iinfo(np.int64).max

# Moving at one place takes about 1 us and the moved bytes; merging through a mask, 8 ns for
# each open window (measured with 120,000 open).
_MERGED_IN_A_MOVE = 128

_LEAST_ROOM = 1024  # arbitrary; it grows by a quarter


class Found(NamedTuple):
    """Where windows are, or would be; for `enter` only until the index changes.

    `at`: the position of the window, or of the next one where `is_new`; `slots`
    mean nothing there.
    """

    keys: Ints
    at: Ints
    slots: Ints
    is_new: npt.NDArray[np.bool_]


class WindowIndex:
    """Sorted by (tag, step). Not thread safe.

    A *position* is a place in that order; positions hold until the next `enter`
    or `remove`.
    """

    def __init__(self) -> None:
        # One sentinel behind the last key, so that a look-up past the end needs no care;
        # its slot means nothing.
        self._key_room = np.full(_LEAST_ROOM, _SENTINEL, np.int64)
        self._slot_room = np.zeros(_LEAST_ROOM, np.int64)
        self._size = 0
        self._step_bits = _KEY_BITS - _TAG_BITS
        self._base = -(1 << (self._step_bits - 1))
        # The steps by number, where they are too far apart to be counted from a base.
        self._numbered: Ints | None = None

    def __len__(self) -> int:
        return self._size

    @property
    def slots(self) -> Ints:
        """The slots in order. A view: it changes with the index."""
        return self._slot_room[: self._size]

    def tags(self, positions: Ints | slice = slice(None)) -> Ints:
        """The tags at `positions`, or of all."""
        return self._key_room[: self._size][positions] >> self._step_bits

    def steps(self, positions: Ints | slice = slice(None)) -> Ints:
        """The steps at `positions`, or of all."""
        places = self._key_room[: self._size][positions] & ((1 << self._step_bits) - 1)
        return places + self._base if self._numbered is None else self._numbered[places]

    def runs(self, tags: Ints) -> tuple[Ints, Ints]:
        """The positions where the windows of each of `tags` begin and end."""
        keys = self._key_room[: self._size + 1]
        first = keys.searchsorted(tags << self._step_bits)
        end = keys.searchsorted((tags + 1) << self._step_bits)
        return first, end

    def find(self, tags: Ints, steps: Ints) -> Found:
        """Look up windows given in ascending order of (tag, step)."""
        keys = self._pack(tags, steps)
        at = self._key_room[: self._size + 1].searchsorted(keys)
        return Found(keys, at, self._slot_room[at], self._key_room[at] != keys)

    def enter(self, keys: Ints, at: Ints, slots: Ints) -> None:
        """Enter windows that `find` has not found."""
        old, new = self._size + 1, self._size + 1 + keys.size
        places = at + np.arange(keys.size)
        points = run_starts(at)
        if points.size * _MERGED_IN_A_MOVE < old:
            self._make_room(new)
            starts = points.tolist()
            stops = [*starts[1:], keys.size]
            begins = at[points].tolist()
            for room in (self._key_room, self._slot_room):
                end = old
                for begin, shift in zip(reversed(begins), reversed(stops), strict=True):
                    room[begin + shift : end + shift] = room[begin:end]
                    end = begin
        else:
            stay = np.ones(new, np.bool_)
            stay[places] = False
            old_keys, old_slots = self._key_room[:old].copy(), self._slot_room[:old].copy()
            self._make_room(new)
            self._key_room[:new][stay] = old_keys
            self._slot_room[:new][stay] = old_slots
        self._key_room[places] = keys
        self._slot_room[places] = slots
        self._size = new - 1

    def remove(self, positions: Ints) -> None:
        """Take out the windows at `positions`, at least one, ascending."""
        old = self._size + 1
        runs = run_starts(positions - np.arange(positions.size))
        if runs.size * _MERGED_IN_A_MOVE < old:
            starts = positions[runs].tolist()
            stops = [*positions[runs[1:] - 1].tolist(), int(positions[-1])]
            for room in (self._key_room, self._slot_room):
                to = starts[0]
                for stop, until in zip(stops, [*starts[1:], old], strict=True):
                    room[to : to + until - stop - 1] = room[stop + 1 : until]
                    to += until - stop - 1
        else:
            stay = np.ones(old, np.bool_)
            stay[positions] = False
            kept = old - positions.size
            self._key_room[:kept] = self._key_room[:old][stay]
            self._slot_room[:kept] = self._slot_room[:old][stay]
        self._size -= positions.size

    def _make_room(self, size: int) -> None:
        room = self._key_room.size
        if size > room:
            larger = max(size, room + room // 4)
            for name in ("_key_room", "_slot_room"):
                array = np.empty(larger, np.int64)
                array[: self._size + 1] = getattr(self, name)[: self._size + 1]
                setattr(self, name, array)

    def _pack(self, tags: Ints, steps: Ints) -> Ints:
        """Keys that hold among those of the open windows, which may get other ones for it."""
        low, high, highest_tag = int(steps.min()), int(steps.max()), int(tags[-1])
        if (
            self._numbered is not None
            or low < self._base
            or high - self._base >> self._step_bits
            or highest_tag >> (_KEY_BITS - self._step_bits)
        ):
            self._pack_again(highest_tag, steps)
        return self._key_of(tags, steps)

    def _key_of(self, tags: Ints, steps: Ints) -> Ints:
        if self._numbered is None:
            return (tags << self._step_bits) | (steps - self._base)
        return (tags << self._step_bits) | self._numbered.searchsorted(steps)

    def _pack_again(self, highest_tag: int, new_steps: Ints) -> None:
        """Choose a packing that takes the open windows and the new steps; the order stays."""
        tags, steps = self.tags(), self.steps()
        if tags.size:
            highest_tag = max(highest_tag, int(tags[-1]))
        self._step_bits = _KEY_BITS - max(_TAG_BITS, highest_tag.bit_length())
        every = np.concatenate((steps, new_steps))
        low, high = int(every.min()), int(every.max())
        spare = (1 << self._step_bits) - 1 - (high - low)
        if spare >= 0:
            # Half of the spare range goes below, so that falling steps do not come here each time.
            self._base = max(low - spare // 2, INT64_MIN)
            self._numbered = None
        else:
            self._numbered = np.unique(every)
        self._key_room[: self._size] = self._key_of(tags, steps)
