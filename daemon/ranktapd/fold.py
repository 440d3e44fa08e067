"""A run's journal, folded into the bytes of its event file.

Pure: entries in, bytes out. No clock, file, socket or process, so that the same journal
gives the same bytes however often a worker was interrupted, and whichever one it was.
What depends on time reaches it as an entry.

The unit is a committed group of the journal. Its output is written as a whole and ends
with a checkpoint; a group that gives nothing to write gives no checkpoint either.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from ranktap_wire import frames, limits
from ranktap_wire.journal import Entry
from ranktap_wire.records import STEP_MIN, Across, Batch, Blob, Columns, Kind, byte_view
from ranktapd import event_file
from ranktapd.blob_windows import MergeWindows
from ranktapd.entries import (
    BatchAccepted,
    RunBegins,
    SessionGone,
    SessionOpened,
    WindowsExpired,
    read_entry,
)
from ranktapd.render import summaries
from ranktapd.render.grid import make_grid, to_uint8_hwc
from ranktapd.render.histogram import HistogramStats, histogram_stats, tensorflow_edges
from ranktapd.scalar_encoder import ScalarEncoder
from ranktapd.tensor_statistics import TensorStatistics, statistics_of
from ranktapd.windows import Closed, ScalarWindows

logger = logging.getLogger("ranktapd")

FORMAT = 1
"""Of the state. Raised when a snapshot that a former release took means something else."""

CACHED_TABLES = 256

_NOT_ASKED = -2
"""In place of a tag's number that has not been looked up yet; -1 is one that is refused."""


@dataclass(slots=True)
class _Rank:
    """A session as the fold knows it."""

    rank: int
    dropped: int = 0


@dataclass(slots=True)
class _TableIds:
    """What a batch's tag table means in this run."""

    ids: NDArray[np.int64]
    """Tag of the table to tag of the run; -1: its records are refused."""
    merged: NDArray[np.bool_]
    """Whether it goes through the windows."""


@dataclass(slots=True)
class _Picture:
    """A record that is being drawn; it has its place among the others already."""

    tag: str
    step: int
    wall_time: float
    value: Future[bytes]
    nbytes: int
    """Of its pixels, as they were logged."""

    def record(self) -> bytes:
        """Its event, framed, when it is drawn; nothing when it cannot be."""
        try:
            value = self.value.result()
        except ValueError as error:
            # The rules of records.py let nothing through that cannot be drawn; where they
            # are wrong, one picture is missing, not the batch that it came in.
            logger.warning("%r cannot be drawn at step %d: %s", self.tag, self.step, error)
            return b""
        return _record(self.step, self.wall_time, value)


class Output:
    """What a group gives to write. Its pictures may still be being drawn, so that the next
    group can be read meanwhile."""

    def __init__(self, records: list[bytes | memoryview | _Picture]) -> None:
        self._records = records

    @property
    def nbytes(self) -> int:
        """What it takes until it is written, about."""
        return sum(
            record.nbytes if isinstance(record, _Picture) else len(record)
            for record in self._records
        )

    def join(self) -> bytes:
        """All of it, in order, when all is drawn; empty when the group gives nothing."""
        return b"".join(
            record.record() if isinstance(record, _Picture) else record for record in self._records
        )


Direct = tuple[NDArray[Any], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]


