"""How a session gets on: what has come from it, and how long its steps take.

A batch costs a few additions here and nothing that depends on what is in it. Pure: every time
is an argument.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

MARK_S: Final = 5.0
"""How far apart the steps are between which the time is taken, at least, where they are short."""


@dataclass(slots=True)
class Progress:
    """Counts since the session was opened here."""

    records: int = 0
    nbytes: int = 0
    step: int | None = None
    """The latest that it has logged."""
    stepped_at: float = 0.0
    """When the first batch with that step came; the daemon's monotonic clock, seconds."""
    _wall: float = 0.0
    _earlier: tuple[int, float] = (0, 0.0)
    """A step and its wall time, as the rank says it; `_later` a later one."""
    _later: tuple[int, float] = (0, 0.0)
    _counts_before: tuple[int, int] = (0, 0)
    _counts_later: tuple[int, int] = (0, 0)

    def took(self, records: int, nbytes: int, step: int, wall: float, now: float) -> None:
        """Count a batch; `step` and `wall` are its last record's, and `now` is this machine's."""
        self.records += records
        self.nbytes += nbytes
        if self.step is None:
            self._earlier = self._later = (step, wall)
        elif step <= self.step:
            return  # an epoch that is logged beside the steps
        elif wall - self._later[1] >= MARK_S:
            self._earlier, self._later = self._later, (step, wall)
        self.step, self._wall, self.stepped_at = step, wall, now

    def note(self) -> None:
        """Note the counts, every few seconds: `since` counts from the note before the last."""
        self._counts_before = self._counts_later
        self._counts_later = (self.records, self.nbytes)

    def since(self) -> tuple[int, int]:
        """Records and bytes since the note before the last one."""
        records, nbytes = self._counts_before
        return self.records - records, self.nbytes - nbytes

    @property
    def step_time_s(self) -> float | None:
        """Seconds a step, over the last steps and by the rank's own clock; None: not known."""
        if self.step is None:
            return None
        steps, seconds = self.step - self._earlier[0], self._wall - self._earlier[1]
        # Wall times are the user's to give.
        return seconds / steps if steps > 0 and 0 <= seconds < math.inf else None
