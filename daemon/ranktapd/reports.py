"""What only all ranks together show, in words: the job, slow ranks, what is not finite.

    ranktap/job          when a session opens or goes
    ranktap/stragglers   when the slow ranks change
    ranktap/non_finite   where a tag is NaN or infinite that was not before

Of a single process nothing is said but what its hooks find that is not finite.

Pure: no clock, file, socket or thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from ranktap_wire.records import Batch, Kind
from ranktap_wire.shown import shown_name
from ranktapd import job_summary, non_finite, stragglers
from ranktapd.blobs import Blobs
from ranktapd.entries import SessionGone, SessionOpened
from ranktapd.job_summary import JobSummary
from ranktapd.non_finite import NonFinite
from ranktapd.notices import Notices
from ranktapd.render.summaries import text_value
from ranktapd.run_tags import SCALAR, RunTags
from ranktapd.scalars import Scalars
from ranktapd.stragglers import Stragglers

SLOWEST_TAG: Final = "ranks/step_time/slowest"
SPREAD_TAG: Final = "ranks/step_time/spread"


class Reports:
    """One run's reports. Not thread safe.

    Windows that close are shown to it by the scalars' windows themselves.
    """

    def __init__(self, tags: RunTags, scalars: Scalars, blobs: Blobs, notices: Notices) -> None:
        self._tags = tags
        self._scalars = scalars
        self._blobs = blobs
        self._notices = notices
        self._world_size = 1
        self._job = JobSummary()
        self._non_finite = NonFinite()
        self._stragglers = Stragglers(1)
        scalars.show_closed_to(self._stragglers.lateness)

    # -- in ---------------------------------------------------------------------------

    def opened(self, words: SessionOpened) -> None:
        """A rank said hello."""
        if words.world_size > self._world_size:
            self._world_size = words.world_size
            self._stragglers.resize(words.world_size)
        self._job.opened(words)
        self._stragglers.opened(words.rank, words.host)

    def gone(self, rank: int, words: SessionGone) -> None:
        """A session went."""
        self._job.gone(rank, words)

    def begin_again(self, words: SessionOpened, max_step: int) -> None:
        """The job was started again, by this session, and may count from 0."""
        self.write_steps(is_over=True)
        self._job.begin_again(words, max_step)
        self._stragglers.begin_again()
        self._non_finite.begin_again()

    def reset(self, step: int) -> None:
        """The job goes on from this step."""
        self._stragglers.reset(step)

    def batch(self, rank: int, session: bytes, batch: Batch) -> None:
        """A rank's batch."""
        walls = [blob.wall_time for blob in batch.blobs]
        if batch.columns is not None:
            walls.append(float(batch.columns.wall_time.max()))
        dropped = batch.dropped_scalars + batch.dropped_blobs
        self._job.heard(rank, session, max(walls, default=None), dropped)
        self._stragglers.heard(rank, batch.clock)
        host = self._stragglers.host_of(rank)
        self._non_finite.look(rank, host, batch, scalars=self._world_size > 1)

    @property
    def slow_since(self) -> dict[int, int]:
        """The ranks that are slow now, and since which step."""
        return self._stragglers.slow_since

    # -- out --------------------------------------------------------------------------

    def write(
        self,
        step: int,
        wall_time: float,
        late_by_rank: Callable[[], Mapping[int, int]],
        *,
        is_over: bool,
    ) -> None:
        """End the group.

        `step` and `wall_time` are the latest; `late_by_rank` counts the records that came too
        late; `is_over` when no rank has a session any more.
        """
        for said in self._non_finite.take():
            self._write_text(non_finite.TAG, said.step, wall_time, said.markdown)
            if said.log is not None:
                self._notices.tell(said.log)
        self.write_steps(is_over=is_over)
        text = self._job.take(late_by_rank)
        if text is not None:
            self._write_text(job_summary.TAG, step, wall_time, text)

    def write_steps(self, *, is_over: bool) -> None:
        """What is known of the steps that are complete."""
        points, texts = self._stragglers.take(is_over=is_over)
        if points:
            steps, walls, ranks, spreads = zip(*points, strict=True)
            for tag, values in ((SLOWEST_TAG, ranks), (SPREAD_TAG, spreads)):
                identity = self._tags.id_of(tag, SCALAR)
                self._scalars.encode(
                    np.full(len(points), identity),
                    np.array(steps, np.int64),
                    np.array(walls),
                    np.array(values, np.float64),
                )
        for step, wall_time, text in texts:
            self._write_text(stragglers.TAG, step, wall_time, text)

    def _write_text(self, tag: str, step: int, wall_time: float, text: str) -> None:
        shown = shown_name(Kind.TEXT, tag)
        assert shown is not None
        if self._tags.id_of(shown, str(Kind.TEXT)) >= 0:
            self._blobs.write_value(tag, step, wall_time, text_value(tag, text))

    # -- snapshots --------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that later output depends on, msgpack-able; only between groups."""
        return {
            "world_size": self._world_size,
            "job": self._job.state(),
            "non_finite": self._non_finite.state(),
            "stragglers": self._stragglers.state(),
        }

    @classmethod
    def restore(
        cls, state: dict[str, Any], tags: RunTags, scalars: Scalars, blobs: Blobs, notices: Notices
    ) -> Reports:
        """The reports that `state` was taken of."""
        reports = cls(tags, scalars, blobs, notices)
        reports._world_size = state["world_size"]
        reports._job = JobSummary.restore(state["job"])
        reports._non_finite = NonFinite.restore(state["non_finite"])
        reports._stragglers = Stragglers.restore(state["stragglers"])
        scalars.show_closed_to(reports._stragglers.lateness)
        return reports
