"""The job in the Text tab: who its ranks are, when they came and went, what code it runs.

Written when a session opens or goes. Wall times are the ranks' own: when one went is not
known, so the time of its last record stands there.

Pure: no clock, file, socket or thread.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from ranktapd.entries import SessionGone, SessionOpened
from ranktapd.render.tables import code, plain, table

TAG: Final = "ranktap/job"

ROWS: Final = 128
"""Of the table of ranks; the text is written anew each time that one comes or goes."""
HISTORY: Final = 50
"""Comings and goings that are told, the latest ones."""

_VERSIONS: Final = ("python", "torch", "ranktap")
_RUNNING: Final = "running"


@dataclass(slots=True)
class _Rank:
    """A rank as its latest session tells."""

    session: bytes
    host: str
    pid: int
    device: str
    joined: float
    state: str = _RUNNING
    last_record: float | None = None
    """Wall time."""
    dropped: int = 0
    """By this session."""
    dropped_before: int = 0
    """By the sessions before it."""


@dataclass(slots=True)
class JobSummary:
    """What is told of one run's ranks. Not thread safe."""

    _world_size: int = 1
    _ranks: dict[int, _Rank] = field(default_factory=dict)
    _versions: dict[str, dict[int, str]] = field(default_factory=dict)
    """What each rank says, of those that say something."""
    _code: dict[str, str] = field(default_factory=dict)
    """The commit and the command line, of the lowest rank that says them."""
    _code_rank: int | None = None
    _history: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=HISTORY))
    _has_changed: bool = False

    # -- in ---------------------------------------------------------------------------

    def opened(self, words: SessionOpened) -> None:
        """A rank said hello."""
        self._has_changed = True
        self._world_size = words.world_size
        known = self._ranks.get(words.rank)
        if known is not None and known.session == words.session:
            if known.state != _RUNNING:
                known.state = _RUNNING
                self._tell(known.last_record or known.joined, f"rank {words.rank} is back")
            return
        rank = _Rank(
            words.session, words.host, words.pid, words.about.get("device", ""), words.started
        )
        if known is not None:
            rank.dropped_before = known.dropped_before + known.dropped
            self._tell(
                words.started,
                f"rank {words.rank} is process {words.pid} on {plain(words.host)} now, "
                f"which was {known.pid} on {plain(known.host)}",
            )
        self._ranks[words.rank] = rank
        self._note_about(words.rank, words.about)

    def _note_about(self, rank: int, about: Mapping[str, str]) -> None:
        for name in _VERSIONS:
            if name in about:
                self._versions.setdefault(name, {})[rank] = about[name]
            else:
                self._versions.get(name, {}).pop(rank, None)
        code_of = {name: about[name] for name in ("git", "command") if name in about}
        if code_of and (self._code_rank is None or rank <= self._code_rank):
            self._code, self._code_rank = code_of, rank

    def begin_again(self, words: SessionOpened, step: int) -> None:
        """The job is started again, by this session; `step` is the highest there was."""
        self._tell(
            words.started,
            f"the job was started again, with {words.world_size} ranks; it had come to step {step}",
        )

    def gone(self, rank: int, words: SessionGone) -> None:
        """A session went."""
        known = self._ranks.get(rank)
        if known is None or known.session != words.session:
            return
        if words.replaced:
            if known.state == _RUNNING:
                when = known.last_record or known.joined
                self._tell(when, f"rank {rank} has ended without a goodbye")
            known.state = "replaced"  # the one that takes its place follows
            return
        self._has_changed = True
        known.state = "left" if words.final else "lost"
        what = "left" if words.final else "is not heard of any more"
        self._tell(known.last_record or known.joined, f"rank {rank} {what}")

    def heard(self, rank: int, session: bytes, last_record: float | None, dropped: int) -> None:
        """A batch came: the wall time of its last record, and what its session has dropped."""
        known = self._ranks.get(rank)
        if known is None or known.session != session:
            return
        known.dropped = dropped
        if last_record is not None:
            known.last_record = max(last_record, known.last_record or last_record)

    def _tell(self, when: float, what: str) -> None:
        self._history.append((when, what))

    # -- out --------------------------------------------------------------------------

    def take(self, late_by_rank: Callable[[], Mapping[int, int]]) -> str | None:
        """End the group: the text, where something has changed and there are several ranks.

        `late_by_rank` counts the records that came too late; ranks without any are left out.
        """
        has_changed, self._has_changed = self._has_changed, False
        if not has_changed or self._world_size == 1:
            return None
        # With a line between them: TensorBoard shows tables without a gap. What has happened
        # first, as it shows a text's beginning, and the rest when one scrolls.
        parts = [self._headline(), self._table(late_by_rank())]
        if self._history:
            # Of who ended without a goodbye it is known when only once another takes its place.
            told = [[moment(when), what] for when, what in sorted(self._history, key=_when)]
            parts += ["What has happened:\n", table(("when (UTC)", "what"), told)]
        about = self._about()
        if about:
            parts += ["What it runs:\n", about]
        return "\n".join(parts)

    def _headline(self) -> str:
        running = sum(rank.state == _RUNNING for rank in self._ranks.values())
        lost = sorted(number for number, rank in self._ranks.items() if rank.state == "lost")
        words = f"**{self._world_size} ranks**, {running} running"
        if lost:
            some = ", ".join(map(str, lost[:10])) + (", ..." if len(lost) > 10 else "")
            words += f"; not heard of any more: {some}"
        missing = self._world_size - len(self._ranks)
        if missing > 0:
            words += f"; {missing} not here yet"
        return words + "\n"

    def _table(self, late: Mapping[int, int]) -> str:
        numbers = sorted(self._ranks)
        more = len(numbers) - ROWS
        if more > 0:
            # Those of which there is something to say; then the first of the others.
            def is_well(number: int) -> bool:
                rank = self._ranks[number]
                lossless = not (rank.dropped or rank.dropped_before or late.get(number))
                return rank.state == _RUNNING and lossless

            numbers = sorted(sorted(numbers, key=is_well)[:ROWS])
        titles = (
            "rank", "host", "pid", "device", "joined (UTC)", "last record", "is", "dropped", "late",
        )  # fmt: skip
        rows = []
        for number in numbers:
            rank = self._ranks[number]
            rows.append(
                [
                    str(number),
                    plain(rank.host),
                    str(rank.pid),
                    plain(rank.device),
                    moment(rank.joined),
                    moment(rank.last_record, rank.joined),
                    rank.state,
                    str(rank.dropped + rank.dropped_before),
                    str(late.get(number, 0)),
                ]
            )
        return table(titles, rows) + (f"\nand {more} more\n" if more > 0 else "")

    def _about(self) -> str:
        rows = [[name, _of_ranks(said)] for name, said in self._versions.items() if said]
        rows += [[name, code(said)] for name, said in self._code.items()]
        return table(("what", ""), rows) if rows else ""

    # -- snapshots --------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that later output depends on, msgpack-able; only between groups."""
        return {
            "world_size": self._world_size,
            "ranks": [
                [
                    number, rank.session, rank.host, rank.pid, rank.device, rank.joined,
                    rank.state, rank.last_record, rank.dropped, rank.dropped_before,
                ]
                for number, rank in self._ranks.items()
            ],
            "versions": [[name, list(said.items())] for name, said in self._versions.items()],
            "code": list(self._code.items()),
            "code_rank": self._code_rank,
            "history": [list(each) for each in self._history],
        }  # fmt: skip

    @classmethod
    def restore(cls, state: dict[str, Any]) -> JobSummary:
        """What `state` was taken of."""
        summary = cls(state["world_size"])
        summary._ranks = {number: _Rank(*rank) for number, *rank in state["ranks"]}
        summary._versions = {name: dict(said) for name, said in state["versions"]}
        summary._code = dict(state["code"])
        summary._code_rank = state["code_rank"]
        summary._history.extend((when, what) for when, what in state["history"])
        return summary


