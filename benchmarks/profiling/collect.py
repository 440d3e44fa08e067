"""Profiles of this process's threads, written when it ends.

Each thread has a profile of its own, in CPU time of that thread: what waits costs nothing, and
what a function of C does while it has let go of the interpreter is its own. A profile makes
each call dearer by half a microsecond or so; what is one long call is as long as ever.
"""

from __future__ import annotations

import atexit
import contextlib
import cProfile
import json
import os
import resource
import signal
import threading
import time
from pathlib import Path
from typing import Any

SETTLE_S = 30
"""How long processes get to be done with starting."""

_threads: list[tuple[str, cProfile.Profile]] = []
_is_parent = False
"""It has left its work to a child, as an embedded daemon's does."""


def begin(directory: Path, name: str) -> cProfile.Profile:
    """Profile all threads from now on; this one while the profile that is returned is enabled."""
    mine = cProfile.Profile(time.thread_time)
    _threads.append(("main thread", mine))
    run = threading.Thread.run

    def profiled(self: threading.Thread) -> None:
        profile = cProfile.Profile(time.thread_time)
        _threads.append((self.name, profile))
        profile.runcall(run, self)

    threading.Thread.run = profiled  # type: ignore[method-assign]
    leave = os._exit

    def save_and_leave(status: int) -> Any:
        save(directory, name)
        leave(status)

    os._exit = save_and_leave  # type: ignore[assignment]
    atexit.register(save, directory, name)
    return mine


def begin_on_signal(directory: Path, name: str) -> None:
    """Profile all threads, from the moment that `begin_others` says so."""
    mine = begin(directory, name)

    def begin_again(*_: object) -> None:
        mine.disable()
        mine.clear()
        mine.enable()

    def be_found() -> None:
        (directory / f"{os.getpid()}.pid").touch()

    def be_parent() -> None:
        global _is_parent
        _is_parent = True
        (directory / f"{os.getpid()}.pid").unlink(missing_ok=True)

    signal.signal(signal.SIGUSR1, begin_again)
    os.register_at_fork(after_in_child=be_found, after_in_parent=be_parent)
    be_found()


def begin_others(directory: Path) -> None:
    """Let the processes that wait for it begin: what they import is not what is measured."""
    deadline = time.monotonic() + SETTLE_S
    busy = _ticks(directory)
    while time.monotonic() < deadline:
        time.sleep(1)
        if busy == (busy := _ticks(directory)):
            break
    for pid in busy:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR1)


def _ticks(directory: Path) -> dict[int, int]:
    """CPU time of each of the processes, in hundredths of a second."""
    found = {}
    for path in directory.glob("*.pid"):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{path.stem}/stat").read_text().rpartition(")")[2].split()
            found[int(path.stem)] = (int(fields[11]) + int(fields[12])) // 2
    return found


def save(directory: Path, name: str) -> None:
    """Write what was seen."""
    if _is_parent:
        return
    usage = resource.getrusage(resource.RUSAGE_SELF)
    stem = f"{os.getpid()}"
    threads = []
    for number, (thread, profile) in enumerate(_threads):
        profile.disable()
        profile.create_stats()
        if profile.stats:  # type: ignore[attr-defined]
            profile.dump_stats(directory / f"{stem}-{number}.prof")
            threads.append([thread, f"{stem}-{number}.prof"])
    about = {"name": name, "user": usage.ru_utime, "system": usage.ru_stime, "threads": threads}
    (directory / f"{stem}.json").write_text(json.dumps(about))
