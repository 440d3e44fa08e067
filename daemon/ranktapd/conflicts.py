"""Two jobs that use one run's name at the same time.

A session says which job it is of. When it is another one than that of a session which was
heard of a moment ago, one of two things has happened: two jobs have one name, or the first
was killed and did not say goodbye. Taps are heard of every second, so a little time tells:

    hello of another job --> wait --> the first is heard of again: it is taken
                                  --> that is silent for ALIVE_S: it is free

Pure: the time is an argument. Sessions that do not say which job they are of are never in
each other's way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from ranktap_wire import limits, rules
from ranktap_wire.messages import Code, FrameError, Hello
from ranktapd.sessions import Session

ALIVE_S: Final = 5 * limits.BEAT_INTERVAL_S
"""A job that was not heard of for this long is not there. The one behind it waits no longer."""
HEARD_S: Final = limits.BEAT_INTERVAL_S
"""How long after the second job asked for the first time the first one must be heard of: what
comes sooner may have been on its way when that one was killed."""
ASKED_MAX: Final = 1_000
"""Jobs that wait, of whom it is remembered since when. Arbitrary: one at a time is rare."""
HOSTS_NAMED: Final = 3
"""Of the other job, in an error's text."""
SUFFIXES_MAX: Final = 100
"""Names that are tried for a second job. Arbitrary."""


class Conflicts:
    """Which jobs have asked for a run of another one, and when. One for all runs."""

    def __init__(self) -> None:
        self._asked: dict[tuple[str, str], float] = {}
        """(run, job) to when it said hello while another job was there, the first time."""

    def second_run(
        self,
        hello: Hello,
        sessions: Iterable[Session],
        now: float,
        is_free: Callable[[str], bool] | None,
    ) -> str | None:
        """The name of a run of its own for a job that is the second in the one it names, whose
        sessions these are; None when it is not.

        `now` is the clock of `Session.last_heard`. `is_free` says whether there is no run of a
        name; None: a second job gets no run.

        Raises:
            FrameError: it has to come again, when it shows whether the other job is still there
                (BUSY); or that one is, and this one gets no run of its own (CONFLICT).
        """
        job = job_of(hello)
        others = [each for each in sessions if job and each.job and each.job != job]
        others = [each for each in others if now - each.last_heard < ALIVE_S]
        if not others:
            self._asked.pop((hello.run, job), None)
            return None
        hosts = ", ".join(sorted({each.opened.host for each in others})[:HOSTS_NAMED])
        asked = self._asked_at(hello.run, job, now)
        if not any(each.last_heard > asked + HEARD_S for each in others):
            raise FrameError(
                Code.BUSY,
                f"another job, on {hosts}, was writing to run {hello.run!r} a moment ago; "
                "in some seconds it shows whether it still is",
            )
        second = None if is_free is None else _second_name(hello.run, is_free)
        if second is None:
            raise FrameError(
                Code.CONFLICT,
                f"another job, on {hosts}, is writing to run {hello.run!r}; this one is on "
                f"{hello.host}: give one of them another run= or comment=, or set "
                'on_conflict = "suffix" in the settings of ranktapd',
            )
        return second

    def _asked_at(self, run: str, job: str, now: float) -> float:
        asked = self._asked.get((run, job))
        # Longer ago: it was told to come again, and did not.
        if asked is None or now - asked > 2 * ALIVE_S:
            asked = self._asked[run, job] = now
        while len(self._asked) > ASKED_MAX:
            del self._asked[next(iter(self._asked))]
        return asked


def job_of(hello: Hello) -> str:
    """What tells its job from others; empty when nothing does."""
    return hello.about.get("job", "")


def _second_name(run: str, is_free: Callable[[str], bool]) -> str | None:
    """`run-2`, or the first name behind it that is free; None when none can be."""
    for number in range(2, 2 + SUFFIXES_MAX):
        name = f"{run}-{number}"
        try:
            rules.check_run(name)
        except ValueError:
            return None
        if is_free(name):
            return name
    return None
