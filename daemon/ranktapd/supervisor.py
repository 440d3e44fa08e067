"""Worker processes: one a run, started when it has something to write, started again when it dies.

A worker is told, on its standard input, up to which entry its run's journal is on disk,
and says, on its standard output, how far it has come. Both speak JSON, one object a line:

    to the worker     {"committed": sequence}     {"finish": true}
    from the worker   {"folded": sequence, "segment": number, "offset": bytes}
                                                  everything up to here is in the event file
                      {"expire": sequence}        windows begun up to here have waited too long
                      {"at": sequence}            about to fold this entry (in careful mode);
                                                  0: behind a group, about to write it
                      {"waiting": sequence}       for room on the disk; it lives
                      {"overview": {...}}         how the run looks, see `Fold.overview`
                      {"limit": name, "text": t}  what is logged has met a setting

A worker that died is started in careful mode, in which it names each entry first. An
entry at which three careful workers died is set aside. Other runs never notice.

Workers are processes of their own from the start, not forks: a fork would share the
ZeroMQ context. When the main process dies, their standard input ends, and so do they.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ranktap_wire.journal import JournalError
from ranktap_wire.segment import Position
from ranktapd.runs import Run
from ranktapd.status import Metrics

logger = logging.getLogger("ranktapd")

DEATHS_TO_QUARANTINE = 3
RESTART_MIN_S = 0.05
RESTART_MAX_S = 5.0
"""A worker that dies at once is started again after this long at most."""
IDLE_S = 30.0
"""A worker that has written everything ends after this long without more: a log host
sees thousands of runs, and few at a time."""
SILENT_S = 120.0
"""A worker that has something to write and says nothing for this long hangs, and is killed.
Sixteen MiB take a disk of 1 MB/s 16 s, and a worker that waits for room says so."""
KILL_S = 5.0
"""How long a worker that was killed is waited for: one that hangs in the kernel stays."""
TURN_S = 2.0
"""With more runs to write than workers allowed, each gets this long at a time: several times
what it takes to start one."""


@dataclass(slots=True)
class Worker:
    """A run's worker process, or the place where one will be."""

    run: Run
    process: subprocess.Popen[bytes] | None = None
    folded: int = -1
    """Everything up to here is in the event file; -1 before it has said so."""
    reached: Position | None = None
    """The same as a position in the journal."""
    told: int = -1
    busy_since: float = 0.0
    heard_at: float = 0.0
    """When it last said anything, or was first asked to say something."""
    start_at: float = 0.0
    """Not before this."""
    waits_turn: bool = False
    """It may not start, because as many as may be are running."""
    started_at: float = 0.0
    restart_s: float = RESTART_MIN_S
    careful: bool = False
    at: int | None = None
    deaths: dict[int, int] = field(default_factory=dict)
    finishing: bool = False
    killed_at: float | None = None
    """When it was killed because it said nothing."""
    overview: dict[str, Any] = field(default_factory=dict)
    """How the run looks, as it said last; empty before."""
    _unread: bytes = b""

    @property
    def behind(self) -> bool:
        return self.folded < self.run.journal.last

    def is_due(self, now: float) -> bool:
        """Whether it has something to write, and may be started."""
        return self.process is None and self.behind and now >= self.start_at

    def is_silent(self, now: float) -> bool:
        """Whether it hangs: it should have said something long ago."""
        return self.process is not None and self.behind and now - self.heard_at > SILENT_S

    def tell(self, message: dict[str, Any]) -> bool:
        """False when the pipe is full or gone: what is told again later makes up for it."""
        if self.process is None or self.process.stdin is None:
            return False
        try:
            os.write(self.process.stdin.fileno(), json.dumps(message).encode() + b"\n")
        except (BlockingIOError, BrokenPipeError):
            return False
        return True

    def read(self) -> list[dict[str, Any]]:
        if self.process is None or self.process.stdout is None:
            return []
        # All of it: of one that has ended, what it said last tells where.
        while True:
            try:
                said = os.read(self.process.stdout.fileno(), 1 << 16)
            except BlockingIOError:
                break
            if not said:
                break
            self._unread += said
        *lines, self._unread = self._unread.split(b"\n")
        return [json.loads(line) for line in lines]


