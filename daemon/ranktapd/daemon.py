"""The main process: what it is made of, and its life from start to end.

    lock the logdir -> recover the journals -> bind -> ready -> [ intake | workers ] ...
    SIGTERM, SIGINT -> unbind -> workers write what is journaled -> exit 0
    a second one -> exit at once; nothing is lost, what is journaled is written next time
    SIGHUP -> read the configuration and the keys again

Signal handlers only set a number; the loop looks at it.
"""

from __future__ import annotations

import logging
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import zmq

from ranktap_wire import places
from ranktap_wire.journal import JournalError, make_directory
from ranktap_wire.messages import Code, FrameError
from ranktapd import __version__, config, listeners
from ranktapd.access import Access
from ranktapd.config import RULES, Config, ConfigError
from ranktapd.dirlock import FileLock, LockedError
from ranktapd.entries import WindowsExpired
from ranktapd.http_status import STANDSTILL_S, Health, HttpStatus
from ranktapd.intake import Intake
from ranktapd.overview import Overview
from ranktapd.retention import FinishedRuns
from ranktapd.room import Room
from ranktapd.runs import Run, RunPlace
from ranktapd.service_manager import ServiceManager
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
LAST_TURN_S = 1.0
"""What journals that go may take of its end. The others go when there is a daemon again."""
LOCK_WAIT_S = 0.2
"""Ranks that look whether a daemon is there hold the lock, shared, for some microseconds."""
MAX_SOCKETS = 65_536


