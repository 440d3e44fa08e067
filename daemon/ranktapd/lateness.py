"""How late each rank was with each step, and how long its own work took, out of closed windows.

A rank is late with a record by as much as its wall time is behind the first rank's of the
same tag and step; with a step, by the most that it was late with any of its records. Where
ranks log the parts of their steps (`step_time/data`, `forward`, `backward`), their own work
is measured instead: in a job that waits for its slowest rank all are equally late.

Windows are looked at as columns: a few operations of numpy for all that close at once, and
one object a step. Pure: no clock, file, socket or thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ranktap_wire.records import split_name
from ranktapd.presence import INT64_MIN
from ranktapd.window_rows import Floats, Ints
from ranktapd.window_store import Records

PREFIX: Final = "step_time/"
_WORK: Final = ("data", "forward", "backward")

OPEN_STEPS: Final = 64
"""Steps that wait to be complete, at most: so many may a device be behind with its parts."""
NEWEST: Final = 2
"""Steps that are left open: a rank's records of one step may come in two batches, and a tag
that few ranks log is ahead of the others."""

MEMORY_BYTES: Final = 32 << 20
"""What open steps take, about: 2,000 steps of 1,000 ranks, 50,000 of 8."""
_STEP_BYTES: Final = 500  # beside the arrays' data; measured

_OTHER, _WORK_PART, _WAIT_PART, _TOTAL = range(4)


@dataclass(slots=True)
class Step:
    """What is known of a step. Arrays have a place for each rank; NaN: nothing was heard of it."""

    number: int
    late: Floats
    """Seconds behind the first rank."""
    work: Floats
    """Seconds of its own: data, forward and backward."""
    begin: float = np.inf
    """The first wall time, on the daemon's clock."""
    wall: float = -np.inf
    """The latest wall time, as it was logged."""
    total: float = np.nan
    """Seconds from this step's beginning to the next one's, the mean over the ranks."""

    @property
    def has_work(self) -> bool:
        """Whether the ranks' work can be compared."""
        return int(np.count_nonzero(~np.isnan(self.work))) > 1

    @property
    def has_late(self) -> bool:
        return int(np.count_nonzero(~np.isnan(self.late))) > 1

    @property
    def is_timed(self) -> bool:
        """Whether it was logged how long something of it took."""
        return self.has_work or not np.isnan(self.total)


