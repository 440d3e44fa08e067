"""How much one session may send: what is over it is acknowledged later.

A batch that was taken early is in the journal; its acknowledgement waits until the session
has kept to its rates again. A tap that has 64 MiB in flight sends no more until then, so it
is slowed down and nothing is lost. Who sends on without acknowledgements is no tap, and is not
listened to.

Source: the generic cell rate algorithm (ITU-T I.371), with a batch's cost as the time that it
takes at the allowed rates.
"""

from __future__ import annotations

from dataclasses import dataclass

from ranktap_wire import limits

BURST_S = 2.0
"""What may come at once, in seconds at the allowed rates: a rank that was paused catches up."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What a session may send in a second."""

    batches: int
    nbytes: int

    def cost_s(self, nbytes: int, batches: int = 1) -> float:
        """How long it takes at these rates."""
        return max(batches / self.batches, nbytes / self.nbytes)

    def limit_met(self, nbytes: int) -> str:
        """The name of the setting that a session of such batches meets first."""
        by_batches = 1 / self.batches > nbytes / self.nbytes
        return "max_session_batches_per_s" if by_batches else "max_session_bytes_per_s"

    @property
    def patience_s(self) -> float:
        """How far ahead a tap can be that waits for acknowledgements."""
        return BURST_S + self.cost_s(
            limits.IN_FLIGHT_BYTES + limits.MESSAGE_BYTES, limits.IN_FLIGHT_MESSAGES
        )


@dataclass(slots=True)
class Pace:
    """Of one session. Times are the daemon's monotonic clock, in seconds."""

    paid_until: float = 0.0
    """When all that it has sent would have come, at the allowed rates."""
    acknowledged: int = 0
    """The last batch of which it was told."""
    told: bool = False
    """That it is slowed down."""

    def spend(self, nbytes: int, rates: Rates, now: float) -> None:
        """It has sent a batch of that size."""
        self.paid_until = max(self.paid_until, now) + rates.cost_s(nbytes)

    def is_early(self, now: float) -> bool:
        """Whether its batches are acknowledged later."""
        return self.paid_until - now > BURST_S

    def is_too_early(self, rates: Rates, now: float) -> bool:
        """Whether it goes on although nothing is acknowledged."""
        return self.paid_until - now > rates.patience_s