class Supervisor:
    """Starts, restarts and ends workers. `command(run)` is what to start for a run."""

    def __init__(
        self,
        command: Callable[[Run], list[str]],
        expire: Callable[[Run, int], None],
        limit_met: Callable[[Run, str, str], None],
        metrics: Metrics,
        max_workers: int,
    ) -> None:
        self._command = command
        self._expire = expire
        self._limit_met = limit_met
        self._metrics = metrics
        self.max_workers = max_workers
        self._finishing = False
        self.workers: dict[str, Worker] = {}

    def watch(self, run: Run) -> None:
        """Begin to look after a run."""
        self.workers[run.place.name] = Worker(run, busy_since=time.monotonic())

    def committed(self, run: Run) -> None:
        """More of this run is on disk."""
        worker = self.workers[run.place.name]
        worker.busy_since = time.monotonic()
        if worker.folded >= worker.told:
            worker.heard_at = worker.busy_since  # it had nothing to say until now
        if worker.process is None:
            self._start_due(worker, worker.busy_since)
        elif worker.tell({"committed": run.journal.last}):
            worker.told = run.journal.last

    def descriptors(self) -> list[int]:
        """What becomes readable when a worker says something, or ends."""
        return [
            worker.process.stdout.fileno()
            for worker in self.workers.values()
            if worker.process is not None and worker.process.stdout is not None
        ]

    def turn(self) -> None:
        """Hear the workers, and see which have ended, are due, or have nothing left to do."""
        now = time.monotonic()
        self._make_way(now)
        for worker in list(self.workers.values()):
            if worker.process is None:
                self._start_due(worker, now)
                continue
            self._hear(worker, now)
            if worker.process.poll() is not None:
                self._hear(worker, now)  # what it said before it ended
                self._ended(worker, now)
                continue
            if worker.killed_at is None and worker.is_silent(now):
                logger.error(
                    "run %(run)r: its worker has said nothing for %(silent_s)d s: killing it",
                    {"run": worker.run.place.name, "silent_s": SILENT_S},
                )
                worker.killed_at = now
                worker.process.kill()
            if worker.told < worker.run.journal.last and worker.tell(
                {"committed": worker.run.journal.last}
            ):
                worker.told = worker.run.journal.last
            idle = not worker.behind and now - worker.busy_since > IDLE_S
            told_all = worker.told >= worker.run.journal.last
            if (idle or self._finishing) and told_all and not worker.finishing:
                worker.finishing = worker.tell({"finish": True})

    def _make_way(self, now: float) -> None:
        """Let the worker that has had the longest turn end, when a run waits for its place."""
        if (
            len(self.running) < self.max_workers
            or any(worker.finishing for worker in self.running)
            or not any(worker.is_due(now) for worker in self.workers.values())
        ):
            return
        longest = min(self.running, key=lambda worker: worker.started_at)
        if now - longest.started_at > TURN_S and longest.told >= longest.run.journal.last:
            longest.finishing = longest.tell({"finish": True})

    def finish(self) -> None:
        """Let every worker write what is journaled, and end."""
        self._finishing = True

    @property
    def running(self) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.process is not None]

    @property
    def behind(self) -> list[Worker]:
        """Workers of runs whose event file lacks something of their journal."""
        return [worker for worker in self.workers.values() if worker.behind]

    def hangs(self, now: float) -> bool:
        """Whether a worker cannot even be killed: what it waits for never comes."""
        return any(
            worker.killed_at is not None and now - worker.killed_at > SILENT_S
            for worker in self.running
        )

    def kill(self) -> None:
        """End all workers at once. Nothing is lost: they can be started again at any point."""
        for worker in self.running:
            assert worker.process is not None
            worker.process.kill()
            try:
                worker.process.wait(KILL_S)
            except subprocess.TimeoutExpired:
                logger.error(
                    "run %(run)r: its worker cannot be killed", {"run": worker.run.place.name}
                )

    def _has_place(self, worker: Worker, now: float) -> bool:
        """Whether it may run now: where there are few places, the run that was written least
        recently goes first."""
        free = self.max_workers - len(self.running)
        if free >= len(self.workers) - len(self.running):
            return True
        before = sum(
            other.started_at < worker.started_at and other.is_due(now)
            for other in self.workers.values()
        )
        return before < free

    # -- one worker -------------------------------------------------------------------

    def _start_due(self, worker: Worker, now: float) -> None:
        if self._finishing or not worker.is_due(now):
            return
        if not self._has_place(worker, now):
            if not worker.waits_turn:
                worker.waits_turn = True
                self._metrics.limited.labels("max_workers").inc()
            return
        worker.waits_turn = False
        command = self._command(worker.run) + (["--careful"] if worker.careful else [])
        try:
            worker.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # Ctrl-C in a terminal is for the main process, which lets workers finish.
                start_new_session=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(_import_path())},
            )
        except OSError as error:
            # No process or no memory to be had: what is journaled can wait.
            logger.error(
                "run %(run)r: no worker can be started: %(error)s",
                {"run": worker.run.place.name, "error": error},
            )
            worker.start_at = now + worker.restart_s
            worker.restart_s = min(2 * worker.restart_s, RESTART_MAX_S)
            return
        worker.started_at = worker.heard_at = now
        worker.killed_at = None
        assert worker.process.stdin is not None and worker.process.stdout is not None
        os.set_blocking(worker.process.stdin.fileno(), False)
        os.set_blocking(worker.process.stdout.fileno(), False)
        worker.at = None
        worker.finishing = False
        worker._unread = b""
        worker.tell({"committed": worker.run.journal.last})
        worker.told = worker.run.journal.last

    def _hear(self, worker: Worker, now: float) -> None:
        for said in worker.read():
            worker.heard_at = now
            if "folded" in said:
                worker.folded = said["folded"]
                worker.reached = Position(said["folded"], said["segment"], said["offset"])
                worker.restart_s = RESTART_MIN_S
                worker.busy_since = now
                if worker.at is not None and worker.at <= worker.folded:
                    worker.at = None
                worker.deaths = {
                    at: count for at, count in worker.deaths.items() if at > worker.folded
                }
                self._metrics.lag.labels(worker.run.place.name).set(
                    worker.run.journal.last - worker.folded
                )
            elif "overview" in said:
                worker.overview = said["overview"]
            elif "expire" in said:
                self._expire(worker.run, said["expire"])
            elif "limit" in said:
                self._limit_met(worker.run, said["limit"], said["text"])
            elif "at" in said:
                worker.at = said["at"] or None

    def _ended(self, worker: Worker, now: float) -> None:
        process, worker.process = worker.process, None
        assert process is not None and process.stdin is not None and process.stdout is not None
        process.stdin.close()
        process.stdout.close()
        name = worker.run.place.name
        if process.returncode == 0:
            return
        worker.folded = -1  # what it wrote may not be synced: another sees to that
        worker.reached = None
        self._metrics.worker_deaths.inc()
        worker.start_at = now + worker.restart_s
        worker.restart_s = min(2 * worker.restart_s, RESTART_MAX_S)
        logger.error(
            "run %(run)r: its worker ended with status %(status)d"
            + ("" if worker.at is None else " at entry %(entry)d")
            + "; starting another",
            {"run": name, "status": process.returncode, "entry": worker.at},
        )
        # After one quiet death the next worker is careful, so that a second one tells where.
        worker.careful = True
        if worker.at is not None:
            deaths = worker.deaths[worker.at] = worker.deaths.get(worker.at, 0) + 1
            if deaths >= DEATHS_TO_QUARANTINE:
                self._quarantine(worker, worker.at)

    def _quarantine(self, worker: Worker, sequence: int) -> None:
        try:
            worker.run.quarantine(sequence)
        except (JournalError, OSError) as error:
            # At its next death it is tried again.
            logger.error(
                "run %(run)r: entry %(entry)d cannot be set aside: %(error)s",
                {"run": worker.run.place.name, "entry": sequence, "error": error},
            )
            return
        logger.error(
            "run %(run)r: entry %(entry)d ended its worker %(deaths)d times and was set aside in "
            "%(path)s",
            {
                "run": worker.run.place.name,
                "entry": sequence,
                "deaths": worker.deaths.pop(sequence),
                "path": worker.run.place.quarantine,
            },
        )


def _import_path() -> list[str]:
    """Where this process found its packages, for a child that starts elsewhere."""
    return [str(Path(entry).resolve()) for entry in sys.path if entry and Path(entry).exists()]