class Daemon:
    """A ranktapd. `run` is its whole life.

    `reread` reads the configuration again; `inherited` are listening sockets that the process
    was started with, by their endpoints.
    """

    def __init__(
        self,
        settings: Config,
        *,
        reread: Callable[[], Config],
        inherited: dict[str, int],
        manager: ServiceManager,
        embedded: bool = False,
    ) -> None:
        self._config = settings
        self._reread = reread
        self._inherited = inherited
        self._manager = manager
        self._embedded = embedded
        self._metrics = Metrics()
        self._access: Access | None = None
        self._runs: dict[str, Run] = {}
        self._signals = 0
        self._hangups = 0
        self._lock = FileLock(places.lock_path(settings.logdir))
        self._state_lock = FileLock(settings.state / "daemon.lock")
        self._supervisor = Supervisor(
            self._worker_command, self._expire, self._limit_met, self._metrics,
            settings.max_workers,
        )  # fmt: skip
        self._health = Health(manager.watchdog_s or STANDSTILL_S)
        self._http = HttpStatus(self._metrics.registry, self._health)
        self._overview = Overview(settings, self._runs, self._supervisor)
        self._intake: Intake | None = None
        self._idle_since: float | None = None
        self._seen_session = False
        self._next_tick = 0.0
        self._finished = FinishedRuns(settings.state, self._keep_finished_s)
        self._room = Room(settings, self._runs, self._supervisor, self._finished, self._metrics)

    @property
    def _keep_finished_s(self) -> float:
        # Nobody may come after an embedded one, to let its journals go.
        return 0.0 if self._embedded else self._config.keep_finished_s

    def run(self, ready: Callable[[], None]) -> int:
        """Serve until told to end; the exit status. `ready` is called when clients can connect.

        Raises:
            LockedError: another daemon has this logdir.
            ConfigError: the keys cannot be used.
            OSError: the directories or the endpoints cannot be had.
        """
        settings = self._config
        # A connection takes one, and libzmq ends the process when there is none for an ipc socket.
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        make_directory(settings.logdir)
        make_directory(settings.state)
        self._take_lock()
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self._on_signal)
        # In a terminal it says that the terminal is gone.
        signal.signal(signal.SIGHUP, self._on_signal if os.isatty(0) else self._on_hangup)
        if settings.metrics is not None:
            self._http.serve(settings.metrics)
        if settings.server_key is not None and settings.client_keys is not None:
            self._access = _access(settings.server_key, settings.client_keys, self._metrics)
        self._recover()
        context = zmq.Context()
        context.set(zmq.MAX_SOCKETS, MAX_SOCKETS)
        try:
            router = listeners.listen(context, settings, self._inherited, self._access)
            self._tell_where()
            ready()
            self._manager.ready()
            status = self._serve(router)
            self._health.stage = "ending"
            self._manager.stopping()
            if self._access is not None:
                self._access.close(router)
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

    def _tell_where(self) -> None:
        logger.info(
            "ranktapd %(version)s: listening on %(listen)s, writing to %(logdir)s",
            {
                "version": __version__, "listen": ", ".join(self._config.listen),
                "logdir": self._config.logdir,
            },
        )  # fmt: skip
        if self._access is None:
            for endpoint in filter(config.is_reachable, self._config.listen):
                logger.warning(
                    "%(endpoint)s asks for no keys: everyone who reaches it can write "
                    "(insecure = true)",
                    {"endpoint": endpoint},
                )

    def _recover(self) -> None:
        names = self._finished.find()
        for index, name in enumerate(names):
            self._manager.progress(f"Recovering run {index + 1} of {len(names)}")
            try:
                self._open_run(name, "")
            except JournalError as error:
                logger.error(
                    "run %(run)r cannot be continued: %(error)s", {"run": name, "error": error}
                )
        if self._runs:
            logger.info("recovered %(runs)d runs", {"runs": len(self._runs)})

    # -- serving ----------------------------------------------------------------------

    def _serve(self, router: zmq.Socket[bytes]) -> int:
        intake = Intake(
            router, self._runs, self._run_of, self._supervisor.committed, self._metrics,
            self._config, self._access,
        )  # fmt: skip
        self._intake = intake
        doors = self._access.sockets() if self._access is not None else []
        self._health.round(time.monotonic(), works=True)
        self._health.stage = ""
        while not self._signals:
            poller = zmq.Poller()
            for each in (router, *doors):
                poller.register(each, zmq.POLLIN)
            for descriptor in self._supervisor.descriptors():
                poller.register(descriptor, zmq.POLLIN)
            poller.poll(max(0, math.ceil((self._next_tick - time.monotonic()) * 1_000)))
            if (pause_s := intake.gathers_s()) > 0:
                time.sleep(pause_s)
            while intake.turn() and not self._signals:
                self._turn_others()
            self._turn_others()
            if any(run.pending for run in self._runs.values()):
                intake.commit()
            if intake.failed is not None:
                logger.critical(
                    "%(error)s: ending, to recover from what is on the disk",
                    {"error": intake.failed},
                )
                return 1
            if time.monotonic() >= self._next_tick:
                self._next_tick = time.monotonic() + TICK_S
                self._tick(intake)
                if self._embedded and self._is_done():
                    logger.info("all sessions are closed and everything is written: ending")
                    return 0
        return 0

    def _turn_others(self) -> None:
        """What goes on between two rounds of the intake; and both together are the sign of life."""
        if self._access is not None:
            self._access.turn()
        self._supervisor.turn()
        now = time.monotonic()
        works = not self._supervisor.hangs(now)
        self._health.round(now, works=works)
        if works:
            self._manager.alive()

    def _tick(self, intake: Intake) -> None:
        if self._hangups:
            self._hangups = 0
            self._reload(intake)
        if self._access is not None:
            self._access.look(time.monotonic())
            intake.recheck_keys()
        intake.give_up_silent()
        self._room.weigh(intake)
        sessions = sum(len(run.sessions.live()) for run in self._runs.values())
        self._metrics.sessions.set(sessions)
        for run in [run for run in self._runs.values() if self._may_rest(run)]:
            self._rest(run)
        self._finished.turn()
        self._metrics.runs.set(len(self._runs))
        self._health.note = "nothing is accepted: no room" if intake.full else ""
        now = time.monotonic()
        self._overview.note(now)
        self._http.answer(
            lambda ranks_of: self._overview.status(
                now, self._health.judge(now)[1], intake.full, intake.full_runs, ranks_of
            )
        )
        self._manager.status(
            f"{sessions} sessions, {len(self._runs)} runs, {len(self._supervisor.behind)} behind"
            + (f", {self._health.note}" if self._health.note else "")
        )
        if sessions or self._supervisor.behind:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = time.monotonic()

    def _reload(self, intake: Intake) -> None:
        """Take over what may change in a running daemon."""
        self._manager.reloading()
        try:
            wanted = self._reread()
        except ConfigError as error:
            logger.error("the configuration stays as it is: %(error)s", {"error": error})
        else:
            for name in config.changed(self._config, wanted):
                if RULES[name].reloads:
                    logger.info(
                        "%(setting)s is %(value)r now",
                        {"setting": name, "value": getattr(wanted, name)},
                    )
                    setattr(self._config, name, getattr(wanted, name))
                else:
                    logger.warning(
                        "%(setting)s: %(value)r holds until a restart",
                        {"setting": name, "value": getattr(self._config, name)},
                    )
            intake.configure(self._config)
            self._supervisor.max_workers = self._config.max_workers
            self._finished.keep_s = self._keep_finished_s
        if self._access is not None:
            self._access.reread()
        logger.info("reloaded")
        self._manager.ready()

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
            self._metrics.limited.labels("max_runs").inc()
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
        self._finished.wakes(run.place.state)
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
        self._finished.rests(run.place.state)
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
            f"--log-format={self._config.log_format}",
        ]

    def _expire(self, run: Run, sequence: int) -> None:
        run.add(WindowsExpired(sequence))

    def _limit_met(self, run: Run, limit: str, text: str) -> None:
        # Another worker of it meets it again.
        if limit not in run.limits_met:
            run.limits_met[limit] = text
            self._metrics.limited.labels(limit).inc()
            if self._intake is not None:
                self._intake.tell_limits(run)

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
        self._finished.turn(LAST_TURN_S)
        for worker in self._supervisor.running:
            logger.warning(
                "run %(run)r is written up to entry %(written)d of %(last)d; the rest at the next "
                "start",
                {
                    "run": worker.run.place.name, "written": max(worker.folded, 0),
                    "last": worker.run.journal.last,
                },
            )  # fmt: skip
        return 0

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1

    def _on_hangup(self, number: int, frame: FrameType | None) -> None:
        self._hangups += 1


def _access(server_key: Path, client_keys: Path, metrics: Metrics) -> Access:
    try:
        return Access(server_key, client_keys, metrics)
    except ValueError as error:
        raise ConfigError(f"server_key: {error}") from None
    except OSError as error:
        raise ConfigError(f"client_keys: {client_keys}: {error.strerror}") from None