def _when(told: tuple[float, str]) -> float:
    return told[0]


def moment(wall_time: float | None, beside: float | None = None) -> str:
    """A wall time for people, in UTC to the second; empty where no calendar has it.

    Without its day when that is the day of `beside`: columns of a page are narrow.
    """
    day, clock = _day_and_clock(wall_time)
    return clock if day == _day_and_clock(beside)[0] else f"{day} {clock}".strip()


def _day_and_clock(wall_time: float | None) -> tuple[str, str]:
    try:
        at = datetime.fromtimestamp(math.nan if wall_time is None else wall_time, UTC)
    except (OverflowError, ValueError, OSError):
        return "", ""
    return f"{at:%Y-%m-%d}", f"{at:%H:%M:%S}"


def _of_ranks(said: Mapping[int, str]) -> str:
    """What most ranks say, and which say something else."""
    by_words: dict[str, list[int]] = {}
    for rank, words in sorted(said.items()):
        by_words.setdefault(words, []).append(rank)
    most, *others = sorted(by_words.items(), key=lambda each: -len(each[1]))
    text = plain(most[0])
    for words, ranks in others[:10]:
        some = ", ".join(map(str, ranks[:10])) + (", ..." if len(ranks) > 10 else "")
        text += f"; {plain(words)} on rank{'s' if len(ranks) > 1 else ''} {some}"
    return text
