"""What the scalar windows know of each tag: its policy, whom it waits for, how far it is closed.

Columns by tag, so that a batch's rows are judged all at once. The rules are in
`presence`. Pure: no clock, file, socket or thread.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ranktapd.presence import INT64_MIN, State
from ranktapd.rank_sets import BIT, WORD, Words, set_words, to_words
from ranktapd.window_rows import Ints
from ranktapd.window_store import dump, grown, load

POLICIES = ("mean", "sum", "min", "max", "last", "rank0")
"""How the ranks' values become one. `each` is not merged and never comes here."""

UNDECLARED = 0
MEAN, SUM, MIN, MAX, LAST, RANK0 = range(1, len(POLICIES) + 1)

_LEAST_TAGS = 64  # room at first; arbitrary, it doubles


class TagTable:
    """One row a tag. Not thread safe.

    `policy` int8 and `expected`, shape (tags, words of a set), are for reading
    and, for `expected`, writing by who closes windows.
    """

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self.policy = np.zeros(_LEAST_TAGS, np.int8)
        self.expected: Words = np.zeros((_LEAST_TAGS, set_words(world_size)), WORD)
        # Declared, and none of its windows has closed yet.
        self._is_new = np.zeros(_LEAST_TAGS, bool)
        # The step of the last closed window. Meaningless where `_any_closed` is false: there
        # it is the least int64, which is a step too.
        self._last = np.full(_LEAST_TAGS, INT64_MIN, np.int64)
        self._any_closed = np.zeros(_LEAST_TAGS, bool)
        self._late = np.zeros(_LEAST_TAGS, np.int64)
        self._late_of_rank = np.zeros(world_size, np.int64)
        self._has_rank0 = False
        self.ignored_total = 0

    @property
    def late_total(self) -> int:
        """Records that came when their window was closed."""
        return int(self._late.sum())

    def late_by_tag(self) -> dict[int, int]:
        """`late_total` by tag; tags without late records are left out."""
        late = self._late.nonzero()[0]
        return dict(zip(late.tolist(), self._late[late].tolist(), strict=True))

    def late_by_rank(self) -> dict[int, int]:
        """`late_total` by rank; ranks without late records are left out."""
        late = self._late_of_rank.nonzero()[0]
        return dict(zip(late.tolist(), self._late_of_rank[late].tolist(), strict=True))

    def declare(self, tag: int, policy: str, expected: int) -> None:
        """Enter a tag whose first window waits for the ranks of `expected`.

        Raises:
            ValueError: no such policy, a negative tag, or another policy than before.
        """
        if policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, not {policy!r}")
        if tag < 0:
            raise ValueError(f"tag must not be negative, but is {tag}")
        if tag >= self.policy.size:
            self._make_room(max(tag + 1, 2 * self.policy.size))
        number = POLICIES.index(policy) + 1
        if self.policy[tag] == number:
            return
        if self.policy[tag] != UNDECLARED:
            before = POLICIES[self.policy[tag] - 1]
            raise ValueError(f"tag {tag} was declared as {before} and cannot become {policy}")
        self.policy[tag] = number
        self._is_new[tag] = True
        if number == RANK0:
            self._has_rank0 = True
            expected = 0  # a window of it opens with the only record it will have
        self.expected[tag] = to_words(expected, self._world_size)

    def expect_of_new(self, ranks: int) -> None:
        """Let the tags that had no closed window yet wait for `ranks` too."""
        new = self._is_new & (self.policy != RANK0) if self._has_rank0 else self._is_new
        self.expected[new] |= to_words(ranks, self._world_size)

    def spare_new(self, ranks: int) -> None:
        """Let the tags that had no closed window yet not wait for `ranks`."""
        self.expected[self._is_new] &= ~to_words(ranks, self._world_size)

    def widen(self, world_size: int) -> None:
        """Make room for more ranks in the sets."""
        self._world_size = world_size
        self.expected = grown(self.expected, (self.policy.size, set_words(world_size)), 0)
        self._late_of_rank = grown(self._late_of_rank, (world_size,), 0)

    def counting(self, tags: Ints, steps: Ints, ranks: Ints) -> npt.NDArray[np.bool_] | None:
        """Which records go into a window; None: all.

        The others are late, or another rank's records of a rank0 tag: they are
        counted here. A rank that is late with a tag is expected of it from now on.

        Raises:
            ValueError: a tag was never declared.
        """
        if int(tags.min()) < 0 or int(tags.max()) >= self.policy.size:
            raise ValueError(f"tags {int(tags.min())} to {int(tags.max())} are not all declared")
        policy = self.policy[tags]
        if not policy.all():
            raise ValueError(f"tag {int(tags[policy == UNDECLARED][0])} was never declared")
        late = steps <= self._last[tags]
        dropped = late
        if self._has_rank0:
            ignored = (policy == RANK0) & (ranks != 0)
            self.ignored_total += int(np.count_nonzero(ignored))
            late &= ~ignored
            dropped = late | ignored
        if not dropped.any():
            return None
        never_closed = late & ~self._any_closed[tags]
        late = late & ~never_closed
        np.add.at(self._late, tags[late], 1)
        late_ranks = ranks[late]
        np.add.at(self._late_of_rank, late_ranks, 1)
        np.bitwise_or.at(self.expected, (tags[late], late_ranks >> 6), BIT[late_ranks & 63])
        return ~dropped | never_closed

    def note_closed(self, tags: Ints, steps: Ints) -> None:
        """Note that windows closed; a tag's steps ascend."""
        self._last[tags] = steps  # of a tag that comes more than once, the last one stays
        self._any_closed[tags] = True
        self._is_new[tags] = False

    def reopen(self, step: int) -> None:
        """Let records from `step` on be on time again."""
        if step == INT64_MIN:
            self._any_closed[:] = False
            self._last[:] = INT64_MIN
        else:
            np.minimum(self._last, step - 1, out=self._last)

    def state(self) -> State:
        """A snapshot of all columns."""
        return {
            "ignored_total": self.ignored_total,
            "policy": dump(self.policy),
            "expected": dump(self.expected),
            "is_new": dump(self._is_new),
            "any_closed": dump(self._any_closed),
            "last": dump(self._last),
            "late": dump(self._late),
            "late_of_rank": dump(self._late_of_rank),
        }

    @classmethod
    def restore(cls, state: State, world_size: int) -> TagTable:
        """The table that `state` was taken of."""
        table = cls(world_size)
        table.ignored_total = state["ignored_total"]
        table.policy = load(state["policy"])
        table.expected = load(state["expected"])
        table._is_new = load(state["is_new"])
        table._any_closed = load(state["any_closed"])
        table._last = load(state["last"])
        table._late = load(state["late"])
        table._late_of_rank = load(state["late_of_rank"])
        table._has_rank0 = bool((table.policy == RANK0).any())
        return table

    def _make_room(self, tags: int) -> None:
        self.policy = grown(self.policy, (tags,), UNDECLARED)
        self.expected = grown(self.expected, (tags, self.expected.shape[1]), 0)
        self._is_new = grown(self._is_new, (tags,), 0)
        self._any_closed = grown(self._any_closed, (tags,), 0)
        self._last = grown(self._last, (tags,), INT64_MIN)
        self._late = grown(self._late, (tags,), 0)
