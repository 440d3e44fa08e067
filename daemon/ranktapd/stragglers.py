"""Which rank is slowest at each step, and which ranks are persistently slow.

Of the last WINDOW steps: a rank is slow when it was the slowest at three quarters of them and
its median is over a tenth of the median step time, over three times what the clocks may be
wrong by, and over 2 ms. It has recovered when its median is below half of that. What is
measured is a rank's own work, less the median rank's, where the parts of steps are logged,
and else by how much it is behind the first rank; see `lateness`.

Pure: no clock, file, socket or thread.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np

from ranktapd.lateness import Lateness, Step, dump_step, load_step
from ranktapd.render.tables import plain, table
from ranktapd.window_rows import Floats

TAG: Final = "ranktap/stragglers"

WINDOW: Final = 20
"""Steps that are looked back at."""
SHARE: Final = 0.75
"""Of these, so many must a slow rank have been the slowest of."""
OF_STEP: Final = 0.1
"""Seconds of a second of step time that are worth a word."""
CLOCK_ERRORS: Final = 3.0
LEAST_S: Final = 0.002
"""What a busy host takes to give a process its turn."""
RECOVERED: Final = 0.5
AGAIN_STEPS: Final = 100
"""How often the table is written again while a rank is slow."""
_ROWS: Final = 50


class Slowest(NamedTuple):
    """A point of two series: who was slowest, and by how many seconds."""

    step: int
    wall: float
    rank: int
    spread_s: float


class Text(NamedTuple):
    """The table, as of a step."""

    step: int
    wall: float
    markdown: str


@dataclass(slots=True)
class _Judged:
    """A step: what was measured of each rank (NaN: nothing), and who had the most."""

    step: Step
    measured: Floats
    slowest: int


class Stragglers:
    """The slow ranks of one run. Not thread safe.

    It remembers WINDOW steps, with three numbers a rank. Windows go to `lateness`.
    """

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self.lateness = Lateness(world_size)
        self._hosts: dict[int, str] = {}
        self._clocks: dict[str, tuple[float, float]] = {}
        """Offset and error of each host, as the rank of it that knows best says."""
        self._clock_of: dict[str, int] = {}
        """Which rank that is."""
        self._judged: deque[_Judged] = deque(maxlen=WINDOW)
        self._by_work = False
        self._slow: dict[int, int] = {}
        """Slow ranks, and since which step."""
        self._has_changed = False
        self._since_text = 0
        self._last_step = 0

    # -- in ---------------------------------------------------------------------------

    def opened(self, rank: int, host: str) -> None:
        """A rank has a session, on that host."""
        self._hosts[rank] = host
        self._use_clocks()

    def host_of(self, rank: int) -> str:
        """The host of a rank that has, or had, a session."""
        return self._hosts.get(rank, "")

    def heard(self, rank: int, clock: tuple[float, float] | None) -> None:
        """A rank's batch says how its clock stands to the daemon's: offset and error, seconds."""
        host = self._hosts.get(rank)
        if clock is None or host is None:
            return
        known = self._clocks.get(host)
        if known == clock or (
            known is not None and self._clock_of[host] != rank and known[1] <= clock[1]
        ):
            return
        self._clocks[host], self._clock_of[host] = clock, rank
        self._use_clocks()

    @property
    def slow_since(self) -> dict[int, int]:
        """The ranks that are slow now, and since which step."""
        return dict(self._slow)

    def resize(self, world_size: int) -> None:
        """Let more ranks take part."""
        more = world_size - self._world_size
        self._world_size = world_size
        self.lateness.resize(world_size)
        for each in self._judged:
            each.measured = np.append(each.measured, np.full(more, np.nan))
        self._use_clocks()

    def reset(self, step: int) -> None:
        """The job goes on from `step`: what was measured from there on is forgotten."""
        self.lateness.reset(step)
        while self._judged and self._judged[-1].step.number >= step:
            self._judged.pop()

    def begin_again(self) -> None:
        """The job was started again, and may count from 0."""
        self.lateness.reset(None)
        self._judged.clear()
        self._has_changed = self._has_changed or bool(self._slow)
        self._slow.clear()

    def _use_clocks(self) -> None:
        """Clocks are compared between hosts alone: the ranks of one read the same."""
        if len(set(self._hosts.values())) < 2:
            self.lateness.offsets = None
            return
        offsets = np.zeros(self._world_size)
        for rank, host in self._hosts.items():
            offsets[rank] = self._clocks.get(host, (0.0, 0.0))[0]
        self.lateness.offsets = offsets

    def _clock_error_s(self, rank: int) -> float:
        """How wrong a comparison of this rank's clock with another host's may be."""
        hosts = set(self._hosts.values())
        if len(hosts) < 2:
            return 0.0
        own = self.host_of(rank)
        errors = {host: self._clocks.get(host, (0.0, np.inf))[1] for host in hosts}
        others = max(error for host, error in errors.items() if host != own)
        return errors.get(own, np.inf) + others

    # -- out --------------------------------------------------------------------------

    @np.errstate(over="ignore", invalid="ignore")  # wall times and values that a user made up
    def take(self, *, is_over: bool) -> tuple[list[Slowest], list[Text]]:
        """End the group: points of the series, and texts.

        `is_over`: no rank has a session any more.
        """
        points: list[Slowest] = []
        texts: list[Text] = []
        for step in self.lateness.take(is_over=is_over):
            judged = self._judge(step)
            if judged is None:
                continue
            if step.is_timed:
                spread = float(np.nanmax(judged.measured) - np.nanmin(judged.measured))
                points.append(Slowest(step.number, step.wall, judged.slowest, spread))
            self._last_step = step.number
            self._since_text += 1
            if self._has_changed or (self._slow and self._since_text >= AGAIN_STEPS):
                texts.append(Text(step.number, step.wall, self._text()))
                self._has_changed, self._since_text = False, 0
        return points, texts

    def _judge(self, step: Step) -> _Judged | None:
        by_work = step.has_work
        measured = step.work - np.nanmedian(step.work) if by_work else step.late.copy()
        measured[~np.isfinite(measured)] = np.nan
        if np.count_nonzero(~np.isnan(measured)) < 2:
            return None
        if by_work != self._by_work:
            # The two cannot be compared.
            self._judged.clear()
            self._by_work = by_work
        judged = _Judged(step, measured, int(np.nanargmax(measured)))
        self._judged.append(judged)
        wins = np.bincount([each.slowest for each in self._judged], minlength=self._world_size)
        for rank in [*self._slow]:
            if self._median(rank) < RECOVERED * self._threshold_s(rank):
                del self._slow[rank]
                self._has_changed = True
        rank = int(wins.argmax())
        if (
            wins[rank] >= SHARE * WINDOW
            and rank not in self._slow
            and self._median(rank) > self._threshold_s(rank)
        ):
            self._slow[rank] = next(e.step.number for e in self._judged if e.slowest == rank)
            self._has_changed = True
        return judged

    def _median(self, rank: int) -> float:
        """Of what was measured of a rank; 0 when it has not been heard of."""
        measured = np.array([each.measured[rank] for each in self._judged])
        measured = measured[~np.isnan(measured)]
        return float(np.median(measured)) if measured.size else 0.0

    def _step_time_s(self) -> float:
        """The median over the steps; 0 where nothing tells."""
        times = [each.step.total for each in self._judged if not np.isnan(each.step.total)]
        if not times:
            steps = [each.step for each in self._judged]
            times = [
                (after.begin - before.begin) / (after.number - before.number)
                for before, after in pairwise(steps)
                if np.isfinite(after.begin) and np.isfinite(before.begin)
            ]
        return float(np.median(times)) if times else 0.0

    def _threshold_s(self, rank: int) -> float:
        error = 0.0 if self._by_work else self._clock_error_s(rank)
        return max(OF_STEP * self._step_time_s(), CLOCK_ERRORS * error, LEAST_S)

    def _text(self) -> str:
        if not self._slow:
            return f"No rank is slow any more, at step {self._last_step}.\n"
        by_median = sorted(self._slow, key=lambda rank: (-self._median(rank), rank))
        named = ", ".join(
            f"**rank {rank}** ({plain(self.host_of(rank))})" for rank in by_median[:10]
        )
        what = "own work more than the median rank" if self._by_work else "behind the first rank"
        rows = []
        for rank in by_median[:_ROWS]:
            wins = sum(each.slowest == rank for each in self._judged)
            rows.append(
                [
                    str(rank),
                    plain(self.host_of(rank)),
                    f"{self._median(rank) * 1e3:.1f} ms",
                    f"{100 * wins / len(self._judged):.0f} %",
                    str(self._slow[rank]),
                ]
            )
        titles = ("rank", "host", what, "slowest at", "since step")
        return (
            f"{named} {'is' if len(self._slow) == 1 else 'are'} slow, at step {self._last_step}\n\n"
            f"{table(titles, rows)}\n"
            f"Medians over the last {len(self._judged)} steps. "
            f"A step takes {self._step_time_s() * 1e3:.1f} ms.\n"
        )

    # -- snapshots --------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that later output depends on, msgpack-able; only between groups."""
        return {
            "lateness": self.lateness.state(),
            "hosts": list(self._hosts.items()),
            "clocks": [
                [host, *clock, self._clock_of[host]] for host, clock in self._clocks.items()
            ],
            "judged": [
                [dump_step(each.step), each.measured.tobytes(), each.slowest]
                for each in self._judged
            ],
            "by_work": self._by_work,
            "slow": list(self._slow.items()),
            "has_changed": self._has_changed,
            "since_text": self._since_text,
            "last_step": self._last_step,
        }

    @classmethod
    def restore(cls, state: dict[str, Any]) -> Stragglers:
        """What `state` was taken of."""
        restored = cls(state["lateness"]["world_size"])
        restored.lateness = Lateness.restore(state["lateness"])
        restored._hosts = dict(state["hosts"])
        for host, offset, error, rank in state["clocks"]:
            restored._clocks[host], restored._clock_of[host] = (offset, error), rank
        for step, measured, slowest in state["judged"]:
            values = np.frombuffer(measured).copy()
            restored._judged.append(_Judged(load_step(step), values, slowest))
        restored._by_work = state["by_work"]
        restored._slow = dict(state["slow"])
        restored._has_changed = state["has_changed"]
        restored._since_text = state["since_text"]
        restored._last_step = state["last_step"]
        restored._use_clocks()
        return restored