class Fold:
    """One run's state: feed it entries in order; take what to write at each group's end.

    Pictures are drawn by `executor`, several at a time where it has several threads; the
    output is the same with any.
    """

    def __init__(self, executor: Executor) -> None:
        self._begins = RunBegins(0.0, "", 0, "")
        self._started = False
        self._sessions: dict[bytes, _Rank] = {}
        self._generation: set[bytes] = set()
        self._generation_ranks: set[int] = set()
        self._resumed_at: int | None = None
        self._tags: list[bytes] = []
        self._ids: dict[str, int] = {}
        self._kinds: dict[str, str] = {}
        self._windows = ScalarWindows(1)
        # HistogramStats or TensorStatistics: a tag has one kind.
        self._merges: MergeWindows[Any] = MergeWindows(1)
        self._policies: dict[int, str] = {}
        self._bands: dict[int, tuple[int, int]] = {}
        self._charts: list[str] = []
        self._max_step = 0
        self._max_wall = 0.0
        self._gone_dropped = 0
        self._written_dropped = 0
        self._written_late = 0
        # Not state: caches, and the group that is being fed.
        self._encoder = ScalarEncoder()
        self._tables: dict[tuple[bytes, bytes, int], _TableIds] = {}
        self._field_ids: dict[tuple[tuple[str, ...], tuple[str, ...], int], NDArray[np.int64]] = {}
        self._direct: list[Direct] = []
        self.executor = executor
        self._out: list[bytes | memoryview | _Picture] = []
        self._new_charts = False
        self._told: set[str] = set()

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
            case WindowsExpired():
                self._windows.expire(words.before)
                self._merges.expire(words.before)
            case BatchAccepted():
                session = self._sessions.get(words.session)
                if session is None:
                    # Its opening was in a part of the journal that is damaged.
                    self._tell_once("session", "a batch of a session that is not known")
                    return
                self._batch(entry, session, frames.read_batch(entry.frames[1:]))

    def close_group(self, position: str) -> Output:
        """End the group at `position`; what to write of it."""
        self._write_direct()
        self._write_closed(self._windows.close_group())
        self._write_merged()
        self._write_counters()
        if self._new_charts:
            self._write_layout()
        if not self._out:
            return Output([])
        if not self._started:
            self._started = True
            self._out.insert(0, event_file.start_record(self._begins.created, 0))
        self._out.append(event_file.checkpoint_record(self._max_wall, position))
        records, self._out = self._out, []
        return Output(records)

    def waits_since(self) -> int | None:
        """The entry of the oldest record that waits for other ranks; None when none does."""
        oldest = [
            sequence
            for sequence in (self._windows.oldest_open_seq(), self._merges.oldest_open_seq())
            if sequence is not None
        ]
        return min(oldest, default=None)

    # -- sessions ---------------------------------------------------------------------

    def _opened(self, words: SessionOpened) -> None:
        if words.world_size > self._windows.world_size:
            self._windows.resize(words.world_size)
            self._merges.resize(words.world_size)
            self._tables.clear()
        if words.session not in self._generation and words.rank in self._generation_ranks:
            self._begin_again()
        self._generation.add(words.session)
        self._generation_ranks.add(words.rank)
        self._sessions.setdefault(words.session, _Rank(words.rank))
        self._windows.opened(words.rank)
        self._merges.opened(words.rank)
        if words.resume_step is not None and words.resume_step != self._resumed_at:
            # Every rank says it; once is enough.
            self._resumed_at = words.resume_step
            self._windows.reset(words.resume_step)
            self._merges.reset(words.resume_step)
            self._flush_order()
            self._out.append(event_file.start_record(words.started, words.resume_step))

    def _begin_again(self) -> None:
        """A rank is there a second time: the job was started again, and may count from 0.

        What waits is written as it is; no step counts as late any more.
        """
        # Windows of ranks that are gone close, and go on expecting them when they come back.
        # Giving the windows up would leave only those expected that had reported.
        for rank in sorted(self._generation_ranks):
            self._windows.gone(rank)
            self._merges.gone(rank)
        self._flush_order()
        for rank in sorted(self._generation_ranks):
            self._windows.opened(rank)
            self._merges.opened(rank)
        self._windows.reset(STEP_MIN)
        self._merges.reset(STEP_MIN)
        self._generation.clear()
        self._generation_ranks.clear()
        self._resumed_at = None

    def _flush_order(self) -> None:
        """Write what came before, so that it stands before what follows."""
        self._write_direct()
        self._write_closed(self._windows.close_group())
        self._write_merged()

    def _gone(self, words: SessionGone) -> None:
        session = self._sessions.get(words.session)
        if session is None:
            return
        if words.final:
            del self._sessions[words.session]
            self._gone_dropped += session.dropped
        if not any(
            other.rank == session.rank
            for identity, other in self._sessions.items()
            if identity != words.session
        ):
            self._windows.gone(session.rank)
            self._merges.gone(session.rank)

    # -- records ----------------------------------------------------------------------

    def _batch(self, entry: Entry, session: _Rank, batch: Batch) -> None:
        session.dropped = batch.dropped_scalars + batch.dropped_blobs
        columns = batch.columns
        if columns is not None:
            self._max_step = max(self._max_step, int(columns.step.max()))
            self._max_wall = max(self._max_wall, float(columns.wall_time.max()))
            # frames: the journal's words, the header, tags, across, ...
            key = (bytes(entry.frames[2]), bytes(entry.frames[3]), session.rank)
            self._scalars(entry.sequence, session.rank, columns, key)
        for blob in batch.blobs:
            self._max_step = max(self._max_step, blob.step)
            self._max_wall = max(self._max_wall, blob.wall_time)
            self._blob(entry.sequence, session.rank, blob)

    def _scalars(
        self, sequence: int, rank: int, columns: Columns, key: tuple[bytes, bytes, int]
    ) -> None:
        table = self._tables.get(key)
        if table is None:
            if len(self._tables) >= CACHED_TABLES:
                self._tables.clear()
            table = self._tables[key] = self._read_table(columns, rank)
        for through_windows in (False, True):
            chosen = (table.ids >= 0) & (table.merged == through_windows)
            if not chosen.any():
                continue
            index = columns.tag_index
            rows = slice(None) if chosen.all() else np.flatnonzero(chosen[index])
            ids = table.ids[index[rows]]
            step, wall_time = columns.step[rows], columns.wall_time[rows]
            value = columns.value[rows]
            if through_windows:
                self._windows.add(sequence, rank, ids, step, wall_time, value)
            else:
                self._direct.append((ids, step, wall_time, value))

    def _read_table(self, columns: Columns, rank: int) -> _TableIds:
        ids = np.full(len(columns.tags), -1, np.int64)
        merged = np.zeros(len(columns.tags), np.bool_)
        alone = self._windows.world_size == 1
        for row, (tag, code) in enumerate(zip(columns.tags, columns.across, strict=True)):
            policy = Across(int(code))
            if policy is Across.RANK0 and rank != 0:
                continue
            if policy is Across.EACH and not alone:
                ids[row] = self._tag(_of_rank(tag, rank), "scalar")
                continue
            ids[row] = self._tag(tag, "scalar")
            if not alone and policy is not Across.RANK0 and ids[row] >= 0:
                merged[row] = True
                self._declare(int(ids[row]), policy)
        return _TableIds(ids, merged)

    def _declare(self, tag: int, policy: Across) -> None:
        first = self._policies.setdefault(tag, policy.name.lower())
        if first != policy.name.lower():
            name = self._tags[tag].decode()
            self._tell_once(
                f"across {name}", f"{name!r} has two policies across ranks: {first} it is"
            )
        else:
            self._windows.declare(tag, first)

    def _blob(self, sequence: int, rank: int, blob: Blob) -> None:
        tag = blob.tag
        alone = self._windows.world_size == 1
        if blob.across is Across.RANK0 and rank != 0:
            return
        if not alone and blob.across is Across.MERGE:
            identity = self._tag(tag, str(blob.kind))
            if identity >= 0:
                stats: HistogramStats | TensorStatistics
                if blob.kind is Kind.MOMENTS:
                    stats = statistics_of(blob)
                    nbytes = stats.nbytes
                else:
                    stats = _histogram_of(blob)
                    nbytes = stats.counts.nbytes
                self._merges.declare(identity, "merge")
                self._merges.add(sequence, rank, identity, blob.step, blob.wall_time, stats, nbytes)
            return
        if blob.kind is Kind.MOMENTS:
            own = rank if blob.across is Across.EACH and not alone else None
            self._write_statistics(blob.step, blob.wall_time, statistics_of(blob), own)
            return
        # A picture of rank 0 keeps its name, so that it stands where one looks for it.
        if blob.across is Across.EACH and not alone and rank != 0:
            tag = _of_rank(tag, rank)
        if self._tag(tag, str(blob.kind)) < 0:
            return
        if blob.kind is Kind.HISTOGRAM:
            max_bins = blob.parameters["max_bins"]
            self._write_histogram(tag, blob.step, blob.wall_time, _histogram_of(blob), max_bins)
            return
        nbytes = byte_view(blob.data).nbytes
        value = self.executor.submit(_RENDERERS[blob.kind], tag, blob)
        self._out.append(_Picture(tag, blob.step, blob.wall_time, value, nbytes))

    def _tag(self, tag: str, kind: str) -> int:
        """The run's number for a tag; -1 when what is logged under it cannot be shown."""
        known = self._kinds.get(tag)
        if known is None:
            if len(self._kinds) >= limits.TAGS:
                self._tell_once("tags", f"more than {limits.TAGS} tags: the others are left out")
                return -1
            self._kinds[tag] = kind
            self._ids[tag] = len(self._tags)
            self._tags.append(tag.encode())
        elif known != kind:
            # TensorBoard's Python loader answers with an error for a tag of two kinds.
            self._tell_once(f"kind {tag}", f"{tag!r} is {known}; as {kind} it is left out")
            return -1
        return self._ids[tag]

    # -- output -----------------------------------------------------------------------

    def _write(self, step: int, wall_time: float, value: bytes) -> None:
        self._out.append(_record(step, wall_time, value))

    def _write_direct(self) -> None:
        """Scalars that are not merged, in the order in which they came."""
        if self._direct:
            columns = [np.concatenate(column) for column in zip(*self._direct, strict=True)]
            self._direct.clear()
            self._encode(*columns)

    def _write_closed(self, closed: Closed) -> None:
        if not len(closed):
            return
        self._encode(closed.tags, closed.steps, closed.walls, closed.values)
        several = closed.reporters > 1
        if not several.any():
            return
        tags, bands = np.unique(closed.tags[several], return_inverse=True)
        band_ids = np.array([self._band(tag) for tag in tags.tolist()])[bands]
        for side, values in enumerate((closed.minimum, closed.maximum)):
            self._encode(
                band_ids[:, side], closed.steps[several], closed.walls[several], values[several]
            )

    def _write_merged(self) -> None:
        for point in self._merges.close_group():
            if isinstance(point.payload, TensorStatistics):
                self._write_statistics(point.step, point.wall, point.payload)
                continue
            tag = self._tags[point.tag].decode()
            self._write_histogram(tag, point.step, point.wall, point.payload, None)

    def _band(self, tag: int) -> tuple[int, int]:
        """The tags of the smallest and the largest value over the ranks."""
        band = self._bands.get(tag)
        if band is None:
            name = self._tags[tag].decode()
            low = self._tag(f"ranks/{name}/min", "scalar")
            high = self._tag(f"ranks/{name}/max", "scalar")
            # Where a user's own tag is in the way, or there are too many: not twice the mean.
            band = self._bands[tag] = (low, high)
            if low >= 0 and high >= 0:
                self._charts.append(name)
                self._new_charts = True
        return band

    def _encode(
        self,
        tags: NDArray[Any],
        steps: NDArray[np.int64],
        wall_times: NDArray[np.float64],
        values: NDArray[np.float64],
    ) -> None:
        if len(tags) and tags.min() < 0:
            kept = tags >= 0
            tags, steps, wall_times, values = (
                tags[kept], steps[kept], wall_times[kept], values[kept],
            )  # fmt: skip
        if len(tags):
            self._out.append(self._encoder.encode(self._tags, tags, steps, wall_times, values))

    def _write_histogram(
        self, tag: str, step: int, wall_time: float, stats: HistogramStats, max_bins: int | None
    ) -> None:
        if stats.num == 0:
            # Nothing to draw: torch raises here, in the training loop.
            self._tell_once(f"nan {tag}", f"{tag!r} has no finite value at step {step}")
            return
        self._write(step, wall_time, summaries.histogram_value(tag, stats, max_bins))

    def _write_statistics(
        self, step: int, wall_time: float, statistics: TensorStatistics, rank: int | None = None
    ) -> None:
        """Scalars and histograms of many tensors; `rank` where each has its own series."""
        key = (statistics.tags, statistics.fields, -1 if rank is None else rank)
        ids = self._field_ids.get(key)
        if ids is None:
            if len(self._field_ids) >= CACHED_TABLES:
                self._field_ids.clear()
            shape = (len(statistics.tags), len(statistics.fields))
            ids = self._field_ids[key] = np.full(shape, _NOT_ASKED, np.int64)
        values, written = statistics.scalars()
        for row, field in np.argwhere(written & (ids == _NOT_ASKED)).tolist():
            tag = f"{statistics.tags[row]}/{statistics.fields[field]}"
            ids[row, field] = self._tag(tag if rank is None else _of_rank(tag, rank), "scalar")
        count = int(np.count_nonzero(written))
        if count:
            self._encode(
                ids[written],
                np.full(count, step, np.int64),
                np.full(count, wall_time),
                values[written],
            )
        for tag, stats in statistics.histograms():
            name = tag if rank is None else _of_rank(tag, rank)
            if self._tag(name, str(Kind.HISTOGRAM)) >= 0:
                self._write_histogram(name, step, wall_time, stats, None)

    def _write_counters(self) -> None:
        """What was lost, as series of the run: nobody looks for it in a log."""
        dropped = self._gone_dropped + sum(rank.dropped for rank in self._sessions.values())
        late = self._windows.late_total + self._merges.late_total
        for tag, count, written in (
            ("ranktap/dropped", dropped, self._written_dropped),
            ("ranktap/late", late, self._written_late),
        ):
            if count != written and (identity := self._tag(tag, "scalar")) >= 0:
                self._encode(
                    np.array([identity]),
                    np.array([self._max_step]),
                    np.array([self._max_wall]),
                    np.array([float(count)]),
                )
        self._written_dropped, self._written_late = dropped, late

    def _write_layout(self) -> None:
        """The custom scalars page: a chart with a band for each merged tag, grouped as tags are."""
        self._new_charts = False
        categories: dict[str, list[summaries.MarginChart | summaries.MultilineChart]] = {}
        for tag in self._charts:
            chart = summaries.MarginChart(tag, tag, f"ranks/{tag}/min", f"ranks/{tag}/max")
            categories.setdefault(tag.partition("/")[0], []).append(chart)
        self._write(0, self._max_wall, summaries.layout_value(categories))

    def _tell_once(self, key: str, text: str) -> None:
        if key not in self._told:
            self._told.add(key)
            logger.warning("%s", text)

    # -- snapshots --------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that later output depends on, msgpack-able; only between groups."""
        begins = self._begins
        return {
            "format": FORMAT,
            "begins": [begins.created, begins.host, begins.pid, begins.suffix],
            "started": self._started,
            "sessions": [[key, rank.rank, rank.dropped] for key, rank in self._sessions.items()],
            "generation": sorted(self._generation),
            "generation_ranks": sorted(self._generation_ranks),
            "resumed_at": self._resumed_at,
            "kinds": list(self._kinds.items()),
            "policies": list(self._policies.items()),
            "bands": [[tag, low, high] for tag, (low, high) in self._bands.items()],
            "charts": self._charts,
            "windows": self._windows.state(),
            "merges": self._merges.state(_dump_stats),
            "max_step": self._max_step,
            "max_wall": self._max_wall,
            "gone_dropped": self._gone_dropped,
            "written_dropped": self._written_dropped,
            "written_late": self._written_late,
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
        fold._generation = set(state["generation"])
        fold._generation_ranks = set(state["generation_ranks"])
        fold._resumed_at = state["resumed_at"]
        for tag, kind in state["kinds"]:
            fold._tag(tag, kind)
        fold._policies = dict(state["policies"])
        fold._bands = {tag: (low, high) for tag, low, high in state["bands"]}
        fold._charts = state["charts"]
        fold._windows = ScalarWindows.restore(state["windows"])
        fold._merges = MergeWindows.restore(state["merges"], _load_stats)
        fold._max_step = state["max_step"]
        fold._max_wall = state["max_wall"]
        fold._gone_dropped = state["gone_dropped"]
        fold._written_dropped = state["written_dropped"]
        fold._written_late = state["written_late"]
        return fold


# -- one kind at a time -----------------------------------------------------------------


def _record(step: int, wall_time: float, value: bytes) -> bytes:
    return event_file.frame(summaries.event_payload(wall_time, step, value))


def _of_rank(tag: str, rank: int) -> str:
    return f"ranks/{tag}/rank{rank}"


def _picture(tag: str, blob: Blob) -> bytes:
    pixels = to_uint8_hwc(blob.array(), blob.parameters["dataformats"])
    return summaries.image_value(tag, pixels)


def _grid(tag: str, blob: Blob) -> bytes:
    return summaries.image_value(
        tag, to_uint8_hwc(make_grid(blob.array(), **blob.parameters), "CHW")
    )


def _text(tag: str, blob: Blob) -> bytes:
    return summaries.text_value(tag, str(byte_view(blob.data), "utf-8"))


_RENDERERS: dict[Kind, Callable[[str, Blob], bytes]] = {
    Kind.IMAGE: _picture,
    Kind.IMAGES: _picture,
    Kind.IMAGE_GRID: _grid,
    Kind.TEXT: _text,
}


def _histogram_of(blob: Blob) -> HistogramStats:
    if blob.edges is not None:
        return histogram_stats(blob.array(), np.frombuffer(blob.edges, "<f8"))
    return histogram_stats(blob.array(), blob.parameters["bins"])


def _dump_stats(stats: HistogramStats | TensorStatistics) -> bytes:
    if isinstance(stats, TensorStatistics):
        of_tensors: bytes = msgpack.packb(stats.dump())
        return of_tensors
    standard = np.array_equal(stats.edges, tensorflow_edges())
    packed: bytes = msgpack.packb(
        [
            b"" if standard else stats.edges.tobytes(),
            stats.counts.tobytes(),
            stats.num,
            stats.min,
            stats.max,
            stats.sum,
            stats.sum_squares,
            stats.nan,
            stats.positive_infinities,
            stats.negative_infinities,
        ]
    )
    return packed


def _load_stats(packed: bytes) -> HistogramStats | TensorStatistics:
    edges, counts, *rest = dumped = msgpack.unpackb(packed)
    if isinstance(edges, list):
        return TensorStatistics.load(dumped)
    return HistogramStats(
        np.frombuffer(edges, np.float64) if edges else tensorflow_edges(),
        np.frombuffer(counts, np.int64),
        *rest,
    )
