"""How long the batches of a crowd should be: the more ranks send, the longer each collects.

A message costs the intake about as much as a thousand scalars do, whatever is in it. With a few
ranks that buys latency: each sends every 50 ms. A thousand would send 20,000 messages a second,
which no daemon takes on one core, and points would come later than with longer batches. So the
answers say how long a rank should collect before it sends, and all of them together send about
`BATCHES_PER_S`, however many they are.

Only those count that send batches: a thousand ranks of which one logs are no crowd.

Pure: no sockets, no clock. Times are the daemon's monotonic clock, in seconds.
"""

from __future__ import annotations

from typing import Final

from ranktap_wire import limits

BATCHES_PER_S: Final = 1_000
"""What all together should send, about: a quarter of a core of the main process, and as much of
the worker. Up to 50 ranks keep their 50 ms."""
PERIOD_S: Final = 2 * limits.BATCH_INTERVAL_MAX_S
"""Who has sent nothing for one to two of these counts no more: the slowest sends two batches in
one."""


GATHER_S: Final = 0.01
"""How far apart rounds are while longer batches are asked for: each takes a sync, a write of the
worker's and its checkpoint, for the three batches that come in three milliseconds as for ten.
A fifth of what the shortest batch has waited already."""


class Crowd:
    """Who has sent lately, and what that means for all."""

    def __init__(self) -> None:
        self._senders: set[bytes] = set()
        self._before = 0
        self._since = 0.0

    def sent(self, session: bytes) -> None:
        """A session has sent a batch."""
        self._senders.add(session)

    def turn(self, now: float) -> None:
        """Forget those that were not heard of for long; once a round is often enough."""
        if now - self._since >= PERIOD_S:
            self._before = len(self._senders)
            self._senders.clear()
            self._since = now

    @property
    def size(self) -> int:
        """How many have sent in this period or the last one, whichever are more: who comes
        counts at once, who goes a period later."""
        return max(self._before, len(self._senders))

    def interval_s(self) -> float | None:
        """How long each should collect before it sends; None: as long as clients do unasked."""
        interval_s = min(self.size / BATCHES_PER_S, limits.BATCH_INTERVAL_MAX_S)
        return interval_s if interval_s > limits.BATCH_INTERVAL_S else None
