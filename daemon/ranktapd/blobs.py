"""A run's records other than scalars: merged over ranks, drawn, or made into files.

Pure but for the executor that it is given: no clock, file, socket or thread of its own.
"""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any, Final

import msgpack
import numpy as np
from numpy.typing import NDArray

from ranktap_wire.records import Across, Blob, Kind, byte_view, split_name
from ranktap_wire.shown import shown_as, shown_name
from ranktapd import event_file
from ranktapd.blob_windows import MergeWindows
from ranktapd.drawing import draw, draw_tiles, pixels_of
from ranktapd.embeddings import Embeddings
from ranktapd.notices import Notices
from ranktapd.output import Drawing, Group, framed
from ranktapd.rank_pictures import RankPictures
from ranktapd.render.histogram import HistogramStats, histogram_stats, tensorflow_edges
from ranktapd.render.protos import event_payload
from ranktapd.render.summaries import histogram_value
from ranktapd.run_tags import SCALAR, RunTags, of_rank
from ranktapd.scalars import CACHED_TABLES, Scalars
from ranktapd.tensor_statistics import TensorStatistics, statistics_of

_NOT_ASKED: Final = -2
"""In place of a tag's number that has not been looked up yet; -1 is one that is refused."""

_HISTOGRAM: Final = "histogram"


