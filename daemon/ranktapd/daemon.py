"""The main process: what it is made of, and its life from start to end.

    lock the logdir -> recover the journals -> bind -> ready -> [ intake | workers ] ...
    a signal -> unbind -> workers write what is journaled -> exit 0
    a second signal -> exit at once; nothing is lost, what is journaled is written next time

Signal handlers only set a number; the loop looks at it.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import zmq

from ranktap_wire import limits, places
from ranktap_wire.frames import Code, FrameError
from ranktap_wire.journal import JournalError
from ranktapd import __version__
from ranktapd.config import Config
from ranktapd.dirlock import FileLock, LockedError
from ranktapd.entries import WindowsExpired
from ranktapd.intake import Intake
from ranktapd.runs import Run, RunPlace, free_bytes, unfinished_runs
from ranktapd.status import Metrics
from ranktapd.supervisor import Supervisor

logger = logging.getLogger("ranktapd")

TICK_S = 0.25
"""How often what depends on time is looked at."""
FINISH_S = 8.0
"""What workers get to write what is journaled; systemd gives 10 s and more."""
IDLE_S = 2.0
"""An embedded daemon ends this long after its last session: the next script often comes
at once."""
FIRST_SESSION_S = 60.0
"""How long an embedded daemon waits for the session that it was started for."""
LOCK_WAIT_S = 0.2
"""Ranks that look whether a daemon is there hold the lock, shared, for some microseconds."""
MAX_SOCKETS = 65_536
RECEIVE_HIGH_WATER_MARK = 16
"""Messages a connection may have queued here. At libzmq's 1,000 one client pushed 1 GB into
a daemon that was not reading."""


class Daemon:
    """A ranktapd. `run` is its whole life."""

    def __init__(self, config: Config, *, embedded: bool = False) -> None:
        self._config = config
        self._embedded = embedded
        self._metrics = Metrics()
        self._runs: dict[str, Run] = {}
        self._signals = 0
        self._lock = FileLock(places.lock_path(config.logdir))
        self._state_lock = FileLock(config.state / "daemon.lock")
        self._supervisor = Supervisor(
            self._worker_command, self._expire, self._metrics, config.max_workers
        )
        self._idle_since: float | None = None
        self._seen_session = False
        self._next_tick = 0.0

    def run(self, ready: Callable[[], None]) -> int:
        """Serve until told to end; the exit status. `ready` is called when clients can connect.

        Raises:
            LockedError: another daemon has this logdir.
            OSError, ZMQError: the directories or the endpoints cannot be had.
        """
        config = self._config
        config.logdir.mkdir(parents=True, exist_ok=True)
        config.state.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self._on_signal)
        if config.metrics is not None:
            self._metrics.serve(config.metrics)
        self._recover()
        context = zmq.Context()
        context.set(zmq.MAX_SOCKETS, MAX_SOCKETS)
        try:
            router = self._bind(context)
            logger.info(
                "ranktapd %s: listening on %s, writing to %s",
                __version__, ", ".join(config.listen), config.logdir,
            )  # fmt: skip
            ready()
            status = self._serve(router)
            router.close(linger=0)
            return status if status else self._finish()
        finally:
            context.destroy(linger=0)
            self._supervisor.kill()
            for run in self._runs.values():
                run.close()
            self._state_lock.release()
            self._lock.release()

    # -- starting ---------------------------------------------------------------------

    def _take_lock(self) -> None:
        path = places.lock_path(self._config.logdir)
        try:
            self._lock.acquire(str(path), LOCK_WAIT_S)
        except LockedError:
            raise LockedError(
                f"another ranktapd writes to {self._config.logdir} "
                f"(it listens on {path.read_text().strip().replace(os.linesep, ', ') or '?'}); "
                "one daemon serves all runs of a logdir"
            ) from None
        self._lock.write("\n".join(self._config.listen) + "\n")
        # Another logdir's daemon, given the same --state-dir, would write to our journals.
        self._state_lock.acquire(f"another ranktapd keeps its journals in {self._config.state}")

    def _recover(self) -> None:
        for name in unfinished_runs(self._config.state):
            try:
                self._open_run(name, "")
            except JournalError as error:
                logger.error("run %r cannot be continued: %s", name, error)
        if self._runs:
            logger.info("recovered %d runs", len(self._runs))

    def _bind(self, context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
        router = context.socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.setsockopt(zmq.RCVHWM, RECEIVE_HIGH_WATER_MARK)
        router.setsockopt(zmq.MAXMSGSIZE, limits.RECORD_BYTES)
        router.setsockopt(zmq.HEARTBEAT_IVL, 5_000)
        router.setsockopt(zmq.HEARTBEAT_TIMEOUT, 30_000)
        for endpoint in self._config.listen:
            if endpoint.startswith("ipc://"):
                # A second bind on a live path would steal it; the logdir's lock says that
                # no daemon of this logdir lives.
                Path(endpoint.removeprefix("ipc://")).parent.mkdir(
                    parents=True, exist_ok=True, mode=0o700
                )
            # For this endpoint only: with it, a name may stand for another address.
            router.setsockopt(zmq.IPV6, int("[" in endpoint))
            try:
                router.bind(endpoint)
            except zmq.ZMQError as error:
                router.close(linger=0)
                raise OSError(f"{endpoint}: {error.strerror}") from None
        return router

    # -- serving ----------------------------------------------------------------------

    def _serve(self, router: zmq.Socket[bytes]) -> int:
        intake = Intake(router, self._runs, self._run_of, self._supervisor.committed, self._metrics)
        while not self._signals:
            poller = zmq.Poller()
            poller.register(router, zmq.POLLIN)
            for descriptor in self._supervisor.descriptors():
                poller.register(descriptor, zmq.POLLIN)
            poller.poll(max(0, math.ceil((self._next_tick - time.monotonic()) * 1_000)))
            while intake.turn() and not self._signals:
                self._supervisor.turn()
            self._supervisor.turn()
            if any(run.pending for run in self._runs.values()):
                intake.commit()
            if intake.failed is not None:
                logger.critical("%s: ending, to recover from what is on the disk", intake.failed)
                return 1
            if time.monotonic() >= self._next_tick:
                self._next_tick = time.monotonic() + TICK_S
                self._tick(intake)
                if self._embedded and self._is_done():
                    logger.info("all sessions are closed and everything is written: ending")
                    return 0
        return 0

    def _tick(self, intake: Intake) -> None:
        intake.give_up_silent()
        free = free_bytes(self._config.state)
        if free < self._config.min_free_bytes:
            intake.no_room(f"{free} bytes free, {self._config.min_free_bytes} are kept")
        else:
            intake.room()
        sessions = sum(len(run.sessions.live()) for run in self._runs.values())
        self._metrics.sessions.set(sessions)
        for run in [run for run in self._runs.values() if self._may_rest(run)]:
            self._rest(run)
        self._metrics.runs.set(len(self._runs))
        if sessions or self._supervisor.behind:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = time.monotonic()

    def _is_done(self) -> bool:
        patience = IDLE_S if self._seen_session else FIRST_SESSION_S
        return self._idle_since is not None and time.monotonic() - self._idle_since > patience

    def _run_of(self, name: str, suffix: str) -> Run:
        """The run that a session says hello for."""
        self._seen_session = True
        run = self._runs.get(name)
        if run is not None:
            return run
        if len(self._runs) >= self._config.max_runs:
            raise FrameError(
                Code.LIMIT, f"this ranktapd keeps {self._config.max_runs} runs (max_runs)"
            )
        try:
            return self._open_run(name, suffix)
        except (JournalError, OSError) as error:
            raise FrameError(Code.BUSY, str(error)) from error

    def _open_run(self, name: str, suffix: str) -> Run:
        run = Run.open(
            RunPlace.of(self._config.logdir, self._config.state, name),
            sync=self._config.sync == "group",
            segment_bytes=self._config.segment_bytes,
            suffix=suffix,
        )
        self._runs[name] = run
        self._supervisor.watch(run)
        return run

    def _may_rest(self, run: Run) -> bool:
        worker = self._supervisor.workers[run.place.name]
        return (
            worker.process is None
            and not worker.behind
            and not run.pending
            and not run.sessions.live()
        )

    def _rest(self, run: Run) -> None:
        run.rest()
        del self._runs[run.place.name]
        del self._supervisor.workers[run.place.name]

    def _worker_command(self, run: Run) -> list[str]:
        return [
            sys.executable,
            "-m",
            "ranktapd.run_worker",
            f"--run={run.place.name}",
            f"--logdir={self._config.logdir}",
            f"--state-dir={self._config.state}",
            f"--straggler-timeout={self._config.straggler_timeout_s}",
        ]

    def _expire(self, run: Run, sequence: int) -> None:
        run.add(WindowsExpired(sequence))

    # -- ending -----------------------------------------------------------------------

    def _finish(self) -> int:
        """Let workers write what is journaled, as long as there is time."""
        if self._signals:
            logger.info("ending: a signal")
        self._supervisor.finish()
        deadline = time.monotonic() + FINISH_S
        while self._supervisor.running and time.monotonic() < deadline:
            self._supervisor.turn()
            # Both may have come before the first was noticed.
            if self._signals > 1:
                logger.warning("a second signal: ending at once; what is journaled is written "
                               "at the next start")  # fmt: skip
                return 0
            time.sleep(0.01)
        for run in [run for run in self._runs.values() if self._may_rest(run)]:
            self._rest(run)
        for worker in self._supervisor.running:
            logger.warning(
                "run %r is written up to entry %d of %d; the rest at the next start",
                worker.run.place.name, max(worker.folded, 0), worker.run.journal.last,
            )  # fmt: skip
        return 0

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
