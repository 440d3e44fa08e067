"""How long calls take in a process that shares its processors with others."""

from __future__ import annotations

import time
from pathlib import Path

SAMPLE_EVERY_S = 0.002
"""Reading how long threads have waited takes some 50 us."""


class SlowestCall:
    """The slowest of many calls.

    `blocked_s` leaves out the time in which this process was ready to run and others had the
    processors: that says something about the machine, not about what was called. Waiting for
    a lock, a disk or a socket is all in it.
    """

    def __init__(self) -> None:
        self.wall_s = 0.0
        self.blocked_s = 0.0
        self._queued_s = _queued_s()
        self._sampled_at = time.perf_counter()

    def add(self, took_s: float) -> None:
        """A call has just returned."""
        self.wall_s = max(self.wall_s, took_s)
        now = time.perf_counter()
        is_slow = took_s > max(self.blocked_s, 0.001)
        if is_slow or now - self._sampled_at > SAMPLE_EVERY_S:
            queued_s = _queued_s()
            self.blocked_s = max(self.blocked_s, took_s - (queued_s - self._queued_s))
            self._queued_s, self._sampled_at = queued_s, now

    def __str__(self) -> str:
        return (
            f"slowest call {self.blocked_s * 1e3:.2f} ms "
            f"({self.wall_s * 1e3:.2f} ms with waiting for a processor)"
        )


def _queued_s() -> float:
    """How long this process's threads have been ready to run and not run so far."""
    total_ns = 0
    for task in Path("/proc/self/task").iterdir():
        try:
            total_ns += int((task / "schedstat").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # a thread that has just ended
    return total_ns / 1e9
