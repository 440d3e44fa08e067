"""Room on the disk and in the journals: what is free, what waits, and which limit that meets."""

from __future__ import annotations

import logging
import time
from typing import Final

from ranktapd.config import Config
from ranktapd.intake import Intake
from ranktapd.retention import FinishedRuns
from ranktapd.runs import Run, free_bytes
from ranktapd.status import Metrics
from ranktapd.supervisor import Supervisor

logger = logging.getLogger("ranktapd")

WEIGH_S: Final = 1.0
"""How often journals are weighed: at 1 GB/s a limit is passed by 1 GB."""


class Room:
    """What the main loop knows of it. `settings` may change meanwhile."""

    def __init__(
        self,
        settings: Config,
        runs: dict[str, Run],
        supervisor: Supervisor,
        finished: FinishedRuns,
        metrics: Metrics,
    ) -> None:
        self._config = settings
        self._runs = runs
        self._supervisor = supervisor
        self._finished = finished
        self._metrics = metrics
        self._next_weighing = 0.0
        self._waiting_bytes = 0
        self._open_bytes: dict[str, int] = {}
        """The journals of runs that are open, since they were last behind."""
        self._were_behind: set[str] = set()

    def weigh(self, intake: Intake) -> None:
        """See whether there is room, and tell the intake."""
        settings = self._config
        free = free_bytes(settings.state)
        self._metrics.free_bytes.set(free)
        if time.monotonic() >= self._next_weighing:
            self._next_weighing = time.monotonic() + WEIGH_S
            try:
                self._weigh_journals(intake)
            except OSError as error:
                # No descriptor to look with: what they were before is the best that is known.
                logger.warning("journals cannot be weighed: %(error)s", {"error": error})
        waiting, limit, why = self._waiting_bytes, "", ""
        if free < settings.min_free_bytes:
            limit = "min_free_bytes"
            why = f"{free} bytes free, {settings.min_free_bytes} are kept"
        elif waiting > settings.max_journal_bytes:
            limit = "max_journal_bytes"
            why = (
                f"{waiting} bytes of journals are not written yet, "
                f"{settings.max_journal_bytes} may be"
            )
        if limit:
            if not intake.full:
                self._metrics.limited.labels(limit).inc()
            intake.no_room(f"{why} ({limit})", limit)
        else:
            intake.room()
        self._metrics.full.set(intake.full)

    def _weigh_journals(self, intake: Intake) -> None:
        # Only of runs that are behind: a journal that is all written shrinks when more comes.
        sizes = {
            worker.run.place.name: worker.run.place.journal_bytes()
            for worker in self._supervisor.behind
        }
        self._weigh_all(sizes)
        self._waiting_bytes = sum(sizes.values())
        self._metrics.waiting_bytes.set(self._waiting_bytes)
        most = self._config.max_run_journal_bytes
        full = {
            # The same each time, as its ranks tell each text once.
            name: intake.full_runs.get(name)
            or f"{size} bytes of run {name!r} are not written yet, {most} may be "
            "(max_run_journal_bytes)"
            for name, size in sizes.items()
            if size > most
        }
        for name in full.keys() - intake.full_runs.keys():
            self._metrics.limited.labels("max_run_journal_bytes").inc()
            logger.warning(
                "%(why)s: nothing of it is accepted until they are",
                {"why": full[name], "run": name},
            )
        intake.full_runs = full

    def _weigh_all(self, behind: dict[str, int]) -> None:
        """Count all journals that there are; `behind` has the bytes of those that change."""
        for name in self._were_behind - behind.keys():
            if name in self._runs:
                self._open_bytes[name] = self._runs[name].place.journal_bytes()
        self._were_behind = set(behind)
        self._open_bytes = {
            name: nbytes for name, nbytes in self._open_bytes.items() if name in self._runs
        } | behind
        self._metrics.kept_bytes.set(sum(self._open_bytes.values()) + self._finished.nbytes)
