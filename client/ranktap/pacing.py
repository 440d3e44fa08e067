"""How often what was logged becomes a batch: every 50 ms, or as rarely as the daemon asks.

    welcome, ack [interval] -> asked
    every 50 ms, `turn` -> whether a batch is due

It looks every 50 ms in any case: answers are read then, and what has grown large is sent without
waiting to be due.

Pure: no sockets, no clock.
"""

from __future__ import annotations

import math

from ranktap_wire import limits


class Pacing:
    """When the batches of one session are due. Times are a monotonic clock, in seconds."""

    def __init__(self) -> None:
        self.interval_s = limits.BATCH_INTERVAL_S
        self.next_turn_at = 0.0
        self._last_batch_at = -math.inf

    def asked(self, interval_s: float | None) -> None:
        """Take what an answer says: how long batches should be; None when it says nothing.

        Within bounds: what is logged is to be seen in seconds whatever a daemon asks.
        """
        if interval_s is None:
            self.interval_s = limits.BATCH_INTERVAL_S
        else:
            self.interval_s = min(
                max(interval_s, limits.BATCH_INTERVAL_S), limits.BATCH_INTERVAL_MAX_S
            )

    def turn(self, now: float) -> bool:
        """Whether what waits is to become a batch now; then the next is due an interval later."""
        if now < self.next_turn_at:
            return False
        self.next_turn_at = now + limits.BATCH_INTERVAL_S
        if now < self._last_batch_at + self.interval_s:
            return False
        self._last_batch_at = now
        return True
