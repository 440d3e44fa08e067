"""Who may open a session, and in which run: what is asked of a hello before it is welcomed.

    hello --> its key, the limits --> the run that it names --> two jobs of one name? --> its run
                     |                         |                        |
                     +---------- FrameError: what it is answered -------+

A probe meets the same questions without a trace, see `probes`. What has been opened, and
what comes in then, is the intake's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection

from ranktap_wire.messages import Code, FrameError, Hello
from ranktapd.access import Access
from ranktapd.config import Config
from ranktapd.conflicts import Conflicts, job_of
from ranktapd.entries import JobMoved
from ranktapd.probes import Refusal, refusal
from ranktapd.runs import Run, RunPlace
from ranktapd.status import Metrics

logger = logging.getLogger("ranktapd")


class Admission:
    """What sessions have to meet. One for all runs, which are in `runs`.

    `run_of(name, suffix)` opens a run, or raises `FrameError` when there may be no more.
    `access` is None where no keys are asked for.
    """

    def __init__(
        self,
        runs: dict[str, Run],
        run_of: Callable[[str, str], Run],
        metrics: Metrics,
        config: Config,
        access: Access | None,
    ) -> None:
        self._runs = runs
        self._run_of = run_of
        self._metrics = metrics
        self._access = access
        self._key_changes = 0
        self._conflicts = Conflicts()
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Keep to these settings from now on."""
        self._config = config

    def run_for(self, hello: Hello, user: str, sessions: Collection[bytes]) -> Run:
        """The run that a session is in. `user` is the key of its connection, empty where none is
        asked for; `sessions` are those that are open.

        Raises:
            FrameError: it may not open, or not yet.
        """
        self._check_limits(hello, user, sessions)
        run = self._find_run(hello)
        # Again: it may be another one than it names.
        self._check_key(run.place.name, user)
        return run

    def refusal_now(
        self, run: str, user: str, *, sessions: int, busy: str | None
    ) -> Refusal | None:
        """Why a hello for a run would be refused. Nothing is counted, logged or opened."""
        return refusal(
            run, user, self._access, self._config, sessions=sessions, runs=self._runs, busy=busy
        )

    def have_keys_changed(self) -> bool:
        """Whether the keys that are let in are others than at the last call."""
        assert self._access is not None
        if self._access.changes == self._key_changes:
            return False
        self._key_changes = self._access.changes
        return True

    def is_shut_out(self, user: str, run: str) -> bool:
        """Whether a key would not open a session of a run any more."""
        if self._access is None or not user:
            return False
        return self._access.is_gone(user) or self._access.refusal(user, run) is not None

    def _check_limits(self, hello: Hello, user: str, sessions: Collection[bytes]) -> None:
        """Raise FrameError when a session may not open, whatever its run holds."""
        self._check_key(hello.run, user)
        most = self._config.max_sessions
        if len(sessions) >= most and hello.session not in sessions:
            self._metrics.limited.labels("max_sessions").inc()
            raise FrameError(Code.BUSY, f"this ranktapd keeps {most} sessions (max_sessions)")

    def _check_key(self, run: str, user: str) -> None:
        """Raise FrameError when the key of a connection may not write to a run."""
        if self._access is None or not user:
            return
        text = self._access.refusal(user, run)
        if text is not None:
            self._metrics.denied.labels("run").inc()
            raise FrameError(Code.REFUSED, text)
        if self._access.is_gone(user):
            # It stays and asks again: a file that is being edited is gone for a moment.
            self._metrics.denied.labels("key-gone").inc()
            raise FrameError(Code.BUSY, "this daemon does not let its key in any more")

    def _find_run(self, hello: Hello) -> Run:
        """The run that a session is in: the one that it names, or, where two jobs have one name,
        the second one's own.

        Raises:
            FrameError: it may not be in it, or not yet.
        """
        run = self._run_of(hello.run, hello.filename_suffix)
        moved = run.sessions.moved.get(job_of(hello))
        if moved is not None:
            run = self._run_of(moved, hello.filename_suffix)
        if run.is_replaced(hello.session):
            raise FrameError(
                Code.CONFLICT, f"another process has become rank {hello.rank} of run {hello.run!r}"
            )
        known = run.sessions.sessions.get(hello.session)
        if moved is not None or (known is not None and not known.away):
            return run
        second = self._second_run(hello, run)
        return run if second is None else self._run_of(second, hello.filename_suffix)

    def _second_run(self, hello: Hello, run: Run) -> str | None:
        """See `Conflicts.second_run`; told and journaled."""
        job = job_of(hello)

        def is_free(name: str) -> bool:
            known = self._runs.get(name)
            if known is not None:
                # Its own already, when the entry below was lost with the daemon.
                return any(each.job == job for each in known.sessions.sessions.values())
            place = RunPlace.of(self._config.logdir, self._config.state, name)
            return not place.state.exists() and not place.events.exists()

        may_be_second = self._config.on_conflict == "suffix"
        try:
            second = self._conflicts.second_run(
                hello, run.sessions.live(), time.monotonic(), is_free if may_be_second else None
            )
        except FrameError as error:
            outcome = "wait" if error.code is Code.BUSY else "error"
            self._metrics.conflicts.labels(outcome).inc()
            raise
        if second is not None:
            self._metrics.conflicts.labels("suffix").inc()
            logger.warning(
                "two jobs use run %(run)r at the same time: the one that came second, on %(host)s, "
                "is in run %(second)r",
                {"run": hello.run, "host": hello.host, "second": second},
            )  # fmt: skip
            run.add(JobMoved(job, second))
        return second
