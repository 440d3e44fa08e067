"""What a daemon takes, looked at all the while: memory, descriptors and files."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import psutil

from tests.support.daemons import DaemonProcess

MIB = 1 << 20


@dataclass(slots=True)
class Look:
    """At one moment."""

    at_s: float
    main_rss: int
    worker_rss: int
    """Of the largest."""
    descriptors: int
    """Of main process and workers."""
    files: int
    """Below the state directory."""
    journal_bytes: int
    segments: int


@dataclass(slots=True)
class Footprint:
    """Looks at a daemon every `every_s`, while it is entered."""

    daemon: DaemonProcess
    state: Path
    every_s: float
    looks: list[Look] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _began: float = 0.0

    def __enter__(self) -> Footprint:
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._look_on)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        assert self._thread is not None
        self._thread.join()

    def _look_on(self) -> None:
        while not self._ended.wait(self.every_s):
            try:
                self.looks.append(self.look())
            except (psutil.NoSuchProcess, FileNotFoundError):
                continue  # it ended, or was deleted, while it was looked at

    def look(self) -> Look:
        main = psutil.Process(self.daemon.pid)
        workers = self.daemon.workers()
        files = [path for path in self.state.rglob("*") if path.is_file()]
        journal = [path.stat().st_size for path in files if path.suffix == ".journal"]
        return Look(
            time.monotonic() - self._began,
            main.memory_info().rss,
            max((worker.memory_info().rss for worker in workers), default=0),
            main.num_fds() + sum(worker.num_fds() for worker in workers),
            len(files),
            sum(journal),
            len(journal),
        )

    def table(self, rows: int = 20) -> str:
        """Some of the looks, evenly, and the most of each."""
        step = max(1, len(self.looks) // rows)
        lines = ["   time  main MiB  worker MiB  descriptors  files  segments  journal MB"]
        lines += [_line(look) for look in self.looks[::step]]
        most = Look(*(max(values) for values in zip(*map(_values, self.looks), strict=True)))
        return "\n".join([*lines, "most:", _line(most)])


def _values(look: Look) -> tuple[float, int, int, int, int, int, int]:
    return (look.at_s, look.main_rss, look.worker_rss, look.descriptors, look.files,
            look.journal_bytes, look.segments)  # fmt: skip


def _line(look: Look) -> str:
    return (
        f"{look.at_s:6.0f} s {look.main_rss / MIB:9.1f} {look.worker_rss / MIB:11.1f} "
        f"{look.descriptors:12} {look.files:6} {look.segments:9} {look.journal_bytes / 1e6:11.0f}"
    )
