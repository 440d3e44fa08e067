"""How the daemon stands, as `/status` says it: runs, their ranks, lag and rates.

All of it is plain data, for JSON. Times are in seconds, sizes in bytes; rates are of the
last five to ten seconds. What is not known yet is null: how far a run is written, until its
worker has said so.
"""

from __future__ import annotations

import math
import os
import time
from typing import Any, Final

from ranktap_wire.segment import Position, segment_path, segments
from ranktapd import __version__
from ranktapd.config import Config
from ranktapd.lag import Lag
from ranktapd.runs import Run, RunPlace
from ranktapd.sessions import Session
from ranktapd.supervisor import Supervisor, Worker

RATE_S: Final = 5.0
"""How often the counts are noted that rates are worked out from."""


class Overview:
    """Of the daemon's runs, as they are when it is asked. Used by the main loop alone."""

    def __init__(self, settings: Config, runs: dict[str, Run], supervisor: Supervisor) -> None:
        self._config = settings
        self._runs = runs
        self._supervisor = supervisor
        self._began = time.monotonic()
        self._before: dict[str, tuple[int, int]] = {}
        """Run to (records, bytes) at `_before_at`."""
        self._before_at = self._began
        self._later = self._before
        self._later_at = self._began
        self._lags: dict[str, Lag] = {}
        """Of runs that are behind."""

    def note(self, now: float) -> None:
        """Note how long the journals are, several times a second, and the counts, every few."""
        behind = {worker.run.place.name: worker for worker in self._supervisor.behind}
        self._lags = {name: self._lags.get(name) or Lag() for name in behind}
        for name, worker in behind.items():
            self._lags[name].note(now, worker.run.journal.last, worker.folded)
        if now - self._later_at < RATE_S:
            return
        self._before, self._before_at = self._later, self._later_at
        self._later = {name: (run.records, run.nbytes) for name, run in self._runs.items()}
        self._later_at = now
        for run in self._runs.values():
            for session in run.sessions.sessions.values():
                session.progress.note()

    def status(
        self,
        now: float,
        health: str,
        full: bool,
        refused: dict[str, str],
        ranks_of: str | None = None,
    ) -> dict[str, Any]:
        """Everything; with `ranks_of` without the ranks of other runs than that.

        `refused` are runs of which nothing is accepted, and why; `full` says that nothing of
        any is.
        """
        runs = []
        for name, run in self._runs.items():
            with_ranks = ranks_of is None or name == ranks_of
            runs.append(self._run(run, now, refused.get(name), with_ranks))
        return {
            "version": __version__,
            "pid": os.getpid(),
            "up_s": round(now - self._began, 1),
            "logdir": str(self._config.logdir),
            "state_dir": str(self._config.state),
            "listen": self._config.listen,
            "health": health,
            "full": full,
            "sessions": sum(run["sessions"] for run in runs),
            "records_per_s": round(sum(run["records_per_s"] for run in runs), 1),
            "bytes_per_s": round(sum(run["bytes_per_s"] for run in runs), 1),
            "lag_entries": sum(run["lag_entries"] or 0 for run in runs),
            "lag_bytes": sum(run["lag_bytes"] for run in runs),
            "dropped": sum(run["dropped"] for run in runs),
            "late": sum(run["late"] or 0 for run in runs),
            "runs": sorted(runs, key=lambda run: str(run["run"])),
        }

    def _run(self, run: Run, now: float, refused: str | None, with_ranks: bool) -> dict[str, Any]:
        worker = self._supervisor.workers[run.place.name]
        records, nbytes = self._before.get(run.place.name, (0, 0))
        elapsed = max(now - self._before_at, 0.001)
        sessions = sorted(run.sessions.sessions.values(), key=lambda each: each.opened.rank)
        known = worker.folded >= 0
        told = worker.overview
        lag = self._lags.get(run.place.name)
        lag_s = 0.0 if lag is None else round(lag.seconds(now, worker.folded), 2)
        steps = [each.progress.step for each in sessions if each.progress.step is not None]
        return {
            "run": run.place.name,
            "world_size": max((each.opened.world_size for each in sessions), default=None),
            "sessions": sum(not each.away for each in sessions),
            "entries": run.journal.last,
            "written": worker.folded if known else None,
            "lag_entries": run.journal.last - worker.folded if known else None,
            "lag_bytes": _lag_bytes(run.place, worker) if worker.behind else 0,
            "lag_s": lag_s if known else None,
            # A run that was closed in between counts from 0 again.
            "records_per_s": round(max(run.records - records, 0) / elapsed, 1),
            "bytes_per_s": round(max(run.nbytes - nbytes, 0) / elapsed, 1),
            "dropped": sum(each.dropped for each in sessions),
            "late": told.get("late"),
            "step": max(steps, default=None),
            "last": [
                {"tag": tag, "step": step, "value": _number(value)}
                for tag, step, value in told.get("last", [])
            ],
            "refused": refused,
            "worker": _state(worker),
            "ranks": [_rank(each, now, elapsed, told) for each in sessions] if with_ranks else [],
        }


def _rank(session: Session, now: float, elapsed: float, told: dict[str, Any]) -> dict[str, Any]:
    """A rank; `told` is what its run's worker says, where numbers are texts."""
    opened, progress = session.opened, session.progress
    records, nbytes = progress.since()
    number = str(opened.rank)
    return {
        "rank": opened.rank,
        "host": opened.host,
        "pid": opened.pid,
        "state": "away" if session.away else "here" if session.peer else "not back yet",
        "heard_s": round(now - session.last_heard, 1),
        "batches": session.window.last,
        "dropped": session.dropped,
        "late": told["late_by_rank"].get(number, 0) if told else None,
        "records_per_s": round(records / elapsed, 1),
        "bytes_per_s": round(nbytes / elapsed, 1),
        "step": progress.step,
        "step_s": None if progress.step is None else round(now - progress.stepped_at, 1),
        "step_time_s": progress.step_time_s,
        "slow_since": told["slow_since"].get(number) if told else None,
    }


def _number(value: float) -> float | str:
    """A number as JSON has it, which knows no others than finite ones."""
    return value if math.isfinite(value) else str(value)


def _state(worker: Worker) -> str:
    if worker.process is not None:
        return "hangs" if worker.killed_at is not None else "writes" if worker.behind else "waits"
    return "is to start" if worker.behind else "none"


def _lag_bytes(place: RunPlace, worker: Worker) -> int:
    """What of the journal its worker has not written; all of it before it has said how far it is.

    A batch that came since the daemon last heard of the worker counts too.
    """
    reached = worker.reached or Position(0, 0, 0)
    total = 0
    for number in segments(place.journal):
        if number < reached.segment:
            continue
        try:
            size = segment_path(place.journal, number).stat().st_size
        except FileNotFoundError:
            continue  # its worker has just left it
        total += size - (reached.offset if number == reached.segment else 0)
    return max(total, 0)