class Lateness:
    """Collects the windows of steps until all of a step is there. Not thread safe.

    `offsets`: by how much the daemon's clock is ahead of each rank's, in seconds.
    """

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self.offsets: Floats | None = None
        """None where all ranks have one clock."""
        self._open: dict[int, Step] = {}
        self._done: int | None = None
        """Steps up to here are complete: what comes of them comes too late."""
        self._has_work = False
        self._kinds = np.zeros(64, np.int8)
        """What a tag is."""

    def declare(self, tag: int, name: str) -> None:
        """Note what a tag is called."""
        sub_run, shown = split_name(name)
        part = shown.removeprefix(PREFIX)
        if sub_run or part == shown:
            return
        if tag >= len(self._kinds):
            self._kinds = np.append(self._kinds, np.zeros(tag + 1, np.int8))
        if part in _WORK:
            self._kinds[tag] = _WORK_PART
        elif part in ("wait", "total"):
            self._kinds[tag] = _WAIT_PART if part == "wait" else _TOTAL

    def resize(self, world_size: int) -> None:
        """Make room for more ranks."""
        more = world_size - self._world_size
        self._world_size = world_size
        for step in self._open.values():
            step.late = np.append(step.late, np.full(more, np.nan))
            step.work = np.append(step.work, np.full(more, np.nan))
        self.offsets = None

    def reset(self, step: int | None) -> None:
        """Forget the open steps from `step` on, and take them anew; None: all."""
        for number in [*self._open]:
            if step is None or number >= step:
                del self._open[number]
        if step is None or step == INT64_MIN:
            self._done = None
        elif self._done is not None:
            self._done = min(self._done, step - 1)

    # -- in ---------------------------------------------------------------------------

    @np.errstate(over="ignore", invalid="ignore")  # wall times and values that a user made up
    def closed(self, tags: Ints, steps: Ints, records: Records) -> None:
        """Take windows that closed, see `windows.Observer`."""
        kinds = self._kinds[np.minimum(tags, len(self._kinds) - 1)]
        kinds[tags >= len(self._kinds)] = _OTHER
        counts = records.counts
        chosen = counts > 1
        special = kinds != _OTHER
        if not self._has_work:
            # Also of steps that are complete already: the next ones are to wait for theirs.
            self._has_work = bool((chosen & (kinds == _WORK_PART)).any())
        if self._done is not None:
            chosen &= steps > self._done
        if special.any():
            self._take_parts(kinds, steps, records, chosen & special)
            # When a part is logged says nothing: it may be steps later.
            chosen &= (kinds == _OTHER) | (kinds == _TOTAL)
        if chosen.any():
            self._take_late(steps, records, chosen)
        self._bound_memory()

    def _bound_memory(self) -> None:
        """Let the earliest steps go, where a rank that was given up on has closed thousands."""
        most = max(2 * OPEN_STEPS, MEMORY_BYTES // (_STEP_BYTES + 16 * self._world_size))
        if len(self._open) > most:
            for number in sorted(self._open)[:-most]:
                del self._open[number]

    def _take_late(self, steps: Ints, records: Records, chosen: NDArray[np.bool_]) -> None:
        counts, owners, ranks, walls, _ = records
        adjusted = walls if self.offsets is None else walls + self.offsets[ranks]
        starts = counts.cumsum() - counts
        first = np.minimum.reduceat(adjusted, starts)
        late = adjusted - first[owners]
        numbers, which = np.unique(steps, return_inverse=True)
        table = np.full((numbers.size, self._world_size), -1.0)
        cells = (which * self._world_size)[owners]
        cells += ranks
        if not chosen.all():
            kept = chosen[owners]
            cells, late, adjusted, walls = cells[kept], late[kept], adjusted[kept], walls[kept]
        np.maximum.at(table.reshape(-1), cells, late)
        begins = np.full(numbers.size, np.inf)
        np.minimum.at(begins, which[chosen], first[chosen])
        latest = np.full(numbers.size, -np.inf)
        np.maximum.at(latest, which[chosen], np.maximum.reduceat(records.walls, starts)[chosen])
        table[table < 0] = np.nan
        for row, number in enumerate(numbers.tolist()):
            if begins[row] == np.inf:
                continue
            step = self._step(number)
            np.fmax(step.late, table[row], out=step.late)
            step.begin = min(step.begin, float(begins[row]))
            step.wall = max(step.wall, float(latest[row]))

    def _take_parts(
        self, kinds: NDArray[np.int8], steps: Ints, records: Records, chosen: NDArray[np.bool_]
    ) -> None:
        """A handful of windows a step, one by one."""
        starts = records.counts.cumsum() - records.counts
        for window in np.flatnonzero(chosen).tolist():
            rows = slice(starts[window], starts[window] + records.counts[window])
            values = records.values[rows]
            step = self._step(int(steps[window]))
            step.wall = max(step.wall, float(records.walls[rows].max()))
            if kinds[window] == _TOTAL:
                step.total = float(values.mean())
            elif kinds[window] == _WORK_PART:
                ranks = records.ranks[rows]
                step.work[ranks] = np.nan_to_num(step.work[ranks]) + values

    def _step(self, number: int) -> Step:
        step = self._open.get(number)
        if step is None:
            nothing = np.full(self._world_size, np.nan)
            step = self._open[number] = Step(number, nothing, nothing.copy())
        return step

    # -- out --------------------------------------------------------------------------

    def take(self, *, is_over: bool) -> list[Step]:
        """The steps that are complete, in order; all when the job is over."""
        if not self._open:
            return []
        numbers = sorted(self._open)
        if is_over:
            complete = numbers
        else:
            # A step whose work is still to come waits for it.
            known = [n for n in numbers if not self._has_work or self._open[n].has_work]
            upto = known[-NEWEST] if len(known) >= NEWEST else None
            complete = [n for n in numbers if upto is not None and n < upto]
            complete = max(complete, numbers[: max(0, len(numbers) - OPEN_STEPS)], key=len)
        if complete:
            self._done = complete[-1]
        return [self._open.pop(number) for number in complete]

    # -- snapshots --------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that later output depends on, msgpack-able; only between groups."""
        return {
            "world_size": self._world_size,
            "open": [dump_step(step) for step in self._open.values()],
            "done": self._done,
            "has_work": self._has_work,
            "kinds": self._kinds.tobytes(),
        }

    @classmethod
    def restore(cls, state: dict[str, Any]) -> Lateness:
        """What `state` was taken of, but for the offsets."""
        restored = cls(state["world_size"])
        for dumped in state["open"]:
            step = load_step(dumped)
            restored._open[step.number] = step
        restored._done = state["done"]
        restored._has_work = state["has_work"]
        restored._kinds = np.frombuffer(state["kinds"], np.int8).copy()
        return restored


def dump_step(step: Step) -> list[Any]:
    """A step, msgpack-able."""
    late, work = step.late.tobytes(), step.work.tobytes()
    return [step.number, late, work, step.begin, step.wall, step.total]


def load_step(dumped: list[Any]) -> Step:
    """The step that `dump_step` was given."""
    number, late, work, *rest = dumped
    return Step(number, np.frombuffer(late).copy(), np.frombuffer(work).copy(), *rest)
