"""A run's journal, folded into the bytes of its files.

Pure: entries in, bytes out. No clock, file, socket or process, so that the same journal
gives the same bytes however often a worker was interrupted, and whichever one it was.
What depends on time reaches it as an entry.

The unit is a committed group of the journal. Its output is written as a whole and ends
with a checkpoint; a group that gives nothing to write gives no checkpoint either.

Here are the entries, and with them the ranks' coming and going; what becomes of scalars is
in `scalars`, of everything else in `blobs`, and what they write is collected in `output`.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np

from ranktap_wire import frames
from ranktap_wire.messages import Source
from ranktap_wire.records import STEP_MIN, Batch
from ranktap_wire.segment import Entry
from ranktap_wire.shown import LAYOUT_TAG
from ranktapd import event_file
from ranktapd.blob_windows import MergeWindows
from ranktapd.blobs import Blobs
from ranktapd.entries import (
    BatchAccepted,
    RunBegins,
    SessionGone,
    SessionOpened,
    SessionSource,
    TagsLimited,
    WindowsExpired,
    read_entry,
)
from ranktapd.notices import Notices
from ranktapd.output import Group, Output
from ranktapd.reports import Reports
from ranktapd.run_tags import SCALAR, RunTags
from ranktapd.scalars import Scalars
from ranktapd.windows import ScalarWindows

FORMAT = 3
"""Of the state. Raised when a snapshot that a former release took means something else."""


@dataclass(slots=True)
class _Rank:
    """A session as the fold knows it."""

    rank: int
    dropped: int = 0


class Fold:
    """One run's state: feed it entries in order; take what to write at each group's end.

    Pictures are drawn by `executor`, several at a time where it has several threads; the
    output is the same with any.
    """

    def __init__(self, executor: Executor) -> None:
        self._begins = RunBegins(0.0, "", 0, "")
        self._started = False
        self._sessions: dict[bytes, _Rank] = {}
        self._sessions_of: Counter[int] = Counter()
        """How many of them each rank has: asking all of them at each end would be quadratic."""
        self._behind: dict[bytes, Source] = {}
        """Sessions that send what was logged some time ago, and from where."""
        self._generation: set[bytes] = set()
        self._generation_ranks: set[int] = set()
        self._resumed_at: int | None = None
        self._max_step = 0
        self._max_wall = 0.0
        self._dropped = 0
        """By all sessions, those that are gone too."""
        self._written_dropped = 0
        self._written_late = 0
        # Not state: the group that is being fed, and what was told of.
        self._group = Group()
        self._notices = Notices()
        self._tags = RunTags(self._notices)
        self._scalars = Scalars(self._tags, self._group, self._notices)
        self._blobs = Blobs(self._tags, self._group, self._scalars, self._notices, executor)
        self._reports = Reports(self._tags, self._scalars, self._blobs, self._notices)

    @property
    def executor(self) -> Executor:
        """Draws the pictures of the entries that come."""
        return self._blobs.executor

    @executor.setter
    def executor(self, executor: Executor) -> None:
        self._blobs.executor = executor

    # -- entries ----------------------------------------------------------------------

    def apply(self, entry: Entry) -> None:
        """Take in one entry of the journal.

        Raises:
            ValueError: it cannot be understood, although it was journaled.
        """
        words = read_entry(entry.frames)
        match words:
            case RunBegins():
                self._begins = words
                self._max_wall = words.created
            case SessionOpened():
                self._opened(words)
            case SessionGone():
                self._gone(words)
            case SessionSource():
                if words.session in self._sessions:
                    self._set_source(words.session, Source(words.source))
            case WindowsExpired():
                # Asked for before the worker knew that somebody is behind.
                if not self.is_held:
                    for windows in self._all_windows:
                        windows.expire(words.before)
            case TagsLimited():
                self._tags.most = words.most
                self._scalars.forget_refused()
                self._blobs.forget_refused()
            case BatchAccepted():
                session = self._sessions.get(words.session)
                if session is None:
                    # Its opening was in a part of the journal that is damaged.
                    if words.opened is None:
                        self._notices.tell_once("session", "a batch of a session that is not known")
                        return
                    self._opened(words.opened)
                    session = self._sessions[words.session]
                batch = frames.read_batch(entry.frames[1:])
                self._batch(entry, words.session, session, batch)

    def close_group(self, position: str) -> Output:
        """End the group at `position`; what to write of it."""
        self._write()
        over = not self._sessions
        self._reports.write(self._max_step, self._max_wall, self._late_by_rank, is_over=over)
        self._write_counters()
        if self._scalars.has_new_charts and not self._blobs.has_users_layout:
            self._blobs.write_value(LAYOUT_TAG, 0, self._max_wall, self._scalars.layout())
        start = b""
        if self._group and not self._started:
            self._started = True
            start = event_file.start_record(self._begins.created, 0)
        return self._group.close(self._max_wall, position, start)

    @property
    def limits_met(self) -> dict[str, str]:
        """Settings that what is logged has met since this was made, and what its ranks are told."""
        return self._notices.limits_met

    def waits_since(self) -> int | None:
        """The entry of the oldest record that waits for other ranks; None when none does."""
        oldest = [
            sequence
            for windows in self._all_windows
            if (sequence := windows.oldest_open_seq()) is not None
        ]
        return min(oldest, default=None)

    def overview(self) -> dict[str, Any]:
        """How the run looks, for people, as plain data; nothing that is written depends on it."""
        return {
            "late": sum(windows.late_total for windows in self._all_windows),
            "late_by_rank": {rank: late for rank, late in self._late_by_rank().items() if late},
            "slow_since": self._reports.slow_since,
            "last": self._scalars.last.latest(self._tags.names),
        }

    @property
    def is_held(self) -> bool:
        """Whether no window is given up on: a session is still to send what is missing."""
        return bool(self._behind)

    @property
    def _all_windows(self) -> tuple[ScalarWindows, MergeWindows[Any]]:
        return self._scalars.windows, self._blobs.windows

    # -- sessions ---------------------------------------------------------------------

    def _opened(self, words: SessionOpened) -> None:
        if words.world_size > self._scalars.windows.world_size:
            self._scalars.resize(words.world_size)
            self._blobs.windows.resize(words.world_size)
        if words.session not in self._generation and words.rank in self._generation_ranks:
            self._begin_again(words)
        self._generation.add(words.session)
        self._generation_ranks.add(words.rank)
        if words.session not in self._sessions:
            self._sessions[words.session] = _Rank(words.rank)
            self._sessions_of[words.rank] += 1
        self._set_source(words.session, Source.LIVE)
        self._reports.opened(words)
        for windows in self._all_windows:
            windows.opened(words.rank)
        if words.resume_step is not None and words.resume_step != self._resumed_at:
            # Every rank says it; once is enough.
            self._resumed_at = words.resume_step
            for windows in self._all_windows:
                windows.reset(words.resume_step)
            self._reports.reset(words.resume_step)
            # What came before stands before what follows.
            self._write()
            # In the run's own file alone, as torch does.
            self._group.add("", event_file.start_record(words.started, words.resume_step))

    def _begin_again(self, words: SessionOpened) -> None:
        """A rank is there a second time: the job was started again, and may count from 0.

        What waits is written as it is; no step counts as late any more.
        """
        # Windows of ranks that are gone close, and go on expecting them when they come back.
        # Giving the windows up would leave only those expected that had reported.
        ranks = sorted(self._generation_ranks)
        for windows in self._all_windows:
            for rank in ranks:
                windows.gone(rank)
        self._write()
        self._reports.begin_again(words, self._max_step)
        for windows in self._all_windows:
            for rank in ranks:
                windows.opened(rank)
            windows.reset(STEP_MIN)
        self._generation.clear()
        self._generation_ranks.clear()
        self._behind.clear()  # what they have not sent is of the life before
        self._resumed_at = None

    def _set_source(self, session: bytes, source: Source) -> None:
        if source is Source.LIVE:
            self._behind.pop(session, None)
        else:
            self._behind[session] = source

    def _gone(self, words: SessionGone) -> None:
        session = self._sessions.get(words.session)
        if session is None:
            return
        self._reports.gone(session.rank, words)
        if not words.final and self._behind.get(words.session) is Source.SPOOL:
            return  # its process is long gone; what is missing is on a disk, and comes later
        self._behind.pop(words.session, None)
        others = self._sessions_of[session.rank] - 1
        if words.final:
            del self._sessions[words.session]
            self._sessions_of[session.rank] = others
        if not others:
            for windows in self._all_windows:
                windows.gone(session.rank)

    # -- records ----------------------------------------------------------------------

    def _batch(self, entry: Entry, identity: bytes, session: _Rank, batch: Batch) -> None:
        dropped = batch.dropped_scalars + batch.dropped_blobs
        self._dropped += dropped - session.dropped
        session.dropped = dropped
        self._reports.batch(session.rank, identity, batch)
        columns = batch.columns
        if columns is not None:
            self._max_step = max(self._max_step, int(columns.step.max()))
            self._max_wall = max(self._max_wall, float(columns.wall_time.max()))
            # frames: the journal's words, the header, tags, across, ...
            table = (bytes(entry.frames[2]), bytes(entry.frames[3]))
            self._scalars.add(entry.sequence, session.rank, columns, table)
        for blob in batch.blobs:
            self._max_step = max(self._max_step, blob.step)
            self._max_wall = max(self._max_wall, blob.wall_time)
            self._blobs.add(entry.sequence, session.rank, blob)

    def _write(self) -> None:
        self._scalars.write()
        self._blobs.write()

    def _write_counters(self) -> None:
        """What was lost, as series of the run: nobody looks for it in a log."""
        late = sum(windows.late_total for windows in self._all_windows)
        for tag, count, written in (
            ("ranktap/dropped", self._dropped, self._written_dropped),
            ("ranktap/late", late, self._written_late),
        ):
            if count != written:
                self._scalars.encode(
                    np.array([self._tags.id_of(tag, SCALAR)]),
                    np.array([self._max_step]),
                    np.array([self._max_wall]),
                    np.array([float(count)]),
                )
        self._written_dropped, self._written_late = self._dropped, late

    def _late_by_rank(self) -> dict[int, int]:
        late: Counter[int] = Counter()
        for windows in self._all_windows:
            late.update(windows.late_by_rank())
        return late

    @property
    def _open_dropped(self) -> int:
        return sum(rank.dropped for rank in self._sessions.values())

    # -- snapshots --------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that later output depends on, msgpack-able; only between groups."""
        begins = self._begins
        return {
            "format": FORMAT,
            "begins": [begins.created, begins.host, begins.pid, begins.suffix],
            "started": self._started,
            "sessions": [[key, rank.rank, rank.dropped] for key, rank in self._sessions.items()],
            "behind": [[key, str(source)] for key, source in self._behind.items()],
            "generation": sorted(self._generation),
            "generation_ranks": sorted(self._generation_ranks),
            "resumed_at": self._resumed_at,
            "max_step": self._max_step,
            "max_wall": self._max_wall,
            "gone_dropped": self._dropped - self._open_dropped,
            "written_dropped": self._written_dropped,
            "written_late": self._written_late,
            "tags": self._tags.state(),
            "scalars": self._scalars.state(),
            "blobs": self._blobs.state(),
            "reports": self._reports.state(),
        }

    @classmethod
    def restore(cls, state: dict[str, Any], executor: Executor) -> Fold:
        """The fold that `state` was taken of.

        Raises:
            ValueError: it is of a format that this release does not read.
        """
        if state["format"] != FORMAT:
            raise ValueError(f"a snapshot of format {state['format']}, this release reads {FORMAT}")
        fold = cls(executor)
        fold._begins = RunBegins(*state["begins"])
        fold._started = state["started"]
        fold._sessions = {key: _Rank(rank, dropped) for key, rank, dropped in state["sessions"]}
        fold._sessions_of = Counter(session.rank for session in fold._sessions.values())
        # Snapshots of before have no such sessions.
        fold._behind = {key: Source(source) for key, source in state.get("behind", ())}
        fold._generation = set(state["generation"])
        fold._generation_ranks = set(state["generation_ranks"])
        fold._resumed_at = state["resumed_at"]
        fold._max_step = state["max_step"]
        fold._max_wall = state["max_wall"]
        fold._dropped = state["gone_dropped"] + fold._open_dropped
        fold._written_dropped = state["written_dropped"]
        fold._written_late = state["written_late"]
        group, notices = fold._group, fold._notices
        tags = fold._tags = RunTags.restore(state["tags"], notices)
        scalars = fold._scalars = Scalars.restore(state["scalars"], tags, group, notices)
        blobs = Blobs.restore(state["blobs"], tags, group, scalars, notices, executor)
        fold._blobs = blobs
        fold._reports = Reports.restore(state["reports"], tags, scalars, blobs, notices)
        return fold
