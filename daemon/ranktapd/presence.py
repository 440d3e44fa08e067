"""Who is there, and whom a window waits for: the rules that scalars and histograms share.

Sets of ranks are ints, see `rank_sets`. Pure: no clock, file, socket or thread.

Each tag has its `expected` set. While no window of the tag has closed, that is
every rank but the absent and the gone; afterwards it is the reporters of the
tag's last closed window. Ranks that are gone are not waited for, but stay in
the set, so that they are waited for again when they come back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from ranktapd.rank_sets import ranks_in, set_of

State: TypeAlias = dict[str, Any]
"""A snapshot made of None, bools, ints, floats, strs, bytes, lists and dicts: msgpack-able."""

INT64_MIN = -(2**63)  # the least step there is

SPARE_PART = 16
"""Over their memory limit, windows are closed until one part in so many of it is free.

Choosing the oldest looks at all open windows, so it must not come with every
batch; and what closes early may cost late records, so not much more is closed.
"""


class Verdict(NamedTuple):
    """What became of one tag's open windows.

    `closed`: how many of them close, from the earliest on. `expected`: the
    tag's expected ranks afterwards. `missed`: the ranks that some closed
    window lacked; `incomplete`: how many lacked one.
    """

    closed: int
    expected: int
    missed: int
    incomplete: int


def close_in_order(expected: int, gone: int, seen: Sequence[int], forced: int) -> Verdict:
    """Close a tag's open windows from the earliest on, until one has to wait.

    `seen` are the reporters of each open window, in step order. A window closes
    when every expected rank that is not gone has reported, and the first
    `forced` close whatever they lack. The reporters of a window that closes are
    the ones expected of the next.
    """
    missed = incomplete = 0
    for closed, reporters in enumerate(seen):
        lacking = expected & ~gone & ~reporters
        if lacking:
            if closed >= forced:
                return Verdict(closed, expected, missed, incomplete)
            missed |= lacking
            incomplete += 1
        expected = reporters | expected & gone
    return Verdict(len(seen), expected, missed, incomplete)


class Presence:
    """The ranks that have a session, those whose last session went, and those given up on.

    `open` and `gone` follow the caller's `opened` and `left`; a rank that never
    had a session is in neither. `absent` are the ranks that were waited for in
    vain while they had no session: tags that appear later do not wait for them.
    """

    def __init__(self, world_size: int) -> None:
        if world_size < 1:
            raise ValueError(f"world_size must be at least 1, not {world_size}")
        self.world_size = world_size
        self.open = 0
        self.gone = 0
        self.absent = 0

    def newcomers_expected(self) -> int:
        """The ranks that a tag nobody has logged yet waits for."""
        return ((1 << self.world_size) - 1) & ~self.absent & ~self.gone

    def grow(self, world_size: int) -> None:
        """Let ranks up to `world_size` take part.

        Raises:
            ValueError: fewer than there are now; ranks that have left are told by `left`.
        """
        if world_size < self.world_size:
            raise ValueError(f"world_size is {self.world_size} and cannot shrink to {world_size}")
        self.world_size = world_size

    def opened(self, rank: int) -> int:
        """Note that `rank` has a session; its set, {rank}."""
        one = self._only(rank)
        self.open |= one
        self.gone &= ~one
        self.absent &= ~one
        return one

    def left(self, rank: int) -> int:
        """Note that the last session of `rank` went; its set, {rank}."""
        one = self._only(rank)
        self.open &= ~one
        self.gone |= one
        return one

    def give_up(self, missed: int) -> int:
        """Mark the ranks of `missed` that have no session as absent; those newly marked."""
        given_up = missed & ~self.open & ~self.absent
        self.absent |= given_up
        return given_up

    def check(self, rank: int) -> None:
        """Raise ValueError for a rank that is not in the world."""
        if not 0 <= rank < self.world_size:
            raise ValueError(f"rank must be in 0..{self.world_size - 1}, not {rank}")

    def _only(self, rank: int) -> int:
        self.check(rank)
        return 1 << rank

    def state(self) -> State:
        """A snapshot; sets of ranks are lists, because msgpack has no ints past 64 bits."""
        return {
            "world_size": self.world_size,
            "open": list(ranks_in(self.open)),
            "gone": list(ranks_in(self.gone)),
            "absent": list(ranks_in(self.absent)),
        }

    @classmethod
    def restore(cls, state: State) -> Presence:
        """The Presence that `state` was taken of."""
        presence = cls(state["world_size"])
        presence.open = set_of(state["open"])
        presence.gone = set_of(state["gone"])
        presence.absent = set_of(state["absent"])
        return presence
