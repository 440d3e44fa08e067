"""How far the daemon's wall clock is ahead of this machine's, from the round trips of beats.

    here       sent ------------- middle ------------- received
    daemon            came --- middle --- now                    offset: of the middles

What the daemon had in hand (it answers when what came before is on its disk) is known, and
is no part of the round trip. The rest is two ways, and the offset is wrong by at most half of
both together, however unlike they are: NTP's rule (RFC 5905, section 8). Of the last minutes
the best round trip counts; what it says grows worse as clocks drift.

Pure: every time is an argument.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

WINDOW_S: Final = 300.0
"""How long a round trip counts: a quiet moment in five minutes is enough."""
DRIFT: Final = 15e-6
"""By how many seconds a second two clocks may move apart: NTP's bound for clocks that it keeps
(PHI in RFC 5905)."""
ROUND_TRIP_MAX_S: Final = 60.0
"""A longer one would say nothing that is of use."""
ROUNDING_S: Final = 1e-6
"""What two clocks' readings may be off by as float64: a wall clock's last bit is 0.24 us."""


@dataclass(frozen=True, slots=True)
class _Sample:
    offset_s: float
    error_s: float
    taken: float
    """Our monotonic clock, at the latest then."""

    def error_at(self, now: float) -> float:
        return self.error_s + DRIFT * (now - self.taken)


@dataclass(slots=True)
class Clock:
    """What is known of the daemon's clock. Not thread safe."""

    # Later ones and better ones: what is older and no better than another is of no use any more,
    # as all of them grow worse alike.
    _samples: deque[_Sample] = field(default_factory=deque)

    def heard(self, sent: float, received: float, wall: float, now: float, held: float) -> None:
        """Take a round trip.

        `sent` and `received` are this machine's monotonic clock, `wall` is its wall clock at
        `received`; `now` is the daemon's as it answered, and `held` how long it had it in hand;
        all in seconds.
        """
        round_trip = received - sent - held
        # The daemon's clock measured `held`: where it runs the faster, a round trip shorter than
        # what it gained meanwhile comes out below zero.
        if held < 0 or not -(ROUNDING_S + DRIFT * held) <= round_trip <= ROUND_TRIP_MAX_S:
            return
        round_trip = max(round_trip, 0.0)
        offset = (now - held / 2) - (wall - (received - sent) / 2)
        sample = _Sample(offset, round_trip / 2, sent)
        if any(self._contradicts(sample, other) for other in self._samples):
            # Someone has set one of the clocks.
            self._samples.clear()
        while self._samples and self._samples[-1].error_at(sent) >= sample.error_s:
            self._samples.pop()
        self._samples.append(sample)
        while self._samples[0].taken < received - WINDOW_S:
            self._samples.popleft()

    def estimate(self, now: float) -> tuple[float, float] | None:
        """What to add to our wall clock for the daemon's, and how wrong that may be, in seconds.

        `now` is the monotonic clock. None: no round trip is known.
        """
        if not self._samples:
            return None
        best = self._samples[0]
        return best.offset_s, best.error_at(now)

    @staticmethod
    def _contradicts(sample: _Sample, other: _Sample) -> bool:
        between = abs(sample.offset_s - other.offset_s)
        return between > sample.error_s + other.error_at(sample.taken)
