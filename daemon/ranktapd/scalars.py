"""A run's scalars, from the columns of batches to framed events.

Those that are one rank's alone are written at the end of their group, in the order in
which they came; the others go through the windows, where the ranks' values become one.

Pure: no clock, file, socket or thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranktap_wire.documents import Category, Chart
from ranktap_wire.records import Across, Columns, Style, split_name
from ranktapd.last_values import LastValues
from ranktapd.lateness import Lateness
from ranktapd.notices import Notices
from ranktapd.output import Group
from ranktapd.render.layout import layout_value
from ranktapd.run_tags import SCALAR, RunTags, of_rank, over_ranks
from ranktapd.scalar_encoder import ScalarEncoder
from ranktapd.windows import Closed, ScalarWindows

CACHED_TABLES = 256


@dataclass(slots=True)
class _TableIds:
    """What a batch's tag table means in this run."""

    ids: NDArray[np.int64]
    """Tag of the table to tag of the run; -1: its records are refused."""
    merged: NDArray[np.bool_]
    """Whether it goes through the windows."""


Rows = tuple[NDArray[Any], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]
"""Columns of one length: tags, steps, wall times, values."""


class Scalars:
    """One run's scalars. Not thread safe.

    The ranks' coming and going is told to `windows` itself.
    """

    def __init__(self, tags: RunTags, group: Group, notices: Notices) -> None:
        self._tags = tags
        self._group = group
        self._notices = notices
        self.windows = ScalarWindows(1)
        self._policies: dict[int, str] = {}
        self._bands: dict[int, tuple[int, int]] = {}
        self._charts: dict[str, None] = {}
        # Not state: caches, and the group that is being fed.
        self._encoders: dict[Style, ScalarEncoder] = {}
        self._tables: dict[tuple[bytes, bytes, int], _TableIds] = {}
        self._direct: list[Rows] = []
        self.has_new_charts = False
        """Since the layout was last asked for."""
        self._lateness: Lateness | None = None
        self.last = LastValues()
        """Of what was logged, one rank's or merged."""

    def show_closed_to(self, lateness: Lateness) -> None:
        """Have the windows that close measured by it."""
        self._lateness = lateness
        self.windows.observer = lateness.closed

    # -- in ---------------------------------------------------------------------------

    def add(self, sequence: int, rank: int, columns: Columns, table: tuple[bytes, bytes]) -> None:
        """Take a rank's columns from journal entry `sequence`; `table` is their tag table as
        it travelled, tags and codes."""
        # Ranks that log the same have one table, but for what is each rank's own, or rank 0's
        # alone: a thousand would push each other's out, and reading one is half of the fold.
        own = bool((columns.policy == Across.EACH).any())
        key = (*table, rank if own else min(rank, 1))
        known = self._tables.get(key)
        if known is None:
            if len(self._tables) >= CACHED_TABLES:
                self._tables.clear()
            known = self._tables[key] = self._read_table(columns, rank)
        for through_windows in (False, True):
            chosen = (known.ids >= 0) & (known.merged == through_windows)
            if not chosen.any():
                continue
            index = columns.tag_index
            rows = slice(None) if chosen.all() else np.flatnonzero(chosen[index])
            ids = known.ids[index[rows]]
            step, wall_time = columns.step[rows], columns.wall_time[rows]
            value = columns.value[rows]
            if through_windows:
                self.windows.add(sequence, rank, ids, step, wall_time, value)
            else:
                self._direct.append((ids, step, wall_time, value))

    def resize(self, world_size: int) -> None:
        """Let more ranks take part."""
        self.windows.resize(world_size)
        self._tables.clear()

    def forget_refused(self) -> None:
        """Ask again which tags there may be."""
        self._tables.clear()

    def _read_table(self, columns: Columns, rank: int) -> _TableIds:
        ids = np.full(len(columns.tags), -1, np.int64)
        merged = np.zeros(len(columns.tags), np.bool_)
        alone = self.windows.world_size == 1
        codes = zip(columns.policy.tolist(), columns.style.tolist(), strict=True)
        for row, (name, (policy_code, style_code)) in enumerate(
            zip(columns.tags, codes, strict=True)
        ):
            policy, style = Across(policy_code), Style(style_code)
            if policy is Across.RANK0 and rank != 0:
                continue
            if policy is Across.EACH and not alone:
                ids[row] = self._tags.id_of(of_rank(name, rank), SCALAR, style)
                continue
            ids[row] = self._tags.id_of(name, SCALAR, style)
            if not alone and policy is not Across.RANK0 and ids[row] >= 0:
                merged[row] = True
                self._declare(int(ids[row]), policy)
        return _TableIds(ids, merged)

    def _declare(self, tag: int, policy: Across) -> None:
        first = self._policies.setdefault(tag, policy.name.lower())
        if first != policy.name.lower():
            name = self._tags.names[tag]
            self._notices.tell_once(
                f"across {name}", f"{name!r} has two policies across ranks: {first} it is"
            )
        else:
            self.windows.declare(tag, first)
            if self._lateness is not None:
                self._lateness.declare(tag, self._tags.names[tag])

    # -- out --------------------------------------------------------------------------

    def write(self) -> None:
        """Write what is not merged, and the points of all windows that may close."""
        if self._direct:
            columns = [np.concatenate(column) for column in zip(*self._direct, strict=True)]
            self._direct.clear()
            ids, steps, _, values = columns
            self.last.take(ids, steps, values)
            self.encode(*columns)
        self._write_closed(self.windows.close_group())

    def encode(
        self,
        ids: NDArray[Any],
        steps: NDArray[np.int64],
        wall_times: NDArray[np.float64],
        values: NDArray[np.float64],
    ) -> None:
        """Write rows as they are; those of a tag that is refused, -1, are left out."""
        if len(ids) and ids.min() < 0:
            kept = ids >= 0
            ids, steps, wall_times, values = ids[kept], steps[kept], wall_times[kept], values[kept]
        if not len(ids):
            return
        if len(self._tags.streams) == 1:  # nearly every run has but its own
            self._encode(0, ids, steps, wall_times, values)
            return
        streams = self._tags.streams_of(ids)
        order = np.argsort(streams, kind="stable")
        starts = np.flatnonzero(np.diff(streams[order], prepend=-1))
        for rows in np.split(order, starts[1:]):
            stream = int(streams[rows[0]])
            self._encode(stream, ids[rows], steps[rows], wall_times[rows], values[rows])

    def _encode(
        self,
        stream: int,
        ids: NDArray[Any],
        steps: NDArray[np.int64],
        wall_times: NDArray[np.float64],
        values: NDArray[np.float64],
    ) -> None:
        sub_run, style = self._tags.streams[stream]
        encoder = self._encoders.get(style)
        if encoder is None:
            encoder = self._encoders[style] = ScalarEncoder(style)
        records = encoder.encode(self._tags.encoded, ids, steps, wall_times, values)
        self._group.add(sub_run, records)

    def _write_closed(self, closed: Closed) -> None:
        if not len(closed):
            return
        self.last.take(closed.tags, closed.steps, closed.values)
        self.encode(closed.tags, closed.steps, closed.walls, closed.values)
        several = closed.reporters > 1
        if not several.any():
            return
        tags, bands = np.unique(closed.tags[several], return_inverse=True)
        band_ids = np.array([self._band(tag) for tag in tags.tolist()])[bands]
        for side, values in enumerate((closed.minimum, closed.maximum)):
            self.encode(
                band_ids[:, side], closed.steps[several], closed.walls[several], values[several]
            )

    def _band(self, tag: int) -> tuple[int, int]:
        """The tags of the smallest and the largest value over the ranks."""
        band = self._bands.get(tag)
        if band is None:
            name = self._tags.names[tag]
            _, style = self._tags.streams[int(self._tags.streams_of(np.array(tag)))]
            low = self._tags.id_of(over_ranks(name, "min"), SCALAR, style)
            high = self._tags.id_of(over_ranks(name, "max"), SCALAR, style)
            # Where a user's own tag is in the way, or there are too many: not twice the mean.
            band = self._bands[tag] = (low, high)
            _, shown = split_name(name)
            if low >= 0 and high >= 0 and shown not in self._charts:
                self._charts[shown] = None
                self.has_new_charts = True
        return band

    def layout(self) -> bytes:
        """The custom scalars page, a `Summary.Value`: a chart with a band for each merged tag,
        grouped as tags are. A chart shows the tag of all sub-runs."""
        self.has_new_charts = False
        categories: dict[str, list[Chart]] = {}
        for tag in self._charts:
            chart = Chart(tag, True, [tag, over_ranks(tag, "min"), over_ranks(tag, "max")])
            categories.setdefault(tag.partition("/")[0], []).append(chart)
        return layout_value(Category(*each) for each in categories.items())

    # -- snapshots --------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that later output depends on, msgpack-able; only between groups."""
        return {
            "windows": self.windows.state(),
            "policies": list(self._policies.items()),
            "bands": [[tag, low, high] for tag, (low, high) in self._bands.items()],
            "charts": list(self._charts),
        }

    @classmethod
    def restore(
        cls, state: dict[str, Any], tags: RunTags, group: Group, notices: Notices
    ) -> Scalars:
        """The scalars that `state` was taken of."""
        scalars = cls(tags, group, notices)
        scalars.windows = ScalarWindows.restore(state["windows"])
        scalars._policies = dict(state["policies"])
        scalars._bands = {tag: (low, high) for tag, low, high in state["bands"]}
        scalars._charts = dict.fromkeys(state["charts"])
        return scalars