class Blobs:
    """One run's records other than scalars. Not thread safe.

    The ranks' coming and going is told to `windows` itself. `executor` draws.
    """

    def __init__(
        self,
        tags: RunTags,
        group: Group,
        scalars: Scalars,
        notices: Notices,
        executor: Executor,
    ) -> None:
        self._tags = tags
        self._group = group
        self._scalars = scalars
        self._notices = notices
        self.executor = executor
        # HistogramStats, TensorStatistics or RankPictures: a tag has one kind.
        self.windows: MergeWindows[Any] = MergeWindows(1)
        self._embeddings = Embeddings(group, notices)
        self.has_users_layout = False
        """Of the custom scalars page: there is no place for another."""
        # Not state: a cache.
        self._field_ids: dict[tuple[tuple[str, ...], tuple[str, ...], int], NDArray[np.int64]] = {}

    # -- in ---------------------------------------------------------------------------

    def add(self, sequence: int, rank: int, blob: Blob) -> None:
        """Take a rank's record from journal entry `sequence`."""
        alone = self.windows.world_size == 1
        name = blob.tag
        if blob.across is Across.RANK0 and rank != 0:
            return
        if blob.across in (Across.MERGE, Across.TILE) and not alone:
            self._add_merged(sequence, rank, blob)
            return
        if blob.kind is Kind.MOMENTS:
            own = rank if blob.across is Across.EACH and not alone else None
            self._write_statistics(blob.step, blob.wall_time, statistics_of(blob), own)
            return
        # A picture of rank 0 keeps its name, so that it stands where one looks for it.
        if blob.across is Across.EACH and not alone and rank != 0:
            name = of_rank(name, rank)
        if blob.kind is Kind.EMBEDDING:
            self._embeddings.add(name, blob)
            return
        shown = shown_name(blob.kind, name)
        if shown is not None and self._tags.id_of(shown, shown_as(blob.kind)) < 0:
            return
        if blob.kind is Kind.HISTOGRAM:
            stats, max_bins = _histogram_of(blob), blob.parameters["max_bins"]
            self._write_histogram(name, blob.step, blob.wall_time, stats, max_bins)
            return
        self._draw(name, blob)

    def _add_merged(self, sequence: int, rank: int, blob: Blob) -> None:
        payload: HistogramStats | TensorStatistics | RankPictures
        if blob.kind is Kind.MOMENTS:
            # Not shown under its name, so nothing that is can be in its way.
            identity = self._tags.id_of(f"{blob.tag}\n", str(blob.kind))
            payload = statistics_of(blob)
            nbytes = payload.nbytes
        elif blob.across is Across.TILE:
            identity = self._tags.id_of(blob.tag, shown_as(blob.kind))
            try:
                # As pixels at once: floats take four times as much while they wait. They may be
                # a view of the message, which must not wait with them.
                payload = RankPictures({rank: pixels_of(blob).copy()})
            except ValueError as error:
                # As with one that is drawn by itself: it is missing, not the batch.
                self._notices.tell(f"{blob.tag!r} cannot be drawn at step {blob.step}: {error}")
                return
            nbytes = payload.nbytes
        else:
            identity = self._tags.id_of(blob.tag, _HISTOGRAM)
            payload = _histogram_of(blob)
            nbytes = payload.counts.nbytes
        if identity >= 0:
            self.windows.declare(identity, "merge")
            self.windows.add(sequence, rank, identity, blob.step, blob.wall_time, payload, nbytes)

    def _draw(self, name: str, blob: Blob) -> None:
        sub_run, tag = split_name(name)
        if blob.kind is Kind.CUSTOM_SCALARS and not sub_run:
            self.has_users_layout = True
        nbytes = sum(byte_view(buffer).nbytes for buffer in (blob.data, *blob.parts.values()))
        drawn = self.executor.submit(framed, draw, blob, tag)
        self._group.add(sub_run, Drawing(name, blob.step, drawn, nbytes))

    # -- out --------------------------------------------------------------------------

    def write(self) -> None:
        """Write what all ranks have reported, or what is given up on."""
        for point in self.windows.close_group():
            if isinstance(point.payload, TensorStatistics):
                self._write_statistics(point.step, point.wall, point.payload)
                continue
            name = self._tags.names[point.tag]
            if isinstance(point.payload, RankPictures):
                sub_run, tag = split_name(name)
                drawn = self.executor.submit(
                    framed, draw_tiles, point.payload, tag, point.step, point.wall
                )
                drawing = Drawing(name, point.step, drawn, point.payload.nbytes)
                self._group.add(sub_run, drawing)
            else:
                self._write_histogram(name, point.step, point.wall, point.payload, None)

    def write_value(self, name: str, step: int, wall_time: float, value: bytes) -> None:
        """Write an event with a serialized `Summary.Value` to the file that the name says."""
        record = event_file.frame(event_payload(wall_time, step, value))
        self._group.add(split_name(name)[0], record)

    def _write_histogram(
        self, name: str, step: int, wall_time: float, stats: HistogramStats, max_bins: int | None
    ) -> None:
        if stats.num == 0:
            # Nothing to draw: torch raises here, in the training loop.
            self._notices.tell_once(f"nan {name}", f"{name!r} has no finite value at step {step}")
            return
        value = histogram_value(split_name(name)[1], stats, max_bins)
        self.write_value(name, step, wall_time, value)

    def _write_statistics(
        self, step: int, wall_time: float, statistics: TensorStatistics, rank: int | None = None
    ) -> None:
        """Scalars and histograms of many tensors; `rank` where each has its own series."""
        ids = self._ids_of_fields(statistics, rank)
        values, written = statistics.scalars()
        for row, field in np.argwhere(written & (ids == _NOT_ASKED)).tolist():
            name = f"{statistics.tags[row]}/{statistics.fields[field]}"
            name = name if rank is None else of_rank(name, rank)
            ids[row, field] = self._tags.id_of(name, SCALAR)
        count = int(np.count_nonzero(written))
        if count:
            self._scalars.encode(
                ids[written],
                np.full(count, step, np.int64),
                np.full(count, wall_time),
                values[written],
            )
        for tag, stats in statistics.histograms():
            name = tag if rank is None else of_rank(tag, rank)
            if self._tags.id_of(name, _HISTOGRAM) >= 0:
                self._write_histogram(name, step, wall_time, stats, None)

    def forget_refused(self) -> None:
        """Ask again which tags there may be."""
        self._field_ids.clear()

    def _ids_of_fields(self, statistics: TensorStatistics, rank: int | None) -> NDArray[np.int64]:
        """The numbers of each row's fields, as far as they were asked for; remembered."""
        key = (statistics.tags, statistics.fields, -1 if rank is None else rank)
        ids = self._field_ids.get(key)
        if ids is None:
            if len(self._field_ids) >= CACHED_TABLES:
                self._field_ids.clear()
            shape = (len(statistics.tags), len(statistics.fields))
            ids = self._field_ids[key] = np.full(shape, _NOT_ASKED, np.int64)
        return ids

    # -- snapshots --------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that later output depends on, msgpack-able; only between groups."""
        return {
            "windows": self.windows.state(_dump_stats),
            "embeddings": self._embeddings.state(),
            "has_users_layout": self.has_users_layout,
        }

    @classmethod
    def restore(
        cls,
        state: dict[str, Any],
        tags: RunTags,
        group: Group,
        scalars: Scalars,
        notices: Notices,
        executor: Executor,
    ) -> Blobs:
        """The records that `state` was taken of."""
        blobs = cls(tags, group, scalars, notices, executor)
        blobs.windows = MergeWindows.restore(state["windows"], _load_stats)
        blobs._embeddings = Embeddings.restore(state["embeddings"], group, notices)
        blobs.has_users_layout = state["has_users_layout"]
        return blobs


def _histogram_of(blob: Blob) -> HistogramStats:
    if "edges" in blob.parts:
        return histogram_stats(blob.array(), np.frombuffer(blob.parts["edges"], "<f8"))
    return histogram_stats(blob.array(), blob.parameters["bins"])


def _dump_stats(stats: HistogramStats | TensorStatistics | RankPictures) -> bytes:
    if isinstance(stats, TensorStatistics | RankPictures):
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


def _load_stats(packed: bytes) -> HistogramStats | TensorStatistics | RankPictures:
    dumped = msgpack.unpackb(packed)
    if isinstance(dumped, dict):
        return RankPictures.load(dumped)
    edges, counts, *rest = dumped
    if isinstance(edges, list):
        return TensorStatistics.load(dumped)
    return HistogramStats(
        np.frombuffer(edges, np.float64) if edges else tensorflow_edges(),
        np.frombuffer(counts, np.int64),
        *rest,
    )
