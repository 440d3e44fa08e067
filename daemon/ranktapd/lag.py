"""How long what is not in the event file yet has been in the journal. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

MARKS: Final = 256
"""At first a mark at each note. When there are so many, every second one goes, and they are made
half as often from then on: a lag is known to a hundredth of the longest."""


@dataclass(slots=True)
class Lag:
    """Of one run: how long its journal was when. `now` is a monotonic clock, in seconds."""

    _marks: list[tuple[float, int]] = field(default_factory=list)
    _every_s: float = 0.0

    def note(self, now: float, last: int, written: int) -> None:
        """Its last entry is `last` now, and all up to `written` are in the event file."""
        marks = self._marks
        done = next((at for at, mark in enumerate(marks) if mark[1] > written), len(marks))
        del marks[:done]
        if not marks:
            self._every_s = 0.0
        if last > written and (not marks or now - marks[-1][0] >= self._every_s):
            marks.append((now, last))
            if len(marks) > MARKS:
                del marks[1::2]
                self._every_s = 2 * (marks[-1][0] - marks[0][0]) / MARKS

    def seconds(self, now: float, written: int) -> float:
        """How long the first entry behind `written` has been waiting; 0: there is none, or it
        came since the last note."""
        return next((now - when for when, last in self._marks if last > written), 0.0)
